"""What is refused when an encoder is loaded: files that are not whole or hold something else, limits that do not fit.

Every fault is a :class:`~xsta_lib.encoders.e5_file.BackboneError` that names folder, file or weight, and the remedy.
"""

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from .e5_file import BackboneError

FOLDER = "the folder must hold config.json, model.safetensors and tokenizer.json, as save_pretrained writes them"
WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
LFS_POINTER = b"version https://git-lfs"
ADAPTER = "adapter_config.json"
MERGE = "PeftModel.from_pretrained(MODEL, ADAPTER).merge_and_unload().save_pretrained(FOLDER)"
MAX_LENGTH = 512


def unread(model: PreTrainedModel, unexpected: Iterable[str]) -> list[str]:
    """The weights of a file that lie in the model's stack of layers, but that it has no place for.

    Others are as they should be: a pooling layer, heads of other tasks, and buffers that older versions saved.
    """
    start = f"{model.base_model_prefix}."

    def stack(key: str) -> str | None:  # "encoder.layer" of "bert.encoder.layer.2.output.dense.weight"
        found = re.match(r"(.+?)\.\d+\.", key.removeprefix(start))
        return found and found[1]

    own = {stack(key) for key in model.state_dict()} - {None}
    buffers = {name.removeprefix(start) for name, _ in model.named_buffers()}
    extra = (key for key in unexpected if stack(key) in own and key.removeprefix(start) not in buffers)
    return sorted(key for key in extra if key.endswith((".weight", ".bias")))


def not_finite(weights: Mapping[str, Tensor]) -> str | None:
    """The name of the first weight that has NaN or infinity in it, or None."""
    # A sum shows either, in a tenth of the time that looking at every number takes; those of one that overflows are.
    return next(
        (name for name, value in weights.items() if not (value.sum().isfinite() or value.isfinite().all())), None
    )


def max_window(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> int:
    """How many tokens a model can read at once, special tokens included; 512 where nothing limits it."""
    return min(_positions(model), tokenizer.model_max_length)


def _positions(model: PreTrainedModel) -> int:
    """How many tokens the model itself can read at once, 512 at most."""
    config = model.config.get_text_config()
    limits = [getattr(config, name, None) for name in ("max_position_embeddings", "n_positions")]
    positions = min([limit for limit in limits if isinstance(limit, int) and limit > 0], default=MAX_LENGTH)
    for module in model.modules():  # RoBERTa's positions begin behind that of the padding
        if getattr(module, "padding_idx", None) is not None and hasattr(module, "position_embeddings"):
            positions -= module.padding_idx + 1
            break
    return min(positions, MAX_LENGTH)


def check_limits(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, name: str, window: int) -> None:
    """Refuse, with a BackboneError, an encoder that cannot read its tokenizer's pieces or windows of that length."""
    if model.main_input_name != "input_ids":
        raise BackboneError(f"{name}: {type(model).__name__} does not read text; choose an encoder of text")
    rows, pieces = model.get_input_embeddings().weight.shape[0], len(tokenizer)
    if pieces > rows:
        raise BackboneError(
            f"{name}: its tokenizer has {pieces} pieces, its embedding only {rows} rows; use the tokenizer it was "
            "trained with, or model.resize_token_embeddings(len(tokenizer)) and train it"
        )
    positions, limit = _positions(model), tokenizer.model_max_length
    if limit < min(positions, window):
        raise BackboneError(
            f"{name}: the model_max_length of its tokenizer is {limit}, but the encoder reads {positions} tokens at "
            f"once and windows have {window}; set it to {positions} in tokenizer_config.json, or choose another encoder"
        )
    if positions < window:
        raise BackboneError(
            f"{name}: it reads at most {positions} tokens at once, but windows have {window}; "
            f"choose an encoder of at least {window} positions"
        )


def check_weights(path: Path) -> None:
    """Refuse, with a BackboneError, a weights file that is a Git LFS pointer or cut."""
    with path.open("rb") as file:
        if file.read(len(LFS_POINTER)) == LFS_POINTER:
            raise BackboneError(f"{path}: this is a Git LFS pointer, not the weights; fetch them: git lfs pull")
    if path.suffix == ".safetensors":
        try:
            with safe_open(path, "pt"):
                pass
        except SafetensorError as error:
            raise BackboneError(f"{path}: the file is cut or damaged ({error}); copy or fetch it again") from error


def check_folder(folder: Path) -> None:
    """Refuse, with a BackboneError, a folder whose configuration or weights are not whole, or that holds an adapter."""
    if (folder / ADAPTER).is_file():
        raise BackboneError(f"{folder / ADAPTER}: an adapter is not read; merge it into its model first: {MERGE}")
    if not (folder / "config.json").is_file():
        raise BackboneError(f"{folder}: it has no config.json; {FOLDER}")
    found = next((folder / name for name in WEIGHTS if (folder / name).is_file()), None)
    if found is None:
        raise BackboneError(f"{folder}: it has no weights ({WEIGHTS[0]}); {FOLDER}")
    files = [found]
    if found.suffix == ".json":
        try:
            files = [folder / name for name in sorted(set(json.loads(found.read_text("utf-8"))["weight_map"].values()))]
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            raise BackboneError(f"{found}: the list of weight files is damaged; copy or fetch it again") from error
    for path in files:
        if path.parent != folder:
            raise BackboneError(f"{found}: it names {path}, which is not in this folder; copy or fetch it again")
        if not path.is_file():
            raise BackboneError(f"{path}: {found.name} names this file, but it is not there; copy or fetch it again")
        check_weights(path)
