"""Outlines drawn on pictures, pixel by pixel in milliseconds, and sheets of slices."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageColor, ImageDraw
from scipy import ndimage

from wavegms.figures.colours import PREDICTION

_TILE = 256

_COLUMNS, _SHOWN = 4, 12

_DASH, _LINE = 7, 14  # pixels


def draw_contour(
    image: np.ndarray,
    mask: np.ndarray,
    colour: str = PREDICTION,
    dashed: bool = False,
    reach: int | None = None,
) -> np.ndarray:
    """Draws the border of a mask, half inside and half outside, between dark edges.

    The line reaches that many pixels to either side, by default one or more, growing with the image
    so that it is seen when that is shown smaller. The edges are for skin, which is nearly as
    orange. Where a mask reaches the border of the image, its contour runs along it.

    The image is uint8 (H, W, 3), the mask bool (H, W); the image given is left as it is.
    """
    reach = reach or max(1, round(min(mask.shape) / 400))
    edge = max(1, reach // 2)
    drawn = image.copy()
    for distance, paint in ((reach + edge, "black"), (reach, colour)):
        border = ndimage.morphological_gradient(
            mask.astype(np.uint8), size=2 * distance + 1, mode="constant", cval=0
        )
        line = border > 0
        if dashed and paint == colour:
            rows, columns = np.indices(line.shape)
            line &= (rows + columns) // _DASH % 3 > 0
        drawn[line] = ImageColor.getrgb(paint)
    return drawn


def draw_contours(
    image: np.ndarray, labels: np.ndarray, colours: Sequence[str], **style: Any
) -> np.ndarray:
    """`draw_contour` of each class of a label map (H, W), 0 or its number, in its colour."""
    for value, colour in enumerate(colours, 1):
        if (labels == value).any():
            image = draw_contour(image, labels == value, colour, **style)
    return image


def draw_classes(
    image: np.ndarray, labels: np.ndarray, names: Sequence[str], colours: Sequence[str]
) -> np.ndarray:
    """Draws the border of each class of a label map (H, W) in its colour, with a legend below.

    The picture is as wide as the image, uint8 (H, W, 3), or as its legend.
    """
    return _with_legend(draw_contours(image, labels, colours), names, colours)


def _with_legend(image: np.ndarray, names: Sequence[str], colours: Sequence[str]) -> np.ndarray:
    pen = ImageDraw.Draw(Image.new("RGB", (1, 1)))
    width = max(_LINE + pen.textlength(name) + 4 for name in names)
    size = max(image.shape[1], math.ceil(width)), image.shape[0] + _LINE * len(names)
    picture = Image.new("RGB", size, "black")
    picture.paste(Image.fromarray(image), (0, 0))
    pen = ImageDraw.Draw(picture)
    for line, (name, colour) in enumerate(zip(names, colours, strict=True)):
        top = image.shape[0] + _LINE * line
        pen.rectangle((3, top + 3, _LINE - 4, top + _LINE - 4), fill=colour)
        pen.text((_LINE, top + 1), name, fill="white")
    return np.asarray(picture)


def draw_slices(
    slices: Sequence[np.ndarray],
    labels: np.ndarray,
    spacing: tuple[float, float],
    numbers: Sequence[int],
    names: Sequence[str] = (),
    colours: Sequence[str] = (PREDICTION,),
) -> np.ndarray:
    """A sheet of slices in true proportions, spread evenly over those with a mask, or over all.

    Slices are uint8 (H, W) each and the masks uint8 (slices, H, W), 0 or the number of a class;
    `spacing` is the distance of rows and of columns in any common unit, and `numbers` is written on
    the slices. At most twelve are shown, as one picture, uint8 (height, width, 3), with a legend
    below if classes have names.
    """
    found = np.flatnonzero(labels.any(axis=(1, 2)))
    first, last = (found[0], found[-1]) if len(found) else (0, len(labels) - 1)
    shown = np.unique(np.linspace(first, last, min(_SHOWN, last - first + 1)).round().astype(int))
    size = np.array(labels.shape[1:]) * spacing
    height, width = np.maximum(1, (size * _TILE / size.max()).round().astype(int))
    columns = min(_COLUMNS, len(shown))
    rows = -(-len(shown) // columns)
    sheet = Image.new("RGB", (columns * width, rows * height))
    pen = ImageDraw.Draw(sheet)
    for place, index in enumerate(shown):
        tile = Image.fromarray(slices[index]).resize((width, height), Image.Resampling.BILINEAR)
        mask = Image.fromarray(labels[index]).resize((width, height), Image.Resampling.NEAREST)
        drawn = draw_contours(np.asarray(tile.convert("RGB")), np.asarray(mask), colours)
        x, y = place % columns * width, place // columns * height
        sheet.paste(Image.fromarray(drawn), (x, y))
        text = {"fill": "white", "stroke_width": 1, "stroke_fill": "black"}
        pen.text((x + 4, y + 3), str(numbers[index]), **text)
    picture = np.asarray(sheet)
    return _with_legend(picture, names, colours) if names else picture
