"""Which code and which libraries a process runs, as an executed notebook keeps it.

It stays out of cards and scores: stages depend on these, and a new commit must not run them again.
"""

import platform
import subprocess
from pathlib import Path
from typing import Any

from wavegms.cards import library_versions

# What a stage computes follows from these. `dvc.lock`, which every stage changes, is none of them.
_SOURCES = ("dvc.yaml", "notebooks", "params.yaml", "wavegms")


def run_record(project: Path = Path(".")) -> dict[str, Any]:
    """Describes the running process; call it before the work, as code may change meanwhile.

    Args:
        project: the project's folder.

    Returns:
        What JSON can hold: revision (of git, 40 hexadecimal digits; None where git does not hold
        the project), changed (the files of the project that decide on results and are not as
        committed, as seen from its folder, sorted), versions (of the libraries), python (its own).
        No name of a machine or user and no absolute path.
    """
    head = _git(project, "rev-parse", "--verify", "HEAD")
    # the repository around a project that was unpacked inside another one is not its own
    own = head and _git(project, "ls-files", "--", "params.yaml")
    return {
        "revision": head.strip() if own else None,
        "changed": _changed(project) if own else [],
        "versions": library_versions(),
        "python": platform.python_version(),
    }


def _changed(project: Path) -> list[str]:
    changes = ("diff", "--name-only", "--relative", "-z", "HEAD", "--", *_SOURCES)
    unknown = ("ls-files", "--others", "--exclude-standard", "-z", "--", *_SOURCES)
    found = _git(project, *changes) + _git(project, *unknown)
    return sorted(filter(None, found.split("\0")))


def _git(project: Path, *arguments: str) -> str:
    """What git says; nothing where it is not installed or fails."""
    # other processes may be at work in the same repository
    command = ["git", "--no-optional-locks", *arguments]
    try:
        # some libraries change the process's locale, and with it what `text=True` means
        done = subprocess.run(command, cwd=project, capture_output=True, encoding="utf-8")
    except FileNotFoundError:
        return ""
    return done.stdout if done.returncode == 0 else ""
