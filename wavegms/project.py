"""Where the project lies, and who writes into it.

Notebooks name files as seen from the project's folder, wherever they run.
"""

import json
import os
import platform
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any

from wavegms import __version__
from wavegms.errors import InputError
from wavegms.files import is_hub_id

# The code that runs.
PACKAGE = Path(__file__).resolve().parent

_LIBRARIES = ("torch", "diffusers", "accelerate", "kornia", "numpy")


def library_versions() -> dict[str, str]:
    """Versions of the libraries that a trained weight depends on."""
    # of this package its own word: it may run where it is not installed
    return {**{name: version(name) for name in _LIBRARIES}, "wavegms": __version__}


# Trained weights that came with this code, see `wavegms.training.kept`.
KEPT = Path(__file__).parents[1] / "weights"

# Mask decoders, see `wavegms.models.mask_decoder`: NAME.safetensors with a card NAME.json.
DECODERS = KEPT / "decoders"

# Autoencoders that others are trained from, see `wavegms.training.pretrain`, likewise.
PRETRAINED = KEPT / "autoencoders"


def is_kept(where: str | Path, folder: Path = KEPT) -> bool:
    """Whether this is the name of such a model."""
    name = isinstance(where, str) and where.replace("_", "").replace("-", "").isalnum()
    return name and (folder / f"{where}.safetensors").is_file()


def require_start(where: str) -> None:
    """Checks that `training.start_from` names something that can be a model."""
    if not (Path(where).is_dir() or is_hub_id(where) or is_kept(where)):
        raise InputError(
            f"training.start_from {where} is no folder, and no name in weights/: correct it, or "
            "set it to null"
        )


def pretrained_size(name: str, folder: Path = PRETRAINED) -> tuple[int, int]:
    """Channels and blocks of an autoencoder of `weights/autoencoders`, by its card."""
    try:
        card = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
        return card["channels"], card["blocks"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{folder / name}.json is not the card of an autoencoder: bring it back by git, or set "
            "autoencoder.train.start_from to null"
        ) from error


def require_pretrained(name: str, channels: int, blocks: int, folder: Path = PRETRAINED) -> None:
    """Checks that `autoencoder.train.start_from` names an autoencoder of that size."""
    key = "autoencoder.train.start_from"
    if not is_kept(name, folder):
        raise InputError(
            f"{key} {name} is no name in weights/autoencoders: correct it, or set it to null"
        )
    found = pretrained_size(name, folder)
    if found != (channels, blocks):
        raise InputError(
            f"{key} {name} has channels {found[0]} and blocks {found[1]}, but autoencoder.train "
            f"says {channels} and {blocks}: take its numbers, or set {key} to null"
        )


# glibc gives large blocks back to the system at once and asks for them anew in every step, whose
# pages the kernel must then clear. Keeping them made a training step on a CPU 1.5 to 3.5 times as
# fast (batch 12 at 128x128, 2 cores). Other C libraries ignore these names.
KEEP_MEMORY = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**40)}

# What a stage computes follows from these. `dvc.lock`, which every stage changes, is none of them.
_SOURCES = ("dvc.yaml", "notebooks", "params.yaml", "wavegms")


def run_record(project: Path = Path(".")) -> dict[str, Any]:
    """Describes the running process; call it before the work, as code may change meanwhile.

    Returns:
        What JSON can hold: revision (of git, 40 hexadecimal digits; None where git does not hold
        the project), changed (the files of the project that decide on results and are not as
        committed, as seen from its folder, sorted), versions (of the libraries), python (its own).
        No name of a machine or user and no absolute path.
    """
    head = _git(project, "rev-parse", "--verify", "HEAD")
    # the repository around a project that was unpacked inside another one is not its own
    own = head and _git(project, "ls-files", "--", "params.yaml")
    return {
        "revision": head.strip() if own else None,
        "changed": _changed(project) if own else [],
        "versions": library_versions(),
        "python": platform.python_version(),
    }


def note_run(path: str, project: str) -> None:
    """Writes the record of this process, a notebook's kernel, and from where it has the package."""
    record = {"package": str(PACKAGE), **run_record(Path(project))}
    Path(path).write_text(json.dumps(record), encoding="utf-8")


def _changed(project: Path) -> list[str]:
    changes = ("diff", "--name-only", "--relative", "-z", "HEAD", "--", *_SOURCES)
    unknown = ("ls-files", "--others", "--exclude-standard", "-z", "--", *_SOURCES)
    found = _git(project, *changes) + _git(project, *unknown)
    return sorted(filter(None, found.split("\0")))


def _git(project: Path, *arguments: str) -> str:
    """What git says; nothing where it is not installed or fails."""
    # other processes may be at work in the same repository
    command = ["git", "--no-optional-locks", *arguments]
    try:
        # some libraries change the process's locale, and with it what `text=True` means
        done = subprocess.run(command, cwd=project, capture_output=True, encoding="utf-8")
    except FileNotFoundError:
        return ""
    return done.stdout if done.returncode == 0 else ""


def enter_project() -> Path:
    """Makes the project's folder the working directory.

    JupyterLab, papermill and nbval start a notebook in its own folder, `notebooks/`. After this
    call, paths are the same as on the command line and in params.yaml. Calling it again does no
    harm.
    """
    here = Path.cwd()
    for folder in (here, *here.parents):
        if (folder / "params.yaml").is_file():
            os.chdir(folder)
            return folder
    raise InputError(f"no params.yaml in {here} or above: run this inside the project's folder")


def from_project(*paths: Path) -> list[Path]:
    """Enters the project, for a command that was given paths as seen from where it was started."""
    here = Path.cwd()
    project = enter_project()
    return [
        path if path.is_absolute() or here == project else Path(os.path.relpath(here / path))
        for path in paths
    ]


def is_first_process() -> bool:
    """Whether this process is the one that writes files, of those that share a training.

    accelerate and torchrun number the processes that they start, over all machines, in the
    variable RANK, and a notebook's kernel inherits it.
    """
    return os.environ.get("RANK", "0") == "0"
