"""The long part, in a process of its own: the paper's training, then the scores of two epochs."""

import json
import platform
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch
import yaml

from wavegms.config import LossParams, ModelParams, TrainingParams
from wavegms.data.catalog import spec_of
from wavegms.data.dataset import PreparedDataset
from wavegms.files import write_text
from wavegms.models.pipeline import WaveGMSPipeline
from wavegms.models.weights import load_autoencoder
from wavegms.project import library_versions
from wavegms.results.scores import predict_split, score_split
from wavegms.results.statistics import summarize_audited
from wavegms.run.gpu.pack import DATASET, data_of, expand, read_pairs, taesd_of
from wavegms.run.gpu.summary import HISTORY, KEPT_NAME, PER_IMAGE, RUN, anonymous
from wavegms.training.autoencoder import AutoencoderCard
from wavegms.training.card import ModelCard
from wavegms.training.kept import keep_weights
from wavegms.training.publish import publish_model
from wavegms.training.recipe import train
from wavegms.training.run import Run

# The few images and the one epoch of a rehearsal.
_FEW, _SMALL = 8, {"epochs": 1, "minutes": None, "warmup_epochs": 0, "batch_size": 4}

# Seconds before the first step, for images, weights and the card's own start.
_LOADING = 10.0

# Both from one training on all images but those for testing: the paper's protocol takes the epoch
# that does best on the test images, which is optimistic; the last one is what nobody chose.
EPOCHS = {"best_on_test": "best", "last_epoch": "last"}


def train_and_score(
    pack: Path, work: Path, out: Path, until: float, rehearse: bool, graph: bool
) -> None:
    """Trains until a time, by time.time(), and writes history, scores, weights and what ran."""
    prepared = work / "prepared"
    if not prepared.is_dir():
        expand(data_of(pack), prepared, _FEW if rehearse else None)
    conf = Path(__file__).parents[3] / "conf/config.yaml"
    paper = yaml.safe_load(conf.read_text(encoding="utf-8"))
    left = until - time.time() - _LOADING
    budget = {"epochs": None, "minutes": max(0.1, left / 60)}
    training = paper["training"] | budget | {"selection": "best_on_test", "cuda_graph": graph}
    training = TrainingParams.check(training | (_SMALL if rehearse else {}))
    run = Run(
        dataset=DATASET,
        variant="wave_gms",
        seed=paper["seed"],
        train_set=PreparedDataset(prepared, training.train_splits, in_memory=True),
        selection_set=PreparedDataset(prepared, training.selection_split, in_memory=True),
        vae=load_autoencoder(taesd_of(pack)),
        autoencoder=AutoencoderCard("path", "madebyollin/taesd", train=None, test=None),
        training=training,
        loss=LossParams.check(paper["loss"]),
        model=ModelParams.check(paper["model"]),
        checkpoints=work / "checkpoints",
        live=None,
        published=work / "model",
    )
    started = time.time()
    result = train(run)
    seconds = time.time() - started
    result.history.to_csv(out / HISTORY, index=False, float_format="%.6f")
    card = publish_model(run, result)
    about = _about(run, result.precision, seconds, card)
    write_text(out / RUN, json.dumps(about, indent=2) + "\n")
    _score(pack, run, card, result.history, out, about)


def _about(run: Run, precision: str | None, seconds: float, card: ModelCard) -> dict[str, Any]:
    on_card = torch.cuda.is_available()
    values = {
        "card": torch.cuda.get_device_name() if on_card else None,
        "card_gib": torch.cuda.get_device_properties(0).total_memory / 2**30 if on_card else None,
        "peak_gib": torch.cuda.max_memory_reserved() / 2**30 if on_card else None,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version() if on_card else None,
        "python": platform.python_version(),
        "versions": library_versions(),
        "precision": precision,
        "training_seconds": seconds,
    }
    return values | card.summary() | {"parameters": card.parameters}


def _score(
    pack: Path, run: Run, card: ModelCard, history: pd.DataFrame, out: Path, about: dict[str, Any]
) -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    pairs = read_pairs(pack)
    pairs = pairs[pairs["kind"] != "same group"]
    rows, tables = [], {}
    for protocol, name in EPOCHS.items():
        folder = run.published if name == "best" else run.published / "last"
        pipeline = WaveGMSPipeline.from_pretrained(folder).to(device)
        if name == "last":  # scored as it is kept, in bfloat16
            for part in (pipeline.encoder, pipeline.mapping):
                part.load_state_dict(
                    {key: value.bfloat16().float() for key, value in part.state_dict().items()}
                )
        scores = score_split(predict_split(pipeline, run.selection_set), run.selection_set)
        summary = summarize_audited(scores, pairs, resamples=2000, seed=run.seed)
        tables[protocol] = summary.assign(empty=int(scores["empty_prediction"].sum()))
        rows.append(anonymous(scores.drop(columns="data_hash")).assign(protocol=protocol))
        # what is done is there, whatever comes
        pd.concat(rows).to_csv(out / PER_IMAGE, index=False, float_format="%.6f")
        both = pd.concat([table.assign(protocol=key) for key, table in tables.items()])
        about = about | {"scores": json.loads(both.to_json(orient="records"))}
        write_text(out / RUN, json.dumps(about, indent=2) + "\n")
    last = replace(
        card,
        best_epoch=card.epochs,
        selection="last_epoch",
        selection_dice=float(history["selection_dice"].iloc[-1]),
    )
    for_readers = {
        "images": "BUSI, breast ultrasound, published split, 517 images",
        "licence_of_the_images": spec_of(DATASET).licence,
        "autoencoder": "TAESD (madebyollin/taesd, MIT), not included",
        "selection": "none: the last epoch",
        "metrics": json.loads(tables["last_epoch"].to_json(orient="records")),
    }
    keep_weights(KEPT_NAME, pipeline, last, for_readers, out)
