"""The downloader against a real HTTP server on this machine, with real faults: drops, wrong bytes, hostile archives."""

import errno
import hashlib
import io
import json
import os
import random
import socket
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from xsta_lib import cli
from xsta_lib.data import download
from xsta_lib.data.download import REGISTRY, DownloadError, data_folder, fetch, select

XQUAD = "xquad/xquad.de.json"
MLQA = "mlqa/MLQA_V1.zip"
TRAIN = "tydiqa/tydiqa-goldp-v1.1-train.json"
DEV = "tydiqa/tydiqa-goldp-v1.1-dev.tgz"
UNKNOWN = "xtreme/MLQA/translate-test/mlqa.translate.test.ar-en.json"
BIG = random.Random(0).randbytes(300_000)  # several chunks


class Server(ThreadingHTTPServer):
    """Serves `files` (path to bytes); each item of `drops` cuts one answer after so many bytes of it."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.drops: list[int] = []
        self.ranges = True
        self.log: list[tuple[str, str | None]] = []  # path and Range header of each request
        self.url = f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    """GET with single open ranges, as file hosts answer them."""

    server: Server

    def do_GET(self) -> None:
        name, asked = self.path.lstrip("/"), self.headers.get("Range")
        self.server.log.append((name, asked))
        whole = self.server.files.get(name)
        if whole is None:
            return self.send_error(404)
        start = int(asked.removeprefix("bytes=").rstrip("-")) if asked and self.server.ranges else 0
        if start and start >= len(whole):
            return self.send_error(416)
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(whole) - 1}/{len(whole)}")
        self.send_header("Content-Length", str(len(whole) - start))
        self.end_headers()
        cut = self.server.drops.pop(0) if self.server.drops else len(whole)
        self.wfile.write(whole[start : start + cut])

    def log_message(self, *_: object) -> None:
        """Keep the test output clean."""


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield running
        running.shutdown()
        thread.join()


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XSTA_DATA", str(tmp_path / "data"))
    monkeypatch.delenv("XSTA_MIRROR", raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(download, "WAIT_S", 0.0)
    return tmp_path / "data"


@pytest.fixture
def publish(server: Server, monkeypatch: pytest.MonkeyPatch):
    """Put tiny bytes on the server and their size, hash and address in the registry."""

    def put(key: str, content: bytes, known: bool = True, **fields: object) -> None:
        server.files[key] = content
        facts = {"url": f"{server.url}/{key}"}
        if known:
            facts |= {"bytes": len(content), "sha256": sha256(content)}
        entry = replace(REGISTRY[key], **(facts | fields))
        monkeypatch.setitem(REGISTRY, key, entry)

    return put


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def leftovers(root: Path) -> list[str]:
    """Everything under the folder but the lock, as relative paths."""
    return sorted(str(p.relative_to(root)) for p in root.rglob("*") if p.is_file() and p.name != ".download.lock")


def make_zip(members: dict[str, bytes], links: tuple[str, ...] = ()) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            info = zipfile.ZipInfo(name)
            info.compress_type = zipfile.ZIP_DEFLATED
            if name in links:
                info.create_system, info.external_attr = 3, 0o120777 << 16  # a Unix symbolic link
            archive.writestr(info, content)
    return buffer.getvalue()


def make_tgz(members: dict[str, bytes], links: tuple[str, ...] = ()) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            if name in links:
                info.type, info.linkname = tarfile.SYMTYPE, "../../secret"
            else:
                info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


# The registry and the choice of files


def test_registry_is_complete_and_consistent() -> None:
    assert len(REGISTRY) == 56
    unknown = [key for key, entry in REGISTRY.items() if entry.sha256 is None]
    assert len(unknown) == 13 and all("/translate-test/" in key for key in unknown)
    assert all((entry.bytes is None) == (entry.sha256 is None) for entry in REGISTRY.values())
    assert all(len(entry.sha256) == 64 for entry in REGISTRY.values() if entry.sha256)
    assert all(entry.url.startswith("https://") and entry.url.endswith(entry.name) for entry in REGISTRY.values())
    places = [place for entry in REGISTRY.values() for place in entry.files]
    assert len(places) == len(set(places)) == 77
    translated = [e.bytes for key, e in REGISTRY.items() if key.startswith("xtreme/SQuAD/translate-train/")]
    assert sum(translated) == 2_346_865_083


@pytest.mark.parametrize(
    ("group", "count"),
    [("xquad", 11), ("mlqa", 14), ("tydiqa", 10), ("squad", 1), ("xtreme", 41), ("parallel", 28), ("all", 77)],
)
def test_groups(group: str, count: int) -> None:
    chosen = select(group)
    assert len(chosen) == count
    if group == "parallel":  # three archives, and only the development part of MLQA
        assert {entry.key for entry in chosen.values() if entry.store} == {MLQA, TRAIN, DEV}
        assert not any(place.startswith("MLQA_V1/test") for place in chosen)


def test_select_by_name_folder_and_language() -> None:
    assert list(select("xquad.de.json")) == list(select(XQUAD)) == list(select("xquad", "de")) == [XQUAD]
    assert len(select("MLQA_V1/test", ["en", "zh"])) == 2
    assert len(select("xtreme/SQuAD/translate-train")) == 10
    assert list(select("tydiqa", ["en"])) == [
        "tydiqa-goldp-v1.1/train/tydiqa-goldp-train-english.json",
        "tydiqa-goldp-v1.1/dev/tydiqa-goldp-dev-english.json",
    ]


@pytest.mark.parametrize(("name", "languages"), [("xqad", None), ("mlqa", ["en", "tr"]), ("xquad", []), ("", None)])
def test_wrong_choice_is_refused_with_the_allowed_values(name: str, languages: list[str] | None) -> None:
    with pytest.raises(ValueError, match="parallel|published"):
        fetch(name, languages)


def test_data_folder(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert data_folder() == root
    monkeypatch.delenv("XSTA_DATA")
    assert data_folder().name == "xsta"


# One file


def test_download_then_use_from_the_folder(root: Path, publish, server: Server, capsys) -> None:
    publish(XQUAD, BIG)
    assert fetch("xquad", ["de"]) == [root / XQUAD]
    shown = "xquad.de.json: 100%" in capsys.readouterr().err
    assert (root / XQUAD).read_bytes() == BIG and shown == (not os.environ.get("TQDM_DISABLE"))
    fetch("xquad", ["de"])
    assert server.log == [(XQUAD, None)] and leftovers(root) == [XQUAD]


def test_offline_file_is_used_as_it_is(root: Path, capsys) -> None:
    (root / "xquad").mkdir(parents=True)
    (root / XQUAD).write_text("{}")
    with pytest.warns(UserWarning, match="published with 669,810; used as it is"):
        assert fetch(XQUAD) == [root / XQUAD]
    assert (root / XQUAD).read_text() == "{}"
    with pytest.warns(UserWarning, match="used as it is"):
        assert cli.main(["download", XQUAD]) == 1
    out, error = capsys.readouterr()
    assert not out and "no list under the key 'data'" in error and "xsta: 1 of 1 files cannot be read" in error


@pytest.mark.parametrize("ranges", [True, False], ids=["goes on", "starts over"])
def test_drops_are_mended_in_the_same_call(root: Path, publish, server: Server, ranges: bool) -> None:
    publish(XQUAD, BIG)
    server.drops, server.ranges = [100_000, 90_000], ranges
    fetch(XQUAD)
    assert (root / XQUAD).read_bytes() == BIG
    starts = [int(asked[6:-1]) for _, asked in server.log if asked]
    assert len(starts) == 2 and starts[0] > 0 and (not ranges or starts[0] < starts[1] <= 190_000)


def test_a_broken_download_goes_on_in_the_next_call(root: Path, publish, server: Server) -> None:
    publish(XQUAD, BIG)
    server.drops = [150_000, 0, 0]
    with pytest.raises(DownloadError, match="goes on where it stopped"):
        fetch(XQUAD)
    part = root / f"{XQUAD}.part"
    have = part.stat().st_size
    assert 0 < have <= 150_000 and part.read_bytes() == BIG[:have] and leftovers(root) == [f"{XQUAD}.part"]
    server.log.clear()
    fetch(XQUAD)
    assert server.log == [(XQUAD, f"bytes={have}-")]
    assert (root / XQUAD).read_bytes() == BIG and leftovers(root) == [XQUAD]


@pytest.mark.parametrize(
    ("part", "served", "message"),
    [
        (b"", BIG[:-1] + b"?", f"(?s)expected sha256 {sha256(BIG)}, got {sha256(BIG[:-1] + b'?')}.*run again"),
        (b"", BIG[:1000], "expected 300,000 bytes, got 1,000"),
        (b"", BIG + b"more", "expected 300,000 bytes, got 300,004"),
        (b"", b"", "expected 300,000 bytes, got 0"),
        (BIG[:2000], BIG[:1000], "got 1,000"),  # a partial file longer than the server's
        (b"other" * 100, BIG, "expected sha256 .*, got"),  # a partial file of another version
        (b"", None, "404"),
    ],
)
def test_what_is_not_the_published_file_goes(
    root: Path, publish, server: Server, part: bytes, served: bytes | None, message: str
) -> None:
    publish(XQUAD, BIG)
    server.files[XQUAD] = served
    (root / "xquad").mkdir(parents=True)
    if part:
        (root / f"{XQUAD}.part").write_bytes(part)
    with pytest.raises(DownloadError, match=message) as caught:
        fetch(XQUAD)
    assert caught.value.file == "xquad.de.json" and root / "xquad" == caught.value.place.parent
    assert leftovers(root) == [] and (len(server.log) == 1 or part)
    server.files[XQUAD] = BIG
    assert fetch(XQUAD)


def test_no_network(root: Path, publish) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        publish(XQUAD, BIG, url=f"http://127.0.0.1:{unused.getsockname()[1]}/gone")
        with pytest.raises(DownloadError, match="check network and proxy"):
            fetch(XQUAD)


# Disk


def test_folder_that_cannot_be_made(root: Path, publish) -> None:
    root.write_text("a file where the folder should be")
    publish(XQUAD, BIG)
    with pytest.raises(DownloadError, match="set XSTA_DATA"):
        fetch(XQUAD)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="the superuser may write anywhere")
def test_folder_that_cannot_be_written(root: Path, publish) -> None:
    publish(XQUAD, BIG)
    root.mkdir()
    root.chmod(0o500)
    with pytest.raises(DownloadError, match="PermissionError"):
        fetch(XQUAD)
    root.chmod(0o700)


def test_too_large_for_the_disk_is_said_before_a_request(root: Path, publish, server: Server) -> None:
    publish(XQUAD, BIG, bytes=10**18)
    with pytest.raises(DownloadError, match="not enough space: 1,000,000,000,000,000,000 bytes needed"):
        fetch(XQUAD)
    assert server.log == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs the device which is always full")
def test_disk_full_while_writing(root: Path, publish) -> None:
    publish(XQUAD, BIG)
    (root / "xquad").mkdir(parents=True)
    (root / f"{XQUAD}.part").symlink_to("/dev/full")
    with pytest.raises(DownloadError) as caught:
        fetch(XQUAD)
    assert caught.value.__cause__.errno == errno.ENOSPC and not (root / XQUAD).exists()


# Files with no published checksum


def test_unknown_checksum_is_pinned_and_verified(root: Path, publish, server: Server, capsys) -> None:
    content = b'{"data": []}'
    publish(UNKNOWN, content, known=False)
    fetch(UNKNOWN)
    pin = sha256(content)
    assert f"sha256 {pin}" in capsys.readouterr().out
    assert json.loads((root / "pinned.json").read_text()) == {UNKNOWN: pin}
    assert fetch(UNKNOWN) == [root / UNKNOWN]

    (root / UNKNOWN).write_bytes(b'{"data": [0]}')  # altered on disk
    with pytest.raises(DownloadError, match=f"expected sha256 {pin}"):
        fetch(UNKNOWN)
    (root / UNKNOWN).unlink()
    server.files[UNKNOWN] = b'{"data": [1]}'  # altered by the host
    with pytest.raises(DownloadError, match=f"expected sha256 {pin}, got"):
        fetch(UNKNOWN)
    assert leftovers(root) == ["pinned.json"]


def test_error_page_is_never_pinned(root: Path, publish) -> None:
    publish(UNKNOWN, b"<html>please log in</html>", known=False)
    with pytest.raises(DownloadError, match="not JSON"):
        fetch(UNKNOWN)
    assert leftovers(root) == []


def test_unreadable_pins_are_reported(root: Path, publish) -> None:
    publish(UNKNOWN, b"{}", known=False)
    root.mkdir()
    (root / "pinned.json").write_text("{")
    with pytest.raises(DownloadError, match="repair or remove"):
        fetch(UNKNOWN)


# Archives


MLQA_MEMBERS = {place: place.encode() for place in REGISTRY[MLQA].files}
DEV_MEMBERS = {Path(place).name: b"{}" for place in REGISTRY[DEV].files}
LARGE = {name: random.Random(name).randbytes(5000) for name in MLQA_MEMBERS}  # that does not compress
FLIPPED = bytearray(make_zip(LARGE))
FLIPPED[2000] ^= 255  # inside the first member: its checksum no longer fits
ABSENT, LINKED = "MLQA_V1/dev/dev-context-vi-question-vi.json", next(iter(MLQA_MEMBERS))
KOREAN = "tydiqa-goldp-dev-korean.json"


def without(members: dict[str, bytes], name: str) -> dict[str, bytes]:
    return {key: content for key, content in members.items() if key != name}


def test_zip_gives_only_the_wanted_members(root: Path, publish, server: Server) -> None:
    extra = {"MLQA_V1/README": b"x", "MLQA_V1/dev/dev-context-en-question-de.json": b"x"}
    extra |= {"__MACOSX/MLQA_V1/dev/._dev-context-en-question-en.json": b"x"}
    publish(MLQA, make_zip(MLQA_MEMBERS | extra))
    paths = fetch("MLQA_V1/dev")
    assert len(paths) == 7 and all(path.read_text() == str(path.relative_to(root)) for path in paths)
    assert len(leftovers(root)) == 8  # and the archive, so that the test part needs no second download
    assert len(fetch("mlqa")) == 14 and len(server.log) == 1


@pytest.mark.parametrize("folder", ["", "tydiqa-goldp-v1.1-dev/", "./a/b/"])
def test_tgz_members_are_found_wherever_they_lie(root: Path, publish, folder: str) -> None:
    names = [Path(place).name for place in REGISTRY[DEV].files]
    junk = {f"{folder}._{names[0]}": b"x", f"{folder}notes.txt": b"x"}
    publish(DEV, make_tgz({folder + name: name.encode() for name in names} | junk))
    paths = fetch("tydiqa-goldp-v1.1/dev")
    assert [path.read_text() for path in paths] == [path.name for path in paths] == names
    assert len(leftovers(root)) == 10


OUTSIDE, SPECIAL, DAMAGED = "outside the archive's folder", "link or another special file", "damaged archive"


@pytest.mark.parametrize(
    ("key", "content", "message"),
    [
        (DEV, make_tgz(without(DEV_MEMBERS, KOREAN) | {f"../{KOREAN}": b"{}"}), OUTSIDE),
        (DEV, make_tgz(without(DEV_MEMBERS, KOREAN) | {f"/{KOREAN}": b"{}"}), OUTSIDE),
        (DEV, make_tgz(without(DEV_MEMBERS, KOREAN) | {"a/../../b": b"{}"}), OUTSIDE),
        (MLQA, make_zip(MLQA_MEMBERS | {"..\\evil.json": b"{}"}), OUTSIDE),
        (DEV, make_tgz(DEV_MEMBERS, links=(KOREAN,)), SPECIAL),
        (MLQA, make_zip(MLQA_MEMBERS, links=(LINKED,)), SPECIAL),
        (MLQA, make_zip(without(MLQA_MEMBERS, ABSENT)), f"no member named {Path(ABSENT).name}"),
        (MLQA, bytes(FLIPPED), DAMAGED),
        (DEV, make_tgz(LARGE)[:30_000], DAMAGED),
    ],
    ids=["parent", "root", "climbing", "backslash", "tgz link", "zip link", "absent", "checksum", "cut"],
)
def test_a_bad_archive_is_refused_and_leaves_no_member(
    root: Path, publish, key: str, content: bytes, message: str
) -> None:
    publish(key, content)
    with pytest.raises(DownloadError, match=message):
        fetch({DEV: "tydiqa-goldp-v1.1/dev", MLQA: "mlqa"}[key])
    archive = {DEV: "tydiqa-goldp-v1.1/tydiqa-goldp-v1.1-dev.tgz", MLQA: "MLQA_V1/MLQA_V1.zip"}[key]
    assert leftovers(root) == [archive] and leftovers(root.parent) == [f"data/{archive}"]
    if message.startswith("no member"):
        assert len(fetch("MLQA_V1/test")) == 7


def test_archive_dropped_by_hand_is_used(root: Path, server: Server, publish) -> None:
    publish(MLQA, b"never served")
    root.mkdir()
    (root / "MLQA_V1.zip").write_bytes(make_zip(MLQA_MEMBERS))
    assert len(fetch("mlqa")) == 14 and server.log == []


# The English part of TyDiQA's training file


def tydiqa(ids: list[str | int]) -> bytes:
    def article(number: int, name: str | int) -> dict:
        answers = [{"text": "ä", "answer_start": 1}]
        question = {"id": name, "question": "?", "answers": answers}
        return {"title": str(number), "paragraphs": [{"context": "«ä»", "qas": [question]}]}

    return json.dumps({"version": "1.1", "data": [article(*item) for item in enumerate(ids)]}).encode()


def test_english_questions_are_split_out_with_full_ids(root: Path, publish) -> None:
    publish(TRAIN, tydiqa(["english--12-3", "finnish-5-0", "english-7-12", "arabic--1-1"]), questions=2)
    (path,) = fetch("tydiqa-goldp-v1.1/train")
    articles = json.loads(path.read_text("utf-8"))["data"]
    assert [a["title"] for a in articles] == ["0", "2"]
    paragraphs = [p for a in articles for p in a["paragraphs"]]
    assert [q["id"] for p in paragraphs for q in p["qas"]] == ["english--12-3", "english-7-12"]
    assert paragraphs[0]["context"] == "«ä»" and path.name == "tydiqa-goldp-train-english.json"


@pytest.mark.parametrize("content", [tydiqa(["english-1-1"]), tydiqa(["korean-1-1"]), tydiqa([5]), b"[1]", b"{"])
def test_a_training_file_with_other_content_is_refused(root: Path, publish, content: bytes) -> None:
    publish(TRAIN, content, questions=2)
    with pytest.raises(DownloadError, match="expected 2 questions|not a SQuAD-format file"):
        fetch("tydiqa", ["en"])
    assert leftovers(root) == ["tydiqa-goldp-v1.1/train/tydiqa-goldp-v1.1-train.json"]


# Mirrors


def test_mirror_url(root: Path, publish, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    publish(XQUAD, BIG, url="http://127.0.0.1:9/never")
    server.files = {f"some/base/{XQUAD}": BIG}
    monkeypatch.setenv("XSTA_MIRROR", f"{server.url}/some/base/")
    fetch(XQUAD)
    assert (root / XQUAD).read_bytes() == BIG and server.log == [(f"some/base/{XQUAD}", None)]
    (root / XQUAD).unlink()
    monkeypatch.setenv("XSTA_MIRROR", f"{server.url.replace('://', '://me:secret@')}/some/base/")
    for served in (BIG[:-1], None):  # of another size, and not there
        server.files = {f"some/base/{XQUAD}": served}
        with pytest.raises(DownloadError, match="wrong size|404") as caught:
            fetch(XQUAD)
        assert "secret" not in str(caught.value)


def test_mirror_folder(root: Path, publish, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    publish(XQUAD, BIG)
    publish(MLQA, make_zip(MLQA_MEMBERS))
    monkeypatch.setenv("XSTA_MIRROR", str(tmp_path / "mirror"))
    with pytest.raises(DownloadError, match="XSTA_MIRROR holds the file"):
        fetch(XQUAD)
    for key, content in ((XQUAD, BIG), (MLQA, make_zip(MLQA_MEMBERS))):
        (tmp_path / "mirror" / key).parent.mkdir(parents=True)
        (tmp_path / "mirror" / key).write_bytes(content)
    assert len(fetch(XQUAD) + fetch("mlqa")) == 15
    (tmp_path / "mirror" / XQUAD).write_bytes(BIG[:100])
    (root / XQUAD).unlink()
    with pytest.raises(DownloadError, match="expected sha256"):
        fetch(XQUAD)


def test_two_callers_download_once(root: Path, publish, server: Server) -> None:
    publish(XQUAD, BIG)
    callers = [threading.Thread(target=fetch, args=(XQUAD,)) for _ in range(4)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert (root / XQUAD).read_bytes() == BIG and len(server.log) == 1
