"""Pictures of the method at work: sub-bands, latents, and masks at each supervised depth.

Each function returns a matplotlib figure of its own, outside pyplot's list of open ones.
"""

import re
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import seaborn as sns
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter
from torch import Tensor, nn
from torch.nn import functional

from wavegms.config import AugmentationParams
from wavegms.data.batches import Augmentation
from wavegms.data.dataset import PreparedDataset
from wavegms.figures.style import draw_case, name_row, new_grid, new_panels, write_in_corner
from wavegms.models.autoencoder import Autoencoder, channels_last, encode_images, repaint_images
from wavegms.models.palette import BLACK_AND_WHITE, Palette
from wavegms.models.pipeline import WaveGMSPipeline
from wavegms.models.segmenter import map_latents
from wavegms.models.wavelet import SUB_BANDS, multi_level_bands
from wavegms.training.loss import soft_dice


def show_augmented(
    dataset: PreparedDataset, settings: AugmentationParams, seed: int, count: int = 6
) -> Figure:
    """Images as they are, and below them three of the many ways in which training sees them."""
    images, masks = _cases(dataset, range(min(count, len(dataset))))
    augment = Augmentation(**settings.model_dump(), in_colour=dataset.in_colour)
    figure, axes = new_grid(4, len(images), cell=1.4)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        versions = [(images, masks)] + [augment(images, masks) for _ in range(3)]
    for row, (pictures, truths) in zip(axes, versions, strict=True):
        for axis, picture, truth in zip(row, pictures, truths, strict=True):
            kinds = truth[0].numpy().astype(np.uint8)
            draw_case(axis, picture.movedim(0, -1).numpy(), kinds, classes=len(dataset.classes))
    return figure


@torch.inference_mode()
def show_reconstructions(
    vae: Autoencoder, dataset: PreparedDataset, indices: Sequence[int]
) -> Figure:
    """Images and masks beside what the autoencoder gives back."""
    images, masks = _cases(dataset, indices)
    palette = Palette.of(dataset.classes)
    rows = {
        "image": images,
        "image, decoded": repaint_images(vae, images),
        "mask": masks,
        "mask, decoded": palette.decode(vae, palette.encode(vae, masks)),
    }
    if dataset.classes:
        rows["mask"] = palette.paint(masks)
        rows["mask, decoded"] = palette.mix(rows["mask, decoded"])
    figure, axes = new_grid(len(rows), len(images), cell=1.5)
    for row, (name, pictures) in zip(axes, rows.items(), strict=True):
        for axis, picture, index in zip(row, pictures, indices, strict=True):
            axis.imshow(picture.movedim(0, -1).squeeze(-1).numpy(), cmap="gray", vmin=0, vmax=1)
            axis.set_title(f"{name}\n{dataset.ids[index]}", fontsize=7)
    return figure


def _cases(dataset: PreparedDataset, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Images (B, 3, H, W) in [0, 1] and masks (B, 1, H, W), 0 to K, of a split."""
    cases = [dataset[index] for index in indices]
    images, masks = (torch.stack([case[name] for case in cases]) for name in ("image", "mask"))
    classes = len(dataset.classes) or 1
    return PreparedDataset.to_float(images), PreparedDataset.foreground_to_float(masks, classes)


def show_history(history: pd.DataFrame, best_epoch: int) -> Figure:
    """Losses and selection Dice over the epochs of a `TrainingResult`, of which one was kept."""
    figure, (left, right) = new_panels(2, 9, 3)
    names = {"seg": "mask (Dice)", "lm": "latent mapping (MSE)", "align": "alignment"}
    # of generative networks
    names |= {"noise": "noise", "bound": "bound", "condition": "condition", "latent": "latents"}
    names |= {"codes": "codes", "pixels": "pixels"}
    for (column, name), colour in zip(names.items(), sns.color_palette("colorblind"), strict=False):
        if column in history:  # not every network has every term
            left.plot(history["epoch"], history[column], label=name, color=colour)
    left.set(xlabel="epoch", ylabel="training loss", yscale="log")
    left.legend(fontsize=8)
    left.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    left.yaxis.set_major_formatter("{x:g}")
    left.yaxis.set_minor_formatter(NullFormatter())
    right.plot(history["epoch"], history["selection_dice"], color="black")
    best = history.loc[history["epoch"] == best_epoch, "selection_dice"].item()
    right.plot(best_epoch, best, "o", color="#d55e00")
    right.set_title(f"kept: epoch {best_epoch}, {best:.3f}", fontsize=9, loc="right")
    right.set(xlabel="epoch", ylabel="soft Dice on the selecting images", ylim=(0, 1))
    for axis in (left, right):
        axis.xaxis.set_major_locator(MaxNLocator("auto", integer=True))
    sns.despine(figure)
    return figure


class Step(NamedTuple):
    """What one module of a network was given first, and gave; None where that is no tensor."""

    input: Tensor
    output: Tensor | None


def trace_prediction(pipeline: WaveGMSPipeline, images: Tensor) -> dict[str, Step]:
    """What every module took and gave in one prediction of images, (B, 3, H, W) in [0, 1].

    By the module's path, such as `encoder.feature_extraction.0`, in the order in which they
    finished. Not in it is what a prediction does not call: the Tiny-VAE's decoder as a whole.
    """
    steps: dict[str, Step] = {}
    parts = {name: part for name, part in pipeline.components.items() if part is not None}
    with ExitStack() as hooks:
        for name, module in nn.ModuleDict(parts).named_modules():

            def record(_: nn.Module, given: tuple, result: Any, name: str = name) -> None:
                if given:
                    steps[name] = Step(given[0], result if isinstance(result, Tensor) else None)

            hooks.callback(module.register_forward_hook(record).remove)
        pipeline.predict(images)
    return steps


@torch.inference_mode()
def shapes_along_path(pipeline: WaveGMSPipeline, images: Tensor) -> pd.DataFrame:
    """What each step of a prediction gives, by running it: its name and shape."""
    rows: list[tuple[str, Tensor]] = [("image", images)]
    if pipeline.encoder is not None:
        steps = trace_prediction(pipeline, images)
        for level in range(1, pipeline.encoder.levels + 1):
            extract = steps[f"encoder.feature_extraction.{level - 1}"]
            rows += [
                (f"level {level}: four sub-bands of RGB", extract.input),
                (f"level {level}: features, by a U-Net", extract.output),
                (f"level {level}: pooled", steps[f"encoder.pools.{level - 1}"].output),
            ]
        aggregate = steps["encoder.feature_aggregation"]
        mean, log_variance = aggregate.output.chunk(2, dim=1)
        rows += [
            ("the three levels, concatenated", aggregate.input),
            ("mean of z_MR", mean),
            ("log-variance of z_MR", log_variance),
        ]
    last = "soft mask"
    if pipeline.mapping is not None:
        latent, levels = map_latents(pipeline.encoder, pipeline.mapping, pipeline.vae, images)
        if pipeline.encoder is None:
            rows.append(("z_I, by the frozen autoencoder", latent))
        rows += [(f"mapped latent, depth {depth}", level) for depth, level in enumerate(levels, 1)]
        last = "soft mask, decoded from the last"
    rows.append((last, pipeline.predict(images)))
    shapes = [(step, " × ".join(map(str, value.shape))) for step, value in rows]
    return pd.DataFrame(shapes, columns=["step", "output"])


@torch.inference_mode()
def follow_latents(pipeline: WaveGMSPipeline, images: Tensor, masks: Tensor) -> dict[str, Tensor]:
    """The two latents that the method predicts, each before the one it is trained to meet.

    Of images (B, 3, H, W) in [0, 1] and their true masks (B, 1, H, W): z_MR, z_I, predicted z_M and
    z_M by these names, each (B, C, H/8, W/8).
    """
    images = channels_last(images)  # as in a prediction
    latents, levels = map_latents(pipeline.encoder, pipeline.mapping, pipeline.vae, images)
    return {
        "z_MR": latents,
        "z_I": encode_images(pipeline.vae, images),
        "predicted z_M": levels[-1],
        "z_M": pipeline.palette.encode(pipeline.vae, masks),
    }


@torch.inference_mode()
def decode_levels(pipeline: WaveGMSPipeline, images: Tensor, masks: Tensor) -> dict[str, Tensor]:
    """The masks at the four supervised depths, after the best that a prediction can be.

    Of images (B, 3, H, W) in [0, 1] and their true masks, by name, each (B, K, H, W): z_M decoded,
    and depth 1 (the deepest) to depth 4 (the prediction); and truth, as it was given.
    """
    palette = pipeline.palette
    _, levels = map_latents(pipeline.encoder, pipeline.mapping, pipeline.vae, images)
    latents = {"z_M decoded": palette.encode(pipeline.vae, masks)}
    latents |= {f"depth {depth}": level for depth, level in enumerate(levels, 1)}
    decoded = {name: palette.decode(pipeline.vae, latent) for name, latent in latents.items()}
    return {"truth": masks} | decoded


def parameter_table(pipeline: WaveGMSPipeline) -> pd.DataFrame:
    """Number of parameters of each part, and which of them are trained."""
    encoder, vae = pipeline.encoder, pipeline.vae
    parts: list[tuple[str, nn.Module | None, bool]] = [
        (
            "one feature-extraction U-Net (of three)",
            encoder and encoder.feature_extraction[0],
            True,
        ),
        ("feature-aggregation U-Net", encoder and encoder.feature_aggregation, True),
        ("multi-resolution encoder", encoder, True),
        ("latent mapping model", pipeline.mapping, True),
        ("network", pipeline.network, True),
        ("autoencoder: encoder", vae and vae.encoder, False),
        ("autoencoder: decoder", vae and vae.decoder, False),
    ]
    rows = [
        (name, count_parameters(part), "yes" if trained else "frozen")
        for name, part, trained in parts
        if part is not None
    ]
    rows.append(("all that is trained", pipeline.parameter_counts.trainable, "yes"))
    return pd.DataFrame(rows, columns=["part", "parameters", "trained"])


def count_parameters(module: nn.Module) -> int:
    """How many numbers a module holds, frozen or not."""
    return sum(parameter.numel() for parameter in module.parameters())


def show_bands(image: Tensor) -> Figure:
    """The Haar sub-bands that the encoder sees of an image (3, H, W), level by level.

    Details are shown around mid-grey, each stretched to its own largest value, which the title
    gives: they would be invisible otherwise.
    """
    figure, axes = new_grid(3, len(SUB_BANDS))
    for level, (row, bands) in enumerate(zip(axes, multi_level_bands(image[None]), strict=True), 1):
        for axis, name, band in zip(row, SUB_BANDS, bands[0].split(3), strict=True):
            height, width = band.shape[1:]
            if name == "LL":
                axis.imshow(band.movedim(0, -1).clamp(0, 1).numpy())
                axis.set_title(f"level {level}: {name}, {height}×{width}", fontsize=8)
            else:
                grey = band.mean(0)
                peak = _peak(grey)
                axis.imshow(grey.numpy(), cmap="gray", vmin=-peak, vmax=peak)
                axis.set_title(f"{name} (±{peak:.2f})", fontsize=8)
    return figure


def show_latents(latents: Mapping[str, Tensor]) -> Figure:
    """The first four channels of latents (C, h, w) by name, on one scale for each row."""
    figure, axes = new_grid(len(latents), 4, cell=1.6)
    for row, (name, latent) in zip(axes, latents.items(), strict=True):
        _draw_channels(row, latent)
        for channel, axis in enumerate(row, 1):
            axis.set_title(f"{_symbol(name)}, channel {channel}", fontsize=8)
    return figure


def show_alignment(latents: Mapping[str, Mapping[str, Tensor]]) -> Figure:
    """Latents above those that they are trained to meet, one system beside the other.

    For each system by its title what `follow_latents` gave for one image. One row a latent, its
    first four channels, on a scale of its own, which the row's name gives; beside each pair of rows
    the cosine similarity of the two over all channels, position by position, and its mean. That of
    z_MR and z_I is the cosine in L_align (paper, section 2.4).
    """
    blocks = len(latents)
    figure = Figure(figsize=(5.2 * blocks, 3.9), layout="constrained")
    for place, (title, by_name) in enumerate(latents.items()):
        part = figure.add_subfigure(figure.add_gridspec(1, blocks)[place])
        part.suptitle(title, fontsize=10)
        grid = part.add_gridspec(len(by_name), 5, width_ratios=(1, 1, 1, 1, 1.7))
        for number, (name, latent) in enumerate(by_name.items()):
            row = [part.add_subplot(grid[number, channel]) for channel in range(4)]
            peak = _draw_channels(row, latent[0])
            name_row(row[0], f"{_symbol(name)}\n±{peak:.2g}")
            if number == 0:
                for channel, axis in enumerate(row, 1):
                    axis.set_title(f"channel {channel}", fontsize=8)
        values = list(by_name.values())
        for upper in range(0, len(values), 2):
            cosine = functional.cosine_similarity(*values[upper : upper + 2], dim=1)[0]
            axis = part.add_subplot(grid[upper : upper + 2, 4])
            axis.set_axis_off()
            shown = axis.imshow(cosine.numpy(), cmap="PiYG", vmin=-1, vmax=1)
            axis.set_title(f"cosine\nmean {cosine.mean():.3f}", fontsize=8)
            bar = part.colorbar(shown, ax=axis, shrink=0.5, ticks=(-1, 0, 1))
            bar.ax.tick_params(labelsize=7)
    return figure


def mask_picture(mask: Tensor, palette: Palette) -> np.ndarray:
    """A mask (1, H, W) as it is, in grey; of several classes, or their shares (K, H, W), in RGB."""
    if palette.classes == 1:
        return mask[0].numpy()
    painted = palette.paint(mask[None]) if len(mask) == 1 else palette.mix(mask[None])
    return painted[0].movedim(0, -1).numpy()


def show_masks(
    masks: Mapping[str, Tensor], names: Sequence[str] = ("",), palette: Palette = BLACK_AND_WHITE
) -> Figure:
    """Masks of `decode_levels`, a row a mask, each with its soft Dice to the first of its row."""
    figure, axes = new_grid(len(names), len(masks), cell=1.5)
    figure.set_figheight(1.55 * len(names) + 0.25)  # only the first row has titles
    truth = next(iter(masks.values()))
    for column, (title, column_masks) in enumerate(masks.items()):
        axes[0, column].set_title(_symbol(title), fontsize=8)
        dice = None if column == 0 else soft_dice(column_masks, truth)
        for row, name in enumerate(names):
            axis = axes[row, column]
            axis.imshow(mask_picture(column_masks[row], palette), cmap="gray", vmin=0, vmax=1)
            if column == 0:
                name_row(axis, name)
            else:
                write_in_corner(axis, f"{dice[row]:.3f}")
    return figure


def _symbol(name: str) -> str:
    """z_MR as one writes it: with a subscript."""
    return re.sub(r"z_(\w+)", r"$z_{\1}$", name)


def _draw_channels(axes: Sequence[Axes], latent: Tensor) -> float:
    """As many channels as there are axes; what is left of them stays empty."""
    shown = latent[: len(axes)]
    peak = _peak(shown)
    for axis in axes:
        axis.set_axis_off()
    for axis, values in zip(axes, shown, strict=False):
        axis.imshow(values.numpy(), cmap="RdBu_r", vmin=-peak, vmax=peak)
    return peak


def _peak(values: Tensor) -> float:
    """Where the colours of signed values end; not 0, for an empty scale cannot be drawn."""
    return max(values.abs().max().item(), 1e-6)
