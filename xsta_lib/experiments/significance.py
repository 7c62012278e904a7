"""How sure a number is: intervals over questions and over seeds, and paired comparisons of two systems."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy.stats import t


def by_question(scores: pd.DataFrame) -> pd.DataFrame:
    """F1 as a table of questions (rows) and languages (columns); a question that a language lacks is missing."""
    return scores.pivot(index="id", columns="language", values="f1")


def average_interval(scores: pd.DataFrame) -> tuple[float, float, float]:
    """F1's unweighted mean over languages, in percent, and its 95 % bootstrap interval of 1,000 resamples.

    Questions with one id are resampled together in all languages, as they are translations of each other.

    Args:
        scores: rows ``language, id, f1, em`` of one system and data set.
    """
    table = by_question(scores)
    low, high = np.percentile(resampled_means(table, 1000, seed=0), [2.5, 97.5])
    return float(table.mean().mean()), float(low), float(high)


def resampled_means(table: pd.DataFrame, resamples: int, seed: int) -> np.ndarray:
    """The unweighted mean over languages, drawn again and again from the resampled rows of :func:`by_question`."""
    present, values = table.notna().to_numpy(float), table.fillna(0).to_numpy()
    rng, drawn, n = np.random.default_rng(seed), [], len(table)
    for low in range(0, resamples, 500):  # some at a time: all counts at once would take gigabytes
        size = min(500, resamples - low)
        chosen = rng.integers(n, size=(size, n)) + n * np.arange(size)[:, None]
        counts = np.bincount(chosen.ravel(), minlength=size * n).reshape(size, n).astype(float)
        drawn.append((counts @ values / np.maximum(counts @ present, 1)).mean(axis=1))
    return np.concatenate(drawn)


def seed_interval(values: Sequence[float]) -> tuple[float, float]:
    """Mean over seeds and half the width of its 95 % interval (Student's t); ``nan`` for a single seed."""
    values = np.asarray(values, dtype=float)
    if len(values) < 2:
        return float(values.mean()), float("nan")
    spread = values.std(ddof=1) / len(values) ** 0.5
    return float(values.mean()), float(t.ppf(0.975, len(values) - 1) * spread)


class Difference(NamedTuple):
    """First minus second system in percentage points, its 95 % interval, and the two-sided p-value."""

    value: float
    low: float
    high: float
    p: float


def paired_bootstrap(
    first: pd.DataFrame, second: pd.DataFrame, without: Sequence[str] = (), resamples: int = 10_000, seed: int = 0
) -> Difference:
    """Whether one system's F1 is better than another's on the same questions (Koehn, 2004, over mean scores).

    The difference of the unweighted means over languages is drawn again and again from resampled questions, by id in
    all languages together.

    Args:
        first, second: rows ``language, id, f1, em`` of each system, in percent.
        without: languages left out, such as the source.
        resamples, seed: of the resampling.

    Raises:
        ValueError: the two did not answer the same questions.
    """
    tables = [by_question(scores[~scores["language"].isin(without)]).sort_index() for scores in (first, second)]
    same = tables[0].index.equals(tables[1].index) and list(tables[0]) == list(tables[1])
    if not same or not (tables[0].isna() == tables[1].isna()).all().all():
        raise ValueError("the two systems did not answer the same questions; compare results of one protocol")
    table = tables[0] - tables[1]
    drawn = resampled_means(table, resamples, seed)
    below, above = (drawn <= 0).sum(), (drawn >= 0).sum()
    p = min(1.0, 2 * (min(below, above) + 1) / (resamples + 1))
    return Difference(float(table.mean().mean()), *map(float, np.percentile(drawn, [2.5, 97.5])), float(p))
