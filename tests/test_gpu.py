"""On a CUDA card: its numbers are the processor's, and its training stops, goes on and ends alike.

Uses no fixture of the other tests, so that it runs where their libraries are not:
`python -m pytest --noconftest -m gpu tests/test_gpu.py`. With WAVEGMS_REHEARSE in the environment
it runs on the processor instead, as far as that has what is tested.
"""

import os

import pytest
import torch
from diffusers import AutoencoderKL
from runs import grey_vae, make_run
from torch.nn import functional
from torch.utils._triton import has_triton

from wavegms.config import AugmentationParams, TrainingParams
from wavegms.costs.measure import plain_terms
from wavegms.data.on_card import fits_on_card
from wavegms.errors import InputError, Stopped
from wavegms.models.autoencoder import freeze
from wavegms.models.build import build_variant
from wavegms.training import loop as training_loop
from wavegms.training.device import frozen_for_steps
from wavegms.training.loss import WaveGMSLoss
from wavegms.training.recipe import loss_terms, train
from wavegms.training.safeguards import StopRequest, computing_with
from wavegms.variants import VARIANTS

pytestmark = pytest.mark.gpu

REHEARSED = "WAVEGMS_REHEARSE" in os.environ
CPU = torch.device("cpu")
# Of the rivals some drop out at random, which differs from device to device.
TRAINED = [
    name
    for name, spec in VARIANTS.items()
    if spec.trained
    and not (spec.batch_size or spec.generative)
    and (spec.autoencoder or name == "unet")
]
TRAINED.sort(key="wave_gms".__ne__)  # first, as there may be time for a few only


@pytest.fixture(scope="module")
def card():
    if torch.cuda.is_available():
        return torch.device("cuda")
    if REHEARSED:
        return CPU
    pytest.skip("there is no CUDA card")


@pytest.fixture
def compiler(real_card):
    if not has_triton():
        pytest.skip("there is no triton, which torch.compile needs for a card")
    return real_card


@pytest.fixture
def real_card(card):
    if card.type != "cuda":
        pytest.skip("there is no CUDA card")
    return card


class Split:
    """Smooth blobs on noise, held in memory as a prepared split is."""

    def __init__(self, count, side=64, seed=0):
        torch.manual_seed(seed)
        field = functional.interpolate(torch.randn(count, 1, 4, 4), (side, side), mode="bicubic")
        self.masks = (field > 0).to(torch.uint8)
        noise = torch.rand(count, 3, side, side) * 80
        self.images = (noise + 120 * self.masks).to(torch.uint8)
        self.image_size, self.data_hash, self.scale = side, f"{count} {seed}", None
        self.classes, self.in_colour, self.volume_of = (), True, list(range(count))
        self.ignored = 2
        self.ids = [str(number) for number in range(count)]

    def __len__(self):
        return len(self.ids)

    def __getitem__(self, index):
        return {"image": self.images[index], "mask": self.masks[index], "index": index}


def autoencoder(kind):
    if kind is None:
        return None
    if kind == "tiny":
        return grey_vae()
    torch.manual_seed(0)
    blocks = ("DownEncoderBlock2D",) * 4, ("UpDecoderBlock2D",) * 4
    channels = (8, 8, 8, 8)
    return freeze(AutoencoderKL(3, 3, *blocks, channels, norm_num_groups=4, latent_channels=4))


def terms_and_gradients(
    name, device, precision="fp32", plain=False, compiled=False, dtype=torch.float32
):
    """One step from the same weights, images and noise, whatever the device."""
    spec, split = VARIANTS[name], Split(2)
    vae = autoencoder(spec.autoencoder)
    torch.manual_seed(1)
    model = build_variant(name).train().to(device, dtype)
    vae = vae and torch.nn.Module.to(vae, device, dtype)
    images, masks = split.images.to(device, dtype) / 255, split.masks.to(device, dtype)
    noise = torch.randn(2, 4, 8, 8).to(images)
    autocast = computing_with(precision, device)
    torch.manual_seed(3)  # with an SD-VAE a coin decides, thrown by the processor
    form = plain_terms if plain else loss_terms
    if not plain:
        vae = frozen_for_steps(vae, precision, device)
    if compiled:
        model.compile()  # as `training.compile` does
    with autocast:
        terms = form(spec, model, WaveGMSLoss(), vae, images, masks, noise)
    terms["loss"].backward()
    gradients = [one.grad.flatten() for one in model.parameters() if one.grad is not None]
    return {key: one.item() for key, one in terms.items()}, torch.cat(gradients).double().cpu()


@pytest.fixture(scope="module")
def on_the_processor():
    """In float64, as float32 has errors of its own, 1.6 % of the largest gradients."""
    known = {}

    def find(name):
        if name not in known:
            known[name] = terms_and_gradients(name, CPU, plain=True, dtype=torch.float64)
        return known[name]

    return find


def close(name, gradient, wanted):
    """To a hundredth; to five where the first gradients are so large that rounding moves them."""
    tolerance = 0.05 if VARIANTS[name].full_precision else 0.01
    return (gradient - wanted).norm() < tolerance * wanted.norm()


@pytest.mark.parametrize("name", TRAINED)
def test_losses_and_gradients_are_the_processors(name, card, on_the_processor):
    wanted, gradient = on_the_processor(name)
    terms, found = terms_and_gradients(name, card)
    assert terms == pytest.approx(wanted, rel=1e-3)
    assert close(name, found, gradient)


@pytest.mark.parametrize("name", TRAINED)
def test_bf16_has_them_to_its_digits(name, card, on_the_processor):
    wanted, gradient = on_the_processor(name)
    terms, found = terms_and_gradients(name, card, "bf16")
    if VARIANTS[name].full_precision:  # bf16 is not chosen for it
        assert terms == pytest.approx(wanted, rel=0.2)
    else:
        assert terms == pytest.approx(wanted, rel=0.05)
        assert functional.cosine_similarity(found, gradient, dim=0) > 0.95


def settings(**changes):
    values = {
        "epochs": 3,
        "epochs_by_dataset": {},
        "batch_size": 4,
        "learning_rate": 1e-3,
        "weight_decay": 0.01,
        "warmup_epochs": 1,
        "selection": "best_on_test",
        "precision": "auto",
        "compile": False,
        "augmentation": AugmentationParams(
            horizontal_flip=0.5,
            vertical_flip=0.5,
            rotate_90=0.5,
            color_jitter=0.5,
            shift_scale_rotate=0.5,
        ),
    }
    return TrainingParams(**values | changes)


def trained(folder, variant="wave_gms", **changes):
    vae = autoencoder(VARIANTS[variant].autoencoder)
    sets = Split(24), Split(6, seed=1)
    return train(make_run(folder, *sets, settings(**changes), variant=variant, vae=vae, live=None))


def alike(one, other, tolerance):
    assert one["epoch"].tolist() == other["epoch"].tolist()
    assert one["learning_rate"].tolist() == pytest.approx(other["learning_rate"].tolist())
    for name in ("loss", "seg"):
        assert one[name].tolist() == pytest.approx(other[name].tolist(), rel=tolerance)


@pytest.fixture(scope="module")
def whole(card, tmp_path_factory):
    return trained(tmp_path_factory.mktemp("whole"))


def test_a_step_as_one_launch_learns_the_same(whole, real_card, tmp_path):
    one_by_one = trained(tmp_path, cuda_graph=False)
    # six steps an epoch, of which rounding leads the later ones elsewhere
    alike(whole.history, one_by_one.history, 0.05)
    assert whole.history["loss"].iloc[-1] < whole.history["loss"].iloc[0]


def test_in_float32_one_launch_is_the_same_to_its_digits(real_card, tmp_path, capfd):
    runs = [
        trained(tmp_path / str(graph), epochs=2, precision="fp32", cuda_graph=graph).history
        for graph in (True, False)
    ]
    assert "cannot be one launch" not in capfd.readouterr().err
    alike(*runs, 5e-3)


def test_unet_is_trained_as_one_launch(card, tmp_path, capfd):
    history = trained(tmp_path, "unet").history
    assert "cannot be one launch" not in capfd.readouterr().err
    assert history["loss"].iloc[-1] < history["loss"].iloc[0]


def test_a_stopped_training_goes_on_and_ends_alike(whole, card, tmp_path, monkeypatch):
    monkeypatch.setattr(training_loop, "_SAVE_SECONDS", 0.0)
    steps = []

    class Asked(StopRequest):
        @property
        def made(self):
            steps.append(1)
            return len(steps) == 9

        @made.setter
        def made(self, value):
            pass

    with monkeypatch.context() as patch:
        patch.setattr(training_loop, "StopRequest", Asked)
        with pytest.raises(Stopped, match="in epoch 2 of 3 after step"):
            trained(tmp_path)
    alike(trained(tmp_path).history, whole.history, 0.05)


def test_the_step_that_diverges_is_found_afterwards(card, tmp_path, monkeypatch):
    monkeypatch.setattr(training_loop, "_SAVE_SECONDS", 0.0)
    with pytest.raises(InputError, match=r"the loss is (nan|-?inf) in epoch 1"):
        trained(tmp_path, learning_rate=1e18, warmup_epochs=0)


def test_minutes_become_epochs(real_card, tmp_path):
    history = trained(tmp_path, epochs=None, minutes=0.1).history
    assert len(history) >= 2
    rates = history["learning_rate"]
    assert rates.iloc[1] == pytest.approx(1e-3) and rates.iloc[-1] == rates[1:].min()


def test_the_recipe_takes_the_cards_ways_here(real_card):
    assert fits_on_card(Split(8), real_card)
    half = frozen_for_steps(grey_vae().to(real_card), "bf16", real_card)
    assert next(half.parameters()).dtype == torch.bfloat16


def test_plain_losses_and_gradients_are_the_processors(card, on_the_processor):
    wanted, gradient = on_the_processor("wave_gms")
    terms, found = terms_and_gradients("wave_gms", card, plain=True)
    assert terms == pytest.approx(wanted, rel=1e-3)
    assert close("wave_gms", found, gradient)


# The smaller one first: Wave-GMS takes a compiler a minute or more.
@pytest.mark.parametrize("name", ["unet", "wave_gms"])
def test_compiled_forward_and_backward_are_the_same(name, compiler):
    """As float32 allows: losses to a thousandth, gradients to a hundredth of their length."""
    wanted, gradient = terms_and_gradients(name, compiler)
    terms, found = terms_and_gradients(name, compiler, compiled=True)
    assert terms == pytest.approx(wanted, rel=1e-3)
    assert close(name, found, gradient)


def test_compiled_it_is_trained_as_one_launch(compiler, tmp_path, capfd):
    changes = {"epochs": 2, "precision": "fp32"}
    history = trained(tmp_path / "compiled", "unet", compile=True, **changes).history
    assert "cannot be one launch" not in capfd.readouterr().err
    alike(history, trained(tmp_path / "eager", "unet", **changes).history, 0.02)
