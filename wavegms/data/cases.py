"""Cases: an image file with its mask files, found by their names. Nothing is opened here."""

import csv
import glob
import math
import os
import re
import shutil
import unicodedata
from collections import Counter
from collections.abc import Collection, Container, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import count, islice
from pathlib import Path
from typing import TypeVar

from tqdm import tqdm

from wavegms.errors import InputError
from wavegms.files import matching, replace_folder, walk

_Said = TypeVar("_Said")

# Room for the endings of what is written under an image's name, where a name may have 255 bytes.
MAX_ID_BYTES = 200

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp", ".gif")

VOLUME_SUFFIXES = (".nii", ".nii.gz", ".mha", ".nrrd")

DICOM_SUFFIXES = (".dcm", ".dicom", ".ima")


# What people call masks.
_MASK = re.compile(r"mask|label|lesion|segm|annot|truth|(?<![a-z])(gt|seg)(?![a-z])", re.IGNORECASE)


@dataclass(frozen=True)
class Case:
    """One image with its masks, as files."""

    id: str  # unique in the dataset and safe as a file name; what the published splits call it
    image: Path
    masks: tuple[Path, ...]  # one or more; the lesion is their union
    label: str  # the class, such as "benign"; empty where the dataset has none
    group: str  # what must stay in one split (a lesion photographed twice); the id where unknown
    spacing: tuple[float, float] | None = None  # of rows and of columns, mm, where it is known
    volume: bool = False  # a volume with its labels: each slice becomes an image with a mask

    @classmethod
    def of(
        cls, image: Path, masks: Iterable[Path], label: str = "", group: str = "", name: str = ""
    ) -> "Case":
        """The case of these files, called by the image's name if no other is given."""
        id = case_id(name or file_stem(image))
        return cls(id, image, tuple(masks), label, group or id)


def is_volume(path: Path) -> bool:
    """Whether a file's name says so; a DICOM series is a folder."""
    return path.name.lower().endswith(VOLUME_SUFFIXES)


def is_dicom(path: Path) -> bool:
    """Whether the name says so (.dcm, .dicom, .ima), or the mark inside; a DICOMDIR is none."""
    if path.suffix.lower() in DICOM_SUFFIXES:
        return True
    if path.name.upper() == "DICOMDIR":
        return False
    try:
        with open(path, "rb") as file:
            return file.read(132)[128:] == b"DICM"
    except OSError:
        return False


def file_stem(path: Path) -> str:
    """A file's name without the ending of an image or volume; another ending stays."""
    name = path.name
    for ending in sorted((*IMAGE_SUFFIXES, *VOLUME_SUFFIXES), key=len, reverse=True):
        if name.lower().endswith(ending) and len(name) > len(ending):
            return name[: -len(ending)]
    return name


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
    # slices of a volume have its id and a number
    if len(case.id.encode()) > MAX_ID_BYTES - 10 * case.volume:
        raise InputError(
            f"{case.image} has a name of more than {MAX_ID_BYTES} bytes: rename it and its mask."
        )
    for path in (case.image, *case.masks):
        series = case.volume and path == case.image and path.is_dir()
        if not (path.is_file() or series):
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
    return sorted(filter(_is_image, entries))


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".")


def pair_files(
    images: Iterable[tuple[str, Path]], masks: Iterable[tuple[str, Path]]
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


# Beside volumes and labels: the names of the labels' values, as the Decathlon writes it.
DESCRIPTION = "dataset.json"

# Beside images/ and masks/ of one's own: which images show the same patient.
GROUPS = "groups.csv"

# Beside the files of any dataset: millimetres from pixel to pixel.
SPACING = "spacing.csv"

# Beside images/ and masks/: images without a mask, which are not trained or tested on.
UNLABELLED = "unlabelled"


def read_plain(root: Path) -> list[Case]:
    """Pair a folder of one's own: `images/`, `masks/`, and perhaps `groups.csv`.

    Or the volumes of `read_volumes`.
    Masks are called as their images, or as `match_files` pairs them; or they lie in a folder for
    each class, called as their images, of which each has a mask of one class or more. The table has
    the columns image (a file's name, with or without its ending) and group, such as the patient,
    whose images then stay in one split; and perhaps label, the class.
    """
    if holds_volumes(root):
        return _with_groups(root, read_volumes(root))
    images, masks = root / "images", root / "masks"
    by_class = class_folders(masks)
    if image_files(images) and not by_class and not (masks.is_dir() and image_files(masks)):
        raise InputError(
            f"{images} has images but {masks} has no masks: training and evaluation need both, "
            "so add one mask for each image under the same name; without masks, images can be "
            "predicted by `python -m wavegms predict`."
        )
    try:
        cases = read_classes(images, by_class) if by_class else read_two_folders(images, masks)
    except InputError:
        if by_class:
            raise
        try:
            cases, rest = match_files(image_files(images), image_files(masks), images, masks, False)
        except InputError:
            rest = [root]
        if rest:  # what was found first is nearer to what was meant
            raise
    return _with_groups(root, cases)


def _with_groups(root: Path, cases: Sequence[Case]) -> list[Case]:
    if not (root / GROUPS).exists():
        return list(cases)
    groups, grouped = _read_groups(root / GROUPS), []
    for case in cases:
        if _name(case.image) not in groups:
            raise InputError(
                f"{root / GROUPS} has no row for {case.image.name}: add one, or remove the table."
            )
        group, label = groups[_name(case.image)]
        grouped.append(replace(case, group=group, label=label))
    return grouped


def class_folders(masks: Path) -> list[Path]:
    """The folders in a folder of masks that hold images, where it directly holds none."""
    if not masks.is_dir() or image_files(masks):
        return []
    return [path for path in sorted(masks.iterdir()) if path.is_dir() and image_files(path)]


def read_classes(images: Path, folders: Sequence[Path]) -> list[Case]:
    """Pair images with masks of the same stem, at most one in each folder of a class."""
    masks = [path for folder in folders for path in image_files(folder)]
    pairs = pair_files(
        [(path.stem, path) for path in image_files(images)], [(path.stem, path) for path in masks]
    )
    for image, found in pairs:
        if len({path.parent for path in found}) < len(found):
            raise InputError(
                f"{image} has two masks in one folder of a class ({', '.join(map(str, found))}): "
                "remove one of them."
            )
    return [Case.of(image, found) for image, found in pairs]


def holds_volumes(root: Path) -> bool:
    """Whether a folder has the layout of `read_volumes`."""
    if (root / "imagesTr").is_dir():
        return True
    return holds_volume_files(root / "images")


def holds_volume_files(folder: Path) -> bool:
    """Whether a folder holds volumes, or folders of DICOM; and no picture."""
    if not folder.is_dir():
        return False
    inside = _volumes_in(folder)
    if any(map(is_volume, inside)) or image_files(folder):
        return not image_files(folder)
    return any(map(is_dicom, (path for one in inside for path in one.iterdir() if path.is_file())))


def read_volumes(root: Path) -> list[Case]:
    """Pair volumes and their labels: `imagesTr/` with `labelsTr/`, or `images/` with `masks/`.

    Of labels, each volume has one, called as the volume is, or without its `_0000`. A folder in
    `images/` is a DICOM series.
    """
    parts = ("imagesTr", "labelsTr") if (root / "imagesTr").is_dir() else ("images", "masks")
    return pair_volumes(*(root / part for part in parts))


def pair_volumes(images: Path, labels: Path) -> list[Case]:
    """The same for any two folders."""
    volumes = _volumes_in(images)
    if not labels.is_dir() or not any(is_volume(path) for path in labels.iterdir()):
        raise InputError(
            f"{labels} holds no labels ({' '.join(VOLUME_SUFFIXES)}), and {images} holds volumes: "
            "put one label file for each volume there, under the volume's name."
        )
    of_labels = [(file_stem(path), path) for path in _volumes_in(labels) if is_volume(path)]
    known = {_composed(stem) for stem, _ in of_labels}
    keys = []
    for path in volumes:
        bare = re.sub("_0000$", "", file_stem(path))
        keys.append((file_stem(path) if _composed(file_stem(path)) in known else bare, path))
        if re.search("_000[1-9]$", bare) and _composed(bare) not in known:
            raise InputError(
                f"{path} is a further channel of its case, and one is taken: remove it, or make "
                "the channel that counts the only one."
            )
    for image, found in (pairs := pair_files(keys, of_labels)):
        if len(found) > 1:
            raise InputError(
                f"{found[0]} and {found[1]} are both labels of {image.name}: remove one of them."
            )
    named = {path: key for key, path in keys}
    return [replace(Case.of(path, its, name=named[path]), volume=True) for path, its in pairs]


def unlabelled_volumes(root: Path) -> list[Path]:
    """Volumes without labels, which are not trained or tested on."""
    others = next((root / n for n in (UNLABELLED, "imagesTs") if (root / n).is_dir()), None)
    return _volumes_in(others) if others else []


def _volumes_in(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise InputError(f"{folder} is missing: see data/README.md for the layout of volumes.")
    entries = (path for path in folder.iterdir() if not path.name.startswith("."))
    return sorted(path for path in entries if is_volume(path) or path.is_dir())


def match_folders(images: Path, masks: Path) -> tuple[list[Case], list[Path]]:
    """Pair files wherever they lie, and list the images without a mask.

    Both are folders, searched to the bottom where they directly hold no image, or patterns such as
    `PH2/*/*_lesion/*.bmp`; see `match_files` for the names. Images and masks may share a folder.
    """
    others, mask_files = _listed(images), _listed(masks)
    together = set(mask_files) == set(others)
    if not together:  # a pattern of all images may well name the masks, too, or the other way round
        both = set(others) & set(mask_files)
        if both == set(others):
            mask_files = [path for path in mask_files if path not in both]
        else:
            others = [path for path in others if path not in both]
    base = Path(os.path.commonpath([path.parent for path in (*others, *mask_files)]))
    within = [where if where.is_dir() else base for where in (images, masks)]
    return match_files(others, mask_files, within[0], within[1], together)


def match_files(
    images: Sequence[Path], masks: Sequence[Path], above: Path, above_masks: Path, together: bool
) -> tuple[list[Case], list[Path]]:
    """Pair images and masks by their names, and list the images without a mask.

    A mask is called as its image, perhaps with an ending that is the same for all, such as `_mask`.
    Or both have a beginning or an ending of their own (`fine_3_1_fram`, `fine_3_1_mask`). Further
    masks of an image have a number (`_mask_1`, `_mask (2)`). Where names repeat in several folders,
    the folders below `above` count as part of them; where each case has a folder with one image,
    all masks in it are its own. With `together`, both lists are the same files.

    Raises:
        InputError: no name, more than one, or not all masks fit.
    """
    named = (
        _Names(images, above, "would both be called"),
        _Names(masks, above_masks, "are both masks of"),
    )
    try:
        found, rest = _by_whole_name(*named, together)
    except InputError:
        if together:
            named = named[1].split()
        found = _by_what_differs(*named) or _by_folder(*named)
        if not found:
            raise
        rest = [path for path in named[0].files.values() if path not in found]
    name_of = {path: name for name, path in named[0].files.items()}
    if together and rest and len(found) > 1:
        # more masks, as the field of view is beside what an expert drew
        taken, others = (named[0].only(paths) for paths in (found, rest))
        if more := _by_what_differs(taken, others):
            image, (other, *_) = next(iter(more.items()))
            raise InputError(
                f"{found[image][0]} and {other} are both called as {image.name}: name images and "
                "masks by patterns, such as --masks '*/*_manual1.gif', so that one is left."
            )
    if together:
        _require_no_more_masks([name_of[path] for path in found], [name_of[path] for path in rest])
    cases = [Case.of(path, found[path], name=name_of[path]) for path in images if path in found]
    return checked_cases(cases), rest


def pairing_rule(cases: Sequence[Case]) -> list[str]:
    """Says by what images and masks were paired, with three examples, and which have several."""
    first = [(_name(case.image), _name(case.masks[0])) for case in cases]
    endings = {mask[len(image) :] for image, mask in first if mask.startswith(image)}
    if len(endings) == 1 and all(mask.startswith(image) for image, mask in first):
        (ending,) = endings
        rule = "each mask is called as its image" + (f", with {ending} after it" if ending else "")
    else:
        rule = "images and masks are paired by what is left of their names without what all share"
    shown = [f"{case.image.name} with {case.masks[0].name}" for case in cases[:3]]
    said = [f"{rule}: {', '.join(shown)}"]
    several = [case for case in cases if len(case.masks) > 1]
    if several:
        names = [" and ".join(path.name for path in case.masks) for case in several[:3]]
        said.append(f"masks joined for {len(several)} images: {', '.join(names)}")
    return said


def place(
    cases: Sequence[Case], unlabelled: Sequence[Path], folder: Path, by_folder: bool = False
) -> None:
    """Copy images and masks to the layout that `read_plain` reads, all or none.

    With `by_folder`, masks stay in a folder of the name of the one that they are in.
    """
    stems = Counter(_name(path).casefold() for path in (*(c.image for c in cases), *unlabelled))
    repeated = max(stems.values(), default=1) > 1
    copies, of_masks, taken = [], [], {_name(case.image).casefold() for case in cases}
    for case in cases:
        name = case.id if repeated else file_stem(case.image)
        copies.append((case.image, f"images/{name}{_ending(case.image)}"))
        numbers = (n for n in count(2) if f"{name}_mask_{n}".casefold() not in taken)
        # the suffix tells how the file is written, so it stays
        for mask, number in zip(case.masks, ("", *islice(numbers, len(case.masks))), strict=False):
            ending = number and f"_mask_{number}"
            place = f"{mask.parent.name}/{name}" if by_folder else f"{name}{ending}"
            of_masks.append((mask, f"masks/{place}{_ending(mask)}"))
    copies += of_masks
    for path in unlabelled:
        parts = [*path.parent.parts[-2:], file_stem(path)] if repeated else [file_stem(path)]
        copies.append((path, f"{UNLABELLED}/{'_'.join(parts)}{_ending(path)}"))
    _copy(copies, folder)


def place_layout(root: Path, folder: Path) -> None:
    """Copy a folder that has a layout of `read_plain`, and nothing else that lies there."""
    names = ("images", "imagesTr", "masks", "labelsTr", UNLABELLED)
    names += (DESCRIPTION, GROUPS, SPACING, "train.txt", "test.txt")
    copies = [(root / name, name) for name in names if (root / name).exists()]
    # the Decathlon's own name of volumes without labels
    if (root / "imagesTs").is_dir() and not (root / UNLABELLED).exists():
        copies.append((root / "imagesTs", UNLABELLED))
    _copy(copies, folder)


def _copy(copies: Sequence[tuple[Path, str]], folder: Path) -> None:
    with replace_folder(folder) as fresh:
        for source, name in tqdm(copies, desc="Copying", unit="file"):
            try:
                (fresh / name).parent.mkdir(parents=True, exist_ok=True)
                if source.is_dir():
                    shutil.copytree(source, fresh / name)
                else:
                    shutil.copyfile(source, fresh / name)
            except (OSError, shutil.Error) as error:
                reason = getattr(error, "strerror", None) or "some of its files"
                raise InputError(
                    f"{source} cannot be copied to {folder} ({reason}): check its rights "
                    "and the space on the disk."
                ) from error


def _ending(path: Path) -> str:
    return path.name[len(file_stem(path)) :]


def _listed(where: Path) -> list[Path]:
    """Image files of a folder, of all folders below it if it has none itself, or of a pattern."""
    if where.is_file():
        raise InputError(f"{where} is a file: name the folder that holds it, or a pattern.")
    found: list[Path] = []
    if where.exists() or not glob.has_magic(str(where)):
        found = image_files(where)
        for parent, _, _ in walk(where) if not found else ():
            found += image_files(parent)
    else:
        found = [path for path in map(Path, matching(str(where))) if _is_image(path)]
    if not found:
        raise InputError(
            f"{where} holds no image file ({' '.join(IMAGE_SUFFIXES)}): name the folder that "
            "holds them, or a pattern such as 'scans/*/image.png'."
        )
    return found


class _Names:
    """What files are called: by their stems, or by folders and stems where stems repeat.

    Folders that all files lie in, such as `masks` in `patient 1/masks`, are left out.
    """

    def __init__(self, paths: Collection[Path], above: Path, clash: str):
        self.above, self.clash = above, clash
        self.folders: dict[Path, tuple[str, ...]] = dict.fromkeys(paths, ())
        if len({_name(path) for path in paths}) < len(paths):
            self.folders = {path: path.parent.relative_to(above).parts for path in paths}
        levels = list(zip(*self.folders.values(), strict=False))
        if all(len(one) == len(levels) for one in self.folders.values()):
            differing = [number for number, level in enumerate(levels) if len(set(level)) > 1]
            for path, one in self.folders.items():
                self.folders[path] = tuple(one[number] for number in differing)
        self.files: dict[str, Path] = {}
        for path in paths:
            name = "/".join((*self.folders[path], _name(path)))
            other = self.files.setdefault(name, path)
            if other is not path:
                raise InputError(
                    f"{other} and {path} {clash} {name}: rename or remove one of them."
                )

    def only(self, paths: Collection[Path]) -> "_Names":
        """Those of some files."""
        return _Names(paths, self.above, self.clash)

    def split(self) -> "tuple[_Names, _Names]":
        """Images, and what is called a mask by a word in its name."""
        masks = [path for name, path in self.files.items() if _MASK.search(name)]
        return self.only([path for path in self.files.values() if path not in masks]), self.only(
            masks
        )


def _by_whole_name(
    images: _Names, masks: _Names, together: bool
) -> tuple[dict[Path, list[Path]], list[Path]]:
    """Masks that are called as their image, perhaps with an ending and a number."""
    endings = _endings(images.files, masks.files, together)
    if not endings:
        raise InputError(
            f"no file in {masks.above} is called as an image in {images.above} is: give each mask "
            "its image's name, perhaps with an ending that is the same for all, such as _mask; or "
            "name images and masks by patterns, such as 'imagesTr/*_0000.png'."
        )
    for ending in (*endings, endings[0]):
        owners = {mask: _owner(mask, images.files, ending) for mask in masks.files}
        if together or None not in owners.values():
            break
    if together:
        # a mask may be the beginning of the name of a second one
        owners = {
            mask: owner
            for mask, owner in owners.items()
            if owner is not None or mask.endswith(ending)
        }
        images.files = {name: path for name, path in images.files.items() if name not in owners}
        owners = {mask: _owner(mask, images.files, ending) for mask in owners}
    numbered = {_unnumbered(name) for name in images.files if _unnumbered(name) != name}
    found: dict[str, list[str]] = {}
    for mask, owner in sorted(owners.items(), key=lambda pair: _natural(pair[0])):
        if owner is None:
            raise InputError(
                f"{masks.files[mask]} is the mask of no image in {images.above}, where it would be "
                f"called {mask.removesuffix(ending)}: add the image or remove the mask."
            )
        bare = not ending and _unnumbered(mask) == owner
        if mask != f"{owner}{ending}" and (bare or (ending and owner in numbered)):
            raise InputError(
                f"{masks.files[mask]} may be a further mask of {images.files[owner].name}, or that "
                f"of an image that is missing: call it {owner}_mask_2 and all masks of one image "
                "likewise, or add the image, or remove the mask."
            )
        found.setdefault(owner, []).append(mask)
    for owner, its in found.items():
        its.sort(key=lambda mask: (mask != f"{owner}{ending}", _natural(mask)))
    pairs = {
        images.files[owner]: [masks.files[mask] for mask in its] for owner, its in found.items()
    }
    return pairs, [path for path in images.files.values() if path not in pairs]


def _require_no_more_masks(named: Iterable[str], alone: Iterable[str]) -> None:
    """Refuse a file that is neither a mask nor plainly an image, among images and masks."""
    for name in alone:
        owner = max((one for one in named if name.startswith(one)), key=len, default=name)
        if re.match(r"[^\w]|_", _unnumbered(name[len(owner) :])):
            raise InputError(
                f"{name} is called as the image {owner} with something after it, but not as a mask "
                "is: remove it, call it as the other masks with a number, or name images and masks "
                "by patterns."
            )


def _owner(mask: str, names: Container[str], ending: str) -> str | None:
    """The image that a mask's name begins with, if an ending and at most a number follow.

    A number straight after the image's name needs brackets: `case_1_2` may be an image of its own,
    which got lost.
    """
    parts = [(mask[:length], mask[length:]) for length in range(len(mask), 0, -1)]
    known = [(name, rest) for name, rest in parts if name in names]
    for name, rest in known:
        if rest == ending:
            return name
    for name, rest in known:
        kind = _unnumbered(rest)
        if kind != rest and (kind == (ending or "_mask") or (not kind and rest.endswith(")"))):
            return name
    return None


def _unnumbered(text: str) -> str:
    """A name without the number at its end: `_mask_1`, `_mask2`, `_mask (3)`."""
    return re.sub(r"([ _.-]*\([0-9]+\)|[ _.-]+[0-9]+|(?<=[^\W\d_])[0-9]+)$", "", text)


def _by_what_differs(images: _Names, masks: _Names) -> dict[Path, list[Path]] | None:
    """Names with a beginning and an ending that all images share, and others that all masks do."""
    numbered = all(re.search("[0-9]", name) for name in (*images.files, *masks.files))
    for by_numbers in (True, False) if numbered else (False,):
        keys = _keys(images, by_numbers), _keys(masks, by_numbers)
        whole = all(
            len(one) == len(side.files) for one, side in zip(keys, (images, masks), strict=True)
        )
        if whole and (found := _by_keys(*keys)):
            return found
    return None


# What differs between the names of images or masks: in their folders and in themselves, and the
# number after what does not.
_Key = tuple[tuple[str, ...], str, str]


def _by_keys(images: dict[Path, _Key], masks: dict[Path, _Key]) -> dict[Path, list[Path]] | None:
    of_images = {(folders, middle): path for path, (folders, middle, _) in images.items()}
    if len(of_images) < len(images) or any(number or not m for _, m, number in images.values()):
        return None
    found: dict[Path, list[Path]] = {}
    for path, (folders, middle, _) in masks.items():
        if (folders, middle) not in of_images:
            return None
        found.setdefault(of_images[folders, middle], []).append(path)
    twice = len(set(masks.values())) < len(masks)
    return found if len(found) > 1 and not twice else None


def _keys(names: _Names, by_numbers: bool) -> dict[Path, _Key]:
    """What is left of names without what they share; without those that do not share it."""
    paths = list(names.files.values())
    columns = [*zip(*(names.folders[path] for path in paths), strict=False)]
    columns = [_middles(column, by_numbers) for column in (*columns, map(_name, paths))]
    return {
        path: (tuple(folder for folder, _ in folders), *stem)
        for path, (*folders, stem) in zip(paths, zip(*columns, strict=True), strict=True)
        if None not in (*folders, stem)
    }


def _middles(names: Iterable[str], by_numbers: bool) -> list[tuple[str, str] | None]:
    """Names without what most share at both ends, and the number that some have after it."""
    names = list(names)
    head, tail = _shared(names, by_numbers)
    middles = []
    for name in names:
        whole = name if name.startswith(head) and name.endswith(tail) else _unnumbered(name)
        fits = whole.startswith(head) and whole.endswith(tail)
        middle = whole[len(head) : len(whole) - len(tail)]
        middles.append((middle, name[len(whole) :]) if fits else None)
    return middles


def _shared(names: Sequence[str], by_numbers: bool) -> tuple[str, str]:
    """What most names begin and end with: all before and after digits, or up to a separator."""
    if by_numbers:
        heads = Counter(re.match(r"[^0-9]*", name)[0] for name in names)
        tails = Counter(re.search(r"[^0-9]*$", name)[0] for name in names)
        return heads.most_common(1)[0][0], tails.most_common(1)[0][0]
    head = os.path.commonprefix(names)  # noqa: RUF071 - letters, not folders
    tail = os.path.commonprefix([name[::-1] for name in names])[::-1]  # noqa: RUF071
    return re.match(r"(.*[\W_])?", head)[0], re.search(r"([\W_].*)?$", tail)[0]


def _by_folder(images: _Names, masks: _Names) -> dict[Path, list[Path]] | None:
    """Masks that lie in a folder of their own with one image, whatever they are called."""
    tops: dict[str, Path] = {}
    for path in images.files.values():
        top, *below = path.relative_to(images.above).parts
        if not below or top in tops:
            return None
        tops[top] = path
    found: dict[Path, list[Path]] = {}
    for path in masks.files.values():
        image = tops.get(path.relative_to(masks.above).parts[0])
        if image is None:
            return None
        found.setdefault(image, []).append(path)
    return found


def _endings(images: Container[str], masks: Iterable[str], together: bool) -> list[str]:
    """What masks' names have after the name of an image, that of most first."""
    # within a number, or a word if all lie together, no name ends
    inside = re.compile("[0-9]{2}|[^\\W\\d_]{2}" if together else "[0-9]{2}")
    endings = Counter(
        _unnumbered(mask[length:])
        for mask in masks
        for length in range(1, len(mask) + 1)
        if mask[:length] in images and not inside.fullmatch(mask[length - 1 : length + 1])
    )
    if together:
        del endings[""]
    # of several that are as frequent, the shortest: "case 1" is also the start of "case 12"
    return sorted(endings, key=lambda ending: (-endings[ending], len(ending)))


def _name(path: Path) -> str:
    return _composed(file_stem(path))


def _read_groups(path: Path) -> dict[str, tuple[str, str]]:
    """Read (group, label) of each image of a folder of one's own, by the stem of its name."""
    groups: dict[str, tuple[str, str]] = {}
    for image, group, label in _read_rows(path, "group", "label"):
        if not group:
            raise InputError(
                f"{path} has no group for {image}: give it one of its own, such as its name."
            )
        _enter(groups, path, image, (group, label))
    return groups


def with_spacing(cases: Sequence[Case], root: Path) -> list[Case]:
    r"""The cases with what `spacing.csv` in a dataset's folder says, if there is one.

    Its columns are image (a file's name, with or without its ending) and spacing: millimetres from
    pixel to pixel, or those of rows and of columns as DICOM writes them, `0.12\0.1`. It may leave
    images out.
    """
    path = root / SPACING
    if not path.exists():
        return list(cases)
    found: dict[str, tuple[float, float]] = {}
    for image, text, _ in _read_rows(path, "spacing"):
        try:
            numbers = [float(number) for number in text.split("\\")]
        except ValueError:
            numbers = []
        if len(numbers) not in (1, 2) or not all(0 < one < math.inf for one in numbers):
            raise InputError(
                f"{path} has the spacing {text!r} for {image}: write millimetres from pixel to "
                "pixel, such as 0.12, or those of rows and of columns, 0.12\\0.1."
            )
        _enter(found, path, image, (numbers[0], numbers[-1]))
    if not any(_name(case.image) in found for case in cases):
        raise InputError(
            f"{path} names no image of {root}: write the names of its files, or remove the table."
        )
    return [replace(case, spacing=found.get(_name(case.image))) for case in cases]


def _read_rows(path: Path, needed: str, optional: str = "") -> list[tuple[str, str, str]]:
    """Rows of a table about images: the image, and two columns of which the second may lack."""
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            return [
                (row["image"].strip(), row[needed].strip(), (row.get(optional) or "").strip())
                for row in csv.DictReader(file)
            ]
    except (AttributeError, KeyError, OSError, UnicodeDecodeError, csv.Error) as error:
        more = f", and perhaps {optional}" if optional else ""
        raise InputError(
            f"{path} is not a comma-separated table in UTF-8 with the columns image and "
            f"{needed}{more}: correct it or remove it."
        ) from error


def _enter(table: dict[str, _Said], path: Path, image: str, said: _Said) -> None:
    """Note what a table says of an image, by the stem of its name: once, or the same again."""
    if table.setdefault(_composed(file_stem(Path(image))), said) != said:
        raise InputError(f"{path} has two rows for {image} that differ: remove one of them.")
