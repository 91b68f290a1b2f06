"""Trained weights that stay in the repository: one small file and its card, opened by a short name.

`weights/NAME.safetensors` holds what was trained, in bfloat16; `weights/NAME.json` says what it is,
on which images and under which licence it was trained, and how it scored. The frozen autoencoder is
others' work and no part of it: it is fetched, and compared with the one that was trained with.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor, nn

from wavegms.errors import InputError, first_line, require_one_class, require_same
from wavegms.files import replace_file, replace_folder, sha256_of, write_text
from wavegms.images import Scale
from wavegms.models.autoencoder import Autoencoder, freeze
from wavegms.models.build import Network, as_pipeline, build_variant
from wavegms.models.mask_decoder import same_autoencoder, signature
from wavegms.models.pipeline import WaveGMSPipeline
from wavegms.models.weights import load_autoencoder, read_tensors
from wavegms.project import KEPT, PRETRAINED, is_kept, library_versions, require_start
from wavegms.training.card import ModelCard, read_card, weights_hash, write_card

_TRAINED = ("encoder", "mapping", "network")

# Where TAESD is looked for: as `python -m wavegms get taesd` puts it, then on the hub.
_TAESD = (Path("models/taesd"), "madebyollin/taesd")

NOTICE = "Research software, not for clinical use."


def keep_half(out: Path, network: nn.Module, about: Mapping[str, Any]) -> dict[str, Any]:
    """Writes what learnt from drawn masks alone in half precision, and beside it its card."""
    state = {key: value.half().contiguous() for key, value in network.state_dict().items()}
    card = {
        "notice": NOTICE,
        "taught with": "what wavegms.training.drawn draws; no image of anybody",
        **about,
        "sha256": _write_weights(out, state),
        "versions": library_versions(),
    }
    write_text(out.with_suffix(".json"), json.dumps(card, indent=2) + "\n")
    return card


def keep_weights(
    name: str, pipeline: WaveGMSPipeline, card: ModelCard, about: Mapping[str, Any], folder: Path
) -> None:
    """Writes a model as `NAME.safetensors` and `.json`.

    Its autoencoder is TAESD or one of `weights/autoencoders`, or it has none.

    `about` is for readers: images, licence, selection, metrics.
    """
    require_one_class(len(pipeline.classes), "a file of kept weights", f"share {name} as a folder")
    parts = {part: getattr(pipeline, part) for part in _TRAINED if getattr(pipeline, part)}
    state = {
        f"{part}.{key}": value.detach().cpu().to(torch.bfloat16).contiguous()
        for part, network in parts.items()
        for key, value in network.state_dict().items()
    }
    values = {
        "name": name,
        "notice": NOTICE,
        **about,
        "sha256": _write_weights(folder / f"{name}.safetensors", state),
        "latents": None if pipeline.vae is None else signature(pipeline.vae).tolist(),
        "greys": pipeline.config.greys,
        "card": vars(card),
    }
    write_text(folder / f"{name}.json", json.dumps(values, indent=2) + "\n")


def _write_weights(path: Path, state: Mapping[str, Tensor]) -> str:
    """Writes a file of safetensors whole or not at all, and gives its SHA-256."""
    with replace_file(path) as fresh:
        fresh.write_bytes(save(dict(state), metadata={"format": "pt", "notice": NOTICE}))
    return sha256_of(path)


def model_folder(where: str | Path, project: Path = Path(), kept: Path = KEPT) -> str | Path:
    """The folder of a model that is kept under this name; anything else as it came.

    It comes to lie in `models/kept/NAME/seed_N` of the project, as a trained one would.

    Raises:
        InputError: its files are damaged, or its autoencoder cannot be had or is another one.
    """
    if Path(where).is_dir() or not is_kept(where, kept):
        return where
    values, card = _read(kept / f"{where}.json")
    weights = kept / f"{where}.safetensors"
    if sha256_of(weights) != values["sha256"]:
        raise InputError(f"{weights} is not what its card describes: restore both with git")
    folder = project / "models/kept" / where / f"seed_{card.seed}"
    note = folder / "kept.txt"
    if note.is_file() and note.read_text(encoding="utf-8") == values["sha256"]:
        read_card(folder)
        return folder
    vae = None if values["latents"] is None else _fitting_autoencoder(where, values["latents"])
    network = build_variant(card.variant, image_size=card.image_size, vae=vae)
    state = read_tensors(weights)
    pipeline = as_pipeline(network, vae, card.image_size, values["scale"])
    try:
        for part in _TRAINED:
            if getattr(pipeline, part) is not None:
                _load(getattr(pipeline, part), part, state)
    except RuntimeError as error:
        raise InputError(
            f"{weights} does not fit this version ({first_line(error)}): restore it with git"
        ) from error
    with replace_folder(folder) as target:
        pipeline.save_pretrained(target)
        write_card(target, replace(card, weights=weights_hash(target)))
        write_text(target / "kept.txt", values["sha256"])
    return folder


def _load(network: torch.nn.Module, part: str, state: Mapping[str, Tensor]) -> None:
    own = {k.removeprefix(f"{part}."): v for k, v in state.items() if k.startswith(f"{part}.")}
    network.load_state_dict(own)


def _read(path: Path) -> tuple[dict[str, Any], ModelCard]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        latents, greys = values["latents"], values["greys"]
        if latents is not None:
            values["latents"] = torch.tensor(latents, dtype=torch.float32)
        values["scale"] = None if greys is None else Scale.parse(greys)
        if not isinstance(values["sha256"], str):
            raise TypeError("sha256")
        return values, ModelCard(**values["card"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(
            f"{path} is no card of kept weights ({first_line(error)}): restore it with git"
        ) from error


def _fitting_autoencoder(name: str, latents: Tensor) -> Autoencoder:
    """The one that came with this code, or TAESD: whose latents are these."""
    # here, as what follows trains autoencoders too, and most models that are opened lie in a folder
    from wavegms.training.autoencoder import open_pretrained

    for path in sorted(PRETRAINED.glob("*.safetensors")):
        vae = freeze(open_pretrained(path.stem))
        if same_autoencoder(signature(vae), latents):
            return vae
    local, hub = _TAESD
    where = local if local.is_dir() else hub
    try:
        vae = load_autoencoder(where)
    except InputError as error:
        reason = first_line(error.__cause__ or error)
        raise InputError(
            f"{name} needs TAESD, and {where} cannot be loaded ({reason}): get it by `python -m "
            "wavegms get taesd`"
        ) from error
    if not same_autoencoder(signature(vae), latents):
        raise InputError(
            f"{name} was trained with another autoencoder than {where}: get it anew by `python -m "
            "wavegms get taesd`"
        )
    return vae


def start_network(
    where: str,
    variant: str,
    vae: Autoencoder | None,
    classes: Sequence[str] = (),
    in_place: str | None = None,
) -> Network:
    """The network of a trained model, for `training.start_from`; `in_place` is of `build_variant`.

    Raises:
        InputError: there is no such model, it is of another network than the variant's or of other
            classes, or it was trained with another autoencoder.
    """
    require_start(where)
    before = WaveGMSPipeline.from_pretrained(model_folder(where))
    both = None not in (vae, before.vae)
    if both and not same_autoencoder(signature(vae), signature(before.vae)):
        raise InputError(
            f"training.start_from {where} was trained with another autoencoder, whose latents mean "
            "something else: set autoencoder.source and autoencoder.path to that one, such as "
            f"{Path(where) / 'vae'}, or training.start_from to null"
        )
    model, way = f"training.start_from {where}", "choose a model of the same, or set it to null"
    require_same(model, before.classes, "the data have", classes, way)
    side = before.config.image_size
    options = {"classes": len(classes) or 1, "in_place": in_place}
    network = build_variant(variant, image_size=side, vae=vae, **options)
    pipeline = as_pipeline(network, vae, side, classes=classes)
    for part in _TRAINED:
        ours, theirs = getattr(pipeline, part), getattr(before, part)
        state = [n and {k: v.shape for k, v in n.state_dict().items()} for n in (ours, theirs)]
        if type(ours) is not type(theirs) or state[0] != state[1]:
            raise InputError(
                f"training.start_from {where} is a model of another network than {variant}: choose "
                "one of the same, or set it to null"
            )
        if ours is not None:
            ours.load_state_dict(theirs.state_dict())
    return network
