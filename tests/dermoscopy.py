"""Colour pictures of skin with a dark spot, as no scanner of this project draws them.

Somebody's own images: JPEG in colour, of differing sizes, masks that are called otherwise.
"""

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter


def draw_skin(seed: int) -> tuple[Image.Image, Image.Image]:
    """An image, RGB, and its mask, L with 0 and 255."""
    rng = np.random.default_rng(seed)
    width, height = int(rng.integers(90, 150)), int(rng.integers(80, 120))
    centre = rng.uniform(0.35, 0.65, 2) * (width, height)
    angles = np.linspace(0, 2 * np.pi, 40, endpoint=False)
    waves = 1 + 0.15 * np.sin(3 * angles + rng.uniform(0, 6)) + 0.1 * np.sin(5 * angles)
    radii = rng.uniform(0.18, 0.3) * min(width, height) * waves
    border = centre + np.stack([np.cos(angles), np.sin(angles)], axis=1) * radii[:, None]
    mask = Image.new("L", (width, height))
    ImageDraw.Draw(mask).polygon([tuple(point) for point in border], fill=255)

    skin = np.array([225, 170, 150]) + rng.normal(0, 12, 3)
    spot = np.array([110, 65, 45]) + rng.normal(0, 12, 3)
    share = np.asarray(mask.filter(ImageFilter.GaussianBlur(2)))[..., None] / 255
    picture = skin * (1 - share) + spot * share + rng.normal(0, 6, (height, width, 3))
    image = Image.fromarray(picture.clip(0, 255).astype(np.uint8))
    pen = ImageDraw.Draw(image)
    for _ in range(5):  # hairs
        ends = rng.uniform(0, 1, (2, 2)) * (width, height)
        pen.line([tuple(end) for end in ends], fill=(50, 35, 30))
    return image, mask


def write_skin(images: Path, masks: Path, count: int = 20, without_mask: int = 0) -> None:
    """Writes `lesion_07.jpg` with `lesion_07_segmentation.png`; the last ones without a mask."""
    images.mkdir(parents=True)
    masks.mkdir(parents=True, exist_ok=True)
    for number in range(count + without_mask):
        image, mask = draw_skin(number)
        image.save(images / f"lesion_{number:02}.jpg", quality=92)
        if number < count:
            mask.save(masks / f"lesion_{number:02}_segmentation.png")
