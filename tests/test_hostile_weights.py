"""Weights from outside: tensors of finite numbers in the right places, or one sentence."""

import io
import json
import os
import pickle
import shutil
import struct
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderTiny
from hostile import damaged, hunt, outcome, scratch
from hypothesis import strategies as st
from payloads import PAYLOADS, colliding, hashed, text
from safetensors.torch import load_file, save, save_file
from torch import nn

from wavegms import LatentMappingModel, MultiResolutionEncoder, WaveGMSPipeline, load_autoencoder
from wavegms.models.guided import GuidedLatentMappingModel
from wavegms.models.mask_network import MaskNetwork
from wavegms.models.weights import read_tensors
from wavegms.training.autoencoder import (
    AutoencoderCard,
    ReconstructionQuality,
    build_autoencoder,
    read_quality,
    require_mask_quality,
    write_quality,
)

STATE = {"0.weight": torch.arange(6.0).reshape(2, 3), "0.bias": torch.ones(2).half()}
WEIGHTS = "diffusion_pytorch_model.safetensors"


def torch_file(content, **options) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer, **options)
    return buffer.getvalue()


def with_pickle(data: bytes) -> bytes:
    """A torch file with another pickle inside."""
    source, target = zipfile.ZipFile(io.BytesIO(torch_file(STATE))), io.BytesIO()
    with zipfile.ZipFile(target, "w") as archive:
        for entry in source.infolist():
            is_pickle = entry.filename.endswith("data.pkl")
            archive.writestr(entry.filename, data if is_pickle else source.read(entry))
    return target.getvalue()


def judge(folder: Path, path: Path):
    start = time.process_time()
    state = outcome(folder, [path], lambda: read_tensors(path))
    assert time.process_time() - start < 10
    if state is not None:
        for key, value in state.items():
            assert type(key) is str and isinstance(value, torch.Tensor)
            assert np.isfinite(value.detach().float().numpy()).all()
            assert value.nbytes <= 2 * path.stat().st_size
    return state


GOOD = {".safetensors": save(STATE), ".pth": torch_file(STATE)}


@hunt(700, st.sampled_from(sorted(GOOD)), st.data())
def test_damaged_files(survived, suffix, data):
    with scratch() as folder:
        path = folder / f"a{suffix}"
        path.write_bytes(data.draw(damaged([GOOD[suffix]])))
        judge(folder, path)
    survived("inputs")


entries = st.one_of(
    st.none(),
    st.integers(-(2**65), 2**65),
    st.floats(),
    st.sampled_from(["F32", "F64", "I64", "BOOL", "F8_E4M3", "X", ""]),
    st.lists(st.integers(-1, 2**63), max_size=4),
)


@hunt(
    300,
    st.dictionaries(
        st.sampled_from(["a", "0.weight", "__metadata__", "", "\n"]),
        st.one_of(
            entries,
            st.fixed_dictionaries(
                {"dtype": entries, "shape": entries, "data_offsets": st.just([0, 24]) | entries}
            ),
        ),
        max_size=3,
    ),
    st.integers(0, 40),
    st.none() | st.integers(0, 2**64 - 1),
)
def test_any_header_of_safetensors(survived, header, body, claimed):
    head = json.dumps(header).encode()
    with scratch() as folder:
        path = folder / "a.safetensors"
        size = len(head) if claimed is None else claimed
        path.write_bytes(struct.pack("<Q", size) + head + bytes(body))
        judge(folder, path)
    survived("inputs")


@pytest.mark.parametrize("name", list(PAYLOADS))
@pytest.mark.parametrize("place", ["alone", "as a value", "as a key"])
def test_no_payload_runs(survived, tmp_path, name, place):
    canary, path = tmp_path / "ran", tmp_path / "a.pth"
    payload = PAYLOADS[name](str(canary))
    inside = {"alone": payload, "as a value": b"}" + text("a") + payload + b"s"}
    data = b"\x80\x02" + inside.get(place, b"}" + payload + b"Ns") + b"."
    for content in (with_pickle(data), data):
        path.write_bytes(content)
        assert judge(tmp_path, path) is None and not canary.exists()
        survived("inputs")


def claiming(count: int) -> bytes:
    """A tensor that claims another number of values than the file has."""
    data = zipfile.ZipFile(io.BytesIO(torch_file({"a": torch.ones(7)}))).read("archive/data.pkl")
    assert data.count(b"K\x07") == 2
    return with_pickle(data.replace(b"K\x07", b"J" + count.to_bytes(4, "little")))


def repeated() -> bytes:
    """The entries of an archive, each holding the same bytes."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for entry in ("data.pkl", "version", *(f"data/{i}" for i in range(20))):
            archive.writestr(f"archive/{entry}", bytes(10_000_000))
    return buffer.getvalue()


NAN, HUGE = float("nan"), 300_000
UNUSUAL = {
    "NaN": lambda: torch_file({"a": torch.tensor([1.0, NAN])}),
    "infinite": lambda: torch_file({"a": torch.tensor([1.0, -float("inf")])}),
    "half NaN": lambda: torch_file({"a": torch.tensor([NAN]).half()}),
    "sparse": lambda: torch_file({"a": torch.eye(3).to_sparse()}),
    "sparse and vast": lambda: torch_file(
        {"a": torch.sparse_coo_tensor([[0], [0]], [1.0], (HUGE, HUGE))}
    ),
    "compressed rows": lambda: torch_file({"a": torch.eye(3).to_sparse_csr()}),
    "nowhere": lambda: torch_file({"a": torch.empty(3, device="meta")}),
    "quantised": lambda: torch_file(
        {"a": torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8)}
    ),
    "one number, 90 billion times": lambda: torch_file({"a": torch.ones(1).expand(HUGE, HUGE)}),
    "one number, 90 million times": lambda: torch_file({"a": torch.ones(1).expand(9000, 10_000)}),
    "more than there is": lambda: claiming(100_000),
    "much more than there is": lambda: claiming(2_000_000_000),
    "a key that is a number": lambda: torch_file({0: torch.ones(1), "a": torch.ones(1)}),
    "a key that is a tuple": lambda: torch_file({("a", "b"): torch.ones(1)}),
    "a module": lambda: torch_file(nn.Linear(2, 2)),
    "a list": lambda: torch_file([torch.ones(1)]),
    "a tensor": lambda: torch_file(torch.ones(3)),
    "of old torch": lambda: torch_file(STATE, _use_new_zipfile_serialization=False),
    "a script": lambda: b"#!/bin/sh\n",
    "a zip of zeros": repeated,
    "tuples hashed": lambda: with_pickle(hashed()),
    "numbers of one hash": lambda: with_pickle(colliding()),
    "tuples in tuples": lambda: with_pickle(b"\x80\x02}()" + b"\x85" * 500_000 + b"Nu."),
    "a pickle of a pickle": lambda: with_pickle(pickle.dumps(STATE, 2)),
}


@pytest.mark.parametrize("name", list(UNUSUAL))
def test_what_is_no_state_of_a_network(survived, tmp_path, name):
    path = tmp_path / "a.pth"
    path.write_bytes(UNUSUAL[name]())
    assert judge(tmp_path, path) is None
    survived("inputs")


def test_views_of_one_tensor_are_still_read(tmp_path):
    shared = torch.ones(5, requires_grad=True)
    torch.save({"a": shared, "b": shared, "c": shared.detach()[:2]}, tmp_path / "a.pth")
    assert len(judge(tmp_path, tmp_path / "a.pth")) == 3


# Whole folders. One of each kind is saved, and examples get it by links, but for what they change.


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    torch.manual_seed(0)
    root = tmp_path_factory.mktemp("saved")
    vae = build_autoencoder(8, 1)
    parts = {
        "wave_gms": (MultiResolutionEncoder(), LatentMappingModel(), vae, None),
        "guided": (None, GuidedLatentMappingModel(), vae, None),
        "unet": (None, None, None, MaskNetwork("unet")),
    }
    for name, networks in parts.items():
        WaveGMSPipeline(*networks, image_size=32).save_pretrained(root / name)
    vae.save_pretrained(root / "vae")
    return root


def linked(source: Path, target: Path) -> Path:
    return Path(shutil.copytree(source, target, copy_function=os.link))


def rewrite(path: Path, content: bytes) -> None:
    path.unlink(missing_ok=True)  # the link, not what it leads to
    path.write_bytes(content)


def open_folder(root: Path, folder: Path):
    opened = (
        WaveGMSPipeline.from_pretrained
        if "model_index.json" in os.listdir(folder)
        else (load_autoencoder)
    )
    result = outcome(root, [folder], lambda: opened(folder))
    if result is not None:
        parts = result._parts() if isinstance(result, WaveGMSPipeline) else [result]
        for part in parts:
            assert all(torch.isfinite(value).all() for value in part.state_dict().values())
            assert part.dtype == torch.float32 and not part.training
    return result


@pytest.mark.parametrize("name", ["wave_gms", "guided", "unet", "vae"])
def test_undamaged_folders_open(saved, tmp_path, name):
    assert open_folder(tmp_path, linked(saved / name, tmp_path / name)) is not None


json_values = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-(10**30), 10**30),
        st.floats(),
        st.sampled_from(
            ["", "x", "os", "system", "evil", "Evil", "wavegms", "diffusers", "AutoencoderTiny"]
        ),
        st.just([10**9] * 4),
        st.just([None, None]),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.lists(inner, min_size=2, max_size=2),
        st.dictionaries(st.sampled_from(["a", "vae", "block_out_channels"]), inner, max_size=2),
    ),
    max_leaves=5,
)


@hunt(100, st.data())
def test_settings_of_any_kind(survived, saved, data):
    """The index and every config.json, with any value at any key, beside files of code."""
    with scratch() as root:
        name = data.draw(st.sampled_from(["wave_gms", "unet", "vae"]))
        folder, canary = linked(saved / name, root / name), root / "ran"
        for code in ("evil.py", "pipeline.py", "x.py", "vae/evil.py", "os.py"):
            (folder / code).parent.mkdir(exist_ok=True)
            (folder / code).write_text(f"open({str(canary)!r}, 'w')\nclass Evil: pass\n")
        path = data.draw(st.sampled_from(sorted(folder.rglob("*.json"))))
        values = json.loads(path.read_text())
        key = data.draw(st.sampled_from([*values, "extra", "quantization_config", "auto_map"]))
        values[key] = data.draw(json_values)
        rewrite(path, json.dumps(values).encode())
        pipe = open_folder(root, folder)
        assert not canary.exists()
        if name != "vae" and pipe is not None:
            assert type(pipe.config.image_size) is int and 8 <= pipe.config.image_size <= 8192
    survived("inputs")


@hunt(50, st.data())
def test_bytes_of_any_file_of_a_folder(survived, saved, data):
    with scratch() as root:
        name = data.draw(st.sampled_from(["wave_gms", "unet", "vae"]))
        folder = linked(saved / name, root / name)
        path = data.draw(st.sampled_from(sorted(p for p in folder.rglob("*") if p.is_file())))
        # Of weights, the header: a flipped bit in a number is another number, which none can tell.
        content = path.read_bytes()
        head = content[:4000]
        rewrite(path, data.draw(damaged([head])) + content[4000:])
        open_folder(root, folder)
    survived("inputs")


CODE_IN_THE_INDEX = [
    {"_class_name": ["evil", "Evil"]},
    {"_class_name": ["pipeline", "Evil"]},
    {"vae": ["evil", "Evil"]},
    {"vae": ["pipeline", "Evil"]},
    {"vae": ["diffusers", "AutoencoderTiny", "evil"]},
    {"vae": ["vae.evil", "Evil"]},
    {"vae": ["wavegms.__main__", "main"]},
    {"vae": ["diffusers", "UNet2DModel"]},
    {"vae": ["wavegms", "WaveGMSPipeline"]},
    {"mapping": ["diffusers", "AutoencoderTiny"]},
    {"evil": ["evil", "Evil"]},
    {"custom_pipeline": "evil"},
    {"image_size": 10**9},
    {"image_size": True},
    {"image_size": 31},
]


@pytest.mark.parametrize("change", CODE_IN_THE_INDEX)
def test_the_index_chooses_among_our_networks_only(survived, saved, tmp_path, change):
    folder, canary = linked(saved / "wave_gms", tmp_path / "x"), tmp_path / "ran"
    for code in ("evil.py", "pipeline.py", "vae/evil.py"):
        (folder / code).write_text(f"open({str(canary)!r}, 'w')\nclass Evil: pass\n")
    index = json.loads((folder / "model_index.json").read_text()) | change
    rewrite(folder / "model_index.json", json.dumps(index).encode())
    assert open_folder(tmp_path, folder) is None and not canary.exists()
    survived("inputs")


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("part", ["encoder", "mapping", "vae"])
def test_weights_that_are_no_numbers(survived, saved, tmp_path, part, bad):
    folder = linked(saved / "wave_gms", tmp_path / "x")
    path = folder / part / WEIGHTS
    state = load_file(path)
    key = sorted(state)[len(state) // 2]
    state[key].view(-1)[-1] = bad
    path.unlink()
    save_file(state, path)
    assert open_folder(tmp_path, folder) is None
    if part == "vae":
        assert open_folder(tmp_path, folder / part) is None
    survived("inputs")


def test_weights_in_other_files_are_not_taken_for_ours(survived, saved, tmp_path):
    """diffusers would read some of them, and leave the rest of the network random."""
    for change in ("two halves", "another name", "an index", "a pickle"):
        folder = linked(saved / "wave_gms", tmp_path / change)
        path = folder / "mapping" / WEIGHTS
        state = load_file(path)
        if change == "two halves":
            path.unlink()
            half = len(state) // 2
            save_file(dict(list(state.items())[:half]), path)
            save_file(dict(list(state.items())[half:]), path.with_name("more.safetensors"))
        elif change == "another name":
            path.rename(path.with_name("model.safetensors"))
        elif change == "an index":
            shards = {"metadata": {}, "weight_map": dict.fromkeys(state, "../vae/" + WEIGHTS)}
            path.with_name(WEIGHTS + ".index.json").write_text(json.dumps(shards))
        else:
            path.unlink()
            torch.save(state, path.with_name("diffusion_pytorch_model.bin"))
        assert open_folder(tmp_path, folder) is None
        survived("inputs")


@pytest.mark.parametrize("content", [b"[" * 99_000, b"1" * 99_000, b"{" * 200_000, b'{"a":' * 9000])
@pytest.mark.parametrize(
    "name", ["wave_gms/model_index.json", "wave_gms/vae/config.json", "vae/config.json"]
)
def test_settings_without_end(survived, saved, tmp_path, name, content):
    folder = linked(saved / name.split("/")[0], tmp_path / "x")
    rewrite(folder / name.split("/", 1)[1], content)
    assert open_folder(tmp_path, folder) is None
    survived("inputs")


@pytest.mark.parametrize("name", ["wave_gms", "vae"])
def test_a_network_without_end(survived, saved, tmp_path, name):
    folder = linked(saved / name, tmp_path / "x")
    path = folder / ("vae/config.json" if name == "wave_gms" else "config.json")
    values = json.loads(path.read_text()) | {"num_encoder_blocks": [30_000] * 4}
    rewrite(path, json.dumps(values).encode())
    start = time.process_time()
    assert open_folder(tmp_path, folder) is None
    assert time.process_time() - start < 5
    survived("inputs")


def original() -> dict[str, dict[str, torch.Tensor]]:
    torch.manual_seed(0)
    states = {"encoder": {}, "decoder": {}}
    for key, value in AutoencoderTiny().state_dict().items():
        part, _, layer, rest = key.split(".", 3)
        states[part][f"{int(layer) + (part == 'decoder')}.{rest}"] = value
    return states


def test_original_files_with_a_weight_that_is_no_number(survived, tmp_path):
    for suffix in (".pth", ".safetensors"):
        folder = tmp_path / suffix[1:]
        folder.mkdir()
        for part, state in original().items():
            if part == "decoder":
                state["19.bias"][1] = float("nan")
            path = folder / f"taesd_{part}{suffix}"
            torch.save(state, path) if suffix == ".pth" else save_file(state, path)
        assert outcome(tmp_path, [folder], lambda folder=folder: load_autoencoder(folder)) is None
        survived("inputs")


@hunt(200, st.data())
def test_the_quality_of_an_autoencoder(survived, data):
    side = ReconstructionQuality(image_psnr=30.0, mask_dice=0.9, images=4)
    with scratch() as root:
        write_quality(root, AutoencoderCard("path", "x", side, side))
        path = root / "quality.json"
        if data.draw(st.booleans()):
            path.write_bytes(data.draw(damaged([path.read_bytes()])))
        else:
            values = json.loads(path.read_text())
            part = data.draw(st.sampled_from([values, values["train"], values["test"]]))
            part[data.draw(st.sampled_from([*part, "extra"]))] = data.draw(json_values)
            path.write_text(json.dumps(values))
        card = outcome(root, [path], lambda: read_quality(root))
        if card is not None:
            assert 0 <= card.train.mask_dice <= 1 and card.test.images == int(card.test.images)
            outcome(root, ["min_mask_dice"], lambda: require_mask_quality(card.train, 0.5))
    survived("inputs")


@pytest.mark.parametrize("content", [b"[" * 100_000, b'{"train": {}}', b"null", b"\xff"])
def test_no_quality_at_all(survived, tmp_path, content):
    (tmp_path / "quality.json").write_bytes(content)
    assert outcome(tmp_path, [tmp_path], lambda: read_quality(tmp_path)) is None
    (tmp_path / "quality.json").unlink()
    (tmp_path / "quality.json").mkdir()
    assert outcome(tmp_path, [tmp_path], lambda: read_quality(tmp_path)) is None
    survived("inputs", 2)
