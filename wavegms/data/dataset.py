"""A prepared folder as a torch dataset."""

from collections.abc import Sequence
from pathlib import Path
from typing import Self

import numpy as np
import pandas as pd
import psutil
import torch
from torch import Tensor
from torch.utils.data import Dataset

from wavegms.data.manifest import (
    SPLITS,
    data_hash,
    fold_of,
    load_manifest,
    mask_hash,
    mask_kinds,
    number_of_folds,
    pixels_hash,
)
from wavegms.errors import InputError
from wavegms.images import Scale, of_class, open_image


class PreparedDataset(Dataset):
    """One or several splits of a prepared folder, as pairs of an image and a mask.

    Pixels are checked against the manifest whenever they are decoded, so `data_hash`, that of the
    whole folder, does identify what a model has seen. `manifest` has the rows of these splits;
    `images` (N, 3, H, W), 0..255, and `masks` (N, 1, H, W), 0, 1 or 2 where a pixel is to be
    ignored, are uint8, or None where they are not held in memory. `scale` is how grey values of the
    raw images were taken, for a model to see others alike. `folds` is how many the data have, 0
    without, and `tested_in` (N,) the fold in which each image is for testing, from 1, or 0.
    `classes` are the names of several, K, and empty where there is one: masks are 0 to K, or K + 1
    where a pixel is to be ignored.
    """

    def __init__(
        self, folder: Path, split: str | Sequence[str], in_memory: bool | None = None, fold: int = 1
    ):
        """Opens the splits; of several, some may be empty, as val is where nothing was set aside.

        By default pixels are held in memory where they take less than a quarter of what is free.

        Raises:
            InputError: the folder is not prepared, a split is unknown or has no image, or a file is
                missing, broken or changed.
        """
        self.folder = Path(folder)
        wanted = [split] if isinstance(split, str) else list(split)
        if not wanted or not set(wanted) <= set(SPLITS):
            raise InputError(f"split is {split!r}: choose one or more of {', '.join(SPLITS)}.")
        manifest = load_manifest(self.folder)
        self.fold, self.folds = fold, number_of_folds(manifest)
        if fold > 1:
            if fold > self.folds:
                raise InputError(f"{self.folder} has {self.folds} folds, and no fold {fold}.")
            manifest["split"] = manifest["folds"].str.split().str[fold - 1]
        if not manifest["split"].isin(wanted).any():
            remedy = "set validation_fraction above 0" if wanted == ["val"] else "choose another"
            raise InputError(
                f"{self.folder} has no image in the split {' or '.join(wanted)}: {remedy} and run "
                "the prepare stage again."
            )
        self.manifest = manifest[manifest["split"].isin(wanted)].reset_index(drop=True)
        self.ids: list[str] = self.manifest["id"].tolist()
        self.labels: list[str] = self.manifest["label"].tolist()
        self.tested_in: list[int] = fold_of(self.manifest).tolist()
        # of a manifest of before, none is known
        self.scale: Scale | None = None
        if self.manifest["foreground"][0]:
            self.scale = Scale.parse(self.manifest["scale"][0])
        self.classes: tuple[str, ...] = tuple(self.manifest["classes"][0].split())
        # the volume that each image is a slice of, counted from 0; of pictures each its own
        self.volume_of: list[int] = list(range(len(self)))
        if self.scale and self.scale.volumes:
            self.volume_of = pd.factorize(self.manifest["source"])[0].tolist()
        self.data_hash = data_hash(self.folder)
        self.image_size = open_image(self._image_path(self.ids[0])).width
        self.images: Tensor | None = None
        self.masks: Tensor | None = None
        if in_memory is None:
            needed = len(self) * 4 * self.image_size**2
            in_memory = needed < psutil.virtual_memory().available / 4
        if in_memory:
            side = self.image_size
            images = torch.empty((len(self), 3, side, side), dtype=torch.uint8)
            masks = torch.empty((len(self), 1, side, side), dtype=torch.uint8)
            for index in range(len(self)):
                images[index], masks[index] = self._decode(index)
            self.images, self.masks = images, masks

    @classmethod
    def to_test(cls, folder: Path, in_memory: bool | None = None) -> Self:
        """All images that are scored: those of the test split, or with folds all there are."""
        return cls(folder, SPLITS if number_of_folds(load_manifest(folder)) else "test", in_memory)

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> dict[str, Tensor | int]:
        """A pair as uint8: image (3, H, W), 0..255, mask (1, H, W), and their index."""
        if self.images is None:
            image, mask = self._decode(index)
        else:
            image, mask = self.images[index], self.masks[index]
        return {"image": image, "mask": mask, "index": index}

    @property
    def in_colour(self) -> bool:
        """Whether the channels of an image are colours, and not a slice between its neighbours."""
        return self.scale is None or self.scale.context == "none"

    @property
    def ignored(self) -> int:
        """The kind of a pixel that does not count."""
        return (len(self.classes) or 1) + 1

    @property
    def has_originals(self) -> bool:
        """Whether masks were kept as they were before they were resized: not by all versions."""
        return bool((self.manifest["original_pixels"] != "").all())

    def original_mask(self, index: int) -> np.ndarray:
        """A mask at the size of its source image, (H, W), as in `masks`; see `has_originals`."""
        row = self.manifest.loc[index]
        shape = row["original_height"], row["original_width"]
        own = shape == (self.image_size, self.image_size)
        path = self.folder / ("masks" if own else "originals") / f"{row['id']}.png"
        mask = self._read_mask(path)
        if mask.shape != shape or mask_hash(mask) != row["original_pixels"]:
            raise InputError(
                f"{path} was changed since it was prepared: run the prepare stage again."
            )
        return mask

    @staticmethod
    def to_float(images: Tensor) -> Tensor:
        """Images as a network takes them: 0..255 -> float32 in [0, 1]."""
        return images.to(torch.float32) / 255

    @staticmethod
    def mask_to_float(masks: Tensor) -> Tensor:
        """Masks as losses take them: float32, K + 1 where a pixel is to be ignored."""
        return masks.to(torch.float32)

    @staticmethod
    def foreground_to_float(masks: Tensor, classes: int = 1) -> Tensor:
        """Masks as pictures: float32, 0 to the number of classes."""
        return (masks * of_class(masks, classes)).to(torch.float32)

    def _image_path(self, id: str) -> Path:
        return self.folder / "images" / f"{id}.png"

    def _decode(self, index: int) -> tuple[Tensor, Tensor]:
        id = self.ids[index]
        image = np.array(open_image(self._image_path(id)))
        mask = self._read_mask(self.folder / "masks" / f"{id}.png")
        side = self.image_size
        # The hash is of bytes alone, which another shape may have too.
        as_prepared = image.shape == (side, side, 3) and mask.shape == (side, side)
        if not as_prepared or pixels_hash(image, mask) != self.manifest["pixels"][index]:
            raise InputError(
                f"{self._image_path(id)} or its mask was changed since it was prepared: "
                "run the prepare stage again."
            )
        return torch.from_numpy(image).permute(2, 0, 1), torch.from_numpy(mask[None])

    def _read_mask(self, path: Path) -> np.ndarray:
        return mask_kinds(open_image(path), len(self.classes) or 1)
