"""The pictures of images: prepared, augmented, simulated, and with what was predicted of them."""

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure
from PIL import ImageColor

from wavegms.classes import colours_of, label_map
from wavegms.figures.style import (
    TRUTH_STYLE,
    draw_boxes,
    draw_case,
    grid_for,
    name_contours,
    name_row,
    new_grid,
    new_panels,
    write_in_corner,
)
from wavegms.images import FOREGROUND, of_class, open_image
from wavegms.phantom.scanner import Phantom
from wavegms.results.metrics import mask_metrics, mean_of_classes
from wavegms.results.statistics import classes_in

if TYPE_CHECKING:  # pictures of what is simulated need no torch
    from torch import Tensor

    from wavegms.data.dataset import PreparedDataset


def as_picture(image: "Tensor") -> np.ndarray:
    """A uint8 tensor (3, H, W) as an array (H, W, 3)."""
    return image.movedim(0, -1).numpy()


def _case(dataset: "PreparedDataset", index: int) -> tuple[np.ndarray, np.ndarray]:
    """Image, uint8 (H, W, 3), and mask, bool (H, W); of several classes a label map."""
    case = dataset[int(index)]
    mask = case["mask"][0].numpy()
    if not dataset.classes:
        return as_picture(case["image"]), mask == FOREGROUND
    return as_picture(case["image"]), mask * of_class(mask, len(dataset.classes))


def _found(dataset: "PreparedDataset", soft: np.ndarray, threshold: float) -> np.ndarray:
    """The predicted mask of an image, likewise."""
    return label_map(soft, threshold) if dataset.classes else soft >= threshold


def draw_pairs(folder: Path, pairs: pd.DataFrame, columns: int = 3) -> Figure:
    """Pairs of `audit_prepared` side by side, each image of the folder with its id and split.

    Above each pair stand its kind and similarity. There may be none.
    """
    figure, axes = grid_for(2 * max(1, len(pairs)), 2 * columns, cell=1.8, height=2.4)
    sides = [(pair, side) for pair in pairs.to_dict("records") for side in "ab"]
    for axis, (pair, side) in zip(axes, sides, strict=False):
        id, split, label = (pair[f"{name}_{side}"] for name in ("id", "split", "label"))
        above = f"{pair['kind']}, {pair['similarity']:.2f}" if side == "a" else ""
        axis.imshow(open_image(Path(folder) / "images" / f"{id}.png"))
        axis.set_title(f"{above}\n{id}\n{split}{label and f', {label}'}", fontsize=7)
    if pairs.empty:
        axes[0].text(0, 0.5, "no pairs")
    return figure


def show_cases(dataset: "PreparedDataset", indices: Sequence[int], columns: int = 6) -> Figure:
    """Images of a split with the contour of their mask."""
    titles = [f"{dataset.ids[i]}\n{dataset.labels[i]}".rstrip("\n") for i in indices]
    cases = [_case(dataset, index) for index in indices]
    pairs = [(title, *case) for title, case in zip(titles, cases, strict=True)]
    return show_pairs(pairs, columns, dataset.classes)


def show_pairs(
    pairs: Sequence[tuple[str, np.ndarray, np.ndarray]],
    columns: int = 6,
    classes: Sequence[str] = (),
) -> Figure:
    """Images of any sizes, uint8 (H, W, 3), with a title and the contour of a mask, bool (H, W).

    Of several classes masks are label maps.
    """
    figure, axes = grid_for(len(pairs), columns)
    for axis, (title, image, mask) in zip(axes, pairs, strict=False):
        draw_case(axis, image, mask, classes=len(classes))
        axis.set_title(title, fontsize=7)
    if classes:
        name_contours(figure, classes, contours=False)
    return figure


def show_phantoms(phantoms: Sequence[Phantom]) -> Figure:
    """Simulated images with the contours of their lesions."""
    figure, axes = grid_for(len(phantoms), 4, cell=2.4)
    for axis, phantom in zip(axes, phantoms, strict=False):
        axis.imshow(phantom.image, cmap="gray", vmin=0, vmax=255)
        for mask in phantom.masks:
            axis.contour(mask, levels=[0.5], **TRUTH_STYLE)
        height, width = phantom.image.shape
        axis.set_title(f"{phantom.label}, {width}×{height}", fontsize=8)
    return figure


def _name_classes(table: pd.DataFrame) -> pd.DataFrame:
    return table.assign(label=table["label"].replace("", "no class"))


def show_split(manifest: pd.DataFrame) -> Figure:
    """How much of the image the lesions cover, and how many images of each class, by split."""
    parts = [part for part in ("train", "val", "test") if (manifest["split"] == part).any()]
    table = _name_classes(manifest).assign(cover=100 * manifest["mask_area"])
    figure, (left, right) = new_panels(2, 9, 2.8)
    sns.stripplot(table, x="cover", y="split", order=parts, ax=left, size=3, alpha=0.6)
    left.set(xlabel="image covered by the lesion (%)", ylabel="", xlim=(0, None))
    sns.countplot(table, x="split", order=parts, hue="label", ax=right, palette="colorblind")
    right.set(xlabel="", ylabel="images")
    right.legend(title="", fontsize=8)
    sns.despine(figure)
    return figure


def show_scores(scores: pd.DataFrame) -> Figure:
    """How the metrics of `score_split` are distributed over the images, by class.

    Of several classes in a mask they are those of each, and their mean.
    """
    table = _name_classes(scores)
    names = {"dsc": "Dice", "iou": "IoU", "hd95": "HD95 (pixels)"}
    if several := classes_in(scores):
        each = [
            scores[[f"{key}:{name}" for key in names]].set_axis(list(names), axis=1).dropna()
            for name in several
        ]
        rows = dict(zip(["mean", *several], [scores[list(names)], *each], strict=True))
        table = pd.concat(rows, names=["label"]).reset_index("label")
    figure, axes = new_panels(len(names), 10, 2.8)
    for axis, (column, name) in zip(axes, names.items(), strict=True):
        sns.stripplot(table, x=column, y="label", ax=axis, size=3, alpha=0.6, color="#0072b2")
        draw_boxes(axis, (group for _, group in table.groupby("label", sort=False)[column]), 0.7)
        axis.set(xlabel=name, ylabel="", xlim=(0, 1.02) if column != "hd95" else (0, None))
    sns.despine(figure)
    return figure


def show_extremes(
    dataset: "PreparedDataset",
    probabilities: np.ndarray,
    scores: pd.DataFrame,
    threshold: float,
    count: int = 3,
) -> Figure:
    """The best, the median and the worst cases by Dice, with both contours.

    Probabilities, (N, H, W), and scores are in the order of the split.
    """
    order = scores["dsc"].to_numpy().argsort(kind="stable")[::-1]
    count = min(count, len(order))
    middle = (len(order) - count) // 2
    starts = {"best": 0, "median": middle, "worst": len(order) - count}
    figure, axes = new_grid(3, count, cell=2.3)
    for row, (name, start) in zip(axes, starts.items(), strict=True):
        for axis, index in zip(row, order[start : start + count], strict=True):
            found = _found(dataset, probabilities[index], threshold)
            draw_case(axis, *_case(dataset, index), found, len(dataset.classes))
            dice = scores["dsc"].iloc[index]
            axis.set_title(f"{name}: {dataset.ids[index]}\nDice {dice:.3f}", fontsize=8)
    name_contours(figure, dataset.classes)
    return figure


def show_comparison(
    dataset: "PreparedDataset",
    probabilities: Mapping[str, np.ndarray],
    cases: Mapping[str, str],
    threshold: float,
) -> Figure:
    """What several systems make of the same images (paper, Figure 2).

    One row a case, as `choose_cases` gives them; the columns are the image, its true mask, and for
    each system, by its title, the image with both contours and the Dice of this image in a corner.
    Probabilities are (N, H, W), in the order of the split.
    """
    figure, axes = new_grid(len(cases), 2 + len(probabilities), cell=1.6)
    figure.set_figheight(1.55 * len(cases) + 0.75)  # only the first row has titles
    for axis, title in zip(axes[0], ("image", "truth", *probabilities), strict=True):
        # titles of systems are long; breaks keep neighbours apart
        axis.set_title(textwrap.fill(title, 21), fontsize=8)
    for row, (id, why) in zip(axes, cases.items(), strict=True):
        index = dataset.ids.index(id)
        picture, truth = _case(dataset, index)
        row[0].imshow(picture)
        row[1].imshow(_in_colours(truth, dataset.classes), cmap="gray", vmin=0, vmax=1)
        name_row(row[0], f"{why}\n{id}" if why else id)
        for axis, soft_masks in zip(row[2:], probabilities.values(), strict=True):
            prediction = _found(dataset, soft_masks[index], threshold)
            draw_case(axis, picture, truth, prediction, len(dataset.classes))
            write_in_corner(axis, f"{_dice(prediction, truth, dataset.classes):.3f}")
    name_contours(figure, dataset.classes)
    return figure


def _in_colours(mask: np.ndarray, classes: Sequence[str]) -> np.ndarray:
    if not classes:
        return mask
    rgb = ["#000000", *colours_of(len(classes))]
    return np.array([ImageColor.getrgb(one) for one in rgb], np.uint8)[mask]


def _dice(prediction: np.ndarray, truth: np.ndarray, classes: Sequence[str]) -> float:
    if not classes:
        return mask_metrics(prediction, truth).dsc
    return mean_of_classes(prediction, truth, len(classes)).dsc
