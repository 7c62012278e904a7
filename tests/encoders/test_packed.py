"""A reader in a small file: the same model back, word embeddings looked up from 4-bit blocks, and faults refused."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import write_tiny_e5
from toy import stir
from transformers import AutoModelForQuestionAnswering

from xsta_lib.encoders.backbones import BackboneError, load_backbone
from xsta_lib.encoders.packed import StoredEmbedding, load_packed, pack
from xsta_lib.model.configuration import XStaConfig
from xsta_lib.model.modeling import XStaForQuestionAnswering


def trained(backbone, seed=0):
    """A reader as training with frozen word embeddings leaves it, and its tokenizer."""
    torch.manual_seed(seed)
    config = XStaConfig(sharing_layer=2)
    model, tokenizer = XStaForQuestionAnswering.from_backbone(str(backbone), config, ["en", "de"])
    words = model.get_input_embeddings().weight.detach().clone()
    stir(model)
    with torch.no_grad():
        model.get_input_embeddings().weight.copy_(words)
    model.normalisation.updates += 3
    model.normalisation.running_mean += 0.3
    return model.eval(), tokenizer


@pytest.fixture
def packed(tmp_path):
    """The folder of a packed reader, the reader itself and its tokenizer."""
    backbone = write_tiny_e5(tmp_path / "tiny.bin")
    model, tokenizer = trained(backbone)
    pack(model, tokenizer, tmp_path / "packed", str(backbone))
    return tmp_path / "packed", model, tokenizer


def rounded(model):
    """The model with the parameters that its packed file has, but for the word embeddings."""
    words = model.get_input_embeddings().weight
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter is not words:
                parameter.copy_(parameter.half())
    return model


def test_a_packed_reader_is_the_same_reader(packed, tmp_path):
    folder, model, tokenizer = packed
    assert {path.name for path in folder.iterdir()} == {"config.json", "model.safetensors", "packed.json"}
    stored = load_file(folder / "model.safetensors")
    assert len(stored) == len(model.state_dict()) - 1
    assert {stored[name].dtype for name, _ in model.named_parameters() if name in stored} == {torch.float16}
    again, own = load_packed(folder)
    assert isinstance(again.get_input_embeddings(), StoredEmbedding)
    assert not again.training and own.get_vocab() == tokenizer.get_vocab()
    assert not any(parameter.requires_grad for parameter in again.parameters())
    expected = rounded(model).state_dict()
    assert again.state_dict().keys() == expected.keys()
    for name, value in again.state_dict().items():
        assert torch.equal(value, expected[name]), name
    pairs = own(["who is in Paris", "the city"], ["Paris is a river", "a city"], padding=True, return_tensors="pt")
    with torch.inference_mode():
        found, wanted = again(**pairs, language="de"), model(**pairs, language="de")
    assert torch.equal(found.start_logits, wanted.start_logits)
    again.save_pretrained(tmp_path / "whole")
    whole, info = AutoModelForQuestionAnswering.from_pretrained(tmp_path / "whole", output_loading_info=True)
    assert not info["missing_keys"] and torch.equal(whole.state_dict()["qa_outputs.bias"], expected["qa_outputs.bias"])


def test_what_cannot_be_packed_is_refused(tmp_path):
    backbone, other = write_tiny_e5(tmp_path / "tiny.bin"), write_tiny_e5(tmp_path / "other.bin", seed=1)
    model, tokenizer = trained(backbone)
    with pytest.raises(BackboneError, match="word embeddings are not this backbone's; train with them frozen"):
        pack(model, tokenizer, tmp_path / "packed", str(other))
    foreign = load_backbone(str(write_tiny_e5(tmp_path / "foreign.bin", texts=["ж"])))[1]
    with pytest.raises(BackboneError, match="tokenizer is not this backbone's"):
        pack(model, foreign, tmp_path / "packed", str(backbone))
    with torch.no_grad():
        model.qa_outputs.weight[0, 0] = 1e6
    with pytest.raises(BackboneError, match=r"^qa_outputs\.weight: it holds numbers that float16 cannot"):
        pack(model, tokenizer, tmp_path / "packed", str(backbone))
    assert not (tmp_path / "packed").exists()
    with pytest.raises(BackboneError, match="no 4-bit encoder file"):
        pack(model, tokenizer, tmp_path / "packed", str(tmp_path))


def change(folder, edit):
    """Write the weights anew as `edit` leaves them."""
    weights = load_file(folder / "model.safetensors")
    edit(weights)
    save_file(weights, folder / "model.safetensors")


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda folder: change(folder, lambda w: w.pop("qa_outputs.bias")), r"weight qa_outputs\.bias is missing"),
        (lambda folder: change(folder, lambda w: w.update(more=torch.ones(1))), "weight more is unknown"),
        (
            lambda folder: change(folder, lambda w: w.update({"qa_outputs.bias": torch.ones(3)})),
            r"qa_outputs\.bias has the shape \(3,\), not \(2,\)",
        ),
        (lambda folder: (folder / "model.safetensors").unlink(), r"has no model\.safetensors"),
        (lambda folder: (folder / "packed.json").write_text("{"), r"packed\.json: missing or damaged"),
        (lambda folder: (folder / "packed.json").write_text('{"format": 2}'), "another version"),
        (
            lambda folder: (folder / "packed.json").write_text('{"format": 1, "backbone": 5, "sha256": ""}'),
            r"packed\.json: missing or damaged",
        ),
        (
            lambda folder: change(folder, lambda w: w["qa_outputs.bias"].fill_(torch.inf)),
            r"model\.safetensors: the weight qa_outputs\.bias holds NaN or infinity; copy or install",
        ),
        (
            lambda folder: set_config(folder, sharing="foo"),
            r"packed/config\.json: it describes no reader \(sharing is 'foo'; allowed: .*\); copy or install",
        ),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"version https://git-lfs.github.com"), "Git LFS"),
        (lambda folder: cut(folder / "model.safetensors"), r"model\.safetensors: the file is cut or damaged"),
        (lambda folder: write_tiny_e5(folder.parent / "tiny.bin", seed=5), r"tiny\.bin: its SHA-256 is not"),
    ],
    ids=[
        *("missing", "unknown", "shape", "no file", "damaged", "version", "types", "infinite", "config"),
        *("pointer", "cut", "other backbone"),
    ],
)
def test_a_damaged_folder_is_refused(packed, damage, words):
    damage(packed[0])
    with pytest.raises(BackboneError, match=words):
        load_packed(packed[0])


def set_config(folder, **values):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | values), "utf-8")


def cut(path):
    path.write_bytes(path.read_bytes()[:-100])
