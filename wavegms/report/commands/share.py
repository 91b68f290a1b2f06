"""`python -m wavegms share`."""

from argparse import ArgumentParser, Namespace
from pathlib import Path

NAME = "share"
HELP = "make a folder of a trained model for others"


def configure(parser: ArgumentParser) -> None:
    parser.add_argument("model", type=Path, help="its folder in models/")
    parser.add_argument("out", type=Path, help="the folder to make")
    parser.add_argument("--push", metavar="OWNER/NAME", help="upload it to the Hugging Face hub")


def execute(options: Namespace) -> None:
    from wavegms.files import only_seed
    from wavegms.project import from_project
    from wavegms.training.card import read_card

    model, out = from_project(options.model, options.out)
    read_card(only_seed(model))  # what is no model is named before torch is imported
    from wavegms.report.share import share_model

    share_model(model, out, hub_id=options.push)
    print(f"written: {options.out}")
