"""Figures of the results: against the paper, image by image, variant against variant.

Each function gives a figure of its own, outside pyplot's list of open ones. Colours are told apart
by readers who are colour-blind, and no meaning hangs on colour alone.
"""

from typing import Any

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, NullLocator

from wavegms.data.catalog import spec_of
from wavegms.errors import InputError
from wavegms.figures.style import draw_boxes
from wavegms.results.costs import COSTS, on_front
from wavegms.results.statistics import mean_over_seeds, paired_differences
from wavegms.results.tables import title_of

_OURS, _PAPER, *_ = sns.color_palette("colorblind")

_GREY = "0.55"

# As many as Table 2 has systems.
_MARKERS = "osD^vPX*p<>hd"

_AXES = {
    "dsc": "DSC (%)",
    "iou": "IoU (%)",
    "hd95": "HD95 (pixels; image diagonal if a mask is empty)",
    "hd95_zero_if_empty": "HD95 (pixels; 0 if a mask is empty)",
}

# Inches: of a panel, of one row in it, and of what stands above and below the rows.
_PANEL_WIDTH, _ROW_HEIGHT, _FRAME_HEIGHT = 4.6, 0.27, 0.9

_PUBLISHED = {"color": _PAPER, "marker": "D", "ls": "", "mfc": "white"}
_DOT = {"color": _OURS, "marker": "o", "ls": "", "ms": 4}
_MEAN = {"color": "black", "marker": "D", "mfc": _PAPER}


def plot_against_paper(table: pd.DataFrame, metric: str) -> Figure:
    """Measured values, with 95 % intervals over images, beside the paper's; a panel a dataset."""
    figure, panels = _panels(_with_values(table, metric), _AXES[metric])
    for axes, _, panel in panels:
        panel = panel.assign(place=panel["system"].map(_name_rows(axes, panel["system"])))
        paper, ours = panel.dropna(subset="published"), panel.dropna(subset="measured")
        axes.plot(paper["published"], paper["place"], ms=6, **_PUBLISHED)
        ends = [ours["measured"] - ours["ci_low"], ours["ci_high"] - ours["measured"]]
        style = {"fmt": "o", "color": _OURS, "capsize": 3, "zorder": 3}
        axes.errorbar(ours["measured"], ours["place"], xerr=ends, **style)
    ours = {"color": _OURS, "marker": "o"}
    _legend(figure, {"measured, 95 % interval over images": ours, "paper": _PUBLISHED})
    return figure


def plot_per_image(scores: pd.DataFrame, metric: str) -> Figure:
    """How the scores of single images are spread: a panel a pair of datasets, a row a variant.

    One dot an image (its mean over seeds); the box holds the middle half, its line is the median,
    the diamond the mean.
    """
    means = mean_over_seeds(scores)
    means["value"] = _scale(metric) * means[metric]
    means["system"] = means["variant"].map(title_of)
    figure, panels = _panels(means, _AXES[metric])
    diamond = {"marker": "D", "mfc": _PAPER, "mec": "black", "ms": 6, "zorder": 4}
    for axes, _, panel in panels:
        places = _name_rows(axes, panel["system"])
        _dots(axes, panel["value"], panel["system"].map(places))
        values = panel.groupby("system")["value"]
        boxes = (values.get_group(system) for system in places)
        draw_boxes(axes, boxes, 0.6, showmeans=True, meanprops=diamond)
    _legend(figure, {"image": _DOT, "mean": _MEAN | {"ls": ""}})
    return figure


def plot_differences(scores: pd.DataFrame, comparisons: pd.DataFrame, metric: str) -> Figure:
    """Each variant against the reference, image by image.

    One panel for each train and test set, one row a variant, one dot an image; the diamond is the
    mean with its 95 % interval, and the corrected p stands at the right.
    """
    rows = comparisons[comparisons["metric"] == metric]
    rows = rows.assign(system=rows["variant"].map(title_of))
    scale, name = _scale(metric), _AXES[metric].split(" (")[0]
    unit = "pixels" if scale == 1 else "percentage points"
    reference = ", ".join(rows["reference"].map(title_of).unique())
    figure, panels = _panels(rows, f"{name} less that of {reference} ({unit})")
    for axes, (train_set, test_set), panel in panels:
        _name_rows(axes, panel["system"])
        pair = scores[(scores["train_set"] == train_set) & (scores["test_set"] == test_set)]
        differences = pd.concat(
            paired_differences(pair, row.variant, row.reference, metric).to_frame().assign(at=place)
            for place, row in enumerate(panel.itertuples())
        )
        _dots(axes, scale * differences["difference"], differences["at"])
        mean, low, high = (scale * panel[end] for end in ("mean_difference", "ci_low", "ci_high"))
        ends, places = [mean - low, high - mean], range(len(panel))
        axes.errorbar(mean, places, xerr=ends, fmt="D", color="black", mfc=_PAPER, capsize=4)
        axes.axvline(0, color="black", linewidth=0.8)
        right = {"transform": axes.get_yaxis_transform(), "va": "center", "fontsize": 9}
        for place, row in enumerate(panel.itertuples()):
            shown = "p < 0.001" if row.p_holm < 0.001 else f"p = {row.p_holm:.3f}"
            axes.text(1.02, place, f"{shown} *" if row.significant else shown, **right)
    corrected = "p corrected by Holm, * below 0.05"
    _legend(figure, {"image": _DOT, "mean, 95 % interval": _MEAN, corrected: {"ls": ""}})
    return figure


def plot_generalization(table: pd.DataFrame, metric: str) -> Figure:
    """What is lost when the network was trained on another dataset.

    One panel a direction, one row a system: a line from the in-domain value (circle) to the one
    across domains (triangle), measured above and the paper's below.
    """
    triangle = "<" if metric == "dsc" else ">"
    figure, panels = _panels(_with_values(table, metric), _AXES[metric])
    for axes, _, panel in panels:
        places = panel["system"].map(_name_rows(axes, panel["system"]))
        for inside, across, colour, fill, shift in (
            ("in_domain", "measured", _OURS, _OURS, -0.17),
            ("published_in_domain", "published", _PAPER, "white", 0.17),
        ):
            at, style = places + shift, {"color": colour, "mfc": fill, "ms": 6, "zorder": 3}
            axes.hlines(at, panel[inside], panel[across], color=colour, linewidth=1.5)
            axes.plot(panel[inside], at, "o", **style)
            axes.plot(panel[across], at, triangle, **style)
    grey = {"color": _GREY, "ls": ""}
    marks = {
        "measured (filled)": {"color": _OURS, "linewidth": 2},
        "paper (hollow)": {"color": _PAPER, "linewidth": 2},
        "in domain": grey | {"marker": "o"},
        "across domains": grey | {"marker": triangle},
    }
    _legend(figure, marks)
    return figure


def plot_against_cost(costs: pd.DataFrame) -> Figure:
    """DSC with its 95 % interval against operations, time and memory, as `beside_costs` gives them.

    A row a dataset, a panel a cost, logarithmic; a mark a system. Those on the Pareto front are
    filled and joined by a line: whatever else is chosen costs more or scores less than one of them.
    """
    # memory that did not grow has no place on a logarithmic axis
    measured = costs[list(COSTS)].where(costs[list(COSTS)] > 0).dropna(axis="columns", how="all")
    panels = {cost: COSTS[cost] for cost in measured}
    known = costs.assign(**measured).dropna(subset=list(panels), how="all")
    if not panels:
        raise InputError("There are no costs of what was scored: run 07_efficiency with it first.")
    datasets, systems = pd.unique(known["test_set"]), pd.unique(known["system"])
    size = (4 * len(panels), 3.2 * len(datasets) + 0.3 * len(systems) / len(panels) + 0.5)
    figure = plt.figure(figsize=size, layout="constrained")
    plt.close(figure)
    grid = figure.subplots(len(datasets), len(panels), squeeze=False, sharey="row", sharex="col")
    palette = sns.color_palette("colorblind", len(systems))
    colours = dict(zip(systems, palette, strict=True))
    marks = {system: _MARKERS[place % len(_MARKERS)] for place, system in enumerate(systems)}
    for line, dataset in zip(grid, datasets, strict=True):
        for axes, cost in zip(line, panels, strict=True):
            rows = known[known["test_set"] == dataset].dropna(subset=cost)
            front = on_front(rows[cost], rows["measured"])
            best = rows[front].sort_values(cost)
            axes.step(best[cost], best["measured"], where="post", color="0.4", lw=1, zorder=1)
            for row, ahead in zip(rows.itertuples(), front, strict=True):
                ends = [[row.measured - row.ci_low], [row.ci_high - row.measured]]
                colour = colours[row.system]
                style = {"fmt": marks[row.system], "ms": 8, "color": colour, "capsize": 2, "lw": 1}
                fill = colour if ahead else "white"
                axes.errorbar(getattr(row, cost), row.measured, yerr=ends, mfc=fill, **style)
            axes.grid(color="0.92")
            axes.set_axisbelow(True)
            axes.spines[["top", "right"]].set_visible(False)
        line[0].set_ylabel("DSC (%)")
        line[0].set_title(spec_of(dataset).title, loc="left", fontweight="bold")
    for axes, (cost, title) in zip(grid[-1], panels.items(), strict=True):
        axes.set_xlabel(title)
        axes.set_xscale("log")
        # equal costs alone would leave the axis without a width
        low, high = known[cost].min() / 2, known[cost].max() * 2
        axes.set_xlim(low, high)
        few = LogLocator(subs=(1, 2, 5) if high < 300 * low else (1,))
        axes.xaxis.set_major_locator(few)
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter("{x:g}")
    timed = known.dropna(subset="step_seconds")
    if len(timed):
        row = timed.iloc[0]
        step = f"batch {row['batch_size']:.0f} of {row['cost_size']:.0f} pixels, {row['device']}"
        figure.suptitle(f"training step: {step}", fontsize=10)
    handles = {
        system: {"color": colours[system], "marker": marks[system], "ls": "", "ms": 8}
        for system in systems
    }
    handles["Pareto front (filled)"] = {"color": "0.4", "lw": 1}
    shown = [Line2D([], [], label=label, **style) for label, style in handles.items()]
    side_by_side = {1: 1, 2: 3}.get(len(panels), 5)
    style = {"ncols": side_by_side, "frameon": False, "fontsize": 9}
    figure.legend(handles=shown, loc="outside lower center", **style)
    return figure


def _scale(metric: str) -> int:
    return 1 if metric.startswith("hd95") else 100


def _with_values(table: pd.DataFrame, metric: str) -> pd.DataFrame:
    return table[table["metric"] == metric].dropna(subset=["measured", "published"], how="all")


def _panels(rows: pd.DataFrame, label: str) -> tuple[Figure, list[tuple[Axes, tuple, Any]]]:
    """A figure, and for each pair of datasets its axes, with a label below, and its rows."""
    pairs = list(rows.groupby(["train_set", "test_set"], sort=False))
    if not pairs:
        raise InputError("There is nothing to draw: evaluate what the figure is to show first.")
    columns = min(2, len(pairs))
    counts = [panel["system"].nunique() for _, panel in pairs]
    most = [max(counts[start : start + columns]) for start in range(0, len(counts), columns)]
    ratios = [_FRAME_HEIGHT + _ROW_HEIGHT * count for count in most]
    size = (_PANEL_WIDTH * columns + 1, sum(ratios) + (0.4 if columns > 1 else 0.8))
    # made by pyplot, whose backend teaches a notebook to show it; closed, so that it shows it once
    figure = plt.figure(figsize=size, layout="constrained")
    plt.close(figure)
    figure.get_layout_engine().set(wspace=0.06, hspace=0.04)
    grid = figure.subplots(len(ratios), columns, squeeze=False, height_ratios=ratios)
    for axes in grid.flat[len(pairs) :]:
        axes.remove()
    shown = [(axes, *pair) for axes, pair in zip(grid.flat, pairs, strict=False)]
    for axes, (train_set, test_set), _ in shown:
        title = spec_of(test_set).title
        if train_set != test_set:
            title = f"{spec_of(train_set).title} to {title}"
        axes.set_title(title, fontweight="bold")
        axes.set_xlabel(label)
        axes.grid(axis="x", color="0.9")
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    return figure, shown


def _name_rows(axes: Axes, systems: pd.Series) -> dict[str, int]:
    """The place of each system, from above."""
    places = {system: place for place, system in enumerate(dict.fromkeys(systems))}
    axes.set_yticks(list(places.values()), list(places))
    axes.set_ylim(len(places) - 0.4, -0.6)
    for place in places.values():
        axes.axhline(place, color="0.93", linewidth=0.8, zorder=0)
    return places


def _dots(axes: Axes, values: pd.Series, places: pd.Series) -> None:
    # seaborn's strip plot would scatter the dots anew each time
    places = places + np.random.default_rng(0).uniform(-0.25, 0.25, len(values))
    # thousands of dots would make the PDF slow if they were not pixels
    style = {"s": 9, "color": _OURS, "alpha": 0.5, "linewidths": 0, "rasterized": True}
    axes.scatter(values, places, **style)


def _legend(figure: Figure, marks: dict[str, dict[str, Any]]) -> None:
    handles = [Line2D([], [], label=label, **style) for label, style in marks.items()]
    # Side by side they are wider than a single panel.
    columns = len(handles) if len(figure.axes) > 1 else 1
    figure.legend(handles=handles, loc="outside lower center", ncols=columns, frameon=False)
