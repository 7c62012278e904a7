"""Figures and tables: each takes a data frame or plain values and returns a Matplotlib figure, or text.

Colours are Okabe and Ito's, told apart by colour-blind readers. The protocol of every number is printed beside it.
"""

import html
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from scipy.stats import bootstrap

from .corpus import Question
from .results import RESULTS, ROOT, load_results, load_scores

FIGURES = ROOT / "figures"
COLOURS = {
    "zero-shot": "#999999",
    "trans-train": "#0072B2",
    "x-mixup": "#E69F00",
    "x-mixup (target only)": "#CC79A7",
    "x-sta (target only)": "#56B4E9",
    "x-sta": "#D55E00",
}
RIGHT_TO_LEFT = ("ar",)


def system_name(result: dict) -> str:
    """How a result is called in tables: its method, ablations, and whether it read the target alone."""
    name = result["method"] + "".join(f" w/o {part}" for part in result["without"])
    return f"{name} (target only)" if result["method"] in ("x-sta", "x-mixup") and result["source"] == "none" else name


def metrics_frame(results: Sequence[dict]) -> pd.DataFrame:
    """Results as tidy rows: ``system, dataset, language, f1, em, n, seed, source, protocol, scores``."""
    rows = [
        {
            "system": system_name(result),
            "dataset": dataset,
            "language": language,
            **values,
            "seed": result["seed"],
            "source": result["source"],
            "protocol": result["protocol"],
            "scores": result["scores"],
        }
        for result in results
        for dataset, by_language in result["metrics"].items()
        for language, values in by_language.items()
    ]
    return pd.DataFrame(rows)


def systems(frame: pd.DataFrame) -> list[str]:
    """The systems of a frame in the paper's order, unknown ones last."""
    found = list(frame["system"].unique())
    return [name for name in COLOURS if name in found] + sorted(set(found) - set(COLOURS))


def average_interval(scores: pd.DataFrame, metric: str = "f1", seed: int = 0) -> tuple[float, float, float]:
    """The unweighted mean over languages, in percent, and its 95 % bootstrap interval.

    Questions with one id are resampled together in all languages, as they are translations of each other.

    Args:
        scores: rows ``language, id, f1, em`` of one system and data set.
        metric: ``f1`` or ``em``.
        seed: of the 1,000 resamples.
    """
    table = scores.pivot(index="id", columns="language", values=metric)
    value = float(table.mean().mean())
    if table.isna().any().any():  # not parallel: every language is resampled on its own
        parts = tuple(table[language].dropna().to_numpy() for language in table)
        found = bootstrap(
            parts, lambda *x, axis: np.mean([part.mean(axis=axis) for part in x], axis=0), n_resamples=1000, rng=seed,
            method="percentile", vectorized=True,
        )  # fmt: skip
    else:
        found = bootstrap((table.mean(axis=1).to_numpy(),), np.mean, n_resamples=1000, rng=seed, method="percentile")
    return value, float(found.confidence_interval.low), float(found.confidence_interval.high)


def results_table(frame: pd.DataFrame, dataset: str) -> str:
    """F1 / EM by system and language as a Markdown table; the average carries its 95 % interval (of F1)."""
    part = frame[frame["dataset"] == dataset]
    languages = list(dict.fromkeys(part["language"]))
    lines = [f"| {dataset} (F1 / EM) | {' | '.join(languages)} | avg | 95 % interval of avg F1 |"]
    lines.append("|" + "---|" * (len(languages) + 3))
    for system in systems(part):
        rows = part[part["system"] == system]
        rows = rows[rows["scores"] == rows["scores"].iloc[0]].set_index("language").loc[languages]
        cells = [f"{row.f1:.1f} / {row.em:.1f}" for row in rows.itertuples()]
        _, low, high = average_interval(load_scores(rows["scores"].iloc[0], dataset))
        average = f"{rows['f1'].mean():.1f} / {rows['em'].mean():.1f}"
        lines.append(f"| {system} | {' | '.join(cells)} | {average} | {low:.1f} to {high:.1f} |")
    return "\n".join(lines)


def language_bars(frame: pd.DataFrame, dataset: str) -> Figure:
    """F1 by language, one bar a system, and the average with its 95 % interval."""
    part = frame[frame["dataset"] == dataset]
    languages, names = list(dict.fromkeys(part["language"])), systems(part)
    protocol = part["protocol"].iloc[0]
    figure = Figure(figsize=(max(7, 0.95 * len(languages) + 2), 3.6), layout="constrained")
    axes = figure.subplots()
    width = 0.8 / len(names)
    for number, system in enumerate(names):
        rows = part[part["system"] == system].drop_duplicates("language").set_index("language").loc[languages]
        value, low, high = average_interval(load_scores(rows["scores"].iloc[0], dataset))
        heights = [*rows["f1"], value]
        places = np.arange(len(heights)) + (number - (len(names) - 1) / 2) * width
        axes.bar(places, heights, width, label=system, color=COLOURS.get(system, f"C{number}"))
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
    """Figure 3: F1 on the source language against the mean over the target languages, by method."""
    part = frame[frame["dataset"] == dataset].drop_duplicates(["system", "language"])
    names = systems(part)
    figure = Figure(figsize=(5.2, 3.2), layout="constrained")
    axes = figure.subplots()
    sides = {f"source ({source})": part["language"] == source, "mean of targets": part["language"] != source}
    width = 0.8 / len(names)
    for number, system in enumerate(names):
        heights = [part[chosen & (part["system"] == system)]["f1"].mean() for chosen in sides.values()]
        places = np.arange(2) + (number - (len(names) - 1) / 2) * width
        bars = axes.bar(places, heights, width, label=system, color=COLOURS.get(system, f"C{number}"))
        axes.bar_label(bars, fmt="%.1f", fontsize=7, padding=1)
    axes.set_xticks(range(2), list(sides))
    axes.set(ylabel="F1 (%)", title=f"Source and targets: {dataset} (protocol {part['protocol'].iloc[0]})")
    axes.legend(frameon=False, fontsize="small", loc="center left", bbox_to_anchor=(1, 0.5))
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def training_curves(log: Sequence[dict]) -> Figure:
    """The loss terms and lambda over the steps of one run, from its log."""
    frame = pd.DataFrame([line for line in log if "loss" in line])
    figure = Figure(figsize=(8, 2.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    for number, name in enumerate(("loss", "source", "target", "teacher", "sentence", "token")):
        if name in frame:
            kept = frame[["step", name]].dropna()
            left.plot(kept["step"], kept[name], label=name, color=f"C{number}", linewidth=2 if name == "loss" else 1)
    left.set(xlabel="step", ylabel="nats", title="loss terms")
    left.legend(frameon=False, fontsize="small", ncols=2)
    if "lambda" in frame:
        right.plot(frame["step"], frame["lambda"], color="C3")
    right.set(xlabel="step", ylabel="lambda", title="weight of the target's own attention")
    for axes in (left, right):
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


def highlight(question: Question, predicted: str, language: str, score: float | None = None) -> str:
    """HTML of a question and its context: gold answer underlined in green, prediction on yellow.

    Args:
        question: with its gold answer.
        predicted: the predicted text; its occurrence nearest to the gold answer is marked.
        language: sets the writing direction.
        score: the prediction's probability, 0 to 1.
    """
    gold = question.answers[0]
    marks = np.zeros(len(question.context), dtype=int)
    marks[gold.start : gold.end] |= 1
    places = [i for i in range(len(question.context)) if predicted and question.context.startswith(predicted, i)]
    if places:
        at = min(places, key=lambda place: abs(place - gold.start))
        marks[at : at + len(predicted)] |= 2
    gold_style, predicted_style = "border-bottom:3px solid #009E73", "background:#F0E442"
    styles = {1: gold_style, 2: predicted_style, 3: f"{gold_style};{predicted_style}"}
    edges = [0, *(np.flatnonzero(np.diff(marks)) + 1).tolist(), len(marks)]
    pieces = []
    for low, high in zip(edges, edges[1:], strict=False):
        text = html.escape(question.context[low:high])
        pieces.append(f'<span style="{styles[marks[low]]};color:black">{text}</span>' if marks[low] else text)
    direction = "rtl" if language in RIGHT_TO_LEFT else "ltr"
    shown = "" if score is None else f" <small>(p = {score:.2f})</small>"
    asked = f"<b>{html.escape(question.question)}</b>{shown}<br>"
    return f'<div dir="{direction}" lang="{language}" style="margin:0.6em 0">{asked}{"".join(pieces)}</div>'


def save(figure: Figure, path: Path) -> Path:
    """Write a figure as PNG."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150, metadata={"Software": f"xsta, matplotlib {matplotlib.__version__}"})
    return path


def write_figures(protocol: str, folder: Path = RESULTS) -> list[Path]:
    """Write the figures of a protocol's results (those in ``folder``) into ``figures/``.

    Raises:
        FileNotFoundError: the protocol has no results yet.
    """
    results = load_results(protocol, folder)
    if not results:
        raise FileNotFoundError(f"{folder / protocol}: no results yet; run 'xsta train --protocol {protocol}' first")
    frame = metrics_frame(results)
    dataset = frame["dataset"].iloc[0]
    return [
        save(source_target_bars(frame, dataset), FIGURES / f"figure3-{protocol}.png"),
        save(language_bars(frame, dataset), FIGURES / f"languages-{protocol}.png"),
    ]
