"""Readers whose answers have the source's answer mixed in (:mod:`~xsta_lib.translation.answering`), on parallel text.

``results/<protocol>/projected/<name>.json`` holds F1 and EM by reading and language, and beside it lie the scores of
every question under each reading (the column ``dataset`` names the reading).
"""

import json
import re
import time
from collections.abc import Mapping
from pathlib import Path

from ..data.files import read_json, write_text_atomically
from ..data.protocols import TestSet, load_protocol
from ..prediction.evaluation import Evaluation, provenance, score_answers
from ..prediction.predictor import Predictor
from ..translation.answering import ProjectingPredictor
from .experiment import place_of
from .results import load_articles, load_scores, results_folder, score_frame, scores_path, write_scores
from .significance import Difference, seeds_and_articles


def evaluate_readings(predictor: Predictor, test: TestSet, progress: bool = True) -> dict[str, Evaluation]:
    """A reader on a test set with sources, under each reading of the projecting predictor."""
    projecting, texts = ProjectingPredictor(predictor), {}
    for questions, beside in test.by_source():
        found = projecting.predict(questions, beside or (), progress)
        for reading, by_language in found.items():
            for language, part in by_language.items():
                texts.setdefault(reading, {})[language] = {key: one.text for key, one in part.items()}
    return {reading: score_answers(test, answers) for reading, answers in texts.items()}


def measure_projected(
    predictor: Predictor, name: str, protocol: str = "parallel", progress: bool = True, weights: str = ""
) -> Path:
    """Measure a reader on a protocol's first test set; returns the path of the result.

    Args:
        predictor, progress: the reader, and whether a bar is shown.
        name: what it is called; the fingerprint at the end of a run's folder is not part of the file's name.
        protocol: a name or a folder.
        weights: a key of the reader's, where it has one.

    Raises:
        ValueError: the test set has no source, or another reader's result has this name.
    """
    path = results_folder() / place_of(protocol) / "projected" / f"{re.sub('_[0-9a-f]{16}$', '', name)}.json"
    there = read_json(path) if path.exists() else {"reader": name}
    if (there["reader"], there.get("weights", weights)) != (name, weights):
        raise ValueError(f"{path}: holds another model's result, {there['reader']}; move it away to measure {name}")
    test, began = load_protocol(protocol).tests[0], time.perf_counter()
    if not test.source:
        raise ValueError(f"{protocol}: its test set {test.name!r} has no source version to project from")
    evaluations = evaluate_readings(predictor, test, progress)
    record = {"reader": name, "weights": weights, "dataset": test.name, "source_language": test.source_language}
    record |= {"seconds": time.perf_counter() - began, "provenance": provenance()}
    record["metrics"] = {reading: evaluation.metrics for reading, evaluation in evaluations.items()}
    write_scores(scores_path(path), score_frame(evaluations))
    write_text_atomically(path, json.dumps(record, indent=1) + "\n")
    return path


def projected_runs(protocol: str = "parallel") -> dict[str, dict[int, Path]]:
    """Score files of the measured readers by name and seed; a name that ends in no seed is a reader with seed 0."""
    runs: dict[str, dict[int, Path]] = {}
    for path in sorted((results_folder() / place_of(protocol) / "projected").glob("*.json")):
        name, seed = re.fullmatch(r"(.+?)(?:_seed(\d+))?", path.stem).groups()
        runs.setdefault(name, {})[int(seed or 0)] = scores_path(path)
    return runs


def projected_difference(first: tuple[Mapping[int, Path], str], second: tuple[Mapping[int, Path], str]) -> Difference:
    """First minus second, F1 over the target languages, with the interval of resampled seeds and articles.

    Args:
        first, second: the score files of a reader by seed (:func:`projected_runs`), and a reading. Seeds that only one
            of them has are left out.

    Raises:
        ValueError: they have no seed in common, or did not answer the same questions.
    """
    seeds = sorted(set(first[0]) & set(second[0]))
    if not seeds:
        raise ValueError("the two readers have no seed in common")
    path = first[0][seeds[0]]  # results/<protocol>/projected/<name>.scores.parquet; the record beside it names the data
    record = read_json(path.with_name(path.name.replace(".scores.parquet", ".json")))
    source = record.get("source_language", "en")  # older ones do not say it
    sides = [[load_scores(files[seed], reading) for seed in seeds] for files, reading in (first, second)]
    return seeds_and_articles(*sides, load_articles(path.parent.parent, record["dataset"]), (source,))
