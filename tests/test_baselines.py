"""X-MIXUP against the NumPy reference; every method through the same loop; compiling, half precision, token types."""

import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import BertTokenizerFast, PreTrainedConfig, PreTrainedTokenizerBase

from tests import reference
from tests.tiny import write_tiny_e5
from tests.toy import (
    HEADS,
    LANGUAGES,
    VOCABULARY,
    encoder_config,
    more_padding,
    pair_batch,
    tiny_model,
    trained_statistics,
    twin,
    without_gold,
)
from xsta_lib import XStaConfig, XStaForQuestionAnswering, baselines, modeling
from xsta_lib.backbones import load_tokenizer
from xsta_lib.baselines import MixupMixin
from xsta_lib.batching import Part, collate, rows_of
from xsta_lib.corpus import Answer, Question
from xsta_lib.experiments import METHODS, Experiment, training_parts
from xsta_lib.features import WindowSpec, build_windows, pair_windows
from xsta_lib.protocols import ProtocolData, TestSet
from xsta_lib.training import Trainer, TrainingConfig

Array = np.ndarray
KINDS = ["bert", "xlm-roberta"]
EPS = 1e-3  # far from the default, so that a forgotten one is seen


# X-MIXUP and the reference


def close(actual: Tensor | float, expected: Array | float) -> None:
    """Assert agreement of a float64 result with the reference within 1e-6."""
    if isinstance(actual, Tensor):
        assert actual.dtype == torch.float64
        actual = actual.detach().numpy()
    assert np.shape(actual) == np.shape(expected)
    np.testing.assert_allclose(actual, expected, rtol=1e-6, atol=1e-6)


def with_eps(encoder: PreTrainedConfig, **values: Any) -> XStaConfig:
    """X-MIXUP on an encoder whose LayerNorm adds ``EPS``."""
    encoder.layer_norm_eps = EPS
    return XStaConfig.mixup(encoder=encoder, **values)


def mixup_model(kind: str = "bert") -> XStaForQuestionAnswering:
    """A tiny X-MIXUP in float64, whose w and b are neither 1 nor 0."""
    model = tiny_model(with_eps, kind).double()
    with torch.no_grad():
        model.sharing_layer.mixing_weight.fill_(0.4)
        model.sharing_layer.mixing_bias.fill_(-0.3)
    return model


def block_passes(model: XStaForQuestionAnswering, batch: dict[str, Any]) -> tuple[Any, list[dict[str, Tensor]]]:
    """The output of a training pass, and the sharing block's input and output in the source's and target's pass."""
    seen: list[dict[str, Tensor]] = []

    def keep(block: nn.Module, inputs: tuple, result: tuple) -> None:
        seen.append({"input": inputs[0].detach(), "output": result[0].detach()})

    handle = model.sharing_layer.register_forward_hook(keep)
    output = model(**batch)
    handle.remove()
    assert len(seen) == 2
    return output, seen


def arrays(module: nn.Module) -> dict[str, Array]:
    """A module's state dict in NumPy."""
    return {name: value.numpy().copy() for name, value in module.state_dict().items()}


def block_weights(model: XStaForQuestionAnswering) -> dict[str, Array]:
    """The sharing block's weights under the reference's names."""
    return {name.removeprefix("self."): value for name, value in arrays(model.sharing_layer).items()}


def reference_block(model: XStaForQuestionAnswering, batch: dict, source: dict, target: dict) -> tuple[Array, Array]:
    """The target's states behind the block, and lambda, from the two inputs of the block."""
    weights = block_weights(model)
    states = target["input"].numpy(), source["input"].numpy()
    masks = batch["attention_mask"].numpy(), batch["source"]["attention_mask"].numpy()
    w, b = float(weights["mixing_weight"]), float(weights["mixing_bias"])
    return reference.xmixup_layer(*states, *masks, weights, HEADS, w, b, eps=EPS)


def compare_lambda(kind: str = "bert") -> None:
    """One lambda a sample, all different."""
    model, batch = mixup_model(kind), pair_batch(kind=kind)
    output, seen = block_passes(model, batch)
    expected = reference_block(model, batch, *seen)[1]
    assert len(set(expected.round(6))) == len(expected)
    close(output.mixing, expected)


def compare_layer(kind: str = "bert") -> None:
    """The block's result, and h^L behind the feed-forward; the source's pass is the plain block."""
    model, batch = mixup_model(kind), pair_batch(kind=kind)
    _, (source, target) = block_passes(model, batch)
    mixed, _ = reference_block(model, batch, source, target)
    close(target["output"], mixed)
    mask = batch["source"]["attention_mask"].numpy()
    plain = reference.self_attention_block(source["input"].numpy(), mask, block_weights(model), HEADS, EPS)
    close(source["output"], plain)
    weights = arrays(model.encoder.encoder.layer[1])
    wide = reference.gelu(
        reference.linear(mixed, weights["intermediate.dense.weight"], weights["intermediate.dense.bias"])
    )
    out = reference.linear(wide, weights["output.dense.weight"], weights["output.dense.bias"]) + mixed
    states = reference.layer_norm(out, weights["output.LayerNorm.weight"], weights["output.LayerNorm.bias"], EPS)
    inputs = batch["source"]["input_ids"], batch["source"]["attention_mask"]
    encoded = model.encode(batch["input_ids"], batch["attention_mask"], "de", model.encode(*inputs, "en"))
    close(encoded.states, states)


def compare_loss(kind: str = "bert") -> None:
    """Both span losses, the distance and the whole loss, from the encoder's states."""
    model, batch = mixup_model(kind), pair_batch(kind=kind)
    inputs = batch["source"]
    source = model.encode(inputs["input_ids"], inputs["attention_mask"], "en")
    target = model.encode(batch["input_ids"], batch["attention_mask"], "de", source)
    output = model(**batch)
    head = arrays(model.qa_outputs)
    spans, pooled = [], []
    for encoded, gold in ((source, inputs), (target, batch)):
        states, mask = encoded.states.detach().numpy(), encoded.mask.numpy()
        logits = reference.linear(states, head["weight"], head["bias"])
        spans.append(reference.span_loss(logits, mask, gold["start_positions"].numpy(), gold["end_positions"].numpy()))
        pooled.append(reference.mean_pool(states, mask))
    assert set(output.losses) == {"source", "target", "distance"}
    close(output.losses["source"], spans[0])
    close(output.losses["target"], spans[1])
    close(output.losses["distance"], ((pooled[0] - pooled[1]) ** 2).mean())
    close(output.loss, reference.xmixup_loss(*spans, *pooled))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("compare", [compare_lambda, compare_layer, compare_loss])
def test_xmixup(compare: Callable, kind: str) -> None:
    """X-MIXUP's lambda, layer and loss."""
    compare(kind)


def test_gold_probability() -> None:
    """k / (k + exp(step / k)): near 1 at first, 0 at last, and no overflow on the way."""
    for step in (0, 1, 500, 2000, 15_000, 40_000):
        assert baselines.gold_probability(step) == pytest.approx(reference.xmixup_gold_probability(step), rel=1e-6)
    assert baselines.gold_probability(30, 7.0) == pytest.approx(reference.xmixup_gold_probability(30, 7.0), rel=1e-6)
    assert baselines.gold_probability(10**9) == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_bfloat16_keeps_the_loss(kind: str) -> None:
    """Under autocast the loss is float32 and close to the float64 one."""
    exact = mixup_model(kind)(**pair_batch(kind=kind))
    with torch.autocast("cpu", torch.bfloat16):
        output = mixup_model(kind).float()(**pair_batch(kind=kind))
    assert output.loss.item() == pytest.approx(exact.loss.item(), rel=3e-2)
    assert {value.dtype for value in [output.loss, output.calibrated, *output.losses.values()]} == {torch.float32}


# Mutations: one wrong term each


def mixing_with(formula: Callable) -> Callable:
    """A method ``mixing`` that computes lambda from w, b and the entropies of both directions, (B,) each."""

    def mixing(self, forth: Tensor, back: Tensor, target_mask: Tensor, source_mask: Tensor) -> Tensor:
        one = baselines.masked_row_mean(baselines.row_entropy(forth.mean(1)), target_mask)
        other = baselines.masked_row_mean(baselines.row_entropy(back.mean(1)), source_mask)
        return formula(self.mixing_weight, self.mixing_bias, one, other)

    return mixing


def forward_with(formula: Callable, raw_source: bool = False) -> Callable:
    """A method ``forward`` that mixes by ``formula(norm, lambda, cross, own)``; or that reads the source too early."""

    def forward(self, hidden_states: Tensor, attention_mask=None, sharing=None, **kwargs):
        own, weights = super(MixupMixin, self).forward(hidden_states, attention_mask, **kwargs)
        sharing.layer_input, source = (hidden_states if raw_source else own), sharing.source_input
        if source is None:
            return own, weights
        forth = self._probabilities(own, source, sharing.source_mask)
        back = self._probabilities(source, own, sharing.mask)
        sharing.mixing = self.mixing(forth, back, sharing.mask, sharing.source_mask)
        found = forth @ baselines.split_heads(self.self.value(source), HEADS)
        cross = self.output.dense(found.transpose(1, 2).flatten(2))
        return formula(self.output.LayerNorm, sharing.mixing[:, None, None], cross, own), weights

    return forward


def entropy_of_heads(self, forth: Tensor, back: Tensor, target_mask: Tensor, source_mask: Tensor) -> Tensor:
    """The heads' mean entropy, not the entropy of the heads' mean."""
    entropy = baselines.masked_row_mean(baselines.row_entropy(forth).mean(1), target_mask)
    entropy = entropy + baselines.masked_row_mean(baselines.row_entropy(back).mean(1), source_mask)
    return 0.5 * torch.sigmoid(self.mixing_weight * entropy + self.mixing_bias)


def mean_with_padding(values: Tensor, mask: Tensor) -> Tensor:
    """Padded queries in ECA."""
    return values.mean(1)


def unmasked_attention(query: Tensor, key: Tensor, key_mask: Tensor) -> Tensor:
    """Attention that looks at padding."""
    return (query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5).softmax(-1)


def first_token(states: Tensor, mask: Tensor) -> Tensor:
    """[CLS] in place of the mean."""
    return states[:, 0]


def unsquared_distance(source: Tensor, target: Tensor, source_mask: Tensor, target_mask: Tensor) -> Tensor:
    """Mean distance, not mean squared distance."""
    return (baselines.mean_pool(source, source_mask) - baselines.mean_pool(target, target_mask)).abs().mean()


def distance_of_all_tokens(source: Tensor, target: Tensor, source_mask: Tensor, target_mask: Tensor) -> Tensor:
    """Padding in the means."""
    return DISTANCE(source, target, torch.ones_like(source_mask), torch.ones_like(target_mask))


def swapped_alpha(self, terms: dict[str, Tensor]) -> Tensor:
    """alpha on the target, 1 - alpha on the source."""
    return OBJECTIVE(self, terms | {"source": terms["target"], "target": terms["source"]})


def no_distance(self, terms: dict[str, Tensor]) -> Tensor:
    """The distance left out of the loss."""
    return OBJECTIVE(self, {name: value for name, value in terms.items() if name != "distance"})


def right_mix(norm: nn.Module, share: Tensor, cross: Tensor, own: Tensor) -> Tensor:
    """As the library mixes."""
    return norm(share * cross + (1 - share) * own)


def right_lambda(w: Tensor, b: Tensor, forth: Tensor, back: Tensor) -> Tensor:
    """As the library computes lambda."""
    return 0.5 * (w * (forth + back) + b).sigmoid()


DISTANCE, OBJECTIVE = baselines.representation_distance, XStaForQuestionAnswering.objective
ROW_ENTROPY = baselines.row_entropy

WRONG_LAMBDAS: dict[str, Callable] = {
    "minus w": lambda w, b, f, g: 0.5 * (b - w * (f + g)).sigmoid(),
    "minus b": lambda w, b, f, g: 0.5 * (w * (f + g) - b).sigmoid(),
    "no lambda_0": lambda w, b, f, g: (w * (f + g) + b).sigmoid(),
    "one way": lambda w, b, f, g: 0.5 * (w * f + b).sigmoid(),
    "other way": lambda w, b, f, g: 0.5 * (w * g + b).sigmoid(),
    "mean": lambda w, b, f, g: 0.5 * (w * (f + g) / 2 + b).sigmoid(),
}
WRONG_MIXES: dict[str, Callable] = {
    "residual": lambda norm, s, c, o: norm(s * (c + o) + (1 - s) * o),
    "swapped": lambda norm, s, c, o: norm((1 - s) * c + s * o),
    "no norm": lambda norm, s, c, o: s * c + (1 - s) * o,
    "sum": lambda norm, s, c, o: norm(s * c + o),
}

# A name, owner, attribute, what takes its place, the comparison that must fail.
MUTATIONS = [
    *((name, MixupMixin, "mixing", mixing_with(wrong), compare_lambda) for name, wrong in WRONG_LAMBDAS.items()),
    *((name, MixupMixin, "forward", forward_with(wrong), compare_layer) for name, wrong in WRONG_MIXES.items()),
    ("heads apart", MixupMixin, "mixing", entropy_of_heads, compare_lambda),
    ("bits", baselines, "row_entropy", lambda p: ROW_ENTROPY(p) / math.log(2), compare_lambda),
    ("padded queries", baselines, "masked_row_mean", mean_with_padding, compare_lambda),
    ("padded keys", baselines, "attention_probabilities", unmasked_attention, compare_layer),
    ("block input", MixupMixin, "forward", forward_with(right_mix, raw_source=True), compare_layer),
    ("cls", baselines, "mean_pool", first_token, compare_loss),
    ("unsquared", modeling, "representation_distance", unsquared_distance, compare_loss),
    ("padded mean", modeling, "representation_distance", distance_of_all_tokens, compare_loss),
    ("swapped alpha", XStaForQuestionAnswering, "objective", swapped_alpha, compare_loss),
    ("no distance", XStaForQuestionAnswering, "objective", no_distance, compare_loss),
]


@pytest.mark.parametrize(
    ("owner", "attribute", "wrong", "compare"), [row[1:] for row in MUTATIONS], ids=[row[0] for row in MUTATIONS]
)
def test_a_wrong_term_is_seen(
    monkeypatch: pytest.MonkeyPatch, owner: Any, attribute: str, wrong: Any, compare: Callable
) -> None:
    """The comparison holds, and fails once one term is wrong."""
    compare()
    monkeypatch.setattr(owner, attribute, wrong)
    with pytest.raises(AssertionError):
        compare()


def test_the_written_out_forward_is_right(monkeypatch: pytest.MonkeyPatch) -> None:
    """The mutations of ``mixing`` and ``forward`` differ from the library's by their one wrong term alone."""
    monkeypatch.setattr(MixupMixin, "forward", forward_with(right_mix))
    monkeypatch.setattr(MixupMixin, "mixing", mixing_with(right_lambda))
    compare_lambda()
    compare_layer()


# X-MIXUP's properties


def english(model: XStaForQuestionAnswering, batch: dict[str, Any]) -> Any:
    """The source's own pass."""
    return model.encode(batch["source"]["input_ids"], batch["source"]["attention_mask"], "en")


def test_the_source_is_the_same_whatever_the_target() -> None:
    """Its pass and its span loss do not depend on the target."""
    model, batch, other = tiny_model("mixup"), pair_batch(0), pair_batch(1, language="es")
    other["source"] = batch["source"]
    before = english(model, batch)
    assert torch.equal(model(**batch).losses["source"], model(**other).losses["source"])
    after = english(model, batch)
    assert torch.equal(before.logits, after.logits) and torch.equal(before.layer_input, after.layer_input)


@pytest.mark.parametrize(("preset", "reaches"), [("mixup", True), ("paper", False)])
def test_gradients_reach_the_source(preset: str, reaches: bool) -> None:
    """The target's span loss trains the source's words through X-MIXUP's layer, unlike GDKS."""
    model = tiny_model(preset, alpha=0.0, gamma=0.0, zeta=0.0, eta=0.0, distance=0.0)
    model(**pair_batch()).loss.backward()
    words = model.encoder.embeddings.word_embeddings.weight.grad[5 : VOCABULARY // 2]
    assert (words.abs().sum() > 0) == reaches
    assert model.sharing_layer.mixing_weight.grad.abs() > 0 and model.sharing_layer.mixing_bias.grad.abs() > 0


@pytest.mark.parametrize("kind", KINDS)
def test_without_a_source_it_is_the_plain_model(kind: str) -> None:
    """Bit for bit, in training with dropout too."""
    model, plain = tiny_model("mixup", kind, dropout=0.1), tiny_model("plain", kind, dropout=0.1)
    plain.load_state_dict({name: model.state_dict()[name] for name in plain.state_dict()})
    batch = pair_batch(kind=kind)
    del batch["source"]
    losses = []
    for either in (model, plain):
        torch.manual_seed(5)
        output = either(**batch)
        assert output.mixing is None and set(output.losses) == {"target"}
        losses.append(output.loss)
    assert torch.equal(*losses)


@pytest.mark.parametrize("kind", KINDS)
def test_more_padding_changes_nothing(kind: str) -> None:
    """Neither lambda, nor a term, nor a distribution, on either side."""
    model, batch = tiny_model("mixup", kind), pair_batch(kind=kind)
    padded = more_padding(batch, 5, kind) | {"source": more_padding(batch["source"], 3, kind)}
    one, other = model(**batch), model(**padded)
    width = batch["input_ids"].shape[1]
    torch.testing.assert_close(one.losses, other.losses, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(one.mixing, other.mixing, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(one.calibrated, other.calibrated[:, :width], rtol=1e-5, atol=1e-5)


# Every method through the same loop


def questions(template: str, question: str) -> list[Question]:
    """Sixteen questions whose answer stands in one place of a short context."""
    places = ["Paris", "the city", "a river", "Rome"]
    found = []
    for i in range(16):
        place = places[i % 4]
        context = template.format(i) + place + "."
        answer = Answer(place, context.index(place))
        found.append(Question(f"q{i}", question.format(i), context, (answer,), f"article {i % 5}"))
    return found


@pytest.fixture(scope="module")
def data() -> ProtocolData:
    """English questions and their German translations, by the same ids."""
    train = questions("River {} is in ", "Where is river {}?")
    german = questions("Der Fluss {} ist in ", "Wo ist Fluss {}?")
    return ProtocolData("toy", train, {"de": german}, train, TestSet("validation", "squad", {}), [])


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny encoder in e5's format."""
    return write_tiny_e5(tmp_path_factory.mktemp("tiny") / "tiny.bin")


TERMS = {
    "zero-shot": set(),
    "trans-train": set(),
    "x-mixup": {"source", "distance", "lambda"},
    "x-sta": {"source", "teacher", "sentence", "token", "lambda", "teacher_mass"},
}


@pytest.mark.parametrize("method", METHODS)
def test_each_method_trains(
    method: str, data: ProtocolData, backbone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows, terms and a falling loss; pairs alone have more terms than the span loss."""
    monkeypatch.setenv("XSTA_CACHE", str(tmp_path))
    exp = Experiment("toy", method)
    config = exp.model_config()
    config.sharing_layer = 2
    torch.manual_seed(0)
    model, tokenizer = XStaForQuestionAnswering.from_backbone(str(backbone), config, ["en", "de"], dropout=0.1)
    parts = training_parts(exp, data, tokenizer)
    settings = TrainingConfig(steps=24, batch_size=8, learning_rate=3e-3, log_every=1)
    trainer = Trainer(model, parts, settings, tokenizer.pad_token_id)
    pairs = sum(row.source >= 0 for row in trainer.rows)
    expected = {"zero-shot": (16, 0), "trans-train": (32, 0), "x-mixup": (32, 16), "x-sta": (32, 16)}[method]
    assert (len(trainer.rows), pairs) == expected
    log = trainer.train(progress=False).log
    always = {"step", "epoch", "seconds", "learning_rate", "grad_norm", "loss", "target"}
    terms = [frozenset(line.keys() - always) for line in log]
    assert set(terms) == ({frozenset(), frozenset(TERMS[method])} if pairs else {frozenset()})
    assert all(math.isfinite(value) for line in log for value in line.values())
    losses = [line["target"] for line in log]
    assert sum(losses[-8:]) < 0.9 * sum(losses[:8])
    if method == "x-mixup":
        assert all(0 < line["lambda"] < 0.5 and line["distance"] > 0 for line in log if "lambda" in line)


# torch.compile


@pytest.fixture
def fresh_compiler() -> Any:
    """No compiled code of an earlier test, and none left behind."""
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def one_layer(preset: str, **changes: Any) -> XStaForQuestionAnswering:
    """The smallest model that shares."""
    return tiny_model(preset, layers=1, sharing_layer=1, **changes)


def compare_compiled(model: XStaForQuestionAnswering, tolerance: float, **options: Any) -> None:
    """A training pass of the compiled model: losses, gradients and running averages as without compiling."""
    eager, batch = twin(model), pair_batch()
    output = torch.compile(model, fullgraph=True, **options)(**batch)  # fullgraph: a graph break is an error
    expected = eager(**batch)
    output.loss.backward(), expected.loss.backward()
    for name in ("losses", "loss", "mixing", "calibrated"):
        torch.testing.assert_close(output[name], expected[name], rtol=tolerance, atol=tolerance)
    for (name, one), other in zip(model.named_parameters(), eager.parameters(), strict=True):
        assert (one.grad is None) == (other.grad is None), name
        if one.grad is not None:
            torch.testing.assert_close(one.grad, other.grad, rtol=tolerance, atol=tolerance)
    buffers = dict(model.named_buffers()), dict(eager.named_buffers())
    torch.testing.assert_close(*buffers, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("preset", ["paper", "mixup"])
def test_compiling_changes_nothing(preset: str, fresh_compiler: Any) -> None:
    """In one graph."""
    compare_compiled(one_layer(preset), 1e-5, backend="aot_eager")


@pytest.mark.heavy
def test_compiling_changes_no_prediction(fresh_compiler: Any) -> None:
    """At test time the choice of running averages may split the graph; the distributions stay."""
    model, batch = trained_statistics(one_layer("paper")), without_gold(pair_batch())
    with torch.no_grad():
        expected, output = model(**batch), torch.compile(twin(model), backend="aot_eager")(**batch)
    for name in ("target", "teacher", "calibrated"):
        torch.testing.assert_close(output[name], expected[name], rtol=1e-5, atol=1e-5)


@pytest.mark.heavy
@pytest.mark.skipif(not (shutil.which("g++") or shutil.which("gcc")), reason="no C++ compiler")
def test_compiling_to_machine_code(fresh_compiler: Any) -> None:
    """The default backend, which writes and compiles C++. The forward pass alone and no vectors: g++ is slow."""
    model, batch = (
        one_layer("paper", without=["atgc", "rep_norm", "alignment_sentence", "alignment_token"]),
        pair_batch(),
    )
    with torch.no_grad():
        output, expected = torch.compile(model, fullgraph=True, options={"cpp.simdlen": 1})(**batch), model(**batch)
    for name in ("losses", "loss", "calibrated"):
        torch.testing.assert_close(output[name], expected[name], rtol=1e-4, atol=1e-4)


# Loading


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("preset", ["paper", "release", "mixup"])
def test_what_a_plain_checkpoint_lacks_is_initialised(tmp_path: Path, preset: str, kind: str) -> None:
    """Its own weights arrive; the rest starts as in a new model, not as whatever lay in memory."""
    plain = tiny_model("plain", kind)
    plain.save_pretrained(tmp_path)
    make = {"paper": XStaConfig, "release": XStaConfig.release, "mixup": XStaConfig.mixup}[preset]
    config = make(encoder=encoder_config(kind), languages=LANGUAGES, sharing_layer=2)
    model = XStaForQuestionAnswering.from_pretrained(tmp_path, config=config)
    state, kept = model.state_dict(), plain.state_dict()
    assert all(torch.equal(state[name], value) for name, value in kept.items())
    added = {name: state[name] for name in state.keys() - kept.keys()}
    for name, value in added.items():
        if name.endswith("weight") and value.ndim == 2:
            assert value.std().item() == pytest.approx(0.2, rel=0.2), name  # the toy's initializer_range
            assert value.mean().abs() < 0.05, name
        else:
            start = 1 if name.endswith(("mixing_weight", "running_var")) else 0
            assert (value == start).all(), name
    parts = {name.split(".")[-1] for name in added}
    assert parts >= {"mixing_weight", "mixing_bias"}
    assert preset == "mixup" or parts >= {"running_mean", "running_var", "updates", "weight", "bias"}
    assert torch.isfinite(model(**pair_batch(kind=kind)).loss)


def test_what_a_trained_checkpoint_has_is_kept(tmp_path: Path) -> None:
    """A paper model read as a release one: only the sentence projection is new."""
    model = trained_statistics(tiny_model())
    model.save_pretrained(tmp_path)
    config = XStaConfig.release(encoder=encoder_config(), languages=LANGUAGES, sharing_layer=2)
    state = XStaForQuestionAnswering.from_pretrained(tmp_path, config=config).state_dict()
    assert all(torch.equal(state[name], value) for name, value in model.state_dict().items())
    new = state.keys() - model.state_dict().keys()
    assert new == {"sentence_projection.0.weight", "sentence_projection.0.bias"}


@pytest.mark.parametrize("preset", ["paper", "release", "mixup"])
def test_a_bfloat16_model_reads_a_source(tmp_path: Path, preset: str) -> None:
    """Without autocast, in training and in evaluation; distributions and losses are float32."""
    exact = tiny_model(preset)
    exact.save_pretrained(tmp_path)
    model = XStaForQuestionAnswering.from_pretrained(tmp_path, dtype=torch.bfloat16).train()
    assert {value.dtype for value in model.parameters()} == {torch.bfloat16}
    output = model(**pair_batch())
    output.loss.backward()
    assert output.loss.item() == pytest.approx(exact(**pair_batch()).loss.item(), rel=3e-2)
    assert all(value.grad is None or value.grad.isfinite().all() for value in model.parameters())
    assert {value.dtype for value in [output.loss, output.calibrated, *output.losses.values()]} == {torch.float32}
    with torch.no_grad():
        prediction = trained_statistics(model)(**without_gold(pair_batch())).calibrated
    torch.testing.assert_close(prediction.sum(1), torch.ones(4, 2), rtol=0, atol=1e-5)


# Token types


@pytest.fixture(scope="module")
def bert_tokenizer() -> PreTrainedTokenizerBase:
    """WordPieces for the toy's English and German questions, and unknown ones."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    words = [
        "river",
        "where",
        "wo",
        "ist",
        "is",
        "der",
        "fluss",
        "in",
        "the",
        "city",
        "a",
        "paris",
        "rome",
        ".",
        "?",
        "##s",
        "##1",
    ]
    return BertTokenizerFast(vocab={word: i for i, word in enumerate([*special, *words, *map(str, range(10))])})


def pair_inputs(data: ProtocolData, tokenizer: PreTrainedTokenizerBase, cache: Path | None = None) -> dict[str, Any]:
    """A batch of pairs, collated."""
    spec = WindowSpec(max_length=48, stride=4, max_question_length=16)
    source = build_windows(data.train, tokenizer, spec, cache)
    target = build_windows(data.parallel["de"], tokenizer, spec, cache)
    parts = [Part("de", target, source, pair_windows(target, source, by_answer=True))]
    chosen = [row for row in rows_of(parts) if row.target in (1, 4, 10, 15)]
    return collate(parts, chosen, tokenizer.pad_token_id, multiple=8)


def test_token_types_mark_the_context(
    data: ProtocolData, bert_tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    """1 on the context and its [SEP], 0 on [CLS], question, its [SEP] and padding; from the cache too."""
    assert "token_type_ids" in bert_tokenizer.model_input_names
    for _ in range(2):
        batch = pair_inputs(data, bert_tokenizer, tmp_path)
        for side in (batch, batch["source"]):
            assert side["token_type_ids"].shape == side["input_ids"].shape
            for ids, types in zip(side["input_ids"].tolist(), side["token_type_ids"].tolist(), strict=True):
                first = ids.index(bert_tokenizer.sep_token_id)
                last = ids.index(bert_tokenizer.sep_token_id, first + 1)
                assert ids[last + 1 :] == [bert_tokenizer.pad_token_id] * (len(ids) - last - 1)
                assert types == [0] * (first + 1) + [1] * (last - first) + [0] * (len(ids) - last - 1)
            assert (side["attention_mask"] == 0).any()
        places = torch.arange(len(batch["start_positions"])), batch["start_positions"]
        assert (batch["token_type_ids"][places] == 1).all()


def test_the_encoder_reads_token_types(data: ProtocolData, bert_tokenizer: PreTrainedTokenizerBase) -> None:
    """Each side's own; none at all reads like zeros."""
    batch = pair_inputs(data, bert_tokenizer)
    model = tiny_model()
    blank = {"token_type_ids": torch.zeros_like(batch["token_type_ids"])}
    blank_source = {"token_type_ids": torch.zeros_like(batch["source"]["token_type_ids"])}
    full, other = twin(model)(**batch), twin(model)(**batch | blank)
    assert full.losses["source"] == other.losses["source"] and full.losses["target"] != other.losses["target"]
    other = twin(model)(**batch | {"source": batch["source"] | blank_source})
    assert full.losses["source"] != other.losses["source"]
    zeros = twin(model)(**batch | blank | {"source": batch["source"] | blank_source})
    del batch["token_type_ids"], batch["source"]["token_type_ids"]
    assert torch.equal(twin(model)(**batch).loss, zeros.loss)


def test_e5_has_no_token_types(data: ProtocolData, backbone: Path) -> None:
    """Its tokenizer does not ask for them, so neither side carries any."""
    batch = pair_inputs(data, load_tokenizer(str(backbone)))
    assert "token_type_ids" not in batch and "token_type_ids" not in batch["source"]


def back_translated(data: ProtocolData) -> ProtocolData:
    """The same data with English translated back: other words, no answers, one question missing."""
    found = [Question(q.id, q.question, "back " + q.context, ()) for q in data.parallel["de"][1:]]
    return replace(data, back_translated={"de": found})


def test_scheduled_sampling_reads_back_translations_as_often_as_it_should(
    data: ProtocolData, backbone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Gold first, back-translated ever more often; such a step reads that English and has the target's loss alone."""
    monkeypatch.setenv("XSTA_CACHE", str(tmp_path))
    exp, config = Experiment("toy", "x-mixup"), XStaConfig.mixup()
    config.sharing_layer = 2
    torch.manual_seed(0)
    model, tokenizer = XStaForQuestionAnswering.from_backbone(str(backbone), config, ["en", "de"], dropout=0.0)
    parts = training_parts(exp, back_translated(data), tokenizer)
    trainer = Trainer(model, parts, TrainingConfig(steps=9, precision="fp32"), tokenizer.pad_token_id)
    first = parts[1].target.ids.index(data.parallel["de"][0].id)
    pairs = [row for row in trainer.rows if row.source >= 0 and parts[1].target.row[row.target] != first][:4]
    lone = next(row for row in trainer.rows if row.source >= 0 and parts[1].target.row[row.target] == first)
    for start in (0, 12_000, 15_200, 40_000):
        read = []
        for trainer.step in range(start, start + 400):
            read.append(trainer.reads_back_translation(pairs))
        probability = np.mean([reference.xmixup_gold_probability(step) for step in range(start, start + 400)])
        assert np.mean(read) == pytest.approx(1 - probability, abs=0.08)
        assert not any(trainer.reads_back_translation(rows) for rows in ([*pairs, lone], trainer.rows[:2]))
    trainer.step = 10**6
    assert trainer.reads_back_translation(pairs)
    inputs = trainer._inputs(pairs, True)
    assert tokenizer.decode(inputs["source"]["input_ids"][0]).count("back") == 1 and len(inputs["source"]) == 2
    model.train()
    output = model(**inputs)
    assert set(output.losses) == {"target"} and output.loss.item() == output.losses["target"].item()
    gold = model(**trainer._inputs(pairs, False))
    assert set(gold.losses) == {"source", "target", "distance"} and gold.losses["target"] != output.losses["target"]
    trainer.train_step(pairs)
    assert all(
        part.back is None for part in training_parts(Experiment("toy", "x-sta"), back_translated(data), tokenizer)
    )
