"""X-STA over the values of one switch (Figures 7 and 8), and over seeds: what the curves are drawn from."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from .tables import ALONE, changes

FULL = {"gamma": 0.1, "sharing_layer": 8, "lambda_0": 0.3}  # the full method's values, whose result has no switch
HELD_OUT = "held-out validation"


def _gather(results: Sequence[dict], key: str) -> pd.DataFrame:
    """Mean F1 over languages by data set and reading, and the validation score, a row a value of ``key``."""
    rows: dict[float, dict[str, float]] = {}
    for result in results:
        row = rows.setdefault(changes(result).get(key, FULL[key]) if key in FULL else result[key], {})
        for dataset, by_language in result["metrics"].items():
            name = dataset + ALONE if result["source"] == "none" else dataset
            row[name] = float(np.mean([values["f1"] for values in by_language.values()]))
        if result.get("validation_f1") is not None:
            row[HELD_OUT] = result["validation_f1"]
    return pd.DataFrame(rows).T.sort_index()


def sweep_frame(results: Sequence[dict], switch: str) -> pd.DataFrame:
    """F1 of X-STA over the values of one switch: rows by value, a column a data set; first seed.

    Columns are the data sets' means over languages (with the source, and ``<data set> (target only)`` without), and
    ``held-out validation``, the score that chose the weights, where the run was validated.

    Args:
        results: of one protocol and setting.
        switch: one of ``FULL``.
    """
    first = min((result["seed"] for result in results), default=0)
    own = [r for r in results if r["method"] == "x-sta" and not r["without"] and r["seed"] == first]
    return _gather([r for r in own if not set(changes(r)) - {switch}], switch)


def seed_frame(results: Sequence[dict]) -> pd.DataFrame:
    """F1 of the full method by seed, columns as for :func:`sweep_frame`: what another training run alone moves."""
    return _gather([r for r in results if r["method"] == "x-sta" and not r["without"] and not changes(r)], "seed")


def sweep_columns(frame: pd.DataFrame, dataset: str) -> list[str]:
    """The columns that Figures 7 and 8 show: held-out validation, or else target only, and the data set.

    Of a data set without sources, which is read alone, there may be one only.
    """
    first = HELD_OUT if HELD_OUT in frame else dataset + ALONE
    main = dataset if dataset in frame else dataset + ALONE
    return [name for name in dict.fromkeys((first, main)) if name in frame]
