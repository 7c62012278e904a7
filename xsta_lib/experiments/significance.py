"""How sure a number is: intervals over seeds and articles (or questions), and paired comparisons of two systems."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd


def by_question(scores: pd.DataFrame) -> pd.DataFrame:
    """F1 as a table of questions (rows) and languages (columns); a question that a language lacks is missing."""
    return scores.pivot(index="id", columns="language", values="f1")


def average_interval(
    scores: Sequence[pd.DataFrame], articles: Mapping[str, object] | None = None, resamples: int = 1000
) -> tuple[float, float, float]:
    """F1's unweighted mean over languages, in percent, and its 95 % interval as :func:`seeds_and_articles` has it.

    Args:
        scores: rows ``language, id, f1, em`` of one system and data set, one frame a seed.
        articles: the article of each id; without it, questions are drawn, by id in all languages together, as they are
            translations of each other.
        resamples: how often; several seeds need ten times as many, since Student's t has long tails.
    """
    return _over_runs([by_question(one) for one in scores], articles, resamples)[:3]


def resampled_means(table: pd.DataFrame, resamples: int, seed: int) -> np.ndarray:
    """The unweighted mean over languages, drawn again and again from the resampled rows of :func:`by_question`."""
    rng = np.random.default_rng(seed)
    return _drawn_means(table.fillna(0).to_numpy(), table.notna().to_numpy(float), resamples, rng)


def _drawn_means(sums: np.ndarray, counts: np.ndarray, resamples: int, rng: np.random.Generator) -> np.ndarray:
    """Means over languages of resampled units, articles or single questions: ``(..., resamples)``.

    Args:
        sums: of F1 by unit and language, ``(..., units, languages)``.
        counts: how many questions each sum is of, ``(units, languages)``.
        resamples, rng: how often, and drawn from what.
    """
    drawn, n = [], len(counts)
    for low in range(0, resamples, 500):  # some at a time: all counts at once would take gigabytes
        size = min(500, resamples - low)
        chosen = rng.integers(n, size=(size, n)) + n * np.arange(size)[:, None]
        times = np.bincount(chosen.ravel(), minlength=size * n).reshape(size, n).astype(float)
        drawn.append((times @ sums / np.maximum(times @ counts, 1)).mean(axis=-1))
    return np.concatenate(drawn, axis=-1)


class Difference(NamedTuple):
    """First minus second system in percentage points, its 95 % interval, and the two-sided p-value."""

    value: float
    low: float
    high: float
    p: float


def paired_bootstrap(first: pd.DataFrame, second: pd.DataFrame, resamples: int = 10_000) -> Difference:
    """Whether one system's F1 is better than another's on the same questions (Koehn, 2004, over mean scores).

    The difference of the unweighted means over languages is drawn again and again from resampled questions, by id in
    all languages together.

    Args:
        first, second: rows ``language, id, f1, em`` of each system, in percent.
        resamples: how often.

    Raises:
        ValueError: the two did not answer the same questions.
    """
    return seeds_and_articles([first], [second], resamples=resamples)


def seeds_and_articles(
    first: Sequence[pd.DataFrame],
    second: Sequence[pd.DataFrame],
    articles: Mapping[str, object] | None = None,
    without: Sequence[str] = (),
    resamples: int = 10_000,
) -> Difference:
    """The mean difference of two systems over training runs, and what other runs and other articles would make of it.

    Every resample draws articles, with all their questions in all languages and under all seeds: questions about one
    text are not independent. Its mean over S seeds then moves by a draw of Student's t, with S - 1 degrees of freedom,
    times the standard error over the seeds; runs drawn from themselves would spread too little where they are three.
    Where articles do not matter this is Student's interval, where the seeds agree it is the bootstrap's, and in between
    it is rather too wide than too narrow, since runs differ by article too. With one seed only articles are drawn.

    Args:
        first, second: rows ``language, id, f1, em`` of each system, in percent, one frame a seed, in the same order.
        articles: the article of each id; without it, questions are drawn.
        without: languages left out, such as the source.
        resamples: how often.

    Raises:
        ValueError: two of them did not answer the same questions.
    """
    tables = [difference_table(one, other, without) for one, other in zip(first, second, strict=True)]
    return _over_runs(tables, articles, resamples)


def _over_runs(tables: Sequence[pd.DataFrame], articles: Mapping[str, object] | None, resamples: int) -> Difference:
    """The mean over runs of their tables, as :func:`by_question` has them, see :func:`seeds_and_articles`."""
    if any(not table.isna().equals(tables[0].isna()) for table in tables):
        raise ValueError("the seeds did not answer the same questions; compare results of one protocol")
    units = tables[0].index.map(articles) if articles else tables[0].index
    if units.isna().any():
        raise ValueError("the article of some questions is not known")
    sums = np.stack([table.fillna(0).groupby(units).sum().to_numpy() for table in tables])
    counts = tables[0].notna().groupby(units).sum().to_numpy(float)
    rng, runs = np.random.default_rng(0), len(tables)
    drawn = _drawn_means(sums, counts, resamples, rng).mean(axis=0)
    found = [table.mean().mean() for table in tables]
    if runs > 1:
        moves = np.std(found, ddof=1) / runs**0.5 * rng.standard_t(runs - 1, size=resamples)
        drawn = np.concatenate([drawn + moves, drawn - moves])  # a comparison the other way round has the same interval
    p = min(1.0, 2 * (min((drawn <= 0).sum(), (drawn >= 0).sum()) + 1) / (len(drawn) + 1))
    return Difference(float(np.mean(found)), *map(float, np.percentile(drawn, [2.5, 97.5])), float(p))


def difference_table(first: pd.DataFrame, second: pd.DataFrame, without: Sequence[str]) -> pd.DataFrame:
    """First minus second, in percentage points, as :func:`by_question` has them; arguments as for the comparisons.

    Raises:
        ValueError: the two did not answer the same questions.
    """
    tables = [by_question(scores[~scores["language"].isin(without)]).sort_index() for scores in (first, second)]
    same = tables[0].index.equals(tables[1].index) and list(tables[0]) == list(tables[1])
    if not same or not (tables[0].isna() == tables[1].isna()).all().all():
        raise ValueError("the two systems did not answer the same questions; compare results of one protocol")
    return tables[0] - tables[1]
