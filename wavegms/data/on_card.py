"""Training batches where the images are: on the card, as uint8, augmented there.

What happens to an image follows from seed, epoch and image here, too, and in the same distribution
as in `wavegms.data.batches`, but from other random numbers. Many images are augmented at once and
nothing is read back, so that a card never waits for the processor.
"""

import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from kornia import enhance
from torch import Tensor
from torch.nn import functional

from wavegms.data.batches import Augmentation, Batch, TrainingBatches, mixed_seed
from wavegms.data.dataset import PreparedDataset

# Augmented at once: 64 images of 224x224, 39 MB and a few times that in between.
_PIXELS_AT_ONCE = 64 * 224 * 224


def fits_on_card(dataset: PreparedDataset, device: torch.device) -> bool:
    """Whether the images are in memory, and take less than a quarter of what is free on a card."""
    if device.type != "cuda" or getattr(dataset, "images", None) is None:
        return False
    return dataset.images.nbytes + dataset.masks.nbytes < torch.cuda.mem_get_info(device)[0] / 4


class CardBatches(TrainingBatches):
    """See `TrainingBatches`; the latents' noise is drawn on the card, for the whole batch."""

    def _open(self, dataset: PreparedDataset, augmentation: Augmentation, processes: int) -> None:
        self._chances, self._in_colour = augmentation.chances, augmentation.in_colour
        self._images, self._masks = dataset.images.to(self._device), dataset.masks.to(self._device)
        self._noise = torch.Generator(self._device)
        self._ignored = dataset.ignored

    def _made(self) -> Iterator[Batch]:
        epoch, side = self._order.epoch, self._images.shape[-1]
        first, self._order.first = self._order.first, 0
        steps = [list(zip(*keys, strict=True)) for keys in self._order]
        warps, colours, order = draw(len(self._images), self._chances, self._seed, epoch)
        warps, colours = self._sent(warps), self._sent(colours)
        # saturation and hue, the last two of the four, would mix slices
        order = [place for place in order if self._in_colour or place < 2]
        # of each step: the index of every image, by whose numbers it is drawn, whether it counts
        rows = self._sent(np.array([step[1:] for step in steps], dtype=np.int64))
        at_once = max(1, _PIXELS_AT_ONCE // (self._order.batch_size * side**2))
        shape = (self._order.batch_size, self._latent_channels, side // 8, side // 8)
        # in the same company whatever the first step: rounding may depend on it
        for start in range(first // at_once * at_once, len(steps), at_once):
            chosen = rows[start : start + at_once]
            flat, drawn_as, counted = chosen.transpose(0, 1).flatten(1)
            images, masks = augment(
                PreparedDataset.to_float(self._images[flat]),
                PreparedDataset.mask_to_float(self._masks[flat]),
                warps[drawn_as],
                colours[drawn_as],
                order,
            )
            masks = masks.masked_fill(counted[:, None, None, None] == 0, self._ignored)
            parts = images.split(chosen.shape[2]), masks.split(chosen.shape[2])
            for place, (image, mask) in enumerate(zip(*parts, strict=True)):
                step = start + place
                if step < first:
                    continue
                self._noise.manual_seed(mixed_seed(self._seed, epoch, step, 3))
                noise = torch.randn(shape, generator=self._noise, device=self._device)
                yield Batch(image, mask, noise[self._order.part])

    def _sent(self, values: np.ndarray) -> Tensor:
        tensor = torch.from_numpy(values)
        if self._device.type == "cuda":  # a copy from other memory would wait for the card
            tensor = tensor.pin_memory()
        return tensor.to(self._device, non_blocking=True)


def draw(
    images: int, chances: Sequence[float], seed: int, epoch: int
) -> tuple[np.ndarray, np.ndarray, list[int]]:
    """What happens to all images in an epoch, by the probabilities of `Augmentation`, in its order.

    Gives, float32: the map from a place in the result to one in the image, (N, 2, 3), in units of
    half a side from the centre; the factors of brightness, contrast and saturation, the turn of the
    hue in radians, and 1 where they are not neutral, (N, 5); and the order of the four, as 0 to 3,
    one for all.
    """
    numbers = np.random.default_rng(np.random.SeedSequence((seed, epoch, 2)))
    happens = numbers.random((images, 5)) < np.array(chances)
    horizontal, vertical, quarter, colour, affine = happens.T
    # as kornia draws them: the ends of 0 to 3 are rounded to half as often as the others
    turns = np.where(quarter, numbers.uniform(0, 3, images).round(), 0)
    angle = np.radians(np.where(affine, numbers.uniform(-20, 20, images), 0))
    scale = np.where(affine, numbers.uniform(0.9, 1.1, images), 1)
    shift = np.where(affine[:, None], numbers.uniform(-0.15, 0.15, (images, 2)), 0)
    flips = np.where(np.stack([horizontal, vertical], -1), -1.0, 1.0)
    # forward: flips, quarter turns against the clock, then rotation, scale and shift
    whole = scale[:, None, None] * _rotation(angle) @ _rotation(-turns * math.pi / 2)
    back = np.linalg.inv(whole * flips[:, None, :])
    warps = np.concatenate([back, -back @ (2 * shift)[:, :, None]], axis=2)
    factors = np.where(colour[:, None], numbers.uniform(-0.1, 0.1, (images, 4)), 0)
    colours = np.column_stack([factors * [1, 1, 1, 2 * math.pi] + [1, 1, 1, 0], colour])
    order = numbers.permutation(4).tolist()
    return warps.astype(np.float32), colours.astype(np.float32), order


def _rotation(angle: np.ndarray) -> np.ndarray:
    cos, sin = np.cos(angle), np.sin(angle)
    return np.stack([np.stack([cos, -sin], -1), np.stack([sin, cos], -1)], -2)


@torch.no_grad()
def augment(
    images: Tensor, masks: Tensor, warps: Tensor, colours: Tensor, order: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """Augments (N, 3, S, S) in [0, 1] and (N, 1, S, S), 0 or 1, by what `draw` gave for each."""
    steps = (
        enhance.adjust_brightness_accumulative,
        enhance.adjust_contrast_with_mean_subtraction,
        enhance.adjust_saturation_with_gray_subtraction,
        enhance.adjust_hue,
    )
    coloured = images
    for place in order:
        coloured = steps[place](coloured, colours[:, place])
    images = torch.where(colours[:, 4, None, None, None] > 0, coloured, images)
    # in float64: products of float32 may be taken in tf32 on a card, which moves by 0.05 pixels
    grid = functional.affine_grid(warps.double(), list(images.shape), align_corners=False).float()
    options = {"padding_mode": "reflection", "align_corners": False}
    images = functional.grid_sample(images, grid, mode="bilinear", **options)
    masks = functional.grid_sample(masks, grid, mode="nearest", **options)
    return images.clamp(0, 1), masks
