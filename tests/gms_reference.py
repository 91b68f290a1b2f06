"""GMS's latent mapping model written a second time: its published names, and plain formulas."""

import torch
from torch.nn import functional

# name, input channels, output channels
BLOCKS = [
    ("conv1_0", 32, 32),
    ("conv2_0", 32, 64),
    ("conv3_0", 64, 128),
    ("conv4_0", 128, 128),
    ("conv3_1", 256, 128),
    ("conv2_2", 192, 64),
    ("conv1_3", 96, 32),
    ("conv0_4", 64, 32),
]
HEADS = {"convds3": 128, "convds2": 64, "convds1": 32, "convds0": 32}


def published_state(seed=0):
    """Random weights under the names of a published checkpoint, in float64."""
    generator = torch.Generator().manual_seed(seed)
    state = {}

    def draw(name, *shape, around=0.0):
        fan_in = max(1, torch.Size(shape[1:]).numel())
        noise = torch.randn(shape, generator=generator, dtype=torch.float64)
        state[name] = around + noise / fan_in**0.5 * (1 if len(shape) > 1 else 0.2)

    def norm(name, channels):
        draw(f"{name}.weight", channels, around=1.0)
        draw(f"{name}.bias", channels)

    def convolution(name, into, out, side, bias=True):
        draw(f"{name}.weight", out, into, side, side)
        if bias:
            draw(f"{name}.bias", out)

    convolution("input_blocks", 4, 32, 3)
    for block, into, out in BLOCKS:
        for k, channels in ((1, into), (2, out)):
            draw(f"{block}.resblock.act{k}.weight", 1, around=0.25)
            norm(f"{block}.resblock.conv{k}.0", channels)
            state[f"{block}.resblock.conv{k}.1.weight"] = state[f"{block}.resblock.act{k}.weight"]
            convolution(f"{block}.resblock.conv{k}.2", channels, out, 3)
        if into != out:
            convolution(f"{block}.resblock.skip_connection", into, out, 1, bias=False)
        norm(f"{block}.attention.norm", out)
        for name in ("q", "k", "v", "proj_out"):
            convolution(f"{block}.attention.{name}", out, out, 1)
    for head, channels in HEADS.items():
        norm(f"{head}.0", channels)
        convolution(f"{head}.2", channels, 4, 3, bias=False)
    return state


def published_levels(state, latents):
    """What that network gives, deepest level first. Skips come before what they join."""

    def norm(name, x):
        return functional.group_norm(x, 16, state[f"{name}.weight"], state[f"{name}.bias"], 1e-6)

    def convolution(name, x):
        weight = state[f"{name}.weight"]
        return functional.conv2d(
            x, weight, state.get(f"{name}.bias"), padding=weight.shape[-1] // 2
        )

    def block(name, x):
        y = x
        for k in (1, 2):
            part = f"{name}.resblock.conv{k}"
            y = functional.prelu(norm(f"{part}.0", y), state[f"{part}.1.weight"])
            y = convolution(f"{part}.2", y)
        shortcut = f"{name}.resblock.skip_connection"
        x = y + (convolution(shortcut, x) if f"{shortcut}.weight" in state else x)
        normed = norm(f"{name}.attention.norm", x)
        q, k, v = (convolution(f"{name}.attention.{part}", normed).flatten(2) for part in "qkv")
        weights = torch.softmax(q.transpose(1, 2) @ k / q.shape[1] ** 0.5, dim=2)
        attended = (v @ weights.transpose(1, 2)).reshape(x.shape)
        return x + convolution(f"{name}.attention.proj_out", attended)

    features = [convolution("input_blocks", latents)]
    for name, _, _ in BLOCKS[:4]:
        features.append(block(name, features[-1]))
    x, levels = features.pop(), []
    for (name, _, _), head in zip(BLOCKS[4:], HEADS, strict=True):
        x = block(name, torch.cat([features.pop(), x], dim=1))
        levels.append(convolution(f"{head}.2", functional.silu(norm(f"{head}.0", x))))
    return levels
