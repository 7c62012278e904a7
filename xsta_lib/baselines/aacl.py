"""AA-CL (after the abstract of Chen et al., 2022), a system that X-STA is compared with: trans-train in two stages.

The abstract says: the best span often misses where the k best hold the answer; so a first stage (hard learning) raises
the likelihood that the k best hold it, and a second one (answer-aware contrastive learning) separates it from the
others. The losses are our inference (docs/method.md, section 8). Axes: B batch, N tokens, H hidden size, K spans.
"""

from collections.abc import Container, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoConfig, AutoModelForQuestionAnswering

from ..data.batches import Part, Row, collate_windows, rows_of
from ..model import batch
from ..model.modeling import Encoded, XStaForQuestionAnswering, span_loss
from ..prediction.predictor import MAX_ANSWER_TOKENS
from ..training.configuration import TrainingConfig
from ..training.trainer import Trainer
from .configuration import PlainConfig


class AaclConfig(PlainConfig):
    """Configuration of :class:`AaclForQuestionAnswering`: a plain reader's, and AA-CL's numbers, all of them ours.

    Args:
        candidates: k, how many of the best spans should hold the answer.
        margin: how far the gold span's score should be above that of the k-th other one, in logits.
        contrast: weight of the second stage's loss; 0 leaves it out.
        projection: size of the span vectors that it compares.
    """

    model_type = "x-aa-cl"

    candidates: int = 5
    margin: float = 1.0
    contrast: float = 0.1
    projection: int = 128


def context_tokens(mask: Tensor, content: Tensor) -> Tensor:
    """(B, N) true on the passage's tokens: the last run of content, behind which one special token stands.

    Args:
        mask, content: (B, N) real tokens, and those that are not special.
    """
    special = mask.bool() & ~content
    return content & (special.flip(1).cumsum(1).flip(1) == 1)


def best_other_spans(
    logits: Tensor, context: Tensor, gold: Tensor, count: int, longest: int = MAX_ANSWER_TOKENS
) -> tuple[Tensor, Tensor, Tensor]:
    """The best spans of each row other than the gold one, best first, out of all of them.

    Args:
        logits: (B, N, 2) of start and end; a span's score is their sum.
        context: (B, N) true on tokens that a span may hold.
        gold: (B, 2) first and last token of the span that is left out.
        count: how many spans; fewer come back where the batch's width has no more.
        longest: tokens of a span at most.

    Returns:
        ``(score, start, end)``, (B, K) each; the score is -inf where a row has no further span.
    """
    width = min(longest, logits.shape[1])
    starts, ends = logits.masked_fill(~context[..., None], -torch.inf).unbind(-1)
    later = F.pad(ends, (0, width - 1), value=-torch.inf).unfold(1, width, 1)  # (B, N, width) ends by start and length
    scores = starts[..., None] + later
    first, length = gold[:, :1, None], (gold[:, 1:] - gold[:, :1])[..., None]
    places, sizes = (torch.arange(size, device=logits.device) for size in (scores.shape[1], width))
    is_gold = (places[None, :, None] == first) & (sizes[None, None] == length)
    flat = scores.masked_fill(is_gold, -torch.inf).flatten(1)
    best, index = flat.topk(min(count, flat.shape[1]))
    start = index // width
    return best, start, start + index % width


def margin_loss(logits: Tensor, context: Tensor, gold: Tensor, holds: Tensor, count: int, margin: float) -> Tensor:
    """Stage 1: ``max(0, margin + s_k - s_gold)``, s_k the k-th best other span's score; above it the k best hold gold.

    The mean over the rows that hold the answer; 0 for a row with fewer than k other spans. Arguments as for
    :func:`best_other_spans`, and ``holds``, (B,).
    """
    best, _, _ = best_other_spans(logits, context, gold, count)
    rows = torch.arange(len(gold), device=gold.device)
    own = logits[rows, gold[:, 0], 0] + logits[rows, gold[:, 1], 1]
    last = best[:, count - 1] if best.shape[1] >= count else torch.full_like(own, -torch.inf)
    return batch.mean((F.relu(margin + last - own) * holds).sum(), holds.sum(), len(gold))


def info_nce(anchor: Tensor, positive: Tensor, negatives: Tensor, exists: Tensor, temperature: float) -> Tensor:
    """InfoNCE on cosine similarities, (B,), in nats.

    Args:
        anchor, positive: (B, P). negatives: (B, K, P), exists: (B, K) false on those that are none.
    """
    others = torch.cat([positive[:, None], negatives], 1)
    logits = F.cosine_similarity(anchor[:, None], others, dim=-1) / temperature
    logits[:, 1:] = logits[:, 1:].masked_fill(~exists, torch.finfo(logits.dtype).min)
    return F.cross_entropy(logits, torch.zeros(len(logits), dtype=torch.long, device=logits.device), reduction="none")


class AaclForQuestionAnswering(XStaForQuestionAnswering):
    """AA-CL (after the abstract of Chen et al., 2022): a plain reader with the losses of two stages.

    A target read beside its source has stage 2's loss, one read alone stage 1's. Answers are read as ever.
    """

    config_class = AaclConfig

    def __init__(self, config: AaclConfig, encoder=None):
        super().__init__(config, encoder)
        self.span_projection = nn.Linear(2 * config.encoder.hidden_size, config.projection)
        nn.init.normal_(self.span_projection.weight, std=getattr(config.encoder, "initializer_range", 0.02))
        nn.init.zeros_(self.span_projection.bias)

    def span_vectors(self, states: Tensor, starts: Tensor, ends: Tensor) -> Tensor:
        """(B, K, P) projections of the states (B, N, H) at the spans' ends (B, K), in at least float32."""
        rows = torch.arange(len(states), device=states.device)[:, None]
        with torch.autocast(states.device.type, enabled=False):  # a cosine in bfloat16 is too coarse
            weight = self.span_projection.weight
            return self.span_projection(torch.cat([states[rows, starts], states[rows, ends]], -1).to(weight.dtype))

    def _others(self, side: Encoded) -> tuple[Tensor, Tensor, Tensor]:
        gold = torch.stack([side.starts, side.ends], 1)
        context = context_tokens(side.mask, side.content)
        return best_other_spans(side.logits.detach(), context, gold, self.config.candidates)

    def contrast(self, target: Encoded, source: Encoded) -> Tensor:
        """Stage 2: the source's gold span, its translation, and both sides' k best spans other than gold."""
        gold, negatives, exists = [], [], []
        for side in (source, target):
            scores, starts, ends = self._others(side)
            gold.append(self.span_vectors(side.states, side.starts[:, None], side.ends[:, None])[:, 0])
            negatives.append(self.span_vectors(side.states, starts, ends))
            exists.append(scores > -torch.inf)
        losses = info_nce(*gold, torch.cat(negatives, 1), torch.cat(exists, 1), self.config.temperature)
        both = target.holds_answer.bool() & source.holds_answer.bool()
        return batch.mean((losses * both).sum(), both.sum(), len(both))

    def loss_terms(self, target: Encoded, source: Encoded | None, *others: Tensor | None) -> dict[str, Tensor]:
        """The target's span loss, and the ``margin`` of stage 1 or the ``contrast`` of stage 2."""
        terms = {"target": span_loss(target)}
        if source is None or source is target:
            gold, context = torch.stack([target.starts, target.ends], 1), context_tokens(target.mask, target.content)
            options = target.holds_answer, self.config.candidates, self.config.margin
            return terms | {"margin": margin_loss(target.logits, context, gold, *options)}
        return terms | {"contrast": self.contrast(target, source)}

    def weights(self, terms: Container[str]) -> dict[str, float]:
        """``L^T + margin``, then ``L^T + contrast``."""
        return super().weights(terms) | {"margin": 1.0, "contrast": self.config.contrast}


class AaclTrainer(Trainer):
    """Trains on trans-train's very batches; in the second half of the steps (stage 2) their source is read beside.

    Args:
        parts: pairs; their source is what stage 2 reads.
        model, config, given, named: see :class:`~xsta_lib.training.trainer.Trainer`.
    """

    def __init__(self, model: AaclForQuestionAnswering, parts: Sequence[Part], config: TrainingConfig, *given, **named):
        rows = [replace(row, source=-1) for row in rows_of(parts)]
        super().__init__(model, parts, config, *given, rows=rows, **named)

    def _inputs(self, rows: Sequence[Row], back_translated: bool) -> dict:
        inputs, part = super()._inputs(rows, back_translated), self.parts[rows[0].part]
        if part.source is None or self.step < self.config.steps // 2 or not self.model.config.contrast:
            return inputs
        paired = part.paired[[row.target for row in rows]]
        source = collate_windows(part.source, paired.clip(0), self.pad_id)
        source["holds_answer"] &= torch.from_numpy(paired >= 0)  # a question without its source has no contrast
        return inputs | {"source": source}


AutoConfig.register("x-aa-cl", AaclConfig)
AutoModelForQuestionAnswering.register(AaclConfig, AaclForQuestionAnswering)
