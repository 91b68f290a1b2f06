"""Invented scores, in the files that an evaluation writes."""

from pathlib import Path

import numpy as np
import pandas as pd


def invent_scores(
    train_set="busi",
    test_set=None,
    variant="wave_gms",
    seed=1,
    *,
    dsc=0.8,
    images=16,
    image_size=224,
    epochs=50,
    selection="best_on_validation",
    data_hash="0",
) -> pd.DataFrame:
    """One run's table; the first image's prediction is empty, the others scatter about `dsc`.

    The original images are twice as large, and the second has no spacing.
    """
    noise = np.random.default_rng([seed, sum(map(ord, f"{train_set}{test_set}{variant}"))])
    overlap = np.clip(dsc + noise.normal(0, 0.05, images), 0.05, 1).round(6)
    distance = noise.gamma(3, 4, images).round(6)
    empty = np.arange(images) == 0
    overlap[empty] = 0
    hd95 = np.where(empty, image_size * 2**0.5, distance)
    millimetres = np.where(np.arange(images) == 1, np.nan, 0.2 * hd95)
    return pd.DataFrame(
        {
            "train_set": train_set,
            "test_set": test_set or train_set,
            "variant": variant,
            "seed": seed,
            "image_size": image_size,
            "epochs": epochs,
            "selection": selection,
            "card": f"of seed {seed}",
            # an id that pandas would read as a number, and one that it would read as missing
            "id": ["NA", *(f"{number:06d}" for number in range(1, images))],
            "label": "",
            "dsc": overlap,
            "iou": overlap / (2 - overlap),
            "hd95": hd95,
            "hd95_zero_if_empty": np.where(empty, 0, distance),
            "empty_prediction": empty,
            "true_area": 0.1,
            "predicted_area": np.where(empty, 0, 0.1),
            "data_hash": data_hash,
            "dsc_original": 0.99 * overlap,
            "iou_original": 0.99 * overlap / (2 - 0.99 * overlap),
            "hd95_original": 2 * hd95,
            "hd95_mm": millimetres,
        }
    )


def write_scores(folder: Path, **arguments) -> Path:
    """Writes one run where it belongs below a folder."""
    return put(folder, invent_scores(**arguments))


def put(folder: Path, scores: pd.DataFrame) -> Path:
    """Writes a table where it belongs below a folder."""
    run = scores.iloc[0]
    path = folder / run["train_set"] / run["variant"] / f"seed_{run['seed']}"
    path.mkdir(parents=True, exist_ok=True)
    scores.to_csv(path / f"{run['test_set']}.csv", index=False)
    return path / f"{run['test_set']}.csv"
