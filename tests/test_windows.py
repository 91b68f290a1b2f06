"""Volumes as windows of slices: their order, augmentation, training and prediction."""

from collections import Counter
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from accelerate import Accelerator
from conftest import NO_AUGMENTATION
from dicoms import OBLIQUE, UPRIGHT, make, write_decathlon
from explorer_project import write_model
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from runs import grey_vae, make_run
from test_on_card import CPU
from test_volume_sets import prepare
from test_volumes import rotations
from torch.utils.data import Subset

from wavegms import InputError, WaveGMSPipeline
from wavegms.classes import label_map
from wavegms.config import AugmentationParams, ReadingParams
from wavegms.data.batches import Augmentation, TrainingBatches, WindowOrder
from wavegms.data.dataset import PreparedDataset
from wavegms.data.manifest import load_volumes
from wavegms.data.on_card import CardBatches
from wavegms.data.volumes import Stack
from wavegms.data.windows import Stacks, runs_upwards
from wavegms.explore.cases import Workbench
from wavegms.images import FOREGROUND
from wavegms.models.build import as_pipeline, build_variant
from wavegms.models.palette import Palette
from wavegms.models.windows import in_parts
from wavegms.predict.inputs import Request
from wavegms.predict.run import predict
from wavegms.predict.tta import AugmentedPipeline, views_of
from wavegms.results.scores import predict_split, score_split
from wavegms.results.volumes import score_volumes
from wavegms.training.device import training_batches
from wavegms.training.loss import WaveGMSLoss
from wavegms.training.publish import publish_model
from wavegms.training.recipe import loss_terms, train
from wavegms.variants import VARIANTS, WINDOW

STACKS = st.lists(st.integers(1, 30), min_size=1, max_size=5)


def stacks_of(lengths):
    """Places of the slices of volumes of these lengths, upside down in every other one."""
    ends = np.cumsum(lengths)
    stacks = [list(range(end - n, end)) for end, n in zip(ends, lengths, strict=True)]
    return [one[::-1] if number % 2 else one for number, one in enumerate(stacks)]


@given(STACKS, st.integers(1, 3), st.integers(2, 8), st.integers(0, 99), st.integers(1, 3))
@settings(max_examples=60, deadline=None)
def test_windows_are_of_one_volume_and_leave_nothing_out(lengths, windows, depth, seed, epoch):
    stacks = stacks_of(lengths)
    order = WindowOrder(stacks, depth, windows * depth, seed, 0, 1)
    order.epoch = epoch
    batches = list(order)
    assert len(batches) == len(order) and all(len(one) == windows * depth for one in batches)
    if windows > 1:
        return  # a short last batch is dropped
    of = {index: stack for stack in stacks for index in stack}
    seen = Counter()
    for batch in batches:
        for start in range(0, len(batch), depth):
            window = batch[start : start + depth]
            stack = of[window[0].index]
            first = stack.index(window[0].index)
            kept = [key.index for key in window if key.counted]
            assert kept == stack[first : first + depth]
            assert all(key.index == stack[-1] for key in window[len(kept) :])
            assert {key.drawn_as for key in window} == {window[0].index}
            seen.update(kept)
    assert set(seen) == set(of) and max(seen.values()) <= 2
    assert len(batches) * depth <= len(of) + depth * len(stacks)


def test_windows_begin_elsewhere_in_each_epoch():
    order = WindowOrder(stacks_of([30]), 8, 8, 1, 0, 1)
    begins = []
    for epoch in range(1, 7):
        order.epoch = epoch
        begins.append({batch[0].index for batch in order})
        assert begins[-1] == {batch[0].index for batch in order}
    assert len(set(map(frozenset, begins))) > 2


@given(st.sampled_from([2, 3]), st.integers(0, 9))
@settings(max_examples=6)
def test_processes_share_whole_windows(processes, seed):
    share = stacks_of([20, 9, 5]), 4, 4 * 6, seed
    alone = WindowOrder(*share, 0, 1)
    parts = [WindowOrder(*share, process, processes) for process in range(processes)]
    for whole, *pieces in zip(alone, *parts, strict=True):
        assert [key for piece in pieces for key in piece] == whole


class Marked:
    """Slices in memory, in which a window's first pixel rows show what was done to it."""

    classes, ignored = (), 2

    def __init__(self, count):
        torch.manual_seed(0)
        self.images = torch.randint(70, 180, (1, 3, 16, 16), dtype=torch.uint8)
        self.images = self.images.repeat(count, 1, 1, 1)
        self.masks = torch.ones(count, 1, 16, 16, dtype=torch.uint8)

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        return {"image": self.images[index], "mask": self.masks[index], "index": index}


@pytest.mark.parametrize("kind", [TrainingBatches, CardBatches])
def test_all_slices_of_a_window_are_augmented_in_one_way(kind):
    """Slices that are all alike stay so within a window, and differ between windows."""
    data = Marked(20)
    lively = Augmentation(**dict.fromkeys(NO_AUGMENTATION, 1.0))
    shape = {"stacks": stacks_of([17, 3]), "depth": 4, "batch_size": 8}
    made = list(kind(data, lively, seed=1, device=CPU, **shape).epoch(1))
    windows = torch.cat([batch.images for batch in made]).unflatten(0, (-1, 4))
    assert len(windows) == 6
    assert torch.equal(windows, windows[:, :1].expand_as(windows))
    assert len({window[0].numpy().tobytes() for window in windows}) > 3
    # the short volume's window is filled up, and that slice does not count
    masks = torch.cat([batch.masks for batch in made])
    ignored = (masks == data.ignored).flatten(1).all(1)
    assert ignored.sum() == 1 and not (masks[~ignored] == data.ignored).any()
    # and the noise is each slice's own
    numbers = made[0].generators
    drawn = numbers if kind is CardBatches else [torch.randn(4, generator=one) for one in numbers]
    assert len({one.numpy().tobytes() for one in drawn}) > 4


@given(st.integers(1, 40), st.integers(2, 9))
@settings(max_examples=40, deadline=None)
def test_what_windows_agree_on_is_their_mean(count, depth):
    """Each slice once and in order; what all windows say of it is what comes out."""
    truth, asked = torch.rand(count, 1, 2, 2), []

    def of_window(places):
        asked.append(places)
        return truth[places.start : places.stop]

    parts = list(in_parts(of_window, count, 3, depth))
    assert [place for places, _ in parts for place in places] == list(range(count))
    torch.testing.assert_close(torch.cat([soft for _, soft in parts]), truth)
    assert {len(places) for places in asked} == {min(count, depth)}
    assert {place for places in asked for place in places} == set(range(count))


@given(st.integers(2, 40), st.integers(2, 9))
@settings(max_examples=40, deadline=None)
def test_windows_weigh_by_the_nearness_of_their_middle(count, depth):
    """Against the weighted mean as it is written, over all windows at once."""
    said = {}

    def of_window(places):
        said[places] = torch.rand(len(places), 1)
        return said[places].clone()

    found = torch.cat([soft for _, soft in in_parts(of_window, count, 3, depth)])
    for place in range(count):
        near = [
            (min(place - one.start, one.stop - 1 - place) + 1, soft[place - one.start])
            for one, soft in said.items()
            if place in one
        ]
        wanted = sum(weight * value for weight, value in near) / sum(weight for weight, _ in near)
        torch.testing.assert_close(found[place], wanted)


@given(direction=rotations(), plane=st.sampled_from(["axial", "coronal", "sagittal"]))
@settings(max_examples=20, deadline=None)
def test_a_header_says_which_way_slices_run(direction, plane, tmp_path_factory):
    path = tmp_path_factory.mktemp("volume") / "volume.nii.gz"
    image = make(np.zeros((3, 4, 5), np.uint8), direction=direction)
    sitk.WriteImage(image, str(path))
    upwards = Stack(image, plane).numbers[0] == 0
    assert runs_upwards(path, plane) == upwards
    path.unlink()
    with pytest.raises(InputError, match="is missing or damaged: run the prepare stage again"):
        runs_upwards(path, plane)


@pytest.mark.parametrize("flip", [False, True])
def test_stacks_lie_as_in_the_body(flip, tmp_path):
    """Stored from head to feet, a volume gives the same stack; a part has whole volumes."""
    turn = np.diag([1, -1, -1]) @ UPRIGHT if flip else UPRIGHT
    raw = write_decathlon(tmp_path / "raw", direction=turn)
    prepare(raw, tmp_path / "out")
    dataset = PreparedDataset(tmp_path / "out", "train")
    stacks = Stacks.of(dataset).places
    assert [[dataset.ids[place][-3:] for place in stack] for stack in stacks] == [
        [f"{number:03d}" for number in (range(6)[::-1] if flip else range(6))]
    ] * len(stacks)
    assert sorted(place for stack in stacks for place in stack) == list(range(len(dataset)))
    kept = sorted(stacks[1])
    assert Stacks.of(Subset(dataset, kept)).places == [[kept.index(one) for one in stacks[1]]]


def test_pictures_have_no_stacks(train_set):
    with pytest.raises(InputError, match="prepared from pictures, and a 3-D network takes"):
        Stacks.of(train_set)


# the loop, tables and prediction


@pytest.fixture(scope="module")
def brain(made_once):
    """Eight small volumes, most of more slices than a window, some of fewer."""

    def fill(folder):
        write_decathlon(folder / "raw", shape=(13, 9, 12), direction=OBLIQUE)
        write_decathlon(folder / "short", shape=(5, 9, 12))
        for part in ("imagesTr", "labelsTr"):
            for path in (folder / "short" / part).iterdir():
                path.rename(folder / "raw" / part / f"short_{path.name}")
        prepare(folder / "raw", folder / "out")

    return made_once("brain_3d", fill)


@pytest.fixture
def run_of(brain, training_params, tmp_path):
    def make(variant, **changes):
        train_set, val = (PreparedDataset(brain / "out", name) for name in ("train", "val"))
        lively = AugmentationParams(**dict.fromkeys(NO_AUGMENTATION, 0.5))
        values = {"epochs": 1, "batch_size": 12, "augmentation": lively}
        vae = grey_vae() if VARIANTS[variant].autoencoder else None
        settings = training_params(**values | changes)
        return make_run(tmp_path, train_set, val, settings, variant=variant, vae=vae)

    return make


@pytest.mark.parametrize("variant", ["unet_3d", "wave_gms_3d"])
def test_from_volumes_to_scores_and_predicted_files(variant, run_of, brain, tmp_path):
    """Trained, kept, scored in 3-D; and the file that is predicted has the table's Dice."""
    run = run_of(variant)
    assert run.batch_size == WINDOW
    shown = []
    result = train(run, watch=lambda epoch, soft: shown.append(soft))
    publish_model(run, result)
    pipeline = WaveGMSPipeline.from_pretrained(run.published)
    val, test = run.selection_set, PreparedDataset(brain / "out", "test")
    chosen = predict_split(pipeline, val)
    np.testing.assert_allclose(shown[result.best_epoch - 1][:, 0].numpy(), chosen, atol=1e-4)
    masks = torch.stack([val[index]["mask"] for index in range(len(val))])[:, 0].numpy()
    dice = []
    for stack in Stacks.of(val).places:
        soft, truth = chosen[stack], masks[stack] == FOREGROUND
        dice.append(2 * (soft * truth).sum() / (soft.sum() + truth.sum()))
    assert result.best_dice == pytest.approx(np.mean(dice), abs=1e-4)
    soft = predict_split(pipeline, test)
    threshold = float(np.median(soft))
    scores = score_volumes(soft, test, brain / "out", threshold)
    row = load_volumes(brain / "out").set_index("id").loc[scores["id"][0]]
    source = brain / "raw" / row["source"]
    table = predict(Request(source, pipeline, tmp_path / "said", threshold=threshold, batch_size=3))
    assert table["volume_ml"][0] == pytest.approx(scores["predicted_ml"][0], rel=0.01)
    assert len(score_split(soft, test, threshold)) == len(test)


class Watched:
    """A network that notes how many slices it was shown, and says how bright they are."""

    depth = 8

    def __init__(self):
        self.sizes = []

    def __call__(self, images):
        self.sizes.append(len(images))
        return images.mean(1, keepdim=True)


def test_memory_does_not_grow_with_the_volume(brain, tmp_path, monkeypatch):
    """However many slices there are, the network is shown one window at once, or what there is."""
    pipeline = as_pipeline(build_variant("unet_3d"), None, 32)
    network = Watched()
    monkeypatch.setattr(pipeline.network, "forward", network)
    test = PreparedDataset(brain / "out", "test")
    soft = predict_split(pipeline, test, batch_size=100)
    images = np.stack([test[index]["image"].numpy() for index in range(len(test))])
    # what all windows say of a slice is what it is, whatever the order of the volumes
    np.testing.assert_allclose(soft, images.mean(1) / 255, atol=1e-5)
    longest = make(np.random.default_rng(0).integers(0, 500, (67, 9, 12)).astype(np.int16))
    sitk.WriteImage(longest, str(tmp_path / "long.nii.gz"))
    request = Request(tmp_path / "long.nii.gz", pipeline, tmp_path / "out", batch_size=50)
    assert predict(request)["slices"].tolist() == [67]
    assert max(network.sizes) == 8 and len(network.sizes) < 67


def test_the_pipeline_takes_a_stack_and_averages_views():
    torch.manual_seed(0)
    pipeline = as_pipeline(build_variant("unet_3d"), None, 32)
    pipeline.set_progress_bar_config(disable=True)
    stack = np.random.default_rng(0).integers(0, 256, (11, 20, 30), dtype=np.uint8)
    found = pipeline(stack, batch_size=2)
    assert [one.shape for one in found.probabilities] == [(20, 30)] * 11
    alone = pipeline(stack[:8])
    np.testing.assert_allclose(alone.probabilities[0], found.probabilities[0], atol=1e-6)
    assert (alone.probabilities[7] != found.probabilities[7]).any()
    views = views_of({"horizontal_flip": 0.5})
    augmented = AugmentedPipeline.of(pipeline, views)
    slices = torch.rand(8, 3, 32, 32)
    wanted = (pipeline.predict(slices) + pipeline.predict(slices.flip(-1)).flip(-1)) / 2
    torch.testing.assert_close(augmented.predict(slices), wanted)
    assert augmented.depth == 8


def test_pictures_are_refused(train_set, validation_set, training_params, prepared, tmp_path):
    pipeline = as_pipeline(build_variant("unet_3d"), None, 32)
    with pytest.raises(InputError, match="prepared from pictures, and a 3-D network"):
        predict_split(pipeline, train_set)
    run = make_run(tmp_path, train_set, validation_set, training_params(), variant="unet_3d")
    with pytest.raises(InputError, match=r"variant unet_3d takes windows of 8 .* are pictures"):
        train(run)
    path = tmp_path / "a.png"
    Image.new("L", (32, 32), 100).save(path)
    (said,) = predict(Request(path, pipeline, tmp_path / "out"))["error"]
    assert str(path) in said and said.endswith("give the volume.")
    with pytest.raises(InputError, match="an ONNX file here is of single images"):
        pipeline.export_onnx(tmp_path / "model.onnx")
    write_model(tmp_path / "model", pipeline, prepared, variant="unet_3d")
    bench = Workbench(prepared.parent, seed=0)
    with pytest.raises(InputError, match="UNet 3-D takes windows of 8 slices, and the explorer"):
        bench.open_model(SimpleNamespace(folder=tmp_path / "model", title="UNet 3-D"))


def test_processes_that_cannot_share_windows_are_told(run_of, monkeypatch):
    several = SimpleNamespace(num_processes=2, process_index=0, device=CPU, prepare=lambda x: x)
    monkeypatch.setattr("wavegms.training.recipe.Accelerator", lambda **_: several)
    with pytest.raises(InputError, match="is 8, windows of 8 slices, which 2 processes cannot"):
        train(run_of("unet_3d"))


@pytest.mark.parametrize("variant", ["unet_3d", "wave_gms_3d"])
def test_several_classes_are_found_in_windows(variant, run_of, brain, tmp_path):
    """A step of training, and the label map of a file that of the averaged probabilities."""
    names = ReadingParams(classes=["head", "body"])
    prepare(brain / "raw", tmp_path / "two", reading=names)
    train_set, val = (PreparedDataset(tmp_path / "two", name) for name in ("train", "val"))
    run = replace(run_of(variant), train_set=train_set, selection_set=val)
    batches = training_batches(run, run.batch_size, Accelerator(cpu=True))
    batch = next(batches.epoch(1))
    model = build_variant(variant, classes=2)
    pipeline = as_pipeline(model, run.vae, 32, train_set.scale, train_set.classes)
    palette = Palette.of(train_set.classes)
    given = batch.images, batch.masks, batch.generators
    terms = loss_terms(VARIANTS[variant], model, WaveGMSLoss(palette=palette), run.vae, *given)
    assert torch.isfinite(terms["loss"])
    soft = predict_split(pipeline, val)
    assert soft.shape == (len(val), 2, 32, 32) and soft.sum(1).max() <= 1 + 1e-5
    row = load_volumes(tmp_path / "two").query("split == 'val'").iloc[0]
    source, out = brain / "raw" / row["source"], tmp_path / "out"
    assert (predict(Request(source, pipeline, out))["error"] == "").all()
    read = lambda path: sitk.GetArrayFromImage(sitk.ReadImage(str(path)))  # noqa: E731
    (mask,) = (out / "masks").glob("*.nii.gz")
    shares = [next((out / "probabilities").glob(f"*{name}*")) for name in train_set.classes]
    wanted = label_map(np.stack([read(path) for path in shares], axis=1))
    assert (read(mask) == wanted).mean() > 0.999
