"""What an earlier version left of a run opens in this one, and gives the same numbers.

`tests/kept/report` is of the embedded sample, run before the package was divided into rooms: two
executed notebooks, a model's card, its scores, and what that version made of them.
"""

import json
import shutil
from pathlib import Path

import pandas as pd
from copies import ROOT

from wavegms.config import load_params
from wavegms.data.manifest import PAIR_COLUMNS
from wavegms.report import page
from wavegms.report.model_card import ScoredModel, render_model_card
from wavegms.report.notebooks import Expected
from wavegms.results.readable import readable
from wavegms.results.statistics import compare_variants
from wavegms.results.tables import (
    mark_significant,
    read_published,
    read_scores,
    segmentation_table,
    summarize_systems,
)
from wavegms.training.card import ModelCard

KEPT = Path(__file__).parent / "kept/report"
RUN = {"dataset": "phantom_a", "variant": "wave_gms", "seed": 2333}
RESAMPLING = {"resamples": 2000, "seed": 2333}


def test_its_numbers_are_the_same_to_the_last_digit_written():
    scores = read_scores(KEPT / "scores")
    within = scores[scores["test_set"] == "phantom_a"]
    published = read_published(ROOT / "results/published")
    table = segmentation_table(summarize_systems(within, **RESAMPLING), published)
    table = mark_significant(table, compare_variants(within, "wave_gms", **RESAMPLING))
    # since then a table says where a published number comes from, too
    written = table.drop(columns="origin").head(4).to_csv(index=False, float_format="%.6g")
    assert written == (KEPT / "segmentation.csv").read_text()
    assert readable(table)["DSC"].tolist() == ["89.49 ± –"]


def test_its_model_is_described_in_the_same_words():
    card = ModelCard(**json.loads((KEPT / "card.json").read_text()))
    scores = dict(iter(read_scores(KEPT / "scores").groupby("test_set")))
    no_twins = pd.DataFrame(columns=list(PAIR_COLUMNS)).astype({"crosses_split": bool})
    evaluation = load_params(ROOT / "params.yaml").evaluation
    assert evaluation.bootstrap_resamples == RESAMPLING["resamples"]
    text = render_model_card(ScoredModel(KEPT, card, scores, no_twins), evaluation)
    written = (KEPT / "model_card.md").read_text(encoding="utf-8")
    # since then the function that draws the sample has moved, and it is said what opens the model
    written = written.replace("wavegms.data.phantom.", "wavegms.phantom.scanner.")
    written = written.replace("library_name: diffusers", "library_name: wavegms").splitlines()
    new = [line for line in text.splitlines() if line not in written]
    assert len(new) == 2 and new[0].startswith("The class is to be imported from `wavegms`")
    assert [line for line in text.splitlines() if line not in new] == written


def test_its_notebooks_are_shown(tmp_path, monkeypatch):
    shutil.copytree(KEPT / "reports", tmp_path / "reports")
    shutil.copytree(KEPT / "scores", tmp_path / "results/scores")
    shutil.copy(ROOT / "params.yaml", tmp_path)
    names = [f"{stem}_phantom_a_wave_gms_2333" for stem in ("02_train", "03_evaluate")]
    # other settings may have another name or value by now, and are not what is asked for here
    kept = [Expected(name, f"kept {name}", RUN) for name in names]
    monkeypatch.setattr(page, "expected_notebooks", lambda params: kept)
    html = page.write_report(tmp_path / "report.html", tmp_path).path.read_text(encoding="utf-8")
    assert "was not run" not in html and "is no executed notebook" not in html
    for section in ("training", "leakage", "cases"):
        part = html.partition(f'<section id="{section}">')[2].partition("</section>")[0]
        assert "kept 0" in part and ("data:image/webp;base64," in part or "0.895" in part), section
    assert "89.5 (84.8 – 92.8)" in html and "ebf947c3c0e6eedcc891514d46f9d576006f713b" in html
