"""What there is to predict: files, folders and patterns become a list of named sources."""

import glob
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from wavegms.data.cases import IMAGE_SUFFIXES
from wavegms.errors import InputError
from wavegms.predict.volumes import is_dicom, is_nifti, series_in


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


def find_sources(inputs: Sequence[str | Path]) -> tuple[list[Source], list[Path]]:
    """Lists what a command line names, each file once.

    A file is taken whatever its name. Of a folder, everything below it is taken that is an image,
    NIfTI or DICOM by name or by the mark inside; hidden files and folders are passed over, and so
    are the results of an earlier prediction. Where DICOM files of a folder are the slices of a
    volume, they are one source. A pattern (`*`, `?`, `[...]`, and `**` for any folders) is resolved
    here if the shell has not done it.

    Args:
        inputs: paths and patterns.

    Returns:
        The sources, in the order of the inputs and by name in each; and the files of folders that
        were passed over since they are nothing that can be predicted.

    Raises:
        InputError: an input does not exist, a pattern matches nothing, a folder cannot be read, or
            nothing was found at all.
    """
    found: dict[Path, tuple[Path, Path, tuple[Path, ...]]] = {}
    ignored: list[Path] = []
    for path in _resolve(inputs):
        for file, stem, series in _below(path, ignored) if path.is_dir() else [_single(path)]:
            found.setdefault(file.resolve(), (file, stem, series))
    if not found:
        raise InputError(
            f"{', '.join(map(str, inputs))} holds no image ({' '.join(IMAGE_SUFFIXES)}), NIfTI or "
            "DICOM file: give the files or the folder to predict."
        )
    names = _unique_names([(file, stem) for file, stem, _ in found.values()])
    sources = [
        Source(file, name, series)
        for (file, _, series), name in zip(found.values(), names, strict=True)
    ]
    return sources, ignored


def _resolve(inputs: Sequence[str | Path]) -> Iterator[Path]:
    for item in inputs:
        # a file may well be called "scan [1].png": what exists is no pattern
        if os.path.exists(item):
            yield Path(item)
        elif isinstance(item, str) and glob.has_magic(item):
            matches = sorted(glob.glob(item, recursive=True))
            if not matches:
                raise InputError(f"nothing matches {item}: correct the pattern.")
            yield from map(Path, matches)
        else:
            raise InputError(f"{item} does not exist: correct the path.")


def _below(folder: Path, ignored: list[Path]) -> Iterator[tuple[Path, Path, tuple[Path, ...]]]:
    def refuse(error: OSError) -> None:
        raise InputError(
            f"{error.filename} cannot be read ({error.strerror}): check its permissions."
        ) from error

    for parent, folders, files in os.walk(folder, onerror=refuse):
        if "predictions.csv" in files and "masks" in folders:
            folders.clear()
            continue
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        here = Path(parent)
        paths = [here / name for name in sorted(files) if not name.startswith(".")]
        dicom = {path for path in paths if _may_be_dicom(path) and is_dicom(path)}
        volumes = series_in(here) if len(dicom) > 1 else []
        inside = here.relative_to(folder)
        for number, series in enumerate(volumes, start=1):
            alone = len(volumes) == 1
            # one path stands for one source, so the second series goes by its first file
            stem = inside / here.resolve().name if inside == Path() else inside
            yield (
                here if alone else series[0],
                stem if alone else stem.with_name(f"{stem.name}_series_{number}"),
                series,
            )
        stacked = {path for series in volumes for path in series}
        for path in paths:
            if path in stacked:
                continue
            if path in dicom or is_nifti(path) or path.suffix.lower() in IMAGE_SUFFIXES:
                yield path, inside / _stem(path), ()
            else:
                ignored.append(path)


def _may_be_dicom(path: Path) -> bool:
    # spares opening every image; scanners name files 000123, IM.0001 or by a UID, without suffix
    return path.suffix.lower() not in IMAGE_SUFFIXES and not is_nifti(path)


def _single(path: Path) -> tuple[Path, Path, tuple[Path, ...]]:
    return path, Path(_stem(path)), ()


def _stem(path: Path) -> str:
    if is_nifti(path):
        return path.name[: path.name.lower().rindex(".nii")]
    known = path.suffix.lower() in (*IMAGE_SUFFIXES, ".dcm", ".dicom", ".ima")
    return path.stem if known else path.name


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
