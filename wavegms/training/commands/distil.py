"""`python -m wavegms distil`."""

from argparse import ArgumentParser, Namespace
from pathlib import Path

from wavegms.errors import InputError

NAME = "distil"
HELP = "teach a small decoder for masks what an autoencoder's own decoder gives"


def configure(parser: ArgumentParser) -> None:
    parser.add_argument("--autoencoder", default="models/taesd", help="a folder, or a hub id")
    parser.add_argument("--out", type=Path, default=Path("weights/decoders/taesd.safetensors"))
    parser.add_argument("--steps", type=int, default=1100, help="0.8 s of one core each")
    parser.add_argument("--seed", type=int, default=2333)


def execute(options: Namespace) -> None:
    if options.steps < 1 or options.out.suffix != ".safetensors" or not 0 <= options.seed < 2**32:
        raise InputError(
            "--steps must be at least 1, --out end in .safetensors, and --seed lie in 0 to 2**32"
        )
    from wavegms.training.distil import distil_to

    print(distil_to(options.out, options.autoencoder, options.steps, options.seed))
