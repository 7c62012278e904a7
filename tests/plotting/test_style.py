"""Fonts: what is missing is named with its remedy, what is there is used."""

import matplotlib
import pytest

from xsta_lib.plotting import style as fonts


@pytest.fixture
def fresh(monkeypatch):
    """No memory of the machine's fonts, before and after."""
    fonts.script_fonts.cache_clear()
    before = matplotlib.rcParams["font.family"]
    yield monkeypatch
    matplotlib.rcParams["font.family"] = before
    fonts.script_fonts.cache_clear()


def test_a_script_without_a_font_is_named_with_the_remedy(fresh):
    fresh.setattr(fonts, "SCRIPTS", {"Thai": ("ท", ("No Such Font", "DejaVu Sans")), "Greek": ("λ", ("DejaVu Serif",))})
    with pytest.warns(UserWarning, match="no font for Thai: their.*fonts-noto"):
        assert fonts.use_fonts() == ["Thai"]  # DejaVu is there but has no Thai
    assert fonts.script_fonts() == {"Thai": None, "Greek": "DejaVu Serif"}
    assert matplotlib.rcParams["font.family"] == ["DejaVu Sans", "DejaVu Serif"]
