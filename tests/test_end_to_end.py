"""The sample's own pipeline in a fresh copy of the project, as a newcomer runs it, and once more.

What holds at any size is tested by test_small_project.py.
"""

import json
import os
import re
import signal
import subprocess
import sys
import time
from itertools import permutations

import nbformat
import pandas as pd
import pytest
import yaml
from copies import (
    ROOT,
    copy_repository,
    environment,
    left_out_of_the_report,
    origin,
    run,
    started,
)
from filelock import FileLock
from layouts import tree
from no_network.guard import attempts, guarded, processes

from wavegms import WaveGMSPipeline
from wavegms.training.state import LOCK_NAME

DATASETS = ["phantom_a", "phantom_b"]
TABLE_4 = [
    *("tinyvae_mismatch", "tinyvae", "tinyvae_multires_sft", "wave_gms_no_alignment"),
    *("wave_gms_batch_2", "wave_gms_batch_4", "wave_gms"),
]
# The notebooks that are run a second time, in their order. The others train by the same means, for
# minutes, or only look.
AGAIN = [
    *("00b_phantom", "01_prepare", "01b_autoencoder", "02_train", "03_evaluate", "03b_volumes"),
    *("06_visualize", "08_results", "09_explore", "10_autoencoders"),
]
# What two runs on one machine give alike to the byte. Not so are the executed notebooks, which hold
# times.
REPEATABLE = [
    *("data/raw", "data/prepared", "models", "reports/training", "reports/audit"),
    *("results/figures", "results/scores", "results/tables", "results/visualize"),
]
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A copy of what git holds, as a repository of its own, with the pipeline run once."""
    root = tmp_path_factory.mktemp("clone") / "wave-gms"
    copy_repository(root)
    output = run_with_interruptions(root)
    (root.parent / "output.txt").write_text(output)
    return root


def run_with_interruptions(root):
    """The pipeline, killed in its first training, stopped by Ctrl-C in its next run, and ended.

    None of it may speak to other machines. Returns what the last run said.
    """
    state = root / "checkpoints/phantom_a/wave_gms/seed_2333/resume.pt"
    log = root.parent / "log.txt"

    def start():
        # a process group, to which the terminal's signals go
        with open(log, "w") as file:
            return subprocess.Popen(
                ["dvc", "repro"],
                cwd=root,
                env=guarded(environment(root), root.parent / "network"),
                stdout=file,
                stderr=file,
                start_new_session=True,
            )

    def wait_until(condition):
        while not condition():
            assert process.poll() is None, log.read_text()[-4000:]
            time.sleep(0.1)

    process = start()
    wait_until(state.exists)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    saved = state.stat().st_mtime_ns
    with FileLock(state.with_name(LOCK_NAME), timeout=30):
        pass  # the kernel has noticed that its parent died

    process = start()
    wait_until(lambda: state.stat().st_mtime_ns > saved)
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait(timeout=120) != 0
    said = log.read_text()
    assert "Traceback" not in said
    assert re.search(r"going on (in|after) epoch \d+ of \d+", said)
    assert re.search(r"stopped (in|after) epoch \d+ of \d+.* the same command goes on", said)
    assert not (root / "models/phantom_a/wave_gms").exists()

    process = start()
    assert process.wait() == 0, log.read_text()[-4000:]
    return log.read_text()


def test_the_pipeline_went_on_where_it_was_stopped(project, survived):
    output = (project.parent / "output.txt").read_text()
    assert len(re.findall(r"going on (in|after) epoch", output)) == 1
    before = {f"{stage}@phantom_a" for stage in ("phantom", "prepare", "autoencoder")}
    assert not before & set(started(output))
    assert not list((project / "checkpoints").rglob("resume.pt"))
    survived("kills")
    survived("faults")


def test_the_pipeline_spoke_to_no_other_machine(project):
    log = project.parent / "network"
    assert attempts(log) == ""
    seen = processes(log)
    for part in ("dvc", "-m wavegms check", "-m wavegms run", "-m ipykernel_launcher"):
        assert any(part in command for command in seen)


def scores(project, dataset):
    return project / f"results/scores/{dataset}/wave_gms/seed_2333/{dataset}.csv"


@pytest.mark.parametrize("dataset", DATASETS)
def test_the_default_segments_its_own_scanner(project, dataset):
    table = pd.read_csv(scores(project, dataset), dtype={"id": str})
    manifest = pd.read_csv(project / f"data/prepared/{dataset}/manifest.csv", dtype={"id": str})
    assert set(table["id"]) == set(manifest.loc[manifest["split"] == "test", "id"])
    # Measured 0.871 and 0.861. Rounding alone moves so short a training: with two threads instead
    # of one, scanner A had 0.899.
    assert table["dsc"].mean() >= 0.82
    metrics = json.loads(scores(project, dataset).with_suffix(".json").read_text())
    assert metrics["dsc"]["mean"] == pytest.approx(table["dsc"].mean(), abs=1e-5)
    assert metrics["dsc"]["ci_low"] < metrics["dsc"]["mean"] < metrics["dsc"]["ci_high"]


def test_the_other_scanner_is_harder(project):
    inside, across = [], []
    for train, test in permutations(DATASETS):
        own = pd.read_csv(scores(project, test))["dsc"]
        other = pd.read_csv(scores(project, train).with_name(f"{test}.csv"))["dsc"]
        assert len(other) == len(own)
        inside.append(own.mean())
        across.append(other.mean())
    assert min(across) > 0.3 and sum(across) < sum(inside)


def test_the_rows_of_the_ablation_share_a_budget_and_the_table_states_it(project):
    rows = {path.parts[-3]: path for path in (project / "results/ablation").glob("*/*/*/*.csv")}
    assert set(rows) == set(TABLE_4) - {"tinyvae_mismatch"}
    budget = yaml.safe_load((ROOT / "params.yaml").read_text())["ablation"]["epochs"]
    for variant, path in rows.items():
        assert set(pd.read_csv(path)["epochs"]) == {budget}
        model = WaveGMSPipeline.from_pretrained(project / "models/ablation/phantom_a" / variant)
        assert model.config.image_size == 64
    table = (project / "results/tables/ablation.md").read_text()
    lines = [line for line in table.splitlines() if line.startswith("| Phantom A")]
    assert len(lines) == len(TABLE_4)
    assert sum(f"64 px, {budget} epochs" in line for line in lines) == len(rows)
    without = next(line for line in lines if "model mismatch" in line)
    assert "not run" in without and "needs GMS's weights" in without


def test_the_report_finds_every_notebook_that_it_shows(project):
    assert left_out_of_the_report(project) == {"00_tour", "00b_phantom"}


def said(cell):
    """What a cell says, by stream or kind of text: no progress bar, no picture and no slider."""
    texts = {}
    for output in cell.outputs:
        parts = {output.name: output.text} if output.output_type == "stream" else output.data
        for kind, text in parts.items():
            if kind != "stderr" and not kind.startswith("image/") and "widget" not in kind:
                texts[kind] = texts.get(kind, "") + text
    return texts


def test_the_stored_outputs_of_the_notebooks_are_what_the_pipeline_gave(project):
    """Their own parameters are those of the first of their runs."""
    compared = 0
    reports = sorted((project / "reports").glob("*.ipynb"))
    for notebook in sorted((project / "notebooks").glob("*.ipynb")):
        ran = [path for path in reports if origin(path) == notebook.stem]
        if not ran:
            assert notebook.stem in AGAIN
            continue
        stored, executed = (
            [
                cell
                for cell in nbformat.read(path, as_version=4).cells
                if cell.cell_type == "code"
                and "injected-parameters" not in cell.metadata.get("tags", [])
            ]
            for path in (notebook, ran[0])
        )
        for one, other in zip(stored, executed, strict=True):
            assert one.source == other.source
            if "nbval-ignore-output" not in one.metadata.get("tags", []):
                assert said(one) == said(other), (ran[0].name, one.source)
                compared += bool(said(one))
    assert compared > 30


def test_what_runs_again_gives_the_same(project):
    """Scanner A, its training without an interruption, its pictures and all tables, to the byte."""
    before = {name: tree(project / name) for name in REPEATABLE}
    files = [f"notebooks/{name}.ipynb" for name in AGAIN]
    output = run(project, sys.executable, "-m", "pytest", "--nbval", *files)
    assert "passed" in output and "failed" not in output
    for name in REPEATABLE:
        after = tree(project / name)
        assert list(after) == list(before[name])
        assert [path for path in after if after[path] != before[name][path]] == []
