"""The reader in the box is made, described and measured again, here on a tiny encoder."""

import json
from dataclasses import replace

import pytest
from project import write_published
from tiny import write_tiny_e5

from xsta_lib.data.protocols import load_protocol
from xsta_lib.encoders.packed import load_packed
from xsta_lib.experiments import packing
from xsta_lib.experiments.experiment import experiment
from xsta_lib.experiments.results import results_folder
from xsta_lib.experiments.run import refuse_other_data, run_experiment, run_folder


@pytest.fixture(scope="module")
def box(tmp_path_factory):
    """A reader that was trained for two steps on the published layout, packed and measured."""
    place = tmp_path_factory.mktemp("box")
    write_published(place / "data")
    tiny = write_tiny_e5(place / "tiny.bin", layers=2)
    switches = {"backbone": str(tiny), "steps": 2, "batch_size": 4, "switches": (("sharing_layer", 1),)}
    exp = experiment("parallel", "x-sta", freeze_embeddings=True, **switches)
    with pytest.MonkeyPatch.context() as patch:
        for name, spot in (("HOME", "home"), ("DATA", "data"), ("CACHE", "cache")):
            patch.setenv(f"XSTA_{name}", str(place / spot))
        patch.setattr(packing, "boxed_experiment", lambda: exp)
        yield place / "reader", packing.make_reader(place / "reader", progress=False)


def test_the_card_tells_how_it_was_made_and_what_it_scores(box):
    folder, scores = box
    assert {test: set(by_source) for test, by_source in scores["metrics"].items()} == {
        "xquad": {"gold", "none"},
        "xquad_other": {"other"},
        "tydiqa": {"none"},
    }
    card = (folder / "README.md").read_text("utf-8")
    assert "2 steps of 4 rows" in card and "English beside" in card and "{" not in card
    assert all(
        f"{found['f1']:.1f} / {found['em']:.1f}" in card for found in scores["metrics"]["tydiqa"]["none"].values()
    )


def test_it_is_measured_again_and_other_weights_are_noticed(box):
    folder, scores = box
    assert packing.check_reader(folder, progress=False) == (scores, [])
    model, tokenizer = load_packed(folder)
    model.qa_outputs.weight.data.neg_()
    packing.pack(model, tokenizer, folder, json.loads((folder / "packed.json").read_text("utf-8"))["backbone"])
    _, differ = packing.check_reader(folder, progress=False)
    assert len(differ) == 4 and all("other answers" in line for line in differ)


def test_other_files_of_a_published_protocol_are_refused(box):
    data = load_protocol("parallel")
    part = {"en": data.validation.questions["en"]}
    other = replace(data, validation=replace(data.validation, questions=part))
    refuse_other_data("parallel", data)
    with pytest.raises(ValueError, match="measured on other files than parallel has now"):
        refuse_other_data("parallel", other)
    for path in (results_folder() / "parallel").glob("*.json"):
        record = json.loads(path.read_text("utf-8"))
        path.write_text(json.dumps(record | {"data": record["data"].rpartition(" ")[0]}), "utf-8")  # an older one's
    refuse_other_data("parallel", other)
    data.tests[0].questions["de"].pop()
    with pytest.raises(ValueError, match="measured on other files"):
        refuse_other_data("parallel", data)


def test_answers_are_filed_by_their_source_and_say_where_they_were_given(box, tmp_path):
    exp = packing.boxed_experiment()
    folder = run_folder(exp) / "predictions"
    kept = {path.name for path in folder.glob("*.*.json") if path.name.count(".") == 2}
    assert kept == {"xquad.gold.json", "xquad.none.json", "xquad_other.other.json", "tydiqa.none.json"}
    record = json.loads((folder / "xquad.gold.json").read_text("utf-8"))
    own, record["provenance"] = record["provenance"], record["provenance"] | {"commit": "another"}
    (folder / "xquad.gold.json").write_text(json.dumps(record), "utf-8")
    beside, alone = (json.loads(path.read_text("utf-8")) for path in run_experiment(exp, None, False, tmp_path))
    assert beside["evaluation_provenance"] == own | {"others": {"xquad": own | {"commit": "another"}}}
    assert alone["evaluation_provenance"] == own
