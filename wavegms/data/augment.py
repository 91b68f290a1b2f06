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
        self._steps = [
            # the key also says that a mask keeps its values: it is resampled by the nearest pixel
            (probability, K.AugmentationSequential(step, data_keys=[DataKey.INPUT, DataKey.MASK]))
            for probability, step in (
                (horizontal_flip, K.RandomHorizontalFlip(p=1)),
                (vertical_flip, K.RandomVerticalFlip(p=1)),
                (rotate_90, K.RandomRotation90(times=(0, 3), p=1)),
                (color_jitter, K.ColorJitter(0.1, 0.1, 0.1, 0.1, p=1)),
                (
                    shift_scale_rotate,
                    K.RandomAffine(
                        degrees=20,
                        translate=(0.15, 0.15),
                        scale=(0.9, 1.1),
                        padding_mode="reflection",
                        p=1,
                    ),
                ),
            )
        ]

    @torch.no_grad()
    def forward(self, images: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
        """Augments a batch, every image in its own way.

        Args:
            images: (B, 3, H, W) in [0, 1].
            masks: (B, 1, H, W), 0 or 1.

        Returns:
            Images and masks of the same shapes and ranges.
        """
        pairs = [
            self._augment(image, mask)
            for image, mask in zip(images.split(1), masks.split(1), strict=True)
        ]
        images, masks = (torch.cat(parts) for parts in zip(*pairs, strict=True))
        return images.clamp(0, 1), masks

    def _augment(self, image: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        # kornia's own probabilities cost about as much for what is not done as for what is
        for probability, step in self._steps:
            if torch.rand(()).item() < probability:
                image, mask = step(image, mask)
        return image, mask
