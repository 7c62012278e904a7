"""Fonts for every script of the data sets: Matplotlib takes a character from the first font of a list that has it."""

import warnings
from contextlib import suppress
from functools import cache

import matplotlib
from matplotlib import font_manager

# A script: a character that stands for it, and fonts of Linux, macOS and Windows that have it. A font of its own comes
# before the general one that Matplotlib brings, whose Arabic is bare.
SCRIPTS = {
    "Arabic": ("ع", ("Noto Sans Arabic", "Noto Naskh Arabic", "Geeza Pro", "Segoe UI", "Arial")),
    "Bengali": ("ব", ("Noto Sans Bengali", "Bangla Sangam MN", "Nirmala UI")),
    "Devanagari": ("ह", ("Noto Sans Devanagari", "Kohinoor Devanagari", "Nirmala UI", "Mangal")),
    "Han": ("中", ("Noto Sans CJK SC", "Noto Sans SC", "PingFang SC", "Microsoft YaHei", "Noto Sans CJK JP", "SimHei")),
    "Hangul": ("한", ("Noto Sans CJK KR", "Noto Sans KR", "Apple SD Gothic Neo", "Malgun Gothic", "Noto Sans CJK JP")),
    "Telugu": ("త", ("Noto Sans Telugu", "Kohinoor Telugu", "Nirmala UI")),
    "Thai": ("ท", ("Noto Sans Thai", "Thonburi", "Leelawadee UI")),
}
GENERAL = "DejaVu Sans"
REMEDY = "apt-get install fonts-noto-core fonts-noto-cjk (Debian, Ubuntu) or install the Noto fonts of your system"


def _has(family: str, character: str) -> bool:
    try:
        path = font_manager.findfont(font_manager.FontProperties(family=family), fallback_to_default=False)
    except ValueError:
        return False
    return ord(character) in font_manager.get_font(path).get_charmap()


def _found() -> dict[str, str | None]:
    return {
        script: next((family for family in families if _has(family, sample)), None)
        for script, (sample, families) in SCRIPTS.items()
    }


@cache
def script_fonts() -> dict[str, str | None]:
    """By script, the first installed font that has it; ``None`` where there is none."""
    found = _found()
    if None in found.values():  # Matplotlib's list may be older than the fonts
        known = {entry.fname for entry in font_manager.fontManager.ttflist}
        for path in set(font_manager.findSystemFonts()) - known:
            with suppress(RuntimeError):  # a font that FreeType cannot read
                font_manager.fontManager.addfont(path)
        found = _found()
    return found


def use_fonts() -> list[str]:
    """Make Matplotlib draw all scripts that the machine has fonts for.

    Returns:
        The scripts without a font; a warning names them and what to install.
    """
    found = script_fonts()
    matplotlib.rcParams["font.family"] = list(dict.fromkeys([GENERAL, *filter(None, found.values())]))
    missing = [script for script, font in found.items() if font is None]
    if missing:
        warnings.warn(f"no font for {', '.join(missing)}: their characters show as boxes; {REMEDY}", stacklevel=2)
    return missing
