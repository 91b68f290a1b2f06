"""The small autoencoder of the embedded default: it learns, repeats itself and is judged."""

import json
from dataclasses import asdict

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load_file

from wavegms import InputError
from wavegms.__main__ import main
from wavegms.config import AutoencoderParams, AutoencoderTraining
from wavegms.data.manifest import load_manifest
from wavegms.files import sha256_of
from wavegms.models.autoencoder import freeze
from wavegms.phantom.scanner import example
from wavegms.project import PRETRAINED
from wavegms.training import autoencoder as training
from wavegms.training import drawn
from wavegms.training import pretrain as pretraining
from wavegms.training.autoencoder import (
    ReconstructionQuality,
    build_autoencoder,
    describe_autoencoder,
    frozen_autoencoder,
    obtain_autoencoder,
    read_quality,
    reconstruction_quality,
    require_mask_quality,
    start_autoencoder,
    train_autoencoder,
    write_quality,
)
from wavegms.training.drawn import draw_mask, draw_picture
from wavegms.training.kept import keep_half
from wavegms.training.loss import soft_dice
from wavegms.training.pretrain import judge


def tiny(**changes):
    values = {"channels": 16, "blocks": 1, "steps": 8, "batch_size": 2, "learning_rate": 5e-3}
    return AutoencoderTraining(**values | changes)


def weights(vae):
    return torch.cat([parameter.detach().flatten() for parameter in vae.parameters()])


def test_taesd_is_the_size_of_64_channels_and_3_blocks():
    vae = build_autoencoder(64, 3)
    assert sum(p.numel() for p in vae.encoder.parameters()) == 1_222_532
    assert sum(p.numel() for p in vae.decoder.parameters()) == 1_222_531


@pytest.mark.parametrize(("channels", "blocks"), [(16, 1), (8, 2)])
def test_any_size_divides_by_8_into_4_channels(channels, blocks):
    vae = build_autoencoder(channels, blocks)
    latents = vae.encode(torch.zeros(1, 3, 16, 24)).latents
    assert latents.shape == (1, 4, 2, 3)
    assert vae.decode(latents).sample.shape == (1, 3, 16, 24)


def test_training_improves_images_and_masks(trained_vae, train_set):
    before = reconstruction_quality(freeze(build_autoencoder(16, 1)), train_set)
    after = reconstruction_quality(trained_vae, train_set)
    assert after.image_psnr > before.image_psnr + 5
    assert before.mask_dice < 0.5 and after.mask_dice > 0.97
    assert after.images == before.images == 4


def test_it_generalises_to_masks_it_has_not_seen(trained_vae, validation_set):
    untrained = reconstruction_quality(freeze(build_autoencoder(16, 1)), validation_set)
    quality = reconstruction_quality(trained_vae, validation_set)
    assert quality.images == 2
    assert quality.mask_dice > untrained.mask_dice + 0.3


def test_the_result_is_frozen(train_set):
    vae = train_autoencoder(train_set, tiny(steps=1), seed=0)
    assert not vae.training and not any(p.requires_grad for p in vae.parameters())
    assert vae.device == torch.device("cpu")


def test_the_seed_decides_everything(train_set):
    once, again, other = (
        weights(train_autoencoder(train_set, tiny(), seed=seed)) for seed in (3, 3, 4)
    )
    assert torch.equal(once, again) and not torch.allclose(once, other, atol=1e-3)


def test_the_settings_are_obeyed(train_set):
    seen = []

    class Spy(type(train_set)):
        def __init__(self):
            self.__dict__ = train_set.__dict__

        def __getitem__(self, index):
            seen.append(index)
            return super().__getitem__(index)

    vae = train_autoencoder(Spy(), tiny(steps=5, batch_size=3, channels=8, blocks=2), seed=0)
    assert len(seen) == 15 and set(seen) <= set(range(4))
    assert vae.config.num_encoder_blocks == (1, 2, 2, 2)
    assert vae.config.encoder_block_out_channels == (8,) * 4


@pytest.mark.parametrize(
    ("dice", "psnr", "steps"),
    [
        ((0.5, 0.97, 0.98), (10, 20, 20.4), 60),  # good masks, and images that hardly gain
        ((0.97, 0.5, 0.98), (20, 20, 20), 60),
        ((0.5, 0.5, 0.5), (20, 20, 20), 70),
        ((0.98, 0.98, 0.98), (10, 10.6, 11.2), 70),
    ],
)
def test_it_ends_once_masks_are_good_and_images_hardly_gain(
    train_set, monkeypatch, dice, psnr, steps
):
    measured, seen = iter(zip(psnr, dice, strict=True)), []
    monkeypatch.setattr(
        training,
        "reconstruction_quality",
        lambda *_, **__: ReconstructionQuality(*next(measured), images=4),
    )
    monkeypatch.setattr(training, "soft_dice", lambda *pair: seen.append(0) or soft_dice(*pair))
    settings = tiny(steps=70, batch_size=1, channels=8, target_dice=0.96)
    train_autoencoder(train_set, settings, seed=0)
    assert len(seen) == steps


def test_the_start_that_is_shipped_needs_no_step_for_masks_and_images_it_never_saw(
    train_set, validation_set
):
    settings = tiny(channels=12, steps=20, target_dice=0.95, start_from="drawn_12")
    vae = train_autoencoder(train_set, settings, seed=0)
    assert torch.equal(weights(vae), weights(start_autoencoder(settings)))
    assert not vae.training and not any(p.requires_grad for p in vae.parameters())
    assert reconstruction_quality(vae, validation_set).mask_dice > 0.95
    from_nothing = settings.model_copy(update={"start_from": None})
    for dataset in (train_set, validation_set):
        ours, theirs = (
            reconstruction_quality(train_autoencoder(train_set, chosen, seed=0), dataset)
            for chosen in (settings, from_nothing)
        )
        assert ours.mask_dice > theirs.mask_dice and ours.image_psnr > theirs.image_psnr


def test_a_start_that_is_not_good_enough_is_trained_further(train_set, tmp_path):
    torch.manual_seed(7)
    about = {"channels": 8, "blocks": 1}
    keep_half(tmp_path / "poor.safetensors", build_autoencoder(**about), about)
    settings = tiny(channels=8, steps=3, target_dice=0.95, start_from="poor")
    start = start_autoencoder(settings, tmp_path)
    expected = build_autoencoder(**about)
    expected.load_state_dict(load_file(tmp_path / "poor.safetensors"))
    assert torch.equal(weights(start), weights(expected))
    vae = train_autoencoder(train_set, settings, seed=0, folder=tmp_path)
    assert not torch.equal(weights(vae), weights(start))
    assert not any(p.requires_grad for p in vae.parameters())


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"start_from": "nowhere"}, "nowhere is no name in weights/autoencoders"),
        ({"channels": 16}, "drawn_12 has channels 12 and blocks 1, but .* says 16 and 1"),
        ({"blocks": 2}, "but .* says 12 and 2"),
    ],
)
def test_a_start_that_does_not_fit_is_refused(change, said):
    settings = tiny(channels=12, start_from="drawn_12").model_copy(update=change)
    with pytest.raises(InputError, match=said):
        start_autoencoder(settings)


def test_weights_that_are_not_what_their_card_says_are_refused(tmp_path):
    keep_half(tmp_path / "x.safetensors", build_autoencoder(8, 1), {"channels": 12, "blocks": 1})
    settings = tiny(channels=12, start_from="x")
    with pytest.raises(InputError, match="is not what its card says"):
        start_autoencoder(settings, tmp_path)
    (tmp_path / "x.json").write_text("[]")
    with pytest.raises(InputError, match="not the card of an autoencoder"):
        start_autoencoder(settings, tmp_path)


def test_the_shipped_start_is_the_file_of_its_card():
    card = json.loads((PRETRAINED / "drawn_12.json").read_text())
    assert card["sha256"] == sha256_of(PRETRAINED / "drawn_12.safetensors")
    vae = freeze(start_autoencoder(tiny(channels=12, start_from="drawn_12")))
    assert judge(vae, card["seed"]) == pytest.approx(card["on pictures it had not"], abs=0.02)


def test_pretraining_repeats_itself_and_says_how_it_was_made(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(pretraining, "_TESTS", range(2))
    out = tmp_path / "new/small.safetensors"
    given = ["--channels", "6", "--steps", "3", "--seed", "5", "--out", str(out)]
    assert main(["pretrain", *given]) == 0
    first = load_file(out)
    card = json.loads(out.with_suffix(".json").read_text())
    assert main(card["made by"].removeprefix("python -m wavegms ").split() + given[-2:]) == 0
    again = load_file(out)
    assert list(again) == list(first) and all(torch.equal(again[k], first[k]) for k in first)
    vae = build_autoencoder(card["channels"], card["blocks"])
    vae.load_state_dict(first)
    assert card["on pictures it had not"] == pytest.approx(judge(freeze(vae), 5), abs=0.02)
    assert main(["pretrain", "--steps", "0"]) == 1
    assert "--steps must be at least 1" in capsys.readouterr().err


@given(st.integers(0, 2**32 - 1), st.sampled_from([16, 40]))
@hypothesis_settings(max_examples=20)
def test_pictures_that_are_drawn_are_pictures(seed, side):
    one, other = (
        draw_picture(rng, side, draw_mask(rng, side))
        for rng in (np.random.default_rng(seed), np.random.default_rng(seed))
    )
    assert one.shape == (3, side, side) and one.dtype == np.float32
    assert 0 <= one.min() <= one.max() <= 1 and np.array_equal(one, other)


def test_more_steps_leave_a_smaller_error(train_set):
    few, more = (
        reconstruction_quality(train_autoencoder(train_set, tiny(steps=steps), seed=1), train_set)
        for steps in (2, 60)
    )
    assert more.image_psnr > few.image_psnr + 1


@pytest.mark.parametrize("batch_size", [1, 3, 16])
def test_quality_is_the_formulas(trained_vae, train_set, batch_size):
    def decoded(pixels):
        # the model's forward would round the latents to bytes in between
        latents = trained_vae.encode(torch.from_numpy(2 * pixels - 1)[None].float()).latents
        return trained_vae.decode(latents).sample[0].numpy() / 2 + 0.5

    psnr, dice = [], []
    for image, mask in zip(train_set.images.numpy(), train_set.masks.numpy(), strict=True):
        error = decoded(image / 255).clip(0, 1) - image / 255
        psnr.append(10 * np.log10(1 / (error**2).mean()))
        hard, truth = decoded(np.repeat(mask, 3, 0) * 1.0).mean(0) >= 0.5, mask[0] > 0
        dice.append(2 * (hard & truth).sum() / (hard.sum() + truth.sum()))
    quality = reconstruction_quality(trained_vae, train_set, batch_size)
    assert quality.images == 4
    assert quality.image_psnr == pytest.approx(np.mean(psnr), abs=1e-3)
    assert quality.mask_dice == pytest.approx(np.mean(dice), abs=1e-4)


def test_quality_is_of_the_whole_folder(trained_vae, train_set, prepared):
    assert (load_manifest(prepared)["split"] == "train").sum() == 4
    quality = reconstruction_quality(trained_vae, train_set)
    assert asdict(quality) == {
        "image_psnr": quality.image_psnr,
        "mask_dice": quality.mask_dice,
        "images": 4,
    }


@pytest.mark.parametrize(
    ("dice", "refused"), [(0.5, True), (0.899, True), (0.9, False), (1, False)]
)
def test_an_autoencoder_that_loses_masks_is_refused(dice, refused):
    quality = ReconstructionQuality(image_psnr=40.0, mask_dice=dice, images=4)
    if not refused:
        assert require_mask_quality(quality, 0.9) is None
        return
    with pytest.raises(InputError) as error:
        require_mask_quality(quality, 0.9)
    message = str(error.value)
    assert "autoencoder.min_mask_dice 0.9" in message and f"{dice:.3f}" in message
    assert "autoencoder.train.steps" in message and "\n" not in message


def test_an_untrained_autoencoder_is_refused(train_set):
    quality = reconstruction_quality(freeze(build_autoencoder(16, 1)), train_set)
    with pytest.raises(InputError, match="min_mask_dice"):
        require_mask_quality(quality, 0.5)


def params(**changes):
    values = {
        "source": "train",
        "hub": "nobody/nothing",
        "path": "nowhere",
        "sd_vae": "nobody/nothing",
        "min_mask_dice": 0.9,
        "train": tiny(),
    }
    return AutoencoderParams(**values | changes)


def test_each_source_gives_the_autoencoder_it_names(train_set, tmp_path, monkeypatch):
    made = obtain_autoencoder(params(), train_set, seed=0)
    assert torch.equal(weights(made), weights(train_autoencoder(train_set, tiny(), seed=0)))
    made.save_pretrained(tmp_path / "vae")
    loaded = obtain_autoencoder(params(source="path", path=str(tmp_path / "vae")), None, seed=0)
    assert torch.equal(weights(loaded), weights(made))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # or it tries for long
    with pytest.raises(InputError, match="nobody/nothing"):
        obtain_autoencoder(params(source="hub"), None, seed=0)
    with pytest.raises(InputError, match="nowhere does not exist"):
        obtain_autoencoder(params(source="path"), None, seed=0)


@pytest.mark.parametrize(
    ("source", "origin"),
    [("train", tiny().model_dump()), ("hub", "nobody/nothing"), ("path", "nowhere")],
)
def test_the_quality_is_read_as_written(tmp_path, source, origin):
    train = ReconstructionQuality(image_psnr=20.0, mask_dice=0.95, images=4)
    test = ReconstructionQuality(image_psnr=19.0, mask_dice=0.94, images=2)
    card = describe_autoencoder(params(source=source), train, test)
    assert card.origin == origin
    write_quality(tmp_path, card)
    assert read_quality(tmp_path) == card


def test_a_missing_or_broken_quality_names_the_stage(tmp_path):
    with pytest.raises(InputError, match="run the autoencoder stage first"):
        read_quality(tmp_path)
    for text in ("{", "[]", '{"train": {}}', '{"train": {"mask_dice": 1}, "test": {}}'):
        (tmp_path / "quality.json").write_text(text)
        with pytest.raises(InputError, match="run the autoencoder stage again"):
            read_quality(tmp_path)


def test_a_variant_gets_the_autoencoder_of_its_kind(tmp_path):
    build_autoencoder(16, 1).save_pretrained(tmp_path)
    good = ReconstructionQuality(image_psnr=20.0, mask_dice=0.95, images=4)
    write_quality(tmp_path, describe_autoencoder(params(), good, good))
    vae, card = frozen_autoencoder("wave_gms", tmp_path, params())
    assert not any(value.requires_grad for value in vae.parameters())
    assert card.train == good
    assert frozen_autoencoder("unet", tmp_path, params()) == (None, None)
    with pytest.raises(
        InputError, match=r"Dice 0\.950 only, below autoencoder\.min_mask_dice 0\.96"
    ):
        frozen_autoencoder("wave_gms", tmp_path, params(min_mask_dice=0.96))


def test_what_a_first_network_learns_from_is_drawn_as_add_takes_it(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(drawn.write_drawn, "__defaults__", (3, 8, 32))
    folder = tmp_path / "pictures"
    assert (
        main(["draw", str(folder)]) == 0 and f"--images {folder}/images" in capsys.readouterr().out
    )
    images, masks = (sorted((folder / part).iterdir()) for part in ("images", "masks"))
    assert [path.name for path in images] == [path.name for path in masks]
    assert len(images) == 8
    for image, mask in zip(images, masks, strict=True):
        values = np.asarray(Image.open(mask))
        assert values.shape == np.asarray(Image.open(image)).shape[:2]
        assert set(np.unique(values)) == {0, 255}
    # scans come first, and none is one of the sample's
    sample = [
        example(name, 2333, index).image
        for name in ("phantom_a", "phantom_b")
        for index in range(3)
    ]
    scan = np.asarray(Image.open(images[0]))
    assert scan.ndim == 2 and not any(np.array_equal(scan, other) for other in sample)
    assert np.asarray(Image.open(images[-1])).shape[:2] == (32, 32)
    assert main(["draw", str(folder)]) == 1 and "is there already" in capsys.readouterr().err
