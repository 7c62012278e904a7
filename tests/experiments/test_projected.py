"""A reader measured with the source's answer mixed in, from its files to its table."""

import json

import pandas as pd
import pytest
import torch
from project import write_corpus
from tiny import write_tiny_e5

from xsta_lib.data.protocols import load_protocol
from xsta_lib.experiments.projected import measure_projected, projected_table
from xsta_lib.model.configuration import XStaConfig
from xsta_lib.model.modeling import XStaForQuestionAnswering
from xsta_lib.prediction.metrics import score
from xsta_lib.prediction.predictor import Predictor
from xsta_lib.translation.answering import ProjectingPredictor


def test_scores_of_all_readings_are_kept(tmp_path, monkeypatch):
    texts = write_corpus(tmp_path / "own" / "mine", 6)
    monkeypatch.setenv("XSTA_HOME", str(tmp_path / "home"))
    file = write_tiny_e5(tmp_path / "tiny.bin", texts=texts)
    torch.manual_seed(1)
    model, tokenizer = XStaForQuestionAnswering.from_backbone(str(file), XStaConfig.plain(), ["en", "de"])
    predictor, folder = Predictor(model.eval(), tokenizer), str(tmp_path / "own" / "mine")
    path = measure_projected(predictor, "tiny", folder, progress=False)
    record, test = json.loads(path.read_text("utf-8")), load_protocol(folder).tests[0]
    assert list(record["metrics"]) == ["mixture", "source", "calibrated"] and record["dataset"] == test.name
    scores = pd.read_parquet(path.with_name("tiny.scores.parquet"))
    found = ProjectingPredictor(predictor).predict(test.questions, test.source)
    for reading, by_language in record["metrics"].items():
        for language, values in by_language.items():
            own = scores[(scores["dataset"] == reading) & (scores["language"] == language)]
            expected = [
                100 * score(found[reading][language][q.id].text, q.golds, language, test.rule).f1
                for q in test.questions[language]
            ]
            assert own["f1"].mean() == pytest.approx(values["f1"], abs=1e-3)
            assert sum(expected) / len(expected) == pytest.approx(values["f1"])
    table = projected_table(folder)
    targets = [v["f1"] for k, v in record["metrics"]["mixture"].items() if k != "en"]
    assert table.loc["tiny", "mixture"] == pytest.approx(sum(targets) / len(targets))
