"""Marks a scanner burns into its images: calipers, depth scale, focus, settings, body mark."""

import numpy as np
from numpy.random import Generator
from PIL import Image, ImageDraw, ImageFont

INK = 235  # grey level of the marks


def draw_marks(
    rng: Generator,
    image: np.ndarray,
    masks: tuple[np.ndarray, ...],
    mm_per_px: float,
    frequency_mhz: float,
) -> np.ndarray:
    """Burn a random choice of marks into an image, which often is none."""
    picture = Image.fromarray(image)
    draw = ImageDraw.Draw(picture)
    font = ImageFont.load_default(size=9)
    calipers, scale, settings, body = rng.random(4) < (0.2, 0.3, 0.2, 0.12)
    if calipers:
        for mask in masks:
            _calipers(draw, rng, mask)
    if scale:
        _depth_scale(draw, font, picture.size, mm_per_px)
        _focus(draw, picture.size, rng.uniform(0.3, 0.6))
    if settings:
        lines = (f"{frequency_mhz:.0f} MHz", f"Gn {rng.integers(45, 75)}")
        for k, line in enumerate(lines):
            draw.text((4, picture.height - 24 + 10 * k), line, fill=INK, font=font)
    if body:
        _body_mark(draw, rng, picture.size)
    return np.asarray(picture).copy()


def _calipers(draw: ImageDraw.ImageDraw, rng: Generator, mask: np.ndarray) -> None:
    """Mark the largest diameter of a lesion and the one across it, with a dotted line each."""
    points = np.argwhere(mask)[:, ::-1].astype(float)
    centre = points.mean(axis=0)
    _, _, axes = np.linalg.svd(np.cov((points - centre).T))
    for axis in axes[: int(rng.integers(1, 3))]:
        along = (points - centre) @ axis
        ends = [centre + axis * along.min(), centre + axis * along.max()]
        steps = max(2, int(np.ptp(along) / 4))
        for x, y in np.linspace(*ends, steps):
            draw.point((round(x), round(y)), fill=INK)
        for x, y in ends:
            draw.line((x - 3, y, x + 3, y), fill=INK)
            draw.line((x, y - 3, x, y + 3), fill=INK)


def _depth_scale(draw: ImageDraw.ImageDraw, font, size: tuple[int, int], mm_per_px: float) -> None:
    """Ticks every 5 mm along the right edge, with the depth in cm at every second one."""
    width, height = size
    for tick in range(1, int(height * mm_per_px / 5) + 1):
        y = round(tick * 5 / mm_per_px)
        draw.line((width - (5 if tick % 2 == 0 else 3), y, width - 1, y), fill=INK)
        if tick % 2 == 0 and y < height - 6:
            draw.text((width - 12, y - 6), str(tick // 2), fill=INK, font=font)


def _focus(draw: ImageDraw.ImageDraw, size: tuple[int, int], share: float) -> None:
    """Triangle at the right edge that points to the depth of the focus."""
    x, y = size[0] - 14, round(size[1] * share)
    draw.polygon([(x, y), (x + 5, y - 3), (x + 5, y + 3)], fill=INK)


def _body_mark(draw: ImageDraw.ImageDraw, rng: Generator, size: tuple[int, int]) -> None:
    """Pictogram of a breast with a bar where the probe would lie."""
    x, y = size[0] - 44, size[1] - 28
    draw.ellipse((x, y, x + 22, y + 22), outline=INK)
    draw.ellipse((x + 9, y + 9, x + 13, y + 13), outline=INK)
    angle = rng.uniform(0, 2 * np.pi)
    px, py = x + 11 + 7 * np.cos(angle), y + 11 + 7 * np.sin(angle)
    dx, dy = -4 * np.sin(angle), 4 * np.cos(angle)
    draw.line((px - dx, py - dy, px + dx, py + dy), fill=INK, width=2)
