"""What Figures 4 to 6 show of a protocol's trained models, measured once and kept as small files beside the results.

``results/<protocol>/inspection/figure{4,5,6}.json`` hold the numbers and texts behind the pictures and say which models
they come from, so that a reader without those models sees the same. They quote questions and passages of the test set:
of data sets other than this project's own at most two passages, each in English and in one other language, with their
source and licence.
"""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from .answering import Predictor
from .cases import Case, find_cases
from .corpus import write_text_atomically
from .evaluation import evaluate_once, kept_answers, provenance
from .experiment_config import Experiment, backbone_tag, experiment, place_of
from .explaining import (
    attention_entropy,
    cosines,
    explain,
    one_per_passage,
    own_means_out,
    question_attention,
    sentence_vectors,
    silhouettes,
    tsne_frame,
)
from .features import window_cache
from .machine import has_bf16
from .protocols import TestSet, load_protocol
from .results import RESULTS
from .runs import is_trained, load_run, run_folder

# Where the texts come from, and the languages whose cases are looked for, in this order (the paper's first).
TEXTS = {
    "demo": ("texts: this project's corpus, CC BY 4.0", ("hi", "vi", "zh", "ar", "de", "es")),
    "xquad": ("texts: XQuAD (Artetxe et al., 2020), CC BY-SA 4.0", ("hi", "th", "vi", "zh")),
}
OWN = "demo"
SENTENCES = 40  # examples that Figure 5 reads, each of another passage, as far as there are so many
ATTENTION_QUESTIONS = 40  # questions behind Figure 4's mean entropies
WITHOUT_TOKENS = ("alignment_token",)


def inspection_path(figure: int, protocol: str, folder: Path = RESULTS, backbone: str | None = None) -> Path:
    """Where a figure's numbers lie, by default those of the protocol's own backbone."""
    tag = backbone_tag(protocol, backbone) if backbone else ""
    return folder / place_of(protocol) / (f"inspection-{tag}" if tag else "inspection") / f"figure{figure}.json"


def read_inspection(figure: int, protocol: str, folder: Path = RESULTS, backbone: str | None = None) -> dict | None:
    """A figure's numbers, or ``None`` where nobody measured them."""
    path = inspection_path(figure, protocol, folder, backbone)
    return json.loads(path.read_text("utf-8")) if path.exists() else None


def _predictor(exp: Experiment) -> Predictor:
    model, tokenizer = load_run(exp)
    return Predictor(model, tokenizer, cache=window_cache(), autocast=has_bf16(model.device))


def _languages(test: TestSet) -> list[str]:
    return [language for language in TEXTS[test.name][1] if language in test.questions]


def inspect_attention(full: Experiment, without: Experiment, test: TestSet) -> dict:
    """Figure 4: cross-attention of one question with and without token alignment, and the mean entropies of some.

    The question is the one whose entropy differs most between the two models, among the first case language's first.
    """
    language = _languages(test)[0]
    english = {question.id: question for question in test.source_of(language)}
    chosen = [q for q in test.questions[language] if q.id in english][:ATTENTION_QUESTIONS]
    found = {}
    for name, exp in (("with token alignment", full), ("without token alignment", without)):
        predictor = _predictor(exp)
        found[name] = [explain(predictor, question, language, english[question.id]) for question in chosen]
    entropies = {name: np.array([attention_entropy(one) for one in several]) for name, several in found.items()}
    most = int(np.abs(np.subtract(*entropies.values())).argmax())
    maps = {name: question_attention(several[most]) for name, several in found.items()}
    return {
        "note": TEXTS[test.name][0],
        "language": language,
        "question": chosen[most].question,
        "source_question": english[chosen[most].id].question,
        "questions": len(chosen),
        "mean_entropy_nats": {name: float(values.mean()) for name, values in entropies.items()},
        "maps": {name: _split(frame) for name, frame in maps.items()},
    }


def _split(frame: pd.DataFrame) -> dict:
    """The frame as ``to_dict("split")`` gives it; columns may repeat, as tokens do, which that function warns about."""
    return {
        "index": list(frame.index),
        "columns": list(frame.columns),
        "data": frame.astype(float).round(5).to_numpy().tolist(),
    }


def attention_maps(record: Mapping) -> dict[str, pd.DataFrame]:
    """The heat maps of :func:`inspect_attention` as :func:`~xsta_lib.model_figures.attention_heatmaps` takes them."""
    return {name: pd.DataFrame(**values) for name, values in record["maps"].items()}


def inspect_sentences(exp: Experiment, test: TestSet) -> dict:
    """Figure 5: t-SNE places of sentence representations, silhouettes and cosines before and after normalisation.

    ``own_means`` has the silhouettes with these texts' own means taken out instead of the stored ones.
    """
    vectors = sentence_vectors(_predictor(exp), one_per_passage(test.questions, SENTENCES))
    frame = tsne_frame(vectors).astype({"x": float, "y": float}).round(3)
    return {
        "silhouettes": silhouettes(vectors).astype(float).round(4).to_dict("split"),
        "own_means": silhouettes(own_means_out(vectors)).astype(float).round(4).to_dict("split"),
        "cosines": cosines(vectors).astype(float).round(4).to_dict("split"),
        "places": frame.to_dict("split", index=False),
    }


def inspect_cases(exp: Experiment, test: TestSet) -> dict:
    """Figures 6 and 9 to 11: cases found by rule, from the answers kept by the run's evaluation.

    Of texts that are not this project's own, only the first language that has a case is kept.
    """
    kept = run_folder(exp) / "predictions", test, test.source_name
    if not kept_answers(*kept):
        evaluate_once(kept[0], *load_run(exp), *kept[1:], ("calibrated", "target", "teacher"))
    found = find_cases(test, kept_answers(*kept)["answers"], _languages(test))
    if test.name != OWN:
        found = [case for case in found if case.language == found[0].language]
    return {"note": TEXTS[test.name][0], "cases": [case.to_dict() for case in found]}


def read_cases(record: Mapping) -> list[Case]:
    """The cases of :func:`inspect_cases`."""
    return [Case.from_dict(values) for values in record["cases"]]


def inspect_models(protocol: str, folder: Path = RESULTS, backbone: str | None = None) -> list[Path]:
    """Write what Figures 4 to 6 need, as far as this machine has the models; returns the files written.

    Figure 4 needs X-STA trained with and without token alignment, the others X-STA alone.
    """
    changes = {"backbone": backbone} if backbone else {}
    full = experiment(protocol, "x-sta", **changes)
    without = replace(full, without=WITHOUT_TOKENS)
    test = next((test for test in load_protocol(protocol).tests if test.source and test.name in TEXTS), None)
    if test is None or not is_trained(full):
        return []
    records = {5: inspect_sentences(full, test), 6: inspect_cases(full, test)}
    if is_trained(without):
        records[4] = inspect_attention(full, without, test)
    written = []
    for figure, record in sorted(records.items()):
        models = [full.fingerprint, without.fingerprint] if figure == 4 else [full.fingerprint]
        origin = {"protocol": protocol, "dataset": test.name, "models": models, "provenance": provenance()}
        path = inspection_path(figure, protocol, folder, backbone)
        write_text_atomically(path, json.dumps(origin | record, ensure_ascii=False, indent=1) + "\n")
        written.append(path)
    return written
