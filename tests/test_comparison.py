"""Paired comparisons against enumeration, closed testing, SciPy, and laws."""

from itertools import chain, combinations, product

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from scores import invent_scores

from wavegms.errors import InputError
from wavegms.results.statistics import compare_variants, holm, paired_differences, paired_test

p_lists = st.lists(st.floats(0, 1), min_size=1, max_size=6)


def scores_of(**columns):
    """Scores of the given Dice per variant, one seed each, with the same images."""
    tables = [
        invent_scores(variant=name, images=len(values)).assign(dsc=values)
        for name, values in columns.items()
    ]
    return pd.concat(tables, ignore_index=True)


@given(p_lists)
def test_holm_is_the_closed_test_of_bonferroni(p_values):
    """A hypothesis falls if every set that holds it falls by Bonferroni; no step-down here."""
    numbers = range(len(p_values))
    sets = list(chain.from_iterable(combinations(numbers, size + 1) for size in numbers))
    expected = [
        max(min(1, len(s) * min(p_values[k] for k in s)) for s in sets if number in s)
        for number in numbers
    ]
    np.testing.assert_allclose(holm(p_values), expected, rtol=1e-12)


def test_holm_by_hand():
    # sorted 0.005, 0.01, 0.03, 0.04 times 4, 3, 2, 1; the last may not fall below 0.06
    np.testing.assert_allclose(holm([0.01, 0.04, 0.03, 0.005]), [0.03, 0.06, 0.06, 0.02])


@given(p_lists)
def test_holm_never_helps_and_keeps_the_order(p_values):
    corrected = holm(p_values)
    assert (corrected >= p_values).all() and (corrected <= 1).all()
    order = np.argsort(p_values)
    assert (np.diff(corrected[order]) >= 0).all()
    # gentler than Bonferroni
    assert (corrected <= np.minimum(1, np.array(p_values) * len(p_values)) + 1e-15).all()


def test_holm_of_one_and_of_none():
    assert holm([0.2]).tolist() == [0.2]
    assert holm([]).tolist() == []


def test_p_is_the_share_of_sign_flips_as_extreme():
    differences = np.array([0.9, -0.1, 0.4, 0.25, -0.3, 0.75, 0.55])
    ranks = stats.rankdata(abs(differences))
    half = ranks.sum() / 2
    observed = abs(ranks[differences > 0].sum() - half)
    flips = [abs((ranks * flip).sum() - half) for flip in product([0, 1], repeat=7)]
    expected = np.mean([flip >= observed for flip in flips])
    assert paired_test(pd.Series(differences), 100, 0)["p"] == pytest.approx(expected)


def test_the_interval_is_scipys_on_the_differences():
    differences = np.random.default_rng(3).normal(0.02, 0.1, 80)
    result = paired_test(pd.Series(differences), 1000, 7)
    expected = stats.bootstrap(
        (differences,), np.mean, n_resamples=1000, method="percentile", rng=np.random.default_rng(7)
    ).confidence_interval
    assert (result["ci_low"], result["ci_high"]) == (expected.low, expected.high)
    assert result["mean_difference"] == pytest.approx(differences.mean())
    assert result["images"] == 80


@pytest.mark.parametrize("images", [1, 9, 80])
def test_equal_scores_differ_by_chance_alone(images):
    result = paired_test(pd.Series(np.zeros(images)), 100, 0)
    assert result == {"images": images, "mean_difference": 0, "ci_low": 0, "ci_high": 0, "p": 1}


def test_rounding_in_the_mean_over_seeds_is_no_difference():
    seeds = [invent_scores(seed=k).assign(dsc=k / 10) for k in (1, 2, 3)]
    assert np.mean([0.1, 0.2, 0.3]) != 0.2
    scores = pd.concat([*seeds, invent_scores(variant="unet").assign(dsc=0.2)])
    assert (paired_differences(scores, "wave_gms", "unet", "dsc") == 0).all()


def test_one_image_proves_nothing():
    result = paired_test(pd.Series([0.3]), 100, 0)
    assert result == {"images": 1, "mean_difference": 0.3, "ci_low": 0.3, "ci_high": 0.3, "p": 1}


def test_chance_alone_is_called_significant_one_time_in_twenty():
    rng = np.random.default_rng(11)
    p_values = [paired_test(pd.Series(rng.normal(0, 1, 40)), 10, 0)["p"] for _ in range(600)]
    assert np.mean(np.array(p_values) < 0.05) == pytest.approx(0.05, abs=0.027)  # three sigma


shares = st.lists(st.tuples(st.integers(0, 100), st.integers(0, 100)), min_size=2, max_size=7).map(
    lambda pairs: np.array(pairs).T / 100
)


@settings(max_examples=30)
@given(shares)
def test_exchanging_the_variants_turns_the_sign_and_keeps_p(pair):
    scores = scores_of(a=pair[0], b=pair[1])
    forth = compare_variants(scores, "b", resamples=50, seed=0, metrics=["dsc"]).iloc[0]
    back = compare_variants(scores, "a", resamples=50, seed=0, metrics=["dsc"]).iloc[0]
    assert (forth["variant"], forth["reference"]) == (back["reference"], back["variant"])
    assert forth["p"] == back["p"]
    assert forth["mean_difference"] == pytest.approx(-back["mean_difference"], abs=1e-12)
    assert forth["ci_low"] == pytest.approx(-back["ci_high"], abs=1e-12)
    rounding = 1e-12
    assert forth["ci_low"] - rounding <= forth["mean_difference"] <= forth["ci_high"] + rounding


@settings(max_examples=30)
@given(shares, st.integers(-100, 100))
def test_a_constant_added_to_both_changes_nothing(pair, percent):
    constant = percent / 100
    before = paired_differences(scores_of(a=pair[0], b=pair[1]), "a", "b", "dsc")
    after = paired_differences(
        scores_of(a=pair[0] + constant, b=pair[1] + constant), "a", "b", "dsc"
    )
    pd.testing.assert_series_equal(before, after, rtol=0, atol=1e-11)
    # ties must stay ties, or p would change
    assert paired_test(before, 10, 0)["p"] == paired_test(after, 10, 0)["p"]


@settings(max_examples=30)
@given(shares, st.randoms())
def test_the_order_of_the_rows_does_not_matter(pair, random):
    scores = scores_of(a=pair[0], b=pair[1])
    order = list(scores.index)
    random.shuffle(order)
    pd.testing.assert_series_equal(
        paired_differences(scores, "a", "b", "dsc"),
        paired_differences(scores.loc[order], "a", "b", "dsc"),
    )


def test_images_are_averaged_over_seeds_first():
    one, two = (invent_scores(variant="tinyvae", seed=seed) for seed in (1, 2))
    reference = invent_scores()
    scores = pd.concat([one, two, reference], ignore_index=True)
    expected = (one["dsc"] + two["dsc"]) / 2 - reference["dsc"]
    result = paired_differences(scores, "tinyvae", "wave_gms", "dsc")
    np.testing.assert_allclose(result[reference["id"]], expected, atol=1e-12)
    row = compare_variants(scores, "wave_gms", resamples=50, seed=0).iloc[0]
    assert (row["variant_seeds"], row["reference_seeds"], row["images"]) == (2, 1, 16)


@pytest.fixture
def scores():
    tables = [
        invent_scores(data, variant=variant, dsc=dsc, images=40)
        for data in ("busi", "bus")
        for variant, dsc in (("unet", 0.6), ("wave_gms", 0.8), ("tinyvae", 0.8))
    ]
    tables.append(invent_scores("bus", "busi", "unet"))  # no reference there
    return pd.concat(tables, ignore_index=True)


def test_the_table_compares_all_and_corrects_for_all(scores):
    table = compare_variants(scores, "wave_gms", resamples=200, seed=0)
    cells = table[["train_set", "test_set", "metric", "variant"]].itertuples(index=False)
    assert {tuple(cell) for cell in cells} == {
        (data, data, metric, variant)
        for data in ("bus", "busi")
        for metric in ("dsc", "hd95")
        for variant in ("unet", "tinyvae")
    }
    assert len(table) == 8 and (table["reference"] == "wave_gms").all()
    ranked = np.sort(table["p"])
    assert table["p_holm"].min() == pytest.approx(min(1, 8 * ranked[0]))
    assert (table["p_holm"] >= table["p"]).all()
    assert (table["significant"] == (table["p_holm"] < 0.05)).all()
    dice = table[table["metric"] == "dsc"].set_index(["variant", "test_set"])
    assert dice.loc["unet", "significant"].all() and not dice.loc["tinyvae", "significant"].any()
    assert (dice.loc["unet", "ci_high"] < 0).all()
    for row in table.itertuples():
        pair = scores[(scores["train_set"] == row.train_set) & (scores["test_set"] == row.test_set)]
        values = pair.pivot(index="id", columns="variant", values=row.metric)
        difference = values[row.variant] - values["wave_gms"]
        assert row.mean_difference == pytest.approx(difference.mean())
        assert row.p == pytest.approx(stats.wilcoxon(difference.round(12)).pvalue)


def test_more_comparisons_make_it_harder(scores):
    few = compare_variants(scores, "wave_gms", resamples=50, seed=0, metrics=["dsc"])
    many = compare_variants(scores, "wave_gms", resamples=50, seed=0)
    key = ["train_set", "test_set", "metric", "variant"]
    both = few.merge(many, on=key, suffixes=("_few", "_many"))
    assert len(both) == len(few) == 4
    assert (both["p_few"] == both["p_many"]).all()
    assert (both["p_holm_few"] <= both["p_holm_many"]).all()
    assert (both["p_holm_few"] < both["p_holm_many"]).any()


def test_nothing_to_compare_gives_an_empty_table(scores):
    alone = scores[scores["variant"] == "wave_gms"]
    full = compare_variants(scores, "wave_gms", resamples=50, seed=0)
    empty = compare_variants(alone, "wave_gms", resamples=50, seed=0)
    assert empty.empty and list(empty) == list(full)


def test_different_images_are_refused_by_both_names(scores):
    gone = scores[
        (scores["variant"] == "unet") & (scores["id"] == "000003") & (scores["train_set"] == "busi")
    ]
    with pytest.raises(InputError, match=r"unet and wave_gms .*000003") as error:
        compare_variants(scores.drop(gone.index), "wave_gms", resamples=50, seed=0)
    assert "\n" not in str(error.value)


def test_different_sizes_are_refused_by_both_names(scores):
    scores.loc[scores["variant"] == "unet", "image_size"] = 128
    with pytest.raises(InputError, match="unet was scored at 128 pixels and wave_gms at 224"):
        compare_variants(scores, "wave_gms", resamples=50, seed=0)


def test_a_variant_without_scores_is_refused(scores):
    with pytest.raises(InputError, match="no scores of gms"):
        paired_differences(scores, "wave_gms", "gms", "dsc")
