"""Overlap and boundary metrics of one binary mask against another (paper, section 3.2)."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from medpy.metric import binary
from scipy import ndimage


@dataclass(frozen=True)
class MaskMetrics:
    """How well one predicted mask matches its truth.

    `dsc` and `iou` lie in [0, 1] and are 1 if both masks are empty. `hd95` is the 95th percentile
    of the surface distances, in pixels, and 0 if both are empty. Where exactly one mask is empty
    there is no surface to measure from, and the image diagonal stands in: the worst any prediction
    could do. `hd95_zero_if_empty` is 0 there, as the reference code scores: it rewards an empty
    prediction, and is here to compare with published numbers.
    """

    dsc: float
    iou: float
    hd95: float
    hd95_zero_if_empty: float
    empty_prediction: bool


def mask_metrics(
    prediction: np.ndarray,
    truth: np.ndarray,
    counted: np.ndarray | None = None,
    spacing: tuple[float, float] = (1.0, 1.0),
) -> MaskMetrics:
    """Compares two masks of one shape, bool (H, W), by MedPy; uncounted pixels are of neither.

    Distances are in the unit of `spacing`, which is that from row to row and from column to column.
    """
    if prediction.shape != truth.shape or prediction.ndim != 2:
        raise ValueError(f"masks of shapes {prediction.shape} and {truth.shape} cannot be compared")
    prediction, truth = prediction.astype(bool), truth.astype(bool)
    if counted is not None:
        prediction, truth = prediction & counted, truth & counted
    if not (prediction.any() or truth.any()):
        # MedPy's Dice would divide 0 by 0
        return MaskMetrics(1.0, 1.0, 0.0, 0.0, empty_prediction=True)
    if prediction.any() and truth.any():
        # Every surface lies in the box around both: of 2000×2000 pixels, MedPy takes 0.2 s for a
        # lesion of 800 pixels in its box, and 0.9 s for the whole image.
        (box,) = ndimage.find_objects((prediction | truth).astype(np.uint8))
        hd95 = hd95_zero_if_empty = float(binary.hd95(prediction[box], truth[box], spacing))
    else:
        hd95, hd95_zero_if_empty = float(np.hypot(*np.multiply(truth.shape, spacing))), 0.0
    return MaskMetrics(
        dsc=float(binary.dc(prediction, truth)),
        iou=float(binary.jc(prediction, truth)),
        hd95=hd95,
        hd95_zero_if_empty=hd95_zero_if_empty,
        empty_prediction=not prediction.any(),
    )


def class_metrics(
    prediction: np.ndarray,
    truth: np.ndarray,
    classes: int,
    spacing: tuple[float, float] = (1.0, 1.0),
) -> dict[int, MaskMetrics]:
    """Compares two label maps (H, W) class by class, by number; without those that neither has."""
    parts = {number: (prediction == number, truth == number) for number in range(1, classes + 1)}
    return {
        number: mask_metrics(*pair, spacing=spacing)
        for number, pair in parts.items()
        if pair[0].any() or pair[1].any()
    }


def mean_of_classes(
    prediction: np.ndarray,
    truth: np.ndarray,
    classes: int,
    spacing: tuple[float, float] = (1.0, 1.0),
) -> MaskMetrics:
    """The `mean_of` the classes of two label maps (H, W)."""
    return mean_of(class_metrics(prediction, truth, classes, spacing), not prediction.any())


def mean_of(found: Mapping[int, MaskMetrics], empty_prediction: bool) -> MaskMetrics:
    """The means over what `class_metrics` gave; of no class, those of two empty masks."""
    if not found:
        return MaskMetrics(1.0, 1.0, 0.0, 0.0, empty_prediction=True)
    names = ("dsc", "iou", "hd95", "hd95_zero_if_empty")
    means = {name: float(np.mean([getattr(one, name) for one in found.values()])) for name in names}
    return MaskMetrics(**means, empty_prediction=empty_prediction)
