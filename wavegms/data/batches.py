"""The batches of a training run, the same ones however many processes share the work.

What happens to an image follows from the seed, the epoch and the image, and from nothing that came
before: neither from its place in a batch, nor from the process or the worker that handles it.
"""

import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import kornia.augmentation as K
import numpy as np
import torch
from kornia.constants import DataKey
from torch import Generator, Tensor
from torch.utils.data import DataLoader, Dataset

from wavegms.data.dataset import PreparedDataset
from wavegms.models.autoencoder import Generators


class Augmentation(torch.nn.Module):
    """Flips, quarter turns, colour jitter, and a combined shift, scale and rotation, by chance.

    Geometry moves image and mask together; pixels from outside are mirrored in. Brightness,
    contrast, saturation and hue change by up to 0.1 each; the shift is up to 15 % of the side, the
    scale up to 10 %, the rotation up to 20 degrees. The random state is torch's global one, so a
    seeded run repeats itself. Where channels are slices and no colours, saturation and hue, which
    would mix them, stay.
    """

    def __init__(
        self,
        horizontal_flip: float,
        vertical_flip: float,
        rotate_90: float,
        color_jitter: float,
        shift_scale_rotate: float,
        in_colour: bool = True,
    ):
        super().__init__()
        self.in_colour = in_colour
        hues = 0.1 if in_colour else 0.0
        self._steps = [
            # the key also says that a mask keeps its values: it is resampled by the nearest pixel
            (probability, K.AugmentationSequential(step, data_keys=[DataKey.INPUT, DataKey.MASK]))
            for probability, step in (
                (horizontal_flip, K.RandomHorizontalFlip(p=1)),
                (vertical_flip, K.RandomVerticalFlip(p=1)),
                (rotate_90, K.RandomRotation90(times=(0, 3), p=1)),
                (color_jitter, K.ColorJitter(0.1, 0.1, hues, hues, p=1)),
                (
                    shift_scale_rotate,
                    K.RandomAffine(
                        degrees=20,
                        translate=(0.15, 0.15),
                        scale=(0.9, 1.1),
                        padding_mode="reflection",
                        p=1,
                    ),
                ),
            )
        ]
        self.chances = [probability for probability, _ in self._steps]

    @torch.no_grad()
    def forward(self, images: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
        """Augments each pair of (B, 3, H, W) in [0, 1] and (B, 1, H, W) in its own way."""
        pairs = [
            self._augment(image, mask)
            for image, mask in zip(images.split(1), masks.split(1), strict=True)
        ]
        images, masks = (torch.cat(parts) for parts in zip(*pairs, strict=True))
        return images.clamp(0, 1), masks

    def _augment(self, image: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        # kornia's own probabilities cost about as much for what is not done as for what is
        for probability, step in self._steps:
            if torch.rand(()).item() < probability:
                image, mask = step(image, mask)
        return image, mask


# One augments 12 images of 224x224 in 0.06 s (measured on one thread of a CPU).
_MOST_WORKERS = 8


@dataclass(frozen=True)
class Batch:
    """One process's part of a batch, augmented: images (B, 3, H, W) in [0, 1], masks 0 or 1.

    For what a network draws: a random state for each image, or what they would draw.
    """

    images: Tensor
    masks: Tensor
    generators: Generators


class TrainingBatches:
    """Every epoch all images once, in a new order, augmented anew; a last short batch is dropped.

    With `stacks`, the places of the slices of each volume, batches are of whole windows of `depth`
    consecutive slices instead, see `WindowOrder`; all of a window are augmented in the same way.

    Without a GPU the batches are made in between the steps, since the model needs all cores. With
    one, workers make them meanwhile. Each of several processes takes its part of every batch, whose
    size is that of all together.

    `waiting` are the seconds spent so far on having batches at hand, `running` those since the
    first was asked for, as far as batches were being worked on; beside a GPU, which works on
    meanwhile, both are the processor's.
    """

    def __init__(
        self,
        dataset: PreparedDataset,
        augmentation: Augmentation,
        *,
        batch_size: int,
        seed: int,
        device: torch.device,
        process: int = 0,
        processes: int = 1,
        latent_channels: int = 4,
        stacks: Sequence[Sequence[int]] = (),
        depth: int = 1,
    ):
        share = batch_size, seed, process, processes
        if stacks:
            self._order = WindowOrder(stacks, depth, *share)
        else:
            self._order = Order(len(dataset), *share)
        self._latent_channels = latent_channels
        self._seed, self._device = seed, device
        self.waiting = self.running = 0.0
        self._open(dataset, augmentation, processes)

    def _open(self, dataset: PreparedDataset, augmentation: Augmentation, processes: int) -> None:
        """Makes ready what `_made` takes batches from."""
        on_gpu = self._device.type == "cuda"
        workers = min(_MOST_WORKERS, (os.cpu_count() or 1) // processes) if on_gpu else 0
        self._loader = DataLoader(
            _Augmented(dataset, augmentation, self._seed),
            batch_sampler=self._order,
            num_workers=workers,
            persistent_workers=workers > 0,
            pin_memory=on_gpu,
        )

    def __len__(self) -> int:
        return len(self._order)

    def epoch(self, number: int, first: int = 0) -> Iterator[Batch]:
        """The batches of an epoch from the `first` on; the same number gives the same batches."""
        self._order.epoch, self._order.first = number, first
        started = self._now()
        for batch in self._made():
            fetched = self._now()
            self.waiting += fetched - started
            yield batch
            self.running += self._now() - started
            started = self._now()

    def _made(self) -> Iterator[Batch]:
        """The batches of the epoch that the order is set to."""
        for images, masks, indices in self._loader:
            yield Batch(
                images.to(self._device, non_blocking=True),
                masks.to(self._device, non_blocking=True),
                [_generator(self._seed, self._order.epoch, index, 1) for index in indices.tolist()],
            )

    @property
    def share(self) -> float:
        """Share of the time that went into having batches at hand, in [0, 1]; at first 0."""
        return self.waiting / self.running if self.running else 0.0

    def _now(self) -> float:
        return time.perf_counter()


class Key(NamedTuple):
    """What is to be made of an image: by the random numbers of which one it is augmented.

    One that is not `counted` fills a window, and its mask is of pixels to be ignored.
    """

    epoch: int
    index: int
    drawn_as: int
    counted: bool = True


class Order:
    """A batch sampler: lists of keys, those of one process's `part` of each batch."""

    def __init__(self, images: int, batch_size: int, seed: int, process: int, processes: int):
        self.epoch = self.first = 0
        self._images, self.batch_size, self._seed = images, batch_size, seed
        share = batch_size // processes
        self.part = slice(process * share, (process + 1) * share)

    def __len__(self) -> int:
        return self._images // self.batch_size

    def __iter__(self) -> Iterator[list[Key]]:
        order = self._shuffled(_generator(self._seed, self.epoch))
        for number in range(self.first, len(self)):
            yield order[number * self.batch_size : (number + 1) * self.batch_size][self.part]

    def _shuffled(self, numbers: Generator) -> list[Key]:
        indices = torch.randperm(self._images, generator=numbers).tolist()
        return [Key(self.epoch, index, index) for index in indices]


class WindowOrder(Order):
    """Likewise of windows, each of `depth` consecutive slices of a stack, one after the other.

    Windows lie side by side, beginning at random up to a window before the stack, and those that
    reach beyond its ends are moved inside: every slice is in one window or in two. A stack of fewer
    slices is one window, filled up by its last slice, which does not count there. Sizes of batches
    are in slices, and those of processes whole windows.
    """

    def __init__(self, stacks: Sequence[Sequence[int]], depth: int, *share: int):
        self._stacks, self._depth = stacks, depth
        self._windows = [len(one) // depth + 1 if len(one) > depth else 1 for one in stacks]
        super().__init__(sum(self._windows) * depth, *share)

    def _shuffled(self, numbers: Generator) -> list[Key]:
        windows = []
        for stack, count in zip(self._stacks, self._windows, strict=True):
            spare = max(0, count * self._depth - len(stack))
            before = int(torch.randint(spare + 1, (), generator=numbers))
            for number in range(count):
                start = min(number * self._depth - before, len(stack) - self._depth)
                windows.append(self._window(stack, max(0, start)))
        order = torch.randperm(len(windows), generator=numbers).tolist()
        return [key for place in order for key in windows[place]]

    def _window(self, stack: Sequence[int], start: int) -> list[Key]:
        places, last = range(start, start + self._depth), len(stack) - 1
        return [
            Key(self.epoch, stack[min(place, last)], stack[start], place <= last)
            for place in places
        ]


class _Augmented(Dataset):
    def __init__(self, dataset: PreparedDataset, augmentation: Augmentation, seed: int):
        self._dataset, self._augmentation, self._seed = dataset, augmentation, seed

    def __getitem__(self, key: Key) -> tuple[Tensor, Tensor, int]:
        pair = self._dataset[key.index]
        image = PreparedDataset.to_float(pair["image"])
        mask = PreparedDataset.mask_to_float(pair["mask"])
        if not key.counted:
            mask = torch.full_like(mask, self._dataset.ignored)
        # kornia draws from torch's own random state, which others draw from as well
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(mixed_seed(self._seed, key.epoch, key.drawn_as, 0))
            images, masks = self._augmentation(image[None], mask[None])
        return images[0], masks[0], key.index


def mixed_seed(*numbers: int) -> int:
    """A seed of 64 bits that follows from several numbers, each of which changes all of it."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0])


def _generator(*numbers: int) -> Generator:
    return Generator().manual_seed(mixed_seed(*numbers))
