"""Tables for a reader: the results as text, written as CSV, Markdown and LaTeX."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from wavegms.data.catalog import spec_of
from wavegms.files import write_text
from wavegms.results.tables import of_this_run, title_of

# Metric, its short title, and the heading of what was measured.
_SHOWN = (
    ("dsc", "DSC", "DSC"),
    ("iou", "IoU", "IoU"),
    ("hd95_zero_if_empty", "HD95", "HD95 (0 if empty)"),
)

_HONEST = "HD95 (diagonal if empty)"

_COMPARED = {metric: heading for metric, _, heading in _SHOWN} | {"hd95": _HONEST}

_ORIGINAL = {
    "dsc_original": "DSC",
    "iou_original": "IoU",
    "hd95_original": "HD95 (original pixels)",
    "hd95_mm": "HD95 (mm)",
}

_OF_PAPER = "The paper's numbers, for all of its rows, whether run here or not."

# By mark of `Origin`: how it is shown, and what it says of DSC and IoU.
_MARKS = {
    "acc-unet-logs": ("†", "the means of three runs published with ACC-UNet, by another recipe"),
    "pooled": ("‡", "what all test pixels pooled give, not a mean over images"),
    "gms-picture": ("§", "the same as in the table of results published with GMS"),
}

_SIGNS = {"†": r"$\dagger$", "‡": r"$\ddagger$", "§": r"\S "}

# What LaTeX without further packages prints as something else or not at all.
_FOR_LATEX = str.maketrans({"−": "$-$", "±": r"$\pm$", "–": "--", "<": "$<$", **_SIGNS})

# What pandas escapes in cells and not in a caption.
_ESCAPED = str.maketrans({character: f"\\{character}" for character in "%&_#"})


def readable(table: pd.DataFrame) -> pd.DataFrame:
    """What this run measured: a row for each system and pair of datasets, every cell a short text.

    A measured cell reads "82.31 ± 0.42 *": mean over seeds, standard deviation over seeds ("–" for
    a single one), and the asterisk of a difference from the reference that is significant after
    correction, where the table was marked. What was to run and did not reads "not run", with the
    reason in the setting. Beside it stand the paper's number and the difference, where the paper
    has any. Domain generalization has, like the paper, no IoU, but what the same model scores at
    home, and the in-domain values with the drop from them. Where folds were scored, their spread
    stands beside the cell.
    """
    rows = []
    across = "drop" in table
    places = ["Trained on", "Tested on", "System"] if across else ["Dataset", "System"]
    shown = [entry for entry in _SHOWN if not (across and entry[0] == "iou")]
    groups = table[of_this_run(table)].groupby(["train_set", "test_set", "system"], sort=False)
    for (train_set, test_set, system), group in groups:
        cells = {cell["metric"]: cell for cell in group.to_dict("records")}
        names = [spec_of(train_set).title, spec_of(test_set).title, system]
        row = dict(zip(places, names[-len(places) :], strict=True))
        for metric, title, heading in shown:
            cell = cells[metric]
            row[heading] = _measured(cell)
            if "sd_folds" in cell:
                row[f"{title} SD over folds"] = _number(cell["sd_folds"])
            row[f"{title} paper"] = _number(cell["published"]) + _signs([cell.get("origin", "")])
            row[f"{title} difference"] = _number(cell["difference"], signed=True)
            if across:
                row[f"{title} at home"] = _number(cell["home"])
                row[f"{title} in domain (drop)"] = _with_drop(cell["in_domain"], cell["drop"])
                drop = _with_drop(cell["published_in_domain"], cell["published_drop"])
                row[f"{title} in domain (drop), paper"] = drop
        honest = cells["hd95"]
        empty = _number(honest["empty_predictions"], decimals=0)
        row |= {_HONEST: _measured(honest), "Empty": empty, "Setting": _setting(honest)}
        rows.append(row)
    texts = pd.DataFrame(rows, columns=None if rows else places)
    beside = [name for name in texts if name.endswith(("paper", "difference"))]
    return texts.drop(columns=[name for name in beside if texts[name].eq("–").all()])


def readable_originals(table: pd.DataFrame) -> pd.DataFrame:
    """What `original_table` gives as short texts, a row for each system and pair of datasets.

    Behind millimetres stands of how many images they are, where not of all.
    """
    rows = []
    for (train_set, test_set, system), group in table.groupby(
        ["train_set", "test_set", "system"], sort=False
    ):
        cells = {cell["metric"]: cell for cell in group.to_dict("records")}
        whole = cells["dsc_original"]
        row = {
            "Trained on": spec_of(train_set).title,
            "Tested on": spec_of(test_set).title,
            "System": system,
        }
        for metric, heading in _ORIGINAL.items():
            cell = cells.get(metric)
            row[heading] = _measured(cell) if cell else "–"
            if cell and cell["images"] < whole["images"]:
                row[heading] += f" ({cell['images']} of {whole['images']} images)"
        rows.append(row | {"Setting": _setting(whole)})
    return pd.DataFrame(rows, columns=None if rows else ["Trained on", "Tested on", "System"])


def readable_published(published: pd.DataFrame, number: int) -> pd.DataFrame:
    """The paper's table 2, 3 or 4: a row a system, a column a dataset or direction.

    Signs behind a cell are those of `explain_signs`.
    """
    rows = published[published["table"] == number]
    pairs = rows[["train_set", "test_set"]].to_numpy()
    names = [" to ".join(spec_of(name).title for name in dict.fromkeys(pair)) for pair in pairs]
    cells = rows.assign(data=names, text=rows["value"].map("{:.2f}".format))
    groups = cells.groupby(["system", "data"], sort=False)
    texts = groups["text"].agg(" / ".join) + groups["origin"].agg(_signs)
    table = texts.unstack(sort=False)
    metrics = " / ".join(metric.upper() for metric in rows["metric"].unique()).replace("IOU", "IoU")
    table.columns.name = None
    return table.rename_axis(f"System ({metrics})").reset_index()


def explain_signs() -> str:
    """What the signs behind the paper's numbers in table 2 mean, a sentence."""
    meanings = "; ".join(f"{sign} {meaning}" for sign, meaning in _MARKS.values())
    return f"DSC and IoU of the paper marked so are: {meanings} (docs/published.md)."


def readable_comparisons(
    comparisons: pd.DataFrame, headings: Mapping[str, str] = _COMPARED
) -> pd.DataFrame:
    """The comparisons of variants as short texts, with the paper's table if a column names it.

    `headings` name the metrics. Differences of shares are in percentage points, of distances in
    their unit: pixels, or mm.
    """
    scale = np.where(comparisons["metric"].str.startswith("hd95"), 1, 100)
    mean, low, high = (
        [_number(value, signed=True) for value in scale * comparisons[column]]
        for column in ("mean_difference", "ci_low", "ci_high")
    )
    tables = {"Table": comparisons["table"]} if "table" in comparisons else {}
    columns = tables | {
        "Trained on": [spec_of(name).title for name in comparisons["train_set"]],
        "Tested on": [spec_of(name).title for name in comparisons["test_set"]],
        "Metric": comparisons["metric"].map(headings),
        "System": comparisons["variant"].map(title_of),
        "Reference": comparisons["reference"].map(title_of),
        "Images": comparisons["images"].astype(str),
        "Difference": mean,
        "95 % interval": [f"{ends[0]} to {ends[1]}" for ends in zip(low, high, strict=True)],
        "p": comparisons["p"].map(_p_value),
        "p (Holm)": comparisons["p_holm"].map(_p_value),
        "Significant": np.where(comparisons["significant"], "*", ""),
    }
    return pd.DataFrame(columns)


def readable_classes(table: pd.DataFrame) -> pd.DataFrame:
    """What `class_table` gave: a row for each system and class, means with their intervals."""
    rows = []
    names = ["train_set", "test_set", "variant", "class"]
    for (train_set, test_set, variant, name), group in table.groupby(names, sort=False):
        cells = {cell["metric"]: cell for cell in group.to_dict("records")}
        row = {
            "Trained on": spec_of(train_set).title,
            "Tested on": spec_of(test_set).title,
            "System": title_of(variant),
            "Class": name,
            "Images": str(cells["dsc"]["images"]),
        }
        for metric, title in (("dsc", "DSC"), ("iou", "IoU"), ("hd95", _HONEST)):
            mean, low, high = (_number(cells[metric][key]) for key in ("mean", "ci_low", "ci_high"))
            row[title] = f"{mean} ({low} – {high})"
        rows.append(row)
    return pd.DataFrame(rows)


def write_table(
    table: pd.DataFrame,
    shown: pd.DataFrame,
    target: Path,
    caption: str,
    paper: pd.DataFrame | None = None,
) -> list[Path]:
    """Writes a table as data, for the screen and for print: `<target>.csv`, `.md` and `.tex`.

    The CSV is `table`; the others are `shown` and, below, what `readable_published` gives for the
    same table of the paper. LaTeX needs booktabs and longtable.
    """
    data = table.to_csv(index=False, float_format="%.6g", lineterminator="\n")
    markdown, latex = [], []
    parts = [(shown, caption)]
    if paper is not None:
        signed = any(sign in " ".join(paper.to_numpy().flat) for sign, _ in _MARKS.values())
        parts.append((paper, f"{_OF_PAPER} {explain_signs()}" if signed else _OF_PAPER))
    for part, title in parts:
        markdown.append(f"{title}\n\n{part.to_markdown(index=False, disable_numparse=True)}\n")
        title = title.translate(_ESCAPED)
        latex.append(part.to_latex(index=False, escape=True, longtable=True, caption=title))
    printed = "\n".join(latex).translate(_FOR_LATEX)
    written = []
    for end, text in (("csv", data), ("md", "\n".join(markdown)), ("tex", printed)):
        written.append(Path(f"{target}.{end}"))
        write_text(written[-1], text)
    return written


def _measured(cell: dict[str, Any]) -> str:
    if pd.isna(cell["measured"]):
        return "not run"
    star = " *" if cell.get("significant") else ""
    return f"{_number(cell['measured'])} ± {_number(cell['sd_seeds'])}{star}"


def _with_drop(in_domain: float, drop: float) -> str:
    return "–" if pd.isna(in_domain) else f"{_number(in_domain)} ({_number(drop, signed=True)})"


def _number(value: float, signed: bool = False, decimals: int = 2) -> str:
    if pd.isna(value):
        return "–"
    return f"{float(value):{'+' if signed else ''}.{decimals}f}".replace("-", "−")


def _signs(origins: Iterable[str]) -> str:
    found = {mark for origin in origins for mark in origin.split()}
    signs = "".join(sign for mark, (sign, _) in _MARKS.items() if mark in found)
    return f" {signs}" if signs else ""


def _p_value(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def _setting(cell: dict[str, Any]) -> str:
    if pd.isna(cell["measured"]):
        return cell.get("reason") or "–"
    seeds = "1 seed" if cell["seeds"] == 1 else f"{cell['seeds']} seeds"
    parts = [f"{cell['image_size']} px", f"{cell['epochs']} epochs", cell["selection"], seeds]
    return ", ".join(part for part in parts if part)
