"""Every number of a project's tables follows from what it names: the proof behind `trace`."""

import hashlib
import json
from io import StringIO

import pandas as pd

from wavegms.results.tables import (
    ablation_table,
    generalization_table,
    original_table,
    read_published,
    read_scores,
    segmentation_table,
    summarize_systems,
)
from wavegms.results.trace import Cell, trace_cell
from wavegms.training.card import weights_hash

KEY = ["train_set", "test_set", "variant", "metric"]


def _of_systems(make):
    return lambda scores, published, *resampling: make(
        summarize_systems(scores, *resampling), published
    )


TABLES = {
    "segmentation": _of_systems(segmentation_table),
    "generalization": _of_systems(generalization_table),
    "ablation": _of_systems(ablation_table),
    "original": lambda scores, published, *resampling: original_table(scores, *resampling),
}


def sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def as_text(csv):
    return pd.read_csv(csv, dtype=str, keep_default_na=False)


def metadata(notebook):
    return json.loads(notebook.read_text(encoding="utf-8"))["metadata"]


def check_chain(project):
    """Follows every measured row of the four tables, by plain means, and gives their number."""
    made_with = metadata(project / "reports/08_results.ipynb")["papermill"]["parameters"]
    resampling = made_with["evaluation"]["bootstrap_resamples"], made_with["seed"]
    published = read_published(project / "results/published")
    followed = 0
    for name, make in TABLES.items():
        apart = name == "ablation" and any((project / "results/ablation").rglob("*.csv"))
        scores = project / "results" / ("ablation" if apart else "scores")
        table = make(read_scores(scores), published, *resampling)
        again = as_text(StringIO(table.to_csv(index=False, float_format="%.6g")))
        path = project / f"results/tables/{name}.csv"
        rows = as_text(path)
        for place, row in rows[rows["measured"] != ""].iterrows():
            (same,) = again[(again[KEY] == row[KEY]).all(axis=1)].to_dict("records")
            assert {column: row[column] for column in same} == same
            trace = trace_cell(Cell(*row[KEY], ablation=name == "ablation"), project)
            assert (
                path.read_text(encoding="utf-8")
                .splitlines()[trace.line - 1]
                .startswith(f"{row['system']},{','.join(row[KEY])},{row['measured']},")
            )
            assert (trace.table, trace.row["measured"], trace.line) == (
                path,
                row["measured"],
                place + 2,
            )
            means = [check_run(run, row, scores, project) for run in trace.runs]
            share = 1 if row["metric"].startswith("hd95") else 100
            assert float(row["measured"]) == float(f"{share * sum(means) / len(means):.6g}")
            followed += 1
    return followed


def check_run(run, row, scores, project):
    """One seed's part: images, card, weights, data, notebooks; the mean over its images."""
    place = f"{row['train_set']}/{row['variant']}/seed_{run.card.seed}"
    assert run.scores == scores / place / f"{row['test_set']}.csv"
    images = pd.read_csv(run.scores)
    assert run.images == len(images) == int(row["images"])
    assert set(images["card"]) == {sha256(run.model / "card.json")}
    card = json.loads((run.model / "card.json").read_text(encoding="utf-8"))
    assert (card["seed"], card["variant"]) == (run.card.seed, row["variant"])
    assert card["weights"] == weights_hash(run.model)
    hashes = {row["train_set"]: {card["data_hash"]}}
    hashes.setdefault(row["test_set"], set()).update(images["data_hash"])
    for name, found in hashes.items():
        assert found == {run.data[name]} == {sha256(project / f"data/prepared/{name}/manifest.csv")}
    assert run.reports
    for report in run.reports:
        said = metadata(report)
        assert said["wavegms"]["versions"] == card["versions"]
        if report.name.startswith("02_train"):
            asked = card["parameters"] | {"seed": card["seed"], "dataset": row["train_set"]}
            assert {name: said["papermill"]["parameters"][name] for name in asked} == asked
    return images[row["metric"]].mean()
