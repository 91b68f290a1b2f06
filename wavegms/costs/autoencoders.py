"""Which autoencoder to segment on: what each costs, and how well it repaints images and masks."""

import copy
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.nn import functional

from wavegms.config import AutoencoderParams, FoundationParams
from wavegms.costs.measure import counting_operations
from wavegms.data.dataset import PreparedDataset
from wavegms.errors import require_one_class
from wavegms.figures.method import count_parameters
from wavegms.models.autoencoder import (
    Autoencoder,
    decode_masks,
    encode_images,
    encode_masks,
    latent_channels_of,
)
from wavegms.models.build import as_pipeline, build_variant
from wavegms.models.weights import load_autoencoder
from wavegms.training.autoencoder import (
    AutoencoderCard,
    evenly_spaced,
    read_quality,
    reconstruction_quality,
    repaint_split,
    train_autoencoder,
)
from wavegms.training.loss import soft_dice
from wavegms.training.run import Run

# Parts of a mask that no square of so many pixels fits into are thin; they are looked at with this
# many pixels around.
_THIN, _AROUND = 5, 2

LINE_WIDTHS = (1, 2, 3, 4, 6, 8)


@dataclass(frozen=True)
class Candidate:
    """A frozen autoencoder to be compared, and where it comes from, as a card says it."""

    name: str
    vae: Autoencoder
    source: str
    origin: object

    def carrying(self, run: Run, project: Path = Path()) -> Run:
        """The same training on this autoencoder, in folders of its own."""
        train, test = (
            reconstruction_quality(self.vae, split) for split in (run.train_set, run.selection_set)
        )
        place = Path(run.dataset, self.name, f"seed_{run.seed}")
        return replace(
            run,
            vae=self.vae,
            autoencoder=AutoencoderCard(self.source, self.origin, train, test),
            checkpoints=project / "checkpoints/foundations" / place,
            live=project / "reports/foundations" / place,
            published=project / "models/foundations" / place,
        )


def candidates(
    own: Path,
    settings: AutoencoderParams,
    foundations: FoundationParams,
    train_set: PreparedDataset,
    *,
    seed: int,
) -> list[Candidate]:
    """The run's own autoencoder, in the folder `own`, then those of other widths, then the others.

    Those of other widths are trained here, which takes as long as the run's own.

    Raises:
        InputError: one is missing, broken, or of another size of latents.
    """
    card = read_quality(own)
    trained = isinstance(card.origin, dict)
    name = f"width_{card.origin['channels']}" if trained else Path(card.origin).name
    found = [Candidate(name, load_autoencoder(own), card.source, card.origin)]
    for width in foundations.widths:
        # what it may start from is of the run's own width
        other = {"channels": width, "start_from": None}
        narrow = settings.train.model_copy(update=other)
        vae = train_autoencoder(train_set, narrow, seed=seed)
        found.append(Candidate(f"width_{width}", vae, "train", narrow.model_dump()))
    for place in foundations.others:
        source = "path" if Path(place).is_dir() else "hub"
        found.append(Candidate(Path(place).name, load_autoencoder(place), source, place))
    return found


def sizes_of(vae: Autoencoder, image_size: int) -> dict[str, float]:
    """Channels of the latents, parameters, those of Wave-GMS on it, and 10^9 operations an image.

    Operations are counted as by `wavegms.costs.measure.count_gflop`: of encoding, and of decoding a
    mask.
    """
    with torch.device("meta"):
        images = torch.empty(1, 3, image_size, image_size)
        network = build_variant("wave_gms", vae=vae)
    flat = copy.deepcopy(vae).to("meta")
    with torch.no_grad():
        with counting_operations() as encoding:
            latents = encode_images(flat, images)
        with counting_operations() as decoding:
            decode_masks(flat, latents)
    return {
        "latent channels": latent_channels_of(vae),
        "parameters": count_parameters(vae),
        "trained with it": as_pipeline(network, flat, image_size).parameter_counts.trainable,
        "encoding, GFLOP": encoding.get_total_flops() / 1e9,
        "decoding, GFLOP": decoding.get_total_flops() / 1e9,
    }


@torch.inference_mode()
def repaint(vae: Autoencoder, dataset: PreparedDataset, most: int = 256) -> pd.DataFrame:
    """How well each image of a split, or as many evenly spaced ones, comes back.

    Columns: id; psnr of the image in dB; dice of the mask, and thin, the Dice of what lies about
    the mask's thin parts, both in [0, 1]; thin is missing where a mask has no such parts.
    """
    way_out = f"leave {dataset.folder.name} out there"
    require_one_class(len(dataset.classes), "foundations.datasets", way_out)
    rows = []
    for masks, found, psnr in repaint_split(vae, dataset, 4, most):
        near = _near_thin_parts(masks)
        thin = soft_dice(found * near, masks * near)
        thin[near.flatten(1).sum(1) == 0] = np.nan
        rows += zip(psnr.tolist(), soft_dice(found, masks).tolist(), thin.tolist(), strict=True)
    table = pd.DataFrame(rows, columns=["psnr", "dice", "thin"])
    table.insert(0, "id", [dataset.ids[place] for place in evenly_spaced(dataset, most)])
    return table


def summary_of(repainted: pd.DataFrame) -> dict[str, float]:
    """One line of what `repaint` gave for a split."""
    return {
        "images, dB": repainted["psnr"].mean(),
        "masks, Dice": repainted["dice"].mean(),
        "worst mask": repainted["dice"].min(),
        "thin parts": repainted["thin"].mean(),
    }


@torch.inference_mode()
def repaint_lines(vae: Autoencoder, side: int = 128) -> pd.Series:
    """The Dice of straight lines by their width in pixels, `LINE_WIDTHS`, mean of 8 directions."""
    y, x = torch.meshgrid(*[torch.arange(side) - (side - 1) / 2] * 2, indexing="ij")
    dice = {}
    for width in LINE_WIDTHS:
        # between the pixels' centres, so that an upright line is as wide as it is said to be
        angles = torch.arange(8) * torch.pi / 8
        across = x * angles.cos()[:, None, None] + y * angles.sin()[:, None, None]
        shift = 0.0 if width % 2 == 0 else 0.5
        masks = ((across - shift).abs() < width / 2).float()[:, None]
        found = decode_masks(vae, encode_masks(vae, masks)) >= 0.5
        dice[width] = soft_dice(found.float(), masks).mean().item()
    return pd.Series(dice, name="dice").rename_axis("width")


def _near_thin_parts(masks: Tensor) -> Tensor:
    """1 on and about the parts that an opening takes away, else 0: (B, 1, H, W) of 0 and 1."""

    def widened(x: Tensor, reach: int) -> Tensor:
        return functional.max_pool2d(x, 2 * reach + 1, stride=1, padding=reach)

    reach = _THIN // 2
    opened = widened(1 - widened(1 - masks, reach), reach)
    return widened(masks * (1 - opened), _AROUND)
