"""A large language model as a reader (the paper's ChatGPT): questions to any server of the OpenAI protocol.

Every answer is written down as it comes, so that a stopped run goes on and pays nothing twice. The key comes from the
environment, ``OPENAI_API_KEY``, and goes nowhere but to the server.
"""

import hashlib
import json
import warnings
from collections import Counter
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from threading import Event, Lock
from typing import TYPE_CHECKING

from tqdm.auto import tqdm

from ..data.squad import Question
from ..prediction.lines import cut_torn_line, whole_lines
from ..prediction.server import COUNTS, TOGETHER, TOO_LONG, ask

if TYPE_CHECKING:
    from openai import OpenAI

PROMPT = """Answer the question with a span of the passage: the shortest one that answers it, copied letter by letter, \
in the passage's language. Write that span and nothing else.

Passage: {context}

Question: {question}"""
LONGEST = 100  # tokens of an answer


def prompt_of(question: Question) -> str:
    """What the model reads."""
    return PROMPT.format(context=question.context, question=question.question)


def key_of(model: str, question: Question) -> str:
    """Which model was asked what: the name of an answer."""
    asked = json.dumps([model, prompt_of(question), LONGEST])
    return hashlib.sha256(asked.encode()).hexdigest()[:32]


def read_answers(path: Path) -> dict[str, dict]:
    """The answers of a file by :func:`key_of`, the later of two. ValueError names a line that is none."""
    found = {}
    for number, line in enumerate(whole_lines(path), 1):
        try:
            known = json.loads(line)
            found[known["key"]] = known | {one: known[one] for one in ("id", "model", "endpoint", "answer", "finish")}
            sum(known.get(name, 0) for name in (*COUNTS, "seconds"))  # they are numbers
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path}, line {number}: no answer of this command; delete the line") from error
    return found


def _say_what_is_kept(path: Path, lines: Iterable[Mapping], address: str, waiting: int) -> None:
    """A warning where kept answers came from another endpoint than the one that is asked now."""
    places = Counter(line["endpoint"] for line in lines)
    if others := [f"{count} of {place}" for place, count in sorted(places.items()) if place != address]:
        rest = f"asked are {waiting}; to ask anew, move the file away"
        warnings.warn(f"{path}: answers kept from another endpoint: {', '.join(others)}; {rest}", stacklevel=3)


def ask_all(
    client: "OpenAI",
    model: str,
    questions: Mapping[str, Question],
    path: Path,
    together: int = TOGETHER,
    progress: bool = True,
) -> dict[str, dict]:
    """The answers to some questions by key, each written to a file (JSON lines) as it comes and never asked for again.

    Questions that did not fit the model, which costs nothing, are asked again. Answers that the model gave at another
    address are kept, with a warning that names it.

    Args:
        client: see :func:`~xsta_lib.prediction.server.open_client`.
        questions: by :func:`key_of`.
        path: the file.
        together: requests under way at a time.
        progress: show a bar.

    Raises:
        AskingError: see :func:`~xsta_lib.prediction.server.ask`; requests under way end first, their answers are kept.
    """
    known = read_answers(path)
    cut_torn_line(path)
    waiting = [key for key in questions if known.get(key, {"finish": TOO_LONG})["finish"] == TOO_LONG]
    address = str(client.base_url).rstrip("/")
    _say_what_is_kept(path, [known[key] for key in questions.keys() - set(waiting)], address, len(waiting))
    path.parent.mkdir(parents=True, exist_ok=True)
    lock, stop = Lock(), Event()
    with (
        path.open("a", encoding="utf-8", newline="\n") as file,
        tqdm(None, "asking", len(questions), initial=len(questions) - len(waiting), disable=not progress) as bar,
        ThreadPoolExecutor(together) as pool,
    ):

        def work(key: str) -> None:
            """Ask one question and keep its answer, unless another one has failed."""
            if stop.is_set():
                return
            line = {"key": key, "id": questions[key].id, "model": model, "endpoint": address}
            try:
                line |= ask(client, model, prompt_of(questions[key]), LONGEST)
            except BaseException:
                stop.set()  # here, before this thread takes another one
                raise
            with lock:
                file.write(json.dumps(line, ensure_ascii=False) + "\n")
                file.flush()
                known[key] = line
                bar.update()

        try:
            for done in as_completed([pool.submit(work, key) for key in waiting]):
                done.result()
        except BaseException:
            stop.set()
            pool.shutdown(cancel_futures=True)
            raise
    return {key: known[key] for key in questions}
