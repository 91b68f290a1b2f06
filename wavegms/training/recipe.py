"""Training (paper, section 3.2): one recipe for every network, through accelerate."""

import math
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.utils import set_seed
from torch import nn
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader

from wavegms.config import Precision, TrainingParams
from wavegms.data.batches import Augmentation, TrainingBatches
from wavegms.data.dataset import PreparedDataset
from wavegms.errors import InputError
from wavegms.models.autoencoder import Autoencoder, Generators, channels_last
from wavegms.models.build import as_pipeline, build_variant, require_autoencoder
from wavegms.models.gms_checkpoint import load_gms_mapping
from wavegms.models.pipeline import WaveGMSPipeline
from wavegms.training.loop import TrainingLoop, log_row, mean_soft_dice, open_metrics, save_weights
from wavegms.training.loss import WaveGMSLoss, mask_loss
from wavegms.training.safeguards import choose_precision, computing_with, explained
from wavegms.training.state import describe_run, load_state, only_training
from wavegms.variants import VariantSpec, variant_spec


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

    The state of the training is saved twice a minute (with several processes, only between
    epochs). Called again after an interruption of any kind, a training goes on from there and ends
    with the weights, history and metrics of an uninterrupted one: on a CPU bit for bit, given the
    same number of threads; on a GPU as far as its kernels repeat themselves, which some of cuDNN's
    gradients do not. The state stays until `wavegms.training_state.discard_state`, which
    `publish_model` calls. Until then a call with anything else changed is refused.

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
            the processes; the precision is not to be had here; the warm-up does not end; the
            folder holds an unfinished training of other parameters, data, code or versions, or
            another process is training there; the loss or the selection Dice is no longer finite;
            or memory or disk is full.
        Stopped: by Ctrl-C, once the state was saved.
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
    wrapped, selection_batches = accelerator.prepare(model, selection_batches)
    run = describe_run(
        variant,
        vae,
        loss,
        train_set,
        selection_set,
        settings,
        epochs=epochs,
        seed=seed,
        sample_at_inference=sample_at_inference,
        precision=precision,
    )
    training = TrainingLoop(
        accelerator=accelerator,
        step=lambda batch: loss_terms(
            spec, wrapped, loss, vae, batch.images, batch.masks, batch.generators
        ),
        model=model,
        pipeline=pipeline,
        batches=batches,
        selection_batches=selection_batches,
        optimizer=optimizer,
        schedule=schedule,
        autocast=computing_with(precision, accelerator.device),
        scaler=torch.amp.GradScaler(accelerator.device.type, enabled=precision == "fp16"),
        epochs=epochs,
        seed=seed,
        folder=folder,
        run=run,
    )
    only = only_training(folder) if accelerator.is_main_process else nullcontext()
    with only, explained(folder, batch_size, accelerator.num_processes):
        state = training.go(load_state(folder, run), live_folder, f"training {variant}")
    trainable = pipeline.parameter_counts.trainable
    return TrainingResult(
        pd.DataFrame(state.rows),
        state.best_epoch,
        state.best_dice,
        trainable,
        folder,
        precision,
        batches.share,
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
    row = {"epoch": 0, "selection_dice": mean_soft_dice(accelerator, pipeline, batches)}
    if accelerator.is_main_process:
        save_weights(pipeline, folder, ("best", "last"))
        with open_metrics(live_folder) as live:
            log_row(live, row)
    trainable = pipeline.parameter_counts.trainable
    return TrainingResult(pd.DataFrame([row]), 0, row["selection_dice"], trainable, folder)
