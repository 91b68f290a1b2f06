"""Masks as pictures: black and white of one class, in colours of several, and back.

The frozen autoencoder paints pictures, so a network that gives it the latents of a coloured mask
knows several classes without one parameter more.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch
from PIL import ImageColor
from torch import Tensor

from wavegms.classes import colours_of
from wavegms.models.autoencoder import (
    Autoencoder,
    at_least_float32,
    channels_last,
    decode_masks,
    decode_pixels,
    encode_images,
    encode_masks,
)

# Keeps the inverse of a squared distance finite; a colour's own pixel is 0.9997 sure of it.
_NEAR = 1e-4


@dataclass(frozen=True)
class Palette:
    """The colours of classes 1 to K, as #rrggbb, on black; white alone is today's mask."""

    colours: tuple[str, ...]

    @classmethod
    def of(cls, classes: Sequence[str]) -> Self:
        """Of so many names; none stands for one class."""
        return cls(colours_of(len(classes) or 1))

    @property
    def classes(self) -> int:
        """K."""
        return len(self.colours)

    def paint(self, masks: Tensor) -> Tensor:
        """Masks (B, 1, H, W), 0 to K, or K + 1 where nothing was annotated, as (B, 3, H, W).

        Black is both the background and what was not annotated.
        """
        masks = masks * (masks <= self.classes)
        if self.classes == 1:
            return masks.expand(-1, 3, -1, -1)
        painted = [
            sum(colour[channel] * (masks == number) for number, colour in enumerate(self._rgb))
            for channel in range(3)
        ]
        return torch.cat(painted, dim=1).to(masks.dtype)

    def shares(self, pixels: Tensor) -> Tensor:
        """The probability of each class: (B, 3, H, W), about [0, 1] -> (B, K, H, W) in [0, 1].

        Of one class it is the mean of the three channels. Of several, and the background, it is in
        inverse proportion to the squared distance to its colour. A softmax of distances is the more
        usual, and learns nothing from pixels that are nearly another colour: after five epochs of
        the profile `classes` one class had a DSC of 0.2 %, with this one 23 %.
        """
        pixels = at_least_float32(pixels)
        if self.classes == 1:
            return pixels.mean(dim=1, keepdim=True).clamp(0, 1)
        pixels = pixels.clamp(0, 1)
        # number by number: a graph of CUDA takes no tensor from the processor
        distances = [
            sum((pixels[:, channel] - colour[channel]).square() for channel in range(3))
            for colour in self._rgb
        ]
        near = 1 / (torch.stack(distances, 1) + _NEAR)
        return (near / near.sum(dim=1, keepdim=True))[:, 1:]

    def mix(self, shares: Tensor) -> Tensor:
        """Soft masks as a picture to look at: (B, K, H, W) in [0, 1] -> (B, 3, H, W) in [0, 1]."""
        parts = zip(shares.split(1, 1), self._rgb[1:], strict=True)
        return sum(part * part.new_tensor(rgb)[:, None, None] for part, rgb in parts)

    def encode(self, vae: Autoencoder, masks: Tensor) -> Tensor:
        """z_M, the latents of painted masks: (B, 1, H, W) -> (B, C, H/8, W/8)."""
        if self.classes == 1:
            return encode_masks(vae, masks * (masks <= 1))
        return encode_images(vae, self.paint(masks))

    def decode(self, vae: Autoencoder, latents: Tensor) -> Tensor:
        """Soft masks (B, K, H, W) in [0, 1], at least float32, from latents (B, C, H/8, W/8)."""
        if self.classes == 1:
            return decode_masks(vae, latents)
        return self.shares(decode_pixels(vae, channels_last(latents)))

    @property
    def _rgb(self) -> list[tuple[float, ...]]:
        """Of background and classes, in [0, 1]."""
        named = [(0, 0, 0), *map(ImageColor.getrgb, self.colours)]
        return [tuple(value / 255 for value in rgb) for rgb in named]


BLACK_AND_WHITE = Palette(("#ffffff",))
