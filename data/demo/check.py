"""Check the authored passages of the demo corpus and print their counts. Exit status 1 if anything is wrong.

``python data/demo/check.py`` checks all passages and the corpus as a whole; with names (``train-01 train-02``) only
those passages. ``python data/demo/check.py --card`` also writes the counts into the data card, ``README.md``.
"""

import re
import statistics
import sys
import unicodedata
from collections import Counter

from build import HERE, KINDS, LANGUAGES, QUESTIONS, SPLITS, Passage, Version, load_passages
from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS

CARD_MARKS = ("<!-- counts -->", "<!-- /counts -->")
SCRIPT = {"ar": "ARABIC", "hi": "DEVANAGARI", "zh": "CJK"}
MIN_SCRIPT_SHARE = {"ar": 0.95, "hi": 0.95, "zh": 0.95}
# Longest answer, in words; Vietnamese writes syllables apart and Chinese has no spaces, so they count other units.
MAX_ANSWER = {"en": 8, "ar": 8, "de": 8, "es": 8, "hi": 9, "vi": 12, "zh": 18}
ENGLISH_WORDS = (70, 100)
# Passage length against the English one, in characters: outside these bounds a sentence was probably lost or added.
LENGTH_RATIO = {
    "ar": (0.6, 1.2),
    "de": (0.85, 1.5),
    "es": (0.85, 1.45),
    "hi": (0.75, 1.35),
    "vi": (0.75, 1.4),
    "zh": (0.18, 0.5),
}
QUESTION_MARK = {"ar": "؟", "zh": "？"}
FUNCTION_WORDS = {"the", "of", "and", "to", "in", "is", "was", "were", "with", "that", "which", "for", "from", "by"}
FUNCTION_WORDS |= {"on", "at", "are", "this", "they"}
# English function words that are also words of the other language.
HOMOGRAPHS = {"de": {"in", "was", "at", "by"}, "es": {"by", "on"}, "vi": {"to", "in", "by", "at", "on"}}


def words(text: str) -> list[str]:
    """Lower-cased words and numbers."""
    return re.findall(r"\w+", text.lower())


def content_words(text: str) -> set[str]:
    """English words that carry meaning, cut to five letters so that inflections of a word meet."""
    return {word[:5] for word in words(text) if word not in ENGLISH_STOP_WORDS}


def answer_length(text: str, language: str) -> int:
    """Answer length in words (characters without spaces for Chinese)."""
    return len(re.sub(r"\s", "", text)) if language == "zh" else len(text.split())


def script_share(text: str, language: str) -> float:
    """Share of letters that belong to the language's script."""
    letters = [c for c in text if unicodedata.category(c)[0] == "L"]
    return sum(unicodedata.name(c, "").startswith(SCRIPT[language]) for c in letters) / max(1, len(letters))


def sentence_of(version: Version, number: int) -> str:
    """The sentence of the passage that holds the answer."""
    text, start = version.answers[number]
    begin = max((m.end() for m in re.finditer(r"[.!?]\s+", version.context[:start])), default=0)
    rest = re.search(r"[.!?](\s|$)", version.context[start + len(text) :])
    return version.context[begin : start + len(text) + (rest.end() if rest else len(version.context))]


def overlap(version: Version, number: int) -> float:
    """Share of the question's content words that stand in the sentence with the answer."""
    asked = content_words(version.questions[number])
    return len(asked & content_words(sentence_of(version, number))) / max(1, len(asked))


def has_distractor(version: Version) -> bool:
    """Whether a telling word of some answer stands elsewhere in the passage too."""
    for text, start in version.answers.values():
        outside = content_words(version.context[:start]) | content_words(version.context[start + len(text) :])
        if content_words(text) & outside:
            return True
    return False


def version_problems(version: Version, english: Version) -> list[str]:
    """What is wrong with one passage in one language."""
    language, found = version.language, []
    everything = [version.context, *version.questions.values()]
    for number, (text, start) in version.answers.items():
        if version.context[start : start + len(text)] != text or text != text.strip() or text[-1] in ".,;:。，،؛":
            found.append(f"answer {number} has spaces or punctuation at its edge: {text!r}")
        if not 1 <= answer_length(text, language) <= MAX_ANSWER[language]:
            found.append(
                f"answer {number} is {answer_length(text, language)} long, at most {MAX_ANSWER[language]}: {text!r}"
            )
    for number, question in version.questions.items():
        if not question.endswith(QUESTION_MARK.get(language, "?")):
            found.append(f"question {number} lacks the language's question mark: {question!r}")
    if any(text != unicodedata.normalize("NFC", text) or "  " in text or "\t" in text for text in everything):
        found.append("text is not NFC, or has double spaces or tabs")
    if language in SCRIPT and (share := script_share(" ".join(everything), language)) < MIN_SCRIPT_SHARE[language]:
        found.append(f"only {share:.1%} of the letters are {SCRIPT[language].title()}")
    if language != "en":
        foreign = FUNCTION_WORDS - HOMOGRAPHS.get(language, set())
        if left := foreign & {word for text in everything for word in words(text)}:
            found.append(f"English words left: {sorted(left)}")
        low, high = LENGTH_RATIO[language]
        ratio = len(version.context) / len(english.context)
        if not low <= ratio <= high:
            found.append(f"passage is {ratio:.2f} times as long as the English, expected {low} to {high}")
        if any(version.questions[n] == english.questions[n] for n in english.questions):
            found.append("a question is still in English")
    elif not ENGLISH_WORDS[0] <= (count := len(version.context.split())) <= ENGLISH_WORDS[1]:
        found.append(f"{count} words, expected {ENGLISH_WORDS[0]} to {ENGLISH_WORDS[1]}")
    return found


def passage_problems(passage: Passage) -> list[str]:
    """What is wrong with one passage, in all its languages."""
    english, found = passage.versions["en"], []
    for version in passage.versions.values():
        found += [f"{passage.name}, {version.language}: {text}" for text in version_problems(version, english)]
    overlaps = [overlap(english, number) for number in english.questions]
    if statistics.median(overlaps) >= 0.6:
        shown = " ".join(f"{value:.0%}" for value in overlaps)
        found.append(f"{passage.name}: questions copy their sentences' words (overlap {shown})")
    starts = [start / len(english.context) for _, start in english.answers.values()]
    if max(starts) - min(starts) < 0.4:
        found.append(f"{passage.name}: all answers stand close together")
    return found


def corpus_problems(passages: list[Passage]) -> list[str]:
    """What is wrong with the corpus as a whole: counts, repeats, leaks between the splits, too-easy questions."""
    found = []
    sizes = Counter(passage.name.split("-")[0] for passage in passages)
    if sizes != SPLITS:
        found.append(f"passages by split are {dict(sizes)}, expected {SPLITS}")
    for language in LANGUAGES:
        texts = [v for p in passages for v in (p.versions[language].context, *p.versions[language].questions.values())]
        found += [f"{language}: twice in the corpus: {text!r}" for text, n in Counter(texts).items() if n > 1]
        answers = {split: [] for split in SPLITS}
        for passage in passages:
            answers[passage.name.split("-")[0]] += [
                text.lower() for text, _ in passage.versions[language].answers.values()
            ]
        shared = sum(text in set(answers["train"]) for text in answers["test"]) / max(1, len(answers["test"]))
        if shared > 0.2:
            found.append(f"{language}: {shared:.0%} of the test answers are also train answers")
    if (value := median_overlap(passages)) >= 0.5:
        found.append(f"median overlap of question and sentence is {value:.0%}, expected below 50%")
    if (value := distractor_share(passages)) < 0.25:
        found.append(f"only {value:.0%} of the passages repeat an answer's words elsewhere, expected 25%")
    return found


def median_overlap(passages: list[Passage]) -> float:
    """Median over all English questions of :func:`overlap`."""
    return statistics.median(overlap(p.versions["en"], n) for p in passages for n in p.versions["en"].questions)


def distractor_share(passages: list[Passage]) -> float:
    """Share of passages in which an answer's words stand elsewhere too."""
    return statistics.mean(has_distractor(p.versions["en"]) for p in passages)


def report(passages: list[Passage]) -> str:
    """Counts by language and split, and the corpus's measures, as text."""
    lines = ["split  language  passages  questions  passage chars (median)  answer length (median, longest)"]
    for split in SPLITS:
        chosen = [p for p in passages if p.name.startswith(split)]
        for language in LANGUAGES if chosen else ():
            versions = [p.versions[language] for p in chosen]
            lengths = [answer_length(text, language) for v in versions for text, _ in v.answers.values()]
            chars = statistics.median(len(v.context) for v in versions)
            row = f"{split:6} {language:9} {len(chosen):8} {len(lengths):10} {chars:23.0f} "
            lines.append(f"{row}{statistics.median(lengths):21.0f}, {max(lengths)}")
    kinds = Counter(kind for p in passages for kind in p.kinds)
    lines.append("answer kinds: " + ", ".join(f"{kind} {kinds[kind]}" for kind in KINDS))
    lines.append(f"question and sentence share a median {median_overlap(passages):.0%} of the question's content words")
    lines.append(f"{distractor_share(passages):.0%} of the passages repeat an answer's words elsewhere")
    return "\n".join(lines)


def card_counts(passages: list[Passage]) -> str:
    """The counts of the data card, as Markdown."""
    sizes = Counter(passage.name.split("-")[0] for passage in passages)
    lines = ["| split | passages | questions in each language |", "|---|---|---|"]
    lines += [f"| {split} | {sizes[split]} | {sizes[split] * QUESTIONS} |" for split in SPLITS]
    lines += ["", "| language | passage | question | answer, median | answer, longest |", "|---|---|---|---|---|"]
    for language in LANGUAGES:
        versions = [passage.versions[language] for passage in passages]
        answers = [answer_length(text, language) for version in versions for text, _ in version.answers.values()]
        contexts = statistics.median(len(version.context) for version in versions)
        questions = statistics.median(len(text) for version in versions for text in version.questions.values())
        unit = "characters" if language == "zh" else "words"
        row = f"| {language} | {contexts:.0f} | {questions:.0f} |"
        lines.append(f"{row} {statistics.median(answers):.0f} {unit} | {max(answers)} {unit} |")
    kinds = Counter(kind for passage in passages for kind in passage.kinds)
    shown = ", ".join(f"{kind} {kinds[kind]}" for kind in KINDS)
    return "\n".join(
        [
            *lines,
            "",
            "Passage and question lengths are medians in characters.",
            "",
            f"Answer kinds (the same questions, so the same in every language): {shown}.",
            f"A question shares a median {median_overlap(passages):.0%} of its content words with the sentence that "
            "answers it (English).",
            f"{distractor_share(passages):.0%} of the passages repeat a word of an answer elsewhere.",
        ]
    )


def with_counts(card: str, passages: list[Passage]) -> str:
    """The data card with its section of counts made anew."""
    before, rest = card.split(CARD_MARKS[0])
    return f"{before}{CARD_MARKS[0]}\n{card_counts(passages)}\n{CARD_MARKS[1]}{rest.split(CARD_MARKS[1])[1]}"


def main(names: list[str]) -> int:
    """Check the named passages, or all of them and the corpus; return the exit status."""
    if names == ["--card"]:
        path, names = HERE / "README.md", []
        path.write_text(with_counts(path.read_text("utf-8"), load_passages()), "utf-8")
    passages = [p for p in load_passages() if not names or p.name in names]
    problems = [text for p in passages for text in passage_problems(p)]
    if not names:
        problems += corpus_problems(passages)
    if passages:
        print(report(passages))
    print("\n".join(problems) or "no problems found")
    return bool(problems)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
