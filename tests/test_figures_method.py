"""Sub-bands, latents and decoded masks are drawn as they are, with the numbers they have."""

import numpy as np
import pytest
import pywt
import torch
from matplotlib import pyplot

from wavegms.figures.method import (
    decode_levels,
    follow_latents,
    show_alignment,
    show_bands,
    show_latents,
    show_masks,
)
from wavegms.models.autoencoder import channels_last
from wavegms.training.loss import alignment_loss

pytestmark = pytest.mark.filterwarnings("error")

# An untrained network makes much of rounding, which differs among processors.
CLOSE = {"rtol": 1e-4, "atol": 1e-4}

NAMES = ("z_MR", "z_I", "predicted z_M", "z_M")


def picture(axis):
    (shown,) = axis.get_images()
    return np.asarray(shown.get_array())


def pictures(figure):
    return [axis for axis in figure.axes if axis.get_images()]


def texts(axis):
    return [text.get_text() for text in axis.texts]


@pytest.fixture
def latents():
    return {name: torch.randn(1, 4, 6, 5) for name in NAMES}


def test_bands_are_those_of_pywavelets():
    image = torch.rand(3, 32, 48)
    axes = np.array(show_bands(image).axes).reshape(3, 4)
    coefficients = pywt.wavedec2(image.numpy(), "haar", level=3)
    for level, row in enumerate(axes, 1):
        low = pywt.wavedec2(image.numpy(), "haar", level=level)[0] / 2**level
        np.testing.assert_allclose(picture(row[0]), low.transpose(1, 2, 0), atol=1e-5)
        assert row[0].get_title() == f"level {level}: LL, {32 // 2**level}×{48 // 2**level}"
        for axis, detail in zip(row[1:], coefficients[-level], strict=True):
            grey = detail.mean(0) / 2**level
            np.testing.assert_allclose(picture(axis), grey, atol=1e-5)
            peak = np.abs(grey).max()
            assert axis.get_images()[0].get_clim() == pytest.approx((-peak, peak), abs=1e-5)
            assert axis.get_title().endswith(f"(±{peak:.2f})")


def test_a_blank_image_has_a_picture():
    assert len(show_bands(torch.zeros(3, 16, 16)).axes) == 12


def test_latents_share_the_scale_of_their_row(latents):
    figure = show_latents({name: latent[0] for name, latent in latents.items()})
    axes = np.array(figure.axes).reshape(4, 4)
    for row, latent in zip(axes, latents.values(), strict=True):
        peak = latent.abs().max().item()
        for channel, axis in enumerate(row):
            np.testing.assert_array_equal(picture(axis), latent[0, channel])
            assert axis.get_images()[0].get_clim() == pytest.approx((-peak, peak))
            assert axis.get_title().endswith(f", channel {channel + 1}")
    assert axes[0, 0].get_title() == "$z_{MR}$, channel 1"
    assert axes[2, 0].get_title() == "predicted $z_{M}$, channel 1"


def test_alignment_shows_each_latent_and_the_cosine_of_each_pair(latents):
    other = {name: torch.randn(1, 4, 6, 5) for name in NAMES} | {"z_I": latents["z_I"]}
    figure = show_alignment({"with": latents, "without": other})
    assert [part.get_suptitle() for part in figure.subfigs] == ["with", "without"]
    for part, given in zip(figure.subfigs, (latents, other), strict=True):
        shown = pictures(part)
        maps = [axis for axis in shown if axis.get_title().startswith("cosine")]
        channels = [axis for axis in shown if axis not in maps]
        assert (len(maps), len(channels)) == (2, 16)
        expected = torch.cat([given[name][0] for name in NAMES])
        for axis, values in zip(channels, expected, strict=True):
            np.testing.assert_array_equal(picture(axis), values)
        peaks = [given[name].abs().max().item() for name in NAMES]
        labels = ["$z_{MR}$", "$z_{I}$", "predicted $z_{M}$", "$z_{M}$"]
        assert [texts(axis)[0] for axis in channels[::4]] == [
            f"{label}\n±{peak:.2g}" for label, peak in zip(labels, peaks, strict=True)
        ]
        for axis, (one, two) in zip(maps, (NAMES[:2], NAMES[2:]), strict=True):
            a, b = given[one][0].double().numpy(), given[two][0].double().numpy()
            cosine = (a * b).sum(0) / np.sqrt((a**2).sum(0) * (b**2).sum(0))
            np.testing.assert_allclose(picture(axis), cosine, atol=1e-5)
            assert axis.get_images()[0].get_clim() == (-1, 1)
            assert axis.get_title() == f"cosine\nmean {cosine.mean():.3f}"


def test_the_number_is_the_cosine_of_the_loss(latents):
    """L_align is 0.9 (1 - cosine) + 0.1 l1."""
    title = next(
        axis.get_title()
        for axis in pictures(show_alignment({"one": latents}))
        if axis.get_title().startswith("cosine")
    )
    loss = alignment_loss(latents["z_MR"], latents["z_I"]).item()
    distance = (latents["z_MR"] - latents["z_I"]).abs().mean().item()
    assert float(title.split()[-1]) == pytest.approx(1 - (loss - 0.1 * distance) / 0.9, abs=6e-4)


def test_equal_latents_agree_everywhere(latents):
    equal = {name: 3 * latents["z_I"] for name in NAMES} | {"z_I": latents["z_I"]}
    maps = [a for a in pictures(show_alignment({"x": equal})) if "mean 1.000" in a.get_title()]
    assert len(maps) == 2


def test_masks_carry_their_soft_dice_to_the_first():
    truth = torch.zeros(2, 1, 8, 8)
    truth[0, 0, 2:6, 2:6] = 1
    masks = {"truth": truth, "z_M decoded": truth.clone(), "depth 1": torch.rand(2, 1, 8, 8)}
    axes = np.array(show_masks(masks, ["first", "empty"]).axes).reshape(2, 3)
    assert [axis.get_title() for axis in axes[0]] == ["truth", "$z_{M}$ decoded", "depth 1"]
    assert [texts(axis) for axis in axes[:, 0]] == [["first"], ["empty"]]
    for row in range(2):
        for axis, soft in zip(axes[row], masks.values(), strict=True):
            np.testing.assert_array_equal(picture(axis), soft[row, 0])
            assert axis.get_images()[0].get_clim() == (0, 1)
        soft, mask = masks["depth 1"][row], truth[row]
        both = soft.sum() + mask.sum()
        dice = 2 * (soft * mask).sum() / both if mask.any() else 1 - soft.mean()
        assert float(texts(axes[row, 2])[0]) == pytest.approx(dice.item(), abs=6e-4)
        assert texts(axes[row, 1]) == ["1.000"]


def test_what_is_followed_is_what_the_pipeline_does(untrained):
    """The latents and masks of the pictures against the parts, called one by one."""
    images, masks = torch.rand(2, 3, 32, 32), (torch.rand(2, 1, 32, 32) > 0.5).float()
    latents = follow_latents(untrained, images, masks)
    decoded = decode_levels(untrained, images, masks)
    vae = untrained.vae
    # in the pipeline's order of memory: an untrained network makes much of other rounding
    images, three = channels_last(images), channels_last(masks.repeat(1, 3, 1, 1))
    with torch.inference_mode():
        z = untrained.encoder(images)
        levels = untrained.mapping(z)
        truth = vae.encode(three * 2 - 1).latents
        assert list(latents) == list(NAMES)
        for name, expected in zip(
            NAMES, (z, vae.encode(images * 2 - 1).latents, levels[3], truth), strict=True
        ):
            torch.testing.assert_close(latents[name], expected, **CLOSE)
        assert list(decoded) == ["truth", "z_M decoded", *(f"depth {n}" for n in range(1, 5))]
        for name, latent in zip(list(decoded)[1:], (truth, *levels), strict=True):
            soft = (vae.decode(latent).sample.mean(1, keepdim=True) + 1) / 2
            torch.testing.assert_close(decoded[name], soft.clamp(0, 1), **CLOSE)
    torch.testing.assert_close(decoded["depth 4"], untrained.predict(images), **CLOSE)
    assert torch.equal(decoded["truth"], masks)


def test_figures_do_not_stay_open(latents):
    show_alignment({"one": latents})
    show_bands(torch.rand(3, 16, 16))
    show_masks({"truth": torch.zeros(1, 1, 8, 8)})
    assert pyplot.get_fignums() == []
