"""Exact match and F1 as SQuAD v1.1 (Rajpurkar et al., 2016) and MLQA (Lewis et al., 2020) define them.

XQuAD and TyDiQA-GoldP are scored with SQuAD's rule in every language, MLQA with its own, which knows the language of
the context. Scores are 0 to 1 for one question and percentages in aggregates.
"""

import json
import re
import string
import unicodedata
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from ..data.files import check_text, once, read_json, write_text_atomically
from ..data.protocols import RULES
from ..data.squad import Report, name_first

# MLQA's articles; in Arabic the article is written onto its word, and every alef+lam goes, even inside a word.
_ARTICLES = {
    "en": r"\b(a|an|the)\b",
    "es": r"\b(un|una|unos|unas|el|la|los|las)\b",
    "de": r"\b(ein|eine|einen|einem|eines|einer|der|die|das|den|dem|des)\b",
    "vi": r"\b(của|là|cái|chiếc|những)\b",
    "ar": "ال",
    "hi": None,
    "zh": None,
}
_HAN = re.compile(r"([\u4e00-\u9fa5])")


class Score(NamedTuple):
    """Exact match and F1 of one prediction, each 0 to 1."""

    em: float
    f1: float


@lru_cache(maxsize=8192)
def _is_punctuation(character: str) -> bool:
    return character in string.punctuation or unicodedata.category(character).startswith("P")


def _tokens_squad(text: str) -> list[str]:
    text = "".join(character for character in text.lower() if character not in string.punctuation)
    return re.sub(r"\b(a|an|the)\b", " ", text).split()


def _tokens_mlqa(text: str, language: str) -> list[str]:
    if language not in _ARTICLES:
        raise ValueError(f"MLQA's rule knows {sorted(_ARTICLES)}, not {language!r}; use the rule 'squad'")
    text = "".join(character for character in text.lower() if not _is_punctuation(character))
    if _ARTICLES[language]:
        text = re.sub(_ARTICLES[language], " ", text)
    if language == "zh":
        text = _HAN.sub(r" \1 ", text)
    return text.split()


def normalise(text: str, language: str, rule: str) -> list[str]:
    """The tokens that EM and F1 compare.

    Args:
        text: a prediction or a gold answer.
        language: the language of the context (only MLQA's rule looks at it).
        rule: ``"mlqa"`` or ``"squad"``.

    Raises:
        ValueError: unknown rule, or a language that MLQA's rule does not know.
    """
    if rule not in RULES:
        raise ValueError(f"unknown rule {rule!r}; the rules are {RULES}")
    return _tokens_squad(text) if rule == "squad" else _tokens_mlqa(text, language)


def _compare(predicted: list[str], gold: list[str]) -> Score:
    shared = sum((Counter(predicted) & Counter(gold)).values())
    em = float(" ".join(predicted) == " ".join(gold))
    if not shared:
        return Score(em, 0.0)
    precision, recall = shared / len(predicted), shared / len(gold)
    return Score(em, 2 * precision * recall / (precision + recall))


def score(prediction: str | None, golds: Sequence[str], language: str, rule: str) -> Score:
    """EM and F1 of one prediction: the maximum over the gold answers, for each of the two separately.

    A missing prediction (``None``) scores 0. See :func:`normalise` for the arguments and errors.
    """
    if not golds:
        raise ValueError("a question without gold answers cannot be scored")
    gold_tokens = [normalise(gold, language, rule) for gold in golds]
    if prediction is None:
        return Score(0.0, 0.0)
    tokens = normalise(prediction, language, rule)
    scores = [_compare(tokens, gold) for gold in gold_tokens]
    return Score(max(s.em for s in scores), max(s.f1 for s in scores))


def aggregate(scores: Mapping[str, Score]) -> dict[str, float]:
    """``{"f1": percent, "em": percent, "n": questions}`` of one language."""
    n = len(scores)
    if not n:
        raise ValueError("no scores to aggregate")
    return {
        "f1": 100 * sum(s.f1 for s in scores.values()) / n,
        "em": 100 * sum(s.em for s in scores.values()) / n,
        "n": n,
    }


def write_predictions(path: str | Path, predictions: Mapping[str, str]) -> None:
    """Write predictions in the official form ``{id: text}``, atomically."""
    write_text_atomically(path, json.dumps(dict(predictions), ensure_ascii=False, indent=0) + "\n")


def read_predictions(path: str | Path) -> dict[str, str]:
    """Read predictions in the official form ``{id: text}``.

    Raises:
        ValueError: the file is not a JSON object of texts, or gives one id two texts; the message names file and id.
    """
    try:
        found = read_json(path, object_pairs_hook=once)
    except ValueError as error:
        raise ValueError(f'{error} (not a JSON file of predictions, which look like {{"id": "text"}})') from error
    form = f"{path}: predictions must be one JSON object of id to text"
    if not isinstance(found, dict):
        raise ValueError(form)
    for key, text in found.items():
        if not isinstance(text, str):
            raise ValueError(f"{form}; that of {key!r} is {text!r:.40}")
        check_text(key + text, f"{path}: id and prediction of {key!r}")
    return found


def compare_ids(predictions: Mapping[str, str], ids: Collection[str], name: str) -> Report:
    """Which of the gold ids have no prediction, and which predictions are of no gold id, as notes of a report.

    ``name`` is the predictions' file.
    """
    missing = [key for key in ids if key not in predictions]
    known, report = set(ids), Report(name)
    unknown = [key for key in predictions if key not in known]
    lacking = f"of {len(ids)} questions without a prediction, scored 0"
    for what, keys in ((lacking, missing), ("predictions of unknown ids", unknown)):
        if keys:
            report.notes.append(f"{len(keys)} {what} ({name_first(keys, len(keys))})")
    return report
