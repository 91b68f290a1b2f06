"""NIfTI, MHA, NRRD and DICOM by SimpleITK: slices as 8-bit pictures, geometry kept.

A volume is cut into slices, each is predicted as any picture is, or with those around it, and the
masks are put back on the volume's own grid.

MONAI's readers were tried instead. They take 5 s to import, read sheared, cut and 4-D NIfTI files
without a word, stack DICOM slices by their numbers instead of their places, make one volume of two
series and miss no missing slice. Its SliceInferer gives the same bits for what is three lines here.
"""

import gzip
import math
import re
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from PIL import Image

from wavegms.errors import InputError
from wavegms.images import MAX_PIXELS
from wavegms.variants import Context, Plane

# 512 x 512 x 1900 voxels: 1 GB as it is read, and 2 GB of probabilities of each class
MAX_VOXELS = 500_000_000

# Columns, rows and slices run towards these sides of the patient (left, posterior, superior,
# inferior), which is how a radiologist looks at each plane.
VIEWS = {"axial": "LPS", "coronal": "LIP", "sagittal": "PIL"}

_PLANE_ACROSS = {
    **dict.fromkeys("SI", "axial"),
    **dict.fromkeys("AP", "coronal"),
    **dict.fromkeys("LR", "sagittal"),
}

# By the endings of names, and by what ITK calls its readers.
_KINDS = {".mha": "MetaImage", ".nrrd": "NRRD"}
_READERS = {
    "NIfTI": "NiftiImageIO",
    "DICOM": "GDCMImageIO",
    "MetaImage": "MetaImageIO",
    "NRRD": "NrrdImageIO",
}
_ELSEWHERE = {
    "MetaImage": re.compile(rb"(?im)^ElementDataFile\s*=(?!\s*LOCAL\s*$)"),
    "NRRD": re.compile(rb"(?im)^data ?file:"),
}

# NIfTI's codes of them.
_NIFTI_FLOATS = {16: "f4", 64: "f8"}

# A window from all voxels would hang on single bright ones
_PERCENTILES = (0.5, 99.5)

_VOXELS_SEEN = 10_000_000


class Stack:
    """A volume as a row of upright slices.

    Attributes:
        image: as it was read, on its own grid.
        plane: of the slices; if none is asked for, that of a single slice, or the one that is
            nearest to the stored slices.
        voxels: (slices, rows, columns), the values.
        shape: likewise.
        spacing: (rows, columns) distance of the pixels of a slice, mm.
        thickness: distance of the slices, mm.
        numbers: for every slice its number along the stored axis, from 0.
    """

    def __init__(self, image: sitk.Image, plane: Plane | None = None):
        """Turns it to the view of a plane; an InputError if that cannot be."""
        self.image = image
        self._orientation = orientation_of(image)
        sides = image.GetSize()
        # one slice is looked at from where it is flat, whichever axis it was stored along
        flat = _PLANE_ACROSS[self._orientation[sides.index(1) if 1 in sides else 2]]
        self.plane: Plane = plane or flat
        self._turned = sitk.DICOMOrient(image, VIEWS[self.plane])
        empty = sitk.Image(self._turned.GetSize(), sitk.sitkUInt8)
        empty.CopyInformation(self._turned)
        back = sitk.DICOMOrient(empty, self._orientation)
        if not np.allclose(back.GetDirection(), image.GetDirection()):
            raise InputError(
                "two of its axes lie at 45 degrees to those of the body, so that which is which "
                "cannot be told: resample it to axial, coronal or sagittal slices."
            )
        self.voxels = sitk.GetArrayViewFromImage(self._turned)
        self.shape: tuple[int, int, int] = self.voxels.shape
        if 1 in self.shape[1:]:
            way = f"choose the plane {flat}, or none" if sides.count(1) == 1 else "give an image"
            raise InputError(
                f"its {self.plane} slices are lines of {self.shape[1]}×{self.shape[2]} pixels: "
                f"{way}."
            )
        columns, rows, self.thickness = self._turned.GetSpacing()
        self.spacing = rows, columns
        stored, turned = (np.reshape(i.GetDirection(), (3, 3)) for i in (image, self._turned))
        along = stored.T @ turned[:, 2]
        numbers = range(len(self))
        self.numbers = numbers[::-1] if along[np.abs(along).argmax()] < 0 else numbers

    def __len__(self) -> int:
        return len(self.voxels)

    def seen_alike(self, image: sitk.Image) -> np.ndarray:
        """The values of another image on the same grid, as `voxels`."""
        return sitk.GetArrayFromImage(sitk.DICOMOrient(image, VIEWS[self.plane]))

    def restore(self, values: np.ndarray) -> sitk.Image:
        """Puts values of the view's shape on the grid of `image`, its very geometry."""
        view = sitk.GetImageFromArray(values)
        view.CopyInformation(self._turned)
        back = sitk.DICOMOrient(view, self._orientation)
        back.CopyInformation(self.image)
        return back


class Volume(Stack):
    """A grey volume as a row of upright 8-bit slices.

    `window` is (low, high), the intensities that became 0 and 255: if none is given, percentiles of
    all voxels, or their extremes where those two are equal. What is no number counts as dark.
    """

    def __init__(
        self,
        image: sitk.Image,
        plane: Plane | None = None,
        window: tuple[float, float] | None = None,
        percentiles: tuple[float, float] = _PERCENTILES,
    ):
        """As a stack; an InputError also if it shows nothing."""
        super().__init__(image, plane)
        self.window = window or _window_of(self.voxels, percentiles)

    def __getitem__(self, index: int) -> np.ndarray:
        """One slice, uint8 (rows, columns)."""
        if not 0 <= index < len(self):
            raise IndexError(index)
        return _to_grey(self.voxels[index], self.window)

    def seen(self, index: int, context: Context = "none") -> np.ndarray:
        """A slice as a network sees it, uint8: (rows, columns), or with its neighbours (..., 3).

        Those are the slices below, at and above, by the place in the body and not in the file; one
        at an edge stands for the one that is missing.
        """
        if context == "none":
            return self[index]
        last = len(self) - 1
        return np.stack([self[min(max(index + step, 0), last)] for step in (-1, 0, 1)], -1)


def spacing_across(image: sitk.Image) -> dict[Plane, float]:
    """The distance of the slices of each plane, mm."""
    letters = orientation_of(image)
    return {
        _PLANE_ACROSS[letter]: step
        for letter, step in zip(letters, image.GetSpacing(), strict=True)
    }


def orientation_of(image: sitk.Image | sitk.ImageFileReader) -> str:
    """Towards which sides of the patient columns, rows and slices run as they are stored."""
    find = sitk.DICOMOrientImageFilter.GetOrientationFromDirectionCosines
    return find(image.GetDirection())


def off_grid(one: sitk.Image, other: sitk.Image) -> str:
    """How the grids of two images differ, in words; empty if they are the same.

    A tenth of a voxel is what rounding in the files may do.
    """
    if one.GetSize() != other.GetSize():
        return f"{_shape(one)} voxels against {_shape(other)}"
    spacing = np.array(other.GetSpacing())
    far = spacing * (np.array(other.GetSize()) - 1)
    if (np.abs(np.array(one.GetSpacing()) - spacing) * np.array(other.GetSize())).max() > 0.1 * (
        spacing.min()
    ):
        return f"voxels of {_numbered(one.GetSpacing())} mm against {_numbered(spacing)} mm"
    if np.abs(np.subtract(one.GetOrigin(), other.GetOrigin())).max() > 0.1 * spacing.min():
        return f"begins at {_numbered(one.GetOrigin())} mm, not {_numbered(other.GetOrigin())} mm"
    turn = np.subtract(one.GetDirection(), other.GetDirection()).reshape(3, 3)
    if np.abs(turn * far).max() > 0.1 * spacing.min():
        return "its axes point elsewhere"
    return ""


def _shape(image: sitk.Image) -> str:
    return "×".join(map(str, image.GetSize()))


def _numbered(values: Sequence[float]) -> str:
    return ", ".join(f"{value:.4g}" for value in values)


def series_in(folder: Path) -> list[tuple[Path, ...]]:
    """The DICOM series right in a folder that are volumes, each file in the order of its place.

    Pictures of one examination often share a series without being slices of anything, ultrasound
    above all; they have no place in space and are left out.
    """
    with _quiet():
        reader = sitk.ImageSeriesReader
        try:
            groups = [
                tuple(map(Path, reader.GetGDCMSeriesFileNames(str(folder), uid)))
                for uid in reader.GetGDCMSeriesIDs(str(folder))
            ]
        except Exception:  # a name that ITK cannot take; each file will say so by itself
            return []
        return [files for files in groups if len(files) > 1 and _has_places(files)]


def read_picture(path: Path) -> Image.Image:
    """A DICOM file of one image, as RGB.

    Colours are taken as they are. Grey is scaled from the window that the file names; without one,
    8-bit grey is taken as it is and more bits from percentiles 0.5 and 99.5 of the pixels.
    """
    with _quiet():
        reader = _reader(path, "DICOM")
        frames = math.prod(reader.GetSize()[2:])
        if frames != 1:
            raise InputError(
                f"{path} is a clip or volume of {frames} frames in one file: export its frames as "
                "images."
            )
        if math.prod(reader.GetSize()) > MAX_PIXELS:
            raise InputError(
                f"{path} has more than {MAX_PIXELS // 1_000_000} million pixels: scale it down."
            )
        image = _execute(reader, path)
    pixels = sitk.GetArrayFromImage(image).reshape(
        image.GetHeight(), image.GetWidth(), image.GetNumberOfComponentsPerPixel()
    )
    if pixels.shape[-1] == 1 and not np.iscomplexobj(pixels):
        try:
            window = _named_window(reader) or (
                (0.0, 255.0) if pixels.dtype == np.uint8 else _window_of(pixels)
            )
        except InputError as error:
            raise InputError(f"{path}: {error}") from error
        return Image.fromarray(_to_grey(pixels[..., 0], window)).convert("RGB")
    if pixels.shape[-1] == 3 and pixels.dtype == np.uint8:
        return Image.fromarray(pixels)
    raise InputError(
        f"{path} is neither grey nor 8-bit RGB ({image.GetPixelIDTypeAsString()}): export it so."
    )


def read_volume(
    path: Path,
    series: Sequence[Path] = (),
    plane: Plane | None = None,
    percentiles: tuple[float, float] | None = None,
) -> Volume:
    """A file; or the files of a DICOM series in order, which messages call by `path`.

    Where no percentiles are asked for, a series is scaled from the window that its middle file
    names, if it does; all else from percentiles 0.5 and 99.5 of the voxels.
    """
    image, window = _read(Path(path), series)
    try:
        return Volume(image, plane, None if percentiles else window, percentiles or _PERCENTILES)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def read_labels(path: Path) -> sitk.Image:
    """A label volume: whole numbers from 0 to 65535, uint16 whatever the file holds."""
    image, _ = _read(Path(path))
    values = sitk.GetArrayViewFromImage(image)
    with np.errstate(invalid="ignore"):
        odd = ~((values >= 0) & (values <= 65535) & (values == np.round(values)))
    if odd.any():
        raise InputError(
            f"{path} holds {values[odd].flat[0]:g}, and labels are whole numbers from 0 to 65535: "
            "save it as a label map."
        )
    return sitk.Cast(image, sitk.sitkUInt16)


def _read(path: Path, series: Sequence[Path] = ()) -> tuple[sitk.Image, tuple[float, float] | None]:
    """The image, and the window that a series names."""
    kind = "DICOM" if series else _KINDS.get(path.suffix.lower(), "NIfTI")
    with _quiet():
        present = _nifti_bytes(path) if kind == "NIfTI" else 0
        middle = series[len(series) // 2] if series else path
        reader = _reader(middle, kind)
        size = reader.GetSize()
        if series:
            size = (*size[:2], len(series))
            _require_stack(series, path)
        if len(size) != 3:
            raise InputError(
                f"{path} has {len(size)} dimensions, not 3 ({'×'.join(map(str, size))}): choose a "
                "channel or time, and save each volume as a file of its own."
                if len(size) > 3
                else f"{path} is a flat {kind} without a place in space: save it as PNG."
            )
        if reader.GetNumberOfComponents() > 1 or "complex" in sitk.GetPixelIDValueAsString(
            reader.GetPixelID()
        ):
            raise InputError(f"{path} is in colour or has several values a voxel: save it as grey.")
        if math.prod(size) > MAX_VOXELS:
            raise InputError(
                f"{path} claims {math.prod(size):,} voxels, more than {MAX_VOXELS:,}: crop it or "
                "scale it down."
            )
        if series:
            stack = sitk.ImageSeriesReader()
            stack.SetImageIO("GDCMImageIO")
            stack.SetFileNames([str(file) for file in series])
            image = _execute(stack, path)
        else:
            if kind == "NIfTI":
                _require_all_bytes(path, reader, present)
            image = _execute(reader, path)
            if kind == "NIfTI" and int(_tag(reader, "datatype")) in _NIFTI_FLOATS:
                image = _with_no_numbers(image, path, reader)
    return image, _named_window(reader) if series else None


def write_volume(path: Path, image: sitk.Image) -> None:
    """Writes a NIfTI file, compressed if its name ends in .gz."""
    try:
        with _quiet():
            sitk.WriteImage(image, str(path))
            # ITK is silent about what a full disk did not take
            _require_all_bytes(path, _reader(path, "NIfTI"), _nifti_bytes(path))
    except (RuntimeError, InputError) as error:
        reason = "it was cut short" if isinstance(error, InputError) else _reason(error)
        raise InputError(f"{path} cannot be written ({reason}): free some space.") from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Silences ITK, which writes warnings past Python; what matters is checked and raised."""
    shown = sitk.ProcessObject.GetGlobalWarningDisplay()
    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    try:
        yield
    finally:
        sitk.ProcessObject.SetGlobalWarningDisplay(shown)


def _reason(error: Exception) -> str:
    """The last line of ITK's message, without the places in its source and in memory."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [repr(error)]
    return re.sub(r"^(sitk::|ITK )ERROR: |\w+\(0x\w+\): |ITK ERROR: ", "", lines[-1]).rstrip(".")


def _reader(path: Path, kind: str) -> sitk.ImageFileReader:
    reader = sitk.ImageFileReader()
    # not to be guessed from the content, which would open a file of any of twenty other formats
    reader.SetImageIO(_READERS[kind])
    try:
        if path.stat().st_size == 0:
            raise InputError(f"{path} is empty (0 bytes): replace it with an intact copy.")
        if kind in _ELSEWHERE:
            _require_own_data(path, _ELSEWHERE[kind])
        reader.SetFileName(str(path))
        reader.ReadImageInformation()
    except InputError:
        raise
    except Exception as error:  # of ITK, or of a name that it cannot take
        if "orthonormal" in str(error):
            raise InputError(
                f"the axes of {path} are missing or not at right angles: resample it."
            ) from error
        raise InputError(
            f"{path} cannot be read as {kind} ({_reason(error)}): replace it with an intact copy."
        ) from error
    return reader


def _require_own_data(path: Path, elsewhere: re.Pattern[bytes]) -> None:
    """A header may name any other file of the disk as its voxels."""
    with open(path, "rb") as file:
        head = file.read(10_000)
    if elsewhere.search(head):
        raise InputError(f"{path} keeps its voxels in another file: save it as one file.")


def _execute(reader: sitk.ImageReaderBase, path: Path) -> sitk.Image:
    try:
        return reader.Execute()
    except Exception as error:
        raise InputError(
            f"{path} cannot be read ({_reason(error)}): replace it with an intact copy."
        ) from error


def _tag(reader: sitk.ImageFileReader, key: str) -> str:
    return reader.GetMetaData(key).strip() if reader.HasMetaDataKey(key) else ""


def _numbers(text: str) -> tuple[float, ...]:
    try:
        return tuple(map(float, text.split("\\")))
    except ValueError:
        return ()


def _named_window(reader: sitk.ImageFileReader) -> tuple[float, float] | None:
    """Of several windows the first; none of MONOCHROME1, which ITK inverts, values and all."""
    if _tag(reader, "0028|0004") == "MONOCHROME1":
        return None
    centre, width = (_numbers(_tag(reader, key))[:1] for key in ("0028|1050", "0028|1051"))
    if not (centre and width and width[0] > 0 and math.isfinite(centre[0] + width[0])):
        return None
    return centre[0] - width[0] / 2, centre[0] + width[0] / 2


def _place(file: Path) -> tuple[float, ...]:
    return _numbers(_tag(_reader(file, "DICOM"), "0020|0032"))


def _has_places(files: Sequence[Path]) -> bool:
    try:
        places = [_place(file) for file in files]
    except InputError:
        return False
    return all(len(place) == 3 for place in places) and len(set(places)) > 1


def _require_stack(files: Sequence[Path], path: Path) -> None:
    """A grid has one distance between slices, and one direction, square to them."""
    places = np.array([_place(file) for file in files])
    sides = _numbers(_tag(_reader(files[0], "DICOM"), "0020|0037"))
    if len(sides) != 6:
        raise InputError(f"{path} does not say how its slices lie: export the series again.")
    normal = np.cross(sides[:3], sides[3:])
    steps = np.diff(places, axis=0)
    step = np.median(steps @ normal)
    # a hundredth of the distance is what rounding in the files may do
    if not np.allclose(steps, step * normal, rtol=0, atol=0.01 * abs(step)) or step == 0:
        raise InputError(
            f"slices of {path} are missing, doubled, unevenly spaced or tilted against the stack: "
            "export the series again, one volume a folder."
        )


def _nifti_bytes(path: Path) -> int:
    """How many bytes a NIfTI file holds, unpacked; all of them are read if it is packed.

    This comes before ITK, which complains past Python about another file of that name.
    """
    try:
        with open(path, "rb") as file:
            packed = file.read(2) == b"\x1f\x8b"
        with gzip.open(path) if packed else open(path, "rb") as file:
            head = file.read(352)
            if packed:
                count = len(head)
                while block := file.read(1 << 20):
                    count += len(block)
            else:
                count = path.stat().st_size
    except (OSError, EOFError, zlib.error) as error:  # gzip's own error is an OSError
        raise InputError(
            f"{path} is truncated or damaged ({error}): replace it with an intact copy."
        ) from error
    if head[344:347] not in (b"n+1", b"ni1") and head[4:7] != b"n+2":
        raise InputError(f"{path} is no NIfTI file: replace it with an intact copy.")
    return count


def _require_all_bytes(path: Path, reader: sitk.ImageFileReader, present: int) -> None:
    """ITK fills what a truncated NIfTI lacks with zeros, and says nothing."""
    sides = [int(_tag(reader, f"dim[{axis}]")) for axis in range(1, 8)]
    voxels = math.prod(side for side in sides if side > 0)
    needed = float(_tag(reader, "vox_offset")) + voxels * int(_tag(reader, "bitpix")) / 8
    if present < needed:
        raise InputError(
            f"{path} is truncated ({present:,} of {needed:,.0f} bytes): replace it with an intact "
            "copy."
        )


def _with_no_numbers(image: sitk.Image, path: Path, reader: sitk.ImageFileReader) -> sitk.Image:
    """ITK reads what is no number in a NIfTI as 0, and says nothing; this takes it as it is."""
    with open(path, "rb") as file:
        packed = file.read(2) == b"\x1f\x8b"
    voxels, start = None, 0
    left = math.prod(image.GetSize()) * int(_tag(reader, "bitpix")) // 8
    with gzip.open(path) if packed else open(path, "rb") as file:
        order = "<" if int.from_bytes(file.read(4), "little") in (348, 540) else ">"
        kind = np.dtype(order + _NIFTI_FLOATS[int(_tag(reader, "datatype"))])
        file.seek(int(float(_tag(reader, "vox_offset"))))
        while left and (block := file.read(min(left, 1 << 24))):
            stored = np.frombuffer(block, kind)
            if (odd := ~np.isfinite(stored)).any():
                voxels = sitk.GetArrayFromImage(image) if voxels is None else voxels
                voxels.reshape(-1)[start : start + len(stored)][odd] = stored[odd]
            start, left = start + len(stored), left - len(block)
    if voxels is None:
        return image
    whole = sitk.GetImageFromArray(voxels)
    whole.CopyInformation(image)
    return whole


def _window_of(
    voxels: np.ndarray, percentiles: tuple[float, float] = _PERCENTILES
) -> tuple[float, float]:
    flat = voxels.reshape(-1)
    seen = flat[:: max(1, flat.size // _VOXELS_SEEN)]
    seen = seen[np.isfinite(seen)].astype(np.float64)
    if not seen.size or seen.min() == seen.max():
        raise InputError("all values are the same, so there is nothing to see: check the export.")
    low, high = np.percentile(seen, percentiles)
    return (low, high) if low < high else (seen.min(), seen.max())


def _to_grey(values: np.ndarray, window: tuple[float, float]) -> np.ndarray:
    low, high = window
    share = (np.nan_to_num(values.astype(np.float32), nan=low, posinf=high, neginf=low) - low) / (
        high - low
    )
    return (share.clip(0, 1) * 255).round().astype(np.uint8)
