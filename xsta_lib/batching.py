"""Batches of one language pair and like lengths; every row exactly once an epoch, in an order fixed by the seed."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from .features import Windows


@dataclass(frozen=True)
class Part:
    """The rows of one language: its windows, and for pairs the source's windows.

    Attributes:
        language: the target language.
        target: its windows.
        source: the source language's windows, or ``None`` for rows that are read alone (S = T).
        paired: for each target window the source window's index (see :func:`~xsta_lib.features.pair_windows`).
    """

    language: str
    target: Windows
    source: Windows | None = None
    paired: np.ndarray | None = None


@dataclass(frozen=True)
class Row:
    """One training row: a part, a target window in it, and its source window (-1 for none)."""

    part: int
    target: int
    source: int


def rows_of(parts: Sequence[Part]) -> list[Row]:
    """All rows of all parts. A pair whose question has no source is read alone, as S = T rows are."""
    rows = []
    for number, part in enumerate(parts):
        paired = part.paired if part.source is not None else np.full(len(part.target), -1)
        rows += [Row(number, index, int(other)) for index, other in enumerate(paired)]
    return rows


def row_length(parts: Sequence[Part], row: Row) -> int:
    """Tokens of a row's longer side."""
    part = parts[row.part]
    source = part.source.length[row.source] if row.source >= 0 else 0
    return int(max(part.target.length[row.target], source))


def epoch_batches(parts: Sequence[Part], rows: Sequence[Row], size: int, seed: int, epoch: int) -> list[list[Row]]:
    """One epoch's batches: one language pair each, like lengths together, in random order.

    Rows are shuffled, sorted by length within pools of 50 batches and cut; the last batch of a pair may be smaller.

    Args:
        parts, rows: the data, from :func:`rows_of`.
        size: rows a batch (over all processes).
        seed, epoch: fix the order.
    """
    generator = np.random.default_rng([seed, epoch])
    groups: dict[tuple[int, bool], list[Row]] = {}
    for row in rows:
        groups.setdefault((row.part, row.source >= 0), []).append(row)
    batches = []
    for group in groups.values():
        order = generator.permutation(len(group))
        for low in range(0, len(order), 50 * size):
            pool = sorted((group[i] for i in order[low : low + 50 * size]), key=lambda row: row_length(parts, row))
            batches += [pool[i : i + size] for i in range(0, len(pool), size)]
    return [batches[i] for i in generator.permutation(len(batches))]


def endless_batches(
    parts: Sequence[Part], rows: Sequence[Row], size: int, seed: int, skip: int = 0
) -> Iterator[tuple[int, list[Row]]]:
    """``(epoch, batch)`` without end, epoch after epoch, the first ``skip`` batches left out (to resume)."""
    epoch = 0
    while True:
        batches = epoch_batches(parts, rows, size, seed, epoch)
        for batch in batches[skip:]:
            yield epoch, batch
        skip = max(0, skip - len(batches))
        epoch += 1


def pad(sequences: Sequence[np.ndarray], pad_id: int, multiple: int = 32, longest: int = 512) -> dict[str, Tensor]:
    """``input_ids`` and ``attention_mask`` (B, N); N is rounded up to a multiple, not above the encoder's longest."""
    top = max(len(sequence) for sequence in sequences)
    length = max(top, min(longest, -(-top // multiple) * multiple))
    ids = np.full((len(sequences), length), pad_id, dtype=np.int64)
    mask = np.zeros_like(ids)
    for i, sequence in enumerate(sequences):
        ids[i, : len(sequence)] = sequence
        mask[i, : len(sequence)] = 1
    return {"input_ids": torch.from_numpy(ids), "attention_mask": torch.from_numpy(mask)}


def collate_windows(windows: Windows, indices: Sequence[int], pad_id: int, multiple: int = 32) -> dict[str, Tensor]:
    """Model inputs of some windows with their gold positions."""
    indices = np.asarray(indices)
    inputs = pad([windows.input_ids[i] for i in indices], pad_id, multiple)
    if windows.segments:
        places = torch.arange(inputs["input_ids"].shape[1])
        context = places >= torch.from_numpy(windows.context_start[indices].astype(np.int64))[:, None]
        inputs["token_type_ids"] = context * inputs["attention_mask"]
    inputs["start_positions"] = torch.from_numpy(windows.start[indices].astype(np.int64))
    inputs["end_positions"] = torch.from_numpy(windows.end[indices].astype(np.int64))
    inputs["holds_answer"] = torch.from_numpy(windows.holds_answer[indices].copy())
    return inputs


def collate(parts: Sequence[Part], batch: Sequence[Row], pad_id: int, multiple: int = 32) -> dict:
    """The keyword arguments of the model's ``forward`` for one batch; all rows must be of one part."""
    part = parts[batch[0].part]
    if any(row.part != batch[0].part or (row.source < 0) != (batch[0].source < 0) for row in batch):
        raise ValueError("a batch holds one language pair; rows of several parts were given")
    targets = [row.target for row in batch]
    inputs = collate_windows(part.target, targets, pad_id, multiple)
    inputs["language"] = part.language
    if batch[0].source >= 0:
        inputs["source"] = collate_windows(part.source, [row.source for row in batch], pad_id, multiple)
        inputs["question_ids"] = torch.from_numpy(part.target.row[targets].astype(np.int64))
    return inputs
