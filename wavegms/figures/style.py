"""What the pictures share: colours of truth and prediction, grids, contours, files. No torch.

Truth is drawn as a solid cyan contour and a prediction as a dashed orange one: told apart by line
as well as by colour, and both visible on dark and bright tissue.
"""

import io
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from wavegms.classes import colours_of
from wavegms.figures.colours import PREDICTION, TRUTH
from wavegms.files import replace_file

TRUTH_STYLE = {"colors": TRUTH, "linestyles": "solid", "linewidths": 1.4}
PREDICTION_STYLE = {"colors": PREDICTION, "linestyles": "dashed", "linewidths": 1.4}

# By file type, what would differ from one writing to the next.
_METADATA = {
    "png": {"Software": None},
    "pdf": {"Creator": None, "Producer": None, "CreationDate": None},
}


def new_panels(columns: int, width: float, height: float) -> tuple[Figure, Sequence[Axes]]:
    """An empty figure of so many inches, and its panels side by side."""
    figure, axes = plt.subplots(1, columns, figsize=(width, height), layout="constrained")
    # the notebook shows what the cell returns; left open, pyplot would show it a second time
    plt.close(figure)
    return figure, axes


def new_grid(
    rows: int, columns: int, cell: float = 1.9, height: float | None = None
) -> tuple[Figure, np.ndarray]:
    """An empty grid of pictures: the figure and its axes, an array (rows, columns), not drawn.

    `cell` is the width of one, inches; its height leaves room for a title.
    """
    size = (columns * cell, rows * (height or cell + 0.25))
    figure, axes = plt.subplots(rows, columns, figsize=size, squeeze=False, layout="constrained")
    for axis in axes.flat:
        axis.set_axis_off()
    plt.close(figure)
    return figure, axes


def grid_for(
    count: int, columns: int, cell: float = 1.9, height: float | None = None
) -> tuple[Figure, Sequence[Axes]]:
    """A grid for a number of pictures, with its axes row by row."""
    columns = min(columns, count)
    figure, axes = new_grid(-(-count // columns), columns, cell, height)
    return figure, axes.flat


def draw_case(
    axis: Axes,
    image: np.ndarray,
    truth: np.ndarray,
    prediction: np.ndarray | None = None,
    classes: int = 0,
) -> None:
    """An image, uint8 or float in [0, 1], with the contours of its masks, bool, all (H, W).

    Of several classes masks are label maps, and each has its colour in both contours.
    """
    axis.imshow(image)
    for mask, style in ((truth, TRUTH_STYLE), (prediction, PREDICTION_STYLE)):
        if mask is None:
            continue
        parts = [(mask == 1, style)]
        if classes:
            colours = enumerate(colours_of(classes), 1)
            parts = [(mask == number, style | {"colors": colour}) for number, colour in colours]
        for part, look in parts:
            # a mask without a border has no contour, and matplotlib warns about it
            if part.any() and not part.all():
                axis.contour(part, levels=[0.5], **look)


def draw_boxes(axis: Axes, groups: Iterable[Sequence[float]], width: float, **style) -> None:
    """Lying boxes at 0, 1, ...: the middle half of each group and its median; dots are drawn."""
    groups, black = list(groups), {"color": "black"}
    shared = {"orientation": "horizontal", "manage_ticks": False, "showfliers": False}
    places = range(len(groups))
    axis.boxplot(groups, positions=places, widths=width, medianprops=black, **shared, **style)


def name_row(axis: Axes, text: str) -> None:
    """The name of a row, upright at the left of its first picture."""
    place = {"transform": axis.transAxes, "ha": "right", "va": "center", "rotation": 90}
    axis.text(-0.04, 0.5, text, fontsize=8, multialignment="center", **place)


def write_in_corner(axis: Axes, text: str) -> None:
    """A number in the lower left corner of a picture, readable on any of them."""
    ground = {"facecolor": "black", "alpha": 0.65, "linewidth": 0, "pad": 1.5}
    place = axis.transAxes
    axis.text(0.04, 0.05, text, transform=place, fontsize=8, color="white", bbox=ground)


def name_contours(figure: Figure, classes: Sequence[str] = (), contours: bool = True) -> None:
    """A legend of the two contours, if both are there, and of several classes, below all."""
    handles = [
        Line2D([], [], color=style["colors"], linestyle=style["linestyles"], label=label)
        for style, label in ((TRUTH_STYLE, "truth"), (PREDICTION_STYLE, "prediction"))
        if contours
    ]
    if classes:
        for handle in handles:
            handle.set_color("black")
        colours = zip(classes, colours_of(len(classes)), strict=True)
        handles += [Patch(facecolor=c, edgecolor="black", label=name) for name, c in colours]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), fontsize=9)


def save_figure(figure: Figure, target: Path) -> list[Path]:
    """Writes `<target>.png` (200 dots per inch) and `<target>.pdf`, the same bytes each time."""
    written = []
    for suffix, metadata in _METADATA.items():
        path = Path(f"{target}.{suffix}")
        content = io.BytesIO()
        figure.savefig(content, format=suffix, dpi=200, metadata=metadata)
        with replace_file(path) as fresh:
            fresh.write_bytes(content.getvalue())
        written.append(path)
    return written
