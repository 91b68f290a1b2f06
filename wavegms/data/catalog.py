"""What each dataset is, where it comes from, and how its published layout is read.

A reader only pairs files: nothing is opened except HAM10000's small table of metadata. Names that
are not in `CATALOG` stand for a plain folder of one's own, with `images/` and `masks/`.
"""

import csv
import re
import unicodedata
from collections.abc import Callable, Iterable
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


@dataclass(frozen=True)
class DatasetSpec:
    """What is known of a dataset before looking at its files.

    Attributes:
        name: The folder name below the raw and the prepared data, and in the parameters.
        title: The name as in the paper.
        modality: The kind of image.
        pairs: Number of image-mask pairs in the paper, None where the paper does not use it.
        train: Number of them for training in the paper, or None.
        test: Number of them for testing in the paper, or None.
        licence: Licence and access, as text.
        source: Where to get it, as text.
        layout: The expected files, as text.
        split_file: File name of the published split, None where there is none.
        unpacked_as: Name of the folder that the published archive unpacks to, or None.
        masks_at_another_size: Whether masks were published at another size than their images, so
            that a difference is no error if the shape is the same.
        read: Pairs the files below a folder that has the layout.
    """

    name: str
    title: str
    modality: str
    pairs: int | None
    train: int | None
    test: int | None
    licence: str
    source: str
    layout: str
    split_file: str | None
    unpacked_as: str | None
    read: Callable[[Path], list[Case]]
    masks_at_another_size: bool = False


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


def root_of(name: str, folder: Path) -> Path:
    """Find the folder that directly holds a dataset's layout.

    Args:
        name: Name of the dataset.
        folder: That folder, or the one its archive was unpacked in.

    Returns:
        `folder` itself or the folder in it that the published archive makes.

    Raises:
        InputError: There is no such folder; the message says where to get the dataset.
    """
    spec = spec_of(name)
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(
            f"There is no dataset {name} in {folder}: get it from {spec.source}, "
            f"and place it there as {spec.layout}."
        )
    if spec.unpacked_as and (folder / spec.unpacked_as).is_dir():
        return folder / spec.unpacked_as
    return folder


def find_cases(name: str, folder: Path) -> list[Case]:
    """List the cases of a dataset in natural order (2 before 10).

    Args:
        name: A name in `CATALOG`, or any other for a plain folder of one's own.
        folder: The dataset's folder, see `root_of`.

    Returns:
        At least one case; the ids differ from each other even where upper and lower case do not.

    Raises:
        InputError: Missing folder, wrong layout, an image without mask or the reverse, two files
            with the same id, a name that is too long, no text or without any usable letter,
            a folder or a broken link in place of a file.
    """
    spec = spec_of(name)
    root = root_of(name, folder)
    cases = spec.read(root)
    if not cases:
        raise InputError(f"{root} holds no images: expected {spec.layout}.")
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
    return sorted(cases, key=lambda case: _natural(case.id))


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


def spec_of(name: str) -> DatasetSpec:
    """Look a dataset up.

    Args:
        name: A name in `CATALOG`, or any other for a plain folder of one's own; letters, digits,
            `_` and `-` only, since folders are called by it.

    Returns:
        Its description.

    Raises:
        InputError: The name is not usable as a folder name.
    """
    if name in CATALOG:
        return CATALOG[name]
    if not re.fullmatch(r"\w[\w-]*", name):
        raise InputError(
            f"The dataset name {name!r} cannot be a folder name: "
            "use letters, digits, underscores and hyphens."
        )
    return DatasetSpec(
        name=name,
        title=name,
        modality="your own",
        pairs=None,
        train=None,
        test=None,
        licence="your own",
        source="your own images",
        layout="images/NAME.png and masks/NAME.png (the same NAME, any common image format)",
        split_file=None,
        unpacked_as=None,
        read=_read_plain,
    )


def _natural(text: str) -> tuple:
    parts = re.split(r"([0-9]+)", text.casefold())
    # Odd places hold digits, so numbers are only ever compared with numbers.
    return tuple(int(part) if i % 2 else part for i, part in enumerate(parts)), text


def _image_files(folder: Path) -> list[Path]:
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


def _pair(
    images: Iterable[tuple[str, Path]],
    masks: Iterable[tuple[str, Path]],
) -> list[tuple[Path, tuple[Path, ...]]]:
    """Join (key, file) lists of images and masks; every key must be on both sides."""
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


def _read_two_folders(images: Path, masks: Path) -> list[Case]:
    """Pair files of the same stem in two folders."""
    pairs = _pair(
        [(path.stem, path) for path in _image_files(images)],
        [(path.stem, path) for path in _image_files(masks)],
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


def _read_bus(root: Path) -> list[Case]:
    return _read_two_folders(root / "original", root / "GT")


def _read_kvasir(root: Path) -> list[Case]:
    return _read_two_folders(root / "images", root / "masks")


def _read_plain(root: Path) -> list[Case]:
    images, masks = root / "images", root / "masks"
    if _image_files(images) and not (masks.is_dir() and _image_files(masks)):
        raise InputError(
            f"{images} has images but {masks} has no masks: training and evaluation need both, "
            "so add one mask for each image under the same name."
        )
    return _read_two_folders(images, masks)


def _read_busi(root: Path) -> list[Case]:
    # The third folder, normal, shows no lesion; the paper leaves it out, and so do we.
    cases = []
    for label in ("benign", "malignant"):
        images, masks = [], []
        for path in _image_files(root / label):
            match = re.fullmatch(r"(.+)_mask(?:_(\d+))?", path.stem)
            if match:
                masks.append((int(match[2] or 0), match[1], path))
            else:
                images.append((path.stem, path))
        pairs = _pair(images, [(stem, path) for _, stem, path in sorted(masks)])
        for image, found in pairs:
            name = case_id(image.stem)
            cases.append(Case(name, image, found, label, name))
    return cases


def _read_stu(root: Path) -> list[Case]:
    images, masks = [], []
    for path in _image_files(root):
        kind, _, number = path.stem.rpartition("_")
        if kind.casefold() in ("test_image", "mask") and number.isdecimal():
            (masks if kind.casefold() == "mask" else images).append((number, path))
    return [
        Case(case_id(image.stem), image, found, "", case_id(image.stem))
        for image, found in _pair(images, masks)
    ]


def _read_ham10000(root: Path) -> list[Case]:
    images = [
        (path.stem, path)
        for part in ("HAM10000_images_part_1", "HAM10000_images_part_2")
        for path in _image_files(root / part)
    ]
    masks = [
        (path.stem.removesuffix("_segmentation"), path)
        for path in _image_files(root / "HAM10000_segmentations_lesion_tschandl")
    ]
    lesions = _ham10000_lesions(root)
    cases = []
    for image, found in _pair(images, masks):
        lesion, diagnosis = lesions.get(image.stem, (image.stem, ""))
        cases.append(Case(case_id(image.stem), image, found, diagnosis, lesion))
    return cases


def _ham10000_lesions(root: Path) -> dict[str, tuple[str, str]]:
    """Read (lesion, diagnosis) of each image, empty without the table of metadata."""
    for path in (root / "HAM10000_metadata", root / "HAM10000_metadata.csv"):
        if path.is_file():
            break
    else:
        return {}
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            return {
                row["image_id"]: (row["lesion_id"] or row["image_id"], row["dx"] or "")
                for row in csv.DictReader(file)
            }
    except (KeyError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(
            f"{path} is not a comma-separated table with the columns lesion_id, image_id and dx: "
            "replace it with the published one or remove it."
        ) from error


_BUS_LAYOUT = "original/000001.png with GT/000001.png, and so on"
_BUSI_LAYOUT = (
    "Dataset_BUSI_with_GT/{benign,malignant}/ with 'benign (1).png', 'benign (1)_mask.png' and "
    "so on"
)

CATALOG: dict[str, DatasetSpec] = {
    spec.name: spec
    for spec in (
        DatasetSpec(
            name="bus",
            title="BUS",
            modality="breast ultrasound",
            pairs=163,
            train=132,
            test=31,
            licence="by signed request only; no copy may be passed on",
            source="its authors on request (UDIAT Dataset B, M. H. Yap et al., see data/README.md)",
            layout=_BUS_LAYOUT,
            split_file="bus_train_test_names.pkl",
            unpacked_as="BUS",
            read=_read_bus,
        ),
        DatasetSpec(
            name="busi",
            title="BUSI",
            modality="breast ultrasound",
            pairs=647,
            train=517,
            test=130,
            licence="public, see its page",
            source="https://scholar.cu.edu.eg/?q=afahmy/pages/dataset",
            layout=_BUSI_LAYOUT,
            split_file="busi_train_test_names.pkl",
            unpacked_as="Dataset_BUSI_with_GT",
            read=_read_busi,
        ),
        DatasetSpec(
            name="kvasir_instrument",
            title="Kvasir-Instrument",
            modality="endoscopy",
            pairs=590,
            train=472,
            test=118,
            licence="public, see its page",
            source="https://datasets.simula.no/kvasir-instrument",
            layout="images/*.jpg with masks/*.png of the same names, train.txt and test.txt",
            split_file="kvasir_train_test_names.pkl",
            unpacked_as="kvasir-instrument",
            read=_read_kvasir,
        ),
        DatasetSpec(
            name="ham10000",
            title="HAM10000",
            modality="dermatoscopy",
            pairs=10015,
            train=8015,
            test=2000,
            licence="CC BY-NC-SA 4.0",
            source="https://doi.org/10.7910/DVN/DBW86T",
            layout=(
                "HAM10000_images_part_1/ and HAM10000_images_part_2/ with ISIC_*.jpg, "
                "HAM10000_segmentations_lesion_tschandl/ with ISIC_*_segmentation.png, and "
                "HAM10000_metadata"
            ),
            split_file="ham10000_train_test_names.pkl",
            unpacked_as=None,
            read=_read_ham10000,
        ),
        DatasetSpec(
            name="stu",
            title="STU-Hospital",
            modality="breast ultrasound",
            pairs=None,
            train=None,
            test=None,
            licence="none stated, see its page",
            source="https://github.com/xbhlk/STU-Hospital",
            layout="Test_Image_1.png with mask_1.png, and so on",
            split_file=None,
            unpacked_as="Hospital",
            read=_read_stu,
            masks_at_another_size=True,
        ),
        DatasetSpec(
            name="phantom_a",
            title="Phantom A",
            modality="simulated ultrasound",
            pairs=None,
            train=None,
            test=None,
            licence="made by this package",
            source="wavegms.data.phantom.write_phantoms, which draws it",
            layout=_BUS_LAYOUT,
            split_file=None,
            unpacked_as=None,
            read=_read_bus,
        ),
        DatasetSpec(
            name="phantom_b",
            title="Phantom B",
            modality="simulated ultrasound",
            pairs=None,
            train=None,
            test=None,
            licence="made by this package",
            source="wavegms.data.phantom.write_phantoms, which draws it",
            layout=_BUSI_LAYOUT,
            split_file=None,
            unpacked_as="Dataset_BUSI_with_GT",
            read=_read_busi,
        ),
    )
}
