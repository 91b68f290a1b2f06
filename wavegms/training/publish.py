"""From checkpoints to the folder that others open, and the list of those that are there."""

import shutil
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from pydantic import BaseModel

from wavegms.config import TrainingParams
from wavegms.data.dataset import PreparedDataset
from wavegms.files import replace_folder
from wavegms.project import is_first_process, library_versions
from wavegms.training.autoencoder import AutoencoderCard
from wavegms.training.card import CARD_NAME, ModelCard, read_card, weights_hash, write_card
from wavegms.training.recipe import TrainingResult
from wavegms.training.state import discard_state
from wavegms.variants import variant_spec


def publish_model(
    result: TrainingResult,
    folder: Path,
    *,
    dataset: str,
    variant: str,
    seed: int,
    train_set: PreparedDataset,
    selection_set: PreparedDataset,
    autoencoder: AutoencoderCard | None,
    training: TrainingParams,
    other: dict[str, BaseModel],
) -> ModelCard:
    """Puts the best weights in place, the last ones in `last/`, and the card beside them.

    Of several processes that shared the training, the first does it. The state that an interrupted
    training goes on from is forgotten then.

    Args:
        result: of `wavegms.training.train`.
        folder: where the model goes; an earlier one there is replaced whole or not at all.
        dataset: name of the training set.
        variant: name of the network.
        seed: of the training.
        train_set: what it learned from.
        selection_set: what chose the epoch.
        autoencoder: card of the frozen autoencoder; None where the network has none.
        training: the section `training`.
        other: further sections of params.yaml that training used, by name.

    Returns:
        The card.
    """
    card = ModelCard(
        variant=variant,
        dataset=dataset,
        train_images=len(train_set),
        selection_images=len(selection_set),
        data_hash=train_set.data_hash,
        image_size=train_set.image_size,
        seed=seed,
        epochs=len(result.history),
        best_epoch=result.best_epoch,
        selection=training.selection,
        selection_dice=result.best_dice,
        trainable_parameters=result.trainable_parameters,
        precision=result.precision,
        weights=weights_hash(result.folder / "best"),
        autoencoder=asdict(autoencoder) if autoencoder else None,
        parameters={
            name: section.model_dump() for name, section in {"training": training, **other}.items()
        },
        versions=library_versions(),
    )
    if not is_first_process():
        return card
    with replace_folder(folder) as target:
        shutil.copytree(result.folder / "best", target, dirs_exist_ok=True)
        shutil.copytree(result.folder / "last", target / "last")
        write_card(target, card)
    discard_state(result.folder)
    return card


@dataclass(frozen=True)
class PublishedModel:
    """A model that :func:`publish_model` wrote.

    Attributes:
        folder: where it lies.
        card: what made it.
    """

    folder: Path
    card: ModelCard

    @property
    def title(self) -> str:
        """Its name for a reader, with the budget, which tells trainings of a variant apart."""
        return f"{variant_spec(self.card.variant).title}, {self.card.epochs} epochs"


def published_models(folder: Path, variants: Iterable[str], seed: int) -> list[PublishedModel]:
    """The models of one dataset and seed that are there.

    Args:
        folder: the dataset's folder, which holds `<variant>/seed_<seed>`.
        variants: which to look for, in this order.
        seed: of the training.
    """
    places = [Path(folder) / variant / f"seed_{seed}" for variant in variants]
    return [
        PublishedModel(place, read_card(place)) for place in places if (place / CARD_NAME).is_file()
    ]
