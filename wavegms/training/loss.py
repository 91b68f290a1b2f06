"""The training loss (paper, section 2.4), with both readings where paper and reference differ.

It exists twice. `WaveGMSLoss.plain` is the formulas as they stand in the paper, with diffusers'
autoencoder called as it is, and the specification; calling the loss gives the same values and
gradients in less memory and time, and is what training uses. The tests compare the two.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from wavegms.images import IGNORED
from wavegms.models.autoencoder import (
    Autoencoder,
    at_least_float32,
    channels_last,
    decode_latents,
    decode_masks,
    encode_images,
    encode_masks,
)
from wavegms.models.mask_decoder import MaskDecoder

Supervision = Literal["all_levels", "last_three_levels"]

AlignmentDistance = Literal["l1", "smooth_l1"]

Decode = Callable[[Tensor], Tensor]

_SMOOTHING = 1e-5

# Pixels of a side to one latent.
_LATENT = 8

# How many pixels are encoded or decoded at once. A CPU: one image of 128x128; smaller images one by
# one take longer (at 64x64 a step by 13 %), larger ones together do not take less. A GPU wants more
# work at a time: the paper's batch of twelve images of 224x224.
_CPU_PIXELS, _GPU_PIXELS = 128 * 128, 12 * 224 * 224


def soft_dice(probabilities: Tensor, masks: Tensor) -> Tensor:
    """Soft Dice coefficient of each image, without squares, smoothed by 1e-5 above and below.

    (B, 1, H, W) in [0, 1] against 0, 1, or 2 for pixels that do not count -> (B,) in [0, 1], at
    least float32; 1 is a perfect match. Of a mask without foreground it is 1 less the mean
    probability: the smoothed quotient would have gradients of up to 1e5 there, of which one spoils
    an optimiser's moments for hundreds of steps.
    """
    overlap, total = dice_sums(probabilities, masks)
    counted = (masks < IGNORED).flatten(1)
    empty = ~(masks.flatten(1) * counted).any(1)
    found = total / counted.sum(1).clamp_min(1)  # of an empty mask
    return torch.where(empty, 1 - found, dice_of_sums(overlap, total))


def dice_sums(probabilities: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
    """Of each image as in `soft_dice`: the sum of the products, and the sum of both, each (B,)."""
    counted = masks < IGNORED
    probabilities, masks = at_least_float32(probabilities) * counted, masks * counted
    overlap = (probabilities * masks).flatten(1).sum(1)
    return overlap, probabilities.flatten(1).sum(1) + masks.flatten(1).sum(1)


def dice_of_sums(overlap: Tensor, total: Tensor) -> Tensor:
    """The soft Dice of what `dice_sums` gives, or of sums of it over several slices."""
    return (2 * overlap + _SMOOTHING) / (total + _SMOOTHING)


def mask_loss(probabilities: Tensor, masks: Tensor) -> dict[str, Tensor]:
    """The loss of a network without latents: soft Dice loss, averaged over the batch."""
    seg = (1 - soft_dice(probabilities, masks)).mean()
    return {"loss": seg, "seg": seg}


def alignment_loss(latents: Tensor, targets: Tensor, distance: AlignmentDistance = "l1") -> Tensor:
    """L_align between z_MR and z_I, both (B, C, h, w): 0.9 (1 - cos) + 0.1 distance.

    The cosine is taken over the channels at each position and averaged. The distance is a mean
    too: the paper writes an l1 norm, the reference code uses smooth-l1.
    """
    latents, targets = at_least_float32(latents), at_least_float32(targets)
    cosine = functional.cosine_similarity(latents, targets, dim=1).mean()
    compare = functional.l1_loss if distance == "l1" else functional.smooth_l1_loss
    return 0.9 * (1 - cosine) + 0.1 * compare(latents, targets)


@dataclass(frozen=True)
class WaveGMSLoss:
    """L_total = L_seg + L_lm + L_align, each with weight 1; L_align only where there is z_MR.

    L_seg (soft Dice loss of the decoded mask) and L_lm (mean squared error of the latent to z_M)
    are summed over the supervised decoder levels of the latent mapping model: all (paper), or all
    but the one straight after the bottleneck (reference).
    """

    supervision: Supervision = "all_levels"
    alignment_distance: AlignmentDistance = "l1"

    def __call__(
        self,
        latents: Tensor | None,
        levels: list[Tensor],
        vae: Autoencoder,
        images: Tensor,
        masks: Tensor,
        mask_decoder: MaskDecoder | None = None,
    ) -> dict[str, Tensor]:
        """The loss of one batch, lean: no decoder graph outlives the decoding of its level.

        `latents` are z_MR, None in a variant without alignment; `levels` the mapped latents,
        deepest first, each (B, C, H/8, W/8). Gradients pass through the frozen autoencoder to
        both, or to `levels` through the frozen mask decoder, if one is given. Gives the scalars
        `loss` (the sum), `seg`, `lm` and, where aligned, `align`.
        """
        supervised = self._supervised(levels)
        decode = mask_decoder or partial(decode_masks, vae)
        seg = sum(_DecodedDiceLoss.apply(level, decode, masks) for level in supervised)
        with torch.no_grad():
            targets = [channels_last(_drawn(masks).expand(-1, 3, -1, -1))]
            if latents is not None:
                targets.append(images)
            at_once = _at_once(masks)
            encoded = [encode_images(vae, part) for part in torch.cat(targets).split(at_once)]
            mask_latents, *image_latents = torch.cat(encoded).split(len(masks))
        return self._total(seg, supervised, masks, mask_latents, latents, *image_latents)

    def plain(
        self,
        latents: Tensor | None,
        levels: list[Tensor],
        vae: Autoencoder,
        images: Tensor,
        masks: Tensor,
    ) -> dict[str, Tensor]:
        """The same, written as in the paper: the graphs of all decoded levels live at once."""
        supervised, seg = self._supervised(levels), 0.0
        for level in supervised:
            decoded = decode_latents(vae, level).mean(dim=1, keepdim=True)
            seg = seg + (1 - soft_dice(((decoded + 1) / 2).clamp(0, 1), masks)).mean()
        with torch.no_grad():
            mask_latents = encode_masks(vae, _drawn(masks))
            image_latents = None if latents is None else encode_images(vae, images)
        return self._total(seg, supervised, masks, mask_latents, latents, image_latents)

    def _supervised(self, levels: list[Tensor]) -> list[Tensor]:
        return levels if self.supervision == "all_levels" else levels[1:]

    def _total(
        self,
        seg: Tensor,
        supervised: list[Tensor],
        masks: Tensor,
        mask_latents: Tensor,
        latents: Tensor | None = None,
        image_latents: Tensor | None = None,
    ) -> dict[str, Tensor]:
        counted, share = _counted_latents(masks)
        mask_latents = at_least_float32(mask_latents) * counted
        errors = [
            functional.mse_loss(at_least_float32(one) * counted, mask_latents) for one in supervised
        ]
        lm = sum(errors) / share
        if latents is None:
            return {"loss": seg + lm, "seg": seg, "lm": lm}
        align = alignment_loss(latents, image_latents, self.alignment_distance)
        return {"loss": seg + lm + align, "seg": seg, "lm": lm, "align": align}


class _DecodedDiceLoss(torch.autograd.Function):
    """Soft Dice loss of the masks that latents decode to.

    Nothing comes after the Dice of a level, so the gradient of the latent is known as soon as it
    is decoded, up to the factor that arrives from above. Kept is that gradient, as small as the
    latent, and not the decoder's activations, which are what fills a card in the plain form. Few
    images are decoded at a time, so that a larger batch needs no more memory for it.
    """

    @staticmethod
    def forward(ctx: Any, level: Tensor, decode: Decode, masks: Tensor) -> Tensor:
        at_once, wanted = _at_once(masks), ctx.needs_input_grad[0]
        # a pixel's gradient is about 1 / pixels, too small for float16; a power of two is exact
        scale = 2.0 ** round(math.log2(masks.shape[-2] * masks.shape[-1]))
        losses, gradients = [], []
        for part, mask in zip(level.split(at_once), masks.split(at_once), strict=True):
            with torch.set_grad_enabled(wanted):
                part = part.detach().requires_grad_(wanted)
                lost = (1 - soft_dice(decode(part), mask)).sum() / len(level)
                scaled = lost * scale
            if wanted:
                scaled.backward(inputs=[part])
                gradients.append(at_least_float32(part.grad) / scale)
            losses.append(lost.detach())
        if wanted:
            ctx.save_for_backward(torch.cat(gradients))
        return torch.stack(losses).sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, factor: Tensor) -> tuple[Tensor, None, None]:
        return factor * ctx.saved_tensors[0], None, None


def _drawn(masks: Tensor) -> Tensor:
    """Masks as an autoencoder is shown them: 0 or 1, black where nothing was annotated."""
    return masks * (masks < IGNORED)


def _counted_latents(masks: Tensor) -> tuple[Tensor, Tensor]:
    """Which latents (B, 1, H/8, W/8) see no ignored pixel in their square, and their share."""
    counted = functional.max_pool2d(masks, _LATENT) < IGNORED
    return counted, counted.float().mean().clamp_min(1 / counted.numel())


def _at_once(masks: Tensor) -> int:
    """How many images of this size are encoded or decoded at a time, see `_CPU_PIXELS`."""
    pixels = _CPU_PIXELS if masks.device.type == "cpu" else _GPU_PIXELS
    return max(1, pixels // (masks.shape[-2] * masks.shape[-1]))
