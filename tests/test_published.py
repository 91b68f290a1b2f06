"""The paper's tables as data: complete, possible, consistent, and what is said of them."""

import re
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from wavegms.errors import InputError
from wavegms.models.build import build_variant
from wavegms.models.mapping import LatentMappingModel
from wavegms.results.tables import PublishedNumber, read_published
from wavegms.variants import VARIANTS

FOLDER = Path(__file__).parent.parent / "results" / "published"
DATASETS = {2: ["bus", "busi", "ham10000", "kvasir_instrument"], 4: ["bus", "busi"]}
DATASETS[4] += ["kvasir_instrument"]


@pytest.fixture(scope="module")
def published():
    return read_published(FOLDER)


def column(published, table, test_set, metric):
    rows = published[
        (published["table"] == table)
        & (published["test_set"] == test_set)
        & (published["metric"] == metric)
    ]
    return rows.set_index("system")["value"]


def test_table_1_is_complete():
    table = pd.read_csv(FOLDER / "table1.csv", keep_default_na=False)
    assert list(table) == [*("table", "system", "variant", "gpu", "vram_gb", "batch_size", "note")]
    assert len(table) == table["system"].nunique() == 13
    assert table["vram_gb"].between(11, 48).all() and table["batch_size"].between(1, 32).all()


@pytest.mark.parametrize(("number", "systems"), [(2, 13), (4, 7)])
def test_tables_2_and_4_have_every_cell_once(published, number, systems):
    table = published[published["table"] == number]
    assert list(table) == [*PublishedNumber.model_fields, "origin"]
    assert (table["train_set"] == table["test_set"]).all()
    names = table["system"].unique()
    assert len(names) == systems
    expected = pd.MultiIndex.from_product([names, DATASETS[number], ["dsc", "iou", "hd95"]])
    assert list(table.set_index(["system", "test_set", "metric"]).index) == list(expected)


def test_table_3_has_every_cell_once_for_the_systems_of_table_2(published):
    table = published[published["table"] == 3]
    names = published.loc[published["table"] == 2, "system"].unique()
    cells = table.set_index(["system", "train_set", "test_set", "metric"]).index
    expected = [
        (name, *pair, metric)
        for name in names
        for pair in (("busi", "bus"), ("bus", "busi"))
        for metric in ("dsc", "hd95")
    ]
    assert list(cells) == expected


def test_numbers_have_the_decimals_of_the_paper():
    for number in (2, 3, 4):
        printed = pd.read_csv(FOLDER / f"table{number}.csv", dtype=str)["value"]
        assert printed.str.fullmatch(r"\d{1,3}\.\d\d").all()


def test_numbers_are_possible(published):
    shares = published["metric"] != "hd95"
    assert published.loc[shares, "value"].between(0, 100).all()
    assert published.loc[~shares, "value"].between(0, np.hypot(224, 224)).all()


def test_means_of_iou_and_dice_can_be_of_the_same_images(published):
    """IoU = D / (2 - D) is convex and at most D, and so are their means, but for rounding."""
    cells = published[published["table"] != 3].pivot_table(
        index=["table", "system", "test_set"], columns="metric", values="value"
    )
    lowest_dice = (cells["dsc"] - 0.005) / 100
    assert (cells["iou"] + 0.005 >= 100 * lowest_dice / (2 - lowest_dice)).all()
    assert (cells["iou"] < cells["dsc"]).all()


def marked(published, mark):
    """The cells of table 2 with a mark, as (system, test_set, metric), in order."""
    rows = published[published["origin"].str.split().map(lambda marks: mark in marks)]
    assert set(rows["table"]) == {2}
    return list(rows[["system", "test_set", "metric"]].itertuples(index=False, name=None))


def test_rows_taken_over_are_the_means_of_the_published_runs_cut_to_two_decimals(published):
    runs = pd.read_csv(FOLDER / "acc_unet_busi.csv")
    assert (runs.groupby("system")["run"].agg(list).map(lambda found: found == [1, 2, 3])).all()
    means = 100 * runs.groupby("system")[["dsc", "iou"]].mean()
    cut = np.floor(100 * means) / 100
    equal = [
        (system, "busi", metric)
        for system in published["system"].unique()
        for metric in ("dsc", "iou")
        if system in cut.index
        and cut.loc[system, metric] == column(published, 2, "busi", metric)[system]
    ]
    assert equal == marked(published, "acc-unet-logs") and len(equal) == 12
    # rounded, four of the twelve would be others: they were cut
    rounded = means.round(2)
    assert (rounded - cut).gt(0.005).to_numpy().sum() == 4


def test_the_page_tells_the_runs_as_they_are_in_the_file():
    page = (FOLDER.parents[1] / "docs/published.md").read_text(encoding="utf-8")
    for system, runs in pd.read_csv(FOLDER / "acc_unet_busi.csv").groupby("system"):
        row = next(line for line in page.splitlines() if line.startswith(f"| {system} |"))
        for metric in ("dsc", "iou"):
            assert ", ".join(f"{100 * value:.3f}" for value in runs[metric]) in row
            assert f"| {100 * runs[metric].mean():.3f} |" in row


def test_pooled_rows_are_those_that_meet_the_identity_of_a_single_mask(published):
    """IoU = DSC / (2 - DSC), within what two decimals leave open; a mean over images is above."""
    table = published[(published["table"] == 2) & (published["metric"] != "hd95")]
    cells = table.pivot_table("value", ["system", "test_set"], "metric", sort=False) / 100
    gap = 100 * (cells["iou"] - cells["dsc"] / (2 - cells["dsc"]))
    equal = [(*cell, metric) for cell in gap.index[gap < 0.02] for metric in ("dsc", "iou")]
    assert equal == marked(published, "pooled") and len(equal) == 6
    assert gap[gap >= 0.02].min() > 0.5


def test_nine_rows_but_for_one_number_are_in_the_table_of_gms(published):
    cells = pd.DataFrame(marked(published, "gms-picture"), columns=["system", "set", "metric"])
    assert len(cells) == 71 and set(cells["metric"]) == {"dsc", "iou"}
    counts = cells["system"].value_counts()
    assert len(counts) == 9 and counts["ACC-UNet"] == 7 and set(counts.drop("ACC-UNet")) == {8}


def test_an_origin_that_is_none_is_refused(tmp_path):
    shutil.copytree(FOLDER, tmp_path, dirs_exist_ok=True)
    text = (FOLDER / "origins.csv").read_text().replace("pooled", "guessed")
    (tmp_path / "origins.csv").write_text(text)
    with pytest.raises(InputError, match=r"origins\.csv.*git"):
        read_published(tmp_path)


def test_wave_gms_has_the_same_numbers_in_tables_2_and_4(published):
    ours = published[published["variant"] == "wave_gms"].set_index(["test_set", "metric"])["value"]
    table_2 = ours[(published.loc[published["variant"] == "wave_gms", "table"] == 2).to_numpy()]
    table_4 = ours[(published.loc[published["variant"] == "wave_gms", "table"] == 4).to_numpy()]
    assert len(table_4) == 9
    pd.testing.assert_series_equal(table_2[table_4.index], table_4)


def test_each_variant_is_one_row_of_a_table(published):
    rows = published.drop_duplicates(["table", "system"])
    named = rows[rows["variant"] != ""]
    assert not named.duplicated(["table", "variant"]).any()
    assert set(named["variant"]) <= set(VARIANTS)
    assert set(named.loc[named["table"] == 2, "variant"]) == {
        *("unet", "multiresunet", "acc_unet", "uctransnet", "nnunet", "egeunet"),
        *("swin_unet", "sme_swin_unet", "medsegdiff_v2", "sdseg", "gss", "gms", "wave_gms"),
    }
    table_4 = rows.loc[rows["table"] == 4, "variant"]
    assert (table_4 != "").all()
    assert set(table_4) == {
        *("tinyvae_mismatch", "tinyvae", "tinyvae_multires_sft", "wave_gms_no_alignment"),
        *("wave_gms_batch_2", "wave_gms_batch_4", "wave_gms"),
    }
    # a system keeps its variant from table to table
    assert (rows.groupby("system")["variant"].nunique() == 1).all()


def test_trainable_parameters_are_those_of_the_networks(published):
    table = published[published["table"] == 2]
    assert (table.groupby("system")["trainable_parameters_millions"].nunique() == 1).all()
    printed = table[table["variant"] != ""].groupby("variant")["trainable_parameters_millions"]
    for variant, network in (
        ("wave_gms", build_variant("wave_gms")),
        ("gms", LatentMappingModel()),
    ):
        count = sum(weight.numel() for weight in network.parameters() if weight.requires_grad)
        assert printed.first()[variant] == pytest.approx(count / 1e6, abs=0.005)


def test_where_wave_gms_is_best_by_the_tables(published):
    best = {
        (test_set, metric): values.idxmin() if metric == "hd95" else values.idxmax()
        for test_set in DATASETS[2]
        for metric in ("dsc", "iou", "hd95")
        for values in [column(published, 2, test_set, metric)]
    }
    others = {cell: name for cell, name in best.items() if name != "Wave-GMS (ours)"}
    assert others == {
        ("ham10000", "dsc"): "GMS",
        ("ham10000", "iou"): "GMS",
        ("kvasir_instrument", "dsc"): "GMS",
        ("kvasir_instrument", "iou"): "nnUNet",
        ("kvasir_instrument", "hd95"): "GMS",
    }


def test_ranks_that_the_readme_states(published):
    distances = column(published, 2, "kvasir_instrument", "hd95")
    assert (distances < distances["Wave-GMS (ours)"]).sum() == 10
    mismatch = "Tiny-VAE (model mismatch)"
    assert column(published, 4, "kvasir_instrument", "dsc").rank(ascending=False)[mismatch] == 3
    assert column(published, 4, "kvasir_instrument", "iou").rank(ascending=False)[mismatch] == 3
    assert column(published, 4, "kvasir_instrument", "hd95").rank()[mismatch] == 2
    assert [column(published, 4, "busi", metric).idxmin() for metric in ("dsc", "iou")] == [
        mismatch,
        mismatch,
    ]
    assert column(published, 4, "busi", "hd95").rank()[mismatch] == 5
    across = published[published["table"] == 3]
    for (_, metric), rows in across.groupby(["test_set", "metric"]):
        values = rows.set_index("system")["value"]
        assert (values.idxmin() if metric == "hd95" else values.idxmax()) == "Wave-GMS (ours)"


def test_every_number_of_the_readme_is_in_the_tables(published):
    text = (FOLDER / "README.md").read_text(encoding="utf-8")
    stated = set(re.findall(r"(?<![\d.:,])\d+\.\d\d(?!\d)", text))
    known = {f"{value:.2f}" for value in published["value"]}
    known |= {f"{value:.2f}" for value in published["trainable_parameters_millions"].dropna()}
    known |= {"1.03", "1.04", "2.59"}  # section 2.1, what 1,035,692 rounds to, and the sum
    assert len(stated) > 40
    assert stated - known == set()


def test_a_missing_table_is_named(tmp_path):
    with pytest.raises(InputError, match=r"table2\.csv does not exist"):
        read_published(tmp_path)


def test_a_missing_column_is_named(tmp_path):
    for number in (2, 3, 4):
        table = pd.read_csv(FOLDER / f"table{number}.csv", dtype=str)
        if number == 3:
            table = table.drop(columns="variant")
        table.to_csv(tmp_path / f"table{number}.csv", index=False)
    with pytest.raises(InputError, match=r"table3\.csv lacks the column variant"):
        read_published(tmp_path)


# the paper's own text


def printed_rows(text, start, end):
    """The rows of a table of the paper's text: cells without references or emphasis."""
    lines = text[text.index(start) : text.index(end)].splitlines()
    plain = (re.sub(r"\[\d+\]|<[^>]*>", "", line) for line in lines)
    return [[cell.strip() for cell in line.split("\t")] for line in plain if "\t" in line]


@pytest.fixture(scope="module")
def paper(real_data):
    path = real_data / "paper/wave-gms.md"
    if not path.is_file():
        pytest.skip(f"{path} is not there")
    return path.read_text(encoding="utf-8")


@pytest.mark.realdata
def test_table_1_is_the_papers(paper):
    _, *rows = printed_rows(paper, "Model\tGPU (VRAM)", "Table 1: Compute")
    stored = pd.read_csv(FOLDER / "table1.csv", dtype=str, keep_default_na=False)
    ours = [
        [row.system, f"{row.gpu} ({row.vram_gb} GB)", row.batch_size] for row in stored.itertuples()
    ]
    assert ours == rows


@pytest.mark.realdata
@pytest.mark.parametrize(
    ("number", "start", "end", "columns"),
    [
        (2, "Type Model\t", "Table 2: Quantitative", ["bus", "busi", "ham10000", "kvasir"]),
        (4, "Model\tBUS\t\t\tBUSI\t\t\tKvasir", "Table 4: Ablation", ["bus", "busi", "kvasir"]),
    ],
)
def test_tables_2_and_4_are_the_papers_number_by_number(
    paper, published, number, start, end, columns
):
    _, _, *rows = printed_rows(paper, start, end)
    names = {"kvasir": "kvasir_instrument"}
    cells = [(names.get(c, c), metric) for c in columns for metric in ("dsc", "iou", "hd95")]
    table = published[published["table"] == number]
    assert len(rows) == table["system"].nunique()
    for row, (system, stored) in zip(rows, table.groupby("system", sort=False), strict=True):
        if number == 2:
            _, name, millions, *numbers = row
            assert set(stored["trainable_parameters_millions"]) == {float(millions)}
        else:
            name, *numbers = row
        assert name == system
        values = stored.set_index(["test_set", "metric"])["value"]
        assert [values[cell] for cell in cells] == [float(number) for number in numbers]


@pytest.mark.realdata
def test_table_3_is_the_papers_number_by_number(paper, published):
    _, _, *rows = printed_rows(paper, "Model\tBUSI\tto BUS", "Table 3: Quantitative")
    table = published[published["table"] == 3]
    assert len(rows) == table["system"].nunique()
    cells = [(pair, metric) for pair in ("busi", "bus") for metric in ("dsc", "hd95")]
    for row, (system, stored) in zip(rows, table.groupby("system", sort=False), strict=True):
        assert row[0] == system
        values = stored.set_index(["train_set", "metric"])["value"]
        assert [values[cell] for cell in cells] == [float(number) for number in row[1:5]]
