"""A folder of one's own images: no published layout, only names that go together."""

import csv
import shutil
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from tqdm import tqdm

from wavegms.data.cases import (
    IMAGE_SUFFIXES,
    Case,
    case_id,
    checked_cases,
    image_files,
    read_two_folders,
)
from wavegms.data.files import replace_folder
from wavegms.errors import InputError

# Beside images/ and masks/ of one's own: which images show the same patient.
GROUPS = "groups.csv"
# Beside them: images without a mask, which are not trained or tested on.
UNLABELLED = "unlabelled"


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
        if _name(case.image) not in groups:
            raise InputError(
                f"{root / GROUPS} has no row for {case.image.name}: add one, or remove the table."
            )
    found = ((case, *groups[_name(case.image)]) for case in cases)
    return [replace(case, group=group, label=label) for case, group, label in found]


def match_folders(images: Path, masks: Path) -> tuple[list[Case], list[Path]]:
    """Pair files wherever they lie: a mask is called as its image is, perhaps with an ending.

    The ending, such as `_mask` or `_segmentation`, is found from the names and is the same for all
    masks. With it, images and masks may lie in one folder.

    Args:
        images: The folder of the images.
        masks: The folder of the masks.

    Returns:
        The cases in natural order, and the images without a mask.

    Raises:
        InputError: As `image_files` and `checked_cases`; no mask has the name of an image; a mask
            without an image; two masks of one image.
    """
    mask_files, others = image_files(masks), image_files(images)
    for folder, found in ((images, others), (masks, mask_files)):
        if not found:
            raise InputError(
                f"{folder} holds no image file ({' '.join(IMAGE_SUFFIXES)}): name the folder that "
                "directly holds them."
            )
    together = images.resolve() == masks.resolve()
    ending = _common_ending(others, mask_files, together)
    if ending is None:
        raise InputError(
            f"no file in {masks} is called as an image in {images} is: give each mask its image's "
            "name, perhaps with an ending that is the same for all, such as _mask."
        )
    if together:
        mask_files = [path for path in mask_files if _name(path).endswith(ending)]
        others = [path for path in others if not _name(path).endswith(ending)]
    names = {_name(path) for path in others}
    mask_of: dict[str, Path] = {}
    for path in mask_files:
        name = _name(path)
        image_name = name.removesuffix(ending)
        if not name.endswith(ending) or image_name not in names:
            raise InputError(
                f"{path} is the mask of no image in {images}, where it would be called "
                f"{image_name}: add the image or remove the mask."
            )
        if image_name in mask_of:
            raise InputError(
                f"{mask_of[image_name]} and {path} are both masks of {image_name}: "
                "remove one of them."
            )
        mask_of[image_name] = path
    cases = [
        Case(case_id(path.stem), path, (mask_of[_name(path)],), "", case_id(path.stem))
        for path in others
        if _name(path) in mask_of
    ]
    return checked_cases(cases), [path for path in others if _name(path) not in mask_of]


def place(cases: Sequence[Case], unlabelled: Sequence[Path], folder: Path) -> None:
    """Copy images and masks to the layout that `read_plain` reads, all or none.

    Args:
        cases: The cases, of one mask each.
        unlabelled: Images without a mask, for the folder `UNLABELLED`.
        folder: The folder to make.

    Raises:
        InputError: The folder cannot be made, or a file cannot be copied.
    """
    copies = [(case.image, f"images/{case.image.name}") for case in cases]
    # the suffix tells how the file is written, so it stays
    copies += [(c.masks[0], f"masks/{c.image.stem}{c.masks[0].suffix}") for c in cases]
    copies += [(path, f"{UNLABELLED}/{path.name}") for path in unlabelled]
    with replace_folder(folder) as fresh:
        for source, name in tqdm(copies, desc="Copying", unit="file"):
            try:
                (fresh / name).parent.mkdir(exist_ok=True)
                shutil.copyfile(source, fresh / name)
            except OSError as error:
                raise InputError(
                    f"{source} cannot be copied to {folder} ({error.strerror}): check its rights "
                    "and the space on the disk."
                ) from error


def _common_ending(images: Sequence[Path], masks: Sequence[Path], together: bool) -> str | None:
    """What most masks' names have after the name of an image; None if none has such a name."""
    names = {_name(path) for path in images}
    endings = Counter(
        _name(mask)[length:]
        for mask in masks
        for length in range(1, len(_name(mask)) + 1)
        if _name(mask)[:length] in names and not (together and length == len(_name(mask)))
    )
    # of several that are as frequent, the shortest: "case 1" is also the start of "case 12"
    return min(endings, key=lambda ending: (-endings[ending], len(ending)), default=None)


def _name(path: Path) -> str:
    # one accented letter has two encodings; disks and editors disagree about which they write
    return unicodedata.normalize("NFC", path.stem)


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
        written = Path(image)
        stem = written.stem if written.suffix.lower() in IMAGE_SUFFIXES else image
        if not group:
            raise InputError(
                f"{path} has no group for {image}: give it one of its own, such as its name."
            )
        if groups.setdefault(unicodedata.normalize("NFC", stem), (group, label)) != (group, label):
            raise InputError(f"{path} has two rows for {image} that differ: remove one of them.")
    return groups
