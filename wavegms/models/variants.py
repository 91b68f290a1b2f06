"""The trainable networks by name: the rows of Table 4, and the baselines of Table 2 we train."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

from diffusers import AutoencoderKL, AutoencoderTiny

from wavegms.errors import InputError
from wavegms.models.autoencoder import Autoencoder
from wavegms.models.encoder import MultiResolutionEncoder
from wavegms.models.guided import GuidedLatentMappingModel
from wavegms.models.latent import LatentSegmenter
from wavegms.models.mapping import LatentMappingModel
from wavegms.models.mask_network import MASK_NETWORKS, MaskNetwork
from wavegms.models.pipeline import WaveGMSPipeline

Network = LatentSegmenter | MaskNetwork


@dataclass(frozen=True)
class VariantSpec:
    """What makes a variant; everything else it shares with the others.

    Attributes:
        title: for a reader, close to its name in the paper's tables.
        build: makes what is trained. Called with `sample_at_inference`, see
            :class:`MultiResolutionEncoder`; variants without that encoder ignore it.
        autoencoder: the frozen autoencoder it needs: "tiny" (`load_autoencoder`), "kl"
            (`load_sd_vae`), or None.
        aligned: whether L_align is part of its loss.
        trained: whether it is trained at all; if not, its weights are imported from GMS.
        batch_size: its batch size, where the name says one.
        side_divisor: what the sides of its images must be divisible by.
        full_precision: whether its first gradients are so large that in bf16 they are others (the
            cosine to those of float32 was 0.2 to 0.6), so that it is not chosen unasked.
    """

    title: str
    build: Callable[[bool], Network]
    autoencoder: Literal["tiny", "kl"] | None
    aligned: bool = False
    trained: bool = True
    batch_size: int | None = None
    side_divisor: int = 8
    full_precision: bool = False

    def batch_size_or(self, default: int) -> int:
        """Its own batch size, or the run's."""
        return self.batch_size or default


def _wave_gms(sample_at_inference: bool) -> LatentSegmenter:
    encoder = MultiResolutionEncoder(sample_at_inference=sample_at_inference)
    return LatentSegmenter(encoder, LatentMappingModel())


def _without_encoder(mapping: type[LatentMappingModel], _: bool) -> LatentSegmenter:
    return LatentSegmenter(None, mapping())


def _mask_network(name: str, _: bool) -> MaskNetwork:
    return MaskNetwork(name)


_WAVE_GMS = VariantSpec("Wave-GMS", _wave_gms, "tiny", aligned=True)
_TINY_VAE = VariantSpec("Tiny-VAE (trained)", partial(_without_encoder, LatentMappingModel), "tiny")

# In the order of the paper's tables, which tables and figures here keep.
VARIANTS: dict[str, VariantSpec] = {
    **{
        name: VariantSpec(
            network.title,
            partial(_mask_network, name),
            autoencoder=None,
            side_divisor=network.side_divisor,
        )
        for name, network in MASK_NETWORKS.items()
    },
    "gms": replace(_TINY_VAE, title="GMS", autoencoder="kl"),
    "tinyvae_mismatch": replace(_TINY_VAE, title="Tiny-VAE (model mismatch)", trained=False),
    "tinyvae": _TINY_VAE,
    "tinyvae_multires_sft": VariantSpec(
        "Tiny-VAE + MultiRes SFT",
        partial(_without_encoder, GuidedLatentMappingModel),
        "tiny",
        full_precision=True,
    ),
    "wave_gms_no_alignment": replace(_WAVE_GMS, title="Wave-GMS (w/o alignment)", aligned=False),
    "wave_gms_batch_2": replace(_WAVE_GMS, title="Wave-GMS (batch size 2)", batch_size=2),
    "wave_gms_batch_4": replace(_WAVE_GMS, title="Wave-GMS (batch size 4)", batch_size=4),
    "wave_gms": _WAVE_GMS,
}


def variant_spec(name: str) -> VariantSpec:
    """The entry of `VARIANTS`.

    Raises:
        InputError: the name is unknown.
    """
    if name not in VARIANTS:
        raise InputError(f"variant {name!r} is unknown: choose among {', '.join(VARIANTS)}")
    return VARIANTS[name]


def build_variant(name: str, *, sample_at_inference: bool = False) -> Network:
    """A freshly initialised network: all that is trained of the variant.

    Args:
        name: a key of `VARIANTS`.
        sample_at_inference: see :class:`MultiResolutionEncoder`.

    Raises:
        InputError: the name is unknown.
    """
    return variant_spec(name).build(sample_at_inference)


def require_autoencoder(name: str, vae: Autoencoder | None) -> None:
    """Checks that a variant is given the kind of autoencoder it needs.

    Args:
        name: a key of `VARIANTS`.
        vae: what it is given. A variant that needs none may be given any.

    Raises:
        InputError: it is another kind, or none.
    """
    kind = variant_spec(name).autoencoder
    if kind == "tiny" and not isinstance(vae, AutoencoderTiny):
        raise InputError(f"variant {name} needs a Tiny-VAE: set autoencoder.source")
    if kind == "kl" and not isinstance(vae, AutoencoderKL):
        raise InputError(
            f"variant {name} needs an SD-VAE, which cannot be trained here: set autoencoder.sd_vae "
            "to a diffusers folder or a hub id, or leave the variant out"
        )


def require_side(name: str, side: int, parameter: str) -> None:
    """Checks that images have a size that a variant takes.

    Args:
        name: a key of `VARIANTS`.
        side: of the images, in pixels.
        parameter: what to change if it does not suit, as it stands in params.yaml.

    Raises:
        InputError: the variant is unknown, or the side is not divisible by what it asks for.
    """
    divisor = variant_spec(name).side_divisor
    if side % divisor:
        raise InputError(f"{parameter} is {side}, but variant {name} needs a multiple of {divisor}")


def as_pipeline(model: Network, vae: Autoencoder | None, image_size: int) -> WaveGMSPipeline:
    """The pipeline around a trained network; it shares the network's weights.

    Args:
        model: what `build_variant` gave.
        vae: the frozen autoencoder it was trained with; a network without latents leaves it out.
        image_size: side in pixels at which it was trained.
    """
    if isinstance(model, MaskNetwork):
        return WaveGMSPipeline(network=model, image_size=image_size)
    return WaveGMSPipeline(model.encoder, model.mapping, vae, image_size=image_size)
