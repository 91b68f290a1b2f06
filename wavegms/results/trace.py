"""Where a number in a table comes from: followed link by link, and every link checked.

A table's row is made from scores, one file for each seed; a file of scores names the card of the
model and the data it was measured on; the card names its weights and the data they learned from;
the executed notebooks name the code.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

import pandas as pd

from wavegms.errors import InputError
from wavegms.files import sha256_of
from wavegms.results.statistics import METRICS
from wavegms.results.tables import (
    ablation_table,
    generalization_table,
    read_published,
    read_scores,
    segmentation_table,
    summarize_systems,
)
from wavegms.training.card import CARD_NAME, ModelCard, card_hash, read_card

_AGAIN = "run `dvc repro`"


@dataclass(frozen=True)
class Cell:
    """A number that was measured, by where it stands.

    Attributes:
        train_set: name of the dataset that the network was trained on.
        test_set: that it was tested on.
        variant: name of the network.
        metric: one of `wavegms.evaluation.METRICS`.
        ablation: of the table of the ablation, not of that of the main runs.
    """

    train_set: str
    test_set: str
    variant: str
    metric: str = "dsc"
    ablation: bool = False

    def __str__(self) -> str:
        return f"{self.metric} of {self.variant}, trained on {self.train_set}, on {self.test_set}"

    @property
    def table(self) -> str:
        """The name of its table."""
        if self.ablation:
            return "ablation"
        return "segmentation" if self.train_set == self.test_set else "generalization"


@dataclass(frozen=True)
class Report:
    """What an executed notebook says of itself.

    Attributes:
        path: the notebook.
        record: which code and libraries ran, see `wavegms.provenance.run_record`.
        parameters: what it was run with.
    """

    path: Path
    record: Mapping[str, Any]
    parameters: Mapping[str, Any]


@dataclass(frozen=True)
class Run:
    """One seed's part in a number.

    Attributes:
        scores: file of the metrics of each image.
        images: their number.
        mean: of the metric over the images, as in the file (shares in [0, 1]).
        model: folder of the model.
        card: of the model.
        data: hash of the prepared data by name of the dataset: what it learned from, then what it
            was tested on.
        reports: executed notebooks that trained and tested it.
    """

    scores: Path
    images: int
    mean: float
    model: Path
    card: ModelCard
    data: Mapping[str, str]
    reports: tuple[Report, ...]


@dataclass(frozen=True)
class Trace:
    """The chain behind a number.

    Attributes:
        cell: what was asked for.
        table: the file.
        line: of the file, from 1.
        row: the whole row, by column, as text.
        report: the executed notebook that made the table.
        runs: by seed.
    """

    cell: Cell
    table: Path
    line: int
    row: Mapping[str, str]
    report: Report
    runs: tuple[Run, ...]


def trace_cell(cell: Cell, project: Path = Path(".")) -> Trace:
    """Follows a measured number back to what made it, and checks every link on the way.

    Checked are: the whole row, made anew from the scores; the card against the hash in the scores;
    the weights against the hash in the card; prepared data, as far as they are there, against the
    hashes in scores and card; parameters and library versions of the reports against the card.

    Args:
        cell: the number.
        project: the project's folder.

    Returns:
        The chain.

    Raises:
        InputError: the number was not measured, or a link is missing or broken; the sentence names
            it and the way out.
    """
    if cell.metric not in METRICS:
        raise InputError(f"--metric is {cell.metric}: choose one of {', '.join(METRICS)}")
    if cell.ablation and cell.train_set != cell.test_set:
        raise InputError("the ablation is tested where it was trained: leave out --test-set")
    table = project / "results/tables" / f"{cell.table}.csv"
    line, row = _find_row(table, cell)
    report = _read_report(project / "reports/08_results.ipynb", {})
    scores = _scores_behind(cell, project)
    _compare(row, _made_again(cell, scores, report, project), table, cell)
    chosen = scores[(scores["train_set"] == cell.train_set) & (scores["test_set"] == cell.test_set)]
    runs = tuple(
        _follow_run(cell, seed, run, project) for seed, run in chosen.groupby("seed", sort=False)
    )
    return Trace(cell, table, line, row, report, runs)


def report_trace(trace: Trace) -> str:
    """A chain for a reader.

    Args:
        trace: of :func:`trace_cell`.

    Returns:
        Lines from the table down to the code.
    """
    row = trace.row
    lines = [
        f"{trace.table.as_posix()}, line {trace.line}, column measured: {row['measured']}",
        f"  {trace.cell}",
        f"  the row follows from {len(trace.runs)} file(s) of scores, {row['images']} images each",
        f"  made by {_code(trace.report)}",
    ]
    for run in trace.runs:
        card = run.card
        lines += [
            f"seed {card.seed}",
            f"  scores    {run.scores.as_posix()}: mean {run.mean:.6f}",
            f"  card      {(run.model / CARD_NAME).as_posix()}, sha256 {card_hash(card)}",
            f"  weights   {run.model.as_posix()}/*/*.safetensors, sha256 {card.weights}",
            f"  training  epoch {card.best_epoch} of {card.epochs}, {card.selection}, "
            f"{card.image_size} px, {card.precision}",
            *(f"  data      {name}, sha256 {digest}" for name, digest in run.data.items()),
            f"  versions  {', '.join(' '.join(pair) for pair in card.versions.items())}",
            *(f"  code      {_code(report)}" for report in run.reports),
        ]
    return "\n".join(lines)


def _find_row(table: Path, cell: Cell) -> tuple[int, dict[str, str]]:
    try:
        rows = pd.read_csv(table, dtype=str, keep_default_na=False)
        found = rows[
            (rows["train_set"] == cell.train_set)
            & (rows["test_set"] == cell.test_set)
            & (rows["variant"] == cell.variant)
            & (rows["metric"] == cell.metric)
        ]
        measured = found[found["measured"] != ""]
    except FileNotFoundError as error:
        raise InputError(f"{table} does not exist: run `dvc repro` first") from error
    except (ValueError, KeyError) as error:
        raise InputError(f"{table} is no table of results ({error}): {_AGAIN}") from error
    if measured.empty:
        raise InputError(
            f"{table} has no measured {cell}: run it (see variants, generalization and ablation in "
            "params.yaml), or ask for a row that was run"
        )
    return int(measured.index[0]) + 2, measured.iloc[0].to_dict()  # line 1 has the names


def _scores_behind(cell: Cell, project: Path) -> pd.DataFrame:
    """What the network of a cell scored anywhere."""
    scores = read_scores(_places(cell, project)[0])
    return scores[scores["variant"] == cell.variant]


def _places(cell: Cell, project: Path) -> tuple[Path, Path]:
    """Folders of scores and models; without runs of its own, the ablation is made of the others."""
    apart = project / "results/ablation"
    if cell.ablation and any(apart.rglob("*.csv")):
        return apart, project / "models/ablation"
    return project / "results/scores", project / "models"


def _made_again(cell: Cell, scores: pd.DataFrame, report: Report, project: Path) -> dict[str, str]:
    """The row of a cell as `08_results` makes it."""
    make = {
        "segmentation": segmentation_table,
        "ablation": ablation_table,
        "generalization": generalization_table,
    }[cell.table]
    try:
        resamples = report.parameters["evaluation"]["bootstrap_resamples"]
        systems = summarize_systems(scores, resamples, report.parameters["seed"])
    except (KeyError, TypeError) as error:
        raise InputError(
            f"{report.path} does not say what it was run with: run `dvc repro --force results`"
        ) from error
    table = make(systems, read_published(project / "results/published"))
    # as text, in the precision of `wavegms.tables.write_table`
    text = StringIO(table.to_csv(index=False, float_format="%.6g"))
    rows = pd.read_csv(text, dtype=str, keep_default_na=False)
    key = ["train_set", "test_set", "variant", "metric"]
    here = (rows[key] == [getattr(cell, name) for name in key]).all(axis=1)
    return rows[here].iloc[0].to_dict() if here.any() else {}


def _compare(row: Mapping[str, str], again: Mapping[str, str], table: Path, cell: Cell) -> None:
    for column in again or ["measured"]:
        said, follows = row.get(column, ""), again.get(column, "")
        if said != follows:
            raise InputError(
                f"{table} says {column} {said or '(none)'} for the {cell}, but the scores of its "
                f"images give {follows or '(none)'}: run `dvc repro results`"
            )


def _follow_run(cell: Cell, seed: int, rows: pd.DataFrame, project: Path) -> Run:
    scores, models = _places(cell, project)
    place = Path(cell.train_set) / cell.variant / f"seed_{seed}"
    path, model = scores / place / f"{cell.test_set}.csv", models / place
    first = rows.iloc[0]
    card = read_card(model)
    if sha256_of(model / CARD_NAME) != first["card"]:
        raise InputError(
            f"{path} was measured with another model than the one in {model} (its card has another "
            f"hash): {_AGAIN}"
        )
    data = {cell.train_set: card.data_hash}
    if data.setdefault(cell.test_set, first["data_hash"]) != first["data_hash"]:
        raise InputError(
            f"{path} was measured on images prepared otherwise than those that {model} learned "
            f"from, so the two may overlap: {_AGAIN}"
        )
    for name, digest in data.items():
        manifest = project / "data/prepared" / name / "manifest.csv"
        if manifest.exists() and sha256_of(manifest) != digest:
            raise InputError(f"{manifest} is not what {path} was made from, by its hash: {_AGAIN}")
    return Run(
        path,
        len(rows),
        float(rows[cell.metric].mean()),
        model,
        card,
        data,
        _reports_of(cell, card, models, project),
    )


def _reports_of(cell: Cell, card: ModelCard, models: Path, project: Path) -> tuple[Report, ...]:
    """The executed notebooks of a model, those that trained it first."""
    reports = project / "reports"
    of_model = f"{cell.train_set}_{cell.variant}_{card.seed}"
    asked = {"dataset": cell.train_set, "variant": cell.variant, "seed": card.seed}
    if models.name == "ablation":
        # of all rows; their epochs are their own
        sections = {name: values for name, values in card.parameters.items() if name != "training"}
        path = reports / f"04_ablation_{cell.train_set}.ipynb"
        training = _read_report(path, {"dataset": cell.train_set} | sections)
        found = (training,)
    else:
        training = _read_report(reports / f"02_train_{of_model}.ipynb", asked | card.parameters)
        if cell.train_set == cell.test_set:
            testing = _read_report(reports / f"03_evaluate_{of_model}.ipynb", asked)
        else:
            name = f"05_domain_generalization_{cell.train_set}_{cell.test_set}_{cell.variant}"
            asked |= {"test_set": cell.test_set}
            testing = _read_report(reports / f"{name}_{card.seed}.ipynb", asked)
        found = (training, testing)
    if training.record["versions"] != card.versions:
        raise InputError(
            f"{training.path} ran with other versions of libraries than the card of the model "
            f"names: {_AGAIN}"
        )
    return found


def _read_report(path: Path, expected: Mapping[str, Any]) -> Report:
    try:
        metadata = json.loads(path.read_text(encoding="utf-8"))["metadata"]
        record, parameters = metadata["wavegms"], metadata["papermill"]["parameters"]
        record["revision"], record["changed"], record["versions"]  # all that is read of it
        strays = [name for name, value in expected.items() if parameters[name] != value]
    except FileNotFoundError as error:
        raise InputError(f"{path} does not exist: run `dvc repro` first") from error
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{path} does not say which code ran, or with what: run its stage again, by `dvc repro "
            "--force --single-item`"
        ) from error
    if strays:
        raise InputError(
            f"{path} is of another run, as its {strays[0]} is not what the card of the model says: "
            f"{_AGAIN}"
        )
    return Report(path, record, parameters)


def _code(report: Report) -> str:
    revision = report.record["revision"]
    text = f"git {revision}" if revision else "no git revision, as there was no repository"
    changed = report.record["changed"]
    if changed:
        text += f" with changes in {', '.join(changed)}"
    return f"{report.path.as_posix()}, {text}"
