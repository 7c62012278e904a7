"""The model as Hugging Face users meet it: plain equivalence, saving and loading, switches, refusals, checkpointing."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import write_tiny_e5
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import (
    AutoModel,
    AutoModelForQuestionAnswering,
    AutoTokenizer,
    DistilBertConfig,
    PreTrainedTokenizerFast,
)

from tests.toy import LANGUAGES, PRESETS, encoder_config, pair_batch, stir, tiny_model, trained_statistics, without_gold
from xsta_lib import XStaConfig, XStaForQuestionAnswering
from xsta_lib.backbones import load_backbone
from xsta_lib.configuration import ABLATIONS, CHOICES, RANGES

KINDS = ["bert", "xlm-roberta"]
PAIRED = ["paper", "release"]


def named_prefix(kind: str) -> str:
    """What a question answering model of this kind calls its encoder."""
    return {"bert": "bert.", "xlm-roberta": "roberta."}[kind]


# Plain reader


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("kind", KINDS)
def test_plain_equals_the_question_answering_model(kind: str, training: bool) -> None:
    """With X-STA's parts off the logits are transformers' own, bit for bit, dropout included."""
    torch.manual_seed(1)
    theirs = AutoModelForQuestionAnswering.from_config(encoder_config(kind, dropout=0.1)).train(training)
    stir(theirs)
    ours = tiny_model("plain", kind, dropout=0.1).train(training)
    prefix = named_prefix(kind)
    renamed = {
        name.replace(prefix, "encoder.", 1) if name.startswith(prefix) else name: value
        for name, value in theirs.state_dict().items()
    }
    ours.load_state_dict(renamed)
    batch = pair_batch(kind=kind)
    inputs = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
    torch.manual_seed(2)
    expected = theirs(**inputs)
    torch.manual_seed(2)
    output = ours(**inputs, language="de")
    assert torch.equal(output.start_logits, expected.start_logits)
    assert torch.equal(output.end_logits, expected.end_logits)
    assert output.calibrated is output.target and output.teacher is None


def test_a_given_encoder_keeps_its_weights(tmp_path: Path) -> None:
    """Neither a new nor a loaded encoder is initialised again."""
    new = AutoModel.from_config(encoder_config(), add_pooling_layer=False)
    stir(new)
    new.save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path, add_pooling_layer=False)
    for encoder in (new, loaded):
        before = {name: value.clone() for name, value in encoder.state_dict().items()}
        config = XStaConfig(encoder=encoder.config, languages=LANGUAGES, sharing_layer=1)
        after = XStaForQuestionAnswering(config, encoder).encoder.state_dict()
        assert all(torch.equal(after[name], value) for name, value in before.items())
        assert set(after) - set(before) == {
            f"encoder.layer.0.attention.self.{name}"
            for name in ("mixing_weight", "mixing_bias", "correction.weight", "correction.bias")
        }


# Saving and loading


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerFast:
    """Three words."""
    words = Tokenizer(WordLevel({"[UNK]": 0, "who": 1, "is": 2}, unk_token="[UNK]"))
    return PreTrainedTokenizerFast(tokenizer_object=words, unk_token="[UNK]")


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("kind", KINDS)
def test_saving_and_loading(tmp_path: Path, kind: str, preset: str, tokenizer: PreTrainedTokenizerFast) -> None:
    """Logits, running statistics and configuration come back the same, through either class."""
    model = trained_statistics(tiny_model(preset, kind), kind)
    model.save_pretrained(tmp_path, tokenizer=tokenizer, card="Trained on toys.")
    card = (tmp_path / "README.md").read_text("utf-8")
    assert "Trained on toys." in card and '"sharing"' in card
    assert AutoTokenizer.from_pretrained(tmp_path).get_vocab() == tokenizer.get_vocab()
    batch = without_gold(pair_batch(kind=kind))
    expected = model(**batch)
    for loader in (XStaForQuestionAnswering, AutoModelForQuestionAnswering):
        loaded = loader.from_pretrained(tmp_path)
        assert isinstance(loaded, XStaForQuestionAnswering) and not loaded.training
        output = loaded(**batch)
        for name in ("start_logits", "end_logits", "calibrated"):
            assert torch.equal(output[name], expected[name])
        buffers = dict(model.named_buffers())
        assert buffers.keys() == dict(loaded.named_buffers()).keys()
        assert all(torch.equal(value, buffers[name]) for name, value in loaded.named_buffers())
        switches = [*XStaConfig.__annotations__]
        ours, theirs = model.config.to_dict(), loaded.config.to_dict()
        changed = [name for name in switches if name != "encoder" and ours[name] != theirs[name]]
        assert not changed
        assert loaded.config.encoder.model_type == kind and loaded.config.encoder.hidden_size == 32


def test_saving_without_a_tokenizer(tmp_path: Path) -> None:
    """The card is written all the same."""
    tiny_model().save_pretrained(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"README.md", "config.json", "model.safetensors"}


@pytest.mark.parametrize("preset", [*PAIRED, "mixup"])
def test_a_loaded_model_trains_on(tmp_path: Path, preset: str) -> None:
    """The same loss and the same gradients as before saving."""
    model = tiny_model(preset)
    model.save_pretrained(tmp_path)
    loaded = XStaForQuestionAnswering.from_pretrained(tmp_path).train()
    for either in (model, loaded):
        either(**pair_batch()).loss.backward()
    gradients = {name: value.grad for name, value in model.named_parameters()}
    for name, value in loaded.named_parameters():
        assert torch.equal(value.grad, gradients[name]), name


def test_from_backbone_on_a_folder(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    """The encoder's weights, the configuration's switches, the languages and one dropout arrive."""
    encoder = AutoModel.from_config(encoder_config(), add_pooling_layer=False)
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


# Switches


@pytest.mark.parametrize("preset", PAIRED)
@pytest.mark.parametrize("name", ABLATIONS)
def test_each_ablation_works_alone(name: str, preset: str) -> None:
    """A training step and a prediction; the terms that the ablation drops are gone."""
    model = tiny_model(preset, without=[name])
    output = model(**pair_batch())
    output.loss.backward()
    assert torch.isfinite(output.loss)
    unused = {name for name, value in model.named_parameters() if value.grad is None}
    expected = {"sentence_projection.0.weight", "sentence_projection.0.bias"}
    assert unused == (expected if (name, preset) == ("alignment_sentence", "release") else set())
    dropped = {"atgc": "teacher", "alignment_sentence": "sentence", "alignment_token": "token"}.get(name)
    assert set(output.losses) == {"source", "target", "teacher", "sentence", "token"} - {dropped}
    output = trained_statistics(model)(**without_gold(pair_batch()))
    assert (output.calibrated is output.target) == (name in ("atgc", "atgc_inference"))
    assert (model.normalisation is None) == (name == "rep_norm")
    assert hasattr(model.sharing_layer, "correction") == (name != "gdks")


def test_all_ablations_together() -> None:
    """What is left is vanilla cross-attention."""
    model = tiny_model(without=list(ABLATIONS))
    output = model(**pair_batch())
    output.loss.backward()
    assert set(output.losses) == {"source", "target"} and model.sharing_layer.mode == "cross-attention"


def test_an_unknown_ablation_lists_the_allowed() -> None:
    """Each allowed name is in the message."""
    with pytest.raises(ValueError, match="nonsense") as caught:
        XStaConfig(without=["nonsense"])
    assert all(name in str(caught.value) for name in ABLATIONS)


@pytest.mark.parametrize("name", CHOICES)
def test_each_choice_names_what_is_allowed(name: str) -> None:
    """A value that is not offered stops with the offered ones."""
    with pytest.raises(ValueError, match=name) as caught:
        XStaConfig(**{name: "nonsense"})
    assert all(value in str(caught.value) for value in CHOICES[name])


@pytest.mark.parametrize("name", CHOICES)
def test_each_choice_trains(name: str) -> None:
    """Every offered value alone (with what it needs) works through a training step and a prediction."""
    needed = {
        ("teacher", "none"): {"calibration": "none"},
        ("sharing", "x-mixup"): {"eta": 0.0},
    }
    for value in CHOICES[name]:
        model = tiny_model(**{name: value}, **needed.get((name, value), {}))
        output = model(**pair_batch())
        output.loss.backward()
        assert torch.isfinite(output.loss), value
        assert trained_statistics(model)(**without_gold(pair_batch())).calibrated.isfinite().all()


@pytest.mark.parametrize("name", RANGES)
@pytest.mark.parametrize("wrong", [-1.0, 1000.0, float("nan")])
def test_each_number_has_a_range(name: str, wrong: float) -> None:
    """A number out of range stops with the range."""
    low, high = RANGES[name]
    with pytest.raises(ValueError, match=f"{name} is .*; allowed: {low} to {high}"):
        XStaConfig(**{name: wrong})


@pytest.mark.parametrize(
    "values",
    [
        {"teacher": "none"},
        {"teacher": "raw", "calibration": "logits"},
        {"sharing": "none", "token_alignment": "cross-attention"},
    ],
    ids=str,
)
def test_combinations_without_sense_are_refused(values: dict[str, Any]) -> None:
    """Each needs a part that another value removes."""
    with pytest.raises(ValueError, match="needs"):
        XStaConfig(**values)


# The sharing layer


@pytest.mark.parametrize("layer", [1, 2, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_every_layer_can_share(kind: str, layer: int) -> None:
    """The named layer shares and no other does; its input is what it keeps."""
    model = tiny_model("paper", kind, layers=3, sharing_layer=layer)
    output = model(**pair_batch(kind=kind))
    output.loss.backward()
    owners = {name.split(".layer.")[1].split(".")[0] for name in model.state_dict() if "mixing" in name}
    assert owners == {str(layer - 1)}
    assert model.sharing_layer.mixing_weight.grad.abs() > 0
    batch = without_gold(pair_batch(kind=kind))
    kept = model.eval().encode(batch["input_ids"], batch["attention_mask"], "de").layer_input
    hidden = model.encoder(batch["input_ids"], batch["attention_mask"], output_hidden_states=True).hidden_states
    assert torch.equal(kept, hidden[layer - 1])


@pytest.mark.parametrize("layer", [0, 4, -1])
def test_layers_that_do_not_exist_are_refused(layer: int) -> None:
    """The message says which there are; so too where the layer only hands out its input."""
    with pytest.raises(ValueError, match=f"{layer}.* 1 to 3"):
        tiny_model(layers=3, sharing_layer=layer)
    with pytest.raises(ValueError, match=f"{layer}.* 1 to 3"):
        tiny_model(layers=3, sharing_layer=layer, sharing="none")


def test_an_encoder_that_cannot_share_is_refused() -> None:
    """DistilBERT has other attention; as a plain reader it works."""
    config = DistilBertConfig(vocab_size=60, dim=32, n_layers=2, n_heads=4, hidden_dim=48, max_position_embeddings=40)
    with pytest.raises(ValueError, match="distilbert"):
        XStaForQuestionAnswering(XStaConfig(encoder=config, sharing_layer=1))
    batch = without_gold(pair_batch())
    plain = XStaForQuestionAnswering(XStaConfig.plain(encoder=config)).eval()
    assert plain(batch["input_ids"], batch["attention_mask"]).calibrated.isfinite().all()


# Calls


@pytest.mark.parametrize("preset", PAIRED)
def test_without_a_source_the_target_is_predicted_alone(preset: str) -> None:
    """No teacher, and p_T as the calibrated distribution."""
    model, batch = trained_statistics(tiny_model(preset)), without_gold(pair_batch())
    del batch["source"]
    output = model(**batch, explain=True)
    assert output.calibrated is output.target
    assert output.teacher is None and output.cross_attention is None and output.teacher_attention is None


@pytest.mark.parametrize("preset", [*PAIRED, "mixup"])
def test_an_encoded_source_serves_as_well_as_its_inputs(preset: str) -> None:
    """One source pass for several targets; rows can be sliced; training wants the inputs."""
    model, batch = trained_statistics(tiny_model(preset)), pair_batch()
    test = without_gold(batch)
    source = model.encode(test["source"]["input_ids"], test["source"]["attention_mask"], "en")
    for language in ("de", "es"):
        expected = model(**test | {"language": language}).calibrated
        assert torch.equal(model(**test | {"language": language, "source": source}).calibrated, expected)
    rows = {name: value[1:3] for name, value in test.items() if isinstance(value, torch.Tensor)}
    part = model(**rows, language="es", source=source.map(lambda value: value[1:3])).calibrated
    torch.testing.assert_close(part, expected[1:3], rtol=0, atol=1e-6)
    with pytest.raises(ValueError, match="source's inputs"):
        model(**batch | {"source": source})


@pytest.mark.parametrize("preset", PAIRED)
def test_explain_returns_both_attentions(preset: str) -> None:
    """Shapes, row sums, and the same distributions as without."""
    model, batch = trained_statistics(tiny_model(preset)), without_gold(pair_batch())
    output, brief = model(**batch, explain=True), model(**batch)
    n_t, n_s = batch["input_ids"].shape[1], batch["source"]["input_ids"].shape[1]
    assert output.cross_attention.shape == (4, 4, n_t, n_s) and output.teacher_attention.shape == (4, n_t, n_s)
    for attention in (output.cross_attention, output.teacher_attention):
        torch.testing.assert_close(attention.sum(-1), torch.ones(attention.shape[:-1]))
        padded = batch["source"]["attention_mask"] == 0
        assert (attention.movedim(-1, 1)[padded] == 0).all()
    for name in ("target", "teacher", "calibrated"):
        torch.testing.assert_close(output[name], brief[name], rtol=0, atol=1e-6)
        assert output[name].shape == (4, n_t, 2)
    assert brief.cross_attention is None and brief.teacher_attention is None


@pytest.mark.parametrize("preset", PAIRED)
def test_the_loss_can_be_had_in_evaluation(preset: str) -> None:
    """All terms, the token alignment of either form too."""
    output = trained_statistics(tiny_model(preset))(**pair_batch())
    assert set(output.losses) == {"source", "target", "teacher", "sentence", "token"}
    assert output.cross_attention is None


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
        loss = model(**pair_batch()).loss
        loss.backward()
        calls.append(len(count))
        gradients = {name: value.grad for name, value in model.named_parameters()}
        results.append((loss, gradients, dict(model.named_buffers())))
    assert calls[1] == 2 * calls[0]
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-7)


def test_a_model_from_a_backbone_keeps_the_pretrained_weights(tmp_path):
    path = str(write_tiny_e5(tmp_path / "tiny.bin"))
    expected = load_backbone(path)[0].state_dict()
    for config in (XStaConfig(sharing_layer=2), XStaConfig.plain(), XStaConfig.mixup(sharing_layer=2)):
        torch.manual_seed(3)
        found = XStaForQuestionAnswering.from_backbone(path, config, ["en", "de"])[0].encoder.state_dict()
        for name, value in expected.items():
            assert torch.equal(found[name], value), name
