"""The pictures of the notebooks; each function returns a matplotlib figure.

Truth is drawn as a solid cyan contour and a prediction as a dashed orange one: told apart by line
as well as by colour, and both visible on dark and bright tissue.
"""

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from wavegms.data.dataset import PreparedDataset
from wavegms.figures.style import (
    TRUTH_STYLE,
    _name_contours,
    as_picture,
    draw_case,
    name_row,
    new_grid,
    write_in_corner,
)
from wavegms.images import open_image
from wavegms.phantom.scanner import Phantom
from wavegms.results.metrics import mask_metrics


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


def show_cases(dataset: PreparedDataset, indices: Sequence[int], columns: int = 6) -> Figure:
    """Images with the contour of their mask.

    Args:
        dataset: a split.
        indices: which of its images.
        columns: pictures a row.
    """
    pairs = []
    for index in indices:
        case = dataset[index]
        label = f"\n{dataset.labels[index]}" if dataset.labels[index] else ""
        mask = case["mask"][0].numpy().astype(bool)
        pairs.append((f"{dataset.ids[index]}{label}", as_picture(case["image"]), mask))
    return show_pairs(pairs, columns)


def show_pairs(pairs: Sequence[tuple[str, np.ndarray, np.ndarray]], columns: int = 6) -> Figure:
    """Images of any sizes with the contour of their mask.

    Args:
        pairs: title; image, uint8 (H, W, 3); and mask, bool (H, W).
        columns: pictures a row.
    """
    columns = min(columns, len(pairs))
    figure, axes = new_grid(-(-len(pairs) // columns), columns)
    for axis, (title, image, mask) in zip(axes.flat, pairs, strict=False):
        draw_case(axis, image, mask)
        axis.set_title(title, fontsize=7)
    return figure


def show_phantoms(phantoms: Sequence[Phantom], columns: int = 4) -> Figure:
    """Simulated images with the contours of their lesions.

    Args:
        phantoms: what `simulate` gave.
        columns: pictures a row.
    """
    columns = min(columns, len(phantoms))
    figure, axes = new_grid(-(-len(phantoms) // columns), columns, cell=2.4)
    for axis, phantom in zip(axes.flat, phantoms, strict=False):
        axis.imshow(phantom.image, cmap="gray", vmin=0, vmax=255)
        for mask in phantom.masks:
            axis.contour(mask, levels=[0.5], **TRUTH_STYLE)
        height, width = phantom.image.shape
        axis.set_title(f"{phantom.label}, {width}×{height}", fontsize=8)
    return figure


def show_split(manifest: pd.DataFrame) -> Figure:
    """How much of the image the lesions cover, and how many images of each class, by split.

    Args:
        manifest: of a prepared folder.
    """
    parts = [part for part in ("train", "val", "test") if (manifest["split"] == part).any()]
    table = manifest.assign(
        label=manifest["label"].replace("", "no class"), cover=100 * manifest["mask_area"]
    )
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 2.8), layout="constrained")
    sns.stripplot(table, x="cover", y="split", order=parts, ax=left, size=3, alpha=0.6)
    left.set(xlabel="image covered by the lesion (%)", ylabel="", xlim=(0, None))
    sns.countplot(table, x="split", order=parts, hue="label", ax=right, palette="colorblind")
    right.set(xlabel="", ylabel="images")
    right.legend(title="", fontsize=8)
    sns.despine(figure)
    plt.close(figure)
    return figure


def show_scores(scores: pd.DataFrame) -> Figure:
    """How the metrics are distributed over the images, by class.

    Args:
        scores: of `score_split`.
    """
    table = scores.assign(label=scores["label"].replace("", "no class"))
    names = {"dsc": "Dice", "iou": "IoU", "hd95": "HD95 (pixels)"}
    figure, axes = plt.subplots(1, len(names), figsize=(10, 2.8), layout="constrained")
    for axis, (column, name) in zip(axes, names.items(), strict=True):
        sns.stripplot(table, x=column, y="label", ax=axis, size=3, alpha=0.6, color="#0072b2")
        axis.boxplot(
            [group[column] for _, group in table.groupby("label", sort=False)],
            positions=range(table["label"].nunique()),
            orientation="horizontal",
            widths=0.7,
            manage_ticks=False,
            showfliers=False,
            medianprops={"color": "black"},
        )
        axis.set(xlabel=name, ylabel="", xlim=(0, 1.02) if column != "hd95" else (0, None))
    sns.despine(figure)
    plt.close(figure)
    return figure


def show_extremes(
    dataset: PreparedDataset,
    probabilities: np.ndarray,
    scores: pd.DataFrame,
    threshold: float,
    count: int = 3,
) -> Figure:
    """The best, the median and the worst cases by Dice, with both contours.

    Args:
        dataset: the evaluated split.
        probabilities: float (N, H, W), in the order of the split.
        scores: of `score_split`, in the same order.
        threshold: probability from which a pixel belongs to the mask.
        count: cases of each kind; fewer where the split is small.
    """
    order = scores["dsc"].to_numpy().argsort(kind="stable")[::-1]
    count = min(count, len(order))
    middle = (len(order) - count) // 2
    rows = {
        "best": order[:count],
        "median": order[middle : middle + count],
        "worst": order[-count:],
    }
    figure, axes = new_grid(3, count, cell=2.3)
    for row, (name, indices) in zip(axes, rows.items(), strict=True):
        for axis, index in zip(row, indices, strict=True):
            case = dataset[int(index)]
            draw_case(
                axis,
                as_picture(case["image"]),
                case["mask"][0].numpy().astype(bool),
                probabilities[index] >= threshold,
            )
            dice = scores["dsc"].iloc[index]
            axis.set_title(f"{name}: {dataset.ids[int(index)]}\nDice {dice:.3f}", fontsize=8)
    _name_contours(figure)
    return figure


def show_comparison(
    dataset: PreparedDataset,
    probabilities: Mapping[str, np.ndarray],
    cases: Mapping[str, str],
    threshold: float,
) -> Figure:
    """What several systems make of the same images (paper, Figure 2).

    One row a case; the columns are the image, its true mask, and for each system the image with
    both contours and the Dice of this image in a corner.

    Args:
        dataset: the split.
        probabilities: by the system's title, float (N, H, W), in the order of the split.
        cases: by the image's id, why it is shown; see `evaluation.choose_cases`.
        threshold: probability from which a pixel belongs to the mask.
    """
    figure, axes = new_grid(len(cases), 2 + len(probabilities), cell=1.6)
    figure.set_figheight(1.55 * len(cases) + 0.75)  # only the first row has titles
    for axis, title in zip(axes[0], ("image", "truth", *probabilities), strict=True):
        # titles of systems are long; breaks keep neighbours apart
        axis.set_title(textwrap.fill(title, 21), fontsize=8)
    for row, (id, why) in zip(axes, cases.items(), strict=True):
        index = dataset.ids.index(id)
        case = dataset[index]
        picture, truth = as_picture(case["image"]), case["mask"][0].numpy().astype(bool)
        row[0].imshow(picture)
        row[1].imshow(truth, cmap="gray", vmin=0, vmax=1)
        name_row(row[0], f"{why}\n{id}" if why else id)
        for axis, soft_masks in zip(row[2:], probabilities.values(), strict=True):
            prediction = soft_masks[index] >= threshold
            draw_case(axis, picture, truth, prediction)
            write_in_corner(axis, f"{mask_metrics(prediction, truth).dsc:.3f}")
    _name_contours(figure)
    return figure
