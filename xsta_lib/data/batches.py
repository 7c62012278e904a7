"""Batches of one language pair and like lengths; every row exactly once an epoch, in an order fixed by the seed."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count

import numpy as np
import torch
from torch import Tensor

from .windows import Windows

TEXT_INPUTS = ("input_ids", "attention_mask", "token_type_ids")  # what an encoder reads of a batch


@dataclass(frozen=True)
class Part:
    """The rows of one language: its windows, and for pairs the source's windows.

    Attributes:
        language: the target language.
        target: its windows.
        source: the source language's windows, or ``None`` for rows that are read alone (S = T).
        paired: for each target window the source window's index (see :func:`~xsta_lib.data.windows.pair_windows`).
        back: windows of the source translated back from the target, another source for the same rows (X-MIXUP).
        back_paired: for each target window the index in ``back``, or -1.
    """

    language: str
    target: Windows
    source: Windows | None = None
    paired: np.ndarray | None = None
    back: Windows | None = None
    back_paired: np.ndarray | None = None

    def has_back(self, rows: Sequence["Row"]) -> bool:
        """Whether all of some rows have a back-translated source."""
        return self.back is not None and all(self.back_paired[row.target] >= 0 for row in rows)


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


def row_sides(parts: Sequence[Part], row: Row) -> tuple[int, int]:
    """Tokens of a row's target and source, 0 for none."""
    part = parts[row.part]
    return int(part.target.length[row.target]), int(part.source.length[row.source]) if row.source >= 0 else 0


def units_of(rows: Sequence[Row], share_source: bool) -> list[list[list[Row]]]:
    """What batches are made of, in groups that do not mix: single rows of one language pair.

    With ``share_source`` all pairs form one group, of units that read the same source window.
    """
    groups: dict[tuple, dict] = {}
    for number, row in enumerate(rows):
        shared = share_source and row.source >= 0
        group = groups.setdefault((-1 if shared else row.part, row.source >= 0), {})
        group.setdefault(row.source if shared else number, []).append(row)
    return [list(group.values()) for group in groups.values()]


def epoch_batches(
    parts: Sequence[Part], rows: Sequence[Row], size: int, seed: int, epoch: int, share_source: bool = False
) -> list[list[Row]]:
    """One epoch's batches: one language pair each, like lengths together, in random order.

    Rows are shuffled, sorted by length within pools of 50 batches and cut; the last batch of a pair may be smaller.

    Args:
        parts, rows: the data, from :func:`rows_of`.
        size: rows a batch (over all processes); a unit of :func:`units_of` that has more is a batch of its own.
        seed, epoch: fix the order.
        share_source: batches of pairs hold all languages of a source window, so that one source pass serves them.
    """
    generator = np.random.default_rng([seed, epoch])
    batches: list[list[Row]] = []
    for group in units_of(rows, share_source):
        longest = [max(max(row_sides(parts, row)) for row in unit) for unit in group]
        order = generator.permutation(len(group))
        for low in range(0, len(order), 50 * size):
            room = 0  # rows that the last batch still takes; none where a pool begins
            for i in sorted(order[low : low + 50 * size], key=longest.__getitem__):
                if len(group[i]) > room:
                    batches.append([])
                    room = size
                batches[-1] += group[i]
                room -= len(group[i])
    return [batches[i] for i in generator.permutation(len(batches))]


def endless_batches(
    parts: Sequence[Part], rows: Sequence[Row], size: int, seed: int, skip: int = 0, share_source: bool = False
) -> Iterator[tuple[int, list[Row]]]:
    """``(epoch, batch)`` without end, epoch after epoch, the first ``skip`` batches left out (to resume)."""
    for epoch in count():
        batches = epoch_batches(parts, rows, size, seed, epoch, share_source)
        for batch in batches[skip:]:
            yield epoch, batch
        skip = max(0, skip - len(batches))


def pad(sequences: Sequence[np.ndarray], pad_id: int, multiple: int = 32, longest: int = 512) -> dict[str, Tensor]:
    """``input_ids`` and ``attention_mask`` (B, N); N is rounded up to a multiple, not above the encoder's longest."""
    lengths = np.array([len(sequence) for sequence in sequences])
    top = lengths.max()
    mask = np.arange(max(top, min(longest, -(-top // multiple) * multiple))) < lengths[:, None]
    ids = np.full(mask.shape, pad_id, dtype=np.int64)
    ids[mask] = np.concatenate(sequences)
    return {"input_ids": torch.from_numpy(ids), "attention_mask": torch.from_numpy(mask.astype(np.int64))}


def collate_windows(
    windows: Windows, indices: Sequence[int], pad_id: int, multiple: int = 32, longest: int = 512
) -> dict[str, Tensor]:
    """Model inputs of some windows with their gold positions, padded as :func:`pad` does."""
    indices = np.asarray(indices)
    inputs = pad([windows.input_ids[i] for i in indices], pad_id, multiple, longest)
    if windows.segments:
        places = torch.arange(inputs["input_ids"].shape[1])
        context = places >= torch.from_numpy(windows.context_start[indices].astype(np.int64))[:, None]
        inputs["token_type_ids"] = context * inputs["attention_mask"]
    inputs["start_positions"] = torch.from_numpy(windows.start[indices].astype(np.int64))
    inputs["end_positions"] = torch.from_numpy(windows.end[indices].astype(np.int64))
    inputs["holds_answer"] = torch.from_numpy(windows.holds_answer[indices].copy())
    return inputs


def collate(
    parts: Sequence[Part], batch: Sequence[Row], pad_id: int, multiple: int = 32, back_translated: bool = False
) -> dict:
    """One batch of one part: the target's arguments of the model's ``forward``, and for pairs ``source``, the source's.

    With ``back_translated`` the source is the back-translated one, which has no gold positions.
    """
    if any(row.part != batch[0].part or (row.source < 0) != (batch[0].source < 0) for row in batch):
        raise ValueError("a batch holds one language pair; rows of several parts were given")
    part = parts[batch[0].part]
    inputs = _collate_target(part, batch, pad_id, multiple)
    if back_translated and batch[0].source >= 0:
        source = collate_windows(part.back, part.back_paired[[row.target for row in batch]], pad_id, multiple)
        inputs["source"] = {name: source[name] for name in TEXT_INPUTS if name in source}
    elif batch[0].source >= 0:
        inputs["source"] = collate_windows(part.source, [row.source for row in batch], pad_id, multiple)
    return inputs


def amount(inputs: Mapping) -> dict[str, int]:
    """What a batch of :func:`collate` or :func:`collate_shared` holds: ``sequences``, ``tokens`` without padding."""
    sides = [inputs, inputs.get("source"), *inputs.get("targets", ())]
    masks = [side["attention_mask"] for side in sides if side is not None and "attention_mask" in side]
    return {"sequences": sum(map(len, masks)), "tokens": sum(int(mask.sum()) for mask in masks)}


def _collate_target(part: Part, batch: Sequence[Row], pad_id: int, multiple: int) -> dict:
    """A language's windows, and which passage each row is about."""
    targets = [row.target for row in batch]
    inputs = collate_windows(part.target, targets, pad_id, multiple) | {"language": part.language}
    inputs["passages"] = torch.from_numpy(part.target.passages[part.target.row[targets]])
    return inputs


def collate_shared(parts: Sequence[Part], batch: Sequence[Row], pad_id: int, multiple: int = 32) -> dict:
    """Pairs of several languages that share their source windows.

    Returns:
        ``source``, its windows each once, and ``targets``: the arguments of each language, with ``source_rows``, which
        rows of the source its rows read.
    """
    sources, targets = sorted({row.source for row in batch}), []
    for number in sorted({row.part for row in batch}):
        rows = [row for row in batch if row.part == number]
        inputs = _collate_target(parts[number], rows, pad_id, multiple)
        targets.append(inputs | {"source_rows": torch.tensor([sources.index(row.source) for row in rows])})
    return {"source": collate_windows(parts[batch[0].part].source, sources, pad_id, multiple), "targets": targets}
