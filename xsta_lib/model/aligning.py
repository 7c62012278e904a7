"""Multi-Granularity Semantic Alignment (MGSA, section 3.4): one loss for sentences, one for tokens.

Axes: B batch, N_S and N_T source and target tokens, H hidden size, A attention heads. Both losses are in nats.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from . import batch

TOKEN_ALIGNMENTS = ("hidden", "cross-attention")


def mean_pool(states: Tensor, mask: Tensor) -> Tensor:
    """Mean of (B, N, H) states over the real tokens: (B, H), in at least float32."""
    states = states.to(torch.promote_types(states.dtype, torch.float32))
    weights = mask[..., None].to(states.dtype)
    return (states * weights).sum(1) / weights.sum(1).clamp_min(1)


def sentence_alignment(source: Tensor, target: Tensor, passages: Tensor | None, temperature: float = 0.05) -> Tensor:
    """L_align_S: InfoNCE with cosine similarity; the anchor is the source, its translation the positive.

    Negatives are the other passages' translations in the whole batch; rows of the same passage (another question about
    it, or a second window) are never each other's negatives.

    Args:
        source, target: (B, H) sentence vectors of a pair in the same row.
        passages: (B,) equal numbers for rows of the same passage; ``None``: no two rows are of one.
        temperature: tau, 0.05 in the paper.
    """
    source, target = (vectors.to(torch.promote_types(vectors.dtype, torch.float32)) for vectors in (source, target))
    first, (targets,) = batch.gather(target)
    with torch.autocast(source.device.type, enabled=False):  # a cosine in bfloat16 is too coarse for this temperature
        logits = F.normalize(source, dim=-1) @ F.normalize(targets, dim=-1).T / temperature
    rows = torch.arange(len(logits), device=logits.device)
    if passages is not None:
        _, (others,) = batch.gather(passages)
        same = passages[:, None] == others[None, :]
        same[rows, first + rows] = False
        logits = logits.masked_fill(same, torch.finfo(logits.dtype).min)
    return F.cross_entropy(logits, first + rows)


def row_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean of (B, N) values over the real tokens: (B,)."""
    weights = mask.to(values.dtype)
    return (values * weights).sum(1) / weights.sum(1).clamp_min(1)


def row_entropy(probabilities: Tensor) -> Tensor:
    """-sum p log p over the last axis, with 0 log 0 = 0."""
    return -torch.special.xlogy(probabilities, probabilities.clamp_min(torch.finfo(probabilities.dtype).tiny)).sum(-1)


def token_alignment(target: Tensor, source: Tensor, target_mask: Tensor, source_mask: Tensor) -> Tensor:
    """L_align_T: entropy of ``a = softmax(h_T h_S^T / sqrt(H))`` at the input of the sharing layer.

    The mean over a row's real target tokens, then over the rows, of the entropy over the real source tokens.

    Args:
        target: (B, N_T, H), source: (B, N_S, H), with their masks.
    """
    target, source = (states.to(torch.promote_types(states.dtype, torch.float32)) for states in (target, source))
    with torch.autocast(target.device.type, enabled=False):
        scores = target @ source.transpose(-1, -2) / target.shape[-1] ** 0.5
    scores = scores.masked_fill(~source_mask[:, None, :].bool(), torch.finfo(scores.dtype).min)
    return row_mean(row_entropy(scores.softmax(-1)), target_mask).mean()


def token_alignment_release(cross_attention: Tensor) -> Tensor:
    """The release's form: entropy of the head-averaged cross-attention plus that of its transpose.

    The transpose is not renormalised and padded rows count, as in the release.

    Args:
        cross_attention: (B, A, N_T, N_S).
    """
    averaged = cross_attention.mean(1)
    return row_entropy(averaged).mean() + row_entropy(averaged.transpose(-1, -2)).mean()
