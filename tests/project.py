"""A copy of the project in a folder of its own, so that commands can write runs, results and figures there."""

import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from xsta_lib.data.protocols import load_protocol
from xsta_lib.data.squad import write_squad

ROOT = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent


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
