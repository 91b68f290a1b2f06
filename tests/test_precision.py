"""What a run computes with: chosen by the machine, refused by name, and no other result."""

import pytest
import torch
from runs import grey_vae, make_run
from short import shorten
from test_export import build_vae

from wavegms import InputError
from wavegms.models.build import as_pipeline, build_variant
from wavegms.training import device as training_device
from wavegms.training import recipe as training
from wavegms.training.loss import WaveGMSLoss
from wavegms.training.recipe import loss_terms, train
from wavegms.training.safeguards import choose_precision, computing_with
from wavegms.variants import VARIANTS

CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize(("wanted", "chosen"), [("auto", "fp32"), ("fp32", "fp32"), ("bf16",) * 2])
def test_a_cpu_has_two(wanted, chosen):
    assert choose_precision(wanted, CPU) == chosen


@pytest.mark.parametrize("wanted", ["tf32", "fp16"])
def test_what_only_a_gpu_has_is_refused_without(wanted):
    with pytest.raises(InputError) as error:
        choose_precision(wanted, CPU)
    assert f"training.precision is {wanted}" in str(error.value) and "bf16" in str(error.value)


@pytest.mark.parametrize(
    ("modern", "wanted", "chosen"),
    [
        (True, "auto", "bf16"),
        (False, "auto", "fp32"),
        *((True, name, name) for name in ("fp32", "tf32", "bf16", "fp16")),
        *((False, name, name) for name in ("fp32", "fp16")),
        *((False, name, None) for name in ("tf32", "bf16")),
    ],
)
def test_a_gpu_has_what_its_generation_has(monkeypatch, modern, wanted, chosen):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: modern)
    if chosen:
        assert choose_precision(wanted, GPU) == chosen
        return
    with pytest.raises(InputError, match=f"training.precision is {wanted}.*fp16"):
        choose_precision(wanted, GPU)


def test_only_tf32_and_the_halves_allow_tf32():
    for precision, allowed in (("fp32", False), ("tf32", True), ("bf16", True), ("fp32", False)):
        computing_with(precision, CPU)
        for backend in (torch.backends.cuda.matmul, torch.backends.cudnn):
            assert backend.allow_tf32 == allowed
        # as the operators themselves see it
        assert (torch.backends.cudnn.conv.fp32_precision == "tf32") == allowed
        assert (torch.backends.cuda.matmul.fp32_precision == "tf32") == allowed


@pytest.fixture
def vae():
    return grey_vae()


def terms_and_gradients(name, vae, batch, precision):
    torch.manual_seed(1)
    model = build_variant(name).train()
    with computing_with(precision, CPU):
        terms = loss_terms(VARIANTS[name], model, WaveGMSLoss(), vae, *batch)
    terms["loss"].backward()
    gradients = [parameter.grad for parameter in model.parameters()]
    assert all(gradient is None or gradient.dtype == torch.float32 for gradient in gradients)
    return terms, torch.cat([one.flatten() for one in gradients if one is not None])


# Without bf16 of its own a processor takes a minute for these.
LARGER = ("tinyvae_multires_sft", "unet")


@pytest.mark.parametrize(
    "name",
    [
        "wave_gms",
        *(pytest.param(n, marks=pytest.mark.slow) for n in ("tinyvae_multires_sft", "unet")),
    ],
)
def test_bf16_gives_the_terms_and_gradients_to_its_digits(name, vae, train_set):
    batch = train_set.images.float() / 255, train_set.masks.float()
    wanted, gradients = terms_and_gradients(name, vae, batch, "fp32")
    terms, rounded = terms_and_gradients(name, vae, batch, "bf16")
    for key, value in terms.items():
        assert value.dtype == torch.float32  # sums are never of 8 bits
        assert value.item() == pytest.approx(wanted[key].item(), rel=0.05)
    assert not torch.equal(rounded, gradients)  # it did compute with fewer
    if VARIANTS[name].full_precision:
        return  # which is why it is fp32 unless asked
    cosine = torch.nn.functional.cosine_similarity(rounded, gradients, dim=0)
    assert cosine > 0.95 and 0.8 < rounded.norm() / gradients.norm() < 1.25


def test_half_precision_does_not_lose_the_small_gradients(vae, train_set):
    """In float16 the Dice of a pixel would be 0 without a scale of its own."""
    batch = train_set.images.float() / 255, train_set.masks.float()
    level = torch.randn(4, 4, 4, 4)
    gradients = []
    for half in (None, torch.float16):
        one = level.clone().requires_grad_()
        with torch.autocast("cpu", dtype=half, enabled=half is not None):
            WaveGMSLoss()(None, [one], vae, *batch)["seg"].backward()
        gradients.append(one.grad)
    wanted, half = gradients
    assert half.dtype == torch.float32
    assert (half - wanted).norm() < 0.02 * wanted.norm()


def shortened(name, *arguments, **options):
    network = build_variant(name, *arguments, **options)
    shorten(network)
    return network


@pytest.fixture
def quick_compiler(monkeypatch):
    """torch.compile up to the point where C++ would be written, which takes minutes."""
    compiled, whole = [], torch.nn.Module.compile

    def compile(self):
        compiled.append(self)
        whole(self, backend="eager")

    monkeypatch.setattr(torch.nn.Module, "compile", compile)
    return compiled


@pytest.mark.parametrize(
    "change", [pytest.param({"precision": "bf16"}, marks=pytest.mark.slow), {"compile": True}]
)
def test_a_training_takes_it_and_learns_the_same(
    change, vae, train_set, training_params, tmp_path, quick_compiler, monkeypatch
):
    if "compile" in change:  # a compiler reads every operation: half a minute of the whole network
        monkeypatch.setattr(training, "build_variant", shortened)

    def run(name, **changes):
        settings = training_params(epochs=2, **changes)
        return train(make_run(tmp_path / name, train_set, train_set, settings, vae=vae))

    plain = run("plain")
    assert not quick_compiler and plain.precision == "fp32"
    changed = run("changed", **change)
    assert len(quick_compiler) == ("compile" in change)
    assert changed.precision == change.get("precision", "fp32")
    assert 0 < changed.data_share < 1
    tolerance = 1e-4 if "compile" in change else 0.05
    for column in ("loss", "seg", "lm", "align"):
        first, second = zip(changed.history[column], plain.history[column], strict=True)
        assert first[0] == pytest.approx(first[1], rel=tolerance)
        # rounding has led the steps of the first epoch elsewhere: 8 % were seen in bf16
        assert second[0] == pytest.approx(second[1], rel=4 * tolerance)


def test_a_variant_that_bf16_would_change_is_left_in_fp32_unless_asked(
    vae, train_set, training_params, tmp_path, monkeypatch
):
    asked = []
    monkeypatch.setattr(
        training_device, "choose_precision", lambda wanted, device: asked.append(wanted) or "fp32"
    )
    for variant, precision in (
        ("tinyvae_multires_sft", "auto"),
        ("tinyvae_multires_sft", "bf16"),
        ("tinyvae", "auto"),
    ):
        folder, settings = tmp_path / variant / precision, training_params(precision=precision)
        train(make_run(folder, train_set, train_set, settings, variant=variant, vae=vae))
    assert asked == ["fp32", "bf16", "auto"]


def test_a_network_can_be_exported_after_a_training(tmp_path):
    """torch.export reads torch's older switch of tf32, which refuses if the newer ones disagree."""
    computing_with("bf16", CPU)  # which, unlike fp32, changes what torch begins with
    as_pipeline(shortened("tinyvae"), build_vae("tiny"), 32).export_onnx(tmp_path / "model.onnx")
