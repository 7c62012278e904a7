"""Where each data set's files lie under the data folder, and in which languages they exist (see ``registry.json``)."""

from pathlib import Path

MLQA_LANGUAGES = ("en", "ar", "de", "es", "hi", "vi", "zh")
XQUAD_LANGUAGES = ("en", "ar", "de", "el", "es", "hi", "ru", "th", "tr", "vi", "zh")
TYDIQA_LANGUAGES = {
    "en": "english",
    "ar": "arabic",
    "bn": "bengali",
    "fi": "finnish",
    "id": "indonesian",
    "ko": "korean",
    "ru": "russian",
    "sw": "swahili",
    "te": "telugu",
}
SQUAD_TRAIN = Path("squad/train-v1.1.json")
TYDIQA_TRAIN = Path("tydiqa-goldp-v1.1/train/tydiqa-goldp-train-english.json")


def mlqa(split: str, language: str) -> Path:
    """MLQA ``dev`` or ``test``, question and context in the same language."""
    return Path(f"MLQA_V1/{split}/{split}-context-{language}-question-{language}.json")


def xquad(language: str) -> Path:
    """XQuAD, a test set."""
    return Path(f"xquad/xquad.{language}.json")


def tydiqa_dev(language: str) -> Path:
    """TyDiQA-GoldP dev, which the paper tests on."""
    return Path(f"tydiqa-goldp-v1.1/dev/tydiqa-goldp-dev-{TYDIQA_LANGUAGES[language]}.json")


def squad_translation(language: str) -> Path:
    """SQuAD train machine-translated from English (XTREME)."""
    return Path(f"xtreme/SQuAD/translate-train/squad.translate.train.en-{language}.json")


def tydiqa_translation(language: str) -> Path:
    """TyDiQA English train machine-translated from English (XTREME)."""
    return Path(f"xtreme/TyDiQA-GoldP/translate-train/tydiqa.translate.train.en-{language}.json")


def english_of(task: str, language: str) -> Path | None:
    """A test set machine-translated to English (XTREME's translate-test), or ``None``: English itself, MLQA's German.

    Args:
        task: ``mlqa``, ``xquad`` or ``tydiqa``.
        language: the language it was translated from.
    """
    if language == "en" or (task, language) == ("mlqa", "de"):
        return None
    folder = {"mlqa": "MLQA", "xquad": "XQuAD", "tydiqa": "TyDiQA-GoldP"}[task]
    return Path(f"xtreme/{folder}/translate-test/{task}.translate.test.{language}-en.json")
