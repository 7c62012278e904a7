"""Spans and predictions: the search against brute force, every source window read once, missing sources."""

from collections import Counter
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import write_tiny_e5

from xsta_lib import XStaConfig, XStaForQuestionAnswering
from xsta_lib.answering import READINGS, DecodingSpec, Predictor, best_spans
from xsta_lib.evaluation import evaluate_once
from xsta_lib.explaining import explain
from xsta_lib.features import WindowSpec
from xsta_lib.metrics import read_predictions
from xsta_lib.protocols import TestSet, load_protocol


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 10**6), length=st.integers(3, 24), limit=st.integers(1, 6))
def test_best_span_is_the_best(seed, length, limit):
    generator = torch.Generator().manual_seed(seed)
    p = torch.rand(2, length, 2, generator=generator)
    allowed = torch.rand(2, length, generator=generator) > 0.3
    allowed[:, 1] = True
    start, end, score = best_spans(p, allowed, DecodingSpec(n_best=length, max_tokens=limit))
    for row in range(2):
        found = {
            (p[row, i, 0] * p[row, j, 1]).item()
            for i in range(length)
            for j in range(i, min(length, i + limit))
            if allowed[row, i] and allowed[row, j]
        }
        assert score[row].item() == pytest.approx(max(found))
        assert 0 <= end[row] - start[row] < limit and allowed[row, start[row]] and allowed[row, end[row]]


@pytest.fixture(scope="module")
def reader(tmp_path_factory):
    """A tiny random X-STA, its tokenizer and the first demo test questions."""
    test = load_protocol("demo").tests[0]
    questions = {language: test.questions[language][:10] for language in ("en", "de", "ar")}
    texts = [text for part in questions.values() for q in part for text in (q.context, q.question)]
    path = write_tiny_e5(tmp_path_factory.mktemp("tiny") / "tiny.bin", texts=texts)
    torch.manual_seed(1)
    model, tokenizer = XStaForQuestionAnswering.from_backbone(str(path), XStaConfig(sharing_layer=2), ["en", "de"])
    torch.nn.init.normal_(model.qa_outputs.weight, std=1.0)
    return model, tokenizer, questions


def predict(reader, targets, source, **options):
    model, tokenizer, _ = reader
    spec = WindowSpec(max_length=160, stride=32)
    return Predictor(model, tokenizer, spec=spec, **options).predict(targets, source)


def test_all_questions_are_answered_from_their_contexts(reader):
    questions = reader[2]
    answers = predict(reader, questions, questions["en"])
    for language, part in questions.items():
        for reading in ("calibrated", "target", "teacher"):
            texts = answers[language].texts[reading]
            assert set(texts) == {q.id for q in part}
            assert all(texts[q.id] and texts[q.id] in q.context for q in part)


def test_batch_size_and_chunks_change_nothing(reader):
    questions = reader[2]
    sizes = ({"batch_size": 32, "chunk": 256}, {"batch_size": 3, "chunk": 4, "multiple": 160})
    big, small = (predict(reader, questions, questions["en"], **size) for size in sizes)
    for language in questions:
        assert big[language].texts == small[language].texts
        for key, value in big[language].scores["calibrated"].items():
            assert value == pytest.approx(small[language].scores["calibrated"][key], abs=1e-5)


def test_every_source_window_is_encoded_once(reader):
    model, _, questions = reader
    seen = Counter()
    encode = model.encode

    def counting(input_ids, attention_mask, language, source=None, *rest, **options):
        if source is None and language == "en":
            seen.update(tuple(ids[mask.bool()].tolist()) for ids, mask in zip(input_ids, attention_mask, strict=True))
        return encode(input_ids, attention_mask, language, source, *rest, **options)

    model.encode = counting
    try:
        for targets in (("de", "ar"), ("en", "de", "ar")):  # English itself is answered by its one pass
            seen.clear()
            predict(reader, {language: questions[language] for language in targets}, questions["en"], chunk=5)
            assert seen and set(seen.values()) == {1}
    finally:
        del model.encode


def test_without_a_source_the_target_answers_alone(reader):
    questions = reader[2]
    targets = {"de": questions["de"]}
    alone = predict(reader, targets, None)["de"]
    partly = predict(reader, targets, questions["en"][:4])["de"]
    paired = predict(reader, targets, questions["en"])["de"]
    keys = [q.id for q in questions["de"]]
    assert all(partly.texts["calibrated"][key] == alone.texts["calibrated"][key] for key in keys[4:])
    for key in keys[:4]:
        assert partly.scores["calibrated"][key] == pytest.approx(paired.scores["calibrated"][key], abs=1e-5)
    assert paired.scores["calibrated"] != alone.scores["calibrated"]


def test_an_english_question_takes_the_source_path(reader):
    questions = reader[2]
    with_source = predict(reader, {"en": questions["en"]}, questions["en"])["en"]
    alone = predict(reader, {"en": questions["en"]}, None)["en"]
    assert with_source.texts == alone.texts
    for key, value in with_source.scores["teacher"].items():
        assert value == pytest.approx(alone.scores["teacher"][key], abs=1e-6)


def test_a_stopped_evaluation_goes_on_with_the_answers_it_has(reader, tmp_path, monkeypatch):
    model, tokenizer, questions = reader
    test = TestSet("demo", "mlqa", questions, questions["en"])
    options = (tmp_path, model, tokenizer, test, "gold", READINGS, False)
    first, kept = evaluate_once(*options)
    assert read_predictions(tmp_path / "demo.de.gold.json") == first["calibrated"].answers["de"]
    monkeypatch.setattr(model, "encode", None)  # nothing is computed again
    again, same = evaluate_once(*options)
    assert again == first and same == kept and set(again) == set(READINGS)
    assert kept["seconds"] > 0 and kept["provenance"]["versions"]["torch"] == torch.__version__
    with pytest.raises(TypeError):
        evaluate_once(tmp_path, model, tokenizer, test, "none", READINGS, False)
    other = replace(questions["de"][0], question="Wann?")
    changed = TestSet("demo", "mlqa", questions | {"de": [other, *questions["de"][1:]]}, questions["en"])
    with pytest.raises(TypeError):  # kept answers are to other questions
        evaluate_once(tmp_path, model, tokenizer, changed, "gold", READINGS, False)


def test_an_explanation_has_attentions_distributions_and_their_tokens(reader):
    model, tokenizer, questions = reader
    predictor = Predictor(model, tokenizer)
    found = explain(predictor, questions["de"][0], "de", questions["en"][0])
    n_target, n_source = len(found.target_tokens), len(found.source_tokens)
    assert found.cross_attention.shape == (2, n_target, n_source) and found.teacher_attention.shape == (
        n_target,
        n_source,
    )
    assert found.cross_attention.sum(-1) == pytest.approx(1, abs=1e-5)
    for p in (found.target, found.teacher, found.calibrated):
        assert p.shape == (n_target, 2) and p.sum(0) == pytest.approx(1, abs=1e-5)
    assert found.calibrated == pytest.approx((found.target + found.teacher) / 2, abs=1e-6)
    assert found.target_tokens[0] == "<s>" and found.answer in questions["de"][0].context
    alone = explain(predictor, questions["de"][0], "de")
    assert alone.teacher is None and alone.cross_attention is None and alone.source_tokens == []
