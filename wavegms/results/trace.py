"""Where a number in a table comes from, link by link.

A table's row is made from scores, one file for each seed; a file of scores names the card of the
model and the data it was measured on; the card names its weights and the data they learned from;
the executed notebooks name the code. `test_trace` proves that the links hold.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from wavegms.errors import InputError
from wavegms.results.statistics import METRICS, ORIGINAL_METRICS
from wavegms.results.tables import read_scores
from wavegms.training.card import CARD_NAME, ModelCard, card_hash, fold_models, read_card

_SYSTEM = ["train_set", "test_set", "variant"]


@dataclass(frozen=True)
class Cell:
    """A number that was measured, by where it stands; `ablation` has a table of its own."""

    train_set: str
    test_set: str
    variant: str
    metric: str = "dsc"
    ablation: bool = False

    def __str__(self) -> str:
        return f"{self.metric} of {self.variant}, trained on {self.train_set}, on {self.test_set}"

    def rows(self, table: pd.DataFrame, names: list[str]) -> pd.DataFrame:
        """Those of a table that are equal to it in some columns."""
        return table[(table[names] == [getattr(self, name) for name in names]).all(axis=1)]


@dataclass(frozen=True)
class Run:
    """One seed's part in a number.

    `mean` is that of the metric over the images in the file of scores, shares in [0, 1]. `data` has
    the hash of prepared data by dataset: what the model learned from, then what it was tested on.
    `reports` are the executed notebooks that trained and tested it.
    """

    scores: Path
    images: int
    mean: float
    model: Path
    card: ModelCard
    data: Mapping[str, str]
    reports: tuple[Path, ...]
    others: tuple[tuple[Path, str], ...] = ()  # models of the other folds, and their cards' hashes


@dataclass(frozen=True)
class Trace:
    """The chain behind a number: the table's line (from 1) as text, and one run for each seed."""

    cell: Cell
    table: Path
    line: int
    row: Mapping[str, str]
    report: Path
    runs: tuple[Run, ...]


def trace_cell(cell: Cell, project: Path = Path(".")) -> Trace:
    """Follows a measured number back to what made it; a link that is missing is named."""
    if cell.metric not in (metrics := (*METRICS, *ORIGINAL_METRICS)):
        raise InputError(f"--metric is {cell.metric}: choose one of {', '.join(metrics)}")
    at_home = cell.train_set == cell.test_set
    if cell.ablation and not at_home:
        raise InputError("the ablation is tested where it was trained: leave out --test-set")
    name = "ablation" if cell.ablation else "segmentation" if at_home else "generalization"
    if cell.metric in ORIGINAL_METRICS:
        if cell.ablation:
            raise InputError(f"the ablation's table has no {cell.metric}: leave out --ablation")
        name = "original"
    table = project / f"results/tables/{name}.csv"
    line, row = _find_row(table, cell)
    # without runs of its own, the ablation is made of the others
    apart = cell.ablation and any((project / "results/ablation").rglob("*.csv"))
    folder = project / ("results/ablation" if apart else "results/scores")
    scores = cell.rows(read_scores(folder), _SYSTEM)
    if scores.empty:
        raise InputError(f"{folder} has no scores behind the {cell} in {table}: run `dvc repro`")
    runs = (_follow_run(cell, apart, rows, project) for _, rows in scores.groupby("seed"))
    return Trace(cell, table, line, row, project / "reports/08_results.ipynb", tuple(runs))


def report_trace(trace: Trace) -> str:
    """A chain for a reader, from the table down to the code."""
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
            *(
                f"  fold {fold}    {place.as_posix()}/{CARD_NAME}, sha256 {digest}"
                for fold, (place, digest) in enumerate(run.others, start=2)
            ),
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
        rows = cell.rows(rows, [*_SYSTEM, "metric"])
        measured = rows[rows["measured"] != ""]
    except FileNotFoundError as error:
        raise InputError(f"{table} does not exist: run `dvc repro` first") from error
    except (ValueError, KeyError) as error:
        raise InputError(f"{table} is no table of results ({error}): run `dvc repro`") from error
    if measured.empty:
        raise InputError(
            f"{table} has no measured {cell}: run it (see variants, generalization and ablation in "
            "params.yaml), or ask for a row that was run"
        )
    return int(measured.index[0]) + 2, measured.iloc[0].to_dict()  # line 1 has the names


def _follow_run(cell: Cell, apart: bool, rows: pd.DataFrame, project: Path) -> Run:
    first = rows.iloc[0]
    train_set, test_set, seed = cell.train_set, cell.test_set, first["seed"]
    place = f"{train_set}/{cell.variant}/seed_{seed}"
    path = project / "results" / ("ablation" if apart else "scores") / place / f"{test_set}.csv"
    model = project / ("models/ablation" if apart else "models") / place
    card = read_card(model)
    if card_hash(card) != first["card"]:
        raise InputError(
            f"{path} was measured with another model than the one in {model} (its card has another "
            "hash): run `dvc repro`"
        )
    run = f"{cell.variant}_{seed}"
    tested = f"05_domain_generalization_{train_set}_{test_set}_{run}"
    if train_set == test_set:
        tested = f"03_evaluate_{train_set}_{run}"
    names = [f"04_ablation_{train_set}"] if apart else [f"02_train_{train_set}_{run}", tested]
    return Run(
        scores=path,
        images=len(rows),
        mean=float(rows[cell.metric].mean()),
        model=model,
        card=card,
        data={train_set: card.data_hash, test_set: first["data_hash"]},
        reports=tuple(project / "reports" / f"{name}.ipynb" for name in names),
        others=tuple(zip(fold_models(model)[1:], card.folds.get("others", []), strict=True)),
    )


def _code(report: Path) -> str:
    """Which code ran in an executed notebook, as it says itself."""
    try:
        record = json.loads(report.read_text(encoding="utf-8"))["metadata"]["wavegms"]
        revision, changed = record["revision"], record["changed"]
    except FileNotFoundError as error:
        raise InputError(f"{report} does not exist: run `dvc repro` first") from error
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{report} does not say which code ran: run its stage again, by `dvc repro --force "
            "--single-item`"
        ) from error
    text = f"git {revision}" if revision else "no git revision, as there was no repository"
    if changed:
        text += f" with changes in {', '.join(changed)}"
    return f"{report.as_posix()}, {text}"
