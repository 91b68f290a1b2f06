"""A short training as a script, for `accelerate launch` and for accelerate's notebook_launcher.

    train_script.py OUT TRAIN_FOLDER SUPERVISION [PROCESSES]

With PROCESSES it starts them itself, as a cell of a notebook would. OUT gets a checkpoint and
`history.csv` from the first process, and a line from every one in `processes`. The state is saved
after every epoch; with STOP_AT in the environment each process fails at its image of that number.
"""

import os
import sys
from pathlib import Path

import torch
from accelerate import PartialState, notebook_launcher

from wavegms.config import AugmentationParams, TrainingParams
from wavegms.data.dataset import PreparedDataset
from wavegms.models.autoencoder import freeze
from wavegms.training import loop as training_loop
from wavegms.training.autoencoder import build_autoencoder
from wavegms.training.loss import WaveGMSLoss
from wavegms.training.recipe import train

SETTINGS = TrainingParams(
    epochs=1,
    epochs_by_dataset={},
    batch_size=4,
    learning_rate=1e-3,
    weight_decay=0.01,
    warmup_epochs=0,
    selection="best_on_validation",
    precision="fp32",
    compile=False,
    augmentation=AugmentationParams(
        horizontal_flip=0.5,
        vertical_flip=0.5,
        rotate_90=0.5,
        color_jitter=0.5,
        shift_scale_rotate=0.5,
    ),
)


class Stopping(PreparedDataset):
    """A split whose n-th image cannot be had."""

    left = int(os.environ.get("STOP_AT", 0))

    def __getitem__(self, index):
        Stopping.left -= 1
        if Stopping.left == 0:
            raise ZeroDivisionError
        return super().__getitem__(index)


def go(out: str, folder: str, supervision: str) -> None:
    torch.manual_seed(3)
    vae = freeze(build_autoencoder(16, 1))
    vae.decoder.layers[-1].bias.fill_(0.5)  # mid grey, where the clamp lets gradients through
    training_loop._SAVE_SECONDS = 0.0
    dataset = PreparedDataset(Path(folder), "train")
    result = train(
        "wave_gms",
        vae,
        WaveGMSLoss(supervision),
        Stopping(Path(folder), "train"),
        dataset,
        SETTINGS,
        epochs=4,
        seed=7,
        folder=Path(out) / "model",
        live_folder=Path(out) / "live",
    )
    state = PartialState()
    with open(Path(out) / "processes", "a") as file:
        file.write(f"{state.num_processes} {result.history['loss'].iloc[-1]!r}\n")
    if state.is_main_process:
        result.history.to_csv(Path(out) / "history.csv", index=False)


if __name__ == "__main__":
    *arguments, last = sys.argv[1:]
    if last.isdigit():
        notebook_launcher(go, tuple(arguments), num_processes=int(last))
    else:
        go(*arguments, last)
