"""Sentences that lead to the way out: other folders, files for folders, slips in names."""

from pathlib import Path

import pytest
import SimpleITK as sitk
from dicoms import make, random_voxels, write_series
from PIL import Image

import wavegms.models.pipeline as door
from wavegms import InputError, WaveGMSPipeline, load_autoencoder, load_sd_vae
from wavegms.__main__ import main
from wavegms.files import is_hub_id
from wavegms.predict.inputs import find_sources

MODEL = "models/phantom_a/wave_gms"


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder with two models, and no hub that may be asked."""
    for name in ("busi", "isic"):
        (tmp_path / f"models/{name}").mkdir(parents=True)
    (tmp_path / "a.png").touch()
    monkeypatch.chdir(tmp_path)

    def refuse(*_, **__):
        raise AssertionError("the hub was asked")

    monkeypatch.setattr(door, "snapshot_download", refuse)
    monkeypatch.setattr("huggingface_hub.file_download.hf_hub_download", refuse)
    return tmp_path


OPENERS = [WaveGMSPipeline.from_pretrained, load_autoencoder, load_sd_vae]


@pytest.mark.parametrize("opened", OPENERS)
def test_a_slip_in_the_name_of_a_folder_is_not_asked_of_the_hub(here, monkeypatch, opened):
    known = r" \(models has busi, isic\)"
    for name in ("models/buzi", "./models/buzi", Path("models/buzi")):
        with pytest.raises(InputError, match=f"models/buzi does not exist{known}: "):
            opened(name)
    (here / "empty").mkdir()
    monkeypatch.chdir(here / "empty")  # where no models lie, either
    with pytest.raises(InputError, match="models/busi does not exist: "):
        opened("models/busi")


def test_what_is_a_hub_id(here):
    assert is_hub_id("madebyollin/taesd") and is_hub_id("some.one/a-model_1")
    (here / "mine").mkdir()
    for name in ("models/x", "mine/x", "./x", "../x", "x", "a/b/c", "a b/c", Path("a/b")):
        assert not is_hub_id(name), name
    (here / "checkpoints").mkdir()
    for name in ("modles/x", "model/x", "Models/x", "chekpoints/x", "a/b.safetensors"):
        assert not is_hub_id(name), name


@pytest.mark.parametrize("opened", OPENERS)
def test_a_slip_in_a_folder_above_is_not_asked_of_the_hub(here, opened):
    with pytest.raises(InputError, match=r"modles/busi does not exist \(models has busi, isic\)"):
        opened("modles/busi")


@pytest.mark.parametrize("opened", OPENERS)
def test_a_file_for_a_folder_is_called_one(here, opened):
    for name in ("a.png", Path("a.png"), str(here / "a.png")):
        with pytest.raises(InputError, match=r"a\.png is a file where a folder belongs: give"):
            opened(name)


@pytest.mark.parametrize(
    "command",
    [["share", "a.png", "out"], ["predict", "models", "--model", "a.png", "--out", "out"]],
    ids=lambda command: command[0],
)
def test_so_do_commands(here, capfd, command):
    (here / "params.yaml").touch()
    assert main(command) == 1
    assert "a.png is a file where a folder belongs" in capfd.readouterr().err
    assert not Path("out").exists()


@pytest.mark.parametrize("folder", [".", "notebooks", "results/scores/phantom_a"])
def test_trace_finds_the_project_from_below(small_project, folder, monkeypatch, capfd):
    monkeypatch.chdir(small_project / folder)
    assert main(["trace", "phantom_a", "wave_gms"]) == 0
    assert capfd.readouterr().out.startswith("results/tables/segmentation.csv, line ")


@pytest.mark.slow
@pytest.mark.parametrize(
    "command",
    [["share", f"../{MODEL}", "../../shared"], ["report", "--out", "../../out.html"]],
    ids=lambda command: command[0],
)
def test_paths_are_seen_from_where_a_command_starts(small_copy, monkeypatch, command):
    monkeypatch.setattr(WaveGMSPipeline, "export_onnx", lambda self, path: path.touch())
    monkeypatch.chdir(small_copy / "notebooks")
    assert main(command) == 0
    assert (small_copy / "notebooks" / command[-1]).exists()


@pytest.mark.parametrize(
    "command",
    [
        ["trace", "phantom_a", "wave_gms"],
        ["share", MODEL, "out"],
        ["report"],
        ["sweep", "train", "--executor", "local"],
        ["get", "taesd"],
        ["add", "mine"],
    ],
    ids=lambda command: command[0],
)
def test_outside_a_project_is_said(tmp_path, monkeypatch, capfd, command):
    monkeypatch.chdir(tmp_path)
    assert main(command) == 1
    said = capfd.readouterr().err
    assert "no params.yaml in" in said and "run this inside the project's folder" in said
    assert list(tmp_path.iterdir()) == []


def without_pixels(path, head=b"\0" * 128 + b"DICM", tail=b""):
    """As a report, contours or the settings of a display begin: the mark, then tags."""
    path.write_bytes(head + b"\x02\x00\x02\x00UI\x1a\x001.2.840.10008.5.1.4.1.1.88.11\0" + tail)
    return path


@pytest.mark.parametrize("name", ["report.dcm", "RTSTRUCT.ima", "SR0001", "a.dicom"])
def test_dicom_without_pixels_is_passed_over(tmp_path, name):
    write_series(tmp_path / "scan", make(random_voxels((4, 9, 12))))
    bare = without_pixels(tmp_path / "scan" / name)
    Image.new("L", (8, 8)).save(tmp_path / "scan/a.png")
    for inputs in ([tmp_path / "scan"], [str(tmp_path / "scan/*"), tmp_path / "scan"]):
        sources, ignored = find_sources(inputs)
        assert bare not in [source.path for source in sources] and bare in ignored
        assert tmp_path / "scan/a.png" in [source.path for source in sources]
        assert any(len(source.series) == 4 for source in sources) or len(inputs) == 2
    with pytest.raises(InputError, match="holds no image"):
        find_sources([bare])


def test_dicom_with_pixels_is_not(tmp_path):
    """Of integers or floats, in either order of bytes; compressed as a whole; and damaged files."""
    tags = [b"\xe0\x7f\x10\x00", b"\xe0\x7f\x08\x00", b"\xe0\x7f\x09\x00", b"\x7f\xe0\x00\x10"]
    kept = [
        without_pixels(tmp_path / f"{number}.dcm", tail=tag)
        for number, tag in enumerate([*tags, b"1.2.840.10008.1.2.1.99\0"])
    ]
    kept.append(without_pixels(tmp_path / "no mark.dcm", head=b""))
    kept.append(tmp_path / "empty.dcm")
    kept[-1].touch()
    image = tmp_path / "true.dcm"
    sitk.WriteImage(make(random_voxels((1, 9, 12)))[:, :, 0], str(image))
    for path in [*kept, image]:
        assert [source.path for source in find_sources([path])[0]] == [path]
