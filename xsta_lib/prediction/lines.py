"""Questions in a file of JSON lines, answered in order into another one; a stopped run goes on where it was."""

import json
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TextIO

from tqdm.auto import tqdm

from ..data.files import check_text, read_text

TOGETHER = 64  # questions that are answered before their lines are written
NEEDED = ("question", "context")
KEYS = (*NEEDED, "id", "language", "source_question", "source_context")
FORM = '{"question": "...", "context": "..."}'


def read_requests(path: str | Path) -> list[dict]:
    """The questions of a file, one JSON object a line; blank lines count for nothing.

    A line has ``question`` and ``context``, and may have ``id``, ``language``, ``source_question`` and
    ``source_context``. Keys that are not read are named in a warning.

    Raises:
        ValueError: a line that is none of this; the message names file, line and remedy.
    """
    requests, unread = [], {}
    for number, line in enumerate(read_text(path).split("\n"), 1):
        place = f"{path}, line {number}"
        if not line.strip():
            continue
        try:
            request = json.loads(line)
        except ValueError as error:
            raise ValueError(f"{place}: not JSON ({error}); each line must look like {FORM}") from error
        if not isinstance(request, dict) or not all(isinstance(request.get(key), str) for key in NEEDED):
            raise ValueError(f"{place}: lacks the text of question or context; each line must look like {FORM}")
        for key in KEYS:
            if key != "id" and not isinstance(request.get(key, ""), str):
                raise ValueError(f"{place}: {key!r} is no text; write it in quotes, or leave it out")
            if isinstance(request.get(key), str):
                check_text(request[key], f"{place}, {key!r}")
        if ("source_question" in request) != ("source_context" in request):
            raise ValueError(f"{place}: source_question and source_context belong together; give both or neither")
        unread |= dict.fromkeys(request.keys() - set(KEYS), number)
        requests.append(request)
    if unread:
        names = ", ".join(f"{key!r} (line {number})" for key, number in sorted(unread.items()))
        warnings.warn(f"{path}: keys that are not read: {names}; known are {', '.join(KEYS)}", stacklevel=2)
    return requests


def finished(output: Path, requests: Sequence[dict], model: str) -> int:
    """How many answers ``output`` holds already; a torn last line is cut off, and said.

    Raises:
        ValueError: they are answers to other questions or of another model.
    """
    lines = whole_lines(output)
    remedy = "name another --output, or delete this file"
    for number, line in enumerate(lines, 1):
        try:
            known = json.loads(line)
            kept = known["question"], known.get("id"), known["model"]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{output}, line {number}: no answer of this command; {remedy}") from error
        wanted = requests[number - 1] if number <= len(requests) else {}
        if kept != (wanted.get("question"), wanted.get("id"), model):
            raise ValueError(f"{output}, line {number}: the answer to another question or of another model; {remedy}")
    cut_torn_line(output)
    return len(lines)


def whole_lines(path: Path) -> list[str]:
    """The lines of a file that grows line by line, without one that was torn; none where there is no file."""
    raw = path.read_bytes() if path.exists() else b""
    return raw[: raw.rfind(b"\n") + 1].decode("utf-8", "replace").split("\n")[:-1]


def cut_torn_line(path: Path) -> None:
    """Cut a torn last line off such a file, and say so."""
    raw = path.read_bytes() if path.exists() else b""
    if torn := len(raw) - raw.rfind(b"\n") - 1:
        warnings.warn(f"{path}: its last line was not whole; it is answered again", stacklevel=3)
        with path.open("rb+") as file:
            file.truncate(len(raw) - torn)


def answer_lines(
    requests: Sequence[dict],
    open_reader: Callable,
    model: str,
    output: Path | None,
    language: str | None,
    **options,
) -> None:
    """Answer questions in order, each a JSON line, with a bar.

    Args:
        requests: as :func:`read_requests` gives them.
        open_reader: gives the reader; called only where something is left to answer.
        model: the reader's name, which every line bears.
        output: a file, written on behind the answers that it has; ``None`` prints all.
        language: of the questions that do not say theirs; ``None`` finds it out.
        options: ``n_best``, ``translate`` and ``project`` as for :meth:`xsta_lib.reader.Reader.answer`.
    """
    done = finished(output, requests, model) if output else 0
    if done == len(requests):
        return
    reader = open_reader()
    if output:
        output.parent.mkdir(parents=True, exist_ok=True)
    file = output.open("a", encoding="utf-8", newline="\n") if output else sys.stdout
    try:
        with tqdm(total=len(requests), initial=done, desc="answering", unit="question") as bar:
            for low in range(done, len(requests), TOGETHER):
                part = requests[low : low + TOGETHER]
                for request, answer in zip(part, _answers(reader, part, language, options), strict=True):
                    about = {"id": request["id"]} if "id" in request else {}
                    print(as_json(about | {"model": model} | answer.to_dict(), file), file=file)
                file.flush()
                bar.update(len(part))
    finally:
        if output:
            file.close()


def _answers(reader, part: Sequence[dict], language: str | None, options: dict) -> list:
    """The reader's answers to some questions, in order."""
    questions, contexts = ([request[key] for request in part] for key in NEEDED)
    languages = [request.get("language") or language for request in part]
    sources = [
        (request["source_question"], request["source_context"]) if "source_question" in request else None
        for request in part
    ]
    return reader.answer(questions, contexts, languages, sources if any(sources) else None, **options)


def as_json(values: dict, file: TextIO) -> str:
    """One line of JSON in letters that a file or console can show; others are escaped the JSON way."""
    utf_8 = (getattr(file, "encoding", None) or "ascii").lower().replace("-", "") == "utf8"
    return json.dumps(values, ensure_ascii=not utf_8)
