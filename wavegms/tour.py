"""Tables that follow one image through a trained pipeline, for the tour of the method."""

import pandas as pd
import torch
from torch import Tensor, nn

from wavegms.models.autoencoder import decode_masks
from wavegms.models.pipeline import WaveGMSPipeline
from wavegms.models.wavelet import multi_level_bands


@torch.inference_mode()
def shapes_along_path(pipeline: WaveGMSPipeline, images: Tensor) -> pd.DataFrame:
    """What each step of a prediction takes and gives, by running it.

    Args:
        pipeline: the trained model.
        images: (B, 3, H, W) in [0, 1].

    Returns:
        One row a step: step, output (its shape).
    """
    encoder = pipeline.encoder
    rows: list[tuple[str, Tensor]] = [("image", images)]
    pooled = []
    bands = multi_level_bands(images, encoder.levels)
    parts = zip(bands, encoder.feature_extraction, encoder.pools, strict=True)
    for level, (band, extract, pool) in enumerate(parts, 1):
        features = extract(band)
        pooled.append(pool(features))
        rows += [
            (f"level {level}: four sub-bands of RGB", band),
            (f"level {level}: features, by a U-Net", features),
            (f"level {level}: pooled", pooled[-1]),
        ]
    rows.append(("the three levels, concatenated", torch.cat(pooled, dim=1)))
    mean, log_variance = encoder.distribution(images)
    rows += [("mean of z_MR", mean), ("log-variance of z_MR", log_variance)]
    levels = pipeline.mapping(mean)
    rows += [(f"mapped latent, depth {depth}", level) for depth, level in enumerate(levels, 1)]
    rows.append(("soft mask, decoded from the last", decode_masks(pipeline.vae, levels[-1])))
    shapes = [(step, " × ".join(map(str, value.shape))) for step, value in rows]
    return pd.DataFrame(shapes, columns=["step", "output"])


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
    rows = [(name, _count(part), "yes" if trained else "frozen") for name, part, trained in parts]
    rows.append(("all that is trained", _count(encoder) + _count(pipeline.mapping), "yes"))
    return pd.DataFrame(rows, columns=["part", "parameters", "trained"])


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
