"""Simulated volumes: a small MR scanner that does not exist, and what it sees of one organ.

A head is a shell around tissue with dark ventricles and bright vessels; in it lies the organ, a
bent body behind a rounded head, a little brighter than what surrounds it. Signals are drawn on a
grid finer across the slices, averaged over each slice (partial volume), shaded by the coil, and
made magnitudes of complex noise (Rician). Every volume has a range of greys of its own, as MR has.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from numpy.random import PCG64, Generator, SeedSequence
from scipy.ndimage import gaussian_filter
from scipy.spatial.transform import Rotation

from wavegms.files import write_text
from wavegms.phantom.settings import PARTS

# Slices, rows and columns, and their distances, mm.
SHAPE, SPACING = (32, 64, 64), (2.0, 1.0, 1.0)

LABELS = dict(enumerate(("background", *PARTS)))

# Steps across one slice.
_FINE = 3

# Keeps the random numbers of these volumes apart from those of other scanners.
_STREAM = 3_000


@dataclass(frozen=True)
class SimulatedVolume:
    """Voxels, int16, and labels, uint8, of `SHAPE`; and how their axes lie, (3, 3)."""

    voxels: np.ndarray
    labels: np.ndarray
    direction: np.ndarray

    def images(self) -> tuple[sitk.Image, sitk.Image]:
        """The volume and its labels on their grid."""
        made = []
        for values in (self.voxels, self.labels):
            image = sitk.GetImageFromArray(values)
            image.SetSpacing(SPACING[::-1])
            image.SetDirection(self.direction.ravel().tolist())
            image.SetOrigin((-self.direction @ np.array([32.0, 32.0, 32.0])).tolist())
            made.append(image)
        return made[0], made[1]


def simulate_volume(seed: int, index: int) -> SimulatedVolume:
    """One volume; it depends on seed and index alone, so that more can be made later."""
    rng = Generator(PCG64(SeedSequence(seed, spawn_key=(_STREAM, index))))
    z, y, x = _grid()
    turned = _turned(rng, z, y, x)
    inside = _ellipsoid(turned, (0, 0, 0), rng.uniform((29, 27, 25), (34, 30, 29)))
    signal = np.where(inside < 1, 0.45, 0.0) + np.where((inside >= 1) & (inside < 1.25), 0.75, 0)
    texture = gaussian_filter(rng.standard_normal(z.shape), (3, 2.5, 2.5))
    signal += (inside < 1) * 0.05 * texture / texture.std()

    for side in (-1, 1):  # ventricles, darker; they end where the organ may begin
        place = np.array([rng.uniform(-3, 3), rng.uniform(-9, -6), side * rng.uniform(4, 6)])
        signal[_ellipsoid(turned, place, rng.uniform((8, 5, 2), (12, 7, 3.5))) < 1] = 0.22
    for _ in range(rng.integers(3, 7)):  # vessels across the slices, as bright as the organ
        at = rng.uniform(-17, 17, 2)
        signal[np.hypot(turned[1] - at[0], turned[2] - at[1]) < rng.uniform(0.8, 1.4)] = 0.75

    labels = _organ(rng, turned)
    signal[labels > 0] = rng.uniform(0.62, 0.68) + 0.02 * (texture / texture.std())[labels > 0]
    signal = signal.reshape(SHAPE[0], _FINE, *SHAPE[1:]).mean(1)
    # the truth is what fills most of a voxel
    shares = [(labels == n).reshape(SHAPE[0], _FINE, *SHAPE[1:]).mean(1) for n in LABELS]
    shading = gaussian_filter(rng.standard_normal(SHAPE), (8, 14, 14), mode="nearest")
    signal *= np.exp(0.15 * shading / np.abs(shading).max())
    noise = 0.035 * rng.standard_normal((2, *SHAPE))
    magnitude = np.hypot(signal + noise[0], noise[1])
    tilt = Rotation.from_euler("xyz", rng.uniform(-12, 12, 3), degrees=True).as_matrix()
    return SimulatedVolume(
        (magnitude * rng.uniform(200, 3000)).round().astype(np.int16),
        np.argmax(shares, 0).astype(np.uint8),
        tilt @ np.diag([-1.0, -1.0, 1.0]),
    )


def write_volumes(root: Path, count: int, seed: int) -> None:
    """Writes them into an empty folder, in the Decathlon's layout."""
    for part in ("imagesTr", "labelsTr"):
        (root / part).mkdir()
    for index in range(count):
        for part, image in zip(
            ("imagesTr", "labelsTr"), simulate_volume(seed, index).images(), strict=True
        ):
            sitk.WriteImage(image, str(root / part / f"phantom_{index + 1:03d}.nii.gz"))
    names = ", ".join(f'"{value}": "{name}"' for value, name in LABELS.items())
    write_text(root / "dataset.json", f'{{"labels": {{{names}}}}}\n')


def _grid() -> list[np.ndarray]:
    """Places in mm from the middle, finer across the slices."""
    counts, steps = (SHAPE[0] * _FINE, *SHAPE[1:]), (SPACING[0] / _FINE, *SPACING[1:])
    axes = [(np.arange(n) - (n - 1) / 2) * step for n, step in zip(counts, steps, strict=True)]
    return np.meshgrid(*axes, indexing="ij")


def _turned(rng: Generator, *places: np.ndarray) -> np.ndarray:
    turn = Rotation.from_euler("xyz", rng.uniform(-15, 15, 3), degrees=True).as_matrix()
    shift = rng.uniform(-2, 2, 3)
    return np.einsum("ij,j...->i...", turn, np.stack(places)) + shift[:, None, None, None]


def _ellipsoid(
    places: np.ndarray, middle: np.ndarray | tuple, half_axes: np.ndarray | tuple
) -> np.ndarray:
    """Below 1 inside."""
    scaled = [((place - m) / a) ** 2 for place, m, a in zip(places, middle, half_axes, strict=True)]
    return sum(scaled)


def _organ(rng: Generator, places: np.ndarray) -> np.ndarray:
    """A chain of balls along an arc: the first half is the head, the thinner rest the body."""
    labels = np.zeros(places.shape[1:], np.uint8)
    start = np.array([rng.uniform(-8, -4), rng.uniform(4, 8), rng.uniform(-14, 14)])
    bend, length, radius = rng.uniform(0.02, 0.05), rng.uniform(24, 32), rng.uniform(7.0, 9.0)
    steps = np.linspace(0, 1, 25)
    for step in steps[::-1]:
        along = step * length
        middle = start + np.array([0.8 * along, -bend * along**2 / 2, 0.15 * along])
        thick = radius * (1 - 0.55 * step)
        near = sum((p - m) ** 2 for p, m in zip(places, middle, strict=True)) < thick**2
        labels[near] = 1 if step < 0.4 else 2
    return labels
