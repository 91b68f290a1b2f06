"""CONTRIBUTING.md is followed word for word in a copy: its dataset, its network, its notebook."""

import re
import shutil
import sys
from textwrap import indent

import nbformat
import pytest
from copies import ROOT, commit, compose, copy_repository, run, started, tiny_profile

PAGE = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```\w+\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
TINY = tiny_profile(datasets=["clinicdb"], variants=["wave_gms", "segresnet"])
# in tests/, where the writer is
DRAW = """
from pathlib import Path
from layouts import write_clinicdb
write_clinicdb(Path("../data/raw/clinicdb/CVC-ClinicDB"), 20)
"""


def block(start):
    """The one block of the page that begins so."""
    (found,) = [text for text in BLOCKS if text.startswith(start)]
    return found


def line(start):
    """The one line of code in the text that begins so."""
    (found,) = re.findall(rf"`({re.escape(start)}[^`]*)`", PAGE)
    return "    " + found


def insert(path, place, text):
    """Puts text above the one place in a file."""
    content = path.read_text(encoding="utf-8")
    assert content.count(place) == 1, f"{path}: {place}"
    path.write_text(content.replace(place, text + place), encoding="utf-8")


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A copy of the repository with what the page adds."""
    root = tmp_path_factory.mktemp("contributing") / "wave-gms"
    copy_repository(root)
    (root / "dvc.lock").unlink()  # of the sample, whose results are not here
    catalog, layouts = root / "wavegms/data/catalog.py", root / "tests/layouts.py"
    insert(catalog, "_BUS_LAYOUT = ", block("def _read_clinicdb") + "\n\n")
    entry = block("DatasetSpec(").rstrip() + ",\n"
    phantom = '        DatasetSpec(\n            name="phantom_a",'
    insert(catalog, phantom, indent(entry, " " * 8))
    with open(layouts, "a", encoding="utf-8") as file:
        file.write("\n\n" + block("def write_clinicdb"))
    tests = root / "tests/test_catalog.py"
    insert(tests, '    "mine": write_plain,\n', line('"clinicdb": write') + ",\n")
    insert(tests, "    write_ham10000,\n", "    write_clinicdb,\n")

    networks = root / "wavegms/models/mask_network.py"
    insert(networks, "class MaskNetwork(", block("@mask_network") + "\n\n")
    insert(root / "wavegms/variants.py", '    "gms": ', line('"segresnet": Variant') + "\n")
    insert(root / "tests/test_variants.py", '    "unet": 14', line('"segresnet": 1') + ",\n")

    insert(root / "dvc.yaml", "  # One HTML file for others", block("  lesion_size:") + "\n")
    write_notebook(root / "notebooks/11_lesion_size.ipynb")
    (root / "conf/profile/tiny.yaml").write_text(TINY)
    compose(root, "tiny")
    commit(root, "additions")
    run(root / "tests", sys.executable, "-c", DRAW)
    return root


def write_notebook(path):
    parameters = nbformat.v4.new_code_cell(block("dataset = ").rstrip())
    parameters.metadata["tags"] = ["parameters"]
    last = nbformat.v4.new_code_cell(block("large = ").rstrip())
    last.metadata["tags"] = ["nbval-ignore-output"]
    notebook = nbformat.v4.new_notebook(
        cells=[
            nbformat.v4.new_markdown_cell("# Lesion size\nAre small lesions harder?"),
            parameters,
            nbformat.v4.new_code_cell(block("import pandas").rstrip()),
            last,
        ]
    )
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3"}
    nbformat.write(notebook, path)


@pytest.mark.slow
def test_what_the_page_adds_runs_and_is_accepted(project, small_project):
    run(project, sys.executable, "-m", "ruff", "check", ".")
    changed = ["wavegms", "tests/layouts.py", "tests/test_catalog.py", "tests/test_variants.py"]
    run(project, sys.executable, "-m", "ruff", "format", "--check", *changed)
    output = run(project, "dvc", "repro", "evaluate", "lesion_size@clinicdb")
    assert {"lesion_size@clinicdb", "train@clinicdb-segresnet-2333"} <= set(started(output))
    # costs do not follow from what was added, and take a minute
    shutil.copytree(small_project / "results/efficiency", project / "results/efficiency")
    run(project, "dvc", "repro", "--single-item", "results")
    table = (project / "results/tables/segmentation.md").read_text()
    rows = [row for row in table.splitlines() if row.startswith("| CVC-ClinicDB")]
    assert ["SegResNet" in row for row in rows].count(True) == 1
    assert any("Wave-GMS" in row and "32 px, 2 epochs" in row for row in rows)

    # the notebook's own parameters, and the tests, are about the sample
    shutil.copy2(ROOT / "params.yaml", project)
    prepared, scores = project / "data/prepared", project / "results/scores"
    shutil.copytree(prepared / "clinicdb", prepared / "phantom_a")
    (scores / "phantom_a/wave_gms/seed_2333").mkdir(parents=True)
    shutil.copy2(
        scores / "clinicdb/wave_gms/seed_2333/clinicdb.csv",
        scores / "phantom_a/wave_gms/seed_2333/phantom_a.csv",
    )
    notebook = "notebooks/11_lesion_size.ipynb"
    run(project, sys.executable, "-m", "wavegms", "refresh", notebook)
    files = ["test_repository", "test_catalog", "test_variants", "test_published", "test_results"]
    tests = [f"tests/{name}.py" for name in files]
    chosen = "clinicdb or segresnet or counts or complete or variant or lesion or stage or house"
    output = run(project, sys.executable, "-m", "pytest", *tests, "-k", chosen)
    assert "failed" not in output
    output = run(project, sys.executable, "-m", "pytest", "--nbval", notebook)
    assert "3 passed" in output


def test_the_page_is_one_page_and_names_what_is_there():
    assert PAGE.count("\n") <= 160
    for name in re.findall(r"`((?:wavegms|tests|data|conf|results|notebooks)/[\w/.]*)`", PAGE):
        assert name == "notebooks/11_lesion_size.ipynb" or (ROOT / name).exists(), name
    folders = [
        path.name for path in (ROOT / "wavegms").iterdir() if (path / "__init__.py").is_file()
    ]
    assert sorted(re.findall(r"^\| `wavegms/(\w+)/`", PAGE, re.MULTILINE)) == sorted(folders)
