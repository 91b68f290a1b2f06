"""A step on a card waits for nothing and launches no storm; counted on the processor."""

from contextlib import contextmanager, nullcontext
from functools import partial
from unittest.mock import MagicMock

import pytest
import torch
from conftest import NO_AUGMENTATION
from launches import Counting, count_epochs
from runs import grey_vae, make_run
from test_on_card import Held

from wavegms import InputError
from wavegms.config import AugmentationParams
from wavegms.data.batches import Augmentation, Batch
from wavegms.data.on_card import CardBatches
from wavegms.training import device as training_device
from wavegms.training import loop as training_loop
from wavegms.training import recipe
from wavegms.training.graph import GraphedStep
from wavegms.training.recipe import train

LIVELY = AugmentationParams(**dict.fromkeys(NO_AUGMENTATION, 0.5))


class Split(Held):
    """A split in memory, as a training takes it."""

    def __init__(self, count, side=32):
        super().__init__(count, side)
        self.image_size, self.data_hash, self.scale = side, f"{count}", None
        self.ids = [str(number) for number in range(count)]
        self.classes, self.volume_of, self.in_colour = (), list(range(count)), True

    def __getitem__(self, index):
        return {"image": self.images[index], "mask": self.masks[index], "index": index}


@pytest.fixture
def as_on_a_card(monkeypatch):
    """A training that goes the card's way, but for what only CUDA has."""
    monkeypatch.setattr(training_device, "fits_on_card", lambda dataset, device: True)
    monkeypatch.setattr(recipe, "can_be_graphed", lambda *about: False)
    loop = recipe.TrainingLoop
    monkeypatch.setattr(recipe, "TrainingLoop", lambda **o: loop(**o | {"checked": False}))


def run_of(folder, training_params, **changes):
    settings = training_params(**{"epochs": 2, "batch_size": 4, "augmentation": LIVELY} | changes)
    sets = Split(16), Split(4)
    return make_run(folder, *sets, settings, vae=grey_vae(), live=None)


def test_a_step_waits_for_nothing(as_on_a_card, training_params, tmp_path):
    launches, waits = count_epochs(training_loop, train, run_of(tmp_path, training_params))
    assert waits == 1  # of the whole epoch: the sum of its losses
    assert launches < 4000


def test_a_check_of_each_step_would_be_seen(training_params, tmp_path):
    run = run_of(tmp_path, training_params)
    assert count_epochs(training_loop, train, run)[1] >= 4 * 4


@pytest.mark.parametrize("images", [16, 64])
def test_batches_are_made_by_few_launches_however_many_images(images):
    batches = CardBatches(
        Split(images), Augmentation(**LIVELY.model_dump()), batch_size=4, seed=1, device=CPU
    )
    with Counting() as counting:
        steps = len(list(batches.epoch(1)))
    assert counting.waits == [] and counting.launches < 200 + 6 * steps


CPU = torch.device("cpu")


def test_it_learns_and_goes_on_as_on_a_card(as_on_a_card, training_params, tmp_path, monkeypatch):
    """Weights are written with the state, not in each epoch; at the end they are all there."""
    start = partial(run_of, training_params=training_params, epochs=4, learning_rate=3e-3)
    whole = train(start(tmp_path / "whole"))
    assert whole.history["loss"].iloc[-1] < whole.history["loss"].iloc[0]
    monkeypatch.setattr(training_loop, "_SAVE_SECONDS", 0.0)
    steps = training_loop.TrainingLoop._take_step

    def stop(self, state, batch):
        if (state.epoch, state.step) == (3, 2):
            raise ZeroDivisionError
        steps(self, state, batch)

    with monkeypatch.context() as patch:
        patch.setattr(training_loop.TrainingLoop, "_take_step", stop)
        with pytest.raises(ZeroDivisionError):
            train(start(tmp_path / "parts"))
    parts = train(start(tmp_path / "parts"))
    assert parts.history.equals(whole.history)
    for name in ("best", "last"):
        for part in ("encoder", "mapping"):
            path = f"model/{name}/{part}/diffusion_pytorch_model.safetensors"
            one, other = ((tmp_path / run / path).read_bytes() for run in ("whole", "parts"))
            assert one == other


def test_the_step_that_broke_is_found_when_the_epoch_ends(
    as_on_a_card, training_params, tmp_path, monkeypatch
):
    """And the weights of the epoch before it stay."""
    loss = recipe.loss_terms

    def broken(*arguments):
        terms = loss(*arguments)
        images = arguments[4]
        return terms | {"loss": terms["loss"] * (float("nan") if marked(images) else 1)}

    seen = []

    def marked(images):
        known = images.flatten()[::97].sum().item()
        if len(seen) < 7 and known not in seen:
            seen.append(known)  # steps 1 to 4 of epoch 1, then 1 to 3 of epoch 2
        return len(seen) == 7 and known == seen[6]

    monkeypatch.setattr(recipe, "loss_terms", broken)
    with pytest.raises(InputError, match=r"the loss is nan in epoch 2, step 3 of 4.*after epoch 1"):
        train(run_of(tmp_path, training_params))
    assert (tmp_path / "model/last/model_index.json").is_file()


def test_a_graph_that_is_refused_is_not_tried_again_and_the_reason_is_said_once(monkeypatch, capfd):
    """Whatever is refused: the steps are taken, each once, and so they are in a later epoch."""
    captures, taken = [], []

    @contextmanager
    def refuse(graph):
        captures.append(graph)
        yield

    def step(batch):
        if len(captures) == 1 and not refused:
            refused.append(1)
            raise NotImplementedError("operation not permitted\nwhen stream is capturing")
        taken.append(batch.images.sum().item())
        return {"loss": batch.images.sum()}

    refused, cuda = [], torch.cuda
    for name in ("Stream", "CUDAGraph", "current_stream", "set_stream"):
        monkeypatch.setattr(cuda, name, MagicMock())
    monkeypatch.setattr(cuda, "stream", nullcontext)
    monkeypatch.setattr(cuda, "graph", refuse)
    graphed = GraphedStep(step)
    for number in range(9):
        one = torch.full((1,), float(number))
        assert graphed(Batch(one, one, one))["loss"] == number
    assert taken == list(range(9)) and len(captures) == 1
    assert graphed.failure == "operation not permitted"
    assert capfd.readouterr().err.count("cannot be one launch (operation not permitted)") == 1
