"""`python -m wavegms report`."""

from argparse import ArgumentParser, Namespace
from pathlib import Path

NAME = "report"
HELP = "one HTML file of the executed notebooks"


def configure(parser: ArgumentParser) -> None:
    """Adds the command's arguments."""
    parser.add_argument("--out", type=Path, default=Path("results/report.html"))


def execute(options: Namespace) -> None:
    """Runs it."""
    from wavegms.report.page import write_report

    written = write_report(options.out)
    print(*written.missing, sep="\n", end="\n" if written.missing else "")
    print(f"written: {written.path} and {len(written.cards)} model cards beside it")
