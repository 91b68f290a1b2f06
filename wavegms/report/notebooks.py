"""The executed notebooks that a run leaves, and what of them a report shows.

A notebook's cells say so themselves, by a tag: `report-results` puts a cell, text or output, into
the section of results; the others are the names in `SECTIONS`.
"""

import base64
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from html import escape
from io import BytesIO
from itertools import product
from pathlib import Path
from typing import Any

import nbformat
import pandas as pd
from bs4 import BeautifulSoup
from nbformat import NotebookNode
from PIL import Image

from wavegms.config import Params
from wavegms.data.catalog import spec_of
from wavegms.errors import first_line
from wavegms.results.tables import title_of

# By the end of the tag, in the order of the report.
SECTIONS = {
    "results": "Results",
    "training": "Training",
    "leakage": "Data and leakage",
    "cases": "Cases",
    "generalization": "Domain generalization",
    "ablation": "Ablation",
    "foundations": "Autoencoders",
    "efficiency": "Efficiency",
}

_TAG = "report-"

# Columns of `wavegms.results.readable` that name one.
_OF_DATASETS = ["Dataset", "Trained on", "Tested on"]

# Pixels from which a figure would be too small on a phone.
_BROAD = 800

_HEADING = re.compile(r"^#+ ", re.MULTILINE)


@dataclass(frozen=True)
class Expected:
    """An executed notebook that a complete run leaves in the folder of reports.

    `name` is that of the file, without its ending; `title` says what was run in it, for a reader,
    and is empty where there is only one; `settings` are parameters that it must have been run with,
    by their name in the notebook; a dot leads into a section.
    """

    name: str
    title: str
    settings: Mapping[str, Any]


@dataclass(frozen=True)
class Executed:
    """One that is there: which code ran, if it says so, and its cells to be shown, by section."""

    expected: Expected
    record: Mapping[str, Any] | None
    cells: Mapping[str, list[NotebookNode]]


class Unusable(Exception):
    """Why a notebook is not shown, as a clause about it."""


def expected_notebooks(params: Params) -> Iterator[Expected]:
    """The executed notebooks of a run, in the order in which a report shows them.

    Left out are those of which it shows nothing: the tour and the simulated scanners.
    """
    values = params.model_dump(mode="json")
    scored = {"evaluation": values["evaluation"]}
    trained = {name: values[name] for name in ("loss", "model", "training")}
    yield Expected("08_results", "", scored | {"seed": params.seed})
    for dataset in [*params.datasets, *params.external]:
        # a test set from elsewhere has no split to follow
        drawn = {} if dataset in params.external else {"split": values["split"]}
        asked = {"dataset": dataset, "image_size": params.image_size} | drawn
        yield Expected(f"01_prepare_{dataset}", spec_of(dataset).title, asked)
    for dataset in params.datasets:
        title = f"Autoencoder of {spec_of(dataset).title}"
        asked = {"dataset": dataset, "autoencoder.source": params.autoencoder.source}
        yield Expected(f"01b_autoencoder_{dataset}", title, asked)
    for dataset, variant, seed in product(params.datasets, params.variants, params.seeds):
        run, title = f"{dataset}_{variant}_{seed}", run_title(dataset, variant, seed)
        asked = {"dataset": dataset, "variant": variant, "seed": seed}
        yield Expected(f"02_train_{run}", title, asked | trained)
        yield Expected(f"03_evaluate_{run}", title, asked | scored)
    for dataset in params.datasets:
        asked = {"dataset": dataset, "evaluation.threshold": params.evaluation.threshold}
        asked |= {"seed": params.seeds[0], "variants": params.variants}
        yield Expected(f"06_visualize_{dataset}", spec_of(dataset).title, asked)
    for dataset in params.volumes:
        asked = {"dataset": dataset, "seeds": params.seeds, "variants": params.variants}
        yield Expected(f"03b_volumes_{dataset}", spec_of(dataset).title, asked | scored)
    pairs = [(pair.train, pair.test) for pair in params.generalization]
    pairs += [(dataset, other) for dataset in params.datasets for other in params.external]
    for (dataset, other), variant, seed in product(pairs, params.variants, params.seeds):
        asked = {"dataset": dataset, "test_set": other, "variant": variant, "seed": seed}
        name = f"05_domain_generalization_{dataset}_{other}_{variant}_{seed}"
        title = f"{run_title(dataset, variant, seed)}, on {spec_of(other).title}"
        yield Expected(name, title, asked | scored)
    for dataset in params.ablation.datasets:
        asked = {"dataset": dataset, "seeds": params.seeds}
        asked |= {f"ablation.{name}": values["ablation"][name] for name in ("epochs", "variants")}
        yield Expected(f"04_ablation_{dataset}", spec_of(dataset).title, asked | trained | scored)
    for dataset in params.foundations.datasets:
        asked = {"dataset": dataset, "foundations": values["foundations"]}
        yield Expected(f"10_autoencoders_{dataset}", spec_of(dataset).title, asked | scored)
    source = {"autoencoder.source": params.autoencoder.source}
    yield Expected("07_efficiency", "", source | {"efficiency": values["efficiency"]})


def read_executed(expected: Expected, folder: Path, datasets: Collection[str]) -> Executed:
    """Reads an executed notebook; rows of its tables that are of other datasets are left out.

    Raises:
        Unusable: it is missing, broken, of another run, or of a time before cells were tagged.
    """
    path = Path(folder) / f"{expected.name}.ipynb"
    if not path.is_file():
        raise Unusable("was not run")
    try:
        notebook = nbformat.read(path, as_version=4)
        parameters = notebook.metadata.papermill.parameters
        titles = {spec_of(name).title for name in datasets}
        cells = _tagged(notebook, expected.title, titles)
    except Exception as error:  # of json, nbformat and its schema, or a key that is not there
        raise Unusable(f"is no executed notebook ({first_line(error)})") from error
    for name, value in expected.settings.items():
        if _look_up(parameters, name) != value:
            raise Unusable(f"is of another run, as its {name} is not that of params.yaml")
    if not cells:
        raise Unusable("was run by an earlier version, which marked nothing for a report")
    return Executed(expected, notebook.metadata.get("wavegms"), cells)


def run_title(dataset: str, variant: str, seed: int) -> str:
    """A training for a reader."""
    return f"{title_of(variant)}, trained on {spec_of(dataset).title}, seed {seed}"


def _look_up(parameters: Mapping[str, Any], name: str) -> Any:
    for key in name.split("."):
        parameters = parameters.get(key) if isinstance(parameters, Mapping) else None
    return parameters


def _tagged(
    notebook: NotebookNode, title: str, datasets: Collection[str]
) -> dict[str, list[NotebookNode]]:
    found: dict[str, list[NotebookNode]] = {}
    for cell in notebook.cells:
        for tag in cell.metadata.get("tags", []):
            section = tag.removeprefix(_TAG)
            if tag.startswith(_TAG) and section in SECTIONS:
                chosen = found.setdefault(section, [])
                if cell.cell_type == "markdown":
                    # below the title of the section, and that of the notebook if it has one
                    cell.source = _HEADING.sub("#### " if title else "### ", cell.source)
                    chosen.append(cell)
                elif _clean(cell, f"{SECTIONS[section]}: {title or 'all runs'}", datasets):
                    chosen.append(cell)
    return found


def _clean(cell: NotebookNode, title: str, datasets: Collection[str]) -> bool:
    """Leaves of a cell's outputs what a reader wants; tells whether that is anything."""
    cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
    for output in cell.outputs:
        data = output.get("data", {})
        if png := data.pop("image/png", None):
            data["text/html"] = _picture(png, title)
        elif html := data.get("text/html"):
            data["text/html"] = _readable(html, datasets)
    return any(
        output.get("text") or "text/html" in output.get("data", {}) for output in cell.outputs
    )


def _picture(png: str, title: str) -> str:
    """A figure with the same pixels, as WebP, which takes half the space of PNG."""
    with Image.open(BytesIO(base64.b64decode(png)), formats=["PNG"]) as image:
        file = BytesIO()
        image.save(file, "WEBP", lossless=True)
    content = base64.b64encode(file.getvalue()).decode()
    broad = ' class="broad"' if image.width > _BROAD else ""
    return (
        f'<img{broad} src="data:image/webp;base64,{content}" width="{image.width}" '
        f'height="{image.height}" alt="{escape(title)}">'
    )


def _readable(html: str, datasets: Collection[str]) -> str:
    """A table of pandas without style, and without what says nothing here.

    That is a column that counts the rows, rows of other datasets, and empty columns.
    """
    page = BeautifulSoup(html, "html.parser")
    heads = page.select("thead tr")
    rows = [[cell.text for cell in row(["th", "td"])] for row in page.select("tbody tr")]
    names = [cell.text for cell in heads[0]("th")] if len(heads) == 1 else []
    # only a plain table; pandas puts dots in place of what it leaves out of a long one
    if not names or any(len(row) != len(names) or "..." in row for row in rows):
        return html
    table = pd.DataFrame(rows, columns=names, dtype=str).replace(["NaN", "<NA>"], "–")
    places = [name for name in _OF_DATASETS if name in names]
    kept = table[table[places].isin(datasets).all(axis=1)]
    if kept.empty:
        return "<p>None in this run.</p>"
    says = ~kept.isin(["–", ""]).all().to_numpy()
    says[0] &= table.iloc[:, 0].tolist() != [str(number) for number in range(len(table))]
    with pd.option_context("display.max_colwidth", None):
        return kept.loc[:, says].to_html(index=False, border=0)
