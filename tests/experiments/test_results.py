"""Result files, tables, intervals, marked texts and the command that scores predictions."""

import json
from dataclasses import replace
from functools import partial

import numpy as np
import pandas as pd
import pytest
from project import ROOT

from xsta_lib.cli import main
from xsta_lib.data.library import LazyLanguages
from xsta_lib.data.protocols import TestSet, load_protocol
from xsta_lib.data.squad import Answer, Question, write_squad
from xsta_lib.encoders.backbones import load_tokenizer
from xsta_lib.experiments.experiment import METHODS, Experiment, backbone_tag, experiment
from xsta_lib.experiments.results import (
    load_all_results,
    load_articles,
    load_results,
    load_scores,
    write_articles,
    write_result,
)
from xsta_lib.experiments.run import count_tokens, describe, result_path, step_count, training_parts
from xsta_lib.experiments.significance import average_interval
from xsta_lib.model.configuration import RELEASE
from xsta_lib.prediction.evaluation import Evaluation, provenance
from xsta_lib.prediction.metrics import Score, aggregate


def evaluation(f1: float, ids: int = 20) -> Evaluation:
    """Half of the questions score 2 x f1, the others 0, in two languages."""
    scores = {
        language: {f"q{i}": Score(float(i % 4 == 0), 2 * f1 * (i % 2)) for i in range(ids)} for language in ("en", "de")
    }
    return Evaluation({language: aggregate(values) for language, values in scores.items()}, scores, {})


@pytest.fixture
def results(tmp_path) -> list[dict]:
    """Two results under ``demo``, written and read back."""
    for method, f1 in (("zero-shot", 0.2), ("x-sta", 0.4)):
        exp = experiment("demo", method)
        record = describe(exp, "gold" if method == "x-sta" else "none")
        write_result(result_path(exp, record["source"], tmp_path), record, {"demo": {"calibrated": evaluation(f1)}})
    return load_results("demo", tmp_path)


def test_results_carry_the_promised_fields(results):
    for result in results:
        assert {"protocol", "method", "without", "backbone", "seed", "source", "metrics", "config"} <= set(result)
        assert result["metrics"]["demo"]["de"]["n"] == 20
        scores = load_scores(result["scores"], "demo")
        assert list(scores.columns) == ["dataset", "language", "id", "f1", "em"] and len(scores) == 40
        assert scores["f1"].mean() == pytest.approx(result["metrics"]["demo"]["en"]["f1"], abs=1e-4)


def test_interval_covers_the_mean_and_shrinks_with_more_questions():
    def frame(n: int) -> pd.DataFrame:
        values = np.random.default_rng(0).normal(50, 20, n)
        rows = [(language, str(i), value) for language in ("en", "de") for i, value in enumerate(values)]
        return pd.DataFrame(rows, columns=["language", "id", "f1"])

    widths = []
    for n in (50, 800):
        value, low, high = average_interval([frame(n)])
        assert low < value < high
        assert high - low == pytest.approx(2 * 1.96 * 20 / n**0.5, rel=0.25)
        widths.append(high - low)
    assert widths[1] < widths[0] / 3


def test_articles_lie_beside_the_results_of_sets_that_ask_the_same_in_every_language(tmp_path):
    titles = {"q1": "Mill, old", "q2": "River"}
    asked = {n: [Question(key, "?", "text", (), title=title) for key, title in titles.items()] for n in ("en", "de")}
    gold = TestSet("mine", "squad", asked, asked["en"])
    other, apart = replace(gold, name="other", source_name="other"), TestSet("apart", "squad", asked, None, "none")
    untitled = {n: [replace(question, title="") for question in part] for n, part in asked.items()}
    assert write_articles(tmp_path, [apart, other, replace(gold, questions=untitled)]) is None
    assert load_articles(tmp_path, "mine") == {}
    write_articles(tmp_path, [gold, other, apart])
    assert load_articles(tmp_path, "mine") == titles and not load_articles(tmp_path, "other")
    demo = write_articles(tmp_path, load_protocol("demo").tests)
    assert demo.read_text("utf-8") == (ROOT / "results" / "demo" / "articles.csv").read_text("utf-8")


def test_every_committed_result_is_found_by_its_fingerprint():
    for path in ROOT.glob("results/**/*.json"):
        result = json.loads(path.read_text("utf-8"))
        if "config" not in result or result["method"] == "llm":  # no experiment: nothing is trained
            continue
        config = {name: value for name, value in result["config"].items() if name != "tokens_per_batch"}  # 0 in all
        exp = Experiment.from_dict(config)
        assert exp.fingerprint == result["fingerprint"]
        assert result_path(exp, result["source"], path.parents[1]) == path
        assert json.loads(json.dumps(exp.to_dict())).items() >= config.items()


def test_experiments_refuse_what_does_not_exist_or_has_no_effect(tmp_path):
    for taken in ("parallel", "translation"):
        (tmp_path / taken).mkdir()
    for message, wrong in (
        ("method", {"method": "zero"}),
        ("belong to the method x-sta", {"method": "zero-shot", "without": ("gdks",)}),
        ("unknown switches", {"switches": (("gama", 1),)}),
        ("unknown switches", {"switches": (("languages", ("en", "de")),)}),
        ("unknown switches", {"switches": (("source_language", "de"),)}),
        ("unknown switches", {"switches": (("without", ("gdks",)),)}),
        ("sharing_dropout follows dropout", {"switches": (("sharing_dropout", 0.3),)}),
        ("rename it", {"protocol": str(tmp_path / "parallel")}),
        ("results/translation holds", {"protocol": str(tmp_path / "translation")}),
        *(("share_source belongs", {"method": one, "share_source": True}) for one in ("zero-shot", "lakm", "aa-cl")),
        (r"steps \(--steps\) is 0; it must be a whole number, 1 or more", {"steps": 0}),
        (r"steps \(--steps\) and epochs \(--epochs\) both say how long", {"steps": 1, "epochs": 3.0}),
    ):
        with pytest.raises(ValueError, match=message):
            experiment(**{"protocol": "demo", "method": "x-sta", **wrong})
    assert experiment("demo", "x-sta", switches=(("sharing_dropout", 0.3),), dropout=None).dropout is None
    assert experiment("demo", "x-sta", without=("gdks",)).name == "x-sta_without-gdks_seed42"


def test_steps_asked_for_overrule_epochs():
    exp = experiment("paper-mlqa", "x-sta")
    assert step_count(exp, None, None) == 24_000 and exp.name == "x-sta_seed42"  # no data is read
    assert experiment("paper-mlqa", "x-sta", epochs=2).training.steps == 0  # epochs overrule the protocol's own steps


def test_zero_shot_counts_the_translations_once_and_all_methods_take_as_many_steps(backbone, tmp_path, monkeypatch):
    monkeypatch.setenv("XSTA_CACHE", str(tmp_path))
    demo, read = load_protocol("demo"), []

    def translations(language: str) -> list[Question]:
        read.append(language)
        return demo.parallel[language][:12]

    lazy = LazyLanguages({language: partial(translations, language) for language in ("de", "zh")})
    data = replace(demo, train=demo.train[:12], parallel=lazy, parallel_source=demo.train[:12])
    tokenizer = load_tokenizer(str(backbone))
    exp = experiment("demo", "zero-shot", epochs=0.5, batch_size=4)
    english = training_parts(exp, data, tokenizer)
    assert step_count(replace(exp, training=replace(exp.training, steps=7)), data, tokenizer) == 7 and not read
    steps = [step_count(exp, data, tokenizer, english) for _ in range(2)]
    assert read == ["de", "zh"]
    others = [replace(exp, method=method) for method in METHODS]
    steps += [step_count(other, data, tokenizer, training_parts(other, data, tokenizer)) for other in others]
    rows = sum(len(part.target) for part in training_parts(others[-1], data, tokenizer))
    assert set(steps) == {round(0.5 * rows / 4)}
    longer = experiment("demo", "trans-train", steps=1000, equal_tokens=True)
    alone, pairs = (training_parts(replace(exp, method=name), data, tokenizer) for name in ("trans-train", "pairs"))
    assert step_count(longer, data, tokenizer, alone) == round(1000 * count_tokens(pairs) / count_tokens(alone)) > 1400


def test_what_shapes_a_result_is_in_its_fingerprint_and_how_it_is_run_is_not():
    plain = experiment("demo", "x-sta")
    assert experiment("demo", "x-sta", compile=True, save_every=5, keep=2).fingerprint == plain.fingerprint
    changed = {"warmup": 0.2, "weight_decay": 0, "max_grad_norm": 2, "accumulation": 2, "share_source": True}
    changed |= {"seed": 1, "evaluate_every": 500}  # the last: which weights are kept
    found = [experiment("demo", "x-sta", **{name: value}) for name, value in changed.items()]
    for key in ("fingerprint", "name"):
        assert len({getattr(exp, key) for exp in (plain, *found)}) == len(changed) + 1
    assert experiment("demo", "x-sta", share_source=True).on_the_source() == plain.on_the_source()


def test_a_long_name_is_cut_and_its_files_can_be_written(tmp_path):
    release = tuple(RELEASE.items())
    found = [experiment("demo", "x-sta", switches=release, learning_rate=rate) for rate in (1e-4, 3e-5)]
    for exp in (*found, experiment("demo", "x-sta", backbone=f"/{'文' * 80}")):
        assert exp.fingerprint in exp.name and len(exp.name.encode()) < 140
        path = result_path(exp, "none", tmp_path)
        for _ in range(2):
            write_result(path, describe(exp, "none"), {"demo": {"calibrated": evaluation(0.1)}})
    assert len(load_all_results("demo", tmp_path)) == 3 and not list(tmp_path.rglob(".*"))


def test_one_experiment_has_one_name_however_it_is_written(tmp_path, monkeypatch):
    two = [experiment("demo", "x-sta", without=parts) for parts in (("gdks", "atgc"), ("atgc", "gdks", "atgc"))]
    two += [experiment("demo", "x-sta", switches=(("gamma", value), ("zeta", 0))) for value in (0, 0.0)]
    assert two[0] == two[1] and two[2] == two[3] and two[2].name == two[3].name
    assert experiment("demo", "x-sta", epochs=1) == experiment("demo", "x-sta", epochs=1.0)
    (tmp_path / "mine").mkdir()
    monkeypatch.chdir(tmp_path)
    paths = ("mine", "mine/", "./mine", str(tmp_path / "mine"))
    assert len({experiment(path, "x-sta").fingerprint for path in paths}) == 1
    (tmp_path / "enc").mkdir()
    paths = ("enc", "./enc", "enc/", str(tmp_path / "enc"))
    assert {experiment("demo", "x-sta", backbone=path).backbone for path in paths} == {str(tmp_path / "enc")}
    assert len({backbone_tag(path) for path in paths}) == 1
    backbones = ("runs/a/model", "runs/b/model", "org/enc-v1.0", "org/enc-v1.5", "a/tiny.bin", "mbert", "e5-small-q4")
    assert len({experiment("demo", "x-sta", backbone=name).name for name in backbones}) == len(backbones)


def test_a_result_of_another_experiment_is_never_overwritten(results, tmp_path):
    exp = experiment("demo", "x-sta")
    record = describe(exp, "gold") | {"fingerprint": "0123"}
    path = write_result(result_path(exp, "gold", tmp_path), record, {"demo": {"calibrated": evaluation(0.1)}})
    assert path.name == "x-sta_seed42_0123.json" and len(load_results("demo", tmp_path)) == 3
    again = describe(exp, "gold"), {"demo": {"calibrated": evaluation(0.3)}}
    write_result(result_path(exp, "gold", tmp_path), *again)
    assert len(load_results("demo", tmp_path)) == 3  # the same experiment, measured again


def test_provenance_without_git(monkeypatch):
    provenance.cache_clear()
    monkeypatch.setenv("PATH", "")
    found = provenance()
    provenance.cache_clear()
    assert found["commit"] == "unknown" and not found["clean"]


def test_command_scores_predictions(tmp_path, capsys):
    questions = [Question(str(i), "Who?", "Ada met Bob.", (Answer("Bob", 8),)) for i in range(4)]
    write_squad(tmp_path / "gold.json", questions)
    (tmp_path / "predictions.json").write_text(json.dumps({"0": "Bob", "1": "met Bob", "2": "Ada"}), "utf-8")
    files = ["--predictions", str(tmp_path / "predictions.json"), "--gold", str(tmp_path / "gold.json")]
    assert main(["evaluate", *files, "--language", "en"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found == {"f1": pytest.approx(100 * (1 + 2 / 3) / 4), "em": 25.0, "n": 4}
