"""The frozen Tiny-VAE: loading it, and what encoding and decoding mean for images and masks.

The Tiny-VAE of the paper is TAESD, diffusers' `AutoencoderTiny`, which takes and gives images in
[-1, 1]. Everything else in this package keeps images and masks in [0, 1]; the change of range
happens here and nowhere else.
"""

import re
from pathlib import Path

import torch
from diffusers import AutoencoderTiny
from safetensors.torch import load_file
from torch import Tensor

from wavegms.errors import InputError

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_ORIGINAL_FAMILIES = ("taesd", "taesdxl")
_SUFFIXES = (".safetensors", ".pth")


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
    elif isinstance(where, str) and _HUB_ID.fullmatch(where):
        vae = _load_pretrained(where)
    else:
        raise InputError(
            f"the autoencoder folder {where} does not exist: put the weights there, "
            "or set autoencoder.source to hub or train"
        )
    return freeze(vae.float())


def freeze(vae: AutoencoderTiny) -> AutoencoderTiny:
    """Switches to evaluation mode and takes all parameters out of training."""
    return vae.eval().requires_grad_(False)


def _load_folder(folder: Path) -> AutoencoderTiny:
    if (folder / "config.json").is_file():
        return _load_pretrained(folder)
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


def _load_pretrained(where: str | Path) -> AutoencoderTiny:
    try:
        vae, info = AutoencoderTiny.from_pretrained(
            where, use_safetensors=True, output_loading_info=True
        )
    except Exception as error:
        # diffusers, the hub client and safetensors each have their own exceptions for "missing",
        # "offline" and "broken"; to the user they are one thing
        first_line = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
        raise InputError(
            f"the autoencoder {where} cannot be loaded ({first_line}): check the name and the "
            "connection, or set autoencoder.source to path or train"
        ) from error
    # diffusers only warns where weights are missing, and leaves random ones in their place
    for problem in ("missing", "unexpected", "mismatched"):
        if keys := info[f"{problem}_keys"]:
            raise InputError(
                f"the autoencoder {where} does not fit its config.json: {problem} parameter "
                f"{min(map(str, keys))}; use the files as published"
            )
    return vae


def _convert_original(encoder: Path, decoder: Path) -> AutoencoderTiny:
    """The original publication's key names -> diffusers'.

    The original decoder counts its clamp, which has no weights, as layer 0; diffusers does not.
    """
    state = {}
    for part, path, offset in (("encoder", encoder, 0), ("decoder", decoder, -1)):
        for key, value in _read_tensors(path).items():
            layer, _, rest = str(key).partition(".")
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


def _read_tensors(path: Path) -> dict[str, Tensor]:
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
        if not all(isinstance(value, Tensor) for value in state.values()):
            raise ValueError("it holds more than tensors")
    except Exception as error:
        first_line = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
        raise InputError(
            f"{path} cannot be read as weights ({first_line}): download it again"
        ) from error
    return state


def encode_images(vae: AutoencoderTiny, images: Tensor) -> Tensor:
    """z_I, the Tiny-VAE's latents of images.

    Args:
        vae: the autoencoder.
        images: (B, 3, H, W) in [0, 1].

    Returns:
        (B, 4, H/8, W/8).
    """
    return vae.encode(images * 2 - 1).latents


def encode_masks(vae: AutoencoderTiny, masks: Tensor) -> Tensor:
    """z_M, the latents of masks, each repeated to three channels.

    Args:
        vae: the autoencoder.
        masks: (B, 1, H, W) in [0, 1].

    Returns:
        (B, 4, H/8, W/8).
    """
    return encode_images(vae, masks.expand(-1, 3, -1, -1))


def decode_masks(vae: AutoencoderTiny, latents: Tensor) -> Tensor:
    """Soft masks from latents: the mean of the three decoded channels, clamped.

    Args:
        vae: the autoencoder.
        latents: (B, 4, H/8, W/8).

    Returns:
        (B, 1, H, W) in [0, 1]; a pixel belongs to the mask from 0.5.
    """
    decoded = vae.decode(latents).sample.mean(dim=1, keepdim=True)
    return ((decoded + 1) / 2).clamp(0, 1)
