"""The whole pipeline at a small size: every notebook runs, every number can be followed, and only
what has changed runs again. The sample at its own size is for test_end_to_end.py.
"""

import hashlib
import json

import nbformat
import pandas as pd
import pytest
import yaml
from chain import check_chain
from copies import ROOT, ask, left_out_of_the_report, origin, run, started
from no_network.guard import attempts, processes

from wavegms import WaveGMSPipeline
from wavegms.__main__ import main
from wavegms.data.manifest import data_hash, load_manifest
from wavegms.training.card import read_card

RUN = "phantom_a/wave_gms/seed_2333"
NOTEBOOKS = {path.stem for path in (ROOT / "notebooks").glob("*.ipynb")}


def scores(project, test_set):
    return project / f"results/scores/{RUN}/{test_set}.csv"


def test_every_stage_left_its_executed_notebook(small_project):
    reports = list((small_project / "reports").glob("*.ipynb"))
    assert left_out_of_the_report(small_project) == {"00_tour", "00b_phantom"}
    assert {origin(path) for path in reports} == set(NOTEBOOKS) - {"03b_volumes", "09_explore"}
    for path in reports:
        notebook = nbformat.read(path, as_version=4)
        nbformat.validate(notebook)
        cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
        assert all(cell.execution_count for cell in cells)
        assert not any(output.output_type == "error" for cell in cells for output in cell.outputs)
        assert notebook.metadata["wavegms"]["changed"] == []


def test_the_pipeline_spoke_to_no_other_machine(small_project):
    log = small_project.parent / "network"
    assert attempts(log) == ""
    seen = processes(log)
    for part in ("dvc", "-m wavegms check", "-m wavegms run", "-m ipykernel_launcher"):
        assert any(part in command for command in seen)


def test_scores_are_those_of_the_test_images(small_project):
    manifest = load_manifest(small_project / "data/prepared/phantom_a")
    expected = {
        "phantom_a": set(manifest.loc[manifest["split"] == "test", "id"]),
        "phantom_b": set(load_manifest(small_project / "data/prepared/phantom_b")["id"]),
    }
    for test_set, ids in expected.items():
        path = scores(small_project, test_set)
        table = pd.read_csv(path, dtype={"id": str})
        assert set(table["id"]) == ids and len(table) == len(ids) > 1
        metrics = json.loads(path.with_suffix(".json").read_text())
        assert metrics["dsc"]["mean"] == pytest.approx(table["dsc"].mean(), abs=1e-5)
        assert metrics["dsc"]["ci_low"] <= metrics["dsc"]["mean"] <= metrics["dsc"]["ci_high"]


def test_the_model_opens_and_its_card_says_what_made_it(small_project):
    folder = small_project / "models" / RUN
    card = read_card(folder)
    params = yaml.safe_load((small_project / "params.yaml").read_text())
    assert card.trainable_parameters == 2_600_668
    assert card.data_hash == data_hash(small_project / "data/prepared/phantom_a")
    assert (card.epochs, card.seed) == (params["training"]["epochs"], params["seed"])
    assert card.parameters["training"] == params["training"]
    for weights in (folder.parent, folder, folder / "last"):
        assert WaveGMSPipeline.from_pretrained(weights).config.image_size == 32
    suffixes = {path.suffix for path in folder.rglob("*") if path.is_file()}
    assert suffixes == {".json", ".safetensors"}


@pytest.mark.parametrize("extra", [[], ["--test-set", "phantom_b"], ["--ablation"]])
def test_a_number_is_followed_to_what_made_it(small_project, extra, monkeypatch, capsys):
    head = json.loads((small_project / "reports/08_results.ipynb").read_text(encoding="utf-8"))[
        "metadata"
    ]["wavegms"]["revision"]
    assert head in run(small_project, "git", "rev-list", "HEAD").split()
    monkeypatch.chdir(small_project)
    assert main(["trace", "phantom_a", "wave_gms", *extra]) == 0
    said = capsys.readouterr().out
    assert said.count(f".ipynb, git {head}\n") == (2 if "--ablation" in extra else 3)
    models = "models/ablation" if "--ablation" in extra else "models"
    card = small_project / models / RUN / "card.json"
    assert hashlib.sha256(card.read_bytes()).hexdigest() in said
    assert json.loads(card.read_text())["data_hash"] in said


def test_every_number_follows_from_what_it_names(small_project):
    assert check_chain(small_project) >= 12


def test_tables_figures_and_report_are_there(small_project):
    results = small_project / "results"
    table = (results / "tables/ablation.md").read_text()
    assert "needs GMS's weights" in table and table.count("32 px, 1 epoch") == 2
    assert "Phantom A" in (results / "tables/segmentation.md").read_text()
    report = (results / "report.html").read_text(encoding="utf-8")
    assert "phantom_a" in report and "phantom_b" in report
    assert list((results / "model_cards").iterdir())
    for folder in ("figures", "visualize/phantom_a", "efficiency"):
        assert list((results / folder).glob("*.p*")), folder


# What runs again


def changed(project):
    return set(json.loads(ask(project, "dvc", "status", "--json")))


def test_a_second_run_changes_nothing(small_copy):
    before = (small_copy / "dvc.lock").read_text()
    assert started(run(small_copy, "dvc", "repro")) == ["check"]
    assert (small_copy / "dvc.lock").read_text() == before


def test_only_what_depends_on_a_change_runs_again(small_copy):
    """A notebook's text, its own stage; another seed, trainings beside those of the first."""
    notebook = small_copy / "notebooks/08_results.ipynb"
    original = notebook.read_text()
    notebook.write_text(original.replace("# ", "#  ", 1))
    stages = changed(small_copy)
    notebook.write_text(original)
    assert "results" in stages and not {s for s in stages if s.startswith(("train", "evaluate"))}

    params = small_copy / "params.yaml"
    values = yaml.safe_load(params.read_text())
    original = params.read_text()
    params.write_text(yaml.safe_dump(values | {"seeds": [2333, 7]}))
    stages = changed(small_copy)
    params.write_text(original)
    assert "train@phantom_a-wave_gms-7" in stages
    assert "train@phantom_a-wave_gms-2333" not in stages
