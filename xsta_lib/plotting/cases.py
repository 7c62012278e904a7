"""Answers marked in their contexts: as HTML in a notebook, as a picture of a whole case (Figures 6 and 9 to 11)."""

import html
import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from types import MappingProxyType

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from ..data.squad import Question
from ..experiments.inspection import Case
from .style import BLUE, DPI, GREEN, YELLOW, legend, use_fonts

SIZE = 9  # of the letters, in points
EM = SIZE * DPI / 72  # in pixels, as all below
LINE, SPACE = 1.65 * EM, 0.318 * EM  # DejaVu Sans's space
# How an answer is marked: top and height in em from the baseline downwards, colour, order of drawing, name in the key.
MARKS = {
    "gold": (0.32, 0.14, GREEN, 2, "gold (line below)"),
    "calibrated": (-0.95, 1.25, YELLOW, 1, "calibrated (yellow)"),
    "teacher": (-1.08, 0.12, BLUE, 2, "teacher (line above)"),
    "target": (-0.95, 1.25, "#555555", 2, "target's own (box)"),
}
TITLES = {"target": "target's own", "teacher": "attentive teacher", "calibrated": "calibrated (X-STA)"}
CLOSING = "。，、；：？！）」』》】”’"  # may hang over the end of a line, never begin one
Spans = Mapping[str, tuple[int, int]]  # by style
JOINED = ("ARABIC", "DEVANAGARI", "BENGALI", "TELUGU")  # scripts whose letters change with their neighbours


def locate(context: str, text: str, near: int) -> tuple[int, int] | None:
    """Start and end of the occurrence of ``text`` that is nearest to an offset; ``None`` where there is none."""
    places = [i for i in range(len(context)) if text and context.startswith(text, i)]
    start = min(places, key=lambda place: abs(place - near), default=None)
    return None if start is None else (start, start + len(text))


def from_right(text: str) -> bool:
    """Whether a text runs from right to left: most of its letters do, for a passage may begin with a foreign name."""
    kinds = Counter(map(unicodedata.bidirectional, text))
    return kinds["R"] + kinds["AL"] > kinds["L"]


def highlight(question: Question, language: str) -> str:
    """HTML of a question and its context, the gold answer underlined in green.

    ``language`` is for the browser's choice of letters; the text itself says its direction.
    """
    context = question.context
    text, direction = html.escape(context), "rtl" if from_right(context) else "ltr"
    for gold in question.answers[:1]:  # not every gold text is a span
        parts = context[: gold.start], context[gold.start : gold.end], context[gold.end :]
        before, marked, after = map(html.escape, parts)
        text = f'{before}<span style="border-bottom:3px solid {GREEN};">{marked}</span>{after}'
    asked = f"<b>{html.escape(question.question)}</b><br>"
    return f'<div dir="{direction}" lang="{language}" style="margin:0.6em 0">{asked}{text}</div>'


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


class Column:
    """Draws lines of text into a column of an axes whose units are pixels, top down; ``y`` is where the next goes."""

    def __init__(self, axes: Axes, left: float, width: float, top: float):
        self.axes, self.left, self.width, self.y = axes, left, width, top

    def text(self, text: str, spans: Spans = MappingProxyType({}), weight: str = "normal") -> None:
        """One paragraph with spans marked by style, from the right where most of it is written so."""
        renderer, x, marked = self.axes.figure.canvas.get_renderer(), 0.0, {}
        mirrored = from_right(text)
        for start, end, space in units(text, list(chain(*spans.values()))):
            drawn = self.axes.text(0, 0, text[start:end], fontsize=SIZE, fontweight=weight, va="baseline", zorder=3)
            width = drawn.get_window_extent(renderer).width
            if x + width > self.width and text[start:end] not in CLOSING:
                self._end_line(marked)
                x, marked = 0.0, {}
            at = self.left + (self.width - x - width if mirrored else x)
            drawn.set_position((at, self.y))
            for style, (low, high) in spans.items():
                if low < end and start < high:
                    before = marked.get(style, (at, at + width))
                    marked[style] = min(before[0], at), max(before[1], at + width)
            x += width + (SPACE if space else 0)
        self._end_line(marked)

    def _end_line(self, marked: Mapping[str, tuple[float, float]]) -> None:
        """Draw the marks of a finished line, from left to right in pixels by style, and go to the next."""
        for style, (left, right) in marked.items():
            top, high, _, order, _ = MARKS[style]
            place = left, self.y + top * EM
            self.axes.add_patch(Rectangle(place, right - left, high * EM, zorder=order, **mark_look(style)))
        self.y += LINE

    def passage(self, question: Question, answers: Mapping[str, str]) -> None:
        """A question and its context with the gold answer and answers by style marked."""
        self.text(question.question, weight="bold")
        spans = {}
        for gold in question.answers[:1]:  # a translated source has none
            drawn = {style: text for style, text in answers.items() if style in MARKS}
            places = {style: locate(question.context, text, gold.start) for style, text in drawn.items()}
            spans = {"gold": (gold.start, gold.end)} | {style: span for style, span in places.items() if span}
        self.text(question.context, spans)


def mark_look(style: str) -> dict:
    """How Matplotlib draws a style of ``MARKS``."""
    colour = MARKS[style][2]
    return {"fill": False, "edgecolor": colour} if style == "target" else {"color": colour, "linewidth": 0}


def page(width: float) -> Axes:
    """The axes of a page so many inches wide whose units are pixels, top down, and end where :func:`cut_page` says."""
    use_fonts()
    figure = Figure(figsize=(width, 20), dpi=DPI)
    FigureCanvasAgg(figure)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, width * DPI), ylim=(20 * DPI, 0))
    return axes


def cut_page(axes: Axes, bottom: float, names: Mapping[str, str]) -> Figure:
    """The figure of a :func:`page`, cut at ``bottom`` (pixels), with a key that names marks by style there."""
    figure = axes.figure
    handles = [Rectangle((0, 0), 1, 1, label=name, **mark_look(style)) for style, name in names.items()]
    figure.set_size_inches(figure.get_figwidth(), bottom / DPI)
    axes.set(ylim=(bottom, 0))
    axes.axis("off")
    legend(axes, handles=handles, ncols=len(names), fontsize=8, loc="lower left", bbox_to_anchor=(0.012, 0))
    return figure


def _draw_case(axes: Axes, case: Case, width: float, top: float) -> float:
    """Draw both sides of a case; returns where it ends."""
    half = 0.47 * width
    left, right = (Column(axes, x, half, top) for x in (0.02 * width, 0.51 * width))
    left.passage(case.source, {"calibrated": case.source_answer})
    right.passage(case.target, case.answers)
    left.y = low = max(left.y, right.y) + EM
    for name, title in {**TITLES, **{name: name for name in case.answers if name not in TITLES}}.items():
        Column(axes, right.left, half, low).text(f"{title} (F1 {case.f1[name]:.0f})")
        answer = Column(axes, right.left + 0.4 * half, 0.6 * half, low)
        answer.text(case.answers[name] or "(none)")
        low = answer.y
    if case.source.answers:
        shown = "" if case.source_f1 is None else f" (F1 {case.source_f1:.0f})"
        left.text(f"answer to the source{shown}: {case.source_answer or '(none)'}")
    return low


def case_picture(cases: Sequence[Case], note: str = "") -> Figure:
    """Cases below each other: source and target passage side by side, answers marked, and all answers written out.

    ``MARKS`` says what is marked how. A case's answers are texts without a place: of several occurrences the one
    nearest to the gold answer is marked, which may not be the one that the model chose. ``note`` stands at the
    bottom, such as where the texts come from.
    """
    axes, width, low = page(11), 11 * DPI, 0.0
    for case in cases:
        verb = {"success": "mends", "failure": "spoils"}[case.kind]
        pair, count = f"{case.source_language}, {case.language}", f"such questions in {case.language}: {case.found}"
        text = f"{pair}: calibration {verb} the answer ({count})"
        axes.text(0.02 * width, low + 0.2 * DPI, text, fontsize=9, color="0.4", va="center")
        low = _draw_case(axes, case, width, low + 0.55 * DPI) + 0.1 * DPI
    axes.text(0.98 * width, low + 0.12 * DPI, note, fontsize=8, color="0.4", ha="right", va="center")
    return cut_page(axes, low + 0.5 * DPI, {style: mark[-1] for style, mark in MARKS.items()})
