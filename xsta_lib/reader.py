"""The front door: a trained reader, its answers, and what led to them."""

import re
import warnings
from collections.abc import Mapping, Sequence, Set
from dataclasses import replace
from functools import cached_property
from numbers import Integral
from pathlib import Path
from typing import NamedTuple

from .baselines import aacl, calibrenet, lakm, mixup  # noqa: F401  (their models are known once imported)
from .data.files import BOX, check_text, is_blank, is_boxed
from .data.folders import language_name
from .data.squad import Question
from .data.windows import WindowSpec
from .encoders.backbones import load_reader
from .encoders.checks import max_window
from .encoders.e5_file import BackboneError
from .encoders.packed import PACKED, load_packed
from .model.modeling import XStaForQuestionAnswering
from .prediction.answers import LeftOut, ReaderAnswer
from .prediction.plain import PlainReader
from .prediction.predictor import READINGS, Prediction, Predictions, Predictor, Span
from .training.machine import has_bf16
from .training.ranks import device as default_device

NO_ANSWER = "the reader finds it likelier that the context does not have the answer"


class Tongue(NamedTuple):
    """A question's language.

    Attributes:
        code: as the reader knows it.
        detected: whether it was found out, not given.
        tag: as a translation engine gets it, such as ``zh-Hant`` where the reader reads ``zh``.
    """

    code: str
    detected: bool
    tag: str


class Reader:
    """Answers questions in any language it was trained on, with or without their source-language version beside.

    Args:
        model: a folder written by training or by ``pack``, or any extractive question-answering checkpoint, a folder or
            a hub id: that one is read with its own span head, in float32. By default the reader in the box.
        device: where to run; by default the GPU where there is one. X-STA runs in bfloat16 where the device has it.
        no_answer: whether the reader may say that a context has no answer (SQuAD 2). A checkpoint does not tell what it
            was trained on, so by default any that is not X-STA may, where it prefers [CLS] to every span; one that was
            trained on SQuAD 1 hardly ever does. ``False`` always takes the best span.

    Raises:
        BackboneError: it cannot be loaded, or lacks a weight; the message names folder, file or weight, and the remedy.
    """

    def __init__(self, model: str | Path | None = None, device: str | None = None, no_answer: bool | None = None):
        self.name = BOX.name if model is None else str(model)
        self._engines: dict = {}  # of translation, by the names that were given
        loaded, tokenizer = _load(model)
        loaded.to(device or default_device())
        ours = isinstance(loaded, XStaForQuestionAnswering)
        self.no_answer = not ours if no_answer is None else no_answer
        spec = _spec(max_window(loaded.encoder if ours else loaded, tokenizer))
        bf16 = ours and has_bf16(loaded.device)
        self.predictor = Predictor(loaded if ours else PlainReader(loaded), tokenizer, spec=spec, autocast=bf16)
        config = self.predictor.model.config
        self.reads_pairs, self.source_language = config.reads_pairs, config.source_language
        self._languages = config.languages

    def answer(
        self,
        question: str | Sequence[str],
        context: str | Sequence[str],
        language: str | Sequence[str | None] | None = None,
        source: tuple[str, str] | Sequence[tuple[str, str] | None] | None = None,
        n_best: int = 3,
        translate: "str | Engine | None" = None,  # noqa: F821  (its module is imported by those who use one)
        project: bool = False,
    ) -> ReaderAnswer | list[ReaderAnswer]:
        """The answer of each question, a span of its context, or an empty one with the reason why there is none.

        Args:
            question, context: one of each, or as many of one as of the other; then the answers are a list, in order.
            language: of question and context, such as ``"de"``; one for all or one each. ``None`` finds it out. Case
                counts for nothing, and neither does a region that the reader was not trained on: ``"de-AT"`` is ``de``.
                A script is for ``translate``: ``"zh-Hant"`` is read as ``zh``, and translated as ``zh-Hant``.
            source: the same question and context in the reader's source language (``source_language``: English for
                the one in the box, and for all that are not X-STA), or a list of such pairs (``None`` where there is
                none); ``None`` reads the target alone.
            n_best: how many spans ``alternatives`` holds at most.
            translate: an engine, or its name (see :func:`~xsta_lib.translation.engines.open_engine`): it makes the
                source versions of questions in other languages that have none; answers show them as ``source``.
            project: mix in the source's own answer, projected into the context
                (:mod:`~xsta_lib.translation.answering`): not of the paper, and better on XQuAD. Any reader can,
                also one that reads no pairs.

        Raises:
            ValueError: lists of different lengths, what has no order or is no text, an empty language, half a surrogate
                pair in a text, an ``n_best`` that is no whole number from 1 on, or ``translate`` for a reader that
                reads no pairs. EngineError: the engine fails.

        What is cut or not used is said in one warning a call: questions over the limit (64 tokens), a source that the
        reader has no use for, ``project`` where there is no source.
        """
        if isinstance(question, str) and isinstance(context, str):
            beside = None if source is None else [source]
            return self.answer([question], [context], [language], beside, n_best, translate, project)[0]
        _check_lists(question, context, language, source)
        if not isinstance(n_best, Integral) or n_best < 1:
            raise ValueError(f"n_best is {n_best!r}; it must be a whole number, 1 or more")
        targets = _questions(list(zip(question, context, strict=True)), "question")
        sources = self._sources(source, len(targets))
        tongues = _languages(language, targets, self._languages)
        made, failed = self._translate(translate, targets, tongues, sources, project) if translate else ({}, None)
        sources += made.values()
        self._say_what_is_left_out(targets, sources, tongues, project, failed)
        self.predictor.alternatives = n_best
        found, given, answers = self._read(targets, tongues, sources, project), {one.id for one in sources}, []
        for target, tongue in zip(targets, tongues, strict=True):
            own = {name: by.get(tongue.code, {}).get(target.id) for name, by in found.items()}
            if target.id not in given or tongue.code == self.source_language:  # all readings are of the target alone
                own = dict([*own.items()][:1])
            answers.append(self._answer(target, tongue, own))
        shown = ((q.question, q.context) if (q := made.get(target.id)) else None for target in targets)
        return [replace(answer, source=source) for answer, source in zip(answers, shown, strict=True)]

    def _read(
        self, targets: list[Question], tongues: list[Tongue], sources: list[Question], project: bool
    ) -> Predictions:
        """Predictions by reading, language and id, that of the answer first; blank texts have none."""
        grouped: dict[str, list[Question]] = {}
        for target, tongue in zip(targets, tongues, strict=True):
            if not _why_blank(target):
                grouped.setdefault(tongue.code, []).append(target)
        if project and sources:
            return self._projecting.predict(grouped, sources)
        readings = READINGS if sources and self.reads_pairs else READINGS[:1]
        return self.predictor.predict(grouped, sources or None, readings=readings)

    @cached_property
    def _projecting(self) -> "ProjectingPredictor":  # noqa: F821  (its encoder is loaded by those who use it)
        from .translation.answering import ProjectingPredictor

        return ProjectingPredictor(self.predictor)

    def explain(
        self, question: str, context: str, language: str | None = None, source: tuple[str, str] | None = None
    ) -> "Explanation":  # noqa: F821  (its module draws on scikit-learn, which answering does without)
        """What led to an answer: where the teacher looked, and how calibration moved the answer.

        Args:
            question, context, language, source: one of each, as for :meth:`answer`.

        Raises:
            ValueError: as for :meth:`answer`, and for a blank question or context.
        """
        from .prediction.explaining import explain

        (target,) = _questions([(question, context)], "question")
        if reason := _why_blank(target):
            raise ValueError(f"nothing to explain: {reason}")
        sources = self._sources(None if source is None else [source], 1)
        tongues = _languages([language], [target], self._languages)
        self._say_what_is_left_out([target], sources, tongues)
        use = sources and self.reads_pairs and tongues[0].code != self.source_language
        return explain(self.predictor, target, tongues[0].code, sources[0] if use else None)

    def _answer(self, target: Question, tongue: Tongue, found: dict[str, Prediction | None]) -> ReaderAnswer:
        """One question's answer out of the predictions of its readings; they are ``None`` for a blank text."""
        best, missing, reason = next(iter(found.values())), None, _why_blank(target)  # the first reading counts
        about = {"language": tongue.code, "detected": tongue.detected}
        about |= {"question": target.question, "context": target.context}
        if best is None or not best.text:
            reason = reason or "the context has no piece that could be an answer"
            return ReaderAnswer("", 0.0, -1, -1, (), missing=1.0 if self.no_answer else None, reason=reason, **about)
        readings = {name: Span(*value[:4]) for name, value in found.items()} if len(found) > 1 else {}
        if self.no_answer and best.none_score is not None:
            both = best.none_score + best.score
            missing = best.none_score / both if both else 0.5
        about |= {"missing": missing, "alternatives": best.alternatives, "readings": readings}
        if missing is not None and missing > 0.5:
            return ReaderAnswer("", best.none_score, -1, -1, reason=NO_ANSWER, **about)
        return ReaderAnswer(*best[:4], **about)

    def _sources(self, source: Sequence[tuple[str, str] | None] | None, count: int) -> list[Question]:
        """The source versions that were given, with the ids of their targets."""
        if source is None:
            return []
        if len(source) != count:
            name = language_name(self.source_language) if self.reads_pairs else "source"
            raise ValueError(f"{count} questions, but {len(source)} {name} versions; use None where there is none")
        sources = _questions(source, "source")
        if blank := next((given for given in sources if _why_blank(given)), None):
            raise ValueError(f"source {blank.id}: {_why_blank(blank)}; give its text, or None to read the target alone")
        return sources

    def _translate(
        self,
        engine: "str | Engine",  # noqa: F821
        targets: list[Question],
        tongues: list[Tongue],
        given: list[Question],
        project: bool,
    ) -> tuple[dict[str, Question], dict[str, list[str]]]:
        """By id, the source versions that an engine makes, and what it did not; nothing is kept on the disk.

        A language that was only found out may be wrong: if the engine does not have it, its questions are read alone.
        """
        from .translation.engines import LanguageError, open_engine
        from .translation.translator import Translator

        if not self.reads_pairs and not project:
            said = f"{self.name} reads no pairs, so a translation would not be used"
            raise ValueError(f"{said}; leave translate out, or set project")
        if isinstance(engine, str):
            if engine not in self._engines:
                self._engines[engine] = open_engine(engine)
            engine = self._engines[engine]
        known, made, sure = {source.id for source in given}, {}, set()
        wanted: dict[str, list[Question]] = {}
        for target, tongue in zip(targets, tongues, strict=True):
            if target.id not in known and tongue.code != self.source_language and not _why_blank(target):
                wanted.setdefault(tongue.tag, []).append(target)
                sure |= set() if tongue.detected else {tongue.tag}
        failed, untranslated = {}, f"questions are read alone, as {engine.name} did not translate them whole"
        # the commonest first: it says which pair an engine of one pair is for
        for tag, questions in sorted(wanted.items(), key=lambda item: -len(item[1])):
            try:
                translator = Translator(engine, tag, self.source_language, keep=False, progress=False)
            except LanguageError as error:
                if tag in sure:
                    raise
                said = f"questions, found to be in {tag!r}, are read alone: {error}; or give their language"
                failed[said] = [question.question for question in questions]
                continue
            translator.prepare(text for question in questions for text in (question.question, question.context))
            for one in questions:
                asked, context = translator.passage(one.question), translator.passage(one.context)
                version = replace(one, question=asked.text, context=context.text)
                if asked.missing or context.missing or _why_blank(version):
                    failed.setdefault(untranslated, []).append(one.question)
                else:
                    made[one.id] = version
        return made, failed

    def _say_what_is_left_out(
        self,
        targets: list[Question],
        sources: list[Question],
        tongues: list[Tongue],
        project: bool = False,
        failed: dict[str, list[str]] | None = None,
    ) -> None:
        """One warning of all that is cut or not used; ``failed`` is what a translation engine did not translate."""
        limit, said = self.predictor.spec.max_question_length, dict(failed or {})
        asked = [question for question in (*targets, *sources) if question.question.strip()]
        if asked:
            ids = self.predictor.tokenizer([question.question for question in asked], add_special_tokens=False)
            cut = [asked[i].question for i, tokens in enumerate(ids["input_ids"]) if len(tokens) > limit]
            said[f"questions are cut after {limit} tokens"] = cut
        own, given = self.source_language, {source.id for source in sources}
        read = [(target, tongue.code) for target, tongue in zip(targets, tongues, strict=True)]
        beside = [(target.question, code) for target, code in read if target.id in given]
        if sources and not self.reads_pairs and not project:
            said[f"source versions are not used: {self.name} reads no pairs"] = [text for text, _ in beside]
        elif sources:
            what = f"questions in {own!r} are read alone: for them the source is not used"
            said[what] = [text for text, code in beside if code == own]
        if project and failed is None:
            lacking = [target.question for target, code in read if code != own and target.id not in given]
            said["questions are read alone: project needs their source, or translate"] = lacking
        if found := {what: texts for what, texts in said.items() if texts}:
            warnings.warn(LeftOut(found), stacklevel=3)


def _load(name: str | Path | None) -> tuple:
    """The model and the tokenizer that ``Reader(name)`` means."""
    if is_boxed(name):
        if not (BOX / PACKED).is_file():
            raise BackboneError(f"{BOX}: the reader in the box is not there; install xsta again, or name a model")
        return load_packed(BOX)
    if (Path(name).expanduser() / PACKED).is_file():
        return load_packed(Path(name).expanduser())
    return load_reader(str(name.absolute() if isinstance(name, Path) else name))  # a Path never is a hub id


def _spec(window: int) -> WindowSpec:
    """The usual window lengths, or shorter ones in the same proportion for an encoder of fewer positions."""
    usual = WindowSpec()
    if window >= usual.max_length:
        return usual
    return WindowSpec(window, min(usual.stride, window // 4), min(usual.max_question_length, window // 3))


def _check_lists(question: object, context: object, language: object, source: object) -> None:
    """Refuse several questions and contexts that are no lists of one length; of a dict, the keys would be read."""
    if isinstance(question, str) or isinstance(context, str):
        raise ValueError("question and context are one text and several; give two texts, or two lists of one length")
    beside = {name: given for name, given in (("language", language), ("source", source)) if given is not None}
    for name, given in ({"question": question, "context": context} | beside).items():
        if isinstance(given, Mapping | Set) or not hasattr(given, "__len__"):
            raise ValueError(f"{name} is a {type(given).__name__}; give one, or a list in order")
    if len(question) != len(context):
        raise ValueError(f"{len(question)} questions, but {len(context)} contexts; give each question its own")


def _questions(pairs: Sequence[tuple[str, str] | None], what: str) -> list[Question]:
    """Questions that have their place in the list as id; ``None`` is left out."""
    found = []
    for number, pair in enumerate(pairs):
        if pair is None:
            continue
        if not isinstance(pair, tuple | list) or len(pair) != 2 or not all(isinstance(text, str) for text in pair):
            raise ValueError(f"{what} {number}: a question and its context must be two texts, as a tuple or a list")
        found.append(Question(str(number), *(check_text(text, f"{what} {number}") for text in pair), ()))
    return found


def _why_blank(question: Question) -> str:
    """Why a question cannot be answered from what was given; empty if it can."""
    if is_blank(question.question):
        return "the question is blank"
    return "the context is blank" if is_blank(question.context) else ""


def _languages(
    language: str | Sequence[str | None] | None, targets: Sequence[Question], known: Sequence[str]
) -> list[Tongue]:
    """Each question's language; ``known`` are those that the reader was trained on."""
    given = [language] * len(targets) if language is None or isinstance(language, str) else list(language)
    if len(given) != len(targets):
        raise ValueError(f"{len(targets)} questions, but {len(given)} languages; give one for all or one each")
    for tongue in given:
        if tongue is not None and (not isinstance(tongue, str) or not tongue.strip()):
            raise ValueError(f"language is {tongue!r}; give a code such as 'de', or None to find it out")
    chosen = zip(given, targets, strict=True)
    return [_given(tag, known) if tag else _detected(question) for tag, question in chosen]


def _detected(question: Question) -> Tongue:
    code = detect(question)
    return Tongue(code, True, code)


def _given(tag: str, known: Sequence[str]) -> Tongue:
    """The language of a tag: an engine gets its script too, and its region where the reader knows that."""
    code, (base, *rest) = _code(tag, known), re.split("[-_]", tag.strip())
    script = [part.title() for part in rest[:1] if len(part) == 4]
    return Tongue(code, False, "-".join([base.lower(), *script]) if code.lower() == base.lower() else code)


def _code(tag: str, known: Sequence[str]) -> str:
    """The language that a tag means: ``de`` for ``" DE "``, ``zh`` for ``zh_CN`` unless that itself is known."""
    tag = tag.strip().lower().replace("_", "-")
    codes = {code.lower().replace("_", "-"): code for code in known}
    base = tag.partition("-")[0] or tag
    return codes.get(tag) or codes.get(base, base)


def detect(question: Question) -> str:
    """The language of a question and its context together, an ISO 639-1 code."""
    from py3langid import rank  # its model takes half a second, which a given language saves

    ranked = rank(f"{question.question} {question.context[:2000]}")
    return next(code for code, _ in ranked if len(code) == 2)  # short Chinese texts come out as Wu (wuu) else
