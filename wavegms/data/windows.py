"""A prepared dataset's images as volumes again, for networks of windows of slices."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import torch
from torch import Tensor
from torch.utils.data import Subset

from wavegms.data.dataset import PreparedDataset
from wavegms.data.manifest import load_volumes, slice_id
from wavegms.errors import InputError
from wavegms.models.windows import in_parts
from wavegms.variants import Plane


@dataclass(frozen=True)
class Stacks:
    """The volumes of a split, or of a part of it that has them whole.

    `places` has those of the slices of each volume, in the order in which they lie in the body,
    whichever way a file stores them.
    """

    images: PreparedDataset | Subset
    places: list[list[int]]

    @classmethod
    def of(cls, images: PreparedDataset | Subset) -> Self:
        """An InputError if the images are pictures."""
        dataset, kept = images, range(len(images))
        if isinstance(images, Subset):
            dataset, kept = images.dataset, images.indices
        volumes = load_volumes(dataset.folder)
        if volumes is None:
            raise InputError(
                f"{dataset.folder} was prepared from pictures, and a 3-D network takes consecutive "
                "slices of a volume: choose a network of images"
            )
        of_id = {dataset.ids[index]: place for place, index in enumerate(kept)}
        stacks = []
        for row in volumes.itertuples():
            ids = [slice_id(row.id, number) for number in range(row.slices)]
            if ids[0] in of_id:
                stack = [of_id[id] for id in ids]
                truth = dataset.folder / "volumes" / f"{row.id}.nii.gz"
                stacks.append(stack if runs_upwards(truth, row.plane) else stack[::-1])
        return cls(images, stacks)

    def predicted(
        self, predict: Callable[[Tensor], Tensor], depth: int
    ) -> Iterator[tuple[list[int], Tensor]]:
        """Places of some slices and their soft masks, (N, K, H, W), until all were given.

        `predict` maps (D, 3, H, W) in [0, 1] to soft masks, D at most `depth`.
        """
        for stack in self.places:

            def of_window(window: range, stack: list[int] = stack) -> Tensor:
                slices = [self.images[stack[place]]["image"] for place in window]
                return predict(PreparedDataset.to_float(torch.stack(slices)))

            for window, soft in in_parts(of_window, len(stack), depth, depth):
                yield [stack[place] for place in window], soft


def runs_upwards(path: Path, plane: Plane) -> bool:
    """Whether a prepared volume is stored in the order of a plane's slices, by its header alone."""
    # here: a machine that trains on pictures need not have it
    import SimpleITK as sitk

    from wavegms.data.volumes import VIEWS, orientation_of

    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
    except RuntimeError as error:
        raise InputError(f"{path} is missing or damaged: run the prepare stage again.") from error
    return VIEWS[plane][-1] in orientation_of(reader)
