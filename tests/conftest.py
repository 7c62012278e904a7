"""Tests never read or fill the user's caches; and what several rooms' tests share."""

import os
from pathlib import Path

import pytest
from tiny import write_tiny_e5

from xsta_lib.data.protocols import load_protocol


@pytest.fixture(autouse=True, scope="session")
def own_caches(tmp_path_factory):
    """Point the cache of windows and tables at a folder of this run."""
    os.environ["XSTA_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def backbone(tmp_path_factory) -> Path:
    """A tiny encoder in e5's format that knows every character of the demo corpus."""
    data = load_protocol("demo")
    parts = data.train, *data.parallel.values(), *data.tests[0].questions.values()
    texts = [text for part in parts for question in part for text in (question.context, question.question)]
    return write_tiny_e5(tmp_path_factory.mktemp("tiny") / "tiny.bin", texts=texts)
