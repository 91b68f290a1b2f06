"""What a training needs to go on where it stopped: saved whole, read if nothing has changed."""

import hashlib
import io
import math
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import filelock
import torch
from torch import Tensor

from wavegms.config import Precision
from wavegms.errors import InputError, first_line
from wavegms.files import replace_file, sha256_of
from wavegms.models.imagenet import imagenet_weights
from wavegms.models.mask_decoder import kept_mask_decoder
from wavegms.project import library_versions
from wavegms.training.run import Run
from wavegms.variants import variant_spec

STATE_NAME = "resume.pt"

LOCK_NAME = "running.lock"

# What trained weights follow from, as the stage `train` of dvc.yaml names it.
_CODE = (
    *("classes.py", "data/batches.py", "data/dataset.py", "data/on_card.py"),
    *("models", "training", "recipes.py", "variants.py"),
)


@dataclass
class TrainingState:
    """Where a training stands, by default at its beginning.

    No random state is among it: the random numbers of a step follow from seed, epoch and step.
    `epoch` and `step` are those of the next step, from 1 and from 0; `sums` are the losses of this
    epoch's steps, `rows` those of the history, and `best` the weights of the best epoch so far.
    `epochs` are how many there will be, 0 until `training.minutes` is measured, and `seconds` what
    was spent so far.
    """

    epochs: int = 0
    seconds: float = 0.0
    epoch: int = 1
    step: int = 0
    sums: dict[str, Tensor] = field(default_factory=dict)
    rows: list[dict[str, float]] = field(default_factory=list)
    best_epoch: int = 0
    best_dice: float = -math.inf
    best: dict[str, Tensor] = field(default_factory=dict)
    model: dict[str, Tensor] = field(default_factory=dict)
    optimizer: dict[str, Any] = field(default_factory=dict)
    schedule: dict[str, Any] = field(default_factory=dict)
    scaler: dict[str, Any] = field(default_factory=dict)

    @property
    def over(self) -> bool:
        """Whether all of its epochs are done."""
        return 0 < self.epochs < self.epoch


@contextmanager
def only_training(folder: Path) -> Iterator[None]:
    """Keeps a second training out of a folder, and clears what a killed one left half-written.

    The system frees the lock when the process ends, however it ends.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(folder / LOCK_NAME)
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout as error:
        raise InputError(
            f"another process is training in {folder}: wait until it has ended, or stop it"
        ) from error
    try:
        for leftover in folder.glob(".*.*"):
            if leftover.is_dir():
                shutil.rmtree(leftover)
            else:
                leftover.unlink()
        yield
    finally:
        lock.release()


def describe_run(run: Run, precision: Precision) -> dict[str, str]:
    """All that the weights of a training follow from, by a name that a reader knows.

    Epochs and precision stand as they apply, whatever params.yaml calls them.
    """
    left_out = {"epochs", "epochs_by_dataset", "precision"}
    if run.epochs:
        left_out |= {"minutes"}
    values = {key: value for key, value in run.applied.items() if key not in left_out}
    augmentation = values.pop("augmentation")
    return {
        "variant": run.variant,
        **({"epochs": str(run.epochs)} if run.epochs else {}),
        "seed": str(run.seed),
        **{f"training.{key}": str(value) for key, value in values.items()},
        **{f"training.augmentation.{key}": str(value) for key, value in augmentation.items()},
        "loss.supervision": run.loss.supervision,
        "loss.alignment_distance": run.loss.alignment_distance,
        "model.sample_at_inference": str(run.model.sample_at_inference),
        "precision": precision,
        "the training images": _hash_of(run.train_set.data_hash, *run.train_set.ids),
        "the selecting images": _hash_of(run.selection_set.data_hash, *run.selection_set.ids),
        "the autoencoder": "none" if run.vae is None else _hash_of_weights(run.vae),
        **_hashes_of_other_weights(run),
        **{f"the version of {name}": version for name, version in library_versions().items()},
        **_hashes_of_code(),
    }


def save_state(folder: Path, state: TrainingState, described: Mapping[str, str]) -> None:
    """Writes a state whole or not at all, through to the disk, with what `describe_run` gave."""
    # in memory first: torch hides the system's reason when a file cannot be written
    content = io.BytesIO()
    values = {entry.name: getattr(state, entry.name) for entry in fields(state)}
    torch.save({"run": dict(described), "state": values}, content)
    with replace_file(folder / STATE_NAME) as fresh, open(fresh, "wb") as file:
        file.write(content.getbuffer())
        file.flush()
        os.fsync(file.fileno())


def load_state(folder: Path, described: Mapping[str, str]) -> TrainingState | None:
    """The state in a folder, on the CPU, if it is of the training described; None if there is none.

    Raises:
        InputError: it is broken, or of a training with other parameters, data, code or versions.
    """
    path = folder / STATE_NAME
    if not path.exists():
        return None
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        before, state = content["run"], content["state"]
        changes = _changes(before, described)
        if not changes:
            return TrainingState(**state)
    except Exception as error:
        raise InputError(
            f"{path} cannot be read ({first_line(error)}): delete it to start over"
        ) from error
    raise InputError(
        f"{folder} holds an unfinished training, but {', '.join(changes)}: change that back to go "
        "on where it stopped, or delete this folder to start over"
    )


def discard_state(folder: Path) -> None:
    """Forgets where a training stood, as its results are safe or it cannot go on."""
    (Path(folder) / STATE_NAME).unlink(missing_ok=True)


def _changes(before: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    changes = []
    for name in dict.fromkeys([*before, *now]):
        old, new = before.get(name, "unknown"), now.get(name, "unknown")
        if old == new:
            continue
        hashed = name.startswith("the ") and "version" not in name
        changes.append(f"{name} changed" if hashed else f"{name} was {old} and is {new}")
    return changes


def _hash_of(*texts: str) -> str:
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()


def _hashes_of_other_weights(run: Run) -> dict[str, str]:
    """Of those that few trainings use."""
    hashes = {}
    if run.vae is not None and run.training.decoder != "exact":
        hashes["the mask decoder"] = _hash_of_weights(kept_mask_decoder(run.vae))
    if not variant_spec(run.variant).trained:
        hashes["the weights of GMS"] = sha256_of(run.model.gms_checkpoint_for(run.dataset))
    if run.start is not None:
        hashes["the weights it starts from"] = _hash_of_weights(run.start)
    if run.recipe and run.recipe.pretrained and run.training.pretrained:
        path = imagenet_weights(run.training.pretrained)
        hashes["the pretrained weights"] = sha256_of(path)
    return hashes


def _hash_of_weights(network: torch.nn.Module) -> str:
    digest = hashlib.sha256()
    for name, value in sorted(network.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def _hashes_of_code() -> dict[str, str]:
    package = Path(__file__).parent.parent
    paths = [
        path
        for place in _CODE
        for path in (sorted((package / place).rglob("*.py")) or [package / place])
    ]
    return {
        f"the code in wavegms/{path.relative_to(package).as_posix()}": _hash_of(
            path.read_text(encoding="utf-8")
        )
        for path in paths
    }
