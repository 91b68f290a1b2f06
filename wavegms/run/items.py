"""What DVC says of the items of a stage."""

from collections.abc import Iterable

from dvc.exceptions import DvcException
from dvc.repo import Repo
from dvc.rwlock import RWLockFileCorruptedError

from wavegms.errors import InputError, first_line


def find_items(stage: str) -> list[str]:
    """The items of a stage that DVC would run, such as train@busi-wave_gms-2333.

    All that they depend on must be up to date: jobs do not bring it up to date themselves, as
    several would make the same at the same time.
    """
    try:
        with Repo() as repo:
            every = [found.addressing for found in repo.index.stages]
            items = [name for name in every if name.startswith(f"{stage}@")]
            changes = repo.status(targets=[stage], with_deps=True) if items else {}
    except RWLockFileCorruptedError as error:
        raise InputError(
            "a job that was killed left .dvc/tmp/rwlock broken: make sure that nothing of DVC runs "
            "in this project, delete that file, and give the same command again"
        ) from error
    except DvcException as error:
        raise InputError(f"DVC cannot tell what is to be done: {first_line(error)}") from error
    if not items:
        raise InputError(
            f"{stage} has no items in dvc.yaml, by what params.yaml lists: choose among "
            f"{', '.join(_stages_of(name for name in every if '@' in name))}; `dvc repro` runs a "
            "stage without a matrix"
        )
    # `check` is never up to date, but by its outputs, those after it may be
    changed = {name for name, what in changes.items() if what != ["always changed"]}
    stale = " ".join(_stages_of(name for name in every if name in changed - set(items)))
    if stale:
        raise InputError(f"{stage} needs what is not up to date: run `dvc repro {stale}` first")
    return [name for name in items if name in changes]


def _stages_of(items: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(item.split("@")[0] for item in items))
