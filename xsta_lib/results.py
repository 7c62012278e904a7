"""Result files: ``results/<protocol>/<name>.json`` and, beside each, the scores of every question (no text)."""

import json
from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from .corpus import write_text_atomically
from .evaluation import ROOT, Evaluation

RESULTS = ROOT / "results"


def write_result(path: Path, record: dict, evaluations: Mapping[str, Mapping[str, Evaluation]]) -> Path:
    """Write one result and its scores, atomically; returns the path.

    Args:
        path: the JSON file.
        record: what was run, on what, how long; ``metrics`` and ``readings`` are added.
        evaluations: by test set and reading; the first reading of a test set is its result.
    """
    metrics, readings, rows = {}, {}, []
    for dataset, by_reading in evaluations.items():
        for reading, evaluation in by_reading.items():
            readings.setdefault(reading, {})[dataset] = evaluation.metrics
        main = next(iter(by_reading.values()))
        metrics[dataset] = main.metrics
        for language, scores in main.scores.items():
            rows += [(dataset, language, key, 100 * s.f1, 100 * s.em) for key, s in scores.items()]
    full = {**record, "metrics": metrics, "readings": readings if len(readings) > 1 else {}}
    write_text_atomically(path, json.dumps(full, indent=1, ensure_ascii=False) + "\n")
    frame = pd.DataFrame(rows, columns=["dataset", "language", "id", "f1", "em"])
    temporary = path.with_name(f".{path.stem}.scores.part")
    frame.astype({"f1": "float32", "em": "float32"}).to_parquet(temporary, index=False, compression="zstd")
    temporary.replace(scores_path(path))
    return path


def scores_path(result: Path) -> Path:
    """The scores beside a result."""
    return result.with_name(f"{result.stem}.scores.parquet")


def load_results(protocol: str, folder: Path = RESULTS, backbone: str | None = None) -> list[dict]:
    """A protocol's results, or those of one backbone; ``scores`` is the path of the per-question scores beside each."""
    found = [
        {**json.loads(path.read_text("utf-8")), "scores": str(scores_path(path))}
        for path in sorted((folder / protocol).glob("*.json"))
    ]
    return [result for result in found if backbone in (None, result["backbone"])]


def load_scores(file: str | Path, dataset: str) -> pd.DataFrame:
    """Rows ``dataset, language, id, f1, em`` (percent) of one data set."""
    frame = pd.read_parquet(file)
    return frame[frame["dataset"] == dataset]
