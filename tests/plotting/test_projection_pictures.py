"""Pictures of projected spans: the table holds what was measured, every script and probability is drawn."""

import json

from xsta_lib.data.protocols import load_protocol
from xsta_lib.experiments.projection import projection_table
from xsta_lib.plotting.projections import projection_heatmap, projection_picture, write_projection_figures
from xsta_lib.plotting.results import write_reader_figure
from xsta_lib.translation.spans import Projection


def test_the_table_shows_the_measured_f1_and_its_mean(tmp_path):
    path = tmp_path / "projection.json"
    metrics = {"string": {"xquad": {"de": {"f1": 50.0}, "zh": {"f1": 20.0}}, "demo": {"de": {"f1": 1.0}}}}
    path.write_text(json.dumps(metrics), "utf-8")
    table = projection_table(path)
    assert table.loc["string"].to_dict() == {"de": 50.0, "zh": 20.0, "mean": 35.0}
    (axes,) = projection_heatmap(table, "a title").axes
    assert [text.get_text() for text in axes.texts] == ["50.0", "20.0", "35.0"]


def test_each_script_stands_below_the_source_with_its_candidates():
    test = load_protocol("demo").tests[0]
    source = test.source[0]
    targets = {}
    for language in ("ar", "hi", "zh"):
        target = next(question for question in test.questions[language] if question.id == source.id)
        gold = target.answers[0]
        targets[language] = target, [Projection(gold.start, gold.end, 0.75, "alignment"), Projection(0, 3, 0.125, "x")]
    axes = projection_picture(source, targets).axes[0]
    drawn = "".join(text.get_text() for text in axes.texts)
    assert drawn.count("0.75") == drawn.count("0.12") == 3
    places = [next(t for t in axes.texts if t.get_text() in target.context) for target, _ in targets.values()]
    heights = [place.get_position()[1] for place in places]
    assert heights == sorted(heights)
    marks = [patch.get_facecolor() for patch in axes.patches]
    assert len(set(marks)) == 2 and len(marks) >= 7  # four gold lines, three projections


def test_what_lies_beside_the_reader_and_the_projector_is_drawn_without_measuring_anew(tmp_path):
    written = [write_reader_figure(tmp_path), *write_projection_figures(tmp_path)]
    assert [path.name for path in written] == ["reader.png", "projection.png", "projection-scripts.png"]
    assert all(path.stat().st_size > 10_000 for path in written)
