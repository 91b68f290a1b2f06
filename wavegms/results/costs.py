"""What a system's accuracy costs: DSC beside operations, time and memory, and the Pareto front."""

from pathlib import Path

import numpy as np
import pandas as pd
from pydantic import BaseModel

from wavegms.files import read_table
from wavegms.variants import VARIANTS, Decoder

# Column, and what it is of; of all less is better.
COSTS = {
    "inference_gflop": "operations of a prediction, GFLOP",
    "step_seconds": "training step, seconds for each image",
    "step_gib": "memory of a training step, GiB",
}

_AGAIN = "run 07_efficiency again"

# How `write_scores` says it, where it was not exact.
_DECODERS = r"trained with the (?P<trained>\w+) and scored with the (?P<scored>\w+) decoder"


class _Size(BaseModel):
    variant: str
    decoder: Decoder = "exact"
    trainable_parameters: int
    image_size: int  # pixels, of inference_gflop
    inference_gflop: float


class _Point(BaseModel):
    variant: str
    decoder: Decoder = "exact"
    image_size: int
    batch_size: int
    device: str
    base_bytes: str  # these three are empty where memory did not suffice
    peak_bytes: str
    image_seconds: str


def beside_costs(segmentation: pd.DataFrame, efficiency: Path) -> pd.DataFrame:
    """DSC of the systems of `segmentation_table` that ran, beside what `07_efficiency` measured.

    One row a system and dataset: test_set, variant, system, measured, ci_low and ci_high (percent),
    trainable_parameters, the columns of `COSTS`, batch_size, cost_size (pixels), device. A step is
    that of the decoder it was trained with, a prediction that of the decoder it was scored with.
    Time and memory are those at the largest batch that all of them were measured with, memory
    without what the process held before. What was not measured is NaN; all is, if there is no such
    folder.
    """
    rows = segmentation[(segmentation["metric"] == "dsc") & segmentation["measured"].notna()]
    shown = ["test_set", "variant", "system", "measured", "ci_low", "ci_high"]
    table = rows[shown].reset_index(drop=True)
    sizes, points = Path(efficiency) / "sizes.csv", Path(efficiency) / "measurements.csv"
    if not (sizes.is_file() and points.is_file()):
        return table.assign(**dict.fromkeys(["trainable_parameters", *COSTS], np.nan))
    counted = read_table(sizes, _Size, _AGAIN).drop(columns="image_size")
    measured = read_table(points, _Point, _AGAIN)
    numbers = ["base_bytes", "peak_bytes", "image_seconds"]
    measured[numbers] = measured[numbers].apply(pd.to_numeric)
    measured = measured.dropna()
    ours = measured[measured["variant"].isin(table["variant"])]
    batches = ours.groupby(["variant", "decoder"])["batch_size"].agg(set).tolist()
    common = set.intersection(*batches) if batches else set()
    at = ours[ours["batch_size"] == max(common, default=0)]
    at = at.assign(step_gib=(at["peak_bytes"] - at["base_bytes"]) / 2**30)
    names = {"decoder": "trained", "image_seconds": "step_seconds", "image_size": "cost_size"}
    costs = ["step_seconds", "step_gib", "batch_size", "cost_size", "device"]
    at = at.rename(columns=names)[["variant", "trained", *costs]]
    counted = counted.rename(columns={"decoder": "scored"})
    table = table.join(_decoders(rows.reset_index(drop=True)))
    table = table.merge(counted, on=["variant", "scored"], how="left")
    table = table.merge(at, on=["variant", "trained"], how="left")
    return table.drop(columns=["trained", "scored"])


def _decoders(rows: pd.DataFrame) -> pd.DataFrame:
    """What each system was trained and scored with; exact where it has no choice."""
    said = rows["selection"].astype(str).str.extract(_DECODERS).fillna("exact")
    several = {name for name, spec in VARIANTS.items() if spec.several_decoders}
    said.loc[~rows["variant"].isin(several)] = "exact"
    return said


def on_front(cost: pd.Series, value: pd.Series) -> pd.Series:
    """Which are on the Pareto front: no other is better in one of the two and as good in the other.

    Of equal ones all are; where a number is missing, it is not.
    """
    costs, values = cost.to_numpy(float), value.to_numpy(float)
    no_worse = (costs[None] <= costs[:, None]) & (values[None] >= values[:, None])
    better = (costs[None] < costs[:, None]) | (values[None] > values[:, None])
    known = ~(np.isnan(costs) | np.isnan(values))
    return pd.Series(known & ~(no_worse & better).any(axis=1), index=cost.index)
