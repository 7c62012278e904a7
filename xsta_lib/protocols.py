"""Protocols: which questions an experiment trains, validates and is tested on (data/README.md lists them).

A result is only comparable with results of its own protocol, so its name is printed beside every number.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from . import layouts
from .corpora import LazyLanguages, Library
from .corpus import CorpusError, Question, Report, digest_questions
from .download import data_folder
from .layouts import MLQA_LANGUAGES, TYDIQA_LANGUAGES, XQUAD_LANGUAGES
from .selection import hold_out

DEMO = Path(__file__).resolve().parent.parent / "data" / "demo"
SPLITS = ("train", "dev", "test")
MATCHED = 0.9  # share of the questions that must find the English question of their id in published translations
SOURCES = ("translate-test", "gold")


@dataclass(frozen=True)
class TestSet:
    """Questions to answer, and what is read beside them.

    Attributes:
        name: the data set.
        rule: how it is scored, see :mod:`~xsta_lib.metrics`.
        questions: by language.
        source: their English versions, found by id: one list for all languages, a list by language where they were
            machine-translated one by one (a language without one is read alone), or ``None``.
        source_name: what the source is: ``gold``, ``translate-test`` or ``none``; printed beside results.
    """

    __test__ = False  # pytest looks for tests in classes of this name

    name: str
    rule: str
    questions: dict[str, list[Question]]
    source: list[Question] | dict[str, list[Question]] | None = None
    source_name: str = "gold"

    def by_source(self) -> list[tuple[dict[str, list[Question]], list[Question] | None]]:
        """Groups of languages that share one source: ``(questions by language, their source or None)``."""
        if not isinstance(self.source, dict):
            return [(self.questions, self.source)]
        return [({language: found}, self.source.get(language)) for language, found in self.questions.items()]

    def source_of(self, language: str) -> list[Question]:
        """The English questions that stand beside a language's; none where there are none."""
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
        back_translated: by target language, English translated back from its training questions, by the same ids
            (X-MIXUP reads it now and then); empty where there is none.
        library: what was read; its ``reports`` say what reading did, file by file.
    """

    name: str
    train: list[Question]
    parallel: Mapping[str, list[Question]]
    parallel_source: list[Question]
    validation: TestSet
    tests: list[TestSet]
    library: Library = field(default_factory=lambda: Library(data_folder()))
    back_translated: Mapping[str, list[Question]] = field(default_factory=dict)

    def digest(self) -> str:
        """A key of the training questions, of those languages that are in memory (published files are checksummed)."""
        loaded = dict(self.parallel) if isinstance(self.parallel, dict) else {}
        back = {f"back {language}": part for language, part in self.back_translated.items()}
        return digest_questions({"": self.train, "source": self.parallel_source, **loaded, **back})

    @property
    def reports(self) -> list[Report]:
        """What reading did, file by file; of lazily read languages once they were read."""
        return self.library.reports


def load_folder(folder: Path, name: str | None = None, rule: str | None = None) -> ProtocolData:
    """A folder of SQuAD-format files named ``<split>.<language>.json``, splits ``train``, ``dev`` and ``test``.

    ``train.en.json`` is the source language. A question of another language whose id it shares is read as a pair with
    it, in training and in testing; one that has no such id is read alone, so files need not be parallel. Without any
    ``dev`` file, a tenth of the training questions is held out for selection (whole articles, the same ids in every
    language). Without a ``test`` file there is nothing to report; without ``train`` files the folder only evaluates.
    ``back.<language>.json`` is optional: English translated back from ``train.<language>.json``, for X-MIXUP.

    Args:
        folder: the files' place.
        name: stands beside results; the folder's name by default.
        rule: ``mlqa`` or ``squad``; by default MLQA's where it knows every language of the folder, else SQuAD's.

    Raises:
        CorpusError: no such file, a target language without ``train.en.json``, or a file that cannot be read.
    """
    folder, name = Path(folder), name or Path(folder).resolve().name
    matches = [re.fullmatch(rf"({'|'.join(SPLITS)})\.([\w-]+)\.json", path.name) for path in sorted(folder.glob("*"))]
    found = sorted(((m[1], m[2]) for m in matches if m), key=lambda pair: (pair[1] != "en", pair[1]))
    if not found:
        raise CorpusError(f"{folder}: no file <split>.<language>.json, such as train.en.json; see data/README.md")
    library = Library(folder)
    files: dict[str, dict[str, list[Question]]] = {split: {} for split in SPLITS}
    for split, language in found:
        path = Path(f"{split}.{language}.json")
        files[split][language] = library.read(path)
        if language != "en" and "en" in files[split]:
            library.match(path, files[split][language], files[split]["en"], minimum=0.0)
    back = _back_translations(library, files["train"])
    train, dev = files["train"], files["dev"]
    if train and "en" not in train:
        raise CorpusError(f"{folder}: train.en.json is missing; training needs the source language, English")
    if not dev:
        train, dev = hold_out(train)
    rule = rule or ("mlqa" if {language for _, language in found} <= set(MLQA_LANGUAGES) else "squad")
    english = train.get("en", [])
    parallel = {language: questions for language, questions in train.items() if language != "en"}
    tests = [_with_english(name, rule, files["test"])] if files["test"] else []
    return ProtocolData(name, english, parallel, english, _with_english(name, rule, dev), tests, library, back)


def _back_translations(library: Library, train: Mapping[str, list[Question]]) -> dict[str, list[Question]]:
    """``back.<language>.json`` of the languages trained on; only its texts are read, answers are not needed."""
    found = {}
    for language, questions in train.items():
        path = Path(f"back.{language}.json")
        if (library.root / path).is_file():
            found[language] = library.read(path, labelled=False)
            library.match(path, found[language], questions, minimum=0.0)
    return found


def _with_english(name: str, rule: str, questions: dict[str, list[Question]]) -> TestSet:
    english = questions.get("en")
    return TestSet(name, rule, questions, english, "gold" if english else "none")


def load_demo(folder: Path = DEMO) -> ProtocolData:
    """The embedded corpus: ``train`` trains, ``dev`` validates, ``test`` tests, in MLQA's languages."""
    return load_folder(folder, "demo")


def load_compact(root: Path | None = None) -> ProtocolData:
    """TyDiQA and MLQA-dev English, MLQA-dev pairs; tested on XQuAD (gold English) and on TyDiQA dev (no English).

    Ten per cent of MLQA dev, whole articles and the same ids in every language, are held out for selection.

    Raises:
        CorpusError: a file is missing; the message says which.
    """
    library = Library(root or data_folder())
    dev = _mlqa(library, "dev", MATCHED)
    kept, held = hold_out(dev)
    parallel = {language: questions for language, questions in kept.items() if language != "en"}
    english = library.read(layouts.TYDIQA_TRAIN)
    xquad = {language: library.read(layouts.xquad(language)) for language in XQUAD_LANGUAGES}
    tydiqa = {language: library.read(layouts.tydiqa_dev(language)) for language in TYDIQA_LANGUAGES}
    tests = [TestSet("xquad", "squad", xquad, xquad["en"]), TestSet("tydiqa", "squad", tydiqa, None, "none")]
    validation = TestSet("mlqa", "mlqa", held, held["en"])
    return ProtocolData("compact", english + kept["en"], parallel, kept["en"], validation, tests, library)


def _mlqa(library: Library, split: str, minimum: float = 0.0) -> dict[str, list[Question]]:
    """MLQA dev or test in its seven languages."""
    files = {language: library.read(layouts.mlqa(split, language)) for language in MLQA_LANGUAGES}
    for language, questions in files.items():
        library.match(layouts.mlqa(split, language), questions, files["en"], minimum)
    return files


def _paper_test(
    library: Library, task: str, rule: str, path_of: Callable[[str], Path], languages: Sequence[str], source: str
) -> TestSet:
    """A test set with the English side asked for. Of translations only the texts are read, not their answers."""
    questions = {language: library.read(path_of(language)) for language in languages}
    if source == "gold":
        for language, found in questions.items():
            library.match(path_of(language), found, questions["en"], MATCHED)
        return TestSet(task, rule, questions, questions["en"], source)
    english = {}
    for language in languages:
        path = layouts.english_of(task, language)
        if path is not None:
            english[language] = library.read(path, labelled=False, repeats="first")
            library.match(path_of(language), questions[language], english[language], MATCHED)
    return TestSet(task, rule, questions, english, source)


def load_paper(task: str, root: Path | None = None, source: str = "translate-test") -> ProtocolData:
    """The paper's data for one task, for the protocols ``paper-<task>`` and ``paper-<task>-gold``.

    MLQA and XQuAD train on SQuAD and its translations and validate on MLQA dev. TyDiQA trains on its English part and
    its translations; its English validation set is also its English test set. Translated training sets are read one
    language at a time (:class:`~xsta_lib.corpora.LazyLanguages`), and refused where fewer than 90 % of their ids are
    English ones.

    Args:
        task: what is tested: ``mlqa``, ``xquad`` or ``tydiqa``.
        root: the data folder.
        source: English side at test time: ``translate-test`` (the paper; MLQA's German has none and is read alone) or
            ``gold`` (the release; easier; not for TyDiQA, whose questions are not parallel).

    Raises:
        ValueError: unknown source, or gold English for TyDiQA. CorpusError: a file is missing or cannot be read.
    """
    if source not in SOURCES:
        raise ValueError(f"unknown source {source!r}; the sources are {', '.join(SOURCES)}")
    if task == "tydiqa" and source == "gold":
        raise ValueError("TyDiQA's questions are not parallel, so there is no gold English; use 'translate-test'")
    library = Library(root or data_folder())
    if task == "tydiqa":
        languages, rule, path_of = tuple(TYDIQA_LANGUAGES), "squad", layouts.tydiqa_dev
        translation, train = layouts.tydiqa_translation, library.read(layouts.TYDIQA_TRAIN)
        validation = TestSet("tydiqa", "squad", {"en": library.read(path_of("en"))}, None, "none")
    else:
        translation, train = layouts.squad_translation, library.read(layouts.SQUAD_TRAIN)
        languages, rule, path_of = XQUAD_LANGUAGES, "squad", layouts.xquad
        if task == "mlqa":
            languages, rule, path_of = MLQA_LANGUAGES, "mlqa", partial(layouts.mlqa, "test")
        dev = _mlqa(library, "dev")
        validation = TestSet("mlqa", "mlqa", dev, dev["en"])
    targets = [language for language in languages if language != "en"]
    readers = {
        language: partial(library.read_matched, translation(language), train, MATCHED, repeats="first")
        for language in targets
    }
    for language in targets:  # a missing file is found now, not after hours of training
        if not (library.root / translation(language)).is_file():
            library.read(translation(language))
    test = _paper_test(library, task, rule, path_of, languages, source)
    name = f"paper-{task}" + ("-gold" if source == "gold" else "")
    return ProtocolData(name, train, LazyLanguages(readers), train, validation, [test], library)


LOADERS: dict[str, Callable[..., ProtocolData]] = {"demo": load_demo, "compact": load_compact}
LOADERS |= {f"paper-{task}": partial(load_paper, task) for task in ("mlqa", "xquad", "tydiqa")}
LOADERS |= {f"paper-{task}-gold": partial(load_paper, task, source="gold") for task in ("mlqa", "xquad")}


def load_protocol(name: str, **options: object) -> ProtocolData:
    """The data of a protocol by name, or of a folder of your own files.

    Args:
        name: a key of ``LOADERS``, or a folder (see :func:`load_folder`).
        options: arguments of its loader, such as ``root``, or ``source`` for the paper's.

    Raises:
        ValueError: unknown name. CorpusError: a file cannot be read.
    """
    if name not in LOADERS and not Path(name).is_dir():
        raise ValueError(f"unknown protocol {name!r}; the protocols are {', '.join(LOADERS)}, or a folder of files")
    try:
        return LOADERS[name](**options) if name in LOADERS else load_folder(Path(name), **options)
    except CorpusError as error:
        raise CorpusError(f"protocol {name!r}: {error}") from error
