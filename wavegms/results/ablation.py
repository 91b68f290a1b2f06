"""One row of the paper's Table 4: a variant trained and scored on one dataset, at a shared budget.

The rows are compared with each other, so they share everything but what their names say; their
scores lie apart from those of the main runs, whose budget may be another.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from wavegms.config import (
    AutoencoderParams,
    EvaluationParams,
    LossParams,
    ModelParams,
    TrainingParams,
)
from wavegms.data.dataset import PreparedDataset
from wavegms.files import replace_folder, write_text
from wavegms.models.pipeline import WaveGMSPipeline
from wavegms.results.scores import predict_split, score_split, write_scores
from wavegms.results.statistics import summarize
from wavegms.training.autoencoder import frozen_autoencoder
from wavegms.training.card import ModelCard
from wavegms.training.loss import WaveGMSLoss
from wavegms.training.publish import publish_model
from wavegms.training.recipe import TrainingResult, train
from wavegms.variants import variant_spec

# Beside scores, or instead of them: why a row was not run.
NOT_RUN = "not_run.txt"


@dataclass(frozen=True)
class AblationSettings:
    """The sections of params.yaml that a row is made by."""

    autoencoder: AutoencoderParams
    model: ModelParams
    loss: LossParams
    training: TrainingParams
    evaluation: EvaluationParams


@dataclass(frozen=True)
class AblationRow:
    """What a row leaves behind.

    Attributes:
        result: of its training.
        card: of its model.
        scores: of `score_split`, one row for each test image.
        summary: of `summarize`.
    """

    result: TrainingResult
    card: ModelCard
    scores: pd.DataFrame
    summary: pd.DataFrame


def why_not_run(variant: str, gms_checkpoint: Path) -> str:
    """What keeps a row from being run: a variant that is not trained needs GMS's weights.

    Args:
        variant: name in `wavegms.models.variants.VARIANTS`.
        gms_checkpoint: where these weights are expected.

    Returns:
        The reason, for a table; empty if there is none.
    """
    if variant_spec(variant).trained or gms_checkpoint.is_file():
        return ""
    return f"needs GMS's weights, {gms_checkpoint.as_posix()}"


def note_not_run(folder: Path, reason: str) -> None:
    """Leaves the reason where the row's scores would be; see :func:`read_not_run`.

    Args:
        folder: `<scores>/<dataset>/<variant>/seed_<seed>`; what lies there is replaced.
        reason: of :func:`why_not_run`.
    """
    with replace_folder(folder) as target:
        write_text(target / NOT_RUN, reason + "\n")


def run_row(
    variant: str,
    settings: AblationSettings,
    *,
    dataset: str,
    epochs: int,
    seed: int,
    prepared: Path,
    autoencoder: Path,
    checkpoints: Path,
    live: Path,
    model: Path,
    scores: Path,
) -> AblationRow:
    """Trains a variant, publishes its model and scores it on the test images.

    Args:
        variant: name in `wavegms.models.variants.VARIANTS`.
        settings: how; a variant may have a batch size of its own.
        dataset: name of the dataset.
        epochs: the budget, the same for all rows.
        seed: of the training and of the resampling.
        prepared: folder of the prepared dataset.
        autoencoder: folder of its autoencoder.
        checkpoints: where the training keeps its weights.
        live: where the metrics of each epoch go.
        model: where the model goes, as `publish_model` writes it.
        scores: folder for `<dataset>.csv` and `.json`, as `write_scores` writes them; what lies
            there is replaced once the row is complete.

    Raises:
        InputError: see `train`; nothing is published then.
    """
    training = settings.training.model_copy(update={"epochs": epochs, "epochs_by_dataset": {}})
    vae, autoencoder_card = frozen_autoencoder(variant, autoencoder, settings.autoencoder)
    train_set = PreparedDataset(prepared, training.train_splits)
    selection_set = PreparedDataset(prepared, training.selection_split)
    test_set = PreparedDataset(prepared, "test")
    result = train(
        variant,
        vae,
        WaveGMSLoss(**settings.loss.model_dump()),
        train_set,
        selection_set,
        training,
        epochs=epochs,
        seed=seed,
        folder=checkpoints,
        live_folder=live,
        sample_at_inference=settings.model.sample_at_inference,
        gms_checkpoint=settings.model.gms_checkpoint_for(dataset),
    )
    card = publish_model(
        result,
        model,
        dataset=dataset,
        variant=variant,
        seed=seed,
        train_set=train_set,
        selection_set=selection_set,
        autoencoder=autoencoder_card,
        training=training,
        other={"loss": settings.loss, "model": settings.model},
    )
    probabilities = predict_split(WaveGMSPipeline.from_pretrained(model), test_set)
    per_image = score_split(probabilities, test_set, settings.evaluation.threshold)
    summary = summarize(per_image, settings.evaluation.bootstrap_resamples, seed)
    with replace_folder(scores) as target:
        write_scores(target / f"{dataset}.csv", per_image, summary, card, test_set=dataset)
    return AblationRow(result, card, per_image, summary)


def read_not_run(folder: Path) -> Mapping[tuple[str, str], str]:
    """Which rows were not run, and why.

    Args:
        folder: the folder that holds `<dataset>/<variant>/seed_<seed>`.

    Returns:
        The reason by (dataset, variant).
    """
    found = {}
    for path in sorted(Path(folder).glob(f"*/*/seed_*/{NOT_RUN}")):
        dataset, variant = path.parts[-4:-2]
        found[dataset, variant] = path.read_text(encoding="utf-8").strip()
    return found
