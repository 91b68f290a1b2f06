"""`python -m wavegms add`."""

from argparse import ArgumentParser, Namespace
from pathlib import Path

NAME = "add"
HELP = "set up and check images of your own for training"


def configure(parser: ArgumentParser) -> None:
    """Adds the command's arguments."""
    parser.add_argument("name", help="what to call them; they come to lie in data/raw/NAME")
    parser.add_argument("--images", type=Path, help="a folder of images to copy")
    parser.add_argument("--masks", type=Path, help="the folder of their masks, called as they are")


def execute(options: Namespace) -> None:
    """Runs it."""
    from wavegms.project import enter_project
    from wavegms.run.add import add_dataset
    from wavegms.run.add import report as say

    images, masks = (path and path.absolute() for path in (options.images, options.masks))
    enter_project()
    print(say(add_dataset(options.name, images, masks)), end="")
