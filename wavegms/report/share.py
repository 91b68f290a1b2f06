"""A trained model as a folder for others: weights, cards and the ONNX file, and onto the hub."""

import shutil
from pathlib import Path

from huggingface_hub import HfApi

from wavegms.config import load_params
from wavegms.errors import InputError, first_line
from wavegms.files import HUB_ID, only_seed, replace_folder, write_text
from wavegms.models.pipeline import WaveGMSPipeline
from wavegms.report.model_card import read_scored_model, render_model_card
from wavegms.training.card import CARD_NAME

ONNX_NAME = "model.onnx"


def share_model(folder: Path, out: Path, hub_id: str | None = None) -> None:
    """Makes a folder that holds all that others need of a model, and uploads it if asked to.

    It is what `WaveGMSPipeline.from_pretrained` opens, with the weights of the best epoch, and
    beside them a README.md as the hub shows it, card.json, and an ONNX file, which decodes as its
    scores were made. `folder` may be one that holds a single `seed_<n>`; `out` is made whole or not
    at all, and may be an earlier one of the same kind. Nothing goes over the network without a hub
    id, where a new place is private; the folder is there even if the hub takes nothing.
    """
    folder, out = only_seed(Path(folder)), Path(out)
    if hub_id is not None and not HUB_ID.fullmatch(hub_id):
        raise InputError(f"--push {hub_id} is no place on the hub: give OWNER/NAME")
    _require_free(out, folder)
    model = read_scored_model(folder)
    evaluation = load_params(Path("params.yaml")).evaluation
    text = render_model_card(model, evaluation, shared=True)
    pipeline = WaveGMSPipeline.from_pretrained(folder, decoder=evaluation.decoder)
    with replace_folder(out) as target:
        shutil.copyfile(folder / "model_index.json", target / "model_index.json")
        shutil.copyfile(folder / CARD_NAME, target / CARD_NAME)
        for name in pipeline.components:
            # a mask decoder that did not train it is found in weights/, by whoever opens it
            if (folder / name).is_dir():
                shutil.copytree(folder / name, target / name, copy_function=shutil.copyfile)
        pipeline.export_onnx(target / ONNX_NAME)
        write_text(target / "README.md", text)
    if hub_id is not None:
        _upload(out, hub_id)


def _require_free(out: Path, folder: Path) -> None:
    """Only what an earlier call wrote is replaced."""
    if folder.resolve() in (out.resolve(), *out.resolve().parents):
        raise InputError(f"{out} lies in the model's own folder: choose another one")
    if out.is_dir() and any(out.iterdir()) and not (out / ONNX_NAME).is_file():
        raise InputError(f"{out} holds other files: choose a folder that is empty or not there")


def _upload(folder: Path, hub_id: str) -> None:
    hub = HfApi()
    try:
        # who may see it is decided on its page, once it has been looked at
        hub.create_repo(hub_id, private=True, exist_ok=True)
        hub.upload_folder(
            repo_id=hub_id,
            folder_path=folder,
            commit_message="A model trained by wave-gms",
            # parts that an earlier model had there
            delete_patterns=["*/*.safetensors", "*/config.json"],
        )
    except Exception as error:  # of the hub's client and of what it sends requests with
        raise InputError(
            f"{folder} is ready, but the hub did not take it ({first_line(error)}): log in by `hf "
            "auth login`, check that you may write to the place, and give the same command again"
        ) from error
