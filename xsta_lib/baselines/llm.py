"""A large language model as a reader (the paper's ChatGPT): questions to any server of the OpenAI protocol.

Every answer is written down as it comes, so that a stopped run goes on and pays nothing twice. The key comes from the
environment, ``OPENAI_API_KEY``, and goes nowhere but to the server.
"""

import hashlib
import json
import os
import re
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from threading import Event, Lock
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from tqdm.auto import tqdm

from ..data.squad import Question
from ..prediction.lines import cut_torn_line, whole_lines

if TYPE_CHECKING:
    from openai import OpenAI

PROMPT = """Answer the question with a span of the passage: the shortest one that answers it, copied letter by letter, \
in the passage's language. Write that span and nothing else.

Passage: {context}

Question: {question}"""
LONGEST = 100  # tokens of an answer
TOGETHER = 4  # requests under way
RETRIES = 6  # after the first try; the pauses grow to 8 seconds, or are as long as the server asks for
PATIENCE = 120.0  # seconds until a request is given up and sent again
TOO_LONG = "too long"  # how a question ended that does not fit the model
KEY = "OPENAI_API_KEY"
GO_ON = "the answers so far are kept: run the same command again to go on"
_NO_ROOM = re.compile(r"context.{0,20}(length|window|size)|too (long|many tokens)|exceed.{0,40}(context|token)", re.I)


class AskingError(RuntimeError):
    """The server cannot be asked any further; the message says why, and what to do."""


def prompt_of(question: Question) -> str:
    """What the model reads."""
    return PROMPT.format(context=question.context, question=question.question)


def key_of(model: str, question: Question) -> str:
    """Which model was asked what: the name of an answer."""
    asked = json.dumps([model, prompt_of(question), LONGEST])
    return hashlib.sha256(asked.encode()).hexdigest()[:32]


def open_client(endpoint: str, retries: int = RETRIES, patience: float = PATIENCE):
    """The ``openai`` package's client of a server; without a key in the environment it sends a word in its place.

    Raises:
        ValueError: the endpoint is no plain web address, or the package is missing.
    """
    address = urlsplit(endpoint)
    if address.scheme not in ("http", "https") or not address.hostname:
        raise ValueError(f"--endpoint is {endpoint!r}; it looks like https://api.openai.com/v1")
    if address.username or address.password or address.query:
        raise ValueError(f"--endpoint holds a name, a key or a query; results quote it, so set {KEY} instead")
    try:
        from openai import OpenAI
    except ImportError:
        raise ValueError("the package openai is not installed; pip install 'xsta[llm]'") from None
    secret = os.environ.get(KEY) or "none"
    return OpenAI(base_url=endpoint, api_key=secret, max_retries=retries, timeout=patience)


def ask(client: "OpenAI", model: str, prompt: str) -> dict[str, object]:
    """One answer: ``answer`` (empty where the model refuses), ``finish`` (why it ended), tokens and seconds.

    Raises:
        AskingError: the server refuses, fails or stalls, after all retries, or does not speak the protocol.
    """
    from openai import APIStatusError, OpenAIError

    began, message = time.perf_counter(), [{"role": "user", "content": prompt}]
    try:
        reply = client.chat.completions.create(model=model, messages=message, temperature=0, max_tokens=LONGEST)
        choice, usage = reply.choices[0], reply.usage
        text, finish = choice.message.content or "", choice.finish_reason
        counts = {name: getattr(usage, name) or 0 for name in ("prompt_tokens", "completion_tokens")} if usage else {}
        if not isinstance(text, str):
            raise TypeError
    except APIStatusError as error:
        if error.status_code not in (400, 413, 422) or not _NO_ROOM.search(str(error)):
            raise AskingError(_why(error, client, model)) from None
        text, finish, counts = "", TOO_LONG, {}
    except OpenAIError as error:
        raise AskingError(_why(error, client, model)) from None
    except (ValueError, TypeError, AttributeError, LookupError):
        remedy = "check --endpoint, which mostly ends in /v1"
        raise AskingError(
            f"{client.base_url}: its reply is not one of the OpenAI protocol; {remedy}; {GO_ON}"
        ) from None
    return {"answer": text.strip(), "finish": finish, "seconds": round(time.perf_counter() - began, 3), **counts}


def _why(error: Exception, client, model: str) -> str:
    """What went wrong, in a sentence without the key."""
    from openai import APIConnectionError, APITimeoutError

    times, status = f"{client.max_retries + 1} times", getattr(error, "status_code", 0)
    if isinstance(error, APITimeoutError):
        what = f"no reply within {client.timeout:.0f} seconds, {times}; look after the server"
    elif isinstance(error, APIConnectionError):
        what = f"it cannot be reached, or drops the connection, {times}; check --endpoint and the server"
    elif status in (401, 403):
        what = f"the key is refused ({status}); set {KEY} to a valid one"
    elif status == 404:
        what = f"no model {model!r}, or no such address (404); check --model and --endpoint, which mostly ends in /v1"
    elif status == 429:
        what = f"it asks to wait (429), {times}: a limit or the quota is reached; wait, or raise it"
    elif status >= 500:
        what = f"the server failed ({status}), {times}; look after it"
    else:
        said = str(error).replace(client.api_key, "***").split("\n")[0][:200]
        what = f"the request is refused ({said})"
    return f"{client.base_url}: {what}; {GO_ON}"


def read_answers(path: Path) -> dict[str, dict]:
    """The answers of a file by :func:`key_of`, the later of two. ValueError names a line that is none."""
    found = {}
    for number, line in enumerate(whole_lines(path), 1):
        try:
            known = json.loads(line)
            found[known["key"]] = known | {name: known[name] for name in ("id", "model", "answer", "finish")}
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path}, line {number}: no answer of this command; delete the line") from error
    return found


def ask_all(
    client: "OpenAI",
    model: str,
    questions: Mapping[str, Question],
    path: Path,
    together: int = TOGETHER,
    progress: bool = True,
) -> dict[str, dict]:
    """The answers to some questions by key, each written to a file (JSON lines) as it comes and never asked for again.

    Questions that did not fit the model, which costs nothing, are asked again.

    Args:
        client: see :func:`open_client`.
        questions: by :func:`key_of`.
        path: the file.
        together: requests under way at a time.
        progress: show a bar.

    Raises:
        AskingError: see :func:`ask`; requests under way end first, and their answers are kept.
    """
    known = read_answers(path)
    cut_torn_line(path)
    waiting = [key for key in questions if known.get(key, {"finish": TOO_LONG})["finish"] == TOO_LONG]
    path.parent.mkdir(parents=True, exist_ok=True)
    lock, stop = Lock(), Event()
    shown = {"desc": "asking", "unit": "question", "disable": not progress}
    with (
        path.open("a", encoding="utf-8", newline="\n") as file,
        tqdm(total=len(questions), initial=len(questions) - len(waiting), **shown) as bar,
        ThreadPoolExecutor(together) as pool,
    ):

        def work(key: str) -> None:
            """Ask one question and keep its answer, unless another one has failed."""
            if stop.is_set():
                return
            line = {"key": key, "id": questions[key].id, "model": model}
            try:
                line |= ask(client, model, prompt_of(questions[key]))
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
