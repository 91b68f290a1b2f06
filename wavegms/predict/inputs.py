"""What is asked for: options are checked, and files, folders and patterns become named sources.

Nothing here needs torch, so that a mistyped name is answered at once.
"""

import glob
import mmap
import os
import re
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from numbers import Integral, Real
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from wavegms.config import Decoder
from wavegms.data.cases import (
    DICOM_SUFFIXES,
    IMAGE_SUFFIXES,
    VOLUME_SUFFIXES,
    file_stem,
    is_dicom,
    is_volume,
)
from wavegms.errors import InputError, require_number
from wavegms.files import is_hub_id, matching, missing_folder, walk
from wavegms.variants import Plane

if TYPE_CHECKING:
    from wavegms.models.pipeline import WaveGMSPipeline

# The tag of pixels, of integers or floats, in either order of bytes; and what says that all after
# it is compressed, where no tag can be seen.
_PIXELS = re.compile(
    rb"\xe0\x7f[\x08\x09\x10]\x00|\x7f\xe0\x00[\x08\x09\x10]|1\.2\.840\.10008\.1\.2\.1\.99"
)


@dataclass(frozen=True)
class Source:
    """One thing to predict.

    Attributes:
        path: the file, or the folder of a DICOM series.
        name: where its results go, below masks/ and the like, without suffix; no two sources of
            one list share it, even where upper and lower case are the same.
        series: the files of a DICOM series in the order of their places; empty for a file.
    """

    path: Path
    name: str
    series: tuple[Path, ...] = ()


@dataclass
class Request:
    """What to predict, with what, and how; what is impossible of it raises an InputError.

    Attributes:
        inputs: a path or pattern, or several; see `find_sources`.
        model: a folder or hub id for `WaveGMSPipeline.from_pretrained`, or an opened pipeline.
        out: the folder to make. It must not exist, or be empty.
        threshold: probability from which a pixel belongs to the mask, above 0 and up to 1.
        batch_size: how many images or slices go through the network at once.
        device: "auto" takes a CUDA GPU if there is one, else the CPU; or a name that torch knows.
            An opened pipeline stays where it is.
        plane: in which volumes are cut; None takes that of the volumes that the model was trained
            on or, if those were pictures, that of the stored slices.
        tta: predict every image in those flips and turns that the training drew from, and average.
            Says whether that helped on the validation split of the model's dataset.
        prepared: where that dataset is looked for.
        decoder: "exact" or "fast", see `WaveGMSPipeline.choose_decoder`.
        sources: what was found.
    """

    inputs: str | Path | Sequence[str | Path]
    model: "str | Path | WaveGMSPipeline"
    out: Path
    threshold: float = 0.5
    batch_size: int = 12
    device: str = "auto"
    plane: Plane | None = None
    tta: bool = False
    prepared: Path = Path("data/prepared")
    decoder: Decoder = "exact"
    sources: list[Source] = field(init=False)

    def __post_init__(self) -> None:
        require_number("threshold", self.threshold, Real, "above 0 and at most 1", 1)
        require_number("batch_size", self.batch_size, Integral, "a whole number, at least 1")
        if self.plane is not None and self.plane not in get_args(Plane):
            planes = ", ".join(get_args(Plane))
            raise InputError(f"plane must be one of {planes}, not {self.plane}")
        if self.decoder not in get_args(Decoder):
            raise InputError(f"decoder must be exact or fast, not {self.decoder}")
        self.out = Path(self.out)
        if self.out.is_file() or (self.out.is_dir() and any(self.out.iterdir())):
            raise InputError(
                f"{self.out} exists already and is left as it is: choose another folder, or move "
                "it away."
            )
        model = self.model
        if isinstance(model, str | Path) and not (Path(model).is_dir() or is_hub_id(model)):
            raise missing_folder(model, "train the model first, or correct the path")
        single = isinstance(self.inputs, str | Path)
        self.sources, ignored = find_sources([self.inputs] if single else self.inputs)
        if ignored:
            print(
                "passed over as neither images nor volumes, or as links back to a folder above: "
                f"{len(ignored)}, such as {ignored[0]}",
                file=sys.stderr,
            )


def find_sources(inputs: Sequence[str | Path]) -> tuple[list[Source], list[Path]]:
    """Lists what a command line names, each name once, and what was passed over in folders.

    Two names of one file, as links are, count as two. A file is taken whatever its name. Of a
    folder, everything below it is taken that is an image, a volume or DICOM by name or by the mark
    inside; hidden files and folders are passed over, and so are the results of an earlier
    prediction, and links back to a folder above. DICOM without pixels is passed over wherever it
    is. Where DICOM files of a folder are the slices of a volume, they are one source. A pattern
    (`*`, `?`, `[...]`, and `**` for any folders) is resolved here if the shell has not done it.
    Sources stand in the order of the inputs, and by name in each.
    """
    found: dict[Path, tuple[Path, Path, tuple[Path, ...]]] = {}
    ignored: list[Path] = []
    for path in _resolve(inputs):
        if path.is_file() and _is_bare(path):
            ignored.append(path)
            continue
        single = path, Path(_stem(path)), ()
        for file, stem, series in _below(path, ignored) if path.is_dir() else [single]:
            found.setdefault(Path(os.path.abspath(file)), (file, stem, series))
    if not found:
        raise InputError(
            f"{', '.join(map(str, inputs))} holds no image ({' '.join(IMAGE_SUFFIXES)}), volume "
            f"({' '.join(VOLUME_SUFFIXES)}) or DICOM file: give the files or the folder to predict."
        )
    names = _unique_names([(file, stem) for file, stem, _ in found.values()])
    sources = [
        Source(file, name, series)
        for (file, _, series), name in zip(found.values(), names, strict=True)
    ]
    return sources, ignored


def _is_bare(path: Path) -> bool:
    """Whether this is DICOM without pixels: a report, contours, settings of a display."""
    if not is_dicom(path) or not path.stat().st_size:
        return False
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return content[128:132] == b"DICM" and not _PIXELS.search(content)


def _resolve(inputs: Sequence[str | Path]) -> Iterator[Path]:
    for item in inputs:
        # a file may well be called "scan [1].png": what exists is no pattern
        if os.path.exists(item):
            yield Path(item)
        elif isinstance(item, str) and glob.has_magic(item):
            matches = matching(item)
            if not matches:
                raise InputError(f"nothing matches {item}: correct the pattern.")
            yield from map(Path, matches)
        else:
            raise InputError(f"{item} does not exist: correct the path.")


def _below(folder: Path, ignored: list[Path]) -> Iterator[tuple[Path, Path, tuple[Path, ...]]]:
    """Path, stem and series of what a folder holds; the rest is added to `ignored`."""
    for here, folders, files in walk(folder, ignored):
        if "predictions.csv" in files and "masks" in folders:
            folders.clear()
            continue
        inside = here.relative_to(folder)
        paths = [here / name for name in files if not name.startswith(".")]
        known = {path for path in paths if is_volume(path) or path.suffix.lower() in IMAGE_SUFFIXES}
        # not to open every image; scanners name files 000123, IM.0001 or by a UID, without suffix
        dicom = {path for path in paths if path not in known and is_dicom(path)}
        bare = {path for path in dicom if _is_bare(path)}
        dicom -= bare
        stacked: set[Path] = set()
        for path, stem, series in _volumes(here, inside) if len(dicom) > 1 else ():
            if not bare.intersection(series):
                yield path, stem, series
                stacked.update(series)
        for path in paths:
            if path in stacked:
                continue
            if path in known or path in dicom:
                yield path, inside / _stem(path), ()
            else:
                ignored.append(path)


def _volumes(here: Path, inside: Path) -> Iterator[tuple[Path, Path, tuple[Path, ...]]]:
    from wavegms.data.volumes import series_in  # SimpleITK, which few need

    volumes = series_in(here)
    stem = inside / here.resolve().name if inside == Path() else inside
    if len(volumes) == 1:
        yield here, stem, volumes[0]
        return
    for number, series in enumerate(volumes, start=1):
        # one path stands for one source, so each series goes by its first file
        yield series[0], stem.with_name(f"{stem.name}_series_{number}"), series


def _stem(path: Path) -> str:
    return path.stem if path.suffix.lower() in DICOM_SUFFIXES else file_stem(path)


def _unique_names(files: Sequence[tuple[Path, Path]]) -> list[str]:
    """The stems, with the suffix where two share one ("a_png", "a_jpg"), and a number if need be.

    Some file systems take A.png and a.png for one file, so they share a stem here as well.
    """
    shared = Counter(stem.as_posix().casefold() for _, stem in files)
    names: list[str] = []
    taken: set[str] = set()
    for file, stem in files:
        name = stem.as_posix()
        if shared[name.casefold()] > 1:
            suffix = file.name[len(stem.name) :] if file.name.startswith(stem.name) else ""
            name += suffix.replace(".", "_")
        candidate, number = name, 2
        while candidate.casefold() in taken:
            candidate, number = f"{name}_{number}", number + 1
        taken.add(candidate.casefold())
        names.append(candidate)
    return names
