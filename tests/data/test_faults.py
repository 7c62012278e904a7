"""Faults of real files, one kind after the other: offsets, texts, ids, encodings, names; and what is said of them."""

import json
import re
import unicodedata
from functools import partial
from pathlib import Path

import pytest
from project import document, entry

from xsta_lib.cli import main
from xsta_lib.data.files import TextError, check_text, read_json, read_text
from xsta_lib.data.offsets import Place, locate, span_at
from xsta_lib.data.protocols import load_protocol
from xsta_lib.data.squad import Answer, CorpusError, read_golds, read_squad, write_squad

RUSSIAN = "Мельница стоит у реки. Печь построена в 1871 году. В 1871 году мельница сгорела, в 1871 году её подняли."


nfc, nfd = partial(unicodedata.normalize, "NFC"), partial(unicodedata.normalize, "NFD")


@pytest.fixture
def read(tmp_path):
    """Writes a document and reads it; options go to the reader."""

    def reading(content: dict, **options: object):
        path = tmp_path / "file.json"
        path.write_text(json.dumps(content))  # escaped, so that half a surrogate pair can be written
        return read_squad(path, **options)

    return reading


# -- 4: invisible differences ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("context", "text", "start", "found"),
    [
        ("Die Mühle steht am\r\nFluss und mahlt.", "am\nFluss", 16, "am\r\nFluss"),
        ("Hier leben 10\u00a0000 Menschen.", "10 000", 11, "10\u00a0000"),
        ("An old  mill stands.", "old mill", 3, "old  mill"),
        ("Ein\u3000alter\u2028Müller.", "alter Müller", 4, "alter\u2028Müller"),
        (nfd("Die Mühle steht"), "Mühle", 4, "Mu\u0308hle"),
        ("Die Mühle steht", "Mu\u0308hle", 4, "Mühle"),
        ("서울은 수도", nfd("서울"), 0, "서울"),
        ("Der Do\u00adnau\u200b entlang", "Donau", 4, "Do\u00adnau"),
        ("By the river.", " river\n", 6, "river"),
    ],
)
def test_texts_are_compared_as_a_reader_sees_them(read, context, text, start, found):
    for given, repaired in ((start, 0), (start + 1000, 1)):
        (question,), report = read(document(context, entry("1", (text, given))))
        (answer,) = question.answers
        assert answer.text == found == context[answer.start : answer.end]
        assert (report.respelt, report.repaired, report.ambiguous) == (1, repaired, 0)
        assert question.golds == (text,)  # scored as the file gives it


def test_another_letter_is_another_text(read):
    assert locate("Der Mu\u0308ller", "Mu", 4) == Place(4, 6)  # the very text, cut out of a letter
    assert locate("Der Müller", "Mu", 4) is None  # an accent cannot be cut off
    assert locate("가각", nfd("가"), 1) == Place(0, 1, 1)
    assert span_at("abc", "c", -1) is None


def test_only_the_gold_answer_that_is_not_there_goes(read):
    three = entry("1", ("river", 27), ("the river", 23), ("the rivers", 23))
    context = "The old mill stands by the river. Marta built the oven."
    (one, two), report = read(document(context, three, entry("2", ("Marta", 34))))
    assert one.answers == (Answer("river", 27), Answer("the river", 23))
    assert one.golds == ("river", "the river", "the rivers") and two.golds == ("Marta",)
    assert (report.left_out, report.rejected) == (1, {})
    assert "1 with a gold answer that is not in the context, left out (1)" in str(report)


def test_a_question_without_any_span_is_asked_and_scored_but_not_trained_on(read, tmp_path):
    file = document("The mill.", entry("1", ("castle", 0)), entry("2", ("mill", 4)))
    (kept,), report = read(file)
    assert kept.id == "2" and report.rejected == {"1": "answer not in its context"}
    questions, report = read(file, spans=False)
    assert [(q.answers, q.golds) for q in questions] == [((), ("castle",)), ((Answer("mill", 4),), ("mill",))]
    assert report.unlocated == 1 and not report.rejected
    file["data"][0]["paragraphs"][0]["qas"].append(entry("1", ("mill", 4)))
    (merged, _), report = read(file, spans=False)
    assert merged.answers == (Answer("mill", 4),) and merged.golds == ("castle", "mill") and report.merged == 1
    write_squad(tmp_path / "again.json", questions)
    assert read_squad(tmp_path / "again.json", spans=False)[0] == questions


# -- 5: offsets --------------------------------------------------------------------------------------------------------


def test_whole_words_come_before_parts_of_words(read):
    context = "In 1817 he moved to the village. He was 7 years old and could read."
    (question,), report = read(document(context, entry("1", ("7", 0))))
    assert question.answers == (Answer("7", 40),) and (report.repaired, report.ambiguous) == (1, 0)
    assert locate("17 und 3,7 und 7", "7", 0) == Place(15, 16, 1)
    assert locate("कमल, कम", "कम", 1) == Place(5, 7, 1)
    assert locate("कि क", "क", 1) == Place(3, 4, 1)  # a vowel sign belongs to its letter
    assert locate("他在1998年到北京，京", "北京", 0) == Place(8, 10, 1)  # no spaces: nearest, not alone
    assert locate("他住北京市，北京", "北京", 0) == Place(2, 4, 2)
    assert locate("unmilled", "mill", 0) == Place(2, 6, 1)  # better than none
    assert locate("aaaa", "aa", 5) == Place(2, 4, 3)  # they may overlap
    assert locate("abc", "x", 0) is None


def test_a_choice_among_several_places_is_counted_apart(read):
    questions, report = read(document("mill, oak, mill", entry("1", ("mill", -1)), entry("2", ("oak", 0))))
    assert [q.answers[0].start for q in questions] == [0, 6]
    assert (report.repaired, report.ambiguous) == (2, 1)
    assert "2 answer offsets repaired (1, 2); 1 of these a choice among several places (1)" in str(report)


LONG = "  \u2028Ein 🎉 Fest:\n die alte Mühle\n\n am  Fluss, die alte Mühle im Tal, die alte Mühle am See."
CRLF = LONG.replace("\n", "\r\n")


@pytest.mark.parametrize(
    ("context", "count", "way"),
    [
        (RUSSIAN, lambda before: len(before.encode()), "they count UTF-8 bytes"),
        ("🎉🎉🎉🎉🎉🎉" + RUSSIAN, lambda before: len(before.encode("utf-16-le")) // 2, "they count UTF-16 units"),
        (CRLF, lambda before: len(before.replace("\r\n", "\n")), "they count each line end as one character"),
        (LONG, lambda before: len(before.replace("\n", "\r\n")), "they count each line end as two characters"),
        (LONG.replace("\n", " "), lambda before: len(before) - 3, "from the first character that is no white space"),
        (LONG, lambda before: len((" ".join(before.split()) + "x").lstrip()), "they count runs of white space as one"),
        (
            nfd(RUSSIAN + " Й" * 9),
            lambda before: len(unicodedata.normalize("NFC", before)),
            "",
        ),
        (RUSSIAN, lambda before: len(before) + 7, "all are +7 characters off"),
        (RUSSIAN, lambda before: len(before) - 1, "all are -1 characters off"),
    ],
)
def test_a_files_own_way_to_count_is_recognised_and_said(read, context, count, way):
    text = "1871" if "1871" in context else "die alte Mühle"
    places = [match.start() for match in re.finditer(text, context)]
    assert len(places) == 3
    given = [entry(str(i), (text, count(context[:at]))) for i, at in enumerate(places)]
    questions, report = read(document(context, *given))
    assert [q.answers[0].start for q in questions] == places
    assert way in report.counting and (not way or report.ambiguous == 0 < report.repaired)


def test_titles_and_other_text_in_front_are_recognised(read):
    articles = []
    for number, title in enumerate(("Mill", "Old oven", "Oak tree by the mill")):
        context = f"Mill {number} or mill {number}: the mill, the mill."
        places = [context.index("the mill"), context.rindex("the mill")]
        articles.append((title, context, places))

    def file(shift):
        return {
            "data": [
                document(c, *(entry(f"{t}-{at}", ("the mill", at + shift(t, c))) for at in places), title=t)["data"][0]
                for t, c, places in articles
            ]
        }

    shifts = {
        "they count from the title, with 1 characters between": lambda title, _: len(title) + 1,
        "each context begins elsewhere": lambda _, context: 3 + 2 * int(context[5]),
    }
    for way, shift in shifts.items():
        questions, report = read(file(shift))
        assert report.counting == way and report.repaired == 6 and report.ambiguous == 0
        assert [q.answers[0].start for q in questions] == [at for *_, places in articles for at in places]


def test_no_way_to_count_is_made_up(read):
    words = ["mill", "oak", "river", "oven", "Marta", "bread"]
    context = " ".join(words * 2)
    _, report = read(document(context, *(entry(word, (word, 0)) for word in words[1:])))  # placeholders
    assert (report.counting, report.repaired, report.ambiguous) == ("", 5, 5)
    right = [entry(f"right {word}", (word, context.index(word))) for word in words]
    off = [entry(word, (word, context.index(word) + 1)) for word in words[:3]]
    _, report = read(document(context, *right, *off))  # three of nine agree on a shift: not the file's way
    assert (report.counting, report.repaired) == ("", 3)


def test_blank_questions_are_left_out_everywhere_but_count_where_the_official_scripts_count_them(read, tmp_path):
    file = document("The mill.", entry("1", ("mill", 4), question="\ufe0f\u00a0"), entry("2", ("mill", 4)))
    for options in ({}, {"labelled": False}, {"spans": False}):
        (kept,), report = read(file, **options)
        assert kept.id == "2" and report.rejected == {"1": "blank question"}
    assert [key for key, _ in read_golds(tmp_path / "file.json")[0]] == ["1", "2"]


def test_a_key_that_stands_for_two_values_is_refused(tmp_path):
    path, text = tmp_path / "twice.json", json.dumps(document("x", entry("1", ("x", 0))))
    path.write_text(text.replace('"context": "x"', '"context": "x", "context": "x"'))
    assert len(read_squad(path)[0]) == 1  # the same twice loses nothing
    path.write_text(text.replace('"context": "x"', '"context": "y", "context": "x"'))
    with pytest.raises(CorpusError, match="twice.json: .*the key 'context' stands for two values in one object"):
        read_squad(path)


# -- 3 and 6: ids ------------------------------------------------------------------------------------------------------


def test_whole_numbers_are_read_as_text(read):
    context = "The mill stands by the river."
    numbers = document(context, entry(51870, ("river", 23)), entry(2.0, ("mill", "4")), entry("x", ("mill", 4.0)))
    questions, report = read(numbers)
    assert [q.id for q in questions] == ["51870", "2", "x"] and report.faults() == []
    with pytest.raises(CorpusError, match="id 7 stands for two different questions"):
        read(document(context, entry(7, ("mill", 4)), entry("7", ("mill", 4), question="What?")))


def test_own_translations_may_repeat_an_id_as_published_ones_do(folder, caplog):
    def once_more(answer: str, start: int):
        return lambda data: data[0]["paragraphs"][0]["qas"].append(entry("train-0", (answer, start)))

    change(folder / "train.de.json", once_more("Ofen", 18))
    data = load_protocol(str(folder))
    assert [q.question for q in data.parallel["de"] if q.id == "train-0"] == ["Wo?"]
    assert caplog.messages == ["train.de.json: 3 questions; 1 repeated ids with another text left out (train-0)"]
    change(folder / "train.en.json", once_more("oven", 16))
    with pytest.raises(CorpusError, match=r"train.en.json: id train-0 stands for two different questions"):
        load_protocol(str(folder))


# -- 8: half a surrogate -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", ["id", "question", "title", "context", "answer"])
def test_half_a_surrogate_pair_is_refused_with_file_and_place(read, place):
    texts = {name: name for name in ("id", "question", "title", "context", "answer")} | {place: "mill \ud83c"}
    asked = entry(texts["id"], (texts["answer"], 0), question=texts["question"])
    with pytest.raises(CorpusError) as caught:
        read(document(texts["context"], asked, title=texts["title"]))
    said = str(caught.value)
    assert f"file.json: {'article 0' if place in ('id', 'title', 'context') else 'question id'}" in said
    assert r"character 5 is half a surrogate pair (\ud83c)" in said
    assert said.isprintable()


def test_a_text_is_checked_where_it_comes_in():
    assert check_text("🎉", "--question") == "🎉"
    with pytest.raises(TextError, match=r"^--question: character 0 is half a surrogate pair \(\\udc9f\)"):
        check_text("\udc9f", "--question")


# -- 9: text and JSON files --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        ("Die Mühle".encode("latin-1"), "byte 5 is not UTF-8, but probably Latin-1 or Windows-1252; save the file as"),
        ("perché".encode("latin-1"), "byte 5 is not UTF-8, but probably Latin-1"),
        ("Die Mühle".encode("utf-16"), "not UTF-8 but UTF-16"),
        ("Die alte".encode("utf-16-le"), "not UTF-8 but UTF-16"),
        ("Die Mühle, die Mü".encode()[:-1], "cut inside its last character"),
        (b" \n\t\n", "the file is empty or blank"),
        (b"", "the file is empty or blank"),
        (b"\xef\xbb\xbf", "the file is empty or blank"),
        ("الرياض عاصمة السعودية".encode("utf-16-le"), "not UTF-8 but UTF-16"),
        ("αβγδεζ ηθικλ".encode("utf-16-be"), "not UTF-8 but UTF-16"),
        (b"abc\0def is the answer", "control characters that no text has"),
        (b"abc " + bytes(5000), "control characters that no text has"),
        ("東京は日本の首都です".encode("shift_jis"), "not UTF-8, but some other encoding, or no text"),
        ("Москва, столица".encode("cp1251"), "not UTF-8, but some other encoding, or no text"),
        (b"\x1f\x8b\x08", "compressed with gzip; unpack it"),
        (b"\xfd7zXZ\0\0", "compressed with xz; unpack it"),
        (b"%PDF-1.4\n%\xe2\xe3", "the file is a PDF"),
        (b"\x89PNG\r\n\x1a\n\0\0", "the file is a picture"),
        (b"version https://git-lfs.github.com/spec/v1\noid", "git lfs pull"),
    ],
)
def test_a_file_that_is_no_text_is_named_for_what_it_is(tmp_path, content, fault):
    path = tmp_path / "text.txt"
    path.write_bytes(content)
    for reader in (read_text, read_json):
        with pytest.raises(TextError) as caught:
            reader(path)
        assert str(caught.value).startswith(f"{path}: ") and fault in str(caught.value)
    with pytest.raises(CorpusError, match="text.txt"):
        read_squad(path)


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        ('{"data": [{"title": "T", "para', "the file is cut"),
        ('{"data": [1, ', "line 1, column 14 (Expecting value); the file is cut"),
        ('{"context": "a"}\n{"context": "b"}\n', "JSON Lines (a second value begins at line 2)"),
        ('{"data": 1,}', "mend that place"),
        ("<!DOCTYPE html>", "it looks like a web page"),
        ("[" * 100_000, "not readable as JSON"),
        ("1" * 5000, "not readable as JSON"),
    ],
)
def test_broken_json_is_named_for_what_it_is(tmp_path, content, fault):
    path = tmp_path / "file.json"
    path.write_text(content)
    with pytest.raises(TextError) as caught:
        read_json(path)
    assert str(caught.value).startswith(f"{path}: ") and fault in str(caught.value)


def test_a_byte_order_mark_is_no_text_and_line_ends_stay(tmp_path):
    (tmp_path / "bom.txt").write_bytes(b"\xef\xbb\xbfMarta\r\n")
    assert read_text(tmp_path / "bom.txt") == "Marta\r\n"
    (tmp_path / "bell.txt").write_text("The \x07 answer is \x1b[31mred\x1b[0m text.\f")
    assert "\x1b[31mred" in read_text(tmp_path / "bell.txt")  # a few control characters do not make it another file
    with pytest.raises(TextError, match="absent.txt: no such file"):
        read_text(tmp_path / "absent.txt")
    with pytest.raises(TextError, match="cannot be read"):
        read_text(tmp_path)


# -- 2: what is said ---------------------------------------------------------------------------------------------------


TEXTS = {
    "en": ("Where?", "The mill has an oven, number {}.", "oven"),
    "de": ("Wo?", "Die Mühle hat den Ofen {}.", "Ofen"),
}


def write_folder(folder: Path) -> Path:
    """Two languages, training and test, three questions each."""
    folder.mkdir()
    for split in ("train", "test"):
        for language, (question, context, answer) in TEXTS.items():
            articles = []
            for i in range(3):
                text = context.format(f"{split} {i}")
                asked = entry(f"{split}-{i}", (answer, text.index(answer)), question=question)
                articles += document(text, asked, title=f"{split} {i}")["data"]
            (folder / f"{split}.{language}.json").write_text(json.dumps({"data": articles}), "utf-8")
    return folder


def change(path: Path, edit) -> None:
    content = json.loads(path.read_text("utf-8"))
    edit(content["data"])
    path.write_text(json.dumps(content), "utf-8")


@pytest.fixture
def folder(tmp_path):
    return write_folder(tmp_path / "mine")


def for_all(field: str, value):
    """An edit that gives every question's field the value that a function makes of the question."""

    def edit(data: list) -> None:
        for article in data:
            for asked in article["paragraphs"][0]["qas"]:
                asked[field] = value(asked)

    return edit


MISNAMED = (
    *("Train.es.json", "test.es.JSON", "train.es.json.bak", "train.es.jsonl", "train.spanish.json", "train_es.json"),
    "validation.en.json",
)
OTHER_FILES = ("README.md", "check.py", "notes.txt", ".train.es.json")


def without_answers(folder: Path) -> None:
    change(folder / "train.de.json", lambda data: data[0]["paragraphs"][0]["qas"][0]["answers"].clear())


def shifted(folder: Path) -> None:
    def later(asked: dict) -> list[dict]:
        return [{"text": "oven", "answer_start": asked["answers"][0]["answer_start"] + 2}]

    change(folder / "test.en.json", for_all("answers", later))


def renumbered(folder: Path) -> None:
    change(folder / "train.de.json", for_all("id", lambda asked: "x" + asked["id"]))


def misnamed(folder: Path) -> None:
    for name in (*MISNAMED, *OTHER_FILES):
        (folder / name).write_text("{}")


def misspelt(folder: Path) -> None:
    (folder / "train.de.json").rename(folder / "train.ed.json")


def blank(folder: Path) -> None:
    change(folder / "train.de.json", lambda data: data[0]["paragraphs"][0]["qas"][0].update(question=" \u200b\n"))


def impossible(folder: Path) -> None:  # as SQuAD 2.0 marks it; answers to it are only plausible
    change(folder / "train.de.json", lambda data: data[0]["paragraphs"][0]["qas"][0].update(is_impossible=True))


FAULTS = {
    without_answers: "train.de.json: 2 questions; 1 rejected: train-0 (no answer)",
    shifted: "test.en.json: 3 questions; 3 answer offsets repaired [all are +2 characters off] (test-0, test",
    renumbered: "no id is shared with the source language",
    misnamed: f"mine: not read: {', '.join(MISNAMED)}; names are <split>.<language>.json",
    misspelt: "mine: read, though no language has the code ed",
    blank: "train.de.json: 2 questions; 1 rejected: train-0 (blank question)",
    impossible: "train.de.json: 2 questions; 1 rejected: train-0 (no answer)",
}


@pytest.mark.parametrize(("spoil", "line"), FAULTS.items())
def test_what_was_left_out_is_said_in_a_line_and_refused_if_strict(folder, caplog, spoil, line):
    load_protocol(str(folder), strict=True)
    assert caplog.messages == []
    spoil(folder)
    load_protocol(str(folder))
    (said,) = caplog.messages
    assert line in said and "\n" not in said
    with pytest.raises(CorpusError, match="strict: 1 things to mend") as caught:
        load_protocol(str(folder), strict=True)
    assert line in str(caught.value)


def test_where_only_misnamed_files_are_the_refusal_names_them(folder):
    for path in list(folder.iterdir()):
        path.rename(folder / path.name.replace(".", "_", 1))
    with pytest.raises(CorpusError, match="not read: test_de.json, test_en.json, train_de.json, train_en.json"):
        load_protocol(str(folder))


def test_training_refuses_with_strict_before_it_begins(folder, capsys):
    shifted(folder)
    assert main(["train", "--protocol", str(folder), "--strict"]) == 1
    assert FAULTS[shifted] in capsys.readouterr().err


@pytest.mark.parametrize(("spoil", "line"), FAULTS.items())
def test_check_says_it_without_training(folder, capsys, spoil, line):
    assert main(["check", str(folder), "--strict"]) == 0
    rows = [row.split() for row in capsys.readouterr().out.splitlines()]
    assert ["train", "de", "3", "3", "3", "31", "31", "3", "3"] in rows and len(rows) == 4 + 1 + 1 + 5 + 1
    spoil(folder)
    assert main(["check", str(folder)]) == 0
    assert line in capsys.readouterr().out
    assert main(["check", str(folder), "--strict"]) == 1
    assert "1 things to mend" in capsys.readouterr().err


def test_check_names_every_file_that_cannot_be_used_and_what_test_shares_with_train(folder, capsys):
    (folder / "train.de.json").write_text("{")
    (folder / "train.es.json").write_bytes("é ".encode("latin-1"))
    change(
        folder / "test.en.json", lambda data: data.append(json.loads((folder / "train.en.json").read_text())["data"][1])
    )
    assert main(["check", str(folder)]) == 1
    out, err = capsys.readouterr()
    assert (
        "train.de.json: not JSON" in out and "train.es.json: byte 0 is not UTF-8" in out and "2 things to mend" in err
    )
    assert "test en: 1 ids stand in train too, of 1 questions (train-1)" in out
    assert "test en: 1 contexts stand in train too, of 1 questions (train-1)" in out
    assert main(["check", "nowhere"]) == 1
    assert "'nowhere' is no file, no folder and no protocol" in capsys.readouterr().err


def test_check_reads_a_single_file_and_a_protocol(folder, capsys):
    assert main(["check", str(folder / "test.en.json"), "--strict"]) == 0
    assert "test.en.json: 3 questions\n" in capsys.readouterr().out
    assert main(["check", "demo", "--strict"]) == 0
    assert "nothing of training stands in another split" in capsys.readouterr().out


# -- 4 and 2: scoring --------------------------------------------------------------------------------------------------


def official(gold: Path, predictions: dict[str, str]) -> tuple[int, int]:
    """How many entries the official scripts count, and how many of these are exactly right (plain words)."""
    asked = [q for a in json.loads(gold.read_text())["data"] for p in a["paragraphs"] for q in p["qas"]]
    right = [any(predictions.get(str(q["id"])) == answer["text"] for answer in q["answers"]) for q in asked]
    return len(asked), sum(right)


def test_evaluation_scores_gold_texts_as_the_official_scripts_do(tmp_path, capsys):
    gold, given = tmp_path / "gold.json", tmp_path / "predictions.json"
    asked = [
        entry(1, ("castle", 0)),
        entry("2", ("mill", -1), ("old mill", 3)),
        entry("2", ("oak", 0)),
        entry("3", ("river", 9)),
    ]
    gold.write_text(json.dumps(document("An old mill.", *asked)))
    predictions = {"1": "castle", "2": "old mill", "x": "oven"}
    given.write_bytes(b"\xef\xbb\xbf" + json.dumps(predictions).encode())
    command = ["evaluate", "--gold", str(gold), "--predictions", str(given), "--language", "en"]
    assert main(command) == 0
    out, err = capsys.readouterr()
    n, right = official(gold, predictions)
    assert json.loads(out)["n"] == n == 4 and json.loads(out)["em"] == 100 * right / n == 50
    assert "predictions.json: 1 of 3 questions without a prediction, scored 0 (3)" in err
    assert "1 predictions of unknown ids (x)" in err
    assert main([*command, "--strict"]) == 1
    assert capsys.readouterr().out == ""


def test_a_folders_test_scores_gold_texts_that_are_no_spans(folder):
    from xsta_lib.prediction.evaluation import score_answers

    change(folder / "test.de.json", for_all("answers", lambda asked: [{"text": "die Öfen", "answer_start": 0}]))
    (test,) = load_protocol(str(folder)).tests
    answers = {"en": {}, "de": {f"test-{i}": "die Öfen" for i in range(2)}}
    metrics = score_answers(test, answers).metrics
    assert metrics["de"] == {"em": pytest.approx(200 / 3), "f1": pytest.approx(200 / 3), "n": 3}
    assert metrics["en"]["n"] == 3


def test_gold_files_with_emptied_or_no_answers_are_refused(tmp_path):
    path = tmp_path / "gold.json"
    path.write_text(json.dumps(document("x", *(entry(str(i), ("", 0)) for i in range(5)))))
    with pytest.raises(CorpusError, match="emptied, as in XTREME's copies"):
        read_golds(path)
    path.write_text(json.dumps(document("x", entry("1"), entry("2", ("x", 0)))))
    golds, report = read_golds(path)
    assert golds == [("2", ("x",))] and report.rejected == {"1": "no answer"}
