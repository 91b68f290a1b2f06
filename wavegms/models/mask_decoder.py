"""A decoder made for masks: what a frozen Tiny-VAE's own would give, at a thirtieth of its cost.

Masks are simple pictures. The Tiny-VAE's decoder, made for photographs, works at full resolution;
this one works on the latents and unfolds them to pixels at the end. It is taught by that decoder,
see `wavegms.training.distil`, so it belongs to one autoencoder and to no other.
"""

import json
from pathlib import Path
from typing import Self

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn

from wavegms.errors import InputError, first_line
from wavegms.files import sha256_of
from wavegms.models.autoencoder import (
    Autoencoder,
    at_least_float32,
    encode_images,
    freeze,
    latent_channels_of,
)
from wavegms.models.weights import read_tensors
from wavegms.project import DECODERS

# Published copies of one autoencoder differ by the rounding of half precision, 0.4 % of latents.
_SAME_LATENTS = 0.05


@torch.no_grad()
def signature(vae: Autoencoder) -> Tensor:
    """What an autoencoder makes of one picture of waves, to tell it from others: (1, C, 4, 4)."""
    across = torch.linspace(0, 20, 32)
    waves = torch.stack([torch.outer(across.sin(), (k * across).cos()) for k in (1, 2, 3)])
    parameter = next(vae.parameters())
    return encode_images(vae, ((waves + 1) / 2)[None].to(parameter)).float().cpu()


def same_autoencoder(one: Tensor, other: Tensor) -> bool:
    """Whether two signatures are of one autoencoder."""
    return one.shape == other.shape and bool((one - other).norm() < _SAME_LATENTS * other.norm())


def _conv3x3(in_channels: int, out_channels: int) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, kernel_size=3, padding=1)


class _Block(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.body = nn.Sequential(
            nn.SiLU(), _conv3x3(channels, channels), nn.SiLU(), _conv3x3(channels, channels)
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


class MaskDecoder(ModelMixin, ConfigMixin):
    """Latents to soft masks: residual blocks at 1/8 of the sides, one at 1/2, sub-pixels between.

    450,724 parameters, 0.83 GFLOP at 224x224. `teacher` is the signature of its autoencoder.
    """

    @register_to_config
    def __init__(self, latent_channels: int = 4, channels: int = 64, blocks: int = 4):
        super().__init__()
        fine = channels // 4
        self.layers = nn.Sequential(
            _conv3x3(latent_channels, channels),
            *(_Block(channels) for _ in range(blocks)),
            _conv3x3(channels, 16 * fine),
            nn.PixelShuffle(4),
            _Block(fine),
            _conv3x3(fine, 4),
            nn.PixelShuffle(2),
        )
        self.register_buffer("teacher", torch.zeros(1, latent_channels, 4, 4))

    @classmethod
    def untrained(cls, vae: Autoencoder) -> Self:
        """One that is yet to be taught by this autoencoder."""
        decoder = cls(latent_channels_of(vae))
        decoder.teacher.copy_(signature(vae))
        return decoder

    def fits(self, vae: Autoencoder) -> bool:
        """Whether this is the autoencoder that taught it."""
        return same_autoencoder(signature(vae), self.teacher.float().cpu())

    def scores(self, latents: Tensor) -> Tensor:
        """The logits of :meth:`forward`."""
        scores = self.layers(torch.tanh(latents / 3) * 3)  # as the Tiny-VAE's decoder limits them
        return at_least_float32(scores)

    def forward(self, latents: Tensor) -> Tensor:
        """(B, C, h, w) -> soft masks (B, 1, 8h, 8w) in [0, 1], at least float32."""
        return self.scores(latents).sigmoid()


def kept_mask_decoder(vae: Autoencoder, folder: Path = DECODERS) -> MaskDecoder:
    """The mask decoder of a folder that was taught by this autoencoder, frozen, in float32.

    Raises:
        InputError: there is none, or a file is damaged.
    """
    wanted = signature(vae)
    for path in sorted(folder.glob("*.safetensors")):
        _check_card(path)
        state = read_tensors(path)
        if not same_autoencoder(wanted, state.get("teacher", wanted[:0]).float()):
            continue
        decoder = MaskDecoder(latent_channels_of(vae))
        try:
            decoder.load_state_dict(state)
        except RuntimeError as error:
            raise InputError(
                f"{path} does not fit this version ({first_line(error)}): restore it with git"
            ) from error
        return freeze(decoder)
    raise InputError(
        f"no mask decoder in {folder.parent.name}/{folder.name} was taught by this autoencoder: "
        "set the decoder to exact, or teach one by `python -m wavegms distil`"
    )


def _check_card(path: Path) -> None:
    card = path.with_suffix(".json")
    try:
        expected = json.loads(card.read_text(encoding="utf-8"))["sha256"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(
            f"{card} is no card of a mask decoder ({first_line(error)}): restore it with git"
        ) from error
    if sha256_of(path) != expected:
        raise InputError(f"{path} is not what its card describes: restore both with git")
