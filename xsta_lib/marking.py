"""Answers marked in their contexts: as HTML in a notebook, as a picture of a whole case (Figures 6 and 9 to 11)."""

import html
import unicodedata
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from .cases import Case
from .corpus import Question
from .fonts import use_fonts

RIGHT_TO_LEFT = ("ar",)
DPI = 150  # what figures are saved with; text is measured in these pixels
GOLD, PREDICTED, ALONE, TEACHER = "#009E73", "#F0E442", "#555555", "#0072B2"
TITLES = {"target": "target's own", "teacher": "attentive teacher", "calibrated": "calibrated (X-STA)"}
CLOSING = "。，、；：？！）」』》】”’"  # may hang over the end of a line, never begin one
JOINED = ("ARABIC", "DEVANAGARI", "BENGALI", "TELUGU")  # scripts whose letters change with their neighbours


def locate(context: str, text: str, near: int) -> tuple[int, int] | None:
    """Start and end of the occurrence of ``text`` that is nearest to an offset; ``None`` where there is none."""
    places = [i for i in range(len(context)) if text and context.startswith(text, i)]
    if not places:
        return None
    start = min(places, key=lambda place: abs(place - near))
    return start, start + len(text)


def highlight(question: Question, predicted: str, language: str, score: float | None = None) -> str:
    """HTML of a question and its context: gold answer underlined in green, prediction on yellow.

    Args:
        question: with its gold answer.
        predicted: the predicted text; its occurrence nearest to the gold answer is marked.
        language: sets the writing direction.
        score: the prediction's probability, 0 to 1.
    """
    gold = question.answers[0]
    marks = np.zeros(len(question.context), dtype=int)
    marks[gold.start : gold.end] |= 1
    if span := locate(question.context, predicted, gold.start):
        marks[slice(*span)] |= 2
    gold_style, predicted_style = f"border-bottom:3px solid {GOLD}", f"background:{PREDICTED}"
    styles = {1: gold_style, 2: predicted_style, 3: f"{gold_style};{predicted_style}"}
    edges = [0, *(np.flatnonzero(np.diff(marks)) + 1).tolist(), len(marks)]
    pieces = []
    for low, high in zip(edges, edges[1:], strict=False):
        text = html.escape(question.context[low:high])
        pieces.append(f'<span style="{styles[marks[low]]};color:black">{text}</span>' if marks[low] else text)
    direction = "rtl" if language in RIGHT_TO_LEFT else "ltr"
    shown = "" if score is None else f" <small>(p = {score:.2g})</small>"
    asked = f"<b>{html.escape(question.question)}</b>{shown}<br>"
    return f'<div dir="{direction}" lang="{language}" style="margin:0.6em 0">{asked}{"".join(pieces)}</div>'


def _breaks(text: str, at: int) -> bool:
    """Whether a line may break, or a mark may begin, in front of character ``at`` without tearing letters apart."""
    before, after = text[at - 1], text[at]
    if unicodedata.category(after)[0] == "M" or after in "\u0e33\u200c\u200d":
        return False
    names = [unicodedata.name(character, "").split(" ")[0] for character in (before, after)]
    return not (before.isalpha() and after.isalpha() and names[0] == names[1] and names[0] in JOINED)


def units(text: str, edges: Sequence[int]) -> Iterator[tuple[int, int, bool]]:
    """Cut a text into pieces that can be drawn one by one: ``(start, end, a space follows)``.

    Pieces are words, cut further where a mark begins or ends, and single characters where a script has no spaces.
    """
    start = 0
    for at in range(1, len(text) + 1):
        end = at == len(text)
        wide = not end and any(
            unicodedata.east_asian_width(c) == "W" or "\u0e00" < c < "\u0e80" for c in text[at - 1 : at + 1]
        )
        if end or text[at].isspace() or text[at - 1].isspace() or ((at in edges or wide) and _breaks(text, at)):
            if not text[start:at].isspace():
                yield start, at, not end and text[at].isspace()
            start = at


class _Column:
    """Draws lines of text into a column of an axes whose units are pixels, top down."""

    def __init__(self, axes: Axes, left: float, width: float, top: float, size: float):
        self.axes, self.left, self.width, self.y, self.size = axes, left, width, top, size
        self.renderer = axes.figure.canvas.get_renderer()
        self.em = size * axes.figure.dpi / 72
        self.line = 1.65 * self.em
        self.space = self._measure("a a") - self._measure("aa")

    def _measure(self, text: str, weight: str = "normal") -> float:
        drawn = self.axes.text(0, 0, text, fontsize=self.size, fontweight=weight)
        width = drawn.get_window_extent(self.renderer).width
        drawn.remove()
        return width

    def text(
        self,
        text: str,
        language: str,
        marks: Sequence[tuple[str, tuple[int, int] | None]] = (),
        weight: str = "normal",
    ) -> None:
        """One paragraph with marked spans; right to left where the language is written so."""
        rtl = language in RIGHT_TO_LEFT
        spans = [(style, span) for style, span in marks if span]
        x, marked = 0.0, {}
        for start, end, space in units(text, [edge for _, span in spans for edge in span]):
            width = self._measure(text[start:end], weight)
            if x + width > self.width and text[start:end] not in CLOSING:
                self._mark(marked)
                x, marked, self.y = 0.0, {}, self.y + self.line
            at = self.left + (self.width - x - width if rtl else x)
            after = width + (self.space if space else 0)
            for style, (low, high) in spans:
                if low < end and start < high:
                    before = marked.get(style, (at, at + width))
                    marked[style] = min(before[0], at), max(before[1], at + width)
            options = {"fontsize": self.size, "fontweight": weight, "va": "baseline", "zorder": 3}
            self.axes.text(at, self.y, text[start:end], **options)
            x += after
        self._mark(marked)
        self.y += self.line

    def _mark(self, marked: Mapping[str, tuple[float, float]]) -> None:
        """Draw the marks of a finished line, from left to right in pixels by style."""
        for style, (left, right) in marked.items():
            top, high, colour, order = {
                "gold": (0.32, 0.14, GOLD, 2),
                "teacher": (-1.08, 0.12, TEACHER, 2),
                "calibrated": (-0.95, 1.25, PREDICTED, 1),
                "target": (-0.95, 1.25, ALONE, 2),
            }[style]
            place = left, self.y + top * self.em
            look = {"fill": False, "edgecolor": colour} if style == "target" else {"color": colour, "linewidth": 0}
            self.axes.add_patch(Rectangle(place, right - left, high * self.em, zorder=order, **look))


def _draw_case(axes: Axes, case: Case, width: float, top: float) -> float:
    """Draw both sides of a case; returns where it ends."""
    half = 0.47 * width
    left, right = (_Column(axes, x, half, top, 9) for x in (0.02 * width, 0.51 * width))
    source, target = case.source, case.target
    left.text(source.question, "en", weight="bold")
    spans = []
    if source.answers:  # translated English has none
        gold = source.answers[0]
        given = locate(source.context, case.source_answer, gold.start)
        spans = [("gold", (gold.start, gold.end)), ("calibrated", given)]
    left.text(source.context, "en", spans)
    right.text(target.question, case.language, weight="bold")
    gold = target.answers[0]
    spans = [(name, locate(target.context, text, gold.start)) for name, text in case.answers.items()]
    right.text(target.context, case.language, [("gold", (gold.start, gold.end)), *spans])
    low = max(left.y, right.y) + right.em
    for name, title in TITLES.items():
        label = _Column(axes, right.left, half, low, 9)
        label.text(f"{title} (F1 {case.f1[name]:.0f})", "en")
        answer = _Column(axes, right.left + 0.4 * half, 0.6 * half, low, 9)
        answer.text(case.answers[name] or "(none)", case.language)
        low = answer.y
    if source.answers:
        answer = _Column(axes, left.left, half, max(left.y, right.y) + left.em, 9)
        answer.text(f"answer to the source: {case.source_answer or '(none)'}", "en")
    return low


def case_picture(cases: Sequence[Case], note: str = "") -> Figure:
    """Cases below each other: source and target passage side by side, answers marked, the three answers written out.

    Green underline: gold. Yellow: the calibrated answer. Grey box: the target's own. Blue overline: the teacher's.

    Args:
        cases: at least one.
        note: stands at the bottom, such as where the texts come from.
    """
    use_fonts()
    figure = Figure(figsize=(11, 20), dpi=DPI)
    FigureCanvasAgg(figure)
    axes = figure.add_axes((0, 0, 1, 1))
    width, low = 11 * DPI, 0.0
    axes.set(xlim=(0, width), ylim=(20 * DPI, 0))
    for case in cases:
        verb = {"success": "mends", "failure": "spoils"}[case.kind]
        text = f"en, {case.language}: calibration {verb} the answer (such questions in {case.language}: {case.found})"
        axes.text(0.02 * width, low + 0.2 * DPI, text, fontsize=9, color="0.4", va="center")
        low = _draw_case(axes, case, width, low + 0.55 * DPI) + 0.1 * DPI
    bottom = low + 0.3 * DPI
    axes.text(0.98 * width, bottom - 0.14 * DPI, note, fontsize=8, color="0.4", ha="right", va="center")
    key = {"gold": GOLD, "calibrated": PREDICTED, "teacher": TEACHER}
    handles = [Rectangle((0, 0), 1, 1, color=colour, label=name) for name, colour in key.items()]
    handles.append(Rectangle((0, 0), 1, 1, fill=False, edgecolor=ALONE, label="target's own"))
    figure.set_size_inches(11, bottom / DPI)
    axes.set(ylim=(bottom, 0))
    axes.axis("off")
    axes.legend(handles=handles, ncols=4, frameon=False, fontsize=8, loc="lower left", bbox_to_anchor=(0.012, 0))
    return figure
