"""Augmentation moves image and mask together and leaves each what it is."""

import math

import pytest
import torch
from conftest import NO_AUGMENTATION
from hypothesis import given, settings
from hypothesis import strategies as st

from wavegms.data.batches import Augmentation

KNOBS = list(NO_AUGMENTATION)
GEOMETRY = ["horizontal_flip", "vertical_flip", "rotate_90", "shift_scale_rotate"]
ALL = dict.fromkeys(KNOBS, 1.0)


def augmentation(**changes):
    return Augmentation(**NO_AUGMENTATION | changes)


@pytest.fixture
def masks():
    """A disc and a bar, without any symmetry, 16 times."""
    y, x = torch.meshgrid(torch.arange(32), torch.arange(32), indexing="ij")
    mask = ((y - 11) ** 2 + (x - 19) ** 2 < 40) | ((y > 24) & (y < 28) & (x < 20))
    return mask.float().repeat(16, 1, 1, 1)


@pytest.fixture
def images(masks):
    return torch.rand(len(masks), 3, 32, 32)


def test_probability_0_is_the_identity(images, masks):
    new_images, new_masks = augmentation()(images, masks)
    assert torch.equal(new_images, images) and torch.equal(new_masks, masks)


@pytest.mark.parametrize("knob", KNOBS)
def test_each_knob_does_something_and_its_own_thing_only(images, masks, knob):
    new_images, new_masks = augmentation(**{knob: 1.0})(images, masks)
    assert not torch.equal(new_images, images)
    assert torch.equal(new_masks, masks) == (knob == "color_jitter")


FLIPS = {
    "horizontal_flip": [lambda x: x.flip(-1)],
    "vertical_flip": [lambda x: x.flip(-2)],
    "rotate_90": [lambda x, k=k: torch.rot90(x, k, (-2, -1)) for k in range(4)],
}


@pytest.mark.parametrize("knob", FLIPS)
def test_flips_and_quarter_turns_are_exact(images, masks, knob):
    torch.manual_seed(4)
    used = set()
    for _ in range(3):
        for image, mask, old_image, old_mask in zip(
            *augmentation(**{knob: 1.0})(images, masks), images, masks, strict=True
        ):
            fits = [k for k, f in enumerate(FLIPS[knob]) if torch.equal(mask, f(old_mask))]
            assert len(fits) == 1
            torch.testing.assert_close(image, FLIPS[knob][fits[0]](old_image), rtol=0, atol=1e-4)
            used.add(fits[0])
    assert used == set(range(len(FLIPS[knob])))


@pytest.mark.parametrize("knob", FLIPS)
def test_probability_one_half_changes_about_half(masks, knob):
    many = masks.repeat(25, 1, 1, 1)  # 400; the standard error is 10
    torch.manual_seed(0)
    changed = augmentation(**{knob: 0.5})(many.expand(-1, 3, -1, -1), many)[1] != many
    expected = 200 if knob != "rotate_90" else 150  # a quarter of the turns is by 0 degrees
    assert changed.flatten(1).any(1).sum().item() == pytest.approx(expected, abs=50)


def test_quarter_turns_are_drawn_as_kornia_rounds_them(masks):
    """From 0 to 3, whose ends are half as likely as the others; the standard error is 9."""
    mask = masks[:1]
    many = mask.repeat(400, 1, 1, 1)
    _, turned = augmentation(rotate_90=1.0)(many.expand(-1, 3, -1, -1), many)
    found = [(turned == torch.rot90(mask, k, (-2, -1))).flatten(1).all(1) for k in range(4)]
    counts = [int(one.sum()) for one in found]
    assert sum(counts) == 400 and counts == pytest.approx([67, 133, 133, 67], abs=28)


@pytest.mark.parametrize("knob", [*GEOMETRY, "all"])
@given(seed=st.integers(0, 2**32 - 1))
@settings(max_examples=15)
def test_the_mask_stays_binary_and_follows_the_image(knob, seed):
    torch.manual_seed(seed)
    y, x = torch.meshgrid(torch.arange(48), torch.arange(48), indexing="ij")
    centre_y, centre_x = torch.randint(12, 36, (2, 8, 1, 1))
    masks = ((y - centre_y) ** 2 + (x - centre_x) ** 2 < 100).float()[:, None]
    knobs = dict.fromkeys(GEOMETRY, 1.0) if knob == "all" else {knob: 1.0}
    images, new_masks = augmentation(**knobs)(masks.expand(-1, 3, -1, -1), masks)
    assert new_masks.shape == masks.shape and images.shape == (8, 3, 48, 48)
    assert set(new_masks.unique().tolist()) <= {0.0, 1.0}
    # The image is interpolated, the mask takes the nearest pixel: they may differ by half a pixel
    # along the border, which is some 63 pixels long, and by nothing else.
    differ = (images[:, 0] >= 0.5) != new_masks[:, 0].bool()
    assert differ.flatten(1).sum(1).max() <= 30
    inside = torch.nn.functional.max_pool2d(1 - new_masks, 5, 1) == 0
    outside = torch.nn.functional.max_pool2d(new_masks, 5, 1) == 0
    grey = images[:, :1, 2:-2, 2:-2]
    assert (grey[inside] > 0.99).all() and (grey[outside] < 0.01).all()
    assert inside.any() and outside.any()


def test_shift_scale_and_rotation_stay_within_their_bounds():
    """Three dots tell the similarity that moved them."""
    side, count = 101, 200
    dots = torch.tensor([[50.0, 50.0], [50.0, 60.0], [60.0, 50.0]])  # x, y
    y, x = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    blobs = [torch.exp(-((x - a) ** 2 + (y - b) ** 2) / 8) for a, b in dots.tolist()]
    images = torch.stack(blobs).repeat(count, 1, 1, 1)
    torch.manual_seed(0)
    masks = torch.zeros(count, 1, side, side)
    moved, _ = augmentation(shift_scale_rotate=1.0)(images, masks)
    weight = moved.sum((2, 3))
    where = torch.stack([(moved * x).sum((2, 3)), (moved * y).sum((2, 3))], -1) / weight[..., None]
    shift = where[:, 0] - dots[0]
    arm = where[:, 1] - where[:, 0]
    scale, angle = arm.norm(dim=1) / 10, torch.atan2(arm[:, 0], arm[:, 1]) * 180 / math.pi
    for values, low, high, slack in (
        (shift[:, 0], -15.15, 15.15, 0.1),
        (shift[:, 1], -15.15, 15.15, 0.1),
        (scale, 0.9, 1.1, 0.005),
        (angle, -20, 20, 0.3),
    ):
        assert values.min() >= low - slack and values.max() <= high + slack
        # 200 uniform draws come close to both bounds
        assert values.min() < low + 0.1 * (high - low) and values.max() > high - 0.1 * (high - low)
    # no shear and no mirror: the other arm stays perpendicular and of the same length
    other = where[:, 2] - where[:, 0]
    turned = torch.stack([arm[:, 1], -arm[:, 0]], 1)
    torch.testing.assert_close(other, turned, rtol=0, atol=0.1)


def test_pixels_from_outside_are_mirrored_in():
    white = torch.ones(32, 3, 32, 32)
    moved, masks = augmentation(shift_scale_rotate=1.0)(white, white[:, :1])
    torch.testing.assert_close(moved, white)
    assert torch.equal(masks, white[:, :1])


def test_the_jitter_is_slight_and_of_the_whole_image():
    torch.manual_seed(0)
    grey = torch.full((200, 3, 8, 8), 0.5)
    jittered, _ = augmentation(color_jitter=1.0)(grey, grey[:, :1].round())
    spread = jittered.flatten(2)
    assert (spread.max(2).values - spread.min(2).values).max() < 1e-4
    level = spread.mean((1, 2))
    assert 0.4 < level.min() < 0.47 and 0.53 < level.max() < 0.6
    # grey has no hue or saturation: a saturated colour shows those
    red = torch.zeros(200, 3, 8, 8)
    red[:, 0] = 0.8
    jittered, _ = augmentation(color_jitter=1.0)(red, red[:, :1])
    assert jittered[:, 1].max() > 0.1 and jittered[:, 2].max() > 0.1
    assert jittered[:, 0].mean() > 0.6


@given(st.integers(0, 2**32 - 1), st.booleans())
@settings(max_examples=15)
def test_images_stay_in_range(seed, extreme):
    torch.manual_seed(seed)
    images = torch.rand(4, 3, 16, 16)
    images = images.round() if extreme else images
    result, masks = Augmentation(**ALL)(images, images[:, :1].round())
    assert result.min() >= 0 and result.max() <= 1 and torch.isfinite(result).all()
    assert set(masks.unique().tolist()) <= {0.0, 1.0}


def test_a_seed_repeats_everything(images, masks):
    augment = Augmentation(**ALL | {"horizontal_flip": 0.5})
    results = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        results.append(augment(images, masks))
    first, again, other = results
    assert torch.equal(first[0], again[0]) and torch.equal(first[1], again[1])
    assert not torch.equal(first[0], other[0]) and not torch.equal(first[1], other[1])


@pytest.mark.parametrize("knob", ["color_jitter", "shift_scale_rotate"])
def test_every_image_is_changed_in_its_own_way(masks, knob):
    same = (0.2 + 0.6 * masks).expand(-1, 3, -1, -1)
    result, _ = augmentation(**{knob: 1.0})(same, masks)
    assert len({image.numpy().tobytes() for image in result}) == len(masks)


def test_inputs_are_left_alone_and_need_no_gradient(images, masks):
    before = images.clone(), masks.clone()
    result, _ = Augmentation(**ALL)(images.requires_grad_(), masks)
    assert not result.requires_grad
    assert torch.equal(images, before[0]) and torch.equal(masks, before[1])
