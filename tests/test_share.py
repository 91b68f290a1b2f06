"""A shared folder holds all of a model and opens anywhere, as a folder and from a hub."""

import copy
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from copies import ROOT
from hub import COMMIT, hub
from layouts import edit_json
from no_network.guard import attempts, guarded
from onnxruntime import InferenceSession
from report_project import RUN, add_audit, add_model, small_pipeline

from wavegms import InputError, WaveGMSPipeline
from wavegms.__main__ import main
from wavegms.models.autoencoder import freeze
from wavegms.models.mask_decoder import MaskDecoder
from wavegms.report import share as sharing
from wavegms.report.share import share_model
from wavegms.training.card import read_card

MODEL = f"models/{RUN}"
FILES = {
    "README.md",
    "card.json",
    "model.onnx",
    "model_index.json",
    *(f"{part}/config.json" for part in ("encoder", "mapping", "vae")),
    *(f"{part}/diffusion_pytorch_model.safetensors" for part in ("encoder", "mapping", "vae")),
}
HUB_ID = "someone/model"


@pytest.fixture(scope="module")
def original(tmp_path_factory, prepared):
    root = tmp_path_factory.mktemp("shared")
    add_model(root, small_pipeline(), prepared, "phantom_a", ("phantom_a",))
    (root / MODEL / "last/encoder").mkdir(parents=True)
    (root / MODEL / "last/encoder/config.json").write_text("{}")
    add_audit(root, "phantom_a")
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    params["evaluation"]["bootstrap_resamples"] = 100
    (root / "params.yaml").write_text(yaml.safe_dump(params))
    return root


@pytest.fixture
def project(original, tmp_path, monkeypatch):
    """A copy, as the working directory, where no one may ask a hub and the export is quick."""
    shutil.copytree(original, tmp_path / "project")
    monkeypatch.chdir(tmp_path / "project")
    monkeypatch.setattr(
        WaveGMSPipeline, "export_onnx", lambda self, path: Path(path).write_bytes(b"onnx")
    )

    def refuse():
        raise AssertionError("asked for the hub")

    monkeypatch.setattr(sharing, "HfApi", refuse)
    return tmp_path / "project"


def files_in(folder):
    return {p.relative_to(folder).as_posix() for p in Path(folder).rglob("*") if p.is_file()}


@pytest.mark.slow
def test_a_shared_model_goes_to_a_hub_and_comes_back(original, tmp_path):
    """In another process, where the hub is this machine and no other one can be asked."""
    code = (
        "import sys, torch\n"
        "from wavegms import WaveGMSPipeline\n"
        "from wavegms.__main__ import main\n"
        f"WaveGMSPipeline.from_pretrained('{MODEL}').push_to_hub('{HUB_ID}', private=True)\n"
        f"status = main(['share', '{MODEL}', sys.argv[1], '--push', '{HUB_ID}'])\n"
        f"pipeline = WaveGMSPipeline.from_pretrained('{HUB_ID}')\n"
        "torch.save(pipeline.predict(torch.load(sys.argv[2])), sys.argv[3])\n"
        "sys.exit(status)\n"
    )
    out, given, back = tmp_path / "out", tmp_path / "given.pt", tmp_path / "back.pt"
    images = torch.rand(2, 3, 32, 32)
    torch.save(images, given)
    with hub(HUB_ID) as server:
        environment = guarded(os.environ, tmp_path / "network") | {
            "HF_ENDPOINT": server.address,
            "HF_HOME": str(tmp_path / "cache"),
            "HF_TOKEN": "hf_none",
            "OMP_NUM_THREADS": "1",
        }
        environment["PYTHONPATH"] = os.pathsep.join([environment["PYTHONPATH"], str(ROOT)])
        done = subprocess.run(
            [sys.executable, "-c", code, str(out), str(given), str(back)],
            cwd=original,
            env=environment,
            capture_output=True,
            encoding="utf-8",
        )
    assert done.returncode == 0, done.stderr[-4000:]
    assert attempts(tmp_path / "network") == ""
    # what lies in the folder went up, to a place that others do not see yet
    assert files_in(out) == FILES
    assert server.files == {name: (out / name).read_bytes() for name in FILES}
    made = {"name": "model", "organization": "someone", "visibility": "private"}
    assert server.created == [made, made]  # by diffusers, weights alone, and by the command
    assert f"GET /{HUB_ID}/resolve/{COMMIT}/model_index.json" in server.asked
    # and gives what the model gives, wherever it is opened
    expected = WaveGMSPipeline.from_pretrained(original / MODEL).predict(images)
    assert torch.equal(torch.load(back), expected)
    assert torch.equal(WaveGMSPipeline.from_pretrained(out).predict(images), expected)
    session = InferenceSession(out / "model.onnx", providers=["CPUExecutionProvider"])
    (soft,) = session.run(["probabilities"], {"images": images.numpy()})
    assert np.abs(soft - expected.numpy()).max() < 1e-3
    assert read_card(out) == read_card(original / MODEL)
    card = (out / "README.md").read_text(encoding="utf-8")
    assert "Not for clinical use" in card and "model.onnx" in card


def test_nothing_is_uploaded_unasked(project, capsys):
    assert main(["share", "models/phantom_a/wave_gms", "out"]) == 0
    assert files_in("out") == FILES
    images = torch.rand(1, 3, 32, 32)
    shared, own = (WaveGMSPipeline.from_pretrained(folder) for folder in ("out", MODEL))
    assert torch.equal(shared.predict(images), own.predict(images))
    assert read_card(Path("out")) == read_card(Path(MODEL))
    assert "written: out" in capsys.readouterr().out
    # whoever finds it may read it, and an earlier one is replaced
    assert all(p.stat().st_mode & 0o044 for p in Path("out").rglob("*"))
    Path("out/stray.txt").touch()
    share_model(Path(MODEL), Path("out"))
    assert files_in("out") == FILES


@pytest.mark.parametrize("trained", ["exact", "fast"])
def test_what_was_scored_by_the_fast_decoder_is_shared_with_it(
    project, prepared, trained, tmp_path, monkeypatch
):
    """A model that learnt through it needs none of the program's; one that did not does."""
    pipeline = small_pipeline()
    decoder = freeze(MaskDecoder.untrained(pipeline.vae))
    monkeypatch.setattr(
        "wavegms.models.pipeline.kept_mask_decoder", lambda vae: copy.deepcopy(decoder)
    )
    pipeline.choose_decoder(trained)
    root = tmp_path / "fast"
    add_model(root, pipeline, prepared, "phantom_a", ("phantom_a",))
    add_audit(root, "phantom_a")
    params = yaml.safe_load(Path("params.yaml").read_text())
    params["autoencoder"]["source"], params["evaluation"]["decoder"] = "path", "fast"
    (root / "params.yaml").write_text(yaml.safe_dump(params))
    exported = []
    monkeypatch.setattr(
        WaveGMSPipeline,
        "export_onnx",
        lambda self, path: exported.append(self.decoder) or Path(path).write_bytes(b"onnx"),
    )
    monkeypatch.chdir(root)
    share_model(Path(MODEL), Path("out"))
    assert exported == ["fast"]
    assert Path("out/mask_decoder/config.json").is_file() == (trained == "fast")
    readme = Path("out/README.md").read_text(encoding="utf-8")
    assert 'from_pretrained("OWNER/NAME", decoder="fast")' in readme
    images = torch.rand(1, 3, 32, 32)
    exact = WaveGMSPipeline.from_pretrained("out").predict(images)
    assert torch.equal(exact, WaveGMSPipeline.from_pretrained(MODEL).predict(images))
    pipeline.choose_decoder("fast")
    opened = WaveGMSPipeline.from_pretrained("out", decoder="fast")
    assert torch.equal(opened.predict(images), pipeline.predict(images))
    monkeypatch.undo()
    if trained == "exact":
        with pytest.raises(InputError, match="no mask decoder in weights/decoders was taught"):
            WaveGMSPipeline.from_pretrained(root / "out", decoder="fast")
    else:
        WaveGMSPipeline.from_pretrained(root / "out", decoder="fast")


@pytest.mark.parametrize(
    ("broken", "said"),
    [
        (lambda root: shutil.rmtree(root / "results"), "measured with the model in"),
        (lambda root: edit_json(root / MODEL / "card.json", "epochs", value=9), "measured with"),
        (lambda root: edit_json(root / MODEL / "card.json", "weights", value=""), "are not those"),
        (lambda root: shutil.rmtree(root / MODEL / "vae"), "are not those that its card.json"),
        (lambda root: (root / MODEL / "card.json").unlink(), "card.json does not exist"),
        (lambda root: shutil.rmtree(root / MODEL), f"the folder {MODEL} does not exist"),
        (lambda root: (root / MODEL / "mapping/config.json").unlink(), "config.json is missing"),
        (lambda root: (root / "params.yaml").unlink(), "no params.yaml in"),
        (lambda root: (root / "out").write_text("mine"), "is a file where a folder is"),
    ],
)
def test_a_model_that_is_not_whole_is_not_shared(project, broken, said, capsys, survived):
    broken(project)
    before = files_in(project)
    assert main(["share", MODEL, "out"]) == 1
    error = capsys.readouterr().err
    assert said in error and len(error.splitlines()) == 1
    assert files_in(project) == before
    survived("inputs")


@pytest.mark.parametrize(
    ("out", "said"),
    [
        (".", "holds other files"),
        ("results", "holds other files"),
        ("models/phantom_a", "holds other files"),
        (MODEL, "in the model's own folder"),
        (f"{MODEL}/shared", "in the model's own folder"),
    ],
)
def test_no_folder_of_others_is_replaced(project, out, said, survived):
    before = files_in(project)
    with pytest.raises(InputError, match=said):
        share_model(Path(MODEL), Path(out))
    assert files_in(project) == before
    survived("inputs")


def test_a_failing_export_leaves_nothing(project, monkeypatch, survived):
    def fail(self, path):
        Path(path).write_bytes(b"half")
        raise InputError("no export")

    monkeypatch.setattr(WaveGMSPipeline, "export_onnx", fail)
    before = files_in(project)
    with pytest.raises(InputError, match="no export"):
        share_model(Path(MODEL), Path("out"))
    assert files_in(project) == before and not Path("out").exists()
    survived("faults")


@pytest.mark.parametrize("name", ["model", "a/b/c", "some one/model", ""])
def test_a_name_that_is_none_is_refused_before_any_work(project, name, capsys, survived):
    assert main(["share", MODEL, "out", "--push", name]) == 1
    assert "is no place on the hub: give OWNER/NAME" in capsys.readouterr().err
    assert not Path("out").exists()
    survived("inputs")


def test_a_hub_that_takes_nothing_is_named_and_the_folder_stays(project, monkeypatch, survived):
    class Refusing:
        def create_repo(self, *_, **__):
            raise OSError("401 Client Error\nmore")

    monkeypatch.setattr(sharing, "HfApi", Refusing)
    with pytest.raises(InputError, match=r"out is ready, .* \(401 Client Error\): log in by `hf"):
        share_model(Path(MODEL), Path("out"), hub_id=HUB_ID)
    assert files_in("out") == FILES
    survived("faults")


def test_parts_of_an_earlier_model_go_from_the_hub(tmp_path, monkeypatch):
    """That of a U-Net has other parts; an index that names none of them would be refused."""
    asked = {}

    class Api:
        def create_repo(self, *_, **__):
            pass

        def upload_folder(self, **options):
            asked.update(options)

    monkeypatch.setattr(sharing, "HfApi", Api)
    sharing._upload(tmp_path, HUB_ID)
    assert asked["delete_patterns"] == ["*/*.safetensors", "*/config.json"]
