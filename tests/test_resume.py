"""An interrupted training goes on and ends as if nothing had happened, whatever interrupted it."""

import multiprocessing
import os
import queue
import random
import re
import resource
import shutil
import signal
import time
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from diffusers import AutoencoderKL
from layouts import tree
from runs import as_tiny, grey_vae, make_run

from wavegms import InputError, WaveGMSPipeline
from wavegms.config import AugmentationParams
from wavegms.data.dataset import PreparedDataset
from wavegms.errors import Stopped
from wavegms.training import loop as training_loop
from wavegms.training import recipe
from wavegms.training import state as training_state
from wavegms.training.loss import WaveGMSLoss
from wavegms.training.recipe import train
from wavegms.training.state import LOCK_NAME, STATE_NAME, discard_state, load_state, only_training

ROOT = Path(__file__).parents[1]
EVERYTHING = AugmentationParams(
    horizontal_flip=0.5, vertical_flip=0.5, rotate_90=0.5, color_jitter=0.5, shift_scale_rotate=0.5
)
_forks = multiprocessing.get_context("forkserver")
_forks.set_forkserver_preload(["wavegms.training.recipe"])


class Disturbed(PreparedDataset):
    """A split that does something when an image is taken for the n-th time."""

    def __init__(self, folder, split, at=None, act=None):
        super().__init__(folder, split)
        self.left, self.act = at, act

    def __getitem__(self, index):
        if self.left is not None:
            self.left -= 1
            if self.left == 0:
                self.act()
        return super().__getitem__(index)


def tiny_sd_vae():
    torch.manual_seed(0)
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(8, 8, 8, 8),
        norm_num_groups=4,
        latent_channels=4,
    )


def train_in(
    folder,
    prepared,
    training_params,
    variant="wave_gms",
    at=None,
    act=None,
    vae=None,
    choices=None,
    seed=1,
    **changes,
):
    """Four epochs of two steps; keywords change settings, and `choices` loss and model."""
    if variant == "gms":
        vae = tiny_sd_vae()
    elif variant not in ("unet", "tiny"):
        vae = vae or grey_vae()
    settings = training_params(
        **{"augmentation": EVERYTHING, "warmup_epochs": 1, "epochs": 4} | changes
    )
    sets = Disturbed(prepared, "train", at, act), PreparedDataset(prepared, "val")
    names = {"variant": variant, "vae": vae, "seed": seed} | (choices or {})
    return train(make_run(folder, *sets, settings, **names))


@pytest.fixture
def run(prepared, training_params, tmp_path, monkeypatch):
    """A training in the folder of a name, see `train_in`; the variant `tiny` takes no time."""
    as_tiny(monkeypatch)
    return lambda name, *arguments, **changes: train_in(
        tmp_path / name, prepared, training_params, *arguments, **changes
    )


@pytest.fixture(scope="module")
def whole(prepared, training_params, tmp_path_factory):
    """A training that nothing disturbs: its folder and its result."""
    folder = tmp_path_factory.mktemp("whole")
    return folder, train_in(folder, prepared, training_params)


@pytest.fixture
def saving_each_step(monkeypatch):
    monkeypatch.setattr(training_loop, "_SAVE_SECONDS", 0.0)


def fail():
    raise ZeroDivisionError("something in the middle of a step")


def scramble():
    """As another program in the same notebook would."""
    random.seed(99), np.random.seed(99), torch.manual_seed(99)


def files(folder):
    """All that a training leaves, without the lock, and its state value by value."""
    found = tree(folder)
    found.pop(f"model/{LOCK_NAME}")
    state = found.pop(f"model/{STATE_NAME}", None)
    values = torch.load(folder / "model" / STATE_NAME, weights_only=True) if state else None
    return found, values


def same(one, other):
    """Whether two states hold the same bits, however deep."""
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict):
        return list(one) == list(other) and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other


def assert_alike(one, other):
    (files_one, state_one), (files_other, state_other) = files(one), files(other)
    assert list(files_one) == list(files_other)
    assert [name for name in files_one if files_one[name] != files_other[name]] == []
    assert same(state_one, state_other)
    for weights in ("best", "last"):
        assert any(re.match(f"model/{weights}/.*safetensors", name) for name in files_one)
    assert "live/plots/metrics/selection_dice.tsv" in files_one


@pytest.mark.parametrize(
    ("variant", "sample"),
    [
        ("wave_gms", True),
        *(pytest.param(name, False, marks=pytest.mark.slow) for name in ("gms", "unet")),
    ],
)
def test_a_failed_training_goes_on_bit_for_bit(run, saving_each_step, tmp_path, variant, sample):
    """Sampled latents, a coin for each step, batch statistics: nothing of it is lost or redrawn."""
    choices = {"sample_at_inference": sample}
    whole = run("whole", variant, choices=choices)
    for at in (3, 7, 5):  # images since the start or going on: in the steps 2, 5 and 7 of 8
        scramble()
        with pytest.raises(ZeroDivisionError):
            run("parts", variant, at=at, act=fail, choices=choices)
    scramble()
    parts = run("parts", variant, choices=choices)
    pd.testing.assert_frame_equal(parts.history, whole.history, check_exact=True)
    assert (parts.best_epoch, parts.best_dice) == (whole.best_epoch, whole.best_dice)
    assert_alike(tmp_path / "whole", tmp_path / "parts")
    if sample:
        kept = WaveGMSPipeline.from_pretrained(parts.folder / "best")
        assert kept.encoder.config.sample_at_inference


class Ticking(PreparedDataset):
    """A split that says whenever an image is taken."""

    def __init__(self, folder, split, ticks):
        super().__init__(folder, split)
        self.ticks = ticks

    def __getitem__(self, index):
        self.ticks.put(True)
        return super().__getitem__(index)


def _train_in_a_child(prepared, folder, params, ticks):
    training_loop._SAVE_SECONDS = 0.0
    torch.set_num_threads(1)
    sets = Ticking(prepared, "train", ticks), PreparedDataset(prepared, "val")
    result = train(make_run(folder, *sets, params, vae=grey_vae()))
    result.history.to_pickle(folder / "history.pkl")


# What is seen in the folder of the checkpoints when it is time to kill.
MOMENTS = {
    "at any time": None,
    "while a state is written": f".{STATE_NAME}.*",
    "while weights are written": ".last.*.new",
}


def kill(child, ticks, folder, moment, dice):
    """SIGKILL at its moment; whether it came before the end."""
    if MOMENTS[moment] is None:  # within six steps, however fast they are here
        left = dice.randrange(12)
        while left and child.is_alive():
            with suppress(queue.Empty):
                ticks.get(timeout=0.1)
                left -= 1
        child.join(dice.uniform(0.0, 0.2))
    else:
        leftover = set(folder.glob(MOMENTS[moment]))  # of the kill before
        while child.is_alive() and set(folder.glob(MOMENTS[moment])) <= leftover:
            time.sleep(0.0002)
    child.kill()
    child.join()
    return child.exitcode == -signal.SIGKILL


def steps_done(folder):
    path = folder / STATE_NAME
    if not path.exists():
        return 0
    state = torch.load(path, weights_only=True)["state"]
    return (state["epoch"] - 1) * 2 + state["step"]


@pytest.mark.parametrize(("count", "epochs"), [(3, 4), pytest.param(18, 8, marks=pytest.mark.slow)])
def test_a_training_killed_again_and_again_ends_bit_for_bit(
    prepared, training_params, tmp_path, survived, count, epochs
):
    params = training_params(
        augmentation=EVERYTHING, warmup_epochs=1, precision="fp32", epochs=epochs
    )

    def start(name):
        (tmp_path / name).mkdir(exist_ok=True)
        ticks = _forks.Queue()
        arguments = (prepared, tmp_path / name, params, ticks)
        child = _forks.Process(target=_train_in_a_child, args=arguments)
        child.start()
        return child, ticks

    def finish(name):
        child, _ = start(name)
        child.join()
        assert child.exitcode == 0

    finish("whole")
    model, dice = tmp_path / "parts/model", random.Random(5)
    kills, places, ends = dict.fromkeys(MOMENTS, 0), set(), 0
    while sum(kills.values()) < count:
        moment = min(kills, key=kills.get)
        child, ticks = start("parts")
        ticks.get(timeout=60)
        if kill(child, ticks, model, moment, dice):
            kills[moment] += 1
            places.add(steps_done(model))
        else:  # it had come to its end
            assert child.exitcode == 0
            assert_alike(tmp_path / "whole", tmp_path / "parts")
            discard_state(model)
            ends += 1
    survived("kills", count)
    if count > 3:
        assert len(places) > 5 and (ends or max(places) > 8)  # they did come in the midst
    finish("parts")
    whole, parts = (pd.read_pickle(tmp_path / name / "history.pkl") for name in ("whole", "parts"))
    pd.testing.assert_frame_equal(parts, whole, check_exact=True)
    assert_alike(tmp_path / "whole", tmp_path / "parts")


@pytest.fixture(scope="module")
def unfinished(prepared, training_params, tmp_path_factory):
    """A training that failed in its second step, which whoever is refused leaves as it is."""
    folder = tmp_path_factory.mktemp("unfinished")
    with pytest.MonkeyPatch.context() as patch, pytest.raises(ZeroDivisionError):
        patch.setattr(training_loop, "_SAVE_SECONDS", 0.0)
        train_in(folder, prepared, training_params, at=3, act=fail)
    return folder


def refused(call, error=InputError):
    with pytest.raises(error) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"learning_rate": 5e-4}, "training.learning_rate was 0.001 and is 0.0005"),
        ({"batch_size": 1}, "training.batch_size was 2 and is 1"),
        ({"weight_decay": 0.0}, "training.weight_decay was 0.01 and is 0.0"),
        ({"precision": "bf16"}, "but precision was fp32 and is bf16:"),
        (
            {"augmentation": EVERYTHING.model_copy(update={"rotate_90": 0.0})},
            "training.augmentation.rotate_90 was 0.5 and is 0.0",
        ),
        ({"epochs": 9}, "epochs was 4 and is 9"),
        ({"seed": 2}, "seed was 1 and is 2"),
        (
            {"choices": {"sample_at_inference": True}},
            "model.sample_at_inference was False and is True",
        ),
        (
            {"choices": {"supervision": "last_three_levels"}},
            "loss.supervision was all_levels and is last",
        ),
        ({"choices": {"alignment_distance": "smooth_l1"}}, "loss.alignment_distance was l1"),
        ({"variant": "wave_gms_no_alignment"}, "variant was wave_gms and is wave_gms_no_alignment"),
        ({"vae": grey_vae(1)}, "the autoencoder changed"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_another_training_does_not_go_on(unfinished, prepared, training_params, change, said):
    before = tree(unfinished)
    message = refused(lambda: train_in(unfinished, prepared, training_params, **change))
    assert f"{unfinished / 'model'} holds an unfinished training, but " in message
    assert said in message and "delete this folder to start over" in message
    assert tree(unfinished) == before


def test_other_images_versions_or_code_do_not_go_on(run, unfinished, tmp_path, monkeypatch):
    shutil.copytree(unfinished, tmp_path / "run")
    with monkeypatch.context() as patch:
        patch.setattr(Disturbed, "__init__", one_less)
        assert "but the training images changed:" in refused(lambda: run("run"))
    versions = training_state.library_versions()
    with monkeypatch.context() as patch:
        patch.setattr(training_state, "library_versions", lambda: versions | {"torch": "1.0"})
        said = f"but the version of torch was {versions['torch']} and is 1.0: "
        assert said in refused(lambda: run("run"))
    with monkeypatch.context() as patch:
        patch.setattr(training_state, "_CODE", ("training/loss.py", "figures/method.py"))
        message = refused(lambda: run("run"))
        assert "the code in wavegms/training/recipe.py changed" in message
        assert "the code in wavegms/figures/method.py changed" in message
    run("run")  # and nothing of this has harmed it


def one_less(self, folder, split, at=None, act=None):
    PreparedDataset.__init__(self, folder, split)
    self.left, self.act, self.ids = at, act, self.ids[1:]


def test_the_code_that_is_compared_is_what_the_train_stage_depends_on():
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
    code = {dep for dep in stages["train"]["deps"] if dep.startswith("wavegms/")}
    assert {f"wavegms/{name}" for name in training_state._CODE} <= code


@pytest.mark.parametrize("share", [0.0, 0.3, 0.99])
def test_a_broken_state_is_refused_by_name(run, unfinished, tmp_path, share):
    shutil.copytree(unfinished, tmp_path / "run")
    path = tmp_path / "run/model" / STATE_NAME
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    message = refused(lambda: run("run"))
    assert f"{path} cannot be read" in message and "delete it to start over" in message
    path.unlink()
    run("run", epochs=1, warmup_epochs=0)


class Payload:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def test_a_state_cannot_run_anything(tmp_path, survived):
    torch.save({"run": {}, "state": Payload(tmp_path / "canary")}, tmp_path / STATE_NAME)
    assert "cannot be read" in refused(lambda: load_state(tmp_path, {}))
    assert not (tmp_path / "canary").exists()
    survived("inputs")


def press_ctrl_c():
    os.kill(os.getpid(), signal.SIGINT)


def press_ctrl_c_twice():
    """With a moment after each, in which Python notices it: two at once may count as one."""
    for _ in range(2):
        press_ctrl_c()
        time.sleep(0.05)


def test_ctrl_c_saves_the_step_and_says_how_to_go_on(run, tmp_path, survived, capsys):
    """Half a minute is not over, so nothing else has saved."""
    whole = run("whole", "tiny")
    usual = signal.getsignal(signal.SIGINT)
    message = refused(lambda: run("parts", "tiny", at=5, act=press_ctrl_c), Stopped)
    model = tmp_path / "parts/model"
    assert message == (
        f"stopped in epoch 2 of 4 after step 1 of 2, which is saved in {model}: "
        "the same command goes on from there"
    )
    assert signal.getsignal(signal.SIGINT) is usual
    assert "stopping after this step" in capsys.readouterr().err
    # at an epoch's end
    message = refused(lambda: run("parts", "tiny", at=3, act=press_ctrl_c), Stopped)
    assert "stopped after epoch 2 of 4" in message or "in epoch 3 of 4" in message
    parts = run("parts", "tiny")
    said = capsys.readouterr().err
    assert f"going on in epoch 2 of 4 after step 1 of 2, saved in {model}" in said
    bars = re.findall(r"training tiny: .*? (\d+/\d+) \[", said)  # what was done counts as done
    assert bars[0] == "3/8" and bars[-1] == "8/8"
    pd.testing.assert_frame_equal(parts.history, whole.history, check_exact=True)
    assert_alike(tmp_path / "whole", tmp_path / "parts")
    survived("faults", 2)


def test_ctrl_c_twice_stops_at_once(run, tmp_path, saving_each_step, survived):
    whole = run("whole", "tiny")
    with pytest.raises(KeyboardInterrupt):
        run("parts", "tiny", at=5, act=press_ctrl_c_twice)
    parts = run("parts", "tiny")
    pd.testing.assert_frame_equal(parts.history, whole.history, check_exact=True)
    assert_alike(tmp_path / "whole", tmp_path / "parts")
    survived("faults")


@contextmanager
def disk_of(megabytes):
    """Files cannot grow beyond this, as on a disk that is nearly full."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (megabytes * 2**20, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.parametrize("megabytes", [20, 2])
def test_a_full_disk_leaves_the_last_checkpoint_whole(
    run, whole, saving_each_step, tmp_path, megabytes, survived
):
    """At 20 MB the state does not fit, at 2 MB the weights do not either."""
    with pytest.raises(ZeroDivisionError):
        run("parts", at=6, act=fail)
    model = tmp_path / "parts/model"
    before = tree(model)
    with disk_of(megabytes):
        message = refused(lambda: run("parts"))
    assert f"{model} cannot be written (" in message and "make room" in message
    after = tree(model)
    assert after[STATE_NAME] == before[STATE_NAME]
    assert {name for name in after if name.startswith((".", "best/.", "last/."))} == set()
    for name in ("best", "last"):
        WaveGMSPipeline.from_pretrained(model / name)
    parts = run("parts")
    pd.testing.assert_frame_equal(parts.history, whole[1].history, check_exact=True)
    assert_alike(whole[0], tmp_path / "parts")
    survived("faults")


class Greedy(WaveGMSLoss):
    """Asks for four pebibytes."""

    def __call__(self, *arguments):
        torch.empty(2**50)


@pytest.mark.parametrize(
    ("batch_size", "said"),
    [
        (4, "batch size 4: set training.batch_size to 2,"),
        (3, "batch size 3: set training.batch_size to 1,"),
        (1, "batch size 1: set a smaller image_size,"),
    ],
)
def test_too_little_memory_says_which_batch_size_to_try(
    run, batch_size, said, survived, monkeypatch
):
    monkeypatch.setattr(recipe, "WaveGMSLoss", Greedy)
    assert f"out of memory at {said}" in refused(lambda: run("run", batch_size=batch_size))
    survived("faults")


def test_another_error_of_torch_is_not_called_one_of_memory(run, monkeypatch):
    class Wrong(WaveGMSLoss):
        def __call__(self, *arguments):
            return torch.ones(2) @ torch.ones(3)

    monkeypatch.setattr(recipe, "WaveGMSLoss", Wrong)
    with pytest.raises(RuntimeError, match="inconsistent tensor size"):
        run("run")


def test_two_trainings_in_one_folder_are_refused(run, tmp_path, survived):
    folder = tmp_path / "run/model"
    with only_training(folder):
        assert f"another process is training in {folder}" in refused(lambda: run("run", "tiny"))
    run("run", "tiny", epochs=2)
    survived("faults")


def test_a_finished_training_is_not_done_again_until_it_is_published(run, tmp_path):
    first = run("run", "tiny")
    again = run("run", "tiny", at=1, act=fail)  # no image is looked at
    pd.testing.assert_frame_equal(again.history, first.history, check_exact=True)
    assert (again.best_epoch, again.best_dice) == (first.best_epoch, first.best_dice)
    discard_state(first.folder)
    with pytest.raises(ZeroDivisionError):
        run("run", "tiny", at=1, act=fail)


def test_the_cost_on_a_cpu_is_said_after_a_few_steps(run, capsys):
    run("run", "tiny", batch_size=1)
    said = [
        line for line in capsys.readouterr().err.splitlines() if "on this machine's CPU" in line
    ]
    assert len(said) == 1
    found = re.search(r"CPU 16 steps of ([\d.e-]+) s take about (\d+):(\d\d):(\d\d) ", said[0])
    a_step, *parts = map(float, found.groups())
    whole = parts[0] * 3600 + parts[1] * 60 + parts[2]
    assert whole == pytest.approx(16 * a_step, abs=0.5 + 0.06 * 16 * a_step)
