"""Questions with their contexts and answers: SQuAD-format files read, validated and written.

A corpus file holds one language. Answers are spans of the context; offsets count Unicode code points.
"""

import hashlib
import json
import logging
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

from .files import TextError, check_text, is_blank, once, read_json, write_text_atomically
from .offsets import Place, Wrong, locate, recognise, span_at

LOG = logging.getLogger(__name__)  # a line on the screen unless the user configures otherwise
EMPTIED, BLANK, UNFOUND = "empty answer", "blank question", "answer not in its context"
SHOWN = 3  # ids in a message


class CorpusError(ValueError):
    """A corpus file cannot be used; the message names file, place and remedy."""


@dataclass(frozen=True)
class Answer:
    """A gold answer: its text and its offset in the context, in code points."""

    text: str
    start: int

    @property
    def end(self) -> int:
        """Offset behind the last character."""
        return self.start + len(self.text)


@dataclass(frozen=True)
class Question:
    """One question, its context and its gold answers, in one language.

    ``texts`` are the gold texts as the file gives them, where they are not those of ``answers``: such as are no spans
    of the context, or are spelt in another way there.
    """

    id: str
    question: str
    context: str
    answers: tuple[Answer, ...]
    title: str = ""
    texts: tuple[str, ...] = ()

    @property
    def golds(self) -> tuple[str, ...]:
        """The texts that an answer is scored against."""
        return self.texts or tuple(answer.text for answer in self.answers)


# What a report counts, and how it says so.
COUNTS = {
    "repaired": "answer offsets repaired",
    "ambiguous": "of these a choice among several places",
    "respelt": "answers taken as their contexts write them",
    "left_out": "with a gold answer that is not in the context, left out",
    "unlocated": "without any gold answer in the context, asked and scored all the same",
    "merged": "repeated ids merged",
    "repeats": "repeated ids with another text left out",
    "unmatched": "without a source question of their id",
}


@dataclass
class Report:
    """What reading a file did, counted in questions; ``str`` says it in a line."""

    path: str  # the file's name
    kept: int = 0
    repaired: int = 0  # with an answer that was not at its offset
    ambiguous: int = 0  # of the repaired: its text stands in several places
    respelt: int = 0  # with an answer that the context writes with other white space or composed in another way
    left_out: int = 0  # with gold answers that are not in the context, beside others that are
    unlocated: int = 0  # with no gold answer that is in the context, kept to be asked and scored
    merged: int = 0  # repeated ids with the same text, whose answers were put together
    repeats: int = 0  # repeated ids with another text, of which only the first was kept
    unmatched: int = 0  # without a counterpart of their id in the source language
    rejected: dict[str, str] = field(default_factory=dict)  # ids that were left out, with the reason
    counting: str = ""  # how the file counts its offsets, if not in code points
    notes: list[str] = field(default_factory=list)  # what concerns no single question
    first: dict[str, list[str]] = field(default_factory=dict)  # by what was counted, the first ids

    def count(self, what: str, key: str) -> None:
        """One question more in the count of this name."""
        setattr(self, what, getattr(self, what) + 1)
        shown = self.first.setdefault(what, [])
        if len(shown) < SHOWN:
            shown.append(key)

    def faults(self) -> list[str]:
        """What is not as it should be, each with its count and first ids; empty for a good file."""
        counts = {name: getattr(self, name) for name in COUNTS}
        parts = [
            f"{count} {COUNTS[name]}"
            + (f" [{self.counting}]" if name == "repaired" and self.counting else "")
            + f" ({name_first(self.first.get(name, []), count)})"
            for name, count in counts.items()
            if count
        ]
        if self.rejected:
            shown = [f"{key} ({reason})" for key, reason in list(self.rejected.items())[:SHOWN]]
            parts.append(f"{len(self.rejected)} rejected: {name_first(shown, len(self.rejected))}")
        return parts + self.notes

    def __str__(self) -> str:
        size = [f"{self.kept} questions"] if self.kept else []
        return f"{self.path}: " + "; ".join(size + self.faults())


def name_first(ids: Sequence[str], count: int) -> str:
    """The first ids of so many, for a message."""
    ids = ids[:SHOWN]
    return ", ".join(ids) + (", ..." if count > len(ids) else "")


def digest_questions(questions: Mapping[str, Sequence[Question]]) -> str:
    """A key of some languages' questions, contexts and answers, in their order."""
    hashed, last = hashlib.sha256(), None
    for language, part in questions.items():
        for question in part:
            context = question.context if question.context != last else ""  # a passage has several questions
            last = question.context
            values = (language, question.id, question.question, context, question.answers)
            hashed.update(repr(values + ((question.texts,) if question.texts else ())).encode())
    return hashed.hexdigest()[:16]


def _take(mapping: dict, key: str, kind: type, path: Path, place: str):
    """``mapping[key]``, which must be there and of the given type."""
    value = mapping.get(key) if isinstance(mapping, dict) else None
    value = _whole(value) if kind is int else value
    if isinstance(value, kind) and not isinstance(value, bool):
        return value
    name = {str: "text", list: "a list", int: "a whole number"}[kind]
    fault = f"lacks '{key}' ({name})" if value is None else f"has {value!r:.40} as '{key}', which must be {name}"
    raise CorpusError(f"{path}: {place} {fault}; see the SQuAD v1.1 layout in data/README.md")


def _whole(value: object) -> object:
    """A whole number that went through a table, as 27.0 or as text, becomes one again."""
    if isinstance(value, str) and re.fullmatch(r"-?[0-9]{1,9}", value):
        return int(value)
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _take_id(entry: dict, path: Path, place: str) -> str:
    """The entry's id; a whole number becomes its text."""
    key = entry.get("id") if isinstance(entry, dict) else None
    if isinstance(key, str) and not key.strip():
        raise CorpusError(f"{path}: {place} holds a question with an empty 'id'; give each question its own")
    if isinstance(key, float):
        key = _whole(key)
    if isinstance(key, int) and not isinstance(key, bool):
        return str(key)
    return check_text(_take(entry, "id", str, path, place), f"{path}: {place}: 'id'")


class _Row(NamedTuple):
    """A question as its file gives it, with gold texts and offsets as they are."""

    id: str
    question: str
    context: str
    title: str
    golds: list[tuple[str, int]]


def _rows(path: Path, labelled: bool, placed: bool = True) -> Iterator[_Row]:
    """Every question of a file; what was read is let go on the way.

    ``placed``: answers must have offsets, and those of a question that is marked as impossible are none.
    """
    document = read_json(path, object_pairs_hook=once)
    if not isinstance(document, dict) or not isinstance(document.get("data"), list):
        fault = "no list under the key 'data'; expected the SQuAD v1.1 layout, see data/README.md"
        raise CorpusError(f"{path}: {fault}")
    articles = document["data"]
    contexts: dict[str, str] = {}  # XTREME's files repeat the context with every question: keep it once
    for a, article in enumerate(articles):
        articles[a] = None
        paragraphs = _take(article, "paragraphs", list, path, f"article {a}")
        title = check_text(str(article.get("title") or ""), f"{path}: article {a}: 'title'")
        for p, paragraph in enumerate(paragraphs):
            place = f"article {a}, paragraph {p}"
            context = _take(paragraph, "context", str, path, place)
            context = contexts.setdefault(context, context)
            check_text(context, f"{path}: {place}: 'context'")
            for entry in _take(paragraph, "qas", list, path, place):
                key = _take_id(entry, path, place)
                spot = f"question {key}"
                question = check_text(_take(entry, "question", str, path, spot), f"{path}: {spot}: 'question'")
                golds, impossible = [], placed and entry.get("is_impossible") is True
                for raw in _take(entry, "answers", list, path, spot) if labelled and not impossible else ():
                    text = check_text(_take(raw, "text", str, path, spot), f"{path}: {spot}: an answer")
                    golds.append((text, _take(raw, "answer_start", int, path, spot) if placed else -1))
                yield _Row(key, question, context, title, golds)


def _places(rows: Sequence[_Row], report: Report) -> list[list[Place | None]]:
    """Where each gold answer of each row stands; a file that counts in another way is read in its way."""
    places = [[locate(row.context, *gold) if gold[0].strip() else None for gold in row.golds] for row in rows]
    right, wrong = [], []
    for r, row in enumerate(rows):
        for g, (gold, place) in enumerate(zip(row.golds, places[r], strict=True)):
            if place:
                (wrong if place.choices else right).append((r, g, Wrong(row.context, row.title, *gold)))
    if wrong and (way := recognise([one for *_, one in wrong], [one for *_, one in right])):
        report.counting = way.name
        for r, g, one in wrong:
            if span := span_at(one.context, one.text, way.convert(one)):
                places[r][g] = Place(*span, 1)
    return places


def _answered(row: _Row, places: Sequence[Place | None], report: Report, spans: bool) -> Question | str:
    """The row with its answers, counted; or the reason why it is rejected."""
    if is_blank(row.question):
        return BLANK
    if not row.golds:
        return "no answer"
    if not any(text.strip() for text, _ in row.golds):
        return EMPTIED
    found = [place for place in places if place]
    if spans and not found:
        return UNFOUND
    answers = tuple(dict.fromkeys(Answer(row.context[place.start : place.end], place.start) for place in found))
    texts = tuple(text for text, _ in row.golds)
    if all(place and not place.choices for place in places) and texts == tuple(answer.text for answer in answers):
        return Question(row.id, row.question, row.context, answers, row.title)
    written = [row.context[place.start : place.end] if place else None for place in places]
    told = {
        "repaired": any(place.choices for place in found),
        "ambiguous": any(place.choices > 1 for place in found),
        "respelt": any(there not in (None, text) for there, text in zip(written, texts, strict=True)),
        "left_out": 0 < len(found) < len(places),
        "unlocated": not found,
    }
    for what in (name for name, holds in told.items() if holds):
        report.count(what, row.id)
    given = texts if set(texts) != set(written) else ()
    return Question(row.id, row.question, row.context, answers, row.title, given)


def read_squad(
    path: str | os.PathLike, labelled: bool = True, repeats: str = "refuse", spans: bool = True
) -> tuple[list[Question], Report]:
    """Read a SQuAD v1.1 file.

    An answer that is not at its offset is moved: to where the file's own way of counting says (see
    :mod:`~xsta_lib.data.offsets`), else to its nearest occurrence. Texts are compared up to white space and canonical
    equivalence, and answers are what the context has. A gold answer that does not occur is left out. Repeated ids with
    one answer each (XTREME's files) are merged. All are counted in the report.

    Args:
        path: the JSON file.
        labelled: ``False`` ignores answers, for files without them (then ``answers`` is empty).
        repeats: one id with two different texts: ``"refuse"`` the file, or keep the ``"first"`` and count the others
            (machine translations of one question can differ).
        spans: a question none of whose gold answers occurs in its context is rejected; ``False`` keeps it, for test
            files: it can be asked, and scored by its texts.

    Raises:
        CorpusError: the file is missing, unreadable, not UTF-8, not JSON, not SQuAD's layout, holds half a surrogate
            pair or one id with two different questions, holds no question, or has emptied answers.
    """
    path = Path(path)
    report, questions = Report(path.name), {}
    rows = _all_rows(path, labelled)
    for row, places in zip(rows, _places(rows, report), strict=True):
        if labelled:
            found = _answered(row, places, report, spans)
        else:
            found = BLANK if is_blank(row.question) else Question(row.id, row.question, row.context, (), row.title)
        if isinstance(found, str):
            report.rejected[row.id] = found
        else:
            questions[row.id] = _merge(questions.get(row.id), found, path, report, repeats)
    for key in [key for key in report.rejected if key in questions]:  # another entry of the id is kept
        if report.rejected.pop(key) == UNFOUND:
            report.count("left_out", key)
    _refuse_useless(path, report, len(questions))
    return list(questions.values()), report


def read_golds(path: str | os.PathLike) -> tuple[list[tuple[str, tuple[str, ...]]], Report]:
    """Ids and gold texts of a SQuAD v1.1 file, entry by entry as the official scripts score them.

    Offsets and contexts are not looked at, so a gold text counts whether or not it is a span. Entries without answers
    cannot be scored; they are counted in the report. Raises CorpusError as :func:`read_squad` does.
    """
    path = Path(path)
    report, golds = Report(path.name), []
    for row in _all_rows(path, placed=False):
        texts = tuple(text for text, _ in row.golds)
        if texts:
            golds.append((row.id, texts))
        else:
            report.rejected[row.id] = "no answer"
    emptied = {key for key, texts in golds if not any(text.strip() for text in texts)}
    _refuse_useless(path, report, len(golds), len(emptied))
    return golds, report


def _all_rows(path: Path, labelled: bool = True, placed: bool = True) -> list[_Row]:
    if not path.exists():
        what = "a link to a file that is not there" if path.is_symlink() else "no such file"
        remedy = "check its name; if it is published, run 'xsta download' or set XSTA_DATA to the folder with it"
        raise CorpusError(f"{path}: {what}; {remedy}")
    try:
        return list(_rows(path, labelled, placed))
    except TextError as error:
        raise CorpusError(str(error)) from error


def _refuse_useless(path: Path, report: Report, kept: int, emptied: int = 0) -> None:
    """Note how many questions were kept; a file with emptied answers, or without any question, is a CorpusError."""
    report.kept = kept
    lost = sum(reason == EMPTIED for reason in report.rejected.values())
    if lost + emptied and lost + emptied >= 0.9 * (lost + kept):
        raise CorpusError(
            f"{path}: the answers are emptied, as in XTREME's copies of the test sets; use the original file instead"
        )
    if not kept:
        first = next(iter(report.rejected.items()), None)
        why = f" ({len(report.rejected)} rejected, first: {first})" if first else ""
        raise CorpusError(f"{path}: holds no question{why}; check that this is the file you meant")


def _merge(known: Question | None, new: Question, path: Path, report: Report, repeats: str) -> Question:
    """One question out of two entries with the same id, which must agree in all but their answers."""
    if known is None:
        return new
    if (known.question, known.context) != (new.question, new.context):
        if repeats == "first":
            report.count("repeats", new.id)
            return known
        raise CorpusError(f"{path}: id {new.id} stands for two different questions; ids must be unique in a file")
    report.count("merged", new.id)
    answers = tuple(dict.fromkeys(known.answers + new.answers))
    texts = tuple(dict.fromkeys(known.golds + new.golds)) if known.texts or new.texts else ()
    return replace(known, answers=answers, texts=texts)


def write_squad(
    path: str | os.PathLike,
    questions: Iterable[Question],
    about: Mapping[str, object] | None = None,
    marks: Mapping[tuple[str, Answer], Mapping[str, object]] | None = None,
) -> None:
    """Write questions as a SQuAD v1.1 file, atomically, grouped by title and context in their order.

    Gold texts that are no spans get the offset -1.

    Args:
        path: the file.
        questions: what it holds.
        about: more keys of the file's outermost object, which no reader needs.
        marks: more keys of answers, by their question's id and the answer.
    """
    articles: dict[str, dict[str, list[dict]]] = {}
    for q in questions:
        answers = [
            {"text": answer.text, "answer_start": answer.start, **(marks or {}).get((q.id, answer), {})}
            for answer in q.answers
        ]
        spans = {answer.text for answer in q.answers}
        answers += [{"text": text, "answer_start": -1} for text in q.texts if text not in spans]
        entry = {"id": q.id, "question": q.question, "answers": answers}
        articles.setdefault(q.title, {}).setdefault(q.context, []).append(entry)
    data = [
        {"title": title, "paragraphs": [{"context": context, "qas": qas} for context, qas in paragraphs.items()]}
        for title, paragraphs in articles.items()
    ]
    write_text_atomically(path, json.dumps({"version": "1.1", **(about or {}), "data": data}, ensure_ascii=False))
