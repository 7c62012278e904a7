"""X-STA: Sharing, Teaching and Aligning for cross-lingual machine reading comprehension (Cao et al., 2023)."""

from .answering import Explanation, Predictor, explain
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
