"""`WaveGMSPipeline`: the door for users. It saves, loads and predicts."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from diffusers import AutoencoderTiny, DiffusionPipeline
from diffusers.utils import BaseOutput
from PIL import Image
from torch import Generator, Tensor
from torch.nn import functional

from wavegms.errors import InputError
from wavegms.imaging import as_rgb, resize_image
from wavegms.models.autoencoder import decode_masks
from wavegms.models.encoder import MultiResolutionEncoder
from wavegms.models.mapping import LatentMappingModel

ImageInput = Image.Image | np.ndarray | Tensor


@dataclass
class WaveGMSOutput(BaseOutput):
    """What a prediction returns, one entry an input image, each at that image's own size.

    Attributes:
        masks: bool (height, width), True inside the segmented region.
        probabilities: float32 (height, width) in [0, 1].
    """

    masks: list[np.ndarray]
    probabilities: list[np.ndarray]


class WaveGMSPipeline(DiffusionPipeline):
    """Segments images: encoder -> latent mapping model -> frozen Tiny-VAE decoder.

    Args:
        encoder: gives z_MR.
        mapping: maps z_MR to the mask's latent.
        vae: the frozen Tiny-VAE; only its decoder is used here.
        image_size: side in pixels at which the network was trained, divisible by 8. Inputs of
            another size are resized to it and the predictions back.
    """

    def __init__(
        self,
        encoder: MultiResolutionEncoder,
        mapping: LatentMappingModel,
        vae: AutoencoderTiny,
        image_size: int = 224,
    ):
        super().__init__()
        self.register_modules(encoder=encoder, mapping=mapping, vae=vae)
        self.register_to_config(image_size=image_size)
        for component in (encoder, mapping, vae):
            component.eval()

    @torch.inference_mode()
    def predict(self, images: Tensor, generator: Generator | None = None) -> Tensor:
        """Soft masks of a batch that already has a size the network takes.

        Args:
            images: (B, 3, H, W) in [0, 1], H and W divisible by 8.
            generator: random state, used only by an encoder that samples at inference.

        Returns:
            (B, 1, H, W) in [0, 1], float32.
        """
        images = images.to(device=self.device, dtype=self.encoder.dtype)
        latents = self.encoder(images, generator=generator)
        return decode_masks(self.vae, self.mapping(latents)[-1]).float()

    def __call__(
        self,
        images: ImageInput | Sequence[ImageInput],
        batch_size: int = 12,
        threshold: float = 0.5,
        generator: Generator | None = None,
    ) -> WaveGMSOutput:
        """Segments one image or many, of any size and mode.

        Args:
            images: one image, a sequence of images, or a batch. An image is a PIL image of any
                8- or 16-bit mode; or an array (H, W), (H, W, 1), (H, W, 3) or (H, W, 4), uint8,
                uint16 or float in [0, 1]; or a tensor (1, H, W) or (3, H, W), uint8 or float in
                [0, 1]. A batch is an array or tensor with one more dimension in front.
            batch_size: how many images go through the network at once.
            threshold: probability from which a pixel belongs to the mask.
            generator: random state, used only by an encoder that samples at inference.

        Returns:
            Masks and probabilities, each at the size of its input.

        Raises:
            InputError: an input has no such form, or its values lie outside [0, 1].
        """
        if batch_size < 1:
            raise InputError(f"batch_size must be at least 1, not {batch_size}")
        items = _as_list(images)
        size = self.config.image_size
        masks, probabilities = [], []
        with self.progress_bar(total=len(items)) as bar:
            for start in range(0, len(items), batch_size):
                chunk = items[start : start + batch_size]
                prepared, sizes = zip(*(_prepare(item, size) for item in chunk), strict=True)
                soft_masks = self.predict(torch.stack(prepared), generator=generator).cpu()
                for soft, original_size in zip(soft_masks, sizes, strict=True):
                    resized = _resize(soft, original_size)[0].clamp(0, 1).numpy()
                    probabilities.append(resized)
                    masks.append(resized >= threshold)
                bar.update(len(chunk))
        return WaveGMSOutput(masks=masks, probabilities=probabilities)


def _as_list(images: ImageInput | Sequence[ImageInput]) -> list[ImageInput]:
    if isinstance(images, Image.Image):
        return [images]
    if isinstance(images, Tensor):
        return list(images) if images.ndim == 4 else [images]
    if isinstance(images, np.ndarray):
        channels_last = images.ndim == 3 and images.shape[-1] in (1, 3, 4)
        return [images] if images.ndim == 2 or channels_last else list(images)
    return list(images)


def _prepare(image: ImageInput, size: int) -> tuple[Tensor, tuple[int, int]]:
    """An image as float (3, size, size) in [0, 1], and its own (height, width).

    8-bit input takes the same way as in data preparation (Pillow), so that predicting on a raw
    image equals predicting on the prepared one; floats cannot and are resized by torch.
    """
    if isinstance(image, Tensor):
        if image.ndim != 3 or image.shape[0] not in (1, 3):
            raise InputError(f"an image tensor must be (1 or 3, H, W), not {tuple(image.shape)}")
        # numpy has no bfloat16
        image = image.float() if image.is_floating_point() else image
        image = image.detach().cpu().movedim(0, -1).numpy()
    if isinstance(image, np.ndarray):
        if image.ndim == 3 and image.shape[-1] == 1:
            image = image[..., 0]
        if image.ndim != 2 and not (image.ndim == 3 and image.shape[-1] in (3, 4)):
            raise InputError(f"an image array must be (H, W[, 1, 3 or 4]), not {image.shape}")
        if not image.size:
            raise InputError(f"an image must have pixels, but its shape is {image.shape}")
        if np.issubdtype(image.dtype, np.floating):
            return _prepare_float(image, size)
        if image.dtype == np.uint16 and image.ndim == 3:
            return _prepare_float(image / np.float32(65535), size)
        if image.dtype not in (np.uint8, np.uint16):
            raise InputError(f"an image must be uint8, uint16 or float, not {image.dtype}")
        image = Image.fromarray(image)
    if not isinstance(image, Image.Image):
        raise InputError(f"expected a PIL image, array or tensor, not {type(image).__name__}")
    if 0 in image.size:
        raise InputError(f"an image must have pixels, but its size is {image.size}")
    rgb = as_rgb(image)
    pixels = torch.from_numpy(np.array(resize_image(rgb, size)))
    return pixels.movedim(-1, 0).float() / 255, (rgb.height, rgb.width)


def _prepare_float(image: np.ndarray, size: int) -> tuple[Tensor, tuple[int, int]]:
    if not (np.isfinite(image).all() and image.min() >= 0 and image.max() <= 1):
        raise InputError("a float image must lie in [0, 1]: divide 8-bit values by 255")
    if image.ndim == 2:
        image = np.repeat(image[..., None], 3, axis=-1)
    pixels = torch.from_numpy(image[..., :3].astype(np.float32)).movedim(-1, 0)
    return _resize(pixels, (size, size)).clamp(0, 1), image.shape[:2]


def _resize(image: Tensor, size: tuple[int, int]) -> Tensor:
    if tuple(image.shape[-2:]) == tuple(size):
        return image
    return functional.interpolate(image[None], size, mode="bilinear", antialias=True)[0]
