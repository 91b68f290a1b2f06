"""The training loss (paper, section 2.4), with both readings where paper and reference differ."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from wavegms.models.autoencoder import Autoencoder, decode_masks, encode_images, encode_masks

Supervision = Literal["all_levels", "last_three_levels"]
AlignmentDistance = Literal["l1", "smooth_l1"]

_SMOOTHING = 1e-5


def soft_dice(probabilities: Tensor, masks: Tensor) -> Tensor:
    """Soft Dice coefficient of each image, without squares, smoothed by 1e-5 above and below.

    Args:
        probabilities: (B, 1, H, W) in [0, 1].
        masks: (B, 1, H, W), 0 or 1.

    Returns:
        (B,) in [0, 1], 1 for a perfect match.
    """
    overlap = (probabilities * masks).flatten(1).sum(1)
    total = probabilities.flatten(1).sum(1) + masks.flatten(1).sum(1)
    return (2 * overlap + _SMOOTHING) / (total + _SMOOTHING)


def mask_loss(probabilities: Tensor, masks: Tensor) -> dict[str, Tensor]:
    """The loss of a network without latents: soft Dice, averaged over the batch.

    Args:
        probabilities: (B, 1, H, W) in [0, 1].
        masks: (B, 1, H, W), 0 or 1.

    Returns:
        Scalars `loss` and `seg`, which are the same here.
    """
    seg = (1 - soft_dice(probabilities, masks)).mean()
    return {"loss": seg, "seg": seg}


def alignment_loss(latents: Tensor, targets: Tensor, distance: AlignmentDistance = "l1") -> Tensor:
    """L_align between z_MR and z_I: 0.9 (1 - cos) + 0.1 distance.

    The cosine is taken over the channels at each position and averaged. The distance is a mean
    too: the paper writes an l1 norm, the reference code uses smooth-l1.

    Args:
        latents: z_MR, (B, 4, h, w).
        targets: z_I, (B, 4, h, w).
        distance: "l1" (paper) or "smooth_l1" (reference).

    Returns:
        A scalar.
    """
    cosine = functional.cosine_similarity(latents, targets, dim=1).mean()
    compare = functional.l1_loss if distance == "l1" else functional.smooth_l1_loss
    return 0.9 * (1 - cosine) + 0.1 * compare(latents, targets)


@dataclass(frozen=True)
class WaveGMSLoss:
    """L_total = L_seg + L_lm + L_align, each with weight 1; L_align only where there is z_MR.

    L_seg (soft Dice loss of the decoded mask) and L_lm (mean squared error of the latent to z_M)
    are summed over the supervised decoder levels of the latent mapping model.

    Attributes:
        supervision: "all_levels" (paper) or "last_three_levels" (reference, which leaves out the
            level straight after the bottleneck).
        alignment_distance: "l1" (paper) or "smooth_l1" (reference).
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
    ) -> dict[str, Tensor]:
        """The loss of one batch.

        Args:
            latents: z_MR, (B, 4, H/8, W/8); None in a variant without alignment.
            levels: the mapped latents, deepest first, each (B, 4, H/8, W/8).
            vae: the frozen autoencoder; gradients pass through its decoder to the latents.
            images: (B, 3, H, W) in [0, 1].
            masks: (B, 1, H, W), 0 or 1.

        Returns:
            Scalars `loss` (the sum), `seg`, `lm` and, where there is alignment, `align`.
        """
        with torch.no_grad():
            mask_latents = encode_masks(vae, masks)
        supervised = levels if self.supervision == "all_levels" else levels[1:]
        seg = sum((1 - soft_dice(decode_masks(vae, level), masks)).mean() for level in supervised)
        lm = sum(functional.mse_loss(level, mask_latents) for level in supervised)
        if latents is None:
            return {"loss": seg + lm, "seg": seg, "lm": lm}
        with torch.no_grad():
            image_latents = encode_images(vae, images)
        align = alignment_loss(latents, image_latents, self.alignment_distance)
        return {"loss": seg + lm + align, "seg": seg, "lm": lm, "align": align}
