"""Metrics of whole volumes: slices are put back on the volume's own grid and measured in mm."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from medpy.metric import binary
from torch.nn import functional

from wavegms.classes import label_map
from wavegms.config import EvaluationParams
from wavegms.data.dataset import PreparedDataset
from wavegms.data.manifest import load_volumes, slice_id
from wavegms.data.volume_sets import open_truth
from wavegms.errors import InputError
from wavegms.images import resize_mask
from wavegms.results.folds import predict_unseen
from wavegms.results.readable import readable_comparisons
from wavegms.results.scores import origin_of, score_split
from wavegms.results.statistics import classes_in, compare_variants, summarize
from wavegms.results.tables import title_of
from wavegms.training.card import read_card

# What the Decathlon allowed the hippocampus; a border this near counts as the same.
TOLERANCE_MM = 1.0

# Of a volume, and of each of several classes in it.
MEASURED = ("dsc", "hd95_mm", "nsd")

# And of its slices: all of them, where an empty one that is found empty counts 1, and those with
# foreground.
METRICS = (*MEASURED, "slices_dsc", "foreground_slices_dsc")

_TITLES = {
    "dsc": "Dice in 3-D (%)",
    "hd95_mm": "HD95 (mm)",
    "nsd": f"Surface Dice at {TOLERANCE_MM:g} mm (%)",
    "slices_dsc": "Dice of slices (%)",
    "foreground_slices_dsc": "of those with foreground (%)",
}


@dataclass(frozen=True)
class VolumeMetrics:
    """How well a predicted volume matches its truth.

    `dsc` and `nsd`, the normalised surface Dice at `TOLERANCE_MM`, lie in [0, 1] and are 1 if both
    are empty; `hd95_mm` is 0 then. Where exactly one is empty, the first two are 0, and the
    volume's diagonal stands in for a distance.
    """

    dsc: float
    hd95_mm: float
    nsd: float
    empty_prediction: bool


def volume_metrics(
    prediction: np.ndarray,
    truth: np.ndarray,
    spacing: Sequence[float],
    counted: np.ndarray | None = None,
) -> VolumeMetrics:
    """Compares two volumes of one shape, bool (D, H, W), whose voxels have these sides, mm.

    Dice and HD95 are MedPy's, surface Dice MONAI's. Uncounted voxels are of neither.
    """
    if prediction.shape != truth.shape or prediction.ndim != 3:
        raise ValueError(
            f"volumes of shapes {prediction.shape} and {truth.shape} cannot be compared"
        )
    if counted is not None:
        prediction, truth = prediction & counted, truth & counted
    empty = not prediction.any()
    if empty and not truth.any():
        return VolumeMetrics(1.0, 0.0, 1.0, True)
    if empty or not truth.any():
        diagonal = float(np.linalg.norm(np.multiply(truth.shape, spacing)))
        return VolumeMetrics(0.0, diagonal, 0.0, empty)
    return VolumeMetrics(
        dsc=float(binary.dc(prediction, truth)),
        hd95_mm=float(binary.hd95(prediction, truth, voxelspacing=tuple(spacing))),
        nsd=_surface_dice(prediction, truth, spacing),
        empty_prediction=False,
    )


def _surface_dice(prediction: np.ndarray, truth: np.ndarray, spacing: Sequence[float]) -> float:
    from monai.metrics import compute_surface_dice  # takes seconds

    both = [torch.from_numpy(np.ascontiguousarray(one))[None, None] for one in (prediction, truth)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # what MONAI has to say to itself
        found = compute_surface_dice(
            *both, [TOLERANCE_MM], include_background=True, spacing=list(map(float, spacing))
        )
    return float(found[0, 0])


def score_volumes(
    probabilities: np.ndarray, dataset: PreparedDataset, folder: Path, threshold: float = 0.5
) -> pd.DataFrame:
    """Metrics of every volume of a split, given the soft masks of its slices, (N, S, S) in [0, 1].

    Each slice is resized to its own size before the threshold, as in prediction. One row a volume:
    id, slices, the fields of `VolumeMetrics`, the mean Dice of its slices at the run's size (see
    `METRICS`; NaN where none has foreground), true and predicted volume in ml, and data_hash. Of
    several classes, with soft masks (N, K, S, S), metrics are means over all of them, volumes are
    of all together, and columns such as `dsc:liver` have each class; one that is neither there nor
    found counts as two empty masks do.

    Raises:
        InputError: the folder holds no volumes, or a truth is not what its slices were made of.
    """
    volumes = load_volumes(folder)
    if volumes is None:
        raise InputError(f"{folder} was prepared from pictures: only volumes have scores in 3-D.")
    places = {id: place for place, id in enumerate(dataset.ids)}
    flat = score_split(probabilities, dataset, threshold)
    rows = []
    for volume in volumes.to_dict("records"):
        ids = [slice_id(volume["id"], number) for number in range(volume["slices"])]
        if ids[0] in places:
            slices = [places[id] for id in ids]
            row = _score(volume, slices, probabilities[slices], dataset, folder, threshold)
            dice, area = (flat[name].to_numpy()[slices] for name in ("dsc", "true_area"))
            row["slices_dsc"] = dice.mean()
            row["foreground_slices_dsc"] = dice[area > 0].mean() if (area > 0).any() else np.nan
            rows.append(row)
    return pd.DataFrame(rows).assign(data_hash=dataset.data_hash)


def _score(
    volume: Mapping[str, Any],
    slices: Sequence[int],
    soft: np.ndarray,
    dataset: PreparedDataset,
    folder: Path,
    threshold: float,
) -> dict[str, Any]:
    truth = open_truth(folder, volume["id"], volume["plane"])
    numbers = list(truth.numbers)  # of the slices of the view
    if len(truth) != len(slices) or not all(
        np.array_equal(
            resize_mask(truth.voxels[place], dataset.image_size),
            dataset[slices[number]]["mask"][0].numpy(),
        )
        for place, number in enumerate(numbers)
    ):
        raise InputError(
            f"{folder / 'volumes' / volume['id']}.nii.gz is not what its slices were made of: run "
            "the prepare stage again."
        )
    several = torch.from_numpy(soft[numbers] if dataset.classes else soft[numbers][:, None])
    resized = functional.interpolate(several, truth.shape[1:], mode="bilinear", antialias=True)
    prediction = label_map(resized.clamp(0, 1).numpy(), threshold)
    classes, spacing = len(dataset.classes) or 1, (truth.thickness, *truth.spacing)
    counted = truth.voxels <= classes
    of_classes = [
        _compare(prediction == number, truth.voxels == number, spacing, counted)
        for number in range(1, classes + 1)
    ]
    together = {"dsc": np.mean, "hd95_mm": np.mean, "nsd": np.mean, "empty_prediction": all}
    together |= {"true_ml": sum, "predicted_ml": sum}
    row = {"id": volume["id"], "slices": len(truth)}
    row |= {key: join([one[key] for one in of_classes]) for key, join in together.items()}
    for key in (*MEASURED, "true_ml", "predicted_ml"):
        for name, one in zip(dataset.classes, of_classes, strict=False):
            row[f"{key}:{name}"] = one[key]
    return row


def _compare(
    prediction: np.ndarray, truth: np.ndarray, spacing: Sequence[float], counted: np.ndarray
) -> dict[str, Any]:
    """The fields of `VolumeMetrics`, and both volumes in ml."""
    voxel = float(np.prod(spacing)) / 1000
    return {
        **asdict(volume_metrics(prediction, truth, spacing, counted)),
        "true_ml": float((truth & counted).sum()) * voxel,
        "predicted_ml": float((prediction & counted).sum()) * voxel,
    }


def score_models(
    models: Path,
    test_set: PreparedDataset,
    folder: Path,
    variants: Sequence[str],
    seeds: Sequence[int],
    evaluation: EvaluationParams,
) -> pd.DataFrame:
    """The rows of `score_volumes` of all models of a dataset, each with what it was made from.

    `test_set` is of `PreparedDataset.to_test`: with folds, each volume is scored by the model that
    did not see it. Empty where the dataset is of pictures.
    """
    if load_volumes(folder) is None:
        return pd.DataFrame()
    parts = []
    for variant, seed in product(variants, seeds):
        place = models / variant / f"seed_{seed}"
        card = read_card(place)
        soft = predict_unseen(place, test_set, evaluation.decoder)
        scores = score_volumes(soft, test_set, folder, evaluation.threshold)
        origin = origin_of(card, folder.name)
        parts.append(scores.assign(**origin)[[*origin, *scores.columns]])
    return pd.concat(parts, ignore_index=True)


def summarize_models(scores: pd.DataFrame, resamples: int, seed: int) -> pd.DataFrame:
    """One row a network and metric: mean over volumes, each averaged over the seeds, and interval.

    Of several classes, further metrics such as `dsc:liver` are each's. Empty for no scores.
    """
    of_classes = [f"{metric}:{name}" for name in classes_in(scores) for metric in MEASURED]
    metrics, tables = [*METRICS, *of_classes], {}
    for variant, rows in scores.groupby("variant", sort=False) if len(scores) else ():
        per_volume = rows.groupby("id", sort=False)[metrics].mean().reset_index()
        found = summarize(per_volume, resamples, seed, metrics)
        tables[title_of(variant)] = found.rename(columns={"images": "volumes"})
    if not tables:
        return pd.DataFrame()
    return pd.concat(tables, names=["system"]).reset_index("system").reset_index(drop=True)


def readable_models(summary: pd.DataFrame) -> pd.DataFrame:
    """What `summarize_models` gives, one row a network, in percent and mm, with intervals.

    Of several classes, the means over them come first, then a row for each.
    """
    if summary.empty:
        return summary
    summary = summary.assign(**{"class": summary["metric"].str.partition(":")[2]})
    several = summary["class"].any()
    rows = []
    for (system, name), part in summary.groupby(["system", "class"], sort=False):
        row = {"System": system, **({"Class": name or "mean"} if several else {})}
        row["Volumes"] = part["volumes"].iloc[0]
        for one in part.itertuples():
            metric = one.metric.partition(":")[0]
            share, digits = (1, 2) if metric == "hd95_mm" else (100, 1)
            mean, low, high = (share * value for value in (one.mean, one.ci_low, one.ci_high))
            row[_TITLES[metric]] = f"{mean:.{digits}f} ({low:.{digits}f} – {high:.{digits}f})"
        rows.append(row)
    return pd.DataFrame(rows).fillna("–")


def compare_models(scores: pd.DataFrame, resamples: int, seed: int) -> pd.DataFrame:
    """Compares every network with the first, volume by volume, as `compare_variants` does images.

    By `MEASURED`; of several classes by the means over them. Empty where there is one network.
    """
    if scores.empty:
        return pd.DataFrame()
    first, settings = scores["variant"].iloc[0], {"resamples": resamples, "seed": seed}
    compared = compare_variants(scores, first, metrics=MEASURED, **settings)
    return compared.rename(columns={"images": "volumes"})


def readable_compared(compared: pd.DataFrame) -> pd.DataFrame:
    """What `compare_models` gives as short texts: differences in percentage points and mm."""
    shown = readable_comparisons(compared.rename(columns={"volumes": "images"}), _TITLES)
    return shown.drop(columns=["Trained on", "Tested on"]).rename(columns={"Images": "Volumes"})
