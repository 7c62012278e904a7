"""Cases found by rule: where calibration mends the target's own answer, and where it spoils it (Figures 6, 9 to 11)."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from .corpus import Answer, Question
from .evaluation import score_answers
from .protocols import TestSet

READ = ("target", "teacher", "calibrated")  # the answers that a case shows
KINDS = ("success", "failure")


@dataclass(frozen=True)
class Case:
    """One question in the source and in a target language, with the answers of the readings.

    Attributes:
        kind: ``success`` (calibration mends the target's answer) or ``failure`` (it spoils it).
        language: the target's.
        source, target: the question in the two languages.
        source_answer: what the model answered in the source language.
        answers: by reading: ``target``, ``teacher``, ``calibrated``.
        f1: by reading, percent.
        found: how many questions of the language are of this kind.
    """

    kind: str
    language: str
    source: Question
    target: Question
    source_answer: str
    answers: dict[str, str]
    f1: dict[str, float]
    found: int

    def to_dict(self) -> dict:
        """Plain values for a JSON file."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping) -> "Case":
        """The inverse of :meth:`to_dict`."""

        def question(side: Mapping) -> Question:
            return Question(**{**side, "answers": tuple(Answer(**answer) for answer in side["answers"])})

        return cls(**{**values, "source": question(values["source"]), "target": question(values["target"])})


def find_cases(
    test: TestSet, answers: Mapping[str, Mapping[str, Mapping[str, str]]], languages: Sequence[str]
) -> list[Case]:
    """The clearest success and failure of calibration in each language; a kind that does not occur is left out.

    Success: the calibrated answer is exactly right where the target's own shares no word with a gold answer. Failure: the
    target's own is exactly right, the calibrated one is not. Among several, the one with the largest change of F1, then
    the best teacher (success) or the worst (failure), then the first id: no choosing by hand.

    Args:
        test: questions with their source in one list.
        answers: by reading, language and id, of every reading in ``READ``.
        languages: of the cases; each must be among the test's.
    """
    scores = {reading: score_answers(test, answers[reading]).scores for reading in READ}
    english = {question.id: question for question in test.source}
    cases = []
    for language in languages:
        questions = {question.id: question for question in test.questions[language] if question.id in english}

        def f1(reading: str, key: str, language=language) -> float:
            return 100 * scores[reading][language][key].f1

        def right(reading: str, key: str, language=language) -> bool:
            return scores[reading][language][key].em == 1

        chosen = {
            "success": [key for key in questions if right("calibrated", key) and f1("target", key) == 0],
            "failure": [key for key in questions if right("target", key) and not right("calibrated", key)],
        }
        ranks = {
            "success": lambda key: (f1("target", key), -f1("teacher", key), key),
            "failure": lambda key: (f1("calibrated", key), f1("teacher", key), key),
        }
        for kind in KINDS:
            if chosen[kind]:
                key = min(chosen[kind], key=ranks[kind])
                texts = {reading: answers[reading][language][key] for reading in READ}
                values = {reading: f1(reading, key) for reading in READ}
                own = answers["calibrated"].get("en", {}).get(key, "")
                case = Case(kind, language, english[key], questions[key], own, texts, values, len(chosen[kind]))
                cases.append(case)
    return cases
