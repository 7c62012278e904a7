"""The throughput benchmark in its smallest size: both ways agree, and its arithmetic is right."""

import json

import paper_size
import pytest
import throughput
import torch
from tiny import write_tiny_e5
from torch.utils.flop_counter import FlopCounterMode
from toy import HIDDEN, encoder_config

from xsta_lib import XStaConfig, XStaForQuestionAnswering
from xsta_lib.data.protocols import load_protocol
from xsta_lib.encoders.backbones import load_backbone
from xsta_lib.experiments.experiment import experiment
from xsta_lib.experiments.run import training_parts
from xsta_lib.training.passes import Passes


def test_both_ways_agree_and_everything_is_measured(tmp_path, monkeypatch):
    monkeypatch.setenv("XSTA_CACHE", str(tmp_path / "cache"))
    data = load_protocol("demo")
    texts = [q.context for questions in data.parallel.values() for q in questions[:40]]
    backbone = write_tiny_e5(tmp_path / "tiny.bin", texts=texts, layers=8)
    sizes = ["--rows", "40", "--questions", "3", "--device", "cpu"]
    throughput.main(["--protocol", "demo", "--backbone", str(backbone), "--results", str(tmp_path), *sizes])
    record = json.loads(next(tmp_path.glob("throughput-cpu-*-demo.json")).read_text("utf-8"))
    assert record["train_loss_difference"] < 1e-4
    named = ("train_speedup", "eval_speedup", "train_pairs_per_second", "eval_questions_per_second")
    assert all(record[name] > 0 for name in (*named, "matmul_utilisation", "peak_memory_bytes"))
    assert record["rows"] == 40 and record["eval_languages"] == 7 and record["share_source_languages"] > 1.5


def test_utilisation_at_the_papers_size_runs(monkeypatch):
    monkeypatch.setattr(Passes, "compile", lambda self, **options: None)  # minutes
    config = {"vocab_size": 60, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    found = paper_size.measure_utilisation("cpu", config | {"intermediate_size": 48}, rows=2, length=16, steps=2)
    rate = found.pop("matmul_flops_per_second")
    assert rate > 0 and set(found) == {"eager_utilisation", "compiled_utilisation"}
    assert all(0 < value < 1 for value in found.values())


def test_a_profile_says_how_busy_the_device_was(tmp_path, monkeypatch):
    monkeypatch.setenv("XSTA_CACHE", str(tmp_path / "cache"))
    data = load_protocol("demo")
    texts = [q.context for questions in data.parallel.values() for q in questions[:40]]
    _, tokenizer = load_backbone(str(write_tiny_e5(tmp_path / "tiny.bin", texts=texts)))
    parts = training_parts(experiment("demo", "x-sta"), data, tokenizer)
    config = {"vocab_size": len(tokenizer), "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    found = paper_size.measure_trainer("cpu", config | {"intermediate_size": 48}, parts, rows=2, steps=2)
    assert 0 < found["busy_share"] <= 1 and found["seconds"] > 0
    assert len(found["kernels"]) == 15 and all(0 < share < 1 for *_, share in found["kernels"])


def test_arithmetic_of_a_window_is_counted_as_torch_counts_it():
    encoder = encoder_config(layers=2)
    model = XStaForQuestionAnswering(XStaConfig.plain(encoder=encoder))
    length = 16
    inputs = {"input_ids": torch.full((1, length), 7), "attention_mask": torch.ones(1, length, dtype=torch.long)}
    model.encoder.set_attn_implementation("eager")
    with FlopCounterMode(display=False) as counter:
        model.encoder(**inputs)
    pooler = 2 * HIDDEN**2 if getattr(model.encoder, "pooler", None) is not None else 0
    assert 3 * (counter.get_total_flops() - pooler) == pytest.approx(throughput.training_flops(model, [length]))
