"""The paper's Figure 1, drawn from the pipeline itself.

Every shape is what running the pipeline gave and every count is that of its weights, so the
drawing cannot disagree with the code.
"""

from itertools import pairwise

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Rectangle
from torch import Tensor

from wavegms.errors import InputError
from wavegms.figures.method import (
    count_parameters,
    decode_levels,
    follow_latents,
    mask_picture,
    trace_prediction,
)
from wavegms.models.pipeline import WaveGMSPipeline

_WIDTH, _HEIGHT = 7.2, 5.66  # inches: as wide as a page between its margins

_TINY, _SMALL, _LARGE = 5.8, 6.4, 7.6  # points

_TRAINED, _FROZEN, _DATA, _LOSS = "#fde0bd", "#cfe2f3", "white", "#b2182b"

_TITLE = {"size": _LARGE, "ha": "left", "fontweight": "bold"}

_COMPARED = {"color": _LOSS, "linestyle": (0, (3, 1.5))}

_SNOWFLAKE = "\N{SNOWFLAKE}"

Point = tuple[float, float]


@torch.inference_mode()
def draw_method(pipeline: WaveGMSPipeline, image: Tensor, mask: Tensor) -> Figure:
    """The whole method as blocks and arrows, for one image and its true mask (paper, Figure 1).

    Blocks show what they output and how many parameters they have; frozen ones are blue and carry a
    snowflake. Losses are red and dashed, between what they compare; they are drawn as the paper has
    them, with all four depths supervised. Pictures are the pipeline's own: the image, its
    sub-bands, and the mask decoded at each depth.

    Texts can be found by their `gid`: an output's shape by the module's path in the pipeline, such
    as `mapping.heads.0`, or by the name of the data (image, mask, z_MR, z_I, z_M, prediction); what
    the aggregation takes by `concatenated`; a count by `parameters of <path>`.
    """
    if pipeline.encoder is None:
        raise InputError(
            "The diagram shows Wave-GMS, but this pipeline has no wavelet encoder: draw it from "
            "the variant wave_gms."
        )
    board = _Board(pipeline, image, mask)
    _draw_encoder(board)
    _draw_mapping(board)
    _draw_decoder(board)
    _draw_legend(board)
    return board.figure


class _Board:
    """A drawing in inches, origin at the lower left, and the numbers that are written on it."""

    def __init__(self, pipeline: WaveGMSPipeline, image: Tensor, mask: Tensor):
        self.steps = trace_prediction(pipeline, image)
        self.masks = decode_levels(pipeline, image, mask)
        self.image, self.mask, self.palette = image, mask, pipeline.palette
        self.samples = pipeline.encoder.config.sample_at_inference
        tensors = {path: step.output for path, step in self.steps.items()}
        tensors |= follow_latents(pipeline, image, mask)
        tensors |= {
            f"bands_{level}": self.steps[f"encoder.feature_extraction.{level - 1}"].input
            for level in range(1, pipeline.encoder.levels + 1)
        }
        tensors |= {
            "image": image,
            "mask": mask,
            "concatenated": self.steps["encoder.feature_aggregation"].input,
            "prediction": self.masks["depth 4"],
        }
        self.shapes = {name: value.shape for name, value in tensors.items() if value is not None}
        parts = {name: getattr(pipeline, name) for name in ("encoder", "mapping", "vae")}
        self.counts = {
            ".".join(filter(None, (name, path))): count_parameters(module)
            for name, part in parts.items()
            for path, module in part.named_modules()
        }
        self.figure = Figure(figsize=(_WIDTH, _HEIGHT))
        self.axes = self.figure.add_axes((0, 0, 1, 1))
        self.axes.set_axis_off()
        self.axes.set(xlim=(0, _WIDTH), ylim=(0, _HEIGHT), autoscale_on=False)

    def text(self, x: float, y: float, words: str, size: float = _TINY, **style) -> None:
        style = {"ha": "center", "va": "center", "zorder": 4} | style
        self.axes.text(x, y, words, fontsize=size, **style)

    def shape(self, x: float, y: float, name: str, **style) -> None:
        words = " × ".join(map(str, self.shapes[name][1:]))  # without the batch
        self.text(x, y, words, gid=name, **style)

    def count(self, x: float, y: float, path: str, words: str = "{:,}", **style) -> None:
        self.text(x, y, words.format(self.counts[path]), gid=f"parameters of {path}", **style)

    def box(self, x: float, y: float, width: float, height: float, colour: str, **style) -> None:
        """A block around its centre."""
        style = {"edgecolor": "0.25", "linewidth": 0.7, "zorder": 3} | style
        corner = (x - width / 2, y - height / 2)
        round_off = "round,pad=0,rounding_size=0.05"
        patch = FancyBboxPatch(corner, width, height, round_off, facecolor=colour, **style)
        self.axes.add_patch(patch)

    def frame(self, left: float, bottom: float, right: float, top: float, **style) -> None:
        """What belongs together."""
        style = {"edgecolor": "0.6", "linestyle": "-", "linewidth": 0.7, "zorder": 1} | style
        size = (right - left, top - bottom)
        self.box((left + right) / 2, (bottom + top) / 2, *size, **{"colour": "0.97"} | style)

    def arrow(self, *points: Point, **style) -> None:
        """Along the points, with its head at the last."""
        style = {"color": "0.25", "linewidth": 0.8, "linestyle": "-", "zorder": 2} | style
        if len(points) > 2:
            self.axes.plot(*zip(*points[:-1], strict=True), solid_joinstyle="miter", **style)
        head = {"arrowstyle": "-|>", "mutation_scale": 6, "shrinkA": 0, "shrinkB": 0}
        self.axes.add_patch(FancyArrowPatch(*points[-2:], **head | style))

    def loss(self, start: Point, end: Point, where: Point, name: str) -> None:
        """Between the two things that a loss compares."""
        self.arrow(start, end, **_COMPARED, arrowstyle="<|-|>")
        self.text(*where, rf"$\mathcal{{L}}_{{\mathrm{{{name}}}}}$", _LARGE, color=_LOSS)

    def picture(self, x: float, y: float, side: float, pixels: np.ndarray, **style) -> None:
        """A picture around its centre; the longer of its sides is given."""
        height, width = np.array(pixels.shape[:2]) * side / max(pixels.shape[:2])
        left, bottom = x - width / 2, y - height / 2
        extent = (left, left + width, bottom, bottom + height)
        self.axes.imshow(pixels, "gray", vmin=0, vmax=1, extent=extent, aspect="auto", zorder=3)
        style = {"edgecolor": "0.25", "linewidth": 0.6, "fill": False, "zorder": 4} | style
        self.axes.add_patch(Rectangle((left, bottom), width, height, **style))


def _draw_encoder(board: _Board) -> None:
    """The upper half: from the image to z_MR, and through the frozen encoder to z_I."""
    rows = (4.53, 3.88, 3.23)
    board.frame(0.98, 2.93, 6.98, 5.05)
    board.text(1.1, 4.93, r"Multi-resolution encoder $\mathcal{E}_{\mathrm{wave}}$", **_TITLE)
    board.count(2.98, 4.93, "encoder", "{:,} parameters", size=_SMALL, ha="left")

    board.picture(0.44, rows[0], 0.64, board.image[0].movedim(0, -1).numpy())
    board.text(0.44, rows[0] - 0.41, "image $I$", _SMALL)
    board.shape(0.44, rows[0] - 0.54, "image")
    board.arrow((0.76, rows[0]), (1.13, rows[0]))
    note = "Haar wavelets:\n4 sub-bands\n× 3 colours;\neach level\nsplits LL of the\none before"
    board.text(0.44, 3.47, note, linespacing=1.3)

    for level, y in enumerate(rows, 1):
        path = f"encoder.feature_extraction.{level - 1}"
        pool = f"encoder.pools.{level - 1}"
        board.picture(1.38, y, 0.46, _mosaic(board.steps[path].input[0]))
        board.arrow((1.61, y), (2.44, y))
        board.shape(2.0, y + 0.08, f"bands_{level}")
        board.box(2.88, y, 0.88, 0.4, _TRAINED)
        board.text(2.88, y + 0.09, rf"U-Net $\phi_{level}$", _LARGE)
        board.count(2.88, y - 0.09, path)
        board.shape(3.72, y + 0.08, path)
        factor = board.shapes[path][-1] // board.shapes[pool][-1]
        if factor > 1:
            board.arrow((3.32, y), (4.12, y))
            board.box(4.36, y, 0.48, 0.32, _DATA)
            board.text(4.36, y, f"average\npool ÷ {factor}")
            board.arrow((4.6, y), (5.26, y))
            board.shape(4.92, y + 0.08, pool)
        else:  # the coarsest level has the latent's size already
            board.arrow((3.32, y), (5.26, y))
    for upper, lower in pairwise(rows):
        board.arrow((1.38, upper - 0.23), (1.38, lower + 0.23))
        board.text(1.43, (upper + lower) / 2, "LL", ha="left")

    board.box(5.33, rows[1], 0.14, 1.66, _DATA)
    board.text(5.33, rows[1], "concatenate", rotation=90)
    board.arrow((5.4, rows[2]), (6.02, rows[2]))
    board.shape(5.69, rows[2] + 0.08, "concatenated")
    board.box(6.45, rows[2], 0.86, 0.4, _TRAINED)
    board.text(6.45, rows[2] + 0.09, r"U-Net $\mathcal{A}$", _LARGE)
    board.count(6.45, rows[2] - 0.09, "encoder.feature_aggregation")
    board.arrow((6.45, rows[2] + 0.2), (6.45, rows[0] - 0.2))
    board.text(6.38, rows[1] + 0.06, "mean and\nlog-variance", ha="right")
    board.shape(6.38, rows[1] - 0.14, "encoder.feature_aggregation", ha="right")
    taken = "sample" if board.samples else "training:\nsample;\ninference:\nmean"
    board.text(6.52, rows[1] - 0.02, taken, ha="left")
    _draw_latent(board, 6.45, rows[0], "$z_{MR}$", "z_MR", 0.8)

    _draw_frozen(board, 2.88, 5.4)
    board.arrow((0.44, rows[0] + 0.32), (0.44, 5.4), (2.13, 5.4))
    _draw_latent(board, 6.45, 5.4, "$z_I$", "z_I", 0.8)
    board.arrow((3.63, 5.4), (6.05, 5.4))
    board.loss((6.45, 5.23), (6.45, rows[0] + 0.17), (6.68, 4.88), "align")
    # over to the lower half
    board.arrow((6.85, rows[0]), (7.09, rows[0]), (7.09, 2.83), (0.82, 2.83), (0.82, 2.5))


def _draw_mapping(board: _Board) -> None:
    """The latent mapping model: down its encoder, up its decoder, a head at each of four depths."""
    rows = [2.35 - 0.43 * row for row in range(5)]
    board.frame(0.12, 0.4, 3.98, 2.73)
    board.text(1.1, 2.62, "Latent mapping model", **_TITLE)
    board.count(2.56, 2.62, "mapping", "{:,} parameters", size=_SMALL, ha="left")
    for row, y in enumerate(rows):
        path = "mapping.conv_in" if row == 0 else f"mapping.encoder.{row - 1}"
        name = "3 × 3 conv" if row == 0 else f"ResAttn {row}"
        _draw_block(board, 0.82, y, path, name)
        if row:
            board.arrow((0.82, rows[row - 1] - 0.145), (0.82, y + 0.145))
    board.arrow((1.4, rows[4]), (2.48, rows[4]), (2.48, _depth(1) - 0.145))
    for depth in range(1, 5):
        y, head = _depth(depth), f"mapping.heads.{depth - 1}"
        board.arrow((0.82, y), (1.9, y))
        _draw_block(board, 2.48, y, f"mapping.decoder.{depth - 1}", f"ResAttn {depth + 4}")
        if depth > 1:
            board.arrow((2.48, y - 0.285), (2.48, y - 0.145))
        board.arrow((3.06, y), (3.34, y))
        board.box(3.62, y, 0.56, 0.29, _TRAINED)
        board.text(3.62, y + 0.065, f"head {depth}")
        board.count(3.62, y - 0.065, head)
        board.arrow((3.9, y), (4.17, y))
        _draw_latent(board, 4.52, y, rf"$\hat{{z}}_M^{{\,({depth})}}$", head, 0.7)
    board.text(1.65, _depth(4) + 0.06, "skip")


def _draw_decoder(board: _Board) -> None:
    """The frozen decoder, the masks at the four depths, and what they are compared with."""
    middle = (_depth(1) + _depth(4)) / 2
    board.box(5.29, middle, 0.4, 1.7, _FROZEN)
    name = rf"{_SNOWFLAKE} Tiny-VAE decoder $\mathcal{{D}}_{{\mathrm{{tiny}}}}$"
    board.text(5.22, middle, name, _SMALL, rotation=90)
    board.count(5.38, middle, "vae.decoder", rotation=90)
    for depth in range(1, 5):
        y = _depth(depth)
        board.arrow((4.87, y), (5.09, y))
        board.arrow((5.49, y), (5.73, y))
        width = 1.3 if depth == 4 else 0.6
        pixels = mask_picture(board.masks[f"depth {depth}"][0], board.palette)
        board.picture(5.91, y, 0.36, pixels, linewidth=width)
    board.text(5.91, 2.58, r"prediction $\hat{M}$", _SMALL)
    board.shape(5.91, 2.45, "prediction")
    board.text(6.45, 0.93, "depths 1–3:\ntraining\nonly")
    around = {"edgecolor": _LOSS, "linestyle": _COMPARED["linestyle"], "colour": "none"}
    board.frame(4.12, _depth(1) - 0.2, 4.92, _depth(4) + 0.2, **around)
    board.frame(5.68, _depth(1) - 0.23, 6.14, _depth(4) + 0.23, **around)

    board.picture(6.83, middle, 0.5, mask_picture(board.mask[0], board.palette))
    board.text(6.83, middle + 0.45, "mask $M$", _SMALL)
    board.shape(6.83, middle + 0.32, "mask")
    board.loss((6.14, middle), (6.58, middle), (6.37, middle + 0.13), "seg")
    _draw_latent(board, 4.52, 0.24, "$z_M$", "z_M", 0.7)
    _draw_frozen(board, 5.91, 0.24)
    board.arrow((6.83, middle - 0.25), (6.83, 0.24), (6.66, 0.24))
    board.arrow((5.16, 0.24), (4.87, 0.24))
    board.loss((4.52, 0.39), (4.52, _depth(1) - 0.2), (4.72, 0.5), "lm")


def _draw_legend(board: _Board) -> None:
    for x, colour, words in ((0.2, _TRAINED, "trained"), (0.87, _FROZEN, f"{_SNOWFLAKE} frozen")):
        board.box(x, 0.27, 0.16, 0.1, colour)
        board.text(x + 0.13, 0.27, words, ha="left")
    board.arrow((1.5, 0.27), (1.75, 0.27), **_COMPARED, arrowstyle="<|-|>")
    board.text(1.82, 0.27, "loss, between what it compares", ha="left")
    trained = board.counts["encoder"] + board.counts["mapping"]
    note = f"channels × height × width; other numbers: parameters, {trained:,} of them trained"
    board.text(0.12, 0.12, note, ha="left", gid="parameters trained")


def _depth(depth: int) -> float:
    """Height of a decoder block: between the encoder block whose input it takes and the next."""
    return 0.845 + 0.43 * (depth - 1)


def _draw_block(board: _Board, x: float, y: float, path: str, name: str) -> None:
    board.box(x, y, 1.16, 0.29, _TRAINED)
    board.count(x, y + 0.065, path, name + ": {:,}")
    board.shape(x, y - 0.065, path)


def _draw_latent(board: _Board, x: float, y: float, symbol: str, name: str, width: float) -> None:
    board.box(x, y, width, 0.34, _DATA)
    board.text(x, y + 0.07, symbol, _LARGE)
    board.shape(x, y - 0.09, name)


def _draw_frozen(board: _Board, x: float, y: float) -> None:
    board.box(x, y, 1.5, 0.34, _FROZEN)
    name = rf"{_SNOWFLAKE} Tiny-VAE encoder $\mathcal{{E}}_{{\mathrm{{tiny}}}}$"
    board.text(x, y + 0.075, name, _SMALL)
    board.count(x, y - 0.085, "vae.encoder")


def _mosaic(bands: Tensor) -> np.ndarray:
    """The four sub-bands (12, h, w) in one picture, details stretched around mid-grey."""
    low, *details = bands.split(3)
    greys = [detail.mean(0, keepdim=True).expand(3, -1, -1) for detail in details]
    greys = [0.5 + grey / (2 * grey.abs().max().clamp_min(1e-6)) for grey in greys]
    horizontal, vertical, diagonal = greys
    rows = torch.cat([low, vertical], dim=2), torch.cat([horizontal, diagonal], dim=2)
    return torch.cat(rows, dim=1).clamp(0, 1).movedim(0, -1).numpy()
