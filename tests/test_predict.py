"""Prediction on files: every image gets its results or its reason, and nothing is half-written."""

import errno
import gzip
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import SimpleITK as sitk
import torch
from dicoms import make, random_voxels, write_series
from diffusers import ConfigMixin, ModelMixin
from explorer_project import write_model
from hypothesis import given
from hypothesis.extra import numpy as hnp
from PIL import Image, ImageColor, ImageFilter, ImageOps

from wavegms import InputError, WaveGMSPipeline
from wavegms.__main__ import main
from wavegms.models.build import build_variant
from wavegms.predict.inputs import Request, find_sources
from wavegms.predict.overlays import draw_contour, draw_slices
from wavegms.predict.run import COLUMNS, SLICE_COLUMNS, measure, predict
from wavegms.predict.tta import AugmentedPipeline, View
from wavegms.training.card import weights_hash


def predict_files(inputs, model, out, **options):
    return predict(Request(inputs, model, Path(out), **options))


class Brightness(ModelMixin, ConfigMixin):
    """The probability of a pixel is how bright it is, so that the truth is plain to see."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(()))

    def forward(self, images):
        return images.mean(1, keepdim=True) * self.weight


@pytest.fixture
def bright():
    return WaveGMSPipeline(network=Brightness(), image_size=32)


def picture(width=32, height=32, box=(8, 4, 20, 12)):
    """Dark but for a box (left, top, right, bottom)."""
    image = Image.new("L", (width, height), 20)
    image.paste(230, box)
    return image


@pytest.fixture
def scans(tmp_path):
    """A folder as it comes from a clinic."""
    folder = tmp_path / "scans"
    (folder / "Monday/.thumbnails").mkdir(parents=True)
    grey = picture()
    exif = Image.Exif()
    exif[0x0112] = 6  # a camera on its side
    files = {
        "grey.png": grey,
        "rgb.png": grey.convert("RGB"),
        "alpha.png": grey.convert("LA"),
        "rgba.png": grey.convert("RGBA"),
        "palette.gif": grey.convert("P"),
        "one_bit.png": grey.point(lambda value: value > 127 and 255, "1"),
        "cmyk.tif": grey.convert("CMYK"),
        "sixteen.tif": Image.fromarray(np.asarray(grey).astype(np.uint16) * 257),
        "Monday/large.png": picture(211, 97, (50, 20, 120, 70)),
        "Monday/thin.png": picture(3, 60, (0, 10, 3, 40)),
        "Monday/.thumbnails/x.png": grey,
        "floats.tif": Image.fromarray(np.asarray(grey, np.float32)),
    }
    for name, image in files.items():
        image.save(folder / name)
    picture(40, 24).transpose(Image.Transpose.ROTATE_90).convert("RGB").save(
        folder / "turned.jpg", exif=exif, quality=100
    )
    (folder / "empty.png").touch()
    (folder / "text.jpg").write_text("no picture")
    grey.save(folder / "pages.tif", save_all=True, append_images=[grey, grey])
    whole = (folder / "rgb.png").read_bytes()
    (folder / "cut.png").write_bytes(whole[: len(whole) // 2])
    (folder / "Thumbs.db").write_bytes(b"x")
    (folder / ".DS_Store").write_bytes(b"x")
    return folder


GOOD = {
    *("grey", "rgb", "alpha", "rgba", "palette", "one_bit", "cmyk", "sixteen", "turned"),
    *("Monday/large", "Monday/thin"),
}
BROKEN = {"empty.png", "text.jpg", "cut.png", "floats.tif", "pages.tif"}


def files_below(folder):
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


def test_mixed_sizes_modes_and_broken_files(bright, scans, tmp_path, capfd):
    out = tmp_path / "out"
    table = predict_files(scans, bright, out, batch_size=4)
    error = capfd.readouterr().err
    assert list(table.columns) == list(COLUMNS) and len(table) == len(GOOD) + len(BROKEN)
    failed = table[table["error"] != ""]
    assert {Path(file).name for file in failed["file"]} == BROKEN
    for row in failed.itertuples():
        assert row.file in row.error and "\n" not in row.error and row.error in error
        assert pd.isna(row.area_px) and pd.isna(row.output)
    assert "passed over" in error and "Thumbs.db" in error and "DS_Store" not in error

    good = table[table["error"] == ""].set_index("output")
    assert set(good.index) == GOOD
    assert files_below(out) == sorted(
        [f"{kind}/{name}.png" for kind in ("masks", "probabilities", "overlays") for name in GOOD]
        + ["predictions.csv", "settings.json"]
    )
    for name, row in good.iterrows():
        upright = ImageOps.exif_transpose(Image.open(row["file"])).convert("RGB")
        mask, soft, overlay = (
            Image.open(out / kind / f"{name}.png")
            for kind in ("masks", "probabilities", "overlays")
        )
        assert mask.size == soft.size == overlay.size == upright.size
        assert upright.size == (row["width"], row["height"])
        assert (mask.mode, soft.mode, overlay.mode) == ("L", "I;16", "RGB")
        output = bright(upright if name != "sixteen" else Image.open(row["file"]))
        (expected,), (exact,) = output.masks, output.probabilities
        assert set(np.unique(mask)) == {0, 255}
        np.testing.assert_array_equal(np.asarray(mask) > 0, expected)
        assert row["area_px"] == expected.sum() and row["regions"] == 1 and not row["empty"]
        box = row[["left", "top", "right", "bottom"]]
        assert tuple(box) == mask.getbbox()
        share = np.asarray(soft) / 65535
        # rounded to the nearest of 65536 steps
        np.testing.assert_allclose(share, exact, rtol=0, atol=0.6 / 65535)
        np.testing.assert_allclose(row["confidence"], exact[expected].mean(), rtol=1e-5)
    # where nothing is resampled the box is that which was painted, to the pixel
    assert tuple(good.loc["grey", ["left", "top", "right", "bottom"]]) == (8, 4, 20, 12)
    np.testing.assert_allclose(good.loc["grey", "confidence"], 230 / 255, atol=1e-5)
    assert good.loc["turned", "width"] == 40

    written = pd.read_csv(out / "predictions.csv", keep_default_na=False)
    assert written["file"].tolist() == table["file"].tolist()
    assert written["error"].tolist() == table["error"].tolist()
    assert "8,4,20,12,,,0.901961,False," in (out / "predictions.csv").read_text()


def test_nothing_depends_on_the_batch(bright, scans, tmp_path, monkeypatch):
    largest = []
    call = WaveGMSPipeline.__call__

    def watched(self, images, **options):
        largest.append(len(images))
        return call(self, images, **options)

    monkeypatch.setattr(WaveGMSPipeline, "__call__", watched)
    expected = None
    for size, pixels in ((1, None), (3, None), (100, None), (100, 1500)):
        largest.clear()
        if pixels:  # large images go alone, lest the memory run over
            monkeypatch.setattr("wavegms.predict.run._PIXELS_WAITING", pixels)
        out = tmp_path / f"{size}_{pixels}"
        predict_files(scans, bright, out, batch_size=size)
        assert max(largest) == (min(size, len(GOOD)) if not pixels else 2)
        assert sum(largest) == len(GOOD)
        result = {name: (out / name).read_bytes() for name in files_below(out)}
        assert expected is None or result == expected
        expected = result


def test_an_empty_mask_is_said(bright, tmp_path):
    picture().save(tmp_path / "a.png")
    table = predict_files(tmp_path / "a.png", bright, tmp_path / "out", threshold=0.95)
    row = table.iloc[0]
    assert row["empty"] and row["area_px"] == row["regions"] == row["area_share"] == 0
    assert table[["left", "top", "right", "bottom", "confidence"]].isna().all(axis=None)
    assert Image.open(tmp_path / "out/masks/a.png").getextrema() == (0, 0)
    overlay = Image.open(tmp_path / "out/overlays/a.png")
    np.testing.assert_array_equal(overlay, picture().convert("RGB"))


@given(mask=hnp.arrays(bool, hnp.array_shapes(min_dims=2, max_dims=2, max_side=12)))
def test_a_mask_is_measured_as_pillow_and_counting_do(mask):
    soft = np.where(mask, 0.75, 0.25)
    found = measure(mask, soft)
    assert found["area_px"] == mask.sum() and found["area_share"] == mask.mean()
    assert found["empty"] == (not mask.any())
    if mask.any():
        box = Image.fromarray(mask.astype(np.uint8)).getbbox()
        assert tuple(found[side] for side in ("left", "top", "right", "bottom")) == box
        assert found["confidence"] == 0.75


def test_regions_may_touch_at_corners():
    mask = np.zeros((9, 9), bool)
    mask[1, 1] = mask[2, 2] = mask[7, 7] = True
    assert measure(mask, mask.astype(float))["regions"] == 2


@given(mask=hnp.arrays(bool, hnp.array_shapes(min_dims=2, max_dims=2, min_side=3, max_side=16)))
def test_a_contour_is_drawn_at_the_border_and_nowhere_else(mask):
    image = np.full((*mask.shape, 3), 200, np.uint8)
    drawn = draw_contour(image, mask)
    # Pillow's own rank filters, with a frame of background
    frame = Image.fromarray(np.pad(mask, 3).astype(np.uint8) * 255)
    expected = image.copy()
    for size, colour in ((5, "#000000"), (3, "#ff8c1a")):
        grown, shrunk = (
            np.asarray(frame.filter(rank(size)))[3:-3, 3:-3] > 0
            for rank in (ImageFilter.MaxFilter, ImageFilter.MinFilter)
        )
        expected[grown & ~shrunk] = ImageColor.getrgb(colour)
    np.testing.assert_array_equal(drawn, expected)
    assert (image == 200).all()


def test_a_sheet_shows_the_slices_that_have_a_mask():
    slices = np.zeros((30, 10, 20), np.uint8)
    masks = np.zeros(slices.shape, bool)
    masks[7:9, 2:5, 2:5] = True
    numbers = list(range(30))
    # rows lie twice as far apart as columns, so a slice is a square
    assert draw_slices(slices, masks, (2.0, 1.0), numbers).shape == (256, 512, 3)
    assert draw_slices(slices, ~masks, (1.0, 1.0), numbers).shape == (384, 1024, 3)
    assert draw_slices(slices[:1], masks[:1], (1.0, 1.0), numbers).shape == (128, 256, 3)


def test_names_that_would_collide(tmp_path):
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        for name in ("a.png", "a.jpg", "b.png", "B.tif", "c.png", "c_png.png"):
            picture().save(tmp_path / folder / name)
    (tmp_path / "one/b.nii.gz").touch()
    names = [s.name for s in find_sources([tmp_path / "one"])[0]]
    assert sorted(names) == ["B_tif", "a_jpg", "a_png", "b_nii_gz", "b_png", "c", "c_png"]
    sources, _ = find_sources([str(tmp_path / "*"), tmp_path / "one/a.png"])
    assert len({source.name.casefold() for source in sources}) == len(sources) == 13


def test_a_folder_is_searched_to_the_bottom_and_each_file_taken_once(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("s/b/x.png", "s/a/y.PNG", "s/z.jpg", "s/.hidden/n.png", "s/._x.png", "s/[1].png"):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).touch()
    Path("s/notes.txt").touch()
    sources, ignored = find_sources(["s", "s/*.jpg", "s/../s/b/x.png"])
    assert [s.path.as_posix() for s in sources] == [
        "s/[1].png",
        "s/z.jpg",
        "s/a/y.PNG",
        "s/b/x.png",
    ]
    assert [s.name for s in sources] == ["[1]", "z", "a/y", "b/x"]
    assert ignored == [Path("s/notes.txt")]
    assert [s.path.name for s in find_sources(["s/[1].png"])[0]] == ["[1].png"]
    assert len(find_sources(["s/**/*.png"])[0]) == 2
    # named by hand, a file is taken whatever it is
    assert find_sources(["s/notes.txt"])[0][0].name == "notes.txt"


def test_every_name_counts_and_links_without_end_are_passed_over(tmp_path):
    """As DVC and git-annex lay out their files, and folders by links."""
    store, scans = tmp_path / "store", tmp_path / "scans"
    (store / "more").mkdir(parents=True)
    scans.mkdir()
    for name in ("aa", "bb", "more/cc.png"):
        picture().save(store / name, "PNG")
    for name, target in (("1.png", "aa"), ("2.png", "aa"), ("3.png", "bb"), ("set", "more"),
                         ("again", "more")):  # fmt: skip
        (scans / name).symlink_to(store / target)
    (scans / "up").symlink_to(tmp_path)
    (store / "more/back").symlink_to(store / "more")
    expected = ["1", "2", "3", "again/cc", "set/cc"]
    sources, ignored = find_sources([scans])
    assert sorted(source.name for source in sources) == expected
    assert sorted(path.name for path in ignored) == ["back", "back", "up"]
    by_pattern, _ = find_sources([f"{scans}/**/*.png"])
    assert sorted(source.name for source in by_pattern if "cc" not in source.name) == expected[:3]
    assert len(by_pattern) == 5
    assert len(find_sources([scans, scans / "1.png", scans / "set/cc.png"])[0]) == 5


@pytest.mark.parametrize("greys", [None, "", "8:0-100", "16:0-4095"])
def test_a_saved_model_keeps_the_scale(tmp_path, greys):
    unet = build_variant("unet")
    WaveGMSPipeline(network=unet, image_size=32, greys=greys).save_pretrained(tmp_path / "model")
    opened = WaveGMSPipeline.from_pretrained(tmp_path / "model")
    assert opened.config.greys == greys
    assert opened.scale == WaveGMSPipeline(network=unet, image_size=32, greys=greys).scale


# One picture as eight, ten, twelve bits; the model saw eight, or ten and twelve alike.
@pytest.mark.parametrize(
    ("greys", "top", "said"),
    [
        ("", 255, ""),
        ("", 4095, "its values from 0 to 4095 were taken for black to white"),
        ("", 1023, "its values from 0 to 1023"),
        ("16:0-4095", 4095, ""),
        ("16:0-1023", 1023, ""),
        ("16:0-255", 4095, "outside 0 to 255"),
        ("8:0-100", 100, ""),
        ("8:0-100", 255, "outside 0 to 100"),
        ("16:0-65535", 4095, "from 0 to 4095 only, where the model takes 0 for black and 65535"),
        (None, 4095, "from 0 to 4095 only"),
    ],
)
def test_greys_are_seen_as_in_training(tmp_path, capfd, greys, top, said):
    model = WaveGMSPipeline(network=Brightness(), image_size=32, greys=greys)
    rng = np.random.default_rng(0)
    share = rng.integers(0, 256, (32, 32)) / 255
    share[0, :2] = 0, 1
    pixels = (share * top).round().astype(np.uint8 if top < 256 else np.uint16)
    path = tmp_path / "scan.png"
    Image.fromarray(pixels).save(path)
    predict_files(path, model, tmp_path / "out")
    error = capfd.readouterr().err
    assert (f"note: {path} has" in error) == bool(said) and said in error
    soft = np.asarray(Image.open(tmp_path / "out/probabilities/scan.png")) / 65535
    cut = "outside" in said
    high = int(greys.rpartition("-")[2]) if cut else 65535 if "only" in said else top
    assert np.abs(soft - (pixels / high).clip(0, 1)).max() < 0.01
    assert AugmentedPipeline.of(model, [View(False, 0)]).scale == model.scale


@pytest.mark.parametrize("missing", ["nothing.png", "s/*.bmp", "s"])
def test_what_is_not_there_is_refused(missing, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("s").mkdir()
    with pytest.raises(InputError) as error:
        find_sources([missing])
    assert str(error.value).startswith(missing) or missing in str(error.value)


def test_results_are_not_predicted_again(bright, tmp_path):
    picture().save(tmp_path / "a.png")
    first = predict_files(tmp_path, bright, tmp_path / "out")
    second = predict_files(tmp_path, bright, tmp_path / "again")
    assert first["file"].tolist() == second["file"].tolist() == [str(tmp_path / "a.png")]


def write_volume(path, size=(32, 32, 6), spacing=(0.5, 0.5, 2.0), stored="LPS"):
    """Bright in a box of 12 x 8 x 3 voxels."""
    voxels = np.full(size[::-1], 20, np.int16)
    voxels[2:5, 4:12, 8:20] = 230
    image = sitk.GetImageFromArray(voxels)
    image.SetSpacing(spacing)
    image.SetOrigin((-30.25, 12.5, 7.0))
    image = sitk.DICOMOrient(image, stored)
    sitk.WriteImage(image, str(path))
    return image


@pytest.mark.parametrize("stored", ["LPS", "RAI", "SPL"])
def test_the_geometry_of_a_nifti_comes_back(bright, tmp_path, stored):
    image = write_volume(tmp_path / "v.nii.gz", stored=stored)
    out = tmp_path / "out"
    table = predict_files(tmp_path / "v.nii.gz", bright, out, batch_size=4, plane="axial")
    before = sitk.ReadImage(str(tmp_path / "v.nii.gz"))
    for kind in ("masks", "probabilities"):
        after = sitk.ReadImage(str(out / kind / "v.nii.gz"))
        for what in ("GetSize", "GetOrigin", "GetSpacing"):
            assert getattr(after, what)() == getattr(before, what)()
        np.testing.assert_allclose(after.GetDirection(), before.GetDirection(), atol=1e-5)
        if kind == "masks":
            found = sitk.GetArrayFromImage(after)
            np.testing.assert_array_equal(found, sitk.GetArrayFromImage(image) > 100)
        else:
            assert after.GetPixelID() == sitk.sitkFloat32
    (row,) = table.to_dict("records")
    assert row["plane"] == "axial" and row["area_px"] == 12 * 8 * 3 and row["regions"] == 1
    assert row["volume_ml"] == pytest.approx(12 * 8 * 3 * 0.5 * 0.5 * 2 / 1000)
    # the box as ITK finds it, in stored voxels
    shapes = sitk.LabelShapeStatisticsImageFilter()
    shapes.Execute(sitk.ReadImage(str(out / "masks/v.nii.gz")))
    x, y, z, *extent = shapes.GetBoundingBox(1)
    assert [row[side] for side in ("left", "top", "first_slice")] == [x, y, z]
    ends = [row[side] for side in ("right", "bottom", "end_slice")]
    assert ends == [x + extent[0], y + extent[1], z + extent[2]]

    slices = pd.read_csv(out / "slices.csv")
    assert list(slices.columns) == list(SLICE_COLUMNS) and slices["slice"].tolist() == [*range(6)]
    stored_axis = {"LPS": 0, "RAI": 0, "SPL": 2}[stored]
    areas = (sitk.GetArrayFromImage(image) > 100).swapaxes(0, stored_axis).sum(axis=(1, 2))
    assert slices["area_px"].tolist() == areas.tolist()
    assert slices["area_mm2"].sum() == pytest.approx(row["volume_ml"] * 1000 / 2)


def test_images_and_volumes_share_a_folder(bright, tmp_path, capfd):
    picture().save(tmp_path / "a.png")
    write_volume(tmp_path / "b.nii")
    data = (tmp_path / "b.nii").read_bytes()
    (tmp_path / "cut.nii").write_bytes(data[:-1])
    patient = {"0010|0010": "Doe^Jane", "0008|0060": "CT"}
    write_series(tmp_path / "ct", sitk.ReadImage(str(tmp_path / "b.nii")), **patient)
    sitk.WriteImage(sitk.GetImageFromArray(np.asarray(picture())), str(tmp_path / "us.dcm"))
    out = tmp_path / "out"
    table = predict_files(tmp_path, bright, out).set_index("output")
    assert [*table.index.dropna()] == ["a", "b", "us", "ct"]
    assert table.loc[["a", "us"], "area_px"].tolist() == [96, 96]
    assert table.loc[["b", "ct"], "area_px"].tolist() == [288, 288]
    assert table.loc[["b", "ct"], "volume_ml"].tolist() == pytest.approx([0.144, 0.144])
    assert table["error"].ne("").sum() == 1
    assert f"{tmp_path}/cut.nii is truncated" in capfd.readouterr().err
    made, wanted = (sitk.ReadImage(str(out / f"masks/{n}.nii.gz")) for n in ("ct", "b"))
    for what in ("GetSize", "GetOrigin", "GetSpacing", "GetDirection"):
        np.testing.assert_allclose(getattr(made, what)(), getattr(wanted, what)(), atol=1e-4)
    assert pd.read_csv(out / "slices.csv")["file"].nunique() == 2
    assert b"Doe" in (tmp_path / "ct/9.dcm").read_bytes()
    for kind in ("masks", "probabilities"):
        assert b"Doe" not in gzip.decompress((out / kind / "ct.nii.gz").read_bytes())


def test_a_folder_may_hold_two_series_and_pictures(tmp_path):
    one = write_series(tmp_path / "exam", make(random_voxels()))
    two = write_series(tmp_path / "two", make(random_voxels()), **{"0020|000e": "1.2.3.5"})
    third = {"0020|000e": "1.2.3.6"}
    pictures = write_series(tmp_path / "us", make(random_voxels()), places=False, **third)
    for folder, letter in ((two, "t"), (pictures, "u")):
        for path in folder.iterdir():
            path.rename(one / f"{letter}{path.name}")
    # scanners name files without a suffix
    (one / "u9.dcm").rename(one / "IM0009")
    sources, ignored = find_sources([str(one)])
    assert [len(source.series) for source in sources] == [4, 4, 0, 0, 0, 0]
    names = ["exam_series_1", "exam_series_2", "IM0009", "u6", "u7", "u8"]
    assert [source.name for source in sources] == names and ignored == []
    assert [path.name for path in sources[1].series] == ["t9.dcm", "t8.dcm", "t7.dcm", "t6.dcm"]


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_what_is_there_already_is_left_alone(bright, tmp_path, kind):
    picture().save(tmp_path / "a.png")
    out = tmp_path / "out"
    precious = out / "precious.txt" if kind == "folder" else out
    precious.parent.mkdir(exist_ok=True)
    precious.write_text("work of weeks")
    with pytest.raises(InputError, match="exists already"):
        predict_files(tmp_path / "a.png", bright, out)
    assert precious.read_text() == "work of weeks"


def test_an_empty_folder_is_filled(bright, tmp_path):
    picture().save(tmp_path / "a.png")
    (tmp_path / "out").mkdir()
    predict_files(tmp_path / "a.png", bright, tmp_path / "out")
    assert (tmp_path / "out/masks/a.png").is_file()


@pytest.mark.parametrize(
    ("problem", "raised", "said"),
    [
        (KeyboardInterrupt("enough"), KeyboardInterrupt, "enough"),
        (OSError(errno.ENOSPC, "No space left on device"), InputError, "No space left"),
        (torch.OutOfMemoryError("CUDA"), InputError, "batch_size below 2"),
    ],
)
def test_what_breaks_in_the_middle_leaves_nothing(
    bright, scans, tmp_path, monkeypatch, problem, raised, said
):
    calls = []

    def breaking(self, images):
        calls.append(1)
        if len(calls) == 3:
            raise problem
        return images.mean(1, keepdim=True)

    monkeypatch.setattr(Brightness, "forward", breaking)
    before = files_below(tmp_path)
    with pytest.raises(raised, match=said):
        predict_files(scans, bright, tmp_path / "out", batch_size=2)
    assert files_below(tmp_path) == before and not (tmp_path / "out").exists()
    assert len(calls) == 3


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ({"threshold": 0}, "threshold"),
        ({"threshold": 1.1}, "threshold"),
        ({"threshold": float("nan")}, "threshold"),
        ({"batch_size": 0}, "batch_size"),
        ({"plane": "oblique"}, "plane"),
    ],
)
def test_impossible_options_are_refused(bright, tmp_path, option, said):
    picture().save(tmp_path / "a.png")
    with pytest.raises(InputError, match=said):
        predict_files(tmp_path / "a.png", bright, tmp_path / "out", **option)
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere names are Unicode")
def test_a_name_in_an_old_encoding(bright, tmp_path):
    good, broken = (tmp_path / os.fsdecode(name) for name in (b"\xe4.png", b"\xf6.png"))
    with open(good, "wb") as file:
        picture().save(file, "PNG")
    broken.touch()
    table = predict_files(tmp_path, bright, tmp_path / "out")
    assert table["file"].tolist() == [f"{tmp_path}/\\xe4.png", f"{tmp_path}/\\xf6.png"]
    assert table["error"][0] == "" and "f6.png is empty" in table["error"][1]
    assert (tmp_path / "out/masks" / good.name).is_file()


# From here on through the command line, with a model on the disk


@pytest.fixture(scope="module")
def model(tmp_path_factory, prepared, pipeline):
    """An untrained model with the card of one that was trained on the eight images."""
    folder = tmp_path_factory.mktemp("models") / "wave_gms"
    parameters = {"training": {"augmentation": {"horizontal_flip": 0.5}}}
    write_model(folder / "seed_1", pipeline, prepared, dataset="mine", parameters=parameters)
    return folder


def run(capfd, *arguments):
    status = main(["predict", *map(str, arguments)])
    captured = capfd.readouterr()
    return status, captured.out, captured.err


def test_the_command_says_what_it_did(model, scans, tmp_path, capfd):
    out = tmp_path / "out"
    status, said, complained = run(capfd, scans, "--model", model, "--out", out)
    assert status == 1
    assert "error: 5 of 16 could not be predicted" in complained
    assert str(out / "predictions.csv") in complained
    assert said.startswith("predicted 11 of 16") and said.count("\n") == 1
    settings = json.loads((out / "settings.json").read_text())
    assert settings["model"] == str(model / "seed_1") and settings["threshold"] == 0.5
    assert settings["weights"] == weights_hash(model / "seed_1")

    pipeline = WaveGMSPipeline.from_pretrained(model)
    expected = pipeline(Image.open(scans / "rgb.png")).probabilities[0]
    soft = np.asarray(Image.open(out / "probabilities/rgb.png")) / 65535
    np.testing.assert_allclose(soft, expected, atol=1e-4)


def test_all_well_is_status_0(model, scans, tmp_path, capfd):
    pattern = scans / "[gr]*.png"
    status, said, complained = run(capfd, pattern, "--model", model, "--out", tmp_path / "out")
    assert status == 0 and said.startswith("predicted 3 of 3") and "error" not in complained
    status, _, complained = run(capfd, pattern, "--model", model, "--out", tmp_path / "out")
    assert status == 1 and "exists already" in complained


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (["--device", "abacus"], "device is abacus"),
        (["--plane", "axial", "--batch-size", "0"], "batch_size"),
    ],
)
def test_bad_options_end_in_one_sentence(model, scans, tmp_path, capfd, change, said):
    out = tmp_path / "out"
    arguments = [scans / "rgb.png", "--model", model, "--out", out, *change]
    status, _, complained = run(capfd, *arguments)
    assert status == 1 and said in complained and complained.count("error: ") == 1
    assert not out.exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nothing.png", "--model", "."], "nothing.png does not exist"),
        (["rgb.png", "--model", "no/such/model"], "the folder no/such/model does not exist"),
        (["rgb.png", "--model", ".", "--threshold", "2"], "threshold must be above 0"),
    ],
)
def test_a_wrong_argument_is_answered_before_torch_is_imported(scans, arguments, said):
    script = "import sys; from wavegms.__main__ import main; main(); print('torch' in sys.modules)"
    command = [sys.executable, "-c", script, "predict", *arguments, "--out", "out"]
    answer = subprocess.run(command, cwd=scans, check=True, capture_output=True, text=True)
    assert answer.stderr.startswith(f"error: {said}") and answer.stdout == "False\n"


def test_nothing_is_asked_of_the_network(model, scans, tmp_path, capfd, monkeypatch):
    def refuse(*_):
        raise AssertionError("a connection")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.chdir(scans)
    arguments = ["rgb.png", "grey.png", "--model", model, "--device", "cpu"]
    assert run(capfd, *arguments, "--out", tmp_path / "out")[0] == 0
    table = pd.read_csv(tmp_path / "out/predictions.csv")
    assert table["file"].tolist() == ["rgb.png", "grey.png"]


def with_tta(capfd, model, scans, out, prepared):
    arguments = (scans / "rgb.png", "--model", model, "--out", out, "--tta")
    status, said, complained = run(capfd, *arguments, "--prepared", prepared)
    assert status == 0, complained
    line, last = said.splitlines()
    assert last.startswith("predicted 1 of 1")
    return line, json.loads((out / "settings.json").read_text())["tta"]


def test_tta_says_whether_it_helps(model, scans, tmp_path, capfd, prepared):
    (tmp_path / "prepared").mkdir()
    (tmp_path / "prepared/mine").symlink_to(prepared)
    out = tmp_path / "out"
    line, settings = with_tta(capfd, model, scans, out, tmp_path / "prepared")
    assert line.startswith("TTA: 2 views, DSC on the 2 validation images of mine ")
    assert settings["views"] == 2 and settings["gain"]["images"] == 2

    pipeline = WaveGMSPipeline.from_pretrained(model)
    image = Image.open(scans / "rgb.png")
    both = pipeline([image, ImageOps.mirror(image)]).probabilities
    soft = np.asarray(Image.open(out / "probabilities/rgb.png")) / 65535
    np.testing.assert_allclose(soft, (both[0] + both[1][:, ::-1]) / 2, atol=1e-3)


def test_tta_says_that_it_cannot_know(model, scans, tmp_path, capfd):
    line, settings = with_tta(capfd, model, scans, tmp_path / "out", tmp_path / "nowhere")
    assert "is not known" in line and str(tmp_path / "nowhere/mine") in line
    assert settings == {"views": 2, "gain": None}


def test_tta_without_a_card_flips_once(bright, scans, tmp_path, capfd, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("card.json").write_text("{}")  # not that of a model without a folder
    predict_files(scans / "rgb.png", bright, "out", tta=True)
    assert "TTA: 2 views, whether it helps is not known" in capfd.readouterr().out
    predict_files(scans / "rgb.png", bright, "plain")
    same = Path("out/probabilities/rgb.png").read_bytes()
    assert same == Path("plain/probabilities/rgb.png").read_bytes()
