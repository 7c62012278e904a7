"""Experiments run, written and found again: ``load_or_run`` measures only what is missing.

``results/<protocol>/<name>.json`` holds the metrics and the provenance, ``<name>.scores.parquet`` beside it the scores
of every question (no text).
"""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from . import parallel
from .evaluation import evaluate_model, evaluate_once, provenance
from .experiment_config import DEMO_METHODS, METHODS, SETTINGS, Experiment, experiment
from .machine import peak_memory_bytes
from .protocols import ProtocolData, load_protocol
from .results import RESULTS, load_results, write_result
from .runs import RUNS, demo_model, is_trained, load_run, run_folder, train_experiment, training_parts

__all__ = [
    "DEMO_METHODS",
    "METHODS",
    "RESULTS",
    "RUNS",
    "SETTINGS",
    "Experiment",
    "demo_model",
    "describe",
    "evaluate_model",
    "experiment",
    "is_trained",
    "load_or_run",
    "load_results",
    "load_run",
    "result_path",
    "run_experiment",
    "run_folder",
    "train_experiment",
    "training_parts",
]


def result_path(exp: Experiment, source: str, results: Path = RESULTS) -> Path:
    """Where a result goes: a method that reads pairs has one result with its source and one without."""
    alone = exp.model_config().reads_pairs and source == "none"
    return results / exp.place / f"{exp.name}{'_target-only' if alone else ''}.json"


def describe(exp: Experiment, source: str) -> dict:
    """The fields of a result that say what was run."""
    return {
        "protocol": exp.place,
        "method": exp.method,
        "without": list(exp.without),
        "backbone": exp.backbone,
        "seed": exp.seed,
        "source": source,
        "config": asdict(exp),
        "fingerprint": exp.fingerprint,
    }


def run_experiment(
    exp: Experiment,
    data: ProtocolData | None = None,
    progress: bool = True,
    results: Path = RESULTS,
    options: Mapping[str, object] | None = None,
) -> list[Path]:
    """Train, evaluate with the source (a method that reads pairs) and without, write; returns the paths.

    Under ``torchrun`` every process calls this; ``options`` as for :func:`~xsta_lib.runs.train_experiment`.
    """
    parallel.start()
    origin = provenance()  # of the code as it was loaded
    with parallel.main_first():
        data = data or load_protocol(exp.protocol)
    model, tokenizer, training = train_experiment(exp, data, progress, options)
    beside = next((test.source_name for test in data.tests if test.source), "none")
    written = []
    for source in dict.fromkeys((beside, "none")) if exp.model_config().reads_pairs else ("none",):
        evaluations, seconds = {}, 0.0
        for test in data.tests:
            if progress and parallel.rank() == 0:
                print(f"{exp.method}: {test.name}, source {source}")
            found = source if test.source else "none"  # a set without English is read alone, and once
            readings = ("calibrated", "target", "teacher") if found != "none" else ("calibrated",)
            answers = run_folder(exp) / "predictions"
            evaluations[test.name], spent = evaluate_once(answers, model, tokenizer, test, found, readings, progress)
            seconds += spent
        record = describe(exp, source) | {
            "seconds": training.seconds,
            "evaluation_seconds": seconds,
            "peak_memory_bytes": peak_memory_bytes(),
            "best_step": training.best_step,
            "validation_f1": training.best_score,
            "log": training.log,
            "provenance": origin,
        }
        path = result_path(exp, source, results)
        written.append(write_result(path, record, evaluations) if parallel.rank() == 0 else path)
    parallel.wait()
    return written


def load_or_run(exp: Experiment, progress: bool = True) -> list[dict]:
    """The results of an experiment: read if its fingerprint is among the committed ones, else measured now."""
    found = [result for result in load_results(exp.place) if result["fingerprint"] == exp.fingerprint]
    if not found:
        found = [json.loads(path.read_text("utf-8")) for path in run_experiment(exp, progress=progress)]
    return found
