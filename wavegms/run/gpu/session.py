"""One card for some minutes: parts in order, each in processes of its own and within its time.

What a part found is written before the next begins, so a stop loses only what was running.
"""

import math
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import pandas as pd

from wavegms.costs.bench import measure, tabulate_costs
from wavegms.costs.cases import Plan, Workload, cases
from wavegms.costs.harness import MEASURES, apart
from wavegms.errors import InputError, first_line
from wavegms.files import write_text
from wavegms.run.gpu.pack import write_pack
from wavegms.run.gpu.summary import BENCHMARK, HISTORY, LOG, PER_IMAGE, RUN, SUMMARY, summarise

# Of all the time. The training gets what is left, but for what its own start and scores take.
_TESTS, _BENCH, _PROFILE = 0.15, 0.2, 0.06
# Seconds before the end: a training is planned to be over by the first, cut off at the second.
_PLANNED, _CUT, _TRAINING_AT_LEAST = 45.0, 25.0, 20.0
# After their ends: of the tests, of what is killed, of the benchmark, and of the scores.
_LAST_WORDS, _DYING, _PEAK, _GRACE = 10.0, 5.0, 15.0, 20.0

# What matters most comes first; compiling may take longer than there is time.
_MEASURED = (
    *("plain", "lean bf16, one launch", "UNet bf16, one launch", "lean bf16", "GMS bf16", "lean"),
    "lean bf16, compiled",
)
# What needs no card.
_REHEARSED = ("plain", "lean", "lean bf16", "UNet bf16")


def run_session(
    pack: Path | None, out: Path, seconds: float, rehearse: bool, started: float
) -> None:
    """Runs all parts and leaves at most eight small files in a folder, `summary.md` among them.

    Without a pack one is made first, of the project's own data. `started` is by time.time().

    Raises:
        InputError: there is no card, or data or autoencoder are not in place.
    """
    with tempfile.TemporaryDirectory(prefix="wavegms-") as scratch:
        # what one process compiles, the next one finds; known before the first of them starts
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(Path(scratch) / "compiled")
        if not rehearse and not apart("torch.cuda:is_available"):
            raise InputError(
                "there is no CUDA card here, or this torch has no CUDA: run it where `nvidia-smi` "
                "shows one, or add --rehearse for a small run on the processor"
            )
        out.mkdir(parents=True, exist_ok=True)
        out = out.resolve()
        for name in (LOG, RUN, BENCHMARK, HISTORY, PER_IMAGE, SUMMARY):
            (out / name).unlink(missing_ok=True)
        work = Path(scratch)
        if pack is None:
            pack = work / "pack"
            write_pack(pack, wheels=False)
        ends = started + seconds
        _part("tests", out, lambda: _test(seconds * _TESTS, rehearse))
        _part("benchmark", out, lambda: _bench(out, seconds * _BENCH, rehearse))
        _part("profile", out, lambda: _profile(seconds * _PROFILE, rehearse))
        _part("training", out, lambda: _train(pack.resolve(), work, out, ends, rehearse))
    print((out / SUMMARY).read_text(encoding="utf-8"))
    print(f"{time.time() - started:.0f} s in all; written: {out}")
    if not (out / RUN).is_file():
        raise InputError(f"the training did not end, {out / LOG} says why")


def _part(name: str, out: Path, work: Callable[[], str]) -> None:
    """Runs one; what goes wrong in it is noted, and the next one has its turn."""
    print(f"--- {name}", flush=True)
    started = time.time()
    try:
        said = work()
    except Exception as error:
        said = f"part {name} failed: {type(error).__name__}: {first_line(error)}"
    _note(out, f"{said}\npart {name}: {time.time() - started:.0f} s")
    try:
        write_text(out / SUMMARY, summarise(out))
    except Exception as error:  # a page that cannot be made stops no part
        _note(out, f"no page after {name}: {type(error).__name__}: {first_line(error)}")


def _note(out: Path, text: str) -> None:
    with open(out / LOG, "a", encoding="utf-8") as file:
        file.write(text + "\n")
    print(text, flush=True)


# Side by side: compiling may take all of the time. What the benchmark measures is compiled beside
# them as well, so that it is found there.
_TESTED = ("not compiled", "compiled")
_AHEAD = f"""from {MEASURES} import Workload, measure_point
measure_point(Workload("wave_gms", "train", "compiled", "bf16"), 12, 224, 1)"""


def _test(seconds: float, rehearse: bool) -> str:
    """The tests marked gpu, without the fixtures of the others, which need more libraries."""
    project = Path(__file__).parents[3]
    command = [sys.executable, "-m", "pytest", "--noconftest", "-p", "no:cacheprovider", "-v"]
    # a compiler writes thousands of lines that tell nothing of what failed
    command += ["--show-capture=no", "--tb=short", "-rf"]
    command += ["-m", "gpu", "tests/test_gpu.py", "-k"]
    # of the plugins that a machine has, none is needed
    environment = os.environ | {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    environment |= {"WAVEGMS_REHEARSE": "1"} if rehearse else {}
    said = []
    with ExitStack() as files:
        outputs = [
            files.enter_context(tempfile.TemporaryFile("w+", encoding="utf-8")) for _ in _TESTED
        ]
        processes = [
            subprocess.Popen(
                [*command, chosen], cwd=project, env=environment, stdout=output, stderr=output
            )
            for chosen, output in zip(_TESTED, outputs, strict=True)
        ]
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        code = "" if rehearse else _AHEAD
        ahead = subprocess.Popen([sys.executable, "-c", code], cwd=project, **quiet)
        late = _still_running([*processes, ahead], seconds)
        ahead.kill()
        late = [process for process in late if process is not ahead]
        for process in late:
            process.send_signal(signal.SIGINT)  # pytest then says what failed so far
        for process in _still_running(late, _LAST_WORDS):
            process.kill()
        _still_running(late, _DYING)  # one that a driver holds does not die at once
        for process, output in zip(processes, outputs, strict=True):
            ended = "passed" if process.returncode == 0 else f"status {process.returncode}"
            if process in late:
                ended = f"stopped after {seconds:.0f} s"
            output.seek(0)
            said.append(_counted(output.read(), ended))
    return "\n".join(said)


def _still_running(processes: list[subprocess.Popen], seconds: float) -> list[subprocess.Popen]:
    """Those that are, when all have ended or so many seconds are over."""
    until = time.monotonic() + seconds
    for process in processes:
        with suppress(subprocess.TimeoutExpired):
            process.wait(max(0.0, until - time.monotonic()))
    return [process for process in processes if process.poll() is None]


def _counted(said: str, ended: str) -> str:
    words = ("PASSED", "FAILED", "SKIPPED", "ERROR")
    # as they come: "tests/test_gpu.py::test_x PASSED [ 3%]", of which the last one may be going on
    lines = [line for line in said.splitlines() if line.startswith("tests/") and "::" in line]
    counts = {word: sum(f" {word}" in line for line in lines) for word in words}
    counted = ", ".join(f"{number} {word.lower()}" for word, number in counts.items() if number)
    if lines and ended.startswith("stopped") and not any(f" {word}" in lines[-1] for word in words):
        ended += f" in {lines[-1].split('::')[-1].strip()}"
    return f"{said[-20_000:]}\ntests: {ended} ({counted or 'none'})"


def _bench(out: Path, seconds: float, rehearse: bool) -> str:
    until = time.monotonic() + seconds
    side, batch, steps = (64, 2, 1) if rehearse else (224, 12, 10)
    plan = Plan(side, [batch], 1, steps)
    chosen = {case.name: case for case in cases(gpu=True) if case.workload.task == "train"}
    rows: list[dict] = []
    for name in _REHEARSED if rehearse else _MEASURED:
        try:
            rows += measure([chosen[name]], plan, until)
        except InputError as error:  # one that does not work here is no reason to stop
            about = {"task": "train", "image_size": side, "batch_size": batch}
            rows.append({"case": name, **about, "note": first_line(error)})
        pd.DataFrame(rows).to_csv(out / BENCHMARK, index=False)
    _tabulate(out, pd.DataFrame(rows), _peaks(until))
    return f"benchmark: {len(rows)} cases"


def _peaks(until: float) -> dict[str, float]:
    """GFLOP a second of matrix products; NaN where there was none in time."""
    peaks = {}
    for kind in ("bf16", "fp32"):
        try:
            left = max(_PEAK, until - time.monotonic())
            peaks[kind] = apart(f"{MEASURES}:measure_peak", kind, seconds=left)
        except Exception:  # a card without bf16, or none in time
            peaks[kind] = math.nan
    return peaks


def _profile(seconds: float, rehearse: bool) -> str:
    """Where the time of a step goes."""
    profiled = Workload("wave_gms", "train", "lean" if rehearse else "graph", "bf16")
    batch, side = (2, 64) if rehearse else (12, 224)
    return apart(f"{MEASURES}:profile_steps", profiled, batch, side, seconds=seconds)


def _tabulate(out: Path, points: pd.DataFrame, peaks: dict[str, float]) -> None:
    """Adds the shares of the card's peak as its own matrix products reach it, in bf16 and in each.

    What is counted needs no card.
    """
    measured = points[points["step_seconds"].notna()] if "step_seconds" in points else points[:0]
    if measured.empty:
        return
    costs = tabulate_costs(measured, peaks).drop(columns=["batch_size", "task"])
    table = points.merge(costs, on="case", how="left")
    table["peak_tflops"] = table["precision"].map(peaks) / 1000
    table["bf16_peak_tflops"] = peaks["bf16"] / 1000
    table["share_of_bf16_peak"] = (
        table["share_of_peak"] * table["peak_tflops"] * 1000 / peaks["bf16"]
    )
    table.to_csv(out / BENCHMARK, index=False, float_format="%.6g")


def _train(pack: Path, work: Path, out: Path, ends: float, rehearse: bool) -> str:
    """Trains and scores; of a training that is cut off or breaks, what it had is scored.

    One that breaks begins again, launch by launch, while there is time.
    """
    said, tried, until = [], [], ends - _PLANNED
    graph = forked = True  # a step is one launch, and the process is forked from a warm one
    while rehearse or until - time.time() >= _TRAINING_AT_LEAST:
        place, started = work / str(len(tried)), time.time()
        place.mkdir()
        try:
            limit = None if rehearse else ends - _CUT
            _by(forked, limit, "train_model", pack, place, out, until, rehearse, graph)
            said.append(f"part training: done, cuda_graph {graph}")
            break
        except Exception as error:
            tried.append((place, time.time() - started))
            how = f"part training failed with cuda_graph {graph}"
            said.append(f"{how}: {type(error).__name__}: {first_line(error)}")
            if isinstance(error, TimeoutError) or not (graph or forked):
                break
            # CUDA that does not begin in a forked process is no fault of the graph
            graph, forked = graph and forked and "fork" in str(error), False
    else:
        said.append("part training: no time is left for it")
    for before, seconds in [] if (out / RUN).is_file() else tried:
        try:
            _by(forked, ends + _GRACE, "take_so_far", pack, before, out, rehearse, seconds)
            said.append(f"part training: what it had after {seconds:.0f} s is scored")
            place = before
            break
        except Exception as error:
            said.append(f"part training: nothing of it can be scored: {first_line(error)}")
    if (out / RUN).is_file():
        try:
            _by(forked, None if rehearse else ends + _GRACE, "score_model", pack, place, out)
        except Exception as error:
            said.append(f"part scores failed: {type(error).__name__}: {first_line(error)}")
    return "\n".join(said)


def _by(forked: bool, until: float | None, function: str, *arguments: Any) -> None:
    """Has one of `parts` run apart, until a time by time.time()."""
    left = until and max(1.0, until - time.time())
    apart(f"{__package__}.parts:{function}", *arguments, keep_memory=forked, seconds=left)
