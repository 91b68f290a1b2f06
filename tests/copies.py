"""Copies of this repository, each a git repository of its own, for tests that run its pipeline."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from wavegms.project import KEEP_MEMORY

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
"""


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


def _complete(project, command):
    done = subprocess.run(
        command, cwd=project, env=environment(project), capture_output=True, encoding="utf-8"
    )
    assert done.returncode == 0, f"{command}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
    return done


def started(output):
    """The stages that DVC ran, by what it said."""
    return re.findall("^Running stage '(.*)'", output, re.MULTILINE)
