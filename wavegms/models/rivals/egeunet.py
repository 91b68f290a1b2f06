"""EGE-UNet (Ruan et al., MICCAI workshops 2023), with its five auxiliary masks."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from wavegms.models.mask_network import logits_of, mask_network

# Side of the free parameters before they are brought to the size of a map.
_FREE = 8

_DILATIONS = (1, 2, 5, 7)


def _resized(x: Tensor, size: tuple[int, int]) -> Tensor:
    return functional.interpolate(x, size, mode="bilinear", align_corners=True)


def _doubled(x: Tensor) -> Tensor:
    return _resized(x, (2 * x.shape[-2], 2 * x.shape[-1]))


def _depthwise(channels: int) -> nn.Conv2d:
    return nn.Conv2d(channels, channels, 3, padding=1, groups=channels)


class ChannelNorm(nn.LayerNorm):
    """Layer normalisation over the channels at each position."""

    def __init__(self, channels: int):
        super().__init__(channels, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels, H, W), the same shape."""
        return super().forward(x.movedim(1, -1)).movedim(-1, 1)


class HadamardBlock(nn.Module):
    """Group multi-axis Hadamard attention: quarters of the channels times free parameters.

    One quarter along both axes, one along rows, one along columns; the last is convolved.
    """

    def __init__(self, into: int, out: int):
        super().__init__()
        quarter = into // 4
        self.plane = nn.Parameter(torch.ones(1, quarter, _FREE, _FREE))
        self.rows = nn.Parameter(torch.ones(1, 1, quarter, _FREE))
        self.columns = nn.Parameter(torch.ones(1, 1, quarter, _FREE))

        def along() -> nn.Sequential:
            depthwise = nn.Conv1d(quarter, quarter, 3, padding=1, groups=quarter)
            return nn.Sequential(depthwise, nn.GELU(), nn.Conv1d(quarter, quarter, 1))

        self.of_plane = nn.Sequential(
            _depthwise(quarter), nn.GELU(), nn.Conv2d(quarter, quarter, 1)
        )
        self.of_rows, self.of_columns = along(), along()
        self.last = nn.Sequential(nn.Conv2d(quarter, quarter, 1), nn.GELU(), _depthwise(quarter))
        self.first_norm, self.second_norm = ChannelNorm(into), ChannelNorm(into)
        self.project = nn.Sequential(_depthwise(into), nn.GELU(), nn.Conv2d(into, out, 1))

    def forward(self, x: Tensor) -> Tensor:
        """(B, into, H, W) -> (B, out, H, W)."""
        height, width = x.shape[-2:]
        first, second, third, fourth = self.first_norm(x).chunk(4, dim=1)
        quarter = first.shape[1]
        first = first * self.of_plane(_resized(self.plane, (height, width)))
        second = second * self.of_rows(_resized(self.rows, (quarter, height))[0])[..., None]
        third = third * self.of_columns(_resized(self.columns, (quarter, width))[0])[:, :, None]
        x = torch.cat([first, second, third, self.last(fourth)], dim=1)
        return self.project(self.second_norm(x))


class Bridge(nn.Module):
    """Group aggregation: the map from below, the encoder's and the auxiliary logits in quarters."""

    def __init__(self, below: int, here: int, logits: int):
        super().__init__()
        self.project = nn.Conv2d(below, here, 1)
        mixed = here // 2 + logits
        self.branches = nn.ModuleList(
            nn.Sequential(
                ChannelNorm(mixed),
                nn.Conv2d(mixed, mixed, 3, padding=step, dilation=step, groups=mixed),
            )
            for step in _DILATIONS
        )
        self.tail = nn.Sequential(ChannelNorm(4 * mixed), nn.Conv2d(4 * mixed, here, 1))

    def forward(self, below: Tensor, here: Tensor, logits: Tensor) -> Tensor:
        """(B, below, h, w), (B, here, H, W) and (B, logits, H, W) -> (B, here, H, W)."""
        below = _resized(self.project(below), here.shape[-2:]).chunk(4, dim=1)
        quarters = zip(self.branches, below, here.chunk(4, dim=1), strict=True)
        mixed = [branch(torch.cat([one, other, logits], dim=1)) for branch, one, other in quarters]
        return self.tail(torch.cat(mixed, dim=1))


class EgeUNet(nn.Module):
    """Sides divisible by 32; it sees each image stretched to 0 to 255, as published."""

    def __init__(self, widths: tuple[int, ...], logits: int):
        super().__init__()
        *levels, deepest = widths
        # by level from 1 in the encoder and the bridges, from the deepest in the decoder
        into = [3, *levels]
        self.encoder = nn.ModuleList(
            nn.Conv2d(one, other, 3, padding=1) if level < 3 else HadamardBlock(one, other)
            for level, (one, other) in enumerate(zip(into, widths, strict=True))
        )
        self.bridges = nn.ModuleList(
            Bridge(below, here, logits) for here, below in zip(levels, widths[1:], strict=True)
        )
        upwards = levels[::-1]
        self.auxiliary = nn.ModuleList(nn.Conv2d(wide, logits, 1) for wide in upwards)
        self.decoder = nn.ModuleList(
            HadamardBlock(one, other) if step < 3 else nn.Conv2d(one, other, 3, padding=1)
            for step, (one, other) in enumerate(zip([deepest, *upwards], upwards, strict=False))
        )
        self.encoder_norms = nn.ModuleList(nn.GroupNorm(4, wide) for wide in levels)
        self.decoder_norms = nn.ModuleList(nn.GroupNorm(4, wide) for wide in upwards)
        self.head = nn.Conv2d(levels[0], logits, 1)
        self.apply(_initialise)

    def forward(self, images: Tensor) -> Tensor | list[Tensor]:
        """(B, 3, H, W) -> (B, logits, H, W); in training, five auxiliary ones after it.

        Those come from the deepest level up.
        """
        low, high = images.amin((1, 2, 3), True), images.amax((1, 2, 3), True)
        return self.logits((images - low) / (high - low).clamp_min(1e-8) * 255)

    def logits(self, x: Tensor) -> Tensor | list[Tensor]:
        """As `forward`, of values as they are: the published network."""
        size, skips = x.shape[-2:], []
        for stage, norm in zip(self.encoder, self.encoder_norms, strict=False):
            x = functional.gelu(functional.max_pool2d(norm(stage(x)), 2))
            skips.append(x)
        x = below = functional.gelu(self.encoder[-1](x))
        masks = []
        for step, (stage, norm) in enumerate(zip(self.decoder, self.decoder_norms, strict=True)):
            x = norm(stage(x))
            x = functional.gelu(x if step == 0 else _doubled(x))
            masks.append(self.auxiliary[step](x))
            below = self.bridges[-1 - step](below, skips[-1 - step], masks[-1])
            x = x + below
        mask = _doubled(self.head(x))
        return [mask, *(_resized(one, size) for one in masks)] if self.training else mask


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d):
        kernel = math.prod(module.kernel_size)
        nn.init.normal_(
            module.weight, std=math.sqrt(2 * module.groups / (kernel * module.out_channels))
        )
        nn.init.zeros_(module.bias)
    elif isinstance(module, nn.Conv1d):  # not divided by its groups, as published
        nn.init.normal_(
            module.weight, std=math.sqrt(2 / (module.kernel_size[0] * module.out_channels))
        )


@mask_network
def egeunet(classes: int = 1) -> nn.Module:
    """53,374 parameters; the paper's has 0.05 M."""
    return EgeUNet((8, 16, 24, 32, 48, 64), logits_of(classes))


@mask_network
def egeunet_small(classes: int = 1) -> nn.Module:
    """The same with fewer channels."""
    return EgeUNet((4, 8, 8, 12, 12, 16), logits_of(classes))
