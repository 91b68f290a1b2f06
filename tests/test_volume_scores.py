"""Scores of whole volumes, in millimetres, on the grid that prediction gives back."""

from dataclasses import fields
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import SimpleITK as sitk
import torch
from accelerate import Accelerator
from dicoms import OBLIQUE, SPACING, write_decathlon
from medpy.metric import binary
from scipy import stats
from test_volume_sets import prepare
from torch.utils.data import DataLoader

from wavegms import InputError, WaveGMSPipeline
from wavegms.config import EvaluationParams, ReadingParams
from wavegms.data.dataset import PreparedDataset
from wavegms.data.manifest import load_volumes
from wavegms.figures.volumes import show_volume_scores
from wavegms.predict.inputs import Request
from wavegms.predict.run import predict
from wavegms.results.scores import predict_split
from wavegms.results.volumes import (
    MEASURED,
    METRICS,
    compare_models,
    readable_compared,
    readable_models,
    score_models,
    score_volumes,
    summarize_models,
    volume_metrics,
)
from wavegms.training.card import ModelCard, card_hash, read_card, weights_hash, write_card
from wavegms.training.loop import mean_soft_dice


def ellipsoid(half_axes, spacing=(2.0, 0.8, 0.7), shape=(26, 60, 70)):
    """Voxels whose centres lie in an ellipsoid, its half axes in mm, in the middle of a volume."""
    grid = np.meshgrid(*[(np.arange(n) - n / 2) * s for n, s in zip(shape, spacing, strict=True)],
                       indexing="ij")  # fmt: skip
    return sum((x / a) ** 2 for x, a in zip(grid, half_axes, strict=True)) <= 1


@pytest.mark.parametrize("grown", [0.5, 3.0])
def test_surfaces_are_apart_in_millimetres(grown):
    """Of ellipsoids, one larger by the same on all axes: within one voxel of what geometry says."""
    spacing, axes = (2.0, 0.8, 0.7), np.array([14.0, 12.0, 13.0])
    truth, prediction = ellipsoid(axes), ellipsoid(axes + grown)
    found = volume_metrics(prediction, truth, spacing)
    small, large = axes.prod(), (axes + grown).prod()
    assert found.dsc == pytest.approx(2 * small / (small + large), abs=0.01)
    assert found.hd95_mm == pytest.approx(grown, abs=spacing[0])
    # half a millimetre lies within the tolerance of one but for a few steps of slices; three do not
    assert found.nsd > 0.9 if grown == 0.5 else found.nsd < 0.05


def test_a_shift_is_as_long_as_its_voxels():
    """A plate that moved by two slices of 3 mm: 6 mm away; by two columns, nearly nothing."""
    truth = np.zeros((20, 40, 40), bool)
    truth[5:8, 5:35, 5:35] = True
    along = volume_metrics(np.roll(truth, 2, 0), truth, (3.0, 0.5, 0.5))
    assert along.hd95_mm == pytest.approx(6.0) and along.dsc == pytest.approx(1 / 3)
    across = volume_metrics(np.roll(truth, 2, 2), truth, (3.0, 0.5, 0.5))
    assert across.hd95_mm <= 1.0 and across.nsd == 1.0


def test_empty_volumes_and_what_does_not_count():
    truth = ellipsoid((10, 10, 10))
    nothing = np.zeros_like(truth)
    both = volume_metrics(nothing, nothing, (2, 0.8, 0.7))
    assert (both.dsc, both.hd95_mm, both.nsd, both.empty_prediction) == (1, 0, 1, True)
    diagonal = np.hypot(np.hypot(26 * 2, 60 * 0.8), 70 * 0.7)
    for one, other in ((truth, nothing), (nothing, truth)):
        missed = volume_metrics(one, other, (2, 0.8, 0.7))
        assert (missed.dsc, missed.nsd) == (0, 0) and missed.hd95_mm == pytest.approx(diagonal)
    stray = truth.copy()
    stray[0, 0, 0] = True
    counted = np.ones_like(truth)
    counted[0, 0, 0] = False
    assert volume_metrics(stray, truth, (2, 0.8, 0.7)).dsc < 1
    assert volume_metrics(stray, truth, (2, 0.8, 0.7), counted).dsc == 1


def test_the_truth_scores_one_and_a_changed_one_is_refused(tmp_path):
    raw, out = write_decathlon(tmp_path / "raw", count=6, direction=OBLIQUE), tmp_path / "out"
    prepare(raw, out)
    dataset = PreparedDataset(out, "test")
    masks = np.stack([dataset[i]["mask"][0].numpy() for i in range(len(dataset))])
    scores = score_volumes(masks.astype(np.float32), dataset, out)
    assert scores["id"].tolist() == load_volumes(out).query("split == 'test'")["id"].tolist()
    assert (scores["slices"] == 6).all() and (scores["data_hash"] == dataset.data_hash).all()
    # enlarged by the nearest pixel, reduced with antialiasing: the very voxels
    assert (scores[["dsc", "nsd"]] == 1).all(axis=None) and (scores["hd95_mm"] == 0).all()
    labels = sitk.ReadImage(str(raw / "labelsTr" / f"{scores['id'][0]}.nii.gz"))
    voxels = (sitk.GetArrayFromImage(labels) > 0).sum()
    assert scores["true_ml"][0] == pytest.approx(voxels * np.prod(SPACING) / 1000)
    assert scores["predicted_ml"].tolist() == scores["true_ml"].tolist()
    path = str(out / "volumes" / f"{scores['id'][0]}.nii.gz")
    sitk.WriteImage(sitk.ReadImage(path) * 0, path)
    with pytest.raises(InputError, match="not what its slices were made of"):
        score_volumes(masks.astype(np.float32), dataset, out)


def test_each_class_is_scored_and_the_mean(tmp_path):
    """By MedPy, class by class, on the labels as they are stored; of one a slice is elsewhere."""
    raw, out = write_decathlon(tmp_path / "raw", count=6), tmp_path / "out"
    wanted = {"head": 1, "body": 2, "tail": 3}
    prepare(raw, out, reading=ReadingParams(classes=wanted))
    dataset = PreparedDataset(out, "test")
    masks = dataset.masks[:, 0].numpy()
    found = np.stack([masks == number for number in wanted.values()], 1).astype(np.float32)
    exact = score_volumes(found, dataset, out)
    assert (exact[["dsc", "nsd", "dsc:tail"]] == 1).all(axis=None)
    assert (exact["hd95_mm"] == 0).all()
    name = exact["id"][0]
    last, first = (dataset.ids.index(f"{name}_s{number:03d}") for number in (5, 0))
    found[first, 1] = found[last, 1]
    found[last, 1] = 0
    scores = score_volumes(found, dataset, out).set_index("id")
    row, other = scores.iloc[0], scores.iloc[1]
    labels = sitk.GetArrayFromImage(sitk.ReadImage(str(raw / f"labelsTr/{name}.nii.gz")))
    body = labels == 2
    moved = body.copy()
    moved[5], moved[0] = False, body[5]
    assert row["dsc:body"] == pytest.approx(binary.dc(moved, body))
    assert row["hd95_mm:body"] == pytest.approx(binary.hd95(moved, body, SPACING[::-1]))
    # one that is neither there nor found is right
    assert [row[f"{key}:tail"] for key in MEASURED] == [1, 0, 1]
    for metric in MEASURED:
        each = [row[f"{metric}:{name}"] for name in wanted]
        assert row[metric] == pytest.approx(np.mean(each)) and other[metric] == exact[metric][1]
    millilitres = np.prod(SPACING) / 1000
    assert row["true_ml:body"] == pytest.approx(body.sum() * millilitres)
    assert row["true_ml"] == pytest.approx((labels > 0).sum() * millilitres)
    assert (
        not row["empty_prediction"] and score_volumes(0 * found, dataset, out)["dsc:head"][0] == 0
    )
    table = scores.reset_index().assign(variant="wave_gms")
    shown = readable_models(summarize_models(table, 100, 1))
    assert shown["Class"].tolist() == ["mean", *wanted]
    assert shown["Dice of slices (%)"].tolist()[1:] == ["–"] * 3
    (axis, *_) = show_volume_scores(table).axes
    assert [label.get_text() for label in axis.get_yticklabels()][1:] == [
        f"Wave-GMS, {name}" for name in wanted
    ]


@pytest.mark.parametrize(
    ("classes", "colours"), [((), ()), (("head", "body"), ("#000a11", "#000a16"))]
)
def test_what_is_scored_is_what_prediction_writes(classes, colours, untrained, tmp_path):
    """A file predicted with the model's own rule: on its grid, and with the score of the table."""
    raw, out = write_decathlon(tmp_path / "raw", direction=OBLIQUE), tmp_path / "out"
    # not the plane that is stored
    prepare(raw, out, reading=ReadingParams(plane="coronal", classes=list(classes)))
    parts = untrained.encoder, untrained.mapping, untrained.vae
    # colours on either side of the dark greys that it paints, so that both classes are found
    seen = {
        "greys": "coronal:0.5-99.5",
        "classes": [*map(" ".join, zip(classes, colours, strict=True))],
    }
    pipeline = WaveGMSPipeline(*parts, image_size=32, **seen)
    dataset = PreparedDataset(out, "test")
    soft = predict_split(pipeline, dataset)
    threshold = float(np.median(soft))
    scores = score_volumes(soft, dataset, out, threshold)
    row = load_volumes(out).set_index("id").loc[scores["id"][0]]
    request = Request(raw / row["source"], pipeline, tmp_path / "said", threshold=threshold)
    assert predict(request)["plane"].tolist() == ["coronal"]
    image, labels = (sitk.ReadImage(str(raw / row[name])) for name in ("source", "labels"))
    mask = sitk.ReadImage(str(next((tmp_path / "said/masks").glob("*.nii.gz"))))
    for get in ("GetSize", "GetSpacing", "GetOrigin", "GetDirection"):
        np.testing.assert_allclose(getattr(mask, get)(), getattr(image, get)(), atol=1e-5)
    voxels = [sitk.GetArrayFromImage(one) for one in (mask, labels)]
    parts_of = {f":{name}": (number,) for number, name in enumerate(classes, 1)} or {"": (1, 2)}
    for ending, kinds in parts_of.items():
        own = [np.isin(one, kinds) for one in voxels]
        found = volume_metrics(*own, image.GetSpacing()[::-1])
        assert 0 < found.dsc == pytest.approx(scores[f"dsc{ending}"][0], abs=0.01)
        assert found.hd95_mm == pytest.approx(scores[f"hd95_mm{ending}"][0], abs=0.5)


def test_pictures_have_no_scores_in_3d(prepared, tmp_path):
    dataset = PreparedDataset(prepared, "test")
    with pytest.raises(InputError, match="prepared from pictures"):
        score_volumes(np.zeros((len(dataset), 8, 8), np.float32), dataset, prepared)


def test_an_epoch_is_chosen_by_its_volumes(tmp_path):
    """A network that finds nothing has most slices right here, and no volume."""
    raw, out = write_decathlon(tmp_path / "raw", count=8, empty=2), tmp_path / "out"
    prepare(raw, out)
    dataset = PreparedDataset(out, "val")
    batches = list(DataLoader(dataset, batch_size=5))
    masks = dataset.masks.float()

    def chosen(soft):
        parts = iter(soft.split(5))
        network = SimpleNamespace(predict=lambda _: next(parts))
        return mean_soft_dice(Accelerator(cpu=True), network, batches, dataset.volume_of)

    soft = (0.7 * masks + 0.01).clamp(0, 1)
    truth, found = (one.numpy().reshape(2, -1).astype(float) for one in (masks, soft))
    wanted = 2 * (truth * found).sum(1) / (truth.sum(1) + found.sum(1))
    assert chosen(soft) == pytest.approx(wanted.mean(), rel=1e-4)
    assert chosen(torch.zeros_like(masks)) < 1e-4 and chosen(masks) == pytest.approx(1)


def test_networks_are_compared_over_volumes(untrained, tmp_path):
    """What the notebook shows and writes: a row a volume, network and seed, and their means."""
    raw, out = write_decathlon(tmp_path / "raw", count=8), tmp_path / "brain"
    prepare(raw, out)
    dataset = PreparedDataset(out, "test")
    known = {field.name: 1 for field in fields(ModelCard)}
    known |= {"selection": "best_on_validation", "parameters": {}}
    for seed in (1, 2):
        place = tmp_path / f"models/wave_gms/seed_{seed}"
        untrained.save_pretrained(place)
        about = {"variant": "wave_gms", "seed": seed, "dataset": "brain"}
        card = ModelCard(**known | about | {"weights": weights_hash(place)})
        write_card(place, card)
    wanted = EvaluationParams(threshold=0.5, bootstrap_resamples=100)
    scores = score_models(tmp_path / "models", dataset, out, ["wave_gms"], [1, 2], wanted)
    assert scores[["seed", "id"]].duplicated().sum() == 0 and len(scores) == 2 * 2
    assert (scores["train_set"] == "brain").all() and (scores["test_set"] == "brain").all()
    # of the same weights, so that seeds change nothing
    summary = summarize_models(scores, 100, 1).set_index("metric")
    for metric in METRICS:
        assert summary["mean"][metric] == pytest.approx(scores[metric].mean())
    assert (summary["volumes"] == 2).all()
    # one without foreground counts where it can: what was found in it is no less wrong
    bare = scores.assign(
        foreground_slices_dsc=scores["foreground_slices_dsc"].mask(scores.index == 0)
    )
    bare.loc[0, "dsc"] = 0.0
    fewer = summarize_models(bare[bare["seed"] == 1], 100, 1).set_index("metric")
    assert fewer["volumes"].tolist() == [2, 2, 2, 2, 1]
    assert fewer["mean"]["dsc"] == pytest.approx(scores["dsc"][1] / 2)
    (row,) = readable_models(summary.reset_index()).to_dict("records")
    assert row["System"] == "Wave-GMS" and row["Dice in 3-D (%)"].count("–") == 1
    assert len(show_volume_scores(scores).axes) == 3
    prepare(raw, out, folds=2)
    dataset = PreparedDataset.to_test(out)
    with pytest.raises(InputError, match="holds 1 models, but its data have 2 folds"):
        score_models(tmp_path / "models", dataset, out, ["wave_gms"], [1], wanted)
    place = tmp_path / "models/wave_gms/seed_1"
    changes = {"data_hash": dataset.data_hash, "weights": weights_hash(place)}
    untrained.save_pretrained(place / "fold_2")
    write_card(place / "fold_2", ModelCard(**known | about | changes))
    others = {"others": [card_hash(read_card(place / "fold_2"))]}
    changes["parameters"] = {"folds": others}
    write_card(place, ModelCard(**known | about | changes))
    every = score_models(tmp_path / "models", dataset, out, ["wave_gms"], [1], wanted)
    assert every["id"].tolist() == load_volumes(out)["id"].tolist()
    (out / "volumes.csv").unlink()
    nothing = score_models(tmp_path / "models", dataset, out, ["wave_gms"], [1], wanted)
    assert nothing.empty and readable_models(summarize_models(nothing, 100, 1)).empty
    assert compare_models(nothing, 100, 1).empty and compare_models(scores, 100, 1).empty


def test_networks_are_tested_on_the_differences_of_their_volumes():
    """Against the first, seeds averaged, by SciPy's test; corrected for all three metrics."""
    numbers, tables = np.random.default_rng(3), []
    for variant, better in (("wave_gms", 0.1), ("unet", 0.0)):
        for seed in (1, 2):
            dice = 0.7 + better + 0.05 * numbers.standard_normal(9)
            values = {"dsc": dice, "hd95_mm": 5 * numbers.random(9), "nsd": dice / 2}
            about = {"train_set": "brain", "test_set": "brain", "variant": variant, "seed": seed}
            about |= {"image_size": 32, "epochs": 4, "selection": "best_on_validation"}
            tables.append(pd.DataFrame({"id": [*"abcdefghi"], **values}).assign(**about))
    scores = pd.concat(tables, ignore_index=True)
    compared = compare_models(scores, 100, 1)
    assert compared["metric"].tolist() == list(MEASURED)
    assert (compared["reference"] == "wave_gms").all() and (compared["volumes"] == 9).all()
    means = scores.groupby(["variant", "id"])[list(MEASURED)].mean()
    for row in compared.itertuples():
        differences = (means.loc["unet"] - means.loc["wave_gms"])[row.metric]
        assert row.mean_difference == pytest.approx(differences.mean())
        assert row.p == pytest.approx(stats.wilcoxon(differences.round(12)).pvalue)
    assert compared["p_holm"].min() == pytest.approx(3 * compared["p"].min())
    shown = readable_compared(compared).set_index("Metric")
    assert shown.index.tolist()[:2] == ["Dice in 3-D (%)", "HD95 (mm)"]
    assert shown["Volumes"].tolist() == ["9"] * 3
    assert set(shown["System"]) == {"UNet"} and set(shown["Reference"]) == {"Wave-GMS"}
    wanted = 100 * compared["mean_difference"][0]
    assert float(shown["Difference"].iloc[0].replace("−", "-")) == pytest.approx(wanted, abs=0.005)
