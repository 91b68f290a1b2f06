"""What README.md and pages of docs tell one to type is typed, as it is written, in a clean copy.

The copy is the small project, whose sample has run; one's own profile is made as small. The images
are of a kind that the project has never seen: dermoscopy in colour, some without a mask.
"""

import re
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from copies import ROOT, environment, started
from dermoscopy import write_skin
from PIL import Image

from wavegms.config import load_params

# docs/versions.md is what test_versioning.py does.
PAGES = ("README.md", "docs/own_images.md")
BLOCK = re.compile(r"^```(sh|python)\n(.*?)^```", re.MULTILINE | re.DOTALL)

SMALLER_OWN = {
    "image_size: 128": "image_size: 32",
    "min_mask_dice: 0.9": "min_mask_dice: 0.0",
    "steps: 400": "steps: 40",
    "epochs: 100": "epochs: 4",
    "batch_sizes: [1, 4]": "batch_sizes: [1, 2]",
}
# What cannot be done here, by the beginning of a command, and where it is done.
ELSEWHERE = {
    "make test": "it is what runs this",
    # beside this folder without a hub, a second ONNX file of the same model
    "python -m wavegms share models/phantom_a/wave_gms shared/hub": "test_share.py, to a hub",
}
# What must fail here, and with which sentence.
REFUSED = {
    "dvc exp run -S profile=paper": "There is no dataset bus in data/raw/bus",
    "dvc exp run -S profile=busi_128": "models/taesd is not a folder: put the weights there",
}


# Typed after everything on one's own images: each puts another profile's results in their place,
# and the last brings them back.
LATER = [
    "dvc exp run -S profile=paper",
    "dvc exp run -S profile=busi_128",
    "dvc exp run -S training.epochs=20",
    "dvc exp run -S profile=my_data",
]


def in_order():
    """Everything on the pages as (page, language, text), each thing once."""
    found = {}
    for page in PAGES:
        for language, text in blocks(page):
            if not text.startswith(tuple(ELSEWHERE)):
                found.setdefault(text, (page, language, text))
    assert set(LATER) <= set(found)
    return [found[text] for text in [*(text for text in found if text not in LATER), *LATER]]


def blocks(page):
    """(language, text) of everything to type; a line that ends with a backslash goes on."""
    for language, text in BLOCK.findall((ROOT / page).read_text(encoding="utf-8")):
        if language == "python":
            yield language, text
        else:
            for line in text.replace("\\\n", " ").splitlines():
                if command := line.split("  #")[0].split(" # ")[0].strip():
                    yield language, command


@pytest.fixture(scope="module")
def project(small_copy):
    root = small_copy
    own = root / "conf/profile/own.yaml"
    for old, new in SMALLER_OWN.items():
        assert own.read_text().count(old) >= 1
        own.write_text(own.read_text().replace(old, new))
    write_skin(root / "scans", root / "outlines", count=24, without_mask=3)
    # what the Makefile would install is here already
    (root / ".venv").mkdir()
    for part in Path(sys.prefix).iterdir():
        (root / ".venv" / part.name).symlink_to(part)
    (root / ".venv/installed").unlink(missing_ok=True)
    (root / ".venv/installed").touch()
    return root


def type_in(project, language, text):
    """Types a command or a program; what was said, and whether it went well."""
    command = ["bash", "-c", text] if language == "sh" else [sys.executable, "-c", text]
    done = subprocess.run(
        command,
        cwd=project,
        env=environment(project) | {"HF_HUB_OFFLINE": "1"},
        capture_output=True,
        encoding="utf-8",
    )
    return done.stdout + done.stderr, done.returncode


@pytest.mark.slow
def test_what_the_pages_say_is_typed(project):
    typed = {}
    for page, language, text in in_order():
        typed[text], status = type_in(project, language, text)
        if text in REFUSED:
            assert status != 0 and REFUSED[text] in typed[text], typed[text][-3000:]
        else:
            assert status == 0, f"{page}: {text}\n{typed[text][-4000:]}"
    assert set(REFUSED) <= set(typed)

    said = typed["python -m wavegms add my_data --images scans --masks outlines"]
    assert "24 images with masks" in said and "3 images without a mask" in said
    assert set(started(typed["make repro"])) == {"check"}  # the small project has run
    assert "train@my_data-wave_gms-2333" in started(typed["dvc repro"])
    # from the cache, after other profiles: nothing is trained
    back = started(typed["dvc exp run -S profile=my_data"])
    assert back and not [stage for stage in back if stage.startswith(("autoencoder", "train"))]
    scores = pd.read_csv(project / "results/scores/my_data/wave_gms/seed_2333/my_data.csv")
    assert len(scores) == 5
    assert load_params(project / "params.yaml").datasets == ["my_data"]
    for kind in ("masks", "probabilities", "overlays"):
        for number in (24, 25, 26):
            path = project / f"predictions/{kind}/lesion_{number}.png"
            with (
                Image.open(path) as made,
                Image.open(project / f"scans/lesion_{number}.jpg") as own,
            ):
                assert made.size == own.size
    assert "my_data" in (project / "results/report.html").read_text()
    assert (project / "shared/phantom_a/model.onnx").is_file()


def test_the_program_of_the_page_finds_what_a_run_left(small_project, monkeypatch):
    (text,) = [text for language, text in blocks("README.md") if language == "python"]
    monkeypatch.chdir(small_project)
    names = {}
    exec(text, names)
    assert names["mask"].shape == names["image"].size[::-1] and names["mask"].dtype == bool


def test_what_is_done_elsewhere_is_on_the_pages():
    texts = [text for page in PAGES for _, text in blocks(page)]
    for start in (*ELSEWHERE, *REFUSED):
        assert any(text.startswith(start) for text in texts)


OTHER_PAGES = [
    f"docs/{name}.md"
    for name in ("classes", "large_runs", "results", "rivals", "trust", "versions")
]


def test_links_and_files_of_the_pages_are_there():
    for page in (*PAGES, "CONTRIBUTING.md", "data/README.md", *OTHER_PAGES):
        text = (ROOT / page).read_text(encoding="utf-8")
        for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", text):
            if not target.startswith("http"):
                assert ((ROOT / page).parent / target).exists(), f"{page}: {target}"
