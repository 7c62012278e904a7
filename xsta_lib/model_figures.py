"""Pictures of the inside of a model: Figures 4 and 5, and those of the lesson on sharing, teaching and aligning."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .explaining import Explanation, piece_text
from .fonts import use_fonts
from .training_figures import MARKERS, PALETTE

MORE_COLOURS = ("#999999", "#882255", "#44AA99", "#332288")  # Tol's, beside Okabe and Ito's: XQuAD has 11 languages


def attention_heatmaps(
    frames: Mapping[str, pd.DataFrame], label: str = "attention, heads averaged", from_zero: bool = True
) -> Figure:
    """Figure 4: heat maps side by side on one colour scale; rows are target tokens, columns source tokens.

    Args:
        frames: by title, as :func:`~xsta_lib.explaining.question_attention` returns them.
        label: what the colour stands for.
        from_zero: begin the colour scale at 0, not at the smallest value.
    """
    use_fonts()
    first = next(iter(frames.values()))
    size = 1.4 + 0.3 * first.shape[1], 1.6 + 0.27 * first.shape[0]
    figure = Figure(figsize=(max(4.5, size[0]) * len(frames), max(3, size[1])), layout="constrained")
    panels = figure.subplots(1, len(frames), squeeze=False)[0]
    low = min(0.0 if from_zero else float(frame.to_numpy().min()) for frame in frames.values())
    top = max(float(frame.to_numpy().max()) for frame in frames.values())
    for axes, (title, frame) in zip(panels, frames.items(), strict=True):
        image = axes.imshow(frame.to_numpy(), cmap="Blues", vmin=low, vmax=top, aspect="auto")
        axes.set_xticks(range(frame.shape[1]), frame.columns, rotation=90, fontsize=8)
        axes.set_yticks(range(frame.shape[0]), frame.index, fontsize=8)
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("source")
    panels[0].set_ylabel("target")
    figure.colorbar(image, ax=list(panels), label=label, shrink=0.8)
    return figure


def tsne_scatter(frame: pd.DataFrame, scores: pd.DataFrame, examples: Sequence[str]) -> Figure:
    """Figure 5: sentence representations in two dimensions, before and after normalisation.

    Colour stands for the language; some examples have a marker each, the others are faint dots.

    Args:
        frame: of :func:`~xsta_lib.explaining.tsne_frame`.
        scores: of :func:`~xsta_lib.explaining.silhouettes`, written below each panel.
        examples: up to eight ids to mark.
    """
    spaces, languages = list(scores.index), list(dict.fromkeys(frame["language"]))
    colours = dict(zip(languages, (*PALETTE, *MORE_COLOURS) * 2, strict=False))
    figure = Figure(figsize=(10, 4.6), layout="constrained")
    for axes, space in zip(figure.subplots(1, len(spaces)), spaces, strict=True):
        part = frame[frame["space"] == space]
        axes.scatter(part["x"], part["y"], c=part["language"].map(colours), s=6, alpha=0.35, linewidths=0)
        for marker, example in zip(MARKERS, examples, strict=False):
            rows = part[part["example"] == example]
            style = {"marker": marker, "s": 55, "edgecolors": "black", "linewidths": 0.6}
            axes.scatter(rows["x"], rows["y"], c=rows["language"].map(colours), **style)
        text = ", ".join(f"{value:+.2f} {name}" for name, value in scores.loc[space].items())
        axes.set(title=space, xticks=[], yticks=[])
        axes.set_xlabel(f"silhouette {text}", fontsize=9)
    handles = [figure.axes[0].scatter([], [], c=colour, label=language) for language, colour in colours.items()]
    handles += [
        figure.axes[0].scatter([], [], c="white", marker=marker, edgecolors="black", label=f"example {number}")
        for number, (marker, _) in enumerate(zip(MARKERS, examples, strict=False), 1)
    ]
    figure.legend(handles=handles, frameon=False, fontsize=8, loc="outside right center")
    return figure


def _name_tokens(axes: Axes, tokens: Sequence[str], weights: np.ndarray, count: int = 8) -> None:
    """Name the tokens with the largest weights below an axes; neighbours share one label."""
    runs: list[list[int]] = []
    for place in sorted(np.argsort(weights)[-count:].tolist()):
        if runs and place == runs[-1][-1] + 1:
            runs[-1].append(place)
        else:
            runs.append([place])
    names = ["".join(tokens[run[0] : run[-1] + 1]).replace("\u2581", " ").replace("##", "").strip() for run in runs]
    axes.set_xticks([run[0] for run in runs], names)
    axes.tick_params(axis="x", labelrotation=40, labelsize=8)


def distribution_lines(found: Explanation, side: int = 0) -> Figure:
    """The three distributions of an answer's start (or end) over the target's tokens.

    Args:
        found: an explanation with a teacher.
        side: 0 for the start, 1 for the end.
    """
    use_fonts()
    figure = Figure(figsize=(9, 3.2), layout="constrained")
    axes = figure.subplots()
    lines = ("target", "#000000", "o"), ("teacher", "#0072B2", "s"), ("calibrated", "#D55E00", "^")
    for name, colour, marker in lines:
        axes.plot(getattr(found, name)[:, side], color=colour, marker=marker, markersize=3, linewidth=1, label=name)
    most = np.max([getattr(found, name)[:, side] for name, *_ in lines], axis=0)
    _name_tokens(axes, found.target_tokens, most)
    axes.set(ylabel=f"p of the {('start', 'end')[side]}", xlabel="the target's tokens, the likeliest named")
    axes.legend(frameon=False, fontsize="small")
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def teacher_view(found: Explanation, side: int = 0) -> Figure:
    """Where the teacher looks: its attention to the source's likeliest answer token, along the target's tokens."""
    use_fonts()
    figure = Figure(figsize=(9, 2.6), layout="constrained")
    axes = figure.subplots()
    column = int(found.source[:, side].argmax())
    weights = found.teacher_attention[:, column]
    axes.bar(range(len(weights)), weights, color="#0072B2", width=1.0)
    _name_tokens(axes, found.target_tokens, weights)
    axes.set(ylabel="attention", xlabel="the target's tokens, the eight with the most attention named")
    axes.set_title(f"teacher's attention to the source token {piece_text(found.source_tokens[column])!r}", fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def language_shift(spaces: Mapping[str, Mapping[str, np.ndarray]]) -> Figure:
    """Token states of two languages along the line that joins their means in the first space, a panel a space.

    Args:
        spaces: by panel title and language (two of them), (tokens, H) states.
    """
    first, second = (states.mean(0) for states in next(iter(spaces.values())).values())
    line = (second - first) / np.linalg.norm(second - first)
    figure = Figure(figsize=(9, 2.8), layout="constrained")
    for axes, (title, sides) in zip(figure.subplots(1, len(spaces), squeeze=False)[0], spaces.items(), strict=True):
        places = {language: states @ line for language, states in sides.items()}
        bins = np.histogram_bin_edges(np.concatenate(list(places.values())), 40)
        for colour, (language, values) in zip(PALETTE, places.items(), strict=False):
            axes.hist(values, bins, alpha=0.5, color=colour, label=language, density=True)
            axes.axvline(values.mean(), color=colour, linewidth=2)
        axes.set(title=title, yticks=[], xlabel="along the line between the two means before")
        axes.legend(frameon=False, fontsize="small")
        axes.spines[["top", "right", "left"]].set_visible(False)
    return figure


def gradient_bars(norms: Mapping[str, Mapping[str, float]]) -> Figure:
    """How much gradient reaches what: a group of bars a tensor, a bar a way of sharing.

    Args:
        norms: by way and tensor, a gradient's norm.
    """
    frame = pd.DataFrame(norms)
    figure = Figure(figsize=(7, 2.8), layout="constrained")
    axes = figure.subplots()
    frame.plot.bar(ax=axes, rot=0, color=list(PALETTE[: frame.shape[1]]), width=0.7)
    for bars in axes.containers:
        axes.bar_label(bars, fmt="%.2g", fontsize=8, padding=1)
    axes.set(ylabel="norm of the gradient")
    axes.margins(y=0.15)
    axes.legend(frameon=False, fontsize="small")
    axes.spines[["top", "right"]].set_visible(False)
    return figure
