"""One's own images: put in place, checked file by file, and named in params.yaml."""

import json
import sys
import textwrap
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from wavegms.config import ReadingParams, check_params, load_params, require_name
from wavegms.data.cases import (
    UNLABELLED,
    Case,
    checked_cases,
    class_folders,
    holds_volume_files,
    holds_volumes,
    image_files,
    match_folders,
    pair_volumes,
    pairing_rule,
    place,
    place_layout,
    read_classes,
    unlabelled_volumes,
)
from wavegms.data.catalog import CATALOG, find_cases
from wavegms.data.classes import label_names, with_classes
from wavegms.data.pairs import (
    Reading,
    Seen,
    for_each_case,
    read_pair,
    remarks,
    resize_pair,
)
from wavegms.data.reading import find_reading
from wavegms.data.volume_sets import (
    decide_reading,
    describe_volumes,
    look_at_volumes,
    open_case,
    remarks_on_volumes,
)
from wavegms.errors import InputError, first_line
from wavegms.files import missing_folder, replace_file, write_text
from wavegms.images import of_class
from wavegms.run.check import check_dataset

_RAW = Path("data/raw")

_PARAMS = Path("params.yaml")

_CONF = Path("conf")

_PREVIEWS = Path("reports/own_data")

# Pairs in the preview: two rows.
_SHOWN = 12

# Below this, a mean over the test images says little.
_FEW_TESTS = 20

_PROFILE = """\
# @package _global_
# Your own images in data/raw/{name}, as `python -m wavegms add` set them up; yours to change. It
# becomes params.yaml by `dvc exp run -S profile={name}`, which runs it, too.
defaults: [own, _self_]
datasets: [{name}]
"""


@dataclass(frozen=True)
class Added:
    """What `add_dataset` found and did."""

    folder: Path  # where the images lie
    cases: int = 0  # images with a mask; 0 if only empty folders were made
    unlabelled: int = 0  # images without a mask
    what: str = "images"  # or volumes
    found: list[str] = field(default_factory=list)  # sentences on the files
    notes: list[str] = field(default_factory=list)  # and on what may be wrong
    preview: Path | None = None  # a picture of some images with the outlines of their masks
    # What params.yaml says now where it said something else, by its dotted name.
    changed: dict[str, Any] = field(default_factory=dict)


def add_dataset(
    name: str,
    images: Path | None = None,
    masks: Path | None = None,
    reading: ReadingParams | None = None,
    source: Path | None = None,
    folds: int | None = None,
) -> Added:
    """Sets up a dataset of one's own, to be trained on by `dvc repro`; in the project's folder.

    Files are copied to `data/raw/<name>` from `source`, a folder with a layout of `read_plain`, or
    from folders or patterns; or taken as they lie there already. Without any, empty folders are
    made. All are opened and checked, read as `reading` says or as params.yaml does. Then
    `conf/profile/<name>.yaml` is written and params.yaml set to it, unless params.yaml names the
    dataset already; the reading and the number of `folds` are noted in any case. Whatever fails
    leaves params.yaml as it was.
    """
    require_name(name)
    params = load_params(_PARAMS)
    if name in CATALOG:
        raise InputError(
            f"{name} is the name of {CATALOG[name].title}, which has a layout of its own (see "
            "data/README.md): choose another name."
        )
    known = name in (*params.datasets, *params.external)
    profile = _CONF / f"profile/{name}.yaml"
    written = profile.exists()
    values = _compose(name) if written else _compose("own") | {"datasets": [name]}
    asked = reading.model_dump(exclude_defaults=True) if reading else {}
    if known:
        values = yaml.safe_load(_PARAMS.read_text(encoding="utf-8"))
    elif name not in values["datasets"]:
        raise InputError(f"{profile} is a profile of other datasets: choose another name.")
    else:
        params = check_params(values, str(profile))
    said = {}
    if folds is not None:
        said["split"] = {"folds": folds}
        values = values | {"split": values["split"] | said["split"]}
        params = check_params(values, f"--folds {folds}")
    if asked:
        said["reading"] = {name: asked}
        values = values | {"reading": (values.get("reading") or {}) | said["reading"]}
    else:
        reading = params.reading.get(name)
    folder = _RAW / name
    copied = images is not None or source is not None
    if copied and folder.exists() and any(path.is_file() for path in folder.rglob("*")):
        raise InputError(
            f"{folder} holds files already: choose another name, remove the folder, or leave out "
            "what to copy to take what is there."
        )
    if images is None and masks is None:
        root = source or folder
        if source and not source.is_dir():
            raise missing_folder(source, "correct the path of the folder to copy")
        if not root.exists():
            for part in ("images", "masks"):
                (folder / part).mkdir(parents=True)
            return Added(folder)
        cases, rest = find_cases(name, root), _unlabelled(root)
    elif images is None or masks is None or source is not None:
        raise InputError(
            "--images and --masks belong together; images without any mask need not be added: "
            "give them to `python -m wavegms predict`."
        )
    else:
        root = Path(images)
        cases, rest = _paired(root, Path(masks), reading)
    volumes = cases[0].volume
    what = "volumes" if volumes else "images"
    reading = with_classes(name, source or folder, reading)
    if volumes:
        found, notes, how = _examine_volumes(name, cases, reading, root)
    else:
        found, notes, how = _examine(name, cases, reading, params.image_size)
    found = [*pairing_rule(cases), *found]
    if source is not None:
        place_layout(source, folder)
    elif images is not None:
        place(cases, rest, folder, how.by_folder)
    preview = _write_preview(name, find_cases(name, folder), how)
    if name not in params.external:
        tests = check_dataset(name, folder, params)
        if tests < _FEW_TESTS:
            more = ", or add `--folds 5`, which scores every image"
            notes.append(
                f"a score is the mean over {tests} test {what}: mind its interval"
                + ("" if params.split.folds else more)
            )
    changed = {}
    if said and written:
        lines = " and ".join(f"{key}: {_flow(value)}" for key, value in said.items())
        notes.append(f"{profile} was there and is left as it is: write {lines} there")
    if not known and not written:
        if volumes:
            said, values = {"volumes": [name]} | said, values | {"volumes": [name]}
        lines = [f"{key}: {_flow(value)}\n" for key, value in said.items()]
        write_text(profile, _PROFILE.format(name=name) + "".join(lines))
    if said or not known:
        changed = _change_params(values)
    return Added(folder, len(cases), len(rest), what, found, notes, preview, changed)


def _unlabelled(root: Path) -> list[Path]:
    if holds_volumes(root):
        return unlabelled_volumes(root)
    return image_files(root / UNLABELLED) if (root / UNLABELLED).is_dir() else []


def _paired(
    images: Path, masks: Path, reading: ReadingParams | None
) -> tuple[list[Case], list[Path]]:
    """The cases of two folders or patterns, and the images without a mask."""
    if holds_volume_files(images):
        return checked_cases(pair_volumes(images, masks)), []
    if reading and reading.classes and (by_class := class_folders(masks)):
        return checked_cases(read_classes(images, by_class)), []
    return match_folders(images, masks)


def report(added: Added) -> str:
    """Says in lines of text what `add_dataset` did and what comes next."""
    folder, name = added.folder, added.folder.name
    if not added.cases:
        return (
            f"made {folder}/images and {folder}/masks: put your images there and each mask under "
            f"its image's name, then run this again (python -m wavegms add {name})\n"
        )
    lines = [f"{folder}: {added.cases} {added.what} with masks", *added.found]
    if added.unlabelled:
        lines.append(
            f"{added.unlabelled} {added.what} without a mask are in {folder / UNLABELLED}: not "
            "trained on, to be predicted later"
        )
    lines += [f"note: {note}" for note in added.notes]
    lines.append(f"look whether the masks fit: {added.preview}")
    if added.changed:
        lines.append("params.yaml now says (git restore params.yaml takes it back):")
        lines += [f"  {key}: {json.dumps(value)}" for key, value in added.changed.items()]
    else:
        lines.append(f"params.yaml names {name} already and was left as it is")
    return "\n".join([*lines, "next: dvc repro", ""])


def _examine(
    name: str, cases: Sequence[Case], wanted: ReadingParams | None, image_size: int
) -> tuple[list[str], list[str], Reading]:
    """What the files are, what may be wrong with them, and how they are read."""
    reading = find_reading(name, cases, wanted)
    examine = partial(_examine_case, reading=reading, image_size=image_size)
    seen, problems = for_each_case(examine, cases, "Checking")
    _refuse(cases, "images", problems)
    sizes = sorted((one.size for one in seen), key=lambda size: size[0] * size[1])
    areas = 100 * np.array([one.area for one in seen])
    found = [
        f"images: {sizes[0][0]}×{sizes[0][1]} to {sizes[-1][0]}×{sizes[-1][1]} pixels; "
        + _count(one.image_mode for one in seen),
        f"masks: {areas.min():.1f} to {areas.max():.1f} % of the image, {np.median(areas):.1f} % "
        f"in the middle; {_count(one.mask_modes[0] for one in seen)}",
        *reading.evidence,
    ]
    return found, remarks(cases, seen, reading.classes), reading


def _examine_volumes(
    name: str, cases: Sequence[Case], wanted: ReadingParams | None, root: Path
) -> tuple[list[str], list[str], Reading]:
    seen, problems = look_at_volumes(name, cases, root)
    _refuse(cases, "volumes", problems)
    reading = decide_reading(name, cases, seen, label_names(root), wanted)
    notes = remarks_on_volumes(cases, seen, reading.masks)
    return [*describe_volumes(seen), *reading.evidence], notes, reading


def _refuse(cases: Sequence[Case], what: str, problems: Sequence[str]) -> None:
    if len(problems) > 1:
        print(*problems, sep="\n", file=sys.stderr)
        raise InputError(
            f"{len(problems)} of {len(cases)} {what} or their masks are no good, each named above: "
            "correct or remove them and run this again."
        )
    if problems:
        raise InputError(problems[0])


def _examine_case(case: Case, reading: Reading, image_size: int) -> Seen:
    pair = read_pair(case, reading)
    return Seen.of(pair, resize_pair(case, pair, image_size)[1])


def _count(modes: Iterable[str]) -> str:
    return ", ".join(f"{count} {mode}" for mode, count in Counter(modes).most_common())


def _write_preview(name: str, cases: Sequence[Case], reading: Reading) -> Path:
    from wavegms.figures.cases import show_pairs  # takes seconds, and comes last

    chosen = np.linspace(0, len(cases) - 1, min(_SHOWN, len(cases))).round().astype(int)
    figure = show_pairs(
        [(textwrap.fill(cases[i].id, 30), *_shown(cases[i], reading)) for i in chosen],
        classes=reading.classes,
    )
    path = _PREVIEWS / f"{name}.png"
    with replace_file(path) as fresh:
        figure.savefig(fresh, format="png", dpi=100)
    return path


def _shown(case: Case, reading: Reading) -> tuple[np.ndarray, np.ndarray]:
    """Image and mask, or label map; of a volume, the slice with the most foreground."""
    if not case.volume:
        pair = read_pair(case, reading)
        return np.asarray(pair.image), pair.mask
    volume, labels = open_case(case, reading.scale.volumes)
    kinds = reading.masks.of(labels)
    place = int(of_class(kinds, len(reading.classes) or 1).sum((1, 2)).argmax())
    return np.repeat(volume[place][..., None], 3, -1), kinds[place]


def _compose(profile: str) -> dict[str, Any]:
    """params.yaml as `dvc exp run -S profile=...` composes it."""
    from hydra import compose, initialize_config_dir
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        with initialize_config_dir(str(_CONF.resolve()), version_base=None):
            composed = compose("config", overrides=[f"profile={profile}"])
        return OmegaConf.to_container(composed, resolve=True)
    except (HydraException, OmegaConfBaseException, yaml.YAMLError) as error:
        raise InputError(
            f"{_CONF}/profile/{profile}.yaml cannot be composed with {_CONF}/config.yaml "
            f"({first_line(error)}): correct it, or bring both back by git."
        ) from error


def _change_params(values: Mapping[str, Any]) -> dict[str, Any]:
    """Sets params.yaml to these values and leaves every other letter of it, comments too."""
    text = _PARAMS.read_text(encoding="utf-8")
    if any(isinstance(token, yaml.AliasToken) for token in yaml.scan(text)):
        raise InputError(
            f"{_PARAMS} has an alias (a * before a name), so what changes one value may change "
            f"others: bring it back by `git restore {_PARAMS}` and run this again."
        )
    places = _places(yaml.compose(text), yaml.safe_load(text), values)
    for start, end, value in sorted(places.values(), key=lambda place: place[0], reverse=True):
        text = text[:start] + f" {_flow(value)}" + text[end:]
    for key in ("volumes", "reading"):
        if values.get(key) and key not in yaml.safe_load(text):  # a file of before
            text = f"{text.rstrip()}\n\n{key}: {_flow(values[key])}\n"
            places[key] = (0, 0, values[key])
    write_text(_PARAMS, text)
    return {name: value for name, (_, _, value) in places.items()}


def _places(
    node: yaml.MappingNode, old: Mapping[str, Any], new: Mapping[str, Any], above: str = ""
) -> dict[str, tuple[int, int, Any]]:
    """Where each value stands that is to be another: from the colon on to its last letter."""
    places = {}
    for key, value in node.value:
        name, before, after = f"{above}{key.value}", old[key.value], new[key.value]
        if before == after:
            continue
        if isinstance(before, dict) and before.keys() == after.keys():
            places |= _places(value, before, after, f"{name}.")
        else:
            places[name] = (key.end_mark.index + 1, _end(value), after)
    return places


def _end(node: yaml.Node) -> int:
    """A block's own end comes after the comments that follow it."""
    if isinstance(node, yaml.CollectionNode) and not node.flow_style and node.value:
        last = node.value[-1]
        return _end(last[1] if isinstance(last, tuple) else last)
    return node.end_mark.index


def _flow(value: Any) -> str:
    return (
        yaml.safe_dump(value, default_flow_style=True, width=1000).removesuffix("\n...\n").strip()
    )
