"""The latent mapping model: its exact size, its attention, and which level hears whom."""

import math

import pytest
import torch

from wavegms import LatentMappingModel
from wavegms.models.mapping import ResidualUnit, SpatialSelfAttention

ENCODER = [(32, 32), (32, 64), (64, 128), (128, 128)]
DECODER = [(128 + 128, 128), (64 + 128, 64), (32 + 64, 32), (32 + 32, 32)]


def count(module):
    return sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)


def block(in_channels, out_channels):
    """ResAttn: from the description alone."""
    unit = 2 * in_channels + 1 + 9 * in_channels * out_channels + out_channels
    unit += 2 * out_channels + 1 + 9 * out_channels * out_channels + out_channels
    if in_channels != out_channels:
        unit += in_channels * out_channels  # 1x1 without bias
    attention = 2 * out_channels + 4 * (out_channels * out_channels + out_channels)
    return unit + attention


@pytest.fixture
def model():
    torch.manual_seed(0)
    return LatentMappingModel()


def test_size_is_that_of_the_paper(model):
    assert count(model) == 1_564_976


def test_size_follows_from_the_description():
    total = 9 * 4 * 32 + 32
    total += sum(block(*channels) for channels in ENCODER + DECODER)
    total += sum(2 * out + 9 * out * 4 for _, out in DECODER)  # heads without bias
    assert total == 1_564_976


@pytest.mark.parametrize("shape", [(2, 4, 4, 4), (1, 4, 2, 6), (1, 4, 1, 1), (3, 4, 5, 3)])
def test_four_levels_of_the_shape_of_the_latents(model, shape):
    levels = model(torch.randn(shape))
    assert [level.shape for level in levels] == [shape] * 4


def test_an_image_does_not_depend_on_its_batch(model):
    latents = torch.randn(3, 4, 4, 4)
    alone = [torch.cat(parts) for parts in zip(*(model(x[None]) for x in latents), strict=True)]
    for together, single in zip(model(latents), alone, strict=True):
        torch.testing.assert_close(together, single, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("index", range(4))
def test_a_level_hears_what_lies_before_it_and_nothing_after(model, index):
    """Deepest first: level 0 comes from the first decoder block, level 3 from the last."""
    latents = torch.randn(1, 4, 4, 4, requires_grad=True)
    model(latents)[index].square().sum().backward()
    assert latents.grad.abs().sum() > 0

    def heard(module):
        grads = [parameter.grad for parameter in module.parameters()]
        assert all(g is None for g in grads) or all(g is not None for g in grads)
        return grads[0] is not None and all(bool(torch.isfinite(g).all()) for g in grads)

    assert heard(model.conv_in) and all(heard(part) for part in model.encoder)
    assert [heard(part) for part in model.decoder] == [k <= index for k in range(4)]
    assert [heard(part) for part in model.heads] == [k == index for k in range(4)]


def test_every_parameter_is_used_by_the_four_levels_together(model):
    sum(level.square().sum() for level in model(torch.randn(2, 4, 4, 4))).backward()
    for name, parameter in model.named_parameters():
        if name.endswith("key.bias"):
            # it adds the same to every key, which softmax does not see
            assert parameter.grad.abs().max() < 1e-2 * model.conv_in.weight.grad.abs().max()
        else:
            assert parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize("index", range(4))
def test_encoder_outputs_are_skips_last_first(model, index):
    """The last channels that decoder block k takes are the input of encoder block 3 - k."""
    seen = {}

    def remember(key):
        return lambda module, inputs: seen.__setitem__(key, inputs[0].detach())

    for k in range(4):
        model.encoder[k].register_forward_pre_hook(remember(f"encoder {k}"))
        model.decoder[k].register_forward_pre_hook(remember(f"decoder {k}"))
    model(torch.randn(1, 4, 4, 4))
    skip = seen[f"encoder {3 - index}"]
    assert torch.equal(seen[f"decoder {index}"][:, -skip.shape[1] :], skip)


@pytest.mark.parametrize("sides", [(4, 4), (3, 5), (1, 1)])
def test_attention_is_the_softmax_formula(sides):
    torch.manual_seed(1)
    channels = 32
    attention = SpatialSelfAttention(channels).double()
    for parameter in attention.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    x = torch.randn(2, channels, *sides, dtype=torch.float64)

    # GroupNorm by hand: 16 groups over channels and positions, eps 1e-6
    grouped = x.reshape(2, 16, -1)
    centred = grouped - grouped.mean(2, keepdim=True)
    normed = centred / (centred.square().mean(2, keepdim=True) + 1e-6).sqrt()
    normed = normed.reshape(2, channels, -1)
    normed = normed * attention.norm.weight[:, None] + attention.norm.bias[:, None]

    def linear(convolution, values):
        weight = convolution.weight[:, :, 0, 0]
        return torch.einsum("oc,bcn->bon", weight, values) + convolution.bias[:, None]

    q, k, v = (linear(part, normed) for part in (attention.query, attention.key, attention.value))
    weights = torch.softmax(torch.einsum("bcn,bcm->bnm", q, k) / math.sqrt(channels), dim=2)
    attended = linear(attention.out, torch.einsum("bnm,bcm->bcn", weights, v))
    torch.testing.assert_close(attention(x), x + attended.reshape(x.shape), rtol=0, atol=1e-10)


def test_attention_follows_a_permutation_of_the_positions():
    """It has no notion of place: normalisation, 1x1 convolutions and softmax are all symmetric."""
    attention = SpatialSelfAttention(32).double()
    x = torch.randn(1, 32, 3, 4, dtype=torch.float64)
    order = torch.randperm(12)

    def shuffle(y):
        return y.flatten(2)[:, :, order].unflatten(2, (3, 4))

    torch.testing.assert_close(attention(shuffle(x)), shuffle(attention(x)), rtol=0, atol=1e-10)
    assert not torch.allclose(attention(shuffle(x)), attention(x))


def test_the_residual_unit_is_its_formula():
    torch.manual_seed(2)
    unit = ResidualUnit(32, 48).double()
    for name, parameter in unit.named_parameters():
        if "body.1" not in name and "body.4" not in name:  # slopes of PReLU stay 0.25
            torch.nn.init.normal_(parameter, std=0.2)
    x = torch.randn(1, 32, 4, 5, dtype=torch.float64)
    functional, y, (norm1, _, conv1, norm2, _, conv2) = torch.nn.functional, x, unit.body
    for norm, convolution in ((norm1, conv1), (norm2, conv2)):
        y = functional.group_norm(y, 16, norm.weight, norm.bias, eps=1e-6)
        y = torch.where(y > 0, y, 0.25 * y)
        y = functional.conv2d(y, convolution.weight, convolution.bias, padding=1)
    expected = y + torch.einsum("oc,bchw->bohw", unit.shortcut.weight[:, :, 0, 0], x)
    torch.testing.assert_close(unit(x), expected, rtol=0, atol=1e-10)


def test_initialisation_is_kaiming_normal_by_fan_out(model):
    convolutions = {name: m for name, m in model.named_modules() if isinstance(m, torch.nn.Conv2d)}
    # one at the input; in each of 8 blocks two and four for the attention; six shortcuts; heads
    assert len(convolutions) == 1 + 8 * 6 + 6 + 4
    for name, convolution in convolutions.items():
        if convolution.bias is not None:
            assert not convolution.bias.any(), name
        weight = convolution.weight.detach()
        fan_out = weight.shape[0] * weight.shape[2] * weight.shape[3]
        sigma = math.sqrt(2 / (1 + 0.01**2) / fan_out)
        n = weight.numel()
        # five standard errors of a sample standard deviation and of a mean
        assert weight.std().item() == pytest.approx(sigma, rel=5 / math.sqrt(2 * n)), name
        assert abs(weight.mean().item()) < 5 * sigma / math.sqrt(n), name
        if n > 9000:  # a normal distribution, not a uniform one of the same width
            beyond = (weight.abs() > 2 * sigma).float().mean().item()
            assert beyond == pytest.approx(0.0455, abs=0.012), name


def test_norms_and_slopes_start_neutral(model):
    for module in model.modules():
        if isinstance(module, torch.nn.GroupNorm):
            assert (module.num_groups, module.eps) == (16, 1e-6)
            assert (module.weight == 1).all() and (module.bias == 0).all()
        if isinstance(module, torch.nn.PReLU):
            assert module.weight.tolist() == [0.25]


def test_saving_and_loading_change_nothing(model, tmp_path):
    latents = torch.randn(1, 4, 4, 4)
    model.eval().save_pretrained(tmp_path)
    loaded = LatentMappingModel.from_pretrained(tmp_path)
    for level, expected in zip(loaded(latents), model(latents), strict=True):
        assert torch.equal(level, expected)
