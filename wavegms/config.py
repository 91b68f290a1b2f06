"""The schema of params.yaml: unknown keys and impossible values are refused by name.

params.yaml itself says what each knob means; here stands what it may be. Notebooks load the file,
`wavegms` gets plain values.
"""

import re
import reprlib
from pathlib import Path
from typing import Annotated, Literal, Self

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)

from wavegms.classes import MOST_CLASSES
from wavegms.errors import InputError, first_line
from wavegms.images import parse_ranges
from wavegms.variants import Context, Decoder, Plane, RecipeName

# Ten times what params.yaml has, aliases written out.
MAX_BYTES = 100_000

MAX_VALUES = 10_000

_SAFE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")


# Of the words that YAML 1.1 or Hydra take for something, those that `yaml` reads as text.
_SPECIAL = ("y", "n", "nan", "inf", "infinity")


def _is_text(name: str) -> bool:
    """Whether every reader of YAML on a name's way takes it for text, without quotes."""
    if name.lower() in _SPECIAL:
        return False
    # PyYAML knows dates, 1_000 and octal numbers; YAML 1.2, Hydra and DVC know 1e5 and 0o17
    for read in (float, lambda text: int(text, 0)):
        try:
            read(name)
            return False
        except ValueError:
            pass
    try:
        return yaml.safe_load(name) == name
    except (yaml.YAMLError, ValueError):  # a date of no calendar
        return False


def _check_name(name: object) -> object:
    if isinstance(name, list | dict):
        return name  # refused as no text
    if isinstance(name, str) and not _SAFE_NAME.fullmatch(name):
        raise ValueError("a name may hold letters, digits, _ and - only, as it becomes a folder")
    if not isinstance(name, str) or not _is_text(name):
        other = f"d{name}" if _SAFE_NAME.fullmatch(f"d{name}") else "d2018"
        raise ValueError(
            f"{_shown(name)} is a number, a date, a truth value or nothing to readers of YAML, so "
            f"it cannot be a name: choose another one, such as {other}"
        )
    if len(name) > 64:
        raise ValueError("a name may have 64 letters, as it becomes part of the names of files")
    if name in ("ablation", "autoencoder", "foundations", "kept"):
        raise ValueError(f"models/{name} is taken, choose another name")
    return name


def _check_unique(values: list) -> list:
    for position, value in enumerate(values):
        if value in values[:position]:
            raise ValueError(f"{value} stands there twice: remove one")
    return values


def _check_ascending(values: list) -> list:
    if values != sorted(set(values)):
        raise ValueError(f"{values} must ascend: a process's peak memory never falls again")
    return values


def _check_size(size: int) -> int:
    if size % 8:
        raise ValueError(f"{size} is not divisible by 8; try {size // 8 * 8 or 8}")
    return size


def _check_no_truth(value: object) -> object:
    # YAML reads yes and on as true, and pydantic would take that for 1.
    if isinstance(value, bool):
        raise ValueError(f"a number belongs here, not {str(value).lower()}")
    return value


def _check_place(place: str) -> str:
    # A disk takes 255 bytes for each part of a path; whatever is longer is no path but a mistake.
    if not place.isprintable() or any(len(part.encode()) > 200 for part in place.split("/")):
        raise ValueError("neither a path nor a hub id looks like this, give one of them")
    if len(place) > 1000:
        raise ValueError("a path may have 1000 letters")
    return place


Integer = Annotated[int, BeforeValidator(_check_no_truth)]

Number = Annotated[float, BeforeValidator(_check_no_truth)]

Place = Annotated[str, AfterValidator(_check_place)]

Name = Annotated[str, BeforeValidator(_check_name)]

Names = Annotated[list[Name], Field(min_length=1), AfterValidator(_check_unique)]

Fraction = Annotated[Number, Field(ge=0, lt=1)]

Probability = Annotated[Number, Field(ge=0, le=1)]

# No run ends that does more of anything than this.
PositiveInt = Annotated[Integer, Field(ge=1, le=100_000_000)]

# Width and depth of networks.
Channels = Annotated[Integer, Field(ge=1, le=4096)]

Blocks = Annotated[Integer, Field(ge=1, le=64)]

Precision = Literal["auto", "fp32", "tf32", "bf16", "fp16"]

Seed = Annotated[Integer, Field(ge=0, lt=2**32)]


class Section(BaseModel):
    """A part of params.yaml."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @classmethod
    def check(cls, values: object, source: str = "") -> Self:
        """Checks values handed over one section at a time, as a notebook's parameters are."""
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise InputError(f"{source or cls.__name__}: {_first_problem(error)}") from error


class PhantomParams(Section):
    """The embedded sample: which scanners to simulate, and how many images each takes."""

    datasets: Annotated[list[Name], AfterValidator(_check_unique)]
    images: PositiveInt
    seed: Seed


def _check_folds(folds: int) -> int:
    if folds < 2:
        raise ValueError(f"{folds} leaves nothing to train on: choose 2 or more, or null")
    return folds


class SplitParams(Section):
    """How a dataset is divided into train, val and test."""

    method: Literal["published", "official", "lists", "random", "grouped"]
    folder: Place
    folds: Annotated[Integer, Field(le=1000), AfterValidator(_check_folds)] | None = None
    test_fraction: Fraction
    validation_fraction: Fraction

    @model_validator(mode="after")
    def _folds_are_drawn(self) -> Self:
        if self.folds and self.method not in ("random", "grouped"):
            raise ValueError(
                f"folds is {self.folds}, but method {self.method} fixes its own test images: set "
                "folds to null, or method to random or grouped"
            )
        return self


def _check_greys(values: list[int | str]) -> list[int | str]:
    parse_ranges(values)
    return values


Greys = Annotated[
    list[Annotated[int | str, BeforeValidator(_check_no_truth)]], AfterValidator(_check_greys)
]


def _numbered(values: object) -> object:
    """Names alone are those of 1, 2 and so on."""
    if isinstance(values, list):
        _check_unique(values)
        return {name: number for number, name in enumerate(values, 1)}
    return values


def _check_classes(values: dict[str, int | str]) -> dict[str, int | str]:
    if len(values) == 1 or len(values) > MOST_CLASSES:
        raise ValueError(
            f"it names {len(values)}, but there may be 2 to {MOST_CLASSES}: join some of them, and "
            "leave it out where there is one"
        )
    taken: list[tuple[int, int]] = []
    for name, value in values.items():
        ((low, high),) = parse_ranges([value])
        if low == 0:
            raise ValueError(f"{name} has the value 0, which is the background's: name another")
        if any(low <= end and start <= high for start, end in taken):
            raise ValueError(f"{name} has a value that another class has: correct one of them")
        taken.append((low, high))
    # classes are numbered by their values, as some who write YAML or JSON put names in order
    return dict(sorted(values.items(), key=lambda pair: parse_ranges([pair[1]])))


# From names to the value of a label map, or a range of values.
Classes = Annotated[
    dict[Name, Annotated[int | str, BeforeValidator(_check_no_truth)]],
    BeforeValidator(_numbered),
    AfterValidator(_check_classes),
]


class ReadingParams(Section):
    """How a dataset's files are to be read, where they do not tell it themselves."""

    foreground: Greys = []
    ignore: Greys = []
    drawn_on: Literal["auto", "shown", "stored"] = "auto"
    # mm from pixel to pixel of all images, or of rows and of columns; [] where it is not known
    spacing: Annotated[
        list[Annotated[Number, Field(gt=0, allow_inf_nan=False)]], Field(max_length=2)
    ] = []
    plane: Plane | None = None
    context: Context = "none"
    classes: Classes = {}

    @model_validator(mode="after")
    def _one_meaning(self) -> Self:
        if self.classes and self.foreground:
            raise ValueError("foreground is of one class and classes of several: leave one out")
        classes = parse_ranges(list(self.classes.values()))
        for low, high in parse_ranges(self.ignore):
            if any(low <= end and start <= high for start, end in classes):
                raise ValueError(f"ignore names {low}, which a class has: correct one of them")
        return self


class AutoencoderTraining(Section):
    """How the small autoencoder of the embedded default is trained."""

    channels: Channels
    blocks: Blocks
    steps: PositiveInt
    batch_size: PositiveInt
    learning_rate: Annotated[Number, Field(gt=0, allow_inf_nan=False)]
    target_dice: Probability = 1.0
    start_from: Name | None = None


class AutoencoderParams(Section):
    """Where the frozen autoencoders come from."""

    source: Literal["train", "hub", "path"]
    hub: Place
    path: Place
    sd_vae: Place
    min_mask_dice: Probability
    train: AutoencoderTraining


class ModelParams(Section):
    """Choices of the network."""

    sample_at_inference: bool
    gms_checkpoint: Place

    def gms_checkpoint_for(self, dataset: str) -> Path:
        """The file for one dataset."""
        return Path(self.gms_checkpoint.replace("{dataset}", dataset))


class LossParams(Section):
    """Choices of the loss."""

    supervision: Literal["all_levels", "last_three_levels"]
    alignment_distance: Literal["l1", "smooth_l1"]


class AugmentationParams(Section):
    """Probability of each augmentation; 0 switches one off."""

    horizontal_flip: Probability
    vertical_flip: Probability
    rotate_90: Probability
    color_jitter: Probability
    shift_scale_rotate: Probability


class TrainingParams(Section):
    """The training recipe."""

    epochs: PositiveInt | None
    minutes: Annotated[Number, Field(gt=0, le=1_000_000)] | None = None
    start_from: Place | None = None
    recipe: RecipeName = "common"
    pretrained: Place | None = None
    epochs_by_dataset: dict[Name, PositiveInt]
    batch_size: PositiveInt
    learning_rate: Annotated[Number, Field(gt=0, allow_inf_nan=False)]
    weight_decay: Annotated[Number, Field(ge=0, allow_inf_nan=False)]
    warmup_epochs: Annotated[Integer, Field(ge=0, le=100_000_000)]
    selection: Literal["best_on_validation", "best_on_test"]
    precision: Precision
    compile: bool
    cuda_graph: bool = True
    decoder: Decoder = "exact"
    augmentation: AugmentationParams

    @model_validator(mode="after")
    def _one_budget(self) -> Self:
        if (self.epochs is None) == (self.minutes is None):
            given = f"are {self.epochs} and {self.minutes}" if self.epochs else "are both null"
            raise ValueError(f"epochs and minutes {given}: give one and set the other to null")
        return self

    @model_validator(mode="after")
    def _pretrained_fits(self) -> Self:
        if self.pretrained and self.recipe == "common":
            raise ValueError(
                "pretrained is of the recipe published: set it to null, or recipe to published"
            )
        if self.pretrained and self.start_from:
            raise ValueError("pretrained and start_from are both set: set one of them to null")
        return self

    @property
    def train_splits(self) -> tuple[str, ...]:
        """The splits that are learned from: the reference's way has no use for validation."""
        return ("train", "val") if self.selection == "best_on_test" else ("train",)

    @property
    def selection_split(self) -> str:
        """The split that chooses the epoch."""
        return "test" if self.selection == "best_on_test" else "val"

    def epochs_for(self, dataset: str) -> int | None:
        """The number of epochs for one dataset; None where `minutes` decide."""
        return self.epochs_by_dataset.get(dataset, self.epochs)


class EvaluationParams(Section):
    """How predictions are scored."""

    threshold: Annotated[Number, Field(gt=0, lt=1)]
    bootstrap_resamples: Annotated[Integer, Field(ge=100, le=1_000_000)]
    decoder: Decoder = "exact"


class AblationParams(Section):
    """Where and how long the rows of Table 4 are run."""

    datasets: Annotated[list[Name], AfterValidator(_check_unique)]
    variants: Names
    epochs: PositiveInt


def _check_last_parts(places: list[str]) -> list[str]:
    _check_unique([Path(place).name for place in places])
    return places


class FoundationParams(Section):
    """Which autoencoders are compared, and how long Wave-GMS is trained on each."""

    datasets: Annotated[list[Name], AfterValidator(_check_unique)]
    widths: Annotated[list[Channels], AfterValidator(_check_unique)]
    others: Annotated[list[Place], AfterValidator(_check_last_parts)]
    epochs: Annotated[Integer, Field(ge=0, le=100_000_000)]


class GeneralizationPair(Section):
    """A model trained on one dataset and tested on another."""

    train: Name
    test: Name


class EfficiencyParams(Section):
    """What is measured of time and memory, and on how many images at once."""

    variants: Names
    # below 32 pixels a single image leaves the U-Net's batch norm one position
    image_size: Annotated[Integer, Field(ge=32, le=4096), AfterValidator(_check_size)]
    batch_sizes: Annotated[list[PositiveInt], Field(min_length=2), AfterValidator(_check_ascending)]
    steps: PositiveInt
    cards: Annotated[list[PositiveInt], Field(min_length=1), AfterValidator(_check_unique)]


class Params(Section):
    """All of params.yaml."""

    datasets: Names
    variants: Names
    seed: Seed
    seeds: Annotated[list[Seed], Field(min_length=1), AfterValidator(_check_unique)]
    image_size: Annotated[Integer, Field(ge=16, le=4096), AfterValidator(_check_size)]
    phantom: PhantomParams
    volumes: Annotated[list[Name], AfterValidator(_check_unique)] = []
    reading: dict[Name, ReadingParams] = {}
    split: SplitParams
    autoencoder: AutoencoderParams
    model: ModelParams
    loss: LossParams
    training: TrainingParams
    evaluation: EvaluationParams
    generalization: list[GeneralizationPair]
    external: Annotated[list[Name], AfterValidator(_check_unique)]
    ablation: AblationParams
    foundations: FoundationParams
    efficiency: EfficiencyParams

    def variants_for(self, dataset: str) -> list[str]:
        """What is trained on a dataset, the rows of its ablation among it."""
        rows = self.ablation.variants if dataset in self.ablation.datasets else []
        return list(dict.fromkeys([*self.variants, *rows]))

    @model_validator(mode="after")
    def _parts_fit(self) -> "Params":
        listed = [("generalization", pair.train) for pair in self.generalization]
        listed += [("generalization", pair.test) for pair in self.generalization]
        listed += [("volumes", name) for name in self.volumes]
        listed += [("ablation.datasets", name) for name in self.ablation.datasets]
        listed += [("foundations.datasets", name) for name in self.foundations.datasets]
        for key, name in listed:
            if name not in self.datasets:
                raise ValueError(f"{key} names {name}, which is not among datasets: add it there")
        for pair in self.generalization:
            if pair.train == pair.test:
                raise ValueError(f"generalization has {pair.train} on both sides: name another")
        for name in self.external:
            if name in self.datasets:
                raise ValueError(
                    f"external names {name}, which is among datasets and so trained on: remove it "
                    "on one side"
                )
        pairs = [("generalization", pair.train, pair.test) for pair in self.generalization]
        pairs += [("external", one, other) for one in self.datasets for other in self.external]
        for key, *both in pairs:
            seen = [self.reading.get(name, ReadingParams()).context for name in both]
            if seen[0] != seen[1]:
                raise ValueError(
                    f"{key} tests a model of {both[0]} on {both[1]}, but their images show other "
                    f"slices (reading.{both[0]}.context is {seen[0]}, reading.{both[1]}.context "
                    f"{seen[1]}): set both to the same"
                )
        if self.training.minutes and len(self.seeds) > 1:
            raise ValueError(
                "training.minutes gives each of several seeds another number of epochs, over which "
                "no mean is taken: give training.epochs instead, or one seed"
            )
        if self.training.minutes and self.split.folds:
            raise ValueError(
                "training.minutes gives each of split.folds another number of epochs, and their "
                "scores stand in one row: give training.epochs instead, or set split.folds to null"
            )
        for section in ("training", "evaluation"):
            if getattr(self, section).decoder == "fast" and self.autoencoder.source == "train":
                raise ValueError(
                    f"{section}.decoder is fast, but autoencoder.source train makes an autoencoder "
                    "whose own decoder is as small, and that has taught no other: set it to exact, "
                    "or autoencoder.source to hub or path"
                )
        if self.training.selection == "best_on_validation" and not self.split.validation_fraction:
            raise ValueError(
                "split.validation_fraction is 0, but training.selection best_on_validation needs "
                "validation images: raise it, or choose best_on_test"
            )
        return self


def load_params(path: str | Path) -> Params:
    """Reads and checks a parameter file."""
    path = Path(path)
    if not path.is_file():
        raise InputError(
            f"{path} does not exist or is not a file: run from the project's folder, or restore it "
            "with git"
        )
    try:
        if path.stat().st_size > MAX_BYTES:
            raise ValueError(f"it has more than {MAX_BYTES // 1000} kB")
        # Not only YAMLError: the constructors of dates, numbers and deep lists have others.
        values = _parse(path.read_text(encoding="utf-8-sig"))
    except Exception as error:
        reason = first_line(error) if isinstance(error, OSError) else " ".join(str(error).split())
        raise InputError(
            f"{path} is not valid YAML ({reason or repr(error)}): correct it, or restore it with "
            "git"
        ) from error
    return check_params(values, source=path.name)


def _parse(text: str) -> object:
    """Reads YAML of plain values, and stops where aliases stand for more than fits into memory."""
    loader = yaml.SafeLoader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        if _written_out(node, {}) > MAX_VALUES:
            raise ValueError("it holds too much, or itself, through aliases (a * before a name)")
        return loader.construct_document(node)
    finally:
        loader.dispose()


def _written_out(node: yaml.Node, sizes: dict[int, int]) -> int:
    """How many values a node stands for."""
    if id(node) not in sizes:
        sizes[id(node)] = MAX_VALUES + 1  # for one that holds itself
        inner = node.value if isinstance(node, yaml.CollectionNode) else []
        parts = [part for entry in inner for part in (entry if type(entry) is tuple else (entry,))]
        sizes[id(node)] = 1 + sum(_written_out(part, sizes) for part in parts)
    return sizes[id(node)]


def require_name(name: object) -> None:
    """Checks the name of a dataset where it first appears."""
    try:
        _check_name(name)
    except ValueError as error:
        raise InputError(f"name: {error}") from error


def check_params(values: object, source: str = "params.yaml") -> Params:
    """Checks parameters that are already in memory; see :func:`load_params`."""
    return Params.check(values, source)


def _first_problem(error: ValidationError) -> str:
    problem = error.errors()[0]
    key = ".".join(str(part) for part in problem["loc"]) or "the file"
    if problem["type"] == "extra_forbidden":
        return f"{key} is not a known parameter: remove it or correct the spelling"
    if problem["type"] == "missing":
        return f"{key} is missing: add it, or compose the file anew from a profile in conf/"
    message = problem["msg"].removeprefix("Value error, ")
    shown = "" if problem["type"] == "value_error" else f" (it is {_shown(problem['input'])})"
    if problem["type"] == "string_type" and not isinstance(problem["input"], list | dict):
        shown += ", put it in quotes if it is meant as text"
    if shown and "should" not in message:  # pydantic's own do not all say a way out
        shown += ", correct it"
    if problem["loc"]:
        return f"{key}: {message}{shown}"
    return message if not shown else f"{message}: correct the file, or restore it with git"


def _shown(value: object) -> str:
    short = reprlib.Repr()
    short.maxstring = short.maxother = short.maxlong = 60
    try:
        return short.repr(value)
    except ValueError:  # python writes no whole number of more than 4300 digits
        return "too long to show"
