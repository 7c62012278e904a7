"""Cases found by rule."""

import json
from dataclasses import asdict, replace

import pytest

from xsta_lib.data.protocols import TestSet
from xsta_lib.data.squad import Answer, Question
from xsta_lib.experiments.inspection import READ, find_cases, read_cases


def question(number: int) -> Question:
    return Question(f"q{number}", f"Who {number}?", "Ada met Bob Lee and Cy.", (Answer("Bob Lee", 8),))


@pytest.fixture
def test_set() -> TestSet:
    questions = [question(i) for i in range(6)]
    return TestSet("demo", "mlqa", {"en": questions, "de": [*questions, question(9)]}, questions)


def answered(**texts: str) -> dict:
    """Answers ``Ada`` by all readings in German, ``Bob Lee`` in English, with exceptions: ``q1_target="Bob Lee"``."""
    texts_of = {"en": "Bob Lee", "de": "Ada"}
    found = {name: {lang: {f"q{i}": text for i in (*range(6), 9)} for lang, text in texts_of.items()} for name in READ}
    for key, text in texts.items():
        number, reading = key.split("_")
        found[reading]["de"][number] = text
    return found


def test_the_clearest_case_of_each_kind_is_chosen(test_set):
    answers = answered(
        q1_calibrated="Bob Lee", q1_target="Bob", q1_teacher="Bob Lee",  # mended, but half right before
        q2_calibrated="Bob Lee", q2_teacher="Lee",  # mended, from nothing, by a half right teacher
        q3_calibrated="Bob Lee", q3_teacher="Bob Lee",  # the same by a right one: this
        q4_target="Bob Lee", q4_calibrated="Bob",
        q5_target="Bob Lee", q5_calibrated="Cy",  # spoilt entirely: this
        q9_calibrated="Bob Lee", q9_teacher="Bob Lee",  # has no source
    )  # fmt: skip
    success, failure = find_cases(test_set, answers, ["de"])
    assert (success.kind, success.target.id, success.found) == ("success", "q3", 3)
    assert success.f1 == {"target": 0.0, "teacher": 100.0, "calibrated": 100.0}
    assert (success.source_answer, success.source_f1) == ("Bob Lee", 100.0)
    assert (failure.kind, failure.target.id, failure.found) == ("failure", "q5", 2)
    assert failure.answers == {"target": "Bob Lee", "teacher": "Ada", "calibrated": "Cy"}
    assert read_cases(json.loads(json.dumps({"cases": [asdict(success)]}))) == [success]


def test_a_mend_counts_only_where_english_is_right(test_set):
    answers = answered(q2_calibrated="Bob Lee", q3_calibrated="Bob Lee", q4_target="Bob Lee")
    answers["calibrated"]["en"] |= {"q2": "Bob", "q4": "Ada"}
    success, failure = find_cases(test_set, answers, ["de"])
    assert (success.target.id, success.found) == ("q3", 1)
    assert (failure.target.id, failure.found, failure.source_f1) == ("q4", 1, 0.0)


def test_large_language_models_are_shown_and_choose_nothing(test_set):
    answers = answered(q3_calibrated="Bob Lee")
    models = {"big": {"de": {"q3": "It was Bob Lee."}}, "small": {"de": {"q1": "Bob"}}}
    ((plain,), (shown,)) = find_cases(test_set, answers, ["de"]), find_cases(test_set, answers, ["de"], models)
    assert shown.answers == plain.answers | {"llm big": "It was Bob Lee."} and shown.target == plain.target
    assert shown.f1 == plain.f1 | {"llm big": pytest.approx(100 * 2 * 2 / (4 + 2))}
    assert read_cases(json.loads(json.dumps({"cases": [asdict(shown)]}))) == [shown]


def test_translated_english_has_no_gold_answer_and_no_answer_of_the_test_sets_own(test_set):
    translated = [replace(q, context="Ada saw Bob Lee and Cy.", answers=()) for q in test_set.source]
    mixed = replace(test_set, source={"de": translated}, source_name="translate-test")
    (case,) = find_cases(mixed, answered(q3_calibrated="Bob Lee"), ["de"])
    assert case.source.context.startswith("Ada saw") and (case.source_answer, case.source_f1) == ("", None)


def test_what_does_not_occur_is_left_out_and_ties_go_to_the_first_id(test_set):
    assert find_cases(test_set, answered(), ["en", "de"]) == []
    (only,) = find_cases(test_set, answered(q4_calibrated="Bob Lee", q2_calibrated="Bob Lee"), ["de"])
    assert (only.kind, only.target.id, only.found) == ("success", "q2", 2)
