"""CalibreNet (after the abstract of Liang et al., 2021), a system that X-STA is compared with.

The abstract says: any reader gives an initial answer; a second network refines its boundary; recovering the boundaries
of phrases, without labels, pre-trains the second one; labels are English alone. How is our inference (docs/method.md,
section 8). Axes: B batch, N tokens, H hidden size.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForQuestionAnswering, PreTrainedTokenizerBase

from ..data.batches import Row
from ..data.windows import Windows
from ..model.configuration import XStaConfig
from ..model.modeling import XStaForQuestionAnswering, XStaOutput
from ..model.sharing import SharingContext
from ..model.teaching import masked_softmax
from ..prediction.predictor import Predictor, best_spans, like_lengths
from ..training.machine import has_bf16
from ..training.trainer import Trainer
from .aacl import context_tokens
from .configuration import PlainConfig
from .phrases import Passages, units_of

FAR = 3  # units by which an edge is moved at most
UNMOVED = 0.25  # how often a span is left as it is
GOLD = 0.5  # how often fine-tuning marks the moved gold span, not another reader's answer
Span = tuple[int, int]
Spans = Callable[[Row, np.random.Generator], tuple[Span, Span]]


class CalibreNetConfig(PlainConfig):
    """Configuration of :class:`CalibreNetForQuestionAnswering`: a plain reader's."""

    model_type = "x-calibrenet"


def initial_spans(model: XStaForQuestionAnswering, **inputs: Tensor) -> tuple[Tensor, Tensor]:
    """First and last token, (B,) each, of a reader's best span in each window; its arguments are those of ``encode``.

    A window without any token of a passage has a span of no length: its end is before its start.
    """
    read = model.encode(**inputs)
    context = context_tokens(read.mask, read.content)
    starts, ends, scores = best_spans(masked_softmax(read.logits, read.mask), context)
    return starts[:, 0], torch.where(scores[:, 0] >= 0, ends[:, 0], starts[:, 0] - 1)


def marks_of(starts: Tensor, ends: Tensor, length: int) -> Tensor:
    """(B, N) 1 on the tokens from ``starts`` to ``ends``, (B,) each."""
    places = torch.arange(length, device=starts.device)
    return ((places >= starts[:, None]) & (places <= ends[:, None])).long()


class CalibreNetForQuestionAnswering(XStaForQuestionAnswering):
    """CalibreNet (after the abstract of Liang et al., 2021): a reader that sees another one's answer marked.

    ``base`` gives the initial answer and is not trained with it. The calibrator is the encoder and the span head, with
    an embedding of two rows, outside and inside the marked span, zero at the start.
    """

    config_class = CalibreNetConfig

    def __init__(self, config: CalibreNetConfig, encoder=None):
        super().__init__(config, encoder)
        self.indicator = nn.Embedding(2, config.encoder.hidden_size)
        nn.init.zeros_(self.indicator.weight)
        shared = {name: getattr(config, name) for name in ("encoder", "special_ids", "languages", "source_language")}
        self.base = XStaForQuestionAnswering(XStaConfig.plain(**shared)).requires_grad_(False)

    def train(self, mode: bool = True) -> "CalibreNetForQuestionAnswering":
        """As ever, but the base reader has no dropout."""
        super().train(mode)
        self.base.eval()
        return self

    def read(self, input_ids: Tensor, token_type_ids: Tensor, context: SharingContext) -> Tensor:
        """The calibrator's last hidden states (B, N, H).

        The marks come in the token types' second bit: that is what is cut and sorted with the rows on a CPU.
        """
        words = self.encoder.get_input_embeddings()(input_ids)
        embedded = words + self.indicator(token_type_ids // 2).to(words.dtype)
        given = {"attention_mask": context.mask, "token_type_ids": token_type_ids % 2}
        return self.encoder(inputs_embeds=embedded, **given).last_hidden_state

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        token_type_ids: Tensor | None = None,
        marks: Tensor | None = None,
        **inputs,
    ) -> XStaOutput:
        """As the plain reader, with a span marked: the base reader's own answer where ``marks`` (B, N) are not given.

        The other arguments are those of :meth:`~xsta_lib.model.modeling.XStaForQuestionAnswering.forward`.
        """
        if marks is None:
            with torch.no_grad():
                read = {"input_ids": input_ids, "attention_mask": attention_mask, "token_type_ids": token_type_ids}
                marks = marks_of(*initial_spans(self.base, **read), input_ids.shape[1])
        types = (torch.zeros_like(input_ids) if token_type_ids is None else token_type_ids) + 2 * marks
        return super().forward(input_ids, attention_mask, token_type_ids=types, **inputs)


def moved(
    first: int, last: int, units: np.ndarray, starts: np.ndarray, ends: np.ndarray, rng: np.random.Generator
) -> tuple[int, int]:
    """A span of tokens with each edge moved by up to ``FAR`` units, or now and then as it was; the two overlap.

    Args:
        first, last: tokens of the span, counted from the first context token.
        units: (units, 2) characters of the context's units.
        starts, ends: (tokens,) characters of the window's context tokens.
    """
    low = int(np.searchsorted(units[:, 1], starts[first], side="right"))
    high = int(np.searchsorted(units[:, 0], ends[last], side="left")) - 1
    if low > high or rng.random() < UNMOVED:
        return first, last
    seen = np.flatnonzero((units[:, 0] >= starts[0]) & (units[:, 1] <= ends[-1]))
    if not len(seen):
        return first, last
    left, right = np.clip(np.array([low, high]) + rng.integers(-FAR, FAR + 1, 2), seen[0], seen[-1]).tolist()
    left, right = sorted((min(left, high), max(right, low)))
    if left != low:
        first = int(np.searchsorted(ends, units[left, 0], side="right"))
    if right != high:
        last = int(np.searchsorted(starts, units[right, 1], side="left")) - 1
    return (first, last) if first <= last else (last, first)


class PhraseEdges:
    """Pre-training's spans: any phrase of a window, and the same with its edges moved.

    Attributes:
        rows: the windows that hold a phrase, as rows of the passages' parts.
    """

    def __init__(self, passages: Sequence[Passages]):
        self.passages = passages
        self.rows = [
            Row(number, index, -1)
            for number, part in enumerate(passages)
            for index in range(len(part.part.target))
            if len(part.tokens(index))
        ]
        if not self.rows:
            raise ValueError("no phrase was found in the training passages, which CalibreNet learns from; add data")

    def __call__(self, row: Row, rng: np.random.Generator) -> tuple[Span, Span]:
        passages = self.passages[row.part]
        windows = passages.part.target
        gold = tuple(rng.choice(passages.tokens(row.target)).tolist())
        return gold, moved_in_window(gold, windows, windows.contexts, row.target, rng)


def fold_spans(
    windows: Windows, contexts: Sequence[str], answers: np.ndarray, row: Row, rng: np.random.Generator
) -> tuple[Span, Span]:
    """Fine-tuning's spans: the gold one, and another reader's answer or the gold one with its edges moved.

    Args:
        windows: of the source's training questions.
        contexts: by question.
        answers: (windows, 2) token positions of readers that were not trained on the question.
    """
    gold = int(windows.start[row.target]), int(windows.end[row.target])
    if not windows.holds_answer[row.target] or rng.random() >= GOLD:
        return gold, tuple(answers[row.target].tolist())
    return gold, moved_in_window(gold, windows, contexts, row.target, rng)


def moved_in_window(
    span: tuple[int, int], windows: Windows, contexts: Sequence[str], index: int, rng: np.random.Generator
) -> tuple[int, int]:
    """:func:`moved` of token positions of a window."""
    offset, (_, units) = int(windows.context_start[index]), units_of(contexts[windows.row[index]])
    chars = windows.char_starts[index], windows.char_ends[index]
    first, last = moved(span[0] - offset, span[1] - offset, units, *chars, rng)
    return offset + first, offset + last


def fold_of(contexts: Sequence[str], folds: int) -> np.ndarray:
    """Each question's fold, whole passages in turn."""
    numbers: dict[str, int] = {}
    return np.array([numbers.setdefault(context, len(numbers)) % folds for context in contexts], dtype=int)


def answered_windows(
    reader: XStaForQuestionAnswering, tokenizer: PreTrainedTokenizerBase, windows: Windows, indices: np.ndarray
) -> np.ndarray:
    """(indices, 2) :func:`initial_spans` of some windows."""
    predictor, found = Predictor(reader, tokenizer, autocast=has_bf16(reader.device)), {}
    with predictor.passes():
        for batch in like_lengths(windows, indices, predictor.batch_size):
            spans = torch.stack(initial_spans(reader, **predictor.inputs(windows, batch)), 1)
            found |= dict(zip(batch.tolist(), spans.tolist(), strict=True))
    return np.array([found[index] for index in indices.tolist()], dtype=int).reshape(-1, 2)


class CalibreTrainer(Trainer):
    """Trains the calibrator on windows in which a span is marked.

    Args:
        spans: gives a row's gold and marked tokens, first and last, by the step's random numbers.
        given, named: see :class:`~xsta_lib.training.trainer.Trainer`.
    """

    def __init__(self, *given, spans: Spans, **named):
        super().__init__(*given, **named)
        self.spans = spans

    def _inputs(self, rows: Sequence[Row], back_translated: bool) -> dict:
        inputs = super()._inputs(rows, back_translated)
        rng = np.random.default_rng([self.config.seed, self.step, rows[0].target])
        gold, marked = torch.tensor([self.spans(row, rng) for row in rows]).unbind(1)
        inputs |= {"start_positions": gold[:, 0], "end_positions": gold[:, 1]}
        return inputs | {"marks": marks_of(*marked.unbind(1), inputs["input_ids"].shape[1])}


AutoConfig.register("x-calibrenet", CalibreNetConfig)
AutoModelForQuestionAnswering.register(CalibreNetConfig, CalibreNetForQuestionAnswering)
