"""Training (paper, section 3.2): one recipe for every network, or its own, through accelerate."""

import math
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.utils import set_seed
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader

from wavegms.config import Precision
from wavegms.data.dataset import PreparedDataset
from wavegms.errors import InputError
from wavegms.models.autoencoder import Autoencoder, Generators, channels_last
from wavegms.models.build import Network, as_pipeline, build_variant, require_autoencoder
from wavegms.models.generative import GenerativeNetwork
from wavegms.models.gms_checkpoint import load_gms_mapping
from wavegms.models.imagenet import begin_from_imagenet
from wavegms.models.mask_decoder import MaskDecoder
from wavegms.models.mask_network import MaskNetwork
from wavegms.models.pipeline import WaveGMSPipeline
from wavegms.recipes import TAKE_COMMON
from wavegms.training.device import (
    can_be_graphed,
    frozen_for_steps,
    precision_of,
    selection_batches,
    training_batches,
)
from wavegms.training.loop import (
    Plan,
    TrainingLoop,
    log_row,
    mean_soft_dice,
    open_metrics,
    save_weights,
)
from wavegms.training.loss import WaveGMSLoss, mask_loss
from wavegms.training.published import LOSSES, learner_of, optimizer_of
from wavegms.training.run import Run, network_in_place
from wavegms.training.safeguards import computing_with, explained
from wavegms.training.state import (
    STATE_NAME,
    TrainingState,
    describe_run,
    load_state,
    only_training,
)
from wavegms.variants import VariantSpec, require_volumes, variant_spec

# Of the training split, from which a generative network takes what it begins with.
_MOST_MASKS = 512


@dataclass(frozen=True)
class TrainingResult:
    """What a training leaves behind.

    `history` has a row an epoch: epoch (from 1), learning_rate, the mean over the batches of the
    losses that the variant has (loss, seg, lm, align), and selection_dice, the mean soft Dice in
    [0, 1] on the images that choose the epoch. A variant that is not trained has one row of epoch 0
    and selection_dice, and no precision or data_share. `folder` holds `best` and `last`, each a
    folder for `WaveGMSPipeline.from_pretrained`; `data_share` is the part of the time that went
    into making batches. `planned` are the epochs that the learning rate was made for, and `refusal`
    is why a step could not be one launch, if it was to be.
    """

    history: pd.DataFrame
    best_epoch: int
    best_dice: float
    trainable_parameters: int
    folder: Path
    precision: Precision | None = None
    data_share: float | None = None
    planned: int = 0
    refusal: str = ""


def learning_rate_factor(epoch: int, epochs: int, warmup_epochs: int) -> float:
    """Fraction in [0, 1] of the peak learning rate in an epoch, counted from 0.

    Linear warm-up, then a cosine to 0. The warm-up starts one step above 0, because an epoch at
    exactly 0 would train nothing.
    """
    if epoch < warmup_epochs:
        return (epoch + 1) / (warmup_epochs + 1)
    progress = (epoch - warmup_epochs) / max(1, epochs - warmup_epochs)
    return 0.5 * (1 + math.cos(math.pi * progress))


def loss_terms(
    spec: VariantSpec,
    model: nn.Module,
    loss: WaveGMSLoss,
    vae: Autoencoder | None,
    images: Tensor,
    masks: Tensor,
    generators: Generators = None,
    mask_decoder: MaskDecoder | None = None,
    published: str = "own",
) -> dict[str, Tensor]:
    """The forward half of a training step: `loss`, which goes backward, and the terms of its sum.

    Images are (B, 3, H, W) in [0, 1], masks (B, 1, H, W) 0 to K; `generators` are the random state
    of what the network draws, or one for each image. A mask decoder, if given, decodes. A
    `published` loss, one of `LOSSES`, looks at the logits that `learner_of` gives.
    """
    images = channels_last(images)
    if spec.generative:
        return model(images, masks, vae, generators)
    if published != "own":
        return LOSSES[published](model(images), masks)
    if spec.autoencoder is None:
        return mask_loss(model(images), masks)
    latents, levels = model(images, vae, generators)
    return loss(latents if spec.aligned else None, levels, vae, images, masks, mask_decoder)


def train(run: Run, watch: Callable[[int, Tensor], None] | None = None) -> TrainingResult:
    """Trains a network and keeps its best and its last weights.

    `watch` is shown each epoch's number and soft masks (N, 1, H, W) of the selecting images.

    A variant that is not trained (tinyvae_mismatch) gets GMS's weights instead, is measured once on
    the selecting images, and is kept as both.

    Every random choice (initial weights, order, augmentation, sampled latents) follows from the
    seed. Several processes, started by accelerate or torchrun, share each batch and give what one
    alone gives, but for rounding; a network with batch normalisation (the U-Net) takes its
    statistics over each process's part.

    The state of the training is saved twice a minute (with several processes, only between
    epochs). Called again after an interruption of any kind, a training goes on from there and ends
    with the weights, history and metrics of an uninterrupted one: on a CPU bit for bit, given the
    same number of threads; on a GPU as far as its kernels repeat themselves, which some of cuDNN's
    gradients do not. The state stays until `publish_model`; until then a call with anything else
    changed is refused.

    Raises:
        InputError: parameters, data, autoencoder or checkpoint do not fit each other or this
            machine; the folder holds another unfinished training, or one that is running; a number
            is no longer finite; or memory or disk is full.
        Stopped: by Ctrl-C, once the state was saved.
    """
    spec = variant_spec(run.variant)
    batch_size, recipe = run.batch_size, run.recipe
    _check(run, spec, batch_size)
    # the head of a level that is not supervised gets no gradient, which processes must be told
    unused = run.loss.supervision != "all_levels" or spec.idle_weights
    unused |= recipe is not None and recipe.average is not None
    accelerator = Accelerator(
        mixed_precision="no",  # ours: accelerate's cannot be changed within a process
        kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=unused)],
    )
    device, processes = accelerator.device, accelerator.num_processes
    precision = precision_of(run, device)
    # on a GPU sizes stay the same, so the fastest of cuDNN's ways is worth looking for once
    torch.backends.cudnn.benchmark = device.type == "cuda"
    model, pipeline = _build(run, device)
    selecting = selection_batches(run.selection_set, batch_size, accelerator, spec.depth)
    if not spec.trained:
        return _keep_untrained(run, accelerator, pipeline, selecting)
    if batch_size % (processes * spec.depth):
        windows = "" if spec.depth == 1 else f", windows of {spec.depth} slices"
        raise InputError(
            f"{_named(run)} is {batch_size}{windows}, which {processes} processes cannot share: "
            f"choose {'' if recipe else 'a multiple, or '}another number of processes"
        )
    batches = training_batches(run, batch_size, accelerator)
    graphed = can_be_graphed(run, precision, batches, processes)
    plan, described = Plan(run.epochs or 0), describe_run(run, precision)
    _begin(run, model, device)
    model = _learner(run, model)
    optimizer, schedule = _optimizer(run, model, plan, graphed, len(batches))
    if run.training.compile:
        model.compile()
    wrapped = accelerator.prepare(model)
    loss = WaveGMSLoss(**run.loss.model_dump(), palette=pipeline.palette)
    frozen, mask_decoder = (
        frozen_for_steps(part, precision, device) for part in (run.vae, pipeline.mask_decoder)
    )
    loop = TrainingLoop(
        run=run,
        described=described,
        accelerator=accelerator,
        step=lambda batch: loss_terms(
            spec,
            wrapped,
            loss,
            frozen,
            batch.images,
            batch.masks,
            batch.generators,
            mask_decoder,
            recipe.loss if recipe else "own",
        ),
        model=model,
        pipeline=pipeline,
        batches=batches,
        selection_batches=selecting,
        optimizer=optimizer,
        schedule=schedule,
        autocast=computing_with(precision, device),
        scaler=torch.amp.GradScaler(device.type, enabled=precision == "fp16"),
        plan=plan,
        checked=device.type != "cuda",
        graphed=graphed,
        watch=watch,
        clip=recipe and recipe.clip,
        by_step=recipe is not None and recipe.schedule.by_step,
    )
    only = only_training(run.checkpoints) if accelerator.is_main_process else nullcontext()
    with only, explained(run.checkpoints, batch_size, processes, fixed=recipe is not None):
        state = loop.go(load_state(run.checkpoints, described))
    about = {"data_share": batches.share, "refusal": loop.refusal}
    return _result(run, state, pipeline, precision, **about)


def so_far(run: Run, device: torch.device) -> TrainingResult:
    """What a training that was cut off had when its state was last saved, now `best` and `last`.

    Raises:
        InputError: not one epoch was saved, or the state is of another training.
    """
    precision = precision_of(run, device)
    state = load_state(run.checkpoints, describe_run(run, precision))
    if state is None or not state.rows:
        raise InputError(f"{run.checkpoints} holds no finished epoch: train for longer")
    model, pipeline = _build(run, torch.device("cpu"))
    model = _learner(run, model)
    for name, weights in (("best", state.best), ("last", state.model)):
        model.load_state_dict(weights)
        save_weights(pipeline, run.checkpoints, (name,))
    return _result(run, state, pipeline, precision)


def _build(run: Run, device: torch.device) -> tuple[Network, WaveGMSPipeline]:
    set_seed(run.seed)
    classes = len(run.train_set.classes) or 1
    model = build_variant(
        run.variant,
        image_size=run.train_set.image_size,
        sample_at_inference=run.model.sample_at_inference,
        vae=run.vae,
        classes=classes,
        in_place=network_in_place(run.variant, run.training),
    )
    if run.start is not None:
        model.load_state_dict(run.start.state_dict())
    elif run.recipe and run.recipe.pretrained and run.training.pretrained:
        begin_from_imagenet(model.network, run.training.pretrained, run.variant)
    if not variant_spec(run.variant).trained:
        model.mapping = load_gms_mapping(run.model.gms_checkpoint_for(run.dataset))
    vae = None if run.vae is None else run.vae.to(device)
    seen = run.train_set.image_size, run.train_set.scale, run.train_set.classes
    pipeline = as_pipeline(model.to(device), vae, *seen)
    pipeline.choose_decoder(run.training.decoder)
    return model, pipeline


def _begin(run: Run, model: Network, device: torch.device) -> None:
    """What a generative network takes from the training masks, where it does not go on."""
    goes_on = run.start is not None or (run.checkpoints / STATE_NAME).exists()
    if goes_on or not isinstance(model, GenerativeNetwork):
        return
    images = len(run.train_set)
    # one by one, as not all datasets are held in memory
    masks = [run.train_set[index]["mask"] for index in range(0, images, -(-images // _MOST_MASKS))]
    classes = len(run.train_set.classes) or 1
    masks = PreparedDataset.foreground_to_float(torch.stack(masks), classes).to(device)
    model.network.begin(masks, run.vae, run.seed)


def _learner(run: Run, model: Network) -> nn.Module:
    """The network, or what a published recipe puts around it to learn."""
    device = next(model.parameters()).device
    return learner_of(run.recipe, model).to(device) if run.recipe else model


def _optimizer(
    run: Run, model: nn.Module, plan: Plan, graphed: bool, steps: int
) -> tuple[torch.optim.Optimizer, LambdaLR]:
    """With its schedule; in a graph the learning rate is known by its place on the card.

    `steps` are those of an epoch.
    """
    if run.recipe:
        optimizer, schedule = optimizer_of(run.recipe, model), run.recipe.schedule
        of_epoch = steps if schedule.by_step else 1
        return optimizer, LambdaLR(
            optimizer, lambda done: schedule.share(done, plan.epochs * of_epoch)
        )
    rate, device = run.training.learning_rate, next(model.parameters()).device
    # fused: one call for all weights; 37 ms a step without it on 2 cores, a tenth of a small step
    optimizer = torch.optim.AdamW(
        model.parameters(),
        lr=torch.tensor(rate, device=device) if graphed else rate,
        weight_decay=run.training.weight_decay,
        fused=True,
        capturable=graphed,
    )
    warmup = run.training.warmup_epochs
    return optimizer, LambdaLR(
        optimizer, lambda epoch: learning_rate_factor(epoch, plan.epochs, warmup)
    )


def _result(
    run: Run,
    state: TrainingState,
    pipeline: WaveGMSPipeline,
    precision: Precision,
    data_share: float | None = None,
    refusal: str = "",
) -> TrainingResult:
    return TrainingResult(
        history=pd.DataFrame(state.rows),
        best_epoch=state.best_epoch,
        best_dice=state.best_dice,
        trainable_parameters=pipeline.parameter_counts.trainable,
        folder=run.checkpoints,
        precision=precision,
        data_share=data_share,
        planned=state.epochs,
        refusal=refusal,
    )


def _check(run: Run, spec: VariantSpec, batch_size: int) -> None:
    require_autoencoder(run.variant, run.vae)
    side, images = run.train_set.image_size, len(run.train_set)
    if wanted := spec.unfit(side):
        raise InputError(
            f"variant {run.variant} needs an image_size {wanted}, not {side}: prepare the images "
            "anew"
        )
    if not spec.trained:
        return
    if spec.depth > 1:
        scale = run.train_set.scale
        require_volumes(run.variant, scale is not None and scale.volumes is not None)
    if isinstance(run.start, MaskNetwork) and run.start.side not in (None, side):
        raise InputError(
            f"training.start_from is a {run.variant} for {run.start.side} pixels, "
            f"whose weights do not fit {side}: set image_size to its own, or training.start_from "
            "to null"
        )
    if batch_size > images:
        own = batch_size != run.training.batch_size
        way_out = f"leave {run.variant} out" if own else f"choose at most {images}"
        way_out = TAKE_COMMON if run.recipe else way_out
        raise InputError(
            f"{_named(run)} is {batch_size}, but only {images} images are in the training split: "
            f"{way_out}"
        )
    if run.epochs and run.warmup_epochs >= run.epochs:
        raise InputError(
            f"training.warmup_epochs ({run.training.warmup_epochs}) must be below the number of "
            f"epochs ({run.epochs})"
        )


def _named(run: Run) -> str:
    """What the batch size is for a reader."""
    return f"the published batch size of {run.variant}" if run.recipe else "training.batch_size"


def _keep_untrained(
    run: Run, accelerator: Accelerator, pipeline: WaveGMSPipeline, batches: DataLoader
) -> TrainingResult:
    dice = mean_soft_dice(accelerator, pipeline, batches, run.selection_set.volume_of)
    row = {"epoch": 0, "selection_dice": dice}
    if accelerator.is_main_process:
        save_weights(pipeline, run.checkpoints, ("best", "last"))
        with open_metrics(run.live) as live:
            log_row(live, row)
    trainable = pipeline.parameter_counts.trainable
    return TrainingResult(pd.DataFrame([row]), 0, row["selection_dice"], trainable, run.checkpoints)
