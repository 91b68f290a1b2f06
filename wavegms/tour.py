"""One image followed through a trained pipeline: what each step gives, as numbers and tables."""

from contextlib import ExitStack
from typing import Any, NamedTuple

import pandas as pd
import torch
from torch import Tensor, nn

from wavegms.models.autoencoder import decode_masks, encode_images, encode_masks
from wavegms.models.formats import channels_last
from wavegms.models.latent import map_latents
from wavegms.models.pipeline import WaveGMSPipeline


class Step(NamedTuple):
    """What one module of a network was given and gave.

    Attributes:
        input: its first argument.
        output: its result; None where that is no tensor.
    """

    input: Tensor
    output: Tensor | None


def trace_prediction(pipeline: WaveGMSPipeline, images: Tensor) -> dict[str, Step]:
    """What every module took and gave in one prediction.

    Args:
        pipeline: the trained model.
        images: (B, 3, H, W) in [0, 1].

    Returns:
        By the module's path, such as `encoder.feature_extraction.0`, in the order in which the
        modules finished. Modules that a prediction does not call are not in it, among them the
        decoder of the Tiny-VAE as a whole, whose layers are called one by one.
    """
    steps: dict[str, Step] = {}
    parts = {name: part for name, part in pipeline.components.items() if part is not None}
    with ExitStack() as hooks:
        for name, module in nn.ModuleDict(parts).named_modules():

            def record(_: nn.Module, given: tuple, result: Any, name: str = name) -> None:
                if given:
                    output = result if isinstance(result, Tensor) else None
                    steps[name] = Step(given[0], output)

            hooks.callback(module.register_forward_hook(record).remove)
        pipeline.predict(images)
    return steps


@torch.inference_mode()
def shapes_along_path(pipeline: WaveGMSPipeline, images: Tensor) -> pd.DataFrame:
    """What each step of a prediction takes and gives, by running it.

    Args:
        pipeline: the trained model, one with the wavelet encoder.
        images: (B, 3, H, W) in [0, 1].

    Returns:
        One row a step: step, output (its shape).
    """
    steps = trace_prediction(pipeline, images)
    rows: list[tuple[str, Tensor]] = [("image", images)]
    for level in range(1, pipeline.encoder.levels + 1):
        extract = steps[f"encoder.feature_extraction.{level - 1}"]
        rows += [
            (f"level {level}: four sub-bands of RGB", extract.input),
            (f"level {level}: features, by a U-Net", extract.output),
            (f"level {level}: pooled", steps[f"encoder.pools.{level - 1}"].output),
        ]
    aggregate = steps["encoder.feature_aggregation"]
    mean, log_variance = aggregate.output.chunk(2, dim=1)
    rows += [
        ("the three levels, concatenated", aggregate.input),
        ("mean of z_MR", mean),
        ("log-variance of z_MR", log_variance),
    ]
    for depth, _ in enumerate(pipeline.mapping.heads, 1):
        latent = steps[f"mapping.heads.{depth - 1}"].output
        rows.append((f"mapped latent, depth {depth}", latent))
    rows.append(("soft mask, decoded from the last", decode_masks(pipeline.vae, latent)))
    shapes = [(step, " × ".join(map(str, value.shape))) for step, value in rows]
    return pd.DataFrame(shapes, columns=["step", "output"])


@torch.inference_mode()
def follow_latents(pipeline: WaveGMSPipeline, images: Tensor, masks: Tensor) -> dict[str, Tensor]:
    """The two latents that the method predicts, each before the one it is trained to meet.

    Args:
        pipeline: the trained model.
        images: (B, 3, H, W) in [0, 1].
        masks: their true masks, (B, 1, H, W), 0 or 1.

    Returns:
        z_MR, z_I, predicted z_M and z_M by these names, each (B, 4, H/8, W/8).
    """
    images = channels_last(images)  # as in a prediction
    latents, levels = map_latents(pipeline.encoder, pipeline.mapping, pipeline.vae, images)
    return {
        "z_MR": latents,
        "z_I": encode_images(pipeline.vae, images),
        "predicted z_M": levels[-1],
        "z_M": encode_masks(pipeline.vae, masks),
    }


@torch.inference_mode()
def decode_levels(pipeline: WaveGMSPipeline, images: Tensor, masks: Tensor) -> dict[str, Tensor]:
    """The masks at the four supervised depths, after the best that a prediction can be.

    Args:
        pipeline: the trained model.
        images: (B, 3, H, W) in [0, 1].
        masks: their true masks, (B, 1, H, W), 0 or 1.

    Returns:
        Truth, z_M decoded, and depth 1 to depth 4 (deepest first; the last is the prediction) by
        these names, each (B, 1, H, W) in [0, 1].
    """
    _, levels = map_latents(pipeline.encoder, pipeline.mapping, pipeline.vae, images)
    latents = {"z_M decoded": encode_masks(pipeline.vae, masks)}
    latents |= {f"depth {depth}": level for depth, level in enumerate(levels, 1)}
    decoded = {name: decode_masks(pipeline.vae, latent) for name, latent in latents.items()}
    return {"truth": masks} | decoded


def parameter_table(pipeline: WaveGMSPipeline) -> pd.DataFrame:
    """Number of parameters of each part, and which of them are trained.

    Args:
        pipeline: the model.

    Returns:
        Columns part, parameters, trained.
    """
    encoder, vae = pipeline.encoder, pipeline.vae
    parts: list[tuple[str, nn.Module, bool]] = [
        ("one feature-extraction U-Net (of three)", encoder.feature_extraction[0], True),
        ("feature-aggregation U-Net", encoder.feature_aggregation, True),
        ("multi-resolution encoder", encoder, True),
        ("latent mapping model", pipeline.mapping, True),
        ("autoencoder: encoder", vae.encoder, False),
        ("autoencoder: decoder", vae.decoder, False),
    ]
    rows = [
        (name, count_parameters(part), "yes" if trained else "frozen")
        for name, part, trained in parts
    ]
    trained = count_parameters(encoder) + count_parameters(pipeline.mapping)
    rows.append(("all that is trained", trained, "yes"))
    return pd.DataFrame(rows, columns=["part", "parameters", "trained"])


def count_parameters(module: nn.Module) -> int:
    """How many numbers a module holds, frozen or not."""
    return sum(parameter.numel() for parameter in module.parameters())
