"""Attentive Teacher-Guided Calibration (ATGC, section 3.3): normalise, transfer the source's answer, calibrate.

Axes: B batch, N_S and N_T source and target tokens, H hidden size, A attention heads. The last axis of a distribution
holds the start and the end.
"""

import logging
from typing import NamedTuple

import torch
from torch import Tensor, nn

from . import batch
from .sharing import attention_probabilities, split_heads

logger = logging.getLogger(__name__)

TEACHER_FORMS = ("renormalised", "raw", "logits")
NORMALISATIONS = ("per-language", "shared", "none")
STATISTICS = ("tokens", "sequences")
TINY = 1e-12  # keeps log and division finite where a distribution is 0


def masked_softmax(logits: Tensor, mask: Tensor) -> Tensor:
    """Softmax over the real tokens, in at least float32: (B, N, 2), 0 on padding."""
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return logits.masked_fill(~mask[..., None].bool(), torch.finfo(logits.dtype).min).softmax(dim=1)


class RepresentationNorm(nn.Module):
    """Rep-Norm (section 3.3): ``h~ = (h^L - mu) / sqrt(var + 1e-8)``, one mean and variance a language.

    Training uses the batch's statistics over all real tokens (biased variance, gradients through both) and updates the
    language's running averages (start 0 and 1, momentum 0.1); inference uses those without the share that the start
    still has in them (0.9 to the power of the updates: nothing after hundreds of batches, more than half up to the
    sixth). The paper calls the statistics
    "linguistically independent", read here as one set a language, as in the release; ``shared`` keeps one set instead.

    Args:
        hidden_size: H.
        languages: the languages that have statistics, the source language first.
        shared: keep one set for all languages.
        statistics: ``"tokens"`` averages over the batch's tokens; ``"sequences"`` (the release) over the means of its
            sequences.
    """

    eps = 1e-8
    momentum = 0.1

    def __init__(self, hidden_size: int, languages: list[str], shared: bool = False, statistics: str = "tokens"):
        super().__init__()
        self.languages, self.shared, self.statistics = list(languages), shared, statistics
        rows = 1 if shared else len(self.languages)
        self.register_buffer("running_mean", torch.zeros(rows, hidden_size))
        self.register_buffer("running_var", torch.ones(rows, hidden_size))
        self.register_buffer("updates", torch.zeros(rows, dtype=torch.long))
        self._warned: set[str] = set()

    def batch_statistics(self, states: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and biased variance, (H,) each, of (B, N, H) states over the whole batch's real tokens."""
        tokens = weights = mask[..., None].to(states.dtype)
        if self.statistics == "sequences":  # the release's mean; its variance, too, counts tokens
            weights = tokens / tokens.sum(1, keepdim=True).clamp_min(1)

        def average(values: Tensor, weights: Tensor) -> Tensor:
            total = batch.total(weights.sum()).clamp_min(TINY)
            return batch.total((values * weights).sum((0, 1))) / total

        mean = average(states, weights)
        return mean, average((states - mean).square(), tokens)

    def averages(self, rows: list[int]) -> tuple[Tensor, Tensor]:
        """Running means and variances of some rows, (rows, H) each, without the share of their start values."""
        updates = self.updates[rows, None].double()
        start = ((1 - self.momentum) ** updates).to(self.running_mean.dtype)
        mean, variance = self.running_mean[rows] / (1 - start), (self.running_var[rows] - start) / (1 - start)
        return mean, variance.clamp_min(0)

    def stored_statistics(self, language: str) -> tuple[Tensor, Tensor]:
        """Mean and variance of a language, (H,) each; of an unknown one, the average over the trained targets."""
        counts = self.updates.tolist()
        row = 0 if self.shared else self.languages.index(language) if language in self.languages else -1
        if row >= 0 and counts[row]:
            mean, variance = self.averages([row])
            return mean[0], variance[0]
        trained = [row for row, count in enumerate(counts) if count]
        chosen = [
            row for row in trained if row > 0
        ] or trained  # the source stands in only where no target was trained on
        if not chosen:
            return torch.zeros_like(self.running_mean[0]), torch.ones_like(self.running_var[0])
        if language not in self._warned:
            self._warned.add(language)
            names = ", ".join(self.languages[row] for row in chosen)
            said = "not trained on the language %r: read with the average of %s; a language is a code such as 'de'"
            logger.warning(said, language, names)
        mean, variance = self.averages(chosen)
        return mean.mean(0), variance.mean(0)

    @torch.no_grad()
    def update(self, language: str, mean: Tensor, variance: Tensor) -> None:
        """Move the language's running averages towards the batch's statistics; NaN and infinity leave them alone."""
        if not self.shared and language not in self.languages:
            raise ValueError(f"language {language!r} has no statistics; the model was made for {self.languages}")
        row = 0 if self.shared else self.languages.index(language)
        finite = mean.isfinite().all() & variance.isfinite().all()  # on the device: asking would wait for it
        for running, now in ((self.running_mean, mean), (self.running_var, variance)):
            moved = running[row].lerp(now.to(running.dtype), self.momentum)
            running[row] = torch.where(finite, moved, running[row])
        self.updates[row] += finite

    def forward(self, states: Tensor, mask: Tensor, language: str) -> Tensor:
        """(B, N, H) states of one language, normalised, in at least float32.

        Raises:
            ValueError: training on a language that was not announced.
        """
        states = states.to(torch.promote_types(states.dtype, torch.float32))
        if self.training:
            mean, variance = self.batch_statistics(states, mask)
            self.update(language, mean, variance)
        else:
            mean, variance = (value.to(states.dtype) for value in self.stored_statistics(language))
        return (states - mean) / (variance + self.eps).sqrt()


class Taught(NamedTuple):
    """What the teacher says of a target.

    Attributes:
        p: (B, N_T, 2) ``p_{T|S}``.
        logits: (B, N_T, 2) the transferred logits, or the logarithm of ``p``.
        sums: (B, 2) column sums before renormalising, 1 for a teacher that already is a distribution.
        attention: (B, N_T, N_S), heads averaged.
    """

    p: Tensor
    logits: Tensor
    sums: Tensor
    attention: Tensor


class AttentiveTeacher(nn.Module):
    """The attentive teacher ``p_{T|S} = MHA(h~_T, h~_S, sg(p_S))`` (section 3.3).

    Own query and key projections, A heads, no value or output projection and no dropout; the heads are averaged.

    Args:
        hidden_size: H.
        heads: A.
        form: ``"renormalised"`` divides by the sum over the target's real tokens, which makes the transferred values
            the distribution the paper calls them; ``"raw"`` leaves them; ``"logits"`` (the release) transfers the
            source's logits and takes a softmax over the target's positions.
        gradient: let gradients flow into query and key inputs (the release's XLM-R copy stops them).
        std: standard deviation of the initial weights.
    """

    def __init__(self, hidden_size: int, heads: int, form: str = "renormalised", gradient: bool = True, std=0.02):
        super().__init__()
        self.heads, self.form, self.gradient = heads, form, gradient
        self.query = nn.Linear(hidden_size, hidden_size)
        self.key = nn.Linear(hidden_size, hidden_size)
        for linear in (self.query, self.key):
            nn.init.normal_(linear.weight, std=std)
            nn.init.zeros_(linear.bias)

    def attention(self, target: Tensor, source: Tensor, source_mask: Tensor) -> Tensor:
        """Head-averaged attention of target (B, N_T, H) to source (B, N_S, H) tokens: (B, N_T, N_S), float32."""
        target, source = target.to(self.query.weight.dtype), source.to(self.key.weight.dtype)
        if not self.gradient:
            target, source = target.detach(), source.detach()
        query, key = split_heads(self.query(target), self.heads), split_heads(self.key(source), self.heads)
        return attention_probabilities(query, key, source_mask).mean(1)

    def forward(
        self, target: Tensor, source: Tensor, values: Tensor, target_mask: Tensor, source_mask: Tensor
    ) -> Taught:
        """``MHA(h~_T, h~_S, p_S)``: the source's answer, transferred to the target's tokens.

        Args:
            target: (B, N_T, H) ``h~_T``, the queries.
            source: (B, N_S, H) ``h~_S``, the keys.
            values: (B, N_S, 2) ``p_S``, 0 on padding; the source's logits for the form ``logits``. No gradient flows
                into them.
            target_mask: (B, N_T). source_mask: (B, N_S).
        """
        attention = self.attention(target, source, source_mask)
        with torch.autocast(attention.device.type, enabled=False):
            moved = attention @ values.detach().to(attention.dtype)
        if self.form == "logits":
            p = masked_softmax(moved, target_mask)
            return Taught(p, moved, p.sum(1), attention)
        moved = moved * target_mask[..., None].to(attention.dtype)
        sums = moved.sum(1)
        p = moved / sums[:, None].clamp_min(TINY) if self.form == "renormalised" else moved
        return Taught(p, p.clamp_min(TINY).log(), sums, attention)


def gold_log_likelihood(p: Tensor, starts: Tensor, ends: Tensor) -> Tensor:
    """Mean of log p at the gold start and end, (B,): the negated row losses of L_tg."""
    rows = torch.arange(len(p), device=p.device)
    chosen = torch.stack([p[rows, starts, 0], p[rows, ends, 1]], dim=-1)
    return chosen.clamp_min(TINY).log().mean(-1)


def teacher_loss(p: Tensor, starts: Tensor, ends: Tensor, counted: Tensor) -> Tensor:
    """L_tg (section 3.3): cross-entropy of the teacher at the target's gold start and end, averaged over both.

    Args:
        p: (B, N_T, 2) the teacher's distribution.
        starts, ends: (B,) gold token positions in the target.
        counted: (B,) true where both windows hold the answer; the mean runs over these rows, 0 if there are none.
    """
    counted = counted.to(p.dtype)
    return batch.mean(-(gold_log_likelihood(p, starts, ends) * counted).sum(), counted.sum(), len(p))


def calibrate(teacher: Tensor, target: Tensor) -> Tensor:
    """``p~_T = (p_{T|S} + p_T) / 2`` (section 3.3), distributions of shape (B, N_T, 2)."""
    return (teacher + target) / 2
