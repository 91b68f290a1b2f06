"""From a trained pipeline and a prepared split to the metrics of each image."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from math import isnan, nan
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch.utils.data import Subset
from tqdm import tqdm

from wavegms.classes import label_map
from wavegms.data.dataset import PreparedDataset
from wavegms.data.windows import Stacks
from wavegms.errors import InputError, require_same
from wavegms.files import write_text
from wavegms.images import FOREGROUND, IGNORED
from wavegms.models.pipeline import WaveGMSPipeline, resize_probabilities
from wavegms.results.metrics import class_metrics, mask_metrics, mean_of, mean_of_classes
from wavegms.results.statistics import METRICS, ORIGINAL_METRICS, summarize_folds
from wavegms.training.card import ModelCard, card_hash
from wavegms.training.safeguards import computing_with, say
from wavegms.variants import Decoder


def predict_split(
    pipeline: WaveGMSPipeline, dataset: PreparedDataset | Subset, batch_size: int = 12
) -> np.ndarray:
    """Soft masks of a prepared split at the run's size: float32 (N, H, W) in [0, 1].

    Of several classes they are (N, K, H, W), see `WaveGMSPipeline.predict`. A 3-D network goes by
    windows over the volumes that the split is of, and refuses pictures. Computed in float32
    whatever was trained with: tf32, torch's own default on a card, is none.
    """
    classes = (dataset.dataset if isinstance(dataset, Subset) else dataset).classes
    way = "test it on a dataset of the same"
    require_same("the model", pipeline.classes, "the images have", classes, way)
    chunks = []
    computing_with("fp32", pipeline.device)
    if pipeline.depth > 1:
        return _predict_volumes(pipeline, Stacks.of(dataset))
    for start in tqdm(range(0, len(dataset), batch_size), desc="predicting", unit="batch"):
        stop = min(start + batch_size, len(dataset))
        images = torch.stack([dataset[index]["image"] for index in range(start, stop)])
        chunks.append(pipeline.predict(PreparedDataset.to_float(images)).cpu().numpy())
    soft_masks = np.concatenate(chunks)
    return soft_masks if pipeline.classes else soft_masks[:, 0]


def _predict_volumes(pipeline: WaveGMSPipeline, stacks: Stacks) -> np.ndarray:
    """As `predict_split`, by windows over each volume."""
    side, kinds = pipeline.config.image_size, (len(pipeline.classes),) * bool(pipeline.classes)
    soft_masks = np.empty((len(stacks.images), *kinds, side, side), np.float32)
    with tqdm(total=len(soft_masks), desc="predicting", unit="slice") as bar:
        for places, soft in stacks.predicted(pipeline.predict, pipeline.depth):
            soft_masks[places] = soft.cpu() if pipeline.classes else soft[:, 0].cpu()
            bar.update(len(places))
    return soft_masks


def score_mask(
    prediction: np.ndarray, truth: np.ndarray, counted: np.ndarray
) -> dict[str, float | bool]:
    """The fields of `MaskMetrics`, and the fraction of what is counted that each mask covers."""
    areas = {"true_area": truth[counted].mean(), "predicted_area": prediction[counted].mean()}
    return asdict(mask_metrics(prediction, truth, counted)) | areas


def score_split(
    probabilities: np.ndarray,
    dataset: PreparedDataset,
    threshold: float = 0.5,
    originals: bool = False,
) -> pd.DataFrame:
    """Metrics of every image of a split, given its soft masks, (N, H, W) in [0, 1].

    One row an image: id, label, with folds the one in which it is for testing, what `score_mask`
    gives, with `originals` also what `score_originals` does, and data_hash, of the prepared folder.
    A pixel belongs to the mask from the threshold on. Pixels to be ignored count nowhere. Of
    several classes see `score_classes`.
    """
    rows = []
    for index, soft_mask in enumerate(probabilities):
        mask = dataset[index]["mask"][0].numpy()
        about = {"id": dataset.ids[index], "label": dataset.labels[index]}
        if dataset.folds:
            about["fold"] = dataset.tested_in[index]
        if dataset.classes:
            scored = score_classes(label_map(soft_mask, threshold), mask, dataset.classes)
        else:
            scored = score_mask(soft_mask >= threshold, mask == FOREGROUND, mask != IGNORED)
        rows.append(about | scored)
    table = pd.DataFrame(rows)
    if originals:
        table = pd.concat([table, score_originals(probabilities, dataset, threshold)], axis=1)
    return table.assign(data_hash=dataset.data_hash)


def score_originals(
    probabilities: np.ndarray, dataset: PreparedDataset, threshold: float = 0.5
) -> pd.DataFrame:
    """The same at the original size of each image: `ORIGINAL_METRICS`, one row an image.

    As a pipeline does for its users, soft masks are resized and then cut at the threshold; the
    truth is the mask before preparation resized it. HD95 is in pixels of the original, and in mm
    where the image has a spacing, else NaN. All is NaN, and said, where a version before prepared
    the data. Of several classes they are the means over them, as in `score_classes`.
    """
    rows = []
    if not dataset.has_originals:
        say(
            "masks at their original size were not kept when these images were prepared: the "
            "columns *_original and hd95_mm stay empty, run the prepare stage again to fill them"
        )
        return pd.DataFrame(nan, range(len(dataset)), list(ORIGINAL_METRICS))
    spacings = dataset.manifest[["row_spacing", "column_spacing"]].itertuples(index=False)
    resizing = tqdm(zip(probabilities, spacings, strict=True), "scoring originals", len(dataset))
    for index, (soft_mask, (row, column)) in enumerate(resizing):
        mask = dataset.original_mask(index)
        several = soft_mask if dataset.classes else soft_mask[None]
        soft = resize_probabilities(torch.from_numpy(several), mask.shape)
        if dataset.classes:
            counted = mask <= len(dataset.classes)
            maps = label_map(soft, threshold) * counted, mask * counted, len(dataset.classes)
            compare = partial(mean_of_classes, *maps)
        else:
            compare = partial(mask_metrics, soft >= threshold, mask == FOREGROUND, mask != IGNORED)
        found = compare()
        if row == column or isnan(row + column):  # NaN differs from itself
            millimetres = found.hd95 * (row if row == column else nan)
        else:
            millimetres = compare(spacing=(row, column)).hd95
        rows.append((found.dsc, found.iou, found.hd95, millimetres))
    return pd.DataFrame(rows, columns=list(ORIGINAL_METRICS))


def score_classes(
    prediction: np.ndarray, truth: np.ndarray, classes: Sequence[str]
) -> dict[str, float | bool]:
    """As `score_mask`, of label maps (H, W): the means over the classes, and each class's own.

    Those of a class are named as `dsc:name`. Where it is in neither map there is nothing to score,
    and they are missing; if all are, the image is scored as one whose two masks are empty. The
    areas and `empty_prediction` are of all classes together.
    """
    counted = truth <= len(classes)
    scored = score_mask(prediction > 0, (truth > 0) & counted, counted)
    prediction = prediction * counted
    found = class_metrics(prediction, truth * counted, len(classes))
    mean = mean_of(found, not prediction.any())
    for metric in METRICS:
        values = {number: getattr(one, metric) for number, one in found.items()}
        scored[metric] = getattr(mean, metric)
        own = enumerate(classes, 1)
        scored |= {f"{metric}:{name}": values.get(number, np.nan) for number, name in own}
    return scored


def choose_cases(scores: Mapping[str, pd.DataFrame], wanted: Sequence[str] = ()) -> dict[str, str]:
    """Which images to show of several systems, by id with the reason: the wanted ones, or three.

    Those are the best, median and worst by Dice, averaged over the systems; of equal images the
    first in the split goes first, of an even number the better of the two middle ones is the
    median. A split of less than three images gives less than three.
    """
    dice = pd.concat(scores.values()).groupby("id", sort=False)["dsc"].mean()
    for id in wanted:
        if id not in dice:
            raise InputError(
                f"cases names {id}, which is no image of the test split: choose ids from it, such "
                f"as {dice.index[0]}, or leave cases empty."
            )
    if wanted:
        return dict.fromkeys(wanted, "")
    ranked = dice.sort_values(ascending=False, kind="stable").index
    cases: dict[str, str] = {}
    for why, place in (("best", 0), ("median", (len(ranked) - 1) // 2), ("worst", -1)):
        cases.setdefault(ranked[place], why)
    return cases


def origin_of(card: ModelCard, test_set: str) -> dict[str, Any]:
    """What scores are of, by column: of what model, with which setting, on which images."""
    shared = ("variant", "seed", "image_size", "epochs", "selection")
    values = {name: getattr(card, name) for name in shared} | {"card": card_hash(card)}
    return {"train_set": card.dataset, "test_set": test_set} | values


def write_scores(
    path: Path,
    scores: pd.DataFrame,
    summary: pd.DataFrame,
    card: ModelCard,
    test_set: str,
    decoder: Decoder = "exact",
) -> None:
    """Writes the metrics of each image as tidy CSV, and their summary beside it as JSON for DVC.

    Every row says what it was trained on and tested on, so files can be stacked, and which model
    it is of, by the hash of its card. Where the model was trained or scored with the fast decoder,
    the column `selection` says so as well, which all tables show, and how folds were used; and of
    a network that learnt by its published recipe.
    """
    origin = origin_of(card, test_set)
    trained = card.parameters.get("training", {}).get("decoder", "exact")
    if (trained, decoder) != ("exact", "exact"):
        origin["selection"] += f", trained with the {trained} and scored with the {decoder} decoder"
    if "recipe" in card.parameters:
        origin["selection"] += ", by its published recipe"
    if card.folds:
        number, fold = card.folds["number"], card.folds["fold"]
        at_home = "each image scored by the model that did not see it"
        each = at_home if test_set == card.dataset else "the mean of their models"
        whole = f"{number} folds, {each}"
        # the ablation and what else trains on one split takes the first
        part = f"fold {fold} of {number} alone"
        origin["selection"] += f", {whole if 'others' in card.folds else part}"
    table = scores.assign(**origin)[[*origin, *scores.columns]]
    write_text(path, table.to_csv(index=False, float_format="%.6f", lineterminator="\n"))
    # pandas writes the missing standard deviation of a single image as null, json as NaN
    metrics = json.loads(summary.set_index("metric").drop(columns="images").to_json(orient="index"))
    metrics["images"] = len(scores)
    metrics["empty_predictions"] = int(scores["empty_prediction"].sum())
    by_fold = summarize_folds(scores)
    if by_fold is not None:
        metrics["folds"] = json.loads(by_fold.to_json(orient="index"))
    write_text(path.with_suffix(".json"), json.dumps(metrics, indent=2) + "\n")
