"""What Figures 4 to 6 show, from two tiny models trained, evaluated and inspected like the real ones."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from project import write_corpus
from tiny import write_tiny_e5

from xsta_lib.data.files import BOX, weights_key
from xsta_lib.data.protocols import LOADERS, load_folder, load_protocol
from xsta_lib.experiments import inspection
from xsta_lib.experiments.experiment import SETTINGS, Experiment, experiment
from xsta_lib.experiments.inspection import (
    READ,
    WITHOUT_TOKENS,
    attention_maps,
    find_cases,
    inspect_models,
    inspected_label,
    read_cases,
    read_inspection,
)
from xsta_lib.experiments.packing import boxed_experiment
from xsta_lib.experiments.run import backbone_key, run_experiment, run_folder, train_experiment
from xsta_lib.plotting.results import write_figures
from xsta_lib.reader import Reader

QUESTIONS = 12


def answer_by_hand(test) -> None:
    """Change two kept answers, so that there is one case of each kind: so small a reader finds none itself."""
    kept = run_folder(experiment("demo", "x-sta")) / "predictions" / "demo.gold.json"
    record = json.loads(kept.read_text("utf-8"))
    for question, reading in zip(test.questions["vi"][:2], ("calibrated", "target"), strict=True):
        for name in READ:
            text = question.answers[0].text if name == reading else question.context[:9]
            record["answers"][name]["vi"][question.id] = text
    english = test.source[0]  # a mend counts where English is right
    record["answers"]["calibrated"]["en"][english.id] = english.answers[0].text
    kept.write_text(json.dumps(record), "utf-8")


@pytest.fixture(scope="module")
def inspected(tmp_path_factory):
    """The results' folder of a demo whose encoder and test set are tiny and whose runs take a few steps."""
    folder = tmp_path_factory.mktemp("inspected")
    texts = write_corpus(folder / "corpus", QUESTIONS, load_protocol("demo").tests[0].questions)
    data = load_folder(folder / "corpus", "demo")
    tiny = write_tiny_e5(folder / "tiny.bin", texts=texts, layers=8)
    few = {"backbone": str(tiny), "epochs": 0.5, "english_epochs": 0.0, "precision": "fp32"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(LOADERS, "demo", lambda: data)
        patch.setitem(SETTINGS, "demo", SETTINGS["demo"] | few)
        patch.setattr(Experiment, "backbone", str(tiny))  # the usual one, which names do not tell
        patch.setenv("XSTA_HOME", str(folder))
        assert inspect_models("demo") == []  # nothing was trained yet
        for without in ((), WITHOUT_TOKENS):
            run_experiment(experiment("demo", "x-sta", without=without), data, progress=False)
        answer_by_hand(data.tests[0])
        files = [path.name for path in inspect_models("demo")]
        assert files == ["figure4.json", "figure5.json", "figure6.json"]
        write_figures("demo")
        yield folder, data.tests[0]


def test_figure_4_compares_the_two_models_on_one_question(inspected):
    record = read_inspection(4, "demo")
    maps = attention_maps(record)
    assert list(maps) == ["with token alignment", "without token alignment"] and record["language"] == "hi"
    first, second = maps.values()
    assert first.shape == second.shape and not np.allclose(first, second)
    assert (first.sum(axis=1) < 1).all() and list(first.columns) == list(second.columns)
    assert all(0 < value < np.log(384) for value in record["mean_entropy_nats"].values())
    assert record["questions"] == QUESTIONS


def test_figure_5_has_a_question_of_every_passage_twice(inspected):
    test = inspected[1]
    record = read_inspection(5, "demo")
    places = pd.DataFrame(**record["places"])
    passages = len({question.context for question in test.source})
    assert 1 < passages < QUESTIONS and places.groupby(["space", "language"]).size().eq(passages).all()
    assert len(places) == 2 * 7 * passages
    assert pd.DataFrame(**record["silhouettes"]).shape == (2, 2) == pd.DataFrame(**record["cosines"]).shape
    assert pd.DataFrame(**record["own_means"]).shape == (1, 2)


def test_figure_6_holds_the_cases_of_the_kept_answers(inspected):
    test = inspected[1]
    record = read_inspection(6, "demo")
    kept = run_folder(experiment("demo", "x-sta")) / "predictions" / "demo.gold.json"
    answers = json.loads(kept.read_text("utf-8"))["answers"]
    expected = find_cases(test, answers, ["hi", "vi", "zh", "ar", "de", "es"])
    assert read_cases(record) == expected and "CC BY 4.0" in record["note"]
    assert {("vi", "success"), ("vi", "failure")} <= {(case.language, case.kind) for case in expected}


def test_a_reader_of_the_models_folder_gives_the_kept_answers(inspected):
    folder, test = run_folder(experiment("demo", "x-sta")), inspected[1]
    kept = json.loads((folder / "predictions" / "demo.de.gold.json").read_text("utf-8"))
    reader, questions = Reader(folder / "model", "cpu"), test.questions["de"]
    targets = [q.question for q in questions], [q.context for q in questions]
    found = reader.answer(*targets, "de", [(q.question, q.context) for q in test.source])
    assert [answer.text for answer in found] == [kept[q.id] for q in questions]
    one = reader.answer(targets[0][0], targets[1][0], "de", (test.source[0].question, test.source[0].context))
    assert one.text == found[0].text and one.score == pytest.approx(found[0].score, rel=1e-3)
    assert reader.answer(targets[0][0], targets[1][0], "de").score != pytest.approx(one.score, rel=1e-3)
    assert reader.answer("Who?", " ").reason == "the context is blank"


def test_pictures_are_drawn_from_what_was_kept(inspected):
    drawn = {path.name for path in (inspected[0] / "figures").glob("*.png")}
    assert drawn == {f"{name}-demo.png" for name in ("figure3", "figure4", "figure5", "figure6", "languages")}


def test_a_folder_of_ones_own_is_not_credited_to_the_data_set_it_is_called_like(inspected):
    folder = shutil.copytree(inspected[0] / "corpus", inspected[0] / "xquad")
    model = run_folder(experiment("demo", "x-sta")) / "model"
    shutil.copytree(model, run_folder(experiment(str(folder), "x-sta")) / "model")
    assert inspect_models(str(folder)) == []


def test_a_model_of_other_questions_is_not_passed_off(inspected):
    data = load_folder(inspected[0] / "corpus", "demo")
    exp = experiment("demo", "x-sta")
    keys = data.digest(), data.selection(), backbone_key(exp.backbone)
    assert train_experiment(exp, data, progress=False)[2].data == " ".join(keys)
    fewer = replace(data.validation, questions={"en": data.validation.questions["en"]})
    with pytest.raises(ValueError, match="other questions"):
        train_experiment(exp, replace(data, validation=fewer), progress=False)
    data.train[0] = replace(data.train[0], question="Who?")
    with pytest.raises(ValueError, match="other questions"):
        train_experiment(exp, data, progress=False)


def test_the_reader_in_the_box_stands_in_for_a_run_of_its_protocol(inspected, monkeypatch):
    monkeypatch.setattr(Experiment, "backbone", "e5-small-q4")
    boxed, data = boxed_experiment(), load_folder(inspected[0] / "corpus", "demo")
    test = replace(data.tests[0], questions={n: data.tests[0].questions[n][:2] for n in ("en", "hi")})
    monkeypatch.setitem(LOADERS, boxed.protocol, lambda: replace(data, tests=[test]))
    monkeypatch.setattr(inspection, "inspect_sentences", lambda exp, test: {"places": []})  # t-SNE needs more texts
    files = inspect_models(boxed.protocol)
    assert [path.name for path in files] == ["figure5.json", "figure6.json"]
    record = read_inspection(6, boxed.protocol)
    assert record["models"] == [boxed.fingerprint] and inspected_label(record) == "parallel, freeze_embeddings=True"
    folder = inspected[0] / "runs" / boxed.protocol / f"{BOX.name}-{weights_key(BOX)}"  # another box, other answers
    assert (folder / "predictions" / "demo.gold.json").is_file()
