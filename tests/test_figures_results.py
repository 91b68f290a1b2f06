"""The figures show the tables' numbers, name their rows, and are the same bytes each time."""

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib import pyplot
from PIL import Image
from scores import invent_scores

from wavegms.errors import InputError
from wavegms.figures.results import (
    plot_against_paper,
    plot_differences,
    plot_generalization,
    plot_per_image,
)
from wavegms.figures.style import save_figure
from wavegms.results.statistics import compare_variants
from wavegms.results.tables import (
    generalization_table,
    read_published,
    segmentation_table,
    summarize_systems,
)

PUBLISHED = Path(__file__).parent.parent / "results" / "published"


@pytest.fixture(scope="module")
def scores():
    tables = [
        invent_scores("busi", variant="unet", dsc=0.5),
        invent_scores("busi"),
        invent_scores("bus"),
        invent_scores("busi", "bus", dsc=0.6),
        invent_scores("phantom_a", image_size=64),
    ]
    return pd.concat(tables, ignore_index=True)


@pytest.fixture(scope="module")
def inside(scores):
    return scores[scores["train_set"] == scores["test_set"]]


@pytest.fixture(scope="module")
def comparisons(inside):
    return compare_variants(inside, "wave_gms", resamples=50, seed=0)


@pytest.fixture(scope="module")
def tables(scores):
    systems, published = summarize_systems(scores, 50, 0), read_published(PUBLISHED)
    return segmentation_table(systems, published), generalization_table(systems, published)


def panel(figure, title):
    return next(axes for axes in figure.axes if axes.get_title() == title)


def points(axes, marker):
    """Row name and value of every mark of one kind."""
    names = [label.get_text() for label in axes.get_yticklabels()]
    return {
        names[round(y)]: x
        for line in axes.get_lines()
        if line.get_marker() == marker
        for x, y in zip(line.get_xdata(), line.get_ydata(), strict=True)
    }


def test_measured_and_published_marks_are_the_tables(tables):
    axes = panel(plot_against_paper(tables[0], "dsc"), "BUSI")
    rows = tables[0][(tables[0]["test_set"] == "busi") & (tables[0]["metric"] == "dsc")]
    rows = rows.set_index("system")
    assert points(axes, "D") == rows["published"].to_dict()
    assert points(axes, "o") == rows["measured"].dropna().to_dict()
    ends = np.concatenate([line.get_segments() for line in axes.collections])[:, :, 0]
    expected = rows[["ci_low", "ci_high"]].dropna().to_numpy()
    np.testing.assert_allclose(ends[-len(expected) :], expected)


def test_data_without_published_values_have_their_panel(tables):
    figure = plot_against_paper(tables[0], "hd95_zero_if_empty")
    titles = [axes.get_title() for axes in figure.axes]
    assert titles == ["BUS", "BUSI", "Phantom A", "HAM10000", "Kvasir-Instrument"]
    assert list(points(panel(figure, "Phantom A"), "o")) == ["Wave-GMS"]
    assert points(panel(figure, "Phantom A"), "D") == {}


def test_every_image_is_a_dot(inside):
    axes = panel(plot_per_image(inside, "dsc"), "BUSI")
    assert [label.get_text() for label in axes.get_yticklabels()] == ["UNet", "Wave-GMS"]
    dots = axes.collections[0].get_offsets()
    busi = inside[inside["test_set"] == "busi"]
    for place, variant in enumerate(("unet", "wave_gms")):
        mine = np.sort(dots[np.round(dots[:, 1]) == place, 0])
        values = busi.loc[busi["variant"] == variant, "dsc"]
        np.testing.assert_allclose(mine, np.sort(100 * values))
        assert points(axes, "D")[("UNet", "Wave-GMS")[place]] == pytest.approx(100 * values.mean())


def test_differences_show_mean_and_corrected_p(inside, comparisons):
    axes = panel(plot_differences(inside, comparisons, "dsc"), "BUSI")
    row = comparisons[comparisons["metric"] == "dsc"].iloc[0]
    assert points(axes, "D") == {"UNet": pytest.approx(100 * row["mean_difference"])}
    assert len(axes.collections[0].get_offsets()) == 16
    shown = axes.texts[0].get_text()
    assert float(re.search(r"0\.\d{3}", shown)[0]) == pytest.approx(row["p_holm"], abs=0.0005)
    assert shown.endswith("*") == row["significant"]
    assert "Wave-GMS" in axes.get_xlabel()


def test_generalization_shows_where_from_and_where_to(tables):
    figure = plot_generalization(tables[1], "dsc")
    assert [axes.get_title() for axes in figure.axes] == ["BUSI to BUS", "BUS to BUSI"]
    axes = panel(figure, "BUSI to BUS")
    rows = tables[1][(tables[1]["test_set"] == "bus") & (tables[1]["metric"] == "dsc")]
    ours = rows[rows["variant"] == "wave_gms"].iloc[0]
    for marker, columns in (
        ("o", ["in_domain", "published_in_domain"]),
        ("<", ["measured", "published"]),
    ):
        lines = [line for line in axes.get_lines() if line.get_marker() == marker]
        for line, column in zip(lines, columns, strict=True):
            np.testing.assert_array_equal(line.get_xdata(), rows[column])
            assert ours[column] in line.get_xdata()


def test_nothing_to_draw_is_said(inside, comparisons):
    with pytest.raises(InputError, match="nothing to draw"):
        plot_differences(inside, comparisons.head(0), "dsc")


def test_saved_twice_is_saved_the_same(tmp_path, inside, comparisons, tables):
    """Drawn anew each time: no date, no path, no chance in it."""
    for name, draw in (
        ("differences", lambda: plot_differences(inside, comparisons, "hd95")),
        ("across", lambda: plot_generalization(tables[1], "hd95_zero_if_empty")),
    ):
        once = save_figure(draw(), tmp_path / "once" / name)
        again = save_figure(draw(), tmp_path / "again" / name)
        assert [path.name for path in once] == [f"{name}.png", f"{name}.pdf"]
        assert [path.read_bytes() for path in once] == [path.read_bytes() for path in again]
        with Image.open(once[0]) as image:
            assert image.format == "PNG" and np.ptp(np.asarray(image.convert("L"))) == 255
            assert "Software" not in image.info
        assert once[1].read_bytes().startswith(b"%PDF")
        assert b"CreationDate" not in once[1].read_bytes()
    assert len(list((tmp_path / "once").iterdir())) == 4


def test_no_label_overlaps_another(tables, inside, comparisons):
    for figure in (
        plot_against_paper(tables[0], "dsc"),
        plot_per_image(inside, "hd95"),
        plot_per_image(inside[inside["test_set"] == "bus"], "dsc"),
        plot_differences(inside, comparisons, "dsc"),
        plot_generalization(tables[1], "hd95_zero_if_empty"),
    ):
        figure.draw_without_rendering()
        frame = figure.bbox
        boxes = []
        for axes in figure.axes:
            texts = [axes.title, axes.xaxis.label, *axes.texts]
            texts += [*axes.get_xticklabels(), *axes.get_yticklabels()]
            low, high = axes.bbox.x0 - 1, axes.bbox.x1 + 1
            for text in texts:
                box = text.get_window_extent()
                is_tick = text in axes.get_xticklabels()
                outside = is_tick and not low <= (box.x0 + box.x1) / 2 <= high
                if text.get_text() and not outside:  # ticks beyond the axis are not drawn
                    boxes.append(box)
        boxes += [text.get_window_extent() for text in figure.legends[0].get_texts()]
        for number, box in enumerate(boxes):
            assert frame.x0 <= box.x0 and box.x1 <= frame.x1
            assert frame.y0 <= box.y0 and box.y1 <= frame.y1
            assert not any(box.overlaps(other) for other in boxes[:number])


def test_figures_do_not_stay_open(inside):
    plot_per_image(inside, "dsc")
    assert pyplot.get_fignums() == []
