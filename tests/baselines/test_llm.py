"""A large language model asked over HTTP: a local server of the OpenAI protocol with a tiny model, and faulty ones."""

import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import openai
import pytest
import torch
from toy import toy_questions
from transformers import LlamaConfig, LlamaForCausalLM

from xsta_lib import cli
from xsta_lib.baselines.llm import PROMPT, ask_all, key_of, prompt_of, read_answers
from xsta_lib.data.protocols import TestSet
from xsta_lib.data.squad import Answer, Question, write_squad
from xsta_lib.encoders.backbones import load_tokenizer
from xsta_lib.experiments.experiment import setting_of
from xsta_lib.experiments.frames import compared_systems, metrics_frame
from xsta_lib.experiments.llm import answers_path, chosen_part, contains_gold, kept_llm_answers, run_llm
from xsta_lib.experiments.results import load_all_results, load_results, load_scores
from xsta_lib.experiments.tables import cost_block, write_tables
from xsta_lib.prediction.server import KEY, AskingError, open_client

SECRET = "sk-secret-of-this-test"
Reply = Callable[[dict, "Handler"], None]


def completion(text: str | None, finish: str = "stop", prompt: int = 7, answer: int = 3) -> dict:
    """A reply of the protocol."""
    message = {"role": "assistant", "content": text}
    usage = {"prompt_tokens": prompt, "completion_tokens": answer}
    head = {"id": "c1", "object": "chat.completion", "created": 0, "model": "tiny"}
    return head | {"choices": [{"index": 0, "message": message, "finish_reason": finish}], "usage": usage}


class Handler(BaseHTTPRequestHandler):
    """Hands every request to the server's ``reply`` and keeps what was asked."""

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        assert self.path == "/v1/chat/completions" and asked.get("temperature", 0) == 0
        self.server.seen.append((asked["messages"][0]["content"], self.headers["Authorization"]))
        self.server.reply(asked, self)

    def send(self, body: dict | str, status: int = 200, **headers: str) -> None:
        kind = "application/json" if isinstance(body, dict) or body.startswith("{") else "text/html"
        raw = (json.dumps(body) if isinstance(body, dict) else body).encode()
        self.send_response(status)
        for name, value in {"Content-Type": kind, "Content-Length": str(len(raw)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(raw)

    def log_message(self, *given) -> None:
        """Nothing on the screen."""


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Reply], ThreadingHTTPServer]]:
    """Starts servers; a client's pauses between tries are short here."""
    monkeypatch.setattr(openai._base_client, "INITIAL_RETRY_DELAY", 0.02)
    servers = []

    def start(reply: Reply) -> ThreadingHTTPServer:
        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        server.reply, server.seen, server.daemon_threads = reply, [], True
        server.url = f"http://127.0.0.1:{server.server_port}/v1"
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        return server

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture
def model_reply(backbone: Path) -> Reply:
    """A random causal model of two layers that reads the prompt's end and writes six tokens."""
    tokenizer = load_tokenizer(str(backbone))
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **sizes, pad_token_id=1)).eval()
    lock = threading.Lock()

    def reply(asked: dict, handler: Handler) -> None:
        ids = tokenizer(asked["messages"][0]["content"], return_tensors="pt")["input_ids"][:, -48:]
        with lock, torch.no_grad():
            written = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=6, do_sample=False)
        text = tokenizer.decode(written[0, ids.shape[1] :], skip_special_tokens=True)
        handler.send(completion(text, "length", ids.shape[1], 6))

    return reply


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of test questions in two languages, and a home for runs and results; the key is set."""
    monkeypatch.setenv("XSTA_HOME", str(tmp_path / "home"))
    monkeypatch.setenv(KEY, SECRET)
    folder = tmp_path / "toyfiles"
    for language, template in (("en", "River {} is in "), ("de", "Der Fluss {} ist in ")):
        write_squad(folder / f"test.{language}.json", toy_questions(template, "Where {}?"))
    return folder


def questions(count: int = 6) -> dict[str, Question]:
    """Questions by their keys, for the model ``tiny``."""
    return {key_of("tiny", q): q for q in toy_questions("River {} is in ", "Where is river {}?")[:count]}


def holds(folder: Path, text: str) -> bool:
    """Whether any file below a folder holds a text."""
    return any(text.encode() in path.read_bytes() for path in folder.rglob("*") if path.is_file())


def test_command_asks_scores_and_pays_nothing_twice(
    files: Path, serve, model_reply: Reply, capsys: pytest.CaptureFixture
) -> None:
    server = serve(model_reply)
    command = ["llm", "--endpoint", server.url, "--model", "org/tiny", "--protocol", str(files)]
    assert cli.main([*command, "--questions", "5", "--languages", "de"]) == 0
    assert len(server.seen) == 5 and all(key == f"Bearer {SECRET}" for _, key in server.seen)
    assert cli.main(command) == 0
    assert len(server.seen) == 32 and max(Counter(prompt for prompt, _ in server.seen).values()) == 1
    assert cli.main(command) == 0 and len(server.seen) == 32
    shown = capsys.readouterr()
    assert "contains the gold text: en" in shown.out and "32/32" in shown.err and "llm org/tiny" in shown.out
    home = files.parent / "home"
    assert not holds(home, SECRET) and SECRET not in shown.out + shown.err
    part, whole = (
        json.loads((home / "results" / "toyfiles" / f"llm_org-tiny{name}.json").read_text("utf-8"))
        for name in ("_questions-5_languages-de", "")
    )
    assert whole["config"]["prompt"] == PROMPT and whole["endpoint"] == server.url and whole["model"] == "org/tiny"
    assert whole["sequences"] == 32 == whole["cut"] and whole["completion_tokens"] == 6 * 32 and whole["seconds"] > 0
    assert whole["tokens"] == whole["prompt_tokens"] + 6 * 32 and part["metrics"]["toyfiles"]["de"]["n"] == 5
    kept = read_answers(answers_path(str(files), "org/tiny"))
    assert len(kept) == 32 and {line["finish"] for line in kept.values()} == {"length"}
    scores = load_scores(home / "results" / "toyfiles" / "llm_org-tiny.scores.parquet", "toyfiles")
    assert len(scores) == 32
    results = load_results(str(files))
    assert list(compared_systems(metrics_frame(results))["system"].unique()) == ["llm org/tiny"]
    assert cost_block(results)[1].loc["llm org/tiny", "sequences"] == "32"
    text = write_tables(results)[0].read_text("utf-8")
    assert "| llm org/tiny |" in text and "part of" not in text
    assert cli.main([*command, "--source", "de"]) == 0 and len(server.seen) == 32  # beside runs that German teaches
    (german,) = (result for result in load_all_results(str(files)) if result["source_language"] == "de")
    assert setting_of(german["config"]) == "source_language=de" and len(load_results(str(files))) == len(results)


def test_faults_that_pass_cost_no_answer(serve, tmp_path: Path) -> None:
    """A connection that drops, a stall, 429 with Retry-After, 500: tried again, and every answer comes once."""
    waited, faults, lock = [], ["drop", "stall", 429, 500, "drop", 503, "stall", 429], threading.Lock()

    def reply(asked: dict, handler: Handler) -> None:
        with lock:
            fault = faults.pop() if faults else ""
        if fault == "drop":
            handler.close_connection = True
            handler.connection.close()
        elif fault == "stall":
            time.sleep(0.8)
        elif fault == 429:
            waited.append(time.monotonic())
            handler.send({"error": {"message": "slow down"}}, 429, Retry_After="1")
        elif fault:
            handler.send({"error": {"message": "oops"}}, fault)
        else:
            handler.send(completion(asked["messages"][0]["content"][-12:]))

    server, asked = serve(reply), questions(10)
    began = time.monotonic()
    found = ask_all(open_client(server.url, patience=0.3), "tiny", asked, tmp_path / "a.jsonl", progress=False)
    assert {key: line["answer"] for key, line in found.items()} == {
        key: prompt_of(q)[-12:].strip() for key, q in asked.items()
    }
    assert len((tmp_path / "a.jsonl").read_text("utf-8").splitlines()) == 10 and not faults and len(server.seen) == 18
    assert time.monotonic() - began > 1 and len(waited) == 2


@pytest.mark.parametrize(
    ("fault", "sentence"),
    [
        (401, rf"the key is refused \(401\); set {KEY}"),
        (404, r"no model 'tiny', or no such address \(404\); check --model"),
        (429, r"asks to wait \(429\), 2 times: a limit or the quota"),
        (500, r"the server failed \(500\), 2 times"),
        (418, r"the request is refused \(.*teapot"),
        ("drop", r"cannot be reached, or drops the connection, 2 times; check --endpoint"),
        ("stall", r"no reply within 0 seconds, 2 times"),
        ("<html>Welcome</html>", r"not one of the OpenAI protocol; check --endpoint"),
        ('{"choices": [', r"not one of the OpenAI protocol"),
        ({"answer": 42}, r"not one of the OpenAI protocol"),
        ({"choices": []}, r"not one of the OpenAI protocol"),
        (completion("Paris", prompt="many"), r"not one of the OpenAI protocol"),
        (completion("Paris", prompt=float("inf")), r"not one of the OpenAI protocol"),
        (completion(["Paris"]), r"not one of the OpenAI protocol"),
    ],
    ids=str,
)
def test_faults_that_stay_stop_with_a_sentence_and_keep_what_was_answered(
    fault: object, sentence: str, serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first three questions are answered; the run stops, and the next one asks only for the others."""
    monkeypatch.setenv(KEY, SECRET)
    lock, good = threading.Lock(), [3]

    def reply(asked: dict, handler: Handler) -> None:
        with lock:
            good[0] -= 1
            mine = good[0] >= 0
        if mine:
            handler.send(completion("Paris"))
        elif fault == "drop":
            handler.close_connection = True
            handler.connection.close()
        elif fault == "stall":
            time.sleep(1)
        elif isinstance(fault, int):
            handler.send({"error": {"message": f"I am a teapot and your key is {SECRET}"}}, fault)
        else:
            handler.send(fault)

    server, asked, path = serve(reply), questions(6), tmp_path / "a.jsonl"
    client = open_client(server.url, retries=1, patience=0.25)
    with pytest.raises(AskingError, match=sentence) as stopped:
        ask_all(client, "tiny", asked, path, together=1, progress=False)
    assert SECRET not in str(stopped.value) and "run the same command again" in str(stopped.value)
    assert stopped.value.__suppress_context__ and len(read_answers(path)) == 3 and not holds(tmp_path, SECRET)
    good[0] = 100
    server.seen.clear()
    found = ask_all(client, "tiny", asked, path, progress=False)
    assert len(server.seen) == 3 and [line["answer"] for line in found.values()] == ["Paris"] * 6
    assert list(found) == list(asked) and SECRET not in path.read_text("utf-8")


def test_requests_under_way_are_kept_when_another_stops_the_run(serve, tmp_path: Path) -> None:
    """One is refused while three others are being answered."""
    barrier = threading.Barrier(4)

    def reply(asked: dict, handler: Handler) -> None:
        barrier.wait(5)
        if "river 0" in asked["messages"][0]["content"]:
            handler.send({"error": {"message": "no"}}, 401)
        else:
            time.sleep(0.3)
            handler.send(completion("Rome"))

    server = serve(reply)
    with pytest.raises(AskingError):
        ask_all(open_client(server.url), "tiny", questions(16), tmp_path / "a.jsonl", progress=False)
    assert len(read_answers(tmp_path / "a.jsonl")) == 3 and len(server.seen) == 4


def test_full_context_counts_and_is_asked_again_and_a_refusal_is_an_empty_answer(files: Path, serve) -> None:
    message = "This model's maximum context length is 16 tokens. However, you requested 99 tokens"
    room = [False]

    def reply(asked: dict, handler: Handler) -> None:
        content = asked["messages"][0]["content"]
        if "Fluss 3 " in content and not room[0]:
            handler.send({"error": {"message": message, "code": "context_length_exceeded"}}, 400)
        else:
            handler.send(completion(None if "Fluss 4 " in content else "In Paris, I think."))

    server = serve(reply)
    path, result = run_llm(str(files), server.url, "tiny", ["de"], progress=False)
    assert (result["too_long"], result["too_long_ids"], result["refused"], result["sequences"]) == (1, "q3", 1, 16)
    assert result["metrics"]["toyfiles"]["de"]["em"] == 0 and result["metrics"]["toyfiles"]["de"]["n"] == 16
    assert result["contains_gold"]["toyfiles"]["de"] == pytest.approx(100 * 3 / 16)  # one in four is Paris, less q4
    room[0] = True
    server.seen.clear()
    _, again = run_llm(str(files), server.url, "tiny", ["de"], progress=False)
    assert len(server.seen) == 1 and again["too_long"] == 0 and again["fingerprint"] == result["fingerprint"]
    kept = kept_llm_answers(
        str(files), TestSet("x", "squad", {"de": toy_questions("Der Fluss {} ist in ", "Where {}?")})
    )
    assert kept["tiny"]["de"]["q3"] == "In Paris, I think." and kept["tiny"]["de"]["q4"] == "" and path.is_file()
    other = TestSet("x", "squad", {"de": toy_questions("Der Bach {} ist in ", "Where {}?")})
    assert kept_llm_answers(str(files), other) == {"tiny": {"de": {}}}


def test_newer_models_get_their_own_options_and_the_result_says_so(files: Path, serve) -> None:
    """They want the limit under another name and no temperature, and name one fault at a time."""
    faults = []

    def reply(asked: dict, handler: Handler) -> None:
        name = next((name for name in ("max_tokens", "temperature") if name in asked), "")
        remedy = {"max_tokens": "Use 'max_completion_tokens' instead.", "temperature": "Only 1 is supported."}
        if name:
            faults.append(name)
            handler.send({"error": {"message": f"Unsupported: '{name}'. {remedy[name]}"}}, 400)
        else:
            handler.send(completion("Rome", "stop" if asked["max_completion_tokens"] == 100 else "length"))

    server = serve(reply)
    _, result = run_llm(str(files), server.url, "tiny", ["de"], progress=False)
    assert (result["own_temperature"], result["cut"], result["sequences"]) == (16, 0, 16)
    assert len(server.seen) == 16 + len(faults) and len(faults) <= 2 * 4  # of those under way at once


def test_answers_of_another_endpoint_are_kept_and_said(files: Path, serve) -> None:
    first, second = (serve(lambda asked, handler: handler.send(completion("Rome"))) for _ in range(2))
    run_llm(str(files), first.url, "tiny", ["de"], progress=False)
    with pytest.warns(UserWarning, match=f"16 of {first.url}; asked are 16; to ask anew, move the file away"):
        _, result = run_llm(str(files), second.url + "/", "tiny", progress=False)
    assert len(second.seen) == 16 and result["endpoint"] == ", ".join(sorted([first.url, second.url]))


def test_what_a_file_cannot_hold_is_replaced_and_counts_may_be_texts(serve, tmp_path: Path) -> None:
    server = serve(lambda asked, handler: handler.send(completion("Par\ud800is \U0001f389", prompt="7")))
    for _ in range(2):
        found = ask_all(open_client(server.url), "tiny", questions(1), tmp_path / "a.jsonl", progress=False)
    (line,) = found.values()
    assert (line["answer"], line["prompt_tokens"]) == ("Par\ufffdis \U0001f389", 7) and len(server.seen) == 1
    (tmp_path / "a.jsonl").write_text(json.dumps(line | {"prompt_tokens": "7"}) + "\n", "utf-8")
    with pytest.raises(ValueError, match="line 1: no answer of this command; delete the line"):
        read_answers(tmp_path / "a.jsonl")


def test_torn_and_foreign_lines(tmp_path: Path, serve) -> None:
    path, server, asked = (
        tmp_path / "a.jsonl",
        serve(lambda asked, handler: handler.send(completion("x"))),
        questions(2),
    )
    ask_all(open_client(server.url), "tiny", asked, path, progress=False)
    whole = path.read_bytes()
    path.write_bytes(whole[:-4])
    with pytest.warns(UserWarning, match="last line was not whole"):
        found = ask_all(open_client(server.url), "tiny", asked, path, progress=False)
    assert len(found) == 2 and len(server.seen) == 3 and len(path.read_text("utf-8").splitlines()) == 2
    path.write_text("nonsense\n", "utf-8")
    with pytest.raises(ValueError, match="line 1: no answer of this command"):
        read_answers(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"endpoint": "localhost:8000"}, "looks like https"),
        ({"endpoint": "http://me:secret@localhost/v1"}, "holds a name, a key or a query"),
        *(
            ({"endpoint": f"http://localhost/v1{key}"}, "holds a name, a key or a query")
            for key in ("?key=1", "#sk-1", ";key=1", "/sk-1", f"/x{SECRET}")
        ),
        ({"endpoint": "http://[::1/v1"}, "--endpoint is .* looks like https"),
        ({"endpoint": "http://localhost:99999/v1"}, "--endpoint is .* looks like https"),
        ({"languages": ["de", "xx"]}, "--languages xx: protocol .* tests en, de"),
    ],
)
def test_what_cannot_be_asked_is_refused_first(change: dict, message: str, files: Path) -> None:
    with pytest.raises(ValueError, match=message):
        run_llm(str(files), **{"endpoint": "http://localhost:9/v1", "model": "tiny", **change})


def test_a_part_is_the_same_questions_in_every_language() -> None:
    sides = {name: toy_questions(name + " {} is ", "Where {}?") for name in ("en", "de", "hi")}
    part = chosen_part(TestSet("x", "squad", sides, sides["en"]), ["hi", "de"], 5)
    ids = {language: [question.id for question in found] for language, found in part.questions.items()}
    assert list(ids) == ["de", "hi"] and ids["de"] == ids["hi"] and len(ids["de"]) == 5 and part.source is None
    assert ids["de"] != [f"q{i}" for i in range(5)]


def test_gold_text_is_looked_for_as_it_is_scored() -> None:
    question = Question("q", "?", "x", (Answer("The City, of Rome", 0), Answer("...", 0)))
    assert contains_gold("It is the city of rome!", question, "en", "squad")
    assert not contains_gold("It is a town", question, "en", "squad")
    seven = Question("q", "?", "x", (Answer("7", 0),))
    assert contains_gold("In 7 years", seven, "en", "squad") and contains_gold("第7年", seven, "zh", "mlqa")
    assert not contains_gold("In 1817", seven, "en", "squad")
