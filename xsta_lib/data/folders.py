"""The names of your own files in a folder: which are read, how, and which only look like data."""

import re
from pathlib import Path

from .squad import CorpusError

SPLITS = ("train", "dev", "test")
OPTIONS: dict[str, dict[str, object]] = {  # of read_squad, by split; in the order of reading
    "train": {},
    "dev": {"spans": False},  # scored by its texts
    "test": {"spans": False},
    "back": {"labelled": False},  # only its texts are read
}
READ = re.compile(r"(train|dev|test|back)\.([a-z]{2,3}(?:[-_][A-Za-z0-9]+)*)\.json")
MEANT = re.compile(  # what somebody may have meant as one of these
    r"(?!.*\.(md|py|ipynb|sh|log)$)"
    r"([^.].*\.(json\w*|ndjson|csv|tsv|parquet|gz|zip)(\W.*)?|(train|dev|test|back|valid\w*)([._ -][a-z]{2,3}\b.*)?)",
    re.IGNORECASE,
)
_CODES = """
aa ab ae af ak am an ar as av ay az ba be bg bh bi bm bn bo br bs ca ce ch co cr cs cu cv cy da de dv dz ee el en eo es
et eu fa ff fi fj fo fr fy ga gd gl gn gu gv ha he hi ho hr ht hu hy hz ia id ie ig ii ik io is it iu ja jv ka kg ki kj
kk kl km kn ko kr ks ku kv kw ky la lb lg li ln lo lt lu lv mg mh mi mk ml mn mr ms mt my na nb nd ne ng nl nn no nr nv
ny oc oj om or os pa pi pl ps pt qu rm rn ro ru rw sa sc sd se sg si sk sl sm sn so sq sr ss st su sv sw ta te tg th ti
tk tl tn to tr ts tt tw ty ug uk ur uz ve vi vo wa wo xh yi yo za zh zu
"""  # ISO 639-1


def folder_files(folder: Path) -> tuple[dict[tuple[str, str], dict[str, object]], list[str]]:
    """What a folder of your own files holds.

    Returns:
        By split and language, in the order of reading, how ``<split>.<language>.json`` is read (options of
        :func:`~.squad.read_squad`); and notes on names: files that look like data and are not read, and codes that no
        language has.

    Raises:
        CorpusError: there is no file to read.
    """
    names = sorted(path.name for path in folder.glob("*"))
    found = [(match[1], match[2]) for match in map(READ.fullmatch, names) if match]
    found = [pair for pair in found if pair[0] != "back" or ("train", pair[1]) in found]
    read = {f"{split}.{language}.json" for split, language in found}
    unread = [name for name in names if MEANT.fullmatch(name) and name not in read]
    notes = []
    if unread:
        notes.append(f"not read: {', '.join(unread)}; names are <split>.<language>.json, such as train.de.json")
    if not any(split in SPLITS for split, _ in found):
        rest = "; ".join(["see data/README.md", *notes])
        raise CorpusError(f"{folder}: no file <split>.<language>.json, such as train.en.json; {rest}")
    unknown = sorted({code for _, code in found if len(code) == 2} - set(_CODES.split()))
    if unknown:
        notes.append(f"read, though no language has the code {', '.join(unknown)} (ISO 639-1); misspelt?")
    order = sorted(found, key=lambda pair: ([*OPTIONS].index(pair[0]), pair[1] != "en", pair[1]))
    rule = {True: {}, False: {"repeats": "first"}}  # translations may repeat an id, as published ones do
    return {(split, language): OPTIONS[split] | rule[language == "en"] for split, language in order}, notes
