"""The leakage audit: which prepared images have a twin, and on which side of the split it is.

A test image whose twin was trained on measures memory, not segmentation. The audit changes nothing;
the split method `grouped` draws a split without such twins, and `summarize_audited` in
`wavegms.results.statistics` says what they are worth in the metrics.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from wavegms.data.duplicates import (
    component_of,
    detail_similarity,
    find_duplicates,
    pairs_within,
    read_thumbnails,
)
from wavegms.data.manifest import (
    PAIR_COLUMNS,
    fold_of,
    leaking_in,
    load_manifest,
    load_volumes,
    number_of_folds,
)
from wavegms.files import write_text
from wavegms.images import as_rgb, read_image

if TYPE_CHECKING:
    import pandas as pd

KINDS = ("exact", "near", "mirrored", "same group")


@dataclass(frozen=True)
class AuditSummary:
    """Counts of an audit; duplicates are the pairs of the kinds exact, near and mirrored."""

    images: int
    exact_pairs: int
    near_pairs: int
    mirrored_pairs: int
    same_group_pairs: int  # that share a group and are no duplicates of each other
    duplicate_images: int  # that have a duplicate
    duplicate_groups: int  # sets of images connected by duplicates, of two and more
    conflicting_pairs: int  # duplicates filed under different classes
    conflicting_groups: int  # sets of connected duplicates with more than one class
    crossing_pairs: int  # of any kind, one image for testing and one for train or val
    crossing_groups: int  # sets connected by pairs of any kind, with images on both sides
    test_images: int
    leaking_test_images: int  # with a duplicate in train or val
    leaking_test_images_with_groups: int  # with a duplicate or an image of their group there

    def table(self) -> pd.DataFrame:
        """One row for each count, with the columns what and count."""
        import pandas as pd

        rows = [(name.replace("_", " "), count) for name, count in asdict(self).items()]
        return pd.DataFrame(rows, columns=["what", "count"])


def audit_prepared(folder: Path) -> tuple[pd.DataFrame, AuditSummary]:
    """Find duplicates and related images in a prepared folder, one `PairRow` each, and count them.

    With folds, every image is a test image, and one that is alike in another fold leaks.

    Exact ones come first, and then by falling similarity. The images should have 64 pixels a side
    or more: of 79,800 pairs of different phantoms, none is taken for a twin at 128 and 224, one at
    64, ten at 32. Of slices of volumes, copies of one file are found, and what is of one patient.
    """
    folder = Path(folder)
    manifest = load_manifest(folder)
    manifest["side"] = manifest["split"] == "test"
    if number_of_folds(manifest):
        manifest = manifest.assign(split="test", side=fold_of(manifest))
    if load_volumes(folder) is not None:
        found = _between_volumes(manifest)
        pairs = _pairs_of(manifest, found)
        return pairs, _summarise(manifest, pairs)
    paths = [folder / "images" / f"{id}.png" for id in manifest["id"]]
    thumbnails, digests = read_thumbnails(paths, lambda path: read_image(path, as_rgb)[0])
    found = {
        (pair.first, pair.second): (pair.kind, pair.similarity)
        for pair in find_duplicates(thumbnails, digests)
    }
    # The same file gives the same pixels, unless an image was changed after it was prepared.
    for pair in pairs_within(manifest["sha256"]):
        found[pair] = ("exact", 1.0)
    related = [pair for pair in pairs_within(manifest["group"]) if pair not in found]
    for pair, similarity in zip(related, detail_similarity(thumbnails, related), strict=True):
        found[pair] = ("same group", similarity)
    pairs = _pairs_of(manifest, found)
    return pairs, _summarise(manifest, pairs)


def _between_volumes(manifest: pd.DataFrame) -> dict[tuple[int, int], tuple[str, float]]:
    """Slices of copies of one file, and of one patient across the split.

    Neighbours in a volume and organs of different patients are alike, and no twins.
    """
    # the volume that a slice is of is its source
    owners, sides = manifest["source"].tolist(), manifest["side"].tolist()
    found = dict.fromkeys(pairs_within(manifest["sha256"]), ("exact", 1.0))
    for i, j in pairs_within(manifest["group"]):
        if owners[i] != owners[j] and sides[i] != sides[j]:
            found.setdefault((i, j), ("same group", 0.0))
    return found


def _pairs_of(
    manifest: pd.DataFrame, found: Mapping[tuple[int, int], tuple[str, float]]
) -> pd.DataFrame:
    import pandas as pd

    places = np.array(list(found), int).reshape(-1, 2).T
    a, b = (manifest.iloc[side].reset_index(drop=True) for side in places)
    pairs = pd.DataFrame({f"{name}_a": a[name] for name in ("id", "split", "label")})
    pairs = pairs.assign(**{f"{name}_b": b[name] for name in ("id", "split", "label")})
    kinds, similarities = zip(*found.values(), strict=True) if found else ((), ())
    pairs = pairs.assign(kind=pd.Series(kinds, dtype=str), similarity=np.array(similarities, float))
    pairs["crosses_split"] = a["side"] != b["side"]
    pairs["labels_differ"] = a["label"] != b["label"]
    pairs = pairs.assign(order=pairs["kind"].map(KINDS.index)).sort_values(
        ["order", "similarity", "id_a", "id_b"], ascending=[True, False, True, True]
    )
    return pairs[list(PAIR_COLUMNS)].reset_index(drop=True)


def write_audit(pairs: pd.DataFrame, target: Path) -> None:
    """Write the pairs as CSV, whole or not at all."""
    write_text(target, pairs.to_csv(index=False, float_format="%.4f", lineterminator="\n"))


def _components(manifest: pd.DataFrame, pairs: pd.DataFrame) -> pd.DataFrame:
    """For each set of connected images: its size, number of classes, and splits on both sides."""
    place = {id: index for index, id in enumerate(manifest["id"])}
    edges = [(place[a], place[b]) for a, b in zip(pairs["id_a"], pairs["id_b"], strict=True)]
    grouped = manifest.groupby(component_of(len(manifest), edges))
    return grouped.agg(size=("id", "size"), labels=("label", "nunique"), sides=("side", "nunique"))


def _summarise(manifest: pd.DataFrame, pairs: pd.DataFrame) -> AuditSummary:
    kinds = pairs["kind"].value_counts()
    duplicates = pairs[pairs["kind"] != "same group"]
    by_duplicates = _components(manifest, duplicates)
    return AuditSummary(
        images=len(manifest),
        exact_pairs=int(kinds.get("exact", 0)),
        near_pairs=int(kinds.get("near", 0)),
        mirrored_pairs=int(kinds.get("mirrored", 0)),
        same_group_pairs=int(kinds.get("same group", 0)),
        duplicate_images=len({*duplicates["id_a"], *duplicates["id_b"]}),
        duplicate_groups=int((by_duplicates["size"] > 1).sum()),
        conflicting_pairs=int(duplicates["labels_differ"].sum()),
        conflicting_groups=int((by_duplicates["labels"] > 1).sum()),
        crossing_pairs=int(pairs["crosses_split"].sum()),
        crossing_groups=int((_components(manifest, pairs)["sides"] > 1).sum()),
        test_images=int((manifest["split"] == "test").sum()),
        leaking_test_images=len(leaking_in(duplicates)),
        leaking_test_images_with_groups=len(leaking_in(pairs)),
    )
