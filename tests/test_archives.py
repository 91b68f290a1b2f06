"""Archives from outside: good ones come out whole, bad ones are refused, nothing gets outside."""

import gzip
import io
import os
import re
import struct
import tarfile
import tempfile
import zipfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from layouts import tree

from wavegms.data.archives import Limits, unpack
from wavegms.errors import InputError


def make_zip(path, members):
    """Members are (name or ZipInfo, bytes)."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in members:
            file.writestr(name, content)
    return path


def make_tar(path, members, mode="w:gz"):
    """Members are (name, bytes) or TarInfo."""
    with tarfile.open(path, mode) as file:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                file.addfile(member)
            else:
                info = tarfile.TarInfo(member[0])
                info.size = len(member[1])
                file.addfile(info, io.BytesIO(member[1]))
    return path


def special(name, kind, link=""):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    return info


def refused(archive, tmp_path, limits=Limits()):  # noqa: B008
    """Unpacks what must be refused, and gives back the sentence."""
    inside = tmp_path / "outer/inside"
    inside.mkdir(parents=True)
    before = {path: content for path, content in tree(tmp_path).items() if "inside/" not in path}
    with pytest.raises(InputError) as error:
        unpack(archive, inside, limits)
    after = {path: content for path, content in tree(tmp_path).items() if "inside/" not in path}
    assert after == before
    assert str(archive) in str(error.value)
    return str(error.value)


GOOD = [("a/1.txt", b"one"), ("./a/b/2 (x).txt", b"two" * 1000), ("é.txt", b"")]


@pytest.mark.parametrize("kind", ["zip", "w:gz", "w"])
def test_a_good_archive_comes_out_whole(tmp_path, kind):
    path = tmp_path / "good"
    make_zip(path, GOOD) if kind == "zip" else make_tar(path, GOOD, kind)
    assert unpack(path, tmp_path / "out") == 3
    assert tree(tmp_path / "out") == {
        "a/1.txt": b"one",
        "a/b/2 (x).txt": b"two" * 1000,
        "é.txt": b"",
    }


def test_folders_are_kept_and_leftovers_of_macos_are_not(tmp_path):
    members = [
        ("a/", b""),
        ("a/1", b"1"),
        ("__MACOSX/a/._1", b"x"),
        ("a/._1", b"x"),
        (".DS_Store", b"x"),
    ]
    assert unpack(make_zip(tmp_path / "z", members), tmp_path / "out") == 1
    assert tree(tmp_path / "out") == {"a/1": b"1"}


OUTSIDE = [
    "/tmp/x",
    "//host/x",
    "../x",
    "a/../../x",
    "a/..",
    "..",
    "C:/x",
    "c:x",
    "..\\x",
    "a\\..\\..\\x",
    "\\x",
    "a:stream",
    "a\nb",
    "a\x7f",
]


@pytest.mark.parametrize("name", OUTSIDE)
@pytest.mark.parametrize("make", [make_zip, make_tar])
def test_a_path_out_of_the_folder_is_refused(tmp_path, name, make, survived):
    archive = make(tmp_path / "bad", [("fine", b"1"), (name, b"2")])
    assert "member" in refused(archive, tmp_path)
    survived("inputs")


def test_what_follows_a_zero_byte_counts(tmp_path, survived):
    archive = make_zip(tmp_path / "bad", [("a.txtX/../../x", b"1")])
    archive.write_bytes(archive.read_bytes().replace(b"a.txtX", b"a.txt\0"))
    refused(archive, tmp_path)
    survived("inputs")


@pytest.mark.parametrize(
    "names",
    [
        ("a", "a"),
        ("a/b", "A/B"),
        ("a/b", "A/c"),
        ("a", "a/b"),
        ("a/b", "a"),
        ("é", "e\u0301"),
        ("a", "./a"),
    ],
)
@pytest.mark.parametrize("make", [make_zip, make_tar])
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_two_members_for_one_place_are_refused(tmp_path, names, make, survived):
    archive = make(tmp_path / "bad", [(name, b"x") for name in names])
    assert re.search("has (the same place as|a place that is taken)", refused(archive, tmp_path))
    survived("inputs")


@pytest.mark.parametrize(
    "member",
    [
        special("l", tarfile.SYMTYPE, "../../x"),
        special("l", tarfile.SYMTYPE, "/etc/passwd"),
        special("l", tarfile.SYMTYPE, "fine"),
        special("l", tarfile.LNKTYPE, "../x"),
        special("d", tarfile.CHRTYPE),
        special("d", tarfile.BLKTYPE),
        special("d", tarfile.FIFOTYPE),
    ],
    ids=lambda member: f"{member.type.decode()}-{member.linkname}",
)
def test_links_and_devices_in_a_tar_are_refused(tmp_path, member, survived):
    archive = make_tar(tmp_path / "bad", [("fine", b"1"), member, ("l/x", b"2")])
    assert "link or a device" in refused(archive, tmp_path)
    survived("inputs")


@pytest.mark.parametrize("mode", [0o120777, 0o020666, 0o060666, 0o010666])
def test_links_and_devices_in_a_zip_are_refused(tmp_path, mode, survived):
    info = zipfile.ZipInfo("l")
    info.create_system, info.external_attr = 3, mode << 16
    assert "link or a device" in refused(make_zip(tmp_path / "bad", [(info, b"../x")]), tmp_path)
    survived("inputs")


def test_a_member_with_a_password_is_refused(tmp_path, survived):
    archive = make_zip(tmp_path / "bad", [("a", b"1")])
    content = bytearray(archive.read_bytes())
    content[6] |= 1
    content[content.index(b"PK\x01\x02") + 8] |= 1
    archive.write_bytes(content)
    assert "'a' has a password" in refused(archive, tmp_path)
    survived("inputs")


@pytest.mark.parametrize("make", [make_zip, make_tar])
def test_too_many_members_are_refused(tmp_path, make, survived):
    archive = make(tmp_path / "bad", [(f"{i}", b"") for i in range(11)])
    assert "more than 10" in refused(archive, tmp_path, Limits(members=10))
    survived("inputs")


@pytest.mark.parametrize("make", [make_zip, make_tar])
@pytest.mark.parametrize("limits", [Limits(), Limits(total_bytes=1_000_000, ratio=10**6)])
def test_absurd_expansion_is_refused_before_much_is_written(tmp_path, make, limits, survived):
    archive = make(tmp_path / "bad", [("fine", b"1"), ("bomb", bytes(20_000_000))])
    assert "expands" in refused(archive, tmp_path, limits)
    assert sum(p.stat().st_size for p in (tmp_path / "outer").rglob("*") if p.is_file()) <= 1
    survived("inputs")


def test_a_long_name_that_is_a_bomb_is_refused(tmp_path, survived):
    # A header's own data is read into memory before any member is seen.
    info = tarfile.TarInfo("././@LongLink")
    info.type, info.size = tarfile.GNUTYPE_LONGNAME, 200_000_000
    archive = tmp_path / "bad"
    with gzip.open(archive, "wb", compresslevel=1) as file:
        file.write(info.tobuf(tarfile.GNU_FORMAT))
        for _ in range(200):
            file.write(bytes(1_000_000))
    assert "expands" in refused(archive, tmp_path, Limits(members=100))
    survived("inputs")


def test_a_zip_that_lies_about_its_sizes_is_refused(tmp_path, survived):
    """The header says ten bytes, twenty million come out."""
    archive = make_zip(tmp_path / "bad", [("bomb", bytes(20_000_000))])
    content = bytearray(archive.read_bytes())
    central = content.index(b"PK\x01\x02")
    struct.pack_into("<I", content, 22, 10)
    struct.pack_into("<I", content, central + 24, 10)
    archive.write_bytes(content)
    refused(archive, tmp_path)
    assert sum(p.stat().st_size for p in (tmp_path / "outer").rglob("*") if p.is_file()) <= 10
    survived("inputs")


@pytest.mark.parametrize(
    "content", [b"", b"PK", b"<html>log in</html>", b"\x1f\x8b\x08", bytes(5000)]
)
def test_what_is_no_archive_is_refused(tmp_path, content, survived):
    (tmp_path / "bad").write_bytes(content)
    refused(tmp_path / "bad", tmp_path)
    survived("inputs")


@pytest.mark.parametrize("make", [make_zip, make_tar])
def test_an_empty_archive_is_refused(tmp_path, make, survived):
    assert "no files" in refused(make(tmp_path / "bad", []), tmp_path)
    survived("inputs")


@pytest.mark.parametrize("make", [make_zip, make_tar])
@pytest.mark.parametrize("share", [0.3, 0.7, 0.98])
def test_a_truncated_archive_is_refused(tmp_path, make, share, survived):
    archive = make(tmp_path / "bad", [(f"{i}", os.urandom(3000)) for i in range(5)])
    archive.write_bytes(archive.read_bytes()[: int(share * archive.stat().st_size)])
    assert "damaged" in refused(archive, tmp_path)
    survived("inputs")


def test_a_full_disk_is_one_sentence(tmp_path, monkeypatch, survived):
    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("wavegms.data.archives._write", full)
    assert "No space left" in refused(make_zip(tmp_path / "z", GOOD), tmp_path)
    survived("faults")


PIECES = st.sampled_from(
    ["..", ".", "/", "\\", "a", "A", "b", "C:", " ", "é", "\x00", "~", "x.png"]
)
# zipfile itself cannot write a name that begins with a zero byte.
NAMES = st.lists(PIECES, min_size=1, max_size=6).map("".join).filter(lambda name: name[0] != "\0")


def check_law(archive, top):
    """Either a refusal, or as many files as were promised; outside of the folder nothing, ever."""
    inside = top / "in/side"
    inside.mkdir(parents=True)
    try:
        promised = unpack(archive, inside)
    except InputError:
        promised = None
    everything = [path for path in top.rglob("*") if path.is_file() and path != archive]
    assert all(path.is_relative_to(inside) and not path.is_symlink() for path in everything)
    assert promised is None or promised == len(everything)


@pytest.mark.filterwarnings("ignore:Duplicate name")
@given(names=st.lists(NAMES, min_size=1, max_size=4), use_tar=st.booleans())
def test_whatever_the_names_nothing_is_written_outside(names, use_tar):
    with tempfile.TemporaryDirectory() as folder:
        make = make_tar if use_tar else make_zip
        archive = make(Path(folder) / "archive", [(name, b"x") for name in names])
        check_law(archive, Path(folder))


@given(data=st.data(), use_tar=st.booleans())
def test_whatever_bytes_are_changed_the_answer_is_files_or_one_sentence(data, use_tar):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "archive"
        archive = make_tar(path, GOOD, "w") if use_tar else make_zip(path, GOOD)
        content = bytearray(archive.read_bytes())
        spots = st.tuples(st.integers(0, len(content) - 1), st.integers(0, 255))
        for place, value in data.draw(st.lists(spots, min_size=1, max_size=8)):
            content[place] = value
        archive.write_bytes(content)
        check_law(archive, Path(folder))
