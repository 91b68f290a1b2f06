"""The latent mapping model guided by wavelet details: "Tiny-VAE + MultiRes SFT" of Table 4.

The details of the image, which the Tiny-VAE's latent blurs, are fused to three channels by
selective kernels and modulate every block by a spatial feature transform (paper, section 3.5).
"""

import torch
from diffusers.configuration_utils import register_to_config
from diffusers.models.modeling_utils import ModelMixin  # noqa: F401  a pipeline looks it up here
from torch import Tensor, nn

from wavegms.models.mapping import LatentMappingModel, ResAttnBlock, initialise
from wavegms.models.wavelet import multi_level_bands

_COLOURS = 3

_STREAMS = 3  # horizontal, vertical and diagonal details

_HIDDEN = 128


class SelectiveKernelFusion(nn.Module):
    """A weighted sum of streams; the weights, one a channel, follow from their global averages.

    The streams' sum is averaged over all positions, squeezed by a 1x1 convolution to
    max(1, C // 8) channels and a PReLU, and expanded once a stream; a softmax over the streams
    gives the weights. 23 parameters for three streams of three channels.
    """

    def __init__(self, channels: int = _COLOURS, streams: int = _STREAMS):
        super().__init__()
        squeezed = max(1, channels // 8)
        self.squeeze = nn.Sequential(nn.Conv2d(channels, squeezed, kernel_size=1), nn.PReLU())
        self.expand = nn.ModuleList(
            nn.Conv2d(squeezed, channels, kernel_size=1) for _ in range(streams)
        )

    def forward(self, streams: Tensor) -> Tensor:
        """(B, streams, C, h, w) -> (B, C, h, w)."""
        squeezed = self.squeeze(streams.sum(dim=1).mean(dim=(2, 3), keepdim=True))
        scores = torch.stack([expand(squeezed) for expand in self.expand], dim=1)
        return (scores.softmax(dim=1) * streams).sum(dim=1)


class SpatialFeatureTransform(nn.Module):
    """Features times gamma plus beta, which two convolutions read off the guide, place by place.

    3,584 + 2,306 C parameters for features of C channels.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.shared = nn.Sequential(
            nn.Conv2d(_COLOURS, _HIDDEN, kernel_size=3, padding=1), nn.LeakyReLU(0.2)
        )
        self.gamma = nn.Conv2d(_HIDDEN, channels, kernel_size=3, padding=1)
        self.beta = nn.Conv2d(_HIDDEN, channels, kernel_size=3, padding=1)

    def forward(self, x: Tensor, guide: Tensor) -> Tensor:
        """(B, channels, h, w) and (B, 3, h, w) -> (B, channels, h, w)."""
        hidden = self.shared(guide)
        return x * self.gamma(hidden) + self.beta(hidden)


class GuidedResAttnBlock(ResAttnBlock):
    """A ResAttn block with a spatial feature transform between its two parts."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__(in_channels, out_channels)
        self.transform = SpatialFeatureTransform(out_channels)

    def forward(self, x: Tensor, guide: Tensor) -> Tensor:
        """(B, in_channels, h, w) and (B, 3, h, w) -> (B, out_channels, h, w)."""
        return self.attention(self.transform(self.residual(x), guide))


class GuidedLatentMappingModel(LatentMappingModel):
    """The latent mapping model with the image's level-3 wavelet details in every block.

    2,995,719 parameters: 1,564,976 of the latent mapping model, 23 of the fusion and 1,430,720 of
    the eight transforms.
    """

    block = GuidedResAttnBlock

    @register_to_config
    def __init__(self, latent_channels: int = 4):
        super().__init__(latent_channels)
        self.fusion = SelectiveKernelFusion()
        self.fusion.apply(initialise)

    def forward(self, latents: Tensor, images: Tensor) -> list[Tensor]:
        """As the latent mapping model's, with the images (B, 3, H, W) in [0, 1] as its guide."""
        details = multi_level_bands(images, levels=3)[-1][:, _COLOURS:]
        guide = self.fusion(details.unflatten(1, (_STREAMS, _COLOURS)))
        return self.map(latents, guide)
