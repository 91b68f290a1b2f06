"""The exceptions that speak to the user, in one line each."""

import errno
import os
import re
from ast import literal_eval
from collections.abc import Sequence
from math import inf

_LONGEST = 2000  # characters


class _Spoken(Exception):
    """Shown in a notebook as one sentence without a traceback, which would help nobody."""

    def _render_traceback_(self) -> list[str]:
        """What IPython prints instead of a traceback."""
        return [f"{type(self).__name__}: {self}"]


class InputError(_Spoken, ValueError):
    """Something handed to the package cannot be used: a file, a folder or a parameter.

    The message is one sentence that names the file or parameter and the way out. The reader has to
    change an input, not the code.

    The message may quote names and values as they came: they can break no line, steer no terminal,
    and fill no screen.
    """

    def __init__(self, message: object):
        super().__init__(_printable(str(message)))


def require_number(name: str, value: object, kind: type, wanted: str, most: float = inf) -> None:
    """Checks an argument of Python's door: of a class of `numbers`, above 0 and up to `most`."""
    # numpy's numbers are of these kinds, too, but so is True
    if not isinstance(value, kind) or isinstance(value, bool) or not 0 < value <= most:
        raise InputError(f"{name} must be {wanted}, not {value!r}")


class Stopped(_Spoken):
    """Someone asked for an end. The message says what was saved and how to go on."""


def first_line(error: BaseException) -> str:
    """An error's message as part of a sentence."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else repr(error)


def listed(names: Sequence[object], most: int = 3) -> str:
    """The first few of many in a sentence."""
    return ", ".join(map(str, names[:most])) + (", ..." if len(names) > most else "")


_AGAIN = "and give the same command again"

# Where the system refuses a file, it is for the reader to change that, not for the code.
_WAYS_OUT = {
    getattr(errno, name): way
    for names, way in {
        "ENOSPC": f"make room on that disk {_AGAIN}",
        "EDQUOT": f"make room within your quota {_AGAIN}",
        "EFBIG": f"raise the limit to the size of files (`ulimit -f`), or make room, {_AGAIN}",
        "EROFS": f"make that disk writable, or copy the project to one that is, {_AGAIN}",
        "EACCES EPERM": f"check whose it is and its rights {_AGAIN}",
        "EBUSY ETXTBSY": f"close what uses it {_AGAIN}",
        "EIO ENXIO ENODEV ESTALE": f"check the disk and its connection {_AGAIN}",
        "EMFILE": f"raise the limit to the number of open files (`ulimit -n`) {_AGAIN}",
        "ENFILE": f"close other programs, as too many files are open, {_AGAIN}",
        "EMLINK": f"use another disk, as this one takes no more names in a folder, {_AGAIN}",
        "ENAMETOOLONG": "choose a shorter name, or a folder with a shorter path",
        "EILSEQ EINVAL": "choose another name, of plain letters",
        "ELOOP": "remove the link that leads back to itself",
        "ENOENT": "check the path, and that what makes it has run",
        "ENOTDIR": "a part of this path is a file, not a folder: correct it, or move the file away",
        "EISDIR": "this is a folder where a file is meant: correct the path, or move it away",
        "EEXIST ENOTEMPTY": "move it away, or choose another name",
        "EPIPE": "let the program that takes the output run to its end",
    }.items()
    for name in names.split()
}

# As Python writes it, and as safetensors does, whose errors are no OSError.
_REFUSAL = re.compile(
    r"\[Errno (?P<number>\d+)\] [^:]*"
    r"(?:: (?P<quote>['\"])(?P<file>(?:\\.|(?!(?P=quote)).)*)(?P=quote))?"
    r"|\(os error (?P<rust>\d+)\)",
    re.DOTALL,
)


def refused_by_the_system(text: str) -> InputError | None:
    """What a reader is told where an error's text says that the system refuses a file.

    The text, since of an error in a notebook nothing else arrives. None if it says something else.
    """
    if (found := _REFUSAL.search(text)) is None:
        return None
    number = int(found["number"] or found["rust"])
    if number not in _WAYS_OUT:
        return None
    quote, name, what = found["quote"], found["file"], os.strerror(number)
    name = literal_eval(f"{quote}{name}{quote}") if name else "a file or the output"
    return InputError(f"{name} cannot be read or written ({what}): {_WAYS_OUT[number]}")


def _printable(text: str) -> str:
    if len(text) > _LONGEST:  # the file stands in front, the way out at the end
        text = f"{text[: _LONGEST * 3 // 4]} ... {text[-_LONGEST // 5 :]}"
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def require_one_class(count: int, what: str, way_out: str) -> None:
    """Checks that there are no several classes, of which `what` knows nothing."""
    if count > 1:
        raise InputError(f"{what} knows one class, and the data have {count}: {way_out}")


def require_same(
    model: str, known: Sequence[str], data: str, there: Sequence[str], way: str
) -> None:
    """Checks that the names of the classes that a model knows are those of data."""
    if tuple(known) != tuple(there):
        known, there = (", ".join(names) or "one class" for names in (known, there))
        raise InputError(f"{model} knows {known} and {data} {there}: {way}")
