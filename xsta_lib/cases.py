"""Cases found by rule: where calibration mends the target's own answer, and where it spoils it (Figures 6, 9 to 11)."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import pandas as pd

from .corpus import Answer, Question
from .evaluation import score_answers
from .protocols import TestSet

READ = ("target", "teacher", "calibrated")  # the answers that a case shows


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

    Success: the calibrated answer is exactly right, the target's own is not; among several the one whose own answer is
    worst, then whose teacher is best. Failure: the target's own is exactly right, the calibrated one is not; among
    several the one whose calibrated answer is worst, then whose teacher is. Ties go to the first id: nothing is chosen
    by hand.

    Args:
        test: questions with their source.
        answers: by reading, language and id, of every reading in ``READ``.
        languages: of the cases; each must be among the test's.
    """
    scores = {reading: score_answers(test, answers[reading]).scores for reading in READ}
    own_english = {question.id: question for question in test.questions.get("en", ())}
    cases = []
    for language in languages:
        english = {question.id: question for question in test.source_of(language)}
        frame = pd.DataFrame(
            {name: {key: 100 * score.f1 for key, score in scores[name][language].items()} for name in READ}
        )
        exact = {name: {key for key, score in scores[name][language].items() if score.em} for name in READ}
        frame = frame[frame.index.isin(english)].rename_axis("id").reset_index()
        own, calibrated = (frame["id"].isin(exact[name]) for name in ("target", "calibrated"))
        ranked = {
            "success": frame[calibrated & ~own].sort_values(["target", "teacher", "id"], ascending=[True, False, True]),
            "failure": frame[own & ~calibrated].sort_values(["calibrated", "teacher", "id"]),
        }
        targets = {question.id: question for question in test.questions[language]}
        for kind, part in ranked.items():
            if len(part):
                key, f1 = part["id"].iloc[0], part[list(READ)].iloc[0].to_dict()
                texts = {name: answers[name][language].get(key, "") for name in READ}  # none where no span was valid
                same = key in own_english and own_english[key].context == english[key].context
                english_answer = answers["calibrated"]["en"].get(key, "") if same else ""  # not of translated English
                cases.append(Case(kind, language, english[key], targets[key], english_answer, texts, f1, len(part)))
    return cases
