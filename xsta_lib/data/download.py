"""Published files: found offline or fetched, resumed, verified, unpacked.

`fetch("parallel")` returns paths under `data_folder()`: the environment variable XSTA_DATA, or the platform's cache.
A wanted file already there is used as it is, so a ready folder works without a network (data/README.md shows its
layout). Files come from their publishers, or from XSTA_MIRROR, a base URL or a local folder which holds them under
their registry names, such as xquad/xquad.de.json or mlqa/MLQA_V1.zip.

`registry.json` lists every file: address, bytes, SHA-256, question ids, and what it becomes in the folder (place and
language). Archives, and the full TyDiQA training file, stay where they were stored, so a later call for other members
does not load them again.
"""

import errno
import gzip
import json
import os
import shutil
import stat
import tarfile
import time
import warnings
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import NoReturn

import pooch
import requests
from filelock import FileLock
from tqdm.auto import tqdm

from .files import read_json, replacing, without_secrets, write_text_atomically

CHUNK = 1 << 16  # bytes
TIMEOUT_S = (10, 60)  # seconds to connect, seconds without a byte
FRUITLESS_TRIES = 2  # tries in a row that bring nothing new before giving up
WAIT_S = 2.0  # seconds between tries
PINS = "pinned.json"


class DownloadError(RuntimeError):
    """A file could not be had: which file, where it belongs, what went wrong, and what to do."""

    def __init__(self, file: str, place: str | Path, problem: str, remedy: str) -> None:
        super().__init__(f"{file}: {problem}\n  place:  {place}\n  remedy: {remedy}")
        self.file, self.place = file, place


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


def fetch(name_or_group: str, languages: Iterable[str] | None = None) -> list[Path]:
    """Paths of the wanted files, in registry order; what is not in the data folder yet is downloaded first.

    A bar shows what comes, unless TQDM_DISABLE is set.
    `name_or_group`: xquad, mlqa, tydiqa, squad, xtreme, parallel, all, or a name or folder (see `select`).
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
                _fetch_missing(root, missing)
    return [root / place for place in wanted]


def _fetch_missing(root: Path, missing: dict[str, Entry]) -> None:
    """Provide every missing place: load the files that are not here, take from containers what belongs there."""
    places: dict[str, list[str]] = {}
    for place, entry in missing.items():
        places.setdefault(entry.key, []).append(place)
    files = [(REGISTRY[key], _spot(root, REGISTRY[key]), wanted) for key, wanted in places.items()]
    absent = [(entry, spot) for entry, spot, _ in files if not spot.is_file()]
    require_space(root, sum((entry.bytes or 0) - _size(_part(spot)) for entry, spot in absent))
    for entry, spot, wanted in files:
        with _explained(entry, spot):
            if not spot.is_file():
                _download(root, entry, spot)
            if entry.split:
                split_by_id(spot, root / wanted[0], entry.split, entry.questions)
            elif entry.store:
                extract(spot, [root / place for place in wanted])


def _spot(root: Path, entry: Entry) -> Path:
    """Where a published file lies or is to lie; a container may be dropped by hand at the root or by registry name."""
    spots = [entry.store, entry.name, entry.key] if entry.store else list(entry.files)
    return next((root / spot for spot in spots if (root / spot).is_file()), root / spots[0])


def _part(target: Path) -> Path:
    """Where the bytes of a download gather until all are here; it stays after a break, to go on from."""
    return target.with_name(target.name + ".part")


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _download(root: Path, entry: Entry, target: Path) -> None:
    """One file to its final name, whole and verified, or not at all; pins the hash of a file with none published."""
    pins, part = _read_pins(root), _part(target)
    known = entry.sha256 or pins.get(entry.key)
    target.parent.mkdir(parents=True, exist_ok=True)
    if entry.sha256 is None:
        part.unlink(missing_ok=True)  # with no checksum, nothing would catch a mix of two versions
    _transfer(entry, part)
    found = pooch.file_hash(str(part))
    if known not in (None, found):
        _refuse(entry, part, f"expected sha256 {known}, got {found}")
    if known is None:
        try:  # at least no error page and no cut file may be pinned
            read_json(part)
        except ValueError as error:
            _refuse(entry, part, f"what came is not JSON: {error}")
    os.replace(part, target)
    if known is None:
        write_text_atomically(root / PINS, json.dumps(pins | {entry.key: found}, indent=1, sort_keys=True) + "\n")
        print(f"{entry.name}: no checksum is published. Pinned in {root / PINS}: sha256 {found}")


def _transfer(entry: Entry, part: Path) -> None:
    """All bytes of a file into ``part``, going on from where it ends, after a break too."""
    url, best, fruitless = address(entry), 0, 0
    if "://" not in url:
        shutil.copyfile(url, part)
        return
    while True:
        try:
            return _receive(url, entry, part)
        except requests.RequestException as error:
            status = error.response.status_code if error.response is not None else 0
            if status == 416:  # the server's file ends before ours: ours is of no use
                part.unlink(missing_ok=True)
            fruitless = 0 if _size(part) > best else fruitless + 1
            best = max(best, _size(part))
            if fruitless >= FRUITLESS_TRIES or (400 <= status < 500 and status not in (416, 429)):
                raise
            time.sleep(WAIT_S)


def _receive(url: str, entry: Entry, part: Path) -> None:
    """One try: append to `part` from where it ends, or start over where the server cannot do that."""
    have = _size(part)
    if have and have == entry.bytes:
        return
    asked = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-"} if have else {})
    with requests.get(url, headers=asked, stream=True, timeout=TIMEOUT_S) as response:
        response.raise_for_status()
        got = response.headers
        goes_on = response.status_code == 206 and got.get("Content-Range", "").startswith(f"bytes {have}-")
        start = have if goes_on else 0
        known = "Content-Length" in got and "Content-Encoding" not in got
        total = start + int(got["Content-Length"]) if known else entry.bytes
        if entry.bytes not in (None, total):
            _refuse(entry, part, f"wrong size: expected {entry.bytes:,} bytes, got {total:,}")
        require_space(part.parent, (total or 0) - start)
        bar = tqdm(total=total, initial=start, unit="B", unit_scale=True, desc=entry.name)
        with bar, open(part, "ab" if start else "wb") as out:
            for chunk in response.iter_content(CHUNK):
                bar.update(out.write(chunk))
                if total is not None and out.tell() > total:
                    _refuse(entry, part, f"wrong size: expected {total:,} bytes, got {out.tell():,} or more")
    if total is not None and _size(part) < total:
        raise requests.ConnectionError(f"the connection closed after {_size(part):,} of {total:,} bytes")


def _refuse(entry: Entry, part: Path, problem: str) -> NoReturn:
    part.unlink(missing_ok=True)
    remedy = "run again; if it comes back, the published file changed or a proxy alters it: look at what "
    remedy += f"{without_secrets(address(entry))} serves and at {PINS}, or set another XSTA_MIRROR"
    raise DownloadError(entry.name, part, problem, remedy)


def _read_pins(root: Path) -> dict[str, str]:
    """Hashes recorded at the first download of files with no published checksum: registry name to SHA-256."""
    try:
        return dict(read_json(root / PINS)) if (root / PINS).is_file() else {}
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
    """Turn what the network, the disk and an archive have to say into one error with a remedy."""
    name = entry.name if entry else "data folder"
    by_hand = f"or put the file from {entry.url} in place by hand" if entry else ""
    try:
        yield
    except requests.RequestException as error:
        remedy = f"check network and proxy, then run again (it goes on where it stopped); or set XSTA_MIRROR; {by_hand}"
        raise DownloadError(name, place, f"download failed: {without_secrets(str(error))}", remedy) from error
    except BrokenArchive as error:
        remedy = "remove this file and fetch again; or put the wanted files in place by hand"
        raise DownloadError(name, place, str(error), remedy) from error
    except OSError as error:
        remedy = "set XSTA_DATA to a folder that can be written and has space, and see that XSTA_MIRROR holds the file"
        raise DownloadError(name, place, f"{type(error).__name__}: {error}", remedy) from error


class BrokenArchive(Exception):
    """A container that is damaged, unsafe, or does not hold what it should."""


def require_space(folder: Path, needed: int) -> None:
    """Stop, as the disk itself would, before writing `needed` bytes that it cannot hold."""
    standing = next(spot for spot in (folder, *folder.absolute().parents) if spot.exists())
    free = shutil.disk_usage(standing).free
    if needed > free:
        raise OSError(errno.ENOSPC, f"not enough space: {needed:,} bytes needed, {free:,} free", str(folder))


def extract(archive: Path, targets: list[Path]) -> None:
    """Write the members named like `targets`, wherever they lie in a zip or tar file; nothing else is unpacked.

    An archive with a link, a device, or a path that leaves its folder is refused before anything is written.
    """
    try:
        with zipfile.ZipFile(archive) if archive.suffix == ".zip" else tarfile.open(archive) as opened:
            zipped = isinstance(opened, zipfile.ZipFile)
            members = [_as_tar_member(info) for info in opened.infolist()] if zipped else opened.getmembers()
            for member in members:
                path = PureWindowsPath(member.name)  # takes / and backslashes alike
                if path.anchor or ".." in path.parts:
                    raise BrokenArchive(f"refused: member {member.name!r} lies outside the archive's folder")
                if not (member.isfile() or member.isdir()):
                    raise BrokenArchive(f"refused: member {member.name!r} is a link or another special file")
            found = {PurePosixPath(member.name).name: member for member in members if member.isfile()}
            absent = [target.name for target in targets if target.name not in found]
            if absent:
                raise BrokenArchive(f"no member named {', '.join(absent)}")
            require_space(archive.parent, sum(found[target.name].size for target in targets))
            for target in targets:
                member = found[target.name]
                source = opened.open(member.name) if zipped else opened.extractfile(member)
                with source, replacing(target) as part, open(part, "wb") as out:
                    shutil.copyfileobj(source, out)
    except (zipfile.BadZipFile, tarfile.TarError, gzip.BadGzipFile, zlib.error, EOFError) as error:
        raise BrokenArchive(f"damaged archive: {error}") from error


def _as_tar_member(info: zipfile.ZipInfo) -> tarfile.TarInfo:
    """A zip file's member, described as tar files do."""
    member = tarfile.TarInfo(info.filename)
    member.size = info.file_size
    if info.is_dir():
        member.type = tarfile.DIRTYPE
    elif stat.S_IFMT(info.external_attr >> 16) not in (0, stat.S_IFREG):  # 0 where it was made without Unix modes
        member.type = tarfile.SYMTYPE
    return member


def split_by_id(whole: Path, target: Path, prefix: str, questions: int | None) -> None:
    """Write the questions of a SQuAD-format file whose id starts with `prefix`; ids, order and titles are kept.

    questions: how many there must be, if known.
    """
    try:
        articles = read_json(whole)["data"]
        for article in articles:
            for paragraph in article["paragraphs"]:
                paragraph["qas"] = [question for question in paragraph["qas"] if str(question["id"]).startswith(prefix)]
            article["paragraphs"] = [paragraph for paragraph in article["paragraphs"] if paragraph["qas"]]
    except (ValueError, KeyError, TypeError) as error:
        raise BrokenArchive(f"not a SQuAD-format file: {type(error).__name__}: {error}") from error
    kept = [article for article in articles if article["paragraphs"]]
    count = sum(len(paragraph["qas"]) for article in kept for paragraph in article["paragraphs"])
    if count == 0 or questions not in (None, count):
        raise BrokenArchive(f"expected {questions or 'some'} questions with ids starting {prefix!r}, found {count}")
    write_text_atomically(target, json.dumps({"data": kept}, ensure_ascii=False))
