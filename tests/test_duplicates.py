"""Duplicates, against copies that are known because the test made them."""

import io

import networkx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageDraw, ImageEnhance, ImageOps
from scipy.ndimage import gaussian_filter

from wavegms.data import duplicates
from wavegms.data.cases import Case
from wavegms.data.duplicates import (
    component_of,
    detail_similarity,
    find_duplicates,
    merge_groups,
    read_thumbnails,
)
from wavegms.errors import InputError

WIDTH, HEIGHT = 200, 160


def tissue(seed: int) -> Image.Image:
    """Depth that darkens, a dark lesion in the middle, the same in all; and texture, its own."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    common = 170 - 0.7 * y - 60 * (np.hypot((x - 100) / 1.3, y - 80) < 30)
    texture = sum(
        gain * gaussian_filter(rng.standard_normal((HEIGHT, WIDTH)), sigma)
        for sigma, gain in ((2, 40), (4, 90), (8, 150))
    )
    grey = np.clip(common + texture, 0, 255).astype(np.uint8)
    return Image.fromarray(grey).convert("RGB")


def thumbnails_of(images):
    return read_thumbnails(range(len(images)), images.__getitem__)


def found(images):
    return {(a.first, a.second): a for a in find_duplicates(*thumbnails_of(images))}


def marked(image):
    image = image.copy()
    draw = ImageDraw.Draw(image)
    draw.line((70, 60, 130, 100), fill="white", width=2)
    draw.line((130, 60, 70, 100), fill="white", width=2)
    draw.text((10, 130), "RT AXILLA", fill="white")
    return image


def recompressed(image):
    content = io.BytesIO()
    image.save(content, "jpeg", quality=25)
    return Image.open(content)


COPIES = {
    "recompressed": recompressed,
    "smaller": lambda image: image.resize((90, 70), Image.Resampling.LANCZOS),
    "larger": lambda image: image.resize((400, 320), Image.Resampling.BICUBIC),
    "stretched": lambda image: image.resize((160, 160)),
    "brighter": lambda image: ImageEnhance.Brightness(image).enhance(1.25),
    "flatter": lambda image: ImageEnhance.Contrast(image).enhance(0.6),
    "marked": marked,
    "quantised": lambda image: image.quantize(24).convert("RGB"),
    "corner": lambda image: image.crop((0, 0, 165, 130)),
    "narrower": lambda image: image.crop((20, 0, 180, HEIGHT)),
    "shallower": lambda image: image.crop((0, 0, WIDTH, 125)),
}


@pytest.mark.parametrize("name", list(COPIES))
def test_a_copy_is_found_and_nothing_else(name):
    images = [tissue(seed) for seed in range(6)]
    pairs = found([*images, COPIES[name](images[4])])
    assert list(pairs) == [(4, 6)]
    assert pairs[4, 6].kind == "near" and duplicates.NEAR <= pairs[4, 6].similarity <= 1


def test_a_mirrored_copy_is_found_as_such():
    images = [tissue(seed) for seed in range(6)]
    mirrored = ImageOps.mirror(images[4]).resize((90, 70))
    pairs = found([*images, recompressed(mirrored)])
    assert [(pair, each.kind) for pair, each in pairs.items()] == [((4, 6), "mirrored")]


def test_no_two_images_are_more_alike_than_one_is_to_itself():
    """Rounding would have some at 1.0000001."""
    noise = np.random.default_rng(0).integers(0, 256, (20, 96, 96), np.uint8)
    for kind, copies in (("near", noise), ("mirrored", noise[:, :, ::-1])):
        pairs = find_duplicates(np.concatenate([noise, copies]), list(map(str, range(40))))
        assert [(pair.first, pair.second, pair.kind) for pair in pairs] == [
            (k, k + 20, kind) for k in range(20)
        ]
        assert all(0.9999 < pair.similarity <= 1 for pair in pairs)


def test_an_image_like_its_own_mirror_image_is_no_pair():
    half = np.asarray(tissue(1))
    both = Image.fromarray(np.concatenate([half, half[:, ::-1]], axis=1))
    assert not found([both, tissue(2), tissue(3)])


def test_images_that_only_look_alike_are_told_apart():
    """Plain correlation would join them all."""
    images = [tissue(seed) for seed in range(30)]
    assert not found(images)
    plain = np.corrcoef(
        [np.asarray(image.convert("L").resize((48, 48))).ravel() for image in images]
    )
    assert plain.min() > 0.55


def test_crops_of_any_place_are_found():
    """Nearly all: what the coarse search does not propose is missed, so the test counts."""
    rng = np.random.default_rng(0)
    images, copies = [], 20
    for seed in range(copies):
        width, height = (round(rng.uniform(0.8, 1) * side) for side in (WIDTH, HEIGHT))
        left, top = rng.integers(0, WIDTH - width + 1), rng.integers(0, HEIGHT - height + 1)
        crop = tissue(seed).crop((left, top, left + width, top + height))
        images += [tissue(seed), crop] if seed % 2 else [crop, tissue(seed)]
    pairs = set(found(images))
    assert pairs <= {(2 * k, 2 * k + 1) for k in range(copies)}
    assert len(pairs) >= 0.9 * copies


def test_equal_pixels_are_exact_and_equal_files_have_them():
    images = [tissue(0), tissue(1), tissue(0), tissue(1).convert("L").convert("RGB")]
    pairs = found(images)
    assert {key: (pair.kind, pair.similarity) for key, pair in pairs.items()} == {
        (0, 2): ("exact", 1.0),
        (1, 3): ("exact", 1.0),
    }


def test_flat_images_are_like_nothing_but_their_own_copy():
    flat = [Image.new("RGB", (40, 40), (level,) * 3) for level in (0, 90, 90, 255)]
    pairs = found([*flat, tissue(0)])
    assert {key: pair.kind for key, pair in pairs.items()} == {(1, 2): "exact"}


def test_bytes_that_are_equal_in_another_shape_are_not_exact():
    array = np.asarray(tissue(0))
    reshaped = Image.fromarray(array.reshape(WIDTH, HEIGHT, 3))
    assert len(set(thumbnails_of([tissue(0), reshaped])[1])) == 2


def test_one_image_has_no_duplicate():
    assert found([tissue(0)]) == {}


@pytest.mark.parametrize("chunk", [1, 3, 7])
def test_chunks_do_not_show(monkeypatch, chunk):
    images = [tissue(seed % 5) for seed in range(5)]
    images += [
        COPIES["corner"](tissue(1)),
        COPIES["marked"](tissue(3)),
        COPIES["smaller"](tissue(3)),
    ]
    whole = found(images)
    assert set(whole) == {(1, 5), (3, 6), (3, 7), (6, 7)}
    monkeypatch.setattr(duplicates, "_CHUNK", chunk)
    pieces = found(images)
    assert set(pieces) == set(whole)
    for key, pair in pieces.items():
        assert pair.similarity == pytest.approx(whole[key].similarity, abs=1e-5)


def test_the_order_of_the_images_does_not_matter():
    images = [tissue(seed) for seed in range(4)] + [COPIES["corner"](tissue(2)), tissue(0)]
    last = len(images) - 1
    mirrored = {(last - b, last - a): pair.kind for (a, b), pair in found(images[::-1]).items()}
    assert mirrored == {key: pair.kind for key, pair in found(images).items()}


def test_similarity_is_the_correlation_of_local_detail():
    thumbnails, _ = thumbnails_of([tissue(0), marked(tissue(0)), tissue(1)])
    detail = []
    for thumbnail in thumbnails:
        small = Image.fromarray(thumbnail).resize((48, 48), Image.Resampling.BILINEAR)
        grey = np.asarray(small, dtype=float)
        difference = grey - gaussian_filter(grey, 2)
        detail.append(difference / (np.sqrt(gaussian_filter(difference**2, 2)) + 4))
    pairs = [(0, 1), (0, 2), (2, 1), (1, 1)]
    expected = [np.corrcoef(detail[i].ravel(), detail[j].ravel())[0, 1] for i, j in pairs]
    assert detail_similarity(thumbnails, pairs) == pytest.approx(expected, abs=1e-3)


def test_best_match_is_the_best_correlation_of_all_places():
    rng = np.random.default_rng(0)
    whole, part = rng.standard_normal((9, 8)), rng.standard_normal((6, 7))
    expected = max(
        np.corrcoef(part.ravel(), whole[y : y + 6, x : x + 7].ravel())[0, 1]
        for y in range(4)
        for x in range(2)
    )
    assert duplicates._best_match(part, whole) == pytest.approx(expected)
    assert duplicates._best_match(whole[2:8, 1:8], whole) == pytest.approx(1)
    assert duplicates._best_match(-whole, whole) == pytest.approx(-1)


def test_a_broken_image_is_named():
    def read(path):
        raise InputError(f"{path} is broken.")

    with pytest.raises(InputError, match=r"a\.png is broken"):
        read_thumbnails(["a.png", "b.png"], read)


edges = st.lists(st.tuples(st.integers(0, 11), st.integers(0, 11)), max_size=14)


@given(edges)
def test_components_are_those_of_networkx(pairs):
    graph = networkx.Graph(pairs)
    graph.add_nodes_from(range(12))
    numbers = component_of(12, pairs)
    ours = {frozenset(np.flatnonzero(np.array(numbers) == number)) for number in set(numbers)}
    assert ours == {frozenset(part) for part in networkx.connected_components(graph)}
    assert list(dict.fromkeys(numbers)) == list(range(len(ours)))


@given(edges, st.lists(st.integers(0, 11), min_size=12, max_size=12))
def test_merged_groups_hold_duplicates_and_groups_together(pairs, groups):
    cases = [Case(f"c{i}", None, (), "", f"g{group}") for i, group in enumerate(groups)]
    merged = merge_groups(cases, pairs)
    assert [case.id for case in merged] == [case.id for case in cases]
    graph = networkx.Graph(pairs)
    graph.add_edges_from((i, f"g{group}") for i, group in enumerate(groups))
    for part in networkx.connected_components(graph):
        members = sorted(node for node in part if isinstance(node, int))
        assert {merged[i].group for i in members} == {cases[members[0]].group}
    assert len({case.group for case in merged}) == networkx.number_connected_components(graph)
