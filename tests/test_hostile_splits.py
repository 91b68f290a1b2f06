"""Lists of names from outside. A pickle is a program; here none of it ever runs."""

import copyreg
import os
import pickle
import pickletools
from pathlib import Path

import pytest
from hostile import NO_FILES, Reader, damaged, drawn, rewritten, suite
from hypothesis import strategies as st
from layouts import write_split
from payloads import BOMBS, PAYLOADS, text

from wavegms.data.cases import Case
from wavegms.data.splits import assign_splits, read_official_split, read_published_split


def sound_lists(lists, path) -> None:
    assert list(lists) == ["train", "test"]
    names = lists["train"] + lists["test"]
    assert names and all(type(name) is str and name for name in names)
    assert len(set(names)) == len(names)


NAMES = b"\x80\x04}(" + text("train") + b"}" + text("name_list") + b"](" + text("a")
PLACES = {
    "alone": lambda payload: b"\x80\x04" + payload + b".",
    "in a list of names": lambda payload: NAMES + payload + b"essu.",
    "as a key": lambda payload: b"\x80\x04}" + payload + b"Ns.",
    "beside": lambda payload: b"\x80\x04]" + payload + b"a.",
    "framed": lambda payload: (
        b"\x80\x04\x95" + (len(payload) + 1).to_bytes(8, "little") + payload + b"."
    ),
}
CODE = {
    f"{name}, {place}": rewritten(
        lambda canary, payload=payload, wrap=wrap: wrap(payload(str(canary)))
    )
    for name, payload in PAYLOADS.items()
    for place, wrap in PLACES.items()
}

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


PROTOCOLS = range(pickle.HIGHEST_PROTOCOL + 1)
LISTS = {"train": {"name_list": ["a", "b", "é"]}, "test": {"name_list": ["c"]}}
GOOD = [pickle.dumps(LISTS, protocol) for protocol in PROTOCOLS]

anything = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(), st.binary()),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.tuples(inner, inner),
        st.dictionaries(st.sampled_from(["train", "test", "name_list", "x"]), inner),
    ),
    max_leaves=8,
)


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


def write_lists(folder: Path, train=("c0", "c1.png"), test=("c2",)) -> None:
    write_split(folder / "split.pkl", list(train), list(test))
    for part, listed in (("train", train), ("test", test)):
        content = "\n".join(listed).encode("utf-8", "surrogatepass")
        (folder / f"{part}.txt").write_bytes(content)


def applied(method: str) -> Reader:
    """In both lists, twice, of no image, empty: either the split as listed or a sentence."""

    def read(folder):
        return assign_splits(
            CASES,
            method,
            folder=folder,
            split_file=folder / "split.pkl",
            test_fraction=0.2,
            validation_fraction=0.0,
            seed=1,
        )

    def sound(splits, folder):
        lists = pickle.loads((folder / "split.pkl").read_bytes())
        for id, part in splits.items():
            other = "test" if part == "train" else "train"
            assert any(id in name for name in lists[part]["name_list"])
            assert not {id, f"{id}.png"} & set(lists[other]["name_list"])

    def change(draw, folder):
        write_lists(folder, draw(st.lists(names, max_size=7)), draw(st.lists(names, max_size=4)))

    return Reader(
        read=read,
        make=lambda folder: folder.mkdir() or write_lists(folder),
        sound=sound,
        random={"names that fit or not": (200, change)},
    )


def any_bytes(draw, folder: Path) -> None:
    part = draw(st.sampled_from(["train", "test"]))
    (folder / f"{part}.txt").write_bytes(draw(st.binary(max_size=60)))


READERS = {
    "published": Reader(
        read=read_published_split,
        make=rewritten(GOOD[-1]),
        sound=sound_lists,
        whole={f"protocol {n}": rewritten(GOOD[n]) for n in PROTOCOLS},
        broken=CODE
        | {name: rewritten(lambda _, make=make: make()) for name, make in BOMBS.items()}
        | NO_FILES,
        random={
            "any instructions": (1000, drawn(instructions())),
            "damaged": (600, drawn(st.sampled_from(GOOD).flatmap(lambda good: damaged([good])))),
            "a pickle of anything": (
                300,
                drawn(st.builds(pickle.dumps, anything, st.sampled_from(PROTOCOLS))),
            ),
        },
    ),
    "official": Reader(
        read=read_official_split,
        make=lambda folder: folder.mkdir() or write_lists(folder),
        sound=sound_lists,
        broken={
            f"{part}.txt: {name}": lambda folder, part=part, change=change: change(
                folder / f"{part}.txt"
            )
            for part in ("train", "test")
            for name, change in NO_FILES.items()
        },
        random={"any bytes": (200, any_bytes)},
    ),
    "published, applied": applied("published"),
    "official, applied": applied("official"),
}

test_valid_lists, test_broken_lists, test_random_lists = suite(READERS)


@pytest.mark.parametrize("name", list(PAYLOADS))
def test_every_payload_does_run_when_opened_carelessly(tmp_path, name):
    """Or the tests above would prove nothing."""

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
