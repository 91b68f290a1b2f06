"""What several test files share: settings, real data, a small trained world, and a count."""

import locale
import os
import shutil
import signal
from collections import Counter, defaultdict
from functools import cache
from pathlib import Path

if "PYTEST_XDIST_WORKER" in os.environ:
    # Threads that share a core with another process wait for each other. What a test starts, a
    # kernel or a whole pipeline, keeps to one as well.
    os.environ["OMP_NUM_THREADS"] = "1"
    os.environ["OMP_WAIT_POLICY"] = "passive"  # and those of the test of several sleep meanwhile

import pytest
import torch
from copies import copy_project, make_small_project
from diffusers import AutoencoderTiny
from filelock import FileLock
from hypothesis import settings

from wavegms import LatentMappingModel, MultiResolutionEncoder, WaveGMSPipeline
from wavegms.config import AugmentationParams, AutoencoderTraining, TrainingParams
from wavegms.data.dataset import PreparedDataset
from wavegms.data.prepare import prepare_dataset
from wavegms.models.autoencoder import freeze
from wavegms.phantom.scanner import write_phantoms
from wavegms.training.autoencoder import build_autoencoder, train_autoencoder

# The first example pays for imports and warm-up, and a busy machine is not a failure. As each run
# draws other examples, half of the usual hundred will do.
settings.register_profile("wavegms", deadline=None, max_examples=50)
settings.load_profile("wavegms")

# Networks this small gain nothing from threads, and one thread adds in the same order every time.
torch.set_num_threads(1)

# In the background of a script Ctrl-C is ignored, and would be by all that a test starts.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

NO_AUGMENTATION = {
    "horizontal_flip": 0.0,
    "vertical_flip": 0.0,
    "rotate_90": 0.0,
    "color_jitter": 0.0,
    "shift_scale_rotate": 0.0,
}


# What the running test has withstood so far, by kind.
_withstood = Counter()
SURVIVED = {"inputs": "broken or hostile inputs", "faults": "faults", "kills": "kills"}


@pytest.fixture(scope="session")
def survived():
    """Counts what a test has withstood: `survived("inputs")`, a kind of `SURVIVED`, and how many.

    Called after the assertions; only tests that pass count. The sum over all tests, of all
    processes of pytest-xdist, stands at the end of the run. Of the session's scope, so that
    hypothesis may call it for every example.
    """

    def count(kind: str, number: int = 1) -> None:
        assert kind in SURVIVED
        _withstood[kind] += number

    return count


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item):
    _withstood.clear()
    result = yield
    # These travel in the test's report to the process that prints the summary.
    item.user_properties += [("survived", pair) for pair in _withstood.items()]
    return result


def pytest_terminal_summary(terminalreporter):
    total = Counter()
    for report in terminalreporter.stats.get("passed", []):
        for name, value in report.user_properties:
            if name == "survived":
                kind, number = value
                total[kind] += number
    parts = [f"{total[kind]:,} {title}" for kind, title in SURVIVED.items() if total[kind]]
    if parts:
        terminalreporter.write_line(f"survived: {', '.join(parts)}")


# Side by side with others, what takes longest comes first, so that it is not alone at the end.
FIRST = ("test_end_to_end", "test_small_project", "test_readme", "test_versioning")


@pytest.hookimpl(trylast=True)  # when tests that are not asked for have been taken out
def pytest_collection_modifyitems(items):
    """Files in the order in which they begin; of a file, tests stay as they stand.

    The first that looks at the small project makes it, in minutes; the others come last, so that
    no process waits for it.
    """
    rank = defaultdict(lambda: len(FIRST), {name: place for place, name in enumerate(FIRST)})
    items.sort(key=lambda item: rank[item.path.stem])
    waiting = dict.fromkeys(item.path for item in items if "small_project" in item.fixturenames)
    last = list(waiting)[1:]
    items.sort(key=lambda item: item.path in last)


@pytest.fixture(autouse=True)
def kept_locale():
    """Some library sets the C locale for the whole process, where files are read as ASCII."""
    before = locale.setlocale(locale.LC_ALL)
    yield
    locale.setlocale(locale.LC_ALL, before)


@pytest.fixture(autouse=True)
def seeded():
    """A test that draws random numbers draws the same ones every time."""
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def real_data():
    """The folder of real images and weights."""
    folder = os.environ.get("WAVEGMS_REAL_DATA")
    if not folder:
        pytest.skip("WAVEGMS_REAL_DATA is not set")
    return Path(folder)


@pytest.fixture(scope="session")
def made_once(request, tmp_path_factory):
    """A maker of folders that all processes of pytest-xdist share: the first to need one fills it.

    `made_once(name, fill)` calls `fill(folder)` with an empty folder, or waits for who does.
    """
    base = tmp_path_factory.getbasetemp()
    if hasattr(request.config, "workerinput"):
        base = base.parent

    def make(name, fill):
        folder, filled = base / name, base / f"{name}.filled"
        with FileLock(base / f"{name}.lock"):
            if not filled.exists():
                shutil.rmtree(folder, ignore_errors=True)  # of a failure in another process
                folder.mkdir()
                fill(folder)
                filled.touch()
        return folder

    return make


@pytest.fixture(scope="session")
def small_project(made_once):
    """A copy of this repository in which all stages of dvc.yaml have run once, at 32 x 32.

    For looking at; who changes something takes a copy, see `small_copy`.
    """

    def fill(folder):
        make_small_project(folder / "wave-gms")

    return made_once("small", fill) / "wave-gms"


@pytest.fixture(scope="module")
def small_copy(small_project, tmp_path_factory):
    """The small project as a repository of a test file's own."""
    root = tmp_path_factory.mktemp("copy") / "wave-gms"
    copy_project(small_project, root)
    return root


@pytest.fixture(scope="module")
def read_once():
    """No test changes a model for good, so each is read from the disk by the first that asks."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(WaveGMSPipeline, "from_pretrained", cache(WaveGMSPipeline.from_pretrained))
        yield


@pytest.fixture(scope="session")
def prepared(made_once):
    """Eight simulated images at 32 x 32: four to train, two to validate, two to test."""

    def fill(root):
        write_phantoms("phantom_a", root / "raw", count=8, seed=11)
        report = prepare_dataset(
            "phantom_a",
            root / "raw",
            root / "prepared",
            image_size=32,
            split="random",
            split_folder=root,
            test_fraction=0.25,
            validation_fraction=0.25,
            seed=3,
        )
        assert report.counts == {"train": 4, "val": 2, "test": 2}

    return made_once("phantoms", fill) / "prepared"


@pytest.fixture(scope="session")
def train_set(prepared):
    return PreparedDataset(prepared, "train")


@pytest.fixture(scope="session")
def validation_set(prepared):
    return PreparedDataset(prepared, "val")


@pytest.fixture(scope="session")
def trained_vae(train_set, made_once):
    """A small autoencoder that gives the four training masks back; a few seconds."""
    settings = AutoencoderTraining(
        channels=16, blocks=1, steps=240, batch_size=4, learning_rate=5e-3
    )

    def fill(folder):
        train_autoencoder(train_set, settings, seed=0).save_pretrained(folder)

    return freeze(AutoencoderTiny.from_pretrained(made_once("vae", fill)))


@pytest.fixture(scope="session")
def pipeline():
    """Untrained networks at 32 x 32, whose masks have contrast about mid grey."""
    torch.manual_seed(0)
    vae = freeze(build_autoencoder(16, 1))
    vae.decoder.layers[-1].weight.mul_(4)
    vae.decoder.layers[-1].bias.fill_(0.5)
    pipe = WaveGMSPipeline(MultiResolutionEncoder(), LatentMappingModel(), vae, image_size=32)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="session")
def untrained():
    """A pipeline at 32 x 32 as it begins, for what holds with any weights; not to be changed."""
    torch.manual_seed(0)
    networks = MultiResolutionEncoder(), LatentMappingModel(), freeze(build_autoencoder(16, 1))
    return WaveGMSPipeline(*networks, image_size=32)


@pytest.fixture
def small_vae():
    """An untrained autoencoder, for whatever holds with any weights."""
    torch.manual_seed(0)
    return freeze(build_autoencoder(16, 1))


@pytest.fixture(scope="session")
def training_params():
    """A maker of training settings without augmentation; keywords change single ones."""

    def make(**changes) -> TrainingParams:
        values = {
            "epochs": 1,
            "epochs_by_dataset": {},
            "batch_size": 2,
            "learning_rate": 1e-3,
            "weight_decay": 0.01,
            "warmup_epochs": 0,
            "selection": "best_on_validation",
            "precision": "auto",
            "compile": False,
            "augmentation": AugmentationParams(**NO_AUGMENTATION),
        }
        return TrainingParams(**values | changes)

    return make
