"""Pictures of how training reads and steps: batches, learning rate, the teacher."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from .batching import Part, Row, row_length

# Okabe and Ito's colours, told apart by colour-blind readers, and as many markers.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#E69F00", "#56B4E9", "#CC79A7", "#000000", "#F0E442")
MARKERS = "osD^vP*X"


def padding_share(parts: Sequence[Part], batches: Sequence[Sequence[Row]], multiple: int = 32) -> float:
    """The share of all positions that hold padding, 0 to 1, each row counted with its longer side.

    Args:
        parts, batches: the data and how it is cut.
        multiple: lengths are rounded up to a multiple of it.
    """
    real = padded = 0
    for batch in batches:
        lengths = [row_length(parts, row) for row in batch]
        real += sum(lengths)
        padded += len(batch) * -(-max(lengths) // multiple) * multiple
    return 1 - real / padded


def batch_shapes(parts: Sequence[Part], batches: Sequence[Sequence[Row]]) -> Figure:
    """One epoch's batches in their order: a mark's height is the longest row, its form and colour the language pair."""
    figure = Figure(figsize=(8, 3), layout="constrained")
    axes = figure.subplots()
    for number, part in enumerate(parts):
        chosen = [(i, max(row_length(parts, r) for r in b)) for i, b in enumerate(batches) if b[0].part == number]
        if chosen:
            style = {"color": PALETTE[number % 8], "marker": MARKERS[number % 8], "s": 18, "label": part.language}
            axes.scatter(*zip(*chosen, strict=True), **style)
    axes.set(xlabel="step of the epoch", ylabel="tokens of the longest row", title="batches by language pair")
    axes.legend(frameon=False, fontsize="small", loc="center left", bbox_to_anchor=(1, 0.5))
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def training_curves(log: Sequence[dict]) -> Figure:
    """The loss terms and lambda over the steps of one run, from its log."""
    frame = pd.DataFrame([line for line in log if "loss" in line])
    figure = Figure(figsize=(9, 2.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    for number, name in enumerate(("source", "target", "teacher", "sentence", "token", "loss")):
        if name in frame:
            kept = frame[["step", name]].dropna()
            style = {"color": "black", "linewidth": 2} if name == "loss" else {"color": PALETTE[number], "linewidth": 1}
            style |= {"marker": MARKERS[number], "markersize": 4, "markevery": max(1, len(kept) // 20)}
            left.plot(kept["step"], kept[name], label=name, **style)
    left.set(xlabel="step", ylabel="nats", title="loss terms")
    left.legend(frameon=False, fontsize="small", loc="center left", bbox_to_anchor=(1, 0.5))
    if "lambda" in frame:
        right.plot(frame["step"], frame["lambda"], color=PALETTE[0])
    right.set(xlabel="step", ylabel="lambda", title="weight of the target's own attention")
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def step_curves(log: Sequence[Mapping[str, float]]) -> Figure:
    """Learning rate, gradient norm and the teacher's column sums over the steps of one run, from its log."""
    frame = pd.DataFrame([line for line in log if "loss" in line])
    figure = Figure(figsize=(9, 2.6), layout="constrained")
    panels = {
        "learning_rate": "learning rate",
        "grad_norm": "gradient norm before clipping",
        "teacher_mass": "column sums of the teacher",
    }
    for axes, (name, title) in zip(figure.subplots(1, len(panels)), panels.items(), strict=True):
        kept = frame[["step", name]].dropna() if name in frame else pd.DataFrame({"step": [], name: []})
        axes.plot(kept["step"], kept[name], color="#0072B2", marker="." if len(kept) < 40 else "")
        axes.set(xlabel="step", title=title, ylim=(0, 1.08 * kept[name].max() if len(kept) else 1))
        axes.title.set_fontsize("medium")
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def selection_curve(steps: Sequence[int], scores: Sequence[float]) -> Figure:
    """Validation F1 (%) over the steps; the chosen step is marked."""
    figure = Figure(figsize=(5, 2.6), layout="constrained")
    axes = figure.subplots()
    best = int(np.argmax(scores))
    axes.plot(steps, scores, color="#0072B2", marker="o")
    axes.scatter([steps[best]], [scores[best]], s=120, facecolor="none", edgecolor="#D55E00", linewidth=2, zorder=3)
    axes.annotate("kept", (steps[best], scores[best]), textcoords="offset points", xytext=(-36, -4), color="#D55E00")
    axes.set(xlabel="step", ylabel="F1 (%)", title="selection on the validation languages")
    axes.spines[["top", "right"]].set_visible(False)
    return figure
