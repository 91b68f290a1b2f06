"""`python -m wavegms`: what the pipeline and the Makefile call."""

import argparse
import sys

from wavegms.costs import command as bench
from wavegms.data import command as get
from wavegms.errors import InputError, Stopped, refused_by_the_system
from wavegms.predict import command as predict
from wavegms.report.commands import report, share
from wavegms.results import command as trace
from wavegms.run.commands import add, check, gpu, refresh, run, sweep
from wavegms.training.commands import distil, draw, pretrain

# Each is a module of its room with NAME, HELP, configure(parser) and execute(options). At its top
# stands nothing heavy: a wrong argument is answered before torch, which takes seconds, is imported.
COMMANDS = (
    *(check, run, refresh, sweep, bench, gpu, predict),
    *(add, get, distil, draw, pretrain, trace, report, share),
)

# jsonschema, which reading a notebook imports, knows IRIs by a library that compiles their grammar
# at each start: 1.7 of the 2.2 CPU seconds of papermill's import. No notebook is checked for any.
sys.modules.setdefault("rfc3987_syntax", None)


def main(arguments: list[str] | None = None) -> int:
    """Runs one command, of sys.argv if None, and returns the exit status.

    That is 0, 1 after an error in one sentence on stderr, or 130 after Ctrl-C.
    """
    parser = argparse.ArgumentParser(prog="python -m wavegms", description=__doc__)
    parsers = parser.add_subparsers(dest="command", required=True)
    for command in COMMANDS:
        command.configure(parsers.add_parser(command.NAME, help=command.HELP))
    options = parser.parse_args(arguments)
    chosen = {command.NAME: command for command in COMMANDS}[options.command]
    try:
        chosen.execute(options)
        sys.stdout.flush()  # while there is someone to say that it cannot be written
    except (InputError, OSError) as error:
        told = error if isinstance(error, InputError) else refused_by_the_system(str(error))
        if told is None:
            raise
        print(f"error: {told}", file=sys.stderr)
        return 1
    except (Stopped, KeyboardInterrupt) as error:
        print(str(error) or "stopped", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
