"""A small Tiny-VAE of one's own, for runs without a download, and the check any Tiny-VAE must pass.

The paper freezes TAESD, which was distilled from Stable Diffusion's autoencoder on natural images.
The embedded default must not download it, so it trains a narrower `AutoencoderTiny` on the prepared
training images and masks. Its role is the same: latents that a decoder turns back into masks.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import torch
from accelerate import PartialState
from accelerate.utils import set_seed
from diffusers import AutoencoderTiny
from pydantic import Field, TypeAdapter
from torch import Tensor
from torch.nn import functional
from torch.optim.lr_scheduler import OneCycleLR
from torch.utils.data import DataLoader, RandomSampler, Subset
from tqdm import tqdm

from wavegms.classes import label_map
from wavegms.config import AutoencoderParams, AutoencoderTraining
from wavegms.data.batches import Augmentation
from wavegms.data.dataset import PreparedDataset
from wavegms.data.manifest import fold_folder, load_manifest, number_of_folds
from wavegms.errors import InputError
from wavegms.files import write_text
from wavegms.models.autoencoder import (
    Autoencoder,
    channels_last,
    encode_images,
    freeze,
    repaint_images,
)
from wavegms.models.palette import BLACK_AND_WHITE, Palette
from wavegms.models.weights import load_autoencoder, load_sd_vae, read_tensors
from wavegms.project import PRETRAINED, pretrained_size, require_pretrained
from wavegms.training.loss import soft_dice
from wavegms.variants import variant_spec

QUALITY_NAME = "quality.json"

# How often it is asked whether more steps are worth it, on how many of the training images, and how
# much better these must come back to say so.
_CHECK_STEPS, _CHECKED_IMAGES, _WORTHWHILE_DB = 20, 32, 0.5

# Keeps latents well inside +-3, where the decoder's tanh clamp saturates.
_LATENT_WEIGHT = 1e-3

# Of how far the latents of colours lie from lying as the colours do.
_COLOURS_WEIGHT = 0.1

# How far the latent of a colour must lie from the straight line between those of two others, in
# halves of their distance. Of TAESD's with two to seven classes it is 0.57 to 1.04; autoencoders
# with 0.09 to 0.19 taught Wave-GMS one class of two.
_LEAST_APART = 0.3


@dataclass(frozen=True)
class ReconstructionQuality:
    """How well an autoencoder gives back what it encoded, on one split: means over its images.

    The PSNR of the images is in dB. The Dice of the masks, thresholded at 0.5 after decoding, is in
    [0, 1]; no segmentation through this autoencoder can be expected to exceed it. Of several
    classes it is the mean over them, painted in their colours.
    """

    image_psnr: float
    mask_dice: Annotated[float, Field(ge=0, le=1)]
    images: int


@dataclass(frozen=True)
class AutoencoderCard:
    """Where a frozen autoencoder came from, and how well it reconstructs.

    `source` is "train", "hub", "path", or "sd_vae" for the large one of GMS, whose quality is not
    measured; `origin` is how it was trained, its hub id, or the folder it was loaded from.
    """

    source: str
    origin: str | dict[str, Any]
    train: ReconstructionQuality | None
    test: ReconstructionQuality | None


def obtain_autoencoder(
    settings: AutoencoderParams, train_set: PreparedDataset, *, seed: int
) -> Autoencoder:
    """The frozen autoencoder params.yaml asks for, trained (on the training split) or loaded."""
    if settings.source == "train":
        return train_autoencoder(train_set, settings.train, seed=seed)
    return load_autoencoder(settings.hub if settings.source == "hub" else Path(settings.path))


def build_autoencoder(channels: int, blocks: int) -> AutoencoderTiny:
    """An untrained `AutoencoderTiny` with TAESD's layout.

    TAESD has 64 channels in every layer, and 3 residual blocks a resolution, but one at full
    resolution.
    """
    return AutoencoderTiny(
        encoder_block_out_channels=(channels,) * 4,
        decoder_block_out_channels=(channels,) * 4,
        num_encoder_blocks=(1, blocks, blocks, blocks),
        num_decoder_blocks=(blocks, blocks, blocks, 1),
    )


def start_autoencoder(settings: AutoencoderTraining, folder: Path = PRETRAINED) -> AutoencoderTiny:
    """What a training starts from: random weights, or those that `start_from` names.

    Raises:
        InputError: they are missing, broken or of another size.
    """
    if settings.start_from is None:
        return build_autoencoder(settings.channels, settings.blocks)
    require_pretrained(settings.start_from, settings.channels, settings.blocks, folder)
    return open_pretrained(settings.start_from, folder)


def open_pretrained(name: str, folder: Path = PRETRAINED) -> AutoencoderTiny:
    """An autoencoder of `weights/autoencoders`; InputError where it is not what its card says."""
    vae, path = build_autoencoder(*pretrained_size(name, folder)), folder / f"{name}.safetensors"
    try:
        vae.load_state_dict(read_tensors(path))
    except RuntimeError as error:  # parameters are missing, unknown or of other shapes
        raise InputError(f"{path} is not what its card says: bring it back by git") from error
    return vae


def train_autoencoder(
    train_set: PreparedDataset,
    settings: AutoencoderTraining,
    *,
    seed: int,
    folder: Path = PRETRAINED,
) -> AutoencoderTiny:
    """Trains an autoencoder on the images and masks of the training split, and freezes it.

    The seed is that of initial weights, order and augmentation.

    It ends before its last step once masks come back with `target_dice` and images hardly gain.
    From nothing that took 140 steps in the sample; what `start_from` names is taken as it is where
    it gives masks back that well. Of several classes it takes all steps, for colours to lie apart.
    """
    device, palette = PartialState().device, Palette.of(train_set.classes)
    set_seed(seed)
    vae = start_autoencoder(settings, folder)
    may_end = settings.target_dice < 1 and palette.classes == 1
    if settings.start_from and may_end:
        quality = reconstruction_quality(freeze(vae), train_set, most=_CHECKED_IMAGES)
        if quality.mask_dice >= settings.target_dice:
            return vae
        vae.requires_grad_(True)
    augment = Augmentation(
        horizontal_flip=0.5,
        vertical_flip=0.5,
        rotate_90=0.5,
        color_jitter=0.0,
        shift_scale_rotate=0.5,
    )
    generator = torch.Generator().manual_seed(seed)
    sampler = RandomSampler(
        train_set,
        replacement=True,
        num_samples=settings.steps * settings.batch_size,
        generator=generator,
    )
    batches = DataLoader(train_set, batch_size=settings.batch_size, sampler=sampler)
    pairs = (
        augment(
            PreparedDataset.to_float(batch["image"].to(device)),
            PreparedDataset.foreground_to_float(batch["mask"].to(device), palette.classes),
        )
        for batch in batches
    )
    psnr = 0.0
    for step in descend(vae.to(device), pairs, settings.steps, settings.learning_rate, palette):
        if may_end and step % _CHECK_STEPS == 0:
            quality = reconstruction_quality(vae, train_set, most=_CHECKED_IMAGES)
            hardly_better = quality.image_psnr < psnr + _WORTHWHILE_DB
            if quality.mask_dice >= settings.target_dice and hardly_better:
                break
            psnr = quality.image_psnr
    return freeze(vae).cpu()


def descend(
    vae: AutoencoderTiny,
    pairs: Iterable[tuple[Tensor, Tensor]],
    steps: int,
    learning_rate: float,
    palette: Palette = BLACK_AND_WHITE,
) -> Iterator[int]:
    """Trains on a batch of images and masks a step; gives the number of each step, from 1.

    By AdamW, in one cycle of the learning rate, see `reconstruction_loss`.
    """
    optimizer = torch.optim.AdamW(vae.parameters(), lr=learning_rate)
    schedule = OneCycleLR(optimizer, learning_rate, total_steps=steps)
    vae.train()
    bar = tqdm(pairs, "training autoencoder", steps, unit="step", mininterval=1)
    for step, pair in enumerate(bar, start=1):
        loss = reconstruction_loss(vae, *pair, palette, step / steps)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        bar.set_postfix(loss=f"{loss.item():.4f}", refresh=False)
        yield step


def reconstruction_loss(
    vae: AutoencoderTiny,
    images: Tensor,
    masks: Tensor,
    palette: Palette = BLACK_AND_WHITE,
    progress: float = 1.0,
) -> Tensor:
    """What an autoencoder in training gets wrong of (B, 3, H, W) in [0, 1] and masks (B, 1, H, W).

    The squared error of both, plus soft Dice of the masks: they are what a decoder must get right
    here, and their thin borders weigh little in a squared error. Of several classes also
    `colours_loss`, as far as the training is, 0 to 1: from random weights, 200 steps with all of it
    ended with neither masks nor colours.
    """
    # 0.37 instead of 0.60 s of one thread for a step of the sample
    both = channels_last(torch.cat([images, palette.paint(masks)]))
    latents = encode_images(vae, both)
    decoded = (vae.decode(latents).sample + 1) / 2
    soft_masks = palette.shares(decoded[len(images) :])
    loss = (
        functional.mse_loss(decoded, both)
        + 0.1 * (1 - soft_dice(soft_masks, masks)).mean()
        + _LATENT_WEIGHT * latents.square().mean()
    )
    if palette.classes == 1:
        return loss
    painted = slice(len(images), None)
    return loss + progress * colours_loss(vae, both[painted], latents[painted], palette)


def colours_loss(
    vae: AutoencoderTiny, painted: Tensor, latents: Tensor, palette: Palette
) -> Tensor:
    """What keeps several classes apart among latents, for coloured masks (B, 3, H, W) and theirs.

    A network that is not sure gives latents between those of two masks: they are to decode to a
    blend of both, and no third colour may lie there. So the squared error of such blends is added
    to that of the distances among the latents of plain colours, relative to those of the colours.
    """
    share = torch.rand(len(painted), 1, 1, 1, device=painted.device)
    blend, between = (torch.lerp(one, one.roll(1, 0), share) for one in (painted, latents))
    decoded = (vae.decode(between).sample + 1) / 2
    plain = _plain_colours(palette, painted)
    distances = [torch.pdist(one.flatten(1)) for one in (plain, encode_images(vae, plain))]
    wanted, found = (one / one.mean() for one in distances)
    return functional.mse_loss(decoded, blend) + _COLOURS_WEIGHT * functional.mse_loss(
        found, wanted
    )


def _plain_colours(palette: Palette, like: Tensor) -> Tensor:
    """Pictures of background and classes, one colour each, of the size (..., H, W) of others."""
    numbers = torch.arange(palette.classes + 1, dtype=like.dtype, device=like.device)
    masks = numbers[:, None, None, None].expand(-1, 1, *like.shape[-2:])
    return channels_last(palette.paint(masks))


@torch.inference_mode()
def reconstruction_quality(
    vae: Autoencoder, dataset: PreparedDataset, batch_size: int = 16, most: int = 256
) -> ReconstructionQuality:
    """Encodes and decodes a split, or as many evenly spaced images as are enough for a mean."""
    repainted = list(repaint_split(vae, dataset, batch_size, most))
    dice = [soft_dice(one.found, one.masks) for one in repainted]
    psnr = torch.cat([one.psnr for one in repainted])
    return ReconstructionQuality(
        image_psnr=psnr.mean().item(), mask_dice=torch.cat(dice).mean().item(), images=len(psnr)
    )


class ClassQuality(NamedTuple):
    """How well an autoencoder keeps one of several classes.

    `dice` is that of its pixels of all masks, painted and read again, in [0, 1]. `apart` is how far
    the latent of its colour lies from the nearest straight line between those of two others, black
    among them, in halves of their distance; `between` names them.
    """

    dice: float
    apart: float
    between: tuple[str, str]


def class_quality(vae: Autoencoder, dataset: PreparedDataset) -> dict[str, ClassQuality]:
    """The quality of each of several classes, by its name, on 64 evenly spaced masks.

    A class that none of them has is given back well.
    """
    names = ["background", *dataset.classes]
    plain = _plain_colours(Palette.of(dataset.classes), torch.zeros(2 * (dataset.image_size,)))
    with torch.inference_mode():
        latents = encode_images(vae, plain.to(vae.device)).flatten(1).double().cpu()
        repainted = list(repaint_split(vae, dataset, 16, 64))
    masks = torch.cat([one.masks for one in repainted])
    found = torch.cat([one.found for one in repainted])
    quality = {}
    for number, name in enumerate(names[1:], 1):
        mask, read = masks[:, 0] == number, found[:, number - 1]
        total = (mask.sum() + read.sum()).item()
        others = set(range(len(names))) - {number}
        apart, between = min(
            (_apart(latents[number], latents[one], latents[other]), (names[one], names[other]))
            for one, other in combinations(sorted(others), 2)
        )
        dice = 2 * (mask * read).sum().item() / total if total else 1.0
        quality[name] = ClassQuality(dice, apart, between)
    return quality


def _apart(point: Tensor, one: Tensor, other: Tensor) -> float:
    """The distance of a point from the straight line between two, in halves of their distance."""
    along = other - one
    square = (along @ along).clamp_min(1e-12)
    share = ((point - one) @ along / square).clamp(0, 1)
    return (2 * (point - one - share * along).norm() / square.sqrt()).item()


class Repainted(NamedTuple):
    """Masks (B, 1, H, W), 0 to K, what came of them, and the images' PSNR in dB, (B,).

    What came is 0 or 1 for each class, (B, K, H, W).
    """

    masks: Tensor
    found: Tensor
    psnr: Tensor


def repaint_split(
    vae: Autoencoder, dataset: PreparedDataset, batch_size: int, most: int
) -> Iterator[Repainted]:
    """Encodes and decodes a split, or of a larger one those of `evenly_spaced`."""
    chosen = Subset(dataset, evenly_spaced(dataset, most))
    palette = Palette.of(dataset.classes)
    numbers = torch.arange(1, palette.classes + 1)[:, None, None]
    for batch in DataLoader(chosen, batch_size=batch_size):
        images = channels_last(PreparedDataset.to_float(batch["image"]).to(vae.device))
        masks = PreparedDataset.foreground_to_float(batch["mask"], palette.classes)
        masks = masks.to(vae.device)
        error = (repaint_images(vae, images) - images).square().flatten(1).mean(1)
        soft_masks = palette.decode(vae, palette.encode(vae, masks))
        found = torch.from_numpy(label_map(soft_masks.cpu().numpy()))[:, None] == numbers
        yield Repainted(masks, found.float().to(vae.device), -10 * torch.log10(error))


def evenly_spaced(dataset: PreparedDataset, most: int) -> range:
    """Which images of a split are enough for a mean: all of them, or at most so many."""
    return range(0, len(dataset), -(-len(dataset) // most))


def describe_autoencoder(
    settings: AutoencoderParams, train: ReconstructionQuality, test: ReconstructionQuality
) -> AutoencoderCard:
    """The card of an autoencoder that `obtain_autoencoder` gave."""
    origins = {"train": settings.train.model_dump(), "hub": settings.hub, "path": settings.path}
    return AutoencoderCard(settings.source, origins[settings.source], train, test)


def write_quality(folder: Path, card: AutoencoderCard) -> None:
    """Writes `quality.json` into an autoencoder's folder."""
    write_text(Path(folder) / QUALITY_NAME, json.dumps(asdict(card), indent=2) + "\n")


def train_other_folds(
    folder: Path, prepared: Path, settings: AutoencoderParams, *, seed: int
) -> None:
    """Writes an autoencoder for each fold from the second on: none has seen its test images."""
    for fold in range(2, number_of_folds(load_manifest(prepared)) + 1):
        train, test = (PreparedDataset(prepared, split, fold=fold) for split in ("train", "test"))
        vae = obtain_autoencoder(settings, train, seed=seed)
        quality = (reconstruction_quality(vae, part) for part in (train, test))
        place = fold_folder(folder, fold)
        vae.save_pretrained(place)
        write_quality(place, describe_autoencoder(settings, *quality))


def read_quality(folder: Path) -> AutoencoderCard:
    """Reads `quality.json` from an autoencoder's folder."""
    path = Path(folder) / QUALITY_NAME
    try:
        card = TypeAdapter(AutoencoderCard).validate_json(path.read_bytes(), strict=True)
        if None in (card.train, card.test):
            raise ValueError("it lacks the quality on a split")
        return card
    except FileNotFoundError as error:
        raise InputError(f"{path} does not exist: run the autoencoder stage first") from error
    except (OSError, ValueError) as error:
        raise InputError(
            f"{path} does not tell the quality of an autoencoder: run the autoencoder stage again"
        ) from error


def frozen_autoencoder(
    variant: str, folder: Path, settings: AutoencoderParams
) -> tuple[Autoencoder | None, AutoencoderCard | None]:
    """The autoencoder that a variant is trained with, and its card; None for both if it has none.

    `folder` holds the dataset's own, which the stage `autoencoder` wrote.

    Raises:
        InputError: it is missing or broken, or gives masks back too badly to train on.
    """
    kind = variant_spec(variant).autoencoder
    if kind is None:
        return None, None
    if kind == "kl":
        card = AutoencoderCard("sd_vae", settings.sd_vae, train=None, test=None)
        return load_sd_vae(settings.sd_vae), card
    card = read_quality(folder)
    require_mask_quality(card.train, settings.min_mask_dice)
    return load_autoencoder(folder), card


def require_mask_quality(quality: ReconstructionQuality, bound: float) -> None:
    """Stops before a segmenter is trained on an autoencoder that loses the training masks."""
    if quality.mask_dice < bound:
        raise InputError(
            f"the autoencoder gives masks back with Dice {quality.mask_dice:.3f} only, below "
            f"autoencoder.min_mask_dice {bound}: raise autoencoder.train.steps, use a larger "
            "image_size, join classes if there are several (it may not tell their colours apart), "
            "or choose another autoencoder.source"
        )


def require_classes_apart(found: Mapping[str, ClassQuality], bound: float) -> None:
    """Stops before a segmenter is trained on an autoencoder that cannot tell its classes apart.

    Raises:
        InputError: one comes back with a Dice below the bound, or lies between two others.
    """
    way_out = (
        "raise autoencoder.train.steps, take a larger autoencoder (source: hub or path), or join "
        "classes"
    )
    for name, one in found.items():
        if one.dice < bound:
            raise InputError(
                f"the autoencoder gives the class {name} back with Dice {one.dice:.3f} only, below "
                f"autoencoder.min_mask_dice {bound}: {way_out}"
            )
        if one.apart < _LEAST_APART:
            raise InputError(
                f"the autoencoder cannot tell the class {name} from what lies between "
                f"{' and '.join(one.between)}: its latent lies {one.apart:.2f} of half their "
                f"distance from the line between theirs, less than {_LEAST_APART}, so that a "
                f"network would learn one for the other: {way_out}"
            )
