"""Swin-Unet (Cao et al. 2022): a U-Net of windowed attention, on MONAI's Swin blocks."""

import math
from collections.abc import Sequence

import torch
from monai.networks.blocks.patchembedding import PatchEmbed
from monai.networks.nets.swin_unetr import (
    PatchMergingV2,
    SwinTransformerBlock,
    compute_mask,
    get_window_size,
)
from torch import Tensor, nn

from wavegms.models.mask_network import logits_of, mask_network

_WINDOW, _DEPTH, _DROP_PATH = 7, 2, 0.2


class Stage(nn.ModuleList):
    """Swin blocks on a map (B, H, W, C), every second one with its windows shifted by half.

    `side` is the map's at the size that the network is built for: a window is never larger, as in
    the official code, whose table of relative positions shrinks with it. Sides that a window does
    not divide are padded, where the official code fails.
    """

    def __init__(
        self, dim: int, heads: int, side: int, drop_path: Sequence[float], mlp_ratio: float = 4
    ):
        self.window, self.shift = ((min(size, side),) * 2 for size in (_WINDOW, _WINDOW // 2))
        super().__init__(
            SwinTransformerBlock(
                dim,
                heads,
                self.window,
                self.shift if i % 2 else (0, 0),
                mlp_ratio,
                drop_path=rate,
            )
            for i, rate in enumerate(drop_path)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Keeps the shape."""
        sides = x.shape[1:3]
        window, shift = get_window_size(sides, self.window, self.shift)
        padded = [math.ceil(side / size) * size for side, size in zip(sides, window, strict=True)]
        mask = compute_mask(padded, window, shift, x.device) if any(shift) else None
        for block in self:
            x = block(x, mask)
        return x


class Expand(nn.Module):
    """(B, H, W, C) -> (B, pH, pW, `to`): each place becomes p x p places."""

    def __init__(self, dim: int, to: int, factor: int):
        super().__init__()
        self.factor = factor
        self.linear = nn.Linear(dim, factor**2 * to, bias=False)
        self.norm = nn.LayerNorm(to)

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        x = self.linear(x).unflatten(-1, (self.factor, self.factor, -1))
        return self.norm(x.transpose(2, 3).flatten(3, 4).flatten(1, 2))


class SwinUNet(nn.Module):
    """(B, 3, S, S) in [0, 1] -> (B, logits, S, S), S a multiple of 32.

    In between, maps are (B, H, W, C).
    """

    def __init__(
        self,
        image_size: int = 224,
        dim: int = 96,
        heads: Sequence[int] = (3, 6, 12, 24),
        logits: int = 1,
    ):
        super().__init__()
        widths = [dim * 2**level for level in range(4)]
        sides = [image_size // (4 * 2**level) for level in range(4)]
        chances = torch.linspace(0, _DROP_PATH, 4 * _DEPTH, device="cpu").tolist()
        rates = [chances[_DEPTH * level :][:_DEPTH] for level in range(4)]
        stages = lambda levels: nn.ModuleList(  # noqa: E731
            Stage(widths[i], heads[i], sides[i], rates[i]) for i in levels
        )
        self.embed = PatchEmbed(4, 3, dim, spatial_dims=2)
        self.encoder = stages(range(4))
        self.merges = nn.ModuleList(PatchMergingV2(w, spatial_dims=2) for w in widths[:3])
        self.norm = nn.LayerNorm(widths[3])
        self.expands = nn.ModuleList(Expand(widths[i], widths[i - 1], 2) for i in (3, 2, 1))
        self.fuses = nn.ModuleList(nn.Linear(2 * widths[i], widths[i]) for i in (2, 1, 0))
        self.decoder = stages((2, 1, 0))
        self.norm_up = nn.LayerNorm(dim)
        self.last_expand = Expand(dim, dim, 4)
        self.head = nn.Conv2d(dim, logits, 1, bias=False)
        self.apply(_initialise)

    def skips(self, images: Tensor, maps: list[Tensor]) -> list[Tensor]:
        """What the decoder is given of the encoder's three larger maps, the largest first."""
        return maps

    def forward(self, images: Tensor) -> Tensor:
        """See the class."""
        x = self.embed(images).permute(0, 2, 3, 1)
        maps = []
        for stage, merge in zip(self.encoder, self.merges, strict=False):
            maps.append(x)  # before the stage, as in the official code
            x = merge(stage(x))
        x = self.norm(self.encoder[3](x))
        skips = self.skips(images, maps)[::-1]
        for expand, skip, fuse, stage in zip(
            self.expands, skips, self.fuses, self.decoder, strict=True
        ):
            x = stage(fuse(torch.cat([expand(x), skip], -1)))
        return self.head(self.last_expand(self.norm_up(x)).permute(0, 3, 1, 2))


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


@mask_network
def swin_unet(image_size: int, classes: int = 1) -> nn.Module:
    """Swin-Unet, 27,168,132 parameters at 224 pixels; from scratch, not from ImageNet."""
    return SwinUNet(image_size, logits=logits_of(classes))


@mask_network
def swin_unet_small(image_size: int, classes: int = 1) -> nn.Module:
    """An eighth of its width."""
    return SwinUNet(image_size, 12, (1, 2, 4, 8), logits_of(classes))
