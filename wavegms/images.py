"""Images: from a file that may be broken to an 8-bit RGB image or a mask, at any size.

Nothing here knows about datasets, so that preparation and inference treat an image alike. What a
dataset's files have in common is handed over: the scale of its images, the rule of its masks.
"""

import re
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar, get_args

import numpy as np
from PIL import Image, ImageOps

from wavegms.errors import InputError, first_line
from wavegms.variants import Context, Plane

# Others are not even tried. Pillow also knows formats that are programs: it hands EPS, under
# whatever name, to Ghostscript, which runs it.
FORMATS = ("PNG", "JPEG", "BMP", "TIFF", "WEBP", "GIF")

# A hundred megapixels is 300 MB of RGB: more than any 2-D image of these modalities has, and little
# enough that a decompression bomb cannot take the machine down.
MAX_PIXELS = 100_000_000

# JPEG's own limit. Pillow takes many times an image's size for one that is all rows.
MAX_SIDE = 65_535

# What a pixel of a mask is. An ignored one was not annotated: it counts neither in loss nor in
# metrics. Where there are several classes, 1 to K, it is K + 1.
BACKGROUND, FOREGROUND, IGNORED = 0, 1, 2


def of_class(kinds: np.ndarray, classes: int = 1) -> np.ndarray:
    """Whether pixels of these kinds are of any class, bool."""
    return (kinds > BACKGROUND) & (kinds <= classes)


# So few grey levels that are left of four times as many are next to nothing to see.
_FEW_LEVELS = 64

# Where it is noted that a file has 16 bits a colour, of which Pillow reads the upper 8.
DEEP = "16 bits a colour"

# Where EXIF says how a camera was held, and where it is kept once an image was turned.
_ORIENTATION, _TURNED = 0x0112, "turned by"

_Pixels = TypeVar("_Pixels")

# `warnings.catch_warnings` changes the state of the whole process; images are opened by threads.
_opening = threading.Lock()


def open_image(path: Path) -> Image.Image:
    """Open and fully decode an image of one page; the content decides, not the name's ending.

    A file of several pages is refused: none of them may get lost without a word. Previews behind
    an image, as telephones and slide scanners store them, are no pages.
    """
    with _opened(path) as image:
        orientation = image.getexif().get(_ORIENTATION, 1) if image.format == "TIFF" else 1
        deep = image.mode in ("RGB", "RGBA", "LA") and any(";16" in str(t) for t in image.tile)
        image.load()
        copy = image.copy()
        # Pillow turns a TIFF as it loads it, and forgets that it did
        copy.info[_TURNED] = orientation
        copy.info[DEEP] = deep
        return copy


def peek(path: Path) -> tuple[str, int]:
    """An image's mode, and the orientation of EXIF as `orientation_of`, without its pixels."""
    with _opened(path) as image:
        return image.mode, orientation_of(image)


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    path = Path(path)
    try:
        if not path.is_file():
            raise InputError(f"{path} does not exist or is not a file: put the image there.")
        if path.stat().st_size == 0:
            raise InputError(f"{path} is empty (0 bytes): replace it with an intact copy.")
        with _opening, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the size is judged below, by an error
            image = Image.open(path, formats=FORMATS)
        with image:
            if image.width * image.height > MAX_PIXELS or max(image.size) > MAX_SIDE:
                raise Image.DecompressionBombError
            pages = _count_pages(image)
            if pages > 1:
                raise InputError(
                    f"{path} has {pages} pages: save each that is meant as a file of its own."
                )
            yield image
    except InputError:
        raise
    except Image.DecompressionBombError as error:
        raise InputError(
            f"{path} has more than {MAX_PIXELS // 1_000_000} million pixels or a side of more than "
            f"{MAX_SIDE}: scale it down before use."
        ) from error
    except Image.UnidentifiedImageError as error:
        raise InputError(
            f"{path} cannot be read as an image (no known image format): replace it with an intact "
            f"copy, saved as {', '.join(FORMATS[:-1])} or {FORMATS[-1]}."
        ) from error
    except Exception as error:  # decoders raise whatever a damaged file leads them to
        raise InputError(
            f"{path} cannot be read as an image ({first_line(error)}): "
            "replace it with an intact copy."
        ) from error


def read_image(path: Path, convert: Callable[[Image.Image], _Pixels]) -> tuple[_Pixels, str]:
    """Open and convert an image; whatever is wrong with it is said with the file's name."""
    image = open_image(path)
    try:
        return convert(image), image.mode
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def _count_pages(image: Image.Image) -> int:
    """How many pages or frames an image has, previews left out."""
    frames = getattr(image, "n_frames", 1)
    # a JPEG of a telephone (MPO) has a preview or a depth map behind the image
    if image.format in ("JPEG", "MPO"):
        return 1
    if image.format != "TIFF":
        return frames
    # ImageJ describes large stacks so, and gives them one directory; 270, ImageDescription
    stack = re.search(r"(?m)^ImageJ=(?s:.*)^images=(\d+)$", str(image.tag_v2.get(270, "")))
    if stack and frames == 1:
        return int(stack[1])
    pages, (width, height) = 1, image.size
    for number in range(1, frames):
        image.seek(number)
        across, down = image.size
        smaller = across < width and abs(across * height - down * width) < max(width, height)
        # 254, NewSubfileType: the first bit is set where a page is another one made smaller
        pages += not (smaller or int(image.tag_v2.get(254, 0)) & 1)
    image.seek(0)
    return pages


Ranges = tuple[tuple[int, int], ...]


def parse_ranges(values: Sequence[int | str]) -> Ranges:
    """Grey values as they are written, such as 1 or "128-255", both ends included."""
    ranges = []
    for value in values:
        match = re.fullmatch(r"([0-9]{1,5})(?:-([0-9]{1,5}))?", str(value))
        low, high = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if not low <= high <= 65535:
            raise ValueError(
                f"{value!r} is no grey value: write one from 0 to 65535, or a range such as 128-255"
            )
        ranges.append((low, high))
    return tuple(sorted(ranges))


def written_ranges(ranges: Ranges) -> str:
    """Ranges as `parse_ranges` takes them, with blanks between."""
    return " ".join(f"{low}-{high}" if low < high else str(low) for low, high in ranges)


@dataclass(frozen=True)
class MaskRule:
    """Which values of a dataset's masks are foreground, and which are to be ignored.

    `foreground` is by depth, 8 or 16 bits. With `alpha`, the mask of a file that has an alpha
    channel is there, and not in its colours.
    """

    foreground: Mapping[int, Ranges]
    ignored: Ranges = ()
    alpha: bool = False
    # Of several classes in label maps: the name of each and its values, in the order of numbers.
    classes: tuple[tuple[str, Ranges], ...] = ()

    def __str__(self) -> str:
        if self.classes:
            return ", ".join(f"{name} {written_ranges(ranges)}" for name, ranges in self.classes)
        several = len(self.foreground) > 1
        parts = [
            f"{written_ranges(ranges)}{f' of {depth} bits' if several else ''}"
            for depth, ranges in sorted(self.foreground.items())
        ]
        return ", ".join(parts) + (" in alpha" if self.alpha else "")

    def of(self, values: np.ndarray) -> np.ndarray:
        """Each pixel's kind, uint8, from grey values (H, W)."""
        if self.classes:
            return self._labels(values)
        kinds = np.zeros(1 << _depth_of(values), np.uint8)
        for low, high in self.foreground.get(_depth_of(values), ()):
            kinds[low : high + 1] = FOREGROUND
        for low, high in self.ignored:
            kinds[low : high + 1] = IGNORED
        return kinds[values]

    def _labels(self, values: np.ndarray) -> np.ndarray:
        none = len(self.classes) + 2
        kinds = np.full(1 << _depth_of(values), none, np.uint8)
        kinds[0] = BACKGROUND
        named = [*(ranges for _, ranges in self.classes), self.ignored]
        for kind, ranges in enumerate(named, 1):
            for low, high in ranges:
                kinds[low : high + 1] = kind
        found = kinds[values]
        if (odd := values[found == none]).size:
            raise InputError(
                f"it has the value {odd[0]} ({odd.size / values.size:.2g} of its pixels), which is "
                f"no class (classes are {self}): name it among them, or let it be ignored."
            )
        return found


@dataclass(frozen=True)
class VolumeRule:
    """How a dataset's volumes became images: the plane of their slices, and their greys.

    Of each volume by itself, the two percentiles of all its voxels become 0 and 255. With the
    context `neighbours`, red, green and blue of an image are the slices below, at and above.
    """

    plane: Plane
    percentiles: tuple[float, float] = (0.5, 99.5)
    context: Context = "none"

    def __str__(self) -> str:
        low, high = self.percentiles
        around = "" if self.context == "none" else f":{self.context}"
        return f"{self.plane}:{low:g}-{high:g}{around}"

    @classmethod
    def parse(cls, text: str) -> "VolumeRule | None":
        """From what `str` gives; None for anything else."""
        match = re.fullmatch(
            rf"({'|'.join(get_args(Plane))}):([0-9.]{{1,6}})-([0-9.]{{1,6}})(:neighbours)?", text
        )
        try:
            plane, low, high = match[1], float(match[2]), float(match[3])
        except (TypeError, ValueError):
            return None
        context = "neighbours" if match[4] else "none"
        return cls(plane, (low, high), context) if low < high <= 100 else None


@dataclass(frozen=True)
class Scale:
    """Which grey values of a dataset's images become 0 and 255, by depth, 8 or 16 bits.

    A depth that is not named was not among the dataset's images: 8 bits are then taken as they
    are, and 16 bits from those bits that a file uses. Of volumes, each has a scale of its own.
    """

    ranges: Mapping[int, tuple[int, int]] = field(default_factory=dict)
    volumes: VolumeRule | None = None

    def __str__(self) -> str:
        parts = [f"{depth}:{low}-{high}" for depth, (low, high) in self.items()]
        return " ".join([*parts, str(self.volumes)] if self.volumes else parts)

    @classmethod
    def parse(cls, text: str) -> "Scale":
        """From what `str` gives; a ValueError for anything else."""
        ranges, volumes = {}, None
        for part in text.split():
            if rule := VolumeRule.parse(part):
                volumes = rule
                continue
            match = re.fullmatch(r"(8|16):([0-9]{1,5})-([0-9]{1,5})", part)
            if not match or not int(match[2]) < int(match[3]) < 1 << int(match[1]):
                raise ValueError("that is no scale of grey values")
            ranges[int(match[1])] = int(match[2]), int(match[3])
        return cls(ranges, volumes)

    @property
    def context(self) -> Context:
        """What an image shows beside a slice; nothing where it is a picture."""
        return self.volumes.context if self.volumes else "none"

    def items(self) -> list[tuple[int, tuple[int, int]]]:
        """Depths with their ranges, in order."""
        return sorted(self.ranges.items())

    def range_of(self, image: Image.Image) -> tuple[int, int] | None:
        """The range for one image; None where its values are taken as they are."""
        depth = depth_of_mode(image.mode)
        if depth == 16 and depth not in self.ranges:
            return used_range(*image.getextrema())
        return self.ranges.get(depth)

    def lies_outside(self, image: Image.Image) -> str:
        """Where an image does not fit, in words that follow its name; empty if it does."""
        depth = depth_of_mode(image.mode)
        known = self.ranges.get(depth)
        extremes = np.reshape(image.getextrema(), (-1, 2))
        low, high = int(extremes[:, 0].min()), int(extremes[:, 1].max())
        if known and (low < known[0] or high > known[1]):
            return (
                f"has grey values from {low} to {high}, outside {known[0]} to {known[1]} of the "
                "images that the model was trained on: what lies outside is cut off"
            )
        if known and 8 * (high - low) < known[1] - known[0]:
            return (
                f"has grey values from {low} to {high} only, where the model takes {known[0]} for "
                f"black and {known[1]} for white: it sees next to nothing"
            )
        if image.info.get(DEEP) and high < 128:
            return (
                f"has 16 bits a colour, of which only the upper 8 are read, at most {high} of 255: "
                "save it as 8-bit colour, scaled to what it uses"
            )
        if depth == 16 and not known:
            used = used_range(low, high)
            return (
                f"has 16 bits, the images that the model was trained on had 8: its values from "
                f"{used[0]} to {used[1]} were taken for black to white"
            )
        return ""

    def loses(self, image: Image.Image, rgb: Image.Image) -> str:
        """What of an image's greys is lost in `rgb`, in words that follow its name, if it is much.

        Many greys became few, as where others of the dataset have more bits, or burnt-in marks; or
        more than a hundredth is cut off.
        """
        depth, shown = depth_of_mode(image.mode), np.asarray(rgb)
        levels = len(np.unique(shown)) if depth == 16 else int(np.ptp(shown)) + 1
        if depth == 8:
            few = 1 < levels <= _FEW_LEVELS // 2
            return f"uses {levels} of 256 grey levels: it is nearly of one grey" if few else ""
        stored = np.asarray(image)
        used, (low, high) = len(np.unique(stored)), self.range_of(image)
        if levels <= _FEW_LEVELS and used >= 4 * levels:
            return (
                f"has {used} grey levels from {stored.min()} to {stored.max()}, of which {levels} "
                f"are left where {low} is black and {high} white"
            )
        outside = float(((stored < low) | (stored > high)).mean())
        return f"is cut off outside {low} to {high}, {outside:.0%} of it" if outside > 0.01 else ""


# As models of before scales were kept saw every image.
FULL_SCALE = Scale({16: (0, 65535)})


def used_range(low: int, high: int, least_bits: int = 8) -> tuple[int, int]:
    """The range that values from `low` to `high` were meant to have.

    That is whole bits, such as 0 to 4095; percent, where there may be as few bits; or, where values
    keep far from 0, as in CT with an offset, no more than they take.
    """
    if 0 < high - low <= 2 * low:
        return low, high
    if least_bits < 7 and 64 <= high <= 100:
        return 0, 100
    return 0, (1 << max(least_bits, high.bit_length())) - 1


def depth_of_mode(mode: str) -> int:
    """Bits of each channel, 8 or 16, in Pillow's modes that are taken."""
    return 16 if mode.startswith("I;16") else 8


def _depth_of(values: np.ndarray) -> int:
    return 16 if values.dtype.itemsize == 2 else 8


def grey_table(low: int, high: int, depth: int) -> np.ndarray:
    """What each value becomes where `low` becomes 0 and `high` 255: uint8 (2**depth,), rounded."""
    inside = np.arange(1 << depth, dtype=np.int64).clip(low, high) - low
    return ((inside * 510 + high - low) // (2 * (high - low))).astype(np.uint8)


def as_rgb(image: Image.Image, scale: Scale = FULL_SCALE) -> Image.Image:
    """Turn an image into 8-bit RGB, upright.

    Grey is repeated to three channels, a palette is replaced by its colours, values are scaled
    linearly as `scale` says, and the orientation noted in EXIF is applied. Transparency is
    dropped, not composed: a medical image has no background to show through. The modes F and I are
    refused, as they have no defined range.
    """
    image = upright(image)
    require_range(image)
    used = scale.range_of(image)
    if depth_of_mode(image.mode) == 16:
        image = Image.fromarray(grey_table(*used, 16)[np.asarray(image)])
        used = None
    if image.mode == "P":
        # Straight to RGB, PIL would warn about a palette with transparency.
        image = image.convert("RGBA")
    image = image.convert("RGB")
    return image.point(grey_table(*used, 8).tolist() * 3) if used else image


def require_range(image: Image.Image) -> None:
    """Refuse an image whose mode has no defined range of values."""
    if image.mode not in ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK") and not image.mode.startswith(
        "I;16"
    ):
        raise InputError(
            f"An image of mode {image.mode} has no defined range of values: "
            "save it as 8-bit or 16-bit grey, or as 8-bit RGB."
        )


def mask_values(image: Image.Image) -> tuple[np.ndarray, np.ndarray | None]:
    """A mask's grey values, uint8 or uint16 (H, W), and its alpha channel, None without one.

    Colour channels are combined by their maximum; a palette counts by its colours; black and white
    of one bit are 0 and 255. EXIF orientation is applied as for images.
    """
    image = upright(image)
    if image.mode == "P":
        image = image.convert("RGBA" if "transparency" in image.info else "RGB")
    if image.mode == "1":
        image = image.convert("L")
    if image.mode.startswith("I;16"):
        return np.asarray(image).astype(np.uint16), None
    if image.mode not in ("L", "LA", "RGB", "RGBA"):
        raise InputError(
            f"A mask of mode {image.mode} cannot be read: save it as 8-bit grey with 0 for "
            "background and 255 for foreground."
        )
    values, alpha = np.asarray(image), None
    if image.mode in ("LA", "RGBA"):
        values, alpha = values[..., :-1], values[..., -1]
    return (values.max(axis=-1) if values.ndim == 3 else values), alpha


def _label_values(image: Image.Image) -> np.ndarray:
    if image.mode == "P":
        return np.asarray(upright(image))
    values, _ = mask_values(image)
    if image.mode in ("RGB", "RGBA") and np.ptp(np.asarray(image)[..., :3], axis=-1).any():
        raise InputError(
            "a label map in colours cannot be told apart: save it as grey, each pixel with the "
            "number of its class."
        )
    return values


def as_mask(image: Image.Image, rule: MaskRule) -> np.ndarray:
    """What each pixel of a mask is, uint8 (H, W); there may be no foreground.

    A label map is grey, or has a palette, of which the numbers count and not the colours.
    """
    if rule.classes:
        return rule.of(_label_values(image))
    values, alpha = mask_values(image)
    return rule.of(alpha if rule.alpha and alpha is not None else values)


def resize_image(image: Image.Image, size: int | tuple[int, int]) -> Image.Image:
    """Resize an image (RGB or L) to a square or to (width, height), antialiased and bilinear.

    PIL's bilinear filter widens with the reduction, as torch's does with `antialias=True`; without
    it, a reduction by four would look at one pixel in four and speckle would turn into noise.
    """
    return image.resize(_pair(size), Image.Resampling.BILINEAR)


def resize_mask(mask: np.ndarray, size: int | tuple[int, int]) -> np.ndarray:
    """Resize a mask (H, W), boolean or of pixels' kinds, by the nearest pixel: no new value."""
    grey = Image.fromarray(mask.astype(np.uint8))
    return np.asarray(grey.resize(_pair(size), Image.Resampling.NEAREST)).astype(mask.dtype)


def _pair(size: int | tuple[int, int]) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else size


def orientation_of(image: Image.Image) -> int:
    """How EXIF turns the stored pixels of an image, opened or loaded: 2 to 8, or 1: not at all."""
    try:
        orientation = image.info.get(_TURNED, 1)
        orientation = image.getexif().get(_ORIENTATION, 1) if orientation == 1 else orientation
    except Exception as error:  # the parsers of EXIF raise whatever a broken block leads them to
        raise _broken_exif(error) from error
    return orientation if orientation in range(2, 9) else 1


def turned(values: np.ndarray, orientation: int) -> np.ndarray:
    """An array (H, W) turned as EXIF's orientation turns an image."""
    image = Image.fromarray(values)
    image.getexif()[_ORIENTATION] = orientation
    return np.asarray(upright(image))


def upright(image: Image.Image) -> Image.Image:
    """An image turned as its EXIF orientation says."""
    try:
        return ImageOps.exif_transpose(image)
    except Exception as error:
        raise _broken_exif(error) from error


def _broken_exif(error: Exception) -> InputError:
    return InputError(f"The EXIF block cannot be read ({error}): save the image again without it.")
