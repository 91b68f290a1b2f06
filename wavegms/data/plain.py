"""A folder of one's own images: no published layout, only names that go together."""

import csv
import unicodedata
from dataclasses import replace
from pathlib import Path

from wavegms.data.cases import IMAGE_SUFFIXES, Case, image_files, read_two_folders
from wavegms.errors import InputError

# Beside images/ and masks/ of one's own: which images show the same patient.
GROUPS = "groups.csv"


def read_plain(root: Path) -> list[Case]:
    """Pair a folder of one's own: `images/`, `masks/` of the same names, and perhaps `groups.csv`.

    The table has the columns image (a file's name, with or without its ending) and group, such as
    the patient, whose images then stay in one split; and perhaps label, the class.

    Args:
        root: The folder.

    Returns:
        The cases.

    Raises:
        InputError: As `read_two_folders`; no mask at all; or a table that cannot be read, lacks an
            image, or gives it two groups or none.
    """
    images, masks = root / "images", root / "masks"
    if image_files(images) and not (masks.is_dir() and image_files(masks)):
        raise InputError(
            f"{images} has images but {masks} has no masks: training and evaluation need both, "
            "so add one mask for each image under the same name; without masks, images can be "
            "predicted by `python -m wavegms predict`."
        )
    cases = read_two_folders(images, masks)
    if not (root / GROUPS).exists():
        return cases
    groups = _read_groups(root / GROUPS)
    for case in cases:
        if _stem(case) not in groups:
            raise InputError(
                f"{root / GROUPS} has no row for {case.image.name}: add one, or remove the table."
            )
    return [
        replace(case, group=groups[_stem(case)][0], label=groups[_stem(case)][1]) for case in cases
    ]


def _stem(case: Case) -> str:
    return unicodedata.normalize("NFC", case.image.stem)


def _read_groups(path: Path) -> dict[str, tuple[str, str]]:
    """Read (group, label) of each image of a folder of one's own, by the stem of its name."""
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            rows = [
                (row["image"].strip(), row["group"].strip(), (row.get("label") or "").strip())
                for row in csv.DictReader(file)
            ]
    except (AttributeError, KeyError, OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(
            f"{path} is not a comma-separated table in UTF-8 with the columns image and group, and "
            "perhaps label: correct it or remove it."
        ) from error
    groups = {}
    for image, group, label in rows:
        name = Path(image)
        stem = name.stem if name.suffix.lower() in IMAGE_SUFFIXES else image
        if not group:
            raise InputError(
                f"{path} has no group for {image}: give it one of its own, such as its name."
            )
        if groups.setdefault(unicodedata.normalize("NFC", stem), (group, label)) != (group, label):
            raise InputError(f"{path} has two rows for {image} that differ: remove one of them.")
    return groups
