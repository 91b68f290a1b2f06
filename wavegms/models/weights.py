"""Weights on the disk: what may be read, and whether a saved pipeline is whole.

Nothing that comes from outside is unpickled freely, and nothing is loaded half: where a file lacks
weights, diffusers only warns and leaves random ones in their place.
"""

import inspect
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path

import torch
from diffusers import ModelMixin
from diffusers.utils import logging
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from wavegms.errors import InputError

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_PACKAGES = ("diffusers", "wavegms")


def is_hub_id(where: str | Path) -> bool:
    """Whether this is a hub id, "owner/name". A `Path` never is."""
    return isinstance(where, str) and _HUB_ID.fullmatch(where) is not None


def first_line(error: BaseException) -> str:
    """An error's message as part of a sentence."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else repr(error)


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
    """A file of named tensors: safetensors, or a torch file that holds nothing else.

    Args:
        path: a .safetensors file, or one of `torch.save`, which is read with `weights_only=True`.
        section: where a torch file holds the tensors under this key, the key.

    Returns:
        The tensors by name, on the CPU.

    Raises:
        InputError: the file is broken, or holds more than tensors.
    """
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
        if section is not None:
            if section not in state:
                raise ValueError(f"it has no entry {section!r}")
            state = state[section]
        if not all(isinstance(value, Tensor) for value in state.values()):
            raise ValueError("it holds more than tensors")
    except Exception as error:
        raise InputError(
            f"{path} cannot be read as weights ({first_line(error)}): download it again"
        ) from error
    return dict(state)


def only_seed(folder: Path) -> Path:
    """The folder of the only training below a folder that has one for each seed.

    Args:
        folder: a pipeline's folder, which is given back; or one of folders `seed_<n>`.

    Raises:
        InputError: there are several.
    """
    seeds = sorted(path.parent for path in folder.glob("seed_*/model_index.json"))
    if (folder / "model_index.json").is_file() or not seeds:
        return folder
    if len(seeds) > 1:
        raise InputError(
            f"{folder} holds the weights of several seeds: open one of them, such as {seeds[0]}"
        )
    return seeds[0]


def require_complete(folder: Path) -> None:
    """Checks that a saved pipeline has every weight of every part, in the right shape.

    Only the headers of the safetensors are read.

    Args:
        folder: what `WaveGMSPipeline.save_pretrained` wrote.

    Raises:
        InputError: something is missing, broken or does not fit; the sentence names the folder and
            the first parameter concerned.
    """
    for name, (library, class_name) in _parts_of(folder).items():
        part = folder / name
        expected = _expected_shapes(part, library, class_name)
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


def _parts_of(folder: Path) -> dict[str, tuple[str, str]]:
    index = _read_json(folder / "model_index.json")
    parts = {
        name: tuple(value)
        for name, value in index.items()
        if isinstance(value, list) and len(value) == 2 and value[0] is not None
    }
    if not parts:
        raise InputError(f"{folder / 'model_index.json'} names no networks: copy the folder anew")
    return parts


def _read_json(path: Path) -> dict:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError(
            f"{path} is missing: give a folder that WaveGMSPipeline.save_pretrained wrote"
        ) from error
    except (OSError, ValueError) as error:
        raise InputError(
            f"{path} cannot be read ({first_line(error)}): copy the folder anew"
        ) from error
    if not isinstance(values, dict):
        raise InputError(f"{path} holds no settings: copy the folder anew")
    return values


def _expected_shapes(part: Path, library: str, class_name: str) -> dict[str, list[int]]:
    config = _read_json(part / "config.json")
    # the index comes with the weights: it must not make us import just anything
    try:
        if library.split(".")[0] not in _PACKAGES:
            raise ImportError(library)
        network = getattr(import_module(library), class_name)
        if not issubclass(network, ModelMixin):
            raise TypeError(class_name)
    except (ImportError, AttributeError, TypeError) as error:
        raise InputError(
            f"{part} is meant for {library}.{class_name}, which this version does not know: "
            "install the version of wavegms that wrote it"
        ) from error
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
    files = sorted(part.glob("*.safetensors"))
    if not files:
        raise InputError(f"{part} holds no safetensors: copy the folder anew")
    shapes = {}
    for path in files:
        try:
            with safe_open(path, framework="pt") as file:
                shapes |= {key: file.get_slice(key).get_shape() for key in file.keys()}  # noqa: SIM118
        except Exception as error:  # safetensors has an exception of its own
            raise InputError(
                f"{path} cannot be read as weights ({first_line(error)}): copy the folder anew"
            ) from error
    return shapes
