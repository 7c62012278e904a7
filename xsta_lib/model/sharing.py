"""Gradient-Disentangled Knowledge Sharing (GDKS, section 3.2): one layer reads the source without disturbing it.

Axes: B batch, N_S and N_T source and target tokens, H hidden size, A attention heads.

The layer's self-attention module keeps its class, weights and state-dict names; a mix-in adds the cross-attention.
Everything that a pass brings along (the source's states) or leaves behind (the layer's input) travels in a
:class:`SharingContext`, a keyword argument of the encoder's ``forward``.
"""

from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor, nn
from torch.nn import functional as F

SHARING_MODES = ("gdks", "cross-attention", "none")
WEIGHTINGS = ("paper", "release")
# Encoders whose layers are built like BERT's and were tried; look-alikes may differ inside.
ENCODERS = ("bert", "roberta", "xlm-roberta", "xlm-roberta-xl", "camembert", "electra", "ernie")


@dataclass
class SharingContext:
    """What one pass through the encoder carries to the sharing layer, and what the layer leaves in it.

    Attributes:
        mask: (B, N) 1 on real tokens of this pass.
        source_input: (B, N_S, H) what the source's own pass left in ``layer_input``; ``None`` for a plain pass.
        source_mask: (B, N_S) 1 on real source tokens.
        keep_attention: ask for the cross-attention probabilities; without a source for those of the pass to itself
            (S = T: there the two are the same).
        keys, source_keys: (B, N) and (B, N_S) 1 on the tokens that the other side may attend to; all real ones if
            ``None``.
        layer_input: (B, N, H) filled by the layer: this pass's states at its input (X-MIXUP: behind its attention).
        cross_attention: (B, A, N_T, N_S) filled by the layer if asked for, in float32.
        mixing: lambda, a scalar (X-MIXUP: one a sample, (B,)), filled by the layer when it reads a source.
    """

    mask: Tensor
    source_input: Tensor | None = None
    source_mask: Tensor | None = None
    keep_attention: bool = False
    keys: Tensor | None = None
    source_keys: Tensor | None = None
    layer_input: Tensor | None = None
    cross_attention: Tensor | None = None
    mixing: Tensor | None = None

    def __post_init__(self):
        self.keys = self.mask if self.keys is None else self.keys
        self.source_keys = self.source_mask if self.source_keys is None else self.source_keys


def split_heads(states: Tensor, heads: int) -> Tensor:
    """(B, N, H) to (B, A, N, H / A)."""
    return states.unflatten(-1, (heads, -1)).transpose(1, 2)


def attention_probabilities(query: Tensor, key: Tensor, key_mask: Tensor) -> Tensor:
    """Softmax of scaled dot products, in float32 whatever autocast says.

    Args:
        query: (B, A, N_T, d), already projected and split into heads.
        key: (B, A, N_S, d).
        key_mask: (B, N_S) 1 on real tokens.

    Returns:
        (B, A, N_T, N_S), 0 on padded keys.
    """
    scores = query @ key.transpose(-1, -2)
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
    bias = torch.zeros_like(key_mask, dtype=scores.dtype).masked_fill(~key_mask.bool(), torch.finfo(scores.dtype).min)
    # scaled and masked in one pass: the scores are the largest tensor of a step
    scores = torch.add(bias[:, None, None, :], scores, alpha=query.shape[-1] ** -0.5)
    return scores.softmax(-1)


def fit_length(states: Tensor, length: int) -> Tensor:
    """Cut (B, N, H) to ``length`` positions or extend it with zeros."""
    return F.pad(states[:, :length], (0, 0, 0, max(0, length - states.shape[1])))


class SharingMixin:
    """Added in front of an encoder's self-attention class; see :func:`install_sharing`."""

    def init_sharing(self, mode: str, lambda_0: float, weighting: str, dropout: float, std: float) -> None:
        """Add the parameters: ``w`` = 1, ``b`` = 0, and for GDKS the correction ``f``, Linear(2H -> H)."""
        hidden = self.query.in_features
        like = {"device": self.query.weight.device, "dtype": self.query.weight.dtype}
        self.mode, self.lambda_0, self.weighting = mode, lambda_0, weighting
        self.mixing_weight = nn.Parameter(torch.ones((), **like))
        self.mixing_bias = nn.Parameter(torch.zeros((), **like))
        if mode == "gdks":
            self.correction = nn.Linear(2 * hidden, hidden, **like)
            self.correction_dropout = nn.Dropout(dropout)
            nn.init.normal_(self.correction.weight, std=std)
            nn.init.zeros_(self.correction.bias)

    def mixing(self) -> Tensor:
        """lambda = w * lambda_0 + b, a scalar (section 3.2)."""
        return self.mixing_weight * self.lambda_0 + self.mixing_bias

    def corrected_source(self, target: Tensor, sharing: SharingContext) -> Tensor:
        """h~_S = sg(h_S) + f(sg(h_S), sg(h_T)), (B, N_S, H); ``h_S`` itself under vanilla cross-attention.

        Padding is zeroed and the target brought to the source's length first, so that padding changes nothing.
        """
        source = sharing.source_input
        if self.mode != "gdks":
            return source
        source = source.detach()
        both = torch.cat(
            [
                source * sharing.source_mask[..., None].to(source.dtype),
                fit_length(target.detach() * sharing.mask[..., None].to(target.dtype), source.shape[1]),
            ],
            dim=-1,
        )
        return source + self.correction(self.correction_dropout(both))

    def cross_attention(self, target: Tensor, sharing: SharingContext) -> Tensor:
        """h_{T|S} = MHA(h_T, h~_S, h~_S) with this layer's own projections, (B, N_T, H)."""
        source = self.corrected_source(target, sharing)
        heads = self.num_attention_heads
        query, key, value = (
            split_heads(projection(states), heads)
            for projection, states in ((self.query, target), (self.key, source), (self.value, source))
        )
        drop = self.dropout.p if self.training else 0.0
        if sharing.keep_attention:
            probabilities = attention_probabilities(query, key, sharing.source_keys)
            sharing.cross_attention = probabilities
            mixed = F.dropout(probabilities, drop).to(value.dtype) @ value
        else:
            mixed = self.attend(query, key, value, sharing.source_keys[:, None, None, :].bool(), drop)
        return mixed.transpose(1, 2).flatten(2)

    def attend(self, query: Tensor, key: Tensor, value: Tensor, key_mask: Tensor, dropout: float) -> Tensor:
        """Scaled dot-product attention, (B, A, N_T, d); ``key_mask`` (B, 1, 1, N_S) is true on real tokens."""
        return F.scaled_dot_product_attention(query, key, value, attn_mask=key_mask, dropout_p=dropout)

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        sharing: SharingContext | None = None,
        **kwargs,
    ):
        """The layer's self-attention, mixed with cross-attention to the source where there is one.

        ``mix = (1 - lambda) h_{T|S} + lambda MHA(h_T, h_T, h_T)``; the release weights the two the other way round.
        """
        own, weights = super().forward(hidden_states, attention_mask, **kwargs)
        if sharing is None:
            return own, weights
        sharing.layer_input = hidden_states
        if sharing.source_input is None or self.mode == "none":
            if sharing.keep_attention:
                query, key = (split_heads(p(hidden_states), self.num_attention_heads) for p in (self.query, self.key))
                sharing.cross_attention = attention_probabilities(query, key, sharing.mask)
            return own, weights
        cross = self.cross_attention(hidden_states, sharing)
        sharing.mixing = self.mixing()
        share = sharing.mixing if self.weighting == "release" else 1 - sharing.mixing
        return (share * cross + (1 - share) * own).to(own.dtype), weights


@cache
def _sharing_class(base: type) -> type:
    return type(f"Sharing{base.__name__}", (SharingMixin, base), {})


def find_self_attention(encoder: nn.Module, layer: int) -> nn.Module:
    """The self-attention module of layer ``layer`` (counted from 1) of a BERT-like encoder.

    Raises:
        ValueError: an encoder that is none of ``ENCODERS``.
    """
    name = encoder.config.model_type
    if name not in ENCODERS:
        raise ValueError(f"encoder {name!r} cannot take the sharing layer; use one of {', '.join(ENCODERS)}")
    return encoder.encoder.layer[layer - 1].attention.self


def install_sharing(
    encoder: nn.Module, layer: int, mode: str, lambda_0: float = 0.3, weighting: str = "paper", dropout: float = 0.1
) -> nn.Module:
    """Give one layer of an encoder the ability to share; returns that layer's self-attention module.

    Args:
        encoder: a BERT-like encoder, changed in place; state-dict names and plain outputs stay as they are.
        layer: which layer, counted from 1 (the paper's is the 8th of 12).
        mode: ``"gdks"``, ``"cross-attention"`` (the paper's "w/o GDKS": gradients flow into the source), or ``"none"``.
        lambda_0: initial weight of the target's own attention.
        weighting: ``"paper"`` gives the cross-attended part 1 - lambda, ``"release"`` lambda.
        dropout: dropout before the correction's linear layer.

    Raises:
        ValueError: see :func:`find_self_attention`.
    """
    attention = find_self_attention(encoder, layer)
    attention.__class__ = _sharing_class(type(attention))
    attention.init_sharing(mode, lambda_0, weighting, dropout, getattr(encoder.config, "initializer_range", 0.02))
    return attention
