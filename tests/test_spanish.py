"""The Spanish comparison: what its folders hold, and its trainings in their smallest size."""

import json
import shutil

import pytest
import spanish
from project import write_published
from tiny import write_tiny_e5

from xsta_lib.data.protocols import load_protocol
from xsta_lib.data.squad import read_squad
from xsta_lib.experiments.results import read_result


@pytest.fixture
def place(tmp_path, monkeypatch):
    """The folders, of a small data folder in the published layout."""
    write_published(tmp_path / "data")
    monkeypatch.setenv("XSTA_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("XSTA_HOME", str(tmp_path))
    spanish.write_folders(spanish.data_place())
    return spanish.data_place()


def test_the_folders_differ_in_their_spanish_alone_and_are_tested_on_other_articles(place):
    names = ("english", "human", "apertium")
    english, human, apertium = (load_protocol(str(place / name), rule="squad") for name in names)
    assert english.train == human.train == apertium.train and not english.parallel
    assert english.tests[0].digest() == human.tests[0].digest() == apertium.tests[0].digest()
    assert english.validation.questions == human.validation.questions and human.validation.source is None
    pairs, (test,) = {q.id for q in human.parallel["es"]}, human.tests
    assert len(pairs) == 10 and pairs < {q.id for q in human.train}
    assert not {q.id for q in test.questions["es"]} & {q.id for q in human.train}
    assert test.source_name == "gold" and [q.id for q in test.source] == [q.id for q in test.questions["es"]]
    translated, _ = read_squad(place / "tydiqa" / "train.en.json")
    assert len(translated) == 20 and not {q.id for q in translated} & pairs


def test_every_reader_trains_the_same_steps_and_what_was_measured_is_not_trained_again(place, tmp_path):
    backbone = write_tiny_e5(tmp_path / "tiny.bin", layers=8)
    (place / "apertium" / "train.es.json").write_bytes((place / "human" / "train.es.json").read_bytes())
    settings = {"steps": 2, "batch_size": 4, "backbone": str(backbone)}
    written = spanish.train_missing(place, tmp_path / "results", **settings)
    found = [read_result(path) for path in written]
    assert {(r["protocol"], r["method"], r["source"]) for r in found} == {
        *((folder, "x-sta", source) for folder in ("apertium", "human") for source in ("gold", "none")),
        *((folder, "trans-train", "none") for folder in ("apertium", "human")),
        ("english", "zero-shot", "none"),
    }
    assert {r["steps"] for r in found} == {2} and {r["metrics"][r["protocol"]]["es"]["n"] for r in found} == {10}
    written[-1].unlink()
    assert spanish.train_missing(place, tmp_path / "results", **settings) == written[-1:]


@pytest.mark.heavy
@pytest.mark.skipif(not shutil.which("apertium"), reason="Apertium is not installed (apt install apertium-eng-spa)")
def test_apertium_makes_its_files_and_the_numbers_add_up(place, tmp_path):
    spanish.translate_train(place, tmp_path)
    spanish.measure_translate_test(place, tmp_path)
    survivors, tested = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("apertium", "translate-test"))
    pairs, _ = read_squad(place / "apertium" / "train.es.json")
    assert len(pairs) == survivors["kept"] == survivors["kept_at"]["0.3"] == sum(survivors["kept_by_method"].values())
    assert survivors["kept"] + sum(survivors["dropped"].values()) == survivors["questions"] == 20
    f1 = {name: found["f1"] for name, found in tested["metrics"].items()}
    assert {found["n"] for found in tested["metrics"].values()} == {10}
    for name, found in tested["differences"].items():
        first, second = name.split(" minus ")
        assert (
            found["value"] == pytest.approx(f1[first] - f1[second]) and found["low"] <= found["value"] <= found["high"]
        )
