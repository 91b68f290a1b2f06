"""`python -m wavegms trace`."""

from argparse import ArgumentParser, Namespace

NAME = "trace"
HELP = "follow a number in results/tables to what made it"


def configure(parser: ArgumentParser) -> None:
    parser.add_argument("train_set", help="the dataset that the network was trained on")
    parser.add_argument("variant", help="name of the network")
    parser.add_argument("--test-set", help="another dataset that it was tested on")
    parser.add_argument("--metric", default="dsc", help="a column of the scores, such as dsc")
    parser.add_argument("--ablation", action="store_true", help="in the table of the ablation")


def execute(options: Namespace) -> None:
    from wavegms.project import enter_project
    from wavegms.results.trace import Cell, report_trace, trace_cell

    enter_project()
    test_set = options.test_set or options.train_set
    cell = Cell(options.train_set, test_set, options.variant, options.metric, options.ablation)
    print(report_trace(trace_cell(cell)))
