"""Answer spans projected into translations: the span model fitted on half of XQuAD, every method measured on the other.

Both halves are those of the protocol `parallel`. XQuAD's passages are professional translations: the gold span of the
English passage is projected into the target's passage and compared with the gold answer there. No translation of an
answer by itself exists, so the English answer stands in for it (it finds numbers and names).
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch.optim import AdamW
from torch.optim.lr_scheduler import OneCycleLR
from tqdm.auto import tqdm

from ..data.files import BOX, read_json, write_text_atomically
from ..data.protocols import TestSet, load_protocol
from ..data.squad import Question
from ..encoders.backbones import E5_NAME
from ..encoders.packed import load_packed
from ..prediction.evaluation import provenance
from ..prediction.explaining import one_per_passage
from ..prediction.metrics import Score, aggregate, score
from ..prediction.predictor import Predictor
from ..training.machine import has_bf16
from ..training.ranks import device
from ..translation.alignment import LAYER, WEIGHTS, PassageEncoder, SpanModel
from ..translation.spans import (
    Method,
    Projection,
    Projector,
    Row,
    Scored,
    SimilarityMethod,
    StringMethod,
    TeacherMethod,
    log_probabilities,
    prepare,
)
from .results import results_folder

EPOCHS, BATCH, RATE, DECAY, SEED = 4, 32, 0.03, 1e-3, 42
THRESHOLDS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.7, 0.9)
TEACHER = 120  # passages
CASE = "test-01-4"  # of the embedded corpus, the picture's
Lists = Mapping[str, Sequence[Question]]


def rows_of(source: Sequence[Question], targets: Sequence[Question]) -> list[Row]:
    """The questions of one language as rows to project, by the targets' order; both sides have the same ids."""
    english = {question.id: question for question in source}
    rows = []
    for target in targets:
        own = english[target.id]
        answer = own.answers[0]
        sides = own.question, own.context, answer.start, answer.end, target.question, target.context
        rows.append(Row(*sides, answer.text))
    return rows


def training_rows(encoder: PassageEncoder, source: Sequence[Question], targets: Lists) -> list[tuple[Scored, int, int]]:
    """What the span model learns from: each row as it reads it, and the first and last token of the gold answer.

    Rows of which no span could be the gold answer teach nothing and are left out.
    """
    found = []
    for questions in tqdm(targets.values(), "reading", unit=" languages"):
        scored = prepare(encoder, rows_of(source, questions))
        for row, question in zip(scored, questions, strict=True):
            answer = question.answers[0]
            gold = row and row.target.tokens(question.context, answer.start, answer.end)
            if gold:
                longest = max(row.longest, gold[1] - gold[0] + 1)
                found.append((replace(row, longest=min(longest, len(row.tokens))), *gold))
    return found


def fit(rows: Sequence[tuple[Scored, int, int]], epochs: int = EPOCHS) -> SpanModel:
    """A span model that makes the gold spans of some rows likeliest (AdamW on ``-log p``, rate up and down again)."""
    torch.manual_seed(SEED)
    random, model = np.random.default_rng(SEED), SpanModel()
    order = sorted(range(len(rows)), key=lambda i: (rows[i][0].longest // 16, len(rows[i][0].tokens)))
    batches = [[rows[i] for i in order[low : low + BATCH]] for low in range(0, len(order), BATCH)]
    optimizer = AdamW(model.parameters(), lr=RATE, weight_decay=DECAY)
    schedule = OneCycleLR(optimizer, RATE, total_steps=epochs * len(batches))
    for _ in tqdm(range(epochs), "fitting", unit=" epochs"):
        for number in random.permutation(len(batches)):
            part, first, last = zip(*batches[number], strict=True)
            scores = log_probabilities(model, part)
            first, last = torch.tensor(first), torch.tensor(last)
            loss = -scores[torch.arange(len(part)), first, last - first].mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return model.requires_grad_(False)


def judge(found: Sequence[Projection | None], golds: Sequence[Question], language: str, rule: str) -> list[Score]:
    """F1 and EM, 0 to 1, of each projection against its gold answers; one that is missing scores 0."""
    texts = [span and gold.context[span.start : span.end] for span, gold in zip(found, golds, strict=True)]
    return [score(text, gold.golds, language, rule) for text, gold in zip(texts, golds, strict=True)]


def measure(method: Method, test: TestSet) -> tuple[dict, dict]:
    """One method on the languages of a test set, from its source.

    Returns:
        ``{language: {"f1", "em", "n", "kept"}}``, percent, ``kept`` being the share of rows for which it found a span;
        and ``{threshold: {"kept", "f1", "em"}}`` over all languages, F1 and EM of the rows with at least that score.
    """
    languages, every = {}, []
    for language, questions in tqdm(test.questions.items(), type(method).__name__, unit=" languages"):
        found = method.project(rows_of(test.source, questions), "en", language)
        scores = judge(found, questions, language, test.rule)
        kept = 100 * sum(span is not None for span in found) / len(found)
        languages[language] = aggregate(dict(enumerate(scores))) | {"kept": kept}
        every += [(span.score if span else -1.0, *value) for span, value in zip(found, scores, strict=True)]
    table, steps = np.array(every), {}
    for least in THRESHOLDS:
        kept = table[:, 0] >= least
        if kept.any():
            em, f1 = 100 * table[kept, 1:].mean(0)
            steps[f"{least:g}"] = {"kept": 100 * float(kept.mean()), "f1": float(f1), "em": float(em)}
    return languages, steps


def fit_projector() -> Path:
    """Fit the span model on the training half of XQuAD, ten languages, and write its weights."""
    data = load_protocol("parallel")
    rows = training_rows(PassageEncoder(), data.parallel_source, data.parallel)
    about = {"encoder": E5_NAME, "layer": LAYER, "fitted on": "XQuAD, articles 0, 2, 4, ...", "rows": len(rows)}
    fit(rows).save(WEIGHTS, about | {"epochs": EPOCHS, "batch": BATCH, "rate": RATE, "seed": SEED})
    return WEIGHTS


def measure_all() -> Path:
    """Measure every method on the test half of XQuAD and on the embedded corpus; returns ``projection.json``'s path.

    The teacher reads both sides of each row anew, where the others read each passage once: it projects one question of
    each of the first ``TEACHER`` passages.
    """
    folder, tests = results_folder() / "translation", {}
    for name, protocol in (("xquad", "parallel"), ("demo", "demo")):
        test = load_protocol(protocol).tests[0]
        targets = {language: list(part) for language, part in test.questions.items() if language != "en"}
        tests[name] = replace(test, questions=targets)
    encoder = PassageEncoder()
    metrics: dict[str, dict] = {}
    thresholds: dict[str, dict] = {}
    methods = {"string": StringMethod(), "similarity": SimilarityMethod(encoder)}
    methods |= {"teacher": teacher_method(), "projector": Projector(encoder)}
    for name, method in methods.items():
        for dataset, test in tests.items():
            if name == "teacher":
                test = replace(test, questions=one_per_passage(test.questions, TEACHER))
            languages, steps = measure(method, test)
            metrics.setdefault(name, {})[dataset] = languages
            thresholds.setdefault(name, {})[dataset] = steps
    path = folder / "projection.json"
    write_text_atomically(path, json.dumps(metrics, indent=1) + "\n")
    about = {"thresholds": thresholds, "provenance": provenance()}
    write_text_atomically(folder / "projection-thresholds.json", json.dumps(about, indent=1) + "\n")
    return path


def teacher_method() -> TeacherMethod:
    """The attentive teacher of the reader in the box."""
    model, tokenizer = load_packed(BOX)
    model.to(device())
    return TeacherMethod(Predictor(model, tokenizer, autocast=has_bf16(model.device)))


def case(languages: Sequence[str] = ("ar", "hi", "zh")) -> tuple[Question, dict[str, tuple]]:
    """A question of the embedded corpus for a picture: its source; by language the target and its likeliest spans."""
    test, projector = load_protocol("demo").tests[0], Projector()
    source = next(question for question in test.source if question.id == CASE)
    found = {}
    for language in languages:
        target = next(question for question in test.questions[language] if question.id == CASE)
        found[language] = target, projector.candidates(rows_of([source], [target]), 3)[0]
    return source, found


def projection_table(path: Path | None = None) -> pd.DataFrame:
    """F1 of a measured table's methods on XQuAD's languages and their mean, a row a method."""
    metrics = read_json(path or results_folder() / "translation" / "projection.json")
    frame = pd.DataFrame({name: {k: v["f1"] for k, v in by_set["xquad"].items()} for name, by_set in metrics.items()}).T
    return frame.assign(mean=frame.mean(axis=1))
