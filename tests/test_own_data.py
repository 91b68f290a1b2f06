"""`python -m wavegms add`: images of one's own are set up, checked, and named in params.yaml."""

import shutil
import subprocess
import sys

import numpy as np
import pytest
import SimpleITK as sitk
import yaml
from copies import ROOT
from dermoscopy import draw_skin, write_skin
from dicoms import write_decathlon
from dvc.utils.hydra import compose_and_dump
from layouts import box_mask, mask_image, save, tree, write_plain
from PIL import Image
from test_reading import void
from test_reading import write as write_scans
from test_volume_sets import prepare as prepare_volumes
from test_volume_sets import put_back, require_on_grid

from wavegms import InputError
from wavegms.__main__ import main
from wavegms.config import ReadingParams, load_params
from wavegms.data.dataset import PreparedDataset
from wavegms.data.manifest import load_volumes
from wavegms.data.volume_sets import open_truth
from wavegms.run import add as own_data
from wavegms.run.add import add_dataset


@pytest.fixture
def project(tmp_path, monkeypatch):
    """What the command needs of the repository, as it is committed."""
    root = tmp_path / "project"
    shutil.copytree(ROOT / "conf", root / "conf")
    shutil.copy2(ROOT / "params.yaml", root)
    monkeypatch.chdir(root)
    monkeypatch.setattr(own_data, "_SHOWN", 1)  # drawing takes longer than all else
    return root


def add(tmp_path, name="skin", **count):
    write_skin(tmp_path / "scans", tmp_path / "outlines", **count)
    return add_dataset(name, tmp_path / "scans", tmp_path / "outlines")


def composed(project, tmp_path, profile):
    """params.yaml as DVC composes it."""
    out = tmp_path / f"{profile}.yaml"
    compose_and_dump(out, str(project / "conf"), None, "config", None, [f"profile={profile}"])
    return yaml.safe_load(out.read_text())


def comments(text):
    return [line.strip() for line in text.splitlines() if line.strip().startswith("#")]


def test_files_are_copied_checked_shown_and_named(project, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(own_data, "_SHOWN", 12)
    write_skin(tmp_path / "scans", tmp_path / "outlines", count=30, without_mask=3)
    (project / "notebooks").mkdir()
    folders = ["--images", str(tmp_path / "scans"), "--masks", str(tmp_path / "outlines")]
    assert main(["add", "skin", *folders]) == 0
    said = capsys.readouterr().out
    assert "data/raw/skin: 30 images with masks" in said and "30 RGB" in said
    assert "3 images without a mask are in data/raw/skin/unlabelled" in said
    assert "mean over 6 test images" in said
    assert 'datasets: ["skin"]' in said and said.endswith("next: dvc repro\n")
    with Image.open(project / "reports/own_data/skin.png") as preview:
        cyan = [count for count, pixel in preview.convert("RGB").getcolors(10**6)
                if pixel[0] < 60 and pixel[1] > 180 and pixel[2] > 220]  # fmt: skip
    assert sum(cyan) > 500  # the contours of twelve masks
    assert load_params(project / "params.yaml").datasets == ["skin"]


def test_nothing_heavy_is_imported_before_files_are_checked(project):
    """In a process of its own, as a mistyped name should not wait for torch."""
    write_plain(project / "data/raw/mine", 12)
    code = """
import sys
import wavegms.config, wavegms.data.audit, wavegms.data.download, wavegms.data.prepare
from wavegms.run import add
HEAVY = {"torch", "diffusers", "kornia", "monai", "matplotlib", "seaborn", "pandas", "dvc"}
def examine(*arguments):
    print(sorted(HEAVY & set(sys.modules)))
    sys.exit()
add._examine = examine
add.add_dataset("mine")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_params_are_those_of_the_written_profile_and_keep_their_comments(project, tmp_path):
    before = (project / "params.yaml").read_text()
    added = add(tmp_path)
    after = (project / "params.yaml").read_text()
    values = yaml.safe_load(after)
    assert values == composed(project, tmp_path, "skin")
    assert comments(after) == comments(before)
    assert after.count("\n") == before.count("\n") - 2  # a list of two pairs became empty
    old = yaml.safe_load(before)
    assert added.changed["image_size"] == values["image_size"] != old["image_size"]
    assert values["autoencoder"]["source"] == "train" == old["autoencoder"]["source"]
    assert "autoencoder.source" not in added.changed and "seed" not in added.changed


def test_a_second_time_only_checks(project, tmp_path):
    add(tmp_path, without_mask=1)
    params = project / "params.yaml"
    params.write_text(params.read_text().replace("epochs: 100", "epochs: 7"))
    before = tree(project)
    again = add_dataset("skin")
    assert (again.cases, again.unlabelled, again.changed) == (20, 1, {})
    after = tree(project)
    assert {name for name in after if before[name] != after[name]} <= {"reports/own_data/skin.png"}
    assert "names skin already" in own_data.report(again)


def test_a_profile_that_was_edited_is_kept_when_the_dataset_is_named_anew(project, tmp_path):
    add(tmp_path)
    profile = project / "conf/profile/skin.yaml"
    profile.write_text(profile.read_text() + "image_size: 96\n")
    shutil.copy2(ROOT / "params.yaml", project)
    text = profile.read_text()
    assert add_dataset("skin").changed["image_size"] == 96
    assert profile.read_text() == text


@pytest.mark.parametrize("text", ["a: [", "defaults: [none_such]", "a: ${b}"])
def test_a_profile_that_cannot_be_read_is_named(project, text):
    (project / "conf/profile/skin.yaml").write_text(f"# @package _global_\n{text}\n")
    write_plain(project / "data/raw/skin")
    refused(project, r"skin.yaml", "skin")


def test_a_new_name_makes_folders_and_files_put_there_are_taken(project, capsys):
    assert main(["add", "mine"]) == 0
    said = capsys.readouterr().out
    assert "data/raw/mine/images" in said and "python -m wavegms add mine" in said
    assert sorted(path.name for path in (project / "data/raw/mine").iterdir()) == [
        "images",
        "masks",
    ]
    assert load_params(project / "params.yaml").datasets == ["phantom_a", "phantom_b"]
    with pytest.raises(InputError, match="mine holds no images"):
        add_dataset("mine")
    for number in range(20):
        image, mask = draw_skin(number)
        save(image, project / f"data/raw/mine/images/{number}.png")
        save(mask, project / f"data/raw/mine/masks/{number}.png")
    assert add_dataset("mine").cases == 20
    assert load_params(project / "params.yaml").datasets == ["mine"]


def test_a_dataset_that_is_only_tested_on_is_checked(project):
    params = project / "params.yaml"
    params.write_text(params.read_text().replace("external: []", "external: [elsewhere]"))
    write_plain(project / "data/raw/elsewhere", 2)
    assert add_dataset("elsewhere").changed == {}


def refused(project, match, *arguments):
    before = tree(project)
    with pytest.raises(InputError, match=match):
        add_dataset(*arguments)
    after = tree(project)
    after.pop("reports/own_data/skin.png", None)
    assert after == before


def test_names_that_are_taken_are_refused(project, tmp_path):
    refused(project, "busi is the name of BUSI", "busi")
    refused(project, r"profile/paper.yaml is a profile of other datasets", "paper")
    refused(project, "models/ablation is taken", "ablation")
    refused(project, "letters, digits", "my data")
    refused(project, "letters, digits", "../elsewhere")


def test_one_folder_without_the_other_is_refused(project, tmp_path):
    refused(project, "--images and --masks belong together.*predict", "skin", tmp_path, None)
    refused(project, "--images and --masks belong together", "skin", None, tmp_path)


def test_a_folder_with_files_is_not_written_into(project, tmp_path):
    write_plain(project / "data/raw/skin")
    write_skin(tmp_path / "scans", tmp_path / "outlines")
    refused(project, "holds files already", "skin", tmp_path / "scans", tmp_path / "outlines")


def test_images_without_any_mask_are_pointed_to_predict(project, tmp_path):
    write_skin(project / "data/raw/skin/images", project / "data/raw/skin/masks", count=0,
               without_mask=4)  # fmt: skip
    refused(project, "python -m wavegms predict", "skin")


def test_every_bad_pair_is_named_and_nothing_is_copied(project, tmp_path, capsys):
    write_skin(tmp_path / "scans", tmp_path / "outlines")
    (tmp_path / "scans/lesion_03.jpg").write_bytes(b"no image")
    save(mask_image(box_mask((50, 50))), tmp_path / "outlines/lesion_05_segmentation.png")
    save(Image.new("L", draw_skin(7)[0].size), tmp_path / "outlines/lesion_07_segmentation.png")
    folders = tmp_path / "scans", tmp_path / "outlines"
    refused(project, "3 of 20 images or their masks are no good", "skin", *folders)
    said = capsys.readouterr().err
    assert "lesion_03.jpg cannot be read" in said and "lesion_07_seg" in said
    assert "lesion_05_segmentation.png is 50×50 pixels but its image lesion_05.jpg is" in said


def test_too_few_images_are_refused_before_params_change(project, tmp_path):
    with pytest.raises(InputError, match=r"1 images in 1 group.* cannot be divided: add data"):
        add(tmp_path, count=2)
    assert (project / "params.yaml").read_text() == (ROOT / "params.yaml").read_text()


def test_exchanged_masks_are_remarked(project, tmp_path):
    write_skin(tmp_path / "scans", tmp_path / "outlines")
    for path in (tmp_path / "outlines").iterdir():
        with Image.open(path) as mask:
            inverted = mask.point(lambda value: 255 - value)
        inverted.save(path)
    notes = add_dataset("skin", tmp_path / "scans", tmp_path / "outlines").notes
    assert any("black and white are exchanged" in note for note in notes)


@pytest.mark.parametrize("before", ["as committed", "without the knob"])
def test_what_masks_do_not_tell_is_asked_and_noted(project, tmp_path, capsys, before):
    params = project / "params.yaml"
    if before == "without the knob":
        params.write_text(params.read_text().replace("\nreading: {}\n", "\n"))
        assert load_params(params).reading == {}
    write_scans(tmp_path / "voided", void(255), count=20)
    (project / "notebooks").mkdir()
    command = ["add", "skin", "--images", str(tmp_path / "voided/images"),
               "--masks", str(tmp_path / "voided/masks")]  # fmt: skip
    text = params.read_text()
    assert main(command) == 1
    assert "--foreground 1 --ignore 255" in capsys.readouterr().err
    assert params.read_text() == text and not (project / "data").exists()
    said = ["--foreground", "1", "--ignore", "255", "--spacing", "0.12", "0.1"]
    assert main([*command, *said]) == 0
    found = capsys.readouterr().out
    assert "foreground is 1, and 255 is ignored" in found
    assert "spacing: 0.12 (rows) and 0.1 (columns) mm, as reading.skin says" in found
    wanted = {"foreground": [1], "ignore": [255], "spacing": [0.12, 0.1]}
    assert load_params(params).reading["skin"] == ReadingParams(**wanted)
    assert composed(project, tmp_path, "skin")["reading"] == {"skin": wanted}
    assert main(["add", "skin"]) == 0  # read as params.yaml says
    assert "foreground is 1, and 255 is ignored" in capsys.readouterr().out
    assert main(["add", "skin", "--foreground", "1", "255"]) == 0  # thought better of it
    assert load_params(params).reading["skin"].foreground == [1, 255]


def test_folds_are_set_with_new_images_and_with_known_ones(project, tmp_path, capsys):
    write_skin(tmp_path / "scans", tmp_path / "outlines", count=20)
    (project / "notebooks").mkdir()
    params, profile = project / "params.yaml", project / "conf/profile/skin.yaml"
    folders = ["--images", str(tmp_path / "scans"), "--masks", str(tmp_path / "outlines")]

    def refused(command, said):
        before = params.read_text()
        assert main(command) == 1 and said in capsys.readouterr().err
        assert params.read_text() == before

    text = params.read_text()
    for folds in ("0", "1"):
        refused(["add", "skin", *folders, "--folds", folds], "leaves nothing to train on")
        assert not profile.exists() and not (project / "data").exists()
    assert main(["add", "skin", *folders, "--folds", "5"]) == 0
    said = capsys.readouterr().out
    assert "split.folds: 5" in said and "test images" not in said  # all twenty are
    assert load_params(params).split.folds == 5
    assert yaml.safe_load(params.read_text()) == composed(project, tmp_path, "skin")
    written = profile.read_text()
    refused(["add", "skin", "--folds", "50"], "split.folds is 50, but 20 images")
    assert main(["add", "skin", "--folds", "4"]) == 0
    said = capsys.readouterr().out
    assert "skin.yaml was there and is left as it is: write split: {folds: 4} there" in said
    assert load_params(params).split.folds == 4 and profile.read_text() == written
    assert comments(params.read_text()) == comments(text)


def test_classes_are_named_as_folders_or_values(project, tmp_path, capsys):
    for name in ("mass", "cyst"):
        write_scans(tmp_path / name, void(0), count=20)
        (tmp_path / name / "masks").rename(tmp_path / f"masks_{name}")
    (tmp_path / "outlines").mkdir()
    for name in ("mass", "cyst"):
        (tmp_path / f"masks_{name}").rename(tmp_path / "outlines" / name)
    (project / "notebooks").mkdir()
    command = ["add", "organs", "--images", str(tmp_path / "mass/images"),
               "--masks", str(tmp_path / "outlines")]  # fmt: skip
    assert main([*command, "--classes", "mass", "cyst", "nerve"]) == 0
    said = capsys.readouterr().out
    assert "No mask has a pixel of the class nerve" in said and "reading: " in said
    classes = {"mass": 1, "cyst": 2, "nerve": 3}
    assert load_params(project / "params.yaml").reading["organs"].classes == classes
    assert composed(project, tmp_path, "organs")["reading"] == {"organs": {"classes": classes}}
    folders = {path.name for path in (project / "data/raw/organs/masks").iterdir()}
    assert folders == {"mass", "cyst"}
    assert main(["add", "organs", "--classes", "mass=1", "cyst=5-9"]) == 0  # thought better of it
    assert load_params(project / "params.yaml").reading["organs"].classes["cyst"] == "5-9"
    assert main(["add", "organs", "--classes", "mass", "node"]) == 1
    assert "is no folder of a class of organs (mass, node)" in capsys.readouterr().err


def test_params_that_cannot_be_edited_are_left_alone(project, tmp_path):
    params = project / "params.yaml"
    text = params.read_text()
    shared = text.replace(
        "datasets: [phantom_a, phantom_b]\n# The",
        "datasets: &both [phantom_a, phantom_b]\n# The",
        1,
    )
    shared = shared.replace("  datasets: [phantom_a, phantom_b]", "  datasets: *both", 1)
    assert yaml.safe_load(shared) == yaml.safe_load(text) and shared != text
    params.write_text(shared)
    with pytest.raises(InputError, match=r"git restore params.yaml"):
        add(tmp_path)
    assert params.read_text() == shared


@pytest.mark.realdata
def test_real_dermoscopy_is_taken_as_it_was_published(project, real_data, tmp_path):
    raw = real_data / "data/raw/ham10000_sample"
    scans = tmp_path / "scans"
    scans.mkdir()
    for path in raw.glob("HAM10000_images_part_*/*.jpg"):
        shutil.copy2(path, scans)
    added = add_dataset("skin", scans, raw / "HAM10000_segmentations_lesion_tschandl")
    assert (added.cases, added.unlabelled) == (len(list(scans.iterdir())), 0)
    (note,) = added.notes
    assert note.startswith("a score is the mean over 7 test images: mind its interval")
    assert note.endswith(", or add `--folds 5`, which scores every image")


def test_volumes_are_added_by_their_layout(project, tmp_path, capsys):
    source = write_decathlon(tmp_path / "Task04", count=6, names=("head", "body"))
    (source / "imagesTs").mkdir()
    shutil.copy(source / "imagesTr/case_0.nii.gz", source / "imagesTs/new.nii.gz")
    (source / "imagesTr/._case_0.nii.gz").write_bytes(b"of a Mac")
    (project / "notebooks").mkdir()
    asked = ["--plane", "coronal", "--context", "neighbours"]
    assert main(["add", str(source), "--name", "brain", *asked]) == 0
    said = capsys.readouterr().out
    assert "data/raw/brain: 6 volumes with masks" in said and "12×9×6 voxels of" in said
    assert "slices: coronal, as reading.brain says" in said
    assert "labels: classes are head 1, body 2; they have 0 background (" in said
    assert "1 volumes without a mask are in data/raw/brain/unlabelled" in said
    assert (project / "reports/own_data/brain.png").is_file()
    params = load_params(project / "params.yaml")
    assert (
        params.datasets == params.volumes == ["brain"]
        and params.reading["brain"].plane == "coronal"
        and params.reading["brain"].context == "neighbours"
    )
    assert composed(project, tmp_path, "brain")["volumes"] == ["brain"]
    assert main(["add", str(source), "--name", "brain"]) == 1
    assert "holds files already" in capsys.readouterr().err
    folders = ["--images", str(source / "imagesTr"), "--masks", str(source / "labelsTr")]
    assert main(["add", "again", *folders]) == 0
    said = capsys.readouterr().out
    assert "data/raw/again: 6 volumes" in said and "foreground is 1-2, as all labels" in said


@pytest.mark.realdata
def test_real_volumes_are_added_prepared_and_come_back_on_their_grid(project, real_data, tmp_path):
    source = real_data / "data/raw/hippocampus"
    names = [path.name for path in sorted((source / "imagesTr").glob("*.nii.gz"))[:60:10]]
    for part in ("imagesTr", "labelsTr"):
        (tmp_path / "Task04" / part).mkdir(parents=True)
        for name in names:
            shutil.copy(source / part / name, tmp_path / "Task04" / part / name)
    added = add_dataset("hippocampus", source=tmp_path / "Task04")
    assert (added.cases, added.what) == (6, "volumes")
    out = tmp_path / "out"
    for classes, kinds in (((), (0, 255, 255)), (("anterior", "posterior"), (0, 1, 2))):
        reading = ReadingParams(classes=list(classes))
        options = {"name": "hippocampus", "reading": reading}
        report = prepare_volumes(added.folder, out, image_size=64, **options)
        assert report.largest[1] <= 64  # nothing was made smaller
        for row in load_volumes(out).itertuples():
            labels = sitk.ReadImage(str(source / row.labels))
            voxels = np.array(kinds)[sitk.GetArrayFromImage(labels)]
            require_on_grid(put_back(out, row), labels, voxels)
    # the truth is kept as it is where slices are smaller
    prepare_volumes(added.folder, out, image_size=32, **options)
    dataset = PreparedDataset(out, ("train", "val", "test"))
    assert dataset.classes == classes and set(dataset.masks.unique().tolist()) == {0, 1, 2}
    for row in load_volumes(out).itertuples():
        labels = sitk.ReadImage(str(source / row.labels))
        truth = open_truth(out, row.id, row.plane).image
        require_on_grid(truth, labels, sitk.GetArrayFromImage(labels))
