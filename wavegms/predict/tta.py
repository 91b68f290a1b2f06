"""Test-time augmentation: an image is predicted in several views, and the predictions averaged."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Self

import torch
from torch import Generator, Tensor

from wavegms.data.dataset import PreparedDataset
from wavegms.errors import InputError
from wavegms.models.pipeline import WaveGMSPipeline
from wavegms.results.scores import predict_split, score_split
from wavegms.results.statistics import paired_test
from wavegms.training.card import ModelCard, read_card

_RESAMPLES = 2000


class View(NamedTuple):
    """One way to look at square images (..., S, S): mirrored first, then turned."""

    mirrored: bool  # left and right exchanged
    quarter_turns: int  # counter-clockwise

    def of(self, images: Tensor) -> Tensor:
        """The images as this view shows them."""
        images = images.flip(-1) if self.mirrored else images
        return torch.rot90(images, self.quarter_turns, (-2, -1))

    def back(self, images: Tensor) -> Tensor:
        """Undoes `of`."""
        images = torch.rot90(images, -self.quarter_turns, (-2, -1))
        return images.flip(-1) if self.mirrored else images


def views_of(augmentation: Mapping[str, float]) -> tuple[View, ...]:
    """The flips and turns that a training drew from: views that the network was taught.

    The image as it is comes first, then every combination. Which of them leave the anatomy
    plausible was decided there. In breast ultrasound, skin is above and shadows fall below, so an
    image upside down is none that the network should have to judge.
    """
    horizontal, vertical, turned = (
        augmentation.get(name, 0) > 0 for name in ("horizontal_flip", "vertical_flip", "rotate_90")
    )
    if turned:
        mirrors = (False, True) if horizontal or vertical else (False,)
        return tuple(View(mirrored, turns) for mirrored in mirrors for turns in range(4))
    views = [View(False, 0)]
    if horizontal:
        views.append(View(True, 0))
    if vertical:
        views.append(View(True, 2))
    if horizontal and vertical:
        views.append(View(False, 2))
    return tuple(views)


def average_views(
    predict: Callable[[Tensor], Tensor], images: Tensor, views: Sequence[View]
) -> Tensor:
    """The mean of the predictions of all views, each turned back: (B, C, S, S) -> (B, K, S, S)."""
    return sum(view.back(predict(view.of(images))) for view in views) / len(views)


class AugmentedPipeline(WaveGMSPipeline):
    """A pipeline that predicts through several views; all else is as in its origin, see `of`."""

    views: tuple[View, ...] = (View(False, 0),)

    @classmethod
    def of(cls, pipeline: WaveGMSPipeline, views: Sequence[View]) -> Self:
        """Shares the networks of a pipeline, see `sharing`."""
        augmented = cls.sharing(pipeline)
        augmented.views = tuple(views)
        return augmented

    def predict(self, images: Tensor, generator: Generator | None = None) -> Tensor:
        """As `WaveGMSPipeline.predict`, averaged over the views."""
        plain = super().predict
        return average_views(lambda view: plain(view, generator), images, self.views)


@dataclass(frozen=True)
class Gain:
    """What the views gained on the validation images of a dataset: mean Dice in [0, 1].

    Without the views, with them, and the mean difference with its 95 % bootstrap interval.
    """

    dataset: str
    images: int
    plain: float
    augmented: float
    difference: float
    ci_low: float
    ci_high: float

    def __str__(self) -> str:
        verdict = "it helps" if self.ci_low > 0 else "it harms" if self.ci_high < 0 else None
        return (
            f"DSC on the {self.images} validation images of {self.dataset} {self.plain:.3f} -> "
            f"{self.augmented:.3f} (difference {self.difference:+.3f}, 95 % interval "
            f"{self.ci_low:+.3f} to {self.ci_high:+.3f}): {verdict or 'no clear gain'}"
        )


def measure_gain(
    plain: WaveGMSPipeline,
    augmented: AugmentedPipeline,
    dataset: PreparedDataset,
    name: str,
    *,
    batch_size: int = 12,
    threshold: float = 0.5,
    seed: int = 0,
) -> Gain:
    """Compares the Dice of the same images with and without the views."""
    before, after = (
        score_split(predict_split(model, dataset, batch_size), dataset, threshold)["dsc"]
        for model in (plain, augmented)
    )
    test = paired_test((after - before).round(12), _RESAMPLES, seed)
    return Gain(
        dataset=name,
        images=len(dataset),
        plain=float(before.mean()),
        augmented=float(after.mean()),
        difference=float(test["mean_difference"]),
        ci_low=float(test["ci_low"]),
        ci_high=float(test["ci_high"]),
    )


def open_validation(card: ModelCard, prepared: Path) -> PreparedDataset:
    """The validation split that a model was trained beside; an InputError says why it is not."""
    folder = Path(prepared) / card.dataset
    if not folder.is_dir():
        raise InputError(f"the validation images are not here ({folder} does not exist)")
    dataset = PreparedDataset(folder, "val", fold=card.folds.get("fold", 1))
    if dataset.data_hash != card.data_hash:
        raise InputError(f"{folder} was prepared otherwise than what the model was trained on")
    return dataset


def add_views(
    pipeline: WaveGMSPipeline, prepared: Path, threshold: float = 0.5, batch_size: int = 12
) -> tuple[WaveGMSPipeline, Gain | None, str]:
    """Gives a pipeline the views of its training, and finds out whether they help.

    The card of the trained model names training and dataset; without one, the view from left to
    right is added. Given back are the pipeline to predict with, which is the one given if the
    training knew no other view; the gain, None if it cannot be measured here; and one line that
    says either.
    """
    views, card, why = views_of({"horizontal_flip": 1}), None, "the model was opened from no folder"
    if pipeline.name_or_path:
        try:
            card = read_card(Path(pipeline.name_or_path))
            views = views_of(card.parameters["training"]["augmentation"])
        except InputError as error:
            why = str(error)
    if len(views) == 1:
        return pipeline, None, "the model was trained without flips and turns, so nothing is added"
    augmented, gain = AugmentedPipeline.of(pipeline, views), None
    if card is not None:
        try:
            images = open_validation(card, prepared)
            options = {"batch_size": batch_size, "threshold": threshold}
            gain = measure_gain(pipeline, augmented, images, card.dataset, **options)
        except InputError as error:
            why = str(error)
    said = gain or f"whether it helps is not known, as {why}"
    return augmented, gain, f"{len(views)} views, {said}"
