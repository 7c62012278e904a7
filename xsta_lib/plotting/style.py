"""What all pictures share: fonts for every script of the data sets, colours, markers, axes, saving.

Matplotlib takes a character from the first font of a list that has it. Colours are Okabe and Ito's, told apart by
colour-blind readers; four of Paul Tol's follow, for XQuAD's 11 languages.
"""

import warnings
from collections.abc import Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path

import matplotlib
import pandas as pd
import seaborn
from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.figure import Figure

BLUE, VERMILION, GREEN, ORANGE = "#0072B2", "#D55E00", "#009E73", "#E69F00"
SKY, PINK, YELLOW, GREY = "#56B4E9", "#CC79A7", "#F0E442", "#999999"
PALETTE = (BLUE, VERMILION, GREEN, ORANGE, SKY, PINK, "#000000", YELLOW, GREY, "#882255", "#44AA99", "#332288")
SIX = (GREY, BLUE, ORANGE, PINK, SKY, VERMILION)  # systems that are compared, the plainest grey
MARKERS = "osD^vP*X<>ph"  # one a colour
DPI = 150  # what figures are saved with
BESIDE = {"loc": "center left", "bbox_to_anchor": (1, 0.5)}  # a legend to the right of its axes

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


@cache
def script_fonts() -> dict[str, str | None]:
    """By script, the first installed font that has it; ``None`` where there is none."""
    known = {entry.fname for entry in font_manager.fontManager.ttflist}  # may be older than the fonts
    for path in set(font_manager.findSystemFonts()) - known:
        with suppress(RuntimeError):  # a font that FreeType cannot read
            font_manager.fontManager.addfont(path)
    return {
        script: next((family for family in families if _has(family, sample)), None)
        for script, (sample, families) in SCRIPTS.items()
    }


def use_fonts() -> list[str]:
    """Make Matplotlib draw all scripts that the machine has fonts for.

    Returns those without a font; a warning names them and what to install.
    """
    found = script_fonts()
    matplotlib.rcParams["font.family"] = list(dict.fromkeys([GENERAL, *filter(None, found.values())]))
    missing = [script for script, font in found.items() if font is None]
    if missing:
        warnings.warn(f"no font for {', '.join(missing)}: their characters show as boxes; {REMEDY}", stacklevel=2)
    return missing


def panels(width: float, height: float, columns: int = 1, **options: object) -> tuple[Figure, list[Axes]]:
    """A figure of axes side by side, without top and right lines; sizes in inches, options of ``Figure.subplots``.

    It knows no pyplot state: a thread may draw it, a notebook shows it once.
    """
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = list(figure.subplots(1, columns, squeeze=False, **options)[0])
    for one in axes:
        seaborn.despine(ax=one)
    return figure, axes


def legend(axes: Axes, **options: object) -> None:
    """A small legend without a frame or a title; options of ``Axes.legend``, such as ``**BESIDE``."""
    axes.legend(**{"frameon": False, "fontsize": "small", **options})


def grouped_bars(axes: Axes, frame: pd.DataFrame, x: str, y: str, hue: str, palette: Mapping[str, str]) -> None:
    """Bars of the means of ``y``, a group a value of ``x``, a colour a value of ``hue``, in the palette's order."""
    look = {"palette": palette, "saturation": 1, "errorbar": None, "gap": 0.06, "linewidth": 0}
    seaborn.barplot(frame, x=x, y=y, hue=hue, hue_order=list(palette), ax=axes, **look)
    axes.set(xlabel="")


def save(figure: Figure, path: Path) -> Path:
    """Write a figure as PNG; returns the path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=DPI, metadata={"Software": f"xsta, matplotlib {matplotlib.__version__}"})
    return path
