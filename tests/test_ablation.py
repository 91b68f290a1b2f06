"""Rows of the ablation: what they leave behind, and what they say where they cannot be run."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from layouts import tree
from runs import grey_vae, make_run

from wavegms import InputError, WaveGMSPipeline
from wavegms.config import EvaluationParams
from wavegms.data.dataset import PreparedDataset
from wavegms.results import ablation
from wavegms.results.ablation import (
    drop_other_rows,
    note_not_run,
    run_row,
    same_training,
    why_not_run,
)
from wavegms.results.readable import readable
from wavegms.results.scores import predict_split, score_split
from wavegms.results.tables import (
    ablation_table,
    read_not_run,
    read_published,
    read_scores,
    summarize_systems,
)
from wavegms.training.card import read_card

PUBLISHED = Path(__file__).parents[1] / "results/published"
MODELS = "models/ablation/phantom_a"


@pytest.fixture(scope="module")
def row(train_set, validation_set, prepared, training_params):
    """Runs a row of phantom_a in a folder; keywords change the recipe."""

    def start(folder, variant="tinyvae", same_as=None, **changes):
        settings = training_params(**{"epochs": 2} | changes)
        place = f"ablation/phantom_a/{variant}/seed_5"
        run = make_run(
            folder / "checkpoints",
            train_set,
            validation_set,
            settings,
            variant=variant,
            vae=grey_vae(),
            seed=5,
            live=folder / "reports" / place,
            published=folder / "models" / place,
        )
        evaluation = EvaluationParams(threshold=0.5, bootstrap_resamples=100)
        test_set = PreparedDataset(prepared, "test")
        return run_row(run, test_set, evaluation, folder / "results" / place, same_as)

    return start


@pytest.fixture(scope="module")
def original(row, tmp_path_factory):
    """A folder with the row, and what running it gave."""
    folder = tmp_path_factory.mktemp("row")
    return folder, row(folder)


@pytest.fixture
def done(original, tmp_path):
    """A copy of the folder."""
    return Path(shutil.copytree(original[0], tmp_path / "row"))


def test_a_row_says_its_budget_everywhere(original):
    folder, outcome = original
    assert outcome.selection_dice.index.tolist() == [1, 2]
    assert outcome.selection_dice.max() == pytest.approx(outcome.card.selection_dice)
    scores = read_scores(folder / "results/ablation")
    assert set(scores["epochs"]) == {2} and set(scores["seed"]) == {5}
    card = read_card(folder / MODELS / "tinyvae/seed_5")
    assert card.epochs == card.parameters["training"]["epochs"] == 2


def test_the_scores_are_those_of_the_published_model(original, prepared):
    folder, _ = original
    test_set = PreparedDataset(prepared, "test")
    model = folder / MODELS / "tinyvae/seed_5"
    pipeline = WaveGMSPipeline.from_pretrained(model)
    expected = score_split(predict_split(pipeline, test_set), test_set, 0.5, originals=True)
    scores = read_scores(folder / "results/ablation")
    assert scores["id"].tolist() == expected["id"].tolist()
    for metric in ("dsc", "hd95", "hd95_original"):
        assert scores[metric].to_numpy() == pytest.approx(expected[metric].to_numpy(), abs=1e-6)


def test_a_row_that_fails_leaves_the_earlier_one(row, done):
    before = tree(done / "results"), tree(done / "models")
    with pytest.raises(InputError, match="warmup_epochs"):
        row(done, warmup_epochs=2)
    assert (tree(done / "results"), tree(done / "models")) == before


class Trained(Exception):
    pass


def stop(run):
    raise Trained


def test_a_complete_row_is_not_trained_again(row, done, monkeypatch, capsys):
    before = tree(done)
    monkeypatch.setattr(ablation, "train", stop)
    again = row(done)
    assert tree(done) == before and again.card == read_card(done / MODELS / "tinyvae/seed_5")
    assert "tinyvae, seed 5: trained before" in capsys.readouterr().err
    changes = {"weight_decay": 0.5}, {"epochs": 3}, {"precision": "bf16"}
    for change in changes:
        with pytest.raises(Trained):
            row(done, **change)


@pytest.mark.parametrize("broken", ["models", "reports"])
def test_a_row_that_is_not_whole_is_trained_again(row, done, monkeypatch, broken):
    monkeypatch.setattr(ablation, "train", stop)
    shutil.rmtree(done / broken)
    with pytest.raises(Trained):
        row(done)


def test_the_same_training_is_found_by_what_it_is():
    rows = ["tinyvae", "wave_gms_no_alignment", "wave_gms_batch_2", "wave_gms_batch_4"]
    assert same_training("wave_gms", rows, batch_size=4) == "wave_gms_batch_4"
    assert same_training("wave_gms", rows, batch_size=2) == "wave_gms_batch_2"
    assert same_training("wave_gms", rows, batch_size=12) is None
    assert same_training("wave_gms_batch_2", ["wave_gms"], batch_size=2) == "wave_gms"
    assert same_training("tinyvae_mismatch", ["tinyvae"], batch_size=4) is None


def test_the_same_training_is_published_under_its_other_name(row, done, monkeypatch):
    monkeypatch.setattr(ablation, "train", stop)
    row(done, variant="gms", same_as="tinyvae")
    one, other = (read_card(done / MODELS / name / "seed_5") for name in ("tinyvae", "gms"))
    assert other == replace(one, variant="gms")
    scores = read_scores(done / "results/ablation").drop(columns="card")
    parts = [part.drop(columns="variant") for _, part in scores.groupby("variant", sort=False)]
    assert len(parts) == 2 and (parts[0].values == parts[1].values).all()
    row(done, variant="gms", same_as="tinyvae")  # whole, so it is kept


def test_rows_of_a_former_choice_go(tmp_path):
    for place in ("a/seed_1", "a/seed_2", "b/seed_1"):
        (tmp_path / "models" / place).mkdir(parents=True)
    drop_other_rows([tmp_path / "models", tmp_path / "results"], ["a", "c"], [1])
    assert sorted(path.as_posix() for path in tmp_path.rglob("seed_*")) == [
        (tmp_path / "models/a/seed_1").as_posix()
    ]
    assert (tmp_path / "results").is_dir()


def test_only_what_is_not_trained_needs_weights(tmp_path):
    checkpoint = tmp_path / "gms/phantom_a.pth"
    assert why_not_run("wave_gms", checkpoint) == ""
    assert str(checkpoint) in why_not_run("tinyvae_mismatch", checkpoint)
    checkpoint.parent.mkdir()
    checkpoint.touch()
    assert why_not_run("tinyvae_mismatch", checkpoint) == ""


def test_the_table_says_why_a_row_was_not_run(done, tmp_path):
    scores = done / "results/ablation"
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


def test_a_row_replaces_its_reason(row, done):
    scores = done / "results/ablation/phantom_a/tinyvae/seed_5"
    note_not_run(scores, "for some reason")
    row(done)
    assert read_not_run(done / "results/ablation") == {}
    assert {path.name for path in scores.iterdir()} == {"phantom_a.csv", "phantom_a.json"}
