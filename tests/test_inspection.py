"""What Figures 4 to 6 show, from two tiny models trained, evaluated and inspected like the real ones."""

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from tiny import write_tiny_e5

from xsta_lib import figures, runs
from xsta_lib.cases import READ, find_cases
from xsta_lib.corpus import write_squad
from xsta_lib.experiment_config import SETTINGS, experiment
from xsta_lib.experiments import run_experiment
from xsta_lib.inspection import WITHOUT_TOKENS, attention_maps, inspect_models, read_cases, read_inspection
from xsta_lib.protocols import LOADERS, load_folder, load_protocol

QUESTIONS = 12


def answer_by_hand(test) -> None:
    """Change two kept answers, so that there is one case of each kind: so small a reader finds none itself."""
    kept = runs.run_folder(experiment("demo", "x-sta")) / "predictions" / "demo.gold.json"
    record = json.loads(kept.read_text("utf-8"))
    for question, reading in zip(test.questions["vi"][:2], ("calibrated", "target"), strict=True):
        for name in READ:
            text = question.answers[0].text if name == reading else question.context[:9]
            record["answers"][name]["vi"][question.id] = text
    kept.write_text(json.dumps(record), "utf-8")


@pytest.fixture(scope="module")
def inspected(tmp_path_factory):
    """The results' folder of a demo whose encoder and test set are tiny and whose runs take a few steps."""
    folder = tmp_path_factory.mktemp("inspected")
    whole = load_protocol("demo")
    for split, questions in (("train", {"en": whole.train, **whole.parallel}), ("test", whole.tests[0].questions)):
        for language, part in questions.items():
            write_squad(folder / "corpus" / f"{split}.{language}.json", part[:QUESTIONS])
    data = load_folder(folder / "corpus", "demo")
    texts = [q.question + q.context for questions in data.tests[0].questions.values() for q in questions]
    tiny = write_tiny_e5(folder / "tiny.bin", texts=texts, layers=8)
    few = {"backbone": str(tiny), "epochs": 0.5, "english_epochs": 0.0, "precision": "fp32"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(LOADERS, "demo", lambda: data)
        patch.setitem(SETTINGS, "demo", SETTINGS["demo"] | few)
        patch.setattr(runs, "RUNS", folder / "runs")
        patch.setattr(figures, "FIGURES", folder / "figures")
        assert inspect_models("demo", folder) == []  # nothing was trained yet
        for without in ((), WITHOUT_TOKENS):
            run_experiment(experiment("demo", "x-sta", without=without), data, progress=False, results=folder)
        answer_by_hand(data.tests[0])
        files = [path.name for path in inspect_models("demo", folder)]
        assert files == ["figure4.json", "figure5.json", "figure6.json"]
        figures.write_figures("demo", folder)
        yield folder, data.tests[0]


def test_figure_4_compares_the_two_models_on_one_question(inspected):
    folder = inspected[0]
    record = read_inspection(4, "demo", folder)
    maps = attention_maps(record)
    assert list(maps) == ["with token alignment", "without token alignment"] and record["language"] == "hi"
    first, second = maps.values()
    assert first.shape == second.shape and not np.allclose(first, second)
    assert (first.sum(axis=1) < 1).all() and list(first.columns) == list(second.columns)
    assert (
        all(0 < value < np.log(384) for value in record["mean_entropy_nats"].values())
        and record["questions"] == QUESTIONS
    )


def test_figure_5_has_a_question_of_every_passage_twice(inspected):
    folder, test = inspected
    record = read_inspection(5, "demo", folder)
    places = pd.DataFrame(**record["places"])
    passages = len({question.context for question in test.source})
    assert 1 < passages < QUESTIONS and places.groupby(["space", "language"]).size().eq(passages).all()
    assert len(places) == 2 * 7 * passages
    assert pd.DataFrame(**record["silhouettes"]).shape == (2, 2) == pd.DataFrame(**record["cosines"]).shape
    assert pd.DataFrame(**record["own_means"]).shape == (1, 2)


def test_figure_6_holds_the_cases_of_the_kept_answers(inspected):
    folder, test = inspected
    record = read_inspection(6, "demo", folder)
    kept = runs.run_folder(experiment("demo", "x-sta")) / "predictions" / "demo.gold.json"
    answers = json.loads(kept.read_text("utf-8"))["answers"]
    expected = find_cases(test, answers, ["hi", "vi", "zh", "ar", "de", "es"])
    assert read_cases(record) == expected and "CC BY 4.0" in record["note"]
    assert {("vi", "success"), ("vi", "failure")} <= {(case.language, case.kind) for case in expected}


def test_pictures_are_drawn_from_what_was_kept(inspected):
    drawn = {path.name for path in (inspected[0] / "figures").glob("*.png")}
    assert drawn == {f"{name}-demo.png" for name in ("figure3", "figure4", "figure5", "figure6", "languages")}


def test_a_model_of_other_questions_is_not_passed_off(inspected, monkeypatch):
    monkeypatch.setattr(runs, "RUNS", inspected[0] / "runs")
    data = load_folder(inspected[0] / "corpus", "demo")
    tiny = next(inspected[0].glob("*.bin"))
    few = {"backbone": str(tiny), "epochs": 0.5, "english_epochs": 0.0, "precision": "fp32"}
    monkeypatch.setitem(SETTINGS, "demo", SETTINGS["demo"] | few)
    exp = experiment("demo", "x-sta")
    assert runs.train_experiment(exp, data, progress=False)[2].data == data.digest()
    data.train[0] = replace(data.train[0], question="Who?")
    with pytest.raises(ValueError, match="other questions"):
        runs.train_experiment(exp, data, progress=False)
