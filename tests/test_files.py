"""Folders and files are replaced whole or not at all, even by a process that is killed."""

import multiprocessing
import random
import signal
from itertools import count

import pytest

from wavegms.files import replace_folder, write_text

KILLS = 40
_forks = multiprocessing.get_context("forkserver")
_forks.set_forkserver_preload(["wavegms.files"])


def replace_for_ever(target, started):
    for version in count(1):
        if version == 2:
            started.put(True)
        with replace_folder(target) as folder:
            for name in range(5):
                (folder / f"{name}.txt").write_text(str(version))


def write_for_ever(target, started):
    for version in count(1):
        if version == 2:
            started.put(True)
        write_text(target, str(version) * 50_000)


def kill_while(work, target, seed):
    dice = random.Random(seed)
    for _ in range(KILLS // 2):
        started = _forks.Queue()
        child = _forks.Process(target=work, args=(target, started))
        child.start()
        started.get(timeout=30)
        child.join(dice.uniform(0, 0.02))
        child.kill()
        child.join()
        assert child.exitcode == -signal.SIGKILL
        yield


def test_a_folder_is_whole_after_every_kill(tmp_path, survived):
    target = tmp_path / "a [folder].new"
    seen = set()
    for _ in kill_while(replace_for_ever, target, 1):
        with pytest.raises(ZeroDivisionError), replace_folder(target) as folder:
            assert list(folder.iterdir()) == []
            raise ZeroDivisionError  # nothing is replaced, but what was left is put right
        assert list(tmp_path.iterdir()) == [target]
        texts = [path.read_text() for path in sorted(target.iterdir())]
        assert len(texts) == 5 and len(set(texts)) == 1
        seen.add(texts[0])
        survived("kills")
    assert len(seen) > 3


def test_a_file_is_whole_after_every_kill(tmp_path, survived):
    target = tmp_path / "file.txt"
    for _ in kill_while(write_for_ever, target, 2):
        text = target.read_text()
        version = text[: len(text) // 50_000]
        assert version and text == version * 50_000
        write_text(target, "1" * 50_000)
        assert list(tmp_path.iterdir()) == [target]
        survived("kills")


def test_what_a_living_process_is_at_work_on_is_left_alone(tmp_path):
    target = tmp_path / "folder"
    with replace_folder(target) as outer:
        (outer / "a").touch()
        with replace_folder(target) as inner:
            (inner / "b").touch()
    assert [path.name for path in target.iterdir()] == ["a"]


def test_names_that_only_look_alike_are_left_alone(tmp_path):
    others = {".x.new", ".x.1-zz.old", ".y.999999-0123abcd.old", ".x.y.999999-0123abcd.new"}
    for name in others:
        (tmp_path / name).mkdir()
    write_text(tmp_path / "x", "text")
    assert {path.name for path in tmp_path.iterdir()} == others | {"x"}
