"""Slices between their neighbours: as the colours of an image, in data, training and prediction."""

from functools import partial

import numpy as np
import pandas as pd
import pytest
import SimpleITK as sitk
import torch
import yaml
from conftest import NO_AUGMENTATION
from dicoms import OBLIQUE, make, write_decathlon
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from test_on_card import CPU
from test_volume_sets import prepare

from wavegms import InputError, WaveGMSPipeline
from wavegms.config import ReadingParams, check_params
from wavegms.data.batches import Augmentation, TrainingBatches
from wavegms.data.dataset import PreparedDataset
from wavegms.data.manifest import load_volumes, slice_id
from wavegms.data.on_card import CardBatches
from wavegms.data.reading import find_reading
from wavegms.images import Scale, VolumeRule
from wavegms.predict.inputs import Request
from wavegms.predict.run import predict
from wavegms.results.scores import predict_split
from wavegms.results.volumes import score_volumes

NEIGHBOURS = ReadingParams(context="neighbours")
JITTER = NO_AUGMENTATION | {"color_jitter": 1.0}


def images_of(folder, volume):
    """The prepared images of a volume along its stored axis, (D, 32, 32, 3)."""
    row = load_volumes(folder).set_index("id").loc[volume]
    ids = [slice_id(volume, number) for number in range(row["slices"])]
    return np.stack([np.asarray(Image.open(folder / "images" / f"{id}.png")) for id in ids])


@pytest.mark.parametrize("flip", [False, True])
def test_colours_are_the_slices_below_at_and_above(flip, tmp_path):
    """By the place in the body: stored from head to feet, a volume gives the same images."""
    turn = np.diag([1, -1, -1]) @ OBLIQUE if flip else OBLIQUE
    raw = write_decathlon(tmp_path / "raw", direction=turn)
    prepare(raw, tmp_path / "alone")
    prepare(raw, tmp_path / "between", reading=NEIGHBOURS)
    alone, between = (images_of(tmp_path / name, "case_1") for name in ("alone", "between"))
    assert (alone[..., 0] == alone[..., 2]).all()
    upwards = alone[::-1, ..., 0] if flip else alone[..., 0]
    padded = np.concatenate([upwards[:1], upwards, upwards[-1:]])
    wanted = np.stack([padded[:-2], padded[1:-1], padded[2:]], -1)
    np.testing.assert_array_equal(between[::-1] if flip else between, wanted)
    for name in ("masks", "originals"):
        for path in (tmp_path / "alone" / name).iterdir():
            assert path.read_bytes() == (tmp_path / "between" / name / path.name).read_bytes()
    seen = PreparedDataset(tmp_path / "between", "train")
    assert seen.scale == Scale(volumes=VolumeRule("axial", context="neighbours"))
    assert not seen.in_colour and PreparedDataset(tmp_path / "alone", "train").in_colour


def test_of_slices_that_are_all_alike_neighbours_say_nothing_new(tmp_path):
    raw = write_decathlon(tmp_path / "raw", empty=0)
    for path in (raw / "imagesTr").iterdir():
        voxels = sitk.GetArrayFromImage(sitk.ReadImage(str(path)))
        sitk.WriteImage(make(np.repeat(voxels[:1], 6, 0)), str(path))
    prepare(raw, tmp_path / "alone")
    prepare(raw, tmp_path / "between", reading=NEIGHBOURS)
    hashes = [
        pd.read_csv(tmp_path / name / "manifest.csv")["pixels"] for name in ("alone", "between")
    ]
    assert hashes[0].tolist() == hashes[1].tolist()


def test_prediction_sees_what_was_trained_on(untrained, tmp_path):
    """The score of the table is that of the predicted file, and slices alone give another mask."""
    raw, out = write_decathlon(tmp_path / "raw", direction=OBLIQUE), tmp_path / "out"
    prepare(raw, out, reading=ReadingParams(plane="coronal", context="neighbours"))
    dataset = PreparedDataset(out, "test")
    parts = untrained.encoder, untrained.mapping, untrained.vae
    pipeline = WaveGMSPipeline(*parts, image_size=32, greys=str(dataset.scale))
    soft = predict_split(pipeline, dataset)
    threshold = float(np.median(soft))
    scores = score_volumes(soft, dataset, out, threshold)
    row = load_volumes(out).set_index("id").loc[scores["id"][0]]
    labels = sitk.GetArrayFromImage(sitk.ReadImage(str(raw / row["labels"]))) > 0
    masks = []
    for name, greys in (("between", pipeline.config.greys), ("alone", "coronal:0.5-99.5")):
        model = WaveGMSPipeline(*parts, image_size=32, greys=greys)
        folder = tmp_path / name
        predict(Request(raw / row["source"], model, folder, threshold=threshold, batch_size=3))
        written = sitk.ReadImage(str(next((folder / "masks").glob("*.nii.gz"))))
        masks.append(sitk.GetArrayFromImage(written) > 0)
    between, alone = masks
    dice = 2 * (between & labels).sum() / (between.sum() + labels.sum())
    assert dice == pytest.approx(scores["dsc"][0], abs=0.01)
    assert between.sum() * 0.7 * 0.8 * 3 / 1000 == pytest.approx(
        scores["predicted_ml"][0], rel=0.01
    )
    assert (between != alone).any()


def test_pictures_have_no_neighbours(untrained, tmp_path):
    path = tmp_path / "a.png"
    Image.new("L", (32, 32), 100).save(path)
    with pytest.raises(InputError, match=r"reading\.mine\.context is of volumes, and these are"):
        find_reading("mine", [], NEIGHBOURS)
    sitk.WriteImage(make(np.arange(6 * 9 * 12).reshape(6, 9, 12)), str(tmp_path / "v.nii.gz"))
    parts = untrained.encoder, untrained.mapping, untrained.vae
    model = WaveGMSPipeline(*parts, image_size=32, greys="axial:0.5-99.5:neighbours")
    table = predict(Request(tmp_path, model, tmp_path / "out")).set_index("output")
    assert table["error"].loc["v"] == ""
    (said,) = table["error"][table["error"] != ""]
    assert str(path) in said and "give the volume" in said and "\n" not in said


def test_models_are_tested_on_images_of_their_own_kind():
    with open("params.yaml", encoding="utf-8") as file:
        values = yaml.safe_load(file) | {"reading": {"phantom_a": {"context": "neighbours"}}}
    with pytest.raises(InputError, match=r"reading\.phantom_b\.context none\): set both to the"):
        check_params(values)
    both = {name: {"context": "neighbours"} for name in ("phantom_a", "phantom_b")}
    check_params(values | {"reading": both})
    alone = values | {"generalization": [], "datasets": ["phantom_a"], "external": ["other"]}
    with pytest.raises(InputError, match="external tests a model of phantom_a on other"):
        check_params(alone)


class Slices:
    """A split in memory of images whose channels have nothing to do with each other."""

    ignored = 2

    def __init__(self):
        torch.manual_seed(0)
        self.images = torch.randint(70, 180, (12, 3, 16, 16), dtype=torch.uint8)
        self.masks = torch.ones(12, 1, 16, 16, dtype=torch.uint8)

    def __len__(self):
        return 12

    def __getitem__(self, index):
        return {"image": self.images[index], "mask": self.masks[index], "index": index}


def least_correlation(one, other):
    pairs = zip(one, other, strict=True)
    return min(float(torch.corrcoef(torch.stack(pair))[0, 1]) for pair in pairs)


@pytest.mark.parametrize("kind", [TrainingBatches, CardBatches])
def test_jitter_mixes_colours_but_no_slices(kind):
    """Brightness and contrast leave each channel a line of what it was; hue and saturation not."""
    before = Slices().images.flatten(2).double()
    for in_colour in (True, False):
        augment, made = Augmentation(**JITTER, in_colour=in_colour), Slices()
        batches = kind(made, augment, batch_size=12, seed=1, device=CPU)
        (batch,) = batches.epoch(3)
        after = batch.images.flatten(2).double()
        # in a new order: each is the one whose channels it is most like
        like = [max(map(partial(least_correlation, one), before)) for one in after]
        assert (min(like) > 0.9999) != in_colour
        assert not any(torch.equal(new, old / 255) for new in after for old in before)


@given(
    plane=st.sampled_from(["axial", "coronal", "sagittal"]),
    context=st.sampled_from(["none", "neighbours"]),
)
@settings(max_examples=6)
def test_a_scale_keeps_the_context(plane, context):
    scale = Scale(volumes=VolumeRule(plane, (1, 99), context))
    assert Scale.parse(str(scale)) == scale and scale.context == context
    assert str(Scale(volumes=VolumeRule(plane))) == f"{plane}:0.5-99.5"
