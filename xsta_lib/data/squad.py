"""Questions with their contexts and answers: SQuAD-format files read, validated and written.

A corpus file holds one language. Answers are spans of the context; offsets count Unicode code points.
"""

import hashlib
import json
import os
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from .files import write_text_atomically

EMPTIED = "empty answer"


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
    """One question, its context and its gold answers, in one language."""

    id: str
    question: str
    context: str
    answers: tuple[Answer, ...]
    title: str = ""


@dataclass
class Report:
    """What reading a file did, counted in questions; ``str`` says it in a line."""

    path: str  # the file's name
    kept: int = 0
    repaired: int = 0  # with an answer that was not at its offset
    merged: int = 0  # repeated ids with the same text, whose answers were put together
    repeats: int = 0  # repeated ids with another text, of which only the first was kept
    rejected: dict[str, str] = field(default_factory=dict)  # ids that were left out, with the reason
    unmatched: int = 0  # without a counterpart of their id in the source language

    def __str__(self) -> str:
        counts = {
            "answer offsets repaired": self.repaired,
            "repeated ids merged": self.merged,
            "repeated ids with another text left out": self.repeats,
            "without a source question of their id": self.unmatched,
        }
        parts = [f"{self.path}: {self.kept} questions", *(f"{count} {what}" for what, count in counts.items() if count)]
        if self.rejected:
            shown = ", ".join(f"{key} ({reason})" for key, reason in list(self.rejected.items())[:3])
            parts.append(f"{len(self.rejected)} rejected: {shown}{', ...' if len(self.rejected) > 3 else ''}")
        return "; ".join(parts)


def digest_questions(questions: Mapping[str, Sequence[Question]]) -> str:
    """A key of some languages' questions, contexts and answers, in their order."""
    hashed, last = hashlib.sha256(), None
    for language, part in questions.items():
        for question in part:
            context = question.context if question.context != last else ""  # a passage has several questions
            last = question.context
            values = (language, question.id, question.question, context, question.answers)
            hashed.update(repr(values).encode("utf-8", "surrogatepass"))
    return hashed.hexdigest()[:16]


def locate(context: str, text: str, start: int) -> int:
    """Offset of ``text`` in ``context`` nearest to the given offset, or -1 where it does not occur."""
    if start >= 0 and context.startswith(text, start):
        return start
    places = (match.start() for match in re.finditer(f"(?={re.escape(text)})", context))  # they may overlap
    return min(places, key=lambda at: abs(at - start), default=-1)


def _load_json(path: Path) -> dict:
    """Parse a file; every fault becomes a :class:`CorpusError` that names file, place and remedy."""
    try:
        document = json.loads(path.read_bytes().decode("utf-8-sig"))
    except FileNotFoundError:
        fault = "no such file; run 'xsta download' or set XSTA_DATA to the folder with it"
    except OSError as error:
        fault = f"cannot be read ({error.strerror}); check the file and its permissions"
    except UnicodeDecodeError as error:
        fault = f"byte {error.start} is not UTF-8; save the file as UTF-8"
    except json.JSONDecodeError as error:
        place = f"line {error.lineno}, column {error.colno}"
        fault = f"not JSON at {place} ({error.msg}); the download may be cut, fetch it again"
        if not error.doc.strip():
            fault = "the file is empty; fetch or write it again"
    else:
        if isinstance(document, dict) and isinstance(document.get("data"), list):
            return document
        fault = "no list under the key 'data'; expected the SQuAD v1.1 layout, see data/README.md"
    raise CorpusError(f"{path}: {fault}")


def _take(mapping: dict, key: str, kind: type, path: Path, place: str):
    """``mapping[key]``, which must be there and of the given type."""
    value = mapping.get(key) if isinstance(mapping, dict) else None
    if not isinstance(value, kind):
        name = {str: "text", list: "a list", int: "a whole number"}[kind]
        raise CorpusError(f"{path}: {place} lacks '{key}' ({name}); see the SQuAD v1.1 layout in data/README.md")
    return value


def _read_answers(entry: dict, context: str, place: str, path: Path) -> tuple[tuple[Answer, ...], bool] | str:
    """The entry's answers and whether an offset was repaired, or the reason why the entry is rejected."""
    found, repaired = {}, False
    for raw in _take(entry, "answers", list, path, place):
        text = _take(raw, "text", str, path, place)
        start = _take(raw, "answer_start", int, path, place)
        if not text.strip():
            return EMPTIED
        at = locate(context, text, start)
        if at < 0:
            return "answer not in its context"
        repaired |= at != start
        found[Answer(text, at)] = None
    return (tuple(found), repaired) if found else "no answer"


def _entries(path: Path) -> Iterator[tuple[dict, str, str]]:
    """Every entry of a file with its context and title; what was read is let go on the way."""
    articles = _load_json(path)["data"]
    contexts: dict[str, str] = {}  # XTREME's files repeat the context with every question: keep it once
    for a, article in enumerate(articles):
        articles[a] = None
        for p, paragraph in enumerate(_take(article, "paragraphs", list, path, f"article {a}")):
            place = f"article {a}, paragraph {p}"
            context = _take(paragraph, "context", str, path, place)
            context = contexts.setdefault(context, context)
            for entry in _take(paragraph, "qas", list, path, place):
                _take(entry, "id", str, path, place)
                _take(entry, "question", str, path, f"question {entry['id']}")
                yield entry, context, str(article.get("title") or "")


def read_squad(
    path: str | os.PathLike, labelled: bool = True, repeats: str = "refuse"
) -> tuple[list[Question], Report]:
    """Read a SQuAD v1.1 file.

    An answer that is not at its offset is moved to its nearest occurrence; a question whose answer does not occur is
    rejected. Repeated ids with one answer each (XTREME's files) are merged. All are counted in the report.

    Args:
        path: the JSON file.
        labelled: ``False`` ignores answers, for files without them (then ``answers`` is empty).
        repeats: one id with two different texts: ``"refuse"`` the file, or keep the ``"first"`` and count the others
            (machine translations of one question can differ).

    Raises:
        CorpusError: the file is missing, unreadable, not UTF-8, not JSON, not SQuAD's layout, holds one id with two
            different questions, holds no question, or has emptied answers.
    """
    path = Path(path)
    report, questions = Report(path.name), {}
    for entry, context, title in _entries(path):
        key, text = entry["id"], entry["question"]
        answers = _read_answers(entry, context, f"question {key}", path) if labelled else ((), False)
        try:
            (context + text).encode()
        except UnicodeEncodeError:  # half a surrogate pair (a cut JSON escape), which no tokenizer can read
            answers = "broken Unicode"
        if isinstance(answers, str):
            report.rejected[key] = answers
            continue
        report.repaired += answers[1]
        question = Question(key, text, context, answers[0], title)
        questions[key] = _merge(questions.get(key), question, path, report, repeats)
    emptied = sum(reason == EMPTIED for reason in report.rejected.values())
    if emptied and emptied >= 0.9 * (emptied + len(questions)):
        raise CorpusError(
            f"{path}: the answers are emptied, as in XTREME's copies of the test sets; use the original file instead"
        )
    if not questions:
        first = next(iter(report.rejected.items()), None)
        why = f" ({len(report.rejected)} rejected, first: {first})" if first else ""
        raise CorpusError(f"{path}: holds no question{why}; check that this is the file you meant")
    report.kept = len(questions)
    return list(questions.values()), report


def _merge(known: Question | None, new: Question, path: Path, report: Report, repeats: str) -> Question:
    """One question out of two entries with the same id, which must agree in all but their answers."""
    if known is None:
        return new
    if (known.question, known.context) != (new.question, new.context):
        if repeats == "first":
            report.repeats += 1
            return known
        raise CorpusError(f"{path}: id {new.id} stands for two different questions; ids must be unique in a file")
    report.merged += 1
    answers = tuple(dict.fromkeys(known.answers + new.answers))
    return Question(known.id, known.question, known.context, answers, known.title)


def write_squad(path: str | os.PathLike, questions: Iterable[Question]) -> None:
    """Write questions as a SQuAD v1.1 file, atomically, grouped by title and context in their order."""
    articles: dict[str, dict[str, list[dict]]] = {}
    for q in questions:
        answers = [{"text": answer.text, "answer_start": answer.start} for answer in q.answers]
        entry = {"id": q.id, "question": q.question, "answers": answers}
        articles.setdefault(q.title, {}).setdefault(q.context, []).append(entry)
    data = [
        {"title": title, "paragraphs": [{"context": context, "qas": qas} for context, qas in paragraphs.items()]}
        for title, paragraphs in articles.items()
    ]
    write_text_atomically(path, json.dumps({"version": "1.1", "data": data}, ensure_ascii=False))


class LazyLanguages(Mapping):
    """Questions by language, each language read by its function when it is asked for, and not kept.

    Loop over the keys and take one language at a time: ``items()`` works, but holds the last language while it reads
    the next.
    """

    def __init__(self, readers: Mapping[str, Callable[[], list[Question]]]):
        self._readers = dict(readers)

    def __getitem__(self, language: str) -> list[Question]:
        return self._readers[language]()

    def __iter__(self) -> Iterator[str]:
        return iter(self._readers)

    def __len__(self) -> int:
        return len(self._readers)


class Library:
    """Reads the files of one data folder and collects their reports.

    Attributes:
        root: the folder that relative paths start from.
        reports: what reading did, one a file, however often it was read; it grows with every file.
    """

    def __init__(self, root: Path):
        self.root, self._reports = root, {}
        self.reports: Collection[Report] = self._reports.values()

    def read(
        self, path: Path, sources: Sequence[Question] | None = None, minimum: float = 0.0, **options: object
    ) -> list[Question]:
        """The questions of one file; how many have no source question of their id is noted in its report.

        Args:
            path: the file, relative to ``root``.
            sources: the questions of the source language; ``None`` where the file is not read beside another.
            minimum: smallest share of the questions that must find their source, 0 to 1.
            options: as for :func:`read_squad`, which also says what it raises.

        Raises:
            CorpusError: fewer than ``minimum`` of the ids match; the message shows three ids of each side.
        """
        questions, report = read_squad(self.root / path, **options)
        report = self._reports.setdefault(path, report)
        if sources is None:
            return questions
        known = {source.id for source in sources}
        unmatched = [question.id for question in questions if question.id not in known]
        report.unmatched, matched = len(unmatched), (len(questions) - len(unmatched)) / len(questions)
        if matched < minimum:
            raise CorpusError(
                f"{self.root / path}: only {matched:.0%} of the target ids have a source question, at least "
                f"{minimum:.0%} is needed; target ids look like {unmatched[:3]}, source ids like "
                f"{[source.id for source in sources[:3]]}"
            )
        return questions
