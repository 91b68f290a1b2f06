"""From scores files to tables: against pandas, against the paper's numbers, and bad files."""

import ast
import re
import subprocess
import sys
from io import StringIO

import nbformat
import numpy as np
import pandas as pd
import pytest
from copies import ROOT
from scores import invent_scores, put, write_scores

from wavegms.errors import InputError
from wavegms.results.readable import (
    explain_signs,
    readable,
    readable_comparisons,
    readable_published,
    write_table,
)
from wavegms.results.statistics import METRICS, ORIGINAL_METRICS, compare_variants, mean_over_seeds
from wavegms.results.tables import (
    ImageScore,
    ablation_table,
    generalization_table,
    mark_significant,
    of_this_run,
    read_published,
    read_scores,
    segmentation_table,
    summarize_runs,
    summarize_systems,
    title_of,
)
from wavegms.variants import VARIANTS

PUBLISHED = ROOT / "results/published"
SCORE_COLUMNS = list(ImageScore.model_fields)
CELL = ["train_set", "test_set", "variant", "metric"]


@pytest.fixture(scope="module")
def published():
    return read_published(PUBLISHED)


@pytest.fixture(scope="module")
def scores(tmp_path_factory):
    """Three seeds of Wave-GMS on BUSI, and single runs: an ablation, across, own data."""
    folder = tmp_path_factory.mktemp("results") / "scores"
    for seed in (1, 2, 3):
        write_scores(folder, seed=seed)
    write_scores(folder, variant="unet", dsc=0.5)
    write_scores(folder, variant="tinyvae")
    write_scores(folder, train_set="bus")
    write_scores(folder, train_set="busi", test_set="bus", dsc=0.7)
    write_scores(folder, train_set="phantom_a", variant="wave_gms", image_size=64)
    write_scores(folder, train_set="phantom_a", test_set="phantom_b", image_size=64, dsc=0.6)
    write_scores(folder, train_set="my_data", variant="my_net", image_size=64)
    return read_scores(folder)


@pytest.fixture(scope="module")
def systems(scores):
    return summarize_systems(scores, resamples=100, seed=0)


@pytest.fixture(scope="module")
def comparisons(scores):
    inside = scores[scores["train_set"] == scores["test_set"]]
    return compare_variants(inside, "wave_gms", resamples=100, seed=0)


def cell(table, train_set, test_set, system, metric):
    rows = table[
        (table["train_set"] == train_set)
        & (table["test_set"] == test_set)
        & (table["system"] == system)
        & (table["metric"] == metric)
    ]
    assert len(rows) == 1
    return rows.iloc[0]


# reading


def test_what_was_written_is_read(tmp_path):
    written = [
        invent_scores(seed=2),
        invent_scores(seed=10),
        invent_scores(variant="unet"),
        invent_scores(test_set="bus"),
    ]
    for table in reversed(written):
        put(tmp_path, table)
    # by test set, then variant in the paper's order, then seed as a number
    expected = pd.concat([written[3], written[2], written[0], written[1]], ignore_index=True)
    expected = expected.assign(fold=0)[SCORE_COLUMNS]
    scores = read_scores(tmp_path)
    assert list(scores) == SCORE_COLUMNS
    pd.testing.assert_frame_equal(scores, expected, check_dtype=False)
    assert scores["empty_prediction"].dtype == bool


def test_further_columns_are_left_out(tmp_path):
    put(tmp_path, invent_scores().assign(threshold=0.5))
    assert list(read_scores(tmp_path)) == SCORE_COLUMNS


def test_no_scores_at_all(tmp_path):
    with pytest.raises(InputError, match="holds no scores: run the evaluation"):
        read_scores(tmp_path)


@pytest.mark.parametrize("column", sorted({*SCORE_COLUMNS} - {*ORIGINAL_METRICS, "fold"}))
def test_a_missing_column_is_named(tmp_path, column):
    path = write_scores(tmp_path)
    pd.read_csv(path, dtype=str).drop(columns=column).to_csv(path, index=False)
    check_refused(tmp_path, path, f"lacks the column {column}:")


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        *(
            (
                column,
                value,
                rf"has an? {column} (that|other than) .*{re.escape(value[:50])}.*: run that",
            )
            for column, value in (
                ("dsc", "1.01"),
                ("dsc", "nan"),
                ("dsc", ""),
                ("iou", "-0.1"),
                ("hd95", "inf"),
                ("hd95", "far"),
                ("hd95_zero_if_empty", "-1"),
                ("epochs", "many"),
                ("epochs", "9" * 30),
                ("true_area", "25"),
                ("predicted_area", "all"),
                ("empty_prediction", "maybe"),
            )
        ),
        ("id", "000001", "lists 000001 twice"),
        ("epochs", "7", "mixes several values of epochs"),
        ("variant", "gms", "mixes several values of variant"),
        ("card", "1", "mixes several values of card"),
        ("data_hash", "1", "mixes several values of data_hash"),
    ],
)
def test_one_bad_value_is_refused(tmp_path, column, value, message):
    path = write_scores(tmp_path)
    table = pd.read_csv(path, dtype=str, keep_default_na=False)
    table.loc[4, column] = value
    table.to_csv(path, index=False)
    check_refused(tmp_path, path, message)


@pytest.mark.parametrize("content", ["", ",".join(SCORE_COLUMNS) + "\n", "\x00\x01", "\xff\xfe"])
def test_a_broken_file_is_refused(tmp_path, content):
    path = write_scores(tmp_path)
    path.write_bytes(content.encode("latin-1"))
    check_refused(tmp_path, path, "cannot be read|has no row|lacks the column")


@pytest.mark.parametrize("column", ["train_set", "test_set", "variant", "seed"])
def test_a_file_in_the_wrong_place_is_refused(tmp_path, column):
    path = write_scores(tmp_path)
    elsewhere = invent_scores().assign(**{column: 5 if column == "seed" else "other"})
    elsewhere.to_csv(path, index=False)
    right_place = "seed_5" if column == "seed" else "other"
    check_refused(tmp_path, path, rf"belong in .*{right_place}.*: put it there")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"epochs": 60}, "has epochs 60 and"),
        ({"image_size": 64}, "has image_size 64 and"),
        ({"selection": "best_on_test"}, "has selection best_on_test and"),
        ({"images": 15}, "score different images"),
        ({"data_hash": "1"}, "has data_hash 1 and"),
    ],
)
def test_seeds_that_cannot_be_averaged_are_refused(tmp_path, change, message):
    first = write_scores(tmp_path, seed=1)
    path = write_scores(tmp_path, seed=2, **change)
    with pytest.raises(InputError, match=message) as error:
        read_scores(tmp_path)
    assert str(path) in str(error.value) and str(first) in str(error.value)


def test_other_systems_may_have_other_settings(tmp_path):
    write_scores(tmp_path)
    write_scores(tmp_path, variant="tinyvae_mismatch", epochs=0, selection="", images=7)
    assert len(read_scores(tmp_path)) == 23


def check_refused(folder, path, message):
    with pytest.raises(InputError, match=message) as error:
        read_scores(folder)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


# summaries


def test_runs_are_summarized_as_by_pandas(scores):
    runs = summarize_runs(scores, 100, 0)
    assert len(runs) == 10 * len(METRICS)
    for row in runs.itertuples():
        run = scores[
            (scores["train_set"] == row.train_set)
            & (scores["test_set"] == row.test_set)
            & (scores["variant"] == row.variant)
            & (scores["seed"] == row.seed)
        ]
        assert row.mean == pytest.approx(run[row.metric].mean())
        assert row.sd == pytest.approx(run[row.metric].std())
        assert (row.images, row.empty_predictions) == (16, 1)
        assert row.ci_low <= row.mean <= row.ci_high


def test_systems_are_means_over_their_seeds(scores, systems):
    runs = summarize_runs(scores, 100, 0)
    for (train, test, variant, metric), rows in runs.groupby(CELL):
        row = systems.set_index(CELL).loc[(train, test, variant, metric)]
        assert row["mean"] == pytest.approx(rows["mean"].mean())
        assert row["sd_seeds"] == pytest.approx(rows["mean"].std(), nan_ok=True)
        assert row["seeds"] == len(rows)
        assert row["empty_predictions"] == len(rows)
        assert row["ci_low"] <= row["mean"] <= row["ci_high"]
    assert systems["sd_seeds"].isna().equals(systems["seeds"] == 1)
    assert (systems["seeds"] == 3).sum() == len(METRICS)


def test_mean_over_seeds_is_image_by_image(scores):
    means = mean_over_seeds(scores[scores["train_set"] == "busi"])
    assert len(means) == 4 * 16
    one = scores[(scores["id"] == "NA") & (scores["train_set"] == scores["test_set"])]
    one = one[(one["variant"] == "wave_gms") & (one["train_set"] == "busi")]
    assert len(one) == 3
    picked = means[(means["id"] == "NA") & (means["variant"] == "wave_gms")]
    picked = picked[picked["test_set"] == "busi"].iloc[0]
    for metric in METRICS:
        assert picked[metric] == pytest.approx(one[metric].mean())


# tables


def test_all_rows_of_the_paper_are_there_with_its_numbers(published, systems):
    for number, make in ((2, segmentation_table), (3, generalization_table), (4, ablation_table)):
        table = make(systems, published)
        paper = published[published["table"] == number]
        assert table["published"].notna().sum() == len(paper)
        np.testing.assert_array_equal(np.sort(table["published"].dropna()), np.sort(paper["value"]))
        for row in paper[paper["variant"] != ""].itertuples():
            metric = "hd95_zero_if_empty" if row.metric == "hd95" else row.metric
            title = title_of(row.variant)
            found = cell(table, row.train_set, row.test_set, title, metric)
            assert found["published"] == row.value and found["variant"] == row.variant


def test_measured_stands_beside_published(scores, systems, published):
    table = segmentation_table(systems, published)
    runs = scores[(scores["variant"] == "wave_gms") & (scores["train_set"] == "busi")]
    runs = runs[runs["test_set"] == "busi"]
    means = runs.groupby("seed")[list(METRICS)].mean()
    row = cell(table, "busi", "busi", "Wave-GMS", "dsc")
    assert row["measured"] == pytest.approx(100 * means["dsc"].mean())
    assert row["sd_seeds"] == pytest.approx(100 * means["dsc"].std())
    assert row["published"] == 82.31
    assert row["difference"] == pytest.approx(row["measured"] - 82.31)
    assert (row["seeds"], row["images"], row["empty_predictions"]) == (3, 16, 3)
    assert (row["image_size"], row["epochs"], row["selection"]) == (224, 50, "best_on_validation")
    distance = cell(table, "busi", "busi", "Wave-GMS", "hd95_zero_if_empty")
    assert distance["measured"] == pytest.approx(means["hd95_zero_if_empty"].mean())
    assert distance["published"] == 18.46
    assert distance["difference"] == pytest.approx(distance["measured"] - 18.46)
    honest = cell(table, "busi", "busi", "Wave-GMS", "hd95")
    assert honest["measured"] == pytest.approx(means["hd95"].mean())
    assert honest["measured"] > distance["measured"]
    assert np.isnan(honest["published"]) and np.isnan(honest["difference"])


def test_missing_runs_are_rows_without_measured_values(systems, published):
    table = segmentation_table(systems, published)
    for test_set in ("ham10000", "kvasir_instrument"):
        row = cell(table, test_set, test_set, "Wave-GMS", "dsc")
        assert row[["measured", "sd_seeds", "ci_low", "seeds", "image_size", "epochs"]].isna().all()
        assert row["published"] > 90
    assert np.isnan(cell(table, "bus", "bus", "nnUNet", "dsc")["measured"])


def test_one_seed_has_no_deviation(systems, published):
    row = cell(segmentation_table(systems, published), "bus", "bus", "Wave-GMS", "dsc")
    assert row["seeds"] == 1 and row["measured"] > 0 and np.isnan(row["sd_seeds"])


def test_data_that_the_paper_lacks_are_listed(systems, published):
    table = segmentation_table(systems, published)
    phantom = cell(table, "phantom_a", "phantom_a", "Wave-GMS", "dsc")
    assert phantom["measured"] > 0 and np.isnan(phantom["published"])
    assert cell(table, "my_data", "my_data", "my_net", "iou")["measured"] > 0


@pytest.mark.parametrize("make", [segmentation_table, ablation_table, generalization_table])
def test_what_ran_comes_first_then_what_was_to_then_the_papers(systems, published, make):
    arguments = [{("busi", "gms"): "weights"}] if make is ablation_table else []
    table = make(systems, published, *arguments)
    ran, here = table["measured"].notna(), of_this_run(table)
    assert not (ran & ~here).any() and (here & ~ran).any() == (make is ablation_table)
    assert table.index[ran].max() == ran.sum() - 1 and table.index[here].max() == here.sum() - 1
    assert table["published"][~here & (table["metric"] == "dsc")].notna().all() and not here.all()
    for part in (table[ran], table[~here]):  # the paper's order in each
        places = part["test_set"].drop_duplicates()
        known = [place for place in ("bus", "busi", "ham10000") if place in set(places)]
        assert places.tolist()[: len(known)] == known


def test_nothing_measured_is_left_out_and_the_ablation_has_its_rows_only(systems, published):
    main, ablation = segmentation_table(systems, published), ablation_table(systems, published)
    assert set(systems["variant"]) <= set(main["variant"])
    assert cell(main, "busi", "busi", "Tiny-VAE (trained)", "dsc")["measured"] > 0
    assert cell(ablation, "busi", "busi", "Tiny-VAE (trained)", "dsc")["published"] == 81.05
    assert cell(ablation, "busi", "busi", "Tiny-VAE (trained)", "dsc")["measured"] > 0
    table_4 = published.loc[published["table"] == 4, "variant"]
    assert set(ablation["variant"]) == set(table_4) <= set(VARIANTS)
    # the last row of the ablation is the main row of table 2
    keys = [*CELL, "measured", "published"]
    ours = main[(main["variant"] == "wave_gms") & (main["test_set"] == "busi")][keys]
    theirs = ablation[(ablation["variant"] == "wave_gms") & (ablation["test_set"] == "busi")][keys]
    pd.testing.assert_frame_equal(ours.reset_index(drop=True), theirs.reset_index(drop=True))


def test_distances_in_other_pixels_are_not_compared(tmp_path, published):
    write_scores(tmp_path, image_size=128)
    table = segmentation_table(summarize_systems(read_scores(tmp_path), 100, 0), published)
    distance = cell(table, "busi", "busi", "Wave-GMS", "hd95_zero_if_empty")
    assert distance["measured"] > 0 and distance["published"] == 18.46
    assert np.isnan(distance["difference"])
    assert not np.isnan(cell(table, "busi", "busi", "Wave-GMS", "dsc")["difference"])


def test_a_drop_is_from_the_same_test_images(systems, published):
    table = generalization_table(systems, published)
    means = systems.set_index(CELL)["mean"]
    dice = cell(table, "busi", "bus", "Wave-GMS", "dsc")
    inside = 100 * means["bus", "bus", "wave_gms", "dsc"]
    assert dice["in_domain"] == pytest.approx(inside)
    assert dice["drop"] == pytest.approx(inside - 100 * means["busi", "bus", "wave_gms", "dsc"])
    assert (dice["published"], dice["published_in_domain"]) == (82.10, 90.14)
    assert dice["published_drop"] == pytest.approx(8.04)
    distance = cell(table, "busi", "bus", "Wave-GMS", "hd95_zero_if_empty")
    assert distance["published_drop"] == pytest.approx(15.35 - 5.36)
    assert distance["drop"] == pytest.approx(distance["measured"] - distance["in_domain"])
    other = cell(table, "bus", "busi", "nnUNet", "dsc")
    assert other["published_drop"] == pytest.approx(79.45 - 59.13) and np.isnan(other["drop"])


def test_an_external_test_set_has_no_way_back(tmp_path, published):
    write_scores(tmp_path, train_set="busi", dsc=0.8)
    write_scores(tmp_path, train_set="busi", test_set="stu", dsc=0.6)
    systems = summarize_systems(read_scores(tmp_path), 100, 0)
    table = generalization_table(systems, published)
    assert "stu" not in set(table["train_set"])
    row = cell(table, "busi", "stu", "Wave-GMS", "dsc")
    means = systems.set_index("test_set")["mean"][systems["metric"].eq("dsc").to_numpy()]
    assert row["home"] == pytest.approx(100 * means["busi"])
    assert row["measured"] == pytest.approx(100 * means["stu"])
    assert np.isnan(row["in_domain"]) and np.isnan(row["drop"])
    shown = readable(table).query("`Tested on` == 'STU-Hospital'").iloc[0]
    assert shown["DSC at home"] == f"{row['home']:.2f}"
    assert shown["DSC in domain (drop)"] == "–"


def test_both_directions_are_listed(tmp_path, systems, published):
    write_scores(tmp_path, train_set="phantom_b")
    write_scores(tmp_path, train_set="phantom_a", test_set="phantom_b")
    table = generalization_table(summarize_systems(read_scores(tmp_path), 100, 0), published)
    assert cell(table, "phantom_a", "phantom_b", "Wave-GMS", "hd95")["measured"] > 0
    for metric in METRICS:
        assert np.isnan(cell(table, "phantom_b", "phantom_a", "Wave-GMS", metric)["measured"])
    table = generalization_table(systems, published)
    back = cell(table, "bus", "busi", "Wave-GMS", "dsc")
    assert np.isnan(back["measured"]) and back["published"] == 66.75
    assert not table.duplicated(["train_set", "test_set", "system", "metric"]).any()
    assert (table["train_set"] != table["test_set"]).all()


def test_in_domain_values_of_another_size_are_not_used(tmp_path, published):
    write_scores(tmp_path, train_set="bus", image_size=64)
    write_scores(tmp_path, train_set="busi", test_set="bus", image_size=128)
    table = generalization_table(summarize_systems(read_scores(tmp_path), 100, 0), published)
    row = cell(table, "busi", "bus", "Wave-GMS", "dsc")
    assert row["measured"] > 0 and np.isnan(row["in_domain"]) and np.isnan(row["drop"])


def test_without_a_run_across_the_papers_rows_stay(tmp_path, published):
    write_scores(tmp_path)
    table = generalization_table(summarize_systems(read_scores(tmp_path), 100, 0), published)
    assert len(table) == 52 and table["measured"].isna().all()


def test_significant_differences_are_marked(comparisons, systems, published):
    table = segmentation_table(systems, published)
    marked = mark_significant(table, comparisons)
    pd.testing.assert_frame_equal(marked[list(table)], table)
    p_values = comparisons.set_index(["test_set", "variant", "metric"])["p_holm"]
    unet = cell(marked, "busi", "busi", "UNet", "dsc")
    assert unet["p_holm"] == p_values["busi", "unet", "dsc"] < 0.05
    assert unet["significant"] == "*"
    distance = cell(marked, "busi", "busi", "UNet", "hd95")
    assert (distance["significant"] == "*") == (p_values["busi", "unet", "hd95"] < 0.05)
    for system in ("Wave-GMS", "nnUNet"):
        row = cell(marked, "busi", "busi", system, "dsc")
        assert row["significant"] == "" and np.isnan(row["p_holm"])
    assert (mark_significant(table, comparisons.head(0))["significant"] == "").all()


def test_tables_figures_and_report_need_no_networks():
    """They wait for no import of torch, which takes seconds; nor does the notebook of tables."""
    notebook = nbformat.read(ROOT / "notebooks/08_results.ipynb", as_version=4)
    (cell,) = (cell for cell in notebook.cells if "enter_project()" in cell.source)
    imports = [ast.unparse(part) for part in ast.parse(cell.source).body[:-4]]
    imports += ["import wavegms.report.page, wavegms.results.trace, wavegms.results.metrics, sys"]
    heavy = ("torch", "diffusers", "accelerate", "kornia", "monai")
    code = "\n".join([*imports, f"print([name for name in {heavy} if name in sys.modules])"])
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "[]\n", done.stderr


# what a reader sees


def test_a_reader_sees_missing_runs_seeds_and_stars(comparisons, systems, published):
    table = mark_significant(segmentation_table(systems, published), comparisons)
    shown = readable(table).set_index(["Dataset", "System"])
    ours = cell(table, "busi", "busi", "Wave-GMS", "dsc")
    expected = f"{ours['measured']:.2f} ± {ours['sd_seeds']:.2f}"
    assert shown.loc[("BUSI", "Wave-GMS"), "DSC"] == expected
    assert shown.loc[("BUSI", "Wave-GMS"), "DSC paper"] == "82.31"
    assert (
        shown.loc[("BUSI", "Wave-GMS"), "Setting"]
        == "224 px, 50 epochs, best_on_validation, 3 seeds"
    )
    assert shown.loc[("BUSI", "Wave-GMS"), "Empty"] == "3"
    assert shown.loc[("BUSI", "UNet"), "DSC"].endswith("± – *")
    assert shown.loc[("BUSI", "UNet"), "DSC difference"].startswith("−")
    assert shown.loc[("my_data", "my_net"), "DSC paper"] == "–"
    ours = systems[systems["train_set"] == systems["test_set"]]
    assert len(shown) == len(ours[["test_set", "variant"]].drop_duplicates()) == 6
    assert shown.notna().all(axis=None)


def test_a_reader_sees_no_column_of_a_paper_that_says_nothing(tmp_path, published):
    write_scores(tmp_path, train_set="phantom_a", image_size=64)
    write_scores(tmp_path, train_set="phantom_a", test_set="phantom_b", image_size=64)
    phantoms = summarize_systems(read_scores(tmp_path), 50, 0)
    for make in (segmentation_table, generalization_table):
        assert not [name for name in readable(make(phantoms, published)) if "paper" in name]
    write_scores(tmp_path, train_set="busi", image_size=64)
    shown = readable(segmentation_table(summarize_systems(read_scores(tmp_path), 50, 0), published))
    # pixels of another size are another unit
    assert "HD95 paper" in shown and "HD95 difference" not in shown and "DSC difference" in shown


def test_a_reader_sees_why_a_row_was_not_run(systems, published):
    reasons = {("busi", "tinyvae_mismatch"): "needs weights"}
    shown = readable(ablation_table(systems, published, reasons)).set_index(["Dataset", "System"])
    row = shown.loc[("BUSI", "Tiny-VAE (model mismatch)")]
    assert (row["DSC"], row["DSC paper"], row["Setting"]) == ("not run", "79.02", "needs weights")
    assert list(shown["DSC"] == "not run") == [False] * (len(shown) - 1) + [True]


def test_a_table_of_which_nothing_ran_is_empty(tmp_path, published):
    write_scores(tmp_path)
    table = generalization_table(summarize_systems(read_scores(tmp_path), 50, 0), published)
    shown = readable(table)
    assert shown.empty and list(shown) == ["Trained on", "Tested on", "System"]
    for path in write_table(table, shown, tmp_path / "t", "T.", readable_published(published, 3)):
        assert "82.1" in path.read_text(encoding="utf-8")


@pytest.mark.parametrize("number", [2, 3, 4])
def test_the_papers_tables_are_whole(published, number):
    shown = readable_published(published, number)
    rows = published[published["table"] == number]
    first, *places = shown
    assert shown[first].tolist() == rows["system"].unique().tolist()
    assert first == ("System (DSC / HD95)" if number == 3 else "System (DSC / IoU / HD95)")
    numbers = [
        float(n)
        for cells in shown[places].to_numpy()
        for c in cells
        for n in c.rstrip(" †‡§").split(" / ")
    ]
    assert numbers == rows["value"].tolist()
    assert places[0] == ("BUSI to BUS" if number == 3 else "BUS")


def test_a_reader_sees_where_the_papers_numbers_come_from(tmp_path, published):
    write_scores(tmp_path, variant="unet")
    write_scores(tmp_path, variant="egeunet")
    write_scores(tmp_path)
    table = segmentation_table(summarize_systems(read_scores(tmp_path), 50, 0), published)
    shown = readable(table).set_index("System")
    assert shown["DSC paper"].to_dict() == {
        "UNet": "72.27 †§",
        "EGE-UNet": "75.17 ‡§",
        "Wave-GMS": "82.31",
    }
    assert shown.loc["UNet", "HD95 paper"] == "35.42"
    paper = readable_published(published, 2)
    _, markdown, latex = write_table(table, readable(table), tmp_path / "t", "T.", paper)
    assert explain_signs() in markdown.read_text(encoding="utf-8")
    assert r"72.27 $\dagger$\S " in latex.read_text(encoding="ascii")
    notebook = nbformat.read(ROOT / "notebooks/08_results.ipynb", as_version=4)
    told = [cell.source.replace("\n", " ") for cell in notebook.cells]
    assert any(explain_signs() in text for text in told)


def test_a_reader_sees_drops(systems, published):
    shown = readable(generalization_table(systems, published))
    row = shown.set_index(["Trained on", "Tested on", "System"]).loc[("BUSI", "BUS", "Wave-GMS")]
    assert row["DSC in domain (drop), paper"] == "90.14 (+8.04)"
    assert row["HD95 in domain (drop), paper"] == "5.36 (+9.99)"
    assert "IoU" not in shown


def test_written_tables_can_be_read_back(tmp_path, systems, published):
    table, paper = ablation_table(systems, published), readable_published(published, 4)
    shown = readable(table)
    paths = write_table(table, shown, tmp_path / "new" / "table.4", "95 % of a_b", paper)
    assert [path.name for path in paths] == ["table.4.csv", "table.4.md", "table.4.tex"]
    assert sorted(path.name for path in paths[0].parent.iterdir()) == sorted(
        path.name for path in paths
    )
    read = pd.read_csv(paths[0], keep_default_na=False, na_values={"measured": "", "published": ""})
    assert list(read) == list(table)
    np.testing.assert_allclose(read["measured"], table["measured"], rtol=1e-5)
    np.testing.assert_allclose(read["published"], table["published"], rtol=1e-5)

    caption, grid, beside, papers = paths[1].read_text(encoding="utf-8").split("\n\n")
    assert caption == "95 % of a_b" and "whether run here or not" in beside
    for text, part in ((grid, shown), (papers, paper)):
        lines = text.splitlines()
        cells = [[text.strip() for text in line.strip("|").split("|")] for line in lines]
        assert cells[0] == list(part)
        assert cells[2:] == part.astype(str).to_numpy().tolist()

    latex = paths[2].read_text(encoding="utf-8")
    assert r"\caption{95 \% of a\_b}" in latex and r"best\_on\_validation" in latex
    assert latex.isascii() and r"$\pm$" in latex
    for text, part in zip(latex.split(r"\endlastfoot")[1:], (shown, paper), strict=True):
        rows = [line for line in text.partition(r"\end{")[0].splitlines() if line.endswith(r"\\")]
        assert len(rows) == len(part)
        assert {line.count(" & ") for line in rows} == {part.shape[1] - 1}


def test_the_same_results_give_the_same_bytes(tmp_path, scores, published):
    contents = []
    for name in ("once", "again"):
        table = segmentation_table(summarize_systems(scores, 100, 5), published)
        paths = write_table(table, readable(table), tmp_path / name, "Same.")
        contents.append([path.read_bytes() for path in paths])
    assert contents[0] == contents[1]


def test_comparisons_for_a_reader(tmp_path, comparisons):
    shown = readable_comparisons(comparisons)
    assert len(shown) == len(comparisons) == 4
    for row, text in zip(comparisons.itertuples(), shown.to_dict("records"), strict=True):
        scale = 100 if row.metric == "dsc" else 1
        number = float(text["Difference"].replace("−", "-"))
        assert number == pytest.approx(scale * row.mean_difference, abs=0.005)
        assert (text["Significant"] == "*") == row.significant
        assert text["p"] == ("< 0.001" if row.p < 0.001 else f"{row.p:.3f}")
    # in LaTeX's text a bare < prints as another character
    latex = write_table(comparisons, shown, tmp_path / "comparisons", "C.")[2].read_text("utf-8")
    assert "< 0.001" in set(shown["p"]) and "$<$ 0.001" in latex and "& <" not in latex
    nothing = readable_comparisons(comparisons.head(0))
    assert list(nothing) == list(shown) and nothing.empty


def test_the_csv_of_a_table_has_plain_numbers(tmp_path, systems, published):
    table = segmentation_table(systems, published)
    path = write_table(table, readable(table), tmp_path / "t", "T.")[0]
    rows = pd.read_csv(StringIO(path.read_text(encoding="utf-8")), dtype=str)
    assert rows.query("system == 'UNet' and test_set == 'bus'")["published"].iloc[0] == "81.5"
