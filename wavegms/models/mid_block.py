"""TAEF2, the Tiny-VAE of FLUX.2: as TAESD, with a wider look in the blocks at the latents' size.

diffusers' `AutoencoderTiny` cannot say that. What computes is its own parts, put together anew.
"""

from diffusers import AutoencoderTiny
from diffusers.configuration_utils import register_to_config
from diffusers.models.modeling_utils import ModelMixin  # noqa: F401  a pipeline looks it up here
from diffusers.models.unets.unet_2d_blocks import AutoencoderTinyBlock
from torch import Tensor, nn


class MidBlock(AutoencoderTinyBlock):
    """A Tiny-VAE's block that first adds 1x1 convolutions with group normalisation, 4 x as wide.

    Normalised over whole groups of channels, a pixel learns of the whole map.
    """

    def __init__(self, channels: int):
        super().__init__(channels, channels, "relu")
        wide = 4 * channels
        self.pool = nn.Sequential(
            nn.Conv2d(channels, wide, kernel_size=1, bias=False),
            nn.GroupNorm(4, wide),
            nn.ReLU(),
            nn.Conv2d(wide, channels, kernel_size=1, bias=False),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels, h, w) -> the same shape."""
        return super().forward(x + self.pool(x))


class MidBlockAutoencoderTiny(AutoencoderTiny):
    """TAEF2: 1,338,528 parameters that encode and 1,338,499 that decode 32 channels at 1/8."""

    @register_to_config
    def __init__(self, latent_channels: int = 32, channels: int = 64, blocks: int = 3):
        super().__init__(
            encoder_block_out_channels=(channels,) * 4,
            decoder_block_out_channels=(channels,) * 4,
            latent_channels=latent_channels,
            num_encoder_blocks=(1, blocks, blocks, blocks),
            num_decoder_blocks=(blocks, blocks, blocks, 1),
        )
        last, first = len(self.encoder.layers) - 1, 2  # a convolution; a convolution and a ReLU
        for place in range(blocks):
            self.encoder.layers[last - blocks + place] = MidBlock(channels)
            self.decoder.layers[first + place] = MidBlock(channels)
