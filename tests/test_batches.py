"""Batches depend on the seed, the epoch and the image alone."""

import numpy as np
import pytest
import torch
from conftest import NO_AUGMENTATION
from hypothesis import given, settings
from hypothesis import strategies as st

from wavegms.data.batches import Augmentation, Key, TrainingBatches, mixed_seed

LIVELY = dict.fromkeys(NO_AUGMENTATION, 0.7)


class Numbered:
    """Images that can be told apart even when augmented: of one grey each, its index."""

    def __init__(self, length):
        self.length = length

    def __len__(self):
        return self.length

    def __getitem__(self, index):
        image = torch.full((3, 8, 8), index, dtype=torch.uint8)
        return {"image": image, "mask": torch.ones(1, 8, 8, dtype=torch.uint8), "index": index}


def batches(dataset, seed=1, batch_size=4, augmentation=NO_AUGMENTATION, **layout):
    return TrainingBatches(
        dataset,
        Augmentation(**augmentation),
        batch_size=batch_size,
        seed=seed,
        device=torch.device("cpu"),
        **layout,
    )


def drawn(batch):
    return torch.stack([torch.randn(3, generator=generator) for generator in batch.generators])


@given(st.integers(1, 40), st.integers(1, 6), st.integers(0, 99), st.integers(1, 5))
def test_an_epoch_has_every_image_once_but_for_a_short_rest(images, batch_size, seed, epoch):
    source = batches(Numbered(images), seed, batch_size)
    found = [(255 * batch.images[:, 0, 0, 0]).round().int() for batch in source.epoch(epoch)]
    assert len(found) == len(source) == images // batch_size
    assert all(len(batch) == batch_size for batch in found)
    indices = torch.cat(found).tolist() if found else []
    assert len(set(indices)) == len(indices) and set(indices) <= set(range(images))


@given(st.sampled_from([2, 3, 6]), st.integers(0, 99))
@settings(max_examples=8)
def test_processes_share_what_one_gets_alone(processes, seed):
    """Orders, pixels and random states: put together, the parts are the whole."""
    dataset, layout = Numbered(14), {"batch_size": 6, "augmentation": LIVELY}
    for epoch in (1, 2):
        alone = list(batches(dataset, seed, **layout).epoch(epoch))
        parts = [
            batches(dataset, seed, process=process, processes=processes, **layout).epoch(epoch)
            for process in range(processes)
        ]
        for whole, *pieces in zip(alone, *parts, strict=True):
            assert torch.equal(torch.cat([piece.images for piece in pieces]), whole.images)
            assert torch.equal(torch.cat([piece.masks for piece in pieces]), whole.masks)
            assert torch.equal(torch.cat([drawn(piece) for piece in pieces]), drawn(whole))


def test_epochs_and_seeds_differ_and_repeat(train_set):
    def content(seed, epoch):
        (batch,) = batches(train_set, seed, augmentation=LIVELY).epoch(epoch)
        order = batch.images.flatten(1).sum(1).argsort()  # whatever the order
        return batch.images[order], drawn(batch)

    first = content(1, 1)
    assert all(torch.equal(*pair) for pair in zip(first, content(1, 1), strict=True))
    for other in (content(2, 1), content(1, 2)):
        assert not torch.equal(first[0], other[0]) and not torch.equal(first[1], other[1])


def test_orders_differ_from_epoch_to_epoch():
    source = batches(Numbered(40))
    orders = {
        tuple(torch.cat([batch.images[:, 0, 0, 0] for batch in source.epoch(epoch)]).tolist())
        for epoch in range(1, 6)
    }
    assert len(orders) == 5


def test_the_random_state_of_others_is_left_alone(train_set):
    source = batches(train_set, augmentation=LIVELY)
    torch.manual_seed(5)
    expected = torch.randn(1)
    torch.manual_seed(5)
    iterator = source.epoch(1)
    before = torch.get_rng_state()
    source._loader.dataset[Key(1, 0, 0)]
    assert torch.equal(torch.get_rng_state(), before)
    next(iterator)
    torch.manual_seed(5)
    assert torch.equal(torch.randn(1), expected)


def test_pixels_and_masks_are_those_of_the_images(train_set):
    (batch,) = batches(train_set).epoch(1)
    assert batch.images.dtype == batch.masks.dtype == torch.float32
    pixels = {image.numpy().tobytes() for image in train_set.images.float() / 255}
    assert {image.numpy().tobytes() for image in batch.images} == pixels
    assert sorted(batch.masks.flatten(1).sum(1)) == sorted(train_set.masks.flatten(1).sum(1))


@pytest.mark.parametrize(("fetching", "working"), [(0.03, 0.03), (0.0, 0.05), (0.05, 0.0)])
def test_the_share_is_that_of_the_waiting(monkeypatch, fetching, working):
    """By a clock that stands still but for what is done."""
    now = [0.0]
    source = batches(Numbered(8), batch_size=2)
    monkeypatch.setattr(source, "_now", lambda: now[0])
    take = Numbered.__getitem__

    def slow(self, index):
        now[0] += fetching / 2
        return take(self, index)

    monkeypatch.setattr(Numbered, "__getitem__", slow)
    assert source.share == 0
    for _ in source.epoch(1):
        now[0] += working
    assert source.share == pytest.approx(fetching / (fetching + working))


@pytest.mark.parametrize("first", range(4))
def test_an_epoch_taken_up_in_the_middle_goes_on_the_same(first):
    source = batches(Numbered(14), augmentation=LIVELY)
    rest = list(source.epoch(2))[first:]
    again = list(source.epoch(2, first))
    assert len(again) == len(rest) == 3 - first
    for one, other in zip(again, rest, strict=True):
        assert torch.equal(one.images, other.images) and torch.equal(one.masks, other.masks)
        assert torch.equal(drawn(one), drawn(other))


@pytest.mark.parametrize(
    ("device", "cores", "processes", "workers"),
    [("cpu", 16, 1, 0), ("cuda", 16, 1, 8), ("cuda", 6, 2, 3), ("cuda", None, 1, 1)],
)
def test_workers_make_batches_beside_a_gpu_alone(monkeypatch, device, cores, processes, workers):
    """And each process takes its share of the cores, up to eight."""
    monkeypatch.setattr("os.cpu_count", lambda: cores)
    share = {"batch_size": 2, "seed": 1, "processes": processes}
    source = TrainingBatches(
        Numbered(4), Augmentation(**NO_AUGMENTATION), device=torch.device(device), **share
    )
    loader = source._loader
    assert loader.num_workers == workers
    assert loader.persistent_workers == loader.pin_memory == (device == "cuda")


@given(st.integers(0, 2**32), st.integers(0, 2**32))
def test_a_seed_of_several_numbers_is_numpys_of_64_bits(first, second):
    state = np.random.SeedSequence([first, second]).generate_state(2, np.uint32)
    assert mixed_seed(first, second) == int(state[0]) + (int(state[1]) << 32)
