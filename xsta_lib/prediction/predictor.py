"""Logits to answer texts: the predictor behind evaluation, the command line and the notebooks."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from ..data.batches import TEXT_INPUTS, collate_windows
from ..data.files import is_blank
from ..data.squad import Question
from ..data.windows import Windows, WindowSpec, build_windows, pair_windows
from ..model.modeling import Encoded, XStaForQuestionAnswering, XStaOutput
from ..training.cpu import tuned

# The distributions an answer can be read from; see XStaOutput.
READINGS = ("calibrated", "target", "teacher")


# How a span is chosen: the best of so many starts and ends, so many tokens long at most (the release's values).
N_BEST, MAX_ANSWER_TOKENS = 20, 30
CHUNK = 8  # batches of source windows whose states are held in memory at a time


class Span(NamedTuple):
    """A piece of a context: its text, its score ``p_start * p_end`` (0 to 1), and the characters it begins and ends at.

    Where there is none the text is empty, the score 0 and both places are -1.
    """

    text: str
    score: float
    start: int
    end: int


NO_SPAN = Span("", 0.0, -1, -1)


class Prediction(NamedTuple):
    """A predicted answer: the first four fields are those of its :class:`Span`.

    Attributes:
        alternatives: the best spans that do not overlap, best first, the answer's own among them; as many as asked for.
        overlapping: the best spans whether they overlap or not, best first; as many as asked for, by default none.
        none_score: ``p_start * p_end`` of the pair ([CLS], [CLS]), the smallest of the question's windows: the score of
            "no answer here". ``None`` where the encoder's windows have no [CLS].
        window: which of the question's windows holds the answer.
    """

    text: str
    score: float
    start: int = -1
    end: int = -1
    alternatives: tuple[Span, ...] = ()
    none_score: float | None = None
    window: int = 0
    overlapping: tuple[Span, ...] = ()


# Predictions by reading, language and question id: the one nesting from here to the tables.
Predictions = dict[str, dict[str, dict[str, Prediction]]]


def pair_scores(
    p: Tensor, allowed: Tensor, n_best: int = N_BEST, max_tokens: int = MAX_ANSWER_TOKENS
) -> tuple[Tensor, Tensor, Tensor]:
    """``p_start * p_end`` of the pairs of each row's n best starts and ends; arguments as for :func:`best_spans`.

    Returns:
        ``(start, end, score)``, (B, n, n) each; the score is -1 where a pair is no span.
    """
    p = p.masked_fill(~allowed[..., None], -1.0)
    n = min(n_best, p.shape[1])
    p_start, starts = p[..., 0].topk(n, dim=1)
    p_end, ends = p[..., 1].topk(n, dim=1)
    starts, ends = starts[:, :, None].expand(-1, n, n), ends[:, None, :].expand(-1, n, n)
    length = ends - starts + 1
    valid = (length >= 1) & (length <= max_tokens) & (p_start[:, :, None] >= 0) & (p_end[:, None, :] >= 0)
    return starts, ends, (p_start[:, :, None] * p_end[:, None, :]).masked_fill(~valid, -1.0)


def best_spans(
    p: Tensor, allowed: Tensor, n_best: int = N_BEST, max_tokens: int = MAX_ANSWER_TOKENS, count: int = 1
) -> tuple[Tensor, Tensor, Tensor]:
    """The best spans of each row that do not overlap, best first.

    A row without a valid pair among its ``n_best`` starts and ends is searched whole.

    Args:
        p: (B, N, 2) start and end probabilities.
        allowed: (B, N) true on context tokens; no other token can start or end an answer.
        n_best, max_tokens: limits of the search.
        count: how many spans.

    Returns:
        ``(start, end, score)``, (B, count) each, or fewer where there are fewer starts; the score is
        ``p_start * p_end``, -1 where there is no further span.
    """
    starts, ends, scores = pair_scores(p, allowed, n_best, max_tokens)
    n = scores.shape[1]
    found, count = [], min(count, n)  # n starts have no more spans that lie apart
    for _ in range(count):
        score, index = scores.flatten(1).max(1)
        start = starts[:, :, 0].gather(1, (index // n)[:, None])
        end = ends[:, 0].gather(1, (index % n)[:, None])
        found.append(torch.stack([start[:, 0], end[:, 0]], 1)), found.append(score)
        apart = (starts > end[..., None]) | (ends < start[..., None])
        scores = scores.masked_fill(~apart, -1.0)
    spans, score = torch.stack(found[::2], 1), torch.stack(found[1::2], 1)
    start, end = spans.unbind(-1)
    lost = (score[:, 0] < 0) & allowed.any(1)
    if n < p.shape[1] and lost.any():
        start[lost], end[lost], score[lost] = best_spans(p[lost], allowed[lost], p.shape[1], max_tokens, count)
    return start, end, score


def context_mask(windows: Windows, indices: Sequence[int], length: int) -> Tensor:
    """(B, N) true on the context tokens of some windows."""
    allowed = torch.zeros(len(indices), length, dtype=torch.bool)
    for i, index in enumerate(indices):
        first = windows.context_start[index]
        allowed[i, first : first + len(windows.char_starts[index])] = True
    return allowed


def like_lengths(windows: Windows, indices: np.ndarray, size: int) -> Iterator[np.ndarray]:
    """Cut window indices into batches of like lengths."""
    order = indices[np.argsort(windows.length[indices], kind="stable")]
    for low in range(0, len(order), size):
        yield order[low : low + size]


def span_of(windows: Windows, index: int, first: int, last: int, score: float) -> Span:
    """The span from one token position of a window to another (included), without white space around it."""
    offset = windows.context_start[index]
    start, end = int(windows.char_starts[index][first - offset]), int(windows.char_ends[index][last - offset])
    text = windows.contexts[windows.row[index]][start:end]
    start += len(text) - len(text.lstrip())
    return Span(text.strip(), score, start, start + len(text.strip()))


def apart(spans: Sequence[Span], count: int) -> tuple[Span, ...]:
    """The best ``count`` spans of a context that do not overlap, best first; of equal ones the earlier in the list."""
    kept: list[Span] = []
    for span in sorted(spans, key=lambda span: -span.score):
        if len(kept) < count and all(span.end <= other.start or span.start >= other.end for other in kept):
            kept.append(span)
    return tuple(kept)


class Predictor:
    """Answers questions of several languages, computing every source window once.

    Args:
        model: a trained model, on its device; or another extractive reader in the form of
            :class:`~xsta_lib.prediction.plain.PlainReader`.
        tokenizer: its tokenizer.
        batch_size: windows a batch; by default what keeps the model's device busy.
        spec: window lengths.
        cache: folder for token windows.
        autocast: run the encoder in bfloat16.
        multiple: lengths are rounded up to a multiple of it.
        alternatives, overlapping: how many spans a prediction keeps under these names.
    """

    def __init__(
        self,
        model: XStaForQuestionAnswering,
        tokenizer,
        batch_size: int | None = None,
        spec: WindowSpec | None = None,
        cache=None,
        autocast: bool = False,
        multiple: int = 8,
        alternatives: int = 1,
        overlapping: int = 0,
    ):
        self.model, self.tokenizer = model, tokenizer
        self.batch_size = batch_size or (32 if model.device.type == "cpu" else 128)
        self.spec, self.cache = spec or WindowSpec(), cache
        self.autocast, self.multiple = autocast, multiple
        self.alternatives, self.overlapping = alternatives, overlapping

    @cached_property
    def cls_type(self) -> int:
        """The token type of [CLS]: 0, but 2 in XLNet, where it stands at the end."""
        if "token_type_ids" not in self.tokenizer.model_input_names or self.tokenizer.cls_token_id is None:
            return 0
        pair = self.tokenizer("a", "a")
        return dict(zip(pair["input_ids"], pair["token_type_ids"], strict=True)).get(self.tokenizer.cls_token_id, 0)

    def windows(self, questions: Sequence[Question]) -> Windows:
        """Token windows of some questions."""
        return build_windows(questions, self.tokenizer, self.spec, self.cache)

    @contextmanager
    def passes(self) -> Iterator[None]:
        """What the model's passes run in: no gradients, no dropout, bfloat16 where asked for, tuned to the device.

        The model is left as it was.
        """
        was_training = self.model.training
        autocast = torch.autocast(self.model.device.type, dtype=torch.bfloat16, enabled=self.autocast)
        ours = isinstance(self.model, XStaForQuestionAnswering)
        with torch.inference_mode(), autocast, tuned(self.model, self.autocast) if ours else nullcontext():
            self.model.eval()
            try:
                yield
            finally:
                self.model.train(was_training)

    def predict(
        self,
        targets: Mapping[str, Sequence[Question]],
        source: Sequence[Question] | None = None,
        progress: bool = False,
        readings: Sequence[str] = READINGS,
    ) -> Predictions:
        """Answer questions of several languages that share one source.

        Args:
            targets: questions by language. The source language itself is read alone (S = T).
            source: the same questions in the source language, by id; ``None`` reads every target alone. A target
                question without its source is answered by the target alone too.
            progress: show a bar over windows.
            readings: which distributions to decode; without a teacher all are the target's own.

        Raises:
            ValueError: two questions of one language, or of the source, have the same id.
        """
        for language, questions in (*targets.items(), ("the source", source or ())):
            (key, times), *_ = Counter(question.id for question in questions).most_common(1) or [("", 0)]
            if times > 1:
                raise ValueError(f"{language}: {times} questions have the id {key!r}; give each its own")
        source_language = self.model.config.source_language
        windows = {language: self.windows(questions) for language, questions in targets.items()}
        use_source = source is not None and self.model.config.reads_pairs
        source_windows = self.windows(source) if use_source else None
        found: Predictions = {reading: {language: {} for language in targets} for reading in readings}
        same = use_source and targets.get(source_language) == source  # the source's own pass answers them
        paired = {}
        for language, part in windows.items():
            if same and language == source_language:
                continue
            alone = not use_source or language == source_language
            paired[language] = np.full(len(part), -1) if alone else pair_windows(part, source_windows, by_answer=False)
        bar = tqdm(total=sum(map(len, windows.values())), desc="answering", unit="window", disable=not progress)
        with bar, self.passes():
            for language, places in paired.items():
                self._read_alone(windows[language], np.flatnonzero(places < 0), language, found, bar)
            if use_source:
                self._read_pairs(windows, paired, source_windows, found, bar, same)
        return found

    def _read_alone(self, windows: Windows, indices: np.ndarray, language: str, found: Predictions, bar: tqdm) -> None:
        for batch in like_lengths(windows, indices, self.batch_size):
            output = self.model(**self.inputs(windows, batch), language=language)
            self._decode(output, windows, batch, language, found)
            bar.update(len(batch))

    def _read_pairs(
        self,
        windows: Mapping[str, Windows],
        paired: Mapping[str, np.ndarray],
        source_windows: Windows,
        found: Predictions,
        bar: tqdm,
        answer_source: bool,
    ) -> None:
        """Chunks of source windows: encode each once, then read all languages' windows that belong to it.

        With ``answer_source`` the source's own passes answer its questions.
        """
        size = CHUNK * self.batch_size
        for low in range(0, len(source_windows), size):
            high = min(low + size, len(source_windows))
            chosen = {name: np.flatnonzero((p >= low) & (p < high)) for name, p in paired.items()}
            used = [paired[language][indices] for language, indices in chosen.items()]
            needed = np.arange(low, high) if answer_source else np.unique(np.concatenate([*used, np.array([], int)]))
            store = self._encode_source(source_windows, needed, found, bar, answer_source)
            for language, indices in chosen.items():
                part = windows[language]
                for batch in like_lengths(part, indices, self.batch_size):
                    source = stack([store[int(i)] for i in paired[language][batch]])
                    output = self.model(**self.inputs(part, batch), language=language, source=source)
                    self._decode(output, part, batch, language, found)
                    bar.update(len(batch))

    def _encode_source(
        self, windows: Windows, needed: np.ndarray, found: Predictions, bar: tqdm, answer: bool
    ) -> dict[int, Encoded]:
        store = {}
        for batch in like_lengths(windows, needed, self.batch_size):
            encoded = self.model.encode(**self.inputs(windows, batch))
            if answer:
                output = self.model.distributions(encoded)
                self._decode(output, windows, batch, self.model.config.source_language, found)
                bar.update(len(batch))
            for row, index in enumerate(batch):
                length = int(windows.length[index])
                store[int(index)] = encoded.map(lambda value, row=row, n=length: value[row, :n])
        return store

    def inputs(self, windows: Windows, indices: Sequence[int]) -> dict[str, Tensor]:
        """The model's arguments for some windows, on its device."""
        pad_id, longest = self.tokenizer.pad_token_id or 0, self.spec.max_length  # the encoder may have no more places
        batch = collate_windows(windows, indices, pad_id, self.multiple, longest)
        if self.cls_type:
            batch["token_type_ids"][batch["input_ids"] == self.tokenizer.cls_token_id] = self.cls_type
        return {name: batch[name].to(self.model.device) for name in TEXT_INPUTS if name in batch}

    def _decode(
        self, output: XStaOutput, windows: Windows, batch: Sequence[int], language: str, found: Predictions
    ) -> None:
        """Keep each question's best answer so far, of this batch's windows and the earlier ones."""
        allowed = context_mask(windows, batch, output.target.shape[1]).to(output.target.device)
        none_at = self._none_positions(windows, batch)
        n_best = N_BEST if isinstance(self.model, XStaForQuestionAnswering) else allowed.shape[1]  # the exact best
        for reading, by_language in found.items():
            p, known = getattr(output, reading), by_language[language]
            p = self._over_choices(output.target if p is None else p, allowed, none_at)
            starts, ends, scores = (value.tolist() for value in best_spans(p, allowed, n_best, count=self.alternatives))
            none = None if none_at is None else p[range(len(batch)), none_at].prod(-1).tolist()
            for row, index in enumerate(batch):
                spans = zip(starts[row], ends[row], scores[row], strict=True)
                spans = [span_of(windows, index, *span) for span in spans if span[2] >= 0]
                if any(is_blank(span.text) for span in spans):
                    spans = self._visible_spans(windows, index, p[row], allowed[row])
                spans = apart(spans, self.alternatives)  # tokens that do not overlap may still share a character
                best, key = spans[0] if spans else NO_SPAN, windows.id_of(index)
                every = self._likeliest(windows, index, p[row], allowed[row])
                new = Prediction(*best, spans, none and none[row], int(windows.window[index]), every)
                known[key] = merge(known[key], new, self.alternatives) if key in known else new

    def _likeliest(self, windows: Windows, index: int, p: Tensor, allowed: Tensor) -> tuple[Span, ...]:
        """The best spans of one window, overlapping ones too, as many as asked for."""
        if not self.overlapping:
            return ()
        starts, ends, scores = (value.flatten() for value in pair_scores(p[None], allowed[None]))
        best, places = scores.topk(min(self.overlapping, len(scores)))
        chosen = zip(starts[places].tolist(), ends[places].tolist(), best.tolist(), strict=True)
        spans = [span_of(windows, index, *span) for span in chosen if span[2] >= 0]
        return tuple(span for span in spans if not is_blank(span.text))

    def _over_choices(self, p: Tensor, allowed: Tensor, none_at: list[int] | None) -> Tensor:
        """The distributions (B, N, 2) that answers are read from.

        X-STA's are its own. Those of any other reader are taken over the tokens that can be an answer, [CLS] among
        them, as the question-answering pipeline of transformers 4 did: then scores of windows compare as they did.
        """
        if isinstance(self.model, XStaForQuestionAnswering):
            return p
        choices = allowed.clone()
        if none_at is not None:
            choices[range(len(choices)), none_at] = True
        p = p * choices[..., None]
        return p / p.sum(1, keepdim=True).clamp_min(torch.finfo(p.dtype).tiny)

    def _none_positions(self, windows: Windows, batch: Sequence[int]) -> list[int] | None:
        """Where [CLS] stands in some windows, at their beginning or end; ``None`` where the tokenizer has none."""
        cls = self.tokenizer.cls_token_id
        ids = windows.input_ids[batch[0]]
        if cls is None or cls not in (ids[0], ids[-1]):
            return None
        return [0 if ids[0] == cls else int(windows.length[index]) - 1 for index in batch]

    def _visible_spans(self, windows: Windows, index: int, p: Tensor, allowed: Tensor) -> list[Span]:
        """The best spans of one window that begin and end at a token with something to see."""
        first, context = windows.context_start[index], windows.contexts[windows.row[index]]
        chars = zip(windows.char_starts[index], windows.char_ends[index], strict=True)
        seen = [place for place, (start, end) in enumerate(chars, first) if not is_blank(context[start:end])]
        visible = torch.zeros_like(allowed)
        visible[seen] = True
        found = best_spans(p[None], (allowed & visible)[None], count=self.alternatives)
        spans = zip(*(value[0].tolist() for value in found), strict=True)
        return [span_of(windows, index, *span) for span in spans if span[2] >= 0]


def merge(known: Prediction, new: Prediction, count: int) -> Prediction:
    """One question's prediction out of those of different windows; of equal scores the first stays."""
    best = new if (new.text != "", new.score) > (known.text != "", known.score) else known
    none = known.none_score if new.none_score is None else min(known.none_score, new.none_score)
    count_all = max(len(known.overlapping), len(new.overlapping))
    every = sorted((*known.overlapping, *new.overlapping), key=lambda span: -span.score)
    first = {span[2:]: span for span in reversed(every)}  # windows share spans: each counts once, with its best score
    likeliest = tuple(span for span in every if first[span[2:]] is span)[:count_all]
    spans = {"alternatives": apart([*known.alternatives, *new.alternatives], count), "overlapping": likeliest}
    return best._replace(**spans, none_score=none)


def stack(rows: Sequence[Encoded]) -> Encoded:
    """Encoded rows of different lengths (no batch axis) to one batch, padded with zeros."""
    names = [name for name, value in vars(rows[0]).items() if value is not None]
    stacked = {
        name: torch.nn.utils.rnn.pad_sequence([getattr(row, name) for row in rows], batch_first=True) for name in names
    }
    missing = {name: None for name in vars(rows[0]) if name not in stacked}
    return Encoded(**stacked, **missing)
