"""Running the notebooks: as pipeline stages by papermill, and anew for the copies in git."""

import json
import os
import re
import signal
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import nbformat
import papermill
import psutil
from ipykernel.kernelspec import get_kernel_dict
from jupyter_client import AsyncKernelManager
from jupyter_client.kernelspec import KernelSpec
from nbclient import NotebookClient
from nbclient.exceptions import DeadKernelError
from nbformat import NotebookNode
from papermill.exceptions import PapermillExecutionError

from wavegms.errors import InputError, Stopped, refused_by_the_system
from wavegms.files import discard, named, write_text
from wavegms.project import KEEP_MEMORY, PACKAGE, is_first_process

# A kernel warns that its channels are not encrypted; they do not leave this machine.
_QUIET_KERNEL = ["--log-level=ERROR"]

_WIDGET = "application/vnd.jupyter.widget-view+json"

_COLOURS = re.compile(r"\x1b\[[0-9;]*m")


class _ThisPython(AsyncKernelManager):
    """A kernel of this interpreter, whatever others have put where Jupyter looks for kernels."""

    @property
    def kernel_spec(self) -> KernelSpec:
        """What a `kernel.json` would say."""
        return KernelSpec(**get_kernel_dict())


def _prepare_kernels() -> None:
    """What kernels inherit; they run in another folder and must find the same copy of the code."""
    os.environ |= KEEP_MEMORY | os.environ
    paths = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    if PACKAGE.parent.name != "site-packages" and str(PACKAGE.parent) not in paths:
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(PACKAGE.parent), *paths]))


def run_notebook(notebook: Path, output: Path, values: Mapping[str, Any]) -> None:
    """Runs one notebook as a stage of the pipeline, in its own folder.

    What its kernel writes to stderr (the progress bars) appears here as it comes. The executed
    notebook is written only when it ran to the end, and of several processes that `accelerate
    launch` started by the first alone. Its metadata hold, as `wavegms`, which code and libraries
    ran: the kernel writes it down, see `run_record`.

    The first Ctrl-C interrupts the cell that runs, which may save what it has and say in a
    `Stopped` how to go on; the second one ends all at once. An `InputError` of a cell is raised
    here, too; any other error's traceback goes to stderr.
    """
    _prepare_kernels()
    output.parent.mkdir(parents=True, exist_ok=True)
    # each of several processes has one of its own
    partial = output.with_name(f".{output.stem}.{os.environ.get('RANK', '0')}.partial.ipynb")
    note = partial.with_suffix(".json").absolute()
    record = {}

    def take_record(cell, cell_index):
        # the kernel wrote it before it took the first cell
        if not record:
            record.update(_read_record(note))

    try:
        with _ctrl_c_interrupts_the_cell(), named(partial, output):
            executed = papermill.execute_notebook(
                notebook,
                partial,
                parameters=dict(values),
                # of a new notebook, which does not say them itself yet
                kernel_name="python3",
                language="python",
                cwd=notebook.parent,
                progress_bar=False,
                stderr_file=sys.stderr,
                kernel_manager_class=_ThisPython,
                on_cell_execute=take_record,
                extra_arguments=[
                    *_QUIET_KERNEL,
                    "--IPKernelApp.exec_lines=from wavegms.project import note_run; "
                    f"note_run({str(note)!r}, {str(Path.cwd())!r}); del note_run",
                ],
            )
        for cell in executed.cells:
            _keep_last_state_of_progress_bars(cell)
        executed.metadata["wavegms"] = record
        if is_first_process():
            write_text(output, nbformat.writes(executed) + "\n")
    except PapermillExecutionError as error:
        for kind in (InputError, Stopped, KeyboardInterrupt):
            if error.ename == kind.__name__:
                raise kind(error.evalue) from None
        if refusal := refused_by_the_system(error.evalue):
            raise refusal from None
        print(_COLOURS.sub("", "\n".join(error.traceback)), file=sys.stderr)
        raise InputError(
            f"{notebook} failed with {error.ename} (traceback above): "
            "this looks like a defect of the code, please report it"
        ) from None
    except DeadKernelError:
        raise InputError(
            f"the process that ran {notebook} was killed, by someone or by the system when memory "
            "ran out (then lower training.batch_size or image_size): the same command runs it "
            "again, and a training goes on where it was saved"
        ) from None
    finally:
        discard(partial)
        discard(note)


def _read_record(note: Path) -> dict[str, Any]:
    """What the kernel says of itself, if it runs the code that this process runs."""
    # none was written where the other package has no such function
    record = json.loads(note.read_text(encoding="utf-8")) if note.is_file() else {}
    if record.pop("package", None) != str(PACKAGE):
        raise InputError(
            f"the notebook's kernel finds another package wavegms than {PACKAGE}: take away what "
            "leads it there at its start, such as a file in ~/.ipython/profile_default/startup"
        )
    return record


@contextmanager
def _ctrl_c_interrupts_the_cell() -> Iterator[None]:
    """A kernel has a session of its own, so the terminal's Ctrl-C does not reach it."""

    def forward(number, frame):
        signal.signal(signal.SIGINT, signal.default_int_handler)
        for kernel in psutil.Process().children():
            kernel.send_signal(signal.SIGINT)

    usual = signal.signal(signal.SIGINT, forward)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, usual)


def refresh_notebook(notebook: Path) -> None:
    """Runs a notebook with its own parameters and stores its outputs in place, for git.

    Only what another run gives again is stored: no progress bars, no execution times. The notebook
    stays as it is if a cell fails.
    """
    _prepare_kernels()
    node = nbformat.read(notebook, as_version=4)
    NotebookClient(
        node,
        timeout=None,
        resources={"metadata": {"path": notebook.parent}},
        kernel_manager_class=_ThisPython,
        extra_arguments=_QUIET_KERNEL,
    ).execute()
    for cell in node.cells:
        cell.metadata.pop("execution", None)
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if _is_given_again(output)]
    node.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    write_text(notebook, nbformat.writes(node) + "\n")


def _is_given_again(output: NotebookNode) -> bool:
    """Whether another run gives an output again: bars have times, and widgets a random id."""
    return output.get("name") != "stderr" and _WIDGET not in output.get("data", {})


def _keep_last_state_of_progress_bars(cell: NotebookNode) -> None:
    """A terminal overwrites a line at each carriage return; a stored notebook piles them up.

    Each state of a bar arrives as an output of its own, 138 of one training.
    """
    kept = []
    for output in cell.get("outputs", []):
        if kept and "name" in output and output.get("name") == kept[-1].get("name"):
            kept[-1].text += output.text
        else:
            kept.append(output)
    for output in kept:
        if output.output_type == "stream":
            output.text = re.sub(r"[^\n]*\r(?!\n)", "", output.text)
    if kept:
        cell.outputs = kept
