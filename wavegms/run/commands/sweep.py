"""`python -m wavegms sweep`."""

from argparse import ArgumentParser, Namespace
from pathlib import Path

NAME = "sweep"
HELP = "run the items of a stage as jobs of a cluster"


def configure(parser: ArgumentParser) -> None:
    parser.add_argument("stage", help="a stage of dvc.yaml with a matrix")
    parser.add_argument("--executor", choices=["slurm", "local"], default="slurm")
    parser.add_argument("--jobs", type=int, help="how many run at once; one locally if not given")
    parser.add_argument("--logs", type=Path, help="reports/sweep if not given")
    parser.add_argument(
        "--option",
        dest="options",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="for submitit, such as slurm_partition=gpu, gpus_per_node=1, timeout_min=600",
    )


def execute(options: Namespace) -> None:
    from wavegms.project import from_project

    (logs,) = from_project(*filter(None, [options.logs])) or [Path("reports/sweep")]
    from wavegms.run.sweep import sweep_stage

    sweep_stage(options.stage, options.executor, logs, options.options, options.jobs)
