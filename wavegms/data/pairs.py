"""Pairs: an image with its mask, read, checked against each other, and made equally large.

What is wrong with a pair is found here, for preparation and for the check that comes before it.
"""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from PIL import Image
from tqdm import tqdm

from wavegms.data.cases import Case
from wavegms.errors import InputError
from wavegms.images import as_mask, as_rgb, read_image, resize_image, resize_mask

_Result = TypeVar("_Result")


@dataclass(frozen=True)
class Pair:
    """One image with its mask at the original size."""

    image: Image.Image  # RGB, upright
    mask: np.ndarray  # boolean (H, W) of the image's size with some foreground; all masks joined
    image_mode: str  # PIL's mode of the image file
    mask_modes: tuple[str, ...]  # and of each mask file


def read_pair(
    case: Case,
    masks_at_another_size: bool = False,
    to_mask: Callable[[Image.Image], np.ndarray] = as_mask,
) -> Pair:
    """Read the files of a case; a mask of another size but the same shape may be scaled."""
    image, image_mode = read_image(case.image, as_rgb)
    mask, mask_modes = None, []
    for path in case.masks:
        part, mode = read_image(path, to_mask)
        mask_modes.append(mode)
        if masks_at_another_size and _same_shape(part.shape, (image.height, image.width)):
            part = resize_mask(part, (image.width, image.height))
        if part.shape != (image.height, image.width):
            raise InputError(
                f"{path} is {part.shape[1]}×{part.shape[0]} pixels but its image {case.image.name} "
                f"is {image.width}×{image.height}: replace the one that is wrong."
            )
        mask = part if mask is None else mask | part
    if not mask.any():
        raise InputError(
            f"{_names_of(case)} has no foreground: correct the mask or remove the image with its "
            "mask."
        )
    return Pair(image, mask, image_mode, tuple(mask_modes))


def resize_pair(case: Case, pair: Pair, image_size: int) -> tuple[Image.Image, np.ndarray]:
    """Resize a pair to a square: RGB image, and boolean mask with something left in it."""
    mask = resize_mask(pair.mask, image_size)
    if not mask.any():
        raise InputError(
            f"{_names_of(case)} has foreground too small to be left at image_size {image_size}: "
            "set a larger image_size or remove the image with its mask."
        )
    return resize_image(pair.image, image_size), mask


def for_each_case(
    function: Callable[[Case], _Result], cases: Sequence[Case], description: str
) -> tuple[list[_Result], list[str]]:
    """Call a function for every case, in threads and with a progress bar.

    A case is in the one list by its result or in the other by the sentence of its InputError.
    """
    results, problems = [], []
    # Decoding and resizing release the interpreter lock; more threads than this wait for the disk.
    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        futures = [pool.submit(function, case) for case in cases]
        try:
            for future in tqdm(futures, desc=description, unit="image"):
                try:
                    results.append(future.result())
                except InputError as problem:
                    problems.append(str(problem))
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return results, problems


def surrounds(mask: np.ndarray) -> bool:
    """Tell whether foreground is most of a mask (H, W) and of its border, as background should."""
    border = np.concatenate([mask[0], mask[-1], mask[1:-1, 0], mask[1:-1, -1]])
    return bool(mask.mean() > 0.5 and border.mean() > 0.5)


def inverted_masks(cases: Sequence[Case], surround: Sequence[bool]) -> list[str]:
    """Say so where the masks of a dataset look as if black and white were exchanged.

    `surround` is what `surrounds` says of each mask. A lesion may fill its image, but hardly most
    images of a dataset.
    """
    ids = [case.id for case, one in zip(cases, surround, strict=True) if one]
    if 2 * len(ids) <= len(cases):
        return []
    more = ", ..." if len(ids) > 3 else ""
    return [
        f"In {len(ids)} of {len(cases)} masks the foreground fills most of the image and of its "
        f"border ({', '.join(ids[:3])}{more}): if black and white are exchanged, invert the masks."
    ]


def _same_shape(one: tuple[int, int], other: tuple[int, int]) -> bool:
    """Whether one is the other scaled, to the pixel."""
    return abs(one[0] * other[1] - one[1] * other[0]) <= max(*one, *other)


def _names_of(case: Case) -> str:
    return " and ".join(str(path) for path in case.masks)
