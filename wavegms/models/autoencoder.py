"""The frozen autoencoder: loading it, and what encoding and decoding mean for images and masks.

The Tiny-VAE of the paper is TAESD, diffusers' `AutoencoderTiny`; the SD-VAE of GMS is diffusers'
`AutoencoderKL`. Both take and give images in [-1, 1]. Everything else in this package keeps images
and masks in [0, 1]; the change of range happens here and nowhere else, and so does the scale of the
SD-VAE's latents.
"""

from pathlib import Path

from diffusers import AutoencoderKL, AutoencoderTiny
from torch import Generator, Tensor

from wavegms.errors import InputError, first_line
from wavegms.models.formats import at_least_float32, channels_last
from wavegms.models.frozen_decoder import decode_mean
from wavegms.models.weights import (
    is_hub_id,
    quiet_loading,
    read_tensors,
    require_finite,
    require_modest,
)

Autoencoder = AutoencoderTiny | AutoencoderKL
# As in diffusers: torch's own random state, another, or one for each image of a batch.
Generators = Generator | list[Generator] | None

_ORIGINAL_FAMILIES = ("taesd", "taesdxl")
_SUFFIXES = (".safetensors", ".pth")
_TINY_WAY_OUT = "check the name and the connection, or set autoencoder.source to path or train"
_SD_WAY_OUT = (
    "set autoencoder.sd_vae to a diffusers folder with an AutoencoderKL, or to its hub id where "
    "there is a connection"
)


def load_autoencoder(where: str | Path) -> AutoencoderTiny:
    """Loads a Tiny-VAE, frozen, in float32 and evaluation mode.

    Weights are read as safetensors, or from .pth with `weights_only=True`: nothing that comes from
    outside is unpickled freely.

    Args:
        where: a diffusers folder (config.json beside safetensors); or a folder with the original
            publication's pair of files, `taesd_encoder` and `taesd_decoder` or `taesdxl_encoder`
            and `taesdxl_decoder`, as .safetensors or .pth; or, given as a string that names no
            folder here, a hub id such as "madebyollin/taesd". A `Path` is never looked up on
            the hub.

    Returns:
        The autoencoder; none of its parameters requires a gradient.

    Raises:
        InputError: nothing usable is found there.
    """
    folder = Path(where)
    if folder.is_dir():
        vae = _load_folder(folder)
    elif is_hub_id(where):
        vae = _load_pretrained(AutoencoderTiny, where, _TINY_WAY_OUT)
    else:
        raise InputError(
            f"the autoencoder folder {where} does not exist: put the weights there, "
            "or set autoencoder.source to hub or train"
        )
    return freeze(vae.float())


def load_sd_vae(where: str | Path) -> AutoencoderKL:
    """Loads an SD-VAE, the autoencoder of GMS, frozen, in float32 and evaluation mode.

    Args:
        where: a diffusers folder; or, given as a string that names no folder here, a hub id such as
            "stabilityai/sd-vae-ft-mse".

    Returns:
        The autoencoder; none of its parameters requires a gradient.

    Raises:
        InputError: nothing usable is found there, or its latents are not 4 channels at 1/8 of the
            image's sides.
    """
    if not Path(where).is_dir() and not is_hub_id(where):
        raise InputError(f"the SD-VAE folder {where} does not exist: {_SD_WAY_OUT}")
    vae = _load_pretrained(AutoencoderKL, where, _SD_WAY_OUT)
    factor = 2 ** (len(vae.config.block_out_channels) - 1)
    if vae.config.latent_channels != 4 or factor != 8:
        raise InputError(
            f"the SD-VAE {where} gives {vae.config.latent_channels} channels at 1/{factor} of the "
            "sides, but the latent mapping model takes 4 at 1/8: choose another autoencoder.sd_vae"
        )
    return freeze(vae.float())


def freeze(vae: Autoencoder) -> Autoencoder:
    """Switches to evaluation mode and takes all parameters out of training."""
    return vae.eval().requires_grad_(False)


def _load_folder(folder: Path) -> AutoencoderTiny:
    if (folder / "config.json").is_file():
        return _load_pretrained(AutoencoderTiny, folder, _TINY_WAY_OUT)
    for family in _ORIGINAL_FAMILIES:
        for suffix in _SUFFIXES:
            encoder = folder / f"{family}_encoder{suffix}"
            decoder = folder / f"{family}_decoder{suffix}"
            if encoder.is_file() and decoder.is_file():
                return _convert_original(encoder, decoder)
    raise InputError(
        f"{folder} holds no autoencoder: expected config.json with safetensors (diffusers), or "
        "taesd_encoder and taesd_decoder (or taesdxl_...) as .safetensors or .pth"
    )


def _load_pretrained(kind: type[Autoencoder], where: str | Path, way_out: str) -> Autoencoder:
    if Path(where).is_dir():
        require_modest(Path(where))
    try:
        with quiet_loading():
            vae, info = kind.from_pretrained(where, use_safetensors=True, output_loading_info=True)
    except Exception as error:
        # diffusers, the hub client and safetensors each have their own exceptions for "missing",
        # "offline" and "broken"; to the user they are one thing
        raise InputError(
            f"the autoencoder {where} cannot be loaded ({first_line(error)}): {way_out}"
        ) from error
    # diffusers only warns where weights are missing, and leaves random ones in their place
    for problem in ("missing", "unexpected", "mismatched"):
        if keys := info[f"{problem}_keys"]:
            raise InputError(
                f"the autoencoder {where} does not fit its config.json: {problem} parameter "
                f"{min(map(str, keys))}; use the files as published"
            )
    require_finite(vae, f"the autoencoder {where}")
    return vae


def _convert_original(encoder: Path, decoder: Path) -> AutoencoderTiny:
    """The original publication's key names -> diffusers'.

    The original decoder counts its clamp, which has no weights, as layer 0; diffusers does not.
    """
    state = {}
    for part, path, offset in (("encoder", encoder, 0), ("decoder", decoder, -1)):
        for key, value in read_tensors(path).items():
            layer, _, rest = key.partition(".")
            if not layer.isdigit() or not rest:
                raise InputError(f"{path} is not an original TAESD file: unexpected key {key}")
            state[f"{part}.layers.{int(layer) + offset}.{rest}"] = value.float()
    vae = AutoencoderTiny()
    expected = vae.state_dict()
    for key in [*expected, *state]:
        if key not in state or key not in expected or state[key].shape != expected[key].shape:
            path = encoder if key.startswith("encoder") else decoder
            raise InputError(
                f"{path} does not fit TAESD: parameter {key} is missing, unknown or of another "
                "shape; use the files as published"
            )
    vae.load_state_dict(state)
    return vae


def encode_images(
    vae: Autoencoder,
    images: Tensor,
    *,
    sample_posterior: bool = False,
    generator: Generators = None,
) -> Tensor:
    """z_I, the frozen autoencoder's latents of images.

    Args:
        vae: the autoencoder.
        images: (B, 3, H, W) in [0, 1].
        sample_posterior: draw from the posterior of a KL autoencoder instead of taking its mean;
            a Tiny-VAE has none.
        generator: random state for that, or one for each image.

    Returns:
        (B, 4, H/8, W/8); of a KL autoencoder, times its scaling factor (SD-VAE: 0.18215).
    """
    encoded = vae.encode(images * 2 - 1)
    if not isinstance(vae, AutoencoderKL):
        return encoded.latents
    posterior = encoded.latent_dist
    latents = posterior.sample(generator) if sample_posterior else posterior.mode()
    return latents * vae.config.scaling_factor


def encode_masks(vae: Autoencoder, masks: Tensor) -> Tensor:
    """z_M, the latents of masks, each repeated to three channels.

    Args:
        vae: the autoencoder.
        masks: (B, 1, H, W) in [0, 1].

    Returns:
        (B, 4, H/8, W/8), scaled as in :func:`encode_images`.
    """
    return encode_images(vae, masks.expand(-1, 3, -1, -1))


def decode_masks(vae: Autoencoder, latents: Tensor) -> Tensor:
    """Soft masks from latents: the mean of the three decoded channels, clamped.

    Args:
        vae: the autoencoder, frozen.
        latents: (B, 4, H/8, W/8), scaled as in :func:`encode_images`.

    Returns:
        (B, 1, H, W) in [0, 1], at least float32; a pixel belongs to the mask from 0.5.
    """
    latents = channels_last(latents)
    if isinstance(vae, AutoencoderKL):
        decoded = vae.decode(latents / vae.config.scaling_factor).sample
        means = (at_least_float32(decoded).mean(dim=1, keepdim=True) + 1) / 2
    else:
        means = at_least_float32(decode_mean(vae.decoder, latents))
    return means.clamp(0, 1)
