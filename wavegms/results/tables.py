"""From per-image scores and the paper's numbers to the tables of the results.

Scores lie in `<folder>/<train_set>/<variant>/seed_<seed>/<test_set>.csv`, one row an image. Every
table is made from these files and from the paper's tables as data, and from nothing else.
"""

from collections.abc import Callable, Iterable, Mapping
from math import nan
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import pandas as pd
from pydantic import BaseModel, Field

from wavegms.data.manifest import Missing
from wavegms.errors import InputError
from wavegms.files import read_table
from wavegms.results.statistics import (
    METRICS,
    ORIGINAL_METRICS,
    SYSTEM,
    classes_in,
    known_metrics,
    mean_over_seeds,
    summarize,
    summarize_classes,
    summarize_folds,
)
from wavegms.training.card import ModelCard
from wavegms.variants import VARIANTS

_Share = Annotated[float, Field(ge=0, le=1)]
_Distance = Annotated[float, Field(ge=0, allow_inf_nan=False)]
_Count = Annotated[int, Field(ge=0, lt=2**63)]


class ImageScore(BaseModel):
    """A row of a scores file; sizes and distances are in pixels."""

    train_set: str  # dataset the network was trained on
    test_set: str  # dataset the image comes from
    variant: str
    seed: _Count
    image_size: _Count
    epochs: _Count
    # how the checkpoint was chosen, see params.yaml, a decoder other than exact, a published recipe
    selection: str
    card: str  # SHA-256 of the model's card.json
    id: str
    label: str  # class, empty where the dataset has none
    fold: _Count = 0  # of the test set, in which the image is for testing; 0 without folds
    dsc: _Share
    iou: _Share
    hd95: _Distance  # the image diagonal where one mask is empty
    hd95_zero_if_empty: _Distance
    empty_prediction: bool  # the predicted mask has no pixel
    true_area: _Share  # of the image that is foreground
    predicted_area: _Share
    data_hash: str  # SHA-256 of manifest.csv of the prepared test_set
    # The same at the image's original size; missing in files of before, millimetres also where
    # none are known.
    dsc_original: Annotated[_Share, Missing] = nan
    iou_original: Annotated[_Share, Missing] = nan
    hd95_original: Annotated[_Distance, Missing] = nan
    hd95_mm: Annotated[_Distance, Missing] = nan


class PublishedNumber(BaseModel):
    """A number that the paper prints."""

    table: int
    system: str  # as printed
    type: str  # CNN, transformer or generative, in table 2
    variant: str  # ours; empty where we have none
    train_set: str
    test_set: str
    metric: str  # dsc and iou in percent, hd95 in pixels
    value: float
    trainable_parameters_millions: str  # a number, empty where not printed
    note: str


class Origin(BaseModel):
    """What is known of a number of Table 2 beyond the paper, see docs/published.md."""

    mark: Literal["acc-unet-logs", "pooled", "gms-picture"]
    system: str  # as printed
    test_set: str
    metric: str


# The paper's HD95 follows the reference code, so this is the column it is compared with.
PUBLISHED_HD95 = "hd95_zero_if_empty"

# Side of the images that the paper's distances are measured on, pixels (section 3.1).
PUBLISHED_IMAGE_SIZE = 224

# Beside scores, or instead of them: why a row of the ablation was not run.
NOT_RUN = "not_run.txt"

# What one number belongs to.
_CELL = ["train_set", "test_set", "variant", "metric"]

_VALUES = ["measured", "sd_seeds", "ci_low", "ci_high", "published"]

# How far the means of folds differ from each other; a column only where there are any.
_FOLDS = "sd_folds"

_SETTING = ["seeds", "images", "empty_predictions", "image_size", "epochs", "selection"]

_RESTORE = "restore it with git"

_DISTANCES = ["hd95", "hd95_zero_if_empty", "hd95_original", "hd95_mm"]


def title_of(variant: str) -> str:
    """A variant's name for a reader; the name itself where the paper has no such row."""
    return VARIANTS[variant].title if variant in VARIANTS else variant


def read_scores(folder: Path) -> pd.DataFrame:
    """Reads and checks every scores file below a folder.

    Runs come by train set, test set, variant in the order of `VARIANTS`, and seed.

    Raises:
        InputError: there is no file; one is not as `ImageScore` says, names an image twice, or lies
            where its own columns say it does not belong; or the seeds of one system differ in
            setting or images. The sentence names the file.
    """
    folder = Path(folder)
    paths = sorted(folder.rglob("*.csv"))
    if not paths:
        raise InputError(f"{folder} holds no scores: run the evaluation first.")
    runs = {path: _read_run(path, folder) for path in paths}
    first_of: dict[tuple, Path] = {}
    for path, run in runs.items():
        system = tuple(run.loc[0, ["train_set", "test_set", "variant"]])
        first = first_of.setdefault(system, path)
        for column in ("image_size", "epochs", "selection", "data_hash"):
            ours, theirs = (table.loc[0, column] for table in (run, runs[first]))
            if ours != theirs:
                raise InputError(
                    f"{path} has {column} {ours} and {first} has {theirs}: a mean over seeds needs "
                    "one setting, so run both again or delete the older file."
                )
        if set(run["id"]) != set(runs[first]["id"]):
            raise InputError(
                f"{path} and {first} score different images: a mean over seeds needs the same "
                "ones, so run both again or delete the older file."
            )
    scores = pd.concat(runs.values(), ignore_index=True)
    return _sorted(scores, train_set=(), test_set=(), variant=VARIANTS, seed=())


def class_table(folder: Path, resamples: int, seed: int) -> pd.DataFrame:
    """Class by class, of every system in a folder of scores that has several: means over seeds.

    As `summarize_classes` gives them, of each image its mean over the seeds where it is scored; DSC
    and IoU in percent. It may have no row.
    """
    tables = []
    keys = ["train_set", "test_set", "variant"]
    scores = read_scores(folder)
    for key, rows in scores.groupby(keys, sort=False) if classes_in(scores) else ():
        # of several datasets together a run has columns of classes that are not its own
        rows = rows.dropna(axis=1, how="all")
        values = [f"{metric}:{name}" for name in classes_in(rows) for metric in METRICS]
        if not values:
            continue
        found = summarize_classes(rows.groupby("id")[values].mean(), resamples, seed)
        tables.append(found.assign(**dict(zip(keys, key, strict=True)), seeds=rows.seed.nunique()))
    if not tables:
        return pd.DataFrame(columns=[*keys, "class", "metric"])
    table = pd.concat(tables, ignore_index=True)
    shares = table["metric"].isin(["dsc", "iou"])
    table.loc[shares, ["mean", "sd", "ci_low", "ci_high"]] *= 100
    return table.set_index([*keys, "class", "metric"]).reset_index()


def read_not_run(folder: Path) -> Mapping[tuple[str, str], str]:
    """Why rows of the ablation were not run, by (dataset, variant)."""
    found = {}
    for path in sorted(Path(folder).glob(f"*/*/seed_*/{NOT_RUN}")):
        dataset, variant = path.parts[-4:-2]
        found[dataset, variant] = path.read_text(encoding="utf-8").strip()
    return found


def read_published(folder: Path) -> pd.DataFrame:
    """Reads the paper's tables 2 to 4 (`table2.csv` and so on), one `PublishedNumber` a row.

    The column origin holds the marks of `origins.csv`, apart by blanks; mostly it is empty.
    """
    paths = [Path(folder) / f"table{number}.csv" for number in (2, 3, 4)]
    tables = [read_table(path, PublishedNumber, _RESTORE) for path in paths]
    marks = read_table(Path(folder) / "origins.csv", Origin, _RESTORE).assign(table=2)
    cell = ["table", "system", "test_set", "metric"]
    origins = marks.groupby(cell)["mark"].agg(" ".join).rename("origin").reset_index()
    published = pd.concat(tables, ignore_index=True).merge(origins, on=cell, how="left")
    published["origin"] = published["origin"].fillna("")
    millions = pd.to_numeric(published["trainable_parameters_millions"])
    return published.assign(trainable_parameters_millions=millions)


def summarize_runs(scores: pd.DataFrame, resamples: int, seed: int) -> pd.DataFrame:
    """Each run alone: what `summarize` gives for it, and the number of its empty predictions."""
    return _each(scores, [*SYSTEM, "seed"], lambda run: summarize(run, resamples, seed))


def summarize_systems(
    scores: pd.DataFrame, resamples: int, seed: int, metrics: Iterable[str] = METRICS
) -> pd.DataFrame:
    """Each system over its seeds, a row a metric.

    Two kinds of uncertainty stand side by side. `sd_seeds` is how far trainings differ from each
    other (sample standard deviation, NaN for one seed); `ci_low` and `ci_high` are how far the mean
    could move with other test images. With folds, `sd_folds` is how far the means of folds differ,
    which is of both. `empty_predictions` counts images over all seeds. A metric that no image of a
    system has is left out.
    """

    def over_seeds(runs: pd.DataFrame) -> pd.DataFrame:
        known = [metric for metric in known_metrics(runs) if metric in metrics]
        means = runs.groupby("seed")[known].mean()
        # Seeds share their images, so this mean is that over the seeds' means.
        over_images = mean_over_seeds(runs, known)
        table = summarize(over_images, resamples, seed, known).drop(columns="sd")
        table.insert(2, "sd_seeds", table["metric"].map(means.std(ddof=1)))
        by_fold = summarize_folds(runs)
        if by_fold is not None:
            table[_FOLDS] = table["metric"].map(by_fold.loc["sd"])
        return table.assign(seeds=len(means))

    return _each(scores, SYSTEM, over_seeds)


def _each(
    scores: pd.DataFrame, names: list[str], summary: Callable[[pd.DataFrame], pd.DataFrame]
) -> pd.DataFrame:
    """The summaries of groups of scores, with what they are of and their empty predictions."""
    tables = []
    for key, group in scores.groupby(names, sort=False):
        table = summary(group).assign(empty_predictions=int(group["empty_prediction"].sum()))
        tables.append(table.assign(**dict(zip(names, key, strict=True))))
    return pd.concat(tables, ignore_index=True).set_index(names).reset_index()


def segmentation_table(systems: pd.DataFrame, published: pd.DataFrame) -> pd.DataFrame:
    """The paper's table 2 with what was measured: trained and tested on the same dataset.

    A row is a system and metric on a test set: first what ran, then what was to (see
    `of_this_run`), then what only the paper has, each in the paper's order and then by name. Shares
    are in percent, so their differences (measured less published) are in percentage points;
    distances are in pixels. Measured columns are NaN where nothing was run. The paper's HD95 stands
    at `hd95_zero_if_empty`; `hd95` is never published. The difference of a distance is NaN unless
    images had the paper's 224 pixels: pixels of another size are another unit. origin is of the
    paper's number, as in `read_published`.
    """
    measured = systems[systems["train_set"] == systems["test_set"]]
    return _beside_published(measured, published[published["table"] == 2])


def ablation_table(
    systems: pd.DataFrame,
    published: pd.DataFrame,
    not_run: Mapping[tuple[str, str], str] | None = None,
) -> pd.DataFrame:
    """The paper's table 4 with what was measured, of its variants, on any dataset.

    What `not_run` names (see `read_not_run`) is listed with its reason in the column reason, which
    is empty elsewhere; otherwise as `segmentation_table`.
    """
    paper = published[published["table"] == 4]
    measured = systems[
        (systems["train_set"] == systems["test_set"]) & systems["variant"].isin(paper["variant"])
    ]
    reasons = dict(not_run or {})
    planned = [(name, name, variant, metric) for name, variant in reasons for metric in METRICS]
    rows = measured.merge(pd.DataFrame(planned, columns=_CELL), on=_CELL, how="outer")
    return _beside_published(rows, paper, reasons).drop(columns="origin")


def generalization_table(systems: pd.DataFrame, published: pd.DataFrame) -> pd.DataFrame:
    """The paper's table 3 with what was measured: trained on one dataset, tested on another.

    Two in-domain scores stand beside it, as far as they were run at the same image size. That of
    the same system on the same test images, trained on that dataset's own training images
    (in_domain), says what training elsewhere costs; an external test set has none. That of the same
    model on the test images of the dataset that it was trained on (home) says what to expect of it
    there. A drop is in_domain against measured: positive is worse, for shares and for distances.
    Where one direction was run between two datasets with models of their own, the other is listed
    too. Otherwise as `segmentation_table`.
    """
    inside = systems[systems["train_set"] == systems["test_set"]]
    across = systems[systems["train_set"] != systems["test_set"]]
    forth = across[["train_set", "test_set", "variant"]].drop_duplicates()
    back = forth.rename(columns={"train_set": "test_set", "test_set": "train_set"})
    paper_across = published[published["table"] == 3]
    back = back[back["train_set"].isin([*systems["train_set"], *paper_across["train_set"]])]
    expected = pd.concat([forth, back]).drop_duplicates()
    expected = expected.merge(pd.DataFrame({"metric": METRICS}), how="cross")
    table = _beside_published(expected.merge(across, on=_CELL, how="left"), paper_across)
    inside = _in_reported_units(inside)
    paper = _as_ours(published[published["table"] == 2])
    for name, source, value, keys in (
        ("home", inside, "mean", ["train_set", "variant", "metric", "image_size"]),
        ("in_domain", inside, "mean", ["test_set", "variant", "metric", "image_size"]),
        ("published_in_domain", paper, "published", ["test_set", "system", "metric"]),
    ):
        values = source[[*keys, value]].rename(columns={value: name})
        table = table.merge(values, on=keys, how="left")
    sign = np.where(table["metric"].isin(_DISTANCES), -1, 1)
    table["drop"] = sign * (table["in_domain"] - table["measured"])
    table["published_drop"] = sign * (table["published_in_domain"] - table["published"])
    first = ["system", *_CELL, *_VALUES, "home", "in_domain", "published_in_domain"]
    return table[[*first, "drop", "published_drop", "difference", *_SETTING]]


def original_table(scores: pd.DataFrame, resamples: int, seed: int) -> pd.DataFrame:
    """What was measured at the original size of each image, wherever trained and tested.

    A row is a system and one of `ORIGINAL_METRICS`, as in `segmentation_table`, without the paper,
    which has no such numbers; images are those that have the metric. Test sets are left out whose
    images had the run's size all along: all but millimetres stands in the other tables.
    """

    def tells_more(tested: pd.DataFrame) -> bool:
        pairs = (("dsc", "dsc_original"), ("hd95", "hd95_original"))
        differ = (tested[one].sub(tested[other]).abs().gt(0).any() for one, other in pairs)
        return bool(tested["hd95_mm"].notna().any() or any(differ))

    told = scores.groupby("test_set", sort=False).filter(tells_more)
    told = told[told["dsc_original"].notna()]  # some may have been scored by a version before
    columns = ["system", *_CELL, "measured", "sd_seeds", "ci_low", "ci_high", *_SETTING]
    columns.remove("empty_predictions")  # at the run's size
    if told.empty:
        return pd.DataFrame(columns=columns)
    systems = summarize_systems(told, resamples, seed, ORIGINAL_METRICS)
    table = _in_reported_units(systems).rename(columns={"mean": "measured"})
    return table.assign(system=table["variant"].map(title_of))[columns]


def of_this_run(table: pd.DataFrame) -> pd.Series:
    """Which rows of a table are of systems that something here ran, or was to; others the paper's.

    The second kind are those with a reason, and those that stand in no table of the paper.
    """
    systems = table.groupby(["train_set", "test_set", "system"])
    was_to = systems["published"].transform("count").eq(0)
    if "reason" in table:
        was_to |= table["reason"] != ""
    return systems["measured"].transform("count").gt(0) | was_to


def beside_in_domain(
    scores: pd.DataFrame, card: ModelCard, test_set: str, folder: Path
) -> pd.DataFrame:
    """A model's scores on another source beside the in-domain ones, as far as these were run.

    A row each for the model across, the model at home, and the same variant with the same seed
    trained on the other source.
    """
    folder, runs = Path(folder), [(card.dataset, test_set, scores)]
    for name in (card.dataset, test_set):
        path = folder / name / card.variant / f"seed_{card.seed}" / f"{name}.csv"
        if path.is_file():
            runs.append((name, name, _read_run(path, folder)))
    rows = []
    for trained_on, tested_on, run in runs:
        about = {"trained_on": trained_on, "tested_on": tested_on, "images": len(run)}
        rows.append(about | run[["dsc", "iou", "hd95"]].mean().to_dict())
    return pd.DataFrame(rows)


def mark_significant(table: pd.DataFrame, comparisons: pd.DataFrame) -> pd.DataFrame:
    """Adds p_holm and significant ("*" or empty) to a table, from what `compare_variants` gives."""
    wanted = comparisons[[*_CELL, "p_holm", "significant"]]
    marked = table.merge(wanted, on=_CELL, how="left")
    marked["significant"] = np.where(marked["significant"].eq(True), "*", "")
    return marked


def _read_run(path: Path, folder: Path) -> pd.DataFrame:
    remedy = "run that evaluation again"
    run = read_table(path, ImageScore, remedy)
    for column in [*SYSTEM, "seed", "card", "data_hash"]:
        if run[column].nunique() > 1:
            raise InputError(f"{path} mixes several values of {column}: {remedy}.")
    first = run.iloc[0]
    place = Path(first["train_set"], first["variant"], f"seed_{first['seed']}")
    if path.relative_to(folder) != place / f"{first['test_set']}.csv":
        raise InputError(
            f"{path} holds the scores that belong in {place / first['test_set']}.csv: "
            "put it there or delete it."
        )
    return run.join(_scores_of_classes(path, remedy))


def _scores_of_classes(path: Path, remedy: str) -> pd.DataFrame:
    """The columns of several classes, such as dsc:cyst, empty where one is in neither mask."""
    table = pd.read_csv(path, usecols=lambda name: ":" in name)
    for name, column in table.items():
        most = 1 if name.startswith(("dsc:", "iou:")) else np.finfo(float).max
        values = pd.to_numeric(column, errors="coerce")
        if not (column.isna() | values.between(0, most)).all():
            raise InputError(f"{path} has what is no score in its column {name}: {remedy}.")
    return table


def _in_reported_units(systems: pd.DataFrame) -> pd.DataFrame:
    scale = np.where(systems["metric"].isin(_DISTANCES), 1.0, 100.0)
    values = systems[
        ["mean", "sd_seeds", "ci_low", "ci_high", *systems.columns.intersection([_FOLDS])]
    ]
    return systems.assign(**values.mul(scale, axis=0))


def _as_ours(published: pd.DataFrame) -> pd.DataFrame:
    """Numbers of the paper under our names of systems and metrics."""
    variant = published["variant"]
    titles = published["system"].where(variant == "", variant.map(title_of))
    ours = published.assign(system=titles).replace({"metric": {"hd95": PUBLISHED_HD95}})
    return ours.rename(columns={"value": "published"})


def _beside_published(
    systems: pd.DataFrame,
    published: pd.DataFrame,
    reasons: Mapping[tuple[str, str], str] | None = None,
) -> pd.DataFrame:
    paper = _as_ours(published)
    measured = _in_reported_units(systems).rename(columns={"mean": "measured"})
    measured = measured.assign(system=measured["variant"].map(title_of))
    cell = ["system", *_CELL]
    table = paper[[*cell, "published", "origin"]].merge(measured, on=cell, how="outer")
    table["origin"] = table["origin"].fillna("")
    difference = table["measured"] - table["published"]
    other_pixels = table["metric"].isin(_DISTANCES) & table["image_size"].ne(PUBLISHED_IMAGE_SIZE)
    table["difference"] = difference.mask(other_pixels)
    *counts, _ = _SETTING
    table[counts] = table[counts].astype("Int64")  # whole numbers that may be missing
    columns = ["system", *_CELL, *_VALUES, "difference", *_SETTING, "origin"]
    if _FOLDS in table:
        columns.insert(columns.index("sd_seeds") + 1, _FOLDS)
    if reasons is not None:
        rows = zip(table["train_set"], table["variant"], table["measured"].isna(), strict=True)
        table["reason"] = [reasons.get(row[:2], "") if row[2] else "" for row in rows]
        columns.append("reason")
    table = _sorted(
        table.assign(here=of_this_run(table), ran=table["measured"].notna()),
        here=[True],
        ran=[True],
        test_set=paper["test_set"],
        train_set=paper["train_set"],
        system=paper["system"],
        metric=["dsc", "iou", PUBLISHED_HD95, "hd95"],
    )
    return table[columns]


def _sorted(table: pd.DataFrame, **orders: Iterable[str]) -> pd.DataFrame:
    """By several columns, each by the values that are given in their order, then all others."""
    places = {}
    for column, known in orders.items():
        order = pd.unique(pd.Series([*known, *sorted(set(table[column]))], dtype=object))
        places[column] = pd.Categorical(table[column], order).codes
    order = pd.DataFrame(places).sort_values(list(orders), kind="stable").index
    return table.iloc[order].reset_index(drop=True)
