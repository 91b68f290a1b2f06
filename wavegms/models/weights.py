"""Weights on the disk: what may be read, and whether a saved pipeline is whole.

Nothing that comes from outside is unpickled freely, nothing in it chooses what is imported, and
nothing is loaded half: where a file lacks weights, diffusers only warns and leaves random ones in
their place.
"""

import inspect
import json
import re
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, AutoencoderTiny, ModelMixin
from diffusers.utils import logging
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from wavegms.classes import MOST_CLASSES
from wavegms.errors import InputError, first_line
from wavegms.files import check_pickle, is_hub_id, missing_folder
from wavegms.images import Scale
from wavegms.models.autoencoder import Autoencoder, decode_latents, encode_images, freeze
from wavegms.models.mid_block import MidBlockAutoencoderTiny

# Those published as a pair of files, by the names of these, and how to build them.
_ORIGINAL_FAMILIES: dict[str, Callable[[], AutoencoderTiny]] = {
    "taesd": AutoencoderTiny,
    "taesdxl": AutoencoderTiny,
    "taesd3": partial(AutoencoderTiny, latent_channels=16),
    "taef1": partial(AutoencoderTiny, latent_channels=16),
    "taef2": MidBlockAutoencoderTiny,
}

# What a config.json may name; one that names none of them is read as the first.
AUTOENCODERS: tuple[type[Autoencoder], ...] = (
    AutoencoderTiny,
    AutoencoderKL,
    MidBlockAutoencoderTiny,
)

_SUFFIXES = (".safetensors", ".pth")

_TINY_WAY_OUT = "check the name and the connection, or set autoencoder.source to path or train"

_SD_WAY_OUT = (
    "set autoencoder.sd_vae to a diffusers folder with an AutoencoderKL, or to its hub id where "
    "there is a connection"
)


def load_autoencoder(where: str | Path) -> Autoencoder:
    """Loads a frozen autoencoder, in float32 and evaluation mode, whatever its latents' channels.

    From a diffusers folder (config.json beside safetensors) of an `AutoencoderTiny` or an
    `AutoencoderKL`; a folder with the original publication's pair of files, `taesd_encoder` and
    `taesd_decoder` or those of taesdxl, taesd3, taef1 or taef2, as .safetensors or .pth; or, given
    as a string that names no folder here, a hub id such as "madebyollin/taesd". A `Path` is never
    looked up on the hub.

    Raises:
        InputError: nothing usable is found there, or its latents are not at 1/8 of the image's
            sides.
    """
    folder = Path(where)
    if folder.is_dir():
        vae = _load_folder(folder)
    elif is_hub_id(where):
        vae = _load_pretrained(_kind_on_hub(where), where, _TINY_WAY_OUT)
    else:
        way_out = "put the autoencoder's weights there, or set autoencoder.source to hub or train"
        raise missing_folder(where, way_out)
    _require_latents(vae, f"the autoencoder {where}", "autoencoder.path or autoencoder.hub")
    return freeze(vae.float())


def load_sd_vae(where: str | Path) -> AutoencoderKL:
    """Loads an SD-VAE, the autoencoder of GMS, frozen, in float32 and evaluation mode.

    From a diffusers folder; or, given as a string that names no folder here, a hub id such as
    "stabilityai/sd-vae-ft-mse".

    Raises:
        InputError: nothing usable is found there, or its latents are not at 1/8 of the image's
            sides.
    """
    if not Path(where).is_dir() and not is_hub_id(where):
        raise missing_folder(where, _SD_WAY_OUT)
    vae = _load_pretrained(AutoencoderKL, where, _SD_WAY_OUT)
    _require_latents(vae, f"the SD-VAE {where}", "autoencoder.sd_vae")
    return freeze(vae.float())


def _require_latents(vae: Autoencoder, what: str, key: str) -> None:
    """Refuses latents of another size than the encoder's, or images other than RGB."""
    image = torch.zeros(1, 3, 64, 64, dtype=vae.dtype)
    try:
        with torch.inference_mode():
            latents = encode_images(vae.eval(), image)
            if decode_latents(vae, latents).shape != image.shape:
                raise RuntimeError("it gives others back")
    except RuntimeError as error:
        raise InputError(
            f"{what} is not one of RGB images ({first_line(error)}): choose another {key}"
        ) from error
    factor = 64 // latents.shape[-1]
    if latents.shape[2:] != (8, 8):
        raise InputError(
            f"{what} gives latents at 1/{factor} of the sides, but the wavelet encoder's are at "
            f"1/8: choose another {key}"
        )


def _load_folder(folder: Path) -> Autoencoder:
    if (folder / "config.json").is_file():
        return _load_pretrained(_kind_of(require_modest(folder)), folder, _TINY_WAY_OUT)
    for family in _ORIGINAL_FAMILIES:
        for suffix in _SUFFIXES:
            encoder = folder / f"{family}_encoder{suffix}"
            decoder = folder / f"{family}_decoder{suffix}"
            if encoder.is_file() and decoder.is_file():
                return _convert_original(family, encoder, decoder)
    raise InputError(
        f"{folder} holds no autoencoder: expected config.json with safetensors (diffusers), or "
        f"NAME_encoder and NAME_decoder as .safetensors or .pth, NAME one of "
        f"{', '.join(_ORIGINAL_FAMILIES)}"
    )


def _kind_of(config: Mapping[str, Any]) -> type[Autoencoder]:
    """The class that a config.json is meant for."""
    known = {kind.__name__: kind for kind in AUTOENCODERS}
    return known.get(str(config.get("_class_name")), AutoencoderTiny)


def _kind_on_hub(where: str) -> type[Autoencoder]:
    try:
        return _kind_of(AutoencoderTiny.load_config(where))
    except Exception as error:  # of the hub client, as below
        raise _not_loaded(where, error, _TINY_WAY_OUT) from error


def _not_loaded(where: str | Path, error: Exception, way_out: str) -> InputError:
    return InputError(f"the autoencoder {where} cannot be loaded ({first_line(error)}): {way_out}")


def _load_pretrained(kind: type[Autoencoder], where: str | Path, way_out: str) -> Autoencoder:
    if Path(where).is_dir():
        require_modest(Path(where))
    try:
        with quiet_loading():
            vae, info = kind.from_pretrained(where, use_safetensors=True, output_loading_info=True)
    except Exception as error:
        # diffusers, the hub client and safetensors each have their own exceptions for "missing",
        # "offline" and "broken"; to the user they are one thing
        raise _not_loaded(where, error, way_out) from error
    # diffusers only warns where weights are missing, and leaves random ones in their place
    for problem in ("missing", "unexpected", "mismatched"):
        if keys := info[f"{problem}_keys"]:
            raise InputError(
                f"the autoencoder {where} does not fit its config.json: {problem} parameter "
                f"{min(map(str, keys))}; use the files as published"
            )
    require_finite(vae, f"the autoencoder {where}")
    return vae


def _convert_original(family: str, encoder: Path, decoder: Path) -> AutoencoderTiny:
    """The original publication's key names -> diffusers'.

    The original decoder counts its clamp, which has no weights, as layer 0; diffusers does not.
    """
    state = {}
    for part, path, offset in (("encoder", encoder, 0), ("decoder", decoder, -1)):
        for key, value in read_tensors(path).items():
            layer, _, rest = key.partition(".")
            if not layer.isdigit() or not rest:
                raise InputError(
                    f"{path} is not an original {family.upper()} file: unexpected key {key}"
                )
            state[f"{part}.layers.{int(layer) + offset}.{rest}"] = value.float()
    vae = _ORIGINAL_FAMILIES[family]()
    expected = vae.state_dict()
    for key in [*expected, *state]:
        if key not in state or key not in expected or state[key].shape != expected[key].shape:
            path = encoder if key.startswith("encoder") else decoder
            raise InputError(
                f"{path} does not fit {family.upper()}: parameter {key} is missing, unknown or "
                "of another shape; use the files as published"
            )
    vae.load_state_dict(state)
    return vae


# Those of diffusers; a file of another name would not be read.
_WEIGHTS = "diffusion_pytorch_model.safetensors"

# What a saved pipeline's index may say besides its parts and its settings.
_INDEX_NOTES = ("_class_name", "_diffusers_version", "_name_or_path")

# Of a settings file; ours have less than one.
_MOST_KILOBYTES = 100

# The numbers of channels and layers of an SD-VAE, all in one, come to less than a tenth of this.
_MOST_LAYERS = 20_000


@contextmanager
def quiet_loading() -> Iterator[None]:
    """Silences diffusers while it loads.

    Its bar counts three small parts, and its warning about `block_out_channels` says that it does
    not know an entry which `AutoencoderTiny` itself wrote. What matters is checked and raised.
    """
    verbosity, shows_bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if shows_bar:
            logging.enable_progress_bar()


def read_tensors(path: Path, section: str | None = None) -> dict[str, Tensor]:
    """A file of named tensors, on the CPU and finite: safetensors, or a torch file of nothing else.

    `section` is the key under which a torch file holds them. A torch file is read with
    `weights_only=True`.

    Raises:
        InputError: the file is broken, or holds more than tensors.
    """
    try:
        if path.suffix == ".safetensors":
            state = load_file(path)
        else:
            _check_torch_file(path)
            state = torch.load(path, map_location="cpu", weights_only=True)
            if section is not None:
                if section not in state:
                    raise ValueError(f"it has no entry {section!r}")
                state = state[section]
            _check_plain(state)
        # Views may repeat what lies in the file, as GMS's do with single numbers.
        if sum(value.nbytes for value in state.values()) > 2 * path.stat().st_size:
            raise ValueError("its tensors are larger than the file")
        _check_finite(state)
    except Exception as error:
        raise InputError(
            f"{path} cannot be read as weights ({first_line(error)}): download it again"
        ) from error
    return dict(state)


def require_finite(network: nn.Module, where: str | Path) -> None:
    """Checks that weights loaded from somewhere are numbers to compute with."""
    try:
        _check_finite(network.state_dict())
    except ValueError as error:
        raise InputError(
            f"{where} cannot be used, as {error}: copy it anew, or train again"
        ) from error


def require_modest(folder: Path) -> dict[str, Any]:
    """The settings of a network's config.json, if they describe one that can be built."""
    path = folder / "config.json"
    config = _read_json(path)
    if _sum_of(config) > _MOST_LAYERS:
        raise InputError(f"{path} describes too large a network: copy the folder anew")
    return config


def require_complete(
    folder: Path, networks: Mapping[str, tuple[type[ModelMixin], ...]]
) -> dict[str, type[ModelMixin]]:
    """The parts of a saved pipeline, which has every weight of each in the right shape.

    Only the headers of the safetensors are read. The index in the folder chooses among the
    `networks` that each part may be; it comes with the weights and must not make us import
    anything.

    Raises:
        InputError: something is missing, broken or does not fit; the sentence names the folder and
            the first parameter concerned.
    """
    parts = _parts_of(folder / "model_index.json", networks)
    for name, network in parts.items():
        part = folder / name
        expected = _expected_shapes(part, network)
        stored = _stored_shapes(part)
        for key in [*expected, *stored]:
            if expected.get(key) != stored.get(key):
                problem = (
                    "is missing"
                    if key not in stored
                    else "is unknown"
                    if key not in expected
                    else f"has shape {stored[key]}, not {expected[key]}"
                )
                raise InputError(
                    f"{part} does not fit its config.json, as parameter {key} {problem}: "
                    "train again, or copy the folder anew"
                )
    return parts


def _check_torch_file(path: Path) -> None:
    """Refuses what torch, for all its caution, would take endless time or memory to read."""
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
        if sum(entry.file_size for entry in entries) > path.stat().st_size:
            raise ValueError("it unpacks to more than it holds")
        for entry in entries:
            if entry.filename.endswith("data.pkl"):
                check_pickle(archive.read(entry))


def _check_plain(state: Mapping[str, Any]) -> None:
    for key, value in state.items():
        if not isinstance(key, str):
            raise ValueError(f"its key {key!r} is no name")
        if not isinstance(value, Tensor):
            raise ValueError("it holds more than tensors")
        if value.layout != torch.strided or value.device.type != "cpu" or value.is_quantized:
            raise ValueError(f"its tensor {key} is of an unusual kind")


def _check_finite(state: Mapping[str, Tensor]) -> None:
    for key, value in state.items():
        if not torch.isfinite(value).all():
            raise ValueError(f"its parameter {key} has values that are no finite numbers")


def _parts_of(
    path: Path, networks: Mapping[str, tuple[type[ModelMixin], ...]]
) -> dict[str, type[ModelMixin]]:
    """The networks of the pipeline whose index this is."""
    index, parts = _read_json(path), {}
    for name, value in index.items():
        if name in _INDEX_NOTES:
            # A list in place of the class would have diffusers look for its code beside the index.
            if not isinstance(value, str):
                raise InputError(f"{path}: {name} is no text: copy the folder anew")
        elif name == "image_size":
            if type(value) is not int or value % 8 or not 8 <= value <= 8192:
                raise InputError(
                    f"{path}: image_size is {value!r}, not a multiple of 8 up to 8192: copy the "
                    "folder anew"
                )
        elif name == "greys":
            try:
                Scale.parse(value or "")
            except (ValueError, AttributeError) as error:
                raise InputError(
                    f"{path}: greys is {value!r}, no scale of grey values: copy the folder anew"
                ) from error
        elif name == "classes":
            if not _are_classes(value):
                raise InputError(
                    f"{path}: classes is {value!r}, not 2 to {MOST_CLASSES} names with a colour "
                    "each: copy the folder anew"
                )
        elif name not in networks:
            raise InputError(
                f"{path} names {name!r}, which is no part of a pipeline: install the version of "
                "wavegms that wrote it, or copy the folder anew"
            )
        elif value != [None, None]:
            parts[name] = _network_of(path, value, networks[name])
    if not parts:
        raise InputError(f"{path} names no networks: copy the folder anew")
    return parts


def _are_classes(value: object) -> bool:
    if not isinstance(value, list) or not 2 <= len(value) <= MOST_CLASSES:
        return False
    pairs = [re.fullmatch(r"([A-Za-z0-9][\w-]{0,63}) (#[0-9a-f]{6})", str(one)) for one in value]
    differ = all(len({pair[part] for pair in pairs if pair}) == len(value) for part in (1, 2))
    return differ and not any(pair[2] == "#000000" for pair in pairs)


def _network_of(path: Path, value: object, known: tuple[type[ModelMixin], ...]) -> type[ModelMixin]:
    for network in known:
        module = network.__module__
        if value in ([module, network.__name__], [module.split(".")[0], network.__name__]):
            return network
    shown = ".".join(map(str, value)) if isinstance(value, list) else repr(value)
    raise InputError(
        f"{path} is meant for {shown}, which this version does not know: install the version of "
        "wavegms that wrote it"
    )


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise InputError(
            f"{path} is missing: give a folder that WaveGMSPipeline.save_pretrained wrote"
        )
    try:
        if path.stat().st_size > _MOST_KILOBYTES * 1000:
            raise ValueError(f"it has more than {_MOST_KILOBYTES} kB")
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(
            f"{path} cannot be read ({first_line(error)}): copy the folder anew"
        ) from error
    if not isinstance(values, dict):
        raise InputError(f"{path} holds no settings: copy the folder anew")
    return values


def _sum_of(value: object) -> int:
    """The whole numbers anywhere in it."""
    if isinstance(value, dict | list):
        return sum(map(_sum_of, value.values() if isinstance(value, dict) else value))
    return abs(value) if isinstance(value, int) else 0


def _expected_shapes(part: Path, network: type[ModelMixin]) -> dict[str, list[int]]:
    config = require_modest(part)
    try:
        known = inspect.signature(network.__init__).parameters
        with torch.device("meta"):  # shapes only, no memory
            state = network(**{k: v for k, v in config.items() if k in known}).state_dict()
    except Exception as error:
        raise InputError(
            f"{part / 'config.json'} does not describe a network ({first_line(error)}): "
            "copy the folder anew"
        ) from error
    return {key: list(value.shape) for key, value in state.items()}


def _stored_shapes(part: Path) -> dict[str, list[int]]:
    path = part / _WEIGHTS
    if not path.is_file():
        raise InputError(f"{part} holds no {_WEIGHTS}: copy the folder anew")
    # An index of several files goes before the one file.
    if others := sorted(part.glob("*.index.json")):
        raise InputError(f"{others[0]} tells of weights in several files: copy the folder anew")
    try:
        with safe_open(path, framework="pt") as file:
            return {key: file.get_slice(key).get_shape() for key in file.keys()}  # noqa: SIM118
    except Exception as error:  # safetensors has an exception of its own
        raise InputError(
            f"{path} cannot be read as weights ({first_line(error)}): copy the folder anew"
        ) from error
