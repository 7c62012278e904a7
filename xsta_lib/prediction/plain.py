"""Any extractive reader of transformers, in the form that :class:`~xsta_lib.prediction.predictor.Predictor` reads with.

Axes: B batch, N tokens.
"""

import inspect
from types import SimpleNamespace

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..data.batches import TEXT_INPUTS
from ..encoders.e5_file import BackboneError
from ..model.modeling import XStaOutput
from ..model.teaching import masked_softmax


class PlainReader(nn.Module):
    """A model of ``AutoModelForQuestionAnswering`` with its own span head; it reads no pairs.

    Args:
        model: on its device.

    Raises:
        BackboneError: the model needs more than text, such as a page's layout, or its head is not one of start and end.
    """

    def __init__(self, model: PreTrainedModel):
        super().__init__()
        self.model, self.config = model, SimpleNamespace(reads_pairs=False, source_language="en", languages=())
        accepted = inspect.signature(model.forward).parameters
        if unread := {"bbox", "pixel_values", "visual_feats"} & set(accepted):
            raise BackboneError(
                f"{model.name_or_path}: {type(model).__name__} reads {', '.join(sorted(unread))} beside the text, "
                "which this reader does not have; use a model that reads text alone"
            )
        outputs = getattr(getattr(model, "qa_outputs", None), "out_features", 2)
        if outputs != 2:
            raise BackboneError(
                f"{model.name_or_path}: its span head has {outputs} outputs, not 2 (start and end); use a model that "
                "was trained to answer questions"
            )
        self.accepted = [name for name in TEXT_INPUTS if name in accepted]

    @property
    def device(self):
        """Where the model is."""
        return self.model.device

    def forward(self, language: str | None = None, explain: bool = False, **inputs: Tensor) -> XStaOutput:
        """Distributions over start and end, (B, N, 2), over all real tokens, as the calibrated and the target's own.

        Args:
            language, explain: as of X-STA; they change nothing here.
            inputs: ``input_ids`` and ``attention_mask``, (B, N), and ``token_type_ids`` where the tokenizer gives them.
        """
        output = self.model(**{name: inputs[name] for name in self.accepted if name in inputs})
        logits = output.start_logits, output.end_logits
        if logits[0].shape != inputs["input_ids"].shape:
            raise ValueError(f"{self.model.name_or_path}: its logits are not one a token; use another model")
        p = masked_softmax(torch.stack(logits, -1).float(), inputs["attention_mask"])
        return XStaOutput(start_logits=logits[0], end_logits=logits[1], target=p, calibrated=p)
