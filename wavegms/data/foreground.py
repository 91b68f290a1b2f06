"""Which values of a dataset's masks are foreground: decided once, from all of its masks together.

A mask alone does not tell. Its grey of 100 may be a lesion, its 255 what nobody annotated, its
128 what one of two raters saw. All masks together mostly do; where they do not, nothing is guessed.
"""

from collections.abc import Sequence

import numpy as np

from wavegms.images import Ranges, written_ranges

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


_COUNTS = ("count", "inside", "edges", "bare", "leaps")


class Doubt(Exception):
    """The masks do not tell. The message lists what they hold; `choices` are ways to say it."""

    def __init__(self, found: str, choices: Sequence[tuple[str, str]]):
        super().__init__(found)
        self.choices = choices


class Values:
    """What the masks of one depth hold, counted over all of them.

    By grey value: `count` of pixels, `inside` of those whose four neighbours are the same, `edges`
    to other values, `bare` those of the edges that are to 0, `leaps` by how much values differ
    across all of them. `most` is the largest number of values
    that one mask has.
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
        for one, other in (
            (np.s_[:, 1:], np.s_[:, :-1]),
            (np.s_[1:], np.s_[:-1]),
        ):
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
        self.files, self.most = 1, np.count_nonzero(self.count)
        return self

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
        return _as_ranges(above) or ((1, full),), f"the masks have only {values.listed()}"
    flat = present[values.inside[present] >= _FLAT * values.count[present]]
    if len(flat) > 2 and 2 * len(flat) >= len(present):
        found = _labels(values, present)
        if found:
            return found
    return _soft(values, present, flat)


def _labels(values: Values, present: np.ndarray) -> tuple[Ranges, str] | None:
    """Areas of one value each, on 0; None if they cannot all be taken for foreground."""
    full = (1 << values.depth) - 1
    labels = present[1:]
    if present[0] != 0:
        return None
    if values.most <= 2:
        return ((1, full),), f"each mask has one value beside 0; of all {values.listed()}"
    numbered = labels[-1] == len(labels)
    dense = 2 * len(labels) >= labels[-1] and len(labels) >= _MANY
    far_off = labels[-1] > 2 * labels[-2]  # as 255 for what was not annotated
    if not numbered and (far_off or not (dense or len(labels) >= _ANY)):
        return None
    large = labels[values.count[labels] >= 0.01 * values.count[labels].sum()]
    nested = values.bare[large] < _NESTED * values.edges[large]
    if len(labels) <= 2 * _MANY and nested.any():
        return None
    kind = "numbers of single things or classes" if len(labels) < _MANY else "numbers of things"
    return ((1, full),), f"{kind} on a background of 0, all taken together: {values.listed()}"


def _soft(values: Values, present: np.ndarray, flat: np.ndarray) -> tuple[Ranges, str]:
    """Two values with all between them at borders, as scaling or JPEG leaves them."""
    full = (1 << values.depth) - 1
    count, inside = values.count, values.inside
    groups = np.split(flat, np.flatnonzero(np.diff(flat) > full // 16) + 1) if len(flat) else []
    weights = [inside[group].sum() for group in groups]
    groups = [
        group
        for place, (group, weight) in enumerate(zip(groups, weights, strict=True))
        if place == 0 or weight >= 0.03 * max(weights[1:])
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
    steps = np.count_nonzero(between)
    leap = values.leaps[middle].sum() / max(1, values.edges[middle].sum())
    stepped = 0 < steps <= _STEPS and leap < _LEAP * (high - low) / (steps + 1)
    hidden = inside[groups[0]].sum() - inside[low]  # a label that lies close to the background
    if (
        beyond > (0 if len(present) <= 2 * _MANY else 0.01 * foreground)
        or border > _BORDER * foreground
        or (stepped and border > 0.03 * foreground)
        or (len(groups[0]) > 1 and hidden > 0.2 * inside[groups[1]].sum())
        or not at_low
        # as JPEG leaves two colours that are equally bright
        or (low > full // 2 and high - low < full // 16)
    ):
        raise _doubt(values, present)
    half = full // 2 if high >= 0.97 * full else (low + high) // 2
    return ((half + 1, full),), (
        f"{low} and {high} with soft borders between them ({100 * border / foreground:.2g} % as "
        "many pixels as foreground)"
    )


def _doubt(values: Values, present: np.ndarray) -> Doubt:
    full = (1 << values.depth) - 1
    labels = present[present > 0]
    choices = [(f"{full // 2 + 1}-{full}", ""), (f"1-{full}", "")]
    others, top = labels[:-1], labels[-1:]
    below, above = (written_ranges(_as_ranges(part)) for part in (others, top))
    if len(others) and len(labels) <= _MANY and top[0] == full and 2 * others[-1] <= full:
        choices = [(below, above), (f"{below} {above}", "")]
    elif len(labels) == 2:
        choices = [(above, below), (f"{below} {above}", "")]
    return Doubt(values.listed(), choices)


def _as_ranges(values: np.ndarray) -> Ranges:
    runs = np.split(values, np.flatnonzero(np.diff(values) > 1) + 1) if len(values) else []
    return tuple((int(run[0]), int(run[-1])) for run in runs)
