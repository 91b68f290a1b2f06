"""The pictures of images: prepared, augmented, simulated, and with what was predicted of them."""

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from wavegms.figures.style import (
    TRUTH_STYLE,
    draw_case,
    grid_for,
    name_contours,
    name_row,
    new_grid,
    write_in_corner,
)
from wavegms.images import FOREGROUND, open_image
from wavegms.phantom.scanner import Phantom
from wavegms.results.metrics import mask_metrics

if TYPE_CHECKING:  # pictures of what is simulated need no torch
    from torch import Tensor

    from wavegms.data.dataset import PreparedDataset


def as_picture(image: "Tensor") -> np.ndarray:
    """A uint8 tensor (3, H, W) as an array (H, W, 3)."""
    return image.movedim(0, -1).numpy()


def _case(dataset: "PreparedDataset", index: int) -> tuple[np.ndarray, np.ndarray]:
    """Image, uint8 (H, W, 3), and mask, bool (H, W)."""
    case = dataset[int(index)]
    return as_picture(case["image"]), case["mask"][0].numpy() == FOREGROUND


def draw_pairs(folder: Path, pairs: pd.DataFrame, columns: int = 3) -> Figure:
    """Pairs of `audit_prepared` side by side, each image of the folder with its id and split.

    Above each pair stand its kind and similarity. There may be none.
    """
    figure, axes = grid_for(2 * max(1, len(pairs)), 2 * columns, cell=1.8, height=2.4)
    for place, pair in enumerate(pairs.itertuples()):
        note = f"{pair.kind}, {pair.similarity:.2f}"
        for axis, id, split, label, above in (
            (axes[2 * place], pair.id_a, pair.split_a, pair.label_a, note),
            (axes[2 * place + 1], pair.id_b, pair.split_b, pair.label_b, ""),
        ):
            axis.imshow(open_image(Path(folder) / "images" / f"{id}.png"))
            about = f"{split}, {label}" if label else split
            axis.set_title(f"{above}\n{id}\n{about}", fontsize=7)
    if pairs.empty:
        axes[0].text(0, 0.5, "no pairs")
    return figure


def show_cases(dataset: "PreparedDataset", indices: Sequence[int], columns: int = 6) -> Figure:
    """Images of a split with the contour of their mask."""
    pairs = []
    for index in indices:
        label = f"\n{dataset.labels[index]}" if dataset.labels[index] else ""
        pairs.append((f"{dataset.ids[index]}{label}", *_case(dataset, index)))
    return show_pairs(pairs, columns)


def show_pairs(pairs: Sequence[tuple[str, np.ndarray, np.ndarray]], columns: int = 6) -> Figure:
    """Images of any sizes, uint8 (H, W, 3), with a title and the contour of a mask, bool (H, W)."""
    figure, axes = grid_for(len(pairs), columns)
    for axis, (title, image, mask) in zip(axes, pairs, strict=False):
        draw_case(axis, image, mask)
        axis.set_title(title, fontsize=7)
    return figure


def show_phantoms(phantoms: Sequence[Phantom], columns: int = 4) -> Figure:
    """Simulated images with the contours of their lesions."""
    figure, axes = grid_for(len(phantoms), columns, cell=2.4)
    for axis, phantom in zip(axes, phantoms, strict=False):
        axis.imshow(phantom.image, cmap="gray", vmin=0, vmax=255)
        for mask in phantom.masks:
            axis.contour(mask, levels=[0.5], **TRUTH_STYLE)
        height, width = phantom.image.shape
        axis.set_title(f"{phantom.label}, {width}×{height}", fontsize=8)
    return figure


def show_split(manifest: pd.DataFrame) -> Figure:
    """How much of the image the lesions cover, and how many images of each class, by split."""
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
    """How the metrics of `score_split` are distributed over the images, by class."""
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
    rows = {
        "best": order[:count],
        "median": order[middle : middle + count],
        "worst": order[-count:],
    }
    figure, axes = new_grid(3, count, cell=2.3)
    for row, (name, indices) in zip(axes, rows.items(), strict=True):
        for axis, index in zip(row, indices, strict=True):
            draw_case(axis, *_case(dataset, index), probabilities[index] >= threshold)
            dice = scores["dsc"].iloc[index]
            axis.set_title(f"{name}: {dataset.ids[int(index)]}\nDice {dice:.3f}", fontsize=8)
    name_contours(figure)
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
        row[1].imshow(truth, cmap="gray", vmin=0, vmax=1)
        name_row(row[0], f"{why}\n{id}" if why else id)
        for axis, soft_masks in zip(row[2:], probabilities.values(), strict=True):
            prediction = soft_masks[index] >= threshold
            draw_case(axis, picture, truth, prediction)
            write_in_corner(axis, f"{mask_metrics(prediction, truth).dsc:.3f}")
    name_contours(figure)
    return figure
