"""Lists of names from outside. A pickle is a program; here none of it ever runs."""

import copyreg
import os
import pickle
import pickletools
import time
from pathlib import Path

import pytest
from hostile import damaged, fuzz, outcome, scratch
from hypothesis import given
from hypothesis import strategies as st
from layouts import write_split
from payloads import BOMBS, PAYLOADS, text

from wavegms.data.cases import Case
from wavegms.data.splits import assign_splits, read_official_split, read_published_split


def judge(folder: Path, path: Path):
    """Lists of names or a sentence; quickly, and with no trace of anything that ran."""
    start = time.process_time()
    lists = outcome(folder, [path], lambda: read_published_split(path))
    assert time.process_time() - start < 10
    if lists is not None:
        assert list(lists) == ["train", "test"]
        names = lists["train"] + lists["test"]
        assert names and all(type(name) is str for name in names) and len(set(names)) == len(names)
    return lists


@pytest.mark.parametrize("name", list(PAYLOADS))
@pytest.mark.parametrize("place", ["alone", "in a list of names", "as a key", "beside", "framed"])
def test_no_payload_runs(survived, tmp_path, name, place):
    canary, path = tmp_path / "ran", tmp_path / "split.pkl"
    payload = PAYLOADS[name](str(canary))
    names = b"\x80\x04}(" + text("train") + b"}" + text("name_list") + b"](" + text("a")
    end = b"ess" + b"u."
    data = {
        "alone": b"\x80\x04" + payload + b".",
        "in a list of names": names + payload + end,
        "as a key": b"\x80\x04}" + payload + b"Ns.",
        "beside": b"\x80\x04]" + payload + b"a" + b".",
        "framed": b"\x80\x04\x95" + (len(payload) + 1).to_bytes(8, "little") + payload + b".",
    }[place]
    path.write_bytes(data)
    assert judge(tmp_path, path) is None and not canary.exists()
    survived("inputs")


@pytest.mark.parametrize("name", list(PAYLOADS))
def test_every_payload_does_run_when_opened_carelessly(tmp_path, name):
    """Or the test above would prove nothing."""

    class Careless(pickle.Unpickler):
        def persistent_load(self, pid):
            Path(pid if isinstance(pid, str) else pid[0]).touch()

    canary, path = tmp_path / "ran", tmp_path / "split.pkl"
    path.write_bytes(b"\x80\x04" + PAYLOADS[name](str(canary)) + b".")
    copyreg.add_extension(os.system.__module__, "system", 0x71)
    try:
        with open(path, "rb") as file:
            Careless(file).load()
    except Exception as error:  # after the deed, some are no proper objects
        assert not isinstance(error, pickle.UnpicklingError), error
    finally:
        copyreg.remove_extension(os.system.__module__, "system", 0x71)
        copyreg.clear_extension_cache()
    assert canary.exists()


@pytest.mark.parametrize("name", list(BOMBS))
def test_bombs_end_quickly(survived, tmp_path, name):
    path = tmp_path / "split.pkl"
    path.write_bytes(BOMBS[name]())
    assert judge(tmp_path, path) is None
    survived("inputs")


# Every instruction there is, with an argument of its kind; many would call or import something.
ARGUMENTS = {
    None: st.just(b""),
    "uint1": st.binary(min_size=1, max_size=1),
    "uint2": st.binary(min_size=2, max_size=2),
    "int4": st.binary(min_size=4, max_size=4),
    "uint4": st.binary(min_size=4, max_size=4),
    "uint8": st.binary(min_size=8, max_size=8),
    "decimalnl_short": st.integers(-3, 99).map(lambda n: b"%d\n" % n),
    "decimalnl_long": st.integers(-(10**30), 10**30).map(lambda n: b"%dL\n" % n),
    "floatnl": st.floats().map(lambda x: repr(x).encode() + b"\n"),
    "float8": st.binary(min_size=8, max_size=8),
    "stringnl": st.sampled_from([b"'a'\n", b"a\n", b"'\\x00'\n"]),
    "stringnl_noescape": st.sampled_from([b"a\n", b"os\n"]),
    "stringnl_noescape_pair": st.sampled_from([b"os\nsystem\n", b"posix\nsystem\n", b"a\nb\n"]),
    "unicodestringnl": st.sampled_from([b"a\n", b"\\u0041\n", b"\\ud800\n"]),
}


@st.composite
def instructions(draw) -> bytes:
    parts = [b"\x80\x04"]
    for opcode in draw(st.lists(st.sampled_from(pickletools.opcodes), max_size=25)):
        kind = opcode.arg and opcode.arg.name
        if kind in ARGUMENTS:
            argument = draw(ARGUMENTS[kind])
        else:  # a length of 1, 4 or 8 bytes and as many bytes
            body = draw(st.binary(max_size=9))
            digits = int(kind[-1])
            argument = len(body).to_bytes(digits, "little") + body
        parts.append(opcode.code.encode("latin-1") + argument)
    return b"".join(parts) + draw(st.sampled_from([b".", b"", b"e.", b"u."]))


@fuzz(1000)
@given(instructions())
def test_any_instructions(survived, data):
    with scratch() as folder:
        path = folder / "split.pkl"
        path.write_bytes(data)
        assert judge(folder, path) is None
    survived("inputs")


GOOD = [
    pickle.dumps({"train": {"name_list": ["a", "b", "é"]}, "test": {"name_list": ["c"]}}, protocol)
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1)
]


@fuzz(600)
@given(damaged(GOOD))
def test_a_damaged_list(survived, data):
    with scratch() as folder:
        path = folder / "split.pkl"
        path.write_bytes(data)
        judge(folder, path)
    survived("inputs")


anything = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(), st.binary()),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.tuples(inner, inner),
        st.dictionaries(st.sampled_from(["train", "test", "name_list", "x"]), inner),
    ),
    max_leaves=8,
)


@fuzz(300)
@given(anything, st.integers(0, pickle.HIGHEST_PROTOCOL))
def test_a_pickle_of_anything(survived, content, protocol):
    with scratch() as folder:
        path = folder / "split.pkl"
        path.write_bytes(pickle.dumps(content, protocol))
        judge(folder, path)
    survived("inputs")


# What lists name, against what there is.
CASES = [Case(f"c{i}", Path(f"images/c{i}.png"), (), "", f"c{i}") for i in range(6)]
names = st.one_of(
    st.sampled_from([f"c{i}" for i in range(6)]),
    st.sampled_from([f"c{i}.png" for i in range(3)]),
    st.sampled_from(
        ["C1", "c1 ", "c9", "", ".png", "../c1", "c\n1", "\x1b[2J", "\ud800", "x" * 9000]
    ),
    st.text(max_size=5),
)


@fuzz(400)
@given(st.lists(names, max_size=7), st.lists(names, max_size=4), st.booleans())
def test_names_that_fit_or_not(survived, train, test, official):
    """In both lists, twice, of no image, empty: either the split as listed or a sentence."""
    with scratch() as folder:
        path = write_split(folder / "split.pkl", train, test)
        if official:
            for part, listed in (("train", train), ("test", test)):
                content = "\n".join(listed).encode("utf-8", "surrogatepass")
                (folder / f"{part}.txt").write_bytes(content)
        splits = outcome(
            folder,
            [folder],
            lambda: assign_splits(
                CASES,
                "official" if official else "published",
                folder=folder,
                split_file=path,
                test_fraction=0.2,
                validation_fraction=0.0,
                seed=1,
            ),
        )
        if splits is not None:
            for id, part in splits.items():
                here, there = (train, test) if part == "train" else (test, train)
                assert any(id in name for name in here)
                assert not {id, f"{id}.png"} & set(there)
    survived("inputs")


@fuzz(200)
@given(st.binary(max_size=60), st.sampled_from(["train", "test"]))
def test_lists_of_any_bytes(survived, content, part):
    with scratch() as folder:
        for name in ("train", "test"):
            (folder / f"{name}.txt").write_bytes(name.encode())
        (folder / f"{part}.txt").write_bytes(content)
        lists = outcome(folder, [folder], lambda: read_official_split(folder))
        if lists is not None:
            assert all(name == name.strip() != "" for name in [*lists["train"], *lists["test"]])
    survived("inputs")


def test_a_list_that_never_ends_is_not_waited_for(survived, tmp_path):
    (tmp_path / "test.txt").symlink_to("/dev/zero")
    os.mkfifo(tmp_path / "train.txt")
    assert outcome(tmp_path, [tmp_path], lambda: read_official_split(tmp_path)) is None
    (tmp_path / "train.txt").unlink()
    (tmp_path / "train.txt").write_text("a")
    assert outcome(tmp_path, [tmp_path], lambda: read_official_split(tmp_path)) is None
    survived("inputs", 2)
