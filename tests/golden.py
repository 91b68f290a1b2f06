"""Weights by formula, so that networks built apart from each other can be compared."""

import json
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional

# What our own networks gave in float64, once they had been found equal to the official ones.
KEPT = Path(__file__).parent / "kept/attention_rivals.json"


def hashed(shape, scale):
    """Full rank: Knuth's multiplicative hash of the flat index, uniform, or near 1 or 0."""
    n = int(np.prod(shape))
    k = np.arange(n, dtype=np.uint64)
    u = ((k * np.uint64(2654435761) + np.uint64(n)) % np.uint64(2**32)) / 2**31 - 1
    scale = np.sqrt(3 * shape[0] / n) if scale is None else scale
    return u.reshape(shape) * scale


def sine(shape, scale):
    n = int(np.prod(shape))
    k = np.arange(n)
    values = 0.05 * np.sin(k * 0.37 + n % 7)
    if scale is not None:
        values = 0.1 * np.sin(k) if scale == 0.1 else 0.01 * np.cos(k)
    return values.reshape(shape)


@torch.no_grad()
def fill(model, formula=hashed):
    """By role, shape and place in the tensor alone: names and order do not matter."""
    for name, parameter in model.named_parameters():
        shape, is_scale = tuple(parameter.shape), name.endswith("weight")
        scale = None if len(shape) > 1 else 0.1 if is_scale else 0.01
        values = formula(shape, scale) + (len(shape) == 1 and is_scale)
        # rounded as the official networks had them
        parameter.copy_(torch.from_numpy(values).float())
    for name, buffer in model.named_buffers():
        k = torch.arange(buffer.numel(), dtype=torch.float64)
        if name.endswith("running_mean"):
            buffer.copy_((0.01 * k.sin()).float())
        elif name.endswith("running_var"):
            buffer.copy_((1 + 0.1 * k.cos() ** 2).float())
    return model


def waves(side=224):
    """An image (1, 3, S, S) in [0, 1]."""
    _, c, i, j = np.ogrid[:1, :3, :side, :side]
    return torch.from_numpy((0.5 + 0.5 * np.sin(0.1 * i + 0.2 * j + c)).astype(np.float32))


def differs_from_kept(name, logits):
    """Largest difference to the means over 4 x 4 squares that were kept, and how large they are."""
    kept = torch.tensor(json.loads(KEPT.read_text())[name], dtype=torch.float64)
    pooled = functional.adaptive_avg_pool2d(logits.double(), 4).flatten()
    return (pooled - kept).abs().max().item(), kept.std().item()
