"""GMS's weights in our latent mapping model: the same outputs, or one sentence of refusal."""

import pickle

import pytest
import torch
from gms_reference import published_levels, published_state
from safetensors.torch import save_file

from wavegms import InputError, LatentMappingModel
from wavegms.models.gms_checkpoint import load_gms_mapping


def in_float32(state):
    return {key: value.float() for key, value in state.items()}


@pytest.fixture
def state():
    return in_float32(published_state())


@pytest.fixture
def save(tmp_path):
    def write(state, name="busi.pth"):
        torch.save({"model": state}, tmp_path / name)
        return tmp_path / name

    return write


@pytest.mark.parametrize("seed", [0, 1])
def test_the_outputs_are_those_of_the_published_network(save, seed):
    state = published_state(seed)
    latents = torch.randn(2, 4, 3, 5, dtype=torch.float64)
    state = {key: value.float().double() for key, value in state.items()}
    expected = published_levels(state, latents)
    levels = load_gms_mapping(save(in_float32(state))).double()(latents)
    for level, wanted in zip(levels, expected, strict=True):
        torch.testing.assert_close(level, wanted, rtol=0, atol=1e-9)
        assert wanted.std() > 0.1


def test_every_weight_is_used(state, save):
    """A model of the same keys, each filled from the file."""
    count = sum(value.numel() for key, value in state.items() if ".act" not in key)
    assert count == 1_564_976
    model = load_gms_mapping(save(state))
    ours = {key: sorted(value.flatten().tolist()) for key, value in model.state_dict().items()}
    theirs = {k: sorted(v.flatten().tolist()) for k, v in state.items() if ".act" not in k}
    assert sorted(ours.values()) == sorted(theirs.values())
    assert ours.keys() == LatentMappingModel().state_dict().keys()


def test_half_precision_safetensors_and_single_prelus_are_read(state, tmp_path, save):
    alone = {key: value for key, value in state.items() if ".act" not in key}
    save_file(alone, tmp_path / "busi.safetensors")
    half = {key: value.half() for key, value in state.items()}
    expected = load_gms_mapping(save(state)).state_dict()
    for path in (tmp_path / "busi.safetensors", save(alone), save(half, "half.pth")):
        loaded = load_gms_mapping(str(path)).state_dict()
        for key, value in loaded.items():
            assert value.dtype == torch.float32
            torch.testing.assert_close(value, expected[key], rtol=1e-3, atol=1e-3)


def refused(path):
    with pytest.raises(InputError) as error:
        load_gms_mapping(path)
    message = str(error.value)
    assert "\n" not in message and str(path) in message
    return message


@pytest.mark.parametrize(
    "key",
    ["input_blocks.bias", "conv3_1.resblock.conv1.2.weight", "convds0.2.weight"],
)
def test_a_key_that_is_missing_or_of_another_shape_is_refused_by_name(state, save, key):
    value = state.pop(key)
    assert f"{key} is missing" in refused(save(state))
    state[key] = value[:-1]
    assert f"{key} has shape" in refused(save(state))


def test_an_unknown_key_is_refused_by_name(state, save):
    assert "output_blocks.0.weight is unknown" in refused(
        save(state | {"output_blocks.0.weight": torch.zeros(32)})
    )


def test_a_prelu_stored_twice_must_agree(state, save):
    key = "conv2_2.resblock.act2.weight"
    assert f"{key} differs" in refused(save(state | {key: state[key] + 1}))


def test_a_missing_file_is_refused(tmp_path):
    message = refused(tmp_path / "busi.pth")
    assert "does not exist" in message and "model.gms_checkpoint" in message


class Bomb:
    def __reduce__(self):
        return (exec, ("raise SystemExit('unpickled')",))


@pytest.mark.parametrize(
    "content",
    [{}, {"model": {"a": 1}}, {"model": 3}, [1], {"state_dict": {}}, {"model": {"a": Bomb()}}],
)
def test_what_is_no_checkpoint_is_refused(tmp_path, content):
    torch.save(content, tmp_path / "a.pth")
    assert "cannot be read as weights" in refused(tmp_path / "a.pth")


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("content", [b"", b"no weights", pickle.dumps({"model": Bomb()})])
def test_a_broken_file_is_refused(tmp_path, suffix, content):
    path = tmp_path / f"broken{suffix}"
    path.write_bytes(content)
    assert "cannot be read as weights" in refused(path)


def test_a_truncated_file_is_refused(state, save):
    path = save(state)
    path.write_bytes(path.read_bytes()[:-1000])
    assert "cannot be read as weights" in refused(path)
