"""Where an answer is in a translation: four ways to project a span, and the one to use, :class:`Projector`.

Axes: B rows, N_S and N_T source and target tokens, D span lengths.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from rapidfuzz import fuzz
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from ..data.offsets import locate
from ..data.squad import Answer, Question
from ..model.modeling import XStaForQuestionAnswering
from ..prediction.predictor import Predictor, best_spans, context_mask, span_of
from .alignment import Pair, Passage, PassageEncoder, SpanModel

ALIKE = 70  # of 100: how alike a text must be to the answer's translation to count as found
ENOUGH = 0.2  # of a target token's share of the answer, in the search by similarity alone
TOGETHER = 16  # rows that the span model scores at a time


@dataclass(frozen=True)
class Row:
    """A question with its answer's span, and its translation.

    Attributes:
        question, context: the source side.
        start, end: the characters of the answer in ``context``.
        target_question, target_context: the translations.
        answer: the answer translated by itself; ``None`` where there is none.
        near: the characters of ``target_context`` that the answer's sentence became; the answer is looked for there
            alone, but by the teacher, which does not look at it. ``None`` looks everywhere.
    """

    question: str
    context: str
    start: int
    end: int
    target_question: str
    target_context: str
    answer: str | None = None
    near: tuple[int, int] | None = None


@dataclass(frozen=True)
class Projection:
    """A span of the target's context.

    Attributes:
        start, end: its characters.
        score: 0 to 1; that of :class:`Projector` is the probability that it is these very tokens, the others' scores
            only rank.
        method: how it was found.
    """

    start: int
    end: int
    score: float
    method: str


class Method(Protocol):
    """A way to project spans."""

    def project(self, rows: Sequence[Row], source: str, target: str) -> list[Projection | None]:
        """Each row's span, in order; ``None`` where none was found.

        ``source`` and ``target`` are language codes; only the teacher looks at one, for the target's statistics.
        """


# -- by the text of the answer -----------------------------------------------------------------------------------------


def _lower(text: str) -> str:
    """The text in small letters, with as many characters as before."""
    return "".join(small if len(small := character.lower()) == 1 else character for character in text)


def string_places(row: Row) -> list[tuple[int, int, float]]:
    """Where the answer's own translation stands in the target's context: start, end, and how alike, 0 to 1.

    All places of the very text, whatever its letters' case; if there is none, the text in another Unicode form; else
    the most similar text, in whole words. Only inside ``near``, where that is given.
    """
    if not row.answer or not row.answer.strip():
        return []
    low, high = row.near or (0, len(row.target_context))
    text, answer = _lower(row.target_context[low:high]), _lower(row.answer.strip())
    if found := [match.span() for match in re.finditer(f"(?={re.escape(answer)})", text)]:
        return [(low + at, low + at + len(answer), 1.0) for at, _ in found]
    if place := locate(text, answer, 0):
        return [(low + place.start, low + place.end, 1.0)]
    found = fuzz.partial_ratio_alignment(answer, text, score_cutoff=ALIKE)
    if found is None or found.dest_end == found.dest_start or len(text) < len(answer):
        return []
    words = [match.span() for match in re.finditer(r"\w+|\S", text)]
    touched = [span for span in words if span[0] < found.dest_end and found.dest_start < span[1]]
    if not touched:
        return []
    start, end = touched[0][0], touched[-1][1]
    return [(low + start, low + end, fuzz.ratio(answer, text[start:end]) / 100)]


class StringMethod:
    """The answer's own translation, found in the passage's; the first place of several."""

    def project(self, rows: Sequence[Row], source: str, target: str) -> list[Projection | None]:
        """See :class:`Method`; the score is how alike the texts are, shared by the places found."""
        found = [string_places(row) for row in rows]
        return [Projection(*p[0][:2], p[0][2] / len(p), "string") if p else None for p in found]


# -- by similarity -----------------------------------------------------------------------------------------------------


def heaviest_run(values: np.ndarray) -> np.ndarray:
    """First and last index (included) of the contiguous run with the largest sum; values (N,), N at least 1."""
    sums = np.concatenate([[0.0], np.cumsum(values)])
    least = np.minimum.accumulate(sums)
    first = np.maximum.accumulate(np.where(sums <= least, np.arange(len(sums)), 0))
    last = int(np.argmax(sums[1:] - least[:-1]))
    return np.array([first[last], last])


class SimilarityMethod:
    """The run of target tokens that most of the answer's similarity falls on, and whose own falls on the answer."""

    def __init__(self, encoder: PassageEncoder | None = None):
        self.encoder = encoder or PassageEncoder()

    def project(self, rows: Sequence[Row], source: str, target: str) -> list[Projection | None]:
        """See :class:`Method`; the score is the mean share of the found tokens."""
        found = []
        for row, pair, span, allowed in _aligned(self.encoder, rows):
            if span is None or not allowed.any():
                found.append(None)
                continue
            own, back = pair.shares(*span)
            share = (own * back.clamp_max(1)).sqrt().numpy()
            places = np.flatnonzero(allowed)  # blanks among them may lie inside a span
            first, last = places[0] + heaviest_run((share - ENOUGH)[places[0] : places[-1] + 1])
            first, last = sorted((places[places >= first][0], places[places <= last][-1]))
            characters = pair.target.characters(row.target_context, first, last)
            found.append(Projection(*characters, float(share[first : last + 1].mean()), "similarity"))
        return found


def _aligned(
    encoder: PassageEncoder, rows: Sequence[Row]
) -> Iterator[tuple[Row, Pair, tuple[int, int] | None, np.ndarray]]:
    """Each row with its passages, the answer's tokens and where a span may be, (N_T,)."""
    pair, known = None, None
    for low in range(0, len(rows), TOGETHER):
        part = rows[low : low + TOGETHER]
        passages = encoder([text for row in part for text in (row.context, row.target_context)])
        for row in part:
            if (row.context, row.target_context) != known:  # neighbours often share their passages
                known = row.context, row.target_context
                pair = Pair(passages[row.context], passages[row.target_context], row.target_context)
            start, end = row.near or (0, len(row.target_context))
            allowed = pair.visible & (pair.target.starts < end) & (pair.target.ends > start)
            yield row, pair, pair.source.tokens(row.context, row.start, row.end), allowed


# -- by the paper's teacher --------------------------------------------------------------------------------------------


class TeacherMethod:
    """The attentive teacher of a trained reader (section 3.3), told the source's gold span instead of ``p_S``.

    Args:
        predictor: with a model that has a teacher.
    """

    def __init__(self, predictor: Predictor):
        model = predictor.model
        if not isinstance(model, XStaForQuestionAnswering) or model.teacher is None or model.config.teacher == "logits":
            raise ValueError("this model has no teacher that carries probabilities over; use the reader in the box")
        self.predictor = predictor

    def project(self, rows: Sequence[Row], source: str, target: str) -> list[Projection | None]:
        """See :class:`Method`; the score is the teacher's ``p_start * p_end``."""
        return [self._one(row, target) for row in rows]

    def _one(self, row: Row, language: str) -> Projection | None:
        predictor, answer = self.predictor, Answer(row.context[row.start : row.end], row.start)
        own = predictor.windows([Question("", row.question, row.context, (answer,))])
        other = predictor.windows([Question("", row.target_question, row.target_context, ())])
        holding = np.flatnonzero(own.holds_answer)
        if not len(holding):
            return None
        indices = np.arange(len(other))
        with predictor.passes():
            encoded = predictor.model.encode(**predictor.inputs(own, holding[:1]))
            encoded = encoded.map(lambda value: value.expand(len(indices), *value.shape[1:]))
            read = predictor.model.encode(**predictor.inputs(other, indices), language=language, source=encoded)
            gold = torch.zeros_like(encoded.logits)
            gold[:, int(own.start[holding[0]]), 0] = gold[:, int(own.end[holding[0]]), 1] = 1
            teacher = predictor.model.teacher(read.normalised, encoded.normalised, gold, read.mask, encoded.mask)
        allowed = context_mask(other, indices, teacher.p.shape[1]).to(teacher.p.device)
        start, end, score = (value[:, 0] for value in best_spans(teacher.p, allowed))
        best = int(score.argmax())
        if score[best] < 0:
            return None
        span = span_of(other, best, int(start[best]), int(end[best]), float(score[best]))
        return Projection(span.start, span.end, span.score, "teacher")


# -- all together ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Scored:
    """What the span model reads of a row.

    Attributes:
        tokens: (N_T, K) features. allowed: (N_T,) where a span may begin and end.
        length: tokens of the source's span.
        longest: tokens of the longest span that is looked at.
        matches: (first token, last token, how alike) of the places of the answer's own translation.
        target: the target passage.
    """

    tokens: Tensor
    allowed: Tensor
    length: int
    longest: int
    matches: tuple[tuple[int, int, float], ...]
    target: Passage


def prepare(encoder: PassageEncoder, rows: Sequence[Row]) -> Iterator[Scored | None]:
    """What the span model reads of each row; ``None`` where the answer or the place for it has no token."""
    for row, pair, span, allowed in _aligned(encoder, rows):
        if span is None or not allowed.any():
            yield None
            continue
        length, other = span[1] - span[0] + 1, pair.target
        places = [(other.tokens(row.target_context, *place[:2]), place[2]) for place in string_places(row)]
        matches = tuple((*tokens, alike) for tokens, alike in places if tokens)
        wide = max((last - first + 1 for first, last, _ in matches), default=0)
        longest = min(len(other.starts), max(3 * length + 16, wide))
        yield Scored(pair.features(*span), torch.from_numpy(allowed), length, longest, matches, other)


def log_probabilities(model: SpanModel, rows: Sequence[Scored]) -> Tensor:
    """``log p`` of all spans of some rows: (B, N_T, D), -inf for those that may not be."""
    longest, count = max(row.longest for row in rows), max(len(row.tokens) for row in rows)
    matches = torch.zeros(len(rows), count, longest)
    for place, row in enumerate(rows):
        for first, last, alike in row.matches:  # none is longer than ``row.longest``
            matches[place, first, last - first] = alike
    tokens = pad_sequence([row.tokens for row in rows], batch_first=True)
    allowed = pad_sequence([row.allowed for row in rows], batch_first=True)
    lengths, limits = torch.tensor([(row.length, row.longest) for row in rows]).T
    return model(tokens, allowed, lengths, limits, matches)


class Projector:
    """Projects spans by a model of all spans of the target (:mod:`~xsta_lib.translation.alignment`).

    It weighs token similarities, word edges, the span's length, and whether a span is the answer's own translation.

    Args:
        encoder: reads the passages; by default the pretrained encoder that the model was fitted for.
        model: the span model; by default the one in the box.

    Attributes:
        threshold: the smallest score that is kept by default: on XQuAD 93 in 100 rows have it, with 94 F1.
    """

    threshold = 0.3

    def __init__(self, encoder: PassageEncoder | None = None, model: SpanModel | None = None):
        self.encoder, self.model = encoder or PassageEncoder(), model or SpanModel.load()

    def project(self, rows: Sequence[Row], source: str, target: str) -> list[Projection | None]:
        """The likeliest span of each row, with its probability. See :class:`Method`."""
        return [spans[0] if spans else None for spans in self.candidates(rows, 1)]

    @torch.inference_mode()
    def candidates(self, rows: Sequence[Row], count: int) -> list[list[Projection]]:
        """The ``count`` likeliest spans of each row, best first; they may overlap. None where there is no place."""
        found: list[list[Projection]] = []
        for low in range(0, len(rows), TOGETHER):
            part = rows[low : low + TOGETHER]
            scored = list(prepare(self.encoder, part))
            known = [one for one in scored if one]
            scores = iter(log_probabilities(self.model, known) if known else ())
            found += [
                self._best(row, one, next(scores), count) if one else [] for row, one in zip(part, scored, strict=True)
            ]
        return found

    @staticmethod
    def _best(row: Row, scored: Scored, scores: Tensor, count: int) -> list[Projection]:
        """The likeliest spans of one row's (N_T, D) scores."""
        values, places = scores.flatten().topk(min(count, scores.numel()))
        found, texts = [], {match[:2] for match in scored.matches}
        for value, place in zip(values.exp().tolist(), places.tolist(), strict=True):
            first, last = place // scores.shape[1], place // scores.shape[1] + place % scores.shape[1]
            if value > 0:
                how = "alignment and string" if (first, last) in texts else "alignment"
                found.append(Projection(*scored.target.characters(row.target_context, first, last), value, how))
        return found
