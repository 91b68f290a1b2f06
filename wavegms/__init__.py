"""Wave-GMS: medical image segmentation with 2.6 M trainable parameters.

The names below are the public door. They are loaded on first use, because torch and diffusers take
seconds to import and checking a parameter file should not wait for them.
"""

import os
from importlib import import_module
from typing import Any

# Libraries tell their makers about those who use them, ONNX Runtime as soon as it is imported and
# from native code. This stands before any other import; children and kernels inherit it. Who sets
# one of these to another value keeps it.
for _name in (
    "DO_NOT_TRACK",  # some heed this one only
    "DVC_NO_ANALYTICS",
    "HF_HUB_DISABLE_TELEMETRY",
    "ITERATIVE_DO_NOT_TRACK",
    "ORT_DISABLE_TELEMETRY",
):
    os.environ.setdefault(_name, "1")

__version__ = "0.1.0"

_PUBLIC = {
    "InputError": "wavegms.errors",
    "LatentMappingModel": "wavegms.models.mapping",
    "MultiResolutionEncoder": "wavegms.models.encoder",
    "WaveGMSPipeline": "wavegms.models.pipeline",
    "load_autoencoder": "wavegms.models.weights",
    "load_sd_vae": "wavegms.models.weights",
    # diffusers looks up the base class of a pipeline's components in the package that defines them
    "ModelMixin": "diffusers",
}

__all__ = [
    "InputError",
    "LatentMappingModel",
    "MultiResolutionEncoder",
    "WaveGMSPipeline",
    "load_autoencoder",
    "load_sd_vae",
]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_PUBLIC[name]), name)
