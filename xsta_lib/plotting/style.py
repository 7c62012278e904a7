"""What all pictures share: fonts for every script of the data sets, colours, markers, axes, saving.

Colours are Okabe and Ito's, told apart by colour-blind readers; four of Paul Tol's follow, for XQuAD's 11 languages.
"""

from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path

import fontpkg
import matplotlib
import noto_cjk_sans_jp_regular
import pandas as pd
import seaborn
from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.figure import Figure

BLUE, VERMILION, GREEN, ORANGE = "#0072B2", "#D55E00", "#009E73", "#E69F00"
SKY, PINK, YELLOW, GREY = "#56B4E9", "#CC79A7", "#F0E442", "#999999"
PALETTE = (BLUE, VERMILION, GREEN, ORANGE, SKY, PINK, "#000000", YELLOW, GREY, "#882255", "#44AA99", "#332288")
MARKERS = "osD^vP*X<>ph"  # one a colour
DPI = 150  # what figures are saved with
BESIDE = {"loc": "center left", "bbox_to_anchor": (1, 0.5)}  # a legend to the right of its axes

# Matplotlib takes a character from the first font of the list that has it. Its own (Latin, Greek, Cyrillic, Arabic) is
# first, then those that are installed beside the library, all under the SIL Open Font License: pictures look alike on
# every machine. Hind Siliguri is for Bengali; Noto Sans CJK JP has Hangul and all Han characters, Chinese forms too.
GENERAL = "DejaVu Sans"
PACKAGED = ("Noto Sans Devanagari", "Noto Sans Telugu", "Noto Sans Thai", "Hind Siliguri")
WIDE = "Noto Sans CJK JP"


@cache
def _add_fonts() -> None:
    """Make the packaged fonts known to Matplotlib, before the system's of the same name, once a process.

    Bold text takes the same letters: one file a script is enough, and Matplotlib would log a warning for each word.
    """
    manager = font_manager.fontManager
    for path in (*map(fontpkg.path, PACKAGED), noto_cjk_sans_jp_regular.FONT_PATH):
        manager.addfont(str(path))
        entry = manager.ttflist.pop()
        manager.ttflist[:0] = [replace(entry, weight=weight) for weight in (400, 700)]


def use_fonts() -> None:
    """Let Matplotlib draw every script of XQuAD, MLQA and TyDiQA with the fonts that come with the library."""
    _add_fonts()
    matplotlib.rcParams["font.family"] = [GENERAL, *PACKAGED, WIDE]
    matplotlib.rcParams["text.language"] = "zh-Hans"  # the forms of Han characters; no other script has any


def panels(width: float, height: float, columns: int = 1, **options: object) -> tuple[Figure, list[Axes]]:
    """A figure of axes side by side, without top and right lines; sizes in inches, options of ``Figure.subplots``.

    It knows no pyplot state: a thread may draw it, a notebook shows it once.
    """
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = list(figure.subplots(1, columns, squeeze=False, **options)[0])
    for one in axes:
        seaborn.despine(ax=one)
        one.title.set_wrap(True)  # a long protocol's name goes on in a second line
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
