"""A reader measured with the source's answer mixed in, from its files to its table."""

import json

import numpy as np
import pandas as pd
import pytest
import torch
from project import write_corpus
from tiny import write_tiny_e5

from xsta_lib.data.protocols import load_protocol
from xsta_lib.experiments.projected import measure_projected, projected_difference, projected_runs
from xsta_lib.experiments.results import write_scores
from xsta_lib.experiments.significance import seeds_and_articles
from xsta_lib.model.configuration import XStaConfig
from xsta_lib.model.modeling import XStaForQuestionAnswering
from xsta_lib.prediction.metrics import score
from xsta_lib.prediction.predictor import Predictor
from xsta_lib.translation.alignment import PassageEncoder
from xsta_lib.translation.answering import ProjectingPredictor
from xsta_lib.translation.spans import Projector


def test_scores_of_all_readings_are_kept(tmp_path, monkeypatch):
    texts = write_corpus(tmp_path / "own" / "mine", 6)
    monkeypatch.setenv("XSTA_HOME", str(tmp_path / "home"))
    file = write_tiny_e5(tmp_path / "tiny.bin", texts=texts)
    projector = Projector(PassageEncoder(str(file)))
    monkeypatch.setattr("xsta_lib.translation.answering.Projector", lambda: projector)
    torch.manual_seed(1)
    model, tokenizer = XStaForQuestionAnswering.from_backbone(str(file), XStaConfig.plain(), ["en", "de"])
    predictor, folder = Predictor(model.eval(), tokenizer), str(tmp_path / "own" / "mine")
    path = measure_projected(predictor, f"tiny_seed7_{'0a' * 8}", folder, progress=False, weights="its own")
    record, test = json.loads(path.read_text("utf-8")), load_protocol(folder).tests[0]
    assert list(record["metrics"]) == ["mixture", "source", "calibrated"] and record["dataset"] == test.name
    assert projected_runs(folder) == {"tiny": {7: path.with_name("tiny_seed7.scores.parquet")}}
    assert record["reader"].endswith("0a") and record["source_language"] == "en"
    for other in ({"name": f"tiny_seed7_{'0b' * 8}"}, {"name": record["reader"], "weights": "others"}):
        with pytest.raises(ValueError, match="another model's result, tiny_seed7_0a.*; move it away to measure tiny"):
            measure_projected(predictor, protocol=folder, progress=False, **other)
    scores = pd.read_parquet(path.with_name("tiny_seed7.scores.parquet"))
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


def test_readers_are_compared_over_the_seeds_and_articles_they_share(tmp_path, monkeypatch):
    monkeypatch.setenv("XSTA_HOME", str(tmp_path))
    folder, rng, frames = tmp_path / "results" / "mine" / "projected", np.random.default_rng(0), {}
    ids = [f"q{i}" for i in range(12)]
    articles = {key: f"article {i // 3}" for i, key in enumerate(ids)}
    folder.mkdir(parents=True)
    for name in ("plain_seed1", "plain_seed2", "pairs_seed1", "pairs_seed2", "pairs_seed3", "boxed"):
        rows = [
            (r, g, q, rng.uniform(0, 100), 0.0) for r in ("mixture", "calibrated") for g in ("en", "de") for q in ids
        ]
        frames[name] = pd.DataFrame(rows, columns=["dataset", "language", "id", "f1", "em"])
        write_scores(folder / f"{name}.scores.parquet", frames[name])
        (folder / f"{name}.json").write_text('{"dataset": "toy"}', "utf-8")
    table = pd.DataFrame([("toy", *pair) for pair in articles.items()], columns=["dataset", "id", "article"])
    table.to_csv(folder.parent / "articles.csv", index=False)
    runs = projected_runs("mine")
    assert {name: list(files) for name, files in runs.items()} == {"boxed": [0], "pairs": [1, 2, 3], "plain": [1, 2]}
    found = projected_difference((runs["pairs"], "mixture"), (runs["plain"], "calibrated"))
    sides = [
        [frames[f"{name}_seed{seed}"].query(f"dataset == '{reading}' and language == 'de'") for seed in (1, 2)]
        for name, reading in (("pairs", "mixture"), ("plain", "calibrated"))
    ]
    assert found == pytest.approx(seeds_and_articles(*sides, articles), abs=1e-4)
    assert found.value == pytest.approx(pd.concat(sides[0])["f1"].mean() - pd.concat(sides[1])["f1"].mean(), abs=1e-4)
    with pytest.raises(ValueError, match="no seed in common"):
        projected_difference((runs["boxed"], "mixture"), (runs["plain"], "mixture"))
    assert projected_runs("another") == {}
