"""Every method through the same loop, compiled models, and the token types that BERT asks for."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from toy import both_passes, pair_batch, tiny_model, toy_protocol, twin
from transformers import BertTokenizerFast, PreTrainedTokenizerBase

from xsta_lib.data.batches import Part, collate, rows_of
from xsta_lib.data.windows import WindowSpec, build_windows, pair_windows
from xsta_lib.encoders.backbones import load_tokenizer
from xsta_lib.experiments.experiment import METHODS, ROW_BY_ROW, SOURCE_ONLY, Experiment
from xsta_lib.experiments.run import training_parts
from xsta_lib.training.configuration import TrainingConfig
from xsta_lib.training.passes import Passes
from xsta_lib.training.trainer import Trainer

TERMS = {
    **dict.fromkeys(("zero-shot", "calibrenet", "trans-train", "lakm", "lakm_mixmrc"), set()),
    "aa-cl": {"contrast"},
    "pairs": {"source"},
    "x-mixup": {"source", "distance", "lambda"},
    "x-mixup_content": {"source", "distance", "lambda"},
    "x-sta": {"source", "teacher", "sentence", "token", "lambda", "teacher_mass", "uniform_gap"},
}
OWN = {  # of rows that are read alone: S = T, AA-CL's first stage
    "x-sta": {"own_teacher", "own_sentence", "own_token", "own_teacher_mass", "own_uniform_gap"},
    "aa-cl": {"margin"},
}
WATCHED = {
    "aa-cl": {"share_contrast"},
    "x-mixup": {"share_distance", "content_mass"},
    "x-mixup_content": {"share_distance", "content_mass"},
    "x-sta": {"share_teacher", "share_sentence", "share_token", "content_mass"},
}


@pytest.mark.parametrize("method", METHODS)
def test_each_method_trains(method: str, backbone: Path) -> None:
    exp = Experiment("toy", method)
    config = exp.model_config()
    config.sharing_layer = 2
    torch.manual_seed(0)
    model, tokenizer = METHODS[method][0].from_backbone(str(backbone), config, ["en", "de"], dropout=0.1)
    parts = training_parts(exp, toy_protocol(), tokenizer)
    settings = TrainingConfig(steps=24, batch_size=8, learning_rate=3e-3, log_every=1)
    trainer = Trainer(model, parts, settings, tokenizer.pad_token_id)
    pairs = sum(row.source >= 0 for row in trainer.rows)
    expected = (16, 0) if method in SOURCE_ONLY else (32, 0) if method in ROW_BY_ROW else (32, 16)
    assert (len(trainer.rows), pairs) == expected
    result = trainer.train(progress=False)
    log, sides = result.log, len(trainer.rows) + pairs
    assert result.sequences == 24 * 8 * sides // len(trainer.rows) and result.tokens > 8 * result.sequences
    always = {"step", "epoch", "seconds", "learning_rate", "grad_norm", "loss", "target"}
    watched = WATCHED.get(method, set())
    assert {name for line in log for name in line if name in watched} == (
        watched if {"source", "contrast"} & log[0].keys() else set()
    )
    terms = {frozenset(line.keys() - always - watched) for line in log}
    assert terms == {frozenset(TERMS[method]), frozenset(OWN.get(method, ()))}
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


@pytest.mark.heavy
@pytest.mark.parametrize("preset", ["paper", "mixup"])
def test_compiling_changes_nothing(preset: str, fresh_compiler: Any) -> None:
    model, batch = tiny_model(preset, layers=1, sharing_layer=1), pair_batch()
    eager = twin(model)
    # a graph break is an error; machine code would take a minute
    output = torch.compile(Passes(model), fullgraph=True, backend="aot_eager")(**batch)
    expected = both_passes(eager, batch)
    output.loss.backward(), expected.loss.backward()
    for name in ("losses", "loss", "mixing", "calibrated"):
        torch.testing.assert_close(output[name], expected[name], rtol=1e-5, atol=1e-5)
    found, wanted = ({name: value.grad for name, value in one.named_parameters()} for one in (model, eager))
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(dict(model.named_buffers()), dict(eager.named_buffers()), rtol=1e-5, atol=1e-5)


@pytest.mark.heavy
@torch._dynamo.config.patch(recompile_limit=8, fail_on_recompile_limit_hit=True)
def test_more_languages_than_pytorchs_limit_are_all_compiled(fresh_compiler: Any) -> None:
    languages = ["en", *(f"l{number}" for number in range(8))]
    passes = Passes(tiny_model("plain", layers=1, normalisation="per-language", languages=languages))
    passes.compile(backend="eager", dynamic=True)
    batch = pair_batch()
    del batch["source"]
    for language in languages:
        assert passes(**batch | {"language": language}).loss.isfinite()


# Token types


@pytest.fixture(scope="module")
def bert_tokenizer() -> PreTrainedTokenizerBase:
    """WordPieces for the toy's English and German questions, and unknown ones."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    words = ["river", "where", "wo", "ist", "is", "der", "fluss", "in", "the", "city", "a", "paris", ".", "?", "##s"]
    return BertTokenizerFast(vocab={word: i for i, word in enumerate([*special, *words, *map(str, range(10))])})


def pair_inputs(tokenizer: PreTrainedTokenizerBase, cache: Path | None = None) -> dict[str, Any]:
    """A batch of pairs, collated."""
    data = toy_protocol()
    spec = WindowSpec(max_length=48, stride=4, max_question_length=16)
    source = build_windows(data.train, tokenizer, spec, cache)
    target = build_windows(data.parallel["de"], tokenizer, spec, cache)
    parts = [Part("de", target, source, pair_windows(target, source, by_answer=True))]
    chosen = [row for row in rows_of(parts) if row.target in (1, 4, 10, 15)]
    return collate(parts, chosen, tokenizer.pad_token_id, multiple=8)


def test_token_types_mark_the_context(bert_tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    """1 on the context and its [SEP], 0 on [CLS], question, its [SEP] and padding; from the cache too."""
    assert "token_type_ids" in bert_tokenizer.model_input_names
    for _ in range(2):
        batch = pair_inputs(bert_tokenizer, tmp_path)
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


def test_the_encoder_reads_token_types(bert_tokenizer: PreTrainedTokenizerBase) -> None:
    """Each side's own; none at all reads like zeros."""
    batch = pair_inputs(bert_tokenizer)
    model = tiny_model()
    blank = {"token_type_ids": torch.zeros_like(batch["token_type_ids"])}
    blank_source = {"token_type_ids": torch.zeros_like(batch["source"]["token_type_ids"])}
    full, other = both_passes(twin(model), batch), both_passes(twin(model), batch | blank)
    assert full.losses["source"] == other.losses["source"] and full.losses["target"] != other.losses["target"]
    other = both_passes(twin(model), batch | {"source": batch["source"] | blank_source})
    assert full.losses["source"] != other.losses["source"]
    zeros = both_passes(twin(model), batch | blank | {"source": batch["source"] | blank_source})
    del batch["token_type_ids"], batch["source"]["token_type_ids"]
    assert torch.equal(both_passes(twin(model), batch).loss, zeros.loss)


def test_e5_has_no_token_types(backbone: Path) -> None:
    batch = pair_inputs(load_tokenizer(str(backbone)))
    assert "token_type_ids" not in batch and "token_type_ids" not in batch["source"]
