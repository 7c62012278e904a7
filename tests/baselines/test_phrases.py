"""Phrases mined from questions and passages, and where they stand in windows."""

from dataclasses import replace
from pathlib import Path

import pytest
from toy import toy_protocol

from xsta_lib.baselines.phrases import (
    Passages,
    frequent_phrases,
    mine,
    ngrams,
    occurrences,
    training_passages,
    units_of,
)
from xsta_lib.data.protocols import ProtocolData, TestSet
from xsta_lib.data.squad import Question
from xsta_lib.data.windows import WindowSpec
from xsta_lib.encoders.backbones import load_tokenizer

QUERY = ["when", "did", "the", "red", "river", "valley", "flood"]
TITLES = [  # of seven: "red river" in 5, "river valley" in 4, "did the" in 7, "red river valley" in 4
    "did the red river valley rise",
    "did the red river valley fall",
    "did the red river valley freeze",
    "did the red river valley flood",
    "did the red river of the north flood",
    "did the blue valley flood",
    "did the green hill stand",
]


@pytest.mark.parametrize(
    ("share", "expected"), [(0.7, {"red river"}), (0.55, {"red river", "river valley", "red river valley"})]
)
def test_seven_titles_keep_what_seven_tenths_of_them_hold(share: float, expected: set[str]) -> None:
    """At 0.7 five of seven are enough and four are not; a stop word may not begin or end a phrase."""
    titles = [ngrams(title.split()) for title in TITLES]
    found = frequent_phrases(QUERY, titles, {"when", "did", "the"}, share)
    assert {" ".join(phrase) for phrase in found} == expected
    assert ("did", "the") in frequent_phrases(QUERY, titles, set())


def test_units_of_every_script() -> None:
    text = "Die U-Bahn: नई दिल्ली, 北京ABC กำลัง ١٢٣"
    units, chars = units_of(text)
    assert units[:8] == ["die", "u", "bahn", "नई", "दिल्ली", "北", "京", "abc"]
    assert [text[start:end].lower() for start, end in chars] == units and units[-1] == "١٢٣"
    assert "".join(units[8:-1]) == "กำลัง" and len(units) > 10


def test_mining_keeps_what_two_passages_hold() -> None:
    """A phrase that only one passage holds is none; nor is one in no question."""
    filler = [f"the nothing {chr(97 + i)} else{i}" for i in range(12)]
    passages = ["the grand canyon park opened", "a mule walks the grand canyon trail", "the zion park trail", *filler]
    assert mine(["where is the grand canyon", "who opened the park", "zion park"], passages) == {("grand", "canyon")}
    assert mine([], passages) == set() == mine(["the grand canyon"], ["..."])


def test_occurrences_take_the_longest_and_none_twice() -> None:
    phrases = {("a", "b"), ("a", "b", "c"), ("c", "d"), ("b", "c")}
    assert occurrences(["x", "a", "b", "c", "d", "b", "c", "a", "b"], phrases) == [(1, 3), (5, 6), (7, 8)]


def protocol_of(english: list[str], german: list[str]) -> ProtocolData:
    """Passages with one question each, which asks for the ``grand canyon``."""
    sides = {
        language: [Question(f"{i}", "grand canyon", text, ()) for i, text in enumerate(texts)]
        for language, texts in (("en", english), ("de", german))
    }
    held = TestSet("validation", "squad", {"en": [Question("t", "silver lake", "silver lake silver lake", ())]})
    return ProtocolData("toy", sides["en"], {"de": sides["de"]}, sides["en"], held, [held])


def passages_of(backbone: Path, spec: WindowSpec) -> list[Passages]:
    long = "Far a b c d. " * 6 + "The Grand Canyon is here. " + "e f g h. " * 9 + "grand canyon"
    texts = [long, "A grand canyon.", *(f"nothing {chr(97 + i)} zion" for i in range(12))]
    return training_passages(protocol_of(texts, texts[1:]), load_tokenizer(str(backbone)), spec)


def test_windows_know_their_phrases(backbone: Path) -> None:
    """Each occurrence, in every window that holds it whole, as tokens; no test text is read."""
    english, german = passages_of(backbone, WindowSpec(max_length=60, stride=8, max_question_length=4))
    windows, texts = english.part.target, []
    assert english.part.language == "en" and german.part.language == "de" and len(windows) > 14
    for index in range(len(windows)):
        texts += [windows.text(index, first, last) for first, last in english.tokens(index)]
        assert windows.context_start[index] == 3 and not windows.holds_answer[index]
    assert sorted(texts) == ["Grand Canyon", "grand canyon", "grand canyon"]
    assert sum(len(german.tokens(index)) for index in range(len(german.part.target))) == 0  # in one passage alone
    assert all("silver" not in text for text in windows.contexts)


def test_passages_are_those_of_training(backbone: Path) -> None:
    data = toy_protocol()
    data = replace(data, tests=[TestSet("test", "squad", {"en": [Question("t", "x", "Never read.", ())]})])
    found = training_passages(data, load_tokenizer(str(backbone)), WindowSpec())
    expected = [[q.context for q in part] for part in (data.train, data.parallel["de"])]
    assert [passages.part.target.contexts for passages in found] == expected
