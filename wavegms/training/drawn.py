"""Masks that are drawn, of every size, number and smoothness: what a mask decoder learns from."""

import numpy as np
from numpy.random import Generator
from scipy.ndimage import gaussian_filter

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
