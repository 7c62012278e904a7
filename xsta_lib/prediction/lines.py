"""Questions in a file of JSON lines, answered in order into another one; a stopped run goes on where it was."""

import json
import math
import re
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import TextIO

from tqdm.auto import tqdm

from ..data.files import check_text, is_blank, once, read_text
from .answers import LeftOut

TOGETHER = 64  # questions that are answered before their lines are written
NEEDED = ("question", "context")
KEYS = (*NEEDED, "id", "language", "source_question", "source_context")
FORM = '{"question": "...", "context": "..."}'


def read_requests(path: str | Path) -> list[dict]:
    """The questions of a file, one JSON object a line; blank lines count for nothing.

    A line has ``question`` and ``context``, and may have ``id``, ``language``, ``source_question`` and
    ``source_context``. Keys that are not read, and ids of several lines, are named in a warning.

    Raises:
        ValueError: a line that is none of this; the message names file, line and remedy.
    """
    text, requests = read_text(path), []
    unread, lines_of = {}, {}
    for number, line in enumerate(re.split(r"\r\n?|\n", text), 1):
        if not line.strip():
            continue
        request = _read_line(line, f"{path}, line {number}", text)
        unread |= dict.fromkeys(request.keys() - set(KEYS), number)
        if request.get("id") is not None:
            lines_of.setdefault(json.dumps(request["id"]), []).append(number)
        requests.append(request)
    if unread:
        names = ", ".join(f"{key!r} (line {number})" for key, number in sorted(unread.items()))
        warnings.warn(f"{path}: keys that are not read: {names}; known are {', '.join(KEYS)}", stacklevel=2)
    if repeated := {key: lines for key, lines in lines_of.items() if len(lines) > 1}:
        key, lines = next(iter(repeated.items()))
        first = f"{key} (lines {lines[0]} and {lines[1]})"
        said = f"{len(repeated)} ids stand in several lines, first: {first}; the answers come in the order of the lines"
        warnings.warn(f"{path}: {said}", stacklevel=2)
    return requests


def _read_line(line: str, place: str, text: str) -> dict:
    """One question; ``place`` and ``text``, the whole file, are for the message of a ValueError."""
    try:
        request = json.loads(line, object_pairs_hook=once)
    except (ValueError, RecursionError) as error:  # the latter of lists in lists beyond all measure
        raise ValueError(f"{place}: not JSON ({error}); {_remedy(text)}") from error
    if not isinstance(request, dict) or not all(isinstance(request.get(key), str) for key in NEEDED):
        raise ValueError(f"{place}: lacks the text of question or context; {_remedy(text)}")
    own = request.get("id")
    if not isinstance(own, str | int | float | None) or isinstance(own, float) and not math.isfinite(own):
        raise ValueError(f"{place}: 'id' is neither a text nor a number; write it in quotes, or leave it out")
    for key in KEYS:
        if key != "id" and not isinstance(request.get(key, ""), str):
            raise ValueError(f"{place}: {key!r} is no text; write it in quotes, or leave it out")
        if isinstance(request.get(key), str):
            check_text(request[key], f"{place}, {key!r}")
        if key in request and key not in (*NEEDED, "id") and is_blank(request[key]):
            raise ValueError(f"{place}: {key!r} is blank; give its text, or leave it out")
    if ("source_question" in request) != ("source_context" in request):
        raise ValueError(f"{place}: source_question and source_context belong together; give both or neither")
    return request


def _remedy(text: str) -> str:
    """How a file must look whose lines are no questions, and what it is where that is easily seen."""
    try:
        whole = json.loads(text)
    except (ValueError, RecursionError):
        return f"each line must look like {FORM}"
    if isinstance(whole, dict) and "data" not in whole and len(text.split("\n")) < 3:
        return f"each line must look like {FORM}"
    said = "the file is one JSON document (a list, or SQuAD's form), not JSON lines"
    return f"{said}; write each question with its context on a line of its own: {FORM}"


def digest_of(request: dict, language: str | None, n_best: int, weights: str) -> str:
    """What an answer depends on beside the model's name, in 16 letters."""
    asked = [request[key] for key in NEEDED], request.get("language", language), n_best, weights
    source = [request.get(key) for key in ("source_question", "source_context")]
    return sha256(json.dumps([*asked, source]).encode()).hexdigest()[:16]


def finished(output: Path, requests: Sequence[dict], model: str, digests: Sequence[str]) -> int:
    """How many answers ``output`` holds already; a torn last line is cut off, and said.

    Args:
        digests: of the requests, see :func:`digest_of`.

    Raises:
        ValueError: they are answers to other questions, of another model or with other options, or no answers at all.
    """
    lines, remedy = whole_lines(output), "name another --output, or delete this file"
    wanted = [(request["question"], request.get("id"), model) for request in requests]
    for number, line in enumerate(lines, 1):
        try:
            known = json.loads(line)
            kept = known["question"], known.get("id"), known["model"]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{output}, line {number}: no answer of this command; {remedy}") from error
        if [kept] != wanted[number - 1 : number]:  # of lines beyond the questions none is wanted
            raise ValueError(f"{output}, line {number}: the answer to another question or of another model; {remedy}")
        if known.get("digest") != digests[number - 1]:
            said = "answered with another context, language, source, --n-best or weights"
            raise ValueError(f"{output}, line {number}: {said}; {remedy}")
    torn = output.read_bytes().rpartition(b"\n")[2] if output.exists() else b""
    begun = [json.dumps(_about(due, model), ensure_ascii=False)[:-1].encode() for due in requests[len(lines) :][:1]]
    if torn and not any(torn.startswith(start) or start.startswith(torn) for start in begun):
        raise ValueError(f"{output}, line {len(lines) + 1}: no answer of this command; {remedy}")
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


def _about(request: dict, model: str) -> dict:
    """What the line of an answer begins with."""
    return ({"id": request["id"]} if "id" in request else {}) | {"model": model}


@contextmanager
def _naming(output: Path | None) -> Iterator[None]:
    """Faults of writing name the place and a remedy."""
    try:
        yield
    except BrokenPipeError:  # whoever reads has enough
        raise
    except OSError as error:
        place = f"--output {output}" if output else "standard output"
        said = ": ".join(filter(None, (error.strerror, error.filename)))
        remedy = "mend that and run the command again, or write somewhere else"
        raise OSError(f"{place}: cannot be written ({said}); {remedy}") from error


def answer_lines(
    requests: Sequence[dict],
    open_reader: Callable,
    model: str,
    output: Path | None,
    language: str | None,
    n_best: int,
    weights: str,
    **options,
) -> None:
    """Answer questions in order, each a JSON line, with a bar; what was left out of all of them is said at the end.

    Args:
        requests: as :func:`read_requests` gives them.
        open_reader: gives the reader; called only where something is left to answer.
        model: the reader's name, which every line bears.
        output: a file, written on behind the answers that it has; a pipe or another device takes all, and so does the
            screen for ``None``.
        language: of the questions that do not say theirs; ``None`` finds it out.
        weights: a key of the reader's, empty where there is none; answers of other weights are not gone on with.
        n_best, options: ``translate`` and ``project`` among them, as for :meth:`xsta_lib.reader.Reader.answer`.
    """
    digests = [digest_of(request, language, n_best, weights) for request in requests]
    file_there = output and (output.is_file() or not output.exists())  # others have no answers to go on behind
    done = finished(output, requests, model, digests) if file_there else 0
    if done == len(requests):
        print(f"xsta: {output}: all {done} questions are answered already; nothing is left to do", file=sys.stderr)
        return
    with _naming(output):
        if output:
            output.parent.mkdir(parents=True, exist_ok=True)
        file = output.open("a", encoding="utf-8", newline="\n") if output else sys.stdout
    left: dict[str, list[str]] = {}
    try:
        reader = open_reader()
        with tqdm(total=len(requests), initial=done, desc="answering", unit="question") as bar:
            for low in range(done, len(requests), TOGETHER):
                part = requests[low : low + TOGETHER]
                answers = _answers(reader, part, language, options | {"n_best": n_best}, left)
                with _naming(output):
                    for request, answer, digest in zip(part, answers, digests[low:], strict=False):
                        line = _about(request, model) | answer.to_dict() | {"digest": digest}
                        print(as_json(line, file), file=file)
                    file.flush()
                bar.update(len(part))
    finally:
        if left:
            warnings.warn(LeftOut(left), stacklevel=2)
        if output:
            with _naming(output):
                file.close()


def _answers(reader, part: Sequence[dict], language: str | None, options: dict, left: dict[str, list[str]]) -> list:
    """The reader's answers to some questions, in order; what is left out joins ``left``, and is no warning yet."""
    questions, contexts = ([request[key] for request in part] for key in NEEDED)
    languages = [request.get("language", language) for request in part]
    sources = [
        (request["source_question"], request["source_context"]) if "source_question" in request else None
        for request in part
    ]
    with warnings.catch_warnings(record=True, action="always", category=LeftOut) as caught:
        answers = reader.answer(questions, contexts, languages, sources if any(sources) else None, **options)
    for said in caught:
        if not isinstance(said.message, LeftOut):
            warnings.warn_explicit(said.message, said.category, said.filename, said.lineno)
            continue
        for what, texts in said.message.found.items():
            left.setdefault(what, []).extend(texts)
    return answers


def as_json(values: dict, file: TextIO) -> str:
    """One line of JSON in letters that a file or console can show; others are escaped the JSON way."""
    utf_8 = (getattr(file, "encoding", None) or "ascii").lower().replace("-", "") == "utf8"
    return json.dumps(values, ensure_ascii=not utf_8)
