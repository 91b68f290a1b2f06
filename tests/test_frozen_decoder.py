"""The decoder with fewer operations, against diffusers' own and against plain convolutions."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from torch.nn import functional

from wavegms.models.autoencoder import _DoubledConvolution, decode_masks, freeze
from wavegms.training.autoencoder import build_autoencoder


@pytest.mark.parametrize("kind", [torch.float32, torch.float64])
def test_a_decoded_mask_is_the_clamped_mean_of_what_diffusers_decodes(kind):
    """And so is its gradient: the decoder is computed another way, with fewer operations."""
    vae = freeze(build_autoencoder(16, 1)).to(kind)
    vae.decoder.layers[-1].bias.copy_(torch.tensor([0.2, 0.9, 0.4]))
    latents = 5 * torch.randn(2, 4, 3, 5, dtype=kind)
    results = []
    for form in (decode_masks, lambda vae, z: (vae.decode(z).sample.mean(1, True) + 1) / 2):
        inputs = latents.clone().requires_grad_()
        masks = form(vae, inputs).clamp(0, 1)
        masks.square().sum().backward()
        results.append((masks.detach(), inputs.grad))
    (masks, gradient), (wanted, wanted_gradient) = results
    assert masks.shape == (2, 1, 24, 40) and 0 < wanted.mean() < 1 and wanted_gradient.norm() > 0
    tolerance = 1e-4 if kind == torch.float32 else 1e-11
    torch.testing.assert_close(masks, wanted, rtol=tolerance, atol=tolerance)
    assert (gradient - wanted_gradient).norm() <= tolerance * wanted_gradient.norm()


def test_values_outside_are_clamped_after_the_mean():
    vae = freeze(build_autoencoder(16, 1))
    last = vae.decoder.layers[-1]
    last.weight.zero_()
    for bias, wanted in (([0.0, 0.5, 1.0], 0.5), ([2.0, 1.0, 1.5], 1.0), ([-0.5, 0.0, -1.0], 0.0)):
        last.bias.copy_(torch.tensor(bias))
        masks = decode_masks(vae, torch.randn(2, 4, 1, 1))
        torch.testing.assert_close(masks, torch.full((2, 1, 8, 8), wanted))


@given(
    arrays(np.float64, (2, 3, 3, 5), elements=st.floats(-4, 4)),
    arrays(np.float64, (4, 3, 3, 3), elements=st.floats(-4, 4)),
)
@settings(max_examples=30, deadline=None)
def test_a_convolution_of_a_doubled_image_is_four_of_the_small_one(small, kernels):
    small, kernels = torch.from_numpy(small).requires_grad_(), torch.from_numpy(kernels)
    plain = functional.conv2d(functional.interpolate(small, scale_factor=2), kernels, padding=1)
    quarters = _DoubledConvolution.apply(small, kernels)
    torch.testing.assert_close(quarters, plain, rtol=1e-10, atol=1e-10)
    above = torch.linspace(-1, 1, plain.numel(), dtype=plain.dtype).view_as(plain)
    ours, wanted = (torch.autograd.grad(form, small, above)[0] for form in (quarters, plain))
    torch.testing.assert_close(ours, wanted, rtol=1e-10, atol=1e-10)
