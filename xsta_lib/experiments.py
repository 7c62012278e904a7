"""Experiments run, written and found again: ``load_or_run`` measures only what is missing.

``results/<protocol>/<name>.json`` holds the metrics and the provenance, ``<name>.scores.parquet`` beside it the scores
of every question (no text).
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from . import parallel
from .evaluation import evaluate_model, evaluate_once, provenance
from .experiment_config import DEMO_METHODS, METHODS, SETTINGS, Experiment, experiment, place_of
from .protocols import ProtocolData, load_protocol
from .results import RESULTS, load_all_results, load_results, write_result
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


def data_key(data: ProtocolData) -> str:
    """A key of a protocol's questions, those of training and those of every test; it is kept with a result."""
    return " ".join([data.digest(), *(test.digest() for test in data.tests)])


def refuse_other_data(protocol: str, data: ProtocolData, results: Path = RESULTS) -> None:
    """Refuse a folder whose files are not those that its results were measured on: they would not compare.

    Raises:
        ValueError: ``results/<folder>`` holds a result of other questions.
    """
    if protocol in SETTINGS:  # published files are checksummed
        return
    key = data_key(data)
    if any(result.get("data") != key for result in load_all_results(protocol, results)):
        place = results / place_of(protocol)
        raise ValueError(f"{place}: measured on other files than {protocol} has now; move it away to measure anew")


def known_results(experiments: Sequence[Experiment], results: Path = RESULTS) -> list[dict]:
    """The results of some experiments that were measured before.

    Raises:
        ValueError: see :func:`refuse_other_data`.
    """
    found, wanted = [], {exp.fingerprint for exp in experiments}
    for protocol in dict.fromkeys(exp.protocol for exp in experiments):
        here = [result for result in load_all_results(protocol, results) if result["fingerprint"] in wanted]
        if here and protocol not in SETTINGS:
            refuse_other_data(protocol, load_protocol(protocol), results)
        found += here
    return found


def run_experiment(
    exp: Experiment,
    data: ProtocolData | None = None,
    progress: bool = True,
    results: Path = RESULTS,
    options: Mapping[str, object] | None = None,
) -> list[Path]:
    """Train, evaluate with the source (a method that reads pairs) and without, write; returns the paths.

    Under ``torchrun`` every process calls this; ``options`` as for :func:`~xsta_lib.runs.train_experiment`.

    Raises:
        ValueError: see :func:`refuse_other_data` and :func:`~xsta_lib.runs.train_experiment`.
    """
    parallel.start()
    provenance()  # looked up once, of the code as it was loaded
    with parallel.main_first():
        data = data or load_protocol(exp.protocol)
    refuse_other_data(exp.protocol, data, results)
    model, tokenizer, training = train_experiment(exp, data, progress, options)
    beside = next((test.source_name for test in data.tests if test.source), "none")
    records = []
    for source in dict.fromkeys((beside, "none")) if exp.model_config().reads_pairs else ("none",):
        evaluations, kept = {}, []
        for test in data.tests:
            if progress and parallel.rank() == 0:
                print(f"{exp.method}: {test.name}, source {source}")
            found = source if test.source else "none"  # a set without English is read alone, and once
            readings = ("calibrated", "target", "teacher") if found != "none" else ("calibrated",)
            answers = run_folder(exp) / "predictions"
            evaluations[test.name], record = evaluate_once(answers, model, tokenizer, test, found, readings, progress)
            kept.append(record)
        record = describe(exp, source) | {
            "data": data_key(data),
            "seconds": training.seconds,
            "evaluation_seconds": sum(part["seconds"] for part in kept),
            "peak_memory_bytes": max([training.peak_memory_bytes, *(part["peak_memory_bytes"] for part in kept)]),
            "best_step": training.best_step,
            "validation_f1": training.best_score,
            "log": training.log,
            "reading": [str(report) for report in data.reports],
            "provenance": training.provenance,
            "evaluation_provenance": kept[-1]["provenance"] if kept else {},
        }
        records.append((result_path(exp, source, results), record, evaluations))
    # together at the end: a run with one of its results would count as measured
    written = [write_result(*found) if parallel.rank() == 0 else found[0] for found in records]
    parallel.wait()
    return written


def load_or_run(exp: Experiment, progress: bool = True) -> list[dict]:
    """The results of an experiment: read if its fingerprint is among the committed ones, else measured now."""
    results = known_results([exp])
    if not results:
        run_experiment(exp, progress=progress)
        results = known_results([exp])
    return results
