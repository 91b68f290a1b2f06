"""The card beside a trained model: what it is, what made it, and how good the selection found it.

A card is one JSON file, `card.json`, in the model's folder. Every number in a table of results
leads to one, see `wavegms.results.trace`: scores name the card that they were measured with, and
the card names its weights.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from wavegms.data.manifest import fold_folder
from wavegms.errors import InputError, first_line
from wavegms.files import sha256_of, write_text

CARD_NAME = "card.json"


@dataclass(frozen=True)
class ModelCard:
    """What a model was made from.

    `data_hash` is of the prepared folder, `weights` of those beside the card, see
    :func:`weights_hash`. `best_epoch`, from 1, is the one whose weights were kept, `selection_dice`
    their mean soft Dice in [0, 1] on the selecting images. `precision` is what training computed
    with, None if nothing was trained. `autoencoder` says where the frozen one came from, and how
    well it reconstructs; None where the network has none. `parameters` are the sections of
    params.yaml that training used, the names of `classes` where there are several, how volumes were
    cut where they were, see `VolumeRule`, and with folds their number, which of them this model is
    of, and in that of the first the hashes of the others' cards; where it followed a published
    recipe, with its values, and `recipe` says the rest of it.
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
    precision: str | None
    weights: str
    autoencoder: Mapping[str, Any] | None
    parameters: Mapping[str, Any]
    versions: Mapping[str, str]

    @property
    def folds(self) -> Mapping[str, Any]:
        """`number`, `fold` (from 1) and, of the first, `others`; empty without folds."""
        return self.parameters.get("folds", {})

    def summary(self) -> dict[str, Any]:
        """What fits one line each: everything but the nested parameters."""
        nested = ("autoencoder", "parameters", "versions")
        return {name: value for name, value in asdict(self).items() if name not in nested}


def weights_hash(folder: Path) -> str:
    """Identifies the weights in a model's folder; those in `last/` are not among them.

    A shell in that folder gives the same: `sha256sum */*.safetensors | sha256sum`.
    """
    paths = Path(folder).glob("*/*.safetensors")
    lines = sorted((f"{path.parent.name}/{path.name}", sha256_of(path)) for path in paths)
    text = "".join(f"{content}  {name}\n" for name, content in lines)
    return hashlib.sha256(text.encode()).hexdigest()


def card_hash(card: ModelCard) -> str:
    """Identifies a model: the SHA-256 of its `card.json`, as 64 hexadecimal digits."""
    return hashlib.sha256(_as_text(card).encode()).hexdigest()


def write_card(folder: Path, card: ModelCard) -> None:
    """Writes `card.json` into the model's folder."""
    write_text(Path(folder) / CARD_NAME, _as_text(card))


def _as_text(card: ModelCard) -> str:
    return json.dumps(asdict(card), indent=2) + "\n"


def read_card(folder: Path) -> ModelCard:
    """Reads `card.json` and makes sure that it belongs to the weights beside it.

    Raises:
        InputError: there is none, it is not one of ours, or the weights are others.
    """
    path = Path(folder) / CARD_NAME
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        names = {field.name for field in fields(ModelCard)}
        card = ModelCard(**{name: values[name] for name in names})
    except FileNotFoundError as error:
        raise InputError(f"{path} does not exist: run the train stage first") from error
    except (OSError, RecursionError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{path} is not the card of a trained model ({first_line(error)}): run the train stage "
            "again"
        ) from error
    if weights_hash(folder) != card.weights:
        raise InputError(
            f"the weights in {folder} are not those that its {CARD_NAME} describes: run the train "
            "stage again"
        )
    return card


def fold_models(folder: Path) -> list[Path]:
    """The folders of the models of all folds, the first of which is `folder`; alone without folds.

    Raises:
        InputError: one is missing, or not the one that the first one's card names.
    """
    others = read_card(folder).folds.get("others", [])
    places = [fold_folder(Path(folder), fold) for fold in range(2, len(others) + 2)]
    for place, digest in zip(places, others, strict=True):
        if card_hash(read_card(place)) != digest:
            raise InputError(
                f"{place} is not the model that the card in {folder} names: run the train stage "
                "again"
            )
    return [Path(folder), *places]
