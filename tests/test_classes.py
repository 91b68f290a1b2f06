"""Several classes: their colours, what is read of them, and one class as it was."""

import itertools
import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageColor

from wavegms.classes import COLOURS, MOST_CLASSES, colours_of, label_map
from wavegms.config import ReadingParams
from wavegms.errors import InputError
from wavegms.images import MaskRule, as_mask
from wavegms.models.autoencoder import decode_latents, decode_masks, encode_masks
from wavegms.models.build import as_pipeline, build_variant
from wavegms.models.palette import BLACK_AND_WHITE, Palette
from wavegms.training.loss import WaveGMSLoss, soft_dice
from wavegms.variants import VARIANTS

NAMES = [f"class_{number}" for number in range(1, MOST_CLASSES + 1)]

# Of Table 2, at the setting that a test can take.
RIVALS = [n for n, spec in VARIANTS.items() if n.endswith("_small") and spec.several_classes]


def maps(classes, size=16, count=2, seed=0):
    """Random label maps (B, 1, H, W), with pixels that are not annotated."""
    numbers = torch.Generator().manual_seed(seed)
    return torch.randint(0, classes + 2, (count, 1, size, size), generator=numbers).float()


def test_colours_are_corners_of_the_cube_and_one_class_is_white():
    found = {ImageColor.getrgb(colour) for colour in COLOURS}
    assert found == set(itertools.product((0, 255), repeat=3)) - {(0, 0, 0)}
    assert colours_of(1) == ("#ffffff",)
    for count in (0, 8):
        with pytest.raises(InputError, match="1 to 7"):
            colours_of(count)


@given(st.integers(1, MOST_CLASSES), st.integers(0, 1000))
@settings(max_examples=20, deadline=None)
def test_a_painted_map_is_read_as_what_it_was(classes, seed):
    palette, masks = Palette.of(NAMES[:classes]), maps(classes, seed=seed)
    painted = palette.paint(masks)
    assert painted.shape == (2, 3, 16, 16)
    shares = palette.shares(painted)
    assert shares.shape == (2, classes, 16, 16) and shares.min() >= 0
    assert shares.sum(1).max() <= 1 + 1e-6
    drawn = masks * (masks <= classes)  # what nobody annotated is black
    np.testing.assert_array_equal(label_map(shares.numpy()), drawn[:, 0])


@given(st.integers(1, MOST_CLASSES), st.floats(0.05, 0.95), st.integers(0, 1000))
@settings(max_examples=30, deadline=None)
def test_a_pixel_is_of_its_likeliest_class_or_of_none(classes, threshold, seed):
    numbers = np.random.default_rng(seed)
    shares = numbers.dirichlet(np.ones(classes + 1), (2, 6, 5)).transpose(0, 3, 1, 2)
    found = label_map(shares[:, 1:], threshold)
    at_half = label_map(shares[:, 1:])
    np.testing.assert_array_equal(at_half, shares.argmax(1))
    likeliest = shares[:, 1:].argmax(1) + 1
    assert set(np.unique(found[found > 0] - likeliest[found > 0])) <= {0}
    fewer = (found > 0) <= (at_half > 0) if threshold >= 0.5 else (found > 0) >= (at_half > 0)
    assert fewer.all()
    if classes == 1:
        np.testing.assert_array_equal(found, shares[:, 1] >= threshold)


@given(st.integers(2, MOST_CLASSES), st.randoms(use_true_random=False))
@settings(max_examples=20, deadline=None)
def test_another_order_of_classes_gives_their_probabilities_in_that_order(classes, random):
    order = random.sample(range(classes), classes)
    pixels = torch.rand(1, 3, 8, 8)
    palette = Palette.of(NAMES[:classes])
    other = Palette(tuple(palette.colours[place] for place in order))
    torch.testing.assert_close(
        other.shares(pixels), palette.shares(pixels)[:, order], rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize("classes", range(2, MOST_CLASSES + 1))
def test_a_colour_is_surely_its_own_and_half_way_as_likely_the_other(classes):
    palette = Palette.of(NAMES[:classes])
    rgb = [torch.tensor(ImageColor.getrgb(colour)) / 255 for colour in palette.colours]
    for number, colour in enumerate(rgb):
        assert palette.shares(colour[None, :, None, None])[0, number] > 0.97
    for one, other in itertools.combinations(range(classes), 2):
        middle = (rgb[one] + rgb[other])[None, :, None, None] / 2
        shares = palette.shares(middle)[0, :, 0, 0]
        torch.testing.assert_close(shares[one], shares[other], rtol=1e-5, atol=1e-6)


def test_one_class_is_black_and_white_bit_for_bit(small_vae):
    masks = (torch.rand(2, 1, 32, 32) > 0.5).float()
    palette = Palette.of([])
    assert palette == Palette.of(["only"]) == BLACK_AND_WHITE
    latents = palette.encode(small_vae, masks)
    assert torch.equal(latents, encode_masks(small_vae, masks))
    assert torch.equal(palette.decode(small_vae, latents), decode_masks(small_vae, latents))
    assert torch.equal(palette.paint(masks), masks.expand(-1, 3, -1, -1))
    soft = torch.rand(2, 1, 32, 32)
    overlap, total = (soft * masks).flatten(1).sum(1), (soft + masks).flatten(1).sum(1)
    torch.testing.assert_close(soft_dice(soft, masks), (2 * overlap + 1e-5) / (total + 1e-5))


def test_dice_of_several_is_the_mean_over_them():
    """MONAI's, class by class; one that an image lacks is judged by its complement."""
    from monai.losses import DiceLoss

    probabilities = torch.rand(2, 4, 16, 16).softmax(1)[:, 1:]
    masks = torch.randint(0, 4, (2, 1, 16, 16)).float()
    masks[1][masks[1] == 2] = 0
    wanted = torch.cat([masks == number for number in (1, 2, 3)], 1).float()
    dice = 1 - DiceLoss(reduction="none", smooth_nr=1e-5, smooth_dr=1e-5)(probabilities, wanted)
    other = 1 - DiceLoss(reduction="none", smooth_nr=1e-5, smooth_dr=1e-5)(
        1 - probabilities, 1 - wanted
    )
    dice = dice.flatten(1)
    dice[1, 1] = other.flatten(1)[1, 1]
    torch.testing.assert_close(soft_dice(probabilities, masks), dice.mean(1))
    perfect = soft_dice(wanted, masks)
    torch.testing.assert_close(perfect, torch.ones(2))
    ignored = masks.clone()
    ignored[:, :, :8] = 4
    changed = probabilities.clone()
    changed[:, :, :8] = 0.9
    assert torch.equal(soft_dice(changed, ignored), soft_dice(probabilities, ignored))


@pytest.mark.parametrize("classes", [2, 7])
def test_the_lean_loss_of_several_classes_is_the_plain_one(classes, small_vae):
    loss = WaveGMSLoss(palette=Palette.of(NAMES[:classes]))
    images, masks = torch.rand(2, 3, 32, 32), maps(classes, 32)
    found = []
    for form in (loss, loss.plain):
        torch.manual_seed(1)
        levels = [torch.randn(2, 4, 4, 4, requires_grad=True) for _ in range(4)]
        latents = torch.randn(2, 4, 4, 4)
        terms = form(latents, levels, small_vae, images, masks)
        terms["loss"].backward()
        found.append([terms["loss"].detach(), *(level.grad for level in levels)])
    assert found[0][1].norm() > 0
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_the_palette_decodes_what_diffusers_decodes(small_vae):
    palette, latents = Palette.of(NAMES[:3]), torch.randn(2, 4, 4, 4)
    pixels = (decode_latents(small_vae, latents) + 1) / 2
    torch.testing.assert_close(
        palette.decode(small_vae, latents), palette.shares(pixels), rtol=1e-4, atol=1e-4
    )


def test_wave_gms_has_the_same_weights_for_any_number_of_classes(small_vae):
    for classes in (1, 7):
        network = build_variant("wave_gms", vae=small_vae, classes=classes)
        pipeline = as_pipeline(
            network, small_vae, 32, classes=NAMES[: classes if classes > 1 else 0]
        )
        assert pipeline.parameter_counts.trainable == 2_600_668
        found = pipeline.predict(torch.rand(1, 3, 32, 32))
        assert found.shape == (1, classes, 32, 32)


def test_a_pipeline_of_several_classes_comes_back(small_vae, tmp_path):
    from wavegms import WaveGMSPipeline

    network = build_variant("wave_gms", vae=small_vae, classes=2)
    pipeline = as_pipeline(network, small_vae, 32, classes=["nodule", "cyst"])
    pipeline.save_pretrained(tmp_path / "model")
    again = WaveGMSPipeline.from_pretrained(tmp_path / "model")
    assert again.classes == ("nodule", "cyst") and again.palette == pipeline.palette
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 50), np.uint8))
    output = again(image)
    assert output.masks[0].shape == (40, 50) and output.masks[0].dtype == np.uint8
    assert output.probabilities[0].shape == (2, 40, 50)
    np.testing.assert_array_equal(output.masks[0], label_map(output.probabilities[0]))
    with pytest.raises(InputError, match="choose exact"):
        again.choose_decoder("fast")
    index = tmp_path / "model/model_index.json"
    values = json.loads(index.read_text())
    for wrong in (["a #ffffff"], ["a #ffffff", "b #ffffff"], [1, 2], {"a": 1}, ["a b", "c d"]):
        index.write_text(json.dumps(values | {"classes": wrong}))
        with pytest.raises(InputError, match="classes"):
            WaveGMSPipeline.from_pretrained(tmp_path / "model")


def test_a_unet_of_several_classes_gives_shares(tmp_path):
    from wavegms import WaveGMSPipeline

    pipeline = as_pipeline(build_variant("unet", classes=3), None, 32, classes=NAMES[:3])
    pipeline.save_pretrained(tmp_path / "model")
    again = WaveGMSPipeline.from_pretrained(tmp_path / "model")
    images = torch.rand(2, 3, 32, 32)
    shares = again.predict(images)
    assert shares.shape == (2, 3, 32, 32) and shares.sum(1).max() <= 1 + 1e-6
    torch.testing.assert_close(shares, pipeline.predict(images))
    with pytest.raises(InputError, match="3 classes"):
        as_pipeline(build_variant("unet", classes=3), None, 32, classes=NAMES[:2])


# What has a shape that follows from the number of classes, beside a head; SDSeg paints them.
OF_CLASSES = {
    "nnunet_small": ("network.network.output_block.",),
    "egeunet_small": ("network.head.", "network.auxiliary.", "network.bridges."),
    "sme_swin_unet_small": ("network.head.", "network.supplement."),
    "sdseg_small": (),
    "gss_small": ("network.classify_pixels.",),
}


@pytest.mark.parametrize("name", RIVALS)
def test_a_rival_differs_where_it_gives_logits(name, small_vae):
    one, several = (
        {key: value.shape for key, value in network.state_dict().items()}
        for network in (
            build_variant(name, image_size=32, vae=small_vae, classes=classes) for classes in (1, 3)
        )
    )
    assert one.keys() == several.keys()
    places = OF_CLASSES.get(name, ("network.head.",))
    differ = {key for key in one if one[key] != several[key]}
    assert {place for place in places if any(key.startswith(place) for key in differ)} == {*places}
    assert all(key.startswith(places) for key in differ)


@pytest.mark.parametrize("name", RIVALS)
def test_a_rival_of_several_classes_gives_shares_and_comes_back(name, small_vae, tmp_path):
    from wavegms import WaveGMSPipeline

    network = build_variant(name, image_size=32, vae=small_vae, classes=2)
    pipeline = as_pipeline(network, small_vae, 32, classes=NAMES[:2])
    pipeline.save_pretrained(tmp_path)
    images = torch.rand(2, 3, 32, 32)
    shares = WaveGMSPipeline.from_pretrained(tmp_path).predict(images)
    assert torch.equal(shares, pipeline.predict(images))
    assert shares.shape == (2, 2, 32, 32)
    assert shares.min() >= 0 and shares.sum(1).max() <= 1 + 1e-6 and shares.std() > 0


@pytest.mark.parametrize(
    "name", [name for name, spec in VARIANTS.items() if not spec.several_classes]
)
def test_what_knows_one_class_says_so(name):
    with pytest.raises(InputError, match=r"variant \w+ knows one class, and the data have 2"):
        build_variant(name, classes=2)


@pytest.mark.realdata
@pytest.mark.parametrize(("classes", "least"), [(2, 0.98), (3, 0.98), (5, 0.98), (7, 0.95)])
def test_taesd_gives_label_maps_back(classes, least, real_data):
    """Discs of 9 pixels and more, one class beside another, at 224 pixels."""
    from wavegms.models.weights import load_autoencoder

    vae = load_autoencoder(real_data / "models/taesd_original")
    numbers, side = np.random.default_rng(classes), 224
    rows, columns = np.mgrid[:side, :side]
    masks = np.zeros((2, 1, side, side), np.float32)
    for mask in masks[:, 0]:
        for place, number in enumerate(numbers.permutation(np.resize(np.arange(classes), 16))):
            row, column = 28 + 56 * (place // 4), 28 + 56 * (place % 4)
            radius = numbers.uniform(4.5, 26)
            mask[np.hypot(rows - row, columns - column) <= radius] = number + 1
    masks, palette = torch.from_numpy(masks), Palette.of(NAMES[:classes])
    with torch.inference_mode():
        found = palette.decode(vae, palette.encode(vae, masks))
    found = torch.from_numpy(label_map(found.numpy()))
    for number in range(1, classes + 1):
        one, other = found == number, masks[:, 0] == number
        assert 2 * (one & other).sum() / (one.sum() + other.sum()) > least, number


def test_a_label_map_is_read_by_its_rule():
    rule = MaskRule({}, ((9, 9),), classes=(("nodule", ((1, 1),)), ("cyst", ((3, 4),))))
    values = np.array([[0, 1, 3], [4, 9, 0]], np.uint8)
    wanted = [[0, 1, 2], [2, 3, 0]]
    palette = Image.new("P", (3, 2))
    palette.putdata(values.ravel().tolist())
    palette.putpalette([255, 255, 255] * 256)  # whose colours say nothing
    for image in (Image.fromarray(values), palette, Image.fromarray(values.astype(np.uint16))):
        np.testing.assert_array_equal(as_mask(image, rule), wanted)
    grey = Image.fromarray(np.repeat(values[..., None], 3, 2))
    np.testing.assert_array_equal(as_mask(grey, rule), wanted)
    values[1, 0] = 7
    with pytest.raises(InputError, match=r"value 7 .*no class \(classes are nodule 1, cyst 3-4\)"):
        as_mask(Image.fromarray(values), rule)
    coloured = np.zeros((2, 2, 3), np.uint8)
    coloured[0, 0] = (1, 0, 0)
    with pytest.raises(InputError, match="colours"):
        as_mask(Image.fromarray(coloured), rule)


@pytest.mark.parametrize(
    ("reading", "said"),
    [
        ({"classes": ["one"]}, "2 to 7"),
        ({"classes": [f"c{number}" for number in range(8)]}, "2 to 7"),
        ({"classes": {"one": 0, "two": 1}}, "one has the value 0"),
        ({"classes": {"one": "1-3", "two": 2}}, "two has a value that another"),
        ({"classes": ["one", "one"]}, "twice"),
        ({"classes": ["one", "a b"]}, "letters, digits"),
        ({"classes": ["one", "two"], "foreground": [1]}, "leave one out"),
        ({"classes": ["one", "two"], "ignore": [2]}, "ignore names 2"),
        ({"classes": {"one": True, "two": 2}}, "number"),
    ],
)
def test_classes_that_make_no_sense_are_refused(reading, said):
    with pytest.raises(InputError, match=said):
        ReadingParams.check(reading)
