"""What the tests of hostile and broken input share: damage, payloads, and what must hold after.

The oracle is one for all readers. Either something comes back, which the test then judges by other
means than the reader's; or one sentence of `InputError` that names the file (or the key) and says a
way out. In both cases nothing on the disk has changed, and no code from the file has run.
"""

import os
import re
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st

from wavegms import InputError

WAY_OUT = re.compile(
    r"\b(add|belongs|check|choose|complete|copy|correct|delete|download|get|give|install|invert|"
    r"keep|may|move|must|put|raise|remove|rename|replace|restore|run|save|scale|set|should be|"
    r"train again|try|use|write)\b"
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
