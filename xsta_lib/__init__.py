"""X-STA: Sharing, Teaching and Aligning for cross-lingual machine reading comprehension (Cao et al., 2023).

The names below are imported when they are first asked for: ``import xsta_lib`` alone brings no torch.
"""

import importlib

__version__ = "0.1.0"

_MODULES = {
    "Answer": "data.squad",
    "Explanation": "prediction.explaining",
    "Predictor": "prediction.predictor",
    "Question": "data.squad",
    "Reader": "reader",
    "ReaderAnswer": "prediction.answers",
    "Trainer": "training.trainer",
    "TrainingConfig": "training.configuration",
    "XStaConfig": "model.configuration",
    "XStaForQuestionAnswering": "model.modeling",
    "explain": "prediction.explaining",
    "load_protocol": "data.protocols",
    "read_squad": "data.squad",
}
__all__ = ["__version__", *_MODULES]


def __getattr__(name: str):
    """One of the names above (PEP 562)."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = getattr(importlib.import_module(f".{_MODULES[name]}", __name__), name)
    return globals()[name]


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
