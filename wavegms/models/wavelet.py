"""The orthonormal Haar wavelet transform, in 2-D (paper, section 2.2) and of stacks of slices.

PyWavelets defines the conventions (`pywt.dwt2(x, "haar")`) and the tests compare with it; here the
transform is written in torch so that it runs on the model's device and inside its graph.
"""

import torch
from torch import Tensor

from wavegms.models.windows import as_slices, as_window

SUB_BANDS = ("LL", "horizontal", "vertical", "diagonal")


def haar_dwt(x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """One level of the orthonormal 2-D Haar transform of (..., H, W), H and W even.

    Gives LL, horizontal, vertical and diagonal detail, each (..., H/2, W/2). Their energy (sum of
    squares) together equals that of `x`.
    """
    if x.shape[-2] % 2 or x.shape[-1] % 2:
        raise ValueError(f"the Haar transform needs even sides, not {tuple(x.shape[-2:])}")
    top_left, top_right = x[..., 0::2, 0::2], x[..., 0::2, 1::2]
    bottom_left, bottom_right = x[..., 1::2, 0::2], x[..., 1::2, 1::2]
    top_sum, top_difference = top_left + top_right, top_left - top_right
    bottom_sum, bottom_difference = bottom_left + bottom_right, bottom_left - bottom_right
    return (
        (top_sum + bottom_sum) / 2,
        (top_sum - bottom_sum) / 2,
        (top_difference + bottom_difference) / 2,
        (top_difference - bottom_difference) / 2,
    )


def haar_idwt(ll: Tensor, horizontal: Tensor, vertical: Tensor, diagonal: Tensor) -> Tensor:
    """Inverse of :func:`haar_dwt`: four times (..., H/2, W/2) -> (..., H, W)."""
    top_sum, bottom_sum = ll + horizontal, ll - horizontal
    top_difference, bottom_difference = vertical + diagonal, vertical - diagonal
    top = torch.stack([top_sum + top_difference, top_sum - top_difference], dim=-1) / 2
    bottom = torch.stack([bottom_sum + bottom_difference, bottom_sum - bottom_difference], -1) / 2
    rows = torch.stack([top.flatten(-2), bottom.flatten(-2)], dim=-2)
    return rows.flatten(-3, -2)


def multi_level_bands(images: Tensor, levels: int = 3) -> list[Tensor]:
    """The multi-resolution decomposition X_MR^l of the paper, l = 1 ... levels.

    Each level transforms the LL band of the one before. Its four sub-bands are concatenated along
    the channels as LL, horizontal, vertical, diagonal (each with the image's own channels), and
    divided by 2^l: an orthonormal LL grows by 2 a level, so this puts it back in the image's range.

    (B, C, H, W) in [0, 1] -> one tensor a level, (B, 4C, H/2^l, W/2^l), of which the first C
    channels are in [0, 1] and the details in [-1/2, 1/2].
    """
    bands, running = [], images
    for level in range(1, levels + 1):
        sub_bands = haar_dwt(running)
        running = sub_bands[0]
        bands.append(torch.cat(sub_bands, dim=1) / 2**level)
    return bands


def multi_level_bands_3d(slices: Tensor, depth: int, levels: int = 3) -> list[Tensor]:
    """The same of windows of `depth` consecutive slices, by the 3-D Haar transform.

    Within a slice it halves the sides as in 2-D. Across slices it is undecimated: every slice has
    sub-bands of its own, at level l of the 2^l slices around it, from 2^(l-1) - 1 before it to
    2^(l-1) after it. A decimated one would leave one slice of eight at the third level, from which
    a network could not tell which of the eight it is asked for. A window's first and last slice
    stand for those before and after it.

    (B * depth, C, H, W) in [0, 1] -> one tensor a level, (B, 8C, depth, H/2^l, W/2^l): the 2-D
    sub-bands of the mean across slices, then those of the detail, in the ranges of
    `multi_level_bands`. Of slices that are all alike these are the 2-D ones, and 0.
    """
    bands, running = [], slices
    for level in range(1, levels + 1):
        low, high = _across(torch.cat(haar_dwt(running), dim=1), depth, 2 ** (level - 1))
        running = as_slices(low[:, : slices.shape[1]])
        bands.append(torch.cat([low, high], dim=1) / 2**level)
    return bands


def _across(slices: Tensor, depth: int, step: int) -> tuple[Tensor, Tensor]:
    """Mean and half the difference of slices that lie `step` apart: (B, C, depth, H, W) each."""
    window = as_window(slices, depth)
    before = step // 2
    places = torch.arange(depth, device=slices.device) - before
    first, second = (window[:, :, (places + by).clamp(0, depth - 1)] for by in (0, step))
    return (first + second) / 2, (first - second) / 2
