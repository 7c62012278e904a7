"""A large language model under a protocol: its questions asked, scored and written as a result beside the others."""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from ..baselines.llm import LONGEST, PROMPT, ask_all, key_of, read_answers
from ..data.protocols import TestSet, load_protocol
from ..data.squad import Question, name_first
from ..prediction.evaluation import Evaluation, provenance, score_answers
from ..prediction.metrics import normalise
from ..prediction.server import TOO_LONG, open_client
from .experiment import Experiment, experiment, place_of
from .results import read_result, results_folder, write_result
from .run import data_key, refuse_other_data, runs_folder


def answers_path(protocol: str, model: str) -> Path:
    """Where a model's answers lie, one a line."""
    return runs_folder() / place_of(protocol) / f"llm_{_tag(model)}" / "answers.jsonl"


def _tag(model: str) -> str:
    return re.sub(r"[^\w.-]+", "-", model)


def chosen_part(test: TestSet, languages: Sequence[str], count: int) -> TestSet:
    """Some languages of a test set and of each so many questions: those of the same ids in all, as a hash draws them.

    Args:
        languages: empty takes all.
        count: 0 takes all.
    """
    found = {}
    for language, questions in test.questions.items():
        if languages and language not in languages:
            continue
        drawn = sorted(questions, key=lambda question: hashlib.sha256(question.id.encode()).hexdigest())
        kept = {question.id for question in drawn[: count or None]}
        found[language] = [question for question in questions if question.id in kept]
    return replace(test, questions=found, source=None, source_name="none")


def contains_gold(answer: str, question: Question, language: str, rule: str) -> bool:
    """Whether an answer holds a gold text, both as EM compares them: free text may say more around it.

    A number must be whole (7 is not in 1817); words may go on, since many languages inflect them.
    """
    text = " ".join(normalise(answer, language, rule))
    golds = (" ".join(normalise(gold, language, rule)) for gold in question.golds)

    def holds(gold: str) -> bool:
        before, after = r"(?<!\d)" * gold[0].isdecimal(), r"(?!\d)" * gold[-1].isdecimal()
        return re.search(before + re.escape(gold) + after, text) is not None

    return any(gold and holds(gold) for gold in golds)


def kept_llm_answers(protocol: str, test: TestSet) -> dict[str, dict[str, dict[str, str]]]:
    """What large language models answered on this machine, by model, language and id; only to the test's questions."""
    found: dict[str, dict[str, dict[str, str]]] = {}
    for path in sorted((runs_folder() / place_of(protocol)).glob("llm_*/answers.jsonl")):
        known = read_answers(path)
        for model in dict.fromkeys(line["model"] for line in known.values()):
            for language, questions in test.questions.items():
                keys = {question.id: key_of(model, question) for question in questions}
                texts = {name: known[key]["answer"] for name, key in keys.items() if key in known}
                found.setdefault(model, {})[language] = texts
    return found


def run_llm(
    protocol: str,
    endpoint: str,
    model: str,
    languages: Sequence[str] = (),
    questions: int = 0,
    source_language: str = "en",
    progress: bool = True,
) -> tuple[Path, dict]:
    """Ask a model a protocol's test questions, score its answers, write the result; returns its path and the result.

    Args:
        protocol: a name or a folder.
        endpoint: of the server, such as ``http://localhost:8000/v1``.
        model: as the server calls it.
        languages, questions: a part of the test sets; empty and 0 take all. A part has a result of its own name, which
            no table sets beside whole ones.
        source_language: the folder's, of the runs that the answers stand beside; the model sees no source.
        progress: as for :func:`~.run.run_experiment`.

    Raises:
        ValueError: an endpoint that is none; no test set has one of the languages; see also ``refuse_other_data``.
        AskingError: the server cannot be asked any further.
    """
    exp = experiment(protocol, "zero-shot", source_language=source_language)
    client, data = open_client(endpoint), load_protocol(protocol, source_language=source_language)
    refuse_other_data(protocol, data)
    known = dict.fromkeys(language for test in data.tests for language in test.questions)
    if unknown := [language for language in languages if language not in known]:
        raise ValueError(f"--languages {' '.join(unknown)}: protocol {protocol!r} tests {', '.join(known)}")
    parts = [chosen_part(test, languages, questions) for test in data.tests if test.source_name != "other"]
    parts = [part for part in parts if any(part.questions.values())]
    asked = {key_of(model, q): q for part in parts for found in part.questions.values() for q in found}
    answers = ask_all(client, model, asked, answers_path(protocol, model), progress=progress)
    evaluations, shares = {}, {}
    for part in parts:
        texts = {
            language: {question.id: answers[key_of(model, question)]["answer"] for question in found}
            for language, found in part.questions.items()
        }
        evaluations[part.name] = {"answer": score_answers(part, texts)}
        shares[part.name] = {
            language: 100
            * float(np.mean([contains_gold(texts[language][q.id], q, language, part.rule) for q in found]))
            for language, found in part.questions.items()
        }
    record = _record(exp, model, sorted(languages), questions, answers)
    record |= {"data": data_key(data), "contains_gold": shares}
    path = _write(exp, record, evaluations)
    return path, read_result(path)


def _record(exp: Experiment, model: str, languages: list[str], questions: int, answers: Mapping[str, dict]) -> dict:
    """What was asked, where, and what it took. Nothing is drawn: the seed is only that of the runs it stands beside."""
    config = {"protocol": exp.protocol, "method": "llm", "backbone": exp.backbone, "model": model}
    config |= {
        "questions": questions,
        "languages": languages,
        "source_language": exp.source_language,
        "prompt": PROMPT,
        "temperature": 0,
        "max_tokens": LONGEST,
    }
    named = {**config, "protocol": exp.place}
    own = {"without": [], "seed": exp.training.seed, "source": "none", "source_language": exp.source_language}
    totals = {
        name: sum(line.get(name, 0) for line in answers.values())
        for name in ("prompt_tokens", "completion_tokens", "seconds")
    }
    too_long = [line["id"] for line in answers.values() if line["finish"] == TOO_LONG]
    empty = sum(not line["answer"] for line in answers.values()) - len(too_long)
    return {
        **{name: named[name] for name in ("protocol", "method", "backbone", "model")},
        **own,
        "config": config,
        "fingerprint": hashlib.sha256(json.dumps(named, sort_keys=True).encode()).hexdigest()[:16],
        "endpoint": ", ".join(sorted({line["endpoint"] for line in answers.values()})),
        "sequences": len(answers),
        "tokens": totals["prompt_tokens"] + totals["completion_tokens"],
        **totals,
        "refused": empty,
        "own_temperature": sum(line.get("own_temperature", False) for line in answers.values()),
        "cut": sum(line["finish"] == "length" for line in answers.values()),
        "too_long": len(too_long),
        "too_long_ids": name_first(too_long, len(too_long)),
        "provenance": provenance(),
    }


def _write(exp: Experiment, record: dict, evaluations: Mapping[str, Mapping[str, Evaluation]]) -> Path:
    config = record["config"]
    name = "_".join(
        [f"llm_{_tag(record['model'])}"]
        + [f"questions-{config['questions']}"] * bool(config["questions"])
        + [f"languages-{'-'.join(config['languages'])}"] * bool(config["languages"])
        + [f"source_language-{exp.source_language}"] * (exp.source_language != "en")
    )
    return write_result(results_folder() / exp.place / f"{name}.json", record, evaluations)
