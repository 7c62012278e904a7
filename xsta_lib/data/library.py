"""The files of one data folder: read one by one or a language at a time, with a report of each."""

import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path

from .squad import LOG, SHOWN, CorpusError, Question, Report, read_squad


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
    """Reads the files of one data folder, collects their reports, and says on the screen what they find amiss.

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
        unmatched = set()
        if sources is not None:
            known = {source.id for source in sources}
            unmatched = {question.id for question in questions} - known
            matched = (len(questions) - len(unmatched)) / len(questions)
            ids = [key for question in questions if (key := question.id) in unmatched][:SHOWN]
            sides = f"target ids look like {ids}, source ids like {[source.id for source in sources[:SHOWN]]}"
            if matched < minimum:
                raise CorpusError(
                    f"{self.root / path}: only {matched:.0%} of the target ids have a source question, at least "
                    f"{minimum:.0%} is needed; {sides}"
                )
            report.unmatched, report.first["unmatched"] = len(unmatched), ids
            if not matched:
                report.notes.append(f"no id is shared with the source language: nothing is read as pairs; {sides}")
        if path not in self._reports:
            self.add(path, report)
        return questions

    def add(self, path: Path, report: Report) -> None:
        """Keep a report, and say on the screen what is not as it should be."""
        self._reports[path] = report
        if report.faults() and os.environ.get("RANK", "0") == "0":  # of several processes one speaks
            LOG.warning("%s", report)
