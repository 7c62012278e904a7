"""What reading a folder, a file or a protocol finds, without training: ``xsta check``."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

from .folders import BESIDE, TRANSLATE_TEST, file_name, folder_files, missing_source
from .library import Library
from .protocols import LOADERS, load_protocol
from .squad import LOG, SHOWN, CorpusError, Question, Report, name_first

HEADS = ("split", "language", "questions", "answers", "with {}", "context", "(most)", "question", "(most)")


@dataclass
class Findings:
    """What was found.

    Attributes:
        source_language: the language that the others are paired with.
        rows: by split and language, as ``HEADS`` says: counts; median and greatest length of contexts and of questions,
            in characters.
        reports: what reading did, file by file.
        errors: why files cannot be used.
        repeats: what of training stands in other splits too.
    """

    source_language: str = "en"
    rows: list[tuple] = field(default_factory=list)
    reports: list[Report] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    repeats: list[str] = field(default_factory=list)

    @property
    def faults(self) -> list[str]:
        """All that is not as it should be; empty for good data."""
        return [*self.errors, *(str(report) for report in self.reports if report.faults()), *self.repeats]

    def __str__(self) -> str:
        lines = [f"cannot be used: {error}" for error in self.errors]
        for report in self.reports:
            lines.append(str(report))
            reasons = Counter(report.rejected.values()).most_common()
            if len(report.rejected) > SHOWN:
                lines.append("  left out: " + ", ".join(f"{count} {reason}" for reason, count in reasons))
        splits = {row[0] for row in self.rows}
        lines += self.repeats or ["nothing of training stands in another split"] * (len(splits) > 1)
        heads = [head.format(self.source_language) for head in HEADS]
        cells = [heads, *(tuple(map(str, row)) for row in self.rows)]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        table = ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in cells]
        lengths = "lengths in characters: median (most)"
        return "\n".join([*lines, *(["", *table, lengths] if self.rows else [])])


def check(name: str, source_language: str = "en") -> Findings:
    """Read a protocol by name, a folder of your own files, or one file, and say what was found.

    A file that cannot be read does not stop the others. Raises ValueError where there is nothing of this name, or where
    it cannot have this source language.
    """
    findings = Findings(source_language)
    said, LOG.disabled = LOG.disabled, True  # all of it is in what is found
    try:
        _collect(_parts(name, findings), findings)
    finally:
        LOG.disabled = said
    return findings


def _collect(parts: Iterable[tuple[str, str, list[Question], Sequence[Question]]], findings: Findings) -> None:
    """Rows of a split's language each, and what of training comes back in other splits."""
    training = {"ids": set(), "contexts": set()}
    for split, language, questions, beside in parts:
        own = language == findings.source_language
        findings.rows.append(_row(split, language, questions, None if own else {one.id for one in beside}))
        seen = {"ids": {q.id for q in questions}, "contexts": {hash(q.context) for q in questions}}
        for what, values in seen.items():
            if split == "train":
                training[what] |= values
            elif shared := values & training[what]:
                ids = [q.id for q in questions if (q.id if what == "ids" else hash(q.context)) in shared]
                said = f"{len(shared)} {what} stand in train too, of {len(ids)} questions"
                findings.repeats.append(f"{split} {language}: {said} ({name_first(ids, len(ids))})")


def _row(split: str, language: str, questions: Sequence[Question], sources: set[str] | None) -> tuple:
    def lengths(texts: Iterable[str]) -> tuple[int, int]:
        found = [len(text) for text in texts]
        return round(median(found)), max(found)

    answers = sum(len(question.golds) for question in questions)
    paired = "-" if sources is None else sum(question.id in sources for question in questions)
    contexts = lengths(dict.fromkeys(question.context for question in questions))
    return split, language, len(questions), answers, paired, *contexts, *lengths(q.question for q in questions)


def _parts(name: str, findings: Findings) -> Iterator[tuple[str, str, list[Question], Sequence[Question]]]:
    """Split, language, questions and what is read beside them, training first and the source first.

    Reports and errors go to the findings.
    """
    path, source = Path(name), findings.source_language
    if name not in LOADERS and not path.exists():
        raise ValueError(f"{name!r} is no file, no folder and no protocol; the protocols are {', '.join(LOADERS)}")
    if name in LOADERS:
        data = load_protocol(name, source_language=source)
        yield "train", source, data.train, ()
        for language in data.parallel:
            yield "train", language, data.parallel[language], data.parallel_source
        for split, test in (("dev", data.validation), *((test.name, test) for test in data.tests)):
            for language, questions in test.questions.items():
                yield split, language, questions, test.source_of(language)
        findings.reports += data.reports
        return
    notes: list[str] = []
    files: dict[tuple[str, str], dict[str, object]] = {("file", path.stem): {"repeats": "first", "spans": False}}
    if path.is_dir():
        files, notes = folder_files(path, source)
    elif source != "en":
        raise ValueError(f"{name}: --source is for folders; this is one file, which is read alone")
    library = Library(path if path.is_dir() else path.parent)
    if notes:
        library.add(path, Report(path.resolve().name, notes=notes))
    read: dict[tuple[str, str], list[Question]] = {}
    for (split, language), options in files.items():
        beside = read.get((BESIDE[split], language) if split in BESIDE else (split, source))
        file = Path(file_name(split, language, source) if path.is_dir() else path.name)
        try:
            read[split, language] = library.read(file, beside, **options)
        except CorpusError as error:
            findings.errors.append(str(error))
    translated = any(split == TRANSLATE_TEST for split, _ in files)
    for (split, language), questions in read.items():
        if split not in BESIDE:
            key = (TRANSLATE_TEST, language) if translated and split == "test" else (split, source)
            yield split, language, questions, read.get(key, ())
    if path.is_dir() and (fault := missing_source(path, files, source)):
        findings.errors.append(fault)
    findings.reports += library.reports
