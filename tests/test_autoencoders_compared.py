"""Comparing autoencoders: what is counted and measured of each, against truths that are known."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import AutoencoderTiny
from scipy import ndimage
from skimage.metrics import peak_signal_noise_ratio
from test_latent_depth import autoencoder_of
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from wavegms import InputError
from wavegms.config import AutoencoderParams, FoundationParams
from wavegms.costs import autoencoders as module
from wavegms.costs.autoencoders import (
    LINE_WIDTHS,
    _near_thin_parts,
    candidates,
    repaint,
    repaint_lines,
    sizes_of,
    summary_of,
)
from wavegms.costs.figure import show_repainting
from wavegms.models import autoencoder, palette
from wavegms.training.autoencoder import AutoencoderCard, ReconstructionQuality, write_quality
from wavegms.training.autoencoder import reconstruction_quality as quality_of


def test_taesd_is_counted_as_published_and_trains_what_the_paper_says():
    sizes = sizes_of(AutoencoderTiny(), 224)
    assert sizes["parameters"] == 2_445_063 and sizes["trained with it"] == 2_600_668
    assert sizes["decoding, GFLOP"] == pytest.approx(24.3, abs=0.05)  # docs/results.md


def test_operations_are_those_that_run(vae):
    sizes, images = sizes_of(vae, 32), torch.rand(1, 3, 32, 32)
    attention = sdpa_kernel(SDPBackend.MATH)
    with torch.no_grad(), attention, FlopCounterMode(display=False) as counter:
        module.encode_images(vae, images)
    assert sizes["encoding, GFLOP"] == counter.get_total_flops() / 1e9
    assert next(vae.parameters()).device.type == "cpu"


@pytest.fixture(params=[4, 16, 32])
def vae(request):
    return autoencoder_of(request.param)


class Perfect:
    """Gives back what it was given."""

    @staticmethod
    def install(monkeypatch, blur=0.0):
        monkeypatch.setattr(autoencoder, "encode_images", lambda vae, images: images)
        monkeypatch.setattr(autoencoder, "decode_latents", lambda vae, x: 2 * (x + blur) - 1)
        for place in (module, palette):
            monkeypatch.setattr(place, "encode_masks", lambda vae, masks: masks)
            monkeypatch.setattr(place, "decode_masks", lambda vae, x: x)
        return SimpleNamespace(device="cpu")


def test_what_comes_back_whole_has_nothing_to_lose(monkeypatch, train_set):
    perfect = Perfect.install(monkeypatch, blur=0.01)
    table = repaint(perfect, train_set)
    assert table["id"].tolist() == train_set.ids
    assert (table["dice"] == 1).all() and table["thin"].dropna().eq(1).all()
    for place, psnr in enumerate(table["psnr"]):
        image = train_set.to_float(train_set.images[place]).numpy()
        shifted = np.minimum(image + np.float32(0.01), 1)
        expected = peak_signal_noise_ratio(image, shifted, data_range=1)
        assert psnr == pytest.approx(expected, abs=1e-3)
    assert repaint_lines(perfect).eq(1).all()


def test_means_are_those_of_the_card_of_an_autoencoder(trained_vae, train_set):
    table, quality = repaint(trained_vae, train_set), quality_of(trained_vae, train_set)
    summary = summary_of(table)
    assert summary["images, dB"] == pytest.approx(quality.image_psnr, abs=1e-3)
    assert summary["masks, Dice"] == pytest.approx(quality.mask_dice, abs=1e-3)
    assert summary["worst mask"] == table["dice"].min() < 1
    lines = repaint_lines(trained_vae)
    assert lines.index.tolist() == list(LINE_WIDTHS) and lines.between(0, 1).all()
    figure = show_repainting({"one": table, "two": table}, {"one": lines, "two": lines})
    assert [text.get_text() for text in figure.axes[1].get_legend().get_texts()] == ["one", "two"]


def test_thin_parts_are_those_of_an_opening():
    rng = np.random.default_rng(0)
    for _ in range(20):
        mask = ndimage.gaussian_filter(rng.random((48, 48)), 2) > 0.51
        mask[:, 20:23] = True  # a line of three pixels
        square = np.ones((5, 5))
        # outside is neither: the border takes nothing away
        padded = np.pad(mask, 8, mode="edge")
        opened = ndimage.binary_opening(padded, square)[8:-8, 8:-8]
        expected = ndimage.binary_dilation(mask & ~opened, square)
        found = _near_thin_parts(torch.from_numpy(mask)[None, None].float())[0, 0].numpy()
        inner = slice(4, -4)
        assert np.array_equal(found[inner, inner] > 0, expected[inner, inner])
    whole = torch.zeros(1, 1, 32, 32)
    whole[..., 8:20, 6:25] = 1
    assert not _near_thin_parts(whole).any()


SETTINGS = {
    "source": "train",
    "hub": "madebyollin/taesd",
    "path": "none",
    "sd_vae": "none/none",
    "min_mask_dice": 0.0,
    "train": {"channels": 8, "blocks": 1, "steps": 2, "batch_size": 2, "learning_rate": 1e-3},
}


def test_the_runs_own_comes_first_then_widths_then_others(tmp_path, train_set):
    own, other = autoencoder_of(4), autoencoder_of(32)
    own.save_pretrained(tmp_path / "own")
    other.save_pretrained(tmp_path / "wide")
    quality = ReconstructionQuality(20.0, 0.9, 4)
    card = AutoencoderCard("train", {"channels": 8}, quality, quality)
    write_quality(tmp_path / "own", card)
    asked = {"datasets": [], "widths": [4], "others": [str(tmp_path / "wide")], "epochs": 1}
    settings = AutoencoderParams.check(SETTINGS), FoundationParams.check(asked)
    found = candidates(tmp_path / "own", *settings, train_set, seed=1)
    assert [one.name for one in found] == ["width_8", "width_4", "wide"]
    assert found[1].vae.config.decoder_block_out_channels == (4,) * 4
    assert torch.equal(found[2].vae.decoder.layers[0].weight, other.decoder.layers[0].weight)


def test_two_others_of_one_name_are_refused():
    asked = {"datasets": [], "widths": [], "others": ["a/taesd", "models/taesd"], "epochs": 0}
    with pytest.raises(InputError, match=r"others: taesd stands there twice"):
        FoundationParams.check(asked)


@pytest.mark.realdata
def test_the_newest_autoencoder_gives_lines_back_better(real_data):
    """32 channels keep more than 4; both give a line of 8 pixels back."""
    old, new = (
        repaint_lines(module.load_autoencoder(real_data / f"models/{name}_original"), 64)
        for name in ("taesd", "taef2")
    )
    assert new.drop(1).gt(old.drop(1)).all() and old[8] > 0.9
