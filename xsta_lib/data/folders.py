"""The names of your own files in a folder: which are read, how, and which only look like data."""

import re
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path

from babel import Locale
from langcodes import standardize_tag, tag_is_valid

from .squad import CorpusError

SPLITS = ("train", "dev", "test")
TRANSLATE_TEST = "translate-test"  # a test file, machine-translated into the source language
OPTIONS: dict[str, dict[str, object]] = {  # of read_squad, by split; in the order of reading
    "train": {},
    "dev": {"spans": False},  # scored by its texts
    "test": {"spans": False},
    "back": {"labelled": False},  # only its texts are read
    TRANSLATE_TEST: {"labelled": False},
}
BESIDE = {"back": "train", TRANSLATE_TEST: "test"}  # these are made of, and only read with, the same language's file
READ = re.compile(r"(train|dev|test|back|translate-test)\.([a-z]{2,3}(?:[-_][A-Za-z0-9]+)*)\.json")
MEANT = re.compile(  # what somebody may have meant as one of these
    r"(?!.*\.(md|py|ipynb|sh|log)$)"
    r"([^.].*\.(json\w*|ndjson|csv|tsv|parquet|gz|zip)(\W.*)?|(train|dev|test|back|valid\w*)([._ -][a-z]{2,3}\b.*)?)",
    re.IGNORECASE,
)


def language_name(code: str) -> str:
    """What English calls the language of an ISO 639 code, such as ``French`` or ``Traditional Chinese`` (``zh-Hant``).

    The names are Unicode's (CLDR); a region that has none of its own goes, and an unknown code is its own name.
    """
    with suppress(ValueError):
        code = standardize_tag(code)
    names, parts = Locale("en").languages, code.split("-")
    tags = ["_".join(parts[:count]) for count in range(len(parts), 0, -1)]
    return next((names[tag] for tag in tags if tag in names), code)


def file_name(split: str, language: str, source_language: str = "en") -> str:
    """What the file of a split and language is called: ``train.es.json``, but ``translate-test.es-en.json``."""
    return f"{split}.{language}{f'-{source_language}' if split == TRANSLATE_TEST else ''}.json"


def folder_files(
    folder: Path, source_language: str = "en"
) -> tuple[dict[tuple[str, str], dict[str, object]], list[str]]:
    """What a folder of your own files holds.

    Args:
        folder: the files' place.
        source_language: the language that the others' questions stand beside; it comes first in every split.

    Returns:
        By split and language, in the order of reading, how ``<split>.<language>.json`` is read (options of
        :func:`~.squad.read_squad`); and notes on names: files that look like data and are not read, and codes that no
        language has.

    Raises:
        CorpusError: there is no file to read.
    """
    names = sorted(path.name for path in folder.glob("*"))
    found, ending = [(match[1], match[2]) for match in map(READ.fullmatch, names) if match], f"-{source_language}"
    found = [pair for pair in found if pair[0] != TRANSLATE_TEST or pair[1].endswith(ending)]
    found = [(split, name.removesuffix(ending) if split == TRANSLATE_TEST else name) for split, name in found]
    found = [pair for pair in found if pair[0] not in BESIDE or (BESIDE[pair[0]], pair[1]) in found]
    read = {file_name(split, language, source_language) for split, language in found}
    unread = [name for name in names if MEANT.fullmatch(name) and name not in read]
    notes = []
    if unread:
        notes.append(f"not read: {', '.join(unread)}; names are <split>.<language>.json, such as train.de.json")
    if not any(split in SPLITS for split, _ in found):
        rest = "; ".join(["see data/README.md", *notes])
        raise CorpusError(f"{folder}: no file <split>.<language>.json, such as train.{source_language}.json; {rest}")
    unknown = sorted({code for _, code in found if len(code) == 2 and not tag_is_valid(code)})
    if unknown:
        notes.append(f"read, though no language has the code {', '.join(unknown)} (ISO 639-1); misspelt?")
    order = sorted(found, key=lambda pair: ([*OPTIONS].index(pair[0]), pair[1] != source_language, pair[1]))
    rule = {True: {}, False: {"repeats": "first"}}  # translations may repeat an id, as published ones do
    return {(split, language): OPTIONS[split] | rule[language == source_language] for split, language in order}, notes


def missing_source(folder: Path, found: Collection[tuple[str, str]], source_language: str) -> str:
    """Why a folder cannot be used that lacks its source language, with the remedy; empty where nothing is amiss.

    Without training files it only evaluates: then the files may all be read alone, unless a source was asked for that
    has neither a file of its own nor translations.

    Args:
        folder: the files' place.
        found: split and language of each file.
        source_language: English is the default, so nobody need have asked for it.
    """
    training = {language for split, language in found if split == "train"}
    languages = training or {language for _, language in found}
    translated = any(split == TRANSLATE_TEST for split, _ in found)
    if source_language in languages or not training and (source_language == "en" or translated):
        return ""
    name = f"{'train' if training else 'test'}.{source_language}.json"
    others = " or ".join(f"--source {language}" for language in sorted(languages))
    remedy = f"add it, or say which language is the source: {others} (in Python, source_language=...)"
    return f"{folder}: {name} is missing, the source language's file; {remedy}"
