"""One experiment from data to result files: rows, steps, training, evaluation; and grids, measured where missing."""

import hashlib
import json
import shutil
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from tqdm.auto import tqdm
from transformers import AutoModelForQuestionAnswering, AutoTokenizer, PreTrainedTokenizerBase

from ..baselines.mixup import gold_probability
from ..data.batches import Part, row_sides, rows_of
from ..data.files import home, read_json, replacing, weights_key, writable, write_text_atomically
from ..data.folders import language_name
from ..data.protocols import ProtocolData, load_protocol
from ..data.squad import CorpusError
from ..data.windows import WindowSpec, build_windows, fingerprint, pair_windows, window_cache
from ..encoders.backbones import local_path
from ..model.modeling import XStaForQuestionAnswering
from ..prediction.evaluation import evaluate_model, evaluate_once, provenance
from ..training import ranks
from ..training.configuration import TrainingConfig
from ..training.log import TrainingResult
from ..training.machine import peak_memory_bytes, release_memory
from ..training.trainer import Trainer
from .experiment import METHODS, ROW_BY_ROW, SETTINGS, SOURCE_ONLY, Experiment, grid, place_of
from .results import load_all_results, results_folder, write_articles, write_result
from .stages import add_stages, make_trainer, spent


def training_parts(exp: Experiment, data: ProtocolData, tokenizer: PreTrainedTokenizerBase) -> list[Part]:
    """The rows a method trains on: the source alone; the union, each row alone; or source rows and pairs.

    Raises:
        CorpusError: the data has no training questions.
    """
    if not data.train:
        remedy = f"add train.{data.source_language}.json, see data/README.md"
        raise CorpusError(f"protocol {data.name!r} has no training questions; {remedy}")
    windows = partial(build_windows, tokenizer=tokenizer, cache=window_cache(), texts=False)
    own = windows(data.train)
    parts = [Part(data.source_language, own)]
    if exp.method in SOURCE_ONLY:
        return parts
    source = own if data.parallel_source is data.train else windows(data.parallel_source)
    for language in data.parallel:  # not items(): the texts of one language at a time
        target = windows(data.parallel[language])
        if not len(target):
            continue
        if exp.method in ROW_BY_ROW:
            parts.append(Part(language, target))
            continue
        back = ()
        if exp.method.startswith("x-mixup") and language in data.back_translated:
            again = windows(data.back_translated[language])
            back = (again, pair_windows(target, again, by_answer=False))
        parts.append(Part(language, target, source, pair_windows(target, source, by_answer=True), *back))
    return parts


def count_rows(data: ProtocolData, tokenizer: PreTrainedTokenizerBase) -> dict[str, int]:
    """Rows of the pair setting by language, the source too, for a method that does not read the translations.

    Counted one language at a time, and once: the counts are kept beside the windows.
    """
    key = json.dumps([data.name, data.digest(), [*data.parallel], fingerprint([], tokenizer, WindowSpec())])
    path = window_cache() / f"rows-{hashlib.sha256(key.encode()).hexdigest()[:32]}.json"
    with suppress(OSError, ValueError, TypeError, AttributeError):  # missing or damaged: counted anew
        return json.loads(path.read_text("utf-8"))
    windows = partial(build_windows, tokenizer=tokenizer, cache=window_cache(), texts=False)
    rows = {data.source_language: len(windows(data.train))}
    rows |= {language: len(windows(data.parallel[language])) for language in data.parallel}
    write_text_atomically(path, json.dumps(rows))
    return rows


def step_count(
    exp: Experiment, data: ProtocolData, tokenizer: PreTrainedTokenizerBase, parts: Sequence[Part] = ()
) -> int:
    """Optimiser steps: those asked for, or the epochs over source rows and pairs, whatever the method reads.

    With ``equal_tokens`` there are as many more as pairs hold more tokens. ``parts`` are the experiment's
    :func:`training_parts`; with ``steps`` alone they are not needed.
    """
    steps = float(exp.training.steps)
    if not steps:
        reads_all = exp.method not in SOURCE_ONLY
        rows = [len(part.target) for part in parts] if reads_all else count_rows(data, tokenizer).values()
        steps = exp.epochs * sum(-(-count // exp.training.batch_size) for count in rows)
    if exp.equal_tokens:
        pairs = training_parts(replace(exp, method="pairs", equal_tokens=False), data, tokenizer)
        steps *= count_tokens(pairs) / count_tokens(parts)
    return max(1, round(steps))


def count_tokens(parts: Sequence[Part]) -> int:
    """Tokens of all rows of some parts, both sides of pairs."""
    return sum(sum(row_sides(parts, row)) for row in rows_of(parts))


def runs_folder() -> Path:
    """Where runs lie: see :func:`~xsta_lib.data.files.home`."""
    return home() / "runs"


def run_folder(exp: Experiment) -> Path:
    """Where an experiment's log, checkpoints, answers and model lie."""
    return runs_folder() / exp.place / f"{exp.name}_{exp.fingerprint}"


def backbone_key(backbone: str) -> str:
    """A key of a local backbone's weights; empty for one that has a name, whose weights stay, or is not here."""
    path = local_path(backbone)
    return weights_key(path) if path else ""


def new_model(exp: Experiment, data: ProtocolData) -> tuple[XStaForQuestionAnswering, PreTrainedTokenizerBase]:
    """An experiment's model before training, the same for the same seed, and its tokenizer.

    Raises:
        ValueError: the data's source language is not the experiment's.
    """
    if data.source_language != exp.source_language:
        languages = f"source language is {data.source_language!r}, the experiment's {exp.source_language!r}"
        raise ValueError(f"{data.name}: its {languages}; load the protocol with the experiment's")
    release_memory()
    torch.manual_seed(exp.training.seed)
    languages = [data.source_language, *data.parallel]
    return METHODS[exp.method][0].from_backbone(exp.backbone, exp.model_config(), languages, dropout=exp.dropout)


def _config(exp: Experiment, steps: int) -> TrainingConfig:
    """The settings with a number of steps, and of a protocol other than the demo with two evaluations on the way."""
    every = exp.training.evaluate_every or (0 if exp.protocol == "demo" else -(-steps // 2))
    return replace(exp.training, steps=steps, evaluate_every=every)


def _say(progress: bool, text: str) -> None:
    if progress and ranks.rank() == 0:
        print(text)


def source_start(exp: Experiment, data: ProtocolData, progress: bool) -> Path:
    """Weights after ``english_epochs`` on the source language alone, trained once for all methods."""
    start = exp.on_the_source()
    start = replace(start, training=replace(start.training, tracker="", evaluate_every=0))  # its last weights are kept
    language = language_name(exp.source_language)
    read = f"{data.digest()[:8]}{backbone_key(exp.backbone)[:8]}"
    folder = runs_folder() / exp.place / f"{language.lower()}_{start.fingerprint}_{read}"
    weights = folder / "model.safetensors"
    if not ranks.agreed(weights.exists()):
        model, tokenizer = new_model(start, data)
        parts = training_parts(start, data, tokenizer)
        steps = max(1, round(exp.english_epochs * len(parts[0].target) / exp.training.batch_size))
        _say(progress, f"{language} first, for all methods alike: {steps} steps")
        Trainer(model, parts, _config(start, steps), tokenizer.pad_token_id, folder).train(progress)
        if ranks.rank() == 0:
            with replacing(weights) as temporary:
                save_file(model.state_dict(), str(temporary))
        ranks.wait()
    return weights


def started_model(
    exp: Experiment, data: ProtocolData, progress: bool
) -> tuple[XStaForQuestionAnswering, PreTrainedTokenizerBase]:
    """:func:`new_model` with the weights of its start on the source, if the experiment has one."""
    model, tokenizer = new_model(exp, data)
    if exp.english_epochs:
        missing, unexpected = model.load_state_dict(load_file(str(source_start(exp, data, progress))), strict=False)
        if unexpected:
            raise ValueError(f"the start on the source has weights that the model lacks: {unexpected[:3]}")
    return model, tokenizer


def train_experiment(
    exp: Experiment, data: ProtocolData, progress: bool = True
) -> tuple[XStaForQuestionAnswering, PreTrainedTokenizerBase, TrainingResult]:
    """Train (or load) an experiment's model; the same call goes on with a run that was stopped.

    Args:
        exp, data: what to train, on what.
        progress: see :class:`~xsta_lib.training.trainer.Trainer`.

    Returns:
        ``(model, tokenizer, result)``; the model lies in ``model`` of :func:`run_folder`.

    Raises:
        ValueError: the model there was trained on or chosen by other questions, or made from other weights; see also
            :func:`new_model`.
    """
    folder, weights = run_folder(exp), backbone_key(exp.backbone)
    key = f"{data.digest()} {data.selection()} {weights}".rstrip()
    if ranks.agreed(is_trained(exp)):
        return _trained(exp, key, weights)
    if ranks.rank() == 0:
        shutil.rmtree(folder / "predictions", ignore_errors=True)  # of another model, if any
    model, tokenizer = started_model(exp, data, progress)
    with ranks.main_first():  # the others read the windows that rank 0 caches
        parts = training_parts(exp, data, tokenizer)
        config = _config(exp, step_count(exp, data, tokenizer, parts))

    def evaluate() -> float:
        metrics = evaluate_model(model, tokenizer, data.validation, progress=progress).metrics
        return sum(values["f1"] for values in metrics.values()) / len(metrics)

    kept = {"run": f"{exp.fingerprint} {key}", "gold_probability": gold_probability}
    plain = exp.on_the_source()
    stages = {
        "first": lambda: train_experiment(plain, data, progress)[::2],
        "fresh": lambda: started_model(plain, data, progress)[0],
    }
    given = exp.method, model, parts, config, data, tokenizer, folder
    kept |= {"evaluate": evaluate} if data.validation.questions else {}
    trainer, costs = make_trainer(*given, **stages, progress=progress, **kept)
    steps = f"{trainer.config.steps} steps of {config.batch_size} rows"
    _say(progress, f"{exp.method} ({exp.protocol}): {len(trainer.rows)} rows, {steps}")
    result = trainer.train(progress)
    add_stages(result, costs)
    result.data, result.peak_memory_bytes, result.provenance = key, peak_memory_bytes(), provenance()
    if ranks.rank() == 0:
        write_text_atomically(folder / "training.json", json.dumps(asdict(result)))
        what = f"Method {exp.method}, protocol {exp.protocol}, backbone {exp.backbone}, seed {config.seed}"
        with replacing(folder / "model") as temporary:  # appears when it is complete
            model.save_pretrained(temporary, tokenizer=tokenizer, card=f"{what}, {config.steps} steps.")
        shutil.rmtree(folder / "stages", ignore_errors=True)  # what they left is in the model now
    ranks.wait()
    return model, tokenizer, result


def _trained(
    exp: Experiment, key: str, weights: str
) -> tuple[XStaForQuestionAnswering, PreTrainedTokenizerBase, TrainingResult]:
    """What :func:`train_experiment` left, if its data has this key."""
    folder = run_folder(exp)
    result = TrainingResult(**read_json(folder / "training.json"))
    if result.data != key:
        now = f"{exp.protocol} has now" + (f", or with other weights than {exp.backbone} has" if weights else "")
        raise ValueError(f"{folder}: made with other questions than {now}; delete it to train anew")
    return (*load_run(exp), result)


def is_trained(exp: Experiment) -> bool:
    """Whether :func:`load_run` will find the experiment's model on this machine."""
    return (run_folder(exp) / "model" / "config.json").exists()


def load_run(exp: Experiment) -> tuple[XStaForQuestionAnswering, PreTrainedTokenizerBase]:
    """``(model, tokenizer)`` of an experiment trained before on this machine, the model on its device.

    Raises:
        FileNotFoundError: it was not.
    """
    folder = run_folder(exp) / "model"
    if not is_trained(exp):
        command = f"xsta train --protocol {exp.protocol} --method {exp.method}"
        command += f" --source {exp.source_language}" * (exp.source_language != Experiment.source_language)
        raise FileNotFoundError(f"{folder}: not trained on this machine yet; run '{command}' first")
    model = AutoModelForQuestionAnswering.from_pretrained(folder).to(ranks.device())
    return model, AutoTokenizer.from_pretrained(folder)


def result_path(exp: Experiment, source: str, results: Path | None = None) -> Path:
    """Where a result goes: a method that reads pairs has one result with its source and one without."""
    alone = "_target-only" if exp.model_config().reads_pairs and source == "none" else ""
    return (results or results_folder()) / exp.place / f"{exp.name}{alone}.json"


def describe(exp: Experiment, source: str) -> dict:
    """The fields of a result that say what was run."""
    config = exp.to_dict()
    own = {name: config[name] for name in ("method", "without", "backbone", "seed", "source_language")}
    record = {"protocol": exp.place, **own, "source": source, "config": config, "fingerprint": exp.fingerprint}
    return record | ({"weights": weights} if (weights := backbone_key(exp.backbone)) else {})


def data_key(data: ProtocolData) -> str:
    """A key of a protocol's questions, training and every test, and last of its selection; it is kept with a result."""
    return " ".join([data.digest(), *(test.digest() for test in data.tests), data.selection()])


def refuse_other_data(protocol: str, data: ProtocolData, results: Path | None = None) -> None:
    """Refuse files that are not those that a protocol's results were measured on: they would not compare.

    Results of older versions lack the key's last word, or, of a protocol in the box or a published one, all of it.

    Raises:
        ValueError: ``results/<protocol>`` holds a result of other questions, or of another rule of scoring.
    """
    key = data_key(data)
    right = {key, key.rpartition(" ")[0]} | ({None} if protocol in SETTINGS else set())
    same = [r for r in load_all_results(protocol, results) if r["source_language"] == data.source_language]
    if any(result.get("data") not in right for result in same):
        place = (results or results_folder()) / place_of(protocol)
        raise ValueError(f"{place}: measured on other files than {protocol} has now; move it away to measure anew")


def _provenance(found: dict[str, dict]) -> dict:
    """Where the last test set's answers come from; ``others``, where there are any, are those sets' that differ."""
    last = [*found.values()][-1] if found else {}
    others = {name: where for name, where in found.items() if where != last}
    return last | ({"others": others} if others else {})


def known_results(experiments: Sequence[Experiment]) -> list[dict]:
    """The results of some experiments of one protocol, source language and backbone that were measured before.

    Raises:
        ValueError: see :func:`refuse_other_data`; a local backbone has other weights now.
    """
    first, wanted = experiments[0], {exp.fingerprint for exp in experiments}
    found = [result for result in load_all_results(first.protocol) if result["fingerprint"] in wanted]
    if found and first.protocol not in SETTINGS:  # published files need not be here
        refuse_other_data(first.protocol, load_protocol(first.protocol, source_language=first.source_language))
    key = backbone_key(first.backbone)
    if key and any(result.get("weights", key) != key for result in found):
        measured = f"measured with other weights than {first.backbone} has now"
        raise ValueError(f"{results_folder() / first.place}: {measured}; move it away to measure anew")
    return found


def missing(experiments: Sequence[Experiment]) -> list[Experiment]:
    """Those without a committed result."""
    known = {result["fingerprint"] for result in known_results(experiments)}
    return [exp for exp in experiments if exp.fingerprint not in known]


def run_experiment(
    exp: Experiment, data: ProtocolData | None = None, progress: bool = True, results: Path | None = None
) -> list[Path]:
    """Train, evaluate with the source (a method that reads pairs) and without, write; returns the paths.

    Under ``torchrun`` every process calls this.

    Raises:
        ValueError: see :func:`refuse_other_data` and :func:`train_experiment`.
    """
    ranks.start()
    provenance()  # looked up once, of the code as it was loaded
    window_cache()  # is there to be written, or it is said before any work
    with ranks.main_first():
        data = data or load_protocol(exp.protocol, source_language=exp.source_language)
    refuse_other_data(exp.protocol, data, results)
    for folder in (runs_folder(), results or results_folder()):
        writable(folder, "XSTA_HOME")
    model, tokenizer, training = train_experiment(exp, data, progress)
    release_memory()  # the optimiser's: answering needs none
    beside = next((test.source_name for test in data.tests if test.source), "none")
    records = []
    for source in dict.fromkeys((beside, "none")) if exp.model_config().reads_pairs else ("none",):
        evaluations, kept = {}, {}
        for test in data.tests:
            if test.source_name == "other" and source == "none":
                continue  # the same questions as another set's, which are read alone there
            _say(progress, f"{exp.method}: {test.name}, source {source}")
            found = test.source_name if test.source and source != "none" else "none"  # without source it is read once
            readings = ("calibrated", "target", "teacher") if found != "none" else ("calibrated",)
            answers = run_folder(exp) / "predictions"
            given = answers, model, tokenizer, test, found, readings, progress
            evaluations[test.name], kept[test.name] = evaluate_once(*given)
        record = describe(exp, source) | {
            "data": data_key(data),
            **spent(training),
            "extra": training.extra,
            "evaluation_seconds": sum(part["seconds"] for part in kept.values()),
            "peak_memory_bytes": max(part["peak_memory_bytes"] for part in (vars(training), *kept.values())),
            "best_step": training.best_step,
            "validation_f1": training.best_score,
            "log": training.log,
            "files": [str(report) for report in data.reports],
            "provenance": training.provenance,
            "evaluation_provenance": _provenance({name: part["provenance"] for name, part in kept.items()}),
        }
        records.append((result_path(exp, source, results), record, evaluations))
    # together at the end: a run with one of its results would count as measured
    if ranks.rank() == 0:
        write_articles(records[0][0].parent, data.tests)
    written = [write_result(*found) if ranks.rank() == 0 else found[0] for found in records]
    ranks.wait()
    return written


def run_grid(name: str, protocol: str, backbone: str = Experiment.backbone, source_language: str = "en") -> list[dict]:
    """Measure what is missing of a grid, one experiment after the other, and return all its results.

    Stopped at any moment, the same call goes on where it was: results, checkpoints and answers are kept as they come.
    Arguments as for :func:`~.experiment.grid`.
    """
    experiments = grid(name, protocol, backbone, source_language)
    todo, began = missing(experiments), time.perf_counter()
    for number, exp in enumerate(todo):
        spent = time.perf_counter() - began
        left = f", about {tqdm.format_interval(spent / number * (len(todo) - number))} left" if number else ""
        print(f"grid {name} ({protocol}): {number + 1} of {len(todo)} to measure: {exp.name}{left}")
        run_experiment(exp)
    found = known_results(experiments)
    return [result for exp in experiments for result in found if result["fingerprint"] == exp.fingerprint]
