"""The loop over epochs and steps: what is saved when, and how a training goes on or ends."""

import math
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from dvclive import Live
from torch import nn
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader
from tqdm import tqdm

from wavegms.data.batches import Batch, TrainingBatches, mixed_seed
from wavegms.data.dataset import PreparedDataset
from wavegms.errors import InputError, Stopped
from wavegms.files import replace_folder
from wavegms.models.pipeline import WaveGMSPipeline
from wavegms.training.loss import soft_dice
from wavegms.training.run import Run
from wavegms.training.safeguards import Forecast, StopRequest, say
from wavegms.training.state import TrainingState, discard_state, save_state

# A state of 2.6 million weights is 43 MB and takes 0.1 to 0.4 s to write. What a kill loses is no
# more than this much work and the step that was begun.
_SAVE_SECONDS = 30.0


@dataclass
class TrainingLoop:
    """The loop, and what it needs.

    `described` is of `describe_run`; `step` the forward half, from a batch to the loss and its
    terms by name; `model` the network without what accelerate puts around it, and `pipeline` the
    same network as it predicts and is saved.
    """

    run: Run
    described: Mapping[str, str]
    accelerator: Accelerator
    step: Callable[[Batch], dict[str, torch.Tensor]]
    model: nn.Module
    pipeline: WaveGMSPipeline
    batches: TrainingBatches
    selection_batches: DataLoader
    optimizer: torch.optim.Optimizer
    schedule: LambdaLR
    autocast: torch.autocast
    scaler: torch.amp.GradScaler

    def go(self, saved: TrainingState | None) -> TrainingState:
        """Trains to the end, from the beginning or from a saved state.

        Raises:
            InputError: the loss or the selection Dice is no longer finite.
            Stopped: by Ctrl-C, once the state was saved.
        """
        self.main = self.accelerator.is_main_process
        # several processes hold a part each of the losses within an epoch, and would have to agree
        # on when to stop or save
        self.alone = self.accelerator.num_processes == 1
        state = self._restore(saved) if saved else TrainingState()
        done = (state.epoch - 1) * len(self.batches) + state.step
        epochs = self.run.epochs
        total = epochs * len(self.batches)
        forecast = Forecast(total - done, self.accelerator.device)
        stop = StopRequest()
        self.saved_at = time.monotonic()
        with (
            tqdm(
                total=total,
                initial=done,
                desc=f"training {self.run.variant}",
                unit="step",
                mininterval=1,
                disable=not self.main,
            ) as bar,
            open_metrics(self.run.live) if self.main else nullcontext() as live,
            stop.awaited() if self.alone else nullcontext(),
        ):
            if self.main:
                for row in state.rows:
                    log_row(live, row)
            while state.epoch <= epochs:
                self.model.train()
                for batch in self.batches.epoch(state.epoch, state.step):
                    self._take_step(state, batch)
                    state.step += 1
                    bar.update()
                    forecast.count()
                    if self.alone and state.step < len(self.batches):
                        self._save_if_due(state, stop)
                self._end_epoch(state, bar, live)
                self._save_if_due(state, stop)
        self.accelerator.wait_for_everyone()  # what was saved is there for all of them
        return state

    def _take_step(self, state: TrainingState, batch: Batch) -> None:
        # what a network draws does not depend on what came before, so no random state is saved
        set_seed(mixed_seed(self.run.seed, state.epoch, state.step) % 2**32)
        with self.autocast:
            terms = self.step(batch)
        if not torch.isfinite(terms["loss"]):
            raise self._diverged("loss", terms["loss"].item(), state)
        self.optimizer.zero_grad()
        self.scaler.scale(terms["loss"]).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        for name, value in terms.items():
            state.sums[name] = state.sums.get(name, 0) + value.detach()

    def _end_epoch(self, state: TrainingState, bar: tqdm, live: Live | None) -> None:
        self.model.eval()
        row = {
            "epoch": state.epoch,
            "learning_rate": self.schedule.get_last_lr()[0],
            **{
                name: self.accelerator.reduce(value / len(self.batches), "mean").item()
                for name, value in state.sums.items()
            },
            "selection_dice": mean_soft_dice(
                self.accelerator, self.pipeline, self.selection_batches
            ),
        }
        if not math.isfinite(row["selection_dice"]):
            # the epoch's last step broke the weights: they must not become `last`
            raise self._diverged("selection Dice", row["selection_dice"], state)
        self.schedule.step()
        state.rows.append(row)
        names = ("last",)
        if row["selection_dice"] > state.best_dice:
            state.best_dice, state.best_epoch = row["selection_dice"], state.epoch
            state.best = _copy(self.model)
            names = ("best", "last")
        state.epoch, state.step, state.sums = state.epoch + 1, 0, {}
        bar.set_postfix(
            loss=f"{row['loss']:.3f}",
            dice=f"{row['selection_dice']:.3f}",
            data=f"{self.batches.share:.1%}",
        )
        if self.main:
            save_weights(self.pipeline, self.run.checkpoints, names)
            log_row(live, row)

    def _save_if_due(self, state: TrainingState, stop: StopRequest) -> None:
        due = time.monotonic() - self.saved_at >= _SAVE_SECONDS
        over = state.epoch > self.run.epochs
        if self.main and (due or over or stop.made):
            state.model = self.model.state_dict()
            state.optimizer = self.optimizer.state_dict()
            state.schedule = self.schedule.state_dict()
            state.scaler = self.scaler.state_dict()
            save_state(self.run.checkpoints, state, self.described)
            self.saved_at = time.monotonic()
        if stop.made and not over:
            raise Stopped(
                f"stopped {self._place(state)}, which is saved in {self.run.checkpoints}: the same "
                "command goes on from there"
            )

    def _restore(self, state: TrainingState) -> TrainingState:
        if self.main:
            say(f"going on {self._place(state)}, saved in {self.run.checkpoints}")
            if state.best:
                # what lies there may be newer than the state
                self.model.load_state_dict(state.best)
                save_weights(self.pipeline, self.run.checkpoints, ("best",))
        self.model.load_state_dict(state.model)
        self.optimizer.load_state_dict(state.optimizer)
        self.schedule.load_state_dict(state.schedule)
        self.scaler.load_state_dict(state.scaler)
        device = self.accelerator.device
        state.sums = {name: value.to(device) for name, value in state.sums.items()}
        return state

    def _place(self, state: TrainingState) -> str:
        if not state.step:
            return f"after epoch {state.epoch - 1} of {self.run.epochs}"
        return (
            f"in epoch {state.epoch} of {self.run.epochs} after step {state.step} of "
            f"{len(self.batches)}"
        )

    def _diverged(self, what: str, value: float, state: TrainingState) -> InputError:
        # nothing but another recipe helps, and the saved state belongs to this one
        if self.main:
            discard_state(self.run.checkpoints)
        place = f"in epoch {state.epoch}"
        if state.step < len(self.batches):
            place += f", step {state.step + 1} of {len(self.batches)}"
        kept = ""
        if state.rows:
            last = self.run.checkpoints / "last"
            kept = f"; the last good weights, after epoch {len(state.rows)}, are in {last}"
        return InputError(f"the {what} is {value} {place}: lower training.learning_rate{kept}")


def mean_soft_dice(
    accelerator: Accelerator, pipeline: WaveGMSPipeline, batches: DataLoader
) -> float:
    """Mean soft Dice in [0, 1] of what the pipeline predicts and will be saved."""
    scores = []
    for batch in batches:
        soft_masks = pipeline.predict(PreparedDataset.to_float(batch["image"]))
        dice = soft_dice(soft_masks, PreparedDataset.mask_to_float(batch["mask"]))
        scores.append(accelerator.gather_for_metrics(dice))
    return torch.cat(scores).mean().item()


def save_weights(pipeline: WaveGMSPipeline, folder: Path, names: tuple[str, ...]) -> None:
    """Saves a pipeline as "best", "last" or both, each whole or not at all."""
    for name in names:
        with replace_folder(folder / name) as target:
            pipeline.save_pretrained(target)


def open_metrics(folder: Path) -> Live:
    """An empty place for the metrics of a training, as dvclive writes them."""
    return _Metrics(str(folder), save_dvc_exp=False, dvcyaml=None, report=None)


def log_row(live: Live, row: dict[str, float]) -> None:
    """Adds an epoch's row of the history to the metrics."""
    for name, value in row.items():
        if name != "epoch":
            live.log_metric(name, value)
    live.next_step()


def _copy(network: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.detach().cpu().clone() for name, value in network.state_dict().items()}


class _Metrics(Live):
    """dvclive's files without its Git: `Live` runs `dvc init` in a repository that lacks one.

    Which run belongs to which commit is DVC's business, around this process.
    """

    def _init_dvc(self) -> None:
        self._dvc_file = "dvc.yaml"
