"""`python -m wavegms bench`."""

from argparse import ArgumentParser, Namespace
from pathlib import Path

NAME = "bench"
HELP = "measure what each measure and each network costs"


def configure(parser: ArgumentParser) -> None:
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--rounds", type=int, default=3, help="all is measured this many times")
    parser.add_argument("--steps", type=int, default=1, help="timed at each batch size")
    parser.add_argument("--out", type=Path, default=Path("results/bench"))


def execute(options: Namespace) -> None:
    from wavegms.costs.cases import Plan

    plan = Plan(options.image_size, options.batch_sizes, options.rounds, options.steps)
    from wavegms.costs.bench import run_benchmark

    run_benchmark(plan, options.out)
