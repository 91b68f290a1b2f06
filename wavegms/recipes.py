"""How the authors of the rivals train them, as data without torch: `training.recipe: published`.

Images, augmentation, budget and the choice of the epoch stay the run's.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

# Of the feature maps of nnU-Net's planner, for a batch of 12 on its reference card.
_REFERENCE, _REFERENCE_BATCH, _MOST_SHARE = 85e6, 12, 0.05

# The way out wherever a published recipe is in the way, as its numbers are not to be changed.
TAKE_COMMON = "set training.recipe to common"

Loss = Literal["bce", "weighted_bce_dice", "nnunet", "egeunet", "swin_unet", "own"]


@dataclass(frozen=True)
class Schedule:
    """The learning rate as a share of its peak, of what is done and of all: epochs, or steps.

    All is 0 as long as `training.minutes` is being measured, for the whole first epoch: a rate that
    depends on it then stays what it is at the beginning.
    """

    said: str
    share: Callable[[int, int], float] = lambda done, total: 1.0
    by_step: bool = False


@dataclass(frozen=True)
class Recipe:
    """What is published beside the network.

    `optimizer` is a class of torch.optim with its `options`; of weight decay norms and tables of
    positions are `undecayed`, if so. `loss` is one of `wavegms/training/published.py`, or a
    generative network's own. `batch_size` may follow from the side of the images and their number.
    Gradients are clipped to the norm `clip`. What predicts is the network's moving average, by at
    most the factor `average` a step. `network` is built in the variant's place. One that is
    `pretrained` begins, as published, from ImageNet's weights.
    """

    loss: Loss
    optimizer: Literal["SGD", "Adam", "AdamW"]
    learning_rate: float
    batch_size: int | Callable[[int, int], int]
    schedule: Schedule = Schedule("constant")
    weight_decay: float = 0.0
    options: Mapping[str, Any] = field(default_factory=dict)
    undecayed: bool = False
    clip: float | None = None
    average: float | None = None
    network: str | None = None
    pretrained: bool = False

    def batch_size_for(self, side: int, images: int) -> int:
        """For a side in pixels and a number of training images."""
        known = isinstance(self.batch_size, int)
        return self.batch_size if known else self.batch_size(side, images)

    def described(self, begins: str | None) -> dict[str, Any]:
        """What a card says of it beside the values in the place of parameters.

        `begins` names the weights that were begun from, None for random ones.
        """
        wanted = ("loss", "optimizer", "options", "undecayed", "clip", "average", "network")
        said = {name: value for name in wanted if (value := getattr(self, name))}
        said["options"] = ", ".join(f"{name} {value}" for name, value in self.options.items())
        from_imagenet = ", where the published begins from ImageNet's" if self.pretrained else ""
        said["begins"] = f"from {begins}" if begins else f"from random weights{from_imagenet}"
        said["schedule"] = self.schedule.said
        return {name: value for name, value in said.items() if value}


def cosine(done: int, total: int, *, period: int, floor: float, restarts: bool) -> float:
    """From 1 to `floor` in a `period`, then anew from 1, or up again as slowly."""
    place = done % period if restarts else done
    return floor + (1 - floor) * (1 + math.cos(math.pi * place / period)) / 2


def polynomial(done: int, total: int, *, power: float, warmup: int = 0) -> float:
    """(1 - done / total)^power, below a line from 0 to 1 for the steps of a warm-up."""
    rising = min(1.0, (done + 1) / warmup) if warmup else 1.0
    return rising * (1 - done / total if total else 1.0) ** power


def one_cycle(done: int, total: int, *, rising: float = 0.1, first: float = 1 / 25) -> float:
    """A cosine up for a share of all steps, then one down to 10,000 times below the first."""
    if not total:
        return first
    top, end = rising * total - 1, total - 1
    if done <= top:
        low, high, place = first, 1.0, done / max(top, 1e-9)
    else:
        low, high, place = 1.0, first / 1e4, (done - top) / (end - top)
    return high + (low - high) * (1 + math.cos(math.pi * place)) / 2


def planned_widths(side: int) -> tuple[int, ...]:
    """nnU-Net's rule for depth: a side in pixels is halved as long as 4 or more are left.

    It must divide, too, where nnU-Net would pad.
    """
    stages = 1
    while side >= 8 and side % 2 == 0:
        side, stages = side // 2, stages + 1
    return tuple(min(512, 32 * 2**stage) for stage in range(stages))


def planned_batch(side: int, images: int) -> int:
    """nnU-Net's rule: what fits beside its reference, 5 % of the training pixels, 2 or more.

    Counted are the values of all feature maps of one image: two convolutions a stage on the way
    down, three on the way up, and the logits of two classes.
    """
    widths = planned_widths(side)
    maps = [width * (side // 2**stage) ** 2 for stage, width in enumerate(widths)]
    values = 2 * sum(maps) + 3 * sum(maps[:-1]) + 2 * side**2
    fitting = round(_REFERENCE / values * _REFERENCE_BATCH)
    return max(2, min(fitting, round(_MOST_SHARE * images)))


_POLY = partial(polynomial, power=0.9)
_RESTARTS = Schedule(
    "cosine to a tenth, anew every 10 epochs", partial(cosine, period=10, floor=0.1, restarts=True)
)

MULTIRESUNET = Recipe("bce", "Adam", 1e-3, 10, options={"eps": 1e-7})
ACC_UNET = Recipe("weighted_bce_dice", "Adam", 1e-3, 12, _RESTARTS)
UCTRANSNET = Recipe("weighted_bce_dice", "Adam", 1e-3, 4, _RESTARTS)
NNUNET = Recipe(
    "nnunet",
    "SGD",
    1e-2,
    planned_batch,
    Schedule("(1 - epoch / epochs)^0.9", _POLY),
    weight_decay=3e-5,
    options={"momentum": 0.99, "nesterov": True},
    clip=12.0,
    network="nnunet_planned",
)
EGEUNET = Recipe(
    "egeunet",
    "AdamW",
    1e-3,
    8,
    Schedule(
        "cosine to a hundredth in 50 epochs, and up again in 50",
        partial(cosine, period=50, floor=0.01, restarts=False),
    ),
    weight_decay=1e-2,
)
SWIN_UNET = Recipe(
    "swin_unet",
    "SGD",
    0.05,
    24,
    Schedule("(1 - step / steps)^0.9", _POLY, by_step=True),
    weight_decay=1e-4,
    options={"momentum": 0.9},
    pretrained=True,
)
SME_SWIN_UNET = Recipe(
    "swin_unet",
    "Adam",
    1e-3,
    12,
    Schedule("one cycle over all steps, a tenth of them up", one_cycle, by_step=True),
    pretrained=True,
)
MEDSEGDIFF_V2 = Recipe("own", "AdamW", 1e-4, 8, average=0.9999)
SDSEG = Recipe(
    "own",
    "AdamW",
    4e-5,
    4,
    Schedule(
        "linear warm-up for 10,000 steps",
        partial(polynomial, power=0.0, warmup=10_000),
        by_step=True,
    ),
    weight_decay=1e-2,
    average=0.9999,
)
GSS = Recipe(
    "own",
    "AdamW",
    1.2e-4,
    32,
    Schedule(
        "1 - step / steps, and a linear warm-up for 1,500 steps",
        partial(polynomial, power=1.0, warmup=1500),
        by_step=True,
    ),
    weight_decay=1e-2,
    undecayed=True,
)
