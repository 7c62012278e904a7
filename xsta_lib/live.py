"""A loss curve that grows while a notebook trains."""

import sys
from collections.abc import Callable, Sequence

from .training_figures import training_curves


def in_notebook() -> bool:
    """Whether a Jupyter kernel runs this process."""
    if "IPython" not in sys.modules:
        return False
    from IPython import get_ipython

    return type(get_ipython()).__name__ == "ZMQInteractiveShell"


def live_curve() -> Callable[[Sequence[dict]], None]:
    """A function of the log so far that redraws one picture below the running cell; for the trainer's ``on_log``."""
    from IPython.display import display

    shown = None

    def redraw(log: Sequence[dict]) -> None:
        """Draw all lines so far in place of the picture before."""
        nonlocal shown
        if not any("loss" in line for line in log):
            return
        figure = training_curves(log)
        if shown is None:
            shown = display(figure, display_id=True)
        else:
            shown.update(figure)

    return redraw
