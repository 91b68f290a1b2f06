"""ImageNet's weights for the encoder and the decoder of Swin-Unet, as its authors begin."""

import math
from pathlib import Path

import torch
from torch import Tensor, nn

from wavegms.errors import InputError, first_line
from wavegms.files import is_hub_id
from wavegms.models.weights import read_tensors

_FILE = "model.safetensors"

_WAY_OUT = (
    "set training.pretrained to a safetensors file with timm's names, a folder that holds it as "
    f"{_FILE}, or a hub id such as timm/swin_tiny_patch4_window7_224.ms_in1k; null begins from "
    "random weights"
)


def imagenet_weights(where: str) -> Path:
    """The file that `training.pretrained` means, from the hub if it has to be.

    Raises:
        InputError: there is none.
    """
    path = Path(where)
    if path.is_dir():
        path = path / _FILE
    if path.is_file():
        return path
    if not is_hub_id(where):
        raise InputError(f"training.pretrained {where} does not exist: {_WAY_OUT}")
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(where, _FILE))
    except Exception as error:  # of the hub client, one of many
        raise InputError(
            f"training.pretrained {where} cannot be had ({first_line(error)}): {_WAY_OUT}"
        ) from error


@torch.no_grad()
def begin_from_imagenet(network: nn.Module, where: str, variant: str) -> None:
    """Copies what `imagenet_weights` finds into a Swin-Unet, as far as both have it.

    Of the encoder all, as its third level takes the first two of six blocks; each level of the
    decoder has the blocks of the encoder's. A window smaller than 7 takes the middle of the table
    of relative positions, which means the same.

    Raises:
        InputError: the file is broken, or of another network.
    """
    path = imagenet_weights(where)
    found = read_tensors(path)
    for name, value in network.state_dict().items():
        theirs = _counterpart(name)
        if theirs is None:
            continue
        weights = found.get(theirs)
        if weights is not None and name.endswith("bias_table"):
            weights = _middle(weights, len(value))
        if weights is None or weights.shape != value.shape:
            shape = "nothing" if weights is None else "x".join(map(str, weights.shape))
            raise InputError(
                f"{path} has {shape} for {theirs} where {variant} needs "
                f"{'x'.join(map(str, value.shape))}: {_WAY_OUT}"
            )
        value.copy_(weights)


def _counterpart(name: str) -> str | None:
    """The name in timm of one of our weights; None of what ImageNet has nothing for."""
    part, _, rest = name.partition(".")
    if rest.endswith("relative_position_index"):
        return None
    if part == "embed":
        return f"patch_embed.{rest}"
    if part == "norm":
        return name
    if part not in ("merges", "encoder", "decoder"):
        return None
    level, _, rest = rest.partition(".")
    if part == "merges":  # in timm at the beginning of the next level
        return f"layers.{int(level) + 1}.downsample.{rest}"
    if part == "decoder":
        level = 2 - int(level)
    block, _, rest = rest.partition(".")
    return f"layers.{level}.blocks.{block}.{rest.replace('mlp.linear', 'mlp.fc')}"


def _middle(table: Tensor, wanted: int) -> Tensor:
    """Of a table of relative positions ((2w - 1)^2, heads), the `wanted` rows about its middle."""
    side, smaller = math.isqrt(len(table)), math.isqrt(wanted)
    if smaller > side:
        return table
    start = (side - smaller) // 2
    square = table.unflatten(0, (side, side))[start:, start:][:smaller, :smaller]
    return square.flatten(0, 1)
