"""Running notebooks: parameters go in, progress shows, one sentence comes out of an error."""

import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

import nbformat
import pytest
import yaml

import wavegms
from wavegms import InputError
from wavegms.project import enter_project, run_record
from wavegms.run.notebooks import refresh_notebook, run_notebook
from wavegms.run.parameters import parameters_of_stage, read_parameters

ROOT = Path(__file__).parents[1]


def notebook(path, *cells, parameters="dataset = 'a'\nseed = 1\nsplit = {}"):
    """A notebook with a parameters cell and further cells of code; it does not name its kernel."""
    first = nbformat.v4.new_code_cell(parameters)
    first.metadata.tags = ["parameters"]
    others = [nbformat.v4.new_code_cell(source) for source in cells]
    path.parent.mkdir(exist_ok=True)
    whole = nbformat.v4.new_notebook(cells=[first, *others])
    nbformat.write(whole, path)
    return path


@pytest.fixture
def project(tmp_path, monkeypatch):
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params | {"seed": 5}))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(path, **arguments):
    values = parameters_of_stage(path, arguments, Path("params.yaml"))
    run_notebook(path, Path("reports/out.ipynb"), values)


def texts(path):
    cells = nbformat.read(path, as_version=4).cells
    return "".join(output.get("text", "") for cell in cells for output in cell.get("outputs", []))


def test_parameters_come_from_the_file_and_the_arguments(project):
    path = notebook(project / "notebooks/n.ipynb", "print(dataset, seed, split['method'])")
    run(path, dataset="b")
    assert texts("reports/out.ipynb") == "b 5 random\n"


def test_the_report_says_which_code_ran(project):
    run(notebook(project / "notebooks/n.ipynb", "pass"))
    record = nbformat.read("reports/out.ipynb", as_version=4).metadata.wavegms
    assert record == run_record()
    assert record.versions.torch == version("torch") and record.revision is None


def kernel_of_others(folder, **entries):
    """A kernel named as ours, with an environment in which another copy of the package is found."""
    other = folder / "other/wavegms"
    other.mkdir(parents=True)
    (other / "__init__.py").write_text("other = True\n")
    kernel = folder / "jupyter/kernels/python3"
    kernel.mkdir(parents=True)
    argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    spec = {"argv": argv, "display_name": "x", "language": "python"}
    spec |= {"env": {"PYTHONPATH": str(other.parent)}} | entries
    (kernel / "kernel.json").write_text(json.dumps(spec))
    return folder / "jupyter"


# where Jupyter looks, first to last, by the variable that says so
@pytest.mark.parametrize("variable", ["JUPYTER_PATH", "JUPYTER_DATA_DIR"])
@pytest.mark.parametrize("entries", [{}, {"argv": ["false"]}], ids=["other code", "no python"])
def test_a_kernel_of_others_is_not_taken(project, monkeypatch, variable, entries):
    monkeypatch.setenv(variable, str(kernel_of_others(project, **entries)))
    cell = "import sys, wavegms\nprint(hasattr(wavegms, 'other'), sys.executable, wavegms.__file__)"
    path = notebook(project / "notebooks/n.ipynb", cell)
    run(path)
    expected = f"False {sys.executable} {wavegms.__file__}\n"
    assert texts("reports/out.ipynb") == expected
    refresh_notebook(path)
    assert texts(path) == expected


def test_the_kernel_finds_the_copy_that_was_called(project):
    """A project started in its folder, while the package that is installed is another one's."""
    copy = project / "copy"
    shutil.copytree(
        ROOT / "wavegms", copy / "wavegms", ignore=shutil.ignore_patterns("__pycache__")
    )
    shutil.copy2(project / "params.yaml", copy)
    cell = "import wavegms; print(wavegms.__file__)"
    notebook(copy / "notebooks/n.ipynb", cell)
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    command = [sys.executable, "-m", "wavegms", "run", "notebooks/n.ipynb", "reports/out.ipynb"]
    subprocess.run(command, cwd=copy, env=environment, check=True)
    assert texts(copy / "reports/out.ipynb") == f"{copy / 'wavegms/__init__.py'}\n"


def test_a_kernel_led_to_other_code_is_refused_at_once(project, monkeypatch):
    """By a file that IPython runs at each start."""
    kernel_of_others(project)
    startup = project / "ipython/profile_default/startup"
    startup.mkdir(parents=True)
    (startup / "00.py").write_text(f"import sys; sys.path.insert(0, {str(project / 'other')!r})\n")
    monkeypatch.setenv("IPYTHONDIR", str(project / "ipython"))
    path = notebook(project / "notebooks/n.ipynb", "open('../worked', 'w').close()")
    with pytest.raises(InputError, match=r"kernel finds another package wavegms than .*startup"):
        run(path)
    assert not (project / "worked").exists() and list(Path("reports").iterdir()) == []


def test_the_kernel_says_itself_which_code_ran(project, monkeypatch):
    """What this process says of itself is not asked."""
    monkeypatch.setattr("wavegms.project.run_record", lambda project: {"revision": "of the parent"})
    run(notebook(project / "notebooks/n.ipynb", "pass"))
    record = nbformat.read("reports/out.ipynb", as_version=4).metadata.wavegms
    assert set(record) == {"revision", "changed", "versions", "python"}
    assert record.revision is None and record.python == platform.python_version()


@pytest.mark.parametrize(("rank", "written"), [("0", True), ("1", False)])
def test_of_several_processes_the_first_writes(project, monkeypatch, rank, written):
    """accelerate numbers them; every one runs the notebook, whose kernel learns its number too."""
    monkeypatch.setenv("RANK", rank)
    path = notebook(
        project / "notebooks/n.ipynb",
        "import os; open(f\"../ran_{os.environ['RANK']}\", 'w').close()",
    )
    run(path)
    assert (project / f"ran_{rank}").is_file()
    assert (project / "reports/out.ipynb").is_file() == written
    assert [file.name for file in (project / "reports").iterdir()] == ["out.ipynb"] * written


def test_it_runs_in_its_own_folder(project):
    path = notebook(
        project / "notebooks/n.ipynb", "import os; print(os.path.basename(os.getcwd()))"
    )
    run(path)
    assert texts("reports/out.ipynb") == "notebooks\n"


def test_a_number_given_as_text_becomes_a_number(project):
    path = notebook(project / "notebooks/n.ipynb", "print(seed + 1)")
    run(path, seed="41")
    assert texts("reports/out.ipynb") == "42\n"


def test_a_list_given_as_text_becomes_a_list(project):
    path = notebook(project / "notebooks/n.ipynb", "print(ids)", parameters="ids = ['x']")
    run(path, ids="['000130', b]")
    assert texts("reports/out.ipynb") == "['000130', 'b']\n"
    for parameters in ("ids = ['x']", "ids = []"):
        notebook(path, parameters=parameters)
        values = parameters_of_stage(path, {"ids": "[000130, 1e5, no]"}, Path("params.yaml"))
        assert values["ids"] == ["000130", "1e5", "no"]
    notebook(path, parameters="ids = [1]")
    assert parameters_of_stage(path, {"ids": "[1, 2]"}, Path("params.yaml"))["ids"] == [1, 2]
    notebook(path, parameters="ids = ['x']")
    for text in ("130", "2024-13-45", "[1"):
        with pytest.raises(InputError, match=f"^-p ids {re.escape(text)}: expected a list"):
            run(path, ids=text)


def test_progress_is_shown_as_it_comes_and_stored_once(project, capfd):
    bar = (
        "import sys\n"
        "for n in range(3): print(f'\\rstep {n}', end='', file=sys.stderr, flush=True)\n"
        "print(file=sys.stderr)"
    )
    run(notebook(project / "notebooks/n.ipynb", bar))
    assert "step 0" in capfd.readouterr().err
    cells = nbformat.read("reports/out.ipynb", as_version=4).cells
    outputs = [output for cell in cells for output in cell.get("outputs", [])]
    assert [output.text for output in outputs] == ["step 2\n"]


def test_an_input_error_is_one_sentence(project):
    cell = "from wavegms import InputError; raise InputError('the file x is broken: replace it')"
    path = notebook(project / "notebooks/n.ipynb", cell)
    with pytest.raises(InputError, match=r"^the file x is broken: replace it$"):
        run(path)
    assert list(Path("reports").iterdir()) == []


def test_a_failed_run_leaves_the_earlier_report(project):
    path = notebook(project / "notebooks/n.ipynb", "print('good')")
    run(path)
    notebook(path, "1 / 0")
    with pytest.raises(InputError, match="ZeroDivisionError"):
        run(path)
    assert texts("reports/out.ipynb") == "good\n"
    assert [path.name for path in Path("reports").iterdir()] == ["out.ipynb"]


def test_a_notebook_without_parameters_is_refused(project):
    nbformat.write(nbformat.v4.new_notebook(), "n.ipynb")
    with pytest.raises(InputError, match=r"n\.ipynb has no cell tagged parameters"):
        read_parameters(Path("n.ipynb"))
    with pytest.raises(InputError, match=r"none\.ipynb does not exist"):
        read_parameters(Path("none.ipynb"))


def test_refresh_stores_what_another_run_gives_again(project):
    cell = "import sys; print('kept'); sys.stderr.write('passing')"
    path = notebook(project / "notebooks/n.ipynb", cell)
    refresh_notebook(path)
    assert texts(path) == "kept\n"
    cells = nbformat.read(path, as_version=4).cells
    assert [cell.execution_count for cell in cells] == [1, 2]
    assert not any("execution" in cell.metadata for cell in cells)


def test_refresh_leaves_a_notebook_that_fails_as_it_was(project):
    path = notebook(project / "notebooks/n.ipynb", "1 / 0")
    before = path.read_bytes()
    with pytest.raises(Exception, match="ZeroDivisionError"):
        refresh_notebook(path)
    assert path.read_bytes() == before


def test_enter_project_finds_params_yaml_above(project):
    below = project / "notebooks/deeper"
    below.mkdir(parents=True)
    os.chdir(below)
    assert enter_project() == project and Path.cwd() == project
    assert enter_project() == project


def test_enter_project_outside_says_so(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"no params\.yaml in"):
        enter_project()


@pytest.fixture
def started(project):
    """A maker of `python -m wavegms run` as a process, with a cell that waits for a signal."""

    def start(cell):
        path = notebook(
            project / "notebooks/n.ipynb",
            "from pathlib import Path; Path('../started').touch()\n" + cell,
        )
        command = [sys.executable, "-m", "wavegms", "run", str(path), "reports/out.ipynb"]
        process = subprocess.Popen(command, stderr=subprocess.PIPE, encoding="utf-8")
        while not (project / "started").exists():
            assert process.poll() is None
            time.sleep(0.05)
        return process

    return start


def end_of(process):
    said = process.communicate(timeout=60)[1]
    assert not Path("reports/out.ipynb").exists() and list(Path("reports").iterdir()) == []
    return process.returncode, said


SLEEP = "import time\nfor _ in range(600): time.sleep(0.1)"


def test_ctrl_c_ends_a_cell_and_says_so(started):
    process = started(SLEEP)
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    status, said = end_of(process)
    assert status == 130 and said.splitlines()[-1] == "stopped" and "Traceback" not in said


def test_ctrl_c_lets_a_cell_say_what_it_saved(started):
    process = started(
        "from wavegms.errors import Stopped\nimport time\ntry:\n"
        "    for _ in range(600): time.sleep(0.1)\n"
        "except KeyboardInterrupt:\n    raise Stopped('all is saved in x')"
    )
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    status, said = end_of(process)
    # the kernel may remark on an interruption itself
    assert status == 130 and said.splitlines()[-1] == "all is saved in x"
    assert "Traceback" not in said


def test_a_killed_kernel_is_explained(started, survived):
    process = started("import os, signal; os.kill(os.getpid(), signal.SIGKILL)")
    status, said = end_of(process)
    assert status == 1 and "notebooks/n.ipynb was killed" in said and "memory ran out" in said
    assert "Traceback" not in said and said.splitlines()[-1].startswith("error: ")
    survived("kills")
