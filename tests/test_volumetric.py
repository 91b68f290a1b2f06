"""Networks of windows of slices: the 3-D wavelet, what they have in common with 2-D, learning."""

import numpy as np
import pytest
import pywt
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from runs import grey_vae
from test_variants import SIZES, VOLUMETRIC
from torch.nn import functional

from wavegms import LatentMappingModel, MultiResolutionEncoder, WaveGMSPipeline
from wavegms.models.build import as_pipeline, build_variant
from wavegms.models.volumetric import (
    AcrossSlices,
    LatentMappingModel3d,
    MultiResolutionEncoder3d,
)
from wavegms.models.wavelet import multi_level_bands, multi_level_bands_3d
from wavegms.models.windows import as_slices, as_window
from wavegms.training.loss import WaveGMSLoss
from wavegms.training.recipe import loss_terms
from wavegms.variants import VARIANTS, WINDOW

# as PyWavelets calls them, along depth, height and width, in the order of the bands
NAMES = [across + within for across in "ad" for within in ("aa", "da", "ad", "dd")]


def coefficients(bands):
    """Those of PyWavelets' decimated transform, which lie in the middle of what they are of."""
    parts = []
    for level, band in enumerate(bands, 1):
        (kept,) = band.double() * 2 ** (1.5 * level)
        every = kept[:, 2 ** (level - 1) - 1 :: 2**level].unflatten(0, (8, -1))
        parts.append(dict(zip(NAMES, every.numpy(), strict=True)))
    return parts


def stacks(levels):
    """Windows of three channels for so many levels, each (3, D, H, W) in [0, 1]."""
    sides = st.integers(1, 2).map(lambda n: n * 2**levels)
    values = st.floats(0, 1, width=32)
    shapes = st.tuples(st.just(3), sides, sides, sides)
    return shapes.flatmap(lambda shape: arrays(np.float32, shape, elements=values))


@given(st.integers(1, 3), st.data())
@settings(max_examples=15, deadline=None)
def test_bands_are_those_of_pywavelets_and_give_the_window_back(levels, data):
    window = data.draw(stacks(levels))
    bands = multi_level_bands_3d(torch.from_numpy(window).transpose(0, 1), window.shape[1], levels)
    *finer, coarsest = coefficients(bands)
    axes = (1, 2, 3)
    approximation, *details = pywt.wavedecn(window.astype(float), "haar", level=levels, axes=axes)
    np.testing.assert_allclose(coarsest["aaa"], approximation, atol=1e-5)
    found = [{name: one[name] for name in NAMES[1:]} for one in (coarsest, *finer[::-1])]
    for ours, theirs in zip(found, details, strict=True):
        for name in NAMES[1:]:
            np.testing.assert_allclose(ours[name], theirs[name], atol=1e-5)
    back = pywt.waverecn([coarsest["aaa"], *found], "haar", axes=axes)
    np.testing.assert_allclose(back, window, atol=1e-5)


@given(st.integers(1, 12))
@settings(max_examples=6)
def test_of_slices_that_are_all_alike_bands_are_those_of_one(depth):
    image = torch.rand(2, 3, 16, 16)
    slices = image.repeat_interleave(depth, dim=0)
    for flat, band in zip(
        multi_level_bands(image), multi_level_bands_3d(slices, depth), strict=True
    ):
        assert torch.equal(band[:, :12], flat[:, :, None].expand(-1, -1, depth, -1, -1))
        assert not band[:, 12:].any()


@pytest.mark.parametrize("count", [3, 8, 24])
def test_windows_are_slices_in_order(count):
    slices = torch.arange(count * 2).reshape(count, 2, 1, 1)
    window = as_window(slices, 8)
    assert window.shape == (max(1, count // 8), 2, min(count, 8), 1, 1)
    assert torch.equal(as_slices(window), slices)
    with pytest.raises(ValueError, match="9 slices are no windows of 8"):
        as_window(torch.zeros(9, 2, 1, 1), 8)


def give_weights(volumetric, flat):
    """Those of a 2-D network, at random shares across slices; 0 for what 2-D has not."""
    kept = flat.state_dict()
    with torch.no_grad():
        for name, weight in volumetric.named_parameters():
            old = kept[name]
            if weight.ndim == 5:
                shares = torch.randn(weight.shape[2])
                shares += (1 - shares.sum()) / len(shares)
                # after the sub-bands of each level's mean across slices come those of the detail
                into, out = weight.shape[1], weight.shape[0]
                new = torch.zeros_like(weight)
                rows = _kept(out, old.shape[0])
                new[np.ix_(rows, _kept(into, old.shape[1]))] = (
                    old[:, :, None] * shares[:, None, None]
                )
                weight.copy_(new)
            elif weight.shape != old.shape:
                new = torch.zeros_like(weight)
                new[_kept(len(weight), len(old))] = old
                weight.copy_(new)
            else:
                weight.copy_(old)


def _kept(channels, of_flat):
    """Which of a 3-D network's channels are those of 2-D: the first half of every level's 24."""
    places = np.arange(channels)
    return places if channels == of_flat else places[places % 24 < 12]


@pytest.mark.parametrize("count", [3, 16])
def test_of_slices_that_are_all_alike_the_networks_see_one(count):
    """What the 2-D networks give that have the sums of the weights across slices."""
    encoder, mapping = MultiResolutionEncoder().eval(), LatentMappingModel().eval()
    encoder_3d, mapping_3d = MultiResolutionEncoder3d().eval(), LatentMappingModel3d().eval()
    give_weights(encoder_3d, encoder)
    give_weights(mapping_3d, mapping)
    image = torch.rand(1, 3, 32, 32)
    with torch.no_grad():
        latents = encoder_3d(image.expand(count, -1, -1, -1))
        torch.testing.assert_close(
            latents, encoder(image).expand(count, -1, -1, -1), rtol=1e-4, atol=1e-5
        )
        wanted = mapping(latents[:1])
        for found, level in zip(mapping_3d(latents), wanted, strict=True):
            torch.testing.assert_close(found, level.expand(count, -1, -1, -1), rtol=1e-3, atol=1e-4)


def test_the_mapping_begins_as_that_of_single_slices():
    """Of the same seed; what is normalised over a window does not know its order either."""
    torch.manual_seed(3)
    flat = LatentMappingModel().eval()
    torch.manual_seed(3)
    mapping, latents = LatentMappingModel3d().eval(), torch.randn(WINDOW, 4, 4, 4)
    order = torch.randperm(WINDOW)
    close = {"rtol": 1e-4, "atol": 1e-4}
    with torch.no_grad():
        for one, other in zip(mapping(latents), mapping(latents[order]), strict=True):
            torch.testing.assert_close(one[order], other, **close)
        alike = latents[:1].expand(WINDOW, -1, -1, -1)
        for one, other in zip(mapping(alike), flat(latents[:1]), strict=True):
            torch.testing.assert_close(one, other.expand_as(one), **close)


def test_each_slice_sees_the_others_of_its_window_alone():
    encoder, mapping = MultiResolutionEncoder3d().eval(), LatentMappingModel3d().eval()
    slices = torch.rand(2 * WINDOW, 3, 16, 16)
    changed = slices.clone()
    changed[1] = 1 - changed[1]
    with torch.no_grad():
        before, after = (mapping(encoder(one))[-1] for one in (slices, changed))
        alone = mapping(encoder(slices[WINDOW:]))[-1]
    differs = (before != after).flatten(1).any(1)
    assert differs[:WINDOW].all() and not differs[WINDOW:].any()
    torch.testing.assert_close(before[WINDOW:], alone, rtol=0, atol=1e-3)


def inflated(network):
    """Parameters that a 2-D network would have with a third side to each 3x3 kernel."""
    return sum(p.numel() * (3 if p.shape[2:] == (3, 3) else 1) for p in network.parameters())


def test_sizes_follow_from_the_two_dimensional_ones():
    assert SIZES["wave_gms_3d"] == 3_051_152 + 4_074_032
    assert inflated(LatentMappingModel()) == 4_074_032
    flat = MultiResolutionEncoder()
    flat.sub_bands = 8
    flat.__init__()
    # twice the channels go into and come out of each level's U-Net, and into the aggregation
    more = 3 * (27 * 12 * 16 + 27 * 16 * 12 + 12) + 27 * 36 * 16
    assert inflated(MultiResolutionEncoder()) + more == 3_051_152


def build(name):
    return build_variant(name), grey_vae() if VARIANTS[name].autoencoder else None


@pytest.mark.parametrize("name", VOLUMETRIC)
def test_it_learns_a_window_by_heart(name):
    """A square on three slices of eight; and every weight has a part in it."""
    model, vae = build(name)
    masks = torch.zeros(WINDOW, 1, 32, 32)
    masks[2:5, :, 8:24, 8:24] = 1
    images = (masks + 0.1 * torch.rand(WINDOW, 3, 32, 32)).clamp(0, 1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(12):
        terms = loss_terms(VARIANTS[name], model, WaveGMSLoss(), vae, images, masks)
        optimizer.zero_grad()
        terms["loss"].backward()
        optimizer.step()
        losses.append(terms["loss"].item())
    assert losses[-1] < 0.8 * losses[0]
    for key, parameter in model.named_parameters():
        # softmax does not see the one; instance normalisation takes the others' constants away
        unseen = key.endswith("key.bias") or (name == "unet_3d" and key.endswith(".bias"))
        assert parameter.grad is not None, key
        assert unseen or parameter.grad.abs().max() > 0, key


@pytest.mark.parametrize("name", VOLUMETRIC)
def test_it_is_kept_and_opened_again(name, tmp_path):
    model, vae = build(name)
    pipeline = as_pipeline(model, vae, 32)
    slices = torch.rand(WINDOW, 3, 32, 32)
    wanted = pipeline.predict(slices)
    assert wanted.std() > 0
    pipeline.save_pretrained(tmp_path)
    again = WaveGMSPipeline.from_pretrained(tmp_path)
    assert torch.equal(again.predict(slices), wanted)
    assert again.depth == WINDOW == VARIANTS[name].depth
    assert again.parameter_counts.trainable == SIZES[name]


def test_other_networks_take_images():
    for name in ("unet", "wave_gms", "tinyvae", "medsegdiff_v2_small"):
        assert as_pipeline(*build(name), 32).depth == VARIANTS[name].depth == 1


@pytest.mark.parametrize("bias", [True, False])
def test_a_convolution_across_slices_is_the_3d_one_of_a_repeated_edge(bias):
    layer = AcrossSlices(3, 5, bias).double()
    x = torch.rand(2, 3, 4, 6, 5, dtype=torch.float64, requires_grad=True)
    padded = functional.pad(x, (0, 0, 0, 0, 1, 1), mode="replicate")
    wanted = functional.conv3d(padded, layer.weight, layer.bias, padding=(0, 1, 1))
    found = layer(x)
    torch.testing.assert_close(found, wanted)
    weighing = torch.rand_like(wanted)
    gradients = [
        torch.autograd.grad((y * weighing).sum(), [x, *layer.parameters()]) for y in (found, wanted)
    ]
    torch.testing.assert_close(*gradients)


def test_half_precision_stays_half():
    x = torch.rand(1, 3, 4, 6, 5)
    with torch.autocast("cpu", torch.bfloat16):
        assert AcrossSlices(3, 5)(x).dtype == torch.bfloat16
