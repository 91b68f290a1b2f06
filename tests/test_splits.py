import copyreg
import io
import os
import pickle
import pickletools
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from layouts import write_bus, write_kvasir, write_split

from wavegms.data.cases import Case
from wavegms.data.catalog import CATALOG, find_cases
from wavegms.data.splits import (
    MAX_SPLIT_BYTES,
    assign_splits,
    carve_validation,
    random_split,
    read_official_split,
    read_published_split,
)
from wavegms.errors import InputError
from wavegms.files import _PLAIN, _PlainUnpickler


def make_cases(groups: list[int], labels: list[str] | None = None) -> list[Case]:
    """One case for each entry: its group and, by group, its label."""
    labels = labels or [""]
    return [
        Case(f"c{i}", Path(f"c{i}.png"), (), labels[group % len(labels)], f"g{group}")
        for i, group in enumerate(groups)
    ]


grouped = st.lists(st.integers(0, 12), min_size=4, max_size=60).map(
    lambda groups: make_cases(groups, ["benign", "malignant", "other"])
)
fractions = st.floats(0.05, 0.6)
seeds = st.integers(0, 2**32)


def draw(cases, fraction, seed):
    """A random split, leaving aside the cases that are refused because nothing would remain."""
    try:
        return random_split(cases, fraction, seed)
    except InputError:
        assume(False)


@given(grouped, fractions, seeds)
def test_random_split_is_a_partition_that_keeps_groups_whole(cases, fraction, seed):
    splits = draw(cases, fraction, seed)
    assert list(splits) == [case.id for case in cases]
    assert set(splits.values()) == {"train", "test"}
    by_group = {}
    for case in cases:
        by_group.setdefault(case.group, set()).add(splits[case.id])
    assert all(len(found) == 1 for found in by_group.values())


@given(grouped, fractions, seeds, st.randoms(use_true_random=False))
def test_random_split_depends_on_ids_and_seed_alone(cases, fraction, seed, order):
    splits = draw(cases, fraction, seed)
    shuffled = cases.copy()
    order.shuffle(shuffled)
    assert random_split(shuffled, fraction, seed) == splits


@given(st.integers(10, 200), fractions, seeds)
def test_random_split_has_the_size_asked_for_where_every_image_is_its_own_group(n, fraction, seed):
    cases = make_cases(list(range(n)), ["benign", "malignant", "other"])
    splits = random_split(cases, fraction, seed)
    assert Counter(splits.values())["test"] == max(1, int(fraction * n + 0.5))
    for label in ("benign", "malignant", "other"):
        members = [case.id for case in cases if case.label == label]
        share = sum(splits[id] == "test" for id in members)
        assert abs(share - fraction * len(members)) < 2


def test_another_seed_gives_another_split():
    cases = make_cases(list(range(50)))
    assert random_split(cases, 0.3, 1) != random_split(cases, 0.3, 2)
    assert carve_validation(cases, 0.3, 1) != carve_validation(cases, 0.3, 2)


def test_what_is_over_goes_to_the_largest_remainders():
    """5 of 13: 2.69, 1.54 and 0.77 become 3, 1 and 1."""
    labels = ["a"] * 7 + ["b"] * 4 + ["c"] * 2
    splits = random_split(make_cases(list(range(13)), labels), 0.4, 1)
    drawn = [label for label, split in zip(labels, splits.values(), strict=True) if split == "test"]
    assert Counter(drawn) == {"a": 3, "b": 1, "c": 1}


def test_two_groups_can_be_divided():
    splits = random_split(make_cases([0, 0, 1, 1]), 0.5, 1)
    assert Counter(splits.values()) == {"train": 2, "test": 2}


@given(grouped, st.floats(0.001, 0.6), seeds)
def test_validation_has_an_image_and_leaves_one(cases, fraction, seed):
    try:
        validation = carve_validation(cases, fraction, seed)
    except InputError:
        assume(False)
    assert 1 <= len(validation) < len(cases)
    inside = {case.group for case in cases if case.id in validation}
    outside = {case.group for case in cases if case.id not in validation}
    assert not inside & outside


def test_no_validation_when_none_is_asked_for():
    assert carve_validation(make_cases([0, 1, 2]), 0, 1) == set()


@pytest.mark.parametrize("fraction", [-0.1, 1, 1.5, float("nan")])
def test_fractions_out_of_range(fraction):
    with pytest.raises(InputError, match=r"validation_fraction is .*: set it from 0 to below 1"):
        carve_validation(make_cases([0, 1, 2]), fraction, 1)
    with pytest.raises(InputError, match=r"test_fraction is .*: set it above 0 and below 1"):
        random_split(make_cases([0, 1, 2]), fraction, 1)


def test_a_test_fraction_of_zero_is_refused():
    with pytest.raises(InputError, match="test_fraction is 0"):
        random_split(make_cases([0, 1, 2]), 0, 1)


def test_too_few_groups_name_the_parameter():
    with pytest.raises(InputError, match=r"test_fraction is 0\.5, but 3 images in 1 group.*: add"):
        random_split(make_cases([0, 0, 0]), 0.5, 1)
    with pytest.raises(InputError, match=r"validation_fraction is 0\.5, but 3 images in 1 group"):
        carve_validation(make_cases([0, 0, 0]), 0.5, 1)


def test_nothing_left_to_train_on_names_the_parameter():
    with pytest.raises(InputError, match=r"test_fraction is 0.99.*set it lower"):
        random_split(make_cases([0, 1, 2]), 0.99, 1)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_published_split_of_any_protocol(tmp_path, protocol):
    content = {"train": {"name_list": ["a", "é"]}, "test": {"name_list": ["b"]}}
    path = tmp_path / "split.pkl"
    path.write_bytes(pickle.dumps(content, protocol=protocol))
    assert read_published_split(path) == {"train": ["a", "é"], "test": ["b"]}


class Command:
    """Unpickled by the book, it creates a file."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


def test_extension_codes_do_not_reach_a_registered_function(tmp_path):
    """The registry's cache hands functions out without asking `find_class`."""
    marker, path, code = tmp_path / "marker", tmp_path / "split.pkl", 0x70
    module = os.system.__module__
    copyreg.add_extension(module, "system", code)
    try:
        by_code = b"\x80\x02\x82" + bytes([code])
        assert pickle.loads(by_code + b".") is os.system  # and it is in the cache now
        command = b"X" + len(f"touch {marker}").to_bytes(4, "little") + f"touch {marker}".encode()
        path.write_bytes(by_code + command + b"\x85R.")
        with pytest.raises(InputError, match="EXT1"):
            read_published_split(path)
        assert not marker.exists()
    finally:
        copyreg.remove_extension(module, "system", code)
        copyreg.clear_extension_cache()


def test_no_opcode_that_names_a_global_or_calls_is_admitted():
    # fmt: off
    dangerous = {
        "GLOBAL", "STACK_GLOBAL", "REDUCE", "BUILD", "INST", "OBJ", "NEWOBJ", "NEWOBJ_EX",
        "EXT1", "EXT2", "EXT4", "PERSID", "BINPERSID", "NEXT_BUFFER",
    }
    # fmt: on
    known = {opcode.name for opcode in pickletools.opcodes}
    assert (dangerous | _PLAIN) <= known
    assert not dangerous & _PLAIN
    # The second lock holds by itself.
    with pytest.raises(pickle.UnpicklingError):
        _PlainUnpickler(io.BytesIO(pickle.dumps(Command("x")))).load()
    with pytest.raises(pickle.UnpicklingError):
        _PlainUnpickler(io.BytesIO(b"Pname\n.")).load()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"not a pickle",
        b"\x80\x04",
        pickle.dumps({"train": {"name_list": ["a"] * 50}})[:-20],
        b"\x80\x04\x95\xff\xff\xff\xff\xff\xff\xff\x7f.",  # a frame of eight exabytes
    ],
)
def test_damaged_pickles_name_the_file(tmp_path, data):
    (tmp_path / "split.pkl").write_bytes(data)
    with pytest.raises(InputError, match=r"split\.pkl is not a plain pickle.*replace it"):
        read_published_split(tmp_path / "split.pkl")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (["a"], "no list of names under train"),
        ("train", "no list of names under train"),
        ({"train": ["a"], "test": ["b"]}, "no list of names under train"),
        ({"train": {"name_list": ["a"]}}, "no list of names under test"),
        ({"train": {"name_list": "abc"}, "test": {"name_list": ["b"]}}, "no list of names"),
        (
            {"train": {"name_list": ["a"]}, "test": {"name_list": [1]}},
            "other than names",
        ),
        ({"train": {"name_list": ["a"]}, "test": {"name_list": []}}, "no name is listed for test"),
        ({"train": {"name_list": []}, "test": {"name_list": ["a"]}}, "no name is listed for train"),
        ({"train": {"name_list": ["a"]}, "test": {"name_list": ["a"]}}, "in train and test"),
        ({"train": {"name_list": ["a", "a"]}, "test": {"name_list": ["b"]}}, "listed twice"),
    ],
)
def test_wrong_content_names_the_file(tmp_path, content, said):
    (tmp_path / "split.pkl").write_bytes(pickle.dumps(content))
    with pytest.raises(InputError, match=rf"split\.pkl.*{said}"):
        read_published_split(tmp_path / "split.pkl")


def test_missing_published_split_says_where_it_is(tmp_path):
    with pytest.raises(InputError, match=r"busi\.pkl is missing.*King-HAW/GMS.*random"):
        read_published_split(tmp_path / "busi.pkl")


def test_too_large_a_split_is_not_read(tmp_path):
    path = tmp_path / "split.pkl"
    with open(path, "wb") as file:
        file.truncate(MAX_SPLIT_BYTES + 1)
    with pytest.raises(InputError, match="larger than 1 MB"):
        read_published_split(path)


def test_official_split(tmp_path):
    lists = read_official_split(write_kvasir(tmp_path))
    assert lists == {"train": ["ck00x", "ck01x", "ck02x", "ck03x"], "test": ["ck04x.jpg"]}


def test_official_split_with_marks_of_other_editors(tmp_path):
    (tmp_path / "train.txt").write_bytes("\ufeffa\r\n\r\n b \r\n".encode())
    (tmp_path / "test.txt").write_bytes(b"c")
    assert read_official_split(tmp_path) == {"train": ["a", "b"], "test": ["c"]}


@pytest.mark.parametrize(
    ("train", "test", "said"),
    [
        (b"a\n", None, r"test\.txt is missing.*one image name a line"),
        (b"a\n", b"\n\n", "no name is listed for test"),
        (b"a\n", b"a\n", r"train\.txt and test\.txt: .*twice \(in train and test\)"),
        (b"a\n", b"b\nb\n", r"listed twice \(in test\)"),
        (b"\xff\xfe\x80", b"a\n", r"train\.txt cannot be read as text"),
    ],
)
def test_wrong_official_lists(tmp_path, train, test, said):
    (tmp_path / "train.txt").write_bytes(train)
    if test is not None:
        (tmp_path / "test.txt").write_bytes(test)
    with pytest.raises(InputError, match=said):
        read_official_split(tmp_path)


def test_a_list_that_the_disk_does_not_give_is_named(tmp_path, monkeypatch):
    write_kvasir(tmp_path)
    monkeypatch.setattr(Path, "read_text", lambda *_, **__: (_ for _ in ()).throw(OSError("worn")))
    with pytest.raises(InputError, match=r"train\.txt cannot be read as text \(worn\)"):
        read_official_split(tmp_path)


def assign(cases, method, folder, split_file=None, validation_fraction=0.0, lists=""):
    return assign_splits(
        cases,
        method,
        folder=folder,
        split_file=split_file,
        lists=folder / lists,
        test_fraction=0.3,
        validation_fraction=validation_fraction,
        seed=5,
    )


def test_official_method(tmp_path):
    cases = find_cases("kvasir_instrument", write_kvasir(tmp_path))
    splits = assign(cases, "official", tmp_path, validation_fraction=0.25)
    assert splits["ck04x"] == "test"
    assert Counter(splits.values()) == {"train": 3, "val": 1, "test": 1}


def test_published_method_leaves_unlisted_cases_out(tmp_path):
    cases = find_cases("bus", write_bus(tmp_path))
    path = write_split(tmp_path / "s.pkl", ["000002", "000001"], ["000004"])
    assert assign(cases, "published", tmp_path, path) == {
        "000001": "train",
        "000002": "train",
        "000004": "test",
    }


def test_validation_comes_out_of_train_only(tmp_path):
    cases = find_cases("bus", write_bus(tmp_path, 20))
    names = [case.id for case in cases]
    path = write_split(tmp_path / "s.pkl", names[:14], names[14:])
    splits = assign(cases, "published", tmp_path, path, validation_fraction=0.2)
    assert [id for id, split in splits.items() if split == "test"] == names[14:]
    assert Counter(splits.values()) == {"train": 11, "val": 3, "test": 6}


@pytest.mark.parametrize("method", ["random", "grouped"])
def test_drawn_methods(tmp_path, method):
    cases = make_cases(list(range(40)))
    splits = assign(cases, method, tmp_path, validation_fraction=0.25)
    drawn = random_split(cases, 0.3, 5)
    train = [case for case in cases if drawn[case.id] == "train"]
    validation = carve_validation(train, 0.25, 5)
    assert len(train) == 28 and len(validation) == 7
    for id, part in splits.items():
        assert part == ("val" if id in validation else drawn[id])


def test_external_data_are_all_for_testing(tmp_path):
    assert assign(make_cases([0, 1]), "external", tmp_path) == {"c0": "test", "c1": "test"}


def test_a_dot_in_a_name_is_no_ending(tmp_path):
    cases = [Case(id, Path(f"{id}.png"), (), "", id) for id in ("a.1", "a.2", "b")]
    path = write_split(tmp_path / "s.pkl", ["a.1", "b.PNG"], ["a.2.png"])
    splits = assign(cases, "published", tmp_path, path)
    assert splits == {"a.1": "train", "a.2": "test", "b": "train"}


def test_names_without_an_image(tmp_path):
    cases = find_cases("bus", write_bus(tmp_path))
    path = write_split(tmp_path / "three.pkl", ["000001", "x1", "x2"], ["x3"])
    with pytest.raises(InputError, match=r"3 of 4 names in .*three\.pkl.*\(x1, x2, x3\): "):
        assign(cases, "published", tmp_path, path)
    for part, listed in (("train", "x"), ("test", "000001")):
        (tmp_path / f"{part}.txt").write_text(listed)
    with pytest.raises(InputError, match=r"1 of 2 names in the lists in .* have no image \(x\): "):
        assign(cases, "official", tmp_path)
    path = write_split(tmp_path / "s.pkl", ["000001", "x1", "x2"], ["x3", "x4"])
    with pytest.raises(InputError, match=r"4 of 5 names in .*s\.pkl.*\(x1, x2, x3, \.\.\.\)"):
        assign(cases, "published", tmp_path, path)


def test_names_that_become_the_same_image(tmp_path):
    cases = find_cases("kvasir_instrument", write_kvasir(tmp_path))
    (tmp_path / "test.txt").write_text("ck00x.jpg\n")
    with pytest.raises(InputError, match="ck00x is in both train and test"):
        assign(cases, "official", tmp_path)


LISTED = {"Train": ["benign (1)", "benign (2).png", ""], "Val": ["malignant (1)"]}
LISTED["Test"] = ["benign (3)"]


def write_three(lists, place):
    """Lists as `place` names them, `exp1/{}.txt` or otherwise."""
    for part, listed in lists.items():
        path = Path(str(place).format(part))
        path.parent.mkdir(exist_ok=True)
        path.write_text("\n".join(listed), encoding="utf-8")


def busi_cases():
    ids = [("benign", n) for n in range(1, 5)] + [("malignant", 1)]
    return [Case(f"{k}_{n}", Path(f"{k} ({n}).png"), (), k, f"{k}_{n}") for k, n in ids]


@pytest.mark.parametrize("name", ["exp1/{}.txt", "exp1_{}.txt"])
@pytest.mark.parametrize("small", [False, True])
def test_three_lists_say_all_and_nothing_is_drawn(tmp_path, name, small):
    lists = {part.lower() if small else part: listed for part, listed in LISTED.items()}
    write_three(lists, tmp_path / name)
    splits = assign(busi_cases(), "lists", tmp_path, validation_fraction=0.9, lists="exp1")
    assert splits == {
        **{"benign_1": "train", "benign_2": "train"},
        **{"benign_3": "test", "malignant_1": "val"},
    }


@pytest.mark.parametrize(
    ("part", "listed", "said"),
    [
        ("Val", None, r"exp1.Val\.txt is missing: write one image name a line"),
        ("Val", [], "no name is listed for val"),
        ("Val", ["benign (3)"], r"benign \(3\) is listed twice \(in val and test\)"),
        ("Val", ["benign_3"], "image benign_3 is in both val and test"),
        ("Test", ["benign (9)"], r"1 of 4 names in the lists of .*exp1 have no image \(benign_9\)"),
    ],
)
def test_three_lists_that_do_not_fit_are_refused(tmp_path, part, listed, said):
    write_three(LISTED | {part: listed or []}, tmp_path / "exp1/{}.txt")
    if listed is None:
        (tmp_path / f"exp1/{part}.txt").unlink()
    with pytest.raises(InputError, match=said):
        assign(busi_cases(), "lists", tmp_path, lists="exp1")


@pytest.mark.realdata
@pytest.mark.parametrize("run", [1, 2, 3])
def test_real_splits_of_acc_unet_have_the_published_test_images(real_data, run):
    cases = find_cases("busi", real_data / "data/raw/busi")
    folder = real_data / "data/splits"
    published = read_published_split(folder / CATALOG["busi"].split_file)
    splits = assign(cases, "lists", folder, lists=f"acc_unet_busi/exp{run}")
    counts = Counter(splits.values())
    assert counts == {"train": 388, "val": 129, "test": 130}
    assert {id for id, part in splits.items() if part == "test"} == set(published["test"])
    assert {id for id, part in splits.items() if part != "test"} == set(published["train"])


def test_unknown_method_and_no_published_split(tmp_path):
    cases = find_cases("bus", write_bus(tmp_path))
    for unknown in ("best", "worst"):
        with pytest.raises(InputError, match=f"split is '{unknown}': set it to published"):
            assign(cases, unknown, tmp_path)
    with pytest.raises(InputError, match="no published split: set split to random"):
        assign(cases, "published", tmp_path)


@pytest.mark.realdata
@pytest.mark.parametrize("name", ["bus", "busi", "kvasir_instrument", "ham10000"])
def test_real_published_splits_have_the_paper_s_counts(real_data, name):
    spec = CATALOG[name]
    lists = read_published_split(real_data / "data/splits" / spec.split_file)
    assert (len(lists["train"]), len(lists["test"])) == (spec.train, spec.test)
    assert spec.train + spec.test == spec.pairs


@pytest.mark.realdata
def test_real_busi_split(real_data):
    cases = find_cases("busi", real_data / "data/raw/busi")
    path = real_data / "data/splits" / CATALOG["busi"].split_file
    lists = read_published_split(path)
    splits = assign(cases, "published", real_data, path, validation_fraction=0.1)
    parts = {
        part: {id for id, found in splits.items() if found == part}
        for part in ("train", "val", "test")
    }
    assert parts["test"] == set(lists["test"])
    assert parts["train"] | parts["val"] == set(lists["train"])
    assert (len(parts["val"]), len(parts["test"]), len(splits)) == (52, 130, 647)
    # Stratified: a tenth of each class, up to rounding.
    label_of = {case.id: case.label for case in cases}
    in_train = Counter(label_of[id] for id in lists["train"])
    in_val = Counter(label_of[id] for id in parts["val"])
    assert all(abs(in_val[label] - in_train[label] / 10) < 1 for label in in_train)
