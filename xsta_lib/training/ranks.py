"""Several processes as one: sums, rows and objects over all ranks, with the gradients that belong to them.

In a single process everything here is the identity. A rank's loss counts by its share of the global batch's rows, so
that the loss over all ranks is the one process's loss on the whole batch (see :meth:`Ranks.mean`).
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from accelerate import Accelerator, DistributedDataParallelKwargs, PartialState
from accelerate.state import AcceleratorState
from accelerate.utils import gather_object
from torch import Tensor, nn
from torch.distributed.nn.functional import all_reduce

from ..model.batch import spread
from .machine import has_bf16

_alone = False


def world_size() -> int:
    """How many processes compute together; 1 without ``torchrun`` or inside :func:`alone`."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() and not _alone else 1


def rank() -> int:
    """This process's number among them, 0 to ``world_size() - 1``."""
    return dist.get_rank() if world_size() > 1 else 0


@contextmanager
def alone() -> Iterator[None]:
    """Compute as if there were one process: for a batch with fewer rows than ranks, which every rank reads whole."""
    global _alone
    before, _alone = _alone, True
    try:
        with spread(None):
            yield
    finally:
        _alone = before


def main_first() -> AbstractContextManager:
    """Let rank 0 go through a block before the others (it fills a cache that they read)."""
    start()
    return PartialState().main_process_first()


def wait() -> None:
    """Wait for all ranks."""
    PartialState().wait_for_everyone()


def sum_over_ranks(value: Tensor) -> Tensor:
    """The sum of equally shaped tensors over all ranks; a gradient that arrives anywhere belongs to every summand."""
    return all_reduce(value) if world_size() > 1 else value


class Ranks:
    """Several processes as :mod:`xsta_lib.model.batch` needs them; see there for arguments and results."""

    def total(self, value: Tensor) -> Tensor:
        """The sum over all ranks."""
        return sum_over_ranks(value)

    def mean(self, total: Tensor, weight: Tensor, rows: int) -> Tensor:
        """This rank's part of a weighted mean over all ranks' rows."""
        sums = sum_over_ranks(torch.stack([weight.detach().float(), torch.full_like(weight, rows).float()]))
        return total / (sums[0].clamp_min(1) * rows / sums[1])

    def gather(self, *tensors: Tensor) -> tuple[int, list[Tensor]]:
        """The rows of all ranks, one rank after the other; ranks may hold different numbers of rows."""
        counts = torch.zeros(world_size(), dtype=torch.long, device=tensors[0].device)
        counts[rank()] = len(tensors[0])
        counts = sum_over_ranks(counts).tolist()
        first, gathered = sum(counts[: rank()]), []
        for tensor in tensors:  # zeros elsewhere, then a sum: its gradient needs no operation that gloo lacks
            before, after = tensor.new_zeros(first, *tensor.shape[1:]), sum(counts) - first - len(tensor)
            gathered.append(sum_over_ranks(torch.cat([before, tensor, tensor.new_zeros(after, *tensor.shape[1:])])))
        return first, gathered


def one_batch() -> AbstractContextManager:
    """Let the model's statistics, means and contrasts run over the rows of all ranks."""
    return spread(Ranks() if world_size() > 1 else None)


def start() -> None:
    """Join the other processes, if ``torchrun`` started this one; call it before anything else here."""
    # without cpu, CPU processes would not be joined; rank 0 may prepare data for long while the others wait
    PartialState(cpu=not torch.accelerator.is_available(), timeout=timedelta(hours=4))


def make_accelerator(precision: str, tracker: str, folder: Path | None) -> Accelerator:
    """The process's accelerator: devices, precision, processes, tracker.

    Raises:
        ValueError: the tracker is unknown or not installed.
    """
    if precision == "auto":
        precision = "bf16" if has_bf16("cuda" if torch.cuda.is_available() else "cpu") else "fp32"
    mixed = "no" if precision == "fp32" else precision
    known = AcceleratorState._shared_state.get("_mixed_precision")
    if known not in (None, mixed):  # accelerate keeps one precision a process unless told to forget it
        AcceleratorState._reset_state()
    # the source's steps leave the teacher unused; the statistics are the same on all ranks already.
    handler = DistributedDataParallelKwargs(find_unused_parameters=True, broadcast_buffers=False)
    accelerator = Accelerator(
        mixed_precision=mixed,
        cpu=not torch.accelerator.is_available(),  # without it, CPU processes would not be joined
        kwargs_handlers=[handler],
        log_with=tracker or None,
        project_dir=folder,
    )
    if tracker and not accelerator.log_with:
        raise ValueError(f"tracker {tracker!r} is not installed; install its package or leave tracker empty")
    return accelerator


def device() -> torch.device:
    """Where this process computes."""
    start()
    return PartialState().device


def same_buffers(module: nn.Module) -> None:
    """Give all ranks rank 0's buffers."""
    for buffer in module.buffers() if world_size() > 1 else ():
        dist.broadcast(buffer, 0)


def agreed(value: object) -> object:
    """Rank 0's answer, for all: what one rank sees on a disk another may not see yet."""
    return gather_objects(value)[0]


def gather_objects(value: object) -> list:
    """Every rank's object (of this very run, so unpickling is safe), in the ranks' order."""
    return gather_object([value])
