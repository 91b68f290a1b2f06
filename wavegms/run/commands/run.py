"""`python -m wavegms run`."""

from argparse import ArgumentParser, Namespace
from pathlib import Path

NAME = "run"
HELP = "run a notebook as a stage of the pipeline"


def configure(parser: ArgumentParser) -> None:
    parser.add_argument("notebook", type=Path)
    parser.add_argument("output", type=Path, help="where the executed notebook goes")
    parser.add_argument("--params", type=Path, default=Path("params.yaml"))
    parser.add_argument(
        "-p", dest="pairs", nargs=2, action="append", default=[], metavar=("K", "V")
    )


def execute(options: Namespace) -> None:
    from wavegms.run.parameters import parameters_of_stage

    values = parameters_of_stage(options.notebook, dict(options.pairs), options.params)
    from wavegms.run.notebooks import run_notebook

    run_notebook(options.notebook, options.output, values)
