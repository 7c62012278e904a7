"""The paper's printed tables (data/paper): complete, tidy, and consistent with their own averages."""

from decimal import Decimal

import pandas as pd
import pytest
from project import ROOT

COLUMNS = ["table", "task", "backbone", "method", "language", "f1", "em", "source"]
ROW = ["table", "backbone", "method", "source"]
ROWS = {1: 80, 2: 81, 3: 103, 4: 14}
TASKS = {1: {"MLQA"}, 2: {"TyDiQA"}, 3: {"XQuAD"}, 4: {"MLQA", "XQuAD"}}
LANGUAGES = {
    1: "en ar de es hi vi zh avg",
    2: "en ar bn fi id ko ru sw te avg",
    3: "en ar de el es hi ru th tr vi zh avg",
    4: "avg",
}
ABLATIONS = ["GDKS", "ATGC", "ATGC inference", "Rep-Norm", "alignment_s", "alignment_t"]

# Rounding explains a gap of 0.05 (the printed languages) plus 0.05 (the printed average), not more. These are not the
# rounded mean of the printed languages, though rounding still explains them.
KNOWN_ROUNDINGS = {
    (1, "mBERT", "X-MIXUP", "reimplementation", "f1"),
    (1, "XLM-R", "Trans-train", "reimplementation", "em"),
    (2, "XLM-R", "Ours", "paper", "em"),
    (3, "mBERT", "X-MIXUP", "reimplementation", "f1"),
}


def read(table: int, **options: object) -> pd.DataFrame:
    return pd.read_csv(ROOT / "data" / "paper" / f"table{table}.csv", **options)


def gaps() -> dict[tuple[int, str, str, str, str], Decimal]:
    """Distance of every printed average from the mean of its languages, exact in decimals."""
    found = {}
    for table in (1, 2, 3):
        for key, row in read(table, dtype={"f1": str, "em": str}).groupby(ROW):
            row = row.set_index("language")
            if len(row) < len(LANGUAGES[table].split()):
                continue
            for metric in ("f1", "em"):
                values = [Decimal(value) for value in row[metric].drop("avg")]
                found[(*key, metric)] = abs(Decimal(row.loc["avg", metric]) - sum(values) / len(values))
    return found


@pytest.mark.parametrize("table", ROWS)
def test_shape_and_values(table: int) -> None:
    frame = read(table)
    assert list(frame.columns) == COLUMNS and len(frame) == ROWS[table]
    assert set(frame["table"]) == {table} and set(frame["task"]) == TASKS[table]
    assert set(frame["language"]) == set(LANGUAGES[table].split())
    assert set(frame["backbone"]) == ({"mBERT"} if table == 4 else {"mBERT", "XLM-R"})
    assert set(frame["source"]) <= {"paper", "reimplementation", "reported"}
    assert not frame.isna().any(axis=None) and not frame.duplicated(["task", *ROW, "language"]).any()
    assert (frame["f1"] > frame["em"]).all() and frame[["f1", "em"]].stack().between(20, 90).all()


@pytest.mark.parametrize("table", [1, 2, 3])
def test_sources(table: int) -> None:
    frame = read(table)
    copied = frame["method"].isin(["LAKM", "CalibreNet", "AA-CL"])
    copied |= (frame["backbone"] == "mBERT") & frame["method"].isin(["Zero-shot", "Trans-train"])
    copied |= (frame["method"] == "X-MIXUP") & (frame["language"] == "avg") & (frame["source"] == "reported")
    assert ((frame["source"] == "reported") == copied).all()
    assert ((frame["source"] == "paper") == (frame["method"] == "Ours")).all()


def test_cells_read_off_the_paper() -> None:
    cells = {
        (1, "mBERT", "Ours", "paper", "avg"): (71.2, 53.2),
        (1, "mBERT", "LAKM", "reported", "de"): (64.4, 49.9),
        (1, "XLM-R", "AA-CL", "reported", "vi"): (67.9, 47.2),
        (2, "mBERT", "X-MIXUP", "reported", "avg"): (60.8, 46.5),
        (2, "XLM-R", "Ours", "paper", "te"): (70.2, 52.9),
        (3, "mBERT", "Trans-train", "reported", "th"): (38.1, 34.5),
        (3, "XLM-R", "AA-CL", "reported", "vi"): (77.6, 57.5),
        (3, "XLM-R", "Ours", "paper", "zh"): (77.7, 74.6),
    }
    frame = pd.concat(read(table) for table in (1, 2, 3)).set_index([*ROW, "language"])
    for key, (f1, em) in cells.items():
        assert tuple(frame.loc[key, ["f1", "em"]]) == (f1, em), key


def test_ablation_repeats_the_main_tables() -> None:
    ablation = read(4)
    for table, task in ((1, "MLQA"), (3, "XQuAD")):
        rows = ablation[ablation["task"] == task]
        assert list(rows["method"]) == ["Ours", *(f"w/o. {part}" for part in ABLATIONS)]
        main = read(table).query("backbone == 'mBERT' and method == 'Ours' and language == 'avg'")
        assert rows.iloc[0][["f1", "em"]].tolist() == main.iloc[0][["f1", "em"]].tolist()


def test_printed_averages() -> None:
    found = gaps()
    assert len(found) == 48
    assert max(found.values()) <= Decimal("0.1")
    assert {key for key, gap in found.items() if gap > Decimal("0.05")} == KNOWN_ROUNDINGS
