"""UCTransNet (Wang et al. 2022): a U-Net whose skips pass through a channel transformer."""

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from wavegms.models.mask_network import logits_of, mask_network
from wavegms.models.rivals.channel_transformer import ChannelTransformer

_PATCHES = (16, 8, 4, 2)


class Units(nn.Sequential):
    """3 x 3 convolutions, each with batch normalisation and ReLU, through these widths."""

    def __init__(self, *widths: int):
        super().__init__()
        for into, out in pairwise(widths):
            self.extend([nn.Conv2d(into, out, 3, padding=1), nn.BatchNorm2d(out), nn.ReLU()])


class Up(nn.Module):
    """A decoder level: the skip's channels are gated by both means, then two units."""

    def __init__(self, width: int, out: int):
        super().__init__()
        self.of_skip, self.of_below = nn.Linear(width, width), nn.Linear(width, width)
        self.units = Units(2 * width, out, out)

    def forward(self, below: Tensor, skip: Tensor) -> Tensor:
        """(B, C, H/2, W/2) and (B, C, H, W) -> (B, `out`, H, W)."""
        below = functional.interpolate(below, scale_factor=2)
        gate = (self.of_skip(skip.mean((2, 3))) + self.of_below(below.mean((2, 3)))) / 2
        gated = functional.relu(skip * gate.sigmoid()[:, :, None, None])
        return self.units(torch.cat([gated, below], 1))


class UCTransNet(nn.Module):
    """(B, 3, S, S) in [0, 1] -> (B, logits, S, S), for one side S, a multiple of 16."""

    def __init__(self, image_size: int = 224, width: int = 64, logits: int = 1):
        super().__init__()
        channels = [width * 2**level for level in range(4)]
        sides = [image_size // 2**level for level in range(4)]
        self.stem = Units(3, width)
        below = [*channels[1:], channels[3]]
        self.downs = nn.ModuleList(
            Units(into, out, out) for into, out in zip(channels, below, strict=True)
        )
        self.transformer = ChannelTransformer(channels, sides, _PATCHES)
        above = [channels[0], *channels[:3]]
        self.ups = nn.ModuleList(Up(channels[level], above[level]) for level in (3, 2, 1, 0))
        self.head = nn.Conv2d(width, logits, 1)

    def forward(self, images: Tensor) -> Tensor:
        """See the class."""
        maps = [self.stem(images)]
        for down in self.downs:
            maps.append(down(functional.max_pool2d(maps[-1], 2)))
        x = maps.pop()
        for up, skip in zip(self.ups, self.transformer(maps)[::-1], strict=True):
            x = up(x, skip)
        return self.head(x)


@mask_network
def uctransnet(image_size: int, classes: int = 1) -> nn.Module:
    """UCTransNet, 66,430,657 parameters at 224 pixels."""
    return UCTransNet(image_size, logits=logits_of(classes))


@mask_network
def uctransnet_small(image_size: int, classes: int = 1) -> nn.Module:
    """An eighth of its width."""
    return UCTransNet(image_size, 8, logits_of(classes))
