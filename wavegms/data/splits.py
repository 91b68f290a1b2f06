"""Splits: the published ones, those that come with a dataset, and random ones by group.

Two rules hold throughout: a validation split is taken out of train and never out of test, and what
is drawn at random depends on the ids and the seed alone, not on the order of the cases.
"""

import random
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from wavegms.data.cases import IMAGE_SUFFIXES, VOLUME_SUFFIXES, Case, case_id, file_stem
from wavegms.errors import InputError, first_line, listed
from wavegms.files import load_plain_pickle

# The largest published split, of 10,015 names, has 150 kB.
MAX_SPLIT_BYTES = 1_000_000


def read_published_split(path: Path) -> dict[str, list[str]]:
    """Read a published train/test split, `{"train": {"name_list": [...]}, "test": ...}`.

    A pickle of the GMS repository; the lists by part, in their order, without a name that repeats.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(
            f"The published split {path} is missing: get it from the Dataset folder of "
            "https://github.com/King-HAW/GMS, or set split to random."
        )
    if path.stat().st_size > MAX_SPLIT_BYTES:
        raise InputError(
            f"{path} is larger than {MAX_SPLIT_BYTES // 1_000_000} MB and so no published split: "
            "replace it with the published file."
        )
    try:
        content = load_plain_pickle(path.read_bytes())
    except Exception as error:  # a damaged pickle raises nearly anything
        raise InputError(
            f"{path} is not a plain pickle of names ({first_line(error)}): "
            "replace it with the published file and do not open it by other means."
        ) from error
    lists = {}
    for part in ("train", "test"):
        try:
            names = content[part]["name_list"]
        except (KeyError, TypeError, IndexError):
            names = None
        problem = "" if isinstance(names, list) else "has no list of names"
        if not problem and not all(isinstance(name, str) for name in names):
            problem = "lists something other than names"
        if problem:
            raise InputError(
                f"{path} {problem} under {part}, name_list: replace it with the published file."
            )
        lists[part] = names
    _check_lists(lists, path)
    return lists


def read_official_split(folder: Path) -> dict[str, list[str]]:
    """Read the lists `train.txt` and `test.txt` that lie in a dataset's folder.

    Kvasir-Instrument is published with them; they work for any dataset. One name a line, with or
    without the image's ending; blank lines do not count.
    """
    paths = {part: Path(folder) / f"{part}.txt" for part in ("train", "test")}
    lists = {part: _read_list(path) for part, path in paths.items()}
    _check_lists(lists, Path(folder) / "train.txt and test.txt")
    return lists


def lists_of(folder: Path) -> dict[str, Path]:
    """Where the lists of the method "lists" are: `exp1/Train.txt` or `exp1_Train.txt` for exp1.

    Of train, val and test; a name may also be written small.
    """
    folder = Path(folder)
    found = {}
    for part in ("train", "val", "test"):
        names = f"{part.title()}.txt", f"{part}.txt"
        places = [folder / name for name in names]
        places += [folder.with_name(f"{folder.name}_{name}") for name in names]
        found[part] = next((place for place in places if place.is_file()), places[0])
    return found


def read_lists(folder: Path) -> dict[str, list[str]]:
    """Read the lists that `lists_of` finds, as ACC-UNet's authors published them; names as above.

    Each of the three parts is listed, none is drawn.
    """
    lists = {part: _read_list(path) for part, path in lists_of(folder).items()}
    _check_lists(lists, f"the lists of {folder}")
    return lists


def _read_list(path: Path) -> list[str]:
    if not path.is_file():
        raise InputError(
            f"{path} is missing: write one image name a line into it, or set split to random."
        )
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read as text ({error}): save it as UTF-8.") from error
    return [line.strip() for line in lines if line.strip()]


def random_split(cases: Sequence[Case], test_fraction: float, seed: int) -> dict[str, str]:
    """Draw a test split at random, whole groups at a time and in the proportions of the labels.

    As groups stay whole, it can exceed its share by less than one group for each label.
    """
    if not 0 < test_fraction < 1:
        raise InputError(f"test_fraction is {test_fraction}: set it above 0 and below 1.")
    test = _draw_groups(cases, test_fraction, seed, "test_fraction")
    return {case.id: "test" if case.id in test else "train" for case in cases}


def carve_validation(cases: Sequence[Case], validation_fraction: float, seed: int) -> set[str]:
    """Draw the ids of a validation split out of the training cases, as `random_split` draws.

    None if the fraction is 0, otherwise at least one, and at least one group stays in train.
    """
    if not 0 <= validation_fraction < 1:
        raise InputError(f"validation_fraction is {validation_fraction}: set it from 0 to below 1.")
    if validation_fraction == 0:
        return set()
    return _draw_groups(cases, validation_fraction, seed, "validation_fraction")


def assign_splits(
    cases: Sequence[Case],
    method: str,
    *,
    folder: Path,
    split_file: Path | None,
    test_fraction: float,
    validation_fraction: float,
    seed: int,
    lists: Path | None = None,
) -> dict[str, str]:
    """Say of each case whether it is for "train", "val" or "test"; unlisted ones are left out.

    The methods are "published" (the pickle `split_file`), "official" (`train.txt` and `test.txt` in
    `folder`), "lists" (of all three, see `lists_of`), "random", and "grouped", which draws alike:
    who calls has widened the groups to hold duplicates together, see `merge_groups`. With
    "external", for a dataset that no model is trained on, all cases are for testing.
    """
    if method == "external":
        return {case.id: "test" for case in cases}
    if method in ("random", "grouped"):
        splits = random_split(cases, test_fraction, seed)
    elif method == "official":
        splits = _apply_lists(cases, read_official_split(folder), f"the lists in {folder}")
    elif method == "lists" and lists is not None:
        return _apply_lists(cases, read_lists(lists), f"the lists of {lists}")
    elif method == "published":
        if split_file is None:
            raise InputError("This dataset has no published split: set split to random.")
        splits = _apply_lists(cases, read_published_split(split_file), str(split_file))
    else:
        raise InputError(
            f"split is {method!r}: set it to published, official, lists, random or grouped."
        )
    train = [case for case in cases if splits.get(case.id) == "train"]
    validation = carve_validation(train, validation_fraction, seed)
    return {id: "val" if id in validation else split for id, split in splits.items()}


def assign_folds(
    cases: Sequence[Case], folds: int, *, validation_fraction: float, seed: int
) -> list[dict[str, str]]:
    """Say as `assign_splits`, for each fold; each case is for testing in exactly one.

    Whole groups are dealt out, label by label and larger ones first, to the fold with the fewest
    images: folds differ by at most the largest group. Validation is carved out as ever.
    """
    dealt: list[set[str]] = [set() for _ in range(folds)]
    strata = _strata(cases, seed).values()
    groups = [group for members in strata for group in sorted(members, key=len, reverse=True)]
    if len(groups) < folds:
        way_out = f"at most {len(groups)}, or to null" if len(groups) > 1 else "null"
        raise InputError(
            f"split.folds is {folds}, but {len(cases)} images in {len(groups)} group(s) that stay "
            f"whole cannot be divided so: add data, or set it to {way_out}."
        )
    for group in groups:
        min(dealt, key=len).update(case.id for case in group)
    splits = []
    for test in dealt:
        learnt = [case for case in cases if case.id not in test]
        validation = carve_validation(learnt, validation_fraction, seed)
        part = dict.fromkeys(test, "test") | dict.fromkeys(validation, "val")
        splits.append({case.id: part.get(case.id, "train") for case in cases})
    return splits


def assign_all(
    cases: Sequence[Case],
    method: str,
    folds: int | None,
    *,
    validation_fraction: float,
    seed: int,
    **how: Any,
) -> list[dict[str, str]]:
    """What `assign_folds` says of each fold, or without any the one split of `assign_splits`.

    Data that no model is trained on have no folds.
    """
    drawn = {"validation_fraction": validation_fraction, "seed": seed}
    if folds and method != "external":
        return assign_folds(cases, folds, **drawn)
    return [assign_splits(cases, method, **drawn, **how)]


def _check_lists(lists: dict[str, list[str]], where: Path | str) -> None:
    seen: dict[str, str] = {}
    for part, names in lists.items():
        if not names:
            raise InputError(
                f"{where}: no name is listed for {part}; complete the list, or set split to random."
            )
        for name in names:
            if name in seen:
                places = part if seen[name] == part else f"{seen[name]} and {part}"
                raise InputError(
                    f"{where}: the name {name} is listed twice (in {places}); keep it once."
                )
            seen[name] = part


def _apply_lists(cases: Iterable[Case], lists: dict[str, list[str]], where: str) -> dict[str, str]:
    """Turn lists of names into a split for each id."""
    split_of: dict[str, str] = {}
    for part, names in lists.items():
        for name in names:
            whole = not name.lower().endswith((*IMAGE_SUFFIXES, *VOLUME_SUFFIXES))
            stem = name if whole else file_stem(Path(name))
            first = split_of.setdefault(case_id(stem), part)
            if first != part:
                raise InputError(
                    f"{where}: the image {case_id(stem)} is in both {first} and {part}; keep it in "
                    "one."
                )
    splits = {case.id: split_of[case.id] for case in cases if case.id in split_of}
    missing = [id for id in split_of if id not in splits]
    if missing:
        raise InputError(
            f"{len(missing)} of {len(split_of)} names in {where} have no image "
            f"({listed(missing)}): complete the dataset, or set split to random."
        )
    return splits


def _strata(cases: Sequence[Case], seed: int) -> dict[str, list[list[Case]]]:
    """The groups of each label, in a random order that depends on ids and seed alone."""
    groups: dict[str, list[Case]] = {}
    for case in sorted(cases, key=lambda case: case.id):
        groups.setdefault(case.group, []).append(case)
    strata: dict[str, list[list[Case]]] = {}
    for members in groups.values():
        # A group whose images differ in label counts for that of its first image.
        strata.setdefault(members[0].label, []).append(members)
    for label, members in strata.items():
        random.Random(f"{seed} {label}").shuffle(members)
    return dict(sorted(strata.items()))


def _draw_groups(cases: Sequence[Case], fraction: float, seed: int, parameter: str) -> set[str]:
    """Draw about `fraction` of the cases, by whole groups, stratified by label."""
    strata = _strata(cases, seed)
    groups = sum(map(len, strata.values()))
    if groups < 2:
        raise InputError(
            f"{parameter} is {fraction}, but {len(cases)} images in {groups} group(s) cannot "
            "be divided: add data, or set the fraction to 0 where that is allowed."
        )

    # Largest remainders, so that the shares of the labels add up to the share of the whole.
    total = max(1, int(fraction * len(cases) + 0.5))
    shares = {
        label: total * sum(map(len, members)) / len(cases) for label, members in strata.items()
    }
    quota = {label: int(share) for label, share in shares.items()}
    by_remainder = sorted(shares, key=lambda label: (quota[label] - shares[label], label))
    for label in by_remainder[: total - sum(quota.values())]:
        quota[label] += 1

    drawn: set[str] = set()
    for label, members in strata.items():
        count = 0
        for group in members:
            if count >= quota[label]:
                break
            drawn.update(case.id for case in group)
            count += len(group)
    if len(drawn) == len(cases):
        raise InputError(
            f"{parameter} is {fraction}, which leaves no image to train on: set it lower."
        )
    return drawn
