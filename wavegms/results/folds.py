"""Models of cross-validation: each image scored by the one that did not see it, or all averaged."""

from collections.abc import Sequence
from pathlib import Path
from typing import Self

import numpy as np
import torch
from torch import Generator, Tensor
from torch.utils.data import Subset

from wavegms.data.dataset import PreparedDataset
from wavegms.errors import InputError
from wavegms.models.pipeline import WaveGMSPipeline
from wavegms.results.scores import predict_split
from wavegms.training.card import fold_models, read_card
from wavegms.variants import Decoder


class FoldedPipeline(WaveGMSPipeline):
    """A pipeline that gives the mean of the probabilities of several; all else is the first's."""

    others: tuple[WaveGMSPipeline, ...] = ()

    @classmethod
    def of(cls, pipelines: Sequence[WaveGMSPipeline]) -> Self:
        """Shares the networks of pipelines of one size and scale, see `sharing`."""
        folded = cls.sharing(pipelines[0])
        folded.others = tuple(pipelines[1:])
        return folded

    def choose_decoder(self, decoder: Decoder) -> None:
        """As `WaveGMSPipeline.choose_decoder`, for all."""
        super().choose_decoder(decoder)
        for pipeline in self.others:
            pipeline.choose_decoder(decoder)

    def predict(self, images: Tensor, generator: Generator | None = None) -> Tensor:
        """As `WaveGMSPipeline.predict`, averaged over the pipelines."""
        soft = super().predict(images, generator)
        for pipeline in self.others:
            soft = soft + pipeline.predict(images, generator)
        return soft / (1 + len(self.others))


def open_mean(
    folder: Path, decoder: Decoder = "exact", device: str | torch.device = "cpu"
) -> WaveGMSPipeline:
    """A trained model or, where those of other folds lie in its folder, the mean of all."""
    first = WaveGMSPipeline.from_pretrained(folder, decoder=decoder).to(device)
    where = Path(first.name_or_path)
    # no card is asked of what was saved or shared alone
    if not (where / "fold_2").is_dir():
        return first
    open_other = WaveGMSPipeline.from_pretrained
    others = [open_other(place, decoder=decoder).to(device) for place in fold_models(where)[1:]]
    return FoldedPipeline.of([first, *others])


def predict_unseen(
    folder: Path, test_set: PreparedDataset, decoder: Decoder = "exact"
) -> np.ndarray:
    """Soft masks of `PreparedDataset.to_test` as `predict_split` gives them, by a trained model.

    With folds, each image's are of the model of the fold in which it is for testing.

    Raises:
        InputError: with folds, there are not as many models, or they learned from other data.
    """
    models = fold_models(folder)
    if len(models) != max(1, test_set.folds):
        raise InputError(
            f"{folder} holds {len(models)} models, but its data have {test_set.folds} folds: run "
            "the train stage again"
        )
    if len(models) == 1:
        return predict_split(WaveGMSPipeline.from_pretrained(folder, decoder=decoder), test_set)
    several = (len(test_set.classes),) if test_set.classes else ()
    side = test_set.image_size
    soft_masks = np.empty((len(test_set), *several, side, side), np.float32)
    for fold, place in enumerate(models, start=1):
        if read_card(place).data_hash != test_set.data_hash:
            raise InputError(
                f"{place} learned from data that were prepared otherwise, so it may have seen any "
                "image: run the train stage again"
            )
        own = np.flatnonzero(np.equal(test_set.tested_in, fold))
        pipeline = WaveGMSPipeline.from_pretrained(place, decoder=decoder)
        soft_masks[own] = predict_split(pipeline, Subset(test_set, own.tolist()))
    return soft_masks
