"""Engines: tiny models of every family against transformers itself, programs that go wrong, a server."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import openai
import pytest
import torch
from families import FAMILIES, TEXTS, make_family
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

from xsta_lib.encoders.backbones import BackboneError
from xsta_lib.translation.engines import BEAMS, TIMEOUT, CommandEngine, EngineError, LanguageModelEngine, open_engine
from xsta_lib.translation.sentences import cut, split_sentences

SPANISH = {  # by family: what asks it for Spanish, before the text or as the first token that it writes
    "nllb": ("", "eng_Latn", "spa_Latn"),
    "m2m100": ("", "en", "__es__"),
    "mbart": ("", "en_XX", "es_XX"),
    "madlad": ("<2es> ", None, None),
    "opus-mt-en-es": ("", None, None),
    "opus-mt-en-itc": (">>spa<< ", None, None),
}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("families")
    return {family: make_family(family, folder / family) for family in FAMILIES}


def by_hand(place: Path, texts: Sequence[str], family: str, room: int) -> list[str]:
    """Texts one by one, as the family's page in the documentation of transformers translates it."""
    tokenizer, model = AutoTokenizer.from_pretrained(place), AutoModelForSeq2SeqLM.from_pretrained(place).eval()
    before, source, target = SPANISH[family]
    options = {"max_new_tokens": room, "max_length": None, "num_beams": BEAMS}
    if source:
        tokenizer.src_lang = source
        options["forced_bos_token_id"] = tokenizer.convert_tokens_to_ids(target)
    inputs = (tokenizer(before + text, return_tensors="pt") for text in texts)
    written = [model.generate(**each, **options)[0] for each in inputs]
    return [tokenizer.decode(ids[2 if source else 1 :], skip_special_tokens=True).strip() for ids in written]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_translates_as_transformers_does(models: dict[str, Path], family: str) -> None:
    engine = open_engine(f"hf:{models[family]}")
    texts = [TEXTS[1], TEXTS[2], TEXTS[0]]
    found = engine.translate([*texts[:2], "", texts[2]], "en", "es")
    longest = max(len(engine.tokenizer(SPANISH[family][0] + text)["input_ids"]) for text in texts)
    room = min(2 * longest + 50, engine.limit)  # the same for the whole batch
    assert found.pop(2) == "" and found == by_hand(models[family], texts, family, room)
    assert len(set(found)) > 1 and engine.name == f"hf:{models[family]}"
    assert engine.licence == ("CC-BY-NC-4.0" if family == "nllb" else None)
    if family != "opus-mt-en-es":
        tokens = {engine._direction("en", language) for language in ("es", "spa", "es-MX")}
        assert len(tokens) == 1


class Harm:
    """What runs code when it is unpickled by who trusts a file."""

    def __reduce__(self):
        return print, ("harm",)


@pytest.mark.filterwarnings("ignore")
def test_weights_in_the_older_form_are_read_without_running_what_is_in_them(
    models: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    place = shutil.copytree(models["nllb"], tmp_path / "nllb")
    weights = load_file(place / "model.safetensors")
    (place / "model.safetensors").unlink()
    torch.save(weights, place / "pytorch_model.bin")  # as the hub's NLLB-200 and Opus-MT are
    wanted = open_engine(f"hf:{models['nllb']}").translate(TEXTS, "en", "es")
    assert open_engine(f"hf:{place}").translate(TEXTS, "en", "es") == wanted
    torch.save(weights | {"x": Harm()}, place / "pytorch_model.bin")
    with pytest.raises(BackboneError):
        open_engine(f"hf:{place}")
    assert "harm" not in capsys.readouterr().out


def test_translations_are_kept_under_a_models_weights(models: dict[str, Path], tmp_path: Path) -> None:
    place = Path(shutil.copytree(models["nllb"], tmp_path / "nllb"))
    key = open_engine(f"hf:{place}").key
    assert open_engine(f"hf:{place}/../nllb").key == key != open_engine(f"hf:{models['nllb']}").key
    weights = load_file(place / "model.safetensors")
    save_file({name: value + 1 for name, value in weights.items()}, place / "model.safetensors", {"format": "pt"})
    assert open_engine(f"hf:{place}").key != key


WITHOUT_SENTENCEPIECE = """import importlib.machinery, sys
paths = importlib.machinery.PathFinder
find = paths.find_spec
paths.find_spec = staticmethod(lambda name, *more: None if name == "sentencepiece" else find(name, *more))
from xsta_lib.encoders.backbones import load_translator
load_translator(sys.argv[1])"""


@pytest.mark.heavy
def test_a_missing_package_is_named_before_the_weights_are_read(models: dict[str, Path], tmp_path: Path) -> None:
    place = Path(shutil.copytree(models["opus-mt-en-es"], tmp_path / "opus"))
    (place / "model.safetensors").unlink()
    done = subprocess.run([sys.executable, "-c", WITHOUT_SENTENCEPIECE, str(place)], capture_output=True, text=True)
    assert done.stderr.strip().endswith("pip install 'xsta[translate]'")


@pytest.mark.filterwarnings("ignore")
def test_a_text_beyond_the_limit_is_translated_in_parts(models: dict[str, Path]) -> None:
    engine = open_engine(f"hf:{models['m2m100']}")
    text = "The house is red, where is the river? " * 4 + "T" * 200  # 64 tokens are its limit
    engine.tokenizer.src_lang = "en"
    parts = cut(text, lambda part: engine._length(part) <= engine.limit)
    assert len(parts) > 4 and "".join("".join(parts).split()) == "".join(text.split())
    assert engine.translate([text], "en", "es") == [" ".join(engine.translate(parts, "en", "es"))]
    with pytest.warns(UserWarning, match="had no end when they reached the longest length"):
        engine.translate([text], "en", "es")


def test_languages_that_a_model_lacks_are_named_with_the_nearest(models: dict[str, Path], tmp_path: Path) -> None:
    nllb = open_engine(f"hf:{models['nllb']}")
    wanted = {"ar": "arb_Arab", "sw": "swh_Latn", "zh": "zho_Hans", "zh-Hant": "zho_Hant", "no": "nob_Latn"}
    wanted |= {
        "ko": "kor_Hang",
        "fa": "pes_Arab",
        "ps": "pbt_Arab",
        "qu": "quy_Latn",
        "lv": "lvs_Latn",
        "iw": "heb_Hebr",
    }
    assert {language: nllb._code(language) for language in wanted} == wanted
    with pytest.raises(EngineError, match=r"does not have the language 'ms'; the nearest of its 52 .*: id_ID"):
        open_engine(f"hf:{models['mbart']}").translate(["x"], "en", "ms")
    with pytest.raises(EngineError, match="'ja'; the nearest of its 2 languages: por, spa"):
        open_engine(f"hf:{models['opus-mt-en-itc']}").translate(["x"], "en", "ja")
    for source, target in (("en", "de"), ("fr", "es")):
        with pytest.raises(EngineError, match=f"translates eng to es, not {source} to {target}"):
            open_engine(f"hf:{models['opus-mt-en-es']}").translate(["x"], source, target)
    place = Path(shutil.copytree(models["opus-mt-en-es"], tmp_path / "opus-mt-en-es"))
    path = place / "tokenizer_config.json"
    said = json.loads(path.read_text("utf-8"))
    path.write_text(json.dumps({key: value for key, value in said.items() if not key.endswith("_lang")}), "utf-8")
    open_engine(f"hf:{place}").check("en", "de")  # its files name no language
    with pytest.raises(BackboneError, match="no such file or folder"):
        open_engine(f"hf:{tmp_path}/none")
    for name in ("apertium", "hf:", "gpt:x", "command: "):
        with pytest.raises(ValueError, match="engines are hf:MODEL"):
            open_engine(name)


def program(tmp_path: Path, body: str) -> str:
    """An engine of a Python program; ``lines`` are what it reads."""
    path = tmp_path / "program.py"
    path.write_text(f"import os, sys, time\nlines = sys.stdin.read().split('\\n')[:-1]\n{body}\n", "utf-8")
    return f"command:{sys.executable} {path} {{source}}-{{target3}}"


def test_command_reads_lines_and_writes_as_many(tmp_path: Path) -> None:
    engine = open_engine(program(tmp_path, "[print(sys.argv[1], line[::-1]) for line in lines]"))
    texts = ["one\ntwo\r\n three\u2028four", "", "ünï 中文", *map(str, range(20_000))]
    found = engine.translate(texts, "en", "es")
    assert found[:3] == ["en-spa ruof eerht owt eno", "en-spa", "en-spa 文中 ïnü"]
    assert len(found) == len(texts) and found[-1] == "en-spa 99991"
    assert engine.translate(["a"], "de", "sw") == ["de-swa a"] and engine.translate([], "de", "sw") == []
    with pytest.raises(EngineError, match="'xq' has no code of three letters; write {source}, {target} or the code"):
        engine.translate(["a"], "en", "xq")
    fixed = CommandEngine("command:cat")
    assert fixed.translate(["a"], "en", "es") == ["a"]
    with pytest.raises(EngineError, match="names no language and was asked for en to es before"):
        fixed.translate(["a"], "es", "en")


def test_a_program_gets_its_secrets_and_nothing_else_does(tmp_path: Path) -> None:
    words = "--api-key sk-1 --token='sk 2' LOGIN_PASSWORD=sk-3 -H 'Authorization: Bearer sk-4' -H 'X-Api-Key: sk-5'"
    words += " http://me:sk-6@host -H 'Authorization: Basic sk-7' -u me:sk-8 http://host?auth=sk-9"
    engine = open_engine(
        f"{program(tmp_path, 'print(*sys.argv[2:])')} {words} --tokenizer moses --max-tokens 9 -u en-es"
    )
    assert engine.translate(["a"], "en", "es") == [
        words.replace("'", "") + " --tokenizer moses --max-tokens 9 -u en-es"
    ]
    assert "sk" not in engine.name.partition("{source}")[2]
    masked = "--api-key *** --token=*** LOGIN_PASSWORD=*** -H 'Authorization: Bearer ***' -H 'X-Api-Key: ***' http://***@host"
    masked += " -H 'Authorization: Basic ***' -u *** http://host?auth=***"
    assert engine.name.endswith(f"{masked} --tokenizer moses --max-tokens 9 -u en-es")


FAULTS = {
    "[print(x) for x in lines if x != 'bad']": r"wrote 4 lines for 5; the first that fails is 'bad'",
    "[print(x) or x == 'bad' and print() for x in lines]": r"wrote 6 lines for 5; the first that fails is 'bad'",
    "[print(x, flush=True) if x != 'bad' else sys.exit('no \u00fc here') for x in lines]": (
        r"ended with status 1: no \u00fc here; it came to line 4 of 5: 'bad'"
    ),
    "[print(x, flush=True) if x != 'bad' else os.kill(os.getpid(), 9) for x in lines]": (
        r"ended with status -9: it says nothing; it came to line 4 of 5: 'bad'"
    ),
    "[print(x, flush=True) if x != 'bad' else os.system('sleep 60') for x in lines]": (
        r"did not end within 2 seconds \(XSTA_TRANSLATE_TIMEOUT allows more\); it came to line 4 of 5: 'bad'"
    ),
    "[os.write(1, b'\\xff\\n' if x == 'bad' else b'x\\n') for x in lines]": "did not write UTF-8 for the line 'bad'",
    "while True: os.write(1, b'y\\n' * 9999)": r"wrote more than 1,001,200 bytes; it must write one line for each",
}


@pytest.mark.parametrize("body", FAULTS)
def test_a_program_that_goes_wrong_is_refused_with_the_line(
    body: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(TIMEOUT, "2")
    began = time.monotonic()
    with pytest.raises(EngineError, match=FAULTS[body]):
        open_engine(program(tmp_path, body)).translate(["a", "b", "c", "bad", "d"], "en", "es")
    assert time.monotonic() - began < 20  # the child that sleeps for a minute ended too


def test_programs_and_times_that_are_none(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="there is no program 'no-such-program'; install it"):
        open_engine("command:no-such-program -x")
    with pytest.raises(ValueError, match="No closing quotation; mend its quotes"):
        open_engine("command:cat 'x")
    for value in ("soon", "inf", "nan", "-1", "0", "1e300"):
        monkeypatch.setenv(TIMEOUT, value)
        with pytest.raises(ValueError, match=f"{TIMEOUT} is '{value}'; it must be a number of seconds, above 0"):
            open_engine("command:cat")


def test_ctrl_c_ends_the_program_too(tmp_path: Path) -> None:
    engine = open_engine(program(tmp_path, f"open('{tmp_path}/pid', 'w').write(str(os.getpid())); time.sleep(60)"))
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where a shell started us behind itself
    threading.Timer(1.5, os.kill, [os.getpid(), signal.SIGINT]).start()
    try:
        with pytest.raises(KeyboardInterrupt):
            engine.translate(["a"], "en", "es")
    finally:
        signal.signal(signal.SIGINT, before)
    pid = (tmp_path / "pid").read_text()
    assert not Path(f"/proc/{pid}/cmdline").exists() or not Path(f"/proc/{pid}/cmdline").read_bytes()


@pytest.mark.skipif(not shutil.which("apertium"), reason="Apertium is not installed (apt install apertium-eng-spa)")
def test_apertium_translates_there_and_back() -> None:
    engine = open_engine("command:apertium -u {source3}-{target3}")
    spanish = engine.translate(
        ["The house is red.", "[x] a/b ^c$ {d} <e> \\f @g", "In 1999,\nthe river was big."], "en", "es"
    )
    assert spanish[0] == "La casa es roja." and len(spanish) == 3 and spanish[2].startswith("En 1999, el río")
    assert engine.translate(spanish[:1], "es", "en") == ["The house is red."]
    with pytest.raises(EngineError, match="ended with status 1: .*'x'"):
        engine.translate(["x"], "en", "sw")


class Server(BaseHTTPRequestHandler):
    """Answers with the prompt's text in capitals; refuses some, and does not end others."""

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        prompt = asked["messages"][0]["content"]
        self.server.seen.append((prompt, asked["max_tokens"]))
        text = prompt.split("\n\n")[1]
        message = {"role": "assistant", "content": None if "refuse" in text else f"\n{text.upper()}\n"}
        if "think" in text:
            message["content"] = f"<think>\nHm, {text}?\n</think>{message['content']}"
        ends = {"endless": "length", "filtered": "content_filter"}
        choice = {"index": 0, "message": message, "finish_reason": ends.get(text, "stop")}
        head = {"id": "c", "object": "chat.completion", "created": 0, "model": "m"}
        raw = json.dumps(head | {"choices": [choice]}).encode()
        self.send_response(401 if "secret" in text else 200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(raw)))
        self.end_headers()
        self.wfile.write(raw)

    def log_message(self, *given) -> None:
        """Nothing on the screen."""


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[ThreadingHTTPServer]:
    monkeypatch.setattr(openai._base_client, "INITIAL_RETRY_DELAY", 0.02)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Server)
    server.seen, server.daemon_threads = [], True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def test_a_language_model_translates(server: ThreadingHTTPServer) -> None:
    url = f"http://127.0.0.1:{server.server_port}/v1"
    engine = open_engine(f"llm:org/m@home@{url}")
    assert engine.model == "org/m@home"
    texts = ["one", "please refuse", "endless", "filtered", "think twice", *(f"text {i}" for i in range(9))]
    assert engine.translate(texts, "en", "es") == ["ONE", "", "", "", "THINK TWICE", *(f"TEXT {i}" for i in range(9))]
    assert all(prompt.startswith("Translate the text from English to Spanish.") for prompt, _ in server.seen)
    assert {longest for _, longest in server.seen} == {1024}
    for pair, names in ((("zu", "zh-Hant"), "Zulu to Traditional Chinese"), (("uig", "de-LU"), "Uyghur to German")):
        engine.translate(["one"], *pair)
        assert server.seen[-1][0].startswith(f"Translate the text from {names}.")
    with pytest.raises(EngineError, match="the key is refused.*run the same command again"):
        engine.translate(["secret"], "en", "es")
    with pytest.raises(EngineError, match="check the address and the server"):
        LanguageModelEngine("llm:m@http://127.0.0.1:9/v1", retries=0).translate(["x"], "en", "es")
    with pytest.raises(ValueError, match="lacks the model or the address; write llm:MODEL@http"):
        open_engine("llm:m")
    with pytest.raises(ValueError, match="the address is 'somewhere'"):
        open_engine("llm:m@somewhere")
    with pytest.raises(ValueError, match="the address holds a name, a key or a query"):
        open_engine("llm:m@http://me:secret@localhost/v1")


@settings(deadline=None, max_examples=200)
@given(st.text("ab .,;:。、é\u0301\u0e01\u0e33\n🙂", max_size=80), st.integers(1, 12))
def test_a_cut_loses_nothing(text: str, most: int) -> None:
    parts = cut(text, lambda part: len(part) <= most)
    assert re.sub(r"\s", "", "".join(parts)) == re.sub(r"\s", "", text)
    assert all(part and part == part.strip() and (len(part) <= most or len(part) == 1) for part in parts)


@settings(deadline=None, max_examples=200)
@given(st.text("aB. ?!。？\n\t🙂é\u2028", max_size=80), st.sampled_from(["en", "es", "zh", "zh-Hant", "th", "xx"]))
def test_sentences_lie_where_they_say(text: str, language: str) -> None:
    places = split_sentences(text, language)
    assert all(text[start:end] == text[start:end].strip() != "" for start, end in places)
    bounds = [0, *(bound for place in places for bound in place), len(text)]
    assert bounds == sorted(bounds)
    gaps = "".join(text[low:high] for low, high in zip(bounds[::2], bounds[1::2], strict=True))
    assert not gaps.strip()
