"""Questions to token windows with answer spans, windows to pairs; cached as Arrow through ``datasets``.

A window is ``[CLS] question [SEP] context part [SEP]``. A context that does not fit is cut into overlapping windows.
"""

import hashlib
import json
import os
import shutil
import unicodedata
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pooch
from datasets import Dataset, Features, List, Value, load_from_disk
from datasets.utils.logging import disable_progress_bar, enable_progress_bar, is_progress_bar_enabled
from transformers import PreTrainedTokenizerBase

from .corpus import Question

# Raise when the meaning of a cached window changes; older caches are then built anew.
CODE_VERSION = 2

COLUMNS = Features(
    {
        "row": Value("int32"),
        "window": Value("int32"),
        "windows": Value("int32"),
        "input_ids": List(Value("int32")),
        "context_start": Value("int32"),
        "char_starts": List(Value("int32")),
        "char_ends": List(Value("int32")),
        "start": Value("int32"),
        "end": Value("int32"),
        "holds_answer": Value("bool"),
    }
)


@dataclass(frozen=True)
class WindowSpec:
    """Lengths in tokens; the defaults are the numbers of the paper's release.

    There 128 is the step from one window to the next, here what two share, as in most code since: a long context has
    fewer windows (800 tokens: 3 where the release has 5).

    Attributes:
        max_length: a whole window, special tokens included.
        stride: how many context tokens two neighbouring windows share.
        max_question_length: a longer question is cut.
    """

    max_length: int = 384
    stride: int = 128
    max_question_length: int = 64

    def __post_init__(self):
        room = self.max_length - self.max_question_length - 4  # four special tokens at most
        if self.max_question_length < 1 or self.stride < 0 or room <= self.stride:
            raise ValueError(
                f"max_length {self.max_length} leaves {room} context tokens beside a question of "
                f"{self.max_question_length}; that must be more than stride {self.stride}"
            )


class Ragged:
    """Rows of different lengths over one flat array, without copying Arrow's memory."""

    def __init__(self, column):
        column = column.combine_chunks()
        self.values = column.values.to_numpy(zero_copy_only=False)
        self.offsets = column.offsets.to_numpy(zero_copy_only=False)

    def __getitem__(self, index: int) -> np.ndarray:
        return self.values[self.offsets[index] : self.offsets[index + 1]]

    @property
    def lengths(self) -> np.ndarray:
        """Length of every row."""
        return np.diff(self.offsets)


class Windows:
    """All windows of one language's questions, in the questions' order.

    Attributes (arrays over windows): ``row`` the question's index in ``ids``; ``window`` and ``windows`` which of how
    many; ``length`` in tokens; ``start``, ``end`` gold token positions, 0 ([CLS]) where the window lacks the answer;
    ``holds_answer``; ``context_start`` the first context token; ``input_ids``, ``char_starts`` and ``char_ends``
    ragged, the last two the characters of each context token. ``ids`` are the questions' ids.

    Args:
        data: the cached columns.
        questions: what they were made of.
        texts: keep the contexts, which only :meth:`text` needs; training does without.
        segments: the encoder tells question and context apart by token types (BERT does, XLM-R does not).
    """

    def __init__(self, data: Dataset, questions: Sequence[Question], texts: bool = True, segments: bool = False):
        self.ids, self.segments = [question.id for question in questions], segments
        self.contexts = [question.context for question in questions] if texts else None
        self._table = data.data.table
        for name in ("row", "window", "windows", "context_start", "start", "end", "holds_answer"):
            setattr(self, name, self._table[name].to_numpy())
        self.input_ids = Ragged(self._table["input_ids"])
        self.length = self.input_ids.lengths

    def __len__(self) -> int:
        return len(self.row)

    @cached_property
    def char_starts(self) -> Ragged:
        """Where each context token begins, in the context's code points; read when first asked for."""
        return Ragged(self._table["char_starts"])

    @cached_property
    def char_ends(self) -> Ragged:
        """Where each context token ends."""
        return Ragged(self._table["char_ends"])

    def id_of(self, index: int) -> str:
        """The id of a window's question."""
        return self.ids[self.row[index]]

    def text(self, index: int, start: int, end: int) -> str:
        """The context's text between two token positions of a window, both included.

        Raises:
            ValueError: the windows were built without texts.
        """
        if self.contexts is None:
            raise ValueError("these windows were built with texts=False and keep no context")
        first = self.context_start[index]
        chars = self.char_starts[index][start - first], self.char_ends[index][end - first]
        return self.contexts[self.row[index]][chars[0] : chars[1]].strip()


def window_cache() -> Path:
    """Where token windows are cached: ``windows`` in the folder ``XSTA_CACHE``, by default the user's cache folder."""
    return Path(os.environ.get("XSTA_CACHE") or pooch.os_cache("xsta")) / "windows"


def cut_question(text: str, tokenizer: PreTrainedTokenizerBase, limit: int) -> str:
    """The text of a question's first ``limit`` tokens."""
    offsets = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    return text if len(offsets) <= limit else text[: offsets[limit - 1][1]]


def answer_tokens(question: Question, starts: np.ndarray, ends: np.ndarray) -> tuple[int, int] | None:
    """The context tokens that cover the first gold answer, counted from the first context token; ``None`` if cut off.

    Args:
        question: with its answers; the first one labels the window, as usual for training.
        starts, ends: characters of the window's context tokens.
    """
    if not question.answers or not len(starts):
        return None
    answer = question.answers[0]
    beyond = answer.text[max(0, int(ends[-1]) - answer.start) :]  # some tokenizers drop spaces and U+200B at the end
    if answer.start < starts[0] or any(unicodedata.category(character)[0] not in "ZC" for character in beyond):
        return None
    first = int(np.searchsorted(ends, answer.start, side="right"))
    last = int(np.searchsorted(starts, answer.end, side="left")) - 1
    return (first, last) if first <= last else None


def _windows_of(rows: Sequence[int], questions: Sequence[Question], tokenizer, spec: WindowSpec) -> dict[str, list]:
    """The columns of a few questions' windows."""
    texts = [cut_question(questions[row].question, tokenizer, spec.max_question_length) for row in rows]
    encoded = tokenizer(
        texts,
        [questions[row].context for row in rows],
        truncation="only_second",
        max_length=spec.max_length,
        stride=spec.stride,
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
    )
    columns: dict[str, list] = {name: [] for name in COLUMNS}
    samples = encoded["overflow_to_sample_mapping"]
    for index, sample in enumerate(samples):
        sequence = encoded.encodings[index].sequence_ids
        first = sequence.index(1) if 1 in sequence else len(sequence)
        last = len(sequence) - sequence[::-1].index(1) if 1 in sequence else first
        chars = np.array(encoded["offset_mapping"][index][first:last], dtype=np.int32).reshape(-1, 2)
        span = answer_tokens(questions[rows[sample]], chars[:, 0], chars[:, 1])
        same = index and samples[index - 1] == sample
        columns["row"].append(rows[sample])
        columns["window"].append(columns["window"][-1] + 1 if same else 0)
        columns["windows"].append(samples.count(sample))
        columns["input_ids"].append(encoded["input_ids"][index])
        columns["context_start"].append(first)
        columns["char_starts"].append(chars[:, 0])
        columns["char_ends"].append(chars[:, 1])
        columns["start"].append(first + span[0] if span else 0)
        columns["end"].append(first + span[1] if span else 0)
        columns["holds_answer"].append(span is not None)
    return columns


def fingerprint(questions: Sequence[Question], tokenizer: PreTrainedTokenizerBase, spec: WindowSpec) -> str:
    """A key of everything that shapes the windows: texts, spans, tokenizer, lengths, stride, code."""
    digest = hashlib.blake2b(digest_size=16)
    digest.update(json.dumps([CODE_VERSION, asdict(spec), _tokenizer_key(tokenizer)]).encode())
    for q in questions:
        digest.update(
            "\x1f".join([q.id, q.question, q.context, *(f"{a.start}:{a.text}" for a in q.answers), "\n"]).encode()
        )
    return digest.hexdigest()


def _tokenizer_key(tokenizer: PreTrainedTokenizerBase) -> str:
    """A hash of the whole tokenizer, kept on it: serialising 250,000 pieces takes a second."""
    key = getattr(tokenizer, "_xsta_key", None)
    if key is None:
        key = hashlib.blake2b(tokenizer.backend_tokenizer.to_str().encode(), digest_size=16).hexdigest()
        tokenizer._xsta_key = key
    return key


def build_windows(
    questions: Sequence[Question],
    tokenizer: PreTrainedTokenizerBase,
    spec: WindowSpec | None = None,
    cache: str | os.PathLike | None = None,
    progress: bool = False,
    texts: bool = True,
) -> Windows:
    """Windows of all questions, from the cache where they were built before.

    Args:
        questions: of one language; a question may have no answers (test data).
        tokenizer: a fast tokenizer.
        spec: lengths; the release's by default.
        cache: a folder; ``None`` builds in memory.
        progress: show a bar.
        texts: keep the contexts for :meth:`Windows.text`; ``False`` saves their memory in training.
    """
    spec = spec or WindowSpec()
    segments = "token_type_ids" in tokenizer.model_input_names
    if not questions:  # the map of nothing has no columns
        return Windows(Dataset.from_dict({name: [] for name in COLUMNS}, features=COLUMNS), questions, texts, segments)
    tokenizer.deprecation_warnings["sequence-length-is-longer-than-the-specified-maximum"] = True
    folder = Path(cache) / fingerprint(questions, tokenizer, spec) if cache else None
    if folder and folder.is_dir():
        return Windows(load_from_disk(str(folder)), questions, texts, segments)
    shown = is_progress_bar_enabled()
    (enable_progress_bar if progress else disable_progress_bar)()
    try:
        data = Dataset.from_dict({"row": range(len(questions))}).map(
            lambda batch: _windows_of(batch["row"], questions, tokenizer, spec),
            batched=True,
            batch_size=200,
            features=COLUMNS,
            desc="windows",
            new_fingerprint=hashlib.blake2b(os.urandom(16), digest_size=8).hexdigest(),
        )
        if folder:
            _save_whole(data, folder)
            data = load_from_disk(str(folder))
    finally:
        (enable_progress_bar if shown else disable_progress_bar)()
    return Windows(data, questions, texts, segments)


def _save_whole(data: Dataset, folder: Path) -> None:
    """Write a cache folder under a temporary name and rename it: there is never half a folder."""
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.part")
    try:
        data.save_to_disk(str(temporary))
        with suppress(OSError):  # another process was faster
            os.replace(temporary, folder)
        if not folder.is_dir():
            raise OSError(f"{folder}: the cache folder cannot be written; set XSTA_CACHE to one that can")
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def pair_windows(target: Windows, source: Windows, by_answer: bool) -> np.ndarray:
    """For every target window the index of its source window, or -1 where the question has no source.

    In training (``by_answer``) windows that hold the answer are paired with each other. Everywhere else a target window
    is paired with the source window at the same relative place; the release takes the question's last one.
    """
    rows = {key: row for row, key in enumerate(source.ids)}
    first = np.full(len(source.ids), -1)
    holding = np.full(len(source.ids), -1)
    count = np.zeros(len(source.ids), dtype=int)
    for index in range(len(source) - 1, -1, -1):
        row = source.row[index]
        first[row], count[row] = index, source.windows[index]
        if source.holds_answer[index]:
            holding[row] = index
    paired = np.full(len(target), -1)
    for index in range(len(target)):
        row = rows.get(target.id_of(index))
        if row is None or first[row] < 0:
            continue
        if by_answer and target.holds_answer[index] and holding[row] >= 0:
            paired[index] = holding[row]
        else:
            place = (target.window[index] + 0.5) / target.windows[index]
            paired[index] = first[row] + int(place * count[row])
    return paired
