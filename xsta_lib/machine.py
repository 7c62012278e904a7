"""What the machine at hand can do: precision, devices, memory."""

import resource

import torch
from torch import Tensor

# What torch's allocators say; CPU allocations have no exception type of their own.
_OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "not enough memory")


def has_bf16(device: torch.device | str = "cpu") -> bool:
    """Whether bfloat16 is worth using on a device."""
    if torch.device(device).type == "cuda":
        return torch.cuda.is_bf16_supported()
    return torch.device(device).type == "cpu" and torch.ops.mkldnn._is_mkldnn_bf16_supported()


def peak_memory_bytes() -> int:
    """Peak resident memory of this process."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


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
