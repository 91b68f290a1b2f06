"""Gets the public data of `sources`: downloaded, verified, then put in place whole.

DVC downloads (`dvc import-url`), so that a small `.dvc` file records address, size and checksum of
each file, and DVC's cache keeps it. What DVC does not say, such as a server's reason to refuse, is
asked for beforehand. A file that was put into data/downloads by hand is treated like a download.
DVC takes seconds to import, and names are checked first.
"""

import hashlib
import http.client
import shutil
import urllib.request
from contextlib import suppress
from pathlib import Path

import yaml

from wavegms.data.archives import unpack
from wavegms.data.catalog import CATALOG, SOURCES, Download, Source, find_cases, spec_of
from wavegms.errors import InputError, first_line
from wavegms.files import replace_folder, write_text

DOWNLOADS = Path("data/downloads")

# Seconds without a byte after which a server is given up; DVC's own default.
TIMEOUT = 60


def describe_sources() -> str:
    """What can be got: name, size, terms and page of each source, as lines of text."""
    lines = ["python -m wavegms get NAME ... downloads, verifies and unpacks:\n"]
    for source in SOURCES.values():
        unsure = sorted({d.vouched_by for d in source.downloads if not d.exact})
        about = "about " if unsure else ""
        megabytes = sum(download.size for download in source.downloads) / 1e6
        size = f"{megabytes:,.0f} MB" if megabytes >= 1 else f"{megabytes * 1000:,.0f} kB"
        lines.append(f"{source.name:<18} {source.title}; {about}{size}, to {source.target}")
        lines.append(f"{'':<18} terms: {source.terms}")
        lines.append(f"{'':<18} page: {source.page}")
        if unsure:
            lines.append(f"{'':<18} checksum: {', '.join(unsure)}")
    lines.append(f"{'bus':<18} {_BUS}\n")
    return "\n".join(lines)


_BUS = f"cannot be downloaded: {CATALOG['bus'].licence}; data/README.md says whom to ask"


def get_sources(names: list[str], root: Path) -> None:
    """Gets sources by name, one after the other; an unknown name ends all at once."""
    for name in names:
        if name == "bus":
            raise InputError(f"bus {_BUS}")
        if name not in SOURCES:
            raise InputError(f"get: {name!r} is unknown, choose among {', '.join(SOURCES)}")
    for name in names:
        get_source(SOURCES[name], root)


def get_source(source: Source, root: Path, timeout: int = TIMEOUT) -> None:
    """Downloads what a source lacks, verifies it, and puts it in place whole or not at all.

    A server that sends no byte for `timeout` seconds is given up. What was in place before an error
    is untouched, and nothing that failed a check is kept, but for files put into data/downloads by
    hand.
    """
    target = root / source.target
    if there := _what_is_there(source, target):
        print(f"{source.name}: {there}, nothing to do")
        return
    print(f"{source.name}: {source.title}; terms: {source.terms}; see {source.page}")
    new: list[Path] = []
    try:
        for download in source.downloads:
            if not _is_in(target, download):
                path = root / DOWNLOADS / download.file
                if _fetch(download, source, path, root, timeout) and download.checksum is None:
                    new.append(path)
        _place(source, root, target)
    except BaseException:
        # With no published checksum, a file is believed only once its content was seen to be whole.
        for path in new:
            _discard(path, root, previous=None)
        raise
    for download in source.downloads:
        path = root / DOWNLOADS / download.file
        if path.is_file() and not _record_of(path).is_file():
            _record(path, root)
        if download.checksum is None:
            print(
                f"{source.name}: no checksum of {download.file} is published; md5 "
                f"{_recorded_md5(path)} is recorded in {_record_of(path)}, and later downloads are "
                "compared with it"
            )
    print(f"{source.name}: {_what_is_there(source, target)}")


def _what_is_there(source: Source, target: Path) -> str:
    """What is in place, in words; empty if something is missing."""
    if not target.is_dir() or not any(target.iterdir()):
        return ""
    if any(download.into is not None for download in source.downloads):
        try:
            return f"{target} holds {_count_cases(source, target)} images with masks"
        except InputError as error:
            raise InputError(
                f"{target} exists but is not the whole of {source.title} ({error}): move it away, "
                "then run the same command again"
            ) from error
    for download in source.downloads:
        if (target / download.file).exists() and not _is_in(target, download):
            raise InputError(
                f"{target / download.file} is not the published file: move it away, then run the "
                "same command again"
            )
    if all(_is_in(target, download) for download in source.downloads):
        return f"{target} holds {', '.join(d.file for d in source.downloads)}"
    return ""


def _is_in(target: Path, download: Download) -> bool:
    """Whether a file that needs no unpacking lies in its place."""
    path = target / download.file
    return path.is_file() and not _wrong_with(path, download, None)


def _count_cases(source: Source, folder: Path) -> int:
    cases, expected = find_cases(source.name, folder), spec_of(source.name).pairs
    if len(cases) != expected:
        raise InputError(f"{folder} has {len(cases)} images with masks where {expected} belong")
    return len(cases)


def _place(source: Source, root: Path, target: Path) -> None:
    try:
        _fill(source, root, target)
    except OSError as error:
        raise InputError(
            f"{target} cannot be written ({error.strerror or error}): check the disk and the space "
            "left on it"
        ) from error


def _fill(source: Source, root: Path, target: Path) -> None:
    with replace_folder(target) as fresh:
        if target.is_dir():  # files of the user's own beside ours stay
            shutil.copytree(target, fresh, dirs_exist_ok=True)
        for download in source.downloads:
            path = root / DOWNLOADS / download.file
            if download.into is None:
                if not (fresh / download.file).exists():
                    shutil.copyfile(path, fresh / download.file)
                continue
            folder = fresh / download.into
            print(f"{source.name}: unpacking {path}")
            unpack(path, folder)
            _lift(folder)
        for name in source.inner:
            inner = fresh / name
            if inner.is_file():
                unpack(inner, inner.parent)
                inner.unlink()
        if any(download.into is not None for download in source.downloads):
            try:
                _count_cases(source, fresh)
            except InputError as error:
                reason = str(error).replace(str(fresh), str(target))
                raise InputError(
                    f"{source.title} was not put in place, since what was unpacked is incomplete "
                    f"({reason}): download it by hand from {source.page} into {root / DOWNLOADS} "
                    "and run the same command again"
                ) from error


def _lift(folder: Path) -> None:
    """Undoubles `folder/folder/...`, where an archive brings the folder it is unpacked into."""
    inner = folder / folder.name
    if inner.is_dir() and len(list(folder.iterdir())) == 1:
        outer = folder.rename(folder.with_name(f"{folder.name}.outer"))
        (outer / folder.name).rename(folder)
        outer.rmdir()


def _fetch(download: Download, source: Source, path: Path, root: Path, timeout: int) -> bool:
    """Makes sure that the file lies in data/downloads, verified; whether it is the first time."""
    path.parent.mkdir(parents=True, exist_ok=True)
    by_hand = f"download it by hand from {source.page} to {path} and run the same command again"
    known = _recorded_md5(path)
    if path.is_file():
        if reason := _wrong_with(path, download, known):
            raise InputError(
                f"{path} {reason}: remove it, or finish it if the download broke off "
                f"(curl --location --continue-at - --output '{path}' '{download.url}'), and run "
                "the same command again"
            )
        print(f"{source.name}: {path} is there and verified")
        return False
    record = _record_of(path)
    previous = record.read_text(encoding="utf-8") if record.is_file() else None
    try:
        reason = _import(download, path, root, timeout) or _wrong_with(path, download, known)
    except BaseException:
        _discard(path, root, previous)
        raise
    if reason:
        _discard(path, root, previous)
        raise InputError(f"{download.url} {reason}: try again later, or {by_hand}")
    return previous is None


def _import(download: Download, path: Path, root: Path, timeout: int) -> str:
    """Downloads by DVC; returns what went wrong, in words that follow the address."""
    from dvc.exceptions import NotDvcRepoError
    from dvc.lock import LockError
    from dvc.repo import Repo, lock_repo

    if reason := _refusal(download, timeout):
        return reason
    # The timeouts are DVC's options for http, kept in the .dvc file for `dvc update`.
    options = {"connect_timeout": timeout, "read_timeout": timeout}
    try:
        with Repo(str(root)) as repo, lock_repo(repo):
            for leftover in path.parent.glob(".*.tmp"):  # of a download that was killed
                leftover.unlink()
            repo.imp_url(download.url, out=str(path), fs_config=options, force=True)
    except LockError as error:
        raise InputError(
            f"{root} is in use by another dvc command: wait until it ends, then run this again"
        ) from error
    except TimeoutError:
        return f"sent nothing for {timeout} seconds in the middle of the file"
    except NotDvcRepoError as error:
        raise InputError(
            f"{root.resolve()} is no DVC repository: run this again in a git clone of the project"
        ) from error
    except Exception as error:  # DVC lets through what its http client, fsspec and disks raise
        return f"could not be downloaded completely ({first_line(error)[:200]})"
    return ""


def _refusal(download: Download, timeout: int) -> str:
    """What a server has against giving the file, in words; DVC only says "does not exist"."""
    try:
        with urllib.request.urlopen(download.url, timeout=timeout) as answer:
            start, length = answer.read(512), answer.headers.get("Content-Length", "")
    except urllib.error.HTTPError as error:
        if error.code < 400:
            return "redirects without end"
        return f"answers with error {error.code} ({error.reason})"
    except (OSError, http.client.HTTPException) as error:
        cause = error.reason if isinstance(error, urllib.error.URLError) else error
        if isinstance(cause, TimeoutError):
            return f"sent nothing for {timeout} seconds"
        return f"cannot be reached ({first_line(cause)[:200] if cause else error})"
    if _is_web_page(start):
        return "answers with a web page instead of the file, perhaps to log in or to agree to terms"
    if download.exact and length.isdecimal() and int(length) != download.size:
        return f"offers {int(length):,} bytes where {download.size:,} were published"
    return ""


def _is_web_page(start: bytes) -> bool:
    return start.lstrip(b"\xef\xbb\xbf \t\r\n")[:9].lower().startswith((b"<!doctype", b"<html"))


def _wrong_with(path: Path, download: Download, known_md5: str | None) -> str:
    """What a file has against being the published one, in words that follow its name; or ""."""
    size = path.stat().st_size
    with open(path, "rb") as file:
        if _is_web_page(file.read(512)):
            return "is a web page instead of the file"
    if download.exact and size != download.size:
        return f"has {size:,} bytes where {download.size:,} were published"
    expected = download.checksum or (known_md5 and f"md5:{known_md5}")
    if expected:
        method, _, digest = expected.partition(":")
        with open(path, "rb") as file:
            found = hashlib.file_digest(file, method).hexdigest()
        if found != digest:
            whose = (
                download.vouched_by
                if download.checksum
                else f"the first download; to accept another, remove {_record_of(path)}"
            )
            return f"has changed: its {method} is {found}, not {digest} ({whose})"
    return ""


def _record_of(path: Path) -> Path:
    return path.with_name(f"{path.name}.dvc")


def _recorded_md5(path: Path) -> str | None:
    """The checksum in the `.dvc` file beside a download; None without one."""
    record = _record_of(path)
    if not record.is_file():
        return None
    try:
        return str(yaml.safe_load(record.read_text(encoding="utf-8"))["outs"][0]["md5"])
    except (yaml.YAMLError, UnicodeDecodeError, KeyError, IndexError, TypeError) as error:
        raise InputError(
            f"{record} is not a record of DVC: remove it and run the same command again, which "
            "then takes the file as the first of its kind"
        ) from error


def _record(path: Path, root: Path) -> None:
    """Records a file that came by hand, as `dvc add` does."""
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    try:
        with Repo(str(root)) as repo:
            repo.add([str(path)])
    except DvcException as error:
        raise InputError(
            f"{path} cannot be recorded by DVC ({first_line(error)[:200]}): run this again in a "
            "git clone of the project"
        ) from error


def _discard(path: Path, root: Path, previous: str | None) -> None:
    """Takes back a download that failed: the file, its copy in DVC's cache and its record."""
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    with suppress(InputError, DvcException):
        failed = _recorded_md5(path)
        if failed and failed not in (previous or ""):
            with Repo(str(root)) as repo:
                Path(repo.cache.local.oid_to_path(failed)).unlink(missing_ok=True)
    path.unlink(missing_ok=True)
    if previous is None:
        _record_of(path).unlink(missing_ok=True)
    else:
        write_text(_record_of(path), previous)
