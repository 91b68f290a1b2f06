"""How a dataset's files are to be read, decided once from all of them: masks, greys, turns.

A file alone does not tell which of its values are foreground, which greys are black and white, or
whether a mask was drawn before or after EXIF turned its image. What is found is said with its
evidence; where files allow more than one reading, it is asked for.
"""

from collections import Counter
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain, zip_longest
from pathlib import Path
from threading import Lock

import numpy as np
from PIL import Image
from scipy import ndimage

from wavegms.config import ReadingParams
from wavegms.data.cases import SPACING, Case
from wavegms.data.classes import in_folders, values_of
from wavegms.data.foreground import Doubt, Values, decide
from wavegms.data.pairs import Reading, fits_size, for_each_case, mask_ways
from wavegms.errors import InputError, listed
from wavegms.images import (
    BACKGROUND,
    DEEP,
    FOREGROUND,
    MaskRule,
    Ranges,
    Scale,
    depth_of_mode,
    mask_values,
    of_class,
    open_image,
    orientation_of,
    parse_ranges,
    peek,
    require_range,
    resize_image,
    resize_mask,
    upright,
    used_range,
    written_ranges,
)

# 8 bits are stretched only where all images of a dataset together use less than half of them.
_HALF_OF_EIGHT_BITS = 128

# Pixels beyond this share on either side are taken for errors, if the range were four times as
# wide with them.
_ODD_PIXELS = 1e-4

# Of images that EXIF turns, how many must agree on how their masks lie, and how much better.
_AGREE, _BETTER = 0.8, 1.5

# A single mask that fits the other way so much better is asked about: on BUSI, by chance, 1 in 200.
_SURELY = 2

# Contrast, as a share of the variance, that is none.
_NO_CONTRAST = 0.02

# A share of masks that may be the odd ones.
_ODD_MASKS = 0.2

# Longer side at which masks are tried on images, pixels.
_FIT_SIDE = 256


def find_reading(
    name: str,
    cases: Sequence[Case],
    wanted: ReadingParams | None = None,
    masks_at_another_size: bool = False,
) -> Reading:
    """Decide how the files of a dataset are read, as far as `wanted` does not say it.

    Files that cannot be read count for nothing here: whoever reads them next names them.

    Raises:
        InputError: the files allow more than one reading, or have nothing that `wanted` names.
    """
    wanted = wanted or ReadingParams()
    for key in ("plane", "context"):
        if key in wanted.model_dump(exclude_defaults=True):
            raise InputError(
                f"reading.{name}.{key} is of volumes, and these are pictures: remove it."
            )
    survey = _Survey()
    for_each_case(survey.look, cases, f"Looking at {name}")
    by_folder = in_folders(name, cases, wanted.classes)
    labelled = wanted.classes and not by_folder
    masks, evidence = (_label_rule if labelled else _mask_rule)(name, cases, survey, wanted)
    scale, said = _scale_of(survey)
    stored, alike, turns = _drawn_on(name, survey, masks, wanted, masks_at_another_size)
    spacing, spaced = _spacing_of(name, cases, wanted)
    told = (*evidence, *said, *turns, *spaced)
    return Reading(masks, scale, stored, alike, told, spacing, tuple(wanted.classes), by_folder)


def _spacing_of(
    name: str, cases: Sequence[Case], wanted: ReadingParams
) -> tuple[tuple[float, float] | None, list[str]]:
    """The spacing of images that have none of their own, and what is known of all."""
    own = sum(case.spacing is not None for case in cases)
    said = [f"spacing: of {own} of {len(cases)} images by {SPACING}"] if own else []
    if not wanted.spacing or own == len(cases):
        return None, said
    rows, columns = wanted.spacing[0], wanted.spacing[-1]
    both = f"{rows:g}" if rows == columns else f"{rows:g} (rows) and {columns:g} (columns)"
    rest = " of the others" if own else ""
    return (rows, columns), [*said, f"spacing{rest}: {both} mm, as reading.{name} says"]


class _Survey:
    """What the files of a dataset hold together, however many threads look at them."""

    def __init__(self) -> None:
        self._lock = Lock()
        self.plain = {depth: Values(depth) for depth in (8, 16)}
        # of files with an alpha channel, what is in the colours and in alpha
        self.colour, self.alpha = Values(8), Values(8)
        self.colour_varies = self.alpha_varies = 0
        # one case for each mask that EXIF turns otherwise than its image; and those it turns alike
        self.turned: list[Case] = []
        self.turned_alike: list[Case] = []
        self.greys: dict[int, tuple[int, int]] = {}  # lowest and highest, by depth
        self.sixteen = np.zeros(1 << 16, np.int64)  # pixels of each value
        self.deep: list[Case] = []  # 16 bits a colour, see `DEEP`

    def look(self, case: Case) -> None:
        """Adds one case."""
        mode, orientation = peek(case.image)
        self._look_at_image(case, depth_of_mode(mode))
        for path in case.masks:
            mask = open_image(path)
            values, alpha = mask_values(mask)
            held = Values.of(values)
            clear = None if alpha is None else Values.of(alpha)
            with self._lock:
                if orientation != (own := orientation_of(mask)):
                    self.turned.append(replace(case, masks=(path,)))
                elif own != 1:
                    self.turned_alike.append(replace(case, masks=(path,)))
                if clear is None:
                    self.plain[held.depth] += held
                    continue
                self.colour, self.alpha = self.colour + held, self.alpha + clear
                self.colour_varies += held.most > 1
                self.alpha_varies += clear.most > 1

    def _look_at_image(self, case: Case, depth: int) -> None:
        low, high = self.greys.get(8, (0, 0))
        if depth == 8 and high - low >= _HALF_OF_EIGHT_BITS:
            return  # whatever else comes, 8 bits are taken as they are
        image = open_image(case.image)
        require_range(image)
        pixels = np.asarray(image if depth == 16 else image.convert("RGB"))
        with self._lock:
            low, high = self.greys.get(depth, (pixels.min(), pixels.max()))
            if image.info[DEEP]:
                self.deep.append(case)
            self.greys[depth] = int(min(low, pixels.min())), int(max(high, pixels.max()))
            if depth == 16:
                self.sixteen += np.bincount(pixels.ravel(), minlength=1 << 16)


def _label_rule(
    name: str, cases: Sequence[Case], survey: _Survey, wanted: ReadingParams
) -> tuple[MaskRule, tuple[str, ...]]:
    rule = MaskRule({}, parse_ranges(wanted.ignore), classes=values_of(wanted.classes))
    rest = f", and {written_ranges(rule.ignored)} is ignored" if rule.ignored else ""
    return rule, (f"masks: label maps of the classes {rule}{rest}",)


def _mask_rule(
    name: str, cases: Sequence[Case], survey: _Survey, wanted: ReadingParams
) -> tuple[MaskRule, tuple[str, ...]]:
    in_alpha = survey.alpha_varies > 0
    if in_alpha and survey.colour_varies:
        # transparency around a drawing of several colours is no mask; all files must be alike
        in_alpha = False
        if survey.colour_varies < survey.alpha.files:
            raise InputError(
                f"{survey.alpha.files - survey.colour_varies} masks of {name} are one colour with "
                f"an alpha channel, {survey.colour_varies} have the mask in their colours: save "
                "all of them as grey without alpha."
            )
    found = dict(survey.plain)
    found[8] = found[8] + (survey.alpha if in_alpha else survey.colour)
    found = {depth: values for depth, values in found.items() if values.files}
    foreground, ignored = (parse_ranges(part) for part in (wanted.foreground, wanted.ignore))
    for key, ranges in (("foreground", foreground), ("ignore", ignored)):
        for low, high in ranges:
            if found and not any(one.count[low : high + 1].any() for one in found.values()):
                held = "; ".join(values.listed() for values in found.values())
                raise InputError(
                    f"reading.{name}.{key} names {written_ranges(((low, high),))}, but no mask has "
                    f"it (they have {held}): correct it, or leave it out."
                )
    if foreground:
        rule = MaskRule(dict.fromkeys((8, 16), foreground), ignored, in_alpha)
        rest = f", and {written_ranges(ignored)} is ignored" if ignored else ""
        said = f"masks: foreground is {written_ranges(foreground)}{rest}, as reading.{name} says"
        return rule, (said,)
    decided, evidence, doubts = {}, [], {}
    for depth, values in found.items():
        try:
            decided[depth], why = decide(values.without(ignored))
        except Doubt as doubt:
            doubts[depth] = doubt
            continue
        where = " in the alpha channel" if in_alpha and depth == 8 else ""
        evidence.append(
            f"masks: foreground is {written_ranges(decided[depth])}{where}, as {why}; "
            f"{values.files} files"
        )
    if doubts:
        raise _question(name, cases, doubts, MaskRule(decided, ignored, in_alpha))
    # no mask could be read: whoever reads them next says why
    return MaskRule(decided, ignored, in_alpha), tuple(evidence)


def _question(
    name: str, cases: Sequence[Case], doubts: Mapping[int, Doubt], rule: MaskRule
) -> InputError:
    """Asks what the masks do not tell, by choices that all of them allow; names the odd ones."""
    look = partial(_alone, depths=doubts, rule=rule)
    looked, _ = for_each_case(look, cases, "Looking at each mask")
    decided = chain(*rule.foreground.values())
    ways = []
    for parts in zip_longest(*(doubt.choices for doubt in doubts.values()), fillvalue=((), ())):
        foreground = tuple(sorted({*decided, *chain(*(one for one, _ in parts))}))
        ignored = tuple(sorted({*rule.ignored, *chain(*(other for _, other in parts))}))
        choice = MaskRule(dict.fromkeys((8, 16), foreground), ignored)
        kinds = [np.concatenate([choice.of(one) for one in case.held]) for case in looked]
        allowed = all((kind == FOREGROUND).any() for kind in kinds)
        if allowed and any((kind == BACKGROUND).any() for kind in kinds):
            ignoring = f" --ignore {written_ranges(ignored)}" if ignored else ""
            ways.append(f"--foreground {written_ranges(foreground)}{ignoring}")
    ways = [*dict.fromkeys(ways)]
    said = (
        f"The masks of {name} have the values {'; '.join(map(str, doubts.values()))}, and which of "
        "them are foreground cannot be told: "
    )
    if ways:
        said += (
            f"say so to `add`, by {' or '.join(ways)}, or by reading.{name}.foreground and "
            f"reading.{name}.ignore in params.yaml."
        )
    else:
        said += (
            "save them as black and white, 0 and 255, or name the values of those that are: "
            f"--foreground to `add`, reading.{name}.foreground in params.yaml."
        )
    return InputError(said + _odd_masks(looked, doubts, rule))


@dataclass(frozen=True)
class _Alone:
    """The masks of one case by themselves."""

    held: list[np.ndarray]  # the values of each
    read: list[tuple[Path, Ranges | None]]  # those in doubt: as each would be read, None if it asks


def _alone(case: Case, depths: Container[int], rule: MaskRule) -> _Alone:
    held, read = [], []
    for path in case.masks:
        values = _told(path, rule)
        held.append(np.flatnonzero(values.count).astype(f"uint{values.depth}"))
        if values.depth in depths:
            try:
                read.append((path, decide(values.without(rule.ignored))[0]))
            except Doubt:
                read.append((path, None))
    return _Alone(held, read)


def _told(path: Path, rule: MaskRule) -> Values:
    values, alpha = mask_values(open_image(path))
    return Values.of(alpha if rule.alpha and alpha is not None else values)


def _odd_masks(looked: Sequence[_Alone], doubts: Mapping[int, Doubt], rule: MaskRule) -> str:
    """Names the few masks without which the others would leave nothing open, if there are such."""
    read = dict(chain(*(case.read for case in looked)))
    usual = Counter(read.values()).most_common(1)[0][0] if read else None
    for odd in (
        {path for path, ranges in read.items() if ranges != usual},
        {path for path, ranges in read.items() if ranges is None},
    ):
        if not 0 < len(odd) <= max(1, _ODD_MASKS * len(read)) or len(read) < 3:
            continue
        rest = {depth: Values(depth) for depth in doubts}
        for path in read.keys() - odd:
            values = _told(path, rule)
            rest[values.depth] += values
        try:
            found = [decide(values.without(rule.ignored))[0] for values in rest.values()]
        except Doubt:
            continue
        names = listed(sorted(odd))
        return (
            f" It is for {len(odd)} of {len(read)} masks only, {names}: without them, foreground "
            f"would be {written_ranges(tuple(chain(*found)))}, so look whether they are damaged."
        )
    return ""


def _scale_of(survey: _Survey) -> tuple[Scale, list[str]]:
    ranges, said = {}, []
    for depth, (low, high) in sorted(survey.greys.items()):
        if depth == 16:
            usual = np.flatnonzero(
                (survey.sixteen.cumsum() > _ODD_PIXELS * survey.sixteen.sum())
                & (survey.sixteen[::-1].cumsum()[::-1] > _ODD_PIXELS * survey.sixteen.sum())
            )
            if 4 * (usual[-1] - usual[0]) <= high - low and len(usual) > 1:
                low, high = int(usual[0]), int(usual[-1])
        elif high - low >= _HALF_OF_EIGHT_BITS or low == high:
            continue
        elif survey.deep:
            raise InputError(
                f"{min(case.image for case in survey.deep)} has 16 bits a colour, of which only "
                f"the upper 8 are read, and all images together use {low} to {high} of their 256 "
                "values: save them as "
                "8-bit colour, scaled to what they use."
            )
        ranges[depth] = used_range(low, high, least_bits=1)
        said.append(
            f"images of {depth} bits: their values lie between {low} and {high}, so "
            f"{ranges[depth][0]} is black and {ranges[depth][1]} white"
        )
    return Scale(ranges), said


def _drawn_on(
    name: str, survey: _Survey, rule: MaskRule, wanted: ReadingParams, scaled: bool
) -> tuple[bool, bool, list[str]]:
    """Whether masks were drawn on the stored pixels of images that EXIF turns.

    First where it turns image and mask differently, then where alike: there, yes if none tells.
    """
    stored, alike, said = False, True, []
    asked = wanted.drawn_on != "auto"
    if survey.turned and asked:
        stored = wanted.drawn_on == "stored"
    elif survey.turned:
        stored, said = _tried(name, survey.turned, rule, scaled)
    if survey.turned_alike and asked and not survey.turned:
        alike = wanted.drawn_on == "stored"
    elif survey.turned_alike:
        alike, more = _tried(name, survey.turned_alike, rule, scaled, usual=True)
        said = [*said, *more]
    if asked and (survey.turned or survey.turned_alike):
        said = [f"masks were drawn on the image as {wanted.drawn_on}, as reading.{name} says"]
    return stored, alike, said


def _tried(
    name: str, cases: Sequence[Case], rule: MaskRule, scaled: bool, usual: bool | None = None
) -> tuple[bool, list[str]]:
    """Tries the masks of cases, one of each, both ways; `usual` is what needs no evidence."""
    cases = sorted(cases, key=lambda case: case.masks)
    fit = partial(_fit, rule=rule, scaled=scaled)
    fits, _ = for_each_case(fit, cases, "Trying turns")
    fits = {path: better for path, better in fits if better is not None}
    sure = {path: better > 0 for path, better in fits.items() if np.isinf(better)}
    close = {path: better for path, better in fits.items() if path not in sure}
    if not fits:
        return bool(usual), []
    # By shape, each mask decides for itself; if all such agree, for the others, too.
    voting = [1 if one else -1 for one in sure.values()]
    if not voting or (close and len(set(voting)) > 1):
        voting = list(close.values())
    stored = bool(np.median(voting) > 0)
    agreeing = sum((vote > 0) == stored for vote in voting)
    by_shape = len(voting) == len(sure) and set(voting) <= {1, -1}
    clear = by_shape or (
        agreeing >= _AGREE * len(voting) and abs(np.median(voting)) >= np.log(_BETTER)
    )
    if usual is not None and (stored == usual or not clear):
        return usual, []
    odd = [
        path
        for path, better in close.items()
        if (better > 0) != stored and abs(better) >= np.log(_SURELY)
    ]
    if not clear or odd:
        which = (
            f"most fit as {'stored' if stored else 'shown'}, but not {listed(odd, 5)}: turn these "
            f"{len(odd)}, if they are wrong, or say"
            if clear
            else f"the first {cases[0].image}, and which way their masks fit cannot be told: say"
        )
        raise InputError(
            f"EXIF turns {len(cases)} images of {name} or their masks, {which} on which they were "
            "drawn, by --drawn-on shown or --drawn-on stored to `add`, or by "
            f"reading.{name}.drawn_on in params.yaml."
        )
    place = "the stored pixels and are turned with the image" if stored else "the turned image"
    how = "by their shape" if by_shape else "by the contrast at their borders"
    others = sorted(path.name for path, better in fits.items() if (better > 0) != stored)
    named = f" (not {listed(others, 5)})" if others else ""
    return stored, [
        f"EXIF turns {len(cases)} images: their masks were drawn on {place}, {how} in {agreeing} "
        f"of {len(voting)}{named}"
    ]


def _fit(case: Case, rule: MaskRule, scaled: bool) -> tuple[Path, float | None]:
    """A mask, and how much better it fits as stored: a logarithm, infinite if sure.

    None if it makes no difference, or if neither fits.
    """
    (path,) = case.masks
    image = open_image(case.image)
    grey = np.asarray(upright(image).convert("L"))
    ways, _ = mask_ways(open_image(path), orientation_of(image), rule)
    fitting = [fits_size(way.shape, grey.shape, scaled) for way in ways]
    if not all(fitting):
        return path, None if not any(fitting) else float(np.inf if fitting[1] else -np.inf)
    size = tuple(max(1, round(side * _FIT_SIDE / max(grey.shape))) for side in grey.shape[::-1])
    small = np.asarray(resize_image(Image.fromarray(grey), size), float)
    classes = len(rule.classes) or 1
    shown, stored = (of_class(resize_mask(way, size), classes) for way in ways)
    if (shown & stored).sum() > 0.95 * (shown | stored).sum():
        return path, None
    return path, float(np.log(_contrast(small, stored) / _contrast(small, shown)))


def _contrast(grey: np.ndarray, mask: np.ndarray) -> float:
    """How much of the variance in and around a mask lies between the two; little in noise."""
    width = max(2, round(np.sqrt(mask.sum()) / 4))
    around = ndimage.binary_dilation(mask, iterations=width) & ~mask
    inside, outside = grey[mask], grey[around]
    if not (len(inside) and len(outside)):
        return _NO_CONTRAST
    both = np.concatenate([inside, outside])
    share = len(inside) / len(both)
    between = share * (1 - share) * (inside.mean() - outside.mean()) ** 2
    return _NO_CONTRAST + between / max(both.var(), 1e-9)
