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

    predict = commands.add_parser("predict", help="segment images and volumes with a trained model")
    predict.add_argument("inputs", nargs="+", help="files, folders, or patterns such as 'scans/*'")
    predict.add_argument("--model", required=True, help="its folder, or a hub id")
    predict.add_argument("--out", type=Path, required=True, help="the folder to make")
    predict.add_argument("--threshold", type=float, default=0.5, help="of the mask; 0.5 by default")
    predict.add_argument("--batch-size", type=int, default=12, help="12 by default")
    predict.add_argument("--device", default="auto", help="auto, cpu, cuda, ...")
    predict.add_argument(
        "--plane",
        choices=["axial", "coronal", "sagittal"],
        help="in which volumes are cut; that of their stored slices if not given",
    )
    predict.add_argument(
        "--tta", action="store_true", help="average over flips; says whether it helps"
    )
    predict.add_argument(
        "--prepared",
        type=Path,
        default=Path("data/prepared"),
        help="where --tta looks for the validation images of the model",
    )

    add = commands.add_parser("add", help="set up and check images of your own for training")
    add.add_argument("name", help="what to call them; they come to lie in data/raw/NAME")
    add.add_argument("--images", type=Path, help="a folder of images to copy")
    add.add_argument("--masks", type=Path, help="the folder of their masks, called as they are")

    get = commands.add_parser("get", help="download public data, verified; without names, list it")
    get.add_argument("names", nargs="*", help="such as busi, splits, taesd")

    trace = commands.add_parser("trace", help="follow a number in results/tables to what made it")
    trace.add_argument("train_set", help="the dataset that the network was trained on")
    trace.add_argument("variant", help="name of the network")
    trace.add_argument("--test-set", help="another dataset that it was tested on")
    trace.add_argument("--metric", default="dsc", help="dsc, iou, hd95 or hd95_zero_if_empty")
    trace.add_argument("--ablation", action="store_true", help="in the table of the ablation")

    html = commands.add_parser("report", help="one HTML file of the executed notebooks")
    html.add_argument("--out", type=Path, default=Path("results/report.html"))

    share = commands.add_parser("share", help="make a folder of a trained model for others")
    share.add_argument("model", type=Path, help="its folder in models/")
    share.add_argument("out", type=Path, help="the folder to make")
    share.add_argument("--push", metavar="OWNER/NAME", help="upload it to the Hugging Face hub")

    options = parser.parse_args(arguments)
    try:
        if options.command == "check":
            from wavegms.run.check import check_inputs

            check_inputs(options.params, options.raw, options.out)
        elif options.command == "run":
            from wavegms.run.notebooks import run_notebook

            run_notebook(options.notebook, options.output, dict(options.pairs), options.params)
        elif options.command == "get":
            from wavegms.data.download import describe_sources, get_sources
            from wavegms.project import enter_project

            if options.names:
                enter_project()
                get_sources(options.names, Path())
            else:
                print(describe_sources(), end="")
        elif options.command == "add":
            from wavegms.project import enter_project
            from wavegms.run.add import add_dataset
            from wavegms.run.add import report as say

            images, masks = (path and path.absolute() for path in (options.images, options.masks))
            enter_project()
            print(say(add_dataset(options.name, images, masks)), end="")
        elif options.command == "bench":
            from wavegms.costs.bench import run_benchmark

            run_benchmark(
                options.image_size, options.batch_sizes, options.rounds, options.steps, options.out
            )
        elif options.command == "sweep":
            from wavegms.run.sweep import sweep_stage

            sweep_stage(
                options.stage, options.executor, options.logs, options.options, options.jobs
            )
        elif options.command == "trace":
            from wavegms.results.trace import Cell, report_trace, trace_cell

            test_set = options.test_set or options.train_set
            cell = Cell(
                options.train_set, test_set, options.variant, options.metric, options.ablation
            )
            print(report_trace(trace_cell(cell)))
        elif options.command == "report":
            from wavegms.report.page import write_report

            written = write_report(options.out)
            print(*written.missing, sep="\n", end="\n" if written.missing else "")
            print(f"written: {written.path} and {len(written.cards)} model cards beside it")
        elif options.command == "share":
            from wavegms.report.share import share_model

            share_model(options.model, options.out, hub_id=options.push)
            print(f"written: {options.out}")
        elif options.command == "predict":
            from wavegms.predict.run import predict_files, report

            chosen = {name: value for name, value in vars(options).items() if name != "command"}
            report(predict_files(**chosen), options.out)
        else:
            from wavegms.run.notebooks import refresh_notebook

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
