import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from layouts import box_mask, mask_image, picture
from PIL import Image

from wavegms.errors import InputError
from wavegms.images import (
    MaskRule,
    Scale,
    as_mask,
    as_rgb,
    grey_table,
    mask_values,
    parse_ranges,
    resize_image,
    resize_mask,
    turned,
    used_range,
    written_ranges,
)

BLACK_AND_WHITE = MaskRule({8: ((128, 255),), 16: ((32768, 65535),)})

small = st.tuples(st.integers(1, 9), st.integers(1, 9))
masks = small.flatmap(lambda shape: arrays(bool, shape))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16", "I;16B"])
def test_every_usual_mode_becomes_rgb_of_the_same_size(mode):
    rgb = as_rgb(Image.new(mode, (7, 5)))
    assert (rgb.mode, rgb.size) == ("RGB", (7, 5))


def test_colours_survive():
    image = picture()
    assert np.array_equal(np.asarray(as_rgb(image)), np.asarray(image))


def test_grey_is_repeated_to_three_channels():
    grey = np.arange(35, dtype=np.uint8).reshape(5, 7)
    assert np.array_equal(np.asarray(as_rgb(Image.fromarray(grey))), np.stack([grey] * 3, -1))


@pytest.mark.parametrize("order", ["<", ">"])
def test_sixteen_bits_are_scaled_linearly(order):
    levels = np.array([[0, 257, 128 * 257, 65535, 100, 200]], dtype=np.uint16)
    data = levels.astype(f"{order}u2").tobytes()
    image = Image.frombytes("I;16" if order == "<" else "I;16B", (6, 1), data)
    assert np.asarray(as_rgb(image))[0, :, 0].tolist() == [0, 1, 128, 255, 0, 1]


def test_palette_with_transparency_gives_its_colours_without_a_warning():
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.putpixel((1, 0), 1)
    image.info["transparency"] = b"\x00\x80"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        rgb = as_rgb(image)
    assert [rgb.getpixel((x, 0)) for x in (0, 1)] == [(10, 20, 30), (200, 100, 50)]


def test_transparency_is_dropped_not_composed():
    assert as_rgb(Image.new("RGBA", (1, 1), (90, 80, 70, 0))).getpixel((0, 0)) == (90, 80, 70)


@pytest.mark.parametrize("mode", ["F", "I", "HSV", "PA"])
def test_modes_without_a_defined_range_are_refused(mode):
    with pytest.raises(InputError, match=f"mode {mode} .*save it as"):
        as_rgb(Image.new(mode, (3, 3)))
    with pytest.raises(InputError, match=f"mode {mode} .*save it as"):
        mask_values(Image.new(mode, (3, 3)))


def test_exif_orientation_is_applied_to_images_and_masks():
    # Orientation 6: the camera was held upright, the stored rows run down the picture's columns.
    image = Image.fromarray(np.array([[0, 255, 255]], dtype=np.uint8))
    image.getexif()[0x0112] = 6
    assert np.asarray(as_rgb(image))[..., 0].tolist() == [[0], [255], [255]]
    assert as_mask(image, BLACK_AND_WHITE).tolist() == [[0], [1], [1]]
    assert turned(np.array([[0, 1, 1]], np.uint8), 6).tolist() == [[0], [1], [1]]


def test_a_broken_exif_block_is_reported():
    image = picture()
    image.info["exif"] = b"Exif\0\0garbage"
    with pytest.raises(InputError, match="EXIF block"):
        as_rgb(image)


@given(masks, st.sampled_from(["1", "L", "LA", "P", "RGB", "RGBA", "I;16"]))
def test_a_mask_reads_the_same_in_every_mode(mask, mode):
    assert np.array_equal(as_mask(mask_image(mask, mode), BLACK_AND_WHITE), mask)


@given(small.flatmap(lambda shape: arrays(np.uint8, shape)))
def test_a_rule_names_foreground_and_ignored_values(values):
    rule = MaskRule({8: ((1, 3), (9, 9))}, ((200, 255),))
    expected = np.where(values >= 200, 2, np.isin(values, [1, 2, 3, 9]))
    assert np.array_equal(as_mask(Image.fromarray(values), rule), expected)
    sixteen = rule.of(values.astype(np.uint16))  # a depth that the rule knows nothing of
    assert np.array_equal(sixteen, np.where(values >= 200, 2, 0))


def test_any_colour_is_foreground_and_alpha_counts_where_it_is_said_to():
    image = Image.new("RGBA", (3, 1), (0, 0, 0, 255))
    image.putpixel((0, 0), (0, 255, 0, 0))
    assert as_mask(image, BLACK_AND_WHITE).tolist() == [[1, 0, 0]]
    alpha = replace(BLACK_AND_WHITE, alpha=True)
    assert as_mask(image, alpha).tolist() == [[0, 1, 1]]
    assert as_mask(image.convert("RGB"), alpha).tolist() == [[1, 0, 0]]  # a file without alpha


def test_cmyk_mask_is_refused():
    with pytest.raises(InputError, match="mode CMYK"):
        mask_values(Image.new("CMYK", (2, 2)))


@given(st.lists(st.tuples(st.integers(0, 65535), st.integers(0, 65535)).map(sorted), max_size=4))
def test_ranges_are_read_as_they_are_written(pairs):
    ranges = tuple(sorted(map(tuple, pairs)))
    assert parse_ranges(written_ranges(ranges).split()) == ranges


@given(
    st.integers(0, 65534).flatmap(lambda low: st.tuples(st.just(low), st.integers(low + 1, 65535)))
)
def test_a_scale_is_linear_and_rounds(ends):
    low, high = ends
    table = grey_table(low, high, 16)
    exact = (np.arange(65536).clip(low, high) - low) * 255 / (high - low)
    assert np.abs(table - exact).max() <= 0.5 + 1e-9
    assert Scale.parse(str(Scale({16: ends}))) == Scale({16: ends})


@pytest.mark.parametrize(
    ("found", "meant"),
    [
        ((0, 65535), (0, 65535)),
        ((3, 3472), (0, 4095)),
        ((0, 1020), (0, 1023)),
        ((0, 100), (0, 100)),
        ((1000, 3000), (1000, 3000)),
        ((31_744, 36_000), (31_744, 36_000)),
        ((0, 0), (0, 1)),
    ],
)
def test_the_range_that_was_meant(found, meant):
    assert used_range(*found, least_bits=1) == meant


def test_image_resizing_is_torch_s_antialiased_bilinear():
    image = picture(size=(61, 47))
    ours = np.asarray(resize_image(image, (24, 16)), dtype=np.float32)
    tensor = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float()
    theirs = torch.nn.functional.interpolate(
        tensor, (16, 24), mode="bilinear", antialias=True, align_corners=False
    )[0].permute(1, 2, 0)
    # PIL rounds after each of its two passes.
    assert np.abs(ours - theirs.numpy()).max() <= 1.5


def test_sizes_are_a_square_or_width_and_height():
    assert resize_image(picture(), 16).size == (16, 16)
    assert resize_image(picture(), (24, 16)).size == (24, 16)
    assert resize_mask(box_mask(), (24, 16)).shape == (16, 24)


@given(masks, st.integers(1, 4))
def test_enlarging_a_mask_repeats_its_pixels(mask, factor):
    height, width = mask.shape
    resized = resize_mask(mask, (width * factor, height * factor))
    assert resized.dtype == bool
    assert np.array_equal(resized, np.kron(mask, np.ones((factor, factor), dtype=bool)))
