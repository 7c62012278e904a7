"""Protocols: which questions an experiment trains, validates and is tested on (data/README.md lists them).

A result is only comparable with results of its own protocol, so its name is printed beside every number.
"""

import hashlib
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from .download import data_folder, select
from .files import home
from .folders import BESIDE, OPTIONS, TRANSLATE_TEST, file_name, folder_files, missing_source
from .library import LazyLanguages, Library
from .squad import CorpusError, Question, Report, digest_questions

SOURCES = ("translate-test", "gold")
RULES = ("mlqa", "squad")  # of scoring; MLQA's knows the languages of its own files
MATCHED = 0.9  # share of the questions that must find the English question of their id in published translations
HELD_OUT = 0.1  # share of the questions
SQUAD_TRAIN = Path("squad/train-v1.1.json")
TYDIQA_TRAIN = Path("tydiqa-goldp-v1.1/train/tydiqa-goldp-train-english.json")
PARALLEL = ("parallel", "parallel-swapped")
SCORED = {"spans": False}  # of read_squad: a question whose gold texts are no spans is asked and scored all the same
PAPER_TESTS = {  # by task: the test set's folder, its machine translations to English, the rule it is scored by
    "mlqa": ("MLQA_V1/test", "xtreme/MLQA/translate-test", "mlqa"),
    "xquad": ("xquad", "xtreme/XQuAD/translate-test", "squad"),
    "tydiqa": ("tydiqa-goldp-v1.1/dev", "xtreme/TyDiQA-GoldP/translate-test", "squad"),
}


def published(folder: str) -> dict[str, Path]:
    """Paths under the data folder by language, English first, of a folder of the published layout (data/README.md)."""
    paths = {entry.files[place]: Path(place) for place, entry in select(folder).items()}
    return dict(sorted(paths.items(), key=lambda item: item[0] != "en"))


def held_out_ids(questions: Sequence[Question]) -> set[str]:
    """Ids of whole articles, drawn by a hash of their titles until ``HELD_OUT`` of the questions is reached.

    Where titles do not tell articles apart (one holds half of the questions or more), contexts are drawn, and where
    these do not either, single questions. A single question is kept for training.
    """
    for key in (lambda question: question.title, lambda question: question.context, lambda question: question.id):
        articles: dict[str, list[str]] = {}
        for question in questions:
            articles.setdefault(key(question), []).append(question.id)
        if max(map(len, articles.values()), default=0) < len(questions) / 2:
            break
    chosen: set[str] = set()
    for title in sorted(articles, key=lambda title: hashlib.sha256(title.encode()).hexdigest()):
        if len(chosen) >= HELD_OUT * len(questions) or len(chosen) + len(articles[title]) == len(questions):
            break
        chosen.update(articles[title])
    return chosen


def hold_out(
    files: Mapping[str, list[Question]], source_language: str = "en"
) -> tuple[dict[str, list[Question]], dict[str, list[Question]]]:
    """Training and validation questions by language; the source decides for the ids that it shares with a language."""
    source = files.get(source_language, [])
    ids, shared = {question.id for question in source}, held_out_ids(source)
    kept, held = {}, {}
    for language, questions in files.items():
        own = shared | held_out_ids([q for q in questions if q.id not in ids])
        kept[language] = [q for q in questions if q.id not in own]
        held[language] = [q for q in questions if q.id in own]
    return kept, {language: questions for language, questions in held.items() if questions}


@dataclass(frozen=True)
class TestSet:
    """Questions to answer, and what is read beside them.

    Attributes:
        name: the data set.
        rule: how it is scored, see :mod:`~xsta_lib.prediction.metrics`.
        questions: by language.
        source: their versions in the source language, found by id: one list for all languages, a list by language where
            they were machine-translated one by one (a language without one is read alone), or ``None``.
        source_name: what the source is: ``gold``, ``translate-test``, ``other`` (a control) or ``none``; printed beside
            results.
        source_language: of the source.
    """

    __test__ = False  # pytest looks for tests in classes of this name

    name: str
    rule: str
    questions: dict[str, list[Question]]
    source: list[Question] | dict[str, list[Question]] | None = None
    source_name: str = "gold"
    source_language: str = "en"

    def __post_init__(self):
        if self.rule not in RULES:
            raise ValueError(f"unknown rule {self.rule!r}; the rules are {', '.join(RULES)}")
        known = published("MLQA_V1/test") if self.rule == "mlqa" else self.questions
        if unknown := [language for language in self.questions if language not in known]:
            raise ValueError(f"MLQA's rule knows {', '.join(known)}, not {unknown[0]!r}; use the rule 'squad'")

    def by_source(self) -> list[tuple[dict[str, list[Question]], list[Question] | None]]:
        """Groups of languages that share one source: ``(questions by language, their source or None)``."""
        if not isinstance(self.source, dict):
            return [(self.questions, self.source)]
        return [({language: found}, self.source.get(language)) for language, found in self.questions.items()]

    def source_of(self, language: str) -> list[Question]:
        """The source questions that stand beside a language's; none where there are none."""
        return (self.source.get(language) if isinstance(self.source, dict) else self.source) or []

    def digest(self) -> str:
        """A key of all that is read and scored, which says whether kept answers belong to these questions."""
        sources = self.source if isinstance(self.source, dict) else {"": self.source or []}
        return digest_questions(self.questions | {f"source {name}": part for name, part in sources.items()})

    def share(self, rank: int, world: int) -> "TestSet":
        """The questions that one of ``world`` processes answers; those of one id stay together, with their source."""
        if world == 1:
            return self
        ids = sorted({question.id for questions in self.questions.values() for question in questions})
        mine = set(ids[rank::world])

        def taken(value: object) -> object:
            if isinstance(value, dict):
                return {name: taken(part) for name, part in value.items()}
            return None if value is None else [question for question in value if question.id in mine]

        return replace(self, questions=taken(self.questions), source=taken(self.source))


@dataclass
class ProtocolData:
    """What a protocol reads.

    Attributes:
        train: source-language questions.
        parallel: by target language, training questions; those whose id is in ``parallel_source`` train as pairs, the
            others alone. The paper's are read whenever they are asked for: take one language at a time.
        parallel_source: the source side of the parallel data.
        validation: for selection.
        tests: what results are about.
        back_translated: by target language, the source translated back from its training questions, by the same ids
            (X-MIXUP reads it now and then); empty where there is none.
        reports: what reading did, file by file; of lazily read languages once they were read.
        source_language: of ``train`` and ``parallel_source``.
    """

    name: str
    train: list[Question]
    parallel: Mapping[str, list[Question]]
    parallel_source: list[Question]
    validation: TestSet
    tests: list[TestSet]
    reports: Collection[Report] = ()
    back_translated: Mapping[str, list[Question]] = field(default_factory=dict)
    source_language: str = "en"

    def digest(self) -> str:
        """A key of the training questions, of those languages that are in memory (published files are checksummed)."""
        loaded = dict(self.parallel) if isinstance(self.parallel, dict) else {}
        back = {f"back {language}": part for language, part in self.back_translated.items()}
        return digest_questions({"": self.train, "source": self.parallel_source, **loaded, **back})

    def selection(self) -> str:
        """A key of what chooses a model and how all is scored: the validation questions, and the rules."""
        rules = sorted({test.rule for test in (self.validation, *self.tests)})
        return hashlib.sha256(" ".join([self.validation.digest(), *rules]).encode()).hexdigest()[:16]


def load_folder(
    folder: Path, name: str | None = None, rule: str | None = None, source_language: str = "en"
) -> ProtocolData:
    """A folder of SQuAD-format files named ``<split>.<language>.json``, splits ``train``, ``dev`` and ``test``.

    ``train.en.json`` is the source, unless another language is chosen. A question of another language whose id it
    shares is read as a pair with it, in training and in testing; one that has no such id is read alone, so files need
    not be parallel. Without any ``dev`` file, a tenth of the training questions is held out for selection (whole
    articles, the same ids in every language). Without a ``test`` file there is nothing to report; without ``train``
    files the folder only evaluates.
    ``back.<language>.json`` is optional: the source translated back from ``train.<language>.json``, for X-MIXUP.
    ``translate-test.es-en.json`` is ``test.es.json`` machine-translated: where there is such a file, they are what is
    read beside test questions, and ``test.en.json`` is not; a test language without one is read alone.
    Of an id that a translation repeats with another text the first is kept; the source must not repeat one. All that is
    left out, and files that look like data but are not read, stand in the reports.

    Args:
        folder: the files' place.
        name: stands beside results; the folder's name by default.
        rule: ``mlqa`` or ``squad``; by default MLQA's where it knows every language of the folder, else SQuAD's.
        source_language: the language that teaches the others.

    Raises:
        CorpusError: no such file, training files without one of the source language, or a file that cannot be read.
    """
    folder, name = Path(folder), name or Path(folder).resolve().name
    found, notes = folder_files(folder, source_language)
    if fault := missing_source(folder, found, source_language):
        raise CorpusError(fault)
    library = Library(folder)
    if notes:
        library.add(folder, Report(folder.resolve().name, notes=notes))
    files: dict[str, dict[str, list[Question]]] = {split: {} for split in OPTIONS}
    for (split, language), options in found.items():
        path = Path(file_name(split, language, source_language))
        beside = files[BESIDE.get(split, split)].get(language if split in BESIDE else source_language)
        files[split][language] = library.read(path, beside, **options)
    train, dev = files["train"], files["dev"]
    if not dev:
        train, dev = hold_out(train, source_language)
        for language in (language for language in train if not train[language]):
            file, why = file_name("train", language), "all its questions select, being of articles held out"
            library.add(folder / file, Report(file, notes=[f"{why}: nothing of it trains; add dev files"]))
    languages = {language for _, language in found}
    rule = rule or ("mlqa" if languages <= set(published("MLQA_V1/test")) else "squad")
    source = train.get(source_language, [])
    parallel = {language: questions for language, questions in train.items() if language != source_language}
    tests = [_with_source(name, rule, files["test"], source_language)] if files["test"] else []
    if translated := files[TRANSLATE_TEST]:
        tests = [replace(tests[0], source=translated, source_name=TRANSLATE_TEST)]
    held = _with_source(name, rule, dev, source_language)
    back = files["back"]
    return ProtocolData(name, source, parallel, source, held, tests, library.reports, back, source_language)


def _with_source(name: str, rule: str, questions: dict[str, list[Question]], source_language: str) -> TestSet:
    source = questions.get(source_language)
    return TestSet(name, rule, questions, source, "gold" if source else "none", source_language)


def load_demo(source_language: str = "en") -> ProtocolData:
    """The embedded corpus: ``train``, ``dev`` and ``test`` in MLQA's languages. CorpusError where it is not here."""
    folder = home() / "data" / "demo"
    if not folder.is_dir():
        remedy = "the demo corpus lies in the repository: run in a clone of it, or set XSTA_HOME"
        raise CorpusError(f"{folder}: no such folder; {remedy}")
    return load_folder(folder, "demo", source_language=source_language)


def load_parallel(swapped: bool = False) -> ProtocolData:
    """Pairs that are translations: one half of XQuAD's articles trains, with TyDiQA's English, the other is the test.

    Articles are counted in the English file's order, from 0; those with even numbers train (odd ones if ``swapped``).
    MLQA dev, each language read alone, selects. XQuAD's half is tested with English beside it (the same question's, and
    in ``xquad_other``, a control, that of another passage's question) and alone, TyDiQA dev alone.
    """
    library = Library(data_folder())
    xquad = _read_parallel(library, "xquad")
    titles = dict.fromkeys(question.title for question in xquad["en"])
    chosen = set(list(titles)[int(swapped) :: 2])
    ids = {question.id for question in xquad["en"] if question.title in chosen}
    train = {language: [q for q in questions if q.id in ids] for language, questions in xquad.items()}
    held = {language: [q for q in questions if q.id not in ids] for language, questions in xquad.items()}
    english = train.pop("en")
    tydiqa = {language: library.read(path, **SCORED) for language, path in published("tydiqa-goldp-v1.1/dev").items()}
    targets = {language: questions for language, questions in held.items() if language != "en"}
    tests = [
        TestSet("xquad", "squad", held, held["en"]),
        TestSet("xquad_other", "squad", targets, other_questions(held["en"]), "other"),
        TestSet("tydiqa", "squad", tydiqa, None, "none"),
    ]
    validation = TestSet("mlqa", "mlqa", _read_parallel(library, "MLQA_V1/dev", MATCHED, **SCORED), None, "none")
    name = "parallel" + ("-swapped" if swapped else "")
    all_english = library.read(TYDIQA_TRAIN) + english
    return ProtocolData(name, all_english, train, english, validation, tests, library.reports)


def other_questions(questions: Sequence[Question]) -> list[Question]:
    """Under each question's id another passage's question: the one half of the list further on, or the next that is."""
    count, others = len(questions), []
    for place, question in enumerate(questions):
        further = (questions[(place + count // 2 + step) % count] for step in range(count))
        others.append(next(replace(q, id=question.id) for q in further if q.context != question.context))
    return others


def _read_parallel(library: Library, folder: str, minimum: float = 0.0, **options: object) -> dict[str, list[Question]]:
    """A parallel set's files, of whose ids at least the share ``minimum`` must be English ones in every language.

    ``options`` go to :func:`~.squad.read_squad`; sets that are only scored are read with ``SCORED``.
    """
    files: dict[str, list[Question]] = {}
    for language, path in published(folder).items():
        files[language] = library.read(path, files.get("en"), minimum, **options)
    return files


def _paper_test(library: Library, task: str, source: str) -> TestSet:
    """A test set with the English side asked for. Of translations only the texts are read, not their answers."""
    folder, translations, rule = PAPER_TESTS[task]
    if source == "gold":
        questions = _read_parallel(library, folder, MATCHED, **SCORED)
        return TestSet(task, rule, questions, questions["en"], source)
    english = {
        language: library.read(path, labelled=False, repeats="first")
        for language, path in published(translations).items()
    }
    paths = published(folder)
    questions = {
        language: library.read(path, english.get(language), MATCHED, **SCORED) for language, path in paths.items()
    }
    return TestSet(task, rule, questions, english, source)


def load_paper(task: str, source: str = "translate-test") -> ProtocolData:
    """The paper's data for one task, for the protocols ``paper-<task>`` and ``paper-<task>-gold``.

    MLQA and XQuAD train on SQuAD and its translations and validate on MLQA dev. TyDiQA trains on its English part and
    its translations; its English validation set is also its English test set. Translated training sets are read one
    language at a time (:class:`~.library.LazyLanguages`), and refused where under 90 % of their ids are English ones.

    Args:
        task: what is tested: ``mlqa``, ``xquad`` or ``tydiqa``.
        source: English side at test time: ``translate-test`` (the paper; MLQA's German has none and is read alone) or
            ``gold`` (the release; easier; not for TyDiQA, whose questions are not parallel).

    Raises:
        ValueError: unknown source, or gold English for TyDiQA. CorpusError: a file is missing or cannot be read.
    """
    if source not in SOURCES:
        raise ValueError(f"unknown source {source!r}; the sources are {', '.join(SOURCES)}")
    if task == "tydiqa" and source == "gold":
        raise ValueError("TyDiQA's questions are not parallel, so there is no gold English; use 'translate-test'")
    library = Library(data_folder())
    if task == "tydiqa":
        train, translations = library.read(TYDIQA_TRAIN), "xtreme/TyDiQA-GoldP/translate-train"
        english = library.read(published("tydiqa-goldp-v1.1/dev")["en"], **SCORED)
        validation = TestSet("tydiqa", "squad", {"en": english}, None, "none")
    else:
        train, translations = library.read(SQUAD_TRAIN), "xtreme/SQuAD/translate-train"
        dev = _read_parallel(library, "MLQA_V1/dev", **SCORED)
        validation = TestSet("mlqa", "mlqa", dev, dev["en"])
    test = _paper_test(library, task, source)
    readers = {}
    for language, path in published(translations).items():
        if language in test.questions:
            if not (library.root / path).is_file():  # is found now, not after hours of training
                library.read(path)
            readers[language] = partial(library.read, path, train, MATCHED, repeats="first")
    name = f"paper-{task}" + ("-gold" if source == "gold" else "")
    return ProtocolData(name, train, LazyLanguages(readers), train, validation, [test], library.reports)


LOADERS: dict[str, Callable[..., ProtocolData]] = {"demo": load_demo}
LOADERS |= {name: partial(load_parallel, swapped=name != "parallel") for name in PARALLEL}
LOADERS |= {f"paper-{task}": partial(load_paper, task) for task in ("mlqa", "xquad", "tydiqa")}
LOADERS |= {f"paper-{task}-gold": partial(load_paper, task, source="gold") for task in ("mlqa", "xquad")}


def load_protocol(name: str, strict: bool = False, source_language: str = "en", **options: object) -> ProtocolData:
    """The data of a protocol by name, or of a folder of your own files.

    Args:
        name: a key of ``LOADERS``, or a folder (see :func:`load_folder`).
        strict: refuse data of which a report says that something was left out, repaired or not read (of languages
            that are read later, nothing is known yet).
        source_language: the language that teaches; the published protocols have English.
        options: arguments of its loader, such as ``source`` for the paper's.

    Raises:
        ValueError: unknown name, or another source than English for a published protocol. CorpusError: a file cannot
            be read, or ``strict`` refuses it.
    """
    if name not in LOADERS and not Path(name).is_dir():
        raise ValueError(f"unknown protocol {name!r}; the protocols are {', '.join(LOADERS)}, or a folder of files")
    if source_language != "en":
        if name in LOADERS and name != "demo":
            raise ValueError(f"protocol {name!r} has English as its source; --source is for demo and your own folders")
        options["source_language"] = source_language
    try:
        data = LOADERS[name](**options) if name in LOADERS else load_folder(Path(name), **options)
        faults = [str(report) for report in data.reports if report.faults()]
        if strict and faults:
            raise CorpusError("\n  ".join([f"strict: {len(faults)} things to mend", *faults]))
        return data
    except CorpusError as error:
        raise CorpusError(f"protocol {name!r}: {error}") from error
