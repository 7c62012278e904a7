"""A reader for Spanish from English files: what a rough translator, Apertium, is worth beside people's translations.

One command that does what is missing of four things, and can be stopped at any moment:

1. folders of data in ``runs/spanish`` (see :func:`write_folders`);
2. TyDiQA's English questions translated to Spanish with projected answers (``results/translation/apertium.json``);
3. translate-test: the reader in the box on XQuAD's Spanish with gold English beside, with Apertium's, and alone; both
   English sides also with their answer projected and mixed in (``results/translation/translate-test.json``);
4. with ``--train``, readers trained for the same steps on Apertium's pairs, on people's, and on English alone
   (``results/translation/<folder>/``).

    python benchmarks/spanish.py [--train] [--steps 300]

Needs the data of ``xsta download parallel`` (or XSTA_DATA) and Apertium (Debian: ``apt install apertium-eng-spa``).
"""

import argparse
import json
import os
import shutil
import subprocess
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pandas as pd

from xsta_lib.data.files import BOX, read_json, replacing, write_text_atomically
from xsta_lib.data.folders import TRANSLATE_TEST, file_name
from xsta_lib.data.protocols import TYDIQA_TRAIN, TestSet, load_protocol
from xsta_lib.data.squad import write_squad
from xsta_lib.encoders.packed import load_packed
from xsta_lib.experiments.experiment import Experiment, experiment
from xsta_lib.experiments.projected import evaluate_readings
from xsta_lib.experiments.results import results_folder, score_frame, scores_path, write_scores
from xsta_lib.experiments.run import result_path, run_experiment, runs_folder
from xsta_lib.experiments.significance import average_interval, paired_bootstrap
from xsta_lib.prediction.evaluation import Evaluation, evaluate_model, provenance
from xsta_lib.prediction.predictor import Predictor
from xsta_lib.training.machine import has_bf16
from xsta_lib.training.ranks import device
from xsta_lib.translation.corpus import translate_test, translate_training
from xsta_lib.translation.engines import open_engine
from xsta_lib.translation.spans import Projection, Projector, Row, StringMethod

ENGINE = "command:apertium -u {source3}-{target3}"
LANGUAGE, STEPS = "es", 300
THRESHOLDS = (0.0, 0.1, 0.3, 0.5, 0.7, 0.9)
# Folder and method; the same steps, selection and test for all, so Spanish rows take the place of English ones.
RUNS = (
    *(("apertium", method) for method in ("x-sta", "trans-train")),
    *(("human", method) for method in ("x-sta", "trans-train")),
    ("english", "zero-shot"),
)


def data_place() -> Path:
    """Where the folders of data lie, from the current folder: results keep the path. Nothing there is committed."""
    return Path(os.path.relpath(runs_folder() / "spanish"))


def write_folders(place: Path) -> None:
    """Write the folders of data, but for what Apertium makes.

    ``english`` has the English training questions of the protocol ``parallel`` (TyDiQA's, and 612 of XQuAD), MLQA dev's
    Spanish to select by, read alone as there, and XQuAD's other half to test, Spanish with English beside. ``human``
    adds the 612 in Spanish, translated by people. ``apertium`` will have TyDiQA's in Spanish instead. ``tydiqa`` holds
    TyDiQA's English alone, which is what is translated; ``translate-test`` the Spanish test questions alone.
    """
    data = load_protocol("parallel")
    of_xquad = {question.id for question in data.parallel_source}
    tydiqa = [question for question in data.train if question.id not in of_xquad]
    english, test = [*tydiqa, *data.parallel_source], data.tests[0].questions
    shared = {("train", "en"): english, ("dev", LANGUAGE): data.validation.questions[LANGUAGE]}
    shared |= {("test", language): test[language] for language in ("en", LANGUAGE)}
    folders = {
        "english": shared,
        "apertium": shared,
        "human": shared | {("train", LANGUAGE): data.parallel[LANGUAGE]},
        "tydiqa": {("train", "en"): tydiqa},
        "translate-test": {("test", LANGUAGE): test[LANGUAGE]},
    }
    for name, files in folders.items():
        (place / name).mkdir(parents=True, exist_ok=True)
        for (split, language), questions in files.items():
            write_squad(place / name / file_name(split, language), questions)


class Watched(Projector):
    """A projector that keeps what it found, and what looking for the translated answer alone would have found."""

    def __init__(self):
        super().__init__()
        self.found: list[Projection | None] = []
        self.strings: list[Projection | None] = []

    def project(self, rows: Sequence[Row], source: str, target: str) -> list[Projection | None]:
        """See :class:`~xsta_lib.translation.spans.Projector`."""
        found = super().project(rows, source, target)
        self.found += found
        self.strings += StringMethod().project(rows, source, target)
        return found


def about() -> dict:
    """Which engine made a result, and with what code it was measured."""
    version = subprocess.run(["apertium", "-V"], capture_output=True, text=True).stdout.strip()
    return {"engine": ENGINE, "version": version, "provenance": provenance()}


def translate_train(place: Path, results: Path) -> None:
    """``train.es.json`` of ``apertium`` by Apertium, and how many answers survived at which confidence."""
    path, made_path = results / "apertium.json", place / "apertium" / file_name("train", LANGUAGE)
    if path.exists() and made_path.exists():
        return
    projector, began = Watched(), time.perf_counter()
    (made,) = translate_training(place / "tydiqa", [LANGUAGE], open_engine(ENGINE), projector, overwrite=True)
    print(made)
    scores = [span.score if span else -1.0 for span in projector.found]
    kept = [span.method for span in projector.found if span and span.score >= projector.threshold]
    record = {
        "file": TYDIQA_TRAIN.name,
        "questions": made.kept + sum(map(len, made.dropped.values())),
        "kept": made.kept,
        "dropped": {reason: len(ids) for reason, ids in made.dropped.items()},
        "threshold": projector.threshold,
        "kept_at": {f"{least:g}": sum(score >= least for score in scores) for least in THRESHOLDS},
        "kept_by_method": dict(Counter(kept)),
        "found_by_string_alone": sum(span is not None for span in projector.strings),
        "seconds": time.perf_counter() - began,
        **about(),
    }
    with replacing(made_path) as temporary:
        shutil.copyfile(made.path, temporary)
    write_text_atomically(path, json.dumps(record, indent=1) + "\n")


def spanish_tests(place: Path) -> dict[str, TestSet]:
    """XQuAD's Spanish test questions with gold English beside, with Apertium's, and with none."""
    gold = load_protocol(str(place / "human"), rule="squad").tests[0]
    gold = replace(gold, questions={LANGUAGE: gold.questions[LANGUAGE]})
    apertium = load_protocol(str(place / "translate-test"), rule="squad").tests[0]
    return {"gold": gold, "apertium": apertium, "none": replace(gold, source=None, source_name="none")}


def answer_tests(tests: Mapping[str, TestSet]) -> dict[str, Evaluation]:
    """The reader in the box on each test set, as the paper has it, and with the English answer mixed in."""
    model, tokenizer = load_packed(BOX)
    model.to(device())
    found = {
        name: evaluate_model(model, tokenizer, test, "gold" if test.source else "none") for name, test in tests.items()
    }
    predictor = Predictor(model, tokenizer, autocast=has_bf16(model.device))
    for name, test in tests.items():
        if test.source:
            found[f"{name} mixture"] = evaluate_readings(predictor, test)["mixture"]
    return found


def measure_translate_test(place: Path, results: Path) -> None:
    """Apertium's English of the test questions, and what the reader in the box makes of it."""
    path, folder = results / "translate-test.json", place / "translate-test"
    if path.exists():
        return
    if not (folder / file_name(TRANSLATE_TEST, LANGUAGE)).exists():
        print(*translate_test(folder, [LANGUAGE], open_engine(ENGINE)))
    found = answer_tests(spanish_tests(place))
    scores = score_frame(found)
    frames = dict(iter(scores.groupby("dataset")))
    pairs = (("gold", "apertium"), ("apertium", "none"), ("gold", "none"))
    pairs += (("apertium mixture", "none"), ("apertium mixture", "apertium"), ("gold mixture", "apertium mixture"))
    record = {
        "reader": BOX.name,
        "metrics": {name: evaluation.metrics[LANGUAGE] for name, evaluation in found.items()},
        "f1_interval": {name: average_interval([frame])[1:] for name, frame in frames.items()},
        "differences": {f"{a} minus {b}": paired_bootstrap(frames[a], frames[b])._asdict() for a, b in pairs},
        **about(),
    }
    write_scores(scores_path(path), scores)
    write_text_atomically(path, json.dumps(record, indent=1) + "\n")


def experiments(place: Path, **changes: object) -> list[Experiment]:
    """The training runs of result 2; ``changes`` as for :func:`~xsta_lib.experiments.experiment.experiment`."""
    return [experiment(str(place / folder), method, freeze_embeddings=True, **changes) for folder, method in RUNS]


def train_missing(place: Path, results: Path, **changes: object) -> list[Path]:
    """Run what has no result yet, one after the other; a run that was stopped goes on from its last checkpoint."""
    todo = [exp for exp in experiments(place, **changes) if not result_path(exp, "none", results).exists()]
    written = []
    for number, exp in enumerate(todo):
        print(f"{number + 1} of {len(todo)} to measure: {exp.place}, {exp.name}")
        written += run_experiment(exp, load_protocol(exp.protocol, rule="squad"), results=results)
    return written


def main() -> None:
    """What the module says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", action="store_true", help="train what is missing, too")
    parser.add_argument("--steps", type=int, default=STEPS, help=f"of every training (default: {STEPS})")
    args = parser.parse_args()
    provenance()  # looked up once, of the code as it was loaded
    place, results = data_place(), results_folder() / "translation"
    write_folders(place)
    translate_train(place, results)
    measure_translate_test(place, results)
    if args.train:
        for path in train_missing(place, results, steps=args.steps):
            print(path)
    survivors, tested = (read_json(results / f"{name}.json") for name in ("apertium", "translate-test"))
    print(f"{survivors['kept']:,} of {survivors['questions']:,} answers survived; by threshold: {survivors['kept_at']}")
    print(pd.DataFrame(tested["metrics"]).T.rename_axis("English beside").round(1).to_string())


if __name__ == "__main__":
    main()
