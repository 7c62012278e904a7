"""What Figures 4 to 6 show, from two tiny models trained, evaluated and inspected like the real ones."""

import json

import numpy as np
import pandas as pd
import pytest
from tiny import write_tiny_e5

from xsta_lib import figures, runs
from xsta_lib.cases import READ, find_cases
from xsta_lib.experiment_config import SETTINGS, experiment
from xsta_lib.experiments import run_experiment
from xsta_lib.inspection import WITHOUT_TOKENS, attention_maps, inspect_models, read_cases, read_inspection
from xsta_lib.protocols import load_protocol


@pytest.fixture(scope="module")
def inspected(tmp_path_factory):
    """The results' folder of a demo whose encoder is tiny and whose runs take a few steps."""
    folder = tmp_path_factory.mktemp("inspected")
    data = load_protocol("demo")
    texts = [q.question + q.context for questions in data.tests[0].questions.values() for q in questions]
    tiny = write_tiny_e5(folder / "tiny.bin", texts=texts, layers=8)
    few = {"backbone": str(tiny), "epochs": 0.03, "english_epochs": 0.0, "precision": "fp32"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(SETTINGS, "demo", SETTINGS["demo"] | few)
        patch.setattr(runs, "RUNS", folder / "runs")
        patch.setattr(figures, "FIGURES", folder / "figures")
        assert inspect_models("demo", folder) == []  # nothing was trained yet
        for without in ((), WITHOUT_TOKENS):
            run_experiment(experiment("demo", "x-sta", without=without), data, progress=False, results=folder)
        files = [path.name for path in inspect_models("demo", folder)]
        assert files == ["figure4.json", "figure5.json", "figure6.json"]
        figures.write_figures("demo", folder)
        yield folder


def test_figure_4_compares_the_two_models_on_one_question(inspected):
    record = read_inspection(4, "demo", inspected)
    maps = attention_maps(record)
    assert list(maps) == ["with token alignment", "without token alignment"] and record["language"] == "hi"
    first, second = maps.values()
    assert first.shape == second.shape and not np.allclose(first, second)
    assert (first.sum(axis=1) < 1).all() and list(first.columns) == list(second.columns)
    assert all(0 < value < np.log(384) for value in record["mean_entropy_nats"].values()) and record["questions"] == 40


def test_figure_5_has_every_sentence_twice(inspected):
    record = read_inspection(5, "demo", inspected)
    places = pd.DataFrame(**record["places"])
    assert len(places) == 2 * 7 * 40 and places.groupby(["space", "language"]).size().eq(40).all()
    assert pd.DataFrame(**record["silhouettes"]).shape == (2, 2)


def test_figure_6_holds_the_cases_of_the_kept_answers(inspected):
    record = read_inspection(6, "demo", inspected)
    kept = next((inspected / "runs").glob("demo/x-sta_seed42_*/predictions/demo.gold.json"))
    answers = json.loads(kept.read_text("utf-8"))["answers"]
    expected = find_cases(load_protocol("demo").tests[0], answers, ["hi", "vi", "zh", "ar", "de", "es"])
    assert read_cases(record) == expected and "CC BY 4.0" in record["note"]
    assert set(answers) == set(READ)


def test_pictures_are_drawn_from_what_was_kept(inspected):
    drawn = {path.name for path in (inspected / "figures").glob("*.png")}
    cases = read_inspection(6, "demo", inspected)["cases"]
    assert drawn >= {"figure3-demo.png", "figure4-demo.png", "figure5-demo.png", "languages-demo.png"}
    assert ("figure6-demo.png" in drawn) == bool(cases)
