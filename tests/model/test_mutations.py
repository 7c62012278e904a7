"""One wrong term in each equation must be seen by its comparison with the reference."""

from collections.abc import Callable
from typing import Any

import compare
import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from xsta_lib.baselines import mixup
from xsta_lib.baselines.mixup import MixupForQuestionAnswering, MixupMixin
from xsta_lib.model import aligning, modeling, sharing, teaching
from xsta_lib.model.modeling import Encoded, XStaForQuestionAnswering
from xsta_lib.model.sharing import SharingContext, SharingMixin
from xsta_lib.model.teaching import RepresentationNorm

# The right ones, for wrong ones that build on them.
ENTROPY, SENTENCES = aligning.row_entropy, aligning.sentence_alignment
OBJECTIVE, LIKELIHOOD = XStaForQuestionAnswering.objective, teaching.gold_log_likelihood
WEIGHTS = XStaForQuestionAnswering.weights
SHARING, MIXUP = SharingMixin.init_sharing, MixupMixin.forward


def unmasked_span_loss(side: Encoded) -> Tensor:
    """Padding in the span loss."""
    return (F.cross_entropy(side.logits[..., 0], side.starts) + F.cross_entropy(side.logits[..., 1], side.ends)) / 2


def unmasked_softmax(logits: Tensor, mask: Tensor) -> Tensor:
    """A softmax that counts padding, which is zeroed afterwards."""
    return logits.softmax(1) * mask[..., None]


def unmasked_attention(query: Tensor, key: Tensor, key_mask: Tensor) -> Tensor:
    """Attention that looks at padding."""
    return (query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5).softmax(-1)


def swapped_correction(self, target: Tensor, context: SharingContext) -> Tensor:
    """f reads the target first."""
    source = context.source_input * context.source_mask[..., None]
    target = sharing.fit_length(target * context.mask[..., None], source.shape[1])
    return context.source_input + self.correction(torch.cat([target, source], -1))


def swapped_weighting(self, mode: str, lambda_0: float, weighting: str, *rest: float) -> None:
    """lambda and 1 - lambda the other way round."""
    SHARING(self, mode, lambda_0, "paper" if weighting == "release" else "release", *rest)


def unbiased_statistics(self, states: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Variance over n - 1."""
    tokens = states[mask.bool()]
    return tokens.mean(0), tokens.var(0, unbiased=True)


def token_statistics(self, states: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """The paper's statistics in place of the release's."""
    tokens = states[mask.bool()]
    return tokens.mean(0), tokens.var(0, unbiased=False)


def transposed(attention: Tensor) -> Tensor:
    """The transposed attention made a distribution."""
    mean = attention.mean(1)
    other = mean.transpose(-1, -2)
    other = other / other.sum(-1, keepdim=True).clamp_min(1e-12)
    return ENTROPY(mean).mean() + ENTROPY(other).mean()


def averages_with_start(self, rows: list[int]) -> tuple[Tensor, Tensor]:
    """The running averages as they are, their start values' share included."""
    return self.running_mean[rows], self.running_var[rows]


def all_negatives(source: Tensor, target: Tensor, ids: Tensor) -> Tensor:
    """A question's other window as a negative."""
    return SENTENCES(source, target, torch.arange(len(ids)))


def entropy_in_bits(probabilities: Tensor) -> Tensor:
    """Logarithm to base 2."""
    return ENTROPY(probabilities) / np.log(2)


def swapped_alpha(self, terms: dict[str, Tensor]) -> Tensor:
    """alpha on the target, 1 - alpha on the source."""
    return OBJECTIVE(self, terms | {"source": terms["target"], "target": terms["source"]})


def half_distance(self, terms: dict[str, Tensor]) -> dict[str, float]:
    """X-MIXUP's distance counted half."""
    return WEIGHTS(self, terms) | {"distance": 0.5}


def block_input(self, hidden_states: Tensor, mask: Tensor | None = None, sharing: Any = None, **rest: Any) -> tuple:
    """X-MIXUP's target reads the source's states before the block, not behind it."""
    result = MIXUP(self, hidden_states, mask, sharing=sharing, **rest)
    sharing.layer_input = hidden_states
    return result


# The equation and its wrong term; owner and name of what is replaced, and by what; the comparison that must fail, and
# its arguments.
MUTATIONS = [
    ("3.1 p: padding", modeling, "masked_softmax", unmasked_softmax, compare.distributions, ("release",)),
    ("3.1 L_MRC: padding", modeling, "span_loss", unmasked_span_loss, compare.span_loss, ()),
    ("3.2 f: order", SharingMixin, "corrected_source", swapped_correction, compare.correction, ()),
    ("3.2 MHA: padding", sharing, "attention_probabilities", unmasked_attention, compare.sharing_attention, ()),
    ("3.2 lambda: b", SharingMixin, "mixing", lambda self: 0.3 * self.mixing_weight, compare.sharing_attention, ()),
    ("3.2 mix: 1 - lambda", SharingMixin, "init_sharing", swapped_weighting, compare.sharing_attention, ()),
    ("3.3 Rep-Norm: bias", RepresentationNorm, "batch_statistics", unbiased_statistics, compare.rep_norm, ()),
    ("release Rep-Norm", RepresentationNorm, "batch_statistics", token_statistics, compare.rep_norm, ("sequences",)),
    ("3.3 epsilon", RepresentationNorm, "eps", 1e-5, compare.small_variance, ()),
    ("3.3 momentum", RepresentationNorm, "momentum", 0.9, compare.rep_norm, ()),
    ("3.3 inference: start", RepresentationNorm, "averages", averages_with_start, compare.rep_norm, ()),
    ("3.3 teacher: padding", teaching, "attention_probabilities", unmasked_attention, compare.attentive_teacher, ()),
    ("release teacher", teaching, "masked_softmax", unmasked_softmax, compare.attentive_teacher, ("logits",)),
    ("3.3 L_tg: sum", teaching, "gold_log_likelihood", lambda *p: 2 * LIKELIHOOD(*p), compare.teacher_loss, ()),
    ("3.3 calibration: sum", modeling, "calibrate", torch.add, compare.distributions, ()),
    ("3.4 r: [CLS]", aligning, "mean_pool", lambda h, mask: h[:, 0], compare.sentence_vector, ()),
    ("3.4 L_align_S: windows", aligning, "sentence_alignment", all_negatives, compare.sentence_alignment, ()),
    ("3.4 L_align_T: bits", aligning, "row_entropy", entropy_in_bits, compare.token_alignment, ()),
    ("release tokens", aligning, "token_alignment_release", transposed, compare.token_alignment_release, ()),
    ("3.5 L: alpha", XStaForQuestionAnswering, "objective", swapped_alpha, compare.objective, ()),
    ("X-MIXUP lambda: bits", mixup, "row_entropy", entropy_in_bits, compare.mixup_layer, ()),
    ("X-MIXUP layer: source", MixupMixin, "forward", block_input, compare.mixup_layer, ()),
    ("X-MIXUP distance: [CLS]", mixup, "mean_pool", lambda h, mask: h[:, 0], compare.mixup_loss, ()),
    ("X-MIXUP L: distance", MixupForQuestionAnswering, "weights", half_distance, compare.mixup_loss, ()),
    ("X-MIXUP sampling: exp", mixup, "gold_probability", lambda i, k=2e3: k / (k + i), compare.gold_probability, ()),
]


@pytest.mark.parametrize(
    ("owner", "attribute", "wrong", "comparison", "arguments"),
    [row[1:] for row in MUTATIONS],
    ids=[row[0] for row in MUTATIONS],
)
def test_a_wrong_term_is_seen(
    monkeypatch: pytest.MonkeyPatch, owner: Any, attribute: str, wrong: Any, comparison: Callable, arguments: tuple
) -> None:
    comparison(*arguments)
    monkeypatch.setattr(owner, attribute, wrong)
    with pytest.raises(AssertionError):
        comparison(*arguments)
