"""MedSegDiff-V2 as its public code has it: diffusion of masks, guided by a network of its own.

The paper's spectrum-space transformer is not in that code (Wu et al. 2024); this is the U-Net there
with 129.4 million parameters, which is also what the paper's Table 2 counts.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise

import torch
from diffusers import DDPMScheduler, DPMSolverMultistepScheduler, UNet2DModel
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor, nn
from torch.nn import functional

from wavegms.models.autoencoder import Autoencoder, Generators, at_least_float32
from wavegms.models.generative import Decode, Generative, generative_network

_STEPS, _CAP = 1000, 480
_NOISE = {
    "num_train_timesteps": _STEPS,
    "beta_start": 1e-4,
    "beta_end": 0.02,
}


class Units(nn.Sequential):
    """3 x 3 convolutions through these widths, each with batch normalisation and leaky ReLU."""

    def __init__(self, *widths: int, dropout: float = 0.0):
        super().__init__()
        for into, out in pairwise(widths):
            self.append(nn.Conv2d(into, out, 3, padding=1))
            if dropout:
                self.append(nn.Dropout2d(dropout))
            self.extend([nn.BatchNorm2d(out), nn.LeakyReLU(0.01)])


class ConditionNetwork(nn.Module):
    """A U-Net after the first nnU-Net: (B, 3, H, W) in [0, 1] -> a mask, and what guides.

    The mask (B, 1, H, W) in [0, 1] is only there for the loss. What guides is (B, 4 width, H, W).
    H and W are multiples of 2 to the power of `pools`.
    """

    def __init__(self, width: int, pools: int):
        super().__init__()
        widths = [min(width * 2**level, width * _CAP // 32) for level in range(pools)]
        self.encoder = nn.ModuleList(
            Units(into, out, out, dropout=0.5)
            for into, out in zip([3, *widths], [*widths, widths[-1]], strict=True)
        )
        self.decoder = nn.ModuleList(
            Units(2 * skip, skip, out)
            for skip, out in zip(widths[::-1], [*widths[-2::-1], widths[0]], strict=True)
        )
        self.head = nn.Conv2d(width, 1, 1, bias=False)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """See the class."""
        x, skips = images, []
        for level in self.encoder[:-1]:
            x = level(x)
            skips.append(x)
            x = functional.max_pool2d(x, 2)
        x, maps = self.encoder[-1](x), []
        for level, skip in zip(self.decoder, skips[::-1], strict=True):
            x = level(torch.cat([_larger(x, 2), skip], 1))
            maps.append(x)
        half, quarter = _larger(maps[-2], 2), _larger(maps[-3], 4)
        return self.head(x).sigmoid(), torch.cat([half, half, quarter], 1)


class MedSegDiffV2(Generative):
    """129,400,450 parameters. Sides of images are multiples of 32.

    The official code takes 256, and at 224 loses its attention layers. A prediction is the mean
    over an `ensemble` of samples of so many `steps`.
    """

    def __init__(
        self,
        channels: Sequence[int] = (128, 128, 256, 256, 512, 512),
        groups: int = 32,
        steps: int = 20,
        ensemble: int = 5,
    ):
        super().__init__()
        self.steps, self.ensemble = steps, ensemble
        last = len(channels) - 1
        kinds = [
            "AttnDownBlock2D" if level == last - 1 else "DownBlock2D"
            for level in range(len(channels))
        ]
        self.denoiser = UNet2DModel(
            in_channels=4,
            out_channels=2,
            block_out_channels=tuple(channels),
            down_block_types=tuple(kinds),
            up_block_types=tuple(kind.replace("Down", "Up") for kind in kinds[::-1]),
            attention_head_dim=channels[-1],  # one head
            norm_num_groups=groups,
        )
        nn.init.zeros_(self.denoiser.conv_out.weight)
        nn.init.zeros_(self.denoiser.conv_out.bias)
        self.condition = ConditionNetwork(channels[0] // 4, last)
        self.noise = DDPMScheduler(**_NOISE)

    def denoise(self, images: Tensor, noisy: Tensor, steps: Tensor, guide: Tensor) -> Tensor:
        """(B, 2, S, S): the noise, and how far its variance is between its bounds, -1 to 1."""
        with _added_after(self.denoiser.conv_in, guide.detach()):
            return self.denoiser(torch.cat([images, noisy], 1), steps).sample

    def loss(
        self,
        images: Tensor,
        masks: Tensor,
        vae: Autoencoder | None = None,
        generators: Generators = None,
    ) -> dict[str, Tensor]:
        """See `Generative`."""
        steps = drawn_steps(len(images), generators, images.device)
        noise = randn_tensor(masks.shape, generators, masks.device, masks.dtype)
        noisy = self.noise.add_noise(masks, noise, steps)
        rough, guide = self.condition(images)
        # in half precision the bound of a late step would be rounding
        found, share = at_least_float32(self.denoise(images, noisy, steps, guide)).chunk(2, 1)
        terms = {
            "noise": functional.mse_loss(found, noise),
            # of the variance alone
            "bound": variational_bound(
                self.noise.betas.to(images), masks, noisy, steps, found.detach(), share
            ).mean(),
            "condition": 10 * functional.mse_loss(at_least_float32(rough), masks),
        }
        return {"loss": sum(terms.values()), **terms}

    @torch.no_grad()
    def predict(
        self, images: Tensor, decode: Decode | None = None, generators: Generators = None
    ) -> Tensor:
        """See `Generative`.

        With all 1,000 steps a sample is an ancestral one, with fewer it is of DPM-Solver++'s second
        order.
        """
        _, guide = self.condition(images)
        samples = [self._sample(images, guide, generators) for _ in range(self.ensemble)]
        return torch.stack(samples).mean(0).clamp(0, 1)

    def _sample(self, images: Tensor, guide: Tensor, generators: Generators) -> Tensor:
        scheduler = sampler(self.steps)
        shape = (len(images), 1, *images.shape[2:])
        x = randn_tensor(shape, generators, images.device, images.dtype)
        for step in scheduler.timesteps:
            found = self.denoise(images, x, step.expand(len(images)).to(images.device), guide)
            if self.steps != _STEPS:  # the solver has no use for the variance, takes it for colours
                found = found[:, :1]
            x = scheduler.step(found, step, x, generator=generators).prev_sample
        return x


def drawn_steps(count: int, generators: Generators, device: torch.device) -> Tensor:
    """One of the 1,000 steps for each of so many images."""
    if isinstance(generators, list):
        steps = [torch.randint(_STEPS, (1,), generator=one) for one in generators]
        return torch.cat(steps).to(device)
    return torch.randint(_STEPS, (count,), generator=generators, device=device)


def sampler(steps: int) -> DDPMScheduler | DPMSolverMultistepScheduler:
    """What walks from noise to a mask in so many steps, at most 1,000."""
    if steps == _STEPS:
        scheduler = DDPMScheduler(**_NOISE, variance_type="learned_range", clip_sample=True)
    else:
        scheduler = DPMSolverMultistepScheduler(
            **_NOISE, algorithm_type="dpmsolver++", solver_order=2
        )
    scheduler.set_timesteps(steps)
    return scheduler


def variational_bound(
    betas: Tensor, start: Tensor, noisy: Tensor, steps: Tensor, found: Tensor, share: Tensor
) -> Tensor:
    """A step's term of the variational bound, in bits a pixel: (B,) (Nichol and Dhariwal 2021).

    The divergence of what `found` noise and the variance's `share` say of the step before from the
    true posterior given `start`; at the first step, the surprise by `start` in 8 bits.
    """
    kept = (1 - betas).cumprod(0)
    before = torch.cat([kept.new_ones(1), kept[:-1]])
    posterior = betas * (1 - before) / (1 - kept)
    # zero at the first step, which takes the second's instead
    lowest = torch.cat([posterior[1:2], posterior[1:]]).log()

    def at(values: Tensor) -> Tensor:
        return values[steps][:, None, None, None]

    def mean_of(clean: Tensor) -> Tensor:
        of_clean = at(betas * before.sqrt() / (1 - kept))
        return of_clean * clean + at((1 - before) * (1 - betas).sqrt() / (1 - kept)) * noisy

    clean = (noisy - at((1 - kept).sqrt()) * found) / at(kept.sqrt())
    log_variance = (share + 1) / 2 * at(betas.log()) + (1 - share) / 2 * at(lowest)
    distance = (mean_of(start) - mean_of(clean)) ** 2
    divergence = 0.5 * (
        log_variance
        - at(lowest)
        - 1
        + (at(lowest) - log_variance).exp()
        + distance * (-log_variance).exp()
    )
    bits = torch.where(
        at(torch.arange(len(betas), device=start.device)) > 0,
        divergence,
        _surprise(start, mean_of(clean), log_variance),
    )
    return bits.mean((1, 2, 3)) / math.log(2)


def _surprise(start: Tensor, mean: Tensor, log_variance: Tensor) -> Tensor:
    """Minus the log of a Gaussian's share of the 255th that a value in [-1, 1] stands for."""
    spread = (0.5 * log_variance).exp()
    above = torch.special.ndtr((start + 1 / 255 - mean) / spread)
    below = torch.special.ndtr((start - 1 / 255 - mean) / spread)
    above, below = above.masked_fill(start > 0.999, 1), below.masked_fill(start < -0.999, 0)
    return -(above - below).clamp_min(1e-12).log()


@contextmanager
def _added_after(module: nn.Module, more: Tensor) -> Iterator[None]:
    handle = module.register_forward_hook(lambda _, inputs, output: output + more)
    try:
        yield
    finally:
        handle.remove()


def _larger(x: Tensor, factor: int) -> Tensor:
    return functional.interpolate(x, scale_factor=factor, mode="bilinear")


@generative_network
def medsegdiff_v2() -> MedSegDiffV2:
    """As published."""
    return MedSegDiffV2()


@generative_network
def medsegdiff_v2_small() -> MedSegDiffV2:
    """An eighth of its width, four levels, and two samples of five steps."""
    return MedSegDiffV2((16, 16, 32, 32), groups=8, steps=5, ensemble=2)
