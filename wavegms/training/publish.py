"""From checkpoints to the folder that others open, and the list of those that are there."""

import shutil
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from wavegms.files import replace_folder
from wavegms.project import is_first_process, library_versions
from wavegms.training.card import CARD_NAME, ModelCard, read_card, weights_hash, write_card
from wavegms.training.recipe import TrainingResult
from wavegms.training.run import Run
from wavegms.training.state import discard_state
from wavegms.variants import variant_spec


def publish_model(run: Run, result: TrainingResult) -> ModelCard:
    """Puts the best weights in place, the last ones in `last/`, and the card beside them.

    An earlier model there is replaced whole or not at all. Of several processes that shared the
    training, the first does it. The state that an interrupted training goes on from is forgotten
    then.
    """
    sections = {"training": run.training, "loss": run.loss, "model": run.model}
    classes = {"classes": list(run.train_set.classes)} if run.train_set.classes else {}
    card = ModelCard(
        variant=run.variant,
        dataset=run.dataset,
        train_images=len(run.train_set),
        selection_images=len(run.selection_set),
        data_hash=run.train_set.data_hash,
        image_size=run.train_set.image_size,
        seed=run.seed,
        epochs=len(result.history),
        best_epoch=result.best_epoch,
        selection=run.training.selection,
        selection_dice=result.best_dice,
        trainable_parameters=result.trainable_parameters,
        precision=result.precision,
        weights=weights_hash(result.folder / "best"),
        autoencoder=asdict(run.autoencoder) if run.autoencoder else None,
        parameters={name: one.model_dump() for name, one in sections.items()} | classes,
        versions=library_versions(),
    )
    if not is_first_process():
        return card
    with replace_folder(run.published) as target:
        shutil.copytree(result.folder / "best", target, dirs_exist_ok=True)
        shutil.copytree(result.folder / "last", target / "last")
        write_card(target, card)
    discard_state(result.folder)
    return card


@dataclass(frozen=True)
class PublishedModel:
    """A model that :func:`publish_model` wrote."""

    folder: Path
    card: ModelCard

    @property
    def title(self) -> str:
        """Its name for a reader, with the budget, which tells trainings of a variant apart."""
        return f"{variant_spec(self.card.variant).title}, {self.card.epochs} epochs"


def published_models(folder: Path, variants: Iterable[str], seed: int) -> list[PublishedModel]:
    """The models of one seed that are in a dataset's folder, in the order of the variants."""
    places = [Path(folder, variant, f"seed_{seed}") for variant in variants]
    return [
        PublishedModel(place, read_card(place)) for place in places if (place / CARD_NAME).is_file()
    ]
