"""Archives from outside, unpacked without trust in what they claim.

An archive may name files outside the folder, links, devices, the same file twice, or expand to
terabytes. Such an archive is refused by a sentence that names the member; datasets need none of it.
"""

import gzip
import re
import stat
import tarfile
import unicodedata
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from wavegms.errors import InputError

_CHUNK = 1 << 20

# What macOS adds to archives: stubs that look like images to a reader.
_LEFTOVERS = re.compile(r"(^|/)(__MACOSX(/|$)|\._|\.DS_Store$)")


@dataclass(frozen=True)
class Limits:
    """What an archive may expand to; HAM10000, the largest dataset here, stays far below.

    Attributes:
        members: Files and folders in one archive.
        total_bytes: Unpacked bytes of one archive.
        ratio: Unpacked bytes for each byte of the archive. Images hardly shrink; a bomb expands by
            a thousand and more.
    """

    members: int = 50_000
    total_bytes: int = 10 * 2**30
    ratio: int = 100


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
    """Unpacks a .zip, .tar or .tar.gz into a folder.

    Only regular files and folders are made, with the permissions of new files. Leftovers of macOS
    (`__MACOSX`, `._*`, `.DS_Store`) are left out. Nothing is ever written outside the folder. After
    an error the folder may hold a part: unpack into one that is thrown away then.

    Args:
        archive: The file.
        folder: An empty folder.
        limits: What it may expand to.

    Returns:
        The number of files written, at least 1.

    Raises:
        InputError: The file is no such archive, is damaged, encrypted or empty, or holds what is
            described above; or the disk is full.
    """
    archive, folder = Path(archive), Path(folder)
    # An empty archive still has headers, a tiny one may well expand.
    allowed = min(limits.total_bytes, limits.ratio * max(archive.stat().st_size, 10_000))
    written = 0
    try:
        read = _zip_members if zipfile.is_zipfile(archive) else _tar_members
        for count, (place, stream) in enumerate(read(archive, allowed, limits.members), 1):
            if count > limits.members:
                raise _too_many(archive, limits.members)
            if place and not _LEFTOVERS.search(place):
                written += _write(stream, folder / place)
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


_Members = Iterator[tuple[str, IO[bytes] | None]]


def _zip_members(archive: Path, allowed: int, most: int) -> _Members:
    """Yields (relative path, stream or None for a folder) after a look at all members."""
    with zipfile.ZipFile(archive) as file:
        members = file.infolist()
        if len(members) > most:
            raise _too_many(archive, most)
        if sum(member.file_size for member in members) > allowed:
            raise _too_large(archive)
        places = _Places(archive)
        checked = []
        for member in members:
            # `filename` has lost what follows a zero byte.
            name = member.orig_filename
            if member.flag_bits & 1:
                raise places.refusal(name, "a password")
            mode = member.external_attr >> 16 if member.create_system == 3 else 0
            if stat.S_IFMT(mode) not in (0, stat.S_IFREG, stat.S_IFDIR):
                raise places.refusal(name, "the type of a link or a device")
            checked.append((member, places.of(name, member.is_dir())))
        for member, place in checked:
            if member.is_dir():
                yield place, None
                continue
            with file.open(member) as stream:
                # Headers may lie: what counts is what comes out.
                bounded = _Bounded(stream, archive, allowed)
                yield place, bounded
                allowed = bounded.left


def _tar_members(archive: Path, allowed: int, most: int) -> _Members:
    """Yields as `_zip_members`, but a tar is only known as far as it was read."""
    with open(archive, "rb") as raw:
        zipped = raw.read(2) == b"\x1f\x8b"
        raw.seek(0)
        # The headers of a tar, long names included, count as well: half a kilobyte and more each.
        stream = _Bounded(
            gzip.GzipFile(fileobj=raw) if zipped else raw, archive, allowed + most * 2048
        )
        with tarfile.open(fileobj=stream, mode="r|") as file:
            places = _Places(archive)
            for member in file:
                if not (member.isreg() or member.isdir()) or member.issparse():
                    raise places.refusal(member.name, "the type of a link or a device")
                allowed -= member.size
                if allowed < 0:
                    raise _too_large(archive)
                place = places.of(member.name, member.isdir())
                tarfile.data_filter(member, "/folder")  # the library's opinion, a second lock
                yield place, None if member.isdir() else file.extractfile(member)


def _write(stream: IO[bytes] | None, path: Path) -> int:
    if stream is None:
        path.mkdir(parents=True, exist_ok=True)
        return 0
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "xb") as file:
        while chunk := stream.read(_CHUNK):
            file.write(chunk)
    return 1


def _refusal(archive: Path, reason: str) -> InputError:
    return InputError(
        f"{archive} was not unpacked: {reason}; download it again, from the publisher's own page"
    )


def _too_many(archive: Path, most: int) -> InputError:
    return _refusal(archive, f"it has more than {most} members")


def _too_large(archive: Path) -> InputError:
    return _refusal(archive, "it expands to far more than a dataset needs")
