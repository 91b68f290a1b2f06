"""The contract of a prepared folder: its manifest, its hash, and the audit beside it.

`images/<id>.png` (RGB), `masks/<id>.png` (grey, 0 or 255) and `manifest.csv` with the columns of
`MANIFEST_COLUMNS`, one row an image.
"""

import hashlib
from pathlib import Path

import numpy as np
import pandas as pd

from wavegms.data.cases import is_id
from wavegms.errors import InputError, first_line
from wavegms.files import sha256_of

# What each column of the pairs holds.
PAIR_COLUMNS = {
    "id_a": "one image",
    "id_b": "the other, later in the manifest",
    "split_a": "train, val or test",
    "split_b": "train, val or test",
    "label_a": "class, empty where the dataset has none",
    "label_b": "class of the other",
    "kind": "exact (same file or pixels), near (same picture), mirrored (left for right) or same "
    "group (in the manifest only)",
    "similarity": "correlation of the detail, 1 for exact",
    "crosses_split": "whether one is for testing and the other for training or validation",
    "labels_differ": "whether the two have different classes",
}


def leaking_ids(scores: pd.DataFrame, pairs: pd.DataFrame) -> list[str]:
    """Say which scored test images have a twin or a relative among the training images.

    Args:
        scores: A row for each test image, with the column id, as `score_split` gives.
        pairs: What `audit_prepared` found; drop the kind "same group" to count duplicates only.

    Returns:
        Their ids, in the order of the scores.
    """
    leaking = _leaking(pairs)
    return [id for id in scores["id"] if id in leaking]


def read_audit(path: Path) -> pd.DataFrame:
    """Read the pairs that `write_audit` wrote.

    Args:
        path: The CSV file.

    Returns:
        The pairs, as `audit_prepared` gives them.

    Raises:
        InputError: The file is missing or is none of ours.
    """
    texts = ["id_a", "id_b", "split_a", "split_b", "label_a", "label_b", "kind"]
    try:
        pairs = pd.read_csv(path, dtype=dict.fromkeys(texts, str), keep_default_na=False)
        return pairs[list(PAIR_COLUMNS)].astype(
            {"similarity": float, "crosses_split": bool, "labels_differ": bool}
        )
    except FileNotFoundError as error:
        raise InputError(f"{path} does not exist: run the prepare stage first") from error
    except (ValueError, KeyError) as error:
        raise InputError(
            f"{path} is not the list of pairs of an audit: run the prepare stage again"
        ) from error


def _leaking(pairs: pd.DataFrame) -> set[str]:
    crossing = pairs[pairs["crosses_split"]]
    in_test = crossing["split_a"] == "test"
    return set(crossing["id_a"].where(in_test, crossing["id_b"]))


SPLITS = ("train", "val", "test")

# What each column holds. `pixels` stands for the masks too, joined and resized, so the mask files
# themselves need no hash; the image file has one, by which duplicates between datasets are found.
MANIFEST_COLUMNS = {
    "id": "name of the image, and of both files",
    "split": "train, val or test",
    "group": "images of one group share a split where the split is drawn here",
    "source": "the image file, relative to the dataset's raw folder",
    "original_width": "width of the upright source image, pixels",
    "original_height": "height of the upright source image, pixels",
    "sha256": "SHA-256 of the source image file",
    "mask_area": "share of the prepared mask that is foreground, above 0 and up to 1",
    "label": "class, empty where the dataset has none",
    "pixels": "SHA-256 of the prepared pixels, see pixels_hash",
}


def load_manifest(folder: Path) -> pd.DataFrame:
    """Load and check the manifest of a prepared folder.

    Args:
        folder: The prepared folder.

    Returns:
        One row for each image with the columns of `MANIFEST_COLUMNS`; texts as str, sizes as int,
        mask_area as float; at least one row.

    Raises:
        InputError: The folder is not prepared, or its manifest was changed by other means.
    """
    path = Path(folder) / "manifest.csv"
    if not path.is_file():
        raise InputError(f"There is no prepared data in {folder}: run the prepare stage first.")
    remedy = "run the prepare stage again"
    numbers = {"original_width": int, "original_height": int, "mask_area": float}
    try:
        # An id such as 000001 or NA is a text.
        manifest = pd.read_csv(path, dtype=str, keep_default_na=False, encoding="utf-8")
        manifest = manifest.astype(
            {column: kind for column, kind in numbers.items() if column in manifest}
        )
    except (ValueError, OverflowError, OSError) as error:
        raise InputError(f"{path} cannot be read ({first_line(error)}): {remedy}.") from error
    missing = [column for column in MANIFEST_COLUMNS if column not in manifest]
    if missing:
        raise InputError(f"{path} lacks the column {missing[0]}: {remedy}.")
    if manifest.empty:
        raise InputError(f"{path} lists no image: {remedy}.")
    if manifest.isna().any(axis=None):
        raise InputError(f"{path} has a row with too few values: {remedy}.")
    for id in manifest["id"]:
        # Ids become names of files, here and wherever results are written.
        if not is_id(id):
            raise InputError(f"{path} has the id {id!r}, which cannot be a file's name: {remedy}.")
    if manifest["id"].duplicated().any():
        twice = manifest["id"][manifest["id"].duplicated()].iloc[0]
        raise InputError(f"{path} lists {twice} twice: {remedy}.")
    unknown = set(manifest["split"]) - set(SPLITS)
    if unknown:
        raise InputError(f"{path} has the unknown split {min(unknown)!r}: {remedy}.")
    if (manifest[["original_width", "original_height"]] < 1).any(axis=None):
        raise InputError(f"{path} has an image without pixels: {remedy}.")
    if not manifest["mask_area"].between(0, 1, inclusive="right").all():
        raise InputError(f"{path} has a mask_area that is not above 0 and up to 1: {remedy}.")
    return manifest


def data_hash(folder: Path) -> str:
    """Identify prepared data: images, masks, splits and all.

    It is the SHA-256 of `manifest.csv`, which holds a hash of the pixels of every image and mask.
    Reading the manifest is therefore enough, and `PreparedDataset` checks the pixels against it.

    Args:
        folder: The prepared folder.

    Returns:
        64 hexadecimal digits.

    Raises:
        InputError: The folder is not prepared.
    """
    path = Path(folder) / "manifest.csv"
    if not path.is_file():
        raise InputError(f"There is no prepared data in {folder}: run the prepare stage first.")
    return sha256_of(path)


def pixels_hash(image: np.ndarray, mask: np.ndarray) -> str:
    """Hash a prepared pair by its pixels, which do not depend on how PNG compresses them.

    Args:
        image: uint8 array (H, W, 3).
        mask: Boolean array (H, W).

    Returns:
        64 hexadecimal digits: SHA-256 of the image's bytes and then the mask's, one byte a pixel,
        0 or 1.
    """
    return hashlib.sha256(image.tobytes() + mask.astype(np.uint8).tobytes()).hexdigest()
