"""The trainable networks by name: what stands between the image and the mask's latent."""

from collections.abc import Callable

from diffusers import AutoencoderTiny
from torch import Tensor, nn

from wavegms.errors import InputError
from wavegms.models.encoder import MultiResolutionEncoder
from wavegms.models.mapping import LatentMappingModel
from wavegms.models.pipeline import WaveGMSPipeline


class WaveGMS(nn.Module):
    """All that is trained in Wave-GMS: encoder and latent mapping model, 2,600,668 parameters.

    Args:
        sample_at_inference: see :class:`MultiResolutionEncoder`.
    """

    def __init__(self, sample_at_inference: bool = False):
        super().__init__()
        self.encoder = MultiResolutionEncoder(sample_at_inference=sample_at_inference)
        self.mapping = LatentMappingModel()

    def forward(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        """From images to latents.

        Args:
            images: (B, 3, H, W) in [0, 1], H and W divisible by 8.

        Returns:
            z_MR (B, 4, H/8, W/8) and the four mapped latents of the same shape, deepest first.
        """
        latents = self.encoder(images)
        return latents, self.mapping(latents)


VARIANTS: dict[str, Callable[..., nn.Module]] = {"wave_gms": WaveGMS}


def build_variant(name: str, *, sample_at_inference: bool = False) -> nn.Module:
    """A freshly initialised network.

    Args:
        name: a key of `VARIANTS`.
        sample_at_inference: see :class:`MultiResolutionEncoder`.

    Raises:
        InputError: the name is unknown.
    """
    if name not in VARIANTS:
        raise InputError(f"variant {name!r} is unknown: choose among {', '.join(VARIANTS)}")
    return VARIANTS[name](sample_at_inference=sample_at_inference)


def as_pipeline(model: nn.Module, vae: AutoencoderTiny, image_size: int) -> WaveGMSPipeline:
    """The pipeline around a trained network; it shares the network's weights.

    Args:
        model: what `build_variant` gave.
        vae: the frozen autoencoder it was trained with.
        image_size: side in pixels at which it was trained.
    """
    return WaveGMSPipeline(model.encoder, model.mapping, vae, image_size=image_size)
