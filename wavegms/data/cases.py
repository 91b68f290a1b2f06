"""Cases: an image file with its mask files, found by their names. Nothing is opened here."""

import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from wavegms.errors import InputError

# Room for the endings of what is written under an image's name, where a name may have 255 bytes.
MAX_ID_BYTES = 200

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp", ".gif")


@dataclass(frozen=True)
class Case:
    """One image with its masks, as files.

    Attributes:
        id: Unique in the dataset and safe as a file name; the name the published splits use.
        image: The image file.
        masks: One or more mask files; the lesion is their union.
        label: The class, such as "benign"; empty where the dataset has none.
        group: What must stay in one split (a lesion photographed twice); the id where unknown.
    """

    id: str
    image: Path
    masks: tuple[Path, ...]
    label: str
    group: str


def case_id(stem: str) -> str:
    """Turn a file's stem into the id of its case.

    Whatever is not a letter, a digit, `.`, `-` or `_` becomes `_`; those at the ends go. So
    `benign (1)` is `benign_1`, as in the published splits.

    Args:
        stem: File name without its ending.

    Returns:
        The id; empty if the stem has nothing usable.
    """
    # One accented letter has two encodings; disks and editors disagree about which they write.
    return re.sub(r"[^\w.-]+", "_", unicodedata.normalize("NFC", stem)).strip("._")


def is_id(text: str) -> bool:
    """Whether a text can be the id of a case, and so a file's name."""
    return bool(text) and case_id(text) == text and len(text.encode()) <= MAX_ID_BYTES


def checked_cases(cases: Iterable[Case]) -> list[Case]:
    """Check the names and files of cases, wherever they lie.

    Args:
        cases: The cases.

    Returns:
        They, in natural order (2 before 10).

    Raises:
        InputError: Two cases with the same id, or a name or file as in `find_cases`.
    """
    seen: dict[str, Case] = {}
    for case in cases:
        if not case.id:
            raise InputError(
                f"{case.image} has no letter or digit in its name to make an id of: rename it."
            )
        _check_files(case)
        other = seen.setdefault(case.id.casefold(), case)
        if other is not case:
            raise InputError(
                f"{other.image} and {case.image} would both be called {case.id}: "
                "rename or remove one of them."
            )
    return sorted(seen.values(), key=lambda case: _natural(case.id))


def _check_files(case: Case) -> None:
    # Control codes break the lines of a table, and surrogates stand for bytes that are no text.
    for what, text in (("name", case.image.name), ("class", case.label), ("group", case.group)):
        if any(unicodedata.category(c) in ("Cc", "Cs") for c in text):
            raise InputError(
                f"{case.image} has control codes or other bytes that are no text in its {what} "
                f"({text!r}): rename it, or correct it in the table of metadata."
            )
    if len(case.id.encode()) > MAX_ID_BYTES:
        raise InputError(
            f"{case.image} has a name of more than {MAX_ID_BYTES} bytes: rename it and its mask."
        )
    for path in (case.image, *case.masks):
        if not path.is_file():
            raise InputError(
                f"{path} is not a file, or a link to none: put the file there, or remove the image "
                "with its mask."
            )


def _natural(text: str) -> tuple:
    parts = re.split(r"([0-9]+)", text.casefold())
    # Odd places hold digits, so numbers are only ever compared with numbers.
    return tuple(int(part) if i % 2 else part for i, part in enumerate(parts)), text


def image_files(folder: Path) -> list[Path]:
    """List the images of a folder by the endings of their names, hidden files left out.

    Args:
        folder: The folder.

    Returns:
        Their paths, sorted.

    Raises:
        InputError: There is no such folder, or it cannot be read.
    """
    if not folder.is_dir():
        raise InputError(f"{folder} is missing: see data/README.md for the layout of each dataset.")
    try:
        entries = list(folder.iterdir())
    except OSError as error:
        raise InputError(
            f"{folder} cannot be read ({error.strerror}): check its rights."
        ) from error
    return sorted(
        path
        for path in entries
        if path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".")
    )


def pair_files(
    images: Iterable[tuple[str, Path]],
    masks: Iterable[tuple[str, Path]],
) -> list[tuple[Path, tuple[Path, ...]]]:
    """Join images and masks by a key that is made of their names.

    Args:
        images: (key, file) of each image.
        masks: (key, file) of each mask; several may have one key.

    Returns:
        Each image with its masks, in the order of the images.

    Raises:
        InputError: An image without a mask, or a mask without an image.
    """
    by_key: dict[str, list[Path]] = {}
    for key, path in masks:
        by_key.setdefault(unicodedata.normalize("NFC", key), []).append(path)
    pairs, used, alone = [], set(), []
    for key, path in images:
        key = unicodedata.normalize("NFC", key)
        used.add(key)
        if key in by_key:
            pairs.append((path, tuple(by_key[key])))
        else:
            alone.append(path)
    if alone:
        raise InputError(
            f"{_count(alone, 'image')} without a mask, first {alone[0]}: "
            "add the masks or remove the images."
        )
    orphans = [paths[0] for key, paths in by_key.items() if key not in used]
    if orphans:
        raise InputError(
            f"{_count(orphans, 'mask')} without an image, first {orphans[0]}: "
            "add the images or remove the masks."
        )
    return pairs


def _count(files: list, noun: str) -> str:
    return f"{len(files)} {noun}{'s' if len(files) > 1 else ''}"


def read_two_folders(images: Path, masks: Path) -> list[Case]:
    """Pair the files of the same stem in two folders.

    Args:
        images: The folder of the images.
        masks: The folder of the masks.

    Returns:
        The cases, without label and each a group of its own.

    Raises:
        InputError: A folder is missing, a file is alone, or an image has two masks.
    """
    pairs = pair_files(
        [(path.stem, path) for path in image_files(images)],
        [(path.stem, path) for path in image_files(masks)],
    )
    cases = []
    for image, found in pairs:
        if len(found) > 1:
            raise InputError(
                f"{found[0]} and {found[1]} are both masks of {image.name}: remove one of them."
            )
        name = case_id(image.stem)
        cases.append(Case(name, image, found, "", name))
    return cases
