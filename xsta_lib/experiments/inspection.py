"""What Figures 4 to 6 show of a protocol's trained models, measured once and kept as small files beside the results.

``results/<protocol>/inspection/figure{4,5,6}.json`` hold the numbers and texts behind the pictures and say which models
they come from, so that a reader without those models sees the same. They quote questions and passages of the test set:
of data sets other than this project's own at most two passages, each in English and in one other language, with their
source and licence.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import MappingProxyType

import numpy as np
import pandas as pd
from transformers import PreTrainedTokenizerBase

from ..data.files import BOX, read_json, weights_key, write_text_atomically
from ..data.protocols import TestSet, load_protocol
from ..data.squad import Answer, Question
from ..data.windows import window_cache
from ..encoders.packed import load_packed
from ..model.modeling import XStaForQuestionAnswering
from ..prediction.evaluation import evaluate_once, kept_answers, provenance, score_answers
from ..prediction.explaining import (
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
from ..prediction.metrics import score
from ..prediction.predictor import Predictor
from ..training.machine import has_bf16
from ..training.ranks import device
from .experiment import SETTINGS, Experiment, backbone_tag, experiment, place_of, setting_of
from .frames import LLM
from .llm import kept_llm_answers
from .packing import boxed_experiment
from .results import results_folder
from .run import is_trained, load_run, run_folder, runs_folder

READ = ("target", "teacher", "calibrated")  # the answers that a case shows


@dataclass(frozen=True)
class Case:
    """One question in the source and in a target language, with the answers of the readings.

    Attributes:
        kind: ``success`` (calibration mends the target's answer, where the source's is right) or ``failure`` (it spoils
            it).
        language: the target's.
        source_answer: what the model answered in the source language.
        answers, f1: texts and percent, by the readings of ``READ``, and by the names of large language models (``llm``
            and the model) that were asked the question.
        found: how many questions of the language are of this kind.
        source_language: of the source.
        source_f1: of ``source_answer``, in percent; ``None`` where the source has no gold answer (translated).
    """

    kind: str
    language: str
    source: Question
    target: Question
    source_answer: str
    answers: dict[str, str]
    f1: dict[str, float]
    found: int
    source_language: str = "en"
    source_f1: float | None = None


def find_cases(
    test: TestSet,
    answers: Mapping[str, Mapping[str, Mapping[str, str]]],
    languages: Sequence[str],
    models: Mapping[str, Mapping[str, Mapping[str, str]]] = MappingProxyType({}),
) -> list[Case]:
    """The clearest success and failure of calibration in each language; a kind that does not occur is left out.

    Success: the calibrated answer is exactly right, the target's own is not, and the source's is right too, as far as
    it has a gold answer: with a wrong one there was nothing to take over. Of several the one whose own answer is worst,
    then whose teacher is best. Failure: calibration makes a right answer wrong; of several the one whose calibrated
    answer is worst, then whose teacher is. Ties go to the first id: nothing is chosen by hand.

    Args:
        test: questions with their source.
        answers: by reading, language and id, of every reading in ``READ``.
        languages: of the cases; each must be among the test's.
        models: what large language models answered, by model, language and id; they are shown and choose nothing.
    """
    scores = {reading: score_answers(test, answers[reading]).scores for reading in READ}
    source_language = test.source_language
    own_sources = {question.id: question for question in test.questions.get(source_language, ())}
    cases = []
    for language in languages:
        sources = {question.id: question for question in test.source_of(language)}
        targets = {question.id: question for question in test.questions[language] if question.id in sources}
        own, teacher, calibrated = (scores[name][language] for name in READ)
        # of the test set's own source; a translated one has other passages and no gold answers
        own_keys = [key for key in targets if key in own_sources and own_sources[key].context == sources[key].context]
        asked = {key: scores["calibrated"][source_language][key] for key in own_keys}
        mended = [key for key in targets if calibrated[key].em and not own[key].em]
        mended = [key for key in mended if key not in asked or asked[key].em]
        spoilt = [key for key in targets if own[key].em and not calibrated[key].em]
        ranked = {
            "success": sorted((own[key].f1, -teacher[key].f1, key) for key in mended),
            "failure": sorted((calibrated[key].f1, teacher[key].f1, key) for key in spoilt),
        }
        for kind, places in ranked.items():
            if places:
                key = places[0][-1]
                texts = {name: answers[name][language].get(key, "") for name in READ}  # none where no span was valid
                f1 = {name: 100 * scores[name][language][key].f1 for name in READ}
                for model, by_language in models.items():
                    if (text := by_language.get(language, {}).get(key)) is not None:
                        texts[LLM + model] = text
                        f1[LLM + model] = 100 * score(text, targets[key].golds, language, test.rule).f1
                answer = answers["calibrated"][source_language].get(key, "") if key in asked else ""
                source_f1 = 100 * asked[key].f1 if key in asked else None
                given = sources[key], targets[key], answer, texts, f1, len(places), source_language, source_f1
                cases.append(Case(kind, language, *given))
    return cases


# Where the texts come from, and the languages whose cases are looked for, in this order (the paper's first).
TEXTS = {
    "demo": ("texts: this project's corpus, CC BY 4.0", ("hi", "vi", "zh", "ar", "de", "es")),
    "xquad": ("texts: XQuAD (Artetxe et al., 2020), CC BY-SA 4.0", ("hi", "th", "vi", "zh")),
}
OWN = "demo"
SENTENCES = 40  # examples that Figure 5 reads, each of another passage, as far as there are so many
ATTENTION_QUESTIONS = 40  # questions behind Figure 4's mean entropies
WITHOUT_TOKENS = ("alignment_token",)


def inspection_path(figure: int, protocol: str, folder: Path | None = None, backbone: str | None = None) -> Path:
    """Where a figure's numbers lie, by default those of the protocol's own backbone."""
    name = "-".join(filter(None, ("inspection", backbone_tag(backbone))))
    return (folder or results_folder()) / place_of(protocol) / name / f"figure{figure}.json"


def read_inspection(figure: int, protocol: str, folder: Path | None = None, backbone: str | None = None) -> dict | None:
    """A figure's numbers, or ``None`` where nobody measured them."""
    path = inspection_path(figure, protocol, folder, backbone)
    return read_json(path) if path.exists() else None


def inspected_label(record: Mapping) -> str:
    """The protocol for headings, with the setting of the inspected model where it is not the protocol's own."""
    return ", ".join(filter(None, (record["protocol"], record.get("setting"))))


def _is_here(exp: Experiment) -> bool:
    """Whether a run's model is on this machine: it was trained here, or it is the reader in the box."""
    return is_trained(exp) or exp == boxed_experiment()


def _load(exp: Experiment) -> tuple[XStaForQuestionAnswering, PreTrainedTokenizerBase]:
    if is_trained(exp):
        return load_run(exp)
    model, tokenizer = load_packed(BOX)
    return model.to(device()), tokenizer


def _predictor(exp: Experiment) -> Predictor:
    model, tokenizer = _load(exp)
    return Predictor(model, tokenizer, cache=window_cache(), autocast=has_bf16(model.device))


def _languages(test: TestSet) -> list[str]:
    return [language for language in TEXTS[test.name][1] if language in test.questions]


def inspect_attention(full: Experiment, without: Experiment, test: TestSet) -> dict:
    """Figure 4: cross-attention of one question with and without token alignment, and the mean entropies of some.

    The question is the one whose entropy differs most between the two models, among the first case language's first.
    """
    language = _languages(test)[0]
    sources = {question.id: question for question in test.source_of(language)}
    chosen = [q for q in test.questions[language] if q.id in sources][:ATTENTION_QUESTIONS]
    found = {}
    for name, exp in (("with token alignment", full), ("without token alignment", without)):
        predictor = _predictor(exp)
        found[name] = [explain(predictor, question, language, sources[question.id]) for question in chosen]
    entropies = {name: np.array([attention_entropy(one) for one in several]) for name, several in found.items()}
    most = int(np.abs(np.subtract(*entropies.values())).argmax())
    return {
        "note": TEXTS[test.name][0],
        "language": language,
        "question": chosen[most].question,
        "source_question": sources[chosen[most].id].question,
        "questions": len(chosen),
        "mean_entropy_nats": {name: float(values.mean()) for name, values in entropies.items()},
        "maps": {name: _split(question_attention(several[most]), 5) for name, several in found.items()},
    }


def _split(frame: pd.DataFrame, digits: int) -> dict:
    """The frame as ``to_dict("split")`` gives it; columns may repeat, as tokens do, which that function warns about."""
    values = frame.astype(float).round(digits).to_numpy().tolist()
    return {"index": list(frame.index), "columns": list(frame.columns), "data": values}


def attention_maps(record: Mapping) -> dict[str, pd.DataFrame]:
    """The heat maps of :func:`inspect_attention` as ``plotting.lessons.attention_heatmaps`` takes them."""
    return {name: pd.DataFrame(**values) for name, values in record["maps"].items()}


def inspect_sentences(exp: Experiment, test: TestSet) -> dict:
    """Figure 5: t-SNE places of sentence representations, silhouettes and cosines before and after normalisation.

    ``own_means`` has the silhouettes with these texts' own means taken out instead of the stored ones.
    """
    vectors = sentence_vectors(_predictor(exp), one_per_passage(test.questions, SENTENCES))
    places = tsne_frame(vectors).astype({"x": float, "y": float}).round(3)
    return {
        "silhouettes": _split(silhouettes(vectors), 4),
        "own_means": _split(silhouettes(own_means_out(vectors)), 4),
        "cosines": _split(cosines(vectors), 4),
        "places": places.to_dict("split", index=False),
    }


def inspect_cases(exp: Experiment, test: TestSet) -> dict:
    """Figures 6 and 9 to 11: cases found by rule, from the answers kept by the run's evaluation.

    Of texts that are not this project's own, only the first language that has a case is kept.
    """
    boxed = runs_folder() / exp.place / f"{BOX.name}-{weights_key(BOX)}"  # the box may be made anew
    folder = (run_folder(exp) if is_trained(exp) else boxed) / "predictions"
    if not kept_answers(folder, test, test.source_name):
        evaluate_once(folder, *_load(exp), test, test.source_name, ("calibrated", "target", "teacher"))
    answers, models = kept_answers(folder, test, test.source_name)["answers"], kept_llm_answers(exp.protocol, test)
    found = find_cases(test, answers, _languages(test), models)
    if test.name != OWN:
        found = [case for case in found if case.language == found[0].language]
    return {"note": TEXTS[test.name][0], "cases": [asdict(case) for case in found]}


def read_cases(record: Mapping) -> list[Case]:
    """The cases of :func:`inspect_cases`."""

    def question(side: Mapping) -> Question:
        answers, texts = (Answer(**answer) for answer in side["answers"]), side.get("texts", ())
        return Question(**{**side, "answers": tuple(answers), "texts": tuple(texts)})

    cases = record["cases"]
    return [Case(**{**c, "source": question(c["source"]), "target": question(c["target"])}) for c in cases]


def inspect_models(protocol: str, folder: Path | None = None, backbone: str | None = None) -> list[Path]:
    """Write what Figures 4 to 6 need, as far as this machine has the models; returns the files written.

    Figure 4 needs X-STA trained with and without token alignment, the others X-STA alone. The reader in the box stands
    in for a run of its protocol that is not here; the files say with which setting it was trained.
    """
    full = experiment(protocol, "x-sta", **({"backbone": backbone} if backbone else {}))
    boxed = boxed_experiment()
    if not is_trained(full) and boxed.protocol == protocol and not backbone:
        full = boxed
    tests = load_protocol(protocol).tests if protocol in SETTINGS and _is_here(full) else ()
    test = next((test for test in tests if test.source and test.name in TEXTS), None)
    if not test:
        return []
    without = replace(full, without=WITHOUT_TOKENS)
    records = {4: inspect_attention(full, without, test)} if _is_here(without) else {}
    records |= {5: inspect_sentences(full, test), 6: inspect_cases(full, test)}
    written = []
    for figure, record in records.items():
        models = [full.fingerprint, without.fingerprint] if figure == 4 else [full.fingerprint]
        origin = {"protocol": protocol, "setting": setting_of(full.to_dict()), "dataset": test.name, "models": models}
        path = inspection_path(figure, protocol, folder, backbone)
        text = json.dumps(origin | {"provenance": provenance()} | record, ensure_ascii=False, indent=1)
        write_text_atomically(path, text + "\n")
        written.append(path)
    return written
