"""Cases found by rule, and their pictures: nothing torn, nothing lost, right to left where it must be."""

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xsta_lib.cases import READ, Case, find_cases
from xsta_lib.corpus import Answer, Question
from xsta_lib.marking import RIGHT_TO_LEFT, case_picture, locate, units
from xsta_lib.protocols import TestSet, load_protocol


def question(number: int) -> Question:
    return Question(f"q{number}", f"Who {number}?", "Ada met Bob Lee and Cy.", (Answer("Bob Lee", 8),))


@pytest.fixture
def test_set() -> TestSet:
    questions = [question(i) for i in range(6)]
    return TestSet("demo", "mlqa", {"en": questions, "de": [*questions, question(9)]}, questions)


def answered(**texts: str) -> dict:
    """Answers ``Ada`` by all readings, with exceptions: ``q1_target="Bob Lee"``."""
    found = {name: {lang: {f"q{i}": "Ada" for i in (*range(6), 9)} for lang in ("en", "de")} for name in READ}
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
    assert success.f1 == {"target": 0.0, "teacher": 100.0, "calibrated": 100.0} and success.source_answer == "Ada"
    assert (failure.kind, failure.target.id, failure.found) == ("failure", "q5", 2)
    assert failure.answers == {"target": "Bob Lee", "teacher": "Ada", "calibrated": "Cy"}
    assert Case.from_dict(json.loads(json.dumps(success.to_dict()))) == success


def test_translated_english_has_no_gold_answer_and_no_answer_of_the_test_sets_own(test_set):
    translated = [replace(q, context="Ada saw Bob Lee and Cy.", answers=()) for q in test_set.source]
    mixed = replace(test_set, source={"de": translated}, source_name="translate-test")
    (case,) = find_cases(mixed, answered(q3_calibrated="Bob Lee"), ["de"])
    assert case.source.context.startswith("Ada saw") and case.source_answer == ""
    case_picture([case])


def test_what_does_not_occur_is_left_out_and_ties_go_to_the_first_id(test_set):
    assert find_cases(test_set, answered(), ["en", "de"]) == []
    (only,) = find_cases(test_set, answered(q4_calibrated="Bob Lee", q2_calibrated="Bob Lee"), ["de"])
    assert (only.kind, only.target.id, only.found) == ("success", "q2", 2)


def test_the_nearest_occurrence_is_located():
    assert locate("Ada met Ada and Ada.", "Ada", 9) == (8, 11)
    assert locate("Ada", "", 0) is None and locate("Ada", "Bob", 0) is None


@given(st.text(alphabet="ab .é中文กำน้สฮिक्षمدن\u200d1", max_size=40), st.lists(st.integers(0, 40), max_size=4))
def test_units_lose_nothing_and_tear_no_letter(text, edges):
    found = list(units(text, edges))
    assert "".join(text[start:end] for start, end, _ in found).split() == text.replace(" ", "").split()
    for start, end, space in found:
        assert space == (end < len(text) and text[end] == " ")
        torn = start > 0 and text[start - 1] != " " and text[start] in "ำ้ि्"
        assert not torn


def test_real_texts_are_cut_at_their_answers():
    test = load_protocol("demo").tests[0]
    for language, questions in test.questions.items():
        for q in questions[::10]:
            span = q.answers[0].start, q.answers[0].end
            pieces = [q.context[start:end] for start, end, _ in units(q.context, span) if span[0] <= start < span[1]]
            joined = "".join(pieces)
            exact = joined == q.answers[0].text.replace(" ", "")
            assert exact or (language in ("ar", "hi") and joined.startswith(q.answers[0].text.split()[0])), (
                language,
                q.id,
            )


def test_no_line_begins_with_a_closing_mark():
    target = Question("q", "问", "很冷，" * 80, (Answer("冷", 1),))
    case = Case("success", "zh", target, target, "", dict.fromkeys(READ, "冷"), dict.fromkeys(READ, 100.0), 1)
    places = {}
    for text in case_picture([case]).axes[0].texts:
        x, y = text.get_position()
        places.setdefault((x > 825, y), []).append((x, text.get_text()))
    firsts = [min(line)[1] for line in places.values()]
    assert firsts.count("很") + firsts.count("冷") > 8 and "，" not in firsts


@pytest.mark.parametrize("language", ["de", "ar", "zh"])
def test_a_picture_shows_every_word_and_mark(language):
    test = load_protocol("demo").tests[0]
    source, target = test.source[0], test.questions[language][0]
    texts = dict.fromkeys(READ, target.answers[0].text)
    case = Case("success", language, source, target, "", texts, dict.fromkeys(READ, 100.0), 1)
    axes = case_picture([case, case]).axes[0]
    words = [text for text in axes.texts if text.get_position()[0] > axes.get_xlim()[1] / 2]  # the target's side
    assert len(words) > 2 * len(list(units(target.context, [])))
    shown = "".join(text.get_text() for text in axes.texts)
    assert shown.count(target.context.replace(" ", "")) == 2 and shown.count(source.context.replace(" ", "")) == 2
    # gold in the source; gold, target, teacher and calibrated in the target: one mark each, for they end on one line
    assert len(axes.patches) == 2 * (1 + 4)
    start, end, _ = next(units(target.context, []))
    first = next(text for text in words if text.get_text() == target.context[start:end])
    line = [text.get_position()[0] for text in words if text.get_position()[1] == first.get_position()[1]]
    assert first.get_position()[0] == (max(line) if language in RIGHT_TO_LEFT else min(line))
    right = max(text.get_position()[0] for text in axes.texts)
    assert right < axes.get_xlim()[1]
