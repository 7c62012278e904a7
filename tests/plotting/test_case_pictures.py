"""Marked answers: nothing torn, nothing lost, right to left where it must be."""

from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xsta_lib.data.protocols import load_protocol
from xsta_lib.data.squad import Answer, Question
from xsta_lib.experiments.inspection import READ, Case
from xsta_lib.plotting.cases import case_picture, highlight, locate, units


def test_highlight_marks_the_gold_answer_and_escapes():
    question = Question("1", "Who <b>?", "Ada & Bob met Ada.", (Answer("Ada", 14),))
    text = highlight(question, "en")
    assert "Who &lt;b&gt;?" in text and "&amp; Bob met <span" in text and text.count("<span") == 1
    assert 'dir="ltr"' in text and "<span" not in highlight(replace(question, answers=()), "en")


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
            part = language in ("ar", "hi") and joined.startswith(q.answers[0].text.split()[0])
            assert exact or part, (language, q.id)


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
    assert first.get_position()[0] == (max(line) if language == "ar" else min(line))
    right = max(text.get_position()[0] for text in axes.texts)
    assert right < axes.get_xlim()[1]


@pytest.mark.parametrize("text", ["עדה ראתה את Bob", "«آدا باب را دید»", "Ada اور باب کا 3 دن"])
def test_hebrew_persian_and_urdu_run_from_right_to_left(text):
    words = text.split()
    target = Question("q", text, text, (Answer(words[0], 0),))
    case = Case("failure", "xx", target, target, "", dict.fromkeys(READ, ""), dict.fromkeys(READ, 0.0), 1)
    axes = case_picture([case]).axes[0]
    right = [text for text in axes.texts if text.get_position()[0] > axes.get_xlim()[1] / 2]  # the target's side
    drawn = [(text.get_position()[0], text.get_text()) for text in right if text.get_text() in words]
    for line in (drawn[: len(words)], drawn[len(words) :]):  # the question, the context
        assert [word for _, word in sorted(line, reverse=True)] == words


def test_a_large_language_models_answer_is_written_out_and_not_marked():
    target = Question("q", "Wer?", "Ada sah Bob.", (Answer("Ada", 0),))
    answers, f1 = dict.fromkeys(READ, "Bob"), dict.fromkeys(READ, 0.0)
    case = Case("failure", "de", target, target, "Bob", answers, f1, 1)
    asked = Case("failure", "de", target, target, "Bob", answers | {"llm big": "Ada."}, f1 | {"llm big": 100.0}, 1)
    plain, shown = (case_picture([one]).axes[0] for one in (case, asked))
    more = Counter(text.get_text() for text in shown.texts) - Counter(text.get_text() for text in plain.texts)
    assert more == Counter(["llm", "big", "(F1", "100)", "Ada."]) and len(shown.patches) == len(plain.patches)


def test_the_answer_to_the_source_shows_its_score():
    target = Question("q", "Wer?", "Ada sah Bob.", (Answer("Ada", 0),))
    case = Case("failure", "de", target, target, "Bob", dict.fromkeys(READ, "Bob"), dict.fromkeys(READ, 0.0), 1)
    scored = case_picture([replace(case, source_f1=40.0)]).axes[0]
    assert "40):" in [text.get_text() for text in scored.texts]


def test_a_source_without_gold_answer_has_no_marks():
    source = Question("q", "Who?", "Ada saw Bob.", ())
    target = Question("q", "Wer?", "Ada sah Bob.", (Answer("Ada", 0),))
    case = Case("failure", "de", source, target, "", dict.fromkeys(READ, "Bob"), dict.fromkeys(READ, 0.0), 1)
    axes = case_picture([case]).axes[0]
    middle = axes.get_xlim()[1] / 2
    assert len(axes.patches) == 4 and all(patch.get_x() > middle for patch in axes.patches)
    assert not any(text.get_text() == "source:" for text in axes.texts)  # of "answer to the source:"
