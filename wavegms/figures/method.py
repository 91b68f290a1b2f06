"""Pictures of the method at work: sub-bands, latents, and masks at each supervised depth.

Each function returns a matplotlib figure of its own, outside pyplot's list of open ones.
"""

import re
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any, NamedTuple

import pandas as pd
import seaborn as sns
import torch
from diffusers import AutoencoderTiny
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter
from torch import Tensor, nn
from torch.nn import functional

from wavegms.config import AugmentationParams
from wavegms.data.batches import Augmentation
from wavegms.data.dataset import PreparedDataset
from wavegms.figures.style import draw_case, name_row, new_grid, write_in_corner
from wavegms.models.autoencoder import channels_last, decode_masks, encode_images, encode_masks
from wavegms.models.pipeline import WaveGMSPipeline
from wavegms.models.segmenter import map_latents
from wavegms.models.wavelet import SUB_BANDS, multi_level_bands
from wavegms.training.loss import soft_dice


def show_augmented(
    dataset: PreparedDataset, settings: AugmentationParams, seed: int, count: int = 6
) -> Figure:
    """Images as they are, and below them three of the many ways in which training sees them."""
    cases = [dataset[index] for index in range(min(count, len(dataset)))]
    images = PreparedDataset.to_float(torch.stack([case["image"] for case in cases]))
    masks = PreparedDataset.foreground_to_float(torch.stack([case["mask"] for case in cases]))
    augment = Augmentation(**settings.model_dump())
    figure, axes = new_grid(4, len(cases), cell=1.4)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        versions = [(images, masks)] + [augment(images, masks) for _ in range(3)]
    for row, (pictures, truths) in zip(axes, versions, strict=True):
        for axis, picture, truth in zip(row, pictures, truths, strict=True):
            draw_case(axis, picture.movedim(0, -1).numpy(), truth[0].numpy() > 0.5)
    return figure


@torch.inference_mode()
def show_reconstructions(
    vae: AutoencoderTiny, dataset: PreparedDataset, indices: Sequence[int]
) -> Figure:
    """Images and masks beside what the autoencoder gives back."""
    cases = [dataset[index] for index in indices]
    images = PreparedDataset.to_float(torch.stack([case["image"] for case in cases]))
    masks = PreparedDataset.foreground_to_float(torch.stack([case["mask"] for case in cases]))
    decoded = ((vae.decode(encode_images(vae, images)).sample + 1) / 2).clamp(0, 1)
    soft_masks = decode_masks(vae, encode_masks(vae, masks))
    rows = {
        "image": images,
        "image, decoded": decoded,
        "mask": masks,
        "mask, decoded": soft_masks,
    }
    figure, axes = new_grid(len(rows), len(cases), cell=1.5)
    for row, (name, pictures) in zip(axes, rows.items(), strict=True):
        for axis, picture, index in zip(row, pictures, indices, strict=True):
            axis.imshow(picture.movedim(0, -1).squeeze(-1).numpy(), cmap="gray", vmin=0, vmax=1)
            axis.set_title(f"{name}\n{dataset.ids[index]}", fontsize=7)
    return figure


def show_history(history: pd.DataFrame, best_epoch: int) -> Figure:
    """Losses and selection Dice over the epochs of a `TrainingResult`, of which one was kept."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3), layout="constrained")
    names = {"seg": "mask (Dice)", "lm": "latent mapping (MSE)", "align": "alignment"}
    for (column, name), colour in zip(names.items(), sns.color_palette("colorblind"), strict=False):
        if column not in history:  # not every network has every term
            continue
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
    plt.close(figure)
    return figure


class Step(NamedTuple):
    """What one module of a network was given first, and gave; None where that is no tensor."""

    input: Tensor
    output: Tensor | None


def trace_prediction(pipeline: WaveGMSPipeline, images: Tensor) -> dict[str, Step]:
    """What every module took and gave in one prediction of images, (B, 3, H, W) in [0, 1].

    By the module's path, such as `encoder.feature_extraction.0`, in the order in which they
    finished. Modules that a prediction does not call are not in it, among them the decoder of the
    Tiny-VAE as a whole, whose layers are called one by one.
    """
    steps: dict[str, Step] = {}
    parts = {name: part for name, part in pipeline.components.items() if part is not None}
    with ExitStack() as hooks:
        for name, module in nn.ModuleDict(parts).named_modules():

            def record(_: nn.Module, given: tuple, result: Any, name: str = name) -> None:
                if given:
                    output = result if isinstance(result, Tensor) else None
                    steps[name] = Step(given[0], output)

            hooks.callback(module.register_forward_hook(record).remove)
        pipeline.predict(images)
    return steps


@torch.inference_mode()
def shapes_along_path(pipeline: WaveGMSPipeline, images: Tensor) -> pd.DataFrame:
    """What each step of Wave-GMS's prediction gives, by running it: its name and shape."""
    steps = trace_prediction(pipeline, images)
    rows: list[tuple[str, Tensor]] = [("image", images)]
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
    for depth, _ in enumerate(pipeline.mapping.heads, 1):
        latent = steps[f"mapping.heads.{depth - 1}"].output
        rows.append((f"mapped latent, depth {depth}", latent))
    rows.append(("soft mask, decoded from the last", decode_masks(pipeline.vae, latent)))
    shapes = [(step, " × ".join(map(str, value.shape))) for step, value in rows]
    return pd.DataFrame(shapes, columns=["step", "output"])


@torch.inference_mode()
def follow_latents(pipeline: WaveGMSPipeline, images: Tensor, masks: Tensor) -> dict[str, Tensor]:
    """The two latents that the method predicts, each before the one it is trained to meet.

    Of images (B, 3, H, W) in [0, 1] and their true masks (B, 1, H, W): z_MR, z_I, predicted z_M and
    z_M by these names, each (B, 4, H/8, W/8).
    """
    images = channels_last(images)  # as in a prediction
    latents, levels = map_latents(pipeline.encoder, pipeline.mapping, pipeline.vae, images)
    return {
        "z_MR": latents,
        "z_I": encode_images(pipeline.vae, images),
        "predicted z_M": levels[-1],
        "z_M": encode_masks(pipeline.vae, masks),
    }


@torch.inference_mode()
def decode_levels(pipeline: WaveGMSPipeline, images: Tensor, masks: Tensor) -> dict[str, Tensor]:
    """The masks at the four supervised depths, after the best that a prediction can be.

    Of images (B, 3, H, W) in [0, 1] and their true masks (B, 1, H, W): truth, z_M decoded, and
    depth 1 to depth 4 (deepest first; the last is the prediction) by these names, each (B, 1, H,
    W).
    """
    _, levels = map_latents(pipeline.encoder, pipeline.mapping, pipeline.vae, images)
    latents = {"z_M decoded": encode_masks(pipeline.vae, masks)}
    latents |= {f"depth {depth}": level for depth, level in enumerate(levels, 1)}
    decoded = {name: decode_masks(pipeline.vae, latent) for name, latent in latents.items()}
    return {"truth": masks} | decoded


def parameter_table(pipeline: WaveGMSPipeline) -> pd.DataFrame:
    """Number of parameters of each part, and which of them are trained."""
    encoder, vae = pipeline.encoder, pipeline.vae
    parts: list[tuple[str, nn.Module, bool]] = [
        ("one feature-extraction U-Net (of three)", encoder.feature_extraction[0], True),
        ("feature-aggregation U-Net", encoder.feature_aggregation, True),
        ("multi-resolution encoder", encoder, True),
        ("latent mapping model", pipeline.mapping, True),
        ("autoencoder: encoder", vae.encoder, False),
        ("autoencoder: decoder", vae.decoder, False),
    ]
    rows = [
        (name, count_parameters(part), "yes" if trained else "frozen")
        for name, part, trained in parts
    ]
    trained = count_parameters(encoder) + count_parameters(pipeline.mapping)
    rows.append(("all that is trained", trained, "yes"))
    return pd.DataFrame(rows, columns=["part", "parameters", "trained"])


def count_parameters(module: nn.Module) -> int:
    """How many numbers a module holds, frozen or not."""
    return sum(parameter.numel() for parameter in module.parameters())


_LATENT_COLOURS, _COSINE_COLOURS = "RdBu_r", "PiYG"


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
    """Latents (4, h, w) by name, channel by channel, on one scale for each row."""
    figure, axes = new_grid(len(latents), 4, cell=1.6)
    for row, (name, latent) in zip(axes, latents.items(), strict=True):
        _draw_channels(row, latent)
        for channel, axis in enumerate(row, 1):
            axis.set_title(f"{_symbol(name)}, channel {channel}", fontsize=8)
    return figure


def show_alignment(latents: Mapping[str, Mapping[str, Tensor]]) -> Figure:
    """Latents above those that they are trained to meet, one system beside the other.

    For each system by its title what `follow_latents` gave for one image. One row a latent, on a
    scale of its own, which the row's name gives; beside each pair of rows the cosine similarity of
    the two over the channels, position by position, and its mean. That of z_MR and z_I is the
    cosine in L_align (paper, section 2.4).
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
        names = list(by_name)
        for upper in range(0, len(names), 2):
            pair = names[upper : upper + 2]
            cosine = functional.cosine_similarity(*(by_name[name] for name in pair), dim=1)[0]
            axis = part.add_subplot(grid[upper : upper + 2, 4])
            axis.set_axis_off()
            shown = axis.imshow(cosine.numpy(), cmap=_COSINE_COLOURS, vmin=-1, vmax=1)
            axis.set_title(f"cosine\nmean {cosine.mean():.3f}", fontsize=8)
            bar = part.colorbar(shown, ax=axis, shrink=0.5, ticks=(-1, 0, 1))
            bar.ax.tick_params(labelsize=7)
    return figure


def show_masks(masks: Mapping[str, Tensor], names: Sequence[str] = ("",)) -> Figure:
    """Masks (B, 1, H, W) by name, a row a mask, each with its soft Dice to the first of its row."""
    figure, axes = new_grid(len(names), len(masks), cell=1.5)
    figure.set_figheight(1.55 * len(names) + 0.25)  # only the first row has titles
    truth = next(iter(masks.values()))
    for column, (title, column_masks) in enumerate(masks.items()):
        axes[0, column].set_title(_symbol(title), fontsize=8)
        dice = soft_dice(column_masks, truth)
        for row, name in enumerate(names):
            axis = axes[row, column]
            axis.imshow(column_masks[row, 0].numpy(), cmap="gray", vmin=0, vmax=1)
            if column == 0:
                name_row(axis, name)
            else:
                write_in_corner(axis, f"{dice[row]:.3f}")
    return figure


def _symbol(name: str) -> str:
    """z_MR as one writes it: with a subscript."""
    return re.sub(r"z_(\w+)", r"$z_{\1}$", name)


def _draw_channels(axes: Sequence[Axes], latent: Tensor) -> float:
    peak = _peak(latent)
    for axis, values in zip(axes, latent, strict=True):
        axis.set_axis_off()
        axis.imshow(values.numpy(), cmap=_LATENT_COLOURS, vmin=-peak, vmax=peak)
    return peak


def _peak(values: Tensor) -> float:
    """Where the colours of signed values end; not 0, for an empty scale cannot be drawn."""
    return max(values.abs().max().item(), 1e-6)
