"""What a user installs: a package that is light to import, and a wheel that works in an empty folder."""

import json
import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
from project import copy_project, write_corpus
from tiny import write_tiny_e5

import xsta_lib

HEAVY = "torch", "transformers", "datasets", "pandas"


@pytest.mark.parametrize("code", ["import xsta_lib", "from xsta_lib.cli import main; main(['--help'])"])
def test_nothing_heavy_is_imported_before_it_is_needed(code):
    after = f"import sys, atexit; atexit.register(lambda: print([m for m in {HEAVY} if m in sys.modules])); {code}"
    done = subprocess.run([sys.executable, "-c", after], capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.splitlines()[-1] == "[]", done.stderr


def test_every_name_of_the_package_is_there():
    promised = {"Reader", "Question", "Answer", "XStaConfig", "XStaForQuestionAnswering", "Trainer", "TrainingConfig"}
    promised |= {"load_protocol", "read_squad", "explain"}
    assert promised < set(xsta_lib.__all__) <= set(dir(xsta_lib))
    assert all(getattr(xsta_lib, name).__name__ == name for name in promised)
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        _ = xsta_lib.Nothing


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """The ``bin`` folder of a fresh environment with the project's wheel; of the tests' own it sees the packages."""
    folder = tmp_path_factory.mktemp("wheel")
    copy_project(folder / "source", "pyproject.toml", "README.md", "LICENSE")
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    build = [*pip, "wheel", "--no-deps", "--no-index", "--no-build-isolation", "--wheel-dir", str(folder)]
    subprocess.run([*build, str(folder / "source")], check=True)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder / "env")], check=True)
    own = Path(sysconfig.get_path("purelib", vars={"base": str(folder / "env")}))
    (own / "packages.pth").write_text(sysconfig.get_path("purelib") + "\n")  # no .pth file there is read, so not ours
    python = str(folder / "env" / "bin" / "python")
    install = [*pip, "--python", python, "install", "--no-deps", "--no-index"]
    subprocess.run([*install, *map(str, folder.glob("*.whl"))], check=True)
    return folder / "env" / "bin"


@pytest.mark.heavy
def test_a_wheel_trains_scores_answers_and_draws_in_an_empty_folder(installed, tmp_path):
    write_tiny_e5(tmp_path / "tiny.bin", texts=write_corpus(tmp_path / "mine", 8), layers=8)
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("XSTA_", "PYTHON"))}
    environment = kept | {"XSTA_CACHE": str(tmp_path / "cache"), "TQDM_DISABLE": "1"}

    def xsta(*arguments: str) -> subprocess.CompletedProcess:
        command = [str(installed / "xsta"), *arguments]
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)

    done = xsta("train", "--protocol", "mine", "--backbone", "tiny.bin", "--steps", "2", "--batch-size", "4")
    assert done.returncode == 0, done.stderr[-2000:]
    files = [json.loads(path.read_text("utf-8")) for path in (tmp_path / "results" / "mine").glob("*.json")]
    (result,) = (record for record in files if record["source"] == "gold")
    assert result["provenance"]["commit"] == "unknown" and len(result["files"]) == 4
    (run,) = (tmp_path / "runs" / "mine").iterdir()
    answers = ["--predictions", str(run / "predictions" / "mine.de.gold.json"), "--gold", "mine/test.de.json"]
    scored = json.loads(xsta("evaluate", *answers, "--language", "de", "--rule", "mlqa").stdout)
    assert scored == result["metrics"]["mine"]["de"] and scored["n"] == 8
    drawn = xsta("figures", "--protocol", "mine")
    assert drawn.stdout.count(str(tmp_path / "figures")) == 2 and drawn.stdout.count(str(tmp_path / "results")) == 2
    assert "the paper's numbers are left out" in drawn.stderr and all(map(os.path.exists, drawn.stdout.split()))
    (tmp_path / "mill.txt").write_text("Die Mühle wurde 1789 von Anna Brandt gebaut.", "utf-8")
    assert xsta("answer", "Wer hat die Mühle gebaut?", "mill.txt").stdout == "Anna Brandt\n"
    demo = xsta("train", "--protocol", "demo")
    assert demo.returncode == 1 and "repository" in demo.stderr and "Traceback" not in demo.stderr
