"""What the machine at hand can do: precision, devices, memory."""

import ctypes
import gc
import importlib.metadata
import platform
import resource
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from types import FrameType

import torch
from torch import Tensor

# What torch's allocators say; CPU allocations have no exception type of their own.
_OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "not enough memory")


PACKAGES = ("torch", "transformers", "datasets", "accelerate", "tokenizers", "numpy")  # what numbers may depend on


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that numbers may depend on."""
    return {"python": platform.python_version(), **{name: importlib.metadata.version(name) for name in PACKAGES}}


def versions_line() -> str:
    """What a notebook opens with: this package, torch and transformers."""
    from . import __version__

    found = {name: version.split("+")[0] for name, version in versions().items()}
    return f"xsta {__version__} | torch {found['torch']} | transformers {found['transformers']}"


def has_bf16(device: torch.device | str = "cpu") -> bool:
    """Whether bfloat16 is worth using on a device."""
    if torch.device(device).type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.device(device).type == "cpu" and torch.ops.mkldnn._is_mkldnn_bf16_supported()


def peak_memory_bytes() -> int:
    """Peak resident memory of this process."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def release_memory() -> None:
    """Give back what an earlier model in this process left: its reference cycles, and pages the C library keeps."""
    gc.collect()
    with suppress(OSError, AttributeError):  # only glibc has it
        ctypes.CDLL(None).malloc_trim(0)


@contextmanager
def interrupted_once(processes: int = 1) -> Iterator[threading.Event]:
    """The first Ctrl-C sets the event, so that a loop can end where it is whole; a second one breaks off as usual.

    Only in the main thread and where Ctrl-C is not ignored. Several ``processes`` would end at different places, so
    there, too, nothing changes.
    """
    asked, before = threading.Event(), signal.getsignal(signal.SIGINT)
    main = threading.current_thread() is threading.main_thread()
    if not main or processes > 1 or before in (None, signal.SIG_IGN):
        yield asked
        return

    def ask(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGINT, before)
        asked.set()
        print("\nstopping after this step; Ctrl-C again breaks off at once", flush=True)

    signal.signal(signal.SIGINT, ask)
    try:
        yield asked
    finally:
        signal.signal(signal.SIGINT, before)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that a device's memory is exhausted."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error).lower() for text in _OUT_OF_MEMORY)


def to_device(inputs: object, device: torch.device) -> object:
    """A batch's tensors, in dictionaries and lists, moved to a device."""
    if isinstance(inputs, dict):
        return {name: to_device(value, device) for name, value in inputs.items()}
    if isinstance(inputs, list):
        return [to_device(value, device) for value in inputs]
    return inputs.to(device, non_blocking=True) if isinstance(inputs, Tensor) else inputs


def matmul_rate(device: torch.device | str = "cpu", size: int | None = None, rounds: int = 5) -> float:
    """Floating point operations a second of large square matrix products, the best of some, in the training precision.

    Args:
        device: where.
        size: rows and columns; by default 2048 on a CPU and 8192 on a GPU.
        rounds: how many products are timed.
    """
    device = torch.device(device)
    size = size or (2048 if device.type == "cpu" else 8192)
    dtype = torch.bfloat16 if has_bf16(device) else torch.float32
    left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    best = float("inf")
    for _ in range(rounds + 1):  # the first one warms up
        began = time.perf_counter()
        left @ right
        if device.type == "cuda":
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - began)
    return 2 * size**3 / best


def training_flops(model: torch.nn.Module, lengths: Sequence[int]) -> float:
    """Arithmetic of reading windows of some lengths forward and backward: the encoder's products, nothing else.

    A multiply and an add count as two; backward costs twice forward. Embeddings, padding, the span head, the teacher
    and the losses are left out.

    Args:
        model: an :class:`~xsta_lib.modeling.XStaForQuestionAnswering`.
        lengths: real tokens of each window.
    """
    weights = sum(p.numel() for p in model.encoder.encoder.parameters() if p.ndim == 2)
    config = model.config.encoder
    attention = 4 * config.num_hidden_layers * config.hidden_size
    return 3 * sum(2 * weights * length + attention * length**2 for length in lengths)
