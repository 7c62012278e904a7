"""Tiny random X-STA models and ragged batches of language pairs, shared by the tests of the model."""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import BertConfig, PreTrainedConfig, XLMRobertaConfig

from xsta_lib.baselines.mixup import MixupConfig, MixupForQuestionAnswering
from xsta_lib.data.protocols import ProtocolData, TestSet
from xsta_lib.data.squad import Answer, Question
from xsta_lib.model.configuration import XStaConfig
from xsta_lib.model.modeling import Encoded, XStaForQuestionAnswering, XStaOutput
from xsta_lib.training.passes import Passes

HIDDEN, HEADS, VOCABULARY = 32, 4, 60
LANGUAGES = ["en", "de", "es"]
PAIRED = ["paper", "release"]
PRESETS = {"paper": XStaConfig, "release": XStaConfig.release, "mixup": MixupConfig, "plain": XStaConfig.plain}
MODELS = {"mixup": MixupForQuestionAnswering}
PAD = {"bert": 0, "xlm-roberta": 1}
KINDS = list(PAD)

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


def stir(module: nn.Module) -> None:
    """Move every parameter a little, so that no bias is 0 and no scale is 1."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)


def tiny_config(
    preset: str = "paper", kind: str = "bert", layers: int = 2, dropout: float = 0.0, **changes: Any
) -> XStaConfig:
    """The configuration of a preset's :func:`tiny_model`."""
    values = {"languages": LANGUAGES, "sharing_layer": 2, "sharing_dropout": dropout} | changes
    return PRESETS[preset](encoder=encoder_config(kind, layers, dropout), **values)


def tiny_model(
    preset: str = "paper",
    kind: str = "bert",
    *,
    layers: int = 2,
    dropout: float = 0.0,
    seed: int = 0,
    **changes: Any,
) -> XStaForQuestionAnswering:
    """A model of a preset with random weights in float32 and training mode; ``changes`` go to its configuration."""
    torch.manual_seed(seed)
    model = MODELS.get(preset, XStaForQuestionAnswering)(tiny_config(preset, kind, layers, dropout, **changes))
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
    """A batch of a training step, as :func:`both_passes` takes it; two rows belong to one question.

    Source and target share no token, so gradients of the embeddings tell which side they came from.
    """
    generator = torch.Generator().manual_seed(seed)
    middle = VOCABULARY // 2
    batch: dict[str, Any] = random_side(target_lengths, generator, kind, middle, VOCABULARY)
    batch["source"] = random_side(source_lengths, generator, kind, 5, middle)
    batch["language"] = language
    batch["passages"] = torch.tensor([0, 1, 0, 2])[: len(target_lengths)]
    return batch


def both_passes(model: XStaForQuestionAnswering, batch: dict[str, Any], **options: Any) -> XStaOutput:
    """The source's pass, if there is one, then the target's; ``options`` go to the model's ``forward``."""
    return Passes(model)(**batch, **options)


def source_pass(model: XStaForQuestionAnswering, batch: dict[str, Any]) -> Encoded:
    """The source's own pass, without its gold positions."""
    return model.encode(batch["source"]["input_ids"], batch["source"]["attention_mask"], "en")


def target_pass(model: XStaForQuestionAnswering, batch: dict[str, Any], source: Encoded | None) -> Encoded:
    """The target's pass, without its gold positions."""
    return model.encode(batch["input_ids"], batch["attention_mask"], batch["language"], source)


def gradients(model: nn.Module, batch: dict[str, Any]) -> dict[str, Tensor]:
    """Gradients of one step, by name."""
    both_passes(model, batch).loss.backward()
    return {name: value.grad for name, value in model.named_parameters() if value.grad is not None}


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
            both_passes(model, pair_batch(10 + seed, kind, language=language))
    return model.eval()


def twin(model: XStaForQuestionAnswering) -> XStaForQuestionAnswering:
    """A deep copy, so that running averages and gradients stay apart."""
    return copy.deepcopy(model)


def toy_questions(template: str, question: str) -> list[Question]:
    """Sixteen questions whose answer stands in one place of a short context."""
    found = []
    for i in range(16):
        place = ["Paris", "the city", "a river", "Rome"][i % 4]
        context = template.format(i) + place + "."
        answer = Answer(place, context.index(place))
        found.append(Question(f"q{i}", question.format(i), context, (answer,), f"article {i % 5}"))
    return found


def toy_protocol() -> ProtocolData:
    """English questions and their German translations, by the same ids."""
    train = toy_questions("River {} is in ", "Where is river {}?")
    german = toy_questions("Der Fluss {} ist in ", "Wo ist Fluss {}?")
    return ProtocolData("toy", train, {"de": german}, train, TestSet("validation", "squad", {}), [])
