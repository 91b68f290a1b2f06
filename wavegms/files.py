"""Files: replaced whole or not at all; tables and pickles read without trust in what they hold."""

from __future__ import annotations

import glob
import hashlib
import os
import pickle
import pickletools
import re
import shutil
import uuid
from collections.abc import Container, Iterator
from contextlib import contextmanager, suppress
from difflib import get_close_matches
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryFile
from typing import TYPE_CHECKING, Any

import psutil

from wavegms.errors import InputError, first_line

if TYPE_CHECKING:
    import pandas as pd
    from pydantic import BaseModel

HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


def is_hub_id(where: str | Path) -> bool:
    """Whether this is a hub id, "owner/name". A `Path` never is.

    Nor is what looks like a path: one with its folder here and a slip in its name, one as models
    have here, which the hub would be asked about in vain (it has a page at /models and so no owner
    of that name), one with a slip in either, and a file of weights.
    """
    if not isinstance(where, str) or not HUB_ID.fullmatch(where) or where.endswith(_WEIGHTS):
        return False
    owner = where.partition("/")[0]
    return owner not in (".", "..") and not _folder_like(owner)


_WEIGHTS = (".safetensors", ".pth", ".pt", ".bin", ".ckpt", ".onnx", ".json")


def _folder_like(name: str) -> str | None:
    """The folder here that is called so, or nearly so."""
    here = {one.casefold(): one for one in ("models", *filter(os.path.isdir, os.listdir()))}
    found = get_close_matches(name.casefold(), here, n=1, cutoff=0.8)
    return here[found[0]] if found else None


def missing_folder(where: str | Path, what: str) -> InputError:
    """Says of what should be a folder that it is a file, or not there, and what is there instead.

    `what` is the way out, which follows on "does not exist: ".
    """
    path = Path(where)
    if path.is_file():
        return InputError(
            f"{where} is a file where a folder belongs: give the folder that it is in"
        )
    there, above = [], path.parent
    if not above.is_dir():
        above = Path(_folder_like(path.parts[0]) or above)
    if above.is_dir() and above != Path():
        there = sorted(one.name for one in above.iterdir() if one.is_dir())
    known = f" ({above} has {', '.join(there[:9])})" if there else ""
    return InputError(f"the folder {where} does not exist{known}: {what}")


def sha256_of(path: Path) -> str:
    """Compute the SHA-256 of a file's bytes."""
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}): check the file.") from error


@contextmanager
def replace_folder(target: Path) -> Iterator[Path]:
    """Fill a new folder and put it in the place of another in one step.

    The new folder lies beside the target, on the same disk. If the block raises anything, an
    interruption by the keyboard included, the target is as it was and nothing else remains. What a
    process leaves that is killed meanwhile is put right by the next one.
    """
    # Where the target is a link, what it points to is replaced and the link stays.
    target = Path(target).resolve()
    if target.exists() and not target.is_dir():
        raise InputError(f"{target} is a file where a folder is to be written: move it away.")
    _put_leftovers_right(target)
    fresh, previous = _beside(target, "new"), _beside(target, "old")
    try:
        fresh.mkdir(parents=True)
    except OSError as error:
        raise InputError(
            f"{target.parent} cannot be written ({error.strerror}): choose another folder."
        ) from error
    try:
        with named(fresh, target):
            yield fresh
        try:
            if target.exists():
                target.rename(previous)
            fresh.rename(target)
        except BaseException:
            if previous.exists() and not target.exists():
                previous.rename(target)
            raise
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
        shutil.rmtree(previous, ignore_errors=True)


@contextmanager
def replace_file(target: Path) -> Iterator[Path]:
    """Write a new file and put it in the place of another in one step, as `replace_folder` does."""
    target = Path(target).resolve()
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise InputError(
            f"{target} cannot be written, as {error.filename} is a file: move it away."
        ) from error
    if target.is_dir():
        raise InputError(f"{target} is a folder where a file is to be written: move it away.")
    _put_leftovers_right(target)
    fresh = _beside(target, "new")
    try:
        with named(fresh, target):
            yield fresh
            fresh.replace(target)
    finally:
        discard(fresh)


def discard(path: Path) -> None:
    """Remove a file, if it is there and can be: not being able to hides no other error."""
    with suppress(OSError):
        path.unlink()


@contextmanager
def named(fresh: Path, target: Path) -> Iterator[None]:
    """Errors speak of the target, not of a name that nobody chose; of a full disk's, of no file."""
    try:
        yield
    except OSError as error:
        if error.errno and str(error.filename or fresh).startswith(str(fresh)):
            error.filename, error.filename2 = str(target), None
        raise


def require_writable(folder: Path) -> None:
    """Make a folder where there is none, and raise the system's error if nothing can lie in it."""
    folder.mkdir(parents=True, exist_ok=True)
    with TemporaryFile(dir=folder):
        pass


def write_text(target: Path, text: str) -> None:
    """Write a file whole or not at all, in UTF-8."""
    with replace_file(target) as fresh:
        fresh.write_text(text, encoding="utf-8")


def walk(
    folder: Path, loops: list[Path] | None = None
) -> Iterator[tuple[Path, list[str], list[str]]]:
    """Every folder below one, with the names of folders and files in it, in order.

    Links to folders are followed, each under its own name; hidden folders are passed over, and
    links that lead back to a folder above them, which are added to `loops`. What the caller takes
    out of the names of folders is not entered.
    """

    def refuse(error: OSError) -> None:
        raise InputError(
            f"{error.filename} cannot be read ({error.strerror}): check its permissions."
        ) from error

    for parent, folders, files in os.walk(folder, onerror=refuse, followlinks=True):
        here = Path(parent)
        endless = [n for n in folders if (here / n).is_symlink() and _is_loop(here / n)]
        if loops is not None:
            loops += [here / name for name in endless]
        folders[:] = sorted(n for n in folders if not n.startswith(".") and n not in endless)
        yield here, folders, sorted(files)


def matching(pattern: str) -> list[str]:
    """What a pattern names, in order; `**` stands for any folders, as `walk` finds them.

    glob's own follows links that lead back up, forty deep and along every way.
    """
    before, here, after = pattern.partition("/**") if "/" in pattern else ("", "", "")
    if pattern.startswith("**"):
        before, here, after = ".", "/**", pattern[2:]
    if not here or after[:1] not in ("", "/"):
        return sorted(glob.glob(pattern))
    found: set[str] = set()
    for base in filter(os.path.isdir, glob.glob(before or "/")):
        for folder, _, _ in walk(Path(base)):
            found.update(matching(glob.escape(str(folder)) + (after or "/*")))
    return sorted(found)


def _is_loop(path: Path) -> bool:
    """Whether a path leads back, by a link, to one of the folders that it goes through."""
    through = [os.path.realpath(parent) for parent in (path, *path.absolute().parents)]
    return len(set(through)) < len(through)


def read_table(
    path: Path, row: type[BaseModel], remedy: str, *, may_be_empty: bool = False
) -> pd.DataFrame:
    """Read a CSV table of this project, every cell checked by the model of a row.

    The columns are the model's fields, of types str, int, float or bool; others are left out, and
    a missing one has the field's default. Ids, where there are any, differ. A `ValueError` of a
    field's validator says what the cell is, in words that follow "a {column} ": "that is no file
    name", "outside 0 to 1".
    """
    import pandas as pd
    from pydantic import TypeAdapter, ValidationError

    if not Path(path).is_file():
        raise InputError(f"{path} does not exist or is no file: {remedy}.")
    try:
        # An id such as 000001 or NA is a text.
        table = pd.read_csv(path, dtype=str, keep_default_na=False, encoding="utf-8")
    except (ValueError, OSError) as error:
        raise InputError(f"{path} cannot be read ({first_line(error)}): {remedy}.") from error
    for column, field in row.model_fields.items():
        if column not in table and field.is_required():
            raise InputError(f"{path} lacks the column {column}: {remedy}.")
    if table.empty and not may_be_empty:
        raise InputError(f"{path} has no row: {remedy}.")
    if table.isna().any(axis=None):
        raise InputError(f"{path} has a row with too few values: {remedy}.")
    try:
        rows = TypeAdapter(list[row]).validate_python(table.to_dict("records"))
    except ValidationError as error:
        raise InputError(f"{path} has {_wrong_cell(error.errors()[0])}: {remedy}.") from error
    if "id" in row.model_fields and (twice := table["id"][table["id"].duplicated()]).any():
        raise InputError(f"{path} lists {twice.iloc[0]} twice: {remedy}.")
    kinds = {name: field.annotation for name, field in row.model_fields.items()}
    return pd.DataFrame(
        {
            name: pd.Series(
                [getattr(one, name) for one in rows],
                dtype=kind if kind in (int, float, bool) else str,
            )
            for name, kind in kinds.items()
        }
    )


def _wrong_cell(problem: dict[str, Any]) -> str:
    if problem["type"] == "bool_parsing":
        why = "other than True or False"
    elif "_parsing" in problem["type"]:
        why = "that is no number"
    elif problem["type"] == "value_error":
        why = str(problem["ctx"]["error"])
    else:
        why = problem["msg"].replace("Input", "that", 1)
    column = problem["loc"][-1]
    article = "an" if column[0] in "aeio" else "a"
    return f"{article} {column} {why} ({problem['input'][:60]!r})"


# Instructions that build dicts, lists, texts and small numbers, and nothing else. Whatever
# imports, calls, builds an object or asks the process for one (extension registry, persistent ids)
# is absent. So are tuples and large numbers: as keys of a dict, a few of the former, each holding
# the one before twice, or many of the latter with the same hash would take forever.
# fmt: off
_PLAIN = {
    "PROTO", "FRAME", "STOP", "MARK", "MEMOIZE",
    "PUT", "BINPUT", "LONG_BINPUT", "GET", "BINGET", "LONG_BINGET",
    "NONE", "NEWTRUE", "NEWFALSE", "BININT", "BININT1", "BININT2",
    "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "STRING", "BINSTRING", "SHORT_BINSTRING",
    "EMPTY_DICT", "DICT", "SETITEM", "SETITEMS", "EMPTY_LIST", "LIST", "APPEND", "APPENDS",
}
# fmt: on

_LARGE_NUMBERS = ("INT", "LONG", "LONG1", "LONG4")

# Of a tuple in a pickle; those of tensors hold about 20.
_MOST_OBJECTS = 10_000


def check_pickle(data: bytes, allowed: Container[str] | None = None) -> None:
    """Refuse, by a `ValueError`, a pickle that takes endless time or memory to read.

    No instruction of it is carried out. `allowed` are the only instructions that it may hold; None
    leaves that to the one who opens it, such as `torch.load(..., weights_only=True)`.

    As keys of a dict, tuples are hashed with all that they hold: forty of them, each with the one
    before twice, take forever. Of large numbers, any many can have the same hash. The sizes that
    objects would have, written out, are counted here without building any.
    """
    stack, marks, memo = [], [], {}
    for opcode, argument, _ in pickletools.genops(data):
        name = opcode.name
        if name in _LARGE_NUMBERS or (allowed is not None and name not in allowed):
            raise ValueError(f"it holds the instruction {name}")
        if name == "MARK":
            marks.append(len(stack))
        elif name in ("PUT", "BINPUT", "LONG_BINPUT"):
            # The unpickler reserves memory up to the index it is told to store at.
            if argument > len(data):
                raise ValueError("it stores at an impossible place")
            memo[argument] = stack[-1]
        elif name == "MEMOIZE":
            memo[len(memo)] = stack[-1]
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            stack.append(memo[argument])
        else:
            taken = opcode.stack_before
            if pickletools.markobject in taken:
                start = marks.pop() - taken.index(pickletools.markobject)
            else:
                start = len(stack) - len(taken)
            size = 1 + sum(stack[start:])
            stack[start:] = [size] * len(opcode.stack_after)
            if size > _MOST_OBJECTS and name in ("TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "REDUCE"):
                raise ValueError("it holds objects within objects without end")


class _PlainUnpickler(pickle.Unpickler):
    """The second lock, should the list of instructions ever be wrong."""

    def find_class(self, module: str, name: str):
        raise pickle.UnpicklingError(f"it asks for {module}.{name}")

    def persistent_load(self, pid):
        raise pickle.UnpicklingError("it asks for an outside object")


def load_plain_pickle(data: bytes) -> Any:
    """Unpickle dicts, lists, texts and small numbers, and nothing else.

    A pickle can make the reader run any code. Of this one, anything else is refused before a single
    instruction is carried out. A damaged pickle raises nearly any exception.
    """
    check_pickle(data, _PLAIN)
    return _PlainUnpickler(BytesIO(data)).load()


def only_seed(folder: Path) -> Path:
    """A pipeline's folder itself, or the only one of folders `seed_<n>` in it."""
    if not folder.is_dir():
        raise missing_folder(folder, "train the model first, or correct the path")
    seeds = sorted(path.parent for path in folder.glob("seed_*/model_index.json"))
    if (folder / "model_index.json").is_file() or not seeds:
        return folder
    if len(seeds) > 1:
        raise InputError(
            f"{folder} holds the weights of several seeds: open one of them, such as {seeds[0]}"
        )
    return seeds[0]


_LEFTOVER = re.compile(r"(?P<process>\d+)-[0-9a-f]{8}\.(?P<ending>new|old)")


def _beside(target: Path, ending: str) -> Path:
    """A name that tells whose it is, and which process is at work on it."""
    return target.with_name(f".{target.name}.{os.getpid()}-{uuid.uuid4().hex[:8]}.{ending}")


def _put_leftovers_right(target: Path) -> None:
    """Clears what killed processes left; a target that one had just moved away comes back."""
    for path in target.parent.glob(f".{glob.escape(target.name)}.*-*.*"):
        parts = _LEFTOVER.fullmatch(path.name.removeprefix(f".{target.name}."))
        if parts is None or psutil.pid_exists(int(parts["process"])):
            continue
        if parts["ending"] == "old" and not target.exists():
            path.rename(target)
        elif path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
