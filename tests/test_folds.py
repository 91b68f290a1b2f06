"""Cross-validation: how images are dealt to folds, and who scores which image."""

import asyncio
import json
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from layouts import tree, write_plain
from PIL import Image
from scores import invent_scores, put
from test_audit import write_images
from test_config import VALUES
from test_duplicates import tissue
from test_model_card import render
from test_prepare import run as prepare
from test_splits import grouped, make_cases, seeds

from wavegms import WaveGMSPipeline
from wavegms.config import AutoencoderParams, LossParams, ModelParams, SplitParams, check_params
from wavegms.data.audit import audit_prepared
from wavegms.data.dataset import PreparedDataset
from wavegms.data.manifest import fold_of, leaking_in, load_manifest
from wavegms.data.splits import assign_folds, carve_validation
from wavegms.errors import InputError
from wavegms.explore.app import Explorer
from wavegms.explore.cases import Workbench, find_models
from wavegms.explore.panels import show_case
from wavegms.predict.inputs import Request
from wavegms.predict.run import predict
from wavegms.predict.tta import open_validation
from wavegms.results.folds import FoldedPipeline, open_mean, predict_unseen
from wavegms.results.readable import readable
from wavegms.results.scores import predict_split, score_split, write_scores
from wavegms.results.statistics import METRICS, summarize, summarize_audited, summarize_folds
from wavegms.results.tables import (
    read_published,
    read_scores,
    segmentation_table,
    summarize_systems,
)
from wavegms.run.check import check_dataset
from wavegms.training import autoencoder
from wavegms.training.card import fold_models, read_card
from wavegms.training.publish import publish_folds, publish_model
from wavegms.training.recipe import train
from wavegms.training.run import Run

ROOT = Path(__file__).parent.parent
numbers = st.integers(2, 6)


def deal(cases, folds, seed, fraction=0.0):
    """The folds, leaving aside cases in too few groups."""
    try:
        return assign_folds(cases, folds, validation_fraction=fraction, seed=seed)
    except InputError:
        assume(False)


def held_out(fold):
    return {id for id, part in fold.items() if part == "test"}


@settings(max_examples=50)
@given(grouped, numbers, seeds, st.sampled_from([0, 0.2]), st.randoms(use_true_random=False))
def test_folds_partition_the_images_and_keep_groups_whole(cases, folds, seed, fraction, order):
    dealt = deal(cases, folds, seed, fraction)
    tested = [id for fold in dealt for id in held_out(fold)]
    assert sorted(tested) == sorted(case.id for case in cases) and len(dealt) == folds
    sizes = Counter(case.group for case in cases)
    for fold in dealt:
        assert set(fold) == set(tested)
        for group in sizes:
            assert len({fold[case.id] for case in cases if case.group == group}) == 1
        # validation comes out of what trains, as from any split
        learnt = [case for case in cases if fold[case.id] != "test"]
        drawn = {id for id, part in fold.items() if part == "val"}
        assert drawn == carve_validation(learnt, fraction, seed)
    counts = [len(held_out(fold)) for fold in dealt]
    assert min(counts) > 0 and max(counts) - min(counts) <= max(sizes.values())
    shuffled = cases.copy()
    order.shuffle(shuffled)
    assert deal(shuffled, folds, seed, fraction) == dealt


@given(st.lists(st.sampled_from("abc"), min_size=7, max_size=60), numbers, seeds)
def test_single_images_are_stratified_as_evenly_as_can_be(labels, folds, seed):
    cases = make_cases(list(range(len(labels))), labels)
    dealt = deal(cases, folds, seed)
    for wanted in ({"a"}, {"b"}, {"c"}, set("abc")):
        members = {case.id for case in cases if case.label in wanted}
        counts = [len(members & held_out(fold)) for fold in dealt]
        assert max(counts) - min(counts) <= 1


@pytest.mark.parametrize(
    ("groups", "expected"),
    [
        ([1] * 40, [8, 8, 8, 8, 8]),
        ([5, 3, 3, 2, 2, 1, 1, 1], [6, 6, 6]),
        ([9, 8, 7, 6, 5, 4, 3, 2, 1], [11, 11, 11, 12]),
        ([20, 1, 1, 1, 1, 1, 1], [6, 20]),
        ([4, 4, 4, 3, 3, 3, 2, 2], [4, 4, 5, 6, 6]),
    ],
)
def test_folds_have_the_sizes_of_scikit_learns(groups, expected):
    """What GroupKFold of scikit-learn 1.9.1 gives for groups of these sizes."""
    cases = make_cases([group for group, size in enumerate(groups) for _ in range(size)])
    dealt = assign_folds(cases, len(expected), validation_fraction=0, seed=1)
    assert sorted(len(held_out(fold)) for fold in dealt) == expected


def test_another_seed_gives_other_folds():
    cases = make_cases(list(range(30)))
    first, second = (assign_folds(cases, 3, validation_fraction=0, seed=seed) for seed in (1, 2))
    assert first != second


@pytest.mark.parametrize(
    ("groups", "way_out"), [([0, 1, 1], "at most 2, or to null"), ([0], "null")]
)
def test_more_folds_than_groups_are_refused(groups, way_out):
    with pytest.raises(InputError, match=f"split.folds is 5, but .* set it to {way_out}"):
        assign_folds(make_cases(groups), 5, validation_fraction=0, seed=1)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"folds": 1}, "1 leaves nothing to train on: choose 2 or more, or null"),
        ({"folds": 0}, "0 leaves nothing to train on"),
        ({"folds": True}, "a number belongs here, not true"),
        ({"folds": 5, "method": "published"}, "method published fixes its own test images: set"),
        ({"folds": 5, "method": "official"}, "method official fixes its own test images"),
        ({"folds": 5, "method": "lists"}, "method lists fixes its own test images"),
    ],
)
def test_impossible_folds_are_refused(change, said):
    with pytest.raises(InputError, match=said):
        SplitParams.check(VALUES["split"] | change)
    assert SplitParams.check(VALUES["split"] | {"folds": 5}).folds == 5


def test_minutes_would_give_each_fold_another_budget():
    training = VALUES["training"] | {"epochs": None, "minutes": 5}
    values = VALUES | {"seeds": [1], "split": VALUES["split"] | {"folds": 5}, "training": training}
    with pytest.raises(InputError, match=r"training.minutes gives each of split.folds another"):
        check_params(values)


def test_the_check_counts_over_all_folds(tmp_path):
    raw = write_plain(tmp_path / "raw", 10)
    split = VALUES["split"] | {"folds": 3, "validation_fraction": 0.3}
    values = VALUES | {"split": split, "training": VALUES["training"] | {"batch_size": 4}}
    assert check_dataset("mine", raw, check_params(values)) == 10
    # two folds have seven images to learn from, of which two validate; one has six and two
    values = values | {"training": values["training"] | {"batch_size": 5}}
    with pytest.raises(InputError, match="mine has only 4 images to train on: choose at most 4"):
        check_dataset("mine", raw, check_params(values))


def test_prepared_data_say_where_each_image_is_in_each_fold(tmp_path):
    raw = write_plain(tmp_path / "raw", 10)
    plain = prepare("mine", raw, tmp_path / "plain")
    report = prepare("mine", raw, tmp_path / "out", folds=3)
    assert sorted(report.tested) == [3, 3, 4] and report.data_hash != plain.data_hash
    rows = report.table().set_index("part")["images"]
    assert [rows[f"test, fold {fold}"] for fold in (1, 2, 3)] == list(report.tested)
    manifest = load_manifest(tmp_path / "out")
    seen = []
    for fold in (1, 2, 3):
        train, val, test = (
            PreparedDataset(tmp_path / "out", part, fold=fold) for part in ("train", "val", "test")
        )
        assert Counter([*train.ids, *val.ids, *test.ids]) == Counter(manifest["id"])
        assert set(test.tested_in) == {fold} and len(test) == report.tested[fold - 1]
        assert fold not in (*train.tested_in, *val.tested_in)
        seen += test.ids
        if fold == 1:
            assert report.counts == {"train": len(train), "val": len(val), "test": len(test)}
    assert sorted(seen) == sorted(manifest["id"])
    everything = PreparedDataset.to_test(tmp_path / "out")
    assert everything.ids == manifest["id"].tolist() and everything.folds == 3
    with pytest.raises(InputError, match="3 folds, and no fold 4"):
        PreparedDataset(tmp_path / "out", "test", fold=4)

    again = prepare("mine", raw, tmp_path / "again", folds=3)
    assert again.data_hash == report.data_hash
    # without folds, nothing but the test split, and no trace of folds in the manifest
    assert PreparedDataset.to_test(tmp_path / "plain").ids == [
        row.id for row in load_manifest(tmp_path / "plain").itertuples() if row.split == "test"
    ]
    assert "folds" not in (tmp_path / "plain/manifest.csv").read_text().splitlines()[0]
    external = prepare("mine", raw, tmp_path / "external", folds=3, split="external")
    assert external.tested == () and external.counts["test"] == 10


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("test train train", "test train", "different numbers of folds"),
        ("test train train", "", "different numbers of folds"),
        ("test train train", "test test train", "a folds that does not say train, val or test"),
        ("test train train", "train train train", "a folds that does not say"),
        ("test train train", "test  train", "a folds that does not say"),
    ],
)
def test_a_manifest_that_contradicts_itself_is_refused(tmp_path, old, new, said):
    raw = write_plain(tmp_path / "raw", 9)
    prepare("mine", raw, tmp_path / "out", folds=3, validation_fraction=0)
    path = tmp_path / "out/manifest.csv"
    path.write_text(path.read_text().replace(old, new, 1))
    with pytest.raises(InputError, match=said):
        load_manifest(tmp_path / "out")


@pytest.mark.parametrize("split", ["random", "grouped"])
def test_the_audit_holds_within_each_fold(tmp_path, split):
    """One picture five times, dealt to three folds: `grouped` keeps it in one."""
    images = {f"c{number}": tissue(number) for number in range(7)}
    images |= {f"twin{number}": tissue(100) for number in range(5)}
    raw = write_images(tmp_path / "raw", images)
    prepare("mine", raw, tmp_path / "out", folds=3, split=split, image_size=64)
    manifest = load_manifest(tmp_path / "out")
    fold = dict(zip(manifest["id"], fold_of(manifest), strict=True))
    pairs, summary = audit_prepared(tmp_path / "out")
    assert set(pairs["id_a"]) | set(pairs["id_b"]) == {f"twin{number}" for number in range(5)}
    assert summary.test_images == 12 and summary.exact_pairs == 10
    across = [fold[row.id_a] != fold[row.id_b] for row in pairs.itertuples()]
    assert pairs["crosses_split"].tolist() == across
    twins = [fold[f"twin{number}"] for number in range(5)]
    leaking = [f"twin{n}" for n in range(5) if len(set(twins)) > 1]
    assert summary.leaking_test_images == len(leaking) and summary.crossing_pairs == sum(across)
    scores = invent_scores(images=12).assign(id=manifest["id"])
    assert leaking_in(pairs) == set(leaking)
    audited = summarize_audited(scores, pairs, 100, 1)
    assert (split == "grouped") == (not leaking) == ("leaking" not in set(audited["images_used"]))


# From here on trained models: three folds of eight simulated images


@pytest.fixture(scope="module")
def project(prepared, tmp_path_factory):
    """A project's folders with eight prepared images in three folds, and their autoencoders."""
    root = tmp_path_factory.mktemp("folded")
    data = root / "data/prepared/phantom_a"
    prepare("phantom_a", prepared.parent / "raw", data, folds=3, seed=3)
    settings = sections()["autoencoder"]
    folder = root / "models/autoencoder/phantom_a"
    train_set, test_set = (PreparedDataset(data, part) for part in ("train", "test"))
    vae = autoencoder.obtain_autoencoder(settings, train_set, seed=1)
    vae.save_pretrained(folder)
    quality = (autoencoder.reconstruction_quality(vae, part) for part in (train_set, test_set))
    autoencoder.write_quality(folder, autoencoder.describe_autoencoder(settings, *quality))
    autoencoder.train_other_folds(folder, data, settings, seed=1)
    return root


def sections(**training):
    changed = VALUES["training"] | {"epochs": 1, "batch_size": 2, "warmup_epochs": 0} | training
    small = {"channels": 8, "blocks": 1, "steps": 2, "batch_size": 2, "learning_rate": 0.005}
    return {
        "autoencoder": AutoencoderParams.check(
            VALUES["autoencoder"] | {"min_mask_dice": 0, "train": small}
        ),
        "training": check_params(VALUES | {"training": changed}).training,
        "loss": LossParams.check(VALUES["loss"]),
        "model": ModelParams.check(VALUES["model"]),
    }


@pytest.fixture(scope="module")
def trained(project):
    """The folder of the models of all folds."""
    runs = Run.each_fold("phantom_a", "wave_gms", 1, project=project, **sections())
    results = [train(run) for run in runs]
    assert not runs[0].published.exists()
    publish_folds(runs, results)
    return runs[0].published


def test_no_training_sees_the_test_images_of_its_fold(project, monkeypatch):
    data = project / "data/prepared/phantom_a"
    learnt = []

    def obtain(settings, train_set, *, seed):
        learnt.append(train_set.ids)
        return found

    runs = Run.each_fold("phantom_a", "wave_gms", 1, project=project, **sections())
    found = runs[0].vae
    monkeypatch.setattr(autoencoder, "obtain_autoencoder", obtain)
    aside = project / "aside"
    autoencoder.train_other_folds(aside, data, sections()["autoencoder"], seed=1)
    assert [run.train_set.ids for run in runs[1:]] == learnt
    assert {path.name for path in aside.iterdir()} == {"fold_2", "fold_3"}
    everything = PreparedDataset.to_test(data)
    fold_of = dict(zip(everything.ids, everything.tested_in, strict=True))
    for fold, run in enumerate(runs, start=1):
        used = [*run.train_set.ids, *run.selection_set.ids]
        assert fold not in {fold_of[id] for id in used}
        assert len(used) + sum(one == fold for one in fold_of.values()) == 8
    # three autoencoders, three places
    weights = [run.vae.state_dict()["encoder.layers.0.weight"].sum().item() for run in runs]
    assert len(set(weights)) == 3
    assert len({run.checkpoints for run in runs}) == len({run.published for run in runs}) == 3
    # one autoencoder for all where none was trained here
    monkeypatch.setattr(
        "wavegms.training.run.frozen_autoencoder", lambda _, place, __: (place, None)
    )
    changed = sections() | {
        "autoencoder": sections()["autoencoder"].model_copy(update={"source": "hub"})
    }
    places = Run.each_fold("phantom_a", "wave_gms", 1, project=project, **changed)
    assert {run.vae for run in places} == {project / "models/autoencoder/phantom_a"}


def test_each_image_is_predicted_by_the_model_that_did_not_see_it(project, trained):
    assert fold_models(trained) == [trained, trained / "fold_2", trained / "fold_3"]
    everything = PreparedDataset.to_test(project / "data/prepared/phantom_a")
    soft = predict_unseen(trained, everything)
    for fold, place in enumerate(fold_models(trained), start=1):
        own = PreparedDataset(project / "data/prepared/phantom_a", "test", fold=fold)
        alone = predict_split(WaveGMSPipeline.from_pretrained(place), own)
        np.testing.assert_array_equal(soft[[everything.ids.index(id) for id in own.ids]], alone)
    scores = score_split(soft, everything)
    assert scores["fold"].tolist() == everything.tested_in and scores["id"].is_unique

    path = project / "results/scores/phantom_a/wave_gms/seed_1/phantom_a.csv"
    write_scores(path, scores, summarize(scores, 100, 1), read_card(trained), "phantom_a")
    table = read_scores(project / "results/scores")
    assert set(table["selection"]) == {
        "best_on_validation, 3 folds, each image scored by the model that did not see it"
    }
    assert table["fold"].tolist() == everything.tested_in
    written = json.loads(path.with_suffix(".json").read_text())
    assert written["images"] == 8 and list(written["folds"]) == ["1", "2", "3", "sd"]


def test_other_images_are_predicted_by_the_mean(project, trained, tmp_path, capsys):
    everything = PreparedDataset.to_test(project / "data/prepared/phantom_a")
    pipeline = open_mean(trained.parent)  # the only seed in it
    assert isinstance(pipeline, FoldedPipeline)
    parts = [WaveGMSPipeline.from_pretrained(place) for place in fold_models(trained)]
    alone = [predict_split(part, everything) for part in parts]
    mean = predict_split(pipeline, everything)
    np.testing.assert_allclose(mean, np.mean(alone, axis=0), atol=1e-6)
    assert np.abs(mean - alone[0]).max() > 1e-4  # untrained as they are, they differ

    scores = score_split(mean, everything)
    path = tmp_path / "scores/phantom_a/wave_gms/seed_1/stu.csv"
    write_scores(path, scores, summarize(scores, 100, 1), read_card(trained), "stu")
    said = read_scores(tmp_path / "scores")["selection"][0]
    assert said == "best_on_validation, 3 folds, the mean of their models"

    picture = tmp_path / "in/a.png"
    picture.parent.mkdir()
    Image.fromarray(everything.images[0].permute(1, 2, 0).numpy()).save(picture)
    predict(Request([picture], str(trained), tmp_path / "out"))
    assert "the mean of the models of 3 folds" in capsys.readouterr().out
    found = np.asarray(Image.open(tmp_path / "out/probabilities/a.png")) / 65535
    np.testing.assert_allclose(found, mean[0], atol=1e-4)
    assert json.loads((tmp_path / "out/settings.json").read_text())["folds"] == 3
    with pytest.raises(InputError, match=r"--tta cannot tell .* leave it out, or give one"):
        predict(Request([picture], str(trained), tmp_path / "tta", tta=True))
    # one of them alone is judged by what validated it
    own = open_validation(read_card(trained / "fold_2"), project / "data/prepared")
    first = open_validation(read_card(trained), project / "data/prepared")
    data = project / "data/prepared/phantom_a"
    assert own.ids == PreparedDataset(data, "val", fold=2).ids != first.ids


def test_the_explorer_shows_every_image_by_the_model_that_did_not_see_it(project, trained):
    data = project / "data/prepared"
    everything = PreparedDataset.to_test(data / "phantom_a")
    soft = predict_unseen(trained, everything)
    bench = Workbench(data, 1)
    bench.open_split("phantom_a", "test")
    (model,) = find_models(project / "models")
    bench.open_model(model)
    rows = list(bench.rows(0.5))
    assert [row["id"] for row in rows] == everything.ids
    for place, wanted in enumerate(soft):
        case = bench.case(place)
        np.testing.assert_allclose(bench.soft_mask(case), wanted, atol=1e-5)
        np.testing.assert_allclose(bench.predict(case.pixels, case), wanted, atol=1e-5)
        np.testing.assert_allclose(bench.depths(case)[-1], wanted, atol=1e-5)
        assert "has not seen" in show_case(bench, case, 0.5).heading

    async def choices():
        return Explorer(data, [model], "phantom_a", "wave_gms", 1, 0.5).split.options

    assert ("test (8)", "test") in asyncio.run(choices())
    # one of them alone, as of an ablation, has learned from what it is not tested on
    parameters = {"folds": {"number": 3, "fold": 1}}
    bench.model = replace(model, card=replace(model.card, parameters=parameters))
    said = ["learned from" in show_case(bench, bench.case(n), 0.5).heading for n in range(8)]
    assert said == [fold > 1 for fold in everything.tested_in]
    # the other splits are those of the first fold
    bench.open_split("phantom_a", "val")
    assert bench.data.ids == PreparedDataset(data / "phantom_a", "val").ids


def test_models_that_do_not_belong_together_are_refused(project, trained, tmp_path, survived):
    everything = PreparedDataset.to_test(project / "data/prepared/phantom_a")

    def refused(said, call, change):
        folder = tmp_path / "copy"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(trained, folder)
        change(folder)
        with pytest.raises(InputError, match=said):
            call(folder)
        survived("inputs")

    def score(folder):
        predict_unseen(folder, everything)

    def exchange(folder):
        shutil.rmtree(folder / "fold_2")
        shutil.copytree(folder / "fold_3", folder / "fold_2")

    def of_one(folder):
        card = json.loads((folder / "card.json").read_text())
        del card["parameters"]["folds"]["others"]
        (folder / "card.json").write_text(json.dumps(card))

    refused(
        "fold_3/card.json does not exist", score, lambda folder: shutil.rmtree(folder / "fold_3")
    )
    refused("fold_2 is not the model that the card in .* names", score, exchange)
    refused("fold_2 is not the model that the card in .* names", open_mean, exchange)
    refused("holds 1 models, but its data have 3 folds", score, of_one)
    plain = prepare_plain(project, tmp_path)
    refused("holds 3 models, but its data have 0 folds", lambda f: predict_unseen(f, plain), tree)
    other = prepare_plain(project, tmp_path, folds=3)
    refused("prepared otherwise", lambda folder: predict_unseen(folder, other), tree)


def prepare_plain(project, tmp_path, **changes):
    out = tmp_path / f"other{len(changes)}"
    prepare("mine", write_plain(tmp_path / f"raw{len(changes)}", 9), out, **changes)
    return PreparedDataset.to_test(out)


@pytest.mark.slow
def test_what_is_done_of_an_interrupted_cross_validation_is_not_done_again(project, tmp_path):
    """Killed in the third fold: the first two end at once, bit for bit the same."""
    shutil.copytree(project / "data", tmp_path / "data")
    shutil.copytree(project / "models/autoencoder", tmp_path / "models/autoencoder")

    def make():
        return Run.each_fold("phantom_a", "wave_gms", 1, project=tmp_path, **sections())

    first = [train(run) for run in make()[:2]]
    made = [tree(result.folder / "best") for result in first]
    steps = []
    runs = make()
    results = [train(run, watch=lambda epoch, _, fold=fold: steps.append(fold))
               for fold, run in enumerate(runs, start=1)]  # fmt: skip
    assert set(steps) == {3}
    assert [tree(result.folder / "best") for result in results[:2]] == made
    publish_folds(runs, results)
    card = read_card(runs[0].published)
    assert card.folds["number"] == 3 and card.folds["fold"] == 1 and len(card.folds["others"]) == 2
    assert not list((tmp_path / "checkpoints").rglob("resume.pt"))

    # a model of one split of data in folds, such as the ablation's, says which it took
    run = Run.of("phantom_a", "wave_gms", 1, project=tmp_path, part="ablation", **sections())
    card = publish_model(run, train(run))
    assert card.folds == {"number": 3, "fold": 1}
    scores = invent_scores("phantom_a", images=8).drop(columns=["selection", "card", "train_set"])
    scores = scores.drop(columns=["test_set", "variant", "seed", "image_size", "epochs"])
    write_scores(tmp_path / "s.csv", scores, summarize(scores, 100, 1), card, "phantom_a")
    assert pd.read_csv(tmp_path / "s.csv")["selection"][0].endswith(", fold 1 of 3 alone")


def folded_scores(variant="wave_gms", seed=1):
    scores = invent_scores("mine", variant=variant, seed=seed, images=20)
    return scores.assign(fold=np.arange(20) % 5 + 1)


def test_the_spread_over_folds_is_pandas(tmp_path):
    for variant in ("wave_gms", "unet"):
        for seed in (1, 2):
            put(tmp_path, folded_scores(variant, seed))
    put(tmp_path, invent_scores("busi"))
    scores = read_scores(tmp_path)
    one = scores[(scores["variant"] == "wave_gms") & (scores["train_set"] == "mine")]
    by_fold = summarize_folds(one)
    assert by_fold.index.tolist() == [1, 2, 3, 4, 5, "sd"]
    assert by_fold["images"].tolist()[:5] == [4] * 5
    means = [one[one["fold"] == fold][list(METRICS)].mean() for fold in range(1, 6)]
    expected = pd.DataFrame(means).std(ddof=1)
    np.testing.assert_allclose(by_fold.loc["sd", list(METRICS)].astype(float), expected)

    systems = summarize_systems(scores, 100, 1)
    published = read_published(ROOT / "results/published")
    table = segmentation_table(systems, published)
    row = table[(table["train_set"] == "mine") & (table["variant"] == "wave_gms")]
    row = row.set_index("metric").loc["dsc"]
    assert row["sd_folds"] == pytest.approx(100 * expected["dsc"])
    assert row["measured"] == pytest.approx(100 * one["dsc"].mean()) and row["images"] == 20
    shown = readable(table).set_index(["Dataset", "System"])["DSC SD over folds"]
    assert shown["mine", "Wave-GMS"] == f"{row['sd_folds']:.2f}"
    assert set(shown["BUSI"]) == {"–"}

    # without folds, tables are as they were
    alone = summarize_systems(scores[scores["train_set"] == "busi"], 100, 1)
    assert "sd_folds" not in segmentation_table(alone, published)
    assert not any("folds" in name for name in readable(segmentation_table(alone, published)))


def test_a_card_says_how_many_folds(tmp_path):
    training = {"training": {"batch_size": 12}}
    folds = {"folds": {"number": 5, "fold": 1, "others": ["a", "b", "c", "d"]}}
    text, _ = render(tmp_path, parameters=training | folds)
    assert (
        "5 folds, and as many models trained: each of its images was scored by the one"
        in " ".join(text.split())
    )
    assert "| folds | 5, of which this model is of number 1 |" in text
    text, _ = render(tmp_path, parameters=training | {"folds": {"number": 5, "fold": 1}})
    assert "of which this model is of number 1 and was tested on that alone" in text
    text, _ = render(tmp_path, parameters=training)
    assert "folds" not in text
