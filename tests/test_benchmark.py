"""`make bench`: ratios from rounds, counted operations, and a small real run."""

import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from wavegms.__main__ import main
from wavegms.costs import bench as benchmark
from wavegms.costs import measure
from wavegms.costs.bench import run_benchmark, tabulate_ratios
from wavegms.costs.cases import COMPARISONS, Case, Plan, Workload, cases
from wavegms.costs.measure import count_gflop, count_sizes, measure_point
from wavegms.costs.tables import GIB

POSITIVE = st.floats(0.01, 100)


def points(case, seconds, batch_size=4, peak=3 * GIB, task="train", precision="fp32"):
    """A row for each round."""
    return pd.DataFrame(
        {
            "round": range(1, len(seconds) + 1),
            "task": task,
            "case": case,
            "variant": "wave_gms",
            "form": "plain" if case == "plain" else "lean",
            "precision": precision,
            "image_size": 32,
            "batch_size": batch_size,
            "device": "a processor",
            "threads": 2,
            "memory": "peak process memory",
            "base_bytes": GIB,
            "peak_bytes": peak,
            "step_seconds": seconds,
        }
    )


@given(st.lists(st.tuples(POSITIVE, POSITIVE), min_size=1, max_size=5))
def test_a_ratio_is_of_neighbours_in_time(pairs):
    lean, plain = ([pair[side] for pair in pairs] for side in (0, 1))
    table = tabulate_ratios(pd.concat([points("lean", lean), points("plain", plain)]))
    time = table.set_index("quantity").loc["time"]
    ratios = sorted(one / other for one, other in pairs)
    assert (time["lowest"], time["highest"]) == pytest.approx((ratios[0], ratios[-1]))
    assert time["ratio"] == pytest.approx(pd.Series(ratios).median())


def test_memory_is_compared_whole_and_for_the_step_alone():
    table = tabulate_ratios(
        pd.concat([points("lean", [1.0], peak=2 * GIB), points("plain", [2.0], peak=4 * GIB)])
    ).set_index("quantity")
    assert table["ratio"].to_dict() == {
        "time": 0.5,
        "memory": 0.5,
        "memory of the step": pytest.approx(1 / 3),
    }


def test_the_largest_batch_of_both_sides_counts_and_other_pairs_are_left_out():
    measured = pd.concat(
        [
            points("lean", [1.0], batch_size=2),
            points("lean", [3.0], batch_size=4),
            points("plain", [4.0], batch_size=2),
            points("plain", [None], batch_size=4),  # out of memory
            points("GMS", [30.0], batch_size=4),
        ]
    )
    table = tabulate_ratios(measured)
    time = table[table["quantity"] == "time"].set_index(["case", "against"])
    assert set(time.index) == {("lean", "plain"), ("GMS", "lean")}
    assert time.loc[("lean", "plain"), ["batch_size", "ratio"]].tolist() == [2, 0.25]
    assert time.loc[("GMS", "lean"), ["batch_size", "ratio"]].tolist() == [4, 10]


def test_what_is_not_measured_is_no_ratio():
    pair = [points("lean", [1.0]), points("plain", [2.0], peak=None)]
    assert tabulate_ratios(pd.concat(pair))["quantity"].tolist() == ["time"]


def test_operations_are_those_of_the_counts_and_the_plain_form_has_more():
    sizes = count_sizes(["wave_gms"], 32)[0]
    lean, plain = (count_gflop("wave_gms", "train", form, 32) for form in ("lean", "plain"))
    assert lean == pytest.approx(sizes["training_gflop"])
    # four levels, forward and backward: 5/9 of the doubled convolutions, 2/3 of the last one
    doubled = sum(2 * 9 * 64 * 64 * side**2 for side in (8, 16, 32))
    last = 2 * 9 * 64 * 3 * 32**2
    border = sum(2 * 4 * 4 * 64 * 64 * (2 * side + 1) for side in (4, 8, 16))
    saved = 8 * (5 / 9 * doubled + 2 / 3 * last - border) / 1e9
    assert plain - lean == pytest.approx(saved, rel=1e-6)
    predictions = [count_gflop("wave_gms", "predict", form, 32) for form in ("lean", "plain")]
    assert predictions[0] == pytest.approx(sizes["inference_gflop"])
    assert predictions[1] - predictions[0] == pytest.approx(saved / 8, rel=1e-6)


def test_every_comparison_is_of_cases_that_exist():
    names = {(case.workload.task, case.name) for gpu in (False, True) for case in cases(gpu)}
    for task, pairs in COMPARISONS.items():
        for pair in pairs:
            assert {(task, name) for name in pair} <= names
    for gpu in (False, True):
        workloads = [(case.workload, case.keep_memory) for case in cases(gpu)]
        assert len(set(workloads)) == len(workloads)


class Session:
    """That of ONNX Runtime, without the export; `compare_inference` is tested with a real one."""

    def __init__(self, pipeline):
        self.pipeline = pipeline

    def run(self, outputs, given):
        assert outputs is None
        return [self.pipeline.predict(torch.from_numpy(given["images"])).numpy()]


def test_a_small_run_leaves_tables_and_a_figure(tmp_path, monkeypatch):
    chosen = [
        Case("plain", Workload("wave_gms", "train", "plain"), keep_memory=False),
        Case("lean", Workload("wave_gms")),
        Case("ONNX Runtime, CPU", Workload("wave_gms", "predict", "onnx")),
    ]
    monkeypatch.setattr(benchmark, "cases", lambda gpu: chosen)
    monkeypatch.setattr(measure, "open_onnx", lambda pipe: (Session(pipe), 0.0))
    in_a_process = benchmark.measured_points

    def measured(workload, image_size, batch_sizes, steps, **options):
        """One case in processes; the stand-in for ONNX Runtime is in this one alone."""
        if workload.form == "lean":
            yield from in_a_process(workload, image_size, batch_sizes, steps, **options)
        else:
            for size in batch_sizes:
                yield {"batch_size": size} | measure_point(workload, size, image_size, steps)

    monkeypatch.setattr(benchmark, "measured_points", measured)
    run_benchmark(Plan(32, [1, 2], 1, 1), tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        *("costs.csv", "measurements.csv", "ratios.csv", "summary.md"),
        *("training.pdf", "training.png"),
    ]
    measured = pd.read_csv(tmp_path / "measurements.csv")
    assert measured[["task", "case", "batch_size"]].to_numpy().tolist() == [
        *(["train", "plain", 1], ["train", "plain", 2]),
        *(["train", "lean", 1], ["train", "lean", 2]),
        ["predict", "ONNX Runtime, CPU", 2],
    ]
    assert (measured["step_seconds"] > 0).all()
    costs = pd.read_csv(tmp_path / "costs.csv")
    assert len(costs) == 3 and costs["share_of_peak"].between(0, 3).all()
    summary = (tmp_path / "summary.md").read_text()
    assert "ONNX Runtime, CPU" in summary and "32×32 pixels, rounds: 1" in summary


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--batch-sizes", "2", "1"], "--batch-sizes must ascend"),
        (["--batch-sizes", "0"], "--batch-sizes must ascend"),
        (["--rounds", "0"], "--rounds and --steps"),
        (["--image-size", "40"], "--image-size is 40, but variant unet"),
    ],
)
def test_a_plan_that_cannot_be_is_refused(tmp_path, capsys, arguments, said):
    assert main(["bench", "--out", str(tmp_path / "bench"), *arguments]) == 1
    assert f"error: {said}" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
