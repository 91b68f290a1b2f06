"""Copies of this repository, each a git repository of its own, for tests that run its pipeline."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import yaml
from no_network.guard import guarded

from wavegms.config import load_params
from wavegms.project import KEEP_MEMORY
from wavegms.report.notebooks import expected_notebooks

ROOT = Path(__file__).parents[1]

# Of a profile that runs in seconds, whatever its datasets; the scores mean nothing.
TINY_SETTING = """
image_size: 32
split: {method: random}
autoencoder: {source: train, min_mask_dice: 0.0, train: {channels: 16, blocks: 1, steps: 40}}
training: {epochs: 2, batch_size: 4, warmup_epochs: 0}
evaluation: {threshold: 0.2, bootstrap_resamples: 100}
generalization: []
ablation: {datasets: []}
efficiency: {variants: [wave_gms], image_size: 32, batch_sizes: [1, 2], steps: 1}
"""

# The profile `sample` of the small project: one scanner to train on, another to test on. It runs
# every stage; the one of `generalization`, two trainings more, runs the notebook of `external`.
SMALL_SAMPLE = {
    "datasets": ["phantom_a"],
    "external": ["phantom_b"],
    "phantom": {"datasets": ["phantom_a", "phantom_b"], "images": 16},
    "ablation": {
        "datasets": ["phantom_a"],
        "variants": ["tinyvae_mismatch", "wave_gms_no_alignment", "wave_gms"],
        "epochs": 1,
    },
    "foundations": {"datasets": ["phantom_a"], "widths": [4], "others": [], "epochs": 1},
}

# At the end of the small project's wavegms/costs/measure.py: its ONNX file, of which only the times
# are wanted, is of a few blocks. The whole network's takes half a minute.
SHORT_EXPORT = """

import sys
sys.path.append(str(Path(__file__).parents[2] / "tests"))
from short import shorten
_of_the_whole = open_onnx


def open_onnx(pipeline):
    shorten(pipeline)
    return _of_the_whole(pipeline)
"""


def tiny_profile(**changes):
    """The text of a profile: the tiny setting, with other values for whole sections."""
    return "# @package _global_\n" + yaml.safe_dump(yaml.safe_load(TINY_SETTING) | changes)


def compose(root, profile):
    """Writes params.yaml as `dvc exp run -S profile=...` does."""
    from dvc.utils.hydra import compose_and_dump  # most tests need no DVC

    compose_and_dump(
        root / "params.yaml", str(root / "conf"), None, "config", None, [f"profile={profile}"]
    )


def make_small_project(root, **changes):
    """The repository with its sample at the tiny setting, run once and committed.

    `changes` are other values for whole sections.

    It may speak to no other machine; beside it `network` says whether it tried, and `output.txt`
    has what DVC said.
    """
    copy_repository(root)
    (root / "dvc.lock").unlink()  # of the sample at its own size, whose results are not here
    (root / "conf/profile/sample.yaml").write_text(tiny_profile(**SMALL_SAMPLE | changes))
    compose(root, "sample")
    with open(root / "wavegms/costs/measure.py", "a") as measure:
        measure.write(SHORT_EXPORT)
    commit(root, "smaller")
    here = guarded(environment(root), root.parent / "network")
    done = _complete(root, ["dvc", "repro"], here)
    (root.parent / "output.txt").write_text(done.stdout)
    commit(root, "run")


def copy_project(source, root):
    """A copy of a project with all that its runs left, for tests that change it."""
    shutil.copytree(source, root, symlinks=True)


def copy_repository(root):
    """Copies what git holds, changes that are not committed included, and commits it."""
    command = ["git", "ls-files", "-co", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, encoding="utf-8", check=True)
    for name in listed.stdout.splitlines():
        if (ROOT / name).is_file():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, root / name)
    run(root, "git", "init", "-q")
    run(root, "git", "config", "user.name", "test")
    run(root, "git", "config", "user.email", "test@example.org")
    commit(root, "copy")


def commit(root, message):
    run(root, "git", "add", "-A")
    run(root, "git", "commit", "-qm", message)


def environment(project):
    """Commands find this Python first, and the copy's package instead of the installed one."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    here = os.environ | KEEP_MEMORY | {"PATH": path, "PYTHONPATH": str(project)}
    # as on most machines, compiled code comes to lie beside the code that stages depend on
    return {name: value for name, value in here.items() if name != "PYTHONDONTWRITEBYTECODE"}


def run(project, *command):
    """Runs a command that must succeed, in a project; what it says on stdout, then on stderr."""
    done = _complete(project, command)
    return done.stdout + done.stderr


def ask(project, *command):
    """The same for a command whose stdout is to be read by a program."""
    return _complete(project, command).stdout


def _complete(project, command, env=None):
    env = env or environment(project)
    done = subprocess.run(command, cwd=project, env=env, capture_output=True, encoding="utf-8")
    assert done.returncode == 0, f"{command}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
    return done


def started(output):
    """The stages that DVC ran, by what it said."""
    return re.findall("^Running stage '(.*)'", output, re.MULTILINE)


def origin(executed):
    """The notebook of the repository of which this is an executed copy."""
    names = [path.stem for path in (ROOT / "notebooks").glob("*.ipynb")]
    return max((name for name in names if executed.stem.startswith(name)), key=len)


def left_out_of_the_report(project):
    """Notebooks that ran of which a report shows nothing; what it shows must have run."""
    reports = {path.stem: path for path in (project / "reports").glob("*.ipynb")}
    shown = {one.name for one in expected_notebooks(load_params(project / "params.yaml"))}
    assert shown <= set(reports)
    return {origin(path) for name, path in reports.items() if name not in shown}
