"""Checkpoints: weights, optimiser, random state and position as safetensors and JSON, written atomically.

Nothing is pickled: a checkpoint from somewhere else can be wrong, but not run code.
"""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ..data.files import replacing

FORMAT = 2


class CheckpointError(ValueError):
    """A checkpoint cannot be used; the message says which and why."""


def _flatten_optimizer(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    state = optimizer.state_dict()["state"]
    return {f"{index}.{name}": value for index, values in state.items() for name, value in values.items()}


def _restore_optimizer(optimizer: torch.optim.Optimizer, flat: dict[str, Tensor]) -> None:
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in flat.items():
        index, name = key.split(".", 1)
        state.setdefault(int(index), {})[name] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def random_state() -> dict[str, Tensor]:
    """The states of this process's random generators: the CPU's and its GPU's."""
    states = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state()
    return states


def model_tensors(model: nn.Module) -> dict[str, Tensor]:
    """The state dict as contiguous CPU tensors."""
    return {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}


def save_checkpoint(
    folder: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    state: dict,
    randoms: Sequence[dict[str, Tensor]],
    keep: int = 1,
) -> Path:
    """Write ``folder/step-<n>`` completely under another name, rename it, then drop all but the newest ``keep``.

    Args:
        folder: the run's checkpoint folder.
        model, optimizer: what to save.
        state: JSON values to come back with, ``step`` among them.
        randoms: every rank's :func:`random_state`.
        keep: how many checkpoints stay.
    """
    for leftover in folder.glob(".*.part"):
        shutil.rmtree(leftover)
    final = folder / f"step-{state['step']:07d}"
    flat = {f"{rank}.{name}": value for rank, states in enumerate(randoms) for name, value in states.items()}
    with replacing(final) as temporary:
        temporary.mkdir()
        save_file(model_tensors(model), str(temporary / "model.safetensors"))
        save_file(_flatten_optimizer(optimizer), str(temporary / "optimizer.safetensors"))
        save_file(flat, str(temporary / "random.safetensors"))
        (temporary / "state.json").write_text(json.dumps({"format": FORMAT, **state}), "utf-8")
    for old in _checkpoints(folder)[:-keep]:
        shutil.rmtree(old)
    return final


def _checkpoints(folder: Path) -> list[Path]:
    """The complete checkpoints in a folder by their steps; a folder that is not there has none."""
    found = [path for path in folder.glob("step-*") if path.name[5:].isdecimal()]
    return sorted(found, key=lambda path: int(path.name[5:]))


def newest_checkpoint(folder: Path) -> Path | None:
    """The newest complete checkpoint of a run, or ``None``."""
    return (_checkpoints(folder) or [None])[-1]


def load_checkpoint(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, run: str, rank: int = 0) -> dict:
    """Restore a checkpoint into model, optimiser and random generators; returns its state.

    A rank that the checkpoint does not know (it was written by fewer processes) keeps its own random numbers.

    Raises:
        CheckpointError: a file is missing or damaged, another run wrote it, or it does not fit the model.
    """
    try:
        state = json.loads((path / "state.json").read_text("utf-8"))
        tensors = load_file(str(path / "model.safetensors"))
        moments = load_file(str(path / "optimizer.safetensors"))
        randoms = load_file(str(path / "random.safetensors"))
    except (OSError, ValueError, SafetensorError) as error:
        raise CheckpointError(f"{path}: damaged checkpoint ({error}); delete it to go on from an older one") from error
    if state.get("format") != FORMAT or state.get("run") != run:
        raise CheckpointError(
            f"{path}: written by another run or version (run {state.get('run')!r}, this one is {run!r}); "
            "use another output folder or delete it"
        )
    try:
        model.load_state_dict(tensors)
        _restore_optimizer(optimizer, moments)
    except (RuntimeError, ValueError, KeyError) as error:
        raise CheckpointError(f"{path}: does not fit this model ({error})") from error
    if f"{rank}.cpu" in randoms:
        torch.set_rng_state(randoms[f"{rank}.cpu"])
    if torch.cuda.is_available() and f"{rank}.cuda" in randoms:
        torch.cuda.set_rng_state(randoms[f"{rank}.cuda"])
    return state
