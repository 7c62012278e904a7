"""Tiny random X-STA models and ragged batches of language pairs, shared by the tests of the model."""

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import BertConfig, PreTrainedConfig, XLMRobertaConfig

from xsta_lib import XStaConfig, XStaForQuestionAnswering

HIDDEN, HEADS, VOCABULARY = 32, 4, 60
LANGUAGES = ["en", "de", "es"]
PRESETS = {
    "paper": XStaConfig,
    "release": XStaConfig.release,
    "mixup": XStaConfig.mixup,
    "plain": XStaConfig.plain,
}
PAD = {"bert": 0, "xlm-roberta": 1}

torch.set_num_threads(1)  # threads cost far more than these sizes are worth


def encoder_config(kind: str = "bert", layers: int = 2, dropout: float = 0.0) -> PreTrainedConfig:
    """A BERT or XLM-RoBERTa of hidden size 32; its weights are wide, so that no attention is close to uniform."""
    values: dict[str, Any] = {
        "vocab_size": VOCABULARY,
        "hidden_size": HIDDEN,
        "num_hidden_layers": layers,
        "num_attention_heads": HEADS,
        "intermediate_size": 48,
        "max_position_embeddings": 40,
        "hidden_dropout_prob": dropout,
        "attention_probs_dropout_prob": dropout,
        "initializer_range": 0.2,
        "pad_token_id": PAD[kind],
    }
    return {"bert": BertConfig, "xlm-roberta": XLMRobertaConfig}[kind](**values)


def stir(module: nn.Module, amount: float = 0.1) -> None:
    """Move every parameter a little, so that no bias is 0 and no scale is 1."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=amount)


def tiny_model(
    preset: str | Callable[..., XStaConfig] = "paper",
    kind: str = "bert",
    *,
    layers: int = 2,
    dropout: float = 0.0,
    seed: int = 0,
    **changes: Any,
) -> XStaForQuestionAnswering:
    """A model of a preset with random weights in float32 and training mode; ``changes`` go to its configuration."""
    make = PRESETS[preset] if isinstance(preset, str) else preset
    values = {"languages": LANGUAGES, "sharing_layer": 2, "sharing_dropout": dropout} | changes
    torch.manual_seed(seed)
    model = XStaForQuestionAnswering(make(encoder=encoder_config(kind, layers, dropout), **values))
    stir(model)
    return model.train()


def ragged_mask(lengths: Sequence[int], width: int | None = None) -> Tensor:
    """(B, N) 1 on the first ``lengths[row]`` tokens of each row."""
    return (torch.arange(width or max(lengths)) < torch.tensor(lengths)[:, None]).long()


def random_side(
    lengths: Sequence[int], generator: torch.Generator, kind: str, low: int, high: int
) -> dict[str, Tensor]:
    """One language's ids, mask and gold positions, the positions always on real tokens; the last row lacks the answer.

    Args:
        lengths: real tokens of each row; one more column is padding everywhere.
        generator: source of randomness.
        kind: of the encoder, for its padding id.
        low, high: range of the token ids.
    """
    mask = ragged_mask(lengths, max(lengths) + 1)
    ids = torch.randint(low, high, mask.shape, generator=generator)
    starts = torch.tensor([int(torch.randint(1, length, (), generator=generator)) for length in lengths])
    ends = torch.tensor([min(int(start) + 1, length - 1) for start, length in zip(starts, lengths, strict=True)])
    starts[-1] = ends[-1] = 0
    holds = torch.ones(len(lengths), dtype=torch.bool)
    holds[-1] = False
    return {
        "input_ids": ids.masked_fill(mask == 0, PAD[kind]),
        "attention_mask": mask,
        "start_positions": starts,
        "end_positions": ends,
        "holds_answer": holds,
    }


def pair_batch(
    seed: int = 0,
    kind: str = "bert",
    target_lengths: Sequence[int] = (9, 5, 7, 6),
    source_lengths: Sequence[int] = (6, 8, 7, 4),
    language: str = "de",
) -> dict[str, Any]:
    """Arguments of the model's ``forward`` for a training step; two rows belong to one question.

    Source and target share no token, so gradients of the embeddings tell which side they came from.
    """
    generator = torch.Generator().manual_seed(seed)
    middle = VOCABULARY // 2
    batch: dict[str, Any] = random_side(target_lengths, generator, kind, middle, VOCABULARY)
    batch["source"] = random_side(source_lengths, generator, kind, 5, middle)
    batch["language"] = language
    batch["question_ids"] = torch.tensor([0, 1, 0, 2])[: len(target_lengths)]
    return batch


def without_gold(batch: dict[str, Any]) -> dict[str, Any]:
    """The same batch as it is at test time."""
    names = ("input_ids", "attention_mask")
    source = {name: batch["source"][name] for name in names}
    return {name: batch[name] for name in names} | {"language": batch["language"], "source": source}


def more_padding(side: dict[str, Any], extra: int, kind: str = "bert") -> dict[str, Any]:
    """The same side (the source stays as it is) with ``extra`` more columns of padding."""
    rows = len(side["input_ids"])
    ids = torch.full((rows, extra), PAD[kind])
    return side | {
        "input_ids": torch.cat([side["input_ids"], ids], 1),
        "attention_mask": torch.cat([side["attention_mask"], torch.zeros_like(ids)], 1),
    }


def trained_statistics(model: XStaForQuestionAnswering, kind: str = "bert") -> XStaForQuestionAnswering:
    """Run a few training passes so that every language has running averages; returns the model in evaluation mode."""
    model.train()
    with torch.no_grad():
        for seed, language in enumerate(["de", "es", "de"]):
            model(**pair_batch(10 + seed, kind, language=language))
    return model.eval()


def twin(model: XStaForQuestionAnswering) -> XStaForQuestionAnswering:
    """A deep copy, so that running averages and gradients stay apart."""
    return copy.deepcopy(model)
