"""Networks without Wave-GMS beside them: whatever `variants` lists, it runs to the report."""

import json
import shutil

import pytest
import yaml
from copies import SMALL_SAMPLE, TINY_SETTING, compose, copy_project, run, started, tiny_profile
from test_variants import build_kl

from wavegms.models.autoencoder import freeze
from wavegms.variants import VARIANTS

pytestmark = pytest.mark.slow


def said_by(notebook):
    """What the cells of an executed notebook print, and how many pictures they show."""
    outputs = [
        output
        for cell in json.loads(notebook.read_text())["cells"]
        for output in cell.get("outputs", [])
    ]
    texts = "".join("".join(output.get("text", "")) for output in outputs)
    return texts, sum("image/png" in output.get("data", {}) for output in outputs)


# of each kind of network one, alone or first, which the tour follows
@pytest.mark.parametrize(
    "variants",
    [["unet"], ["gms"], ["tinyvae_multires_sft", "wave_gms_batch_2"]],
    ids=" ".join,
)
def test_any_networks_run_to_the_report(small_project, tmp_path, variants):
    """In a copy whose scanner, autoencoder and costs are there; no result of Wave-GMS is."""
    freeze(build_kl()).save_pretrained(tmp_path / "kl")
    autoencoder = yaml.safe_load(TINY_SETTING)["autoencoder"] | {"sd_vae": str(tmp_path / "kl")}
    nothing = {"datasets": []}
    other = {"variants": variants, "autoencoder": autoencoder, "external": []}
    other |= {"ablation": nothing, "foundations": nothing}
    root = tmp_path / "wave-gms"
    copy_project(small_project, root)
    for left in ("models/phantom_a", "models/ablation", "models/foundations"):
        shutil.rmtree(root / left)
    for left in ("ablation/phantom_a", "figures", "foundations", "scores", "tables", "visualize"):
        shutil.rmtree(root / "results" / left)
    (root / "conf/profile/other.yaml").write_text(tiny_profile(**SMALL_SAMPLE | other))
    compose(root, "other")
    stages = started(run(root, "dvc", "repro"))
    assert {stage.partition("@")[0] for stage in stages} == {
        *("check", "train", "evaluate", "visualize", "tour", "results", "report")
    }
    report = (root / "results/report.html").read_text()
    assert [name for name in variants if VARIANTS[name].title not in report] == []
    pictures = {path.name for path in (root / "results/visualize/phantom_a").glob("*.png")}
    networks = {VARIANTS[name].network for name in variants}
    latents = any(VARIANTS[name].autoencoder for name in variants)
    assert ("visualize_method.png" in pictures) == ("wavelet" in networks)
    assert ("visualize_levels.png" in pictures) == latents
    assert {"visualize_cases.png", "visualize_bands.png"} <= pictures
    texts, _ = said_by(root / "reports/06_visualize_phantom_a.ipynb")
    assert ("None of these networks has a wavelet encoder." in texts) == ("wavelet" not in networks)
    assert ("None of these networks has latents." in texts) == (not latents)
    first = VARIANTS[variants[0]]
    texts, shown = said_by(root / "reports/00_tour.ipynb")
    assert ("This network has no latents." in texts) == (first.autoencoder is None)
    assert shown == (4 if first.autoencoder else 2)
    assert "mask (200, 301) bool" in texts
