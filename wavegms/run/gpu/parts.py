"""The long part, in processes of its own: the paper's training, then the scores of two epochs."""

import json
import platform
import time
from dataclasses import replace
from pathlib import Path

import pandas as pd
import torch
import yaml

from wavegms.config import LossParams, ModelParams, TrainingParams
from wavegms.data.catalog import spec_of
from wavegms.data.dataset import PreparedDataset
from wavegms.data.manifest import read_audit
from wavegms.files import write_text
from wavegms.models.pipeline import WaveGMSPipeline
from wavegms.models.weights import load_autoencoder
from wavegms.project import library_versions
from wavegms.results.scores import predict_split, score_split
from wavegms.results.statistics import summarize_audited
from wavegms.run.gpu.pack import AUDIT, DATA, DATASET, TAESD, expand
from wavegms.run.gpu.summary import HISTORY, KEPT_NAME, PER_IMAGE, RUN, anonymous
from wavegms.run.gpu.watch import Watch, with_watched
from wavegms.training.autoencoder import AutoencoderCard
from wavegms.training.card import read_card
from wavegms.training.kept import keep_weights
from wavegms.training.publish import publish_model
from wavegms.training.recipe import TrainingResult, so_far, train
from wavegms.training.run import Run

# The few images and the one epoch of a rehearsal.
_FEW, _SMALL = 8, {"epochs": 1, "minutes": None, "warmup_epochs": 0, "batch_size": 4}

# Seconds before the first step, for images, weights and the card's own start.
_LOADING = 10.0

# Both from one training on all images but those for testing: the paper's protocol takes the epoch
# that does best on the test images, which is optimistic; the last one is what nobody chose.
EPOCHS = {"best_on_test": "best", "last_epoch": "last"}


def train_model(
    pack: Path, work: Path, out: Path, until: float, rehearse: bool, graph: bool
) -> None:
    """Trains until a time, by time.time(), and leaves the model in `work`, in `out` the rest."""
    run = _run_of(pack, work, until, rehearse, graph)
    watch, started = Watch(run.selection_set.masks, work / HISTORY), time.time()
    result = train(run, watch)
    seconds = time.time() - started
    watch.close()
    _publish(run, result, work, out, seconds)


def take_so_far(pack: Path, work: Path, out: Path, rehearse: bool, seconds: float) -> None:
    """Does that for a training that was cut off after so many seconds."""
    run = _run_of(pack, work, 0.0, rehearse, False)
    _publish(run, so_far(run, _device()), work, out, seconds)


def _run_of(pack: Path, work: Path, until: float, rehearse: bool, graph: bool) -> Run:
    prepared, settings = work / "prepared", work / "training.json"
    if not prepared.is_dir():
        expand(pack / DATA, prepared, _FEW if rehearse else None)
    conf = Path(__file__).parents[3] / "conf/config.yaml"
    paper = yaml.safe_load(conf.read_text(encoding="utf-8"))
    if not settings.is_file():
        budget = {"epochs": None, "minutes": max(0.1, (until - time.time() - _LOADING) / 60)}
        training = paper["training"] | budget | {"selection": "best_on_test", "cuda_graph": graph}
        write_text(settings, json.dumps(training | (_SMALL if rehearse else {})))
    training = TrainingParams.check(json.loads(settings.read_text(encoding="utf-8")))
    return Run(
        dataset=DATASET,
        variant="wave_gms",
        seed=paper["seed"],
        train_set=PreparedDataset(prepared, training.train_splits, in_memory=True),
        selection_set=PreparedDataset(prepared, training.selection_split, in_memory=True),
        vae=load_autoencoder(pack / TAESD),
        autoencoder=AutoencoderCard("path", "madebyollin/taesd", train=None, test=None),
        training=training,
        loss=LossParams.check(paper["loss"]),
        model=ModelParams.check(paper["model"]),
        checkpoints=work / "checkpoints",
        live=None,
        published=work / "model",
    )


def _publish(run: Run, result: TrainingResult, work: Path, out: Path, seconds: float) -> None:
    history = with_watched(result.history, work / HISTORY)
    history.to_csv(out / HISTORY, index=False, float_format="%.6f")
    card = publish_model(run, result)
    on_card = torch.cuda.is_available()
    about = {
        "card": torch.cuda.get_device_name() if on_card else None,
        "card_gib": torch.cuda.get_device_properties(0).total_memory / 2**30 if on_card else None,
        "peak_gib": torch.cuda.max_memory_reserved() / 2**30 if on_card else None,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version() if on_card else None,
        "python": platform.python_version(),
        "versions": library_versions(),
        "precision": result.precision,
        "scores_precision": "fp32",
        "refusal": result.refusal,
        "planned_epochs": result.planned,
        "training_seconds": seconds,
        **card.summary(),
        "parameters": card.parameters,
    }
    write_text(out / RUN, json.dumps(about, indent=2) + "\n")


def score_model(pack: Path, work: Path, out: Path) -> None:
    """Scores, per-image metrics and the weights to keep, of what a training left in `work`."""
    model, about = work / "model", json.loads((out / RUN).read_text(encoding="utf-8"))
    card, history = read_card(model), pd.read_csv(out / HISTORY)
    test_set = PreparedDataset(work / "prepared", "test", in_memory=True)
    pairs = read_audit(pack / AUDIT)
    pairs = pairs[pairs["kind"] != "same group"]
    rows, tables = [], {}
    for protocol, name in EPOCHS.items():
        folder = model if name == "best" else model / "last"
        pipeline = WaveGMSPipeline.from_pretrained(folder).to(_device())
        if name == "last":  # scored as it is kept, in bfloat16
            for part in (pipeline.encoder, pipeline.mapping):
                part.load_state_dict(
                    {key: value.bfloat16().float() for key, value in part.state_dict().items()}
                )
        scores = score_split(predict_split(pipeline, test_set), test_set)
        summary = summarize_audited(scores, pairs, resamples=2000, seed=card.seed)
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
    cut = card.epochs < about["planned_epochs"] or not about["planned_epochs"]
    for_readers = {
        "images": "BUSI, breast ultrasound, published split, 517 images",
        "licence_of_the_images": spec_of(DATASET).licence,
        "autoencoder": "TAESD (madebyollin/taesd, MIT), not included",
        "selection": f"none: {'where its time ended' if cut else 'the last epoch'}",
        "metrics": json.loads(tables["last_epoch"].to_json(orient="records")),
        "metrics_computed_in": "float32, of the weights as they are kept",
    }
    keep_weights(KEPT_NAME, pipeline, last, for_readers, out)


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
