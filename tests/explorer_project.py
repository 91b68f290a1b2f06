"""A small project folder for the explorer: one prepared dataset, one model, no run behind it."""

import shutil

from wavegms.data.manifest import data_hash
from wavegms.training.card import ModelCard, weights_hash, write_card


def write_model(folder, pipeline, prepared, **changes):
    """Saves a pipeline with a card, as if it had been trained on a prepared folder."""
    pipeline.save_pretrained(folder)
    values = {
        "variant": "wave_gms",
        "dataset": "phantom_a",
        "train_images": 4,
        "selection_images": 2,
        "data_hash": data_hash(prepared),
        "image_size": 32,
        "seed": 2333,
        "epochs": 1,
        "best_epoch": 1,
        "selection": "best_on_validation",
        "selection_dice": 0.5,
        "trainable_parameters": 1,
        "precision": "fp32",
        "weights": weights_hash(folder),
        "autoencoder": None,
        "parameters": {},
        "versions": {},
    }
    write_card(folder, ModelCard(**values | changes))


def write_project(root, prepared, pipeline):
    """Fills a folder with what the explorer looks for: a dataset, called phantom_a, and a model."""
    shutil.copytree(prepared, root / "data/prepared/phantom_a")
    write_model(root / "models/phantom_a/wave_gms/seed_2333", pipeline, prepared)
