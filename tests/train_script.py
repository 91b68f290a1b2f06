"""A short training as a script, for `accelerate launch` and for accelerate's notebook_launcher.

    train_script.py OUT TRAIN_FOLDER SUPERVISION [PROCESSES]

With PROCESSES it starts them itself, as a cell of a notebook would. OUT gets a checkpoint and
`history.csv` from the first process, and a line from every one in `processes`. The state is saved
after every epoch; with STOP_AT in the environment each process fails at its image of that number.
"""

import os
import sys
from pathlib import Path

from accelerate import PartialState, notebook_launcher
from runs import grey_vae, make_run

from wavegms.config import AugmentationParams, TrainingParams
from wavegms.data.dataset import PreparedDataset
from wavegms.training import loop as training_loop
from wavegms.training.recipe import train

SETTINGS = TrainingParams(
    epochs=4,
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
    training_loop._SAVE_SECONDS = 0.0
    sets = Stopping(Path(folder), "train"), PreparedDataset(Path(folder), "train")
    run = make_run(Path(out), *sets, SETTINGS, vae=grey_vae(3), seed=7, supervision=supervision)
    result = train(run)
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
