"""From per-image scores and the paper's numbers to the tables of the results.

Scores lie in `<folder>/<train_set>/<variant>/seed_<seed>/<test_set>.csv`, one row an image. Every
table is made from these files and from the paper's tables as data, and from nothing else.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from wavegms.errors import InputError, first_line
from wavegms.results.statistics import METRICS, SYSTEM, mean_over_seeds, summarize
from wavegms.training.card import ModelCard
from wavegms.variants import VARIANTS

# What each column of a scores file holds.
SCORE_COLUMNS = {
    "train_set": "dataset the network was trained on",
    "test_set": "dataset the image comes from",
    "variant": "name of the network",
    "seed": "seed of the run",
    "image_size": "side of the images, pixels",
    "epochs": "number of training epochs",
    "selection": "how the checkpoint was chosen, see params.yaml",
    "card": "SHA-256 of the model's card.json",
    "id": "name of the image",
    "label": "class, empty where the dataset has none",
    "dsc": "Dice coefficient, 0 to 1",
    "iou": "intersection over union, 0 to 1",
    "hd95": "95 % Hausdorff distance, pixels; the image diagonal where one mask is empty",
    "hd95_zero_if_empty": "the same, 0 where a mask is empty",
    "empty_prediction": "True where the predicted mask has no pixel",
    "true_area": "share of the image that is foreground, 0 to 1",
    "predicted_area": "share of the image that is predicted as foreground, 0 to 1",
    "data_hash": "SHA-256 of manifest.csv of the prepared test_set",
}

# fmt: off
PUBLISHED_COLUMNS = [
    "table", "system", "type", "variant", "train_set", "test_set", "metric", "value",
    "trainable_parameters_millions", "note",
]

# fmt: on
# The paper's HD95 follows the reference code, so this is the column it is compared with.
PUBLISHED_HD95 = "hd95_zero_if_empty"

# Side of the images that the paper's distances are measured on, pixels (section 3.1).
PUBLISHED_IMAGE_SIZE = 224

_SHARES = ["dsc", "iou", "true_area", "predicted_area"]

_DISTANCES = ["hd95", "hd95_zero_if_empty"]

# What one number belongs to.
_CELL = ["train_set", "test_set", "variant", "metric"]

_MEASURED = ["mean", "sd_seeds", "ci_low", "ci_high"]

_SETTING = ["seeds", "images", "empty_predictions", "image_size", "epochs", "selection"]


def title_of(variant: str) -> str:
    """A variant's name for a reader; the name itself where the paper has no such row."""
    return VARIANTS[variant].title if variant in VARIANTS else variant


def read_scores(folder: Path) -> pd.DataFrame:
    """Reads and checks every scores file below a folder.

    Args:
        folder: the folder that holds `<train_set>/<variant>/seed_<seed>/<test_set>.csv`.

    Returns:
        One row for each image of each run, with the columns of `SCORE_COLUMNS`; runs by train set,
        test set, variant in the order of `VARIANTS`, and seed.

    Raises:
        InputError: there is no file; one lacks a column, has no row, names an image twice, holds an
            impossible value, or lies where its own columns say it does not belong; or the seeds
            of one system differ in setting or images. The sentence names the file.
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
            ours, theirs = run.loc[0, column], runs[first].loc[0, column]
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
    places = scores[["train_set", "test_set", "seed"]].assign(
        variant=_rank(scores["variant"], VARIANTS)
    )
    order = places.sort_values(["train_set", "test_set", "variant", "seed"], kind="stable").index
    return scores.loc[order].reset_index(drop=True)


def summarize_runs(scores: pd.DataFrame, resamples: int, seed: int) -> pd.DataFrame:
    """Each run alone: mean, spread over images, and interval.

    Args:
        scores: what `read_scores` gives.
        resamples: number of bootstrap resamples.
        seed: of the resampling.

    Returns:
        One row for each run and metric: the columns of `SYSTEM`, seed, those of
        `evaluation.summarize`, and empty_predictions (a number of images).
    """
    tables = []
    for key, group in scores.groupby([*SYSTEM, "seed"], sort=False):
        table = summarize(group, resamples, seed)
        table["empty_predictions"] = int(group["empty_prediction"].sum())
        tables.append(_with_key([*SYSTEM, "seed"], key, table))
    return pd.concat(tables, ignore_index=True)


def summarize_systems(scores: pd.DataFrame, resamples: int, seed: int) -> pd.DataFrame:
    """Each system over its seeds.

    Two kinds of uncertainty stand side by side. `sd_seeds` is how far trainings differ from each
    other; `ci_low` and `ci_high` are how far the mean could move with other test images.

    Args:
        scores: what `read_scores` gives.
        resamples: number of bootstrap resamples of the images.
        seed: of the resampling.

    Returns:
        One row for each system and metric: the columns of `SYSTEM`, metric, mean (over the seeds'
        means), sd_seeds (sample standard deviation of these; NaN for one seed), ci_low and ci_high
        (95 %, over images averaged over seeds), images, seeds, and empty_predictions (a number of
        images, over all seeds).
    """
    tables = []
    for key, group in scores.groupby(SYSTEM, sort=False):
        means = group.groupby("seed")[list(METRICS)].mean()
        # Seeds share their images, so this mean is that over the seeds' means.
        table = summarize(mean_over_seeds(group), resamples, seed).drop(columns="sd")
        table.insert(2, "sd_seeds", table["metric"].map(means.std(ddof=1)))
        table["seeds"] = len(means)
        table["empty_predictions"] = int(group["empty_prediction"].sum())
        tables.append(_with_key(SYSTEM, key, table))
    return pd.concat(tables, ignore_index=True)


def read_published(folder: Path) -> pd.DataFrame:
    """Reads the paper's tables 2 to 4.

    Args:
        folder: the folder with `table2.csv`, `table3.csv` and `table4.csv`.

    Returns:
        One row for each printed number: table, system, type, variant (empty where we have none),
        train_set, test_set, metric (dsc, iou or hd95), value (percent for dsc and iou, pixels for
        hd95), trainable_parameters_millions (NaN where not printed), note.

    Raises:
        InputError: a file is missing, cannot be read or lacks a column.
    """
    tables = []
    for number in (2, 3, 4):
        path = Path(folder) / f"table{number}.csv"
        tables.append(_read_table(path, PUBLISHED_COLUMNS, "restore it with git"))
    published = pd.concat(tables, ignore_index=True)
    published["table"] = published["table"].astype(int)
    for column in ("value", "trainable_parameters_millions"):
        published[column] = pd.to_numeric(published[column])
    return published


def segmentation_table(systems: pd.DataFrame, published: pd.DataFrame) -> pd.DataFrame:
    """The paper's table 2 with what was measured: trained and tested on the same dataset.

    All rows of the paper are there, whether measured or not, and all measured systems, whether in
    the paper's table or not.

    Args:
        systems: what `summarize_systems` gives.
        published: what `read_published` gives.

    Returns:
        One row for each test set, system and metric, in the paper's order and then by name:
        system (title), variant, train_set, test_set, metric; measured, sd_seeds, ci_low, ci_high,
        published, difference (measured less published); seeds, images, empty_predictions,
        image_size, epochs, selection.

        Shares are in percent, so their differences are in percentage points; distances are in
        pixels. Measured columns are NaN where nothing was run, sd_seeds where only one seed was.
        The paper's HD95 stands at `hd95_zero_if_empty`; `hd95` is never published. The difference
        of a distance is NaN unless images had the paper's 224 pixels: pixels of another size
        are another unit.
    """
    paper = published[published["table"] == 2]
    measured = systems[systems["train_set"] == systems["test_set"]]
    return _beside_published(measured, paper)


def ablation_table(
    systems: pd.DataFrame,
    published: pd.DataFrame,
    not_run: Mapping[tuple[str, str], str] | None = None,
) -> pd.DataFrame:
    """The paper's table 4 with what was measured; see :func:`segmentation_table`.

    It has the paper's rows, and those of the same variants on any other dataset.

    Args:
        systems: what `summarize_systems` gives.
        published: what `read_published` gives.
        not_run: by (dataset, variant) why a row was not run. Such a row is listed too, with the
            reason in the column reason, which is empty elsewhere.
    """
    paper = published[published["table"] == 4]
    measured = systems[
        (systems["train_set"] == systems["test_set"]) & systems["variant"].isin(paper["variant"])
    ]
    reasons = dict(not_run or {})
    planned = pd.DataFrame(
        [(name, name, variant, metric) for name, variant in reasons for metric in METRICS],
        columns=_CELL,
    )
    measured = measured.merge(planned, on=_CELL, how="outer")
    table = _beside_published(measured, paper)
    rows = zip(table["train_set"], table["variant"], table["measured"].isna(), strict=True)
    table["reason"] = [
        reasons.get((dataset, variant), "") if absent else "" for dataset, variant, absent in rows
    ]
    return table


def generalization_table(systems: pd.DataFrame, published: pd.DataFrame) -> pd.DataFrame:
    """The paper's table 3 with what was measured: trained on one dataset, tested on another.

    Two in-domain scores stand beside it. That of the same system on the same test images, trained
    on that dataset's own training images, says what training elsewhere costs; an external test set
    has none. That of the same model at home, on the test images of the dataset that it was trained
    on, says what to expect of it there. Where one direction was run between two datasets with
    models of their own, the other is listed too.

    Args:
        systems: what `summarize_systems` gives.
        published: what `read_published` gives; in-domain numbers are those of its table 2.

    Returns:
        The columns of :func:`segmentation_table`, and after `published`: home, in_domain,
        published_in_domain, drop and published_drop. A drop is how much is lost by training
        elsewhere, in_domain against measured: positive is worse, both for shares (in percentage
        points) and for distances. home and in_domain are NaN where they were not run at the same
        image size.
    """
    inside = systems[systems["train_set"] == systems["test_set"]]
    across = systems[systems["train_set"] != systems["test_set"]]
    forth = across[["train_set", "test_set", "variant"]].drop_duplicates()
    back = forth.rename(columns={"train_set": "test_set", "test_set": "train_set"})
    paper_across = published[published["table"] == 3]
    back = back[back["train_set"].isin([*systems["train_set"], *paper_across["train_set"]])]
    expected = (
        pd.concat([forth, back])
        .drop_duplicates()
        .merge(pd.DataFrame({"metric": METRICS}), how="cross")
    )
    across = expected.merge(across, on=_CELL, how="left")
    table = _beside_published(across, paper_across)

    home = _in_reported_units(inside).rename(columns={"mean": "home"})
    home_keys = ["train_set", "variant", "metric", "image_size"]
    table = table.merge(home[[*home_keys, "home"]], on=home_keys, how="left")
    own = _in_reported_units(inside).rename(columns={"mean": "in_domain"})
    own_keys = ["test_set", "variant", "metric", "image_size"]
    table = table.merge(own[[*own_keys, "in_domain"]], on=own_keys, how="left")
    paper = _as_our_metrics(published[published["table"] == 2])
    paper = paper.assign(system=_titles(paper)).rename(columns={"value": "published_in_domain"})
    paper_keys = ["test_set", "system", "metric"]
    table = table.merge(paper[[*paper_keys, "published_in_domain"]], on=paper_keys, how="left")
    sign = np.where(table["metric"].isin(_DISTANCES), -1, 1)
    table["drop"] = sign * (table["in_domain"] - table["measured"])
    table["published_drop"] = sign * (table["published_in_domain"] - table["published"])
    added = ["home", "in_domain", "published_in_domain", "drop", "published_drop"]
    rest = [column for column in table if column not in added]
    at = rest.index("published") + 1
    return table[rest[:at] + added + rest[at:]]


def beside_in_domain(
    scores: pd.DataFrame, card: ModelCard, test_set: str, folder: Path
) -> pd.DataFrame:
    """A model's scores on another source beside the in-domain ones, as far as these were run.

    Args:
        scores: of `score_split`, on the other source.
        card: of the model.
        test_set: name of the other source.
        folder: where score files lie, see `read_scores`.

    Returns:
        One row each for the model across, the model at home, and the same variant with the same
        seed trained on the other source: trained_on, tested_on, images, and the mean dsc, iou and
        hd95.
    """
    rows = [(card.dataset, test_set, scores)]
    for name in (card.dataset, test_set):
        path = Path(folder) / name / card.variant / f"seed_{card.seed}" / f"{name}.csv"
        if path.is_file():
            rows.append((name, name, _read_run(path, Path(folder))))
    return pd.DataFrame(
        [
            {
                "trained_on": trained_on,
                "tested_on": tested_on,
                "images": len(table),
                **{metric: table[metric].mean() for metric in ("dsc", "iou", "hd95")},
            }
            for trained_on, tested_on, table in rows
        ]
    )


def mark_significant(table: pd.DataFrame, comparisons: pd.DataFrame) -> pd.DataFrame:
    """Adds to a table which systems differ from the reference.

    Args:
        table: one of the three tables above.
        comparisons: what `comparison.compare_variants` gives for the same scores.

    Returns:
        The table with p_holm (NaN where nothing was compared) and significant ("*" or empty).
    """
    wanted = comparisons[[*_CELL, "p_holm", "significant"]]
    marked = table.merge(wanted, on=_CELL, how="left")
    marked["significant"] = np.where(marked["significant"].eq(True), "*", "")
    return marked


def _read_run(path: Path, folder: Path) -> pd.DataFrame:
    remedy = "run that evaluation again"
    run = _read_table(path, list(SCORE_COLUMNS), remedy)
    try:
        for column in ("seed", "image_size", "epochs"):
            run[column] = run[column].astype(int)
        for column in [*_SHARES, *_DISTANCES]:
            run[column] = run[column].astype(float)
    except (OverflowError, ValueError) as error:
        raise InputError(f"{path} has a {column} that is no number: {remedy}.") from error
    for column in _SHARES:
        if not run[column].between(0, 1).all():
            raise InputError(f"{path} has a {column} outside 0 to 1: {remedy}.")
    for column in _DISTANCES:
        if not run[column].between(0, np.inf, inclusive="left").all():
            raise InputError(f"{path} has a {column} that is no distance: {remedy}.")
    if not run["empty_prediction"].isin(["True", "False"]).all():
        raise InputError(f"{path} has an empty_prediction other than True or False: {remedy}.")
    run["empty_prediction"] = run["empty_prediction"] == "True"
    twice = run["id"][run["id"].duplicated()]
    if not twice.empty:
        raise InputError(f"{path} lists {twice.iloc[0]} twice: {remedy}.")
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
    return run[list(SCORE_COLUMNS)]


def _read_table(path: Path, columns: list[str], remedy: str) -> pd.DataFrame:
    try:
        # An id such as 000001 or NA is a text.
        table = pd.read_csv(path, dtype=str, keep_default_na=False, encoding="utf-8")
    except (ValueError, OSError) as error:
        raise InputError(f"{path} cannot be read ({first_line(error)}): {remedy}.") from error
    missing = [column for column in columns if column not in table]
    if missing:
        raise InputError(f"{path} lacks the column {missing[0]}: {remedy}.")
    if table.empty:
        raise InputError(f"{path} has no row: {remedy}.")
    return table


def _with_key(names: list[str], values: tuple, table: pd.DataFrame) -> pd.DataFrame:
    return table.assign(**dict(zip(names, values, strict=True)))[[*names, *table.columns]]


def _in_reported_units(systems: pd.DataFrame) -> pd.DataFrame:
    scale = np.where(systems["metric"].isin(_SHARES), 100.0, 1.0)
    return systems.assign(**{column: systems[column] * scale for column in _MEASURED})


def _as_our_metrics(published: pd.DataFrame) -> pd.DataFrame:
    return published.replace({"metric": {"hd95": PUBLISHED_HD95}})


def _titles(published: pd.DataFrame) -> list[str]:
    pairs = zip(published["variant"], published["system"], strict=True)
    return [title_of(variant) if variant else system for variant, system in pairs]


def _beside_published(systems: pd.DataFrame, published: pd.DataFrame) -> pd.DataFrame:
    paper = _as_our_metrics(published)
    paper = paper.assign(system=_titles(paper)).rename(columns={"value": "published"})
    measured = _in_reported_units(systems).rename(columns={"mean": "measured"})
    measured = measured.assign(system=[title_of(variant) for variant in measured["variant"]])
    table = paper[["system", *_CELL, "published"]].merge(
        measured, on=["system", *_CELL], how="outer"
    )
    difference = table["measured"] - table["published"]
    other_pixels = table["metric"].isin(_DISTANCES) & table["image_size"].ne(PUBLISHED_IMAGE_SIZE)
    table["difference"] = difference.mask(other_pixels)
    for column in ("seeds", "images", "empty_predictions", "image_size", "epochs"):
        table[column] = table[column].astype("Int64")  # whole numbers that may be missing
    order = pd.DataFrame(
        {
            "test_set": _rank(table["test_set"], paper["test_set"]),
            "train_set": _rank(table["train_set"], paper["train_set"]),
            "system": _rank(table["system"], paper["system"]),
            "metric": _rank(table["metric"], ["dsc", "iou", PUBLISHED_HD95, "hd95"]),
        }
    ).sort_values(["test_set", "train_set", "system", "metric"], kind="stable")
    measured_columns = ["measured", *_MEASURED[1:], "published", "difference"]
    table = table.loc[order.index, ["system", *_CELL, *measured_columns, *_SETTING]]
    return table.reset_index(drop=True)


def _rank(values: pd.Series, known: Iterable[str]) -> pd.Series:
    """The place of each value: the known ones in their order, then the others by name."""
    order = list(dict.fromkeys(known))
    order += sorted(set(values) - set(order))
    return values.map({value: place for place, value in enumerate(order)})
