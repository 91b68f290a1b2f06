"""What the pictures share: colours of truth and prediction, grids, contours, files. No torch."""

import io
from pathlib import Path

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from torch import Tensor

from wavegms.files import replace_file

TRUTH_STYLE = {"colors": "#00d5ff", "linestyles": "solid", "linewidths": 1.4}

PREDICTION_STYLE = {"colors": "#ff8c1a", "linestyles": "dashed", "linewidths": 1.4}

_CELL = 1.9  # inches


def new_grid(rows: int, columns: int, cell: float = _CELL) -> tuple[Figure, np.ndarray]:
    """An empty grid of pictures without axes.

    Args:
        rows: number of rows.
        columns: number of columns.
        cell: side of one picture, inches.

    Returns:
        The figure and its axes, an array (rows, columns).
    """
    figure, axes = plt.subplots(
        rows,
        columns,
        figsize=(columns * cell, rows * (cell + 0.25)),
        squeeze=False,
        layout="constrained",
    )
    for axis in axes.flat:
        axis.set_axis_off()
    # the notebook shows what the cell returns; left open, pyplot would show it a second time
    plt.close(figure)
    return figure, axes


def draw_case(
    axis: Axes, image: np.ndarray, truth: np.ndarray | None, prediction: np.ndarray | None = None
) -> None:
    """One image with the contours of its masks.

    Args:
        axis: where to draw.
        image: uint8, or float in [0, 1], (H, W, 3).
        truth: bool (H, W), or None.
        prediction: bool (H, W), or None.
    """
    axis.imshow(image)
    for mask, style in ((truth, TRUTH_STYLE), (prediction, PREDICTION_STYLE)):
        # a mask without a border has no contour, and matplotlib warns about it
        if mask is not None and mask.any() and not mask.all():
            axis.contour(mask, levels=[0.5], **style)


def as_picture(image: Tensor) -> np.ndarray:
    """A uint8 tensor (3, H, W) as an array (H, W, 3)."""
    return image.movedim(0, -1).numpy()


def name_row(axis: Axes, text: str) -> None:
    """The name of a row, upright at the left of its first picture."""
    place = {"transform": axis.transAxes, "ha": "right", "va": "center", "rotation": 90}
    axis.text(-0.04, 0.5, text, fontsize=8, multialignment="center", **place)


def write_in_corner(axis: Axes, text: str) -> None:
    """A number in the lower left corner of a picture, readable on any of them."""
    axis.text(
        0.04,
        0.05,
        text,
        transform=axis.transAxes,
        fontsize=8,
        color="white",
        bbox={"facecolor": "black", "alpha": 0.65, "linewidth": 0, "pad": 1.5},
    )


def _name_contours(figure: Figure) -> None:
    handles = [
        Line2D([], [], color=style["colors"], linestyle=style["linestyles"], label=label)
        for style, label in ((TRUTH_STYLE, "truth"), (PREDICTION_STYLE, "prediction"))
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=2, fontsize=9)


def save_figure(figure: Figure, target: Path) -> list[Path]:
    """Writes a figure for the screen and for print; the same figure gives the same bytes.

    Args:
        figure: the figure.
        target: path without suffix; its folder is made if missing.

    Returns:
        `<target>.png` (200 dots per inch) and `<target>.pdf`.
    """
    target = Path(target)
    written = []
    for suffix, metadata in (
        ("png", {"Software": None}),
        ("pdf", {"Creator": None, "Producer": None, "CreationDate": None}),
    ):
        path = target.with_name(f"{target.name}.{suffix}")
        content = io.BytesIO()
        figure.savefig(content, format=suffix, dpi=200, metadata=metadata)
        with replace_file(path) as fresh:
            fresh.write_bytes(content.getvalue())
        written.append(path)
    return written
