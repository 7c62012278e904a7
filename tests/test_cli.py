"""The command line: whatever is typed, named or fed, a line says what is wrong, and no traceback."""

import argparse
import contextlib
import io
import json
import os
import resource
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub.constants
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from project import ROOT

from xsta_lib import cli
from xsta_lib.experiments.experiment import experiment
from xsta_lib.options import build_parser

QUESTION = {"id": "1", "question": "Who?", "answers": [{"text": "Ada", "answer_start": 0}]}
GOLD = {"data": [{"title": "t", "paragraphs": [{"context": "Ada met Bob.", "qas": [QUESTION]}]}]}
SHAPES = ([], 3, None, "text", {"data": 3}, {"data": [3]}, {"data": [{"paragraphs": {"context": 3}}]})
SHAPES += ({"data": [{"paragraphs": [{"context": "Ada", "qas": [None]}]}]}, {"1": ["Ada"]}, {"1": {"2": 3}})
FILES = {  # what a user may take for a file of ours
    "empty": b"",
    "blank": b" \n\t\n",
    "binary": bytes(range(256)) * 9,
    "cut": json.dumps(GOLD).encode()[:-30],
    "mark": b"\xef\xbb\xbf{",
    "latin": '{"data": "\u00e9t\u00e9"}'.encode("latin-1"),
    "wide": json.dumps(GOLD).encode("utf-16"),
    "deep": b"[" * 100_000,
    "long": b'{"data": ' + b"9" * 10_000 + b"}",
    "half": json.dumps({"data": ["\ud83d"]}).encode(),
    "lines": b'{"id": 1}\n{"id": 2}\n',
    "page": b"<html>404</html>",
    **{f"shape{number}": json.dumps(shape).encode() for number, shape in enumerate(SHAPES)},
}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with odd files, each also as a protocol's, a model's and a result's; no data, no hub, nothing else."""
    folder = tmp_path_factory.mktemp("place")
    for name, content in FILES.items():
        spots = [name, f"corpus-{name}/train.en.json", f"model-{name}/config.json", f"results/corpus-{name}/x.json"]
        for spot in spots:
            (folder / spot).parent.mkdir(parents=True, exist_ok=True)
            (folder / spot).write_bytes(content)
    (folder / "mine").mkdir()
    for spot in ("gold", "mine/train.en.json"):
        (folder / spot).write_text(json.dumps(GOLD), "utf-8")
    (folder / "predictions").write_text('{"1": "Ada"}', "utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr("xsta_lib.reader.BOX", folder / "box")  # a reader's weights need not be read here
        patch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
        for name, spot in (("HOME", "."), ("DATA", "data"), ("MIRROR", "mirror"), ("CACHE", "cache")):
            patch.setenv(f"XSTA_{name}", str(folder / spot))
        yield folder


def xsta(*arguments: str) -> tuple[int, str]:
    """Exit status and what stands on the screen of a command in this process."""
    out = io.TextIOWrapper(io.BytesIO(), "utf-8")
    status = None
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
        try:
            status = cli.main(list(arguments))
        except SystemExit as end:
            status = end.code
    out.flush()
    return status, out.buffer.getvalue().decode("utf-8")


def options(command: str) -> list[argparse.Action]:
    (commands,) = (action for action in build_parser("")._actions if isinstance(action, argparse._SubParsersAction))
    return [action for action in commands.choices[command]._actions if action.dest != "help"]


NAMED = ["gold", "predictions", "nowhere", ".", "/", "/proc/xsta", "/dev/null", "~", "-", "--", "", " ", "\0", "a\nb"]
NAMED += [
    "\ud800",
    "x" * 5000,
    "../" * 50,
    "demo",
    "x-sta",
    "gdks",
    "seeds",
    "squad",
    "de",
    "fp16",
    "xquad",
    "a/b",
    "a/b/c",
]
NAMED += [*FILES, *(f"{kind}-{name}" for kind in ("corpus", "model") for name in FILES)]
NUMBERS = ["0", "-1", "1", "nan", "inf", "-inf", "1e999", "1e-320", "9" * 400, "0x1", "1_0", "\u0661", "1.5", "True"]
VALUES = st.one_of(st.sampled_from(NAMED), st.sampled_from(NUMBERS), st.text(max_size=8))


@st.composite
def typed(draw, command: str) -> list[str]:
    """A command with odd values for its options, most of those that it needs among them."""
    words = [command]
    for action in draw(st.permutations(options(command))):
        if draw(st.integers(0, 19)) < (19 if action.required else 3):
            words += [action.option_strings[0]] if action.option_strings else []
            if action.nargs != 0:
                known = action.choices or (NUMBERS if action.type in (int, float) else NAMED)
                value = st.one_of(*[st.sampled_from(list(known))] * 4, VALUES)
                words += draw(st.lists(value, min_size=1, max_size=1 if action.nargs is None else 2))
    return words


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_no_traceback_whatever_is_typed(place, command):
    @settings(max_examples=80, deadline=None, suppress_health_check=list(HealthCheck))
    @given(typed(command))
    def check(words):
        status, screen = xsta(*words)
        assert status in (0, 1, 2), screen
        assert "Traceback" not in screen and "fault of xsta's own" not in screen, screen
        if status:
            said = screen.rstrip("\n").splitlines()[-1] if status == 2 else screen[screen.rindex("xsta: ") :]
            assert len(said) > len("xsta: ") + 10, screen

    check()


@pytest.mark.parametrize("name", ["nowhere", *FILES])
def test_a_file_of_no_use_is_named(place, name):
    uses = [
        ("evaluate", "--predictions", name, "--gold", "gold", "--language", "en"),
        ("evaluate", "--predictions", "predictions", "--gold", name, "--language", "en"),
        ("train", "--protocol", f"corpus-{name}"),
        ("figures", "--protocol", f"corpus-{name}"),
        ("check", f"corpus-{name}"),
        ("answer", "Who?", "gold", "--model", f"model-{name}"),
    ]
    for words in uses:
        status, screen = xsta(*words)
        assert status == 1 and name in screen, (words, screen)


OPTIONS = ["batch-size", "epochs", "learning-rate", "seed", "steps", "accumulation", "keep", "save-every", "dropout"]


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("value", ["-1", "nan", "inf", "1e400", "9" * 30])
def test_numbers_are_refused_before_anything_is_read(place, option, value, monkeypatch):
    monkeypatch.setattr("xsta_lib.experiments.run.load_protocol", None)  # calling it would be a fault
    monkeypatch.setattr("xsta_lib.data.protocols.load_protocol", None)
    status, screen = xsta("train", "--strict", f"--{option}={value}")
    assert status in (1, 2) and f"--{option}" in screen, screen


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("figures --backbone mbert", "--backbone belongs to --inspect"),
        ("evaluate --gold gold --predictions predictions --rule mlqa", "--rule mlqa needs --language"),
    ],
)
def test_an_option_that_would_do_nothing_and_one_that_lacks_are_said(place, words, said):
    status, screen = xsta(*words.split())
    assert status == 1 and said in screen
    status, screen = xsta("evaluate", "--gold", "gold", "--predictions", "predictions")
    assert status == 0 and json.loads(screen.splitlines()[-1])["em"] == 100


@pytest.mark.parametrize("option", ["batch-size", "epochs", "learning-rate", "accumulation", "keep", "steps"])
def test_what_must_be_above_0_is_refused_with_its_range(place, option):
    status, screen = xsta("train", f"--{option}", "0")
    assert status == 1 and f"(--{option}) is 0" in screen and "it must be a" in screen, screen


SWITCHES = [(name, value) for name in ("gamma", "alpha", "temperature") for value in (float("nan"), float("inf"), -1.0)]


@pytest.mark.parametrize("name,value", [*SWITCHES, ("sharing_layer", 0), ("sharing_layer", -1)])
def test_switches_are_refused_before_anything_is_read(name, value):
    with pytest.raises(ValueError, match=name):
        experiment("demo", "x-sta", switches=((name, value),))


@pytest.mark.parametrize(
    "changes",
    [
        *({"batch_size": value} for value in (2.5, True, None, "16")),
        *({"warmup": value} for value in (float("nan"), 1.5)),
        *({"english_epochs": value} for value in (float("inf"), -0.5)),
        {"weight_decay": -1.0},
        {"max_grad_norm": 0.0},
        {"log_every": 0},
        {"dropout": 1.0},
    ],
)
def test_what_is_no_number_in_its_range_is_no_experiment(changes):
    (name,) = changes
    with pytest.raises(ValueError, match=rf"{name} \(.*\) is .*; it must be a (whole )?number"):
        experiment("demo", "x-sta", **changes)


@pytest.mark.parametrize("variable", ["XSTA_CACHE", "XSTA_HOME"])
@pytest.mark.parametrize("spot", ["empty", "/proc/xsta"])
def test_a_folder_that_cannot_be_written_is_named_with_its_variable(place, variable, spot, monkeypatch):
    monkeypatch.setenv(variable, str(place / spot))
    monkeypatch.setattr("xsta_lib.experiments.run.train_experiment", None)  # calling it would be a fault
    status, screen = xsta("train", "--protocol", str(place / "mine"))
    assert status == 1 and variable in screen and spot in screen, screen


def test_the_demo_says_what_it_takes_and_asks_for_the_space_first(monkeypatch):
    monkeypatch.setenv("XSTA_HOME", str(ROOT))
    monkeypatch.setattr("xsta_lib.reader.Reader.__init__", None)  # calling it would be a fault
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=500_000_000))
    status, screen = xsta("demo")
    first, last = screen.strip().splitlines()
    assert status == 1 and "minutes" in first and "memory" in first and "1 GB of disk" in first
    assert "not enough space: 1,000,000,000 bytes needed, 500,000,000 free" in last


def test_a_fault_of_our_own_is_said_to_be_one(monkeypatch):
    def broken(args):
        raise KeyError("here")

    monkeypatch.setitem(cli.COMMANDS, "demo", broken)
    status, screen = xsta("demo")
    assert status == 1 and "report it" in screen and "KeyError: 'here'" in screen and "Traceback" not in screen
    monkeypatch.setenv("XSTA_DEBUG", "1")
    with pytest.raises(KeyError):
        cli.main(["demo"])


def test_white_space_around_a_language_is_not_of_it(place):
    status, screen = xsta("check", "mine", "--source", " en ")
    assert status == 0 and "1 questions" in screen, screen


def test_help_and_version_come_at_once():
    def spent() -> float:  # of the processor: others may be busy with it
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        return used.ru_utime + used.ru_stime

    for option, said in (("--help", "answer"), ("--version", "xsta 0.")):
        before = spent()
        done = subprocess.run([sys.executable, "-m", "xsta_lib.cli", option], capture_output=True, text=True)
        assert done.returncode == 0 and said in done.stdout and spent() - before < 0.5


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        ("check demo >&-", 1, "xsta: standard output is closed; send it to a file or to /dev/null\n"),
        ("check demo > /dev/full", 1, "No space left on device; make room there, or write somewhere else\n"),
        ("check nowhere 2>&-", 1, ""),
        ("answer 'Wo liegt Z\u00fcrich?' gold", 2, "is UTF-8, which this locale does not read; set PYTHONUTF8=1\n"),
    ],
)
def test_an_output_that_is_closed_or_full_and_a_locale_without_letters_are_said(words, status, said):
    shell = f"{sys.executable} -m xsta_lib.cli {words}".encode()
    environment = {"PYTHONPATH": str(ROOT), "PYTHONUTF8": "0", "LC_ALL": "C", "PATH": os.environ["PATH"]}
    done = subprocess.run(["bash", "-c", shell], cwd=ROOT, env=environment, capture_output=True, timeout=100)
    screen = done.stderr.decode()
    assert done.returncode == status and done.stdout == b"" and screen.endswith(said), screen
    assert screen.count("\n") <= 1 or status == 2


def test_a_narrow_console_and_a_closed_pipe_are_no_faults(place):
    code = "import sys; from xsta_lib import cli; cli.COMMANDS['demo'] = lambda args: print('\\u4e2d\\n' * 99999); "
    command = [sys.executable, "-c", code + "sys.exit(cli.main(['demo']))"]
    environment = os.environ | {"PYTHONIOENCODING": "ascii", "PYTHONPATH": str(Path(cli.__file__).parents[1])}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"\\u4e2d\n"
        process.stdout.close()
        assert process.stderr.read() == b"" and process.wait(30) == 1
