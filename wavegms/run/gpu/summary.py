"""From the files of a run to a page beside the paper's row; whatever is missing is said."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pandas as pd

RUN, HISTORY, BENCHMARK = "run.json", "history.csv", "benchmark.csv"
PER_IMAGE, LOG, SUMMARY = "per_image.csv", "log.txt", "summary.md"
KEPT_NAME = "wave_gms_busi"

# What the paper prints for Wave-GMS on BUSI: percent, percent, pixels of 224 (Table 2).
PAPER = {"dsc": 82.31, "iou": 73.42, "hd95_zero_if_empty": 18.46}

# With what a reader's unit is of each.
METRICS = {"dsc": 100, "iou": 100, "hd95_zero_if_empty": 1, "hd95": 1}

_NAMES = {
    "dsc": "DSC, %",
    "iou": "IoU, %",
    "hd95_zero_if_empty": "HD95, 0 if a mask is empty",
    "hd95": "HD95, diagonal if a mask is empty",
}

_PROTOCOLS = {
    "best_on_test": "the epoch best on the test images, as the paper's",
    "last_epoch": "the last epoch, which nothing selects",
}

_USED = {"all": "all", "clean": "without a twin in training", "leaking": "with a twin in training"}


def anonymous(scores: pd.DataFrame) -> pd.DataFrame:
    """Scores with each image called by ten digits of its id's SHA-256, as results/proof has it."""
    ids = [hashlib.sha256(id.encode()).hexdigest()[:10] for id in scores["id"]]
    return scores.assign(id=ids)


def summarise(folder: Path) -> str:
    """The page, as Markdown."""
    parts = ["# Wave-GMS on BUSI by the paper's recipe, on one card", ""]
    if (folder / RUN).is_file():
        run = json.loads((folder / RUN).read_text(encoding="utf-8"))
        parts += _of_run(run)
        if "scores" in run:
            parts += ["## Scores", "", _scores(pd.DataFrame(run["scores"])), ""]
    else:
        parts += ["The training did not end: there is no epoch to score.", ""]
    if (folder / RUN).is_file() and (folder / HISTORY).is_file():
        parts += _epochs(pd.read_csv(folder / HISTORY))
    if (folder / BENCHMARK).is_file():
        table = pd.read_csv(folder / BENCHMARK)
        side, batch = (int(table[name].max()) for name in ("image_size", "batch_size"))
        parts += [f"## A training step at {side}×{side}, batch {batch}", "", _benchmark(table), ""]
    if (folder / LOG).is_file():
        said = (folder / LOG).read_text(encoding="utf-8").splitlines()
        tests = [line for line in said if line.startswith(("tests:", "part "))]
        parts += ["## Tests and parts", "", *(f"- {line}" for line in tests), ""]
    return "\n".join(parts)


def _of_run(run: dict) -> list[str]:
    memory = f", {run['peak_gib']:.1f} GiB reserved at most" if run["peak_gib"] else ""
    versions = ", ".join(f"{name} {version}" for name, version in run["versions"].items())
    training, cut = run["parameters"]["training"], []
    if run["epochs"] != run["planned_epochs"]:
        planned = f"({run['planned_epochs']} epochs were planned) " if run["planned_epochs"] else ""
        cut = [
            f"**It was cut off** {planned}before the learning rate came to its end: scored is what "
            "it had when its state was last saved.",
            "",
        ]
    if run["refusal"]:
        cut += [f"A step could not be one launch: {run['refusal']}.", ""]
    return [
        f"{run['card'] or 'No card: a rehearsal on the processor'}{memory}; trained in "
        f"{run['precision']}, scored in {run['scores_precision']}, "
        f"{run['image_size']}×{run['image_size']}, batch {training['batch_size']}, seed "
        f"{run['seed']}, {run['train_images']} images to train, {run['selection_images']} to test.",
        "",
        f"**{run['epochs']} epochs in {run['training_seconds'] / 60:.1f} minutes** "
        f"({run['training_seconds'] / run['epochs']:.2f} s each, the paper has 1000), the best of "
        f"them the {run['best_epoch']}.",
        "",
        *cut,
        f"Python {run['python']}, CUDA {run['cuda']}, {versions}.",
        "",
    ]


# Lines of the table of epochs, the first and the last that were measured among them.
_SHOWN = 12


def _epochs(history: pd.DataFrame) -> list[str]:
    """The test images while it trained; the columns are those of the scores, means over images."""
    measured = history.reindex(columns=[*history, *METRICS.keys() - set(history)])
    measured = measured.dropna(subset=list(METRICS))
    if measured.empty:
        return []
    places = sorted({round(p) for p in np.linspace(0, len(measured) - 1, _SHOWN)})
    rows = [
        {"epoch": f"{row['epoch']:.0f}", "training loss": f"{row['loss']:.4f}"}
        | {_NAMES[name]: f"{row[name] * factor:.2f}" for name, factor in METRICS.items()}
        for _, row in measured.iloc[places].iterrows()
    ]
    best = measured.loc[measured["dsc"].idxmax()]
    said = (
        f"Measured after {len(measured)} of {len(history)} epochs while the training went on, of "
        "what chooses the epoch (in tf32 where a card trains in bf16); the highest DSC is "
        f"{100 * best['dsc']:.2f} % after epoch {best['epoch']:.0f}. All are in `{HISTORY}`."
    )
    return ["## Test images while it trained", "", said, "", _markdown(pd.DataFrame(rows)), ""]


def _scores(table: pd.DataFrame) -> str:
    rows = []
    for (protocol, used), group in table.groupby(["protocol", "images_used"], sort=False):
        means = group.set_index("metric")
        row = {"epoch": _PROTOCOLS[protocol], "test images": f"{_USED[used]}"}
        row["images"] = str(int(means["images"].iloc[0]))
        for metric, factor in METRICS.items():
            row[metric] = _interval(means.loc[metric], factor)
        rows.append(row)
    paper = {"epoch": "paper, 1000 epochs", "test images": "all", "images": "130"}
    rows.append(paper | {name: f"{value:.2f}" for name, value in PAPER.items()} | {"hd95": ""})
    return _markdown(pd.DataFrame(rows).rename(columns=_NAMES))


def _interval(row: pd.Series, factor: float) -> str:
    low, middle, high = (factor * row[name] for name in ("ci_low", "mean", "ci_high"))
    return f"{middle:.2f} ({low:.2f} – {high:.2f})"


def _benchmark(table: pd.DataFrame) -> str:
    """Time and memory of each case, beside the plain form in float32."""
    # where the benchmark broke off, some are missing
    needed = ["step_seconds", "step_gib", "share_of_peak", "share_of_bf16_peak"]
    table = table.reindex(columns=list(dict.fromkeys([*table, *needed])))
    plain, ours = (table[table["case"] == name] for name in ("plain", "lean bf16"))
    shown = []
    for _, row in table.iterrows():
        timed = pd.notna(row.get("step_seconds"))
        cells = {"": row["case"]}
        if not timed:
            cells |= {"step, ms": str(row.get("note", "not measured"))}
        else:
            cells |= {
                "step, ms": f"{1000 * row['step_seconds']:.1f}",
                "memory, GiB": f"{row['step_gib']:.2f}",
                "share of the card's bf16 peak": _share(row["share_of_bf16_peak"]),
                "of its own precision's": _share(row["share_of_peak"]),
            }
            if len(plain) and pd.notna(plain["step_seconds"].iloc[0]):
                faster = plain["step_seconds"].iloc[0] / row["step_seconds"]
                smaller = row["step_gib"] / plain["step_gib"].iloc[0]
                cells |= {"times plain's speed": f"{faster:.2f}", "its memory": f"{smaller:.2f}"}
            if len(ours) and pd.notna(ours["step_seconds"].iloc[0]):
                slower = row["step_seconds"] / ours["step_seconds"].iloc[0]
                cells |= {"times lean bf16's time": f"{slower:.2f}"}
        shown.append(cells)
    return _markdown(pd.DataFrame(shown).fillna(""))


def _share(value: float) -> str:
    return "" if pd.isna(value) else f"{value:.1%}"


def _markdown(table: pd.DataFrame) -> str:
    lines = [list(map(str, table.columns)), ["---"] * len(table.columns)]
    lines += table.astype(str).values.tolist()
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
