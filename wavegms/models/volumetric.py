"""Wave-GMS in 3-D: windows of consecutive slices between the latents of the 2-D autoencoder.

Both networks are those of the paper with every 3x3 convolution inflated to 3x3x3 (Carreira and
Zisserman, "Quo Vadis, Action Recognition?", CVPR 2017). Slices come and go as images do,
(B * depth, ...), those of a window side by side and in order, so that losses, decoders and the loop
are those of 2-D.
"""

import torch
from diffusers.configuration_utils import register_to_config
from diffusers.models.modeling_utils import ModelMixin  # noqa: F401  a pipeline looks it up here
from torch import Tensor, nn
from torch.nn import functional

from wavegms.models.encoder import MultiResolutionEncoder
from wavegms.models.mapping import (
    LatentMappingModel,
    ResAttnBlock,
    SpatialSelfAttention,
)
from wavegms.models.wavelet import multi_level_bands_3d
from wavegms.models.windows import as_slices, as_window
from wavegms.variants import WINDOW


class AcrossSlices(nn.Conv3d):
    """A 3x3x3 convolution that repeats a window's first and last slice.

    Within slices it pads by zeros, as in 2-D. Zeros across them would tell the network where in
    its window a slice lies, which is none of the anatomy: of slices that are all alike, all outputs
    are alike.
    """

    def __init__(self, in_channels: int, out_channels: int, bias: bool = True):
        super().__init__(in_channels, out_channels, kernel_size=3, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, D, h, w) -> (B, out_channels, D, h, w).

        By three 2-D convolutions in one, whose sums are those of the 3-D one: on a CPU, that one
        took 2 to 6 times as long.
        """
        kernels = self.weight.permute(2, 0, 1, 3, 4).flatten(0, 1)
        # once, to what is of the slice itself; added later, it would turn half precision to single
        out = self.out_channels
        bias = None if self.bias is None else functional.pad(self.bias, (out, out))
        parts = functional.conv2d(as_slices(x), kernels, bias, padding=1)
        before, at, after = parts.unflatten(0, (-1, x.shape[2])).chunk(3, dim=2)
        below = torch.cat([before[:, :1], before[:, :-1]], dim=1)
        above = torch.cat([after[:, 1:], after[:, -1:]], dim=1)
        return (below + at + above).transpose(1, 2)


def inflate(module: nn.Module) -> None:
    """Replaces 2-D convolutions in a module by 3-D ones of the same channels.

    They begin as the 2-D ones on each slice, with 0 for its neighbours. Drawn at random over all
    three, dozens of them in a row blend the slices of a window, which has to be unlearnt first: see
    docs/volumes.md. Attention stays as it is: within slices.
    """
    for name, child in module.named_children():
        if isinstance(child, nn.Conv2d):
            channels, bias = (child.in_channels, child.out_channels), child.bias is not None
            plain = child.kernel_size == (1, 1)
            inflated = (
                nn.Conv3d(*channels, 1, bias=bias) if plain else AcrossSlices(*channels, bias)
            )
            with torch.no_grad():
                inflated.weight.zero_()[:, :, inflated.kernel_size[0] // 2] = child.weight
                if bias:
                    inflated.bias.copy_(child.bias)
            setattr(module, name, inflated)
        elif not isinstance(child, SpatialSelfAttention):
            inflate(child)


class MultiResolutionEncoder3d(MultiResolutionEncoder):
    """The multi-resolution encoder of windows of slices, by three levels of 3-D Haar sub-bands.

    Each level has 24 channels, 8 sub-bands x RGB, and the depth of the window, see
    `multi_level_bands_3d`; only the sides of slices are halved and pooled. A third-level sub-band
    is of eight slices, which is why windows are of so many. 3,051,152 parameters.
    """

    sub_bands = 8

    @register_to_config
    def __init__(
        self, latent_channels: int = 4, sample_at_inference: bool = False, depth: int = WINDOW
    ):
        super().__init__(latent_channels, sample_at_inference)
        inflate(self)
        sides = [pool.kernel_size for pool in self.pools]
        self.pools = nn.ModuleList(nn.AvgPool3d((1, side, side)) for side in sides)

    def bands(self, images: Tensor) -> list[Tensor]:
        """Slices (B * D, 3, H, W) -> three of (B, 24, D, H/2^l, W/2^l)."""
        depth = as_window(images, self.config.depth).shape[2]
        return multi_level_bands_3d(images, depth, self.levels)

    def aggregated(self, bands: list[Tensor]) -> Tensor:
        """Slice by slice, (B * D, 2C, H/8, W/8)."""
        return as_slices(super().aggregated(bands))


class ResAttnBlock3d(ResAttnBlock):
    """A 3-D residual unit followed by spatial self-attention within each slice.

    Over all positions of a window it would cost each slice D times as much.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, D, h, w) -> (B, out_channels, D, h, w)."""
        return as_window(self.attention(as_slices(self.residual(x))), x.shape[2])


class LatentMappingModel3d(LatentMappingModel):
    """The latent mapping model of windows of slices: 3-D residual units, 4,074,032 parameters."""

    block = ResAttnBlock3d

    @register_to_config
    def __init__(self, latent_channels: int = 4, depth: int = WINDOW):
        super().__init__(latent_channels)
        inflate(self)

    def forward(self, latents: Tensor) -> list[Tensor]:
        """Slices (B * D, C, h, w) -> four of the same shape, as the 2-D model gives them."""
        return [as_slices(level) for level in self.map(as_window(latents, self.config.depth))]
