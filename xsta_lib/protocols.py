"""Protocols: which questions an experiment trains, validates and is tested on (data/README.md lists them).

A result is only comparable with results of its own protocol, so its name is printed beside every number.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from .corpus import CorpusError, Question, Report, pair_by_id, read_squad
from .download import data_folder

DEMO = Path(__file__).resolve().parent.parent / "data" / "demo"
MLQA_LANGUAGES = ("en", "ar", "de", "es", "hi", "vi", "zh")
XQUAD_LANGUAGES = ("en", "ar", "de", "el", "es", "hi", "ru", "th", "tr", "vi", "zh")
TYDIQA_LANGUAGES = {
    "en": "english",
    "ar": "arabic",
    "bn": "bengali",
    "fi": "finnish",
    "id": "indonesian",
    "ko": "korean",
    "ru": "russian",
    "sw": "swahili",
    "te": "telugu",
}
HELD_OUT = 0.1  # share of MLQA dev that `compact` keeps for selection


@dataclass(frozen=True)
class TestSet:
    """Questions to answer: by language, the source's version of them if there is one, and the scoring rule."""

    __test__ = False  # pytest looks for tests in classes of this name

    name: str
    rule: str
    questions: dict[str, list[Question]]
    source: list[Question] | None = None


@dataclass
class ProtocolData:
    """What a protocol reads.

    Attributes:
        train: source-language questions.
        parallel: by target language, training questions whose ids have a source version in ``parallel_source``.
        parallel_source: the source side of the parallel data.
        validation: for selection.
        tests: what results are about.
        reports: what reading did, file by file.
    """

    name: str
    train: list[Question]
    parallel: dict[str, list[Question]]
    parallel_source: list[Question]
    validation: TestSet
    tests: list[TestSet]
    reports: list[Report] = field(default_factory=list)


def _read(path: Path, reports: list[Report]) -> list[Question]:
    questions, report = read_squad(path)
    reports.append(report)
    return questions


def held_out_ids(questions: Sequence[Question], share: float = HELD_OUT) -> set[str]:
    """Ids of whole articles, drawn by a hash of their titles until ``share`` of the questions is reached."""
    articles: dict[str, list[str]] = {}
    for question in questions:
        articles.setdefault(question.title, []).append(question.id)
    chosen: set[str] = set()
    for title in sorted(articles, key=lambda title: hashlib.sha256(title.encode()).hexdigest()):
        if len(chosen) >= share * len(questions):
            break
        chosen.update(articles[title])
    return chosen


def load_demo(folder: Path = DEMO) -> ProtocolData:
    """The embedded corpus: ``train`` trains, ``dev`` validates, ``test`` tests, in MLQA's languages."""
    reports: list[Report] = []
    splits = {
        split: {language: _read(folder / f"{split}.{language}.json", reports) for language in MLQA_LANGUAGES}
        for split in ("train", "dev", "test")
    }
    english = splits["train"]["en"]
    parallel = {language: questions for language, questions in splits["train"].items() if language != "en"}
    validation = TestSet("demo", "mlqa", splits["dev"], splits["dev"]["en"])
    test = TestSet("demo", "mlqa", splits["test"], splits["test"]["en"])
    return ProtocolData("demo", english, parallel, english, validation, [test], reports)


def load_compact(root: Path | None = None) -> ProtocolData:
    """TyDiQA and MLQA-dev English, MLQA-dev pairs; tested on XQuAD (gold English) and on TyDiQA dev (no English).

    Ten per cent of MLQA dev, whole articles and the same ids in every language, are held out for selection.

    Raises:
        CorpusError: a file is missing; the message says which.
    """
    root = root or data_folder()
    reports: list[Report] = []
    mlqa = {
        language: _read(root / "MLQA_V1" / "dev" / f"dev-context-{language}-question-{language}.json", reports)
        for language in MLQA_LANGUAGES
    }
    tydiqa = root / "tydiqa-goldp-v1.1"
    english = _read(tydiqa / "train" / "tydiqa-goldp-train-english.json", reports)
    held = held_out_ids(mlqa["en"])
    kept = {language: [q for q in questions if q.id not in held] for language, questions in mlqa.items()}
    validation = {language: [q for q in questions if q.id in held] for language, questions in mlqa.items()}
    parallel = {language: questions for language, questions in kept.items() if language != "en"}
    for questions in parallel.values():
        pair_by_id(questions, kept["en"], minimum=0.9)
    xquad = {language: _read(root / "xquad" / f"xquad.{language}.json", reports) for language in XQUAD_LANGUAGES}
    dev = {
        language: _read(tydiqa / "dev" / f"tydiqa-goldp-dev-{name}.json", reports)
        for language, name in TYDIQA_LANGUAGES.items()
    }
    return ProtocolData(
        "compact",
        english + kept["en"],
        parallel,
        kept["en"],
        TestSet("mlqa", "mlqa", validation, validation["en"]),
        [TestSet("xquad", "squad", xquad, xquad["en"]), TestSet("tydiqa", "squad", dev, None)],
        reports,
    )


LOADERS = {"demo": load_demo, "compact": load_compact}


def load_protocol(name: str) -> ProtocolData:
    """The data of a protocol by name.

    Raises:
        ValueError: unknown name. CorpusError: a file cannot be read.
    """
    if name not in LOADERS:
        raise ValueError(f"unknown protocol {name!r}; the protocols are {', '.join(LOADERS)}")
    try:
        return LOADERS[name]()
    except CorpusError as error:
        raise CorpusError(f"protocol {name!r}: {error}") from error
