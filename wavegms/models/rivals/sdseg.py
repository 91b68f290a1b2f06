"""SDSeg (Lin et al. 2024): latent diffusion of masks that is trained to answer in one step."""

import copy
from collections.abc import Sequence

import torch
from diffusers import DDPMScheduler, UNet2DModel
from torch import Generator, Tensor, nn
from torch.nn import functional

from wavegms.models.autoencoder import Autoencoder, decode_masks, encode_images

_STEPS, _DROPOUT = 1000, 0.2


class SDSeg(nn.Module):
    """All that is trained of it: 329,137,456 parameters with the autoencoder of Stable Diffusion.

    The vision encoder begins as a copy of the frozen autoencoder's, which is handed to `loss` and
    `predict` and is any of ours. Sides of images are multiples of 8 times 2 for each level but one.
    """

    def __init__(
        self,
        vae: Autoencoder,
        channels: Sequence[int] = (192, 384, 384, 768, 768),
        head_width: int = 24,
        groups: int = 32,
    ):
        super().__init__()
        attentive = len(channels) - 1
        self.denoiser = UNet2DModel(
            in_channels=8,
            out_channels=4,
            block_out_channels=tuple(channels),
            down_block_types=("AttnDownBlock2D",) * attentive + ("ResnetDownsampleBlock2D",),
            up_block_types=("ResnetUpsampleBlock2D",) + ("AttnUpBlock2D",) * attentive,
            resnet_time_scale_shift="scale_shift",
            downsample_type="resnet",
            upsample_type="resnet",
            attention_head_dim=head_width,
            norm_num_groups=groups,
            attn_norm_num_groups=groups,
            dropout=_DROPOUT,
        )
        self.vision = copy.deepcopy(vae.encoder).requires_grad_(True).train()
        for module in self.vision.modules():
            if isinstance(module, nn.Dropout):
                module.p = _DROPOUT
        with torch.no_grad():
            parameter = next(vae.parameters())
            found = self.vision(parameter.new_zeros(1, 3, 32, 32)).shape[1]
        self.bridge = nn.Conv2d(found, 4, 1)
        self.noise = DDPMScheduler(
            num_train_timesteps=_STEPS,
            beta_start=0.0015,
            beta_end=0.0155,
            beta_schedule="scaled_linear",
            clip_sample=False,
        )
        self.register_buffer("scale", torch.ones(()))

    @torch.no_grad()
    def fit_scale(self, vae: Autoencoder, masks: Tensor) -> None:
        """Latents of masks get the spread 1; from the first batch, before it is trained on."""
        self.scale = 1 / _latents_of(vae, masks, None).std()

    def look(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) in [0, 1] -> (B, 4, H/8, W/8)."""
        return self.bridge(self.vision(images * 2 - 1))

    def loss(
        self,
        vae: Autoencoder,
        images: Tensor,
        masks: Tensor,
        generator: Generator | None = None,
    ) -> dict[str, Tensor]:
        """`loss`, which goes backward, and the terms of its sum; masks (B, 1, H, W), 0 or 1."""
        options = {"generator": generator, "device": images.device}
        with torch.no_grad():
            latents = _latents_of(vae, masks, generator) * self.scale
        steps = torch.randint(_STEPS, (len(images),), **options)
        noise = torch.randn(latents.shape, **options)
        noisy = self.noise.add_noise(latents, noise, steps)
        found = self.denoiser(torch.cat([noisy, self.look(images)], 1), steps).sample
        terms = {
            "noise": functional.l1_loss(found, noise),
            "latent": functional.l1_loss(self.at_once(noisy, found, steps), latents),
        }
        return {"loss": sum(terms.values()), **terms}

    def at_once(self, noisy: Tensor, found: Tensor, steps: Tensor) -> Tensor:
        """The clean latents, if the noise `found` is right."""
        kept = self.noise.alphas_cumprod.to(noisy)[steps][:, None, None, None]
        return noisy / kept.sqrt() - (1 / kept - 1).sqrt() * found

    @torch.no_grad()
    def predict(
        self, vae: Autoencoder, images: Tensor, generator: Generator | None = None
    ) -> Tensor:
        """Soft masks (B, 1, H, W) in [0, 1], in one step from pure noise."""
        seen = self.look(images)
        noise = torch.randn(seen.shape, generator=generator, device=images.device)
        last = torch.full((len(images),), _STEPS - 1, device=images.device)
        found = self.denoiser(torch.cat([noise, seen], 1), last).sample
        return decode_masks(vae, self.at_once(noise, found, last) / self.scale)


def _latents_of(vae: Autoencoder, masks: Tensor, generator: Generator | None) -> Tensor:
    images = masks.expand(-1, 3, -1, -1)
    return encode_images(vae, images, sample_posterior=True, generator=generator)


def sdseg(vae: Autoencoder) -> SDSeg:
    """As published; sides of images are multiples of 128."""
    return SDSeg(vae)


def sdseg_small(vae: Autoencoder) -> SDSeg:
    """For sides that are multiples of 16."""
    return SDSeg(vae, (32, 32), head_width=8, groups=8)
