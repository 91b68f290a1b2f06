"""Time and memory of one workload, measured by the process itself, and exact counts.

Runs in a process of its own, see `wavegms.costs.harness`: the notebook itself needs no torch.
"""

import platform
import re
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import torch
from diffusers import AutoencoderKL, AutoencoderTiny
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from wavegms.config import Precision
from wavegms.costs.cases import Workload, form_with, systems_of
from wavegms.data.batches import Batch
from wavegms.models.autoencoder import Autoencoder, Generators, freeze, latent_channels_of
from wavegms.models.build import Network, as_pipeline, build_variant
from wavegms.models.export import PlainPipeline
from wavegms.models.mask_decoder import MaskDecoder
from wavegms.models.pipeline import WaveGMSPipeline
from wavegms.training.device import frozen_for_steps
from wavegms.training.graph import GraphedStep
from wavegms.training.loss import WaveGMSLoss, mask_loss
from wavegms.training.recipe import loss_terms
from wavegms.training.safeguards import HALVES, choose_precision, computing_with
from wavegms.variants import VariantSpec, variant_spec

PROCESS_MEMORY = "peak process memory"

GPU_MEMORY = "peak GPU memory"

_NEEDS_NO_WARM_UP = 20.0  # seconds

Work = Callable[[Tensor, Tensor, torch.autocast], None]

# The autoencoder of Stable Diffusion 1 (Rombach et al. 2022), as `stabilityai/sd-vae-ft-mse`
# configures diffusers' class.
_SD_VAE = {
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
    "latent_channels": 4,
    "norm_num_groups": 32,
}


def build_untrained(variant: str, image_size: int = 224) -> tuple[Network, Autoencoder | None]:
    """A variant in training mode and its frozen autoencoder, at the paper's sizes.

    Neither a count nor a time depends on the weights, so nothing is loaded: the Tiny-VAE has the
    size of TAESD and the SD-VAE that of Stable Diffusion's, with random weights.
    """
    kind = variant_spec(variant).autoencoder
    vae = None
    if kind is not None:
        vae = freeze(AutoencoderTiny() if kind == "tiny" else AutoencoderKL(**_SD_VAE))
    return build_variant(variant, image_size=image_size, vae=vae).train(), vae


def count_sizes(variants: Sequence[str], image_size: int, fast: bool = False) -> list[dict]:
    """Parameters, both halves of the frozen autoencoder included, and `count_gflop` of variants.

    The mask decoder is one more frozen part. A row is one of `systems_of`.
    """
    rows = []
    for system in systems_of(variants, fast):
        name, form = system["variant"], form_with(system["decoder"])
        with torch.device("meta"):
            pipeline = as_pipeline(*build_untrained(name, image_size), image_size)
            if form == "fast":
                _decode_fast(pipeline)
            counts = pipeline.parameter_counts
        rows.append(
            system
            | {
                "trainable_parameters": counts.trainable,
                "total_parameters": counts.total,
                "image_size": image_size,
                "training_gflop": count_gflop(name, "train", form, image_size),
                "inference_gflop": count_gflop(name, "predict", form, image_size),
            }
        )
    return rows


def count_gflop(variant: str, task: str, form: str, image_size: int) -> float:
    """Operations for one image, in units of 10^9; training is forward, loss and backward.

    Counted are matrix products (attention included) and convolutions, as torch's flop counter does,
    a multiply-add as two operations. Nothing is computed: the tensors are on torch's `meta` device,
    which has shapes only. The form "onnx" computes as the plain one.
    """
    with torch.device("meta"):
        network, vae = build_untrained(variant, image_size)
        images = torch.empty(1, 3, image_size, image_size)
        masks = torch.empty(1, 1, image_size, image_size)
    with counting_operations() as counter:
        if task == "train":
            terms_of = _terms_of(form, lambda part: part)
            terms = terms_of(variant_spec(variant), network, WaveGMSLoss(), vae, images, masks)
            terms["loss"].backward()
        else:
            pipeline = as_pipeline(network, vae, image_size)
            if form == "fast":
                _decode_fast(pipeline)
            predict = pipeline.predict if form in ("lean", "fast") else PlainPipeline(pipeline)
            with torch.no_grad():
                predict(images)
    return counter.get_total_flops() / 1e9


@contextmanager
def counting_operations() -> Iterator[FlopCounterMode]:
    """Torch's counter of operations, on all that is computed within."""
    # fused attention differs from device to device, and the counter does not know all of it
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        yield counter


def measure_point(workload: Workload, batch_size: int, image_size: int, steps: int) -> dict:
    """Repeats a workload on random images; on the GPU if there is one, otherwise on the CPU.

    `steps` are timed after one that is not, on a GPU after five, in which kernels are chosen and a
    graph is captured; one of 20 s and more needs no warm-up: it is timed, and the only one.

    Returns:
        device (its name), threads (of the CPU), memory (what was measured: `PROCESS_MEMORY` or
        `GPU_MEMORY`), base_bytes (before the network was built), peak_bytes (on a GPU, what torch
        reserved; None of "onnx"), allocated_bytes (on a GPU, what tensors took of that; else None),
        and step_seconds (the median). Where memory does not suffice, note only.
    """
    on_gpu = torch.cuda.is_available() and workload.form != "onnx"
    device = torch.device("cuda" if on_gpu else "cpu")
    choose_precision(workload.precision, device)
    base = torch.cuda.memory_reserved() if on_gpu else peak_process_bytes()
    seconds, warm = [], 5 if on_gpu else 1
    torch.backends.cudnn.benchmark = on_gpu  # as in training
    try:
        network, vae = build_untrained(workload.variant, image_size)
        network.to(device)
        if vae is not None:
            vae.to(device)
        prepare = {"train": _training, "predict": _predicting}[workload.task]
        work = prepare(workload, network, vae, image_size)
        autocast = computing_with(workload.precision, device)
        images = torch.rand(batch_size, 3, image_size, image_size, device=device)
        masks = torch.rand(batch_size, 1, image_size, image_size, device=device).round()
        # its first step is no measure of the others: it compiles, or looks for the fastest kernels
        compiling = on_gpu or workload.form == "compiled"
        while len(seconds) < warm + steps and (
            compiling or max(seconds, default=0) < _NEEDS_NO_WARM_UP
        ):
            if on_gpu and len(seconds) == warm:  # the memory of that search is none of a step's
                torch.cuda.empty_cache()
                torch.cuda.reset_peak_memory_stats()
            start = _now(on_gpu)
            work(images, masks, autocast)
            seconds.append(_now(on_gpu) - start)
    except (RuntimeError, MemoryError) as error:
        if not _is_out_of_memory(error):
            raise
        return {"note": "out of memory"}
    # exporting took more than predicting will
    measurable = workload.form != "onnx"
    return {
        "device": torch.cuda.get_device_name() if on_gpu else _cpu_name(),
        "threads": torch.get_num_threads(),
        "memory": GPU_MEMORY if on_gpu else PROCESS_MEMORY,
        "base_bytes": base,
        "peak_bytes": _peak_bytes(on_gpu) if measurable else None,
        "allocated_bytes": torch.cuda.max_memory_allocated() if on_gpu else None,
        "step_seconds": statistics.median(seconds[warm:] or seconds[-1:]),
    }


def _training(
    workload: Workload, network: Network, vae: Autoencoder | None, image_size: int
) -> Work:
    spec, loss = variant_spec(workload.variant), WaveGMSLoss()
    device = next(network.parameters()).device
    # with training.compile, too, a step on a card is one launch
    graph = workload.form == "graph" or (workload.form, device.type) == ("compiled", "cuda")
    optimizer = torch.optim.AdamW(network.parameters(), fused=True, capturable=graph)
    terms_of = _terms_of(
        workload.form, lambda part: frozen_for_steps(part.to(device), workload.precision, device)
    )
    if workload.form != "plain":
        vae = frozen_for_steps(vae, workload.precision, device)
    if workload.form == "compiled":
        network.compile()
    autocast = computing_with(workload.precision, device)

    def step(batch: Batch) -> dict[str, Tensor]:
        with autocast:
            terms = terms_of(spec, network, loss, vae, batch.images, batch.masks, batch.generators)
        optimizer.zero_grad()
        terms["loss"].backward()
        optimizer.step()
        return {name: value.detach() for name, value in terms.items()}

    taken = GraphedStep(step) if graph else step

    def take(images: Tensor, masks: Tensor, autocast: torch.autocast) -> None:
        # drawn outside, as a training on a card does
        channels, side = latent_channels_of(vae), image_size // 8
        noise = torch.randn(len(images), channels, side, side, device=device)
        taken(Batch(images, masks, noise))
        if graph and taken.failure:
            raise RuntimeError(f"it cannot be captured: {taken.failure}")

    return take


def _terms_of(form: str, prepare: Callable[[MaskDecoder], MaskDecoder]) -> Callable[..., dict]:
    """What computes a step's loss in a form; `prepare` makes an untrained mask decoder ready."""
    if form == "fast":
        return partial(loss_terms, mask_decoder=prepare(freeze(MaskDecoder())))
    return plain_terms if form == "plain" else loss_terms


def _decode_fast(pipeline: WaveGMSPipeline) -> None:
    """By an untrained mask decoder, which its autoencoder has not taught."""
    pipeline.register_modules(mask_decoder=freeze(MaskDecoder()).to(pipeline.device))
    pipeline.choose_decoder("fast")


def profile_steps(workload: Workload, batch_size: int, image_size: int) -> str:
    """What a training step spends its time on: the longest operations, on a GPU kernels."""
    on_gpu = torch.cuda.is_available()
    device = torch.device("cuda" if on_gpu else "cpu")
    torch.backends.cudnn.benchmark = on_gpu  # as in training
    network, vae = (part.to(device) for part in build_untrained(workload.variant, image_size))
    work = _training(workload, network, vae, image_size)
    images = torch.rand(batch_size, 3, image_size, image_size, device=device)
    masks = torch.rand(batch_size, 1, image_size, image_size, device=device).round()
    autocast = computing_with(workload.precision, device)
    for _ in range(6 if on_gpu else 1):  # kernels are chosen and a graph is captured
        work(images, masks, autocast)
    _now(on_gpu)
    kinds = torch.profiler.ProfilerActivity
    # the processor's part of a step in many launches took longer to write down than half a minute
    with torch.profiler.profile(activities=[kinds.CUDA if on_gpu else kinds.CPU]) as profile:
        work(images, masks, autocast)
        _now(on_gpu)
    order = "self_device_time_total" if on_gpu else "self_cpu_time_total"
    rows = profile.key_averages()
    spent, calls = sum(getattr(row, order) for row in rows), sum(row.count for row in rows)
    longest = sorted(rows, key=lambda row: -getattr(row, order))[:25]
    lines = [f"{getattr(one, order) / 1e3:9.2f} ms {one.count:5d}x {one.key}" for one in longest]
    said = f"a step of {workload}, batch {batch_size}: {calls} calls, {spent / 1e3:.1f} ms"
    return "\n".join([said, *(line[:160] for line in lines)])


def plain_terms(
    spec: VariantSpec,
    network: Network,
    loss: WaveGMSLoss,
    vae: Autoencoder | None,
    images: Tensor,
    masks: Tensor,
    generators: Generators = None,
) -> dict[str, Tensor]:
    """`loss_terms` as the paper writes it: the specification that the lean one is compared with."""
    if spec.generative:
        return network(images, masks, vae, generators)
    if spec.autoencoder is None:
        return mask_loss(network(images), masks)
    latents, levels = network(images, vae, generators)
    return loss.plain(latents if spec.aligned else None, levels, vae, images, masks)


def _predicting(
    workload: Workload, network: Network, vae: Autoencoder | None, image_size: int
) -> Work:
    pipeline = as_pipeline(network, vae, image_size)
    if workload.form == "fast":
        _decode_fast(pipeline)
    if workload.form == "plain":
        whole = PlainPipeline(pipeline).eval()

        def plain(images: Tensor, masks: Tensor, autocast: torch.autocast) -> None:
            with autocast, torch.no_grad():
                whole(images)

        return plain
    if workload.form == "onnx":
        session, _ = open_onnx(pipeline)

        def onnx(images: Tensor, masks: Tensor, autocast: torch.autocast) -> None:
            session.run(None, {"images": images.numpy()})

        return onnx

    def lean(images: Tensor, masks: Tensor, autocast: torch.autocast) -> None:
        with autocast:
            pipeline.predict(images)

    return lean


def open_onnx(pipeline: WaveGMSPipeline) -> tuple[Any, float]:
    """A pipeline in an `onnxruntime.InferenceSession` with as many threads as torch has.

    Beside it, the largest difference of its probabilities to those of the pipeline.
    """
    import onnxruntime  # here, because nothing else needs it

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    with tempfile.TemporaryDirectory() as folder:
        exported = pipeline.export_onnx(Path(folder) / "model.onnx")
        session = onnxruntime.InferenceSession(
            str(exported.path), options, providers=["CPUExecutionProvider"]
        )
    return session, exported.max_difference


def compare_inference(image_size: int, batch_sizes: Sequence[int], repeats: int) -> list[dict]:
    """Predictions of Wave-GMS by torch and by ONNX Runtime, side by side on the CPU.

    Each is timed `repeats` times, in turn, after once that is not.

    Returns:
        One row a batch size: batch_size, torch_seconds and onnx_seconds (of an image, medians),
        ratio (onnx to torch, the median over the repeats), lowest and highest of it, and
        max_difference, the largest between their probabilities for a random image, in [0, 1].
    """
    pipeline = as_pipeline(*build_untrained("wave_gms"), image_size)
    session, difference = open_onnx(pipeline)
    rows = []
    for batch_size in batch_sizes:
        images = torch.rand(batch_size, 3, image_size, image_size)
        pairs = []
        for _ in range(1 + repeats):
            started = time.perf_counter()
            pipeline.predict(images)
            between = time.perf_counter()
            session.run(None, {"images": images.numpy()})
            pairs.append((between - started, time.perf_counter() - between))
        by_torch, by_onnx = zip(*pairs[1:], strict=True)
        ratios = [other / one for one, other in pairs[1:]]
        rows.append(
            {
                "batch_size": batch_size,
                "torch_seconds": statistics.median(by_torch) / batch_size,
                "onnx_seconds": statistics.median(by_onnx) / batch_size,
                "ratio": statistics.median(ratios),
                "lowest": min(ratios),
                "highest": max(ratios),
                "max_difference": difference,
            }
        )
    return rows


def measure_peak(precision: Precision) -> float:
    """Operations a second of this machine's best of several matrix products, in units of 10^9."""
    on_gpu = torch.cuda.is_available()
    device = torch.device("cuda" if on_gpu else "cpu")
    choose_precision(precision, device)
    computing_with(precision, device)
    kind = HALVES.get(precision, torch.float32)
    best = 0.0
    for side in (4096, 8192) if on_gpu else (1024, 2048, 3072):
        one, other = (torch.rand(side, side, device=device).to(kind) for _ in range(2))
        for _ in range(4):
            start = _now(on_gpu)
            torch.mm(one, other)
            best = max(best, 2 * side**3 / (_now(on_gpu) - start) / 1e9)
    return best


def peak_process_bytes() -> int:
    """The most physical memory that this process has held so far, in bytes."""
    status = Path("/proc/self/status")
    # Linux: not getrusage, whose peak a process takes over from the one that started it
    if status.is_file() and (peak := re.search(r"VmHWM:\s+(\d+) kB", status.read_text())):
        return int(peak[1]) * 1024
    if sys.platform == "win32":
        return psutil.Process().memory_info().peak_wset
    import resource  # Windows has no such module

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _peak_bytes(on_gpu: bool) -> int:
    return torch.cuda.max_memory_reserved() if on_gpu else peak_process_bytes()


def _now(on_gpu: bool) -> float:
    if on_gpu:
        torch.cuda.synchronize()
    return time.perf_counter()


def _is_out_of_memory(error: Exception) -> bool:
    # torch's CPU allocator has no exception of its own
    known = isinstance(error, torch.OutOfMemoryError | MemoryError)
    return known or "can't allocate memory" in str(error)


def _cpu_name() -> str:
    listed = Path("/proc/cpuinfo")
    name = re.search(r"model name\s*: (.+)", listed.read_text()) if listed.is_file() else None
    return name[1].strip() if name else platform.processor() or platform.machine()
