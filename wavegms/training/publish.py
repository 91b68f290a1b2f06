"""From checkpoints to the folder that others open, and the list of those that are there."""

import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from wavegms.files import replace_folder
from wavegms.project import is_first_process, library_versions
from wavegms.training.card import (
    CARD_NAME,
    ModelCard,
    card_hash,
    read_card,
    weights_hash,
    write_card,
)
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
    return publish_folds([run], [result])


def publish_folds(runs: Sequence[Run], results: Sequence[TrainingResult]) -> ModelCard:
    """Publishes the models of all folds at once, those after the first within the first's folder.

    The card of the first, which is given back, names the others' by their hashes.
    """
    trained = list(zip(runs, results, strict=True))
    others = [_card_of(run, result) for run, result in trained[1:]]
    cards = [_card_of(*trained[0], {"others": list(map(card_hash, others))} if others else {})]
    cards += others
    if not is_first_process():
        return cards[0]
    first = runs[0].published
    with replace_folder(first) as target:
        for (run, result), card in zip(trained, cards, strict=True):
            place = target / run.published.relative_to(first)
            shutil.copytree(result.folder / "best", place, dirs_exist_ok=True)
            shutil.copytree(result.folder / "last", place / "last")
            write_card(place, card)
    for result in results:
        discard_state(result.folder)
    return cards[0]


def _card_of(
    run: Run, result: TrainingResult, others: Mapping[str, Any] | None = None
) -> ModelCard:
    sections = {"training": run.training, "loss": run.loss, "model": run.model}
    parameters = {name: section.model_dump() for name, section in sections.items()}
    if run.recipe:
        begins = run.training.start_from or run.training.pretrained
        parameters = {
            "training": run.applied,
            "recipe": run.recipe.described(begins),
            "model": parameters["model"],
        }
    if run.train_set.scale and run.train_set.scale.volumes:
        parameters["volumes"] = asdict(run.train_set.scale.volumes)
    if folds := run.train_set.folds:
        parameters["folds"] = {"number": folds, "fold": run.train_set.fold, **(others or {})}
    if classes := run.train_set.classes:
        parameters["classes"] = list(classes)
    return ModelCard(
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
        parameters=parameters,
        versions=library_versions(),
    )


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
