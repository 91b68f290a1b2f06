"""Batches on the card, tried on the processor: kornia's pictures, and the laws of other batches."""

import kornia.augmentation as K
import numpy as np
import pytest
import torch
from conftest import NO_AUGMENTATION
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from wavegms.data.batches import Augmentation
from wavegms.data.on_card import CardBatches, augment, draw, fits_on_card

CPU = torch.device("cpu")
LIVELY = dict.fromkeys(NO_AUGMENTATION, 0.6)


class Held:
    """A split in memory whose images can be told apart: of one grey each, its index."""

    ignored = 2

    def __init__(self, length, side=8):
        self.images = torch.arange(length, dtype=torch.uint8).view(-1, 1, 1, 1)
        self.images = self.images.expand(-1, 3, side, side).contiguous()
        self.masks = torch.ones(length, 1, side, side, dtype=torch.uint8)

    def __len__(self):
        return len(self.images)


def batches(dataset, seed=1, batch_size=4, chances=NO_AUGMENTATION, **layout):
    augmentation = Augmentation(**chances)
    return CardBatches(
        dataset, augmentation, batch_size=batch_size, seed=seed, device=CPU, **layout
    )


def smooth(count, side):
    """Pictures without edges, whose bilinear values do not hang on a rounded place."""
    return functional.interpolate(torch.rand(count, 3, 6, 6), (side, side), mode="bicubic").clamp(
        0, 1
    )


@given(st.integers(0, 99))
@settings(max_examples=10)
def test_pictures_are_those_that_kornia_makes_of_the_same_numbers(seed):
    """Flips, quarter turns, colours and the affine map, in the order of `Augmentation`."""
    torch.manual_seed(seed)
    images, side = smooth(6, 32), 32
    masks = (images[:, :1] > 0.5).float()
    warps, colours, order = draw(6, [0.5] * 5, seed, 1)
    found, found_masks = augment(
        images, masks, torch.from_numpy(warps), torch.from_numpy(colours), order
    )
    # the same numbers as `draw` takes, in its order
    numbers = np.random.default_rng(np.random.SeedSequence((seed, 1, 2)))
    happens = numbers.random((6, 5)) < 0.5
    times, angle = numbers.uniform(0, 3, 6), numbers.uniform(-20, 20, 6)
    scale, shift = numbers.uniform(0.9, 1.1, 6), numbers.uniform(-0.15, 0.15, (6, 2))
    factors = numbers.uniform(-0.1, 0.1, (6, 4))

    def one(value):
        return torch.tensor(np.atleast_1d(value), dtype=torch.float32)

    for i in range(6):
        image, mask = images[i : i + 1], masks[i : i + 1]
        affine = {
            "translations": one(shift[i] * side)[None],
            "center": torch.full((1, 2), side / 2 - 0.5),
            "scale": one([scale[i]] * 2)[None],
            "angle": one(angle[i]),
            "shear_x": torch.zeros(1),
            "shear_y": torch.zeros(1),
        }
        names = ("brightness_factor", "contrast_factor", "saturation_factor", "hue_factor")
        colour = {
            name: one(f + (name[0] != "h")) for name, f in zip(names, factors[i], strict=True)
        }
        steps = (
            (K.RandomHorizontalFlip(p=1), {}),
            (K.RandomVerticalFlip(p=1), {}),
            (K.RandomRotation90(times=(0, 3), p=1), {"times": one(times[i])}),
            (K.ColorJitter(0.1, 0.1, 0.1, 0.1, p=1), colour | {"order": torch.tensor(order)}),
            (K.RandomAffine(20, (0.15, 0.15), (0.9, 1.1), padding_mode="reflection", p=1), affine),
        )
        for wanted, (step, values) in zip(happens[i], steps, strict=True):
            if wanted:
                shape = {"batch_prob": torch.ones(1), "forward_input_shape": torch.tensor([1])}
                image = step(image, params=shape | values)
                if not isinstance(step, K.ColorJitter):
                    mask = step(mask, params=shape | values)
        assert (found[i] - image[0]).abs().max() < 2e-3
        # kornia's here is bilinear, so the border lies within a pixel of ours
        assert ((mask[0] >= 0.5) == (found_masks[i] > 0)).float().mean() > 0.97
    assert set(found_masks.unique().tolist()) <= {0.0, 1.0}


@given(st.integers(1, 40), st.integers(1, 6), st.integers(0, 99), st.integers(1, 5))
@settings(max_examples=20)
def test_an_epoch_has_every_image_once_and_repeats(images, batch_size, seed, epoch):
    source = batches(Held(images), seed, batch_size)
    found = list(source.epoch(epoch))
    assert len(found) == len(source) == images // batch_size
    indices = [int(255 * grey + 0.5) for batch in found for grey in batch.images[:, 0, 4, 4]]
    assert len(set(indices)) == len(indices) and set(indices) <= set(range(images))
    again = list(batches(Held(images), seed, batch_size).epoch(epoch))
    for one, other in zip(found, again, strict=True):
        assert torch.equal(one.images, other.images)
        assert torch.equal(one.generators, other.generators)


@pytest.mark.parametrize("first", [1, 3])
def test_an_epoch_taken_up_in_the_middle_goes_on_the_same(first):
    whole = list(batches(Held(20), chances=LIVELY).epoch(2))[first:]
    rest = list(batches(Held(20), chances=LIVELY).epoch(2, first))
    for one, other in zip(whole, rest, strict=True):
        for name in ("images", "masks", "generators"):
            assert torch.equal(getattr(one, name), getattr(other, name))


@pytest.mark.parametrize("processes", [2, 3])
def test_processes_share_what_one_gets_alone(processes):
    dataset, layout = Held(14), {"batch_size": 6, "chances": LIVELY}
    alone = list(batches(dataset, **layout).epoch(1))
    parts = [
        batches(dataset, process=process, processes=processes, **layout).epoch(1)
        for process in range(processes)
    ]
    for whole, *pieces in zip(alone, *parts, strict=True):
        for name in ("images", "masks", "generators"):
            together = torch.cat([getattr(piece, name) for piece in pieces])
            torch.testing.assert_close(together, getattr(whole, name), rtol=0, atol=1e-6)


def test_seeds_and_epochs_differ():
    def content(seed, epoch):
        batch = next(batches(Held(8), seed, 8, LIVELY).epoch(epoch))
        return batch.images.sort(0).values, batch.generators

    for other in (content(2, 1), content(1, 2)):
        assert not any(torch.equal(*pair) for pair in zip(content(1, 1), other, strict=True))


def test_what_is_switched_off_does_not_happen_and_the_rest_as_often_as_it_says():
    warps, colours, _ = draw(4000, [0.5, 0.0, 0.0, 0.2, 0.0], 1, 1)
    flipped = warps[:, 0, 0] < 0
    assert np.abs(warps[:, 1] - [0, 1, 0]).max() < 1e-6 and np.abs(warps[:, 0, 1:]).max() < 1e-6
    assert 0.46 < flipped.mean() < 0.54 and 0.17 < colours[:, 4].mean() < 0.23
    neutral = colours[colours[:, 4] == 0]
    assert np.array_equal(np.unique(neutral, axis=0), [[1, 1, 1, 0, 0]])


def test_a_processor_keeps_batches_that_repeat_bit_for_bit(train_set):
    assert not fits_on_card(train_set, CPU)
