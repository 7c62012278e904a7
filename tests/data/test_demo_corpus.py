"""The embedded corpus: the committed files are what its authored passages give, and nothing is wrong with them."""

import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

DEMO = Path(__file__).resolve().parents[2] / "data" / "demo"


@pytest.fixture(scope="module")
def tools() -> Iterator[tuple[ModuleType, ModuleType]]:
    """The corpus's own scripts, ``build`` and ``check``."""
    sys.path.insert(0, str(DEMO))
    try:
        import build
        import check

        yield build, check
    finally:
        sys.path.remove(str(DEMO))
        for name in ("build", "check"):
            sys.modules.pop(name, None)


def test_the_committed_files_are_what_the_passages_give(tools, tmp_path):
    build, _ = tools
    written = build.build(tmp_path)
    assert {path.name for path in written} == {path.name for path in DEMO.glob("*.json")} and len(written) == 21
    stale = [path.name for path in written if path.read_bytes() != (DEMO / path.name).read_bytes()]
    assert not stale, f"run 'python data/demo/build.py': {stale}"


def test_the_checker_finds_no_problems(tools):
    build, check = tools
    passages = build.load_passages()
    problems = [text for passage in passages for text in check.passage_problems(passage)]
    assert problems + check.corpus_problems(passages) == []


def test_the_data_card_shows_the_counts(tools):
    build, check = tools
    card = (DEMO / "README.md").read_text("utf-8")
    fresh = check.with_counts(card, build.load_passages())
    assert card == fresh, "run 'python data/demo/check.py --card'"


def test_a_broken_passage_is_refused_with_file_and_language(tools, tmp_path):
    build, _ = tools
    good = (DEMO / "passages" / "dev-01.txt").read_text("utf-8")
    path = tmp_path / "dev-01.txt"
    for old, new, message in (
        ("[[1|", "[[2|", "is marked twice"),
        ("]]", "]", "a marker is not closed"),
        ("\n1? ", "\n9? ", "must both be 1 to 5"),
        ("== de", "== fr", "must be"),
        ("kinds:", "sorts:", "lacks"),
    ):
        path.write_text(good.replace(old, new, 1), "utf-8")
        with pytest.raises(ValueError, match=message) as caught:
            build.parse_passage(path)
        assert "dev-01.txt" in str(caught.value)
