"""Fonts: every script of the data sets is drawn with what the library brings, without a box or a warning."""

import logging
import warnings

import matplotlib
import pytest
from matplotlib import font_manager
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from xsta_lib.data.protocols import load_protocol
from xsta_lib.plotting import style

TEXTS = {  # of XQuAD's and TyDiQA's languages
    "ar": "العربية لغة جميلة لا إله",
    "bn": "বাংলা প্রশ্ন ক্ষেত্র",
    "el": "Ελληνικά",
    "hi": "हिन्दी में प्रश्न क्षेत्र",
    "ko": "한국어 질문 답변",
    "ru": "Русский язык",
    "te": "తెలుగు ప్రశ్న క్షేత్రం",
    "th": "ภาษาไทย กำลังเรียนรู้ น้ำ",
    "tr": "Türkçe şğıİ",
    "vi": "Tiếng Việt được nghiên cứu",
    "zh": "没有中国，國門。",
}


@pytest.fixture
def bare(monkeypatch):
    """A machine without a font but Matplotlib's own."""
    own = [entry for entry in font_manager.fontManager.ttflist if entry.fname.startswith(matplotlib.get_data_path())]
    monkeypatch.setattr(font_manager.fontManager, "ttflist", own)
    style._add_fonts.cache_clear()
    with matplotlib.rc_context():
        style.use_fonts()
        yield
    style._add_fonts.cache_clear()


def draw(text: str, **look: object):
    figure = Figure(figsize=(6, 0.4))
    canvas = FigureCanvasAgg(figure)
    figure.text(0, 0.3, text, **look)
    canvas.draw()
    return canvas.buffer_rgba()


@pytest.mark.parametrize("language", TEXTS)
@pytest.mark.parametrize("weight", ["normal", "bold"])
def test_every_language_is_drawn_without_a_word(bare, caplog, language, weight):
    with warnings.catch_warnings(), caplog.at_level(logging.WARNING):
        warnings.simplefilter("error")  # a missing glyph is one
        draw(TEXTS[language], fontweight=weight)
    assert not caplog.records


def test_a_character_without_a_font_is_still_said(bare):
    with pytest.warns(UserWarning, match="Glyph 43432"):
        draw("ꦨ")  # Javanese


def test_every_character_of_the_embedded_corpus_has_a_glyph(bare):
    paths = font_manager.fontManager._find_fonts_by_props(font_manager.FontProperties())
    known = {code for path in paths for code in font_manager.get_font(path).get_charmap()}
    questions = [q for part in load_protocol("demo").tests[0].questions.values() for q in part]
    assert {c for q in questions for c in q.context + q.question if ord(c) not in known and c != "\n"} == set()


def test_han_characters_have_their_chinese_forms(bare):
    drawn = {language: bytes(draw("直", language=language)) for language in ("zh-Hans", "ja")}
    assert drawn["zh-Hans"] != drawn["ja"] and bytes(draw("直")) == drawn["zh-Hans"]
