"""What a network costs, as tables: parameters, operations, time and memory of a training step.

The paper's promise is training with large batches on cheap cards (its Table 1, and the parameter
column of Table 2). Counts are exact and depend on no machine; time and memory are measured, see
`wavegms.costs.measure`.
"""

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from pydantic import BaseModel
from tqdm import tqdm

from wavegms.costs.cases import Workload, form_with, systems_of
from wavegms.costs.harness import MEASURES, apart, measured_points
from wavegms.errors import InputError
from wavegms.files import read_table
from wavegms.variants import VARIANTS, require_side, variant_spec

GIB = 2**30

_REFERENCE = "wave_gms"

_TABLE_1 = ["Model", "Number", "GPU (VRAM)", "Batch size", "Parameters", "GFLOP", "From"]

# What each column of the measurements holds.
MEASUREMENT_COLUMNS = {
    "variant": "name of the network",
    "decoder": "exact or fast, see training.decoder",
    "system": "its title",
    "image_size": "side of the images, pixels",
    "batch_size": "images in a step",
    "device": "GPU or CPU it was measured on",
    "threads": "threads of the CPU",
    "memory": "what peak_bytes is of: the GPU, or the process",
    "base_bytes": "memory before the network was built",
    "peak_bytes": "the most memory so far; nothing is subtracted",
    "allocated_bytes": "of it, what tensors took; on a GPU only",
    "step_seconds": "median time of a step",
    "image_seconds": "the same for each image",
    "note": "why there are no numbers, if so",
}


def count_sizes(variants: Sequence[str], image_size: int, fast: bool = False) -> pd.DataFrame:
    """Parameters, and floating-point operations for one image of `image_size` pixels a side.

    One row a variant, if `fast` two where a fast decoder can be chosen: variant, decoder, system
    (its title), trainable_parameters, total_parameters (all frozen parts included), image_size,
    training_gflop (forward, loss and backward) and inference_gflop, in units of 10^9.
    """
    _require(variants, image_size)
    return pd.DataFrame(apart(f"{MEASURES}:count_sizes", list(variants), image_size, fast))


def compare_inference(image_size: int, batch_sizes: Sequence[int], repeats: int) -> pd.DataFrame:
    """Predictions of Wave-GMS by torch and by ONNX Runtime, see `measure.compare_inference`."""
    rows = apart(f"{MEASURES}:compare_inference", image_size, list(batch_sizes), repeats)
    return pd.DataFrame(rows)


def measure(
    variants: Sequence[str],
    image_size: int,
    batch_sizes: Sequence[int],
    steps: int,
    task: Literal["train", "predict"] = "train",
    fast: bool = False,
) -> pd.DataFrame:
    """Time and memory of a training step or a prediction against the batch size, on this machine.

    `steps` are timed at each batch size, after one that is not. One row for each variant, with
    `fast` as in `count_sizes`, and batch size, with the columns of `MEASUREMENT_COLUMNS`. Where
    memory did not suffice, the row has a note and no numbers, and larger batches have no row.
    """
    _require(variants, image_size)
    rows, systems = [], list(systems_of(variants, fast))
    with tqdm(total=len(systems) * len(batch_sizes), desc="measuring", unit="point") as bar:
        for place, system in enumerate(systems, start=1):
            bar.set_postfix_str(system["system"])
            work = Workload(system["variant"], task, form_with(system["decoder"]))
            for point in measured_points(work, image_size, batch_sizes, steps):
                rows.append(system | {"image_size": image_size} | point)
                bar.update()
            bar.update(place * len(batch_sizes) - bar.n)
    points = pd.DataFrame(rows).reindex(columns=list(MEASUREMENT_COLUMNS))
    if points["step_seconds"].isna().all():
        raise InputError(
            f"not even {batch_sizes[0]} image(s) of {image_size} pixels fit the memory of this "
            "machine: lower efficiency.batch_sizes or efficiency.image_size"
        )
    points["image_seconds"] = points["step_seconds"] / points["batch_size"]
    whole = ["threads", "base_bytes", "peak_bytes", "allocated_bytes"]
    points[whole] = points[whole].astype("Int64")  # numbers that may be missing
    words = ["device", "memory", "note"]
    points[words] = points[words].astype(object).fillna("")
    return points


def _require(variants: Sequence[str], image_size: int) -> None:
    for name in variants:
        require_side(name, image_size, "efficiency.image_size")


def largest_batches(points: pd.DataFrame, cards: Sequence[int]) -> pd.DataFrame:
    """The largest batch that fits a card of so many GiB, which is what makers call GB.

    It is read off a straight line through the peaks of `measure`. One row a system and card:
    variant, decoder, system, image_size, memory (what was measured), card (GiB), batch_size (0 if
    not even one image fits; missing where memory did not grow with the batch, or with a single
    point), extrapolated (whether it is beyond what was measured).
    """
    names = ["variant", "decoder", "system", "image_size", "memory"]
    rows = []
    for key, group in points.dropna(subset="peak_bytes").groupby(names, sort=False):
        line = _line(group)
        for card in cards:
            batch = pd.NA if line is None else _most_images(card * GIB, *line)
            beyond = line is not None and batch > group["batch_size"].max()
            rows.append((*key, card, batch, beyond))
    table = pd.DataFrame(rows, columns=[*names, "card", "batch_size", "extrapolated"])
    return table.astype({"batch_size": "Int64"})


def compare_costs(points: pd.DataFrame) -> pd.DataFrame:
    """Time and memory of each system as multiples of Wave-GMS, at the largest batch all ran with.

    Wave-GMS decodes exactly. One row a system: system, variant, batch_size, time (of a step),
    memory (peak, all of it) and memory_of_step (what the peak exceeds the process before the
    network was built).
    """
    measured = points.dropna(subset="peak_bytes")
    if _REFERENCE not in set(measured["variant"]):
        raise InputError(f"efficiency.variants lacks {_REFERENCE}, which others are compared with")
    common = set.intersection(*measured.groupby("system")["batch_size"].agg(set))
    if not common:
        raise InputError("no batch size was measured for all of efficiency.variants: add a smaller")
    rows = measured[measured["batch_size"] == max(common)].set_index("system")
    costs = {
        "time": rows["step_seconds"],
        "memory": rows["peak_bytes"].astype(float),
        "memory_of_step": (rows["peak_bytes"] - rows["base_bytes"]).astype(float),
    }
    reference = variant_spec(_REFERENCE).title
    ratios = {name: cost / cost[reference] for name, cost in costs.items()}
    return rows[["variant", "batch_size"]].assign(**ratios).reset_index()


class Need(BaseModel):
    """What a system of Table 1 needs, by others: a row of `needs.csv`; numbers may be empty.

    Of counted ones: the official code's operations for one sample, a multiply-add as two, in 10^9,
    and the tensors of a training step in float32, without what a driver and cuDNN take beside them.
    """

    system: str  # as printed in Table 1
    kind: Literal["counted", "reported"]
    setting: str
    parameters: str
    forward_gflop: str
    gib_at_batch_1: str
    gib_per_sample: str  # of each further one
    gpu: str  # of reported ones
    source: str


def beside_table_1(largest: pd.DataFrame, sizes: pd.DataFrame, folder: Path) -> pd.DataFrame:
    """What each system of the paper's Table 1 needs, and those that ran here.

    Published (`table1.csv` in the folder), counted or reported by others (`needs.csv`), and what
    `largest_batches` found here, with the counts of `count_sizes`: the column Number says which.
    Batch sizes beyond the published are the most that fits cards of so many GB. A system that could
    be measured here and was not has a row that says so.
    """
    path = Path(folder) / "table1.csv"
    try:
        paper = pd.read_csv(path, dtype=str, keep_default_na=False)
        published = paper[["system", "variant", "gpu", "vram_gb", "batch_size"]]
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"{path} cannot be read ({error}): restore it with git") from error
    needs = read_table(Path(folder) / "needs.csv", Need, "restore it with git")
    cards = sorted(set(largest["card"]))
    measured = _measured_needs(largest, sizes)
    rows = []
    for row in published.itertuples():
        gpu = f"{row.gpu} ({row.vram_gb} GB)"
        rows.append((row.system, "published", gpu, row.batch_size, "", "", "paper"))
        theirs = needs[needs["system"] == row.system]
        rows += [_others_need(need, cards) for need in theirs.itertuples()]
        if need := measured.pop((row.variant, "exact"), None):
            rows.append((row.system, *need[1:]))
        elif row.variant in VARIANTS:
            wanted = f"add {row.variant} to efficiency.variants"
            rows.append((row.system, "not measured", "", "", "", "", wanted))
    return pd.DataFrame([*rows, *measured.values()], columns=_TABLE_1)


def _others_need(need: Any, cards: Sequence[int]) -> tuple[str, ...]:
    if need.kind == "reported":
        return (need.system, need.kind, need.gpu, "", "", "", f"{need.setting}; {need.source}")
    one, more = float(need.gib_at_batch_1), float(need.gib_per_sample)
    fits = [_most_images(card, one - more, more) for card in cards]
    counts = f"{int(need.parameters):,}", f"{float(need.forward_gflop):,.1f}"
    return (
        need.system,
        need.kind,
        *_on_cards(cards, fits),
        *counts,
        f"{need.setting}; {need.source}",
    )


def _measured_needs(
    largest: pd.DataFrame, sizes: pd.DataFrame
) -> dict[tuple[str, str], tuple[str, ...]]:
    """By variant and decoder: a row of Table 1."""
    found = {}
    counted = sizes.set_index(["variant", "decoder"])
    for key, group in largest.groupby(["variant", "decoder"], sort=False):
        row, size = group.iloc[0], counted.loc[key]
        beyond = ", extrapolated" if group["extrapolated"].any() else ""
        counts = f"{int(size.trainable_parameters):,}", f"{size.inference_gflop:,.1f}"
        where = f"{row.image_size} px, {row.memory}{beyond}; GFLOP at {size.image_size} px"
        batches = _on_cards(group["card"], group["batch_size"])
        found[key] = (row.system, "measured", *batches, *counts, where)
    return found


def _on_cards(cards: Iterable[int], batches: Iterable[int]) -> tuple[str, str]:
    shown = ["?" if pd.isna(batch) else str(batch) for batch in batches]
    fits = "no line" if set(shown) == {"?"} else f"≤ {', '.join(shown)}"
    return f"any ({', '.join(map(str, cards))} GB)", fits


def beside_table_2(sizes: pd.DataFrame, published: pd.DataFrame) -> pd.DataFrame:
    """The exact counts beside the parameter column of the paper's Table 2, of `read_published`.

    One row a system: system, trainable_parameters, published (millions, NaN where the paper's
    table has no such row), total_parameters.
    """
    paper = published[published["table"] == 2].drop_duplicates("variant").set_index("variant")
    millions = sizes["variant"].map(paper["trainable_parameters_millions"])
    columns = ["system", "trainable_parameters", "published", "total_parameters"]
    return sizes.assign(published=millions)[columns]


def _line(group: pd.DataFrame) -> tuple[float, float] | None:
    """Bytes of no image and of each, by least squares; None if there is no rising line."""
    if len(group) < 2:
        return None
    peaks = group["peak_bytes"].astype(float)
    slope, fixed = np.polyfit(group["batch_size"].astype(float), peaks, 1)
    # equal peaks give a slope of rounding errors
    return (fixed, slope) if slope > 0 and peaks.max() > peaks.min() else None


def _most_images(memory: float, fixed: float, slope: float) -> int:
    return max(0, math.floor((memory - fixed) / slope))
