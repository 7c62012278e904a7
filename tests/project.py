"""A copy of the project in a folder of its own, so that commands can write runs, results and figures there."""

import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from xsta_lib.data.protocols import SQUAD_TRAIN, TYDIQA_TRAIN, load_protocol, published
from xsta_lib.data.squad import Answer, Question, write_squad

ROOT = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent
IDS = [f"q{number:02}" for number in range(20)]


def copy_project(folder: Path, *parts: str) -> dict[str, str]:
    """Copy ``xsta_lib`` and some other files or folders; returns the environment that makes commands use the copy."""
    for part in ("xsta_lib", *parts):
        place = folder / part
        place.parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / part).is_dir():
            shutil.copytree(ROOT / part, place, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / part, place)
    return {
        **os.environ,
        "PYTHONPATH": str(folder),
        "XSTA_HOME": str(folder),
        "XSTA_CACHE": str(folder / "cache"),
        "TQDM_DISABLE": "1",
    }


def write_corpus(folder: Path, count: int, languages: Sequence[str] = ("en", "de")) -> list[str]:
    """Write the first ``count`` training and test questions of the demo in a new folder; returns their texts."""
    data, texts = load_protocol("demo"), []
    for split, questions in (("train", {"en": data.train, **data.parallel}), ("test", data.tests[0].questions)):
        for language in languages:
            write_squad(folder / f"{split}.{language}.json", questions[language][:count])
            texts += [q.question + q.context for q in questions[language][:count]]
    return texts


def questions(language: str, ids: list[str], prefix: str = "") -> list[Question]:
    """Questions of these ids, two an article; the answer is the id."""
    return [
        Question(prefix + key, f"{language}?", f"{language}: {key} .", (Answer(key, len(language) + 2),), f"t{i // 2}")
        for i, key in enumerate(ids)
    ]


def entry(key: object, *answers: tuple[str, object], question: str = "?") -> dict:
    """One item of a SQuAD file's ``qas``."""
    return {"id": key, "question": question, "answers": [{"text": t, "answer_start": s} for t, s in answers]}


def document(context: str, *entries: dict, title: str = "T") -> dict:
    """A SQuAD document of one paragraph."""
    return {"data": [{"title": title, "paragraphs": [{"context": context, "qas": list(entries)}]}]}


def write_published(folder: Path) -> None:
    """Write every file that the published protocols read, 20 questions each."""
    contents = {
        "MLQA_V1/dev": IDS,
        "MLQA_V1/test": IDS,
        "xquad": IDS,
        "tydiqa-goldp-v1.1/dev": [f"dev--{key}" for key in IDS],
        "xtreme/SQuAD/translate-train": IDS[:19],
        "xtreme/TyDiQA-GoldP/translate-train": [f"english--{key}" for key in IDS],
    }
    for place, ids in contents.items():
        for language, path in published(place).items():
            write_squad(folder / path, questions(language, ids))
    for task, ids in (("MLQA", IDS[:18]), ("XQuAD", IDS[:18]), ("TyDiQA-GoldP", contents["tydiqa-goldp-v1.1/dev"])):
        for path in published(f"xtreme/{task}/translate-test").values():
            write_squad(folder / path, [Question(key, "en?", "en", ()) for key in ids])
    write_squad(folder / SQUAD_TRAIN, questions("en", IDS))
    write_squad(folder / TYDIQA_TRAIN, questions("en", IDS, "english--"))
