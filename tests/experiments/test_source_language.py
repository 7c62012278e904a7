"""Another source language than English, from a folder's files to result, tables, figures and answers."""

import json
from pathlib import Path

import pytest
from tiny import write_tiny_e5

from xsta_lib import cli
from xsta_lib.data.protocols import load_protocol
from xsta_lib.data.squad import Answer, Question, read_squad, write_squad
from xsta_lib.experiments.experiment import experiment
from xsta_lib.experiments.frames import metrics_frame
from xsta_lib.experiments.results import FIELDS, load_all_results, read_result
from xsta_lib.experiments.run import refuse_other_data, train_experiment
from xsta_lib.plotting.results import source_target_bars, write_figures
from xsta_lib.reader import Reader

PAIRS = {  # by id: question, context and answer in French and in Catalan
    "moulin": (
        ("Où est le moulin ?", "Le vieux moulin est au bord de la rivière.", "au bord de la rivière"),
        ("On és el molí?", "El molí vell és a la vora del riu.", "a la vora del riu"),
    ),
    "pain": (
        ("Qui fait le pain ?", "Chaque matin, Jeanne fait le pain du village.", "Jeanne"),
        ("Qui fa el pa?", "Cada matí, la Joana fa el pa del poble.", "la Joana"),
    ),
    "école": (
        ("Quand ouvre l'école ?", "L'école du port ouvre en septembre.", "en septembre"),
        ("Quan obre l'escola?", "L'escola del port obre al setembre.", "al setembre"),
    ),
    "pont": (
        ("De quoi est fait le pont ?", "Le pont est fait de pierre grise.", "de pierre grise"),
        ("De què és fet el pont?", "El pont és fet de pedra grisa.", "de pedra grisa"),
    ),
    "phare": (
        ("Combien de marches a le phare ?", "Le phare a deux cents marches.", "deux cents"),
        ("Quants graons té el far?", "El far té dos-cents graons.", "dos-cents"),
    ),
    "train": (
        ("Où va le train bleu ?", "Le train bleu va à Perpignan.", "à Perpignan"),
        ("On va el tren blau?", "El tren blau va a Perpinyà.", "a Perpinyà"),
    ),
}


def write_pairs(folder: Path) -> Path:
    """Four pairs for training and two for testing, in a new folder."""
    for place, language in enumerate(("fr", "ca")):
        found = []
        for key, sides in PAIRS.items():
            question, context, answer = sides[place]
            found.append(Question(key, question, context, (Answer(answer, context.index(answer)),)))
        write_squad(folder / f"train.{language}.json", found[:4])
        write_squad(folder / f"test.{language}.json", found[4:])
    return folder


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The folder after ``xsta train --source fr``, and the home that it left its result and its model in."""
    home = tmp_path_factory.mktemp("home")
    texts = [text for sides in PAIRS.values() for side in sides for text in side]
    backbone = write_tiny_e5(home / "tiny.bin", texts=texts, layers=8)  # the paper's sharing layer is the eighth
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XSTA_HOME", str(home))
        patch.setenv("XSTA_CACHE", str(home / "cache"))
        folder = write_pairs(home / "mine")
        command = ["train", "--protocol", str(folder), "--source", "fr", "--steps", "4", "--batch-size", "2"]
        assert cli.main([*command, "--backbone", str(backbone)]) == 0
        yield folder, home


def test_a_folder_without_english_asks_for_its_source(tmp_path, capsys):
    folder = str(write_pairs(tmp_path / "mine"))
    for command in (["train", "--protocol", folder], ["check", folder]):
        assert cli.main(command) == 1
        screen = "".join(capsys.readouterr())
        assert "train.en.json is missing" in screen and "--source ca or --source fr" in screen
    assert cli.main(["check", folder, "--source", "fr"]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["split", "language", "questions", "answers", "with", "fr"] in [row[:6] for row in rows]
    training = [row[:5] for row in rows if row[:1] == ["train"]]
    assert training == [["train", "fr", "4", "4", "-"], ["train", "ca", "4", "4", "4"]]


def test_a_source_that_is_not_there_is_refused(tmp_path):
    for wrong, message in (
        ({"name": "parallel", "source_language": "fr"}, "'parallel' has English as its source"),
        ({"name": str(write_pairs(tmp_path / "mine")), "source_language": "de"}, "train.de.json is missing"),
    ):
        with pytest.raises(ValueError, match=message):
            load_protocol(**wrong)
    for path in (tmp_path / "mine").glob("train.*"):
        path.unlink()
    assert load_protocol(str(tmp_path / "mine")).tests[0].source is None  # it only evaluates, each language alone
    assert load_protocol(str(tmp_path / "mine"), source_language="ca").tests[0].source_language == "ca"
    with pytest.raises(ValueError, match="test.de.json is missing"):
        load_protocol(str(tmp_path / "mine"), source_language="de")


def test_result_tables_and_figures_name_french(trained):
    folder, home = trained
    paired, alone = sorted(load_all_results(str(folder)), key=lambda result: result["source"])
    assert (paired["source"], alone["source"]) == ("gold", "none")
    assert paired["source_language"] == paired["config"]["source_language"] == "fr"
    assert {language: values["n"] for language, values in paired["metrics"]["mine"].items()} == {"fr": 2, "ca": 2}
    assert all("source_language-fr" in path.name for path in (home / "results" / "mine").glob("*.json"))
    axes = source_target_bars(metrics_frame([paired, alone]), "mine").axes[0]
    assert [text.get_text() for text in axes.get_xticklabels()] == ["source (fr)", "mean of targets"]
    written = write_figures(str(folder))
    (tables,) = (path for path in written if path.suffix == ".md")
    text = tables.read_text("utf-8")
    assert "source_language=fr" in text and "mine, F1 of fr" in text and "source_language-fr" in tables.name


def test_the_trained_reader_knows_its_source(trained):
    (model,) = (trained[1] / "runs" / "mine").glob("*/model")
    reader = Reader(model, "cpu")
    norm = reader.predictor.model.normalisation
    assert reader.source_language == "fr" and norm.languages == ["fr", "ca"] and (norm.updates > 0).all()
    french, catalan = (side[:2] for side in PAIRS["phare"])
    answer = reader.answer(*catalan, "ca", french)
    assert answer.text and answer.text in catalan[1] and list(answer.readings) == ["calibrated", "target", "teacher"]
    with pytest.raises(ValueError, match="1 questions, but 0 French versions"):
        reader.answer([catalan[0]], [catalan[1]], "ca", [])
    with pytest.warns(UserWarning, match="1 questions in 'fr' are read alone"):
        reader.answer(*french, "fr", french)


def test_results_of_one_folder_compare_within_one_source(trained):
    folder = str(trained[0])
    refuse_other_data(folder, load_protocol(folder, source_language="ca"))  # no result of Catalan's yet
    french = load_protocol(folder, source_language="fr")
    refuse_other_data(folder, french)
    with pytest.raises(ValueError, match="its source language is 'fr', the experiment's 'ca'"):
        train_experiment(experiment(folder, "x-sta", source_language="ca"), french, progress=False)
    path = trained[0] / "train.fr.json"
    write_squad(path, read_squad(path)[0][:3])
    with pytest.raises(ValueError, match="measured on other files"):
        refuse_other_data(folder, load_protocol(folder, source_language="fr"))


def test_results_from_before_have_english(tmp_path):
    path = tmp_path / "x-sta_seed42.json"
    record = dict.fromkeys(FIELDS, "demo") | {"config": {"protocol": "demo", "backbone": "mbert"}, "metrics": {}}
    path.write_text(json.dumps(record), "utf-8")
    assert read_result(path)["source_language"] == "en"
