"""Predictions drawn on what they were predicted from, pixel by pixel, for a quick look."""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageColor, ImageDraw
from scipy import ndimage

# the colour of a prediction in wavegms.figures
_COLOUR = ImageColor.getrgb("#ff8c1a")

_TILE = 256

_COLUMNS = 4


def draw_contour(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Draws the border of a mask, half inside and half outside, between dark edges.

    The line is two pixels thick or more and each edge one or more, growing with the image so that
    they are seen when it is shown smaller. The edges are for skin, which is nearly as orange.

    Args:
        image: uint8 (H, W, 3).
        mask: bool (H, W). Where it reaches the border of the image, its contour runs along it.

    Returns:
        uint8 (H, W, 3).
    """
    reach = max(1, round(min(mask.shape) / 400))
    edge = max(1, reach // 2)
    drawn = image.copy()
    for distance, colour in ((reach + edge, (0, 0, 0)), (reach, _COLOUR)):
        border = ndimage.morphological_gradient(
            mask.astype(np.uint8), size=2 * distance + 1, mode="constant", cval=0
        )
        drawn[border > 0] = colour
    return drawn


def draw_slices(
    slices: Sequence[np.ndarray],
    masks: np.ndarray,
    spacing: tuple[float, float],
    numbers: Sequence[int],
    count: int = 12,
) -> np.ndarray:
    """A sheet of slices in true proportions, spread evenly over those with a mask, or over all.

    Args:
        slices: uint8 (H, W) each.
        masks: bool (slices, H, W).
        spacing: distance of rows and of columns, in any common unit.
        numbers: what to write on each slice.
        count: how many slices to show at most.

    Returns:
        uint8 (height, width, 3).
    """
    found = np.flatnonzero(masks.any(axis=(1, 2)))
    first, last = (found[0], found[-1]) if len(found) else (0, len(masks) - 1)
    shown = np.unique(np.linspace(first, last, min(count, last - first + 1)).round().astype(int))
    size = np.array(masks.shape[1:]) * spacing
    height, width = np.maximum(1, (size * _TILE / size.max()).round().astype(int))
    columns = min(_COLUMNS, len(shown))
    rows = -(-len(shown) // columns)
    sheet = Image.new("RGB", (columns * width, rows * height))
    pen = ImageDraw.Draw(sheet)
    for place, index in enumerate(shown):
        tile = Image.fromarray(slices[index]).resize((width, height), Image.Resampling.BILINEAR)
        mask = Image.fromarray(masks[index]).resize((width, height), Image.Resampling.NEAREST)
        drawn = draw_contour(np.asarray(tile.convert("RGB")), np.asarray(mask))
        corner = place % columns * width, place // columns * height
        sheet.paste(Image.fromarray(drawn), corner)
        pen.text((corner[0] + 4, corner[1] + 3), str(numbers[index]), fill="white", stroke_width=1,
                 stroke_fill="black")  # fmt: skip
    return np.asarray(sheet)
