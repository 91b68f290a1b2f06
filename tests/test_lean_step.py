"""The lean loss against the plain one, which is the specification: same values, same gradients."""

import weakref

import pytest
import torch
from test_variants import build_kl

from wavegms.models.autoencoder import freeze
from wavegms.models.build import build_variant
from wavegms.training.autoencoder import build_autoencoder
from wavegms.training.loss import WaveGMSLoss, _DecodedDiceLoss
from wavegms.variants import VARIANTS

LATENT = [
    name for name, spec in VARIANTS.items() if spec.autoencoder == "tiny" and not spec.generative
]


@pytest.fixture
def vae():
    """Small and untrained, but decoding to mid grey, where the clamp lets gradients through."""
    vae = freeze(build_autoencoder(16, 1))
    vae.decoder.layers[-1].bias.fill_(0.5)
    return vae


@pytest.fixture
def batch():
    masks = torch.zeros(3, 1, 32, 32)
    masks[0, :, 4:20, 8:28] = 1
    masks[1, :, 10:30, 2:12] = 1  # the third is empty
    return torch.rand(3, 3, 32, 32), masks


def step(loss, name, vae, batch, kind):
    """Terms and gradients of one step from the same weights and the same random state."""
    torch.manual_seed(1)
    model = build_variant(name).train().to(kind)
    images, masks = (part.to(kind) for part in batch)
    latents, levels = model(images, vae.to(kind))
    terms = loss(latents if VARIANTS[name].aligned else None, levels, vae, images, masks)
    terms["loss"].backward()
    return terms, {key: parameter.grad for key, parameter in model.named_parameters()}


@pytest.mark.parametrize("supervision", ["all_levels", "last_three_levels"])
@pytest.mark.parametrize("name", LATENT)
@pytest.mark.parametrize(("kind", "tolerance"), [(torch.float32, 1e-4), (torch.float64, 1e-11)])
def test_terms_and_gradients_are_the_plain_ones(name, supervision, kind, tolerance, vae, batch):
    loss = WaveGMSLoss(supervision)
    (terms, gradients), (wanted, plain) = (
        step(form, name, vae, batch, kind) for form in (loss, loss.plain)
    )
    assert terms.keys() == wanted.keys()
    for key in terms:
        torch.testing.assert_close(terms[key], wanted[key], rtol=tolerance, atol=0)
    reached = [key for key, gradient in plain.items() if gradient is not None]
    assert reached == [key for key, gradient in gradients.items() if gradient is not None]
    # of the whole gradient, since in some parts of it (a bias before a softmax) all is rounding
    ours, theirs = (torch.cat([g[key].flatten() for key in reached]) for g in (gradients, plain))
    assert (ours - theirs).norm() <= tolerance * theirs.norm()
    assert theirs.norm() > 0


def test_an_sd_vae_gets_the_same_gradients(vae, batch):
    kl = freeze(build_kl())
    levels = list(torch.randn(4, 3, 4, 4, 4))
    results = []
    for loss in (WaveGMSLoss(), WaveGMSLoss().plain):
        inputs = [level.clone().requires_grad_() for level in levels]
        loss(None, inputs, kl, *batch)["loss"].backward()
        results.append([level.grad for level in inputs])
    for lean, plain in zip(*results, strict=True):
        assert (lean - plain).norm() <= 1e-4 * plain.norm()


def kept_for_backward(loss, vae, batch, levels):
    """Bytes of different storages that the graph of a loss still holds when it is made."""
    noted = []

    def note(tensor):
        noted.append(weakref.ref(tensor))
        return tensor

    latents = torch.randn(3, 4, 4, 4, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        terms = loss(latents, [latents * (k + 1) for k in range(levels)], vae, *batch)
    assert terms["loss"].requires_grad
    alive = [tensor for tensor in (reference() for reference in noted) if tensor is not None]
    storages = {tensor.untyped_storage().data_ptr(): tensor for tensor in alive}
    return sum(tensor.untyped_storage().nbytes() for tensor in storages.values())


def test_a_further_level_keeps_latents_alive_and_no_decoder(vae, batch):
    latent = 3 * 4 * 4 * 4 * 4  # bytes
    lean, plain = (
        kept_for_backward(form, vae, batch, 4) - kept_for_backward(form, vae, batch, 1)
        for form in (WaveGMSLoss(), WaveGMSLoss().plain)
    )
    # of each level: the latent, for the squared error, and the gradient of its Dice
    assert 0 < lean <= 3 * 2 * latent
    assert plain > 50 * lean


def test_gradients_pass_on_a_factor_from_above(vae, batch):
    """Loss scaling and accumulation multiply the loss; so must its gradient be."""
    level = torch.randn(3, 4, 4, 4)
    gradients = []
    for factor in (1.0, 1024.0):
        one = level.clone().requires_grad_()
        (factor * WaveGMSLoss()(None, [one] * 2, vae, *batch)["seg"]).backward()
        gradients.append(one.grad)
    torch.testing.assert_close(1024 * gradients[0], gradients[1], rtol=1e-5, atol=0)


def test_measuring_alone_keeps_nothing(vae, batch):
    level = torch.randn(3, 4, 4, 4)
    terms = WaveGMSLoss()(level, [level] * 4, vae, *batch)
    wanted = WaveGMSLoss().plain(level, [level] * 4, vae, *batch)
    assert not any(term.requires_grad for term in terms.values())
    torch.testing.assert_close(terms, wanted, rtol=1e-4, atol=1e-6)


def test_gradients_too_small_for_half_precision_are_kept():
    """A pixel's is about 1e-6 here; float16 has steps of 6e-8, so that 3 % would be lost."""
    soft, masks = torch.rand(2, 2, 1, 512, 1024)
    masks = masks.round()
    gradients = []
    for kind in (torch.float16, torch.float64):
        level = soft.half().to(kind).requires_grad_()
        wide = torch.promote_types(kind, torch.float32)
        loss = _DecodedDiceLoss.apply(level, lambda x: x, masks.to(wide))
        (2**20 * loss).backward()  # as in training, where the loss is scaled
        gradients.append(level.grad.double())
    torch.testing.assert_close(*gradients, rtol=2e-3, atol=0)


def test_a_second_derivative_is_refused_and_not_wrong(vae, batch):
    level = torch.randn(3, 4, 4, 4, requires_grad=True)
    seg = WaveGMSLoss()(None, [level], vae, *batch)["seg"]
    (gradient,) = torch.autograd.grad(seg.square(), level, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()
