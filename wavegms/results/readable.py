"""Tables for a reader: the results as text, written as CSV, Markdown and LaTeX."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from wavegms.data.catalog import spec_of
from wavegms.files import write_text
from wavegms.results.tables import title_of

# Metric, its short title, and the heading of what was measured.
_SHOWN = (
    ("dsc", "DSC", "DSC"),
    ("iou", "IoU", "IoU"),
    ("hd95_zero_if_empty", "HD95", "HD95 (0 if empty)"),
)

_HONEST = "HD95 (diagonal if empty)"

# What LaTeX without further packages prints as something else or not at all.
_FOR_LATEX = {"−": "$-$", "±": r"$\pm$", "–": "--", "<": "$<$"}


def readable(table: pd.DataFrame) -> pd.DataFrame:
    """One row for each system and pair of datasets, every cell a short text.

    A measured cell reads "82.31 ± 0.42 *": mean over seeds, standard deviation over seeds ("–" for
    a single one), and the asterisk of a difference from the reference that is significant after
    correction, where the table was marked. It reads "not run" where a system of ours has no scores,
    and "–" where this project does not have the system; why it was not run stands in the setting.

    Args:
        table: from `results.segmentation_table`, `ablation_table` or `generalization_table`, marked
            by `results.mark_significant` or not.

    Returns:
        Columns: Trained on and Tested on, or Dataset where they are the same; System; for DSC,
        IoU and the paper's HD95 the measured value, the paper's and the difference; the honest
        HD95, the number of empty predictions, and the setting. Domain generalization has, like the
        paper, no IoU, but what the same model scores at home, and the in-domain values with the
        drop from them. Shares in percent, distances in pixels.
    """
    rows = []
    across = "drop" in table
    shown = [entry for entry in _SHOWN if not (across and entry[0] == "iou")]
    for (train_set, test_set, system), group in table.groupby(
        ["train_set", "test_set", "system"], sort=False
    ):
        cells = {cell["metric"]: cell for cell in group.to_dict("records")}
        row = {"Trained on": spec_of(train_set).title} if across else {}
        row["Tested on" if across else "Dataset"] = spec_of(test_set).title
        row["System"] = system
        for metric, title, heading in shown:
            cell = cells[metric]
            row[heading] = _measured(cell)
            row[f"{title} paper"] = _number(cell["published"])
            row[f"{title} difference"] = _number(cell["difference"], signed=True)
            if across:
                row[f"{title} at home"] = _number(cell["home"])
                row[f"{title} in domain (drop)"] = _with_drop(cell["in_domain"], cell["drop"])
                row[f"{title} in domain (drop), paper"] = _with_drop(
                    cell["published_in_domain"], cell["published_drop"]
                )
        # Rows that only the paper has hold no honest HD95.
        honest = cells.get("hd95", cells["dsc"])
        row[_HONEST] = _measured(honest)
        row["Empty"] = _number(honest["empty_predictions"], decimals=0)
        row["Setting"] = _setting(honest)
        rows.append(row)
    return pd.DataFrame(rows)


def readable_comparisons(comparisons: pd.DataFrame) -> pd.DataFrame:
    """The comparisons of variants as short texts.

    Args:
        comparisons: what `comparison.compare_variants` gives, with a column table (the number in
            the paper) or without.

    Returns:
        One row for each comparison; differences of shares in percentage points, of distances in
        pixels.
    """
    headings = {metric: heading for metric, _, heading in _SHOWN} | {"hd95": _HONEST}
    scale = np.where(comparisons["metric"].str.startswith("hd95"), 1, 100)
    mean, low, high = (
        [_number(value, signed=True) for value in scale * comparisons[column]]
        for column in ("mean_difference", "ci_low", "ci_high")
    )
    tables = {"Table": comparisons["table"]} if "table" in comparisons else {}
    return pd.DataFrame(
        tables
        | {
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
    )


def write_table(table: pd.DataFrame, shown: pd.DataFrame, target: Path, caption: str) -> list[Path]:
    """Writes a table three times: as data, for the screen and for print.

    Args:
        table: the numbers, one a row.
        shown: the same for a reader.
        target: path without suffix.
        caption: a sentence, for Markdown and LaTeX.

    Returns:
        `<target>.csv` (of `table`), `<target>.md` and `<target>.tex` (of `shown`; a longtable, for
        LaTeX with booktabs and longtable).
    """
    target = Path(target)
    csv, markdown, latex = (
        target.with_name(f"{target.name}.{end}") for end in ("csv", "md", "tex")
    )
    write_text(csv, table.to_csv(index=False, float_format="%.6g", lineterminator="\n"))
    text = shown.to_markdown(index=False, disable_numparse=True)
    write_text(markdown, f"{caption}\n\n{text}\n")
    printed = shown.to_latex(index=False, escape=True, longtable=True, caption=_escaped(caption))
    for character, command in _FOR_LATEX.items():
        printed = printed.replace(character, command)
    write_text(latex, printed)
    return [csv, markdown, latex]


def _measured(cell: dict[str, Any]) -> str:
    if pd.isna(cell["measured"]):
        return "not run" if cell["variant"] else "–"
    star = " *" if cell.get("significant") else ""
    return f"{_number(cell['measured'])} ± {_number(cell['sd_seeds'])}{star}"


def _with_drop(in_domain: float, drop: float) -> str:
    return "–" if pd.isna(in_domain) else f"{_number(in_domain)} ({_number(drop, signed=True)})"


def _number(value: float, signed: bool = False, decimals: int = 2) -> str:
    if pd.isna(value):
        return "–"
    text = f"{float(value):{'+' if signed else ''}.{decimals}f}"
    return text.replace("-", "−")


def _p_value(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def _setting(cell: dict[str, Any]) -> str:
    if pd.isna(cell["measured"]):
        return cell.get("reason") or "–"
    seeds = "1 seed" if cell["seeds"] == 1 else f"{cell['seeds']} seeds"
    parts = [f"{cell['image_size']} px", f"{cell['epochs']} epochs", cell["selection"], seeds]
    return ", ".join(part for part in parts if part)


def _escaped(text: str) -> str:
    for character in "%&_#":
        text = text.replace(character, f"\\{character}")
    return text
