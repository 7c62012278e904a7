"""Pictures of results and corpora: heights, intervals and places are those computed by hand."""

import pandas as pd
import pytest
from matplotlib.colors import to_hex

from xsta_lib.data.squad import Answer, Question
from xsta_lib.experiments.results import write_scores
from xsta_lib.experiments.significance import Difference
from xsta_lib.plotting import results
from xsta_lib.plotting.results import (
    COLOURS,
    answer_positions,
    difference_points,
    language_bars,
    length_boxes,
    mixture_points,
    position_scatter,
    source_target_bars,
)

F1 = {  # by system and language, of three seeds
    "zero-shot": {"de": [30.0, 31, 32], "en": [50.0, 52, 54], "zh": [20.0, 20, 20]},
    "x-sta": {"de": [40.0, 40, 43], "en": [60.0, 60, 60], "zh": [35.0, 36, 37]},
}


@pytest.fixture
def frame(tmp_path) -> pd.DataFrame:
    """Two systems and an ablation, whose bars must not be drawn; the scores are of one question a language."""
    rows = [
        {"system": system, "dataset": "toy", "language": language, "f1": f1, "seed": seed, "protocol": "mine"}
        for system, by_language in (F1 | {"x-sta w/o gdks": F1["x-sta"]}).items()
        for language, values in by_language.items()
        for seed, f1 in enumerate(values)
    ]
    found = pd.DataFrame(rows).assign(source_language="en")
    for (system, seed), part in found.groupby(["system", "seed"]):
        path = tmp_path / f"{system.replace('/', '-')}-{seed}.parquet"
        write_scores(path, part[["dataset", "language", "f1"]].assign(id="q", em=part["f1"]))
        found.loc[part.index, "scores"] = str(path)
    return found


def heights(axes) -> list[list[float]]:
    return [[bar.get_height() for bar in bars] for bars in axes.containers if hasattr(bars, "patches")]


def test_languages_have_their_means_and_the_average_its_interval(frame):
    axes = language_bars(frame, "toy").axes[0]
    assert [text.get_text() for text in axes.get_xticklabels()] == ["de", "en", "zh", "average,\nen included"]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["zero-shot", "x-sta"]
    zero_shot, x_sta = heights(axes)
    assert zero_shot == pytest.approx([31, 52, 20, 103 / 3]) and x_sta == pytest.approx([41, 60, 36, 137 / 3])
    # x-sta's means over languages by seed are 45, 45 1/3 and 46 2/3; Student's t for two degrees of freedom is 4.3027
    half = 4.302653 * pd.Series([45, 136 / 3, 140 / 3]).std() / 3**0.5
    bars, errors = axes.containers[:2], [bars for bars in axes.containers if not hasattr(bars, "patches")]
    (ends,) = errors[1].lines[2]
    (bottom, top) = ends.get_segments()[0]
    assert [bottom[1], top[1]] == pytest.approx([137 / 3 - half, 137 / 3 + half], abs=0.15)  # of 10,000 draws
    assert bottom[0] == pytest.approx(bars[1][3].get_x() + bars[1][3].get_width() / 2)
    assert axes.get_title() == "F1 by language: toy (protocol mine)"
    assert axes.get_xlabel() == "95 % intervals of the average over 3 seeds, questions"
    assert [to_hex(bars[0].get_facecolor()) for bars in bars] == [COLOURS[name].lower() for name in F1]


def test_intervals_of_two_kinds_are_told_apart_and_seeds_are_dots(frame):
    some = frame[(frame["system"] == "x-sta") | (frame["seed"] == 0)]
    label = language_bars(some, "toy").axes[0].get_xlabel()
    assert label.endswith("over questions (grey) or 3 seeds, questions (black)")
    axes = source_target_bars(some, "toy").axes[0]
    dots = [line.get_ydata().tolist() for line in axes.lines if line.get_marker() == "."]
    assert dots == [[60, 60, 60], [pytest.approx(37.5), pytest.approx(38), pytest.approx(40)]]
    assert axes.get_title().endswith("; dots: seeds")


def test_source_stands_before_the_mean_of_the_targets(frame):
    axes = source_target_bars(frame, "toy").axes[0]
    assert [text.get_text() for text in axes.get_xticklabels()] == ["source (en)", "mean of targets"]
    assert heights(axes) == [pytest.approx([52, 25.5]), pytest.approx([60, 38.5])]
    assert [text.get_text() for text in axes.texts] == ["52.0", "25.5", "60.0", "38.5"]


@pytest.mark.parametrize(("languages", "means"), [(["en"], [[52], [60]]), (["de", "zh"], [[25.5], [38.5]])])
def test_a_side_without_questions_has_no_bar(frame, languages, means):
    some = frame[frame["language"].isin(languages)]
    axes = source_target_bars(some, "toy").axes[0]
    assert heights(axes) == [pytest.approx(part) for part in means]
    assert [text.get_text() for text in axes.texts] == [f"{value:.1f}" for (value,) in means]
    dots = [line.get_xydata() for line in axes.lines if line.get_marker() == "."]
    assert [len(points) for points in dots] == [3, 3]
    for points, (bar,) in zip(dots, axes.containers, strict=True):
        assert (points[:, 0] == bar.get_x() + bar.get_width() / 2).all()
        assert points[:, 1].mean() == pytest.approx(bar.get_height())
    last = language_bars(some, "toy").axes[0].get_xticklabels()[-1].get_text()
    assert last == ("average,\nen included" if "en" in languages else "average")


def test_answers_lie_where_their_middles_are():
    def question(key: str, start: int) -> Question:
        return Question(key, "?", "0123456789", (Answer("ab", start),))

    source = [question("a", 0), question("b", 8), question("c", 4)]
    targets = {"de": [question("b", 6), question("a", 1)], "zh": [*source[1:], question("x", 0)]}
    positions = answer_positions(source, targets)
    assert positions.set_index(["language", "id"]).T.to_dict("list") == {
        ("de", "a"): pytest.approx([0.1, 0.2]),
        ("de", "b"): pytest.approx([0.9, 0.7]),
        ("zh", "b"): pytest.approx([0.9, 0.9]),
        ("zh", "c"): pytest.approx([0.5, 0.5]),  # x has no source
    }
    german, chinese = position_scatter(positions).axes
    assert german.collections[0].get_offsets().ravel().tolist() == pytest.approx([0.1, 0.2, 0.9, 0.7])
    assert german.get_title() == "de, r = 1.00" and len(chinese.collections[0].get_offsets()) == 2


def test_boxes_stand_at_the_quartiles():
    axes = length_boxes({"en": [1, 2, 3, 4, 5], "de": [10, 20, 30]}, 40).axes[0]
    medians = [line.get_ydata()[0] for line in axes.lines if len(set(line.get_ydata())) == 1]
    assert {3.0, 20.0, 40.0} <= set(medians) and [t.get_text() for t in axes.get_xticklabels()] == ["en", "de"]


def test_a_difference_stands_on_its_interval_and_is_filled_where_that_leaves_out_0():
    found = {"one": Difference(1.0, -0.5, 2.0, 0.3), "two": Difference(-2.0, -3.0, -1.0, 0.001)}
    axes = difference_points(found, "mine").axes[0]
    assert [text.get_text() for text in axes.get_yticklabels()] == ["one", "two"] and axes.get_title() == "mine"
    assert axes.yaxis_inverted()  # the first is on top
    for place, (bars, one) in enumerate(zip(axes.containers, found.values(), strict=True)):
        marker, _, (ends,) = bars.lines
        assert marker.get_xydata().tolist() == [[one.value, place]]
        assert ends.get_segments()[0][:, 0].tolist() == pytest.approx([one.low, one.high])
        assert marker.get_markerfacecolor() == ("white" if one.low <= 0 <= one.high else "#0072B2")


def test_an_interval_without_width_is_drawn_though_rounding_puts_it_beside_its_value(frame, monkeypatch):
    monkeypatch.setattr(results, "average_with_interval", lambda *_: (36.666664, 36.666666, 36.666666, "questions"))
    assert language_bars(frame, "toy").axes[0].containers
    assert difference_points({"one": Difference(0.1 + 0.2, 0.3, 0.3, 1.0)}, "mine").axes[0].containers


def test_each_reading_is_a_point_of_its_language():
    f1 = pd.DataFrame({"own": [50.0, 40], "projected": [45.0, 55], "mixture": [60.0, 58]}, ["zh", "de"])
    axes = mixture_points(f1, 68.0, "a title").axes[0]
    drawn = {line.get_label(): line for line in axes.lines}
    assert {name: list(drawn[name].get_xdata()) for name in f1} == {name: list(f1[name]) for name in f1}
    assert list(drawn["source itself"].get_xdata()) == [68, 68]
    assert [text.get_text() for text in axes.get_yticklabels()] == ["zh", "de"] and axes.yaxis_inverted()
    (ends,) = axes.collections
    assert [list(segment[:, 0]) for segment in ends.get_segments()] == [[45, 60], [40, 58]]
