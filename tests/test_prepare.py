import hashlib
import shutil
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from layouts import (
    BOX,
    SIZE,
    box_mask,
    mask_image,
    picture,
    save,
    tree,
    write_bus,
    write_busi,
    write_ham10000,
    write_kvasir,
    write_plain,
    write_split,
    write_stu,
)
from PIL import Image

from wavegms.data import prepare
from wavegms.data.catalog import CATALOG, find_cases, spec_of
from wavegms.data.manifest import MANIFEST_COLUMNS, data_hash, load_manifest
from wavegms.data.prepare import PreparationReport, prepare_dataset
from wavegms.data.reading import find_reading
from wavegms.errors import InputError
from wavegms.files import replace_folder, sha256_of
from wavegms.images import as_mask, open_image, read_image


def run(name: str, raw: Path, out: Path, **changes) -> PreparationReport:
    parameters = {
        "image_size": 32,
        "split": "random",
        "split_folder": raw.parent / "splits",
        "test_fraction": 0.25,
        "validation_fraction": 0.2,
        "seed": 7,
    }
    return prepare_dataset(name, raw, out, **parameters | changes)


@pytest.fixture
def raw(tmp_path):
    return tmp_path / "raw"


@pytest.fixture
def out(tmp_path):
    """An earlier prepared folder, which no failure may touch."""
    earlier = tmp_path / "earlier"
    run("mine", write_plain(earlier), tmp_path / "prepared" / "x")
    shutil.rmtree(earlier)
    return tmp_path / "prepared" / "x"


@pytest.fixture
def refused(out):
    """Expect a refusal that says `words`, with the earlier folder intact and nothing beside it."""

    def check(name, raw, *words, **changes):
        before = tree(out)
        with pytest.raises(InputError) as error:
            run(name, raw, out, **changes)
        message = str(error.value)
        for word in words:
            assert word in message
        assert message.endswith(".") and "\n" not in message
        assert tree(out) == before
        assert [path.name for path in out.parent.iterdir()] == [out.name]

    return check


WRITERS = {
    "bus": (write_bus, 6),
    "busi": (write_busi, 8),
    "kvasir_instrument": (write_kvasir, 5),
    "ham10000": (write_ham10000, 8),
    "mine": (write_plain, 5),
}


@pytest.mark.parametrize("name", list(WRITERS))
def test_every_layout_fulfils_the_contract(name, raw, tmp_path):
    write, count = WRITERS[name]
    cases = find_cases(name, write(raw))
    report = run(name, raw, tmp_path / "out")
    manifest = load_manifest(tmp_path / "out")
    assert list(manifest.columns) == list(MANIFEST_COLUMNS)
    assert len(manifest) == count == sum(report.counts.values())
    assert manifest["id"].tolist() == [case.id for case in cases]
    assert sorted(tree(tmp_path / "out")) == sorted(
        ["manifest.csv"]
        + [f"{part}/{id}.png" for part in ("images", "masks", "originals") for id in manifest.id]
    )
    for row, case in zip(manifest.itertuples(), cases, strict=True):
        assert raw / row.source == case.image
        assert row.sha256 == hashlib.sha256(case.image.read_bytes()).hexdigest()
        with Image.open(case.image) as source:
            assert (row.original_width, row.original_height) == source.size
        with Image.open(tmp_path / "out" / "images" / f"{row.id}.png") as image:
            assert (image.mode, image.size) == ("RGB", (32, 32))
        with Image.open(tmp_path / "out" / "masks" / f"{row.id}.png") as mask:
            assert (mask.mode, mask.size) == ("L", (32, 32))
            values = np.asarray(mask)
        assert set(np.unique(values)) == {0, 255}
        assert row.mask_area == pytest.approx((values == 255).mean())
        assert row.group == case.group and row.label == case.label
    assert report.data_hash == data_hash(tmp_path / "out")


def test_image_and_mask_show_the_same_place(raw, tmp_path):
    """The lesion is bright in the picture; at twice the size each mask pixel lies on it exactly."""
    for i in range(4):
        save(picture(i, (32, 32)), raw / "images" / f"{i}.png")
        save(mask_image(box_mask((32, 32))), raw / "masks" / f"{i}.png")
    run("mine", raw, tmp_path / "out", image_size=64)
    image = np.asarray(Image.open(tmp_path / "out" / "images" / "2.png"))
    mask = np.asarray(Image.open(tmp_path / "out" / "masks" / "2.png")) > 0
    left, top, right, bottom = (2 * edge for edge in BOX)
    assert np.array_equal(mask, box_mask((64, 64), (left, top, right, bottom)))
    assert (image[top + 1 : bottom - 1, left + 1 : right - 1] == 200).all()
    assert image[~mask].mean() < 60


def test_several_masks_are_joined(raw, tmp_path):
    report = run("busi", write_busi(raw), tmp_path / "out", image_size=64)
    assert report.joined == 1
    mask = np.asarray(Image.open(tmp_path / "out" / "masks" / "benign_1.png")) > 0
    # The lesion in the middle, and one more in each of two corners.
    assert mask[32, 24] and mask[0, 0] and mask[-1, -1]
    assert not mask[0, -1] and not mask[-1, 0]


def test_report(raw, tmp_path):
    report = run("busi", write_busi(raw, 5), tmp_path / "out")
    assert report.image_modes == {"RGB": 10}
    assert report.mask_modes == {"1": 4, "L": 2, "P": 2, "RGB": 2, "RGBA": 2}
    assert report.smallest == (SIZE[0] + 1, SIZE[1] + 2)
    assert report.largest == (SIZE[0] + 5, SIZE[1] + 10)
    assert report.published == {"pairs": 647, "train": 517, "test": 130}
    assert report.differences == [
        "BUSI has 10 image-mask pairs; the paper has 647.",
        "BUSI has 7 images to train on (validation included); the paper has 517.",
        "BUSI has 3 images to test on; the paper has 130.",
    ]
    table = report.table()
    assert table.columns.tolist() == ["dataset", "part", "images", "published"]
    assert table.set_index("part")["images"].to_dict() == {
        "train": 6,
        "val": 1,
        "train + val": 7,
        "test": 3,
        "all": 10,
    }
    assert table["published"].tolist() == [pd.NA, pd.NA, 517, 130, 647]


def test_own_data_has_nothing_to_differ_from(raw, tmp_path):
    report = run("mine", write_plain(raw), tmp_path / "out")
    assert report.published is None and report.differences == []
    assert report.table()["published"].isna().all()


def test_published_split_decides_and_what_it_omits_is_reported(raw, tmp_path):
    write_bus(raw)
    write_split(
        tmp_path / "splits" / "bus_train_test_names.pkl",
        ["000002", "000003", "000005"],
        ["000001"],
    )
    report = run("bus", raw, tmp_path / "out", split="published", validation_fraction=0.0)
    manifest = load_manifest(tmp_path / "out")
    assert dict(zip(manifest["id"], manifest["split"], strict=True)) == {
        "000001": "test",
        "000002": "train",
        "000003": "train",
        "000005": "train",
    }
    assert report.counts == {"train": 3, "val": 0, "test": 1}
    assert report.differences[-1] == (
        "2 of 6 images of BUS are in no list of the split and were left out (000004, 000006)."
    )


def test_official_lists_are_found_beside_the_images(tmp_path):
    write_kvasir(tmp_path / "raw" / "kvasir-instrument")
    run("kvasir_instrument", tmp_path / "raw", tmp_path / "out", split="official")
    manifest = load_manifest(tmp_path / "out")
    assert manifest["id"][manifest["split"] == "test"].tolist() == ["ck04x"]


def test_the_same_input_gives_the_same_bytes(raw, tmp_path):
    write_busi(raw)
    first = run("busi", raw, tmp_path / "first")
    shutil.copytree(raw, tmp_path / "copy")
    second = run("busi", tmp_path / "copy", tmp_path / "second")
    assert tree(tmp_path / "first") == tree(tmp_path / "second")
    assert first == second


@pytest.mark.parametrize("what", ["image", "mask", "seed", "image_size"])
def test_the_data_hash_follows_every_input(raw, tmp_path, what):
    write_bus(raw, 12)
    before = run("bus", raw, tmp_path / "out").data_hash
    changes = {}
    if what == "image":
        save(picture(99, mode="L"), raw / "original" / "000003.png")
    elif what == "mask":
        save(mask_image(box_mask(box=(8, 6, 25, 21))), raw / "GT" / "000003.png")
    else:
        changes = {what: {"seed": 8, "image_size": 40}[what]}
    assert run("bus", raw, tmp_path / "out", **changes).data_hash != before


def test_an_earlier_folder_is_replaced_whole(raw, out):
    run("bus", write_bus(raw), out)
    assert load_manifest(out)["id"].tolist() == [f"{i:06}" for i in range(1, 7)]
    assert not list(out.glob("*/scan*"))
    assert [path.name for path in out.parent.iterdir()] == [out.name]


@pytest.mark.parametrize("image_size", [0, -8, 8, 15, 20, 225])
def test_image_size(refused, raw, image_size):
    refused("bus", write_bus(raw), f"image_size is {image_size}", image_size=image_size)


def test_fractions_and_split(refused, raw):
    write_bus(raw)
    refused("bus", raw, "test_fraction is 1.5", test_fraction=1.5)
    refused("bus", raw, "validation_fraction is -1", validation_fraction=-1)
    refused("bus", raw, "split is 'x'", split="x")
    refused("bus", raw, "bus_train_test_names.pkl is missing", split="published")
    refused("mine", write_plain(raw), "no published split", split="published")
    refused("mine", raw, "train.txt is missing", split="official")


def test_missing_dataset(refused, raw):
    refused("busi", raw, "no dataset busi", str(raw), "scholar.cu.edu.eg")


def test_truncated_image(refused, raw):
    path = write_bus(raw) / "original" / "000004.png"
    path.write_bytes(path.read_bytes()[:-60])
    refused("bus", raw, str(path), "cannot be read as an image", "replace it")


def test_truncated_jpeg(refused, raw):
    path = write_kvasir(raw) / "images" / "ck01x.jpg"
    path.write_bytes(path.read_bytes()[:400])
    refused("kvasir_instrument", raw, str(path), "cannot be read as an image")


def test_empty_file(refused, raw):
    path = write_bus(raw) / "GT" / "000002.png"
    path.write_bytes(b"")
    refused("bus", raw, str(path), "is empty (0 bytes)")


def test_text_in_place_of_an_image(refused, raw):
    path = write_bus(raw) / "original" / "000002.png"
    path.write_text("version https://git-lfs.github.com/spec/v1")
    refused("bus", raw, str(path), "no known image format")


def test_unsupported_mode(refused, raw):
    write_plain(raw)
    path = save(Image.new("F", SIZE), raw / "images" / "scan 3.tif")
    refused("mine", raw, str(path), "mode F", "save it as")


def test_sizes_that_differ(refused, raw):
    write_bus(raw)
    path = save(mask_image(box_mask((30, 40))), raw / "GT" / "000003.png")
    refused("bus", raw, str(path), "30×40", "40×30", "000003.png")


def test_masks_that_were_published_larger_are_scaled_to_their_images(raw, tmp_path):
    run("stu", write_stu(raw), tmp_path / "out", split="external")
    run("mine", write_plain(tmp_path / "plain"), tmp_path / "same_size")
    masks = [tmp_path / "out/masks/Test_Image_1.png", tmp_path / "same_size/masks/scan_1.png"]
    assert np.array_equal(*(np.asarray(Image.open(path)) for path in masks))


def test_masks_of_another_shape_are_refused_even_so(refused, raw):
    path = save(mask_image(box_mask((60, 60))), write_stu(raw) / "mask_3.png")
    refused("stu", raw, str(path), "60×60", "40×30", split="external")


def test_an_external_dataset_is_all_for_testing(raw, tmp_path):
    report = run("bus", write_bus(raw), tmp_path / "out", split="external")
    assert report.counts == {"train": 0, "val": 0, "test": 6}
    assert set(load_manifest(tmp_path / "out")["split"]) == {"test"}


def test_empty_mask(refused, raw):
    write_bus(raw)
    path = save(Image.new("L", SIZE), raw / "GT" / "000003.png")
    refused("bus", raw, str(path), "no foreground", "remove the image")


def test_mask_that_vanishes_by_resizing(refused, raw):
    write_bus(raw)
    speck = np.zeros((SIZE[1], SIZE[0]), dtype=bool)
    speck[1, 1] = True
    path = save(mask_image(speck), raw / "GT" / "000003.png")
    refused("bus", raw, str(path), "image_size 16", "larger image_size", image_size=16)


def test_several_problems_are_counted(refused, raw):
    write_bus(raw)
    for i in (2, 3, 5):
        save(Image.new("L", SIZE), raw / "GT" / f"{i:06}.png")
    refused("bus", raw, "3 images of bus cannot be prepared", "000002.png has no foreground")


def test_unpaired_files(refused, raw):
    write_bus(raw)
    (raw / "GT" / "000003.png").unlink()
    refused("bus", raw, "1 image without a mask", "000003.png")


@pytest.mark.parametrize("where", [".", ".."])
def test_raw_data_is_never_replaced(tmp_path, where):
    raw = write_plain(tmp_path / "data" / "raw")
    before = tree(tmp_path)
    with pytest.raises(InputError, match="holds the raw data"):
        run("mine", raw, raw / where)
    assert tree(tmp_path) == before


def test_a_folder_of_other_files_is_never_replaced(raw, tmp_path):
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.txt").write_text("x")
    with pytest.raises(InputError, match=r"holds files but no manifest\.csv"):
        run("bus", write_bus(raw), tmp_path / "home")
    assert tree(tmp_path / "home") == {"thesis.txt": b"x"}


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError, OSError])
def test_an_interruption_leaves_everything_as_it_was(raw, out, monkeypatch, error):
    def interrupt(path):
        if path.name == "000004.png":
            raise error
        return original(path)

    original = prepare.sha256_of
    monkeypatch.setattr(prepare, "sha256_of", interrupt)
    before = tree(out)
    with pytest.raises(error):
        run("bus", write_bus(raw), out)
    assert tree(out) == before
    assert [path.name for path in out.parent.iterdir()] == [out.name]


def test_manifest_of_an_unprepared_folder(tmp_path):
    for function in (load_manifest, data_hash):
        with pytest.raises(InputError, match=r"no prepared data in .*run the prepare stage"):
            function(tmp_path / "none")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda table: table.drop(columns="group"), "lacks the column group"),
        (lambda table: table.head(0), "has no row"),
        (lambda table: pd.concat([table, table.head(1)]), "lists scan_0 twice"),
        (
            lambda table: table.assign(split="dev"),
            "a split that should be 'train'.*dev",
        ),
        (lambda table: table.assign(mask_area=0.0), "mask_area"),
        (lambda table: table.assign(mask_area=1.5), "mask_area"),
        (lambda table: table.assign(mask_area="big"), "has a mask_area that is no number"),
        (
            lambda table: table.assign(original_width="wide"),
            "has an original_width that is no number",
        ),
        (lambda table: table.assign(original_width=0), "original_width"),
        (lambda table: table.assign(original_height=2**63), "original_height"),
    ],
)
def test_a_changed_manifest_is_refused(out, change, said):
    path = out / "manifest.csv"
    change(pd.read_csv(path)).to_csv(path, index=False)
    with pytest.raises(InputError, match=rf"manifest\.csv .*{said}.*run the prepare stage again"):
        load_manifest(out)


@pytest.mark.parametrize("content", [b"", b"\xff\xfe\x00\x01", b'id,split\n"a,b\n'])
def test_a_manifest_that_is_no_table_is_refused(out, content):
    (out / "manifest.csv").write_bytes(content)
    with pytest.raises(InputError, match=r"manifest\.csv .*run the prepare stage again"):
        load_manifest(out)


def test_ids_that_look_like_numbers_or_gaps_stay_texts(raw, tmp_path):
    for name in ("007", "NA", "1e5", "None"):
        save(picture(), raw / "images" / f"{name}.png")
        save(mask_image(box_mask()), raw / "masks" / f"{name}.png")
    run("mine", raw, tmp_path / "out")
    assert set(load_manifest(tmp_path / "out")["id"]) == {"007", "NA", "1e5", "None"}


def test_a_missing_file_is_named(tmp_path):
    for function in (open_image, sha256_of):
        with pytest.raises(InputError, match=r"a\.png"):
            function(tmp_path / "a.png")
    with pytest.raises(InputError, match="is not a file"):
        open_image(tmp_path)


@pytest.mark.parametrize("side", [10_001, 60_000])
def test_a_decompression_bomb_is_refused_by_its_header(tmp_path, side):
    """A PNG of a few bytes that claims to be huge; no warning comes beside the error."""

    def chunk(kind, data):
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")
    (tmp_path / "bomb.png").write_bytes(data)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(InputError, match=r"bomb\.png has more than 100 million pixels"):
            open_image(tmp_path / "bomb.png")


def test_replace_folder_through_a_link(tmp_path):
    (tmp_path / "disk" / "real").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "disk" / "real")
    with replace_folder(tmp_path / "link") as folder:
        (folder / "a").write_text("new")
    assert (tmp_path / "link").is_symlink()
    assert tree(tmp_path / "disk") == {"real/a": b"new"}


def test_replace_folder_puts_the_old_one_back_if_the_last_step_fails(tmp_path, monkeypatch):
    target = tmp_path / "target"
    target.mkdir()
    (target / "old").write_text("old")
    original = Path.rename

    def fail(path, to):
        if path.suffix == ".new":
            raise KeyboardInterrupt
        return original(path, to)

    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises(KeyboardInterrupt), replace_folder(target) as folder:
        (folder / "new").write_text("new")
    assert tree(tmp_path) == {"target/old": b"old"}
    assert [path.name for path in tmp_path.iterdir()] == ["target"]


def test_replace_folder_refuses_a_file_in_its_place(tmp_path):
    (tmp_path / "file").write_text("x")
    for target in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(InputError, match="file"), replace_folder(target):
            pass
    assert tree(tmp_path) == {"file": b"x"}


def legacy(path):
    """How masks were once read, one by one: the upper half or, if that is empty, all above 0."""
    with Image.open(path) as image:
        values = np.asarray(image.convert("RGB")).max(-1)
    return values > 127 if (values > 127).any() else values > 0


@pytest.mark.realdata
@pytest.mark.parametrize(
    ("name", "folder"),
    [
        ("busi", "busi"),
        ("ham10000", "ham10000_sample"),
        ("stu", "stu"),
        ("busbra", "busbra_sample"),
    ],
)
def test_published_data_are_read_as_they_always_were(real_data, name, folder):
    spec = spec_of(name)
    cases = find_cases(name, real_data / "data/raw" / folder)
    reading = find_reading(name, cases, None, spec.masks_at_another_size)
    assert reading.scale.ranges == {} and not reading.stored
    for case in cases:
        for path in case.masks:
            mask, _ = read_image(path, lambda image: as_mask(image, reading.masks))
            assert np.array_equal(mask, legacy(path)), path


@pytest.mark.realdata
def test_real_busi(real_data, tmp_path):
    real = real_data / "data"
    report = prepare_dataset(
        "busi",
        real / "raw" / "busi",
        tmp_path / "busi",
        image_size=64,
        split="published",
        split_folder=real / "splits",
        test_fraction=0.2,
        validation_fraction=0.1,
        seed=2333,
    )
    assert report.differences == []
    assert report.joined == 17
    assert report.counts == {"train": 465, "val": 52, "test": 130}
    manifest = load_manifest(tmp_path / "busi")
    # The one pair of byte-identical images that is known shows in the hashes.
    twins = manifest[manifest["sha256"].duplicated(keep=False)]["id"].tolist()
    assert {"benign_433", "malignant_145"} <= set(twins)
    assert len(manifest) == CATALOG["busi"].pairs
