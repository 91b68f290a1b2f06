"""The guard that forbids the network: what it refuses, what it lets through, and to whom.

`test_end_to_end.py` runs the whole pipeline under it.
"""

import os
import shutil
import subprocess
import sys

import nbformat
import pytest
from copies import ROOT, environment
from no_network.guard import attempts, guarded, processes

# 192.0.2.0/24 and 2001:db8::/32 are for documentation and lead nowhere, nor does `.invalid`.
# What is written down, and the program that tries it, with socket as s.
OUTWARD = [
    ("socket.connect to ('192.0.2.1", "s.socket().connect(('192.0.2.1', 80))"),
    ("socket.getaddrinfo to '2001:db8::1", "s.getaddrinfo('2001:db8::1', 80)"),
    ("socket.getaddrinfo to 'far.inv", "s.create_connection(('far.invalid', 80))"),
    (
        "socket.getaddrinfo to 'far.inv",
        "import urllib.request as u; u.urlopen('http://far.invalid')",
    ),
    ("socket.getaddrinfo to b'far.inv", "s.getaddrinfo(b'far.invalid', 80)"),
    ("socket.gethostbyname to 'far.inv", "s.gethostbyname('far.invalid')"),
    ("socket.gethostbyname to 'far.inv", "s.gethostbyname_ex('far.invalid')"),
    ("socket.gethostbyaddr to '192.0.2.1", "s.gethostbyaddr('192.0.2.1')"),
    ("socket.getnameinfo to ('192.0.2.1", "s.getnameinfo(('192.0.2.1', 80), 0)"),
    ("socket.sendto to ('192", "s.socket(type=s.SOCK_DGRAM).sendto(b'x', ('192.0.2.1', 53))"),
    ("socket.sendmsg to ('192", "s.socket(type=2).sendmsg([b'x'], [], 0, ('192.0.2.1', 53))"),
    ("socket.bind to ('', 0)", "s.socket().bind(('', 0))"),
    ("socket.bind to ('0.0.0.0", "s.socket().bind(('0.0.0.0', 0))"),
    # a child that would not be under guard
    ("subprocess.Popen of ['git'", "import subprocess as p; p.run(['git'], env={'PATH': '/bin'})"),
    ("os.exec of ['env'", "import os; os.execve('/usr/bin/env', ['env'], {})"),
    # one that is
    (
        "socket.connect to ('192.0.2.2",
        "import subprocess as p, sys\n"
        "code = 'import socket; socket.socket().connect((\"192.0.2.2\", 80))'\n"
        "p.run([sys.executable, '-c', code], check=True)",
    ),
    # caught and hushed up
    (
        "socket.connect to ('192.0.2.1",
        "import sys\ntry: s.socket().connect(('192.0.2.1', 80))\n"
        "except OSError as error: sys.exit(str(error))",
    ),
]
INWARD = {
    "loopback": (
        "import socket; s = socket.create_server(('127.0.0.1', 0));"
        "socket.create_connection(s.getsockname())"
    ),
    "by name": (
        "import socket; s = socket.create_server(('localhost', 0));"
        "socket.create_connection(('localhost', s.getsockname()[1]))"
    ),
    "mapped": "import ipaddress, socket; socket.getaddrinfo('::ffff:127.0.0.1', 80)",
    "own name": (
        "import contextlib, socket\n"
        "with contextlib.suppress(OSError): socket.gethostbyname(socket.gethostname())"
    ),
    "a pair of sockets": "import socket; a, b = socket.socketpair(); a.send(b'x')",
    "in the file system": (
        "import socket; s = socket.socket(socket.AF_UNIX); s.bind('s'); s.listen();"
        "socket.socket(socket.AF_UNIX).connect('s')"
    ),
    "asyncio": "import asyncio; asyncio.run(asyncio.start_server(print, '127.0.0.1', 0))",
    "a child": "import subprocess, sys; subprocess.run([sys.executable, '-c', ''], check=True)",
}


@pytest.fixture
def python(tmp_path):
    """Runs a program under guard, in a folder of its own."""

    def start(*arguments, **variables):
        return subprocess.run(
            [sys.executable, *arguments],
            cwd=tmp_path,
            env=guarded(dict(os.environ) | variables, tmp_path / "log"),
            capture_output=True,
            encoding="utf-8",
        )

    return start


@pytest.mark.parametrize(("written", "program"), OUTWARD)
def test_what_leaves_the_machine_is_refused_and_written_down(python, tmp_path, written, program):
    done = python("-c", f"import socket as s; {program}")
    assert done.returncode != 0 and "the test forbids" in done.stderr
    assert attempts(tmp_path / "log").startswith(written)


@pytest.mark.parametrize("what", INWARD)
def test_what_stays_on_the_machine_is_let_through(python, tmp_path, what):
    done = python("-c", INWARD[what])
    assert done.returncode == 0, done.stderr
    assert attempts(tmp_path / "log") == ""
    assert len(processes(tmp_path / "log")) == (2 if what == "a child" else 1)


def test_an_attempt_says_where_in_the_code(python, tmp_path):
    (tmp_path / "culprit.py").write_text(
        "import socket\ndef call_home():\n    socket.gethostbyname('far.invalid')\ncall_home()\n"
    )
    python("culprit.py", "argument")
    said = attempts(tmp_path / "log")
    assert "culprit.py argument\n" in said and "culprit.py:3 call_home\n" in said
    assert "sitecustomize" not in said


def test_a_module_of_the_same_name_is_run_too(python, tmp_path):
    (tmp_path / "site").mkdir()
    (tmp_path / "site/sitecustomize.py").write_text("import builtins; builtins.other = 'ran'\n")
    done = python("-c", "print(other)", PYTHONPATH=str(tmp_path / "site"))
    assert done.stdout == "ran\n"
    assert len(processes(tmp_path / "log")) == 1


def test_programs_on_pythonpath_are_still_found(python, tmp_path):
    (tmp_path / "site").mkdir()
    (tmp_path / "site/mine.py").write_text("name = 'mine'\n")
    assert python("-c", "import mine", PYTHONPATH=str(tmp_path / "site")).returncode == 0


@pytest.fixture
def notebook(tmp_path):
    """A small project whose one notebook runs a cell as a stage of the pipeline, under guard."""
    shutil.copy2(ROOT / "params.yaml", tmp_path)
    parameters = nbformat.v4.new_code_cell("seed = 1", metadata={"tags": ["parameters"]})

    def start(cell):
        cells = [parameters, nbformat.v4.new_code_cell(cell)]
        kernel = {"kernelspec": {"name": "python3", "language": "python", "display_name": ""}}
        hub = {"HF_HUB_OFFLINE": "0", "HF_ENDPOINT": "https://far.invalid"}
        node = nbformat.v4.new_notebook(cells=cells, metadata=kernel)
        nbformat.write(node, tmp_path / "n.ipynb")
        return subprocess.run(
            [sys.executable, "-m", "wavegms", "run", "n.ipynb", "reports/n.ipynb"],
            cwd=tmp_path,
            env=guarded(environment(ROOT), tmp_path / "log") | hub,
            capture_output=True,
            encoding="utf-8",
        )

    return start


def test_a_kernel_needs_nothing_but_this_machine(notebook, tmp_path):
    done = notebook("import wavegms")
    assert done.returncode == 0, done.stderr
    assert attempts(tmp_path / "log") == ""
    under_guard = processes(tmp_path / "log")
    assert any("ipykernel" in command for command in under_guard)
    assert any("wavegms run n.ipynb" in command for command in under_guard)


def test_a_cell_that_calls_out_is_caught(notebook, tmp_path):
    done = notebook("from huggingface_hub import model_info\nmodel_info('x/y')")
    assert done.returncode == 1 and not (tmp_path / "reports/n.ipynb").exists()
    first = attempts(tmp_path / "log").splitlines()[0]
    assert "socket.getaddrinfo to 'far.invalid'" in first and "ipykernel" in first


def test_a_proxy_is_not_the_way_around(tmp_path):
    proxies = {"https_proxy": "http://127.0.0.1:9", "ALL_PROXY": "socks5://127.0.0.1:9"}
    kept = guarded(proxies | {"PATH": "x"}, tmp_path)
    assert kept["PATH"] == "x" and not set(proxies) & set(kept)


@pytest.fixture
def dvc(tmp_path):
    """Runs a stage by DVC under guard, with the project's settings of DVC or with others."""
    for command in (["git", "init", "-q"], ["dvc", "init", "-q"]):
        subprocess.run(command, cwd=tmp_path, env=environment(tmp_path), check=True)
    (tmp_path / "dvc.yaml").write_text("stages: {one: {cmd: echo x > out, outs: [out]}}\n")
    settings = (ROOT / ".dvc/config").read_text()
    # the settings alone, without what wavegms sets in its own process and hands on
    here = environment(tmp_path)
    for name in ("DVC_NO_ANALYTICS", "ITERATIVE_DO_NOT_TRACK", "DO_NOT_TRACK"):
        here.pop(name, None)

    def start(change=lambda text: text):
        (tmp_path / ".dvc/config").write_text(change(settings))
        return subprocess.run(
            ["dvc", "repro"],
            cwd=tmp_path,
            env=guarded(here, tmp_path / "log"),
            capture_output=True,
            encoding="utf-8",
        )

    return start


def test_dvc_sends_nothing_with_the_settings_of_the_project(dvc, tmp_path):
    done = dvc()
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out").exists() and attempts(tmp_path / "log") == ""


def test_dvc_as_it_comes_would_be_caught(dvc, tmp_path):
    """Its statistics are sent by a child that drops the guard."""
    dvc(lambda text: text.replace("analytics = false", "analytics = true"))
    assert "'daemon', 'analytics'" in attempts(tmp_path / "log")
