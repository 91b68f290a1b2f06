"""The ONNX file: it gives what the pipeline gives, says what it is, and is whole or not there."""

import copy
import os
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from diffusers import AutoencoderKL
from onnxruntime import InferenceSession, SessionOptions
from short import shorten

import wavegms
from wavegms import InputError, LatentMappingModel, MultiResolutionEncoder, WaveGMSPipeline
from wavegms.models import export
from wavegms.models.autoencoder import freeze
from wavegms.models.build import as_pipeline, build_variant
from wavegms.training.autoencoder import build_autoencoder
from wavegms.variants import VARIANTS

# 3e-7 to 5e-6 was measured; another processor rounds in another order.
CLOSE = {"rtol": 0, "atol": 1e-4}


def build_vae(kind):
    """Small and untrained, but what it decodes to has contrast and lies about mid grey."""
    if kind == "tiny":
        vae = freeze(build_autoencoder(16, 1))
        vae.decoder.layers[-1].weight.mul_(4)
        vae.decoder.layers[-1].bias.fill_(0.5)
        return vae
    if kind is None:
        return None
    vae = AutoencoderKL(
        block_out_channels=(8,) * 4,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        norm_num_groups=4,
        latent_channels=4,
    )
    return freeze(vae)


@pytest.fixture
def unet():
    torch.manual_seed(0)
    return as_pipeline(build_variant("unet"), None, 32)


@pytest.fixture
def constant(monkeypatch):
    """Replaces the exporter, which takes seconds: files that say 0.5 to every pixel."""
    half = onnx.helper.make_tensor("half", onnx.TensorProto.FLOAT, (), [0.5])
    images = onnx.helper.make_tensor_value_info("images", onnx.TensorProto.FLOAT, ["b", 3, 32, 32])
    soft = onnx.helper.make_tensor_value_info(
        "probabilities", onnx.TensorProto.FLOAT, ["b", 1, 32, 32]
    )
    graph = onnx.helper.make_graph(
        [
            onnx.helper.make_node("ReduceMean", ["images", "axes"], ["grey"]),
            onnx.helper.make_node("Mul", ["grey", "zero"], ["nothing"]),
            onnx.helper.make_node("Add", ["nothing", "half"], ["probabilities"]),
        ],
        "constant",
        [images],
        [soft],
        [
            half,
            onnx.helper.make_tensor("zero", onnx.TensorProto.FLOAT, (), [0.0]),
            onnx.helper.make_tensor("axes", onnx.TensorProto.INT64, (1,), [1]),
        ],
    )
    opsets = [onnx.helper.make_opsetid("", 20)]
    content = onnx.helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString()
    monkeypatch.setattr(export, "_to_onnx", lambda pipeline: content)


def run_file(path, images):
    options = SessionOptions()
    options.intra_op_num_threads = 1
    session = InferenceSession(path, options, providers=["CPUExecutionProvider"])
    (given,) = session.run(None, {"images": images.numpy()})
    return given


def state_of(pipe):
    parts = {name: part for name, part in pipe.components.items() if part is not None}
    return {
        (name, key): (value.clone(), part.training, value.requires_grad)
        for name, part in parts.items()
        for key, value in part.state_dict(keep_vars=True).items()
    }


def assert_unchanged(before, after):
    assert before.keys() == after.keys()
    for key, (value, *flags) in after.items():
        expected, *expected_flags = before[key]
        assert torch.equal(value, expected) and flags == expected_flags, key
        assert value.dtype == expected.dtype and value.device == expected.device, key


def refused(pipe, path):
    with pytest.raises(InputError) as error:
        pipe.export_onnx(path)
    message = str(error.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("wave_gms", torch.float32),
        ("unet", torch.bfloat16),
        pytest.param("tinyvae", torch.bfloat16, marks=pytest.mark.slow),
        pytest.param("tinyvae_multires_sft", torch.float32, marks=pytest.mark.slow),
        pytest.param("gms", torch.float32, marks=pytest.mark.slow),
    ],
)
def test_the_file_gives_what_the_pipeline_gives(name, dtype, tmp_path, capfd):
    model, vae = build_variant(name), build_vae(VARIANTS[name].autoencoder)
    if name != "unet":
        shorten(model)
    pipe = as_pipeline(model, vae, 32).to(dtype)
    plain = copy.deepcopy(pipe.components)
    plain = {key: part.float() for key, part in plain.items() if part is not None}
    plain = WaveGMSPipeline(**plain, image_size=32)
    # as someone would who is in the middle of training, and short of memory
    (pipe.network or pipe.mapping).train()
    if vae is not None:
        pipe.vae.enable_slicing()
    before, random_state = state_of(pipe), torch.get_rng_state()
    capfd.readouterr()
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        result = pipe.export_onnx(tmp_path / "new" / "model.onnx")
    out, err = capfd.readouterr()
    assert (out, err, [str(warning.message) for warning in warned]) == ("", "", [])
    assert_unchanged(before, state_of(pipe))
    assert torch.equal(random_state, torch.get_rng_state())

    assert result.path == tmp_path / "new" / "model.onnx"
    assert list(result.path.parent.iterdir()) == [result.path], "the weights are in the one file"
    assert result.max_difference <= CLOSE["atol"]
    for count in (1, 3, 5):
        images = torch.rand(count, 3, 32, 32)
        given, expected = run_file(result.path, images), plain.predict(images).numpy()
        assert given.dtype == np.float32 and given.shape == (count, 1, 32, 32)
        assert given.min() >= 0 and given.max() <= 1
        np.testing.assert_allclose(given, expected, **CLOSE)
        assert given.std() > 0.01, "a constant shows nothing"

    model = onnx.load(result.path)
    onnx.checker.check_model(model, full_check=True)
    assert [value.name for value in model.graph.input] == ["images"]
    assert [value.name for value in model.graph.output] == ["probabilities"]
    for value, channels in ((model.graph.input[0], 3), (model.graph.output[0], 1)):
        kind = value.type.tensor_type
        sides = [side.dim_param or side.dim_value for side in kind.shape.dim]
        assert kind.elem_type == onnx.TensorProto.FLOAT and sides == ["batch", channels, 32, 32]
    stored = {entry.key: entry.value for entry in model.metadata_props}
    assert stored["wavegms_version"] == wavegms.__version__ and stored["image_size"] == "32"
    assert "[0, 1]" in stored["input_range"] and "0.5" in stored["output"]
    assert "not for clinical use" in stored["notice"]
    # the exporter notes where in whose source an operation comes from
    assert export.__file__.encode() not in result.path.read_bytes()


@pytest.mark.slow
def test_a_fresh_process_says_nothing(tmp_path):
    """Loggers hold on to the stderr they found when they were made; `capfd` does not see it."""
    script = (
        "import sys\n"
        "from test_export import as_pipeline, build_vae, build_variant, shorten\n"
        "model = build_variant('tinyvae')\n"
        "shorten(model)\n"
        "as_pipeline(model, build_vae('tiny'), 32).export_onnx(sys.argv[1])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "model.onnx")],
        cwd=Path(__file__).parent,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        check=True,
        capture_output=True,
        encoding="utf-8",
    )
    assert (done.stdout, done.stderr) == ("", "")
    assert (tmp_path / "model.onnx").is_file()


def test_an_encoder_that_samples_is_refused(small_vae, tmp_path, constant, monkeypatch):
    encoder = MultiResolutionEncoder(sample_at_inference=True)
    pipe = WaveGMSPipeline(encoder, LatentMappingModel(), small_vae, image_size=32)
    assert "model.sample_at_inference" in refused(pipe, tmp_path / "model.onnx")
    assert list(tmp_path.iterdir()) == []
    # the way out that the sentence names
    monkeypatch.setattr(export, "TOLERANCE", 1)
    pipe.encoder.register_to_config(sample_at_inference=False)
    pipe.export_onnx(tmp_path / "model.onnx")
    assert torch.equal(*(pipe.predict(torch.full((1, 3, 32, 32), 0.3)) for _ in range(2)))


@pytest.mark.parametrize("name", ["model", "model.pt", "model.onnx.gz", ".onnx"])
def test_another_suffix_is_refused(unet, tmp_path, name):
    message = refused(unet, tmp_path / name)
    assert str(tmp_path / name) in message and "in .onnx" in message
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_cannot_be_written_is_refused(unet, tmp_path, constant):
    (tmp_path / "folder.onnx").mkdir()
    (tmp_path / "file").write_text("kept")
    for path in (tmp_path / "folder.onnx", tmp_path / "file" / "model.onnx"):
        message = refused(unet, path)
        assert str(path) in message or f"{path.parent} cannot be written" in message
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["file", "folder.onnx"]


def test_a_file_that_gives_something_else_is_not_kept(unet, tmp_path, constant):
    path = tmp_path / "model.onnx"
    assert str(path) in refused(unet, path)
    assert list(tmp_path.iterdir()) == []
    path.write_bytes(b"an older file")
    assert "more than 0.001" in refused(unet, str(path))
    next(unet.network.parameters()).data.fill_(torch.nan)
    assert "up to nan" in refused(unet, path)
    assert list(tmp_path.iterdir()) == [path] and path.read_bytes() == b"an older file"


@pytest.mark.parametrize("step", ["_to_onnx", "_largest_difference"])
@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_failure_leaves_nothing(unet, tmp_path, constant, monkeypatch, step, error):
    def fail(*_):
        raise error("stop")

    monkeypatch.setattr(export, step, fail)
    with pytest.raises(error, match="stop"):
        unet.export_onnx(tmp_path / "model.onnx")
    assert list(tmp_path.iterdir()) == []


def test_an_older_file_is_replaced(unet, tmp_path, constant, monkeypatch):
    monkeypatch.setattr(export, "TOLERANCE", 1)
    path, link = tmp_path / "model.onnx", tmp_path / "link.onnx"
    path.write_bytes(b"an older file")
    link.symlink_to(path)
    result = unet.export_onnx(str(link))
    assert result.path == link and link.is_symlink() and onnx.load(path).graph.name == "constant"
    images = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    far = (unet.predict(images) - 0.5).abs().max().item()
    assert result.max_difference == pytest.approx(far, abs=1e-5)
    assert sorted(tmp_path.iterdir()) == [link, path]
