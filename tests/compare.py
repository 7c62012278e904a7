"""Every equation of the library beside the NumPy reference in float64: each function asserts that the two agree.

The tests of the equations call them, and so do the tests that an equation with one wrong term is seen.
"""

from typing import Any

import numpy as np
import reference
import torch
from torch import Tensor, nn
from toy import (
    HEADS,
    HIDDEN,
    both_passes,
    encoder_config,
    pair_batch,
    ragged_mask,
    source_pass,
    stir,
    target_pass,
    tiny_model,
    trained_statistics,
    without_gold,
)
from transformers import BertModel

from xsta_lib.baselines import mixup
from xsta_lib.model import aligning, modeling, sharing, teaching
from xsta_lib.model.modeling import Encoded, XStaForQuestionAnswering

Array = np.ndarray
LONGER_TARGET, LONGER_SOURCE = ([9, 4, 6], [5, 6, 3]), ([4, 6, 3], [9, 5, 7])
EPS = 1e-3  # of X-MIXUP's layer norm, far from the default, so that a forgotten one is seen


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
    """States and masks of a target and a source, both ragged and with a column of padding: h_T, h_S, m_T, m_S."""
    m_t, m_s = (ragged_mask(side, max(side) + 1) for side in lengths)
    return normal(*m_t.shape, HIDDEN, seed=1), normal(*m_s.shape, HIDDEN, seed=2), m_t, m_s


# Section 3.2


def reference_sharing(module: nn.Module, *sides: Array, release: bool) -> tuple[Array, float, Array]:
    """The layer that shares, from h_T, h_S and their masks: mixed context, lambda, cross-attention probabilities."""
    weights = arrays(module)
    correction = weights.get("correction.weight"), weights.get("correction.bias")
    scalars = float(weights["mixing_weight"]), float(weights["mixing_bias"])
    options = {"release_weighting": release, "correct": module.mode == "gdks" and sides[0] is not sides[1]}
    return reference.gdks(*sides, weights, HEADS, *correction, *scalars, **options)


def sharing_module(mode: str, weighting: str = "paper") -> nn.Module:
    """The self-attention of a tiny BERT's second layer with sharing, in float64, no dropout."""
    torch.manual_seed(3)
    encoder = BertModel(encoder_config(), add_pooling_layer=False)
    module = sharing.install_sharing(encoder, 2, mode, weighting=weighting, dropout=0.0).double()
    stir(module)
    return module


def sharing_attention(mode: str = "gdks", weighting: str = "paper", keep: bool = True, lengths=LONGER_TARGET) -> None:
    """The layer's context before the output projection, lambda and the cross-attention probabilities."""
    module = sharing_module(mode, weighting)
    h_t, h_s, m_t, m_s = random_pair(lengths)
    context = sharing.SharingContext(m_t, h_s, m_s, keep_attention=keep)
    own_mask = m_t[:, None, None, :].bool().expand(-1, 1, m_t.shape[1], -1)
    mix, _ = module(h_t, own_mask, sharing=context)
    sides = (value.numpy() for value in (h_t, h_s, m_t, m_s))
    found = reference_sharing(module, *sides, release=weighting == "release")
    close(mix, found[0])
    close(context.mixing, found[1])
    if keep:
        close(context.cross_attention, found[2])
    assert context.layer_input is h_t


def correction(lengths=LONGER_TARGET) -> None:
    """h~_S on every position, padding included."""
    module = sharing_module("gdks")
    h_t, h_s, m_t, m_s = random_pair(lengths)
    weights = arrays(module)
    expected = reference.corrected_source(
        *(value.numpy() for value in (h_s, h_t, m_s, m_t)), weights["correction.weight"], weights["correction.bias"]
    )
    close(module.corrected_source(h_t, sharing.SharingContext(m_t, h_s, m_s)), expected)


# Section 3.3


def rep_norm(statistics: str = "tokens") -> None:
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


def small_variance() -> None:
    """The constant under the root, 1e-8, where it matters."""
    norm = teaching.RepresentationNorm(HIDDEN, ["en"]).double()
    states, mask = normal(2, 5, HIDDEN) * 1e-4, ragged_mask([5, 3])
    close(norm(states, mask, "en"), reference.normalise(states.numpy(), mask.numpy())[0])


def attentive_teacher(form: str = "renormalised") -> None:
    """The attention, p_{T|S}, its logits and its column sums."""
    h_t, h_s, m_t, m_s = random_pair()
    torch.manual_seed(5)
    teacher = teaching.AttentiveTeacher(HIDDEN, HEADS, form, std=0.3).double()
    stir(teacher)
    logits = normal(*m_s.shape, 2, seed=6) * 2
    values = logits * m_s[..., None] if form == "logits" else teaching.masked_softmax(logits, m_s)
    p, transferred, sums, attention = teacher(h_t, h_s, values, m_t, m_s)
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


def teacher_loss() -> None:
    """L_tg over the counted rows; 0 if there are none."""
    p = normal(4, 7, 2, seed=7).softmax(1)
    starts, ends = torch.tensor([1, 0, 3, 6]), torch.tensor([2, 0, 5, 6])
    for holds in ([1, 0, 1, 1], [0, 1, 0, 0], [1, 1, 1, 1], [0, 0, 0, 0]):
        counted = torch.tensor(holds).bool()
        expected = reference.teacher_loss(p.numpy(), starts.numpy(), ends.numpy(), counted.numpy())
        close(teaching.teacher_loss(p, starts, ends, counted), expected)


# Sections 3.1 and 3.4


def span_loss() -> None:
    """L_MRC over real tokens only."""
    mask = ragged_mask([7, 4, 5], 8)
    logits, starts, ends = normal(3, 8, 2, seed=8) * 3, torch.tensor([2, 0, 3]), torch.tensor([6, 0, 4])
    expected = reference.span_loss(logits.numpy(), mask.numpy(), starts.numpy(), ends.numpy())
    close(modeling.span_loss(Encoded(mask, logits, logits, None, logits, starts=starts, ends=ends)), expected)


def sentence_alignment() -> None:
    """InfoNCE where two questions have two rows each, and where all rows are of different questions."""
    source = normal(5, HIDDEN, seed=9)
    target = source * 1.5 + normal(5, HIDDEN, seed=10) * 2
    for ids in ([0, 1, 0, 2, 1], [0, 1, 2, 3, 4], [0, 0, 0, 0, 0]):
        ids = torch.tensor(ids)
        expected = reference.info_nce(source.numpy(), target.numpy(), ids.numpy())
        close(aligning.sentence_alignment(source, target, ids), expected)


def sentence_vector() -> None:
    """Mean over real tokens."""
    h, _, m, _ = random_pair()
    close(aligning.mean_pool(h, m), reference.mean_pool(h.numpy(), m.numpy()))


def token_alignment() -> None:
    """Entropy of the scaled dot products."""
    pair = random_pair()
    close(aligning.token_alignment(*pair), reference.token_entropy(*(value.numpy() for value in pair)))


def token_alignment_release() -> None:
    """Entropy of the head mean of a cross-attention and of its transpose."""
    _, _, m_t, m_s = random_pair()
    scores = normal(3, HEADS, m_t.shape[1], m_s.shape[1], seed=11) * 2
    attention = scores.masked_fill(m_s[:, None, None] == 0, -torch.inf).softmax(-1)
    expected = reference.token_entropy_release(attention.numpy(), m_t.numpy(), m_s.numpy())
    close(aligning.token_alignment_release(attention), expected)


# Section 3.5: a whole forward pass from the encoder's states on


def numpy_passes(model: XStaForQuestionAnswering, batch: dict) -> list[dict[str, Array]]:
    """States, masks and layer inputs of the target and of its source, and nothing that was computed behind them."""
    source = source_pass(model, batch)
    names = ("mask", "states", "layer_input")
    passes = target_pass(model, batch, source), source
    return [{name: getattr(encoded, name).detach().numpy() for name in names} for encoded in passes]


def reference_normalised(model: XStaForQuestionAnswering, side: dict[str, Array], language: str) -> Array:
    """h~ of one language: the batch's statistics in training, the running ones in evaluation."""
    norm = model.normalisation
    if not model.training:
        row = norm.languages.index(language)
        start = 0.9 ** norm.updates[row].item()
        mean, variance = (value[row].numpy() for value in (norm.running_mean, norm.running_var))
        return reference.standardise(side["states"], mean / (1 - start), (variance - start) / (1 - start))
    release = model.config.normalisation_statistics == "sequences"
    return (reference.normalise_release if release else reference.normalise)(side["states"], side["mask"])[0]


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
    states = target["layer_input"], source["layer_input"], target["mask"], source["mask"]
    if model.config.token_alignment == "hidden":
        token = reference.token_entropy(*states)
    else:
        cross = reference_sharing(model.sharing_layer, *states, release=True)[2]
        token = reference.token_entropy_release(cross, *states[2:])
    return {
        "source": reference.span_loss(pair["logits_s"], source["mask"], *gold_s[:2]),
        "target": reference.span_loss(pair["logits_t"], target["mask"], *gold_t[:2]),
        "teacher": reference.teacher_loss(pair["distributions"]["teacher"], *gold_t[:2], gold_t[2] & gold_s[2]),
        "sentence": reference.info_nce(pair["r_s"], pair["r_t"], batch["passages"].numpy()),
        "token": token,
    }


def objective(preset: str = "paper") -> None:
    """A training pass, in which each side has a row without the answer, not the same one: every term and the loss."""
    model, batch = tiny_model(preset).double(), pair_batch()
    batch["source"]["holds_answer"] = torch.tensor([True, False, True, True])
    output = both_passes(model, batch)
    terms = reference_terms(model, *numpy_passes(model, batch), batch)
    assert output.losses.keys() == terms.keys()
    for name, value in terms.items():
        close(output.losses[name], value)
    close(output.loss, reference.total_loss(terms))


def distributions(preset: str = "paper") -> None:
    """An evaluation pass: p_T, p_{T|S} and the calibrated p~_T."""
    model, batch = trained_statistics(tiny_model(preset).double()), without_gold(pair_batch())
    output = both_passes(model, batch)
    expected = reference_pair(model, *numpy_passes(model, batch), "de")["distributions"]
    for name, value in expected.items():
        close(output[name], value)


def reference_feed_forward(layer: nn.Module, states: Array, eps: float) -> Array:
    """What follows the attention block in one encoder layer. states (B, N, H), shape kept."""
    weights = arrays(layer)
    wide = reference.linear(states, weights["intermediate.dense.weight"], weights["intermediate.dense.bias"])
    dense = weights["output.dense.weight"], weights["output.dense.bias"]
    norm = weights["output.LayerNorm.weight"], weights["output.LayerNorm.bias"]
    return reference.layer_norm(reference.linear(reference.gelu(wide), *dense) + states, *norm, eps)


def whole_layer(preset: str = "paper") -> None:
    """The whole last layer, which shares: from the states at its input to h^L."""
    model, batch = tiny_model(preset).double(), pair_batch()
    target, source = numpy_passes(model, batch)
    layer, eps = model.encoder.encoder.layer[1], model.config.encoder.layer_norm_eps
    inputs = target["layer_input"], source["layer_input"], target["mask"], source["mask"]
    mix = reference_sharing(model.sharing_layer, *inputs, release=preset == "release")[0]
    weights = arrays(layer.attention.output)
    states = reference.linear(mix, weights["dense.weight"], weights["dense.bias"]) + target["layer_input"]
    states = reference.layer_norm(states, weights["LayerNorm.weight"], weights["LayerNorm.bias"], eps)
    close(target["states"], reference_feed_forward(layer, states, eps))


def own_source(preset: str = "paper") -> None:
    """S = T: every term of a pair of a row with itself, from one pass."""
    model, batch = tiny_model(preset).double(), pair_batch()
    batch["source"]["holds_answer"] = torch.tensor([True, False, True, True])
    output = model(**batch["source"], passages=batch["passages"])
    source = numpy_passes(model, batch)[1]
    itself = {**batch, **batch["source"], "language": "en"}
    terms = reference_terms(model, source, source, itself)
    assert output.losses.keys() == terms.keys() - {"source"}
    for name, value in output.losses.items():
        close(value, terms[name])
    close(output.loss, reference.total_loss(terms))


def target_alone() -> None:
    """S = T with the span loss alone: one pass, L_MRC with weight 1."""
    model, batch = tiny_model(source_rows="span").double(), pair_batch()
    output = model(**batch["source"])
    source = numpy_passes(model, batch)[1]
    weights = arrays(model.qa_outputs)
    logits = reference.linear(source["states"], weights["weight"], weights["bias"])
    gold = [batch["source"][name].numpy() for name in ("start_positions", "end_positions")]
    close(output.loss, reference.span_loss(logits, source["mask"], *gold))
    assert set(output.losses) == {"target"}


# X-MIXUP


def mixup_model(kind: str = "bert") -> mixup.MixupForQuestionAnswering:
    """A tiny X-MIXUP in float64, whose w and b are neither 1 nor 0."""
    model = tiny_model("mixup", kind).double()
    for module in model.modules():
        if isinstance(module, nn.LayerNorm):
            module.eps = EPS
    with torch.no_grad():
        model.sharing_layer.mixing_weight.fill_(0.4)
        model.sharing_layer.mixing_bias.fill_(-0.3)
    return model


def mixup_layer(kind: str = "bert") -> None:
    """lambda, one a sample; the block's result, and h^L behind the feed-forward; the source's pass is the plain block.

    The reference starts from the block's inputs in the two passes.
    """
    model, batch = mixup_model(kind), pair_batch(kind=kind)
    seen: list[tuple[Array, Array]] = []
    model.sharing_layer.register_forward_hook(
        lambda block, inputs, result: seen.append((inputs[0].detach().numpy(), result[0].detach().numpy()))
    )
    encoded = target_pass(model, batch, source_pass(model, batch))
    (source_input, source_output), (target_input, target_output) = seen
    weights = {name.removeprefix("self."): value for name, value in arrays(model.sharing_layer).items()}
    masks = batch["attention_mask"].numpy(), batch["source"]["attention_mask"].numpy()
    scalars = float(weights["mixing_weight"]), float(weights["mixing_bias"])
    mixed, expected = reference.xmixup_layer(target_input, source_input, *masks, weights, HEADS, *scalars, eps=EPS)
    assert len(set(expected.round(6))) == len(expected)
    close(encoded.mixing, expected)
    close(target_output, mixed)
    close(source_output, reference.self_attention_block(source_input, masks[1], weights, HEADS, EPS))
    close(encoded.states, reference_feed_forward(model.encoder.encoder.layer[1], mixed, EPS))


def mixup_loss(kind: str = "bert") -> None:
    """Both span losses, the distance and the whole loss, from the encoder's states."""
    model, batch = mixup_model(kind), pair_batch(kind=kind)
    output = both_passes(model, batch)
    head = arrays(model.qa_outputs)
    spans, pooled = [], []
    for side, gold in zip(numpy_passes(model, batch), (batch, batch["source"]), strict=True):
        logits = reference.linear(side["states"], head["weight"], head["bias"])
        positions = gold["start_positions"].numpy(), gold["end_positions"].numpy()
        spans.append(reference.span_loss(logits, side["mask"], *positions))
        pooled.append(reference.mean_pool(side["states"], side["mask"]))
    assert set(output.losses) == {"source", "target", "distance"}
    close(output.losses["target"], spans[0])
    close(output.losses["source"], spans[1])
    close(output.losses["distance"], ((pooled[0] - pooled[1]) ** 2).mean())
    close(output.loss, reference.xmixup_loss(spans[1], spans[0], *pooled))


def gold_probability() -> None:
    """Near 1 at first, 0 at last, and no overflow on the way."""
    for step in (0, 1, 500, 2000, 15_000, 40_000):
        np.testing.assert_allclose(mixup.gold_probability(step), reference.xmixup_gold_probability(step), rtol=1e-6)
    assert mixup.gold_probability(10**9) < 1e-12
