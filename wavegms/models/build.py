"""From a variant's name to its network and the pipeline around it."""

from collections.abc import Sequence

from diffusers import AutoencoderKL

from wavegms.classes import colours_of
from wavegms.errors import InputError
from wavegms.images import Scale
from wavegms.models.autoencoder import Autoencoder, latent_channels_of
from wavegms.models.encoder import MultiResolutionEncoder
from wavegms.models.generative import GenerativeNetwork, build_generative
from wavegms.models.guided import GuidedLatentMappingModel
from wavegms.models.mapping import LatentMappingModel
from wavegms.models.mask_network import MaskNetwork, build_mask_network
from wavegms.models.pipeline import WaveGMSPipeline
from wavegms.models.segmenter import LatentSegmenter
from wavegms.models.volumetric import LatentMappingModel3d, MultiResolutionEncoder3d
from wavegms.variants import require_classes, variant_spec

Network = LatentSegmenter | MaskNetwork | GenerativeNetwork


def build_variant(
    name: str,
    *,
    image_size: int = 224,
    sample_at_inference: bool = False,
    vae: Autoencoder | None = None,
    classes: int = 1,
    in_place: str | None = None,
) -> Network:
    """A freshly initialised network: all that is trained of the variant.

    `image_size` is the side in pixels for which it is built, `sample_at_inference` that of
    `MultiResolutionEncoder`, `vae` the frozen autoencoder, of which only the shape matters; without
    one latents have TAESD's 4 channels. Variants whose weights do not depend on them ignore them;
    so do those with latents the number of classes, which they paint, and others may refuse several.
    `in_place` names a network that a published recipe has in the place of the variant's own.
    """
    require_classes(name, classes)
    spec = variant_spec(name)
    network = in_place or spec.network
    if spec.generative:
        return build_generative(network, vae, classes)
    latent_channels = latent_channels_of(vae)
    if network == "wavelet":
        encoder = MultiResolutionEncoder(latent_channels, sample_at_inference)
        return LatentSegmenter(encoder, LatentMappingModel(latent_channels))
    if network == "wavelet_3d":
        encoder = MultiResolutionEncoder3d(latent_channels, sample_at_inference, spec.depth)
        return LatentSegmenter(encoder, LatentMappingModel3d(latent_channels, spec.depth))
    if network == "mapping":
        return LatentSegmenter(None, LatentMappingModel(latent_channels))
    if network == "guided":
        return LatentSegmenter(None, GuidedLatentMappingModel(latent_channels))
    return build_mask_network(network, image_size, classes)


def require_autoencoder(name: str, vae: Autoencoder | None) -> None:
    """Checks that a variant is given the autoencoder it needs; one that needs none, any."""
    spec = variant_spec(name)
    kind = spec.autoencoder
    if kind == "tiny" and vae is None:
        raise InputError(f"variant {name} needs an autoencoder: set autoencoder.source")
    if not spec.trained and latent_channels_of(vae) != 4:
        raise InputError(
            f"variant {name} has GMS's weights for latents of 4 channels, and the autoencoder's "
            f"have {latent_channels_of(vae)}: choose TAESD in autoencoder.source, or leave the "
            "variant out"
        )
    if kind == "kl" and not isinstance(vae, AutoencoderKL):
        raise InputError(
            f"variant {name} needs an SD-VAE, which cannot be trained here: set autoencoder.sd_vae "
            "to a diffusers folder or a hub id, or leave the variant out"
        )


def as_pipeline(
    model: Network,
    vae: Autoencoder | None,
    image_size: int,
    scale: Scale | None = None,
    classes: Sequence[str] = (),
) -> WaveGMSPipeline:
    """The pipeline around a network of `build_variant`, whose weights it shares.

    `image_size` is the side in pixels at which it is trained, `scale` that of the raw images' grey
    values, `classes` the names of several; a network without latents leaves the autoencoder out.
    """
    seen = {"image_size": image_size, "greys": None if scale is None else str(scale)}
    if classes:
        colours = colours_of(len(classes))
        seen["classes"] = [f"{name} {one}" for name, one in zip(classes, colours, strict=True)]
    if isinstance(model, GenerativeNetwork):
        return WaveGMSPipeline(network=model, vae=model.config.autoencoder and vae, **seen)
    if isinstance(model, MaskNetwork):
        return WaveGMSPipeline(network=model, **seen)
    return WaveGMSPipeline(model.encoder, model.mapping, vae, **seen)
