"""Preparation: a published dataset becomes a folder of equally sized images, masks and a manifest.

The contract of a prepared folder: `images/<id>.png` (RGB), `masks/<id>.png` (grey, 0 or 255) and
`manifest.csv` with the columns of `MANIFEST_COLUMNS`, one row for each image. It is written whole
or not at all, and the same input and parameters give the same pixels and the same manifest.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from wavegms.data.cases import Case
from wavegms.data.catalog import DatasetSpec, find_cases, root_of, spec_of
from wavegms.data.duplicates import find_duplicates, merge_groups, read_thumbnails
from wavegms.data.manifest import MANIFEST_COLUMNS, SPLITS, data_hash, pixels_hash
from wavegms.data.pairs import for_each_case, inverted_masks, read_pair, resize_pair, surrounds
from wavegms.data.splits import assign_splits
from wavegms.errors import InputError
from wavegms.files import replace_folder, sha256_of
from wavegms.images import as_rgb, read_image


@dataclass(frozen=True)
class PreparationReport:
    """What a preparation found and wrote.

    Attributes:
        name: Name of the dataset.
        counts: Number of images of each of "train", "val" and "test".
        published: The paper's number of "pairs", "train" (validation included) and "test" images,
            None where the paper does not use the dataset.
        differences: Sentences on whatever deviates from the paper's table or was left out, and on
            masks that look inverted.
        image_modes: Number of image files of each PIL mode.
        mask_modes: Number of mask files of each PIL mode.
        joined: Number of images whose mask was joined from several files.
        smallest: (width, height) of the source image with the fewest pixels.
        largest: (width, height) of the source image with the most pixels.
        data_hash: See `data_hash`.
    """

    name: str
    counts: dict[str, int]
    published: dict[str, int] | None
    differences: list[str]
    image_modes: dict[str, int]
    mask_modes: dict[str, int]
    joined: int
    smallest: tuple[int, int]
    largest: tuple[int, int]
    data_hash: str

    def table(self) -> pd.DataFrame:
        """Tabulate the counts beside the paper's.

        Returns:
            Columns dataset, part (train, val, train + val, test, all), images, and published
            (missing where the paper gives no number).
        """
        counts, published = self.counts, self.published or {}
        both = counts["train"] + counts["val"]
        rows = [
            ("train", counts["train"], None),
            ("val", counts["val"], None),
            ("train + val", both, published.get("train")),
            ("test", counts["test"], published.get("test")),
            ("all", both + counts["test"], published.get("pairs")),
        ]
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
) -> PreparationReport:
    """Read a dataset in its published layout and write the prepared folder.

    Several masks of one image are joined by OR before resizing. All images are read and checked
    before an earlier prepared folder is replaced.

    Args:
        name: A name in the catalog, or any other for a plain folder of one's own.
        raw: The dataset's folder, as published.
        out: The prepared folder to write; an earlier one there is replaced.
        image_size: Side of the square that images and masks are resized to, pixels; divisible by
            8, at least 16.
        split: "published", "official", "random", "grouped" or "external", see `assign_splits`. For
            "grouped", all images are read once before, and duplicates become one group.
        split_folder: Folder of the published splits.
        test_fraction: Share of the images for testing, for "random" and "grouped" only.
        validation_fraction: Share of the training images for validation.
        seed: For what is drawn at random.

    Returns:
        What was found and written.

    Raises:
        InputError: A parameter out of range, a dataset or split that cannot be read, an image and
            a mask of different sizes, a mask without foreground (also once resized), or an `out`
            that holds something else. The earlier prepared folder is then as it was.
    """
    if image_size < 16 or image_size % 8:
        raise InputError(
            f"image_size is {image_size}: set it to a multiple of 8, at least 16, "
            "because latents have an eighth of it."
        )
    raw, out = Path(raw), Path(out)
    _check_target(raw, out)
    spec = spec_of(name)
    cases = find_cases(name, raw)
    if split == "grouped":
        cases = _group_duplicates(cases)
    split_of = assign_splits(
        cases,
        split,
        folder=root_of(name, raw),
        split_file=Path(split_folder) / spec.split_file if spec.split_file else None,
        test_fraction=test_fraction,
        validation_fraction=validation_fraction,
        seed=seed,
    )
    chosen = [case for case in cases if case.id in split_of]
    with replace_folder(out) as folder:
        (folder / "images").mkdir()
        (folder / "masks").mkdir()
        prepare = partial(
            _prepare_case,
            folder=folder,
            image_size=image_size,
            masks_at_another_size=spec.masks_at_another_size,
        )
        results, problems = for_each_case(prepare, chosen, f"Preparing {spec.name}")
        if len(problems) > 1:
            raise InputError(
                f"{len(problems)} images of {spec.name} cannot be prepared; "
                f"the first: {problems[0]}"
            )
        if problems:
            raise InputError(problems[0])
        rows = [
            {
                "id": case.id,
                "split": split_of[case.id],
                "group": case.group,
                "source": case.image.relative_to(raw).as_posix(),
                "original_width": result.size[0],
                "original_height": result.size[1],
                "sha256": result.sha256,
                "mask_area": result.mask_area,
                "label": case.label,
                "pixels": result.pixels,
            }
            for case, result in zip(chosen, results, strict=True)
        ]
        manifest = pd.DataFrame(rows, columns=list(MANIFEST_COLUMNS))
        manifest.to_csv(folder / "manifest.csv", index=False, lineterminator="\n")
    counts = Counter(split_of.values())
    sizes = sorted((result.size for result in results), key=lambda size: size[0] * size[1])
    return PreparationReport(
        name=name,
        counts={part: counts[part] for part in SPLITS},
        published=(
            None
            if spec.pairs is None
            else {"pairs": spec.pairs, "train": spec.train, "test": spec.test}
        ),
        differences=[
            *_differences(spec, cases, split_of),
            *inverted_masks(chosen, [result.surrounds for result in results]),
        ],
        image_modes=dict(sorted(Counter(result.image_mode for result in results).items())),
        mask_modes=dict(
            sorted(Counter(mode for result in results for mode in result.mask_modes).items())
        ),
        joined=sum(len(case.masks) > 1 for case in chosen),
        smallest=sizes[0],
        largest=sizes[-1],
        data_hash=data_hash(out),
    )


@dataclass(frozen=True)
class _Prepared:
    size: tuple[int, int]
    image_mode: str
    mask_modes: tuple[str, ...]
    sha256: str
    mask_area: float
    surrounds: bool
    pixels: str


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


def _group_duplicates(cases: Sequence[Case]) -> list[Case]:
    paths = [case.image for case in cases]
    duplicates = find_duplicates(*read_thumbnails(paths, lambda path: read_image(path, as_rgb)[0]))
    return merge_groups(cases, [(pair.first, pair.second) for pair in duplicates])


def _prepare_case(
    case: Case, folder: Path, image_size: int, masks_at_another_size: bool
) -> _Prepared:
    pair = read_pair(case, masks_at_another_size)
    image, mask = resize_pair(case, pair, image_size)
    image.save(folder / "images" / f"{case.id}.png")
    Image.fromarray(mask.astype(np.uint8) * 255).save(folder / "masks" / f"{case.id}.png")
    return _Prepared(
        size=pair.image.size,
        image_mode=pair.image_mode,
        mask_modes=pair.mask_modes,
        sha256=sha256_of(case.image),
        mask_area=float(mask.mean()),
        surrounds=surrounds(mask),
        pixels=pixels_hash(np.asarray(image), mask),
    )


def _differences(spec: DatasetSpec, cases: list[Case], split_of: dict[str, str]) -> list[str]:
    sentences = []
    if spec.pairs is not None:
        counts = Counter(split_of.values())
        for what, found, expected in (
            ("image-mask pairs", len(cases), spec.pairs),
            (
                "images to train on (validation included)",
                counts["train"] + counts["val"],
                spec.train,
            ),
            ("images to test on", counts["test"], spec.test),
        ):
            if found != expected:
                sentences.append(f"{spec.title} has {found} {what}; the paper has {expected}.")
    left_out = [case.id for case in cases if case.id not in split_of]
    if left_out:
        more = ", ..." if len(left_out) > 3 else ""
        sentences.append(
            f"{len(left_out)} of {len(cases)} images of {spec.title} are in no list of the split "
            f"and were left out ({', '.join(left_out[:3])}{more})."
        )
    return sentences
