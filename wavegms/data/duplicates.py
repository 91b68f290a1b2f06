"""Which images show the same picture, whatever their size, marks and margins.

Plain correlation of thumbnails does not tell: two ultrasound images of different women share bright
skin, dark depth and a dark lesion, and correlate by 0.92 in BUSI, while an image and its cropped
copy correlate by 0.63. So each thumbnail is first reduced to its detail: less its local mean,
divided by its local contrast. What remains is the pattern of the tissue, particular to one image.

The thresholds were set by looking at the pairs of BUSI: all above 0.55 show the same picture or
another moment of the same scan, and the first strangers come at 0.48.
"""

import hashlib
import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import lru_cache
from itertools import combinations, pairwise, product
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from PIL import Image
from scipy.ndimage import gaussian_filter
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from tqdm import tqdm

from wavegms.data.cases import Case
from wavegms.images import resize_image

# Side of a thumbnail as it is kept; 10,015 of them take 92 MB.
THUMBNAIL = 96

# Side at which detail decides, and correlation from which two images are near duplicates.
SIDE, NEAR = 48, 0.6

# Side at which detail proposes pairs to be aligned, correlation from which it does, and for how
# many neighbours of an image at most, which bounds the time on a large dataset.
COARSE_SIDE, PROPOSED, NEIGHBOURS = 24, 0.45, 5

# A copy may be cropped to three quarters of each side.
_CROPS = range(SIDE, SIDE * 3 // 4 - 1, -3)

# Sigma of the local mean, pixels, and contrast in grey levels below which there is only noise.
_SIGMA, _FLOOR = 2.0, 4.0

_CHUNK = 512


class Duplicate(NamedTuple):
    """Two images that show the same picture, by their indices."""

    first: int
    second: int  # larger than `first`
    kind: str  # "exact" where all pixels are equal, "mirrored", left for right, otherwise "near"
    similarity: float  # correlation of their detail where they overlap, up to 1


def read_thumbnails(
    paths: Sequence[Path], read: Callable[[Path], Image.Image]
) -> tuple[np.ndarray, list[str]]:
    """Read images, in threads, and reduce each to what is compared.

    That is grey, uint8 (N, `THUMBNAIL`, `THUMBNAIL`), each side scaled by itself; and of each image
    the SHA-256 of its size and pixels.
    """

    def reduce(path: Path) -> tuple[np.ndarray, str]:
        image = read(path)
        digest = hashlib.sha256(f"{image.size}".encode() + image.tobytes()).hexdigest()
        return np.asarray(resize_image(image.convert("L"), THUMBNAIL)), digest

    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        found = pool.map(reduce, paths)
        bar = tqdm(found, total=len(paths), desc="Reading thumbnails", unit="image")
        thumbnails, digests = zip(*bar, strict=True)
    return np.stack(thumbnails), list(digests)


def find_duplicates(thumbnails: np.ndarray, digests: Sequence[str]) -> list[Duplicate]:
    """Find the pairs of images that show the same picture.

    Every pair is compared as it is. Pairs that fall short are compared once more with one of the
    two cropped, as far as a coarse search proposes them. Mirrored copies (left for right, as a
    scan is stored the wrong way round) are found where they are not cropped as well.
    """
    # Of two kinds, the later one counts.
    found = {pair: ("mirrored", value) for pair, value in _mirrored_pairs(thumbnails).items()}
    found |= {pair: ("near", value) for pair, value in _near_pairs(thumbnails).items()}
    found |= dict.fromkeys(pairs_within(digests), ("exact", 1.0))
    return [Duplicate(*pair, *what) for pair, what in sorted(found.items())]


def pairs_within(values: Iterable[str]) -> list[tuple[int, int]]:
    """Pairs of places that hold the same value."""
    return [pair for places in _places_of(values) for pair in combinations(places, 2)]


def _places_of(values: Iterable[str]) -> list[list[int]]:
    places: dict[str, list[int]] = {}
    for place, value in enumerate(values):
        places.setdefault(value, []).append(place)
    return list(places.values())


def component_of(count: int, pairs: Sequence[tuple[int, int]]) -> list[int]:
    """Number the connected components: duplicates of duplicates belong together.

    For each image the number of its component, counted in the order of their first images.
    """
    first, second = np.array(pairs, dtype=int).reshape(-1, 2).T
    graph = coo_array((np.ones(len(first)), (first, second)), shape=(count, count))
    numbers = connected_components(graph, directed=False)[1]
    order: dict[int, int] = {}
    return [order.setdefault(number, len(order)) for number in numbers.tolist()]


def merge_groups(cases: Sequence[Case], pairs: Sequence[tuple[int, int]]) -> list[Case]:
    """Widen the groups of cases so that duplicates share one: that of the first of them."""
    groups = _places_of(case.group for case in cases)
    same_group = [pair for places in groups for pair in pairwise(places)]
    numbers = component_of(len(cases), [*pairs, *same_group])
    names: dict[int, str] = {}
    return [
        replace(case, group=names.setdefault(number, case.group))
        for case, number in zip(cases, numbers, strict=True)
    ]


def detail_similarity(thumbnails: np.ndarray, pairs: Sequence[tuple[int, int]]) -> list[float]:
    """Correlate the detail of given pairs as they are, without cropping; each -1 to 1."""
    fine = _vectors(thumbnails, SIDE)
    return [float(np.clip(fine[i] @ fine[j], -1, 1)) for i, j in pairs]


def _mirrored_pairs(thumbnails: np.ndarray) -> dict[tuple[int, int], float]:
    vectors, flipped = _vectors(thumbnails, SIDE), _vectors(thumbnails[:, :, ::-1], SIDE)
    pairs: dict[tuple[int, int], float] = {}
    for start in range(0, len(vectors), _CHUNK):
        similarity = vectors[start : start + _CHUNK] @ flipped.T
        for row, j in np.argwhere(similarity >= NEAR).tolist():
            # an image may be like its own mirror image
            if start + row < j:
                pairs[start + row, j] = float(min(similarity[row, j], 1))
    return pairs


def _near_pairs(thumbnails: np.ndarray) -> dict[tuple[int, int], float]:
    near: dict[tuple[int, int], float] = {}
    proposed: set[tuple[int, int]] = set()
    fine, coarse = _vectors(thumbnails, SIDE), _vectors(thumbnails, COARSE_SIDE)
    cropped = [_vectors(thumbnails, COARSE_SIDE, box) for box in _coarse_boxes()]
    neighbours = min(NEIGHBOURS, len(fine) - 1)
    starts = range(0, len(fine), _CHUNK)
    for start in tqdm(starts, desc="Comparing all pairs", unit="chunk"):
        rows = np.arange(start, min(start + _CHUNK, len(fine)))
        similarity = fine[rows] @ fine.T
        decided = similarity >= NEAR
        decided[rows - start, rows] = True
        for row, j in np.argwhere(decided).tolist():
            if start + row < j:
                near[start + row, j] = float(min(similarity[row, j], 1))
        # An image is proposed for its uncropped neighbours when one of its own crops is like them.
        similarity = coarse[rows] @ coarse.T
        for vectors in cropped:
            np.maximum(similarity, vectors[rows] @ coarse.T, out=similarity)
        similarity[decided] = -1
        nearest = np.argsort(-similarity, axis=1)[:, :neighbours]
        for row, column in product(range(len(rows)), range(neighbours)):
            j = int(nearest[row, column])
            if similarity[row, j] >= PROPOSED:
                proposed.add((min(start + row, j), max(start + row, j)))

    # The crops of an image are needed again for its next pair; 512 images' take 100 MB.
    @lru_cache(maxsize=512)
    def crops(index: int) -> list[np.ndarray]:
        grey = Image.fromarray(thumbnails[index])
        sizes = product(_CROPS, _CROPS)
        return [_detail(np.asarray(resize_image(grey, size), np.float32)) for size in sizes]

    for i, j in tqdm(sorted(proposed), desc="Aligning candidates", unit="pair"):
        # The first of the crops has the full size: each place of it is tried for the other's.
        similarity = max(
            max(_best_match(part, crops(i)[0]) for part in crops(j)),
            max(_best_match(part, crops(j)[0]) for part in crops(i)),
        )
        if similarity >= NEAR:
            near[i, j] = similarity
    return near


def _coarse_boxes() -> list[tuple[float, float, float, float]]:
    """Boxes (left, top, right, bottom) of 85 % of one or both sides, at both ends and between."""
    spans = [(0.0, 1.0), (0.0, 0.85), (0.075, 0.925), (0.15, 1.0)]
    return [
        (left * THUMBNAIL, top * THUMBNAIL, right * THUMBNAIL, bottom * THUMBNAIL)
        for (left, right), (top, bottom) in product(spans, spans)
        if (left, right, top, bottom) != (0.0, 1.0, 0.0, 1.0)
    ]


def _vectors(
    thumbnails: np.ndarray, side: int, box: tuple[float, float, float, float] | None = None
) -> np.ndarray:
    """Detail of each thumbnail, or of a box of it, as float32 (N, side²) of mean 0 and norm 1."""
    small = np.empty((len(thumbnails), side, side), dtype=np.float32)
    for index, thumbnail in enumerate(thumbnails):
        grey = Image.fromarray(np.ascontiguousarray(thumbnail))
        small[index] = grey.resize((side, side), Image.Resampling.BILINEAR, box=box)
    vectors = _detail(small).reshape(len(small), -1)
    vectors -= vectors.mean(axis=1, keepdims=True)
    # An image of one colour has no detail, and is like nothing.
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-6)


def _detail(values: np.ndarray) -> np.ndarray:
    """Take the local mean from float32 grey values (..., H, W) and divide by local contrast."""
    sigma = (0,) * (values.ndim - 2) + (_SIGMA, _SIGMA)
    values = values - gaussian_filter(values, sigma)
    return values / (np.sqrt(gaussian_filter(values * values, sigma)) + _FLOOR)


def _best_match(part: np.ndarray, whole: np.ndarray) -> float:
    """Highest correlation of a smaller array with any place of a larger one."""
    windows = sliding_window_view(whole, part.shape).reshape(-1, part.size)
    part = (part - part.mean()).ravel()
    variance = np.einsum("ij,ij->i", windows, windows) - part.size * windows.mean(axis=1) ** 2
    norms = np.sqrt(np.maximum(variance, 1e-6) * max(part @ part, 1e-6))
    return float(np.clip((windows @ part / norms).max(), -1, 1))
