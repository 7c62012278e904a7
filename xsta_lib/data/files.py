"""Where commands read and write, and how: files appear whole or not at all."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def home() -> Path:
    """The folder of ``results/``, ``runs/``, ``figures/`` and the repository's ``data/``.

    The environment variable ``XSTA_HOME``; else the checkout that the current folder lies in; else the current folder.
    """
    if chosen := os.environ.get("XSTA_HOME"):
        return Path(chosen).expanduser().resolve()
    here = Path.cwd()
    return next((folder for folder in (here, *here.parents) if (folder / "data" / "demo").is_dir()), here)


@contextmanager
def replacing(path: str | os.PathLike) -> Iterator[Path]:
    """A temporary path beside ``path``, for any writer of a file or folder: readers never see half of it.

    It takes the place of ``path`` at the end, and a folder that was there is deleted after that; if anything goes wrong
    it vanishes, and what was there stays.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary, old = (path.with_name(f".{path.name}.{os.getpid()}.{end}") for end in ("part", "old.part"))
    try:
        yield temporary
        if path.is_dir() and temporary.is_dir():  # a folder that holds something cannot be replaced at once
            os.replace(path, old)
        os.replace(temporary, path)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        if temporary.is_dir():
            shutil.rmtree(temporary, ignore_errors=True)
        else:
            temporary.unlink(missing_ok=True)


def write_text_atomically(path: str | os.PathLike, text: str) -> None:
    """Write a UTF-8 text file whole or not at all (see :func:`replacing`)."""
    with replacing(path) as temporary:
        temporary.write_text(text, "utf-8")
