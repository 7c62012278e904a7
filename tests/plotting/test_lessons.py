"""Pictures of models and of training draw the values that they are given, each in its place."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex

from xsta_lib.data.batches import Row
from xsta_lib.plotting.lessons import (
    attention_curves,
    attention_heatmaps,
    batch_shapes,
    language_shift,
    padding_share,
    selection_curve,
    step_curves,
    teacher_view,
    tsne_scatter,
)


def handles(legend) -> dict:
    """What a legend shows by its texts."""
    return {text.get_text(): one for text, one in zip(legend.get_texts(), legend.legend_handles, strict=True)}


@pytest.fixture
def data():
    """An English part and a German one with sources, lengths by hand, and three batches."""
    english = SimpleNamespace(language="en", target=SimpleNamespace(length=np.array([10, 20, 30])), source=None)
    german = SimpleNamespace(language="de", target=SimpleNamespace(length=np.array([40, 33])), source=english.target)
    batches = [[Row(0, 0, -1), Row(0, 1, -1)], [Row(1, 0, 2), Row(1, 1, 0)], [Row(0, 2, -1)]]
    return [english, german], batches


def test_attention_in_training_is_drawn_where_it_was_looked_at():
    logs = {
        "with": [{"step": 10, "uniform_gap": 0.3}, {"step": 20, "uniform_gap": 0.4, "content_mass": 0.6}],
        "without": [{"step": 20, "content_mass": 0.5}, {"step": 30, "validation_f1": 1.0}],
    }
    mass, gap = attention_curves(logs, "mine").axes
    assert [line.get_xydata().tolist() for line in mass.lines] == [[[20, 0.6]], [[20, 0.5]]]
    assert [line.get_xydata().tolist() for line in gap.lines] == [[[10, 0.3], [20, 0.4]]]  # the other lacks the term
    assert list(handles(mass.get_legend())) == ["with", "without"] and list(handles(gap.get_legend())) == ["with"]


def test_padding_is_counted_by_hand(data):
    # 10 + 20 of 2 x 32, 40 + 33 of 2 x 64, 30 of 32
    assert padding_share(*data) == pytest.approx(1 - (30 + 73 + 30) / (64 + 128 + 32))
    assert padding_share(*data, multiple=1) == pytest.approx(1 - 133 / (40 + 80 + 30))


def test_batches_are_drawn_where_they_come(data):
    axes = batch_shapes(*data).axes[0]
    (points,) = axes.collections
    assert points.get_offsets().tolist() == [[0, 20], [1, 40], [2, 30]]
    key = handles(axes.get_legend())
    colours = [key[language].get_markerfacecolor() for language in ("en", "de", "en")]
    assert [to_hex(colour) for colour in points.get_facecolors()] == [to_hex(colour) for colour in colours]
    assert key["en"].get_marker() != key["de"].get_marker()


def test_curves_leave_out_what_a_step_lacks():
    log = [
        {"step": 1, "loss": 2.0, "learning_rate": 0.1, "grad_norm": 3.0},
        {"step": 2, "loss": 1.0, "learning_rate": 0.2, "grad_norm": 1.0, "teacher_mass": 0.7},
        {"step": 2, "validation_f1": 40.0},
    ]
    lines = [axes.lines[0].get_xydata().tolist() for axes in step_curves(log).axes]
    assert lines == [[[1, 0.1], [2, 0.2]], [[1, 3.0], [2, 1.0]], [[2, 0.7]]]
    marked = selection_curve([2, 4, 6], [10.0, 30.0, 20.0]).axes[0].collections[0].get_offsets().tolist()
    assert marked == [[4, 30.0]]


def test_heat_maps_have_every_cell_in_its_place_on_one_scale():
    values = np.arange(6.0).reshape(2, 3) / 10
    first = pd.DataFrame(values, index=["der", "der"], columns=["the", "old", "the"])  # tokens repeat
    figure = attention_heatmaps({"a": first, "b": first + 1})
    left, right, scale = figure.axes
    np.testing.assert_array_equal(left.collections[0].get_array().reshape(2, 3), values)
    assert left.collections[0].get_clim() == right.collections[0].get_clim() == (0.0, 1.5)
    assert [text.get_text() for text in left.get_xticklabels()] == ["the", "old", "the"]
    assert left.yaxis_inverted()  # the first token stands on top
    assert attention_heatmaps({"a": first + 1}, from_zero=False).axes[0].collections[0].get_clim() == (1.0, 1.5)
    assert attention_heatmaps({"a": first}, highest=0.3).axes[0].collections[0].get_clim() == (0.0, 0.3)


def test_sentences_lie_where_tsne_put_them():
    rows = [
        (space, language, example, x + 10 * y, float(y))
        for space in ("before", "after")
        for x, language in enumerate(("en", "de"))
        for y, example in enumerate(("p", "q", "r"))
    ]
    frame = pd.DataFrame(rows, columns=["space", "language", "example", "x", "y"])
    scores = pd.DataFrame({"by language": [0.5, -0.25]}, index=["before", "after"])
    figure = tsne_scatter(frame, scores, ["r", "p"])
    faint, marked = figure.axes[1].collections
    assert len(faint.get_offsets()) == 6 and figure.axes[1].get_xlabel() == "silhouette -0.25 by language"
    assert marked.get_offsets().tolist() == [[0, 0], [20, 2], [1, 0], [21, 2]]
    key = handles(figure.legends[0])
    assert list(key) == ["en", "de", "example 1", "example 2", "other examples"]
    drawn = [to_hex(colour) for colour in marked.get_facecolors()]
    assert drawn == [to_hex(key[name].get_markerfacecolor()) for name in ("en", "en", "de", "de")]
    assert key["example 1"].get_marker() == "o"  # "r", drawn second and fourth
    corners = [len(path.vertices) for path in marked.get_paths()]
    assert corners[0] == corners[2] < corners[1] == corners[3]  # a square has fewer than a circle
    assert "other examples" not in handles(tsne_scatter(frame, scores, ["r", "p", "q"]).legends[0])


def test_states_are_projected_on_the_line_between_the_first_means():
    first = {"en": np.array([[0.0, 0], [0, 2]]), "de": np.array([[3.0, 4], [3, 6]])}  # 5 apart, along (3, 4) / 5
    second = {"en": np.array([[5.0, 0]]), "de": np.array([[0.0, 5], [0, 5]])}
    panels = language_shift({"before": first, "after": second}).axes
    means = [[line.get_xdata()[0] for line in axes.lines] for axes in panels]
    assert means[0] == pytest.approx([0.8, 5.8]) and means[1] == pytest.approx([3.0, 4.0])
    assert all(axes.get_xlabel().endswith("the two means of the first panel") for axes in panels)


def test_tokens_are_named_where_they_are_heaviest_and_never_over_one_another():
    tokens = [f"\u2581t{place}" for place in range(192)]  # a label is three tokens wide
    tokens[99:101] = ["\u2581in", "\u2581\u00d3"]
    weights = np.zeros(192)
    weights[[20, 60, 99, 100, 102, 105, 150, 190]] = [0.1, 0.2, 0.1, 0.9, 0.3, 0.2, 0.1, 0.1]
    found = SimpleNamespace(
        source=np.array([[0.1, 0.2], [0.9, 0.8]]),
        source_tokens=["\u2581a", "\u2581b"],
        teacher_attention=np.stack([0 * weights, weights], axis=1),
        target_tokens=tokens,
    )
    axes = teacher_view(found).axes[0]
    named = dict(zip(axes.get_xticks().tolist(), (label.get_text() for label in axes.get_xticklabels()), strict=True))
    assert named == {20: "t20", 60: "t60", 100: "in \u00d3", 105: "t105", 150: "t150", 190: "t190"}  # not 102's
