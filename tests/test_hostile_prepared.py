"""A prepared folder that was changed by other means: its own pixels, or one sentence."""

import csv
import io
import os
from functools import cache
from pathlib import Path

import numpy as np
import torch
from hostile import NO_FILES, Reader, damaged, files, rewritten, scratch, suite
from hypothesis import strategies as st
from layouts import tree, write_busi
from PIL import Image

from wavegms.data.audit import audit_prepared, write_audit
from wavegms.data.dataset import PreparedDataset
from wavegms.data.manifest import MANIFEST_COLUMNS, SPLITS, load_manifest, read_audit
from wavegms.data.prepare import prepare_dataset


@cache
def good() -> tuple[dict[str, bytes], bytes]:
    """The files of a prepared folder, and of its audit."""
    with scratch() as root:
        prepare_dataset(
            "busi",
            write_busi(root / "raw"),
            root / "prepared",
            image_size=16,
            split="random",
            split_folder=root,
            test_fraction=0.25,
            validation_fraction=0.25,
            seed=3,
        )
        write_audit(audit_prepared(root / "prepared")[0], root / "pairs.csv")
        return tree(root / "prepared"), (root / "pairs.csv").read_bytes()


@cache
def pixels(id: str) -> tuple[torch.Tensor, torch.Tensor]:
    """The image and the mask of an id, read without the package."""
    image, mask = (
        np.asarray(Image.open(io.BytesIO(good()[0][f"{part}/{id}.png"])))
        for part in ("images", "masks")
    )
    return torch.tensor(image.transpose(2, 0, 1)), torch.tensor(mask[None] // 255)


def sound_manifest(manifest, _path) -> None:
    assert list(manifest) == list(MANIFEST_COLUMNS) and len(manifest) > 0
    assert manifest["id"].is_unique and set(manifest["split"]) <= set(SPLITS)
    for row in manifest.itertuples():
        for text in (row.id, row.group, row.source, row.sha256, row.label, row.pixels):
            assert isinstance(text, str)
        assert row.id and row.id == os.path.basename(row.id) and row.id.isprintable()
        assert 0 < row.mask_area <= 1 and row.original_width > 0 and row.original_height > 0


def sound_pairs(pairs, _path) -> None:
    assert pairs["similarity"].dtype == float and pairs["similarity"].between(-1, 1).all()
    assert pairs["crosses_split"].dtype == bool and pairs["labels_differ"].dtype == bool
    assert set(pairs["split_a"]) | set(pairs["split_b"]) <= set(SPLITS)


def sound_pixels(parts, _folder) -> None:
    for data in parts:
        for index, id in enumerate(data.ids):
            image, mask = pixels(id)
            assert torch.equal(data[index]["image"], image)
            assert torch.equal(data[index]["mask"], mask)


def open_splits(folder: Path) -> list[PreparedDataset]:
    """Each split that is listed, as training and evaluation open them."""
    listed = set(load_manifest(folder)["split"])
    return [PreparedDataset(folder, split) for split in SPLITS if split in listed]


CELLS = [
    *("", " ", "nan", "NA", "inf", "-1", "0", "1e999", "1.5", "9" * 30, "9" * 5000, "0x10", "1_0"),
    *("../../x", "/etc/passwd", "a/b", "a\\b", "a\nb", "a\rb", "\0", "é", "e\u0301", "=1+1", '"'),
    *("x" * 300, "True", "train", "test", "malignant_1", "benign_2", "١", "\ufeff"),
]


def write_rows(path: Path, rows: list[list[str]]) -> None:
    with open(path, "w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows(rows)


def change_cells(draw, path: Path) -> None:
    """A few cells of a table, or of rows that then are too short or too long."""
    rows = list(csv.reader(io.StringIO(path.read_text())))
    for _ in range(draw(st.integers(1, 3))):
        row = rows[draw(st.integers(0, len(rows) - 1))]
        change = draw(st.sampled_from(["cell", "cell", "cell", "drop", "add"]))
        if change == "cell":
            row[draw(st.integers(0, len(row) - 1))] = draw(st.sampled_from(CELLS))
        elif change == "drop":
            row.pop()
        else:
            row.append(draw(st.sampled_from(CELLS)))
    write_rows(path, rows)


def change_one_cell(draw, path: Path) -> None:
    rows = list(csv.reader(io.StringIO(path.read_text())))
    rows[1][draw(st.sampled_from(range(len(rows[0]))))] = draw(st.sampled_from(CELLS))
    write_rows(path, rows)


def change_bytes(draw, folder: Path) -> None:
    contents = good()[0]
    name = draw(st.one_of(st.just("manifest.csv"), st.sampled_from(sorted(contents))))
    others = list(contents.values())[:3]
    (folder / name).write_bytes(draw(damaged([contents[name], *others])))


def in_another_shape(part: str, shape: tuple[int, int]):
    """The same bytes, and so the same hash, but another image."""

    def change(folder: Path) -> None:
        path = sorted((folder / part).iterdir())[0]
        values = np.asarray(Image.open(path))
        Image.fromarray(values.reshape(*shape, *values.shape[2:])).save(path)

    return change


READERS = {
    "manifest": Reader(
        read=lambda path: load_manifest(path.parent),
        make=lambda path: path.write_bytes(good()[0]["manifest.csv"]),
        sound=sound_manifest,
        file="manifest.csv",
        names=lambda path: [path.parent],
        broken=NO_FILES,
        random={
            "any cells": (100, change_cells),
            "any cell": (len(CELLS) * len(MANIFEST_COLUMNS), change_one_cell),
        },
    ),
    "folder": Reader(
        read=open_splits,
        make=lambda folder: files(good()[0])(folder),
        sound=sound_pixels,
        broken={
            f"{part} of {shape}": in_another_shape(part, shape)
            for part in ("images", "masks")
            for shape in ((8, 32), (64, 4))
        },
        random={
            "any cells": (100, lambda draw, folder: change_cells(draw, folder / "manifest.csv")),
            "bytes of any file": (70, change_bytes),
        },
    ),
    "audit": Reader(
        read=read_audit,
        make=lambda path: path.write_bytes(good()[1]),
        sound=sound_pairs,
        file="pairs.csv",
        whole={"no pair": lambda path: path.write_text(path.read_text().splitlines()[0])},
        broken=NO_FILES
        | {
            "a truth": rewritten(lambda _: good()[1].replace(b"True", b"maybe")),
        },
        random={
            "damaged": (100, lambda draw, path: path.write_bytes(draw(damaged([good()[1]])))),
            "any cells": (100, change_cells),
        },
    ),
}

test_valid_folders, test_broken_folders, test_random_folders = suite(READERS)
