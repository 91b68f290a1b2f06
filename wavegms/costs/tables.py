"""What a network costs: parameters, operations, and the time and memory of a training step.

The paper's promise is training with large batches on cheap cards (its Table 1, and the parameter
column of Table 2). Counts are exact and depend on no machine; time and memory are measured, by a
fresh process for each variant, see `wavegms.costs.measure`.
"""

import json
import math
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from wavegms.config import Precision
from wavegms.costs.measure import Workload, build_untrained, open_onnx, plain_terms
from wavegms.errors import InputError
from wavegms.models.build import as_pipeline
from wavegms.models.export import PlainPipeline
from wavegms.project import KEEP_MEMORY
from wavegms.training.loss import WaveGMSLoss
from wavegms.training.recipe import loss_terms
from wavegms.variants import require_side, variant_spec

GIB = 2**30

# What each column of the measurements holds.
MEASUREMENT_COLUMNS = {
    "variant": "name of the network",
    "system": "its title",
    "image_size": "side of the images, pixels",
    "batch_size": "images in a step",
    "device": "GPU or CPU it was measured on",
    "threads": "threads of the CPU",
    "memory": "what peak_bytes is of: the GPU, or the process",
    "base_bytes": "memory before the network was built",
    "peak_bytes": "the most memory so far; nothing is subtracted",
    "allocated_bytes": "of it, what tensors took; on a GPU only",
    "step_seconds": "median time of a step",
    "image_seconds": "the same for each image",
    "note": "why there are no numbers, if so",
}


def count_sizes(variants: Sequence[str], image_size: int) -> pd.DataFrame:
    """Parameters, and floating-point operations for one image.

    Nothing is computed, see `count_gflop`.

    Args:
        variants: keys of `VARIANTS`.
        image_size: side of the image in pixels.

    Returns:
        One row a variant: variant, system (its title), trainable_parameters, total_parameters (both
        halves of the frozen autoencoder included), image_size, training_gflop (forward, loss and
        backward) and inference_gflop, in units of 10^9.

    Raises:
        InputError: a variant is unknown, or the size does not suit it.
    """
    rows = []
    for name in variants:
        require_side(name, image_size, "efficiency.image_size")
        spec = variant_spec(name)
        with torch.device("meta"):
            counts = as_pipeline(*build_untrained(name), image_size).parameter_counts
        rows.append(
            {
                "variant": name,
                "system": spec.title,
                "trainable_parameters": counts.trainable,
                "total_parameters": counts.total,
                "image_size": image_size,
                "training_gflop": count_gflop(name, "train", "lean", image_size),
                "inference_gflop": count_gflop(name, "predict", "lean", image_size),
            }
        )
    return pd.DataFrame(rows)


def count_gflop(variant: str, task: str, form: str, image_size: int) -> float:
    """Operations for one image, in units of 10^9.

    Counted are matrix products (attention included) and convolutions, as torch's flop counter does,
    a multiply-add as two operations. Nothing is computed: the tensors are on torch's `meta` device,
    which has shapes only.

    Args:
        variant: a key of `VARIANTS`.
        task: "train" or "predict".
        form: "lean", "plain", or "onnx", which computes as the plain one.
        image_size: side of the image in pixels.
    """
    with torch.device("meta"):
        network, vae = build_untrained(variant)
        images = torch.empty(1, 3, image_size, image_size)
        masks = torch.empty(1, 1, image_size, image_size)
    # fused attention differs from device to device, and the counter does not know all of it
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        if task == "train":
            terms_of = plain_terms if form == "plain" else loss_terms
            terms = terms_of(variant_spec(variant), network, WaveGMSLoss(), vae, images, masks)
            terms["loss"].backward()
        else:
            pipeline = as_pipeline(network, vae, image_size)
            predict = pipeline.predict if form == "lean" else PlainPipeline(pipeline)
            with torch.no_grad():
                predict(images)
    return counter.get_total_flops() / 1e9


def measure(
    variants: Sequence[str],
    image_size: int,
    batch_sizes: Sequence[int],
    steps: int,
    task: Literal["train", "predict"] = "train",
) -> pd.DataFrame:
    """Time and memory of a training step or a prediction against the batch size, on this machine.

    Args:
        variants: keys of `VARIANTS`; each is measured in a process of its own.
        image_size: side of the images in pixels.
        batch_sizes: ascending.
        steps: how many steps are timed at each batch size, after one that is not.
        task: see `Workload`.

    Returns:
        One row for each variant and batch size, with the columns of `MEASUREMENT_COLUMNS`. Where
        memory did not suffice, the row has a note and no numbers, and larger batches have no row.

    Raises:
        InputError: a variant is unknown, the size does not suit it, its process failed by anything
            but lack of memory, or not a single image fits.
    """
    for name in variants:
        require_side(name, image_size, "efficiency.image_size")
    rows = []
    with tqdm(total=len(variants) * len(batch_sizes), desc="measuring", unit="point") as bar:
        for place, name in enumerate(variants, start=1):
            bar.set_postfix_str(name)
            about = {
                "variant": name,
                "system": variant_spec(name).title,
                "image_size": image_size,
            }
            for point in measured_points(Workload(name, task), image_size, batch_sizes, steps):
                rows.append(about | point)
                bar.update()
            bar.update(place * len(batch_sizes) - bar.n)
    points = pd.DataFrame(rows).reindex(columns=list(MEASUREMENT_COLUMNS))
    if points["step_seconds"].isna().all():
        raise InputError(
            f"not even {batch_sizes[0]} image(s) of {image_size} pixels fit the memory of this "
            "machine: lower efficiency.batch_sizes or efficiency.image_size"
        )
    points["image_seconds"] = points["step_seconds"] / points["batch_size"]
    for column in ("threads", "base_bytes", "peak_bytes", "allocated_bytes"):
        points[column] = points[column].astype("Int64")  # whole numbers that may be missing
    for column in ("device", "memory", "note"):
        points[column] = points[column].astype(object).fillna("")
    return points


def compare_inference(image_size: int, batch_sizes: Sequence[int], repeats: int) -> pd.DataFrame:
    """Predictions of Wave-GMS by torch and by ONNX Runtime, side by side on the CPU.

    Args:
        image_size: side of the images in pixels.
        batch_sizes: how many images go through at once.
        repeats: how often each is timed, in turn, after once that is not.

    Returns:
        One row a batch size: batch_size, torch_seconds and onnx_seconds (of an image, medians),
        ratio (onnx to torch, the median over the repeats), lowest and highest of it, and
        max_difference, the largest between their probabilities for a random image, in [0, 1].

    Raises:
        InputError: the export failed, or its probabilities are not those of torch.
    """
    network, vae = build_untrained("wave_gms")
    pipeline = as_pipeline(network, vae, image_size)
    session, difference = open_onnx(pipeline)
    rows = []
    for batch_size in tqdm(batch_sizes, desc="predicting", unit="point"):
        images = torch.rand(batch_size, 3, image_size, image_size)
        pairs = []
        for _ in range(1 + repeats):
            started = time.perf_counter()
            pipeline.predict(images)
            between = time.perf_counter()
            session.run(None, {"images": images.numpy()})
            pairs.append((between - started, time.perf_counter() - between))
        seconds = pd.DataFrame(pairs[1:], columns=["torch", "onnx"])
        ratios = seconds["onnx"] / seconds["torch"]
        rows.append(
            {
                "batch_size": batch_size,
                "torch_seconds": seconds["torch"].median() / batch_size,
                "onnx_seconds": seconds["onnx"].median() / batch_size,
                "ratio": ratios.median(),
                "lowest": ratios.min(),
                "highest": ratios.max(),
                "max_difference": difference,
            }
        )
    return pd.DataFrame(rows)


def largest_batches(points: pd.DataFrame, cards: Sequence[int]) -> pd.DataFrame:
    """The largest batch that fits a card, from a straight line through the measured peaks.

    Args:
        points: what `measure` gives.
        cards: memory of the cards, GiB, which is what makers call GB.

    Returns:
        One row a variant and card: variant, system, image_size, memory (what was measured), card
        (GiB), batch_size (0 if not even one image fits; missing where memory did not grow with the
        batch, or with a single point), extrapolated (whether it is beyond what was measured).
    """
    rows = []
    for (name, system, size), group in points.dropna(subset="peak_bytes").groupby(
        ["variant", "system", "image_size"], sort=False
    ):
        line = _line(group)
        for card in cards:
            batch = pd.NA if line is None else _most_images(card * GIB, *line)
            rows.append(
                {
                    "variant": name,
                    "system": system,
                    "image_size": size,
                    "memory": group["memory"].iloc[0],
                    "card": card,
                    "batch_size": batch,
                    "extrapolated": line is not None and batch > group["batch_size"].max(),
                }
            )
    return pd.DataFrame(rows).astype({"batch_size": "Int64"})


def compare_costs(points: pd.DataFrame, reference: str = "wave_gms") -> pd.DataFrame:
    """Time and memory of each variant as multiples of one, at the largest batch all were run with.

    Args:
        points: what `measure` gives.
        reference: the variant that is 1.

    Returns:
        One row a variant: variant, system, batch_size, time (of a step), memory (peak, all of it)
        and memory_of_step (what the peak exceeds the process before the network was built).

    Raises:
        InputError: the reference was not measured, or no batch size is common to all.
    """
    measured = points.dropna(subset="peak_bytes")
    if reference not in set(measured["variant"]):
        raise InputError(f"efficiency.variants lacks {reference}, which others are compared with")
    sizes = [set(group["batch_size"]) for _, group in measured.groupby("variant")]
    common = set.intersection(*sizes)
    if not common:
        raise InputError("no batch size was measured for all of efficiency.variants: add a smaller")
    rows = measured[measured["batch_size"] == max(common)].set_index("variant")
    own = (rows["peak_bytes"] - rows["base_bytes"]).astype(float)
    peak, time = rows["peak_bytes"].astype(float), rows["step_seconds"]
    table = pd.DataFrame(
        {
            "system": rows["system"],
            "batch_size": rows["batch_size"],
            "time": time / time[reference],
            "memory": peak / peak[reference],
            "memory_of_step": own / own[reference],
        }
    )
    return table.reset_index()


def beside_table_1(largest: pd.DataFrame, table1: Path) -> pd.DataFrame:
    """The paper's Table 1, and below it what was found here.

    Args:
        largest: what `largest_batches` gives.
        table1: `table1.csv` of the published tables.

    Returns:
        Columns Model, GPU (VRAM), Batch size, From.

    Raises:
        InputError: the file is missing or lacks a column.
    """
    try:
        paper = pd.read_csv(table1, dtype=str, keep_default_na=False)
        gpus = paper["gpu"] + " (" + paper["vram_gb"] + " GB)"
        published = pd.DataFrame(
            {"Model": paper["system"], "GPU (VRAM)": gpus, "Batch size": paper["batch_size"]}
        )
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"{table1} cannot be read ({error}): restore it with git") from error
    ours = pd.DataFrame(
        {
            "Model": largest["system"],
            "GPU (VRAM)": [f"any ({card} GB)" for card in largest["card"]],
            "Batch size": [
                "no line" if pd.isna(batch) else f"≤ {batch}" for batch in largest["batch_size"]
            ],
            "From": [
                f"{size} px, {memory}{', extrapolated' if beyond else ''}"
                for size, memory, beyond in zip(
                    largest["image_size"], largest["memory"], largest["extrapolated"], strict=True
                )
            ],
        }
    )
    return pd.concat([published.assign(From="paper"), ours], ignore_index=True)


def beside_table_2(sizes: pd.DataFrame, published: pd.DataFrame) -> pd.DataFrame:
    """The exact counts beside the parameter column of the paper's Table 2.

    Args:
        sizes: what `count_sizes` gives.
        published: what `results.read_published` gives.

    Returns:
        One row a variant: system, trainable_parameters, published (millions, NaN where the paper's
        table has no such row), total_parameters.
    """
    paper = published[published["table"] == 2].drop_duplicates("variant").set_index("variant")
    return pd.DataFrame(
        {
            "system": sizes["system"],
            "trainable_parameters": sizes["trainable_parameters"],
            "published": sizes["variant"].map(paper["trainable_parameters_millions"]),
            "total_parameters": sizes["total_parameters"],
        }
    )


def measured_points(
    workload: Workload,
    image_size: int,
    batch_sizes: Sequence[int],
    steps: int,
    *,
    keep_memory: bool = True,
) -> Iterator[dict]:
    """Measures a workload in a process of its own, as `efficiency_worker.measure_work` says.

    Args:
        workload: what is measured.
        image_size: side of the images in pixels.
        batch_sizes: ascending.
        steps: timed at each batch size.
        keep_memory: as training runs in the pipeline, see `KEEP_MEMORY`; otherwise as the system
            gives and takes memory.

    Yields:
        The points, as they come. After one that memory did not suffice for there are no more.

    Raises:
        InputError: the process failed by anything but lack of memory.
    """
    request = {
        "workload": asdict(workload),
        "image_size": image_size,
        "batch_sizes": list(batch_sizes),
        "steps": steps,
    }
    left = list(batch_sizes)
    status = yield from _answers(request, keep_memory, left)
    if status == -signal.SIGKILL and left:
        yield {"batch_size": left[0], "note": "killed, as a system does when memory runs out"}


def measured_peak(precision: Precision) -> float:
    """What `efficiency_worker.measure_peak` finds in a process of its own, GFLOP a second.

    Raises:
        InputError: the process failed.
    """
    (answer,) = _answers({"peak": precision}, True, [precision])
    return answer["gflop_per_second"]


def _command(request: dict) -> list[str]:
    return [sys.executable, "-m", "wavegms.costs.measure", json.dumps(request)]


def _answers(request: dict, keep_memory: bool, left: list) -> Generator[dict, None, int]:
    """What the process says, one of `left` for each, and in the end its exit status."""
    environment = {name: value for name, value in os.environ.items() if name not in KEEP_MEMORY}
    # what the process says of its failure goes to a file: nobody empties a second pipe meanwhile
    with (
        tempfile.TemporaryFile("w+") as errors,
        subprocess.Popen(
            _command(request),
            stdout=subprocess.PIPE,
            stderr=errors,
            encoding="utf-8",
            env=environment | (KEEP_MEMORY if keep_memory else {}),
        ) as process,
    ):
        try:
            for line in process.stdout:
                if line.startswith("{"):  # a library may print, too
                    left.pop(0)
                    yield json.loads(line)
            status = process.wait()
        finally:
            process.kill()  # nothing is left running when this one is interrupted
        errors.seek(0)
        last_words = errors.read().strip().splitlines()
    if status not in (0, -signal.SIGKILL):
        reason = last_words[-1] if last_words else f"exit status {status}"
        raise InputError(
            f"the {_named(request)} cannot be measured ({reason}): leave it out, or change "
            "efficiency.image_size"
        )
    return status


def _named(request: dict) -> str:
    if "peak" in request:
        return f"matrix product in {request['peak']}"
    kind = "training step" if request["workload"]["task"] == "train" else "prediction"
    return f"{kind} of {request['workload']['variant']}"


def _line(group: pd.DataFrame) -> tuple[float, float] | None:
    """Bytes of no image and of each, by least squares; None if there is no rising line."""
    if len(group) < 2:
        return None
    peaks = group["peak_bytes"].astype(float)
    slope, fixed = np.polyfit(group["batch_size"].astype(float), peaks, 1)
    # equal peaks give a slope of rounding errors
    return (fixed, slope) if slope > 0 and peaks.max() > peaks.min() else None


def _most_images(memory: float, fixed: float, slope: float) -> int:
    return max(0, math.floor((memory - fixed) / slope))
