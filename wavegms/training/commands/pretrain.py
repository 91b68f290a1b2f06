"""`python -m wavegms pretrain`."""

from argparse import ArgumentParser, Namespace
from pathlib import Path

from wavegms.errors import InputError

NAME = "pretrain"
HELP = "train a first autoencoder on drawn pictures, from which others start"


def configure(parser: ArgumentParser) -> None:
    parser.add_argument("--channels", type=int, default=12, help="width of every layer")
    parser.add_argument("--blocks", type=int, default=1, help="residual blocks a resolution")
    out = Path("weights/autoencoders/drawn_12.safetensors")
    parser.add_argument("--out", type=Path, default=out)
    parser.add_argument("--steps", type=int, default=1500, help="a fifth of a second each")
    parser.add_argument("--seed", type=int, default=2333)


def execute(options: Namespace) -> None:
    sizes = (options.channels, options.blocks, options.steps)
    if min(sizes) < 1 or options.out.suffix != ".safetensors" or not 0 <= options.seed < 2**32:
        raise InputError(
            "--channels, --blocks and --steps must be at least 1, --out end in .safetensors, and "
            "--seed lie in 0 to 2**32"
        )
    from wavegms.training.pretrain import pretrain_to

    print(pretrain_to(options.out, *sizes, options.seed))
