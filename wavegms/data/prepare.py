"""Preparation: a published dataset becomes a folder of equally sized images, masks and a manifest.

Its contract is in `wavegms.data.manifest`. It is written whole or not at all, and the same input
and parameters give the same pixels and the same manifest.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from wavegms.config import ReadingParams
from wavegms.data.cases import Case, pairing_rule
from wavegms.data.catalog import CATALOG, DatasetSpec, find_cases, root_of, spec_of
from wavegms.data.classes import label_names, with_classes
from wavegms.data.duplicates import find_duplicates, merge_groups, read_thumbnails
from wavegms.data.manifest import MANIFEST_COLUMNS, SPLITS, VOLUME_COLUMNS, data_hash
from wavegms.data.pairs import (
    Reading,
    Seen,
    for_each_case,
    read_pair,
    remarks,
    resize_pair,
    write_pair,
)
from wavegms.data.reading import find_reading
from wavegms.data.splits import assign_all
from wavegms.data.volume_sets import (
    decide_reading,
    describe_volumes,
    group_copies,
    look_at_volumes,
    prepare_volume,
    remarks_on_volumes,
)
from wavegms.errors import InputError, listed
from wavegms.files import replace_folder, sha256_of
from wavegms.images import Scale, as_rgb, read_image

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class PreparationReport:
    """What a preparation found and wrote."""

    name: str
    # Images of each of "train", "val" and "test", of the first fold; of volumes, slices.
    counts: dict[str, int]
    # The paper's "pairs", "train" (validation included) and "test" images, None where it does not
    # use the dataset.
    published: dict[str, int] | None
    # Sentences on whatever deviates from the paper's table, was left out, or looks inverted.
    differences: list[str]
    evidence: tuple[str, ...]  # how the files were read, and what says so
    ignored: float  # share of the prepared pixels that were not annotated
    image_modes: dict[str, int]  # image files of each mode of PIL
    mask_modes: dict[str, int]
    joined: int  # images whose mask was joined from several files
    smallest: tuple[int, int]  # (width, height) of the source image with the fewest pixels
    largest: tuple[int, int]
    data_hash: str
    tested: tuple[int, ...] = ()  # test images of each fold

    def table(self) -> pd.DataFrame:
        """Images of each part (train, val, train + val, test, all) beside the paper's number.

        Further rows have the test images of each fold.
        """
        import pandas as pd

        counts, published = self.counts, self.published or {}
        both = counts["train"] + counts["val"]
        rows = [
            ("train", counts["train"], None),
            ("val", counts["val"], None),
            ("train + val", both, published.get("train")),
            ("test", counts["test"], published.get("test")),
            ("all", both + counts["test"], published.get("pairs")),
        ]
        rows += [(f"test, fold {n}", count, None) for n, count in enumerate(self.tested, start=1)]
        table = pd.DataFrame(rows, columns=["part", "images", "published"])
        table.insert(0, "dataset", self.name)
        return table.astype({"published": "Int64"})


def prepare_dataset(
    name: str,
    raw: Path,
    out: Path,
    *,
    image_size: int,
    split: str,
    split_folder: Path,
    test_fraction: float,
    validation_fraction: float,
    seed: int,
    reading: ReadingParams | None = None,
    folds: int | None = None,
) -> PreparationReport:
    """Read a dataset in its published layout and write the prepared folder.

    How files are read is decided once from all of them, as far as `reading` does not say it.
    Several masks of one image are joined by OR before resizing. All images are read and checked
    before an earlier prepared folder is replaced. For the split "grouped", all images are read once
    before, and duplicates become one group; see `assign_splits` for the others. With folds, the
    split is that of the first.
    """
    import pandas as pd

    if image_size < 16 or image_size % 8:
        raise InputError(
            f"image_size is {image_size}: set it to a multiple of 8, at least 16, "
            "because latents have an eighth of it."
        )
    raw, out = Path(raw), Path(out)
    _check_target(raw, out)
    spec = spec_of(name)
    cases = find_cases(name, raw)
    volumes = cases[0].volume
    root = root_of(name, raw)
    reading = with_classes(name, root, reading, spec.classes)
    if volumes:
        opened, problems = look_at_volumes(name, cases, root)
        _refuse(spec, "volumes", problems)
        how = decide_reading(name, cases, opened, label_names(root), reading)
    else:
        how = find_reading(name, cases, reading, spec.masks_at_another_size)
    if split == "grouped":
        cases = group_copies(cases) if volumes else _group_duplicates(cases, how.scale)
    split_of, *others = assign_all(
        cases,
        split,
        folds,
        folder=root,
        split_file=Path(split_folder) / spec.split_file if spec.split_file else None,
        lists=split_folder,
        test_fraction=test_fraction,
        validation_fraction=validation_fraction,
        seed=seed,
    )
    of_folds = [split_of, *others] if others else []
    chosen = [case for case in cases if case.id in split_of]
    with replace_folder(out) as folder:
        for part in ("images", "masks", *["volumes"] * volumes):
            (folder / part).mkdir()
        work = prepare_volume if volumes else partial(_prepare_case, spec)
        prepare = partial(work, how, raw, folder, image_size, split_of)
        what, threads = ("volumes", 1) if volumes else ("images", 8)
        results, problems = for_each_case(prepare, chosen, f"Preparing {spec.name}", threads)
        _refuse(spec, what, problems)
        rows = [row for its, _ in results for row in its]
        # In the contract's order; pandas writes numbers so that they are read the same.
        manifest = pd.DataFrame(rows, columns=list(MANIFEST_COLUMNS))
        owners = (c.id for c, (its, _) in zip(chosen, results, strict=True) for _ in its)
        manifest["folds"] = [" ".join(one[id] for one in of_folds) for id in owners]
        # columns that most data do not have
        had = {"folds": of_folds, "classes": how.classes}
        manifest = manifest.drop(columns=[name for name, there in had.items() if not there])
        manifest.to_csv(folder / "manifest.csv", index=False, lineterminator="\n")
        if volumes:
            table = pd.DataFrame([one.row for _, one in results], columns=list(VOLUME_COLUMNS))
            table.to_csv(folder / "volumes.csv", index=False, lineterminator="\n")
    seen = [one for _, one in results]
    sizes = sorted((one.size for one in seen), key=math.prod)
    counts = Counter(row["split"] for row in rows)
    if volumes:
        said = remarks_on_volumes(cases, opened, how.masks)
        evidence = (_volumes_by_split(split_of), *describe_volumes(opened))
    else:
        said = remarks(chosen, seen, how.classes)
        evidence = tuple(pairing_rule(cases)) if name not in CATALOG else ()
    return PreparationReport(
        name=name,
        counts={part: counts[part] for part in SPLITS},
        published=spec.pairs and {"pairs": spec.pairs, "train": spec.train, "test": spec.test},
        differences=[*_differences(spec, cases, split_of), *said],
        evidence=(*evidence, *how.evidence),
        ignored=float(np.mean([one.ignored for one in seen])),
        image_modes=dict(sorted(Counter(one.image_mode for one in seen).items())),
        mask_modes=dict(sorted(Counter(chain(*(one.mask_modes for one in seen))).items())),
        joined=sum(len(case.masks) > 1 for case in chosen),
        smallest=sizes[0],
        largest=sizes[-1],
        data_hash=data_hash(out),
        tested=tuple(list(one.values()).count("test") for one in of_folds),
    )


def _refuse(spec: DatasetSpec, what: str, problems: Sequence[str]) -> None:
    if len(problems) > 1:
        raise InputError(
            f"{len(problems)} {what} of {spec.name} cannot be prepared; the first: {problems[0]}"
        )
    if problems:
        raise InputError(problems[0])


def _check_target(raw: Path, out: Path) -> None:
    """Refuse to replace a folder that a preparation did not write."""
    target, source = out.resolve(), raw.resolve()
    if target == source or target in source.parents:
        raise InputError(f"{out} holds the raw data: choose another folder for the prepared data.")
    if target.is_dir() and any(target.iterdir()) and not (target / "manifest.csv").is_file():
        raise InputError(
            f"{out} holds files but no manifest.csv, so it is not prepared data to be replaced: "
            "move it away or choose another folder."
        )


def _group_duplicates(cases: Sequence[Case], scale: Scale) -> list[Case]:
    paths = [case.image for case in cases]

    def read(path: Path) -> Image.Image:
        return read_image(path, lambda image: as_rgb(image, scale))[0]

    duplicates = find_duplicates(*read_thumbnails(paths, read))
    return merge_groups(cases, [(pair.first, pair.second) for pair in duplicates])


def _prepare_case(
    spec: DatasetSpec,
    reading: Reading,
    raw: Path,
    folder: Path,
    image_size: int,
    split_of: dict[str, str],
    case: Case,
) -> tuple[list[dict[str, Any]], Seen]:
    """Writes a pair; its row of the manifest, and what there is to say of it."""
    pair = read_pair(case, reading, spec.masks_at_another_size)
    image, mask = resize_pair(case, pair, image_size)
    row_spacing, column_spacing = case.spacing or reading.spacing or (math.nan, math.nan)
    row = write_pair(folder, case.id, image, mask, pair.mask, reading) | {
        "split": split_of[case.id],
        "group": case.group,
        "source": case.image.relative_to(raw).as_posix(),
        "sha256": sha256_of(case.image),
        "label": case.label,
        "drawn_on": pair.drawn_on,
        "row_spacing": row_spacing,
        "column_spacing": column_spacing,
    }
    return [row], Seen.of(pair, mask)


def _volumes_by_split(split_of: dict[str, str]) -> str:
    counts = Counter(split_of.values())
    parts = ", ".join(f"{counts[part]} for {part}" for part in SPLITS)
    return f"{len(split_of)} volumes, each in one split: {parts}; counts of images are of slices"


def _differences(spec: DatasetSpec, cases: list[Case], split_of: dict[str, str]) -> list[str]:
    sentences = []
    if spec.pairs is not None:
        counts = Counter(split_of.values())
        learnt = counts["train"] + counts["val"]
        for what, found, expected in (
            ("image-mask pairs", len(cases), spec.pairs),
            ("images to train on (validation included)", learnt, spec.train),
            ("images to test on", counts["test"], spec.test),
        ):
            if found != expected:
                sentences.append(f"{spec.title} has {found} {what}; the paper has {expected}.")
    left_out = [case.id for case in cases if case.id not in split_of]
    if left_out:
        sentences.append(
            f"{len(left_out)} of {len(cases)} images of {spec.title} are in no list of the split "
            f"and were left out ({listed(left_out)})."
        )
    return sentences
