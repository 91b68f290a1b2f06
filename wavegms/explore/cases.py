"""What the explorer shows, as numbers: cases, soft masks, errors, scores, images without a band.

Nothing here knows of widgets; see `wavegms.explore`.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from wavegms.classes import label_map
from wavegms.data.dataset import PreparedDataset
from wavegms.errors import InputError, require_same
from wavegms.images import FOREGROUND, FULL_SCALE, Scale, as_rgb, of_class, open_image, resize_image
from wavegms.models.autoencoder import channels_last
from wavegms.models.pipeline import WaveGMSPipeline, resize_probabilities
from wavegms.models.segmenter import map_latents
from wavegms.models.wavelet import SUB_BANDS, haar_dwt, haar_idwt
from wavegms.results.scores import score_classes, score_mask
from wavegms.training.card import CARD_NAME, fold_models, read_card
from wavegms.training.kept import model_folder
from wavegms.training.publish import PublishedModel

LEVELS = (1, 2, 3)

# Every part of an image once: three details a level, and what the last level leaves, its LL.
BANDS = (*((level, name) for level in LEVELS for name in SUB_BANDS[1:]), (LEVELS[-1], SUB_BANDS[0]))

# Images scored for the table. Their soft masks are kept, at 224 x 224 0.2 GB for these.
TABLE_ROWS = 1000

_BATCH = 4  # half the time for each image of one by one, and still a short wait

_UPLOAD_SIDE = 512

Band = tuple[int, str]


@dataclass(frozen=True)
class Case:
    """One image, and what is known about it."""

    name: str  # its id, or the name of an uploaded file
    label: str  # its own class, empty if it has none; of an uploaded image its size
    picture: np.ndarray  # for the eye, uint8 (H, W, 3)
    pixels: Tensor  # for the network, float32 (1, 3, S, S) in [0, 1]
    truth: np.ndarray | None  # bool (H, W), or a label map; None for an uploaded image
    counted: np.ndarray | None  # likewise: pixels that are not to be ignored
    index: int | None  # its place in the split; None for an uploaded image


class Errors(NamedTuple):
    """Where two masks agree and differ, each bool (H, W)."""

    found: np.ndarray  # in both (true positive)
    wrong: np.ndarray  # in the prediction alone (false positive)
    missed: np.ndarray  # in the truth alone (false negative)
    mistaken: np.ndarray  # in both, and of another class


def find_models(folder: Path, name: str = "") -> list[PublishedModel]:
    """All trained models: `<dataset>/<variant>/seed_<n>`, then the same in `ablation/`.

    Where the name is of one in `weights/`, that one is opened, so that it is among them.
    """
    model_folder(name, folder.parent)
    patterns = (f"{place}*/*/seed_*/{CARD_NAME}" for place in ("", "ablation/"))
    places = [path.parent for pattern in patterns for path in sorted(Path(folder).glob(pattern))]
    _require(places, folder, "trained model")
    return [PublishedModel(place, read_card(place)) for place in places]


def find_datasets(folder: Path) -> list[str]:
    """Names of the prepared datasets."""
    names = sorted(path.parent.name for path in Path(folder).glob("*/manifest.csv"))
    _require(names, folder, "prepared dataset")
    return names


def _require(found: list, folder: Path, kind: str) -> None:
    if not found:
        remedy = "run `make repro` in the project's folder first"
        raise InputError(f"{folder} holds no {kind}: {remedy}.")


def compare(prediction: np.ndarray, truth: np.ndarray) -> Errors:
    """Where a prediction is right and wrong; both are bool (H, W), or label maps."""
    marked, there, same = prediction > 0, truth > 0, prediction == truth
    return Errors(there & same, marked & ~there, there & ~marked, marked & there & ~same)


def mask_of(soft: np.ndarray, threshold: float) -> np.ndarray:
    """The mask, bool (H, W), of a soft one; of several classes, (K, H, W), a label map."""
    return label_map(soft, threshold) if soft.ndim == 3 else soft >= threshold


def attenuate(images: Tensor, kept: Mapping[Band, float]) -> Tensor:
    """Images of which only a share of some sub-bands is kept; those not named stay whole.

    Images are (B, C, H, W) in [0, 1], H and W divisible by 8. They are clamped to that range, which
    values may leave without an edge's counterpart.
    """
    running, details = images, []
    for level in LEVELS:
        running, *bands = haar_dwt(running)
        names = SUB_BANDS[1:]
        details.append([b * kept.get((level, n), 1) for n, b in zip(names, bands, strict=True)])
    running = running * kept.get(BANDS[-1], 1)
    for bands in reversed(details):
        running = haar_idwt(running, *bands)
    return running.clamp(0, 1)


def read_upload(name: str, content: bytes, size: int, scale: Scale = FULL_SCALE) -> Case:
    """An image that someone brought, of any size and mode, seen by the network at `size`.

    Its picture has its own proportions and is at most 512 pixels long. What cannot be read as an
    image is refused by the name of the file.
    """
    with TemporaryDirectory() as folder:
        path = Path(folder) / "upload"
        path.write_bytes(content)
        try:
            image = as_rgb(open_image(path), scale)
        except InputError as error:
            problem = str(error).replace(str(path), name)
            raise InputError(problem if name in problem else f"{name}: {problem}") from error
    picture = image.copy()
    picture.thumbnail((_UPLOAD_SIDE, _UPLOAD_SIDE), Image.Resampling.BILINEAR)
    size_text = f"{image.width} × {image.height} pixels"
    pixels = torch.from_numpy(np.array(resize_image(image, size))).movedim(-1, 0)[None]
    return Case(name, size_text, np.asarray(picture), PreparedDataset.to_float(pixels), *[None] * 3)


class Workbench:
    """A split and a model, and what the model makes of the split's images.

    Where a model samples z_MR at inference, every prediction draws with the same seed. With folds
    the test split is of all images, each predicted by the model that did not see it.
    """

    dataset: str
    split: str
    data: PreparedDataset
    model: PublishedModel
    pipeline: WaveGMSPipeline

    def __init__(self, prepared: Path, seed: int):
        self._prepared, self._seed = Path(prepared), seed
        # going back to a model should not read it again; four of the largest are 1.5 GB
        self._load = lru_cache(maxsize=4)(_open_folds)
        self._seen: dict[int, tuple[np.ndarray, ...]] = {}

    def open_split(self, dataset: str, split: str) -> None:
        """Takes another split; if it cannot be opened, the one before stays."""
        # decoding one image at a time lets a large dataset open at once
        opened = (
            PreparedDataset.to_test if split == "test" else partial(PreparedDataset, split=split)
        )
        self.data = opened(self._prepared / dataset, in_memory=False)
        self.dataset, self.split = dataset, split
        self._seen = {}

    def open_model(self, model: PublishedModel) -> None:
        """Takes another model; if it cannot be opened, the one before stays."""
        pipeline, *others = self._load(model.folder)
        if pipeline.depth > 1:
            raise InputError(
                f"{model.title} takes windows of {pipeline.depth} slices, and the explorer shows "
                "single images: look at 03b_volumes"
            )
        self.pipeline, self.model, self._others = pipeline, model, others
        self._seen = {}

    @property
    def colours(self) -> dict[str, str]:
        """The classes that the model knows with their colours, as #rrggbb; of one class none."""
        return dict(zip(self.pipeline.classes, self.pipeline.palette.colours, strict=False))

    def case(self, index: int) -> Case:
        """One image of the split."""
        pair = self.data[index]
        image, mask = pair["image"], pair["mask"][0].numpy()
        several = len(self.data.classes)
        return Case(
            self.data.ids[index],
            self.data.labels[index],
            image.movedim(0, -1).numpy(),
            PreparedDataset.to_float(image[None]),
            mask * of_class(mask, several) if several else mask == FOREGROUND,
            mask != self.data.ignored,
            index,
        )

    def soft_mask(self, case: Case) -> np.ndarray:
        """The prediction for a case, float32 (H, W) in [0, 1]; kept for images of the split.

        Of several classes it is (K, H, W), as all that follows.

        Raises:
            InputError: the model and the split are not of the same classes.
        """
        data, way = f"{self.dataset} has", "choose a model and a dataset of the same classes"
        require_same(self.model.title, self.pipeline.classes, data, self.data.classes, way)
        if case.index is None:
            return self.predict(case.pixels, case)
        self._see([case])
        return self._seen[case.index][0]

    def predict(self, pixels: Tensor, case: Case) -> np.ndarray:
        """The prediction for other pixels of a case, (1, 3, S, S) in [0, 1], at the case's size."""
        return _at_size(self._pipeline_for(case).predict(pixels, self._generator()), case)

    @torch.inference_mode()
    def depths(self, case: Case) -> list[np.ndarray]:
        """The masks at the four supervised depths, deepest first; the last is the prediction.

        Each is float32 (H, W) in [0, 1]; a network without latents has none.
        """
        pipeline = self._pipeline_for(case)
        if pipeline.mapping is None:
            return []
        networks = pipeline.encoder, pipeline.mapping, pipeline.vae
        images = channels_last(case.pixels)  # as in a prediction
        _, levels = map_latents(*networks, images, generator=self._generator())
        return [_at_size(pipeline.palette.decode(pipeline.vae, level), case) for level in levels]

    def score(
        self, prediction: np.ndarray, truth: np.ndarray, counted: np.ndarray
    ) -> dict[str, float | bool]:
        """What `score_mask` gives; of several classes `score_classes`."""
        if not self.data.classes:
            return score_mask(prediction, truth, counted)
        kinds = np.where(counted, truth, self.data.ignored)
        return score_classes(prediction, kinds, self.data.classes)

    def rows(self, threshold: float) -> Iterator[dict]:
        """Scores the first `TABLE_ROWS` images of the split, one after the other.

        A row has index, id, label, and what `score` gives. It is lazy: between two rows a
        caller may serve whoever waits.
        """
        count = min(len(self.data), TABLE_ROWS)
        for start in range(0, count, _BATCH):
            indices = range(start, min(start + _BATCH, count))
            self._see([self.case(index) for index in indices if index not in self._seen])
            for index in indices:
                soft, truth, counted = self._seen[index]
                about = {"id": self.data.ids[index], "label": self.data.labels[index]}
                yield (
                    {"index": index} | about | self.score(mask_of(soft, threshold), truth, counted)
                )

    def _see(self, cases: list[Case]) -> None:
        cases = [case for case in cases if case.index not in self._seen]
        for pipeline in dict.fromkeys(map(self._pipeline_for, cases)):
            own = [case for case in cases if self._pipeline_for(case) is pipeline]
            soft_masks = pipeline.predict(torch.cat([c.pixels for c in own]), self._generator())
            for case, soft in zip(own, soft_masks, strict=True):
                self._seen[case.index] = _at_size(soft[None], case), case.truth, case.counted

    def fold_of(self, case: Case) -> int:
        """The fold of whose test images a case is, from 1; 0 without, or of other data."""
        own = self.model.card.data_hash == self.data.data_hash and self.split == "test"
        return self.data.tested_in[case.index] if own and case.index is not None else 0

    def _pipeline_for(self, case: Case) -> WaveGMSPipeline:
        """The model's, or that of the fold that did not see the case."""
        fold = self.fold_of(case)
        return self._others[fold - 2] if self._others and fold > 1 else self.pipeline

    def _generator(self) -> torch.Generator:
        return torch.Generator().manual_seed(self._seed)


def _open_folds(folder: Path) -> list[WaveGMSPipeline]:
    first = WaveGMSPipeline.from_pretrained(folder)
    return [first, *map(WaveGMSPipeline.from_pretrained, fold_models(folder)[1:])]


def _at_size(soft: Tensor, case: Case) -> np.ndarray:
    """A soft mask (1, K, S, S) at the size of the case's picture, as the pipeline does it."""
    return resize_probabilities(soft[0].cpu(), case.picture.shape[:2])
