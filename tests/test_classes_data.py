"""Several classes from raw files to a prepared folder, a trained model, scores and predictions."""

import json
import shutil
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import SimpleITK as sitk
import torch
import yaml
from copies import ROOT
from dvc.utils.hydra import compose_and_dump
from layouts import BOX, SIZE, picture, save
from PIL import Image
from runs import grey_vae, make_run
from scores import invent_scores, put
from test_classes import RIVALS

from wavegms.classes import label_map
from wavegms.config import (
    AutoencoderParams,
    LossParams,
    ModelParams,
    ReadingParams,
    TrainingParams,
)
from wavegms.costs.autoencoders import repaint
from wavegms.data.batches import Augmentation
from wavegms.data.catalog import find_cases
from wavegms.data.dataset import PreparedDataset
from wavegms.data.manifest import load_manifest
from wavegms.data.prepare import prepare_dataset
from wavegms.errors import InputError
from wavegms.models.autoencoder import encode_images
from wavegms.models.build import as_pipeline, build_variant
from wavegms.models.palette import Palette
from wavegms.models.rivals import gss
from wavegms.predict.inputs import Request
from wavegms.predict.run import CLASS_COLUMNS, predict
from wavegms.results.metrics import mask_metrics
from wavegms.results.readable import readable_classes
from wavegms.results.scores import predict_split, score_split, write_scores
from wavegms.results.statistics import summarize, summarize_classes
from wavegms.results.tables import class_table, read_scores
from wavegms.run.check import check_inputs
from wavegms.training import autoencoder
from wavegms.training.autoencoder import (
    ReconstructionQuality,
    Repainted,
    class_quality,
    colours_loss,
    describe_autoencoder,
    require_classes_apart,
    write_quality,
)
from wavegms.training.kept import keep_weights, start_network
from wavegms.training.loss import soft_dice
from wavegms.training.publish import publish_model
from wavegms.training.recipe import train
from wavegms.training.run import Run
from wavegms.variants import VARIANTS

NAMES = ("mass", "cyst")
LEFT, TOP, RIGHT, BOTTOM = BOX


def labels(odd=0):
    """Class 1 in the left half of the lesion, 2 in the right one."""
    map_ = np.zeros(SIZE[::-1], np.uint8)
    middle = (LEFT + RIGHT) // 2
    map_[TOP:BOTTOM, LEFT:middle], map_[TOP:BOTTOM, middle:RIGHT] = 1, 2
    map_[0, 0] = odd
    return map_


def write_maps(folder, count=10, odd=0):
    for number in range(count):
        save(picture(number), folder / f"images/{number}.png")
        save(Image.fromarray(labels(odd)), folder / f"masks/{number}.png")
    return folder


def write_folders(folder, count=10):
    """The cyst lies on the mass, as two folders; the last images have only one."""
    for number in range(count):
        save(picture(number), folder / f"images/{number}.png")
        mass = Image.fromarray(np.uint8(255) * (labels() > 0))
        cyst = Image.fromarray(np.uint8(255) * (labels() == 2))
        if number != count - 1:
            save(mass, folder / f"masks/mass/{number}.png")
        if number != count - 2:
            save(cyst, folder / f"masks/cyst/{number}.png")
    return folder


def prepare(raw, out, name="mine", reading=None, size=32):
    return prepare_dataset(
        name,
        raw,
        out,
        image_size=size,
        split="random",
        split_folder=raw,
        test_fraction=0.2,
        validation_fraction=0.2,
        seed=0,
        reading=reading and ReadingParams.check(reading),
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("classes")
    report = prepare(write_maps(root / "raw"), root / "prepared", reading={"classes": list(NAMES)})
    assert report.evidence[1] == "masks: label maps of the classes mass 1, cyst 2"
    return root / "prepared"


def test_label_maps_are_prepared_with_names_and_colours(folder):
    dataset = PreparedDataset(folder, ("train", "val", "test"))
    assert dataset.classes == NAMES and set(dataset.masks.unique().tolist()) == {0, 1, 2}
    wanted = Image.fromarray(labels()).resize((32, 32), Image.Resampling.NEAREST)
    np.testing.assert_array_equal(dataset.masks[0, 0], np.array(wanted))
    assert torch.equal(PreparedDataset(folder, "val", in_memory=False)[0]["mask"], dataset.masks[0])
    with Image.open(folder / "masks/0.png") as mask:
        assert mask.mode == "P"
        colours = set(map(tuple, np.array(mask.convert("RGB")).reshape(-1, 3).tolist()))
    assert colours == {(0, 0, 0), (255, 255, 0), (0, 255, 255)}
    assert set(load_manifest(folder)["classes"]) == {"mass cyst"}


def test_one_class_has_no_such_column(prepared):
    assert "classes" not in pd.read_csv(prepared / "manifest.csv")
    assert PreparedDataset(prepared, "train").classes == ()


def test_folders_are_classes_and_the_later_lies_on_top(tmp_path):
    raw = write_folders(tmp_path / "raw")
    with pytest.raises(InputError, match=r"a folder for each of cyst, mass: name them as reading"):
        prepare(raw, tmp_path / "out")
    report = prepare(raw, tmp_path / "out", reading={"classes": list(NAMES)})
    assert report.joined == 8
    dataset = PreparedDataset(tmp_path / "out", ("train", "val", "test"))
    by_id = dict(zip(dataset.ids, dataset.masks[:, 0].numpy(), strict=True))
    whole = np.array(Image.fromarray(labels()).resize((32, 32), Image.Resampling.NEAREST))
    np.testing.assert_array_equal(by_id["0"], whole)
    np.testing.assert_array_equal(by_id["8"], whole > 0)
    np.testing.assert_array_equal(by_id["9"], 2 * (whole == 2))
    with pytest.raises(
        InputError, match=r"masks/cyst is no folder of a class of mine \(mass, ball"
    ):
        prepare(raw, tmp_path / "other", reading={"classes": ["mass", "ball"]})
    (raw / "masks/mass/0.jpg").write_bytes((raw / "masks/mass/0.png").read_bytes())
    with pytest.raises(InputError, match="two masks in one folder of a class"):
        find_cases("mine", raw)


@pytest.mark.parametrize(
    "written",
    [{"0": "background", "1": "mass", "2": "cyst"}, {"cyst": 2, "background": 0, "mass": "1"}],
)
def test_a_dataset_json_names_the_classes(tmp_path, written):
    raw = write_maps(tmp_path / "raw")
    (raw / "dataset.json").write_text(json.dumps({"labels": written}))
    prepare(raw, tmp_path / "out")
    assert PreparedDataset(tmp_path / "out", "train").classes == NAMES
    # unless they are all one
    prepare(raw, tmp_path / "one", reading={"foreground": [1, 2]})
    assert PreparedDataset(tmp_path / "one", "train").classes == ()
    (raw / "dataset.json").write_text('{"labels": [1]}')
    with pytest.raises(InputError, match="does not name single label values"):
        prepare(raw, tmp_path / "out")


def test_a_value_of_no_class_is_named_unless_it_is_ignored(tmp_path):
    raw = write_maps(tmp_path / "raw", odd=7)
    with pytest.raises(InputError, match=r"10 images .*masks/0\.png: it has the value 7"):
        prepare(raw, tmp_path / "out", reading={"classes": list(NAMES)})
    assert not (tmp_path / "out").exists()
    report = prepare(raw, tmp_path / "out", reading={"classes": list(NAMES), "ignore": [7]})
    assert report.ignored > 0 and not report.differences
    assert 3 in PreparedDataset(tmp_path / "out", "train").masks
    classes = {"mass": 1, "cyst": 2, "node": 3}
    report = prepare(raw, tmp_path / "out", reading={"classes": classes, "ignore": [7]})
    assert "No mask has a pixel of the class node" in report.differences[0]


def test_augmentation_keeps_the_numbers(folder):
    dataset = PreparedDataset(folder, "train")
    chances = dict.fromkeys(
        ("horizontal_flip", "vertical_flip", "rotate_90", "color_jitter", "shift_scale_rotate"), 1.0
    )
    torch.manual_seed(0)
    images = PreparedDataset.to_float(dataset.images)
    _, masks = Augmentation(**chances)(images, PreparedDataset.mask_to_float(dataset.masks))
    assert set(masks.unique().tolist()) == {0, 1, 2}
    assert not torch.equal(masks, dataset.masks.float())


@pytest.fixture(scope="module", params=["wave_gms", pytest.param("unet", marks=pytest.mark.slow)])
def trained(request, folder, training_params, tmp_path_factory):
    train_set, selecting = PreparedDataset(folder, "train"), PreparedDataset(folder, "val")
    vae = grey_vae() if request.param == "wave_gms" else None
    settings = training_params(epochs=2, learning_rate=3e-3)
    run = make_run(
        tmp_path_factory.mktemp(request.param),
        train_set,
        selecting,
        settings,
        vae=vae,
        variant=request.param,
        dataset="phantom_c",
    )
    result = train(run)
    assert result.history["loss"].iloc[-1] < result.history["loss"].iloc[0]
    return run, publish_model(run, result)


def test_a_training_asks_whether_its_autoencoder_tells_the_classes_apart(
    folder, small_vae, tmp_path
):
    place = tmp_path / "data/prepared/phantom_c"
    shutil.copytree(folder, place)
    values = yaml.safe_load((ROOT / "params.yaml").read_text())
    settings = AutoencoderParams.check(values["autoencoder"])
    good = ReconstructionQuality(20.0, 0.99, 4)
    small_vae.save_pretrained(tmp_path / "models/autoencoder/phantom_c")
    write_quality(
        tmp_path / "models/autoencoder/phantom_c", describe_autoencoder(settings, good, good)
    )
    sections = {"training": TrainingParams, "loss": LossParams, "model": ModelParams}
    how = {name: kind.check(values[name]) for name, kind in sections.items()}
    with pytest.raises(InputError, match="gives the class mass back with Dice 0"):
        Run.of("phantom_c", "wave_gms", 1, autoencoder=settings, project=tmp_path, **how)
    assert Run.of("phantom_c", "unet", 1, autoencoder=settings, project=tmp_path, **how).vae is None


class Paint(torch.nn.Module):
    """An autoencoder whose latents are the colours of 8x8 pixels, mixed by a matrix."""

    def __init__(self, mixed):
        super().__init__()
        self.mixed, self.device = torch.tensor(mixed), torch.device("cpu")

    def encode(self, pixels):
        latents = torch.einsum("ij,bjhw->bihw", self.mixed, pixels[..., ::8, ::8])
        return SimpleNamespace(latents=latents)

    def decode(self, latents):
        pixels = latents.repeat_interleave(8, 2).repeat_interleave(8, 3)
        return SimpleNamespace(sample=pixels)


def test_a_class_between_two_others_is_named_before_training(folder, monkeypatch):
    dataset, truth = PreparedDataset(folder, "train"), {"mass": 1, "cyst": 2}

    def repaint(_, dataset, *__):
        masks = dataset.masks.float()
        found = torch.cat([masks == number for number in truth.values()], 1).float()
        yield Repainted(masks, found, torch.zeros(len(masks)))

    monkeypatch.setattr(autoencoder, "repaint_split", repaint)
    found = class_quality(Paint(np.eye(3, dtype=np.float32)), dataset)
    # black, yellow and cyan are the corners of a triangle of equal sides
    for one in found.values():
        assert one.dice == 1 and one.apart == pytest.approx(3**0.5)
    require_classes_apart(found, 0.9)
    # a matrix that puts cyan beside the middle of black and yellow
    for off in (0.1, 0.2):
        mixed = np.float32([[0.5, 0.5, 0], [0, 0, off], [0, 0, 0]])
        found = class_quality(Paint(mixed), dataset)
        assert found["cyst"].apart == pytest.approx(2 * off)
        assert found["cyst"].between == ("background", "mass")
        if off == 0.2:
            require_classes_apart(found, 0.9)
            continue
        with pytest.raises(InputError, match=r"class cyst from .* background and mass: .* 0\.20"):
            require_classes_apart(found, 0.9)
    with pytest.raises(InputError, match=r"class mass back with Dice 0\.500 only"):
        require_classes_apart({"mass": found["mass"]._replace(dice=0.5)}, 0.9)


def test_colours_are_learned_apart():
    """Nothing is lost where latents are the colours; where one is doubled, what a formula says."""
    palette = Palette.of(NAMES)
    numbers = torch.randint(0, 3, (4, 1, 2, 2)).float()
    painted = palette.paint(numbers.repeat_interleave(8, 2).repeat_interleave(8, 3))
    for mixed in (np.eye(3), np.diag([1, 1, 2])):
        vae = Paint(np.float32(mixed))
        lost = colours_loss(vae, painted, encode_images(vae, painted), palette)
        # from black to yellow and to cyan, and from one to the other
        sides = np.linalg.norm(np.array([[1, 1, 0], [0, 1, 1], [1, 0, -1]]) @ mixed, axis=1)
        apart = 0.1 * np.square(sides / sides.mean() - 1).mean()
        if (mixed == np.eye(3)).all():
            assert lost.item() == pytest.approx(0, abs=1e-6)
        else:  # blends come back wrong, too
            assert lost > apart > 0


def test_a_model_of_several_classes_is_scored_class_by_class(trained, folder, tmp_path):
    from wavegms import WaveGMSPipeline

    run, card = trained
    assert card.parameters["classes"] == list(NAMES)
    pipeline = WaveGMSPipeline.from_pretrained(run.published)
    test_set = PreparedDataset(folder, "test")
    soft = predict_split(pipeline, test_set)
    assert soft.shape == (2, 2, 32, 32) and pipeline.classes == NAMES
    soft = np.stack([test_set.masks[:, 0] == 1, test_set.masks[:, 0] == 2], 1).astype(np.float32)
    soft[0, 1, :, :14], soft[1, 1] = 1, 0  # too much of a cyst in the first, none in the second
    soft[0, 0, :, :14] = 0
    scores = score_split(soft, test_set, originals=True)
    for row, probabilities, mask in zip(
        scores.to_dict("records"), soft, test_set.masks[:, 0].numpy(), strict=True
    ):
        found = label_map(probabilities)
        each = [mask_metrics(found == number, mask == number) for number in (1, 2)]
        for metric in ("dsc", "iou", "hd95"):
            assert row[f"{metric}:cyst"] == getattr(each[1], metric)
            mean = np.mean([getattr(one, metric) for one in each])
            assert row[metric] == pytest.approx(mean)
    # the truth at its own size is drawn by the nearest pixel, what was found by resizing shares
    assert abs(scores["dsc_original"] - scores["dsc"]).max() < 0.15
    assert scores["dsc:cyst"][1] == 0 and scores["dsc:mass"][1] == 1
    summary = summarize(scores, 100, 0)
    path = tmp_path / "scores/phantom_c" / run.variant / "seed_1/phantom_c.csv"
    write_scores(path, scores, summary, card, "phantom_c")
    table = class_table(tmp_path / "scores", 100, 0)
    assert list(table["class"].unique()) == list(NAMES)
    shown = readable_classes(table)
    assert list(shown["Class"]) == list(NAMES) and set(shown["Images"]) == {"2"}
    mean = summarize_classes(scores, 100, 0).set_index(["class", "metric"])["mean"]
    assert 100 * mean["cyst", "dsc"] == pytest.approx(
        table.set_index(["class", "metric"])["mean"]["cyst", "dsc"], abs=1e-3
    )


@pytest.mark.parametrize("odd", ["1.2", "-0.1", "good"])
def test_what_is_no_score_of_a_class_is_told(odd, tmp_path):
    scores = invent_scores().assign(**{"dsc:mass": 0.5, "dsc:cyst": ["", "1", *["0.5"] * 13, odd]})
    path = put(tmp_path, scores)
    with pytest.raises(InputError, match=rf"{path} has what is no score in its column dsc:cyst"):
        read_scores(tmp_path)
    put(tmp_path, scores.replace({"dsc:cyst": {odd: "0.25"}}))
    assert read_scores(tmp_path)["dsc:cyst"].tolist()[1:] == [1, *[0.5] * 13, 0.25]


def test_a_class_that_neither_mask_has_is_not_scored(folder):
    test_set = PreparedDataset(folder, "test")
    test_set.masks = test_set.masks * (test_set.masks == 1)
    soft = np.stack([test_set.masks[:, 0] == 1, test_set.masks[:, 0] > 9], 1).astype(np.float32)
    scores = score_split(soft, test_set)
    assert scores["dsc:cyst"].isna().all() and (scores["dsc"] == 1).all()
    assert list(summarize_classes(scores, 100, 0)["class"].unique()) == ["mass"]


@pytest.fixture
def short_codebook(monkeypatch):
    """GSS's is left with ten steps."""
    whole = gss.train_codebook
    monkeypatch.setattr(
        gss, "train_codebook", lambda book, masks, _, *rest: whole(book, masks, 10, *rest)
    )


@pytest.mark.usefixtures("short_codebook")
@pytest.mark.parametrize("recipe", ["common", pytest.param("published", marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", RIVALS)
def test_a_rival_learns_and_is_scored_class_by_class(
    name, recipe, folder, training_params, tmp_path, monkeypatch
):
    from wavegms import WaveGMSPipeline

    published = replace(VARIANTS[name].published, batch_size=2)
    monkeypatch.setitem(VARIANTS, name, replace(VARIANTS[name], published=published))
    vae = grey_vae() if VARIANTS[name].autoencoder else None
    sets = PreparedDataset(folder, "train"), PreparedDataset(folder, "val")
    run = make_run(tmp_path, *sets, training_params(recipe=recipe), variant=name, vae=vae)
    result = train(run)
    pipeline = WaveGMSPipeline.from_pretrained(result.folder / "best")
    assert pipeline.classes == NAMES
    soft = pipeline.predict(PreparedDataset.to_float(sets[1].images))
    dice = soft_dice(soft, PreparedDataset.mask_to_float(sets[1].masks)).mean().item()
    assert dice == pytest.approx(result.best_dice, abs=1e-4)
    test_set = PreparedDataset(folder, "test")
    scores = score_split(predict_split(pipeline, test_set), test_set)
    assert {"dsc:mass", "dsc:cyst"} <= set(scores) and scores["dsc"].between(0, 1).all()


def test_a_model_is_not_tested_on_other_classes(trained, prepared):
    from wavegms import WaveGMSPipeline

    pipeline = WaveGMSPipeline.from_pretrained(trained[0].published)
    with pytest.raises(InputError, match="knows mass, cyst and the images have one class"):
        predict_split(pipeline, PreparedDataset(prepared, "test"))


def test_prediction_writes_label_maps_and_a_probability_for_each_class(trained, tmp_path):
    save(picture(3, (50, 40)), tmp_path / "in/scan.png")
    out = tmp_path / "out"
    table = predict(Request([tmp_path / "in"], trained[0].published, out, threshold=0.3))
    assert list(table["error"]) == [""]
    with Image.open(out / "masks/scan.png") as mask:
        assert mask.mode == "P" and mask.size == (50, 40)
        found = np.array(mask)
    soft = np.stack(
        [np.array(Image.open(out / f"probabilities/scan.{name}.png")) / 65535 for name in NAMES]
    )
    best, background = soft.max(0), 1 - soft.sum(0)
    sure = abs(best - 0.3 * (best + background)) > 1e-3
    sure &= abs(soft[0] - soft[1]) > 1e-3
    np.testing.assert_array_equal(found[sure], label_map(soft, 0.3)[sure])
    with Image.open(out / "overlays/scan.png") as overlay:
        assert overlay.width >= 50 and overlay.height > 40  # with a legend
    classes = pd.read_csv(out / "classes.csv")
    assert list(classes.columns) == list(CLASS_COLUMNS) and list(classes["class"]) == list(NAMES)
    assert list(classes["area_px"]) == [(found == 1).sum(), (found == 2).sum()]
    assert table["area_px"][0] == (found > 0).sum()


def test_prediction_writes_a_label_map_on_the_grid_of_a_volume(trained, tmp_path):
    """Its voxels are those of the probabilities beside it, by the rule of pictures."""
    scan = sitk.GetImageFromArray(np.random.default_rng(0).normal(size=(5, 24, 20)))
    scan.SetSpacing((0.8, 0.7, 3.0))
    scan.SetDirection((0, -1, 0, 1, 0, 0, 0, 0, 1))
    scan.SetOrigin((5.0, -3.0, 9.0))
    sitk.WriteImage(scan, str(tmp_path / "scan.nii.gz"))
    out, model = tmp_path / "out", trained[0].published
    table = predict(Request([tmp_path / "scan.nii.gz"], model, out, threshold=0.3))
    assert list(table["error"]) == [""]
    mask = sitk.ReadImage(str(out / "masks/scan.nii.gz"))
    assert mask.GetPixelID() == sitk.sitkUInt8
    for get in ("GetSize", "GetSpacing", "GetOrigin", "GetDirection"):
        np.testing.assert_allclose(getattr(mask, get)(), getattr(scan, get)(), atol=1e-6)
    found = sitk.GetArrayFromImage(mask)
    soft = [sitk.ReadImage(str(out / f"probabilities/scan.{name}.nii.gz")) for name in NAMES]
    soft = np.stack([sitk.GetArrayFromImage(one) for one in soft], 1)
    np.testing.assert_array_equal(found, label_map(soft, 0.3))
    assert found.any() and soft.sum(1).max() <= 1 + 1e-6
    classes = pd.read_csv(out / "classes.csv")
    assert list(classes["class"]) == list(NAMES)
    for row, inside in zip(classes.to_dict("records"), (found == 1, found == 2), strict=True):
        assert row["area_px"] == inside.sum()
        assert row["volume_ml"] == pytest.approx(inside.sum() * 0.7 * 0.8 * 3 / 1000)
    assert table["area_px"][0] == (found > 0).sum() == pd.read_csv(out / "slices.csv").area_px.sum()
    with Image.open(out / "overlays/scan.png") as sheet:
        shown = set(map(tuple, np.array(sheet).reshape(-1, 3).tolist()))
    assert {(255, 255, 0), (0, 255, 255)} <= shown  # in the legend, if nowhere else


def test_kept_weights_and_comparison_know_one_class(folder, small_vae, tmp_path):
    pipeline = as_pipeline(build_variant("unet", classes=2), None, 32, classes=NAMES)
    with pytest.raises(InputError, match=r"kept weights knows one class.* 2: share mine"):
        keep_weights("mine", pipeline, None, {}, tmp_path)
    assert not list(tmp_path.glob("mine*"))
    with pytest.raises(InputError, match=r"foundations\.datasets knows one class.* have 2"):
        repaint(small_vae, PreparedDataset(folder, "test"))


@pytest.mark.slow
def test_training_goes_on_from_a_model_of_the_same_classes_only(trained, prepared):
    run, _ = trained
    start_network(str(run.published), run.variant, run.vae, NAMES)
    with pytest.raises(InputError, match="knows mass, cyst and the data have one class"):
        start_network(str(run.published), run.variant, run.vae)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, None),
        ({"variants": ["swin_unet", "nnunet_small"], "training": {"recipe": "published"}}, None),
        ({"variants": ["wave_gms", "medsegdiff_v2"]}, "phantom_c: variant medsegdiff_v2 knows one"),
        ({"foundations": {"datasets": ["phantom_c"]}}, "phantom_c: foundations.datasets knows one"),
        ({"evaluation": {"decoder": "fast"}}, "phantom_c: evaluation.decoder fast knows one class"),
        # of volumes that nobody has drawn yet
        (
            {"datasets": ["phantom_v"], "training": {"decoder": "fast"}},
            "phantom_v: training.decoder fast knows one class, and the data have 2: set it",
        ),
    ],
)
def test_what_cannot_be_run_on_classes_is_said_before_anything_is(tmp_path, changes, said):
    target = tmp_path / "params.yaml"
    compose_and_dump(target, str(ROOT / "conf"), None, "config", None, ["profile=classes"])
    values = yaml.safe_load(target.read_text())
    for key, value in changes.items():
        values[key] = values[key] | value if isinstance(value, dict) else value
    values["autoencoder"] |= {"source": "hub"}
    target.write_text(yaml.safe_dump(values))
    ask = partial(check_inputs, target, tmp_path, tmp_path / "out/check.txt")
    if said is None:
        return ask()
    with pytest.raises(InputError, match=said):
        ask()
