"""Cases: an image file with its mask files, found by their names. Nothing is opened here."""

import csv
import re
import shutil
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from tqdm import tqdm

from wavegms.errors import InputError
from wavegms.files import replace_folder

# Room for the endings of what is written under an image's name, where a name may have 255 bytes.
MAX_ID_BYTES = 200

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp", ".gif")


@dataclass(frozen=True)
class Case:
    """One image with its masks, as files."""

    id: str  # unique in the dataset and safe as a file name; what the published splits call it
    image: Path
    masks: tuple[Path, ...]  # one or more; the lesion is their union
    label: str  # the class, such as "benign"; empty where the dataset has none
    group: str  # what must stay in one split (a lesion photographed twice); the id where unknown

    @classmethod
    def of(cls, image: Path, masks: Iterable[Path], label: str = "", group: str = "") -> "Case":
        """The case of these files, called by the image's name."""
        id = case_id(image.stem)
        return cls(id, image, tuple(masks), label, group or id)


def _composed(text: str) -> str:
    # One accented letter has two encodings; disks and editors disagree about which they write.
    return unicodedata.normalize("NFC", text)


def case_id(stem: str) -> str:
    """Turn a file's stem into the id of its case.

    Whatever is not a letter, a digit, `.`, `-` or `_` becomes `_`; those at the ends go. So
    `benign (1)` is `benign_1`, as in the published splits.
    """
    return re.sub(r"[^\w.-]+", "_", _composed(stem)).strip("._")


def is_id(text: str) -> bool:
    """Whether a text can be the id of a case, and so a file's name."""
    return bool(text) and case_id(text) == text and len(text.encode()) <= MAX_ID_BYTES


def checked_cases(cases: Iterable[Case]) -> list[Case]:
    """Check names and files of cases, and bring them into natural order (2 before 10)."""
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
    """List the images of a folder by the endings of their names, hidden files left out."""
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
) -> list[tuple[Path, list[Path]]]:
    """Join each image with its masks, by a key that is made of their names."""
    by_key: dict[str, list[Path]] = {}
    for key, path in masks:
        by_key.setdefault(_composed(key), []).append(path)
    keys = [(_composed(key), path) for key, path in images]
    alone = [path for key, path in keys if key not in by_key]
    if alone:
        raise InputError(
            f"{_count(alone, 'image')} without a mask, first {alone[0]}: "
            "add the masks or remove the images."
        )
    used = {key for key, _ in keys}
    orphans = [paths[0] for key, paths in by_key.items() if key not in used]
    if orphans:
        raise InputError(
            f"{_count(orphans, 'mask')} without an image, first {orphans[0]}: "
            "add the images or remove the masks."
        )
    return [(path, by_key[key]) for key, path in keys]


def _count(files: list, noun: str) -> str:
    return f"{len(files)} {noun}{'s' if len(files) > 1 else ''}"


def read_two_folders(images: Path, masks: Path) -> list[Case]:
    """Pair the files of the same stem in two folders."""
    pairs = pair_files(
        [(path.stem, path) for path in image_files(images)],
        [(path.stem, path) for path in image_files(masks)],
    )
    for image, found in pairs:
        if len(found) > 1:
            raise InputError(
                f"{found[0]} and {found[1]} are both masks of {image.name}: remove one of them."
            )
    return [Case.of(image, found) for image, found in pairs]


# Beside images/ and masks/ of one's own: which images show the same patient.
GROUPS = "groups.csv"

# Beside them: images without a mask, which are not trained or tested on.
UNLABELLED = "unlabelled"


def read_plain(root: Path) -> list[Case]:
    """Pair a folder of one's own: `images/`, `masks/` of the same names, and perhaps `groups.csv`.

    The table has the columns image (a file's name, with or without its ending) and group, such as
    the patient, whose images then stay in one split; and perhaps label, the class.
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
    groups, grouped = _read_groups(root / GROUPS), []
    for case in cases:
        if _name(case.image) not in groups:
            raise InputError(
                f"{root / GROUPS} has no row for {case.image.name}: add one, or remove the table."
            )
        group, label = groups[_name(case.image)]
        grouped.append(replace(case, group=group, label=label))
    return grouped


def match_folders(images: Path, masks: Path) -> tuple[list[Case], list[Path]]:
    """Pair files wherever they lie, and list the images without a mask.

    A mask is called as its image is, perhaps with an ending.
    The ending, such as `_mask` or `_segmentation`, is found from the names and is the same for all
    masks. With it, images and masks may lie in one folder.
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
    cases = [Case.of(path, [mask_of[_name(path)]]) for path in others if _name(path) in mask_of]
    return checked_cases(cases), [path for path in others if _name(path) not in mask_of]


def place(cases: Sequence[Case], unlabelled: Sequence[Path], folder: Path) -> None:
    """Copy images and masks to the layout that `read_plain` reads, all or none."""
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
    return _composed(path.stem)


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
        if groups.setdefault(_composed(stem), (group, label)) != (group, label):
            raise InputError(f"{path} has two rows for {image} that differ: remove one of them.")
    return groups
