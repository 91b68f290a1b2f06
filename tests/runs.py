"""A training on any images, with all of its folders below one, and an autoencoder for it."""

from functools import partial

import torch

from wavegms.config import LossParams, ModelParams
from wavegms.models.autoencoder import freeze
from wavegms.models.mask_network import MASK_NETWORKS
from wavegms.training.autoencoder import build_autoencoder
from wavegms.training.run import Run
from wavegms.variants import VARIANTS, VariantSpec


def make_run(folder, train_set, selection_set, training, **changes):
    """By default Wave-GMS's; keywords are of `Run`, or of its sections loss and model."""
    loss = {"supervision": "all_levels", "alignment_distance": "l1"}
    model = {"sample_at_inference": False, "gms_checkpoint": "none"}
    for section in (loss, model):
        section |= {name: changes.pop(name) for name in list(section) if name in changes}
    values = {
        "dataset": "phantom_a",
        "variant": "wave_gms",
        "seed": 1,
        "train_set": train_set,
        "selection_set": selection_set,
        "vae": None,
        "autoencoder": None,
        "training": training,
        "loss": LossParams(**loss),
        "model": ModelParams(**model),
        "checkpoints": folder / "model",
        "live": folder / "live",
        "published": folder / "published",
    }
    return Run(**values | changes)


def grey_vae(seed=0):
    """A small untrained autoencoder that decodes to mid grey, where the clamp passes gradients."""
    torch.manual_seed(seed)
    vae = freeze(build_autoencoder(16, 1))
    vae.decoder.layers[-1].bias.fill_(0.5)
    return vae


def as_tiny(monkeypatch):
    """Adds a variant `tiny` of one convolution, for what does not depend on the network."""

    build = partial(torch.nn.Conv2d, 3, 1, 3, padding=1)
    monkeypatch.setitem(MASK_NETWORKS, "tiny", build)
    monkeypatch.setitem(VARIANTS, "tiny", VariantSpec("tiny", "tiny", None))
