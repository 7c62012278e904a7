"""X-MIXUP (Yang et al., 2022), a system that X-STA is compared with (section 4.3).

The target's states are mixed with what they find in the source's, in one layer. Axes: B batch, N_S and N_T source and
target tokens, H hidden size, A heads.
"""

import math
from collections.abc import Container
from functools import cache

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoConfig, AutoModelForQuestionAnswering

from ..model.aligning import mean_pool, row_entropy, row_mean
from ..model.modeling import Encoded, XStaForQuestionAnswering
from ..model.sharing import SharingContext, attention_probabilities, find_self_attention, split_heads
from .configuration import PlainConfig

DECAY = 2000.0  # steps


class MixupMixin:
    """Added in front of an encoder's attention block (self-attention, projection, residual, norm).

    Each side runs the block. Then the target's result, as query, attends to the source's result through the same
    weights, and ``target = LayerNorm(lambda cross + (1 - lambda) own)``; the layer's feed-forward follows. Gradients
    flow into the source. ``lambda = lambda_0 sigmoid(w ECA + b)`` a sample, ECA the entropy of the head-averaged
    cross-attention in both directions, over real tokens (or those of the content, where ``sharing_keys`` says so).
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
        entropy = row_mean(row_entropy(forth.mean(1)), target_mask)
        entropy = entropy + row_mean(row_entropy(back.mean(1)), source_mask)
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
        forth = self._probabilities(own, source, sharing.source_keys)
        back = self._probabilities(source, own, sharing.keys)
        sharing.mixing = self.mixing(forth, back, sharing.keys, sharing.source_keys)
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


def representation_distance(source: Tensor, target: Tensor, source_mask: Tensor, target_mask: Tensor) -> Tensor:
    """X-MIXUP's consistency term: mean squared distance of the mean-pooled (B, N, H) states."""
    return F.mse_loss(mean_pool(target, target_mask), mean_pool(source, source_mask))


def gold_probability(step: int) -> float:
    """X-MIXUP's scheduled sampling: how often a training step reads the gold source, not a back-translated one.

    ``k / (k + exp(step / k))``, ``k`` being ``DECAY``; 1 where there is no back-translation.
    """
    return DECAY / (DECAY + math.exp(min(step / DECAY, 700.0)))


class MixupConfig(PlainConfig):
    """Configuration of :class:`MixupForQuestionAnswering`: a plain reader's, and X-MIXUP's two own numbers.

    Args:
        lambda_0: the largest lambda.
        distance: weight of the mean squared distance between the two sides' representations.
    """

    model_type = "x-mixup"

    lambda_0: float = 0.5
    distance: float = 1.0

    @property
    def reads_pairs(self) -> bool:
        """Always: a target is mixed with its source."""
        return True


class MixupForQuestionAnswering(XStaForQuestionAnswering):
    """The reader with X-MIXUP's layer and loss: span losses weighted 0.2 and 0.8, plus the distance."""

    config_class = MixupConfig

    def install_sharing(self) -> None:
        """Let one layer mix, in place.

        Raises:
            ValueError: an encoder that is not built like BERT.
        """
        find_self_attention(self.encoder, self.config.sharing_layer)
        block = self.sharing_layer
        if not all(hasattr(getattr(block, "output", None), part) for part in ("dense", "dropout", "LayerNorm")):
            name = self.config.encoder.model_type
            raise ValueError(f"encoder {name!r} cannot take X-MIXUP: no dense/LayerNorm in its attention")
        block.__class__ = _mixup_class(type(block))
        block.init_mixup(self.config.lambda_0)

    @property
    def sharing_layer(self) -> nn.Module:
        """The attention block that mixes, with its parameters w and b."""
        return self.encoder.encoder.layer[self.config.sharing_layer - 1].attention

    def loss_terms(self, target: Encoded, source: Encoded | None, *others: Tensor | None) -> dict[str, Tensor]:
        """The span losses, and the ``distance`` of a pair."""
        terms = super().loss_terms(target, source, *others)
        if "source" in terms:
            terms["distance"] = representation_distance(source.states, target.states, source.mask, target.mask)
        return terms

    def weights(self, terms: Container[str]) -> dict[str, float]:
        """``alpha L^S + (1 - alpha) L^T + distance``; a target read alone has its span loss."""
        return super().weights(terms) | {"distance": self.config.distance}


AutoConfig.register("x-mixup", MixupConfig)
AutoModelForQuestionAnswering.register(MixupConfig, MixupForQuestionAnswering)
