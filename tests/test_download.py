"""`python -m wavegms get`, against a server on this machine that fails in every way we know."""

import hashlib
import http.server
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import zipfile
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import pytest
import yaml
from dvc.repo import Repo
from layouts import tree, write_busi, write_ham10000, write_kvasir, write_split
from test_archives import make_tar

from wavegms.__main__ import main
from wavegms.data.catalog import CATALOG, SOURCES, Download, find_cases, spec_of
from wavegms.data.download import describe_sources, get_source
from wavegms.data.splits import read_published_split
from wavegms.errors import InputError
from wavegms.files import sha256_of

LOGIN = b"\n<!DOCTYPE html><html><body>Please log in</body></html>"


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves `server.files` in the way that `server.behaviour` names."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments):
        pass

    def do_HEAD(self):
        self.answer(body=False)

    def do_GET(self):
        self.answer(body=True)

    def answer(self, body):
        behaviour = self.server.behaviour
        self.server.requests.append(f"{self.command} {self.path}")
        if behaviour.isdecimal() or (behaviour == "no head" and not body):
            return self.send(int(behaviour) if behaviour.isdecimal() else 403, b"", {})
        if behaviour == "silent":
            self.server.stopped.wait(20)
            return None
        if behaviour == "hang up":
            self.close_connection = True
            return None
        if behaviour == "loop":
            return self.send(302, b"", {"Location": self.path})
        if behaviour == "moved" and not self.path.startswith("/new"):
            return self.send(302, b"", {"Location": f"/new{self.path}"})
        content = self.server.files[self.path.removeprefix("/new").partition("?")[0].strip("/")]
        if behaviour == "login":
            return self.send(200, LOGIN, {"Content-Type": "text/html"}, body)
        headers = (
            {} if behaviour == "no etag" else {"ETag": f'"{hashlib.md5(content).hexdigest()}"'}
        )
        if behaviour == "ranges":
            headers["Accept-Ranges"] = "bytes"
            if wanted := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
                start, end = int(wanted[1]), int(wanted[2] or len(content) - 1)
                headers["Content-Range"] = f"bytes {start}-{end}/{len(content)}"
                return self.send(206, content[start : end + 1], headers, body)
        sent = content
        if behaviour in ("truncate", "stall", "truncate without length"):
            # The first look at the file gets past it, the download does not.
            sent = content[: len(content) // 2]
        length = None if "without length" in behaviour else len(content)
        return self.send(200, sent, headers, body, length, stall=behaviour == "stall")

    def send(self, status, content, headers, body=True, length=..., stall=False):
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        if length is None:
            self.send_header("Connection", "close")
        else:
            self.send_header("Content-Length", str(len(content) if length is ... else length))
        self.end_headers()
        if body:
            self.wfile.write(content)
            self.wfile.flush()
        if stall and body:
            self.server.stopped.wait(20)
        if length is None or (length is not ... and length != len(content)):
            self.close_connection = True


class Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def handle_error(self, request, client_address):
        pass  # DVC hangs up in the middle of answers


@pytest.fixture(scope="module")
def running():
    server = Server(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def server(running):
    running.files, running.behaviour, running.requests = {}, "good", []
    running.stopped = threading.Event()
    running.url = f"http://127.0.0.1:{running.server_port}"
    yield running
    running.stopped.set()


@pytest.fixture(scope="module")
def empty_project(tmp_path_factory):
    folder = tmp_path_factory.mktemp("project")
    subprocess.run(["git", "init", "--quiet", folder], check=True)
    Repo.init(str(folder)).close()
    shutil.copy(Path(__file__).parents[1] / ".gitignore", folder)
    (folder / "params.yaml").touch()
    return folder


@pytest.fixture
def project(empty_project, tmp_path, monkeypatch):
    """A git and DVC repository that is the working directory, as for a user."""
    shutil.copytree(empty_project, tmp_path / "project")
    monkeypatch.chdir(tmp_path / "project")
    return Path()


def zipped(folder, extra=()):
    content = BytesIO()
    with zipfile.ZipFile(content, "w") as file:
        for name, data in tree(folder).items():
            file.writestr(name, data)
        for name, data in extra:
            file.writestr(name, data)
    return content.getvalue()


def sha256(content):
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


@pytest.fixture
def busi(server, tmp_path, monkeypatch):
    """BUSI's recipe for an archive of eight images in BUSI's layout."""
    monkeypatch.setitem(CATALOG, "busi", replace(CATALOG["busi"], pairs=8))
    server.files["busi.zip"] = zipped(write_busi(tmp_path / "made"), [("__MACOSX/._x", b"x")])
    content = server.files["busi.zip"]
    return replace(
        SOURCES["busi"],
        downloads=(
            Download(
                "busi.zip", f"{server.url}/busi.zip", len(content), sha256(content), "us", into=""
            ),
        ),
    )


@pytest.fixture
def unpublished(busi):
    """The same without a published checksum or size."""
    return replace(busi, downloads=(replace(busi.downloads[0], checksum=None, exact=False),))


def refused(source, timeout=5):
    """Gets what must fail; all is as before, then. Gives back the sentence."""
    before = kept()
    with pytest.raises(InputError) as error:
        get_source(source, Path(), timeout)
    assert kept() == before
    sentence = str(error.value)
    assert "\n" not in sentence
    assert "again" in sentence  # the way out
    return sentence


def kept():
    """All files but those of git and DVC's own bookkeeping; cached files are counted."""
    return {
        name: content
        for name, content in tree(Path()).items()
        if not name.startswith((".git/", ".dvc/tmp/")) and name != ".dvc/.gitignore"
    }


def record(file):
    return yaml.safe_load(Path(f"data/downloads/{file}.dvc").read_text())


# What goes well


@pytest.mark.parametrize(
    "behaviour", ["good", "moved", "no etag", "no head", "ranges", "whole without length"]
)
def test_a_dataset_is_downloaded_verified_unpacked_and_recorded(
    project, server, busi, behaviour, capsys
):
    server.behaviour = behaviour
    get_source(busi, project, 5)
    assert len(find_cases("busi", Path("data/raw/busi"))) == 8
    assert os.listdir("data/raw") == ["busi"]
    assert os.listdir("data/raw/busi") == ["Dataset_BUSI_with_GT"]
    assert set(os.listdir("data/downloads")) == {"busi.zip", "busi.zip.dvc"}
    out = record("busi.zip")["outs"][0]
    assert out["md5"] == hashlib.md5(server.files["busi.zip"]).hexdigest()
    assert record("busi.zip")["deps"][0]["path"] == f"{server.url}/busi.zip"
    assert "8 images with masks" in capsys.readouterr().out


def test_a_second_call_asks_nobody_and_changes_nothing(project, server, busi, capsys):
    get_source(busi, project, 5)
    before, server.requests = kept(), []
    capsys.readouterr()
    get_source(busi, project, 5)
    assert "nothing to do" in capsys.readouterr().out
    assert server.requests == []
    assert kept() == before


def test_git_sees_the_record_and_not_the_download(project, busi):
    get_source(busi, project, 5)
    seen = subprocess.run(
        ["git", "status", "--porcelain", "--untracked-files=all"],
        capture_output=True,
        encoding="utf-8",
    )
    assert "data/downloads/busi.zip.dvc" in seen.stdout
    assert not re.search(r"busi\.zip$|data/raw|data/downloads/\.", seen.stdout, re.MULTILINE)


def test_dvc_repro_needs_no_network_although_downloads_are_recorded(project, server, busi):
    get_source(busi, project, 5)
    Path("data/downloads/busi.zip").unlink()
    shutil.rmtree(".dvc/cache")
    Path("dvc.yaml").write_text("stages:\n  a:\n    cmd: echo a > a.txt\n    outs: [a.txt]\n")
    server.requests = []
    with Repo(".") as repo:
        assert [stage.name for stage in repo.reproduce()] == ["a"]
    assert server.requests == []


def test_a_file_placed_by_hand_needs_no_network(project, server, busi):
    server.behaviour = "silent"
    Path("data/downloads").mkdir(parents=True)
    Path("data/downloads/busi.zip").write_bytes(server.files["busi.zip"])
    get_source(busi, project, 5)
    assert server.requests == []
    assert len(find_cases("busi", Path("data/raw/busi"))) == 8
    assert record("busi.zip")["outs"][0]["size"] == busi.downloads[0].size


def test_kvasir_with_its_archives_inside_the_archive(project, server, tmp_path, monkeypatch):
    monkeypatch.setitem(
        CATALOG, "kvasir_instrument", replace(spec_of("kvasir_instrument"), pairs=5)
    )
    made = write_kvasir(tmp_path / "made")
    outer = tmp_path / "zip/kvasir-instrument"
    outer.mkdir(parents=True)
    for part in ("images", "masks"):
        files = [(f"{part}/{name}", data) for name, data in tree(made / part).items()]
        make_tar(outer / f"{part}.tar.gz", files)
    for part in ("train.txt", "test.txt"):
        shutil.copy(made / part, outer)
    content = server.files["kvasir-instrument.zip"] = zipped(tmp_path / "zip")
    source = SOURCES["kvasir_instrument"]
    url = f"{server.url}/kvasir-instrument.zip"
    source = replace(source, downloads=(replace(source.downloads[0], url=url),))
    get_source(source, project, 5)
    assert tree(Path("data/raw/kvasir_instrument/kvasir-instrument")) == tree(made)
    assert record("kvasir-instrument.zip")["outs"][0]["size"] == len(content)


@pytest.mark.parametrize("with_folder", [True, False])
def test_ham10000_in_its_four_parts(project, server, tmp_path, monkeypatch, with_folder):
    monkeypatch.setitem(CATALOG, "ham10000", replace(CATALOG["ham10000"], pairs=8))
    made = write_ham10000(tmp_path / "made", metadata="HAM10000_metadata.csv")
    downloads = []
    for download in SOURCES["ham10000"].downloads:
        folder = made / download.into if download.into else None
        if folder and with_folder:  # as the segmentations are, with what macOS adds
            shutil.copytree(folder, tmp_path / "wrap" / folder.name / folder.name)
            content = zipped(tmp_path / "wrap" / folder.name, [("__MACOSX/._a.png", b"x")])
        else:
            content = zipped(folder) if folder else (made / download.file).read_bytes()
        server.files[download.file] = content
        md5 = f"md5:{hashlib.md5(content).hexdigest()}"
        url = f"{server.url}/{download.file}?format=original"
        downloads.append(replace(download, url=url, size=len(content), checksum=md5))
    get_source(replace(SOURCES["ham10000"], downloads=tuple(downloads)), project, 5)
    assert tree(Path("data/raw/ham10000")) == tree(made)


@pytest.fixture
def lists(server, tmp_path):
    """The recipe of the split lists, for two small ones."""
    downloads = []
    for name in ("bus", "busi"):
        file = f"{name}_train_test_names.pkl"
        content = write_split(tmp_path / file, [f"{name}_1"], [f"{name}_2"]).read_bytes()
        server.files[file] = content
        downloads.append(
            Download(file, f"{server.url}/{file}", len(content), sha256(content), "us")
        )
    return replace(SOURCES["splits"], downloads=tuple(downloads))


def test_plain_files_join_those_that_are_there(project, server, lists):
    folder = Path("data/raw/splits")
    folder.mkdir(parents=True)
    (folder / "mine.txt").write_text("mine")
    (folder / "bus_train_test_names.pkl").write_bytes(server.files["bus_train_test_names.pkl"])
    get_source(lists, project, 5)
    assert tree(folder) == {"mine.txt": b"mine", **server.files}
    assert read_published_split(folder / "busi_train_test_names.pkl")["test"] == ["busi_2"]
    assert not any("/bus_" in request for request in server.requests)


# Servers and connections that fail


@pytest.mark.parametrize("status", ["401", "403", "404", "410", "429", "500", "503"])
def test_errors_of_a_server(project, server, busi, status, survived):
    server.behaviour = status
    sentence = refused(busi)
    assert f"error {status}" in sentence
    assert f"{busi.page} to data/downloads/busi.zip" in sentence
    survived("faults")


@pytest.mark.parametrize(
    ("behaviour", "words"),
    [
        ("login", "web page"),
        ("loop", "redirects without end"),
        ("hang up", "cannot be reached"),
        ("truncate", "could not be downloaded completely"),
        ("truncate without length", "bytes where"),
        ("silent", "sent nothing for 1 seconds"),
        ("stall", "sent nothing for 1 seconds in the middle"),
    ],
)
def test_a_broken_transfer_is_cleaned_and_can_be_repeated(
    project, server, busi, behaviour, words, survived
):
    server.behaviour = behaviour
    start = time.monotonic()
    assert words in refused(busi, timeout=1)
    assert time.monotonic() - start < 8
    server.behaviour = "good"
    get_source(busi, project, 5)
    assert len(find_cases("busi", Path("data/raw/busi"))) == 8
    survived("faults")


@pytest.mark.parametrize("behaviour", ["login", "truncate", "truncate without length", "stall"])
def test_the_same_without_a_published_checksum(project, server, unpublished, behaviour, survived):
    server.behaviour = behaviour
    refused(unpublished, timeout=1)
    server.behaviour = "good"
    get_source(unpublished, project, 5)
    survived("faults")


def test_no_server(project, busi, survived):
    url = "http://127.0.0.1:9/busi.zip"
    source = replace(busi, downloads=(replace(busi.downloads[0], url=url),))
    assert "cannot be reached" in refused(source)
    survived("faults")


def test_no_such_host(project, busi, monkeypatch, survived):
    def unknown(*arguments, **keywords):
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    url = "http://nowhere.invalid/busi.zip"
    source = replace(busi, downloads=(replace(busi.downloads[0], url=url),))
    assert "cannot be reached ([Errno -2] Name or service not known)" in refused(source)
    survived("faults")


def test_a_download_that_was_killed_leaves_nothing_in_the_way(
    project, server, busi, tmp_path, survived
):
    server.behaviour = "stall"
    code = (
        "from pathlib import Path; from wavegms.data.download import get_source; "
        "from wavegms.data.catalog import *; "
        f"get_source({busi!r}, Path(), 60)"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not list(Path("data/downloads").glob(".*.tmp")):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not Path("data/raw/busi").exists()
    server.behaviour = "good"
    get_source(busi, project, 5)
    assert set(os.listdir("data/downloads")) == {"busi.zip", "busi.zip.dvc"}
    survived("kills")


def test_an_interruption_by_the_keyboard_leaves_nothing(project, busi, monkeypatch, survived):
    import_url = Repo.imp_url

    def interrupted(*arguments, **keywords):
        import_url(*arguments, **keywords)
        raise KeyboardInterrupt

    monkeypatch.setattr(Repo, "imp_url", interrupted)
    before = kept()
    with pytest.raises(KeyboardInterrupt):
        get_source(busi, project, 5)
    assert kept() == before
    survived("faults")


# Files that are not what was published


def test_a_changed_file_is_refused_by_size_before_it_is_downloaded(project, server, busi, survived):
    server.files["busi.zip"] += b"more"
    assert "offers" in refused(busi)
    assert len(server.requests) == 1
    survived("faults")


def test_a_changed_file_of_the_same_size_is_refused_by_checksum(project, server, busi, survived):
    content = bytearray(server.files["busi.zip"])
    content[len(content) // 2] ^= 1
    server.files["busi.zip"] = bytes(content)
    assert "has changed: its sha256 is" in refused(busi)
    survived("faults")


def test_without_a_published_checksum_the_first_download_counts(
    project, server, unpublished, capsys
):
    get_source(unpublished, project, 5)
    first = record("busi.zip")["outs"][0]["md5"]
    printed = capsys.readouterr().out
    assert "no checksum of busi.zip is published" in printed
    assert first in printed
    good = server.files["busi.zip"]

    shutil.rmtree("data/raw/busi")
    Path("data/downloads/busi.zip").unlink()
    server.files["busi.zip"] = good[:-1] + b"x"  # the same size, another file
    assert (
        f"not {first} (the first download; to accept another, remove data/downloads/busi.zip.dvc)"
        in refused(unpublished)
    )
    assert record("busi.zip")["outs"][0]["md5"] == first

    server.files["busi.zip"] = good
    get_source(unpublished, project, 5)
    assert len(find_cases("busi", Path("data/raw/busi"))) == 8


def test_a_record_outlives_a_failure_to_unpack_the_same_file(project, unpublished, monkeypatch):
    get_source(unpublished, project, 5)
    first = record("busi.zip")
    shutil.rmtree("data/raw/busi")
    Path("data/downloads/busi.zip").unlink()

    def full(*arguments):
        raise InputError("the disk is full, try again")

    monkeypatch.setattr("wavegms.data.download.unpack", full)
    with pytest.raises(InputError, match="the disk is full"):
        get_source(unpublished, project, 5)
    assert record("busi.zip") == first


def test_an_unpublished_file_that_cannot_be_unpacked_is_not_believed(
    project, server, unpublished, survived
):
    good = server.files["busi.zip"]
    server.files["busi.zip"] = b"PK" + good[2:-40]
    refused(unpublished)
    assert not os.listdir("data/downloads")
    server.files["busi.zip"] = good
    get_source(unpublished, project, 5)
    survived("faults")


@pytest.mark.parametrize("bad", [("../../../evil", b"x"), ("/tmp/evil", b"x")])
def test_an_unsafe_archive_leaves_nothing(project, server, unpublished, bad, tmp_path, survived):
    server.files["busi.zip"] = zipped(tmp_path / "made", [bad])
    assert "was not unpacked" in refused(unpublished)
    assert not list(tmp_path.rglob("evil"))
    survived("faults")


@pytest.mark.parametrize("lacking", ["benign (2).png", "benign (2)*"])
def test_an_archive_that_lacks_images_is_not_put_in_place(
    project, server, unpublished, tmp_path, lacking, survived
):
    for path in (tmp_path / "made/Dataset_BUSI_with_GT/benign").glob(lacking):
        path.unlink()
    server.files["busi.zip"] = zipped(tmp_path / "made")
    sentence = refused(unpublished)
    assert "data/raw/busi" in sentence
    assert ".new" not in sentence
    survived("faults")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda content: content[:100], "curl --location --continue-at -"),
        (lambda content: content[:-1] + b"x", "has changed"),
        (lambda content: LOGIN, "is a web page"),
        (lambda content: b"", "has 0 bytes"),
    ],
)
def test_a_bad_file_placed_by_hand_is_refused_and_stays(
    project, server, busi, change, words, survived
):
    Path("data/downloads").mkdir(parents=True)
    Path("data/downloads/busi.zip").write_bytes(change(server.files["busi.zip"]))
    assert words in refused(busi)
    assert server.requests == []
    survived("faults")


# What is in the way


def test_what_lies_in_the_place_is_not_touched(project, server, busi, lists):
    Path("data/raw/busi").mkdir(parents=True)
    Path("data/raw/busi/mine.txt").write_text("mine")
    assert "move it away" in refused(busi)
    Path("data/raw/splits").mkdir()
    Path("data/raw/splits/bus_train_test_names.pkl").write_bytes(b"other")
    assert "is not the published file: move it away" in refused(lists)
    assert server.requests == []


def test_a_dataset_placed_by_hand_is_enough(project, server, busi, capsys):
    write_busi(Path("data/raw/busi"))
    get_source(busi, project, 5)
    assert "nothing to do" in capsys.readouterr().out
    assert server.requests == []


def test_a_record_that_is_none(project, server, busi, survived):
    Path("data/downloads").mkdir(parents=True)
    Path("data/downloads/busi.zip.dvc").write_text("outs: 3")
    assert "is not a record of DVC" in refused(busi)
    survived("faults")


def test_outside_of_a_project(server, busi, tmp_path, monkeypatch):
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    with pytest.raises(InputError, match="again in a git clone"):
        get_source(busi, Path(), 5)
    assert main(["get", "busi"]) == 1


def test_while_another_dvc_command_runs(project, busi, survived):
    code = (
        "import sys; from dvc.repo import Repo\n"
        "with Repo('.') as repo, repo.lock: print('locked', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout.readline() == b"locked\n"
        assert "in use by another dvc command" in refused(busi)
        other.stdin.close()
    get_source(busi, project, 5)
    survived("faults")


@pytest.mark.parametrize("place", [".dvc/cache", "data/raw/.splits."])
def test_a_full_disk_leaves_the_place_as_it_was(project, lists, place, monkeypatch, survived):
    copyfile = shutil.copyfile

    def full(source, target, **keywords):
        if place in str(target):
            raise OSError(28, "No space left on device")
        return copyfile(source, target, **keywords)

    monkeypatch.setattr(shutil, "copyfile", full)
    with pytest.raises(InputError, match=r"could not be downloaded|No space left"):
        get_source(lists, project, 5)
    assert not Path("data/raw/splits").exists()
    monkeypatch.setattr(shutil, "copyfile", copyfile)
    get_source(lists, project, 5)
    survived("faults")


# The command line and the recipes


def test_the_command(project, server, busi, lists, monkeypatch, capsys):
    monkeypatch.setitem(SOURCES, "busi", busi)
    monkeypatch.setitem(SOURCES, "splits", lists)
    Path("notebooks").mkdir()
    monkeypatch.chdir("notebooks")  # any folder of the project will do
    assert main(["get", "busi", "splits"]) == 0
    assert Path("data/raw/splits").is_dir()
    assert Path("data/raw/busi").is_dir()
    server.requests = []
    capsys.readouterr()
    assert main(["get", "splits", "busi"]) == 0
    assert capsys.readouterr().out.count("nothing to do") == 2
    assert server.requests == []


@pytest.mark.parametrize(
    ("name", "words"), [("bus", "by signed request only"), ("nope", "choose among busi")]
)
def test_names_that_cannot_be_got(project, server, busi, name, words, monkeypatch, capsys):
    monkeypatch.setitem(SOURCES, "busi", busi)
    assert main(["get", "busi", name]) == 1
    assert words in capsys.readouterr().err
    assert server.requests == []


def test_the_list_says_what_every_source_is(capsys):
    assert main(["get"]) == 0
    printed = capsys.readouterr().out
    assert printed == describe_sources()
    for source in SOURCES.values():
        for words in (source.name, source.title, source.target, source.terms, source.page):
            assert words in printed
    assert "none is published" in printed
    assert "2,782 MB" in printed


def test_recipes_are_sound():
    files = [download.file for source in SOURCES.values() for download in source.downloads]
    assert len(files) == len(set(files))
    for source in SOURCES.values():
        unpacked = [download.into is not None for download in source.downloads]
        assert any(unpacked) == (source.name in CATALOG)
        for download in source.downloads:
            assert download.url.startswith("https://")
            assert Path(download.file).name == download.file
            if download.checksum:
                assert re.fullmatch(r"sha256:[0-9a-f]{64}|md5:[0-9a-f]{32}", download.checksum)
    wanted = {spec.split_file for spec in CATALOG.values() if spec.split_file}
    assert {download.file for download in SOURCES["splits"].downloads} == wanted


@pytest.mark.realdata
def test_the_split_lists_are_those_of_the_recipe(real_data):
    for download in SOURCES["splits"].downloads:
        path = real_data / "data/splits" / download.file
        assert f"sha256:{sha256_of(path)}" == download.checksum
        assert path.stat().st_size == download.size
