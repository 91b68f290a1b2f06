"""Two processes that share each batch give what one gives alone, but for rounding."""

import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from train_script import go

from wavegms.training import loop as training_loop

SCRIPT = Path(__file__).parent / "train_script.py"
CPU = {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}


def start(out, folder, supervision, launcher, **environment):
    out.mkdir(exist_ok=True)
    arguments = [str(SCRIPT), str(out), str(folder), supervision]
    commands = {
        # "multi_gpu" is accelerate's word for several processes; the variable makes them use CPUs
        "accelerate launch": [
            *(sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu"),
            *("--num_processes", "2", "--num_machines", "1", "--main_process_port", "0"),
            *("--mixed_precision", "no", "--dynamo_backend", "no", *arguments),
        ],
        "notebook_launcher": [sys.executable, *arguments, "2"],
    }
    return subprocess.run(
        commands[launcher],
        env=os.environ | CPU | environment,
        capture_output=True,
        encoding="utf-8",
        timeout=300,
    )


def run(out, folder, supervision, launcher):
    """Losses of every epoch, the weights that were kept, and what each process noted.

    Without a launcher, of this process.
    """
    if launcher:
        done = start(out, folder, supervision, launcher)
        assert done.returncode == 0, done.stderr[-3000:]
    else:
        out.mkdir()
        go(str(out), str(folder), supervision)
    weights = {
        f"{part}.{key}": value
        for part in ("encoder", "mapping")
        for key, value in load_file(next((out / "model/last" / part).glob("*.safetensors"))).items()
    }
    lines = (out / "processes").read_text().splitlines()
    return pd.read_csv(out / "history.csv"), weights, lines


@pytest.mark.parametrize(
    ("launcher", "supervision", "interrupted"),
    [
        pytest.param("accelerate launch", "all_levels", True, marks=pytest.mark.slow),
        ("notebook_launcher", "last_three_levels", False),
    ],
)
def test_two_processes_give_the_losses_and_weights_of_one(
    prepared, tmp_path, launcher, supervision, interrupted, survived, monkeypatch
):
    monkeypatch.setattr(training_loop, "_SAVE_SECONDS", training_loop._SAVE_SECONDS)  # go sets it
    alone, weights, _ = run(tmp_path / "one", prepared, supervision, None)
    if interrupted:
        # two of four images each: in the third epoch, and the first may not yet have saved two
        failed = start(tmp_path / "two", prepared, supervision, launcher, STOP_AT="6")
        assert failed.returncode != 0 and "ZeroDivisionError" in failed.stderr
        state = torch.load(tmp_path / "two/model/resume.pt", weights_only=True)["state"]
        assert state["epoch"] in (2, 3) and state["step"] == 0
        survived("faults")
    shared, shared_weights, notes = run(tmp_path / "two", prepared, supervision, launcher)
    assert len(alone) == 4 and alone["loss"].nunique() == 4
    pd.testing.assert_frame_equal(shared, alone, check_exact=False, rtol=1e-4)
    assert sorted(note.split()[0] for note in notes) == ["2", "2"]
    assert len({note.split()[1] for note in notes}) == 1  # both know the loss of the whole batch
    ours, theirs = (
        torch.cat([state[key].flatten() for key in sorted(state)])
        for state in (shared_weights, weights)
    )
    assert shared_weights.keys() == weights.keys()
    assert (ours - theirs).norm() <= 1e-3 * theirs.norm()
