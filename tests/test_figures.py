"""The pictures show what they are given: the right images, contours, numbers and names."""

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib import pyplot
from matplotlib.colors import to_hex
from matplotlib.contour import QuadContourSet

from wavegms.config import AugmentationParams
from wavegms.figures.cases import (
    show_cases,
    show_comparison,
    show_extremes,
    show_phantoms,
    show_scores,
    show_split,
)
from wavegms.figures.method import show_augmented, show_history, show_reconstructions
from wavegms.figures.style import PREDICTION_STYLE, TRUTH_STYLE, draw_case, new_grid
from wavegms.phantom.scanner import SCANNERS, simulate
from wavegms.results.scores import score_split

# An empty mask has no contour, and matplotlib would say so.
pytestmark = pytest.mark.filterwarnings("error")

TRUTH, PREDICTION = TRUTH_STYLE["colors"], PREDICTION_STYLE["colors"]


def contours(axis):
    """Colour of each contour that is drawn, and its corner points."""
    return {
        to_hex(drawn.get_edgecolor()[0]): np.concatenate(
            [path.vertices for path in drawn.get_paths()]
        )
        for drawn in axis.collections
        if isinstance(drawn, QuadContourSet)
    }


def picture(axis):
    (shown,) = axis.get_images()
    return np.asarray(shown.get_array())


def texts(axis):
    return [text.get_text() for text in axis.texts]


def image_of(dataset, index):
    return dataset.images[index].movedim(0, -1).numpy()


@pytest.fixture
def truths(train_set):
    return train_set.masks[:, 0].numpy().astype(bool)


@pytest.fixture
def predictions(truths):
    """By system, soft masks of four images: the truth, the truth moved, nothing, everything."""
    truth = truths.astype(np.float32)
    return {
        "Perfect": truth,
        "Moved (a little)": np.roll(truth, 3, axis=2) * 0.7,
        "Empty": np.zeros_like(truth),
        "Full": np.ones_like(truth),
    }


def test_contours_run_along_the_masks_border():
    mask = np.zeros((20, 30), bool)
    mask[4:9, 10:22] = True
    _, axes = new_grid(1, 1)
    draw_case(axes[0, 0], np.zeros((20, 30, 3)), mask, ~mask)
    drawn = contours(axes[0, 0])
    assert set(drawn) == {TRUTH, PREDICTION}
    for points in drawn.values():  # half a pixel outside the outermost pixels
        np.testing.assert_allclose(points.min(0), (9.5, 3.5))
        np.testing.assert_allclose(points.max(0), (21.5, 8.5))


@pytest.mark.parametrize("value", [False, True])
def test_masks_without_border_have_no_contour(value):
    mask = np.full((8, 8), value)
    _, axes = new_grid(1, 1)
    draw_case(axes[0, 0], np.zeros((8, 8, 3)), mask, mask)
    assert contours(axes[0, 0]) == {}


def test_cases_are_named_and_outlined(train_set):
    figure = show_cases(train_set, [2, 0, 3], columns=2)
    *shown, rest = figure.axes
    assert [axis.get_title().split("\n")[0] for axis in shown] == [
        train_set.ids[index] for index in (2, 0, 3)
    ]
    for axis, index in zip(shown, (2, 0, 3), strict=True):
        np.testing.assert_array_equal(picture(axis), image_of(train_set, index))
        assert set(contours(axis)) == {TRUTH}
    assert not rest.get_images()


def test_comparison_has_a_row_a_case_and_a_column_a_system(train_set, predictions, truths):
    cases = {train_set.ids[3]: "best", train_set.ids[1]: ""}
    figure = show_comparison(train_set, predictions, cases, threshold=0.6)
    grid = np.array(figure.axes).reshape(2, 2 + len(predictions))
    assert [axis.get_title() for axis in grid[0]] == [
        *("image", "truth", "Perfect", "Moved (a little)", "Empty", "Full")
    ]
    assert not any(axis.get_title() for axis in grid[1])
    assert texts(grid[0, 0]) == [f"best\n{train_set.ids[3]}"]
    assert texts(grid[1, 0]) == [train_set.ids[1]]
    for row, index in zip(grid, (3, 1), strict=True):
        np.testing.assert_array_equal(picture(row[1]), truths[index])
        assert contours(row[0]) == contours(row[1]) == {}
        for axis, soft in zip(row[2:], predictions.values(), strict=True):
            np.testing.assert_array_equal(picture(axis), image_of(train_set, index))
            truth, guess = truths[index], soft[index] >= 0.6
            dice = 2 * (truth & guess).sum() / (truth.sum() + guess.sum())
            assert texts(axis) == [f"{dice:.3f}"]
        np.testing.assert_array_equal(contours(row[2])[TRUTH], contours(row[2])[PREDICTION])
        assert set(contours(row[3])) == {TRUTH, PREDICTION}
        assert set(contours(row[4])) == set(contours(row[5])) == {TRUTH}
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["truth", "prediction"]


def test_comparison_takes_the_threshold(train_set, predictions):
    """The moved masks have 0.7 inside."""
    soft = {"Moved": predictions["Moved (a little)"]}
    for threshold, drawn in ((0.7, {TRUTH, PREDICTION}), (0.71, {TRUTH})):
        figure = show_comparison(train_set, soft, {train_set.ids[0]: "best"}, threshold)
        assert set(contours(figure.axes[2])) == drawn


def test_no_title_of_the_comparison_overlaps_another(train_set, truths):
    soft = truths.astype(np.float32)
    titles = (
        "Wave-GMS (batch size 2)",
        "Wave-GMS (w/o alignment)",
        "Tiny-VAE + MultiRes SFT, 1000 epochs",
    )
    cases = dict.fromkeys(train_set.ids[:2], "median")
    figure = show_comparison(train_set, dict.fromkeys(titles, soft), cases, 0.5)
    figure.draw_without_rendering()
    artists = [axis.title for axis in figure.axes if axis.get_title()]
    artists += [*figure.axes[0].texts, *figure.axes[5].texts, *figure.legends]
    boxes = [artist.get_window_extent() for artist in artists]
    assert len(boxes) == len(titles) + 2 + 2 + 1
    for number, box in enumerate(boxes):
        assert figure.bbox.x0 <= box.x0 and box.x1 <= figure.bbox.x1
        assert figure.bbox.y0 <= box.y0 and box.y1 <= figure.bbox.y1
        assert not any(box.overlaps(other) for other in boxes[:number])


def test_extremes_are_ordered_by_dice(train_set, predictions):
    mixed = np.stack([predictions[name][k] for k, name in enumerate(predictions)])
    scores = score_split(mixed, train_set)
    figure = show_extremes(train_set, mixed, scores, 0.5, count=1)
    ids = scores.sort_values("dsc", ascending=False)["id"].tolist()
    titles = [axis.get_title() for axis in figure.axes]
    assert titles[0] == f"best: {ids[0]}\nDice 1.000"
    assert titles[1].startswith(f"median: {ids[1]}")
    assert titles[2] == f"worst: {ids[3]}\nDice 0.000"
    assert set(contours(figure.axes[2])) == {TRUTH}


def test_phantoms_show_their_lesions():
    phantoms = [simulate(SCANNERS["phantom_a"], 3, index) for index in range(2)]
    figure = show_phantoms(phantoms)
    for axis, phantom in zip(figure.axes, phantoms, strict=True):
        np.testing.assert_array_equal(picture(axis), phantom.image)
        drawn = [part for part in axis.collections if isinstance(part, QuadContourSet)]
        assert len(drawn) == len(phantom.masks)
        assert axis.get_title().startswith(phantom.label)


def test_augmented_images_stand_below_the_originals(train_set):
    settings = AugmentationParams(
        horizontal_flip=0.5,
        vertical_flip=0.5,
        rotate_90=0.5,
        color_jitter=1.0,
        shift_scale_rotate=1.0,
    )
    state = torch.get_rng_state()
    figures = [show_augmented(train_set, settings, seed, count=3) for seed in (1, 1, 2)]
    assert torch.equal(torch.get_rng_state(), state)
    once, again, other = (np.stack([picture(a) for a in f.axes]) for f in figures)
    assert once.shape == (12, 32, 32, 3)
    for index in range(3):
        np.testing.assert_allclose(once[index], image_of(train_set, index) / 255, atol=1e-6)
    np.testing.assert_array_equal(once, again)
    assert np.abs(once[3:] - other[3:]).max() > 0.01
    for below in (once[3:6], once[6:9], once[9:]):
        assert np.abs(below - once[:3]).reshape(3, -1).max(1).min() > 0.01


def test_split_counts_images_and_measures_lesions():
    manifest = pd.DataFrame(
        {
            "split": ["train"] * 3 + ["test"] * 2,
            "label": ["benign", "benign", "malignant", "benign", ""],
            "mask_area": [0.1, 0.2, 0.3, 0.4, 0.5],
        }
    )
    cover, counts = show_split(manifest).axes
    shown = np.concatenate([points.get_offsets()[:, 0] for points in cover.collections])
    np.testing.assert_allclose(np.sort(shown), [10, 20, 30, 40, 50])
    assert [label.get_text() for label in cover.get_yticklabels()] == ["train", "test"]
    names = [text.get_text() for text in counts.get_legend().get_texts()]
    bars = dict(zip(names, (bar.datavalues for bar in counts.containers), strict=True))
    assert set(bars) == {"benign", "malignant", "no class"}
    assert sorted(bars["benign"]) == [1, 2]
    assert sum(map(sum, bars.values())) == 5


def test_reconstructions_stand_below_what_they_are_of(small_vae, train_set):
    figure = show_reconstructions(small_vae, train_set, [1, 3])
    grid = np.array(figure.axes).reshape(4, 2)
    for column, index in zip(grid.T, (1, 3), strict=True):
        image = train_set.images[index][None].float() / 255
        mask = train_set.masks[index][None].float()
        with torch.inference_mode():
            latent = small_vae.encode(image * 2 - 1).latents
            mask_latent = small_vae.encode(mask.repeat(1, 3, 1, 1) * 2 - 1).latents
            back = small_vae.decode(latent).sample / 2 + 0.5
            mask_back = small_vae.decode(mask_latent).sample.mean(1) / 2 + 0.5
        colours = image[0].movedim(0, -1), back[0].clamp(0, 1).movedim(0, -1)
        masks = mask[0, 0], mask_back[0].clamp(0, 1)
        for axis, expected in zip(column, (*colours, *masks), strict=True):
            np.testing.assert_allclose(picture(axis), expected, atol=1e-4)
            assert axis.get_title().endswith(f"\n{train_set.ids[index]}")


def test_history_marks_the_kept_epoch():
    history = pd.DataFrame(
        {
            "epoch": [1, 2, 3],
            "seg": [2.0, 1.5, 1.0],
            "lm": [3.0, 2.0, 1.0],
            "selection_dice": [0.3, 0.8, 0.6],
        }
    )
    losses, dice = show_history(history, best_epoch=2).axes
    names = [text.get_text() for text in losses.get_legend().get_texts()]
    assert names == ["mask (Dice)", "latent mapping (MSE)"], "no alignment was trained"
    np.testing.assert_array_equal(losses.get_lines()[1].get_ydata(), history["lm"])
    curve, mark = dice.get_lines()
    np.testing.assert_array_equal(curve.get_ydata(), history["selection_dice"])
    assert (mark.get_xdata().item(), mark.get_ydata().item()) == (2, 0.8)
    assert dice.get_title(loc="right") == "kept: epoch 2, 0.800"


def test_every_score_is_a_dot():
    scores = pd.DataFrame(
        {
            "label": ["a", "b", "a", ""],
            "dsc": [0.1, 0.5, 0.9, 1.0],
            "iou": [0.05, 0.3, 0.8, 1.0],
            "hd95": [12.0, 5.0, 1.0, 0.0],
        }
    )
    figure = show_scores(scores)
    for axis, column in zip(figure.axes, ("dsc", "iou", "hd95"), strict=True):
        offsets = [part.get_offsets() for part in axis.collections]
        shown = np.concatenate(offsets)[:, 0]
        np.testing.assert_allclose(np.sort(shown), np.sort(scores[column]))


def test_of_several_classes_each_has_its_row_of_scores():
    numbers = np.random.default_rng(0).random((3, 9))
    columns = [f"{metric}{name}" for metric in ("dsc", "iou", "hd95") for name in ("", ":a", ":b")]
    scores = pd.DataFrame(numbers, columns=columns).assign(label="")
    scores.loc[0, "dsc:b"] = scores.loc[0, "iou:b"] = scores.loc[0, "hd95:b"] = np.nan
    axis = show_scores(scores).axes[0]
    assert [text.get_text() for text in axis.get_yticklabels()] == ["mean", "a", "b"]
    shown = [np.sort(part.get_offsets()[:, 0]) for part in axis.collections]
    for found, column in zip(shown, ("dsc", "dsc:a", "dsc:b"), strict=True):
        np.testing.assert_allclose(found, np.sort(scores[column].dropna()))


def test_figures_do_not_stay_open(train_set, predictions):
    show_cases(train_set, [0])
    show_comparison(train_set, predictions, {train_set.ids[0]: ""}, 0.5)
    assert pyplot.get_fignums() == []
