"""The pictures of scores of whole volumes."""

import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from wavegms.figures.style import draw_boxes, new_panels
from wavegms.results.statistics import classes_in
from wavegms.results.tables import title_of

_NAMES = {"dsc": "Dice in 3-D", "nsd": "surface Dice at 1 mm", "hd95_mm": "HD95 (mm)"}


def show_volume_scores(scores: pd.DataFrame) -> Figure:
    """How the metrics of `score_models` are distributed over the volumes, by network.

    Of several classes they are those of each, and their mean.
    """
    rows = {}
    for variant, own in scores.groupby("variant", sort=False):
        rows[title_of(variant)] = own[list(_NAMES)]
        for name in classes_in(scores):
            of_class = own[[f"{key}:{name}" for key in _NAMES]]
            rows[f"{title_of(variant)}, {name}"] = of_class.set_axis(list(_NAMES), axis=1)
    table = pd.concat(rows, names=["system"]).reset_index("system")
    figure, axes = new_panels(len(_NAMES), 10, 1.6 + 0.6 * table["system"].nunique())
    for axis, (column, name) in zip(axes, _NAMES.items(), strict=True):
        sns.stripplot(table, x=column, y="system", ax=axis, size=4, alpha=0.7, color="#0072b2")
        draw_boxes(axis, (group for _, group in table.groupby("system", sort=False)[column]), 0.6)
        axis.set(xlabel=name, ylabel="", xlim=(0, None) if column == "hd95_mm" else (0, 1.02))
    sns.despine(figure)
    return figure
