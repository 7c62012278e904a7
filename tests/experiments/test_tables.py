"""Tables: seeds, switches and ablations in their places, the paper's numbers beside, Markdown and LaTeX; grids."""

import json
import re
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from xsta_lib.experiments import frames, tables
from xsta_lib.experiments.experiment import METHODS, experiment, grid
from xsta_lib.experiments.results import load_all_results, load_results, write_result
from xsta_lib.experiments.run import describe, missing, result_path
from xsta_lib.plotting import results as figures
from xsta_lib.prediction.evaluation import Evaluation
from xsta_lib.prediction.metrics import Score, aggregate

LANGUAGES = ("en", "de", "zh")


def evaluation(f1: float) -> Evaluation:
    """20 questions a language whose F1 is ``f1`` (0 to 1) on average, English 10 points better."""
    scores = {
        language: {f"q{i}": Score(0.25, f1 + 0.1 * (language == "en") + 0.01 * (i % 2 - 0.5)) for i in range(20)}
        for language in LANGUAGES
    }
    return Evaluation({language: aggregate(values) for language, values in scores.items()}, scores, {})


def put(folder, f1: float, source: str = "gold", validation: float | None = None, method="x-sta", **changes) -> None:
    """Write one result of the data set ``xquad``; its reading ``target`` is two points worse."""
    exp = experiment("demo", method, **changes)
    readings = {"calibrated": evaluation(f1)}
    if source != "none":
        readings["target"] = evaluation(f1 - 0.02)
    record = {**describe(exp, source), "validation_f1": validation}
    write_result(result_path(exp, source, folder), record, {"xquad": readings})


@pytest.fixture
def folder(tmp_path):
    """Three systems, X-STA with two more seeds, target only, two ablations, three gammas."""
    put(tmp_path, 0.40, "none", method="zero-shot")
    put(tmp_path, 0.45, "none", method="trans-train")
    for seed, f1 in ((42, 0.50), (43, 0.51), (44, 0.52)):
        put(tmp_path, f1, validation=60.0, seed=seed)
    put(tmp_path, 0.48, "none")
    put(tmp_path, 0.30, share_source=True)
    put(tmp_path, 0.49, without=("gdks",))
    put(tmp_path, 0.47, without=("atgc",))
    for gamma, f1, validation in ((0.0, 0.44, 55.0), (0.5, 0.46, 57.0)):
        put(tmp_path, f1, validation=validation, switches=(("gamma", gamma),))
    return tmp_path


def test_seeds_become_one_row_and_switches_stay_out(folder):
    frame = frames.metrics_frame(load_results("demo", folder))
    assert {"x-sta gamma=0.5", "x-sta w/o gdks", "x-sta share_source=True"} <= set(frame["system"])
    four = frames.compared_systems(frame)
    heading, table = tables.results_block(four, "xquad")
    assert heading == "Measured, protocol demo"
    assert list(table.index) == ["zero-shot", "trans-train", "x-sta (target only)", "x-sta"]
    assert table.loc["x-sta", "de"] == "51.0 / 25.0" and table.loc["x-sta", "avg"].startswith("54.3 /")
    # three seeds 1 point apart: 4.3027 / sqrt(3) around the mean over languages
    bounds = re.fullmatch(r"([\d.]+) to ([\d.]+) \(3 seeds, questions\)", table.loc["x-sta"].iloc[-1]).groups()
    assert list(map(float, bounds)) == pytest.approx([54.33 - 2.48, 54.33 + 2.48], abs=0.2)
    assert table.loc["zero-shot"].iloc[-1].endswith(" (questions)")


def test_a_data_set_read_alone_either_way_is_one_row(folder):
    for source in ("gold", "none"):
        exp = experiment("demo", "x-mixup")
        values = {"xquad": 0.46 if source == "gold" else 0.45, "tydiqa": 0.4}
        metrics = {dataset: {"calibrated": evaluation(f1)} for dataset, f1 in values.items()}
        write_result(result_path(exp, source, folder), describe(exp, source), metrics)
    frame = frames.metrics_frame(load_results("demo", folder))
    assert frames.systems(frame[frame["dataset"] == "tydiqa"]) == ["x-mixup"]
    assert {"x-mixup", "x-mixup (target only)"} <= set(frame.loc[frame["dataset"] == "xquad", "system"])


def test_differences_are_paired_over_the_targets(folder):
    heading, table = tables.difference_block(frames.metrics_frame(load_results("demo", folder)), "xquad")
    assert heading.endswith("xquad, without en; x-sta minus")
    cells = {"difference of F1": "+10.0", "95 % interval": "+10.0 to +10.0", "p": "below 0.001", "over": "questions"}
    assert table.loc["x-sta minus zero-shot"].to_dict() == cells
    assert set(table.index) == {f"x-sta minus {n}" for n in ("zero-shot", "trans-train", "x-sta (target only)")}


def test_differences_over_seeds_are_those_of_the_same_seeds(folder):
    put(folder, 0.44, "none", method="trans-train", seed=43)
    lines = ["dataset,id,article", *(f"xquad,q{i},Article {i // 4}" for i in range(20))]
    (folder / "demo" / "articles.csv").write_text("\n".join(lines) + "\n")
    results = load_results("demo", folder)
    _, table = tables.difference_block(frames.metrics_frame(results), "xquad")
    # seeds 42 and 43: 5 and 7 points apart; t(0.975, 1) = 12.706
    low, high = map(float, table.loc["x-sta minus trans-train", "95 % interval"].split(" to "))
    assert (low, high) == (pytest.approx(-6.7, abs=2), pytest.approx(18.7, abs=2))
    told = table.loc["x-sta minus trans-train", ["difference of F1", "over", "each seed"]]
    assert told.tolist() == ["+6.0", "2 seeds, 5 articles", "+5.0, +7.0"]
    told = table.loc["x-sta minus zero-shot", ["95 % interval", "over", "each seed"]]
    assert told.tolist() == ["+10.0 to +10.0", "5 articles", ""]
    average = tables.results_block(frames.compared_systems(frames.metrics_frame(results)), "xquad")[1].iloc[:, -1]
    assert average["x-sta"].endswith("(3 seeds, 5 articles)") and average["zero-shot"].endswith("(5 articles)")
    text = tables.write_tables(results, folder)[0].read_text("utf-8").split("## Differences")[1]
    assert "xquad, without en" in text and "| x-sta minus x-sta (target only) |" in text


def test_a_comparison_across_machines_says_so(folder):
    results = load_results("demo", folder)
    for result in results:
        result["provenance"] = {"device": "another" if result["method"] == "trans-train" else "one"}
    _, table = tables.difference_block(frames.metrics_frame(results), "xquad")
    assert table["machines"].to_dict() == {
        "x-sta minus zero-shot": "",
        "x-sta minus trans-train": "one and another",
        "x-sta minus x-sta (target only)": "",
    }
    assert tables.cost_block(results)[1].loc["trans-train", "machine"] == "another"


def test_the_source_is_compared_alone_and_once(folder):
    put(folder, 0.43, "none", method="pairs")
    put(folder, 0.47, "none", method="trans-train", equal_tokens=True)
    blocks = dict(tables.difference_blocks(frames.metrics_frame(load_results("demo", folder))))
    assert {heading.partition(": ")[2] for heading in blocks} == {
        "xquad, without en; x-sta minus",
        "xquad, en; x-sta minus",
        "xquad, without en; x-sta (target only) minus",
        "xquad, without en; pairs minus",
        "xquad, en; pairs minus",
        "xquad, without en; trans-train minus",
    }
    ours = blocks["Measured, protocol demo: xquad, en; x-sta minus"]
    others = ["zero-shot", "trans-train", "trans-train equal_tokens=True"]
    assert list(ours.index) == [f"x-sta minus {name}" for name in (*others, "pairs")]
    assert ours.loc["x-sta minus pairs", "difference of F1"] == "+7.0"
    pairs = blocks["Measured, protocol demo: xquad, en; pairs minus"]  # not x-sta once more, the other way round
    assert list(pairs.index) == [f"pairs minus {name}" for name in others]
    last = blocks["Measured, protocol demo: xquad, without en; trans-train minus"]
    assert list(last.index) == [f"trans-train minus {name}" for name in (others[0], others[2])]


def test_a_test_set_of_the_source_alone_has_no_differences_over_targets(folder):
    results = load_results("demo", folder)
    for result in results:
        kept = pd.read_parquet(result["scores"]).query("language == 'en'")
        kept.to_parquet(result["scores"])
        result["metrics"] = {"xquad": {"en": result["metrics"]["xquad"]["en"]}}
    blocks = tables.difference_blocks(frames.metrics_frame(results))
    assert [heading.partition(": ")[2] for heading, _ in blocks] == ["xquad, en; x-sta minus"]
    assert tables.ablation_difference_blocks(results) == []


def test_what_a_system_took_is_told_once_also_where_it_only_read_the_target_alone(folder):
    results = load_results("demo", folder)
    assert list(tables.cost_block(results)[1].index) == ["zero-shot", "trans-train", "x-sta"]
    alone = [result for result in results if result["source"] == "none"]
    assert list(tables.cost_block(alone)[1].index) == ["zero-shot", "trans-train", "x-sta (target only)"]


def test_attention_is_that_of_the_last_looks_and_says_who_had_the_penalty(folder):
    looks = [{"step": step, "content_mass": step / 10} for step in range(10)] + [{"step": 10, "loss": 1.0}]
    results = [result | {"log": looks} for result in load_results("demo", folder)]
    found = frames.attention_frame(results)
    assert found["on content"].tolist() == pytest.approx([0.7] * len(found))
    assert set(found[found["penalty"]]["system"]) > {"x-sta", "x-sta w/o gdks", "x-sta gamma=0.0"}
    assert "x-sta (target only)" not in set(found["system"])  # the same run, read once more
    without = [results[0] | {"method": "x-sta", "source": "gold", "without": ["alignment_token"]}]
    without += [without[0] | {"without": [], "config": without[0]["config"] | {"switches": [["eta", 0.0]]}}]
    assert not frames.attention_frame(without)["penalty"].any()


def test_the_first_seed_is_the_full_methods(folder):
    put(folder, 0.3, "none", method="zero-shot", seed=1)
    results = load_results("demo", folder)
    assert frames.first_seed(results) == 42
    assert frames.first_seed([result for result in results if result["method"] == "zero-shot"]) == 1


def test_a_system_measured_twice_is_refused(folder):
    result = load_results("demo", folder)[0]
    with pytest.raises(ValueError, match=r"measured twice: .*json"):
        frames.metrics_frame([result, result])


def test_answers_are_split_by_the_source():
    rows = [
        ("en", 1, 100, 100),
        ("en", 2, 50, 0),
        ("de", 1, 80, 0),
        ("de", 2, 10, 0),
        ("zh", 1, 60, 0),
        ("zh", 2, 30, 0),
    ]
    scores = pd.DataFrame(rows, columns=["language", "id", "f1", "em"])
    assert list(frames.split_by_source(scores, "en").values()) == [50, 45, 70, 20]
    turned = scores.assign(em=[0, 100, 0, 0, 0, 0])
    assert list(frames.split_by_source(scores, "en", turned).values())[2:] == [20, 70]


def test_ablations_count_a_reading_as_one(folder):
    _, table = tables.ablation_block(load_results("demo", folder))
    assert list(table.index) == ["Ours", "w/o. GDKS", "w/o. ATGC", "w/o. ATGC inference"]
    assert table["xquad"].str.replace(" / 25.0", "").tolist() == ["53.3", "52.3 (-1.0)", "50.3 (-3.0)", "51.3 (-2.0)"]
    assert table["xquad, F1 of en"].tolist() == ["60.0", "59.0", "57.0", "58.0"]


def test_ablations_and_switches_are_paired_with_the_full_method(folder):
    ((heading, table),) = tables.ablation_difference_blocks(load_results("demo", folder))
    assert heading == "Measured, protocol demo, seed 42: xquad, without en, minus the full method"
    assert list(table.index)[:2] == ["w/o. GDKS", "w/o. ATGC"]  # a reading has no scores of its own
    assert {"gamma=0.0", "gamma=0.5"} < set(table.index) and not any("target only" in name for name in table.index)
    assert table.loc["w/o. ATGC"].tolist() == ["-3.0", "-3.0 to -3.0", "below 0.001", "questions"]


def test_the_papers_tables_stand_beside_and_apart(folder):
    frame = frames.metrics_frame(load_results("demo", folder))
    blocks = tables.table_blocks(3, frame)
    assert [heading for heading, _ in blocks] == [
        "Measured, protocol demo",
        "Paper, mBERT base, its own protocol",
        "Paper, XLM-R base, its own protocol",
    ]
    assert blocks[1][1].loc["Zero-shot", "en"] == "83.5 / 72.2"
    assert len(tables.table_blocks(1, frame)) == 2  # nothing of MLQA was measured
    assert tables.table4_blocks(load_results("demo", folder))[1][1].loc["Ours", "MLQA"] == "71.2 / 53.2"


def test_without_the_repository_the_papers_numbers_are_left_out(folder, monkeypatch, capsys):
    monkeypatch.setenv("XSTA_HOME", str(folder))
    path, _ = tables.write_tables(load_results("demo", folder), folder)
    text = path.read_text("utf-8")
    assert "Paper, " not in text and "## Table 4: ablations" in text and "| x-sta | 60.0 / 25.0" not in text
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize("name", ["demo", "R&D #1 {50 %}^~"])
def test_written_tables_are_markdown_and_latex(folder, name):
    results = [result | {"protocol": name} for result in load_results("demo", folder)]
    text, tex = (path.read_text("utf-8") for path in tables.write_tables(results, folder))
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert all(re.fullmatch(r"\|( [^|]* \||---\|)+", row) for row in rows) and "## Table 4: ablations" in text
    assert tex.count("\\toprule") == tex.count("\\begin{table}") == 15
    assert tex.isascii() and r"w/o. alignment\_s" in tex and r"95 \% interval" in tex
    labels = re.findall(r"\\label\{(.*)\}", tex)
    assert len(set(labels)) == 15 and all(re.fullmatch(r"tab:[\w-]+", label) for label in labels)
    body = re.sub(r"(?m)^%.*|\\label\{.*?\}| & ", "", tex)
    assert not re.search(r"(?<!\\)[%&_#^~]", body) and tex.count("{") == tex.count("}")


def test_curves_draw_the_frames_values(folder):
    results = load_results("demo", folder)
    frame, seeds = frames.sweep_frame(results, "gamma"), frames.seed_frame(results)
    assert frame.index.tolist() == [0.0, 0.1, 0.5]
    assert frame["xquad"].round(1).tolist() == [47.3, 53.3, 49.3]
    both = figures.gamma_curve(frame, frames.sweep_columns(frame, "xquad"), "demo", seeds)
    left, right = both.axes
    assert left.lines[0].get_ydata().tolist() == [55.0, 60.0, 57.0]
    assert [axes.get_legend().get_texts()[0].get_text() for axes in both.axes] == ["held-out validation", "xquad"]
    assert right.lines[0].get_ydata() == pytest.approx(frame["xquad"])
    assert right.lines[1].get_xydata() == pytest.approx(np.array([[1, seeds["xquad"][43]], [1, seeds["xquad"][44]]]))
    assert "seed 42; hollow" in both.get_suptitle() and "3 of the paper's 5 values" in both.get_suptitle()
    low, high = right.get_ylim()
    assert low < 47 and high > 54 and np.ptp(left.get_ylim()) == pytest.approx(6)  # never stretched over less
    frame["xquad (target only)"] = frame["xquad"] - 1
    (one,) = figures.gamma_curve(frame, ["xquad (target only)", "xquad"], "demo", seeds).axes  # one scale
    assert [text.get_text() for text in one.get_legend().get_texts()] == ["xquad (target only)", "xquad"]
    apart = figures.gamma_curve(frame.assign(**{frames.MACHINE: ["cpu", "gpu", "cpu"]}), ["xquad"], "demo", seeds)
    cpu, gpu, others = apart.axes[0].lines  # no line joins runs of two machines
    assert [list(line.get_xdata()) for line in (cpu, gpu, others)] == [[0, 2], [1], [1, 1]]
    assert cpu.get_marker() != gpu.get_marker() == others.get_marker() and "a line a machine" in apart.get_suptitle()
    assert [text.get_text() for text in apart.axes[0].get_legend().get_texts()] == ["xquad, cpu", "xquad, gpu"]
    drawn = figures.layer_curve(frame, ["xquad"], "demo", seeds).axes[0].lines[0]
    assert drawn.get_xydata().tolist() == [[k, v] for k, v in frame["xquad"].items()]
    for axes in figures.layer_curve(frame, ["held-out validation", "xquad"], "demo", seeds).axes:
        low, high = axes.get_ylim()
        assert axes.lines and all(low < value < high for line in axes.lines for value in line.get_ydata())


def test_a_data_set_without_english_has_ablations_and_curves(tmp_path):
    put(tmp_path, 0.5, "none")
    put(tmp_path, 0.4, "none", without=("gdks",))
    put(tmp_path, 0.3, "none", switches=(("gamma", 0.5),))
    results = load_results("demo", tmp_path)
    assert list(tables.ablation_block(results)[1].index) == ["Ours", "w/o. GDKS"]
    frame, seeds = frames.sweep_frame(results, "gamma"), frames.seed_frame(results)
    assert frames.sweep_columns(frame, "xquad") == ["xquad (target only)"]
    (axes,) = figures.gamma_curve(frame, frames.sweep_columns(frame, "xquad"), "demo", seeds).axes
    assert axes.lines[0].get_ydata() == pytest.approx([53.3, 33.3], abs=0.05)


def test_readings_stand_side_by_side_over_the_targets_alone():
    def read(**f1):
        return {"toy": {language: {"f1": value, "em": 0.0} for language, value in f1.items()}}

    readings = {"calibrated": read(en=60, de=40, zh=50), "target": read(en=60, de=30, zh=50)}
    kept = {"source_language": "en", "readings": readings}
    control = {"source_language": "en", "readings": {"target": {"toy": {"de": {"f1": 20.0}, "zh": {"f1": 30.0}}}}}
    results = {"mine": kept, "none": kept | {"readings": {}}, "control": control}
    frame = frames.reading_frame(results, "toy")
    assert list(frame) == ["target", "calibrated", "source (en)"] and list(frame.index) == ["mine", "control"]
    assert frame.loc["mine"].tolist() == [40, 45, 60] and frame.loc["control", "target"] == 25
    assert frames.reading_frame({"mine": kept}, "other").empty


def test_another_backbone_has_its_own_figures_and_tables(folder, tmp_path):
    before = tables.markdown(tables.results_block(frames.metrics_frame(load_results("demo", folder)), "xquad")[1])
    plain = {path.name for path in figures.write_figures("demo", folder, tmp_path / "figures")}
    assert plain == {"figure3-demo.png", "languages-demo.png", "figure7-demo.png", "tables.md", "tables.tex"}
    put(folder, 0.9, backbone="mbert")
    put(folder, 0.1, backbone="mbert", method="trans-train", source="none")
    with pytest.raises(ValueError, match="demo and demo, mbert: take one"):
        frames.metrics_frame(load_all_results("demo", folder))
    assert (
        tables.markdown(tables.results_block(frames.metrics_frame(load_results("demo", folder)), "xquad")[1]) == before
    )
    assert {result["backbone"] for result in load_results("demo", folder, backbone="mbert")} == {"mbert"}
    names = {path.name for path in figures.write_figures("demo", folder, tmp_path / "figures")}
    assert plain | {"figure3-demo-mbert.png", "tables-mbert.md"} <= names
    text = (folder / "demo" / "tables-mbert.md").read_text("utf-8")
    assert "Measured, protocol demo, mbert" in text and "| x-sta | 100.0 / 25.0 | 90.0 / 25.0 |" in text


def test_changed_settings_are_named_and_never_overwrite(folder, tmp_path):
    files = set((folder / "demo").glob("*.json"))
    put(folder, 0.1, learning_rate=3e-5, epochs=2.0)
    put(folder, 0.1, batch_size=16)  # the protocol's own
    (added,) = set((folder / "demo").glob("*.json")) - files
    assert added.name == "x-sta_epochs-2.0_learning_rate-3e-05_seed42.json"
    assert json.loads(added.read_text("utf-8")) not in load_results("demo", folder)
    names = {path.name for path in figures.write_figures("demo", folder, tmp_path / "figures")}
    assert {"figure3-demo-epochs-2.0-learning_rate-3e-05.png", "tables-epochs-2.0-learning_rate-3e-05.md"} <= names


@pytest.mark.parametrize(
    ("name", "protocol", "count"),
    [
        ("methods", "demo", 10),
        ("ablations", "demo", 6),
        ("gamma", "parallel", 5),
        ("layers", "parallel", 6),
        ("layers", "demo", 12),
        ("seeds", "parallel", 30),
        ("variants", "demo", 13),
    ],
)
def test_grids_hold_each_experiment_once_and_the_papers_setting_plain(name, protocol, count):
    experiments = grid(name, protocol)
    assert len({exp.fingerprint for exp in experiments}) == len(experiments) == count
    full = experiment(protocol, "x-sta")
    assert sum(exp == full for exp in experiments) == 1
    if name == "methods":
        assert [exp.method for exp in experiments] == list(METHODS)
    if name in ("gamma", "layers"):
        others = [exp for exp in experiments if exp != full]
        assert all(exp == replace(full, switches=exp.switches) and len(exp.switches) == 1 for exp in others)
    changed = grid(name, protocol, backbone="mbert")
    assert changed == [replace(exp, backbone="mbert") for exp in experiments]


def test_unknown_grids_are_refused_and_measured_ones_known():
    with pytest.raises(ValueError, match="the grids are methods, ablations"):
        grid("beta", "demo")
    assert experiment("demo", "x-sta") not in missing(grid("methods", "demo"))
