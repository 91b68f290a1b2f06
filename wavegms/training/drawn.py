"""Masks and pictures that are drawn: what decoder, autoencoder and network can first learn from.

Masks are of every size, number and smoothness. Pictures are textures of random spectra on such
shapes, as those that networks have learned to see from (Baradad et al., "Learning to see by looking
at noise", NeurIPS 2021). Autoencoder and mask decoder see none that imitates a scanner, so that
each stays unseen; a first network sees simulated ultrasound, too.
"""

from collections.abc import Iterator
from itertools import count, islice, product
from pathlib import Path

import numpy as np
from numpy.random import Generator
from PIL import Image
from scipy.ndimage import gaussian_filter

from wavegms.files import replace_folder
from wavegms.phantom.scanner import SCANNERS, simulate
from wavegms.phantom.tissue import Beams, draw_lesions


def draw_mask(rng: Generator, side: int) -> np.ndarray:
    """A mask, bool (side, side): lesions of the phantom, blobs, bars, polygons; some with holes."""
    if rng.random() < 0.05:
        return np.full((side, side), rng.random() < 0.3)
    kinds = (_lesions, _blobs, _polygons)
    mask = kinds[rng.choice(3, p=(0.4, 0.3, 0.3))](rng, side)
    if rng.random() < 0.15:
        mask = mask ^ kinds[rng.integers(3)](rng, side)
    mask = np.rot90(mask, rng.integers(4))
    return mask[:, ::-1] if rng.random() < 0.5 else mask


def draw_picture(rng: Generator, side: int, mask: np.ndarray) -> np.ndarray:
    """A picture around a mask, float32 (3, side, side) in [0, 1]: textures, hardly two alike."""
    grey = rng.random() < 0.5
    picture = _texture(rng, side, grey)
    shapes = [draw_mask(rng, side) for _ in range(rng.integers(4))]
    for shape in (*shapes, mask):
        _paint(rng, picture, shape, grey, blur=2, least=0.2)
    picture *= _speckle(rng, side)
    if rng.random() < 0.2:  # the picture ends before its frame does
        field = np.zeros((side, side))
        top, left = rng.integers(side // 4, size=2)
        bottom, right = side - rng.integers(side // 4, size=2)
        field[top:bottom, left:right] = 1
        picture *= field
    return picture.clip(0, 1).astype(np.float32)


def draw_one_thing(rng: Generator, side: int, mask: np.ndarray) -> np.ndarray:
    """A picture, float32 (3, side, side) in [0, 1], in which the mask is all that is to be seen."""
    grey = rng.random() < 0.5
    picture = _texture(rng, side, grey)
    _paint(rng, picture, mask, grey, blur=1.5, least=0.5)
    return (picture * _speckle(rng, side)).clip(0, 1).astype(np.float32)


def write_drawn(folder: Path, scans: int = 350, pictures: int = 1300, side: int = 96) -> None:
    """Writes `images/` and `masks/` as `add` takes them: what a first network learns from.

    `scans` of each simulated scanner, those without a lesion left out, then as many of
    `draw_one_thing` as make `pictures` in all. None is of a case that the sample has.
    """
    with replace_folder(folder) as fresh:
        for part in ("images", "masks"):
            (fresh / part).mkdir()
        for number, (image, mask) in enumerate(islice(_cases(scans, side), pictures)):
            Image.fromarray(image).save(fresh / "images" / f"{number:05}.png")
            Image.fromarray(np.uint8(mask) * 255).save(fresh / "masks" / f"{number:05}.png")


def _cases(scans: int, side: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    for name, index in product(("phantom_a", "phantom_b"), range(scans)):
        scan = simulate(SCANNERS[name], 77, index)
        if scan.masks:
            yield scan.image, np.logical_or.reduce(scan.masks)
    for number in count():
        rng = np.random.default_rng((8, number))
        mask = draw_mask(rng, side)
        if 0.01 < mask.mean() < 0.5:
            picture = draw_one_thing(rng, side, mask).transpose(1, 2, 0) * 255
            yield picture.round().astype(np.uint8), mask


def _paint(
    rng: Generator, picture: np.ndarray, shape: np.ndarray, grey: bool, blur: float, least: float
) -> None:
    """Covers a shape by another texture, softly, to a share of at least `least`."""
    soft = gaussian_filter(shape.astype(np.float32), rng.uniform(0, blur))
    picture += soft * rng.uniform(least, 1) * (_texture(rng, len(shape), grey) - picture)


def _speckle(rng: Generator, side: int) -> np.ndarray:
    """What of two pictures in five is multiplied by, of the others 1."""
    if rng.random() >= 0.4:
        return np.ones(())
    parts = rng.standard_normal((2, side, side))
    parts = gaussian_filter(parts, (0, *rng.uniform(0.3, 1.5, 2)))
    parts = np.hypot(*parts / parts.std())
    return 1 + rng.uniform(0.2, 1) * (parts / parts.mean() - 1)


def _texture(rng: Generator, side: int, grey: bool) -> np.ndarray:
    """Noise (3, side, side) about a colour; its power falls with some power of the frequency."""
    channels = 1 if grey else 3
    frequencies = np.hypot(np.fft.fftfreq(side)[:, None], np.fft.rfftfreq(side)) + 1 / side
    spectrum = np.fft.rfft2(rng.standard_normal((channels, side, side)))
    noise = np.fft.irfft2(spectrum * frequencies ** -rng.uniform(0.3, 2), s=(side, side))
    noise /= noise.std() + 1e-9
    if not grey:  # mostly of one hue
        noise = noise[:1] + rng.uniform(0, 0.5) * noise
    colour = rng.random() + rng.normal(0, 0.15, (channels, 1, 1))
    return np.broadcast_to(colour + rng.uniform(0.01, 0.2) * noise, (3, side, side)).copy()


def _lesions(rng: Generator, side: int) -> np.ndarray:
    """The phantom's lesions, seen from near or far and anywhere, the border included."""
    zoom = np.exp(rng.uniform(np.log(0.6), np.log(4)))
    field = (max(16, round(side * zoom)),) * 2
    beams = Beams.cover(field, rng.uniform(30, 60), 0.0)
    mask = np.zeros(field, bool)
    for lesion in draw_lesions(rng, beams, field, str(rng.choice(["benign", "malignant"]))):
        mask |= lesion.distance_mm(beams) < 0
    if field[0] <= side:
        top, left = rng.integers(side - field[0] + 1, size=2)
        placed = np.zeros((side, side), bool)
        placed[top : top + field[0], left : left + field[0]] = mask
        return placed
    # a window around a point of the lesion
    inside = np.argwhere(mask) if mask.any() else np.array([[0, 0]])
    middle = inside[rng.integers(len(inside))] - rng.integers(side, size=2)
    top, left = middle.clip(0, field[0] - side)
    return mask[top : top + side, left : left + side]


def _blobs(rng: Generator, side: int) -> np.ndarray:
    """Where a smooth random field is high: any number of parts, any border."""
    scale = np.exp(rng.uniform(np.log(1.5), np.log(side / 4)))
    field = gaussian_filter(rng.standard_normal((side, side)), scale, mode="reflect")
    share = np.exp(rng.uniform(np.log(0.003), np.log(0.95)))
    return field >= np.quantile(field, 1 - share)


def _polygons(rng: Generator, side: int) -> np.ndarray:
    """One to three convex polygons, among them bars that cross the image, as instruments do."""
    rows, columns = np.mgrid[:side, :side] + 0.5
    mask = np.zeros((side, side), bool)
    for _ in range(rng.integers(1, 4)):
        y, x = rng.uniform(0, side, 2)
        size = side * np.exp(rng.uniform(np.log(0.03), np.log(0.5)))
        turn, stretch = rng.uniform(0, np.pi), np.exp(rng.uniform(0, np.log(8)))
        along = np.cos(turn) * (columns - x) + np.sin(turn) * (rows - y)
        across = np.cos(turn) * (rows - y) - np.sin(turn) * (columns - x)
        part = np.ones((side, side), bool)
        corners = rng.integers(3, 9)
        for angle in (np.arange(corners) + rng.uniform(0, 1, corners)) * 2 * np.pi / corners:
            part &= np.cos(angle) * along / stretch + np.sin(angle) * across < size
        mask |= part
    return mask
