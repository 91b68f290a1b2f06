"""The convolutional rivals' weights by a formula, as `golden.fill` has the others'.

Values depend on a tensor's shape, on its role, and on its rank among tensors of the same shape and
role, never on its name. An integer hash rather than a sine of the index: that would give matrices
of rank two, which hide errors.
"""

import numpy as np
import torch
from torch import nn


def hashed(count: int, rank: int) -> np.ndarray:
    """Spread evenly over [0, 1), by the index in 64 bits that wrap."""
    k, low = np.arange(count, dtype=np.uint64), np.uint64(0xFFFFFFFF)
    start = np.uint64(97 * count + 12345 + 7919 * rank)
    h = (k * k * np.uint64(2654435761) + k * np.uint64(40503) + start) & low
    h ^= h >> np.uint64(15)
    h = (h * np.uint64(0x2C1B3C6D)) & low
    h ^= h >> np.uint64(12)
    h = (h * np.uint64(0x297A2D39)) & low
    return (h ^ (h >> np.uint64(15))) / 2**32


def value(role: str, shape: torch.Size, gain: float, rank: int) -> np.ndarray:
    count = shape.numel()
    k = np.arange(count)
    if len(shape) > 1:
        return gain * (2 * hashed(count, rank) - 1) * np.sqrt(6 * shape[0] / count)
    if role == "weight":
        return 1 + 0.1 * np.sin(k + rank)
    if role == "running_mean":
        return 0.1 * np.sin(k + rank)
    if role == "running_var":
        return 1 + 0.1 * np.cos(k + rank) ** 2
    return 0.1 * np.cos(k + rank)


@torch.no_grad()
def fill(model: nn.Module, gain: float, *, ordered: bool) -> nn.Module:
    """Fills parameters and running statistics; ranks are all 0 unless `ordered`."""
    for tensors in (model.named_parameters(), model.named_buffers()):
        ranks: dict[tuple, int] = {}
        for name, tensor in tensors:
            if not tensor.is_floating_point():
                continue
            role = name.split(".")[-1] if tensor.ndim == 1 else ""
            key = role, tensor.shape
            rank = ranks[key] = ranks.get(key, -1) + 1
            values = value(role, tensor.shape, gain, rank if ordered else 0)
            tensor.copy_(torch.from_numpy(values.reshape(tensor.shape)))
    return model
