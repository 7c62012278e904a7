"""What one pass answers by each of its readings, as a table."""

from xsta_lib.experiments.frames import reading_frame


def test_readings_stand_side_by_side_over_the_targets_alone():
    def read(**f1):
        return {"toy": {language: {"f1": value, "em": 0.0} for language, value in f1.items()}}

    readings = {"calibrated": read(en=60, de=40, zh=50), "target": read(en=60, de=30, zh=50)}
    kept = {"source_language": "en", "readings": readings}
    control = {"source_language": "en", "readings": {"target": {"toy": {"de": {"f1": 20.0}, "zh": {"f1": 30.0}}}}}
    frame = reading_frame({"mine": kept, "none": kept | {"readings": {}}, "control": control}, "toy")
    assert list(frame) == ["target", "calibrated", "source (en)"] and list(frame.index) == ["mine", "control"]
    assert frame.loc["mine"].tolist() == [40, 45, 60] and frame.loc["control", "target"] == 25
    assert reading_frame({"mine": kept}, "other").empty
