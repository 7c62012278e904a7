"""The frames behind Figures 4 and 5: against plain NumPy on a tiny reader, and on vectors whose clusters are known."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from xsta_lib.data.protocols import load_protocol
from xsta_lib.model.configuration import XStaConfig
from xsta_lib.model.modeling import XStaForQuestionAnswering
from xsta_lib.plotting.lessons import distribution_lines, teacher_view
from xsta_lib.prediction.explaining import (
    SPACES,
    SentenceVectors,
    attention_entropy,
    cosines,
    explain,
    one_per_passage,
    own_means_out,
    piece_text,
    question_attention,
    question_places,
    sentence_vectors,
    silhouettes,
    tsne_frame,
)
from xsta_lib.prediction.predictor import Predictor


@pytest.fixture(scope="module")
def questions() -> dict:
    test = load_protocol("demo").tests[0]
    return {language: test.questions[language][:6] for language in ("en", "de", "zh")}


@pytest.fixture(scope="module")
def predictor(backbone) -> Predictor:
    torch.manual_seed(0)
    config = XStaConfig(sharing_layer=2)
    model, tokenizer = XStaForQuestionAnswering.from_backbone(str(backbone), config, ["en", "de", "zh"], 0.0)
    return Predictor(model.eval(), tokenizer, batch_size=4)


@pytest.fixture(scope="module")
def found(predictor, questions):
    return explain(predictor, questions["zh"][0], "zh", questions["en"][0])


def test_an_explanation_has_attentions_distributions_and_their_tokens(predictor, questions, found):
    n_target, n_source = len(found.target_tokens), len(found.source_tokens)
    assert found.cross_attention.shape == (2, n_target, n_source)
    assert found.teacher_attention.shape == (n_target, n_source)
    assert found.cross_attention.sum(-1) == pytest.approx(1, abs=1e-5)
    for p in (found.target, found.teacher, found.calibrated):
        assert p.shape == (n_target, 2) and p.sum(0) == pytest.approx(1, abs=1e-5)
    assert found.calibrated == pytest.approx((found.target + found.teacher) / 2, abs=1e-6)
    assert found.target_tokens[0] == "<s>" and found.answer in questions["zh"][0].context
    alone = explain(predictor, questions["zh"][0], "zh")
    assert alone.teacher is None and alone.cross_attention is None and alone.source_tokens == []


def test_an_explanation_is_printed_in_a_line(found):
    shown = repr(found)
    assert f"answer={found.answer!r}" in shown and "readings=" in shown and "array" not in shown and len(shown) < 800


def test_the_map_holds_the_questions_own_tokens(found, questions):
    frame = question_attention(found)
    assert "".join(frame.columns).replace("_", "") == questions["en"][0].question.replace(" ", "")
    assert "".join(frame.index).replace("_", "") == questions["zh"][0].question
    rows, columns = len(frame), frame.shape[1]
    expected = found.cross_attention[:, 1 : 1 + rows, 1 : 1 + columns].sum(0) / len(found.cross_attention)
    np.testing.assert_allclose(frame.to_numpy(), expected, rtol=1e-6)


def test_special_tokens_of_either_kind_are_no_question_tokens():
    assert question_places(["<s>", "▁a", "?", "</s>", "</s>", "▁b"], 5) == [1, 2]
    assert question_places(["[CLS]", "a", "[", "]", "[SEP]", "b"], 5) == [1, 2, 3]


def test_entropy_is_that_of_the_question_tokens(found):
    places = question_places(found.target_tokens, found.target_context_start)
    p = found.cross_attention.mean(0)[places]
    expected = np.mean([-sum(value * np.log(value) for value in row if value > 0) for row in p])
    assert attention_entropy(found) == pytest.approx(expected, rel=1e-5)
    assert 0 < attention_entropy(found) <= np.log(len(found.source_tokens))


def test_sentence_vectors_are_means_over_real_tokens(predictor, questions):
    vectors = sentence_vectors(predictor, questions)
    assert sorted(set(vectors.languages)) == ["de", "en", "zh"] and len(set(vectors.examples)) == 6
    windows = predictor.windows([questions["de"][3]])
    ids = torch.tensor(windows.input_ids[0].astype(np.int64))[None]
    with torch.no_grad():
        encoded = predictor.model.encode(ids, torch.ones_like(ids), language="de")
    row = int(np.flatnonzero((vectors.languages == "de") & (vectors.examples == questions["de"][3].id))[0])
    for space, states in zip(SPACES, (encoded.states, encoded.normalised), strict=True):
        np.testing.assert_allclose(vectors.spaces[space][row], states[0].mean(0), atol=1e-5)


@pytest.fixture(scope="module")
def known() -> SentenceVectors:
    """Four languages and ten examples: the first space clusters by language alone, the second by example alone."""
    rng = np.random.default_rng(0)
    languages, examples = np.repeat(list("abcd"), 10), np.tile(np.arange(10).astype(str), 4)
    axes = np.eye(14)
    by_language = axes[np.repeat(np.arange(4), 10)] + 0.01 * rng.normal(size=(40, 14))
    by_example = axes[4 + np.tile(np.arange(10), 4)] + 0.01 * rng.normal(size=(40, 14))
    return SentenceVectors(languages, examples, dict(zip(SPACES, (by_language, by_example), strict=True)))


def test_silhouettes_tell_what_vectors_cluster_by(known):
    scores = silhouettes(known)
    assert scores.loc[SPACES[0], "by language"] > 0.9 > 0 > scores.loc[SPACES[0], "by example"]
    assert scores.loc[SPACES[1], "by example"] > 0.9 > 0 > scores.loc[SPACES[1], "by language"]


def test_without_their_own_means_languages_do_not_cluster(known):
    own = own_means_out(known)
    ((_, x),) = own.spaces.items()
    np.testing.assert_allclose([x[own.languages == language].mean(0) for language in "abcd"], 0, atol=1e-12)
    assert silhouettes(own)["by language"].iloc[0] < 0 and known.spaces[SPACES[0]].mean() > 0.01  # untouched


def test_cosines_are_those_of_translations_and_of_other_questions(known):
    found = cosines(known)
    assert found.loc[SPACES[0]].to_numpy() == pytest.approx([0, 0], abs=0.01)  # one axis a language
    assert found.loc[SPACES[1]].to_numpy() == pytest.approx([1, 0], abs=0.01)  # one axis an example
    x = known.spaces[SPACES[0]]
    pairs = [(i, j) for i in range(40) for j in range(40) if i % 10 == j % 10 and i != j]
    expected = np.mean([x[i] @ x[j] / np.linalg.norm(x[i]) / np.linalg.norm(x[j]) for i, j in pairs])
    assert found.loc[SPACES[0], "translations"] == pytest.approx(expected)


def test_one_question_of_each_passage_in_every_language():
    questions = load_protocol("demo").tests[0].questions
    chosen = one_per_passage(questions, 10)
    ids = [[question.id for question in part] for part in chosen.values()]
    assert len(ids) == 7 and all(part == ids[0] for part in ids) and len(set(ids[0])) == 10
    assert all(len({question.context for question in part}) == 10 for part in chosen.values())
    assert len(one_per_passage(questions, 99)["hi"]) == 16  # all passages


def test_tsne_keeps_clusters_and_is_the_same_again(known):
    frame = tsne_frame(known)
    assert list(frame.columns) == ["space", "language", "example", "x", "y"] and len(frame) == 80
    first = frame[frame["space"] == SPACES[0]]
    within = first.groupby("language")[["x", "y"]].std().to_numpy().mean()
    assert within < first[["x", "y"]].std().mean() / 2
    assert frame.equals(tsne_frame(known))


def test_pictures_draw_the_explanations_values(found):
    near = distribution_lines(found, 1, around=2).axes[0]
    low, high = (int(edge) for edge in (near.get_xlim()[0] + 0.5, near.get_xlim()[1] - 0.5))
    assert high - low <= 4 and low <= found.calibrated[:, 1].argmax() <= high
    names = [piece_text(found.target_tokens[place]) for place in range(low, high + 1)]
    assert [label.get_text() for label in near.get_xticklabels()] == names
    lines = distribution_lines(found, 1).axes[0].lines
    assert [line.get_label() for line in lines] == ["target", "calibrated", "teacher"]
    assert {line.get_marker() for line in lines} == {"None"}  # of a whole window they would hide the lines below
    assert {line.get_marker() for line in near.lines} == set("oDs")
    np.testing.assert_allclose(lines[1].get_ydata(), (found.target[:, 1] + found.teacher[:, 1]) / 2, atol=1e-6)
    alone = replace(found, teacher=None, calibrated=found.target)
    two = distribution_lines(alone).axes[0].lines
    looks = [(line.get_label(), line.get_color(), line.get_linestyle()) for line in (*two, *lines[:2])]
    assert looks[:2] == looks[2:]  # each keeps its look
    heights = [bar.get_height() for bar in teacher_view(found).axes[0].patches]
    np.testing.assert_allclose(heights, found.teacher_attention[:, found.source[:, 0].argmax()], atol=1e-6)
