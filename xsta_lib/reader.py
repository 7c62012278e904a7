"""The front door: a trained reader from its folder, and its answers."""

from collections.abc import Sequence
from pathlib import Path

from transformers import AutoModelForQuestionAnswering, AutoTokenizer

from .baselines import mixup  # noqa: F401  (its models are known once it is imported)
from .data.squad import Question
from .prediction.predictor import Prediction, Predictor
from .training.machine import has_bf16
from .training.ranks import device as default_device


class Reader:
    """Answers questions in any language it was trained on, with or without the English version beside.

    Args:
        folder: written by training, such as ``runs/demo/<run>/model``.
        device: where to run; by default the GPU where there is one. bfloat16 is used where the device has it.
    """

    def __init__(self, folder: str | Path, device: str | None = None):
        model = AutoModelForQuestionAnswering.from_pretrained(folder).to(device or default_device())
        tokenizer = AutoTokenizer.from_pretrained(folder)
        self.predictor = Predictor(model, tokenizer, autocast=has_bf16(model.device))

    def answer(
        self,
        question: str | Sequence[str],
        context: str | Sequence[str],
        language: str = "en",
        source: tuple[str, str] | Sequence[tuple[str, str]] | None = None,
    ) -> Prediction | list[Prediction]:
        """The answer of each question, a span of its context: its ``text`` and its ``score``, 0 to 1.

        Args:
            question, context: one of each, or as many of one as of the other; then the answers are a list, in order.
            language: of questions and contexts.
            source: the same question and context in English, or a list of such pairs; ``None`` reads the target alone.

        Raises:
            ValueError: lists of different lengths, or an empty question or context.
        """
        if isinstance(question, str):
            return self.answer([question], [context], language, None if source is None else [source])[0]
        targets = _questions(zip(question, context, strict=True))
        english = None if source is None else _questions(source)
        if english is not None and len(english) != len(targets):
            raise ValueError(f"{len(targets)} questions, but {len(english)} English versions")
        found = self.predictor.predict({language: targets}, english, readings=("calibrated",))["calibrated"][language]
        return [found[target.id] for target in targets]


def _questions(pairs) -> list[Question]:
    questions = [Question(str(number), *pair, ()) for number, pair in enumerate(pairs)]
    for question in questions:
        if not question.question.strip() or not question.context.strip():
            raise ValueError(f"question {question.id}: an empty question or context")
    return questions
