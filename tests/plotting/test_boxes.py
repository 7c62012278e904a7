"""The box says what is seen, and loudly where it is a fallback."""

import html

import pytest

from xsta_lib.experiments.results import load_all_results
from xsta_lib.plotting.boxes import TEXTS, TOY, model_box
from xsta_lib.plotting.style import VERMILION


def test_the_reader_in_the_box_is_named_with_its_training():
    text = model_box().data
    assert "x-sta-e5-small" in text and TEXTS["parallel"].replace("'", "&#x27;") in text
    assert "word embeddings frozen" in text and "seed 42" in text and VERMILION not in text


@pytest.mark.parametrize("protocol", ["demo", "parallel"])
def test_a_result_of_another_protocol_than_wanted_is_loud(protocol):
    result = load_all_results(protocol)[0]
    plain, loud = model_box(result).data, model_box(result, "paper-xquad").data
    assert "FALLBACK" not in plain and plain == model_box(result, protocol).data
    assert "FALLBACK" in loud and VERMILION in loud and "xsta train --protocol paper-xquad" in loud
    assert f"shown here is {protocol}, not paper-xquad" in loud
    named = model_box(result, "paper-xquad", "xsta grid --name layers").data
    assert "for that: 'xsta grid --name layers'" in html.unescape(named) and "xsta train" not in named
    assert (TOY in plain) == (protocol == "demo")
    assert f"seed {result['seed']}" in plain and result["method"] in plain
