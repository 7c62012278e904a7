"""Phrases mined without labels from a language's questions and passages, as LAKM does (Yuan et al., 2020).

There they are n-grams of search queries that most of the best documents' titles hold. Here questions stand in for the
queries and the most similar passages for the titles, those of training alone. A phrase's units are words; in scripts
that put no spaces between words (Han, kana, Thai, Lao, Khmer, Burmese) they are characters with their marks.
"""

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from tokenizers import Regex
from tokenizers.pre_tokenizers import Split
from transformers import PreTrainedTokenizerBase

from ..data.batches import Part
from ..data.protocols import ProtocolData
from ..data.squad import Question
from ..data.windows import WindowSpec, build_windows, window_cache

SHORTEST, LONGEST = 2, 4  # units of a phrase
TITLES, SHARE = 10, 0.7  # so many of the most similar passages are asked, and this share of them must hold a phrase
SMALL = 10_000  # passages; of fewer than these, two that hold it are enough
STOP_SHARE = 0.2  # a unit that more of the passages hold is a stop word

_UNSPACED = r"\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}"
_UNITS = Split(Regex(rf"[{_UNSPACED}]\p{{M}}*|(?:(?![{_UNSPACED}])[\p{{L}}\p{{M}}\p{{N}}])+"), "removed", invert=True)

Phrase = tuple[str, ...]


def units_of(text: str) -> tuple[list[str], np.ndarray]:
    """A text's units in lower case, and the characters (units, 2) that each begins at and ends before."""
    found = _UNITS.pre_tokenize_str(text)
    return [unit.lower() for unit, _ in found], np.array([place for _, place in found], dtype=int).reshape(-1, 2)


def ngrams(units: Sequence[str]) -> set[Phrase]:
    """All runs of ``SHORTEST`` to ``LONGEST`` units."""
    sizes = range(SHORTEST, LONGEST + 1)
    return {tuple(units[i : i + size]) for size in sizes for i in range(len(units) - size + 1)}


def stop_words(passages: Sequence[Sequence[str]]) -> set[str]:
    """The units that more than ``STOP_SHARE`` of the passages hold: a list for every language, made of its own text."""
    counts = Counter(unit for units in passages for unit in set(units))
    return {unit for unit, count in counts.items() if count > STOP_SHARE * len(passages)}


def frequent_phrases(
    query: Sequence[str], titles: Sequence[Collection[Phrase]], stop: Collection[str], share: float = SHARE
) -> set[Phrase]:
    """The n-grams of a query that at least ``share`` of the titles hold, those with a stop word at an edge left out.

    Args:
        query: its units.
        titles: the :func:`ngrams` of each.
        stop: the stop words.
    """
    grams = {gram for gram in ngrams(query) if gram[0] not in stop and gram[-1] not in stop}
    return {gram for gram in grams if sum(gram in title for title in titles) / len(titles) >= share}


def mine(questions: Iterable[str], passages: Sequence[str]) -> set[Phrase]:
    """The phrases of one language: those of each question that enough of its ``TITLES`` nearest passages hold.

    Near is by the cosine of TF-IDF vectors. ``passages`` are different texts.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer  # a second, which other methods save
    from sklearn.neighbors import NearestNeighbors

    texts = [units_of(passage)[0] for passage in passages]
    asked = [units for units in (units_of(question)[0] for question in questions) if len(units) >= SHORTEST]
    if not asked or not any(texts):
        return set()
    vectorizer = TfidfVectorizer(analyzer=list)
    nearest = NearestNeighbors(n_neighbors=min(TITLES, len(texts)), metric="cosine", algorithm="brute")
    nearest.fit(vectorizer.fit_transform(texts))
    places = nearest.kneighbors(vectorizer.transform(asked), return_distance=False)
    share = SHARE if len(texts) >= SMALL else 2 / nearest.n_neighbors
    grams, stop, found = [ngrams(units) for units in texts], stop_words(texts), set()
    for units, near in zip(asked, places, strict=True):
        found |= frequent_phrases(units, [grams[place] for place in near], stop, share)
    return found


def occurrences(units: Sequence[str], phrases: Collection[Phrase]) -> list[tuple[int, int]]:
    """Where phrases stand in a text, as its first and last unit: from left to right, the longest first, none twice."""
    found, place = [], 0
    while place < len(units):
        sizes = range(min(LONGEST, len(units) - place), SHORTEST - 1, -1)
        size = next((size for size in sizes if tuple(units[place : place + size]) in phrases), 0)
        if size:
            found.append((place, place + size - 1))
        place += size or 1
    return found


@dataclass(frozen=True)
class Passages:
    """A language's training passages as rows without a question, and the phrases in them.

    Attributes:
        part: the rows; their windows keep the texts.
        phrases: by passage, the characters (occurrences, 2) of each phrase.
    """

    part: Part
    phrases: Sequence[np.ndarray]

    def tokens(self, index: int) -> np.ndarray:
        """Token positions (occurrences, 2), first and last, of the phrases that lie whole in a window."""
        windows = self.part.target
        starts, ends = windows.char_starts[index], windows.char_ends[index]
        chars = self.phrases[windows.row[index]]
        if not len(starts) or not len(chars):
            return np.empty((0, 2), int)
        chars = chars[(chars[:, 0] >= starts[0]) & (chars[:, 1] <= ends[-1])]
        first = np.searchsorted(ends, chars[:, 0], side="right")
        last = np.searchsorted(starts, chars[:, 1], side="left") - 1
        return np.stack([first, last], 1)[first <= last] + windows.context_start[index]


def training_passages(data: ProtocolData, tokenizer: PreTrainedTokenizerBase, spec: WindowSpec) -> list[Passages]:
    """The passages of every training language with the phrases mined in it; test and validation texts are not read.

    Args:
        spec: the windows' lengths.
    """
    found = []
    training: Mapping[str, Sequence[Question]] = data.parallel
    own = data.source_language
    for language in (own, *training):
        questions = data.train if language == own else training[language]
        texts = list(dict.fromkeys(question.context for question in questions))
        if not texts:
            continue
        phrases, places = mine((question.question for question in questions), texts), []
        for text in texts:
            units, chars = units_of(text)
            runs = occurrences(units, phrases)
            places.append(np.array([(chars[i, 0], chars[j, 1]) for i, j in runs], dtype=int).reshape(-1, 2))
        asked = [Question(f"{language}-{number}", "", text, ()) for number, text in enumerate(texts)]
        windows = build_windows(asked, tokenizer, spec, window_cache())
        found.append(Passages(Part(language, windows), places))
    return found
