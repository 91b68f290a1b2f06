"""Many items of a stage at once: as jobs through submitit, and as experiments in DVC's queue."""

import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path
from threading import Timer

import pytest
import yaml
from copies import ROOT, copy_repository, environment, run, started
from dvc.repo import Repo

from wavegms.__main__ import main
from wavegms.run.items import find_items
from wavegms.run.sweep import run_item

# What all depend on, a stage with a matrix whose items can be told to fail or to last, and the end.
PIPELINE = """
stages:
  check:
    cmd: echo fine > check.txt
    always_changed: true
    outs: [check.txt]
  source:
    cmd: echo ${seed} > source.txt
    deps: [check.txt]
    params: [seed]
    outs: [source.txt]
  work:
    matrix:
      number: ${numbers}
    cmd: >-
      mkdir -p out times; date +%s.%N > times/${item.number};
      test ! -e fail_${item.number} || exit 3;
      sleep ${seconds}; date +%s.%N >> times/${item.number};
      echo "GPUs $CUDA_VISIBLE_DEVICES" > out/${item.number}.txt
    deps: [source.txt]
    outs:
      - out/${item.number}.txt
  empty:
    matrix:
      number: ${nothing}
    cmd: "true"
  total:
    cmd: cat out/*.txt > total.txt
    deps: [out]
    outs: [total.txt]
"""
# A cluster of one machine: it starts all tasks of an array at once. Like the real one, it has read
# the script when it answers: submitit then moves the file, and a task that opened it then was
# lost, and waited for without end.
SBATCH = r"""#!/bin/sh
script=$(cat "$1")
last=$(sed -n 's/^#SBATCH --array=0-\([0-9]*\)%.*/\1/p' "$1")
export SLURM_JOB_ID=8 SLURM_ARRAY_JOB_ID=7
for task in $(seq 0 "$last"); do
  SLURM_ARRAY_TASK_ID=$task sh -c "$script" > /dev/null 2>&1 &
done
echo Submitted batch job 7
"""
SRUN = r"""#!/bin/sh
log=$(echo "$3" | sed "s/%A_%a_%t/7_${SLURM_ARRAY_TASK_ID}_0/")
shift 3
exec "$@" > "$log" 2>&1
"""


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """A project of seconds, with what the items depend on up to date."""
    root = tmp_path_factory.mktemp("sweep") / "project"
    root.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        patch.setenv("DVC_SITE_CACHE_DIR", str(root.parent / "site"))
        subprocess.run(["git", "init", "-q"], check=True)
        Repo.init().close()
        Path("dvc.yaml").write_text(PIPELINE)
        change(seed=1, seconds=1, numbers=[1, 2, 3, 4], nothing=[])
        run(root, "dvc", "repro", "source")
    return root


@pytest.fixture
def project(original, tmp_path, monkeypatch):
    """A copy of it."""
    root = tmp_path / "project"
    shutil.copytree(original, root)
    monkeypatch.chdir(root)
    monkeypatch.setenv("DVC_SITE_CACHE_DIR", str(tmp_path / "site"))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))  # for the jobs
    return root


def change(**values):
    path = Path("params.yaml")
    old = yaml.safe_load(path.read_text()) if path.exists() else {}
    path.write_text(yaml.safe_dump(old | values))


def refused(capfd, *arguments):
    """Runs a sweep that must fail, and gives back its one sentence."""
    assert main(["sweep", *arguments]) == 1
    errors = [line for line in capfd.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    return errors[0]


def in_lock():
    return [name for name in yaml.safe_load(Path("dvc.lock").read_text())["stages"] if "@" in name]


def most_at_once():
    """How many items ran at the same time, by the times that they wrote."""
    spans = [[float(word) for word in path.read_text().split()] for path in Path("times").iterdir()]
    return max(sum(start <= at < end for start, end in spans) for at, _ in spans)


def test_the_items_are_those_of_params_yaml(project):
    assert find_items("work") == ["work@1", "work@2", "work@3", "work@4"]
    change(numbers=[7])
    assert find_items("work") == ["work@7"]


def test_several_run_at_once_and_dvc_keeps_what_each_gives(project, monkeypatch, capfd):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    change(numbers=list(range(6)))
    assert main(["sweep", "work", "--executor", "local", "--jobs", "3"]) == 0
    assert "6/6" in capfd.readouterr().err
    assert sorted(in_lock()) == [f"work@{number}" for number in range(6)]
    assert 2 <= most_at_once() <= 3
    assert Path("out/0.txt").read_text() == "GPUs 1\n"
    output = run(project, "dvc", "repro")
    assert started(output) == ["check", "total"]
    assert Path("total.txt").read_text() == 6 * "GPUs 1\n"


def test_a_job_waits_as_long_as_another_holds_dvcs_lock(project):
    with Repo() as repo:
        repo.lock.lock()
        Timer(7, repo.lock.unlock).start()  # DVC alone would give up after three seconds
        run_item("work@1", project, {})
    assert in_lock() == ["work@1"]


def test_a_failed_item_is_named_with_its_log_and_the_others_are_kept(project, capfd):
    Path("fail_2").touch()
    message = refused(capfd, "work", "--executor", "local", "--jobs", "2")
    assert "1 of 4 items of work failed" in message and "same command again" in message
    failed = re.search(r"work@2 \((reports/sweep/\S+)\)", message)
    assert "exited with 3" in Path(failed[1]).read_text()
    assert "work@1" not in message and in_lock() == ["work@1", "work@3", "work@4"]
    Path("fail_2").unlink()
    assert find_items("work") == ["work@2"]
    assert main(["sweep", "work", "--executor", "local"]) == 0
    assert "items of work are done." in capfd.readouterr().out
    assert main(["sweep", "work", "--executor", "local"]) == 0
    assert "done already" in capfd.readouterr().out


def test_an_array_of_slurm(project, tmp_path, monkeypatch, capfd):
    for name, text in (("sbatch", SBATCH), ("srun", SRUN), ("sacct", "#!/bin/sh\n")):
        path = tmp_path / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", os.pathsep.join([str(tmp_path / "bin"), os.environ["PATH"]]))
    Path("fail_3").touch()
    options = ["slurm_partition=gpu", "gpus_per_node=1", "mem_gb=16", "slurm_constraint=10:00:00"]
    message = refused(
        capfd, "work", "--jobs", "5", *(part for option in options for part in ("--option", option))
    )
    assert "1 of 4 items of work failed" in message and "work@3 (reports/sweep/7_2_0_" in message
    assert sorted(in_lock()) == ["work@1", "work@2", "work@4"]
    script = Path("reports/sweep/7_submission.sh").read_text()
    wanted = [
        *("--array=0-3%4", "--partition=gpu", "--gpus-per-node=1", "--mem=16GB", "--time=1440"),
        "--constraint=10:00:00",
    ]
    assert [line for line in wanted if f"#SBATCH {line}\n" not in script] == []


def test_an_interrupted_sweep_leaves_neither_processes_nor_locks(project):
    change(seconds=300)
    command = [sys.executable, "-m", "wavegms", "sweep", "work", "--executor", "local"]
    running = subprocess.Popen([*command, "--jobs", "2"], env=environment(ROOT))
    for _ in range(600):
        if Path("times").exists() and len(list(Path("times").iterdir())) == 2:
            break
        time.sleep(0.1)
    running.send_signal(signal.SIGINT)
    assert running.wait(timeout=120) == 130
    change(seconds=0)
    for _ in range(100):
        if Path(".dvc/tmp/rwlock").read_text() == "{}":
            break
        time.sleep(0.1)
    assert main(["sweep", "work", "--executor", "local", "--jobs", "4"]) == 0
    assert len(in_lock()) == 4


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nothing_of_this_name"], ["nothing_of_this_name", "choose among work;"]),
        (["total"], ["total has no items", "`dvc repro`"]),
        (["empty"], ["empty has no items", "params.yaml"]),
        (["work", "--jobs", "0"], ["--jobs is 0", "1 or more"]),
        (["work", "--option", "timeout_min"], ["--option", "timeout_min", "KEY=VALUE"]),
        (["work", "--option", "slurm_memory=3"], ["--option", "memory", "mem_per_cpu"]),
        (["work", "--option", "gpus_per_node=all"], ["--option", "gpus_per_node", "int", "all"]),
        (["work", "--option", "memory=3"], ["--option", "memory"]),
    ],
)
def test_what_cannot_be_swept_is_refused(project, capfd, arguments, said):
    message = refused(capfd, *arguments, "--executor", "local")
    assert [word for word in said if word not in message] == []
    assert not Path("times").exists()


def test_what_the_items_depend_on_comes_first(project, capfd):
    change(seed=2)
    message = refused(capfd, "work", "--executor", "local")
    assert "run `dvc repro source` first" in message and not Path("times").exists()


def test_a_machine_without_slurm(project, monkeypatch, capfd):
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent))
    message = refused(capfd, "work")
    assert "no Slurm" in message and "login node" in message and "--executor local" in message


@pytest.mark.parametrize(
    ("file", "text", "said"),
    [
        (".dvc/tmp/rwlock", "", [".dvc/tmp/rwlock", "delete"]),
        ("dvc.yaml", "stages: [", ["dvc.yaml"]),
    ],
)
def test_a_broken_file_is_named(project, capfd, file, text, said):
    Path(file).write_text(text)
    message = refused(capfd, "work", "--executor", "local")
    assert [word for word in said if word not in message] == []


# Of this repository: a scanner that takes 24 images, and networks that see each of them once.
TINY = """
# @package _global_
datasets: [phantom_a]
variants: [wave_gms, unet]
seed: 1
seeds: [1]
image_size: 32
phantom: {datasets: [phantom_a], images: 24, seed: 1}
split: {method: random}
autoencoder: {source: train, min_mask_dice: 0.0, train: {channels: 16, blocks: 1, steps: 30}}
training: {epochs: 1, batch_size: 4, warmup_epochs: 0}
generalization: []
ablation: {datasets: []}
"""


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    """A copy of what git holds, with a profile of seconds."""
    root = tmp_path_factory.mktemp("clone") / "wave-gms"
    (root / "conf/profile").mkdir(parents=True)
    (root / "conf/profile/tiny.yaml").write_text(TINY)
    copy_repository(root)
    return root


@pytest.mark.slow
def test_dvcs_queue_runs_experiments_side_by_side(repository):
    experiment = ["dvc", "exp", "run", "-S", "profile=tiny", "phantom"]
    run(repository, *experiment, "--queue", "-S", "phantom.seed=1,2")
    run(repository, *["dvc", "queue", "start", "-j", "2"])
    for _ in range(300):
        status = run(repository, "dvc", "queue", "status")
        if not re.search("Queued|Running", status):
            break
        time.sleep(1)
    assert status.count("Success") == 2
    assert run(repository, *["dvc", "exp", "show", "--csv"]).count("Success") == 2
    # what one of them made is not made again
    output = run(repository, *experiment)
    assert "Stage 'phantom@phantom_a' is cached" in output


@pytest.mark.slow
def test_trainings_run_side_by_side_and_the_pipeline_takes_them(repository):
    run(repository, *["dvc", "exp", "run", "-S", "profile=tiny", "autoencoder"])
    sweep = [sys.executable, "-m", "wavegms", "sweep", "train", "--executor", "local"]
    output = run(repository, *sweep, "--jobs", "2")
    assert "All items of train are done." in output
    for variant in ("wave_gms", "unet"):
        assert (repository / f"models/phantom_a/{variant}/seed_1/card.json").is_file()
        assert (repository / f"reports/02_train_phantom_a_{variant}_1.ipynb").is_file()
    output = run(repository, "dvc", "repro", "train")
    assert started(output) == ["check"]
