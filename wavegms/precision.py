"""How many bits a training step computes with, and which of them this machine has."""

import torch

from wavegms.config import Precision
from wavegms.errors import InputError

HALVES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def choose_precision(wanted: Precision, device: torch.device) -> Precision:
    """What `training.precision` means on a device.

    Args:
        wanted: "auto" takes bf16 on a GPU that has it, and fp32 otherwise. A CPU is left with fp32
            even if it has bf16, as few do: the same run would give other numbers elsewhere.
        device: where the training runs.

    Returns:
        "fp32", "tf32", "bf16" or "fp16".

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
    """Sets torch to a precision.

    Matrix products and convolutions may take tf32 from now on, or must not. torch's own default is
    tf32 in convolutions alone.

    Args:
        precision: what `choose_precision` gave.
        device: where the training runs.

    Returns:
        The context in which to compute network and loss, for use again and again; it does nothing
        unless a half precision was chosen.
    """
    # the newer switches, `fp32_precision`, make torch.export fail, which reads these
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = precision != "fp32"
    half = HALVES.get(precision)
    return torch.autocast(device.type, dtype=half, enabled=half is not None)
