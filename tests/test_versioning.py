"""What runs again after a change, and what a clone gets back from a remote.

The small project, with a folder of one's own images beside its simulated scanner.
"""

import csv
import json
from io import StringIO

import pytest
import yaml
from copies import ROOT, SMALL_SAMPLE, ask, commit, run, started, tiny_profile
from layouts import picture, save, tree, write_plain

from wavegms import WaveGMSPipeline
from wavegms.training.state import _CODE

pytestmark = pytest.mark.slow

DATASETS = ["phantom_a", "own"]
TINY = SMALL_SAMPLE | {"datasets": DATASETS}
UP_TO_SCORES = ["check", "prepare", "autoencoder", "train", "evaluate", "data/raw/own.dvc"]
TRAINED, EVALUATED = "train@own-wave_gms-2333", "evaluate@own-wave_gms-2333"
SCORES = "results/scores/own/wave_gms/seed_2333/own.json"


@pytest.fixture(scope="module")
def committed(small_copy):
    """Evaluated once, committed, and pushed to a remote in a folder."""
    root = small_copy
    (root / "conf/profile/tiny.yaml").write_text(tiny_profile(**TINY))
    write_plain(root / "data/raw/own", count=16)
    run(root, "dvc", "add", "data/raw/own")
    output = run(root, "dvc", "exp", "run", "-S", "profile=tiny", "evaluate")
    own = [one for stage in ("prepare", "autoencoder") for one in of_both(stage)[1:]]
    assert started(output) == ["check", *own, TRAINED, EVALUATED]
    run(root, "dvc", "remote", "add", "--default", "store", str(root.parent / "store"))
    run(root, "dvc", "push")
    commit(root, "evaluated")
    return root


def of_both(stage):
    run_of = "-wave_gms-2333" if stage in ("train", "evaluate") else ""
    return [f"{stage}@{dataset}{run_of}" for dataset in DATASETS]


@pytest.fixture
def project(committed):
    """As it was committed; what a test leaves is taken away."""
    yield committed
    run(committed, "git", "checkout", "-q", ".")
    run(committed, "dvc", "checkout", "-q", "--allow-missing")


def changed(project, *targets):
    return list(json.loads(ask(project, "dvc", "status", "--json", *targets)))


def test_a_clone_gets_data_models_and_scores_back_without_training(committed, tmp_path):
    run(tmp_path, "git", "clone", "-q", str(committed), "clone")
    clone = tmp_path / "clone"
    run(clone, "dvc", "pull", "--allow-missing")
    for place in ("data", "models", "reports", "results"):
        assert tree(clone / place) == tree(committed / place)
    assert changed(clone, *UP_TO_SCORES) == ["check"]
    assert WaveGMSPipeline.from_pretrained(clone / "models/own/wave_gms").config.image_size == 32
    assert started(run(clone, "dvc", "repro", "evaluate")) == ["check"]
    assert run(clone, "git", "status", "--porcelain") == ""


def test_a_changed_image_runs_again_what_depends_on_it(project):
    save(picture(99), project / "data/raw/own/images/scan 0.png")
    output = run(project, "dvc", "repro", "evaluate")
    assert started(output) == ["check", "prepare@own", "autoencoder@own", TRAINED, EVALUATED]
    assert "data/raw/own.dvc" in run(project, "git", "status", "--porcelain")


def test_a_changed_parameter_runs_again_what_depends_on_it(project):
    change(project, "evaluation", {"threshold": 0.3, "bootstrap_resamples": 100})
    assert set(changed(project, *UP_TO_SCORES)) == {"check", *of_both("evaluate")}


def test_another_image_size_starts_at_the_preparation(project):
    change(project, "image_size", 40)
    assert changed(project, *UP_TO_SCORES) == ["check", *of_both("prepare")]


def change(project, name, value):
    path = project / "params.yaml"
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | {name: value}))


def test_an_edited_text_of_a_notebook_runs_its_own_stage_again(project):
    """The stages after it do not, since it writes the same bytes again."""
    notebook = project / "notebooks/01_prepare.ipynb"
    original = notebook.read_text()
    assert original.count("Reads a dataset") == 1
    notebook.write_text(original.replace("Reads a dataset", "Indeed, reads a dataset"))
    assert started(run(project, "dvc", "repro", EVALUATED)) == ["check", "prepare@own"]


def test_an_experiment_is_compared_with_what_is_committed(project):
    """In a workspace of its own, where DVC puts the images."""
    slower = ["-S", "profile=tiny", "-S", "training.learning_rate=0.0001", EVALUATED]
    output = run(project, "dvc", "exp", "run", "--temp", "--name", "slower", *slower)
    assert started(output) == ["check", TRAINED, EVALUATED]
    assert run(project, "git", "status", "--porcelain") == ""

    means = {}
    for row in csv.DictReader(StringIO(ask(project, "dvc", "exp", "show", "--csv"))):
        rate, mean = row["training.learning_rate"], row[f"{SCORES}:dsc.mean"]
        means[row["Experiment"] or row["rev"]] = (float(rate), float(mean))
    assert means["workspace"][0] == 0.002 and means["slower"][0] == 0.0001

    compared = ["diff", "--json", "HEAD", "slower"]
    changes = json.loads(ask(project, "dvc", "metrics", *compared))
    assert list(changes) == [SCORES]
    assert changes[SCORES]["dsc.mean"]["old"] == means["workspace"][1]
    assert changes[SCORES]["dsc.mean"]["new"] == means["slower"][1] != means["workspace"][1]

    plots = json.loads(ask(project, "dvc", "plots", *compared))["data"]
    for curve in ("loss", "selection_dice"):
        for dataset, same in (("own", False), ("phantom_a", True)):
            file = f"reports/training/{dataset}/wave_gms/seed_2333/plots/metrics/{curve}.tsv"
            points = plots[file][0]["content"]["data"]["values"]
            assert [(point["rev"], point["step"]) for point in points] == [
                *(("HEAD", "0"), ("HEAD", "1"), ("slower", "0"), ("slower", "1"))
            ]
            values = [point[curve] for point in points]
            assert (values[:2] == values[2:]) == same


def test_the_stage_that_trains_names_the_code_that_weights_follow_from():
    deps = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]["train"]["deps"]
    assert {f"wavegms/{name}" for name in _CODE} <= set(deps)
