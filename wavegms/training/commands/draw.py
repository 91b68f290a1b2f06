"""`python -m wavegms draw`."""

from argparse import ArgumentParser, Namespace
from pathlib import Path

from wavegms.errors import InputError

NAME = "draw"
HELP = "draw the pictures that a first network is trained on, see weights/README.md"


def configure(parser: ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, help="a new one, for images/ and masks/")


def execute(options: Namespace) -> None:
    if options.folder.exists():
        raise InputError(f"{options.folder} is there already: give the name of a new folder")
    from wavegms.training.drawn import write_drawn

    write_drawn(options.folder)
    images, masks = (options.folder / part for part in ("images", "masks"))
    print(f"next: python -m wavegms add drawn --images {images} --masks {masks}")
