"""A prepared folder that was changed by other means: its own pixels, or one sentence."""

import csv
import io
import os
import shutil

import numpy as np
import pandas as pd
import pytest
import torch
from hostile import damaged, fuzz, outcome, scratch
from hypothesis import given
from hypothesis import strategies as st
from layouts import tree, write_busi
from PIL import Image

from wavegms.data.audit import audit_prepared, write_audit
from wavegms.data.dataset import PreparedDataset
from wavegms.data.manifest import MANIFEST_COLUMNS, SPLITS, load_manifest, read_audit
from wavegms.data.prepare import prepare_dataset


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    root = tmp_path_factory.mktemp("prepared")
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
    return root / "prepared"


@pytest.fixture(scope="module")
def pixels(good):
    """The image and the mask of each id, read without the package."""
    return {
        path.stem: (
            np.asarray(Image.open(path)).transpose(2, 0, 1),
            np.asarray(Image.open(good / "masks" / path.name))[None] // 255,
        )
        for path in (good / "images").iterdir()
    }


@pytest.fixture(scope="module")
def pairs_of_good(good, tmp_path_factory):
    path = tmp_path_factory.mktemp("audit") / "pairs.csv"
    write_audit(audit_prepared(good)[0], path)
    return path.read_bytes()


def assert_sound(manifest: pd.DataFrame) -> None:
    assert set(MANIFEST_COLUMNS) <= set(manifest.columns) and len(manifest) > 0
    assert manifest["id"].is_unique and set(manifest["split"]) <= set(SPLITS)
    for row in manifest.itertuples():
        for text in (row.id, row.group, row.source, row.sha256, row.label, row.pixels):
            assert isinstance(text, str)
        assert row.id and row.id == os.path.basename(row.id) and row.id.isprintable()
        assert 0 < row.mask_area <= 1 and row.original_width > 0 and row.original_height > 0


def judge(folder, pixels) -> None:
    """The manifest is sound or refused, and so is every split that it lists."""
    names = [folder / "manifest.csv"]
    manifest = outcome(folder, names, lambda: load_manifest(folder))
    if manifest is not None:
        assert_sound(manifest)
    for split in SPLITS:
        names = [folder]
        data = outcome(folder, names, lambda split=split: PreparedDataset(folder, split))
        if data is None:
            continue
        assert manifest is not None
        for index, id in enumerate(data.ids):
            image, mask = pixels[id]
            item = data[index]
            assert torch.equal(item["image"], torch.from_numpy(image.copy()))
            assert torch.equal(item["mask"], torch.from_numpy(mask.copy()))


CELLS = [
    *("", " ", "nan", "NA", "inf", "-1", "0", "1e999", "1.5", "9" * 30, "9" * 5000, "0x10", "1_0"),
    *("../../x", "/etc/passwd", "a/b", "a\\b", "a\nb", "a\rb", "\0", "é", "e\u0301", "=1+1", '"'),
    *("x" * 300, "True", "train", "test", "malignant_1", "benign_2", "١", "\ufeff"),
]


@fuzz(100)
@given(st.data())
def test_cells_of_a_manifest(survived, good, pixels, data):
    with scratch() as root:
        folder = root / "x"
        shutil.copytree(good, folder)
        rows = list(csv.reader(io.StringIO((good / "manifest.csv").read_text())))
        for _ in range(data.draw(st.integers(1, 3))):
            row = rows[data.draw(st.integers(0, len(rows) - 1))]
            change = data.draw(st.sampled_from(["cell", "cell", "cell", "drop", "add"]))
            if change == "cell":
                row[data.draw(st.integers(0, len(row) - 1))] = data.draw(st.sampled_from(CELLS))
            elif change == "drop":
                row.pop()
            else:
                row.append(data.draw(st.sampled_from(CELLS)))
        with open(folder / "manifest.csv", "w", newline="", encoding="utf-8") as file:
            csv.writer(file, lineterminator="\n").writerows(rows)
        judge(folder, pixels)
    survived("inputs")


@pytest.mark.parametrize("column", list(MANIFEST_COLUMNS))
def test_every_cell_in_every_column(survived, good, column):
    rows = list(csv.DictReader(io.StringIO((good / "manifest.csv").read_text())))
    for cell in CELLS:
        with scratch() as folder:
            path = folder / "manifest.csv"
            with open(path, "w", newline="", encoding="utf-8") as file:
                table = csv.DictWriter(file, list(MANIFEST_COLUMNS), lineterminator="\n")
                table.writeheader()
                table.writerows([rows[0] | {column: cell}, *rows[1:]])
            manifest = outcome(folder, [path], lambda folder=folder: load_manifest(folder))
        if manifest is not None:
            assert_sound(manifest)
        survived("inputs")


@fuzz(70)
@given(st.data())
def test_bytes_of_any_file_of_it(survived, good, pixels, data):
    files = tree(good)
    name = data.draw(st.one_of(st.just("manifest.csv"), st.sampled_from(sorted(files))))
    with scratch() as root:
        folder = root / "x"
        shutil.copytree(good, folder)
        (folder / name).write_bytes(data.draw(damaged([files[name], *list(files.values())[:3]])))
        judge(folder, pixels)
    survived("inputs")


@pytest.mark.parametrize("shape", [(8, 32), (64, 4)])
@pytest.mark.parametrize("part", ["images", "masks"])
def test_the_same_bytes_in_another_shape_are_another_image(survived, good, pixels, shape, part):
    """Their hash is the same."""
    with scratch() as root:
        folder = root / "x"
        shutil.copytree(good, folder)
        path = folder / part / f"{PreparedDataset(good, 'train').ids[0]}.png"
        values = np.asarray(Image.open(path))
        Image.fromarray(values.reshape(*shape, *values.shape[2:])).save(path)
        judge(folder, pixels)
        survived("inputs")


@fuzz(100)
@given(st.data())
def test_a_list_of_pairs(survived, pairs_of_good, data):
    with scratch() as root:
        path = root / "pairs.csv"
        path.write_bytes(data.draw(damaged([pairs_of_good])))
        pairs = outcome(root, [path], lambda: read_audit(path))
        if pairs is not None:
            assert pairs["similarity"].dtype == float and pairs["crosses_split"].dtype == bool
    survived("inputs")
