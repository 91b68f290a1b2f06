"""`python -m wavegms predict`: what is wrong with it is said before torch is imported."""

from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import get_args

from wavegms.variants import Decoder, Plane

NAME = "predict"

HELP = "segment images and volumes with a trained model"


def configure(parser: ArgumentParser) -> None:
    # by the names of the fields of `Request`
    parser.add_argument("inputs", nargs="+", help="files, folders, or patterns such as 'scans/*'")
    parser.add_argument(
        "--model", required=True, help="its folder, a name in weights/, or a hub id"
    )
    parser.add_argument("--out", type=Path, required=True, help="the folder to make")
    parser.add_argument("--threshold", type=float, default=0.5, help="of the mask; 0.5 by default")
    parser.add_argument("--batch-size", type=int, default=12, help="12 by default")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, ...")
    parser.add_argument(
        "--plane",
        choices=get_args(Plane),
        help="in which volumes are cut; by default as those that the model was trained on, or as "
        "they are stored",
    )
    parser.add_argument(
        "--tta", action="store_true", help="average over flips; says whether it helps"
    )
    parser.add_argument(
        "--prepared",
        type=Path,
        default=Path("data/prepared"),
        help="where --tta looks for the validation images of the model",
    )
    parser.add_argument(
        "--decoder",
        choices=get_args(Decoder),
        default="exact",
        help="exact: the model's autoencoder (default); fast: the small decoder made for masks",
    )


def execute(options: Namespace) -> None:
    from wavegms.predict.inputs import Request
    from wavegms.project import is_kept

    if not Path(options.model).is_dir() and is_kept(options.model):
        from wavegms.training.kept import model_folder

        options.model = model_folder(options.model)
    names = [name for name, field in Request.__dataclass_fields__.items() if field.init]
    request = Request(**{name: getattr(options, name) for name in names})

    from wavegms.predict.run import predict, report  # seconds for torch and diffusers

    report(predict(request), request.out)
