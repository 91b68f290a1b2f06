"""The files around the package agree with each other and speak of nothing but the project."""

import ast
import json
import re
import subprocess
import tomllib
from pathlib import Path

import nbformat
import pytest
import yaml
from dvc.utils.hydra import compose_and_dump

from wavegms.config import load_params
from wavegms.notebooks import read_parameters

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
PROFILES = sorted(path.stem for path in (ROOT / "conf/profile").glob("*.yaml"))


def tracked_files():
    """What git has or would take: a copy of the project without git lists what lies there."""
    command = ["git", "ls-files", "-co", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
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
def test_notebook_outputs_hold_no_timing_path_or_error(path):
    for cell in nbformat.read(path, as_version=4).cells:
        assert "execution" not in cell.metadata
        for output in cell.get("outputs", []):
            assert output.output_type != "error"
            assert output.get("name") != "stderr"
            text = json.dumps({k: v for k, v in output.get("data", {}).items() if "png" not in k})
            assert not re.search(r"/(home|root|tmp|work|Users)/", text + output.get("text", ""))


def test_every_notebook_is_a_stage():
    stages = (ROOT / "dvc.yaml").read_text()
    assert [path.name for path in NOTEBOOKS if f"run notebooks/{path.name}" not in stages] == []


def test_no_file_names_a_folder_of_one_machine():
    # built from pieces, so that this file passes its own test
    folders = ["home", "root", "work", "Users"]
    pattern = re.compile(r"(?<![\w.~-])/(" + "|".join(folders) + r")/[a-z]")
    guilty = []
    for path in tracked_files():
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        if path.suffix == ".ipynb":
            continue  # their outputs are base64 in part; see the test above
        guilty += [f"{path.name}: {match.group()}" for match in pattern.finditer(text)]
    assert guilty == []


def test_pictures_in_the_repository_are_few_and_known():
    suffixes = {".png", ".jpg", ".jpeg", ".gif", ".tif", ".tiff", ".bmp", ".webp", ".pkl", ".pth"}
    found = [path.relative_to(ROOT) for path in tracked_files() if path.suffix in suffixes]
    assert {path.parts[0] for path in found} <= {"docs", "results"}
