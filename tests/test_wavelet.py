"""The Haar transform against PyWavelets, which defines it."""

import numpy as np
import pytest
import pywt
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from wavegms.models.wavelet import SUB_BANDS, haar_dwt, haar_idwt, multi_level_bands

ELEMENTS = st.floats(-1e3, 1e3, width=64)
HALF_SIDES = st.integers(1, 12)


@st.composite
def images(draw):
    """float64, two leading dimensions, any even height and width."""
    height, width = 2 * draw(HALF_SIDES), 2 * draw(HALF_SIDES)
    shape = (draw(st.integers(1, 2)), draw(st.integers(1, 3)), height, width)
    return draw(arrays(np.float64, shape, elements=ELEMENTS))


@given(images())
def test_one_level_is_pywavelets_dwt2(image):
    bands = haar_dwt(torch.from_numpy(image))
    ll, details = pywt.dwt2(image, "haar", axes=(-2, -1))
    assert len(bands) == len(SUB_BANDS) == 4
    for band, expected in zip(bands, (ll, *details), strict=True):
        assert band.dtype == torch.float64
        np.testing.assert_allclose(band.numpy(), expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("levels", [1, 2, 3, 4])
@given(data=st.data())
def test_every_level_is_pywavelets_wavedec2(levels, data):
    sides = [2**levels * data.draw(st.integers(1, 4)) for _ in range(2)]
    seed = data.draw(st.integers(0, 2**32 - 1))
    image = np.random.default_rng(seed).random((2, 3, *sides))
    ours = multi_level_bands(torch.from_numpy(image), levels)
    theirs = pywt.wavedec2(image, "haar", level=levels, axes=(-2, -1))
    assert len(ours) == levels
    for level, bands in enumerate(ours, start=1):
        # wavedec2 lists the coarsest details first and keeps LL of the last level only
        details = theirs[levels + 1 - level]
        ll = pywt.wavedec2(image, "haar", level=level, axes=(-2, -1))[0]
        assert bands.shape == (2, 12, sides[0] // 2**level, sides[1] // 2**level)
        for position, expected in enumerate((ll, *details)):
            np.testing.assert_allclose(
                bands[:, 3 * position : 3 * position + 3].numpy(), expected / 2**level, atol=1e-12
            )


@given(images())
def test_the_inverse_gives_the_image_back(image):
    x = torch.from_numpy(image)
    torch.testing.assert_close(haar_idwt(*haar_dwt(x)), x, rtol=0, atol=1e-10)


@given(images())
def test_the_inverse_is_pywavelets_idwt2(image):
    bands = [part for part in haar_dwt(torch.from_numpy(image[..., ::-1].copy()))]
    bands = [bands[2], bands[0], bands[3], bands[1]]  # any four bands, not only those of an image
    ll, *details = (band.numpy() for band in bands)
    expected = pywt.idwt2((ll, tuple(details)), "haar", axes=(-2, -1))
    np.testing.assert_allclose(haar_idwt(*bands).numpy(), expected, rtol=0, atol=1e-10)


@given(images())
def test_energy_is_preserved(image):
    energy = sum(float(band.square().sum()) for band in haar_dwt(torch.from_numpy(image)))
    assert energy == pytest.approx(float((image**2).sum()), rel=1e-12)


@pytest.mark.parametrize("sides", [(7, 8), (8, 7), (1, 2), (5, 5)])
def test_odd_sides_are_refused(sides):
    for leading in ((1, 3), ()):
        with pytest.raises(ValueError, match=rf"even sides, not \({sides[0]}, {sides[1]}\)$"):
            haar_dwt(torch.zeros(*leading, *sides))


def test_a_side_that_turns_odd_at_a_later_level_is_refused():
    assert len(multi_level_bands(torch.zeros(1, 3, 12, 8), 2)) == 2
    with pytest.raises(ValueError, match="even sides"):
        multi_level_bands(torch.zeros(1, 3, 12, 8), 3)


def test_channels_are_sub_bands_of_rgb_in_order():
    """Stripes put all energy of one colour into one known sub-band."""
    stripe = torch.tensor([1.0, 0.0]).repeat(8)
    image = torch.zeros(1, 3, 16, 16)
    image[:, 0] = stripe[:, None]  # red changes from row to row: horizontal detail
    image[:, 1] = stripe[None, :]  # green from column to column: vertical detail
    image[:, 2] = (stripe[:, None] - stripe[None, :]).abs()  # blue is a chessboard: diagonal
    first = multi_level_bands(image, 1)[0][0]
    mean_size = first.abs().mean((1, 2))
    expected = torch.zeros(4, 3)
    expected[0] = 0.5  # LL / 2 is the mean of 2 x 2 pixels
    expected[1, 0] = expected[2, 1] = expected[3, 2] = 0.5
    torch.testing.assert_close(mean_size, expected.flatten())


@given(st.integers(0, 2**32 - 1), st.booleans())
def test_the_division_keeps_ll_the_local_mean_and_within_the_image_range(seed, extreme):
    image = torch.rand((1, 3, 16, 24), generator=torch.Generator().manual_seed(seed))
    image = image.round() if extreme else image
    for level, bands in enumerate(multi_level_bands(image), start=1):
        ll, details = bands[:, :3], bands[:, 3:]
        torch.testing.assert_close(ll, torch.nn.functional.avg_pool2d(image, 2**level))
        assert ll.min() >= 0 and ll.max() <= 1 + 1e-6
        assert details.abs().max() <= 0.5 + 1e-6


def test_a_white_image_stays_white_at_every_level():
    for bands in multi_level_bands(torch.ones(1, 3, 32, 32)):
        torch.testing.assert_close(bands[:, :3], torch.ones_like(bands[:, :3]))
        torch.testing.assert_close(bands[:, 3:], torch.zeros_like(bands[:, 3:]))


def test_gradients_are_those_of_finite_differences():
    x = torch.rand(1, 3, 8, 8, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda image: tuple(multi_level_bands(image)), x)
    bands = [band.detach().requires_grad_() for band in haar_dwt(x)]
    assert torch.autograd.gradcheck(haar_idwt, bands)
