"""The simulated volumes: the same each time, with an organ that is seen, and empty slices."""

import numpy as np
import pytest
import SimpleITK as sitk
from scipy import ndimage

from wavegms.data.catalog import find_cases
from wavegms.data.classes import label_names
from wavegms.data.volume_sets import decide_reading, look_at_volumes
from wavegms.phantom.scanner import example, write_phantoms
from wavegms.phantom.volumes import SHAPE, SPACING, simulate_volume


@pytest.fixture(scope="module")
def volumes():
    return [simulate_volume(7, index) for index in range(5)]


def test_a_volume_depends_on_seed_and_index_alone(volumes, tmp_path):
    again, other = simulate_volume(7, 3), simulate_volume(8, 3)
    np.testing.assert_array_equal(again.voxels, volumes[3].voxels)
    assert (other.voxels != again.voxels).mean() > 0.5
    write_phantoms("phantom_v", tmp_path / "v", count=2, seed=7)
    for part, wanted in (("imagesTr", volumes[1].voxels), ("labelsTr", volumes[1].labels)):
        image = sitk.ReadImage(str(tmp_path / "v" / part / "phantom_002.nii.gz"))
        np.testing.assert_array_equal(sitk.GetArrayFromImage(image), wanted)
        assert image.GetSpacing() == SPACING[::-1] and image.GetSize() == SHAPE[::-1]
    before = {p: p.read_bytes() for p in (tmp_path / "v").rglob("*.nii.gz")}
    write_phantoms("phantom_v", tmp_path / "v", count=2, seed=7)
    assert before == {p: p.read_bytes() for p in (tmp_path / "v").rglob("*.nii.gz")}


def test_the_organ_is_one_and_seen_and_does_not_fill_all_slices(volumes):
    for volume in volumes:
        inside = volume.labels > 0
        assert ndimage.label(inside)[1] == 1 and set(np.unique(volume.labels)) == {0, 1, 2}
        shown = inside.any((1, 2)).sum()
        assert 8 <= shown <= SHAPE[0] - 8
        # brighter than what surrounds it, by more than half the noise
        ring = ndimage.binary_dilation(inside, iterations=3) & ~ndimage.binary_dilation(inside)
        greys = volume.voxels.astype(float)
        assert greys[inside].mean() - greys[ring].mean() > 0.5 * greys[ring].std()
    # as in MR, a grey means something else in each
    whites = [np.percentile(volume.voxels, 99.5) for volume in volumes]
    assert max(whites) > 2 * min(whites)


def test_it_is_read_as_any_dataset_of_volumes(tmp_path):
    write_phantoms("phantom_v", tmp_path, count=2, seed=7)
    cases = find_cases("phantom_v", tmp_path)
    seen, problems = look_at_volumes("phantom_v", cases, tmp_path)
    assert problems == []
    reading = decide_reading("phantom_v", cases, seen, label_names(tmp_path))
    # slices are 2 mm apart, and pixels 1 mm
    assert reading.scale.volumes.plane == "axial" and "1 head (" in reading.evidence[-1]
    shown = example("phantom_v", 7, 0)
    assert shown.image.shape == SHAPE[1:] and shown.masks[0].sum() > 40
