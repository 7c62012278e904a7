"""A trained model on a test set: answers, their scores, and where a number comes from."""

import importlib.metadata
import platform
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerBase

from .answering import Predictor
from .features import window_cache
from .metrics import Score, aggregate, score_all
from .modeling import XStaForQuestionAnswering
from .protocols import TestSet
from .training import has_bf16

ROOT = Path(__file__).resolve().parent.parent


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
    reading: str = "calibrated",
    progress: bool = True,
) -> Evaluation:
    """Answer a test set and score it; see :func:`evaluate_readings`."""
    return evaluate_readings(model, tokenizer, test, source, (reading,), progress)[reading]


def evaluate_readings(
    model: XStaForQuestionAnswering,
    tokenizer: PreTrainedTokenizerBase,
    test: TestSet,
    source: str = "gold",
    readings: Iterable[str] = ("calibrated",),
    progress: bool = True,
) -> dict[str, Evaluation]:
    """Answer a test set once and score several readings of the same distributions.

    Args:
        model, tokenizer: a trained model.
        test: the questions.
        source: ``none`` reads the target alone, anything else the test set's source beside each target.
        readings: of ``calibrated``, ``target`` and ``teacher``.
        progress: show a bar.
    """
    readings = tuple(readings)
    predictor = Predictor(model, tokenizer, cache=window_cache(), autocast=has_bf16(model.device))
    answers = {}
    for questions, english in test.by_source():
        answers |= predictor.predict(questions, None if source == "none" else english, progress, readings)
    found = {}
    for reading in readings:
        scores, texts = {}, {}
        for language, questions in test.questions.items():
            texts[language] = answers[language].texts.get(reading, {})
            golds = {q.id: [answer.text for answer in q.answers] for q in questions}
            scores[language] = score_all(texts[language], golds, language, test.rule)
        metrics = {language: aggregate(values) for language, values in scores.items()}
        found[reading] = Evaluation(metrics, scores, texts)
    return found


@cache
def provenance() -> dict:
    """Versions, machine and commit a result was measured with; asked once a process, as its code is loaded."""
    packages = ("torch", "transformers", "datasets", "accelerate", "tokenizers", "numpy")
    found = {"python": platform.python_version(), **{name: importlib.metadata.version(name) for name in packages}}
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True).stdout.strip()
    changed = subprocess.run(
        ["git", "status", "--porcelain", "--", "xsta_lib"], cwd=ROOT, capture_output=True, text=True
    ).stdout.strip()
    cuda = torch.cuda.is_available()
    return {
        "commit": commit or "unknown",
        "clean": not changed,
        "versions": found,
        "device": torch.cuda.get_device_name() if cuda else platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
    }
