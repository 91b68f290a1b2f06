"""The test images while a training goes on: the final scores' numbers, at little cost."""

import json
from multiprocessing import Pipe
from unittest.mock import MagicMock

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from runs import as_tiny, make_run

from wavegms import InputError
from wavegms.data.dataset import PreparedDataset
from wavegms.images import IGNORED
from wavegms.results.scores import score_split
from wavegms.results.statistics import summarize
from wavegms.run.gpu import watch as gpu_watch
from wavegms.run.gpu.summary import METRICS
from wavegms.run.gpu.watch import Watch, with_watched
from wavegms.training import loop as training_loop
from wavegms.training.recipe import so_far, train


def test_it_finds_what_the_final_scores_say_and_outlives_its_process(prepared, tmp_path):
    data = PreparedDataset(prepared, ("train", "val", "test"))
    data.masks[:, :, :8, :8] = IGNORED
    soft = torch.rand(len(data), 1, 32, 32).lerp(data.masks.clamp(max=1).float(), 0.6)
    soft[0] = 0  # where the two conventions of HD95 differ
    watch = Watch(data.masks, tmp_path / "watched.csv")
    assert watch._ours.poll(120)
    watch._begun -= 1000  # so long as if it had cost nothing so far
    watch(7, soft)
    assert watch._ours.poll(120)
    watch(8, soft)
    found = pd.read_csv(tmp_path / "watched.csv").set_index("epoch")
    wanted = summarize(score_split(soft[:, 0].numpy(), data), 100, 0).set_index("metric")["mean"]
    assert found.index.tolist() == [7]
    for name in METRICS:
        assert found.loc[7, name] == pytest.approx(wanted[name])
    assert found.loc[7, "hd95"] > found.loc[7, "hd95_zero_if_empty"]
    watch._process.kill()
    watch._process.join()
    for epoch in range(9, 12):
        watch(epoch, soft)
    watch.close()
    history = with_watched(pd.DataFrame({"epoch": [6, 7]}), tmp_path / "watched.csv")
    assert history["dsc"].isna().tolist() == [True, False]
    assert with_watched(history[["epoch"]], tmp_path / "none.csv")["dsc"].isna().all()


@pytest.mark.parametrize("sent", [[], [np.ones((1, 8, 8), bool)]], ids=["idle", "at work"])
def test_its_process_ends_with_the_training_however_that_ends(sent):
    ours, theirs = Pipe()
    for masks in sent:
        ours.send(masks)
    ours.close()
    gpu_watch._serve(theirs, np.ones((1, 8, 8), np.uint8))


class Beside:
    """A clock, and a process that measures by it."""

    def __init__(self, taking, measuring):
        self.seconds, self.taking, self.measuring = 0.0, taking, measuring
        self.ready, self.taken = 0.0, []

    def __call__(self):
        return self.seconds

    def Pipe(self):
        return self, self

    def Process(self, **about):
        return self

    def start(self):
        pass

    close = start

    def poll(self, patience):
        return self.ready is not None and self.seconds >= self.ready

    def recv(self):
        self.ready = None
        return dict.fromkeys(METRICS, 0.5), self.measuring if self.taken else 0.0

    def send(self, masks):
        self.taken.append(self.seconds)
        self.seconds += self.taking
        self.ready = self.seconds + self.measuring


@given(
    epoch=st.floats(0.05, 5),
    taking=st.floats(0.001, 0.2),
    measuring=st.floats(0.1, 5),
    on_card=st.booleans(),
)
@settings(max_examples=20)
@example(epoch=0.3, taking=0.004, measuring=1.0, on_card=True)
def test_it_takes_a_twentieth_of_the_time_at_most(
    epoch, taking, measuring, on_card, tmp_path_factory
):
    """But for the one that is begun: on a card of the training's own, beside one of all."""
    beside, soft = Beside(taking, measuring), torch.zeros(1, 1, 2, 2)
    seen = MagicMock(is_cuda=on_card)
    seen.__getitem__.return_value = soft
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gpu_watch, "now", beside)
        patch.setattr(gpu_watch, "get_context", lambda kind: beside)
        patch.setattr(gpu_watch, "write_text", lambda *about: None)
        watch = Watch(soft, tmp_path_factory.getbasetemp() / "watched.csv")
        for number in range(1, 61):
            beside.seconds += epoch
            watch(number, seen)
    cost = taking + (0 if on_card else measuring)
    assert len(beside.taken) * cost <= 0.05 * beside.seconds + 2 * cost
    if on_card and taking < 0.04 * epoch:  # then it is as often as the process beside can
        assert len(beside.taken) >= 59 // (measuring // epoch + 2)


def test_of_a_training_that_is_cut_off_there_is_what_was_saved(
    prepared, training_params, tmp_path, monkeypatch
):
    as_tiny(monkeypatch)
    monkeypatch.setattr(training_loop, "_SAVE_SECONDS", 0.0)
    sets = PreparedDataset(prepared, "train"), PreparedDataset(prepared, "val")
    run = make_run(tmp_path, *sets, training_params(epochs=5), variant="tiny", live=None)
    with pytest.raises(InputError, match="holds no finished epoch"):
        so_far(run, torch.device("cpu"))
    seen = []

    def watch(epoch, soft_masks):
        seen.append(soft_masks)
        if epoch == 4:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        train(run, watch)
    assert seen[0].shape == (2, 1, 32, 32)
    written = sorted((tmp_path / "model").glob("*/*/*.safetensors"))
    for path in written:
        path.unlink()  # whatever lies there may be older
    result = so_far(run, torch.device("cpu"))
    assert len(result.history) == 3 and result.planned == 5
    assert result.best_dice == result.history["selection_dice"].max()
    assert written == sorted((tmp_path / "model").glob("*/*/*.safetensors"))
    whole = train(make_run(tmp_path / "again", *sets, training_params(epochs=5), variant="tiny"))
    assert whole.history["selection_dice"][:3].equals(result.history["selection_dice"])
    assert json.loads((result.folder / "last/model_index.json").read_text())["network"]
