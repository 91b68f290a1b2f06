"""The trainable multi-resolution encoder E_wave (paper, section 2.2; the shape of LiteVAE-S)."""

from collections.abc import Sequence

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor, nn

from wavegms.models.autoencoder import Generators, at_least_float32
from wavegms.models.normalisation import GroupNorm, as_normalised
from wavegms.models.wavelet import multi_level_bands

_GROUPS = 8

_ENCODER_CHANNELS = (16, 16, 32, 32, 32, 32)

_DECODER_CHANNELS = (32, 32, 32, 32, 16, 16)


def _conv3x3(in_channels: int, out_channels: int) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, kernel_size=3, padding=1)


class ResidualBlock(nn.Module):
    """Pre-activation residual block: twice GroupNorm - SiLU - 3x3 convolution, plus the input."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.body = nn.Sequential(
            GroupNorm(_GROUPS, in_channels),
            nn.SiLU(),
            _conv3x3(in_channels, out_channels),
            GroupNorm(_GROUPS, out_channels),
            nn.SiLU(),
            _conv3x3(out_channels, out_channels),
        )
        self.shortcut = (
            nn.Identity()
            if in_channels == out_channels
            else nn.Conv2d(in_channels, out_channels, kernel_size=1)
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, h, w) -> (B, out_channels, h, w)."""
        return self.shortcut(x) + self.body(x)


class FeatureUNet(nn.Module):
    """A U-Net without resampling: the feature extraction phi_l and the aggregation A of the paper.

    Six encoder blocks, two in the middle, six decoder blocks that take the encoder's outputs by
    concatenation, last first. 258,204 parameters for 12 -> 12 channels, 261,080 for 36 -> 8.
    """

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        width = _ENCODER_CHANNELS[0]
        self.conv_in = _conv3x3(in_channels, width)
        self.encoder = nn.ModuleList()
        for channels in _ENCODER_CHANNELS:
            self.encoder.append(ResidualBlock(width, channels))
            width = channels
        self.middle = nn.Sequential(ResidualBlock(width, width), ResidualBlock(width, width))
        self.decoder = nn.ModuleList()
        for channels, skip in zip(_DECODER_CHANNELS, reversed(_ENCODER_CHANNELS), strict=True):
            self.decoder.append(ResidualBlock(width + skip, channels))
            width = channels
        self.conv_out = _conv3x3(width, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, h, w) -> (B, out_channels, h, w)."""
        x = self.conv_in(as_normalised(x))
        skips = []
        for block in self.encoder:
            x = block(x)
            skips.append(x)
        x = self.middle(x)
        for block in self.decoder:
            x = block(torch.cat([x, skips.pop()], dim=1))
        return self.conv_out(x)


class MultiResolutionEncoder(ModelMixin, ConfigMixin):
    """Maps an image to the multi-resolution latent z_MR through three levels of Haar sub-bands.

    Each level's 12 channels (4 sub-bands x RGB) pass a FeatureUNet of their own; the outputs,
    average-pooled to H/8, are aggregated to mean and log-variance of a Gaussian over z_MR.
    1,035,692 parameters.

    Training draws z_MR from the Gaussian. Inference takes its mean, so that a prediction is
    repeatable, unless `sample_at_inference`, as the authors' development code does.
    """

    levels = 3
    sub_bands = 4

    @register_to_config
    def __init__(self, latent_channels: int = 4, sample_at_inference: bool = False):
        super().__init__()
        band_channels = self.sub_bands * 3
        self.feature_extraction = nn.ModuleList(
            FeatureUNet(band_channels, band_channels) for _ in range(self.levels)
        )
        self.feature_aggregation = FeatureUNet(self.levels * band_channels, 2 * latent_channels)
        # pools level l from H/2^l to H/8
        self.pools = nn.ModuleList(
            nn.AvgPool2d(2 ** (self.levels - level)) for level in range(1, self.levels + 1)
        )

    def distribution(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-variance of the Gaussian over z_MR, each (B, C, H/8, W/8), at least float32.

        Images are (B, 3, H, W) in [0, 1] (not [-1, 1]), H and W divisible by 8; the log-variance is
        clamped to [-30, 20].
        """
        if images.ndim != 4 or images.shape[1] != 3:
            raise ValueError(f"expected RGB images (B, 3, H, W), got {tuple(images.shape)}")
        if images.shape[2] % 8 or images.shape[3] % 8:
            raise ValueError(f"image sides must be divisible by 8, got {tuple(images.shape[2:])}")
        both = at_least_float32(self.aggregated(self.bands(images)))
        mean, log_variance = both.chunk(2, dim=1)
        return mean, log_variance.clamp(-30.0, 20.0)

    def bands(self, images: Tensor) -> list[Tensor]:
        """The sub-bands of each level, see `multi_level_bands`."""
        return multi_level_bands(images, self.levels)

    def aggregated(self, bands: Sequence[Tensor]) -> Tensor:
        """Sub-bands of each level -> mean and log-variance in one, (B, 2C, H/8, W/8)."""
        features = [
            pool(extract(band))
            for band, extract, pool in zip(bands, self.feature_extraction, self.pools, strict=True)
        ]
        return self.feature_aggregation(torch.cat(features, dim=1))

    def forward(self, images: Tensor, generator: Generators = None) -> Tensor:
        """z_MR of images: (B, 3, H, W) in [0, 1] -> (B, C, H/8, W/8), of the images' type.

        With a generator for each image a sample does not depend on the batch it is in.
        """
        mean, log_variance = self.distribution(images)
        if self.training or self.config.sample_at_inference:
            noise = generator
            if not isinstance(noise, Tensor):
                noise = randn_tensor(mean.shape, generator, device=mean.device, dtype=mean.dtype)
            mean = mean + torch.exp(0.5 * log_variance) * noise
        return mean.to(images.dtype)
