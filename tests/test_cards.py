"""The card of a model, and the folder in which others find it."""

import hashlib
import json
import shutil
import subprocess
from dataclasses import replace
from importlib.metadata import version

import pandas as pd
import pytest
import torch
from runs import make_run

from wavegms import InputError, WaveGMSPipeline
from wavegms.project import library_versions
from wavegms.training.autoencoder import AutoencoderCard, ReconstructionQuality
from wavegms.training.card import card_hash, read_card, weights_hash, write_card
from wavegms.training.publish import publish_model, published_models
from wavegms.training.recipe import TrainingResult
from wavegms.training.state import STATE_NAME

QUALITY = ReconstructionQuality(image_psnr=22.5, mask_dice=0.97, images=4)


@pytest.fixture
def published(tmp_path, pipeline, train_set, validation_set, training_params):
    """The card of a model whose training was skipped, and its folder."""
    for name in ("best", "last"):
        pipeline.save_pretrained(tmp_path / "run" / name)
    (tmp_path / "run" / STATE_NAME).touch()
    result = TrainingResult(
        history=pd.DataFrame({"epoch": [1, 2]}),
        best_epoch=2,
        best_dice=0.5,
        trainable_parameters=2_600_668,
        folder=tmp_path / "run",
        precision="bf16",
    )
    run = make_run(
        tmp_path / "run",
        train_set,
        validation_set,
        training_params(),
        seed=7,
        autoencoder=AutoencoderCard("train", {"steps": 5}, QUALITY, QUALITY),
        published=tmp_path / "models/phantom_a/wave_gms",
    )
    return publish_model(run, result), run.published


def test_the_folder_opens_and_predicts_like_the_best_weights(published, pipeline):
    _, folder = published
    image = torch.rand(1, 3, 32, 32)
    for weights in (folder, folder / "last"):
        again = WaveGMSPipeline.from_pretrained(weights)
        assert torch.equal(again.predict(image), pipeline.predict(image))


def test_the_card_says_what_made_the_model(published, train_set, validation_set):
    card, folder = published
    stored = json.loads((folder / "card.json").read_text())
    assert stored["data_hash"] == train_set.data_hash
    assert (stored["train_images"], stored["selection_images"]) == (4, 2)
    assert len(validation_set) == 2
    assert stored["parameters"]["loss"]["supervision"] == "all_levels"
    assert stored["parameters"]["training"]["learning_rate"] == 1e-3
    assert stored["autoencoder"]["train"]["mask_dice"] == 0.97
    assert stored["versions"]["torch"] == version("torch")
    assert set(stored["versions"]) == set(library_versions())
    # what "auto" came to
    assert (stored["precision"], stored["parameters"]["training"]["precision"]) == ("bf16", "auto")
    assert read_card(folder) == card


def test_a_model_that_is_in_place_needs_no_state_to_go_on_from(published, tmp_path):
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["best", "last"]


def test_a_network_without_autoencoder_has_none_on_its_card(published):
    card, folder = published
    write_card(folder, replace(card, autoencoder=None))
    assert read_card(folder).autoencoder is None


def test_the_hashes_are_those_of_a_shell(published):
    card, folder = published
    command = "sha256sum */*.safetensors | sha256sum"
    done = subprocess.run(
        command, shell=True, cwd=folder, capture_output=True, encoding="utf-8", check=True
    )
    assert f"{card.weights}  -\n" == done.stdout
    assert card_hash(card) == hashlib.sha256((folder / "card.json").read_bytes()).hexdigest()
    assert card_hash(read_card(folder)) == card_hash(card) != card_hash(replace(card, seed=8))


def test_every_weight_counts_and_so_does_its_place(published):
    card, folder = published
    seen = {card.weights}
    file = folder / "encoder/diffusion_pytorch_model.safetensors"
    content = file.read_bytes()
    file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    seen.add(weights_hash(folder))
    file.write_bytes(content)
    file.rename(file.with_name("other.safetensors"))
    seen.add(weights_hash(folder))
    file.with_name("other.safetensors").unlink()
    seen.add(weights_hash(folder))
    assert len(seen) == 4


def test_a_card_beside_other_weights_is_refused(published, pipeline):
    _, folder = published
    for file in (folder / "last").rglob("*.safetensors"):
        file.write_bytes(b"the card does not describe these")
    read_card(folder)
    pipeline.vae.save_pretrained(folder / "another")
    with pytest.raises(InputError, match=r"the weights in .*wave_gms are not those that its card"):
        read_card(folder)


def test_the_summary_has_one_line_for_each_entry(published):
    card, _ = published
    summary = card.summary()
    assert summary["best_epoch"] == 2 and summary["variant"] == "wave_gms"
    assert not any(isinstance(value, dict) for value in summary.values())


def test_a_missing_card_names_the_stage(tmp_path):
    with pytest.raises(InputError, match=r"card\.json does not exist: run the train stage"):
        read_card(tmp_path)


@pytest.mark.parametrize(
    "text", ["{", "[]", '"text"', '{"variant": "wave_gms"}', "\xff", "[" * 100_000], ids=range(6)
)
def test_a_broken_card_is_refused_by_name(tmp_path, text):
    (tmp_path / "card.json").write_text(text, encoding="latin-1")
    with pytest.raises(InputError, match=r"card\.json is not the card of a trained model"):
        read_card(tmp_path)


def test_a_folder_in_the_place_of_a_card_is_refused_by_name(tmp_path):
    (tmp_path / "card.json").mkdir()
    with pytest.raises(InputError, match=r"card\.json is not the card of a trained model"):
        read_card(tmp_path)


def test_the_models_that_are_there_are_found_in_the_order_asked_for(published, tmp_path):
    card, folder = published
    for variant, seed, epochs in (("unet", 7, 3), ("tinyvae", 7, 2), ("tinyvae", 8, 2)):
        place = tmp_path / "models/phantom_a" / variant / f"seed_{seed}"
        shutil.copytree(folder, place)
        write_card(place, replace(card, variant=variant, seed=seed, epochs=epochs))
    found = published_models(folder.parent, ["tinyvae", "wave_gms", "unet"], 7)
    assert [model.title for model in found] == ["Tiny-VAE (trained), 2 epochs", "UNet, 3 epochs"]
    assert [model.folder.parent.name for model in found] == ["tinyvae", "unet"]
