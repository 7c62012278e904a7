"""Result files: ``results/<protocol>/<name>.json`` and, beside each, the scores of every question (no text)."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

from ..data.files import TextError, home, read_json, replacing, write_text_atomically
from ..data.protocols import TestSet
from ..prediction.evaluation import Evaluation
from .experiment import backbone_tag, place_of, setting_of

ARTICLES = "articles.csv"  # in a protocol's folder: which article each test question is about
FIELDS = {"protocol", "method", "without", "backbone", "seed", "source", "config", "fingerprint", "metrics"}


def results_folder() -> Path:
    """Where results lie unless another folder is given: see :func:`~xsta_lib.data.files.home`."""
    return home() / "results"


def write_result(path: Path, record: dict, evaluations: Mapping[str, Mapping[str, Evaluation]]) -> Path:
    """Write one result and its scores, atomically; returns the path.

    Args:
        path: the JSON file; if another experiment's result lies there, the fingerprint is added to the name.
        record: what was run, on what, how long; ``metrics`` and ``readings`` are added.
        evaluations: by test set and reading; the first reading of a test set is its result.
    """
    if path.exists() and read_result(path)["fingerprint"] != record["fingerprint"]:
        path = path.with_name(f"{path.stem}_{record['fingerprint']}.json")
    metrics, readings, mains = {}, {}, {}
    for dataset, by_reading in evaluations.items():
        for reading, evaluation in by_reading.items():
            readings.setdefault(reading, {})[dataset] = evaluation.metrics
        mains[dataset] = next(iter(by_reading.values()))
        metrics[dataset] = mains[dataset].metrics
    full = {**record, "metrics": metrics, "readings": readings if len(readings) > 1 else {}}
    write_scores(scores_path(path), score_frame(mains))  # first, so that no result is without its scores
    write_text_atomically(path, json.dumps(full, indent=1, ensure_ascii=False) + "\n")
    return path


def score_frame(evaluations: Mapping[str, Evaluation]) -> pd.DataFrame:
    """Rows ``dataset, language, id, f1, em`` (percent) of evaluations by test set."""
    rows = [
        (dataset, language, key, 100 * one.f1, 100 * one.em)
        for dataset, evaluation in evaluations.items()
        for language, scores in evaluation.scores.items()
        for key, one in scores.items()
    ]
    return pd.DataFrame(rows, columns=["dataset", "language", "id", "f1", "em"])


def write_scores(path: Path, frame: pd.DataFrame) -> None:
    """Write rows of :func:`score_frame` to a file."""
    with replacing(path) as temporary:
        frame.astype({"f1": "float32", "em": "float32"}).to_parquet(temporary, index=False, compression="zstd")


def scores_path(result: Path) -> Path:
    """The scores beside a result."""
    return result.with_name(f"{result.stem}.scores.parquet")


def read_result(path: Path) -> dict:
    """One result; ``scores`` is the path of the per-question scores beside it. TextError names a file that is none.

    Older ones do not say their source language: it was English.
    """
    result = read_json(path)
    maps = isinstance(result, dict) and all(isinstance(result.get(name), dict) for name in ("config", "metrics"))
    if not (maps and set(result) >= FIELDS and {"protocol", "backbone"} <= set(result["config"])):
        raise TextError(f"{path}: not a result as xsta writes it; move it away and measure it anew")
    return {"source_language": "en", **result, "scores": str(scores_path(path))}


def load_all_results(protocol: str, folder: Path | None = None) -> list[dict]:
    """Every result of a protocol, see :func:`read_result`."""
    return [read_result(path) for path in sorted(((folder or results_folder()) / place_of(protocol)).glob("*.json"))]


def load_results(protocol: str, folder: Path | None = None, backbone: str | None = None) -> list[dict]:
    """Results that compare: of one backbone (by default the protocol's own), trained with the protocol's settings."""
    setting = backbone_tag(backbone)
    return [result for result in load_all_results(protocol, folder) if setting_of(result["config"]) == setting]


def load_scores(file: str | Path, dataset: str) -> pd.DataFrame:
    """Rows ``dataset, language, id, f1, em`` (percent) of one data set. ValueError names a file that is damaged."""
    try:
        frame = pd.read_parquet(file)
        return frame[frame["dataset"] == dataset]
    except (OSError, ValueError, LookupError) as error:
        raise ValueError(f"{file}: no scores can be read from it ({error}); measure its result anew") from error


def write_articles(folder: Path, tests: Sequence[TestSet]) -> Path | None:
    """Keep the title of each question's article beside a protocol's results, so that articles can be resampled.

    Only of test sets that ask the same questions in every language: of the others an article has few questions. There
    is no file where titles do not tell articles apart.
    """
    rows = []
    for test in tests:
        if test.source and test.source_name != "other":  # the control asks another set's questions again
            titles = {question.id: question.title for part in test.questions.values() for question in part}
            if len(set(titles.values())) > 1 and all(titles.values()):
                rows += [(test.name, key, title) for key, title in titles.items()]
    if not rows:
        return None
    text = pd.DataFrame(rows, columns=["dataset", "id", "article"]).to_csv(index=False, lineterminator="\n")
    write_text_atomically(folder / ARTICLES, text)
    return folder / ARTICLES


def load_articles(folder: Path, dataset: str) -> dict[str, str]:
    """The article of each question of a data set, see :func:`write_articles`; empty where it is not kept."""
    if not (folder / ARTICLES).is_file():
        return {}
    frame = pd.read_csv(folder / ARTICLES, dtype=str, keep_default_na=False)
    frame = frame[frame["dataset"] == dataset]
    return dict(zip(frame["id"], frame["article"], strict=True))
