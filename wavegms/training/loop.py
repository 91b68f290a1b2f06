"""The loop over epochs and steps: what is saved when, and how a training goes on or ends."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast
from torch import nn
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader
from tqdm import tqdm

from wavegms.data.batches import Batch, TrainingBatches, mixed_seed
from wavegms.data.dataset import PreparedDataset
from wavegms.data.windows import Stacks
from wavegms.errors import InputError, Stopped
from wavegms.files import replace_folder
from wavegms.models.pipeline import WaveGMSPipeline
from wavegms.recipes import TAKE_COMMON
from wavegms.training.graph import GraphedStep
from wavegms.training.loss import dice_of_sums, dice_sums
from wavegms.training.run import Run
from wavegms.training.safeguards import Budget, Forecast, StopRequest, say
from wavegms.training.state import TrainingState, discard_state, save_state

if TYPE_CHECKING:
    from dvclive import Live

# A state of 2.6 million weights is 43 MB and takes 0.1 to 0.4 s to write. What a kill loses is no
# more than this much work and the step that was begun.
_SAVE_SECONDS = 30.0


@dataclass
class Plan:
    """How many epochs the learning rate is planned for; 0 until `training.minutes` is measured."""

    epochs: int


@dataclass
class TrainingLoop:
    """The loop, and what it needs.

    `described` is of `describe_run`; `step` the forward half, from a batch to the loss and its
    terms by name; `model` the network without what accelerate puts around it, and `pipeline` the
    same network as it predicts and is saved. `checked` says whether every step's loss is looked at
    before it goes backward; on a GPU that would make both wait for each other, so an epoch's sum is
    looked at instead, and where it is not finite, the epoch's steps are taken again to find which.
    `watch` is of `train`, `clip` the largest norm of a gradient, and `by_step` says whether the
    learning rate changes with each step instead of each epoch.
    """

    run: Run
    described: Mapping[str, str]
    accelerator: Accelerator
    step: Callable[[Batch], dict[str, torch.Tensor]]
    model: nn.Module
    pipeline: WaveGMSPipeline
    batches: TrainingBatches
    selection_batches: DataLoader | Stacks
    optimizer: torch.optim.Optimizer
    schedule: LambdaLR
    autocast: torch.autocast
    scaler: torch.amp.GradScaler
    plan: Plan
    checked: bool
    graphed: bool
    watch: Callable[[int, torch.Tensor], None] | None = None
    clip: float | None = None
    by_step: bool = False

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
        self.kept: list[torch.Tensor] = []
        self.best_is_written = True
        self.written_at = time.monotonic()
        state = self._restore(saved) if saved else TrainingState(epochs=self.run.epochs or 0)
        self.plan.epochs = state.epochs
        self.backward = GraphedStep(self._backward) if self.graphed else self._backward
        minutes, device = self.run.training.minutes or 0, self.accelerator.device
        self.budget = Budget(minutes, len(self.batches), device, state.seconds)
        done = (state.epoch - 1) * len(self.batches) + state.step
        total = state.epochs * len(self.batches) or None
        forecast = Forecast(total and total - done, device)
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
            open_metrics(self.run.live if self.main else None) as live,
            stop.awaited() if self.alone else nullcontext(),
        ):
            if self.main:
                for row in state.rows:
                    log_row(live, row)
            while not state.over:
                self.model.train()
                self._snapshot(state)
                for batch in self.batches.epoch(state.epoch, state.step):
                    self._take_step(state, batch)
                    state.step += 1
                    self.budget.count()
                    bar.update()
                    forecast.count()
                    if self.alone and state.step < len(self.batches):
                        self._save_if_due(state, stop)
                if not self.checked:
                    self._find_divergence(state)
                self.budget.count_epoch()
                self._end_epoch(state, bar, live)
                self._save_if_due(state, stop)
        self.accelerator.wait_for_everyone()  # what was saved is there for all of them
        return state

    @property
    def refusal(self) -> str:
        """Why a step could not be one launch, if it was to be."""
        return self.backward.failure if isinstance(self.backward, GraphedStep) else ""

    def _take_step(self, state: TrainingState, batch: Batch) -> None:
        # what a network draws does not depend on what came before, so no random state is saved
        torch.manual_seed(mixed_seed(self.run.seed, state.epoch, state.step) % 2**32)
        if self.by_step and (state.epoch, state.step) != (1, 0):
            self.schedule.step()
        terms = self.backward(batch)
        if self.checked and not torch.isfinite(terms["loss"]):
            raise self._diverged("loss", terms["loss"].item(), state)
        for name, value in terms.items():
            state.sums[name] = state.sums.get(name, 0) + value

    def _backward(self, batch: Batch) -> dict[str, torch.Tensor]:
        """All of a step; nothing in it waits for a value from the device."""
        with self.autocast:
            terms = self.step(batch)
        self.optimizer.zero_grad()
        self.scaler.scale(terms["loss"]).backward()
        if self.clip:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.model.parameters(), self.clip)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return {name: value.detach() for name, value in terms.items()}

    def _snapshot(self, state: TrainingState) -> None:
        """Keeps where an epoch begins, on the device, for when it has to be taken again."""
        if self.checked:
            return
        values = self._tensors()
        if len(values) == len(self.kept):
            _copy_all(self.kept, values)
        else:
            self.kept = [value.clone() for value in values]
        self.kept_step, self.kept_scale = state.step, self.scaler.state_dict()

    def _tensors(self) -> list[torch.Tensor]:
        """All that a step changes: of the network, then of the optimiser."""
        moments = [one for kept in self.optimizer.state.values() for one in kept.values()]
        return [*self.model.state_dict().values(), *moments]

    def _return(self, state: TrainingState) -> None:
        """Back to where the epoch began; its weights, the last good ones, are written."""
        if self.checked:
            return
        values = self._tensors()
        _copy_all(values[: len(self.kept)], self.kept)
        for moment in values[len(self.kept) :]:  # of the first epoch: there were none
            moment.zero_()
        self.scaler.load_state_dict(self.kept_scale)
        if self.kept_step == 0 and state.rows:
            self._save_weights(state)

    def _find_divergence(self, state: TrainingState) -> None:
        """Takes the epoch's steps again, looking at each, if the sum of their losses is not finite.

        Reading that sum is where a GPU is waited for.
        """
        loss = self.accelerator.reduce(state.sums["loss"], "sum").item()
        if math.isfinite(loss):
            return
        self._return(state)
        state.step = self.kept_step
        for batch in self.batches.epoch(state.epoch, state.step):
            torch.manual_seed(mixed_seed(self.run.seed, state.epoch, state.step) % 2**32)
            terms = self._backward(batch)
            again = self.accelerator.reduce(terms["loss"], "sum").item()
            if not math.isfinite(again):
                loss = again
                break  # else, as a GPU may round otherwise the second time, no step is named
            state.step += 1
        raise self._diverged("loss", loss, state)

    def _end_epoch(self, state: TrainingState, bar: tqdm, live: Live | None) -> None:
        self.model.eval()
        row = {
            "epoch": state.epoch,
            "learning_rate": float(self.schedule.get_last_lr()[0]),
            **{
                name: self.accelerator.reduce(value / len(self.batches), "mean").item()
                for name, value in state.sums.items()
            },
            "selection_dice": mean_soft_dice(
                self.accelerator,
                self.pipeline,
                self.selection_batches,
                self.run.selection_set.volume_of,
                self.watch and partial(self.watch, state.epoch),
            ),
        }
        if not math.isfinite(row["selection_dice"]):
            # the epoch's last step broke the weights: they must not become `last`
            self._return(state)
            raise self._diverged("selection Dice", row["selection_dice"], state)
        if not state.epochs:
            self._fix_epochs(state, bar)
        if not self.by_step:
            self.schedule.step()
        state.rows.append(row)
        if row["selection_dice"] > state.best_dice:
            state.best_dice, state.best_epoch = row["selection_dice"], state.epoch
            state.best = _copy(self.model)
            self.best_is_written = False
        state.epoch, state.step, state.sums = state.epoch + 1, 0, {}
        bar.set_postfix(
            loss=f"{row['loss']:.3f}",
            dice=f"{row['selection_dice']:.3f}",
            data=f"{self.batches.share:.1%}",
        )
        if self.main:
            # a GPU's epoch may take less time than writing its weights
            waited = time.monotonic() - self.written_at
            if self.checked or state.over or waited >= _SAVE_SECONDS:
                self._save_weights(state)
            log_row(live, row)

    def _fix_epochs(self, state: TrainingState, bar: tqdm) -> None:
        """Once the warm-up is over: until then the learning rate is the same for any number."""
        selection = None
        if (
            not self.checked
        ):  # the first one chose kernels, which takes a card several times as long
            started = time.monotonic()
            volume_of = self.run.selection_set.volume_of
            mean_soft_dice(self.accelerator, self.pipeline, self.selection_batches, volume_of)
            selection = time.monotonic() - started
        epochs = self.budget.epochs(state.epoch, selection)
        epochs = torch.tensor(epochs, device=self.accelerator.device)
        epochs = int(broadcast(epochs).item())  # what the first process measured
        warmup = self.run.warmup_epochs
        if epochs <= warmup:
            needed = math.ceil(10 * self.run.training.minutes * (warmup + 1) / epochs) / 10
            if self.main:
                discard_state(self.run.checkpoints)
            raise InputError(
                f"training.minutes is {self.run.training.minutes:g}, enough for {epochs} epochs "
                f"here, but the warm-up alone takes {warmup}: give at least {needed:g} minutes, "
                "or lower training.warmup_epochs"
            )
        if state.epoch <= warmup:
            return
        state.epochs = self.plan.epochs = epochs
        if self.main:
            bar.total = epochs * len(self.batches)
            say(f"{epochs} epochs fit into the {self.run.training.minutes:g} minutes")

    def _save_weights(self, state: TrainingState) -> None:
        """Writes those of the model as `last`, and `best` where that is not what lies there."""
        if not self.main:
            return
        if not self.best_is_written and state.best_epoch == state.epoch - 1:
            save_weights(self.pipeline, self.run.checkpoints, ("best", "last"))
        else:
            if not self.best_is_written:
                current = _copy(self.model)
                self.model.load_state_dict(state.best)
                save_weights(self.pipeline, self.run.checkpoints, ("best",))
                self.model.load_state_dict(current)
            save_weights(self.pipeline, self.run.checkpoints, ("last",))
        self.best_is_written, self.written_at = True, time.monotonic()

    def _save_if_due(self, state: TrainingState, stop: StopRequest) -> None:
        due = time.monotonic() - self.saved_at >= _SAVE_SECONDS
        over = state.over
        if self.main and (due or over or stop.made):
            if self.run.epochs is None:
                state.seconds = self.budget.spent()
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
        self._load_optimizer(state.optimizer)
        self.schedule.load_state_dict(state.schedule)
        self.scaler.load_state_dict(state.scaler)
        device = self.accelerator.device
        state.sums = {name: value.to(device) for name, value in state.sums.items()}
        return state

    def _load_optimizer(self, values: Mapping[str, Any]) -> None:
        """The state is another device's, perhaps; and a graph knows the rate by its tensor."""
        own = [(group["lr"], group.get("capturable")) for group in self.optimizer.param_groups]
        self.optimizer.load_state_dict(values)
        for group, (rate, capturable) in zip(self.optimizer.param_groups, own, strict=True):
            value = float(group["lr"])
            group["lr"] = rate.fill_(value) if isinstance(rate, torch.Tensor) else value
            if capturable is not None:  # SGD has none
                group["capturable"] = capturable

    def _place(self, state: TrainingState) -> str:
        of = f" of {state.epochs}" if state.epochs else ""
        if not state.step:
            return f"after epoch {state.epoch - 1}{of}"
        return f"in epoch {state.epoch}{of} after step {state.step} of {len(self.batches)}"

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
        way_out = TAKE_COMMON if self.run.recipe else "lower training.learning_rate"
        return InputError(f"the {what} is {value} {place}: {way_out}{kept}")


def mean_soft_dice(
    accelerator: Accelerator,
    pipeline: WaveGMSPipeline,
    batches: DataLoader | Stacks,
    volume_of: Sequence[int],
    show: Callable[[torch.Tensor], None] | None = None,
) -> float:
    """Mean soft Dice in [0, 1] of what the pipeline predicts and will be saved, which is shown.

    Slices count together as the volume that they are of: of slices one by one, those without
    foreground score 1 only where nothing at all is found, and would choose a network that finds
    nothing.
    """
    sums, shown, order = [], [], []
    if isinstance(batches, Stacks):  # each process looks at all: few have as many volumes
        for places, soft_masks in batches.predicted(pipeline.predict, pipeline.depth):
            masks = torch.stack([batches.images[place]["mask"] for place in places])
            masks = PreparedDataset.mask_to_float(masks).to(soft_masks.device)
            sums.append(dice_sums(soft_masks, masks))
            order += places
            if show:
                shown.append(soft_masks)
        volume_of = [volume_of[place] for place in order]
    else:
        for batch in batches:
            soft_masks = pipeline.predict(PreparedDataset.to_float(batch["image"]))
            of_batch = dice_sums(soft_masks, PreparedDataset.mask_to_float(batch["mask"]))
            sums.append(accelerator.gather_for_metrics(of_batch))
            if show:
                shown.append(soft_masks)
    of_images = torch.cat(sums)
    volumes = torch.tensor(volume_of, device=of_images.device)
    whole = of_images.new_zeros(max(volume_of) + 1, *of_images.shape[1:])
    mean = dice_of_sums(whole.index_add(0, volumes, of_images)).mean().item()
    if show:  # nobody has to wait for a card any more
        soft_masks = torch.cat(shown)
        show(soft_masks[torch.tensor(order).argsort()] if order else soft_masks)
    return mean


def save_weights(pipeline: WaveGMSPipeline, folder: Path, names: tuple[str, ...]) -> None:
    """Saves a pipeline as "best", "last" or both, each whole or not at all."""
    for name in names:
        with replace_folder(folder / name) as target:
            pipeline.save_pretrained(target)


def open_metrics(folder: Path | None) -> AbstractContextManager[Live | None]:
    """An empty place for the metrics of a training, as dvclive writes them; None for None."""
    if folder is None:
        return nullcontext()
    from dvclive import Live  # here: a machine that only trains need not have it

    class Metrics(Live):
        """dvclive's files without its Git: `Live` runs `dvc init` in a repository that lacks one.

        Which run belongs to which commit is DVC's business, around this process.
        """

        def _init_dvc(self) -> None:
            self._dvc_file = "dvc.yaml"

    return Metrics(str(folder), save_dvc_exp=False, dvcyaml=None, report=None)


def log_row(live: Live | None, row: dict[str, float]) -> None:
    """Adds an epoch's row of the history to the metrics, where there is a place for them."""
    if live is None:
        return
    for name, value in row.items():
        if name != "epoch":
            live.log_metric(name, value)
    live.next_step()


def _copy_all(into: list[torch.Tensor], values: list[torch.Tensor]) -> None:
    """In few launches: one by one, two thousand tensors would take as long as several steps."""
    for kind in {value.dtype for value in values}:
        pairs = [pair for pair in zip(into, values, strict=True) if pair[0].dtype == kind]
        torch._foreach_copy_(*map(list, zip(*pairs, strict=True)))


def _copy(network: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in network.state_dict().items()}
