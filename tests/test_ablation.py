"""A row of the ablation: what it leaves behind, and what it says where it cannot be run."""

import shutil
from pathlib import Path

import pytest
from layouts import tree
from runs import make_run

from wavegms import InputError, WaveGMSPipeline
from wavegms.config import EvaluationParams
from wavegms.data.dataset import PreparedDataset
from wavegms.results.ablation import note_not_run, read_not_run, run_row, why_not_run
from wavegms.results.readable import readable
from wavegms.results.scores import predict_split, score_split
from wavegms.results.tables import ablation_table, read_published, read_scores, summarize_systems
from wavegms.training.card import read_card

PUBLISHED = Path(__file__).parents[1] / "results/published"


@pytest.fixture(scope="module")
def row(train_set, validation_set, prepared, training_params):
    """Runs the U-Net's row of phantom_a in a folder; keywords change the recipe."""

    def start(folder, **changes):
        settings = training_params(**{"epochs": 2} | changes)
        run = make_run(folder, train_set, validation_set, settings, variant="unet", seed=5)
        evaluation = EvaluationParams(threshold=0.5, bootstrap_resamples=100)
        scores = folder / "scores/phantom_a/unet/seed_5"
        return run_row(run, PreparedDataset(prepared, "test"), evaluation, scores)

    return start


@pytest.fixture(scope="module")
def done(row, tmp_path_factory):
    """A folder with the row, and what running it gave."""
    folder = tmp_path_factory.mktemp("row")
    return folder, row(folder)


def test_a_row_says_its_budget_everywhere(done):
    folder, outcome = done
    assert outcome.result.history["epoch"].tolist() == [1, 2]
    scores = read_scores(folder / "scores")
    assert set(scores["epochs"]) == {2} and set(scores["seed"]) == {5}
    card = read_card(folder / "published")
    assert card.epochs == card.parameters["training"]["epochs"] == 2


def test_the_scores_are_those_of_the_published_model(done, prepared):
    folder, _ = done
    test_set = PreparedDataset(prepared, "test")
    pipeline = WaveGMSPipeline.from_pretrained(folder / "published")
    expected = score_split(predict_split(pipeline, test_set), test_set, 0.5)
    scores = read_scores(folder / "scores")
    assert scores["id"].tolist() == expected["id"].tolist()
    for metric in ("dsc", "hd95"):
        assert scores[metric].to_numpy() == pytest.approx(expected[metric].to_numpy(), abs=1e-6)


def test_a_row_that_fails_leaves_the_earlier_scores(row, done):
    folder, _ = done
    before = tree(folder / "scores"), tree(folder / "published")
    with pytest.raises(InputError, match="warmup_epochs"):
        row(folder, warmup_epochs=2)
    assert (tree(folder / "scores"), tree(folder / "published")) == before


def test_only_what_is_not_trained_needs_weights(tmp_path):
    checkpoint = tmp_path / "gms/phantom_a.pth"
    assert why_not_run("wave_gms", checkpoint) == ""
    assert str(checkpoint) in why_not_run("tinyvae_mismatch", checkpoint)
    checkpoint.parent.mkdir()
    checkpoint.touch()
    assert why_not_run("tinyvae_mismatch", checkpoint) == ""


def test_the_table_says_why_a_row_was_not_run(done, tmp_path):
    scores = Path(shutil.copytree(done[0] / "scores", tmp_path / "scores"))
    reason = why_not_run("tinyvae_mismatch", tmp_path / "none.pth")
    note_not_run(scores / "phantom_a/tinyvae_mismatch/seed_5", reason)
    not_run = read_not_run(scores)
    assert not_run == {("phantom_a", "tinyvae_mismatch"): reason}
    systems = summarize_systems(read_scores(scores), 100, 0)
    table = readable(ablation_table(systems, read_published(PUBLISHED), not_run))
    line = table[(table["Dataset"] == "Phantom A") & table["System"].str.contains("mismatch")]
    assert line["DSC"].tolist() == ["not run"] and line["Setting"].tolist() == [reason]
    others = table.drop(line.index)
    assert not others["Setting"].str.contains("weights").any()


def test_a_row_replaces_its_reason(row, tmp_path):
    scores = tmp_path / "scores/phantom_a/unet/seed_5"
    note_not_run(scores, "for some reason")
    row(tmp_path)
    assert read_not_run(tmp_path / "scores") == {}
    assert {path.name for path in scores.iterdir()} == {"phantom_a.csv", "phantom_a.json"}
