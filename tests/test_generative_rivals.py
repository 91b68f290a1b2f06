"""MedSegDiff-V2, SDSeg and GSS: their sizes, losses and samplers against formulas."""

import json
import math
from functools import partial

import pandas as pd
import pytest
import torch
from diffusers import AutoencoderKL
from runs import grey_vae, make_run
from test_variants import SIZES, build_kl
from torch.distributions import Normal, kl_divergence
from torch.nn import functional

from wavegms import InputError, WaveGMSPipeline
from wavegms.costs.measure import _SD_VAE, count_sizes
from wavegms.data.dataset import PreparedDataset
from wavegms.models.autoencoder import decode_masks, encode_masks, freeze
from wavegms.models.build import as_pipeline, build_variant
from wavegms.models.rivals import gss, medsegdiff_v2, sdseg
from wavegms.models.rivals.medsegdiff_v2 import sampler, variational_bound
from wavegms.training import loop as training_loop
from wavegms.training.kept import start_network
from wavegms.training.loss import soft_dice
from wavegms.training.recipe import train
from wavegms.training.state import STATE_NAME
from wavegms.variants import VARIANTS


def sizes(*modules):
    return [sum(p.numel() for p in m.parameters() if p.requires_grad) for m in modules]


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
    terms = model.loss(images, masks, generators=torch.Generator().manual_seed(3))
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
    model.steps, model.ensemble = steps, 1

    def denoise(images, noisy, step, guide):
        k = kept[step].view(-1, 1, 1, 1)
        noise = (1 - k).sqrt() * (noisy - k.sqrt() * mean) / (k * spread**2 + 1 - k)
        return torch.cat([noise, torch.ones_like(noise)], 1)

    monkeypatch.setattr(model, "denoise", denoise)
    images = torch.rand(1, 3, 32, 32)
    generator = torch.Generator().manual_seed(0)
    soft = model.predict(images, generators=generator)
    # few steps end by a jump over what noise is left, to the mean of what it may hide
    left = 1 / kept[sampler(steps).timesteps[-1]].item() - 1
    expected = spread**2 / math.sqrt(spread**2 + left)
    assert soft.mean().item() == pytest.approx(mean, abs=5 * spread / 32)
    assert soft.std().item() == pytest.approx(expected, rel=0.1)
    if steps == 20:
        model.ensemble = 4
        several = model.predict(images, generators=generator)
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
    model.begin(masks, vae, 0)
    latents = encode_masks(vae, masks)
    model.denoiser = Knowing(latents * model.scale, model.noise.alphas_cumprod)
    soft = model.predict(images, partial(decode_masks, vae))
    torch.testing.assert_close(soft, decode_masks(vae, latents), rtol=0, atol=1e-3)
    assert soft.shape == masks.shape


def test_sdsegs_loss_is_its_formula(batch):
    images, masks = batch
    vae = grey_vae()
    model = sdseg.sdseg_small(vae).eval()
    model.begin(masks, vae, 0)
    latents = encode_masks(vae, masks) * model.scale
    assert latents.std().item() == pytest.approx(1, rel=1e-4)
    model.denoiser = Knowing(None, model.noise.alphas_cumprod)
    terms = model.loss(images, masks, vae, torch.Generator().manual_seed(3))
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
    torch.nn.init.zeros_(next(model.vision.parameters()))
    model.begin(batch[1], vae, 0)
    theirs, ours = vae.encoder.state_dict(), model.vision.state_dict()
    assert all(torch.equal(theirs[key], value) for key, value in ours.items())
    model.loss(*batch, vae)["loss"].backward()
    silent = [k for k, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    # softmax does not see the one
    assert [key for key in silent if not key.endswith("to_k.bias")] == []
    assert all(p.grad is None for p in vae.parameters())


# GSS


def test_codes_are_those_nearest_and_decode_as_the_codebook_does(batch):
    masks, codebook = batch[1], gss.gss_small().codebook
    codes = gss.codes_of(codebook, masks)
    pictures = masks.expand(-1, 3, -1, -1) * 2 - 1
    latents = codebook.encode(pictures).latents
    entries = codebook.quantize.embedding.weight
    distances = (latents.movedim(1, -1)[..., None, :] - entries).square().sum(-1)
    assert torch.equal(codes, distances.argmin(-1)) and codes.shape == (2, 8, 8)
    decoded = (codebook.decode(latents).sample.mean(1, keepdim=True) + 1) / 2
    torch.testing.assert_close(gss.masks_of(codebook, codes), decoded.clamp(0, 1))


def test_gsss_loss_is_its_formula(batch):
    images, masks = batch
    model = gss.gss_small().eval()
    terms = model.loss(images, masks)
    scores, pixels = model(images)
    assert scores.shape == (2, 64, 16, 16) and pixels.shape == (2, 2, 16, 16)
    large = masks.repeat_interleave(2, 2).repeat_interleave(2, 3)
    assert torch.equal(gss.doubled(masks), large)  # of rectangles
    codes = gss.codes_of(model.codebook, large)
    right = scores.log_softmax(1).gather(1, codes[:, None])
    torch.testing.assert_close(terms["codes"], -0.8 * right.mean())
    pixels = functional.interpolate(pixels, (64, 64), mode="bilinear").log_softmax(1)
    right = torch.where(masks > 0, pixels[:, 1:], pixels[:, :1])
    torch.testing.assert_close(terms["pixels"], -0.2 * right.mean())
    torch.testing.assert_close(terms["loss"], terms["codes"] + terms["pixels"])


def test_gss_predicts_what_the_codes_decode_to(batch, monkeypatch):
    images, masks = batch
    model = gss.gss_small().eval()
    codebook = model.codebook
    codes = gss.codes_of(codebook, gss.doubled(masks))
    scores = functional.one_hot(codes, 64).movedim(-1, 1).float()
    monkeypatch.setattr(model, "forward", lambda _: (scores, None))
    large = gss.masks_of(codebook, codes)
    expected = functional.avg_pool2d(large, 2)
    torch.testing.assert_close(model.predict(images), expected)


def test_all_of_gss_learns_and_a_batch_by_heart(batch):
    images, masks = batch
    model = gss.gss_small().train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for step in range(40):
        loss = model.loss(images, masks)["loss"]
        optimizer.zero_grad()
        loss.backward()
        if step == 0:
            first = loss.item()
            for key, parameter in model.named_parameters():
                learns = parameter.grad is not None and parameter.grad.any()
                assert learns != key.startswith("codebook"), key
        optimizer.step()
    assert loss.item() < 0.25 * first


def test_a_codebook_learns_masks(batch):
    codebook = gss.build_codebook(64, 8, 4)
    masks = batch[1][..., ::2, ::2]
    dice = [gss.train_codebook(codebook, masks, steps, seed=0) for steps in (1, 40)]
    assert dice[0] < 0.7 and dice[1] > 0.8


# in the loop

SMALL = ("medsegdiff_v2_small", "sdseg_small", "gss_small")


class Ending(PreparedDataset):
    """A training split that ends the process, as it were, when so many images were taken."""

    left = None

    def __getitem__(self, index):
        if self.left is not None:
            self.left -= 1
            if self.left < 0:
                raise KeyboardInterrupt
        return super().__getitem__(index)


@pytest.fixture
def run(prepared, validation_set, training_params, tmp_path, monkeypatch):
    """Two epochs of two steps; GSS's codebook is left with ten."""
    whole = gss.train_codebook
    monkeypatch.setattr(
        gss, "train_codebook", lambda book, masks, steps, *rest: whole(book, masks, 10, *rest)
    )

    def make(name, place="model", left=None, **changes):
        vae = grey_vae() if VARIANTS[name].autoencoder else None
        split = Ending(prepared, "train", in_memory=place != "again")
        split.left = left
        names = {"variant": name, "checkpoints": tmp_path / place, "vae": vae} | changes
        return make_run(tmp_path, split, validation_set, training_params(epochs=2), **names)

    return make


@pytest.mark.parametrize("name", SMALL)
def test_trained_interrupted_kept_and_opened_again(
    name, run, validation_set, tmp_path, monkeypatch
):
    monkeypatch.setattr(training_loop, "_SAVE_SECONDS", 0.0)
    result = train(run(name))
    terms = {
        "medsegdiff_v2_small": {"noise", "bound", "condition"},
        "sdseg_small": {"noise", "latent"},
        "gss_small": {"codes", "pixels"},
    }[name]
    others = {"epoch", "learning_rate", "loss", "selection_dice"}
    assert set(result.history) == terms | others
    with pytest.raises(KeyboardInterrupt):
        # from disk; in the second epoch, as all four were also taken once before the first
        train(run(name, "again", left=4 + 5))
    assert (tmp_path / "again" / STATE_NAME).exists()
    again = train(run(name, "again"))
    pd.testing.assert_frame_equal(again.history, result.history)

    pipe = WaveGMSPipeline.from_pretrained(result.folder / "best")
    other = WaveGMSPipeline.from_pretrained(again.folder / "best")
    assert pipe.parameter_counts.trainable == result.trainable_parameters == SIZES[name]
    assert (pipe.vae is not None) == (name == "sdseg_small")
    images = validation_set.to_float(validation_set.images)
    soft = pipe.predict(images)
    assert torch.equal(other.predict(images), soft)
    assert soft.shape == (2, 1, 32, 32) and soft.min() >= 0 and soft.max() <= 1
    dice = soft_dice(soft, validation_set.mask_to_float(validation_set.masks)).mean().item()
    assert dice == pytest.approx(result.best_dice, abs=1e-4)
    start = start_network(str(result.folder / "last"), name, run(name).vae)
    begun = train(run(name, "further", start=start))
    assert begun.history["loss"][0] != result.history["loss"][0]


@pytest.mark.parametrize("name", SMALL)
def test_a_prediction_does_not_depend_on_its_batch(name):
    torch.manual_seed(5)
    vae = grey_vae() if VARIANTS[name].autoencoder else None
    model = build_variant(name, vae=vae)
    if name == SMALL[0]:
        torch.nn.init.normal_(model.network.denoiser.conv_out.weight, std=0.1)
    pipe, images = as_pipeline(model, vae, 32), torch.rand(3, 3, 32, 32)
    close = {"rtol": 0, "atol": 1e-3}
    whole = pipe.predict(images)
    torch.testing.assert_close(
        torch.cat([pipe.predict(one[None]) for one in images]), whole, **close
    )
    torch.testing.assert_close(pipe.predict(images.flip(0)).flip(0), whole, **close)
    one, two = (torch.Generator().manual_seed(7) for _ in range(2))
    drawn = pipe.predict(images, one)
    parts = torch.cat([pipe.predict(part, two) for part in images.split(2)])
    torch.testing.assert_close(parts, drawn, **close)
    # what is drawn matters, but to the one that draws nothing
    assert ((drawn - whole).abs().max() > 0.01) == (name != "gss_small")


def test_pixels_that_do_not_count_are_black():
    model = build_variant("gss_small").eval()
    masks = torch.randint(3, (2, 1, 32, 32)).float()
    images = torch.rand(2, 3, 32, 32)
    drawn = model(images, masks * (masks < 2))
    assert model(images, masks)["loss"] == drawn["loss"]


@pytest.mark.parametrize("name", SMALL)
def test_no_onnx_file(name, tmp_path):
    vae = grey_vae() if VARIANTS[name].autoencoder else None
    pipe = as_pipeline(build_variant(name, vae=vae), vae, 32)
    with pytest.raises(InputError, match=f"{name} .*ONNX file.*predict with torch"):
        pipe.export_onnx(tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())


def test_sdseg_without_its_autoencoder_is_no_pipeline(tmp_path):
    vae = grey_vae()
    pipe = as_pipeline(build_variant("sdseg_small", vae=vae), vae, 32)
    pipe.save_pretrained(tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text())
    (tmp_path / "model_index.json").write_text(json.dumps(index | {"vae": [None, None]}))
    with pytest.raises(InputError, match="needs the autoencoder"):
        WaveGMSPipeline.from_pretrained(tmp_path)


@pytest.mark.slow
def test_operations_are_counted():
    counts = pd.DataFrame(count_sizes(SMALL, 64)).set_index("variant")
    assert counts["trainable_parameters"].to_dict() == {
        "medsegdiff_v2_small": SIZES["medsegdiff_v2_small"],
        "sdseg_small": 1_717_052,  # with TAESD
        "gss_small": SIZES["gss_small"],
    }
    # two samples of five steps, which are nearly all of it
    ratio = counts["inference_gflop"] / counts["training_gflop"]
    assert ratio["medsegdiff_v2_small"] == pytest.approx(10 / 3, rel=0.3)
    assert (counts["inference_gflop"] > 0).all()
