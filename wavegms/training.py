"""The training loop (paper, section 3.2): one loop for every network, through accelerate."""

import math
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from diffusers import AutoencoderTiny
from dvclive import Live
from torch import nn
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader
from tqdm import tqdm

from wavegms.config import TrainingParams
from wavegms.data.augment import Augmentation
from wavegms.data.dataset import PreparedDataset
from wavegms.data.files import replace_folder
from wavegms.errors import InputError
from wavegms.losses import WaveGMSLoss, soft_dice
from wavegms.models.autoencoder import decode_masks
from wavegms.models.variants import as_pipeline, build_variant


@dataclass(frozen=True)
class TrainingResult:
    """What a training run leaves behind.

    Attributes:
        history: one row an epoch: epoch (from 1), learning_rate, the mean losses loss, seg, lm and
            align over the epoch's batches, and selection_dice, the mean soft Dice in [0, 1] on the
            images that select the checkpoint.
        best_epoch: the epoch whose weights were kept.
        best_dice: its selection_dice.
        trainable_parameters: their number.
        folder: holds `best` and `last`, each a folder for `WaveGMSPipeline.from_pretrained`.
    """

    history: pd.DataFrame
    best_epoch: int
    best_dice: float
    trainable_parameters: int
    folder: Path


def learning_rate_factor(epoch: int, epochs: int, warmup_epochs: int) -> float:
    """Fraction of the peak learning rate: linear warm-up, then a cosine to 0, stepped per epoch.

    Args:
        epoch: from 0.
        epochs: their number.
        warmup_epochs: how many of them warm up. The first starts one step above 0, because an
            epoch at exactly 0 would train nothing.

    Returns:
        A factor in [0, 1].
    """
    if epoch < warmup_epochs:
        return (epoch + 1) / (warmup_epochs + 1)
    progress = (epoch - warmup_epochs) / max(1, epochs - warmup_epochs)
    return 0.5 * (1 + math.cos(math.pi * progress))


def train(
    variant: str,
    vae: AutoencoderTiny,
    loss: WaveGMSLoss,
    train_set: PreparedDataset,
    selection_set: PreparedDataset,
    settings: TrainingParams,
    *,
    epochs: int,
    seed: int,
    folder: Path,
    live_folder: Path,
    sample_at_inference: bool = False,
) -> TrainingResult:
    """Trains a network and keeps its best and its last weights.

    Every random choice (initial weights, order, augmentation, sampled latents) follows from
    `seed`. After each epoch the last checkpoint, and the best when it improves, are written whole
    or not at all. Metrics go to `live_folder` as dvclive writes them, a progress bar to stderr.

    Args:
        variant: name in `wavegms.models.variants.VARIANTS`.
        vae: the frozen autoencoder.
        loss: the loss.
        train_set: images to learn from; the last short batch of each epoch is dropped.
        selection_set: images on which the best epoch is chosen by soft Dice.
        settings: batch size, learning rate and the rest of the recipe.
        epochs: number of epochs.
        seed: of everything random.
        folder: where `best` and `last` go.
        live_folder: where the metrics of each epoch go.
        sample_at_inference: see `MultiResolutionEncoder`.

    Returns:
        The history and the best epoch.

    Raises:
        InputError: the batch is larger than the training set, the warm-up does not end, or the
            loss or the selection Dice is no longer finite.
    """
    if settings.batch_size > len(train_set):
        raise InputError(
            f"training.batch_size is {settings.batch_size}, but only {len(train_set)} images are "
            f"in the training split: choose at most {len(train_set)}"
        )
    if settings.warmup_epochs >= epochs:
        raise InputError(
            f"training.warmup_epochs ({settings.warmup_epochs}) must be below the number of epochs "
            f"({epochs})"
        )
    accelerator = Accelerator()
    set_seed(seed)
    model = build_variant(variant, sample_at_inference=sample_at_inference)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay
    )
    schedule = LambdaLR(
        optimizer, lambda epoch: learning_rate_factor(epoch, epochs, settings.warmup_epochs)
    )
    batches = DataLoader(
        train_set,
        batch_size=settings.batch_size,
        shuffle=True,
        drop_last=True,
        generator=torch.Generator().manual_seed(seed),
    )
    selection_batches = DataLoader(selection_set, batch_size=settings.batch_size)
    augment = Augmentation(**settings.augmentation.model_dump())
    # the schedule stays ours: accelerate would step it once a process
    model, optimizer, batches, selection_batches = accelerator.prepare(
        model, optimizer, batches, selection_batches
    )
    vae.to(accelerator.device)

    rows, best_dice, best_epoch = [], -math.inf, 0
    bar = tqdm(
        total=epochs * len(batches),
        desc=f"training {variant}",
        unit="step",
        mininterval=1,
        disable=not accelerator.is_main_process,
    )
    with bar, Live(str(live_folder), save_dvc_exp=False, dvcyaml=None, report=None) as live:
        for epoch in range(1, epochs + 1):
            model.train()
            sums: dict[str, torch.Tensor] = {}
            for batch in batches:
                images, masks = augment(
                    PreparedDataset.to_float(batch["image"]),
                    PreparedDataset.mask_to_float(batch["mask"]),
                )
                terms = loss(*model(images), vae, images, masks)
                if not torch.isfinite(terms["loss"]):
                    raise _diverged("loss", terms["loss"].item(), rows, folder)
                optimizer.zero_grad()
                accelerator.backward(terms["loss"])
                optimizer.step()
                for name, value in terms.items():
                    sums[name] = sums.get(name, 0) + value.detach()
                bar.update()
            row = {
                "epoch": epoch,
                "learning_rate": schedule.get_last_lr()[0],
                **{name: (value / len(batches)).item() for name, value in sums.items()},
                "selection_dice": _mean_soft_dice(accelerator, model, vae, selection_batches),
            }
            if not math.isfinite(row["selection_dice"]):
                # the epoch's last step broke the weights: they must not become `last`
                raise _diverged("selection Dice", row["selection_dice"], rows, folder)
            schedule.step()
            rows.append(row)
            bar.set_postfix(loss=f"{row['loss']:.3f}", dice=f"{row['selection_dice']:.3f}")
            if accelerator.is_main_process:
                pipeline = as_pipeline(accelerator.unwrap_model(model), vae, train_set.image_size)
                improved = row["selection_dice"] > best_dice
                for name in ("best", "last") if improved else ("last",):
                    with replace_folder(folder / name) as target:
                        pipeline.save_pretrained(target)
                _log(live, row)
            if row["selection_dice"] > best_dice:
                best_dice, best_epoch = row["selection_dice"], epoch
    trainable = sum(value.numel() for value in model.parameters() if value.requires_grad)
    return TrainingResult(pd.DataFrame(rows), best_epoch, best_dice, trainable, folder)


def _diverged(what: str, value: float, rows: list[dict], folder: Path) -> InputError:
    kept = f"; the last good weights are in {folder / 'last'}" if rows else ""
    return InputError(
        f"the {what} is {value} in epoch {len(rows) + 1}: lower training.learning_rate{kept}"
    )


@torch.no_grad()
def _mean_soft_dice(
    accelerator: Accelerator, model: nn.Module, vae: AutoencoderTiny, batches: DataLoader
) -> float:
    model.eval()
    scores = []
    for batch in batches:
        _, levels = model(PreparedDataset.to_float(batch["image"]))
        dice = soft_dice(
            decode_masks(vae, levels[-1]), PreparedDataset.mask_to_float(batch["mask"])
        )
        scores.append(accelerator.gather_for_metrics(dice))
    return torch.cat(scores).mean().item()


def _log(live: Live, row: dict[str, float]) -> None:
    for name, value in row.items():
        if name != "epoch":
            live.log_metric(name, value)
    live.next_step()
