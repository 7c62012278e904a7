"""What the machine at hand can do: precision, devices, memory."""

import ctypes
import gc
import importlib.metadata
import platform
import resource
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

import torch

PACKAGES = ("torch", "transformers", "datasets", "accelerate", "tokenizers", "numpy")  # what numbers may depend on


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that numbers may depend on."""
    return {"python": platform.python_version(), **{name: importlib.metadata.version(name) for name in PACKAGES}}


def versions_line() -> str:
    """What a notebook opens with: this package, torch and transformers."""
    from .. import __version__

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
