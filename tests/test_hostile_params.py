"""params.yaml of any kind, and the command line over a project whose input is broken."""

import copy
import math
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from hostile import damaged, fuzz, outcome, scratch, sentence, snapshot
from hypothesis import given
from hypothesis import strategies as st
from layouts import box_mask, mask_image, picture, save, write_plain

from wavegms import InputError
from wavegms.__main__ import main
from wavegms.config import check_params, load_params

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "params.yaml").read_text()
VALUES = yaml.safe_load(TEXT)
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")


def leaves(values, prefix=()):
    """Each value that is no mapping, by its path."""
    if isinstance(values, dict) and values and prefix[-1:] != ("epochs_by_dataset",):
        for key, value in values.items():
            yield from leaves(value, (*prefix, key))
    else:
        yield prefix, values


LEAVES = dict(leaves(VALUES))


def assert_sane(params) -> None:
    """Every value is of the kind that the default has, finite, and no absurd amount."""
    given_back = dict(leaves(params.model_dump()))
    assert set(given_back) == set(LEAVES)
    for path, value in given_back.items():
        default = LEAVES[path]
        assert type(value) is type(default) or {type(value), type(default)} == {int, float}, path
        entries = value if isinstance(value, list) else [value]
        for entry in entries:
            if isinstance(entry, int | float) and not isinstance(entry, bool):
                assert math.isfinite(entry) and entry >= 0, path
                assert isinstance(entry, float) or entry < 2**32, path
            if isinstance(entry, str):
                assert entry.isprintable() and len(entry) <= 1000, path
    for name in [*params.datasets, *params.variants, *params.external, *params.phantom.datasets]:
        assert NAME.fullmatch(name)
    assert params.image_size % 8 == 0 and 16 <= params.image_size <= 4096


def judge(folder: Path, content: bytes):
    path = folder / "params.yaml"
    path.write_bytes(content)
    start = time.process_time()
    params = outcome(folder, [path.name], lambda: load_params(path))
    assert time.process_time() - start < 10
    if params is not None:
        assert_sane(params)
    return params


@fuzz(80)
@given(damaged([TEXT.encode(), yaml.safe_dump(VALUES).encode()]))
def test_damaged_files(survived, content):
    with scratch() as folder:
        judge(folder, content)
    survived("inputs")


def nested(opening: str, closing: str, depth: int) -> str:
    return opening * depth + "1" + closing * depth


DOCUMENTS = {
    "code": "!!python/object/apply:os.system ['touch {canary}']",
    "code in a value": "seed: !!python/object/apply:os.system ['touch {canary}']",
    "code by a new object": "!!python/object/new:os.system ['touch {canary}']",
    "a module": "!!python/module:os",
    "a name": "!!python/name:os.system",
    "a tuple": "!!python/tuple [1, 2]",
    "an unknown tag": "!mine 1",
    "laughs": "\n".join(
        ["a0: &a0 [ha, ha]", *(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]" for i in range(1, 60))]
    ),
    "laughs in a known place": "datasets: &a [x]\nvariants: [*a, *a]",
    "merges": "\n".join(
        ["a0: &a0 {k: 1}", *(f"a{i}: &a{i} {{<<: [*a{i - 1}, *a{i - 1}]}}" for i in range(1, 40))]
    ),
    "itself": "&a [*a]",
    "itself as a key": "&a {*a : 1}",
    "lists in lists": nested("[", "]", 40_000),
    "mappings in mappings": nested("{a: ", "}", 10_000),
    "open brackets": "[" * 90_000,
    "a dash and a dash": "- " * 45_000,
    "questions": "? " * 45_000,
    "a long number": "seed: " + "9" * 90_000,
    "a number of base sixty": "seed: " + ":".join(["59"] * 30_000),
    "no such date": "seed: 2024-13-45",
    "no number": "seed: !!int x",
    "an empty number": "seed: !!int ''",
    "no truth": "seed: !!bool x",
    "no date": "seed: !!timestamp x",
    "bytes": "seed: !!binary x",
    "two documents": "a: 1\n---\nb: 2",
    "nothing": "",
    "a comment": "# nothing",
    "a word": "word",
    "a list as a key": "? [a]\n: 1",
    "a mapping as a key": "? {a: 1}\n: 1",
    "keys that are no words": "1: 2\nnull: 3\n2024-01-01: 4\n.nan: 5",
    "a tab": "a:\n\t- 1",
    "control codes": "a: \x07",
    "half a letter": 'seed: "\\ud800"',
    "half a letter as a key": '"\\ud800": 1',
    "a key over lines": '"a\\nb\\e[31m": 1',
    "a million letters": "a: " + "x" * 1_000_000,
    "a long key": "x" * 90_000 + ": 1",
    "NUL": "a: \0",
    "an empty anchor": "a: &",
    "a directive": "%YAML 9.9\n---\na: 1",
}


@pytest.mark.parametrize("name", list(DOCUMENTS))
def test_documents_that_are_no_parameters(survived, tmp_path, name):
    canary = tmp_path / "ran"
    content = DOCUMENTS[name].replace("{canary}", str(canary))
    assert judge(tmp_path, content.encode()) is None and not canary.exists()
    # The same after all that is right, so that a value may come before its fault.
    assert judge(tmp_path, (TEXT + "\nextra:\n  - 1\n" + content).encode()) is None
    assert not canary.exists()
    survived("inputs", 2)


@pytest.mark.parametrize(
    "content", [b"\xff", TEXT.encode("utf-16"), TEXT.encode("utf-32"), b"\x80a: 1"]
)
def test_what_is_not_utf_8_is_refused(survived, tmp_path, content):
    assert judge(tmp_path, content) is None
    survived("inputs")


def test_the_mark_that_windows_puts_in_front_is_passed_over(survived, tmp_path):
    assert judge(tmp_path, TEXT.encode("utf-8-sig")) == check_params(VALUES)
    survived("inputs")


def test_aliases_may_stand_for_a_value_or_two(survived, tmp_path):
    text = yaml.safe_dump(VALUES | {"seeds": VALUES["efficiency"]["cards"]})
    assert "*id001" in text and judge(tmp_path, text.encode()).seeds == [11, 12, 16, 24]
    survived("inputs")


def test_what_is_no_file_is_refused(survived, tmp_path):
    os.mkfifo(tmp_path / "pipe.yaml")
    (tmp_path / "folder.yaml").mkdir()
    (tmp_path / "zero.yaml").symlink_to("/dev/zero")
    for path in [*tmp_path.iterdir(), tmp_path / "none.yaml"]:
        assert outcome(tmp_path, [path], lambda path=path: load_params(path)) is None
        survived("inputs")


anything = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(),
        st.integers(-2, 40),
        st.floats(),
        st.floats(-0.1, 1.1),
        st.text(max_size=10),
        st.sampled_from(
            ["", ".", "..", "/", "a/b", "busi", "1e3", "2e-3", "nan", "inf", "0x10", "1_000", "yes"]
        ),
        st.sampled_from(["x" * 65, "x" * 300, "é", "\ud800", "\0", "\n", "١٢", "\x1b[2J", 10**400]),
        st.sampled_from([True, False, 1e308, -0.0, 5e-324, 2**32, 2**63, 2**64]),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.one_of(st.text(max_size=3), st.integers()), inner, max_size=2),
    ),
    max_leaves=4,
)


@fuzz(1000)
@given(st.sampled_from(sorted(LEAVES)), anything)
def test_any_value_at_any_key(survived, path, value):
    values = copy.deepcopy(VALUES)
    part = values
    for step in path[:-1]:
        part = part[step]
    part[path[-1]] = value
    try:
        params = check_params(values)
    except InputError as error:
        # Rules across keys name theirs.
        sentence_of = str(error)
        assert sentence_of.startswith("params.yaml: ") and sentence_of.isprintable()
        assert path[0] in sentence_of or path[-1] in sentence_of, sentence_of
        assert len(sentence_of) < 2500
    else:
        assert_sane(params)
    survived("inputs")


@fuzz(200)
@given(st.sampled_from(["", *{path[0] for path in LEAVES if len(path) > 1}]), anything, anything)
def test_unknown_keys(survived, section, key, value):
    values = copy.deepcopy(VALUES)
    part = values[section] if section else values
    try:
        known = key in part
    except TypeError:  # a list
        key, known = str(key), False
    if known:
        return
    part[key] = value
    with pytest.raises(InputError) as error:
        check_params(values)
    assert str(error.value).startswith("params.yaml: ") and str(error.value).isprintable()
    survived("inputs")


@pytest.mark.parametrize(
    "path", sorted(path for path, value in LEAVES.items() if type(value) is not bool)
)
@pytest.mark.parametrize("value", [True, False])
def test_truth_is_no_number_and_no_word(survived, path, value):
    """YAML reads yes and on as true, which pydantic would take for 1."""
    values = copy.deepcopy(VALUES)
    part = values
    for step in path[:-1]:
        part = part[step]
    part[path[-1]] = [value, 5] if isinstance(part[path[-1]], list) else value
    with pytest.raises(InputError, match=path[-1]):
        check_params(values)
    survived("inputs")


# The command line, in this process: status 1, one line, nothing written.


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    root = tmp_path_factory.mktemp("project")
    write_plain(root / "data/raw/mine", 12)
    values = copy.deepcopy(VALUES) | {
        "datasets": ["mine"],
        "generalization": [],
        "image_size": 16,
    }
    values["phantom"]["datasets"] = values["ablation"]["datasets"] = []
    values["split"]["validation_fraction"] = 0.2
    (root / "params.yaml").write_text(yaml.safe_dump(values))
    shutil.copytree(ROOT / "notebooks", root / "notebooks")
    return root


@pytest.fixture
def copied(project, tmp_path, monkeypatch):
    folder = shutil.copytree(project, tmp_path / "project")
    monkeypatch.chdir(folder)
    return folder


CHECK = ("check", "--out", "reports/check.txt")
RUN = ("run", "notebooks/01_prepare.ipynb", "reports/x.ipynb", "-p", "dataset", "mine")


def change(**values) -> None:
    path = Path("params.yaml")
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | values))


def section(name: str, **values) -> None:
    change(**{name: yaml.safe_load(Path("params.yaml").read_text())[name] | values})


def in_folder(name: str):
    return Path("data/raw/mine") / name


def fill_with_a_link(path: Path) -> None:
    path.unlink()
    path.symlink_to("../../../.dvc/cache/none")


BROKEN = {
    "no parameters": lambda: Path("params.yaml").unlink(),
    "a folder of parameters": lambda: (Path("params.yaml").unlink(), Path("params.yaml").mkdir()),
    "bytes": lambda: Path("params.yaml").write_bytes(b"\xff\0"),
    "code": lambda: Path("params.yaml").write_text("!!python/object/apply:os.system ['touch ran']"),
    "laughs": lambda: Path("params.yaml").write_text(DOCUMENTS["laughs"]),
    "no such date": lambda: change(seed="x") or Path("params.yaml").write_text("seed: 2024-13-45"),
    "truth": lambda: change(seed=True),
    "an image of terabytes": lambda: change(image_size=8 * 10**6),
    "a name over lines": lambda: change(datasets=["a\nb"]),
    "a name of 300 letters": lambda: change(datasets=["x" * 300]),
    "half a letter": lambda: change(datasets=["\ud800"]),
    "a path of 300 letters": lambda: section("autoencoder", source="path", path="x" * 300),
    "a path with NUL": lambda: section("split", folder="x\0y"),
    "a checkpoint of 300 letters": lambda: section("model", gms_checkpoint="x" * 300),
}
BROKEN_DATA = {
    "no data": lambda: shutil.rmtree("data/raw/mine"),
    "a file for a folder": lambda: (shutil.rmtree(in_folder("masks")), in_folder("masks").touch()),
    "a folder for an image": lambda: in_folder("images/scan 77.png").mkdir(),
    "a link to nothing": lambda: fill_with_a_link(in_folder("masks/scan 3.png")),
    "no mask": lambda: in_folder("masks/scan 3.png").unlink(),
    "a name over lines": lambda: save(picture(), in_folder("images/a\nb\x1b[31m.png")),
    "a name that is no text": lambda: [
        save(image, Path(os.fsdecode(b"data/raw/mine/%s/\xff.png" % part)))
        for part, image in ((b"images", picture()), (b"masks", mask_image(box_mask())))
    ],
    "two of one name": lambda: save(picture(), in_folder("images/scan 3.webp")),
    "split lists of bytes": lambda: (
        section("split", method="official"),
        in_folder("train.txt").write_bytes(b"\xff"),
    ),
    "an image in both lists": lambda: (
        section("split", method="official"),
        in_folder("train.txt").write_text("scan 1\nscan 2\n"),
        in_folder("test.txt").write_text("scan 2\n"),
    ),
    "lists of other images": lambda: (
        section("split", method="official"),
        in_folder("train.txt").write_text("scan 1\nnone\n"),
        in_folder("test.txt").write_text("scan 2\n"),
    ),
}


def refused(capfd, folder: Path, *arguments: str) -> str:
    before = snapshot(folder)
    assert main(list(arguments)) == 1
    said = capfd.readouterr()
    assert snapshot(folder) == before
    (line,) = said.err.splitlines()
    assert line.startswith("error: ") and "Traceback" not in said.err + said.out
    return line


@pytest.mark.parametrize("name", list(BROKEN))
def test_broken_parameters_end_every_command(survived, copied, capfd, name):
    BROKEN[name]()
    for command in (CHECK, RUN):
        line = refused(capfd, copied, *command)
        assert "params.yaml" in line and not Path("ran").exists()
        survived("inputs")


@pytest.mark.parametrize("name", list(BROKEN_DATA))
def test_broken_data_is_found_by_the_check(survived, copied, capfd, name):
    BROKEN_DATA[name]()
    line = refused(capfd, copied, *CHECK)
    assert re.search(r"data/raw/mine|mine", line) and line.isprintable()
    survived("inputs")


@pytest.mark.parametrize("out", [".", "params.yaml/x", "data"])
def test_a_place_that_cannot_be_written(survived, copied, capfd, out):
    assert out.split("/")[0] in refused(capfd, copied, "check", "--out", out) or out == "."
    survived("inputs")


def test_the_folder_is_sound_before_it_is_broken(copied, capfd):
    assert main(list(CHECK)) == 0 and capfd.readouterr().err == ""


def test_a_process_of_its_own_says_one_line(survived, copied):
    """Through the real streams, with a name that they cannot show."""
    change(datasets=["mine"], external=["\ud800"])
    result = subprocess.run(
        [sys.executable, "-m", "wavegms", *CHECK],
        capture_output=True,
        encoding="utf-8",
        env=os.environ | {"PYTHONIOENCODING": "ascii", "PYTHONPATH": str(ROOT)},
        check=False,
    )
    assert result.returncode == 1 and result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: params.yaml: external")
    survived("inputs")


def test_a_stage_over_hostile_files_says_one_line(survived, copied, capfd):
    """Through a notebook's kernel: its sentence, nothing prepared, no report."""
    in_folder("images/scan 3.tif").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")
    before = snapshot(copied)
    assert main(list(RUN)) == 1
    said = capfd.readouterr()
    lines = [line for line in said.err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and "scan 3.tif" in lines[0]
    sentence(InputError(lines[0]), "scan 3.tif")
    assert "Traceback" not in said.err + said.out
    after = snapshot(copied)
    new = {os.fsdecode(path).removeprefix(f"{copied}/") for path in set(after) - set(before)}
    assert {path for path in new if "." in path} == set(), "but for empty folders"
    survived("inputs")
