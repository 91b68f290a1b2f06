"""The door for users: what goes in, what comes out, and what lies on the disk in between."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load_file, save_file
from torch.nn.functional import interpolate

from wavegms import InputError, LatentMappingModel, MultiResolutionEncoder, WaveGMSPipeline
from wavegms.images import as_rgb, resize_image
from wavegms.models.autoencoder import channels_last
from wavegms.models.mask_network import MaskNetwork
from wavegms.predict.inputs import Request

# Batches are summed in another order than single images, and untrained networks amplify that.
CLOSE = {"rtol": 0, "atol": 2e-3}


def probability(pipe, image, **options):
    (result,) = pipe(image, **options).probabilities
    return result


def assert_same(first, second, **tolerance):
    first, second = np.asarray(first), np.asarray(second)
    assert first.shape == second.shape
    np.testing.assert_allclose(first, second, **tolerance or {"rtol": 0, "atol": 2e-5})
    assert first.size == 1 or np.ptp(first) > 0.01, "a constant shows nothing"


@pytest.fixture(scope="module")
def grey():
    """uint8, wider than high, neither side a multiple of 8."""
    y, x = np.mgrid[:37, :50]
    wave = 127 + 60 * np.sin(x / 4) + 60 * np.cos(y / 5 + x / 20)
    return wave.clip(0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def rgb(grey):
    return np.stack([grey, grey[::-1], 255 - grey], axis=-1)


def test_a_raw_image_is_predicted_as_if_prepared_by_hand(pipeline, rgb):
    image = Image.fromarray(rgb)
    small = np.asarray(resize_image(as_rgb(image), 32))
    tensor = torch.from_numpy(small.transpose(2, 0, 1).copy())[None] / 255
    soft = pipeline.predict(tensor)
    expected = interpolate(soft, (37, 50), mode="bilinear", antialias=True)[0, 0].numpy()
    for kind in (image, rgb, torch.from_numpy(rgb.transpose(2, 0, 1).copy())):
        assert_same(probability(pipeline, kind), expected)


def test_the_prediction_is_the_parts_one_after_the_other(pipeline, train_set):
    # in the pipeline's order of memory: an untrained network makes much of other rounding
    images = channels_last(train_set.images.float() / 255)
    with torch.no_grad():
        latents, _ = pipeline.encoder.distribution(images)
        decoded = pipeline.vae.decode(pipeline.mapping(latents)[-1]).sample
    expected = ((decoded.mean(1, keepdim=True) + 1) / 2).clamp(0, 1)
    result = pipeline.predict(images)
    assert result.shape == (4, 1, 32, 32) and result.dtype == torch.float32
    torch.testing.assert_close(result, expected, rtol=0, atol=1e-4)
    assert not result.requires_grad


def test_an_image_of_the_run_is_not_resampled(pipeline, train_set):
    image = train_set.images[0]
    expected = pipeline.predict(image[None].float() / 255)[0, 0].numpy()
    for kind in (image, image.float() / 255, image.permute(1, 2, 0).numpy()):
        assert_same(probability(pipeline, kind), expected)


def as_mode(mode, grey, rgb):
    """An image of that mode, and the RGB picture that it shows."""
    if mode == "I;16":
        return Image.fromarray(grey.astype(np.uint16) * 257), Image.fromarray(grey).convert("RGB")
    if mode == "1":
        bits = grey > 127
        return Image.fromarray(bits), Image.fromarray(bits.astype(np.uint8) * 255).convert("RGB")
    if mode == "L":
        return Image.fromarray(grey), Image.fromarray(np.stack([grey] * 3, -1))
    if mode == "LA":
        image = Image.fromarray(grey).convert("LA")
        image.putalpha(Image.fromarray(grey.T.copy()).resize(image.size))
        return image, Image.fromarray(grey).convert("RGB")
    if mode == "P":
        image = Image.fromarray(grey // 86)  # indices 0, 1, 2
        palette = np.array([[10, 200, 30], [250, 0, 90], [0, 60, 255]], np.uint8)
        image.putpalette(palette.flatten().tolist())
        return image, Image.fromarray(palette[grey // 86])
    if mode == "RGBA":
        alpha = np.concatenate([rgb, grey[..., None]], -1)
        return Image.fromarray(alpha), Image.fromarray(rgb)
    if mode == "CMYK":
        # without black, cyan, magenta and yellow are what is missing of red, green and blue
        ink = np.concatenate([255 - rgb, np.zeros_like(grey)[..., None]], -1)
        return Image.frombytes("CMYK", (50, 37), ink.tobytes()), Image.fromarray(rgb)
    return Image.fromarray(rgb), Image.fromarray(rgb)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "I;16", "CMYK"])
def test_every_mode_is_the_picture_it_shows(pipeline, grey, rgb, mode):
    image, shown = as_mode(mode, grey, rgb)
    assert image.mode == mode and shown.mode == "RGB"
    out = pipeline(image)
    assert_same(out.probabilities[0], probability(pipeline, shown))
    assert out.masks[0].shape == out.probabilities[0].shape == (37, 50)


@pytest.mark.parametrize("mode", ["F", "I"])
def test_modes_without_a_range_are_refused(pipeline, grey, mode):
    with pytest.raises(InputError, match=f"mode {mode}"):
        pipeline(Image.fromarray(grey).convert(mode))


@given(st.integers(1, 70), st.integers(1, 70), st.booleans())
@settings(max_examples=12)
def test_masks_have_the_size_of_their_image(pipeline, height, width, as_float):
    pixels = np.random.default_rng(0).random((height, width, 3), dtype=np.float32)
    out = pipeline(pixels if as_float else Image.fromarray((pixels * 255).astype(np.uint8)))
    assert isinstance(out.masks, list) and isinstance(out.probabilities, list)
    (mask,), (soft,) = out.masks, out.probabilities
    assert mask.shape == soft.shape == (height, width)
    assert mask.dtype == bool and soft.dtype == np.float32
    assert soft.min() >= 0 and soft.max() <= 1
    assert np.array_equal(mask, soft >= 0.5)


@pytest.mark.parametrize("size", [(1, 1), (1, 90), (90, 1), (300, 7)])
def test_extreme_sizes(pipeline, size):
    for image in (Image.new("RGB", size, (200, 30, 90)), np.full(size[::-1], 0.4)):
        out = pipeline(image)
        assert out.masks[0].shape == out.probabilities[0].shape == size[::-1]
        assert np.isfinite(out.probabilities[0]).all()


def test_arrays_of_every_kind_are_the_same_picture(pipeline, train_set):
    image = train_set.images[1].permute(1, 2, 0).numpy()  # grey, as RGB, at the run's size
    plain = image[..., 0]
    assert (image == plain[..., None]).all()
    expected = probability(pipeline, image)
    alpha = np.concatenate([image, image[..., :1] // 2], -1)
    sixteen = image.astype(np.uint16) * 257
    kinds = [
        plain,
        plain[..., None],
        alpha,
        plain.astype(np.uint16) * 257,
        sixteen,
        sixteen[..., :1],
        image / 255,
        (image / 255).astype(np.float32),
        plain / 255,
        plain[..., None] / 255,
        alpha / 255,
        np.asfortranarray(image),
        image[::-1].copy()[::-1],
    ]
    for kind in kinds:
        assert_same(probability(pipeline, kind), expected, rtol=0, atol=1e-4)
    assert_same(probability(pipeline, (image / 255).astype(np.float16)), expected, atol=0.1)


def test_tensors_of_every_kind_are_the_same_picture(pipeline, train_set):
    image = train_set.images[1]
    expected = probability(pipeline, image)
    for kind in (image[:1], image / 255, (image / 255).double(), (image[:1] / 255)):
        assert_same(probability(pipeline, kind), expected, rtol=0, atol=1e-4)
    for dtype in (torch.float16, torch.bfloat16):
        rounded = (image / 255).to(dtype)
        assert_same(probability(pipeline, rounded), probability(pipeline, rounded.float()))
    assert_same(probability(pipeline, (image / 255).requires_grad_()), expected, atol=1e-4)


def test_floats_are_resized_as_pillow_does(pipeline):
    """With antialiasing: a finer pattern is grey to the network, not speckle."""
    pixels = np.random.default_rng(0).integers(0, 256, (120, 200, 3), dtype=np.uint8)
    seen = []
    hook = pipeline.encoder.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    try:
        pipeline([pixels / 255], batch_size=1)
    finally:
        hook.remove()
    small = Image.fromarray(pixels).resize((32, 32), Image.Resampling.BILINEAR)
    expected = torch.from_numpy(np.array(small)).permute(2, 0, 1)[None] / 255
    torch.testing.assert_close(seen[0], expected, rtol=0, atol=1.5 / 255)
    assert expected.std() > 5 / 255


def test_lists_may_mix_kinds_and_sizes(pipeline, grey, rgb):
    images = [
        Image.fromarray(rgb),
        grey,
        torch.from_numpy(rgb[:20, :9] / 255).permute(2, 0, 1),
        rgb / 255,
        Image.fromarray(grey[:5]),
    ]
    sizes = [(37, 50), (37, 50), (20, 9), (37, 50), (5, 50)]
    for batch in (images, tuple(images)):
        out = pipeline(batch, batch_size=2)
        assert [mask.shape for mask in out.masks] == sizes
        for image, soft, mask in zip(images, out.probabilities, out.masks, strict=True):
            assert_same(soft, probability(pipeline, image), **CLOSE)
            assert np.array_equal(mask, soft >= 0.5)


def test_batches_are_their_images(pipeline, rgb, grey):
    colours = np.stack([rgb, rgb[:, ::-1]])
    for batch, images in (
        (colours, list(colours)),
        (colours / 255, list(colours / 255)),
        (np.stack([grey, 255 - grey]), [grey, 255 - grey]),
        (torch.from_numpy(colours).permute(0, 3, 1, 2), list(colours)),
        (torch.from_numpy(colours / 255).permute(0, 3, 1, 2), list(colours / 255)),
        (torch.from_numpy(grey)[None, None], [grey]),
    ):
        out = pipeline(batch)
        assert len(out.masks) == len(out.probabilities) == len(images)
        for soft, image in zip(out.probabilities, images, strict=True):
            assert_same(soft, probability(pipeline, image), **CLOSE)


@pytest.mark.parametrize("batch_size", [1, 2, 3, 5, 100])
def test_the_batch_size_does_not_change_the_result(pipeline, train_set, batch_size):
    images = [*train_set.images, train_set.images[0][:, 13:]]
    for soft, alone in zip(
        pipeline(images, batch_size=batch_size).probabilities,
        (probability(pipeline, image) for image in images),
        strict=True,
    ):
        assert_same(soft, alone, **CLOSE)


WRONG_OPTIONS = [
    *[("batch_size", value) for value in (0, -1, 2.5, 2.0, "4", True, None, np.nan)],
    *[("threshold", value) for value in (50, 1.01, 0, -0.5, "0.5", True, None, np.nan, np.inf)],
    *[("generator", value) for value in (5, "cpu", np.random.default_rng(0))],
]


@pytest.mark.parametrize(("name", "value"), WRONG_OPTIONS)
def test_an_impossible_option_is_refused_by_name(pipeline, grey, name, value, tmp_path):
    with pytest.raises(InputError, match=f"^{name} must be "):
        pipeline(grey, **{name: value})
    if name != "generator":
        save = tmp_path / "a.png"
        Image.fromarray(grey).save(save)
        with pytest.raises(InputError, match=f"^{name} must be "):
            Request(save, pipeline, tmp_path / "out", **{name: value})


@pytest.mark.parametrize("kind", [int, np.int64, np.uint8])
def test_numbers_of_numpy_are_numbers(pipeline, grey, kind):
    expected = pipeline(grey, threshold=0.25).masks[0]
    given = pipeline(grey, batch_size=kind(3), threshold=np.float32(0.25)).masks[0]
    assert np.array_equal(given, expected)
    assert pipeline(grey, threshold=kind(1)).masks[0].sum() <= expected.sum()


@pytest.mark.parametrize("channels", [2, 5])
@pytest.mark.parametrize("several", [False, True])
def test_arrays_of_other_channels_are_no_rows_of_images(pipeline, rgb, channels, several):
    image = np.concatenate([rgb, rgb], -1)[..., :channels]
    with pytest.raises(InputError, match=rf"image array must be|{channels}\) is no image.*:3\]"):
        pipeline(np.stack([image, image]) if several else image)
    grey = pipeline(image[..., 0]).masks
    assert len(grey) == 1 and grey[0].shape == rgb.shape[:2]


@pytest.mark.parametrize("channels", [3, 4])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_channels_in_front_are_not_taken_for_images(pipeline, rgb, channels, dtype):
    """Of an array, which may be either; both ways out give what they say."""
    image = np.concatenate([rgb, np.full_like(rgb[..., :1], 255)], -1)[..., :channels]
    image = (image / 255).astype(dtype) if dtype == np.float32 else image.astype(dtype)
    front = image.transpose(2, 0, 1)
    with pytest.raises(InputError, match=r"channels in front or . grey ones: give array\.transp"):
        pipeline(front)
    assert_same(probability(pipeline, front.transpose(1, 2, 0)), probability(pipeline, image))
    assert len(pipeline(list(front)).masks) == channels
    with pytest.raises(InputError, match=r"\(H, W\[, 1, 3 or 4\]\)"):
        pipeline(front[None].repeat(2, 0))


def test_stacks_of_grey_are_images(pipeline, grey):
    for count in (1, 2, 5):
        assert len(pipeline(np.stack([grey] * count)).masks) == count


def test_nothing_in_nothing_out(pipeline):
    out = pipeline([])
    assert out.masks == out.probabilities == []


@pytest.mark.parametrize("threshold", [0.1, 0.5, 0.9])
def test_the_threshold_belongs_to_the_mask(pipeline, grey, threshold):
    out = pipeline(grey, threshold=threshold)
    assert np.array_equal(out.masks[0], out.probabilities[0] >= threshold)
    value = float(out.probabilities[0][3, 4])
    assert pipeline(grey, threshold=value).masks[0][3, 4]


def with_value(value, shape=(8, 9), dtype=np.float64):
    image = np.full(shape, 0.5, dtype)
    image[2, 3] = value
    return image


@pytest.mark.parametrize(
    ("image", "words"),
    [
        (with_value(1.01), r"\[0, 1\]"),
        (with_value(-0.01), r"\[0, 1\]"),
        (with_value(255.0, (8, 9, 3)), r"\[0, 1\]"),
        (with_value(np.nan), r"\[0, 1\]"),
        (with_value(np.inf), r"\[0, 1\]"),
        (torch.from_numpy(with_value(2.0))[None], r"\[0, 1\]"),
        (torch.from_numpy(with_value(np.nan))[None], r"\[0, 1\]"),
        (np.zeros((8, 9), bool), "bool"),
        (np.zeros((8, 9), np.int64), "int64"),
        (np.zeros((8, 9), np.int16), "int16"),
        (torch.zeros(3, 8, 9, dtype=torch.int64), "int64"),
        (torch.zeros(8, 9), r"\(8, 9\)"),
        (torch.zeros(4, 8, 9), r"\(4, 8, 9\)"),
        (torch.zeros(2, 4, 8, 9), r"\(4, 8, 9\)"),
        (torch.zeros(1, 1, 3, 8, 9), r"\(1, 1, 3, 8, 9\)"),
        ([np.zeros((8, 9, 2))], r"\(8, 9, 2\)"),
        ([np.zeros((8, 9, 5), np.uint8)], r"\(8, 9, 5\)"),
        ([np.zeros((2, 8, 9, 3))], r"\(2, 8, 9, 3\)"),
        (np.zeros((0, 9)), r"\(0, 9\)"),
        (np.zeros((8, 0, 3), np.uint8), r"\(8, 0, 3\)"),
        (torch.zeros(3, 0, 9), "pixels"),
        (Image.new("RGB", (0, 4)), r"\(0, 4\)"),
        (["image.png"], "name 'image.png': open it by PIL"),
        ("image.png", "name 'image.png': open it by PIL"),
        (Path("image.png"), "name .*image.png.*: open it by PIL"),
        (b"image.png", "bytes|int"),
        ({"image": 1}, "dict"),
        (None, "NoneType"),
        (5, "int"),
        (np.array(0.5), "single number"),
        ([None], "NoneType"),
    ],
)
def test_what_is_no_image_is_refused(pipeline, image, words):
    with pytest.raises(InputError, match=words) as error:
        pipeline(image)
    assert "\n" not in str(error.value)


def test_one_bad_image_in_a_list_is_refused(pipeline, grey):
    with pytest.raises(InputError, match=r"\[0, 1\]"):
        pipeline([grey, with_value(7.0)])


def test_prediction_is_repeatable_and_in_evaluation_mode(pipeline, grey):
    networks = (pipeline.encoder, pipeline.mapping, pipeline.vae)
    assert not any(part.training for network in networks for part in network.modules())
    torch.manual_seed(1)
    first = probability(pipeline, grey)
    torch.manual_seed(2)
    assert np.array_equal(first, probability(pipeline, grey))


def test_building_switches_to_evaluation_mode(small_vae):
    parts = MultiResolutionEncoder().train(), LatentMappingModel().train(), small_vae.train()
    WaveGMSPipeline(*parts, image_size=32)
    assert not any(part.training for part in parts)


@pytest.fixture
def sampling(pipeline):
    parts = MultiResolutionEncoder(sample_at_inference=True), LatentMappingModel(), pipeline.vae
    pipe = WaveGMSPipeline(*parts, image_size=32)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_an_encoder_that_samples_obeys_the_generator(sampling, grey, tmp_path):
    def sample(pipe, seed):
        return probability(pipe, grey, generator=torch.Generator().manual_seed(seed))

    assert np.array_equal(sample(sampling, 1), sample(sampling, 1))
    assert not np.array_equal(sample(sampling, 1), sample(sampling, 2))
    assert not np.array_equal(probability(sampling, grey), probability(sampling, grey))
    sampling.save_pretrained(tmp_path)
    loaded = WaveGMSPipeline.from_pretrained(tmp_path)
    assert_same(sample(loaded, 1), sample(sampling, 1))


@pytest.fixture(scope="module")
def saved(pipeline, tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    pipeline.save_pretrained(folder)
    return folder


def test_saving_and_loading_change_nothing(pipeline, saved, rgb, grey):
    loaded = WaveGMSPipeline.from_pretrained(saved)
    assert loaded.config.image_size == 32
    for name in ("encoder", "mapping", "vae"):
        before, after = (getattr(pipe, name).state_dict() for pipe in (pipeline, loaded))
        assert before.keys() == after.keys()
        assert all(torch.equal(before[key], after[key]) for key in before)
    before, after = pipeline([rgb, grey]), loaded([rgb, grey])
    for first, second in zip(before.probabilities, after.probabilities, strict=True):
        assert_same(first, second)


def test_only_safetensors_and_json_are_written(saved):
    files = sorted(
        path.relative_to(saved).as_posix() for path in saved.rglob("*") if path.is_file()
    )
    assert files == [
        "encoder/config.json",
        "encoder/diffusion_pytorch_model.safetensors",
        "mapping/config.json",
        "mapping/diffusion_pytorch_model.safetensors",
        "model_index.json",
        "vae/config.json",
        "vae/diffusion_pytorch_model.safetensors",
    ]
    for path in saved.rglob("*.json"):
        json.loads(path.read_text())
    weights = load_file(saved / "encoder" / "diffusion_pytorch_model.safetensors")
    assert sum(value.numel() for value in weights.values()) == 1_035_692
    weights = load_file(saved / "mapping" / "diffusion_pytorch_model.safetensors")
    assert sum(value.numel() for value in weights.values()) == 1_564_976


def test_a_fresh_process_predicts_the_same_from_the_folder_alone(pipeline, saved, rgb, tmp_path):
    np.save(tmp_path / "image.npy", rgb)
    script = (
        "import sys, numpy as np\n"
        "from wavegms import WaveGMSPipeline\n"
        "pipe = WaveGMSPipeline.from_pretrained(sys.argv[1])\n"
        "out = pipe(np.load('image.npy'))\n"
        "np.savez('out.npz', mask=out.masks[0], soft=out.probabilities[0])\n"
    )
    subprocess.run(
        [sys.executable, "-c", script, str(saved)],
        cwd=tmp_path,
        env=os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
        check=True,
        capture_output=True,
    )
    out = np.load(tmp_path / "out.npz")
    expected = pipeline(rgb)
    assert_same(out["soft"], expected.probabilities[0], rtol=0, atol=1e-4)
    assert np.array_equal(out["mask"], out["soft"] >= 0.5)


def test_the_vae_is_frozen_and_the_rest_counted(pipeline, saved):
    frozen = sum(parameter.numel() for parameter in pipeline.vae.parameters())
    for pipe in (pipeline, WaveGMSPipeline.from_pretrained(saved)):
        assert pipe.parameter_counts == (2_600_668 + frozen, 2_600_668)
        assert not any(parameter.requires_grad for parameter in pipe.vae.parameters())


@pytest.mark.parametrize(
    "parts", [(), ("encoder",), ("encoder", "mapping"), ("vae",), ("mapping", "vae", "network")]
)
def test_parts_that_make_no_pipeline_are_refused(pipeline, parts):
    available = {**pipeline.components, "network": MaskNetwork("unet")}
    with pytest.raises(ValueError, match="a pipeline"):
        WaveGMSPipeline(**{name: available[name] for name in parts})


def refused(where):
    with pytest.raises(InputError) as error:
        WaveGMSPipeline.from_pretrained(where)
    message = str(error.value)
    assert "\n" not in message
    return message


@pytest.fixture
def broken(saved, tmp_path):
    """A copy of the saved folder, to be damaged."""
    shutil.copytree(saved, tmp_path / "broken")
    return tmp_path / "broken"


def rewrite(path, change):
    state = load_file(path)
    change(state)
    save_file(state, path)


WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.mark.parametrize("part", ["encoder", "mapping", "vae"])
def test_a_missing_weight_is_refused_by_name(broken, part):
    key = sorted(load_file(broken / part / WEIGHTS))[3]
    rewrite(broken / part / WEIGHTS, lambda state: state.pop(key))
    message = refused(broken)
    assert str(broken / part) in message and f"{key} is missing" in message


def test_an_unknown_weight_is_refused_by_name(broken):
    rewrite(broken / "mapping" / WEIGHTS, lambda state: state.update(extra=torch.zeros(1)))
    assert "extra is unknown" in refused(broken)


def test_a_weight_of_another_shape_is_refused_by_name(broken):
    wrong = {"conv_in.bias": torch.zeros(5)}
    rewrite(broken / "mapping" / WEIGHTS, lambda state: state.update(wrong))
    assert "conv_in.bias has shape [5], not [32]" in refused(broken)


@pytest.mark.parametrize("keep", [0, 4, 1000, -1])
def test_a_truncated_file_is_refused_by_name(broken, keep):
    path = broken / "encoder" / WEIGHTS
    path.write_bytes(path.read_bytes()[:keep])
    assert str(path) in refused(broken)


@pytest.mark.parametrize(
    "name", ["model_index.json", "mapping/config.json", f"vae/{WEIGHTS}", "encoder"]
)
def test_a_missing_file_is_refused_by_name(broken, name):
    path = broken / name
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert str(path.parent) in refused(broken)


@pytest.mark.parametrize("name", ["model_index.json", "mapping/config.json"])
@pytest.mark.parametrize("text", ["", "{", "[]", "5"])
def test_a_broken_json_is_refused_by_name(broken, name, text):
    (broken / name).write_text(text)
    assert str(broken / name) in refused(broken)


@pytest.mark.parametrize("channels", [8, 0, "four"])
def test_a_config_of_something_else_is_refused_by_name(broken, channels):
    path = broken / "mapping" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"latent_channels": channels}))
    assert str(broken / "mapping") in refused(broken)


@pytest.mark.parametrize("entry", [["os", "system"], ["wavegms", "Nothing"], ["wavegms.no", "A"]])
def test_an_index_may_not_name_just_anything(broken, entry):
    index = json.loads((broken / "model_index.json").read_text())
    index["mapping"] = entry
    (broken / "model_index.json").write_text(json.dumps(index))
    assert ".".join(entry) in refused(broken)


@pytest.mark.parametrize("where", ["models/busi/wave_gms", "nowhere", Path("models/wave_gms")])
def test_a_missing_folder_is_refused_by_name(where, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert f"{where} does not exist" in refused(where)


def test_half_precision_predicts_nearly_the_same(pipeline, saved, grey):
    half = WaveGMSPipeline.from_pretrained(saved, dtype=torch.bfloat16)
    assert half.encoder.dtype == half.mapping.dtype == half.vae.dtype == torch.bfloat16
    soft = probability(half, grey)
    assert soft.dtype == np.float32
    assert np.abs(soft - probability(pipeline, grey)).mean() < 0.1


def test_a_folder_with_one_seed_opens_and_one_with_several_is_refused(pipeline, tmp_path):
    folder = tmp_path / "models/busi/wave_gms"
    pipeline.save_pretrained(folder / "seed_1")
    (folder / "seed_1_old").mkdir()
    opened = WaveGMSPipeline.from_pretrained(folder)
    assert opened.parameter_counts == pipeline.parameter_counts
    pipeline.save_pretrained(folder / "seed_2")
    with pytest.raises(InputError, match=r"several seeds.*seed_1"):
        WaveGMSPipeline.from_pretrained(folder)
    assert WaveGMSPipeline.from_pretrained(folder / "seed_2").config.image_size == 32
