"""A run as one HTML file: all of it is there, nothing else is, and what is missing is said."""

import base64
import re
import shutil
from io import BytesIO
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import pytest
import yaml
from bs4 import BeautifulSoup
from copies import ROOT
from dvc.repo import Repo
from layouts import edit_json
from PIL import Image
from report_project import RUN, write_report_project

from wavegms import InputError
from wavegms.__main__ import main
from wavegms.config import load_params
from wavegms.project import run_record
from wavegms.report.notebooks import (
    SECTIONS,
    Unusable,
    _readable,
    expected_notebooks,
    read_executed,
)
from wavegms.report.page import write_report

TRAINING = "reports/02_train_phantom_a_wave_gms_2333.ipynb"
PARAMETERS = ("metadata", "papermill", "parameters")


@pytest.fixture(scope="module")
def original(tmp_path_factory, prepared):
    root = tmp_path_factory.mktemp("reported")
    write_report_project(root, prepared)
    return root


@pytest.fixture(scope="module")
def written(original):
    return write_report(original / "results/report.html", original)


@pytest.fixture
def project(original, tmp_path, monkeypatch):
    """A copy to break, as the working directory."""
    shutil.copytree(original, tmp_path / "project")
    monkeypatch.chdir(tmp_path / "project")
    return tmp_path / "project"


def rows_of(html, section):
    """The rows of a section's tables, each as the texts of its cells, without headings."""
    rows = BeautifulSoup(html, "html.parser").select(f"section#{section} tr")
    return [[cell.text for cell in row("td")] for row in rows]


def test_a_whole_run_is_reported_whole(original, written):
    html = written.path.read_text()
    assert written.missing == [] and "not complete" not in html
    assert re.findall(r'<section id="(\w+)">', html) == ["glance", *SECTIONS, "cards", "code"]
    links = re.findall(r'<a href="#(\w+)">', html)
    assert links == ["glance", *SECTIONS, "cards", "code"]
    assert "Not for clinical use" in html and run_record(ROOT)["versions"]["torch"] in html
    assert html.count("Wave-GMS, trained on Phantom A, seed 2333") >= 4
    assert len(html) < 3_000_000


def test_scores_at_a_glance_are_those_of_the_images(original, written):
    rows = [row for row in rows_of(written.path.read_text(), "glance") if len(row) == 8]
    assert len(rows) == 4
    for row in rows:
        train, test = (name.lower().replace(" ", "_") for name in row[1:3])
        path = original / f"results/scores/{train}/wave_gms/seed_2333/{test}.csv"
        images = pd.read_csv(path)
        assert row[3:5] == ["16", "1"]
        for text, metric, scale in zip(row[5:], ("dsc", "iou", "hd95"), (100, 100, 1), strict=True):
            mean, low, high = map(float, re.findall(r"[\d.]+", text))
            assert mean == pytest.approx(scale * images[metric].mean(), abs=0.051)
            assert low < mean < high


def test_every_marked_figure_is_there_pixel_by_pixel(original, written):
    expected = set()
    for path in (original / "reports").glob("*.ipynb"):
        for cell in nbformat.read(path, as_version=4).cells:
            if any(tag.startswith("report-") for tag in cell.metadata.get("tags", [])):
                for output in cell.get("outputs", []):
                    if png := output.get("data", {}).get("image/png"):
                        expected.add(pixels(png))
    content = re.findall(r'src="data:image/webp;base64,([^"]+)"', written.path.read_text())
    assert len(expected) > 8 and {pixels(picture) for picture in content} == expected


def pixels(encoded):
    with Image.open(BytesIO(base64.b64decode(encoded))) as image:
        return np.asarray(image.convert("RGB")).tobytes()


def test_a_table_without_a_row_of_this_run_says_so():
    columns = pd.DataFrame({"Dataset": ["Phantom A"], "DSC": ["80.1"]})
    assert "80.1" in _readable(columns.to_html(), {"Phantom A"})
    for table in (columns, columns[:0]):
        assert _readable(table.to_html(), {"my_data"}) == "<p>None in this run.</p>"
    assert _readable("<b>text</b>", {"my_data"}) == "<b>text</b>"


def test_neither_code_nor_anything_from_outside_is_in_it(written):
    html = written.path.read_text()
    assert (
        "<script" not in html
        and "<iframe" not in html
        and "<link" not in html.partition("<link")[2]
    )
    assert not re.search(r'(src|srcset|action|poster|data)="(?!data:)', html)
    assert not re.search(r"@import|url\(", html)
    assert "default-src 'none'" in html.partition("<style>")[0]
    assert "from wavegms.results import" not in html and "enter_project()" not in html


def test_tables_have_the_rows_of_this_run_and_no_empty_columns(written):
    html = written.path.read_text()
    rows = rows_of(html, "results")
    assert any(row[:2] == ["Phantom A", "Wave-GMS"] for row in rows)
    assert not any(row and row[0] in ("BUS", "HAM10000") for row in rows)
    heads = [row("th") for row in BeautifulSoup(html, "html.parser").select("thead tr")]
    heads = [[cell.text for cell in head] for head in heads]
    (head,) = [head for head in heads if head[:2] == ["Dataset", "System"]][:1]
    assert "DSC" in head and not any("paper" in name for name in head)
    # a column that says something stays
    assert ["", "image_psnr"] in [head[:2] for head in heads] and "<td>train</td>" in html


def test_cards_lie_beside_it_and_in_it(written):
    names = [path.name for path in written.cards]
    assert names == [
        "phantom_a_wave_gms_seed_2333.md",
        "phantom_b_wave_gms_seed_2333.md",
        "ablation_phantom_a_wave_gms_seed_2333.md",
    ]
    html = written.path.read_text()
    for path in written.cards:
        assert path.name in html and path.read_text().startswith("---\n")
    assert html.count("<h2>Leakage</h2>") + html.count('id="Leakage"') >= 3
    assert "library_name" not in html


def break_figures(path):
    notebook = nbformat.read(path, as_version=4)
    (cell,) = (c for c in notebook.cells if "report-training" in c.metadata.get("tags", []))
    for output in cell.outputs:
        if "data" in output:
            output.data["image/png"] = base64.b64encode(b"no picture").decode()
    nbformat.write(notebook, path)


@pytest.mark.parametrize(
    ("broken", "said"),
    [
        (lambda p: p.unlink(), "was not run"),
        (lambda p: p.write_text("{"), "is no executed notebook"),
        (lambda p: p.write_bytes(b"\xff\x00"), "is no executed notebook"),
        (lambda p: edit_json(p, "metadata", value={}), "is no executed notebook"),
        (lambda p: edit_json(p, *PARAMETERS, "loss", value=1), "is of another run, as its loss"),
        (lambda p: edit_json(p, "cells", value=[]), "was run by an earlier version"),
        (break_figures, "is no executed notebook"),
    ],
)
def test_a_notebook_that_cannot_be_shown_says_why(original, tmp_path, broken, said, survived):
    path = tmp_path / Path(TRAINING).name
    shutil.copy(original / TRAINING, path)
    params = load_params(original / "params.yaml")
    (expected,) = (one for one in expected_notebooks(params) if one.name == path.stem)
    assert "training" in read_executed(expected, tmp_path, params.datasets).cells
    broken(path)
    with pytest.raises(Unusable, match=said):
        read_executed(expected, tmp_path, params.datasets)
    survived("inputs")


@pytest.mark.parametrize(
    ("path", "broken", "said"),
    [
        (TRAINING, lambda p: p.unlink(), "02_train_phantom_a_wave_gms_2333 was not run"),
        (
            f"results/scores/{RUN}/phantom_a.csv",
            lambda p: p.unlink(),
            "holds no scores on the test images of phantom_a",
        ),
        (f"results/scores/{RUN}/phantom_a.csv", lambda p: p.write_text("a"), "lacks the column"),
        (f"models/{RUN}/card.json", lambda p: p.unlink(), "card.json does not exist"),
        ("reports/audit/phantom_a.csv", lambda p: p.unlink(), "phantom_a.csv does not exist"),
    ],
)
def test_what_is_missing_is_said_and_the_rest_is_shown(
    project, path, broken, said, capsys, survived, monkeypatch
):
    # figures take most of the time, and stay as they are
    monkeypatch.setattr("wavegms.report.notebooks._picture", lambda png, title: "<img>")
    broken(project / path)
    assert main(["report"]) == 0
    html = (project / "results/report.html").read_text()
    assert "This report is not complete" in html and said in html
    assert said in capsys.readouterr().out
    assert "Wave-GMS, trained on Phantom B, seed 2333" in html
    survived("inputs")


def test_without_any_run_nothing_is_written(project, capsys):
    shutil.rmtree(project / "reports")
    shutil.rmtree(project / "results")
    assert main(["report"]) == 1
    assert "holds no executed notebook of this params.yaml: run `dvc repro`" in (
        capsys.readouterr().err
    )
    assert not (project / "results").exists()


def test_images_that_may_not_be_passed_on_are_warned_of(project, monkeypatch):
    monkeypatch.setattr("wavegms.report.notebooks._picture", lambda png, title: "<img>")
    params = yaml.safe_load((project / "params.yaml").read_text())
    params["external"] = ["bus"]
    (project / "params.yaml").write_text(yaml.safe_dump(params))
    html = write_report(project / "results/report.html").path.read_text()
    assert "Do not pass this file on" in html and "01_prepare_bus was not run" in html
    params["external"] = []
    (project / "params.yaml").write_text(yaml.safe_dump(params))
    assert "Do not pass" not in write_report(project / "results/report.html").path.read_text()


def test_it_looks_for_what_the_pipeline_leaves_and_up_to_date_is_of_this_run():
    """Else a new stage were forgotten, or a notebook that DVC need not run again left out."""
    params = load_params(ROOT / "params.yaml")
    expected = {f"reports/{one.name}.ipynb": one for one in expected_notebooks(params)}
    with Repo(str(ROOT)) as repo:
        stages = {
            out.def_path: stage
            for stage in repo.index.stages
            for out in stage.outs
            if re.fullmatch(r"reports/(?!00).*\.ipynb", out.def_path)
        }
        assert set(stages) == set(expected)
        for path, one in expected.items():
            stage = stages[path]
            tracked = [key for dep in stage.deps for key in getattr(dep, "params", None) or ()]
            for name in one.settings:
                inside = any(f"{name}.".startswith(f"{key}.") for key in tracked)
                assert inside or f" -p {name} " in stage.cmd, (path, name)


def test_a_folder_in_the_way_is_named(project, monkeypatch):
    monkeypatch.setattr("wavegms.report.notebooks._picture", lambda png, title: "<img>")
    (project / "out/report.html").mkdir(parents=True)
    with pytest.raises(InputError, match=r"report\.html is a folder where a file is to be written"):
        write_report(project / "out/report.html")
