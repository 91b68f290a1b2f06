"""MedSegDiff-V2, SDSeg and GSS: their sizes, losses and samplers against formulas."""

import math

import pytest
import torch
from diffusers import AutoencoderKL
from runs import grey_vae
from test_variants import build_kl
from torch.distributions import Normal, kl_divergence
from torch.nn import functional

from wavegms.costs.measure import _SD_VAE
from wavegms.models.autoencoder import decode_masks, encode_masks, freeze
from wavegms.models.rivals import gss, medsegdiff_v2, sdseg
from wavegms.models.rivals.medsegdiff_v2 import sampler, variational_bound


def sizes(*modules):
    return [sum(p.numel() for p in module.parameters()) for module in modules]


@pytest.fixture
def batch():
    masks = torch.zeros(2, 1, 64, 64)
    masks[0, :, 8:40, 16:48] = masks[1, :, 20:60, 4:30] = 1
    return 0.2 * torch.rand(2, 3, 64, 64) + 0.6 * masks, masks


def test_medsegdiff_has_the_official_sizes():
    with torch.device("meta"):
        model = medsegdiff_v2.medsegdiff_v2()
    assert sizes(model, model.denoiser) == [129_400_450, 113_673_218]
    denoiser, condition = model.denoiser, model.condition
    ways = [sum(sizes(*blocks)) for blocks in (denoiser.down_blocks, denoiser.up_blocks)]
    assert [ways[0] + sum(sizes(denoiser.conv_in)), ways[1]] == [31_265_152, 71_056_512]
    assert sizes(denoiser.time_embedding, denoiser.mid_block) == [328_704, 11_020_288]
    assert sum(sizes(denoiser.conv_norm_out, denoiser.conv_out)) == 2_562
    down = [10_272, 55_680, 221_952, 886_272, 3_182_400, 4_150_080]
    assert sizes(*condition.encoder) == down
    assert sizes(*condition.decoder) == [5_255_328, 1_475_712, 369_216, 92_448, 27_840]
    assert sizes(condition.head) == [32]


def test_sdseg_has_the_official_sizes():
    with torch.device("meta"):
        model = sdseg.sdseg(AutoencoderKL(**_SD_VAE))
    parts = sizes(model, model.denoiser, model.vision, model.bridge)
    assert parts == [329_137_456, 294_973_828, 34_163_592, 36]


def test_gss_has_the_size_of_the_formula():
    with torch.device("meta"):
        model = gss.gss()
    head = [*sizes(model.fusion.levels, model.fusion.fuse, model.stage, model.norm)]
    assert head == [1_477_632, 787_456, 4_210_976, 1_024]
    assert sizes(model.widen, model.classify) == [1_052_672, 16_785_408]
    pixels = sizes(model.pixels.levels, model.pixels.fuse, model.classify_pixels)
    assert pixels == [1_477_632, 590_592, 770]
    assert sizes(model) == [49_892_194]


# MedSegDiff-V2


def schedule(start, end, steps=1000, root=False):
    """Betas and what is kept of the data, one after the other."""
    betas, kept, product = [], [], 1.0
    for step in range(steps):
        share = step / (steps - 1)
        low, high = (math.sqrt(start), math.sqrt(end)) if root else (start, end)
        betas.append((low + share * (high - low)) ** (2 if root else 1))
        product *= 1 - betas[-1]
        kept.append(product)
    return torch.tensor(betas, dtype=torch.float64), torch.tensor(kept, dtype=torch.float64)


def test_the_schedules_are_their_closed_forms():
    noise = medsegdiff_v2.medsegdiff_v2_small().noise
    found = sampler(1000).alphas_cumprod, sampler(20).alphas_cumprod, noise.alphas_cumprod
    for kept in found:
        torch.testing.assert_close(kept.double(), schedule(1e-4, 0.02)[1], rtol=1e-4, atol=0)
    noise = sdseg.sdseg_small(grey_vae()).noise
    expected = schedule(0.0015, 0.0155, root=True)[1]
    torch.testing.assert_close(noise.alphas_cumprod.double(), expected, rtol=1e-4, atol=0)


def test_the_bound_is_the_divergence_from_the_true_posterior():
    """By the product of two Gaussians: what led to the noisy mask, and what the mask led to."""
    betas, kept = schedule(1e-4, 0.02)
    steps = torch.tensor([1, 40, 700, 999])
    start = torch.rand(4, 1, 3, 3, dtype=torch.float64).round()
    noisy, found, share = torch.randn(3, 4, 1, 3, 3, dtype=torch.float64)
    share = share.tanh()
    bits = variational_bound(betas, start, noisy, steps, found, share)
    for i, step in enumerate(steps.tolist()):
        beta, before = betas[step], kept[step - 1]

        def posterior(clean, i=i, beta=beta, before=before):
            precision = (1 - beta) / beta + 1 / (1 - before)
            mean = (1 - beta).sqrt() * noisy[i] / beta + before.sqrt() * clean / (1 - before)
            return Normal(mean / precision, precision.rsqrt())

        truth = posterior(start[i])
        clean = (noisy[i] - (1 - kept[step]).sqrt() * found[i]) / kept[step].sqrt()
        fraction = (share[i] + 1) / 2
        variance = beta**fraction * truth.variance ** (1 - fraction)
        model = Normal(posterior(clean).mean, variance.sqrt())
        expected = kl_divergence(truth, model).mean() / math.log(2)
        torch.testing.assert_close(bits[i], expected)


def test_the_first_steps_bound_is_the_surprise_in_8_bits():
    betas, kept = schedule(1e-4, 0.02)
    start = torch.tensor([-1.0, -0.2, 0, 0.4, 1], dtype=torch.float64).view(5, 1, 1, 1)
    noisy, found = start + 0.01 * torch.randn_like(start), torch.randn_like(start)
    first = torch.zeros(5, dtype=torch.long)
    bits = variational_bound(betas, start, noisy, first, found, torch.ones_like(start))
    clean = (noisy - betas[0].sqrt() * found) / kept[0].sqrt()
    model = Normal(clean, betas[0].sqrt())  # all of the posterior's weight is on what is clean
    share = model.cdf(start + 1 / 255) - model.cdf(start - 1 / 255)
    share[0], share[4] = model.cdf(start + 1 / 255)[0], 1 - model.cdf(start - 1 / 255)[4]
    expected = -share.clamp_min(1e-12).log2().flatten()
    torch.testing.assert_close(bits, expected)


def test_medsegdiffs_loss_is_its_formula(batch):
    """An untrained denoiser says that there is no noise, with a variance half way."""
    images, masks = batch
    model = medsegdiff_v2.medsegdiff_v2_small().eval()
    terms = model.loss(images, masks, torch.Generator().manual_seed(3))
    same = torch.Generator().manual_seed(3)
    steps = torch.randint(1000, (2,), generator=same)
    noise = torch.randn(masks.shape, generator=same)
    torch.testing.assert_close(terms["noise"], (noise**2).mean())
    betas, kept = schedule(1e-4, 0.02)
    kept = kept[steps].view(2, 1, 1, 1)
    noisy = kept.sqrt() * masks + (1 - kept).sqrt() * noise
    zero = torch.zeros_like(noisy)
    bound = variational_bound(betas, masks.double(), noisy, steps, zero, zero).mean()
    torch.testing.assert_close(terms["bound"].double(), bound, rtol=1e-3, atol=1e-6)
    rough, guide = model.condition(images)
    torch.testing.assert_close(terms["condition"], 10 * ((rough - masks) ** 2).mean())
    assert guide.shape == (2, 16, 64, 64)
    torch.testing.assert_close(terms["loss"], sum(v for k, v in terms.items() if k != "loss"))


def test_who_learns_from_which_term_of_medsegdiff(batch):
    model = medsegdiff_v2.medsegdiff_v2_small().train()
    torch.nn.init.normal_(model.denoiser.conv_out.weight, std=0.1)
    terms = model.loss(*batch)
    last = model.denoiser.conv_out.weight
    (of_bound,) = torch.autograd.grad(terms["bound"], last, retain_graph=True)
    assert not of_bound[0].any() and of_bound[1].any()
    guided = torch.autograd.grad(
        terms["noise"], list(model.condition.parameters()), retain_graph=True, allow_unused=True
    )
    assert all(gradient is None for gradient in guided)
    terms["loss"].backward()
    assert all(p.grad is not None and p.grad.any() for p in model.parameters())


def test_the_guide_changes_what_is_found_and_leaves_no_hook(batch):
    model = medsegdiff_v2.medsegdiff_v2_small().eval()
    torch.nn.init.normal_(model.denoiser.conv_out.weight, std=0.1)
    images, masks = batch
    guide, step = torch.rand(2, 16, 64, 64), torch.tensor([5, 900])
    with torch.no_grad():
        found = [model.denoise(images, masks, step, g) for g in (guide, 0 * guide)]
        plain = model.denoiser(torch.cat([images, masks], 1), step).sample
    assert torch.equal(found[1], plain) and not torch.allclose(found[0], plain)


@pytest.mark.parametrize("steps", [20, 1000])
def test_sampling_gives_the_distribution_whose_noise_is_known(steps, monkeypatch):
    """Of pixels that are normal, the noise most likely to be in what is seen has a closed form."""
    mean, spread = 0.4, 0.15
    kept = schedule(1e-4, 0.02)[1].float()
    model = medsegdiff_v2.medsegdiff_v2_small().eval()

    def denoise(images, noisy, step, guide):
        k = kept[step].view(-1, 1, 1, 1)
        noise = (1 - k).sqrt() * (noisy - k.sqrt() * mean) / (k * spread**2 + 1 - k)
        return torch.cat([noise, torch.ones_like(noise)], 1)

    monkeypatch.setattr(model, "denoise", denoise)
    images = torch.rand(1, 3, 32, 32)
    generator = torch.Generator().manual_seed(0)
    soft = model.predict(images, steps=steps, ensemble=1, generator=generator)
    # few steps end by a jump over what noise is left, to the mean of what it may hide
    left = 1 / kept[sampler(steps).timesteps[-1]].item() - 1
    expected = spread**2 / math.sqrt(spread**2 + left)
    assert soft.mean().item() == pytest.approx(mean, abs=5 * spread / 32)
    assert soft.std().item() == pytest.approx(expected, rel=0.1)
    if steps == 20:
        several = model.predict(images, steps=steps, ensemble=4, generator=generator)
        assert several.std().item() == pytest.approx(expected / 2, rel=0.1)


# SDSeg


@pytest.fixture(params=["tiny", "kl"])
def vae(request):
    torch.manual_seed(0)
    return grey_vae() if request.param == "tiny" else freeze(build_kl())


def test_one_step_undoes_the_noise_that_is_known(vae):
    model, latents = sdseg.sdseg_small(vae), torch.randn(3, 4, 4, 4)
    noise, steps = torch.randn_like(latents), torch.tensor([0, 400, 999])
    noisy = model.noise.add_noise(latents, noise, steps)
    torch.testing.assert_close(model.at_once(noisy, noise, steps), latents, rtol=0, atol=1e-4)
    for i, step in enumerate(steps):
        theirs = model.noise.step(noise[i : i + 1], step, noisy[i : i + 1]).pred_original_sample
        ours = model.at_once(noisy[i : i + 1], noise[i : i + 1], step[None])
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


class Knowing(torch.nn.Module):
    """A denoiser that was told the latents; or one that finds nothing."""

    def __init__(self, latents, kept):
        super().__init__()
        self.latents, self.kept = latents, kept

    def forward(self, x, steps):
        noisy, k = x[:, :4], self.kept[steps].view(-1, 1, 1, 1)
        noise = 0 * noisy if self.latents is None else noisy - k.sqrt() * self.latents
        return type("Output", (), {"sample": noise / (1 - k).sqrt()})


def test_sdseg_decodes_what_its_denoiser_knows(vae, batch):
    images, masks = batch
    model = sdseg.sdseg_small(vae).eval()
    model.fit_scale(vae, masks)
    latents = encode_masks(vae, masks)
    model.denoiser = Knowing(latents * model.scale, model.noise.alphas_cumprod)
    soft = model.predict(vae, images)
    torch.testing.assert_close(soft, decode_masks(vae, latents), rtol=0, atol=1e-3)
    assert soft.shape == masks.shape


def test_sdsegs_loss_is_its_formula(batch):
    images, masks = batch
    vae = grey_vae()
    model = sdseg.sdseg_small(vae).eval()
    model.fit_scale(vae, masks)
    latents = encode_masks(vae, masks) * model.scale
    assert latents.std().item() == pytest.approx(1, rel=1e-4)
    model.denoiser = Knowing(None, model.noise.alphas_cumprod)
    terms = model.loss(vae, images, masks, torch.Generator().manual_seed(3))
    same = torch.Generator().manual_seed(3)
    steps = torch.randint(1000, (2,), generator=same)
    noise = torch.randn(latents.shape, generator=same)
    kept = schedule(0.0015, 0.0155, root=True)[1].float()[steps].view(2, 1, 1, 1)
    noisy = kept.sqrt() * latents + (1 - kept).sqrt() * noise
    torch.testing.assert_close(terms["noise"], noise.abs().mean())
    expected = (noisy / kept.sqrt() - latents).abs().mean()
    torch.testing.assert_close(terms["latent"], expected, rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(terms["loss"], terms["noise"] + terms["latent"])


def test_all_of_sdseg_learns_and_nothing_frozen_does(vae, batch):
    model = sdseg.sdseg_small(vae).train()
    dropouts = {m.p for m in model.vision.modules() if isinstance(m, torch.nn.Dropout)}
    assert dropouts <= {0.2}
    theirs, ours = vae.encoder.state_dict(), model.vision.state_dict()
    assert all(torch.equal(theirs[key], value) for key, value in ours.items())
    model.fit_scale(vae, batch[1])
    model.loss(vae, *batch)["loss"].backward()
    silent = [k for k, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    # softmax does not see the one
    assert [key for key in silent if not key.endswith("to_k.bias")] == []
    assert all(p.grad is None for p in vae.parameters())


# GSS


@pytest.fixture
def codebook():
    torch.manual_seed(0)
    return gss.build_codebook(64, 8, 4).eval().requires_grad_(False)


def test_codes_are_those_nearest_and_decode_as_the_codebook_does(codebook, batch):
    masks = batch[1]
    codes = gss.codes_of(codebook, masks)
    pictures = masks.expand(-1, 3, -1, -1) * 2 - 1
    latents = codebook.encode(pictures).latents
    entries = codebook.quantize.embedding.weight
    distances = (latents.movedim(1, -1)[..., None, :] - entries).square().sum(-1)
    assert torch.equal(codes, distances.argmin(-1)) and codes.shape == (2, 8, 8)
    decoded = (codebook.decode(latents).sample.mean(1, keepdim=True) + 1) / 2
    torch.testing.assert_close(gss.masks_of(codebook, codes), decoded.clamp(0, 1))


def test_gsss_loss_is_its_formula(codebook, batch):
    images, masks = batch
    model = gss.gss_small().eval()
    terms = model.loss(codebook, images, masks)
    scores, pixels = model(images)
    assert scores.shape == (2, 64, 16, 16) and pixels.shape == (2, 2, 16, 16)
    large = masks.repeat_interleave(2, 2).repeat_interleave(2, 3)
    assert torch.equal(gss.doubled(masks), large)  # of rectangles
    codes = gss.codes_of(codebook, large)
    right = scores.log_softmax(1).gather(1, codes[:, None])
    torch.testing.assert_close(terms["codes"], -0.8 * right.mean())
    pixels = functional.interpolate(pixels, (64, 64), mode="bilinear").log_softmax(1)
    right = torch.where(masks > 0, pixels[:, 1:], pixels[:, :1])
    torch.testing.assert_close(terms["pixels"], -0.2 * right.mean())
    torch.testing.assert_close(terms["loss"], terms["codes"] + terms["pixels"])


def test_gss_predicts_what_the_codes_decode_to(codebook, batch, monkeypatch):
    images, masks = batch
    model = gss.gss_small().eval()
    codes = gss.codes_of(codebook, gss.doubled(masks))
    scores = functional.one_hot(codes, 64).movedim(-1, 1).float()
    monkeypatch.setattr(model, "forward", lambda _: (scores, None))
    large = gss.masks_of(codebook, codes)
    expected = functional.avg_pool2d(large, 2)
    torch.testing.assert_close(model.predict(codebook, images), expected)


def test_all_of_gss_learns_and_a_batch_by_heart(codebook, batch):
    images, masks = batch
    model = gss.gss_small().train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for step in range(25):
        loss = model.loss(codebook, images, masks)["loss"]
        optimizer.zero_grad()
        loss.backward()
        if step == 0:
            first = loss.item()
            assert all(p.grad is not None and p.grad.any() for p in model.parameters())
        optimizer.step()
    assert loss.item() < 0.2 * first
    assert all(p.grad is None for p in codebook.parameters())


def test_a_codebook_learns_masks(batch):
    torch.manual_seed(0)
    codebook = gss.build_codebook(64, 8, 4).train()
    optimizer = torch.optim.AdamW(codebook.parameters(), lr=3e-3)
    losses = []
    for _ in range(40):
        losses.append(gss.codebook_loss(codebook, batch[1]))
        optimizer.zero_grad()
        losses[-1].backward()
        optimizer.step()
    assert losses[-1] < 0.5 * losses[0]
