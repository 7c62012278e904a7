"""What must hold for any input: who depends on whom, where gradients go, and what must change nothing."""

import logging
from collections.abc import Iterable
from typing import Any

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.toy import (
    HIDDEN,
    PRESETS,
    VOCABULARY,
    more_padding,
    pair_batch,
    ragged_mask,
    tiny_model,
    trained_statistics,
    twin,
    without_gold,
)
from xsta_lib.aligning import sentence_alignment
from xsta_lib.configuration import ABLATIONS
from xsta_lib.modeling import Encoded, XStaForQuestionAnswering
from xsta_lib.sharing import SharingContext
from xsta_lib.teaching import RepresentationNorm, teacher_loss

FEW = settings(max_examples=6, deadline=None, derandomize=True, phases=[Phase.generate])
SEEDS = st.integers(0, 10_000)
LENGTHS = st.lists(st.integers(3, 12), min_size=4, max_size=4)
DISTRIBUTIONS = ("target", "teacher", "calibrated")


def english(model: XStaForQuestionAnswering, batch: dict[str, Any]) -> Encoded:
    """The source's own pass."""
    return model.encode(batch["source"]["input_ids"], batch["source"]["attention_mask"], "en")


def target_pass(model: XStaForQuestionAnswering, batch: dict[str, Any], source: Encoded | None) -> Encoded:
    """The target's pass."""
    return model.encode(batch["input_ids"], batch["attention_mask"], batch["language"], source)


def random_states(seed: int, lengths: Iterable[int]) -> tuple[Tensor, Tensor]:
    """Random states (B, N, H) and their mask."""
    mask = ragged_mask(list(lengths))
    return torch.randn(*mask.shape, HIDDEN, generator=torch.Generator().manual_seed(seed)), mask


# The source does not depend on the target


@pytest.mark.parametrize("preset", ["paper", "release"])
@FEW
@given(seed=SEEDS)
def test_the_source_is_the_same_whatever_the_target(preset: str, seed: int) -> None:
    """The source's span loss does not change with the target or its language; nor do the source's states."""
    model = tiny_model(preset)
    batch, other = pair_batch(seed), pair_batch(seed + 1, language="es")
    other["source"] = batch["source"]
    assert torch.equal(model(**batch).losses["source"], model(**other).losses["source"])
    before = english(model, batch)
    target_pass(model, batch, before)
    after = english(model, batch)
    assert torch.equal(before.logits, after.logits) and torch.equal(before.layer_input, after.layer_input)


# Gradients


@pytest.mark.parametrize(("mode", "reaches"), [("gdks", False), ("cross-attention", True)])
@pytest.mark.parametrize("keep", [True, False], ids=["softmax", "sdpa"])
def test_gradient_promise_of_the_cross_attention(mode: str, reaches: bool, keep: bool) -> None:
    """With GDKS nothing flows into h_S; without it, it does. The correction learns, the query sees h_T."""
    module = tiny_model(sharing=mode).sharing_layer
    (h_s, m_s), (h_t, m_t) = random_states(0, [5, 7]), random_states(1, [6, 4])
    h_s.requires_grad_(), h_t.requires_grad_()
    weights = torch.randn(2, 6, HIDDEN)
    (module.cross_attention(h_t, SharingContext(m_t, h_s, m_s, keep_attention=keep)) * weights).sum().backward()
    assert (h_s.grad is not None and h_s.grad.abs().sum() > 0) == reaches
    assert h_t.grad.abs().sum() > 0
    assert module.key.weight.grad.abs().sum() > 0 and module.value.weight.grad.abs().sum() > 0
    if mode == "gdks":
        assert module.correction.weight.grad[:, :HIDDEN].abs().sum() > 0
        assert module.correction.weight.grad[:, HIDDEN:].abs().sum() > 0


def test_the_correction_stops_the_targets_gradient_too() -> None:
    """f reads sg(h_T): once the query ignores h_T, no gradient reaches it."""
    module = tiny_model().sharing_layer
    torch.nn.init.zeros_(module.query.weight)
    (h_s, m_s), (h_t, m_t) = random_states(0, [5, 7]), random_states(1, [6, 4])
    h_t.requires_grad_()
    module.cross_attention(h_t, SharingContext(m_t, h_s, m_s)).square().sum().backward()
    assert h_t.grad.abs().sum() == 0


def gradient_of_source_words(model: XStaForQuestionAnswering) -> float:
    """Size of the loss's gradient at the embeddings of the source's tokens, which the target does not use."""
    model(**pair_batch()).loss.backward()
    return model.encoder.embeddings.word_embeddings.weight.grad[5 : VOCABULARY // 2].abs().sum().item()


@pytest.mark.parametrize(
    ("changes", "reaches"),
    [
        ({}, False),
        ({"sharing": "cross-attention"}, True),
        ({"gamma": 1.0}, True),
        ({"zeta": 1.0}, True),
        ({"eta": 1.0}, True),
        ({"alpha": 0.5}, True),
        ({"gamma": 1.0, "teacher_gradient": False}, False),
    ],
    ids=str,
)
def test_what_reaches_the_source_in_a_whole_model(changes: dict[str, Any], reaches: bool) -> None:
    """The target's span loss does not; the teacher's and both alignment losses do."""
    model = tiny_model(**({"alpha": 0.0, "gamma": 0.0, "zeta": 0.0, "eta": 0.0} | changes))
    assert (gradient_of_source_words(model) > 0) == reaches


@pytest.mark.parametrize("form", ["renormalised", "raw", "logits"])
def test_the_teachers_values_carry_no_gradient(form: str) -> None:
    """sg(p_S): the teacher's loss trains its projections and the encoder, never the span head."""
    calibration = "none" if form == "raw" else "probabilities"
    model, batch = tiny_model(teacher=form, calibration=calibration), pair_batch()
    source = english(model, batch)
    p = model.teach(target_pass(model, batch, source), source)[0]
    loss = teacher_loss(p, batch["start_positions"], batch["end_positions"], torch.ones(4))
    loss.backward()
    assert model.qa_outputs.weight.grad is None
    assert model.teacher.query.weight.grad.abs().sum() > 0 and model.teacher.key.weight.grad.abs().sum() > 0


# S = T and lambda = 1


@pytest.mark.parametrize("sharing", ["gdks", "cross-attention"])
@pytest.mark.parametrize("kind", ["bert", "xlm-roberta"])
def test_without_a_source_the_layer_is_plain_bit_for_bit(kind: str, sharing: str) -> None:
    """S = T: a model that shares equals a plain one of the same weights."""
    model = tiny_model("paper", kind, sharing=sharing).eval()
    plain = tiny_model("plain", kind).eval()
    plain.load_state_dict({name: model.state_dict()[name] for name in plain.state_dict()})
    batch = pair_batch(kind=kind)
    side = batch["input_ids"], batch["attention_mask"]
    ours, theirs = model.encode(*side, "de"), plain.encode(*side, "de")
    assert torch.equal(ours.states, theirs.states) and torch.equal(ours.logits, theirs.logits)


@pytest.mark.parametrize("sharing", ["gdks", "cross-attention"])
def test_with_lambda_one_the_source_has_no_weight(sharing: str) -> None:
    """w = 0 and b = 1 leave the target's own attention."""
    model, batch = tiny_model(sharing=sharing).eval(), pair_batch()
    with torch.no_grad():
        model.sharing_layer.mixing_weight.zero_()
        model.sharing_layer.mixing_bias.fill_(1.0)
    shared, plain = target_pass(model, batch, english(model, batch)), target_pass(model, batch, None)
    torch.testing.assert_close(shared.states, plain.states, rtol=0, atol=1e-6)


# Padding and order


def compare_outputs(one: Any, other: Any, rows: Tensor, width: int) -> None:
    """The distributions of two outputs agree within 1e-5, those of ``one`` with rows reordered."""
    for name in DISTRIBUTIONS:
        if name in one:
            torch.testing.assert_close(one[name][rows], other[name][:, :width], rtol=0, atol=1e-5)
            assert (other[name][:, width:] == 0).all()


@pytest.mark.parametrize("kind", ["bert", "xlm-roberta"])
@pytest.mark.parametrize("preset", list(PRESETS))
@FEW
@given(seed=SEEDS, lengths=st.tuples(LENGTHS, LENGTHS), extra=st.tuples(st.integers(0, 9), st.integers(0, 9)))
def test_more_padding_changes_nothing(preset: str, kind: str, seed: int, lengths: tuple, extra: tuple) -> None:
    """On either side; only the release's token alignment counts padding, as its code does."""
    batch = pair_batch(seed, kind, *lengths)
    padded = more_padding(batch, extra[0], kind)
    padded["source"] = more_padding(batch["source"], extra[1], kind)
    model = tiny_model(preset, kind)
    one, other = twin(model)(**batch), twin(model)(**padded)
    terms = [name for name in one.losses if not (preset == "release" and name == "token")]
    for name in terms:
        torch.testing.assert_close(one.losses[name], other.losses[name], rtol=1e-5, atol=1e-5)
    if preset != "release":
        torch.testing.assert_close(one.loss, other.loss, rtol=1e-5, atol=1e-5)
    model = trained_statistics(model, kind)
    rows, width = torch.arange(4), batch["input_ids"].shape[1]
    compare_outputs(model(**without_gold(batch)), model(**without_gold(padded)), rows, width)


def reorder(batch: dict[str, Any], rows: Tensor) -> dict[str, Any]:
    """The batch with its rows in another order."""
    moved = {name: value[rows] if isinstance(value, Tensor) else value for name, value in batch.items()}
    return moved | {"source": {name: value[rows] for name, value in batch["source"].items()}}


@pytest.mark.parametrize("preset", ["paper", "release"])
@FEW
@given(seed=SEEDS, order=st.permutations(range(4)))
def test_reordering_a_batch_reorders_the_outputs(preset: str, seed: int, order: list[int]) -> None:
    """The losses stay, the distributions move with their rows."""
    batch, rows = pair_batch(seed), torch.tensor(order)
    moved = reorder(batch, rows)
    model = tiny_model(preset)
    one, other = twin(model)(**batch), twin(model)(**moved)
    for name in one.losses:
        torch.testing.assert_close(one.losses[name], other.losses[name], rtol=1e-5, atol=1e-5)
    model = trained_statistics(model)
    compare_outputs(model(**without_gold(batch)), model(**without_gold(moved)), rows, batch["input_ids"].shape[1])


def test_rows_do_not_see_each_other_at_test_time() -> None:
    """A row alone gets the answer it gets in a batch."""
    model, batch = trained_statistics(tiny_model()), without_gold(pair_batch())
    alone = reorder(batch, torch.tensor([2]))
    torch.testing.assert_close(model(**alone).calibrated, model(**batch).calibrated[2:3], rtol=0, atol=1e-6)


# Sentence alignment


@FEW
@given(seed=SEEDS)
def test_another_window_of_a_question_is_no_negative(seed: int) -> None:
    """The gradient of the first anchor does not depend on its second window's vector, unless it is another question."""
    generator = torch.Generator().manual_seed(seed)
    source, target, changed = torch.randn(3, 4, HIDDEN, generator=generator)
    changed = torch.where(torch.arange(4)[:, None] == 1, changed, target)

    def gradient(vectors: Tensor, ids: list[int]) -> Tensor:
        anchors = source.clone().requires_grad_()
        return torch.autograd.grad(sentence_alignment(anchors, vectors, torch.tensor(ids), 1.0), anchors)[0][0]

    torch.testing.assert_close(gradient(target, [0, 0, 1, 2]), gradient(changed, [0, 0, 1, 2]), rtol=1e-5, atol=1e-7)
    assert (gradient(target, [0, 3, 1, 2]) - gradient(changed, [0, 3, 1, 2])).abs().max() > 1e-6


def test_windows_of_one_question_alone_have_no_loss() -> None:
    """No negatives: -log 1."""
    vectors = torch.randn(2, 3, HIDDEN)
    assert sentence_alignment(*vectors, torch.zeros(3, dtype=torch.long)).item() == pytest.approx(0.0, abs=1e-6)


# Rep-Norm


@FEW
@given(seed=SEEDS, lengths=st.lists(st.integers(2, 12), min_size=1, max_size=5))
def test_normalised_states_have_mean_0_and_variance_1(seed: int, lengths: list[int]) -> None:
    """Over the real tokens of each language's batch."""
    norm = RepresentationNorm(HIDDEN, ["en", "de"])
    for language, shift in (("en", -3.0), ("de", 4.0)):
        states, mask = random_states(seed, [length + 6 for length in lengths])
        tokens = norm(states * 5 + shift, mask, language)[mask.bool()]
        torch.testing.assert_close(tokens.mean(0), torch.zeros(HIDDEN), rtol=0, atol=1e-5)
        torch.testing.assert_close(tokens.var(0, unbiased=False), torch.ones(HIDDEN), rtol=0, atol=1e-4)


def test_running_averages_are_per_language() -> None:
    """Training on one language leaves the others' as they are; with shared statistics there is one set."""
    states, mask = random_states(0, [8, 5])
    norm = RepresentationNorm(HIDDEN, ["en", "de", "es"])
    norm(states + 2, mask, "de")
    assert norm.updates.tolist() == [0, 1, 0]
    assert (norm.running_mean[[0, 2]] == 0).all() and (norm.running_var[[0, 2]] == 1).all()
    assert (norm.running_mean[1] != 0).all()
    shared = RepresentationNorm(HIDDEN, ["en", "de", "es"], shared=True)
    shared(states, mask, "de"), shared(states, mask, "sw")
    assert shared.running_mean.shape == (1, HIDDEN) and shared.updates.tolist() == [2]


def test_one_batch_is_enough_for_its_own_statistics() -> None:
    """After one training pass inference normalises the same batch as training did: no share of the start is left."""
    states, mask = random_states(0, [8, 5])
    norm = RepresentationNorm(HIDDEN, ["en", "de"])
    trained = norm(3 * states + 2, mask, "de")
    torch.testing.assert_close(norm.eval()(3 * states + 2, mask, "de"), trained, rtol=1e-4, atol=1e-4)


def test_a_model_updates_each_side_of_a_pair_once() -> None:
    """One update a training pass for the source and one for the target; English rows count for English."""
    model = tiny_model()
    model(**pair_batch(language="es"))
    source = pair_batch()["source"]
    model(source["input_ids"], source["attention_mask"])
    assert dict(zip(model.normalisation.languages, model.normalisation.updates.tolist(), strict=True)) == {
        "en": 2,
        "de": 0,
        "es": 1,
    }
    model.eval()(**without_gold(pair_batch()))
    assert model.normalisation.updates.sum() == 3


def test_an_unknown_language_uses_the_trained_targets_and_says_so_once(caplog: pytest.LogCaptureFixture) -> None:
    """English stands in only where no target was trained on; training on an unannounced language is an error."""
    norm = RepresentationNorm(HIDDEN, ["en", "de", "es", "zh"])
    states, mask = random_states(0, [8, 5])
    norm(states, mask, "en")
    torch.testing.assert_close(norm.stored_statistics("sw")[0], norm.running_mean[0] / 0.1)  # one update: 0.9 is start
    norm(states + 3, mask, "de"), norm(states * 2, mask, "es")
    caplog.clear()
    norm.eval()
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            result = norm(states, mask, "th")
        norm(states, mask, "zh")  # announced but never trained on
        norm(states, mask, "de")
    mean, variance = norm.running_mean[1:3].mean(0) / 0.1, (norm.running_var[1:3].mean(0) - 0.9) / 0.1
    torch.testing.assert_close(result, (states - mean) / (variance + 1e-8).sqrt())
    warned = [record.getMessage() for record in caplog.records]
    assert len(warned) == 2 and "'th'" in warned[0] and "'zh'" in warned[1] and "de, es" in warned[0]
    with pytest.raises(ValueError, match="'th'.*'en', 'de'"):
        norm.train()(states, mask, "th")


# Distributions


@pytest.mark.parametrize(
    ("preset", "changes"),
    [
        *((preset, {}) for preset in PRESETS),
        *((preset, {"without": [name]}) for preset in ("paper", "release") for name in ABLATIONS),
        ("paper", {"normalisation": "shared"}),
        ("paper", {"calibration": "logits"}),
    ],
    ids=str,
)
@FEW
@given(seed=SEEDS, lengths=st.tuples(LENGTHS, LENGTHS))
def test_calibrated_probabilities_are_distributions(preset: str, changes: dict, seed: int, lengths: tuple) -> None:
    """They sum to 1 over the target's real tokens and are 0 on padding."""
    model = trained_statistics(tiny_model(preset, **changes))
    batch = without_gold(pair_batch(seed, "bert", *lengths))
    output = model(**batch)
    real = batch["attention_mask"][..., None].bool()
    for name in DISTRIBUTIONS:
        if name in output:
            torch.testing.assert_close((output[name] * real).sum(1), torch.ones(4, 2), rtol=0, atol=1e-5)
            assert (output[name].masked_select(~real) == 0).all() and (output[name] >= 0).all()
