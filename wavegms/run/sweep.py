"""The items of a stage of dvc.yaml as jobs of a cluster, through submitit.

DVC knows what has to run and keeps the results; the scheduler decides where and when. All jobs work
in the project's folder, which every machine must see.
"""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from submitit import AutoExecutor
from submitit.core.utils import FailedJobError
from submitit.helpers import as_completed
from tqdm import tqdm

from wavegms.errors import InputError, first_line


def sweep_stage(
    stage: str, cluster: str, logs: Path, options: Sequence[str], at_once: int | None
) -> None:
    """Runs the items of a stage that are not up to date, each as a job, and waits for them.

    Args:
        stage: a stage of dvc.yaml with a matrix; what it depends on must be up to date.
        cluster: slurm, or local for processes on this machine.
        logs: the folder for submitit's files, among them a log of each job.
        options: KEY=VALUE for submitit, such as slurm_partition=gpu or timeout_min=600.
        at_once: how many jobs run at once; if None, one locally and submitit's default on Slurm.
    """
    executor = _make_executor(cluster, logs, options, at_once)
    from wavegms.run.items import find_items  # DVC takes seconds to import: options are right now

    items = find_items(stage)
    if not items:
        print(f"All items of {stage} are done already.")
        return
    # submitit starts local jobs at once, however many: there, each that ends makes room for one.
    # It also hides the GPUs from them, while on Slurm it is for Slurm to say which a job sees.
    local = cluster == "local"
    room = (at_once or 1) if local else len(items)
    variables = {"CUDA_VISIBLE_DEVICES": os.environ.get("CUDA_VISIBLE_DEVICES")} if local else {}
    run = partial(run_item, folder=Path.cwd(), variables=variables)
    waiting, jobs = iter(items), []
    try:
        jobs += executor.map_array(run, islice(waiting, room))
        ended = as_completed(jobs, poll_frequency=1 if local else 5)  # sees what `jobs` gains
        for _ in tqdm(ended, desc=stage, total=len(items), unit="item"):
            jobs += [executor.submit(run, item) for item in islice(waiting, 1)]
    except FailedJobError as error:
        raise InputError(f"{cluster} does not take the jobs: {first_line(error)}") from error
    except KeyboardInterrupt:
        for job in jobs:
            job.cancel(check=False)
        raise
    failed = [(item, job) for item, job in zip(items, jobs, strict=True) if job.exception()]
    if failed:
        named = [f"{item} ({os.path.relpath(job.paths.stdout)})" for item, job in failed]
        raise InputError(
            f"{len(failed)} of {len(items)} items of {stage} failed, see the logs and then give "
            f"the same command again, which runs only these: {', '.join(named)}"
        )
    print(f"All items of {stage} are done.")


def _make_executor(
    cluster: str, logs: Path, options: Sequence[str], at_once: int | None
) -> AutoExecutor:
    if at_once is not None and at_once < 1:
        raise InputError(f"--jobs is {at_once}: choose 1 or more")
    try:
        executor = AutoExecutor(folder=logs, cluster=cluster)
    except RuntimeError as error:
        raise InputError(
            "there is no Slurm on this machine (no srun): go to a login node of the cluster, or "
            "add --executor local"
        ) from error
    # submitit would end jobs after 5 minutes (on Slurm) or 2
    values = {"timeout_min": 24 * 60, "stderr_to_stdout": True, "name": "wavegms"}
    try:
        values |= {"slurm_array_parallelism": at_once} | dict(map(_read_option, options))
        executor.update_parameters(**values)
    except (AssertionError, NameError, TypeError, ValueError) as error:
        raise InputError(f"--option: {first_line(error)}") from error
    return executor


def _read_option(option: str) -> tuple[str, Any]:
    """The value is JSON or else text: YAML would take a time such as 10:00:00 for a number."""
    key, equals, value = option.partition("=")
    if not equals:
        raise ValueError(f"{option} is not of the form KEY=VALUE")
    try:
        return key, json.loads(value)
    except json.JSONDecodeError:
        return key, value


def run_item(item: str, folder: Path, variables: dict[str, str | None]) -> None:
    """What a job does. What DVC and the stage print goes to the job's log."""
    # stages call `python`: it must be this one
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = os.environ | variables | {"PATH": path}
    # DVC holds its lock before and after the command of a stage, not while it runs. Without the
    # first option it gives up after three seconds, and with it the result of hours of training.
    process = subprocess.Popen(
        [sys.executable, "-m", "dvc", "--wait-for-lock", "repro", "--single-item", item],
        cwd=folder,
        env={name: value for name, value in environment.items() if value is not None},
        start_new_session=True,
    )
    try:
        status = process.wait()
    except BaseException:
        # The time is up, or Ctrl-C was pressed: the stage ends, and DVC clears its locks. Killed in
        # the middle of that, it would leave a broken file of locks that stops all others.
        os.killpg(process.pid, signal.SIGINT)
        process.wait()
        raise
    if status:
        raise RuntimeError(f"dvc repro ended with status {status}, see above")
