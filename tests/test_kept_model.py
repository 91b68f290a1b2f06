"""A model that an earlier version saved opens in this one and gives what it gave then.

`tests/kept/model` was trained by the pipeline on the embedded sample, before the package was
divided into rooms; its weights are rounded to float16, and `last` is left out. `mask.png` is what
that version predicted for `image.png`, a test image.
"""

import hashlib
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from wavegms import WaveGMSPipeline
from wavegms.data.prepare import prepare_dataset
from wavegms.phantom.scanner import write_phantoms
from wavegms.training.card import read_card

KEPT = Path(__file__).parent / "kept"


def test_a_model_of_an_earlier_version_predicts_as_it_did():
    card = read_card(KEPT / "model")  # which compares the weights with its hash
    assert (card.variant, card.dataset, card.seed, card.image_size) == (
        "wave_gms",
        "phantom_a",
        2333,
        64,
    )
    pipeline = WaveGMSPipeline.from_pretrained(KEPT / "model")
    (mask,) = pipeline(Image.open(KEPT / "image.png")).masks
    wanted = np.asarray(Image.open(KEPT / "mask.png")) > 127
    assert wanted.sum() == 680
    assert 2 * (mask & wanted).sum() / (mask.sum() + wanted.sum()) >= 0.999


@pytest.mark.slow
def test_the_sample_is_prepared_as_it_was_for_that_model(tmp_path):
    """To the byte: its hash is of the manifest, which has the hash of all pixels."""
    raw, out = tmp_path / "raw/phantom_a", tmp_path / "prepared"
    write_phantoms("phantom_a", raw, count=160, seed=2333)
    prepare_dataset(
        "phantom_a", raw, out, image_size=64, split="random", split_folder=tmp_path,
        test_fraction=0.2, validation_fraction=0.1, seed=2333,
    )  # fmt: skip
    table = pd.read_csv(out / "manifest.csv", dtype=str, keep_default_na=False)
    later = ["foreground", "ignored", "scale", "drawn_on", "evidence"]
    known = table.drop(columns=[*later, "original_pixels", "row_spacing", "column_spacing"])
    text = known.to_csv(index=False, lineterminator="\n")
    kept = read_card(KEPT / "model").data_hash
    assert hashlib.sha256(text.encode()).hexdigest() == kept
