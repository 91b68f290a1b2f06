"""Pictures of the method at work: sub-bands, latents, and masks at each supervised depth.

Each function returns a matplotlib figure of its own, outside pyplot's list of open ones.
"""

import re
from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor
from torch.nn import functional

from wavegms.figures import name_row, new_grid, write_in_corner
from wavegms.losses import soft_dice
from wavegms.models.wavelet import SUB_BANDS, multi_level_bands

_LATENT_COLOURS, _COSINE_COLOURS = "RdBu_r", "PiYG"


def show_bands(image: Tensor) -> Figure:
    """The Haar sub-bands that the encoder sees, level by level.

    Details are shown around mid-grey, each stretched to its own largest value, which the title
    gives: they would be invisible otherwise.

    Args:
        image: float (3, H, W) in [0, 1].
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
    """Latents channel by channel, on one scale for each row.

    Args:
        latents: by name, each (4, h, w).
    """
    figure, axes = new_grid(len(latents), 4, cell=1.6)
    for row, (name, latent) in zip(axes, latents.items(), strict=True):
        _draw_channels(row, latent)
        for channel, axis in enumerate(row, 1):
            axis.set_title(f"{_symbol(name)}, channel {channel}", fontsize=8)
    return figure


def show_alignment(latents: Mapping[str, Mapping[str, Tensor]]) -> Figure:
    """Latents above those that they are trained to meet, one system beside the other.

    One row a latent, on a scale of its own, which the row's name gives; beside each pair of rows
    the cosine similarity of the two over the channels, position by position, and its mean. That
    of z_MR and z_I is the cosine in L_align (paper, section 2.4).

    Args:
        latents: by the system's title, what `tour.follow_latents` gave for one image: pairs of
            latents by name, each (1, 4, h, w).
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
    """Masks side by side, each with its soft Dice to the first of its row.

    Args:
        masks: by name, each (B, 1, H, W) in [0, 1]; the first are the truth.
        names: of the B rows.
    """
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
