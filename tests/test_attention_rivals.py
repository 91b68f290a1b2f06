"""Swin-Unet, SME-SwinUNet and UCTransNet: equal to the official networks, and fit for the loop."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from golden import differs_from_kept, fill, hashed, sine, waves
from runs import make_run
from skimage import segmentation
from torch.nn import functional

from wavegms import InputError, WaveGMSPipeline
from wavegms.costs.measure import count_gflop
from wavegms.models.build import as_pipeline, build_variant
from wavegms.models.rivals import sme_swin_unet
from wavegms.models.rivals.sme_swin_unet import SMESwinUNet, painted
from wavegms.models.rivals.swin_unet import SwinUNet
from wavegms.models.rivals.uctransnet import UCTransNet
from wavegms.training.kept import start_network
from wavegms.training.loss import mask_loss, soft_dice
from wavegms.training.recipe import train

SMALL = ["swin_unet_small", "sme_swin_unet_small", "uctransnet_small"]
OFFICIAL = {"swin_unet": SwinUNet, "sme_swin_unet": SMESwinUNet, "uctransnet": UCTransNet}


def sizes(*modules):
    return [sum(p.numel() for p in module.parameters()) for module in modules]


@pytest.fixture(scope="module")
def whole():
    with torch.device("meta"):
        return {name: network() for name, network in OFFICIAL.items()}


def test_the_parts_of_swin_unet_have_the_official_sizes(whole):
    swin = whole["swin_unet"]
    merged = [a + b for a, b in zip(sizes(*swin.encoder), [*sizes(*swin.merges), 0], strict=True)]
    assert merged == [299_190, 1_188_204, 4_735_704, 14_183_856]
    above = zip(sizes(*swin.decoder), [*sizes(*swin.expands)[1:], 0], strict=True)
    expected = [1_180_416, 3_848_280, 965_676, 224_694]
    assert [sizes(*swin.expands)[0], *(a + b for a, b in above)] == expected
    assert sizes(*swin.fuses) == [295_296, 73_920, 18_528]
    rest = sizes(swin.embed, swin.norm, swin.norm_up, swin.last_expand, swin.head)
    assert rest == [4_896, 1_536, 192, 147_648, 96]


def test_the_parts_of_sme_swin_unet_have_the_official_sizes(whole):
    sme = whole["sme_swin_unet"]
    transformer = sme.transformer
    embedded = [28_901_472, 28_901_568, 28_901_760, 28_902_144]
    assert sizes(*transformer.embeddings) == embedded
    assert sizes(*transformer.layers) == [6_701_040] * 4
    assert sizes(*transformer.reconstructions) == [2_448, 9_504, 37_440, 148_608]
    rest = sizes(transformer.norms, sme.superpixels, *sme.external)
    assert rest == [1_440, 1_344, 1_536, 3_072, 6_144]
    with torch.device("meta"):
        two = SMESwinUNet(logits=2)
    assert sizes(two, two.supplement) == [169_790_880, 12]
    idle = [p.numel() for name, p in two.named_parameters() if name.startswith(two.UNUSED)]
    assert sum(idle) == 32_940


def test_the_parts_of_uctransnet_have_the_official_sizes(whole):
    uct = whole["uctransnet"]
    units = sizes(uct.stem, *uct.downs)
    assert units == [1_920, 221_952, 886_272, 3_542_016, 4_721_664]
    transformer = uct.transformer
    embedded = [1_061_184, 1_073_792, 1_099_008, 1_149_440]
    assert sizes(*transformer.embeddings) == embedded
    assert sizes(*transformer.layers) == [11_909_440] * 4
    assert sizes(transformer.norms, *transformer.reconstructions, uct.head) == [
        *(1_920, 4_288, 16_768, 66_304, 263_680, 65)
    ]
    gates = [sum(sizes(up.of_skip, up.of_below)) for up in uct.ups]
    assert gates == [525_312, 131_584, 33_024, 8_320]
    assert sizes(*(up.units for up in uct.ups)) == [2_950_656, 738_048, 184_704, 110_976]
    with torch.device("meta"):
        assert sizes(UCTransNet(64)) == [66_257_857]


@pytest.mark.parametrize(
    ("name", "operations"),
    [
        ("swin_unet", 12_152_125_440 - 2 * 96 * 224**2),
        ("sme_swin_unet", 12_750_643_200 - 2 * 96 * 224**2),
        ("uctransnet", 77_155_221_504),
    ],
)
def test_operations_are_those_of_the_official_networks(name, operations):
    """The official Swin networks were counted with a second class in their last convolution."""
    assert 1e9 * count_gflop(name, "predict", "lean", 224) == pytest.approx(operations, rel=1e-12)


@pytest.mark.parametrize("name", SMALL)
def test_the_small_ones_give_what_they_gave_when_they_were_checked(name):
    """What was checked is the whole ones, on the golden outputs below: the same code, wider."""
    network = fill(build_variant(name, image_size=64).network.double().eval())
    with torch.no_grad():
        difference, spread = differs_from_kept(name, network(waves(64).double()))
    assert difference < 1e-6 < 1e-3 < spread


@pytest.fixture
def golden(real_data):
    def read(name):
        folder = Path(real_data) / "baselines"
        values = np.load(folder / f"{name}.npz")
        facts = json.loads((folder / f"{name}.json").read_text())
        return facts, {key: torch.from_numpy(values[key]) for key in values}

    return read


@pytest.mark.realdata
@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "logits"), [("swin_unet", 1), ("swin_unet", 2), ("sme_swin_unet", 1)]
)
def test_the_whole_swin_networks_give_what_the_official_ones_give(name, logits, golden):
    """In float32, as they were run: a tenth of the tolerance was measured."""
    facts, expected = golden(name)
    model = OFFICIAL[name](logits=logits).eval()
    key = "trainable_parameters" if logits == 2 else "trainable_parameters_classes_1"
    assert sizes(model) == [facts[key]]
    shapes = Counter(tuple(parameter.shape) for parameter in model.parameters())
    if logits == facts["classes"]:
        assert shapes == Counter(tuple(shape) for _, shape in facts["parameter_shapes"])
    for formula in (sine, hashed):
        fill(model, formula)
        with torch.no_grad():
            given = model(waves())
        key = f"{'sine' if formula is sine else 'hash'}_classes{logits}"
        close = {"rtol": 0, "atol": 5e-5}
        torch.testing.assert_close(functional.avg_pool2d(given, 8), expected[key], **close)
        corner = expected[f"{key}_corner"]
        torch.testing.assert_close(given[..., :8, :8], corner, **close)


def ranked(shape, leaf, rank, gain):
    """The formula of uctransnet.json; `rank` tells apart tensors of one shape."""
    n = int(np.prod(shape))
    if len(shape) == 1:
        k = np.arange(n) + rank
        waves = {
            "weight": 1 + 0.1 * np.sin(k),
            "bias": 0.1 * np.cos(k),
            "running_mean": 0.1 * np.sin(k),
            "running_var": 1 + 0.1 * np.cos(k) ** 2,
        }
        return torch.from_numpy(waves[leaf]).float()
    k, low = np.arange(n, dtype=np.uint64), np.uint64(2**32 - 1)
    mixed = k * k * np.uint64(2654435761) + k * np.uint64(40503)
    mixed = (mixed + np.uint64(n * 97 + 12345 + rank * 7919)) & low
    for shift, factor in ((15, 0x2C1B3C6D), (12, 0x297A2D39)):
        mixed = ((mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)) & low
    mixed ^= mixed >> np.uint64(15)
    values = gain * (2 * mixed / 2**32 - 1) * np.sqrt(6 * shape[0] / n)
    return torch.from_numpy(values.reshape(shape)).float()


@pytest.mark.realdata
@pytest.mark.slow
@pytest.mark.parametrize("ordered", [False, True])
def test_the_whole_uctransnet_gives_what_the_official_one_gives(ordered, golden):
    """Ordered, the weights of equal shapes differ, so that exchanged ones would be seen."""
    facts, expected = golden("uctransnet")
    model = UCTransNet().eval()
    for tensors in (model.named_parameters(), model.named_buffers()):
        seen = Counter()
        for name, tensor in tensors:
            if tensor.is_floating_point():
                shape, leaf = tuple(tensor.shape), name.rpartition(".")[2]
                key = (shape, leaf if len(shape) == 1 else "")
                rank = seen[key] if ordered else 0
                tensor.data.copy_(ranked(shape, leaf, rank, facts["gain"]))
                seen[key] += 1
    with torch.no_grad():
        logits = model(waves())
    for key, values, tolerance in (("logit", logits, 3e-4), ("out", logits.sigmoid(), 3e-5)):
        key, close = f"{'ordered_' * ordered}{key}", {"rtol": 0, "atol": tolerance}
        pooled = functional.avg_pool2d(values, 8)
        torch.testing.assert_close(pooled, expected[f"{key}_pool28"], **close)
        torch.testing.assert_close(values[..., 8::16, 8::16], expected[f"{key}_grid14"], **close)


@pytest.mark.realdata
def test_superpixels_are_those_of_the_official_network(golden):
    _, expected = golden("sme_swin_unet")
    boundaries = segmentation.find_boundaries(
        expected["superpixel_labels_u8"].numpy(), mode="outer"
    )
    image = waves()[0].permute(1, 2, 0).numpy()
    assert np.array_equal(sme_swin_unet.superpixel_boundaries(image), boundaries)


# in the loop


@pytest.fixture
def batch_of():
    """Two images of a side and their masks, a rectangle in each."""

    def make(side):
        torch.manual_seed(1)
        masks, unit = torch.zeros(2, 1, side, side), side // 32
        masks[0, :, 4 * unit : 20 * unit, 8 * unit : 24 * unit] = 1
        masks[1, :, 10 * unit : 30 * unit, 2 * unit : 15 * unit] = 1
        return 0.2 * torch.rand(2, 3, side, side) + 0.6 * masks, masks

    return make


@pytest.mark.parametrize("name", SMALL)
def test_every_weight_takes_part(name, batch_of):
    """At 64 pixels no map is smaller than two, so that every position matters."""
    model = build_variant(name, image_size=64).train()
    mask_loss(model(batch_of(64)[0]), batch_of(64)[1])["loss"].backward()
    unused = getattr(model.network, "UNUSED", ("none",))
    for key, parameter in model.network.named_parameters():
        idle = parameter.grad is None or not parameter.grad.any()
        assert idle == key.startswith(unused), key


@pytest.mark.parametrize(
    ("name", "rate"),
    [
        (SMALL[0], 3e-3),
        pytest.param(SMALL[1], 3e-3, marks=pytest.mark.slow),
        pytest.param(SMALL[2], 1e-2, marks=pytest.mark.slow),
    ],
)
def test_a_batch_is_learnt_by_heart(name, rate, batch_of):
    """By cross-entropy: SME-SwinUNet, whose skips carry little, needs 100 steps by soft Dice."""
    (images, masks), model = batch_of(32), build_variant(name, image_size=32).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate)
    for _ in range(40 if name == SMALL[0] else 60):
        predicted = model(images)
        optimizer.zero_grad()
        functional.binary_cross_entropy(predicted, masks).backward()
        optimizer.step()
    assert soft_dice(predicted, masks).min() > 0.8


@pytest.fixture
def run(train_set, validation_set, training_params, tmp_path):
    def start(name, data=train_set, **changes):
        names = {"variant": name, "checkpoints": tmp_path / name}
        return train(make_run(tmp_path, data, validation_set, training_params(), **names | changes))

    return start


def refused(call):
    with pytest.raises(InputError) as error:
        call()
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("name", SMALL)
def test_trained_at_its_size_kept_and_opened_again(name, run, validation_set):
    result = run(name)
    pipe = WaveGMSPipeline.from_pretrained(result.folder / "best")
    assert dict(pipe.network.config)["image_size"] == pipe.config.image_size == 32
    with torch.device("meta"):
        assert sizes(pipe.network) == sizes(build_variant(name, image_size=32))
    soft = pipe.predict(validation_set.images.float() / 255)
    dice = soft_dice(soft, validation_set.masks.float()).mean().item()
    assert dice == pytest.approx(result.best_dice, abs=1e-4)
    pipe.set_progress_bar_config(disable=True)
    image = np.random.default_rng(0).integers(0, 256, (21, 50, 3), dtype=np.uint8)
    assert pipe(image).masks[0].shape == (21, 50)
    message = refused(lambda: pipe.predict(torch.rand(1, 3, 64, 64)))
    assert "32x32 pixels, not for 64x64" in message


def test_a_start_of_another_size_is_refused(run, tmp_path):
    as_pipeline(build_variant(SMALL[0], image_size=64), None, 64).save_pretrained(tmp_path / "old")
    start = start_network(str(tmp_path / "old"), SMALL[0], None)
    message = refused(lambda: run(SMALL[0], start=start))
    assert "64 pixels" in message and "32" in message and "training.start_from" in message


@pytest.mark.parametrize("name", SMALL[:2])
def test_sides_that_it_refuses(name, run):
    class Pretending:
        image_size = 48

        def __len__(self):
            return 9

    message = refused(lambda: run(name, data=Pretending()))
    assert "divisible by 32, not 48" in message


@pytest.mark.slow
@pytest.mark.parametrize("name", [SMALL[0], SMALL[2]])
def test_the_onnx_file_gives_what_the_pipeline_gives(name, tmp_path):
    """With one of the four layers of the channel transformer, which are alike."""
    model = build_variant(name, image_size=32)
    if name == SMALL[2]:
        model.network.transformer.layers = model.network.transformer.layers[:1]
    exported = as_pipeline(model, None, 32).export_onnx(tmp_path / "model.onnx")
    assert exported.max_difference < 1e-4


def test_superpixels_go_into_no_onnx_file(tmp_path):
    pipe = as_pipeline(build_variant(SMALL[1], image_size=32), None, 32)
    message = refused(lambda: pipe.export_onnx(tmp_path / "model.onnx"))
    assert "sme_swin_unet_small" in message and not list(tmp_path.iterdir())


# superpixels


def test_boundaries_are_painted_as_scikit_image_paints_them():
    images = functional.interpolate(torch.rand(2, 3, 8, 8), size=(48, 40), mode="bilinear")
    for image, ours in zip(images, painted(images), strict=True):
        picture = image.permute(1, 2, 0).numpy()
        labels = segmentation.slic(picture, n_segments=100, compactness=10)
        expected = segmentation.mark_boundaries(picture, labels)
        np.testing.assert_allclose(ours.permute(1, 2, 0), expected, rtol=0, atol=1e-6)


def test_superpixels_of_an_image_are_made_once(monkeypatch):
    made = Counter()

    def count(image, **options):
        made[image.tobytes()] += 1
        return slic(image, **options)

    slic = segmentation.slic
    monkeypatch.setattr(segmentation, "slic", count)
    monkeypatch.setattr(sme_swin_unet, "_MOST_KEPT", 3)
    sme_swin_unet._kept.clear()
    images = torch.rand(4, 3, 16, 16)
    first = painted(images[:3])
    assert torch.equal(painted(images[:3].flip(0)).flip(0), first) and len(made) == 3
    painted(images[3:])  # the one longest out of use goes, which is the last of the three
    assert torch.equal(painted(images[:2]), first[:2]) and set(made.values()) == {1}
    assert torch.equal(painted(images[2:3]), first[2:]) and max(made.values()) == 2
    sme_swin_unet._kept.clear()
