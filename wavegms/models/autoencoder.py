"""The frozen autoencoder: loading it, and what encoding and decoding mean for images and masks.

The Tiny-VAE of the paper is TAESD, diffusers' `AutoencoderTiny`; the SD-VAE of GMS is diffusers'
`AutoencoderKL`. Both take and give images in [-1, 1]. Everything else in this package keeps images
and masks in [0, 1]; the change of range happens here and nowhere else, and so do scale and shift of
an `AutoencoderKL`'s latents.

Latents have as many channels C as the autoencoder gives them (TAESD 4, FLUX.1 16, FLUX.2 32), at
1/8 of the sides; those of the networks around it follow.
"""

from typing import Any

import torch
from diffusers import AutoencoderKL, AutoencoderTiny
from diffusers.models.autoencoders.vae import DecoderTiny
from torch import Generator, Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from wavegms.models.fused import doubles, through


def channels_last(x: Tensor) -> Tensor:
    """The same (B, C, H, W) with the channels of a pixel side by side in memory.

    Convolutions keep the order of what they are given, weights need not follow. With it a training
    step took 13 % less at 128x128 and 24 % less at 64x64 (batch 4, two cores), and no other values
    than rounding changes.
    """
    return x.contiguous(memory_format=torch.channels_last)


def at_least_float32(x: Tensor) -> Tensor:
    """Half precision -> float32, for sums and exponentials that need it; others stay."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def decode_mean(decoder: DecoderTiny, latents: Tensor) -> Tensor:
    """The mean over the three channels of what latents decode to: (B, C, h, w) -> (B, 1, 8h, 8w).

    In the decoder's own range: an image's is [0, 1], but nothing is clamped. The decoder is a
    frozen Tiny-VAE's, as its weights get no gradient. Faster with the channels of a pixel side by
    side in memory.
    """
    last = decoder.layers[-1]
    kernel, bias = last.weight.mean(0, keepdim=True), last.bias.mean(0, keepdim=True)
    return functional.conv2d(_before_last(decoder, latents), kernel, bias, padding=1)


def _before_last(decoder: DecoderTiny, latents: Tensor) -> Tensor:
    *body, _ = decoder.layers
    x = torch.tanh(latents / 3) * 3  # the decoder's own limit to what it is given
    return through(body, x) if _fusible(x) else _doubling(body, x)


def _fusible(x: Tensor) -> bool:
    return x.is_cuda and torch.version.cuda is not None


def _doubling(body: list[nn.Module], x: Tensor) -> Tensor:
    """The layers of a decoder where arithmetic is what takes the time: on a processor."""
    layers = iter(body)
    for layer in layers:
        # what follows is always a convolution without a bias
        x = _DoubledConvolution.apply(x, next(layers).weight) if doubles(layer) else layer(x)
    return x


class _DoubledConvolution(torch.autograd.Function):
    """3x3 convolution, padded by 1, of the input doubled by its nearest pixels.

    autograd would give the gradient as well, but by way of a zero-filled copy for each of the four
    slices.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        kernels = _quarter_kernels(weight)
        batch, _, height, width = x.shape
        # (B, 4 C, h + 1, w + 1); a position sees the 2x2 pixels above and left of it
        quarters = functional.conv2d(x, kernels, padding=1)
        ctx.save_for_backward(kernels.to(quarters.dtype))
        quarters = quarters.permute(0, 2, 3, 1).unflatten(3, (2, 2, len(weight)))
        doubled = quarters.new_empty(batch, height, 2, width, 2, len(weight))
        for row in (0, 1):
            for column in (0, 1):
                doubled[:, :, row, :, column] = quarters[
                    :, row : row + height, column : column + width, row, column
                ]
        return doubled.flatten(3, 4).flatten(1, 2).permute(0, 3, 1, 2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (kernels,) = ctx.saved_tensors
        batch, channels, height, width = gradient.shape
        height, width = height // 2, width // 2
        # flat in memory as (B, 2h, 2w, C)
        doubled = gradient.contiguous(memory_format=torch.channels_last).permute(0, 2, 3, 1)
        doubled = doubled.view(batch, height, 2, width, 2, channels)
        quarters = gradient.new_zeros(batch, height + 1, width + 1, 2, 2, channels)
        for row in (0, 1):
            for column in (0, 1):
                quarters[:, row : row + height, column : column + width, row, column] = doubled[
                    :, :, row, :, column
                ]
        quarters = quarters.flatten(3).permute(0, 3, 1, 2)
        return functional.conv_transpose2d(quarters, kernels, padding=1), None


def _quarter_kernels(weight: Tensor) -> Tensor:
    """3x3 kernels (C, I, 3, 3) -> those of the four pixels (4 C, I, 2, 2), row by row.

    In a doubled row the pixels left to right are a a b b. Of three weights over them, that of an
    even pixel's left neighbour meets the one before, the other two meet the pixel's own; of an odd
    pixel's, the first two meet its own, and the last the one after.
    """

    def even_and_odd(kernels: Tensor, dim: int) -> tuple[Tensor, Tensor]:
        first, middle, last = kernels.unbind(dim)
        even = torch.stack([first, middle + last], dim)
        return even, torch.stack([first + middle, last], dim)

    rows = even_and_odd(weight, 2)
    quarters = [quarter for kernels in rows for quarter in even_and_odd(kernels, 3)]
    return torch.cat(quarters).contiguous(memory_format=torch.channels_last)


Autoencoder = AutoencoderTiny | AutoencoderKL

# As in diffusers: torch's own random state, another, or one for each image of a batch. Or what they
# would draw, standard normal numbers of the shape of the latents.
Generators = Generator | list[Generator] | Tensor | None


def latent_channels_of(vae: Autoencoder | None) -> int:
    """C of an autoencoder's latents; TAESD's 4 where there is none."""
    return 4 if vae is None else vae.config.latent_channels


def freeze(vae: Autoencoder) -> Autoencoder:
    """Switches to evaluation mode and takes all parameters out of training."""
    return vae.eval().requires_grad_(False)


def encode_images(
    vae: Autoencoder,
    images: Tensor,
    *,
    sample_posterior: bool = False,
    generator: Generators = None,
) -> Tensor:
    """z_I, the frozen autoencoder's latents of images: (B, 3, H, W) in [0, 1] -> (B, C, H/8, W/8).

    Those of a KL autoencoder are the mean of its posterior, or a sample if asked for, less its
    shift (SD-VAE: none) and times its scaling factor (0.18215); a Tiny-VAE has no posterior.
    """
    if not isinstance(vae, AutoencoderKL) and _fusible(images):
        return through(vae.encoder.layers, images)  # which take an image in [0, 1]
    encoded = vae.encode(images * 2 - 1)
    if not isinstance(vae, AutoencoderKL):
        return encoded.latents
    posterior = encoded.latent_dist
    if sample_posterior and isinstance(generator, Tensor):
        latents = posterior.mean + posterior.std * generator
    else:
        latents = posterior.sample(generator) if sample_posterior else posterior.mode()
    if vae.config.shift_factor:
        latents = latents - vae.config.shift_factor
    return latents * vae.config.scaling_factor


def decode_latents(vae: Autoencoder, latents: Tensor) -> Tensor:
    """What latents of `encode_images` decode to: (B, C, h, w) -> (B, 3, 8h, 8w), about [-1, 1]."""
    if isinstance(vae, AutoencoderKL):
        latents = latents / vae.config.scaling_factor
        if vae.config.shift_factor:
            latents = latents + vae.config.shift_factor
    return vae.decode(latents).sample


def decode_pixels(vae: Autoencoder, latents: Tensor) -> Tensor:
    """The same in about [0, 1], by the way of `decode_mean`: gradients pass in fewer operations."""
    if isinstance(vae, AutoencoderKL):
        return (decode_latents(vae, latents) + 1) / 2
    last = vae.decoder.layers[-1]
    x = _before_last(vae.decoder, latents)
    return functional.conv2d(x, last.weight, last.bias, padding=1)


def repaint_images(vae: Autoencoder, images: Tensor) -> Tensor:
    """Images as an autoencoder gives them back: (B, 3, H, W) in [0, 1] -> the same shape."""
    return ((decode_latents(vae, encode_images(vae, images)) + 1) / 2).clamp(0, 1)


def encode_masks(vae: Autoencoder, masks: Tensor) -> Tensor:
    """z_M, the latents of masks as three equal channels: (B, 1, H, W) -> (B, C, H/8, W/8)."""
    return encode_images(vae, masks.expand(-1, 3, -1, -1))


def decode_masks(vae: Autoencoder, latents: Tensor) -> Tensor:
    """Soft masks from latents: the mean of the three decoded channels, clamped.

    (B, C, H/8, W/8) -> (B, 1, H, W) in [0, 1], at least float32; a pixel belongs to the mask from
    0.5.
    """
    latents = channels_last(latents)
    if isinstance(vae, AutoencoderKL):
        decoded = decode_latents(vae, latents)
        means = (at_least_float32(decoded).mean(dim=1, keepdim=True) + 1) / 2
    else:
        means = at_least_float32(decode_mean(vae.decoder, latents))
    return means.clamp(0, 1)
