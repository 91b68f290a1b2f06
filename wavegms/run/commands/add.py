"""`python -m wavegms add`."""

from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import get_args

from wavegms.variants import Context, Plane

NAME = "add"
HELP = "set up and check images of your own for training"


def configure(parser: ArgumentParser) -> None:
    parser.add_argument(
        "name", help="what to call them; they come to lie in data/raw/NAME. With --name: a folder"
    )
    parser.add_argument(
        "--name",
        dest="called",
        help="what to call a FOLDER to copy: imagesTr/ and labelsTr/, or images/ and masks/",
    )
    parser.add_argument("--images", type=Path, help="a folder of images to copy, or a pattern")
    parser.add_argument("--masks", type=Path, help="likewise of their masks, called as they are")
    values = {"nargs": "+", "default": [], "metavar": "VALUE"}
    parser.add_argument(
        "--foreground",
        **values,
        help="values of the masks, such as 1 or 128-255; found if left out",
    )
    parser.add_argument(
        "--classes",
        nargs="+",
        default=[],
        metavar="NAME",
        help="names of several classes, of the values 1, 2 and so on or of their folders; or "
        "NAME=VALUE, where a value is another",
    )
    parser.add_argument("--ignore", **values, help="values of pixels that were not annotated")
    parser.add_argument(
        "--drawn-on",
        choices=["auto", "shown", "stored"],
        default="auto",
        help="whether masks were drawn on the image as shown, or stored before EXIF turned it",
    )
    parser.add_argument(
        "--plane",
        choices=get_args(Plane),
        help="in which volumes are cut; across the axis with the largest spacing if left out",
    )
    parser.add_argument(
        "--context",
        choices=get_args(Context),
        default="none",
        help="neighbours: the slices below, at and above are the colours of an image",
    )
    parser.add_argument(
        "--spacing",
        nargs="+",
        type=float,
        default=[],
        metavar="MM",
        help="from pixel to pixel, or of rows and of columns, for distances in millimetres",
    )
    parser.add_argument(
        "--folds",
        type=int,
        help="train so many times, so that every image is scored by a model that did not see it",
    )


def execute(options: Namespace) -> None:
    from wavegms.config import ReadingParams
    from wavegms.project import enter_project
    from wavegms.run.add import add_dataset
    from wavegms.run.add import report as say

    images, masks = (path and path.absolute() for path in (options.images, options.masks))
    reading = ReadingParams.check(
        {
            "foreground": [int(one) if one.isdecimal() else one for one in options.foreground],
            "ignore": [int(one) if one.isdecimal() else one for one in options.ignore],
            "drawn_on": options.drawn_on,
            "plane": options.plane,
            "classes": _named(options.classes),
            "context": options.context,
            "spacing": options.spacing,
        }
    )
    name, source = options.name, None
    if options.called is not None:
        name, source = options.called, Path(options.name).absolute()
    enter_project()
    print(say(add_dataset(name, images, masks, reading, source, options.folds)), end="")


def _named(classes: list[str]) -> dict[str, int | str] | list[str]:
    pairs = [one.partition("=") for one in classes]
    if not any(equals for _, equals, _ in pairs):
        return classes
    return {name: int(value) if value.isdecimal() else value for name, _, value in pairs}
