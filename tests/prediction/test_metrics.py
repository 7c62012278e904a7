"""Exact match and F1: the golden values of the original scripts, aggregates, and faulty inputs."""

import json

import pytest

from xsta_lib.data.protocols import TestSet
from xsta_lib.data.squad import Answer, Question
from xsta_lib.prediction.evaluation import score_answers
from xsta_lib.prediction.metrics import (
    Score,
    aggregate,
    compare_ids,
    normalise,
    read_predictions,
    score,
    write_predictions,
)

# Computed with the original MLQA and SQuAD v1.1 scripts: language, prediction, gold, (EM, F1) of each rule.
GOLDEN = [
    ("en", "The  Eiffel Tower, a landmark!", "Eiffel Tower", (0, 0.8), (0, 0.8)),
    ("en", "“Café–Noir”", "cafe noir", (0, 0), (0, 0)),
    ("en", "the", "a", (1, 0), (1, 0)),
    ("es", "La Universidad de los Andes", "Universidad de Los Andes", (1, 1), (0, 0.888889)),
    ("es", "del río", "el río", (0, 0.666667), (0, 0.5)),
    ("de", "Der Präsident der Republik", "Präsident einer Republik", (1, 1), (0, 0.571429)),
    ("de", "die „Straße“", "DIE STRASSE", (0, 0), (0, 0.5)),
    ("ar", "المدينة المنورة", "مدينة منورة", (1, 1), (0, 0)),
    ("ar", "في العالم العربي", "العالم العربي", (0, 0.857143), (0, 0.8)),
    ("vi", "những ngôi nhà của Hà Nội", "ngôi nhà Hà Nội", (1, 1), (0, 0.8)),
    ("hi", "भारत की राजधानी।", "भारत की राजधानी", (1, 1), (0, 0.666667)),
    ("zh", "北京市（首都）", "北京市首都", (1, 1), (0, 0)),
    ("zh", "1998年7月", "1998年", (0, 0.666667), (0, 0)),
    ("zh", "New York 纽约市", "纽约 new york", (0, 0.888889), (0, 0.666667)),
    ("ru", "«Война и мир»", "Война и мир", None, (0, 0.333333)),
    ("ko", "서울특별시", "서울", None, (0, 0)),
]


@pytest.mark.parametrize(("language", "prediction", "gold", "mlqa", "squad"), GOLDEN)
def test_golden_values(language, prediction, gold, mlqa, squad):
    assert score(prediction, [gold], language, "squad") == pytest.approx(squad, abs=5e-7)
    if mlqa is None:
        with pytest.raises(ValueError, match="use the rule 'squad'"):
            score(prediction, [gold], language, "mlqa")
    else:
        assert score(prediction, [gold], language, "mlqa") == pytest.approx(mlqa, abs=5e-7)


def test_which_signs_each_rule_deletes():
    assert normalise("$5 < 6€ ° №1 `x` a^b|c~d", "de", "mlqa") == ["5", "6€", "°", "№1", "x", "abcd"]
    assert normalise("«Да», the end!", "ru", "squad") == ["«да»", "end"]


def test_best_gold_is_taken_for_em_and_f1_separately():
    # "the" equals "a" after the articles go (EM 1, F1 0); the other gold has EM 0 and F1 above 0 for "the cat".
    assert score("the", ["a", "the cat"], "en", "squad") == Score(1.0, 0.0)
    em, f1 = score("old cat", ["cat", "an old black cat"], "en", "squad")
    assert em == 0 and f1 == pytest.approx(2 * 1 * (2 / 3) / (1 + 2 / 3))
    assert score("cat", ["old cat", "cat"], "en", "squad") == Score(1.0, 1.0)


def test_a_missing_prediction_scores_zero_and_counts_and_one_without_a_question_does_not():
    golds = {"1": "Paris", "2": "Rome", "3": "the"}
    questions = [Question(key, "?", text, (Answer(text, 0),)) for key, text in golds.items()]
    found = score_answers(TestSet("toy", "squad", {"en": questions}, None), {"en": {"1": "Paris", "9": "x"}})
    assert found.scores["en"] == {"1": (1, 1), "2": (0, 0), "3": (0, 0)}
    assert found.metrics["en"] == {"f1": pytest.approx(100 / 3), "em": pytest.approx(100 / 3), "n": 3}
    assert score("", ["the"], "en", "squad") == Score(1.0, 0.0)  # empty is not missing


def test_what_cannot_be_scored_is_refused():
    with pytest.raises(ValueError, match="unknown rule 'bleu'"):
        score("a", ["a"], "en", "bleu")
    with pytest.raises(ValueError, match="MLQA's rule knows"):
        score(None, ["a"], "el", "mlqa")  # even where nothing was predicted
    with pytest.raises(ValueError, match="without gold answers"):
        score("a", [], "en", "squad")
    with pytest.raises(ValueError, match="no scores"):
        aggregate({})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"1": "a"', "not a JSON file"),
        (b"", "not a JSON file"),
        ('{"1": "Köln"}'.encode("latin-1"), "not a JSON file"),
        (b'["a"]', "one JSON object of id to text"),
        (b'{"1": null}', "one JSON object of id to text; that of '1' is None"),
        (b'{"1": NaN}', "one JSON object of id to text; that of '1' is nan"),
        (b'{"1": "a", "1": "b"}', "the key '1' stands for two values"),
        (b'{"1": "\\ud83c"}', "id and prediction of '1': character 1 is half a surrogate pair"),
        (b'{"1": {"text": "a"}}', "one JSON object of id to text"),
    ],
)
def test_faulty_predictions_are_refused_with_the_file(tmp_path, content, message):
    path = tmp_path / "predictions.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        read_predictions(path)
    assert str(path) in str(caught.value)


def test_ids_that_do_not_match_are_counted_and_named():
    assert compare_ids({"1": "a", "2": "b"}, ["1", "2"], "p.json").faults() == []
    report = compare_ids({"1": "a", "x": "b"}, ["1", *"abcd"], "p.json")
    missing = "4 of 5 questions without a prediction, scored 0 (a, b, c, ...)"
    assert str(report) == f"p.json: {missing}; 1 predictions of unknown ids (x)"


def test_predictions_come_back_as_written(tmp_path):
    predictions = {"a": "ein „Haus“", "b": "", "c": "北京"}
    write_predictions(tmp_path / "runs" / "p.json", predictions)
    assert json.loads((tmp_path / "runs" / "p.json").read_text("utf-8")) == predictions  # the official form
    assert read_predictions(tmp_path / "runs" / "p.json") == predictions
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["p.json"]
