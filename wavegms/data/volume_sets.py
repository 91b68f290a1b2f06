"""Volumes as data: what all of a dataset's have in common, and their slices as images with masks.

A volume is cut across one axis, the same for all; each slice becomes an image, whether it shows
foreground or not. What is drawn at random is drawn over volumes, so that no split cuts one in two.
"""

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, get_args

import numpy as np
import SimpleITK as sitk
from PIL import Image

from wavegms.config import ReadingParams
from wavegms.data.cases import DESCRIPTION, Case
from wavegms.data.classes import label_names, values_of
from wavegms.data.duplicates import merge_groups, pairs_within
from wavegms.data.foreground import as_ranges
from wavegms.data.manifest import slice_id
from wavegms.data.pairs import Reading, for_each_case, write_pair
from wavegms.data.volumes import (
    Stack,
    Volume,
    off_grid,
    read_labels,
    read_volume,
    series_in,
    spacing_across,
    write_volume,
)
from wavegms.errors import InputError, listed
from wavegms.files import sha256_of
from wavegms.images import (
    MaskRule,
    Ranges,
    Scale,
    VolumeRule,
    of_class,
    parse_ranges,
    resize_image,
    resize_mask,
    written_ranges,
)
from wavegms.variants import Plane

_SAID_OF_NEIGHBOURS = (
    "context: red, green and blue of an image are the slices below, at and above it; its mask is "
    "of the one at it"
)

# Slices lie this much farther apart than pixels where a volume was recorded slice by slice.
_THICKER = 1.1


@dataclass(frozen=True)
class SeenVolume:
    """What there is to say of a volume and its labels, before anything is decided."""

    shape: tuple[int, int, int]  # voxels along the stored axes
    spacing: tuple[float, float, float]  # likewise, mm
    across: Mapping[Plane, float]  # distance of the slices of each plane, mm
    kind: str  # of its voxels
    counts: Mapping[int, int]  # voxels of each label value
    no_numbers: int  # voxels that are NaN or infinite


def look_at_volumes(
    name: str, cases: Sequence[Case], root: Path
) -> tuple[list[SeenVolume], list[str]]:
    """Opens all volumes and labels of a dataset, and says of each what is wrong with it."""
    look = partial(_look, names=label_names(root), described=root / DESCRIPTION)
    # one by one: a CT and its labels may take gigabytes
    return for_each_case(look, cases, f"Looking at {name}", threads=1)


def decide_reading(
    name: str,
    cases: Sequence[Case],
    seen: Sequence[SeenVolume],
    names: Mapping[int, str],
    wanted: ReadingParams | None = None,
) -> Reading:
    """How all volumes of a dataset are read, as far as `wanted` does not say it.

    Without classes, foreground are all labels above 0. The slices are those across the axis with
    the largest spacing, where it is a tenth larger than the others in the median volume; else
    axial.
    """
    wanted = wanted or ReadingParams()
    for key in ("drawn_on", "spacing"):
        if key in wanted.model_dump(exclude_defaults=True):
            raise InputError(f"reading.{name}.{key} is of pictures, not of volumes: remove it.")
    masks, told = _mask_rule(name, cases, seen, names, wanted)
    across = {
        plane: float(np.median([one.across[plane] for one in seen])) for plane in get_args(Plane)
    }
    *_, second, largest = sorted(across.values())
    plane, because = wanted.plane, f"as reading.{name} says"
    if not plane and largest > _THICKER * second:
        plane = max(across, key=across.get)
        because = "across the axis with the largest spacing"
    elif not plane:
        plane, because = "axial", "as no axis has the largest spacing"
    steps = ", ".join(f"{one} {step:.3g} mm" for one, step in across.items())
    rule = VolumeRule(plane, context=wanted.context)
    said = (
        f"slices: {plane}, {because} (distances: {steps})",
        f"greys: percentiles {rule.percentiles[0]:g} and {rule.percentiles[1]:g} of each volume "
        "become black and white",
        *[_SAID_OF_NEIGHBOURS] * (wanted.context == "neighbours"),
        told,
    )
    classes = tuple(wanted.classes)
    return Reading(masks, Scale(volumes=rule), evidence=said, classes=classes)


def _mask_rule(
    name: str,
    cases: Sequence[Case],
    seen: Sequence[SeenVolume],
    names: Mapping[int, str],
    wanted: ReadingParams,
) -> tuple[MaskRule, str]:
    """What the labels mean, and a sentence that says so."""
    counts = sum((Counter(one.counts) for one in seen), Counter())
    held = ", ".join(_shown_label(value, counts[value], names) for value in sorted(counts))
    ignored = _asked(name, "ignore", wanted.ignore, counts, held)
    labels = [value for value in sorted(counts) if value]
    if wanted.classes:
        rule = MaskRule({}, ignored, classes=values_of(wanted.classes))
        _require_classes(cases, seen, rule)
        what, why = f"classes are {rule}", ""
    else:
        foreground = _asked(name, "foreground", wanted.foreground, counts, held)
        why = f", as reading.{name} says" if foreground else ", as all labels above 0"
        if not foreground:
            counted = [n for n in labels if not any(low <= n <= high for low, high in ignored)]
            foreground = as_ranges(np.array(counted))
        rule = MaskRule({16: foreground}, ignored)
        what = f"foreground is {rule}"
    if not _has_class(rule, labels):
        raise InputError(
            f"The labels of {name} have no foreground ({held}), first {cases[0].masks[0]}: correct "
            "them."
        )
    leaving_out = f", and {written_ranges(ignored)} is ignored" if ignored else ""
    return rule, f"labels: {what}{leaving_out}{why}; they have {held}"


def _require_classes(cases: Sequence[Case], seen: Sequence[SeenVolume], rule: MaskRule) -> None:
    known = ((0, 0), *rule.ignored, *chain.from_iterable(ranges for _, ranges in rule.classes))
    odd = {
        case: f"{value} ({count:,} voxels)"
        for case, one in zip(cases, seen, strict=True)
        for value, count in one.counts.items()
        if not any(low <= value <= high for low, high in known)
    }
    if odd:
        first = next(iter(odd))
        raise InputError(
            f"{first.masks[0]} has the label {odd[first]}, which is no class (classes are {rule})"
            f"{_and_others(odd)}: name it among them, or let it be ignored."
        )


def _has_class(rule: MaskRule, values: Iterable[int]) -> bool:
    kinds = rule.of(np.array(list(values), np.uint16))
    return bool(of_class(kinds, len(rule.classes) or 1).any())


def describe_volumes(seen: Sequence[SeenVolume]) -> list[str]:
    """Sentences on sizes, spacings and kinds of voxels."""
    shapes = sorted((one.shape for one in seen), key=np.prod)
    steps = np.array([one.spacing for one in seen])
    kinds = Counter(one.kind for one in seen).most_common()
    return [
        f"volumes: {_times(shapes[0])} to {_times(shapes[-1])} voxels of "
        f"{_times(steps.min(0))} to {_times(steps.max(0))} mm; "
        + ", ".join(f"{count} of {kind}" for kind, count in kinds)
    ]


def remarks_on_volumes(
    cases: Sequence[Case], seen: Sequence[SeenVolume], rule: MaskRule
) -> list[str]:
    """What looks wrong, though it can be read."""
    said = []
    odd = [(case, one.no_numbers) for case, one in zip(cases, seen, strict=True) if one.no_numbers]
    if odd:
        said.append(
            f"{odd[0][1]} voxels of {odd[0][0].image} are no numbers (NaN or infinite) and "
            f"count as dark{_and_others(case for case, _ in odd)}."
        )
    values = set(chain.from_iterable(one.counts for one in seen))
    for class_, ranges in rule.classes:
        if not any(low <= value <= high for value in values for low, high in ranges):
            said.append(f"No label is of the class {class_}: correct its value in reading.")
    bare = [case for case, one in zip(cases, seen, strict=True) if not _has_class(rule, one.counts)]
    if bare:
        said.append(
            f"{bare[0].masks[0]} has no foreground, which is right only if there is nothing to "
            f"find{_and_others(bare)}."
        )
    return said


def group_copies(cases: Sequence[Case]) -> list[Case]:
    """Puts volumes that are the same file, under whatever names, into one group."""
    return merge_groups(cases, pairs_within(_hash(case.image) for case in cases))


def open_case(case: Case, rule: VolumeRule | None = None) -> tuple[Volume, np.ndarray]:
    """A volume in the view of a dataset's plane, and its label values in the same view, uint16.

    Without a rule the plane is that of the stored slices.
    """
    image, labels = case.image, read_labels(case.masks[0])
    series: Sequence[Path] = ()
    if image.is_dir():
        found = series_in(image)
        if len(found) != 1:
            raise InputError(
                f"{image} holds {len(found)} DICOM series that are volumes, not one: leave one."
            )
        (series,) = found
    asked = (rule.plane, rule.percentiles) if rule else ()
    volume = read_volume(image, series, *asked)
    if how := off_grid(labels, volume.image):
        raise InputError(
            f"{case.masks[0]} lies on another grid than {image.name} ({how}): resample the labels "
            "to the image by the nearest voxel."
        )
    labels.CopyInformation(volume.image)
    return volume, volume.seen_alike(labels)


@dataclass(frozen=True)
class Sliced:
    """What there is to say of a volume that was cut; all but `row` as in `Seen`."""

    row: dict[str, Any]  # of volumes.csv
    size: tuple[int, int]
    ignored: float
    image_mode: str = "volume"
    mask_modes: tuple[str, ...] = ("volume",)


def prepare_volume(
    reading: Reading, raw: Path, folder: Path, image_size: int, split_of: dict[str, str], case: Case
) -> tuple[list[dict[str, Any]], Sliced]:
    """Writes the slices of a volume, and the truth on its own grid; their rows of the manifest."""
    rule, classes, split = reading.scale.volumes, len(reading.classes) or 1, split_of[case.id]
    volume, labels = open_case(case, rule)
    kinds = reading.masks.of(labels)
    write_volume(folder / "volumes" / f"{case.id}.nii.gz", volume.restore(kinds))
    file_hash = _hash(case.image)
    shared = {"split": split, "group": case.group, "source": case.image.relative_to(raw).as_posix()}
    of_slices = {
        "label": case.label,
        "drawn_on": "",
        "row_spacing": volume.spacing[0],
        "column_spacing": volume.spacing[1],
    }
    rows = []
    for number, place in sorted(zip(volume.numbers, range(len(volume)), strict=True)):
        picture = Image.fromarray(volume.seen(place, rule.context)).convert("RGB")
        image = resize_image(picture, image_size)
        mask = resize_mask(kinds[place], image_size)
        row = write_pair(folder, slice_id(case.id, number), image, mask, kinds[place], reading)
        own_hash = hashlib.sha256(f"{file_hash} {number}".encode()).hexdigest()
        rows.append(row | shared | of_slices | {"sha256": own_hash})
    about = shared | {
        "id": case.id,
        "labels": case.masks[0].relative_to(raw).as_posix(),
        "plane": volume.plane,
        "slices": volume.shape[0],
        "rows": volume.shape[1],
        "columns": volume.shape[2],
        "slices_mm": volume.thickness,
        "rows_mm": volume.spacing[0],
        "columns_mm": volume.spacing[1],
        "black": volume.window[0],
        "white": volume.window[1],
        "foreground_voxels": int(of_class(kinds, classes).sum()),
    }
    size = volume.shape[2], volume.shape[1]
    return rows, Sliced(about, size, float((kinds > classes).mean()))


def open_truth(folder: Path, id: str, plane: Plane) -> Stack:
    """The truth of a prepared volume, pixels' kinds on the grid of its source."""
    return Stack(
        sitk.Cast(read_labels(Path(folder) / "volumes" / f"{id}.nii.gz"), sitk.sitkUInt8), plane
    )


def _look(case: Case, names: Mapping[int, str], described: Path) -> SeenVolume:
    volume, labels = open_case(case)
    values, counts = np.unique(labels, return_counts=True)
    unnamed = [value for value in values.tolist() if value and names and value not in names]
    if unnamed:
        raise InputError(
            f"{case.masks[0]} has the label {unnamed[0]}, which {described} does not name: name it "
            "there, or correct the labels."
        )
    floating = np.issubdtype(volume.voxels.dtype, np.floating)
    return SeenVolume(
        volume.image.GetSize(),
        volume.image.GetSpacing(),
        spacing_across(volume.image),
        volume.image.GetPixelIDTypeAsString(),
        dict(zip(values.tolist(), counts.tolist(), strict=True)),
        int((~np.isfinite(volume.voxels)).sum()) if floating else 0,
    )


def _asked(
    name: str, key: str, wanted: Sequence[int | str], counts: Mapping[int, int], held: str
) -> Ranges:
    ranges = parse_ranges(wanted)
    for low, high in ranges:
        if not any(low <= value <= high for value in counts):
            raise InputError(
                f"reading.{name}.{key} names {written_ranges(((low, high),))}, but no label has it "
                f"(they have {held}): correct it, or leave it out."
            )
    return ranges


def _shown_label(value: int, count: int, names: Mapping[int, str]) -> str:
    said = f" {names[value]}" if value in names else ""
    return f"{value}{said} ({count:,} voxels)"


def _times(numbers: Sequence[float]) -> str:
    return "×".join(f"{number:.4g}" for number in numbers)


def _and_others(cases: Iterable[Case]) -> str:
    others = listed([case.image.name for case in cases][1:])
    return f" (likewise {others})" if others else ""


def _hash(image: Path) -> str:
    """Of a file, or of the files of a series."""
    if image.is_file():
        return sha256_of(image)
    hashes = "".join(sorted(sha256_of(path) for path in image.iterdir() if path.is_file()))
    return hashlib.sha256(hashes.encode()).hexdigest()
