"""The pictures of the notebooks; each function returns a matplotlib figure.

Truth is drawn as a solid cyan contour and a prediction as a dashed orange one: told apart by line
as well as by colour, and both visible on dark and bright tissue.
"""

import textwrap
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import seaborn as sns
import torch
from diffusers import AutoencoderTiny
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter
from torch import Tensor

from wavegms.config import AugmentationParams
from wavegms.data.augment import Augmentation
from wavegms.data.dataset import PreparedDataset
from wavegms.data.phantom import Phantom
from wavegms.metrics import mask_metrics
from wavegms.models.autoencoder import decode_masks, encode_images, encode_masks

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


def show_augmented(
    dataset: PreparedDataset, settings: AugmentationParams, seed: int, count: int = 6
) -> Figure:
    """Images as they are, and below them three of the many ways in which training sees them.

    Args:
        dataset: the training split.
        settings: probability of each augmentation.
        seed: of what is drawn.
        count: number of images.
    """
    cases = [dataset[index] for index in range(min(count, len(dataset)))]
    images = PreparedDataset.to_float(torch.stack([case["image"] for case in cases]))
    masks = PreparedDataset.mask_to_float(torch.stack([case["mask"] for case in cases]))
    augment = Augmentation(**settings.model_dump())
    figure, axes = new_grid(4, len(cases), cell=1.4)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        versions = [(images, masks)] + [augment(images, masks) for _ in range(3)]
    for row, (pictures, truths) in zip(axes, versions, strict=True):
        for axis, picture, truth in zip(row, pictures, truths, strict=True):
            draw_case(axis, picture.movedim(0, -1).numpy(), truth[0].numpy() > 0.5)
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


@torch.inference_mode()
def show_reconstructions(
    vae: AutoencoderTiny, dataset: PreparedDataset, indices: Sequence[int]
) -> Figure:
    """Images and masks beside what the autoencoder gives back.

    Args:
        vae: the autoencoder.
        dataset: a split.
        indices: which of its images.
    """
    cases = [dataset[index] for index in indices]
    images = PreparedDataset.to_float(torch.stack([case["image"] for case in cases]))
    masks = PreparedDataset.mask_to_float(torch.stack([case["mask"] for case in cases]))
    decoded = ((vae.decode(encode_images(vae, images)).sample + 1) / 2).clamp(0, 1)
    soft_masks = decode_masks(vae, encode_masks(vae, masks))
    rows = {
        "image": images,
        "image, decoded": decoded,
        "mask": masks,
        "mask, decoded": soft_masks,
    }
    figure, axes = new_grid(len(rows), len(cases), cell=1.5)
    for row, (name, pictures) in zip(axes, rows.items(), strict=True):
        for axis, picture, index in zip(row, pictures, indices, strict=True):
            axis.imshow(picture.movedim(0, -1).squeeze(-1).numpy(), cmap="gray", vmin=0, vmax=1)
            axis.set_title(f"{name}\n{dataset.ids[index]}", fontsize=7)
    return figure


def show_history(history: pd.DataFrame, best_epoch: int) -> Figure:
    """Losses and selection Dice over the epochs.

    Args:
        history: of a `TrainingResult`.
        best_epoch: the epoch whose weights were kept.
    """
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3), layout="constrained")
    names = {"seg": "mask (Dice)", "lm": "latent mapping (MSE)", "align": "alignment"}
    for (column, name), colour in zip(names.items(), sns.color_palette("colorblind"), strict=False):
        if column not in history:  # not every network has every term
            continue
        left.plot(history["epoch"], history[column], label=name, color=colour)
    left.set(xlabel="epoch", ylabel="training loss", yscale="log")
    left.legend(fontsize=8)
    left.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    left.yaxis.set_major_formatter("{x:g}")
    left.yaxis.set_minor_formatter(NullFormatter())
    right.plot(history["epoch"], history["selection_dice"], color="black")
    best = history.loc[history["epoch"] == best_epoch, "selection_dice"].item()
    right.plot(best_epoch, best, "o", color="#d55e00")
    right.set_title(f"kept: epoch {best_epoch}, {best:.3f}", fontsize=9, loc="right")
    right.set(xlabel="epoch", ylabel="soft Dice on the selecting images", ylim=(0, 1))
    for axis in (left, right):
        axis.xaxis.set_major_locator(MaxNLocator("auto", integer=True))
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
