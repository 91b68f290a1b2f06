"""`python -m wavegms`: what the pipeline and the Makefile call."""

import argparse
import sys
from pathlib import Path

from wavegms.errors import InputError, Stopped


def main(arguments: list[str] | None = None) -> int:
    """Parses the command line and runs one command.

    Args:
        arguments: the command line without the program's name; sys.argv if None.

    Returns:
        The exit status: 0, 1 after an error in one sentence on stderr, or 130 after Ctrl-C.
    """
    parser = argparse.ArgumentParser(prog="python -m wavegms", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)

    check = commands.add_parser("check", help="check params.yaml and that the raw data is there")
    check.add_argument("--params", type=Path, default=Path("params.yaml"))
    check.add_argument("--raw", type=Path, default=Path("data/raw"))
    check.add_argument("--out", type=Path, required=True, help="where to note that all is well")

    run = commands.add_parser("run", help="run a notebook as a stage of the pipeline")
    run.add_argument("notebook", type=Path)
    run.add_argument("output", type=Path, help="where the executed notebook goes")
    run.add_argument("--params", type=Path, default=Path("params.yaml"))
    run.add_argument("-p", dest="pairs", nargs=2, action="append", default=[], metavar=("K", "V"))

    refresh = commands.add_parser("refresh", help="run notebooks and store their outputs in place")
    refresh.add_argument("notebooks", type=Path, nargs="+")

    sweep = commands.add_parser("sweep", help="run the items of a stage as jobs of a cluster")
    sweep.add_argument("stage", help="a stage of dvc.yaml with a matrix")
    sweep.add_argument("--executor", choices=["slurm", "local"], default="slurm")
    sweep.add_argument("--jobs", type=int, help="how many run at once; one locally if not given")
    sweep.add_argument("--logs", type=Path, default=Path("reports/sweep"))
    sweep.add_argument(
        "--option",
        dest="options",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="for submitit, such as slurm_partition=gpu, gpus_per_node=1, timeout_min=600",
    )

    bench = commands.add_parser("bench", help="measure what each measure and each network costs")
    bench.add_argument("--image-size", type=int, default=224)
    bench.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 2, 4])
    bench.add_argument("--rounds", type=int, default=3, help="all is measured this many times")
    bench.add_argument("--steps", type=int, default=1, help="timed at each batch size")
    bench.add_argument("--out", type=Path, default=Path("results/bench"))

    options = parser.parse_args(arguments)
    try:
        if options.command == "check":
            from wavegms.checks import check_inputs

            check_inputs(options.params, options.raw, options.out)
        elif options.command == "run":
            from wavegms.notebooks import run_notebook

            run_notebook(options.notebook, options.output, dict(options.pairs), options.params)
        elif options.command == "bench":
            from wavegms.benchmark import run_benchmark

            run_benchmark(
                options.image_size, options.batch_sizes, options.rounds, options.steps, options.out
            )
        elif options.command == "sweep":
            from wavegms.sweep import sweep_stage

            sweep_stage(
                options.stage, options.executor, options.logs, options.options, options.jobs
            )
        else:
            from wavegms.notebooks import refresh_notebook

            for notebook in options.notebooks:
                print(notebook)
                refresh_notebook(notebook)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except (Stopped, KeyboardInterrupt) as error:
        print(str(error) or "stopped", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
