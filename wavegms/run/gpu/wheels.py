"""Libraries from a pack, where a machine has neither them nor a package index.

Only Python's own library is imported here: it runs before the others are there.
"""

import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from wavegms.errors import InputError

LIST = "pack.json"

WHEELS = "wheels"

# When the first process started, for the one that runs with the libraries: time is counted from it.
STARTED = "WAVEGMS_GPU_STARTED"


def check_pack(folder: Path) -> None:
    """Refuses a pack of which a file is missing, was changed, or came to it."""
    try:
        expected = json.loads((folder / LIST).read_text(encoding="utf-8"))["sha256"]
        found = {path.relative_to(folder).as_posix() for path in folder.rglob("*")}
        for name, content in expected.items():
            if hashlib.sha256((folder / name).read_bytes()).hexdigest() != content:
                raise ValueError(f"{name} is damaged")
        strays = {name for name in found if name.endswith(".whl")} - set(expected)
        if strays:
            raise ValueError(f"{min(strays)} is not on its list")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"{folder} is no whole pack ({error}): copy it anew, or make it again by "
            "`python -m wavegms gpu --pack FOLDER`"
        ) from error


def run_with_wheels(folder: Path) -> int:
    """Runs the same command with the pack's libraries, from a folder that is removed afterwards."""
    started = str(time.time())
    wheels = sorted(map(str, (folder / WHEELS).glob("*.whl")))
    with tempfile.TemporaryDirectory(prefix="wavegms-") as site:
        install = ["install", "--quiet", "--no-index", "--no-deps", "--no-compile"]
        install += ["--no-cache-dir", "--disable-pip-version-check", "--target", site, *wheels]
        done = subprocess.run([sys.executable, "-m", "pip", *install])
        if done.returncode:
            raise InputError(
                f"the wheels in {folder / WHEELS} cannot be installed, see above: they are for "
                "Python 3.12 on Linux x86-64, with pip"
            )
        project = str(Path(__file__).parents[3])
        path = os.pathsep.join(filter(None, [site, project, os.environ.get("PYTHONPATH")]))
        command = [sys.executable, "-m", "wavegms", *sys.argv[1:]]
        return subprocess.run(
            command, env=os.environ | {"PYTHONPATH": path, STARTED: started}
        ).returncode
