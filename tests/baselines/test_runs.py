"""LAKM, CalibreNet and AA-CL from files to results, killed again and again on the way; the same bits come out."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from test_lakm import with_phrases

from xsta_lib.data.squad import write_squad
from xsta_lib.experiments.experiment import experiment
from xsta_lib.experiments.results import load_all_results
from xsta_lib.experiments.run import run_experiment, run_folder
from xsta_lib.experiments.tables import cost_block
from xsta_lib.reader import Reader
from xsta_lib.training import trainer

METHODS = {"lakm": ["knowledge"], "aa-cl": [], "calibrenet": ["boundary recovery", "base reader", "fold 0", "fold 1"]}
SETTINGS = {"batch_size": 4, "epochs": 0.5, "dropout": 0.1, "precision": "fp32", "save_every": 1}

DYING = """
import os, signal, sys
sys.path[:0] = {paths!r}
from test_runs import one_life
for method in {methods!r}:
    lives, status = 0, 1
    while status:
        lives += 1
        assert lives < 40
        child = os.fork()
        if not child:
            one_life(method, {folder!r}, {backbone!r})
        status = os.waitpid(child, 0)[1]
        assert status in (0, signal.SIGKILL), status
    print(method, lives)
"""


def run(method: str, folder: str, backbone: str) -> None:
    run_experiment(experiment(folder, method, backbone=backbone, **SETTINGS), progress=False)


def one_life(method: str, folder: str, backbone: str) -> None:
    """Train until the second checkpoint that this process writes, and die there; or come to the end."""
    torch.set_num_threads(1)
    written, save = [], trainer.save_checkpoint

    def save_and_die(*given) -> None:
        save(*given)
        written.append(1)
        if len(written) == 2:
            os.kill(os.getpid(), signal.SIGKILL)

    trainer.save_checkpoint = save_and_die
    run(method, folder, backbone)
    os._exit(0)


@pytest.fixture(scope="module")
def runs(tmp_path_factory, backbone: Path) -> dict[str, Path]:
    """The homes of whole and of killed runs on one folder of files, and that folder."""
    places = {name: tmp_path_factory.mktemp(name) for name in ("files", "whole", "killed")}
    data = with_phrases()
    for language, questions in (("en", data.train), ("de", data.parallel["de"])):
        write_squad(places["files"] / f"train.{language}.json", questions)
        write_squad(places["files"] / f"dev.{language}.json", questions[4:6])
        write_squad(places["files"] / f"test.{language}.json", questions[:4])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XSTA_HOME", str(places["whole"]))
        for method in METHODS:
            run(method, str(places["files"]), str(backbone))
    paths = [str(Path(__file__).parent), str(Path(__file__).parents[1])]
    names = {"folder": str(places["files"]), "backbone": str(backbone), "methods": list(METHODS), "paths": paths}
    environment = os.environ | {"XSTA_HOME": str(places["killed"])}
    done = subprocess.run(
        [sys.executable, "-c", DYING.format(**names)],
        cwd=Path(__file__).parents[2],
        env=environment,
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    lives = dict(line.split() for line in done.stdout.splitlines())
    assert all(int(count) > 2 for count in lives.values()) and int(lives["calibrenet"]) > 6, lives
    return places | {"backbone": backbone}


@pytest.mark.heavy
@pytest.mark.parametrize("method", METHODS)
def test_reader_opens_the_model_and_gives_the_kept_answers(
    method: str, runs: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XSTA_HOME", str(runs["whole"]))
    folder = run_folder(experiment(str(runs["files"]), method, backbone=str(runs["backbone"]), **SETTINGS))
    (path,) = (folder / "predictions").glob("*.de.none.json")
    asked, kept = with_phrases().parallel["de"][:4], json.loads(path.read_text("utf-8"))
    found = Reader(folder / "model", "cpu").answer([q.question for q in asked], [q.context for q in asked], "de")
    assert [answer.text for answer in found] == [kept[q.id] for q in asked]


@pytest.mark.heavy
@pytest.mark.parametrize("method", METHODS)
def test_killed_run_gives_the_same_weights_and_result(method: str, runs: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    found, exp = [], experiment(str(runs["files"]), method, backbone=str(runs["backbone"]), **SETTINGS)
    for home in ("whole", "killed"):
        monkeypatch.setenv("XSTA_HOME", str(runs[home]))
        folder = run_folder(exp)
        (path,) = (runs[home] / "results").rglob(f"{method}_*.json")
        result = json.loads(path.read_text("utf-8"))
        assert not (folder / "stages").exists()
        extra = {name: {**part, "seconds": 0} for name, part in result["extra"].items()}
        counted = {name: result[name] for name in ("steps", "sequences", "tokens", "metrics", "best_step")}
        found.append((load_file(str(folder / "model" / "model.safetensors")), counted, extra))
    (weights, counted, extra), (weights_again, *others) = found
    assert all(torch.equal(value, weights_again[name]) for name, value in weights.items())
    assert [counted, extra] == others and list(extra) == METHODS[method]
    if method == "calibrenet":  # base and folds have the fine-tuning's steps each, together; recovery half
        recovery, base, *folds = parts = [part["steps"] for part in extra.values()]
        assert counted["steps"] - sum(parts) == base == sum(folds) == 2 * recovery
        assert counted["tokens"] > sum(part["tokens"] for part in extra.values()) > 0
    assert set(counted["metrics"]) == {Path(runs["files"]).name}
    results = load_all_results(str(runs["files"]), runs["whole"] / "results")
    table = cost_block([result for result in results if result["method"] == method])[1]
    beside = f"{sum(part['steps'] for part in extra.values()):,}"
    assert table.loc[:, ["steps", "in other stages", "tokens"]].values.tolist() == [
        [f"{counted['steps']:,}", beside, f"{counted['tokens']:,}"]
    ]
    assert table.index[0].startswith(method) and ("abstract" in table.index[0]) == (method != "lakm")
