"""X-STA: Sharing, Teaching and Aligning for cross-lingual machine reading comprehension (Cao et al., 2023)."""

import importlib

from .configuration import XStaConfig
from .corpus import Answer, Question
from .modeling import XStaForQuestionAnswering

__version__ = "0.1.0"
__all__ = [
    "Answer",
    "Explanation",
    "Predictor",
    "Question",
    "XStaConfig",
    "XStaForQuestionAnswering",
    "__version__",
    "explain",
]


def __getattr__(name: str):
    """The names of ``answering`` and ``explaining``, read when first asked for: they bring ``datasets`` and more."""
    places = {"Predictor": ".answering", "Explanation": ".explaining", "explain": ".explaining"}
    if name in places:
        return getattr(importlib.import_module(places[name], __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
