"""A pipeline as one ONNX file, for programs that have no torch.

The file begins where `WaveGMSPipeline.predict` begins: resizing images to the side at which the
network was trained, and masks back, is left to the program that reads it.
"""

import copy
import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from diffusers import DiffusionPipeline
from torch import Tensor, nn

from wavegms import __version__
from wavegms.errors import InputError
from wavegms.files import replace_file
from wavegms.models.autoencoder import decode_latents
from wavegms.models.segmenter import map_latents

# Largest difference of a probability that is put down to rounding. At 64x64, 1e-5 to 6e-5 was
# measured with trained networks and 3e-7 to 8e-5 with untrained ones.
TOLERANCE = 1e-3

# The exporter's own default. From 21 on it writes group normalisation as one operation, for which
# ONNX Runtime 1.32 has no kernel on the CPU: it took 5 to 17 % longer, put together from others.
_OPSET = 20


class OnnxExport(NamedTuple):
    """The file, and the largest difference of a probability to `WaveGMSPipeline.predict`."""

    path: Path
    max_difference: float


class PlainPipeline(nn.Module):
    """What `WaveGMSPipeline.predict` computes, in operations that ONNX has.

    `decode_masks` is faster by an autograd function, which ONNX has not; the autoencoder's own
    decoder gives the same.
    """

    def __init__(self, pipeline: DiffusionPipeline):
        super().__init__()
        self.encoder, self.mapping = pipeline.encoder, pipeline.mapping
        self.vae, self.network = pipeline.vae, pipeline.network
        self.mask_decoder = pipeline.mask_decoder if pipeline.decoder == "fast" else None
        self.palette = pipeline.palette

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, S, S) in [0, 1] -> (B, K, S, S) in [0, 1]."""
        if self.network is not None:
            return self.network(images)
        _, levels = map_latents(self.encoder, self.mapping, self.vae, images)
        latents = levels[-1]
        if self.mask_decoder is not None:
            return self.mask_decoder(latents)
        return self.palette.shares((decode_latents(self.vae, latents) + 1) / 2)


def write_onnx(pipeline: DiffusionPipeline, path: str | Path) -> OnnxExport:
    """See :meth:`WaveGMSPipeline.export_onnx`."""
    path = Path(path)
    if path.suffix != ".onnx":
        raise InputError(f"{path} does not end in .onnx: give the file to write that suffix")
    if pipeline.encoder is not None and pipeline.encoder.config.sample_at_inference:
        raise InputError(
            "an ONNX file gives one answer to an image, but this encoder draws a sample "
            "(model.sample_at_inference is true): train with it set to false, or call "
            "pipeline.encoder.register_to_config(sample_at_inference=False) to export the mean"
        )
    if why := getattr(getattr(pipeline.network, "network", None), "unexportable", None):
        raise InputError(
            f"{pipeline.network.config.architecture} {why}: export another network, or "
            "predict with torch"
        )
    if pipeline.depth > 1:
        raise InputError(
            "an ONNX file here is of single images, but this network takes windows of "
            f"{pipeline.depth} slices: export another network, or predict with torch"
        )
    plain = _plain_copy(pipeline)
    try:
        with replace_file(path) as fresh:
            fresh.write_bytes(_to_onnx(plain))
            difference = _largest_difference(fresh, plain)
            # written so that a difference of nan is refused too
            if not difference <= TOLERANCE:
                raise InputError(
                    f"{path} was not written, as its probabilities in ONNX Runtime are up to "
                    f"{difference:.2g} from those of torch, more than {TOLERANCE:g}: check the "
                    "weights for nan, and install the versions of torch and onnxruntime that "
                    "wavegms names"
                )
    except OSError as error:
        raise InputError(
            f"{path} cannot be written ({error.strerror}): choose another folder"
        ) from error
    return OnnxExport(path, difference)


def _plain_copy(pipeline: DiffusionPipeline) -> DiffusionPipeline:
    """The pipeline in float32 on the CPU and in evaluation mode; the one given stays as it is."""
    parts = {
        name: copy.deepcopy(part).cpu().float()
        for name, part in pipeline.components.items()
        if part is not None
    }
    plain = type(pipeline)(**parts, **pipeline.seen)
    if plain.vae is not None:
        # slices change no result, but would fix the batch size in the graph
        plain.vae.disable_slicing()
    plain.choose_decoder(pipeline.decoder)
    return plain


def _to_onnx(pipeline: DiffusionPipeline) -> bytes:
    """The file's content."""
    # here, because a prediction needs none of it
    import onnx

    side = pipeline.config.image_size
    neighbours = pipeline.scale.context == "neighbours"
    channels = "the slices below, at and above" if neighbours else "RGB"
    with _quiet_export(), torch.no_grad():
        program = torch.onnx.export(
            PlainPipeline(pipeline).eval(),
            (torch.zeros(2, 3, side, side),),
            dynamo=True,
            verbose=False,
            opset_version=_OPSET,
            input_names=["images"],
            output_names=["probabilities"],
            # A name, not a `Dim`: that would be refused, and traced once more in vain, where torch
            # itself treats many images in another way, in GMS 64 and more. The file does not.
            dynamic_shapes={"images": {0: "batch"}},
        )
        model = program.model_proto
    # where in whose source a node comes from: folders of this machine, and a fifth of Wave-GMS
    graph = model.graph
    for part in (graph, *graph.node, *graph.value_info, *graph.initializer, *graph.input):
        part.ClearField("metadata_props")
    onnx.helper.set_model_props(
        model,
        {
            "wavegms_version": __version__,
            "image_size": str(side),
            "input_range": f"images are {channels} in [0, 1], resized to image_size x image_size",
            "output": _meaning(pipeline.classes),
            "decoder": pipeline.decoder,
            "notice": "research software, not for clinical use",
        },
    )
    return model.SerializeToString()


def _meaning(classes: Sequence[str]) -> str:
    if not classes:
        return (
            "probabilities in [0, 1]: how likely a pixel belongs to the segmented region, which it "
            "does from 0.5"
        )
    return (
        f"probabilities in [0, 1] of the classes {', '.join(classes)}, what is left to 1 is the "
        "background's: a pixel is of the likeliest"
    )


def _largest_difference(file: Path, pipeline: DiffusionPipeline) -> float:
    """Between ONNX Runtime and `predict`, on the CPU, over batches of 1, 2 and 3 random images."""
    from onnxruntime import InferenceSession, SessionOptions

    options = SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3  # errors
    session = InferenceSession(file, options, providers=["CPUExecutionProvider"])
    side = pipeline.config.image_size
    images = torch.rand(3, 3, side, side, generator=torch.Generator().manual_seed(0))
    expected = pipeline.predict(images).numpy()
    differences = []
    for count in (1, 2, 3):
        (given,) = session.run(["probabilities"], {"images": images[:count].numpy()})
        differences.append(np.abs(given - expected[:count]).max())
    return float(np.max(differences))


@contextmanager
def _quiet_export() -> Iterator[None]:
    """Silences what the exporter says about libraries it can do without and about itself.

    It names the operations of torchvision, which is not installed, and uses what torch deprecates.
    """
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            warnings.simplefilter("ignore", DeprecationWarning)
            yield
    finally:
        logger.setLevel(level)
