"""A step's passes: the source's, then those of its targets, in one call. Shapes are those of the model's outputs."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from ..model.modeling import XStaForQuestionAnswering, XStaOutput


def average_outputs(outputs: Sequence[XStaOutput], rows: Sequence[int]) -> XStaOutput:
    """Loss, terms, lambda and column sums of several languages' rows as of one batch, every row counting alike.

    Args:
        outputs: of at least one language; a term that one lacks is averaged over the others.
        rows: each one's number of rows.
    """
    pairs = list(zip(outputs, rows, strict=True))

    def mean(values: Sequence[tuple[Tensor, int]]) -> Tensor:
        return sum(value * count for value, count in values) / sum(count for _, count in values)

    names = {name for output in outputs for name in output.losses}
    terms = {name: [(o.losses[name], count) for o, count in pairs if name in o.losses] for name in sorted(names)}
    mixed = [(output.mixing, count) for output, count in pairs if output.mixing is not None]
    gaps = all(output.uniform_gap is not None for output in outputs)
    masses = [output.teacher_mass for output in outputs if output.teacher_mass is not None]
    return XStaOutput(
        loss=mean([(output.loss, count) for output, count in pairs]),
        uniform_gap=mean([(output.uniform_gap, count) for output, count in pairs]) if gaps else None,
        losses={name: mean(values) for name, values in terms.items()},
        mixing=mean([(value.mean(), count) for value, count in mixed]) if mixed else None,
        teacher_mass=torch.cat(masses) if masses else None,
    )


VARIANTS = 8  # of a language's compiled passes: one row or more, the source shorter or longer, with gold or without


class Passes(nn.Module):
    """What a step computes in one call (one autocast, one synchronised backward): the source's pass, then its targets'.

    Args:
        model: whose passes.
    """

    def __init__(self, model: XStaForQuestionAnswering):
        super().__init__()
        self.model = model

    def compile(self, *args, **kwargs) -> None:
        """As for any module, with room for every language's variants: its name is a constant in the compiled code.

        PyTorch's own limit is 8 in all, and what is over it runs uncompiled.
        """
        settings, needed = torch._dynamo.config, VARIANTS * len(self.model.config.languages)
        settings.recompile_limit = max(settings.recompile_limit, needed)
        super().compile(*args, **kwargs)

    def forward(
        self, source: Mapping | None = None, targets: Sequence[Mapping] = (), **target: Tensor | str
    ) -> XStaOutput:
        """The model's output for a batch as :func:`~xsta_lib.data.batches.collate` makes it.

        Args:
            source: the arguments of :meth:`~xsta_lib.model.modeling.XStaForQuestionAnswering.encode` for the source;
                ``None`` reads the target alone.
            targets: several languages that share the source, each with ``source_rows``, the source's rows that its
                rows read; every row counts alike in the loss.
            target: one language's arguments of the model's ``forward``.
        """
        encoded = None if source is None else self.model.encode(**source)
        if not targets:
            return self.model(**target, source=encoded)
        outputs = []
        for shared in targets:
            own, rows = dict(shared), shared["source_rows"]
            del own["source_rows"]
            outputs.append(self.model(**own, source=encoded.map(lambda value, rows=rows: value[rows])))
        return average_outputs(outputs, [len(shared["source_rows"]) for shared in targets])
