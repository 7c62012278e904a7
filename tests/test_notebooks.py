"""Notebooks 00 and 02 run again and say what they said.

Their smallest size runs in a copy of the project, with the reader in the box, and is compared with the kept outputs of
such a run.

``python tests/test_notebooks.py`` keeps the small outputs anew (``make notebooks`` does it).
"""

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import nbformat
import pytest
from project import BIN, ROOT, copy_project

sys.path.insert(0, str(ROOT / "notebooks"))
from outputs import machine, outputs  # noqa: E402

FIXTURES = ROOT / "tests" / "fixtures" / "notebooks"
NAMES = ("00_quickstart", "02_sharing_teaching_aligning")
PARTS = ("notebooks", "data/demo", "data/paper", "results")
SMALL = ("-p", "small", "True")
NUMBER = re.compile(r"-?\d+(?:\.\d+)?(?:e-?\d+)?")


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    folder = tmp_path_factory.mktemp("project")
    return folder, copy_project(folder, *PARTS)


def execute(folder, environment, name: str, *options: str) -> nbformat.NotebookNode:
    command = [str(BIN / "papermill"), "--no-progress-bar", "--cwd", str(folder / "notebooks"), *options]
    paths = [str(folder / "notebooks" / f"{name}.ipynb"), str(folder / f"{name}.ipynb")]
    done = subprocess.run([*command, *paths], env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    return nbformat.read(paths[1], as_version=4)


def same(found: str, kept: str) -> bool:
    """Equal texts; times, white space, an answer's scores and a hundredth or two of a number aside.

    In bfloat16 processors of one kind round differently too, as their caches differ.
    """
    found, kept = (re.sub(r"[\d:]+ left|score=[\de.-]+", "", text) for text in (found, kept))
    texts = [re.sub(r"[\s-]+", " ", NUMBER.sub("0", text)) for text in (found, kept)]
    numbers = [list(map(float, NUMBER.findall(text))) for text in (found, kept)]
    return texts[0] == texts[1] and numbers[0] == pytest.approx(numbers[1], rel=0.03, abs=0.02)


def compare(found: list[list[dict]], kept: list[list[dict]], texts: bool = True) -> None:
    assert [[list(out) for out in cell] for cell in found] == [[list(out) for out in cell] for cell in kept]
    for number, (mine, theirs) in enumerate(zip(found, kept, strict=True)):
        for out, other in zip(mine, theirs, strict=True):
            if "image" in out:  # labels are wider or narrower in other fonts
                assert out["image"] == pytest.approx(other["image"], rel=0.15), f"code cell {number}"
            elif texts:
                assert same(out["text"], other["text"]), f"code cell {number}:\n{out['text']}\nwas\n{other['text']}"


@pytest.mark.heavy
@pytest.mark.parametrize("name", NAMES)
def test_the_smallest_size_says_what_it_said(copy, name):
    executed = execute(*copy, name, *SMALL)
    kept = json.loads((FIXTURES / f"{name}.json").read_text("utf-8"))
    alike = kept["machine"] == machine()  # other processors round to other answers now and then
    compare(outputs(executed), kept["outputs"], texts=alike)
    if not alike:
        kinds = f"kept on {', '.join(kept['machine'])}; this is {', '.join(machine())}"
        pytest.skip(f"it ran and drew what it drew, but its texts were not compared: {kinds}")


@pytest.mark.parametrize("name", ["04_results", "05_ablations", "06_parameters"])
def test_a_notebook_of_what_nobody_measured_says_how_to_measure_it(copy, name):
    folder, environment = copy
    executed = execute(folder, environment, name, *SMALL, "-p", "protocol", "paper-xquad", "-p", "backbone", "mbert")
    said = "".join(out.get("text", "") for cell in outputs(executed) for out in cell)
    assert "not measured" in said and "--protocol paper-xquad" in said


def test_every_cell_has_its_place_on_a_slide_and_every_exercise_its_solution():
    files = {path.stem: nbformat.read(path, as_version=4) for path in sorted((ROOT / "notebooks").glob("*.ipynb"))}
    solved = {cell.source[3:5] for cell in files["solutions"].cells if cell.source.startswith("## ")}
    for name in ("00", "01", "03", "04", "05", "06", "07", "08", "09", "10", "11"):
        (notebook,) = (found for stem, found in files.items() if stem.startswith(name))
        assert all("slide_type" in cell.metadata.slideshow for cell in notebook.cells), name
        (exercise,) = (cell.source for cell in notebook.cells if cell.source.startswith("**Exercise** ("))
        assert "minutes" in exercise and "`assert " in exercise and name in solved, name


def test_comparing_notices_what_changed():
    text = {"text": "F1 41.80, answer Óbidos, 0:12 left"}
    compare([[text]], [[{"text": "F1  41.79,\nanswer Óbidos, 1:02:03 left"}]])
    for other in ({"text": "F1 44.80, answer Óbidos,"}, {"text": "F1 41.80, answer Macapá,"}, {"image": [1, 1]}):
        with pytest.raises(AssertionError):
            compare([[text]], [[other]])


def main() -> None:
    """Keep the outputs of the smallest runs as fixtures."""
    FIXTURES.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as place:
        environment = copy_project(Path(place), *PARTS)
        for name in NAMES:
            kept = {"machine": machine(), "outputs": outputs(execute(Path(place), environment, name, *SMALL))}
            text = json.dumps(kept, ensure_ascii=False, indent=1) + "\n"
            (FIXTURES / f"{name}.json").write_text(text, "utf-8")


if __name__ == "__main__":
    main()
