"""Protocols on a small data folder in the published layout, and folders of your own files."""

import json
from functools import partial
from pathlib import Path

import pytest
from project import IDS, ROOT, questions, write_published
from tiny import write_tiny_e5

from xsta_lib.data.library import LazyLanguages
from xsta_lib.data.protocols import ProtocolData, TestSet, held_out_ids, load_folder, load_protocol, published
from xsta_lib.data.squad import Answer, CorpusError, Question, read_squad, write_squad

MLQA = ("en", "ar", "de", "es", "hi", "vi", "zh")
XQUAD = ("en", "ar", "de", "el", "es", "hi", "ru", "th", "tr", "vi", "zh")
TYDIQA = ("en", "ar", "bn", "fi", "id", "ko", "ru", "sw", "te")


@pytest.fixture
def root(tmp_path, monkeypatch):
    """A data folder with every file that the published protocols read, 20 questions each."""
    monkeypatch.setenv("XSTA_DATA", str(tmp_path))
    write_published(tmp_path)
    return tmp_path


@pytest.mark.parametrize(("name", "first"), [("parallel", 0), ("parallel-swapped", 1)])
def test_parallel_trains_on_every_second_article_and_is_tested_on_the_others(root, name, first):
    data = load_protocol(name)
    halves = [[key for i, key in enumerate(IDS) if i // 2 % 2 == side] for side in (first, 1 - first)]
    assert [q.id for q in data.parallel_source] == halves[0]
    assert [q.id for q in data.train] == [*(f"english--{key}" for key in IDS), *halves[0]]
    assert {language: [q.id for q in part] for language, part in data.parallel.items()} == dict.fromkeys(
        sorted(XQUAD[1:]), halves[0]
    )
    assert (data.validation.name, data.validation.source, len(data.validation.questions)) == ("mlqa", None, 7)
    gold, other, tydiqa = data.tests
    assert (gold.name, gold.rule, tydiqa.name, tydiqa.source) == ("xquad", "squad", "tydiqa", None)
    assert {len(part) for part in gold.questions.values()} == {10} and gold.source == gold.questions["en"]
    assert [q.id for q in gold.source] == [q.id for q in other.source] == halves[1]
    assert set(other.questions) == set(XQUAD[1:]) and other.source_name == "other"
    assert all(one.context != another.context for one, another in zip(gold.source, other.source, strict=True))


@pytest.mark.parametrize(
    ("name", "targets", "validation", "test"),
    [
        ("paper-mlqa", MLQA, MLQA, ("mlqa", "mlqa")),
        ("paper-xquad", XQUAD, MLQA, ("xquad", "squad")),
        ("paper-tydiqa", TYDIQA, ("en",), ("tydiqa", "squad")),
    ],
)
def test_the_papers_protocols_read_the_files_of_the_table(root, name, targets, validation, test):
    data = load_protocol(name)
    assert data.name == name and len(data.train) == 20 and data.parallel_source is data.train
    assert isinstance(data.parallel, LazyLanguages) and tuple(data.parallel) == targets[1:]
    assert tuple(data.validation.questions) == validation
    (found,) = data.tests
    assert (found.name, found.rule) == test and tuple(found.questions) == targets
    assert found.source_name == "translate-test" and isinstance(found.source, dict)
    assert set(found.source) == set(targets) - {"en"} - ({"de"} if name == "paper-mlqa" else set())


def test_lazy_languages_are_read_when_asked_and_counted(root):
    data = load_protocol("paper-xquad")
    before = {report.path for report in data.reports}
    assert "squad.translate.train.en-de.json" not in before
    assert len(data.parallel["de"]) == 19 and len(data.parallel["de"]) == 19
    assert [report.path for report in data.reports if report.path not in before] == ["squad.translate.train.en-de.json"]


def test_missing_sources_are_counted_where_the_questions_are(root):
    data = load_protocol("paper-xquad")
    reports = {report.path: report for report in data.reports}
    assert reports["xquad.tr.json"].unmatched == 2 and "2 without a source" in str(reports["xquad.tr.json"])
    groups = data.tests[0].by_source()
    assert [list(group) for group, _ in groups] == [[language] for language in XQUAD]
    assert groups[0][1] is None and len(groups[1][1]) == 18
    assert sum(english is None for _, english in load_protocol("paper-mlqa").tests[0].by_source()) == 2


def test_gold_english_is_a_choice_where_it_exists(root):
    data = load_protocol("paper-mlqa", source="gold")
    assert data.name == load_protocol("paper-mlqa-gold").name == "paper-mlqa-gold"
    assert data.tests[0].source is data.tests[0].questions["en"] and data.tests[0].source_name == "gold"
    assert data.tests[0].by_source() == [(data.tests[0].questions, data.tests[0].source)]
    with pytest.raises(ValueError, match="no gold English"):
        load_protocol("paper-tydiqa", source="gold")
    with pytest.raises(ValueError, match="unknown source 'silver'"):
        load_protocol("paper-mlqa", source="silver")


def test_ids_of_another_form_are_refused(root):
    path = root / published("xtreme/TyDiQA-GoldP/translate-train")["sw"]
    write_squad(path, questions("sw", IDS))  # as in XTREME's own split: only the last chunk of the id
    data = load_protocol("paper-tydiqa")
    assert len(data.parallel["te"]) == 20
    with pytest.raises(CorpusError, match="only 0% of the target ids") as caught:
        data.parallel["sw"]
    assert str(path) in str(caught.value)
    assert "['q00', 'q01', 'q02']" in str(caught.value) and "'english--q00'" in str(caught.value)


def test_a_missing_translation_and_an_unknown_protocol_are_found_at_once(root):
    with pytest.raises(ValueError, match="unknown protocol 'papr'.*demo.*parallel.*or a folder"):
        load_protocol("papr")
    (root / published("xtreme/SQuAD/translate-train")["vi"]).unlink()
    with pytest.raises(CorpusError, match="protocol 'paper-xquad'.*en-vi.json: no such file;.* run 'xsta download'"):
        load_protocol("paper-xquad")


# -- folders of your own files -----------------------------------------------------------------------------------------


def own(folder: Path, **files: list[Question]) -> ProtocolData:
    """Write ``split_language`` files and load the folder."""
    for name, found in files.items():
        write_squad(folder / f"{name.replace('_', '.')}.json", found)
    return load_protocol(str(folder))


def test_a_folder_may_hold_english_translated_back(tmp_path):
    back = [Question(q.id, "again?", "translated back", ()) for q in questions("sw", IDS[:5])]
    files = {"train_en": questions("en", IDS), "train_sw": questions("sw", IDS[:6]), "train_te": questions("te", IDS)}
    data = own(tmp_path, **files, back_sw=back)
    assert list(data.parallel) == ["sw", "te"] and list(data.back_translated) == ["sw"]
    assert {q.id for q in data.back_translated["sw"]} == set(IDS[:5])


def test_a_folder_trains_and_tests(tmp_path):
    dev, test = questions("en", IDS[:2], "d"), questions("en", IDS[:3], "t")
    (tmp_path / "notes.txt").write_text("other files do no harm")
    train = {"train_en": questions("en", IDS), "train_sw": questions("sw", IDS[:5])}
    data = own(tmp_path, **train, dev_en=dev, test_en=test, test_sw=questions("sw", IDS[:3], "t"))
    assert data.name == tmp_path.name and len(data.train) == 20
    assert {language: len(found) for language, found in data.parallel.items()} == {"sw": 5}
    assert data.validation == TestSet(tmp_path.name, "squad", {"en": dev}, dev)
    assert list(data.tests[0].questions) == ["en", "sw"] and data.tests[0].source == test
    assert data.tests[0].rule == "squad"  # MLQA's rule does not know Swahili
    with pytest.raises(ValueError, match="MLQA's rule knows en, .*, not 'sw'; use the rule 'squad'"):
        load_folder(tmp_path, rule="mlqa")
    with pytest.raises(ValueError, match="unknown rule 'foo'; the rules are mlqa, squad"):
        load_folder(tmp_path, rule="foo")


def test_other_validation_questions_and_another_rule_have_another_key(tmp_path):
    parts = {name: questions("en", IDS, name[0]) for name in ("train_en", "dev_en", "test_en")}
    first = own(tmp_path, **parts)
    others = load_folder(tmp_path, rule="squad"), own(tmp_path, dev_fr=questions("fr", IDS, "d"))
    assert [data.digest() for data in others] == [first.digest()] * 2 and len({*others[0].tests[0].questions}) == 1
    assert len({data.selection() for data in (first, *others)}) == 3
    assert load_folder(tmp_path).selection() == others[1].selection()


def test_files_without_parallel_ids_are_kept_and_counted(tmp_path):
    train = {"train_en": questions("en", IDS), "train_de": questions("de", IDS[:4], "x")}
    data = own(tmp_path, **train, dev_en=questions("en", IDS))
    assert len(data.parallel["de"]) == 4 and data.tests == []
    assert {report.path: report.unmatched for report in data.reports}["train.de.json"] == 4


def test_without_dev_files_whole_articles_are_held_out(tmp_path):
    train = {"train_en": questions("en", IDS), "train_de": questions("de", IDS)}
    data = own(tmp_path, **train, train_sw=questions("sw", IDS, "x"))
    held = {language: {q.id for q in found} for language, found in data.validation.questions.items()}
    assert held["en"] == held["de"] and len(held["en"]) == 2 and len(held["sw"]) == 2
    assert not held["en"] & {q.id for q in data.train} and len(data.train) == 18
    assert len({q.title for q in data.validation.questions["en"]}) == 1
    assert [len(found) for found in data.parallel.values()] == [18, 18]
    assert not [report for report in data.reports if report.faults() and report.path != "train.sw.json"]
    shared = sorted(held["en"])  # whose questions are all of what another language has
    data = own(tmp_path, train_sw=questions("sw", shared))
    assert data.parallel["sw"] == [] and len(data.validation.questions["sw"]) == 2
    assert any("train.sw.json: all its questions select" in str(report) for report in data.reports)
    assert data.name == data.validation.name == tmp_path.name


def test_where_titles_do_not_tell_articles_apart_contexts_do_and_something_is_left_to_train_on():
    untitled = [Question(q.id, q.question, q.context, q.answers) for q in questions("en", IDS)]
    assert len(held_out_ids(untitled)) == 2 and held_out_ids([]) == held_out_ids(untitled[:1]) == set()
    for passages in (1, 2):
        same = [Question(f"q{i}", "?", f"passage {i % passages}", (Answer("passage", 0),), "title") for i in range(20)]
        assert len(held_out_ids(same)) == 2, passages


def test_a_folder_may_only_evaluate(tmp_path):
    data = own(tmp_path, test_sw=questions("sw", IDS))
    assert data.train == [] and dict(data.parallel) == {} and data.tests[0].source is None
    assert data.tests[0].source_name == "none"


def test_unusable_folders_are_refused(tmp_path):
    with pytest.raises(CorpusError, match="no file <split>.<language>.json"):
        load_folder(tmp_path)
    write_squad(tmp_path / "train.sw.json", questions("sw", IDS))
    with pytest.raises(CorpusError, match="train.en.json is missing"):
        load_protocol(str(tmp_path))
    (tmp_path / "train.en.json").write_text("{")
    with pytest.raises(CorpusError, match="train.en.json: not JSON"):
        load_protocol(str(tmp_path))


def test_the_example_in_the_readme_reads(tmp_path):
    text = (ROOT / "data" / "README.md").read_text("utf-8")
    example = text.split("```json\n")[1].split("```")[0]
    (tmp_path / "train.de.json").write_text(example, "utf-8")
    found, report = read_squad(tmp_path / "train.de.json")
    assert found[0].answers == (Answer("am Fluss", 16),) and report.repaired == 0 and example.count("\n") == 9


def test_a_folder_of_your_own_is_trained_on_and_evaluated(tmp_path, monkeypatch):
    from xsta_lib.experiments.experiment import experiment
    from xsta_lib.experiments.run import missing, run_experiment

    monkeypatch.setenv("XSTA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("XSTA_HOME", str(tmp_path))
    folder, tiny = tmp_path / "mine", write_tiny_e5(tmp_path / "tiny.bin")
    test = {"test_en": questions("en", IDS[:3], "t"), "test_sw": questions("sw", IDS[:3], "t")}
    train = {"train_sw": questions("sw", IDS[:5]), "train_te": questions("te", IDS, "x")}
    data = own(folder, train_en=questions("en", IDS), **train, **test)
    setting = {"backbone": str(tiny), "epochs": 0.2, "batch_size": 4, "switches": (("sharing_layer", 1),)}
    exp = experiment(str(folder), "x-sta", **setting)
    paths = run_experiment(exp, data, progress=False, results=tmp_path / "results")
    results = {found["source"]: found for found in (json.loads(path.read_text("utf-8")) for path in paths)}
    assert set(results) == {"gold", "none"}
    assert results["gold"]["protocol"] == "mine" and results["gold"]["metrics"]["mine"]["sw"]["n"] == 3
    assert len(list((tmp_path / "results" / "mine").glob("*.json"))) == 2
    assert missing([exp]) == []
    write_tiny_e5(tiny, seed=1)  # the encoder is made better
    for again in (partial(missing, [exp]), partial(run_experiment, exp, data, progress=False)):
        with pytest.raises(ValueError, match=f"other weights than {tiny} has"):
            again()
    with pytest.raises(ValueError, match="measured on other files"):
        run_experiment(exp, own(folder, test_en=test["test_en"][:2]), progress=False, results=tmp_path / "results")


def test_the_demo_is_such_a_folder():
    data = load_protocol("demo")
    assert len(data.train) == 180 and {len(found) for found in data.parallel.values()} == {180}
    assert tuple(data.tests[0].questions) == MLQA and data.tests[0].rule == "mlqa"
    assert {len(found) for found in data.validation.questions.values()} == {40}
    assert {len(found) for found in data.tests[0].questions.values()} == {80}
    assert all(report.unmatched == report.repaired == len(report.rejected) == 0 for report in data.reports)


def test_where_the_demo_corpus_is_not_the_error_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setenv("XSTA_HOME", str(tmp_path))
    with pytest.raises(CorpusError, match="lies in the repository: run in a clone of it, or set XSTA_HOME"):
        load_protocol("demo")
