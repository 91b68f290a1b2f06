"""One HTML file of a run: its executed notebooks without the code, and its models' cards.

It holds everything that it shows, runs no script, and asks nobody for anything.
"""

from collections.abc import Iterable
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import nbformat
from jinja2 import Environment, StrictUndefined
from nbconvert import HTMLExporter
from nbformat import NotebookNode

from wavegms.config import Params, load_params
from wavegms.data.catalog import spec_of
from wavegms.errors import InputError
from wavegms.files import write_text
from wavegms.report.model_card import (
    not_to_be_passed_on,
    read_scored_model,
    render_model_card,
    shown_scores,
)
from wavegms.report.notebooks import (
    SECTIONS,
    Executed,
    Unusable,
    expected_notebooks,
    read_executed,
    run_title,
)
from wavegms.results.tables import NOT_RUN, read_scores, summarize_systems, title_of

_TEMPLATE = Path(__file__).with_name("page.html.j2")

_CHOSEN = {
    "best_on_validation": "on images set aside from training",
    "best_on_test": "on the test images, as the authors' code does: scores are optimistic",
}


class Card(NamedTuple):
    """A model card; its title has the epochs, which tell models of the ablation apart."""

    name: str
    title: str
    text: str


class Report(NamedTuple):
    """What :func:`write_report` wrote; `missing` is what the run has not left, a sentence each."""

    path: Path
    cards: list[Path]
    missing: list[str]


def write_report(out: Path, project: Path = Path(".")) -> Report:
    """Writes the report of the run that params.yaml describes, and a card for each of its models.

    The cards go into `model_cards/` beside it. What is missing of the run, or is left from another
    one, is named in the report and not shown.
    """
    params = load_params(project / "params.yaml")
    executed, missing = _read_notebooks(params, project / "reports")
    if not executed:
        raise InputError(
            f"{project / 'reports'} holds no executed notebook of this params.yaml: run `dvc "
            "repro` first"
        )
    cards, without_card = _render_cards(params, project)
    scores, without_scores = _score_rows(params, project / "results/scores")
    missing += without_scores + without_card
    datasets = [*params.datasets, *params.external]
    exporter = _make_exporter()
    sections = {
        section: [
            {"title": part.expected.title, "html": _as_html(exporter, cells)}
            for part in executed
            if (cells := part.cells.get(section))
        ]
        for section in SECTIONS
    }
    page = Environment(autoescape=True, undefined=StrictUndefined).from_string(
        _TEMPLATE.read_text(encoding="utf-8")
    )
    html = page.render(
        title=", ".join(spec_of(name).title for name in params.datasets),
        missing=missing,
        scores=scores,
        settings=_settings(params),
        code=_code(executed),
        datasets=[_dataset(name, params) for name in datasets],
        private=not_to_be_passed_on(datasets),
        sections=[(name, SECTIONS[name], parts) for name, parts in sections.items() if parts],
        cards=[card._asdict() | {"html": _card_as_html(exporter, card)} for card in cards],
    )
    paths = [out.parent / "model_cards" / f"{card.name}.md" for card in cards]
    for path, card in zip(paths, cards, strict=True):
        write_text(path, card.text)
    write_text(out, html)
    return Report(out, paths, missing)


def _read_notebooks(params: Params, folder: Path) -> tuple[list[Executed], list[str]]:
    datasets = [*params.datasets, *params.external]
    executed, missing = [], []
    for expected in expected_notebooks(params):
        try:
            executed.append(read_executed(expected, folder, datasets))
        except Unusable as error:
            missing.append(f"{expected.name} {error}.")
    return executed, missing


def _render_cards(params: Params, project: Path) -> tuple[list[Card], list[str]]:
    """The cards, and why others are missing."""
    runs = [("", *run) for run in product(params.datasets, params.variants, params.seeds)]
    rows = product(params.ablation.datasets, params.ablation.variants, params.seeds)
    runs += [("ablation", *run) for run in rows]
    cards, missing = [], []
    for part, dataset, variant, seed in runs:
        run = Path(part, dataset, variant, f"seed_{seed}")
        if (project / "results" / run / NOT_RUN).is_file():
            continue  # the table of the ablation says why
        try:
            model = read_scored_model(project / "models" / run, project)
        except InputError as error:
            missing.append(f"There is no model card, as {str(error).rstrip('.')}.")
            continue
        title = f"{run_title(dataset, variant, seed)}, {model.card.epochs} epochs"
        text = render_model_card(model, params.evaluation)
        cards.append(Card("_".join(run.parts), title, text))
    return cards, missing


def _score_rows(params: Params, folder: Path) -> tuple[list[dict[str, Any]], list[str]]:
    """What the models of this run scored, for the first table."""
    try:
        scores = read_scores(folder)
    except InputError as error:
        return [], [f"There are no scores: {error}"]
    asked = {"train_set": params.datasets, "test_set": [*params.datasets, *params.external]}
    asked |= {"variant": params.variants, "seed": params.seeds}
    scores = scores[scores[list(asked)].isin(asked).all(axis=1)]
    if scores.empty:
        return [], ["There are no scores of this run."]
    systems = summarize_systems(scores, params.evaluation.bootstrap_resamples, params.seed)
    rows = []
    for (train_set, test_set, variant), group in systems.groupby(
        ["train_set", "test_set", "variant"], sort=False
    ):
        about = {"trained": spec_of(train_set).title, "tested": spec_of(test_set).title}
        about |= {"system": title_of(variant), "seeds": group["seeds"].iloc[0]}
        rows.append(about | shown_scores(group.set_index("metric")))
    return rows, []


def _settings(params: Params) -> list[tuple[str, str]]:
    training, autoencoder = params.training, params.autoencoder
    fitting = f"as many as {training.minutes} minutes allow"
    epochs = {name: training.epochs_for(name) or fitting for name in params.datasets}
    many = len(set(epochs.values())) > 1
    epochs = [f"{spec_of(n).title} {e}" for n, e in epochs.items()] if many else epochs.values()
    start = autoencoder.train.start_from
    made = f"from {start}, which drawn pictures made" if start else "trained on the spot"
    sources = {"train": made, "hub": autoencoder.hub}
    published = training.recipe == "published"
    return [
        ("Networks", ", ".join(map(title_of, params.variants))),
        ("Images", f"{params.image_size}×{params.image_size} pixels"),
        ("Epochs", ", ".join(map(str, dict.fromkeys(epochs)))),
        ("Epoch chosen", _CHOSEN[training.selection]),
        *([("Recipe", "published where there is one: a rival's own")] if published else []),
        ("Batch size", str(training.batch_size)),
        ("Peak learning rate", str(training.learning_rate)),
        ("Autoencoder", sources.get(autoencoder.source, Path(autoencoder.path).name)),
        ("Split", params.split.method),
        ("Seeds", ", ".join(map(str, params.seeds))),
    ]


def _dataset(name: str, params: Params) -> dict[str, str]:
    spec = spec_of(name)
    used = "test only" if name in params.external else "training and test"
    return {"title": spec.title, "modality": spec.modality, "used": used, "licence": spec.licence}


def _code(executed: Iterable[Executed]) -> list[dict[str, Any]]:
    """Which code ran, each version once with the notebooks that it was."""
    found: list[dict[str, Any]] = []
    for part in executed:
        record = part.record or {}
        versions = {"Python": record["python"]} if record.get("python") else {}
        about = {
            "revision": record.get("revision") or "unknown",
            "changed": record.get("changed") or [],
            "versions": versions | (record.get("versions") or {}),
        }
        entry = next((entry for entry in found if about.items() <= entry.items()), None)
        if entry is None:
            found.append(entry := about | {"notebooks": []})
        entry["notebooks"].append(part.expected.name)
    return found


def _make_exporter() -> HTMLExporter:
    """Cells without code and prompts, as the inside of a page.

    The outside is ours: that of nbconvert fetches MathJax, require.js and fonts.
    """
    return HTMLExporter(
        template_name="basic",
        exclude_input=True,
        exclude_output_prompt=True,
        exclude_anchor_links=True,
    )


def _as_html(exporter: HTMLExporter, cells: list[NotebookNode]) -> str:
    return exporter.from_notebook_node(nbformat.v4.new_notebook(cells=cells))[0]


def _card_as_html(exporter: HTMLExporter, card: Card) -> str:
    """Without its head, which is for the hub."""
    return _as_html(exporter, [nbformat.v4.new_markdown_cell(card.text.partition("\n---\n")[2])])
