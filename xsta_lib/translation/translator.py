"""An engine for whole passages: cut into sentences, translated once each and kept, joined with every place known."""

import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from weakref import finalize

from tqdm.auto import tqdm

from ..data.files import cache_folder, is_blank
from .engines import Engine, EngineError
from .sentences import glue, split_sentences

TABLE = """CREATE TABLE IF NOT EXISTS translations
(engine TEXT, source TEXT, target TEXT, text TEXT, translation TEXT NOT NULL,
PRIMARY KEY (engine, source, target, text)) WITHOUT ROWID"""


@dataclass(frozen=True)
class Passage:
    """A translated text.

    Attributes:
        text: the translation.
        places: of each sentence, first and last character (excluded) in the source and in ``text``.
        missing: how many sentences the engine gave nothing for.
    """

    text: str
    places: tuple[tuple[int, int, int, int], ...]
    missing: int = 0

    def near(self, start: int, end: int) -> tuple[int, int] | None:
        """The characters of ``text`` that the sentences became which hold these characters of the source."""
        found = [place[2:] for place in self.places if place[0] < end and start < place[1]]
        return (found[0][0], found[-1][1]) if found else None


class Kept:
    """Translations in a file (SQLite), by engine, languages and text; without a path, in memory.

    Raises OSError, with the remedy, where the file cannot be read or written, such as on a full disk.
    """

    def __init__(self, path: Path | None):
        self.path = path or ":memory:"
        with self._explained():
            self.base = sqlite3.connect(self.path, timeout=60)
            finalize(self, self.base.close)
            with self.base:
                self.base.execute(TABLE)

    def get(self, pair: tuple[str, str, str], texts: Iterable[str]) -> dict[str, str]:
        """The known translations of some texts."""
        found, query = {}, "SELECT translation FROM translations WHERE engine=? AND source=? AND target=? AND text=?"
        with self._explained(), closing(self.base.cursor()) as cursor:
            for text in texts:
                if row := cursor.execute(query, (*pair, text)).fetchone():
                    found[text] = row[0]
        return found

    def put(self, pair: tuple[str, str, str], found: dict[str, str]) -> None:
        """Keep some translations, all or none; they are on the disk at the end."""
        rows = [(*pair, *item) for item in found.items()]
        with self._explained(), self.base:
            self.base.executemany("INSERT OR REPLACE INTO translations VALUES (?, ?, ?, ?, ?)", rows)

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            remedy = "make room there or set XSTA_CACHE to another folder; if the file is damaged, delete it"
            raise OSError(f"{self.path}: translations cannot be kept ({error}); {remedy}") from error


class Translator:
    """Translates texts from one language to another.

    Args:
        engine: see :func:`~.engines.open_engine`.
        source, target: ISO 639 codes.
        keep: keep translations in the folder ``XSTA_CACHE`` for later runs; else they last as long as this object.
        progress: show a bar.

    Raises:
        LanguageError: the engine is not for these languages.
    """

    def __init__(self, engine: Engine, source: str, target: str, keep: bool = True, progress: bool = True):
        self.engine, self.source, self.target, self.progress = engine, source, target, progress
        engine.check(source, target)
        self.pair = (engine.key, source, target)
        self.kept = Kept(cache_folder("translations") / "sentences.sqlite" if keep else None)
        self.known: dict[str, str] = {}

    def prepare(self, texts: Iterable[str]) -> None:
        """Translate the sentences of some texts that are not known yet, the longest first; each chunk is kept at once.

        Raises:
            EngineError: the engine fails; what it translated before is kept. OSError: it cannot be kept.
        """
        wanted = {text[start:end]: None for text in texts for start, end in split_sentences(text, self.source)}
        wanted = [sentence for sentence in wanted if sentence not in self.known]
        self.known |= self.kept.get(self.pair, wanted)
        open_ = sorted((sentence for sentence in wanted if sentence not in self.known), key=len, reverse=True)
        done = sum(map(len, wanted)) - sum(map(len, open_))
        shown = {"desc": f"{self.source} to {self.target}", "unit": " characters", "unit_scale": True}
        with tqdm(total=sum(map(len, wanted)), initial=done, disable=not (self.progress and open_), **shown) as bar:
            for low in range(0, len(open_), self.engine.chunk):
                part = open_[low : low + self.engine.chunk]
                self._chunk(part)
                bar.update(sum(map(len, part)))

    def _chunk(self, part: Sequence[str]) -> None:
        found = self.engine.translate(part, self.source, self.target)
        if len(found) != len(part):
            raise EngineError(f"{self.engine.name}: {len(found)} translations of {len(part)} texts; mend the engine")
        made = dict(zip(part, found, strict=True))
        self.known |= made
        self.kept.put(self.pair, {text: translation for text, translation in made.items() if not is_blank(translation)})

    def passage(self, text: str) -> Passage:
        """The translation of a text, sentence by sentence; white space at its ends goes."""
        if any(text[start:end] not in self.known for start, end in split_sentences(text, self.source)):
            self.prepare([text])
        parts, places, length, missing, before = [], [], 0, 0, 0
        for start, end in split_sentences(text, self.source):
            translation = self.known[text[start:end]].strip()
            if is_blank(translation):
                missing += any(map(str.isalnum, text[start:end]))
                continue
            gap = glue(self.target, text[before:start]) if parts else ""
            parts += [gap, translation]
            first = length + len(gap)
            length = first + len(translation)
            places.append((start, end, first, length))
            before = end
        return Passage("".join(parts), tuple(places), missing)
