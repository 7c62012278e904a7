"""Containers to data files: members of archives and parts of JSON files, taken out safely and whole.

Every file appears under its final name complete, or not at all.
"""

import errno
import gzip
import json
import os
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import IO, NamedTuple


class BrokenArchive(Exception):
    """A container that is damaged, unsafe, or does not hold what it should."""


class Member(NamedTuple):
    """One entry of an archive; `plain` is false for links, devices and the like."""

    path: str
    size: int
    plain: bool
    is_folder: bool
    open: Callable[[], IO[bytes] | None]


@contextmanager
def replacing(target: Path) -> Iterator[IO[bytes]]:
    """A file open for writing which takes the place of `target` at the end, and vanishes if anything goes wrong."""
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(target.name + ".part")
    try:
        with open(part, "wb") as out:
            yield out
        os.replace(part, target)
    finally:
        part.unlink(missing_ok=True)


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
        with _opened(archive) as members:
            for member in members:
                _refuse_unsafe(member)
            found = {PurePosixPath(member.path).name: member for member in members if not member.is_folder}
            absent = [target.name for target in targets if target.name not in found]
            if absent:
                raise BrokenArchive(f"no member named {', '.join(absent)}")
            require_space(archive.parent, sum(found[target.name].size for target in targets))
            for target in targets:
                with found[target.name].open() as source, replacing(target) as out:
                    shutil.copyfileobj(source, out)
    except (zipfile.BadZipFile, tarfile.TarError, gzip.BadGzipFile, zlib.error, EOFError) as error:
        raise BrokenArchive(f"damaged archive: {error}") from error


def split_by_id(whole: Path, target: Path, prefix: str, questions: int | None) -> None:
    """Write the questions of a SQuAD-format file whose id starts with `prefix`; ids, order and titles are kept.

    questions: how many there must be, if known.
    """
    try:
        with open(whole, encoding="utf-8") as source:
            articles = [_with_ids(article, prefix) for article in json.load(source)["data"]]
    except (ValueError, KeyError, TypeError) as error:
        raise BrokenArchive(f"not a SQuAD-format file: {type(error).__name__}: {error}") from error
    kept = [article for article in articles if article["paragraphs"]]
    count = sum(len(paragraph["qas"]) for article in kept for paragraph in article["paragraphs"])
    if count == 0 or questions not in (None, count):
        raise BrokenArchive(f"expected {questions or 'some'} questions with ids starting {prefix!r}, found {count}")
    with replacing(target) as out:
        out.write(json.dumps({"data": kept}, ensure_ascii=False).encode())


def _with_ids(article: dict, prefix: str) -> dict:
    paragraphs = [
        {**paragraph, "qas": [question for question in paragraph["qas"] if question["id"].startswith(prefix)]}
        for paragraph in article["paragraphs"]
    ]
    return {**article, "paragraphs": [paragraph for paragraph in paragraphs if paragraph["qas"]]}


@contextmanager
def _opened(archive: Path) -> Iterator[list[Member]]:
    """The members of a zip file or of a tar file with any compression."""
    if archive.suffix == ".zip":
        with zipfile.ZipFile(archive) as opened:
            yield [_zip_member(opened, info) for info in opened.infolist()]
    else:
        with tarfile.open(archive) as opened:
            yield [_tar_member(opened, info) for info in opened]


def _zip_member(opened: zipfile.ZipFile, info: zipfile.ZipInfo) -> Member:
    kind = stat.S_IFMT(info.external_attr >> 16)  # 0 where the archive was made without Unix modes
    plain = kind in (0, stat.S_IFREG, stat.S_IFDIR)
    return Member(info.filename, info.file_size, plain, info.is_dir(), partial(opened.open, info))


def _tar_member(opened: tarfile.TarFile, info: tarfile.TarInfo) -> Member:
    return Member(info.name, info.size, info.isfile() or info.isdir(), info.isdir(), partial(opened.extractfile, info))


def _refuse_unsafe(member: Member) -> None:
    path = member.path.replace("\\", "/")
    if path.startswith("/") or PureWindowsPath(path).drive or ".." in PurePosixPath(path).parts:
        raise BrokenArchive(f"refused: member {member.path!r} lies outside the archive's folder")
    if not member.plain:
        raise BrokenArchive(f"refused: member {member.path!r} is a link or another special file")
