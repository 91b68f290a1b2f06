"""Which classes a dataset has, and how its files say which is which.

Label maps have a value for each. Or there is a folder of masks for each, of its name, whose masks
may overlap: there the class that is named later lies on top, as a tumour on its organ.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from wavegms.config import ReadingParams
from wavegms.data.cases import DESCRIPTION, Case, class_folders
from wavegms.errors import InputError, first_line
from wavegms.images import parse_ranges


def with_classes(
    name: str, root: Path, wanted: ReadingParams | None, known: Sequence[str] = ()
) -> ReadingParams:
    """`wanted` with the classes of a dataset, if it names none: those known, or of `dataset.json`.

    Where `wanted` names values of the foreground, there is one class.
    """
    wanted = wanted or ReadingParams()
    if wanted.classes or wanted.foreground:
        return wanted
    if not known and (folders := [path.name for path in class_folders(Path(root) / "masks")]):
        raise InputError(
            f"{root}/masks has a folder for each of {', '.join(folders)}: name them as "
            f"reading.{name}.classes in params.yaml (or --classes to `add`), those that lie on top "
            "of others last."
        )
    classes = list(known) or {
        "_".join(label.split()): value for value, label in label_names(root).items() if value
    }
    if len(classes) < 2:
        return wanted
    try:
        return ReadingParams.check(wanted.model_dump() | {"classes": classes})
    except InputError as error:
        raise InputError(
            f"the classes of {name} in {Path(root) / DESCRIPTION} cannot be taken ({error}): name "
            f"them as reading.{name}.classes in params.yaml, or what is one class as "
            f"reading.{name}.foreground (--classes or --foreground to `add`)."
        ) from error


def label_names(root: Path) -> dict[int, str]:
    """The names of the label values that `dataset.json` states; none without such a file.

    Both ways of writing are known, the Decathlon's {"1": "liver"} and nnU-Net's {"liver": 1}.
    """
    path = root / DESCRIPTION
    if not path.is_file():
        return {}
    try:
        labels = json.loads(path.read_text(encoding="utf-8-sig")).get("labels", {})
        if all(str(value).isdecimal() for value in labels):
            return {int(value): str(name) for value, name in labels.items()}
        return {int(value): str(name) for name, value in labels.items()}
    except (AttributeError, OSError, RecursionError, TypeError, ValueError) as error:
        raise InputError(
            f"{path} does not name single label values ({first_line(error)}): write them as "
            '"labels": {"0": "background", "1": "..."}, or remove the file.'
        ) from error


def in_folders(name: str, cases: Sequence[Case], classes: Mapping[str, int | str]) -> bool:
    """Whether each mask lies in a folder of its class, rather than in a label map.

    Raises:
        InputError: some do and others do not, or a folder is of no class.
    """
    folders = {path.parent for case in cases for path in case.masks}
    named = {folder for folder in folders if folder.name in classes}
    if not named:
        return False
    if other := sorted(folders - named):
        raise InputError(
            f"{other[0]} is no folder of a class of {name} ({', '.join(classes)}), and "
            f"{sorted(named)[0]} is: name it in reading.{name}.classes, or move its masks."
        )
    return True


def values_of(
    classes: Mapping[str, int | str],
) -> tuple[tuple[str, tuple[tuple[int, int], ...]], ...]:
    """The rule of label maps, see `wavegms.images.MaskRule`."""
    return tuple((name, parse_ranges([value])) for name, value in classes.items())
