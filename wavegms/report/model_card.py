"""The card of a trained model for people: a README.md as the Hugging Face hub shows it."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import huggingface_hub as hub
import pandas as pd

from wavegms.config import EvaluationParams
from wavegms.data.catalog import CATALOG, SOURCES, DatasetSpec, spec_of
from wavegms.data.manifest import read_audit
from wavegms.errors import InputError
from wavegms.results.statistics import summarize_audited, summarize_classes
from wavegms.results.tables import read_scores
from wavegms.training.card import CARD_NAME, ModelCard, card_hash, read_card
from wavegms.variants import variant_spec

_TEMPLATE = Path(__file__).with_name("model_card.md.j2")

_METRICS = ("dsc", "iou", "hd95")

# Of `summarize_audited`.
_PARTS = {"all": "all", "clean": "without a twin", "leaking": "with one"}


@dataclass(frozen=True)
class ScoredModel:
    """A trained model with what it scored.

    `scores` has the metrics of each image by test set, the one it was trained on first; `leaks` are
    the pairs of alike images of the audit.
    """

    folder: Path
    card: ModelCard
    scores: Mapping[str, pd.DataFrame]
    leaks: pd.DataFrame


def read_scored_model(folder: Path, project: Path = Path(".")) -> ScoredModel:
    """Finds what a model scored; an `InputError` says what is missing or of another model."""
    card = read_card(folder)
    found = {}
    for results in (project / "results/scores", project / "results/ablation"):
        # without an ablation, its folder is empty
        if any(results.rglob("*.csv")):
            scores = read_scores(results)
            own = scores[scores["card"] == card_hash(card)]
            found |= dict(iter(own.groupby("test_set", sort=False)))
    if card.dataset not in found:
        raise InputError(
            f"results/ holds no scores on the test images of {card.dataset} that were measured "
            f"with the model in {folder}, by the hash of its {CARD_NAME}: run `dvc repro`"
        )
    scores = {card.dataset: found.pop(card.dataset)} | found
    leaks = read_audit(project / f"reports/audit/{card.dataset}.csv")
    return ScoredModel(Path(folder), card, scores, leaks)


def render_model_card(
    model: ScoredModel, evaluation: EvaluationParams, *, shared: bool = False
) -> str:
    """Describes a model in Markdown with a head of YAML, as the Hugging Face hub reads it.

    It names no licence: that is for the one who publishes to choose. A shared model has an ONNX
    file. What is shown to open it decodes as its scores were made.
    """
    card, data = model.card, spec_of(model.card.dataset)
    audits = {data.name: model.leaks}  # others were not compared with these training images
    parts = {
        name: _summarize(scores, audits.get(name, model.leaks[:0]), evaluation, card.seed)
        for name, scores in model.scores.items()
    }
    own = parts[data.name]
    between = card.parameters.get("volumes", {}).get("context", "none") != "none"
    text = hub.ModelCard.from_template(
        _head(card, {name: part["all"] for name, part in parts.items()}),
        template_str=_TEMPLATE.read_text(encoding="utf-8"),
        title=variant_spec(card.variant).title,
        card=card,
        data=data,
        modality=_modality(data),
        simulated=data.modality.startswith("simulated"),
        shared=shared,
        fast=bool(card.autoencoder) and evaluation.decoder == "fast",
        classes=", ".join(card.parameters.get("classes", [])),
        channels="the slices below, at and above" if between else "RGB",
        scores=[
            {"name": spec_of(name).title, "empty": model.scores[name]["empty_prediction"].sum()}
            | shown_scores(part["all"])
            for name, part in parts.items()
        ],
        of_classes=[
            {"name": spec_of(name).title, "class": class_name} | shown_scores(part)
            for name, scores in model.scores.items()
            for class_name, part in _by_class(scores, evaluation, card.seed)
        ],
        tested=own["all"].images.iloc[0],
        leaking=own["leaking"].images.iloc[0] if "leaking" in own else 0,
        audited=[
            {"name": title} | shown_scores(own[part])
            for part, title in _PARTS.items()
            if part in own
        ],
        training=list(_training(card)),
        sources=[_described(spec_of(name)) for name in model.scores],
        private=" and ".join(not_to_be_passed_on(model.scores)),
        autoencoder=_autoencoder(card),
    )
    return f"{text}\n"


def not_to_be_passed_on(datasets: Iterable[str]) -> list[str]:
    """The titles of those datasets whose images nobody may hand to others."""
    specs = map(spec_of, datasets)
    return [spec.title for spec in specs if "no copy may be passed on" in spec.licence]


def _summarize(
    scores: pd.DataFrame, leaks: pd.DataFrame, evaluation: EvaluationParams, seed: int
) -> dict[str, pd.DataFrame]:
    """By the part of the test images what `summarize` gives, with the metrics as index."""
    table = summarize_audited(scores, leaks, evaluation.bootstrap_resamples, seed, _METRICS)
    return {name: part.set_index("metric") for name, part in table.groupby("images_used")}


def _by_class(
    scores: pd.DataFrame, evaluation: EvaluationParams, seed: int
) -> Iterator[tuple[str, pd.DataFrame]]:
    """What `summarize_classes` gives, class by class, with the metrics as index."""
    table = summarize_classes(scores, evaluation.bootstrap_resamples, seed)
    for name, part in table.groupby("class", sort=False):
        yield name, part.set_index("metric")


def shown_scores(summary: pd.DataFrame) -> dict[str, Any]:
    """Number of images, and by metric the mean with its interval, such as "89.7 (85.3 – 92.6)".

    Of a summary with the metrics as index; shares are in percent.
    """
    shown = {"images": summary["images"].iloc[0]}
    for metric in _METRICS:
        scale = 1 if metric == "hd95" else 100
        mean, low, high = scale * summary.loc[metric, ["mean", "ci_low", "ci_high"]]
        shown[metric] = f"{mean:.1f} ({low:.1f} – {high:.1f})"
    return shown


def _head(card: ModelCard, summaries: Mapping[str, pd.DataFrame]) -> hub.ModelCardData:
    names = {"dsc": ("dice", "DSC"), "iou": ("mean_iou", "IoU"), "hd95": ("hd95", "HD95, pixels")}
    task, data = "image-segmentation", spec_of(card.dataset)
    results = [
        hub.EvalResult(
            task_type=task,
            dataset_type=name,
            dataset_name=spec_of(name).title,
            dataset_split="test",
            metric_type=kind,
            metric_name=title,
            metric_value=round(float(summary.loc[metric, "mean"]), 4),
        )
        for name, summary in summaries.items()
        for metric, (kind, title) in names.items()
    ]
    return hub.ModelCardData(
        library_name="wavegms",
        pipeline_tag=task,
        tags=["wave-gms", "medical", "segmentation", *filter(None, [_modality(data)])],
        datasets=[card.dataset],
        metrics=["dice", "mean_iou"],
        model_name=f"{variant_spec(card.variant).title}, {data.title}",
        eval_results=results,
    )


def _modality(data: DatasetSpec) -> str:
    """The kind of its images; nothing for a folder of one's own."""
    return data.modality if data.name in CATALOG else ""


def _training(card: ModelCard) -> Iterator[tuple[str, Any]]:
    yield "images", f"{card.train_images} to train, {card.selection_images} to choose the epoch"
    if card.folds:
        yield (
            "folds",
            f"{card.folds['number']}, of which this model is of number {card.folds['fold']}",
        )
    yield "epoch", f"{card.best_epoch} of {card.epochs}, {card.selection}"
    if classes := card.parameters.get("classes"):
        yield "classes", f"{', '.join(classes)}; scores are means over them"
    yield "seed", card.seed
    training = card.parameters.get("training", {})
    batch_size = variant_spec(card.variant).batch_size_or(training.get("batch_size"))
    for name, value in (training | {"batch_size": batch_size}).items():
        if name in ("batch_size", "learning_rate", "weight_decay", "warmup_epochs"):
            yield name.replace("_", " "), value
    if recipe := card.parameters.get("recipe"):
        yield "published recipe", _listed(recipe)
    for name in ("volumes", "augmentation", "loss"):
        if section := training.get(name) or card.parameters.get(name):
            yield name, _listed(section)
    if training.get("decoder", "exact") != "exact":
        yield "decoder", training["decoder"]
    if card.precision:
        yield "precision", card.precision
    yield "libraries", _listed(card.versions)
    yield "SHA-256 of the data's manifest", f"`{card.data_hash}`"
    yield "SHA-256 of the weights", f"`{card.weights}`"


def _listed(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in values.items())


def _described(spec: DatasetSpec) -> dict[str, str]:
    terms, source = spec.licence, spec.source
    if known := SOURCES.get(spec.name):
        terms, source = known.terms, known.page
    elif spec.name not in CATALOG:  # "your own" is true for the one who trained only
        terms, source = "not stated", "a folder of the one who trained this model"
    return {"title": spec.title, "modality": _modality(spec), "terms": terms, "source": source}


def _autoencoder(card: ModelCard) -> str:
    """Where the frozen autoencoder came from, whose weights are part of the model."""
    if not card.autoencoder:
        return ""
    source, origin = card.autoencoder["source"], card.autoencoder["origin"]
    if source == "train":
        if start := origin.get("start_from"):
            return (
                "The frozen autoencoder, whose weights are part of this model, began from "
                f"`{start}`, which was trained on drawn pictures alone; where masks did not yet "
                "come back well enough, it was trained further on the same training images."
            )
        return (
            "The frozen autoencoder, whose weights are part of this model, was trained on the same "
            "training images."
        )
    # a folder is named as on the disk of the one who trained
    name = Path(origin).name if source == "path" else origin
    tiny = ("taesd", "taesdxl", "taesd3", "taef1", "taef2")
    known = {
        f"madebyollin/{one}": f"{one.upper()} by Ollin Boer Bohan, under the MIT licence"
        for one in tiny
    } | {"stabilityai/sd-vae-ft-mse": "Stability AI's, under the MIT licence"}
    terms = known.get(name, "see there for its licence; that of TAESD is MIT")
    return (
        f"The frozen autoencoder, whose weights are part of this model, is `{name}` ({terms}). A "
        "copy must keep that licence's notice."
    )
