"""NIfTI and DICOM: what is seen of them, that geometry comes back, and what is refused."""

import gzip
import math
import os
import shutil
import struct
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from dicoms import OBLIQUE, SPACING, UPRIGHT, make, random_voxels, write_series
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from wavegms.data.cases import is_dicom
from wavegms.data.volumes import Volume, read_picture, read_volume, series_in, write_volume
from wavegms.errors import InputError


def geometry(image):
    return image.GetSize(), image.GetOrigin(), image.GetSpacing(), image.GetDirection()


def refused(call, *arguments):
    with pytest.raises(InputError) as error:
        call(*arguments)
    message = str(error.value)
    assert "\n" not in message and message.endswith(".")
    return message


def rotations():
    turns = st.integers(0, 2**31 - 1).map(lambda seed: Rotation.random(rng=seed).as_matrix())
    mirrors = st.sampled_from([UPRIGHT, np.diag([1.0, 1.0, -1.0])])
    return st.tuples(turns, mirrors).map(lambda pair: pair[0] @ pair[1])


@given(
    direction=rotations(),
    spacing=st.tuples(*[st.floats(0.05, 9)] * 3),
    origin=st.tuples(*[st.floats(-500, 500)] * 3),
    plane=st.sampled_from([None, "axial", "coronal", "sagittal"]),
)
@settings(max_examples=60)
def test_what_is_put_back_lies_where_it_was(direction, spacing, origin, plane):
    image = make(random_voxels(), spacing, origin, direction)
    volume = Volume(image, plane)
    view = np.stack([volume[place] for place in range(len(volume))])
    assert view.shape == volume.shape
    back = volume.restore(view)
    assert geometry(back) == geometry(image)
    low, high = volume.window
    share = ((sitk.GetArrayFromImage(image) - low) / (high - low)).clip(0, 1)
    np.testing.assert_allclose(sitk.GetArrayFromImage(back), share * 255, atol=0.501)


@given(direction=rotations(), origin=st.tuples(*[st.floats(-500, 500)] * 3))
@settings(max_examples=30)
def test_a_nifti_comes_back_on_its_grid(direction, origin, tmp_path_factory):
    """Through files: the mask of what was read has the geometry of what was read."""
    folder = tmp_path_factory.mktemp("nifti")
    sitk.WriteImage(make(random_voxels(), SPACING, origin, direction), str(folder / "a.nii.gz"))
    volume = read_volume(folder / "a.nii.gz")
    bright = np.stack([volume[place] for place in range(len(volume))]) > 127
    write_volume(folder / "mask.nii.gz", volume.restore(bright.astype(np.uint8)))
    before, after = (sitk.ReadImage(str(folder / n)) for n in ("a.nii.gz", "mask.nii.gz"))
    assert after.GetSize() == before.GetSize()
    assert after.GetOrigin() == before.GetOrigin() and after.GetSpacing() == before.GetSpacing()
    # a rotation is stored as a quaternion of float32
    np.testing.assert_allclose(after.GetDirection(), before.GetDirection(), atol=1e-5)
    middle = np.mean(volume.window)
    expected = sitk.GetArrayFromImage(before) > middle
    differing = expected != sitk.GetArrayFromImage(after).astype(bool)
    assert (np.abs(sitk.GetArrayFromImage(before)[differing] - middle) <= 2).all()
    assert 0.3 < expected.mean() < 0.7


@pytest.mark.parametrize("stored", ["LPS", "RAI", "RAS", "PIR", "SAL", "ILP"])
@pytest.mark.parametrize(
    ("plane", "columns", "rows"), [("axial", 0, 1), ("coronal", 0, -2), ("sagittal", 1, -2)]
)
def test_slices_are_seen_as_a_radiologist_sees_them(stored, plane, columns, rows):
    """Left is on the right, anterior and superior are above, however the file is stored."""
    grid = np.stack(np.meshgrid(*[np.arange(8)] * 3, indexing="ij")[::-1])  # x, y, z
    for axis, along in ((columns, 1), (rows, 0)):
        values = grid[abs(axis)] if axis >= 0 else 7 - grid[abs(axis)]
        image = sitk.DICOMOrient(make(values.astype(np.float32), (1, 1, 1)), stored)
        piece = Volume(image, plane, window=(0, 7))[3].astype(int)
        assert (np.diff(piece, axis=along) > 30).all()
        assert (np.diff(piece, axis=1 - along) == 0).all()


@pytest.mark.parametrize(
    ("stored", "plane"),
    [("LPS", "axial"), ("RAI", "axial"), ("LIP", "coronal"), ("PIL", "sagittal")],
)
def test_the_plane_is_that_of_the_stored_slices(stored, plane):
    image = sitk.DICOMOrient(make(random_voxels((5, 6, 7))), stored)
    volume = Volume(image)
    assert volume.plane == plane and len(volume) == image.GetDepth()
    array = sitk.GetArrayFromImage(image)
    for place, number in enumerate(volume.numbers):
        stored_slice = Volume(make(array), window=volume.window)[number]
        # the same pixels, perhaps mirrored or turned
        assert sorted(volume[place].ravel()) == sorted(stored_slice.ravel())


def test_bright_voxels_do_not_darken_the_rest():
    voxels = np.linspace(100, 200, 4000).reshape(10, 20, 20)
    voxels[5, 5, 5] = 1e6
    low, high = Volume(make(voxels)).window
    assert 100 <= low < 101 and 199 < high <= 200


def test_a_small_bright_thing_on_black_is_seen():
    voxels = np.zeros((10, 20, 20))
    voxels[5, 5, 5] = 3
    assert Volume(make(voxels))[5][5, 5] == 255


def test_what_is_no_number_is_dark():
    voxels = random_voxels().astype(np.float32)
    voxels[0, 0, :3] = np.nan, -np.inf, np.inf
    volume = Volume(make(voxels))
    assert volume[0][0, :3].tolist() == [0, 0, 255]
    seen = np.percentile(voxels[np.isfinite(voxels)], (0.5, 99.5))
    np.testing.assert_allclose(volume.window, seen, rtol=1e-5)


@pytest.fixture
def nifti(tmp_path):
    path = tmp_path / "a.nii.gz"
    sitk.WriteImage(make(random_voxels((20, 30, 40))), str(path))
    return path


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("keep", [0, 10, 0.01, 0.5, -1])
def test_a_truncated_nifti_is_refused(nifti, packed, keep):
    """SimpleITK itself would fill the rest with zeros."""
    path = nifti if packed else nifti.with_suffix("")
    data = nifti.read_bytes() if packed else gzip.decompress(nifti.read_bytes())
    path.write_bytes(data[: keep if isinstance(keep, int) else int(keep * len(data))])
    assert str(path) in refused(read_volume, path)


def test_a_flipped_bit_is_refused(nifti):
    data = bytearray(nifti.read_bytes())
    data[-8] ^= 1  # in the checksum
    nifti.write_bytes(data)
    assert "damaged" in refused(read_volume, nifti)


@pytest.mark.parametrize(
    ("image", "said"),
    [
        (sitk.JoinSeries([make(random_voxels())] * 2), "4 dimensions"),
        (sitk.GetImageFromArray(random_voxels((9, 12))), "flat"),
        (sitk.Image([5, 6, 3], sitk.sitkVectorUInt8, 3), "colour"),
        (sitk.Image([5, 6, 3], sitk.sitkVectorFloat32, 2), "colour"),
        (sitk.Image([5, 6, 3], sitk.sitkComplexFloat32), "several values"),
        (sitk.Image([5, 6, 3], sitk.sitkUInt8), "all values are the same"),
        (make(np.full((3, 4, 5), np.nan)), "all values are the same"),
    ],
)
def test_what_is_no_grey_volume_is_refused(image, said, tmp_path):
    path = tmp_path / "odd.nii.gz"
    sitk.WriteImage(image, str(path))
    message = refused(read_volume, path)
    assert said in message and str(path) in message


def test_a_header_may_not_claim_the_whole_memory(nifti):
    data = bytearray(gzip.decompress(nifti.read_bytes()))
    data[40:56] = struct.pack("<8h", 3, 32000, 32000, 32000, 1, 1, 1, 1)
    nifti.with_suffix("").write_bytes(data)
    assert "claims 32,768,000,000,000 voxels" in refused(read_volume, nifti.with_suffix(""))


def test_sheared_axes_are_refused(nifti):
    data = bytearray(gzip.decompress(nifti.read_bytes()))
    data[252:256] = struct.pack("<2h", 0, 1)
    data[280:296] = struct.pack("<4f", 1, 0.5, 0, 0)
    nifti.write_bytes(gzip.compress(data))
    assert "right angles" in refused(read_volume, nifti)


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz", "a.dcm"])
@pytest.mark.parametrize("content", [b"", b"hello" * 500, b"\x89HDF\r\n\x1a\n" + bytes(900)])
def test_other_files_of_that_name_are_refused(name, content, tmp_path, capfd):
    path = tmp_path / name
    path.write_bytes(content)
    read = read_picture if name.endswith("dcm") else read_volume
    assert str(path) in refused(read, path)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("stored", ["LPS", "PIL", "SAR"])
@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("kind", ["nifti", "array"])
def test_a_side_of_one_is_the_slice(stored, axis, kind, tmp_path):
    """Whichever axis it is stored along: one picture, and its mask back in place."""
    shape = [9, 12, 10]
    shape[2 - axis] = 1
    cosines = sitk.DICOMOrientImageFilter.GetDirectionCosinesFromOrientation(stored)
    image = make(random_voxels(tuple(shape)), direction=cosines)
    if kind == "nifti":
        sitk.WriteImage(image, str(tmp_path / "a.nii.gz"))
        volume = read_volume(tmp_path / "a.nii.gz")
    else:
        volume = Volume(image)
    assert volume.shape[0] == 1 and sorted(volume.shape[1:]) == sorted(set(shape) - {1})
    marked = volume.restore((volume[0][None] > 128).astype(np.uint8))
    greys = sitk.GetArrayFromImage(volume.image)
    low, high = volume.window
    assert np.array_equal(
        sitk.GetArrayFromImage(marked).astype(bool), (greys - low) / (high - low) * 255 > 128.5
    )
    others = {"axial", "coronal", "sagittal"} - {volume.plane}
    for plane in others:
        with pytest.raises(InputError, match=f"{plane} slices are lines .*choose the plane"):
            Volume(image, plane)


@pytest.mark.parametrize("plane", [None, "axial", "coronal", "sagittal"])
def test_axes_between_those_of_the_body_are_read_or_refused(plane):
    half = Rotation.from_euler("y", 45, degrees=True).as_matrix()
    image = make(random_voxels(), (1, 1, 1), (0, 0, 0), half)
    try:
        volume = Volume(image, plane)
    except InputError as error:
        assert "45 degrees" in str(error)
        return
    back = volume.restore(np.zeros(volume.shape, np.uint8))
    assert geometry(back) == geometry(image)


def test_a_line_is_no_picture():
    with pytest.raises(InputError, match=r"lines of .*: give an image"):
        Volume(make(random_voxels((1, 1, 12))))


def test_one_slice_is_a_volume(tmp_path):
    path = tmp_path / "one.nii"
    sitk.WriteImage(make(random_voxels((1, 9, 12))), str(path))
    volume = read_volume(path)
    assert volume.shape == (1, 9, 12)
    assert geometry(volume.restore(np.zeros((1, 9, 12), np.uint8))) == geometry(volume.image)


@pytest.mark.parametrize("direction", [UPRIGHT, OBLIQUE, [[0, 0, 1], [1, 0, 0], [0, 1, 0]]])
def test_a_series_is_stacked_by_place(tmp_path, direction):
    image = make(random_voxels((5, 9, 12)), direction=direction)
    folder = write_series(tmp_path / "S", image)
    (series,) = series_in(folder)
    volume = read_volume(folder, series)
    np.testing.assert_array_equal(
        sitk.GetArrayFromImage(volume.image), sitk.GetArrayFromImage(image)
    )
    for ours, theirs in zip(geometry(volume.image), geometry(image), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-4)


def test_pictures_of_one_examination_are_no_volume(tmp_path):
    folder = write_series(tmp_path / "US", make(random_voxels(dtype=np.uint8)), places=False)
    assert series_in(folder) == []
    assert read_picture(folder / "9.dcm").size == (12, 9)


@pytest.mark.parametrize("lost", ["8.dcm", "7.dcm"])
def test_a_missing_slice_is_refused(tmp_path, lost):
    folder = write_series(tmp_path / "S", make(random_voxels((5, 9, 12))))
    (folder / lost).unlink()
    (series,) = series_in(folder)
    assert "missing" in refused(read_volume, folder, series)


def test_a_tilted_stack_is_refused(tmp_path):
    folder = write_series(tmp_path / "S", make(random_voxels()))
    for number, path in enumerate(sorted(folder.iterdir())):
        piece = sitk.ReadImage(str(path))[:, :, 0]
        values = {"0020|0032": f"0\\{number}\\{number * 3}", "0020|0037": "1\\0\\0\\0\\1\\0"}
        values |= {"0020|000e": "1.2.3.4", "0020|000d": "1.2.3", "0008|0060": "CT"}
        for key, value in values.items():
            piece.SetMetaData(key, value)
        writer = sitk.ImageFileWriter()
        writer.KeepOriginalImageUIDOn()
        writer.SetFileName(str(path))
        writer.Execute(piece)
    (series,) = series_in(folder)
    assert "tilted" in refused(read_volume, folder, series)


def test_slices_of_two_sizes_are_refused(tmp_path):
    folder = write_series(tmp_path / "S", make(random_voxels()))
    other = write_series(tmp_path / "T", make(random_voxels((4, 5, 6))))
    shutil.copy(other / "8.dcm", folder / "8.dcm")
    (series,) = series_in(folder)
    assert str(folder) in refused(read_volume, folder, series)


WINDOW = {"0028|1050": "250\\40", "0028|1051": "100\\400"}


def test_dicom_is_seen_through_its_window(tmp_path):
    voxels = random_voxels()
    folder = write_series(tmp_path / "S", make(voxels), **WINDOW)
    (series,) = series_in(folder)
    volume = read_volume(folder, series)
    assert volume.window == (200, 300)
    by_rule = read_volume(folder, series, percentiles=(1, 99)).window
    assert by_rule == tuple(np.percentile(voxels, (1, 99)))
    expected = ((voxels - 200) / 100).clip(0, 1) * 255
    np.testing.assert_allclose(volume[0], expected[0], atol=0.501)
    picture = np.asarray(read_picture(series[0]))
    assert picture.shape == (9, 12, 3)
    np.testing.assert_array_equal(picture, np.repeat(volume[0][..., None], 3, -1))


def test_monochrome1_is_bright_where_it_is_low(tmp_path):
    voxels = random_voxels((4, 40, 50))
    folder = write_series(tmp_path / "S", make(voxels), **WINDOW)
    path = folder / "9.dcm"
    path.write_bytes(path.read_bytes().replace(b"MONOCHROME2", b"MONOCHROME1"))
    low, high = np.percentile(voxels[0], (0.5, 99.5))
    expected = ((high - voxels[0]) / (high - low)).clip(0, 1) * 255
    np.testing.assert_allclose(np.asarray(read_picture(path))[..., 0], expected, atol=0.501)


def test_pictures_of_eight_bits_are_taken_as_they_are(tmp_path):
    grey = random_voxels((9, 12)).clip(60, 200).astype(np.uint8)
    colours = np.stack([grey, 255 - grey, grey // 2], -1)
    for name, pixels in (("grey", grey), ("colour", colours)):
        path = tmp_path / f"{name}.dcm"
        sitk.WriteImage(sitk.GetImageFromArray(pixels, isVector=pixels.ndim == 3), str(path))
        expected = np.repeat(grey[..., None], 3, -1) if pixels.ndim == 2 else colours
        np.testing.assert_array_equal(np.asarray(read_picture(path)), expected)


def test_a_clip_is_refused(tmp_path):
    path = tmp_path / "clip.dcm"
    sitk.WriteImage(sitk.GetImageFromArray(random_voxels(dtype=np.uint8)), str(path))
    assert "4 frames" in refused(read_picture, path)


def test_a_truncated_dicom_is_refused(tmp_path):
    folder = write_series(tmp_path / "S", make(random_voxels((3, 40, 50))))
    path = folder / "8.dcm"
    data = path.read_bytes()
    for keep in (0, 100, 140, len(data) // 2, len(data) - 2):
        path.write_bytes(data[:keep])
        assert str(path) in refused(read_picture, path)


def test_dicom_is_known_by_name_or_by_its_mark(tmp_path):
    folder = write_series(tmp_path / "S", make(random_voxels()))
    names = {"IM000001": True, "IM.0001": True, "a.dcm": True, "DICOMDIR": False, "dicomdir": False}
    for name, expected in names.items():
        shutil.copy(folder / "9.dcm", tmp_path / name)
        assert is_dicom(tmp_path / name) == expected
    (tmp_path / "notes").write_bytes(b"x" * 200)
    assert not is_dicom(tmp_path / "notes") and not is_dicom(tmp_path / "nothing")


def test_a_volume_that_cannot_be_written_is_said(tmp_path):
    path = tmp_path / "no/such/mask.nii.gz"
    assert str(path) in refused(write_volume, path, make(random_voxels()))


def test_warnings_of_itk_come_back(tmp_path):
    """They are silenced only while something is read here."""
    assert sitk.ProcessObject.GetGlobalWarningDisplay()
    refused(read_volume, Path(os.devnull).with_name("nothing.nii"))
    assert sitk.ProcessObject.GetGlobalWarningDisplay()


def test_spacing_is_that_of_the_pixels_of_a_slice():
    volume = Volume(make(random_voxels()), "sagittal")
    # columns run backward (y), rows downward (z), slices across (x)
    assert volume.spacing == (3.0, 0.8) and len(volume) == 12
    assert math.prod(volume.shape) == 4 * 9 * 12
