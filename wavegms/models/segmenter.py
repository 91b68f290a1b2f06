"""From an image to the mask's latents: what every latent-space variant has in common."""

import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn

from wavegms.models.autoencoder import Autoencoder, Generators, encode_images
from wavegms.models.encoder import MultiResolutionEncoder
from wavegms.models.guided import GuidedLatentMappingModel
from wavegms.models.mapping import LatentMappingModel


def map_latents(
    encoder: MultiResolutionEncoder | None,
    mapping: LatentMappingModel,
    vae: Autoencoder | None,
    images: Tensor,
    *,
    sample_posterior: bool = False,
    generator: Generators = None,
) -> tuple[Tensor, list[Tensor]]:
    """The image's latent, z_MR or z_I, and the four mask latents it is mapped to, deepest first.

    (B, 3, H, W) in [0, 1] -> (B, C, H/8, W/8) each. The frozen autoencoder gives the image's latent
    where there is no encoder, and is unused where there is one.
    """
    if encoder is None:
        latents = encode_images(vae, images, sample_posterior=sample_posterior, generator=generator)
    else:
        latents = encoder(images, generator=generator)
    if isinstance(mapping, GuidedLatentMappingModel):
        return latents, mapping(latents, images)
    return latents, mapping(latents)


class LatentSegmenter(nn.Module):
    """All that is trained of a latent-space variant. In Wave-GMS: 2,600,668 parameters.

    The frozen autoencoder is handed to `forward` and is no part of this module, so that optimiser,
    checkpoint and gradient synchronisation never see it.
    """

    def __init__(self, encoder: MultiResolutionEncoder | None, mapping: LatentMappingModel):
        super().__init__()
        self.encoder = encoder
        self.mapping = mapping

    def forward(
        self, images: Tensor, vae: Autoencoder | None = None, generator: Generators = None
    ) -> tuple[Tensor, list[Tensor]]:
        """See :func:`map_latents`.

        With a KL autoencoder, half of the training batches take a sample of its posterior instead
        of the mean (GMS). Which ones is drawn from torch's own random state, that several processes
        have in common.
        """
        posterior = self.encoder is None and isinstance(vae, AutoencoderKL)
        sample = self.training and posterior and torch.rand(()).item() < 0.5
        return map_latents(
            self.encoder, self.mapping, vae, images, sample_posterior=sample, generator=generator
        )
