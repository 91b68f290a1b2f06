"""What a piece of work would launch on a card and wait for, counted on the processor."""

from torch.utils._python_dispatch import TorchDispatchMode

# Memory and names of memory; no kernel runs.
_FREE = ("aten::empty", "aten::new_empty", "aten::detach", "aten::empty_like", "aten::lift_fresh")
# A value is read, or a size depends on one.
_WAITING = ("aten::_local_scalar_dense", "aten::nonzero", "aten::is_nonzero", "aten::equal")


class Counting(TorchDispatchMode):
    """Counts the operations of a block: `launches` that compute, and `waits` for a value."""

    def __init__(self):
        super().__init__()
        self.launches, self.waits = 0, []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func._schema.name
        if name.startswith(_WAITING):
            self.waits.append(name)
        views = [r.alias_info and not r.alias_info.is_write for r in func._schema.returns]
        if not any(views) and name not in _FREE:
            self.launches += 1
        return func(*args, **(kwargs or {}))


def count_epochs(loop_module, train, run):
    """(launches, waits) of a step of a training's second epoch, batches included, selection not."""
    counted = []
    steps = loop_module.TrainingLoop._end_epoch
    measure = loop_module.mean_soft_dice

    def end(self, state, *rest):
        counting.__exit__(None, None, None)
        counted.append((counting.launches / len(self.batches), len(counting.waits)))
        steps(self, state, *rest)
        counting.launches, counting.waits = 0, []
        counting.__enter__()

    counting = Counting()
    loop_module.TrainingLoop._end_epoch = end
    loop_module.mean_soft_dice = lambda *_: 0.5
    try:
        counting.__enter__()
        train(run)
        counting.__exit__(None, None, None)
    finally:
        loop_module.TrainingLoop._end_epoch, loop_module.mean_soft_dice = steps, measure
    return counted[1]
