"""DSC beside its costs, and the Pareto front: against brute force, and with systems missing."""

import io

import numpy as np
import pandas as pd
import pytest
from copies import ROOT
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from scores import invent_scores, write_scores
from test_model_card import card as make_card

from wavegms.costs.cases import form_with
from wavegms.costs.measure import count_gflop
from wavegms.errors import InputError
from wavegms.figures.results import plot_against_cost
from wavegms.results import scores as evaluated
from wavegms.results.costs import COSTS, beside_costs, on_front
from wavegms.results.statistics import summarize
from wavegms.results.tables import (
    read_published,
    read_scores,
    segmentation_table,
    summarize_systems,
)

GIB = 2**30
POINTS = {  # variant: base, bytes of an image, seconds of an image
    "wave_gms": (GIB, GIB, 0.5),
    "unet": (0, 2 * GIB, 0.125),
    "gms": (0, 4 * GIB, 4.0),  # has no scores
}


@pytest.fixture
def segmentation(tmp_path):
    for variant, dsc in (("wave_gms", 0.8), ("unet", 0.7), ("egeunet", 0.6)):
        write_scores(tmp_path / "scores", variant=variant, dsc=dsc)
    write_scores(tmp_path / "scores", train_set="bus", dsc=0.9)
    write_scores(tmp_path / "scores", train_set="busi", test_set="stu")
    systems = summarize_systems(read_scores(tmp_path / "scores"), 50, 0)
    return segmentation_table(systems, read_published(ROOT / "results/published"))


@pytest.fixture
def efficiency(tmp_path):
    folder = tmp_path / "efficiency"
    folder.mkdir()
    size = {"trainable_parameters": 1000, "image_size": 224, "inference_gflop": 37.5}
    pd.DataFrame([{"variant": name} | size for name in POINTS]).to_csv(folder / "sizes.csv")
    rows = [
        {
            "variant": name,
            "image_size": 96,
            "batch_size": batch,
            "device": "a card",
            "base_bytes": base,
            "peak_bytes": base + batch * more if name != "unet" or batch < 4 else None,
            "image_seconds": seconds if name != "unet" or batch < 4 else None,
        }
        for name, (base, more, seconds) in POINTS.items()
        for batch in (1, 2, 4)
        if name != "gms" or batch < 2
    ]
    points = pd.DataFrame(rows).astype({"peak_bytes": "Int64"})
    points.to_csv(folder / "measurements.csv", index=False)
    return folder


def test_costs_are_those_of_the_largest_batch_that_all_scored_ones_were_measured_with(
    segmentation, efficiency
):
    table = beside_costs(segmentation, efficiency)
    assert len(table) == 4  # no row for what was tested elsewhere, or not scored
    rows = table[table["test_set"] == "busi"].set_index("variant")
    assert set(rows["batch_size"].dropna()) == {2} and rows.loc["wave_gms", "cost_size"] == 96
    assert rows.loc["wave_gms", list(COSTS)].tolist() == [37.5, 0.5, 2.0]
    assert rows.loc["unet", list(COSTS)].tolist() == [37.5, 0.125, 4.0]
    assert rows.loc["egeunet", list(COSTS)].isna().all()
    scored = segmentation.query("metric == 'dsc' and test_set == 'busi'").set_index("variant")
    assert (rows["measured"] == scored.loc[rows.index, "measured"]).all()


def test_the_picture_has_what_has_costs_and_fills_the_front(segmentation, efficiency):
    figure = plot_against_cost(beside_costs(segmentation, efficiency))
    assert len(figure.axes) == 2 * len(COSTS)
    drawn = {
        (line.get_xdata()[0], line.get_markerfacecolor() != "white")
        for line in figure.axes[4].get_lines()
        if line.get_marker() in "os" and len(line.get_xdata()) == 1
    }
    busi = [axes for axes in figure.axes if axes.get_title(loc="left")]
    assert [axes.get_title(loc="left") for axes in busi] == ["BUS", "BUSI"]
    # Wave-GMS is slower and better than UNet: both are on the front of time
    assert drawn == {(0.5, True), (0.125, True)}
    names = [text.get_text() for text in figure.legends[0].get_texts()]
    assert names == ["Wave-GMS", "UNet", "Pareto front (filled)"]


@pytest.mark.parametrize("trained", ["exact", "fast"])
@pytest.mark.parametrize("scored", ["exact", "fast"])
def test_costs_are_those_of_the_decoder_that_was_used(tmp_path, efficiency, trained, scored):
    """As `write_scores` says which: a step by the one, a prediction by the other."""
    for name, column in (("sizes", "inference_gflop"), ("measurements", "image_seconds")):
        exact = pd.read_csv(efficiency / f"{name}.csv").assign(decoder="exact")
        fast = exact[exact["variant"] == "wave_gms"].assign(decoder="fast")
        fast[column] /= 4
        pd.concat([exact, fast]).to_csv(efficiency / f"{name}.csv", index=False)
    for variant in ("wave_gms", "unet"):
        scores = invent_scores(variant=variant)
        parameters = {"training": {"decoder": trained}}
        card = make_card(variant=variant, seed=1, image_size=224, parameters=parameters)
        path = tmp_path / f"own/busi/{variant}/seed_1/busi.csv"
        own = scores.loc[:, "id":]
        evaluated.write_scores(path, own, summarize(scores, 50, 0), card, "busi", scored)
    systems = summarize_systems(read_scores(tmp_path / "own"), 50, 0)
    table = segmentation_table(systems, read_published(ROOT / "results/published"))
    rows = beside_costs(table, efficiency).set_index("variant")
    steps, predictions = {"exact": 0.5, "fast": 0.125}, {"exact": 37.5, "fast": 9.375}
    assert rows.loc["wave_gms", "step_seconds"] == steps[trained]
    assert rows.loc["wave_gms", "inference_gflop"] == predictions[scored]
    assert rows.loc["unet", ["inference_gflop", "step_seconds"]].tolist() == [37.5, 0.125]


def test_without_measurements_there_is_no_picture(segmentation, tmp_path):
    table = beside_costs(segmentation, tmp_path / "nowhere")
    assert len(table) == 4 and table[list(COSTS)].isna().all(axis=None)
    with pytest.raises(InputError, match="run 07_efficiency"):
        plot_against_cost(table)


def test_memory_that_did_not_grow_has_no_panel(segmentation, efficiency):
    table = beside_costs(segmentation, efficiency).assign(step_gib=0.0)
    figure = plot_against_cost(table)
    assert len(figure.axes) == 2 * (len(COSTS) - 1)
    figure.draw_without_rendering()


def test_the_legend_is_as_wide_as_the_picture(segmentation, efficiency):
    for without in (["step_seconds"], ["step_seconds", "step_gib"]):
        table = beside_costs(segmentation, efficiency).assign(**dict.fromkeys(without, np.nan))
        more = [table.assign(system=f"a system with a long name, {n}") for n in range(6)]
        figure = plot_against_cost(pd.concat([table, *more]))
        figure.draw_without_rendering()
        box = figure.legends[0].get_window_extent()
        assert box.x0 >= 0 and box.x1 <= figure.bbox.x1


@pytest.mark.parametrize(
    ("place", "run", "pixels"),
    [("equal_minutes", "eight_minutes", 96), ("gpu_systems", "equal_time", 224)],
)
def test_kept_pictures_are_drawn_of_the_kept_runs(place, run, pixels):
    """Each mean and interval is one of `summary.csv`, operations are counted anew."""
    folder = ROOT / "results/proof" / place
    costs, summary = pd.read_csv(folder / "costs.csv"), pd.read_csv(folder / "summary.csv")
    summary = summary.rename(columns={"scored_with": "decoder"})
    scored = summary[(summary["run"] == run) & (summary["metric"] == "dsc")]
    if "seed" in scored:
        scored = scored[scored["seed"] == 1]
    keys = ["test_set", "variant", "decoder"]
    both = costs.merge(scored, on=[*keys, "epochs"], suffixes=("", "_kept"))
    assert len(both) == len(costs) == len(scored)
    for shown, kept in (
        ("measured", "mean"),
        ("ci_low", "ci_low_kept"),
        ("ci_high", "ci_high_kept"),
    ):
        assert both[shown].to_numpy() == pytest.approx(100 * both[kept].to_numpy(), abs=0.01)
    assert set(costs[costs["variant"] == "wave_gms"]["decoder"]) == {"exact", "fast"}
    for variant, decoder in (("unet", "exact"), ("wave_gms", "fast")):
        counted = count_gflop(variant, "predict", form_with(decoder), pixels)
        own = costs[(costs["variant"] == variant) & (costs["decoder"] == decoder)]
        assert own["inference_gflop"].to_numpy() == pytest.approx(counted, abs=1e-4)
    drawn = io.BytesIO()
    plot_against_cost(costs).savefig(drawn, format="png", dpi=100)
    kept, anew = (
        np.asarray(Image.open(file).convert("L"), float)
        for file in (folder / "dsc_against_cost.png", drawn)
    )
    assert kept.shape == anew.shape and np.abs(kept - anew).mean() < 0.1


def test_damaged_measurements_are_named(segmentation, efficiency):
    (efficiency / "sizes.csv").write_text("variant\nunet\n")
    with pytest.raises(InputError, match=r"sizes\.csv lacks the column .*run 07_efficiency again"):
        beside_costs(segmentation, efficiency)


numbers = st.one_of(st.integers(0, 4).map(float), st.just(float("nan")))


@given(st.lists(st.tuples(numbers, numbers), max_size=9))
def test_the_front_is_what_nothing_dominates(pairs):
    costs, values = (pd.Series([pair[k] for pair in pairs], dtype=float) for k in (0, 1))
    expected = []
    for cost, value in pairs:
        dominated = any((c <= cost and v > value) or (c < cost and v >= value) for c, v in pairs)
        expected.append(not (dominated or np.isnan(cost) or np.isnan(value)))
    assert on_front(costs, values).tolist() == expected
