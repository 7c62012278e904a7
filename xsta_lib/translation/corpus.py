"""Files of translated questions in a folder: translate-train with its spans, back-translations, translate-test."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from tqdm.auto import tqdm

from ..data.files import read_json
from ..data.folders import OPTIONS, READ, TRANSLATE_TEST, file_name
from ..data.library import Library
from ..data.squad import Answer, CorpusError, Question, name_first, write_squad
from .engines import Engine, open_engine
from .spans import Projection, Projector, Row
from .translator import Translator

TOGETHER = 64  # rows that are projected at a time
SHOWN = 3  # rows in a report
UNTRANSLATED = "the engine gave nothing for a sentence"
UNPLACED = "no place found for the answer"
LICENCE_KEYS = ("licence", "license", "attribution")  # of the file that was translated


@dataclass
class Made:
    """A file that was written; ``str`` says what it holds and what it lacks.

    Attributes:
        path: the file.
        kept: how many questions it holds.
        dropped: by reason, the ids that it lacks.
        shown: some of its rows, and of those that were dropped, as text.
    """

    path: Path
    kept: int = 0
    dropped: dict[str, list[str]] = field(default_factory=dict)
    shown: list[str] = field(default_factory=list)

    def drop(self, key: str, reason: str) -> None:
        """One question less."""
        self.dropped.setdefault(reason, []).append(key)

    def __str__(self) -> str:
        lost = sum(map(len, self.dropped.values()))
        share = f" ({100 * self.kept / (self.kept + lost):.1f} %)" if lost else ""
        lines = [f"{self.path}: {self.kept:,} of {self.kept + lost:,} questions{share}"]
        lines += [f"  {len(ids):,} dropped, {why}: {name_first(ids, len(ids))}" for why, ids in self.dropped.items()]
        return "\n".join(lines + [f"  {line}" for line in self.shown])


def translate_training(
    folder: Path,
    targets: Sequence[str],
    engine: Engine | str,
    projector: Projector | None = None,
    source: str = "en",
    threshold: float | None = None,
    back: bool = False,
    overwrite: bool = False,
    progress: bool = True,
) -> Iterator[Made]:
    """Write ``train.<target>.json`` beside ``train.<source>.json``: the same ids, answers where their spans are found.

    Every answer has its confidence (0 to 1) and method in the file, and the file its engine and licences. Translations
    are kept sentence by sentence, so that a stopped run goes on.

    Args:
        folder: holds the source file.
        targets: ISO 639 codes.
        engine: one, or its name (see :func:`~.engines.open_engine`), which is opened when all else has been checked.
        projector: finds the spans; by default the one in the box.
        source: language of the training file.
        threshold: the smallest confidence that is kept; by default the projector's.
        back: write ``back.<target>.json`` too, the training file translated back; where ``train.<target>.json`` is
            there already and ``overwrite`` does not hold, it is that one.
        overwrite: write over files that are there.
        progress: show bars.

    Returns:
        What was written, file after file, each when it is done.

    Raises:
        ValueError: a file is there already, a target is the source, or there is no such engine. CorpusError: the source
        file cannot be read. LanguageError: the engine is not for all of the languages. All these come at once; later
        EngineError: the engine fails; what it translated is kept.
    """
    _check_languages("--to", targets, source)
    paths = {target: folder / file_name("train", target) for target in targets}
    made = {target: back and not overwrite and path.is_file() for target, path in paths.items()}
    _refuse_present([path for target, path in paths.items() if not made[target]], overwrite)
    _refuse_present([folder / file_name("back", target) for target in targets if back], overwrite)
    library = Library(folder)
    questions = [] if all(made.values()) else library.read(Path(file_name("train", source)), **OPTIONS["train"])
    engine = open_engine(engine)
    pairs = [(source, target) for target in targets if not made[target]]
    pairs += [(target, source) for target in targets if back]
    translators = {pair: Translator(engine, *pair, progress=progress) for pair in pairs}
    projector = projector or Projector()
    limit = projector.threshold if threshold is None else threshold

    def run() -> Iterator[Made]:
        """All files, one after the other."""
        for target, path in paths.items():
            if not made[target]:
                yield _write_training(questions, translators[source, target], projector, limit, path, folder)
            if back:
                there = library.read(Path(path.name), **OPTIONS["train"], repeats="first")
                yield _write_texts(there, translators[target, source], folder / file_name("back", target), path)

    return run()


def translate_test(
    folder: Path,
    languages: Sequence[str],
    engine: Engine | str,
    target: str = "en",
    overwrite: bool = False,
    progress: bool = True,
) -> Iterator[Made]:
    """Write ``translate-test.<language>-<target>.json``: ``test.<language>.json`` in the source language of training.

    It holds texts and no answers; a folder that has such files reads them beside its test questions.

    Args:
        folder: holds the test files.
        languages: those of the test files.
        engine, overwrite, progress: as for :func:`translate_training`, which says what is raised and returned.
        target: the source language of training.
    """
    _check_languages("--from", languages, target)
    paths = {language: folder / file_name(TRANSLATE_TEST, language, target) for language in languages}
    _refuse_present(list(paths.values()), overwrite)
    library, names = Library(folder), {language: file_name("test", language) for language in languages}
    options = OPTIONS[TRANSLATE_TEST] | {"repeats": "first"}
    files = {language: library.read(Path(name), **options) for language, name in names.items()}
    engine = open_engine(engine)
    translators = {language: Translator(engine, language, target, progress=progress) for language in languages}
    return (
        _write_texts(files[language], translators[language], path, folder / name)
        for (language, name), path in zip(names.items(), paths.values(), strict=True)
    )


def _check_languages(option: str, languages: Sequence[str], other: str) -> None:
    """Refuse none, the other side's among them, and what cannot stand in a file's name."""
    if other in languages or not languages:
        raise ValueError(f"{option} is {' '.join(languages) or 'empty'}: give other languages than {other!r}")
    if wrong := [language for language in (*languages, other) if not READ.fullmatch(file_name("train", language))]:
        raise ValueError(f"{wrong[0]!r} is no language code; codes look like es, swh or zh-Hant")


def _refuse_present(paths: Sequence[Path], overwrite: bool) -> None:
    if present := [path for path in paths if path.exists() and not overwrite]:
        raise ValueError(f"{', '.join(map(str, present))}: already there; --overwrite replaces what is there")


def _write_training(
    questions: Sequence[Question],
    translator: Translator,
    projector: Projector,
    threshold: float,
    path: Path,
    folder: Path,
) -> Made:
    """Translate the training questions, project their answers, write the file."""
    made, origin = Made(path), folder / file_name("train", translator.source)
    rows = list(_rows(questions, translator, made))
    found: list[Projection | None] = []
    with tqdm(total=len(rows), desc="answer spans", unit="row", disable=not translator.progress) as bar:
        for low in range(0, len(rows), TOGETHER):
            part = [row for _, row in rows[low : low + TOGETHER]]
            found += projector.project(part, translator.source, translator.target)
            bar.update(len(part))
    kept: dict[str, Question] = {}
    marks, failed = {}, {}
    for (question, row), projection in zip(rows, found, strict=True):
        gold = row.context[row.start : row.end]
        if projection is None or projection.score < threshold:
            why = UNPLACED if projection is None else f"its place has a confidence under {threshold:g}"
            failed.setdefault(question.id, (why, f"dropped {question.id}: {gold!r} -> {_say(row, projection)}"))
            continue
        answer = Answer(row.target_context[projection.start : projection.end], projection.start)
        marks[question.id, answer] = {"confidence": round(projection.score, 4), "method": projection.method}
        known = kept.get(question.id)
        answers = tuple(dict.fromkeys([*(known.answers if known else ()), answer]))
        sides = {"question": row.target_question, "context": row.target_context}
        kept[question.id] = replace(question, **sides, answers=answers, texts=())  # those are the source's words
        if len(made.shown) < SHOWN:
            made.shown.append(f"kept {question.id}: {gold!r} -> {_say(row, projection)}")
    for key, (why, line) in failed.items():
        if key in kept:
            continue  # another of its answers was found
        made.drop(key, why)
        if len(made.shown) < 2 * SHOWN:
            made.shown.append(line)
    return _write(made, list(kept.values()), translator, origin, {"threshold": threshold}, marks)


def _say(row: Row, projection: Projection | None) -> str:
    if projection is None:
        return f"? (translated alone: {row.answer!r})"
    text = row.target_context[projection.start : projection.end]
    return f"{text!r} ({projection.score:.2f}, {projection.method})"


def _rows(questions: Sequence[Question], translator: Translator, made: Made) -> Iterator[tuple[Question, Row]]:
    """Every answer of every question with its translations; a question that lacks a sentence is dropped."""
    texts = [text for q in questions for text in (q.context, q.question, *(answer.text for answer in q.answers))]
    translator.prepare(dict.fromkeys(texts))
    for question in questions:
        context, asked = translator.passage(question.context), translator.passage(question.question)
        if context.missing or asked.missing or not (context.text and asked.text):
            made.drop(question.id, UNTRANSLATED)
            continue
        for answer in question.answers:
            near, own = context.near(answer.start, answer.end), translator.passage(answer.text).text or None
            sides = {"target_question": asked.text, "target_context": context.text, "answer": own, "near": near}
            yield question, Row(question.question, question.context, answer.start, answer.end, **sides)


def _write_texts(questions: Sequence[Question], translator: Translator, path: Path, origin: Path) -> Made:
    """Translate questions and contexts, and write them without answers."""
    made, kept = Made(path), []
    translator.prepare(dict.fromkeys(text for q in questions for text in (q.context, q.question)))
    for question in questions:
        context, asked = translator.passage(question.context), translator.passage(question.question)
        if context.missing or asked.missing or not (context.text and asked.text):
            made.drop(question.id, UNTRANSLATED)
            continue
        kept.append(replace(question, question=asked.text, context=context.text, answers=(), texts=()))
    made.shown = [f"{question.id}: {question.question!r}" for question in kept[:SHOWN]]
    return _write(made, kept, translator, origin, {})


def _write(
    made: Made, kept: Sequence[Question], translator: Translator, origin: Path, more: dict, marks: dict | None = None
) -> Made:
    """Write the file, with where it comes from; an empty one is a CorpusError."""
    if not kept:
        raise CorpusError(f"{made.path}: not written, as no question is left\n{made}")
    made.kept, engine = len(kept), translator.engine
    document = read_json(origin)
    licences = {key: document[key] for key in LICENCE_KEYS if document.get(key)}
    about = {"engine": engine.name, "source": translator.source, "target": translator.target, "file": origin.name}
    about |= {**more, "questions": made.kept, "dropped": {why: len(ids) for why, ids in made.dropped.items()}}
    about["engine_licence"] = engine.licence
    if earlier := document.get("translation"):  # of what was translated before
        about["file_translation"] = earlier
    write_squad(made.path, kept, {"translation": about, **licences}, marks)
    return made
