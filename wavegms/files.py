"""Files: images that may be broken, hashes, and folders that are replaced whole or not at all."""

import glob
import hashlib
import os
import re
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from wavegms.errors import InputError

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


def is_hub_id(where: str | Path) -> bool:
    """Whether this is a hub id, "owner/name". A `Path` never is."""
    return isinstance(where, str) and _HUB_ID.fullmatch(where) is not None


_LEFTOVER = re.compile(r"(?P<process>\d+)-[0-9a-f]{8}\.(?P<ending>new|old)")


def sha256_of(path: Path) -> str:
    """Compute the SHA-256 of a file's bytes.

    Args:
        path: The file.

    Returns:
        64 hexadecimal digits.

    Raises:
        InputError: The file cannot be read.
    """
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

    Args:
        target: The folder to create or to replace.

    Yields:
        The empty folder to fill.

    Raises:
        InputError: The target is a file, or its parent cannot be written.
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
    """Write a new file and put it in the place of another in one step.

    As `replace_folder`, for a file.

    Args:
        target: The file to create or to replace; its folder is made if missing.

    Yields:
        The path to write, where nothing is yet.

    Raises:
        InputError: The target is a folder, or one above it a file.
    """
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
        yield fresh
        fresh.replace(target)
    finally:
        fresh.unlink(missing_ok=True)


def write_text(target: Path, text: str) -> None:
    """Write a file whole or not at all, in UTF-8.

    Args:
        target: See `replace_file`.
        text: Its content.

    Raises:
        InputError: As `replace_file`.
    """
    with replace_file(target) as fresh:
        fresh.write_text(text, encoding="utf-8")


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
