"""Classes 1 to K of pixels: how many there may be, their colours, and which a pixel belongs to.

A mask of one class is black and white. One of several has a colour for each, on black.
"""

import numpy as np

from wavegms.errors import InputError

# The corners of the colour cube but black.
MOST_CLASSES = 7

# In the order in which several classes take them. With black, the first three lie as far from each
# other as four colours can, and none between two others, as which their soft border would be read;
# docs/classes.md has what was measured of these and of others.
COLOURS = ("#ffff00", "#00ffff", "#ff00ff", "#ffffff", "#0000ff", "#ff0000", "#00ff00")


def colours_of(count: int) -> tuple[str, ...]:
    """The colours of so many classes, as #rrggbb; of one class white."""
    if not 1 <= count <= MOST_CLASSES:
        raise InputError(
            f"there are colours for 1 to {MOST_CLASSES} classes, not for {count}: join some of them"
        )
    return ("#ffffff",) if count == 1 else COLOURS[:count]


def label_map(probabilities: np.ndarray, threshold: float = 0.5) -> np.ndarray:
    """(..., K, H, W) in [0, 1] -> the class of each pixel, 1 to K, or 0: uint8 (..., H, W).

    A pixel is of its likeliest class if that reaches the threshold against the background alone: at
    0.5, if the background is not likelier.
    """
    best, background = probabilities.max(axis=-3), 1 - probabilities.sum(axis=-3)
    if probabilities.shape[-3] == 1:
        return (best >= threshold).astype(np.uint8)
    found = best >= threshold * (best + background)
    return (found * (probabilities.argmax(axis=-3) + 1)).astype(np.uint8)
