"""A number in a table is followed to images, card, weights, data, seed, versions and code."""

import json
import os
import re
import shutil
import socket
import subprocess
from pathlib import Path

import pandas as pd
import pytest
import torch
from chain import TABLES, check_chain
from copies import ROOT
from layouts import edit_json
from runs import make_run
from train_script import SETTINGS

from wavegms import InputError, LatentMappingModel, MultiResolutionEncoder, WaveGMSPipeline
from wavegms.__main__ import main
from wavegms.data.dataset import PreparedDataset
from wavegms.data.prepare import prepare_dataset
from wavegms.files import sha256_of
from wavegms.models.autoencoder import freeze
from wavegms.phantom.scanner import write_phantoms
from wavegms.project import library_versions, run_record
from wavegms.results.readable import readable, readable_originals, write_table
from wavegms.results.scores import predict_split, score_split, write_scores
from wavegms.results.statistics import METRICS, ORIGINAL_METRICS, summarize
from wavegms.results.tables import (
    ablation_table,
    read_published,
    read_scores,
    summarize_systems,
)
from wavegms.results.trace import Cell, trace_cell
from wavegms.training.autoencoder import AutoencoderCard, ReconstructionQuality, build_autoencoder
from wavegms.training.card import card_hash, read_card
from wavegms.training.publish import publish_model
from wavegms.training.recipe import TrainingResult

SEEDS = (1, 2)
INSIDE = Cell("phantom_a", "phantom_a", "wave_gms")
ACROSS = Cell("phantom_a", "phantom_b", "wave_gms")
ABLATED = Cell("phantom_a", "phantom_a", "wave_gms", ablation=True)
RUN = "phantom_a/wave_gms/seed_2"
SETTING = {"seed": 7, "evaluation": {"bootstrap_resamples": 50}}


@pytest.fixture(scope="module")
def original(tmp_path_factory, prepared):
    """A project with all that a pipeline leaves of two trainings and their tests, and an ablation.

    Nothing is trained and no notebook runs: networks are as they begin, reports hold what the trace
    reads. Everything else is written by what the stages call.
    """
    root = tmp_path_factory.mktemp("traced")
    shutil.copytree(prepared, root / "data/prepared/phantom_a")
    write_phantoms("phantom_b", root / "raw", count=8, seed=5)
    prepare_dataset(
        "phantom_b",
        root / "raw",
        root / "data/prepared/phantom_b",
        image_size=32,
        split="random",
        split_folder=root,
        test_fraction=0.5,
        validation_fraction=0.25,
        seed=3,
    )
    shutil.copytree(ROOT / "results/published", root / "results/published")
    for seed in SEEDS:
        for part in ("", "ablation"):
            add_run(root, seed, part)
    published = read_published(root / "results/published")
    for name, make in TABLES.items():
        scores = read_scores(root / "results" / ("ablation" if name == "ablation" else "scores"))
        table = make(scores, published, 50, 7)
        shown = readable_originals(table) if name == "original" else readable(table)
        write_table(table, shown, root / "results/tables" / name, "Tested.")
    write_report(root, "08_results", SETTING)
    return root


def add_run(root, seed, part):
    """One training's model and scores, in the folders of the main runs or of the ablation."""
    torch.manual_seed(seed)
    vae = freeze(build_autoencoder(8, 1))
    networks = WaveGMSPipeline(MultiResolutionEncoder(), LatentMappingModel(), vae, image_size=32)
    for name in ("best", "last"):
        networks.save_pretrained(root / "run" / name)
    place = f"phantom_a/wave_gms/seed_{seed}"
    data = root / "data/prepared"
    quality = ReconstructionQuality(image_psnr=20.0, mask_dice=0.9, images=4)
    run = make_run(
        root / "run",
        PreparedDataset(data / "phantom_a", "train"),
        PreparedDataset(data / "phantom_a", "val"),
        SETTINGS,
        seed=seed,
        autoencoder=AutoencoderCard("train", {}, quality, quality),
        published=root / "models" / part / place,
    )
    history = pd.DataFrame({"epoch": [1]})
    card = publish_model(run, TrainingResult(history, 1, 0.5, 2_600_668, root / "run", "fp32"))
    pipeline = WaveGMSPipeline.from_pretrained(root / "models" / part / place)
    for name in ("phantom_a",) if part else ("phantom_a", "phantom_b"):
        test_set = PreparedDataset(data / name, "test")
        soft = predict_split(pipeline, test_set)
        # half of the pixels are foreground, whatever the untrained networks say
        threshold = float(pd.Series(soft.ravel()).median())
        scores = score_split(soft, test_set, threshold, originals=True)
        path = root / "results" / (part or "scores") / place / f"{name}.csv"
        write_scores(path, scores, summarize(scores, 50, seed), card, test_set=name)
    asked = {"dataset": "phantom_a", "variant": "wave_gms", "seed": seed}
    trained = asked | dict(card.parameters)
    run = f"phantom_a_wave_gms_{seed}"
    if part:
        write_report(root, "04_ablation_phantom_a", trained | {"training": "of the main runs"})
    else:
        write_report(root, f"02_train_{run}", trained)
        write_report(root, f"03_evaluate_{run}", asked)
        across = f"05_domain_generalization_phantom_a_phantom_b_wave_gms_{seed}"
        write_report(root, across, asked | {"test_set": "phantom_b"})


def write_report(root, name, parameters):
    """The part of an executed notebook that a trace reads."""
    metadata = {"papermill": {"parameters": parameters}, "wavegms": run_record(ROOT)}
    path = root / "reports" / f"{name}.ipynb"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({"cells": [], "metadata": metadata}))


def link_or_copy(source, target):
    """Weights are megabytes; a test that changes them replaces the file."""
    return (os.link if source.endswith(".safetensors") else shutil.copy2)(source, target)


@pytest.fixture
def project(original, tmp_path, monkeypatch):
    """A copy to break, as the working directory."""
    shutil.copytree(original, tmp_path / "project", copy_function=link_or_copy)
    (tmp_path / "project/params.yaml").touch()  # by which a command knows the project's folder
    monkeypatch.chdir(tmp_path / "project")
    return tmp_path / "project"


def test_every_number_follows_from_what_it_names(original):
    assert check_chain(original) == 3 * len(METRICS) + 2 * len(ORIGINAL_METRICS)


def test_the_command_prints_the_chain(project, capsys):
    assert main(["trace", "phantom_a", "wave_gms", "--test-set", "phantom_b"]) == 0
    said = capsys.readouterr().out
    cards = [read_card(project / f"models/phantom_a/wave_gms/seed_{seed}") for seed in SEEDS]
    expected = ["results/tables/generalization.csv, line", "reports/08_results.ipynb, git"]
    expected += [f"torch {library_versions()['torch']}", "epoch 1 of 1, best_on_validation, 32 px"]
    for card in cards:
        expected += [card_hash(card), card.weights, card.data_hash, f"seed {card.seed}\n"]
        expected += [f"results/scores/phantom_a/wave_gms/seed_{card.seed}/phantom_b.csv: mean 0."]
        expected += [f"reports/02_train_phantom_a_wave_gms_{card.seed}.ipynb, "]
        name = f"05_domain_generalization_phantom_a_phantom_b_wave_gms_{card.seed}.ipynb"
        expected += [f"reports/{name}, {git_words()}"]
    expected += [sha256_of(project / "data/prepared/phantom_b/manifest.csv")]
    assert [words for words in expected if words not in said] == []


def git_words():
    revision = run_record(ROOT)["revision"]
    return f"git {revision}" if revision else "no git revision"


def test_without_runs_of_its_own_the_ablation_leads_to_the_main_runs(project):
    shutil.rmtree(project / "results/ablation")
    systems = summarize_systems(read_scores(project / "results/scores"), 50, 7)
    table = ablation_table(systems, read_published(project / "results/published"))
    write_table(table, readable(table), project / "results/tables/ablation", "Tested.")
    assert trace_cell(ABLATED, project).runs == trace_cell(INSIDE, project).runs
    assert check_chain(project) == 3 * len(METRICS) + 2 * len(ORIGINAL_METRICS)


# broken links


def edit_table(path, rows, column, value):
    table = pd.read_csv(path, dtype=str, keep_default_na=False)
    table.loc[table.query(rows).index, column] = value
    table.to_csv(path, index=False)


def exchange_models(card):
    """Puts the model of the other seed in the place of one."""
    shutil.rmtree(card.parent)
    shutil.copytree(card.parent.with_name("seed_1"), card.parent)


DICE = "train_set == 'phantom_a' and test_set == 'phantom_a' and metric == 'dsc'"
TABLE = "results/tables/segmentation.csv"
SCORES = f"results/scores/{RUN}/phantom_a.csv"
CARD = f"models/{RUN}/card.json"
TRAINING = "reports/02_train_phantom_a_wave_gms_2.ipynb"
TESTING = "reports/03_evaluate_phantom_a_wave_gms_2.ipynb"
RESULTS = "reports/08_results.ipynb"
PARAMETERS = ("metadata", "papermill", "parameters")


@pytest.mark.parametrize(
    ("path", "broken", "message"),
    [
        (TABLE, lambda p: p.unlink(), "does not exist: run `dvc repro` first"),
        (TABLE, lambda p: p.write_text("a,b\n1,2\n"), "is no table of results"),
        (TABLE, lambda p: p.write_text(""), "is no table of results"),
        (SCORES, lambda p: p.unlink(), "has no scores behind the dsc of wave_gms"),
        (SCORES, lambda p: edit_table(p, "index == 1", "card", "0"), "several values of card"),
        (SCORES, lambda p: edit_table(p, "index >= 0", "card", "0"), "measured with another model"),
        (CARD, lambda p: p.unlink(), "does not exist: run the train stage"),
        (CARD, lambda p: p.write_text("{}"), "is not the card of a trained model"),
        (CARD, lambda p: edit_json(p, "epochs", value=9), "measured with another model"),
        (CARD, lambda p: edit_json(p, "weights", value="0"), "weights in .* are not those"),
        (CARD, exchange_models, "measured with another model"),
        (TRAINING, lambda p: p.unlink(), "does not exist: run `dvc repro` first"),
        (TESTING, lambda p: p.write_text("no notebook"), "does not say which code ran"),
        (TESTING, lambda p: edit_json(p, "metadata", "wavegms", value={}), "does not say which"),
        (RESULTS, lambda p: p.unlink(), "does not exist: run `dvc repro` first"),
    ],
)
def test_a_missing_link_is_named(project, path, broken, message, capsys, survived):
    if path == SCORES and "no scores" in message:
        (project / SCORES.replace("seed_2", "seed_1")).unlink()
    broken(project / path)
    assert main(["trace", "phantom_a", "wave_gms"]) == 1
    said = capsys.readouterr().err
    assert re.search(message, said) and len(said.splitlines()) == 1
    # a card is named by its folder, and scores of which none is left by theirs
    named = f"models/{RUN}" if path == CARD else "results/scores" if path == SCORES else path
    assert named in said
    survived("inputs")


@pytest.mark.parametrize(
    ("path", "broken"),
    [
        (TABLE, lambda p: edit_table(p, DICE, "measured", "99.1")),
        (TABLE, lambda p: edit_table(p, DICE, "ci_low", "1")),
        (SCORES, lambda p: edit_table(p, "index == 1", "dsc", "0.9")),
        ("data/prepared/phantom_b/manifest.csv", lambda p: p.write_text(p.read_text() + "\n")),
        (TRAINING, lambda p: edit_json(p, *PARAMETERS, "loss", value={})),
        (TESTING, lambda p: edit_json(p, "metadata", "wavegms", "versions", value={})),
    ],
)
def test_a_chain_that_does_not_hold_is_found(project, path, broken, survived):
    broken(project / path)
    with pytest.raises((AssertionError, InputError)):
        check_chain(project)
    survived("inputs")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["phantom_a", "unet"], "no measured dsc of unet, trained on phantom_a, on phantom_a"),
        (["busi", "wave_gms"], "no measured dsc of wave_gms, trained on busi"),
        (["phantom_a", "wave_gms", "--metric", "psnr"], "--metric is psnr: choose one of dsc, iou"),
        (
            ["phantom_a", "wave_gms", "--ablation", "--test-set", "phantom_b"],
            "leave out --test-set",
        ),
    ],
)
def test_what_was_not_measured_is_said(project, arguments, message, capsys):
    assert main(["trace", *arguments]) == 1
    assert message in capsys.readouterr().err


# the record of a run


def test_a_record_names_what_is_not_as_committed(tmp_path):
    def git(*command):
        identity = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
        done = subprocess.run(
            ["git", *identity, *command],
            cwd=tmp_path,
            check=True,
            capture_output=True,
            encoding="utf-8",
        )
        return done.stdout.strip()

    for name in ("params.yaml", "dvc.lock", "wavegms/old.py", "README.md"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("1\n")
    assert run_record(tmp_path)["revision"] is None
    git("init", "-q")
    assert run_record(tmp_path)["revision"] is None  # nothing is committed
    git("add", "-A")
    git("commit", "-qm", "one")
    record = run_record(tmp_path)
    assert record["revision"] == git("rev-parse", "HEAD") and len(record["revision"]) == 40
    assert record["changed"] == []
    for name in ("dvc.lock", "README.md", "notes.txt", "wavegms/old.py", "wavegms/a new ä.py"):
        (tmp_path / name).write_text("2\n")
    assert run_record(tmp_path)["changed"] == ["wavegms/a new ä.py", "wavegms/old.py"]
    git("add", "wavegms/old.py")
    assert run_record(tmp_path)["changed"] == ["wavegms/a new ä.py", "wavegms/old.py"]


def test_the_repository_around_a_project_is_not_its_own(tmp_path):
    subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
    (tmp_path / "file").touch()
    for command in (["add", "-A"], ["commit", "-qm", "around"]):
        identity = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
        subprocess.run(["git", *identity, *command], cwd=tmp_path, check=True)
    (tmp_path / "project").mkdir()
    (tmp_path / "project/params.yaml").touch()
    assert run_record(tmp_path / "project")["revision"] is None


def test_without_git_there_is_no_revision(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    record = run_record(ROOT)
    assert record["revision"] is None and record["changed"] == []
    assert record["versions"] == library_versions()


def test_a_record_names_neither_machine_nor_user():
    text = json.dumps(run_record(ROOT))
    assert not {str(Path.home()), str(ROOT), socket.gethostname()} & set(re.split(r'[" ]', text))
    assert all(not Path(name).is_absolute() for name in run_record(ROOT)["changed"])


# runs on real images, kept in git without their models


@pytest.mark.parametrize("split", ["published", "grouped"])
def test_numbers_of_the_proof_follow_from_its_images(split):
    folder = ROOT / "results/proof/busi_96" / split
    followed = 0
    for name in ("segmentation", "generalization", "ablation"):
        table = pd.read_csv(folder / f"{name}.csv", keep_default_na=False, dtype=str)
        for row in table[table["measured"] != ""].to_dict("records"):
            scores = folder / "scores" / f"{row['variant']}_on_{row['test_set']}.csv"
            images = pd.read_csv(scores)
            share = 1 if row["metric"].startswith("hd95") else 100
            assert f"{share * images[row['metric']].mean():.6g}" == row["measured"]
            assert (len(images), set(images["seed"])) == (int(row["images"]), {2333})
            followed += 1
    assert followed >= 12


def test_the_mean_of_the_longer_proof_follows_from_its_images():
    folder = ROOT / "results/proof/busi_128"
    images, summary = pd.read_csv(folder / "per_image.csv"), pd.read_csv(folder / "summary.csv")
    for row in summary.itertuples():
        assert images[row.metric].mean() == pytest.approx(row.mean, abs=5e-5)
        assert len(images) == row.images
