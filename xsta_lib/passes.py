"""How the encoder reads a batch on a CPU: rows of like length together, with the attention that is quickest there.

Padding changes nothing (its keys are masked), so a batch read in parts gives the states of a batch read whole.
Axes: B batch, N tokens (N_S source), H hidden size, A heads.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from . import parallel
from .attention import PRODUCTS
from .sharing import SharingContext, fit_length

CPU_ROWS = 8  # the attention scores of so many rows stay in a CPU's cache
PASS_TOKENS = 120  # what a pass costs besides its tokens, in tokens (measured on 2 cores, forward and backward)


def tune_passes(model: nn.Module, device: torch.device, bf16: bool) -> None:
    """Choose how a model's encoder reads on a device; on a GPU a batch is read whole, with the fused attention.

    On a CPU the fused attention is slower in bfloat16 than in float32 (PyTorch 2.13, most of all backwards), and slower
    than plain matrix products (:mod:`~xsta_lib.attention`). An attention other than these two stays as it was chosen.
    The release's token alignment looks at what padding attends to, so its batches are read whole.

    Args:
        model: an :class:`~xsta_lib.modeling.XStaForQuestionAnswering`.
        device: where it runs.
        bf16: whether it runs under bfloat16 autocast.
    """
    on_cpu = device.type == "cpu"
    model.rows_per_pass = CPU_ROWS if on_cpu and model.config.token_alignment != "cross-attention" else 0
    if model.encoder.config._attn_implementation in ("sdpa", PRODUCTS):
        model.encoder.set_attn_implementation(PRODUCTS if on_cpu and bf16 else "sdpa")


def cut(lengths: Sequence[int], rows: int) -> list[int]:
    """Sizes of the parts of rows in order of length for which tokens, padding and passes together cost least.

    Args:
        lengths: tokens of each row, ascending.
        rows: most rows of a part.
    """
    best, start = [0.0], [0]
    for end in range(1, len(lengths) + 1):
        costs = {i: best[i] + (end - i) * lengths[end - 1] + PASS_TOKENS for i in range(max(0, end - rows), end)}
        start.append(min(costs, key=costs.__getitem__))
        best.append(costs[start[-1]])
    sizes, end = [], len(lengths)
    while end:
        sizes.append(end - start[end])
        end = start[end]
    return sizes[::-1]


def look_up(encoder: nn.Module, ids: Sequence[Tensor]) -> list[Tensor]:
    """Word embeddings (B, N, H) of several (B, N) inputs, by one lookup.

    The gradient of a lookup is a tensor as large as the vocabulary, so one of them costs less than one an input. Where
    the embeddings have a gradient already (see :func:`clear_gradients`), only the rows that were read are added to it.
    """
    embeddings, joined = encoder.get_input_embeddings(), torch.cat([value.flatten() for value in ids])
    kept = embeddings.weight.grad is not None and not torch.compiler.is_compiling()
    found = F.embedding(joined, embeddings.weight, embeddings.padding_idx, sparse=True) if kept else embeddings(joined)
    parts = found.split([value.numel() for value in ids])
    return [part.unflatten(0, value.shape) for part, value in zip(parts, ids, strict=True)]


def clear_gradients(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Forget all gradients; where a batch is read in parts the word embeddings' becomes zeros and keeps its memory.

    On a CPU it is hundreds of megabytes that would be given back and asked for again in every step.

    Args:
        model: an :class:`~xsta_lib.modeling.XStaForQuestionAnswering`.
        optimizer: its optimiser.
    """
    weight = model.encoder.get_input_embeddings().weight
    kept = weight.grad
    optimizer.zero_grad(set_to_none=True)
    alone = parallel.world_size() == 1  # processes exchange whole gradients
    if model.rows_per_pass and alone and weight.requires_grad:
        weight.grad = torch.zeros_like(weight) if kept is None else kept.zero_()


def read_in_groups(
    encoder: nn.Module, words: Tensor, context: SharingContext, rows: int, token_type_ids: Tensor | None = None
) -> Tensor:
    """Last hidden states (B, N, H) of a batch, read in parts of rows of like length.

    Args:
        encoder: a BERT-like encoder; its sharing layer, where it has one, fills ``context``.
        words: (B, N, H) word embeddings, padded on the right.
        context: the batch's; its ``mask`` tells real tokens.
        rows: most rows of a part.
        token_type_ids: (B, N), for encoders that tell question and context apart.
    """
    lengths, order = context.mask.sum(1).sort(stable=True)
    sizes = cut(lengths.tolist(), rows)
    embedded = words.index_select(0, order).split(sizes)
    types = [None] * len(sizes) if token_type_ids is None else token_type_ids[order].split(sizes)
    parts, states = list(_split(context, order, sizes)), []
    for part, embeddings, segments in zip(parts, embedded, types, strict=True):
        length = part.mask.shape[1]
        segments = None if segments is None else segments[:, :length]
        inputs = {"inputs_embeds": embeddings[:, :length], "token_type_ids": segments}
        states.append(read_once(encoder, part, inputs))
    back, length = order.argsort(), words.shape[1]
    _gather(context, parts, back, length)
    return _join(states, back, length)


def attend_in_groups(
    attention: Callable[[Tensor, Tensor, Tensor], Tensor],
    target: tuple[Tensor, Tensor],
    source: tuple[Tensor, Tensor],
    rows: int,
) -> Tensor:
    """Attention (B, N_T, N_S) of target to source states, computed for parts of rows of like length, 0 on padding.

    Args:
        attention: takes target states (B, N_T, H), source states (B, N_S, H) and the source's mask (B, N_S).
        target, source: states and mask.
        rows: most rows of a part.
    """
    lengths, order = target[1].sum(1).sort(stable=True)
    sizes = cut(lengths.tolist(), rows)
    parts = []
    split = (value.index_select(0, order).split(sizes) for value in (*target, *source))
    for states, mask, source_states, source_mask in zip(*split, strict=True):
        source_mask = _trim(source_mask, source_mask)
        found = attention(_trim(states, mask), source_states[:, : source_mask.shape[1]], source_mask)
        parts.append(F.pad(found, (0, source[1].shape[1] - found.shape[2])))
    return _join(parts, order.argsort(), target[1].shape[1])


def read_once(encoder: nn.Module, context: SharingContext, inputs: dict) -> Tensor:
    """Last hidden states (B, N, H) of one pass over ``inputs``; those that are ``None`` are left out."""
    given = {name: value for name, value in inputs.items() if value is not None}
    if context.expected:
        given["sharing"] = context
    return encoder(attention_mask=context.mask, **given).last_hidden_state


def _split(context: SharingContext, order: Tensor, sizes: list[int]) -> Iterator[SharingContext]:
    """The context of each part, cut to the part's longest row (and its source's)."""
    reads = context.source_input is not None
    source = context.source_input.index_select(0, order).split(sizes) if reads else None
    source_mask = context.source_mask[order].split(sizes) if reads else None
    for number, mask in enumerate(context.mask[order].split(sizes)):
        part = replace(context, mask=_trim(mask, mask))
        if reads:
            part.source_mask = _trim(source_mask[number], source_mask[number])
            part.source_input = source[number][:, : part.source_mask.shape[1]]
        yield part


def _trim(values: Tensor, mask: Tensor) -> Tensor:
    return values[:, : int(mask.sum(1).max())]


def _join(parts: list[Tensor], back: Tensor, length: int) -> Tensor:
    return torch.cat([fit_length(part, length) for part in parts]).index_select(0, back)


def _gather(context: SharingContext, parts: list[SharingContext], back: Tensor, length: int) -> None:
    """What the sharing layer left in the parts, put together in the batch's own order."""
    if parts[0].layer_input is not None:
        context.layer_input = _join([part.layer_input for part in parts], back, length)
    if parts[0].cross_attention is not None:
        wide = context.source_mask.shape[1]
        flat = [F.pad(p.cross_attention, (0, wide - p.cross_attention.shape[-1])) for p in parts]
        flat = [value.transpose(1, 2).flatten(2) for value in flat]  # (B, N, A * N_S)
        context.cross_attention = _join(flat, back, length).unflatten(2, (-1, wide)).transpose(1, 2)
    mixing = parts[0].mixing
    if mixing is not None:  # X-MIXUP's is one a row
        context.mixing = torch.cat([part.mixing for part in parts])[back] if mixing.ndim else mixing
