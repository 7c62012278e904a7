"""What the model's passes return, and the span loss.

Axes: B batch, N tokens (N_S source, N_T target), H hidden size, A heads.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers.utils import ModelOutput


@dataclass
class Encoded:
    """One language's pass: all that a target needs of its source.

    Attributes:
        mask: (B, N) 1 on real tokens.
        states: (B, N, H) last hidden states ``h^L``.
        normalised: (B, N, H) ``h~``; ``h^L`` itself without Rep-Norm.
        layer_input: (B, N, H) states at the input of the sharing layer.
        logits: (B, N, 2) start and end logits, float32.
        cross_attention: (B, A, N, N_S) of a target pass, if kept.
        mixing: lambda of a target pass.
    """

    mask: Tensor
    states: Tensor
    normalised: Tensor
    layer_input: Tensor | None
    logits: Tensor
    cross_attention: Tensor | None = None
    mixing: Tensor | None = None

    def map(self, change: Callable[[Tensor], Tensor]) -> "Encoded":
        """The same with ``change`` applied to every tensor (moving, slicing rows)."""
        values = {name: value if value is None else change(value) for name, value in vars(self).items()}
        return Encoded(**values)


@dataclass
class XStaOutput(ModelOutput):
    """What a forward pass returns; distributions are (B, N_T, 2) over the target's real tokens.

    Attributes:
        loss: the objective of section 3.5, if gold positions were given.
        start_logits, end_logits: (B, N_T) of the target's own span head.
        target: ``p_T``. teacher: ``p_{T|S}``. calibrated: ``p~_T``, what answers are read from.
        losses: the terms, detached: ``source``, ``target``, ``teacher``, ``sentence``, ``token`` (X-MIXUP:
            ``distance``).
        mixing: lambda, where a source was read.
        teacher_mass: (B, 2) column sums of the teacher before renormalising.
        cross_attention: (B, A, N_T, N_S) of the sharing layer. teacher_attention: (B, N_T, N_S). Both on request.
    """

    loss: Tensor | None = None
    start_logits: Tensor | None = None
    end_logits: Tensor | None = None
    target: Tensor | None = None
    teacher: Tensor | None = None
    calibrated: Tensor | None = None
    losses: dict[str, Tensor] | None = None
    mixing: Tensor | None = None
    teacher_mass: Tensor | None = None
    cross_attention: Tensor | None = None
    teacher_attention: Tensor | None = None


def span_loss(logits: Tensor, mask: Tensor, starts: Tensor, ends: Tensor) -> Tensor:
    """L_MRC of one language: cross-entropy over real tokens, start and end averaged, mean over rows (section 3.1)."""
    logits = logits.masked_fill(~mask[..., None].bool(), torch.finfo(logits.dtype).min)
    return (F.cross_entropy(logits[..., 0], starts) + F.cross_entropy(logits[..., 1], ends)) / 2


def average_outputs(outputs: Sequence[XStaOutput], rows: Sequence[int]) -> XStaOutput:
    """Loss, terms, lambda and column sums of several batches as of one, every row counting alike.

    Args:
        outputs: of at least one batch; a term that a batch lacks is averaged over the others.
        rows: each batch's number of rows.
    """
    pairs = list(zip(outputs, rows, strict=True))

    def mean(values: Sequence[tuple[Tensor, int]]) -> Tensor:
        return sum(value * count for value, count in values) / sum(count for _, count in values)

    names = {name for output in outputs for name in output.losses}
    terms = {name: [(o.losses[name], count) for o, count in pairs if name in o.losses] for name in sorted(names)}
    mixed = [(output.mixing, count) for output, count in pairs if output.mixing is not None]
    masses = [output.teacher_mass for output in outputs if output.teacher_mass is not None]
    return XStaOutput(
        loss=mean([(output.loss, count) for output, count in pairs]),
        losses={name: mean(values) for name, values in terms.items()},
        mixing=mean([(value.mean(), count) for value, count in mixed]) if mixed else None,
        teacher_mass=torch.cat(masses) if masses else None,
    )
