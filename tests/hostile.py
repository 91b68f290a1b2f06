"""Broken and hostile input: one table of readers against one oracle.

A file of tests lists its readers as `Reader`s and gets its tests by `suite`. The oracle is one for
all. Either something comes back, which the table then judges by other means than the reader's; or
one sentence of `InputError` that names the file (or the key) and says a way out. In both cases it
took neither long nor much memory, nothing on the disk has changed, and no code of the input has
run: what a payload writes is a file beside it.
"""

import os
import re
import resource
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from inspect import signature
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wavegms import InputError

# CPU seconds and kB that one input may take; the bombs among them ask for hours and gigabytes.
SECONDS, MEMORY = 20, 100_000

WAY_OUT = re.compile(
    r"\b(add|belongs|check|choose|complete|copy|correct|delete|download|get|give|install|invert|"
    r"keep|may|move|must|put|raise|remove|rename|replace|restore|run|save|scale|set|"
    r"should|train again|try|use|write)\b"
)


def fuzz(examples: int) -> settings:
    """The same examples in every run, and no verdict by the clock of a busy machine."""
    return settings(max_examples=examples, derandomize=True, deadline=None, database=None)


@contextmanager
def scratch() -> Iterator[Path]:
    """A folder for one example; pytest's own are one a test."""
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


def snapshot(folder: Path) -> dict[str, tuple]:
    """What would betray any change: links are not followed, contents are not read."""
    found = {}
    for here, folders, files in os.walk(os.fsencode(folder)):
        for name in [*folders, *files]:
            path = os.path.join(here, name)
            status = os.lstat(path)
            is_file = name in files
            found[path] = (status.st_mode, *(is_file * (status.st_size, status.st_mtime_ns)))
    return found


def sentence(error: InputError, *names: object) -> str:
    """Checks that a refusal is one printable line with one of these names and a way out."""
    message = str(error)
    assert message.isprintable() and len(message) < 2500, message[:3000]
    assert any(str(name) in message for name in names), message
    assert WAY_OUT.search(message), message
    return message


def outcome(folder: Path, names: list, read: Callable[[], Any]) -> Any:
    """What a reader gives, None where it refused in order; see the head of this module."""
    before = snapshot(folder)
    try:
        result = read()
    except InputError as error:
        sentence(error, *names)
        result = None
    assert snapshot(folder) == before
    return result


@dataclass(frozen=True)
class Reader:
    """One door for what comes from outside, and the ways to break what it is given.

    A way to break gets the path of a valid input and changes what is there; a list that it returns
    stands for `names`. Code that the input is to carry writes a file in the same folder.
    """

    read: Callable[[Path], Any]
    make: Callable[[Path], Any]  # writes a valid input, a file or a folder, at a path
    sound: Callable[[Any, Path], None]  # judges what came back
    file: str = "input"  # the name of the input in its folder
    names: Callable[[Path], list] = lambda path: [path]  # one of which a sentence must have
    whole: Mapping[str, Callable[[Path], Any]] = field(default_factory=dict)  # leave it valid
    broken: Mapping[str, Callable[[Path], Any]] = field(default_factory=dict)  # have it refused
    # How many examples there are in all, and a way to break that draws, by `draw(strategy)`.
    random: Mapping[str, tuple[int, Callable[[Callable, Path], Any]]] = field(default_factory=dict)


def judge(reader: Reader, path: Path, names: Any = None) -> Any:
    """What the reader makes of this input, None where it refused; see the head of this module."""
    names = names if isinstance(names, list) else reader.names(path)
    seconds, memory = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    result = outcome(path.parent, names, lambda: reader.read(path))
    assert time.process_time() - seconds < SECONDS
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory < MEMORY
    if result is not None:
        reader.sound(result, path)
    return result


# Of random inputs, a tenth is tried by default, and all by the test that is marked slow.
SHARES = [0.1, pytest.param(1, marks=pytest.mark.slow)]


def hunt(examples: int, *drawn: st.SearchStrategy) -> Callable[[Callable], Callable]:
    """A test of so many random inputs, or of a share; its fixtures stand before what is drawn."""

    def decorate(judge: Callable) -> Callable:
        names = list(signature(judge).parameters)[: -len(drawn)]

        @pytest.mark.parametrize("share", SHARES)
        def test(request, share):
            fixtures = [request.getfixturevalue(name) for name in names]

            @fuzz(max(1, int(examples * share)))
            @given(st.tuples(*drawn))
            def each(values):
                judge(*fixtures, *values)

            each()

        return test

    return decorate


def suite(readers: Mapping[str, Reader]) -> tuple[Callable, Callable, Callable]:
    """The tests of a table of readers, for a module to name `test_...`.

    Valid inputs are read, broken ones are refused, and random ones are either.
    """

    def listed(attribute: str) -> list:
        return [
            pytest.param(reader, change, id=f"{name}: {title}")
            for name, reader in readers.items()
            for title, change in getattr(reader, attribute).items()
        ]

    def made(folder: Path, reader: Reader) -> Path:
        path = folder / reader.file
        reader.make(path)
        return path

    plain = [pytest.param(r, lambda path: None, id=name) for name, r in readers.items()]

    @pytest.mark.parametrize(("reader", "change"), [*plain, *listed("whole")])
    def valid(survived, tmp_path, reader, change):
        path = made(tmp_path, reader)
        change(path)
        reader.sound(reader.read(path), path)  # warm: imports may take what they like
        assert judge(reader, path) is not None
        survived("inputs")

    @pytest.mark.parametrize(("reader", "change"), listed("broken"))
    def broken(survived, tmp_path, reader, change):
        path = made(tmp_path, reader)
        reader.sound(reader.read(path), path)
        assert judge(reader, path, change(path)) is None
        survived("inputs")

    @pytest.mark.parametrize("share", SHARES)
    @pytest.mark.parametrize(("reader", "way"), listed("random"))
    def random(survived, tmp_path, reader, way, share):
        number, change = way
        path = made(tmp_path, reader)
        reader.sound(reader.read(path), path)

        @fuzz(max(1, int(number * share)))
        @given(st.data())
        def each(data):
            with scratch() as folder:
                path = made(folder, reader)
                judge(reader, path, change(data.draw, path))
            survived("inputs")

        each()

    return valid, broken, random


def rewritten(content: bytes | Callable[[Path], bytes]) -> Callable[[Path], None]:
    """A way to break a file: these bytes instead, which may be made of where code is to write."""

    def change(path: Path) -> None:
        made = content if isinstance(content, bytes) else content(path.with_name("ran"))
        path.unlink(missing_ok=True)  # a link's target may be shared
        path.write_bytes(made)

    return change


def files(contents: Mapping[str, bytes]) -> Callable[[Path], None]:
    """A maker of a folder that holds these, by their paths in it."""

    def make(folder: Path) -> None:
        for name, content in contents.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content)

    return make


def drawn(strategy: st.SearchStrategy[bytes]) -> Callable[[Callable, Path], None]:
    """A way to break a file at random: bytes of this strategy instead."""
    return lambda draw, path: rewritten(draw(strategy))(path)


# What is no file, or none that ends. Whoever reads it waits forever or fills the memory.
NO_FILES: dict[str, Callable[[Path], None]] = {
    "a folder": lambda path: (path.unlink(), path.mkdir()),
    "a pipe": lambda path: (path.unlink(), os.mkfifo(path)),
    "zeros without end": lambda path: (path.unlink(), path.symlink_to("/dev/zero")),
    "a link to itself": lambda path: (path.unlink(), path.symlink_to(path.name)),
    "nothing": lambda path: path.unlink(),
}


@st.composite
def damaged(draw, contents: list[bytes]) -> bytes:
    """One of the contents, cut, flipped, overwritten, stuffed, or stuck to another."""
    data = bytearray(draw(st.sampled_from(contents)))
    place = st.integers(0, max(0, len(data) - 1))
    kind = draw(
        st.sampled_from(["cut", "flip", "flip", "head", "zero", "insert", "drop", "splice"])
    )
    if kind == "cut":
        del data[draw(place) :]
    elif kind in ("flip", "head"):
        # Headers are where a wrong bit means something else, not just another shade.
        where = place if kind == "flip" else st.integers(0, min(60, len(data) - 1))
        for index in draw(st.lists(where, min_size=1, max_size=4)):
            data[index] ^= 1 << draw(st.integers(0, 7))
    elif kind == "zero":
        start = draw(place)
        end = min(len(data), start + draw(st.integers(1, 64)))
        data[start:end] = bytes([draw(st.sampled_from([0, 255]))]) * (end - start)
    elif kind == "insert":
        index = draw(place)
        data[index:index] = draw(st.binary(min_size=1, max_size=16))
    elif kind == "drop":
        start = draw(place)
        del data[start : start + draw(st.integers(1, 16))]
    else:
        data[draw(place) :] = draw(st.sampled_from(contents))[draw(st.integers(0, 40)) :]
    return bytes(data)
