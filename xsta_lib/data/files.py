"""Where commands read and write, and how: one reader for text and one for JSON; files appear whole or not at all."""

import hashlib
import json
import os
import re
import shutil
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from secrets import token_hex
from tempfile import TemporaryFile

import pooch

_UTF_16 = "byte 0 is not UTF-8 but UTF-16; save the file as UTF-8"
_FOREIGN = {  # how a file begins that is no text in UTF-8: what it is, and what to do
    b"\xff\xfe": _UTF_16,
    b"\xfe\xff": _UTF_16,
    b"\x1f\x8b": "the file is compressed with gzip; unpack it first",
    b"BZh": "the file is compressed with bzip2; unpack it first",
    b"\xfd7zXZ": "the file is compressed with xz; unpack it first",
    b"\x28\xb5\x2f\xfd": "the file is compressed with zstd; unpack it first",
    b"PK\x03\x04": "the file is a zip archive, or an office document; unpack it, or save its text as UTF-8",
    b"%PDF-": "the file is a PDF; save its text as UTF-8",
    b"{\\rtf": "the file is in Rich Text Format; save it as plain text in UTF-8",
    b"\x89PNG": "the file is a picture (PNG); give a text file in UTF-8",
    b"\xff\xd8\xff": "the file is a picture (JPEG); give a text file in UTF-8",
    b"version https://git-lfs": "this is a Git LFS pointer, not the file; fetch it with 'git lfs pull'",
}
# Characters that show nothing though they count as letters or marks: Unicode's Default_Ignorable_Code_Point, without
# what its categories say already. Variation selectors are most of them.
_FILLERS = "\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180d\u180f\u3164\ufe00-\ufe0f\uffa0\U000e0100-\U000e01ef"
_UNSEEN = re.compile(f"[{_FILLERS}]")
# What comes before a secret in a command line (--api-key, HF_TOKEN=, an Authorization header, curl's -u), and an
# address's login. Names must end so: --tokenizer and --max-tokens are no secrets.
_NAMES = r"[\w-]*(?:key|token|password|passwd|secret)"
_SCHEME = r"\bauthorization:\s*(?:\w+\s+)?|\bbearer\s+"
_BEFORE = rf"--?{_NAMES}(?:=|\s+)|{_NAMES}(?:=|:\s*)|{_SCHEME}|\bauth=|(?<!\S)(?:-u|--user)(?:=|\s+)(?=\S*:)"
_SECRET = re.compile(rf"""({_BEFORE})("[^"]*"|'[^']*'|[^\s"']+)""", re.IGNORECASE)
_LOGIN = re.compile(r"(?<=://)[^/@\s]+(?=@)")
BOX = Path(__file__).parents[1] / "readers" / "x-sta-e5-small"  # the reader in the box


class TextError(ValueError):
    """A file or a text cannot be used; the message names file, place and remedy."""


def check_text(text: str, where: str) -> str:
    """``text`` itself; a TextError that names ``where`` if it holds half a surrogate pair, which no tokenizer reads."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        half = f"character {error.start} is half a surrogate pair (\\u{ord(text[error.start]):04x})"
        raise TextError(f"{where}: {half}, as of a cut emoji; write the whole character or remove it") from None
    return text


def without_secrets(text: str) -> str:
    """A command line or an address with ``***`` for keys, tokens, passwords and logins, to be shown and kept."""
    return _LOGIN.sub("***", _SECRET.sub(r"\1***", text))


def is_blank(text: str) -> bool:
    """Whether a text has nothing to see: white space, control, zero-width and filling characters only."""
    return all(unicodedata.category(character)[0] in "ZC" or _UNSEEN.match(character) for character in text)


def read_text(path: str | os.PathLike) -> str:
    """The text of a UTF-8 file, without its byte order mark; line ends and all else stay as they are.

    Raises:
        TextError: no such file, not readable, not UTF-8, or nothing but white space; the message has the remedy.
    """
    try:
        raw = Path(path).read_bytes()
    except FileNotFoundError:
        raise TextError(f"{path}: no such file; check its name and folder") from None
    except OSError as error:
        raise TextError(f"{path}: cannot be read ({error.strerror}); check the file and its permissions") from error
    fault = next((what for start, what in _FOREIGN.items() if raw.startswith(start)), None) or _binary(raw)
    try:
        text = "" if fault else raw.decode("utf-8-sig")
        if not fault and not text.strip():
            fault = "the file is empty or blank; fetch or write it again"
    except UnicodeDecodeError as error:
        fault = f"byte {error.start} is not UTF-8, but probably Latin-1 or Windows-1252; save the file as UTF-8"
        near = raw[max(0, error.start - 500) : error.start + 500]
        if sum(byte > 127 for byte in near) > len(near) / 4:  # more than the accents of a western language
            fault = f"byte {error.start} is not UTF-8, but some other encoding, or no text; save the file as UTF-8"
        if error.reason == "unexpected end of data" and not raw[: error.start].isascii():
            fault = "the file is cut inside its last character; fetch or write it again"
    if fault:
        raise TextError(f"{path}: {fault}")
    return text


def _binary(raw: bytes) -> str:
    """Why bytes are no text though they may be valid UTF-8; empty where they can be some."""
    head = raw[:1000]
    even, odd = (sum(byte < 32 and byte not in b"\t\n\v\f\r" for byte in head[side::2]) for side in (0, 1))
    if max(even, odd) > len(head) / 4 and min(even, odd) < len(head) / 20:  # a letter's upper byte, in most scripts
        return _UTF_16
    if 0 in raw or even + odd > len(head) / 4:
        return "the file holds control characters that no text has; save its text as UTF-8, also if it is UTF-16"
    return ""


def once(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """An object of a JSON file, for ``object_pairs_hook``.

    Raises ValueError where it gives one key two values, of which one would be lost.
    """
    found = dict(pairs)
    if len(found) < len(pairs):
        for name, value in pairs:
            if found[name] != value:
                raise ValueError(f"the key {name!r:.40} stands for two values in one object")
    return found


def read_json(path: str | os.PathLike, **options: object) -> object:
    """What a JSON file holds; ``options`` go to :func:`json.loads`. Every fault is a TextError with file and remedy."""
    text = read_text(path)
    try:
        return json.loads(text, **options)
    except json.JSONDecodeError as error:
        fault = f"not JSON at line {error.lineno}, column {error.colno} ({error.msg})"
        if error.pos >= len(text.rstrip()) or error.msg.startswith("Unterminated string"):
            fault += "; the file is cut, fetch or write it again"
        elif error.msg == "Extra data" and text[: error.pos].rstrip(" \t\r").endswith("\n"):
            fault = f"JSON Lines (a second value begins at line {error.lineno}), not one JSON document; join its lines"
        elif text.lstrip().startswith("<"):
            fault += "; it looks like a web page, fetch the file itself"
        else:
            fault += "; mend that place, or fetch the file again"
        raise TextError(f"{path}: {fault}") from error
    except (ValueError, RecursionError) as error:  # numbers or nesting beyond all measure
        raise TextError(f"{path}: not readable as JSON ({error}); write it again") from error


def home() -> Path:
    """The folder of ``results/``, ``runs/``, ``figures/`` and the repository's ``data/``.

    The environment variable ``XSTA_HOME``; else the checkout that the current folder lies in; else the current folder.
    """
    if chosen := os.environ.get("XSTA_HOME"):
        return Path(chosen).expanduser().resolve()
    here = Path.cwd()
    return next((folder for folder in (here, *here.parents) if (folder / "data" / "demo").is_dir()), here)


def writable(folder: Path, variable: str) -> Path:
    """``folder``, made where it is missing; an OSError that names ``variable`` where nothing can be written there.

    Args:
        variable: the environment variable that chooses the folder.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=folder):
            return folder
    except OSError as error:
        remedy = f"set {variable} to a folder that can be written"
        raise OSError(f"{folder}: cannot be written ({error.strerror}); {remedy}") from error


def cache_folder(name: str) -> Path:
    """A folder of what is computed and may be deleted: ``name`` in ``XSTA_CACHE``, by default the user's cache folder.

    Raises OSError, which names the variable, where nothing can be written there.
    """
    return writable(Path(os.environ.get("XSTA_CACHE") or pooch.os_cache("xsta")).expanduser() / name, "XSTA_CACHE")


def is_boxed(name: str | None) -> bool:
    """Whether a reader's name means the one in the box: none at all, or what its answers call it."""
    return name is None or (name == BOX.name and not Path(name).exists())


def weights_key(folder: Path) -> str:
    """A key of the weights in a model's folder or file; empty where there are none, as for an id on a hub."""
    hashed, files = hashlib.sha256(), sorted([*folder.glob("*.safetensors"), *folder.glob("*.bin")])
    files = [folder] if folder.is_file() else files
    for path in files:
        with path.open("rb") as file:
            hashed.update(hashlib.file_digest(file, "sha256").digest())
    return hashed.hexdigest()[:16] if files else ""


@contextmanager
def replacing(path: str | os.PathLike) -> Iterator[Path]:
    """A temporary path beside ``path``, for any writer of a file or folder: readers never see half of it.

    It takes the place of ``path`` at the end, and a folder that was there is deleted after that; if anything goes wrong
    it vanishes, and what was there stays. Only who is killed between the two renamings of a folder leaves none at
    ``path``: the old one then lies beside, as ``.<how its name begins>.<...>.old.part``.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    own = f"{os.getpid()}-{token_hex(4)}"  # containers that share a disk have the same process numbers
    # a part of the name: with the whole of a long one it would be longer than a file name may be
    temporary, old = (path.with_name(f".{path.name[:40]}.{own}.{end}") for end in ("part", "old.part"))
    try:
        yield temporary
        if path.is_dir() and temporary.is_dir():  # a folder that holds something cannot be replaced at once
            os.replace(path, old)
        try:
            os.replace(temporary, path)
        except BaseException:
            if old.exists() and not path.exists():
                os.replace(old, path)
            raise
        shutil.rmtree(old, ignore_errors=True)
    finally:
        if temporary.is_dir():
            shutil.rmtree(temporary, ignore_errors=True)
        else:
            temporary.unlink(missing_ok=True)


def write_text_atomically(path: str | os.PathLike, text: str) -> None:
    """Write a UTF-8 text file whole or not at all (see :func:`replacing`)."""
    with replacing(path) as temporary:
        temporary.write_text(text, "utf-8")
