"""`python -m wavegms`: bad input ends with one sentence and a status, and nothing half-written."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from wavegms.__main__ import COMMANDS, main
from wavegms.phantom.scanner import write_phantoms

ROOT = Path(__file__).parents[1]


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A project with a dozen simulated images as a dataset of one's own."""
    shutil.copytree(ROOT / "notebooks", tmp_path / "notebooks")
    write_phantoms("phantom_a", tmp_path / "sim", count=12, seed=1)
    raw = tmp_path / "data/raw/mine"
    raw.mkdir(parents=True)
    (tmp_path / "sim/original").rename(raw / "images")
    (tmp_path / "sim/GT").rename(raw / "masks")
    monkeypatch.chdir(tmp_path)
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    params["datasets"] = ["mine"]
    params["phantom"]["datasets"] = []
    params["generalization"] = []
    params["ablation"]["datasets"] = []
    params["training"]["batch_size"] = 4
    params["split"]["validation_fraction"] = 0.2
    params["image_size"] = 32
    write(params)
    return tmp_path


def write(params):
    Path("params.yaml").write_text(yaml.safe_dump(params))


def change(key, value):
    params = yaml.safe_load(Path("params.yaml").read_text())
    *parents, last = key.split(".")
    section = params
    for name in parents:
        section = section[name]
    section[last] = value
    write(params)


def refused(capfd, *arguments):
    """Runs a command that must fail, and gives back its one sentence."""
    assert main(list(arguments)) == 1
    errors = [line for line in capfd.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    return errors[0]


def check(capfd):
    message = refused(capfd, "check", "--out", "reports/check.txt")
    assert not Path("reports").exists()
    return message


HEAVY = ("torch", "diffusers", "pandas", "papermill", "dvc", "kornia", "matplotlib")
WRONG = [
    [],
    *([command.NAME, "--nonsense"] for command in COMMANDS),
    ["check", "--params", "none.yaml", "--out", "x"],
    ["run", "none.ipynb", "out.ipynb"],
    ["run", "notebooks/01_prepare.ipynb", "out.ipynb", "-p", "datset", "mine"],
    ["bench", "--image-size", "40"],
    ["sweep", "train", "--executor", "local", "--jobs", "0"],
    ["sweep", "train", "--executor", "local", "--option", "timeout_min"],
]
ANSWER = f"""
import sys
from wavegms.__main__ import main
for arguments in {WRONG}:
    try:
        status = main(arguments)
    except SystemExit as end:  # of argparse
        status = end.code
    heavy = {set(HEAVY)} & set(sys.modules)
    assert status and not heavy, (arguments, status, heavy)
"""


def test_a_wrong_argument_is_answered_before_anything_heavy_is_imported(project):
    done = subprocess.run([sys.executable, "-c", ANSWER], capture_output=True, encoding="utf-8")
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("usage: ") == len(COMMANDS) + 1


def test_sound_input_passes(project):
    assert main(["check", "--out", "reports/check.txt"]) == 0
    assert Path("reports/check.txt").read_text()


def test_a_missing_dataset_says_where_to_get_it(project, capfd):
    change("datasets", ["busi"])
    change("split.method", "random")
    message = check(capfd)
    assert "data/raw/busi" in message and "cu.edu.eg" in message


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("training.epoch", 5, ["training.epoch", "not a known parameter"]),
        ("image_size", 100, ["image_size", "divisible by 8", "96"]),
        ("training.batch_size", 50, ["training.batch_size", "50", "mine", "choose at most"]),
        ("split.test_fraction", 0.0, ["test"]),
        ("variants", ["wave_gmz"], ["wave_gmz", "wave_gms"]),
        ("training.warmup_epochs", 500, ["training.warmup_epochs", "mine"]),
        ("phantom.datasets", ["phantom_z"], ["phantom_z", "phantom_a"]),
        ("split.method", "official", ["train.txt"]),
        ("split.method", "external", ["split.method", "published"]),
        ("external", ["stu"], ["no dataset stu in data/raw/stu", "STU-Hospital"]),
        ("efficiency.variants", ["wave_gmz"], ["efficiency.variants", "wave_gmz", "wave_gms"]),
        ("efficiency.variants", ["unet"], ["efficiency.variants lacks wave_gms", "add it"]),
        ("efficiency.image_size", 40, ["efficiency.image_size is 40", "unet", "16"]),
    ],
)
def test_a_wrong_parameter_is_refused_by_name(project, capfd, key, value, said):
    change(key, value)
    message = check(capfd)
    assert [word for word in said if word not in message] == []


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("variants", ["wave_gmz"], ["ablation.variants", "wave_gmz"]),
        ("epochs", 1, ["training.warmup_epochs", "mine", "its ablation"]),
        ("variants", ["wave_gms_batch_4", "unet"], ["image_size is 40", "unet"]),
    ],
)
def test_what_the_ablation_needs_is_checked_too(project, capfd, key, value, said):
    change("image_size", 40)
    change(f"ablation.{key}", value)
    assert main(["check", "--out", "none/check.txt"]) == 0  # while there is no ablation
    change("ablation.datasets", ["mine"])
    message = check(capfd)
    assert [word for word in said if word not in message] == []


def test_a_row_that_lacks_gmss_weights_stops_nothing(project):
    change("ablation.datasets", ["mine"])
    change("ablation.variants", ["tinyvae_mismatch", "tinyvae"])
    note = Path("reports/imported/mine/tinyvae_mismatch.txt")
    assert main(["check", "--out", "reports/check.txt"]) == 0
    before, other = note.read_text(), note.with_name("tinyvae.txt").read_text()
    assert "models/gms/mine.pth" in before and "models/gms" not in other
    Path("models/gms").mkdir(parents=True)
    Path("models/gms/mine.pth").write_bytes(b"weights")
    assert main(["check", "--out", "reports/check.txt"]) == 0
    assert note.read_text() != before and note.with_name("tinyvae.txt").read_text() == other


def notes():
    assert main(["check", "--out", "reports/check.txt"]) == 0
    return {
        path.relative_to("reports/imported").as_posix(): path.read_text()
        for path in Path("reports/imported").rglob("*.txt")
    }


def test_stages_can_tell_that_weights_or_lists_from_elsewhere_were_exchanged(project):
    """What they depend on is a note of the hashes; it stays as it is as long as they do."""
    files = {
        "autoencoder.txt": Path("models/taesd/taesd_encoder.pth"),
        "mine/gms.txt": Path("models/sd/config.json"),
    }
    for path in files.values():
        path.parent.mkdir(parents=True)
        path.write_bytes(b"one")
    change("autoencoder.source", "path")
    change("autoencoder.sd_vae", "models/sd")
    change("variants", ["wave_gms", "gms"])
    first = notes()
    mine = {f"mine/{name}.txt" for name in ("split", "wave_gms", "gms")}
    assert set(first) == {"autoencoder.txt", "foundations.txt"} | mine
    assert notes() == first
    for name, path in files.items():
        before = notes()
        path.write_bytes(b"other")
        after = notes()
        assert {key for key in after if after[key] != before[key]} == {name}
    assert first["mine/wave_gms.txt"] == first["mine/split.txt"] == "none needed\n"


def test_a_folder_for_the_autoencoder_that_is_missing(project, capfd):
    change("autoencoder.source", "path")
    assert "autoencoder.path models/taesd" in check(capfd)


def test_a_mask_without_image_and_an_image_without_mask(project, capfd):
    masks = Path("data/raw/mine/masks")
    (masks / "000003.png").rename(masks / "other.png")
    assert re.search("000003|other", check(capfd))


def prepare(capfd):
    message = refused(
        capfd,
        *("run", "notebooks/01_prepare.ipynb", "reports/01_prepare_mine.ipynb"),
        *("-p", "dataset", "mine"),
    )
    left = [path for path in Path().rglob("*") if "prepared" in path.parts or path.suffix == ".new"]
    assert [path for path in left if path.is_file()] == []
    assert list(Path("reports").glob("*")) == []
    return message


def test_a_damaged_file_stops_preparation_by_its_name(project, capfd):
    """Of the damages that test_prepare.py and test_hostile_images.py know, one."""
    path = Path("data/raw/mine/images/000005.png")
    path.write_bytes(path.read_bytes()[:300])
    message = prepare(capfd)
    assert "000005.png" in message and "Traceback" not in message


def test_an_argument_that_the_notebook_does_not_know(project, capfd):
    message = refused(
        capfd, "run", "notebooks/01_prepare.ipynb", "out.ipynb", "-p", "datset", "mine"
    )
    assert "datset" in message and "dataset" in message and not Path("out.ipynb").exists()


def test_a_defect_of_the_code_shows_its_traceback(project, capfd):
    notebook = Path("notebooks/01_prepare.ipynb")
    notebook.write_text(notebook.read_text().replace("enter_project()\\n", "1 / 0\\n", 1))
    assert main(["run", str(notebook), "out.ipynb", "-p", "dataset", "mine"]) == 1
    said = capfd.readouterr().err
    assert "ZeroDivisionError" in said and "error: " in said and not Path("out.ipynb").exists()
