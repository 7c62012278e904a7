"""Readers whose answers have the source's answer mixed in (:mod:`~xsta_lib.translation.answering`), on parallel text.

``results/<protocol>/projected/<name>.json`` holds F1 and EM by reading and language, and beside it lie the scores of
every question under each reading (the column ``dataset`` names the reading).
"""

import json
import time
from pathlib import Path

import pandas as pd

from ..data.files import read_json, write_text_atomically
from ..data.protocols import TestSet, load_protocol
from ..prediction.evaluation import Evaluation, provenance, score_answers
from ..prediction.predictor import Predictions, Predictor
from ..translation.answering import ProjectingPredictor
from .experiment import place_of
from .results import results_folder, score_frame, scores_path, write_scores


def score_readings(test: TestSet, found: Predictions) -> dict[str, Evaluation]:
    """Each reading's answers, scored."""
    texts = {
        reading: {language: {key: one.text for key, one in part.items()} for language, part in by_language.items()}
        for reading, by_language in found.items()
    }
    return {reading: score_answers(test, answers) for reading, answers in texts.items()}


def write_answers(path: Path, evaluations: dict[str, Evaluation], about: dict) -> Path:
    """Write one reader's scores under each reading; ``about`` says which it is and how long it took."""
    record = about | {"metrics": {reading: evaluation.metrics for reading, evaluation in evaluations.items()}}
    write_scores(scores_path(path), score_frame(evaluations))
    write_text_atomically(path, json.dumps(record, indent=1) + "\n")
    return path


def measure_projected(predictor: Predictor, name: str, protocol: str = "parallel", progress: bool = True) -> Path:
    """Measure a reader, called ``name``, on a protocol's first test set; returns the path of the result.

    Raises:
        ValueError: the test set has no source.
    """
    test, began = load_protocol(protocol).tests[0], time.perf_counter()
    if not test.source:
        raise ValueError(f"{protocol}: its test set {test.name!r} has no source version to project from")
    found = ProjectingPredictor(predictor).predict(test.questions, test.source, progress)
    evaluations = score_readings(test, found)
    about = {"reader": name, "dataset": test.name, "seconds": time.perf_counter() - began, "provenance": provenance()}
    return write_answers(results_folder() / place_of(protocol) / "projected" / f"{name}.json", evaluations, about)


def projected_table(protocol: str = "parallel") -> pd.DataFrame:
    """Mean F1 over the target languages by reader (rows) and reading."""
    rows = {}
    for path in sorted((results_folder() / place_of(protocol) / "projected").glob("*.json")):
        metrics = read_json(path)["metrics"]
        rows[path.stem] = {
            reading: sum(v["f1"] for k, v in by.items() if k != "en") / (len(by) - ("en" in by))
            for reading, by in metrics.items()
        }
    return pd.DataFrame(rows).T
