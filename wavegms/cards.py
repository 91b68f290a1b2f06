"""The card beside a trained model: what it is, what made it, and how good the selection found it.

A card is one JSON file, `card.json`, in the model's folder. Every number in a table of results
leads to one.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from importlib.metadata import version
from pathlib import Path
from typing import Any

from wavegms.data.files import write_text
from wavegms.errors import InputError

CARD_NAME = "card.json"
_LIBRARIES = ("torch", "diffusers", "accelerate", "kornia", "numpy", "wavegms")


@dataclass(frozen=True)
class ModelCard:
    """What a model was made from.

    Attributes:
        variant: name in `wavegms.models.variants.VARIANTS`.
        dataset: name of the training set.
        train_images: number of images it learned from.
        selection_images: number of images that chose the epoch.
        data_hash: hash of the prepared folder, see `wavegms.data.prepare.data_hash`.
        image_size: side in pixels.
        seed: of everything random in training.
        epochs: trained for.
        best_epoch: whose weights were kept, from 1.
        selection: "best_on_validation" or "best_on_test".
        selection_dice: mean soft Dice in [0, 1] of the kept weights on the selecting images.
        trainable_parameters: their number.
        autoencoder: where the frozen autoencoder came from, and its reconstruction quality; None
            where the network has none.
        parameters: the sections of params.yaml that training used.
        versions: of the libraries that computed it.
    """

    variant: str
    dataset: str
    train_images: int
    selection_images: int
    data_hash: str
    image_size: int
    seed: int
    epochs: int
    best_epoch: int
    selection: str
    selection_dice: float
    trainable_parameters: int
    autoencoder: Mapping[str, Any] | None
    parameters: Mapping[str, Any]
    versions: Mapping[str, str]

    def summary(self) -> dict[str, Any]:
        """What fits one line each: everything but the nested parameters."""
        nested = ("autoencoder", "parameters", "versions")
        return {name: value for name, value in asdict(self).items() if name not in nested}


def library_versions() -> dict[str, str]:
    """Versions of the libraries that a trained weight depends on."""
    return {name: version(name) for name in _LIBRARIES}


def write_card(folder: Path, card: ModelCard) -> None:
    """Writes `card.json`.

    Args:
        folder: the model's folder.
        card: its content.
    """
    write_text(Path(folder) / CARD_NAME, json.dumps(asdict(card), indent=2) + "\n")


def read_card(folder: Path) -> ModelCard:
    """Reads `card.json`.

    Args:
        folder: the model's folder.

    Raises:
        InputError: there is none, or it is not one of ours.
    """
    path = Path(folder) / CARD_NAME
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        names = {field.name for field in fields(ModelCard)}
        return ModelCard(**{name: values[name] for name in names})
    except FileNotFoundError as error:
        raise InputError(f"{path} does not exist: run the train stage first") from error
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{path} is not the card of a trained model ({error}): run the train stage again"
        ) from error
