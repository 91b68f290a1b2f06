"""The files around the package agree with each other and speak of nothing but the project."""

import ast
import base64
import getpass
import json
import re
import socket
import subprocess
import sys
import tomllib
from graphlib import TopologicalSorter
from pathlib import Path

import nbformat
import pytest
import yaml
from dvc.utils.hydra import compose_and_dump

import wavegms
from wavegms.config import load_params
from wavegms.run.parameters import read_parameters

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
PROFILES = sorted(path.stem for path in (ROOT / "conf/profile").glob("*.yaml"))

# What must not leave the machine that it is of. Two dozen lines do here: scanners such as
# detect-secrets look for random-looking text too, which hashes in dvc.lock and pictures are.
SECRETS = {
    "a token of the Hugging Face hub": r"\bhf_[A-Za-z0-9]{30,}",
    "a token of GitHub": r"\b(gh[pousr]_[A-Za-z0-9]{36}|github_pat_\w{22,})",
    "a token of GitLab": r"\bglpat-[\w-]{20,}",
    "a token of PyPI": r"\bpypi-[\w-]{50,}",
    "a token of Slack": r"\bxox[abeoprs]-[\w-]{10,}",
    "a key of AWS": r"\b(AKIA|ASIA)[A-Z0-9]{16}\b",
    "a key of Google": r"\bAIza[\w-]{35}",
    "a key of OpenAI or Anthropic": r"\bsk-[\w-]{32,}",
    "a signed web token": r"\beyJ[\w-]{10,}\.eyJ[\w-]{10,}",
    "a private key": r"-----BEGIN [A-Z ]*PRIVATE KEY",
    "a login in an address": r"://[^\s/:@'\"{}]+:[^\s/:@'\"{}]+@",
    "a password": r"(?i)\bpass(word|wd|phrase)? ?[=:] ?[\"']?[^\s\"'=(){}<]{4}",
    "a secret": r"(?i)(secret|token|api_?key)[\"']? ?[=:] ?[\"'](?=\w*\d)[^\s\"'{}]{12}",
}
MACHINES = {
    "a folder of one user": r"(?<![\w.~-])/(home|root|work|Users)/\w",
    "a folder of one user on Windows": r"\b[A-Za-z]:\\{1,2}(Users|home)\\",
}
# Paths of documentation are no places of a run, but in what a notebook printed they are.
TEMPORARY = {"a temporary file": r"(?<![\w.~-])/(tmp|private|var|mnt|scratch)/\w"}


def find(patterns, text):
    """What a text, or what is legible of weights and pictures, holds of some patterns."""
    if "\0" in text:
        text = "\n".join(re.findall("[ -~]{6,}", text))
    found = [(what, re.search(pattern, text)) for what, pattern in patterns.items()]
    return [f"{what}: {match.group()}" for what, match in found if match]


def names_of(host, user):
    """Patterns for names of a machine and a user, if no other text has them by chance."""
    telling = [name for name in (host, user) if len(name) >= 6 and re.search(r"\d|-", name)]
    return {f"a name of this machine, {name}": rf"\b{re.escape(name)}\b" for name in telling}


def texts_in(value):
    """All strings in JSON, those that hold a picture or another file decoded."""
    if isinstance(value, dict):
        for key, part in value.items():
            yield key
            if "/" in key and not key.startswith(("text/", "application/")):
                part = base64.b64decode("".join(part)).decode("latin-1")
            yield from texts_in(part)
    elif isinstance(value, list):
        yield from ["".join(value)] if all(isinstance(part, str) for part in value) else []
        for part in value:
            yield from texts_in(part)
    elif isinstance(value, str):
        yield value


def tracked_files():
    """What git has or would take: a copy of the project without git lists what lies there."""
    command = ["git", "ls-files", "-co", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, encoding="utf-8", check=True)
    return [ROOT / name for name in listed.stdout.splitlines() if (ROOT / name).is_file()]


def test_environment_yml_has_the_pins_of_pyproject():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    pins = project["dependencies"] + project["optional-dependencies"]["dev"]
    assert all(re.fullmatch(r"[\w-]+==[\w.]+", pin) for pin in pins)
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    *others, last = environment["dependencies"]
    assert [line for line in last["pip"] if not line.startswith("--")] == pins
    assert last["pip"][:2] == ["--constraint constraints.txt", "--editable ."]
    version = next(line for line in others if line.startswith("python="))
    assert project["requires-python"] == f">={version.removeprefix('python=')}"


def test_constraints_agree_with_the_pins():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    pins = project["dependencies"] + project["optional-dependencies"]["dev"]
    constraints = (ROOT / "constraints.txt").read_text().lower().splitlines()
    assert [pin for pin in pins if pin.lower().replace("_", "-") not in constraints] == []


def compose(profile, tmp_path):
    """params.yaml as `dvc exp run -S profile=...` composes it."""
    out = tmp_path / f"{profile}.yaml"
    overrides = [f"profile={profile}"]
    compose_and_dump(out, str(ROOT / "conf"), None, "config", None, overrides)
    return out


@pytest.mark.parametrize("profile", PROFILES)
def test_every_profile_composes_to_valid_parameters(profile, tmp_path):
    params = load_params(compose(profile, tmp_path))
    assert params.datasets


def test_params_yaml_is_the_sample_profile(tmp_path):
    composed = yaml.safe_load(compose("sample", tmp_path).read_text())
    assert yaml.safe_load((ROOT / "params.yaml").read_text()) == composed


def test_the_paper_profile_has_the_papers_setting(tmp_path):
    params = load_params(compose("paper", tmp_path))
    assert params.datasets == ["bus", "busi", "kvasir_instrument", "ham10000"]
    assert (params.image_size, params.training.batch_size, params.seed) == (224, 12, 2333)
    assert (params.autoencoder.source, params.autoencoder.hub) == ("hub", "madebyollin/taesd")
    assert (params.training.epochs_for("busi"), params.training.epochs_for("ham10000")) == (
        1000,
        300,
    )
    assert (params.split.method, params.training.learning_rate) == ("published", 2e-3)


def makes(*targets):
    """What make would do."""
    command = ["make", "--dry-run", "--always-make", "--no-print-directory", *targets]
    return subprocess.run(
        command, cwd=ROOT, capture_output=True, encoding="utf-8", check=True
    ).stdout


def test_make_repro_starts_every_item_once_and_then_what_compares_them():
    # asks DVC for the items: of this environment, which need not be the one that make makes
    said = makes("repro", f"BIN={Path(sys.executable).parent}")
    items = re.findall(r" item/(\S+)", said)
    assert len(set(items)) == len(items) > 10
    stages = set(yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"])
    others = stages - {item.split("@")[0] for item in items}
    # in the sample
    nothing_to_do = {"prepare_external", "generalize_external", "foundations", "volumes"}
    assert others == {"check", "results", "report"} | nothing_to_do
    assert said.splitlines()[-1].endswith("dvc repro")


def test_only_make_audit_asks_for_known_weaknesses():
    # strict: a pin that cannot be looked up is no pin without weaknesses
    assert "pip-audit --strict --requirement constraints.txt" in makes("audit")
    assert "pip-audit" not in makes("repro", "test", "bench", "lab", "lint", "notebooks")


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_parameters_are_those_of_params_yaml(path):
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    declared = read_parameters(path)
    shared = {name: value for name, value in declared.items() if name in params}
    assert shared == {name: params[name] for name in shared}
    own = {name: value for name, value in declared.items() if name not in params}
    # what is no knob of params.yaml: one of its choices, or declared here
    defaults = {
        "dataset": params["datasets"][0],
        "variant": params["variants"][0],
        "test_set": params["generalization"][0]["test"],
        "cases": [],
        "test_only": False,
    }
    assert own == {name: defaults[name] for name in own}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_keeps_the_house_style(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    first, second, *cells = notebook.cells
    assert first.cell_type == "markdown" and first.source.startswith("# ")
    assert second.metadata.tags == ["parameters"]
    for cell in cells:
        if cell.cell_type == "code":
            functions = [
                node
                for node in ast.walk(ast.parse(cell.source))
                if isinstance(node, ast.FunctionDef)
            ]
            assert functions == []
            assert not {"injected-parameters", "skip"} & set(cell.metadata.get("tags", []))
    counts = [cell.execution_count for cell in notebook.cells if cell.cell_type == "code"]
    assert counts == list(range(1, len(counts) + 1)), "run `make notebooks`"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_outputs_hold_no_timing_or_error(path):
    for cell in nbformat.read(path, as_version=4).cells:
        assert "execution" not in cell.metadata
        for output in cell.get("outputs", []):
            assert output.output_type != "error"
            assert output.get("name") != "stderr"


def test_every_notebook_is_a_stage_but_the_one_for_looking():
    stages = (ROOT / "dvc.yaml").read_text()
    others = [path.name for path in NOTEBOOKS if f"run notebooks/{path.name}" not in stages]
    assert others == ["09_explore.ipynb"]  # it writes nothing


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_holds_no_secret_and_names_no_machine(path):
    patterns = SECRETS | MACHINES | TEMPORARY | names_of(socket.gethostname(), getpass.getuser())
    for text in texts_in(json.loads(path.read_text(encoding="utf-8"))):
        assert find(patterns, text) == []


def test_no_file_holds_a_secret_or_names_a_machine():
    """Pictures and PDFs too, where programs like to note who made them; notebooks: see above."""
    patterns = SECRETS | MACHINES | names_of(socket.gethostname(), getpass.getuser())
    guilty = {
        path.relative_to(ROOT).as_posix(): find(patterns, path.read_bytes().decode("latin-1"))
        for path in tracked_files()
        if path not in NOTEBOOKS
    }
    assert {name: found for name, found in guilty.items() if found} == {}


# in two pieces each, so that this file passes its own test
@pytest.mark.parametrize(
    ("start", "end"),
    [
        ("hf", "_" + "aB3" * 11),
        ("ghp", "_" + "aB3" * 12),
        ("github", "_pat_" + "aB3" * 10),
        ("glpat", "-" + "aB3" * 7),
        ("pypi", "-" + "aB3" * 20),
        ("xoxb", "-123456789012"),
        ("AKIA", "ABCDEFGHIJKLMNOP"),
        ("AIza", "aB3_x" * 7),
        ("sk", "-ant-" + "aB3" * 12),
        ("eyJ", "hbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.x"),
        ("-----BEGIN", " OPENSSH PRIVATE KEY-----"),
        ("-----BEGIN", " PRIVATE KEY-----"),
        ("https:/", "/me:word@example.org/simple"),
        ("password", "=hunter22"),
        ("PASSWD", ": 'hunter22'"),
        ("HF_TOKEN", " = 'abcdefgh1234'"),
        ('"api_key"', ': "abcdefgh1234"'),
        ("/home", "/ada/wave-gms"),
        ("cd /root", "/x"),
        ("file:///Users", "/ada"),
        ("C:", "\\Users\\ada"),
        ("/tmp", "/ipykernel_12/3.py"),
        ("/var", "/folders/x"),
        ("on ada", "-laptop-7"),
        ("by u", "ser42"),
    ],
)
def test_a_secret_or_a_machine_would_be_found(start, end):
    patterns = SECRETS | MACHINES | TEMPORARY | names_of("ada-laptop-7", "user42")
    assert find(patterns, f"before {start}{end} after")
    picture = base64.b64encode(f"\0\xff {start}{end} \0".encode("latin-1")).decode()
    for hidden in (
        {"cells": [{"source": ["x = 1\n", f"# {start}", end]}]},
        {"cells": [{"outputs": [{"data": {"text/html": f"<b>{start}{end}</b>"}}]}]},
        {"cells": [{"outputs": [{"data": {"image/png": picture}}]}]},
        {"metadata": {"papermill": {"parameters": {"note": f"{start}{end}"}}}},
    ):
        assert any(find(patterns, text) for text in texts_in(hidden))


@pytest.mark.parametrize(
    "text",
    [
        "token = uuid.uuid4().hex[:8]; TOKEN = 'explorer'",
        "the password is asked for: nowhere",
        "see https://docs.pytest.org/en/stable/how-to/root/x.html and http://127.0.0.1:8888/",
        "data/raw/busi, ~/work/x and results/home/y",
        "a69f73cca23a9ac5c8b567dc185a756e97c982164fe25859e0d1dcc1475c80a6",
        "runner",
    ],
)
def test_what_is_no_secret_is_let_be(text):
    patterns = SECRETS | MACHINES | TEMPORARY | names_of("localhost", "runner")
    assert find(patterns, text) == []


def imported(path):
    """The modules that a module imports from, at its top or within a function."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            yield node.module


# From the top down: a room uses only rooms below it, and the ground is below all of them.
ROOMS = (
    *("__main__", "run", "explore", "costs", "predict", "report", "figures", "results"),
    *("training", "data", "models", "phantom"),
)
GROUND = {"errors", "files", "images", "project", "config", "classes", "recipes", "variants"}


def room_of(module):
    """The room of `wavegms.room.module`, or the module of `wavegms.module`."""
    return module.split(".")[1]


def test_imports_go_one_way():
    files = (ROOT / "wavegms").rglob("*.py")
    named = {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in files}
    imports = {name: set(imported(path)) & set(named) for name, path in named.items()}
    TopologicalSorter(imports).prepare()  # fails where modules import each other in a circle
    assert {room_of(name) for name in named} == {*ROOMS, *GROUND, "__init__"}
    for name, used in imports.items():
        here = room_of(name)
        for other in map(room_of, used):
            below = GROUND if here in GROUND else GROUND | set(ROOMS[ROOMS.index(here) :])
            assert other in below, (name, other)


def test_pictures_in_the_repository_are_few_and_known():
    suffixes = {".png", ".jpg", ".jpeg", ".gif", ".tif", ".tiff", ".bmp", ".webp", ".pkl", ".pth"}
    found = [path.relative_to(ROOT) for path in tracked_files() if path.suffix in suffixes]
    kept = ROOT / "tests/kept"  # drawn by the embedded sample
    others = [path for path in found if kept not in (ROOT / path).parents]
    assert {path.parts[0] for path in others} <= {"docs", "results"}


@pytest.mark.parametrize("name", wavegms.__all__)
def test_every_public_name_is_where_the_package_looks_for_it(name):
    assert getattr(wavegms, name).__name__ == name
