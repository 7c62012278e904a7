"""How a model reads a batch where it is: on a CPU rows of like length together, with the attention quickest there.

Attention by plain products takes a third less time than transformers' ``eager`` under bfloat16 autocast, which scales
and masks in passes of their own and in float32, and half the time of the fused one, forward and backward together.
Padding changes nothing (its keys are masked), so a batch read in parts gives the states of a batch read whole.
On a GPU cuDNN's attention is left out: it plans anew for each shape, and batches here are as long as their texts.
Axes: B batch, N tokens (N_S source), H hidden size, A heads.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import AttentionInterface, AttentionMaskInterface

from ..model.modeling import XStaForQuestionAnswering
from ..model.sharing import ENCODERS, SharingContext, fit_length
from . import ranks

PRODUCTS = "xsta_products"
GPU_ATTENTION = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]


def products(query: Tensor, key: Tensor, value: Tensor, key_mask: Tensor | None, dropout: float = 0.0) -> Tensor:
    """Scaled dot-product attention, (B, A, N_Q, d).

    Args:
        query: (B, A, N_Q, d).
        key, value: (B, A, N, d).
        key_mask: (B, 1, 1, N) true on real keys, at least one a row; ``None`` where all are.
        dropout: rate on the probabilities.
    """
    scores, scale = query @ key.transpose(-1, -2), query.shape[-1] ** -0.5
    if key_mask is None:
        scores = scores * scale
    else:
        bias = torch.zeros_like(key_mask, dtype=scores.dtype).masked_fill(~key_mask, torch.finfo(scores.dtype).min)
        scores = torch.add(bias, scores, alpha=scale)
    return F.dropout(scores.softmax(-1), dropout) @ value


def _attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    **_: object,
) -> tuple[Tensor, None]:
    """:func:`products` as transformers calls it; (B, N_Q, A, d), and no probabilities."""
    return products(query, key, value, attention_mask, dropout).transpose(1, 2).contiguous(), None


def _key_mask(attention_mask: Tensor | None = None, **_: object) -> Tensor | None:
    """(B, 1, 1, N) from (B, N); ``None`` where nothing is masked."""
    return None if attention_mask is None or attention_mask.all() else attention_mask[:, None, None, :].bool()


AttentionInterface.register(PRODUCTS, _attend)
AttentionMaskInterface.register(PRODUCTS, _key_mask)


CPU_ROWS = 8  # the attention scores of so many rows stay in a CPU's cache
PASS_TOKENS = 120  # what a pass costs besides its tokens, in tokens (measured on 2 cores, forward and backward)


@contextmanager
def tuned(model: XStaForQuestionAnswering, bf16: bool) -> Iterator[None]:
    """Let a model read as is quickest on its device, for as long as the block lasts.

    On a CPU a batch is read in parts (:func:`read_in_groups`), word embeddings get sparse gradients, and under bfloat16
    attention is plain matrix products: PyTorch's fused attention is slower there (2.13, most of all backwards). An
    attention other than the fused one stays as it was chosen, and so does that of encoders that are not built like
    BERT: they may mask more than padding (ModernBERT's layers look at a window). The release's token alignment looks at
    what padding attends to, so its batches are read whole.

    Args:
        model: on its device; it is left as it was.
        bf16: whether it runs under bfloat16 autocast.
    """
    with ExitStack() as undo:
        if model.device.type == "cuda":
            undo.enter_context(sdpa_kernel(GPU_ATTENTION))
        if model.device.type != "cpu":
            yield
            return
        if model.config.token_alignment != "cross-attention":
            _replace(undo, model, "read", partial(read_in_groups, partial(type(model).read, model), rows=CPU_ROWS))
            embeddings = model.encoder.get_input_embeddings()
            alone = ranks.world_size() == 1  # processes exchange whole gradients
            if alone and torch.is_grad_enabled() and embeddings.weight.requires_grad:
                _replace(undo, embeddings, "sparse", True)
                _replace(undo, embeddings.weight, "grad", torch.zeros_like(embeddings.weight))
        plain = model.encoder.config.model_type in ENCODERS
        if bf16 and plain and model.encoder.config._attn_implementation == "sdpa":
            model.encoder.set_attn_implementation(PRODUCTS)
            undo.callback(model.encoder.set_attn_implementation, "sdpa")
            if hasattr(model.sharing_layer, "attend"):
                _replace(undo, model.sharing_layer, "attend", products)
        yield


def _replace(undo: ExitStack, owner: object, name: str, value: object) -> None:
    """Give one object another attribute (or method), until ``undo`` closes."""
    if callable(value) and name not in vars(owner):  # a method of its class
        undo.callback(delattr, owner, name)
    else:
        undo.callback(setattr, owner, name, getattr(owner, name))
    setattr(owner, name, value)


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


def clear_gradients(model: XStaForQuestionAnswering, optimizer: torch.optim.Optimizer) -> None:
    """Forget all gradients; that of word embeddings with sparse gradients becomes zeros and keeps its memory.

    It is hundreds of megabytes that would be given back and asked for again in every step; where it is there, only the
    rows that were read are added to it.
    """
    embeddings = model.encoder.get_input_embeddings()
    kept = embeddings.weight.grad
    optimizer.zero_grad(set_to_none=True)
    if embeddings.sparse and kept is not None:
        embeddings.weight.grad = kept.zero_()


def read_in_groups(
    read: Callable[..., Tensor], input_ids: Tensor, token_type_ids: Tensor | None, context: SharingContext, rows: int
) -> Tensor:
    """Last hidden states (B, N, H) of a batch, read in parts of rows of like length.

    Args:
        read: the model's own way, for each part.
        input_ids: (B, N), padded on the right.
        token_type_ids: (B, N), for encoders that tell question and context apart.
        context: the batch's; its ``mask`` tells real tokens, and what the parts leave in theirs is put together in it.
        rows: most rows of a part.
    """
    lengths, order = context.mask.sum(1).sort(stable=True)
    sizes = cut(lengths.tolist(), rows)
    ids = input_ids.index_select(0, order).split(sizes)
    types = [None] * len(sizes) if token_type_ids is None else token_type_ids[order].split(sizes)
    parts, states = list(_split(context, order, sizes)), []
    for part, own, segments in zip(parts, ids, types, strict=True):
        length = part.mask.shape[1]
        states.append(read(own[:, :length], None if segments is None else segments[:, :length], part))
    back, length = order.argsort(), input_ids.shape[1]
    _gather(context, parts, back, length)
    return _join(states, back, length)


def _split(context: SharingContext, order: Tensor, sizes: list[int]) -> Iterator[SharingContext]:
    """The context of each part, cut to the part's longest row (and its source's)."""
    reads = context.source_input is not None
    rows = [value[order].split(sizes) for value in (context.mask, context.keys)]
    if reads:
        source = context.source_input.index_select(0, order).split(sizes)
        rows += [value[order].split(sizes) for value in (context.source_mask, context.source_keys)]
    for number, (mask, keys, *others) in enumerate(zip(*rows, strict=True)):
        part = replace(context, mask=_trim(mask, mask), keys=_trim(keys, mask))
        if reads:
            part.source_mask, part.source_keys = (_trim(value, others[0]) for value in others)
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
