"""Spans and predictions: the search against brute force, every source window read once, missing sources."""

from collections import Counter
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from xsta_lib.data.protocols import TestSet, load_protocol
from xsta_lib.data.windows import WindowSpec
from xsta_lib.model.configuration import XStaConfig
from xsta_lib.model.modeling import XStaForQuestionAnswering
from xsta_lib.prediction.evaluation import evaluate_once
from xsta_lib.prediction.explaining import explain
from xsta_lib.prediction.metrics import read_predictions
from xsta_lib.prediction.predictor import READINGS, Predictor, best_spans


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 10**6), length=st.integers(3, 24), limit=st.integers(1, 6))
def test_best_span_is_the_best(seed, length, limit):
    generator = torch.Generator().manual_seed(seed)
    p = torch.rand(2, length, 2, generator=generator)
    allowed = torch.rand(2, length, generator=generator) > 0.3
    allowed[:, 1] = True
    start, end, score = best_spans(p, allowed, n_best=length, max_tokens=limit)
    for row in range(2):
        found = {
            (p[row, i, 0] * p[row, j, 1]).item()
            for i in range(length)
            for j in range(i, min(length, i + limit))
            if allowed[row, i] and allowed[row, j]
        }
        assert score[row].item() == pytest.approx(max(found))
        assert 0 <= end[row] - start[row] < limit and allowed[row, start[row]] and allowed[row, end[row]]


def test_further_spans_do_not_overlap_and_a_row_without_a_pair_is_searched_whole():
    p = torch.rand(3, 40, 2, generator=torch.Generator().manual_seed(0))
    allowed = torch.ones(3, 40, dtype=torch.bool)
    p[1, :20, 1], p[1, 20:, 0] = p[1, :20, 1] + 1, p[1, 20:, 0] + 1  # the best ends lie before the best starts
    allowed[2] = False
    starts, ends, scores = best_spans(p, allowed, n_best=5, max_tokens=7, count=3)
    assert scores[2].tolist() == [-1, -1, -1] and (scores[:2] > 0).all()
    for n_best in (5, 40):  # so many spans as nobody could count
        many = best_spans(p, allowed, n_best, max_tokens=7, count=10**9)[2]
        assert many.shape == (3, n_best) and torch.equal(many[:, :3], best_spans(p, allowed, n_best, 7, 3)[2])
    expected = max((p[1, i, 0] * p[1, j, 1]).item() for i in range(40) for j in range(i, min(40, i + 7)))
    assert scores[1, 0].item() == pytest.approx(expected)
    for row in range(2):
        spans = sorted(zip(starts[row].tolist(), ends[row].tolist(), strict=True))
        assert all(one[1] < two[0] for one, two in zip(spans, spans[1:], strict=False))
        assert scores[row].tolist() == sorted(scores[row].tolist(), reverse=True)


@pytest.fixture(scope="module")
def reader(backbone):
    """A tiny random X-STA, its tokenizer and the first demo test questions."""
    test = load_protocol("demo").tests[0]
    questions = {language: test.questions[language][:10] for language in ("en", "de", "ar")}
    torch.manual_seed(1)
    model, tokenizer = XStaForQuestionAnswering.from_backbone(str(backbone), XStaConfig(sharing_layer=2), ["en", "de"])
    torch.nn.init.normal_(model.qa_outputs.weight, std=1.0)
    return model.eval(), tokenizer, questions


def predict(reader, targets, source, **options):
    model, tokenizer, _ = reader
    spec = WindowSpec(max_length=160, stride=32)
    return Predictor(model, tokenizer, spec=spec, **options).predict(targets, source)


def texts(answered):
    return {key: prediction.text for key, prediction in answered.items()}


def scores(answered, keys=None):
    return pytest.approx({key: answered[key].score for key in keys or answered}, abs=1e-5)


def test_all_questions_are_answered_from_their_contexts(reader):
    questions = reader[2]
    answers = predict(reader, questions, questions["en"])
    assert answers.keys() == set(READINGS)
    for by_language in answers.values():
        assert by_language.keys() == questions.keys()
        for language, part in questions.items():
            found = by_language[language]
            assert set(found) == {q.id for q in part} and all(0 < found[q.id].score <= 1 for q in part)
            assert all(found[q.id].text and found[q.id].text in q.context for q in part)


def test_batch_size_and_chunks_change_nothing(reader):
    questions = reader[2]
    sizes = ({"batch_size": 32}, {"batch_size": 3, "multiple": 160})  # the latter reads three chunks of source windows
    big, small = (predict(reader, questions, questions["en"], **size)["calibrated"] for size in sizes)
    for language in questions:
        assert texts(big[language]) == texts(small[language])
        assert {key: value.score for key, value in big[language].items()} == scores(small[language])


@pytest.mark.parametrize("training", [True, False])
def test_the_model_keeps_its_mode(reader, training):
    model, _, questions = reader
    expected = predict(reader, {"de": questions["de"]}, questions["en"])
    before = dict(vars(model)), [(name, module.training) for name, module in model.train(training).named_modules()]
    try:
        assert predict(reader, {"de": questions["de"]}, questions["en"]) == expected
        with pytest.raises(AttributeError):
            Predictor(*reader[:2]).predict({"de": questions["de"]}, questions["en"], readings=("nonsense",))
        assert [(name, module.training) for name, module in model.named_modules()] == before[1]
        assert vars(model).keys() == before[0].keys()
    finally:
        model.eval()


def test_every_source_window_is_encoded_once(reader, monkeypatch):
    model, _, questions = reader
    seen, encode = Counter(), model.encode

    def counting(input_ids, attention_mask, language=None, source=None, *rest, **options):
        if source is None and language in (None, "en"):
            seen.update(tuple(ids[mask.bool()].tolist()) for ids, mask in zip(input_ids, attention_mask, strict=True))
        return encode(input_ids, attention_mask, language, source, *rest, **options)

    monkeypatch.setattr(model, "encode", counting)
    for targets in (("de", "ar"), ("en", "de", "ar")):  # English itself is answered by its one pass
        seen.clear()
        predict(reader, {language: questions[language] for language in targets}, questions["en"], batch_size=4)
        assert seen and set(seen.values()) == {1}


def test_without_a_source_the_target_answers_alone(reader):
    questions = reader[2]
    targets, keys = {"de": questions["de"]}, [q.id for q in questions["de"]]
    sources = None, questions["en"][:4], questions["en"]
    alone, partly, paired = (predict(reader, targets, source)["calibrated"]["de"] for source in sources)
    assert {key: partly[key].score for key in keys[4:]} == scores(alone, keys[4:])
    assert {key: partly[key].score for key in keys[:4]} == scores(paired, keys[:4])
    assert {key: value.score for key, value in paired.items()} != scores(alone)


def test_two_questions_of_one_id_are_refused(reader):
    twice = [reader[2]["de"][0], replace(reader[2]["de"][1], id=reader[2]["de"][0].id)]
    for targets, source in (({"de": twice}, None), ({"de": twice[:1]}, twice)):
        with pytest.raises(ValueError, match=f"2 questions have the id {twice[0].id!r}; give each its own"):
            predict(reader, targets, source)


def test_white_space_alone_is_no_answer(reader, monkeypatch):
    """A head that prefers one token, here the space mark in front of a letter that has no piece of its own."""
    model, tokenizer, questions = reader
    context = "a river in \u2003\u2003 \u2003 the city"
    question = replace(questions["de"][0], context=context)
    windows = Predictor(model, tokenizer).windows([question])
    first = windows.context_start[0]
    chars = list(zip(windows.char_starts[0], windows.char_ends[0], strict=True))
    blank = [first + i for i, (start, end) in enumerate(chars) if not context[start:end].strip()]
    assert blank
    distributions = model.distributions

    def preferring(*given, **options):
        output = distributions(*given, **options)
        p = torch.full_like(output.calibrated, 0.01)
        p[:, blank[0]] = 0.9
        output.calibrated = output.target = p
        return output

    monkeypatch.setattr(model, "distributions", preferring)
    found = Predictor(model, tokenizer, alternatives=2).predict({"de": [question]})["calibrated"]["de"][question.id]
    assert found.text and found.score == pytest.approx(0.0001) and context[found.start : found.end] == found.text
    why = explain(Predictor(model, tokenizer), question, "de")
    start, end = chars[why.first_token - first]
    assert why.answer == found.text and start <= found.start < end


def test_an_english_question_takes_the_source_path(reader):
    targets = {"en": reader[2]["en"]}
    paired, alone = (predict(reader, targets, source)["teacher"]["en"] for source in (targets["en"], None))
    assert texts(paired) == texts(alone)
    assert {key: value.score for key, value in paired.items()} == scores(alone)


def test_a_stopped_evaluation_goes_on_with_the_answers_it_has(reader, tmp_path, monkeypatch):
    model, tokenizer, questions = reader
    test = TestSet("demo", "mlqa", questions, questions["en"])
    options = (tmp_path, model, tokenizer, test, "gold", READINGS, False)
    first, kept = evaluate_once(*options)
    assert read_predictions(tmp_path / "demo.de.gold.json") == first["calibrated"].answers["de"]
    monkeypatch.setattr(model, "encode", None)  # nothing is computed again
    again, same = evaluate_once(*options)
    assert again == first and same == kept and set(again) == set(READINGS)
    versions = kept["provenance"]["versions"]
    assert kept["seconds"] > 0 and versions["torch"].split("+")[0] == torch.__version__.split("+")[0]
    with pytest.raises(TypeError):
        evaluate_once(tmp_path, model, tokenizer, test, "none", READINGS, False)
    other = replace(questions["de"][0], question="Wann?")
    changed = TestSet("demo", "mlqa", questions | {"de": [other, *questions["de"][1:]]}, questions["en"])
    with pytest.raises(TypeError):  # kept answers are to other questions
        evaluate_once(tmp_path, model, tokenizer, changed, "gold", READINGS, False)
