"""`python -m wavegms check`."""

from argparse import ArgumentParser, Namespace
from pathlib import Path

NAME = "check"
HELP = "check params.yaml and that the raw data is there"


def configure(parser: ArgumentParser) -> None:
    parser.add_argument("--params", type=Path, default=Path("params.yaml"))
    parser.add_argument("--raw", type=Path, default=Path("data/raw"))
    parser.add_argument("--out", type=Path, required=True, help="where to note that all is well")


def execute(options: Namespace) -> None:
    from wavegms.run.check import check_inputs

    check_inputs(options.params, options.raw, options.out)
