"""Translation engines: a sequence-to-sequence model, a program that reads lines, or a large language model's server."""

import os
import re
import select
import shlex
import shutil
import signal
import subprocess
import tempfile
import time
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Protocol

import langcodes
import torch

from ..data.files import weights_key, without_secrets
from ..data.folders import language_name
from ..encoders.backbones import load_translator, local_path
from ..encoders.checks import max_window
from ..prediction.server import TOGETHER, AskingError, ask, open_client
from ..training.machine import has_bf16
from ..training.ranks import device
from .sentences import cut, glue

NAMES = "hf:MODEL (a folder or hub id), command:PROGRAM ARGUMENTS or llm:MODEL@URL"
BEAMS = 4
TOKENS = 4096  # of a batch, padding included
PATIENCE, TIMEOUT = 600.0, "XSTA_TRANSLATE_TIMEOUT"  # seconds that a program has for CommandEngine.chunk lines
LONGEST_PATIENCE = 1_000_000  # seconds
MOST_BYTES, MOST_TIMES = 1_000_000, 100  # a program's output: so many bytes, and so many for each that it reads
SAID = 4096  # bytes at the end of what a program complains of
SCRIPTS = (".py", ".sh", ".pl", ".rb", ".js", ".jar")  # what an interpreter runs is part of the program
CUT = ("length", "content_filter")  # why a language model's answer is not whole
ANSWER_TOKENS = 1024  # of a language model, for one sentence
_THOUGHT = re.compile(r"\A\s*<think>.*?(</think>|\Z)", re.DOTALL)  # of servers that do not part it from the answer
NEAR = 5  # langcodes' distance between tags that stand for one language: nob for no has 1, Malay for Indonesian 14
LANGUAGE_TOKENS = {  # by model type: how a model of the family spells a language in its vocabulary
    "m2m_100": (r"()([a-z]{3}_[A-Z][a-z]{3})()", r"(__)(\w+)(__)"),  # NLLB-200, M2M100
    "nllb-moe": (r"()([a-z]{3}_[A-Z][a-z]{3})()",),
    "mbart": (r"()([a-z]{2,3}_[A-Z]{2})()",),
    "t5": (r"(<2)(\w+)(>)",),  # MADLAD-400
    "umt5": (r"(<2)(\w+)(>)",),
    "marian": (r"(>>)(\w+)(<<)",),  # Opus-MT with several targets
}
WRITTEN_BEFORE = ("t5", "umt5", "marian")  # the target language is the first piece of the text
MEMBERS = {"pbt": "ps", "quy": "qu", "gaz": "om", "ayr": "ay"}  # a language's main variety, where langcodes lacks it
LICENCES = {"nllb": "CC-BY-NC-4.0"}  # by a part of the model's name; others say theirs in a card, if anywhere
PROMPT = """Translate the text from {source} to {target}. Write the translation and nothing else.

{text}"""


class EngineError(RuntimeError):
    """A text cannot be translated; the message says which, why, and what to do."""


class LanguageError(EngineError):
    """The engine is not for a language, or not for two pairs."""


class Engine(Protocol):
    """Texts in, texts out.

    Attributes:
        name: as the user wrote it, without secrets; messages and files bear it.
        key: what its translations are kept under: the name, and for what lies on this machine its place and content.
        licence: of the model, where it is known; a condition on what it makes may follow from it.
        chunk: so many texts are best handed over at once.
    """

    name: str
    key: str
    licence: str | None
    chunk: int

    def check(self, source: str, target: str) -> None:
        """Refuse, with a LanguageError, a pair of languages that it is known not to translate."""

    def translate(self, texts: Sequence[str], source: str, target: str) -> list[str]:
        """The translations, in order and as many; one is empty where the engine has none.

        Args:
            texts: sentences, as a rule, each without line breaks.
            source, target: ISO 639 codes, such as ``"en"``.

        Raises:
            EngineError: the engine fails; LanguageError: it does not have a language.
        """


def open_engine(name: str | Engine) -> Engine:
    """The engine of a name: ``hf:MODEL``, ``command:PROGRAM ARGUMENTS`` or ``llm:MODEL@URL``; an engine is its own.

    In the arguments of a program ``{source}`` and ``{target}`` become the languages' codes as they are given,
    ``{source3}`` and ``{target3}`` those of three letters. Keys, tokens and passwords among them are used, but not kept
    (:func:`~xsta_lib.data.files.without_secrets`).

    Raises:
        ValueError: no such kind, model, program or address; the message has the remedy.
    """
    if not isinstance(name, str):
        return name
    kind, _, rest = name.partition(":")
    engines = {"hf": HuggingFaceEngine, "command": CommandEngine, "llm": LanguageModelEngine}
    if kind not in engines or not rest.strip():
        raise ValueError(f"no translation engine {name!r}; engines are {NAMES}")
    return engines[kind](name)


def _tag(code: str) -> str:
    """A language code in one spelling, that of CLDR: ``spa_Latn``, ``es_XX`` and ``spa`` become ``es``."""
    language, _, rest = code.partition("_")
    script = rest if len(rest) == 4 else ""
    tag = "-".join(filter(None, [MEMBERS.get(language, language), script.replace("Hang", "Kore")]))
    with suppress(ValueError):  # not every family keeps to the standard
        return langcodes.standardize_tag(tag, macro=True)
    return tag


def _distance(one: str, other: str) -> int:
    with suppress(ValueError):
        return langcodes.tag_distance(_tag(one.replace("-", "_")), _tag(other.replace("-", "_")))
    return 134  # as of two languages that have nothing in common


class HuggingFaceEngine:
    """A sequence-to-sequence model: NLLB-200, M2M100, mBART-50, MADLAD-400, Opus-MT. Beam search, on a GPU if any.

    Args:
        name: ``hf:`` and a folder or hub id.

    Raises:
        BackboneError: it cannot be loaded. ValueError: it is of no family that is known here.
    """

    def __init__(self, name: str):
        self.name, model_name = name, name.partition(":")[2].strip()
        folder = local_path(model_name)
        self.key = f"hf:{folder.resolve()} {weights_key(folder)}" if folder else name
        self.model, self.tokenizer = load_translator(model_name)
        self.kind = self.model.config.model_type
        if self.kind not in LANGUAGE_TOKENS:
            known = ", ".join(LANGUAGE_TOKENS)
            raise ValueError(f"{name}: a model of type {self.kind!r}; translation models have the types {known}")
        self.tokens = self._languages()
        self.licence = next((said for part, said in LICENCES.items() if part in model_name.lower()), None)
        self.model.to(device(), torch.bfloat16 if device().type == "cuda" and has_bf16(device()) else torch.float32)
        self.chunk = 128 if device().type == "cuda" else 16
        self.limit = max_window(self.model, self.tokenizer) - 4  # of one sentence; the rest is for special tokens

    def check(self, source: str, target: str) -> None:
        """See :class:`Engine`."""
        self._direction(source, target)

    def translate(self, texts: Sequence[str], source: str, target: str) -> list[str]:
        """See :class:`Engine`. A text that is too long for the model is translated in parts."""
        before, forced = self._direction(source, target)
        parts = [cut(text, lambda part: self._length(part) <= self.limit) for text in texts]
        flat = [before + part for found in parts for part in found]
        lengths = [self._length(part) for part in flat]
        done, batches = [""] * len(flat), []
        for place in sorted(range(len(flat)), key=lengths.__getitem__, reverse=True):  # alike ones together
            if not batches or (len(batches[-1]) + 1) * lengths[batches[-1][0]] > TOKENS:
                batches.append([])
            batches[-1].append(place)
        if cut_off := sum(self._batch(flat, batch, done, forced) for batch in batches):
            said = f"{self.name}: {cut_off} of {len(flat)} translations had no end when they reached the longest length"
            warnings.warn(f"{said}; they may repeat words or lack some", stacklevel=2)
        found = iter(done)
        return [glue(target).join(next(found) for _ in part) for part in parts]

    def _batch(self, flat: list[str], batch: list[int], done: list[str], forced: int | None) -> int:
        """Translate some of the texts; how many did not come to an end."""
        inputs = self.tokenizer([flat[place] for place in batch], return_tensors="pt", padding=True)
        room = min(2 * inputs["input_ids"].shape[1] + 50, self.limit)
        options = {"num_beams": BEAMS, "do_sample": False, "max_length": None, "max_new_tokens": room}
        if forced is not None:
            options["forced_bos_token_id"] = forced
        inputs = {name: inputs[name].to(self.model.device) for name in ("input_ids", "attention_mask")}
        with torch.inference_mode():
            written = self.model.generate(**inputs, **options)
        written = written[:, 1 if forced is None else 2 :]  # without the start, and the language behind it
        ends = (written == self.tokenizer.eos_token_id).any(1)
        texts = self.tokenizer.batch_decode(written, skip_special_tokens=True)
        for place, text in zip(batch, texts, strict=True):
            done[place] = text.strip()
        return int((~ends).sum())

    def _length(self, text: str) -> int:
        return len(self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])

    def _languages(self) -> dict[str, str]:
        """The tokens of languages in the vocabulary, by the languages' codes as the family spells them."""
        names = [f"__{code}__" for code in getattr(self.tokenizer, "lang_code_to_id", ()) if self.kind == "m2m_100"]
        names += list(self.tokenizer.get_vocab())
        found = [
            {match[2]: match[0] for match in map(re.compile(pattern).fullmatch, names) if match}
            for pattern in LANGUAGE_TOKENS[self.kind]
        ]
        tokens = max(found, key=len)
        if not tokens and self.kind != "marian":
            raise ValueError(f"{self.name}: its vocabulary names no language; it is no translation model of many")
        return tokens

    def _direction(self, source: str, target: str) -> tuple[str, int | None]:
        """What is written before each text, and the token that the translation is made to begin with."""
        if self.kind in WRITTEN_BEFORE:
            self._check_pair(source, target)
            return (f"{self.tokens[self._code(target)]} " if self.tokens else ""), None
        self.tokenizer.src_lang = self._code(source)
        return "", self.tokenizer.convert_tokens_to_ids(self.tokens[self._code(target)])

    def _code(self, language: str) -> str:
        """The family's code of a language; LanguageError names the nearest ones."""
        ordered = sorted(self.tokens, key=lambda code: (_distance(language, code), code))
        if _distance(language, ordered[0]) > NEAR:
            nearest = f"the nearest of its {len(ordered)} languages: {', '.join(ordered[:3])}"
            raise LanguageError(f"{self.name} does not have the language {language!r}; {nearest}; choose another model")
        return ordered[0]

    def _check_pair(self, source: str, target: str) -> None:
        """Refuse a pair that an Opus-MT model is not for, as far as it says; names of language groups say nothing."""
        said = [getattr(self.tokenizer, name, None) for name in ("source_lang", "target_lang")]
        wanted = [source, None if self.tokens else target]
        for language, code in zip(wanted, said, strict=True):
            if language and code and len(_tag(code)) == 2 and _distance(language, code) > NEAR:
                fault = f"{self.name} translates {said[0]} to {said[1]}, not {source} to {target}"
                raise LanguageError(f"{fault}; choose the model of that pair")


def _three_letters(code: str) -> str:
    try:
        return langcodes.Language.get(code).to_alpha3()
    except (LookupError, ValueError):
        raise LanguageError(
            f"{code!r} has no code of three letters; write {{source}}, {{target}} or the code"
        ) from None


def _seconds(value: str | float) -> float:
    with suppress(ValueError):
        if 0 < float(value) <= LONGEST_PATIENCE:  # nan is in no range
            return float(value)
    raise ValueError(
        f"{TIMEOUT} is {value!r}; it must be a number of seconds, above 0 and at most {LONGEST_PATIENCE:,}"
    )


class CommandEngine:
    """A program that reads lines and writes as many, such as ``command:apertium -u {source3}-{target3}``.

    It is started anew for every list of texts. One whose arguments name no language is only asked for one pair.

    Args:
        name: ``command:``, the program and its arguments, quoted as in a shell; no shell runs them. For one start they
            have the seconds of ``XSTA_TRANSLATE_TIMEOUT`` in the environment, else 600.

    Raises:
        ValueError: there is no such program, or the time is none.
    """

    licence, chunk = None, 256

    def __init__(self, name: str):
        self.name, self.pair = without_secrets(name), None
        self.timeout = _seconds(os.environ.get(TIMEOUT) or PATIENCE)
        try:
            self.words = shlex.split(name.partition(":")[2])
        except ValueError as error:
            raise ValueError(f"{self.name}: {error}; mend its quotes") from None
        if not shutil.which(self.words[0]):
            raise ValueError(f"{self.name}: there is no program {self.words[0]!r}; install it, or give its path")
        scripts = [word for word in self.words[1:] if word.endswith(SCRIPTS) and os.path.isfile(word)]
        files = [Path(word).resolve() for word in (shutil.which(self.words[0]), *scripts)]
        self.key = " ".join([self.name, *(f"{path} {weights_key(path)}" for path in files)])

    def check(self, source: str, target: str) -> None:
        """See :class:`Engine`. The first pair is the one of a program whose arguments name no language."""
        self._filled(source, target)

    def translate(self, texts: Sequence[str], source: str, target: str) -> list[str]:
        """See :class:`Engine`. Line breaks in a text become spaces."""
        words = self._filled(source, target)
        lines = [" ".join(text.split()) for text in texts]
        found = self._run(words, lines) if lines else []
        if len(found) != len(lines):
            self._refuse(words, lines, len(found))
        return [line.strip() for line in found]

    def _filled(self, source: str, target: str) -> list[str]:
        """The program and its arguments for two languages."""
        codes = {"source": source, "target": target}

        def filled(match: re.Match) -> str:
            return _three_letters(codes[match[1]]) if match[2] else codes[match[1]]

        words = [re.sub(r"\{(source|target)(3?)\}", filled, word) for word in self.words]
        if words == self.words:
            self.pair = self.pair or (source, target)
            if self.pair != (source, target):
                fault = f"{self.name} names no language and was asked for {' to '.join(self.pair)} before"
                raise LanguageError(
                    f"{fault}; write {{source}} and {{target}} ({{source3}}, {{target3}}) in its arguments"
                )
        return words

    def _refuse(self, words: list[str], lines: list[str], count: int) -> None:
        """Find the line of which the program makes another number of lines, by halves, and name it."""
        low, high = 0, len(lines)
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if len(self._run(words, lines[low:middle])) != middle - low else (middle, high)
        fault = f"{self.name} wrote {count} lines for {len(lines)}"
        raise EngineError(
            f"{fault}; the first that fails is {lines[low]!r}; it must write one line for each that it reads"
        )

    def _run(self, words: list[str], lines: list[str]) -> list[str]:
        """What the program writes for some lines."""
        sent, fault, written = "".join(line + "\n" for line in lines).encode(), "", bytearray()
        with tempfile.TemporaryFile() as asked, tempfile.TemporaryFile() as said:
            asked.write(sent)
            asked.seek(0)
            # A session of its own: a script's children end with it, also where they hold its output open.
            started = {"stdin": asked, "stdout": subprocess.PIPE, "stderr": said, "start_new_session": True}
            with subprocess.Popen(words, **started) as process:
                try:
                    self._collect(process, written, MOST_BYTES + MOST_TIMES * len(sent))
                except BaseException as stopped:
                    with suppress(ProcessLookupError):  # it has just ended
                        os.killpg(process.pid, signal.SIGKILL)
                    process.wait()
                    if not isinstance(stopped, subprocess.TimeoutExpired):
                        raise
                    fault = f"did not end within {self.timeout:g} seconds ({TIMEOUT} allows more)"
            if not fault and process.returncode:
                said.seek(max(0, said.seek(0, os.SEEK_END) - SAID))
                last = said.read().decode("utf-8", "replace").strip().splitlines()[-1:]
                fault = " ".join([f"ended with status {process.returncode}:", *(last or ["it says nothing"])])
        try:
            found = written.decode(errors="replace" if fault else "strict").split("\n")
        except UnicodeDecodeError as error:
            number = written[: error.start].count(b"\n")
            raise EngineError(
                f"{self.name} did not write UTF-8 for the line {lines[min(number, len(lines) - 1)]!r}"
            ) from None
        if fault:
            at = min(len(found), len(lines)) - 1
            raise EngineError(f"{self.name} {fault}; it came to line {at + 1} of {len(lines)}: {lines[at]!r}")
        return found[:-1] if not found[-1] else found

    def _collect(self, process: subprocess.Popen, written: bytearray, most: int) -> None:
        """Read what a program writes until it ends; ``written`` grows on the way.

        Raises:
            EngineError: it writes more than ``most`` bytes. TimeoutExpired: it has had its time.
        """
        end = time.monotonic() + self.timeout
        while True:
            left = end - time.monotonic()
            if left <= 0 or not select.select([process.stdout], [], [], left)[0]:
                raise subprocess.TimeoutExpired(process.args, self.timeout)
            if not (piece := os.read(process.stdout.fileno(), 1 << 16)):
                break
            written += piece
            if len(written) > most:
                remedy = "it must write one line for each that it reads, and end"
                raise EngineError(f"{self.name} wrote more than {most:,} bytes; {remedy}")
        process.wait(max(0.0, end - time.monotonic()))


class LanguageModelEngine:
    """A large language model behind a server of the OpenAI protocol; the key is ``OPENAI_API_KEY``.

    Args:
        name: ``llm:``, the model as the server calls it, ``@`` and the server's address.
        client: ``retries`` and ``patience`` of :func:`~xsta_lib.prediction.server.open_client`.

    Raises:
        ValueError: the address is none, or the package openai is missing.
    """

    licence, chunk = None, TOGETHER  # little at a time: what is paid is kept

    def __init__(self, name: str, **client: float):
        rest = name.partition(":")[2]
        before = re.search("@(?=https?://)", rest, re.IGNORECASE)  # what comes first: an address may hold one too
        at = before.start() if before else max(rest.rfind("@"), 0)
        self.name = self.key = name
        self.model, url = rest[:at], rest[at + 1 :]
        if not self.model:
            raise ValueError(f"{name!r} lacks the model or the address; write llm:MODEL@http://localhost:8000/v1")
        try:
            self.client = open_client(url, **client)
        except ValueError as error:
            raise ValueError(_in_our_words(error)) from None

    def check(self, source: str, target: str) -> None:
        """See :class:`Engine`. What a language model knows is not known."""

    def translate(self, texts: Sequence[str], source: str, target: str) -> list[str]:
        """See :class:`Engine`. What the model refuses, or does not bring to an end, is empty; its thoughts go."""
        names = {"source": language_name(source), "target": language_name(target)}
        prompts = [PROMPT.format(**names, text=text) for text in texts]
        try:
            with ThreadPoolExecutor(TOGETHER) as pool:
                replies = list(pool.map(lambda prompt: ask(self.client, self.model, prompt, ANSWER_TOKENS), prompts))
        except AskingError as error:
            raise EngineError(_in_our_words(error)) from None
        whole = ["" if reply["finish"] in CUT else reply["answer"] for reply in replies]
        return [" ".join(_THOUGHT.sub("", answer).split()) for answer in whole]


def _in_our_words(error: Exception) -> str:
    """A message of the client that names the options of ``xsta llm``."""
    return str(error).replace("--endpoint", "the address").replace("--model", "the model's name")
