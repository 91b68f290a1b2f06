"""One row of the paper's Table 4: a variant trained and scored on one dataset, at a shared budget.

The rows are compared with each other, so they share everything but what their names say; their
scores lie apart from those of the main runs, whose budget may be another.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from wavegms.config import EvaluationParams
from wavegms.data.dataset import PreparedDataset
from wavegms.files import replace_folder, write_text
from wavegms.models.pipeline import WaveGMSPipeline
from wavegms.results.scores import predict_split, score_split, write_scores
from wavegms.results.statistics import summarize
from wavegms.training.card import ModelCard
from wavegms.training.publish import publish_model
from wavegms.training.recipe import TrainingResult, train
from wavegms.training.run import Run
from wavegms.variants import variant_spec

# Beside scores, or instead of them: why a row was not run.
NOT_RUN = "not_run.txt"


@dataclass(frozen=True)
class AblationRow:
    """What a row leaves behind: of `train`, `publish_model`, `score_split` and `summarize`."""

    result: TrainingResult
    card: ModelCard
    scores: pd.DataFrame
    summary: pd.DataFrame


def why_not_run(variant: str, gms_checkpoint: Path) -> str:
    """What keeps a row from being run, for a table: one that is not trained needs GMS's weights."""
    if variant_spec(variant).trained or gms_checkpoint.is_file():
        return ""
    return f"needs GMS's weights, {gms_checkpoint.as_posix()}"


def note_not_run(folder: Path, reason: str) -> None:
    """Leaves the reason in place of the row's scores, for :func:`read_not_run`."""
    with replace_folder(folder) as target:
        write_text(target / NOT_RUN, reason + "\n")


def run_row(
    run: Run, test_set: PreparedDataset, evaluation: EvaluationParams, scores: Path
) -> AblationRow:
    """Trains a variant, publishes its model and scores it on the test images.

    The folder of scores, with `<dataset>.csv` and `.json`, is replaced once the row is complete.

    Raises:
        InputError: see `train`; nothing is published then.
    """
    result = train(run)
    card = publish_model(run, result)
    probabilities = predict_split(WaveGMSPipeline.from_pretrained(run.published), test_set)
    per_image = score_split(probabilities, test_set, evaluation.threshold)
    summary = summarize(per_image, evaluation.bootstrap_resamples, run.seed)
    with replace_folder(scores) as target:
        table = target / f"{run.dataset}.csv"
        write_scores(table, per_image, summary, card, test_set=run.dataset)
    return AblationRow(result, card, per_image, summary)


def read_not_run(folder: Path) -> Mapping[tuple[str, str], str]:
    """Why rows in `<dataset>/<variant>/seed_<seed>` were not run, by (dataset, variant)."""
    found = {}
    for path in sorted(Path(folder).glob(f"*/*/seed_*/{NOT_RUN}")):
        dataset, variant = path.parts[-4:-2]
        found[dataset, variant] = path.read_text(encoding="utf-8").strip()
    return found
