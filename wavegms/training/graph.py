"""A training step as one launch: a CUDA graph of all that it does on the card."""

from collections.abc import Callable
from dataclasses import fields

import torch
from torch import Tensor

from wavegms.data.batches import Batch
from wavegms.errors import first_line
from wavegms.training.safeguards import say

# Taken one by one first: cuDNN looks for its fastest kernels, and the optimiser makes its state.
_BEFORE_CAPTURE = 3


class GraphedStep:
    """A step that is captured once and then replayed with the values of the next batch.

    Batches have the same shapes, and the random numbers come with them. What a replay gives is
    overwritten by the next one. Where capturing fails, `failure` says why, which is said once, and
    all steps are taken launch by launch; it is not tried again.
    """

    def __init__(self, step: Callable[[Batch], dict[str, Tensor]]):
        self._step, self._taken, self.failure = step, 0, ""
        self._graph: torch.cuda.CUDAGraph | None = None
        self._stream = torch.cuda.Stream()

    def __call__(self, batch: Batch) -> dict[str, Tensor]:
        """Takes the step; its terms, as `step` gives them."""
        self._taken += 1
        if self._graph is None and self._taken > _BEFORE_CAPTURE and not self.failure:
            self._capture(batch)
        if self._graph is None:
            return self._apart(batch)
        for entry in fields(Batch):
            getattr(self._batch, entry.name).copy_(getattr(batch, entry.name))
        self._graph.replay()
        return self._terms

    def _apart(self, batch: Batch) -> dict[str, Tensor]:
        """On a stream of its own, as what is captured later must not have used the usual one."""
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            terms = self._step(batch)
        torch.cuda.current_stream().wait_stream(self._stream)
        return terms

    def _capture(self, batch: Batch) -> None:
        graph, stream = torch.cuda.CUDAGraph(), torch.cuda.current_stream()
        try:
            self._batch = Batch(*(getattr(batch, entry.name).clone() for entry in fields(Batch)))
            with torch.cuda.graph(graph):
                self._terms = self._step(self._batch)
        except Exception as error:  # out of memory, an operation that waits, a compiler
            torch.cuda.set_stream(stream)  # a capture that fails leaves its own
            # ending a broken capture fails, too, which says nothing of why
            self.failure = first_line(error.__context__ or error)
            self._batch = self._terms = None
            say(f"this step cannot be one launch ({self.failure}): it is taken in many")
            return
        self._graph = graph
