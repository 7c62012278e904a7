"""Pictures of answer spans projected into translations: the table of methods, and one answer in several scripts."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd
import seaborn
from matplotlib.figure import Figure

from ..data.files import home
from ..data.squad import Question
from ..experiments.projection import case, projection_table
from ..translation.spans import Projection
from .cases import EM, Column, cut_page, page
from .style import DPI, panels, save

KEY = {"gold": "gold (line below)", "calibrated": "projected (yellow)"}  # the marks of cases.py that are used here


def projection_heatmap(table: pd.DataFrame, title: str = "") -> Figure:
    """The methods' F1 (%) by language as a table whose colours say how good: rows are methods, columns languages."""
    figure, (axes,) = panels(1.5 + 0.62 * len(table.columns), 1.2 + 0.42 * len(table))
    seaborn.heatmap(table, annot=True, fmt=".1f", cmap="Blues", vmin=0, vmax=100, ax=axes, cbar=False, linewidths=1)
    axes.set(xlabel="", ylabel="", title=title)
    axes.tick_params(axis="y", rotation=0, length=0)
    axes.tick_params(axis="x", length=0)
    return figure


def projection_picture(source: Question, targets: Mapping[str, tuple[Question, Sequence[Projection]]]) -> Figure:
    """One answer in several scripts: the source with its gold span, then each target with its likeliest spans.

    Args:
        source: with its answer.
        targets: by language, the question there and its spans, best first; the best is marked, all are written out.
    """
    axes, width = page(9), 9 * DPI
    column = Column(axes, 0.02 * width, 0.96 * width, 2 * EM)
    column.text(source.question, weight="bold")
    gold = source.answers[0]
    column.text(source.context, {"gold": (gold.start, gold.end)})
    for target, found in targets.values():
        column.y += EM
        column.text(target.question, weight="bold")
        gold, best = target.answers[0], found[0]
        spans = {"gold": (gold.start, gold.end), "calibrated": (best.start, best.end)}
        column.text(target.context, spans)
        for span in found:
            low = column.y
            Column(axes, column.left, 0.2 * width, low).text(f"probability {span.score:.2f}")
            written = Column(axes, column.left + 0.16 * width, 0.8 * width, low)
            written.text(target.context[span.start : span.end])
            column.y = written.y
    return cut_page(axes, column.y + 2 * EM, KEY)


def write_projection_figures(figures: Path | None = None) -> list[Path]:
    """Draw the measured table as ``projection.png`` and the span model's answers as ``projection-scripts.png``.

    Args:
        figures: where they go, by default ``figures/``.

    Raises:
        TextError: nothing was measured, see :func:`~xsta_lib.experiments.projection.measure_all`.
    """
    figures = figures or home() / "figures"
    table = projection_heatmap(projection_table(), "F1 of projected spans, XQuAD's other half")
    return [
        save(table, figures / "projection.png"),
        save(projection_picture(*case()), figures / "projection-scripts.png"),
    ]
