"""Volumes for tests: images of SimpleITK, and DICOM series on the disk."""

import json

import numpy as np
import SimpleITK as sitk
from scipy.spatial.transform import Rotation

SPACING = (0.7, 0.8, 3.0)
ORIGIN = (-10.0, 20.0, 33.5)


UPRIGHT = np.eye(3)
OBLIQUE = Rotation.from_euler("xyz", [10, -20, 35], degrees=True).as_matrix()


def make(values, spacing=SPACING, origin=ORIGIN, direction=UPRIGHT):
    image = sitk.GetImageFromArray(np.asarray(values))
    image.SetSpacing(spacing)
    image.SetOrigin(origin)
    image.SetDirection(np.asarray(direction).ravel().tolist())
    return image


def random_voxels(shape=(4, 9, 12), seed=0, dtype=np.int16):
    return np.random.default_rng(seed).integers(0, 500, shape).astype(dtype)


def write_decathlon(folder, count=4, shape=(6, 9, 12), empty=2, names=(), **geometry):
    """Volumes with labels 0, 1, 2 in a box; the first `empty` slices show nothing.

    Names of 1 and 2 come into a dataset.json.
    """
    for number in range(count):
        voxels = random_voxels(shape, seed=number)
        labels = np.zeros(shape, np.uint8)
        labels[empty:, 2:6, 3 : 6 + number % 3] = 1
        labels[empty:, 6:8, 3:6] = 2
        for part, values in (("imagesTr", voxels + 400 * (labels > 0)), ("labelsTr", labels)):
            (folder / part).mkdir(parents=True, exist_ok=True)
            image = make(
                values.astype(labels.dtype if part == "labelsTr" else np.int16), **geometry
            )
            sitk.WriteImage(image, str(folder / part / f"case_{number}.nii.gz"))
    if names:
        labels = dict(enumerate(("background", *names)))
        (folder / "dataset.json").write_text(json.dumps({"labels": labels}))
    return folder


def write_series(folder, image, places=True, **tags):
    """One file a slice, named so that the order of the names is not that of the places."""
    folder.mkdir(parents=True)
    direction = np.reshape(image.GetDirection(), (3, 3))
    writer = sitk.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    for number in range(image.GetDepth()):
        piece = image[:, :, number]
        values = {
            "0008|0060": "MR",
            "0020|000d": "1.2.3",
            "0020|000e": "1.2.3.4",
            "0008|0018": f"1.2.3.4.{number + 1}",
        }
        if places:
            place = image.TransformIndexToPhysicalPoint((0, 0, number))
            values["0020|0032"] = "\\".join(f"{value:.6f}" for value in place)
            values["0020|0037"] = "\\".join(f"{v:.8f}" for v in direction[:, :2].T.ravel())
        else:  # ultrasound pictures have none
            values |= {"0008|0060": "US", "0008|0016": "1.2.840.10008.5.1.4.1.1.6.1"}
        for key, value in (values | tags).items():
            piece.SetMetaData(key, value)
        writer.SetFileName(str(folder / f"{9 - number}.dcm"))
        writer.Execute(piece)
    return folder
