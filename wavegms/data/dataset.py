"""A prepared folder as a torch dataset."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import psutil
import torch
from torch import Tensor
from torch.utils.data import Dataset

from wavegms.data.manifest import SPLITS, data_hash, load_manifest, pixels_hash
from wavegms.errors import InputError
from wavegms.images import as_mask, open_image, read_image


class PreparedDataset(Dataset):
    """One or several splits of a prepared folder.

    Pixels are checked against the manifest whenever they are decoded, so `data_hash` does identify
    what a model has seen.

    Attributes:
        manifest: Rows of the manifest for the chosen splits, in its order.
        ids: Id of each image.
        labels: Class of each image, empty where the dataset has none.
        image_size: Side of the images, pixels.
        data_hash: Hash of the whole prepared folder, all splits.
        images: uint8 tensor (N, 3, H, W) when held in memory, otherwise None.
        masks: uint8 tensor (N, 1, H, W) of 0 and 1 when held in memory, otherwise None.
    """

    def __init__(self, folder: Path, split: str | Sequence[str], in_memory: bool | None = None):
        """Open the splits and, if they are to be held in memory, decode them.

        Args:
            folder: A prepared folder.
            split: "train", "val", "test", or several of them; of several, some may be empty, as
                val is where nothing was set aside.
            in_memory: Decode once and hold the pixels (True) or decode at each access (False).
                None holds them where they take less than a quarter of the free memory.

        Raises:
            InputError: The folder is not prepared, a split is unknown or has no image, or a file
                is missing, broken or changed.
        """
        self._folder = Path(folder)
        wanted = [split] if isinstance(split, str) else list(split)
        if not wanted or not set(wanted) <= set(SPLITS):
            raise InputError(f"split is {split!r}: choose one or more of {', '.join(SPLITS)}.")
        manifest = load_manifest(self._folder)
        if not manifest["split"].isin(wanted).any():
            remedy = "set validation_fraction above 0" if wanted == ["val"] else "choose another"
            raise InputError(
                f"{self._folder} has no image in the split {' or '.join(wanted)}: {remedy} and run "
                "the prepare stage again."
            )
        self.manifest = manifest[manifest["split"].isin(wanted)].reset_index(drop=True)
        self.ids: list[str] = self.manifest["id"].tolist()
        self.labels: list[str] = self.manifest["label"].tolist()
        self.data_hash = data_hash(self._folder)
        self.image_size = open_image(self._image_path(self.ids[0])).width
        self.images: Tensor | None = None
        self.masks: Tensor | None = None
        if in_memory is None:
            in_memory = self._bytes_needed() < psutil.virtual_memory().available / 4
        if in_memory:
            side = self.image_size
            images = torch.empty((len(self), 3, side, side), dtype=torch.uint8)
            masks = torch.empty((len(self), 1, side, side), dtype=torch.uint8)
            for index in range(len(self)):
                images[index], masks[index] = self._decode(index)
            self.images, self.masks = images, masks

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> dict[str, Tensor | int]:
        """Take one pair.

        Args:
            index: From 0 to `len(self) - 1`.

        Returns:
            image: uint8 tensor (3, H, W), 0..255; mask: uint8 tensor (1, H, W), 0 or 1; index.

        Raises:
            InputError: A file is missing, broken or changed.
        """
        if self.images is None:
            image, mask = self._decode(index)
        else:
            image, mask = self.images[index], self.masks[index]
        return {"image": image, "mask": mask, "index": index}

    @staticmethod
    def to_float(images: Tensor) -> Tensor:
        """Scale images for the network.

        Args:
            images: uint8 tensor of any shape, 0..255.

        Returns:
            float32 tensor of the same shape, 0..1.
        """
        return images.to(torch.float32) / 255

    @staticmethod
    def mask_to_float(masks: Tensor) -> Tensor:
        """Turn masks into the numbers that losses take.

        Args:
            masks: uint8 tensor of any shape, 0 or 1.

        Returns:
            float32 tensor of the same shape, 0.0 or 1.0.
        """
        return masks.to(torch.float32)

    def _image_path(self, id: str) -> Path:
        return self._folder / "images" / f"{id}.png"

    def _bytes_needed(self) -> int:
        return len(self) * 4 * self.image_size**2

    def _decode(self, index: int) -> tuple[Tensor, Tensor]:
        id = self.ids[index]
        image = np.array(open_image(self._image_path(id)))
        mask, _ = read_image(self._folder / "masks" / f"{id}.png", as_mask)
        side = self.image_size
        # The hash is of bytes alone, which another shape may have too.
        as_prepared = image.shape == (side, side, 3) and mask.shape == (side, side)
        if not as_prepared or pixels_hash(image, mask) != self.manifest["pixels"][index]:
            raise InputError(
                f"{self._image_path(id)} or its mask was changed since it was prepared: "
                "run the prepare stage again."
            )
        return torch.from_numpy(image).permute(2, 0, 1), torch.from_numpy(
            mask[None].astype(np.uint8)
        )
