import unicodedata

import pytest
from layouts import (
    box_mask,
    mask_image,
    picture,
    save,
    write_bus,
    write_busi,
    write_ham10000,
    write_kvasir,
    write_plain,
    write_stu,
)

from wavegms.data.cases import case_id
from wavegms.data.catalog import CATALOG, find_cases, root_of, spec_of
from wavegms.errors import InputError

WRITERS = {
    "bus": write_bus,
    "busi": write_busi,
    "kvasir_instrument": write_kvasir,
    "ham10000": write_ham10000,
    "phantom_a": write_bus,
    "phantom_b": write_busi,
    "phantom_c": write_plain,
    "stu": write_stu,
    "mine": write_plain,
}
IN_FOLDERS = [name for name in WRITERS if name != "stu"]


def test_counts_are_those_of_the_paper():
    counts = {
        spec.name: (spec.pairs, spec.train, spec.test) for spec in CATALOG.values() if spec.pairs
    }
    assert counts == {
        "bus": (163, 132, 31),
        "busi": (647, 517, 130),
        "kvasir_instrument": (590, 472, 118),
        "ham10000": (10015, 8015, 2000),
    }


def test_bus(tmp_path):
    cases = find_cases("bus", write_bus(tmp_path, 11))
    assert [case.id for case in cases] == [f"{i:06}" for i in range(1, 12)]
    first = cases[0]
    assert first.image == tmp_path / "original" / "000001.png"
    assert first.masks == (tmp_path / "GT" / "000001.png",)
    assert (first.label, first.group) == ("", "000001")


def test_busi_leaves_normal_out_and_orders_the_masks(tmp_path):
    cases = find_cases("busi", write_busi(tmp_path, 11))
    assert [case.id for case in cases] == [
        f"{label}_{i}" for label in ("benign", "malignant") for i in range(1, 12)
    ]
    assert {case.label for case in cases} == {"benign", "malignant"}
    assert [mask.name for mask in cases[0].masks] == [
        "benign (1)_mask.png",
        "benign (1)_mask_1.png",
        "benign (1)_mask_2.png",
    ]
    assert all(len(case.masks) == 1 for case in cases[1:])


def test_kvasir(tmp_path):
    cases = find_cases("kvasir_instrument", write_kvasir(tmp_path, 3))
    assert [(case.image.name, case.masks[0].name) for case in cases] == [
        (f"ck0{i}x.jpg", f"ck0{i}x.png") for i in range(3)
    ]


@pytest.mark.parametrize("metadata", ["HAM10000_metadata", "HAM10000_metadata.csv"])
def test_ham10000_groups_by_lesion(tmp_path, metadata):
    cases = find_cases("ham10000", write_ham10000(tmp_path, 8, metadata))
    assert [case.id for case in cases] == [f"ISIC_{24306 + i:07}" for i in range(8)]
    assert [case.group for case in cases] == [f"HAM_{i // 2:07}" for i in range(8)]
    assert [case.label for case in cases] == ["nv"] * 4 + ["mel"] * 4


def test_ham10000_without_metadata_groups_by_image(tmp_path):
    cases = find_cases("ham10000", write_ham10000(tmp_path, 4, None))
    assert [(case.group, case.label) for case in cases] == [(case.id, "") for case in cases]


def test_ham10000_image_absent_from_the_metadata_is_its_own_group(tmp_path):
    write_ham10000(tmp_path, 4)
    table = tmp_path / "HAM10000_metadata"
    table.write_text("\n".join(table.read_text().splitlines()[:-1]))
    assert find_cases("ham10000", tmp_path)[-1].group == "ISIC_0024309"


@pytest.mark.parametrize("content", [b"a,b\n1,2\n", b"\xff\xfe\x00"])
def test_ham10000_with_another_table_is_refused(tmp_path, content):
    write_ham10000(tmp_path, 4)
    (tmp_path / "HAM10000_metadata").write_bytes(content)
    with pytest.raises(InputError, match=r"HAM10000_metadata is not .* lesion_id.*remove it"):
        find_cases("ham10000", tmp_path)


def test_stu_pairs_by_number(tmp_path):
    write_stu(tmp_path, 11)
    save(picture(), tmp_path / "screenshot.png")
    cases = find_cases("stu", tmp_path)
    assert [case.id for case in cases] == [f"Test_Image_{i}" for i in range(1, 12)]
    assert cases[9].masks == (tmp_path / "mask_10.png",)


def test_own_data_in_any_format_sorted_naturally(tmp_path):
    cases = find_cases("mine", write_plain(tmp_path, 12))
    assert [case.id for case in cases] == [f"scan_{i}" for i in range(12)]
    assert {case.label for case in cases} == {""}
    assert {case.image.suffix for case in cases} == {".png", ".JPG", ".bmp", ".tif", ".gif"}


def test_other_files_are_passed_over(tmp_path):
    write_plain(tmp_path)
    (tmp_path / "images" / "Thumbs.db").write_bytes(b"x")
    (tmp_path / "images" / "._scan 0.png").write_bytes(b"x")
    assert len(find_cases("mine", tmp_path)) == 5


def test_stem_matches_in_either_unicode_form(tmp_path):
    save(picture(), tmp_path / "images" / (unicodedata.normalize("NFD", "é") + ".png"))
    save(mask_image(box_mask()), tmp_path / "masks" / (unicodedata.normalize("NFC", "é") + ".png"))
    assert [case.id for case in find_cases("mine", tmp_path)] == ["é"]


@pytest.mark.parametrize(
    ("name", "inner"),
    [
        ("bus", "BUS"),
        ("busi", "Dataset_BUSI_with_GT"),
        ("kvasir_instrument", "kvasir-instrument"),
        ("stu", "Hospital"),
    ],
)
def test_the_folder_itself_and_its_parent_are_both_accepted(tmp_path, name, inner):
    folder = tmp_path / "x" / inner
    WRITERS[name](folder.parent if name == "busi" else folder)
    assert root_of(name, folder.parent) == folder
    assert find_cases(name, folder) == find_cases(name, folder.parent)


@pytest.mark.parametrize("name", CATALOG)
def test_missing_dataset_says_where_to_get_it_and_how_to_place_it(tmp_path, name):
    with pytest.raises(InputError) as error:
        find_cases(name, tmp_path / "nowhere")
    message = str(error.value)
    assert name in message and "nowhere" in message
    assert spec_of(name).source in message and spec_of(name).layout in message


@pytest.mark.parametrize("name", IN_FOLDERS)
def test_wrong_layout_names_the_missing_folder(tmp_path, name):
    with pytest.raises(InputError, match=r"is missing: see data/README\.md"):
        find_cases(name, tmp_path)


@pytest.mark.parametrize("name", list(WRITERS))
def test_image_without_mask(tmp_path, name):
    cases = find_cases(name, WRITERS[name](tmp_path))
    cases[1].masks[0].unlink()
    cases[2].masks[0].unlink()
    with pytest.raises(InputError) as error:
        find_cases(name, tmp_path)
    assert "2 images without a mask" in str(error.value)
    assert str(cases[1].image) in str(error.value)
    assert "add the masks or remove the images" in str(error.value)


@pytest.mark.parametrize("name", list(WRITERS))
def test_mask_without_image(tmp_path, name):
    cases = find_cases(name, WRITERS[name](tmp_path))
    cases[1].image.unlink()
    with pytest.raises(InputError) as error:
        find_cases(name, tmp_path)
    assert "1 mask without an image" in str(error.value)
    assert str(cases[1].masks[0]) in str(error.value)


def test_two_images_of_one_name(tmp_path):
    write_plain(tmp_path)
    save(picture(), tmp_path / "images" / "scan 0.jpg")
    with pytest.raises(InputError) as error:
        find_cases("mine", tmp_path)
    assert "scan 0.jpg" in str(error.value) and "scan 0.png" in str(error.value)
    assert "rename or remove" in str(error.value)


def test_two_masks_of_one_name(tmp_path):
    write_plain(tmp_path)
    save(mask_image(box_mask()), tmp_path / "masks" / "scan 0.bmp")
    with pytest.raises(InputError, match=r"scan 0\.bmp and .*scan 0\.png are both masks"):
        find_cases("mine", tmp_path)


@pytest.mark.parametrize("names", [("a b", "a_b"), ("a (1)", "a 1"), ("Scan", "scan")])
def test_different_names_with_the_same_id_never_collide_silently(tmp_path, names):
    for name in names:
        save(picture(), tmp_path / "images" / f"{name}.png")
        save(mask_image(box_mask()), tmp_path / "masks" / f"{name}.png")
    if len(list((tmp_path / "images").iterdir())) < 2:
        pytest.skip("this disk does not tell upper from lower case")
    with pytest.raises(InputError, match="would both be called"):
        find_cases("mine", tmp_path)


def test_name_without_a_letter(tmp_path):
    save(picture(), tmp_path / "images" / "(!).png")
    save(mask_image(box_mask()), tmp_path / "masks" / "(!).png")
    with pytest.raises(InputError, match=r"\(!\)\.png has no letter or digit"):
        find_cases("mine", tmp_path)


def test_no_images(tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "masks").mkdir()
    with pytest.raises(InputError, match=r"holds no images: expected images/NAME\.png"):
        find_cases("mine", tmp_path)


@pytest.mark.parametrize("empty_folder", [True, False])
def test_own_images_without_any_mask(tmp_path, empty_folder):
    save(picture(), tmp_path / "images" / "a.png")
    if empty_folder:
        (tmp_path / "masks").mkdir()
    with pytest.raises(InputError, match="has no masks: training and evaluation need both"):
        find_cases("mine", tmp_path)


@pytest.mark.parametrize("name", ["", "..", "../x", "a/b", "a b", "-x", "a.b"])
def test_dataset_names_that_are_no_folder_names(name):
    with pytest.raises(InputError, match="cannot be a folder name"):
        spec_of(name)


@pytest.mark.parametrize(
    ("stem", "id"),
    [
        ("benign (1)", "benign_1"),
        ("000001", "000001"),
        ("../../etc/passwd", "etc_passwd"),
        ("a:b*c?", "a_b_c"),
        (".hidden", "hidden"),
        ("straße 3", "straße_3"),
    ],
)
def test_ids_are_safe_file_names(stem, id):
    assert case_id(stem) == id


@pytest.mark.realdata
def test_real_busi(real_data):
    cases = find_cases("busi", real_data / "data" / "raw" / "busi")
    labels = [case.label for case in cases]
    assert (len(cases), labels.count("benign"), labels.count("malignant")) == (647, 437, 210)
    assert sum(len(case.masks) > 1 for case in cases) == 17
    assert sum(len(case.masks) for case in cases) == 798 - 133


@pytest.mark.realdata
def test_real_ham10000_sample(real_data):
    cases = find_cases("ham10000", real_data / "data" / "raw" / "ham10000_sample")
    assert len(cases) == 36


@pytest.mark.realdata
def test_real_stu(real_data):
    assert len(find_cases("stu", real_data / "data" / "raw" / "stu")) == 42


@pytest.mark.realdata
def test_real_plain_folder(real_data):
    assert len(find_cases("busbra", real_data / "data" / "raw" / "busbra_sample")) == 36


@pytest.mark.parametrize(
    ("name", "way"),
    [
        ("busi", r"scholar.cu.edu.eg\S+ or by `python -m wavegms get busi`, or place it there as"),
        ("bus", r"its authors on request \(.*\), or place it there as original/000001.png"),
        ("skin", r"run `python -m wavegms add skin --images FOLDER --masks FOLDER`, or place it"),
    ],
)
def test_a_missing_dataset_comes_with_the_way_to_get_it(tmp_path, name, way):
    with pytest.raises(InputError, match=f"no dataset {name} in .*: .*{way}"):
        find_cases(name, tmp_path / name)
