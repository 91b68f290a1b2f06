"""A training as one value: what learns from what, by which recipe, and where its results go."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from wavegms.config import AutoencoderParams, LossParams, ModelParams, TrainingParams
from wavegms.data.dataset import PreparedDataset
from wavegms.data.manifest import fold_folder, load_manifest, number_of_folds
from wavegms.models.autoencoder import Autoencoder
from wavegms.models.build import Network
from wavegms.recipes import Recipe
from wavegms.training.autoencoder import (
    AutoencoderCard,
    class_quality,
    frozen_autoencoder,
    require_classes_apart,
)
from wavegms.training.kept import start_network
from wavegms.variants import followed_recipe, variant_spec


@dataclass(frozen=True)
class Run:
    """One training; its weights follow from all of this but the folders.

    The names are those of params.yaml. `vae` is the frozen autoencoder and `autoencoder` its card,
    both None where the variant has none. `checkpoints` is for `best`, `last` and the state that an
    interrupted training goes on from, `live` for the metrics of each epoch as dvclive writes them
    (None: nowhere), `published` for the model as `publish_model` writes it. `start` is the network
    that `training.start_from` names, None for random weights.
    """

    dataset: str
    variant: str
    seed: int
    train_set: PreparedDataset
    selection_set: PreparedDataset
    vae: Autoencoder | None
    autoencoder: AutoencoderCard | None
    training: TrainingParams
    loss: LossParams
    model: ModelParams
    checkpoints: Path
    live: Path | None
    published: Path
    start: Network | None = None

    @classmethod
    def of(
        cls,
        dataset: str,
        variant: str,
        seed: int,
        *,
        autoencoder: AutoencoderParams,
        training: TrainingParams,
        loss: LossParams,
        model: ModelParams,
        part: str = "",
        project: Path = Path(),
        fold: int = 1,
    ) -> Self:
        """The training of these parameters in the project's folders, those of a `part` apart.

        With folds, that of one of them, on an autoencoder that has not seen its test images.

        Raises:
            InputError: the data are not prepared, or the autoencoder is missing, broken, or gives
                masks back too badly to train on.
        """
        prepared = project / "data/prepared" / dataset
        place = Path(dataset, variant, f"seed_{seed}")
        # first: an autoencoder that loses the masks would waste the hours that follow
        trained_here = fold if autoencoder.source == "train" else 1
        folder = fold_folder(project / "models/autoencoder" / dataset, trained_here)
        vae, card = frozen_autoencoder(variant, folder, autoencoder)
        train_set = PreparedDataset(prepared, training.train_splits, fold=fold)
        if vae and train_set.classes:
            require_classes_apart(class_quality(vae, train_set), autoencoder.min_mask_dice)
        return cls(
            dataset=dataset,
            variant=variant,
            seed=seed,
            train_set=train_set,
            selection_set=PreparedDataset(prepared, training.selection_split, fold=fold),
            vae=vae,
            autoencoder=card,
            training=training,
            loss=loss,
            model=model,
            checkpoints=fold_folder(project / "checkpoints" / part / place, fold),
            live=fold_folder(project / "reports" / (part or "training") / place, fold),
            published=fold_folder(project / "models" / part / place, fold),
            start=training.start_from
            and start_network(
                training.start_from,
                variant,
                vae,
                train_set.classes,
                network_in_place(variant, training),
            ),
        )

    @classmethod
    def each_fold(cls, dataset: str, *which: Any, project: Path = Path(), **how: Any) -> list[Self]:
        """The trainings of all folds, as `of` makes them; one where the data have no folds."""
        folds = number_of_folds(load_manifest(project / "data/prepared" / dataset))
        numbers = range(1, max(folds, 1) + 1)
        return [cls.of(dataset, *which, project=project, fold=fold, **how) for fold in numbers]

    @property
    def epochs(self) -> int | None:
        """Their number, for this dataset; None where `training.minutes` decides."""
        return self.training.epochs_for(self.dataset)

    @property
    def recipe(self) -> Recipe | None:
        """The published one, if it is to be followed and is not the common one."""
        return followed_recipe(self.variant, self.training.recipe)

    @property
    def batch_size(self) -> int:
        """As it applies."""
        if self.recipe:
            return self.recipe.batch_size_for(self.train_set.image_size, len(self.train_set))
        return variant_spec(self.variant).batch_size_or(self.training.batch_size)

    @property
    def warmup_epochs(self) -> int:
        """As they apply."""
        return 0 if self.recipe else self.training.warmup_epochs

    @property
    def applied(self) -> dict[str, Any]:
        """The section `training` with what a published recipe has in the place of its values."""
        values = self.training.model_dump()
        if self.recipe:
            values |= {
                "batch_size": self.batch_size,
                "learning_rate": self.recipe.learning_rate,
                "weight_decay": self.recipe.weight_decay,
                "warmup_epochs": self.warmup_epochs,
            }
        return values


def network_in_place(variant: str, training: TrainingParams) -> str | None:
    """What is built instead of the variant's own network; None for that one."""
    recipe = followed_recipe(variant, training.recipe)
    return recipe and recipe.network
