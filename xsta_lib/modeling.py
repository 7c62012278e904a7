"""X-STA put together (section 3.5): an encoder that shares, a teacher that calibrates, losses that align.

Axes: B batch, N_S and N_T source and target tokens, H hidden size, A heads. A pass over the source comes first and does
not depend on the target, so one source pass can serve several targets.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForQuestionAnswering, PreTrainedModel

from . import parallel
from .aligning import mean_pool, sentence_alignment, token_alignment, token_alignment_release
from .backbones import empty_encoder, keep_weights
from .baselines import install_mixup, representation_distance
from .configuration import XStaConfig
from .outputs import Encoded, XStaOutput, average_outputs, span_loss
from .passes import attend_in_groups, look_up, read_in_groups, read_once
from .pretrained import PretrainedReader
from .sharing import SharingContext, install_sharing
from .teaching import AttentiveTeacher, RepresentationNorm, calibrate, masked_softmax, teacher_loss


class XStaForQuestionAnswering(PretrainedReader):
    """Extractive reader with Sharing, Teaching and Aligning; with all parts off, a plain one.

    Made from a pretrained encoder by :meth:`from_backbone`, saved and loaded the Hugging Face way.

    Raises:
        ValueError: the encoder cannot take the sharing layer.
    """

    def __init__(self, config: XStaConfig, encoder: PreTrainedModel | None = None):
        super().__init__(config)
        self.rows_per_pass = 0  # most rows that the encoder reads at once, 0 for all; see tune_passes
        self.encoder = empty_encoder(config.encoder) if encoder is None else keep_weights(encoder)
        hidden, heads = config.encoder.hidden_size, config.encoder.num_attention_heads
        std = getattr(config.encoder, "initializer_range", 0.02)
        self.qa_outputs = nn.Linear(hidden, 2)
        nn.init.normal_(self.qa_outputs.weight, std=std)
        nn.init.zeros_(self.qa_outputs.bias)
        if config.sharing == "x-mixup":
            install_mixup(self.encoder, config.sharing_layer, config.lambda_0)
        elif config.reads_pairs:
            install_sharing(
                self.encoder,
                config.sharing_layer,
                config.sharing,
                config.lambda_0,
                config.sharing_weighting,
                config.sharing_dropout,
            )
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

    def encode(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        language: str,
        source: Encoded | None = None,
        keep_attention: bool = False,
        token_type_ids: Tensor | None = None,
        words: Tensor | None = None,
    ) -> Encoded:
        """One pass of one language; with ``source`` its sharing layer reads the source's states.

        Args:
            input_ids, attention_mask: (B, N).
            language: whose normalisation statistics to use.
            source: the source's own pass, over the same questions row by row; lengths may differ.
            keep_attention: keep the cross-attention probabilities.
            token_type_ids: (B, N) 1 on the context, for encoders that tell question and context apart.
            words: (B, N, H) word embeddings of ``input_ids``, where they were looked up already.
        """
        context = SharingContext(attention_mask, keep_attention=keep_attention, expected=self.config.reads_pairs)
        if source is not None:
            context.source_input, context.source_mask = source.layer_input, source.mask
        if self.rows_per_pass:
            words = look_up(self.encoder, [input_ids])[0] if words is None else words
            states = read_in_groups(self.encoder, words, context, self.rows_per_pass, token_type_ids)
        else:
            states = read_once(self.encoder, context, {"input_ids": input_ids, "token_type_ids": token_type_ids})
        normalised = states if self.normalisation is None else self.normalisation(states, attention_mask, language)
        read = normalised if self.config.span_states == "normalised" else states
        logits = self.qa_outputs(read.to(self.qa_outputs.weight.dtype))
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        brought = context.layer_input, logits, context.cross_attention, context.mixing
        return Encoded(attention_mask, states, normalised, *brought)

    def teach(self, target: Encoded, source: Encoded) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The teacher's distribution, its logits, its column sums and its attention (section 3.3)."""
        if self.rows_per_pass:
            sides = (target.normalised, target.mask), (source.normalised, source.mask)
            attention = attend_in_groups(self.teacher.attention, *sides, self.rows_per_pass)
        else:
            attention = self.teacher.attention(target.normalised, source.normalised, source.mask)
        return (*self.teacher(attention, source.logits, source.mask, target.mask), attention)

    def sentence_vectors(self, encoded: Encoded) -> Tensor:
        """(B, H) sentence representations for the alignment (section 3.4)."""
        states = encoded.normalised if self.config.sentence_states == "normalised" else encoded.states
        vectors = mean_pool(states, encoded.mask)
        if self.sentence_projection is None:
            return vectors
        return self.sentence_projection(vectors.to(self.sentence_projection[0].weight.dtype))

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        language: str | None = None,
        start_positions: Tensor | None = None,
        end_positions: Tensor | None = None,
        holds_answer: Tensor | None = None,
        source: Mapping | Encoded | None = None,
        question_ids: Tensor | None = None,
        explain: bool = False,
        token_type_ids: Tensor | None = None,
        targets: Sequence[Mapping] | None = None,
        words: Tensor | None = None,
    ) -> XStaOutput:
        """Read the target (B, N_T), with its source where there is one.

        Args:
            language: the target's language; the source language by default.
            start_positions, end_positions: (B,) gold token positions ([CLS] where a window lacks the answer).
            holds_answer: (B,) whether the target window holds the answer; all do by default.
            source: ``None`` (S = T: one pass, span loss only), the source's own arguments (``input_ids``,
                ``attention_mask``, ``start_positions``, ``end_positions``, ``holds_answer``), or an :class:`Encoded`.
                Without gold positions of the source (back-translated English) the loss is the target's alone.
            question_ids: (B,) numbers that are equal for rows of one question.
            explain: return the attentions too.
            token_type_ids: (B, N_T) as in :meth:`encode`; a source brings its own.
            targets: instead of all of the above but ``source``, the arguments of several languages, each with
                ``source_rows``, the rows of the one source that its rows read; the source is encoded once.
            words: (B, N_T, H) as in :meth:`encode`; a source may bring its own.
        """
        if targets is not None:
            return self._forward_shared(targets, source)
        inputs = source if isinstance(source, Mapping) else None
        if inputs is not None and "encoded" not in inputs and self.rows_per_pass:
            words, source_words = look_up(self.encoder, [input_ids, inputs["input_ids"]])
            inputs = {**inputs, "words": source_words}
        if inputs is not None:
            source = inputs["encoded"] if "encoded" in inputs else self._encode_inputs(inputs)
        elif source is not None and start_positions is not None:
            raise ValueError("training needs the source's inputs, not its encoded states")
        with_loss = start_positions is not None and self.config.eta > 0
        keep = explain or (with_loss and self.config.token_alignment == "cross-attention")
        language = language or self.config.source_language
        target = self.encode(input_ids, attention_mask, language, source, keep, token_type_ids, words)
        output = self.distributions(target, source, explain)
        if start_positions is not None:
            gold = (start_positions, end_positions)
            terms = {"target": span_loss(target.logits, target.mask, *gold)}
            if inputs is not None and "start_positions" in inputs:
                counted = torch.ones_like(gold[0]) if holds_answer is None else holds_answer
                terms |= self._pair_terms(output, target, source, inputs, gold, counted, question_ids)
            output.loss = self.objective(terms)
            output.losses = {name: value.detach() for name, value in terms.items()}
        return output

    def _encode_inputs(self, source: Mapping) -> Encoded:
        names = ("input_ids", "attention_mask", "token_type_ids", "words")
        given = {name: source[name] for name in names if name in source}
        return self.encode(**given, language=self.config.source_language)

    def _forward_shared(self, targets: Sequence[Mapping], source: Mapping) -> XStaOutput:
        """One source pass for the targets of several languages; every row counts alike in the loss."""
        if self.rows_per_pass:
            given = [source, *targets]
            words = look_up(self.encoder, [value["input_ids"] for value in given])
            source, *targets = [{**value, "words": found} for value, found in zip(given, words, strict=True)]
        encoded, outputs = self._encode_inputs(source), []
        for target in targets:
            rows = target["source_rows"]
            own = {name: value[rows] for name, value in source.items() if name != "words"}
            own["encoded"] = encoded.map(lambda value, rows=rows: value[rows])
            arguments = {name: value for name, value in target.items() if name != "source_rows"}
            outputs.append(self.forward(**arguments, source=own))
        return average_outputs(outputs, [len(target["source_rows"]) for target in targets])

    def distributions(self, target: Encoded, source: Encoded | None = None, explain: bool = False) -> XStaOutput:
        """p_T, and with a source p_{T|S} and the calibrated p~_T (section 3.3); ``explain`` keeps the attentions."""
        p_target = masked_softmax(target.logits, target.mask)
        output = XStaOutput(
            start_logits=target.logits[..., 0], end_logits=target.logits[..., 1], target=p_target, calibrated=p_target
        )
        if source is not None and self.teacher is not None:
            output.teacher, logits, output.teacher_mass, attention = self.teach(target, source)
            if self.config.calibration == "probabilities":
                output.calibrated = calibrate(output.teacher, p_target)
            elif self.config.calibration == "logits":
                output.calibrated = masked_softmax(logits + target.logits, target.mask)
            if explain:
                output.teacher_attention = attention
        if explain:
            output.cross_attention = target.cross_attention
        output.mixing = None if target.mixing is None else target.mixing.detach()
        return output

    def _pair_terms(
        self,
        output: XStaOutput,
        target: Encoded,
        source: Encoded,
        inputs: Mapping,
        gold: tuple[Tensor, Tensor],
        counted: Tensor,
        question_ids: Tensor | None,
    ) -> dict[str, Tensor]:
        """The terms that only a pair has: source span loss, teacher, sentence and token alignment."""
        config = self.config
        terms = {"source": span_loss(source.logits, source.mask, inputs["start_positions"], inputs["end_positions"])}
        if output.teacher is not None:
            both = counted.bool() & inputs.get("holds_answer", torch.ones_like(counted)).bool()
            terms["teacher"] = teacher_loss(output.teacher, *gold, both)
        if config.zeta > 0:
            first = parallel.rank() * 2**32  # rows of other ranks are other questions
            rows = first + torch.arange(len(target.mask), device=target.mask.device)
            ids = rows if question_ids is None else question_ids
            vectors = self.sentence_vectors(source), self.sentence_vectors(target)
            terms["sentence"] = sentence_alignment(*vectors, ids, config.temperature)
        if config.eta > 0 and config.token_alignment == "cross-attention":
            terms["token"] = token_alignment_release(target.cross_attention)
        elif config.eta > 0:
            layer_inputs = target.layer_input, source.layer_input
            terms["token"] = token_alignment(*layer_inputs, target.mask, source.mask)
        if config.distance > 0:
            terms["distance"] = representation_distance(source.states, target.states, source.mask, target.mask)
        return terms

    def objective(self, terms: Mapping[str, Tensor]) -> Tensor:
        """``L = alpha L^S + (1 - alpha) L^T + gamma L_tg + zeta L_align_S + eta L_align_T`` (section 3.5).

        Without a source term (S = T) the one span loss has weight 1.
        """
        config = self.config
        if "source" not in terms:
            return terms["target"]
        loss = config.alpha * terms["source"] + (1 - config.alpha) * terms["target"]
        weights = {
            "teacher": config.gamma,
            "sentence": config.zeta,
            "token": config.eta,
            "distance": config.distance,
        }
        for name, weight in weights.items():
            if name in terms:
                loss = loss + weight * terms[name]
        return loss


AutoConfig.register("xsta", XStaConfig)
AutoModelForQuestionAnswering.register(XStaConfig, XStaForQuestionAnswering)
