"""Which values of a dataset's masks are foreground: decided once, from all of its masks together.

A mask alone does not tell. Its grey of 100 may be a lesion, its 255 what nobody annotated, its
128 what one of two raters saw. All masks together mostly do; where they do not, nothing is guessed.
"""

from collections.abc import Sequence
from itertools import chain, pairwise

import numpy as np

from wavegms.images import Ranges

# A value is flat if this share of its pixels lies among its like: labels are, soft borders are not.
_FLAT = 0.1

# At most so many pixels, as a share of the foreground, are believed to be soft borders.
_BORDER = 0.75

# Raters' masks lie in one another by steps, and few: across an edge, values differ by little more
# than one step. A soft border leaps over some.
_STEPS, _LEAP = 8, 1.5

# From so many levels on, numbers are of single things such as cells, and not of classes or raters,
# if most numbers up to the last are there; and from so many on whatever they are.
_MANY, _ANY = 8, 32

# Raters' masks lie in one another: less of a level's border than this is on the background.
_NESTED = 0.25

# In a soft border no square of four pixels is alike to this share of a mask's range. A label of two
# pixels' thickness has such squares: in JPEG of quality 30, 5 % of its pixels lie in them.
_ALIKE, _CALM = 0.04, 0.04

# Close to black or white, where soft borders fade and JPEG rustles, a label is of one value: most
# of its pixels lie in squares of it (of few values, a fifth), several times as many as of the next.
_FEW_VALUES, _LEAST, _THICK, _PEAK = 16, 20, (0.2, 0.8), 4

# One of many numbers is of no single thing if it is so many times as large (the last two values of
# a depth: half as many times) and lies at others, or touches this share of all others in its masks,
# which are at least so many.
_LARGE, _BESIDE, _TOUCHING, _AMONG = 4, 0.2, 0.7, 4

_COUNTS = (
    "count",
    "inside",
    "edges",
    "bare",
    "leaps",
    "thick",
    "calm",
    "held",
    "touched",
    "others",
)


class Doubt(Exception):
    """The masks do not tell. The message lists what they hold; `choices` are ways to say it.

    A choice is the values that are foreground and those that are ignored.
    """

    def __init__(self, found: str, choices: Sequence[tuple[Ranges, Ranges]]):
        super().__init__(found)
        self.choices = choices


class Values:
    """What the masks of one depth hold, counted over all of them.

    By grey value: `count` of pixels, `inside` of those whose four neighbours are the same, `thick`
    of those in a square of four that are the same, `calm` likewise that are nearly the same;
    `edges` to other values, `bare` those of the edges that are to 0, `leaps` by how much values
    differ across all of them; `held` the masks that have the value, and in these, the numbers of
    other values above 0 and of those it touches, `others` and `touched`. `most` is the largest
    number of values that one mask has.
    """

    def __init__(self, depth: int):
        self.depth = depth
        for name in _COUNTS:
            setattr(self, name, np.zeros(1 << depth, np.int64))
        self.files = self.most = 0

    @classmethod
    def of(cls, values: np.ndarray) -> "Values":
        """Those of one mask, uint8 or uint16 (H, W)."""
        self = cls(8 * values.dtype.itemsize)
        inside = np.ones(values.shape, bool)
        pairs = []
        for one, other in ((np.s_[:, 1:], np.s_[:, :-1]), (np.s_[1:], np.s_[:-1])):
            differ = values[one] != values[other]
            inside[one] &= ~differ
            inside[other] &= ~differ
            pairs += [(values[one][differ], values[other][differ])]
        self.count = self._counted(values)
        self.inside = self._counted(values[inside])
        for one, other in pairs:
            self.edges += self._counted(one) + self._counted(other)
            self.bare += self._counted(one[other == 0]) + self._counted(other[one == 0])
            leaps = np.abs(one.astype(np.int64) - other)
            self.leaps += self._counted(one, leaps) + self._counted(other, leaps)
        self.held = (self.count > 0).astype(np.int64)
        self.others = self.held * (self.held[1:].sum() - 1)
        codes = np.concatenate([one.astype(np.int64) << 16 | other for one, other in pairs])
        codes = np.unique(np.concatenate([codes, (codes & 0xFFFF) << 16 | codes >> 16]))
        self.touched = self._counted((codes >> 16)[codes & 0xFFFF > 0])
        self.thick, self.calm = self._in_squares(values, 0), self._in_squares(values, _ALIKE)
        self.files, self.most = 1, np.count_nonzero(self.count)
        return self

    def _in_squares(self, values: np.ndarray, share: float) -> np.ndarray:
        """Pixels in a square of four whose values differ by no more than a share of the range."""
        squares = np.stack([values[:-1, :-1], values[:-1, 1:], values[1:, :-1], values[1:, 1:]])
        alike = squares.max(0) - squares.min(0) <= share * (int(values.max()) - int(values.min()))
        within = np.zeros(values.shape, bool)
        for rows in (np.s_[:-1], np.s_[1:]):
            for columns in (np.s_[:-1], np.s_[1:]):
                within[rows, columns] |= alike
        return self._counted(values[within])

    def _counted(self, values: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
        return np.bincount(values.ravel(), weights, 1 << self.depth).astype(np.int64)

    def __add__(self, other: "Values") -> "Values":
        both = Values(self.depth)
        for name in _COUNTS:
            setattr(both, name, getattr(self, name) + getattr(other, name))
        both.files, both.most = self.files + other.files, max(self.most, other.most)
        return both

    def without(self, ignored: Ranges) -> "Values":
        """The same less some values."""
        rest = self + Values(self.depth)
        for low, high in ignored:
            for name in _COUNTS:
                getattr(rest, name)[low : high + 1] = 0
        return rest

    def listed(self) -> str:
        """The values with their share of the pixels."""
        present = np.flatnonzero(self.count)
        shares = 100 * self.count / max(1, self.count.sum())
        largest = sorted(sorted(present, key=lambda v: -self.count[v])[:_MANY])
        named = ", ".join(f"{v} ({shares[v]:.3g} %)" for v in largest)
        more = f" and {len(present) - len(largest)} more values" if len(present) > _MANY else ""
        return f"{named}{more}"


def decide(values: Values) -> tuple[Ranges, str]:
    """The foreground of masks of one depth, and the evidence for it.

    Raises:
        Doubt: more than one reading makes sense.
    """
    full = (1 << values.depth) - 1
    present = np.flatnonzero(values.count)
    if len(present) == 1:  # colours of one brightness are such, too
        raise _doubt(values, present)
    if len(present) == 2:
        above = present[1:]
        return as_ranges(above) or ((1, full),), f"the masks have only {values.listed()}"
    flat = _flat(values, present)
    if len(flat) > 2 and 2 * len(flat) >= len(present):
        found = _labels(values, present)
        if found:
            return found
    return _soft(values, present, flat)


def _flat(values: Values, present: np.ndarray) -> np.ndarray:
    return present[values.inside[present] >= _FLAT * values.count[present]]


def _labels(values: Values, present: np.ndarray) -> tuple[Ranges, str] | None:
    """Areas of one value each, on 0; None if they cannot all be taken for foreground."""
    full = (1 << values.depth) - 1
    labels = present[1:]
    if present[0] != 0:
        return None
    if values.most <= 2:
        return ((1, full),), f"each mask has one value beside 0; of all {values.listed()}"
    numbered = labels[-1] == len(labels)
    far_off = labels[-1] > 2 * labels[-2]  # as 255 for what was not annotated
    things = labels[:-1] if far_off else labels
    many = len(things) >= _MANY and (2 * len(things) >= things[-1] or len(things) >= _ANY)
    if not numbered and far_off and many:
        raise _doubt(values, present, labels[-1:])
    if not numbered and not many:
        return None
    large = labels[values.count[labels] >= 0.01 * values.count[labels].sum()]
    nested = values.bare[large] < _NESTED * values.edges[large]
    if len(labels) <= 2 * _MANY and nested.any():
        return None
    if len(labels) >= _MANY and (unlike := _unlike(values, labels)):
        raise _doubt(values, present, unlike)
    kind = "numbers of single things or classes" if len(labels) < _MANY else "numbers of things"
    return ((1, full),), f"{kind} on a background of 0, all taken together: {values.listed()}"


def _unlike(values: Values, labels: np.ndarray) -> list[int]:
    """Of the numbers of many things, those that are of no single thing as the others are."""
    held, others, edges = (
        np.maximum(1, part[labels]) for part in (values.held, values.others, values.edges)
    )
    area = values.count[labels] / held
    reserved = labels >= (1 << values.depth) - 2
    large = area > np.where(reserved, _LARGE / 2, _LARGE) * np.median(area)
    touching = values.touched[labels] / others > _TOUCHING
    unlike = large & (values.bare[labels] < (1 - _BESIDE) * edges)
    unlike |= touching & (values.others[labels] >= _AMONG * held) & (held > 2)
    # the last number: far from the one before, or in more masks than the next lower ones
    gaps = np.diff(labels)
    unlike[-1] |= gaps[-1] > max(_MANY, 4 * gaps[:-1].mean())
    unlike[-1] |= held[-1] > 2 * max(1, *held[-1 - len(labels) // 4 : -1])
    return labels[unlike].tolist()


def _soft(values: Values, present: np.ndarray, flat: np.ndarray) -> tuple[Ranges, str]:
    """Two values with all between them at borders, as scaling or JPEG leaves them."""
    full = (1 << values.depth) - 1
    count, inside = values.count, values.inside
    groups = np.split(flat, np.flatnonzero(np.diff(flat) > full // 16) + 1) if len(flat) else []
    weights = [inside[group].sum() for group in groups]
    least = 0.03 * min(weights[0], max(weights[1:])) if len(groups) > 1 else 0
    groups = [
        group
        for place, (group, weight) in enumerate(zip(groups, weights, strict=True))
        if place == 0 or weight >= least
    ]
    if len(groups) == 1 and len(flat) == 2:  # labels that lie close, such as 0 and 1
        groups = [flat[:1], flat[1:]]
    if len(groups) < 2 and len(flat) <= 1:  # lesions too small to have an inside
        upper = present[2 * present > int(present[0]) + int(present[-1])]
        groups = [present[:1], upper]
    if len(groups) != 2:
        raise _doubt(values, present)
    low, high = (int(group[count[group].argmax()]) for group in groups)
    margin = (high - low) / 8
    at_low = count[: int(low + margin) + 1].sum()
    at_high = count[int(np.ceil(high - margin)) : int(high + (high - low) / 2) + 1]
    beyond = count[int(high + (high - low) / 2) + 1 :].sum()
    middle = np.s_[int(low + margin) + 1 : int(np.ceil(high - margin))]
    between = count[middle]
    foreground, border = at_high.sum(), between.sum()
    few = len(present) <= _FEW_VALUES  # no noise: whatever is between is there on purpose
    rungs = np.s_[low + 1 : high] if few else middle
    steps = np.count_nonzero(count[rungs])
    leap = values.leaps[rungs].sum() / max(1, values.edges[rungs].sum())
    stepped = 0 < steps <= _STEPS and leap < _LEAP * (high - low) / (steps + 1)
    hidden = inside[groups[0]].sum() - inside[low]  # a label that lies close to the background
    smaller = min(at_low, foreground)
    if (
        beyond > (0 if few else 0.01 * foreground)
        or border > _BORDER * foreground
        or (stepped and count[rungs].sum() > (_LEAST if steps == 1 else 0.03 * smaller))
        or (len(groups[0]) > 1 and hidden > 0.2 * inside[groups[1]].sum())
        or not at_low
        or _third(values, low, high, middle)
        # as JPEG leaves two colours that are equally bright
        or (low > full // 2 and high - low < full // 16)
    ):
        raise _doubt(values, present)
    half = full // 2 if high >= 0.97 * full else (low + high) // 2
    return ((half + 1, full),), (
        f"{low} and {high} with soft borders between them ({100 * border / foreground:.2g} % as "
        "many pixels as foreground)"
    )


def _third(values: Values, low: int, high: int, middle: slice) -> bool:
    """Whether what lies between two values is a label, and not a border: it is thick, and alike."""
    calm = values.calm[middle].sum()
    if calm >= max(_LEAST, _CALM * values.count[middle].sum()):
        return True
    few = np.count_nonzero(values.count) <= _FEW_VALUES
    thick = values.thick.copy()
    thick[[low, high]] = 0
    beside = np.pad(thick, 2)
    beside = np.max([beside[:-4], beside[1:-3], beside[3:-1], beside[4:]], axis=0)
    found = (thick >= _LEAST) & (thick >= _THICK[not few] * values.count)
    return bool((found & ((thick >= _PEAK * beside) | few))[low:high].any())


def _doubt(values: Values, present: np.ndarray, unlike: Sequence[int] = ()) -> Doubt:
    full = (1 << values.depth) - 1
    if len(unlike):
        rest = np.setdiff1d(np.arange(1, full + 1), unlike)
        choices = [(as_ranges(rest), as_ranges(unlike)), (((1, full),), ())]
        return Doubt(values.listed(), choices)
    # each level with the values that belong to it, from the background on
    levels = _levels(values, present)
    ends = [0, *((one + other) // 2 + 1 for one, other in pairwise(levels)), full + 1]
    ranges = [((level, level),) for level in levels]
    if len(present) > len(levels):
        ranges = [((low, end - 1),) for low, end in pairwise(ends)]
    if values.count[levels[-1]] > values.count[levels[0]]:
        ranges.reverse()
    _, *labels = ranges
    if len(levels) < 2:
        above = int(present[0]) + int(present[-1])
        labels = [((int(present[0]) + 1, above // 2),), ((above // 2 + 1, int(present[-1])),)]
    below, top = _joined(labels[:-1]), _joined(labels[-1:])
    upper = _joined(labels[len(labels) // 2 :]) if len(labels) > 2 else top
    choices = [(below, top), (top, below), (_joined(labels), ())]
    far_off = top and below and top[0][0] > 2 * below[-1][1]
    if len(labels) != 2 or len(levels) < 2:
        choices = [(upper, ()), (_joined(labels), ())]
        choices = [(below, top), *choices[1:]] if far_off else choices
    elif not far_off:
        choices[:2] = choices[1::-1]
    return Doubt(values.listed(), choices)


def _levels(values: Values, present: np.ndarray) -> list[int]:
    """The values that areas have; of few values, all of them; of many such, the first alone."""
    if len(present) <= _FEW_VALUES:
        return present.tolist()
    if 2 * len(_flat(values, present)) >= len(present):
        return [int(present[0])]
    rest, found = values.calm.copy(), []
    reach = max(1, int(present[-1] - present[0]) // 8)
    while len(found) <= _STEPS and rest.max() >= _LEAST:
        found.append(int(rest.argmax()))
        rest[max(0, found[-1] - reach) : found[-1] + reach + 1] = 0
    return sorted(found) or [int(present[0])]


def _joined(parts: Sequence[Ranges]) -> Ranges:
    """Ranges side by side become one."""
    joined: list[tuple[int, int]] = []
    for low, high in sorted(chain(*parts)):
        if joined and low == joined[-1][1] + 1:
            joined[-1] = joined[-1][0], high
        else:
            joined.append((low, high))
    return tuple(joined)


def as_ranges(values: np.ndarray) -> Ranges:
    """Ascending values as ranges of those side by side."""
    runs = np.split(values, np.flatnonzero(np.diff(values) > 1) + 1) if len(values) else []
    return tuple((int(run[0]), int(run[-1])) for run in runs)
