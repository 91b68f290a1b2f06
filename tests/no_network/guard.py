"""Running programs that may speak to this machine only, and asking what they tried."""

import os
from pathlib import Path


def guarded(environment, log):
    """The environment of a process whose Python may not speak to other machines.

    Args:
        environment: of the process without the guard.
        log: a folder, made if missing, for `attempts` and for `processes`, those under guard.
    """
    Path(log).mkdir(exist_ok=True)
    folders = [str(Path(__file__).parent), environment.get("PYTHONPATH", "")]
    path = os.pathsep.join(filter(None, folders))
    # through a proxy on this machine all the world could be reached
    kept = {
        name: value for name, value in environment.items() if not name.lower().endswith("_proxy")
    }
    return kept | {"PYTHONPATH": path, "WAVEGMS_NETWORK_LOG": str(log)}


def attempts(log):
    """What was tried and refused, with where in the code; empty if nothing was."""
    path = Path(log) / "attempts"
    return path.read_text() if path.exists() else ""


def processes(log):
    """The command lines, first line each, of the Python processes that were under guard."""
    return (Path(log) / "processes").read_text().splitlines()
