"""Sentences of a text and their places: what is handed to a translation engine, and how its output is joined again."""

import re
import unicodedata
from collections.abc import Callable, Iterator
from contextlib import suppress

import langcodes
from sentencex import get_sentence_boundaries

SOLID = ("zh", "ja", "yue")  # written without a space between sentences
_CLAUSE = re.compile(r"[;:,،؛](?=\s)|[、，；：。！？।]")  # a part ends behind such a mark
_SPACE = re.compile(r"\s+")


def split_sentences(text: str, language: str) -> list[tuple[int, int]]:
    """First and last character (excluded) of each sentence, without the white space around it.

    Args:
        text: any text. What lies between two sentences is white space, so that nothing is lost.
        language: a code such as ``"de"``; where sentencex does not know it, its general rules cut.
    """
    places = []
    plain = _SPACE.sub(lambda match: re.sub(r"[^\n\t ]", " ", match[0]), text)  # sentencex fails on rare white space
    for found in get_sentence_boundaries(_base(language), plain):
        start, end = found["start_index"], found["end_index"]
        sentence = text[start:end]
        if stripped := sentence.strip():
            start += len(sentence) - len(sentence.lstrip())
            places.append((start, start + len(stripped)))
    return places


def glue(language: str, gap: str = " ") -> str:
    """What stands between two sentences of a translation, where ``gap`` stands in the source: line breaks stay."""
    if "\n" in gap:
        return gap
    return "" if _base(language) in SOLID else " "


def _base(language: str) -> str:
    """The code of a language without script and region, of two letters where it has one: ``ja`` for ``jpn``."""
    with suppress(ValueError):
        return langcodes.standardize_tag(language).partition("-")[0]
    return re.split("[-_]", language)[0]


def cut(text: str, fits: Callable[[str], bool]) -> list[str]:
    """A text that is too long for an engine, in parts that fit: none is dropped, and none holds a cut letter.

    It is cut near its middle, behind a clause mark, else at white space, else between two characters.
    """
    text = text.strip()
    if len(text) < 2 or fits(text):
        return [text] if text else []
    at = _middle(text)
    return cut(text[:at], fits) + cut(text[at:], fits)


def _middle(text: str) -> int:
    """Where to cut a text of two characters or more: in its middle half if there is a good place."""
    middle = len(text) // 2

    def near(places: Iterator[int]) -> list[int]:
        return sorted((at for at in places if abs(at - middle) <= len(text) // 4), key=lambda at: abs(at - middle))

    for marks in (_CLAUSE, _SPACE):
        if places := near(match.end() for match in marks.finditer(text)):
            return places[0]
    letters = (at for at in range(1, len(text)) if not unicodedata.category(text[at]).startswith("M"))
    return min(letters, key=lambda at: abs(at - middle), default=middle)
