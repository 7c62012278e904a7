"""An experiment's run on this machine, in ``runs/<protocol>/<name>_<fingerprint>/``: rows, training, model."""

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from . import live, parallel
from .batching import Part, epoch_batches, rows_of
from .checkpoints import replace_folder
from .corpus import CorpusError, write_text_atomically
from .evaluation import ROOT, evaluate_model, provenance
from .experiment_config import Experiment, experiment, replace_method
from .features import build_windows, pair_windows, window_cache
from .machine import peak_memory_bytes, release_memory
from .modeling import XStaForQuestionAnswering
from .protocols import ProtocolData, load_protocol
from .training import Trainer
from .training_config import TrainingConfig, TrainingResult

RUNS = ROOT / "runs"


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
        if not len(target):
            continue
        if exp.method == "trans-train":
            parts.append(Part(language, target))
            continue
        back = ()
        if exp.method == "x-mixup" and language in data.back_translated:
            english_again = build_windows(data.back_translated[language], tokenizer, cache=cache, texts=False)
            back = (english_again, pair_windows(target, english_again, by_answer=False))
        parts.append(Part(language, target, source, pair_windows(target, source, by_answer=True), *back))
    return parts


def step_count(exp: Experiment, data: ProtocolData, tokenizer: PreTrainedTokenizerBase) -> int:
    """Optimiser steps: those asked for, or the epochs over English rows and pairs, whatever the method reads."""
    if exp.steps:
        return exp.steps
    if exp.tokens_per_batch:
        parts = training_parts(replace_method(exp, "x-sta"), data, tokenizer)
        batches = epoch_batches(parts, rows_of(parts), exp.batch_size, exp.seed, 0, exp.tokens_per_batch)
        return max(1, round(exp.epochs * len(batches)))
    rows = sum(len(part.target) for part in training_parts(replace_method(exp, "trans-train"), data, tokenizer))
    return max(1, round(exp.epochs * rows / exp.batch_size))


def english_start(exp: Experiment, data: ProtocolData, progress: bool) -> Path:
    """Weights after ``english_epochs`` on the source language alone, trained once for all methods."""
    start = replace_method(exp, "zero-shot")
    folder = RUNS / exp.place / f"english_{start.fingerprint}_{data.digest()[:8]}"
    weights = folder / "model.safetensors"
    if not parallel.agreed(weights.exists()):
        model, tokenizer = _new_model(start, data)
        parts = training_parts(start, data, tokenizer)
        steps = max(1, round(exp.english_epochs * len(parts[0].target) / exp.batch_size))
        _say(progress, f"English first, for all methods alike: {steps} steps")
        Trainer(model, parts, _training_config(start, steps), tokenizer.pad_token_id, folder).train(progress)
        if parallel.rank() == 0:
            temporary = weights.with_name(".model.part")
            save_file(model.state_dict(), str(temporary))
            temporary.replace(weights)
        parallel.wait()
    return weights


def _say(progress: bool, text: str) -> None:
    if progress and parallel.rank() == 0:
        print(text)


def _new_model(exp: Experiment, data: ProtocolData):
    release_memory()
    torch.manual_seed(exp.seed)
    return XStaForQuestionAnswering.from_backbone(
        exp.backbone, exp.model_config(), languages=["en", *data.parallel], dropout=exp.dropout
    )


def _training_config(exp: Experiment, steps: int, options: Mapping[str, object] | None = None) -> TrainingConfig:
    values = {
        "steps": steps,
        "batch_size": exp.batch_size,
        "learning_rate": exp.learning_rate,
        "seed": exp.seed,
        "precision": exp.precision,
        "accumulation": exp.accumulation,
        "tokens_per_batch": exp.tokens_per_batch,
        "share_source": exp.share_source,
        "evaluate_every": 0 if exp.protocol == "demo" else max(1, -(-steps // 2)),
        "save_every": 0 if exp.protocol == "demo" else 100,
    }
    return TrainingConfig(**values | dict(options or {}))


def train_experiment(
    exp: Experiment,
    data: ProtocolData,
    progress: bool = True,
    options: Mapping[str, object] | None = None,
    on_log: Callable[[Sequence[dict]], None] | None = None,
):
    """Train (or load) an experiment's model; the same call goes on with a run that was stopped.

    Args:
        exp, data: what to train, on what.
        progress: show bars and a line a log step.
        options: fields of :class:`~xsta_lib.training_config.TrainingConfig` that say how to run, not what:
            ``gradient_checkpointing``, ``compile``, ``tracker``, ``save_every``, ``keep`` and the like.
        on_log: see :class:`~xsta_lib.training.Trainer`; in a notebook a live loss curve, unless told otherwise.

    Returns:
        ``(model, tokenizer, result)``; the model's folder is ``runs/<protocol>/<name>_<fingerprint>/model``.

    Raises:
        ValueError: the model there was trained on other questions than the protocol has now.
    """
    folder = run_folder(exp)
    digest = data.digest()
    if parallel.agreed(is_trained(exp)):
        result = TrainingResult(**json.loads((folder / "training.json").read_text("utf-8")))
        if result.data != digest:
            raise ValueError(
                f"{folder}: trained on other questions than {exp.protocol} has now; delete it to train anew"
            )
        return (*load_run(exp), result)
    if parallel.rank() == 0:
        shutil.rmtree(folder / "predictions", ignore_errors=True)  # of another model, if any
    model, tokenizer = _new_model(exp, data)
    if exp.english_epochs:
        missing, unexpected = model.load_state_dict(load_file(str(english_start(exp, data, progress))), strict=False)
        if unexpected:
            raise ValueError(f"the English start has weights that the model lacks: {unexpected[:3]}")
    with parallel.main_first():  # the others read the windows that rank 0 caches
        parts = training_parts(exp, data, tokenizer)
        config = _training_config(exp, step_count(exp, data, tokenizer), options)

    def evaluate() -> float:
        metrics = evaluate_model(model, tokenizer, data.validation, progress=progress).metrics
        return sum(values["f1"] for values in metrics.values()) / len(metrics)

    if on_log is None and progress and live.in_notebook():
        on_log = live.live_curve()
    pad = tokenizer.pad_token_id
    evaluate = evaluate if data.validation.questions else None
    trainer = Trainer(model, parts, config, pad, folder, evaluate, run=f"{exp.fingerprint} {digest}", on_log=on_log)
    size = f"{exp.tokens_per_batch} tokens" if exp.tokens_per_batch else f"{exp.batch_size} rows"
    _say(progress, f"{exp.method} ({exp.protocol}): {len(trainer.rows)} rows, {config.steps} steps of {size}")
    result = trainer.train(progress)
    result.data, result.peak_memory_bytes, result.provenance = digest, peak_memory_bytes(), provenance()
    if parallel.rank() == 0:
        _keep_run(exp, model, tokenizer, result, config.steps)
    parallel.wait()
    return model, tokenizer, result


def _keep_run(exp: Experiment, model, tokenizer, result: TrainingResult, steps: int) -> None:
    """Write a finished run's log and model; the model's folder appears when it is complete."""
    folder = run_folder(exp)
    write_text_atomically(folder / "training.json", json.dumps(asdict(result)))
    card = f"Method {exp.method}, protocol {exp.protocol}, backbone {exp.backbone}, seed {exp.seed}, {steps} steps."
    temporary = folder / ".model.part"
    model.save_pretrained(temporary, tokenizer=tokenizer, card=card)
    replace_folder(temporary, folder / "model")


def run_folder(exp: Experiment) -> Path:
    """Where an experiment's log, checkpoints and model lie."""
    return RUNS / exp.place / f"{exp.name}_{exp.fingerprint}"


def load_run(exp: Experiment):
    """``(model, tokenizer)`` of an experiment trained before on this machine, the model on its device.

    Raises:
        FileNotFoundError: it was not.
    """
    folder = run_folder(exp) / "model"
    if not is_trained(exp):
        command = f"xsta train --protocol {exp.protocol} --method {exp.method}"
        raise FileNotFoundError(f"{folder}: not trained on this machine yet; run '{command}' first")
    model = XStaForQuestionAnswering.from_pretrained(folder).to(parallel.device())
    return model, AutoTokenizer.from_pretrained(folder)


def is_trained(exp: Experiment) -> bool:
    """Whether :func:`load_run` will find the experiment's model on this machine."""
    return (run_folder(exp) / "model" / "config.json").exists()


def demo_model(small: bool = False):
    """``(model, tokenizer)`` of the demo's X-STA run, on the CPU; of a few live steps if it is missing or ``small``."""
    exp = experiment("demo", "x-sta")
    if small or not is_trained(exp):
        exp = experiment("demo", "x-sta", english_epochs=0.1, epochs=0.02, precision="fp32")
    model, tokenizer, _ = train_experiment(exp, load_protocol("demo"), progress=not small)
    return model.to("cpu"), tokenizer
