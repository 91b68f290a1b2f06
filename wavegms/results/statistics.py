"""From the scores of single images to means, intervals and differences between systems."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy import stats

from wavegms.data.manifest import leaking_in
from wavegms.errors import InputError

METRICS = ("dsc", "iou", "hd95", "hd95_zero_if_empty")

# Those at the original size of each image, which may be missing; HD95 also in millimetres.
ORIGINAL_METRICS = ("dsc_original", "iou_original", "hd95_original", "hd95_mm")

# What a mean over seeds belongs to. The last three are the setting.
SYSTEM = ["train_set", "test_set", "variant", "image_size", "epochs", "selection"]

# A difference is called significant where its p, corrected for all comparisons, is below this.
SIGNIFICANCE_LEVEL = 0.05


def summarize(
    scores: pd.DataFrame, resamples: int, seed: int, metrics: Sequence[str] = METRICS
) -> pd.DataFrame:
    """Mean, spread and 95 % bootstrap interval of the mean, over images, one row a metric.

    sd is the sample standard deviation, NaN for one image. The interval is the percentile one,
    which keeps inside the metric's range. Images that lack a metric do not count in it.
    """
    rows = []
    for metric in metrics:
        values = scores[metric].dropna().to_numpy(dtype=float)
        if len(values) > 1:
            rng = np.random.default_rng(seed)
            settings = {"n_resamples": resamples, "method": "percentile", "rng": rng}
            ends = stats.bootstrap((values,), np.mean, **settings).confidence_interval
            spread = values.std(ddof=1)
        else:
            ends, spread = (values.mean(), values.mean()), float("nan")
        rows.append((metric, values.mean(), spread, *ends, len(values)))
    return pd.DataFrame(rows, columns=["metric", "mean", "sd", "ci_low", "ci_high", "images"])


def summarize_folds(scores: pd.DataFrame) -> pd.DataFrame | None:
    """Number of images and mean of each fold, and the standard deviation of these means over folds.

    None where the scores are of less than two folds.
    """
    if "fold" not in scores or scores["fold"].nunique() < 2:
        return None
    folds = scores.groupby("fold")
    means = folds[list(METRICS)].mean()
    table = pd.concat([means, means.std(ddof=1).to_frame("sd").T])
    table.insert(0, "images", folds["id"].nunique().reindex(table.index).astype("Int64"))
    return table.rename_axis("fold")


def summarize_audited(
    scores: pd.DataFrame,
    pairs: pd.DataFrame,
    resamples: int,
    seed: int,
    metrics: Sequence[str] = METRICS,
) -> pd.DataFrame:
    """The summary of a test split with and without the images that leak from training.

    Its first column, images_used, is "all", "clean" (without a twin in train or val) or "leaking"
    (with one); the latter two are absent where they hold no image. Of the pairs of `audit_prepared`
    drop the kind "same group" to count duplicates only.
    """
    leaks = scores["id"].isin(leaking_in(pairs))
    parts = {"all": scores, "clean": scores[~leaks], "leaking": scores[leaks]}
    tables = {
        name: summarize(part, resamples, seed, metrics) for name, part in parts.items() if len(part)
    }
    table = pd.concat(tables, names=["images_used"])
    return table.reset_index("images_used").reset_index(drop=True)


def classes_in(scores: pd.DataFrame) -> list[str]:
    """The names of several classes that `score_split` scored, in their order; else none."""
    return [name.removeprefix("dsc:") for name in scores if name.startswith("dsc:")]


def summarize_classes(scores: pd.DataFrame, resamples: int, seed: int) -> pd.DataFrame:
    """`summarize` for each class, named by the first column, over the images where it is scored.

    One that no image has or was said to have has no row.
    """
    tables = {}
    for name in classes_in(scores):
        own = scores[[f"{metric}:{name}" for metric in METRICS]].dropna()
        own.columns = list(METRICS)
        if len(own):
            tables[name] = summarize(own, resamples, seed)
    if not tables:
        return pd.DataFrame(columns=["class", "metric"])
    return pd.concat(tables, names=["class"]).reset_index("class").reset_index(drop=True)


def known_metrics(scores: pd.DataFrame) -> list[str]:
    """`METRICS`, and of `ORIGINAL_METRICS` those that some image has."""
    known = scores.reindex(columns=list(ORIGINAL_METRICS)).notna().any()
    return [*METRICS, *known.index[known]]


def mean_over_seeds(scores: pd.DataFrame, metrics: Sequence[str] = METRICS) -> pd.DataFrame:
    """The metrics of each image of each system (`SYSTEM`), averaged over the seeds."""
    groups = scores.groupby([*SYSTEM, "id"], sort=False)
    return groups[list(metrics)].mean().reset_index()


def paired_differences(
    scores: pd.DataFrame, variant: str, reference: str, metric: str
) -> pd.Series:
    """The score of one variant less that of another, by image id, sorted; means over their seeds.

    Both need scores of the same images at the same size.
    """
    sides = []
    for name in (variant, reference):
        rows = mean_over_seeds(scores[scores["variant"] == name], [metric])
        if rows.empty:
            raise InputError(
                f"{variant} cannot be compared with {reference}: there are no scores of {name}, "
                "so evaluate it first."
            )
        sides.append(rows.set_index("id"))
    ours, theirs = sides
    strays = ours.index.symmetric_difference(theirs.index)
    if len(strays):
        raise InputError(
            f"{variant} and {reference} were not scored on the same images ({strays[0]} is on one "
            "side only): evaluate both again on the same test split."
        )
    sizes = ours["image_size"].iloc[0], theirs["image_size"].iloc[0]
    if sizes[0] != sizes[1]:
        raise InputError(
            f"{variant} was scored at {sizes[0]} pixels and {reference} at {sizes[1]}: "
            "evaluate both at the same image_size."
        )
    # Averaging leaves rounding errors, which would pass for differences and break ties.
    return (ours[metric] - theirs[metric]).round(12).sort_index().rename("difference")


def paired_test(differences: pd.Series, resamples: int, seed: int) -> dict[str, float]:
    """Mean of paired differences, its interval, and how probable they are by chance alone.

    The interval is that of `summarize`. The test is Wilcoxon's signed-rank test, two-sided; p is 1
    if all differences are 0. It weighs ranks, while mean and interval weigh the values, so in
    skewed data the two can point in different directions.
    """
    row = summarize(differences.to_frame("difference"), resamples, seed, ["difference"]).iloc[0]
    found = {"images": len(differences), "mean_difference": row["mean"]}
    p = float(stats.wilcoxon(differences).pvalue) if differences.any() else 1.0
    return found | {"ci_low": row["ci_low"], "ci_high": row["ci_high"], "p": p}


def holm(p_values: Sequence[float]) -> np.ndarray:
    """Corrects p-values for their number by the step-down method of Holm (1979).

    The k-th smallest of n is multiplied by n - k + 1; none becomes smaller than the one before it,
    nor larger than 1.
    """
    p_values = np.asarray(p_values, dtype=float)
    order = np.argsort(p_values)
    steps = p_values[order] * np.arange(len(p_values), 0, -1)
    corrected = np.empty_like(p_values)
    corrected[order] = np.minimum(np.maximum.accumulate(steps), 1)
    return corrected


def compare_variants(
    scores: pd.DataFrame,
    reference: str,
    *,
    resamples: int,
    seed: int,
    metrics: Sequence[str] = ("dsc", "hd95"),
) -> pd.DataFrame:
    """Compares every variant with one, on each pair of train and test set where both were scored.

    One row for each train set, test set, metric and variant; differences are variant less
    reference, in the metric's unit. The correction is for all rows returned, so hand over the
    scores of one table at a time. IoU ranks images as Dice does and would only count twice.
    """
    keys = ["train_set", "test_set", "metric", "variant", "reference"]
    keys += ["variant_seeds", "reference_seeds"]
    rows = []
    for (train_set, test_set), group in scores.groupby(["train_set", "test_set"], sort=False):
        seeds = group.groupby("variant", sort=False)["seed"].nunique()
        if reference not in seeds:
            continue
        for metric in metrics:
            for variant in seeds.index.drop(reference):
                differences = paired_differences(group, variant, reference, metric)
                about = (train_set, test_set, metric, variant, reference)
                about = dict(zip(keys, (*about, *seeds[[variant, reference]]), strict=True))
                rows.append(about | paired_test(differences, resamples, seed))
    found = ["images", "mean_difference", "ci_low", "ci_high", "p"]
    table = pd.DataFrame(rows, columns=[*keys, *found])
    table["p_holm"] = holm(table["p"])
    table["significant"] = table["p_holm"] < SIGNIFICANCE_LEVEL
    return table
