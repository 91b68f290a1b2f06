"""Images: from a file that may be broken to an 8-bit RGB image or a boolean mask, at any size.

Nothing here knows about datasets, so that preparation and inference treat an image alike.
"""

import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import Image, ImageOps

from wavegms.errors import InputError, first_line

# Others are not even tried. Pillow also knows formats that are programs: it hands EPS, under
# whatever name, to Ghostscript, which runs it.
FORMATS = ("PNG", "JPEG", "BMP", "TIFF", "WEBP", "GIF")

# A hundred megapixels is 300 MB of RGB: more than any 2-D image of these modalities has, and little
# enough that a decompression bomb cannot take the machine down.
MAX_PIXELS = 100_000_000

# JPEG's own limit. Pillow takes many times an image's size for one that is all rows.
MAX_SIDE = 65_535

_Pixels = TypeVar("_Pixels")

# `warnings.catch_warnings` changes the state of the whole process; images are opened by threads.
_opening = threading.Lock()


def open_image(path: Path) -> Image.Image:
    """Open and fully decode an image; of an animated file, the first frame.

    The content decides, not the ending of the name.
    """
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
            image.load()
            return image.copy()
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


# 65535 = 255 · 257, so dividing by 257 maps one range onto the other; 128 rounds.
_SIXTEEN_TO_EIGHT_BIT = ((np.arange(65536) + 128) // 257).astype(np.uint8)


def as_rgb(image: Image.Image) -> Image.Image:
    """Turn an image into 8-bit RGB, upright.

    Grey is repeated to three channels, a palette is replaced by its colours, 16-bit grey is scaled
    linearly from 0..65535 to 0..255, and the orientation noted in EXIF is applied. Transparency is
    dropped, not composed: a medical image has no background to show through. The modes F and I are
    refused, as they have no defined range.
    """
    image = _upright(image)
    if image.mode.startswith("I;16"):
        image = Image.fromarray(_SIXTEEN_TO_EIGHT_BIT[np.asarray(image)])
    if image.mode == "P":
        # Straight to RGB, PIL would warn about a palette with transparency.
        image = image.convert("RGBA")
    if image.mode not in ("1", "L", "LA", "RGB", "RGBA", "CMYK"):
        raise InputError(
            f"An image of mode {image.mode} has no defined range of values: "
            "save it as 8-bit or 16-bit grey, or as 8-bit RGB."
        )
    return image.convert("RGB")


def as_mask(image: Image.Image) -> np.ndarray:
    """Read an image as a boolean mask (H, W), True for foreground, of which there may be none.

    Colour channels are combined by their maximum and transparency is ignored; a palette counts by
    its colours. Published masks come both as black and white (perhaps with grey edges) and as label
    maps 0, 1, 2, ...: where any value lies in the upper half of the range, foreground is the upper
    half; otherwise foreground is everything above zero. EXIF orientation is applied as for images.
    """
    image = _upright(image)
    if image.mode == "P":
        image = image.convert("RGBA")
    if image.mode == "1":
        return np.asarray(image).astype(bool)
    values = np.asarray(image)
    if image.mode.startswith("I;16"):
        half = 32767
    elif image.mode in ("L", "LA", "RGB", "RGBA"):
        half = 127
    else:
        raise InputError(
            f"A mask of mode {image.mode} cannot be read: save it as 8-bit grey with 0 for "
            "background and 255 for foreground."
        )
    if image.mode in ("LA", "RGBA"):
        values = values[..., :-1]
    if values.ndim == 3:
        values = values.max(axis=-1)
    return values > half if (values > half).any() else values > 0


def resize_image(image: Image.Image, size: int | tuple[int, int]) -> Image.Image:
    """Resize an image (RGB or L) to a square or to (width, height), antialiased and bilinear.

    PIL's bilinear filter widens with the reduction, as torch's does with `antialias=True`; without
    it, a reduction by four would look at one pixel in four and speckle would turn into noise.
    """
    return image.resize(_pair(size), Image.Resampling.BILINEAR)


def resize_mask(mask: np.ndarray, size: int | tuple[int, int]) -> np.ndarray:
    """Resize a boolean mask (H, W) by the nearest pixel, so that it stays binary."""
    grey = Image.fromarray(mask.astype(np.uint8) * 255)
    return np.asarray(grey.resize(_pair(size), Image.Resampling.NEAREST)) > 127


def _pair(size: int | tuple[int, int]) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else size


def _upright(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except Exception as error:  # the parsers of EXIF raise whatever a broken block leads them to
        raise InputError(
            f"The EXIF block cannot be read ({error}): save the image again without it."
        ) from error
