"""What the explorer says and shows of a case: captioned pictures, scores, lines of a table."""

from collections.abc import Mapping, Sequence
from html import escape
from math import isnan
from typing import NamedTuple

import numpy as np
import torch

from wavegms.explore.cases import Band, Case, Workbench, attenuate, compare, mask_of
from wavegms.explore.pictures import (
    FOUND,
    MISSED,
    MISTAKEN,
    WRONG,
    Picture,
    as_html,
    legend,
    outline,
    paint_errors,
    shade,
)
from wavegms.figures.colours import PREDICTION, TRUTH
from wavegms.models.wavelet import SUB_BANDS, multi_level_bands
from wavegms.training.publish import PublishedModel

_SORT_KEYS = {
    "Dice": "dsc",
    "IoU": "iou",
    "HD95": "hd95",
    "HD95, 0 if a mask is empty": "hd95_zero_if_empty",
    "size of the true region": "true_area",
    "size of the prediction": "predicted_area",
    "name": "id",
}

_LEVEL_NAMES = {1: "fine", 2: "middle", 3: "coarse"}

# Pixels on the screen; four in a row fit beside JupyterLab's list of files at 1400.
_CASE_SIDE, _DEPTH_SIDE, _FILTERED_SIDE, _BAND_SIDE = 228, 220, 190, 56


class Panel(NamedTuple):
    """The upper part of the explorer, as HTML."""

    heading: str  # which image this is
    pictures: str  # image, truth, prediction and errors
    metrics: str  # how well the two masks agree


def model_label(model: PublishedModel) -> str:
    """A model's name for a list: what it was trained on, what it is, and its seed."""
    place, name = model.folder.parents[1].name, model.folder.parent.name
    ablation = " (ablation)" if model.folder.parents[2].name == "ablation" else ""
    kept = f" ({name})" if place == "kept" else ""
    return f"{model.card.dataset}: {model.title}, seed {model.card.seed}{ablation}{kept}"


def band_label(band: Band) -> str:
    """A sub-band's name for a slider, such as "fine, horizontal"."""
    level, name = band
    return "all that is coarser" if name == SUB_BANDS[0] else f"{_LEVEL_NAMES[level]}, {name}"


def show_case(bench: Workbench, case: Case, threshold: float) -> Panel:
    """The case as it is, as it should be segmented, as it was, and the difference."""
    soft = bench.soft_mask(case)
    prediction = mask_of(soft, threshold)
    cover = f"{_percent(prediction)} of the image"
    several = list(bench.colours.values())
    shown = Picture(
        outline(_shade(bench, soft), prediction, classes=several),
        "Prediction",
        f"Probability of each pixel in {'the colours of classes' if several else 'grey'}, with the "
        f"outline of the prediction, {cover}.",
        f"<br>≥ {threshold:.2f} against the background{_areas(bench, prediction)}"
        if several
        else legend(PREDICTION, f"≥ {threshold:.2f}: {_percent(prediction)} of area"),
    )
    image = Picture(case.picture, "Image", f"The image {case.name}.")
    if case.truth is None:
        both = outline(case.picture, prediction, classes=several)
        outlined = Picture(both, "Image and prediction", "The image with the predicted outline.")
        pictures = [image, outlined, shown]
        metrics = f"<span>The prediction covers {cover}. There is no true mask to compare.</span>"
    else:
        errors = compare(prediction * case.counted, case.truth)
        truth = Picture(
            outline(case.picture, case.truth, TRUTH, several),
            "Truth",
            f"The image with the outline of the true region, {_percent(case.truth)} of it.",
            _areas(bench, case.truth)
            or legend(TRUTH, f"true region: {_percent(case.truth)} of area"),
        )
        found, wrong, missed, mistaken = (int(part.sum()) for part in errors)
        painted = Picture(
            paint_errors(case.picture, errors),
            "Errors",
            f"{found} pixels found, {wrong} wrongly marked, {missed} missed"
            f"{f', {mistaken} taken for another class' if several else ''}.",
            legend(FOUND, f"found: {found} px (true positive)")
            + legend(WRONG, f"wrong: {wrong} px (false positive)")
            + legend(MISSED, f"missed: {missed} px (false negative)")
            + (legend(MISTAKEN, f"another class: {mistaken} px") if several else ""),
        )
        pictures = [image, truth, shown, painted]
        metrics = _metrics(bench, bench.score(prediction, case.truth, case.counted))
    label = f" · {escape(case.label)}" if case.label else ""
    history = escape(_history(bench, case))
    return Panel(
        f'<b>{escape(case.name)}</b>{label} <span class="note">· {history}</span>',
        as_html(pictures, _CASE_SIDE),
        f'<div class="metrics" aria-live="polite">{metrics}</div>',
    )


def show_depths(bench: Workbench, case: Case, threshold: float) -> str:
    """The masks at the four supervised depths, as HTML."""
    masks = bench.depths(case)
    if not masks:
        return _note("This network has no latents, and so no supervised depths.")
    pictures = []
    several = list(bench.colours.values())
    for depth, soft in enumerate(masks, 1):
        prediction = mask_of(soft, threshold)
        score = _dice(bench, case, prediction)
        end = {1: ", the deepest", len(masks): ", the prediction"}.get(depth, "")
        text = f"The soft mask of depth {depth}, with its outline. {score}"
        drawn = outline(_shade(bench, soft), prediction, classes=several)
        pictures.append(Picture(drawn, f"Depth {depth}{end}", text, f"<br>{score}"))
    text = (
        "The latent mapping model gives a mask at each of its four depths. Training supervises all "
        "of them; the last one is the prediction."
    )
    return _note(text) + as_html(pictures, _DEPTH_SIDE)


def show_filtered(
    bench: Workbench, case: Case, threshold: float, kept: Mapping[Band, float]
) -> str:
    """What is left of an image when only shares of its bands are kept, and its prediction."""
    pixels = attenuate(case.pixels, kept)
    before = mask_of(bench.soft_mask(case), threshold)
    after = mask_of(bench.predict(pixels, case), threshold)
    left = np.round(pixels[0].movedim(0, -1).numpy() * 255).astype(np.uint8)
    # an uploaded image has proportions of its own, which the network does not see
    ground = case.picture if case.index is None else left
    changes, several = compare(after, before), list(bench.colours.values())
    same, new, gone, other = (int(part.sum()) for part in changes)
    score, earlier = _dice(bench, case, after), _dice(bench, case, before)
    compared = f"<br>{score}, {earlier.removeprefix('Dice ')} before" if score else ""
    pictures = [
        Picture(left, "What is left", "The image with its bands as the sliders say."),
        Picture(
            outline(ground, after, classes=several),
            "Its prediction",
            f"The same with the outline of its prediction. {score}",
            compared + _areas(bench, after),
        ),
        Picture(
            paint_errors(ground, changes),
            "What changed",
            f"{same} pixels as before, {new} new, {gone} gone"
            f"{f', {other} of another class' if several else ''}.",
            legend(FOUND, f"as before: {same} px")
            + legend(WRONG, f"new: {new} px")
            + legend(MISSED, f"gone: {gone} px")
            + (legend(MISTAKEN, f"another class: {other} px") if several else ""),
        ),
    ]
    text = (
        "Each slider keeps a share of one Haar sub-band, in percent. What is left of the image "
        "goes through the model again: the more a prediction changes, the more it rests on it."
    )
    return _note(text) + as_html(pictures, _FILTERED_SIDE)


def show_bands(case: Case, kept: Mapping[Band, float]) -> dict[Band, str]:
    """A small picture of each sub-band, as much of it as is kept, as HTML.

    Details lie around mid-grey, each stretched to the largest value of the whole band.
    """
    levels, shown = multi_level_bands(case.pixels), {}
    for band, share in kept.items():
        level, name = band
        values = levels[level - 1][0].split(3)[SUB_BANDS.index(name)]
        if name == SUB_BANDS[0]:
            pixels = (values * share).movedim(0, -1).clamp(0, 1).numpy() * 255
            pixels = pixels.astype(np.uint8)
        else:
            grey = values.mean(0).numpy()
            peak = max(np.abs(grey).max(), 1e-6)
            pixels = shade((grey * share / (2 * peak) + 0.5).clip(0, 1))
        shown[band] = Picture(pixels, "", f"sub-band {band_label(band)}").html(_BAND_SIDE)
    return shown


def sort_keys(classes: Sequence[str] = ()) -> dict[str, str]:
    """What a table can be sorted by: for a reader, and the column of `Workbench.rows`."""
    return _SORT_KEYS | {f"Dice of {name}": f"dsc:{name}" for name in classes}


def sort_rows(rows: Sequence[dict], column: str, highest_first: bool) -> list[dict]:
    """Rows of `Workbench.rows` by a column; equal ones stay in the split's order.

    Those without a value, where an image has nothing of a class, are the last.
    """
    known = [row for row in rows if row[column] == row[column]]
    missing = [row for row in rows if row[column] != row[column]]
    return sorted(known, key=lambda row: row[column], reverse=highest_first) + missing


def table_lines(rows: Sequence[dict]) -> tuple[str, list[str]]:
    """The head and the lines of a table of `Workbench.rows`, in letters of equal width.

    Of several classes each has a column for its Dice.
    """
    several = [key for key in rows[0] if key.startswith("dsc:")] if rows else []
    columns = ["Dice", "IoU", "HD95 px", "HD95 or 0", "true %", "predicted %"]
    columns += [key.replace("dsc:", "Dice ") for key in several]
    widths = [max(13, 2 + len(column)) for column in columns]
    names = max([len(row["id"]) for row in rows] + [len("image")])
    labels = max(len(row["label"]) for row in rows) if rows else 0
    labels = max(labels, len("class")) if labels else 0

    def line(name: str, label: str, *values: str) -> str:
        first = f"{name:<{names}}  {label:<{labels}}" if labels else f"{name:<{names}}"
        # a list on a page would swallow usual spaces
        rest = "".join(f"{text:>{width}}" for text, width in zip(values, widths, strict=True))
        return f"{first}{rest}".replace(" ", "\u00a0")

    lines = [
        line(
            row["id"],
            row["label"],
            f"{row['dsc']:.3f}",
            f"{row['iou']:.3f}",
            f"{row['hd95']:.1f}",
            f"{row['hd95_zero_if_empty']:.1f}",
            f"{100 * row['true_area']:.1f}",
            f"{100 * row['predicted_area']:.1f}",
            *("–" if isnan(row[key]) else f"{row[key]:.3f}" for key in several),
        )
        for row in rows
    ]
    return line("image", "class", *columns), lines


def _history(bench: Workbench, case: Case) -> str:
    """What the model had to do with the image before: how far to trust its score."""
    card = bench.model.card
    if case.index is None:
        return f"your own image, the model was trained on {card.dataset}"
    if card.dataset != bench.dataset:
        return f"the model was trained on {card.dataset}, another source"
    if card.data_hash != bench.data.data_hash:
        return "prepared anew since the model was trained, which may have learned from it"
    chosen = "it took part in choosing the model's epoch, so its score is optimistic"
    learned = "the model learned from this image, so its score says little"
    # of an ablation there is the model of the first fold alone
    if bench.fold_of(case) > 1 and "others" not in card.folds:
        return learned
    if card.selection == "best_on_test":
        return chosen if bench.split == "test" else learned
    unseen = "the model has not seen this image before"
    return {"train": learned, "val": chosen, "test": unseen}[bench.split]


def _metrics(bench: Workbench, scores: Mapping[str, float]) -> str:
    """The scores of an image, and of several classes those of each below their means."""
    means = (
        f'<span>Dice <b class="dice">{scores["dsc"]:.3f}</b></span>'
        f"<span>IoU <b>{scores['iou']:.3f}</b></span>"
        f"<span>HD95 <b>{scores['hd95']:.1f}</b> px</span>"
    )
    if not bench.colours:
        return means
    lines = []
    for name, colour in bench.colours.items():
        dsc, iou, hd95 = (scores[f"{metric}:{name}"] for metric in ("dsc", "iou", "hd95"))
        said = f"Dice {dsc:.3f}, IoU {iou:.3f}, HD95 {hd95:.1f} px"
        lines.append(legend(colour, f"{name}: {'neither here nor found' if isnan(dsc) else said}"))
    return f"{means}<span>means of{''.join(lines)}</span>"


def _areas(bench: Workbench, mask: np.ndarray) -> str:
    """What the colours of several classes mean, and how much of the image each is."""
    named = enumerate(bench.colours.items(), 1)
    return "".join(
        legend(colour, f"{name}: {_percent(mask == number)} of area")
        for number, (name, colour) in named
    )


def _shade(bench: Workbench, soft: np.ndarray) -> np.ndarray:
    if soft.ndim == 2:
        return shade(soft)
    mixed = bench.pipeline.palette.mix(torch.from_numpy(soft)[None])[0]
    return np.round(mixed.movedim(0, -1).numpy() * 255).astype(np.uint8)


def _dice(bench: Workbench, case: Case, prediction: np.ndarray) -> str:
    if case.truth is None:
        return ""
    return f"Dice {bench.score(prediction, case.truth, case.counted)['dsc']:.3f}"


def _percent(mask: np.ndarray) -> str:
    return f"{100 * (mask > 0).mean():.1f} %"


def _note(text: str) -> str:
    return f'<p class="note">{text}</p>'
