"""X-MIXUP against the NumPy reference, and its scheduled sampling in the training loop."""

from dataclasses import replace
from pathlib import Path

import compare
import numpy as np
import pytest
import reference
import torch
from toy import KINDS, both_passes, toy_protocol

from xsta_lib.baselines.mixup import MixupConfig, MixupForQuestionAnswering, gold_probability
from xsta_lib.data.protocols import ProtocolData
from xsta_lib.data.squad import Question
from xsta_lib.experiments.experiment import Experiment
from xsta_lib.experiments.run import training_parts
from xsta_lib.training.configuration import TrainingConfig
from xsta_lib.training.trainer import Trainer


@pytest.mark.parametrize("kind", KINDS)
def test_layer_and_loss(kind: str) -> None:
    """lambda, the mixed states, and the loss; tests/model/test_properties.py has what it shares with X-STA."""
    compare.mixup_layer(kind)
    compare.mixup_loss(kind)


def back_translated(data: ProtocolData) -> ProtocolData:
    """The same data with English translated back: other words, no answers, one question missing."""
    found = [Question(q.id, q.question, "back " + q.context, ()) for q in data.parallel["de"][1:]]
    return replace(data, back_translated={"de": found})


def test_scheduled_sampling_reads_back_translations_as_often_as_it_should(
    backbone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Gold first, back-translated ever more often; such a step reads that English and has the target's loss alone."""
    monkeypatch.setenv("XSTA_CACHE", str(tmp_path))
    config, data = MixupConfig(sharing_layer=2), back_translated(toy_protocol())
    torch.manual_seed(0)
    model, tokenizer = MixupForQuestionAnswering.from_backbone(str(backbone), config, ["en", "de"], dropout=0.0)
    parts = training_parts(Experiment("toy", "x-mixup"), data, tokenizer)
    settings = TrainingConfig(steps=9, precision="fp32")
    trainer = Trainer(model, parts, settings, tokenizer.pad_token_id, gold_probability=gold_probability)
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
    output = both_passes(model, inputs)
    assert set(output.losses) == {"target"} and output.loss.item() == output.losses["target"].item()
    gold = both_passes(model, trainer._inputs(pairs, False))
    assert set(gold.losses) == {"source", "target", "distance"} and gold.losses["target"] != output.losses["target"]
    trainer.train_step(pairs)
    assert all(part.back is None for part in training_parts(Experiment("toy", "x-sta"), data, tokenizer))
