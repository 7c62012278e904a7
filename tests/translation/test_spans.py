"""Answer spans projected into translations: text search, similarity, the teacher, the span model."""

import unicodedata
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny import write_tiny_e5

from xsta_lib.data.protocols import TestSet, load_protocol
from xsta_lib.data.squad import Answer, Question
from xsta_lib.experiments.projection import fit, measure, rows_of, training_rows
from xsta_lib.model.configuration import XStaConfig
from xsta_lib.model.modeling import XStaForQuestionAnswering
from xsta_lib.prediction.predictor import Predictor
from xsta_lib.translation.alignment import FEATURES, KEPT, REACH, PassageEncoder, SpanModel
from xsta_lib.translation.spans import (
    Projection,
    Projector,
    Row,
    SimilarityMethod,
    StringMethod,
    TeacherMethod,
    heaviest_run,
    string_places,
)

TEXTS = {  # by script: a text and an answer in it
    "Latin": ("The river Elbe flows past Dresden, and 1815 ships lie there.", "Dresden"),
    "decomposed": (unicodedata.normalize("NFD", "Der Fluß führt über Köln nach Süden."), "Ko\u0308ln"),
    "Thai": ("แม่น้ำเจ้าพระยาไหลผ่านกรุงเทพมหานคร", "เจ้าพระยา"),
    "Chinese": ("易北河流经德累斯顿，全长一千多公里。", "德累斯顿"),
}


@pytest.fixture(scope="module")
def encoder(tmp_path_factory) -> PassageEncoder:
    texts = [text for text, _ in TEXTS.values()]
    return PassageEncoder(str(write_tiny_e5(tmp_path_factory.mktemp("tiny") / "tiny.bin", texts=texts)))


@pytest.fixture(scope="module")
def real() -> Projector:
    return Projector()


def itself(text: str, span: str, **more: object) -> Row:
    """A text as its own translation."""
    start = text.index(span)
    return Row("?", text, start, start + len(span), "?", text, **more)


def found_text(row: Row, found: Projection | None) -> str | None:
    return found and row.target_context[found.start : found.end]


# -- by the text of the answer -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("script", TEXTS)
def test_the_answers_text_is_found_where_it_stands(script):
    text, answer = TEXTS[script]
    start = text.index(answer)
    assert string_places(itself(text, answer, answer=answer)) == [(start, start + len(answer), 1.0)]
    composed = unicodedata.normalize("NFC", answer)
    assert string_places(itself(text, answer, answer=composed)) == [(start, start + len(answer), 1.0)]


def test_every_place_counts_whatever_the_case_but_only_near():
    text = "In Rome. ROME is old; rome it is."
    row = itself(text, "Rome", answer=" rome ")
    assert [text[start:end] for start, end, _ in string_places(row)] == ["Rome", "ROME", "rome"]
    (found,) = StringMethod().project([row], "en", "en")
    assert (found.start, found.score) == (3, 1 / 3)
    near = itself(text, "Rome", answer="rome", near=(9, 20))
    assert string_places(near) == [(9, 13, 1.0)]


def test_a_similar_text_is_found_in_whole_words():
    text = "Die Schiffe der Kaufleute liegen im Hafen."
    (place,) = string_places(itself(text, "Hafen", answer="Kaufleuten"))
    assert text[place[0] : place[1]] == "Kaufleute" and 0.9 < place[2] < 1


@pytest.mark.parametrize("answer", [None, "", "  ", "elephants", "a text far longer than the target " * 2])
def test_what_is_not_there_is_not_found(answer):
    row = itself("Die Schiffe liegen im Hafen.", "Hafen", answer=answer)
    assert string_places(row) == [] and StringMethod().project([row], "en", "de") == [None]


# -- by similarity and by the model ------------------------------------------------------------------------------------


@given(st.lists(st.integers(-5, 5), min_size=1, max_size=12))
def test_the_heaviest_run_is_that_of_a_search_through_all(values):
    first, last = heaviest_run(np.array(values, float))
    every = [sum(values[i : j + 1]) for i, j in product(range(len(values)), repeat=2) if i <= j]
    assert 0 <= first <= last < len(values) and sum(values[first : last + 1]) == max(every)


@pytest.mark.parametrize("script", TEXTS)
def test_a_text_that_stays_keeps_its_span(encoder, script):
    row = itself(*TEXTS[script])
    (found,) = SimilarityMethod(encoder).project([row], "en", "xx")
    assert (found.start, found.end) == (row.start, row.end) and 0 < found.score <= 1


def test_a_span_is_looked_for_near_its_sentence_alone(encoder):
    text = "The Elbe is long. The Main is in Frankfurt. It is old."
    for low, high in ((0, 17), (18, 43), (44, 54)):
        row = itself(text, "Elbe", near=(low, high), answer="Elbe")
        for method in (SimilarityMethod(encoder), Projector(encoder)):
            (found,) = method.project([row], "en", "en")
            assert low <= found.start < found.end <= high


def test_no_token_no_place(encoder):
    text = TEXTS["Latin"][0]
    rows = [Row("?", text, 9, 10, "?", text), Row("?", text, 4, 9, "?", " "), itself(text, "Elbe", near=(3, 3))]
    for method in (SimilarityMethod(encoder), Projector(encoder)):
        assert method.project(rows[1:], "en", "en") == [None, None]
        assert len(method.project(rows, "en", "en")) == 3
    assert Projector(encoder).project([], "en", "en") == []


def test_the_answers_translation_tips_the_balance(encoder):
    text = "red stone, red stone"
    there = Row("?", text, 4, 9, "?", text, answer=None)
    (plain,), (told,) = (
        Projector(encoder).candidates([row], 500) for row in (there, Row("?", text, 4, 9, "?", text, answer="stone"))
    )
    before, after = ({(s.start, s.end): s for s in spans} for spans in (plain, told))
    assert after[15, 20].method == "alignment and string" and before[15, 20].method == "alignment"
    odds = [spans[15, 20].score / spans[11, 14].score for spans in (before, after)]
    assert odds[1] / odds[0] == pytest.approx(float(SpanModel.load().match.exp()), rel=1e-3)


def test_a_passage_longer_than_a_window_has_each_token_once(encoder):
    text = " ".join(f"the river is {number} long," for number in range(150))
    encoded = encoder.predictor.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    passage = encoder([text])[text]
    assert len(encoded["input_ids"]) > 900
    assert list(zip(passage.starts.tolist(), passage.ends.tolist(), strict=True)) == encoded["offset_mapping"]
    assert passage.states.norm(dim=1).allclose(torch.ones(len(passage.starts)))


def test_states_of_few_passages_stay_in_memory(encoder):
    encoder([f"the city {number}" for number in range(KEPT + 50)])
    assert len(encoder.kept) == KEPT


def test_the_model_is_its_equation():
    """Against a float64 sum over all spans, row by row; what may not be has no probability, padding changes nothing."""
    torch.manual_seed(0)
    model = SpanModel().double()
    for parameter in model.requires_grad_(False).parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    sizes, lengths, limits = [7, 4], [3, 1], [5, 2]
    rows = [torch.randn(size, FEATURES, dtype=torch.float64) for size in sizes]
    allowed = [torch.tensor([0, 1, 1, 1, 0, 1, 1]).bool(), torch.ones(4).bool()]
    matches = torch.zeros(2, 7, 5, dtype=torch.float64)
    matches[0, 1, 2] = 0.9
    pad = torch.nn.utils.rnn.pad_sequence
    tokens, places = pad(rows, batch_first=True), pad(allowed, batch_first=True)
    found = model(tokens, places, torch.tensor(lengths), torch.tensor(limits), matches).exp()
    weight, bias = model.token.weight, model.token.bias
    for number, (row, size) in enumerate(zip(rows, sizes, strict=True)):

        def part(kind: int, at: int, row=row, size=size) -> float:
            near = [(at + step, step + REACH) for step in range(-REACH, REACH + 1) if 0 <= at + step < size]
            return float(bias[kind] + sum(weight[kind, :, column] @ row[place] for place, column in near))

        scores = {}
        for i, j in product(range(size), repeat=2):
            if i <= j < i + limits[number] and allowed[number][i] and allowed[number][j]:
                r = np.log((j - i + 1) / lengths[number])
                inside = sum(part(2, at) for at in range(i, j + 1))
                extra = float(model.length[0]) * r + float(model.length[1]) * r * r
                extra += float(model.match) * float(matches[number, i, j - i])
                scores[i, j] = np.exp(part(0, i) + part(1, j) + inside + extra)
        for i, d in product(range(7), range(5)):
            expected = scores.get((i, i + d), 0.0) / sum(scores.values())
            assert float(found[number, i, d]) == pytest.approx(expected, abs=1e-12)


def test_the_model_learns_from_gold_spans(encoder, tmp_path):
    """Answers whose last word is left out in the target's gold: a rule that similarity alone does not know."""
    source, target = [], []
    for number in range(24):
        text = f"The city of {number} has 7 river ways, the {number} is old, it is {number * 3} of a king"
        start = text.index(f"the {number} is")
        long, short = f"the {number} is old", f"the {number} is"
        source.append(Question(str(number), "?", text, (Answer(long, start),)))
        target.append(Question(str(number), "?", text, (Answer(short, start),)))
    test = TestSet("toy", "squad", {"xx": target[16:]}, source)
    rows = training_rows(encoder, source[:16], {"xx": target[:16]})
    assert len(rows) == 16
    before = measure(SimilarityMethod(encoder), test)[0]["xx"]
    model = fit(rows, epochs=40)
    model.save(tmp_path / "model.json", {"rows": 16})
    after, steps = measure(Projector(encoder, SpanModel.load(tmp_path / "model.json")), test)
    assert before["em"] == 0 and after["xx"]["em"] == 100 and after["xx"]["n"] == 8
    assert steps["0"] == {"kept": 100.0, "f1": 100.0, "em": 100.0}


# -- by the teacher, and in earnest ------------------------------------------------------------------------------------


def test_the_teacher_carries_the_gold_span_over(backbone: Path):
    """A teacher whose queries are its keys looks at like tokens: a text that stays keeps its span."""
    torch.manual_seed(0)
    model, tokenizer = XStaForQuestionAnswering.from_backbone(str(backbone), XStaConfig(sharing_layer=2), ["en", "de"])
    with torch.no_grad():
        for linear in (model.teacher.query, model.teacher.key):
            linear.weight.copy_(3 * torch.eye(len(linear.weight)))
    teacher = TeacherMethod(Predictor(model.eval(), tokenizer))
    row = itself("The river Elbe is in Dresden, the city.", "Dresden")
    (found,) = teacher.project([row], "en", "de")
    assert found_text(row, found) == "Dresden" and found.method == "teacher"


def test_a_reader_without_a_teacher_is_refused(backbone: Path):
    model, tokenizer = XStaForQuestionAnswering.from_backbone(str(backbone), XStaConfig.plain(), ["en"])
    with pytest.raises(ValueError, match="no teacher"):
        TeacherMethod(Predictor(model, tokenizer))


@pytest.mark.heavy
def test_any_script_keeps_its_spans(real):
    rows = [itself(*case) for case in TEXTS.values()]
    for row, found in zip(rows, real.project(rows, "en", "xx"), strict=True):
        assert (found.start, found.end) == (row.start, row.end) and found.score > 0.5, row.context


@pytest.mark.heavy
def test_gold_answers_of_the_embedded_corpus_are_found(real):
    test = load_protocol("demo").tests[0]
    questions = {language: test.questions[language][:20] for language in ("ar", "hi", "zh")}
    rows = rows_of(test.source, questions["ar"])
    assert rows[0].context != rows[0].target_context and rows[0].answer == test.source[0].answers[0].text
    languages, _ = measure(real, replace(test, questions=questions))
    assert min(values["f1"] for values in languages.values()) > 75, languages
