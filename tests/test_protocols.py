"""Protocols on a small data folder in the published layout, and folders of your own files."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from xsta_lib import evaluation, layouts
from xsta_lib.corpora import LazyLanguages
from xsta_lib.corpus import Answer, CorpusError, Question, read_squad, write_squad
from xsta_lib.download import REGISTRY
from xsta_lib.protocols import DEMO, LOADERS, ProtocolData, TestSet, load_folder, load_protocol
from xsta_lib.selection import held_out_ids


def questions(language: str, ids: list[str], prefix: str = "") -> list[Question]:
    """Questions of these ids, two an article; the answer is the id."""
    return [
        Question(prefix + key, f"{language}?", f"{language}: {key} .", (Answer(key, len(language) + 2),), f"t{i // 2}")
        for i, key in enumerate(ids)
    ]


IDS = [f"q{number:02}" for number in range(20)]


@pytest.fixture
def root(tmp_path):
    """A data folder with every file that the paper's protocols read, 20 questions each."""
    for language in layouts.MLQA_LANGUAGES:
        for split in ("dev", "test"):
            write_squad(tmp_path / layouts.mlqa(split, language), questions(language, IDS))
    for language in layouts.XQUAD_LANGUAGES:
        write_squad(tmp_path / layouts.xquad(language), questions(language, IDS))
        if language != "en":
            write_squad(tmp_path / layouts.squad_translation(language), questions(language, IDS[:19]))
    for language, name in layouts.TYDIQA_LANGUAGES.items():
        write_squad(tmp_path / layouts.tydiqa_dev(language), questions(language, IDS, f"{name}--"))
        if language != "en":
            write_squad(tmp_path / layouts.tydiqa_translation(language), questions(language, IDS, "english--"))
            english = [Question(f"{name}--{key}", "en?", "en", ()) for key in IDS]
            write_squad(tmp_path / layouts.english_of("tydiqa", language), english)
    for task, languages in (("mlqa", layouts.MLQA_LANGUAGES), ("xquad", layouts.XQUAD_LANGUAGES)):
        for path in filter(None, (layouts.english_of(task, language) for language in languages)):
            write_squad(tmp_path / path, [Question(key, "en?", "en", ()) for key in IDS[:18]])
    write_squad(tmp_path / layouts.SQUAD_TRAIN, questions("en", IDS))
    write_squad(tmp_path / layouts.TYDIQA_TRAIN, questions("en", IDS, "english--"))
    return tmp_path


def test_every_path_is_in_the_registry():
    places = {place for entry in REGISTRY.values() for place in entry.files}
    used = {layouts.SQUAD_TRAIN, layouts.TYDIQA_TRAIN}
    used |= {layouts.mlqa(split, language) for split in ("dev", "test") for language in layouts.MLQA_LANGUAGES}
    used |= {layouts.xquad(language) for language in layouts.XQUAD_LANGUAGES}
    used |= {layouts.squad_translation(language) for language in layouts.XQUAD_LANGUAGES if language != "en"}
    used |= {layouts.tydiqa_translation(language) for language in layouts.TYDIQA_LANGUAGES if language != "en"}
    used |= {layouts.tydiqa_dev(language) for language in layouts.TYDIQA_LANGUAGES}
    for task, languages in (
        ("mlqa", layouts.MLQA_LANGUAGES),
        ("xquad", layouts.XQUAD_LANGUAGES),
        ("tydiqa", layouts.TYDIQA_LANGUAGES),
    ):
        used |= {layouts.english_of(task, language) for language in languages} - {None}
    assert {path.as_posix() for path in used} <= places


@pytest.mark.parametrize(
    ("name", "targets", "validation", "test"),
    [
        ("paper-mlqa", layouts.MLQA_LANGUAGES, layouts.MLQA_LANGUAGES, ("mlqa", "mlqa")),
        ("paper-xquad", layouts.XQUAD_LANGUAGES, layouts.MLQA_LANGUAGES, ("xquad", "squad")),
        ("paper-tydiqa", tuple(layouts.TYDIQA_LANGUAGES), ("en",), ("tydiqa", "squad")),
    ],
)
def test_the_papers_protocols_read_the_files_of_the_table(root, name, targets, validation, test):
    data = load_protocol(name, root=root)
    assert data.name == name and len(data.train) == 20 and data.parallel_source is data.train
    assert isinstance(data.parallel, LazyLanguages) and tuple(data.parallel) == targets[1:]
    assert tuple(data.validation.questions) == validation
    (found,) = data.tests
    assert (found.name, found.rule) == test and tuple(found.questions) == targets
    assert found.source_name == "translate-test" and isinstance(found.source, dict)
    assert set(found.source) == set(targets) - {"en"} - ({"de"} if name == "paper-mlqa" else set())


def test_lazy_languages_are_read_when_asked_and_counted(root):
    data = load_protocol("paper-xquad", root=root)
    before = {report.path for report in data.reports}
    assert "squad.translate.train.en-de.json" not in before
    assert len(data.parallel["de"]) == 19 and len(data.parallel["de"]) == 19
    assert [report.path for report in data.reports if report.path not in before] == ["squad.translate.train.en-de.json"]


def test_missing_sources_are_counted_where_the_questions_are(root):
    data = load_protocol("paper-xquad", root=root)
    reports = {report.path: report for report in data.reports}
    assert reports["xquad.tr.json"].unmatched == 2 and "2 without a source" in str(reports["xquad.tr.json"])
    groups = data.tests[0].by_source()
    assert [list(group) for group, _ in groups] == [[language] for language in layouts.XQUAD_LANGUAGES]
    assert groups[0][1] is None and len(groups[1][1]) == 18


def test_gold_english_is_a_choice_where_it_exists(root):
    data = load_protocol("paper-mlqa", root=root, source="gold")
    assert data.name == load_protocol("paper-mlqa-gold", root=root).name == "paper-mlqa-gold"
    assert data.tests[0].source is data.tests[0].questions["en"] and data.tests[0].source_name == "gold"
    assert data.tests[0].by_source() == [(data.tests[0].questions, data.tests[0].source)]
    with pytest.raises(ValueError, match="no gold English"):
        load_protocol("paper-tydiqa", root=root, source="gold")
    with pytest.raises(ValueError, match="unknown source 'silver'"):
        load_protocol("paper-mlqa", root=root, source="silver")


def test_ids_of_another_form_are_refused(root):
    path = root / layouts.tydiqa_translation("sw")
    write_squad(path, questions("sw", IDS))  # as in XTREME's own split: only the last chunk of the id
    data = load_protocol("paper-tydiqa", root=root)
    assert len(data.parallel["te"]) == 20
    with pytest.raises(CorpusError, match="only 0% of the target ids") as caught:
        data.parallel["sw"]
    assert str(path) in str(caught.value)
    assert "['q00', 'q01', 'q02']" in str(caught.value) and "'english--q00'" in str(caught.value)


def test_a_missing_translation_is_found_at_once(root):
    (root / layouts.squad_translation("vi")).unlink()
    with pytest.raises(CorpusError, match="protocol 'paper-xquad'.*en-vi.json: no such file; run 'xsta download'"):
        load_protocol("paper-xquad", root=root)


def test_unknown_protocols_are_refused():
    with pytest.raises(ValueError, match="unknown protocol 'papr'.*demo.*or a folder"):
        load_protocol("papr")
    assert list(LOADERS)[:2] == ["demo", "compact"]


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
    data = own(
        tmp_path,
        train_en=questions("en", IDS),
        train_sw=questions("sw", IDS[:5]),
        dev_en=dev,
        test_en=test,
        test_sw=questions("sw", IDS[:3], "t"),
    )
    assert data.name == tmp_path.name and len(data.train) == 20
    assert {language: len(found) for language, found in data.parallel.items()} == {"sw": 5}
    assert data.validation == TestSet(tmp_path.name, "squad", {"en": dev}, dev)
    assert list(data.tests[0].questions) == ["en", "sw"] and data.tests[0].source == test
    assert data.tests[0].rule == "squad"  # MLQA's rule does not know Swahili


def test_files_without_parallel_ids_are_kept_and_counted(tmp_path):
    data = own(
        tmp_path, train_en=questions("en", IDS), train_de=questions("de", IDS[:4], "x"), dev_en=questions("en", IDS)
    )
    assert len(data.parallel["de"]) == 4 and data.tests == []
    assert {report.path: report.unmatched for report in data.reports}["train.de.json"] == 4


def test_without_dev_files_whole_articles_are_held_out(tmp_path):
    data = own(
        tmp_path, train_en=questions("en", IDS), train_de=questions("de", IDS), train_sw=questions("sw", IDS, "x")
    )
    held = {language: {q.id for q in found} for language, found in data.validation.questions.items()}
    assert held["en"] == held["de"] and len(held["en"]) == 2 and len(held["sw"]) == 2
    assert not held["en"] & {q.id for q in data.train} and len(data.train) == 18
    assert len({q.title for q in data.validation.questions["en"]}) == 1
    assert [len(found) for found in data.parallel.values()] == [18, 18]


def test_held_out_contexts_where_titles_do_not_tell_articles_apart():
    untitled = [Question(q.id, q.question, q.context, q.answers) for q in questions("en", IDS)]
    assert len(held_out_ids(untitled)) == 2 and held_out_ids([]) == set()


def test_something_is_left_to_train_on():
    for passages, held in ((1, 2), (2, 2)):
        same = [Question(f"q{i}", "?", f"passage {i % passages}", (Answer("passage", 0),), "title") for i in range(20)]
        assert len(held_out_ids(same)) == held, passages
    assert held_out_ids(same[:1]) == set()


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


@pytest.mark.skipif(not DEMO.is_dir(), reason="needs a checkout")
def test_the_example_in_the_readme_reads(tmp_path):
    text = (DEMO.parent / "README.md").read_text("utf-8")
    example = text.split("```json\n")[1].split("```")[0]
    (tmp_path / "train.de.json").write_text(example, "utf-8")
    found, report = read_squad(tmp_path / "train.de.json")
    assert found[0].answers == (Answer("am Fluss", 16),) and report.repaired == 0 and example.count("\n") == 9


@pytest.fixture
def measured(tmp_path, monkeypatch):
    """Runs one experiment of a few steps with a tiny encoder; returns its results by source."""
    from tests.tiny import write_tiny_e5
    from xsta_lib import experiments, runs

    monkeypatch.setenv("XSTA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(runs, "RUNS", tmp_path / "runs")
    tiny = write_tiny_e5(tmp_path / "tiny.bin")

    def run(protocol: str, data: ProtocolData) -> dict[str, dict]:
        exp = experiments.experiment(
            protocol, "x-sta", backbone=str(tiny), epochs=0.2, batch_size=4, switches=(("sharing_layer", 1),)
        )
        paths = experiments.run_experiment(exp, data, progress=False, results=tmp_path / "results")
        return {(found := json.loads(path.read_text("utf-8")))["source"]: found for path in paths}

    return run


def test_a_folder_of_your_own_is_trained_on_and_evaluated(tmp_path, measured):
    folder = tmp_path / "mine"
    test = {"test_en": questions("en", IDS[:3], "t"), "test_sw": questions("sw", IDS[:3], "t")}
    train = {
        "train_en": questions("en", IDS),
        "train_sw": questions("sw", IDS[:5]),
        "train_te": questions("te", IDS, "x"),
    }
    results = measured(str(folder), own(folder, **train, **test))
    assert set(results) == {"gold", "none"}
    assert results["gold"]["protocol"] == "mine" and results["gold"]["metrics"]["mine"]["sw"]["n"] == 3
    assert len(list((tmp_path / "results" / "mine").glob("*.json"))) == 2
    with pytest.raises(ValueError, match="measured on other files"):
        measured(str(folder), own(folder, **train, test_en=test["test_en"][:2], test_sw=test["test_sw"]))


def test_translated_sources_are_read_language_by_language(root, monkeypatch):
    calls = []

    class Perfect:
        """A predictor that notes what it is given and answers every question right."""

        def __init__(self, *args: object, **options: object):
            pass

        def predict(self, targets: dict, source: list | None, progress: bool, readings: tuple) -> dict:
            calls.append((list(targets), None if source is None else len(source)))
            return {
                language: SimpleNamespace(texts={"calibrated": {q.id: q.answers[0].text for q in found}})
                for language, found in targets.items()
            }

    monkeypatch.setattr(evaluation, "Predictor", Perfect)
    model = SimpleNamespace(device=torch.device("cpu"))
    (test,) = load_protocol("paper-mlqa", root=root).tests
    metrics = evaluation.evaluate_model(model, None, test, test.source_name, progress=False).metrics
    assert calls == [
        (["en"], None),
        (["ar"], 18),
        (["de"], None),
        *(([other], 18) for other in ("es", "hi", "vi", "zh")),
    ]
    assert {language: (found["f1"], found["n"]) for language, found in metrics.items()} == {
        language: (100.0, 20) for language in layouts.MLQA_LANGUAGES
    }
    calls.clear()
    evaluation.evaluate_model(model, None, test, "none", progress=False)
    assert {source for _, source in calls} == {None}
    (gold,) = load_protocol("paper-mlqa-gold", root=root).tests
    calls.clear()
    evaluation.evaluate_model(model, None, gold, gold.source_name, progress=False)
    assert calls == [(list(layouts.MLQA_LANGUAGES), 20)]  # one source for all: each of its windows is read once


@pytest.mark.skipif(not DEMO.is_dir(), reason="needs the embedded corpus of a checkout")
def test_the_demo_is_such_a_folder():
    data = load_protocol("demo")
    assert len(data.train) == 180 and {len(found) for found in data.parallel.values()} == {180}
    assert tuple(data.tests[0].questions) == layouts.MLQA_LANGUAGES and data.tests[0].rule == "mlqa"
    assert {len(found) for found in data.validation.questions.values()} == {40}
    assert {len(found) for found in data.tests[0].questions.values()} == {80}
    assert all(report.unmatched == report.repaired == len(report.rejected) == 0 for report in data.reports)
