"""Files of translated questions: a folder from English to rough Spanish and back, made by small programs."""

import json
import resource
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from tiny import write_tiny_e5
from toy import toy_questions

from xsta_lib import cli
from xsta_lib.data.check import check
from xsta_lib.data.protocols import load_protocol
from xsta_lib.data.squad import Answer, Question, read_squad, write_squad
from xsta_lib.encoders.backbones import load_tokenizer
from xsta_lib.experiments import run
from xsta_lib.experiments.experiment import experiment
from xsta_lib.experiments.run import run_experiment, training_parts
from xsta_lib.reader import Reader
from xsta_lib.training.trainer import Trainer
from xsta_lib.translation.corpus import translate_test, translate_training
from xsta_lib.translation.engines import CommandEngine, EngineError, LanguageError, open_engine
from xsta_lib.translation.spans import Projection, StringMethod
from xsta_lib.translation.translator import Kept, Translator

CAPITALS = """import sys
for line in sys.stdin:
    line = line.rstrip("\\n")
    open(sys.argv[1], "a").write(line + "\\n")
    print("\u200b" if "untranslatable" in line else line.swapcase(), flush=True)
"""


class StringProjector(StringMethod):
    """One of the ways to find answers, which needs no model."""

    threshold = 0.7


@pytest.fixture
def engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> CommandEngine:
    """Turns letters' case, and writes down what it was asked; the cache is this test's own."""
    monkeypatch.setenv("XSTA_CACHE", str(tmp_path / "cache"))
    (tmp_path / "capitals.py").write_text(CAPITALS, "utf-8")
    return open_engine(f"command:{sys.executable} {tmp_path}/capitals.py {tmp_path}/asked {{source}}{{target}}")


def asked(tmp_path: Path) -> list[str]:
    path = tmp_path / "asked"
    return path.read_text("utf-8").splitlines() if path.exists() else []


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two passages with three questions; the file names its licence."""
    first = "Rivers flow. The river Elbe is in Dresden. It is long.\n\nThe river Main is in Frankfurt."
    second = "Nothing here. An untranslatable word is gone."
    questions = [
        Question("e", "Where is the river Elbe?", first, (Answer("Dresden", first.index("Dresden")),), "Rivers"),
        # the second gold is no span of the text, so it must not get into the translation either
        Question(
            "m", "Where is the Main?", first, (Answer("Frankfurt", first.index("Frankfurt")),), "Rivers", ("Main",)
        ),
        Question("u", "What is gone?", second, (Answer("word", second.index("word")),), "Words"),
    ]
    write_squad(tmp_path / "mine" / "train.en.json", questions, {"license": "CC BY-SA 4.0", "attribution": "A. Writer"})
    return tmp_path / "mine"


def test_places_of_sentences_are_known(engine: CommandEngine) -> None:
    text = "  One is. Two are.  \n\n Three  \tgo! 🙂 Four"
    for target, joined in (
        ("es", "oNE IS. tWO ARE.  \n\n tHREE GO! 🙂 fOUR"),
        ("zh", "oNE IS.tWO ARE.  \n\n tHREE GO!🙂 fOUR"),
        ("jpn", "oNE IS.tWO ARE.  \n\n tHREE GO!🙂 fOUR"),
    ):
        found = Translator(engine, "en", target, progress=False).passage(text)
        assert found.text == joined and not found.missing
        for low, high, start, end in found.places:
            assert " ".join(text[low:high].split()).swapcase() == found.text[start:end]
        assert found.text[slice(*found.near(text.index("Two"), text.index("Two") + 1))] == "tWO ARE."
        span = found.near(text.index("One"), text.index("Two") + 3)
        assert found.text[: span[1]].endswith("tWO ARE.") and span[0] == 0


def test_training_file_has_ids_spans_confidence_and_licences(
    folder: Path, engine: CommandEngine, tmp_path: Path
) -> None:
    (made,) = translate_training(folder, ["es"], engine, StringProjector(), progress=False)
    assert (made.kept, made.dropped) == (2, {"the engine gave nothing for a sentence": ["u"]})
    assert "2 of 3 questions (66.7 %)" in str(made) and "kept e: 'Dresden' -> 'dRESDEN' (1.00, string)" in str(made)
    questions, report = read_squad(folder / "train.es.json")
    assert not report.faults() and [(q.id, q.title) for q in questions] == [("e", "Rivers"), ("m", "Rivers")]
    english, _ = read_squad(folder / "train.en.json")
    for ours, theirs in zip(questions, english, strict=False):
        assert ours.question == theirs.question.swapcase() and ours.context == theirs.context.swapcase()
        assert ours.answers == tuple(Answer(a.text.swapcase(), a.start) for a in theirs.answers)
    file = json.loads((folder / "train.es.json").read_text("utf-8"))
    assert (file["license"], file["attribution"]) == ("CC BY-SA 4.0", "A. Writer")
    about = file["translation"]
    assert about["engine"] == engine.name and about["engine_licence"] is None and about["threshold"] == 0.7
    assert (about["source"], about["target"], about["file"], about["questions"]) == ("en", "es", "train.en.json", 2)
    answer = file["data"][0]["paragraphs"][0]["qas"][0]["answers"][0]
    assert answer == {"text": "dRESDEN", "answer_start": 34, "confidence": 1.0, "method": "string"}
    with pytest.raises(ValueError, match=r"train.es.json: already there; --overwrite replaces"):
        translate_training(folder, ["sw", "es"], engine, StringProjector(), progress=False)
    assert not (folder / "train.sw.json").exists()
    count = len(asked(tmp_path))
    (made,) = translate_training(folder, ["es"], engine, StringProjector(), overwrite=True, progress=False)
    assert asked(tmp_path)[count:] == ["An untranslatable word is gone."]  # what came back empty is asked for again


def test_low_confidence_is_dropped_and_shown(folder: Path, engine: CommandEngine) -> None:
    class Half(StringProjector):
        def project(self, rows, source, target):
            found = super().project(rows, source, target)
            return [None if i else Projection(p.start, p.end, 0.5, p.method) for i, p in enumerate(found)]

    (made,) = translate_training(folder, ["es"], engine, Half(), threshold=0.5, progress=False)
    assert made.kept == 1 and made.dropped["no place found for the answer"] == ["m"]
    assert "dropped m: 'Frankfurt' -> ? (translated alone: 'fRANKFURT')" in str(made)
    with pytest.raises(ValueError, match="(?s)not written, as no question is left.*1 dropped, .* under 0.7: e"):
        list(translate_training(folder, ["sw"], engine, Half(), progress=False))
    with pytest.raises(ValueError, match="'Spanish' is no language code; codes look like es"):
        translate_training(folder, ["Spanish"], engine, Half())
    with pytest.raises(ValueError, match="--to is es en: give other languages than 'en'"):
        translate_training(folder, ["es", "en"], engine, Half())


def test_what_cannot_be_done_is_refused_before_anything_is_loaded(folder: Path, engine, capsys) -> None:
    for more in ({"targets": ["es", "fr"]}, {"targets": ["es"], "back": True}):
        with pytest.raises(LanguageError, match="names no language and was asked for en to es before"):
            translate_training(folder, engine="command:cat", projector=StringProjector(), progress=False, **more)
    with pytest.raises(LanguageError, match="was asked for es to en before"):
        [shutil.copy(folder / "train.en.json", folder / f"test.{language}.json") for language in ("es", "fr")]
        translate_test(folder, ["es", "fr"], "command:cat", progress=False)
    command = ["translate", str(folder), "--engine", "hf:/no/such/model"]
    for words, said in (
        (["--to"], "--to is empty"),
        (["--to", "en"], "give other languages than 'en'"),
        (["--to", "es", "--from", "de"], "train.de.json"),
        (["--test", "--from", "sw", "--to", "en"], "test.sw.json"),
        (["--to", "es"], "/no/such/model: there is no such file or folder"),
    ):
        assert cli.main([*command, *words]) == 1 and said in capsys.readouterr().err
    assert not [*folder.glob("*.??-??.json"), *folder.glob("train.es*"), *folder.glob("back*")]


def test_translations_of_another_program_of_the_same_name_are_not_taken(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("XSTA_CACHE", str(tmp_path / "cache"))
    found = []
    for place, letters in (("one", "A-Z"), ("two", "n-za-m"), ("two", "A-Z")):
        (tmp_path / place).mkdir(exist_ok=True)
        monkeypatch.chdir(tmp_path / place)
        Path("translate.sh").write_text(f"tr a-z {letters}\n")
        engine = open_engine("command:sh ./translate.sh")
        found.append(Translator(engine, "en", "es", progress=False).passage("hello").text)
    assert found == ["HELLO", "uryyb", "HELLO"]


@pytest.mark.heavy
def test_a_killed_run_goes_on_and_loses_no_sentence(folder: Path, engine: CommandEngine, tmp_path: Path) -> None:
    """Killed at some moment; then everything that was kept is not asked for again, and the file is the same."""
    texts = [f"Sentence number {number} stands here." for number in range(1500)]
    long = [Question(str(i), "Where?", " ".join(texts[i : i + 100]), (), "T") for i in range(0, 1500, 100)]
    write_squad(folder / "test.es.json", long)
    code = "import sys; from xsta_lib.cli import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", code, "translate", str(folder), "--test", "--from", "es", "--engine", engine.name]
    process = subprocess.Popen(command, stderr=subprocess.PIPE)
    base = tmp_path / "cache" / "translations" / "sentences.sqlite"
    while process.poll() is None and (not base.exists() or not _kept(base)):
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    kept, before = _kept(base), asked(tmp_path)
    assert 0 < len(kept) < 1500 and not list(folder.glob("translate-test*"))
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0 and "15 of 15 questions" in done.stdout
    assert not kept & set(asked(tmp_path)[len(before) :])  # the killed run's program may end a moment after it
    questions, _ = read_squad(folder / "translate-test.es-en.json", labelled=False)
    assert [q.context for q in questions] == [q.context.swapcase() for q in long]


def _kept(base: Path) -> set[str]:
    try:
        with sqlite3.connect(base) as opened:
            return {text for (text,) in opened.execute("SELECT text FROM translations")}
    except sqlite3.OperationalError:  # the table is not there yet
        return set()


def test_ctrl_c_says_how_to_go_on(folder: Path, engine: CommandEngine, capsys, monkeypatch) -> None:
    def stop(*given):
        raise KeyboardInterrupt

    monkeypatch.setattr(CommandEngine, "translate", stop)
    write_squad(folder / "test.es.json", read_squad(folder / "train.en.json")[0])
    assert cli.main(["translate", str(folder), "--test", "--from", "es", "--to", "en", "--engine", engine.name]) == 130
    assert "stopped; what was translated is kept: run the same command again to go on" in capsys.readouterr().err


def test_a_full_disk_says_so_and_keeps_what_it_has(tmp_path: Path) -> None:
    kept, pair = Kept(tmp_path / "kept.sqlite"), ("e", "en", "es")
    kept.put(pair, {"a": "b"})
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(
            OSError, match=r"kept.sqlite: translations cannot be kept .*make room there or set XSTA_CACHE"
        ):
            kept.put(pair, {str(number): "x" * 1000 for number in range(1000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, before)
    assert Kept(tmp_path / "kept.sqlite").get(pair, ["a", "1"]) == {"a": "b"}
    (tmp_path / "bad.sqlite").write_text("no database, but long enough to look at" * 100)
    with pytest.raises(OSError, match="bad.sqlite: .*if the file is damaged, delete it"):
        Kept(tmp_path / "bad.sqlite")


def test_translate_test_is_read_beside_test_questions(folder: Path, engine: CommandEngine) -> None:
    shutil.copy(folder / "train.en.json", folder / "test.es.json")
    shutil.copy(folder / "train.en.json", folder / "test.sw.json")
    shutil.copy(folder / "train.en.json", folder / "test.en.json")
    assert load_protocol(str(folder)).tests[0].source_name == "gold"
    (made,) = translate_test(folder, ["es"], engine, progress=False)
    assert made.path.name == "translate-test.es-en.json" and made.kept == 2
    data = load_protocol(str(folder))
    (test,) = data.tests
    assert test.source_name == "translate-test" and [q.id for q in test.source_of("es")] == ["e", "m"]
    assert test.source_of("es")[0].question == "wHERE IS THE RIVER eLBE?" and test.source_of("sw") == []
    found = check(str(folder))
    assert {row[1]: row[4] for row in found.rows if row[0] == "test"} == {"en": "-", "es": 2, "sw": 0}
    assert "translate-test.es-en.json: 2 questions" in str(found) and not any(
        "not read" in part for part in found.faults
    )
    french = folder / "translate-test.es-fr.json"
    shutil.copy(made.path, french)
    assert any("not read: translate-test.es-fr.json" in part for part in check(str(folder)).faults)
    with pytest.raises(ValueError, match="--from is en: give other languages than 'en'"):
        translate_test(folder, ["en"], engine)


def test_a_faulty_engine_stops_the_run_with_a_sentence(folder: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setenv("XSTA_CACHE", str(tmp_path / "cache"))
    write_squad(folder / "test.es.json", read_squad(folder / "train.en.json")[0])
    command = ["translate", str(folder), "--test", "--from", "es", "--to", "en", "--engine"]
    assert cli.main([*command, "command:head -n 2"]) == 1
    said = capsys.readouterr().err
    assert "command:head -n 2 wrote 2 lines for" in said and "it must write one line for each that it reads" in said
    assert cli.main([*command, "command:cat", "--back"]) == 1
    assert "--back and --threshold belong to training files" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        cli.main([*command, "command:cat", "--threshold", "2"])
    assert not list(folder.glob("translate-test*"))

    class Short:
        name, key, licence, chunk = "short", "short", None, 8

        def check(self, source, target):
            """Every pair will do."""

        def translate(self, texts, source, target):
            return list(texts)[1:]

    with pytest.raises(EngineError, match="short: 2 translations of 3 texts"):
        Translator(Short(), "en", "es", progress=False).prepare(["One is. Two are. Three go."])


@pytest.mark.heavy
def test_reader_translates_on_the_fly(engine: CommandEngine, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    reader, context = Reader(), "Rivers flow. The river Elbe is in Dresden."
    question = "Where is the river Elbe?"
    given = reader.answer(question, context, "de", (question.swapcase(), context.swapcase()))
    made = reader.answer([question, question, ""], [context] * 3, ["de", "en", "de"], translate=engine.name)
    assert made[0].source == (question.swapcase(), context.swapcase()) and made[0].readings == given.readings
    assert (made[0].text, made[0].score) == (given.text, given.score) and given.source is None
    assert made[1].source is None and made[2].source is None  # English, and blank
    assert (
        made[0].to_dict()["source"]["question"] == question.swapcase() and question.swapcase() in made[0]._repr_html_()
    )
    spanish, cat = "El río Elba pasa por la ciudad de Dresde y es muy largo.", "command:cat"
    with pytest.warns(UserWarning, match="1 questions, found to be in 'es', are read alone: .* or give their language"):
        found = reader.answer(
            ["Wo liegt die Stadt Dresden an der Elbe?", "Was?", "¿Por dónde pasa?"],
            [context.replace("is", "ist"), "Die Elbe fließt durch die Stadt Dresden und ist lang.", spanish],
            [None, "de", None],
            translate=cat,
        )
    assert found[1].source and not found[2].source
    with pytest.raises(EngineError, match="was asked for de to en before"):
        reader.answer("¿Por dónde pasa?", spanish, "es", translate=cat)
    with pytest.warns(UserWarning, match="1 questions are read alone, as .* did not translate them whole"):
        alone = reader.answer("Who is untranslatable?", context, "de", translate=engine)
    assert alone.source is None and alone.readings == {}
    assert not list((tmp_path / "cache").rglob("*.sqlite"))  # one's own questions are not kept
    (tmp_path / "context.txt").write_text(context, "utf-8")
    lines = [json.dumps({"id": i, "question": question, "context": context, "language": "de"}) for i in range(2)]
    (tmp_path / "lines").write_text("\n".join(lines), "utf-8")
    command = ["answer", question, str(tmp_path / "context.txt"), "--language", "de", "--translate", engine.name]
    assert cli.main(command) == 0
    shown = capsys.readouterr()
    assert shown.out.strip() == given.text and f"read beside {question.swapcase()} | " in shown.err
    assert cli.main(["answer", "--batch", str(tmp_path / "lines"), "--translate", engine.name]) == 0
    answers = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert len(answers) == 2 and all(answer["source"]["context"] == context.swapcase() for answer in answers)
    assert answers[0]["model"].endswith(f" with {engine.name}")


def test_x_mixup_trains_on_machine_made_back_translations(
    engine: CommandEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From an English file alone to a trained model; its back-translated steps read what the engine made."""
    monkeypatch.setenv("XSTA_HOME", str(tmp_path / "home"))
    folder = tmp_path / "mine"
    write_squad(folder / "train.en.json", toy_questions("River {} is in ", "Where is {}?"))
    made = list(translate_training(folder, ["es"], engine, StringProjector(), back=True, progress=False))
    assert [part.path.name for part in made] == ["train.es.json", "back.es.json"] and made[0].kept == made[1].kept == 16
    data = load_protocol(str(folder))
    assert [report.faults() for report in data.reports] == [[], [], []]
    source = {q.id: q.question for q in data.train}
    assert all(q.question == source[q.id] for q in data.back_translated["es"] if q.id in source)  # case turned twice
    about = json.loads((folder / "back.es.json").read_text("utf-8"))["translation"]
    assert about["file_translation"]["file"] == "train.en.json" and about["target"] == "en"
    backbone = str(write_tiny_e5(tmp_path / "tiny.bin", layers=8))  # X-MIXUP shares in the eighth
    exp = experiment(str(folder), "x-mixup", backbone=backbone, steps=4, batch_size=4, english_epochs=0.0)
    part = training_parts(exp, data, load_tokenizer(backbone))[-1]
    assert part.back is not None and (part.back_paired >= 0).all()
    monkeypatch.setattr(run, "gold_probability", lambda step: 0.0)  # the first steps read gold English else
    read, inputs = [], Trainer._inputs

    def counted(self: Trainer, rows: Sequence, back_translated: bool) -> dict:
        read.append(back_translated)
        return inputs(self, rows, back_translated)

    monkeypatch.setattr(Trainer, "_inputs", counted)
    run_experiment(exp, data, progress=False)
    assert True in read
