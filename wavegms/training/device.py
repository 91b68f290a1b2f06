"""What a training does in another way on a CUDA card: precision, batches, a step as one launch."""

import copy
from typing import TypeVar

import torch
from accelerate import Accelerator
from diffusers import AutoencoderKL, AutoencoderTiny
from torch import Tensor, nn
from torch.utils.data import DataLoader

from wavegms.config import Precision
from wavegms.data.batches import Augmentation, TrainingBatches
from wavegms.data.dataset import PreparedDataset
from wavegms.data.on_card import CardBatches, fits_on_card
from wavegms.data.windows import Stacks
from wavegms.models.autoencoder import Autoencoder, latent_channels_of
from wavegms.models.mask_decoder import MaskDecoder
from wavegms.training.run import Run
from wavegms.training.safeguards import HALVES, choose_precision
from wavegms.variants import variant_spec

# Batches that are predicted at once to choose the epoch, as launches are what takes the time: on an
# H100 four took 0.3 s an epoch instead of 1.4, but in float32 14 GiB instead of 6.
_SELECTED = 2

Frozen = TypeVar("Frozen", Autoencoder, MaskDecoder, None)


def precision_of(run: Run, device: torch.device) -> Precision:
    """What a training computes with on a device."""
    wanted = run.training.precision
    if wanted == "auto" and variant_spec(run.variant).full_precision:
        wanted = "fp32"
    return choose_precision(wanted, device)


def training_batches(run: Run, batch_size: int, accelerator: Accelerator) -> TrainingBatches:
    """The batches of one process, from the card's own memory where the images fit into it."""
    kind = CardBatches if fits_on_card(run.train_set, accelerator.device) else TrainingBatches
    depth = variant_spec(run.variant).depth
    return kind(
        run.train_set,
        Augmentation(**run.training.augmentation.model_dump(), in_colour=run.train_set.in_colour),
        batch_size=batch_size,
        seed=run.seed,
        device=accelerator.device,
        process=accelerator.process_index,
        processes=accelerator.num_processes,
        latent_channels=latent_channels_of(run.vae),
        stacks=Stacks.of(run.train_set).places if depth > 1 else (),
        depth=depth,
    )


def selection_batches(
    dataset: PreparedDataset, batch_size: int, accelerator: Accelerator, depth: int = 1
) -> DataLoader | list[dict[str, Tensor]] | Stacks:
    """The images that choose the epoch, likewise; for windows of a `depth` their volumes."""
    device = accelerator.device
    if depth > 1:
        return Stacks.of(dataset)
    if accelerator.num_processes > 1 or not fits_on_card(dataset, device):
        return accelerator.prepare(DataLoader(dataset, batch_size=batch_size))
    at_once = _SELECTED * batch_size
    images, masks = (one.to(device).split(at_once) for one in (dataset.images, dataset.masks))
    return [{"image": i, "mask": m} for i, m in zip(images, masks, strict=True)]


def can_be_graphed(
    run: Run, precision: Precision, batches: TrainingBatches, processes: int
) -> bool:
    """Whether a step can be one launch: nothing in it is decided by the processor.

    With an `AutoencoderKL` a coin may be, and what a generative network draws is; in fp16 the
    scale; and several processes wait for each other. Published recipes have other optimisers, and
    rates that change with each step.
    """
    if processes > 1 or not run.training.cuda_graph or not isinstance(batches, CardBatches):
        return False
    if run.recipe:
        return False
    spec = variant_spec(run.variant)
    tossed = isinstance(run.vae, AutoencoderKL)
    graphable = spec.graphable and not spec.generative
    return graphable and not tossed and precision != "fp16"


def frozen_for_steps(part: Frozen, precision: Precision, device: torch.device) -> Frozen:
    """A frozen autoencoder or mask decoder as the training steps take it.

    Autocast would cast its weights anew for every use, and cuDNN would reorder them: on a GPU a
    Tiny-VAE and a mask decoder get a copy in the half precision and order in which it is computed.
    """
    halved = isinstance(part, AutoencoderTiny | MaskDecoder) and precision in HALVES
    if device.type != "cuda" or not halved:
        return part
    copied = copy.deepcopy(part)
    # torch's own way, as diffusers' warns of what does not concern a Tiny-VAE
    nn.Module.to(copied, HALVES[precision])
    return nn.Module.to(copied, memory_format=torch.channels_last)
