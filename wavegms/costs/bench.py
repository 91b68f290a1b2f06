"""`make bench`: what each measure against time and memory brings, and what others cost.

Every workload is measured in a process of its own, all of them in each of several rounds, so that
a ratio compares neighbours in time and its spread over the rounds says how much to trust it.
"""

import time
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure
from tqdm import tqdm

from wavegms.costs.cases import COMPARISONS, Case, Plan, cases
from wavegms.costs.harness import MEASURES, apart, measured_points
from wavegms.costs.tables import GIB
from wavegms.files import require_writable, write_text


def run_benchmark(plan: Plan, folder: Path) -> None:
    """Measures everything and writes tables and figures.

    These are `measurements.csv`, `ratios.csv`, `costs.csv`, `summary.md` and the figure `training`.
    """
    require_writable(folder)  # it takes half an hour to know what to write there
    chosen = cases(apart("torch.cuda:is_available"))
    points = pd.DataFrame(measure(chosen, plan))
    kinds = tqdm(sorted(set(points["precision"])), desc="matrix products")
    peaks = {kind: apart(f"{MEASURES}:measure_peak", kind) for kind in kinds}
    costs, ratios = tabulate_costs(points, peaks), tabulate_ratios(points)
    for name, table in (("measurements", points), ("costs", costs), ("ratios", ratios)):
        write_text(folder / f"{name}.csv", table.to_csv(index=False, lineterminator="\n"))
    write_text(folder / "summary.md", summarise(points, costs, ratios))
    from wavegms.figures.style import save_figure  # here: to measure, no picture is needed

    save_figure(draw(points), folder / "training")


def measure(chosen: list[Case], plan: Plan, until: float | None = None) -> Iterator[dict]:
    """The points of all cases in all rounds, each with what it is of.

    What is not done at `until`, by time.monotonic(), has a note that says so.
    """
    with tqdm(total=plan.rounds * len(chosen), desc="measuring", unit="case") as bar:
        for number in range(1, plan.rounds + 1):
            for case in chosen:
                workload = case.workload
                bar.set_postfix_str(f"{workload.task} {case.name}")
                sizes = plan.batch_sizes if workload.task == "train" else plan.batch_sizes[-1:]
                about = {
                    "round": number,
                    "task": workload.task,
                    "case": case.name,
                    "variant": workload.variant,
                    "form": workload.form,
                    "precision": workload.precision,
                    "memory_kept": case.keep_memory,
                    "image_size": plan.image_size,
                }
                left = until and max(1.0, until - time.monotonic())
                for point in measured_points(
                    workload,
                    plan.image_size,
                    sizes,
                    plan.steps,
                    keep_memory=case.keep_memory,
                    seconds=left,
                ):
                    yield about | point
                bar.update()


def tabulate_costs(points: pd.DataFrame, peaks: dict[str, float]) -> pd.DataFrame:
    """What each case costs at the largest batch it was measured with.

    `peaks` are GFLOP a second of a matrix product, by precision.

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
        form = first["form"] if first["form"] in ("plain", "onnx") else "lean"
        gflop = _counted(first["variant"], task, form, int(first["image_size"]))
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


@cache
def _counted(*work: str | int) -> float:
    return apart(f"{MEASURES}:count_gflop", *work)


def tabulate_ratios(points: pd.DataFrame) -> pd.DataFrame:
    """The comparisons, round by round, at the largest batch that both sides were measured with.

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
    """Memory and time of a training step against the batch size, medians over the rounds."""
    from wavegms.costs.figure import plot_costs

    training = _measured(points[points["task"] == "train"])
    columns = ["peak_bytes", "step_seconds"]
    keys = ["case", "batch_size", "image_size", "memory"]
    lines = training.groupby(keys, sort=False)[columns].median().reset_index()
    first = training.iloc[0]
    size = f"{first['image_size']}×{first['image_size']}"
    title = f"{size} pixels, {_machine(first)}; plain and lean are forms of Wave-GMS"
    return plot_costs(lines, by="case", title=title)


def summarise(points: pd.DataFrame, costs: pd.DataFrame, ratios: pd.DataFrame) -> str:
    """The tables as Markdown, for a reader."""
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
