"""Archives from outside, unpacked without trust in what they claim.

An archive may name files outside the folder, links, devices, the same file twice, or expand to
terabytes. Such an archive is refused by a sentence that names the member; datasets need none of it.
"""

import gzip
import re
import shutil
import stat
import tarfile
import unicodedata
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import IO, NamedTuple

from wavegms.errors import InputError

_CHUNK = 1 << 20

_SPECIAL = "the type of a link or a device"

# What macOS adds to archives: stubs that look like images to a reader.
_LEFTOVERS = re.compile(r"(^|/)(__MACOSX(/|$)|\._|\.DS_Store$)")


@dataclass(frozen=True)
class Limits:
    """What an archive may expand to; HAM10000, the largest dataset here, stays far below."""

    members: int = 50_000  # files and folders
    total_bytes: int = 10 * 2**30  # unpacked
    # Unpacked bytes for each byte of the archive. Images hardly shrink; a bomb expands by a
    # thousand and more.
    ratio: int = 100


class _Member(NamedTuple):
    name: str
    is_folder: bool
    size: int  # bytes, as it claims
    flaw: str  # what it has that no member should have, or nothing
    open: Callable[[], IO[bytes]]


@dataclass
class _Places:
    """Where members may go; remembers what was given out."""

    archive: Path
    spelling: dict[str, str] = field(default_factory=dict)
    files: set[str] = field(default_factory=set)
    folders: set[str] = field(default_factory=set)

    def of(self, name: str, is_folder: bool) -> str:
        """The relative path of a member, with `/` between its parts; empty for the root."""
        if not name or name.startswith("/") or re.match(r"[A-Za-z]:", name):
            raise self.refusal(name, "an absolute path")
        if re.search(r"[\x00-\x1f\x7f\\:]", name):
            raise self.refusal(name, "a character that no file name should have")
        parts = [part for part in name.split("/") if part not in ("", ".")]
        if ".." in parts:
            raise self.refusal(name, "a path out of the folder")
        if not parts and not is_folder:
            raise self.refusal(name, "no file name")
        for end in range(1, len(parts) + 1):
            path = "/".join(parts[:end])
            # Disks of Windows and macOS take these spellings for one file.
            key = unicodedata.normalize("NFC", path).casefold()
            if self.spelling.setdefault(key, path) != path:
                raise self.refusal(name, f"the same place as {self.spelling[key]}")
            kind = self.folders if end < len(parts) or is_folder else self.files
            other = self.files if kind is self.folders else self.folders
            if key in other or (kind is self.files and key in kind):
                raise self.refusal(name, "a place that is taken by another member")
            kind.add(key)
        return "/".join(parts)

    def refusal(self, name: str, what: str) -> InputError:
        return _refusal(self.archive, f"its member {name[:200]!r} has {what}")


class _Bounded:
    """A stream that ends in an error after so many bytes, whatever its headers say."""

    def __init__(self, stream: IO[bytes], archive: Path, limit: int):
        self.stream, self.archive, self.left = stream, archive, limit

    def read(self, size: int) -> bytes:
        data = self.stream.read(size)
        self.left -= len(data)
        if self.left < 0:
            raise _too_large(self.archive)
        return data


def unpack(archive: Path, folder: Path, limits: Limits = Limits()) -> int:
    """Unpacks a .zip, .tar or .tar.gz into an empty folder, and counts the files, at least one.

    Only regular files and folders are made, with the permissions of new files. Leftovers of macOS
    (`__MACOSX`, `._*`, `.DS_Store`) are left out. Nothing is ever written outside the folder. After
    an error the folder may hold a part: unpack into one that is thrown away then.
    """
    archive, folder = Path(archive), Path(folder)
    # An empty archive still has headers, a tiny one may well expand.
    allowed = min(limits.total_bytes, limits.ratio * max(archive.stat().st_size, 10_000))
    # The headers of a tar, long names included, count as well: half a kilobyte and more each.
    stream = allowed + limits.members * 2048
    places, written = _Places(archive), 0
    try:
        is_zip = zipfile.is_zipfile(archive)
        members = _zip_members(archive) if is_zip else _tar_members(archive, stream)
        for count, member in enumerate(members, 1):
            if count > limits.members:
                raise _refusal(archive, f"it has more than {limits.members} members")
            if member.flaw:
                raise places.refusal(member.name, member.flaw)
            allowed -= member.size
            if allowed < 0:
                raise _too_large(archive)
            place = places.of(member.name, member.is_folder)
            if place and not _LEFTOVERS.search(place):
                written += _write(member, folder / place)
    except InputError:
        raise
    except gzip.BadGzipFile as error:
        raise _refusal(archive, f"it is damaged ({error})") from error
    except OSError as error:
        raise InputError(
            f"{archive} cannot be unpacked into {folder} ({error.strerror or error}): "
            "check the disk and the space left on it, then try again"
        ) from error
    except Exception as error:  # the readers raise whatever damaged bytes lead them to
        raise _refusal(archive, f"it is damaged or incomplete ({error})") from error
    if not written:
        raise _refusal(archive, "it holds no files")
    return written


def _zip_members(archive: Path) -> Iterator[_Member]:
    with zipfile.ZipFile(archive) as file:
        for info in file.infolist():
            mode = info.external_attr >> 16 if info.create_system == 3 else 0
            flaw = _SPECIAL if stat.S_IFMT(mode) not in (0, stat.S_IFREG, stat.S_IFDIR) else ""
            if info.flag_bits & 1:
                flaw = "a password"
            # `filename` has lost what follows a zero byte. A file that is larger than it claims is
            # cut off by zipfile, which then finds a wrong checksum.
            name, opened = info.orig_filename, partial(file.open, info)
            yield _Member(name, info.is_dir(), info.file_size, flaw, opened)


def _tar_members(archive: Path, most_bytes: int) -> Iterator[_Member]:
    """A tar is only known as far as it was read."""
    with open(archive, "rb") as raw:
        zipped = raw.read(2) == b"\x1f\x8b"
        raw.seek(0)
        stream = _Bounded(gzip.GzipFile(fileobj=raw) if zipped else raw, archive, most_bytes)
        with tarfile.open(fileobj=stream, mode="r|") as file:
            for info in file:
                usual = (info.isreg() or info.isdir()) and not info.issparse()
                flaw, opened = "" if usual else _SPECIAL, partial(file.extractfile, info)
                yield _Member(info.name, info.isdir(), info.size, flaw, opened)


def _write(member: _Member, path: Path) -> int:
    if member.is_folder:
        path.mkdir(parents=True, exist_ok=True)
        return 0
    path.parent.mkdir(parents=True, exist_ok=True)
    with member.open() as source, open(path, "xb") as file:
        shutil.copyfileobj(source, file, _CHUNK)
    return 1


def _refusal(archive: Path, reason: str) -> InputError:
    return InputError(
        f"{archive} was not unpacked: {reason}; download it again, from the publisher's own page"
    )


def _too_large(archive: Path) -> InputError:
    return _refusal(archive, "it expands to far more than a dataset needs")
