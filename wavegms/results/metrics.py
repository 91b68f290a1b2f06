"""Overlap and boundary metrics of one binary mask against another (paper, section 3.2)."""

from dataclasses import dataclass

import numpy as np
from medpy.metric import binary


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
    prediction: np.ndarray, truth: np.ndarray, counted: np.ndarray | None = None
) -> MaskMetrics:
    """Compares two masks of one shape, bool (H, W), by MedPy; uncounted pixels are of neither."""
    if prediction.shape != truth.shape or prediction.ndim != 2:
        raise ValueError(f"masks of shapes {prediction.shape} and {truth.shape} cannot be compared")
    prediction, truth = prediction.astype(bool), truth.astype(bool)
    if counted is not None:
        prediction, truth = prediction & counted, truth & counted
    if not (prediction.any() or truth.any()):
        # MedPy's Dice would divide 0 by 0
        return MaskMetrics(1.0, 1.0, 0.0, 0.0, empty_prediction=True)
    if prediction.any() and truth.any():
        hd95 = hd95_zero_if_empty = float(binary.hd95(prediction, truth))
    else:
        hd95, hd95_zero_if_empty = float(np.hypot(*truth.shape)), 0.0
    return MaskMetrics(
        dsc=float(binary.dc(prediction, truth)),
        iou=float(binary.jc(prediction, truth)),
        hd95=hd95,
        hd95_zero_if_empty=hd95_zero_if_empty,
        empty_prediction=not prediction.any(),
    )


def class_metrics(
    prediction: np.ndarray, truth: np.ndarray, classes: int
) -> dict[int, MaskMetrics]:
    """Compares two label maps (H, W) class by class, by number; without those that neither has."""
    parts = {number: (prediction == number, truth == number) for number in range(1, classes + 1)}
    return {
        number: mask_metrics(*pair)
        for number, pair in parts.items()
        if pair[0].any() or pair[1].any()
    }
