"""Questions to token windows with answer spans, windows to pairs; cached as Arrow through ``datasets``.

A window is ``[CLS] question [SEP] context part [SEP]``. A context that does not fit is cut into overlapping windows.
"""

import hashlib
import json
import logging
import os
import shutil
import unicodedata
import warnings
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext, suppress
from dataclasses import asdict, dataclass
from functools import cached_property
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pyarrow as pa
from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerBase

from .files import cache_folder, replacing
from .squad import Answer, Question, name_first

LOG = logging.getLogger(__name__)  # a line on the screen unless the user configures otherwise
# Raise when the meaning of a cached window changes; older caches are then built anew.
CODE_VERSION = 4
LARGE = 10_000  # questions; more are built by all cores
BATCH = 200  # questions that are tokenised at once

COLUMNS = pa.schema(
    {name: pa.int32() for name in ("row", "window", "windows", "context_start", "start", "end")}
    | {name: pa.list_(pa.int32()) for name in ("input_ids", "char_starts", "char_ends")}
    | {"holds_answer": pa.bool_(), "question_cut": pa.bool_()}
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


class Windows:
    """All windows of one language's questions, in the questions' order.

    Attributes (arrays over windows): ``row`` the question's index in ``ids``; ``window`` and ``windows`` which of how
    many; ``length`` in tokens; ``start``, ``end`` gold token positions, 0 ([CLS]) where the window lacks the answer;
    ``holds_answer``; ``question_cut`` whether its question was cut; ``context_start`` the first context token;
    ``input_ids``, ``char_starts`` and ``char_ends`` ragged, the last two the characters of each context token. Of the
    questions: ``ids``, and ``passages``, equal numbers for questions about one context.

    Args:
        data: the cached columns.
        questions: what they were made of.
        texts: keep the contexts, which only :meth:`text` needs; training does without.
        segments: the encoder tells question and context apart by token types (BERT does, XLM-R does not).
    """

    def __init__(self, data: pa.Table, questions: Sequence[Question], texts: bool = True, segments: bool = False):
        self.ids, self.segments = [question.id for question in questions], segments
        numbers: dict[str, int] = {}
        self.passages = np.array([numbers.setdefault(question.context, len(numbers)) for question in questions], int)
        self.contexts = [question.context for question in questions] if texts else None
        self._table = data
        for name in ("row", "window", "windows", "context_start", "start", "end", "holds_answer", "question_cut"):
            setattr(self, name, self._table[name].to_numpy())
        self.input_ids = Ragged(self._table["input_ids"])
        self.length = np.diff(self.input_ids.offsets)

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
        """The context's text between two token positions of a window, both included. ValueError without texts."""
        if self.contexts is None:
            raise ValueError("these windows were built with texts=False and keep no context")
        first = self.context_start[index]
        chars = self.char_starts[index][start - first], self.char_ends[index][end - first]
        return self.contexts[self.row[index]][chars[0] : chars[1]].strip()


def window_cache() -> Path:
    """Where token windows are cached. Raises OSError as :func:`~.files.cache_folder` does."""
    return cache_folder("windows")


def answer_tokens(answers: Sequence[Answer], starts: np.ndarray, ends: np.ndarray) -> tuple[int, int] | None:
    """The context tokens that cover the first gold answer, counted from the first context token; ``None`` if cut off.

    ``starts`` and ``ends`` are the characters of the window's context tokens.
    """
    if not answers or not len(starts):
        return None
    answer = answers[0]
    # some tokenizers drop spaces and U+200B at the ends
    outside = answer.text[: max(0, int(starts[0]) - answer.start)] + answer.text[max(0, int(ends[-1]) - answer.start) :]
    if any(unicodedata.category(character)[0] not in "ZC" for character in outside):
        return None
    first = int(np.searchsorted(ends, answer.start, side="right"))
    last = int(np.searchsorted(starts, answer.end, side="left")) - 1
    return (first, last) if first <= last else None


def _readable(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Texts in which the names of special tokens, such as ``</s>``, are text: of as many characters, another first."""
    names = [name for name in tokenizer.all_special_tokens if any(name in text for text in texts)]
    for name in names:
        texts = [text.replace(name, "\u2039" + name[1:]) for text in texts]
    return list(texts)


def _frame(tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int], list[int]]:
    """The special tokens before the question, between question and context, and behind the context."""
    encoded = tokenizer("a", "a")
    ids, sides = encoded["input_ids"], encoded.sequence_ids(0)
    first, last = sides.index(0), len(sides) - sides[::-1].index(1)
    behind = len(sides) - sides[::-1].index(0)
    return ids[:first], ids[behind : sides.index(1)], ids[last:]


def _with_marks(offsets: np.ndarray, text: str) -> np.ndarray:
    """Tokens' characters, (tokens, 2), with the marks and vowels that a tokenizer joined to the letter before them.

    Composition (e + acute accent, or the parts of a Korean syllable) leaves only its first character to a token.
    """
    if unicodedata.is_normalized("NFC", text):
        return offsets
    limits = [*offsets[1:, 0].tolist(), len(text)]
    for place, limit in enumerate(limits):
        while offsets[place, 1] < limit and _is_joined(text[offsets[place, 1]]):
            offsets[place, 1] += 1
    return offsets


def _is_joined(character: str) -> bool:
    return unicodedata.category(character)[0] == "M" or "\u1160" <= character <= "\u11ff"  # vowels and ends of Hangul


def _windows_of(
    rows: Sequence[int], questions: Sequence[Question], tokenizer: PreTrainedTokenizerBase, spec: WindowSpec
) -> pa.Table:
    """The windows of a few questions; the first gold answer labels them, as usual for training.

    Questions and contexts are cut as tokens, not as texts: the rest of a cut text may have more tokens than it had.
    """
    alone = {"add_special_tokens": False, "return_attention_mask": False, "return_token_type_ids": False}
    asked = tokenizer(_readable([questions[row].question for row in rows], tokenizer), **alone)["input_ids"]
    texts = dict.fromkeys(questions[row].context for row in rows)
    encoded = tokenizer(_readable(list(texts), tokenizer), return_offsets_mapping=True, **alone)
    read = dict(zip(texts, zip(encoded["input_ids"], encoded["offset_mapping"], strict=True), strict=True))
    before, between, behind = _frame(tokenizer)
    columns: dict[str, list] = {name: [] for name in COLUMNS.names}
    for row, question in zip(rows, asked, strict=True):
        head = before + question[: spec.max_question_length] + between
        ids, offsets = read[questions[row].context]
        offsets = _with_marks(np.array(offsets, dtype=np.int32).reshape(-1, 2), questions[row].context)
        room = spec.max_length - len(head) - len(behind)
        starts = range(0, max(1, len(ids) - spec.stride), room - spec.stride)  # the last one reaches the end
        for window, first in enumerate(starts):
            chars = offsets[first : first + room]
            span = answer_tokens(questions[row].answers, chars[:, 0], chars[:, 1])
            columns["row"].append(row)
            columns["window"].append(window)
            columns["windows"].append(len(starts))
            columns["input_ids"].append(head + ids[first : first + room] + behind)
            columns["context_start"].append(len(head))
            columns["char_starts"].append(chars[:, 0])
            columns["char_ends"].append(chars[:, 1])
            columns["start"].append(len(head) + span[0] if span else 0)
            columns["end"].append(len(head) + span[1] if span else 0)
            columns["holds_answer"].append(span is not None)
            columns["question_cut"].append(len(question) > spec.max_question_length)
    return pa.table(columns, schema=COLUMNS)


def fingerprint(questions: Sequence[Question], tokenizer: PreTrainedTokenizerBase, spec: WindowSpec) -> str:
    """A key of everything that shapes the windows: texts, spans, tokenizer, lengths, stride, code."""
    if not hasattr(tokenizer, "_xsta_key"):  # kept on it: serialising 250,000 pieces takes a second
        whole = tokenizer.backend_tokenizer.to_str().encode()
        tokenizer._xsta_key = hashlib.blake2b(whole, digest_size=16).hexdigest()
    digest = hashlib.blake2b(digest_size=16)
    digest.update(json.dumps([CODE_VERSION, asdict(spec), tokenizer._xsta_key]).encode())
    for q in questions:
        answers = [f"{answer.start}:{answer.text}" for answer in q.answers]
        digest.update("\x1f".join([q.id, q.question, q.context, *answers, "\n"]).encode())
    return digest.hexdigest()


def build_windows(
    questions: Sequence[Question],
    tokenizer: PreTrainedTokenizerBase,
    spec: WindowSpec | None = None,
    cache: str | os.PathLike | None = None,
    texts: bool = True,
) -> Windows:
    """Windows of all questions, from the cache where they were built before.

    Args:
        questions: of one language; a question may have no answers (test data).
        tokenizer: a fast tokenizer.
        spec: lengths; the release's by default.
        cache: a folder; ``None`` builds in memory. Of what is cached (data sets) a line says which questions are cut.
        texts: keep the contexts for :meth:`Windows.text`; ``False`` saves their memory in training.

    More than ``LARGE`` questions are built by all cores and show a bar (unless ``TQDM_DISABLE`` is set). Raises OSError
    for a cache folder that cannot be written.
    """
    spec = spec or WindowSpec()
    segments = "token_type_ids" in tokenizer.model_input_names
    if not questions:
        return Windows(COLUMNS.empty_table(), questions, texts, segments)
    folder = Path(cache) / fingerprint(questions, tokenizer, spec) if cache else None
    kept = _load(folder, len(questions)) if folder and folder.is_dir() else None
    if kept is None:
        tokenizer.deprecation_warnings["sequence-length-is-longer-than-the-specified-maximum"] = True
        data = _build(questions, tokenizer, spec)
        if not folder:
            return Windows(data, questions, texts, segments)
        if folder.is_dir():
            warnings.warn(f"{folder}: these cached windows are damaged; they are built anew", stacklevel=2)
            shutil.rmtree(folder, ignore_errors=True)
        _save(data, folder)
        kept = _load(folder, len(questions))
        if kept is None:
            raise OSError(f"{folder}: damaged, and cannot be replaced; delete it, or set XSTA_CACHE to another folder")
    windows = Windows(kept, questions, texts, segments)
    _say_what_is_cut(windows, spec.max_question_length)
    return windows


_shared: tuple = ()  # in a process of _build's pool: questions, tokenizer, spec


def _share(*shared: object) -> None:
    """Start a process of the pool; it is a fork, so nothing is copied."""
    global _shared
    _shared = shared
    os.environ["TOKENIZERS_PARALLELISM"] = "false"


def _windows_of_shared(rows: Sequence[int]) -> pa.Table:
    return _windows_of(rows, *_shared)


def _build(questions: Sequence[Question], tokenizer: PreTrainedTokenizerBase, spec: WindowSpec) -> pa.Table:
    """The windows of all questions in their order, by one process or several."""
    shared, count, large = (questions, tokenizer, spec), len(questions), len(questions) > LARGE
    batches = [range(low, min(low + BATCH, count)) for low in range(0, count, BATCH)]
    hidden = {} if large else {"disable": True}  # TQDM_DISABLE counts where nothing is said here
    # where the system does not count cores, processes cannot be forked either
    processes = len(os.sched_getaffinity(0)) if large and hasattr(os, "sched_getaffinity") else 1
    forks = get_context("fork") if processes > 1 else None
    with ProcessPoolExecutor(processes, forks, _share, shared) if forks else nullcontext() as pool:
        tables = pool.map(_windows_of_shared, batches) if pool else (_windows_of(rows, *shared) for rows in batches)
        tables = list(tqdm(tables, "windows", len(batches), unit=" questions", unit_scale=BATCH, **hidden))
    return pa.concat_tables(tables)


def _say_what_is_cut(windows: Windows, limit: int) -> None:
    """A line on the screen for the questions of a data set that are over the limit of tokens."""
    cut = list(dict.fromkeys(windows.id_of(index) for index in np.flatnonzero(windows.question_cut)))
    if cut and os.environ.get("RANK", "0") == "0":  # of several processes one speaks
        LOG.warning(
            "%d of %d questions are cut after %d tokens (%s)",
            len(cut),
            len(windows.ids),
            limit,
            name_first(cut, len(cut)),
        )


def _load(folder: Path, count: int) -> pa.Table | None:
    """The windows of ``count`` questions in a cache folder; ``None`` where files are missing, cut or of other form."""
    from datasets import load_from_disk  # half a second, which windows in memory save

    try:
        data = load_from_disk(str(folder)).data.table
        row, window, windows = (data[name].to_numpy() for name in ("row", "window", "windows"))
        whole = data.schema.equals(COLUMNS) and (row[-1], window[-1]) == (count - 1, windows[-1] - 1)
    except (OSError, LookupError, TypeError, ValueError):  # ValueError is Arrow's own too
        return None
    return data if whole else None


def _save(data: pa.Table, folder: Path) -> None:
    """Write a cache folder whole or not at all."""
    from datasets import Dataset
    from datasets.utils.logging import disable_progress_bar, enable_progress_bar, is_progress_bar_enabled

    shown = is_progress_bar_enabled()
    disable_progress_bar()  # the one of saving
    try:
        with suppress(FileExistsError), replacing(folder) as temporary:
            Dataset(data).save_to_disk(str(temporary))
            if folder.is_dir():  # another process was faster, and may be reading it
                raise FileExistsError(folder)
    except OSError as error:
        if not folder.is_dir():  # else another process was faster
            raise OSError(f"{folder}: cannot be written ({error}); set XSTA_CACHE to a folder that can") from error
    finally:
        if shown:
            enable_progress_bar()


def pair_windows(target: Windows, source: Windows, by_answer: bool) -> np.ndarray:
    """For every target window the index of its source window, or -1 where the question has no source.

    In training (``by_answer``) windows that hold the answer are paired with each other. Everywhere else a target window
    is paired with the source window at the same relative place; the release takes the question's last one.
    """
    rows = {key: row for row, key in enumerate(source.ids)}
    row = np.array([rows.get(key, -1) for key in target.ids], dtype=int)[target.row]  # each window's source question
    first, count, holding = (np.full(len(source.ids) + 1, -1) for _ in range(3))  # the last is row -1: no source
    backwards = np.arange(len(source))[::-1]  # of several windows the first one is written last and stays
    first[source.row[backwards]] = backwards
    count[source.row] = source.windows
    backwards = backwards[source.holds_answer[backwards]]
    holding[source.row[backwards]] = backwards
    place = (target.window + 0.5) / target.windows
    paired = np.where(first[row] < 0, -1, first[row] + (place * count[row]).astype(int))
    return np.where(target.holds_answer & (holding[row] >= 0), holding[row], paired) if by_answer else paired
