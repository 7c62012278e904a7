"""Reading, validating and writing of SQuAD-format files; test_faults.py has the faults of real ones."""

import json
import os
from functools import partial
from pathlib import Path

import pytest
from project import document, entry

from xsta_lib.data.files import replacing, write_text_atomically
from xsta_lib.data.library import Library
from xsta_lib.data.squad import Answer, CorpusError, Question, read_squad, write_squad

CONTEXT = "The mill stands by the river. Behind the mill grows an old oak."
paragraph = partial(document, CONTEXT)


@pytest.fixture
def write(tmp_path):
    """Writes a document (or raw bytes) to a file and returns its path."""

    def to_file(content: object, name: str = "file.json") -> Path:
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else json.dumps(content, ensure_ascii=False).encode())
        return path

    return to_file


def refusal(path: Path, **options: object) -> str:
    """The message with which a file is refused; it names the file."""
    with pytest.raises(CorpusError) as caught:
        read_squad(path, **options)
    assert str(path) in str(caught.value)
    return str(caught.value)


def test_a_good_file_is_read_whole(write):
    good = paragraph(entry("a", ("by the river", 16)), entry("b", ("an old oak", 52)))
    questions, report = read_squad(write(good))
    assert questions == [
        Question("a", "?", CONTEXT, (Answer("by the river", 16),), "T"),
        Question("b", "?", CONTEXT, (Answer("an old oak", 52),), "T"),
    ]
    assert [q.context[a.start : a.end] for q in questions for a in q.answers] == ["by the river", "an old oak"]
    assert str(report) == "file.json: 2 questions"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1], "no list under the key 'data'"),
        ({"data": {}}, "no list under the key 'data'"),
        ({"data": []}, "holds no question"),
        ({"data": ["x"]}, "article 0 lacks 'paragraphs'"),
        ({"data": [{"title": "x"}]}, "article 0 lacks 'paragraphs' (a list)"),
        ({"data": [{"paragraphs": [{"qas": []}]}]}, "article 0, paragraph 0 lacks 'context' (text)"),
        ({"data": [{"paragraphs": [{"context": "x"}]}]}, "article 0, paragraph 0 lacks 'qas' (a list)"),
        (paragraph({"question": "?", "answers": []}), "article 0, paragraph 0 lacks 'id' (text)"),
        (paragraph({"id": None, "question": "?", "answers": []}), "lacks 'id' (text)"),
        (paragraph({"id": " ", "question": "?", "answers": []}), "paragraph 0 holds a question with an empty 'id'"),
        (paragraph({"id": True, "question": "?", "answers": []}), "has True as 'id', which must be text"),
        (paragraph({"id": 7.5, "question": "?", "answers": []}), "has 7.5 as 'id', which must be text"),
        (paragraph({"id": "7", "answers": []}), "question 7 lacks 'question' (text)"),
        (paragraph({"id": "7", "question": "?"}), "question 7 lacks 'answers' (a list)"),
        (paragraph({"id": "7", "question": "?", "answers": {"text": ["x"]}}), "as 'answers', which must be a list"),
        (paragraph({"id": "7", "question": "?", "answers": [{"text": "x"}]}), "question 7 lacks 'answer_start'"),
        (paragraph(entry("7", ("x", 1.5))), "question 7 has 1.5 as 'answer_start', which must be a whole number"),
        (paragraph({"id": "7", "question": "?", "answers": [{"answer_start": 1}]}), "question 7 lacks 'text'"),
        (paragraph(entry("1", ("x", 0))), "1 rejected, first: ('1', 'answer not in its context')"),
    ],
)
def test_a_broken_file_is_refused_with_file_and_place(write, content, message):
    assert message in refusal(write(content))


def test_a_missing_or_unreadable_file_says_what_to_do(tmp_path):
    assert "no such file; check its name; if it is published, run 'xsta download'" in refusal(tmp_path / "absent.json")
    (tmp_path / "link.json").symlink_to("absent.json")
    assert "link.json: a link to a file that is not there; check" in refusal(tmp_path / "link.json")
    (tmp_path / "folder.json").mkdir()
    assert "cannot be read" in refusal(tmp_path / "folder.json")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_without_permission_is_refused(write):
    path = write(paragraph(entry("1", ("mill", 4))))
    path.chmod(0)
    assert "check the file and its permissions" in refusal(path)


@pytest.mark.parametrize(("given", "true"), [(4, 4), (5, 4), (30, 41), (41, 41), (-1, 4), (999, 41)])
def test_an_answer_moves_to_its_nearest_occurrence(write, given, true):
    questions, report = read_squad(write(paragraph(entry("1", ("mill", given)))))
    assert questions[0].answers == (Answer("mill", true),)
    assert report.repaired == (given != true)


def test_a_question_whose_answer_does_not_occur_is_rejected_by_id(write):
    bad = paragraph(entry("good", ("river", 23)), entry("bad", ("River", 23)), entry("none"), entry("0", ("", 0)))
    questions, report = read_squad(write(bad))
    assert [q.id for q in questions] == ["good"]
    assert report.rejected == {"bad": "answer not in its context", "none": "no answer", "0": "empty answer"}
    assert report.repaired == 0
    assert str(report).endswith("3 rejected: bad (answer not in its context), none (no answer), 0 (empty answer)")


def test_offsets_count_code_points(write):
    context = "𝔘𝔫𝔡 🎉 die Mühle"
    questions, report = read_squad(write(document(context, entry("1", ("Mühle", 10)))))
    assert questions[0].answers == (Answer("Mühle", 10),) and report.repaired == 0
    escaped = json.dumps(document(context, entry("1", ("Mühle", 10)))).encode()  # \ud835\udd18...
    assert read_squad(write(escaped, "escaped.json"))[0] == questions
    counted_in_utf16, report = read_squad(write(document(context, entry("1", ("Mühle", 14)))))
    assert counted_in_utf16 == questions and report.repaired == 1


def test_repeated_ids_with_one_answer_each_are_merged(write):
    repeated = paragraph(entry("1", ("mill", 4)), entry("2", ("oak", 59)), entry("1", ("mill", 41)))
    questions, report = read_squad(write(repeated))
    assert [q.id for q in questions] == ["1", "2"]
    assert questions[0].answers == (Answer("mill", 4), Answer("mill", 41))
    assert (report.kept, report.merged) == (2, 1)
    for second in (("castle", 4), ("", 0)):
        questions, report = read_squad(write(paragraph(entry("1", ("mill", 4)), entry("1", second))))
        assert len(questions) == 1 and report.rejected == {}  # it is kept, with one answer less
        assert report.left_out == (second[0] == "castle")


def test_an_emptied_test_set_is_refused_unless_it_needs_no_answers(write):
    path = write(paragraph(*(entry(str(i), ("", 0)) for i in range(20)), entry("x", ("mill", 4))))
    assert "emptied, as in XTREME's copies" in refusal(path)
    assert len(read_squad(path, labelled=False)[0]) == 21
    path = write(paragraph({"id": "1", "question": "?"}))
    assert read_squad(path, labelled=False)[0] == [Question("1", "?", CONTEXT, (), "T")]


def test_what_is_written_reads_back(tmp_path):
    questions = [
        Question("1", "Wo?", "𝔄 Mühle", (Answer("Mühle", 2),), "eins"),
        Question("2", "कहाँ?", "नदी के पास", (Answer("नदी", 0), Answer("पास", 7)), "zwei"),
        Question("3", "Wer?", "𝔄 Mühle", (Answer("𝔄", 0),), "eins"),
    ]
    write_squad(tmp_path / "new" / "folder" / "file.json", questions)
    found, report = read_squad(tmp_path / "new" / "folder" / "file.json")
    assert sorted(found, key=lambda q: q.id) == questions and report.repaired == 0
    assert [path.name for path in (tmp_path / "new" / "folder").iterdir()] == ["file.json"]


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "file.json"
    write_text_atomically(path, "old")
    with pytest.raises(UnicodeEncodeError):
        write_text_atomically(path, "new \ud800")  # fails while the temporary file is open
    assert path.read_text("utf-8") == "old" and list(tmp_path.iterdir()) == [path]
    path.unlink()
    path = tmp_path / ("n" * 255)  # as long as a name may be
    write_text_atomically(path, "long")
    assert list(tmp_path.iterdir()) == [path]
    path.unlink()
    write_text_atomically(tmp_path / "file.json", "old")
    (tmp_path / "taken").mkdir()
    with pytest.raises(OSError):
        write_text_atomically(tmp_path / "taken", "text")  # fails at the renaming
    assert sorted(item.name for item in tmp_path.iterdir()) == ["file.json", "taken"]


def test_a_folder_is_replaced_whole_or_not_at_all(tmp_path, monkeypatch):
    for content in ("first", "second"):
        with replacing(tmp_path / "new") as part:
            part.mkdir()
            (part / "file").write_text(content)
    with pytest.raises(FileNotFoundError), replacing(tmp_path / "nothing"):
        pass
    with pytest.raises(ZeroDivisionError), replacing(tmp_path / "half") as part:
        part.mkdir()
        raise ZeroDivisionError
    assert [path.name for path in tmp_path.iterdir()] == ["new"] and (tmp_path / "new" / "file").read_text() == "second"
    rename = os.replace

    def fail(source, target):  # at the second of a folder's two renamings
        if target.name == "new" and not source.name.endswith(".old.part"):
            raise OSError("gone")
        rename(source, target)

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="gone"), replacing(tmp_path / "new") as part:
        part.mkdir()
    assert [path.name for path in tmp_path.iterdir()] == ["new"] and (tmp_path / "new" / "file").read_text() == "second"


def test_ids_without_a_source_are_counted_or_refused_with_three_of_each_side(tmp_path):
    found = [Question(key, "?", CONTEXT, (Answer("mill", 4),)) for key in ("e1", "e2", "e3", "e4", "s5")]
    write_squad(tmp_path / "file.json", found)
    library = Library(tmp_path)
    sources = [Question(f"s{number}", "?", CONTEXT, ()) for number in range(1, 6)]
    assert library.read(Path("file.json"), sources, minimum=0.2) == found
    assert [report.unmatched for report in library.reports] == [4]
    with pytest.raises(CorpusError, match="file.json: only 20% of the target ids.*at least 90%") as caught:
        library.read(Path("file.json"), sources, minimum=0.9)
    assert "['e1', 'e2', 'e3']" in str(caught.value) and "['s1', 's2', 's3']" in str(caught.value)
