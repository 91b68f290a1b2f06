"""Weights of GMS's own latent mapping model, as its authors publish them, in ours.

Both are the same network, written differently. GMS concatenates a skip before the features it
joins, we after them; where a group of GroupNorm straddles the joint, exchanging the two halves
would change the groups. Reversing the order of all hidden channels does not: a reversed (skip,
features) is (reversed features, reversed skip), and groups stay groups. So that is what is done.
"""

from pathlib import Path

import torch
from torch import Tensor

from wavegms.errors import InputError
from wavegms.models.mapping import LatentMappingModel
from wavegms.models.weights import read_tensors

_BLOCKS = {
    "encoder.0": "conv1_0",
    "encoder.1": "conv2_0",
    "encoder.2": "conv3_0",
    "encoder.3": "conv4_0",
    "decoder.0": "conv3_1",
    "decoder.1": "conv2_2",
    "decoder.2": "conv1_3",
    "decoder.3": "conv0_4",
}

_LAYERS = {
    **{f"residual.body.{k}": f"resblock.conv{1 + k // 3}.{k % 3}" for k in range(6)},
    "residual.shortcut": "resblock.skip_connection",
    "attention.norm": "attention.norm",
    "attention.query": "attention.q",
    "attention.key": "attention.k",
    "attention.value": "attention.v",
    "attention.out": "attention.proj_out",
}

_HEADS = {f"heads.{level}": f"convds{3 - level}" for level in range(4)}

# GMS registers each PReLU twice; the second name repeats the first one's weight
_REPEATED = {"resblock.conv1.1": "resblock.act1", "resblock.conv2.1": "resblock.act2"}


def load_gms_mapping(path: str | Path) -> LatentMappingModel:
    """The latent mapping model in float32 with the weights of a GMS checkpoint.

    That is {"model": state_dict} as .pth or .pt, read with `weights_only=True`, or the state dict
    alone as .safetensors. The outputs are those of GMS's network: `convds3` is level 0.

    Raises:
        InputError: the file is missing or broken, or a parameter in it is missing, unknown or of
            another shape; the sentence names both.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(
            f"{path} does not exist: put GMS's checkpoint there, or set model.gms_checkpoint"
        )
    stored = read_tensors(path, section="model")
    model = LatentMappingModel()
    state = {}
    for key, initial in model.state_dict().items():
        published = _published_name(key)
        if published not in stored:
            raise InputError(_misfit(path, published, "is missing"))
        value = stored.pop(published)
        if value.shape != initial.shape:
            problem = f"has shape {list(value.shape)}, not {list(initial.shape)}"
            raise InputError(_misfit(path, published, problem))
        state[key] = _reverse_hidden_channels(key, value.float())
        for name, repetition in _REPEATED.items():
            if name in published:
                repeated = published.replace(name, repetition)
                if not torch.equal(stored.pop(repeated, value), value):
                    raise InputError(_misfit(path, repeated, f"differs from {published}"))
    if stored:
        raise InputError(_misfit(path, min(stored), "is unknown"))
    model.load_state_dict(state)
    return model


def _published_name(key: str) -> str:
    """GMS's name of one of our parameters."""
    module, _, kind = key.rpartition(".")
    if module == "conv_in":
        return f"input_blocks.{kind}"
    top = ".".join(module.split(".")[:2])
    rest = module.removeprefix(f"{top}.")
    if top in _HEADS:
        return f"{_HEADS[top]}.{rest}.{kind}"
    return f"{_BLOCKS[top]}.{_LAYERS[rest]}.{kind}"


def _reverse_hidden_channels(key: str, value: Tensor) -> Tensor:
    """All channels but those of the latents on either side."""
    dims = [dim for dim in (0, 1) if dim < value.ndim]
    if key == "conv_in.weight":
        dims.remove(1)
    if key.startswith("heads.") and value.ndim == 4:
        dims.remove(0)
    return value.flip(dims)


def _misfit(path: Path, key: str, problem: str) -> str:
    return (
        f"{path} is no checkpoint of GMS's latent mapping model, as parameter {key} {problem}: "
        "use the files as published, or set model.gms_checkpoint"
    )
