"""`python -m wavegms report`."""

from argparse import ArgumentParser, Namespace
from pathlib import Path

NAME = "report"
HELP = "one HTML file of the executed notebooks"


def configure(parser: ArgumentParser) -> None:
    parser.add_argument("--out", type=Path, help="results/report.html if not given")


def execute(options: Namespace) -> None:
    from wavegms.project import from_project

    (out,) = from_project(*filter(None, [options.out])) or [Path("results/report.html")]
    from wavegms.report.page import write_report

    written = write_report(out)
    print(*written.missing, sep="\n", end="\n" if written.missing else "")
    print(f"written: {written.path} and {len(written.cards)} model cards beside it")
