"""Where an answer stands in its context: texts compared as a reader sees them, offsets checked and mended.

Offsets count Unicode code points. Files that count something else are recognised by their wrong offsets.
"""

import re
import unicodedata
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Sequence
from functools import lru_cache
from itertools import accumulate
from typing import NamedTuple

FITS = 0.9  # share of a file's wrong offsets that a way to count must explain
AGREEING = 2  # wrong offsets, at least, that must agree on another beginning
SAMPLE = 200  # answers that a way is tried on; their contexts stay in the caches
_INVISIBLE = re.compile("[\u00ad\u061c\u180e\u200b-\u200f\u202a-\u202e\u2060-\u206f\ufeff]")  # hyphens, marks, joiners
_UNSPACED = re.compile("[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uac00-\ud7a3\uf900-\ufaff]")


class Wrong(NamedTuple):
    """An answer that is not at its offset."""

    context: str
    title: str
    text: str
    start: int


class Place(NamedTuple):
    """An answer's place in its context, and how many the choice was between: 0 where it stands at its offset."""

    start: int
    end: int
    choices: int = 0


def _plain(text: str) -> str:
    """The text with white space as single spaces, letters decomposed and invisible marks gone."""
    return " ".join(unicodedata.normalize("NFD", _INVISIBLE.sub("", text)).split())


def _folded(text: str) -> tuple[str, list[tuple[int, int]]]:
    """:func:`_plain` but for spaces at the ends, and what each of its characters stands for in ``text``: start, end."""
    kept = [at for at, character in enumerate(text) if not _INVISIBLE.match(character)]
    pieces, places, first = [], [], 0
    while first < len(kept):
        last = first + 1
        if text[kept[first]].isspace():
            piece = " "
            while last < len(kept) and text[kept[last]].isspace():
                last += 1
        else:
            while last < len(kept) and unicodedata.combining(text[kept[last]]):
                last += 1
            piece = unicodedata.normalize("NFD", "".join(text[at] for at in kept[first:last]))
        pieces.append(piece)
        places += [(kept[first], kept[last - 1] + 1)] * len(piece)
        first = last
    return "".join(pieces), places


def _equivalents(context: str, text: str) -> list[tuple[int, int]]:
    """Spans of the context, as (start, end), that equal the text up to white space and canonical equivalence."""
    needle, found = _plain(text), []
    if not needle or needle not in _plain(context):  # much faster than to keep account of places
        return found
    folded, places = _folded(context)
    for match in re.finditer(f"(?={re.escape(needle)})", folded):
        first, last = match.start(), match.start() + len(needle) - 1
        cut = (first and places[first - 1] == places[first]) or places[last : last + 1] == places[last + 1 : last + 2]
        if not cut:  # a letter without its accent is another letter
            found.append((places[first][0], places[last][1]))
    return found


def span_at(context: str, text: str, start: int) -> tuple[int, int] | None:
    """The span (start, end) at an offset if the text stands there, up to white space and canonical equivalence."""
    if start < 0:
        return None
    if context.startswith(text, start):
        return start, start + len(text)
    lead = len(text) - len(text.lstrip())
    near = context[start : start + 4 * len(text) + 16]  # decomposed letters and white space may take more room
    if not _plain(near).startswith(_plain(text)):
        return None
    found = (span for span in _equivalents(near, text) if span[0] in (0, lead))
    return next(((start + first, start + last) for first, last in found), None)


def _inside_word(context: str, start: int, end: int) -> bool:
    """Whether a span begins or ends within a word or number; scripts that write no spaces do not tell."""

    def joined(at: int) -> bool:
        pair = context[at - 1 : at + 1]
        words = all(character.isalnum() or unicodedata.category(character)[0] == "M" for character in pair)
        number = any(re.fullmatch(r"\d[.,]\d", context[at - before : at - before + 3]) for before in (1, 2))
        return number or (words and not _UNSPACED.search(pair))

    return any(joined(at) for at in (start, end) if 0 < at < len(context))


def locate(context: str, text: str, start: int) -> Place | None:
    """The place of an answer: at its offset if it stands there, else its occurrence nearest to it.

    Occurrences as whole words come before those inside a word, the very text before an equivalent one. ``None`` where
    there is none.
    """
    if span := span_at(context, text, start):
        return Place(*span)
    exact = [match.start() for match in re.finditer(f"(?={re.escape(text)})", context)]  # they may overlap
    spans = [(at, at + len(text)) for at in exact]
    whole = [span for span in spans if not _inside_word(context, *span)]
    if not whole:
        more = _plain(context).count(_plain(text)) > context.count(text)
        equal = _equivalents(context, text) if more else []
        whole = [span for span in equal if not _inside_word(context, *span)] or spans or equal
    best = min(whole, key=lambda span: abs(span[0] - start), default=None)
    return Place(*best, len(whole)) if best else None


# -- other ways to count -----------------------------------------------------------------------------------------------


def _utf8(context: str) -> list[int]:
    return [len(character.encode()) for character in context]


def _utf16(context: str) -> list[int]:
    return [1 + (character > "\uffff") for character in context]


def _one_a_line_end(context: str) -> list[int]:
    return [0 if context[at : at + 2] == "\r\n" else 1 for at in range(len(context))]


def _two_a_line_end(context: str) -> list[int]:
    return [2 if character == "\n" and context[at - 1 : at] != "\r" else 1 for at, character in enumerate(context)]


def _stripped(context: str) -> list[int]:
    lead = len(context) - len(context.lstrip())
    return [0] * lead + [1] * (len(context) - lead)


def _single_spaces(context: str) -> list[int]:
    after = " " + context  # white space at the beginning does not count either
    return [int(not (left.isspace() and right.isspace())) for left, right in zip(after, context, strict=False)]


def _composed(context: str) -> list[int]:
    return [int(not unicodedata.combining(character)) for character in context]


def _decomposed(context: str) -> list[int]:
    return [len(unicodedata.normalize("NFD", character)) for character in context]


# What a file may count instead of code points: how much each character of the context counts.
WAYS: dict[str, Callable[[str], list[int]]] = {
    "UTF-8 bytes": _utf8,
    "UTF-16 units": _utf16,
    "each line end as one character": _one_a_line_end,
    "each line end as two characters": _two_a_line_end,
    "from the first character that is no white space": _stripped,
    "runs of white space as one": _single_spaces,
    "composed letters": _composed,
    "decomposed letters": _decomposed,
}


@lru_cache(maxsize=256)
def _sums(way: str, context: str) -> list[int]:
    return [0, *accumulate(WAYS[way](context))]


class Counting(NamedTuple):
    """A way in which a file counts: its name, and the offset in code points (or -1) that it gives an answer."""

    name: str
    convert: Callable[[Wrong], int]


def _weighted(way: str) -> Counting:
    """A way of ``WAYS``."""

    def convert(wrong: Wrong) -> int:
        sums = _sums(way, wrong.context)
        at = bisect_right(sums, wrong.start) - 1
        return at if 0 <= at < len(wrong.context) and sums[at] == wrong.start else -1

    return Counting(f"they count {way}", convert)


def _shifted(
    wrongs: Sequence[Wrong], name: str, group: Callable[[Wrong], str], lead: Callable[[Wrong], int]
) -> Counting:
    """Code points from another beginning: the distance on which most wrong offsets of a group agree."""
    distances: dict[str, Counter] = {}
    for wrong in wrongs:
        places = (match.start() for match in re.finditer(re.escape(wrong.text), wrong.context))
        found = {wrong.start - lead(wrong) - at for at in places}
        distances.setdefault(group(wrong), Counter()).update(found)
    best = {key: counter.most_common(1)[0] for key, counter in distances.items() if counter}
    shifts = {key: shift for key, (shift, agreeing) in best.items() if agreeing >= AGREEING}

    def convert(wrong: Wrong) -> int:
        key = group(wrong)
        return wrong.start - lead(wrong) - shifts[key] if key in shifts else -1

    return Counting(name.format(next(iter(shifts.values()), 0)), convert)


def recognise(wrongs: Sequence[Wrong], right: Sequence[Wrong]) -> Counting | None:
    """The way of counting that explains a file's wrong offsets; ``None`` if none does.

    Args:
        wrongs: answers that are not at their offsets but occur in their contexts.
        right: those that are; unless most are wrong, the way must explain them too.
    """

    def explained(answers: Sequence[Wrong], way: Counting) -> float:
        sample = answers[:: 1 + len(answers) // SAMPLE]
        hits = sum(span_at(one.context, one.text, way.convert(one)) is not None for one in sample)
        return hits / len(sample) if sample else 0.0

    ways = [
        *map(_weighted, WAYS),
        _shifted(wrongs, "all are {:+d} characters off", lambda _: "", lambda _: 0),
        _shifted(wrongs, "they count from the title, with {} characters between", lambda _: "", lambda w: len(w.title)),
        _shifted(wrongs, "each context begins elsewhere", lambda w: w.context, lambda _: 0),
    ]
    shares = [explained(wrongs, way) for way in ways]
    best = max(range(len(ways)), key=shares.__getitem__)
    if shares[best] < FITS or (len(wrongs) <= len(right) and explained(right, ways[best]) < FITS):
        return None
    return ways[best]
