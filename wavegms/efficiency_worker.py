"""Time and memory of one variant's training step, measured by the process itself.

`wavegms.efficiency` starts it as `python -m wavegms.efficiency_worker REQUEST`, because memory that
a process has once used cannot be told from what it uses now: only a fresh process has a peak of its
own. It prints one JSON object a line for each batch size, as soon as it is measured.
"""

import json
import platform
import re
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import psutil
import torch
from diffusers import AutoencoderKL, AutoencoderTiny

from wavegms.losses import WaveGMSLoss
from wavegms.models.autoencoder import Autoencoder, freeze
from wavegms.models.variants import Network, build_variant, variant_spec
from wavegms.training import loss_terms

PROCESS_MEMORY = "peak process memory"
GPU_MEMORY = "peak GPU memory"

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


def build_untrained(variant: str) -> tuple[Network, Autoencoder | None]:
    """A variant and its frozen autoencoder at the paper's sizes, with random weights.

    Neither a count nor a time depends on the weights, so nothing is loaded: the Tiny-VAE has the
    size of TAESD and the SD-VAE that of Stable Diffusion's.

    Args:
        variant: a key of `VARIANTS`.

    Returns:
        The network in training mode, and its autoencoder; None if it needs none.

    Raises:
        InputError: the variant is unknown.
    """
    kind = variant_spec(variant).autoencoder
    vae = None
    if kind is not None:
        vae = freeze(AutoencoderTiny() if kind == "tiny" else AutoencoderKL(**_SD_VAE))
    return build_variant(variant).train(), vae


def measure_steps(
    variant: str, image_size: int, batch_sizes: Sequence[int], steps: int
) -> Iterator[dict]:
    """Takes training steps on random images; on the GPU if there is one, otherwise on the CPU.

    A step is that of the training loop: forward, loss, backward and the fused AdamW. Reading and
    augmenting images is no part of it.

    Args:
        variant: a key of `VARIANTS`.
        image_size: side of the images in pixels.
        batch_sizes: ascending, as the peak memory of a process never falls: what it is after a
            batch size is then the peak of that batch size.
        steps: how many are timed at each batch size, after one that is not.

    Yields:
        For each batch size: batch_size, device (its name), threads (of the CPU), memory (what was
        measured: `PROCESS_MEMORY` or `GPU_MEMORY`), base_bytes (before the network was built),
        peak_bytes (on a GPU, what torch reserved), allocated_bytes (on a GPU, what tensors took of
        that; else None), and step_seconds (the median). After a batch size that memory does not
        suffice for, whose dictionary has batch_size and note only, there are no more.
    """
    on_gpu = torch.cuda.is_available()
    device = torch.device("cuda" if on_gpu else "cpu")
    base = torch.cuda.memory_reserved() if on_gpu else peak_process_bytes()
    spec, loss = variant_spec(variant), WaveGMSLoss()
    network, vae = build_untrained(variant)
    network.to(device)
    if vae is not None:
        vae.to(device)
    optimizer = torch.optim.AdamW(network.parameters(), fused=True)
    for batch_size in batch_sizes:
        if on_gpu:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        seconds = []
        try:
            images = torch.rand(batch_size, 3, image_size, image_size, device=device)
            masks = torch.rand(batch_size, 1, image_size, image_size, device=device).round()
            for _ in range(1 + steps):
                start = _now(on_gpu)
                terms = loss_terms(spec, network, loss, vae, images, masks)
                optimizer.zero_grad()
                terms["loss"].backward()
                optimizer.step()
                seconds.append(_now(on_gpu) - start)
        except (RuntimeError, MemoryError) as error:
            if not _is_out_of_memory(error):
                raise
            yield {"batch_size": batch_size, "note": "out of memory"}
            return
        yield {
            "batch_size": batch_size,
            "device": torch.cuda.get_device_name() if on_gpu else _cpu_name(),
            "threads": torch.get_num_threads(),
            "memory": GPU_MEMORY if on_gpu else PROCESS_MEMORY,
            "base_bytes": base,
            "peak_bytes": torch.cuda.max_memory_reserved() if on_gpu else peak_process_bytes(),
            "allocated_bytes": torch.cuda.max_memory_allocated() if on_gpu else None,
            "step_seconds": statistics.median(seconds[1:]),
        }


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


if __name__ == "__main__":
    for point in measure_steps(**json.loads(sys.argv[1])):
        print(json.dumps(point), flush=True)
