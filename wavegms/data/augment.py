"""The recipe's augmentation, on whole batches of images and masks, on the model's device."""

import kornia.augmentation as K
import torch
from kornia.constants import DataKey
from torch import Tensor


class Augmentation(torch.nn.Module):
    """Flips, quarter turns, colour jitter, and a combined shift, scale and rotation.

    Geometry moves image and mask together; pixels from outside are mirrored in. The random state
    is torch's global one, so a seeded run repeats itself.

    Args:
        horizontal_flip: probability of a left-right flip.
        vertical_flip: probability of an up-down flip.
        rotate_90: probability of a rotation by a random multiple of 90 degrees.
        color_jitter: probability of a jitter of brightness, contrast, saturation and hue by up to
            0.1 each.
        shift_scale_rotate: probability of a shift by up to 15 % of the side, a scale by up to
            10 % and a rotation by up to 20 degrees, together.
    """

    def __init__(
        self,
        horizontal_flip: float,
        vertical_flip: float,
        rotate_90: float,
        color_jitter: float,
        shift_scale_rotate: float,
    ):
        super().__init__()
        steps = {
            K.RandomHorizontalFlip(p=horizontal_flip): horizontal_flip,
            K.RandomVerticalFlip(p=vertical_flip): vertical_flip,
            K.RandomRotation90(times=(0, 3), p=rotate_90): rotate_90,
            K.ColorJitter(0.1, 0.1, 0.1, 0.1, p=color_jitter): color_jitter,
            K.RandomAffine(
                degrees=20,
                translate=(0.15, 0.15),
                scale=(0.9, 1.1),
                padding_mode="reflection",
                p=shift_scale_rotate,
            ): shift_scale_rotate,
        }
        # one that never happens would still take a millisecond an image
        chosen = [step for step, probability in steps.items() if probability > 0]
        self.transforms = None
        if chosen:
            # the key also says that a mask keeps its values: it is resampled by the nearest pixel
            self.transforms = K.AugmentationSequential(
                *chosen, data_keys=[DataKey.INPUT, DataKey.MASK]
            )

    @torch.no_grad()
    def forward(self, images: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
        """Augments a batch, every image in its own way.

        Args:
            images: (B, 3, H, W) in [0, 1].
            masks: (B, 1, H, W), 0 or 1.

        Returns:
            Images and masks of the same shapes and ranges.
        """
        if self.transforms is None:
            return images, masks
        images, masks = self.transforms(images, masks)
        return images.clamp(0, 1), masks
