"""A folder of one's own: groups, names that go together, and copies."""

import re
import shutil

import pytest
from dermoscopy import write_skin
from hypothesis import given
from hypothesis import strategies as st
from layouts import box_mask, mask_image, picture, save, tree, write_plain

from wavegms import InputError
from wavegms.data.cases import match_folders, place
from wavegms.data.catalog import find_cases
from wavegms.data.splits import assign_splits


def write_groups(folder, text, encoding="utf-8"):
    (folder / "groups.csv").write_text(text, encoding=encoding)


def test_groups_keep_the_images_of_a_patient_in_one_split(tmp_path):
    write_plain(tmp_path, 20)
    rows = [f"scan {i}.png,patient {i // 4}" for i in range(20)]
    write_groups(tmp_path, "image,group\n" + "\n".join(rows))
    cases = find_cases("mine", tmp_path)
    assert [case.group for case in cases] == [f"patient {i // 4}" for i in range(20)]
    parts = assign_splits(cases, "random", test_fraction=0.4, validation_fraction=0.3, seed=1,
                          folder=tmp_path, split_file=None)  # fmt: skip
    for i in range(0, 20, 4):
        assert len({parts[f"scan_{i + k}"] for k in range(4)}) == 1
    assert set(parts.values()) == {"train", "val", "test"}


def test_groups_may_name_classes_and_images_that_are_not_there(tmp_path):
    """Names with and without ending, spaces around, and a mark that Excel writes."""
    write_plain(tmp_path, 3)
    rows = ["label,image,group", "naevus,scan 0,p1", " melanoma , scan 1.tif , p1"]
    rows += [",scan 2.PNG,p2", "x,gone,p9"]
    write_groups(tmp_path, "\n".join(rows), "utf-8-sig")
    cases = find_cases("mine", tmp_path)
    assert [(case.group, case.label) for case in cases] == [
        *(("p1", "naevus"), ("p1", "melanoma"), ("p2", "")),
    ]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("image,group\nscan 0,a\n", r"groups.csv has no row for scan 1.JPG: add one"),
        ("image,group\nscan 0,a\nscan 0.png,b\nscan 1,c\n", "two rows for scan 0.png that differ"),
        ("image,group\nscan 0,a\nscan 1,\n", "no group for scan 1"),
        ("image;group\nscan 0;a\n", "not a comma-separated table"),
        ("image,patient\nscan 0,a\n", "the columns image and group"),
        ("image,group\nscan 0\n", "not a comma-separated table"),
        ("", "has no row for scan 0.png"),
    ],
)
def test_a_wrong_table_of_groups_is_refused(tmp_path, text, said):
    write_plain(tmp_path, 2)
    write_groups(tmp_path, text)
    with pytest.raises(InputError, match=said):
        find_cases("mine", tmp_path)


def test_a_table_that_is_no_text_is_refused(tmp_path):
    write_plain(tmp_path, 2)
    (tmp_path / "groups.csv").write_bytes(b"PK\x03\x04\xff\xfe")
    with pytest.raises(InputError, match=r"groups.csv is not a comma-separated table in UTF-8"):
        find_cases("mine", tmp_path)


def write_named(folder, names):
    for name in names:
        save(mask_image(box_mask()) if "mask" in name else picture(), folder / name)
    return folder


@pytest.mark.parametrize("ending", ["", "_mask", "-gt", "_segmentation", " (mask)"])
def test_masks_are_found_by_a_common_ending(tmp_path, ending):
    """ "case 1" is also how "case 10" begins."""
    numbers = range(12)
    write_named(tmp_path / "scans", [f"case {i}.jpg" for i in numbers])
    write_named(tmp_path / "masks", [f"case {i}{ending}.png" for i in numbers if i != 3])
    cases, rest = match_folders(tmp_path / "scans", tmp_path / "masks")
    assert [(case.image.name, case.masks[0].name) for case in cases] == [
        (f"case {i}.jpg", f"case {i}{ending}.png") for i in numbers if i != 3
    ]
    assert [path.name for path in rest] == ["case 3.jpg"]


def test_images_and_masks_may_lie_in_one_folder(tmp_path):
    names = ["a.png", "a_mask.png", "b.png", "b_mask.png", "c.png"]
    write_named(tmp_path, names)
    cases, rest = match_folders(tmp_path, tmp_path)
    assert [(case.image.name, case.masks[0].name) for case in cases] == [
        *(("a.png", "a_mask.png"), ("b.png", "b_mask.png")),
    ]
    assert [path.name for path in rest] == ["c.png"]


@given(
    names=st.sets(st.text("abc01_ -", min_size=1, max_size=6), min_size=2, max_size=8),
    ending=st.sampled_from(["", "_mask", "-seg"]),
)
def test_every_image_finds_its_own_mask(tmp_path_factory, names, ending):
    """Whatever the names, and however much one is the beginning of another."""
    folder = tmp_path_factory.mktemp("names")
    usable = [name for name in names if re.search("[abc01]", name)]
    usable = list({re.sub(r"[^\w-]+", "_", name).strip("._"): name for name in usable}.values())
    for name in usable:
        for path in (folder / f"scans/x{name}.png", folder / f"masks/x{name}{ending}.png"):
            path.parent.mkdir(exist_ok=True)
            path.touch()
    if usable:
        cases, rest = match_folders(folder / "scans", folder / "masks")
        assert len(cases) == len(usable) and not rest
        assert all(case.masks[0].stem == case.image.stem + ending for case in cases)


@pytest.mark.parametrize(
    ("scans", "masks", "said"),
    [
        (["a.png"], ["mask_b.png"], "no file in .*masks is called as an image in .*scans"),
        (["a.png"], ["a_mask.png", "b_mask.png"], "b_mask.png is the mask of no image .* called b"),
        (["a.png", "b.png"], ["a_mask.png", "b_mask.png", "b.png"], "b.png is the mask of no imag"),
        (["a.png"], ["a_mask.png", "a_mask.bmp"], "a_mask.png are both masks of a"),
        (["a.png", "a.jpg"], ["a_mask.png"], "would both be called a"),
        (["a.png"], [], "masks holds no image file .*name the folder"),
        ([], ["a.png"], "scans holds no image file"),
    ],
)
def test_what_does_not_go_together_is_refused(tmp_path, scans, masks, said):
    for folder, names in (("scans", scans), ("masks", masks)):
        (tmp_path / folder).mkdir()
        write_named(tmp_path / folder, names)
    with pytest.raises(InputError, match=said):
        match_folders(tmp_path / "scans", tmp_path / "masks")


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(InputError, match="scans is missing"):
        match_folders(tmp_path / "scans", tmp_path)


def test_what_is_copied_is_what_the_reader_pairs(tmp_path):
    write_skin(tmp_path / "scans", tmp_path / "outlines", count=5, without_mask=2)
    before = tree(tmp_path / "scans") | tree(tmp_path / "outlines")
    cases, rest = match_folders(tmp_path / "scans", tmp_path / "outlines")
    place(cases, rest, tmp_path / "raw")
    after = tree(tmp_path / "raw")
    assert set(after.values()) == set(before.values()) and len(after) == 12
    read = find_cases("skin", tmp_path / "raw")
    assert [case.id for case in read] == [case.id for case in cases]
    for case, original in zip(read, cases, strict=True):
        assert case.image.read_bytes() == original.image.read_bytes()
        assert case.masks[0].read_bytes() == original.masks[0].read_bytes()
    unlabelled = sorted(path.name for path in (tmp_path / "raw/unlabelled").iterdir())
    assert unlabelled == ["lesion_05.jpg", "lesion_06.jpg"]


def test_a_full_disk_leaves_no_folder(tmp_path, monkeypatch):
    write_skin(tmp_path / "scans", tmp_path / "outlines", count=3)
    cases, rest = match_folders(tmp_path / "scans", tmp_path / "outlines")
    copied = []

    def copy(source, target):
        copied.append(target)
        if len(copied) == 4:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(shutil, "copyfile", copy)
    with pytest.raises(InputError, match=r"lesion_00_seg.* cannot be copied .*No space left"):
        place(cases, rest, tmp_path / "raw")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["outlines", "scans"]
