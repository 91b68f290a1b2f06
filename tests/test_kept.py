"""Weights that stay in the repository: kept small, opened by name, and begun from."""

import asyncio
import json
import shutil
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from medpy.metric.binary import dc
from runs import grey_vae, make_run

from wavegms import InputError, WaveGMSPipeline
from wavegms import project as wavegms_project
from wavegms.explore.app import Explorer
from wavegms.explore.cases import find_models
from wavegms.explore.panels import model_label
from wavegms.models.autoencoder import freeze
from wavegms.models.build import as_pipeline, build_variant
from wavegms.models.mask_decoder import same_autoencoder, signature
from wavegms.project import is_kept
from wavegms.training import kept as training_kept
from wavegms.training.autoencoder import open_pretrained
from wavegms.training.card import read_card
from wavegms.training.drawn import draw_mask, draw_one_thing
from wavegms.training.kept import keep_weights, model_folder, start_network
from wavegms.training.publish import publish_model
from wavegms.training.recipe import train


@pytest.fixture(scope="module")
def trained(train_set, validation_set, training_params, tmp_path_factory):
    """A model of the sample with its card, and the autoencoder that stands for TAESD here."""
    vae, folder = grey_vae(), tmp_path_factory.mktemp("trained")
    run = make_run(folder, train_set, validation_set, training_params(), vae=vae)
    card = publish_model(run, train(run))
    return folder / "published", card, vae


@pytest.fixture
def kept(trained, tmp_path, monkeypatch):
    """The folder of kept weights with that model as `little`."""
    published, card, vae = trained
    vae.save_pretrained(tmp_path / "taesd")
    monkeypatch.setattr(training_kept, "_TAESD", (tmp_path / "taesd", "nobody/nothing"))
    pipeline = WaveGMSPipeline.from_pretrained(published)
    keep_weights("little", pipeline, card, {"licence": "none"}, tmp_path / "weights")
    return tmp_path / "weights"


def test_it_is_small_and_says_what_it_is(kept, trained):
    assert (kept / "little.safetensors").stat().st_size < 5.4e6
    values = json.loads((kept / "little.json").read_text())
    assert values["licence"] == "none" and "not for clinical use" in values["notice"]
    assert values["card"] == asdict(trained[1])
    assert is_kept("little", kept) and not is_kept("other", kept)
    assert not is_kept("../little", kept) and not is_kept(kept / "little", kept)


def test_opened_by_name_it_is_the_model_to_the_digits_of_bfloat16(kept, trained, tmp_path):
    folder = model_folder("little", tmp_path, kept)
    assert folder == tmp_path / "models/kept/little/seed_1"
    card = read_card(folder)
    assert card.epochs == trained[1].epochs and card.weights != trained[1].weights
    ours, theirs = (WaveGMSPipeline.from_pretrained(one) for one in (folder, trained[0]))
    for part in ("encoder", "mapping"):
        wanted = getattr(theirs, part).state_dict()
        for key, value in getattr(ours, part).state_dict().items():
            assert torch.equal(value, wanted[key].bfloat16().float())
    image = torch.rand(1, 3, 32, 32)
    assert (ours.predict(image) - theirs.predict(image)).abs().max() < 0.05
    before = (folder / "card.json").stat().st_mtime_ns
    assert model_folder("little", tmp_path, kept) == folder  # once more, it is there
    assert (folder / "card.json").stat().st_mtime_ns == before


def test_what_is_no_name_is_left_as_it_is(kept, tmp_path):
    for where in ("owner/name", str(tmp_path), tmp_path / "x", "nothing"):
        assert model_folder(where, tmp_path, kept) == where


@pytest.mark.parametrize("part", ["little.safetensors", "little.json"])
def test_damaged_it_is_refused(kept, tmp_path, part, survived):
    content = bytearray((kept / part).read_bytes())
    for place in (0, len(content) // 3):
        broken = content.copy()
        broken[place] ^= 0x80
        (kept / part).write_bytes(bytes(broken))
        with pytest.raises(InputError, match="restore"):
            model_folder("little", tmp_path, kept)
    survived("inputs", 2)
    assert not (tmp_path / "models").exists()


def test_another_autoencoder_is_refused(kept, tmp_path):
    grey_vae(5).save_pretrained(tmp_path / "taesd")
    with pytest.raises(InputError, match="another autoencoder"):
        model_folder("little", tmp_path, kept)


def test_without_its_autoencoder_it_says_how_to_get_that(kept, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # or it tries for long
    shutil.rmtree(tmp_path / "taesd")
    with pytest.raises(InputError, match=r"nobody/nothing cannot be loaded .*get taesd") as refusal:
        model_folder("little", tmp_path, kept)
    assert "autoencoder.source" not in str(refusal.value)


def test_what_was_trained_on_drawn_pictures_needs_nothing_from_elsewhere(tmp_path, monkeypatch):
    """Neither TAESD nor a network; on drawn pictures that it had not it marks what is drawn."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    pipeline = WaveGMSPipeline.from_pretrained(model_folder("wave_gms_drawn"))
    vae = open_pretrained("drawn_12")
    assert same_autoencoder(signature(pipeline.vae), signature(freeze(vae)))
    scores, areas = [], []
    for rng in (np.random.default_rng((9, number)) for number in range(32)):
        mask = draw_mask(rng, 96)
        if 0.01 < mask.mean() < 0.5:  # as it learnt from
            picture = torch.from_numpy(draw_one_thing(rng, 96, mask))[None]
            scores.append(dc(pipeline.predict(picture)[0, 0].numpy() >= 0.5, mask))
            areas.append(mask.mean())
    everything = np.mean([2 * area / (1 + area) for area in areas])  # Dice of a mask of all pixels
    assert np.mean(scores) > 0.55 > 1.5 * everything
    network = start_network("wave_gms_drawn", "wave_gms", vae)
    ours, theirs = as_pipeline(network, vae, 96).mapping.state_dict(), pipeline.mapping.state_dict()
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_the_same_autoencoder_in_half_precision_is_taken(kept, trained, tmp_path):
    grey_vae().half().save_pretrained(tmp_path / "taesd")
    assert model_folder("little", tmp_path, kept).is_dir()


@pytest.fixture
def ours(kept, tmp_path, monkeypatch):
    """Those weights in the place of the repository's own."""
    monkeypatch.chdir(tmp_path)
    for module in (training_kept, wavegms_project):
        monkeypatch.setattr(module, "KEPT", kept)
        monkeypatch.setattr(module, "is_kept", lambda where, folder=kept: is_kept(where, folder))
    monkeypatch.setattr(model_folder, "__defaults__", (model_folder.__defaults__[0], kept))


def test_the_explorer_shows_it_by_its_name(ours, prepared, tmp_path):
    """Also where no other model is, and beside one of the same network and dataset."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data/phantom_a").symlink_to(prepared)
    (kept,) = find_models(tmp_path / "models", "little")
    assert model_label(kept).endswith("seed 1 (little)")
    other = tmp_path / "models/phantom_a/wave_gms"
    other.mkdir(parents=True)
    shutil.copytree(kept.folder, other / "seed_1")
    models = find_models(Path("models"), "little")

    async def shown(variant):
        explorer = Explorer(tmp_path / "data", models, "phantom_a", variant, 1, 0.5)
        await explorer.filling
        return models[explorer.model.value].folder

    assert asyncio.run(shown("little")) == Path("models/kept/little/seed_1")
    assert len(models) == 2


def test_a_training_begins_from_it(ours, tmp_path, train_set, validation_set, training_params):
    start = start_network("little", "wave_gms", grey_vae())
    settings = training_params(learning_rate=1e-9, start_from="little")
    run = make_run(
        tmp_path, train_set, validation_set, settings, vae=grey_vae(), start=start, seed=9
    )
    result = train(run)
    begun = WaveGMSPipeline.from_pretrained(result.folder / "last").encoder.state_dict()
    for key, value in start.encoder.state_dict().items():
        torch.testing.assert_close(begun[key], value, atol=1e-6, rtol=0)
    assert not torch.equal(
        next(iter(begun.values())), next(iter(build_variant("wave_gms").encoder.parameters()))
    )


@pytest.mark.parametrize(
    ("where", "variant", "vae", "said"),
    [
        ("nowhere", "wave_gms", 0, "is no folder, and no name in weights/"),
        (None, "tinyvae", 0, "another network than tinyvae"),
        (None, "wave_gms", 5, "another autoencoder"),
    ],
)
def test_what_does_not_fit_is_no_beginning(trained, where, variant, vae, said):
    with pytest.raises(InputError, match=f"training.start_from.*{said}"):
        start_network(where or str(trained[0]), variant, grey_vae(vae))
