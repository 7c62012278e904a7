"""The reader as a Hugging Face model: made from a pretrained encoder, initialised, saved with a model card."""

import os
from pathlib import Path

from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers import initialization as init

from .backbones import load_backbone, set_dropout
from .baselines import find_attention_block
from .configuration import XStaConfig
from .sharing import find_self_attention
from .teaching import RepresentationNorm

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


class PretrainedReader(PreTrainedModel):
    """What a reader on a pretrained encoder needs beside its passes and losses."""

    config_class = XStaConfig
    base_model_prefix = "encoder"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_attention_backend = True

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

    @classmethod
    def from_backbone(
        cls,
        name: str,
        config: XStaConfig | None = None,
        languages: list[str] | None = None,
        dropout: float | None = None,
    ):
        """A model on a pretrained encoder, and its tokenizer.

        Args:
            name: see :func:`xsta_lib.backbones.load_backbone`.
            config: an ``XStaConfig`` whose encoder is still to be filled in; the paper's by default.
            languages: languages that will be trained on (for the normalisation statistics).
            dropout: one dropout for the whole encoder and the correction; ``None`` leaves theirs.

        Returns:
            ``(model, tokenizer)``
        """
        encoder, tokenizer = load_backbone(name)
        values = (config or XStaConfig()).to_diff_dict()
        values = {key: value for key, value in values.items() if key in XStaConfig.__annotations__}
        if dropout is not None:
            values["sharing_dropout"] = dropout
            set_dropout(encoder, dropout)
        values["languages"] = languages or values.get("languages")
        attention = encoder.config._attn_implementation
        model = cls(XStaConfig(**{**values, "encoder": encoder.config}), encoder)
        encoder.set_attn_implementation(attention)  # a composite configuration forgets its part's choice
        return model, tokenizer

    @property
    def sharing_layer(self) -> nn.Module | None:
        """The module that shares, with its parameters w and b; ``None`` in a plain reader."""
        if not self.config.reads_pairs:
            return None
        if self.config.sharing == "x-mixup":
            return find_attention_block(self.encoder, self.config.sharing_layer)
        return find_self_attention(self.encoder, self.config.sharing_layer)

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
