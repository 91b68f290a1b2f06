"""`python -m wavegms gpu`. At its top nothing but Python's own library, and in `wheels` neither."""

import os
import sys
import time
from argparse import ArgumentParser, Namespace
from pathlib import Path

NAME = "gpu"
HELP = "on a CUDA card: tests, benchmark and the paper's training, in minutes"


def configure(parser: ArgumentParser) -> None:
    parser.add_argument("--minutes", type=float, default=9.0, help="for all of it; 9 by default")
    parser.add_argument("--out", type=Path, default=Path("results/proof/gpu"))
    parser.add_argument("--pack", type=Path, help="only write a pack for a machine without network")
    parser.add_argument("--from", dest="source", type=Path, help="the folder of such a pack")
    parser.add_argument(
        "--rehearse", action="store_true", help="a small run on the processor, to see that it works"
    )


def execute(options: Namespace) -> None:
    from wavegms.errors import InputError
    from wavegms.run.gpu.wheels import STARTED, check_pack, run_with_wheels

    if options.minutes <= 0:
        raise InputError(f"--minutes is {options.minutes:g}: give more than 0")
    if options.source:
        check_pack(options.source)
        if STARTED not in os.environ and any((options.source / "wheels").glob("*.whl")):
            sys.exit(run_with_wheels(options.source))
    if options.pack:
        from wavegms.run.gpu.pack import write_pack

        print(write_pack(options.pack))
        return
    from wavegms.run.gpu.session import run_session

    started = float(os.environ.get(STARTED, time.time()))
    run_session(options.source, options.out, 60 * options.minutes, options.rehearse, started)
