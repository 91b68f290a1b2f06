"""params.yaml of any kind, and the command line over a project whose input is broken."""

import contextlib
import copy
import io
import json
import math
import os
import re
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
import yaml
from hostile import NO_FILES, Reader, damaged, drawn, files, rewritten, scratch, snapshot, suite
from hypothesis import strategies as st
from layouts import box_mask, mask_image, picture, save, tree, write_plain

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


def sound(params, _path) -> None:
    """Every value is of the kind that the default has, finite, and no absurd amount."""
    given_back = dict(leaves(params.model_dump()))
    assert set(given_back) == set(LEAVES)
    for path, value in given_back.items():
        default = LEAVES[path]
        kinds = {type(value), type(default)}
        either = (
            path[-1] in ("epochs", "minutes", "start_from", "pretrained") and type(None) in kinds
        )
        assert len(kinds) == 1 or kinds == {int, float} or either, path
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


def document(text: str):
    return lambda canary: text.replace("{canary}", str(canary)).encode()


def with_value(values: dict, keys: tuple, value: object) -> dict:
    changed = copy.deepcopy(values)
    part = changed
    for key in keys[:-1]:
        part = part[key]
    part[keys[-1]] = value
    return changed


def in_json(draw, path: Path) -> list:
    """Any value at any key; rules across keys name theirs."""
    keys = draw(st.sampled_from(sorted(LEAVES)))
    path.write_text(json.dumps(with_value(VALUES, keys, draw(anything))))
    return [keys[0], keys[-1]]


def unknown_key(draw, path: Path) -> None:
    section = draw(st.sampled_from([(), *{keys[:1] for keys in LEAVES if len(keys) > 1}]))
    # In JSON a key is a word.
    path.write_text(json.dumps(with_value(VALUES, (*section, draw(st.text())), draw(anything))))


def sound_values(params, path: Path) -> None:
    sound(params, path)
    assert {keys[0] for keys in LEAVES} == set(json.loads(path.read_text())), "an unknown key"


def truth(keys: tuple, value: bool):
    """YAML reads yes and on as true, which pydantic would take for 1."""

    def change(path: Path) -> list:
        is_list = isinstance(LEAVES[keys], list)
        path.write_text(json.dumps(with_value(VALUES, keys, [value, 5] if is_list else value)))
        return [keys[-1]]

    return change


def change(**values) -> None:
    path = Path("params.yaml")
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | values))


def section(name: str, **values) -> None:
    change(**{name: yaml.safe_load(Path("params.yaml").read_text())[name] | values})


def in_folder(name: str) -> Path:
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


@cache
def project() -> dict[str, bytes]:
    with scratch() as root:
        write_plain(root / "data/raw/mine", 12)
        values = copy.deepcopy(VALUES) | {
            "datasets": ["mine"],
            "generalization": [],
            "image_size": 16,
        }
        values["phantom"]["datasets"] = values["ablation"]["datasets"] = []
        values["split"]["validation_fraction"] = 0.2
        (root / "params.yaml").write_text(yaml.safe_dump(values))
        (root / "notebooks").mkdir()
        shutil.copy2(ROOT / "notebooks/01_prepare.ipynb", root / "notebooks")
        return tree(root)


def say(*arguments: str) -> str:
    """What the command line says; its refusal, which has to be one line, as an error."""
    error = io.StringIO()
    with contextlib.redirect_stderr(error):
        status = main(list(arguments))
    lines = error.getvalue().splitlines()
    if status:
        (line,) = [line for line in lines if line.startswith("error: ")]
        assert status == 1 and "Traceback" not in error.getvalue()
        raise InputError(line)
    assert lines == []
    return "well"


def check(folder: Path) -> str:
    with contextlib.chdir(folder), scratch() as out:
        return say("check", "--out", str(out / "check.txt"))


def inside(change, *names: str):
    """A way to break what lies in a project."""

    def changed(folder: Path) -> list:
        with contextlib.chdir(folder):
            change()
        return list(names)

    return changed


READERS = {
    "params.yaml": Reader(
        read=load_params,
        make=lambda path: path.write_text(TEXT),
        sound=sound,
        file="params.yaml",
        names=lambda path: [path.name],
        whole={
            "the mark that Windows puts in front": rewritten(TEXT.encode("utf-8-sig")),
            "an alias or two": rewritten(
                yaml.safe_dump(VALUES | {"seeds": VALUES["efficiency"]["cards"]}).encode()
            ),
        },
        broken={
            **NO_FILES,
            **{name: rewritten(document(text)) for name, text in DOCUMENTS.items()},
            # The same after all that is right, so that a value may come before its fault.
            **{
                f"at last {name}": rewritten(document(f"{TEXT}\nextra:\n  - 1\n{text}"))
                for name, text in DOCUMENTS.items()
            },
            "UTF-16": rewritten(TEXT.encode("utf-16")),
            "UTF-32": rewritten(TEXT.encode("utf-32")),
            "bytes": rewritten(b"\xff"),
            "a byte before": rewritten(b"\x80a: 1"),
        },
        random={"damaged": (80, drawn(damaged([TEXT.encode(), yaml.safe_dump(VALUES).encode()])))},
    ),
    "values": Reader(
        read=lambda path: check_params(json.loads(path.read_text())),
        make=lambda path: path.write_text(json.dumps(VALUES)),
        sound=sound_values,
        file="values.json",
        names=lambda path: ["params.yaml: "],
        broken={
            f"{'.'.join(keys)}: {value}": truth(keys, value)
            for keys, default in LEAVES.items()
            if type(default) is not bool
            for value in (True, False)
        },
        random={"any value at any key": (1000, in_json), "unknown keys": (200, unknown_key)},
    ),
    "check": Reader(
        read=check,
        make=lambda folder: files(project())(folder),
        sound=lambda said, folder: None,
        broken={
            **{name: inside(change, "params.yaml") for name, change in BROKEN.items()},
            **{name: inside(change, "mine") for name, change in BROKEN_DATA.items()},
        },
    ),
}

test_valid_params, test_broken_params, test_random_params = suite(READERS)


@pytest.fixture
def copied(tmp_path, monkeypatch):
    folder = tmp_path / "project"
    files(project())(folder)
    monkeypatch.chdir(folder)
    return folder


STAGE = ("run", "notebooks/01_prepare.ipynb", "reports/x.ipynb", "-p", "dataset", "mine")


@pytest.mark.parametrize("name", list(BROKEN))
def test_broken_parameters_end_a_stage_before_it_begins(survived, copied, name):
    BROKEN[name]()
    before = snapshot(copied)
    with pytest.raises(InputError, match=r"params\.yaml"):
        say(*STAGE)
    assert snapshot(copied) == before
    survived("inputs")


@pytest.mark.parametrize("out", [".", "params.yaml/x", "data"])
def test_a_place_that_cannot_be_written(survived, copied, out):
    before = snapshot(copied)
    with pytest.raises(InputError, match=re.escape(out.split("/")[0])):
        say("check", "--out", out)
    assert snapshot(copied) == before
    survived("inputs")


def test_a_process_of_its_own_says_one_line(survived, copied):
    """Through the real streams, with a name that they cannot show."""
    change(datasets=["mine"], external=["\ud800"])
    result = subprocess.run(
        [sys.executable, "-m", "wavegms", "check", "--out", "reports/check.txt"],
        capture_output=True,
        encoding="utf-8",
        env=os.environ | {"PYTHONIOENCODING": "ascii", "PYTHONPATH": str(ROOT)},
        check=False,
    )
    assert result.returncode == 1 and result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: params.yaml: external")
    survived("inputs")


@pytest.mark.slow
def test_a_stage_over_hostile_files_says_one_line(survived, copied):
    """Through a notebook's kernel: its sentence, nothing prepared, no report."""
    in_folder("images/scan 3.tif").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")
    before = snapshot(copied)
    with pytest.raises(InputError, match=r"scan 3\.tif.*replace"):
        say(*STAGE)
    new = {
        os.fsdecode(path).removeprefix(f"{copied}/") for path in set(snapshot(copied)) - set(before)
    }
    assert {path for path in new if "." in path} == set(), "but for empty folders"
    survived("inputs")
