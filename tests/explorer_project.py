"""A small project folder for the explorer: one prepared dataset, one model, no run behind it."""

import shutil

import torch

from wavegms import LatentMappingModel, MultiResolutionEncoder, WaveGMSPipeline
from wavegms.data.manifest import data_hash
from wavegms.training.autoencoder import build_autoencoder
from wavegms.training.card import ModelCard, weights_hash, write_card


def untrained_pipeline():
    """A Wave-GMS at 32 x 32 that marks about half of every image, and of each another half.

    Of untrained networks nothing but black would be seen; this one's decoder ends more steeply.
    """
    torch.manual_seed(0)
    networks = MultiResolutionEncoder(), LatentMappingModel(), build_autoencoder(16, 1)
    pipeline = WaveGMSPipeline(*networks, image_size=32)
    last = pipeline.vae.decoder.layers[-1]
    with torch.no_grad():
        last.weight.mul_(30)
        last.bias.fill_(0.7)
    return pipeline


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


def write_project(root, prepared):
    """Fills a folder with what the explorer looks for: a dataset, called phantom_a, and a model."""
    shutil.copytree(prepared, root / "data/prepared/phantom_a")
    write_model(root / "models/phantom_a/wave_gms/seed_2333", untrained_pipeline(), prepared)
