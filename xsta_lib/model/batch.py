"""The whole batch: what statistics, means and contrasts run over.

One process holds all of it, and everything here is the identity or plain arithmetic. Training in several processes puts
its own sums in place for its duration (:func:`spread`), so that the model sees one batch either way.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor

_processes = None  # or an object that knows how, see xsta_lib.training.ranks.Ranks


@contextmanager
def spread(processes: object | None) -> Iterator[None]:
    """Let a batch lie in several processes; ``None``: this one has all of it."""
    global _processes
    before, _processes = _processes, processes
    try:
        yield
    finally:
        _processes = before


def total(value: Tensor) -> Tensor:
    """The whole batch's sum, given this process's."""
    return value if _processes is None else _processes.total(value)


def mean(weighted: Tensor, weight: Tensor, rows: int) -> Tensor:
    """A weighted mean over the whole batch, as this process's part of it; 0 where all weights are 0.

    Args:
        weighted: this process's weighted sum.
        weight: its sum of weights.
        rows: its rows, which its loss counts by.
    """
    return weighted / weight.clamp_min(1) if _processes is None else _processes.mean(weighted, weight, rows)


def gather(*tensors: Tensor) -> tuple[int, list[Tensor]]:
    """``(first, gathered)``: where this process's rows (B, ...) begin among those of the whole batch, and these."""
    return (0, list(tensors)) if _processes is None else _processes.gather(*tensors)
