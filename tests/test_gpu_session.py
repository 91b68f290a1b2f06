"""`python -m wavegms gpu` without a card: its pack, its page from made-up results, its refusals."""

import ast
import json
import shutil
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import pytest
from copies import ROOT
from PIL import Image

from wavegms.__main__ import main
from wavegms.costs import harness
from wavegms.data.dataset import PreparedDataset
from wavegms.data.manifest import read_audit
from wavegms.errors import InputError
from wavegms.files import sha256_of
from wavegms.run.gpu import session
from wavegms.run.gpu.pack import _LIBRARIES, compress, expand
from wavegms.run.gpu.summary import BENCHMARK, HISTORY, LOG, RUN, SUMMARY, anonymous, summarise
from wavegms.run.gpu.wheels import LIST, check_pack


def test_without_a_card_it_says_so_in_one_sentence(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(session, "apart", lambda name: False)
    out = tmp_path / "out"
    assert main(["gpu", "--out", str(out)]) == 1
    said = capsys.readouterr().err
    assert said.startswith("error: there is no CUDA card here") and "--rehearse" in said
    assert said.count("\n") == 1 and not out.exists()
    assert main(["gpu", "--minutes", "0"]) == 1
    assert "error: --minutes is 0" in capsys.readouterr().err


def test_it_starts_where_nothing_is_installed(tmp_path):
    """A pack brings the libraries, so nothing may ask for them before they are there."""
    command = [sys.executable, "-S", "-m", "wavegms", "gpu", "--from", str(tmp_path / "none")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, encoding="utf-8")
    assert done.returncode == 1 and "is no whole pack" in done.stderr


def test_its_tests_ask_for_nothing_that_a_pack_lacks():
    brought = {name.replace("-", "_").lower() for name in _LIBRARIES}
    brought |= {"torch", "numpy", "pandas", "scipy", "safetensors", "accelerate", "wavegms"}
    todo, seen = {"test_gpu"}, set()
    while todo:
        seen.add(name := todo.pop())
        tree = ast.parse((ROOT / f"tests/{name}.py").read_text(encoding="utf-8"))
        names = {
            one.name
            for node in ast.walk(tree)
            if isinstance(node, ast.Import)
            for one in node.names
        }
        names |= {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
        roots = {name.partition(".")[0] for name in names}
        own = {name for name in roots if (ROOT / f"tests/{name}.py").is_file()}
        assert roots - own - set(sys.stdlib_module_names) <= brought
        todo |= own - seen


def test_training_and_scores_ask_for_no_reader_of_volumes():
    """Which a pack has not, and which takes time to import."""
    code = "import sys, wavegms.training.recipe, wavegms.results.scores; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert "torch" in done.stdout.split() and "SimpleITK" not in done.stdout.split()


@pytest.fixture
def mixed(prepared, tmp_path):
    """The prepared sample, whose images are grey, with one that has colours."""
    folder = tmp_path / "prepared"
    shutil.copytree(prepared, folder)
    data = PreparedDataset(folder, "train")
    path = folder / "images" / f"{data.ids[0]}.png"
    pixels = np.array(Image.open(path))
    pixels[:4, :4] = [200, 30, 90]
    Image.fromarray(pixels).save(path)
    from wavegms.data.manifest import load_manifest, pixels_hash

    manifest = load_manifest(folder)
    mask = np.array(Image.open(folder / "masks" / path.name)) > 127
    manifest.loc[manifest["id"] == data.ids[0], "pixels"] = pixels_hash(pixels, mask)
    manifest.to_csv(folder / "manifest.csv", index=False)
    return folder


def test_a_packed_folder_is_the_prepared_one_pixel_by_pixel(mixed, tmp_path):
    packed, again = tmp_path / "packed", tmp_path / "again"
    compress(mixed, packed)
    expand(packed, again)
    assert (again / "manifest.csv").read_bytes() == (mixed / "manifest.csv").read_bytes()
    for split in ("train", "val", "test"):
        one, other = (PreparedDataset(folder, split) for folder in (mixed, again))
        assert one.images.equal(other.images) and one.masks.equal(other.masks)
    modes = {Image.open(path).mode for path in (packed / "images").iterdir()}
    assert modes == {"L", "RGB"}
    assert {Image.open(path).mode for path in (packed / "masks").iterdir()} == {"1"}


def test_for_a_rehearsal_it_is_few_and_small(mixed, tmp_path):
    compress(mixed, tmp_path / "packed")
    expand(tmp_path / "packed", tmp_path / "few", small=2)
    data = PreparedDataset(tmp_path / "few", ("train", "val", "test"))
    assert data.image_size == 64 and len(data) == 6


@pytest.mark.realdata
@pytest.mark.slow
def test_busi_is_packed_in_less_than_half_of_what_is_carried(real_data, tmp_path):
    from wavegms.run.gpu.pack import AUDIT, DATA, write_pack

    for place, source in {
        "data/raw/busi": "data/raw/busi",
        "data/raw/splits": "data/splits",
        "models/taesd": "models/taesd_original",
    }.items():
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / place).symlink_to(real_data / source)
    pack = tmp_path / "pack"
    write_pack(pack, tmp_path, wheels=False)
    check_pack(pack)
    assert sum(path.stat().st_size for path in pack.rglob("*") if path.is_file()) < 30e6
    assert read_audit(pack / AUDIT)["crosses_split"].sum() > 0
    expand(pack / DATA, tmp_path / "again")
    assert len(PreparedDataset(tmp_path / "again", ("train", "val"))) == 517
    assert len(PreparedDataset(tmp_path / "again", "test")) == 130


@pytest.fixture
def small_pack(tmp_path):
    folder = tmp_path / "pack"
    (folder / "wheels").mkdir(parents=True)
    for name in ("a.txt", "wheels/b-1-py3-none-any.whl"):
        (folder / name).write_text(name)
    sums = {name: sha256_of(folder / name) for name in ("a.txt", "wheels/b-1-py3-none-any.whl")}
    (folder / LIST).write_text(json.dumps({"sha256": sums}))
    return folder


def test_a_whole_pack_is_taken(small_pack):
    check_pack(small_pack)


@pytest.mark.parametrize(
    "damage",
    [
        lambda pack: (pack / "a.txt").write_text("b.txt"),
        lambda pack: (pack / "a.txt").unlink(),
        lambda pack: (pack / LIST).unlink(),
        lambda pack: (pack / LIST).write_text("[]"),
        lambda pack: (pack / LIST).write_text('{"sha256": ['),
        lambda pack: (pack / "wheels/evil-1-py3-none-any.whl").write_text("x"),
    ],
    ids=["changed", "missing", "no list", "another list", "half a list", "one more wheel"],
)
def test_a_damaged_pack_is_refused(small_pack, damage, capsys, survived):
    damage(small_pack)
    with pytest.raises(InputError, match="is no whole pack"):
        check_pack(small_pack)
    assert main(["gpu", "--from", str(small_pack)]) == 1
    assert "is no whole pack" in capsys.readouterr().err
    survived("inputs")


def made_up(folder):
    """What a run of 400 epochs would have left."""
    versions = {"torch": "2.11.0", "kornia": "0.9.0"}
    run = {"card": "NVIDIA H100", "card_gib": 79.1, "peak_gib": 3.25, "cuda": "13.0"}
    run |= {"python": "3.12.3", "versions": versions, "precision": "bf16", "seed": 2333}
    run |= {"training_seconds": 300.0, "image_size": 224, "epochs": 400, "best_epoch": 377}
    run |= {"train_images": 517, "selection_images": 130, "planned_epochs": 400}
    run |= {"scores_precision": "fp32", "refusal": ""}
    run |= {"parameters": {"training": {"batch_size": 12}}}
    rows = [
        {"protocol": protocol, "images_used": used, "metric": metric, "images": images}
        | {"mean": mean, "sd": 0.1, "ci_low": mean - 0.03, "ci_high": mean + 0.03, "empty": 1}
        for protocol, best in (("best_on_test", 0.02), ("last_epoch", 0.0))
        for used, images in (("all", 130), ("clean", 93))
        for metric, mean in (
            *(("dsc", 0.8 + best), ("iou", 0.7 + best)),
            *(("hd95", 20.0), ("hd95_zero_if_empty", 19.0)),
        )
    ]
    (folder / RUN).write_text(json.dumps(run | {"scores": rows}))
    cases = [
        {"case": "plain", "step_seconds": 0.3, "step_gib": 20.0, "share_of_peak": 0.3}
        | {"share_of_bf16_peak": 0.021},
        {"case": "lean bf16", "step_seconds": 0.05, "step_gib": 2.0, "share_of_peak": 0.1}
        | {"share_of_bf16_peak": 0.1},
        {"case": "lean bf16, compiled", "note": "not done after 90 s"},
    ]
    pd.DataFrame(cases).assign(image_size=224, batch_size=12).to_csv(
        folder / BENCHMARK, index=False
    )
    history = pd.DataFrame({"epoch": range(1, 401), "loss": 0.5, "dsc": np.nan, "iou": 0.6})
    history = history.assign(hd95=21.0, hd95_zero_if_empty=17.0)
    history.loc[history["epoch"] % 4 == 1, "dsc"] = 0.5 + history["epoch"] / 1000
    history.to_csv(folder / HISTORY, index=False)
    (folder / LOG).write_text("long\ntests: passed (20 passed)\npart tests: 61 s\n")


def test_the_page_has_the_numbers_beside_the_papers(tmp_path):
    made_up(tmp_path)
    page = summarise(tmp_path)
    table = [line for line in page.splitlines() if line.startswith("|")]
    best = next(line for line in table if "best on the test images" in line)
    assert "82.00 (79.00 – 85.00)" in best and "72.00" in best and "| 130 |" in best
    last = next(line for line in table if "last epoch" in line and "without a twin" in line)
    assert "80.00 (77.00 – 83.00)" in last and "19.00" in last and "| 93 |" in last
    paper = next(line for line in table if line.startswith("| paper"))
    assert "82.31 | 73.42 | 18.46" in paper
    lean = next(line for line in table if line.startswith("| lean bf16 |"))
    assert "50.0 | 2.00 | 10.0% | 10.0% | 6.00 | 0.10" in lean
    assert any("300.0 | 20.00 | 2.1% | 30.0%" in line for line in table)
    epochs = [line for line in table if line.count("|") == 7 and line[2].isdigit()]
    assert "| 1 | 0.5000 | 50.10 | 60.00 | 17.00 | 21.00 |" in epochs and len(epochs) == 12
    assert "after 100 of 400 epochs" in page and "89.70 % after epoch 397" in page
    assert "scored in fp32" in page and "cut off" not in page and "one launch" not in page
    assert any("compiled | not done after 90 s" in line for line in table)
    assert "400 epochs in 5.0 minutes" in page and "0.75 s each" in page
    assert "tests: passed (20 passed)" in page and "long" not in page


@pytest.mark.parametrize("missing", [RUN, BENCHMARK, LOG, HISTORY])
def test_a_page_is_made_of_whatever_there_is(tmp_path, missing):
    made_up(tmp_path)
    (tmp_path / missing).unlink(missing_ok=True)
    page = summarise(tmp_path)
    assert ("did not end" in page) == (missing == RUN)
    assert ("## Scores" in page) == (missing != RUN)
    assert ("A training step at 224×224, batch 12" in page) == (missing != BENCHMARK)


def test_images_are_called_by_a_hash():
    found = anonymous(pd.DataFrame({"id": ["benign_1", "benign_2"], "dsc": [0.1, 0.2]}))
    assert found["id"].str.fullmatch("[0-9a-f]{10}").all() and found["id"].is_unique
    assert found["dsc"].tolist() == [0.1, 0.2]


def test_a_part_that_fails_leaves_the_turn_to_the_next(tmp_path, monkeypatch):
    def fail():
        raise RuntimeError("CUDA error: something\nlong")

    session._part("tests", tmp_path, fail)
    session._part("benchmark", tmp_path, lambda: "done")
    log = (tmp_path / LOG).read_text()
    assert "part tests failed: RuntimeError: CUDA error: something\n" in log and "done" in log
    # a benchmark that broke off before its table was made
    broken = {"case": ["plain"], "image_size": [224], "batch_size": [12], "step_seconds": [0.1]}
    pd.DataFrame(broken).to_csv(tmp_path / BENCHMARK)
    session._part("profile", tmp_path, lambda: "done, too")
    assert "100.0" in (tmp_path / SUMMARY).read_text()
    monkeypatch.setattr(session, "summarise", lambda out: 1 / 0)
    session._part("training", tmp_path, lambda: "the last")
    assert "no page after training: ZeroDivisionError" in (tmp_path / LOG).read_text()
    monkeypatch.undo()
    assert "part tests failed" in summarise(tmp_path)


def test_one_that_was_cut_off_or_not_one_launch_says_so(tmp_path):
    made_up(tmp_path)
    run = json.loads((tmp_path / RUN).read_text())
    run |= {"planned_epochs": 480, "refusal": "CUDA error: operation not permitted"}
    (tmp_path / RUN).write_text(json.dumps(run))
    page = summarise(tmp_path)
    assert "**It was cut off** (480 epochs were planned)" in page
    assert "could not be one launch: CUDA error: operation not permitted." in page


@pytest.fixture
def session_of(tmp_path, monkeypatch):
    """A training part whose processes do as they are told; gives what it said and what ran."""

    def run(act, seconds=90):
        ran = []

        def apart(function, *arguments, keep_memory, seconds):
            name, out = function.split(":")[1], arguments[2]
            assert 0 < seconds < 130  # a hang must not take what the others found with it
            ran.append((name, *arguments[5:6], keep_memory) if name == "train_model" else name)
            act(name, *arguments)
            if name in ("train_model", "take_so_far"):
                (out / RUN).write_text("{}")

        monkeypatch.setattr(session, "apart", apart)
        return session._train(tmp_path, tmp_path, tmp_path, time.time() + seconds, False), ran

    return run


def test_a_step_that_breaks_as_one_launch_is_tried_in_many(session_of):
    def act(name, *arguments):
        if name == "train_model" and arguments[5]:
            raise RuntimeError("CUDA error: an illegal memory access")

    said, ran = session_of(act)
    assert ran == [("train_model", True, True), ("train_model", False, False), "score_model"]
    assert "failed with cuda_graph True: RuntimeError: CUDA error" in said
    assert "part training: done, cuda_graph False" in said


def test_a_fork_that_fails_is_no_fault_of_the_graph(session_of):
    def act(name, *arguments):
        if len(tried) < 1:
            tried.append(name)
            raise RuntimeError("Cannot re-initialize CUDA in forked subprocess")

    tried = []
    assert session_of(act)[1][:2] == [("train_model", True, True), ("train_model", True, False)]


def test_what_a_training_had_that_was_cut_off_is_scored(session_of):
    def act(name, *arguments):
        if name == "train_model":
            raise TimeoutError

    said, ran = session_of(act)
    assert ran == [("train_model", True, True), "take_so_far", "score_model"]
    assert "what it had after 0 s is scored" in said


def test_the_first_that_had_an_epoch_is_scored_when_all_break(session_of):
    places = []

    def act(name, pack, work, *rest):
        if name == "train_model" or (name == "take_so_far" and work.name == "0"):
            raise RuntimeError("broken")
        places.append((name, work.name))

    said, _ = session_of(act)
    assert places == [("take_so_far", "1"), ("score_model", "1")] and "broken" in said


def test_without_time_or_an_epoch_nothing_is_scored(session_of):
    assert session_of(None, seconds=60) == ("part training: no time is left for it", [])

    def act(name, *arguments):
        raise TimeoutError

    said, ran = session_of(act)
    assert ran == [("train_model", True, True), "take_so_far"]
    assert "nothing of it can be scored" in said


def test_tests_that_go_on_are_stopped_and_counted(tmp_path, monkeypatch):
    """One ends by itself, one by Ctrl-C, whose last words are heard, one only when killed."""
    python = [sys.executable, "-c"]
    wait = "print('tests/x.py::a PASSED\\ntests/x.py::b', flush=True);import time;time.sleep(600)"
    deaf = "import signal; signal.signal(signal.SIGINT, lambda *about: None);" + wait
    codes = iter([wait, deaf, "0", *["0"] * 3])
    start = subprocess.Popen

    def popen(command, **about):
        return start([*python, next(codes)], **about)

    monkeypatch.setattr(session.subprocess, "Popen", popen)
    monkeypatch.setattr(session, "_LAST_WORDS", 1.0)
    said = session._test(8.0, rehearse=True)
    told = [line for line in said.splitlines() if line.startswith("tests: ")]
    assert told == ["tests: stopped after 8 s in b (1 passed)"] * 2
    assert said.count("KeyboardInterrupt") >= 1
    said = session._test(60.0, rehearse=True)
    assert [line for line in said.splitlines() if line.startswith("tests: ")] == [
        "tests: passed (none)"
    ] * 2


def test_tests_are_counted_and_the_one_that_went_on_is_named():
    said = "collecting\ntests/test_gpu.py::test_a PASSED [ 3%]\ntests/test_gpu.py::test_b[x] "
    assert session._counted(said, "stopped after 9 s").endswith(
        "tests: stopped after 9 s in test_b[x] (1 passed)"
    )
    assert session._counted("no module", "status 4").endswith("tests: status 4 (none)")


def test_shares_are_of_the_bf16_peak_for_all(tmp_path, monkeypatch):
    points = [
        {"case": kind, "precision": kind, "step_seconds": 1.0, "note": None}
        for kind in ("fp32", "bf16")
    ]
    costs = pd.DataFrame({"case": ["fp32", "bf16"], "share_of_peak": [0.5, 0.2]})
    monkeypatch.setattr(
        session, "tabulate_costs", lambda *about: costs.assign(batch_size=1, task="train")
    )
    session._tabulate(tmp_path, pd.DataFrame(points), {"fp32": 50e3, "bf16": 800e3})
    table = pd.read_csv(tmp_path / BENCHMARK).set_index("case")
    assert table["share_of_bf16_peak"].to_dict() == {"fp32": 0.03125, "bf16": 0.2}
    assert table["peak_tflops"].to_dict() == {"fp32": 50, "bf16": 800}


class Unpicklable(RuntimeError):
    """As torch's compiler has them: made from more than its message."""

    def __init__(self, backend, inner):
        super().__init__(f"{backend} has {inner}")


def cannot_be_compiled():
    raise Unpicklable("inductor", "no triton")


def test_an_error_that_cannot_travel_is_told_all_the_same():
    with pytest.raises(RuntimeError, match="Unpicklable: inductor has no triton") as error:
        harness._call(f"{__name__}:cannot_be_compiled")
    assert type(error.value) is RuntimeError
    with pytest.raises(ZeroDivisionError):
        harness._call("operator:truediv", 1, 0)
