"""The source's answer mixed into the target's: against a computation of its own, over real projections."""

from collections import defaultdict
from itertools import product

import numpy as np
import pytest
import torch
from tiny import write_tiny_e5

from xsta_lib.data.squad import Question
from xsta_lib.model.configuration import XStaConfig
from xsta_lib.model.modeling import XStaForQuestionAnswering
from xsta_lib.prediction.predictor import Predictor, Span
from xsta_lib.reader import Reader
from xsta_lib.translation.answering import PLACES, SOURCE_SPANS, SPANS, ProjectingPredictor, mix
from xsta_lib.translation.spans import Projection, Projector, Row

ENGLISH = "The old mill by the brook was built in 1817 by the miller Johann Krause."
GERMAN = "Die alte Mühle am Bach wurde 1817 von dem Müller Johann Krause gebaut."
SPANISH = "El viejo molino junto al arroyo lo construyó en 1817 el molinero Johann Krause."
SOURCE = [Question("a", "Who built the mill?", ENGLISH, ()), Question("b", "When was it built?", ENGLISH, ())]
TARGETS = {
    "de": [Question("a", "Wer baute die Mühle?", GERMAN, ()), Question("c", "Wo steht die Mühle?", GERMAN, ())],
    "es": [Question("b", "¿Cuándo se construyó?", SPANISH, ())],
    "en": SOURCE[:1],
}


@pytest.fixture(scope="module")
def file(tmp_path_factory) -> str:
    return str(write_tiny_e5(tmp_path_factory.mktemp("tiny") / "tiny.bin", texts=[ENGLISH, GERMAN, SPANISH]))


@pytest.fixture(scope="module")
def projector() -> Projector:
    return Projector()


def reading(file: str, config: XStaConfig) -> Predictor:
    torch.manual_seed(3)
    model, tokenizer = XStaForQuestionAnswering.from_backbone(file, config, ["en", "de", "es"])
    torch.nn.init.normal_(model.qa_outputs.weight, std=1.0)
    return Predictor(model.eval(), tokenizer, alternatives=2)


@pytest.fixture(scope="module", params=["pairs", "plain"])
def predictor(request, file) -> Predictor:
    return reading(file, XStaConfig(sharing_layer=2) if request.param == "pairs" else XStaConfig.plain())


def test_the_mixture_is_half_of_each():
    own = [Span("x", 0.6, 0, 3), Span("y", 0.2, 5, 9)]
    sources = [(Span("s", 0.5, 0, 1), [Projection(5, 9, 0.8, ""), Projection(0, 3, 0.1, "")])]
    sources += [(Span("t", 0.4, 2, 3), [Projection(5, 9, 0.5, ""), Projection(7, 9, 0.2, "")])]
    found = mix(own, sources)
    expected = {(0, 3): 0.3 + 0.025, (5, 9): 0.1 + 0.2 + 0.1, (7, 9): 0.04}
    assert found == pytest.approx(expected) and max(found, key=found.get) == (5, 9)


def test_overlapping_spans_are_the_best_of_all_pairs(predictor):
    wide = Predictor(predictor.model, predictor.tokenizer, overlapping=12)
    question = TARGETS["de"][0]
    found = wide.predict({"de": [question]})["calibrated"]["de"]["a"].overlapping
    windows = wide.windows([question])
    with wide.passes():
        p = wide.model(**wide.inputs(windows, [0]), language="de").calibrated[0].numpy()
    first, count = windows.context_start[0], len(windows.char_starts[0])
    p = p[first : first + count]
    pairs = [(i, j) for i, j in product(range(count), repeat=2) if i <= j < i + 30]
    best = sorted((p[i, 0] * p[j, 1] for i, j in pairs), reverse=True)[:12]
    assert [span.score for span in found] == pytest.approx(best, rel=1e-4)
    assert all(span.text == GERMAN[span.start : span.end] for span in found)


def test_the_answer_is_the_best_span_of_the_mixture(predictor, projector):
    found = ProjectingPredictor(predictor, projector).predict(TARGETS, SOURCE)
    pairs = SOURCE if predictor.model.config.reads_pairs else None
    options = {"alternatives": SOURCE_SPANS, "overlapping": SPANS}
    wide = Predictor(predictor.model, predictor.tokenizer, **options)
    own, english = wide.predict(TARGETS, pairs)["calibrated"], wide.predict({"en": SOURCE})["calibrated"]["en"]
    for language, target, source in (("de", TARGETS["de"][0], SOURCE[0]), ("es", TARGETS["es"][0], SOURCE[1])):
        mixture = defaultdict(float)
        for span in own[language][target.id].overlapping:
            mixture[span.start, span.end] += 0.5 * span.score
        for span in english[source.id].alternatives:
            sides = source.question, source.context, span.start, span.end, target.question, target.context, span.text
            for place in projector.candidates([Row(*sides)], PLACES)[0]:
                mixture[place.start, place.end] += 0.5 * span.score * place.score
        best = found["mixture"][language][target.id]
        assert best.score == pytest.approx(max(mixture.values()), rel=1e-3)
        assert best.text == target.context[best.start : best.end] and len(best.alternatives) == 2
        assert mixture[best.start, best.end] == pytest.approx(best.score, rel=1e-3)
        nones = own[language][target.id].none_score, english[source.id].none_score
        assert best.none_score == pytest.approx(sum(nones) / 2, rel=1e-3)
    assert not np.isclose(found["mixture"]["es"]["b"].score, own["es"]["b"].score)


def test_without_a_source_version_the_reader_answers_as_it_does(predictor, projector):
    found = ProjectingPredictor(predictor, projector).predict(TARGETS, SOURCE)
    for reading in ("mixture", "source"):
        assert found[reading]["en"] == found["calibrated"]["en"]
        assert found[reading]["de"]["c"] == found["calibrated"]["de"]["c"]


def test_a_reader_projects_on_request(predictor, projector, tmp_path, monkeypatch):
    monkeypatch.setattr("xsta_lib.translation.answering.Projector", lambda: projector)
    predictor.model.save_pretrained(tmp_path, predictor.tokenizer)
    reader = Reader(tmp_path, "cpu")
    given = [TARGETS["de"][0].question, "Wo steht die Mühle?"], [GERMAN, GERMAN], "de"
    source = [(SOURCE[0].question, ENGLISH), None]
    mixed, alone = reader.answer(*given, source, project=True)
    assert list(mixed.readings) == ["mixture", "source", "calibrated"] and mixed.text == mixed.readings["mixture"].text
    assert GERMAN[mixed.start : mixed.end] == mixed.text
    assert alone == reader.answer(given[0][1], GERMAN, "de")  # without readings
    single = reader.answer(given[0][0], GERMAN, "de", source[0], project=True)
    assert single.text == mixed.text and list(single.readings) == list(mixed.readings)
    assert list(reader.answer(*given, project=True)[0].readings) == []  # nothing to project from


def test_a_plain_reader_projects_from_the_language_it_was_trained_in(file, projector, tmp_path, monkeypatch):
    monkeypatch.setattr("xsta_lib.translation.answering.Projector", lambda: projector)
    spanish = reading(file, XStaConfig.plain(source_language="es"))
    spanish.model.save_pretrained(tmp_path, spanish.tokenizer)
    sides = [SOURCE[0].question, "¿Quién?"], [ENGLISH, SPANISH], ["en", "es"]
    found = Reader(tmp_path, "cpu").answer(*sides, translate="command:sed s/.*/{source}-{target}/", project=True)
    assert [answer.source for answer in found] == [("en-es", "en-es"), None]
    assert [list(answer.readings) for answer in found] == [["mixture", "source", "calibrated"], []]
