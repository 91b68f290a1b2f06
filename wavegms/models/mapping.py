"""The latent mapping model g_theta (paper, section 2.3; the LMM of GMS)."""

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn

from wavegms.models.normalisation import GroupNorm, as_normalised

_GROUPS = 16

_EPS = 1e-6


def _norm(channels: int) -> GroupNorm:
    return GroupNorm(_GROUPS, channels, eps=_EPS)


class ResidualUnit(nn.Module):
    """Twice GroupNorm - PReLU - 3x3 convolution, plus the input."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.body = nn.Sequential(
            _norm(in_channels),
            nn.PReLU(),
            nn.Conv2d(in_channels, out_channels, kernel_size=3, padding=1),
            _norm(out_channels),
            nn.PReLU(),
            nn.Conv2d(out_channels, out_channels, kernel_size=3, padding=1),
        )
        self.shortcut = (
            nn.Identity()
            if in_channels == out_channels
            else nn.Conv2d(in_channels, out_channels, kernel_size=1, bias=False)
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, h, w) -> (B, out_channels, h, w)."""
        return self.shortcut(x) + self.body(x)


class SpatialSelfAttention(nn.Module):
    """One attention head over all h*w positions, with a residual connection."""

    def __init__(self, channels: int):
        super().__init__()
        self.norm = _norm(channels)
        self.query = nn.Conv2d(channels, channels, kernel_size=1)
        self.key = nn.Conv2d(channels, channels, kernel_size=1)
        self.value = nn.Conv2d(channels, channels, kernel_size=1)
        self.out = nn.Conv2d(channels, channels, kernel_size=1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels, h, w) -> the same shape."""
        normed = self.norm(x)
        # (B, 1 head, h*w positions, channels); the default scale is 1/sqrt(channels)
        query, key, value = (
            # in this order: on a card normalisation gives another, and fused attention refuses that
            project(normed).flatten(2).transpose(1, 2).unsqueeze(1).contiguous()
            for project in (self.query, self.key, self.value)
        )
        attended = nn.functional.scaled_dot_product_attention(query, key, value)
        return x + self.out(attended.squeeze(1).transpose(1, 2).unflatten(2, x.shape[2:]))


class ResAttnBlock(nn.Module):
    """A residual unit followed by spatial self-attention."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.residual = ResidualUnit(in_channels, out_channels)
        self.attention = SpatialSelfAttention(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, h, w) -> (B, out_channels, h, w)."""
        return self.attention(self.residual(x))


class LatentMappingModel(ModelMixin, ConfigMixin):
    """Maps image latents to mask latents at constant resolution, with deep supervision.

    Four encoder and four decoder ResAttn blocks of 32 to 128 channels; each decoder block has a
    head that gives a mask latent. 1,564,976 parameters.
    """

    block: type[ResAttnBlock] = ResAttnBlock

    @register_to_config
    def __init__(self, latent_channels: int = 4):
        super().__init__()
        encoder_channels, decoder_channels = (32, 64, 128, 128), (128, 64, 32, 32)
        width = encoder_channels[0]
        self.conv_in = nn.Conv2d(latent_channels, width, kernel_size=3, padding=1)
        self.encoder = nn.ModuleList()
        skip_channels = []
        for channels in encoder_channels:
            skip_channels.append(width)
            self.encoder.append(self.block(width, channels))
            width = channels
        self.decoder, self.heads = nn.ModuleList(), nn.ModuleList()
        for channels, skip in zip(decoder_channels, reversed(skip_channels), strict=True):
            self.decoder.append(self.block(width + skip, channels))
            self.heads.append(
                nn.Sequential(
                    _norm(channels),
                    nn.SiLU(),
                    nn.Conv2d(channels, latent_channels, kernel_size=3, padding=1, bias=False),
                )
            )
            width = channels
        self.apply(initialise)

    def forward(self, latents: Tensor) -> list[Tensor]:
        """Mask latents of the four decoder levels, deepest first, all of the input's shape.

        Inference uses the last of them only (paper, section 2.3).
        """
        return self.map(latents)

    def map(self, latents: Tensor, *guide: Tensor) -> list[Tensor]:
        """What `forward` does; `guide` is handed to every block."""
        x = self.conv_in(as_normalised(latents))
        skips = []
        for block in self.encoder:
            skips.append(x)
            x = block(x, *guide)
        levels = []
        for block, head in zip(self.decoder, self.heads, strict=True):
            x = block(torch.cat([x, skips.pop()], dim=1), *guide)
            levels.append(head(x))
        return levels


def initialise(module: nn.Module) -> None:
    """Kaiming normal by fan-out for a convolution, with biases of 0; for `Module.apply`."""
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="leaky_relu")
        if module.bias is not None:
            nn.init.zeros_(module.bias)
