"""A question answered in its own language and in the source's, whose answer is projected: one mixture of spans.

Not of the paper. Where a question has its source version, a reader answers that as well, and the span model says where
that answer is in the target's context. The probability of a target span s is the mean of the two readings,

    ``p(s) = 1/2 p_T(s) + 1/2 sum_k p_S(k) pi(s | k)``,

with ``p_T(s) = p_start p_end`` of the target (X-STA's calibrated ``p~_T``, a plain reader's ``p_T``), ``p_S(k)`` that
of the source's best spans k that do not overlap, and ``pi`` the span model's probability (:class:`~.spans.Projector`).
Neither half is normalised: a reader that is not sure of its source answer leaves the target's own where it is. Any
extractive reader can do this, for it reads both sides alone if need be.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from copy import copy

from ..data.squad import Question
from ..prediction.predictor import Prediction, Predictions, Predictor, Span, apart
from .spans import Projection, Projector, Row

SPANS = 40  # of the target, overlapping ones too; further ones have next to no probability
SOURCE_SPANS = 3
PLACES = 10  # where a source span may have gone


def mix(own: Sequence[Span], projected: Sequence[tuple[Span, Sequence[Projection]]]) -> dict[tuple[int, int], float]:
    """The mixture's probability of each target span, by its characters.

    Args:
        own: the target's spans.
        projected: the source's spans, each with where it may have gone.
    """
    found: Counter = Counter()
    for span in own:
        found[span.start, span.end] += span.score / 2
    for source, places in projected:
        for place in places:
            found[place.start, place.end] += source.score * place.score / 2
    return dict(found)


class ProjectingPredictor:
    """Answers questions that have their source version by the mixture of both readings.

    Args:
        predictor: any reader; one that reads pairs reads the target beside its source, as it does otherwise.
        projector: by default the one in the box.
    """

    def __init__(self, predictor: Predictor, projector: Projector | None = None):
        self.predictor, self.projector = predictor, projector or Projector()
        self.source_language = predictor.model.config.source_language

    def predict(
        self, targets: Mapping[str, Sequence[Question]], source: Sequence[Question], progress: bool = False
    ) -> Predictions:
        """Predictions under three readings: ``mixture``, ``source`` (its best span, projected) and ``calibrated``.

        A score of ``source`` is the share that it brings into the mixture.

        Args:
            targets: questions by language. Those of the source language, and those without a source version, are
                answered as the reader does, under every reading.
            source: the same questions in the source language, by id.
            progress: show bars over windows.
        """
        wide, few = copy(self.predictor), copy(self.predictor)
        wide.overlapping, few.alternatives = SPANS, SOURCE_SPANS
        pairs = source if self.predictor.model.config.reads_pairs else None
        own = wide.predict(targets, pairs, progress, ("calibrated",))["calibrated"]
        asked = {self.source_language: source}
        answers = few.predict(asked, None, progress, ("calibrated",))["calibrated"][self.source_language]
        texts, found = {question.id: question for question in source}, {"mixture": {}, "source": {}}
        for language, questions in targets.items():
            found["mixture"][language], found["source"][language] = dict(own[language]), dict(own[language])
            if language == self.source_language:
                continue
            both = [question for question in questions if question.id in texts]
            for target, projected in zip(both, self._project(both, texts, answers), strict=True):
                mixture = mix(own[language][target.id].overlapping, projected)
                alone = mix((), projected[:1])
                best = self._best(target, own[language][target.id], mixture)
                nones = [side.none_score for side in (own[language][target.id], answers[target.id])]
                none = None if None in nones else sum(nones) / 2  # "no answer here" is mixed as the spans are
                found["mixture"][language][target.id] = best._replace(none_score=none)
                found["source"][language][target.id] = self._best(target, own[language][target.id], alone)
        return found | {"calibrated": own}

    def _project(
        self, targets: Sequence[Question], sources: Mapping[str, Question], answers: Mapping[str, Prediction]
    ) -> list[list[tuple[Span, list[Projection]]]]:
        """For each target the source's best spans, each with where it may have gone."""
        rows, owners = [], []
        for number in sorted(range(len(targets)), key=lambda n: targets[n].context):  # a passage's questions together
            target, other = targets[number], sources[targets[number].id]
            for span in answers[target.id].alternatives:
                sides = other.question, other.context, span.start, span.end, target.question, target.context
                rows.append(Row(*sides, span.text))
                owners.append((number, span))
        found: list[list[tuple[Span, list[Projection]]]] = [[] for _ in targets]
        for (number, span), places in zip(owners, self.projector.candidates(rows, PLACES), strict=True):
            found[number].append((span, places))
        return found

    def _best(self, target: Question, own: Prediction, mixture: Mapping[tuple[int, int], float]) -> Prediction:
        """The mixture's best span and its alternatives; the reader's own answer where the mixture has none."""
        spans = [Span(target.context[start:end], p, start, end) for (start, end), p in mixture.items() if end > start]
        best = apart(spans, self.predictor.alternatives)
        return own._replace(**best[0]._asdict(), alternatives=best) if best else own
