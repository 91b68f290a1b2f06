"""Counts against published sizes and hand-made sums; measurements by real processes."""

import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pandas as pd
import psutil
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from short import shorten
from test_export import build_vae
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from wavegms import InputError
from wavegms.costs import harness
from wavegms.costs import measure as measuring
from wavegms.costs.figure import plot_costs
from wavegms.costs.harness import apart
from wavegms.costs.measure import build_untrained, compare_inference
from wavegms.costs.tables import (
    GIB,
    beside_table_1,
    beside_table_2,
    compare_costs,
    count_sizes,
    largest_batches,
    measure,
)
from wavegms.models.autoencoder import decode_masks
from wavegms.models.build import build_variant
from wavegms.models.mask_decoder import MaskDecoder
from wavegms.project import KEEP_MEMORY
from wavegms.results.tables import read_published
from wavegms.training.loss import WaveGMSLoss
from wavegms.training.recipe import loss_terms
from wavegms.variants import VARIANTS

ROOT = Path(__file__).parents[1]
PUBLISHED = ROOT / "results/published"
TAESD = 1_222_532 + 1_222_531
# 34,163,592 and 49,490,179, and the two 1x1 convolutions between them: 8 to 8 and 4 to 4 channels
SD_VAE = 34_163_592 + 49_490_179 + (8 * 8 + 8) + (4 * 4 + 4)


@pytest.fixture(scope="module")
def both_decoders():
    return count_sizes(["unet", "gms", "tinyvae", "wave_gms"], 32, fast=True)


@pytest.fixture(scope="module")
def sizes(both_decoders):
    return both_decoders[both_decoders["decoder"] == "exact"].set_index("variant")


def test_parameters_are_the_published_ones(sizes):
    assert sizes["trainable_parameters"].to_dict() == {
        "unet": 14_007_118,
        "gms": 1_564_976,
        "tinyvae": 1_564_976,
        "wave_gms": 2_600_668,
    }
    frozen = sizes["total_parameters"] - sizes["trainable_parameters"]
    assert frozen.to_dict() == {"unet": 0, "gms": SD_VAE, "tinyvae": TAESD, "wave_gms": TAESD}


def test_parameters_beside_table_2(sizes):
    published = read_published(PUBLISHED)
    table = beside_table_2(sizes.reset_index(), published).set_index("system")
    assert table["published"].dropna().to_dict() == {"UNet": 14.0, "GMS": 1.56, "Wave-GMS": 2.6}
    rounded = (table["trainable_parameters"] / 1e6).round(2)
    assert (rounded - table["published"]).abs().max() <= 0.01


def test_operations_of_a_prediction_are_the_sum_of_its_parts(sizes):
    """Mapping and decoder are shared; the one encodes with TAESD, which is counted by hand."""
    conv = lambda into, out, side: 2 * 9 * into * out * side * side  # noqa: E731
    encoder = conv(3, 64, 32) + 3 * conv(64, 64, 32)
    for side in (16, 8, 4):
        encoder += conv(64, 64, side) + 9 * conv(64, 64, side)
    encoder += conv(64, 4, 4)
    _, vae = build_untrained("tinyvae")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        vae.encode(torch.rand(1, 3, 32, 32))
    assert counter.get_total_flops() == encoder

    network, _ = build_untrained("wave_gms")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network.eval().encoder(torch.rand(1, 3, 32, 32))
    difference = sizes.loc["tinyvae", "inference_gflop"] - sizes.loc["wave_gms", "inference_gflop"]
    assert 1e9 * difference == pytest.approx(encoder - counter.get_total_flops(), rel=1e-9)


@pytest.mark.parametrize("name", ["unet", "wave_gms"])
def test_counting_without_computing_counts_what_is_computed(sizes, name):
    network, vae = build_untrained(name)
    images, masks = torch.rand(1, 3, 32, 32), torch.rand(1, 1, 32, 32).round()
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        loss_terms(VARIANTS[name], network, WaveGMSLoss(), vae, images, masks)["loss"].backward()
    assert 1e9 * sizes.loc[name, "training_gflop"] == pytest.approx(counter.get_total_flops())


def test_operations_grow_with_the_image(sizes):
    larger = count_sizes(["unet"], 64).loc[0, "training_gflop"]
    # of a convolutional network, four times, but for what stays at the border
    assert larger == pytest.approx(4 * sizes.loc["unet", "training_gflop"], rel=1e-6)


def test_the_fast_decoder_has_a_row_where_it_can_be_chosen(both_decoders):
    """It is one more frozen part, and its operations stand in place of those of TAESD's decoder."""
    latents, (_, vae) = torch.rand(1, 4, 4, 4), build_untrained("wave_gms")
    decoding = []
    for decode in (partial(decode_masks, vae), MaskDecoder()):
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            decode(latents)
        decoding.append(counter.get_total_flops())
    assert both_decoders["system"].tolist() == [
        "UNet",
        "GMS",
        "Tiny-VAE (trained)",
        "Tiny-VAE (trained), fast decoder",
        "Wave-GMS",
        "Wave-GMS, fast decoder",
    ]
    *_, exact, fast = both_decoders.to_dict("records")
    assert (exact["decoder"], fast["decoder"]) == ("exact", "fast")
    assert fast["trainable_parameters"] == exact["trainable_parameters"]
    assert fast["total_parameters"] - exact["total_parameters"] == 450_724
    saved = 1e9 * (exact["inference_gflop"] - fast["inference_gflop"])
    assert saved == pytest.approx(decoding[0] - decoding[1], rel=1e-9)
    assert fast["training_gflop"] < 0.4 * exact["training_gflop"]
    beside = beside_table_2(both_decoders, read_published(PUBLISHED)).set_index("system")
    assert beside.loc["Wave-GMS, fast decoder", "published"] == 2.6


def test_a_size_that_does_not_suit_is_refused():
    with pytest.raises(InputError, match=r"efficiency\.image_size is 40.*unet.*16"):
        count_sizes(["unet"], 40)
    with pytest.raises(InputError, match="wave_gmz"):
        count_sizes(["wave_gmz"], 32)


# measuring


@pytest.fixture(scope="module")
def points():
    return measure(["unet", "tinyvae"], 32, [1, 48], 1)


def test_every_point_is_measured(points):
    assert list(zip(points["variant"], points["batch_size"], strict=True)) == [
        *(("unet", 1), ("unet", 48), ("tinyvae", 1), ("tinyvae", 48)),
    ]
    assert (points["step_seconds"] > 0).all() and (points["note"] == "").all()
    assert (
        points["image_seconds"].tolist() == (points["step_seconds"] / points["batch_size"]).tolist()
    )
    if not torch.cuda.is_available():
        assert set(points["memory"]) == {"peak process memory"}
        assert (points["base_bytes"] > 50e6).all()
    peaks = points.set_index(["variant", "batch_size"])["peak_bytes"]
    # weights, gradients and AdamW's two moments, 4 bytes each
    grown = peaks["unet", 1] - points.loc[0, "base_bytes"]
    assert grown > 4 * 4 * 14_007_118
    # by far more than the 2 % that one process's peak differs from another's
    assert (peaks[:, 48] > 1.05 * peaks[:, 1]).all()


def test_both_decoders_are_measured_as_what_they_are(monkeypatch):
    monkeypatch.setattr(harness, "POINT", "workloads:told")
    points = measure(["unet", "wave_gms"], 32, [1, 2], 1, fast=True)
    assert points[["variant", "decoder", "system", "note"]].to_numpy().tolist() == [
        ["unet", "exact", "UNet", "unet lean"],
        ["wave_gms", "exact", "Wave-GMS", "wave_gms lean"],
        ["wave_gms", "fast", "Wave-GMS, fast decoder", "wave_gms fast"],
    ]


def failing(monkeypatch, function):
    """Lets measuring processes call a function of `workloads.py` instead."""
    monkeypatch.setattr(harness, "POINT", f"workloads:{function}")


def test_a_variant_that_fails_is_named_in_one_sentence(monkeypatch):
    failing(monkeypatch, "wrong")
    with pytest.raises(InputError, match=r"step of unet cannot be measured \(no such\)") as error:
        measure(["unet"], 32, [1, 2], 1)
    assert "\n" not in str(error.value)


@pytest.mark.skipif(sys.platform == "win32", reason="signals of Unix")
def test_a_process_killed_for_memory_ends_its_line_and_stops_nothing(monkeypatch):
    failing(monkeypatch, "killed_by_the_second")
    points = measure(["unet"], 32, [1, 2, 4], 1)
    assert points["batch_size"].tolist() == [1, 2]
    assert points.loc[0, "image_seconds"] == 0.5 and points.loc[0, "note"] == ""
    assert "memory runs out" in points.loc[1, "note"] and pd.isna(points.loc[1, "peak_bytes"])


@pytest.mark.skipif(sys.platform == "win32", reason="signals of Unix")
def test_no_memory_for_a_single_image_is_said(monkeypatch):
    failing(monkeypatch, "killed")
    with pytest.raises(InputError, match=r"lower efficiency\.batch_sizes"):
        measure(["unet"], 32, [1, 2], 1)


def test_a_process_of_its_own_has_the_settings_of_memory_it_is_measured_with():
    kept = [apart("os:getenv", name) for name in KEEP_MEMORY]
    given = [apart("os:getenv", name, keep_memory=False) for name in KEEP_MEMORY]
    assert kept == list(KEEP_MEMORY.values()) and given == [None, None]
    assert len({apart("os:getpid"), apart("os:getpid"), os.getpid()}) == 3


def test_nothing_is_left_running_by_an_interruption(tmp_path):
    code = f"from wavegms.costs.harness import apart; apart('workloads:sleep', {str(tmp_path)!r})"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])}
    process = subprocess.Popen(
        [sys.executable, "-c", code], env=environment, stderr=subprocess.PIPE, encoding="utf-8"
    )
    while not list(tmp_path.iterdir()):
        assert process.poll() is None
        time.sleep(0.05)
    (asleep,) = (int(path.name) for path in tmp_path.iterdir())
    process.send_signal(signal.SIGINT)
    assert "KeyboardInterrupt" in process.communicate(timeout=60)[1]
    for _ in range(100):
        if not psutil.pid_exists(asleep):
            break
        time.sleep(0.1)
    assert not psutil.pid_exists(asleep)


# what is made of measurements


def line(name, offset, slope, batches=(1, 2, 4), seconds=0.1, decoder="exact"):
    return pd.DataFrame(
        {
            "variant": name,
            "decoder": decoder,
            "system": VARIANTS[name].title + ("" if decoder == "exact" else ", fast decoder"),
            "image_size": 224,
            "batch_size": batches,
            "device": "a card",
            "memory": "peak GPU memory",
            "base_bytes": 1000,
            "peak_bytes": [offset + slope * batch for batch in batches],
            "step_seconds": [seconds * batch for batch in batches],
            "image_seconds": seconds,
            "note": "",
        }
    )


@given(st.integers(0, 20 * GIB), st.integers(10**6, 4 * GIB), st.integers(1, 80))
def test_the_largest_batch_fits_and_the_next_does_not(offset, slope, card):
    table = largest_batches(line("wave_gms", offset, slope), [card, card + 1])
    batch, more = table["batch_size"]
    slack = 1e-6 * (offset + slope * (batch + 1))  # of the fit
    assert batch == 0 or offset + slope * batch <= card * GIB + slack
    assert offset + slope * (batch + 1) > card * GIB - slack
    assert more >= batch
    assert table["extrapolated"].tolist() == [batch > 4, more > 4]


def test_memory_that_does_not_grow_bounds_no_batch():
    flat = largest_batches(line("wave_gms", GIB, 0), [12])
    single = largest_batches(line("wave_gms", GIB, 5, batches=(4,)), [12])
    assert flat["batch_size"].isna().all() and single["batch_size"].isna().all()
    assert not flat["extrapolated"].any()


def test_costs_are_multiples_of_the_reference_at_the_largest_common_batch():
    points = pd.concat(
        [line("gms", 3000, 100, batches=(1, 2), seconds=1.0), line("wave_gms", 2000, 50)]
    )
    table = compare_costs(points).set_index("variant")
    assert set(table["batch_size"]) == {2}
    assert table.loc["wave_gms", ["time", "memory", "memory_of_step"]].tolist() == [1, 1, 1]
    assert table.loc["gms", "time"] == pytest.approx(10)
    assert table.loc["gms", "memory"] == pytest.approx(3200 / 2100)
    assert table.loc["gms", "memory_of_step"] == pytest.approx(2200 / 1100)
    fast = line("wave_gms", 1500, 50, seconds=0.04, decoder="fast")
    table = compare_costs(pd.concat([points, fast])).set_index("system")
    assert table.loc["Wave-GMS, fast decoder", "time"] == pytest.approx(0.4)
    assert table.loc["Wave-GMS, fast decoder", "memory"] == pytest.approx(1600 / 2100)
    assert table.loc["Wave-GMS", "time"] == 1
    with pytest.raises(InputError, match=r"efficiency\.variants lacks wave_gms"):
        compare_costs(line("gms", 1, 1))


def test_table_1_has_a_row_for_every_system_that_says_what_its_numbers_are(tmp_path):
    points = [line("wave_gms", GIB, GIB), line("gms", GIB, 0)]
    largest = largest_batches(pd.concat(points), [11, 12])
    counts = {"trainable_parameters": [1, 2_600_668], "inference_gflop": [9.0, 1234.5]}
    sizes = pd.DataFrame({"variant": ["gms", "wave_gms"], "decoder": "exact"} | counts)
    sizes["image_size"] = 224
    table = beside_table_1(largest, sizes, PUBLISHED)
    numbers = table.groupby("Model", sort=False)["Number"].agg(list)
    assert len(numbers) == 14 and (numbers.drop("Wave-GMS").str[0] == "published").all()
    assert numbers["GMS"] == ["published", "measured"] and numbers["Wave-GMS"] == ["measured"]
    assert numbers["U-Mamba"] == ["published", "reported"]
    assert numbers["Swin-UNet"] == numbers["UCTransNet"] == ["published", "not measured"]
    assert (numbers.str.len() > 1).drop(["Wave-GMS", "MedSegDiff-V2", "SD-Seg", "GSS"]).all()
    assert table.iloc[0].tolist()[:4] == ["Swin-UNet", "published", "V100 (32 GB)", "24"]
    assert "add swin_unet to efficiency.variants" in table["From"].tolist()
    rows = {(row["Model"], row["Number"]): row for row in table.to_dict("records")}
    ours = rows["Wave-GMS", "measured"]
    assert ours["GPU (VRAM)"] == "any (11, 12 GB)" and ours["Batch size"] == "≤ 10, 11"
    assert ours["Parameters"] == "2,600,668" and ours["GFLOP"] == "1,234.5"
    assert "extrapolated" in ours["From"]
    assert rows["GMS", "measured"]["Batch size"] == "no line"
    both = pd.concat([*points, line("wave_gms", GIB, 3 * GIB // 2, decoder="fast")])
    counted = pd.concat([sizes, sizes.iloc[[1]].assign(decoder="fast", inference_gflop=5.0)])
    more = beside_table_1(largest_batches(both, [11, 12]), counted, PUBLISHED)
    assert more.iloc[:-1].equals(table)
    assert more.iloc[-1][["Model", "Batch size", "GFLOP"]].tolist() == [
        "Wave-GMS, fast decoder",
        "≤ 6, 7",
        "5.0",
    ]
    # no count of U-Mamba is shown: the plan behind it is not known
    assert rows["U-Mamba", "reported"]["Parameters"] == ""
    with pytest.raises(InputError, match=r"table1\.csv cannot be read"):
        beside_table_1(largest, sizes, tmp_path)


@pytest.mark.parametrize(
    ("system", "batches"),
    [
        ("Slim UNETR", "≤ 17, 19, 25, 38"),
        ("MA-TransformerV2", "≤ 2, 2, 3, 4"),
        ("SegMamba-V2", "≤ 0, 0, 1, 2"),
        ("MLRU++", "≤ 5, 5, 7, 11"),
    ],
)
def test_the_batch_that_fits_follows_from_the_counted_tensors(system, batches):
    """As it was counted step by step, from numbers that are not rounded."""
    largest = largest_batches(line("wave_gms", GIB, GIB), [11, 12, 16, 24])
    counts = {"trainable_parameters": [1], "inference_gflop": [1.0]}
    about = {"variant": ["wave_gms"], "decoder": "exact", "image_size": 224}
    sizes = pd.DataFrame(about | counts)
    table = beside_table_1(largest, sizes, PUBLISHED)
    row = table[(table["Model"] == system) & (table["Number"] == "counted")]
    assert row["Batch size"].item() == batches


def test_the_figure_shows_the_points_and_the_cards_within_reach():
    points = pd.concat([line("gms", 2 * GIB, 3 * GIB), line("wave_gms", GIB, GIB)])
    figure = plot_costs(points, [11, 12, 40])
    memory, time = figure.axes
    shown = {drawn.get_label(): drawn.get_ydata() for drawn in memory.lines}
    assert list(shown["GMS"]) == [5, 8, 14] and list(shown["Wave-GMS"]) == [2, 3, 5]
    assert [text.get_text().strip() for text in memory.texts] == ["11 GiB", "12 GiB"]
    assert all(list(drawn.get_ydata()) == [0.1] * 3 for drawn in time.lines)
    assert "peak GPU memory" in memory.get_ylabel()
    assert figure.get_suptitle() == "224×224 pixels, float32, a card"


def test_predictions_of_torch_and_onnx_runtime_are_compared(monkeypatch):
    """Of a shorter network: the whole one's export takes a quarter of a minute."""

    def build(name):
        network, vae = build_variant(name), build_vae("tiny")
        shorten(network)
        return network, vae

    monkeypatch.setattr(measuring, "build_untrained", build)
    table = pd.DataFrame(compare_inference(32, [1, 3], 2))
    assert table["batch_size"].tolist() == [1, 3]
    assert (table[["torch_seconds", "onnx_seconds"]] > 0).all(axis=None)
    assert (table["lowest"] <= table["ratio"]).all() and (table["ratio"] <= table["highest"]).all()
    assert table["max_difference"].between(0, 1e-4).all()


def test_what_is_forked_has_asked_for_no_card():
    """A process that has cannot be forked into ones that use a card; diffusers asks on import."""
    code = (
        "import torch; asked = []; torch.cuda.is_available = lambda: asked.append(1) or True; "
        "import wavegms.costs.warm, sys; assert 'diffusers' in sys.modules and not asked; "
        "assert torch.cuda.is_available() and asked"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
