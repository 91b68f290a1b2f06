"""Scores at the images' own sizes: what was drawn is kept, and compared with what users get."""

import numpy as np
import pandas as pd
import pytest
import torch
from layouts import mask_image, picture, save
from medpy.metric import binary
from PIL import Image
from scores import invent_scores, put, write_scores

from wavegms.config import ReadingParams
from wavegms.data.dataset import PreparedDataset
from wavegms.data.manifest import load_manifest
from wavegms.data.prepare import prepare_dataset
from wavegms.errors import InputError
from wavegms.models.pipeline import resize_probabilities
from wavegms.results.readable import readable_originals
from wavegms.results.scores import predict_split, score_split
from wavegms.results.statistics import METRICS, ORIGINAL_METRICS, known_metrics, summarize
from wavegms.results.tables import original_table, read_scores

# Larger and smaller than the run's 32 pixels, one of its size.
SIZES = [(45, 61), (70, 40), (32, 32), (20, 24), (96, 130), (33, 31)]


def draw(folder, sizes=SIZES, ignored=False):
    """Images of several sizes (width, height) with two discs each, and perhaps a stripe of 128."""
    for number, (width, height) in enumerate(sizes):
        row, column = np.indices((height, width))
        mask = np.hypot(row / height - 0.4, column / width - 0.4) < 0.17
        mask |= np.hypot(row / height - 0.8, column / width - 0.75) < 0.09
        grey = np.where(mask, 255, 0).astype(np.uint8)
        if ignored:
            grey[:, -width // 5 :] = 128
        save(picture(number, (width, height)), folder / "images" / f"{number}.png")
        save(Image.fromarray(grey), folder / "masks" / f"{number}.png")
    return folder


def prepare(raw, out, image_size=32, **reading):
    prepare_dataset(
        "mine", raw, out, image_size=image_size, split="external", split_folder=raw,
        test_fraction=0.2, validation_fraction=0.1, seed=1, reading=ReadingParams(**reading),
    )  # fmt: skip
    return PreparedDataset(out, "test")


@pytest.fixture
def raw(tmp_path):
    return draw(tmp_path / "raw")


def soft_masks(dataset, seed=0):
    """The truth with noise; the first is empty."""
    truth = (dataset.masks[:, 0] == 1).numpy().astype(np.float32)
    noise = np.random.default_rng(seed).random(truth.shape, dtype=np.float32)
    soft = (0.6 * truth + 0.45 * noise).clip(0, 1)
    soft[0] = 0.1
    return soft


def test_masks_are_kept_as_they_were_drawn(raw, tmp_path):
    data = prepare(raw, tmp_path / "out")
    assert data.has_originals
    for index, id in enumerate(data.ids):
        drawn = np.asarray(Image.open(raw / f"masks/{id}.png")) > 0
        assert np.array_equal(data.original_mask(index), drawn)
    kept = {path.stem for path in (tmp_path / "out/originals").iterdir()}
    assert kept == set(data.ids) - {"2"}  # the one that was not resized
    path = tmp_path / "out/originals/1.png"
    save(mask_image(np.asarray(Image.open(path)) == 0), path)
    with pytest.raises(InputError, match=r"1\.png was changed since it was prepared"):
        data.original_mask(1)


@pytest.mark.parametrize("threshold", [0.3, 0.5])
def test_scores_are_medpys_of_what_users_get(pipeline, raw, tmp_path, threshold):
    """`predict` starts at the file, the scores at the prepared image: the masks are the same."""
    data = prepare(raw, tmp_path / "out", spacing=[0.2, 0.5])
    soft = predict_split(pipeline, data)
    middle = float(np.quantile(soft, 1 - threshold))  # of networks that never learned
    scores = score_split(soft, data, middle, originals=True)
    assert list(scores)[-5:] == [*ORIGINAL_METRICS, "data_hash"]
    pd.testing.assert_frame_equal(
        scores.drop(columns=list(ORIGINAL_METRICS)), score_split(soft, data, middle)
    )
    files = [Image.open(raw / f"images/{id}.png") for id in data.ids]
    for mask, row in zip(pipeline(files, threshold=middle).masks, scores.itertuples(), strict=True):
        truth = np.asarray(Image.open(raw / f"masks/{row.id}.png")) > 0
        assert row.dsc_original == pytest.approx(binary.dc(mask, truth), abs=2e-3)
        assert row.iou_original == pytest.approx(binary.jc(mask, truth), abs=2e-3)
        if mask.any():
            in_pixels = binary.hd95(mask, truth), binary.hd95(mask, truth, voxelspacing=(0.2, 0.5))
            assert (row.hd95_original, row.hd95_mm) == pytest.approx(in_pixels, rel=0.02)


def test_an_empty_prediction_is_as_far_as_the_image_is_long(raw, tmp_path):
    data = prepare(raw, tmp_path / "out", spacing=[0.2, 0.5])
    row = score_split(soft_masks(data), data, originals=True).iloc[0]
    width, height = SIZES[0]
    assert row["dsc_original"] == row["iou_original"] == 0
    assert row["hd95_original"] == pytest.approx(np.hypot(width, height))
    assert row["hd95_mm"] == pytest.approx(np.hypot(0.5 * width, 0.2 * height))


def test_at_the_runs_size_nothing_is_new(tmp_path):
    """Resizing by one changes nothing; nor is a table of the same numbers shown."""
    data = prepare(draw(tmp_path / "raw", 4 * [(32, 32)]), tmp_path / "out")
    assert not (tmp_path / "out/originals").exists()
    scores = score_split(soft_masks(data), data, originals=True)
    for metric in ("dsc", "iou", "hd95"):
        assert scores[f"{metric}_original"].equals(scores[metric].rename(f"{metric}_original"))
    assert scores["hd95_mm"].isna().all()
    assert original_table(as_run(scores), 50, 1).empty


def as_run(scores):
    """With what a file of scores says beside them."""
    said = invent_scores(images=len(scores), image_size=32)
    return said.drop(columns=list(scores)).join(scores)


@pytest.mark.parametrize("factor", [0.5, 3.0])
def test_millimetres_scale_with_the_spacing(raw, tmp_path, factor):
    found = []
    for spacing in ([0.1], [factor * 0.1], [0.1 * factor, 0.1 * factor]):
        data = prepare(raw, tmp_path / "out", spacing=spacing)
        found.append(score_split(soft_masks(data), data, originals=True))
    one, scaled, twice = (table["hd95_mm"] for table in found)
    assert scaled.tolist() == pytest.approx((factor * one).tolist())
    assert scaled.equals(twice)
    assert one.tolist() == pytest.approx((0.1 * found[1]["hd95_original"]).tolist())


def test_ignored_pixels_do_not_count(tmp_path):
    raw = draw(tmp_path / "raw", ignored=True)
    data = prepare(raw, tmp_path / "out", foreground=[255], ignore=[128])
    soft = (data.masks[:, 0] > 0).numpy().astype(np.float32)  # the stripe predicted as lesion
    scores = score_split(soft, data, originals=True)
    for one, row in zip(torch.from_numpy(soft), scores.itertuples(), strict=True):
        drawn = np.asarray(Image.open(raw / f"masks/{row.id}.png"))
        mask = (resize_probabilities(one[None], drawn.shape) >= 0.5) & (drawn != 128)
        assert row.dsc_original == binary.dc(mask, drawn == 255)
        assert row.hd95_original == binary.hd95(mask, drawn == 255)


def test_data_of_a_version_before_are_scored_and_it_is_said(raw, tmp_path, capsys):
    prepare(raw, tmp_path / "out")
    table = pd.read_csv(tmp_path / "out/manifest.csv", dtype=str, keep_default_na=False)
    before = table.drop(columns=["original_pixels", "row_spacing", "column_spacing"])
    before.to_csv(tmp_path / "out/manifest.csv", index=False)
    data = PreparedDataset(tmp_path / "out", "test")
    scores = score_split(soft_masks(data), data, originals=True)
    assert "run the prepare stage again" in capsys.readouterr().err
    assert scores[list(ORIGINAL_METRICS)].isna().all(axis=None)
    assert known_metrics(scores) == list(METRICS)
    assert original_table(as_run(scores), 50, 1).empty


# spacing


@pytest.mark.parametrize(
    ("table", "expected"),
    [
        ("image,spacing\n0.png,0.25\n3,1e-1\n", {0: (0.25, 0.25), 3: (0.1, 0.1)}),
        ("image,spacing\n1,0.25\\0.5\n", {1: (0.25, 0.5)}),
        ("spacing,scanner,image\n 2 ,x, 4 \n2,x,4\n", {4: (2, 2)}),
    ],
)
def test_a_table_says_the_spacing_of_some_images(raw, tmp_path, table, expected):
    (raw / "spacing.csv").write_text(table, encoding="utf-8-sig")
    prepare(raw, tmp_path / "out", spacing=[9.0])  # of the others
    rows = load_manifest(tmp_path / "out").set_index("id")[["row_spacing", "column_spacing"]]
    for number in range(len(SIZES)):
        assert tuple(rows.loc[str(number)]) == expected.get(number, (9.0, 9.0))


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ("image,spacing\n0,wide\n", "spacing 'wide' for 0: write millimetres"),
        ("image,spacing\n0,\n", "spacing '' for 0"),
        ("image,spacing\n0,-1\n", "spacing '-1' for 0"),
        ("image,spacing\n0,nan\n", "spacing 'nan' for 0"),
        ("image,spacing\n0,inf\n", "spacing 'inf' for 0"),
        ("image,spacing\n0,1\\2\\3\n", "for 0"),
        ("image,spacing\n0,1\n0.png,2\n", "two rows for 0.png that differ"),
        ("image,spacing\nfirst,1\n", "names no image of"),
        ("image,mm\n0,1\n", "with the columns image and spacing: correct it"),
    ],
)
def test_a_table_that_says_no_spacing_is_refused(raw, tmp_path, table, said):
    (raw / "spacing.csv").write_text(table)
    with pytest.raises(InputError) as error:
        prepare(raw, tmp_path / "out")
    assert said in str(error.value) and "spacing.csv" in str(error.value)


# tables


def test_the_table_is_the_mean_of_the_means(tmp_path):
    """Of two seeds, beside files of a version before, which have no such numbers."""
    runs = [invent_scores(seed=seed) for seed in (1, 2)]
    for run in runs:
        put(tmp_path, run)
    for before in (invent_scores("bus"), invent_scores(variant="unet")):
        put(tmp_path, before.drop(columns=list(ORIGINAL_METRICS)))
    table = original_table(read_scores(tmp_path), 100, 1)
    assert set(table["test_set"]) == {"busi"} and set(table["variant"]) == {"wave_gms"}
    for row in table.itertuples():
        share = 1 if row.metric.startswith("hd95") else 100
        means = [share * run[row.metric].mean() for run in runs]
        assert row.measured == pytest.approx(np.mean(means))
        assert row.sd_seeds == pytest.approx(np.std(means, ddof=1))
        assert row.ci_low < row.measured < row.ci_high
    assert table.set_index("metric")["images"].to_dict() == dict.fromkeys(
        ("dsc_original", "iou_original", "hd95_original"), 16
    ) | {"hd95_mm": 15}
    (shown,) = readable_originals(table).to_dict("records")
    assert (shown["Tested on"], shown["System"]) == ("BUSI", "Wave-GMS")
    assert shown["HD95 (mm)"].endswith(" (15 of 16 images)")
    assert "images" not in shown["HD95 (original pixels)"]


def test_without_any_spacing_there_are_no_millimetres(tmp_path):
    scores = invent_scores().assign(hd95_mm=np.nan)
    path = put(tmp_path, scores)
    assert known_metrics(scores) == [*METRICS, *ORIGINAL_METRICS[:3]]
    assert summarize(scores, 50, 1, known_metrics(scores))["images"].eq(16).all()
    (shown,) = readable_originals(original_table(read_scores(tmp_path), 50, 1)).to_dict("records")
    assert shown["HD95 (mm)"] == "–"
    for column, value in (("dsc_original", "1.5"), ("hd95_mm", "-1"), ("hd95_mm", "nan")):
        write_scores(tmp_path)
        table = pd.read_csv(path, dtype=str, keep_default_na=False)
        table.loc[3, column] = value
        table.to_csv(path, index=False)
        with pytest.raises(InputError, match=f"has an? {column}"):
            read_scores(tmp_path)
