"""DSC, IoU and HD95 of the test images while a training goes on, by a process beside it.

They are defined as the final scores are, and taken as often as they cost at most a twentieth of the
training's time: where a processor stands beside the card, every few epochs.
"""

import time
from contextlib import suppress
from dataclasses import asdict
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from wavegms.files import write_text
from wavegms.images import FOREGROUND, IGNORED
from wavegms.results.metrics import mask_metrics
from wavegms.run.gpu.summary import METRICS

if TYPE_CHECKING:
    from torch import Tensor

_SHARE = 0.05

_LAST = 10.0  # seconds to wait at the end for what is still being measured

now = time.monotonic


class Watch:
    """Takes an epoch's soft masks if the one before is done and the share allows it.

    What it found is in `file` after each epoch: a row an epoch, means over the images. `truth` are
    the masks as a prepared split holds them, (N, 1, H, W).
    """

    def __init__(self, truth: "Tensor", file: Path):
        self._file, self._rows, self._taken = file, [], None
        self._free, self._on_card, self._spent = False, True, 0.0
        self._begun, context = now(), get_context("spawn")  # CUDA, once begun, cannot be forked
        self._ours, theirs = context.Pipe()
        self._process = context.Process(
            target=_serve, args=(theirs, truth[:, 0].numpy()), daemon=True
        )
        self._process.start()
        theirs.close()  # so that each of them sees the end of the other

    def __call__(self, epoch: int, soft_masks: "Tensor") -> None:
        """Of (N, 1, H, W) in [0, 1]; never waits for what is being measured."""
        try:
            self._collect(0.0)
            if self._free and self._spent <= _SHARE * (now() - self._begun):
                started, self._taken, self._free = now(), epoch, False
                self._on_card = soft_masks.is_cuda
                self._ours.send((soft_masks[:, 0] >= 0.5).cpu().numpy())
                self._spent += now() - started
        except (OSError, EOFError):  # it ended: a training needs no watching
            self._free = False

    def close(self) -> None:
        """Waits a little for the last ones."""
        with suppress(OSError, EOFError):
            self._collect(_LAST if self._taken else 0.0)
        self._ours.close()
        self._process.join(_LAST)

    def _collect(self, patience: float) -> None:
        if not self._ours.poll(patience):
            return
        found, seconds = self._ours.recv()
        self._free = True
        if self._taken:  # the first word says only that it is there
            self._rows.append({"epoch": self._taken} | found)
            write_text(self._file, pd.DataFrame(self._rows).to_csv(index=False))
        self._taken = None
        if not self._on_card:  # then the training has lost them
            self._spent += seconds


def with_watched(history: pd.DataFrame, file: Path) -> pd.DataFrame:
    """A training's history with what was found, where it was; the columns are always there."""
    found = pd.read_csv(file) if file.is_file() else pd.DataFrame(columns=["epoch", *METRICS])
    return history.merge(found.astype({"epoch": history["epoch"].dtype}), on="epoch", how="left")


def _serve(pipe: Connection, truth: np.ndarray) -> None:
    with suppress(OSError, EOFError):  # the training is over, however it ended
        pipe.send(({}, 0.0))
        while True:
            predictions, started = pipe.recv(), time.process_time()
            rows = [
                asdict(mask_metrics(prediction, mask == FOREGROUND, mask != IGNORED))
                for prediction, mask in zip(predictions, truth, strict=True)
            ]
            means = pd.DataFrame(rows)[list(METRICS)].mean().to_dict()
            pipe.send((means, time.process_time() - started))
