"""A model that an earlier version saved opens in this one and gives what it gave then.

`tests/kept/model` was trained by the pipeline on the embedded sample, before the package was
divided into rooms; its weights are rounded to float16, and `last` is left out. `mask.png` is what
that version predicted for `image.png`, a test image.
"""

from pathlib import Path

import numpy as np
from PIL import Image

from wavegms import WaveGMSPipeline
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
