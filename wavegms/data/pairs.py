"""Pairs: an image with its mask, read, checked against each other, and made equally large.

What is wrong with a pair is found here, for preparation and for the check that comes before it.
"""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from PIL import Image
from tqdm import tqdm

from wavegms.data.cases import Case
from wavegms.data.manifest import mask_hash, pixels_hash, write_mask
from wavegms.errors import InputError, listed
from wavegms.images import (
    BACKGROUND,
    MaskRule,
    Scale,
    as_mask,
    as_rgb,
    of_class,
    orientation_of,
    read_image,
    resize_image,
    resize_mask,
    turned,
    written_ranges,
)

# EXIF's orientations that are not undone by themselves.
_BACK = {6: 8, 8: 6}

_Result = TypeVar("_Result")


@dataclass(frozen=True)
class Reading:
    """How the files of a dataset are read."""

    masks: MaskRule
    scale: Scale = field(default_factory=Scale)
    # Whether masks were drawn on the pixels as they are stored, before EXIF turned the image; and
    # where EXIF turns the mask alike.
    stored: bool = False
    stored_alike: bool = True
    evidence: tuple[str, ...] = ()  # a sentence each
    spacing: tuple[float, float] | None = None  # of images whose own is not known, as in `Case`
    # Names of several classes; where `by_folder`, a mask is of the class of the folder it lies in.
    classes: tuple[str, ...] = ()
    by_folder: bool = False

    def numbered(self, kinds: np.ndarray, path: Path) -> np.ndarray:
        """A mask's kinds as those of all classes."""
        if not self.by_folder:
            return kinds
        own = (BACKGROUND, 1 + self.classes.index(path.parent.name), 1 + len(self.classes))
        return np.array(own, np.uint8)[kinds]


@dataclass(frozen=True)
class Pair:
    """One image with its mask at the original size."""

    image: Image.Image  # RGB, upright
    # What each pixel is, uint8 (H, W) of the image's size, with some foreground; all masks joined.
    mask: np.ndarray
    classes: int  # how many the mask may have
    image_mode: str  # PIL's mode of the image file
    mask_modes: tuple[str, ...]  # and of each mask file
    drawn_on: (
        str  # "shown" or "stored" where EXIF turned the image otherwise than the mask, or empty
    )
    said: str  # on grey values that the scale does not fit, in words that follow the image's name


def read_pair(case: Case, reading: Reading, masks_at_another_size: bool = False) -> Pair:
    """Read the files of a case; a mask of another size but the same shape may be scaled.

    Of several masks, a pixel is foreground where one says so, and else ignored where one does; of
    several classes it is of the one whose mask comes last.
    """
    orientation, said, size, drawn_on = 1, "", (0, 0), ""

    def to_rgb(image: Image.Image) -> Image.Image:
        nonlocal orientation, said, size
        orientation = orientation_of(image)
        rgb = as_rgb(image, reading.scale)
        said, size = reading.scale.loses(image, rgb), (rgb.height, rgb.width)
        return rgb

    def to_mask(image: Image.Image) -> np.ndarray:
        nonlocal drawn_on
        ways, alike = mask_ways(image, orientation, reading.masks)
        stored = reading.stored_alike if alike else reading.stored
        fits = [fits_size(way.shape, size, masks_at_another_size) for way in ways]
        if fits[not stored] > fits[stored]:  # one may be turned where most are not
            stored = not stored
        if ways[0] is not ways[1] and not (alike and stored):
            drawn_on = "stored" if stored else "shown"
        return ways[stored]

    image, image_mode = read_image(case.image, to_rgb)
    mask, mask_modes, classes = None, [], len(reading.classes) or 1
    for path in _in_order(case, reading):
        part, mode = read_image(path, to_mask)
        part = reading.numbered(part, path)
        mask_modes.append(mode)
        if not fits_size(part.shape, (image.height, image.width), masks_at_another_size):
            raise InputError(
                f"{path} is {part.shape[1]}×{part.shape[0]} pixels but its image {case.image.name} "
                f"is {image.width}×{image.height}{_turned_by(drawn_on)}: replace the one that is "
                "wrong."
            )
        if part.shape != (image.height, image.width):
            part = resize_mask(part, (image.width, image.height))
        mask = part if mask is None else _join(mask, part, classes)
    if not of_class(mask, classes).any():
        raise InputError(
            f"{_names_of(case)} has no foreground (values {reading.masks}): correct the mask or "
            "remove the image with its mask."
        )
    return Pair(image, mask, classes, image_mode, tuple(mask_modes), drawn_on, said)


def _in_order(case: Case, reading: Reading) -> Sequence[Path]:
    """The masks of a case, those of later classes last."""
    if not reading.by_folder:
        return case.masks
    return sorted(case.masks, key=lambda path: reading.classes.index(path.parent.name))


def mask_ways(
    mask: Image.Image, orientation: int, rule: MaskRule
) -> tuple[tuple[np.ndarray, np.ndarray], bool]:
    """A mask as drawn on the image as shown, and as stored before `orientation` turned it.

    The one array twice where neither is turned. Where EXIF turns the mask, too, it is taken as it
    shows itself, or as its stored pixels lie; the last is true if EXIF turns both alike, and
    may have been copied.
    """
    part, own = as_mask(mask, rule), orientation_of(mask)
    if own == orientation == 1:
        return (part, part), False
    plain = turned(part, _BACK.get(own, own))
    if own == orientation:
        return (plain, part), True
    return (part, turned(plain, orientation)), False


def _join(one: np.ndarray, other: np.ndarray, classes: int) -> np.ndarray:
    joined = np.where(of_class(other, classes), other, one)
    joined[(joined == BACKGROUND) & (other > classes)] = classes + 1
    return joined


def _turned_by(drawn_on: str) -> str:
    if not drawn_on:
        return ""
    return f", once EXIF turned it; its mask was taken for one drawn on the pixels as {drawn_on}"


def resize_pair(case: Case, pair: Pair, image_size: int) -> tuple[Image.Image, np.ndarray]:
    """Resize a pair to a square: RGB image, and mask with some foreground left in it."""
    mask = resize_mask(pair.mask, image_size)
    if not of_class(mask, pair.classes).any():
        raise InputError(
            f"{_names_of(case)} has foreground too small to be left at image_size {image_size}: "
            "set a larger image_size or remove the image with its mask."
        )
    return resize_image(pair.image, image_size), mask


def write_pair(
    folder: Path,
    id: str,
    image: Image.Image,
    mask: np.ndarray,
    original: np.ndarray,
    reading: Reading,
) -> dict[str, Any]:
    """Writes a prepared pair, and the mask as it was where that had another size.

    Gives what both say of its row of the manifest; the rest is where they came from.
    """
    classes = len(reading.classes) or 1
    image.save(folder / "images" / f"{id}.png")
    write_mask(folder / "masks" / f"{id}.png", mask, classes)
    if original.shape != mask.shape:
        (folder / "originals").mkdir(exist_ok=True)
        write_mask(folder / "originals" / f"{id}.png", original, classes)
    return {
        "id": id,
        "original_width": original.shape[1],
        "original_height": original.shape[0],
        "mask_area": float(of_class(mask, classes).mean()),
        "pixels": pixels_hash(np.asarray(image), mask),
        "foreground": str(reading.masks),
        "ignored": written_ranges(reading.masks.ignored),
        "scale": str(reading.scale),
        "evidence": "; ".join(reading.evidence),
        "original_pixels": mask_hash(original),
        "classes": " ".join(reading.classes),
    }


def for_each_case(
    function: Callable[[Case], _Result], cases: Sequence[Case], description: str, threads: int = 8
) -> tuple[list[_Result], list[str]]:
    """Call a function for every case, in threads and with a progress bar.

    A case is in the one list by its result or in the other by the sentence of its InputError.
    """
    results, problems = [], []
    # Decoding and resizing release the interpreter lock; more threads than this wait for the disk.
    with ThreadPoolExecutor(max_workers=min(threads, os.cpu_count() or 1)) as pool:
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


@dataclass(frozen=True)
class Seen:
    """What there is to say of a pair once it was read and made smaller."""

    size: tuple[int, int]  # of the source image
    image_mode: str
    mask_modes: tuple[str, ...]
    area: float  # shares of the smaller mask
    ignored: float
    surrounds: bool  # foreground is most of the mask and of its border, as background should
    said: str  # see `Pair`
    shape: np.ndarray  # the mask at 16 pixels
    classes: frozenset[int]  # numbers of those that the smaller mask has

    @classmethod
    def of(cls, pair: Pair, mask: np.ndarray) -> "Seen":
        """Of a pair and its smaller mask."""
        inside = of_class(mask, pair.classes)
        border = np.concatenate([inside[0], inside[-1], inside[1:-1, 0], inside[1:-1, -1]])
        return cls(
            pair.image.size,
            pair.image_mode,
            pair.mask_modes,
            float(inside.mean()),
            float((mask > pair.classes).mean()),
            # several organs may well fill an image
            bool(pair.classes == 1 and inside.mean() > 0.5 and border.mean() > 0.5),
            pair.said,
            resize_mask(inside, 16),
            frozenset(np.unique(mask[inside]).tolist()),
        )


def remarks(cases: Sequence[Case], seen: Sequence[Seen], classes: Sequence[str] = ()) -> list[str]:
    """Say what looks wrong in a dataset, though it can be read.

    Masks look as if black and white were exchanged: a lesion may fill its image, but hardly most
    images of a dataset. Masks are all the same. Grey values of some
    images do not fit the one scale of all. A class is in no mask.
    """
    said = []
    for number, name in enumerate(classes, 1):
        if not any(number in one.classes for one in seen):
            said.append(
                f"No mask has a pixel of the class {name} once it is made smaller: correct its "
                "value in reading, or set a larger image_size."
            )
    ids = [case.id for case, one in zip(cases, seen, strict=True) if one.surrounds]
    if 2 * len(ids) > len(cases):
        said.append(
            f"In {len(ids)} of {len(cases)} masks the foreground fills most of the image and of "
            f"its border ({listed(ids)}): if black and white are exchanged, invert the masks."
        )
    shapes = np.mean([one.shape for one in seen], axis=0)
    if len(seen) >= 5 and shapes.mean() > 0.5 and (abs(shapes - 0.5) > 0.45).mean() > 0.95:
        said.append(
            f"All masks show nearly the same {shapes.mean():.0%} of the image: they may be what a "
            "camera sees (a field of view), and not what is to be found in it."
        )
    poor = [(case, one.said) for case, one in zip(cases, seen, strict=True) if one.said]
    if poor:
        first, why = poor[0]
        others = listed([case.image.name for case, _ in poor[1:]])
        also = f" (so do {others})" if others else ""
        said.append(
            f"{len(poor)} of {len(cases)} images do not fit the range of grey values of all: "
            f"{first.image} {why}{also}. If the dataset mixes ranges, scale its images to one, or "
            "make each kind a dataset of its own; paint over marks that were burnt in."
        )
    return said


def fits_size(mask: tuple[int, ...], image: tuple[int, ...], may_be_scaled: bool) -> bool:
    """Whether a mask has its image's size, or is it scaled, to the pixel; both (H, W)."""
    if may_be_scaled:
        return abs(mask[0] * image[1] - mask[1] * image[0]) <= max(*mask, *image)
    return mask == image


def _names_of(case: Case) -> str:
    return " and ".join(str(path) for path in case.masks)
