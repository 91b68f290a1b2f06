"""MultiResUNet (Ibtehaz and Rahman, Neural Networks 2020), in its form of one output channel."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from wavegms.models.mask_network import logits_of, mask_network

# Of the width of a U-Net's level, and of those of the three convolutions in a row.
_WIDER, _SHARES = 1.67, (0.167, 0.333, 0.5)


def _unit(into: int, out: int, kernel: int, *, active: bool = True) -> nn.Sequential:
    parts = [nn.Conv2d(into, out, kernel, padding="same"), nn.BatchNorm2d(out)]
    return nn.Sequential(*parts, *([nn.ReLU()] if active else []))


class MultiResBlock(nn.Module):
    """Three 3x3 convolutions in a row, whose outputs side by side are added to a 1x1 one's."""

    def __init__(self, into: int, width: int):
        super().__init__()
        widths = [int(_WIDER * width * share) for share in _SHARES]
        self.out_channels = sum(widths)
        self.side = _unit(into, self.out_channels, 1, active=False)
        self.chain = nn.ModuleList(
            _unit(one, other, 3) for one, other in zip([into, *widths], widths, strict=False)
        )
        self.inner_norm = nn.BatchNorm2d(self.out_channels)
        self.outer_norm = nn.BatchNorm2d(self.out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """(B, into, H, W) -> (B, out_channels, H, W)."""
        side, parts = self.side(x), []
        for unit in self.chain:
            x = unit(x)
            parts.append(x)
        return functional.relu(self.outer_norm(self.inner_norm(torch.cat(parts, dim=1)) + side))


class ResPath(nn.Module):
    """Residual 3x3 convolutions on a skip; each step's one batch norm is used twice."""

    def __init__(self, into: int, width: int, steps: int):
        super().__init__()
        inputs = [into, *[width] * (steps - 1)]
        self.sides = nn.ModuleList(_unit(one, width, 1, active=False) for one in inputs)
        self.mains = nn.ModuleList(_unit(one, width, 3) for one in inputs)
        self.norms = nn.ModuleList(nn.BatchNorm2d(width) for _ in inputs)

    def forward(self, x: Tensor) -> Tensor:
        """(B, into, H, W) -> (B, width, H, W)."""
        for side, main, norm in zip(self.sides, self.mains, self.norms, strict=True):
            x = functional.relu(norm(functional.relu(norm(main(x))) + side(x)))
        return x


class MultiResUNet(nn.Module):
    """Sides divisible by 16. The logit is normalised over the batch, too, as published."""

    def __init__(self, width: int, classes: int = 1):
        super().__init__()
        widths = [width * 2**level for level in range(5)]
        self.encoder, self.paths = nn.ModuleList(), nn.ModuleList()
        into = 3
        for level, wide in enumerate(widths):
            self.encoder.append(MultiResBlock(into, wide))
            into = self.encoder[-1].out_channels
            if level < 4:
                self.paths.append(ResPath(into, wide, 4 - level))
        self.ups, self.decoder = nn.ModuleList(), nn.ModuleList()
        for wide in reversed(widths[:4]):
            self.ups.append(nn.ConvTranspose2d(into, wide, 2, stride=2))
            self.decoder.append(MultiResBlock(2 * wide, wide))
            into = self.decoder[-1].out_channels
        self.head = _unit(into, logits_of(classes), 1, active=False)

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) in [0, 1] -> logits (B, 1, H, W), or as `logits_of` says."""
        x, skips = self.encoder[0](images), []
        for path, block in zip(self.paths, self.encoder[1:], strict=True):
            skips.append(path(x))
            x = block(functional.max_pool2d(x, 2))
        for up, block, skip in zip(self.ups, self.decoder, reversed(skips), strict=True):
            x = block(torch.cat([up(x), skip], dim=1))
        return self.head(x)


@mask_network
def multiresunet(classes: int = 1) -> nn.Module:
    """7,251,322 parameters; the paper's has 7.3 M."""
    return MultiResUNet(32, classes)


@mask_network
def multiresunet_small(classes: int = 1) -> nn.Module:
    """The same at a quarter of the width: 448,660 parameters."""
    return MultiResUNet(8, classes)
