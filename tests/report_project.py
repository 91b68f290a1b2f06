"""A project folder as a pipeline leaves it, for reports and model cards; nothing is trained."""

import nbformat
import pandas as pd
import torch
import yaml
from copies import ROOT
from explorer_project import write_model
from scores import invent_scores, put

from wavegms import LatentMappingModel, MultiResolutionEncoder, WaveGMSPipeline
from wavegms.config import load_params
from wavegms.data.audit import write_audit
from wavegms.data.manifest import PAIR_COLUMNS
from wavegms.models.autoencoder import freeze
from wavegms.project import run_record
from wavegms.report.notebooks import expected_notebooks
from wavegms.training.autoencoder import build_autoencoder
from wavegms.training.card import card_hash, read_card

RUN = "phantom_a/wave_gms/seed_2333"


def small_pipeline():
    """Untrained networks at 32 x 32."""
    torch.manual_seed(0)
    vae = freeze(build_autoencoder(8, 1))
    return WaveGMSPipeline(MultiResolutionEncoder(), LatentMappingModel(), vae, image_size=32)


def write_report_project(root, prepared):
    """The two phantoms, each with a model tested on both, and an ablation of one row and a half.

    Args:
        root: the folder.
        prepared: some prepared dataset; cards and scores name its hash.
    """
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    params["ablation"]["variants"] = ["tinyvae_mismatch", "wave_gms"]
    params["evaluation"]["bootstrap_resamples"] = 100
    params["foundations"]["datasets"] = ["phantom_a"]
    (root / "params.yaml").write_text(yaml.safe_dump(params))
    pipeline = small_pipeline()
    for dataset in ("phantom_a", "phantom_b"):
        add_model(root, pipeline, prepared, dataset, ("phantom_a", "phantom_b"))
        add_audit(root, dataset)
    add_model(root, pipeline, prepared, "phantom_a", ("phantom_a",), "ablation", epochs=2)
    reason = root / "results/ablation/phantom_a/tinyvae_mismatch/seed_2333/not_run.txt"
    reason.parent.mkdir(parents=True)
    reason.write_text("needs weights\n")
    for expected in expected_notebooks(load_params(root / "params.yaml")):
        add_notebook(root / "reports" / f"{expected.name}.ipynb", expected.settings)


def add_model(root, pipeline, prepared, dataset, test_sets, part="", epochs=14):
    """A model's folder with its card, and its scores on some test sets."""
    folder = root / "models" / part / dataset / "wave_gms/seed_2333"
    write_model(
        folder,
        pipeline,
        prepared,
        dataset=dataset,
        epochs=epochs,
        autoencoder={"source": "train", "origin": {}, "train": None, "test": None},
        parameters={"training": {"batch_size": 4}, "loss": {"supervision": "all_levels"}},
        versions={"torch": "2"},
    )
    card = read_card(folder)
    for name in test_sets:
        scores = invent_scores(
            dataset, name, seed=2333, image_size=32, epochs=epochs, data_hash=card.data_hash
        )
        put(root / "results" / (part or "scores"), scores.assign(card=card_hash(card)))


def add_audit(root, dataset):
    """Two of the 16 test images have a twin among those for training, and one a relative in val."""
    pairs = [
        ("learnt", "000003", "near"),
        ("learnt", "000004", "exact"),
        ("seen", "NA", "mirrored"),
    ]
    rows = [(a, b, "train", "test", "", "", kind, 0.9, True, False) for a, b, kind in pairs]
    table = pd.DataFrame(rows, columns=list(PAIR_COLUMNS))
    write_audit(table, root / f"reports/audit/{dataset}.csv")


def add_notebook(path, settings):
    """The repository's notebook with its stored outputs, as if it had been run with settings."""
    stem = next(p for p in (ROOT / "notebooks").glob("*.ipynb") if path.name.startswith(p.stem))
    notebook = nbformat.read(stem, as_version=4)
    parameters = {}
    for name, value in settings.items():
        *sections, last = name.split(".")
        part = parameters
        for section in sections:
            part = part.setdefault(section, {})
        part[last] = value
    notebook.metadata["papermill"] = {"parameters": parameters}
    notebook.metadata["wavegms"] = run_record(ROOT)
    path.parent.mkdir(exist_ok=True)
    nbformat.write(notebook, path)
