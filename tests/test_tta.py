"""Test-time augmentation: laws of the average, and an honest word on what it gains."""

import dataclasses
import shutil

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from wavegms import InputError, WaveGMSPipeline
from wavegms.models.mask_network import MaskNetwork
from wavegms.predict.tta import (
    AugmentedPipeline,
    Gain,
    View,
    average_views,
    measure_gain,
    open_validation,
    views_of,
)
from wavegms.results.metrics import mask_metrics
from wavegms.training.card import ModelCard

ALL = [View(mirrored, turns) for mirrored in (False, True) for turns in range(4)]
settings_of_training = st.fixed_dictionaries(
    {
        name: st.sampled_from([0.0, 0.5])
        for name in ("horizontal_flip", "vertical_flip", "rotate_90")
    }
)


def images(seed, side=6):
    return torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(seed))


def lopsided(batch):
    """Treats every place and direction in another way."""
    weights = torch.linspace(0, 1, batch[0, 0].numel()).reshape(batch.shape[-2:])
    return (batch.mean(1, keepdim=True) * weights).cumsum(-1)


@pytest.mark.parametrize("view", ALL)
def test_a_view_is_undone(view):
    batch = images(0)
    torch.testing.assert_close(view.back(view.of(batch)), batch, rtol=0, atol=0)
    expected = np.rot90(batch.numpy()[..., ::-1] if view.mirrored else batch.numpy(),
                        view.quarter_turns, (-2, -1))  # fmt: skip
    np.testing.assert_array_equal(view.of(batch).numpy(), expected)


def test_the_eight_views_differ():
    batch = images(0)
    assert len({view.of(batch).numpy().tobytes() for view in ALL}) == 8


@given(seed=st.integers(0, 1000), augmentation=settings_of_training)
def test_what_treats_all_views_alike_gains_nothing(seed, augmentation):
    batch = images(seed)

    def equivariant(view):
        smooth = torch.nn.functional.avg_pool2d(view, 3, stride=1, padding=1)
        return (smooth - view).abs().mean(1, keepdim=True)

    averaged = average_views(equivariant, batch, views_of(augmentation))
    torch.testing.assert_close(averaged, equivariant(batch))


@given(seed=st.integers(0, 1000), augmentation=settings_of_training)
def test_the_average_treats_all_views_alike(seed, augmentation):
    """Whatever is averaged, which needs that the views are a group."""
    views, batch = views_of(augmentation), images(seed)
    plain = average_views(lopsided, batch, views)
    for view in views:
        averaged = average_views(lopsided, view.of(batch), views)
        torch.testing.assert_close(averaged, view.of(plain))


def test_the_average_is_the_mean_of_what_numpy_turns_back():
    batch = images(1)
    averaged = average_views(lopsided, batch, views_of({"horizontal_flip": 0.5}))
    mirrored = lopsided(torch.from_numpy(batch.numpy()[..., ::-1].copy())).numpy()[..., ::-1]
    np.testing.assert_allclose(averaged, (lopsided(batch).numpy() + mirrored) / 2, rtol=1e-5)


@pytest.mark.parametrize(
    ("horizontal", "vertical", "turned", "count"),
    [(0, 0, 0, 1), (0.5, 0, 0, 2), (0, 0.5, 0, 2), (0.5, 0.5, 0, 4), (0, 0, 1, 4), (0.5, 0, 1, 8)],
)
def test_views_are_those_of_the_training(horizontal, vertical, turned, count):
    views = views_of(
        {"horizontal_flip": horizontal, "vertical_flip": vertical, "rotate_90": turned}
    )
    assert len(set(views)) == len(views) == count and views[0] == View(False, 0)
    picture = torch.arange(4.0).reshape(1, 1, 2, 2)
    seen = [view.of(picture).flatten().tolist() for view in views]
    assert ([1, 0, 3, 2] in seen) == bool(horizontal)
    assert ([2, 3, 0, 1] in seen) == bool(vertical or (turned and horizontal))
    assert ([1, 3, 0, 2] in seen) == bool(turned)


@pytest.fixture
def unet():
    return WaveGMSPipeline(network=MaskNetwork("unet"), image_size=32)


def test_every_pipeline_takes_views(pipeline, unet):
    picture = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    single = WaveGMSPipeline(None, pipeline.mapping, pipeline.vae, image_size=32)
    for plain in (pipeline, single, unet):
        augmented = AugmentedPipeline.of(plain, [View(False, 0), View(True, 0)])
        assert augmented.device == plain.device and augmented.config.image_size == 32
        assert augmented.components == plain.components
        soft = augmented(picture).probabilities[0]
        expected = (
            plain(picture).probabilities[0]
            + plain(picture[:, ::-1].copy()).probabilities[0][:, ::-1]
        ) / 2
        np.testing.assert_allclose(soft, expected, atol=1e-4)
        assert np.abs(soft - plain(picture).probabilities[0]).max() > 0.01
        same = AugmentedPipeline.of(plain, [View(False, 0)])
        np.testing.assert_allclose(
            same(picture).probabilities[0], plain(picture).probabilities[0], atol=1e-5
        )


def test_the_gain_is_that_of_the_same_images(unet, validation_set):
    augmented = AugmentedPipeline.of(unet, [View(False, 0), View(True, 0)])
    gain = measure_gain(unet, augmented, validation_set, "phantom_a", threshold=0.5)
    dice = []
    for model in (unet, augmented):
        scores = []
        for index in range(len(validation_set)):
            case = validation_set[index]
            soft = model.predict(case["image"][None].float() / 255)[0, 0].numpy()
            scores.append(mask_metrics(soft >= 0.5, case["mask"][0].numpy() == 1).dsc)
        dice.append(np.array(scores))
    assert 0 < gain.plain < 1 and gain.difference != 0
    assert gain.images == 2 and gain.dataset == "phantom_a"
    np.testing.assert_allclose(
        (gain.plain, gain.augmented, gain.difference),
        (dice[0].mean(), dice[1].mean(), (dice[1] - dice[0]).mean()),
        atol=1e-3,
    )
    assert gain.ci_low <= gain.difference <= gain.ci_high
    nothing = measure_gain(unet, unet, validation_set, "phantom_a")
    assert nothing.difference == nothing.ci_low == nothing.ci_high == 0
    assert str(nothing).endswith("no clear gain")


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [(0.001, 0.01, "it helps"), (-0.01, -0.001, "it harms"), (-0.002, 0.012, "no clear gain")],
)
def test_a_gain_is_said_in_one_line(low, high, verdict):
    line = str(Gain("busi", 52, 0.871, 0.876, 0.005, low, high))
    assert line.startswith("DSC on the 52 validation images of busi 0.871 -> 0.876")
    assert f"{low:+.3f} to {high:+.3f}" in line and line.endswith(verdict) and "\n" not in line


@pytest.fixture
def card(validation_set):
    values = dict.fromkeys(field.name for field in dataclasses.fields(ModelCard))
    known = {"dataset": "phantom_a", "data_hash": validation_set.data_hash, "parameters": {}}
    return ModelCard(**values | known)


def test_the_validation_images_must_be_those_of_the_training(card, prepared, tmp_path):
    shutil.copytree(prepared, tmp_path / "phantom_a")
    assert len(open_validation(card, tmp_path)) == 2
    with pytest.raises(InputError, match="prepared otherwise"):
        open_validation(dataclasses.replace(card, data_hash="0"), tmp_path)
    with pytest.raises(InputError, match="not here"):
        open_validation(dataclasses.replace(card, dataset="busi"), tmp_path)
