"""The picture of the leakage audit: suspicious pairs side by side."""

from pathlib import Path

import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from wavegms.data.files import open_image


def draw_pairs(folder: Path, pairs: pd.DataFrame, columns: int = 3) -> Figure:
    """Pairs of images side by side, each image with its id and split.

    Args:
        folder: the prepared folder that was audited.
        pairs: the rows of `audit_prepared` to show, in their order; there may be none.
        columns: pairs in a row.

    Returns:
        A figure with two pictures a pair; above them the ids, splits and classes, and the kind and
        similarity of the pair.

    Raises:
        InputError: an image of the folder is missing or broken.
    """
    columns = max(1, min(columns, len(pairs)))
    rows = max(1, -(-len(pairs) // columns))
    figure, axes = plt.subplots(
        rows,
        2 * columns,
        figsize=(3.6 * columns, 2.4 * rows),
        squeeze=False,
        layout="constrained",
    )
    for axis in axes.flat:
        axis.set_axis_off()
    for place, pair in enumerate(pairs.itertuples()):
        left, right = axes[place // columns, 2 * (place % columns) :][:2]
        note = f"{pair.kind}, {pair.similarity:.2f}"
        _draw(left, folder, pair.id_a, pair.split_a, pair.label_a, note)
        _draw(right, folder, pair.id_b, pair.split_b, pair.label_b, "")
    if pairs.empty:
        axes[0, 0].text(0, 0.5, "no pairs")
    # the notebook shows what the cell returns; left open, pyplot would show it a second time
    plt.close(figure)
    return figure


def _draw(axis, folder: Path, id: str, split: str, label: str, note: str) -> None:
    axis.imshow(open_image(Path(folder) / "images" / f"{id}.png"))
    about = f"{split}, {label}" if label else split
    axis.set_title(f"{note}\n{id}\n{about}", fontsize=7)
