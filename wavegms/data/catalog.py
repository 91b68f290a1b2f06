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
    checked_cases,
    image_files,
    pair_files,
    read_plain,
    read_two_folders,
    read_volumes,
    with_spacing,
)
from wavegms.errors import InputError
from wavegms.phantom.settings import CLASSES, PARTS


@dataclass(frozen=True)
class Download:
    """One file on the web."""

    file: str  # its name in data/downloads
    url: str
    size: int  # bytes; of the whole file if `exact`, else roughly, for the reader
    # "sha256:..." or "md5:..." in hexadecimal digits, or None where none is known: the first
    # download is then recorded and later ones are compared with it.
    checksum: str | None
    vouched_by: str  # who states size and checksum
    exact: bool = True
    # Folder below the target to unpack into, "" for the target itself, None to put the file there
    # as it is. A leading folder of the same name in the archive is not doubled.
    into: str | None = None


@dataclass(frozen=True)
class Source:
    """What `python -m wavegms get NAME` fetches and where it goes."""

    name: str  # on the command line; for a dataset, as in the catalog
    title: str
    target: str  # the folder that is filled, relative to the project's folder
    terms: str  # licence and terms, in a few words
    page: str  # which states them, and from which to download by hand
    downloads: tuple[Download, ...]
    inner: tuple[str, ...] = ()  # see `DatasetSpec`


@dataclass(frozen=True, kw_only=True)
class DatasetSpec:
    """What is known of a dataset before looking at its files."""

    name: str  # of the folder below the raw and the prepared data, and in the parameters
    title: str  # as in the paper
    modality: str  # the kind of image
    pairs: int | None = None  # how many the paper has, None where it does not use the dataset
    train: int | None = None
    test: int | None = None
    licence: str  # and access
    source: str  # where to get it
    layout: str  # the expected files, in words
    split_file: str | None = None  # name of the published split
    unpacked_as: str | None = None  # the folder that the published archive unpacks to
    # Whether masks were published at another size than their images, so that a difference is no
    # error if the shape is the same.
    masks_at_another_size: bool = False
    read: Callable[[Path], list[Case]]  # pairs the files below a folder that has the layout
    downloads: tuple[Download, ...] = ()
    # Archives inside the archives, relative to the raw folder; unpacked in place, and removed.
    inner: tuple[str, ...] = ()
    classes: tuple[str, ...] = ()  # names of several, by their values 1, 2 and so on


def _ham10000(part: str, number: str, size: int, md5: str) -> Download:
    file, url = f"HAM10000_{part}", f"https://dataverse.harvard.edu/api/access/datafile/{number}"
    into = file.removesuffix(".zip") if file.endswith(".zip") else None
    vouched_by = "Harvard Dataverse, as quoted by others"
    return Download(file, url, size, f"md5:{md5}", vouched_by, into=into)


def _split(name: str, size: int, sha256: str) -> Download:
    file, folder = f"{name}_train_test_names.pkl", name.replace("kvasir", "kvasir-instrument")
    # A commit, so that the lists cannot change behind the address.
    url = (
        "https://raw.githubusercontent.com/King-HAW/GMS/5a9ce0084d2558c800e420f2712ab2adc1af38a6/"
        f"Dataset/{folder}/{file}"
    )
    return Download(file, url, size, f"sha256:{sha256}", "this project, measured on a copy")


def _taesd(part: str, size: int, sha256: str) -> Download:
    file = f"taesd_{part}.safetensors"
    url = (
        "https://huggingface.co/madebyollin/taesd/resolve/614f76814bbe30edbe2e627ace1c2234c81a2c0e/"
        f"{file}"
    )
    return Download(file, url, size, f"sha256:{sha256}", "the hub, as quoted by others")


_HAM10000 = (
    _ham10000("images_part_1.zip", "3172585", 1_366_522_108, "4639bfa73ab251610530a97c898e6e46"),
    _ham10000("images_part_2.zip", "3172584", 1_403_566_547, "da43d6cc50f6613013be07e8986b384b"),
    _ham10000(
        "segmentations_lesion_tschandl.zip",
        "3838943",
        10_808_743,
        "6e8d252e09cfdb0189199f15985a5b84",
    ),
    # Without `original`, Dataverse gives a table of its own making, with tabs.
    _ham10000(
        "metadata.csv", "4338392?format=original", 690_218, "8f85fb1aa29d80a2797247e434deb79d"
    ),
)

_SPLITS = (
    _split("bus", 1_526, "1b4e40239913b06f97e6797f9208245738d424753b96df584f154dbddecea775"),
    _split("busi", 8_884, "ed7a3dd5764b4a90a49ad3b9bfb72cc9f7b708dbbd2244c3d874aace265fa5a7"),
    _split("kvasir", 16_579, "297a5c72ba9edca78a8804b933d9507091787ebb2455930bc75bc0bfc778cf7f"),
    _split("ham10000", 150_320, "74560789ab0f4db5e0c96abd1b59a180671fc9bd1a2d143c45f35151206f6521"),
)


def root_of(name: str, folder: Path) -> Path:
    """Find the folder that directly holds a dataset's layout: this, or the archive's in it."""
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
    """List the cases of a dataset in natural order (2 before 10), at least one.

    Ids differ even where upper and lower case do not.
    """
    spec = spec_of(name)
    root = root_of(name, folder)
    cases = spec.read(root)
    if not cases:
        raise InputError(f"{root} holds no images: expected {spec.layout}.")
    return with_spacing(checked_cases(cases), Path(folder))


def spec_of(name: str) -> DatasetSpec:
    """Look a dataset up; a name that is not in the catalog stands for a folder of one's own."""
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
        licence="your own",
        source="your own images",
        layout="images/NAME.png and masks/NAME.png (the same NAME, any common image format), or "
        "imagesTr/NAME.nii.gz and labelsTr/NAME.nii.gz",
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
        cases += [Case.of(image, found, label) for image, found in pairs]
    return cases


def _read_stu(root: Path) -> list[Case]:
    images, masks = [], []
    for path in image_files(root):
        kind, _, number = path.stem.rpartition("_")
        if kind.casefold() in ("test_image", "mask") and number.isdecimal():
            (masks if kind.casefold() == "mask" else images).append((number, path))
    return [Case.of(image, found) for image, found in pair_files(images, masks)]


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
    return [
        Case.of(image, found, *lesions.get(image.stem, ("", "")))
        for image, found in pair_files(images, masks)
    ]


def _ham10000_lesions(root: Path) -> dict[str, tuple[str, str]]:
    """Read (diagnosis, lesion) of each image, empty without the table of metadata."""
    for path in (root / "HAM10000_metadata", root / "HAM10000_metadata.csv"):
        if path.is_file():
            break
    else:
        return {}
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            return {
                row["image_id"]: (row["dx"] or "", row["lesion_id"] or "")
                for row in csv.DictReader(file)
            }
    except (KeyError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(
            f"{path} is not a comma-separated table with the columns lesion_id, image_id and dx: "
            "replace it with the published one or remove it."
        ) from error


_BUS_LAYOUT = "original/000001.png with GT/000001.png, and so on"

_DRAWN = {
    "licence": "made by this package",
    "source": "wavegms.phantom.scanner.write_phantoms, which draws it",
}

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
            licence="public, this project knows of no licence text; cite the article",
            source="https://scholar.cu.edu.eg/?q=afahmy/pages/dataset",
            layout=_BUSI_LAYOUT,
            split_file="busi_train_test_names.pkl",
            unpacked_as="Dataset_BUSI_with_GT",
            read=_read_busi,
            downloads=(
                Download(
                    file="Dataset_BUSI.zip",
                    url="https://scholar.cu.edu.eg/Dataset_BUSI.zip",
                    size=200_000_000,
                    checksum="sha256:"
                    "b2ce09f6063a31a73f628b6a6ee1245187cbaec225e93e563735691d68654de7",
                    vouched_by="from torch-em, another project; the publisher states none",
                    exact=False,
                    into="",
                ),
            ),
        ),
        DatasetSpec(
            name="kvasir_instrument",
            title="Kvasir-Instrument",
            modality="endoscopy",
            pairs=590,
            train=472,
            test=118,
            licence="research and education only, no commercial use without written permission; "
            "cite the article",
            source="https://datasets.simula.no/kvasir-instrument/",
            layout="images/*.jpg with masks/*.png of the same names, train.txt and test.txt",
            split_file="kvasir_train_test_names.pkl",
            unpacked_as="kvasir-instrument",
            read=_read_kvasir,
            downloads=(
                Download(
                    file="kvasir-instrument.zip",
                    url="https://datasets.simula.no/downloads/kvasir-instrument.zip",
                    size=170_000_000,
                    checksum=None,
                    vouched_by="none is published; the first download is recorded",
                    exact=False,
                    into="kvasir-instrument",
                ),
            ),
            inner=("kvasir-instrument/images.tar.gz", "kvasir-instrument/masks.tar.gz"),
        ),
        DatasetSpec(
            name="ham10000",
            title="HAM10000",
            modality="dermatoscopy",
            pairs=10015,
            train=8015,
            test=2000,
            licence="no commercial use, Creative Commons BY-NC-SA 4.0; cite the article",
            source="https://doi.org/10.7910/DVN/DBW86T",
            layout=(
                "HAM10000_images_part_1/ and HAM10000_images_part_2/ with ISIC_*.jpg, "
                "HAM10000_segmentations_lesion_tschandl/ with ISIC_*_segmentation.png, and "
                "HAM10000_metadata"
            ),
            split_file="ham10000_train_test_names.pkl",
            read=_read_ham10000,
            downloads=_HAM10000,
        ),
        DatasetSpec(
            name="stu",
            title="STU-Hospital",
            modality="breast ultrasound",
            licence="none stated, see its page",
            source="https://github.com/xbhlk/STU-Hospital",
            layout="Test_Image_1.png with mask_1.png, and so on",
            unpacked_as="Hospital",
            read=_read_stu,
            masks_at_another_size=True,
        ),
        DatasetSpec(
            name="phantom_a",
            title="Phantom A",
            modality="simulated ultrasound",
            **_DRAWN,
            layout=_BUS_LAYOUT,
            read=_read_bus,
        ),
        DatasetSpec(
            name="phantom_b",
            title="Phantom B",
            modality="simulated ultrasound",
            **_DRAWN,
            layout=_BUSI_LAYOUT,
            unpacked_as="Dataset_BUSI_with_GT",
            read=_read_busi,
        ),
        DatasetSpec(
            name="phantom_v",
            title="Phantom V",
            modality="simulated MR volumes",
            **_DRAWN,
            layout="imagesTr/phantom_001.nii.gz with labelsTr/phantom_001.nii.gz, and so on",
            read=read_volumes,
            classes=PARTS,
        ),
        DatasetSpec(
            name="phantom_c",
            title="Phantom C",
            modality="simulated ultrasound",
            **_DRAWN,
            layout="images/000001.png with label maps masks/000001.png, and so on",
            read=read_plain,
            classes=CLASSES,
        ),
    )
}

SOURCES: dict[str, Source] = {
    spec.name: Source(
        name=spec.name,
        title=f"{spec.title}, {spec.modality}",
        target=f"data/raw/{spec.name}",
        terms=spec.licence,
        page=spec.source,
        downloads=spec.downloads,
        inner=spec.inner,
    )
    for spec in CATALOG.values()
    if spec.downloads
}

SOURCES["splits"] = Source(
    name="splits",
    title="the published train and test lists",
    target="data/raw/splits",
    terms="part of the GMS repository, see there",
    page="https://github.com/King-HAW/GMS/tree/main/Dataset",
    downloads=_SPLITS,
)

SOURCES["taesd"] = Source(
    name="taesd",
    title="TAESD, the pretrained Tiny-VAE",
    target="models/taesd",
    terms="MIT",
    page="https://huggingface.co/madebyollin/taesd",
    downloads=(
        _taesd(
            "encoder", 4_895_600, "160d90c61c3a5ce50fe2cbe6404b3429f5763772d61b38523cc37e1525b4e19f"
        ),
        _taesd(
            "decoder", 4_895_612, "f0fb51dd10d41c26612c070fa0b52ea0215a5ff90792134b4971109dd713c019"
        ),
    ),
)
