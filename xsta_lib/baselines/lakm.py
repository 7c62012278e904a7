"""LAKM (Yuan et al., 2020), a system that X-STA is compared with: trans-train, and between its batches phrase masking.

The plain reader's batches alternate with those of a second task: passages in which phrases are masked, whose words the
encoder must find. Axes: B batch, N tokens, H hidden size, V vocabulary, M masked tokens.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import count

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from transformers import AutoConfig, AutoModelForQuestionAnswering, PreTrainedConfig, PreTrainedTokenizerBase
from transformers.models.bert.modeling_bert import BertPredictionHeadTransform

from ..data.batches import TEXT_INPUTS, Part, Row, endless_batches, rows_of
from ..data.protocols import ProtocolData
from ..data.windows import WindowSpec, build_windows, window_cache
from ..encoders.backbones import load_masked_head
from ..model import batch
from ..model.modeling import XStaForQuestionAnswering, XStaOutput
from ..training.configuration import TrainingConfig
from ..training.trainer import Trainer
from .configuration import PlainConfig
from .phrases import Passages, training_passages

SPEC = WindowSpec(max_length=256, stride=0)
TOGETHER = 128  # masked tokens whose logits, 250,000 each, are in memory at a time; backwards they are computed again
MASKED = 0.15  # share of a passage's tokens
KINDS = (0.8, 0.9)  # of these, below the first: the mask; below the second: any token; else the token itself


class LakmConfig(PlainConfig):
    """Configuration of :class:`LakmForQuestionAnswering`: a plain reader's.

    Args:
        mix_mrc: a third task, its questions in one language and its passages in another, one of them the source.
    """

    model_type = "x-lakm"

    mix_mrc: bool = False


class MaskedTokenHead(nn.Module):
    """BERT's and (XLM-)RoBERTa's head over the vocabulary; its matrix is the encoder's word embeddings themselves."""

    def __init__(self, config: PreTrainedConfig):
        super().__init__()
        self.transform = BertPredictionHeadTransform(config)
        nn.init.normal_(self.transform.dense.weight, std=getattr(config, "initializer_range", 0.02))
        nn.init.zeros_(self.transform.dense.bias)
        self.bias = nn.Parameter(torch.zeros(config.vocab_size))

    def forward(self, states: Tensor, embeddings: Tensor) -> Tensor:
        """Logits (M, V), float32, from states (M, H) and word embeddings (V, H)."""
        return F.linear(self.transform(states), embeddings, self.bias).float()


class LakmForQuestionAnswering(XStaForQuestionAnswering):
    """The plain reader with a head for masked tokens: the checkpoint's own, where it has one, else a new one.

    Raises:
        ValueError: the encoder cannot take BERT's head.
    """

    config_class = LakmConfig

    def __init__(self, config: LakmConfig, encoder=None):
        super().__init__(config, encoder)
        told = all(hasattr(config.encoder, name) for name in ("hidden_act", "layer_norm_eps"))
        if not told or self.get_input_embeddings().embedding_dim != config.encoder.hidden_size:
            said = "it must say hidden_act and layer_norm_eps, and its word embeddings be as wide as its states"
            raise ValueError(f"encoder {config.encoder.model_type!r} cannot take LAKM's head for masked tokens: {said}")
        self.masked_head = MaskedTokenHead(config.encoder)

    @classmethod
    def from_backbone(cls, name: str, *args, **kwargs) -> tuple["LakmForQuestionAnswering", PreTrainedTokenizerBase]:
        """As for the plain reader, with the checkpoint's head."""
        model, tokenizer = super().from_backbone(name, *args, **kwargs)
        if (head := load_masked_head(name)) is not None:
            model.masked_head.load_state_dict(head)
        return model, tokenizer

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, masked_labels: Tensor | None = None, **inputs
    ) -> XStaOutput:
        """As the plain reader; with ``masked_labels`` the masked tokens' loss instead.

        Args:
            masked_labels: (B, N) the tokens that stood there, -100 where none was masked.
            input_ids, attention_mask, inputs: see :meth:`~xsta_lib.model.modeling.XStaForQuestionAnswering.forward`.
        """
        if masked_labels is None:
            return super().forward(input_ids, attention_mask, **inputs)
        states = self.encode(input_ids, attention_mask, **inputs).states
        masked = masked_labels >= 0
        parts = zip(states[masked].split(TOGETHER), masked_labels[masked].split(TOGETHER), strict=True)
        sums = [checkpoint(self.masked_loss, *part, use_reentrant=False) for part in parts]
        loss = batch.mean(torch.stack(sums).sum(), masked.sum(), len(masked))
        return XStaOutput(loss=loss, losses={"knowledge": loss})

    def masked_loss(self, states: Tensor, labels: Tensor) -> Tensor:
        """Sum of the cross-entropies over the vocabulary of some masked tokens, states (M, H), labels (M,)."""
        logits = self.masked_head(states, self.encoder.get_input_embeddings().weight)
        return F.cross_entropy(logits, labels, reduction="sum")


def mask_tokens(
    ids: np.ndarray, places: np.ndarray, phrases: np.ndarray, mask_id: int, others: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Mask a share of a passage's tokens, one at least: phrase by phrase in random order, then single tokens.

    Args:
        ids: (N,) a window.
        places: the positions that may be masked.
        phrases: (occurrences, 2) first and last positions.
        mask_id, others: the mask's id, and those that a random token is drawn from.

    Returns:
        The window as it is read, and its labels, -100 where nothing was masked.
    """
    order = 1 + rng.random(len(ids))
    for first, last in phrases:
        order[first : last + 1] = rng.random()
    chosen = places[np.argsort(order[places], kind="stable")[: max(1, round(MASKED * len(places)))]]
    read, labels, kind = ids.copy(), np.full(len(ids), -100), rng.random(len(chosen))
    labels[chosen] = ids[chosen]
    read[chosen[kind < KINDS[0]]] = mask_id
    changed = chosen[(kind >= KINDS[0]) & (kind < KINDS[1])]
    read[changed] = rng.choice(others, len(changed))
    return read, labels


class LakmTrainer(Trainer):
    """Trains task by task: a batch of the plain reader's rows, then one of each other task, and so on.

    The steps of ``config`` are those of the plain reader's task; every other task has as many more, on the one
    schedule. The result's ``extra`` counts them.

    Args:
        passages: what phrases are masked in; none leaves trans-train.
        mixed: rows of the third task, see :func:`mixed_parts`.
        tokenizer: the model's.
        model, parts, config, given, named: see :class:`~xsta_lib.training.trainer.Trainer`.
    """

    def __init__(
        self,
        model: LakmForQuestionAnswering,
        parts: Sequence[Part],
        config: TrainingConfig,
        *given,
        passages: Sequence[Passages],
        mixed: Sequence[Part],
        tokenizer: PreTrainedTokenizerBase,
        **named,
    ):
        groups = {"mixed": list(mixed), "knowledge": [part.part for part in passages]}
        groups = {name: group for name, group in groups.items() if group}
        times = 1 + len(groups)
        config = replace(config, steps=times * config.steps, evaluate_every=times * config.evaluate_every)
        super().__init__(model, parts, config, *given, **named)
        self.tasks, self.parts = {"": self.rows}, list(parts)
        for name, group in groups.items():
            first = len(self.parts)
            self.parts += group
            self.tasks[name] = [replace(row, part=first + row.part) for row in rows_of(group)]
        self.passages = dict(zip(range(len(self.parts) - len(passages), len(self.parts)), passages, strict=True))
        special = tokenizer.all_special_ids
        self.mask_id, self.others = tokenizer.mask_token_id, np.setdiff1d(np.arange(len(tokenizer)), special)
        if passages and self.mask_id is None:
            raise ValueError("the tokenizer has no mask token, which LAKM needs; choose another backbone")

    def _batches(self) -> Iterator[tuple[int, list[Row]]]:
        tasks, order = len(self.tasks), (self.config.batch_size, self.config.seed)
        batches = [
            endless_batches(self.parts, rows, *order, skip=len(range(number, self.step, tasks)))
            for number, rows in enumerate(self.tasks.values())
        ]
        for step in count(self.step):
            yield next(batches[step % tasks])

    def _inputs(self, rows: Sequence[Row], back_translated: bool) -> dict:
        inputs = super()._inputs(rows, back_translated)
        passages = self.passages.get(rows[0].part)
        if passages is None:
            return inputs
        windows, labels = passages.part.target, torch.full_like(inputs["input_ids"], -100)
        rng = np.random.default_rng([self.config.seed, self.step, rows[0].target])
        for place, row in enumerate(rows):
            ids, first = windows.input_ids[row.target], windows.context_start[row.target]
            content = first + np.arange(len(windows.char_starts[row.target]))
            if not len(content):
                continue
            read, label = mask_tokens(ids, content, passages.tokens(row.target), self.mask_id, self.others, rng)
            inputs["input_ids"][place, : len(ids)] = torch.from_numpy(read)
            labels[place, : len(ids)] = torch.from_numpy(label)
        return {name: inputs[name] for name in TEXT_INPUTS if name in inputs} | {"masked_labels": labels}

    def task(self) -> str:
        """The task whose rows this step reads; the span batches have no name."""
        return list(self.tasks)[self.step % len(self.tasks)]


def mixed_parts(data: ProtocolData, tokenizer: PreTrainedTokenizerBase) -> list[Part]:
    """mixMRC: the source's questions about each language's passages, and the reverse, joined by id."""
    sources, parts = {question.id: question for question in data.parallel_source}, []
    for language in data.parallel:
        pairs = [(question, sources[question.id]) for question in data.parallel[language] if question.id in sources]
        for mixed in (
            [replace(own, question=other.question) for own, other in pairs],
            [replace(other, question=own.question) for own, other in pairs],
        ):
            windows = build_windows(mixed, tokenizer, cache=window_cache(), texts=False)
            parts += [Part(language, windows)] if len(windows) else []
    return parts


def lakm_tasks(data: ProtocolData, tokenizer: PreTrainedTokenizerBase, mix_mrc: bool) -> dict[str, list]:
    """``passages`` and ``mixed`` of :class:`LakmTrainer`."""
    mixed = mixed_parts(data, tokenizer) if mix_mrc else []
    return {"passages": training_passages(data, tokenizer, SPEC), "mixed": mixed}


AutoConfig.register("x-lakm", LakmConfig)
AutoModelForQuestionAnswering.register(LakmConfig, LakmForQuestionAnswering)
