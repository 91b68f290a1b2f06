"""ACC-UNet (Ibtehaz and Kihara, MICCAI 2023)."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from wavegms.models.mask_network import logits_of, mask_network

_SLOPE = 0.01

# Of each level's context: how often maps are halved, plus one.
_CONTEXT = (3, 3, 3, 2, 1)

# How many times wider a block is inside.
_INNER = 3


def _active(x: Tensor) -> Tensor:
    return functional.leaky_relu(x, _SLOPE)


def _unit(into: int, out: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(into, out, 1), nn.BatchNorm2d(out), nn.LeakyReLU(_SLOPE))


def _interleaved(maps: list[Tensor]) -> Tensor:
    """The first channel of every map, then the second of every map, and so on."""
    return torch.stack(maps, dim=2).flatten(1, 2)


class SqueezeExcite(nn.Module):
    """Channels weighted by what their averages say, then batch norm and activation."""

    def __init__(self, channels: int):
        super().__init__()
        self.squeeze = nn.Linear(channels, channels // 8)
        self.excite = nn.Linear(channels // 8, channels)
        self.norm = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels, H, W), the same shape."""
        weights = self.excite(_active(self.squeeze(x.mean(dim=(2, 3))))).sigmoid()
        return _active(self.norm(x * weights[:, :, None, None]))


class Context(nn.Module):
    """A 1x1 convolution of a map beside its averages and maxima over 2x2, 4x4, ... squares."""

    def __init__(self, into: int, out: int, scales: int):
        super().__init__()
        self.sizes = [2**scale for scale in range(1, scales)]
        self.unit = _unit((2 * scales - 1) * into, out)

    def forward(self, x: Tensor) -> Tensor:
        """(B, into, H, W), sides divisible by 2^(scales - 1) -> (B, out, H, W)."""
        maps = [x]
        for pool in (functional.avg_pool2d, functional.max_pool2d):
            for size in self.sizes:
                maps.append(functional.interpolate(pool(x, size), scale_factor=float(size)))
        return self.unit(_interleaved(maps))


class HancBlock(nn.Module):
    """Hierarchical aggregation of neighbourhood context: an inverted bottleneck around it."""

    def __init__(self, into: int, out: int, scales: int, inner: int = _INNER):
        super().__init__()
        middle = inner * into
        self.widen = _unit(into, middle)
        self.depthwise = nn.Sequential(
            nn.Conv2d(middle, middle, 3, padding=1, groups=middle),
            nn.BatchNorm2d(middle),
            nn.LeakyReLU(_SLOPE),
        )
        self.context = Context(middle, into, scales)
        self.norm = nn.BatchNorm2d(into)
        self.project = _unit(into, out)
        self.weigh = SqueezeExcite(out)

    def forward(self, x: Tensor) -> Tensor:
        """(B, into, H, W) -> (B, out, H, W)."""
        x = self.norm(self.context(self.depthwise(self.widen(x))) + x)
        return self.weigh(self.project(x))


class ResPath(nn.Module):
    """Residual 3x3 convolutions on a skip."""

    def __init__(self, channels: int, steps: int):
        super().__init__()
        self.convolutions = nn.ModuleList(
            nn.Conv2d(channels, channels, 3, padding=1) for _ in range(steps)
        )
        self.norms = nn.ModuleList(nn.BatchNorm2d(channels) for _ in range(steps))
        self.weighs = nn.ModuleList(SqueezeExcite(channels) for _ in range(steps))
        self.inner_norm, self.outer_norm = nn.BatchNorm2d(channels), nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels, H, W), the same shape."""
        for convolve, norm, weigh in zip(self.convolutions, self.norms, self.weighs, strict=True):
            x = x + weigh(_active(norm(convolve(x))))
        return self.outer_norm(_active(self.inner_norm(x)))


class LevelFusion(nn.Module):
    """Every level's map renewed from those of all levels."""

    def __init__(self, widths: list[int]):
        super().__init__()

        def for_each(build: type[nn.Module]) -> nn.ModuleList:
            return nn.ModuleList(build(wide) for wide in widths)

        self.gather = for_each(
            lambda wide: nn.Sequential(_unit(sum(widths), wide), SqueezeExcite(wide))
        )
        self.merge = for_each(
            lambda wide: nn.Sequential(_unit(2 * wide, wide), SqueezeExcite(wide))
        )
        self.gathered_norms = for_each(nn.BatchNorm2d)
        self.merged_norms = for_each(nn.BatchNorm2d)
        self.weighs = for_each(SqueezeExcite)

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        """One map a level, each of half the side of the one before; the same shapes."""
        renewed = []
        for level, x in enumerate(maps):
            brought = []
            for other, y in enumerate(maps):
                if other < level:
                    y = functional.avg_pool2d(y, 2 ** (level - other))
                elif other > level:
                    y = functional.interpolate(y, scale_factor=float(2 ** (other - level)))
                brought.append(y)
            gathered = self.gather[level](torch.cat(brought, dim=1))
            gathered = _active(self.gathered_norms[level](gathered))
            merged = self.merge[level](_interleaved([gathered, x])) + x
            renewed.append(self.weighs[level](_active(self.merged_norms[level](merged))))
        return renewed


class DecoderLevel(nn.Module):
    """The map from below at twice its side, and the skip, through two blocks."""

    def __init__(self, width: int, scales: int, inner: int):
        super().__init__()
        self.up = nn.ConvTranspose2d(2 * width, width, 2, stride=2)
        first = HancBlock(2 * width, width, scales)
        self.blocks = nn.Sequential(first, HancBlock(width, width, scales, inner))

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        """(B, 2 width, H/2, W/2) and (B, width, H, W) -> (B, width, H, W)."""
        return self.blocks(torch.cat([self.up(x), skip], dim=1))


class AccUNet(nn.Module):
    """Sides divisible by 16.

    `inner_of_level_3` is how many times wider the second block of the decoder's third level is
    inside.
    """

    def __init__(self, width: int, inner_of_level_3: int, classes: int = 1):
        super().__init__()
        widths = [width * 2**level for level in range(5)]
        self.encoder = nn.ModuleList(
            nn.Sequential(HancBlock(into, wide, scales), HancBlock(wide, wide, scales))
            for into, wide, scales in zip([3, *widths], widths, _CONTEXT, strict=False)
        )
        self.paths = nn.ModuleList(
            ResPath(wide, 4 - level) for level, wide in enumerate(widths[:4])
        )
        self.fusions = nn.ModuleList(LevelFusion(widths[:4]) for _ in range(3))
        self.decoder = nn.ModuleList(
            DecoderLevel(widths[level], _CONTEXT[level], inner_of_level_3 if level == 2 else _INNER)
            for level in (3, 2, 1, 0)
        )
        self.head = nn.Conv2d(width, logits_of(classes), 1)

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) in [0, 1] -> logits (B, 1, H, W), or as `logits_of` says."""
        x, maps = self.encoder[0](images), []
        for path, blocks in zip(self.paths, self.encoder[1:], strict=True):
            maps.append(path(x))
            x = blocks(functional.max_pool2d(x, 2))
        for fusion in self.fusions:
            maps = fusion(maps)
        for level, skip in zip(self.decoder, reversed(maps), strict=True):
            x = level(x, skip)
        return self.head(x)


@mask_network
def acc_unet(classes: int = 1) -> nn.Module:
    """16,771,245 parameters; the paper's has 16.8 M."""
    return AccUNet(32, 34, classes)


@mask_network
def acc_unet_small(classes: int = 1) -> nn.Module:
    """The same at a quarter of the width, without the one block that is wider than all others."""
    return AccUNet(8, _INNER, classes)
