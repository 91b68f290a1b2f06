"""`training.minutes`: epochs that fit, a schedule that is that of so many epochs, and its end."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from runs import as_tiny, make_run

from wavegms import InputError
from wavegms.config import TrainingParams
from wavegms.data.dataset import PreparedDataset
from wavegms.errors import Stopped
from wavegms.training import loop as training_loop
from wavegms.training import safeguards
from wavegms.training.recipe import train
from wavegms.training.safeguards import Budget
from wavegms.training.state import load_state

CPU = torch.device("cpu")


class Clock:
    """A time that passes by what is done, not by itself."""

    def __init__(self):
        self.seconds = 0.0

    def __call__(self):
        return self.seconds


@pytest.fixture
def clock(monkeypatch):
    made = Clock()
    monkeypatch.setattr(safeguards, "now", made)
    return made


@given(
    minutes=st.floats(1, 5),
    steps=st.integers(1, 60),
    warmup=st.integers(0, 6),
    step=st.floats(0.01, 0.5),
    selection=st.floats(0, 2),
    first=st.floats(0, 20),
    uneven=st.floats(0.97, 1.03),
)
def test_a_training_ends_near_its_time(minutes, steps, warmup, step, selection, first, uneven):
    """Whatever the first step takes: the rest of an epoch is what is counted on."""
    clock, saved = Clock(), safeguards.now
    safeguards.now = clock
    try:
        budget, epochs, finished = Budget(minutes, steps, CPU, 0.0), 0, 0
        epoch = steps * step + selection
        if 60 * minutes < 12 * (warmup + 1) * epoch + 2 * first:
            return  # half an epoch, to which it is rounded, would be much of the time
        while not epochs or finished < epochs:
            for number in range(steps):
                clock.seconds += step + (first if number == finished == 0 else 0)
                clock.seconds += 0 if finished <= warmup else step * (uneven - 1)
                budget.count()
            budget.count_epoch()
            clock.seconds += selection
            finished += 1
            if not epochs:
                found = budget.epochs(finished)
                epochs = found if finished > warmup else 0
        single = steps == 1 and warmup == 0  # then the first step is all that was seen
        assert single or abs(clock.seconds - 60 * minutes) <= 0.1 * 60 * minutes
    finally:
        safeguards.now = saved


@given(
    steps=st.integers(12, 60),
    step=st.floats(0.005, 0.05),
    selection=st.floats(0, 0.5),
    capture=st.floats(0, 5),
    search=st.floats(0, 5),
)
def test_on_a_card_what_comes_once_is_no_measure(steps, step, selection, capture, search):
    """Kernels are chosen, a graph is captured, the first selection is slow: no epoch is lost."""
    clock = Clock()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(safeguards, "now", clock)
        patch.setattr(torch.cuda, "synchronize", lambda: None)
        budget = Budget(5, steps, torch.device("cuda"), 0.0)
        for number in range(steps):
            clock.seconds += step + (capture if number < 4 else 0)
            budget.count()
        budget.count_epoch()
        clock.seconds += search + 2 * selection
        epochs = budget.epochs(1, selection)
    one = steps * step + selection
    assert abs(clock.seconds + (epochs - 1) * one - 0.98 * 300) <= one


class Timed(PreparedDataset):
    """A split of which every image takes half a second, by a clock, and the first one many."""

    def __init__(self, folder, split, clock, act=None):
        super().__init__(folder, split)
        self.clock, self.taken, self.act = clock, 0, act

    def __getitem__(self, index):
        self.taken += 1
        self.clock.seconds += 10 if self.taken == 1 else 0.5
        if self.act:
            self.act(self.taken)
        return super().__getitem__(index)


@pytest.fixture
def run(prepared, training_params, tmp_path, clock, monkeypatch):
    as_tiny(monkeypatch)  # what is counted is what each image takes

    def start(name, act=None, **changes):
        sets = Timed(prepared, "train", clock, act), PreparedDataset(prepared, "val")
        settings = training_params(**{"epochs": None, "minutes": 0.5} | changes)
        return train(make_run(tmp_path / name, *sets, settings, variant="tiny"))

    return start


def test_it_is_a_training_of_so_many_epochs(run, clock, tmp_path):
    """Bit for bit: until the number is known, the rate is the same for every number."""
    timed = run("timed", warmup_epochs=2)
    # two seconds for each epoch of four images, and 9.5 more for the first image
    assert len(timed.history) == 10 and 27 <= clock.seconds <= 33
    fixed = run("fixed", epochs=10, minutes=None, warmup_epochs=2)
    assert timed.history.equals(fixed.history)
    for name in ("best", "last"):
        path = f"model/{name}/network/diffusion_pytorch_model.safetensors"
        one, other = ((tmp_path / run / path).read_bytes() for run in ("timed", "fixed"))
        assert one == other


@pytest.mark.parametrize("at", [3, 7, 30], ids=["at once", "before", "after"])
def test_a_stopped_one_keeps_its_schedule(run, clock, tmp_path, monkeypatch, at):
    """Stopped before and after the number of epochs is fixed, while another machine is slower."""
    whole = run("whole", warmup_epochs=1)
    monkeypatch.setattr(training_loop, "_SAVE_SECONDS", 0.0)
    clock.seconds = 1000.0

    def stop(taken):
        if taken == at:
            raise KeyboardInterrupt

    with pytest.raises((KeyboardInterrupt, Stopped)):
        run("parts", act=stop, warmup_epochs=1)
    clock.seconds = 9000.0
    parts = run("parts", warmup_epochs=1)
    epochs = len(parts.history)
    if at == 30:  # known by then
        assert epochs == len(whole.history)
        assert parts.history.equals(whole.history)
    else:  # what was spent counts, and it ends as a training of so many epochs
        fixed = run("fixed", epochs=epochs, minutes=None, warmup_epochs=1)
        assert abs(epochs - len(whole.history)) <= 8 and parts.history.equals(fixed.history)


def test_the_number_is_kept_in_state_and_card(run, tmp_path, monkeypatch):
    kept = []
    monkeypatch.setattr(training_loop, "_SAVE_SECONDS", 0.0)
    save = training_loop.save_state
    monkeypatch.setattr(
        training_loop, "save_state", lambda f, s, d: (kept.append((s.epochs, d)), save(f, s, d))
    )
    result = run("run")
    assert kept[-1][0] == len(result.history) > 1
    assert kept[-1][1]["training.minutes"] == "0.5" and "epochs" not in kept[-1][1]
    assert load_state(tmp_path / "run/model", kept[-1][1]).epochs == len(result.history)


def test_a_warm_up_that_takes_all_of_it_is_refused_after_an_epoch(run):
    with pytest.raises(InputError, match=r"training.minutes is 0.5.*give at least [\d.]+ minutes"):
        run("run", warmup_epochs=40)


@pytest.mark.parametrize(
    ("budget", "said"),
    [
        ({"epochs": 3, "minutes": 2.0}, "epochs and minutes are 3 and 2.0"),
        ({"epochs": None}, "are both null"),
        ({"epochs": None, "minutes": 0}, "minutes"),
    ],
)
def test_one_budget_and_no_other(training_params, budget, said):
    values = training_params().model_dump()
    values.pop("minutes")
    with pytest.raises(InputError, match=said):
        TrainingParams.check(values | budget)


def test_parameters_without_minutes_stay_valid(training_params):
    values = training_params(epochs=3).model_dump()
    for name in ("minutes", "start_from", "recipe", "pretrained", "cuda_graph"):
        del values[name]
    params = TrainingParams.check(values)
    assert params.epochs_for("x") == 3 and params.minutes is None
    assert TrainingParams.check(values | {"epochs": None, "minutes": 5}).epochs_for("x") is None
