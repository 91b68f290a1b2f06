"""Disks that are full or read-only, names that are too long: a sentence each, for every command."""

import errno
import os
import resource
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import nbformat
import numpy as np
import pytest
import SimpleITK as sitk
import torch
from copies import ROOT, environment
from safetensors.torch import save_file

from wavegms import InputError
from wavegms.__main__ import main
from wavegms.data.volumes import write_volume
from wavegms.errors import refused_by_the_system
from wavegms.files import replace_file, replace_folder, write_text
from wavegms.run.notebooks import run_notebook

LONG = "x" * 300

KINDS = {
    errno.ENOSPC: "make room on that disk",
    errno.EDQUOT: "make room within your quota",
    errno.EFBIG: "ulimit -f",
    errno.EROFS: "make that disk writable",
    errno.EACCES: "check whose it is and its rights",
    errno.EPERM: "check whose it is and its rights",
    errno.EIO: "check the disk and its connection",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.ENOTDIR: "a part of this path is a file",
    errno.EISDIR: "this is a folder",
    errno.EMFILE: "ulimit -n",
}
NAMES = [
    *("/a/b c.png", "it's.png", "a'b\"c", "100% -> x.png", "x' -> y\"", "a\\", "ü: [1].png"),
    None,
]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("number", KINDS)
def test_the_sentence_names_the_file_what_is_wrong_and_the_way_out(number, name):
    parts = (number, os.strerror(number), *([name] if name else []))
    said = str(refused_by_the_system(str(OSError(*parts))))
    assert said.startswith(f"{name or 'a file or the output'} cannot be read or written (")
    assert f"({os.strerror(number)}): " in said and KINDS[number] in said


@pytest.mark.parametrize(
    "error", [OSError("encoder error -2"), OSError(errno.EXDEV, "x"), ValueError("[1] x"), "Errno"]
)
def test_other_errors_are_left_to_their_traceback(error):
    assert refused_by_the_system(str(error)) is None


@contextmanager
def files_up_to(size):
    """As on a disk that is nearly full: files cannot grow beyond so many bytes."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_safetensors_says_it_in_its_own_way(tmp_path):
    with files_up_to(1000), pytest.raises(Exception, match="os error") as caught:
        save_file({"a": torch.zeros(1000)}, tmp_path / "x.safetensors")
    assert "ulimit -f" in str(refused_by_the_system(str(caught.value)))


def test_a_target_is_named_as_it_was_given_and_stays(tmp_path, survived):
    write_text(tmp_path / "kept.txt", "before")
    with files_up_to(1000), pytest.raises(OSError) as caught:
        write_text(tmp_path / "kept.txt", "x" * 5000)
    assert str(refused_by_the_system(str(caught.value))).startswith(f"{tmp_path / 'kept.txt'} ")
    with files_up_to(1000), pytest.raises(OSError) as caught, replace_folder(tmp_path / "f") as new:
        (new / "a.txt").write_text("x" * 5000)
    assert str(refused_by_the_system(str(caught.value))).startswith(f"{tmp_path / 'f'} ")
    with pytest.raises(OSError) as caught, replace_file(tmp_path / "kept.txt"):
        Path("/none/that/is/read").read_text()
    assert str(refused_by_the_system(str(caught.value))).startswith("/none/that/is/read ")
    assert [path.name for path in tmp_path.iterdir()] == ["kept.txt"]
    assert (tmp_path / "kept.txt").read_text() == "before"
    survived("faults", 3)


@pytest.mark.parametrize("name", ["a.nii.gz", "a.nii"])
@pytest.mark.parametrize("size", [100, 4096, 300_000])
def test_a_volume_that_is_cut_short_is_not_called_written(tmp_path, survived, name, size):
    """ITK itself writes as much of it as there is room for, and says that all is well."""
    image = sitk.GetImageFromArray(np.random.default_rng(0).random((20, 50, 50)))
    with files_up_to(size), pytest.raises(InputError, match=r"cannot be written .*free some space"):
        write_volume(tmp_path / name, image)
    write_volume(tmp_path / name, image)
    assert sitk.Hash(sitk.ReadImage(tmp_path / name)) == sitk.Hash(image)
    survived("faults")


def one_sentence(capfd, *command):
    assert main(list(command)) == 1
    said = capfd.readouterr().err
    assert "Traceback" not in said and len(said.strip().splitlines()) == 1
    return said.strip()


@pytest.mark.parametrize(
    "command",
    [
        ["check", "--out", f"{LONG}/check.txt"],
        ["check", "--out", "x", "--params", LONG],
        ["run", LONG, "out.ipynb"],
        ["run", "notebooks/00_tour.ipynb", LONG],
        ["refresh", LONG],
        ["bench", "--out", LONG],
        ["sweep", "train", "--executor", "local", "--logs", LONG],
        ["share", LONG, "out"],
        ["predict", LONG, "--model", "data", "--out", "o"],
        ["predict", "data/raw", "--model", LONG, "--out", "o"],
        ["add", "mine", "--images", LONG, "--masks", LONG],
    ],
    ids=lambda command: " ".join(command).replace(LONG, "LONG"),
)
def test_a_path_that_is_too_long(capfd, monkeypatch, survived, command):
    monkeypatch.chdir(ROOT)
    assert "xxx" in one_sentence(capfd, *command)
    survived("inputs")


def test_a_cell_that_meets_a_full_disk_says_so(tmp_path, monkeypatch, survived):
    monkeypatch.chdir(tmp_path)
    cells = [
        nbformat.v4.new_code_cell("seed = 1", metadata={"tags": ["parameters"]}),
        nbformat.v4.new_code_cell("with open('/dev/full', 'w') as f: f.write('x')"),
    ]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), "n.ipynb")
    with pytest.raises(InputError, match=r"No space left on device.*make room on that disk"):
        run_notebook(Path("n.ipynb"), Path("reports/n.ipynb"), {})
    assert list(Path("reports").iterdir()) == []
    survived("faults")


@pytest.mark.parametrize("command", [["get"], ["trace", "phantom_a", "wave_gms"]], ids=" ".join)
def test_output_that_goes_to_a_full_disk(small_project, command):
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "wavegms", *command],
            cwd=small_project,
            env=environment(small_project),
            stdout=full,
            stderr=subprocess.PIPE,
            encoding="utf-8",
        )
    assert done.returncode and "error: a file or the output cannot be" in done.stderr
    assert "Traceback" not in done.stderr


# In a name space of its own, so that nothing else sees this disk.
READ_ONLY = 'mount --bind "$0" "$0" && mount -o remount,bind,ro "$0" && cd "$0" && exec "$@"'

COMMANDS = {
    "check": ["--out", "reports/check.txt"],
    "run": [
        *("notebooks/03_evaluate.ipynb", "reports/x.ipynb", "-p", "dataset", "phantom_a"),
        *("-p", "variant", "wave_gms", "-p", "seed", "2333"),
    ],
    "refresh": ["notebooks/09_explore.ipynb"],
    "report": [],
    "bench": ["--image-size", "32"],
    "share": ["models/phantom_a/wave_gms", "out"],
    "add": ["mine", "--images", "data/raw/phantom_a/original", "--masks", "data/raw/phantom_a/GT"],
    "get": ["taesd"],
    "sweep": ["evaluate", "--executor", "local"],
    "predict": [
        *("data/raw/phantom_a/original/000001.png", "--model", "models/phantom_a/wave_gms"),
        *("--out", "predictions"),
    ],
}


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
def test_a_read_only_disk(small_project, survived, command):
    if subprocess.run(["unshare", "-rm", "true"], capture_output=True).returncode:
        pytest.skip("no name spaces here")
    here = environment(small_project) | {"PYTHONDONTWRITEBYTECODE": "1"}
    shell = ["unshare", "-rm", "sh", "-c", READ_ONLY, str(small_project)]
    done = subprocess.run(
        [*shell, sys.executable, "-m", "wavegms", command, *COMMANDS[command]],
        env=here,
        capture_output=True,
        encoding="utf-8",
    )
    assert done.returncode == 1, done.stderr[-2000:]
    assert "Traceback" not in done.stderr
    (said,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert "Read-only file system" in said and ".new" not in said and "partial" not in said
    survived("faults")
