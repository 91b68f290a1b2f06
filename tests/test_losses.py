"""Every term of the loss against its formula, and where its gradients go."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from monai.losses import DiceLoss

from wavegms.models.autoencoder import decode_masks, encode_images, encode_masks
from wavegms.models.build import build_variant
from wavegms.training.loss import (
    WaveGMSLoss,
    _at_once,
    alignment_loss,
    dice_of_sums,
    dice_sums,
    soft_dice,
)


@st.composite
def soft_and_hard(draw):
    shape = (draw(st.integers(1, 3)), 1, draw(st.integers(1, 6)), draw(st.integers(1, 6)))
    soft = draw(arrays("float64", shape, elements=st.floats(0, 1)))
    hard = draw(arrays("bool", shape))
    hard[:, :, 0, 0] = True
    return torch.from_numpy(soft), torch.from_numpy(hard).double()


@given(soft_and_hard())
def test_soft_dice_is_monai_dice_and_the_formula(pair):
    soft, hard = pair
    monai = DiceLoss(smooth_nr=1e-5, smooth_dr=1e-5, reduction="none")(soft, hard)
    torch.testing.assert_close(1 - soft_dice(soft, hard), monai.flatten(), rtol=0, atol=1e-12)
    for p, m, result in zip(soft, hard, soft_dice(soft, hard), strict=True):
        formula = (2 * float((p * m).sum()) + 1e-5) / (float(p.sum()) + float(m.sum()) + 1e-5)
        assert float(result) == pytest.approx(formula, rel=1e-12)


def test_soft_dice_of_empty_and_full_masks():
    empty, full = torch.zeros(1, 1, 8, 8), torch.ones(1, 1, 8, 8)
    assert soft_dice(empty, empty).item() == 1
    assert soft_dice(full, full).item() == 1
    assert soft_dice(full, empty).item() == 0
    assert soft_dice(empty, full).item() == pytest.approx(1e-5 / (64 + 1e-5))


@given(st.floats(0, 1), st.integers(1, 63))
def test_an_empty_mask_pulls_no_harder_than_its_pixels(probability, ignored):
    """However little is found: the smoothed quotient would pull with up to 1e5."""
    masks = torch.zeros(1, 1, 8, 8)
    masks.view(-1)[:ignored] = 2
    soft = torch.full_like(masks, probability).requires_grad_()
    dice = soft_dice(soft, masks)
    assert dice.item() == pytest.approx(1 - probability, abs=1e-6)
    (gradient,) = torch.autograd.grad(dice.sum(), soft)
    counted = masks < 2
    torch.testing.assert_close(gradient, counted / -counted.sum())


def test_soft_dice_is_per_image():
    """A mean over images, not one Dice over all their pixels."""
    masks = torch.zeros(2, 1, 8, 8)
    masks[0, :, :1, :1] = 1
    masks[1] = 1
    guess = masks.clone()
    guess[0] = 0
    assert soft_dice(guess, masks).tolist() == pytest.approx([1e-5 / (1 + 1e-5), 1.0], rel=1e-4)


@pytest.mark.parametrize("classes", [1, 2, 3])
def test_sums_over_slices_give_the_dice_of_all_their_pixels(classes):
    """That of one picture which has the slices side by side; the last class is in none of them."""
    soft = torch.rand(3, classes, 8, 8)
    masks = torch.randint(0, classes + 2, (3, 1, 8, 8)).float()
    if classes > 1:
        masks[masks == classes] = 0
    picture, drawn = (torch.cat(list(part), dim=-1)[None] for part in (soft, masks))
    dice = dice_of_sums(dice_sums(soft, masks).sum(0))
    torch.testing.assert_close(dice, soft_dice(picture, drawn)[0])


def test_sums_of_one_class_without_foreground_are_judged_by_what_was_found():
    soft = torch.rand(3, 1, 8, 8)
    found = soft.flatten(1).sum(1)
    sums = dice_sums(soft, torch.zeros_like(soft))
    torch.testing.assert_close(dice_of_sums(sums), 1e-5 / (found + 1e-5))
    torch.testing.assert_close(dice_of_sums(sums.sum(0)), 1e-5 / (found.sum() + 1e-5))


LATENTS = st.integers(0, 2**32 - 1).map(
    lambda seed: (
        3
        * torch.randn(
            2, 2, 4, 3, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
        )
    )
)


@pytest.mark.parametrize("distance", ["l1", "smooth_l1"])
@given(pair=LATENTS)
def test_alignment_is_its_formula(distance, pair):
    z, target = pair
    dot = (z * target).sum(1)
    cosine = (dot / (z.square().sum(1).sqrt() * target.square().sum(1).sqrt())).mean()
    d = (z - target).abs()
    far = {"l1": d, "smooth_l1": torch.where(d < 1, d * d / 2, d - 0.5)}[distance].mean()
    expected = 0.9 * (1 - cosine) + 0.1 * far
    torch.testing.assert_close(alignment_loss(z, target, distance), expected)


@pytest.mark.parametrize("distance", ["l1", "smooth_l1"])
def test_alignment_of_identical_opposite_and_scaled_latents(distance):
    z = torch.randn(1, 4, 3, 3)
    assert alignment_loss(z, z, distance).item() == pytest.approx(0, abs=1e-5)
    unit = torch.zeros(1, 4, 3, 3)
    unit[:, 0] = 1
    # the cosine is -1; of four channels one is off by 2
    far = {"l1": 2 / 4, "smooth_l1": 1.5 / 4}[distance]
    assert alignment_loss(unit, -unit, distance).item() == pytest.approx(0.9 * 2 + 0.1 * far)
    # a longer latent of the same direction costs distance only
    far = {"l1": 2 / 4, "smooth_l1": 1.5 / 4}[distance]
    assert alignment_loss(3 * unit, unit, distance).item() == pytest.approx(0.1 * far)


def test_the_default_alignment_is_the_papers():
    z, target = torch.randn(2, 1, 4, 3, 3)
    assert alignment_loss(z, target) == alignment_loss(z, target, "l1")
    assert WaveGMSLoss() == WaveGMSLoss("all_levels", "l1")


@pytest.fixture
def batch():
    images = torch.rand(2, 3, 32, 32)
    masks = torch.zeros(2, 1, 32, 32)
    masks[0, :, 4:20, 8:28] = 1
    masks[1, :, 10:30, 2:12] = 1
    return images, masks


@pytest.mark.parametrize("distance", ["l1", "smooth_l1"])
@pytest.mark.parametrize(("supervision", "first"), [("all_levels", 0), ("last_three_levels", 1)])
def test_the_total_is_the_sum_of_the_papers_terms(small_vae, batch, supervision, first, distance):
    images, masks = batch
    latents, levels = torch.randn(2, 4, 4, 4), list(torch.randn(4, 2, 4, 4, 4))
    # decoded masks between 0 and 1, so that every level counts
    small_vae.decoder.layers[-1].bias.fill_(0.5)
    terms = WaveGMSLoss(supervision, distance)(latents, levels, small_vae, images, masks)
    assert terms.keys() == {"loss", "seg", "lm", "align"}
    assert all(value.shape == () for value in terms.values())

    z_i = small_vae.encode(2 * images - 1).latents
    z_m = small_vae.encode(2 * masks.repeat(1, 3, 1, 1) - 1).latents
    lm = sum(((level - z_m) ** 2).mean() for level in levels[first:])
    dice = DiceLoss(smooth_nr=1e-5, smooth_dr=1e-5)
    decoded = [(small_vae.decode(level).sample.mean(1, True) + 1) / 2 for level in levels[first:]]
    seg = sum(dice(soft.clamp(0, 1), masks) for soft in decoded)
    torch.testing.assert_close(terms["lm"], lm, rtol=1e-4, atol=0)
    torch.testing.assert_close(terms["seg"], seg, rtol=1e-4, atol=0)
    align = alignment_loss(latents, z_i, distance)
    torch.testing.assert_close(terms["align"], align, rtol=1e-4, atol=0)
    torch.testing.assert_close(terms["loss"], terms["seg"] + terms["lm"] + terms["align"])


def test_the_reference_leaves_out_the_deepest_level_only(small_vae, batch):
    images, masks = batch
    latents, levels = torch.randn(2, 4, 4, 4), list(torch.randn(4, 2, 4, 4, 4))
    changed = [5 * levels[0], *levels[1:]]
    for supervision, equal in (("all_levels", False), ("last_three_levels", True)):
        loss = WaveGMSLoss(supervision)
        before, after = (loss(latents, ls, small_vae, *batch)["loss"] for ls in (levels, changed))
        assert torch.equal(before, after) is equal
    assert images.shape and masks.shape


def test_a_perfect_prediction_costs_what_the_autoencoder_loses(trained_vae, train_set):
    images = train_set.to_float(train_set.images)
    masks = train_set.mask_to_float(train_set.masks)
    z_i, z_m = encode_images(trained_vae, images), encode_masks(trained_vae, masks)
    terms = WaveGMSLoss()(z_i, [z_m] * 4, trained_vae, images, masks)
    assert terms["lm"].item() == 0
    assert terms["align"].item() == pytest.approx(0, abs=1e-5)
    lost = 1 - soft_dice(decode_masks(trained_vae, z_m), masks).mean()
    assert terms["seg"].item() == pytest.approx(4 * lost.item(), rel=1e-3)
    assert 0 < lost < 0.1


@pytest.mark.parametrize("supervision", ["all_levels", "last_three_levels"])
def test_gradients_reach_all_that_is_trained_and_nothing_frozen(small_vae, batch, supervision):
    model = build_variant("wave_gms").train()
    terms = WaveGMSLoss(supervision)(*model(batch[0]), small_vae, *batch)
    terms["loss"].backward()
    for name, parameter in model.named_parameters():
        unsupervised = supervision == "last_three_levels" and name.startswith("mapping.heads.0.")
        if unsupervised:
            assert parameter.grad is None, name
        elif not name.endswith("key.bias"):  # softmax does not see it
            assert parameter.grad is not None and parameter.grad.abs().max() > 0, name
    assert all(parameter.grad is None for parameter in small_vae.parameters())


def test_each_term_reaches_what_it_teaches(trained_vae, train_set):
    """L_seg passes through the frozen decoder; L_align teaches the encoder only."""
    model = build_variant("wave_gms").train()
    images = train_set.to_float(train_set.images)
    masks = train_set.mask_to_float(train_set.masks)
    terms = WaveGMSLoss()(*model(images), trained_vae, images, masks)
    parts = (model.encoder.feature_aggregation.conv_out, model.mapping.heads[-1][-1])
    weights = [part.weight for part in parts]

    def reached(term):
        grads = torch.autograd.grad(terms[term], weights, retain_graph=True, allow_unused=True)
        return [grad is not None and grad.abs().sum().item() > 0 for grad in grads]

    assert reached("seg") == [True, True]
    assert reached("lm") == [True, True]
    assert reached("align") == [True, False]


def test_targets_are_constants(small_vae, batch):
    """Images that require gradients get none through z_I and z_M."""
    images, masks = (part.clone().requires_grad_() for part in batch)
    latents = torch.randn(2, 4, 4, 4, requires_grad=True)
    terms = WaveGMSLoss()(latents, [latents] * 4, small_vae, images, masks)
    (terms["lm"] + terms["align"]).backward()
    assert latents.grad is not None and images.grad is None and masks.grad is None


@pytest.mark.parametrize(
    ("side", "count", "device"),
    [
        *((side, n, "cpu") for side, n in ((4096, 1), (128, 1), (64, 4), (32, 16), (4, 1024))),
        *((side, n, "meta") for side, n in ((2048, 1), (224, 12), (32, 588), (4, 37_632))),
    ],
)
def test_as_many_images_go_through_at_once_as_were_fastest(side, count, device):
    """Whatever is no CPU counts as a GPU."""
    for sides in ((side, side), (side // 4, side * 4), (side * 4, side // 4)):
        masks = torch.empty((), device=device).expand(99, 1, *sides)
        assert _at_once(masks) == count


@pytest.mark.parametrize("form", ["lean", "plain"])
@pytest.mark.parametrize("known", [0, 1])
def test_latents_are_compared_where_masks_are_known(small_vae, batch, form, known):
    """Of nothing that counts the error is 0, of one latent that latent's alone."""
    images, masks = batch[0], torch.full_like(batch[1], 2)
    if known:
        masks[0, :, :8, 8:16] = 1
    levels = [level.requires_grad_() for level in torch.randn(4, 2, 4, 4, 4)]
    loss = WaveGMSLoss()
    terms = (loss if form == "lean" else loss.plain)(None, levels, small_vae, images, masks)
    targets = encode_masks(small_vae, masks * (masks < 2))[0, :, 0, 1]
    errors = [(level[0, :, 0, 1] - targets).square().mean() for level in levels]
    torch.testing.assert_close(terms["lm"], known * sum(errors))
    terms["loss"].backward()
    assert all(torch.isfinite(level.grad).all() for level in levels)
    if not known:
        assert terms["seg"].item() == 0 and not any(level.grad.any() for level in levels)
