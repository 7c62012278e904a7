"""Result files, tables, intervals, marked texts and the command that scores predictions."""

import json

import numpy as np
import pytest

from xsta_lib.cli import main
from xsta_lib.corpus import Answer, Question, write_squad
from xsta_lib.evaluation import Evaluation, provenance
from xsta_lib.experiments import Experiment, describe, experiment, result_path
from xsta_lib.figures import language_bars, source_target_bars
from xsta_lib.marking import highlight
from xsta_lib.metrics import Score, aggregate
from xsta_lib.results import load_results, load_scores, write_result
from xsta_lib.runs import step_count
from xsta_lib.significance import average_interval
from xsta_lib.tables import metrics_frame, results_table


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


def test_table_and_figures_show_every_system(results):
    frame = metrics_frame(results)
    table = results_table(frame, "demo").splitlines()
    assert table[2].startswith("| zero-shot | 20.0 / 25.0 |") and table[3].startswith("| x-sta | 40.0 / 25.0 |")
    for figure in (language_bars(frame, "demo"), source_target_bars(frame, "demo")):
        assert [text.get_text() for text in figure.axes[0].get_legend().get_texts()] == ["zero-shot", "x-sta"]


def test_interval_covers_the_mean_and_shrinks_with_more_questions():
    import pandas as pd

    def frame(n: int) -> pd.DataFrame:
        values = np.random.default_rng(0).normal(50, 20, n)
        rows = [(language, str(i), value) for language in ("en", "de") for i, value in enumerate(values)]
        return pd.DataFrame(rows, columns=["language", "id", "f1"])

    widths = []
    for n in (50, 800):
        value, low, high = average_interval(frame(n))
        assert low < value < high
        assert high - low == pytest.approx(2 * 1.96 * 20 / n**0.5, rel=0.25)
        widths.append(high - low)
    assert widths[1] < widths[0] / 3


def test_highlight_marks_gold_and_prediction_and_escapes():
    question = Question("1", "Who <b>?", "Ada & Bob met Ada.", (Answer("Ada", 14),))
    text = highlight(question, "Ada", "en", 0.5)
    assert "Who &lt;b&gt;?" in text and "&amp; Bob met <span" in text and text.count("<span") == 1
    assert 'dir="rtl"' in highlight(question, "Bob", "ar") and highlight(question, "Bob", "ar").count("<span") == 2


def test_experiments_refuse_what_does_not_exist():
    for wrong in ({"method": "zero"}, {"without": ("gdks",), "method": "zero-shot"}, {"switches": (("gama", 1),)}):
        with pytest.raises(ValueError):
            Experiment("demo", **{"method": "x-sta", **wrong})
    assert experiment("demo", "x-sta").fingerprint != experiment("demo", "x-sta", seed=1).fingerprint
    assert experiment("demo", "x-sta", without=("gdks",)).name == "x-sta_without-gdks_seed42"


def test_steps_asked_for_overrule_epochs():
    exp = experiment("paper-mlqa", "x-sta")
    assert step_count(exp, None, None) == 24_000 and exp.name == "x-sta_seed42"  # no data is read
    assert experiment("demo", "x-sta", steps=0).fingerprint == experiment("demo", "x-sta").fingerprint


def test_switches_without_effect_are_refused():
    for name, value in (("languages", ("en", "de")), ("source_language", "de"), ("without", ("gdks",))):
        with pytest.raises(ValueError, match="unknown switches"):
            experiment("demo", "x-sta", switches=((name, value),))
    with pytest.raises(ValueError, match="sharing_dropout follows dropout"):
        experiment("demo", "x-sta", switches=(("sharing_dropout", 0.3),))
    assert experiment("demo", "x-sta", switches=(("sharing_dropout", 0.3),), dropout=None).dropout is None


def test_one_experiment_written_in_two_ways_is_one(tmp_path, monkeypatch):
    two = [experiment("demo", "x-sta", without=parts) for parts in (("gdks", "atgc"), ("atgc", "gdks", "atgc"))]
    two += [experiment("demo", "x-sta", switches=(("gamma", value), ("zeta", 0))) for value in (0, 0.0)]
    assert two[0] == two[1] and two[2] == two[3] and two[2].name == two[3].name
    (tmp_path / "mine").mkdir()
    monkeypatch.chdir(tmp_path)
    paths = ("mine", "mine/", "./mine", str(tmp_path / "mine"))
    assert len({experiment(path, "x-sta").fingerprint for path in paths}) == 1


def test_what_is_one_experiment_has_one_name():
    base = experiment("demo", "x-sta")
    assert experiment("demo", "x-sta", epochs=1) == experiment("demo", "x-sta", epochs=1.0)
    assert experiment("paper-mlqa", "x-sta", epochs=2).steps == 0  # epochs asked for overrule the protocol's steps
    backbones = ("runs/a/model", "runs/b/model", "org/enc-v1.0", "org/enc-v1.5", "a/tiny.bin", "mbert", base.backbone)
    assert len({experiment("demo", "x-sta", backbone=name).name for name in backbones}) == len(backbones)


def test_a_result_of_another_experiment_is_never_overwritten(results, tmp_path):
    exp = experiment("demo", "x-sta")
    record = describe(exp, "gold") | {"fingerprint": "0123"}
    path = write_result(result_path(exp, "gold", tmp_path), record, {"demo": {"calibrated": evaluation(0.1)}})
    assert path.name == "x-sta_seed42_0123.json" and len(load_results("demo", tmp_path)) == 3
    again = describe(exp, "gold"), {"demo": {"calibrated": evaluation(0.3)}}
    write_result(result_path(exp, "gold", tmp_path), *again)
    assert len(load_results("demo", tmp_path)) == 3  # the same experiment, measured again


def test_a_folder_called_like_a_protocol_is_refused(tmp_path):
    (tmp_path / "compact").mkdir()
    with pytest.raises(ValueError, match="rename it"):
        experiment(str(tmp_path / "compact"), "x-sta")


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
    assert main(["evaluate", *files[:3], str(tmp_path / "none.json"), "--language", "en"]) == 1
    assert "none.json" in capsys.readouterr().err
