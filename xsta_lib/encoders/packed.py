"""A trained reader in a small file: its own weights in float16, its word embeddings and tokenizer those of a backbone.

A packed folder holds `config.json`, `model.safetensors` (every weight and buffer but the word embeddings) and
`packed.json` (the backbone's name and the SHA-256 of its 4-bit file). It suits a reader whose word embeddings were
frozen in training. Axes: B rows, N tokens, H hidden size, V pieces.
"""

import hashlib
import json
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForQuestionAnswering,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.initialization import no_init_weights

from .backbones import e5_tokenizer, first_line, read_backbone
from .checks import check_weights, not_finite
from .e5_file import BLOCK_BYTES, BLOCK_WEIGHTS, Q4, BackboneError, E5File, read_tensor

PACKED = "packed.json"
WEIGHTS = "model.safetensors"
WORDS = "emb.word"  # the word embeddings in the 4-bit file


class StoredEmbedding(nn.Module):
    """Word embeddings that stay in their 4-bit blocks; each row is computed when it is looked up.

    A reader looks up some hundred of 250,000 rows, and computing all takes longer than reading the rest of the model.
    The values are those of :func:`~xsta_lib.encoders.e5_file.dequantise`, bit for bit. It cannot be trained.

    Args:
        blocks: (V * H / 32 * 18,) bytes, as in the file.
        shape: V and H.
    """

    def __init__(self, blocks: np.ndarray, shape: tuple[int, int]):
        super().__init__()
        self.num_embeddings, self.embedding_dim = shape
        self.register_buffer("blocks", torch.from_numpy(blocks).view(self.num_embeddings, -1), persistent=False)

    def forward(self, input_ids: Tensor) -> Tensor:
        """(B, N) ids to (B, N, H), float32."""
        rows = self.blocks[input_ids].unflatten(-1, (-1, BLOCK_BYTES))  # (B, N, H / 32, 18)
        scale = rows[..., :2].contiguous().view(torch.float16).float()
        weights = torch.cat([rows[..., 2:] & 15, rows[..., 2:] >> 4], -1).float() - 8
        return (weights * scale).flatten(-2)

    @property
    def weight(self) -> Tensor:
        """(V, H) all rows, computed anew: 384 MB for 250,000 pieces."""
        return self(torch.arange(self.num_embeddings, device=self.blocks.device))

    def _save_to_state_dict(self, destination: dict, prefix: str, keep_vars: bool) -> None:
        """As an ordinary embedding, so that the model can be saved as a whole."""
        destination[prefix + "weight"] = self.weight


def pack(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: str | Path, backbone: str) -> None:
    """Write a packed folder.

    Args:
        model: a trained reader whose word embeddings are still the backbone's.
        tokenizer: its tokenizer, the backbone's.
        folder: where to; made if need be.
        backbone: `e5-small-q4` or the path of another 4-bit file.

    Raises:
        BackboneError: the embeddings or the tokenizer are not the backbone's, or a weight does not fit float16.
    """
    file = read_backbone(backbone)
    embeddings = model.get_input_embeddings().weight
    if not torch.equal(embeddings.detach().cpu(), read_tensor(file, WORDS, embeddings.shape)):
        raise BackboneError(f"{backbone}: the model's word embeddings are not this backbone's; train with them frozen")
    if tokenizer.get_vocab() != e5_tokenizer(file, backbone).get_vocab():
        raise BackboneError(f"{backbone}: the model's tokenizer is not this backbone's; pack it with its own")
    parameters, words = dict(model.named_parameters()), _words_name(model)
    weights = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items() if name != words}
    for name in weights.keys() & parameters.keys():  # the others are running averages: small, and wanted exactly
        weights[name] = weights[name].half()
    if bad := [name for name, value in weights.items() if not value.isfinite().all()]:
        raise BackboneError(f"{bad[0]}: it holds numbers that float16 cannot; look at the training's last losses")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(weights, folder / WEIGHTS, {"format": "pt"})
    (folder / WEIGHTS).chmod(0o644)  # some versions of safetensors write for the owner alone
    model.config.save_pretrained(folder)
    about = {"format": 1, "backbone": backbone, "sha256": hashlib.sha256(file.raw).hexdigest()}
    (folder / PACKED).write_text(json.dumps(about, indent=1) + "\n", "utf-8")


def load_packed(folder: str | Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model (fp32, evaluation mode, not to be trained) and the tokenizer of a packed folder.

    Args:
        folder: written by :func:`pack`. The class of its model must be known to `AutoModelForQuestionAnswering`.

    Raises:
        BackboneError: a file is missing or damaged, the backbone is another, or the weights are not the model's; the
            message names folder, file or weight, and the remedy.
    """
    folder = Path(folder)
    about = _about(folder)
    file = read_backbone(about["backbone"], about["sha256"])
    for name in ("config.json", WEIGHTS):
        if not (folder / name).is_file():
            raise BackboneError(f"{folder}: the packed reader has no {name}; copy or install it again")
    check_weights(folder / WEIGHTS)
    try:
        with no_init_weights():  # all weights are set below; random ones would take longer than reading these
            model = AutoModelForQuestionAnswering.from_config(AutoConfig.from_pretrained(folder, local_files_only=True))
    except Exception as error:  # whatever its values lead to
        said = f"it describes no reader ({first_line(error)})"
        raise BackboneError(f"{folder / 'config.json'}: {said}; copy or install the reader again") from error
    words, shape = _words_name(model), tuple(model.get_input_embeddings().weight.shape)
    expected = {name: value for name, value in model.state_dict().items() if name != words}
    with safe_open(folder / WEIGHTS, "pt") as stored:
        weights = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118  (it is no dict)
    _compare(folder, expected, weights)
    weights = {name: value.to(expected[name].dtype) for name, value in weights.items()}
    if bad := not_finite(weights):
        said = f"the weight {bad} holds NaN or infinity"
        raise BackboneError(f"{folder / WEIGHTS}: {said}; copy or install the reader again")
    model.set_input_embeddings(StoredEmbedding(_blocks(file, shape), shape))
    model.load_state_dict(weights, strict=False, assign=True)
    return model.requires_grad_(False).eval(), e5_tokenizer(file, about["backbone"])


def _words_name(model: PreTrainedModel) -> str:
    """The name of the word embeddings in the model's state dict."""
    own = model.get_input_embeddings()
    return next(f"{name}.weight" for name, module in model.named_modules() if module is own)


def _about(folder: Path) -> dict[str, str]:
    """What `packed.json` says. Raises BackboneError."""
    try:
        about = json.loads((folder / PACKED).read_text("utf-8"))
        known = about["format"] == 1
        if known and not all(isinstance(about[key], str) for key in ("backbone", "sha256")):
            raise TypeError("a name and a checksum are texts")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BackboneError(f"{folder / PACKED}: missing or damaged; copy or install the reader again") from error
    if not known:
        raise BackboneError(f"{folder / PACKED}: a packed reader of another version of xsta; install that version")
    return about


def _compare(folder: Path, expected: dict[str, Tensor], weights: dict[str, Tensor]) -> None:
    """Refuse, with a BackboneError, weights that are not exactly the expected ones by name and shape."""
    faults = [f"the weight {name} is missing" for name in expected.keys() - weights.keys()]
    faults += [f"the weight {name} is unknown to the model" for name in weights.keys() - expected.keys()]
    faults += [
        f"the weight {name} has the shape {tuple(weights[name].shape)}, not {tuple(expected[name].shape)}"
        for name in expected.keys() & weights.keys()
        if expected[name].shape != weights[name].shape
    ]
    if faults:
        raise BackboneError(f"{folder / WEIGHTS}: {sorted(faults)[0]}; copy or install the reader again")


def _blocks(file: E5File, shape: tuple[int, int]) -> np.ndarray:
    """The bytes of the word embeddings. Raises BackboneError where they are no 4-bit blocks of that shape."""
    kind, numbers, offset = file.tensors[WORDS]
    if kind != Q4 or numbers != shape[0] * shape[1] or shape[1] % BLOCK_WEIGHTS:
        raise file.error(f"the tensor {WORDS} does not hold {shape[0]} rows of {shape[1]} weights in 4-bit blocks")
    return file.raw[offset : offset + numbers // BLOCK_WEIGHTS * BLOCK_BYTES]
