"""Figures of the results: against the paper, image by image, variant against variant.

Each function gives a figure of its own, outside pyplot's list of open ones. Colours are told apart
by readers who are colour-blind, and no meaning hangs on colour alone.
"""

import math

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from wavegms.data.catalog import spec_of
from wavegms.errors import InputError
from wavegms.results.statistics import mean_over_seeds, paired_differences
from wavegms.results.tables import title_of

_PALETTE = sns.color_palette("colorblind")

_OURS, _PAPER = _PALETTE[0], _PALETTE[1]

_GREY = "0.55"

_AXES = {
    "dsc": "DSC (%)",
    "iou": "IoU (%)",
    "hd95": "HD95 (pixels; image diagonal if a mask is empty)",
    "hd95_zero_if_empty": "HD95 (pixels; 0 if a mask is empty)",
}

# Inches: of a panel, of one row in it, and of what stands above and below the rows.
_PANEL_WIDTH, _ROW_HEIGHT, _FRAME_HEIGHT = 4.6, 0.27, 0.9


def plot_against_paper(table: pd.DataFrame, metric: str) -> Figure:
    """Measured values, with 95 % intervals over images, beside the paper's; a panel a dataset."""
    rows = table[table["metric"] == metric].dropna(subset=["measured", "published"], how="all")
    figure, panels = _panels(rows)
    for axes, (_, panel) in panels:
        places = _name_rows(axes, panel["system"])
        paper, ours = panel.dropna(subset="published"), panel.dropna(subset="measured")
        axes.plot(
            paper["published"], paper["system"].map(places), "D", color=_PAPER, mfc="white", ms=6
        )
        ends = [ours["measured"] - ours["ci_low"], ours["ci_high"] - ours["measured"]]
        axes.errorbar(
            ours["measured"],
            ours["system"].map(places),
            xerr=ends,
            fmt="o",
            color=_OURS,
            capsize=3,
            zorder=3,
        )
        axes.set_xlabel(_AXES[metric])
    _legend(
        figure,
        [
            Line2D([], [], color=_OURS, marker="o", label="measured, 95 % interval over images"),
            Line2D([], [], color=_PAPER, marker="D", ls="", mfc="white", label="paper"),
        ],
    )
    return figure


def plot_per_image(scores: pd.DataFrame, metric: str) -> Figure:
    """How the scores of single images are spread: a panel a pair of datasets, a row a variant.

    One dot an image (its mean over seeds); the box holds the middle half, its line is the median,
    the diamond the mean.
    """
    means = mean_over_seeds(scores)
    means["value"] = _scale(metric) * means[metric]
    means["system"] = means["variant"].map(title_of)
    figure, panels = _panels(means)
    for axes, (_, panel) in panels:
        order = list(_name_rows(axes, panel["system"]))
        _dots(axes, panel, order)
        axes.boxplot(
            [panel.loc[panel["system"] == system, "value"] for system in order],
            positions=range(len(order)),
            orientation="horizontal",
            widths=0.6,
            manage_ticks=False,
            showfliers=False,
            showmeans=True,
            medianprops={"color": "black"},
            meanprops={"marker": "D", "mfc": _PAPER, "mec": "black", "ms": 6, "zorder": 4},
        )
        axes.set_xlabel(_AXES[metric])
    _legend(
        figure,
        [
            Line2D([], [], color=_OURS, marker="o", ls="", ms=4, label="image"),
            Line2D([], [], color="black", marker="D", ls="", mfc=_PAPER, label="mean"),
        ],
    )
    return figure


def plot_differences(scores: pd.DataFrame, comparisons: pd.DataFrame, metric: str) -> Figure:
    """Each variant against the reference, image by image.

    One panel for each train and test set, one row a variant, one dot an image; the diamond is the
    mean with its 95 % interval, and the corrected p stands at the right.
    """
    rows = comparisons[comparisons["metric"] == metric].copy()
    rows["system"] = rows["variant"].map(title_of)
    scale = _scale(metric)
    figure, panels = _panels(rows)
    for axes, ((train_set, test_set), panel) in panels:
        pair = scores[(scores["train_set"] == train_set) & (scores["test_set"] == test_set)]
        dots = [
            pd.DataFrame(
                {
                    "value": scale
                    * paired_differences(pair, row.variant, row.reference, metric).to_numpy(),
                    "system": row.system,
                }
            )
            for row in panel.itertuples()
        ]
        _dots(axes, pd.concat(dots), list(_name_rows(axes, panel["system"])))
        mean = scale * panel["mean_difference"]
        ends = [mean - scale * panel["ci_low"], scale * panel["ci_high"] - mean]
        axes.errorbar(
            mean, range(len(panel)), xerr=ends, fmt="D", color="black", mfc=_PAPER, capsize=4
        )
        axes.axvline(0, color="black", linewidth=0.8)
        for place, row in enumerate(panel.itertuples()):
            shown = "p < 0.001" if row.p_holm < 0.001 else f"p = {row.p_holm:.3f}"
            axes.text(
                1.02,
                place,
                f"{shown} *" if row.significant else shown,
                transform=axes.get_yaxis_transform(),
                va="center",
                fontsize=9,
            )
        unit = "pixels" if scale == 1 else "percentage points"
        name = _AXES[metric].split(" (")[0]
        reference = title_of(panel["reference"].iloc[0])
        axes.set_xlabel(f"{name} less that of {reference} ({unit})")
    _legend(
        figure,
        [
            Line2D([], [], color=_OURS, marker="o", ls="", ms=4, label="image"),
            Line2D([], [], color="black", marker="D", mfc=_PAPER, label="mean, 95 % interval"),
            Line2D([], [], ls="", label="p corrected by Holm, * below 0.05"),
        ],
    )
    return figure


def plot_generalization(table: pd.DataFrame, metric: str) -> Figure:
    """What is lost when the network was trained on another dataset.

    One panel a direction, one row a system: a line from the in-domain value (circle) to the one
    across domains (triangle), measured above and the paper's below.
    """
    triangle = "<" if metric == "dsc" else ">"
    rows = table[table["metric"] == metric].dropna(subset=["measured", "published"], how="all")
    figure, panels = _panels(rows)
    for axes, (_, panel) in panels:
        places = panel["system"].map(_name_rows(axes, panel["system"]))
        for inside, across, colour, fill, shift in (
            ("in_domain", "measured", _OURS, _OURS, -0.17),
            ("published_in_domain", "published", _PAPER, "white", 0.17),
        ):
            axes.hlines(places + shift, panel[inside], panel[across], color=colour, linewidth=1.5)
            for column, marker in ((inside, "o"), (across, triangle)):
                axes.plot(
                    panel[column], places + shift, marker, color=colour, mfc=fill, ms=6, zorder=3
                )
        axes.set_xlabel(_AXES[metric])
    _legend(
        figure,
        [
            Line2D([], [], color=_OURS, linewidth=2, label="measured (filled)"),
            Line2D([], [], color=_PAPER, linewidth=2, label="paper (hollow)"),
            Line2D([], [], color=_GREY, marker="o", ls="", label="in domain"),
            Line2D([], [], color=_GREY, marker=triangle, ls="", label="across domains"),
        ],
    )
    return figure


def _scale(metric: str) -> int:
    return 1 if metric.startswith("hd95") else 100


def _panels(rows: pd.DataFrame) -> tuple[Figure, list[tuple[Axes, tuple]]]:
    """A figure, and for each pair of datasets its axes and its rows."""
    pairs = list(rows.groupby(["train_set", "test_set"], sort=False))
    if not pairs:
        raise InputError("There is nothing to draw: evaluate what the figure is to show first.")
    columns = min(2, len(pairs))
    lines = math.ceil(len(pairs) / columns)
    counts = [panel["system"].nunique() for _, panel in pairs]
    ratios = [
        _FRAME_HEIGHT + _ROW_HEIGHT * max(counts[line * columns : (line + 1) * columns])
        for line in range(lines)
    ]
    size = (_PANEL_WIDTH * columns + 1, sum(ratios) + (0.4 if columns > 1 else 0.8))
    # made by pyplot, whose backend teaches a notebook to show it; closed, so that it shows it once
    figure = plt.figure(figsize=size, layout="constrained")
    plt.close(figure)
    figure.get_layout_engine().set(wspace=0.06, hspace=0.04)
    grid = figure.subplots(lines, columns, squeeze=False, height_ratios=ratios)
    for axes in grid.flat[len(pairs) :]:
        axes.remove()
    shown = list(zip(grid.flat, pairs, strict=False))
    for axes, ((train_set, test_set), _) in shown:
        title = spec_of(test_set).title
        if train_set != test_set:
            title = f"{spec_of(train_set).title} to {title}"
        axes.set_title(title, fontweight="bold")
        axes.grid(axis="x", color="0.9")
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    return figure, shown


def _name_rows(axes: Axes, systems: pd.Series) -> dict[str, int]:
    places = {system: place for place, system in enumerate(dict.fromkeys(systems))}
    axes.set_yticks(list(places.values()), list(places))
    axes.set_ylim(len(places) - 0.4, -0.6)
    for place in places.values():
        axes.axhline(place, color="0.93", linewidth=0.8, zorder=0)
    return places


def _dots(axes: Axes, rows: pd.DataFrame, order: list[str]) -> None:
    places = rows["system"].map({system: place for place, system in enumerate(order)})
    # seaborn's strip plot would scatter the dots anew each time
    scatter = np.random.default_rng(0).uniform(-0.25, 0.25, len(rows))
    axes.scatter(
        rows["value"],
        places + scatter,
        s=9,
        color=_OURS,
        alpha=0.5,
        linewidths=0,
        rasterized=True,  # thousands of dots would make the PDF slow
    )


def _legend(figure: Figure, handles: list[Line2D]) -> None:
    # Side by side they are wider than a single panel.
    columns = len(handles) if len(figure.axes) > 1 else 1
    figure.legend(handles=handles, loc="outside lower center", ncols=columns, frameon=False)
