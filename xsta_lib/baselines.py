"""The systems X-STA is compared with (section 4.3), on the same encoder, loop and predictor.

Zero-shot and trans-train are plain readers: the first trains on the source language, the second on the union of source
and translated data. X-MIXUP (Yang et al., 2022) mixes the target's states with what they find in the source's, in one
layer. Axes: B batch, N_S and N_T source and target tokens, H hidden size, A heads.
"""

import math
from functools import cache

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .aligning import mean_pool, row_entropy
from .sharing import SharingContext, attention_probabilities, find_self_attention, split_heads

LAMBDA_0 = 0.5
GOLD_DECAY = 2000.0


def masked_row_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean of (B, N) values over the real tokens: (B,)."""
    weights = mask.to(values.dtype)
    return (values * weights).sum(1) / weights.sum(1).clamp_min(1)


class MixupMixin:
    """Added in front of an encoder's attention block (self-attention, projection, residual, norm).

    Each side runs the block. Then the target's result, as query, attends to the source's result through the same
    weights, and ``target = LayerNorm(lambda cross + (1 - lambda) own)``; the layer's feed-forward follows. Gradients
    flow into the source. ``lambda = lambda_0 sigmoid(w ECA + b)`` a sample, ECA the entropy of the head-averaged
    cross-attention in both directions, over real tokens.
    """

    def init_mixup(self, lambda_0: float) -> None:
        """Add ``w`` = 1 and ``b`` = 0."""
        weight = self.self.query.weight
        self.lambda_0 = lambda_0
        self.mixing_weight = nn.Parameter(torch.ones((), device=weight.device, dtype=weight.dtype))
        self.mixing_bias = nn.Parameter(torch.zeros((), device=weight.device, dtype=weight.dtype))

    def _probabilities(self, queries: Tensor, keys: Tensor, key_mask: Tensor) -> Tensor:
        heads = self.self.num_attention_heads
        return attention_probabilities(
            split_heads(self.self.query(queries), heads), split_heads(self.self.key(keys), heads), key_mask
        )

    def mixing(self, forth: Tensor, back: Tensor, target_mask: Tensor, source_mask: Tensor) -> Tensor:
        """lambda of every sample, (B,), from the attentions (B, A, N_T, N_S) and (B, A, N_S, N_T)."""
        entropy = masked_row_mean(row_entropy(forth.mean(1)), target_mask)
        entropy = entropy + masked_row_mean(row_entropy(back.mean(1)), source_mask)
        return self.lambda_0 * torch.sigmoid(self.mixing_weight * entropy + self.mixing_bias)

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        sharing: SharingContext | None = None,
        **kwargs,
    ):
        """The block's result, mixed with what it finds in the source's where there is one."""
        own, weights = super().forward(hidden_states, attention_mask, **kwargs)
        if sharing is None:
            return own, weights
        sharing.layer_input = own
        source = sharing.source_input
        if source is None:
            return own, weights
        forth = self._probabilities(own, source, sharing.source_mask)
        back = self._probabilities(source, own, sharing.mask)
        sharing.mixing = self.mixing(forth, back, sharing.mask, sharing.source_mask)
        if sharing.keep_attention:
            sharing.cross_attention = forth
        values = split_heads(self.self.value(source), self.self.num_attention_heads)
        found = F.dropout(forth, self.self.dropout.p, self.training).to(values.dtype) @ values
        cross = self.output.dropout(self.output.dense(found.transpose(1, 2).flatten(2)))
        share = sharing.mixing[:, None, None].to(own.dtype)
        return self.output.LayerNorm(share * cross + (1 - share) * own), weights


@cache
def _mixup_class(base: type) -> type:
    return type(f"Mixup{base.__name__}", (MixupMixin, base), {})


def find_attention_block(encoder: nn.Module, layer: int) -> nn.Module:
    """The attention block of layer ``layer``, counted from 1.

    Raises:
        ValueError: no such layer, or an encoder that is not built like BERT.
    """
    find_self_attention(encoder, layer)
    block = encoder.encoder.layer[layer - 1].attention
    if not all(hasattr(getattr(block, "output", None), part) for part in ("dense", "dropout", "LayerNorm")):
        raise ValueError(
            f"encoder {encoder.config.model_type!r} cannot take X-MIXUP: no dense/LayerNorm in its attention"
        )
    return block


def install_mixup(encoder: nn.Module, layer: int, lambda_0: float = LAMBDA_0) -> nn.Module:
    """Give one layer of an encoder X-MIXUP's mixing, in place; returns the layer's attention block.

    Raises:
        ValueError: see :func:`find_attention_block`.
    """
    block = find_attention_block(encoder, layer)
    block.__class__ = _mixup_class(type(block))
    block.init_mixup(lambda_0)
    return block


def representation_distance(source: Tensor, target: Tensor, source_mask: Tensor, target_mask: Tensor) -> Tensor:
    """X-MIXUP's consistency term: mean squared distance of the mean-pooled (B, N, H) states."""
    return F.mse_loss(mean_pool(target, target_mask), mean_pool(source, source_mask))


def gold_probability(step: int, decay: float = GOLD_DECAY) -> float:
    """X-MIXUP's scheduled sampling: how often a training step reads gold English rather than back-translated.

    ``k / (k + exp(step / k))``; 1 where there is no back-translation.
    """
    return decay / (decay + math.exp(min(step / decay, 700.0)))
