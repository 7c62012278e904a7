"""Pictures of the inside of a model (Figures 4 and 5, distributions) and of its training."""

from collections.abc import Callable, Mapping, Sequence
from itertools import chain, repeat

import numpy as np
import pandas as pd
import seaborn
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from ..data.batches import Part, Row, row_sides
from ..prediction.explaining import Explanation, piece_text
from .style import BESIDE, BLUE, MARKERS, PALETTE, VERMILION, legend, panels, use_fonts


def padding_share(parts: Sequence[Part], batches: Sequence[Sequence[Row]], multiple: int = 32) -> float:
    """The share of all positions that hold padding, 0 to 1, each row counted with its longer side.

    Batches are padded to their longest row, rounded up to a ``multiple``.
    """
    lengths = [[max(row_sides(parts, row)) for row in batch] for batch in batches]
    padded = sum(len(batch) * -(-max(batch) // multiple) * multiple for batch in lengths)
    return 1 - sum(map(sum, lengths)) / padded


def batch_shapes(parts: Sequence[Part], batches: Sequence[Sequence[Row]]) -> Figure:
    """One epoch's batches in their order: a mark's height is the longest row, its form and colour the language pair."""
    figure, (axes,) = panels(8, 3)
    rows = [(parts[batch[0].part].language, max(max(row_sides(parts, row)) for row in batch)) for batch in batches]
    frame = pd.DataFrame(rows, columns=["language", "tokens"]).rename_axis("step").reset_index()
    shown = [part.language for part in parts if part.language in set(frame["language"])]
    look = {"hue_order": shown, "palette": (PALETTE * 2)[: len(shown)], "style_order": shown}
    look["markers"] = list(MARKERS * 2)[: len(shown)]
    seaborn.scatterplot(frame, x="step", y="tokens", hue="language", style="language", ax=axes, linewidth=0, **look)
    axes.set(xlabel="step of the epoch", ylabel="tokens of the longest row", title="batches by language pair")
    legend(axes, **BESIDE)
    return figure


def training_curves(log: Sequence[dict]) -> Figure:
    """The loss terms and lambda over the steps of one run, from its log."""
    frame = pd.DataFrame([line for line in log if "loss" in line])
    figure, (left, right) = panels(9, 2.8, 2)
    for number, name in enumerate(("source", "target", "teacher", "sentence", "token", "loss")):
        if name in frame:
            kept = frame[["step", name]].dropna()
            style = {"color": "black", "linewidth": 2} if name == "loss" else {"color": PALETTE[number], "linewidth": 1}
            style |= {"marker": MARKERS[number], "markersize": 4, "markevery": max(1, len(kept) // 20)}
            left.plot(kept["step"], kept[name], label=name, **style)
    left.set(xlabel="step", ylabel="nats", title="loss terms")
    legend(left, **BESIDE)
    if "lambda" in frame:
        kept = frame[["step", "lambda"]].dropna()  # steps without pairs have none
        right.plot(kept["step"], kept["lambda"], color=BLUE, marker="." if len(kept) < 40 else "")
    right.set(xlabel="step", ylabel="lambda", title="weight of the target's own attention")
    return figure


def step_curves(log: Sequence[Mapping[str, float]]) -> Figure:
    """Learning rate, gradient norm and the teacher's column sums over the steps of one run, from its log."""
    titles = {
        "learning_rate": "learning rate",
        "grad_norm": "gradient norm before clipping",
        "teacher_mass": "column sums of the teacher",
    }
    frame = pd.DataFrame([line for line in log if "loss" in line]).reindex(columns=["step", *titles])
    figure, sides = panels(9, 2.6, len(titles))
    for axes, (name, title) in zip(sides, titles.items(), strict=True):
        kept = frame[["step", name]].dropna()
        axes.plot(kept["step"], kept[name], color=BLUE, marker="." if len(kept) < 40 else "")
        axes.set(xlabel="step", ylim=(0, 1.08 * kept[name].max() if len(kept) else 1))
        axes.set_title(title, fontsize="medium")
    return figure


def attention_curves(logs: Mapping[str, Sequence[Mapping[str, float]]], label: str) -> Figure:
    """Figure 4 without models: where attention went in training, from the logs of runs by name.

    Left the share of the sharing layer's attention that is on content, not on special tokens, as often as it was
    looked at; right how far the token alignment's attention is from uniform, of the runs that have that term.
    """
    figure, sides = panels(9, 3.2, 2, sharex=True)
    titles = {
        "content_mass": "sharing layer: share of attention on content",
        "uniform_gap": "token alignment: ln J - entropy, nats (only runs that have it)",
    }
    for axes, (name, title) in zip(sides, titles.items(), strict=True):
        for (run, log), colour, marker in zip(logs.items(), PALETTE, MARKERS, strict=False):
            kept = pd.DataFrame(log).reindex(columns=["step", name]).dropna()
            if len(kept):
                axes.plot(kept["step"], kept[name], color=colour, marker=marker, markersize=3, linewidth=1, label=run)
        axes.set(xlabel="step", ylim=(0, None))
        axes.set_title(title, fontsize="medium")
        legend(axes, loc="lower right")
    figure.suptitle(f"Attention on the source in training (protocol {label})", fontsize="medium")
    return figure


def selection_curve(steps: Sequence[int], scores: Sequence[float]) -> Figure:
    """Validation F1 (%) over the steps; the chosen step is marked."""
    figure, (axes,) = panels(5, 2.6)
    best = int(np.argmax(scores))
    axes.plot(steps, scores, color=BLUE, marker="o")
    axes.scatter([steps[best]], [scores[best]], s=120, facecolor="none", edgecolor=VERMILION, linewidth=2, zorder=3)
    axes.annotate("kept", (steps[best], scores[best]), textcoords="offset points", xytext=(-36, -4), color=VERMILION)
    axes.set(xlabel="step", ylabel="F1 (%)", title="selection on the validation languages")
    return figure


def attention_heatmaps(
    frames: Mapping[str, pd.DataFrame],
    label: str = "attention, heads averaged",
    from_zero: bool = True,
    highest: float | None = None,
) -> Figure:
    """Figure 4: heat maps side by side on one colour scale; rows are target tokens, columns source tokens.

    Args:
        frames: by title, as :func:`~xsta_lib.prediction.explaining.question_attention` returns them.
        label: what the colour stands for.
        from_zero: begin the colour scale at 0, not at the smallest value.
        highest: where the colour scale ends, so that pictures can be compared; by default at the largest value.
    """
    use_fonts()
    rows, columns = next(iter(frames.values())).shape
    figure, sides = panels(max(4.5, 1.4 + 0.3 * columns) * len(frames), max(3, 1.6 + 0.27 * rows), len(frames))
    values = np.concatenate([frame.to_numpy().ravel() for frame in frames.values()])
    limits = 0.0 if from_zero else values.min(), values.max() if highest is None else highest
    scale = {"vmin": limits[0], "vmax": limits[1], "cmap": "Blues", "cbar": False}
    for axes, (title, frame) in zip(sides, frames.items(), strict=True):
        names = {"xticklabels": list(frame.columns), "yticklabels": list(frame.index)}  # tokens may repeat
        seaborn.heatmap(frame.to_numpy(), ax=axes, **scale, **names)
        axes.tick_params(axis="x", labelrotation=90, labelsize=8)
        axes.tick_params(axis="y", labelrotation=0, labelsize=8)
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("source")
        axes.spines[:].set_visible(True)
    sides[0].set_ylabel("target")
    figure.colorbar(sides[0].collections[0], ax=sides, label=label, shrink=0.8)
    return figure


def tsne_scatter(frame: pd.DataFrame, scores: pd.DataFrame, examples: Sequence[str]) -> Figure:
    """Figure 5: sentence representations in two dimensions, before and after normalisation.

    Colour stands for the language; some examples have a marker each, the others are faint dots, as the legend says.

    Args:
        frame, scores: of ``tsne_frame`` and ``silhouettes`` in :mod:`~xsta_lib.prediction.explaining`.
        examples: up to eight ids to mark.
    """
    names = {example: f"example {number}" for number, example in enumerate(examples, 1)}
    frame = frame.assign(name=frame["example"].map(names))
    look = {"hue": "language", "palette": dict(zip(frame["language"].unique(), PALETTE * 2, strict=False))}
    marked = {"style": "name", "style_order": list(names.values()), "markers": list(MARKERS[: len(names)])}
    marked |= {"s": 55, "edgecolor": "black", "linewidth": 0.6}
    figure, sides = panels(10, 4.6, len(scores))
    for axes, space in zip(sides, scores.index, strict=True):
        part = frame[frame["space"] == space]
        seaborn.scatterplot(part, x="x", y="y", ax=axes, s=9, alpha=0.4, linewidth=0, legend=False, **look)
        seaborn.scatterplot(part.dropna(), x="x", y="y", ax=axes, **look, **marked)
        text = ", ".join(f"{value:+.2f} {name}" for name, value in scores.loc[space].items())
        axes.set(title=space, xticks=[], yticks=[], ylabel="")
        axes.set_xlabel(f"silhouette {text}", fontsize=9)
        axes.spines[:].set_visible(True)
        entries = list(zip(*axes.get_legend_handles_labels(), strict=True))
        axes.get_legend().remove()
    entries = [(handle, name) for handle, name in entries if name not in frame]  # columns' names are headings
    for handle, name in entries:
        if name in names.values():
            handle.set_markerfacecolor("white")
    if len(names) < frame["example"].nunique():
        faint = Line2D([], [], color="black", linestyle="", marker="o", markersize=3, alpha=0.4, markeredgewidth=0)
        entries.append((faint, "other examples"))
    figure.legend(*zip(*entries, strict=True), frameon=False, fontsize=8, loc="outside right center")
    return figure


def _name_tokens(axes: Axes, tokens: Sequence[str], weights: np.ndarray) -> None:
    """Name the eight tokens with the largest weights below an axes.

    Neighbours share one label, below the heaviest of them. Of two labels that would overprint the lighter is left out.
    """
    places = np.sort(np.argsort(weights)[-8:])
    runs = np.split(places, np.flatnonzero(np.diff(places) > 1) + 1)
    wide = len(weights) / 64  # an upright label's width, in tokens
    names: dict[int, str] = {}
    for run in sorted(runs, key=lambda run: -weights[run].max()):
        peak = int(run[weights[run].argmax()])
        if all(abs(peak - other) >= wide for other in names):
            text = "".join(tokens[run[0] : run[-1] + 1])
            names[peak] = text.replace("\u2581", " ").replace("##", "").strip()
    axes.set_xticks(sorted(names), [names[peak] for peak in sorted(names)])
    axes.tick_params(axis="x", labelrotation=90, labelsize=8)


def distribution_lines(found: Explanation, side: int = 0, around: int = 0) -> Figure:
    """The distributions of an answer's start (``side`` 0) or end (1) over the target's tokens, as many as there are.

    With ``around`` only so many tokens on either side of the calibrated peak are drawn, every one with its name.
    """
    use_fonts()
    figure, (axes,) = panels(9, 3.2)
    looks = {"target": ("black", "-", "o"), "calibrated": (VERMILION, "-", "D"), "teacher": (BLUE, "--", "s")}
    frame = pd.DataFrame({name: p[:, side] for name in looks if (p := getattr(found, name)) is not None})
    for name in frame:
        colour, line, marker = looks[name]
        marks = {"marker": marker, "markersize": 3} if around else {}  # on some 200 tokens they would hide the lines
        axes.plot(frame[name], color=colour, linestyle=line, linewidth=1, label=name, **marks)
    axes.set_ylabel(f"p of the {('start', 'end')[side]}")
    if around:
        peak = int(frame["calibrated"].argmax())
        near = range(max(0, peak - around), min(len(frame), peak + around + 1))
        axes.set_xticks(near, [piece_text(found.target_tokens[place]) for place in near])
        axes.set(xlim=(near[0] - 0.5, near[-1] + 0.5))
        axes.set_xlabel(f"the target's tokens, {around} to either side of the peak")
        axes.tick_params(axis="x", labelrotation=40, labelsize=8)
    else:
        _name_tokens(axes, found.target_tokens, frame.max(axis=1).to_numpy())
        axes.set_xlabel("the target's tokens, the likeliest named")
    legend(axes)
    return figure


def teacher_view(found: Explanation) -> Figure:
    """Where the teacher looks: its attention to the likeliest start in the source, along the target's tokens."""
    use_fonts()
    figure, (axes,) = panels(9, 2.6)
    column = int(found.source[:, 0].argmax())
    weights = found.teacher_attention[:, column]
    axes.bar(range(len(weights)), weights, color=BLUE, width=1.0)
    _name_tokens(axes, found.target_tokens, weights)
    axes.set(ylabel="attention", xlabel="the target's tokens, those with the most attention named")
    axes.set_title(f"teacher's attention to the source token {piece_text(found.source_tokens[column])!r}", fontsize=10)
    return figure


def language_shift(spaces: Mapping[str, Mapping[str, np.ndarray]]) -> Figure:
    """Token states of two languages along the line that joins their means in the first space, a panel a space.

    ``spaces`` has (tokens, H) states by panel title and language.
    """
    first, second = (states.mean(0) for states in next(iter(spaces.values())).values())
    line = (second - first) / np.linalg.norm(second - first)
    figure, panes = panels(9, 2.8, len(spaces))
    for axes, (title, sides) in zip(panes, spaces.items(), strict=True):
        places = {language: states @ line for language, states in sides.items()}
        colours = dict(zip(places, PALETTE, strict=False))
        each = {"common_norm": False, "stat": "density", "element": "step", "bins": 40, "palette": colours}
        seaborn.histplot(places, ax=axes, **each)
        for language, values in places.items():
            axes.axvline(values.mean(), color=colours[language], linewidth=2)
        axes.set(title=title, yticks=[], ylabel="", xlabel="along the line that joins the two means of the first panel")
        axes.get_legend().set(frame_on=False)
        axes.spines["left"].set_visible(False)
    return figure


def live_curve() -> Callable[[Sequence[dict]], None]:
    """A function of the log so far that redraws one picture below the running cell; for the trainer's ``on_log``."""
    from IPython.display import DisplayHandle

    handle = DisplayHandle()
    publish = chain([handle.display], repeat(handle.update))  # the first picture is shown, the others replace it

    def redraw(log: Sequence[dict]) -> None:
        if any("loss" in line for line in log):
            next(publish)(training_curves(log))

    return redraw
