"""From predictions to tables: against plain formulas and against statistics."""

import json

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from medpy.metric import binary

from wavegms.errors import InputError
from wavegms.results.scores import choose_cases, predict_split, score_split, write_scores
from wavegms.results.statistics import METRICS, summarize
from wavegms.results.tables import read_scores
from wavegms.training.card import ModelCard, card_hash


@pytest.fixture
def probabilities(train_set):
    """The truth with noise, and one prediction that is empty."""
    truth = train_set.masks[:, 0].numpy().astype(np.float32)
    noise = np.random.default_rng(0).random(truth.shape, dtype=np.float32)
    soft = 0.6 * truth + 0.45 * noise
    soft[1] = 0.1
    return soft.clip(0, 1)


@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.8])
def test_scores_are_the_formulas_image_by_image(train_set, probabilities, threshold):
    scores = score_split(probabilities, train_set, threshold)
    fields = [*METRICS, "empty_prediction", "true_area", "predicted_area", "data_hash"]
    assert list(scores) == ["id", "label", *fields]
    assert scores["id"].tolist() == train_set.ids
    assert scores["label"].tolist() == train_set.labels
    assert set(scores["data_hash"]) == {train_set.data_hash}
    assert scores["empty_prediction"].tolist() == [False, True, False, False]
    for k, row in scores.iterrows():
        truth, guess = train_set.masks[k, 0].numpy() > 0, probabilities[k] >= threshold
        both, total = (truth & guess).sum(), truth.sum() + guess.sum()
        assert row["dsc"] == pytest.approx(2 * both / total)
        assert row["iou"] == pytest.approx(both / (total - both))
        assert row["true_area"] == pytest.approx(truth.sum() / 32**2)
        assert row["predicted_area"] == pytest.approx(guess.sum() / 32**2)
        if guess.any():
            assert row["hd95"] == row["hd95_zero_if_empty"] == binary.hd95(guess, truth)
        else:
            assert row["hd95_zero_if_empty"] == 0
            assert row["hd95"] == pytest.approx(32 * 2**0.5)


def test_the_threshold_itself_belongs_to_the_mask(train_set):
    half = np.full((4, 32, 32), 0.5, np.float32)
    assert (score_split(half, train_set, 0.5)["predicted_area"] == 1).all()
    assert (score_split(half - 1e-6, train_set, 0.5)["predicted_area"] == 0).all()


def test_the_truth_scores_perfectly(train_set):
    scores = score_split(train_set.masks[:, 0].numpy().astype(np.float32), train_set)
    assert (scores[["dsc", "iou"]] == 1).all(axis=None)
    assert (scores[["hd95", "hd95_zero_if_empty"]] == 0).all(axis=None)
    assert scores["true_area"].tolist() == pytest.approx(train_set.manifest["mask_area"].tolist())


@pytest.mark.parametrize("batch_size", [1, 3, 4, 12])
def test_a_split_is_predicted_in_its_order(untrained, train_set, batch_size):
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = True
    result = predict_split(untrained, train_set, batch_size)
    # whatever it was trained in, it is scored in float32
    assert not (torch.backends.cudnn.allow_tf32 or torch.backends.cuda.matmul.allow_tf32)
    assert result.shape == (4, 32, 32) and result.dtype == np.float32
    for k in range(4):
        alone = untrained.predict(train_set.images[k : k + 1].float() / 255)[0, 0]
        torch.testing.assert_close(torch.from_numpy(result[k]), alone, rtol=0, atol=2e-3)
    assert result.min() >= 0 and result.max() <= 1 and np.ptp(result, axis=0).max() > 0.01


def scores_of(values):
    rng = np.random.default_rng(1)
    return pd.DataFrame({metric: rng.permutation(values) for metric in METRICS})


@pytest.fixture
def scores():
    return scores_of(np.random.default_rng(5).beta(8, 2, size=40))


def test_means_and_deviations_are_pandas(scores):
    table = summarize(scores, 200, seed=0)
    assert list(table) == ["metric", "mean", "sd", "ci_low", "ci_high", "images"]
    assert table["metric"].tolist() == list(METRICS)
    described = scores.describe()
    for row in table.itertuples():
        assert row.mean == pytest.approx(described.loc["mean", row.metric])
        assert row.sd == pytest.approx(described.loc["std", row.metric])
        assert row.images == 40


def test_only_the_metrics_asked_for(scores):
    assert summarize(scores, 100, 0, metrics=["iou"])["metric"].tolist() == ["iou"]


def test_the_interval_is_that_of_statistics():
    """For many images a bootstrap of the mean approaches the normal interval."""
    values = np.random.default_rng(2).beta(8, 2, size=900)
    row = summarize(scores_of(values), 4000, seed=3, metrics=["dsc"]).iloc[0]
    error = values.std(ddof=1) / 30
    assert row["ci_low"] == pytest.approx(values.mean() - 1.96 * error, abs=0.15 * error)
    assert row["ci_high"] == pytest.approx(values.mean() + 1.96 * error, abs=0.15 * error)


@pytest.mark.parametrize("n", [2, 3, 10, 100])
def test_the_interval_contains_the_mean_and_keeps_to_the_range(n):
    for seed in range(5):
        values = np.random.default_rng(seed).beta(5, 0.5, size=n)
        row = summarize(scores_of(values), 300, seed=seed, metrics=["dsc"]).iloc[0]
        assert values.min() <= row["ci_low"] <= row["mean"] <= row["ci_high"] <= values.max()
        assert row["ci_low"] < row["ci_high"]


def test_the_interval_narrows_with_the_root_of_n():
    values = np.random.default_rng(7).beta(8, 2, size=25)
    widths = []
    for copies in (1, 4, 16):
        row = summarize(scores_of(np.tile(values, copies)), 3000, 1, metrics=["dsc"]).iloc[0]
        widths.append(row["ci_high"] - row["ci_low"])
    assert widths[0] / widths[1] == pytest.approx(2, rel=0.1)
    assert widths[1] / widths[2] == pytest.approx(2, rel=0.1)


def test_the_seed_decides_the_interval_alone(scores):
    once, again, other = (summarize(scores, 200, seed) for seed in (4, 4, 5))
    pd.testing.assert_frame_equal(once, again, check_exact=True)
    assert (once["ci_low"] != other["ci_low"]).any()
    pd.testing.assert_frame_equal(once[["mean", "sd"]], other[["mean", "sd"]], check_exact=True)


def test_one_image_has_a_mean_and_no_spread():
    table = summarize(pd.DataFrame({metric: [0.7] for metric in METRICS}), 100, 0)
    assert table["sd"].isna().all() and (table["images"] == 1).all()
    assert (table[["mean", "ci_low", "ci_high"]] == 0.7).all(axis=None)


def test_equal_scores_have_an_interval_without_width():
    row = summarize(scores_of(np.full(6, 0.25)), 100, 0).iloc[0]
    assert (row["mean"], row["sd"], row["ci_low"], row["ci_high"]) == (0.25, 0, 0.25, 0.25)


def dice_of(*values):
    """Scores of images a, b, c, ... as far as choosing cases reads them."""
    return pd.DataFrame({"id": list("abcdefghij")[: len(values)], "dsc": values})


def test_cases_are_chosen_by_the_mean_over_systems():
    """Each system alone would choose others."""
    one, other = dice_of(0.5, 0.2, 0.6, 0.8, 0.9), dice_of(0.0, 0.95, 0.2, 0.85, 0.1)
    assert choose_cases({"one": one}) == {"e": "best", "c": "median", "b": "worst"}
    assert choose_cases({"other": other}) == {"b": "best", "c": "median", "a": "worst"}
    both = choose_cases({"one": one, "other": other})
    assert both == {"d": "best", "e": "median", "a": "worst"}


@given(st.lists(st.integers(0, 4), min_size=1, max_size=10))
def test_chosen_cases_bound_and_halve_the_split(values):
    """Whatever the order of systems, and with ties; twice the same."""
    table, constant = dice_of(*(value / 4 for value in values)), dice_of(*[0.5] * len(values))
    cases = choose_cases({"one": table, "other": constant})
    assert cases == choose_cases({"other": constant, "one": table})
    dice = table.set_index("id")["dsc"]
    by_kind = {why: id for id, why in cases.items()}
    assert list(by_kind) == ["best", "median", "worst"][: len(values)] or len(values) == 2
    assert dice[by_kind["best"]] == dice.max()
    if len(values) > 1:
        assert dice[by_kind["worst"]] == dice.min()
    if len(values) > 2:
        median = dice[by_kind["median"]]
        assert (dice < median).mean() <= 0.5 and (dice > median).mean() <= 0.5
        assert median == np.quantile(dice, 0.5, method="higher")


def test_of_equal_images_the_first_is_the_best_and_the_last_the_worst():
    assert choose_cases({"one": dice_of(*[0.5] * 5)}) == {"a": "best", "c": "median", "e": "worst"}


def test_wanted_cases_are_taken_as_they_are():
    scores = {"one": dice_of(0.1, 0.2, 0.3)}
    assert list(choose_cases(scores, ["c", "a", "c"]).items()) == [("c", ""), ("a", "")]
    with pytest.raises(InputError, match="cases names x, which is no image of the test split"):
        choose_cases(scores, ["a", "x"])


def test_written_scores_are_what_the_results_read(train_set, probabilities, tmp_path):
    card = ModelCard(
        variant="wave_gms",
        dataset="here",
        train_images=4,
        selection_images=2,
        data_hash="0",
        image_size=32,
        seed=7,
        epochs=3,
        best_epoch=2,
        selection="best_on_validation",
        selection_dice=0.5,
        trainable_parameters=1,
        precision="fp32",
        weights="0",
        autoencoder=None,
        parameters={},
        versions={},
    )
    scores = score_split(probabilities, train_set)
    summary = summarize(scores, 100, 0)
    path = tmp_path / "here/wave_gms/seed_7/there.csv"
    write_scores(path, scores, summary, card, test_set="there")
    again = read_scores(tmp_path)
    assert again["id"].tolist() == scores["id"].tolist()
    assert set(again["train_set"]) == {"here"} and set(again["test_set"]) == {"there"}
    assert set(again["card"]) == {card_hash(card)}
    assert set(again["data_hash"]) == {train_set.data_hash}
    assert again[list(METRICS)].to_numpy() == pytest.approx(
        scores[list(METRICS)].to_numpy(), abs=1e-6
    )
    metrics = json.loads(path.with_suffix(".json").read_text())
    assert metrics["images"] == 4 and metrics["empty_predictions"] == 1
    assert metrics["dsc"]["mean"] == pytest.approx(scores["dsc"].mean())
    write_scores(path, scores[:1], summarize(scores[:1], 100, 0), card, test_set="there")
    assert json.loads(path.with_suffix(".json").read_text())["dsc"]["sd"] is None
