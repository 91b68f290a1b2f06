"""Figures of what training costs, and of what autoencoders give back."""

from collections.abc import Mapping, Sequence

import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from wavegms.costs.tables import GIB
from wavegms.figures.style import new_panels

_MARKERS = "osD^vPX*"


def plot_costs(
    points: pd.DataFrame, cards: Sequence[int] = (), by: str = "system", title: str = ""
) -> Figure:
    """Peak memory and time of a training step against the batch size, one line a variant.

    Two panels, memory and time for each image, both logarithmic, since a network with the large
    autoencoder takes many times of what the others take. Of the cards, in GiB, those within reach
    of the axis are drawn across. `points` are those of `measure`, or have its columns batch_size,
    image_size, memory, peak_bytes, step_seconds and `by`, which names a line.
    """
    rows = points.dropna(subset="peak_bytes")
    peaks = rows["peak_bytes"].astype(float) / GIB
    figure, (memory, time) = new_panels(2, 10, 4.4)
    values = {memory: peaks, time: rows["step_seconds"] / rows["batch_size"]}
    names = list(dict.fromkeys(rows[by]))
    colours = sns.color_palette("colorblind", len(names))
    for place, (name, colour) in enumerate(zip(names, colours, strict=True)):
        own = rows[by] == name
        marker = _MARKERS[place % len(_MARKERS)]
        for axes, column in values.items():
            line = rows.loc[own, "batch_size"], column[own]
            axes.plot(*line, color=colour, marker=marker, ms=6, label=name)
    for card in cards:
        if card < 2 * peaks.max():
            memory.axhline(card, color="0.6", linewidth=1, linestyle="--", zorder=0)
            place = {"transform": memory.get_yaxis_transform(), "ha": "right", "va": "bottom"}
            memory.text(1, card, f"{card} GiB", color="0.4", fontsize=8, **place)
    batches = sorted(set(rows["batch_size"]))
    for axes, column in values.items():
        axes.set_xscale("log", base=2)
        axes.set_xlabel("batch size")
        axes.set_xticks(batches, batches)
        axes.set_yscale("log")
        axes.set_yticks(_ticks(column.min(), column.max()))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.minorticks_off()
        axes.grid(color="0.92")
        axes.spines[["top", "right"]].set_visible(False)
    first = rows.iloc[0]
    memory.set_ylabel(f"{first['memory']} (GiB)")
    time.set_ylabel("training step, seconds for each image")
    handles, labels = memory.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False)
    size = f"{first['image_size']}×{first['image_size']} pixels"
    figure.suptitle(title or f"{size}, float32, {first['device']}", fontsize=10)
    return figure


def _ticks(low: float, high: float) -> list[float]:
    """Round numbers, 1, 2 and 5 times a power of ten, that a logarithmic axis needs."""
    steps = [float(f"{base}e{power}") for power in range(-6, 6) for base in (1, 2, 5)]
    return [step for step in steps if low / 2 <= step <= high * 2]


def show_repainting(
    repainted: Mapping[str, pd.DataFrame], lines: Mapping[str, pd.Series]
) -> Figure:
    """Autoencoders by name: the Dice of each mask that came back, and of lines by their width.

    The tables are those of `wavegms.costs.autoencoders.repaint`, the series of `repaint_lines`.
    """
    figure, (masks, widths) = new_panels(2, 10, 1.6 + 0.4 * max(4, len(repainted)))
    colours = dict(zip(repainted, sns.color_palette("colorblind", len(repainted)), strict=True))
    table = pd.concat(repainted, names=["autoencoder"]).reset_index("autoencoder")
    sns.stripplot(
        table, x="dice", y="autoencoder", hue="autoencoder", palette=colours, size=3, ax=masks
    )
    masks.set(xlabel="Dice of each mask", ylabel="")
    for (name, dice), marker in zip(lines.items(), _MARKERS * len(lines), strict=False):
        widths.plot(dice.index, dice, color=colours[name], marker=marker, ms=4, label=name)
    widths.set(xlabel="width of a line, pixels", ylabel="Dice", ylim=(0, 1.02))
    widths.set_xticks(next(iter(lines.values())).index)
    widths.legend(fontsize=8)
    for axes in (masks, widths):
        axes.spines[["top", "right"]].set_visible(False)
    return figure
