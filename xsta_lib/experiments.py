"""An experiment is a frozen configuration; its result is one JSON file, found again by the configuration's fingerprint.

``results/<protocol>/<name>.json`` holds the metrics and the provenance, ``<name>.scores.parquet`` beside it the scores
of every question (no text).
"""

import hashlib
import json
import shutil
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from .batching import Part
from .configuration import XStaConfig
from .corpus import CorpusError, write_text_atomically
from .evaluation import evaluate_model, evaluate_once, provenance
from .features import build_windows, pair_windows, window_cache
from .modeling import XStaForQuestionAnswering
from .protocols import LOADERS, ProtocolData, load_protocol
from .results import RESULTS, ROOT, load_results, write_result
from .training import Trainer, TrainingConfig, TrainingResult, peak_memory_bytes

RUNS = ROOT / "runs"
METHODS = ("zero-shot", "trans-train", "x-mixup", "x-sta")
DEMO_METHODS = ("zero-shot", "trans-train", "x-sta")  # what `make demo` has time for

# Optimisation of each protocol: every method of a comparison gets the same.
SETTINGS = {
    "demo": {"learning_rate": 1e-4, "batch_size": 16, "epochs": 0.4, "dropout": 0.0, "english_epochs": 3.0},
    "compact": {"learning_rate": 1e-4, "batch_size": 16, "epochs": 1.0, "dropout": 0.0},
    **{name: {} for name in LOADERS if name.startswith("paper-")},  # the paper's are the defaults below
}
FOLDER_SETTINGS = SETTINGS["compact"]  # a folder of your own files


@dataclass(frozen=True)
class Experiment:
    """One training run and its evaluation.

    Attributes:
        protocol: what data (see :mod:`~xsta_lib.protocols`).
        method: ``zero-shot``, ``trans-train``, ``x-mixup`` or ``x-sta``.
        without: ablations of Table 4 (x-sta only).
        switches: fields of :class:`~xsta_lib.configuration.XStaConfig` that differ from the paper, as pairs.
        backbone: see :func:`~xsta_lib.backbones.load_backbone`.
        epochs: passes over the rows of the pair setting; sets the optimiser steps, the same for every method.
        english_epochs: epochs on the source language alone before, shared by all methods (the demo's head start).
    """

    protocol: str
    method: str
    without: tuple[str, ...] = ()
    switches: tuple[tuple[str, object], ...] = ()
    backbone: str = "e5-small-q4"
    seed: int = 42
    epochs: float = 1.0
    english_epochs: float = 0.0
    learning_rate: float = 3e-5
    batch_size: int = 32
    dropout: float | None = None
    precision: str = "auto"

    def __post_init__(self):
        if self.method not in METHODS:
            raise ValueError(f"method is {self.method!r}; allowed: {', '.join(METHODS)}")
        if (self.without or self.switches) and self.method != "x-sta":
            raise ValueError("without and switches belong to the method x-sta")
        self.model_config()  # refuses unknown switches

    def model_config(self) -> XStaConfig:
        """The model configuration, without encoder."""
        if self.method != "x-sta":
            return XStaConfig.mixup() if self.method == "x-mixup" else XStaConfig.plain()
        unknown = {name for name, _ in self.switches} - set(XStaConfig.__annotations__)
        if unknown:
            raise ValueError(f"unknown switches {sorted(unknown)}; see XStaConfig")
        return XStaConfig(without=list(self.without), **dict(self.switches))

    @property
    def name(self) -> str:
        """A readable file name."""
        parts = [self.method, *(f"without-{name}" for name in self.without)]
        parts += [f"{name}-{value}" for name, value in self.switches]
        if self.backbone != "e5-small-q4":
            parts.append(Path(self.backbone).stem)
        return "_".join([*parts, f"seed{self.seed}"]).replace("/", "-")

    @property
    def place(self) -> str:
        """The folder's name under ``results`` and ``runs``: the protocol, without the path where it is a folder."""
        return Path(self.protocol).resolve().name

    @property
    def fingerprint(self) -> str:
        """A key of everything that shapes the result."""
        text = json.dumps(asdict(self), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def experiment(protocol: str, method: str, **changes) -> Experiment:
    """An experiment with its protocol's optimisation settings; ``changes`` overrule single fields.

    Raises:
        ValueError: ``protocol`` is neither a known name nor a folder; or see :class:`Experiment`.
    """
    if protocol not in SETTINGS and not Path(protocol).is_dir():
        raise ValueError(f"unknown protocol {protocol!r}; the protocols are {', '.join(SETTINGS)}, or a folder")
    return Experiment(protocol, method, **{**SETTINGS.get(protocol, FOLDER_SETTINGS), **changes})


def training_parts(exp: Experiment, data: ProtocolData, tokenizer: PreTrainedTokenizerBase) -> list[Part]:
    """The rows a method trains on: English alone; the union, each row alone; or English rows and pairs.

    Raises:
        CorpusError: the data has no training questions.
    """
    if not data.train:
        raise CorpusError(f"protocol {data.name!r} has no training questions; add train.en.json, see data/README.md")
    cache = window_cache()
    english = build_windows(data.train, tokenizer, cache=cache, texts=False)
    parts = [Part("en", english)]
    if exp.method == "zero-shot":
        return parts
    source = english
    if data.parallel_source is not data.train:
        source = build_windows(data.parallel_source, tokenizer, cache=cache, texts=False)
    for language in data.parallel:  # not items(): the texts of one language at a time
        target = build_windows(data.parallel[language], tokenizer, cache=cache, texts=False)
        if exp.method == "trans-train":
            parts.append(Part(language, target))
        else:
            parts.append(Part(language, target, source, pair_windows(target, source, by_answer=True)))
    return parts


def step_count(exp: Experiment, data: ProtocolData, tokenizer: PreTrainedTokenizerBase) -> int:
    """Optimiser steps: the epochs over English rows and pairs together, whatever the method reads of them."""
    rows = sum(len(part.target) for part in training_parts(replace_method(exp, "trans-train"), data, tokenizer))
    return max(1, round(exp.epochs * rows / exp.batch_size))


def replace_method(exp: Experiment, method: str) -> Experiment:
    """The same experiment with another method, the paper's variant of it."""
    return replace(exp, method=method, without=(), switches=())


def english_start(exp: Experiment, data: ProtocolData, progress: bool) -> Path:
    """Weights after ``english_epochs`` on the source language alone, trained once for all methods."""
    start = replace_method(exp, "zero-shot")
    folder = RUNS / exp.place / f"english_{start.fingerprint}"
    weights = folder / "model.safetensors"
    if not weights.exists():
        model, tokenizer = _new_model(start, data)
        parts = training_parts(start, data, tokenizer)
        steps = max(1, round(exp.english_epochs * len(parts[0].target) / exp.batch_size))
        if progress:
            print(f"English first, for all methods alike: {steps} steps")
        Trainer(model, parts, _training_config(start, steps), tokenizer.pad_token_id, folder).train(progress)
        temporary = weights.with_name(".model.part")
        save_file(model.state_dict(), str(temporary))
        temporary.replace(weights)
    return weights


def _new_model(exp: Experiment, data: ProtocolData):
    torch.manual_seed(exp.seed)
    return XStaForQuestionAnswering.from_backbone(
        exp.backbone, exp.model_config(), languages=["en", *data.parallel], dropout=exp.dropout
    )


def _training_config(exp: Experiment, steps: int) -> TrainingConfig:
    return TrainingConfig(
        steps=steps,
        batch_size=exp.batch_size,
        learning_rate=exp.learning_rate,
        seed=exp.seed,
        precision=exp.precision,
        evaluate_every=0 if exp.protocol == "demo" else max(1, -(-steps // 2)),
        save_every=0 if exp.protocol == "demo" else 100,
    )


def train_experiment(exp: Experiment, data: ProtocolData, progress: bool = True):
    """Train (or load) an experiment's model.

    Returns:
        ``(model, tokenizer, result)``; the model's folder is ``runs/<protocol>/<name>_<fingerprint>/model``.
    """
    folder = run_folder(exp)
    if is_trained(exp):
        return (*load_run(exp), TrainingResult(**json.loads((folder / "training.json").read_text("utf-8"))))
    shutil.rmtree(folder / "predictions", ignore_errors=True)  # of another model, if any
    model, tokenizer = _new_model(exp, data)
    if exp.english_epochs:
        missing, unexpected = model.load_state_dict(load_file(str(english_start(exp, data, progress))), strict=False)
        if unexpected:
            raise ValueError(f"the English start has weights that the model lacks: {unexpected[:3]}")
    parts = training_parts(exp, data, tokenizer)
    config = _training_config(exp, step_count(exp, data, tokenizer))

    def evaluate() -> float:
        metrics = evaluate_model(model, tokenizer, data.validation, progress=progress).metrics
        return sum(values["f1"] for values in metrics.values()) / len(metrics)

    trainer = Trainer(model, parts, config, tokenizer.pad_token_id, folder, evaluate, run=exp.fingerprint)
    if progress:
        print(f"{exp.method} ({exp.protocol}): {len(trainer.rows)} rows, {config.steps} steps of {config.batch_size}")
    result = trainer.train(progress)
    write_text_atomically(folder / "training.json", json.dumps(asdict(result)))
    card = (
        f"Method {exp.method}, protocol {exp.protocol}, backbone {exp.backbone}, seed {exp.seed}, {config.steps} steps."
    )
    model.save_pretrained(folder / "model", tokenizer=tokenizer, card=card)
    return model, tokenizer, result


def run_folder(exp: Experiment) -> Path:
    """Where an experiment's log, checkpoints and model lie."""
    return RUNS / exp.place / f"{exp.name}_{exp.fingerprint}"


def load_run(exp: Experiment):
    """``(model, tokenizer)`` of an experiment trained before on this machine.

    Raises:
        FileNotFoundError: it was not.
    """
    folder = run_folder(exp) / "model"
    if not is_trained(exp):
        command = f"xsta train --protocol {exp.protocol} --method {exp.method}"
        raise FileNotFoundError(f"{folder}: not trained on this machine yet; run '{command}' first")
    return XStaForQuestionAnswering.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)


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
    exp: Experiment, data: ProtocolData | None = None, progress: bool = True, results: Path = RESULTS
) -> list[Path]:
    """Train, evaluate with the source (a method that reads pairs) and without, write; returns the paths."""
    origin = provenance()  # of the code as it was loaded
    data = data or load_protocol(exp.protocol)
    model, tokenizer, training = train_experiment(exp, data, progress)
    beside = next((test.source_name for test in data.tests if test.source), "none")
    written = []
    for source in dict.fromkeys((beside, "none")) if exp.model_config().reads_pairs else ("none",):
        evaluations, seconds = {}, 0.0
        for test in data.tests:
            if progress:
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
        written.append(write_result(result_path(exp, source, results), record, evaluations))
    return written


def load_or_run(exp: Experiment, progress: bool = True) -> list[dict]:
    """The results of an experiment: read if its fingerprint is among the committed ones, else measured now."""
    found = [result for result in load_results(exp.place) if result["fingerprint"] == exp.fingerprint]
    if not found:
        found = [json.loads(path.read_text("utf-8")) for path in run_experiment(exp, progress=progress)]
    return found


def is_trained(exp: Experiment) -> bool:
    """Whether :func:`load_run` will find the experiment's model on this machine."""
    return (run_folder(exp) / "model" / "config.json").exists()


def demo_model(small: bool = False):
    """``(model, tokenizer)`` of the demo's X-STA run; where that is missing (or ``small``) of a few live steps."""
    exp = experiment("demo", "x-sta")
    if small or not is_trained(exp):
        exp = experiment("demo", "x-sta", english_epochs=0.1, epochs=0.02)
    model, tokenizer, _ = train_experiment(exp, load_protocol("demo"))
    return model, tokenizer
