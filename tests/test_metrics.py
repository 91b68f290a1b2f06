"""Overlap and boundary metrics against MedPy and against their definitions."""

from dataclasses import asdict

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from medpy.metric import binary
from scipy.ndimage import binary_erosion
from scipy.spatial.distance import cdist

from wavegms.results.metrics import MaskMetrics, class_metrics, mask_metrics, mean_of_classes


@st.composite
def pairs(draw):
    shape = draw(array_shapes(min_dims=2, max_dims=2, max_side=9))
    return draw(arrays(bool, shape)), draw(arrays(bool, shape))


def border(mask):
    """Foreground pixels with a background pixel, or the image's edge, above, below or beside."""
    return np.argwhere(mask & ~binary_erosion(mask))


@given(pairs())
def test_overlap_is_medpys_and_the_definition(pair):
    a, b = pair
    result = mask_metrics(a, b)
    if a.any() or b.any():
        assert (result.dsc, result.iou) == (binary.dc(a, b), binary.jc(a, b))
        assert result.dsc == pytest.approx(2 * (a & b).sum() / (a.sum() + b.sum()))
        assert result.iou == pytest.approx((a & b).sum() / (a | b).sum())
    assert result.iou == pytest.approx(result.dsc / (2 - result.dsc))


@given(pairs())
def test_hd95_is_medpys_and_the_definition(pair):
    a, b = pair
    assume(a.any() and b.any())
    result = mask_metrics(a, b)
    between = cdist(border(a), border(b))
    expected = np.percentile(np.concatenate([between.min(0), between.min(1)]), 95)
    assert result.hd95 == result.hd95_zero_if_empty == binary.hd95(a, b)
    assert result.hd95 == pytest.approx(expected)
    assert result.hd95 <= np.hypot(*a.shape)


@given(pairs(), st.tuples(*(2 * [st.floats(0.01, 10)])), st.floats(0.1, 10))
def test_distances_follow_the_spacing(pair, spacing, factor):
    a, b = pair
    assume(a.any() and b.any())
    between = cdist(border(a) * spacing, border(b) * spacing)
    expected = np.percentile(np.concatenate([between.min(0), between.min(1)]), 95)
    result = mask_metrics(a, b, spacing=spacing)
    assert result.hd95 == pytest.approx(binary.hd95(a, b, voxelspacing=spacing))
    assert result.hd95 == pytest.approx(expected)
    assert result.dsc == mask_metrics(a, b).dsc
    scaled = mask_metrics(a, b, spacing=(factor * spacing[0], factor * spacing[1]))
    assert scaled.hd95 == pytest.approx(factor * result.hd95)
    nothing = mask_metrics(np.zeros_like(b), b, spacing=spacing)
    assert nothing.hd95 == pytest.approx(np.hypot(*np.multiply(b.shape, spacing)))


@given(pairs())
def test_metrics_are_symmetric(pair):
    a, b = pair
    forth, back = asdict(mask_metrics(a, b)), asdict(mask_metrics(b, a))
    assert forth.pop("empty_prediction") == (not a.any())
    assert back.pop("empty_prediction") == (not b.any())
    assert forth == pytest.approx(back)


@given(pairs())
def test_a_mask_matches_itself(pair):
    expected = MaskMetrics(1.0, 1.0, 0.0, 0.0, empty_prediction=not pair[0].any())
    assert mask_metrics(pair[0], pair[0].copy()) == expected


@given(pairs())
def test_better_overlap_ranks_the_same_by_both_measures(pair):
    a, b = pair
    worse = mask_metrics(np.zeros_like(b), b)
    result = mask_metrics(a, b)
    assert (result.dsc >= worse.dsc) == (result.iou >= worse.iou)
    assert 0 <= result.iou <= result.dsc <= 1


def test_a_shifted_square_by_hand():
    truth = np.zeros((20, 30), bool)
    truth[4:14, 5:15] = True
    result = mask_metrics(np.roll(truth, 3, axis=1), truth)
    assert result.dsc == pytest.approx(2 * 70 / 200)
    assert result.iou == pytest.approx(70 / 130)
    assert result.hd95 == 3.0


@pytest.mark.parametrize("swap", [False, True])
def test_one_empty_mask(swap):
    """The reference's 0 rewards it; the diagonal, of a 3-4-5 image here, is the honest worst."""
    filled = np.zeros((30, 40), bool)
    filled[3:9, 4:6] = True
    pair = (filled, np.zeros_like(filled)) if swap else (np.zeros_like(filled), filled)
    assert mask_metrics(*pair) == MaskMetrics(0.0, 0.0, 50.0, 0.0, empty_prediction=not swap)
    far = np.zeros_like(filled)
    far[-1, -1] = True
    corner = np.zeros_like(filled)
    corner[0, 0] = True
    assert mask_metrics(far, corner).hd95 < 50  # no prediction with a pixel is as bad


def test_two_empty_masks_agree():
    empty = np.zeros((6, 8), bool)
    assert mask_metrics(empty, empty) == MaskMetrics(1.0, 1.0, 0.0, 0.0, empty_prediction=True)


def test_integers_count_as_masks():
    rng = np.random.default_rng(0)
    a, b = rng.random((2, 9, 9)) > 0.5
    assert mask_metrics(a.astype(np.uint8) * 255, b.astype(int)) == mask_metrics(a, b)


@pytest.mark.parametrize(
    ("first", "second"), [((4, 5), (5, 4)), ((4, 4), (1, 4)), ((4,), (4,)), ((1, 4, 4), (1, 4, 4))]
)
def test_masks_that_cannot_be_compared_are_refused(first, second):
    with pytest.raises(ValueError, match="cannot be compared") as error:
        mask_metrics(np.ones(first, bool), np.ones(second, bool))
    assert str(first) in str(error.value) and str(second) in str(error.value)


def test_a_row_of_a_table_has_plain_values():
    row = asdict(mask_metrics(np.eye(5, dtype=bool), np.ones((5, 5), bool)))
    assert list(row) == ["dsc", "iou", "hd95", "hd95_zero_if_empty", "empty_prediction"]
    assert {type(value) for value in row.values()} == {float, bool}


@st.composite
def label_maps(draw):
    """Two maps of one shape, and how many classes there are; some may be in neither."""
    classes = draw(st.integers(1, 4))
    shape = draw(array_shapes(min_dims=2, max_dims=2, max_side=7))
    maps = arrays(np.uint8, shape, elements=st.integers(0, classes))
    return draw(maps), draw(maps), classes


@given(label_maps(), st.tuples(*(2 * [st.floats(0.1, 10)])))
def test_classes_are_compared_one_by_one_and_their_mean_is_numpys(maps, spacing):
    a, b, classes = maps
    found = class_metrics(a, b, classes, spacing)
    assert list(found) == [n for n in range(1, classes + 1) if n in a or n in b]
    for number, one in found.items():
        mine, other = a == number, b == number
        assert (one.dsc, one.iou) == (binary.dc(mine, other), binary.jc(mine, other))
        if mine.any() and other.any():
            far = binary.hd95(mine, other, voxelspacing=spacing)
            assert one.hd95 == one.hd95_zero_if_empty == pytest.approx(far)
        else:
            diagonal = np.hypot(*np.multiply(a.shape, spacing))
            assert (one.hd95, one.hd95_zero_if_empty) == (pytest.approx(diagonal), 0)
        assert one.empty_prediction == (not mine.any())
    pixels = (1.0, 1.0)
    assert class_metrics(a, b, classes) == class_metrics(a, b, classes, pixels)
    assert mean_of_classes(a, b, classes) == mean_of_classes(a, b, classes, pixels)
    mean = asdict(mean_of_classes(a, b, classes, spacing))
    assert mean.pop("empty_prediction") == (not a.any())
    if found:
        rows = [asdict(one) for one in found.values()]
        assert mean == pytest.approx({name: np.mean([row[name] for row in rows]) for name in mean})
    else:
        assert mean == {"dsc": 1, "iou": 1, "hd95": 0, "hd95_zero_if_empty": 0}
