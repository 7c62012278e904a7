"""Turn the authored passages of the demo corpus into SQuAD-format JSON.

Each file in ``passages/`` holds one passage in all seven languages, with the answers marked in place, so that a span is
right by construction. The format is described in ``README.md``. Run ``python data/demo/build.py`` after editing one;
``python data/demo/check.py`` then checks the result.
"""

import json
import re
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
LANGUAGES = ("en", "ar", "de", "es", "hi", "vi", "zh")
KINDS = ("person", "place", "number", "date", "reason", "object", "phrase")
SPLITS = {"train": 36, "dev": 8, "test": 16}
QUESTIONS = 5

MARKER = re.compile(r"\[\[(\d)\|(.+?)\]\]", re.DOTALL)
QUESTION = re.compile(r"(\d)\?\s+(\S.*)")


@dataclass(frozen=True)
class Version:
    """A passage in one language: clean text, and for each question number its text and answer span."""

    language: str
    context: str
    questions: dict[int, str]
    answers: dict[int, tuple[str, int]]  # number -> (text, offset in code points)


@dataclass(frozen=True)
class Passage:
    """One authored file: its name (``train-01``), English title, subject, answer kinds and seven versions."""

    name: str
    title: str
    subject: str
    kinds: tuple[str, ...]
    versions: dict[str, Version]


def parse_version(language: str, lines: list[str], place: str) -> Version:
    """Read one language's block: a paragraph with markers, then the numbered questions."""
    body = [line.strip() for line in lines if line.strip()]
    questions, paragraph = {}, []
    for line in body:
        if match := QUESTION.fullmatch(line):
            questions[int(match[1])] = match[2]
        else:
            paragraph.append(line)
    if len(paragraph) != 1:
        raise ValueError(
            f"{place}: expected one paragraph and the questions '1? ...', found {len(paragraph)} paragraphs"
        )
    context, answers, end = "", {}, 0
    for match in MARKER.finditer(paragraph[0]):
        context += paragraph[0][end : match.start()]
        if int(match[1]) in answers:
            raise ValueError(f"{place}: answer {match[1]} is marked twice")
        answers[int(match[1])] = (match[2], len(context))
        context += match[2]
        end = match.end()
    context += paragraph[0][end:]
    if "[[" in context or "]]" in context or "|" in context:
        raise ValueError(f"{place}: a marker is not closed; write [[1|answer]]")
    wanted = set(range(1, QUESTIONS + 1))
    if set(questions) != wanted or set(answers) != wanted:
        raise ValueError(
            f"{place}: questions {sorted(questions)} and answers {sorted(answers)} must both be 1 to {QUESTIONS}"
        )
    return Version(language, context, questions, answers)


def parse_passage(path: Path) -> Passage:
    """Read one authored file; raises ``ValueError`` with file and language where the format is broken."""
    head, *blocks = re.split(r"^== (\w+)\s*$", path.read_text("utf-8"), flags=re.MULTILINE)
    fields = dict(line.split(":", 1) for line in head.splitlines() if ":" in line)
    missing = {"title", "subject", "kinds"} - set(fields)
    if missing:
        raise ValueError(f"{path.name}: the head lacks {sorted(missing)}")
    kinds = tuple(kind.strip() for kind in fields["kinds"].split(","))
    if len(kinds) != QUESTIONS or set(kinds) - set(KINDS):
        raise ValueError(f"{path.name}: 'kinds' needs {QUESTIONS} of {KINDS}, found {kinds}")
    versions = {}
    for language, block in zip(blocks[::2], blocks[1::2], strict=True):
        versions[language] = parse_version(language, block.splitlines(), f"{path.name}, {language}")
    if tuple(versions) != LANGUAGES:
        raise ValueError(f"{path.name}: languages {tuple(versions)} must be {LANGUAGES}, in this order")
    return Passage(path.stem, fields["title"].strip(), fields["subject"].strip(), kinds, versions)


def load_passages(folder: Path = HERE / "passages") -> list[Passage]:
    """All authored passages, ordered by name."""
    return [parse_passage(path) for path in sorted(folder.glob("*.txt"))]


def squad_document(passages: list[Passage], language: str) -> dict:
    """The passages of one split in one language as a SQuAD v1.1 document."""
    articles = []
    for passage in passages:
        version = passage.versions[language]
        qas = [
            {
                "id": f"{passage.name}-{number}",
                "question": version.questions[number],
                "answers": [{"text": version.answers[number][0], "answer_start": version.answers[number][1]}],
            }
            for number in sorted(version.questions)
        ]
        articles.append({"title": passage.title, "paragraphs": [{"context": version.context, "qas": qas}]})
    return {"version": "xsta-demo-1.0", "data": articles}


def build(target: Path = HERE) -> list[Path]:
    """Write ``{train,dev,test}.{language}.json`` into ``target`` and return their paths."""
    passages, written = load_passages(), []
    for split in SPLITS:
        chosen = [passage for passage in passages if passage.name.startswith(f"{split}-")]
        for language in LANGUAGES:
            path = target / f"{split}.{language}.json"
            text = json.dumps(squad_document(chosen, language), ensure_ascii=False, indent=1)
            path.write_text(text + "\n", "utf-8")
            written.append(path)
    return written


if __name__ == "__main__":
    print(f"wrote {len(build())} files to {HERE.name}/")
