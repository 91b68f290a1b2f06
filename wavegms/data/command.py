"""`python -m wavegms get`."""

from argparse import ArgumentParser, Namespace
from pathlib import Path

NAME = "get"
HELP = "download public data, verified; without names, list it"


def configure(parser: ArgumentParser) -> None:
    parser.add_argument("names", nargs="*", help="such as busi, splits, taesd")


def execute(options: Namespace) -> None:
    from wavegms.data.download import describe_sources, get_sources
    from wavegms.project import enter_project

    if options.names:
        enter_project()
        get_sources(options.names, Path())
    else:
        print(describe_sources(), end="")
