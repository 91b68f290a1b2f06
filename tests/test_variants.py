"""Every variant: what it is made of, that it learns, and that it is kept as it was measured."""

import copy
import json
from pathlib import Path

import numpy as np
import pytest
import pywt
import torch
import yaml
from diffusers import AutoencoderKL
from gms_reference import published_levels, published_state
from runs import grey_vae, make_run

from wavegms import InputError, LatentMappingModel, WaveGMSPipeline, load_sd_vae
from wavegms.costs.measure import _SD_VAE
from wavegms.models.autoencoder import decode_masks, encode_images, encode_masks, freeze
from wavegms.models.build import as_pipeline, build_variant, require_autoencoder
from wavegms.models.encoder import MultiResolutionEncoder
from wavegms.models.guided import (
    GuidedLatentMappingModel,
    SelectiveKernelFusion,
    SpatialFeatureTransform,
)
from wavegms.run.check import check_inputs
from wavegms.training import recipe
from wavegms.training.loss import WaveGMSLoss, mask_loss, soft_dice
from wavegms.training.recipe import loss_terms, train
from wavegms.variants import VARIANTS

MAPPING, ENCODER = 1_564_976, 1_035_692


def guided_size():
    """From the description: eight transforms, one a block, and the fusion of three streams."""
    conv3x3 = lambda into, out: 9 * into * out + out  # noqa: E731
    transforms = sum(
        conv3x3(3, 128) + 2 * conv3x3(128, channels)
        for channels in (32, 64, 128, 128, 128, 64, 32, 32)
    )
    fusion = (3 * 1 + 1) + 1 + 3 * (1 * 3 + 3)  # squeeze, PReLU, expand
    return MAPPING + transforms + fusion


SIZES = {
    "wave_gms": ENCODER + MAPPING,
    "wave_gms_no_alignment": ENCODER + MAPPING,
    "wave_gms_batch_2": ENCODER + MAPPING,
    "wave_gms_batch_4": ENCODER + MAPPING,
    "tinyvae": MAPPING,
    "tinyvae_mismatch": MAPPING,
    "tinyvae_multires_sft": guided_size(),
    "gms": MAPPING,
    "unet": 14_007_118,
}
# The rivals; see test_rivals.py, test_attention_rivals.py and test_generative_rivals.py.
RIVALS = {
    "multiresunet": 7_251_322,
    "multiresunet_small": 448_660,
    "acc_unet": 16_771_245,
    "acc_unet_small": 891_654,
    "nnunet": 20_612_738,
    "nnunet_small": 29_634,
    "egeunet": 53_374,
    "egeunet_small": 9_450,
    "swin_unet": 27_168_132,
    "swin_unet_small": 439_160,
    "sme_swin_unet": 169_790_777,
    "sme_swin_unet_small": 2_672_983,
    "uctransnet": 66_430_657,
    "uctransnet_small": 1_065_497,
    "medsegdiff_v2": 129_400_450,
    "medsegdiff_v2_small": 468_382,
    "sdseg": 329_137_456,
    "sdseg_tiny": 295_009_628,  # both with the tests' own autoencoder
    "sdseg_small": 530_300,
    "gss": 49_892_194,
    "gss_small": 148_938,
}
# Those of windows of slices; see test_volumetric.py.
VOLUMETRIC = {"unet_3d": 4_807_262, "wave_gms_3d": 7_125_184}
SIZES |= RIVALS | VOLUMETRIC
# The others are the same networks at another batch size.
NETWORKS = [name for name in SIZES if "_batch_" not in name and name not in RIVALS | VOLUMETRIC]
ALIGNED = {"wave_gms", "wave_gms_3d", "wave_gms_batch_2", "wave_gms_batch_4"}


def build_kl(channels=8, latent_channels=4, levels=4, **options):
    return AutoencoderKL(
        block_out_channels=(channels,) * levels,
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        norm_num_groups=4,
        latent_channels=latent_channels,
        **options,
    )


@pytest.fixture
def vae_of():
    """The frozen autoencoder a variant needs: small and untrained, but decoding to mid grey."""

    def make(name):
        torch.manual_seed(0)
        kind = VARIANTS[name].autoencoder
        if kind == "tiny":
            return grey_vae()
        return freeze(build_kl()) if kind == "kl" else None

    return make


@pytest.fixture
def batch(train_set):
    return train_set.to_float(train_set.images), train_set.mask_to_float(train_set.masks)


@pytest.fixture
def checkpoint(tmp_path):
    path = tmp_path / "gms.pth"
    torch.save({"model": {key: v.float() for key, v in published_state().items()}}, path)
    return path


@pytest.fixture
def run(vae_of, train_set, validation_set, training_params, tmp_path, checkpoint):
    """One epoch; keywords change settings or arguments."""

    def start(name, vae=None, data=train_set, gms_checkpoint=checkpoint, **changes):
        sets, settings = (data, validation_set), training_params(**changes)
        names = {"variant": name, "vae": vae or vae_of(name), "checkpoints": tmp_path / name}
        names["gms_checkpoint"] = str(gms_checkpoint)
        return train(make_run(tmp_path, *sets, settings, **names))

    return start


def refused(call):
    with pytest.raises(InputError) as error:
        call()
    message = str(error.value)
    assert "\n" not in message
    return message


def test_the_table_is_complete():
    assert set(VARIANTS) == set(SIZES)
    titles = [spec.title for spec in VARIANTS.values()]
    assert len(set(titles)) == len(titles)
    assert {name for name, spec in VARIANTS.items() if spec.aligned} == ALIGNED


@pytest.mark.parametrize("name", SIZES)
def test_sizes(name, vae_of):
    vae = AutoencoderKL(**_SD_VAE).requires_grad_(False) if name == "sdseg" else vae_of(name)
    with torch.device("meta" if name in RIVALS else "cpu"):
        model = build_variant(name, vae=vae)
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == SIZES[name]
    frozen = sum(p.numel() for part in (model, vae) if part for p in part.parameters())
    pipe = as_pipeline(model, vae, 32)
    assert pipe.parameter_counts == (frozen, SIZES[name])
    trainable = [p for part in pipe.components.values() if part for p in part.parameters()]
    assert sum(p.numel() for p in trainable if p.requires_grad) == SIZES[name]


def test_the_guided_model_keeps_every_key_of_the_plain_one():
    plain, guided = LatentMappingModel().state_dict(), GuidedLatentMappingModel().state_dict()
    assert plain.keys() < guided.keys()
    assert all(plain[key].shape == guided[key].shape for key in plain)


@pytest.mark.parametrize("name", NETWORKS)
def test_one_step_lowers_the_loss_and_touches_nothing_frozen(name, vae_of, batch):
    vae, model = vae_of(name), build_variant(name).eval()
    before = copy.deepcopy(vae.state_dict()) if vae else {}
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    losses = []
    for _ in range(2):
        terms = loss_terms(VARIANTS[name], model, WaveGMSLoss(), vae, *batch)
        losses.append(terms["loss"].item())
        optimizer.zero_grad()
        terms["loss"].backward()
        optimizer.step()
    assert losses[1] < losses[0]
    for key, parameter in model.named_parameters():
        # softmax does not see the one, and positive averages do not see the other
        if not key.endswith(("key.bias", "fusion.squeeze.1.weight")):
            assert parameter.grad is not None and parameter.grad.abs().max() > 0, key
    if vae:
        assert all(parameter.grad is None for parameter in vae.parameters())
        assert all(torch.equal(before[key], value) for key, value in vae.state_dict().items())


@pytest.mark.parametrize("name", NETWORKS)
def test_terms_are_those_of_the_variant(name, vae_of, batch):
    terms = loss_terms(VARIANTS[name], build_variant(name), WaveGMSLoss(), vae_of(name), *batch)
    expected = {"loss", "seg"} if VARIANTS[name].autoencoder is None else {"loss", "seg", "lm"}
    assert terms.keys() == expected | ({"align"} if name in ALIGNED else set())
    total = sum(value for key, value in terms.items() if key != "loss")
    torch.testing.assert_close(terms["loss"], total)


def test_without_alignment_the_other_terms_stay(vae_of, batch):
    vae = vae_of("wave_gms")
    latents, levels = torch.randn(4, 4, 4, 4), list(torch.randn(4, 4, 4, 4, 4))
    aligned = WaveGMSLoss()(latents, levels, vae, *batch)
    plain = WaveGMSLoss()(None, levels, vae, *batch)
    assert plain["seg"] == aligned["seg"] and plain["lm"] == aligned["lm"]
    torch.testing.assert_close(plain["loss"] + aligned["align"], aligned["loss"])


def test_the_loss_of_a_mask_is_soft_dice():
    soft, masks = torch.rand(3, 1, 4, 4), (torch.rand(3, 1, 4, 4) > 0.5).float()
    assert mask_loss(soft, masks)["loss"] == 1 - soft_dice(soft, masks).mean()


@pytest.mark.parametrize("name", NETWORKS)
def test_trained_kept_and_opened_again(name, run, validation_set, vae_of, tmp_path):
    """Through the one loop and the one door; what is kept predicts what was measured."""
    result = run(name)
    columns = ["epoch", "selection_dice"]
    if VARIANTS[name].trained:
        losses = ["loss", "seg"] + ([] if VARIANTS[name].autoencoder is None else ["lm"])
        losses += ["align"] if name in ALIGNED else []
        columns = ["epoch", "learning_rate", *losses, "selection_dice"]
    assert list(result.history) == columns and len(result.history) == 1
    logged = json.loads((tmp_path / "live/metrics.json").read_text())
    assert logged["selection_dice"] == pytest.approx(result.best_dice)
    for kept in ("best", "last"):
        pipe = WaveGMSPipeline.from_pretrained(result.folder / kept)
        assert pipe.config.image_size == 32
        assert pipe.parameter_counts.trainable == SIZES[name]
        soft = pipe.predict(validation_set.images.float() / 255)
        assert soft.shape == (2, 1, 32, 32) and soft.min() >= 0 and soft.max() <= 1
        dice = soft_dice(soft, validation_set.masks.float()).mean().item()
        assert dice == pytest.approx(result.best_dice, abs=1e-4)
    kept = [path for name in ("best", "last") for path in (result.folder / name).rglob("*.*")]
    assert {path.suffix for path in kept} == {".json", ".safetensors"}
    parts = {path.name for path in (result.folder / "best").iterdir() if path.is_dir()}
    without_encoder = {"mapping", "vae"}
    assert parts == (
        {"network"}
        if VARIANTS[name].autoencoder is None
        else without_encoder | ({"encoder"} if name.startswith("wave_gms") else set())
    )
    if vae := vae_of(name):
        kept = pipe.vae.state_dict()
        assert all(torch.equal(kept[key], value) for key, value in vae.state_dict().items())


def test_any_image_goes_through_every_pipeline(vae_of):
    image = np.random.default_rng(0).integers(0, 256, (21, 50, 3), dtype=np.uint8)
    for name in ("tinyvae_multires_sft", "gms", "unet"):
        pipe = as_pipeline(build_variant(name), vae_of(name), 32)
        pipe.set_progress_bar_config(disable=True)
        assert pipe(image).masks[0].shape == (21, 50)


class Counting:
    """The loss, and the number of images of each batch."""

    def __init__(self):
        self.sizes = []

    def __call__(self, latents, levels, vae, images, masks, mask_decoder=None):
        self.sizes.append(len(images))
        return WaveGMSLoss()(latents, levels, vae, images, masks)


@pytest.mark.parametrize(
    ("name", "batch_size", "sizes"),
    [("wave_gms_batch_2", 4, [2, 2]), ("wave_gms_batch_4", 1, [4]), ("tinyvae", 4, [4])],
)
def test_a_variant_may_have_its_own_batch_size(run, name, batch_size, sizes, monkeypatch):
    loss = Counting()
    monkeypatch.setattr(recipe, "WaveGMSLoss", lambda **_: loss)
    run(name, batch_size=batch_size)
    assert loss.sizes == sizes


class Pretending:
    """A data set of which only these two are looked at."""

    def __init__(self, image_size=32, length=3):
        self.image_size, self.length = image_size, length

    def __len__(self):
        return self.length


def test_its_own_batch_size_may_be_too_large(run):
    message = refused(lambda: run("wave_gms_batch_4", data=Pretending(), batch_size=1))
    assert "is 4" in message and "3 images" in message and "wave_gms_batch_4" in message


def test_a_network_that_halves_four_times_needs_sides_divisible_by_16(run):
    message = refused(lambda: run("unet", data=Pretending(image_size=40), batch_size=1))
    assert "divisible by 16, not 40" in message


@pytest.mark.parametrize("name", SIZES)
def test_the_wrong_autoencoder_is_refused(name, vae_of):
    kinds = {"tiny": vae_of("tinyvae"), "kl": vae_of("gms"), None: None}
    needed = VARIANTS[name].autoencoder
    require_autoencoder(name, kinds[needed])
    fitting = {"tiny": ("tiny", "kl"), "kl": ("kl",), None: tuple(kinds)}[needed]
    for kind, vae in kinds.items():
        if kind not in fitting:
            message = refused(lambda vae=vae: require_autoencoder(name, vae))
            assert name in message
            assert {"tiny": "autoencoder.source", "kl": "autoencoder.sd_vae"}[needed] in message


def test_gms_without_its_autoencoder_is_refused_by_the_loop(run, vae_of):
    message = refused(lambda: run("gms", vae=vae_of("tinyvae")))
    assert "autoencoder.sd_vae" in message


# the model mismatch


def test_the_mismatch_is_gmss_network_on_the_other_latents(run, validation_set, vae_of):
    result = run("tinyvae_mismatch")
    assert result.best_epoch == 0 and result.history["epoch"].tolist() == [0]
    pipe = WaveGMSPipeline.from_pretrained(result.folder / "best")
    vae, images = vae_of("tinyvae_mismatch"), validation_set.images.float() / 255
    state = {key: value.float() for key, value in published_state().items()}
    with torch.no_grad():
        latents = vae.encode(images * 2 - 1).latents
        expected = decode_masks(vae, published_levels(state, latents)[-1])
    torch.testing.assert_close(pipe.predict(images), expected, rtol=0, atol=1e-3)


def test_the_mismatch_needs_no_recipe(run):
    assert run("tinyvae_mismatch", batch_size=100, warmup_epochs=50).best_epoch == 0


def test_the_mismatch_without_a_checkpoint_is_refused(run, tmp_path):
    message = refused(lambda: run("tinyvae_mismatch", gms_checkpoint=tmp_path / "no.pth"))
    assert "no.pth" in message and "model.gms_checkpoint" in message
    assert not (tmp_path / "tinyvae_mismatch").exists()


# spatial feature transform


def test_the_details_are_pywavelets_level_3_divided_by_8():
    model, seen = GuidedLatentMappingModel().double(), []
    model.fusion.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    images = torch.rand(2, 3, 32, 40, dtype=torch.float64)
    model(torch.zeros(2, 4, 4, 5, dtype=torch.float64), images)
    coefficients = pywt.wavedec2(images.numpy(), "haar", level=3, axes=(-2, -1))
    expected = torch.stack([torch.from_numpy(band) for band in coefficients[1]], dim=1) / 8
    assert seen[0].shape == (2, 3, 3, 4, 5)  # streams, then colours
    torch.testing.assert_close(seen[0], expected, rtol=0, atol=1e-12)


def test_the_fusion_is_its_formula():
    fusion = SelectiveKernelFusion().double()
    for parameter in fusion.parameters():
        torch.nn.init.normal_(parameter)
    streams = torch.randn(2, 3, 3, 4, 5, dtype=torch.float64)
    squeeze, prelu = fusion.squeeze
    pooled = streams.sum(1).mean((2, 3))
    hidden = pooled @ squeeze.weight[:, :, 0, 0].T + squeeze.bias
    hidden = torch.where(hidden > 0, hidden, hidden * prelu.weight)
    scores = torch.stack([hidden @ e.weight[:, :, 0, 0].T + e.bias for e in fusion.expand])
    weights = scores.exp() / scores.exp().sum(0)
    expected = sum(weights[k][:, :, None, None] * streams[:, k] for k in range(3))
    torch.testing.assert_close(fusion(streams), expected)
    same = streams[:, :1].expand(-1, 3, -1, -1, -1)
    torch.testing.assert_close(fusion(same), same[:, 0])  # the weights add up to 1


def test_the_transform_is_its_formula():
    transform = SpatialFeatureTransform(5).double()
    x, guide = torch.randn(2, 5, 4, 6).double(), torch.randn(2, 3, 4, 6).double()
    conv = torch.nn.functional.conv2d
    parts = (transform.shared[0], transform.gamma, transform.beta)
    first, gamma, beta = ((part.weight, part.bias) for part in parts)
    hidden = conv(guide, *first, padding=1)
    hidden = torch.where(hidden > 0, hidden, 0.2 * hidden)
    expected = x * conv(hidden, *gamma, padding=1) + conv(hidden, *beta, padding=1)
    torch.testing.assert_close(transform(x, guide), expected)


def test_a_block_is_residual_then_transform_then_attention():
    block = GuidedLatentMappingModel().double().encoder[1]
    x, guide = torch.randn(1, 32, 3, 4).double(), torch.randn(1, 3, 3, 4).double()
    expected = block.attention(block.transform(block.residual(x), guide))
    torch.testing.assert_close(block(x, guide), expected)


# GMS


@pytest.fixture
def kl():
    torch.manual_seed(0)
    return freeze(build_kl())


def test_latents_of_the_sd_vae_are_scaled(kl, batch):
    images, masks = batch
    mean = kl.encode(images * 2 - 1).latent_dist.mean
    torch.testing.assert_close(encode_images(kl, images), mean * 0.18215)
    mean = kl.encode(masks.repeat(1, 3, 1, 1) * 2 - 1).latent_dist.mean
    torch.testing.assert_close(encode_masks(kl, masks), mean * 0.18215)
    decoded = kl.decode(mean).sample
    expected = ((decoded.mean(1, keepdim=True) + 1) / 2).clamp(0, 1)
    torch.testing.assert_close(decode_masks(kl, mean * 0.18215), expected, rtol=0, atol=1e-4)
    assert expected.std() > 0.01


def test_a_posterior_sample_is_mean_and_standard_deviation(kl, batch):
    posterior = kl.encode(batch[0] * 2 - 1).latent_dist
    torch.manual_seed(3)
    noise = torch.randn(posterior.mean.shape)
    torch.manual_seed(3)
    sample = encode_images(kl, batch[0], sample_posterior=True)
    torch.testing.assert_close(sample, (posterior.mean + posterior.std * noise) * 0.18215)
    assert not torch.allclose(sample, posterior.mean * 0.18215)


def test_half_of_the_training_batches_take_a_sample(kl):
    model, images = build_variant("gms"), torch.rand(1, 3, 16, 16)
    mean = encode_images(kl, images)
    draws = 60
    with torch.no_grad():
        sampled = sum(not torch.equal(model.train()(images, kl)[0], mean) for _ in range(draws))
        assert all(torch.equal(model.eval()(images, kl)[0], mean) for _ in range(8))
    assert abs(sampled - draws / 2) < 4 * (draws / 4) ** 0.5


def test_a_tiny_vae_is_never_sampled(vae_of):
    model, vae, images = build_variant("tinyvae").train(), vae_of("tinyvae"), torch.rand(1, 3, 8, 8)
    with torch.no_grad():
        assert len({model(images, vae)[0].sum().item() for _ in range(8)}) == 1


def test_an_sd_vae_is_loaded_frozen(kl, tmp_path):
    kl.requires_grad_(True).save_pretrained(tmp_path / "vae")
    loaded = load_sd_vae(tmp_path / "vae")
    assert not loaded.training and not any(p.requires_grad for p in loaded.parameters())
    state = kl.state_dict()
    assert all(torch.equal(state[key], value) for key, value in loaded.state_dict().items())


def test_an_autoencoder_of_another_shape_is_refused(tmp_path):
    build_kl(levels=3).save_pretrained(tmp_path / "vae")
    message = refused(lambda: load_sd_vae(tmp_path / "vae"))
    assert "latents at 1/4" in message and "autoencoder.sd_vae" in message
    build_kl(latent_channels=16).save_pretrained(tmp_path / "vae")
    assert load_sd_vae(tmp_path / "vae").config.latent_channels == 16


@pytest.mark.parametrize("where", ["", "models/a/b", "/no/where", Path("a/b")])
def test_a_missing_sd_vae_is_refused(where, tmp_path, monkeypatch):
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    message = refused(lambda: load_sd_vae(where or tmp_path))
    assert str(where or tmp_path) in message


def test_a_tiny_vae_is_no_sd_vae(vae_of, tmp_path):
    vae_of("tinyvae").save_pretrained(tmp_path / "vae")
    assert str(tmp_path / "vae") in refused(lambda: load_sd_vae(tmp_path / "vae"))


# before anything runs


@pytest.fixture
def check(tmp_path):
    """The check of params.yaml as committed, with some values changed."""
    values = yaml.safe_load((Path(__file__).parents[1] / "params.yaml").read_text())

    def run(**changes):
        changed = copy.deepcopy(values)
        for key, value in changes.items():
            section, _, name = key.partition("__")
            if name:
                changed[section][name] = value
            else:
                changed[section] = value
        (tmp_path / "params.yaml").write_text(yaml.safe_dump(changed))
        check_inputs(tmp_path / "params.yaml", tmp_path, tmp_path / "checked.txt")

    return run


def test_what_a_variant_needs_is_checked_first(check, tmp_path):
    check(variants=["wave_gms", "gms", "unet"])
    assert "'wave_gsm' is unknown" in refused(lambda: check(variants=["wave_gsm"]))
    message = refused(lambda: check(variants=["gms"], autoencoder__sd_vae="models/sd/vae"))
    assert "autoencoder.sd_vae 'models/sd/vae'" in message
    check(variants=["tinyvae"], autoencoder__sd_vae="models/sd/vae")
    message = refused(lambda: check(variants=["wave_gms", "wave_gms_3d"]))
    assert message.startswith("phantom_a: variant wave_gms_3d takes windows of 8")
    volumes = {"datasets": ["phantom_v"], "phantom__datasets": ["phantom_v"]}
    alone = {"generalization": [], "ablation__datasets": []}
    check(variants=["wave_gms_3d", "unet_3d"], **volumes, **alone)
    message = refused(lambda: check(efficiency__variants=["wave_gms", "unet_3d"]))
    assert "names unet_3d" in message and "single images" in message
    assert "divisible by 16" in refused(lambda: check(variants=["unet"], image_size=72))
    checkpoints = str(tmp_path / "{dataset}.pth")
    missing = lambda: check(variants=["tinyvae_mismatch"], model__gms_checkpoint=checkpoints)  # noqa: E731
    assert "phantom_a.pth does not exist" in refused(missing)
    (tmp_path / "phantom_a.pth").touch()
    assert "phantom_b.pth does not exist" in refused(missing)
    (tmp_path / "phantom_b.pth").touch()
    missing()


def test_every_encoder_can_be_told_to_sample_at_inference():
    for name in NETWORKS:
        model = build_variant(name, sample_at_inference=True)
        if name.startswith("wave_gms"):
            assert isinstance(model.encoder, MultiResolutionEncoder)
            assert model.encoder.config.sample_at_inference
