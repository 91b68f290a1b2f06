"""What `make` says before and while it works, with a DVC that only pretends."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# `dvc repro check` and an item of the first stage leave what the true ones leave; that stage takes
# a second where a test says so.
DVC = """#!/bin/sh
case "$*" in
  "stage list --name-only") printf 'check\\nphantom@phantom_a\\nprepare@phantom_a\\n';;
  *"--single-item phantom@phantom_a")
    if [ -n "$SECONDS_OF_PHANTOM" ]; then
      sleep $SECONDS_OF_PHANTOM; touch reports/00b_phantom_phantom_a.ipynb
    fi; exit $STATUS;;
  "repro check") touch reports/check.txt;;
esac
echo "dvc $*"
"""


@pytest.fixture
def make(tmp_path):
    """Runs make in a project whose .venv is there."""
    project = tmp_path / "a b" / "project"
    (project / "reports").mkdir(parents=True)
    (project / ".dvc").mkdir()
    (project / ".git").mkdir()
    for name in ("Makefile", "pyproject.toml", "constraints.txt", ".dvc/config"):
        shutil.copy2(ROOT / name, project / name)
    (project / ".venv/bin").mkdir(parents=True)
    (project / ".venv/bin/dvc").write_text(DVC)
    (project / ".venv/bin/dvc").chmod(0o755)
    (project / ".venv/installed").touch()

    def start(*arguments, **variables):
        # these tests may themselves be run by make, which would say where it is
        here = {key: value for key, value in os.environ.items() if not key.startswith("MAKE")}
        here |= {"STATUS": "0"} | variables
        return subprocess.run(
            ["make", *arguments], cwd=project, env=here, capture_output=True, encoding="utf-8"
        )

    start.project = project
    return start


@pytest.mark.parametrize(("seconds", "whole", "minutes"), [(1, 120, 2), (2, 150, 5)])
def test_repro_foretells_how_long_it_takes(make, seconds, whole, minutes):
    done = make("repro", f"WHOLE={whole}", SECONDS_OF_PHANTOM=str(seconds))
    assert done.returncode == 0, done.stderr
    (line,) = [line for line in done.stdout.splitlines() if "minutes in all" in line]
    told = int(line.split("about ")[1].split()[0])
    # a second more where the machine is busy or the clock is just before the next one
    assert minutes <= told <= minutes + 2 * whole / 60
    assert done.stdout.splitlines()[-1] == "dvc repro"


def test_what_is_up_to_date_foretells_nothing(make):
    done = make("repro")
    assert done.returncode == 0 and "minutes in all" not in done.stdout


# Of each item it writes down when it starts and when it has ended; the second training takes long.
NOTING = """#!/bin/sh
for item; do :; done
case "$*" in
  "stage list --name-only") printf '%s\\n' $ALL;;
  *--single-item*)
    echo "start $item" >>order; sleep 0.1
    [ "$item" = train@b ] && sleep 1
    echo "end $item" >>order;;
esac
"""


@pytest.mark.parametrize("jobs", [1, 2, 4])
def test_an_item_waits_for_what_it_reads(make, jobs):
    """By the lines that `dvc.yaml` has for them; DVC refuses to read what is being written."""
    (make.project / ".venv/bin/dvc").write_text(NOTING)
    per_dataset = "prepare autoencoder train evaluate ablation visualize volumes foundations"
    pairs = [f"{stage}@{dataset}" for stage in per_dataset.split() for dataset in "ab"]
    every = ["check", *pairs, "generalize@pair0", "generalize_external@a", "tour", "efficiency"]
    done = make("repro", f"JOBS={jobs}", ALL=" ".join([*every, "results", "report"]))
    assert done.returncode == 0, done.stderr
    order = (make.project / "order").read_text().splitlines()
    assert sorted(order) == sorted(
        f"{what} {item}" for item in every[1:] for what in ("start", "end")
    )
    at = {line: place for place, line in enumerate(order)}
    scored, rows = {"evaluate@a", "evaluate@b"}, {"ablation@a", "ablation@b"}
    waits = {
        "train": {"prepare@a", "prepare@b", "autoencoder@a", "autoencoder@b"},
        "generalize": scored,
        "generalize_external": scored,
        "tour": scored,
        "volumes": scored,
        "foundations": scored,
        "efficiency": scored,
        "visualize": scored | rows,
    }
    for item in every[1:]:
        stage, _, dataset = item.partition("@")
        before = {f"train@{dataset}"} if stage == "evaluate" else waits.get(stage, set())
        assert all(at[f"end {one}"] < at[f"start {item}"] for one in before), item
    assert (at["start evaluate@a"] < at["end train@b"]) == (jobs > 1)
    running = 0
    for line in order:
        running += 1 if line.startswith("start") else -1
        assert running <= jobs


def test_a_first_stage_that_fails_ends_it(make):
    done = make("repro", STATUS="1", SECONDS_OF_PHANTOM="0")
    assert done.returncode and "minutes in all" not in done.stdout
    assert "dvc repro" not in done.stdout.splitlines()


@pytest.mark.parametrize("target", ["repro", "test", "test-full"])
def test_without_git_the_way_out_is_said_before_anything_is_installed(make, target):
    (make.project / ".git").rmdir()
    shutil.rmtree(make.project / ".venv")
    done = make(target)
    assert done.returncode and "is in no git repository" in done.stderr
    assert "`git init`" in done.stderr and "no_scm = true" in done.stderr
    assert not (make.project / ".venv").exists() and done.stdout == ""


@pytest.mark.parametrize("where", [".dvc/config", ".dvc/config.local"])
def test_dvc_without_git_is_a_choice(make, where):
    (make.project / ".git").rmdir()
    with open(make.project / where, "a") as file:
        file.write("[core]\n    no_scm = true\n")
    assert make("repository").returncode == 0


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_a_repository_around_it_does(make, kind):
    """A worktree and a submodule have a file in place of the folder."""
    (make.project / ".git").rmdir()
    around = make.project.parent / ".git"
    around.mkdir() if kind == "folder" else around.write_text("gitdir: elsewhere")
    assert make("repository").returncode == 0
