"""What measuring processes do in tests, in place of `measure_point`; imported by them, too."""

import os
import signal
import time
from pathlib import Path

POINT = {
    "device": "d",
    "threads": 1,
    "memory": "m",
    "base_bytes": 1,
    "peak_bytes": 2,
    "allocated_bytes": None,
    "step_seconds": 0.5,
}


def wrong(*arguments):
    raise ValueError("no such\nthing")


def killed(*arguments):
    os.kill(os.getpid(), signal.SIGKILL)


def killed_by_the_second(workload, batch_size, *arguments):
    if batch_size == 2:
        killed()
    return POINT


def sleep(folder):
    """Long, after it said which process it is."""
    Path(folder, str(os.getpid())).touch()
    time.sleep(600)


def told(workload, *arguments):
    """A point whose note is what was to be done."""
    return POINT | {"note": f"{workload.variant} {workload.form}"}
