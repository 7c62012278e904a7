"""Every formula of xsta_lib against the NumPy reference in float64; and one wrong term in each must be seen."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import BertModel

from tests import reference
from tests.toy import HEADS, HIDDEN, encoder_config, pair_batch, ragged_mask, stir, tiny_model, trained_statistics
from xsta_lib import aligning, modeling, sharing, teaching
from xsta_lib.modeling import Encoded, XStaForQuestionAnswering

Array = np.ndarray
LONGER_TARGET, LONGER_SOURCE = ([9, 4, 6], [5, 6, 3]), ([4, 6, 3], [9, 5, 7])


# Helpers


def close(actual: Tensor | float, expected: Array | float) -> None:
    """Assert agreement of a float64 result with the reference within 1e-6."""
    if isinstance(actual, Tensor):
        assert actual.dtype == torch.float64
        actual = actual.detach().numpy()
    assert np.shape(actual) == np.shape(expected)
    np.testing.assert_allclose(actual, expected, rtol=1e-6, atol=1e-6)


def arrays(module: nn.Module) -> dict[str, Array]:
    """A module's state dict in NumPy."""
    return {name: value.numpy().copy() for name, value in module.state_dict().items()}


def normal(*shape: int, seed: int = 0) -> Tensor:
    """Standard normal numbers in float64."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def random_pair(lengths: tuple[list[int], list[int]] = LONGER_TARGET) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """States and masks of a target and a source, both ragged and with a column of padding: h_T, m_T, h_S, m_S."""
    m_t, m_s = (ragged_mask(side, max(side) + 1) for side in lengths)
    return normal(*m_t.shape, HIDDEN, seed=1), m_t, normal(*m_s.shape, HIDDEN, seed=2), m_s


# Section 3.2


def sharing_module(mode: str, weighting: str = "paper") -> nn.Module:
    """The self-attention of a tiny BERT's second layer with sharing, in float64, no dropout."""
    torch.manual_seed(3)
    encoder = BertModel(encoder_config(), add_pooling_layer=False)
    module = sharing.install_sharing(encoder, 2, mode, weighting=weighting, dropout=0.0).double()
    stir(module)
    return module


def compare_sharing(mode: str = "gdks", weighting: str = "paper", keep: bool = True, lengths=LONGER_TARGET) -> None:
    """The layer's context before the output projection, lambda and the cross-attention probabilities."""
    module = sharing_module(mode, weighting)
    h_t, m_t, h_s, m_s = random_pair(lengths)
    context = sharing.SharingContext(m_t, h_s, m_s, keep_attention=keep)
    own_mask = m_t[:, None, None, :].bool().expand(-1, 1, m_t.shape[1], -1)
    mix, _ = module(h_t, own_mask, sharing=context)
    weights = arrays(module)
    expected, expected_lambda, probabilities = reference.gdks(
        *(value.numpy() for value in (h_t, h_s, m_t, m_s)),
        weights,
        HEADS,
        weights.get("correction.weight"),
        weights.get("correction.bias"),
        float(weights["mixing_weight"]),
        float(weights["mixing_bias"]),
        release_weighting=weighting == "release",
        correct=mode == "gdks",
    )
    close(module.mixing(), expected_lambda)
    if keep:
        close(context.cross_attention, probabilities)
    close(mix, expected)
    assert context.layer_input is h_t


def compare_correction(lengths=LONGER_TARGET) -> None:
    """h~_S on every position, padding included."""
    module = sharing_module("gdks")
    h_t, m_t, h_s, m_s = random_pair(lengths)
    weights = arrays(module)
    expected = reference.corrected_source(
        *(value.numpy() for value in (h_s, h_t, m_s, m_t)), weights["correction.weight"], weights["correction.bias"]
    )
    close(module.corrected_source(h_t, sharing.SharingContext(m_t, h_s, m_s)), expected)


@pytest.mark.parametrize("lengths", [LONGER_TARGET, LONGER_SOURCE], ids=["longer target", "longer source"])
@pytest.mark.parametrize("keep", [True, False], ids=["softmax", "sdpa"])
@pytest.mark.parametrize("weighting", ["paper", "release"])
@pytest.mark.parametrize("mode", ["gdks", "cross-attention"])
def test_sharing(mode: str, weighting: str, keep: bool, lengths: tuple) -> None:
    """Section 3.2: GDKS and vanilla cross-attention, both weightings."""
    compare_sharing(mode, weighting, keep, lengths)
    compare_correction(lengths)


def test_initial_lambda() -> None:
    """lambda starts at 0.3, so the cross-attended part weighs 0.7 in the paper and 0.3 in the release."""
    encoder = BertModel(encoder_config(), add_pooling_layer=False)
    assert sharing.install_sharing(encoder, 1, "gdks").mixing().item() == pytest.approx(0.3)


# Section 3.3


def compare_norm(statistics: str = "tokens") -> None:
    """Two training passes over one language, its running averages, then inference."""
    norm = teaching.RepresentationNorm(HIDDEN, ["en", "de"], statistics=statistics).double()
    normalise = reference.normalise if statistics == "tokens" else reference.normalise_release
    mean, variance = np.zeros(HIDDEN), np.ones(HIDDEN)
    mask, seen = ragged_mask([9, 2, 5], 10), []
    for seed in (1, 2):
        states = normal(3, 10, HIDDEN, seed=seed) * (1 + seed) + seed
        states[:, :3] += 5.0  # the start differs, so short sequences have other means than long ones
        expected, batch_mean, batch_variance = normalise(states.numpy(), mask.numpy())
        close(norm(states, mask, "de"), expected)
        mean, variance = reference.running_update(mean, variance, batch_mean, batch_variance)
        seen.append((batch_mean, batch_variance))
    close(norm.running_mean[1], mean)
    close(norm.running_var[1], variance)
    norm.eval()
    faded = [reference.fading_average(list(values)) for values in zip(*seen, strict=True)]
    close(norm(states, mask, "de"), reference.standardise(states.numpy(), *faded))


@pytest.mark.parametrize("statistics", ["tokens", "sequences"])
def test_norm(statistics: str) -> None:
    """Section 3.3, first equation, and the release's statistics."""
    compare_norm(statistics)


def compare_small_variance() -> None:
    """The constant under the root, where it matters."""
    norm = teaching.RepresentationNorm(HIDDEN, ["en"]).double()
    states, mask = normal(2, 5, HIDDEN) * 1e-4, ragged_mask([5, 3])
    close(norm(states, mask, "en"), reference.normalise(states.numpy(), mask.numpy())[0])


def test_small_variance() -> None:
    """epsilon is 1e-8."""
    compare_small_variance()


def compare_teacher(form: str = "renormalised") -> None:
    """The attention, p_{T|S}, its logits and its column sums."""
    h_t, m_t, h_s, m_s = random_pair()
    torch.manual_seed(5)
    teacher = teaching.AttentiveTeacher(HIDDEN, HEADS, form, std=0.3).double()
    stir(teacher)
    logits = normal(*m_s.shape, 2, seed=6) * 2
    attention = teacher.attention(h_t, h_s, m_s)
    p, transferred, sums = teacher(attention, logits, m_s, m_t)
    weights = arrays(teacher)
    projections = [weights[name] for name in ("query.weight", "query.bias", "key.weight", "key.bias")]
    states = [value.numpy() for value in (h_t, h_s, m_t, m_s)]
    close(attention, reference.teacher_attention(states[0], states[1], states[3], *projections, HEADS).mean(axis=1))
    p_source = reference.softmax_over_real(logits.numpy(), states[3])
    tokens = m_t.bool()
    if form == "logits":
        expected_logits = reference.teacher(*states, logits.numpy(), *projections, HEADS, "release")
        close(transferred[tokens], expected_logits[tokens.numpy()])
        close(p, reference.softmax_over_real(expected_logits, states[2]))
        close(sums, np.ones((len(p), 2)))
    else:
        expected = reference.teacher(*states, p_source, *projections, HEADS, form)
        close(p, expected)
        close(transferred[tokens], np.log(expected[tokens.numpy()]))
        close(sums, reference.teacher(*states, p_source, *projections, HEADS, "raw").sum(axis=1))


@pytest.mark.parametrize("form", teaching.TEACHER_FORMS)
def test_teacher(form: str) -> None:
    """Section 3.3, second equation, in its three forms."""
    compare_teacher(form)


def compare_teacher_loss() -> None:
    """L_tg over the counted rows; 0 if there are none."""
    p = normal(4, 7, 2, seed=7).softmax(1)
    starts, ends = torch.tensor([1, 0, 3, 6]), torch.tensor([2, 0, 5, 6])
    for holds in ([1, 0, 1, 1], [0, 1, 0, 0], [1, 1, 1, 1], [0, 0, 0, 0]):
        counted = torch.tensor(holds).bool()
        expected = reference.teacher_loss(p.numpy(), starts.numpy(), ends.numpy(), counted.numpy())
        close(teaching.teacher_loss(p, starts, ends, counted), expected)


def test_teacher_loss() -> None:
    """Section 3.3, L_tg."""
    compare_teacher_loss()


# Sections 3.1 and 3.4


def compare_span_loss() -> None:
    """L_MRC over real tokens only."""
    mask = ragged_mask([7, 4, 5], 8)
    logits, starts, ends = normal(3, 8, 2, seed=8) * 3, torch.tensor([2, 0, 3]), torch.tensor([6, 0, 4])
    expected = reference.span_loss(logits.numpy(), mask.numpy(), starts.numpy(), ends.numpy())
    close(modeling.span_loss(logits, mask, starts, ends), expected)


def test_span_loss() -> None:
    """Section 3.1."""
    compare_span_loss()


def compare_sentences() -> None:
    """InfoNCE where two questions have two rows each, and where all rows are of different questions."""
    source = normal(5, HIDDEN, seed=9)
    target = source * 1.5 + normal(5, HIDDEN, seed=10) * 2
    for ids in ([0, 1, 0, 2, 1], [0, 1, 2, 3, 4], [0, 0, 0, 0, 0]):
        ids = torch.tensor(ids)
        expected = reference.info_nce(source.numpy(), target.numpy(), ids.numpy())
        close(aligning.sentence_alignment(source, target, ids), expected)


def test_sentence_alignment() -> None:
    """Section 3.4, L_align_S."""
    compare_sentences()


def compare_pooling() -> None:
    """Mean over real tokens."""
    h, m, _, _ = random_pair()
    close(aligning.mean_pool(h, m), reference.mean_pool(h.numpy(), m.numpy()))


def test_mean_pool() -> None:
    """Section 3.4, r."""
    compare_pooling()


def compare_tokens() -> None:
    """Entropy of the scaled dot products."""
    h_t, m_t, h_s, m_s = random_pair()
    expected = reference.token_entropy(*(value.numpy() for value in (h_t, h_s, m_t, m_s)))
    close(aligning.token_alignment(h_t, h_s, m_t, m_s), expected)


def compare_tokens_release() -> None:
    """Entropy of the head mean of a cross-attention and of its transpose."""
    _, m_t, _, m_s = random_pair()
    scores = normal(3, HEADS, m_t.shape[1], m_s.shape[1], seed=11) * 2
    attention = scores.masked_fill(m_s[:, None, None] == 0, -torch.inf).softmax(-1)
    expected = reference.token_entropy_release(attention.numpy(), m_t.numpy(), m_s.numpy())
    close(aligning.token_alignment_release(attention), expected)


def test_token_alignment() -> None:
    """Section 3.4, L_align_T, and the release's form."""
    compare_tokens()
    compare_tokens_release()


# Section 3.5: a whole forward pass from the encoder's states on


def numpy_of(encoded: Encoded) -> dict[str, Array]:
    """The states and mask of one pass, and nothing that was computed behind them."""
    return {name: getattr(encoded, name).detach().numpy() for name in ("mask", "states", "layer_input")}


def reference_normalised(model: XStaForQuestionAnswering, side: dict[str, Array], language: str) -> Array:
    """h~ of one language: the batch's statistics in training, the running ones in evaluation."""
    norm = model.normalisation
    if not model.training:
        start = 0.9 ** norm.updates[norm.languages.index(language)].item()
        row = [value[norm.languages.index(language)].numpy() for value in (norm.running_mean, norm.running_var)]
        return reference.standardise(side["states"], row[0] / (1 - start), (row[1] - start) / (1 - start))
    release = model.config.normalisation_statistics == "sequences"
    return (reference.normalise_release if release else reference.normalise)(side["states"], side["mask"])[0]


def reference_sharing(model: XStaForQuestionAnswering, target: dict, source: dict) -> tuple[Array, Array]:
    """The layer that shares, from the states at its input: the target's mixed context, cross probabilities."""
    weights = arrays(model.sharing_layer)
    mix, _, probabilities = reference.gdks(
        *(target["layer_input"], source["layer_input"], target["mask"], source["mask"]),
        weights,
        HEADS,
        weights["correction.weight"],
        weights["correction.bias"],
        float(weights["mixing_weight"]),
        float(weights["mixing_bias"]),
        release_weighting=model.config.sharing_weighting == "release",
    )
    return mix, probabilities


def reference_pair(model: XStaForQuestionAnswering, target: dict, source: dict, language: str) -> dict[str, Any]:
    """Everything behind the encoder that needs no gold positions: logits, distributions, sentence vectors."""
    release = model.config.teacher == "logits"
    weights = arrays(model)
    head = weights["qa_outputs.weight"], weights["qa_outputs.bias"]
    normed_t = reference_normalised(model, target, language)
    normed_s = reference_normalised(model, source, "en")
    read_t, read_s = (normed_t, normed_s) if release else (target["states"], source["states"])
    logits_t, logits_s = reference.linear(read_t, *head), reference.linear(read_s, *head)
    p_t = reference.span_distribution(read_t, target["mask"], *head)
    values = logits_s if release else reference.span_distribution(read_s, source["mask"], *head)
    projections = [weights[f"teacher.{part}"] for part in ("query.weight", "query.bias", "key.weight", "key.bias")]
    moved = reference.teacher(
        *(normed_t, normed_s, target["mask"], source["mask"], values, *projections, HEADS),
        "release" if release else "renormalised",
    )
    if release:
        projection = weights["sentence_projection.0.weight"], weights["sentence_projection.0.bias"]
        r_s = reference.sentence_vector_release(normed_s, source["mask"], *projection)
        r_t = reference.sentence_vector_release(normed_t, target["mask"], *projection)
        teacher = reference.softmax_over_real(moved, target["mask"])
        calibrated = reference.calibrated_release(moved, logits_t, target["mask"])
    else:
        r_s = reference.mean_pool(source["states"], source["mask"])
        r_t = reference.mean_pool(target["states"], target["mask"])
        teacher, calibrated = moved, reference.calibrated(moved, p_t)
    distributions = {"target": p_t, "teacher": teacher, "calibrated": calibrated}
    return {"logits_t": logits_t, "logits_s": logits_s, "r_s": r_s, "r_t": r_t, "distributions": distributions}


def reference_terms(model: XStaForQuestionAnswering, target: dict, source: dict, batch: dict) -> dict[str, float]:
    """The five terms of the objective."""
    pair = reference_pair(model, target, source, batch["language"])
    gold_t, gold_s = (
        [side[name].numpy() for name in ("start_positions", "end_positions", "holds_answer")]
        for side in (batch, batch["source"])
    )
    if model.config.token_alignment == "hidden":
        token = reference.token_entropy(target["layer_input"], source["layer_input"], target["mask"], source["mask"])
    else:
        probabilities = reference_sharing(model, target, source)[1]
        token = reference.token_entropy_release(probabilities, target["mask"], source["mask"])
    return {
        "source": reference.span_loss(pair["logits_s"], source["mask"], *gold_s[:2]),
        "target": reference.span_loss(pair["logits_t"], target["mask"], *gold_t[:2]),
        "teacher": reference.teacher_loss(pair["distributions"]["teacher"], *gold_t[:2], gold_t[2] & gold_s[2]),
        "sentence": reference.info_nce(pair["r_s"], pair["r_t"], batch["question_ids"].numpy()),
        "token": token,
    }


def passes(model: XStaForQuestionAnswering, batch: dict) -> tuple[dict[str, Array], dict[str, Array]]:
    """The encoder's states of the target and of its source."""
    inputs = batch["source"]
    source = model.encode(inputs["input_ids"], inputs["attention_mask"], "en")
    target = model.encode(batch["input_ids"], batch["attention_mask"], batch["language"], source)
    return numpy_of(target), numpy_of(source)


def pair_with_holes() -> dict[str, Any]:
    """A batch in which each side has a row without the answer, not the same one."""
    batch = pair_batch()
    holds = batch["source"]["holds_answer"]
    holds[:] = torch.tensor([True, False, True, True])
    return batch


def compare_objective(preset: str = "paper") -> None:
    """A training pass: every term and the loss."""
    model, batch = tiny_model(preset).double(), pair_with_holes()
    output = model(**batch)
    terms = reference_terms(model, *passes(model, batch), batch)
    assert output.losses.keys() == terms.keys()
    for name, value in terms.items():
        close(output.losses[name], value)
    close(output.loss, reference.total_loss(terms))


def compare_distributions(preset: str = "paper") -> None:
    """An evaluation pass: p_T, p_{T|S} and the calibrated p~_T."""
    model, batch = trained_statistics(tiny_model(preset).double()), pair_batch()
    output = model(**{name: batch[name] for name in ("input_ids", "attention_mask", "language", "source")})
    target, source = passes(model, batch)
    for name, value in reference_pair(model, target, source, "de")["distributions"].items():
        close(output[name], value)


def compare_layer(preset: str = "paper") -> None:
    """The whole last layer, which shares: from the states at its input to h^L."""
    model, batch = tiny_model(preset).double(), pair_batch()
    target, source = passes(model, batch)
    weights, eps = arrays(model.encoder.encoder.layer[1]), model.config.encoder.layer_norm_eps

    def dense(name: str, states: Array) -> Array:
        return reference.linear(states, weights[f"{name}.dense.weight"], weights[f"{name}.dense.bias"])

    def norm(name: str, states: Array) -> Array:
        parts = weights[f"{name}.LayerNorm.weight"], weights[f"{name}.LayerNorm.bias"]
        return reference.layer_norm(states, *parts, eps)

    mix, _ = reference_sharing(model, target, source)
    states = norm("attention.output", dense("attention.output", mix) + target["layer_input"])
    states = norm("output", dense("output", reference.gelu(dense("intermediate", states))) + states)
    np.testing.assert_allclose(target["states"], states, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("preset", ["paper", "release"])
def test_whole_forward(preset: str) -> None:
    """Section 3.5: objective, distributions and the sharing layer of a whole model."""
    compare_objective(preset)
    compare_distributions(preset)
    compare_layer(preset)


def test_english_rows_have_the_span_loss_alone() -> None:
    """S = T: one pass, L_MRC with weight 1."""
    model, batch = tiny_model().double(), pair_batch()
    names = ("input_ids", "attention_mask", "start_positions", "end_positions")
    output = model(**{name: batch["source"][name] for name in names})
    _, source = passes(model, batch)
    weights = arrays(model.qa_outputs)
    logits = reference.linear(source["states"], weights["weight"], weights["bias"])
    gold = [batch["source"][name].numpy() for name in names[2:]]
    close(output.loss, reference.span_loss(logits, source["mask"], *gold))
    assert set(output.losses) == {"target"}


@pytest.mark.parametrize("preset", ["paper", "release"])
def test_autocast_keeps_losses_in_float32(preset: str) -> None:
    """Under bfloat16 autocast losses and distributions are float32, and the loss stays close to the float64 one."""
    model, batch = tiny_model(preset), pair_batch()
    with torch.autocast("cpu", torch.bfloat16):
        output = model(**batch)
    exact = tiny_model(preset).double()(**batch)
    assert output.loss.item() == pytest.approx(exact.loss.item(), rel=3e-2)
    values = [output.loss, output.start_logits, output.target, output.teacher, output.calibrated, output.teacher_mass]
    assert {value.dtype for value in [*values, *output.losses.values()]} == {torch.float32}


@pytest.mark.parametrize("form", teaching.TEACHER_FORMS)
def test_autocast_spares_the_teachers_transfer(form: str) -> None:
    """Behind the attention nothing of the teacher runs in bfloat16."""
    _, m_t, _, m_s = random_pair()
    attention = normal(3, m_t.shape[1], m_s.shape[1]).float().softmax(-1)
    logits = normal(*m_s.shape, 2, seed=1).float() * 5
    teacher = teaching.AttentiveTeacher(HIDDEN, HEADS, form)
    exact = teacher(attention, logits, m_s, m_t)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = teacher(attention, logits, m_s, m_t)
    for one, other in zip(rounded, exact, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6)


def test_autocast_spares_the_sentence_alignment() -> None:
    """At temperature 0.05 a cosine rounded to bfloat16 would be wrong by up to 0.08."""
    vectors = normal(5, HIDDEN, seed=9).float(), normal(5, HIDDEN, seed=10).float()
    exact = aligning.sentence_alignment(*vectors, torch.arange(5))
    with torch.autocast("cpu", torch.bfloat16):
        rounded = aligning.sentence_alignment(*vectors, torch.arange(5))
    torch.testing.assert_close(rounded, exact, rtol=1e-6, atol=1e-6)


# Mutations: one wrong term each


def wrong_lambda(self) -> Tensor:
    """b subtracted."""
    return self.mixing_weight * self.lambda_0 - self.mixing_bias


def wrong_correction(self, target: Tensor, context) -> Tensor:
    """f subtracted."""
    right = SHARING["corrected_source"](self, target, context)
    return 2 * context.source_input - right if self.mode == "gdks" else right


def wrong_order(self, target: Tensor, context) -> Tensor:
    """f reads the target first."""
    source = context.source_input * context.source_mask[..., None]
    target = sharing.fit_length(target * context.mask[..., None], source.shape[1])
    return context.source_input + self.correction(torch.cat([target, source], -1))


def wrong_padding(self, target: Tensor, context) -> Tensor:
    """f reads the padding of both sides."""
    target = sharing.fit_length(target, context.source_input.shape[1])
    return context.source_input + self.correction(torch.cat([context.source_input, target], -1))


def wrong_values(self, target: Tensor, context) -> Tensor:
    """Vanilla cross-attention with the target in place of the source."""
    context = sharing.SharingContext(context.mask, target, context.mask, context.keep_attention)
    return SHARING["cross_attention"](self, target, context)


def unscaled(query: Tensor, key: Tensor, key_mask: Tensor) -> Tensor:
    """Attention without the division by the root of the head size."""
    scores = (query @ key.transpose(-1, -2)).masked_fill(key_mask[:, None, None] == 0, -torch.inf)
    return scores.softmax(-1)


def unmasked_attention(query: Tensor, key: Tensor, key_mask: Tensor) -> Tensor:
    """Attention that looks at padding."""
    return (query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5).softmax(-1)


def interleaved_heads(states: Tensor, heads: int) -> Tensor:
    """Heads that take every A-th feature."""
    return states.unflatten(-1, (-1, heads)).movedim(-1, 1)


def unbiased_statistics(self, states: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Variance over n - 1."""
    tokens = states[mask.bool()]
    return tokens.mean(0), tokens.var(0, unbiased=True)


def padded_statistics(self, states: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Statistics over padding too."""
    return states.mean((0, 1)), states.var((0, 1), unbiased=False)


def token_statistics(self, states: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """The paper's statistics in place of the release's."""
    tokens = states[mask.bool()]
    return tokens.mean(0), tokens.var(0, unbiased=False)


def summed_heads(self, target: Tensor, source: Tensor, mask: Tensor) -> Tensor:
    """Heads added, not averaged."""
    return TEACHER["attention"](self, target, source, mask) * self.heads


def unmasked_softmax(logits: Tensor, mask: Tensor) -> Tensor:
    """A softmax that counts padding, which is zeroed afterwards."""
    return logits.softmax(1) * mask[..., None]


def summed_likelihood(p: Tensor, starts: Tensor, ends: Tensor) -> Tensor:
    """Start and end added, not averaged."""
    return 2 * GOLD_LOG_LIKELIHOOD(p, starts, ends)


def start_twice(p: Tensor, starts: Tensor, ends: Tensor) -> Tensor:
    """The end read from the start's column."""
    return GOLD_LOG_LIKELIHOOD(p[..., :1].expand(-1, -1, 2), starts, ends)


def mean_over_all_rows(p: Tensor, starts: Tensor, ends: Tensor, counted: Tensor) -> Tensor:
    """Rows that do not count still divide."""
    return -(GOLD_LOG_LIKELIHOOD(p, starts, ends) * counted).mean()


def unmasked_span_loss(logits: Tensor, mask: Tensor, starts: Tensor, ends: Tensor) -> Tensor:
    """Padding in the span loss."""
    return (F.cross_entropy(logits[..., 0], starts) + F.cross_entropy(logits[..., 1], ends)) / 2


def summed_span_loss(logits: Tensor, mask: Tensor, starts: Tensor, ends: Tensor) -> Tensor:
    """Start and end added, not averaged."""
    return 2 * SPAN_LOSS(logits, mask, starts, ends)


def info_nce_with_duplicates(source: Tensor, target: Tensor, ids: Tensor, temperature: float = 0.05) -> Tensor:
    """A question's other window as a negative."""
    return SENTENCE_ALIGNMENT(source, target, torch.arange(len(ids)), temperature)


def info_nce_of_products(source: Tensor, target: Tensor, ids: Tensor, temperature: float = 0.05) -> Tensor:
    """Dot products of the source as it is, not cosines."""
    scores = source @ F.normalize(target, dim=-1).T / temperature
    same = (ids[:, None] == ids).fill_diagonal_(False)
    return F.cross_entropy(scores.masked_fill(same, -torch.inf), torch.arange(len(ids)))


def info_nce_reversed(source: Tensor, target: Tensor, ids: Tensor, temperature: float = 0.05) -> Tensor:
    """The target as the anchor."""
    return SENTENCE_ALIGNMENT(target, source, ids, temperature)


def first_token(states: Tensor, mask: Tensor) -> Tensor:
    """[CLS] in place of the mean."""
    return states[:, 0]


def entropy_in_bits(probabilities: Tensor) -> Tensor:
    """Logarithm to base 2."""
    return ROW_ENTROPY(probabilities) / np.log(2)


def tokens_counting_padding(target: Tensor, source: Tensor, target_mask: Tensor, source_mask: Tensor) -> Tensor:
    """Padded target tokens in the mean."""
    return TOKEN_ALIGNMENT(target, source, torch.ones_like(target_mask), source_mask)


def tokens_over_all(target: Tensor, source: Tensor, target_mask: Tensor, source_mask: Tensor) -> Tensor:
    """Mean over all tokens of the batch, not over rows."""
    entropies = [
        TOKEN_ALIGNMENT(target[row, None], source[row, None], target_mask[row, None], source_mask[row, None])
        for row in range(len(target))
    ]
    counts = target_mask.sum(1)
    return (torch.stack(entropies) * counts).sum() / counts.sum()


def transpose_renormalised(attention: Tensor) -> Tensor:
    """The transposed attention made a distribution."""
    mean = attention.mean(1)
    other = mean.transpose(-1, -2)
    other = other / other.sum(-1, keepdim=True).clamp_min(1e-12)
    return ROW_ENTROPY(mean).mean() + ROW_ENTROPY(other).mean()


def swapped_alpha(self, terms: dict[str, Tensor]) -> Tensor:
    """alpha on the target, 1 - alpha on the source."""
    return OBJECTIVE(self, terms | {"source": terms["target"], "target": terms["source"]})


def negative_gamma(self, terms: dict[str, Tensor]) -> Tensor:
    """The teacher's loss subtracted."""
    return OBJECTIVE(self, terms | {"teacher": -terms["teacher"]})


def summed_calibration(teacher: Tensor, target: Tensor) -> Tensor:
    """A sum, not an average."""
    return teacher + target


SHARING = dict(vars(sharing.SharingMixin))
TEACHER = dict(vars(teaching.AttentiveTeacher))
GOLD_LOG_LIKELIHOOD, SPAN_LOSS = teaching.gold_log_likelihood, modeling.span_loss
SENTENCE_ALIGNMENT, TOKEN_ALIGNMENT, ROW_ENTROPY = (
    aligning.sentence_alignment,
    aligning.token_alignment,
    aligning.row_entropy,
)
OBJECTIVE = XStaForQuestionAnswering.objective
GDKS, VANILLA, SDPA = ("gdks",), ("cross-attention",), ("gdks", "paper", False)


def averages_with_start(self: teaching.RepresentationNorm, rows: list[int]) -> tuple[Tensor, Tensor]:
    """The running averages as they are, their start values' share included."""
    return self.running_mean[rows], self.running_var[rows]


# Owner, attribute, what takes its place, the comparison that must fail, the comparison's arguments.
MUTATIONS = [
    (sharing.SharingMixin, "mixing", wrong_lambda, compare_sharing, GDKS),
    (sharing.SharingMixin, "corrected_source", wrong_correction, compare_sharing, SDPA),
    (sharing.SharingMixin, "corrected_source", wrong_order, compare_sharing, GDKS),
    (sharing.SharingMixin, "corrected_source", wrong_padding, compare_correction, ()),
    (sharing.SharingMixin, "cross_attention", wrong_values, compare_sharing, ("cross-attention", "paper", False)),
    (sharing, "attention_probabilities", unscaled, compare_sharing, VANILLA),
    (sharing, "attention_probabilities", unmasked_attention, compare_sharing, GDKS),
    (sharing, "split_heads", interleaved_heads, compare_sharing, SDPA),
    (sharing.SharingMixin, "mixing", wrong_lambda, compare_layer, ()),
    (teaching.RepresentationNorm, "batch_statistics", unbiased_statistics, compare_norm, ()),
    (teaching.RepresentationNorm, "batch_statistics", padded_statistics, compare_norm, ()),
    (teaching.RepresentationNorm, "batch_statistics", token_statistics, compare_norm, ("sequences",)),
    (teaching.RepresentationNorm, "momentum", 0.9, compare_norm, ()),
    (teaching.RepresentationNorm, "averages", averages_with_start, compare_norm, ()),
    (teaching.RepresentationNorm, "eps", 1e-5, compare_small_variance, ()),
    (teaching.AttentiveTeacher, "attention", summed_heads, compare_teacher, ("raw",)),
    (teaching, "attention_probabilities", unmasked_attention, compare_teacher, ()),
    (teaching, "masked_softmax", unmasked_softmax, compare_teacher, ("raw",)),
    (teaching, "masked_softmax", unmasked_softmax, compare_teacher, ("logits",)),
    (teaching, "gold_log_likelihood", summed_likelihood, compare_teacher_loss, ()),
    (teaching, "gold_log_likelihood", start_twice, compare_teacher_loss, ()),
    (teaching, "teacher_loss", mean_over_all_rows, compare_teacher_loss, ()),
    (modeling, "calibrate", summed_calibration, compare_distributions, ()),
    (modeling, "masked_softmax", unmasked_softmax, compare_distributions, ("release",)),
    (modeling, "span_loss", unmasked_span_loss, compare_span_loss, ()),
    (modeling, "span_loss", summed_span_loss, compare_span_loss, ()),
    (aligning, "sentence_alignment", info_nce_with_duplicates, compare_sentences, ()),
    (aligning, "sentence_alignment", info_nce_of_products, compare_sentences, ()),
    (aligning, "sentence_alignment", info_nce_reversed, compare_sentences, ()),
    (aligning, "mean_pool", first_token, compare_pooling, ()),
    (aligning, "row_entropy", entropy_in_bits, compare_tokens, ()),
    (aligning, "token_alignment", tokens_counting_padding, compare_tokens, ()),
    (aligning, "token_alignment", tokens_over_all, compare_tokens, ()),
    (aligning, "token_alignment_release", transpose_renormalised, compare_tokens_release, ()),
    (modeling, "mean_pool", first_token, compare_objective, ()),
    (modeling, "token_alignment", tokens_counting_padding, compare_objective, ()),
    (XStaForQuestionAnswering, "objective", swapped_alpha, compare_objective, ()),
    (XStaForQuestionAnswering, "objective", negative_gamma, compare_objective, ("release",)),
]


def mutation_name(value: Any) -> str | None:
    """Short names in the test's id."""
    return getattr(value, "__name__", None)


@pytest.mark.parametrize(("owner", "attribute", "wrong", "compare", "arguments"), MUTATIONS, ids=mutation_name)
def test_a_wrong_term_is_seen(
    monkeypatch: pytest.MonkeyPatch, owner: Any, attribute: str, wrong: Any, compare: Callable, arguments: tuple
) -> None:
    """The comparison holds, and fails once one term is wrong."""
    compare(*arguments)
    monkeypatch.setattr(owner, attribute, wrong)
    with pytest.raises(AssertionError):
        compare(*arguments)
