"""Pairs: an image with its mask, read, checked against each other, and made equally large.

What is wrong with a pair is found here, for preparation and for the check that comes before it.
"""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
from PIL import Image
from tqdm import tqdm

from wavegms.data.cases import Case
from wavegms.errors import InputError
from wavegms.images import (
    BACKGROUND,
    FOREGROUND,
    IGNORED,
    MaskRule,
    Scale,
    as_mask,
    as_rgb,
    orientation_of,
    read_image,
    resize_image,
    resize_mask,
    turned,
)

_Result = TypeVar("_Result")


@dataclass(frozen=True)
class Reading:
    """How the files of a dataset are read."""

    masks: MaskRule
    scale: Scale = field(default_factory=Scale)
    # Whether masks were drawn on the pixels as they are stored, before EXIF turned the image.
    stored: bool = False
    evidence: tuple[str, ...] = ()  # a sentence each


@dataclass(frozen=True)
class Pair:
    """One image with its mask at the original size."""

    image: Image.Image  # RGB, upright
    # What each pixel is, uint8 (H, W) of the image's size, with some foreground; all masks joined.
    mask: np.ndarray
    image_mode: str  # PIL's mode of the image file
    mask_modes: tuple[str, ...]  # and of each mask file
    drawn_on: str  # "shown" or "stored" where EXIF turned the image and not the mask, else empty


def read_pair(case: Case, reading: Reading, masks_at_another_size: bool = False) -> Pair:
    """Read the files of a case; a mask of another size but the same shape may be scaled.

    Of several masks, a pixel is foreground where one says so, and else ignored where one does.
    """
    orientation = 1

    def to_rgb(image: Image.Image) -> Image.Image:
        nonlocal orientation
        orientation = orientation_of(image)
        return as_rgb(image, reading.scale)

    def to_mask(image: Image.Image) -> np.ndarray:
        nonlocal drawn_on
        part = as_mask(image, reading.masks)
        if orientation == 1 or orientation_of(image) != 1:
            return part
        drawn_on = "stored" if reading.stored else "shown"
        return turned(part, orientation) if reading.stored else part

    image, image_mode = read_image(case.image, to_rgb)
    mask, mask_modes, drawn_on = None, [], ""
    for path in case.masks:
        part, mode = read_image(path, to_mask)
        mask_modes.append(mode)
        if not fits_size(part.shape, (image.height, image.width), masks_at_another_size):
            raise InputError(
                f"{path} is {part.shape[1]}×{part.shape[0]} pixels but its image {case.image.name} "
                f"is {image.width}×{image.height}{_turned_by(drawn_on)}: replace the one that is "
                "wrong."
            )
        if part.shape != (image.height, image.width):
            part = resize_mask(part, (image.width, image.height))
        mask = part if mask is None else _join(mask, part)
    if not (mask == FOREGROUND).any():
        raise InputError(
            f"{_names_of(case)} has no foreground (values {reading.masks}): correct the mask or "
            "remove the image with its mask."
        )
    return Pair(image, mask, image_mode, tuple(mask_modes), drawn_on)


def _join(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    joined = np.full_like(one, BACKGROUND)
    joined[(one == IGNORED) | (other == IGNORED)] = IGNORED
    joined[(one == FOREGROUND) | (other == FOREGROUND)] = FOREGROUND
    return joined


def _turned_by(drawn_on: str) -> str:
    if not drawn_on:
        return ""
    return f", once EXIF turned it; its mask was taken for one drawn on the pixels as {drawn_on}"


def resize_pair(case: Case, pair: Pair, image_size: int) -> tuple[Image.Image, np.ndarray]:
    """Resize a pair to a square: RGB image, and mask with some foreground left in it."""
    mask = resize_mask(pair.mask, image_size)
    if not (mask == FOREGROUND).any():
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


def fits_size(mask: tuple[int, ...], image: tuple[int, ...], may_be_scaled: bool) -> bool:
    """Whether a mask has its image's size, or is it scaled, to the pixel; both (H, W)."""
    if may_be_scaled:
        return abs(mask[0] * image[1] - mask[1] * image[0]) <= max(*mask, *image)
    return mask == image


def _names_of(case: Case) -> str:
    return " and ".join(str(path) for path in case.masks)
