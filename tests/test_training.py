"""The training loop: it can learn, it repeats itself, and it keeps what it says it keeps."""

import json
import os
import subprocess

import pandas as pd
import pytest
import torch
from conftest import NO_AUGMENTATION
from hypothesis import given
from hypothesis import strategies as st
from layouts import tree
from runs import as_tiny, grey_vae, make_run
from torch.optim.lr_scheduler import CosineAnnealingLR
from torch.utils.data import Dataset

from wavegms import InputError, WaveGMSPipeline
from wavegms.config import AugmentationParams, AutoencoderTraining
from wavegms.models.build import build_variant
from wavegms.training import loop as training_loop
from wavegms.training import recipe
from wavegms.training.autoencoder import train_autoencoder
from wavegms.training.loss import WaveGMSLoss, soft_dice
from wavegms.training.recipe import learning_rate_factor, train
from wavegms.training.state import discard_state


class Repeated(Dataset):
    """A split several times over, so that an epoch has many steps and one checkpoint."""

    def __init__(self, dataset, times):
        self.data_hash, self.ids = dataset.data_hash, dataset.ids * times
        self.dataset, self.times = dataset, times
        self.image_size, self.scale = dataset.image_size, dataset.scale
        self.classes, self.in_colour = dataset.classes, dataset.in_colour

    def __len__(self):
        return len(self.dataset) * self.times

    def __getitem__(self, index):
        return self.dataset[index % len(self.dataset)]


@pytest.fixture
def vae():
    return grey_vae()


@pytest.fixture
def run(vae, train_set, validation_set, training_params, tmp_path, monkeypatch):
    """Three epochs of two steps; keywords change settings.

    What holds for any network is asked of the variant `tiny`, whose training takes no time.
    """
    as_tiny(monkeypatch)

    def start(name="run", loss=None, seed=1, variant="wave_gms", **changes):
        if loss:
            monkeypatch.setattr(recipe, "WaveGMSLoss", lambda **_: loss)
        settings = training_params(**{"epochs": 3} | changes)
        folder, sets = tmp_path / name, (train_set, validation_set)
        names = {"variant": variant, "vae": None if variant == "tiny" else vae, "seed": seed}
        return train(make_run(folder, *sets, settings, **names))

    return start


@pytest.fixture
def states(monkeypatch):
    """The weights after each epoch; a test may say what the selection Dice shall be."""
    seen, scores = [], []
    measure = training_loop.mean_soft_dice

    def remember(accelerator, pipeline, *rest):
        score = measure(accelerator, pipeline, *rest)
        seen.append({key: value.clone() for key, value in trained_weights(pipeline).items()})
        return scores[len(seen) - 1] if scores else score

    monkeypatch.setattr(training_loop, "mean_soft_dice", remember)
    return seen, scores


def trained_weights(pipe):
    parts = {name: getattr(pipe, name) for name in ("encoder", "mapping", "network")}
    return {
        f"{name}.{key}": value
        for name, part in parts.items()
        if part is not None
        for key, value in part.state_dict().items()
    }


def weights(folder):
    return trained_weights(WaveGMSPipeline.from_pretrained(folder))


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def equal(first, second):
    assert first.keys() == second.keys()
    return all(torch.equal(first[key], second[key]) for key in first)


@given(st.integers(2, 400), st.data())
def test_the_learning_rate_warms_up_and_falls_as_torchs_cosine(epochs, data):
    warmup = data.draw(st.integers(0, epochs - 1))
    factors = [learning_rate_factor(epoch, epochs, warmup) for epoch in range(epochs)]
    rising, falling = factors[:warmup], factors[warmup:]
    assert rising == pytest.approx([(k + 1) / (warmup + 1) for k in range(warmup)])
    assert factors[warmup] == 1 == max(factors) and min(factors) > 0
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    schedule = CosineAnnealingLR(optimizer, T_max=epochs - warmup)
    for factor in falling:
        assert factor == pytest.approx(schedule.get_last_lr()[0], abs=1e-9)
        optimizer.step()
        schedule.step()
    assert learning_rate_factor(epochs, epochs, warmup) == pytest.approx(0, abs=1e-12)


def test_the_papers_schedule_ends_near_0():
    factors = [learning_rate_factor(epoch, 1000, 5) for epoch in range(1000)]
    assert factors[5] == 1 and factors[-1] < 1e-5


@pytest.mark.slow
def test_four_images_are_learnt_by_heart(trained_vae, train_set, training_params, tmp_path):
    settings = training_params(epochs=8, batch_size=4, learning_rate=3e-3, warmup_epochs=1)
    sets = Repeated(train_set, 30), train_set
    result = train(make_run(tmp_path, *sets, settings, vae=trained_vae))
    assert result.best_dice > 0.9  # the autoencoder itself gives these masks back with 0.97
    losses = result.history["loss"]
    assert losses.iloc[-1] < 0.1 * losses.iloc[0]
    # and through the door for users
    pipe = WaveGMSPipeline.from_pretrained(result.folder / "best")
    for mask, truth in zip(pipe(train_set.images).masks, train_set.masks, strict=True):
        truth = truth[0].numpy() > 0
        assert 2 * (mask & truth).sum() / (mask.sum() + truth.sum()) > 0.9


def test_the_seed_decides_everything(run):
    augment = AugmentationParams(**dict.fromkeys(NO_AUGMENTATION, 0.5))
    once, again, other = (
        run(str(k), seed=seed, epochs=2, augmentation=augment) for k, seed in enumerate((5, 5, 6))
    )
    pd.testing.assert_frame_equal(once.history, again.history, check_exact=True)
    assert once.best_epoch == again.best_epoch
    assert equal(weights(once.folder / "last"), weights(again.folder / "last"))
    assert not equal(weights(once.folder / "last"), weights(other.folder / "last"))
    assert (once.history["loss"] != other.history["loss"]).all()


def test_several_threads_give_the_same_again(run, train_set):
    """Beside others every test has one thread, a training on a machine of its own has more."""
    augment = AugmentationParams(**dict.fromkeys(NO_AUGMENTATION, 0.5))
    small = AutoencoderTraining(channels=16, blocks=1, steps=5, batch_size=4, learning_rate=5e-3)
    torch.set_num_threads(max(2, os.cpu_count()))
    try:
        vaes = [train_autoencoder(train_set, small, seed=0).state_dict() for _ in range(2)]
        once, again = (run(name, epochs=2, augmentation=augment) for name in ("once", "again"))
    finally:
        torch.set_num_threads(1)
    assert equal(*vaes)
    pd.testing.assert_frame_equal(once.history, again.history, check_exact=True)
    assert equal(weights(once.folder / "last"), weights(again.folder / "last"))


def test_augmentation_is_applied_to_what_is_learnt_from(run):
    plain = run("plain", variant="tiny", epochs=1)
    jitter = AugmentationParams(**NO_AUGMENTATION | {"color_jitter": 1.0})
    jittered = run("jitter", variant="tiny", epochs=1, augmentation=jitter)
    assert jittered.history["loss"][0] != plain.history["loss"][0]


def test_the_history_has_a_row_an_epoch(run):
    result = run(epochs=4, warmup_epochs=2, learning_rate=3e-4)
    history = result.history
    assert list(history) == [
        "epoch",
        "learning_rate",
        "loss",
        "seg",
        "lm",
        "align",
        "selection_dice",
    ]
    assert history["epoch"].tolist() == [1, 2, 3, 4]
    # warm-up in thirds, then the peak and half-way down the cosine
    assert history["learning_rate"].tolist() == pytest.approx([1e-4, 2e-4, 3e-4, 1.5e-4])
    total = history[["seg", "lm", "align"]].sum(axis=1)
    assert history["loss"].tolist() == pytest.approx(total.tolist(), rel=1e-5)
    assert history["selection_dice"].between(0, 1).all()


def test_dvclive_has_the_history(run, tmp_path):
    history = run(variant="tiny").history
    live = tmp_path / "run" / "live"
    for name in history.columns.drop("epoch"):
        logged = pd.read_csv(live / "plots" / "metrics" / f"{name}.tsv", sep="\t")
        assert logged[name].tolist() == pytest.approx(history[name].tolist(), rel=1e-6)
    summary = json.loads((live / "metrics.json").read_text())
    assert summary["selection_dice"] == pytest.approx(history["selection_dice"].iloc[-1])


@pytest.mark.parametrize(
    ("scores", "best"), [((0.2, 0.7, 0.5), 2), ((0.7, 0.2, 0.7), 1), ((0.0, 0.0, 0.1), 3)]
)
def test_best_and_last_are_kept(run, states, scores, best):
    """Best is the first epoch with the highest selection Dice; last is the last one."""
    seen, wanted = states
    wanted += scores
    result = run(variant="tiny")
    assert (result.best_epoch, result.best_dice) == (best, max(scores))
    assert result.history["selection_dice"].tolist() == list(scores)
    assert names(result.folder) == ["best", "last", "resume.pt", "running.lock"]
    assert equal(weights(result.folder / "best"), seen[best - 1])
    assert equal(weights(result.folder / "last"), seen[-1])
    assert not equal(seen[0], seen[1]) and not equal(seen[1], seen[2])


def test_what_is_kept_predicts_what_was_measured(run, validation_set):
    result = run(variant="tiny", learning_rate=2e-3)
    history = result.history.set_index("epoch")["selection_dice"]
    assert result.best_epoch == history.idxmax() and result.best_dice == history.max()
    masks = validation_set.masks.float()
    for name, expected in (("best", result.best_dice), ("last", history[3])):
        pipe = WaveGMSPipeline.from_pretrained(result.folder / name)
        assert pipe.config.image_size == 32
        soft = pipe.predict(validation_set.images.float() / 255)
        assert soft_dice(soft, masks).mean().item() == pytest.approx(expected, abs=1e-3)


def test_the_autoencoder_is_not_changed(run, vae):
    before = {key: value.clone() for key, value in vae.state_dict().items()}
    result = run(epochs=1)
    assert equal(vae.state_dict(), before)
    assert not any(parameter.requires_grad for parameter in vae.parameters())
    for name in ("best", "last"):
        saved = WaveGMSPipeline.from_pretrained(result.folder / name).vae
        assert equal(saved.state_dict(), before)


def test_every_trained_weight_moves(run, states):
    torch.manual_seed(0)
    seen, _ = states
    run(epochs=2)
    moved = {key for key in seen[0] if not torch.equal(seen[0][key], seen[1][key])}
    assert moved == set(seen[0]) == set(build_variant("wave_gms").state_dict())


def test_weights_decay_as_adamw_has_it(run):
    """Of one step, by learning rate times decay times the weights as they began."""
    plain, decayed = (
        weights(run(str(decay), epochs=1, batch_size=4, weight_decay=decay).folder / "last")
        for decay in (0.0, 0.5)
    )
    torch.manual_seed(1)
    for key, value in build_variant("wave_gms").state_dict().items():
        torch.testing.assert_close(plain[key] - decayed[key], 5e-4 * value, rtol=1e-3, atol=1e-6)


class Counting:
    """The loss, and the number of images and the value of each batch it was given."""

    def __init__(self, break_at=None):
        self.sizes, self.values, self.break_at = [], [], break_at

    def __call__(self, latents, levels, vae, images, masks, mask_decoder=None):
        self.sizes.append(len(images))
        terms = WaveGMSLoss()(latents, levels, vae, images, masks)
        self.values.append(terms["loss"].item())
        if len(self.sizes) == self.break_at:
            terms["loss"] = terms["loss"] * float("nan")
        return terms


@pytest.mark.parametrize(("batch_size", "sizes"), [(4, [4]), (3, [3]), (2, [2, 2]), (1, [1] * 4)])
def test_the_last_short_batch_is_dropped(run, batch_size, sizes):
    loss = Counting()
    run(loss=loss, epochs=1, batch_size=batch_size)
    assert loss.sizes == sizes


def test_the_history_has_the_mean_of_the_batches(run):
    loss = Counting()
    history = run(loss=loss, epochs=2).history
    expected = [sum(loss.values[:2]) / 2, sum(loss.values[2:]) / 2]
    assert history["loss"].tolist() == pytest.approx(expected, rel=1e-5)


def refused(call):
    with pytest.raises(InputError) as error:
        call()
    message = str(error.value)
    assert "\n" not in message
    return message


def test_a_batch_larger_than_the_training_set_is_refused(run, tmp_path):
    message = refused(lambda: run(batch_size=5))
    assert "training.batch_size is 5" in message and "at most 4" in message
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("epochs", "warmup"), [(3, 3), (3, 9), (1, 1)])
def test_a_warm_up_that_does_not_end_is_refused(run, epochs, warmup):
    message = refused(lambda: run(epochs=epochs, warmup_epochs=warmup))
    assert f"training.warmup_epochs ({warmup})" in message and f"({epochs})" in message


def test_an_unknown_variant_is_refused():
    assert "'wave_gsm' is unknown" in refused(lambda: build_variant("wave_gsm"))


def test_a_loss_that_is_not_finite_stops_and_keeps_last(run, states, tmp_path):
    """Broken in the third step, that is in epoch 2: the weights of epoch 1 stay."""
    seen, _ = states
    message = refused(lambda: run(loss=Counting(break_at=3)))
    folder = tmp_path / "run" / "model"
    assert "the loss is nan in epoch 2, step 1 of 2:" in message
    assert "lower training.learning_rate" in message
    assert f"after epoch 1, are in {folder / 'last'}" in message
    assert len(seen) == 1 and equal(weights(folder / "last"), seen[0])
    assert names(folder) == ["best", "last", "running.lock"]


def test_a_loss_that_is_not_finite_at_once_promises_nothing(run, tmp_path):
    message = refused(lambda: run(loss=Counting(break_at=1)))
    assert "the loss is nan in epoch 1, step 1 of 2:" in message and "last" not in message
    assert names(tmp_path / "run" / "model") == ["running.lock"]


def test_weights_that_break_in_an_epochs_last_step_are_not_kept(run, tmp_path):
    """One step an epoch: the loss of epoch 1 is still finite, what it leaves is not."""
    message = refused(lambda: run(batch_size=4, learning_rate=1e30))
    assert "selection Dice is nan in epoch 1" in message
    assert names(tmp_path / "run" / "model") == ["running.lock"]


def test_a_failed_run_leaves_an_earlier_one_alone(run, tmp_path):
    discard_state(run(epochs=1).folder)
    before = tree(tmp_path / "run" / "model")
    refused(lambda: run(loss=Counting(break_at=1)))
    assert tree(tmp_path / "run" / "model") == before


@pytest.mark.parametrize("commits", [0, 1])
def test_git_is_left_alone(run, tmp_path, monkeypatch, commits):
    """dvclive would make a DVC project of a Git repository that is none, and stage its files."""
    repository = tmp_path / "repository"
    repository.mkdir()

    def git(*arguments):
        command = ["git", "-c", "user.name=a", "-c", "user.email=a@b.c", *arguments]
        subprocess.run(command, cwd=repository, check=True, capture_output=True)

    git("init")
    for _ in range(commits):
        git("commit", "--allow-empty", "-m", "first")
    before = tree(repository)
    monkeypatch.chdir(repository)
    run(variant="tiny", epochs=1)
    assert tree(repository) == before
    assert (tmp_path / "run" / "live" / "metrics.json").is_file()


def test_a_second_run_replaces_the_first(run):
    result = run(variant="tiny", epochs=1, seed=1)
    first = weights(result.folder / "last")
    discard_state(result.folder)
    second = run(variant="tiny", epochs=1, seed=2)
    assert not equal(weights(second.folder / "last"), first)
