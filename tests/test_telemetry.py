"""Libraries that tell their makers who uses them, native code included, which Python cannot see."""

import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import nbformat
import pytest
from copies import ROOT, environment

SWITCHES = (
    *("DO_NOT_TRACK", "DVC_NO_ANALYTICS", "HF_HUB_DISABLE_TELEMETRY"),
    *("ITERATIVE_DO_NOT_TRACK", "ORT_DISABLE_TELEMETRY"),
)
# What places for files a program has besides its home.
_PLACES = ("XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME", "MPLCONFIGDIR", "HF_HOME")
# What tells ONNX Runtime that nobody works here, so that it keeps silent whatever its switch says.
_BUILD_MACHINES = (
    *("APPVEYOR", "BITBUCKET_BUILD_NUMBER", "BUILDKITE", "CI", "CIRCLECI", "CODEBUILD_BUILD_ID"),
    *("GITHUB_ACTIONS", "GITLAB_CI", "JENKINS_URL", "TEAMCITY_VERSION", "TF_BUILD", "TRAVIS"),
)
# Longer than ONNX Runtime waits before it speaks: 45 seconds.
STAY = 60

OPEN = """
import sys
from PIL import Image
from wavegms import WaveGMSPipeline
pipeline = WaveGMSPipeline.from_pretrained(sys.argv[1])
assert pipeline(Image.new("L", (40, 30), 90)).masks[0].shape == (30, 40)
pipeline.save_pretrained("again")
"""


@pytest.fixture
def at_home(tmp_path):
    """Runs a command as one who has never run anything, `at_home.home` being that one's folder."""

    def start(*command, **variables):
        unset = {*SWITCHES, *_PLACES, *_BUILD_MACHINES} - set(variables)
        here = environment(ROOT) | {"HOME": str(start.home)} | variables
        done = subprocess.run(
            command,
            cwd=tmp_path,
            env={name: value for name, value in here.items() if name not in unset},
            capture_output=True,
            encoding="utf-8",
        )
        assert done.returncode == 0, done.stderr[-4000:]
        return done.stdout

    start.home = tmp_path / "home"
    start.home.mkdir()
    start.files = lambda: {
        path.relative_to(start.home).as_posix() for path in start.home.rglob("*") if path.is_file()
    }
    return start


@pytest.fixture(scope="module")
def saved(pipeline, tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    pipeline.save_pretrained(folder)
    return str(folder)


def test_a_model_is_opened_without_onnx_runtime_and_leaves_no_file(at_home, saved):
    program = f"{OPEN}\nprint('onnxruntime' in sys.modules)"
    assert at_home(sys.executable, "-c", program, saved) == "False\n"
    assert at_home.files() == set()


def test_onnx_runtime_as_it_comes_would_leave_files(at_home):
    """Without which the tests above show nothing; if it fails, the library has mended its ways."""
    at_home(sys.executable, "-c", "import onnxruntime")
    assert any(".onnxruntime/" in name for name in at_home.files())


def test_the_switches_are_set_before_anything_else_and_for_children(at_home):
    program = (
        "import wavegms, subprocess, sys\n"
        "heavy = {'torch', 'huggingface_hub', 'dvc', 'diffusers'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
        "subprocess.run(['env'], check=True)"
    )
    said = at_home(sys.executable, "-c", program).splitlines()
    assert {f"{name}=1" for name in SWITCHES} <= set(said)


def test_libraries_heed_them(at_home):
    program = (
        "import wavegms, huggingface_hub.constants as hub\n"
        "from dvc.analytics import is_enabled\n"
        "print(hub.HF_HUB_DISABLE_TELEMETRY, is_enabled())"
    )
    assert at_home(sys.executable, "-c", program) == "True False\n"
    assert at_home(sys.executable, "-c", program.replace("wavegms, ", "")) == "False True\n"


def test_who_sets_one_keeps_it(at_home):
    program = "import wavegms, os; print(os.environ['ORT_DISABLE_TELEMETRY'])"
    assert at_home(sys.executable, "-c", program, ORT_DISABLE_TELEMETRY="0") == "0\n"


def test_the_notebook_for_looking_opens_and_leaves_the_files_that_are_named(
    at_home, small_project, tmp_path
):
    """docs/trust.md names them."""
    at_home(
        *(sys.executable, "-c"),
        "import os, sys; os.chdir(sys.argv[1]); from wavegms.__main__ import main\n"
        "sys.exit(main(['run', 'notebooks/09_explore.ipynb', sys.argv[2]]))",
        *(str(small_project), str(tmp_path / "explore.ipynb")),
    )
    last = nbformat.read(tmp_path / "explore.ipynb", as_version=4).cells[-1]
    assert "application/vnd.jupyter.widget-view+json" in last.outputs[0].data
    text = (ROOT / "docs/trust.md").read_text()
    assert at_home.files()
    for name in at_home.files():
        assert name.startswith((".cache/matplotlib/", ".ipython/")), name
    assert "~/.cache/matplotlib" in text and "~/.ipython" in text


def test_jupyterlab_asks_for_no_news():
    text = (ROOT / "Makefile").read_text()
    (line,) = [line for line in text.splitlines() if "jupyter lab" in line]
    assert "--LabApp.news_url=None" in line
    assert "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate" in line


def outward(trace):
    """The lines of a strace that lead to another machine, name servers included."""
    calls = ("connect(", "sendto(", "sendmsg(", "sendmmsg(")
    near = ('inet_addr("127.', 'inet_pton(AF_INET6, "::1"')
    return [
        line
        for line in trace.read_text().splitlines()
        if any(f" {call}" in line for call in calls)
        and "sa_family=AF_INET" in line
        and not any(address in line for address in near)
    ]


@pytest.mark.slow
def test_an_onnx_file_leaves_no_file_and_no_call_of_the_system_leads_out(at_home, saved, tmp_path):
    """Beside onnxruntime as it comes, which does call: without it this shows nothing."""
    look = ("strace", "-f", "-qq", "-e", "trace=%network", "-o") if shutil.which("strace") else ()

    def start(name, program, *arguments):
        (tmp_path / name).mkdir()
        traced = (*look, str(tmp_path / name / "trace")) if look else ()
        program += f"\nimport time; time.sleep({STAY if look else 0})"
        home = tmp_path / name / "home"
        home.mkdir()
        at_home(*traced, sys.executable, "-c", program, *arguments, HOME=str(home))
        return [path for path in home.rglob("*") if path.is_file()]

    with ThreadPoolExecutor(2) as pool:
        plain = pool.submit(start, "plain", "import onnxruntime")
        ours = pool.submit(start, "ours", f"{OPEN}\npipeline.export_onnx('x.onnx')", saved)
    assert ours.result() == [] and plain.result() != []
    if not look:
        pytest.skip("strace is not installed: where calls lead was not looked at")
    assert outward(tmp_path / "ours/trace") == [] and outward(tmp_path / "plain/trace") != []
