from itertools import chain

import numpy as np
import psutil
import pytest
import torch
from layouts import write_busi, write_plain
from PIL import Image
from torch.utils.data import DataLoader

from wavegms.data.dataset import PreparedDataset
from wavegms.data.manifest import load_manifest
from wavegms.data.prepare import prepare_dataset
from wavegms.errors import InputError


def prepare(write, folder, name, validation_fraction=0.2):
    return prepare_dataset(
        name,
        write(folder / "raw"),
        folder / "prepared",
        image_size=32,
        split="random",
        split_folder=folder,
        test_fraction=0.25,
        validation_fraction=validation_fraction,
        seed=3,
    )


@pytest.fixture
def folder(tmp_path):
    prepare(write_busi, tmp_path, "busi")
    return tmp_path / "prepared"


@pytest.mark.parametrize("in_memory", [True, False])
def test_items_are_the_files_pixels(folder, in_memory):
    dataset = PreparedDataset(folder, "train", in_memory=in_memory)
    assert len(dataset) == len(dataset.ids) == len(dataset.labels) > 1
    for i, id in enumerate(dataset.ids):
        item = dataset[i]
        image = np.asarray(Image.open(folder / "images" / f"{id}.png"))
        mask = np.asarray(Image.open(folder / "masks" / f"{id}.png"))
        assert item["index"] == i
        assert item["image"].dtype == item["mask"].dtype == torch.uint8
        assert np.array_equal(item["image"].numpy(), image.transpose(2, 0, 1))
        assert np.array_equal(item["mask"].numpy(), mask[None] // 255)


def test_in_memory_holds_uint8(folder):
    dataset = PreparedDataset(folder, "train", in_memory=True)
    n = len(dataset)
    assert dataset.images.shape == (n, 3, 32, 32) and dataset.images.dtype == torch.uint8
    assert dataset.masks.shape == (n, 1, 32, 32) and dataset.masks.dtype == torch.uint8
    assert PreparedDataset(folder, "train", in_memory=False).images is None


@pytest.mark.parametrize(("items", "held"), [(3.9, False), (4.1, True)])
def test_a_quarter_of_the_free_memory_decides(folder, monkeypatch, items, held):
    n = len(PreparedDataset(folder, "train", in_memory=False))
    memory = psutil.virtual_memory()._replace(available=int(items * n * 4 * 32 * 32))
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory)
    assert (PreparedDataset(folder, "train").images is not None) == held


def test_splits_are_those_of_the_manifest_and_disjoint(folder):
    manifest = load_manifest(folder)
    parts = {part: PreparedDataset(folder, part).ids for part in ("train", "val", "test")}
    for part, ids in parts.items():
        assert ids == manifest["id"][manifest["split"] == part].tolist()
    together = PreparedDataset(folder, ["train", "val", "test"])
    assert together.ids == manifest["id"].tolist()
    assert together.labels == manifest["label"].tolist()
    assert sorted(chain(*parts.values())) == sorted(together.ids)


def test_data_hash_is_that_of_the_preparation(tmp_path):
    report = prepare(write_plain, tmp_path, "mine")
    dataset = PreparedDataset(tmp_path / "prepared", "test")
    assert dataset.data_hash == report.data_hash
    assert dataset.image_size == 32
    assert dataset.labels == [""] * len(dataset)


@pytest.mark.parametrize("in_memory", [True, False])
def test_batches(folder, in_memory):
    dataset = PreparedDataset(folder, "train", in_memory=in_memory)
    batch = next(iter(DataLoader(dataset, batch_size=2)))
    assert batch["image"].shape == (2, 3, 32, 32) and batch["mask"].shape == (2, 1, 32, 32)
    assert batch["index"].tolist() == [0, 1]


def test_float_ranges():
    images = torch.tensor([0, 51, 255], dtype=torch.uint8)
    assert PreparedDataset.to_float(images).tolist() == pytest.approx([0, 0.2, 1])
    masks = PreparedDataset.mask_to_float(torch.tensor([0, 1], dtype=torch.uint8))
    assert masks.dtype == torch.float32 and masks.tolist() == [0.0, 1.0]


def test_empty_split_names_the_way_out(tmp_path):
    prepare(write_plain, tmp_path, "mine", validation_fraction=0.0)
    with pytest.raises(InputError, match="no image in the split val: set validation_fraction"):
        PreparedDataset(tmp_path / "prepared", "val")


def test_of_several_splits_some_may_be_empty(tmp_path):
    prepare(write_plain, tmp_path, "mine", validation_fraction=0.0)
    both = PreparedDataset(tmp_path / "prepared", ["train", "val"])
    assert both.ids == PreparedDataset(tmp_path / "prepared", "train").ids


@pytest.mark.parametrize("split", ["dev", [], ["train", "dev"]])
def test_unknown_split(folder, split):
    with pytest.raises(InputError, match="choose one or more of train, val, test"):
        PreparedDataset(folder, split)


def test_unprepared_folder(tmp_path):
    with pytest.raises(InputError, match="run the prepare stage first"):
        PreparedDataset(tmp_path / "none", "train")


@pytest.mark.parametrize("part", ["images", "masks"])
def test_a_file_changed_since_is_refused(folder, part):
    id = PreparedDataset(folder, "train").ids[1]
    path = folder / part / f"{id}.png"
    values = np.array(Image.open(path))
    values[0, 0] = 255 - values[0, 0]
    Image.fromarray(values).save(path)
    with pytest.raises(InputError, match=rf"{id}\.png or its mask was changed"):
        PreparedDataset(folder, "train", in_memory=True)
    with pytest.raises(InputError, match="was changed since"):
        PreparedDataset(folder, "train", in_memory=False)[1]


@pytest.mark.parametrize("part", ["images", "masks"])
def test_a_missing_file_is_named(folder, part):
    id = PreparedDataset(folder, "train").ids[1]
    (folder / part / f"{id}.png").unlink()
    with pytest.raises(InputError, match=rf"{part}.{id}\.png does not exist"):
        PreparedDataset(folder, "train", in_memory=True)
