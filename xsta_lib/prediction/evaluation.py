"""A trained model on a test set: answers, their scores, and where a number comes from."""

import json
import platform
import subprocess
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerBase

from ..data.files import read_json, write_text_atomically
from ..data.protocols import TestSet
from ..data.windows import window_cache
from ..model.modeling import XStaForQuestionAnswering
from ..training import ranks
from ..training.machine import has_bf16, peak_memory_bytes, versions
from .metrics import Score, aggregate, score, write_predictions
from .predictor import Predictor

CODE = Path(__file__).resolve().parents[1]


@dataclass
class Evaluation:
    """Metrics by language, scores by question, and answers by language of one test set under one reading."""

    metrics: dict[str, dict[str, float]]
    scores: dict[str, dict[str, Score]]
    answers: dict[str, dict[str, str]]


def evaluate_model(
    model: XStaForQuestionAnswering,
    tokenizer: PreTrainedTokenizerBase,
    test: TestSet,
    source: str = "gold",
    progress: bool = True,
) -> Evaluation:
    """Answer a test set and score the calibrated answers; arguments as for :func:`answer_test`."""
    return score_answers(test, answer_test(model, tokenizer, test, source, ("calibrated",), progress)["calibrated"])


def answer_test(
    model: XStaForQuestionAnswering,
    tokenizer: PreTrainedTokenizerBase,
    test: TestSet,
    source: str,
    readings: Iterable[str],
    progress: bool = True,
) -> dict[str, dict[str, dict[str, str]]]:
    """Answer texts of a test set, by reading, language and question id.

    Several processes take a share of the questions each (a question in all its languages) and get all answers.

    Args:
        model, tokenizer: a trained model.
        test: the questions.
        source: ``none`` reads the target alone, anything else the test set's source beside each target.
        readings: of ``calibrated``, ``target`` and ``teacher``: several readings of the same distributions.
        progress: show a bar.
    """
    readings = tuple(readings)
    mine = test.share(ranks.rank(), ranks.world_size())
    predictor = Predictor(model, tokenizer, cache=window_cache(), autocast=has_bf16(model.device))
    found = {reading: {language: {} for language in test.questions} for reading in readings}
    for questions, beside in mine.by_source():
        predicted = predictor.predict(questions, None if source == "none" else beside, progress, readings)
        for part in ranks.gather_objects(predicted):
            for reading, by_language in part.items():
                for language, answered in by_language.items():
                    found[reading][language] |= {key: prediction.text for key, prediction in answered.items()}
    return found


def score_answers(test: TestSet, answers: Mapping[str, Mapping[str, str]]) -> Evaluation:
    """Score the answers of one reading, by language and question id; a missing one counts as wrong."""
    scores = {}
    for language, questions in test.questions.items():
        found = answers[language]
        scores[language] = {q.id: score(found.get(q.id), q.golds, language, test.rule) for q in questions}
    metrics = {language: aggregate(values) for language, values in scores.items()}
    return Evaluation(metrics, scores, {language: dict(texts) for language, texts in answers.items()})


def kept_answers(folder: Path, test: TestSet, source: str) -> dict:
    """What :func:`evaluate_once` kept for the questions that the test set has now; empty where there is nothing."""
    path = folder / f"{test.name}.{source}.json"
    record = read_json(path) if path.exists() else {}
    return record if record.get("questions") == test.digest() else {}


def evaluate_once(
    folder: Path,
    model: XStaForQuestionAnswering,
    tokenizer: PreTrainedTokenizerBase,
    test: TestSet,
    source: str,
    readings: Iterable[str],
    progress: bool = True,
) -> tuple[dict[str, Evaluation], dict]:
    """Answer and score a test set, unless ``folder`` holds the answers already: a stopped evaluation goes on there.

    The folder belongs to one trained model. Answers are kept by data set and source, once for all readings
    (``<test>.<source>.json``) and in the official form by language (``<test>.<language>.<source>.json``).

    Answers to other questions than the test set has now are not used.

    Returns:
        The evaluations by reading; and what was kept with the answers: ``seconds`` that answering took,
        ``peak_memory_bytes`` and ``provenance`` of the process that answered.
    """
    record = ranks.gather_objects(kept_answers(folder, test, source))[0]  # rank 0's: others may not see its disk
    if not record:
        began = time.perf_counter()
        answers = answer_test(model, tokenizer, test, source, readings, progress)
        record = {
            "questions": test.digest(),
            "seconds": time.perf_counter() - began,
            "peak_memory_bytes": peak_memory_bytes(),
            "provenance": provenance(),
            "answers": answers,
        }
        if ranks.rank() == 0:
            for language, texts in answers["calibrated"].items():
                write_predictions(folder / f"{test.name}.{language}.{source}.json", texts)
            write_text_atomically(folder / f"{test.name}.{source}.json", json.dumps(record, ensure_ascii=False))
    answers = record.pop("answers")
    return {reading: score_answers(test, texts) for reading, texts in answers.items()}, record


def _git(*arguments: str) -> str:
    """What git prints; nothing without git or outside a repository."""
    try:
        return subprocess.run(["git", *arguments], cwd=CODE, capture_output=True, text=True).stdout.strip()
    except OSError:
        return ""


@cache
def provenance() -> dict:
    """Versions, machine and commit a result was measured with; asked once a process, as its code is loaded."""
    ours = bool(_git("ls-files", "__init__.py"))  # not so where the package was installed inside another repository
    commit = _git("rev-parse", "HEAD") if ours else ""
    cuda = torch.cuda.is_available()
    return {
        "commit": commit or "unknown",
        "clean": bool(commit) and not _git("status", "--porcelain", "--", "."),
        "versions": versions(),
        "device": torch.cuda.get_device_name() if cuda else platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
    }
