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
from wavegms.results.statistics import summarize_audited
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
    """Finds what a model scored, and makes sure that it was this model that did.

    Raises:
        InputError: the folder holds no trained model, the weights are not those of its card, no
            scores or only another model's are there, or the audit of its data is missing.
    """
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
    file.
    """
    card, data = model.card, spec_of(model.card.dataset)
    parts = {
        name: _summarize(scores, model.leaks if name == data.name else None, evaluation, card.seed)
        for name, scores in model.scores.items()
    }
    own = parts[data.name]
    text = hub.ModelCard.from_template(
        _head(card, {name: part["all"] for name, part in parts.items()}),
        template_str=_TEMPLATE.read_text(encoding="utf-8"),
        title=variant_spec(card.variant).title,
        card=card,
        data=data,
        modality=_modality(data),
        simulated=data.modality.startswith("simulated"),
        shared=shared,
        scores=[
            _row(spec_of(name).title, part["all"])
            | {"empty": int(model.scores[name]["empty_prediction"].sum())}
            for name, part in parts.items()
        ],
        tested=own["all"].images.iloc[0],
        leaking=own["leaking"].images.iloc[0] if "leaking" in own else 0,
        audited=[_row(_PARTS[name], own[name]) for name in _PARTS if name in own],
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
    scores: pd.DataFrame, leaks: pd.DataFrame | None, evaluation: EvaluationParams, seed: int
) -> dict[str, pd.DataFrame]:
    """By the part of the test images what `summarize` gives, with the metrics as index."""
    if leaks is None:
        leaks = pd.DataFrame({"id_a": [], "id_b": [], "split_a": [], "crosses_split": []})
        leaks = leaks.astype({"crosses_split": bool})
    table = summarize_audited(scores, leaks, evaluation.bootstrap_resamples, seed, _METRICS)
    return {name: part.set_index("metric") for name, part in table.groupby("images_used")}


def _row(name: str, summary: pd.DataFrame) -> dict[str, Any]:
    return {"name": name, "images": summary["images"].iloc[0]} | {
        metric: shown_interval(summary.loc[metric], percent=metric != "hd95") for metric in _METRICS
    }


def shown_interval(summary: Mapping[str, float], percent: bool) -> str:
    """A mean and its interval, such as "89.7 (85.3 – 92.6)", of mean, ci_low and ci_high."""
    scale = 100 if percent else 1
    mean, low, high = (scale * summary[name] for name in ("mean", "ci_low", "ci_high"))
    return f"{mean:.1f} ({low:.1f} – {high:.1f})"


def _head(card: ModelCard, summaries: Mapping[str, pd.DataFrame]) -> hub.ModelCardData:
    names = {"dsc": ("dice", "DSC"), "iou": ("mean_iou", "IoU"), "hd95": ("hd95", "HD95, pixels")}
    results = [
        hub.EvalResult(
            task_type="image-segmentation",
            dataset_type=name,
            dataset_name=spec_of(name).title,
            dataset_split="test",
            metric_type=names[metric][0],
            metric_name=names[metric][1],
            metric_value=round(float(summary.loc[metric, "mean"]), 4),
        )
        for name, summary in summaries.items()
        for metric in _METRICS
    ]
    data = spec_of(card.dataset)
    return hub.ModelCardData(
        library_name="wavegms",
        pipeline_tag="image-segmentation",
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
    yield "epoch", f"{card.best_epoch} of {card.epochs}, {card.selection}"
    yield "seed", card.seed
    training = card.parameters.get("training", {})
    batch_size = variant_spec(card.variant).batch_size_or(training.get("batch_size"))
    for name, value in (training | {"batch_size": batch_size}).items():
        if name in ("batch_size", "learning_rate", "weight_decay", "warmup_epochs"):
            yield name.replace("_", " "), value
    for name in ("augmentation", "loss"):
        if section := training.get(name) or card.parameters.get(name):
            yield name, _listed(section)
    if card.precision:
        yield "precision", card.precision
    yield "libraries", _listed(card.versions)
    yield "SHA-256 of the data's manifest", f"`{card.data_hash}`"
    yield "SHA-256 of the weights", f"`{card.weights}`"


def _listed(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in values.items())


def _described(spec: DatasetSpec) -> dict[str, str]:
    known = SOURCES.get(spec.name)
    terms = known.terms if known else spec.licence
    source = known.page if known else spec.source
    if spec.name not in CATALOG:  # "your own" is true for the one who trained only
        terms, source = "not stated", "a folder of the one who trained this model"
    return {"title": spec.title, "modality": _modality(spec), "terms": terms, "source": source}


def _autoencoder(card: ModelCard) -> str:
    """Where the frozen autoencoder came from, whose weights are part of the model."""
    if not card.autoencoder:
        return ""
    source, origin = card.autoencoder["source"], card.autoencoder["origin"]
    if source == "train":
        return (
            "The frozen autoencoder, whose weights are part of this model, was trained on the same "
            "training images."
        )
    # a folder is named as on the disk of the one who trained
    name = Path(origin).name if source == "path" else origin
    known = {
        "madebyollin/taesd": "TAESD by Ollin Boer Bohan, under the MIT licence",
        "stabilityai/sd-vae-ft-mse": "Stability AI's, under the MIT licence",
    }.get(name, "see there for its licence; that of TAESD is MIT")
    return (
        f"The frozen autoencoder, whose weights are part of this model, is `{name}` ({known}). A "
        "copy must keep that licence's notice."
    )
