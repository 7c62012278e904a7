"""The configuration of X-STA: the paper's choices as defaults, the release's and the ablations by name."""

import math
from typing import Any

from transformers import AutoConfig, PreTrainedConfig

try:
    from transformers.configuration_utils import SubConfigSpec
except ImportError:  # transformers before 5.20 reads `sub_configs` instead
    SubConfigSpec = None

from huggingface_hub.dataclasses import strict

from .aligning import TOKEN_ALIGNMENTS
from .sharing import SHARING_MODES, WEIGHTINGS
from .teaching import NORMALISATIONS, STATISTICS, TEACHER_FORMS

ABLATIONS = {  # of Table 4, by name: the fields that they set
    "gdks": {"sharing": "cross-attention"},
    "atgc": {"teacher": "none", "calibration": "none"},
    "atgc_inference": {"calibration": "none"},
    "rep_norm": {"normalisation": "none"},
    "alignment_sentence": {"zeta": 0.0},
    "alignment_token": {"eta": 0.0},
}
STATES = ("hidden", "normalised")

CHOICES = {
    "sharing": SHARING_MODES,
    "sharing_weighting": WEIGHTINGS,
    "sharing_keys": ("all", "content"),
    "source_rows": ("all", "span"),
    "span_states": STATES,
    "sentence_states": STATES,
    "normalisation": NORMALISATIONS,
    "normalisation_statistics": STATISTICS,
    "teacher": (*TEACHER_FORMS, "none"),
    "calibration": ("probabilities", "logits", "none"),
    "token_alignment": TOKEN_ALIGNMENTS,
}
RANGES = {
    "alpha": (0, 1),
    "gamma": (0, 100),
    "zeta": (0, 100),
    "eta": (0, 100),
    "temperature": (1e-4, 10),
    "lambda_0": (0, 1),
    "sharing_dropout": (0, 0.99),
}

# What the authors' published code does where it differs from the paper (its mBERT copy).
RELEASE = {
    "sharing_weighting": "release",
    "span_states": "normalised",
    "sentence_states": "normalised",
    "sentence_projection": True,
    "teacher": "logits",
    "calibration": "logits",
    "token_alignment": "cross-attention",
    "normalisation_statistics": "sequences",
}
# Everything of X-STA off: the plain extractive reader that zero-shot and trans-train use.
PLAIN = {"sharing": "none", "teacher": "none", "calibration": "none", "normalisation": "none", "zeta": 0.0, "eta": 0.0}


@strict
class XStaConfig(PreTrainedConfig):
    """Configuration of :class:`~xsta_lib.model.modeling.XStaForQuestionAnswering`; the defaults are the paper's.

    Args:
        encoder: configuration of the encoder (a BERT or (XLM-)RoBERTa).
        languages: languages with normalisation statistics; the source language comes first and is added if absent.
        source_language: the language that teaches.
        sharing: ``gdks`` (section 3.2), ``cross-attention`` (the paper's "w/o GDKS"), or ``none``.
        sharing_layer: the layer that shares, counted from 1.
        sharing_weighting: ``paper`` weights the cross-attended part by 1 - lambda, ``release`` by lambda.
        lambda_0: initial lambda.
        sharing_keys: the source tokens that the sharing layer may attend to: ``all``, or its ``content`` without the
            special tokens (:attr:`special_ids`).
        sharing_dropout: dropout inside the correction ``f``.
        span_states: what the span head reads, ``hidden`` (h^L) or ``normalised`` (the release).
        normalisation: Rep-Norm statistics ``per-language``, ``shared``, or ``none``.
        normalisation_statistics: means over ``tokens``, or over the means of ``sequences`` (the release).
        teacher: ``renormalised``, ``raw``, ``logits`` (the release), or ``none``.
        teacher_gradient: let gradients flow through the teacher's queries and keys.
        calibration: average of ``probabilities``, sum of ``logits`` (the release), or ``none``.
        sentence_states: sentence vectors from ``hidden`` or ``normalised`` states.
        sentence_projection: a shared Linear + tanh behind the mean (the release).
        token_alignment: entropy of the ``hidden`` states' attention, or of the ``cross-attention`` (the release).
        token_alignment_gradient: let the gradients of the ``hidden`` form flow into the source's states too. The
            release's form goes by ``sharing``: under ``gdks`` a pair's source gets none.
        source_rows: what rows of the source language (S = T) carry in training: ``all`` terms, their own pass being
            their source, or the ``span`` loss alone.
        alpha, gamma, zeta, eta: weights of section 3.5: source span loss (the target's is 1 - alpha), teacher,
            sentence and token alignment.
        temperature: tau of the sentence alignment.
        special_ids: ids of the tokens that frame question and context; :meth:`from_backbone` of the model sets them.
        without: ablations of Table 4 by name, any of ``ABLATIONS``; they overrule the fields above.

    Raises:
        ValueError: unknown value, option or ablation, or a number out of range; the message lists what is allowed.
    """

    model_type = "xsta"
    if SubConfigSpec is None:
        sub_configs = {"encoder": AutoConfig}
    else:
        sub_configs_defaults = {"encoder": SubConfigSpec(config_class=AutoConfig, model_type="bert")}

    encoder: PreTrainedConfig | dict | None = None
    languages: list[str] | None = None
    source_language: str = "en"
    sharing: str = "gdks"
    sharing_layer: int = 8
    sharing_weighting: str = "paper"
    sharing_keys: str = "all"
    lambda_0: float = 0.3
    sharing_dropout: float = 0.1
    span_states: str = "hidden"
    normalisation: str = "per-language"
    normalisation_statistics: str = "tokens"
    teacher: str = "renormalised"
    teacher_gradient: bool = True
    calibration: str = "probabilities"
    sentence_states: str = "hidden"
    sentence_projection: bool = False
    token_alignment: str = "hidden"
    token_alignment_gradient: bool = True
    source_rows: str = "all"
    alpha: float = 0.2
    gamma: float = 0.1
    zeta: float = 0.05
    eta: float = 0.05
    temperature: float = 0.05
    special_ids: list[int] | None = None
    without: list[str] | None = None

    def __post_init__(self, **kwargs: Any):
        if isinstance(self.encoder, dict):
            values = dict(self.encoder)
            self.encoder = AutoConfig.for_model(values.pop("model_type", "bert"), **values)
        super().__post_init__(**kwargs)
        self._apply_ablations()
        for name, allowed in CHOICES.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} is {getattr(self, name)!r}; allowed: {', '.join(allowed)}")
        for name, (low, high) in RANGES.items():
            if not low <= getattr(self, name) <= high:
                raise ValueError(f"{name} is {getattr(self, name)}; allowed: {low} to {high}")
        layers = getattr(self.encoder, "num_hidden_layers", None)
        if self.reads_pairs and not 1 <= self.sharing_layer <= (layers or math.inf):
            name, top = getattr(self.encoder, "name_or_path", "") or "the encoder", layers or "its last layer"
            raise ValueError(
                f"sharing_layer is {self.sharing_layer}, but {name} has the layers 1 to {top}; choose an encoder that "
                'has it; x-sta may have another, in Python: switches=[("sharing_layer", ...)] of xsta_lib.experiment'
            )
        self._check_combinations()
        rest = [language for language in self.languages or [] if language != self.source_language]
        self.languages = [self.source_language, *dict.fromkeys(rest)]

    def _apply_ablations(self) -> None:
        self.without = list(dict.fromkeys(self.without or []))
        if unknown := set(self.without) - ABLATIONS.keys():
            raise ValueError(f"without names {sorted(unknown)}; allowed: {', '.join(ABLATIONS)}")
        for ablation in self.without:
            for field, value in ABLATIONS[ablation].items():
                setattr(self, field, value)

    def _check_combinations(self) -> None:
        if self.calibration != "none" and self.teacher == "none":
            raise ValueError("calibration needs a teacher; set calibration='none' or choose a teacher")
        if self.calibration == "logits" and self.teacher == "raw":
            raise ValueError("calibration='logits' needs a teacher that is a distribution; 'raw' is not one")
        if self.eta > 0 and self.token_alignment == "cross-attention" and self.sharing == "none":
            raise ValueError("token_alignment='cross-attention' needs a sharing layer; sharing is 'none'")

    @classmethod
    def release(cls, **changes: Any) -> "XStaConfig":
        """The authors' published code, where it differs from the paper; ``changes`` overrule single fields."""
        return cls(**{**RELEASE, **changes})

    @classmethod
    def plain(cls, **changes: Any) -> "XStaConfig":
        """X-STA's parts all off: the extractive reader of the zero-shot and trans-train baselines."""
        return cls(**{**PLAIN, **changes})

    @classmethod
    def fields(cls) -> set[str]:
        """The names of all fields of this configuration, without those of every transformers configuration."""
        return {name for kind in cls.__mro__ if issubclass(kind, XStaConfig) for name in kind.__annotations__}

    @property
    def reads_pairs(self) -> bool:
        """Whether the model has any use for a source beside the target."""
        return self.sharing != "none" or self.teacher != "none" or self.zeta > 0 or self.eta > 0
