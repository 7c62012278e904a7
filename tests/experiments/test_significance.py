"""Intervals and paired comparisons against closed forms and constructed cases."""

import math

import numpy as np
import pandas as pd
import pytest

from xsta_lib.experiments.significance import (
    average_interval,
    by_question,
    paired_bootstrap,
    resampled_means,
    seeds_and_articles,
)


def scores(values: dict[str, np.ndarray]) -> pd.DataFrame:
    """Rows of a data set from scores by language; question i has the id ``q<i>`` in every language."""
    rows = [(language, f"q{i}", value, value) for language, part in values.items() for i, value in enumerate(part)]
    return pd.DataFrame(rows, columns=["language", "id", "f1", "em"])


RNG = np.random.default_rng(0)
BASE = {language: RNG.uniform(0, 100, 400) for language in ("en", "de", "zh")}
BASE_SCORES = scores(BASE)


def test_a_difference_that_is_there_is_found_with_its_width():
    noise = RNG.normal(3, 20, 400)  # the same in all languages, as between translations
    better = {language: part + noise for language, part in BASE.items()}
    found = paired_bootstrap(scores(better), scores(BASE))
    assert found.value == pytest.approx(noise.mean())
    assert found.high - found.low == pytest.approx(2 * 1.96 * noise.std() / 20, rel=0.05)
    assert found.p < 0.02 and found.low > 0
    turned = paired_bootstrap(scores(BASE), scores(better))
    assert turned.value == -found.value and turned.p == pytest.approx(found.p, abs=0.005)


def test_translations_are_resampled_together_and_other_sets_apart():
    noise = {language: RNG.normal(1, 20, 400) for language in BASE}
    apart = {language: part + noise[language] for language, part in BASE.items()}
    joint = paired_bootstrap(scores(apart), scores(BASE))
    own_ids = [frame.assign(id=frame["language"] + frame["id"]) for frame in (scores(apart), scores(BASE))]
    single = paired_bootstrap(*own_ids)
    width = 2 * 1.96 * math.sqrt(sum(part.var() / 400 for part in noise.values())) / 3
    assert single.high - single.low == pytest.approx(width, rel=0.06)
    assert single.value == pytest.approx(joint.value)


def test_no_difference_is_found_between_a_system_and_a_shuffled_copy():
    values = [
        paired_bootstrap(scores({"de": BASE["de"] + RNG.normal(0, 10, 400)}), scores({"de": BASE["de"]})).p
        for _ in range(40)
    ]
    assert np.mean(np.array(values) < 0.05) < 0.2 and paired_bootstrap(scores(BASE), scores(BASE)).p == 1.0


def test_languages_can_be_left_out_and_questions_must_match():
    better = {**BASE, "en": BASE["en"] + 30}
    assert paired_bootstrap(scores(better), scores(BASE)).value == pytest.approx(10)
    assert seeds_and_articles([scores(better)], [BASE_SCORES], without=["en"]).value == 0
    with pytest.raises(ValueError, match="same questions"):
        paired_bootstrap(scores(BASE), scores({language: part[:-1] for language, part in BASE.items()}))
    with pytest.raises(ValueError, match="same questions"):
        paired_bootstrap(scores(BASE), scores({language: BASE[language] for language in ("en", "de")}))


def test_partly_parallel_sets_keep_their_pairs():
    values = {"en": BASE["en"], "de": BASE["en"][:100]}  # equal scores of the questions that both have
    spread = resampled_means(by_question(scores(values)), 4000, 0).std()
    rng = np.random.default_rng(1)
    drawn = []
    for _ in range(4000):
        chosen = rng.integers(400, size=400)
        drawn.append((values["en"][chosen].mean() + values["en"][chosen[chosen < 100]].mean()) / 2)
    assert spread == pytest.approx(np.std(drawn), rel=0.06)
    apart = math.sqrt(values["en"].var() / 400 + values["de"].var() / 100) / 2
    assert spread > 1.1 * apart  # what independent languages would have


def runs(rng: np.random.Generator, seeds: int, of_run: float, of_article: float) -> tuple[list, list, dict[str, str]]:
    """Two systems' scores, a frame a seed; their difference is 1 and what runs and articles (20 questions) add."""
    articles = {f"q{i}": f"article {i // 20}" for i in range(400)}
    by_article = np.repeat(rng.normal(0, of_article, 20), 20)
    first = []
    for _ in range(seeds):
        moved = 1 + rng.normal(0, of_run) + by_article
        first.append(scores({language: part + moved for language, part in BASE.items()}))
    return first, [BASE_SCORES] * seeds, articles


def test_seeds_and_articles_are_drawn_as_a_plain_loop_draws_them():
    first, second, articles = runs(np.random.default_rng(3), 3, 2.0, 8.0)
    found = seeds_and_articles(first, second, articles, without=["en"])
    tables = [(by_question(one) - by_question(BASE_SCORES))[["de", "zh"]] for one in first]
    rows = {name: [i for i, key in enumerate(tables[0].index) if articles[key] == name] for name in articles.values()}
    rng, drawn = np.random.default_rng(4), []
    of_runs = [table.to_numpy().mean() for table in tables]
    mean, error = np.mean(of_runs), np.std(of_runs, ddof=1) / math.sqrt(3)
    for _ in range(1500):
        chosen = [row for name in rng.choice(list(rows), 20) for row in rows[name]]
        means = np.array([table.to_numpy()[chosen].mean() for table in tables])
        # Student's t with two degrees of freedom: a normal number over the root of half the squares of two others
        student = rng.normal() / math.sqrt((rng.normal(size=2) ** 2).mean())
        drawn.append(means.mean() + error * student)
    assert found.value == pytest.approx(mean)
    low, high = np.percentile(drawn, [2.5, 97.5])
    assert (found.low, found.high) == (pytest.approx(low, abs=0.8), pytest.approx(high, abs=0.8))
    assert found.high - found.low > 5  # far more than single questions, which all move with their article, would give


def test_the_spread_over_seeds_and_articles_is_the_sum_of_both():
    first, second, articles = runs(np.random.default_rng(5), 12, 4.0, 6.0)
    both, one = seeds_and_articles(first, second, articles), seeds_and_articles(first[:1], second[:1], articles)
    tables = [by_question(one) - by_question(BASE_SCORES) for one in first]
    by_article = [table.mean(axis=1).groupby(articles).mean() for table in tables]
    of_articles = np.mean(by_article, axis=0).var() / 20
    of_runs = np.mean(by_article, axis=1).var(ddof=1) / 12
    assert both.high - both.low == pytest.approx(2 * 1.96 * math.sqrt(of_articles + of_runs), rel=0.06)
    assert one.high - one.low == pytest.approx(2 * 1.96 * math.sqrt(of_articles), rel=0.06)  # one seed: articles alone
    questions = seeds_and_articles(first[:1], second[:1])
    assert questions.value == one.value and questions.high - questions.low < (one.high - one.low) / 2


def test_where_articles_do_not_matter_the_interval_is_students():
    first, second, articles = runs(np.random.default_rng(7), 3, 2.0, 0.0)
    found = seeds_and_articles(first, second, articles)
    of_runs = [(by_question(one) - by_question(BASE_SCORES)).to_numpy().mean() for one in first]
    half = 4.302653 * np.std(of_runs, ddof=1) / math.sqrt(3)  # t(0.975, 2)
    assert found.value == pytest.approx(np.mean(of_runs))
    assert found.high - found.low == pytest.approx(2 * half, rel=0.06)
    turned = seeds_and_articles(second, first, articles)
    assert (turned.low, turned.high) == (pytest.approx(-found.high), pytest.approx(-found.low))


def test_a_mean_has_the_interval_of_its_difference_from_nothing():
    found, _, articles = runs(np.random.default_rng(9), 3, 2.0, 6.0)
    zero = scores({language: np.zeros(400) for language in BASE})
    mean = average_interval(found, articles, resamples=10_000)
    assert mean == pytest.approx(seeds_and_articles(found, [zero] * 3, articles)[:3])
    _, low, high = average_interval(found[:1], articles)  # of one run: its articles
    tables = by_question(found[0]).mean(axis=1).groupby(articles).mean()
    assert high - low == pytest.approx(2 * 1.96 * tables.std(ddof=0) / math.sqrt(20), rel=0.1)
    assert mean[2] - mean[1] > high - low


@pytest.mark.parametrize(("of_seed", "of_article", "of_both"), [(1, 0, 0.01), (1, 1, 1), (0.2, 2, 2)])
def test_intervals_over_three_seeds_hold_the_truth_as_often_as_they_say(of_seed, of_article, of_both):
    rng, held, articles = np.random.default_rng(8), 0, {f"q{i}": i for i in range(24)}
    zero = scores({"de": np.zeros(24)})
    for _ in range(150):
        by_article = rng.normal(0, of_article, 24)
        found = [by_article + rng.normal(0, of_seed) + rng.normal(0, of_both, 24) for _ in range(3)]
        interval = seeds_and_articles([scores({"de": one}) for one in found], [zero] * 3, articles, resamples=400)
        held += interval.low <= 0 <= interval.high
    assert held >= 0.95 * 150 - 2 * math.sqrt(150 * 0.95 * 0.05)  # runs drawn from themselves: 122 in the first case


def test_seeds_must_have_answered_the_same_questions_and_articles_be_known():
    first, second, articles = runs(np.random.default_rng(6), 2, 1.0, 1.0)
    less = first[1][first[1]["id"] != "q3"]
    with pytest.raises(ValueError, match="same questions"):
        seeds_and_articles([first[0], less], [second[0], second[1][second[1]["id"] != "q3"]], articles)
    with pytest.raises(ValueError, match="article of some"):
        seeds_and_articles(first, second, {"q1": "article"})
