"""The explorer with masks of several classes: what it computes, draws and says, and refuses."""

import asyncio
import io
import re

import numpy as np
import pandas as pd
import pytest
from explorer_project import write_model, write_project
from medpy.metric import binary
from PIL import Image, ImageColor

from wavegms import WaveGMSPipeline
from wavegms.classes import COLOURS, label_map
from wavegms.data.dataset import PreparedDataset
from wavegms.data.prepare import prepare_dataset
from wavegms.errors import InputError
from wavegms.explore.app import Explorer
from wavegms.explore.cases import (
    BANDS,
    Workbench,
    compare,
    find_models,
    mask_of,
    read_upload,
)
from wavegms.explore.panels import (
    show_case,
    show_depths,
    show_filtered,
    sort_rows,
    table_lines,
)
from wavegms.explore.pictures import MISTAKEN, outline, paint_errors
from wavegms.figures.colours import TRUTH
from wavegms.models.mask_network import ClassesMaskNetwork
from wavegms.phantom.scanner import write_phantoms
from wavegms.results.scores import predict_split, score_split

NAMES = ("mass", "cyst")


pytestmark = pytest.mark.usefixtures("read_once")


@pytest.fixture(scope="module")
def project(tmp_path_factory, prepared, pipeline):
    """A dataset and a Wave-GMS of one class, and of two with a U-Net beside; all untrained."""
    root = tmp_path_factory.mktemp("project")
    write_project(root, prepared, pipeline)
    write_phantoms("phantom_c", root / "raw", count=8, seed=4)
    folder = root / "data/prepared/phantom_c"
    fractions = {"test_fraction": 0.25, "validation_fraction": 0.25, "seed": 0}
    drawn = {"split": "random", "split_folder": root}
    prepare_dataset("phantom_c", root / "raw", folder, image_size=32, **drawn, **fractions)
    parts = {name: getattr(pipeline, name) for name in ("encoder", "mapping", "vae")}
    unet = {"network": ClassesMaskNetwork("unet", classes=2)}
    for variant, own in (("wave_gms", parts), ("unet", unet)):
        named = [f"{name} {colour}" for name, colour in zip(NAMES, COLOURS, strict=False)]
        several = WaveGMSPipeline(**own, image_size=32, classes=named)
        about = {"dataset": "phantom_c", "parameters": {"classes": list(NAMES)}}
        place = root / f"models/phantom_c/{variant}/seed_2333"
        write_model(place, several, folder, variant=variant, **about)
    return root


@pytest.fixture(scope="module")
def models(project):
    """Of one class, then U-Net and Wave-GMS of two."""
    return find_models(project / "models")


@pytest.fixture
def bench(project, models):
    bench = Workbench(project / "data/prepared", seed=1)
    bench.open_split("phantom_c", "test")
    bench.open_model(models[2])
    return bench


@pytest.fixture
def case(bench):
    return bench.case(0)


def rgb(colour):
    return list(ImageColor.getrgb(colour))


# What is computed.


@pytest.mark.parametrize("threshold", [0.2, 0.5, 0.7])
def test_masks_are_those_of_the_pipeline_and_of_its_last_depth(bench, case, threshold):
    output = bench.pipeline(Image.fromarray(case.picture), threshold=threshold)
    soft = bench.soft_mask(case)
    np.testing.assert_array_equal(soft, output.probabilities[0])
    np.testing.assert_array_equal(mask_of(soft, threshold), output.masks[0])
    depths = bench.depths(case)
    assert len(depths) == 4 and not np.allclose(depths[0], soft)
    np.testing.assert_array_equal(depths[3], soft)


def test_rows_are_the_scores_of_an_evaluation(bench):
    test_set = PreparedDataset(bench._prepared / "phantom_c", "test")
    expected = score_split(predict_split(bench.pipeline, test_set), test_set, 0.4)
    rows = pd.DataFrame(bench.rows(0.4)).drop(columns="index")
    assert {"dsc:mass", "iou:cyst"} <= set(rows)
    pd.testing.assert_frame_equal(rows, expected[list(rows)])


def test_pixels_to_be_ignored_are_of_no_class_and_do_not_count(bench, case):
    bench.data = PreparedDataset(bench._prepared / "phantom_c", "test")
    bench.data.masks[0, 0, :4] = 3
    ignored = bench.case(0)
    assert not ignored.truth[:4].any() and not ignored.counted[:4].any()
    np.testing.assert_array_equal(ignored.truth[4:], case.truth[4:])
    wrong = ignored.truth.copy()
    wrong[:4] = 1
    scores = bench.score(wrong, ignored.truth, ignored.counted)
    assert scores["dsc"] == 1 and scores["hd95"] == 0
    # nor are they painted as errors
    found = mask_of(bench.soft_mask(ignored), 0.4) > 0
    assert found[:4].any()
    wrong = found[4:] & ~(ignored.truth[4:] > 0)
    assert f"wrong: {wrong.sum()} px" in show_case(bench, ignored, 0.4).pictures


def test_a_pixel_is_right_wrong_missed_or_of_another_class():
    """Against a table of all pairs, as pandas counts them."""
    prediction, truth = np.random.default_rng(0).integers(0, 4, (2, 16, 16))
    table = pd.crosstab(truth.ravel(), prediction.ravel()).to_numpy()
    errors = compare(prediction, truth)
    right = np.trace(table) - table[0, 0]
    counts = [right, table[0, 1:].sum(), table[1:, 0].sum(), table[1:, 1:].sum() - right]
    assert [int(part.sum()) for part in errors] == counts and min(counts) > 0
    assert (sum(part.astype(int) for part in errors) == (prediction + truth > 0)).all()


# What is drawn and said.


def test_each_class_is_outlined_in_its_colour_and_a_prediction_dashed():
    labels = np.zeros((48, 24), np.uint8)
    labels[4:20, 4:20], labels[28:44, 4:20] = 1, 2
    picture = np.zeros((48, 24, 3), np.uint8)
    truth = outline(picture, labels, TRUTH, COLOURS[:2])
    prediction = outline(picture, labels, classes=COLOURS[:2])
    half = len(truth) // 2
    for drawn in (truth, prediction):
        for part, colour in ((drawn[:half], COLOURS[0]), (drawn[half:], COLOURS[1])):
            painted = np.unique(part[part.any(-1)], axis=0)
            assert painted.tolist() == [rgb(colour)]
    assert (truth.any(-1) & ~prediction.any(-1)).any()
    assert not (prediction.any(-1) & ~truth.any(-1)).any()


def test_a_case_is_shown_with_the_names_and_scores_of_its_classes(bench, case):
    threshold, soft = 0.4, bench.soft_mask(case)
    prediction = label_map(soft, threshold)
    panel = show_case(bench, case, threshold)
    captions = re.findall("<figcaption><b>([^<]*)</b>(.*?)</figcaption>", panel.pictures)
    assert [title for title, _ in captions] == ["Image", "Truth", "Prediction", "Errors"]
    for number, name in enumerate(NAMES, 1):
        for (_, caption), mask in zip(captions[1:3], (case.truth, prediction), strict=True):
            assert f"{name}: {100 * (mask == number).mean():.1f} % of area" in caption
            assert COLOURS[number - 1] in caption
        dice = binary.dc(prediction == number, case.truth == number)
        assert f"{name}: Dice {dice:.3f}, IoU" in panel.metrics
    assert "against the background" in captions[2][1] and MISTAKEN in captions[3][1]
    mistaken = (prediction > 0) & (case.truth > 0) & (prediction != case.truth)
    assert f"another class: {mistaken.sum()} px" in captions[3][1]
    mean = np.mean([binary.dc(prediction == n, case.truth == n) for n in (1, 2)])
    assert f'class="dice">{mean:.3f}</b>' in panel.metrics
    assert f"Dice {mean:.3f}" in show_depths(bench, case, threshold).split("the prediction")[1]
    whole = show_filtered(bench, case, threshold, dict.fromkeys(BANDS, 1.0))
    assert "new: 0 px" in whole and "another class: 0 px" in whole and "mass: " in whole


def test_a_class_that_is_nowhere_has_no_score(bench, case):
    scores = bench.score(
        case.truth * (case.truth == 1), case.truth * (case.truth == 1), case.counted
    )
    assert np.isnan(scores["dsc:cyst"]) and scores["dsc"] == scores["dsc:mass"] == 1


def test_a_model_without_a_mask_to_compare_shows_the_classes_of_an_upload(bench):
    file = io.BytesIO()
    Image.new("L", (90, 60), 99).save(file, "png")
    case = read_upload("mine.png", file.getvalue(), 32)
    assert bench.soft_mask(case).shape == (2, 60, 90)
    panel = show_case(bench, case, 0.3)
    assert "cyst: " in panel.pictures and "no true mask" in panel.metrics


def test_tables_have_the_dice_of_each_class_and_sort_by_it():
    rows = [
        {"id": name, "label": "", "dsc": mean, "iou": mean, "hd95": 1.0, "hd95_zero_if_empty": 1.0}
        | {"true_area": 0.1, "predicted_area": 0.1, "dsc:mass": mass, "dsc:a_long_name_of_one": 0.5}
        for name, mean, mass in (("a", 0.5, 0.25), ("b", 0.75, np.nan), ("c", 0.25, 1.0))
    ]
    head, lines = table_lines(rows)
    assert {len(line) for line in (head, *lines)} == {len(head)}
    assert head.replace("\u00a0", " ").endswith("  Dice mass  Dice a_long_name_of_one")
    assert [line.split("\u00a0")[0] for line in lines if "–" in line] == ["b"]
    assert [row["id"] for row in sort_rows(rows, "dsc:mass", False)] == ["a", "c", "b"]
    assert [row["id"] for row in sort_rows(rows, "dsc:mass", True)] == ["c", "a", "b"]


def test_an_error_of_another_class_is_painted():
    labels = np.array([[1, 2]], np.uint8)
    painted = paint_errors(np.zeros((1, 2, 3), np.uint8), compare(labels, labels[:, ::-1]))
    np.testing.assert_allclose(painted[0], [0.72 * np.array(rgb(MISTAKEN))] * 2, atol=1)


# How the widgets react.


def play(project, models, scene, dataset="phantom_c", variant="wave_gms"):
    async def run():
        explorer = Explorer(project / "data/prepared", models, dataset, variant, 1, 0.5)
        await explorer.filling
        await scene(explorer)

    asyncio.run(run())


def test_a_dataset_comes_with_a_model_that_knows_its_classes(project, models):
    async def scene(explorer):
        assert explorer.model.value == 2 and "Dice of cyst" in dict(explorer.sort.options)
        explorer.sort.value = "dsc:cyst"
        await explorer.filling
        assert len(explorer.table.options) == 2 and "Dice\u00a0cyst" in explorer.table_head.value
        for tab in (1, 2):
            explorer.tabs.selected_index = tab
        assert explorer.depths.value.count("<img") == 4 and "cyst: " in explorer.filtered.value
        explorer.model.value = 1
        assert (
            explorer.message.value == "" and "no supervised depths" not in explorer.filtered.value
        )
        explorer.dataset.value = "phantom_a"
        assert explorer.message.value == "" and explorer.model.value == 0
        assert explorer.sort.value == "dsc" and "cyst" not in explorer.pictures.value
        explorer.sort.value = "id"
        explorer.dataset.value = "phantom_c"
        assert explorer.message.value == "" and explorer.model.value == 2
        assert explorer.sort.value == "id" and "cyst: " in explorer.pictures.value

    play(project, models, scene)


def test_models_and_datasets_of_other_classes_are_refused_and_the_last_ones_stay(project, models):
    async def scene(explorer):
        shown = explorer.pictures.value
        explorer.model.value = 0
        assert "knows one class and phantom_c has mass, cyst: choose" in explorer.message.value
        assert explorer.model.value == 2 and explorer.pictures.value == shown
        explorer.threshold.value = 0.25
        assert explorer.message.value == ""

    play(project, models, scene)

    async def other(explorer):
        explorer.dataset.value = "phantom_c"
        assert "knows one class and phantom_c has mass, cyst: choose" in explorer.message.value
        assert explorer.dataset.value == "phantom_a" and "Truth" in explorer.pictures.value

    play(project, models[:1], other, dataset="phantom_a")
    with pytest.raises(InputError, match="knows one class and phantom_c has mass, cyst: choose"):
        play(project, models[:1], other)
