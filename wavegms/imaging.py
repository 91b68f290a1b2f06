"""Pixels: from whatever PIL opened to an 8-bit RGB image or a boolean mask, and to another size.

Nothing here knows about files or datasets, so that preparation and inference treat an image alike.
"""

import numpy as np
from PIL import Image, ImageOps

from wavegms.errors import InputError

# 65535 = 255 · 257, so dividing by 257 maps one range onto the other; 128 rounds.
_SIXTEEN_TO_EIGHT_BIT = ((np.arange(65536) + 128) // 257).astype(np.uint8)


def as_rgb(image: Image.Image) -> Image.Image:
    """Turn an image into 8-bit RGB, upright.

    Grey is repeated to three channels, a palette is replaced by its colours, 16-bit grey is scaled
    linearly from 0..65535 to 0..255, and the orientation noted in EXIF is applied. Transparency is
    dropped, not composed: a medical image has no background to show through.

    Args:
        image: An image of mode 1, L, LA, P, RGB, RGBA, CMYK or 16-bit grey (I;16, I;16B, ...).

    Returns:
        The image in mode RGB; width and height are swapped where EXIF says so.

    Raises:
        InputError: The mode has no defined range (F, I) or is not one of the above.
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
    """Read an image as a binary mask.

    Colour channels are combined by their maximum and transparency is ignored; a palette counts by
    its colours. Published masks come both as black and white (perhaps with grey edges) and as label
    maps 0, 1, 2, ...: where any value lies in the upper half of the range, foreground is the upper
    half; otherwise foreground is everything above zero. EXIF orientation is applied as for images.

    Args:
        image: An image of mode 1, L, LA, P, RGB, RGBA or 16-bit grey (I;16, I;16B, ...).

    Returns:
        Boolean array of shape (H, W), True is foreground; it may be empty of foreground.

    Raises:
        InputError: Any other mode.
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
    """Resize an image by antialiased bilinear interpolation.

    PIL's bilinear filter widens with the reduction, as torch's does with `antialias=True`; without
    it, a reduction by four would look at one pixel in four and speckle would turn into noise.

    Args:
        image: An image of mode RGB or L.
        size: Side of a square, or (width, height), in pixels.

    Returns:
        The image at that size, same mode.
    """
    return image.resize(_pair(size), Image.Resampling.BILINEAR)


def resize_mask(mask: np.ndarray, size: int | tuple[int, int]) -> np.ndarray:
    """Resize a binary mask by the nearest pixel, so that it stays binary.

    Args:
        mask: Boolean array of shape (H, W).
        size: Side of a square, or (width, height), in pixels.

    Returns:
        Boolean array of shape (height, width).
    """
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
