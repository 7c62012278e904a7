"""Which training questions are held out for selection, where a protocol has no validation set of its own."""

import hashlib
from collections.abc import Callable, Mapping, Sequence

from .corpus import Question

HELD_OUT = 0.1  # share of the questions


def held_out_ids(questions: Sequence[Question], share: float = HELD_OUT) -> set[str]:
    """Ids of whole articles, drawn by a hash of their titles until ``share`` of the questions is reached.

    Where titles do not tell articles apart (one holds half of the questions or more), contexts are drawn, and where
    these do not either, single questions. A single question is kept for training.
    """

    def grouped(key: Callable[[Question], str]) -> dict[str, list[str]]:
        groups: dict[str, list[str]] = {}
        for question in questions:
            groups.setdefault(key(question), []).append(question.id)
        return groups

    ways = (lambda question: question.title), (lambda question: question.context), (lambda question: question.id)
    for articles in map(grouped, ways):
        if max(map(len, articles.values()), default=0) < len(questions) / 2:
            break
    chosen: set[str] = set()
    for title in sorted(articles, key=lambda title: hashlib.sha256(title.encode()).hexdigest()):
        if len(chosen) >= share * len(questions) or len(chosen) + len(articles[title]) == len(questions):
            break
        chosen.update(articles[title])
    return chosen


def hold_out(files: Mapping[str, list[Question]]) -> tuple[dict[str, list[Question]], dict[str, list[Question]]]:
    """Training and validation questions by language; English decides for the ids that it shares with a language."""
    english = {question.id for question in files.get("en", [])}
    shared = held_out_ids(files.get("en", []))
    kept, held = {}, {}
    for language, questions in files.items():
        own = shared | held_out_ids([q for q in questions if q.id not in english])
        kept[language] = [q for q in questions if q.id not in own]
        held[language] = [q for q in questions if q.id in own]
    return kept, {language: questions for language, questions in held.items() if questions}
