"""The contract of a prepared folder: its manifest, its hash, and the audit beside it.

`images/<id>.png` (RGB), `masks/<id>.png` (as `write_mask` has it), where the mask had another size
`originals/<id>.png` (likewise, at the size of the source image), and `manifest.csv`, one
`ManifestRow` an image. Where they are slices of volumes also `volumes.csv`, one `VolumeRow` each.
"""

from __future__ import annotations

import hashlib
from math import nan
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
from PIL import Image, ImageColor
from pydantic import AfterValidator, BaseModel, Field, WrapValidator

from wavegms.classes import colours_of
from wavegms.data.cases import is_id
from wavegms.errors import InputError
from wavegms.files import read_table, sha256_of
from wavegms.images import Scale
from wavegms.variants import Plane

if TYPE_CHECKING:
    import pandas as pd

SPLITS = ("train", "val", "test")

# How a prepared mask shows background, foreground and pixels to ignore, in the order of their
# numbers in `wavegms.images`.
MASK_GREYS = np.array([0, 255, 128], np.uint8)
# From those greys to the numbers; any other grey is none of them.
MASK_KINDS = np.full(256, len(MASK_GREYS), np.uint8)
MASK_KINDS[MASK_GREYS] = range(len(MASK_GREYS))


def write_mask(path: Path, kinds: np.ndarray, classes: int) -> None:
    """Writes a mask, uint8 (H, W), as grey; of several classes as numbers with their colours."""
    if classes == 1:
        Image.fromarray(MASK_GREYS[kinds]).save(path)
        return
    picture = Image.fromarray(kinds)
    rgb = [(0, 0, 0), *map(ImageColor.getrgb, colours_of(classes)), (128, 128, 128)]
    picture.putpalette([value for colour in rgb for value in colour])
    picture.save(path)


def mask_kinds(mask: Image.Image, classes: int) -> np.ndarray:
    """What `write_mask` wrote; of another mode nothing."""
    if mask.mode != ("L" if classes == 1 else "P"):
        return np.zeros(0, np.uint8)
    return MASK_KINDS[np.array(mask)] if classes == 1 else np.array(mask)


def _check_id(id: str) -> str:
    # Ids become names of files, here and wherever results are written.
    if not is_id(id):
        raise ValueError("that cannot be a file's name")
    return id


def _check_scale(text: str) -> str:
    Scale.parse(text)
    return text


def _check_folds(text: str) -> str:
    parts = text.split(" ") if text else []
    if parts and (len(parts) < 2 or parts.count("test") != 1 or not set(parts) <= set(SPLITS)):
        raise ValueError("that does not say train, val or test of each fold, test of one")
    return text


# Of an array's index; Python's own numbers have no end.
_Pixels = Annotated[int, Field(ge=1, lt=2**63)]


# Behind the type of a column of numbers, of which some may be missing: an empty cell is NaN.
Missing = WrapValidator(lambda cell, check: nan if cell == "" else check(cell))

_Spacing = Annotated[float, Field(gt=0, allow_inf_nan=False), Missing]


class ManifestRow(BaseModel):
    """One image of a prepared folder."""

    id: Annotated[str, AfterValidator(_check_id)]  # of the image, and the name of both files
    split: Literal["train", "val", "test"]
    group: str  # images of one group share a split where the split is drawn here
    source: str  # the image file, relative to the dataset's raw folder
    original_width: _Pixels  # of the upright source image
    original_height: _Pixels
    sha256: str  # of the source image file, by which duplicates between datasets are found
    # Share of the prepared mask, foreground; 0 only in slices of volumes.
    mask_area: Annotated[float, Field(ge=0, le=1)]
    label: str  # class, empty where the dataset has none
    # Of the prepared pixels, see `pixels_hash`: they stand for the masks too, joined and resized,
    # so the mask files themselves need no hash.
    pixels: str
    # How the raw files were read, decided once for the dataset; empty in a manifest of before.
    foreground: str = ""  # values of the masks
    ignored: str = ""  # likewise
    scale: Annotated[str, AfterValidator(_check_scale)] = ""  # see `Scale`
    drawn_on: str = ""  # shown or stored, where EXIF turned this image and mask differently
    evidence: str = ""  # what says so
    original_pixels: str = ""  # of the mask before it was resized, see `mask_hash`
    row_spacing: _Spacing = nan  # mm from row to row of the source image, NaN where not known
    column_spacing: _Spacing = nan  # mm from column to column
    # The split in each fold, such as "test train val"; `split` is the first. No column without.
    folds: Annotated[str, AfterValidator(_check_folds)] = ""
    # Names of several classes, apart by blanks; there is no such column where there is one.
    classes: str = ""


_Distance = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class VolumeRow(BaseModel):
    """One volume of a prepared folder, whose slices are images of the manifest, see `slice_id`.

    Its truth, of pixels' kinds, lies in `volumes/<id>.nii.gz` on the grid of the source.
    """

    id: Annotated[str, AfterValidator(_check_id)]
    split: Literal["train", "val", "test"]
    group: str  # as in the manifest: what of several volumes is of one patient
    source: str  # the volume, relative to the dataset's raw folder
    labels: str  # and the file of its labels
    plane: Plane
    slices: _Pixels
    rows: _Pixels
    columns: _Pixels
    slices_mm: _Distance
    rows_mm: _Distance
    columns_mm: _Distance
    black: float  # intensities that became 0 and 255
    white: float
    foreground_voxels: Annotated[int, Field(ge=0, lt=2**63)]


class PairRow(BaseModel):
    """Two prepared images that are alike, or of one group."""

    id_a: str
    id_b: str  # later in the manifest
    split_a: Literal["train", "val", "test"]
    split_b: Literal["train", "val", "test"]
    label_a: str
    label_b: str
    # Same file or pixels; same picture; left for right; in the manifest only.
    kind: Literal["exact", "near", "mirrored", "same group"]
    similarity: Annotated[float, Field(ge=-1, le=1)]  # correlation of the detail, 1 for exact
    # One is for testing and the other for training or validation. With folds, where every image is
    # for testing once, they are in different folds.
    crosses_split: bool
    labels_differ: bool


MANIFEST_COLUMNS = tuple(ManifestRow.model_fields)

VOLUME_COLUMNS = tuple(VolumeRow.model_fields)

PAIR_COLUMNS = tuple(PairRow.model_fields)


def leaking_in(pairs: pd.DataFrame) -> set[str]:
    """The test images with a twin or a relative among those to train; with folds, both of a pair.

    Of `pairs`, drop the kind "same group" to count duplicates only.
    """
    crossing = pairs[pairs["crosses_split"]]
    sides = (crossing[f"id_{side}"][crossing[f"split_{side}"] == "test"] for side in "ab")
    return set().union(*sides)


def read_audit(path: Path) -> pd.DataFrame:
    """Read the pairs that `write_audit` wrote, one `PairRow` each."""
    if not Path(path).is_file():
        raise InputError(f"{path} does not exist: run the prepare stage first")
    remedy = "this is not the list of pairs of an audit, run the prepare stage again"
    return read_table(path, PairRow, remedy, may_be_empty=True)


def load_manifest(folder: Path) -> pd.DataFrame:
    """Load and check the manifest of a prepared folder, one `ManifestRow` an image."""
    path, remedy = _manifest_in(folder), "run the prepare stage again"
    manifest = read_table(path, ManifestRow, remedy)
    empty = manifest["mask_area"] == 0
    if empty.any() and not all(
        Scale.parse(text).volumes for text in manifest["scale"][empty].unique()
    ):
        id = manifest["id"][empty].iloc[0]
        raise InputError(f"{path} has a mask_area of 0 for {id}, no slice of a volume: {remedy}.")
    folds = manifest["folds"]
    if folds.str.count(" ").nunique() > 1 or folds.eq("").nunique() > 1:
        raise InputError(f"{path} has images of different numbers of folds: {remedy}.")
    return manifest


def load_volumes(folder: Path) -> pd.DataFrame | None:
    """Load the volumes that a prepared folder was cut from; None where they were pictures."""
    path = Path(folder) / "volumes.csv"
    if not path.is_file():
        return None
    return read_table(path, VolumeRow, "run the prepare stage again")


def slice_id(volume: str, number: int) -> str:
    """The id of a volume's slice, by its number along the stored axis, from 0."""
    return f"{volume}_s{number:03d}"


def number_of_folds(manifest: pd.DataFrame) -> int:
    """How many folds a manifest has, 0 if it has none."""
    return len(manifest["folds"][0].split())


def fold_of(manifest: pd.DataFrame) -> pd.Series:
    """The fold in which each image is for testing, from 1; 0 without folds."""
    return manifest["folds"].map(lambda text: ["", *text.split()].index("test") if text else 0)


def fold_folder(folder: Path, fold: int) -> Path:
    """Where what belongs to a fold lies: the first in the folder itself, others in it."""
    return folder if fold == 1 else folder / f"fold_{fold}"


def data_hash(folder: Path) -> str:
    """Identify prepared data: images, masks, splits and all.

    It is the SHA-256 of `manifest.csv`, which holds a hash of the pixels of every image and mask.
    Reading the manifest is therefore enough, and `PreparedDataset` checks the pixels against it.
    """
    return sha256_of(_manifest_in(folder))


def pixels_hash(image: np.ndarray, mask: np.ndarray) -> str:
    """Hash a prepared pair by its pixels, which do not depend on how PNG compresses them.

    It is the SHA-256 of the bytes of the image, uint8 (H, W, 3), and then of the mask (H, W), one
    byte a pixel, what it is as in `wavegms.images`.
    """
    return hashlib.sha256(image.tobytes() + mask.astype(np.uint8).tobytes()).hexdigest()


def mask_hash(mask: np.ndarray) -> str:
    """Hash a mask alone by its pixels, (H, W) as for `pixels_hash`."""
    return hashlib.sha256(mask.astype(np.uint8).tobytes()).hexdigest()


def _manifest_in(folder: Path) -> Path:
    path = Path(folder) / "manifest.csv"
    if not path.is_file():
        raise InputError(f"There is no prepared data in {folder}: run the prepare stage first.")
    return path
