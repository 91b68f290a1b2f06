"""The decoder with fewer operations, against diffusers' own and against plain convolutions."""

import numpy as np
import pytest
import torch
from diffusers import AutoencoderTiny
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from torch.nn import functional

from wavegms.models.autoencoder import _DoubledConvolution, decode_masks, freeze
from wavegms.models.fused import through
from wavegms.models.normalisation import GroupNorm
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


@pytest.mark.parametrize("part", ["encoder", "decoder"])
def test_layers_as_a_card_computes_them_are_diffusers(part):
    """In float64 and on the processor, which has the same formulas in other kernels."""
    layers = getattr(freeze(AutoencoderTiny()).double(), part).layers
    first = torch.randn(2, layers[0].in_channels, 8, 16, dtype=torch.float64)
    results = []
    for form in (layers, lambda x: through(layers, x)):
        x = first.clone().requires_grad_()
        found = form(x)
        found.square().sum().backward()
        results.append((found.detach(), x.grad))
    (wanted, wanted_gradient), (found, gradient) = results
    assert wanted_gradient.norm() > 0
    torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-10)
    assert (gradient - wanted_gradient).norm() <= 1e-10 * wanted_gradient.norm()
    assert through(layers, first).shape == wanted.shape  # and without a gradient


def test_layers_of_another_kind_are_taken_as_they_are():
    vae = freeze(AutoencoderTiny(act_fn="gelu")).double()
    latents = torch.randn(1, 4, 4, 4, dtype=torch.float64)
    torch.testing.assert_close(through(vae.decoder.layers, latents), vae.decoder.layers(latents))


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16])
def test_half_precision_is_normalised_as_it_is(kind):
    """Under autocast, too; its sums are float32, so only what is stored is rounded."""
    norm = GroupNorm(8, 32)
    torch.nn.init.normal_(norm.weight)
    x = 3 + torch.randn(2, 32, 16, 16)
    with torch.autocast("cpu", kind):
        found = norm(x.to(kind))
    wanted = functional.group_norm(x.double(), 8, norm.weight.double(), norm.bias.double())
    assert found.dtype == kind and norm(x).dtype == torch.float32
    rounded = 3 * torch.finfo(kind).eps * wanted.abs().max()
    assert (found - wanted).abs().max() <= rounded


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
