"""Figures and tables: each takes a data frame or plain values and returns a Matplotlib figure, or text.

Colours are Okabe and Ito's, told apart by colour-blind readers. The protocol of every number is printed beside it.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .corpus import Question
from .experiment_config import backbone_tag, place_of, setting_of
from .inspection import attention_maps, read_cases, read_inspection
from .marking import DPI, case_picture
from .model_figures import attention_heatmaps, tsne_scatter
from .results import RESULTS, ROOT, load_all_results
from .sweeps import FULL, seed_frame, sweep_columns, sweep_frame
from .tables import (
    ALONE,
    average_with_interval,
    file_label,
    four_systems,
    metrics_frame,
    protocol_label,
    systems,
    write_tables,
)

FIGURES = ROOT / "figures"
COLOURS = {
    "zero-shot": "#999999",
    "trans-train": "#0072B2",
    "x-mixup": "#E69F00",
    "x-mixup (target only)": "#CC79A7",
    "x-sta (target only)": "#56B4E9",
    "x-sta": "#D55E00",
}


def language_bars(frame: pd.DataFrame, dataset: str) -> Figure:
    """F1 by language, one bar a system (means over seeds), and the average with its 95 % interval.

    Args:
        frame: see :func:`~xsta_lib.tables.metrics_frame`; ablations and switches are left out.
        dataset: which of its data sets.
    """
    part = four_systems(frame[frame["dataset"] == dataset])
    languages, names = list(dict.fromkeys(part["language"])), systems(part)
    protocol = part["protocol"].iloc[0]
    figure = Figure(figsize=(max(7, 0.95 * len(languages) + 2), 3.6), layout="constrained")
    axes = figure.subplots()
    width = 0.8 / len(names)
    for number, system in enumerate(names):
        rows = part[part["system"] == system]
        value, low, high = average_with_interval(rows, dataset)
        heights = [*rows.groupby("language")["f1"].mean().loc[languages], value]
        places = np.arange(len(heights)) + (number - (len(names) - 1) / 2) * width
        axes.bar(places, heights, width, label=system, color=COLOURS[system])
        axes.errorbar(places[-1], value, [[value - low], [high - value]], color="black", capsize=2, linewidth=1)
    axes.set_xticks(range(len(languages) + 1), [*languages, "average"])
    axes.axvline(len(languages) - 0.5, color="0.8", linewidth=1)
    axes.set(ylabel="F1 (%)", title=f"F1 by language: {dataset} (protocol {protocol})")
    axes.legend(
        ncols=min(4, len(names)), frameon=False, fontsize="small", loc="upper center", bbox_to_anchor=(0.5, -0.1)
    )
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def source_target_bars(frame: pd.DataFrame, dataset: str, source: str = "en") -> Figure:
    """Figure 3: F1 on the source language against the mean over the target languages, by method; means over seeds."""
    part = four_systems(frame[frame["dataset"] == dataset])
    names = systems(part)
    figure = Figure(figsize=(2.6 + 0.85 * len(names), 3.2), layout="constrained")  # room for the numbers on the bars
    axes = figure.subplots()
    sides = {f"source ({source})": part["language"] == source, "mean of targets": part["language"] != source}
    width = 0.8 / len(names)
    for number, system in enumerate(names):
        heights = [part[chosen & (part["system"] == system)]["f1"].mean() for chosen in sides.values()]
        places = np.arange(2) + (number - (len(names) - 1) / 2) * width
        bars = axes.bar(places, heights, width, label=system, color=COLOURS[system])
        axes.bar_label(bars, fmt="%.1f", fontsize=7, padding=1)
    axes.set_xticks(range(2), list(sides))
    axes.set(ylabel="F1 (%)", title=f"Source and targets: {dataset} (protocol {part['protocol'].iloc[0]})")
    axes.legend(frameon=False, fontsize="small", loc="center left", bbox_to_anchor=(1, 0.5))
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def _other_seeds(axes: Axes, place: float, seeds: pd.DataFrame, name: str, look: str, colour: str) -> None:
    """The full method with other seeds than the drawn one, as hollow markers at its place."""
    if name in seeds:
        others = seeds[name].drop(seeds.index.min())
        axes.plot([place] * len(others), others, look, color=colour, markerfacecolor="none", zorder=1)


def _sweep_title(text: str, protocol: str, seeds: pd.DataFrame) -> str:
    hollow = "; hollow: other seeds" if len(seeds) > 1 else ""
    return f"{text}\n(protocol {protocol}{f', seed {seeds.index.min()}' if len(seeds) else ''}{hollow})"


def gamma_curve(frame: pd.DataFrame, columns: Sequence[str], protocol: str, seeds: pd.DataFrame) -> Figure:
    """Figure 7: mean F1 over gamma, the weight of the teacher's loss; an axis a data set, one for two readings of it.

    Args:
        frame: of :func:`~xsta_lib.sweeps.sweep_frame`.
        columns: one or two of its columns; the values of gamma are spaced evenly.
        protocol: named in the title.
        seeds: of :func:`~xsta_lib.sweeps.seed_frame`; other seeds of the full method are drawn as hollow markers.
    """
    figure = Figure(figsize=(5, 3.2), layout="constrained")
    axes = figure.subplots()
    shared = len({name.removesuffix(ALONE) for name in columns}) == 1
    sides = [axes, axes if shared else axes.twinx()]
    full = int(frame.index.searchsorted(FULL["gamma"]))
    for side, name, colour, marker in zip(sides, columns, ("#0072B2", "#D55E00"), "os", strict=False):
        side.plot(range(len(frame)), frame[name], color=colour, marker=marker, label=name)
        _other_seeds(side, full, seeds, name, marker, colour)
        side.set_ylabel("F1 (%)" if shared else f"{name}: F1 (%)", color="black" if shared else colour)
        side.tick_params(axis="y", labelcolor="black" if shared else colour)
        side.spines[["top", "right"] if shared else "top"].set_visible(False)
    if shared:
        axes.legend(frameon=False, fontsize="small")
    axes.set_xticks(range(len(frame)), [f"{value:g}" for value in frame.index])
    axes.set(xlabel="gamma")
    axes.set_title(_sweep_title("Weight of the teacher's loss", protocol, seeds), fontsize="medium")
    return figure


def layer_curve(frame: pd.DataFrame, columns: Sequence[str], protocol: str, seeds: pd.DataFrame) -> Figure:
    """Figure 8: mean F1 over the layer that shares, a line a column; arguments as for :func:`gamma_curve`."""
    figure = Figure(figsize=(5, 3.2), layout="constrained")
    axes = figure.subplots()
    for name, colour, marker in zip(columns, ("#0072B2", "#D55E00", "#009E73"), "os^", strict=False):
        axes.plot(frame.index, frame[name], color=colour, marker=marker, label=name)
        _other_seeds(axes, FULL["sharing_layer"], seeds, name, marker, colour)
    axes.set_xticks(frame.index)
    axes.set(xlabel="sharing layer", ylabel="F1 (%)")
    axes.set_title(_sweep_title("Layer of GDKS", protocol, seeds), fontsize="medium")
    axes.legend(frameon=False, fontsize="small")
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def length_boxes(lengths: Mapping[str, Sequence[int]], limit: int) -> Figure:
    """Window lengths in tokens by language; the line is the longest window."""
    figure = Figure(figsize=(7, 2.8), layout="constrained")
    axes = figure.subplots()
    axes.boxplot(list(lengths.values()), tick_labels=list(lengths), flierprops={"markersize": 3})
    axes.axhline(limit, color="#D55E00", linewidth=1, linestyle="--")
    axes.set(ylabel="tokens in a window", title="window lengths by language")
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def answer_positions(source: Sequence[Question], targets: Mapping[str, Sequence[Question]]) -> pd.DataFrame:
    """Where the middle of each answer lies in its context, 0 to 1: rows ``language, id, source, target``."""

    def place(question: Question) -> float:
        answer = question.answers[0]
        return (answer.start + answer.end) / 2 / len(question.context)

    english = {question.id: place(question) for question in source}
    rows = [
        (language, question.id, english[question.id], place(question))
        for language, questions in targets.items()
        for question in questions
        if question.id in english
    ]
    return pd.DataFrame(rows, columns=["language", "id", "source", "target"])


def position_scatter(positions: pd.DataFrame) -> Figure:
    """Answer positions, source against target, one panel a language; r is the correlation."""
    languages = list(dict.fromkeys(positions["language"]))
    figure = Figure(figsize=(2.3 * len(languages), 2.6), layout="constrained")
    for axes, language in zip(
        figure.subplots(1, len(languages), sharey=True, squeeze=False)[0], languages, strict=True
    ):
        part = positions[positions["language"] == language]
        axes.plot([0, 1], [0, 1], color="0.8", linewidth=1)
        axes.scatter(part["source"], part["target"], s=8, color="#0072B2", alpha=0.6)
        axes.set(
            title=f"{language}, r = {part['source'].corr(part['target']):.2f}",
            xlabel="place in English",
            aspect="equal",
        )
        axes.spines[["top", "right"]].set_visible(False)
    figure.axes[0].set_ylabel("place in target")
    return figure


def save(figure: Figure, path: Path) -> Path:
    """Write a figure as PNG."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=DPI, metadata={"Software": f"xsta, matplotlib {matplotlib.__version__}"})
    return path


def inspection_figures(protocol: str, folder: Path = RESULTS, backbone: str | None = None) -> dict[str, Figure]:
    """Figures 4, 5 and 6 of what :func:`~xsta_lib.inspection.inspect_models` kept, by file name."""
    found = {}
    if record := read_inspection(4, protocol, folder, backbone):
        entropies = record["mean_entropy_nats"]
        over = f"mean entropy over {record['questions']} questions"
        maps = {f"{name}\n{over}: {entropies[name]:.2f} nats": frame for name, frame in attention_maps(record).items()}
        found["figure4"] = attention_heatmaps(maps)
        title = f"Attention of one question: {record['dataset']}, {record['language']} (protocol {record['protocol']})"
        found["figure4"].suptitle(title, fontsize=11)
    if record := read_inspection(5, protocol, folder, backbone):
        places = pd.DataFrame(**record["places"])
        examples = sorted(places["example"].unique())[:8]
        found["figure5"] = tsne_scatter(places, pd.DataFrame(**record["silhouettes"]), examples)
        title = f"Sentence representations: {record['dataset']} (protocol {record['protocol']})"
        found["figure5"].suptitle(title, fontsize=11)
    if (record := read_inspection(6, protocol, folder, backbone)) and record["cases"]:
        cases = read_cases(record)
        kinds = Counter(case.language for case in cases)
        language = max(kinds, key=kinds.get)  # the first that has both kinds, if one has
        found["figure6"] = case_picture([case for case in cases if case.language == language], record["note"])
    return found


def write_figures(protocol: str, folder: Path = RESULTS) -> list[Path]:
    """Write the figures of a protocol's results (those in ``folder``) into ``figures/``, and its tables beside them.

    Figures 7 and 8 come once their grids were measured, Figures 4 to 6 once models were inspected. Every setting
    (backbone, optimisation) other than the protocol's own has figures and tables of its own.

    Raises:
        FileNotFoundError: the protocol has no results yet.
    """
    groups: dict[str, list[dict]] = {}
    for result in load_all_results(protocol, folder):
        if result["metrics"]:  # a folder without test files has none
            groups.setdefault(file_label(result), []).append(result)
    if not groups:
        place = folder / place_of(protocol)
        raise FileNotFoundError(f"{place}: no results yet; run 'xsta train --protocol {protocol}' first")
    written = []
    for label, results in groups.items():
        drawn = _result_figures(results, protocol_label(results[0]))
        backbone = results[0]["backbone"]
        if setting_of(results[0]["config"]) == backbone_tag(protocol, backbone):  # the runs that are inspected
            drawn |= inspection_figures(protocol, folder, backbone)
        written += [save(figure, FIGURES / f"{name}-{label}.png") for name, figure in drawn.items()]
        written += write_tables(results, protocol, folder)
    return written


def _result_figures(results: Sequence[dict], label: str) -> dict[str, Figure]:
    """Figures 3, 7 and 8 and the languages' bars of the results of one setting, by file name."""
    frame = metrics_frame(results)
    dataset = frame["dataset"].iloc[0]
    figures = {}
    if len(four_systems(frame)):
        figures = {"figure3": source_target_bars(frame, dataset), "languages": language_bars(frame, dataset)}
    gamma, layers, seeds = sweep_frame(results, "gamma"), sweep_frame(results, "sharing_layer"), seed_frame(results)
    if len(gamma) > 1:
        figures["figure7"] = gamma_curve(gamma, sweep_columns(gamma, dataset), label, seeds)
    if len(layers) > 1:
        figures["figure8"] = layer_curve(layers, sweep_columns(layers, dataset), label, seeds)
    return figures
