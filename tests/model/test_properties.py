"""What must hold for any input: who depends on whom, where gradients go, and what must change nothing."""

import logging
from collections.abc import Iterable
from typing import Any

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor
from toy import (
    HIDDEN,
    KINDS,
    PAIRED,
    PRESETS,
    VOCABULARY,
    both_passes,
    gradients,
    more_padding,
    pair_batch,
    ragged_mask,
    source_pass,
    target_pass,
    tiny_model,
    trained_statistics,
    twin,
    without_gold,
)

from xsta_lib.model.aligning import sentence_alignment
from xsta_lib.model.configuration import ABLATIONS
from xsta_lib.model.sharing import SharingContext
from xsta_lib.model.teaching import RepresentationNorm, teacher_loss

FEW = settings(max_examples=6, deadline=None, derandomize=True, phases=[Phase.generate])
SEEDS = st.integers(0, 10_000)
LENGTHS = st.lists(st.integers(3, 12), min_size=4, max_size=4)
DISTRIBUTIONS = ("target", "teacher", "calibrated")


def random_states(seed: int, lengths: Iterable[int]) -> tuple[Tensor, Tensor]:
    """Random states (B, N, H) and their mask."""
    mask = ragged_mask(list(lengths))
    return torch.randn(*mask.shape, HIDDEN, generator=torch.Generator().manual_seed(seed)), mask


# The source does not depend on the target


@pytest.mark.parametrize("preset", [*PAIRED, "mixup"])
@FEW
@given(seed=SEEDS)
def test_the_source_is_the_same_whatever_the_target(preset: str, seed: int) -> None:
    model = tiny_model(preset)
    batch, other = pair_batch(seed), pair_batch(seed + 1, language="es")
    other["source"] = batch["source"]
    before = source_pass(model, batch)
    assert torch.equal(both_passes(model, batch).losses["source"], both_passes(model, other).losses["source"])
    after = source_pass(model, batch)
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


@pytest.mark.parametrize(
    ("preset", "changes", "reaches"),
    [
        ("paper", {}, False),
        ("paper", {"sharing": "cross-attention"}, True),
        ("paper", {"gamma": 1.0}, True),
        ("paper", {"zeta": 1.0}, True),
        ("paper", {"eta": 1.0}, True),
        ("paper", {"alpha": 0.5}, True),
        ("paper", {"gamma": 1.0, "teacher_gradient": False}, False),
        ("mixup", {"distance": 0.0}, True),
    ],
    ids=str,
)
def test_what_reaches_the_source_in_a_whole_model(preset: str, changes: dict[str, Any], reaches: bool) -> None:
    """The target's span loss does not, but in X-MIXUP; the teacher's and both alignment losses do."""
    model = tiny_model(preset, **({"alpha": 0.0, "gamma": 0.0, "zeta": 0.0, "eta": 0.0} | changes))
    words = gradients(model, pair_batch())["encoder.embeddings.word_embeddings.weight"]
    assert (words[5 : VOCABULARY // 2].abs().sum() > 0) == reaches  # the source's tokens, which the target lacks
    assert model.sharing_layer.mixing_weight.grad.abs() > 0 and model.sharing_layer.mixing_bias.grad.abs() > 0


@pytest.mark.parametrize("form", ["renormalised", "raw", "logits"])
def test_the_teachers_values_carry_no_gradient(form: str) -> None:
    """sg(p_S): the teacher's loss trains its projections and the encoder, never the span head."""
    calibration = "none" if form == "raw" else "probabilities"
    model, batch = tiny_model(teacher=form, calibration=calibration), pair_batch()
    source = source_pass(model, batch)
    p = model.teach(target_pass(model, batch, source), source).p
    loss = teacher_loss(p, batch["start_positions"], batch["end_positions"], torch.ones(4))
    loss.backward()
    assert model.qa_outputs.weight.grad is None
    assert model.teacher.query.weight.grad.abs().sum() > 0 and model.teacher.key.weight.grad.abs().sum() > 0


# S = T and lambda = 1


@pytest.mark.parametrize(
    ("preset", "changes"), [("paper", {}), ("paper", {"sharing": "cross-attention"}), ("mixup", {})], ids=str
)
@pytest.mark.parametrize("kind", KINDS)
def test_without_a_source_the_model_is_plain_bit_for_bit(kind: str, preset: str, changes: dict[str, Any]) -> None:
    model, plain = tiny_model(preset, kind, dropout=0.1, **changes), tiny_model("plain", kind, dropout=0.1)
    plain.load_state_dict({name: model.state_dict()[name] for name in plain.state_dict()})
    batch = pair_batch(kind=kind)
    del batch["source"]
    outputs = []
    for either in (model, plain):
        torch.manual_seed(5)
        outputs.append(either(**batch))
        assert outputs[-1].mixing is None and set(outputs[-1].losses) == {"target"}
    assert torch.equal(outputs[0].loss, outputs[1].loss)
    assert torch.equal(outputs[0].start_logits, outputs[1].start_logits)


@pytest.mark.parametrize("sharing", ["gdks", "cross-attention"])
def test_with_lambda_one_the_source_has_no_weight(sharing: str) -> None:
    model, batch = tiny_model(sharing=sharing).eval(), pair_batch()
    with torch.no_grad():
        model.sharing_layer.mixing_weight.zero_()
        model.sharing_layer.mixing_bias.fill_(1.0)
    shared, plain = target_pass(model, batch, source_pass(model, batch)), target_pass(model, batch, None)
    torch.testing.assert_close(shared.states, plain.states, rtol=0, atol=1e-6)


# Padding and order


def compare_outputs(one: Any, other: Any, rows: Tensor, width: int) -> None:
    """The distributions of two outputs agree within 1e-5, those of ``one`` with rows reordered."""
    for name in DISTRIBUTIONS:
        if name in one:
            torch.testing.assert_close(one[name][rows], other[name][:, :width], rtol=0, atol=1e-5)
            assert (other[name][:, width:] == 0).all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("preset", list(PRESETS))
@FEW
@given(seed=SEEDS, lengths=st.tuples(LENGTHS, LENGTHS), extra=st.tuples(st.integers(0, 9), st.integers(0, 9)))
def test_more_padding_changes_nothing(preset: str, kind: str, seed: int, lengths: tuple, extra: tuple) -> None:
    """On either side; only the release's token alignment counts padding, as its code does."""
    batch = pair_batch(seed, kind, *lengths)
    padded = more_padding(batch, extra[0], kind)
    padded["source"] = more_padding(batch["source"], extra[1], kind)
    model = tiny_model(preset, kind)
    one, other = both_passes(twin(model), batch), both_passes(twin(model), padded)
    terms = [name for name in one.losses if not (preset == "release" and name == "token")]
    for name in terms:
        torch.testing.assert_close(one.losses[name], other.losses[name], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(one.mixing, other.mixing, rtol=1e-5, atol=1e-5)
    if preset != "release":
        torch.testing.assert_close(one.loss, other.loss, rtol=1e-5, atol=1e-5)
    model = trained_statistics(model, kind)
    rows, width = torch.arange(4), batch["input_ids"].shape[1]
    one, other = (both_passes(model, without_gold(side)) for side in (batch, padded))
    compare_outputs(one, other, rows, width)


def reorder(batch: dict[str, Any], rows: Tensor) -> dict[str, Any]:
    """The batch with its rows in another order."""
    moved = {name: value[rows] if isinstance(value, Tensor) else value for name, value in batch.items()}
    return moved | {"source": {name: value[rows] for name, value in batch["source"].items()}}


@pytest.mark.parametrize("preset", PAIRED)
@FEW
@given(seed=SEEDS, order=st.permutations(range(4)))
def test_reordering_a_batch_reorders_the_outputs(preset: str, seed: int, order: list[int]) -> None:
    batch, rows = pair_batch(seed), torch.tensor(order)
    moved = reorder(batch, rows)
    model = tiny_model(preset)
    one, other = both_passes(twin(model), batch), both_passes(twin(model), moved)
    for name in one.losses:
        torch.testing.assert_close(one.losses[name], other.losses[name], rtol=1e-5, atol=1e-5)
    model = trained_statistics(model)
    one, other = (both_passes(model, without_gold(side)) for side in (batch, moved))
    compare_outputs(one, other, rows, batch["input_ids"].shape[1])


# Sentence alignment


@FEW
@given(seed=SEEDS)
def test_another_window_of_a_question_is_no_negative(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    source, target, changed = torch.randn(3, 4, HIDDEN, generator=generator)
    changed = torch.where(torch.arange(4)[:, None] == 1, changed, target)

    def gradient(vectors: Tensor, passages: Tensor | None) -> Tensor:
        anchors = source.clone().requires_grad_()
        return torch.autograd.grad(sentence_alignment(anchors, vectors, passages, 1.0), anchors)[0][0]

    same = torch.tensor([0, 0, 1, 2])
    torch.testing.assert_close(gradient(target, same), gradient(changed, same), rtol=1e-5, atol=1e-7)
    for other in (torch.tensor([0, 3, 1, 2]), None):
        assert (gradient(target, other) - gradient(changed, other)).abs().max() > 1e-6


# Rep-Norm


@FEW
@given(seed=SEEDS, lengths=st.lists(st.integers(2, 12), min_size=1, max_size=5))
def test_normalised_states_have_mean_0_and_variance_1(seed: int, lengths: list[int]) -> None:
    norm = RepresentationNorm(HIDDEN, ["en", "de"])
    for language, shift in (("en", -3.0), ("de", 4.0)):
        states, mask = random_states(seed, [length + 6 for length in lengths])
        tokens = norm(states * 5 + shift, mask, language)[mask.bool()]
        torch.testing.assert_close(tokens.mean(0), torch.zeros(HIDDEN), rtol=0, atol=1e-5)
        torch.testing.assert_close(tokens.var(0, unbiased=False), torch.ones(HIDDEN), rtol=0, atol=1e-4)


def test_running_averages_are_per_language() -> None:
    states, mask = random_states(0, [8, 5])
    norm = RepresentationNorm(HIDDEN, ["en", "de", "es"])
    norm(states + 2, mask, "de")
    assert norm.updates.tolist() == [0, 1, 0]
    assert (norm.running_mean[[0, 2]] == 0).all() and (norm.running_var[[0, 2]] == 1).all()
    assert (norm.running_mean[1] != 0).all()
    shared = RepresentationNorm(HIDDEN, ["en", "de", "es"], shared=True)
    shared(states, mask, "de"), shared(states, mask, "sw")
    assert shared.running_mean.shape == (1, HIDDEN) and shared.updates.tolist() == [2]


def test_a_model_updates_each_side_of_a_pair_once() -> None:
    """One update a training pass for the source and one for the target; English rows count for English."""
    model = tiny_model()
    both_passes(model, pair_batch(language="es"))
    model(**pair_batch()["source"])
    assert model.normalisation.languages == ["en", "de", "es"] and model.normalisation.updates.tolist() == [2, 0, 1]
    both_passes(model.eval(), without_gold(pair_batch()))
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
        *((preset, {"without": [name]}) for preset in PAIRED for name in ABLATIONS),
        ("paper", {"normalisation": "shared"}),
        ("paper", {"calibration": "logits"}),
    ],
    ids=str,
)
@FEW
@given(seed=SEEDS, lengths=st.tuples(LENGTHS, LENGTHS))
def test_calibrated_probabilities_are_distributions(preset: str, changes: dict, seed: int, lengths: tuple) -> None:
    model = trained_statistics(tiny_model(preset, **changes))
    batch = without_gold(pair_batch(seed, "bert", *lengths))
    output = both_passes(model, batch)
    real = batch["attention_mask"][..., None].bool()
    for name in DISTRIBUTIONS:
        if name in output:
            torch.testing.assert_close((output[name] * real).sum(1), torch.ones(4, 2), rtol=0, atol=1e-5)
            assert (output[name].masked_select(~real) == 0).all() and (output[name] >= 0).all()


# What attends to what, and what moves whom


@pytest.mark.parametrize("preset", ["paper", "mixup"])
def test_special_tokens_are_not_attended_to_where_the_keys_are_content(preset: str) -> None:
    batch, outputs = pair_batch(), []
    special = int(batch["source"]["input_ids"][0, 2])
    for keys in ("all", "content"):
        model = tiny_model(preset, sharing_keys=keys, special_ids=[special])
        outputs.append(both_passes(model.eval(), batch, explain=True))
    where = (batch["source"]["input_ids"] == special) & batch["source"]["attention_mask"].bool()
    masses = [(output.cross_attention.mean(1) * where[:, None]).sum(-1) for output in outputs]
    assert masses[0].max() > 0.01 and masses[1].max() == 0
    weights = batch["attention_mask"] / batch["attention_mask"].sum(1, keepdim=True)
    expected = ((1 - masses[0]) * weights).sum(1).mean()
    torch.testing.assert_close(outputs[0].content_mass, expected)
    assert outputs[1].content_mass.item() == pytest.approx(1)


def test_the_token_alignment_moves_the_source_unless_its_gradient_is_stopped() -> None:
    moved = []
    for gradient in (True, False):
        model = tiny_model(eta=1.0, token_alignment_gradient=gradient)
        output = both_passes(model, pair_batch())
        output.losses["token"].backward()
        words = model.encoder.get_input_embeddings().weight.grad.abs().sum(1)
        target, source = (pair_batch()[side] for side in ("input_ids", "source"))
        moved.append([words[ids.unique()].sum().item() > 0 for ids in (target, source["input_ids"])])
    assert moved == [[True, True], [True, False]]
