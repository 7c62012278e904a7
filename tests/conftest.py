"""Tests never read or fill the user's caches."""

import os

import pytest


@pytest.fixture(autouse=True, scope="session")
def own_caches(tmp_path_factory):
    """Point the cache of windows and tables at a folder of this run."""
    os.environ["XSTA_CACHE"] = str(tmp_path_factory.mktemp("cache"))
