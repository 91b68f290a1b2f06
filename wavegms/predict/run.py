"""Prediction on files: masks, probabilities, overlays and a table, for images and volumes.

The folder that is written holds

- `predictions.csv`: one row a source, with the columns of `COLUMNS`;
- `masks/`: 0 and 255 as PNG, at the image's size and upright; of a volume 0 and 1 as .nii.gz;
- `probabilities/`: 16-bit PNG, where 65535 stands for 1; of a volume float32 as .nii.gz;
- `overlays/`: the image with the contour of the mask as PNG; of a volume a sheet of slices;
- `slices.csv`: where there are volumes, one row a slice, with the columns of `SLICE_COLUMNS`;
- `classes.csv`: of a model of several classes, one row a source and class, with those of
  `CLASS_COLUMNS`. Then masks are label maps, 0 or the number of a class, those of images with the
  colours in their palette; a probability is named after source and class; and overlays have a
  legend;
- `settings.json`: what it was made with.
"""

import json
import math
import os
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import SimpleITK as sitk
import torch
from PIL import Image
from scipy import ndimage
from tqdm import tqdm

from wavegms import __version__
from wavegms.classes import label_map
from wavegms.data.cases import is_dicom, is_volume
from wavegms.data.manifest import write_mask
from wavegms.data.volumes import Volume, read_picture, read_volume, write_volume
from wavegms.errors import InputError
from wavegms.figures.colours import PREDICTION
from wavegms.files import replace_folder, write_text
from wavegms.images import as_rgb, read_image
from wavegms.models.pipeline import WaveGMSPipeline
from wavegms.models.windows import in_parts
from wavegms.predict.inputs import Request, Source
from wavegms.predict.overlays import draw_classes, draw_contour, draw_slices
from wavegms.predict.tta import AugmentedPipeline, add_views
from wavegms.results.folds import FoldedPipeline, open_mean
from wavegms.training.card import weights_hash

COLUMNS = {
    "file": "the image or volume, or the folder of a DICOM series, as it was named",
    "output": "name of its results, below masks/, probabilities/ and overlays/",
    "width": "pixels, or voxels along the first stored axis",
    "height": "pixels, or voxels along the second stored axis",
    "slices": "voxels along the third stored axis; what only a volume has is empty for an image",
    "plane": "in which a volume was cut: axial, coronal or sagittal",
    "area_px": "pixels or voxels of the mask",
    "area_share": "share of the image or volume that is mask, 0 to 1",
    "volume_ml": "of the mask, millilitres, from the spacing in the file",
    "regions": "connected parts of the mask; pixels that touch at a corner are connected",
    "left": "of the box around the mask, in pixels or voxels from 0",
    "top": "likewise",
    "right": "likewise, the first column beyond it",
    "bottom": "likewise, the first row beyond it",
    "first_slice": "likewise, of a volume, along the third stored axis",
    "end_slice": "likewise, the first slice beyond it",
    "confidence": "mean probability over the mask, from the threshold to 1; empty if the mask is",
    "empty": "whether the mask has no pixel",
    "error": "why there is no prediction; empty if there is one",
}

SLICE_COLUMNS = {
    "file": "the volume, as in predictions.csv",
    "plane": "of the slice",
    "slice": "its number along the stored axis that runs across the plane, from 0",
    "area_px": "pixels of the mask",
    "area_mm2": "of the mask, square millimetres",
    "confidence": "mean probability over the mask; empty if the mask is",
}

CLASS_COLUMNS = {
    "file": "the image or volume, as in predictions.csv",
    "class": "its name",
    "value": "of its pixels in the mask",
    **{name: COLUMNS[name] for name in ("area_px", "area_share", "volume_ml", "regions")},
    **{name: COLUMNS[name] for name in ("left", "top", "right", "bottom")},
    **{name: COLUMNS[name] for name in ("first_slice", "end_slice")},
    "confidence": "mean probability of the class over its pixels; empty if it has none",
    "empty": "whether the class has no pixel",
}

_WHOLE = [
    *("width", "height", "slices", "area_px", "regions"),
    *("left", "top", "right", "bottom", "first_slice", "end_slice"),
]

# Images that wait for a batch are held with their probabilities, 8 bytes a pixel in all
_PIXELS_WAITING = 50_000_000


def predict(request: Request) -> pd.DataFrame:
    """Writes a folder of results, whole or not at all, and gives the table of predictions.csv.

    A file that cannot be predicted is named on stderr and in the table's column `error`, and the
    rest goes on. Only so many images are held at once as make a batch, and one volume. An
    InputError says that the model cannot be loaded or the folder not be written.
    """
    model = request.model
    if not isinstance(model, WaveGMSPipeline):
        model = _load(model, request.device)
    model.choose_decoder(request.decoder)
    where = model.name_or_path
    settings: dict[str, Any] = {
        "model": where and os.fspath(where),
        "weights": where and weights_hash(Path(where)),
        "threshold": request.threshold,
        "plane": request.plane,
        "decoder": request.decoder,
        "device": str(model.device),
        "wavegms": __version__,
        "notice": "research software, not for clinical use",
    }
    folds = 1 + len(model.others) if isinstance(model, FoldedPipeline) else 1
    if folds > 1:
        print(f"the mean of the models of {folds} folds")
        settings["folds"] = folds
    if request.tta and folds > 1:
        raise InputError(
            f"--tta cannot tell whether it helps the models of {folds} folds, as what validates "
            f"one taught the others: leave it out, or give one of them, such as {where}/fold_2"
        )
    if request.tta:
        prepared = Path(request.prepared)
        model, gain, said = add_views(model, prepared, request.threshold, request.batch_size)
        print(f"TTA: {said}")
        views = len(model.views) if isinstance(model, AugmentedPipeline) else 1
        settings["tta"] = {"views": views, "gain": gain and asdict(gain)}
    try:
        with replace_folder(request.out) as folder:
            table = _Run(request, model, folder).predict_all()
            write_text(folder / "settings.json", json.dumps(settings, indent=2) + "\n")
    except OSError as error:
        raise InputError(
            f"{request.out} cannot be written ({error.strerror or error}): free some space or "
            "choose another folder."
        ) from error
    return table


def report(table: pd.DataFrame, out: Path) -> None:
    """Says how many sources were predicted, and refuses to call it well if some were not."""
    failed = int(table["error"].ne("").sum())
    empty = int(table["empty"].eq(True).sum())
    print(f"predicted {len(table) - failed} of {len(table)} ({empty} with an empty mask): {out}")
    if failed:
        raise InputError(
            f"{failed} of {len(table)} could not be predicted: {out / 'predictions.csv'} says why "
            "in its column error; the rest is complete."
        )


def _load(model: str | Path, device: str) -> WaveGMSPipeline:
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(1, device=torch.device(device))
    except Exception as error:  # an assertion, a missing kernel or an unknown name
        raise InputError(f"device is {device}, which is not here: choose auto or cpu") from error
    return open_mean(model, device=device)


class _Run:
    """One call of `predict` while it writes."""

    def __init__(self, request: Request, pipeline: WaveGMSPipeline, folder: Path):
        self.request, self.pipeline, self.folder = request, pipeline, folder
        # by number of the source, as images of a batch are finished together
        self.rows: dict[int, dict[str, Any]] = {}
        self.slices: list[dict[str, Any]] = []
        self.classes: list[dict[str, Any]] = []

    def predict_all(self) -> pd.DataFrame:
        sources = self.request.sources
        waiting: dict[int, Image.Image] = {}
        for name in ("masks", "probabilities", "overlays"):
            (self.folder / name).mkdir()
        with tqdm(total=len(sources), desc="predicting", unit="file") as bar:
            for index, source in enumerate(sources):
                try:
                    content = self._open(source)
                except InputError as error:
                    self.rows[index] = {"file": _shown(source.path), "error": str(error)}
                    bar.write(f"not predicted: {error}", file=sys.stderr)
                    bar.update()
                    continue
                if isinstance(content, Volume):
                    self._predict_volume(index, content)
                    bar.update()
                else:
                    waiting[index] = content
                pixels = sum(image.width * image.height for image in waiting.values())
                if len(waiting) == self.request.batch_size or pixels > _PIXELS_WAITING:
                    self._predict_images(waiting)
                    bar.update(len(waiting))
                    waiting = {}
            if waiting:
                self._predict_images(waiting)
                bar.update(len(waiting))
        if self.slices:
            _write_table(self.folder / "slices.csv", self.slices, SLICE_COLUMNS)
        if self.pipeline.classes:
            _write_table(self.folder / "classes.csv", self.classes, CLASS_COLUMNS)
        rows = [self.rows[index] for index in range(len(sources))]
        return _write_table(self.folder / "predictions.csv", rows, COLUMNS)

    def _open(self, source: Source) -> Image.Image | Volume:
        scale = self.pipeline.scale
        if source.series or is_volume(source.path):
            rule, plane = scale.volumes, self.request.plane
            if rule is None:
                return read_volume(source.path, source.series, plane)
            return read_volume(source.path, source.series, plane or rule.plane, rule.percentiles)
        if scale.context != "none":
            raise InputError(
                f"{source.path} is a picture, and the model looks at slices between their "
                "neighbours: give the volume."
            )
        if self.pipeline.depth > 1:
            raise InputError(
                f"{source.path} is a picture, and the model takes windows of {self.pipeline.depth} "
                "consecutive slices: give the volume."
            )
        if is_dicom(source.path):
            return read_picture(source.path)

        def to_rgb(image: Image.Image) -> Image.Image:
            rgb = as_rgb(image, scale)  # first, as it refuses modes
            if said := scale.lies_outside(image):
                tqdm.write(f"note: {source.path} {said}", file=sys.stderr)
            return rgb

        return read_image(source.path, to_rgb)[0]

    def _call(self, images: Sequence[Image.Image | np.ndarray]) -> tuple[list, list]:
        """Masks and probabilities; a sampling encoder draws the same for the same images."""
        batch_size, threshold = self.request.batch_size, self.request.threshold
        generator = torch.Generator().manual_seed(0)
        try:
            output = self.pipeline(
                images, batch_size=batch_size, threshold=threshold, generator=generator, scaled=True
            )
        except torch.OutOfMemoryError as error:
            raise InputError(
                f"the device has no memory for {len(images)} images at once: choose a batch_size "
                f"below {batch_size}"
            ) from error
        return output.masks, output.probabilities

    def _target(self, kind: str, source: Source, suffix: str) -> Path:
        path = self.folder / kind / f"{source.name}{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def _predict_images(self, images: dict[int, Image.Image]) -> None:
        masks, probabilities = self._call(list(images.values()))
        for (index, image), mask, soft in zip(images.items(), masks, probabilities, strict=True):
            source = self.request.sources[index]
            if self.pipeline.classes:
                self._write_classes(source, image, mask, soft)
                mask, soft = mask > 0, soft.sum(axis=0)
            else:
                for kind, pixels in (
                    ("masks", mask.astype(np.uint8) * 255),
                    ("probabilities", (soft * 65535).round().astype(np.uint16)),
                    ("overlays", draw_contour(np.asarray(image), mask)),
                ):
                    Image.fromarray(pixels).save(self._target(kind, source, ".png"))
            self.rows[index] = {
                "file": _shown(source.path),
                "output": _shown(source.name),
                "width": image.width,
                "height": image.height,
                **measure(mask, soft),
                "error": "",
            }

    def _write_classes(
        self, source: Source, image: Image.Image, labels: np.ndarray, soft: np.ndarray
    ) -> None:
        """A label map (H, W) and probabilities (K, H, W) of an image."""
        names, colours = self.pipeline.classes, self.pipeline.palette.colours
        write_mask(self._target("masks", source, ".png"), labels, len(names))
        drawn = draw_classes(np.asarray(image), labels, names, colours)
        Image.fromarray(drawn).save(self._target("overlays", source, ".png"))
        for value, (name, own) in enumerate(zip(names, soft, strict=True), 1):
            pixels = (own * 65535).round().astype(np.uint16)
            Image.fromarray(pixels).save(self._target("probabilities", source, f".{name}.png"))
            about = {"file": _shown(source.path), "class": name, "value": value}
            self.classes.append(about | measure(labels == value, own))

    def _predict_volume(self, index: int, volume: Volume) -> None:
        source, batch_size = self.request.sources[index], self.request.batch_size
        names, context = self.pipeline.classes, self.pipeline.scale.context
        soft = np.empty((len(names) or 1, *volume.shape), np.float32)
        labels = np.empty(volume.shape, np.uint8)

        def predicted(places: range) -> torch.Tensor:
            seen = [volume.seen(place, context) for place in places]
            return torch.from_numpy(np.stack(self._call(seen)[1]))

        depth = self.pipeline.depth
        with tqdm(total=len(volume), desc=source.path.name, unit="slice", leave=False) as bar:
            for places, part in in_parts(predicted, len(volume), batch_size, depth):
                shares = part.numpy().reshape(len(places), len(soft), *volume.shape[1:])
                found = slice(places.start, places.stop)
                labels[found] = label_map(shares, self.request.threshold)
                soft[:, found] = shares.swapaxes(0, 1)
                bar.update(len(places))
        colours = self.pipeline.palette.colours if names else (PREDICTION,)
        sheet = draw_slices(volume, labels, volume.spacing, volume.numbers, names, colours)
        Image.fromarray(sheet).save(self._target("overlays", source, ".png"))
        area, anything = math.prod(volume.spacing), soft.sum(axis=0) if names else soft[0]
        for number, place in sorted(zip(volume.numbers, range(len(volume)), strict=True)):
            found = measure(labels[place] > 0, anything[place])
            self.slices.append(
                {
                    "file": _shown(source.path),
                    "plane": volume.plane,
                    "slice": number,
                    "area_px": found["area_px"],
                    "area_mm2": found["area_px"] * area,
                    "confidence": found["confidence"],
                }
            )
        stored_mask, stored_soft = volume.restore(labels), volume.restore(anything)
        write_volume(self._target("masks", source, ".nii.gz"), stored_mask)
        if names:
            self._write_class_volumes(source, volume, stored_mask, soft)
        else:
            write_volume(self._target("probabilities", source, ".nii.gz"), stored_soft)
        width, height, slices = volume.image.GetSize()
        found = measure(
            sitk.GetArrayViewFromImage(stored_mask) > 0, sitk.GetArrayViewFromImage(stored_soft)
        )
        self.rows[index] = {
            "file": _shown(source.path),
            "output": _shown(source.name),
            "width": width,
            "height": height,
            "slices": slices,
            "plane": volume.plane,
            **found,
            "volume_ml": found["area_px"] * math.prod(volume.image.GetSpacing()) / 1000,
            "error": "",
        }

    def _write_class_volumes(
        self, source: Source, volume: Volume, labels: sitk.Image, soft: np.ndarray
    ) -> None:
        """Probabilities (K, D, H, W), in the view of a volume, of its stored label map."""
        stored, voxel = sitk.GetArrayViewFromImage(labels), math.prod(labels.GetSpacing()) / 1000
        for value, (name, own) in enumerate(zip(self.pipeline.classes, soft, strict=True), 1):
            image = volume.restore(own)
            write_volume(self._target("probabilities", source, f".{name}.nii.gz"), image)
            found = measure(stored == value, sitk.GetArrayViewFromImage(image))
            about = {"file": _shown(source.path), "class": name, "value": value}
            self.classes.append(about | found | {"volume_ml": found["area_px"] * voxel})


def measure(mask: np.ndarray, probability: np.ndarray) -> dict[str, Any]:
    """Size, place and confidence of a mask: those of `COLUMNS` from area_px to empty that it has.

    The mask is bool (H, W) or (D, H, W), the probability in [0, 1] of the same shape.
    """
    count = int(np.count_nonzero(mask))
    values: dict[str, Any] = {
        "area_px": count,
        "area_share": count / mask.size,
        "regions": ndimage.label(mask, np.ones((3,) * mask.ndim))[1],
        "confidence": float(probability[mask].mean(dtype=np.float64)) if count else None,
        "empty": count == 0,
    }
    if count:
        (box,) = ndimage.find_objects(mask.astype(np.uint8))
        names = ("left", "right"), ("top", "bottom"), ("first_slice", "end_slice")
        for (first, end), side in zip(names, reversed(box), strict=False):
            values |= {first: side.start, end: side.stop}
    return values


def _shown(path: str | Path) -> str:
    """A path for a table; a name in another encoding than the system's would not be UTF-8."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def _write_table(path: Path, rows: list[dict[str, Any]], columns: Iterable[str]) -> pd.DataFrame:
    table = pd.DataFrame(rows, columns=list(columns))
    whole = table.columns.intersection(_WHOLE)
    table[whole] = table[whole].astype("Int64")
    write_text(path, table.to_csv(index=False, float_format="%.6f", lineterminator="\n"))
    return table
