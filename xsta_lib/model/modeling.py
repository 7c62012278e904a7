"""X-STA put together (sections 3.1 and 3.5): an encoder that shares, a teacher that calibrates, losses that align.

Axes: B batch, N_S and N_T source and target tokens (N for either), H hidden size, A heads. The source's pass comes
first and does not depend on the target, so one source pass can serve several targets.
"""

import os
from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoConfig, AutoModelForQuestionAnswering, PreTrainedModel, PreTrainedTokenizerBase
from transformers import initialization as init
from transformers.utils import ModelOutput

from ..encoders.backbones import empty_encoder, keep_weights, load_backbone, load_span_head
from .aligning import mean_pool, row_mean, sentence_alignment, token_alignment, token_alignment_release
from .configuration import XStaConfig
from .sharing import SharingContext, find_self_attention, install_sharing
from .teaching import AttentiveTeacher, RepresentationNorm, Taught, calibrate, masked_softmax, teacher_loss

MODEL_CARD = """---
library_name: transformers
pipeline_tag: question-answering
tags: [x-sta, cross-lingual, extractive-question-answering]
---
# X-STA reader

An extractive reader after *Sharing, Teaching and Aligning* (Cao et al., 2023), made with xsta. Load it with
`xsta_lib.XStaForQuestionAnswering.from_pretrained(folder)`.

{details}

## Configuration

```json
{config}
```
"""


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
        starts, ends: (B,) gold token positions, where they are known.
        holds_answer: (B,) whether the window holds the answer.
        content: (B, N) true on real tokens other than special ones.
    """

    mask: Tensor
    states: Tensor
    normalised: Tensor
    layer_input: Tensor | None
    logits: Tensor
    cross_attention: Tensor | None = None
    mixing: Tensor | None = None
    starts: Tensor | None = None
    ends: Tensor | None = None
    holds_answer: Tensor | None = None
    content: Tensor | None = None

    def map(self, change: Callable[[Tensor], Tensor]) -> "Encoded":
        """The same with ``change`` applied to every tensor (moving, slicing rows)."""
        return Encoded(**{name: None if value is None else change(value) for name, value in vars(self).items()})


@dataclass
class XStaOutput(ModelOutput):
    """What a forward pass returns; distributions are (B, N_T, 2) over the target's real tokens.

    Attributes:
        loss: the objective of section 3.5, if gold positions were given.
        start_logits, end_logits: (B, N_T) of the target's own span head.
        target: ``p_T``. teacher: ``p_{T|S}``. calibrated: ``p~_T``, what answers are read from.
        losses: the terms: ``source``, ``target``, ``teacher``, ``sentence``, ``token``, or a baseline's.
        uniform_gap: ln J - H in nats, how far the token alignment's attention is from uniform over J source tokens
            (its entropy H alone rises and falls with the sources' lengths).
        mixing: lambda, where a source was read.
        teacher_mass: (B, 2) column sums of the teacher before renormalising.
        cross_attention: (B, A, N_T, N_S) of the sharing layer. teacher_attention: (B, N_T, N_S).
        content_mass: the share of the cross-attention that is on content, not on special tokens. All three on request.
    """

    loss: Tensor | None = None
    start_logits: Tensor | None = None
    end_logits: Tensor | None = None
    target: Tensor | None = None
    teacher: Tensor | None = None
    calibrated: Tensor | None = None
    losses: dict[str, Tensor] | None = None
    uniform_gap: Tensor | None = None
    mixing: Tensor | None = None
    teacher_mass: Tensor | None = None
    cross_attention: Tensor | None = None
    teacher_attention: Tensor | None = None
    content_mass: Tensor | None = None


def span_loss(side: Encoded) -> Tensor:
    """L_MRC of one language: cross-entropy over real tokens, start and end averaged, mean over rows (section 3.1)."""
    logits = side.logits.masked_fill(~side.mask[..., None].bool(), torch.finfo(side.logits.dtype).min)
    return (F.cross_entropy(logits[..., 0], side.starts) + F.cross_entropy(logits[..., 1], side.ends)) / 2


class XStaForQuestionAnswering(PreTrainedModel):
    """Extractive reader with Sharing, Teaching and Aligning; with all parts off, a plain one.

    Made from a pretrained encoder by :meth:`from_backbone`, saved and loaded the Hugging Face way.

    Raises:
        ValueError: the encoder cannot take the sharing layer.
    """

    config_class = XStaConfig
    base_model_prefix = "encoder"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_attention_backend = True

    def __init__(self, config: XStaConfig, encoder: PreTrainedModel | None = None):
        super().__init__(config)
        self.encoder = empty_encoder(config.encoder) if encoder is None else keep_weights(encoder)
        hidden, heads = config.encoder.hidden_size, config.encoder.num_attention_heads
        std = getattr(config.encoder, "initializer_range", 0.02)
        self.qa_outputs = nn.Linear(hidden, 2)
        nn.init.normal_(self.qa_outputs.weight, std=std)
        nn.init.zeros_(self.qa_outputs.bias)
        self.install_sharing()
        self.normalisation = self.teacher = self.sentence_projection = None
        if config.normalisation != "none":
            shared = config.normalisation == "shared"
            self.normalisation = RepresentationNorm(hidden, config.languages, shared, config.normalisation_statistics)
        if config.teacher != "none":
            self.teacher = AttentiveTeacher(hidden, heads, config.teacher, config.teacher_gradient, std)
        if config.sentence_projection:
            self.sentence_projection = nn.Sequential(nn.Linear(hidden, hidden), nn.Tanh())
            nn.init.normal_(self.sentence_projection[0].weight, std=std)
            nn.init.zeros_(self.sentence_projection[0].bias)
        self.post_init()

    def install_sharing(self) -> None:
        """Let one layer of the encoder share (section 3.2), where the configuration reads pairs."""
        if self.config.reads_pairs:
            config = self.config
            options = config.lambda_0, config.sharing_weighting, config.sharing_dropout
            install_sharing(self.encoder, config.sharing_layer, config.sharing, *options)

    @property
    def sharing_layer(self) -> nn.Module | None:
        """The module that shares, with its parameters w and b; ``None`` in a plain reader."""
        return find_self_attention(self.encoder, self.config.sharing_layer) if self.config.reads_pairs else None

    def read(self, input_ids: Tensor, token_type_ids: Tensor | None, context: SharingContext) -> Tensor:
        """The encoder's last hidden states ``h^L`` (B, N, H); the sharing layer reads and fills ``context``."""
        given = {"attention_mask": context.mask}
        if token_type_ids is not None:
            given["token_type_ids"] = token_type_ids
        if self.config.reads_pairs:
            given["sharing"] = context
        return self.encoder(input_ids=input_ids, **given).last_hidden_state

    def encode(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        language: str | None = None,
        source: Encoded | None = None,
        start_positions: Tensor | None = None,
        end_positions: Tensor | None = None,
        holds_answer: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        keep_attention: bool = False,
    ) -> Encoded:
        """One pass of one language (section 3.1); with ``source`` its sharing layer reads the source's states.

        Args:
            input_ids, attention_mask: (B, N).
            language: whose normalisation statistics to use; the source language by default.
            source: the source's own pass, over the same questions row by row; lengths may differ.
            start_positions, end_positions: (B,) gold token positions ([CLS] where a window lacks the answer).
            holds_answer: (B,) whether the window holds the answer; all do by default.
            token_type_ids: (B, N) 1 on the context, for encoders that tell question and context apart.
            keep_attention: keep the cross-attention probabilities.
        """
        content, only = self.content(input_ids, attention_mask), self.config.sharing_keys == "content"
        shared = (None, None) if source is None else (source.layer_input, source.mask)
        context = SharingContext(attention_mask, *shared, keep_attention)
        if source is not None and only:
            context.keys, context.source_keys = content, source.content
        states = self.read(input_ids, token_type_ids, context)
        language = language or self.config.source_language
        normalised = states if self.normalisation is None else self.normalisation(states, attention_mask, language)
        head_input = normalised if self.config.span_states == "normalised" else states
        with torch.autocast(states.device.type, enabled=False):  # bfloat16 would round the answer's logits
            logits = self.qa_outputs(head_input.to(self.qa_outputs.weight.dtype))
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        if start_positions is not None and holds_answer is None:
            holds_answer = torch.ones_like(start_positions, dtype=torch.bool)
        passed = attention_mask, states, normalised, context.layer_input, logits
        gold = start_positions, end_positions, holds_answer
        return Encoded(*passed, context.cross_attention, context.mixing, *gold, content)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        language: str | None = None,
        source: Encoded | None = None,
        start_positions: Tensor | None = None,
        end_positions: Tensor | None = None,
        holds_answer: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        passages: Tensor | None = None,
        explain: bool = False,
    ) -> XStaOutput:
        """Read the target (B, N_T) beside its source's own pass, or alone; with gold positions the loss comes too.

        Args:
            source: what :meth:`encode` made of the source; ``None`` reads the target alone. In training, rows of the
                source language (S = T) then are their own source (``source_rows``), others have the span loss alone.
                Without gold positions of its own (a back-translated source) the loss is the target's alone.
            passages: (B,) numbers that are equal for rows of one passage; all rows differ by default.
            explain: return the attentions too.

        The other arguments are those of :meth:`encode`.
        """
        with_loss = start_positions is not None
        own_source = with_loss and source is None and self.is_own_source(language)
        keep = with_loss and self.config.eta > 0 and self.config.token_alignment == "cross-attention"
        keep = keep and (own_source or source is not None) or explain and source is not None
        gold = start_positions, end_positions, holds_answer
        target = self.encode(input_ids, attention_mask, language, source, *gold, token_type_ids, keep)
        source = target if own_source else source
        output = self.distributions(target, source, explain)
        if with_loss:
            output.losses = self.loss_terms(target, source, output.teacher, passages)
            output.loss = self.objective(output.losses)
            if "token" in output.losses and self.config.token_alignment == "hidden":
                output.uniform_gap = source.mask.sum(1).log().mean() - output.losses["token"].detach()
        return output

    def content(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """(B, N) true on the real tokens of question and context, false on padding and the special tokens around."""
        content = attention_mask.bool()
        for special in self.config.special_ids or ():
            content = content & (input_ids != special)
        return content

    def is_own_source(self, language: str | None) -> bool:
        """Whether rows of a language that are read alone are pairs with themselves in training (S = T, section 3.2).

        Sharing then changes nothing (``h~_S = h_S = h_T``: both attentions are the same), so one pass does.
        """
        config = self.config
        return config.source_rows == "all" and language in (None, config.source_language)

    def teach(self, target: Encoded, source: Encoded) -> Taught:
        """``p_{T|S} = MHA(h~_T, h~_S, p_S)`` (section 3.3); the release transfers logits."""
        if self.config.teacher == "logits":
            values = source.logits * source.mask[..., None].to(source.logits.dtype)
        else:
            values = masked_softmax(source.logits, source.mask)
        return self.teacher(target.normalised, source.normalised, values, target.mask, source.mask)

    def distributions(self, target: Encoded, source: Encoded | None = None, explain: bool = False) -> XStaOutput:
        """p_T, and with a source p_{T|S} and the calibrated p~_T (section 3.3); ``explain`` keeps the attentions."""
        p_target = masked_softmax(target.logits, target.mask)
        output = XStaOutput(
            start_logits=target.logits[..., 0], end_logits=target.logits[..., 1], target=p_target, calibrated=p_target
        )
        if source is not None and self.teacher is not None:
            taught = self.teach(target, source)
            output.teacher, output.teacher_mass = taught.p, taught.sums
            if self.config.calibration == "probabilities":
                output.calibrated = calibrate(taught.p, p_target)
            elif self.config.calibration == "logits":
                output.calibrated = masked_softmax(taught.logits + target.logits, target.mask)
            output.teacher_attention = taught.attention if explain else None
        if explain and target.cross_attention is not None:
            output.cross_attention = target.cross_attention
            mass = (target.cross_attention.mean(1) * source.content[:, None].float()).sum(-1)
            output.content_mass = row_mean(mass, target.mask).mean()
        output.mixing = None if target.mixing is None else target.mixing.detach()
        return output

    def sentence_vectors(self, encoded: Encoded) -> Tensor:
        """(B, H) sentence representations for the alignment (section 3.4)."""
        states = encoded.normalised if self.config.sentence_states == "normalised" else encoded.states
        vectors = mean_pool(states, encoded.mask)
        if self.sentence_projection is None:
            return vectors
        return self.sentence_projection(vectors.to(self.sentence_projection[0].weight.dtype))

    def loss_terms(
        self, target: Encoded, source: Encoded | None, teacher: Tensor | None, passages: Tensor | None = None
    ) -> dict[str, Tensor]:
        """The terms of section 3.5 by name; a target read alone has its span loss only.

        Args:
            target, source: the two passes, with their gold positions; one and the same for S = T.
            teacher: (B, N_T, 2) ``p_{T|S}``.
            passages: see :meth:`forward`.
        """
        config, terms = self.config, {"target": span_loss(target)}
        if source is None or source.starts is None:
            return terms
        if source is not target:
            terms["source"] = span_loss(source)
        if teacher is not None:
            both = target.holds_answer.bool() & source.holds_answer.bool()
            terms["teacher"] = teacher_loss(teacher, target.starts, target.ends, both)
        if config.zeta > 0:
            vectors = self.sentence_vectors(source), self.sentence_vectors(target)
            terms["sentence"] = sentence_alignment(*vectors, passages, config.temperature)
        if config.eta > 0 and config.token_alignment == "cross-attention":
            terms["token"] = token_alignment_release(target.cross_attention)
        elif config.eta > 0:
            keys = source.layer_input if config.token_alignment_gradient else source.layer_input.detach()
            terms["token"] = token_alignment(target.layer_input, keys, target.mask, source.mask)
        return terms

    def weights(self, terms: Container[str]) -> dict[str, float]:
        """The terms' weights by name; without a source term (S = T) the one span loss has weight 1."""
        config, span = self.config, 1 - self.config.alpha if "source" in terms else 1.0
        weights = {"source": config.alpha, "target": span, "teacher": config.gamma}
        return weights | {"sentence": config.zeta, "token": config.eta}

    def objective(self, terms: Mapping[str, Tensor]) -> Tensor:
        """``L = alpha L^S + (1 - alpha) L^T + gamma L_tg + zeta L_align_S + eta L_align_T`` (section 3.5)."""
        weights = self.weights(terms)
        return sum(weights[name] * term for name, term in terms.items())

    # -- made, initialised, saved --------------------------------------------------------------------------------

    @classmethod
    def from_backbone(
        cls,
        name: str,
        config: XStaConfig | None = None,
        languages: list[str] | None = None,
        dropout: float | None = None,
    ) -> tuple["XStaForQuestionAnswering", PreTrainedTokenizerBase]:
        """A model on a pretrained encoder, and its tokenizer; of a question-answering checkpoint the span head is kept.

        Args:
            name: see :func:`xsta_lib.encoders.backbones.load_backbone`.
            config: of the class's own kind, its encoder still to be filled in; its defaults if ``None``.
            languages: languages that will be trained on (for the normalisation statistics).
            dropout: one dropout for the whole encoder and the correction; ``None`` leaves theirs.
        """
        encoder, tokenizer = load_backbone(name, dropout)
        config = config or cls.config_class()
        values = {key: value for key, value in config.to_diff_dict().items() if key in config.fields()}
        if dropout is not None:
            values["sharing_dropout"] = dropout
        values["languages"] = languages or values.get("languages")
        frame = (tokenizer.cls_token_id, tokenizer.sep_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id)
        values["special_ids"] = sorted({token for token in frame if token is not None})
        attention = encoder.config._attn_implementation
        model = cls(type(config)(**{**values, "encoder": encoder.config}), encoder)
        encoder.set_attn_implementation(attention)  # a composite configuration forgets its part's choice
        if (head := load_span_head(name)) is not None:
            model.qa_outputs.load_state_dict(head.state_dict())
        return model, tokenizer

    def _init_weights(self, module: nn.Module) -> None:
        """Set what this model adds to its encoder, where a checkpoint lacks it."""
        if isinstance(module, nn.Linear):
            init.normal_(module.weight, std=getattr(self.config.encoder, "initializer_range", 0.02))
            init.zeros_(module.bias)
        elif isinstance(module, RepresentationNorm):
            init.zeros_(module.running_mean)
            init.ones_(module.running_var)
            init.zeros_(module.updates)

    def initialize_weights(self) -> None:
        """As in transformers, and w and b, which lie inside the encoder and are unknown to its own rules."""
        super().initialize_weights()
        if self.sharing_layer is not None:
            init.ones_(self.sharing_layer.mixing_weight)
            init.zeros_(self.sharing_layer.mixing_bias)

    def save_pretrained(
        self,
        save_directory: str | os.PathLike,
        tokenizer: PreTrainedTokenizerBase | None = None,
        card: str = "",
        **kwargs,
    ) -> None:
        """Save weights and configuration, the tokenizer if given, and a model card (``README.md``)."""
        super().save_pretrained(save_directory, **kwargs)
        if tokenizer is not None:
            tokenizer.save_pretrained(save_directory)
        text = MODEL_CARD.format(config=self.config.to_json_string(), details=card or "No details were given.")
        Path(save_directory, "README.md").write_text(text, "utf-8")


AutoConfig.register("xsta", XStaConfig)
AutoModelForQuestionAnswering.register(XStaConfig, XStaForQuestionAnswering)
