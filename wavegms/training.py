"""The training loop (paper, section 3.2): one loop for every network, through accelerate."""

import math
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.utils import set_seed
from dvclive import Live
from torch import nn
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader
from tqdm import tqdm

from wavegms.config import Precision, TrainingParams
from wavegms.data.augment import Augmentation
from wavegms.data.batches import TrainingBatches
from wavegms.data.dataset import PreparedDataset
from wavegms.data.files import replace_folder
from wavegms.errors import InputError
from wavegms.losses import WaveGMSLoss, mask_loss, soft_dice
from wavegms.models.autoencoder import Autoencoder, Generators
from wavegms.models.formats import channels_last
from wavegms.models.gms_checkpoint import load_gms_mapping
from wavegms.models.pipeline import WaveGMSPipeline
from wavegms.models.variants import (
    VariantSpec,
    as_pipeline,
    build_variant,
    require_autoencoder,
    variant_spec,
)
from wavegms.precision import choose_precision, computing_with


@dataclass(frozen=True)
class TrainingResult:
    """What a training run leaves behind.

    Attributes:
        history: one row an epoch: epoch (from 1), learning_rate, the mean over the epoch's batches
            of the losses that the variant has (loss, seg, lm, align), and selection_dice, the mean
            soft Dice in [0, 1] on the images that select the checkpoint. Of a variant that is not
            trained, one row: epoch 0 and selection_dice.
        best_epoch: the epoch whose weights were kept.
        best_dice: its selection_dice.
        trainable_parameters: their number.
        folder: holds `best` and `last`, each a folder for `WaveGMSPipeline.from_pretrained`.
        precision: what was computed with, see `choose_precision`; None if nothing was trained.
        data_share: share of the training's time that went into making batches, in [0, 1], the
            measuring on selection images not counted; None if nothing was trained.
    """

    history: pd.DataFrame
    best_epoch: int
    best_dice: float
    trainable_parameters: int
    folder: Path
    precision: Precision | None = None
    data_share: float | None = None


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


class _Metrics(Live):
    """dvclive's files without its Git: `Live` runs `dvc init` in a repository that lacks one.

    Which run belongs to which commit is DVC's business, around this process.
    """

    def _init_dvc(self) -> None:
        self._dvc_file = "dvc.yaml"


def train(
    variant: str,
    vae: Autoencoder | None,
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
    gms_checkpoint: Path | None = None,
) -> TrainingResult:
    """Trains a network and keeps its best and its last weights.

    A variant that is not trained (tinyvae_mismatch) gets GMS's weights instead, is measured once on
    the selection images, and is kept as both.

    Every random choice (initial weights, order, augmentation, sampled latents) follows from
    `seed`. Several processes, started by accelerate or torchrun, share each batch and give what one
    alone gives, but for rounding; a network with batch normalisation (the U-Net) takes its
    statistics over each process's part.

    After each epoch the last checkpoint, and the best when it improves, are written whole or not at
    all. Metrics go to `live_folder` as dvclive writes them, a progress bar to stderr; it ends with
    the share of the time that was spent on making batches.

    Args:
        variant: name in `wavegms.models.variants.VARIANTS`.
        vae: the frozen autoencoder, of the kind that the variant needs; None if it needs none.
        loss: the loss of variants in latent space; a network without latents has `mask_loss`.
        train_set: images to learn from; the last short batch of each epoch is dropped.
        selection_set: images on which the best epoch is chosen by soft Dice.
        settings: batch size (a variant may have its own), learning rate and the rest of the recipe.
        epochs: number of epochs.
        seed: of everything random.
        folder: where `best` and `last` go.
        live_folder: where the metrics of each epoch go.
        sample_at_inference: see `MultiResolutionEncoder`.
        gms_checkpoint: see `load_gms_mapping`; read only by a variant that is not trained.

    Returns:
        The history and the best epoch.

    Raises:
        InputError: the variant is unknown, or lacks its autoencoder or checkpoint; the image size
            does not suit it; the batch is larger than the training set, or is not to be shared by
            the processes; the precision is not to be had here; the warm-up does not end; or the
            loss or the selection Dice is no longer finite.
    """
    spec = variant_spec(variant)
    batch_size = spec.batch_size_or(settings.batch_size)
    require_autoencoder(variant, vae)
    if train_set.image_size % spec.side_divisor:
        raise InputError(
            f"variant {variant} needs an image_size divisible by {spec.side_divisor}, not "
            f"{train_set.image_size}: prepare the images anew"
        )
    if not spec.trained and gms_checkpoint is None:
        raise InputError(f"variant {variant} needs a checkpoint of GMS: set model.gms_checkpoint")
    if spec.trained:
        _check_recipe(variant, batch_size, settings, len(train_set), epochs)
    # the head of a level that is not supervised gets no gradient, which processes must be told
    unused = loss.supervision != "all_levels"
    accelerator = Accelerator(
        mixed_precision="no",  # ours: accelerate's cannot be changed within a process
        kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=unused)],
    )
    wanted = settings.precision
    if wanted == "auto" and spec.full_precision:
        wanted = "fp32"
    precision = choose_precision(wanted, accelerator.device)
    set_seed(seed)
    model = build_variant(variant, sample_at_inference=sample_at_inference)
    if vae is not None:
        vae.to(accelerator.device)
    selection_batches = DataLoader(selection_set, batch_size=batch_size)
    if not spec.trained:
        model.mapping = load_gms_mapping(gms_checkpoint)
        pipeline = as_pipeline(model.to(accelerator.device), vae, train_set.image_size)
        selection_batches = accelerator.prepare(selection_batches)
        return _keep_untrained(accelerator, pipeline, selection_batches, folder, live_folder)
    # fused: one call for all weights; 37 ms a step without it on 2 cores, a tenth of a small step
    optimizer = torch.optim.AdamW(
        model.parameters(),
        lr=settings.learning_rate,
        weight_decay=settings.weight_decay,
        fused=True,
    )
    schedule = LambdaLR(
        optimizer, lambda epoch: learning_rate_factor(epoch, epochs, settings.warmup_epochs)
    )
    if batch_size % accelerator.num_processes:
        raise InputError(
            f"training.batch_size is {batch_size}, which {accelerator.num_processes} processes "
            "cannot share: choose a multiple, or another number of processes"
        )
    batches = TrainingBatches(
        train_set,
        Augmentation(**settings.augmentation.model_dump()),
        batch_size=batch_size,
        seed=seed,
        device=accelerator.device,
        process=accelerator.process_index,
        processes=accelerator.num_processes,
    )
    if settings.compile:
        model.compile()
    pipeline = as_pipeline(model, vae, train_set.image_size)
    model, selection_batches = accelerator.prepare(model, selection_batches)
    autocast = computing_with(precision, accelerator.device)
    scaler = torch.amp.GradScaler(accelerator.device.type, enabled=precision == "fp16")

    rows, best_dice, best_epoch = [], -math.inf, 0
    main = accelerator.is_main_process
    bar = tqdm(
        total=epochs * len(batches),
        desc=f"training {variant}",
        unit="step",
        mininterval=1,
        disable=not main,
    )
    with bar, _open_metrics(live_folder) if main else nullcontext() as live:
        for epoch in range(1, epochs + 1):
            model.train()
            sums: dict[str, torch.Tensor] = {}
            for batch in batches.epoch(epoch):
                with autocast:
                    terms = loss_terms(
                        spec, model, loss, vae, batch.images, batch.masks, batch.generators
                    )
                if not torch.isfinite(terms["loss"]):
                    raise _diverged("loss", terms["loss"].item(), rows, folder)
                optimizer.zero_grad()
                scaler.scale(terms["loss"]).backward()
                scaler.step(optimizer)
                scaler.update()
                for name, value in terms.items():
                    sums[name] = sums.get(name, 0) + value.detach()
                bar.update()
            model.eval()
            row = {
                "epoch": epoch,
                "learning_rate": schedule.get_last_lr()[0],
                **{
                    name: accelerator.reduce(value / len(batches), "mean").item()
                    for name, value in sums.items()
                },
                "selection_dice": _mean_soft_dice(accelerator, pipeline, selection_batches),
            }
            if not math.isfinite(row["selection_dice"]):
                # the epoch's last step broke the weights: they must not become `last`
                raise _diverged("selection Dice", row["selection_dice"], rows, folder)
            schedule.step()
            rows.append(row)
            bar.set_postfix(
                loss=f"{row['loss']:.3f}",
                dice=f"{row['selection_dice']:.3f}",
                data=f"{batches.share:.1%}",
            )
            if main:
                improved = row["selection_dice"] > best_dice
                _save(pipeline, folder, ("best", "last") if improved else ("last",))
                _log(live, row)
            if row["selection_dice"] > best_dice:
                best_dice, best_epoch = row["selection_dice"], epoch
    accelerator.wait_for_everyone()  # what was saved is there for all of them
    trainable = pipeline.parameter_counts.trainable
    return TrainingResult(
        pd.DataFrame(rows), best_epoch, best_dice, trainable, folder, precision, batches.share
    )


def _check_recipe(
    variant: str, batch_size: int, settings: TrainingParams, images: int, epochs: int
) -> None:
    if batch_size > images:
        way_out = (
            f"choose at most {images}"
            if batch_size == settings.batch_size
            else f"leave {variant} out"
        )
        raise InputError(
            f"training.batch_size is {batch_size}, but only {images} images are in the training "
            f"split: {way_out}"
        )
    if settings.warmup_epochs >= epochs:
        raise InputError(
            f"training.warmup_epochs ({settings.warmup_epochs}) must be below the number of epochs "
            f"({epochs})"
        )


def loss_terms(
    spec: VariantSpec,
    model: nn.Module,
    loss: WaveGMSLoss,
    vae: Autoencoder | None,
    images: torch.Tensor,
    masks: torch.Tensor,
    generators: Generators = None,
) -> dict[str, torch.Tensor]:
    """The forward half of a training step: one batch through the network and its loss.

    Args:
        spec: entry of `VARIANTS` that the network was built from.
        model: what `build_variant` gave, in training mode.
        loss: the loss of variants in latent space; unused by a network without latents.
        vae: the frozen autoencoder; None if the variant needs none.
        images: (B, 3, H, W) in [0, 1], the sides divisible by `spec.side_divisor`.
        masks: (B, 1, H, W), 0 or 1.
        generators: random state for the network, or one for each image.

    Returns:
        Scalars by name: `loss`, which is what goes backward, and the terms that it is the sum of,
        see `mask_loss` and `WaveGMSLoss`.
    """
    images = channels_last(images)
    if spec.autoencoder is None:
        return mask_loss(model(images), masks)
    latents, levels = model(images, vae, generators)
    return loss(latents if spec.aligned else None, levels, vae, images, masks)


def _keep_untrained(
    accelerator: Accelerator,
    pipeline: WaveGMSPipeline,
    batches: DataLoader,
    folder: Path,
    live_folder: Path,
) -> TrainingResult:
    row = {"epoch": 0, "selection_dice": _mean_soft_dice(accelerator, pipeline, batches)}
    if accelerator.is_main_process:
        _save(pipeline, folder, ("best", "last"))
        with _open_metrics(live_folder) as live:
            _log(live, row)
    trainable = pipeline.parameter_counts.trainable
    return TrainingResult(pd.DataFrame([row]), 0, row["selection_dice"], trainable, folder)


def _diverged(what: str, value: float, rows: list[dict], folder: Path) -> InputError:
    kept = f"; the last good weights are in {folder / 'last'}" if rows else ""
    return InputError(
        f"the {what} is {value} in epoch {len(rows) + 1}: lower training.learning_rate{kept}"
    )


def _mean_soft_dice(
    accelerator: Accelerator, pipeline: WaveGMSPipeline, batches: DataLoader
) -> float:
    """Of what the pipeline predicts, which is what will be saved."""
    scores = []
    for batch in batches:
        soft_masks = pipeline.predict(PreparedDataset.to_float(batch["image"]))
        dice = soft_dice(soft_masks, PreparedDataset.mask_to_float(batch["mask"]))
        scores.append(accelerator.gather_for_metrics(dice))
    return torch.cat(scores).mean().item()


def _save(pipeline: WaveGMSPipeline, folder: Path, names: tuple[str, ...]) -> None:
    for name in names:
        with replace_folder(folder / name) as target:
            pipeline.save_pretrained(target)


def _open_metrics(folder: Path) -> Live:
    return _Metrics(str(folder), save_dvc_exp=False, dvcyaml=None, report=None)


def _log(live: Live, row: dict[str, float]) -> None:
    for name, value in row.items():
        if name != "epoch":
            live.log_metric(name, value)
    live.next_step()
