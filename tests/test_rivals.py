"""The other systems of Table 2: that each is the published network, and that it learns here."""

import json
from pathlib import Path

import golden
import numpy as np
import pytest
import torch
from golden import waves
from rival_fill import fill
from runs import make_run
from torch.nn import functional

from wavegms import InputError, WaveGMSPipeline
from wavegms.models.build import as_pipeline, build_variant
from wavegms.models.export import TOLERANCE
from wavegms.models.mask_network import MASK_NETWORKS, MaskNetwork
from wavegms.training.loss import WaveGMSLoss, soft_dice
from wavegms.training.recipe import loss_terms, train
from wavegms.variants import VARIANTS, require_side

# As published, and the gain of the weights at which no output is saturated.
RIVALS = {
    "multiresunet": (7_251_322, 0.75),
    "acc_unet": (16_771_245, 1.05),
    "nnunet": (20_612_738, 1.0),
    "egeunet": (53_374, 1.0),
}
SMALL = [f"{name}_small" for name in RIVALS]
# What the networks here gave once they had been compared with the published ones' outputs.
GOLDEN = json.loads((Path(__file__).parent / "rival_golden.json").read_text())


def pooled(x, side):
    return functional.adaptive_avg_pool2d(x, side)


def built(name):
    return MaskNetwork(name).network


def raw(network):
    """The network without the normalisation of its input."""
    return getattr(network, "logits", network)


def golden_pixels(name):
    """Sixteen logits, spread over an image of 64x64."""
    network = fill(built(name), RIVALS[name][1], ordered=True).double().eval()
    with torch.inference_mode():
        return network(waves(64).double())[0, 0, 8::16, 8::16].flatten()


@pytest.mark.parametrize("name", RIVALS)
def test_sizes_are_the_published_ones(name):
    with torch.device("meta"):
        network = built(name)
    assert sum(parameter.numel() for parameter in network.parameters()) == RIVALS[name][0]


@pytest.mark.parametrize("name", RIVALS)
def test_outputs_are_those_of_the_checked_build(name):
    """In float64, so that the last digits are of the formula and not of the machine."""
    found = golden_pixels(name)
    expected = torch.tensor(GOLDEN[name], dtype=torch.float64)
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-5)
    assert found.std() > 0.01, "a constant shows nothing"


FILES = {"multiresunet": "multiresunet", "acc_unet": "accunet", "egeunet": "egeunet"}


@pytest.mark.realdata
@pytest.mark.parametrize("ordered", [False, True])
@pytest.mark.parametrize("name", FILES)
def test_outputs_are_the_published_networks(name, ordered, real_data):
    """Of the published code, under the same weights; the stored outputs are its own."""
    stored = np.load(real_data / "baselines" / f"{FILES[name]}.npz")
    about = json.loads((real_data / "baselines" / f"{FILES[name]}.json").read_text())
    network = fill(built(name), about["gain"], ordered=ordered).eval()
    if name == "egeunet":
        network.train()  # for its auxiliary masks; nothing in it behaves otherwise
    with torch.inference_mode():
        outputs = raw(network)(waves(224))
    mask, *auxiliary = outputs if isinstance(outputs, list) else [outputs]
    keys = {"out": mask} | {
        f"aux_level{level}": one for level, one in zip((5, 4, 3, 2, 1), auxiliary, strict=False)
    }
    for key, logits in keys.items():
        key, soft = f"{'ordered_' if ordered else ''}{key}", logits.sigmoid()
        for found, part in ((pooled(soft, 28), "pool28"), (soft[..., 8::16, 8::16], "grid14")):
            expected = torch.from_numpy(stored[f"{key}_{part}"])
            torch.testing.assert_close(found, expected, rtol=0, atol=3e-5)


@pytest.mark.realdata
@pytest.mark.parametrize(("key", "formula"), [("sine", golden.sine), ("hash", golden.hashed)])
def test_nnunet_gives_what_its_own_class_gives(key, formula, real_data):
    """In float64 to the rounding of the stored float32; norms cancel the biases that it lacks."""
    stored = np.load(real_data / "baselines/nnunet_plainconv.npz")
    network = golden.fill(built("nnunet"), formula).eval()
    with torch.inference_mode():
        logits = network.double().logits(waves(224).double())
    for found, part in ((pooled(logits, 28), ""), (logits[..., :8, :8], "_corner")):
        expected = torch.from_numpy(stored[f"{key}_classes2{part}"]).double()
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-3)


def test_two_classes_become_the_logit_of_the_foreground():
    network = built("nnunet_small").eval()
    images = torch.rand(2, 3, 32, 48)
    mean, spread = images.mean((2, 3), keepdim=True), images.std((2, 3), keepdim=True, correction=0)
    shares = network.logits((images - mean) / spread).softmax(dim=1)
    torch.testing.assert_close(network(images).sigmoid(), shares[:, 1:])


@pytest.mark.parametrize("name", ["nnunet_small", "egeunet_small"])
def test_an_image_is_normalised_by_itself(name):
    """Brighter and of less contrast it is the same image; one without contrast is no accident."""
    network = built(name).eval()
    images = torch.rand(2, 3, 32, 32)
    torch.testing.assert_close(network(0.3 + images / 4), network(images), rtol=1e-3, atol=1e-3)
    assert network(torch.full((1, 3, 32, 32), 0.5)).isfinite().all()


def test_auxiliary_masks_come_in_training_alone():
    network = built("egeunet_small")
    images = torch.rand(2, 3, 64, 32)
    outputs = network.train()(images)
    assert [tuple(one.shape) for one in outputs] == [(2, 1, 64, 32)] * 6
    torch.testing.assert_close(outputs[0], network.eval()(images))


def test_the_free_parameters_start_at_one_and_convolutions_as_published():
    torch.manual_seed(0)
    network = built("egeunet")
    for key, parameter in network.named_parameters():
        if key.endswith(("plane", "rows", "columns")):
            assert (parameter == 1).all()
    last = network.encoder[-1].project[2]  # 1x1, 48 to 64 channels
    assert last.weight.std().item() == pytest.approx((2 / 64) ** 0.5, rel=0.1)
    assert (last.bias == 0).all()


@pytest.mark.parametrize("name", SMALL)
def test_every_parameter_gets_a_gradient_and_one_batch_is_learned(name, train_set):
    torch.manual_seed(1)
    images, masks = train_set.to_float(train_set.images), train_set.mask_to_float(train_set.masks)
    model = build_variant(name).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    for step in range(100):
        terms = loss_terms(VARIANTS[name], model, WaveGMSLoss(), None, images, masks)
        optimizer.zero_grad()
        terms["loss"].backward()
        if step == 0:
            for key, parameter in model.named_parameters():
                assert parameter.grad is not None and parameter.grad.abs().max() > 0, key
        optimizer.step()
        found = model(images) > 0.5
        wrong = (found != masks.bool()).sum() / (found.sum() + masks.sum())
        if wrong < 0.1:  # 1 - Dice
            return
    raise AssertionError(f"after {step + 1} steps Dice is {1 - wrong:.3f}")


@pytest.mark.parametrize("name", SMALL)
def test_one_is_trained_kept_and_opened_again(
    name, train_set, validation_set, training_params, tmp_path
):
    run = make_run(tmp_path, train_set, validation_set, training_params(), variant=name)
    result = train(run)
    pipeline = WaveGMSPipeline.from_pretrained(result.folder / "best")
    soft = pipeline.predict(validation_set.images.float() / 255)
    dice = soft_dice(soft, validation_set.masks.float()).mean().item()
    assert dice == pytest.approx(result.best_dice, abs=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALL)
def test_one_becomes_an_onnx_file(name, tmp_path):
    torch.manual_seed(0)
    pipeline = as_pipeline(build_variant(name), None, 32)
    assert pipeline.export_onnx(tmp_path / "model.onnx").max_difference < TOLERANCE


def test_sizes_that_a_network_refuses():
    for name, side, wanted in (
        ("nnunet", 32, "of 64 or more"),
        ("nnunet", 80, "divisible by 32"),
        ("egeunet", 48, "divisible by 32"),
        ("acc_unet", 40, "divisible by 16"),
    ):
        with pytest.raises(InputError, match=f"image_size is {side}.* {name} needs one {wanted}"):
            require_side(name, side, "image_size")


def test_every_small_setting_stands_beside_its_network():
    for name in RIVALS:
        large, small = VARIANTS[name], VARIANTS[f"{name}_small"]
        assert small.title == f"{large.title} (small)" and {large.network, small.network} <= set(
            MASK_NETWORKS
        )
