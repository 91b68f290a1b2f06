"""Measuring in processes of their own, forked from one warm parent that has imported torch.

Memory that a process has once used cannot be told from what it uses now: only a fresh process has a
peak of its own. A fresh start of Python pays seconds for imports each time, a fork milliseconds.
"""

import os
import pickle
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import active_children, get_all_start_methods, get_context
from pkgutil import resolve_name
from typing import Any

from wavegms.costs.cases import Workload
from wavegms.errors import InputError, first_line
from wavegms.project import KEEP_MEMORY

MEASURES = "wavegms.costs.measure"
_WARM = ["wavegms.costs.warm"]
POINT = f"{MEASURES}:measure_point"


def apart(
    function: str, *arguments: Any, keep_memory: bool = True, seconds: float | None = None
) -> Any:
    """What a function, named as "module:function", gives in a process of its own.

    With `keep_memory` the process holds on to memory as training in the pipeline does, see
    `KEEP_MEMORY`; otherwise it takes and returns it as the system does, and is not forked, since
    the warm parent was started with those settings. Raises what the function raises,
    `BrokenProcessPool` if the process was killed, and `TimeoutError` after so many seconds.
    """
    forked = keep_memory and "forkserver" in get_all_start_methods()  # not on Windows
    context = get_context("forkserver" if forked else "spawn")
    if forked:
        context.set_forkserver_preload(_WARM)
    others = set(active_children())
    with _environment(keep_memory), ProcessPoolExecutor(1, context) as pool:
        try:
            return pool.submit(_call, function, *arguments).result(seconds)
        except BaseException:  # Ctrl-C, say: nothing is left running
            for child in set(active_children()) - others:
                child.kill()
            raise


def _call(function: str, *arguments: Any) -> Any:
    try:
        return resolve_name(function)(*arguments)
    except Exception as error:
        try:
            pickle.loads(pickle.dumps(error))
        except Exception:  # of torch's compiler, say: its process would seem to have been killed
            raise RuntimeError(f"{type(error).__name__}: {first_line(error)}") from error
        raise


@contextmanager
def _environment(keep_memory: bool) -> Iterator[None]:
    """The settings of glibc that a process takes over when it starts."""
    before = {name: os.environ.pop(name, None) for name in KEEP_MEMORY}
    os.environ |= KEEP_MEMORY if keep_memory else {}
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            os.environ |= {name: value} if value is not None else {}


def measured_points(
    workload: Workload,
    image_size: int,
    batch_sizes: Sequence[int],
    steps: int,
    *,
    keep_memory: bool = True,
    seconds: float | None = None,
) -> Iterator[dict]:
    """What `measure_point` finds for each batch size, as it comes, up to the first without memory.

    That one's dictionary has `batch_size` and `note` only.
    """
    for batch_size in batch_sizes:
        try:
            work = (workload, batch_size, image_size, steps)
            point = apart(POINT, *work, keep_memory=keep_memory, seconds=seconds)
        except TimeoutError:
            point = {"note": f"not done after {seconds:.0f} s"}
        except BrokenProcessPool:
            point = {"note": "killed, as a system does when memory runs out"}
        except Exception as error:
            kind = "training step" if workload.task == "train" else "prediction"
            raise InputError(
                f"the {kind} of {workload.variant} cannot be measured ({first_line(error)}): leave "
                "it out, or change efficiency.image_size"
            ) from error
        yield {"batch_size": batch_size} | point
        if "note" in point:
            return
