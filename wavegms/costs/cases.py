"""What is measured, without torch: workloads, and those of `make bench` with their comparisons."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from wavegms.config import Precision
from wavegms.errors import InputError
from wavegms.variants import require_side, variant_spec


@dataclass(frozen=True)
class Workload:
    """What a process repeats and measures.

    Attributes:
        variant: a key of `VARIANTS`.
        task: "train", a step of the training loop: forward, loss, backward and the fused AdamW
            (reading and augmenting images is no part of it); or "predict", `pipeline.predict`.
        form: "lean", as this package computes; "fast", the same with a mask decoder; "graph", the
            same as one CUDA graph; "compiled", as `training.compile` does: forward and backward of
            the trained network through torch.compile, on a card all of the step as one graph;
            "plain", as the paper writes it, with diffusers' autoencoder called as it is; or "onnx",
            a prediction in ONNX Runtime on the CPU.
        precision: "fp32", "tf32", "bf16" or "fp16".
    """

    variant: str
    task: Literal["train", "predict"] = "train"
    form: Literal["lean", "fast", "graph", "compiled", "plain", "onnx"] = "lean"
    precision: Precision = "fp32"


def systems_of(variants: Sequence[str], fast: bool) -> Iterator[dict[str, str]]:
    """Each variant with its decoder, and a title: variant, decoder and system of a table's row.

    If `fast`, those that have the choice come a second time with the fast decoder.
    """
    for name in variants:
        spec = variant_spec(name)
        yield {"variant": name, "decoder": "exact", "system": spec.title}
        if fast and spec.several_decoders:
            yield {"variant": name, "decoder": "fast", "system": f"{spec.title}, fast decoder"}


def form_with(decoder: str) -> Literal["lean", "fast"]:
    """The form of a `Workload` that decodes so."""
    return "fast" if decoder == "fast" else "lean"


@dataclass(frozen=True)
class Case:
    """A workload with a name for a reader; for `keep_memory` see `apart`."""

    name: str
    workload: Workload
    keep_memory: bool = True


@dataclass(frozen=True)
class Plan:
    """What `make bench` was asked for: predictions are measured at the last batch size alone."""

    image_size: int
    batch_sizes: Sequence[int]
    rounds: int
    steps: int

    def __post_init__(self):
        sizes = list(self.batch_sizes)
        if sizes != sorted(set(sizes)) or min(sizes, default=0) < 1:
            raise InputError(f"--batch-sizes must ascend from 1 or more, not {sizes}")
        if min(self.rounds, self.steps) < 1:
            raise InputError("--rounds and --steps must be at least 1")
        for case in cases(gpu=True):
            require_side(case.workload.variant, self.image_size, "--image-size")


def cases(gpu: bool) -> list[Case]:
    """All that is measured; on a GPU without what only concerns CPUs."""

    def case(name: str, *workload: str, keep_memory: bool = True) -> Case:
        return Case(name, Workload(*workload), keep_memory)

    # without a GPU, how memory is taken from the system is a measure of its own
    training = [
        case("plain", "wave_gms", "train", "plain", "fp32", keep_memory=gpu),
        *([] if gpu else [case("plain, memory kept", "wave_gms", "train", "plain", "fp32")]),
        case("lean", "wave_gms", "train", "lean", "fp32"),
        case("fast decoder", "wave_gms", "train", "fast", "fp32"),
        *([case("lean tf32", "wave_gms", "train", "lean", "tf32")] if gpu else []),
        case("plain bf16", "wave_gms", "train", "plain", "bf16"),
        case("lean bf16", "wave_gms", "train", "lean", "bf16"),
        case("Tiny-VAE", "tinyvae", "train", "lean", "fp32"),
        case("GMS", "gms", "train", "lean", "fp32"),
        case("UNet", "unet", "train", "lean", "fp32"),
    ]
    if gpu:
        training += [
            case("lean bf16, one launch", "wave_gms", "train", "graph", "bf16"),
            case("UNet bf16", "unet", "train", "lean", "bf16"),
            case("UNet bf16, one launch", "unet", "train", "graph", "bf16"),
            case("GMS bf16", "gms", "train", "lean", "bf16"),
            case("lean bf16, compiled", "wave_gms", "train", "compiled", "bf16"),
        ]
    prediction = [
        case("plain", "wave_gms", "predict", "plain", "fp32"),
        case("lean", "wave_gms", "predict", "lean", "fp32"),
        case("fast decoder", "wave_gms", "predict", "fast", "fp32"),
        case("lean bf16", "wave_gms", "predict", "lean", "bf16"),
        case("ONNX Runtime, CPU", "wave_gms", "predict", "onnx", "fp32"),
        case("Tiny-VAE", "tinyvae", "predict", "lean", "fp32"),
        case("GMS", "gms", "predict", "lean", "fp32"),
        case("UNet", "unet", "predict", "lean", "fp32"),
    ]
    return training + prediction


# Which is divided by which, where both were measured.
COMPARISONS = {
    "train": [
        ("lean", "plain"),
        ("plain, memory kept", "plain"),
        ("lean", "plain, memory kept"),
        ("lean tf32", "plain"),
        ("plain bf16", "plain"),
        ("fast decoder", "lean"),
        ("lean bf16", "lean"),
        ("lean bf16", "plain"),
        ("lean bf16, one launch", "plain"),
        ("lean bf16, one launch", "lean bf16"),
        ("lean bf16, compiled", "lean bf16, one launch"),
        ("Tiny-VAE", "lean"),
        ("GMS", "lean"),
        ("UNet", "lean"),
        ("GMS bf16", "lean bf16"),
        ("UNet bf16", "lean bf16"),
        ("UNet bf16, one launch", "lean bf16, one launch"),
    ],
    "predict": [
        ("lean", "plain"),
        ("fast decoder", "lean"),
        ("lean bf16", "lean"),
        ("ONNX Runtime, CPU", "lean"),
        ("Tiny-VAE", "lean"),
        ("GMS", "lean"),
        ("UNet", "lean"),
    ],
}
