"""One card for some minutes: parts in order, each in processes of its own and within its time.

What a part found is written before the next begins, so a stop loses only what was running.
"""

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pandas as pd

from wavegms.costs.bench import measure, tabulate_costs
from wavegms.costs.cases import Plan, Workload, cases
from wavegms.costs.harness import MEASURES, apart
from wavegms.errors import InputError, first_line
from wavegms.files import write_text
from wavegms.run.gpu.pack import write_pack
from wavegms.run.gpu.summary import BENCHMARK, HISTORY, LOG, PER_IMAGE, RUN, SUMMARY, summarise

# Of all the time. The training gets what is left, but for what its own start and scores take.
_TESTS, _BENCH, _PROFILE = 0.17, 0.15, 0.06
_SCORES, _TRAINING_AT_LEAST = 45.0, 20.0  # seconds
# After their ends: of the tests, and of a training that has not kept to its time.
_LAST_WORDS, _GRACE = 10.0, 20.0

# What matters most comes first; compiling may take longer than there is time.
_MEASURED = (
    *("plain", "lean", "lean bf16", "lean bf16, one launch", "UNet bf16", "GMS bf16"),
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
    if not rehearse and not apart("torch.cuda:is_available"):
        raise InputError(
            "there is no CUDA card here, or this torch has no CUDA: run it where `nvidia-smi` "
            "shows one, or add --rehearse for a small run on the processor"
        )
    # asking for a card must not touch it in a process that others are forked from
    os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"
    out.mkdir(parents=True, exist_ok=True)
    out = out.resolve()
    for name in (LOG, RUN, BENCHMARK, HISTORY, PER_IMAGE, SUMMARY):
        (out / name).unlink(missing_ok=True)
    with tempfile.TemporaryDirectory(prefix="wavegms-") as scratch:
        work = Path(scratch)
        if pack is None:
            pack = work / "pack"
            write_pack(pack, wheels=False)
        ends = started + seconds
        _part("tests", out, lambda: _test(out, seconds * _TESTS, rehearse))
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


def _test(out: Path, seconds: float, rehearse: bool) -> str:
    """The tests marked gpu, without the fixtures of the others, which need more libraries."""
    project = Path(__file__).parents[3]
    command = [sys.executable, "-m", "pytest", "--noconftest", "-p", "no:cacheprovider", "-vv"]
    command += ["-m", "gpu", "tests/test_gpu.py"]
    # of the plugins that a machine has, none is needed
    environment = os.environ | {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    environment |= {"WAVEGMS_REHEARSE": "1"} if rehearse else {}
    with tempfile.TemporaryFile("w+", encoding="utf-8") as output:
        process = subprocess.Popen(
            command, cwd=project, env=environment, stdout=output, stderr=subprocess.STDOUT
        )
        try:
            process.wait(seconds)
            ended = "passed" if process.returncode == 0 else f"status {process.returncode}"
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGINT)  # pytest then says what failed so far
            try:
                process.wait(_LAST_WORDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            ended = f"stopped after {seconds:.0f} s"
        output.seek(0)
        said = output.read()
    counts = {word: said.count(f" {word}") for word in ("PASSED", "FAILED", "SKIPPED", "ERROR")}
    counted = ", ".join(f"{number} {word.lower()}" for word, number in counts.items() if number)
    return f"{said[-20_000:]}\ntests: {ended} ({counted})"


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
    _tabulate(out, pd.DataFrame(rows))
    return f"benchmark: {len(rows)} cases"


def _profile(seconds: float, rehearse: bool) -> str:
    """Where the time of a step goes that is not taken as one launch."""
    profiled = Workload("wave_gms", "train", "lean", "bf16")
    batch, side = (2, 64) if rehearse else (12, 224)
    return apart(f"{MEASURES}:profile_steps", profiled, batch, side, seconds=seconds)


def _tabulate(out: Path, points: pd.DataFrame) -> None:
    """Adds the share of the card's peak, as its own matrix products reach it."""
    measured = points[points["step_seconds"].notna()] if "step_seconds" in points else points[:0]
    if measured.empty:
        return
    kinds = sorted(set(measured["precision"]))
    peaks = {kind: apart(f"{MEASURES}:measure_peak", kind) for kind in kinds}
    costs = tabulate_costs(measured, peaks).drop(columns=["batch_size", "task"])
    table = points.merge(costs, on="case", how="left")
    table["peak_tflops"] = table["precision"].map({k: v / 1000 for k, v in peaks.items()})
    table.to_csv(out / BENCHMARK, index=False, float_format="%.6g")


# Whether a step is one launch, and whether the process is forked from one that has imported all.
_TRIES = ((True, True), (True, False), (False, False))


def _train(pack: Path, work: Path, out: Path, ends: float, rehearse: bool) -> str:
    """Again in a process of its own start, then launch by launch, if something breaks it."""
    until, said = ends - _SCORES, []
    for number, (graph, forked) in enumerate(_TRIES):
        if until - time.time() < _TRAINING_AT_LEAST and not rehearse:
            return "\n".join([*said, "part training: no time is left for it"])
        try:
            place = work / str(number)
            place.mkdir()
            arguments = (pack, place, out, until, rehearse, graph)
            left = None if rehearse else max(1.0, ends + _GRACE - time.time())
            function = f"{__package__}.parts:train_and_score"
            apart(function, *arguments, keep_memory=forked, seconds=left)
            return "\n".join([*said, f"part training: done, cuda_graph {graph}"])
        except Exception as error:
            how = f"part training failed with cuda_graph {graph}"
            said.append(f"{how}: {type(error).__name__}: {first_line(error)}")
            if (out / RUN).is_file():  # it is the scores that failed
                break
    return "\n".join(said)
