"""Windows of a volume's slices: their shapes, and predictions by windows that overlap."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor


def as_window(slices: Tensor, depth: int) -> Tensor:
    """(B * depth, C, h, w) -> (B, C, depth, h, w); fewer slices than `depth` are one window.

    Raises:
        ValueError: they are no whole windows.
    """
    depth = min(depth, len(slices))
    if len(slices) % depth:
        raise ValueError(f"{len(slices)} slices are no windows of {depth}")
    return slices.unflatten(0, (-1, depth)).transpose(1, 2)


def as_slices(window: Tensor) -> Tensor:
    """The inverse of `as_window`."""
    return window.transpose(1, 2).flatten(0, 1)


def in_parts(
    predict: Callable[[range], Tensor], count: int, at_once: int, depth: int = 1
) -> Iterator[tuple[range, Tensor]]:
    """Places among `count` images, in order, and what `predict` gives for them, an entry each.

    Networks of images are asked for `at_once` at a time. One that takes windows of `depth` > 1
    consecutive slices is asked for one window at a time; windows begin half a window apart, and
    what they give for a slice is averaged. A window weighs a slice by how near it is to the
    window's middle, where it sees as far to both sides. Held is never more than one window.
    """
    if depth == 1:
        for start in range(0, count, at_once):
            places = range(start, min(start + at_once, count))
            yield places, predict(places)
        return
    last, size = max(0, count - depth), min(count, depth)
    starts = [*range(0, last, depth // 2), last]
    rising = torch.arange(1.0, size + 1)
    weights, total = torch.minimum(rising, rising.flip(0)), torch.zeros(count)
    for start in starts:
        total[start : start + size] += weights
    held = None
    for start, following in zip(starts, [*starts[1:], count], strict=True):
        places = range(start, start + size)
        soft = predict(places)
        shares = (weights / total[start : start + size]).to(soft)
        soft = soft * shares.reshape(-1, *[1] * (soft.ndim - 1))
        if held is not None:
            soft[: len(held)] += held
        done = following - start  # no later window has these
        yield places[:done], soft[:done]
        held = soft[done:]
