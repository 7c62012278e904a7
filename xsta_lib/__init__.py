"""X-STA: Sharing, Teaching and Aligning for cross-lingual machine reading comprehension (Cao et al., 2023)."""

from .configuration import XStaConfig
from .modeling import XStaForQuestionAnswering

__version__ = "0.1.0"
__all__ = ["XStaConfig", "XStaForQuestionAnswering", "__version__"]
