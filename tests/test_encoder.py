"""The multi-resolution encoder: its exact size, its Gaussian, and what it refuses."""

import numpy as np
import pytest
import pywt
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from wavegms import MultiResolutionEncoder
from wavegms.models.encoder import FeatureUNet, ResidualBlock


def count(module):
    return sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)


def conv(in_channels, out_channels, kernel):
    return kernel * kernel * in_channels * out_channels + out_channels


def block(in_channels, out_channels):
    """GroupNorm - SiLU - 3x3 - GroupNorm - SiLU - 3x3, and 1x1 where the channels change."""
    norms = 2 * in_channels + 2 * out_channels
    convs = conv(in_channels, out_channels, 3) + conv(out_channels, out_channels, 3)
    return (
        norms + convs + (conv(in_channels, out_channels, 1) if in_channels != out_channels else 0)
    )


def u_net(in_channels, out_channels, skips=(32, 32, 32, 32, 16, 16)):
    """From the description alone; `skips` in the order in which the decoder takes them."""
    total, width = conv(in_channels, 16, 3), 16
    for channels in (16, 16, 32, 32, 32, 32):
        total, width = total + block(width, channels), channels
    total += 2 * block(32, 32)
    for channels, skip in zip((32, 32, 32, 32, 16, 16), skips, strict=True):
        total, width = total + block(width + skip, channels), channels
    return total + conv(width, out_channels, 3)


@pytest.fixture(scope="module")
def encoder():
    torch.manual_seed(0)
    return MultiResolutionEncoder().eval()


@pytest.fixture
def images():
    return torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def test_sizes_are_those_of_the_paper(encoder):
    assert [count(part) for part in encoder.feature_extraction] == [258_204] * 3
    assert count(encoder.feature_aggregation) == 261_080
    assert count(encoder) == 1_035_692


def test_sizes_follow_from_the_description():
    assert u_net(12, 12) == count(FeatureUNet(12, 12)) == 258_204
    assert u_net(36, 8) == count(FeatureUNet(36, 8)) == 261_080
    assert 3 * u_net(12, 12) + u_net(36, 8) == 1_035_692


def test_the_skip_after_the_first_convolution_is_not_used():
    """Seven tensors are at hand for six skips; taking the first would shift all the others."""
    shifted = u_net(12, 12, skips=(32, 32, 32, 16, 16, 16))
    assert shifted != count(FeatureUNet(12, 12)) == 258_204
    net = FeatureUNet(12, 12)
    expected = [64, 64, 64, 64, 48, 32]
    assert [part.body[0].num_channels for part in net.decoder] == expected


def test_the_three_feature_extractors_share_nothing(encoder):
    owners = [{id(p) for p in part.parameters()} for part in encoder.feature_extraction]
    storages = [{p.data_ptr() for p in part.parameters()} for part in encoder.feature_extraction]
    for sets in (owners, storages):
        assert len(set.union(*sets)) == sum(map(len, sets))
    first, second, third = (part.conv_in.weight for part in encoder.feature_extraction)
    assert not torch.equal(first, second) and not torch.equal(second, third)


@pytest.mark.parametrize(("channels_in", "channels_out"), [(16, 16), (16, 32)])
def test_the_residual_block_is_its_formula(channels_in, channels_out):
    block = ResidualBlock(channels_in, channels_out).double()
    for parameter in block.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    x = torch.randn(2, channels_in, 4, 5, dtype=torch.float64)
    functional, y = torch.nn.functional, x
    norm1, _, conv1, norm2, _, conv2 = block.body
    for norm, convolution in ((norm1, conv1), (norm2, conv2)):
        y = functional.group_norm(y, 8, norm.weight, norm.bias)
        y = y / (1 + torch.exp(-y))
        y = functional.conv2d(y, convolution.weight, convolution.bias, padding=1)
    shortcut = x
    if channels_in != channels_out:
        weight, bias = block.shortcut.weight[:, :, 0, 0], block.shortcut.bias
        shortcut = torch.einsum("oc,bchw->bohw", weight, x) + bias[:, None, None]
    torch.testing.assert_close(block(x), shortcut + y, rtol=0, atol=1e-10)


def test_the_u_net_takes_its_skips_last_first():
    net = FeatureUNet(12, 8).eval()
    x = torch.randn(1, 12, 6, 4)
    with torch.no_grad():
        y = net.conv_in(x)
        outputs = []
        for block in net.encoder:
            outputs.append(y := block(y))
        y = net.middle[1](net.middle[0](y))
        for k, block in enumerate(net.decoder):
            y = block(torch.cat([y, outputs[5 - k]], dim=1))
        assert torch.equal(net(x), net.conv_out(y))
    assert len(net.middle) == 2 and len(net.decoder) == len(outputs) == 6


def test_pywavelets_bands_pooled_and_aggregated_give_the_same(encoder, images):
    """The paper's figure, step by step, with the transform of PyWavelets."""
    features, ll = [], images.numpy().astype(np.float64)
    for level, extract in enumerate(encoder.feature_extraction, start=1):
        ll, details = pywt.dwt2(ll, "haar", axes=(-2, -1))
        bands = torch.from_numpy(np.concatenate([ll, *details], axis=1) / 2**level).float()
        wide = extract(bands)
        size = 2 ** (3 - level)
        batch, channels, height, width = wide.shape
        blocks = wide.reshape(batch, channels, height // size, size, width // size, size)
        features.append(blocks.mean((3, 5)))
    joined = encoder.feature_aggregation(torch.cat(features, dim=1))
    mean, log_variance = encoder.distribution(images)
    torch.testing.assert_close(torch.cat([mean, log_variance], 1), joined, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("level", [0, 1, 2])
def test_every_level_contributes(encoder, images, level):
    before = encoder(images)
    bias = encoder.feature_extraction[level].conv_out.bias
    with torch.no_grad():
        bias += 1
    try:
        assert not torch.allclose(encoder(images), before, atol=1e-4)
    finally:
        with torch.no_grad():
            bias -= 1


@given(st.integers(1, 2), st.integers(1, 6), st.integers(1, 6))
@settings(max_examples=10)
def test_latents_have_an_eighth_of_any_size(encoder, batch, rows, columns):
    with torch.no_grad():
        mean, log_variance = encoder.distribution(torch.rand(batch, 3, 8 * rows, 8 * columns))
    assert mean.shape == log_variance.shape == (batch, 4, rows, columns)


def test_width_and_height_are_not_mixed_up(encoder):
    assert encoder(torch.rand(1, 3, 24, 64)).shape == (1, 4, 3, 8)


def test_an_image_does_not_depend_on_its_batch(encoder, images):
    alone = torch.cat([encoder(image[None]) for image in images])
    torch.testing.assert_close(encoder(images), alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "shape",
    [(1, 1, 32, 32), (1, 4, 32, 32), (3, 32, 32), (1, 3, 32), (1, 1, 3, 32, 32), (1, 3, 8, 32, 32)],
)
def test_other_than_rgb_is_refused(encoder, shape):
    with pytest.raises(ValueError, match="RGB"):
        encoder(torch.zeros(shape))


@pytest.mark.parametrize("sides", [(28, 32), (32, 36), (4, 8), (33, 32), (32, 31)])
def test_sides_that_8_does_not_divide_are_refused(encoder, sides):
    with pytest.raises(ValueError, match=f"divisible by 8.*{sides[0]}, {sides[1]}"):
        encoder(torch.zeros(1, 3, *sides))


def test_inference_gives_the_mean_every_time(encoder, images):
    mean, _ = encoder.distribution(images)
    torch.manual_seed(1)
    first = encoder(images)
    torch.manual_seed(2)
    assert torch.equal(first, mean) and torch.equal(encoder(images), mean)


def test_training_samples(images):
    encoder = MultiResolutionEncoder().train()
    assert not torch.equal(encoder(images), encoder(images))
    once, again = (encoder(images, torch.Generator().manual_seed(4)) for _ in range(2))
    assert torch.equal(once, again)
    assert not torch.equal(once, encoder(images, torch.Generator().manual_seed(5)))


def test_samples_have_the_mean_and_variance_of_the_gaussian(encoder, monkeypatch):
    torch.manual_seed(3)
    mean, log_variance = torch.randn(1, 4, 1, 1), torch.randn(1, 4, 1, 1)
    many = torch.zeros(1, 3, 8, 8)
    wide = (mean.expand(1, 4, 100, 100), log_variance.expand(1, 4, 100, 100))
    monkeypatch.setattr(encoder, "distribution", lambda images: wide)
    monkeypatch.setattr(encoder, "training", True)
    sample = encoder(many)
    # 10,000 draws: the standard error of the mean is 1 % of sigma, that of sigma 0.7 %
    sigma = (log_variance / 2).exp()
    assert ((sample.mean((2, 3), keepdim=True) - mean).abs() < 0.05 * sigma).all()
    torch.testing.assert_close(sample.std((2, 3), keepdim=True), sigma, rtol=0.04, atol=0)


def test_gradients_reach_mean_and_variance_through_a_sample(images):
    encoder = MultiResolutionEncoder().train()
    encoder(images).square().sum().backward()
    rows = encoder.feature_aggregation.conv_out.weight.grad.flatten(1).norm(dim=1)
    assert rows.shape == (8,) and (rows > 0).all()
    for name, parameter in encoder.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize(("bias", "bound"), [(1e4, 20.0), (-1e4, -30.0)])
def test_the_log_variance_is_clamped_and_the_mean_is_not(images, bias, bound):
    encoder = MultiResolutionEncoder().eval()
    with torch.no_grad():
        encoder.feature_aggregation.conv_out.bias.fill_(bias)
        mean, log_variance = encoder.distribution(images)
    assert torch.equal(log_variance, torch.full_like(log_variance, bound))
    assert (mean.abs() > 9e3).all()


def test_sampling_at_inference_survives_saving(images, tmp_path):
    encoder = MultiResolutionEncoder(sample_at_inference=True).eval()
    assert not torch.equal(encoder(images), encoder(images))
    encoder.save_pretrained(tmp_path / "sampling")
    loaded = MultiResolutionEncoder.from_pretrained(tmp_path / "sampling").eval()
    assert loaded.config.sample_at_inference is True
    assert not torch.equal(loaded(images), loaded(images))
    once = encoder(images, torch.Generator().manual_seed(4))
    assert torch.equal(once, loaded(images, torch.Generator().manual_seed(4)))


def test_saving_and_loading_change_nothing(encoder, images, tmp_path):
    encoder.save_pretrained(tmp_path)
    loaded = MultiResolutionEncoder.from_pretrained(tmp_path).eval()
    assert loaded.config.sample_at_inference is False
    assert torch.equal(loaded(images), encoder(images))
