"""What a long training owes its user: a clean stop, a forecast, and a sentence when it must end."""

import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import torch
from accelerate.utils.memory import should_reduce_batch_size
from safetensors import SafetensorError
from tqdm import tqdm

from wavegms.config import Precision
from wavegms.errors import InputError
from wavegms.recipes import TAKE_COMMON

HALVES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def choose_precision(wanted: Precision, device: torch.device) -> Precision:
    """What `training.precision` means on a device.

    "auto" takes bf16 on a GPU that has it, and fp32 otherwise. A CPU is left with fp32 even if it
    has bf16, as few do: the same run would give other numbers elsewhere.

    Raises:
        InputError: the device cannot do what is wanted.
    """
    if device.type != "cuda":
        if wanted in ("tf32", "fp16"):
            raise InputError(
                f"training.precision is {wanted}, which needs a GPU: choose auto, fp32 or bf16"
            )
        return "fp32" if wanted == "auto" else wanted
    modern = torch.cuda.is_bf16_supported(including_emulation=False)  # so is tf32
    if wanted in ("tf32", "bf16") and not modern:
        raise InputError(
            f"training.precision is {wanted}, which this GPU has not: choose auto, fp32 or fp16"
        )
    if wanted == "auto":
        return "bf16" if modern else "fp32"
    return wanted


def computing_with(precision: Precision, device: torch.device) -> torch.autocast:
    """Sets torch to a precision, and gives the context in which to compute network and loss.

    The context, for use again and again, does nothing unless a half precision was chosen. Matrix
    products and convolutions may take tf32 from now on, or must not. torch's own default is tf32 in
    convolutions alone.
    """
    # the newer switches, `fp32_precision`, make torch.export fail, which reads these
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = precision != "fp32"
    half = HALVES.get(precision)
    return torch.autocast(device.type, dtype=half, enabled=half is not None)


# The first step is slower than the rest, as memory is fetched and kernels are chosen.
_WARM_UP, _TIMED = 1, 2


def say(text: str) -> None:
    """A line on stderr, above a progress bar that may be there."""
    tqdm.write(text, file=sys.stderr)


class StopRequest:
    """Whether someone pressed Ctrl-C, or interrupted the notebook's kernel.

    `made` becomes True at the first; the second one interrupts at once, as usual.
    """

    def __init__(self):
        self.made = False

    @contextmanager
    def awaited(self) -> Iterator[None]:
        """Takes the first Ctrl-C as a request for as long as the block lasts."""
        if threading.current_thread() is not threading.main_thread():
            yield  # Python gives signals to the main thread alone
            return
        usual = signal.getsignal(signal.SIGINT)

        def note(number, frame):
            self.made = True
            signal.signal(signal.SIGINT, usual)
            say("stopping after this step, to save it; once more stops at once")

        signal.signal(signal.SIGINT, note)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, usual)


class Forecast:
    """Says once, after a few steps, how long the whole training will take on a CPU."""

    def __init__(self, steps: int | None, device: torch.device):
        self._steps, self._done = steps, 0
        self._wanted = device.type == "cpu" and steps is not None
        self._started = 0.0

    def count(self) -> None:
        """Call after each step."""
        self._done += 1
        if self._done == _WARM_UP:
            self._started = time.perf_counter()
        if self._wanted and self._done == _WARM_UP + _TIMED:
            seconds = (time.perf_counter() - self._started) / _TIMED
            whole = timedelta(seconds=round(seconds * self._steps))
            say(
                f"on this machine's CPU {self._steps} steps of {seconds:.2g} s take about {whole} "
                "(hours:minutes:seconds); Ctrl-C keeps what is done"
            )


# Of the time that is left: what is measured first may be faster than what comes, as saving is.
_PLANNED = 0.98

now = time.monotonic


class Budget:
    """How many epochs `training.minutes` allow, from what the first of them took.

    The first step, in which memory is fetched, kernels are chosen and networks compiled, counts as
    spent but is no measure of others; on a card, where a graph is captured as well, nor is the
    first half of the epoch. `spent` are the seconds of processes before this one.
    """

    def __init__(self, minutes: float, steps: int, device: torch.device, spent: float):
        self._limit, self._of_epoch, self._on_card = 60 * minutes, steps, device.type == "cuda"
        self._warm_up = min(steps - 1, max(8, steps // 2)) if self._on_card else 1
        self._started, self._before = now(), spent
        self._steps, self._ends = 0, []
        self._warm = self._stepped = self._started

    def count(self) -> None:
        """Call after each step."""
        self._steps += 1
        if self._limit and self._steps == self._warm_up:
            if self._on_card:
                torch.cuda.synchronize()
            self._warm = now()

    def count_epoch(self) -> None:
        """Call when an epoch's steps are done, before the selection."""
        self._stepped = now()

    @property
    def first(self) -> bool:
        """Whether no epoch has ended yet."""
        return not self._ends

    def spent(self) -> float:
        """Seconds, those of processes before this one included."""
        return self._before + now() - self._started

    def epochs(self, finished: int, selection: float | None = None) -> int:
        """How many there can be in all; call at the end of each epoch, the `finished`-th.

        `selection` are the seconds of one that is no first one, if that was measured.
        """
        self._ends.append(now())
        if len(self._ends) > 1:
            one = (self._ends[-1] - self._ends[0]) / (len(self._ends) - 1)
        elif self._steps > self._warm_up > 0:
            step = (self._stepped - self._warm) / (self._steps - self._warm_up)
            if selection is None:
                selection = self._ends[0] - self._stepped
            one = step * self._of_epoch + selection
        else:
            one = self._ends[0] - self._started
        left = self._limit * _PLANNED - self.spent()
        return finished + max(0, round(left / one))


@contextmanager
def explained(
    folder: Path, batch_size: int, processes: int, *, fixed: bool = False
) -> Iterator[None]:
    """Turns a full memory or a full disk into a sentence with a way out.

    `batch_size` is that of all processes together, whose number divides it; a published recipe's is
    `fixed`.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(
            f"{folder} cannot be written ({reason}): make room on the disk and run the same "
            "command again; what was saved before is whole, and it goes on from there"
        ) from error
    except (RuntimeError, MemoryError) as error:
        out_of_memory = isinstance(error, MemoryError) or should_reduce_batch_size(error)
        if not out_of_memory:
            raise
        smaller = batch_size // processes // 2 * processes
        way_out = f"set training.batch_size to {smaller}" if smaller else "set a smaller image_size"
        if fixed:
            way_out = TAKE_COMMON
        raise InputError(
            f"out of memory at batch size {batch_size}: {way_out}, or close other programs and run "
            "the same command again"
        ) from error
