"""SDSeg (Lin et al. 2024): latent diffusion of masks that is trained to answer in one step."""

import copy
from collections.abc import Sequence

import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DModel
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor, nn
from torch.nn import functional

from wavegms.classes import colours_of
from wavegms.models.autoencoder import Autoencoder, Generators, at_least_float32, encode_images
from wavegms.models.generative import Decode, Generative, generative_network
from wavegms.models.palette import Palette
from wavegms.models.rivals.medsegdiff_v2 import drawn_steps

_STEPS, _DROPOUT = 1000, 0.2

# From which the scale of latents is taken, and how many are encoded at once.
_MASKS, _AT_ONCE = 64, 8


class SDSeg(Generative):
    """All that is trained of it: 329,137,456 parameters with the autoencoder of Stable Diffusion.

    The vision encoder has the shape of the frozen autoencoder's, any of ours, and begins as a copy
    of it. Sides of images are multiples of 8 times 2 for each level but one.
    """

    def __init__(
        self,
        vae: Autoencoder,
        channels: Sequence[int] = (192, 384, 384, 768, 768),
        head_width: int = 24,
        groups: int = 32,
        classes: int = 1,
    ):
        super().__init__()
        self.palette = Palette(colours_of(classes))
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
        # of a KL autoencoder mean and variance
        self.bridge = nn.Conv2d(8 if isinstance(vae, AutoencoderKL) else 4, 4, 1)
        self.noise = DDPMScheduler(
            num_train_timesteps=_STEPS,
            beta_start=0.0015,
            beta_end=0.0155,
            beta_schedule="scaled_linear",
            clip_sample=False,
        )
        self.register_buffer("scale", torch.ones(()))

    @torch.no_grad()
    def begin(self, masks: Tensor, vae: Autoencoder, seed: int) -> None:
        """The vision encoder gets its weights, and latents of masks the spread 1."""
        self.vision.load_state_dict(vae.encoder.state_dict())
        generator = torch.Generator(masks.device).manual_seed(seed)
        parts = self.palette.paint(masks[:_MASKS]).split(_AT_ONCE)
        self.scale.copy_(1 / torch.cat([_latents_of(vae, p, generator) for p in parts]).std())

    def look(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) in [0, 1] -> (B, 4, H/8, W/8)."""
        return self.bridge(self.vision(images * 2 - 1))

    def loss(
        self, images: Tensor, masks: Tensor, vae: Autoencoder, generators: Generators = None
    ) -> dict[str, Tensor]:
        """See `Generative`."""
        with torch.no_grad():
            latents = _latents_of(vae, self.palette.paint(masks), generators) * self.scale
        steps = drawn_steps(len(images), generators, images.device)
        noise = randn_tensor(latents.shape, generators, latents.device, latents.dtype)
        noisy = self.noise.add_noise(latents, noise, steps)
        seen = at_least_float32(self.look(images))
        found = at_least_float32(self.denoiser(torch.cat([noisy, seen], 1), steps).sample)
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
    def predict(self, images: Tensor, decode: Decode, generators: Generators = None) -> Tensor:
        """In one step from pure noise; see `Generative`."""
        seen = self.look(images)
        noise = randn_tensor(seen.shape, generators, seen.device, seen.dtype)
        last = torch.full((len(images),), _STEPS - 1, device=images.device)
        found = self.denoiser(torch.cat([noise, seen], 1), last).sample
        return decode(self.at_once(noise, found, last) / self.scale)


def _latents_of(vae: Autoencoder, images: Tensor, generators: Generators) -> Tensor:
    latents = encode_images(vae, images, sample_posterior=True, generator=generators)
    return at_least_float32(latents)


@generative_network
def sdseg(vae: Autoencoder, classes: int = 1) -> SDSeg:
    """As published; sides of images are multiples of 128."""
    return SDSeg(vae, classes=classes)


@generative_network
def sdseg_small(vae: Autoencoder, classes: int = 1) -> SDSeg:
    """For sides that are multiples of 16."""
    return SDSeg(vae, (32, 32), head_width=8, groups=8, classes=classes)
