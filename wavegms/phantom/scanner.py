"""Simulated breast ultrasound: small datasets from scanners that do not exist.

A tissue map (echogenicity, attenuation, specular reflectors) is drawn along the beams of a linear
probe and turned into a B-mode image: a random complex field of sub-resolution scatterers, weighted
by echogenicity and round-trip attenuation, is blurred by a point-spread function that widens away
from the focus; its envelope is log-compressed and scan-converted. Fully developed speckle as a
circular Gaussian field follows Wagner et al., "Statistics of speckle in ultrasound B-scans"
(IEEE Trans. Sonics Ultrason. 1983); tissue attenuations are rounded textbook values; what lesions
look like follows the ACR BI-RADS ultrasound descriptors (shape, margin, posterior features).

The anatomy is in `wavegms.phantom.tissue`, the burnt-in marks in `wavegms.phantom.marks`.
"""

import json
import math
import os
import zlib
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.random import PCG64, Generator, SeedSequence
from PIL import Image
from scipy.ndimage import gaussian_filter1d, map_coordinates
from tqdm import tqdm

from wavegms.errors import InputError
from wavegms.files import replace_folder
from wavegms.phantom.marks import draw_marks
from wavegms.phantom.settings import CLASSES, PHANTOMS, SCANNERS, VOLUMES, Scanner
from wavegms.phantom.tissue import (
    Beams,
    Tissue,
    add_lesions,
    draw_lesions,
    draw_mass_and_cyst,
    draw_tissue,
)
from wavegms.phantom.volumes import SPACING, simulate_volume, write_volumes

FWHM_PER_SIGMA = 2.355

MARKER = "phantom.json"  # says that a folder was written here and may be replaced


@dataclass(frozen=True)
class Phantom:
    """One simulated case."""

    image: np.ndarray  # B-mode, uint8 (H, W)
    masks: tuple[np.ndarray, ...]  # boolean (H, W), one a lesion; disjoint; none for a normal case
    label: str  # "benign", "malignant" or "normal"
    spacing_mm: float  # from pixel to pixel
    kinds: tuple[str, ...]  # of the lesions, as in `Lesion`


def point_spread(scatterers: np.ndarray, scanner: Scanner, beams: Beams) -> np.ndarray:
    """Blur complex scatterers (samples, beams) by the pulse and by the beam, wider with depth.

    White noise keeps its variance.
    """
    axial_px = scanner.axial_fwhm_mm() / FWHM_PER_SIGMA / beams.step_mm
    field = gaussian_filter1d(scatterers, axial_px, axis=0)
    # Both kernels get unit energy: a sampled Gaussian of width s has 1 / (2 sqrt(pi) s).
    field *= math.sqrt(2 * math.sqrt(math.pi) * axial_px)
    depth_mm = beams.range_mm[:, 0]
    lateral_px = scanner.lateral_fwhm_mm(depth_mm) / FWHM_PER_SIGMA / beams.pitch_mm(depth_mm)
    half = int(np.ceil(3 * lateral_px.max()))
    kernels = np.exp(-0.5 * (np.arange(-half, half + 1) / lateral_px[:, None]) ** 2)
    kernels = (kernels / np.linalg.norm(kernels, axis=1, keepdims=True)).astype(np.float32)
    padded = np.pad(field, ((0, 0), (half, half)), mode="reflect")
    out = np.zeros_like(field)
    for k in range(2 * half + 1):
        out += kernels[:, k, None] * padded[:, k : k + field.shape[1]]
    return out


def complex_noise(rng: Generator, shape: tuple[int, int]) -> np.ndarray:
    """Circular complex Gaussian noise of unit power and the given shape."""
    parts = rng.standard_normal((2, *shape), dtype=np.float32) * np.float32(np.sqrt(0.5))
    return parts[0] + 1j * parts[1]


def round_trip_loss_db(tissue: Tissue, scanner: Scanner, beams: Beams) -> np.ndarray:
    """Attenuation between the probe and each sample and back, dB, (samples, beams).

    It falls nowhere along a beam, but for the shadows of the tissue map, which are blurred over the
    width of the aperture.
    """
    path_cm = 2 * beams.step_mm / 10
    loss = np.cumsum(tissue.attenuation, axis=0, dtype=np.float32) * path_cm
    loss = loss * scanner.frequency_mhz + tissue.shadow_db
    return gaussian_filter1d(loss, 0.35 / beams.pitch_mm(0.0), axis=1)


def envelope(rng: Generator, tissue: Tissue, scanner: Scanner, beams: Beams) -> np.ndarray:
    """Simulate the received echo envelope after time-gain compensation, (samples, beams), above 0.

    1 is the mean echo of fat without loss.
    """
    shape = tissue.echo_db.shape
    amplitude = 10 ** (tissue.echo_db / 20)
    loss_db = round_trip_loss_db(tissue, scanner, beams)
    assumed = rng.uniform(*scanner.tgc_db)
    tgc_db = 2 * assumed * scanner.frequency_mhz * beams.range_mm / 10
    # The sliders of the time-gain compensation are never quite right.
    tgc_db = tgc_db + rng.uniform(0.5, 2.5) * np.sin(
        beams.range_mm / rng.uniform(4, 8) + rng.uniform(0, 2 * np.pi)
    )
    transfer = 10 ** ((tgc_db - loss_db) / 20)
    noise_gain = 10 ** ((scanner.noise_db + tgc_db) / 20)
    total = np.zeros(shape, dtype=np.float32)
    for _ in range(scanner.looks):
        scatterers = amplitude * complex_noise(rng, shape) + tissue.reflector
        echo = point_spread(scatterers, scanner, beams) * transfer
        total += np.abs(echo + noise_gain * complex_noise(rng, shape))
    return total / scanner.looks


def log_compress(amplitude: np.ndarray, scanner: Scanner, gain_db: float) -> np.ndarray:
    """Map an envelope of any shape to grey levels in [0, 255], as float."""
    level_db = 20 * np.log10(np.maximum(amplitude, 1e-6)) + gain_db
    level = 1 + (level_db - scanner.white_db) / scanner.dynamic_range_db
    return 255 * np.clip(level, 0, 1) ** scanner.gamma


def scan_convert(values: np.ndarray, beams: Beams, field: tuple[int, int]) -> np.ndarray:
    """Resample (samples, beams) to `field`, square pixels; 0 outside the insonified field."""
    row, column = np.indices(field, dtype=np.float32)
    z = (row + 0.5) * beams.step_mm
    x = (column + 0.5 - field[1] / 2) * beams.step_mm
    origin = x / (1 + beams.divergence * z)
    range_mm = z * np.sqrt(1 + (beams.divergence * origin) ** 2)
    at_row = range_mm / beams.step_mm - 0.5
    at_column = (origin + beams.face_mm / 2) / beams.pitch_mm(0.0) - 0.5
    return map_coordinates(values, [at_row, at_column], order=1, mode="grid-constant")


def simulate(scanner: Scanner, seed: int, index: int) -> Phantom:
    """Simulate one case; each mask covers about 3 to 25 % of the image.

    It depends on scanner, seed and index alone, so image k is the same however many are made.
    """
    stream = SeedSequence(seed, spawn_key=(zlib.crc32(scanner.name.encode()), index))
    rng = Generator(PCG64(stream))
    height = int(rng.integers(*scanner.height_px, endpoint=True))
    width = int(rng.integers(*scanner.width_px, endpoint=True))
    left, right, below = rng.integers(*scanner.margin_px, size=3, endpoint=True).tolist()
    field = (height - below, width - left - right)
    beams = Beams.cover(field, rng.uniform(*scanner.depth_mm), rng.uniform(*scanner.trapezoid_deg))

    label = "malignant" if rng.random() < scanner.malignant_fraction else "benign"
    if scanner.normal_every and index % scanner.normal_every == scanner.normal_every - 1:
        label = "normal"
    draw = draw_mass_and_cyst if scanner.name == "phantom_c" else draw_lesions
    lesions = draw(rng, beams, field, label)
    tissue = add_lesions(rng, draw_tissue(rng, beams), lesions, beams)
    amplitude = envelope(rng, tissue, scanner, beams)
    grey = log_compress(amplitude, scanner, gain_db=rng.uniform(-4, 4))

    frame = ((0, below), (left, right))
    image = np.pad(scan_convert(grey, beams, field), frame).round().astype(np.uint8)
    masks = tuple(
        np.pad(scan_convert(np.float32(lesion.distance_mm(beams) < 0), beams, field) > 0.5, frame)
        for lesion in lesions
    )
    image = draw_marks(rng, image, masks, beams.step_mm, scanner.frequency_mhz)
    kinds = tuple(lesion.kind for lesion in lesions)
    return Phantom(image, masks, label, spacing_mm=beams.step_mm, kinds=kinds)


def write_phantoms(name: str, folder: Path, count: int, seed: int) -> None:
    """Write a simulated dataset as raw files in the layout of a published one.

    "phantom_v" is volumes in the Decathlon's layout, "phantom_a" is laid out like BUS
    (`original/000001.png`, `GT/000001.png`), "phantom_b" like BUSI (`benign/benign (1).png`,
    `benign (1)_mask.png`, `benign (1)_mask_1.png` and so on), and "phantom_c" as images of one's
    own with label maps (`images/000001.png`, `masks/000001.png`). Beside these images,
    `spacing.csv` has the millimetres from pixel to pixel of each. The files are written to a
    temporary folder beside `folder`, which is put in place when complete.
    """
    if name not in PHANTOMS:
        raise InputError(f"name is {name!r}; choose one of {', '.join(PHANTOMS)}.")
    if count < 1:
        raise InputError(f"count is {count}; ask for at least 1 image.")
    if seed < 0:
        raise InputError(f"seed is {seed}; choose 0 or a positive whole number.")
    folder = Path(folder)
    empty = folder.is_dir() and not any(folder.iterdir())
    if folder.exists() and not empty and not (folder / MARKER).is_file():
        raise InputError(f"folder {folder} holds other data; choose a folder that does not exist.")
    with replace_folder(folder) as root:
        if name == VOLUMES:
            write_volumes(root, count, seed)
        else:
            _write_images(root, name, count, seed)
        (root / MARKER).write_text(json.dumps({"name": name, "count": count, "seed": seed}) + "\n")


def example(name: str, seed: int, index: int) -> Phantom:
    """What a simulated dataset shows: an image, or the slice of a volume with the most organ."""
    if name != VOLUMES:
        return simulate(SCANNERS[name], seed, index)
    volume = simulate_volume(seed, index)
    inside = volume.labels > 0
    place = int(inside.sum((1, 2)).argmax())
    white = np.percentile(volume.voxels, 99.5)
    image = (volume.voxels[place] / white * 255).clip(0, 255).astype(np.uint8)
    return Phantom(image, (inside[place],), f"slice {place}", SPACING[1], kinds=("organ",))


def _write_images(root: Path, name: str, count: int, seed: int) -> None:
    layouts = {"phantom_a": _write_bus, "phantom_b": _write_busi, "phantom_c": _write_classes}
    write = layouts[name]
    # an image depends on its own index and nothing else; most of the work is scipy's filters,
    # which run side by side
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        cases = pool.map(partial(simulate, SCANNERS[name], seed), range(count))
        bar = tqdm(cases, total=count, desc=f"simulating {name}", unit="image")
        spacings = write(root, bar)
    rows = [f"{file},{spacing:.6g}\n" for file, spacing in sorted(spacings.items())]
    (root / "spacing.csv").write_text("".join(["image,spacing\n", *rows]))


def _write_bus(root: Path, cases: Iterable[Phantom]) -> dict[str, float]:
    """Writes images and masks; the spacing of each image by the name of its file."""
    spacings = {}
    for part in ("original", "GT"):
        (root / part).mkdir()
    for number, case in enumerate(cases, start=1):
        file = f"{number:06d}.png"
        Image.fromarray(case.image).save(root / "original" / file)
        union = np.any(case.masks, axis=0)
        Image.fromarray(np.uint8(255) * union).save(root / "GT" / file)
        spacings[file] = case.spacing_mm
    return spacings


def _write_classes(root: Path, cases: Iterable[Phantom]) -> dict[str, float]:
    """As `_write_bus`."""
    spacings = {}
    for part in ("images", "masks"):
        (root / part).mkdir()
    for number, case in enumerate(cases, start=1):
        labels = np.zeros(case.image.shape, np.uint8)
        for mask, kind in zip(case.masks, case.kinds, strict=True):
            labels[mask] = 1 + CLASSES.index("cyst" if kind == "cyst" else "mass")
        file = f"{number:06d}.png"
        Image.fromarray(case.image).save(root / "images" / file)
        Image.fromarray(labels).save(root / "masks" / file)
        spacings[file] = case.spacing_mm
    return spacings


def _write_busi(root: Path, cases: Iterable[Phantom]) -> dict[str, float]:
    """As `_write_bus`."""
    spacings = {}
    written = dict.fromkeys(("benign", "malignant", "normal"), 0)
    for label in written:
        (root / label).mkdir()
    for case in cases:
        written[case.label] += 1
        number = written[case.label]
        stem = f"{case.label} ({number})"
        Image.fromarray(case.image).convert("RGB").save(root / case.label / f"{stem}.png")
        masks = case.masks or (np.zeros(case.image.shape, dtype=bool),)
        # As published, most masks are bilevel, and a few are colour images of black and white.
        mode = "RGB" if case.label == "normal" or number % 9 == 4 else "1"
        mode = "RGBA" if number % 13 == 6 else mode
        for k, mask in enumerate(masks):
            suffix = "_mask" if k == 0 else f"_mask_{k}"
            picture = Image.fromarray(np.uint8(255) * mask).convert(mode)
            picture.save(root / case.label / f"{stem}{suffix}.png")
        spacings[f"{stem}.png"] = case.spacing_mm
    return spacings
