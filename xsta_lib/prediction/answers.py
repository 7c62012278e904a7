"""What a reader gives back: an answer with its place, its alternatives, and how a notebook shows it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape

from .predictor import Span

# Letters take the colours of the page, so that light and dark pages both work.
MARKED = "background: rgba(255, 196, 0, .55); border-radius: 3px; padding: 0 2px"
FAINT = "background: rgba(255, 196, 0, .16); border-radius: 3px; padding: 0 2px"
FRAME = "border: 1px solid rgba(128, 128, 128, .4); border-radius: 6px; padding: 8px 12px; max-width: 60em"


class LeftOut(UserWarning):
    """What was cut or not used; ``str`` says it in a line.

    Args:
        found: by what was left out, such as ``"questions are cut after 64 tokens"``, the texts of these questions.
    """

    def __init__(self, found: Mapping[str, Sequence[str]]):
        self.found = found
        super().__init__("; ".join(f"{len(texts)} {what}, first: {texts[0][:60]!r}" for what, texts in found.items()))


@dataclass(frozen=True)
class ReaderAnswer:
    """The answer to one question.

    Attributes:
        text: the answer as it stands in the context; empty where there is none.
        score: ``p_start * p_end``, 0 to 1.
        start, end: the characters of the context as given; both -1 where there is none. ``text`` is
            ``context[start:end]``.
        alternatives: the best spans that do not overlap, best first, each with the four fields above.
        missing: the probability that the context has no answer, 0 to 1, weighed against the best span: above one half
            the answer is empty. ``None`` for a reader that always finds one.
        language: the language it was read as.
        detected: whether that was found out, not given.
        reason: why there is no answer; empty where there is one.
        readings: with a source, the best span of each of ``calibrated`` (the answer), ``target`` and ``teacher``; of
            ``mixture`` (the answer), ``source`` (the source's answer, projected) and ``calibrated`` with ``project``.
        question, context: as given.
        source: both in the reader's source language, where ``translate`` made them.
    """

    text: str
    score: float
    start: int
    end: int
    alternatives: tuple[Span, ...]
    language: str
    missing: float | None = None
    detected: bool = False
    reason: str = ""
    readings: dict[str, Span] = field(default_factory=dict)
    question: str = field(default="", repr=False)
    context: str = field(default="", repr=False)
    source: tuple[str, str] | None = field(default=None, repr=False)

    def to_dict(self) -> dict:
        """The fields as JSON takes them, without the context and without what the answer does not have."""
        found = {"question": self.question, "text": self.text, "score": self.score}
        found |= {"start": self.start, "end": self.end, "language": self.language}
        optional = {
            "detected": self.detected,
            "reason": self.reason,
            "alternatives": [span._asdict() for span in self.alternatives],
            "readings": {name: span._asdict() for name, span in self.readings.items()},
            "source": self.source and {"question": self.source[0], "context": self.source[1]},
        }
        missing = {} if self.missing is None else {"missing": self.missing}
        return found | missing | {name: value for name, value in optional.items() if value}

    def _repr_html_(self) -> str:
        """The context with the answer marked and the alternatives faintly, in the direction of its script."""
        answer = [(self.start, self.end, MARKED, f"{self.score:.2f}")] if self.text else []
        others = [(s.start, s.end, FAINT, f"{s.score:.2f}") for s in self.alternatives if s.start != self.start]
        how = f"{self.language}{', detected' if self.detected else ''}"
        said = f"<b>{escape(self.text)}</b> ({self.score:.2f})" if self.text else f"<i>{escape(self.reason)}</i>"
        if self.missing is not None:
            said += f", no answer: {self.missing:.2f}"
        readings = "".join(
            f'<div dir="auto">{escape(name)}: {escape(span.text)} ({span.score:.2f})</div>'
            for name, span in self.readings.items()
        )
        if self.source:
            beside = (f'<div dir="auto"><small>{escape(text)}</small></div>' for text in self.source)
            said += "".join(beside)
        return (  # JupyterLab sets paragraphs to the left, whatever their script
            f'<div style="{FRAME}"><div dir="auto"><b>{escape(self.question)}</b></div>'
            f'<p dir="auto" lang="{escape(self.language)}" style="white-space: pre-wrap; text-align: start">'
            f"{marked(self.context, answer + others)}</p>"
            f'<div dir="auto">{said}</div>{readings}<small>{escape(how)}</small></div>'
        )


def marked(text: str, spans: Sequence[tuple[int, int, str, str]]) -> str:
    """A text as HTML, everything in it escaped, with some spans marked.

    Args:
        text: any text.
        spans: first and last character (excluded), style and title of each; they do not overlap.
    """
    parts, at = [], 0
    for start, end, style, title in sorted(spans):
        # A mark is no box of its own direction: letters around it stay in order in right-to-left text.
        parts += [escape(text[at:start]), f'<mark style="{style}; color: inherit" title="{escape(title)}">']
        parts += [escape(text[start:end]), "</mark>"]
        at = end
    return "".join([*parts, escape(text[at:])])
