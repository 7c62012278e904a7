"""Large corpora: a file is parsed once and kept as Arrow, and a language is read when it is asked for.

SQuAD translated to ten languages is 2.35 GB of JSON. Nothing here holds more than one language of it at a time.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import pyarrow as pa
import pyarrow.feather as feather

from .corpus import Answer, CorpusError, Question, Report, pair_by_id, read_squad
from .features import window_cache

# Raise when reading changes what it keeps; older tables are then made anew.
CODE_VERSION = 1
LARGE = 50_000_000  # bytes; smaller files are parsed faster than they are worth keeping


def corpus_cache() -> Path:
    """Where large files are kept as Arrow tables: ``corpora`` beside the token windows."""
    return window_cache().parent / "corpora"


def read_corpus(
    path: str | os.PathLike, labelled: bool = True, repeats: str = "refuse", large: int = LARGE
) -> tuple[list[Question], Report]:
    """Like :func:`~xsta_lib.corpus.read_squad`, but a large file is parsed once and read from an Arrow table later.

    The table is found by the file's bytes (their hash), the arguments and the code's version, so a file that moves is
    found again and one that changes is read anew.

    Args:
        path, labelled, repeats: as for ``read_squad``.
        large: from how many bytes on a file is kept.

    Raises:
        CorpusError: as for ``read_squad``. OSError: the cache folder cannot be written.
    """
    path = Path(path)
    if not path.is_file() or path.stat().st_size < large:
        return read_squad(path, labelled, repeats)
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()[:32]
    table = corpus_cache() / f"{digest}-{int(labelled)}{repeats[0]}-{CODE_VERSION}.arrow"
    if table.is_file():
        return _load(table, path.name)
    questions, report = read_squad(path, labelled, repeats)
    _save(table, questions, report)
    return questions, report


def _save(target: Path, questions: Sequence[Question], report: Report) -> None:
    """Write a table under a temporary name and rename it; each context is stored once."""
    places: dict[str, int] = {}
    columns = {
        "id": pa.array((q.id for q in questions), pa.large_string()),
        "question": pa.array((q.question for q in questions), pa.large_string()),
        "context": pa.array((places.setdefault(q.context, len(places)) for q in questions), pa.int32()),
        "title": pa.array((q.title for q in questions), pa.large_string()),
        "texts": pa.array(([a.text for a in q.answers] for q in questions), pa.list_(pa.large_string())),
        "starts": pa.array(([a.start for a in q.answers] for q in questions), pa.list_(pa.int32())),
    }
    columns["context"] = pa.DictionaryArray.from_arrays(columns["context"], pa.array(places, pa.large_string()))
    table = pa.table(columns).replace_schema_metadata({"report": json.dumps(asdict(report))})
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        feather.write_feather(table, str(temporary), compression="lz4")
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


def _load(path: Path, name: str) -> tuple[list[Question], Report]:
    """The questions and the report of a table; questions with the same context share it."""
    table = feather.read_table(str(path)).combine_chunks()
    report = Report(**{**json.loads(table.schema.metadata[b"report"]), "path": name})
    contexts = table["context"].chunk(0)
    texts, rows = contexts.dictionary.to_pylist(), contexts.indices.to_pylist()
    columns = [table[column].to_pylist() for column in ("id", "question", "title", "texts", "starts")]
    questions = [
        Question(key, question, texts[row], tuple(map(Answer, answers, starts)), title)
        for row, key, question, title, answers, starts in zip(rows, *columns, strict=True)
    ]
    return questions, report


class LazyLanguages(Mapping):
    """Questions by language, each language read when it is asked for and not kept.

    Loop over the keys and take one language at a time: ``items()`` works, but holds the last language while it reads
    the next.

    Args:
        readers: by language, a function that reads its questions.
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
        reports: what reading did, one a file, however often it was read.
    """

    def __init__(self, root: Path):
        self.root, self._reports = root, {}

    @property
    def reports(self) -> list[Report]:
        """The reports of the files read so far."""
        return list(self._reports.values())

    def read(self, path: Path, **options: object) -> list[Question]:
        """The questions of one file; ``options`` as for :func:`read_corpus`, which also says what it raises."""
        questions, report = read_corpus(self.root / path, **options)
        self._reports.setdefault(path, report)
        return questions

    def match(self, path: Path, questions: Sequence[Question], sources: Sequence[Question], minimum: float) -> None:
        """Note in a file's report how many of its questions have no source question of their id.

        Raises:
            CorpusError: fewer than the share ``minimum`` have one.
        """
        try:
            self._reports[path].unmatched = len(pair_by_id(questions, sources, minimum).unmatched)
        except CorpusError as error:
            raise CorpusError(f"{self.root / path}: {error}") from error

    def read_matched(
        self, path: Path, sources: Sequence[Question], minimum: float, **options: object
    ) -> list[Question]:
        """:meth:`read`, then :meth:`match`."""
        questions = self.read(path, **options)
        self.match(path, questions, sources, minimum)
        return questions
