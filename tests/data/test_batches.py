"""Batches: one language pair each, every row once an epoch, exact counts, a fixed order."""

from collections import Counter
from itertools import islice

import numpy as np
import pytest
import torch
from tiny import write_tiny_e5

from xsta_lib.data.batches import Part, collate, endless_batches, epoch_batches, pad, row_sides, rows_of
from xsta_lib.data.protocols import load_protocol
from xsta_lib.data.windows import build_windows, pair_windows
from xsta_lib.encoders.backbones import load_tokenizer


@pytest.fixture(scope="module")
def parts(tmp_path_factory) -> list[Part]:
    """English rows and pairs in two languages of the embedded corpus, with a tiny tokenizer."""
    data = load_protocol("demo")
    texts = [q.context for questions in data.parallel.values() for q in questions]
    tokenizer = load_tokenizer(str(write_tiny_e5(tmp_path_factory.mktemp("tiny") / "tiny.bin", texts=texts[:400])))
    english = build_windows(data.train, tokenizer)
    found = [Part("en", english)]
    for language in ("de", "zh"):
        target = build_windows(data.parallel[language][:50], tokenizer)
        found.append(Part(language, target, english, pair_windows(target, english, by_answer=True)))
    return found


def test_every_row_once_and_one_pair_a_batch(parts):
    rows = rows_of(parts)
    batches = epoch_batches(parts, rows, 16, seed=1, epoch=0)
    assert Counter(row for batch in batches for row in batch) == Counter(rows)
    assert all(len({(row.part, row.source >= 0) for row in batch}) == 1 for batch in batches)
    per_part = Counter(row.part for row in rows)
    assert len(batches) == sum(-(-count // 16) for count in per_part.values())


def test_order_is_fixed_by_seed_and_epoch(parts):
    rows = rows_of(parts)
    assert epoch_batches(parts, rows, 8, 1, 0) == epoch_batches(parts, rows, 8, 1, 0)
    assert epoch_batches(parts, rows, 8, 1, 0) != epoch_batches(parts, rows, 8, 1, 1)
    assert epoch_batches(parts, rows, 8, 1, 0) != epoch_batches(parts, rows, 8, 2, 0)


def test_skipping_resumes_exactly_across_epochs(parts):
    rows = rows_of(parts)
    whole = list(islice(endless_batches(parts, rows, 64, seed=3), 12))
    for skip in (1, 5, 9):
        assert list(islice(endless_batches(parts, rows, 64, seed=3, skip=skip), 12 - skip)) == whole[skip:]


def test_like_lengths_share_a_batch(parts):
    rows = rows_of(parts)

    def waste(batches) -> float:
        sizes = [[max(row_sides(parts, row)) for row in batch] for batch in batches]
        return sum(max(size) * len(size) - sum(size) for size in sizes) / sum(map(sum, sizes))

    shuffled = [rows[i] for i in np.random.default_rng(0).permutation(len(rows))]
    assert waste(epoch_batches(parts, rows, 16, 1, 0)) < 0.5 * waste([shuffled[i : i + 16] for i in range(0, 160, 16)])


def test_padding_rounds_up_but_never_above_the_longest():
    sequences = [np.arange(5), np.arange(33)]
    assert pad(sequences, 0, multiple=32)["input_ids"].shape == (2, 64)
    assert pad(sequences, 0, multiple=32, longest=40)["input_ids"].shape == (2, 40)
    assert pad(sequences, 0, multiple=1)["attention_mask"].sum(1).tolist() == [5, 33]


def test_collated_pairs_belong_together(parts):
    rows = [row for row in rows_of(parts) if row.part == 1][:6]
    inputs = collate(parts, rows, pad_id=1)
    target, source = parts[1].target, parts[1].source
    for i, row in enumerate(rows):
        assert target.ids[target.row[row.target]] == source.ids[source.row[row.source]]
        length = target.length[row.target]
        assert inputs["input_ids"][i, :length].tolist() == target.input_ids[row.target].tolist()
        assert inputs["attention_mask"][i].sum() == length
        assert inputs["holds_answer"][i] == inputs["source"]["holds_answer"][i] or not inputs["holds_answer"][i]
    assert inputs["language"] == "de" and inputs["holds_answer"].any()
    assert torch.equal(inputs["start_positions"] > 0, inputs["holds_answer"])
    with pytest.raises(ValueError, match="one language pair"):
        collate(parts, [rows[0], rows_of(parts)[0]], pad_id=1)
