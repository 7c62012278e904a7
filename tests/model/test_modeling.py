"""The model as Hugging Face users meet it: plain equivalence, saving and loading, switches, refusals, checkpointing."""

import copy
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from toy import (
    KINDS,
    LANGUAGES,
    MODELS,
    PAIRED,
    PRESETS,
    both_passes,
    encoder_config,
    gradients,
    pair_batch,
    source_pass,
    stir,
    target_pass,
    tiny_config,
    tiny_model,
    trained_statistics,
    without_gold,
)
from transformers import (
    AutoModel,
    AutoModelForQuestionAnswering,
    AutoTokenizer,
    DistilBertConfig,
    PreTrainedTokenizerFast,
)

from xsta_lib.baselines.mixup import MixupForQuestionAnswering
from xsta_lib.encoders.backbones import load_backbone
from xsta_lib.model.configuration import ABLATIONS, CHOICES, RANGES, XStaConfig
from xsta_lib.model.modeling import XStaForQuestionAnswering

# Plain reader


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("kind", KINDS)
def test_plain_equals_the_question_answering_model(kind: str, training: bool) -> None:
    """With X-STA's parts off the logits are transformers' own, bit for bit, dropout included."""
    torch.manual_seed(1)
    theirs = AutoModelForQuestionAnswering.from_config(encoder_config(kind, dropout=0.1)).train(training)
    stir(theirs)
    ours = tiny_model("plain", kind, dropout=0.1).train(training)
    prefix = {"bert": "bert.", "xlm-roberta": "roberta."}[kind]  # what theirs calls its encoder
    renamed = {
        name.replace(prefix, "encoder.", 1) if name.startswith(prefix) else name: value
        for name, value in theirs.state_dict().items()
    }
    ours.load_state_dict(renamed)
    batch = pair_batch(kind=kind)
    side = batch["input_ids"], batch["attention_mask"]
    torch.manual_seed(2)
    expected = theirs(*side)
    torch.manual_seed(2)
    output = ours(*side, language="de")
    assert torch.equal(output.start_logits, expected.start_logits)
    assert torch.equal(output.end_logits, expected.end_logits)
    assert output.calibrated is output.target and output.teacher is None


def test_a_given_encoder_keeps_its_weights(tmp_path: Path, backbone: Path) -> None:
    new = AutoModel.from_config(encoder_config(), add_pooling_layer=False)
    stir(new)
    new.save_pretrained(tmp_path)
    added = {"paper": {"mixing_weight", "mixing_bias", "correction.weight", "correction.bias"}, "plain": set()}
    added["mixup"] = {"mixing_weight", "mixing_bias"}
    for preset, names in added.items():
        loaded = AutoModel.from_pretrained(tmp_path, add_pooling_layer=False)
        for encoder in (copy.deepcopy(new), loaded, load_backbone(str(backbone))[0]):
            before = {name: value.clone() for name, value in encoder.state_dict().items()}
            config = PRESETS[preset](encoder=encoder.config, languages=LANGUAGES, sharing_layer=1)
            after = MODELS.get(preset, XStaForQuestionAnswering)(config, encoder).encoder.state_dict()
            assert all(torch.equal(after[name], value) for name, value in before.items())
            assert {name.split("attention.")[1].removeprefix("self.") for name in set(after) - set(before)} == names


# Saving and loading


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerFast:
    """Three words."""
    words = Tokenizer(WordLevel({"[UNK]": 0, "who": 1, "is": 2}, unk_token="[UNK]"))
    return PreTrainedTokenizerFast(tokenizer_object=words, unk_token="[UNK]")


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("kind", KINDS)
def test_saving_and_loading(tmp_path: Path, kind: str, preset: str, tokenizer: PreTrainedTokenizerFast) -> None:
    model = trained_statistics(tiny_model(preset, kind), kind)
    model.save_pretrained(tmp_path, tokenizer=tokenizer, card="Trained on toys.")
    card = (tmp_path / "README.md").read_text("utf-8")
    assert "Trained on toys." in card and '"sharing"' in card
    assert AutoTokenizer.from_pretrained(tmp_path).get_vocab() == tokenizer.get_vocab()
    batch = without_gold(pair_batch(kind=kind))
    expected = both_passes(model, batch)
    for loader in (type(model), AutoModelForQuestionAnswering):
        loaded = loader.from_pretrained(tmp_path)
        assert type(loaded) is type(model) and not loaded.training
        output = both_passes(loaded, batch)
        for name in ("start_logits", "end_logits", "calibrated"):
            assert torch.equal(output[name], expected[name])
        buffers = dict(model.named_buffers())
        assert buffers.keys() == dict(loaded.named_buffers()).keys()
        assert all(torch.equal(value, buffers[name]) for name, value in loaded.named_buffers())
        ours, theirs = model.config.to_dict(), loaded.config.to_dict()
        assert not [name for name in model.config.fields() - {"encoder"} if ours[name] != theirs[name]]
        assert loaded.config.encoder.model_type == kind and loaded.config.encoder.hidden_size == 32
    names = {"README.md", "config.json", "model.safetensors"}
    assert {path.name for path in tmp_path.iterdir()} == names | {"tokenizer.json", "tokenizer_config.json"}
    model.save_pretrained(tmp_path / "bare")
    assert {path.name for path in (tmp_path / "bare").iterdir()} == names
    batch = pair_batch(kind=kind)
    if preset == "plain":
        del batch["source"]
    expected, found = gradients(model.train(), batch), gradients(loaded.train(), batch)
    assert expected.keys() == found.keys() == dict(model.named_parameters()).keys()
    assert all(torch.equal(value, expected[name]) for name, value in found.items())


def test_from_backbone_on_a_folder(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    wanted = encoder_config()
    wanted.max_position_embeddings = 384  # a window's length
    encoder = AutoModel.from_config(wanted, add_pooling_layer=False)
    encoder.save_pretrained(tmp_path), tokenizer.save_pretrained(tmp_path)
    config = XStaConfig.release(sharing_layer=1, without=["alignment_token"])
    model, loaded = XStaForQuestionAnswering.from_backbone(str(tmp_path), config, ["de"], dropout=0.25)
    assert loaded.get_vocab() == tokenizer.get_vocab()
    state = model.encoder.state_dict()
    assert all(torch.equal(state[name], value) for name, value in encoder.state_dict().items())
    assert (model.config.teacher, model.config.without, model.config.eta) == ("logits", ["alignment_token"], 0.0)
    assert model.config.languages == ["en", "de"] and model.config.sharing_layer == 1
    rates = {module.p for module in model.modules() if isinstance(module, torch.nn.Dropout)}
    assert rates == {0.25} and model.config.encoder.hidden_dropout_prob == 0.25


SCALARS, STATISTICS = {"mixing_weight", "mixing_bias"}, {"running_mean", "running_var", "updates"}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("saved", "preset", "lacks"),
    [
        ("plain", "paper", {*SCALARS, *STATISTICS, "weight", "bias"}),
        ("plain", "release", {*SCALARS, *STATISTICS, "weight", "bias"}),
        ("plain", "mixup", SCALARS),
        ("paper", "release", {"weight", "bias"}),  # the sentence projection's
    ],
)
def test_what_a_checkpoint_lacks_is_initialised(tmp_path: Path, saved: str, preset: str, lacks: set, kind: str) -> None:
    """What it has arrives; the rest starts as in a new model, not as whatever lay in memory."""
    old = trained_statistics(tiny_model(saved, kind), kind)
    old.save_pretrained(tmp_path)
    model = type(tiny_model(preset, kind)).from_pretrained(tmp_path, config=tiny_config(preset, kind))
    state, kept = model.state_dict(), old.state_dict()
    assert all(torch.equal(state[name], value) for name, value in kept.items())
    added = {name: state[name] for name in state.keys() - kept.keys()}
    for name, value in added.items():
        if name.endswith("weight") and value.ndim == 2:
            assert value.std().item() == pytest.approx(0.2, rel=0.2), name  # the toy's initializer_range
            assert value.mean().abs() < 0.05, name
        else:
            start = 1 if name.endswith(("mixing_weight", "running_var")) else 0
            assert (value == start).all(), name
    assert {name.split(".")[-1] for name in added} == lacks
    assert torch.isfinite(both_passes(model, pair_batch(kind=kind)).loss)


@pytest.mark.parametrize("preset", ["paper", "release", "mixup"])
def test_a_bfloat16_model_reads_a_source(tmp_path: Path, preset: str) -> None:
    """Without autocast, in training and in evaluation; distributions and losses are float32."""
    exact = tiny_model(preset)
    exact.save_pretrained(tmp_path)
    model = type(exact).from_pretrained(tmp_path, dtype=torch.bfloat16).train()
    assert {value.dtype for value in model.parameters()} == {torch.bfloat16}
    output = both_passes(model, pair_batch())
    output.loss.backward()
    assert output.loss.item() == pytest.approx(both_passes(exact, pair_batch()).loss.item(), rel=3e-2)
    assert all(value.grad is None or value.grad.isfinite().all() for value in model.parameters())
    assert {value.dtype for value in [output.loss, output.calibrated, *output.losses.values()]} == {torch.float32}
    with torch.no_grad():
        output = both_passes(trained_statistics(model), without_gold(pair_batch()))
    torch.testing.assert_close(output.calibrated.sum(1), torch.ones(4, 2), rtol=0, atol=1e-5)


# Switches


@pytest.mark.parametrize("preset", PAIRED)
@pytest.mark.parametrize("name", ABLATIONS)
def test_each_ablation_works_alone(name: str, preset: str) -> None:
    """A training step and a prediction; the terms that the ablation drops are gone."""
    model = tiny_model(preset, without=[name])
    output = both_passes(model, pair_batch())
    output.loss.backward()
    assert torch.isfinite(output.loss)
    unused = {name for name, value in model.named_parameters() if value.grad is None}
    expected = {"sentence_projection.0.weight", "sentence_projection.0.bias"}
    assert unused == (expected if (name, preset) == ("alignment_sentence", "release") else set())
    dropped = {"atgc": "teacher", "alignment_sentence": "sentence", "alignment_token": "token"}.get(name)
    assert set(output.losses) == {"source", "target", "teacher", "sentence", "token"} - {dropped}
    output = both_passes(trained_statistics(model), without_gold(pair_batch()))
    assert (output.calibrated is output.target) == (name in ("atgc", "atgc_inference"))
    assert (model.normalisation is None) == (name == "rep_norm")
    assert hasattr(model.sharing_layer, "correction") == (name != "gdks")


def test_all_ablations_together_leave_vanilla_cross_attention() -> None:
    model = tiny_model(without=list(ABLATIONS))
    output = both_passes(model, pair_batch())
    output.loss.backward()
    assert set(output.losses) == {"source", "target"} and model.sharing_layer.mode == "cross-attention"


@pytest.mark.parametrize("name", CHOICES)
def test_each_choice_trains(name: str) -> None:
    for value in CHOICES[name]:
        needed = {"calibration": "none"} if (name, value) == ("teacher", "none") else {}
        model = tiny_model(**{name: value}, **needed)
        output = both_passes(model, pair_batch())
        output.loss.backward()
        assert torch.isfinite(output.loss), value
        output = both_passes(trained_statistics(model), without_gold(pair_batch()))
        assert output.calibrated.isfinite().all()


REFUSED = [
    *(({name: "nonsense"}, f"{name}.*nonsense.*{', '.join(values)}") for name, values in CHOICES.items()),
    ({"without": ["nonsense"]}, f"without.*nonsense.*{', '.join(ABLATIONS)}"),
    *(
        ({name: wrong}, f"{name} is .*; allowed: {low} to {high}")
        for name, (low, high) in RANGES.items()
        for wrong in (-1.0, 1000.0, float("nan"))
    ),
    *(
        ({"sharing_layer": layer, "sharing": mode}, f"{layer}.* 1 to 2")
        for layer in (0, 3, -1)
        for mode in ("gdks", "none")
    ),
    # a part that another value removes
    ({"teacher": "none"}, "needs"),
    ({"teacher": "raw", "calibration": "logits"}, "needs"),
    ({"sharing": "none", "token_alignment": "cross-attention"}, "needs"),
]


@pytest.mark.parametrize(("values", "message"), REFUSED, ids=str)
def test_impossible_values_are_refused_with_the_allowed_ones(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiny_model(**values)


# The sharing layer


def test_a_backbone_with_too_few_layers_is_named(backbone: Path) -> None:
    said = f"sharing_layer is 8, but {backbone} has the layers 1 to 2; choose an encoder that has it; x-sta may"
    for kind in (XStaForQuestionAnswering, MixupForQuestionAnswering):  # X-MIXUP's mixes, though it is no X-STA's
        with pytest.raises(ValueError, match=re.escape(said)):
            kind.from_backbone(str(backbone))


@pytest.mark.parametrize("layer", [1, 2, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_every_layer_can_share(kind: str, layer: int) -> None:
    """The named layer shares and no other does; its input is what it keeps."""
    model = tiny_model("paper", kind, layers=3, sharing_layer=layer)
    output = both_passes(model, pair_batch(kind=kind))
    output.loss.backward()
    owners = {name.split(".layer.")[1].split(".")[0] for name in model.state_dict() if "mixing" in name}
    assert owners == {str(layer - 1)}
    assert model.sharing_layer.mixing_weight.grad.abs() > 0
    batch = without_gold(pair_batch(kind=kind))
    kept = target_pass(model.eval(), batch, None).layer_input
    hidden = model.encoder(batch["input_ids"], batch["attention_mask"], output_hidden_states=True).hidden_states
    assert torch.equal(kept, hidden[layer - 1])


def test_an_encoder_that_cannot_share_is_refused() -> None:
    config = DistilBertConfig(vocab_size=60, dim=32, n_layers=2, n_heads=4, hidden_dim=48, max_position_embeddings=40)
    with pytest.raises(ValueError, match="distilbert"):
        XStaForQuestionAnswering(XStaConfig(encoder=config, sharing_layer=1))
    batch = without_gold(pair_batch())
    plain = XStaForQuestionAnswering(XStaConfig.plain(encoder=config)).eval()
    assert plain(batch["input_ids"], batch["attention_mask"]).calibrated.isfinite().all()


# Calls


@pytest.mark.parametrize("preset", [*PAIRED, "mixup"])
def test_one_source_pass_serves_several_targets(preset: str) -> None:
    """It is left as it was, and its rows can be sliced."""
    model, batch = trained_statistics(tiny_model(preset)), without_gold(pair_batch())
    source = source_pass(model, batch)
    for language in ("de", "es"):
        expected = both_passes(model, batch | {"language": language}).calibrated
        assert torch.equal(model(**batch | {"language": language, "source": source}).calibrated, expected)
    rows = {name: value[1:3] for name, value in batch.items() if isinstance(value, torch.Tensor)}
    part = model(**rows, language="es", source=source.map(lambda value: value[1:3])).calibrated
    torch.testing.assert_close(part, expected[1:3], rtol=0, atol=1e-6)


@pytest.mark.parametrize("preset", PAIRED)
def test_explain_returns_both_attentions(preset: str) -> None:
    """Shapes, row sums, and the same distributions as without; nothing on request only, nor for a target alone."""
    model, batch = trained_statistics(tiny_model(preset)), without_gold(pair_batch())
    output, brief = both_passes(model, batch, explain=True), both_passes(model, batch)
    n_t, n_s = batch["input_ids"].shape[1], batch["source"]["input_ids"].shape[1]
    assert output.cross_attention.shape == (4, 4, n_t, n_s) and output.teacher_attention.shape == (4, n_t, n_s)
    for attention in (output.cross_attention, output.teacher_attention):
        torch.testing.assert_close(attention.sum(-1), torch.ones(attention.shape[:-1]))
        padded = batch["source"]["attention_mask"] == 0
        assert (attention.movedim(-1, 1)[padded] == 0).all()
    for name in ("target", "teacher", "calibrated"):
        torch.testing.assert_close(output[name], brief[name], rtol=0, atol=1e-6)
        assert output[name].shape == (4, n_t, 2)
    with_loss = both_passes(model, pair_batch())
    assert set(with_loss.losses) == {"source", "target", "teacher", "sentence", "token"}
    alone = both_passes(model, batch | {"source": None}, explain=True)
    assert alone.calibrated is alone.target and alone.teacher is None
    for short in (brief, with_loss, alone):
        assert short.cross_attention is None and short.teacher_attention is None


@pytest.mark.parametrize(
    ("preset", "changes"), [*((preset, {}) for preset in PRESETS), ("release", {"sharing": "cross-attention"})], ids=str
)
def test_gradient_checkpointing_changes_nothing(preset: str, changes: dict[str, Any]) -> None:
    """The same loss, gradients and running averages, dropout included; each layer does run again."""
    results, calls = [], []
    for checkpointing in (False, True):
        model = tiny_model(preset, dropout=0.1, **changes)
        if checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        count = []
        first = model.encoder.encoder.layer[0].attention.self.query
        first.register_forward_hook(lambda *_, count=count: count.append(1))
        torch.manual_seed(4)
        loss = both_passes(model, pair_batch()).loss
        loss.backward()
        calls.append(len(count))
        results.append((loss, {n: value.grad for n, value in model.named_parameters()}, dict(model.named_buffers())))
    assert calls[1] == 2 * calls[0]
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-7)
