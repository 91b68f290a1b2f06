"""A pixel that nobody annotated counts neither in the loss nor in any metric."""

import numpy as np
import pandas as pd
import pytest
import torch
from layouts import save
from PIL import Image
from scipy import ndimage

from wavegms.config import ReadingParams
from wavegms.data.dataset import PreparedDataset
from wavegms.data.manifest import load_manifest
from wavegms.data.prepare import prepare_dataset
from wavegms.images import FOREGROUND, IGNORED
from wavegms.models.autoencoder import encode_masks
from wavegms.results.metrics import mask_metrics
from wavegms.results.scores import score_split
from wavegms.training.loss import WaveGMSLoss, mask_loss, soft_dice


def truth_and_ring(seed: int, side: int = 32) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:side, :side]
    middle, radius = rng.uniform(0.35, 0.65, 2) * side, rng.uniform(0.15, 0.25) * side
    mask = (x - middle[0]) ** 2 + (y - middle[1]) ** 2 < radius**2
    return mask, ndimage.binary_dilation(mask, iterations=3) & ~mask


@pytest.fixture(scope="module")
def voided(tmp_path_factory):
    """Prepared from labels 0 and 1 with a border of 255 around each lesion."""
    folder = tmp_path_factory.mktemp("voided")
    for number in range(10):
        mask, ring = truth_and_ring(number)
        noise = np.random.default_rng(number).integers(0, 255, (32, 32), np.uint8)
        save(Image.fromarray(noise), folder / f"raw/images/{number}.png")
        drawn = np.where(ring, 255, mask).astype(np.uint8)
        save(Image.fromarray(drawn), folder / f"raw/masks/{number}.png")
    report = prepare_dataset(
        "mine", folder / "raw", folder / "prepared", image_size=32, split="external",
        split_folder=folder, test_fraction=0.2, validation_fraction=0.1, seed=0,
        reading=ReadingParams(ignore=[255]),
    )  # fmt: skip
    return folder / "prepared", report


def test_what_is_ignored_is_kept_in_the_prepared_folder(voided):
    folder, report = voided
    manifest = load_manifest(folder)
    assert set(manifest["foreground"]) == {"1"} and set(manifest["ignored"]) == {"255"}
    assert manifest["evidence"].str.contains("masks: foreground is 1, as").all()
    assert 0.05 < report.ignored < 0.5 and report.evidence[-1] in manifest["evidence"][0]
    data = PreparedDataset(folder, "test")
    for index, id in enumerate(data.ids):
        mask, ring = truth_and_ring(int(id))
        kinds = data[index]["mask"][0].numpy()
        assert np.array_equal(kinds == FOREGROUND, mask)
        assert np.array_equal(kinds == IGNORED, ring)
        assert manifest["mask_area"][index] == pytest.approx(mask.mean())
        assert np.array_equal(np.asarray(Image.open(folder / f"masks/{id}.png")),
                              mask * 255 + ring * 128)  # fmt: skip
    shown = PreparedDataset.foreground_to_float(data.masks)
    assert set(shown.unique().tolist()) == {0, 1}


def test_a_manifest_of_before_still_opens(voided, tmp_path):
    """Its models see every image as they always did."""
    table = pd.read_csv(voided[0] / "manifest.csv", dtype=str, keep_default_na=False)
    old = table.drop(columns=["foreground", "ignored", "scale", "drawn_on", "evidence"])
    (tmp_path / "images").symlink_to(voided[0] / "images")
    (tmp_path / "masks").symlink_to(voided[0] / "masks")
    old.to_csv(tmp_path / "manifest.csv", index=False, lineterminator="\n")
    assert PreparedDataset(tmp_path, "test").scale is None
    assert str(PreparedDataset(voided[0], "test").scale) == ""


def batch(voided):
    data = PreparedDataset(voided[0], "test")
    return PreparedDataset.to_float(data.images), PreparedDataset.mask_to_float(data.masks)


def test_the_dice_loss_does_not_see_them(voided):
    _, masks = batch(voided)
    soft = torch.rand(masks.shape, generator=torch.Generator().manual_seed(0))
    other = torch.where(masks == IGNORED, 1 - soft, soft)
    assert torch.equal(soft_dice(soft, masks), soft_dice(other, masks))
    known = masks != IGNORED
    by_hand = [
        2 * (p[k] * m[k]).sum() / (p[k].sum() + m[k].sum())
        for p, m, k in zip(soft, masks, known, strict=True)
    ]
    assert torch.allclose(soft_dice(soft, masks), torch.stack(by_hand), atol=1e-5)
    soft.requires_grad_()
    mask_loss(soft, masks)["loss"].backward()
    assert (soft.grad[~known] == 0).all() and (soft.grad[known] != 0).all()


def test_the_latents_over_them_are_not_compared(voided, small_vae):
    """And where nothing is ignored, the loss is what it was, to the last bit."""
    images, masks = batch(voided)
    generator = torch.Generator().manual_seed(0)
    levels = [torch.randn(len(masks), 4, 4, 4, generator=generator) for _ in range(4)]
    loss = WaveGMSLoss()
    for call in (loss, loss.plain):
        changed = [level.clone() for level in levels]
        seen = torch.nn.functional.max_pool2d((masks == IGNORED).float(), 8) > 0
        for level in changed:
            level += seen * 5.0
        lm = [call(None, part, small_vae, images, masks)["lm"] for part in (levels, changed)]
        assert torch.equal(*lm) and lm[0] > 0
        all_known = torch.where(masks == IGNORED, 0, masks)
        latents = encode_masks(small_vae, all_known)
        before = sum(torch.nn.functional.mse_loss(level, latents) for level in levels)
        assert torch.equal(call(None, levels, small_vae, images, all_known)["lm"], before)


def test_no_metric_sees_them(voided):
    data = PreparedDataset(voided[0], "test")
    rng = np.random.default_rng(0)
    soft = rng.random((len(data), 32, 32)).astype(np.float32)
    other = soft.copy()
    other[data.masks[:, 0].numpy() == IGNORED] = rng.random()
    one, two = score_split(soft, data), score_split(other, data)
    pd.testing.assert_frame_equal(one, two)
    for index, row in one.iterrows():
        kinds = data.masks[index, 0].numpy()
        guess, truth = (part[kinds != IGNORED] for part in (soft[index] >= 0.5, kinds == 1))
        assert row["dsc"] == pytest.approx(2 * (guess & truth).sum() / (guess.sum() + truth.sum()))
        assert row["iou"] == pytest.approx((guess & truth).sum() / (guess | truth).sum())
        assert row["true_area"] == pytest.approx(truth.mean())
    exact = (data.masks[:, 0].numpy() == FOREGROUND) | (data.masks[:, 0].numpy() == IGNORED)
    perfect = score_split(exact.astype(np.float32), data)  # ignored pixels predicted as lesion
    assert (perfect["dsc"] == 1).all() and (perfect["hd95"] == 0).all()


def test_metrics_without_ignored_pixels_are_the_same():
    mask, ring = truth_and_ring(1)
    everywhere = np.ones_like(mask)
    assert mask_metrics(mask, mask | ring, everywhere) == mask_metrics(mask, mask | ring)
