"""A large language model behind a server of the OpenAI protocol: one prompt, one answer, and what can go wrong.

The key comes from the environment, ``OPENAI_API_KEY``, and goes nowhere but to the server.
"""

import os
import re
import time
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from openai import OpenAI

TOGETHER = 4  # requests under way
RETRIES = 6  # after the first try; the pauses grow to 8 seconds, or are as long as the server asks for
PATIENCE = 120.0  # seconds until a request is given up and sent again
TOO_LONG = "too long"  # how a question ended that does not fit the model
COUNTS = ("prompt_tokens", "completion_tokens")
KEY = "OPENAI_API_KEY"
GO_ON = "the answers so far are kept: run the same command again to go on"
_SECRET = re.compile(r"/(sk-|(gsk_|hf_|xai-|AIza)\w{8})")  # how keys begin, as a part of an address's path
_REFUSED: dict[tuple[str, str], set[str]] = {}  # by server and model, which of the usual options it does not take
_NO_ROOM = re.compile(r"context.{0,20}(length|window|size)|too (long|many tokens)|exceed.{0,40}(context|token)", re.I)


class AskingError(RuntimeError):
    """The server cannot be asked any further; the message says why, and what to do."""


def open_client(endpoint: str, retries: int = RETRIES, patience: float = PATIENCE):
    """The ``openai`` package's client of a server; without a key in the environment it sends a word in its place.

    Raises:
        ValueError: the endpoint is no plain web address, or the package is missing.
    """
    secret = os.environ.get(KEY) or "none"
    try:
        address = urlsplit(endpoint)
        plain = address.scheme in ("http", "https") and address.hostname and address.port != 0
    except ValueError:  # half a bracket, or a port beyond all
        plain = False
    if not plain or not endpoint.isprintable() or " " in endpoint:
        raise ValueError(f"--endpoint is {endpoint!r}; it looks like https://api.openai.com/v1")
    told = _SECRET.search(endpoint) or len(secret) >= 8 and secret in endpoint
    if told or "@" in address.netloc or any(mark in endpoint for mark in "?#;"):
        raise ValueError(f"--endpoint holds a name, a key or a query; results quote it, so set {KEY} instead")
    try:
        from openai import OpenAI
    except ImportError:
        raise ValueError("the package openai is not installed; pip install 'xsta[llm]'") from None
    return OpenAI(base_url=endpoint, api_key=secret, max_retries=retries, timeout=patience)


def ask(client: "OpenAI", model: str, prompt: str, longest: int) -> dict[str, object]:
    """One answer: ``answer`` (empty where the model refuses), ``finish`` (why it ended), tokens and seconds.

    Of more than ``longest`` tokens the answer is cut, and ``finish`` is ``"length"``. Half a surrogate pair, which no
    file can hold, becomes U+FFFD. ``own_temperature`` is there, and true, where the model does not take 0.

    Raises:
        AskingError: the server refuses, fails or stalls, after all retries, or does not speak the protocol.
    """
    from openai import APIStatusError, OpenAIError

    began = time.perf_counter()
    try:
        reply, more = _reply(client, model, prompt, longest)
        choice, usage = reply.choices[0], reply.usage
        text, finish = choice.message.content or "", choice.finish_reason
        counts = more | ({name: int(getattr(usage, name) or 0) for name in COUNTS} if usage else {})
        text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    except APIStatusError as error:
        if error.status_code not in (400, 413, 422) or not _NO_ROOM.search(str(error)):
            raise AskingError(_why(error, client, model)) from None
        text, finish, counts = "", TOO_LONG, {}
    except OpenAIError as error:
        raise AskingError(_why(error, client, model)) from None
    except (ValueError, TypeError, AttributeError, LookupError, OverflowError):  # of numbers, texts and lists
        remedy = "check --endpoint, which mostly ends in /v1"
        raise AskingError(
            f"{client.base_url}: its reply is not one of the OpenAI protocol; {remedy}; {GO_ON}"
        ) from None
    return {"answer": text.strip(), "finish": finish, "seconds": round(time.perf_counter() - began, 3), **counts}


def _reply(client: "OpenAI", model: str, prompt: str, longest: int) -> tuple:
    """The server's reply at temperature 0, and what was different.

    Newer models of OpenAI take the limit under another name, and no temperature: they say so, and are asked again.
    """
    from openai import BadRequestError

    refused = _REFUSED.setdefault((str(client.base_url), model), set())
    while True:
        tried = set(refused)  # other threads may learn more meanwhile
        options = {"max_completion_tokens" if "max_tokens" in tried else "max_tokens": longest}
        options |= {} if "temperature" in tried else {"temperature": 0}
        try:
            message = [{"role": "user", "content": prompt}]
            reply = client.chat.completions.create(model=model, messages=message, **options)
            return reply, {"own_temperature": True} if "temperature" in tried else {}
        except BadRequestError as error:
            said = {"max_tokens": "max_completion_tokens", "temperature": "temperature"}
            new = {name for name, word in said.items() if word in str(error)} - tried
            if _NO_ROOM.search(str(error)) or not new:
                raise
            refused |= new


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
