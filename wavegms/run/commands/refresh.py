"""`python -m wavegms refresh`."""

from argparse import ArgumentParser, Namespace
from pathlib import Path

NAME = "refresh"
HELP = "run notebooks and store their outputs in place"


def configure(parser: ArgumentParser) -> None:
    parser.add_argument("notebooks", type=Path, nargs="+")


def execute(options: Namespace) -> None:
    from wavegms.run.notebooks import refresh_notebook

    for notebook in options.notebooks:
        print(notebook)
        refresh_notebook(notebook)
