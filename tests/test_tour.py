"""The tables of the tour: shapes and counts are those of the networks."""

from functools import partial

import pytest
import torch
from test_variants import RIVALS, SIZES, build_kl

from wavegms.figures.method import parameter_table, shapes_along_path, trace_prediction
from wavegms.models.build import as_pipeline, build_variant
from wavegms.variants import VARIANTS


def test_parameters_are_the_papers(untrained):
    table = parameter_table(untrained).set_index("part")["parameters"]
    assert table["one feature-extraction U-Net (of three)"] == 258_204
    assert table["feature-aggregation U-Net"] == 261_080
    assert table["multi-resolution encoder"] == 3 * 258_204 + 261_080 == 1_035_692
    assert table["latent mapping model"] == 1_564_976
    assert table["all that is trained"] == 2_600_668
    assert table["autoencoder: decoder"] == sum(
        p.numel() for p in untrained.vae.decoder.parameters()
    )


@pytest.mark.parametrize("size", [32, 64])
def test_shapes_follow_from_the_size(untrained, size):
    table = shapes_along_path(untrained, torch.rand(2, 3, size, size)).set_index("step")["output"]
    half, eighth = size // 2, size // 8
    assert table["image"] == f"2 × 3 × {size} × {size}"
    assert table["level 1: four sub-bands of RGB"] == f"2 × 12 × {half} × {half}"
    assert table["level 1: pooled"] == table["level 3: pooled"] == f"2 × 12 × {eighth} × {eighth}"
    assert table["the three levels, concatenated"] == f"2 × 36 × {eighth} × {eighth}"
    assert (
        table["mean of z_MR"] == table["mapped latent, depth 4"] == f"2 × 4 × {eighth} × {eighth}"
    )
    assert table["soft mask, decoded from the last"] == f"2 × 1 × {size} × {size}"


@pytest.mark.parametrize("name", [name for name in VARIANTS if name not in RIVALS])
def test_the_tables_are_of_any_network(name, small_vae):
    """Sizes as in test_variants.py; what a network has not is left out."""
    vae = {"tiny": small_vae, "kl": build_kl(), None: None}[VARIANTS[name].autoencoder]
    pipeline = as_pipeline(build_variant(name), vae, 32)
    images = torch.rand(2, 3, 32, 32)
    steps = shapes_along_path(pipeline, images).set_index("step")["output"]
    parts = parameter_table(pipeline).set_index("part")["parameters"]
    assert steps.iloc[0] == "2 × 3 × 32 × 32" and steps.iloc[-1] == "2 × 1 × 32 × 32"
    assert ("mapped latent, depth 4" in steps) == ("latent mapping model" in parts) == bool(vae)
    assert ("mean of z_MR" in steps) == ("multi-resolution encoder" in parts)
    assert ("mean of z_MR" in steps) == VARIANTS[name].network.startswith("wavelet")
    assert parts["all that is trained"] == SIZES[name] == pipeline.parameter_counts.trainable
    assert ("network" in parts) == (not vae)


def test_the_trace_is_one_prediction_and_leaves_no_hook(untrained):
    images = torch.rand(2, 3, 32, 32)
    expected = untrained.predict(images)
    steps = trace_prediction(untrained, images)
    assert torch.equal(steps["encoder"].input, images)
    assert torch.equal(steps["encoder"].output, steps["mapping"].input)
    close = partial(torch.testing.assert_close, rtol=1e-4, atol=1e-4)
    decoded = (untrained.vae.decode(steps["mapping.heads.3"].output).sample + 1) / 2
    close(decoded.mean(1, keepdim=True).clamp(0, 1), expected)
    limited = torch.tanh(steps["mapping.heads.3"].output / 3) * 3
    close(steps["vae.decoder.layers.0"].input, limited)
    assert "vae.encoder" not in steps, "a prediction does not encode by the frozen encoder"
    parts = untrained.encoder, untrained.mapping, untrained.vae
    assert not any(module._forward_hooks for part in parts for module in part.modules())
