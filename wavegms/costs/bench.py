"""`make bench`: what each measure against time and memory brings, and what others cost.

Every workload is measured in a process of its own, all of them in each of several rounds, so that
a ratio compares neighbours in time and its spread over the rounds says how much to trust it.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch
from matplotlib.figure import Figure
from tqdm import tqdm

from wavegms.costs.figure import plot_benchmark
from wavegms.costs.measure import Workload
from wavegms.costs.tables import GIB, count_gflop, measured_peak, measured_points
from wavegms.errors import InputError
from wavegms.figures.style import save_figure
from wavegms.files import write_text
from wavegms.variants import require_side


@dataclass(frozen=True)
class Case:
    """A workload with a name for a reader.

    Attributes:
        name: what it is called in tables and figures.
        workload: what is measured.
        keep_memory: see `measured_points`.
    """

    name: str
    workload: Workload
    keep_memory: bool = True


def cases(gpu: bool) -> list[Case]:
    """All that is measured; on a GPU without what only concerns CPUs.

    Args:
        gpu: whether there is one.
    """

    def case(name: str, *workload: str, keep_memory: bool = True) -> Case:
        return Case(name, Workload(*workload), keep_memory)

    # without a GPU, how memory is taken from the system is a measure of its own
    training = [
        case("plain", "wave_gms", "train", "plain", "fp32", keep_memory=gpu),
        *([] if gpu else [case("plain, memory kept", "wave_gms", "train", "plain", "fp32")]),
        case("lean", "wave_gms", "train", "lean", "fp32"),
        *([case("lean tf32", "wave_gms", "train", "lean", "tf32")] if gpu else []),
        case("plain bf16", "wave_gms", "train", "plain", "bf16"),
        case("lean bf16", "wave_gms", "train", "lean", "bf16"),
        case("Tiny-VAE", "tinyvae", "train", "lean", "fp32"),
        case("GMS", "gms", "train", "lean", "fp32"),
        case("UNet", "unet", "train", "lean", "fp32"),
    ]
    prediction = [
        case("plain", "wave_gms", "predict", "plain", "fp32"),
        case("lean", "wave_gms", "predict", "lean", "fp32"),
        case("lean bf16", "wave_gms", "predict", "lean", "bf16"),
        case("ONNX Runtime, CPU", "wave_gms", "predict", "onnx", "fp32"),
        case("Tiny-VAE", "tinyvae", "predict", "lean", "fp32"),
        case("GMS", "gms", "predict", "lean", "fp32"),
        case("UNet", "unet", "predict", "lean", "fp32"),
    ]
    return training + prediction


# Which is divided by which, where both were measured.
COMPARISONS = {
    "train": [
        ("lean", "plain"),
        ("plain, memory kept", "plain"),
        ("lean", "plain, memory kept"),
        ("lean tf32", "plain"),
        ("plain bf16", "plain"),
        ("lean bf16", "lean"),
        ("lean bf16", "plain"),
        ("Tiny-VAE", "lean"),
        ("GMS", "lean"),
        ("UNet", "lean"),
    ],
    "predict": [
        ("lean", "plain"),
        ("lean bf16", "lean"),
        ("ONNX Runtime, CPU", "lean"),
        ("Tiny-VAE", "lean"),
        ("GMS", "lean"),
        ("UNet", "lean"),
    ],
}


def run_benchmark(
    image_size: int, batch_sizes: Sequence[int], rounds: int, steps: int, folder: Path
) -> None:
    """Measures everything and writes tables and figures.

    Args:
        image_size: side of the images in pixels.
        batch_sizes: ascending; predictions are measured at the last alone.
        rounds: how often everything is measured anew.
        steps: timed at each batch size.
        folder: where `measurements.csv`, `ratios.csv`, `costs.csv`, `summary.md` and the figure
            `training` go.

    Raises:
        InputError: the sizes suit no variant, or a process failed by anything but lack of memory.
    """
    if list(batch_sizes) != sorted(set(batch_sizes)) or min(batch_sizes, default=0) < 1:
        raise InputError(f"--batch-sizes must ascend from 1 or more, not {list(batch_sizes)}")
    if min(rounds, steps) < 1:
        raise InputError("--rounds and --steps must be at least 1")
    chosen = cases(torch.cuda.is_available())
    for case in chosen:
        require_side(case.workload.variant, image_size, "--image-size")
    points = pd.DataFrame(_measure(chosen, image_size, batch_sizes, rounds, steps))
    kinds = sorted(set(points["precision"]))
    peaks = {kind: measured_peak(kind) for kind in tqdm(kinds, desc="matrix products")}
    costs, ratios = tabulate_costs(points, peaks), tabulate_ratios(points)
    for name, table in (("measurements", points), ("costs", costs), ("ratios", ratios)):
        write_text(folder / f"{name}.csv", table.to_csv(index=False, lineterminator="\n"))
    write_text(folder / "summary.md", summarise(points, costs, ratios))
    save_figure(draw(points), folder / "training")


def _measure(
    chosen: list[Case], image_size: int, batch_sizes: Sequence[int], rounds: int, steps: int
) -> Iterator[dict]:
    with tqdm(total=rounds * len(chosen), desc="measuring", unit="process") as bar:
        for number in range(1, rounds + 1):
            for case in chosen:
                workload = case.workload
                bar.set_postfix_str(f"{workload.task} {case.name}")
                sizes = batch_sizes if workload.task == "train" else batch_sizes[-1:]
                about = {
                    "round": number,
                    "task": workload.task,
                    "case": case.name,
                    "variant": workload.variant,
                    "form": workload.form,
                    "precision": workload.precision,
                    "memory_kept": case.keep_memory,
                    "image_size": image_size,
                }
                for point in measured_points(
                    workload, image_size, sizes, steps, keep_memory=case.keep_memory
                ):
                    yield about | point
                bar.update()


def tabulate_costs(points: pd.DataFrame, peaks: dict[str, float]) -> pd.DataFrame:
    """What each case costs at the largest batch it was measured with.

    Args:
        points: `measurements.csv`.
        peaks: GFLOP a second of a matrix product, by precision.

    Returns:
        One row a case: task, case, batch_size, image_seconds, peak_gib and step_gib (what the peak
        exceeds the process before the network was built), all medians over the rounds,
        image_gflop (counted), and share_of_peak, the operations a second as a share of what a
        matrix product of that precision reaches here.
    """
    rows = []
    for (task, name), group in _measured(points).groupby(["task", "case"], sort=False):
        group = group[group["batch_size"] == group["batch_size"].max()]
        first = group.iloc[0]
        seconds = (group["step_seconds"] / group["batch_size"]).median()
        gflop = count_gflop(first["variant"], task, first["form"], int(first["image_size"]))
        own = group["peak_bytes"].astype(float) - group["base_bytes"].astype(float)
        rows.append(
            {
                "task": task,
                "case": name,
                "batch_size": int(first["batch_size"]),
                "image_seconds": seconds,
                "peak_gib": group["peak_bytes"].astype(float).median() / GIB,
                "step_gib": own.median() / GIB,
                "image_gflop": gflop,
                "share_of_peak": gflop / seconds / peaks[first["precision"]],
            }
        )
    return pd.DataFrame(rows)


def tabulate_ratios(points: pd.DataFrame) -> pd.DataFrame:
    """The comparisons, round by round, at the largest batch that both sides were measured with.

    Args:
        points: `measurements.csv`.

    Returns:
        One row a comparison and quantity: task, case, against, batch_size, quantity ("time",
        "memory", all of it, or "memory of the step", without what the process held before), ratio
        (the median over rounds), lowest and highest.
    """
    measured = _measured(points)
    rows = []
    for task, pairs in COMPARISONS.items():
        of_task = measured[measured["task"] == task]
        for name, against in pairs:
            sides = [
                of_task[of_task["case"] == side].set_index(["batch_size", "round"])
                for side in (name, against)
            ]
            common = sides[0].index.intersection(sides[1].index)
            if not len(common):
                continue
            largest = common.get_level_values("batch_size").max()
            one, other = (side.loc[largest].sort_index() for side in sides)
            for quantity, values in _quantities(one, other):
                if values.empty:
                    continue
                rows.append(
                    {
                        "task": task,
                        "case": name,
                        "against": against,
                        "batch_size": int(largest),
                        "quantity": quantity,
                        "ratio": values.median(),
                        "lowest": values.min(),
                        "highest": values.max(),
                    }
                )
    return pd.DataFrame(rows)


def _quantities(one: pd.DataFrame, other: pd.DataFrame) -> list[tuple[str, pd.Series]]:
    peaks = [side["peak_bytes"].astype(float) for side in (one, other)]
    bases = [side["base_bytes"].astype(float) for side in (one, other)]
    return [
        ("time", (one["step_seconds"] / other["step_seconds"]).dropna()),
        ("memory", (peaks[0] / peaks[1]).dropna()),
        ("memory of the step", ((peaks[0] - bases[0]) / (peaks[1] - bases[1])).dropna()),
    ]


def _measured(points: pd.DataFrame) -> pd.DataFrame:
    return points.dropna(subset="step_seconds")


def draw(points: pd.DataFrame) -> Figure:
    """Memory and time of a training step against the batch size, medians over the rounds.

    Args:
        points: `measurements.csv`.
    """
    training = _measured(points[points["task"] == "train"])
    columns = ["peak_bytes", "base_bytes", "step_seconds"]
    lines = training.groupby(["case", "batch_size"], sort=False)[columns].median().reset_index()
    first = training.iloc[0]
    size = first["image_size"]
    title = f"{size}×{size} pixels, {_machine(first)}; plain and lean are forms of Wave-GMS"
    return plot_benchmark(lines, title, first["memory"])


def summarise(points: pd.DataFrame, costs: pd.DataFrame, ratios: pd.DataFrame) -> str:
    """The tables as Markdown, for a reader.

    Args:
        points: `measurements.csv`.
        costs: from `tabulate_costs`.
        ratios: from `tabulate_ratios`.
    """
    first = _measured(points).iloc[0]
    shown = ratios.assign(
        ratio=[
            f"{middle:.2f} ({low:.2f} – {high:.2f})"
            for middle, low, high in zip(
                ratios["ratio"], ratios["lowest"], ratios["highest"], strict=True
            )
        ]
    )
    index = ["task", "case", "against", "batch_size"]
    shown = shown.set_index([*index, "quantity"])["ratio"].unstack(sort=False)
    rounds = points["round"].max()
    return "\n".join(
        [
            f"{_machine(first)}, {first['image_size']}×{first['image_size']} pixels, "
            f"rounds: {rounds}, {first['memory']}. Plain and lean are forms of Wave-GMS.",
            "",
            "## Ratios",
            "Median over the rounds, with the lowest and the highest. Below 1 is less.",
            "",
            shown.reset_index().to_markdown(index=False),
            "",
            "## Costs",
            "",
            costs.to_markdown(index=False, floatfmt=".3f"),
            "",
        ]
    )


def _machine(point: pd.Series) -> str:
    gpu = "GPU" in point["memory"]
    return point["device"] if gpu else f"{point['device']}, {int(point['threads'])} threads"
