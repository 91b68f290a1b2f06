"""The explorer without a browser: what it computes, what it says, and how its widgets react."""

import asyncio
import io
import re
from datetime import UTC, datetime

import numpy as np
import pytest
import torch
from explorer_project import write_model, write_project
from PIL import Image

from wavegms import LatentMappingModel, WaveGMSPipeline
from wavegms.data.dataset import PreparedDataset
from wavegms.errors import InputError
from wavegms.explore.app import Explorer, explore
from wavegms.explore.cases import (
    BANDS,
    Errors,
    Workbench,
    attenuate,
    compare,
    find_models,
    read_upload,
)
from wavegms.explore.panels import (
    model_label,
    show_bands,
    show_case,
    show_depths,
    sort_rows,
    table_lines,
)
from wavegms.explore.pictures import (
    FOUND,
    MISSED,
    MISTAKEN,
    WRONG,
    Picture,
    outline,
    paint_errors,
)
from wavegms.figures.colours import TRUTH
from wavegms.models.mask_network import MaskNetwork
from wavegms.results.metrics import mask_metrics
from wavegms.results.scores import score_split

WHOLE = dict.fromkeys(BANDS, 1.0)


pytestmark = pytest.mark.usefixtures("read_once")


@pytest.fixture(scope="module")
def project(tmp_path_factory, prepared, pipeline):
    """A project with a Wave-GMS and, in its ablation, a U-Net; both untrained."""
    root = tmp_path_factory.mktemp("project")
    write_project(root, prepared, pipeline)
    folder = root / "models/ablation/phantom_a/unet/seed_2333"
    unet = WaveGMSPipeline(network=MaskNetwork("unet"), image_size=32)
    write_model(folder, unet, prepared, variant="unet", selection="best_on_test")
    return root


@pytest.fixture(scope="module")
def models(project):
    return find_models(project / "models")


@pytest.fixture
def bench(project, models):
    bench = Workbench(project / "data/prepared", seed=1)
    bench.open_split("phantom_a", "test")
    bench.open_model(models[0])
    return bench


@pytest.fixture
def case(bench):
    return bench.case(0)


@pytest.fixture
def middle(bench, case):
    """A threshold at which the first prediction is neither empty nor everything."""
    return float(np.median(bench.soft_mask(case)))


def as_file(image, kind="png"):
    file = io.BytesIO()
    image.save(file, kind)
    return file.getvalue()


# What is computed.


def test_models_are_found_with_those_of_the_ablation_last(models):
    assert [model_label(model) for model in models] == [
        "phantom_a: Wave-GMS, 1 epochs, seed 2333",
        "phantom_a: UNet, 1 epochs, seed 2333 (ablation)",
    ]


def test_the_soft_mask_is_the_pipelines_and_the_last_depth(bench, case):
    output = bench.pipeline(Image.fromarray(case.picture))
    np.testing.assert_array_equal(bench.soft_mask(case), output.probabilities[0])
    depths = bench.depths(case)
    assert len(depths) == 4 and not np.allclose(depths[0], depths[3])
    np.testing.assert_array_equal(depths[3], bench.soft_mask(case))


def test_a_network_without_latents_has_no_depths(bench, case, models):
    bench.open_model(models[1])
    assert bench.depths(case) == []
    assert "no supervised depths" in show_depths(bench, case, 0.5)


def test_rows_are_the_scores_of_an_evaluation(bench, middle):
    test_set = PreparedDataset(bench._prepared / "phantom_a", "test")
    soft_masks = np.stack([bench.soft_mask(bench.case(index)) for index in range(2)])
    expected = score_split(soft_masks, test_set, middle)
    rows = list(bench.rows(middle))
    assert [row.pop("index") for row in rows] == [0, 1]
    assert rows == expected[list(rows[0])].to_dict("records")
    assert {"id", "dsc", "iou", "hd95", "hd95_zero_if_empty"} <= rows[0].keys()


def test_a_model_that_samples_draws_the_same_each_time(bench, case):
    certain, encoder = bench.soft_mask(case), bench.pipeline.encoder
    encoder.register_to_config(sample_at_inference=True)
    try:
        drawn = bench.predict(case.pixels, case)
        np.testing.assert_array_equal(bench.predict(case.pixels, case), drawn)
        np.testing.assert_array_equal(bench.depths(case)[3], drawn)
    finally:
        encoder.register_to_config(sample_at_inference=False)
    assert not np.allclose(drawn, certain)


def test_every_pixel_of_the_masks_is_found_wrong_or_missed():
    prediction, truth = torch.rand(2, 16, 16).numpy() > 0.5
    errors = compare(prediction, truth)
    assert (sum(part.astype(int) for part in errors) == (prediction | truth)).all()
    dice = (
        2 * errors.found.sum() / (2 * errors.found.sum() + errors.wrong.sum() + errors.missed.sum())
    )
    assert mask_metrics(prediction, truth).dsc == pytest.approx(dice)


def test_bands_add_up_to_the_image():
    images = torch.rand(2, 3, 16, 24)
    torch.testing.assert_close(attenuate(images, {}), images)
    torch.testing.assert_close(attenuate(images, WHOLE), images)
    nothing = attenuate(images, dict.fromkeys(BANDS, 0.0))
    assert not nothing.any()
    # the transform is linear: away from the limits, parts of an image add up to it
    grey = images * 0.02 + 0.5
    lost = [grey - attenuate(grey, {band: 0.0}) for band in BANDS[:-1]]
    flat = attenuate(grey, dict.fromkeys(BANDS[:-1], 0.0))
    torch.testing.assert_close(sum(lost) + flat, grey)


def test_a_band_is_what_its_name_says():
    rows = torch.tensor([0.4, 0.6]).repeat(8)
    stripes = rows[:, None].expand(1, 3, 16, 16)  # the finest horizontal ones
    for band in BANDS[:-1]:
        left = attenuate(stripes, {band: 0.0})
        expected = torch.full_like(stripes, 0.5) if band == (1, "horizontal") else stripes
        torch.testing.assert_close(left, expected)
    half = attenuate(stripes, {(1, "horizontal"): 0.5})
    torch.testing.assert_close(half, 0.5 + (stripes - 0.5) / 2)


@pytest.mark.parametrize(
    ("mode", "size"), [("L", (300, 200)), ("RGB", (10, 700)), ("1", (1, 1)), ("I;16", (40, 40))]
)
def test_an_uploaded_image_is_seen_as_the_pipeline_sees_it(bench, mode, size):
    image = Image.new(mode, size, 0)
    image.paste(1 if mode == "1" else 180, (0, 0, size[0] // 2, size[1]))
    case = read_upload("mine.tif", as_file(image, "tiff"), 32)
    assert (case.name, case.truth, case.index) == ("mine.tif", None, None)
    assert case.picture.dtype == np.uint8 and max(case.picture.shape[:2]) == min(max(size), 512)
    soft = bench.soft_mask(case)
    assert soft.shape == case.picture.shape[:2]
    if max(size) <= 512:
        np.testing.assert_allclose(soft, bench.pipeline(image).probabilities[0], atol=1e-5)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "empty"),
        (b"no image", "no known image format"),
        (as_file(Image.new("RGB", (64, 64)))[:60], "cannot be read"),
        (as_file(Image.new("F", (8, 8)), "tiff"), "mode F"),
    ],
)
def test_a_broken_upload_is_refused_by_its_name(content, reason):
    with pytest.raises(InputError, match=reason) as caught:
        read_upload("scan.png", content, 32)
    assert "scan.png" in str(caught.value) and "upload" not in str(caught.value)


# What is drawn and said.


def test_outlines_lie_on_the_border_and_tell_truth_from_prediction():
    picture, mask = np.zeros((24, 24, 3), np.uint8), np.zeros((24, 24), bool)
    mask[6:18, 6:18] = True
    truth, prediction = outline(picture, mask, TRUTH), outline(picture, mask)
    assert truth.shape == prediction.shape == (240, 240, 3)
    drawn, dashed = truth.any(-1), prediction.any(-1)
    near = np.abs(np.arange(240) - 59.5) < 2
    assert drawn[60:180, 59:61].all() and not drawn[62:178, 62:178].any()
    assert not drawn[120, ~(near | near[::-1])].any()
    assert (drawn & ~dashed).any() and not (dashed & ~drawn).any()
    assert not outline(picture, mask & False).any()


def test_errors_have_colours_on_a_darkened_picture():
    picture = np.full((1, 5, 3), 100, np.uint8)
    places = [np.arange(5)[None] == place for place in range(4)]
    painted = paint_errors(picture, Errors(*places))[0]
    for pixel, colour in zip(painted, (FOUND, WRONG, MISSED, MISTAKEN), strict=False):
        tint = np.array([int(colour[at : at + 2], 16) for at in (1, 3, 5)])
        np.testing.assert_allclose(pixel, 0.72 * tint + 28, atol=1)
    assert painted[4].tolist() == [55, 55, 55]


def test_names_from_files_cannot_become_html(bench):
    case = read_upload("<i>.png", as_file(Image.new("L", (8, 8))), 32)
    assert "<b>&lt;i&gt;.png</b>" in show_case(bench, case, 0.5).heading
    html = Picture(np.zeros((1, 1, 3), np.uint8), "<b>", 'a " quote').html(10)
    assert "<b>&lt;b&gt;</b>" in html and 'alt="a &quot; quote"' in html


def test_a_case_is_shown_with_scores_and_descriptions(bench, case, middle):
    panel = show_case(bench, case, middle)
    scores = mask_metrics(bench.soft_mask(case) >= middle, case.truth)
    assert f">{scores.dsc:.3f}</b>" in panel.metrics and f">{scores.hd95:.1f}</b>" in panel.metrics
    assert re.findall("<figcaption><b>([^<]*)</b>", panel.pictures) == [
        "Image",
        "Truth",
        "Prediction",
        "Errors",
    ]
    assert panel.pictures.count('alt="') == 4 and 'alt=""' not in panel.pictures
    assert case.name in panel.heading and "has not seen" in panel.heading


@pytest.mark.parametrize(
    ("split", "changes", "words"),
    [
        ("train", {}, "learned from this image"),
        ("val", {}, "choosing the model's epoch"),
        ("test", {"selection": "best_on_test"}, "choosing the model's epoch"),
        ("val", {"selection": "best_on_test"}, "learned from this image"),
        ("test", {"dataset": "busi"}, "trained on busi, another source"),
        ("test", {"data_hash": "0"}, "prepared anew"),
    ],
)
def test_it_is_said_what_the_model_knows_of_an_image(bench, split, changes, words):
    bench.open_split("phantom_a", split)
    card = type(bench.model.card)(**vars(bench.model.card) | changes)
    bench.model = type(bench.model)(bench.model.folder, card)
    assert words in show_case(bench, bench.case(0), 0.5).heading.replace("&#x27;", "'")


def test_a_band_fades_with_its_share(case):
    shown = [show_bands(case, dict.fromkeys(BANDS, share)) for share in (0.0, 0.5, 1.0)]
    assert all(pictures.keys() == set(BANDS) for pictures in shown)
    assert all(len({pictures[band] for pictures in shown}) == 3 for band in BANDS)
    grey = Picture(np.full((16, 16, 3), 128, np.uint8), "", "sub-band fine, horizontal").html(56)
    assert shown[0][1, "horizontal"] == grey


def test_tables_line_up_and_sort_by_every_metric():
    rows = [
        {"id": name, "label": "x", "dsc": a, "iou": a, "hd95": b, "hd95_zero_if_empty": b}
        | {"true_area": a, "predicted_area": b}
        for name, a, b in (("long_name", 0.5, 3.0), ("b", 0.25, 110.5), ("c", 1.0, 0.0))
    ]
    head, lines = table_lines(rows)
    assert {len(line) for line in (head, *lines)} == {len(head)}
    assert lines[1].split("\u00a0")[0] == "b" and "110.5" in lines[1] and " " not in lines[1]
    assert [row["id"] for row in sort_rows(rows, "dsc", False)] == ["b", "long_name", "c"]
    assert [row["id"] for row in sort_rows(rows, "hd95", True)] == ["b", "long_name", "c"]
    assert [row["id"] for row in sort_rows(rows, "id", False)] == ["b", "c", "long_name"]


# How the widgets react.


def play(project, models, scene, dataset="phantom_a"):
    """Runs a scene with an explorer whose table is full."""

    async def run():
        explorer = Explorer(project / "data/prepared", models, dataset, "wave_gms", 1, 0.5)
        await explorer.filling
        await scene(explorer)

    asyncio.run(run())


def give(explorer, name, content):
    """What the browser sends when a person chooses a file."""
    file = {"name": name, "type": "image/png", "size": len(content), "content": memoryview(content)}
    explorer.upload.value = (file | {"last_modified": datetime.now(UTC)},)


def test_everything_follows_threshold_row_model_and_split(project, models):
    async def scene(explorer):
        pictures, rows = explorer.pictures.value, explorer.table.options
        assert explorer.table.value == explorer.image.value == 0
        explorer.threshold.value = 0.0
        assert "100.0 % of area" in explorer.pictures.value != pictures
        await explorer.filling
        assert explorer.table.options != rows
        explorer.table.value = 1
        assert explorer.image.value == explorer.case.index == 1
        assert explorer.case.name in explorer.heading.value
        explorer.next.click()
        assert explorer.table.value == explorer.image.value == 0
        pictures = explorer.pictures.value
        explorer.threshold.value = 0.5
        explorer.model.value = 1
        await explorer.filling
        assert "≥ 0.50" in explorer.pictures.value != pictures
        explorer.split.value = "train"
        assert len(explorer.image.options) == 4 and "learned from" in explorer.heading.value
        await explorer.filling
        assert len(explorer.table.options) == 4 and "4 of 4" in explorer.table_note.value

    play(project, models, scene)


def test_the_table_is_that_of_the_last_threshold(project, models):
    async def scene(explorer):
        explorer.threshold.value = 0.0
        overtaken = explorer.filling
        explorer.threshold.value = 1.0
        await asyncio.wait([overtaken, explorer.filling])
        assert overtaken.cancelled() and not explorer.filling.cancelled()
        assert all(row["predicted_area"] < 1 for row in explorer._rows)
        assert [index for _, index in explorer.table.options] == [0, 1]

    play(project, models, scene)


def test_tabs_are_computed_when_they_are_open(project, models):
    async def scene(explorer):
        assert explorer.depths.value == explorer.filtered.value == ""
        explorer.tabs.selected_index = 1
        assert explorer.depths.value.count("<img") == 4
        explorer.tabs.selected_index = 2
        whole = explorer.filtered.value
        assert "new: 0 px" in whole and "gone: 0 px" in whole
        explorer.bands[BANDS[-1]].value = 0
        assert explorer.filtered.value != whole
        explorer.whole.click()
        assert explorer.bands[BANDS[-1]].value == 100 and explorer.filtered.value == whole

    play(project, models, scene)


def test_no_answer_waits_for_more_than_one_image(project, models, monkeypatch):
    """How soon one comes, in images that go through the network, the same on every processor."""
    images, forward = [], LatentMappingModel.forward

    def counted(self, latents, *rest):
        images.append(len(latents))
        return forward(self, latents, *rest)

    monkeypatch.setattr(LatentMappingModel, "forward", counted)

    async def scene(explorer):
        def cost(widget, value, trait="value"):
            images.clear()
            widget.set_trait(trait, value)
            return sum(images)

        # what the table has scored is kept
        assert cost(explorer.threshold, 0.1) == cost(explorer.image, 1) == 0
        assert cost(explorer.table, 0) == cost(explorer.sort, "id") == 0
        assert cost(explorer.tabs, 1, "selected_index") == cost(explorer.image, 1) == 1
        assert cost(explorer.tabs, 2, "selected_index") == cost(explorer.bands[BANDS[0]], 50) == 1
        assert cost(explorer.tabs, 0, "selected_index") == 0
        assert cost(explorer.split, "train") == 1
        images.clear()
        await explorer.filling
        assert images == [3]

    play(project, models, scene)


def test_an_upload_is_shown_and_left_again(project, models):
    async def scene(explorer):
        own = explorer.pictures.value
        give(explorer, "mine.png", as_file(Image.new("L", (90, 60), 99)))
        assert explorer.case.name == "mine.png" in explorer.heading.value
        assert "Truth" not in explorer.pictures.value and "no true mask" in explorer.metrics.value
        assert explorer.upload.value == () and explorer.table.value is None
        explorer.model.value = 1
        assert explorer.case.name == "mine.png"
        shown = explorer.pictures.value
        give(explorer, "broken.png", b"broken")
        assert "broken.png cannot be read" in explorer.message.value
        assert explorer.pictures.value == shown and explorer.case.name == "mine.png"
        explorer.model.value = 0
        explorer.back.click()
        assert explorer.pictures.value == own and explorer.message.value == ""

    play(project, models, scene)


def test_a_model_that_cannot_be_opened_is_named_and_the_last_one_stays(project, models, tmp_path):
    gone = type(models[0])(tmp_path / "gone", models[0].card)

    async def scene(explorer):
        shown = explorer.pictures.value
        explorer.model.value = 2
        assert "gone does not exist" in explorer.message.value
        assert explorer.model.value == 0 and explorer.pictures.value == shown
        explorer.threshold.value = 0.25
        assert explorer.message.value == ""

    play(project, [*models, gone], scene)


def test_what_is_missing_is_said_with_the_way_out(models, tmp_path):
    with pytest.raises(InputError, match="no trained model: run `make repro`"):
        find_models(tmp_path)
    start = {"variant": "wave_gms", "seed": 1, "threshold": 0.5}
    with pytest.raises(InputError, match="no prepared dataset: run `make repro`"):
        explore(tmp_path, models, dataset="phantom_a", **start)


def test_where_the_asked_dataset_is_not_prepared_another_one_is_shown(project, models):
    """Who has images of their own only runs the notebook as it is, with the sample's name."""

    async def scene(explorer):
        assert (explorer.dataset.value, explorer.dataset.options) == ("phantom_a", ("phantom_a",))

    play(project, models, scene, dataset="busi")
