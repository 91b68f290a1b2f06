"""The rows of the paper's Table 4 on one dataset: variants trained and scored at a shared budget.

The rows are compared with each other, so they share everything but what their names say; their
models and scores lie apart from those of the main runs, whose budget may be another.
"""

import json
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd
from accelerate import PartialState

from wavegms.config import EvaluationParams
from wavegms.data.dataset import PreparedDataset
from wavegms.files import replace_folder, write_text
from wavegms.models.pipeline import WaveGMSPipeline
from wavegms.project import is_first_process
from wavegms.results.scores import predict_split, score_split, write_scores
from wavegms.results.statistics import known_metrics, summarize
from wavegms.results.tables import NOT_RUN
from wavegms.training.card import ModelCard, card_hash, read_card, write_card
from wavegms.training.device import precision_of
from wavegms.training.publish import publish_model
from wavegms.training.recipe import train
from wavegms.training.run import Run
from wavegms.training.safeguards import say
from wavegms.training.state import describe_run
from wavegms.variants import VariantSpec, variant_spec

# Among the metrics of a row's training: what the model that is published was made from.
_MADE_FROM = "made_from.json"


@dataclass(frozen=True)
class AblationRow:
    """A row: its model's card, the Dice on the selecting images by epoch, and the test scores."""

    card: ModelCard
    selection_dice: pd.Series
    scores: pd.DataFrame
    summary: pd.DataFrame


def why_not_run(variant: str, gms_checkpoint: Path) -> str:
    """What keeps a row from being run, for a table: one that is not trained needs GMS's weights."""
    if variant_spec(variant).trained or gms_checkpoint.is_file():
        return ""
    return f"needs GMS's weights, {gms_checkpoint.as_posix()}"


def note_not_run(folder: Path, reason: str) -> None:
    """Leaves the reason in place of the row's scores, for `read_not_run`."""
    with replace_folder(folder) as target:
        write_text(target / NOT_RUN, reason + "\n")


def same_training(variant: str, others: Iterable[str], batch_size: int) -> str | None:
    """The first of other variants that at the run's batch size differs in nothing but its name."""

    def content(name: str) -> VariantSpec:
        spec = variant_spec(name)
        return replace(spec, title="", batch_size=spec.batch_size_or(batch_size))

    return next((other for other in others if content(other) == content(variant)), None)


def run_row(
    run: Run,
    test_set: PreparedDataset,
    evaluation: EvaluationParams,
    scores: Path,
    same_as: str | None = None,
) -> AblationRow:
    """Trains a variant, publishes its model and scores it on the test images.

    It is not trained if the model that is published was made from the same parameters, data and
    code, as after an interruption of the rows that follow; nor if it is the `same_training` as
    another variant, whose model is then published under this name as well. The folder of scores is
    replaced once the row is complete.
    """
    made_from = describe_run(run, precision_of(run, PartialState().device))
    card = _published_card(run, made_from)
    if card:
        say(f"{run.variant}, seed {run.seed}: trained before from the same, its model is kept")
    else:
        card = _copy_model(same_as, run) if same_as else publish_model(run, train(run))
        if is_first_process():
            note = {"card": card_hash(card)} | made_from
            write_text(run.live / _MADE_FROM, json.dumps(note, indent=2) + "\n")
        PartialState().wait_for_everyone()
    pipeline = WaveGMSPipeline.from_pretrained(run.published, decoder=evaluation.decoder)
    probabilities = predict_split(pipeline, test_set)
    per_image = score_split(probabilities, test_set, evaluation.threshold, originals=True)
    metrics = known_metrics(per_image)
    summary = summarize(per_image, evaluation.bootstrap_resamples, run.seed, metrics)
    with replace_folder(scores) as target:
        table = target / f"{run.dataset}.csv"
        write_scores(
            table, per_image, summary, card, test_set=run.dataset, decoder=evaluation.decoder
        )
    logged = pd.read_csv(run.live / "plots/metrics/selection_dice.tsv", sep="\t")
    epochs = logged["step"] + variant_spec(run.variant).trained  # from 1, or 0 for untrained
    dice = logged.set_index(epochs.rename("epoch"))["selection_dice"]
    return AblationRow(card, dice, per_image, summary)


def _published_card(run: Run, made_from: Mapping[str, str]) -> ModelCard | None:
    try:
        note = json.loads((run.live / _MADE_FROM).read_text(encoding="utf-8"))
        card = read_card(run.published)
    except (OSError, ValueError):  # InputError among them: not run before, or not to its end
        return None
    return card if note == {"card": card_hash(card)} | made_from else None


def _copy_model(variant: str, run: Run) -> ModelCard:
    published, live = (
        folder.parents[1] / variant / folder.name for folder in (run.published, run.live)
    )
    card = replace(read_card(published), variant=run.variant)
    if is_first_process():
        with replace_folder(run.published) as target:
            shutil.copytree(published, target, dirs_exist_ok=True)
            write_card(target, card)
        with replace_folder(run.live) as target:
            shutil.copytree(live, target, dirs_exist_ok=True)
    return card


def drop_other_rows(folders: Iterable[Path], variants: Iterable[str], seeds: Iterable[int]) -> None:
    """Removes rows of a former choice from a dataset's folders, which are made if missing."""
    wanted = {(variant, f"seed_{seed}") for variant in variants for seed in seeds}
    for folder in folders:
        folder.mkdir(parents=True, exist_ok=True)
        for row in folder.glob("*/seed_*"):
            if row.parts[-2:] not in wanted:
                shutil.rmtree(row)
