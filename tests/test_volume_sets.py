"""Volumes as data: layouts, one reading for all, slices with and without foreground, splits."""

import json
import shutil

import numpy as np
import pytest
import SimpleITK as sitk
from dicoms import SPACING, make, random_voxels, write_decathlon, write_series
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from test_volumes import rotations

from wavegms import InputError
from wavegms.config import ReadingParams
from wavegms.data.audit import audit_prepared
from wavegms.data.catalog import find_cases
from wavegms.data.dataset import PreparedDataset
from wavegms.data.manifest import load_manifest, load_volumes, slice_id
from wavegms.data.prepare import prepare_dataset
from wavegms.data.volume_sets import open_truth
from wavegms.data.volumes import read_volume
from wavegms.images import Scale, VolumeRule, resize_mask

NAMES = ("head", "body")


def prepare(raw, out, name="mine", **changes):
    values = {
        "image_size": 32,
        "split": "random",
        "split_folder": raw,
        "test_fraction": 0.25,
        "validation_fraction": 0.25,
        "seed": 1,
    }
    return prepare_dataset(name, raw, out, **values | changes)


def put_back(folder, row):
    """The prepared masks of a volume on the volume's own grid, and its truth there."""
    truth = open_truth(folder, row.id, row.plane)
    view = np.empty(truth.shape, np.uint8)
    for number, place in zip(truth.numbers, range(len(truth)), strict=True):
        with Image.open(folder / "masks" / f"{slice_id(row.id, number)}.png") as mask:
            view[place] = resize_mask(np.asarray(mask), truth.shape[:0:-1])
    return truth.restore(view)


def require_on_grid(back, labels, voxels):
    np.testing.assert_array_equal(sitk.GetArrayFromImage(back), voxels)
    assert (back.GetSize(), back.GetSpacing()) == (labels.GetSize(), labels.GetSpacing())
    np.testing.assert_allclose(back.GetOrigin(), labels.GetOrigin(), atol=1e-4)
    np.testing.assert_allclose(back.GetDirection(), labels.GetDirection(), atol=1e-5)


@given(direction=rotations(), plane=st.sampled_from([None, "axial", "coronal", "sagittal"]))
@settings(max_examples=6, deadline=None)
def test_labels_come_back_voxel_by_voxel(direction, plane, tmp_path_factory):
    """However a volume lies and is cut: enlarged slices, put back, are the labels as they were."""
    folder = tmp_path_factory.mktemp("set")
    raw = write_decathlon(folder / "raw", count=4, spacing=SPACING, direction=direction)
    for classes, kinds in (((), (0, 255, 255)), (NAMES, (0, 1, 2))):
        prepare(raw, folder / "out", reading=ReadingParams(plane=plane, classes=list(classes)))
        for row in load_volumes(folder / "out").itertuples():
            labels = sitk.ReadImage(str(raw / "labelsTr" / f"{row.id}.nii.gz"))
            voxels = np.array(kinds)[sitk.GetArrayFromImage(labels)]
            require_on_grid(put_back(folder / "out", row), labels, voxels)


def test_a_dataset_json_names_the_classes(tmp_path):
    raw, out = write_decathlon(tmp_path / "raw", names=NAMES), tmp_path / "out"
    report = prepare(raw, out)
    assert any(
        "classes are head 1, body 2; they have 0 background (" in one for one in report.evidence
    )
    dataset = PreparedDataset(out, "test")
    assert dataset.classes == NAMES and set(dataset.masks.unique().tolist()) == {0, 1, 2}
    truth = open_truth(out, "case_1", "axial")
    labels = sitk.ReadImage(str(raw / "labelsTr/case_1.nii.gz"))
    require_on_grid(truth.image, labels, sitk.GetArrayFromImage(labels))
    row = load_volumes(out).set_index("id").loc["case_1"]
    assert row["foreground_voxels"] == (sitk.GetArrayFromImage(labels) > 0).sum()
    manifest = load_manifest(out)
    assert manifest["classes"].unique().tolist() == ["head body"]
    assert manifest["foreground"].unique().tolist() == ["head 1, body 2"]
    # unless all are one, as if nothing were named
    prepare(raw, out, reading=ReadingParams(foreground=["1-2"]))
    (raw / "dataset.json").unlink()
    prepare(raw, tmp_path / "other")
    assert load_manifest(out)["pixels"].equals(load_manifest(tmp_path / "other")["pixels"])
    assert PreparedDataset(out, "test").classes == ()


def test_a_label_of_no_class_is_named_unless_it_is_ignored(tmp_path):
    raw, out = write_decathlon(tmp_path / "raw"), tmp_path / "out"
    change(raw / LABELS, with_value(3, sitk.sitkUInt8))
    wanted = ReadingParams(classes=list(NAMES))
    with pytest.raises(InputError, match=r"case_1\.nii\.gz has the label 3 \(1 voxels\).*no class"):
        prepare(raw, out, reading=wanted)
    report = prepare(raw, out, reading=ReadingParams(classes=list(NAMES), ignore=[3]))
    assert report.ignored > 0
    assert sitk.GetArrayFromImage(open_truth(out, "case_1", "axial").image)[1, 1, 1] == 3
    more = {"head": 1, "body": 2, "stray": 3, "tail": 4}
    report = prepare(raw, out, reading=ReadingParams(classes=more))
    assert "No label is of the class tail" in report.differences[0]
    labels = dict(enumerate(["background", *"abcdefgh"]))
    (raw / "dataset.json").write_text(json.dumps({"labels": labels}))
    with pytest.raises(
        InputError, match=r"2 to 7.*or what is one class as reading\.mine\.foreground"
    ):
        prepare(raw, out)


def test_slices_are_the_images_and_volumes_are_split(tmp_path):
    raw, out = write_decathlon(tmp_path / "raw", count=8), tmp_path / "out"
    report = prepare(raw, out)
    manifest, volumes = load_manifest(out), load_volumes(out)
    assert len(manifest) == 8 * 6 and report.counts == {"train": 24, "val": 12, "test": 12}
    assert (manifest.groupby("group")["split"].nunique() == 1).all()
    # what shows nothing is data, too
    assert (manifest["mask_area"] == 0).sum() == 8 * 2
    assert manifest["scale"].unique().tolist() == ["axial:0.5-99.5"]
    assert manifest["foreground"].unique().tolist() == ["1-2"]
    assert any("foreground is 1-2, as all labels above 0" in said for said in report.evidence)
    assert any("8 volumes, each in one split: 4 for train" in one for one in report.evidence)
    assert volumes["foreground_voxels"].min() > 0 and volumes["slices_mm"].unique() == [3.0]
    # every slice as prediction sees it
    row = volumes.iloc[0]
    seen = read_volume(raw / row["source"], plane="axial", percentiles=(0.5, 99.5))
    assert seen.window == (row["black"], row["white"])
    dataset = PreparedDataset(out, row["split"])
    assert dataset.scale == Scale(volumes=VolumeRule("axial"))
    one = dataset[dataset.ids.index(slice_id(row["id"], seen.numbers[3]))]["image"]
    wanted = Image.fromarray(seen[3]).convert("RGB").resize((32, 32), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(one.permute(1, 2, 0), np.asarray(wanted))
    pairs, audit = audit_prepared(out)
    assert audit.images == 48 and pairs.empty


def test_a_copy_shares_the_split_of_its_original(tmp_path):
    raw = write_decathlon(tmp_path / "raw", count=6)
    for part in ("imagesTr", "labelsTr"):
        shutil.copy(raw / part / "case_0.nii.gz", raw / part / "case_1.nii.gz")
    for seed in range(3):
        prepare(raw, tmp_path / "out", split="grouped", seed=seed)
        split_of = load_volumes(tmp_path / "out").set_index("id")["split"]
        assert split_of["case_0"] == split_of["case_1"]
    (raw / "train.txt").write_text("case_0\ncase_2.nii.gz\ncase_3\ncase_4\ncase_5\n")
    (raw / "test.txt").write_text("case_1\n")
    prepare(raw, tmp_path / "out", split="official", validation_fraction=0)
    _, audit = audit_prepared(tmp_path / "out")
    assert (audit.exact_pairs, audit.leaking_test_images) == (6, 6)


def test_volumes_of_a_patient_stay_together(tmp_path):
    raw = write_decathlon(tmp_path / "raw", count=8)
    patients = "".join(f"case_{n}.nii.gz,patient {n // 2}\n" for n in range(8))
    (raw / "groups.csv").write_text(f"image,group\n{patients}")
    for seed in range(3):
        prepare(raw, tmp_path / "out", seed=seed)
        assert (load_volumes(tmp_path / "out").groupby("group")["split"].nunique() == 1).all()


@pytest.mark.parametrize("ending", [".nii", ".mha", ".nrrd"])
def test_two_folders_of_volumes(ending, tmp_path):
    source = write_decathlon(tmp_path / "source")
    for old, new in (("imagesTr", "images"), ("labelsTr", "masks")):
        (tmp_path / "raw" / new).mkdir(parents=True)
        for path in (source / old).iterdir():
            image = sitk.ReadImage(str(path))
            sitk.WriteImage(image, str(tmp_path / "raw" / new / (path.name[:6] + ending)))
    prepare(source, tmp_path / "one")
    prepare(tmp_path / "raw", tmp_path / "other")
    one, other = (load_manifest(tmp_path / name) for name in ("one", "other"))
    assert one["pixels"].tolist() == other["pixels"].tolist()


def test_a_dicom_series_with_labels_beside_it(tmp_path):
    image = make(random_voxels((6, 9, 12)) + 500)
    for number in range(4):
        write_series(tmp_path / "images" / f"p{number}", image)
        (tmp_path / "masks").mkdir(exist_ok=True)
        labels = make(np.uint8(random_voxels((6, 9, 12), number) > 400))
        sitk.WriteImage(labels, str(tmp_path / "masks" / f"p{number}.nii.gz"))
    cases = find_cases("mine", tmp_path)
    assert [case.id for case in cases] == ["p0", "p1", "p2", "p3"] and cases[0].volume
    prepare(tmp_path, tmp_path / "out")
    assert load_volumes(tmp_path / "out")["source"][0] == "images/p0"
    assert len(load_manifest(tmp_path / "out")) == 24


@pytest.mark.parametrize(
    ("spacing", "plane", "why"),
    [
        ((1, 1, 1), "axial", "no axis has the largest"),
        ((1, 1, 1.05), "axial", "no axis has the largest"),
        ((1, 3, 1), "coronal", "across the axis with the largest"),
        ((3, 1, 1), "sagittal", "across the axis with the largest"),
        ((2, 2, 1), "axial", "no axis has the largest"),
    ],
)
def test_slices_lie_across_the_axis_with_the_largest_spacing(spacing, plane, why, tmp_path):
    report = prepare(write_decathlon(tmp_path / "raw", spacing=spacing), tmp_path / "out")
    assert load_volumes(tmp_path / "out")["plane"].unique() == [plane]
    assert any(why in said for said in report.evidence)


def test_one_label_is_chosen_and_one_ignored(tmp_path):
    raw, wanted = write_decathlon(tmp_path / "raw"), ReadingParams(foreground=[2], ignore=[1])
    prepare(raw, tmp_path / "out", reading=wanted)
    truth = open_truth(tmp_path / "out", "case_0", "axial")
    labels = sitk.GetArrayFromImage(sitk.ReadImage(str(raw / "labelsTr/case_0.nii.gz")))
    found = sitk.GetArrayFromImage(truth.image)
    np.testing.assert_array_equal(found, np.array([0, 2, 1])[labels])
    with pytest.raises(InputError, match=r"foreground names 7, but no label has it"):
        prepare(raw, tmp_path / "out", reading=ReadingParams(foreground=[7]))


def change(path, call):
    """Writes a file anew from its image."""
    sitk.WriteImage(call(sitk.ReadImage(str(path))), str(path))


def with_value(value, kind=sitk.sitkFloat32):
    def call(image):
        image = sitk.Cast(image, kind)
        image[1, 1, 1] = value
        return image

    return call


def moved(image):
    image.SetOrigin((0.0, 0.0, 0.0))
    return image


def stretched(image):
    image.SetSpacing((1.0, 1.0, 1.0))
    return image


LABELS, IMAGE = "labelsTr/case_1.nii.gz", "imagesTr/case_1.nii.gz"


@pytest.mark.parametrize(
    ("name", "call", "said"),
    [
        (LABELS, lambda image: image[1:], "on another grid than case_1.nii.gz (11×9×6 voxels"),
        (LABELS, moved, "on another grid"),
        (LABELS, stretched, "voxels of 1, 1, 1 mm against 0.7, 0.8, 3 mm"),
        (IMAGE, lambda image: sitk.JoinSeries([image] * 2), "4 dimensions, not 3 (12×9×6×2)"),
        (LABELS, with_value(0.5), "holds 0.5, and labels are whole numbers"),
        (LABELS, with_value(-1), "holds -1"),
        (LABELS, with_value(float("nan")), "holds nan"),
        (LABELS, with_value(3, sitk.sitkUInt8), "has the label 3, which"),
        (IMAGE, lambda image: image * 0, "all values are the same"),
    ],
)
def test_what_does_not_fit_is_named(name, call, said, tmp_path):
    raw = write_decathlon(tmp_path / "raw", names=NAMES)
    change(raw / name, call)
    with pytest.raises(InputError) as error:
        prepare(raw, tmp_path / "out")
    message = str(error.value)
    assert said in message and str(raw / name) in message and "\n" not in message
    assert not (tmp_path / "out").exists()


def test_files_that_are_missing_or_broken_are_named(tmp_path):
    raw = write_decathlon(tmp_path / "raw")
    whole = (raw / IMAGE).read_bytes()
    (raw / IMAGE).write_bytes(whole[:-20])
    with pytest.raises(InputError, match=r"case_1\.nii\.gz is truncated or damaged"):
        prepare(raw, tmp_path / "out")
    (raw / IMAGE).write_bytes(whole)
    (raw / LABELS).rename(tmp_path / "kept.nii.gz")
    with pytest.raises(InputError, match=r"1 image without a mask, first .*case_1\.nii\.gz"):
        prepare(raw, tmp_path / "out")
    (raw / IMAGE).unlink()
    (raw / "dataset.json").write_text(json.dumps({"labels": {"lesion": [1, 2]}}))
    with pytest.raises(InputError, match=r"dataset\.json does not name single label values"):
        prepare(raw, tmp_path / "out")
    (raw / "dataset.json").unlink()
    with pytest.raises(InputError, match=r"masks holds no labels"):
        (tmp_path / "bare/masks").mkdir(parents=True)
        shutil.copytree(raw / "imagesTr", tmp_path / "bare/images")
        prepare(tmp_path / "bare", tmp_path / "out2")


def test_what_is_no_number_is_dark_and_told(tmp_path):
    raw = write_decathlon(tmp_path / "raw")
    change(raw / IMAGE, with_value(float("nan")))
    change(raw / LABELS, lambda image: image * 0)
    said = prepare(raw, tmp_path / "out").differences
    assert f"1 voxels of {raw / IMAGE} are no numbers" in said[0] and "dark" in said[0]
    assert f"{raw / LABELS} has no foreground" in said[1]
    for path in (raw / "labelsTr").iterdir():
        change(path, lambda image: image * 0)
    with pytest.raises(InputError, match="have no foreground"):
        prepare(raw, tmp_path / "out")


def test_one_slice_is_cut_or_told(tmp_path):
    raw = write_decathlon(tmp_path / "raw", shape=(1, 9, 12), empty=0)
    prepare(raw, tmp_path / "out")
    assert len(load_manifest(tmp_path / "out")) == 4
    with pytest.raises(InputError, match=r"case_0\.nii\.gz: its coronal slices are lines"):
        prepare(raw, tmp_path / "out", reading=ReadingParams(plane="coronal"))


@pytest.mark.parametrize("ending", [".mha", ".nrrd"])
def test_a_header_may_not_name_another_file(ending, tmp_path):
    path = tmp_path / f"a{ending}"
    sitk.WriteImage(make(random_voxels()), str(path))
    head = {".mha": (b"= LOCAL", b"= other.raw"), ".nrrd": (b"encoding", b"data file: o\nencoding")}
    path.write_bytes(path.read_bytes().replace(*head[ending], 1))
    with pytest.raises(InputError, match="keeps its voxels in another file"):
        read_volume(path)


@given(
    plane=st.sampled_from(["axial", "coronal", "sagittal"]),
    cuts=st.tuples(st.integers(0, 499), st.integers(500, 1000)),
)
@settings(max_examples=20)
def test_a_scale_of_volumes_is_read_as_written(plane, cuts):
    rule = VolumeRule(plane, (cuts[0] / 10, cuts[1] / 10))
    assert Scale.parse(str(Scale({16: (0, 4095)}, rule))) == Scale({16: (0, 4095)}, rule)


@pytest.mark.parametrize("text", ["oblique:0.5-99.5", "axial:9-1", "axial:0-101", "axial:.-."])
def test_another_scale_is_refused(text):
    with pytest.raises(ValueError, match="no scale"):
        Scale.parse(text)


def test_pictures_still_need_foreground(tmp_path):
    raw = write_decathlon(tmp_path / "raw")
    prepare(raw, tmp_path / "out")
    path = tmp_path / "out/manifest.csv"
    path.write_text(path.read_text().replace("axial:0.5-99.5", "8:0-100"))
    with pytest.raises(InputError, match="mask_area of 0 for case_0_s000"):
        load_manifest(tmp_path / "out")
