"""What each dataset is, where it comes from, and how its published layout is read.

A reader only pairs files: nothing is opened except HAM10000's small table of metadata. Names that
are not in `CATALOG` stand for a plain folder of one's own, with `images/` and `masks/`.
"""

import csv
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from wavegms.data.cases import (
    Case,
    case_id,
    checked_cases,
    image_files,
    pair_files,
    read_two_folders,
)
from wavegms.data.plain import read_plain
from wavegms.data.sources import SOURCES
from wavegms.errors import InputError


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
        way = f"get it from {spec.source}"
        if name in SOURCES:
            way += f" or by `python -m wavegms get {name}`"
        elif name not in CATALOG:
            way = f"run `python -m wavegms add {name} --images FOLDER --masks FOLDER`"
        raise InputError(
            f"There is no dataset {name} in {folder}: {way}, or place it there as {spec.layout}."
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
    return checked_cases(cases)


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
        read=read_plain,
    )


def _read_bus(root: Path) -> list[Case]:
    return read_two_folders(root / "original", root / "GT")


def _read_kvasir(root: Path) -> list[Case]:
    return read_two_folders(root / "images", root / "masks")


def _read_busi(root: Path) -> list[Case]:
    # The third folder, normal, shows no lesion; the paper leaves it out, and so do we.
    cases = []
    for label in ("benign", "malignant"):
        images, masks = [], []
        for path in image_files(root / label):
            match = re.fullmatch(r"(.+)_mask(?:_(\d+))?", path.stem)
            if match:
                masks.append((int(match[2] or 0), match[1], path))
            else:
                images.append((path.stem, path))
        pairs = pair_files(images, [(stem, path) for _, stem, path in sorted(masks)])
        for image, found in pairs:
            name = case_id(image.stem)
            cases.append(Case(name, image, found, label, name))
    return cases


def _read_stu(root: Path) -> list[Case]:
    images, masks = [], []
    for path in image_files(root):
        kind, _, number = path.stem.rpartition("_")
        if kind.casefold() in ("test_image", "mask") and number.isdecimal():
            (masks if kind.casefold() == "mask" else images).append((number, path))
    return [
        Case(case_id(image.stem), image, found, "", case_id(image.stem))
        for image, found in pair_files(images, masks)
    ]


def _read_ham10000(root: Path) -> list[Case]:
    images = [
        (path.stem, path)
        for part in ("HAM10000_images_part_1", "HAM10000_images_part_2")
        for path in image_files(root / part)
    ]
    masks = [
        (path.stem.removesuffix("_segmentation"), path)
        for path in image_files(root / "HAM10000_segmentations_lesion_tschandl")
    ]
    lesions = _ham10000_lesions(root)
    cases = []
    for image, found in pair_files(images, masks):
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
