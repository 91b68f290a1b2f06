"""Figures of what training costs: memory and time against the batch size."""

from collections.abc import Sequence

import pandas as pd
import seaborn as sns
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from wavegms.costs.tables import GIB

_MARKERS = "osD^vPX*"


def plot_costs(points: pd.DataFrame, cards: Sequence[int]) -> Figure:
    """Peak memory and time of a training step against the batch size, one line a variant.

    Args:
        points: from `efficiency.measure`.
        cards: memory of cards, GiB; those within reach of the axis are drawn across.

    Returns:
        Two panels, memory and time for each image, both logarithmic, since a network with the large
        autoencoder takes many times of what the others take.
    """
    rows = points.dropna(subset="peak_bytes")
    rows = rows.assign(peak=rows["peak_bytes"].astype(float) / GIB)
    figure, (memory, time) = plt.subplots(1, 2, figsize=(10, 4.2), layout="constrained")
    plt.close(figure)
    systems = list(dict.fromkeys(rows["system"]))
    colours = sns.color_palette("colorblind", len(systems))
    for place, (system, colour) in enumerate(zip(systems, colours, strict=True)):
        line = rows[rows["system"] == system]
        marker = _MARKERS[place % len(_MARKERS)]
        for axes, column in ((memory, "peak"), (time, "image_seconds")):
            axes.plot(
                line["batch_size"], line[column], color=colour, marker=marker, ms=6, label=system
            )
    for card in cards:
        if card < 2 * rows["peak"].max():
            memory.axhline(card, color="0.6", linewidth=1, linestyle="--", zorder=0)
            memory.text(
                1,
                card,
                f"{card} GiB",
                transform=memory.get_yaxis_transform(),
                ha="right",
                va="bottom",
                color="0.4",
                fontsize=8,
            )
    for axes in (memory, time):
        axes.set_xscale("log", base=2)
    size = rows["image_size"].iloc[0]
    _label(
        figure,
        {memory: rows["peak"], time: rows["image_seconds"]},
        sorted(set(rows["batch_size"])),
        rows["memory"].iloc[0],
        f"{size}×{size} pixels, float32, {rows['device'].iloc[0]}",
        ncols=3,
    )
    return figure


def plot_benchmark(lines: pd.DataFrame, title: str, memory_name: str) -> Figure:
    """Peak memory and time of a training step against the batch size, one line a case.

    Args:
        lines: case, batch_size, peak_bytes and step_seconds.
        title: size of the images and machine.
        memory_name: what the memory is of.

    Returns:
        Two panels, logarithmic upwards.
    """
    figure, (memory, time) = plt.subplots(1, 2, figsize=(10, 4.6), layout="constrained")
    plt.close(figure)
    names = list(dict.fromkeys(lines["case"]))
    colours = sns.color_palette("colorblind", len(names))
    values = {
        memory: lines["peak_bytes"].astype(float) / GIB,
        time: lines["step_seconds"] / lines["batch_size"],
    }
    for place, (name, colour) in enumerate(zip(names, colours, strict=True)):
        own = lines["case"] == name
        for axes, column in values.items():
            axes.plot(
                lines.loc[own, "batch_size"],
                column[own],
                color=colour,
                marker=_MARKERS[place % len(_MARKERS)],
                ms=6,
                label=name,
            )
    _label(figure, values, sorted(set(lines["batch_size"])), memory_name, title, ncols=4)
    return figure


def _label(
    figure: Figure,
    values: dict[Axes, pd.Series],
    batches: list[int],
    memory_name: str,
    title: str,
    ncols: int,
) -> None:
    """Axes, legend and title of the two panels, memory and time, which hold `values`."""
    for axes, column in values.items():
        axes.set_xlabel("batch size")
        axes.set_xticks(batches, batches)
        axes.set_yscale("log")
        axes.set_yticks(_ticks(column.min(), column.max()))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.minorticks_off()
        axes.grid(color="0.92")
        axes.spines[["top", "right"]].set_visible(False)
    memory, time = values
    memory.set_ylabel(f"{memory_name} (GiB)")
    time.set_ylabel("training step, seconds for each image")
    handles, labels = memory.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=ncols, frameon=False)
    figure.suptitle(title, fontsize=10)


def _ticks(low: float, high: float) -> list[float]:
    """Round numbers, 1, 2 and 5 times a power of ten, that a logarithmic axis needs."""
    steps = [float(f"{base}e{power}") for power in range(-6, 6) for base in (1, 2, 5)]
    return [step for step in steps if low / 2 <= step <= high * 2]
