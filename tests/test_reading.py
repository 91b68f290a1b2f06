"""What real people bring, kind by kind, with several members each: the right pixels, or a question.

Truth is the drawn lesion itself, never what the reader makes of the file.
"""

import io
import re

import numpy as np
import pytest
from layouts import save
from PIL import Image, ImageFilter
from scipy import ndimage

from wavegms import InputError
from wavegms.config import ReadingParams
from wavegms.data.cases import Case, match_folders, pairing_rule, place
from wavegms.data.catalog import find_cases
from wavegms.data.pairs import Seen, read_pair, remarks
from wavegms.data.reading import find_reading
from wavegms.images import FOREGROUND, IGNORED, Scale, open_image

COUNT = 10


def lesion(seed: int, width: int = 96, height: int = 72) -> np.ndarray:
    """One ellipse, bool (H, W), off the middle so that every turn shows."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    middle = rng.uniform(0.25, 0.4) * width, rng.uniform(0.25, 0.4) * height
    axes = rng.uniform(0.12, 0.2) * width, rng.uniform(0.12, 0.2) * height
    return ((x - middle[0]) / axes[0]) ** 2 + ((y - middle[1]) / axes[1]) ** 2 < 1


def scan(mask: np.ndarray, seed: int, top: int = 255) -> np.ndarray:
    """Speckle that is dark in the lesion: uint8, or uint16 where `top` needs it."""
    rng = np.random.default_rng(1000 + seed)
    grey = np.clip(0.7 * rng.gamma(4, 0.25, mask.shape) * np.where(mask, 0.25, 1), 0, 1)
    return (grey * top).astype(np.uint8 if top < 256 else np.uint16)


def write(folder, encode, ending="png", count=COUNT, image=scan, **options):
    """Images and their masks, each as `encode(lesion, number)` draws it; the drawn lesions."""
    lesions = [lesion(number) for number in range(count)]
    for number, mask in enumerate(lesions):
        save(Image.fromarray(image(mask, number)), folder / f"images/{number}.png")
        drawn = encode(mask, number)
        drawn = drawn if isinstance(drawn, Image.Image) else Image.fromarray(drawn)
        path = folder / f"masks/{number}.{ending}"
        path.parent.mkdir(exist_ok=True)
        drawn.save(path, **options)
    return lesions


def read(folder, **wanted):
    cases = find_cases("mine", folder)
    reading = find_reading("mine", cases, ReadingParams(**wanted))
    return [read_pair(case, reading).mask for case in cases], reading


def dice(one: np.ndarray, other: np.ndarray) -> float:
    return 2 * (one & other).sum() / (one.sum() + other.sum())


def ring(mask: np.ndarray, width: int = 2) -> np.ndarray:
    return ndimage.binary_dilation(mask, iterations=width) & ~mask


def grey(value: int, background: int = 0, kind: type = np.uint8):
    return lambda mask, _: np.where(mask, value, background).astype(kind)


def in_alpha(colour: int):
    def encode(mask, _):
        pixels = np.full((*mask.shape, 4), colour, np.uint8)
        pixels[..., 3] = mask * 255
        return pixels

    return encode


def grey_in_alpha(mask, _):
    return np.stack([np.full(mask.shape, 90, np.uint8), (mask * 200).astype(np.uint8)], -1)


def numbered(kind: type, most: int):
    """The lesion in a dozen pieces, each with a number of its own, as cells are stored."""

    def encode(mask, seed):
        rows, columns = np.indices(mask.shape) // 6
        pieces, found = np.unique((rows * 100 + columns)[mask], return_inverse=True)
        numbers = np.random.default_rng(seed).permutation(most)[: len(pieces)] + 1
        drawn = np.zeros(mask.shape, kind)
        drawn[mask] = numbers[found]
        # pieces do not touch: a cell has a border
        apart = (np.indices(mask.shape) % 6 == 5).any(0)
        drawn[apart] = 0
        return drawn

    return encode


def jpeg(value: int, background: int = 0):
    return lambda mask, number: Image.fromarray(grey(value, background)(mask, number)).convert(
        "RGB"
    )


def soft(value: int):
    """With the soft border that tools for drawing leave."""

    def encode(mask, _):
        return Image.fromarray((mask * value).astype(np.uint8)).filter(ImageFilter.BoxBlur(1))

    return encode


MASKS = {
    "black and white": (grey(255), {}, 1),
    "0 and 1": (grey(1), {}, 1),
    "1 and 2": (grey(2, 1), {}, 1),
    "one bit": (lambda mask, _: Image.fromarray(mask), {}, 1),
    "sixteen bits, full": (grey(65535, 0, np.uint16), {}, 1),
    "sixteen bits, 0 and 1": (grey(1, 0, np.uint16), {}, 1),
    "grey 100": (grey(100), {}, 1),
    "some with 1, some with 255": (lambda mask, i: grey((1, 255)[i % 2])(mask, i), {}, 1),
    "a class in each": (lambda mask, i: grey(1 + i % 3)(mask, i), {}, 1),
    "JPEG of grey 100": (jpeg(100), {"ending": "jpg", "quality": 60}, 0.97),
    "JPEG of grey 60": (jpeg(60), {"ending": "jpg", "quality": 75}, 0.97),
    "JPEG of grey 128": (jpeg(128), {"ending": "jpg", "quality": 50}, 0.97),
    "JPEG of white": (jpeg(255), {"ending": "jpg", "quality": 60}, 0.97),
    "JPEG of white on grey": (jpeg(250, 40), {"ending": "jpg", "quality": 80}, 0.97),
    "soft white": (soft(255), {}, 0.95),
    "soft grey": (soft(90), {}, 0.95),
    "alpha, white": (in_alpha(255), {}, 1),
    "alpha, black": (in_alpha(0), {}, 1),
    "alpha of grey": (grey_in_alpha, {}, 1),
}


@pytest.mark.parametrize("kind", MASKS)
def test_the_foreground_is_found(tmp_path, kind):
    encode, options, least = MASKS[kind]
    lesions = write(tmp_path, encode, **options)
    masks, reading = read(tmp_path)
    for mask, truth in zip(masks, lesions, strict=True):
        assert dice(mask == FOREGROUND, truth) >= least, reading.evidence
    assert any("foreground is" in sentence and "files" in sentence for sentence in reading.evidence)


@pytest.mark.parametrize(("kind", "most"), [(np.uint8, 30), (np.uint8, 250), (np.uint16, 900)])
def test_maps_of_many_instances_are_taken_together(tmp_path, kind, most):
    encode = numbered(kind, most)
    lesions = write(tmp_path, encode, count=2 * COUNT)
    masks, _ = read(tmp_path)
    for number, (mask, truth) in enumerate(zip(masks, lesions, strict=True)):
        assert np.array_equal(mask == FOREGROUND, encode(truth, number) > 0)


def void(value: int, label: int = 1, width: int = 2):
    return lambda mask, _: np.where(ring(mask, width), value, mask * label).astype(np.uint8)


def consensus(*steps: int):
    """Raters who differ by two pixels each: the last step is what all of them saw."""

    def encode(mask, _):
        drawn = np.zeros(mask.shape, np.uint8)
        for number, step in enumerate(steps):
            wider = 2 * (len(steps) - 1 - number)
            drawn[ndimage.binary_dilation(mask, iterations=wider) if wider else mask] = step
        return drawn

    return encode


def painted(mask, _):
    """As VOC paints them: a palette, 1 dark red, 255 nearly white."""
    image = Image.fromarray(void(255)(mask, 0))
    image.putpalette([0, 0, 0, 128, 0, 0, *[0] * 759, 224, 224, 192])
    return image


def coloured(mask, _):
    """Lesion and background in two colours that are equally bright."""
    return Image.fromarray(np.where(mask[..., None], [255, 0, 0], [255, 255, 255]).astype(np.uint8))


@pytest.mark.parametrize("ending", ["png", "jpg"])
def test_colours_that_are_equally_bright_are_not_guessed(tmp_path, ending):
    write(tmp_path, coloured, ending)
    with pytest.raises(InputError, match=r"masks of mine .*cannot be told"):
        read(tmp_path)


DOUBTS = {
    "255 for not annotated": (void(255), "1", ["255"]),
    "a wide border of 255": (void(255, width=5), "1", ["255"]),
    "254 for not annotated": (void(254), "1", ["254"]),
    "two labels and 255": (lambda m, i: void(255, label=1 + i % 2)(m, i), "1-2", ["255"]),
    "a palette": (painted, "128", ["224"]),
    "grey for not annotated": (void(128, label=255), "255", ["128"]),
    "four raters": (consensus(64, 128, 191, 255), "255", []),
    "three raters": (consensus(85, 170, 255), "255", []),
    "raters counted": (consensus(1, 2, 3), "3", []),
}


@pytest.mark.parametrize("kind", DOUBTS)
def test_what_masks_do_not_tell_is_asked_and_may_be_said(tmp_path, kind):
    encode, foreground, ignore = DOUBTS[kind]
    lesions = write(tmp_path, encode)
    with pytest.raises(InputError, match=r"masks of mine .*cannot be told.*--foreground .*reading"):
        read(tmp_path)
    masks, reading = read(tmp_path, foreground=[foreground], ignore=ignore)
    for number, (mask, truth) in enumerate(zip(masks, lesions, strict=True)):
        assert np.array_equal(mask == FOREGROUND, truth)
        drawn = encode(truth, number)
        others = (ndimage.binary_dilation(truth, iterations=5) & ~truth) & (mask == IGNORED)
        assert (mask == IGNORED).any() == bool(ignore)
        assert np.array_equal(others, mask == IGNORED), drawn
    assert "as reading.mine says" in reading.evidence[0]


def decoded(drawn, quality):
    """What JPEG leaves of a mask."""
    file = io.BytesIO()
    Image.fromarray(drawn).save(file, "JPEG", quality=quality)
    return np.asarray(Image.open(file))


def cells(seed, count, most, side=96):
    """Discs with numbers of their own up to `most`; some touch."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:side, :side]
    drawn = np.zeros((side, side), np.uint8)
    for number in rng.permutation(most)[:count] + 1:
        row, column = rng.uniform(0, side, 2)
        drawn[(y - row) ** 2 + (x - column) ** 2 < rng.uniform(3, 6) ** 2] = number
    return drawn


def ringed(drawn, void=255):
    return np.where(ring(drawn > 0), np.uint8(void), drawn)


def beside(drawn, void=255):
    drawn = drawn.copy()
    drawn[:, :30] = void
    return drawn


def contoured(drawn, void=255):
    edge = ndimage.maximum_filter(drawn, 3) != ndimage.minimum_filter(drawn, 3)
    return np.where(edge, np.uint8(void), drawn)


def cup_and_disc(mask, _):
    """As REFUGE has them: 0 in 128 on 255."""
    return np.where(mask, 0, np.where(ring(mask, 9), 128, 255)).astype(np.uint8)


def with_noise(encode, quality):
    return lambda mask, number: decoded(encode(mask, number), quality)


def cells_in(count, most, void=lambda drawn: drawn):
    return lambda _, number: void(cells(number, count, most))


def in_some(encode, other, every=5):
    return lambda mask, number: (encode if number % every else other)(mask, number)


# The foreground that must be among the choices, and what to ignore; None: any.
ASKED = {
    **{f"{n} cells of {m}, {v.__name__}": (cells_in(n, m, v), "1-254", "255")
       for n, m in ((12, 40), (40, 250)) for v in (ringed, beside, contoured)},
    "cells, 255 in some": (in_some(cells_in(30, 190), cells_in(30, 190, beside)),
                           "1-254", "255"),
    **{f"JPEG {q}, ring of {w}": (with_noise(void(128, 255, w), q), None, None)
       for q in (40, 92) for w in (2, 5)},
    **{f"JPEG {q}, cup and disc": (with_noise(cup_and_disc, q), None, None) for q in (50, 90)},
    "cup and disc": (cup_and_disc, "0 128", ""),
    **{f"a ring of {v}, {w} wide": (void(v, 255, w), "255", str(v))
       for v in (1, 128, 254) for w in (1, 3)},
    "a ring of 254 around soft masks": (
        lambda m, i: np.where(ring(m, 7) & ~ring(m, 3), 254, soft(255)(m, i)).astype(np.uint8),
        None, None),
    "two rings": (lambda m, i: np.where(ring(m, 6), np.where(ring(m, 3), 254, 253),
                                        m * 255).astype(np.uint8), None, None),
    "rings in some": (in_some(grey(255), void(254, 255)), "255", "254"),
    "sixteen bits": (lambda m, i: (void(128, 255)(m, i).astype(np.uint16) * 257), "65535", "32896"),
    "sixteen bits, counted": (lambda m, i: consensus(1, 2, 3)(m, i).astype(np.uint16), "1-3", ""),
    **{kind: (encode, None, None) for kind, (encode, _, _) in DOUBTS.items()},
}  # fmt: skip


@pytest.mark.parametrize("kind", ASKED)
def test_every_choice_that_is_offered_works_when_typed(tmp_path, kind):
    encode, foreground, ignore = ASKED[kind]
    write(tmp_path, encode)
    for number in range(COUNT):  # cells lie in images of their own size
        with Image.open(tmp_path / f"masks/{number}.png") as mask:
            size = mask.size
        Image.fromarray(scan(lesion(number, *size), number)).save(tmp_path / f"images/{number}.png")
    with pytest.raises(InputError, match="cannot be told: say so") as asked:
        read(tmp_path)
    choices = re.findall(
        r"--foreground ([0-9 -]*[0-9])(?: --ignore ([0-9 -]*[0-9]))?", str(asked.value)
    )
    assert choices and len(set(choices)) == len(choices)
    assert foreground is None or (foreground, ignore) in choices
    seen = set()
    for values, others in choices:
        masks, _ = read(tmp_path, foreground=values.split(), ignore=others.split())
        assert all((mask == FOREGROUND).any() for mask in masks)
        seen.add(b"".join(mask.tobytes() for mask in masks))
    assert len(seen) == len(choices)  # each is another reading


TAKEN = {
    "many cells": cells_in(30, 190),
    "few cells": cells_in(12, 40),
    "cells of all numbers": cells_in(40, 255),
    **{f"JPEG {q} of soft white": with_noise(lambda m, i: np.asarray(soft(255)(m, i)), q)
       for q in (40, 75, 95)},
    **{f"JPEG {q} of white": with_noise(grey(255), q) for q in (30, 75, 95)},
    "scaled": lambda m, i: Image.fromarray(lesion(i, 288, 216)).convert("L").resize((96, 72), 5),
    "blurred": lambda m, i: Image.fromarray(grey(255)(m, i)).filter(ImageFilter.GaussianBlur(1)),
}  # fmt: skip


@pytest.mark.parametrize("kind", TAKEN)
def test_what_is_no_third_label_is_taken(tmp_path, kind):
    encode = TAKEN[kind]
    write(tmp_path, encode)
    for number in range(COUNT):
        drawn = np.asarray(encode(lesion(number), number))
        Image.fromarray(scan(lesion(number, *drawn.shape[::-1]), number)).save(
            tmp_path / f"images/{number}.png"
        )
    masks, _ = read(tmp_path)
    for number, mask in enumerate(masks):
        drawn = np.asarray(encode(lesion(number), number))
        truth = drawn > 0 if "cells" in kind else lesion(number)
        assert dice(mask == FOREGROUND, truth) >= (1 if "cells" in kind else 0.95)


@pytest.mark.parametrize("ending", ["png", "jpg", "bmp"])
def test_a_damaged_mask_that_opens_is_named(tmp_path, ending):
    def encode(mask, number):
        drawn = grey(255)(mask, number)
        if number == 7:  # as a decoder fills what it lacks
            drawn[40:] = 128
        return drawn

    write(tmp_path, encode, ending, count=30)
    with pytest.raises(InputError, match=rf"for 1 of 30 masks only, .*masks/7.{ending}: without"):
        read(tmp_path)


def test_ignored_values_alone_may_be_said(tmp_path):
    lesions = write(tmp_path, void(255))
    masks, _ = read(tmp_path, ignore=[255])
    for mask, truth in zip(masks, lesions, strict=True):
        assert np.array_equal(mask, truth + 2 * ring(truth))


def test_values_that_no_mask_has_are_refused(tmp_path):
    write(tmp_path, grey(255))
    with pytest.raises(InputError, match=r"reading.mine.foreground names 7, but no mask has it"):
        read(tmp_path, foreground=[7])


def test_alpha_here_and_colour_there_is_refused(tmp_path):
    def either(mask, number):
        whole = np.full((*mask.shape, 4), 255, np.uint8)
        whole[..., :3] = (mask * 255)[..., None]
        whole[..., 3] = 254 + mask  # not constant
        return in_alpha(255)(mask, 0) if number % 2 else whole

    write(tmp_path, either)
    with pytest.raises(InputError, match=r"5 masks of mine are one colour with an alpha channel"):
        read(tmp_path)


# Grey values that use but a part of what their file could hold: the deepest, highest and lowest.
SCALES = {
    "twelve bits in sixteen": (lambda share: share * 4095, 16),
    "ten bits in sixteen": (lambda share: share * 1023, 16),
    "CT with an offset": (lambda share: 31_000 + share * 2000, 16),
    "percent in eight": (lambda share: share * 100, 8),
    "percent in sixteen": (lambda share: share * 100, 16),
    "a narrow band of eight": (lambda share: 100 + share * 60, 8),
    "full sixteen": (lambda share: share * 65535, 16),
}


@pytest.mark.parametrize("kind", SCALES)
def test_the_range_that_images_use_is_found_once_for_all(tmp_path, kind):
    convert, depth = SCALES[kind]
    dtype = np.uint16 if depth == 16 else np.uint8

    def image(mask, seed):
        grey = scan(mask, seed, 65535) / 65535 * (0.5 if seed == 3 else 1)  # one is darker
        return convert(grey).round().astype(dtype)

    write(tmp_path, grey(255), image=image)
    cases = find_cases("mine", tmp_path)
    reading = find_reading("mine", cases)
    assert any(f"images of {depth} bits" in sentence for sentence in reading.evidence)
    seen = [np.asarray(read_pair(case, reading).image)[..., 0] for case in cases]
    assert max(part.max() for part in seen) >= 240 and min(part.min() for part in seen) <= 10
    assert 100 <= seen[3].max() <= 150  # the darker one stays darker
    raw = [np.asarray(open_image(case.image)).astype(float) for case in cases]
    for shown, stored in zip(seen, raw, strict=True):
        low, high = reading.scale.ranges[depth]
        assert np.abs(shown - (stored - low) / (high - low) * 255).max() <= 0.51
    levels = len(np.unique(seen[0]))
    assert levels == min(len(np.unique(raw[0])), levels) and levels > (50 if depth == 8 else 60)


def test_a_dead_pixel_does_not_make_all_others_black(tmp_path):
    def image(mask, seed):
        pixels = scan(mask, seed, 4095)
        if seed == 2:
            pixels[0, 0] = 65535
        return pixels

    write(tmp_path, grey(255), image=image, count=20)
    _, reading = read(tmp_path)
    assert reading.scale.ranges == {16: (0, 4095)}


def remarked(folder):
    cases = find_cases("mine", folder)
    reading = find_reading("mine", cases)
    pairs = [read_pair(case, reading) for case in cases]
    return remarks(cases, [Seen.of(pair, pair.mask) for pair in pairs])


MIXED = {
    "half of twelve bits": lambda mask, seed: scan(mask, seed, (4095, 65535)[seed % 2]),
    "one of ten": lambda mask, seed: scan(mask, seed, 1023 if seed == 4 else 65535),
    "a white label": lambda mask, seed: np.where(
        np.add(*np.indices(mask.shape)) < 20, 65535, scan(mask, seed, 4095)).astype(np.uint16),
    "a white pixel in each": lambda mask, seed: np.where(
        np.add(*np.indices(mask.shape)) < 1, 65535, scan(mask, seed, 4095)).astype(np.uint16),
    "some dark of eight": lambda mask, seed: scan(mask, seed, (15, 255)[seed % 2]),
}  # fmt: skip


@pytest.mark.parametrize("kind", MIXED)
def test_images_that_become_nearly_black_are_named(tmp_path, kind):
    write(tmp_path, grey(255), image=MIXED[kind])
    said = [one for one in remarked(tmp_path) if "range of grey values" in one]
    assert len(said) == 1 and "scale its images to one" in said[0]
    assert f"{'4' if kind == 'one of ten' else '0'}.png" in said[0]


@pytest.mark.parametrize("top", [255, 1023, 4095, 65535])
def test_images_of_one_range_are_not_remarked(tmp_path, top):
    write(tmp_path, grey(255), image=lambda mask, seed: scan(mask, seed, top))
    assert remarked(tmp_path) == []


def test_masks_that_are_a_field_of_view_are_remarked(tmp_path):
    y, x = np.mgrid[:72, :96]
    write(tmp_path, lambda *_: (((y - 36) / 35) ** 2 + ((x - 48) / 47) ** 2 < 1).astype(np.uint8))
    assert "field of view" in remarked(tmp_path)[0]


def test_colour_of_sixteen_bits_that_is_nearly_black_is_refused(tmp_path):
    """Pillow neither writes nor wholly reads it; SimpleITK does both."""
    sitk = pytest.importorskip("SimpleITK")
    write(tmp_path, grey(255))
    for number in range(COUNT):
        pixels = np.repeat(scan(lesion(number), number, 4095)[..., None], 3, axis=-1)
        path = tmp_path / f"images/{number}.png"
        sitk.WriteImage(sitk.GetImageFromArray(pixels, isVector=True), str(path))
    with pytest.raises(InputError, match=r"0.png has 16 bits a colour.*save them as 8-bit"):
        read(tmp_path)
    assert "16 bits a colour" in Scale().lies_outside(open_image(path))


def test_images_of_eight_bits_are_taken_as_they_are(tmp_path):
    write(tmp_path, grey(255))
    _, reading = read(tmp_path)
    assert reading.scale.ranges == {}
    case = find_cases("mine", tmp_path)[0]
    assert np.array_equal(
        np.asarray(read_pair(case, reading).image)[..., 0], np.asarray(open_image(case.image))
    )


@pytest.mark.parametrize("ending", ["tif", "gif", "webp", "png"])
def test_a_file_of_several_pages_is_refused_and_counted(tmp_path, ending):
    masks = [lesion(number) for number in range(3)]
    first, *others = [Image.fromarray(scan(mask, 0)) for mask in masks]
    path = tmp_path / f"images/0.{ending}"
    path.parent.mkdir()
    first.save(path, save_all=True, append_images=others)
    with pytest.raises(InputError, match=rf"0.{ending} has 3 pages: save each"):
        open_image(path)


@pytest.mark.parametrize("sizes", [[(96, 72), (100, 72), (97, 71)], [(24, 18), (96, 72)]])
def test_pages_of_other_sizes_are_pages(tmp_path, sizes):
    first, *others = [Image.new("L", size, 90) for size in sizes]
    first.save(tmp_path / "0.tif", save_all=True, append_images=others)
    with pytest.raises(InputError, match=f"has {len(sizes)} pages"):
        open_image(tmp_path / "0.tif")


def test_a_stack_of_imagej_with_one_directory_is_refused(tmp_path):
    told = "ImageJ=1.53t\nimages=12\nslices=12\n"
    Image.new("L", (96, 72), 90).save(tmp_path / "0.tif", tiffinfo={270: told})
    with pytest.raises(InputError, match="has 12 pages"):
        open_image(tmp_path / "0.tif")
    Image.new("L", (96, 72), 90).save(
        tmp_path / "1.tif", tiffinfo={270: "ImageJ=1.53t\nimages=1\n"}
    )
    assert open_image(tmp_path / "1.tif").size == (96, 72)


def test_previews_behind_an_image_are_no_pages(tmp_path):
    image = Image.fromarray(scan(lesion(0), 0))
    image.save(tmp_path / "a.tif", save_all=True, append_images=[image.resize((24, 18))])
    assert open_image(tmp_path / "a.tif").size == image.size
    image.convert("RGB").save(
        tmp_path / "b.jpg", "MPO", save_all=True, append_images=[image.convert("RGB")]
    )
    assert open_image(tmp_path / "b.jpg").size == image.size


TURNS = {3: 2, 6: 3, 8: 1}  # EXIF's orientation, and quarter turns to the left that it undoes


@pytest.mark.parametrize("ending", ["jpg", "tif", "png"])
@pytest.mark.parametrize("orientation", TURNS)
@pytest.mark.parametrize("drawn_on", ["shown", "stored"])
def test_a_mask_of_a_turned_photograph_is_tried_both_ways(tmp_path, ending, orientation, drawn_on):
    exif = Image.Exif()
    exif[0x0112] = orientation
    lesions = [lesion(number, 80, 72 if orientation == 3 else 80) for number in range(COUNT)]
    for number, mask in enumerate(lesions):
        stored = np.rot90(scan(mask, number), -TURNS[orientation])
        path = tmp_path / f"images/{number}.{ending}"
        path.parent.mkdir(exist_ok=True)
        options = {"quality": 95} if ending == "jpg" else {}
        Image.fromarray(np.ascontiguousarray(stored)).convert("RGB").save(
            path, exif=exif, **options
        )
        drawn = mask if drawn_on == "shown" else np.rot90(mask, -TURNS[orientation])
        save(Image.fromarray((drawn * 255).astype(np.uint8)), tmp_path / f"masks/{number}.png")
    masks, reading = read(tmp_path)
    for mask, truth in zip(masks, lesions, strict=True):
        assert np.array_equal(mask == FOREGROUND, truth)
    assert reading.stored == (drawn_on == "stored")
    assert f"EXIF turns {COUNT} images" in reading.evidence[-1]
    asked, _ = read(tmp_path, drawn_on=drawn_on)
    assert all(np.array_equal(one, other) for one, other in zip(asked, masks, strict=True))


def test_the_shape_decides_where_it_can(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    for number in range(3):
        noise = np.random.default_rng(number).integers(0, 255, (40, 60), np.uint8)  # shows nothing
        path = tmp_path / f"images/{number}.jpg"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(noise).save(path, exif=exif)
        save(Image.fromarray((lesion(number, 60, 40) * 255).astype(np.uint8)),
             tmp_path / f"masks/{number}.png")  # fmt: skip
    masks, reading = read(tmp_path)
    assert "by their shape in 3 of 3" in reading.evidence[-1]
    for number, mask in enumerate(masks):
        assert np.array_equal(mask == FOREGROUND, np.rot90(lesion(number, 60, 40), -1))


def test_a_turn_that_cannot_be_told_is_asked(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 3
    for number in range(4):
        noise = np.random.default_rng(number).integers(0, 255, (40, 60), np.uint8)
        path = tmp_path / f"images/{number}.jpg"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(noise).save(path, exif=exif)
        save(Image.fromarray((lesion(number, 60, 40) * 255).astype(np.uint8)),
             tmp_path / f"masks/{number}.png")  # fmt: skip
    with pytest.raises(InputError, match=r"EXIF turns 4 images of mine.*--drawn-on shown or"):
        read(tmp_path)
    for drawn_on, turns in (("shown", 0), ("stored", 2)):
        masks, _ = read(tmp_path, drawn_on=drawn_on)
        assert np.array_equal(masks[0] == FOREGROUND, np.rot90(lesion(0, 60, 40), turns))


def write_turned(folder, kinds, noise=False):
    """Squares, each as (of the image, of the mask, drawn on) says; the upright lesions."""
    lesions = [lesion(number, 80, 80) for number in range(len(kinds))]
    for number, (of_image, of_mask, drawn_on) in enumerate(kinds):
        truth = lesions[number]
        grey = np.full_like(truth, 0, np.uint8) if noise else scan(truth, number)
        # stored so that EXIF turns it upright; the mask as drawn on what was shown or stored
        stored = {part: np.rot90(part_of, -TURNS.get(of_image, 0)) for part, part_of in
                  (("image", grey), ("mask", truth))}  # fmt: skip
        drawn = {"stored": stored["mask"], "shown": truth,
                 "own": np.rot90(truth, -TURNS.get(of_mask, 0))}[drawn_on]  # fmt: skip
        for name, pixels, turn in (("images", stored["image"], of_image),
                                   ("masks", drawn * np.uint8(255), of_mask)):  # fmt: skip
            exif = Image.Exif()
            if turn != 1:
                exif[0x0112] = turn
            path = folder / name / f"{number}.png"
            path.parent.mkdir(exist_ok=True)
            Image.fromarray(np.ascontiguousarray(pixels)).save(path, exif=exif)
    return lesions


@pytest.mark.parametrize("orientation", TURNS)
@pytest.mark.parametrize(
    "kind",
    [
        lambda o: (1, o, "shown"),  # a mask with EXIF of an image that has lost its own
        lambda o: (1, o, "own"),
        lambda o: (o, o, "stored"),
        lambda o: (o, o, "shown"),  # EXIF copied to a mask that was drawn upright
    ],
)
def test_a_mask_that_exif_turns_itself_is_tried_both_ways(tmp_path, orientation, kind):
    lesions = write_turned(tmp_path, [kind(orientation)] * COUNT)
    masks, _ = read(tmp_path)
    for mask, truth in zip(masks, lesions, strict=True):
        assert np.array_equal(mask == FOREGROUND, truth)


def test_masks_that_lie_otherwise_than_most_are_named(tmp_path):
    kinds = [(3, 1, "shown")] * 18 + [(3, 1, "stored")] * 2
    lesions = write_turned(tmp_path, kinds)
    with pytest.raises(InputError, match=r"masks/18.png, .*masks/19.png: turn these 2"):
        read(tmp_path)
    masks, _ = read(tmp_path, drawn_on="shown")
    assert np.array_equal(masks[0] == FOREGROUND, lesions[0])


def test_where_shapes_tell_each_file_decides_for_itself(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    for number in range(6):
        truth = lesion(number, 60, 40)
        path = tmp_path / f"images/{number}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(np.ascontiguousarray(np.rot90(scan(truth, number), 1))).save(
            path, exif=exif
        )
        drawn = np.rot90(truth, 1) if number % 2 else truth
        save(Image.fromarray((drawn * 255).astype(np.uint8)), tmp_path / f"masks/{number}.png")
    masks, reading = read(tmp_path)
    assert "not 1.png, 3.png, 5.png" in reading.evidence[-1] or "not 0.png" in reading.evidence[-1]
    for number, mask in enumerate(masks):
        assert np.array_equal(mask == FOREGROUND, lesion(number, 60, 40))


def touch(folder, *names):
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((lesion(len(str(name))) * 255).astype(np.uint8)).save(path)
    return folder


def names_of(cases: list[Case]) -> dict[str, list[str]]:
    return {case.image.name: [path.name for path in case.masks] for case in cases}


SECOND = ["_mask_1", "_mask1", "_mask-2", "_mask (2)", "_mask_02"]


@pytest.mark.parametrize("second", SECOND)
@pytest.mark.parametrize("together", [True, False])
def test_further_masks_of_an_image_are_joined(tmp_path, second, together):
    images, masks = (tmp_path,) * 2 if together else (tmp_path / "a", tmp_path / "b")
    for number in range(1, 13):
        touch(images, f"benign ({number}).png")
        touch(masks, f"benign ({number})_mask.png")
    touch(masks, f"benign (4){second}.png")
    cases, rest = match_folders(images, masks)
    assert len(cases) == 12 and not rest
    assert names_of(cases)["benign (4).png"] == ["benign (4)_mask.png", f"benign (4){second}.png"]
    assert "masks joined for 1 images" in pairing_rule(cases)[1]
    place(cases, rest, tmp_path / "raw")
    again = find_cases("mine", tmp_path / "raw")
    assert [len(case.masks) for case in again] == [len(case.masks) for case in cases]
    assert [one.read_bytes() for one in again[3].masks] == [
        one.read_bytes() for one in cases[3].masks
    ]


def test_where_all_masks_have_numbers(tmp_path):
    touch(tmp_path, "a.png", "b.png", "a_mask_1.png", "a_mask_2.png", "b_mask_1.png")
    cases, _ = match_folders(tmp_path, tmp_path)
    assert names_of(cases) == {"a.png": ["a_mask_1.png", "a_mask_2.png"], "b.png": ["b_mask_1.png"]}


@pytest.mark.parametrize("odd", ["case 4_mask_left.png", "case 4_2_mask.png", "case 4_roi.png"])
def test_what_may_be_a_further_mask_is_refused_by_name(tmp_path, odd):
    for number in range(1, 6):
        touch(tmp_path, f"case {number}.png", f"case {number}_mask.png")
    touch(tmp_path, odd)
    with pytest.raises(InputError, match=odd.removesuffix(".png")):
        match_folders(tmp_path, tmp_path)


LAYOUTS = {
    "CVC-612": ("a/fine_3_{i}_fram.jpg", "b/fine_3_{i}_mask.jpg", "a", "b"),
    "CVC-612 in one folder": ("fine_3_{i}_fram.jpg", "fine_3_{i}_mask.jpg", "", ""),
    "PH2": ("IMD{i:03}/IMD{i:03}_Dermoscopic_Image/IMD{i:03}.bmp",
            "IMD{i:03}/IMD{i:03}_lesion/IMD{i:03}_lesion.bmp", "", ""),
    "PH2 by patterns": ("IMD{i:03}/IMD{i:03}_Dermoscopic_Image/IMD{i:03}.bmp",
                        "IMD{i:03}/IMD{i:03}_lesion/IMD{i:03}_lesion.bmp",
                        "*/*_Dermoscopic_Image/*.bmp", "*/*_lesion/*.bmp"),
    "a folder for each case": ("p{i}/image.png", "p{i}/mask.png", "", ""),
    "the same by patterns": ("p{i}/image.png", "p{i}/mask.png", "*/image.png", "*/mask.png"),
    "masks called otherwise": ("s/id{i}/images/x{i}.png", "s/id{i}/masks/{h}.png",
                               "s/*/images/*.png", "s/*/masks/*.png"),
    "beginnings of their own": ("Test_Image_{i}.png", "mask_{i}.png", "", ""),
    "an ending on the images": ("a/{i}_image.png", "b/{i}.png", "a", "b"),
    "a pattern that names all": ("{i}.png", "{i}_mask.png", "*.png", "*_mask.png"),
    "the same folders on both sides": ("a/s{i}/1.png", "b/s{i}/1.png", "a", "b"),
    "DRIVE": ("images/{i}_training.tif", "1st_manual/{i}_manual1.gif", "images", "1st_manual"),
    "nnU-Net": ("imagesTr/case_{i:03}_0000.png", "labelsTr/case_{i:03}.png",
                "imagesTr", "labelsTr"),
    "nnU-Net without numbers": ("imagesTr/{h}_0000.png", "labelsTr/{h}.png",
                                "imagesTr", "labelsTr"),
    "Cell Tracking Challenge": ("01/t{i:03}.tif", "01_GT/SEG/man_seg{i:03}.tif",
                                "01", "01_GT/SEG"),
    "its sequences": ("0{s}/t{j:03}.tif", "0{s}_GT/SEG/man_seg{j:03}.tif",
                      "0?/*.tif", "*_GT/SEG/*.tif"),
    "patients": ("p{s}/scan_{j}.png", "p{s}/label_{j}.png", "", ""),
    "patients' folders": ("p{s}/images/{j}.png", "p{s}/masks/{j}.png", "", ""),
    "patients' folders by patterns": ("p{s}/images/{j}.png", "p{s}/masks/{j}.png",
                                      "*/images/*", "*/masks/*"),
    "masks below": ("p{s}/{j}.png", "p{s}/masks/{j}.png", "", ""),
}  # fmt: skip


@pytest.mark.parametrize("kind", LAYOUTS)
def test_layouts_are_paired_by_what_is_common(tmp_path, kind):
    image, mask, images, masks = LAYOUTS[kind]
    hashes = {i: f"{i * 7919 % 104729:x}" for i in range(1, 13)}
    named = [{"i": i, "h": text, "s": i % 3, "j": i // 3} for i, text in hashes.items()]
    wanted = {tmp_path / image.format(**one): tmp_path / mask.format(**one) for one in named}
    touch(tmp_path, *wanted, *wanted.values())
    cases, rest = match_folders(tmp_path / images, tmp_path / masks)
    assert {case.image: case.masks[0] for case in cases} == wanted and not rest
    assert pairing_rule(cases)[0].count(" with ") >= 3
    place(cases, rest, tmp_path / "raw")
    again = find_cases("mine", tmp_path / "raw")
    assert [case.id for case in again] == [case.id for case in cases]


DOUBTFUL = {
    "a field of view beside what was drawn": (
        ["t/images/{i}_training.tif", "t/1st_manual/{i}_manual1.gif",
         "t/mask/{i}_training_mask.gif"], "t", "t", "1st_manual/1_manual1.gif are both"),
    "two raters": (["x{i}L.jpg", "x{i}L_1stHO.png", "x{i}L_2ndHO.png"], "", "",
                   "_2ndHO.png are both"),
    "several channels": (["a/c_{i}_0000.png", "a/c_{i}_0001.png", "b/c_{i}.png"], "a", "b",
                         "by patterns, such as 'imagesTr/"),
    "a number that an image may have had": (["a/x{i}.png", "b/x{i}.png", "b/x{i} (2).png"], "a",
                                            "b", r"x1 \(2\).png may be a further mask of x1.png"),
    "numbers that images have": (["a/x.png", "a/x_{i}.png", "b/x_mask.png", "b/x_mask_{i}.png",
                                  "b/x_mask_99.png"], "a", "b", "may be a further mask of x.png"),
}  # fmt: skip


@pytest.mark.parametrize("kind", DOUBTFUL)
def test_what_may_be_paired_in_two_ways_is_refused(tmp_path, kind):
    names, images, masks, match = DOUBTFUL[kind]
    touch(tmp_path, *{name.format(i=i) for name in names for i in (1, 2, 3)})
    with pytest.raises(InputError, match=match):
        match_folders(tmp_path / images, tmp_path / masks)


def test_files_in_place_may_have_endings(tmp_path):
    for i in range(1, 13):
        touch(tmp_path, f"images/case {i}.png", f"masks/case {i}_mask.png")
    assert len(find_cases("mine", tmp_path)) == 12
    (tmp_path / "masks/case 3_mask.png").unlink()
    with pytest.raises(InputError, match="without a mask"):
        find_cases("mine", tmp_path)


@pytest.mark.parametrize(
    "names",
    [
        ["a/x.png", "a/y.png", "b/mask_u.png", "b/mask_v.png"],
        ["a/i1.png", "a/i2.png", "b/m2.png", "b/m3.png"],
        ["a/i1.png", "b/m1.png"],
    ],
)
def test_doubtful_pairs_are_refused(tmp_path, names):
    touch(tmp_path, *names)
    with pytest.raises(InputError, match="give each mask its image's name"):
        match_folders(tmp_path / "a", tmp_path / "b")
