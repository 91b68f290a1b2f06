"""`training.recipe: published`: that each rival learns by what its authors wrote down."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from conftest import NO_AUGMENTATION
from runs import as_tiny, grey_vae, make_run
from safetensors.torch import save_file
from torch import nn
from torch.optim import lr_scheduler
from torch.optim.lr_scheduler import LambdaLR

from wavegms import InputError, WaveGMSPipeline
from wavegms.config import TrainingParams
from wavegms.data.batches import Augmentation, TrainingBatches
from wavegms.data.dataset import PreparedDataset
from wavegms.models.build import build_variant
from wavegms.models.imagenet import begin_from_imagenet
from wavegms.models.mask_network import logits_of
from wavegms.recipes import one_cycle, planned_batch, planned_widths, polynomial
from wavegms.training import loop as training_loop
from wavegms.training.loss import soft_dice
from wavegms.training.publish import publish_model
from wavegms.training.published import LOSSES, learner_of, optimizer_of
from wavegms.training.recipe import learning_rate_factor, loss_terms, train
from wavegms.training.state import describe_run
from wavegms.variants import VARIANTS, followed_recipe

WITH_RECIPE = [name for name, spec in VARIANTS.items() if spec.published]
MASKS = [name for name in WITH_RECIPE if not VARIANTS[name].generative]


def recipe_of(name):
    return VARIANTS[name].published


@pytest.fixture
def in_pairs(monkeypatch):
    """Of the recipe of a variant, with two images at once and other changes."""

    def change(name, **changes):
        recipe = replace(recipe_of(name), **{"batch_size": 2} | changes)
        monkeypatch.setitem(VARIANTS, name, replace(VARIANTS[name], published=recipe))
        return recipe

    return change


@pytest.fixture
def run_of(train_set, validation_set, training_params, tmp_path):
    def make(variant, name="run", vae=None, sets=None, **changes):
        settings = training_params(**{"recipe": "published"} | changes)
        sets = sets or (train_set, validation_set)
        return make_run(tmp_path / name, *sets, settings, variant=variant, vae=vae)

    return make


# ---- losses, by formulas written out in float64 -------------------------------------------------


def entropy(p, t):
    """Of the shares of background and classes, (B, K + 1, H, W), where t is true, (B, 1, H, W)."""
    return -np.log(np.take_along_axis(p, t, 1))


def dice_of(p, t, smooth, power=1):
    return (2 * (p * t).sum() + smooth) / ((p**power).sum() + (t**power).sum() + smooth)


def of_each(t, p):
    return t == np.arange(p.shape[1])[:, None, None]


def plain_bce(shares, t):
    return entropy(shares[0], t).mean()


def plain_weighted(shares, t):
    p = shares[0]
    found, wanted = entropy(p, t), of_each(t, p)
    ce = np.mean([found[t == value].mean() for value in range(p.shape[1])])
    halves = [
        (0.5 * p[i, k], 0.5 * wanted[i, k]) for i in range(len(p)) for k in range(1, p.shape[1])
    ]
    dice = np.mean([1 - dice_of(a, b, 1e-5, 2) for a, b in halves])
    return 0.5 * dice + 0.5 * ce


def plain_nnunet(shares, t):
    weights = np.array([1, 1 / 2, 1 / 4, 1 / 8])
    weights = weights / weights.sum()
    np.testing.assert_allclose(weights, [0.533, 0.267, 0.133, 0.067], atol=5e-4)
    total = 0
    for level, (weight, p) in enumerate(zip(weights, shares, strict=True)):
        smaller = t[:, :, :: 2**level, :: 2**level]
        wanted, classes = of_each(smaller, p), range(1, p.shape[1])
        dice = np.mean([dice_of(p[:, k], wanted[:, k], 1e-5) for k in classes])
        total += weight * (1 - dice + entropy(p, smaller).mean())
    return total


def plain_egeunet(shares, t):
    def one(p):
        wanted, classes = of_each(t, p), range(1, p.shape[1])
        dice = [dice_of(p[i, k], wanted[i, k], 1) for i in range(len(p)) for k in classes]
        return entropy(p, t).mean() + np.mean([1 - each for each in dice])

    mask, five, four, three, two, first = map(one, shares)
    return mask + 0.1 * five + 0.2 * four + 0.3 * three + 0.4 * two + 0.5 * first


def plain_swin(shares, t):
    p = shares[0]
    dice = [dice_of(p[:, k], of_each(t, p)[:, k], 1e-5, 2) for k in range(p.shape[1])]
    return 0.4 * entropy(p, t).mean() + 0.6 * (1 - np.mean(dice))


PLAIN = {
    "bce": (plain_bce, [16]),
    "weighted_bce_dice": (plain_weighted, [16]),
    "nnunet": (plain_nnunet, [16, 8, 4, 2]),
    "egeunet": (plain_egeunet, [16] * 6),
    "swin_unet": (plain_swin, [16]),
}


def drawn(sides, classes=1):
    logits = [torch.randn(3, logits_of(classes), side, side, dtype=torch.float64) for side in sides]
    return logits, torch.randint(classes + 1, (3, 1, 16, 16)).double()


@pytest.mark.parametrize("classes", [1, 3])
@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_is_the_published_formula(name, classes):
    """Of several classes too, where a softmax gives the shares; of one it is a sigmoid's."""
    plain, sides = PLAIN[name]
    logits, masks = drawn(sides, classes)
    terms = LOSSES[name](logits, masks)
    if classes == 1:
        logits = [torch.cat([torch.zeros_like(one), one], 1) for one in logits]
    shares = [one.softmax(1).numpy() for one in logits]
    expected = plain(shares, masks.long().numpy())
    assert terms["loss"].item() == pytest.approx(expected, rel=1e-10)
    assert sum(v.item() for k, v in terms.items() if k != "loss") == pytest.approx(expected)


@pytest.mark.parametrize("classes", [1, 3])
@pytest.mark.parametrize("name", LOSSES)
def test_pixels_that_do_not_count_have_no_part_in_a_loss(name, classes):
    logits, masks = drawn(PLAIN[name][1], classes)
    masks[:, :, :8] = classes + 1
    masks[1] = classes + 1  # an image of which nothing counts
    other = [one.clone() for one in logits]
    for one in other:
        one[:, -1:, : one.shape[2] // 2] += 3
    first, second = (LOSSES[name](one, masks)["loss"] for one in (logits, other))
    assert torch.isfinite(first) and first.item() == pytest.approx(second.item(), rel=1e-12)


def test_every_recipe_has_its_loss():
    assert {recipe_of(name).loss for name in MASKS} == set(LOSSES) == set(PLAIN)
    generative = set(WITH_RECIPE) - set(MASKS)
    assert {recipe_of(name).loss for name in generative} == {"own"}


# ---- learning rates, by torch's own schedules ---------------------------------------------------

TORCHS = {
    "multiresunet": lambda o, n: lr_scheduler.ConstantLR(o, factor=1),
    "acc_unet": lambda o, n: lr_scheduler.CosineAnnealingWarmRestarts(o, 10, eta_min=1e-4),
    "uctransnet": lambda o, n: lr_scheduler.CosineAnnealingWarmRestarts(o, 10, eta_min=1e-4),
    "nnunet": lambda o, n: lr_scheduler.PolynomialLR(o, n, power=0.9),
    "egeunet": lambda o, n: lr_scheduler.CosineAnnealingLR(o, T_max=50, eta_min=1e-5),
    "swin_unet": lambda o, n: lr_scheduler.PolynomialLR(o, n, power=0.9),
    "sme_swin_unet": lambda o, n: lr_scheduler.OneCycleLR(o, 1e-3, total_steps=n, pct_start=0.1),
    "medsegdiff_v2": lambda o, n: lr_scheduler.ConstantLR(o, factor=1),
    "sdseg": lambda o, n: LambdaLR(o, lambda k: min(1, (k + 1) / 10_000)),
}


@pytest.mark.parametrize("name", TORCHS)
def test_the_learning_rate_is_torchs_own(name):
    recipe, total = recipe_of(name), 120
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=recipe.learning_rate)
    schedule = TORCHS[name](optimizer, total)
    for done in range(total):
        rate = recipe.learning_rate * recipe.schedule.share(done, total)
        assert rate == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-7, abs=1e-12), done
        optimizer.step()
        schedule.step()


def test_gss_warms_up_and_falls_in_a_line():
    recipe, total = recipe_of("gss"), 6000
    rates = [1.2e-4 * recipe.schedule.share(k, total) for k in (0, 749, 1499, 3000, 5999)]
    expected = [1 / 1500, 0.5 * (1 - 749 / total), 1 - 1499 / total, 0.5, 1 / total]
    assert rates == pytest.approx([1.2e-4 * share for share in expected])


@pytest.mark.parametrize("name", WITH_RECIPE)
def test_as_long_as_the_epochs_are_not_known_a_rate_stays_at_its_beginning(name):
    share = recipe_of(name).schedule.share
    assert share(0, 0) == pytest.approx(share(0, 1000)) and 0 < share(7, 0) <= 1
    assert min(share(k, 40) for k in range(40)) > 0 and max(share(k, 40) for k in range(40)) <= 1


def test_a_short_training_by_one_cycle_or_a_polynomial_stays_finite():
    for share in (one_cycle, partial(polynomial, power=0.9)):
        for total in range(1, 12):
            assert all(0 < share(done, total) <= 1 for done in range(total))


# ---- nnU-Net's rules ----------------------------------------------------------------------------


def test_nnunets_depth_follows_the_side():
    assert planned_widths(224) == (32, 64, 128, 256, 512, 512)
    assert len(planned_widths(256)) == 7
    assert len(planned_widths(96)) == len(planned_widths(64)) == 5
    for name, side, millions in (("nnunet_planned", 256, 33.47), ("nnunet_planned", 96, 7.77)):
        with torch.device("meta"):
            network = build_variant("nnunet", image_size=side, in_place=name)
        # published with 2.5 to 12 thousand biases and heads that are not here
        assert network.num_parameters() / 1e6 == pytest.approx(millions, abs=0.02)


def test_nnunet_as_planned_for_224_is_the_common_one():
    with torch.device("meta"):
        networks = [
            build_variant("nnunet", image_size=224, in_place=n) for n in (None, "nnunet_planned")
        ]
    first, second = ({k: v.shape for k, v in n.state_dict().items()} for n in networks)
    assert first == second


@pytest.mark.parametrize(
    ("images", "expected"), [(132, 7), (517, 26), (472, 24), (8015, 65), (10**6, 65), (4, 2)]
)
def test_nnunets_batch_follows_the_images(images, expected):
    assert planned_batch(224, images) == recipe_of("nnunet").batch_size_for(224, images) == expected


def test_nnunet_is_supervised_at_four_of_five_sizes():
    model = build_variant("nnunet", image_size=64, in_place="nnunet_planned")
    learner = learner_of(recipe_of("nnunet"), model)
    assert [head.in_channels for head in learner.heads] == [64, 128]
    images = torch.rand(2, 3, 64, 64)
    logits = learner(images)
    assert [one.shape[-1] for one in logits] == [64, 32, 16]
    torch.testing.assert_close(logits[0].sigmoid(), model(images))
    LOSSES["nnunet"](logits, torch.ones(2, 1, 64, 64))["loss"].backward()
    assert all(parameter.grad is not None for parameter in learner.parameters())
    with torch.device("meta"):
        whole = learner_of(recipe_of("nnunet"), build_variant("nnunet"))
    assert [head.in_channels for head in whole.heads] == [64, 128, 256]


# ---- what is optimised --------------------------------------------------------------------------

# As the pages have them: learning rate, weight decay and what else its class is told.
OPTIMISERS = {
    "multiresunet": (torch.optim.Adam, 1e-3, 0, {"eps": 1e-7, "betas": (0.9, 0.999)}),
    "acc_unet": (torch.optim.Adam, 1e-3, 0, {"eps": 1e-8}),
    "nnunet": (torch.optim.SGD, 1e-2, 3e-5, {"momentum": 0.99, "nesterov": True}),
    "egeunet": (torch.optim.AdamW, 1e-3, 1e-2, {"betas": (0.9, 0.999)}),
    "swin_unet": (torch.optim.SGD, 0.05, 1e-4, {"momentum": 0.9, "nesterov": False}),
    "sme_swin_unet": (torch.optim.Adam, 1e-3, 0, {}),
    "uctransnet": (torch.optim.Adam, 1e-3, 0, {}),
    "medsegdiff_v2": (torch.optim.AdamW, 1e-4, 0, {}),
    "sdseg": (torch.optim.AdamW, 4e-5, 1e-2, {}),
    "gss": (torch.optim.AdamW, 1.2e-4, 1e-2, {"betas": (0.9, 0.999)}),
}
BATCHES = {
    "multiresunet": 10,
    "acc_unet": 12,
    "egeunet": 8,
    "swin_unet": 24,
    "sme_swin_unet": 12,
    "uctransnet": 4,
    "medsegdiff_v2": 8,
    "sdseg": 4,
    "gss": 32,
}


@pytest.mark.parametrize("name", OPTIMISERS)
def test_optimiser_and_batch_are_the_published_ones(name):
    kind, rate, decay, options = OPTIMISERS[name]
    optimizer = optimizer_of(recipe_of(name), nn.Conv2d(3, 1, 1))
    (group,) = optimizer.param_groups
    assert type(optimizer) is kind
    assert (group["lr"], group["weight_decay"]) == (rate, decay)
    assert {key: group[key] for key in options} == options
    if name in BATCHES:
        assert recipe_of(name).batch_size_for(224, 500) == BATCHES[name]
    assert (recipe_of(name).clip == 12) == (name == "nnunet")


def test_norms_and_tables_of_positions_of_gss_do_not_decay():
    model = build_variant("gss_small")
    decayed, free = optimizer_of(recipe_of("gss_small"), model).param_groups
    assert (decayed["weight_decay"], free["weight_decay"]) == (1e-2, 0)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    apart = {names[id(parameter)] for parameter in free["params"]}
    for name, module in model.named_modules():
        if type(module).__name__ in ("BatchNorm2d", "LayerNorm") and "codebook" not in name:
            assert {f"{name}.weight", f"{name}.bias"} <= apart
    tables = {name for name in names.values() if name.endswith("relative_position_bias_table")}
    assert len(tables) == 2 and tables <= apart
    assert all(model.get_parameter(name).ndim == 1 for name in apart - tables)
    learning = {id(p) for p in model.parameters() if p.requires_grad}
    both = [id(p) for group in (decayed, free) for p in group["params"]]
    assert len(both) == len(set(both)) and set(both) == learning


def test_a_moving_average_follows_the_steps_and_is_what_is_kept():
    torch.manual_seed(0)
    vae = grey_vae()
    model = build_variant("sdseg_small", image_size=32, vae=vae)
    recipe = recipe_of("sdseg_small")
    learner = learner_of(recipe, model)
    optimizer = optimizer_of(replace(recipe, learning_rate=0.01), learner)
    expected, name = None, "network.bridge.weight"
    for step in range(4):
        terms = learner(torch.rand(2, 3, 32, 32), torch.ones(2, 1, 32, 32), vae, None)
        optimizer.zero_grad()
        terms["loss"].backward()
        optimizer.step()
        weight = learner.learning.get_parameter(name).detach().clone()
        factor = (1 + step) / (10 + step)
        expected = weight if expected is None else factor * expected + (1 - factor) * weight
    torch.testing.assert_close(model.get_parameter(name), expected)
    assert not torch.equal(weight, expected)
    assert all(parameter.grad is None for parameter in model.parameters())


# ---- the loop -----------------------------------------------------------------------------------


def pairs_of(train_set, seed=1):
    augmentation = Augmentation(**NO_AUGMENTATION)
    options = {"batch_size": 2, "seed": seed, "device": torch.device("cpu")}
    return TrainingBatches(train_set, augmentation, **options)


def weights(folder):
    return WaveGMSPipeline.from_pretrained(folder).network.state_dict()


def test_the_common_recipe_is_a_plain_loop_bit_for_bit(run_of, train_set, monkeypatch):
    """As it was before there was another: AdamW, warm-up and cosine, soft Dice."""
    as_tiny(monkeypatch)
    settings = {"recipe": "common", "epochs": 3, "warmup_epochs": 1}
    run = run_of("tiny", **settings)
    result = train(run)
    torch.manual_seed(1)
    model = build_variant("tiny", image_size=32)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.01, fused=True)
    schedule = LambdaLR(optimizer, lambda epoch: learning_rate_factor(epoch, 3, 1))
    for epoch in (1, 2, 3):
        for batch in pairs_of(train_set).epoch(epoch):
            loss = (1 - soft_dice(model(batch.images), batch.masks)).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        schedule.step()
    found = weights(result.folder / "last")
    assert all(torch.equal(value, found[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("clip", [12.0, 0.05])
def test_nnunets_recipe_is_a_plain_loop(run_of, train_set, in_pairs, clip):
    in_pairs("nnunet_small", clip=clip)
    result = train(run_of("nnunet_small", epochs=2))
    torch.manual_seed(1)
    model = build_variant("nnunet_small", image_size=32)
    options = {"momentum": 0.99, "nesterov": True, "weight_decay": 3e-5, "fused": True}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, **options)
    schedule = lr_scheduler.PolynomialLR(optimizer, 2, power=0.9)
    norms = []
    for epoch in (1, 2):
        for batch in pairs_of(train_set).epoch(epoch):
            images = batch.images.contiguous(memory_format=torch.channels_last)
            loss = LOSSES["nnunet"]([model.network(images)], batch.masks)["loss"]
            optimizer.zero_grad()
            loss.backward()
            norms.append(nn.utils.clip_grad_norm_(model.parameters(), clip).item())
            optimizer.step()
        schedule.step()
    assert (max(norms) > clip) == (clip < 1)
    found = weights(result.folder / "last")
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, found[name], rtol=1e-6, atol=1e-7)


def test_a_rate_that_changes_by_step_is_that_of_the_runs_steps(run_of, in_pairs):
    in_pairs("swin_unet_small")
    history = train(run_of("swin_unet_small", epochs=3)).history
    # of the last of each epoch's two steps
    expected = [0.05 * (1 - step / 6) ** 0.9 for step in (1, 3, 5)]
    assert list(history["learning_rate"]) == pytest.approx(expected)
    assert {"ce", "dice"} <= set(history)


class Breaks(PreparedDataset):
    """Fails when an image is taken for the n-th time."""

    def __init__(self, folder, at):
        super().__init__(folder, "train")
        self.left = at

    def __getitem__(self, index):
        self.left -= 1
        if self.left == 0:
            raise ZeroDivisionError
        return super().__getitem__(index)


@pytest.mark.parametrize("variant", ["nnunet_small", "swin_unet_small", "sdseg_small"])
def test_an_interrupted_training_ends_the_same(
    run_of, in_pairs, prepared, validation_set, monkeypatch, variant
):
    """SGD; a rate by step; a moving average."""
    in_pairs(variant)
    monkeypatch.setattr(training_loop, "_SAVE_SECONDS", 0.0)
    vae = grey_vae() if VARIANTS[variant].autoencoder else None
    whole = train(run_of(variant, "whole", vae, epochs=2))
    broken = Breaks(prepared, at=6), validation_set  # in the first step of the second epoch
    with pytest.raises(ZeroDivisionError):
        train(run_of(variant, "cut", vae, broken, epochs=2))
    again = train(run_of(variant, "cut", vae, epochs=2))
    assert again.history.equals(whole.history)
    for name in ("best", "last"):
        one, other = (weights(result.folder / name) for result in (whole, again))
        assert all(torch.equal(value, other[key]) for key, value in one.items())


def test_another_recipe_refuses_a_state_and_unused_parameters_do_not(run_of):
    def described(**changes):
        return describe_run(run_of("uctransnet_small", **changes), "fp32")

    published = described()
    unused = {"learning_rate": 9.0, "weight_decay": 0.5, "batch_size": 3, "warmup_epochs": 7}
    assert described(**unused) == published
    assert (
        published["training.learning_rate"] == "0.001" and published["training.batch_size"] == "4"
    )
    common = described(recipe="common")
    changed = {name for name in common if common[name] != published[name]}
    assert "training.recipe" in changed
    assert described(recipe="common", learning_rate=9.0) != common


def test_an_unused_warmup_is_no_obstacle_and_the_card_says_what_applied(
    run_of, in_pairs, train_set
):
    recipe = in_pairs("nnunet_small")
    run = run_of("nnunet_small", epochs=1, warmup_epochs=9, learning_rate=5.0, batch_size=3)
    card = publish_model(run, train(run))
    training = card.parameters["training"]
    assert (training["recipe"], training["batch_size"]) == ("published", 2)
    assert (training["learning_rate"], training["weight_decay"]) == (0.01, 3e-5)
    assert card.parameters["recipe"]["options"] == "momentum 0.99, nesterov True"
    assert card.parameters["recipe"]["begins"] == "from random weights" and recipe.clip
    assert card.trainable_parameters == 29_634


def test_wave_gms_keeps_the_common_recipe_which_is_its_own(run_of):
    run = run_of("wave_gms", vae=grey_vae(), learning_rate=0.003)
    assert run.recipe is None and run.batch_size == 2
    assert run.applied["learning_rate"] == 0.003


def test_variants_without_a_recipe_refuse(run_of):
    with pytest.raises(InputError, match=r"unet has no published recipe: set training\.recipe"):
        train(run_of("unet"))
    assert followed_recipe("unet", "common") is None


def test_too_few_images_for_a_batch_are_told(run_of):
    said = r"batch size of swin_unet_small is 24, but only 4 images .* training\.recipe to common"
    with pytest.raises(InputError, match=said):
        train(run_of("swin_unet_small"))


def test_a_loss_that_is_not_finite_names_the_recipe(run_of, in_pairs):
    in_pairs("nnunet_small", learning_rate=1e30)
    with pytest.raises(InputError, match=r"set training\.recipe to common"):
        train(run_of("nnunet_small", epochs=3))


# What a step of each takes is up to 0.3 s here; how many until it knows two images by heart.
STEPS = {
    "multiresunet_small": 40,
    "acc_unet_small": 40,
    "nnunet_small": 40,
    "egeunet_small": 50,
    "swin_unet_small": 40,
    "uctransnet_small": 50,
}


@pytest.mark.slow
@pytest.mark.parametrize("name", STEPS)
def test_a_batch_is_learnt_by_heart(name, train_set):
    recipe, model = recipe_of(name), build_variant(name, image_size=32)
    learner = learner_of(recipe, model)
    optimizer = optimizer_of(recipe, learner)
    batch = next(iter(pairs_of(train_set).epoch(1)))
    losses = []
    for _ in range(STEPS[name]):
        terms = loss_terms(
            VARIANTS[name], learner, None, None, batch.images, batch.masks, published=recipe.loss
        )
        optimizer.zero_grad()
        terms["loss"].backward()
        if recipe.clip:
            nn.utils.clip_grad_norm_(learner.parameters(), recipe.clip)
        optimizer.step()
        losses.append(terms["loss"].item())
    assert losses[-1] < 0.7 * losses[0]


# ---- ImageNet -----------------------------------------------------------------------------------


def as_timm(dim=12, heads=(1, 2, 4, 8), depths=(2, 2, 6, 2)):
    """Random weights under the names and shapes of timm's file for windows of 7."""
    generator = torch.Generator().manual_seed(3)
    draw = partial(torch.randn, generator=generator)
    found = {
        "patch_embed.proj.weight": draw(dim, 3, 4, 4),
        "patch_embed.proj.bias": draw(dim),
        "head.fc.weight": draw(1000, 8 * dim),
        "head.fc.bias": draw(1000),
    }
    for part, width in (("patch_embed.norm", dim), ("norm", 8 * dim)):
        found |= {f"{part}.weight": draw(width), f"{part}.bias": draw(width)}
    for level, depth in enumerate(depths):
        width = dim * 2**level
        if level:
            merge = f"layers.{level}.downsample"
            found[f"{merge}.reduction.weight"] = draw(width, 2 * width)
            found |= {f"{merge}.norm.{kind}": draw(2 * width) for kind in ("weight", "bias")}
        for block in range(depth):
            place = f"layers.{level}.blocks.{block}"
            found[f"{place}.attn.relative_position_bias_table"] = draw(169, heads[level])
            for part, out, into in (
                ("attn.qkv", 3 * width, width),
                ("attn.proj", width, width),
                ("mlp.fc1", 4 * width, width),
                ("mlp.fc2", width, 4 * width),
            ):
                found |= {
                    f"{place}.{part}.weight": draw(out, into),
                    f"{place}.{part}.bias": draw(out),
                }
            for part in ("norm1", "norm2"):
                found |= {f"{place}.{part}.{kind}": draw(width) for kind in ("weight", "bias")}
    return found


@pytest.fixture
def imagenet(tmp_path):
    path = tmp_path / "swin" / "model.safetensors"
    path.parent.mkdir()
    save_file(as_timm(), path)
    return path


@pytest.mark.parametrize("name", ["swin_unet_small", "sme_swin_unet_small"])
def test_encoder_and_decoder_begin_from_imagenet(name, imagenet):
    theirs, network = as_timm(), build_variant(name, image_size=224).network
    before = {key: value.clone() for key, value in network.state_dict().items()}
    begin_from_imagenet(network, str(imagenet.parent), name)
    ours = network.state_dict()
    for mine, from_there in (
        ("embed.proj.weight", "patch_embed.proj.weight"),
        ("norm.bias", "norm.bias"),
        ("merges.0.reduction.weight", "layers.1.downsample.reduction.weight"),
        ("merges.2.norm.weight", "layers.3.downsample.norm.weight"),
        ("encoder.2.1.attn.qkv.weight", "layers.2.blocks.1.attn.qkv.weight"),
        ("encoder.3.0.mlp.linear1.bias", "layers.3.blocks.0.mlp.fc1.bias"),
        ("decoder.0.0.attn.proj.weight", "layers.2.blocks.0.attn.proj.weight"),
        ("decoder.2.1.mlp.linear2.weight", "layers.0.blocks.1.mlp.fc2.weight"),
        ("encoder.0.0.attn.relative_position_bias_table",) * 1
        + ("layers.0.blocks.0.attn.relative_position_bias_table",),
    ):
        assert torch.equal(ours[mine], theirs[from_there]), mine
    same = {key for key, value in ours.items() if torch.equal(value, before[key])}
    began = {
        key
        for key in ours
        if key.split(".")[0] in ("embed", "norm", "merges", "encoder", "decoder")
    }
    assert {key for key in began & same} == {key for key in began if key.endswith("position_index")}
    assert set(ours) - began <= same


def test_a_smaller_window_keeps_what_its_relative_positions_mean(imagenet):
    network = build_variant("swin_unet_small", image_size=96).network  # windows of 7, 7, 6 and 3
    begin_from_imagenet(network, str(imagenet), "swin_unet_small")
    for level, window in ((2, 6), (3, 3)):
        attention = network.encoder[level][0].attn
        table = attention.relative_position_bias_table
        theirs = as_timm()[f"layers.{level}.blocks.0.attn.relative_position_bias_table"]
        index = attention.relative_position_index
        for i, j in ((0, 1), (window, 0), (0, window**2 - 1)):
            down, right = i // window - j // window, i % window - j % window
            row = (down + 6) * 13 + right + 6
            assert torch.equal(table[index[i, j]], theirs[row])


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (
            lambda s: s.pop("layers.2.blocks.1.norm1.weight"),
            "has nothing for layers.2.blocks.1.nor",
        ),
        (lambda s: s.update({"norm.weight": torch.ones(7)}), "has 7 for norm.weight where"),
    ],
)
def test_other_weights_are_refused(tmp_path, damage, said):
    state = as_timm()
    damage(state)
    save_file(state, tmp_path / "other.safetensors")
    network = build_variant("swin_unet_small", image_size=64).network
    with pytest.raises(InputError, match=said):
        begin_from_imagenet(network, str(tmp_path / "other.safetensors"), "swin_unet_small")
    with pytest.raises(InputError, match=r"does not exist: set training\.pretrained"):
        begin_from_imagenet(network, str(tmp_path / "none" / "x.safetensors"), "swin_unet_small")


def test_a_training_begins_from_imagenet_and_says_so(run_of, in_pairs, imagenet):
    in_pairs("swin_unet_small", learning_rate=1e-12)
    run = run_of("swin_unet_small", pretrained=str(imagenet))
    result = train(run)
    found = weights(result.folder / "last")["network.norm.weight"]
    torch.testing.assert_close(found, as_timm()["norm.weight"])
    assert publish_model(run, result).parameters["recipe"]["begins"] == f"from {imagenet}"
    before = describe_run(run, "fp32")["the pretrained weights"]
    save_file(as_timm() | {"norm.weight": torch.ones(96)}, imagenet)
    assert describe_run(run, "fp32")["the pretrained weights"] != before
    scratch = run_of("swin_unet_small", "scratch")
    said = publish_model(scratch, train(scratch)).parameters["recipe"]["begins"]
    assert said == "from random weights, where the published begins from ImageNet's"


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"pretrained": "a/b"}, "pretrained is of the recipe published"),
        ({"pretrained": "a/b", "recipe": "published", "start_from": "x"}, "are both set"),
        ({"recipe": "best"}, "recipe"),
    ],
)
def test_parameters_that_do_not_fit_are_refused(training_params, values, said):
    with pytest.raises(InputError, match=said):
        TrainingParams.check(training_params().model_dump() | values)
