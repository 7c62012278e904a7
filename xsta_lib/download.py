"""Published files: found offline or fetched, resumed, verified, unpacked.

`fetch("compact")` returns paths under `data_folder()`: the environment variable XSTA_DATA, or the platform's cache.
A wanted file already there is used as it is, so a ready folder works without a network:

    xquad/xquad.{l}.json                              MLQA_V1/{dev,test}/{dev,test}-context-{l}-question-{l}.json
    squad/{train,dev}-v1.1.json                       tydiqa-goldp-v1.1/dev/tydiqa-goldp-dev-{language}.json
    xtreme/{path below XTREME's translation bucket}   tydiqa-goldp-v1.1/train/tydiqa-goldp-train-english.json

Files come from their publishers, or from XSTA_MIRROR, a base URL or a local folder which holds them under their
registry names, `<mirror>/<group folder>/<file name>`: xquad/xquad.de.json, mlqa/MLQA_V1.zip, squad/train-v1.1.json,
tydiqa/tydiqa-goldp-v1.1-train.json, tydiqa/tydiqa-goldp-v1.1-dev.tgz, xtreme/SQuAD/translate-train/...

`registry.json` lists every file: address, bytes, SHA-256, question ids, and what it becomes in the folder (place and
language). Archives, and the full TyDiQA training file, stay where they were stored, so a later call for other members
does not load them again.
"""

import json
import os
import time
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import NoReturn

import pooch
import requests
from filelock import FileLock
from tqdm.auto import tqdm

from xsta_lib.unpacking import BrokenArchive, extract, replacing, require_space, split_by_id

CHUNK = 1 << 16  # bytes
TIMEOUT_S = (10, 60)  # seconds to connect, seconds without a byte
FRUITLESS_TRIES = 2  # tries in a row that bring nothing new before giving up
WAIT_S = 2.0  # seconds between tries
PINS = "pinned.json"


class DownloadError(RuntimeError):
    """A file could not be had: which file, where it belongs, what went wrong, and what to do."""

    def __init__(self, file: str, place: str | Path, problem: str, remedy: str) -> None:
        super().__init__(f"{file}: {problem}\n  place:  {place}\n  remedy: {remedy}")
        self.file, self.place, self.problem, self.remedy = file, place, problem, remedy


@dataclass(frozen=True)
class Entry:
    """One published file. `files`: place under the data folder to language; `store`: where a container is kept."""

    key: str
    url: str
    bytes: int | None
    sha256: str | None
    files: dict[str, str | None]
    questions: int | None = None
    store: str | None = None
    split: str | None = None  # the id prefix of the questions to keep

    @property
    def name(self) -> str:
        return PurePosixPath(self.key).name


_TABLE = json.loads(Path(__file__).with_name("registry.json").read_text("utf-8"))
GROUPS: dict[str, list[str]] = _TABLE["groups"]
REGISTRY: dict[str, Entry] = {key: Entry(key=key, **fields) for key, fields in _TABLE["files"].items()}


def data_folder() -> Path:
    """The root of all data files: XSTA_DATA if set, else the platform's cache folder."""
    return Path(os.environ.get("XSTA_DATA") or pooch.os_cache("xsta")).expanduser()


def address(entry: Entry) -> str:
    """Where a file is read from: the published URL, or its registry name under XSTA_MIRROR (URL or folder)."""
    mirror = os.environ.get("XSTA_MIRROR")
    if not mirror:
        return entry.url
    return f"{mirror.rstrip('/')}/{entry.key}" if "://" in mirror else str(Path(mirror).expanduser() / entry.key)


def select(name_or_group: str, languages: Iterable[str] | None = None) -> dict[str, Entry]:
    """Places under the data folder, each with its registry entry, for a group, a file name or a folder of the layout.

    `languages` keeps the files of these languages only. A translation counts as its other language than English.
    """
    name = name_or_group.strip("/")
    prefixes = tuple(GROUPS.get(name, [name + "/"]))
    chosen = {
        place: entry
        for entry in REGISTRY.values()
        for place in entry.files
        if place.startswith(prefixes) or name in (entry.key, entry.name, place, PurePosixPath(place).name)
    }
    if not chosen:
        raise ValueError(f"unknown data {name_or_group!r}: give one of {', '.join(GROUPS)}, or a file of registry.json")
    if languages is None:
        return chosen
    asked = {languages} if isinstance(languages, str) else set(languages)
    allowed = {language for place, entry in chosen.items() if (language := entry.files[place])}
    if not asked or asked - allowed:
        wrong = ", ".join(sorted(asked - allowed)) or "none"
        raise ValueError(f"languages of {name_or_group!r}: {wrong} asked for, {', '.join(sorted(allowed))} published")
    return {place: entry for place, entry in chosen.items() if entry.files[place] in asked}


def fetch(name_or_group: str, languages: Iterable[str] | None = None, progress: bool = True) -> list[Path]:
    """Paths of the wanted files, in registry order; what is not in the data folder yet is downloaded first.

    `name_or_group`: xquad, mlqa, tydiqa, squad, xtreme, compact, all, or a name or folder (see `select`).
    languages: keep these only; a wrong one is a ValueError. Whatever keeps a file away is a DownloadError.
    """
    root, wanted = data_folder(), select(name_or_group, languages)
    with _explained(None, root):
        present = [place for place in wanted if (root / place).is_file()]
        pins = _read_pins(root) if present else {}
        for place in present:
            _check_present(root / place, wanted[place], pins)
        if len(present) < len(wanted):
            root.mkdir(parents=True, exist_ok=True)
            with FileLock(root / ".download.lock"):  # the processes of one run may ask at once: one downloads
                missing = {place: entry for place, entry in wanted.items() if not (root / place).is_file()}
                _fetch_missing(root, missing, progress)
    return [root / place for place in wanted]


def _fetch_missing(root: Path, missing: dict[str, Entry], progress: bool) -> None:
    """Provide every missing place, one published file after the other."""
    places: dict[str, list[str]] = {}
    for place, entry in missing.items():
        places.setdefault(entry.key, []).append(place)
    loads = [(entry, root / (entry.store or place)) for place, entry in missing.items() if not _stored(root, entry)]
    left = {entry.key: (entry.bytes or 0) - _size(Path(f"{target}.part")) for entry, target in loads}
    require_space(root, sum(left.values()))
    for key, wanted in places.items():
        _provide(root, REGISTRY[key], wanted, progress)


def _provide(root: Path, entry: Entry, places: list[str], progress: bool) -> None:
    """Download one published file if need be, then take from it what belongs at `places`."""
    if entry.store is None:
        _download(root, entry, root / places[0], progress)
        return
    container = _stored(root, entry) or root / entry.store
    if not container.is_file():
        _download(root, entry, container, progress)
    with _explained(entry, container):
        try:
            if entry.split:
                split_by_id(container, root / places[0], entry.split, entry.questions)
            else:
                extract(container, [root / place for place in places])
        except BrokenArchive as error:
            remedy = "remove this file and fetch again; or put the wanted files in place by hand"
            raise DownloadError(entry.name, container, str(error), remedy) from error


def _stored(root: Path, entry: Entry) -> Path | None:
    """A container that is already here: where we keep it, or dropped by hand at the root or under its registry name."""
    spots = (root / spot for spot in (entry.store, entry.name, entry.key) if entry.store)
    return next((spot for spot in spots if spot.is_file()), None)


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _download(root: Path, entry: Entry, target: Path, progress: bool) -> None:
    """One file to its final name, whole and verified, or not at all; pins the hash of a file with none published."""
    pins = _read_pins(root)
    known = entry.sha256 or pins.get(entry.key)
    pooch.get_logger().setLevel("WARNING")  # the bar says what its log would
    transfer = partial(_transfer, entry=entry, part=Path(f"{target}.part"), progress=progress)
    with _explained(entry, target):
        pooch.retrieve(address(entry), known_hash=known, fname=target.name, path=target.parent, downloader=transfer)
        if known is None:
            pins[entry.key] = pooch.file_hash(str(target))
            with replacing(root / PINS) as out:
                out.write((json.dumps(pins, indent=1, sort_keys=True) + "\n").encode())
            print(f"{entry.name}: no checksum is published. Pinned in {root / PINS}: sha256 {pins[entry.key]}")


def _transfer(url: str, output_file: str, _pooch: object, *, entry: Entry, part: Path, progress: bool) -> None:
    """A pooch downloader which goes on after a break: bytes gather in `part`, which is renamed when complete."""
    if entry.sha256 is None:
        part.unlink(missing_ok=True)  # with no checksum, nothing would catch a mix of two versions
    best = fruitless = 0
    while True:
        try:
            _receive(url, entry, part, progress)
            break
        except requests.RequestException as error:
            status = error.response.status_code if error.response is not None else 0
            if status == 416:  # the server's file ends before ours: ours is of no use
                part.unlink(missing_ok=True)
            fruitless = 0 if _size(part) > best else fruitless + 1
            best = max(best, _size(part))
            if fruitless >= FRUITLESS_TRIES or (400 <= status < 500 and status not in (416, 429)):
                raise
            time.sleep(WAIT_S)
    if entry.sha256 is None:
        try:  # no checksum to compare: at least no error page and no cut file may be pinned
            json.loads(part.read_bytes())
        except ValueError as error:
            _refuse(entry, part, f"what came is not JSON: {error}")
    os.replace(part, output_file)


def _receive(url: str, entry: Entry, part: Path, progress: bool) -> None:
    """One try: append to `part` from where it ends, or start over where the server cannot do that."""
    have = _size(part)
    if have and have == entry.bytes:
        return
    with _opened(url, have) as (chunks, start, total):
        if entry.bytes is not None and total not in (None, entry.bytes):
            _refuse(entry, part, f"wrong size: expected {entry.bytes:,} bytes, got {total:,}")
        require_space(part.parent, (total or entry.bytes or 0) - start)
        goal = total or entry.bytes
        bar = tqdm(total=goal, initial=start, unit="B", unit_scale=True, desc=entry.name, disable=not progress)
        size = start
        with bar, open(part, "ab" if start else "wb") as out:
            for chunk in chunks:
                out.write(chunk)
                size += len(chunk)
                bar.update(len(chunk))
                if entry.bytes is not None and size > entry.bytes:
                    _refuse(entry, part, f"wrong size: expected {entry.bytes:,} bytes, got {size:,} or more")
    expected = entry.bytes if total is None else total
    if expected is not None and size < expected:
        raise requests.ConnectionError(f"the connection closed after {size:,} of {expected:,} bytes")


@contextmanager
def _opened(url: str, have: int) -> Iterator[tuple[Iterator[bytes], int, int | None]]:
    """Chunks, the offset they start at (`have`, or 0 where ranges are ignored), and the file's full size if known."""
    if "://" not in url:
        with open(url, "rb") as source:
            source.seek(have)
            yield iter(partial(source.read, CHUNK), b""), have, os.fstat(source.fileno()).st_size
        return
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-"} if have else {})
    with requests.get(url, headers=headers, stream=True, timeout=TIMEOUT_S) as response:
        response.raise_for_status()
        goes_on = response.status_code == 206 and response.headers.get("Content-Range", "").startswith(f"bytes {have}-")
        start = have if goes_on else 0
        left = None if "Content-Encoding" in response.headers else response.headers.get("Content-Length")
        yield response.iter_content(CHUNK), start, None if left is None else start + int(left)


def _refuse(entry: Entry, part: Path, problem: str) -> NoReturn:
    part.unlink(missing_ok=True)
    remedy = f"look at what {address(entry)} serves; try again later, or another XSTA_MIRROR"
    raise DownloadError(entry.name, part, problem, remedy)


def _read_pins(root: Path) -> dict[str, str]:
    """Hashes recorded at the first download of files with no published checksum: registry name to SHA-256."""
    try:
        return dict(json.loads((root / PINS).read_text("utf-8"))) if (root / PINS).is_file() else {}
    except (ValueError, TypeError) as error:
        raise DownloadError(PINS, root / PINS, f"not readable as JSON: {error}", "repair or remove it") from error


def _check_present(path: Path, entry: Entry, pins: dict[str, str]) -> None:
    """A file found is used as it is: a pinned one must match its pin, another size than the published one is said."""
    if entry.key in pins and entry.sha256 is None:
        got = pooch.file_hash(str(path))
        if got != pins[entry.key]:
            problem = f"not the file pinned at its first download: expected sha256 {pins[entry.key]}, got {got}"
            raise DownloadError(entry.name, path, problem, f"remove it and fetch again; or remove its line from {PINS}")
    elif entry.store is None and entry.bytes not in (None, _size(path)):
        warnings.warn(f"{path}: {_size(path):,} bytes, published with {entry.bytes:,}; used as it is", stacklevel=3)


@contextmanager
def _explained(entry: Entry | None, place: Path) -> Iterator[None]:
    """Turn what the network, the disk and the checksum have to say into one error with a remedy."""
    name = entry.name if entry else "data folder"
    by_hand = f"or put the file from {entry.url} in place by hand" if entry else ""
    try:
        yield
    except requests.RequestException as error:
        remedy = f"check network and proxy, then run again (it goes on where it stopped); or set XSTA_MIRROR; {by_hand}"
        raise DownloadError(name, place, f"download failed: {error}", remedy) from error
    except ValueError as error:  # pooch's checksum: names what was expected and what came; the file is gone
        problem = str(error).split(" Deleted download")[0]
        remedy = f"run again; if it comes back, the published file changed or a proxy alters it: see {PINS}; {by_hand}"
        raise DownloadError(name, place, problem, remedy) from error
    except OSError as error:
        remedy = "set XSTA_DATA to a folder that can be written and has space, and see that XSTA_MIRROR holds the file"
        raise DownloadError(name, place, f"{type(error).__name__}: {error}", remedy) from error
