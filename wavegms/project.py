"""Where the project lies, and who writes into it.

Notebooks name files as seen from the project's folder, wherever they run.
"""

import os
from pathlib import Path

from wavegms.errors import InputError


def enter_project() -> Path:
    """Makes the project's folder the working directory.

    JupyterLab, papermill and nbval start a notebook in its own folder, `notebooks/`. After this
    call, paths are the same as on the command line and in params.yaml. Calling it again does no
    harm.

    Returns:
        The project's folder.

    Raises:
        InputError: neither the working directory nor a folder above it holds params.yaml.
    """
    here = Path.cwd()
    for folder in (here, *here.parents):
        if (folder / "params.yaml").is_file():
            os.chdir(folder)
            return folder
    raise InputError(f"no params.yaml in {here} or above: run this inside the project's folder")


def is_first_process() -> bool:
    """Whether this process is the one that writes files, of those that share a training.

    accelerate and torchrun number the processes that they start, over all machines, in the
    variable RANK, and a notebook's kernel inherits it.
    """
    return os.environ.get("RANK", "0") == "0"
