"""A model's card says of it what is so, and what speaks against it."""

import re
import shutil

import numpy as np
import pandas as pd
import pytest
import yaml
from explorer_project import write_model
from layouts import edit_json
from report_project import RUN, add_audit, add_model, small_pipeline
from scores import invent_scores

from wavegms import InputError
from wavegms.config import EvaluationParams
from wavegms.data.manifest import PAIR_COLUMNS
from wavegms.report.model_card import ScoredModel, read_scored_model, render_model_card
from wavegms.training.card import ModelCard

EVALUATION = EvaluationParams(threshold=0.5, bootstrap_resamples=100)


def card(**changes):
    values = {
        "variant": "wave_gms",
        "dataset": "busi",
        "train_images": 465,
        "selection_images": 52,
        "data_hash": "d" * 64,
        "image_size": 96,
        "seed": 7,
        "epochs": 10,
        "best_epoch": 9,
        "selection": "best_on_validation",
        "selection_dice": 0.7,
        "trainable_parameters": 2_600_668,
        "precision": "bf16",
        "weights": "e" * 64,
        "autoencoder": {"source": "hub", "origin": "madebyollin/taesd"},
        "parameters": {"training": {"batch_size": 12, "augmentation": {"rotate_90": 0.5}}},
        "versions": {"torch": "2.13.0"},
    }
    return ModelCard(**values | changes)


def pairs(*ids):
    """Each of these test images has a twin in training."""
    rows = [("learnt", id, "train", "test", "", "", "near", 0.9, True, False) for id in ids]
    return pd.DataFrame(rows, columns=list(PAIR_COLUMNS)).astype({"crosses_split": bool})


def render(tmp_path, test_sets=(), leaks=(), shared=False, **changes):
    made = card(**changes)
    names = [made.dataset, *test_sets]
    scores = {name: invent_scores(made.dataset, name, seed=made.seed) for name in names}
    model = ScoredModel(tmp_path, made, scores, pairs(*leaks))
    return render_model_card(model, EVALUATION, shared=shared), scores


def table_rows(text, heading):
    part = text.partition(f"## {heading}\n")[2].partition("\n## ")[0]
    lines = [line for line in part.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def first_numbers(cells):
    return [float(re.match(r"[\d.]+", cell).group()) for cell in cells]


def test_scores_are_those_of_the_images(tmp_path):
    text, scores = render(tmp_path, test_sets=["stu"])
    rows = table_rows(text, "Scores")
    assert [row[0] for row in rows] == ["BUSI", "STU-Hospital"]
    for row, table in zip(rows, scores.values(), strict=True):
        assert row[1] == "16" and row[5] == "1"  # images and empty predictions
        means = [100 * table["dsc"].mean(), 100 * table["iou"].mean(), table["hd95"].mean()]
        assert first_numbers(row[2:5]) == pytest.approx(means, abs=0.051)
        for cell in row[2:5]:
            mean, low, high = map(float, re.findall(r"[\d.]+", cell))
            assert low < mean < high
    assert "pixels of 96" in text


def test_of_several_classes_each_has_its_scores(tmp_path):
    assert "Class by class" not in render(tmp_path)[0]
    made, scores = card(parameters={"classes": ["mass", "cyst"]}), invent_scores("busi")
    for name in ("mass", "cyst"):
        other = invent_scores("busi", seed=len(scores.columns))
        for metric in ("dsc", "iou", "hd95", "hd95_zero_if_empty"):
            scores[f"{metric}:{name}"] = other[metric]
    scores.loc[:3, [name for name in scores if name.endswith(":cyst")]] = np.nan
    model = ScoredModel(tmp_path, made, {"busi": scores}, pairs())
    text = render_model_card(model, EVALUATION).split("Class by class")[1]
    rows = table_rows(f"## Scores\n{text}", "Scores")
    assert [row[:3] for row in rows] == [["BUSI", "mass", "16"], ["BUSI", "cyst", "12"]]
    for row in rows:
        columns = [scores[f"{metric}:{row[1]}"].mean() for metric in ("dsc", "iou", "hd95")]
        means = np.array(columns) * (100, 100, 1)
        assert first_numbers(row[3:6]) == pytest.approx(means, abs=0.051)


def test_the_head_is_read_by_the_hub_and_names_no_licence(tmp_path):
    text, scores = render(tmp_path, test_sets=["stu"])
    head = yaml.safe_load(text.split("---\n")[1])
    assert head["library_name"] == "wavegms" and head["pipeline_tag"] == "image-segmentation"
    assert head["datasets"] == ["busi"] and "breast ultrasound" in head["tags"]
    assert "license" not in head
    results = head["model-index"][0]["results"]
    assert [result["dataset"]["name"] for result in results] == ["BUSI", "STU-Hospital"]
    for result, table in zip(results, scores.values(), strict=True):
        found = {metric["name"]: metric["value"] for metric in result["metrics"]}
        assert found["DSC"] == pytest.approx(table["dsc"].mean(), abs=1e-4)


def test_leaking_images_are_counted_and_left_out(tmp_path):
    text, scores = render(tmp_path, leaks=["000003", "000004", "not scored"])
    assert "2 of the 16 test images of BUSI have a twin" in text
    table = scores["busi"]
    twins = table["id"].isin(["000003", "000004"])
    rows = table_rows(text, "Leakage")
    assert [row[:2] for row in rows] == [["all", "16"], ["without a twin", "14"], ["with one", "2"]]
    means = [100 * table[chosen]["dsc"].mean() for chosen in (twins | True, ~twins, twins)]
    assert [first_numbers(row[2:3])[0] for row in rows] == pytest.approx(means, abs=0.051)


def test_without_leaks_it_says_so(tmp_path):
    text, _ = render(tmp_path)
    assert "found no twin of any of the 16 test images of BUSI" in text
    assert table_rows(text, "Leakage") == []


@pytest.mark.parametrize(
    ("changes", "said", "unsaid"),
    [
        ({}, "`madebyollin/taesd` (TAESD by Ollin Boer Bohan, under the MIT", "optimistic"),
        ({"selection": "best_on_test"}, "**These scores are optimistic on BUSI**", "set aside"),
        ({"dataset": "bus"}, "**BUS was given to the one who signed", "| public"),
        ({"dataset": "ham10000"}, "no commercial use", "who signed"),
        ({"dataset": "phantom_a"}, "Its images are simulated", "who signed"),
        ({"dataset": "my_own"}, "| my_own |  | not stated |", "your own"),
        ({"variant": "wave_gms_batch_2"}, "| batch size | 2 |", "| batch size | 12 |"),
        ({"variant": "unet", "autoencoder": None}, "UNet", "autoencoder"),
        ({"autoencoder": {"source": "train", "origin": {}}}, "on the same training", "MIT"),
        ({"autoencoder": {"source": "path", "origin": "/a/b/taesd"}}, "`taesd` (see there", "/a/b"),
        (
            {"autoencoder": {"source": "sd_vae", "origin": "stabilityai/sd-vae-ft-mse"}},
            "(Stability AI's, under the MIT licence)",
            "TAESD",
        ),
        ({"precision": None}, "| seed | 7 |", "| precision"),
    ],
)
def test_what_a_model_is_decides_what_is_said(tmp_path, changes, said, unsaid):
    text, _ = render(tmp_path, **changes)
    assert said in text and unsaid not in text
    assert "**Not for clinical use.**" in text
    assert "choose the licence yourself" in " ".join(text.split())


def test_data_that_may_not_be_passed_on_are_named_if_only_tested_on(tmp_path):
    assert "**BUS was given to the one who signed" in render(tmp_path, test_sets=["bus"])[0]


def test_only_a_shared_model_has_an_onnx_file(tmp_path):
    assert "model.onnx" not in render(tmp_path)[0]
    assert "`images` (batch, 3, 96, 96)" in render(tmp_path, shared=True)[0]


def test_a_model_of_neighbours_says_what_its_channels_are(tmp_path):
    about = {"plane": "axial", "percentiles": [0.5, 99.5], "context": "neighbours"}
    text, _ = render(tmp_path, shared=True, parameters={"volumes": about})
    assert "(batch, 3, 96, 96), the slices below, at and above in [0, 1]" in text
    assert ["volumes", "plane axial, percentiles [0.5, 99.5], context neighbours"] in table_rows(
        text, "Training"
    )
    assert "(batch, 3, 96, 96), RGB in [0, 1]" in render(tmp_path, shared=True)[0]


# found in a project


@pytest.fixture(scope="module")
def original(tmp_path_factory, prepared):
    root = tmp_path_factory.mktemp("described")
    pipeline = small_pipeline()
    add_model(root, pipeline, prepared, "phantom_a", ("phantom_b", "phantom_a"))
    add_model(root, pipeline, prepared, "phantom_a", ("phantom_a",), "ablation", epochs=2)
    add_audit(root, "phantom_a")
    return root


@pytest.fixture
def project(original, tmp_path):
    shutil.copytree(original, tmp_path / "project")
    return tmp_path / "project"


def test_each_model_finds_its_own_scores(original):
    main = read_scored_model(original / "models" / RUN, original)
    row = read_scored_model(original / "models/ablation" / RUN, original)
    assert list(main.scores) == ["phantom_a", "phantom_b"] and list(row.scores) == ["phantom_a"]
    assert set(main.scores["phantom_a"]["epochs"]) == {14} == {main.card.epochs}
    assert set(row.scores["phantom_a"]["epochs"]) == {2} == {row.card.epochs}
    text = render_model_card(main, EVALUATION)
    assert "3 of the 16 test images of Phantom A have a twin" in text


@pytest.mark.parametrize(
    ("path", "broken", "said"),
    [
        (f"results/scores/{RUN}", shutil.rmtree, "measured with the model in"),
        ("results", shutil.rmtree, "measured with the model in"),
        (f"models/{RUN}", shutil.rmtree, "card.json does not exist"),
        (f"models/{RUN}/card.json", lambda p: edit_json(p, "seed", value=1), "measured with the"),
        (
            f"models/{RUN}/card.json",
            lambda p: edit_json(p, "weights", value="0"),
            "are not those that its card.json describes",
        ),
        ("reports/audit/phantom_a.csv", lambda p: p.unlink(), "phantom_a.csv does not exist"),
        ("reports/audit/phantom_a.csv", lambda p: p.write_text("a\n1\n"), "lacks the column id_a"),
    ],
)
def test_what_does_not_belong_together_is_refused(project, path, broken, said, survived):
    broken(project / path)
    with pytest.raises(InputError, match=said):
        read_scored_model(project / "models" / RUN, project)
    survived("inputs")


def test_retrained_weights_do_not_get_the_old_scores(project, prepared):
    folder = project / "models" / RUN
    pipeline = small_pipeline()
    next(pipeline.mapping.parameters()).data += 1
    shutil.rmtree(folder)
    write_model(folder, pipeline, prepared)
    with pytest.raises(InputError, match=r"measured with the model in .*seed_2333, by the hash"):
        read_scored_model(folder, project)
