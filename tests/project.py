"""A copy of the project in a folder of its own, so that commands can write runs, results and figures there."""

import os
import shutil
import sys
from pathlib import Path

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
    return {**os.environ, "PYTHONPATH": str(folder), "XSTA_CACHE": str(folder / "cache"), "TQDM_DISABLE": "1"}
