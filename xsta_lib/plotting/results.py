"""Pictures of results and of corpora: each takes a data frame or plain values and returns a Matplotlib figure.

The protocol of every number is printed beside it.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path

import numpy as np
import pandas as pd
import seaborn
from matplotlib.figure import Figure

from ..data.files import BOX, home, read_json
from ..data.squad import Question
from ..experiments.experiment import GAMMAS, LAYERS, backbone_tag, place_of, setting_of
from ..experiments.frames import (
    ALONE,
    FULL,
    LLM,
    MACHINE,
    SYSTEMS,
    compared_systems,
    file_label,
    first_seed,
    metrics_frame,
    protocol_label,
    seed_frame,
    sweep_columns,
    sweep_frame,
    systems,
    token_alignment_logs,
)
from ..experiments.inspection import attention_maps, inspected_label, read_cases, read_inspection
from ..experiments.packing import SCORES
from ..experiments.results import load_all_results, results_folder
from ..experiments.significance import Difference
from ..experiments.tables import average_with_interval, write_tables
from .cases import case_picture
from .lessons import attention_curves, attention_heatmaps, tsne_scatter
from .style import (
    BESIDE,
    BLUE,
    GREEN,
    GREY,
    MARKERS,
    ORANGE,
    PALETTE,
    PINK,
    SKY,
    VERMILION,
    YELLOW,
    grouped_bars,
    legend,
    panels,
    save,
)

SHADES = (  # the plainest grey
    *(GREY, "#DDCC77", BLUE, "#332288", "#117733", "#999933", "#44AA99"),
    *(GREEN, ORANGE, PINK, YELLOW, "#882255", SKY, VERMILION),
)
COLOURS = dict(zip(SYSTEMS, SHADES, strict=True))
# What Figure 3 and the bars by language show of a protocol's systems, where it has them; the tables have all.
DRAWN = ("zero-shot", "trans-train", "pairs", "x-mixup", "x-sta" + ALONE, "x-sta")
LEAST_RANGE = 6.0  # of F1 on the axis of a curve, in percentage points
MODELS = ("#000000", "#444444", "#777777", "#BBBBBB")  # large language models, in turn


def colours_of(names: Sequence[str]) -> dict[str, str]:
    """Each system's colour, the same in every picture; large language models, whose names are open, have greys."""
    models = [name for name in names if name not in COLOURS]
    return {name: COLOURS.get(name) or MODELS[models.index(name) % len(MODELS)] for name in names}


def _arms(value: float, low: float, high: float) -> list[list[float]]:
    """How far an interval reaches on either side; of one without width, rounding may leave the value beside it."""
    return [[max(0.0, value - low)], [max(0.0, high - value)]]


def language_bars(frame: pd.DataFrame, dataset: str) -> Figure:
    """F1 by language, one bar a system (means over seeds), and the average with its 95 % interval.

    Intervals over several seeds are black, those of one grey: two kinds that do not compare. ``frame`` is a
    :func:`~xsta_lib.experiments.frames.metrics_frame`; ablations and switches are left out.
    """
    part = compared_systems(frame[frame["dataset"] == dataset])
    colours = colours_of(systems(part))
    averages = {name: average_with_interval(part[part["system"] == name], dataset) for name in colours}
    source = part["source_language"].iloc[0]
    mean = f"average,\n{source} included" if source in set(part["language"]) else "average"
    rows = [(name, mean, value) for name, (value, *_) in averages.items()]
    shown = pd.concat([part[["system", "language", "f1"]], pd.DataFrame(rows, columns=["system", "language", "f1"])])
    languages = part["language"].nunique()
    figure, (axes,) = panels(max(7, max(0.95, 0.12 * len(colours)) * languages + 2), 3.6)
    grouped_bars(axes, shown, "language", "f1", "system", colours)
    several = part.groupby("system", sort=False)["seed"].nunique() > 1
    for name, bars in zip(colours, list(axes.containers), strict=True):
        place, (value, low, high, _) = bars[-1].get_x() + bars[-1].get_width() / 2, averages[name]
        colour = "black" if several[name] else "0.35"
        axes.errorbar(place, value, _arms(value, low, high), color=colour, capsize=1.5, linewidth=0.8)
    axes.axvline(languages - 0.5, color="0.8", linewidth=1)
    over = dict.fromkeys((several[name], averages[name][-1]) for name in colours)
    told = [text + (" (black)" if seeds else " (grey)") * (len(over) > 1) for seeds, text in over]
    axes.set(ylabel="F1 (%)", title=f"F1 by language: {dataset} (protocol {part['protocol'].iloc[0]})")
    axes.set_xlabel(f"95 % intervals of the average over {' or '.join(told)}", fontsize="small")
    legend(axes, **BESIDE)
    return figure


def source_target_bars(frame: pd.DataFrame, dataset: str) -> Figure:
    """Figure 3: F1 on the source language against the mean over the target languages, by method.

    Bars are means over seeds; where there are several, each seed is a dot.
    """
    part = compared_systems(frame[frame["dataset"] == dataset])
    colours, source = colours_of(systems(part)), part["source_language"].iloc[0]
    names = [f"source ({source})", "mean of targets"]
    sides = pd.Categorical(np.where(part["language"] == source, *names), names)
    figure, (axes,) = panels(2.6 + 0.85 * len(colours), 3.2)  # room for the numbers on the bars
    grouped_bars(axes, part.assign(side=sides), "side", "f1", "system", colours)
    by_seed = part.assign(side=sides).groupby(["system", "side", "seed"], observed=True)["f1"].mean()
    for name, bars in zip(colours, axes.containers, strict=True):
        for bar in bars:  # of a side that has no questions there is none
            middle = bar.get_x() + bar.get_width() / 2
            values = by_seed[name].get(names[round(middle)], by_seed[:0])
            if len(values) > 1:
                axes.plot([middle] * len(values), values, ".", color="black", markersize=4)
            if len(values):
                place = middle, max(bar.get_height(), values.max()) + 0.8
                axes.annotate(f"{bar.get_height():.1f}", place, fontsize=7, ha="center")
    dots = "; dots: seeds" if part["seed"].nunique() > 1 else ""
    axes.set(ylabel="F1 (%)", title=f"Source and targets: {dataset} (protocol {part['protocol'].iloc[0]}){dots}")
    legend(axes, **BESIDE)
    return figure


def difference_points(found: Mapping[str, Difference], title: str, over: str = "questions") -> Figure:
    """Differences of F1 with their 95 % intervals, one below the other; those whose interval holds 0 are hollow.

    Args:
        found: by name.
        title, over: what the axis' title and its label say, the latter of what was resampled.
    """
    figure, (axes,) = panels(7, 0.9 + 0.3 * max(1, len(found)))
    for place, one in enumerate(found.values()):
        face = "white" if one.low <= 0 <= one.high else BLUE
        ends = _arms(one.value, one.low, one.high)
        axes.errorbar(one.value, place, xerr=ends, fmt="o", color=BLUE, markerfacecolor=face, capsize=2, linewidth=1)
    axes.axvline(0, color="0.6", linewidth=1, zorder=0)
    axes.set_yticks(range(len(found)), list(found))
    axes.set(xlabel=f"difference of F1, 95 % interval over {over}", ylim=(len(found) - 0.5, -0.5))
    axes.set_title(title, fontsize="medium")
    return figure


def mixture_points(f1: pd.DataFrame, source_f1: float, title: str) -> Figure:
    """F1 by language of several readings: a point each, a line from the least to the greatest; all points are drawn.

    Args:
        f1: languages (rows, the first on top) by readings (columns).
        source_f1: of the source language itself, a dashed line.
        title: says of what.
    """
    figure, (axes,) = panels(6.5, 1.2 + 0.27 * len(f1))
    axes.hlines(range(len(f1)), f1.min(axis=1), f1.max(axis=1), color="0.85", linewidth=3, zorder=0)
    axes.axvline(source_f1, color="0.4", linewidth=1, linestyle="--", label="source itself", zorder=0)
    for name, colour, marker in zip(f1, (GREY, SKY, BLUE), "osD", strict=True):
        axes.plot(f1[name], range(len(f1)), marker, color=colour, markersize=6, label=name)
    axes.set_yticks(range(len(f1)), f1.index)
    axes.set(xlabel="F1 (%)", ylim=(len(f1) - 0.5, -0.5))
    axes.set_title(title, fontsize="medium")
    legend(axes, **BESIDE)
    return figure


def reading_bars(metrics: Mapping[str, Mapping[str, Mapping[str, float]]], title: str) -> Figure:
    """F1 by language of one reader, a colour a source: with its English beside, and alone."""
    rows = [
        {"source": source, "language": language, "f1": values["f1"]}
        for source, by_language in metrics.items()
        for language, values in by_language.items()
    ]
    frame = pd.DataFrame(rows)
    figure, (axes,) = panels(max(5, 0.6 * frame["language"].nunique() + 2), 3)
    grouped_bars(axes, frame, "language", "f1", "source", dict(zip(metrics, PALETTE, strict=False)))
    axes.set(ylabel="F1 (%)", title=title, ylim=(0, 100))
    legend(axes, title="English beside", **BESIDE)
    return figure


def write_reader_figure(figures: Path | None = None) -> Path:
    """Draw the scores that lie beside the reader in the box as ``reader.png``, by default in ``figures/``."""
    metrics = read_json(BOX / SCORES)["metrics"]["xquad"]
    title = "The reader in the box: half of XQuAD, 578 questions a language"
    return save(reading_bars(metrics, title), (figures or home() / "figures") / "reader.png")


def _sweep(
    title: str, frame: pd.DataFrame, names: Sequence[str], protocol: str, seeds: pd.DataFrame, full: float
) -> Figure:
    """A line for each of the named columns over the frame's index, in panels of their own if of two data sets.

    Runs of several machines have a line and a marker each, for between machines more differs than the value. At the
    place ``full``, the full method with other seeds than the drawn one, as hollow markers.
    """
    apart = len({name.removesuffix(ALONE) for name in names}) > 1
    figure, sides = panels(8 if apart else 5, 3.2, len(names) if apart else 1)
    machines = dict(list(frame.groupby(MACHINE, sort=False)))
    for number, (axes, name, colour) in enumerate(zip(sides * len(names), names, PALETTE, strict=False)):
        marker_of = dict(zip(machines, cycle(MARKERS[number::2]), strict=False))
        for machine, part in machines.items():
            label = f"{name}, {machine}" if len(machines) > 1 else name
            axes.plot(part.index, part[name], color=colour, marker=marker_of[machine], label=label)
        if name in seeds:
            others = seeds[name].drop(seeds.index.min())
            marker = marker_of.get(frame[MACHINE].get(full), MARKERS[number])
            axes.plot([full] * len(others), others, marker, color=colour, markerfacecolor="none", zorder=1)
    for axes in sides:
        axes.set(xlabel=frame.index.name, ylabel="F1 (%)", xticks=frame.index)
        low, high = axes.get_ylim()
        if high - low < LEAST_RANGE:  # a point of F1, as much as a seed moves, must not look like a mountain
            axes.set_ylim((low + high - LEAST_RANGE) / 2, (low + high + LEAST_RANGE) / 2)
        legend(axes)
    run = (f", seed {seeds.index.min()}" if len(seeds) else "") + ("; hollow: other seeds" if len(seeds) > 1 else "")
    run += "; a line a machine" if len(machines) > 1 else ""
    figure.suptitle(f"{title}\n(protocol {protocol}{run})", fontsize="medium")
    return figure


def gamma_curve(frame: pd.DataFrame, columns: Sequence[str], protocol: str, seeds: pd.DataFrame) -> Figure:
    """Figure 7: mean F1 over gamma, the weight of the teacher's loss; a panel a data set, one for two readings of it.

    Args:
        frame, seeds: of ``sweep_frame`` and ``seed_frame`` in :mod:`~xsta_lib.experiments.frames`; other seeds of the
            full method are hollow markers.
        columns: one or two of the frame's; the values of gamma are spaced evenly.
        protocol: named in the title.
    """
    even, full = frame.set_axis(range(len(frame))).rename_axis("gamma"), int(frame.index.searchsorted(FULL["gamma"]))
    few = f", {len(frame)} of the paper's {len(GAMMAS)} values" if len(frame) < len(GAMMAS) else ""
    figure = _sweep(f"Weight of the teacher's loss{few}", even, columns, protocol, seeds, full)
    for axes in figure.axes:
        axes.set_xticklabels([f"{value:g}" for value in frame.index])
    return figure


def layer_curve(frame: pd.DataFrame, columns: Sequence[str], protocol: str, seeds: pd.DataFrame) -> Figure:
    """Figure 8: mean F1 over the layer that shares, a line a column; arguments as for :func:`gamma_curve`."""
    named = frame.rename_axis("sharing layer")
    few = f", {len(frame)} of {len(LAYERS)} layers" if len(frame) < len(LAYERS) else ""
    return _sweep(f"Layer of GDKS{few}", named, columns, protocol, seeds, FULL["sharing_layer"])


def length_boxes(lengths: Mapping[str, Sequence[int]], limit: int) -> Figure:
    """Window lengths in tokens by language; the line is the longest window."""
    figure, (axes,) = panels(7, 2.8)
    seaborn.boxplot(dict(lengths), ax=axes, color=BLUE, fill=False, width=0.5, linewidth=1, fliersize=3)
    axes.axhline(limit, color=VERMILION, linewidth=1, linestyle="--")
    axes.set(ylabel="tokens in a window", title="window lengths by language")
    return figure


def answer_positions(source: Sequence[Question], targets: Mapping[str, Sequence[Question]]) -> pd.DataFrame:
    """Where the middle of each answer lies in its context, 0 to 1: rows ``language, id, source, target``."""

    def middles(questions: Sequence[Question]) -> pd.Series:
        first = ((q, q.answers[0]) for q in questions if q.answers)  # not every gold text is a span
        return pd.Series({q.id: (answer.start + answer.end) / 2 / len(q.context) for q, answer in first})

    sides = {name: pd.DataFrame({"source": middles(source), "target": middles(of)}) for name, of in targets.items()}
    return pd.concat(sides, names=["language", "id"]).dropna().reset_index()


def position_scatter(positions: pd.DataFrame) -> Figure:
    """Answer positions, English against target, one panel a language; r is the correlation."""
    parts = dict(list(positions.groupby("language", sort=False)))
    figure, sides = panels(2.3 * len(parts), 2.9, len(parts), sharey=True)
    for axes, (language, part) in zip(sides, parts.items(), strict=True):
        axes.plot([0, 1], [0, 1], color="0.8", linewidth=1, zorder=0)
        seaborn.scatterplot(part, x="source", y="target", ax=axes, s=12, color=BLUE, alpha=0.6, linewidth=0)
        axes.set_title(f"{language}, r = {part['source'].corr(part['target']):.2f}", fontsize="medium")
        axes.set(xlabel="place in English", ylabel="place in target", aspect="equal")
    return figure


def _inspection_figures(protocol: str, folder: Path, backbone: str) -> dict[str, Figure]:
    """Figures 4, 5 and 6 of what :func:`~xsta_lib.experiments.inspection.inspect_models` kept, by file name."""
    found, records = {}, {figure: read_inspection(figure, protocol, folder, backbone) for figure in (4, 5, 6)}
    label = {figure: inspected_label(record) for figure, record in records.items() if record}
    if record := records[4]:
        entropies = record["mean_entropy_nats"]
        over = f"mean entropy over {record['questions']} questions"
        maps = {f"{name}\n{over}: {entropies[name]:.2f} nats": frame for name, frame in attention_maps(record).items()}
        found["figure4"] = attention_heatmaps(maps)
        title = f"Attention of one question: {record['dataset']}, {record['language']} (protocol {label[4]})"
        found["figure4"].suptitle(title, fontsize=11)
    if record := records[5]:
        places = pd.DataFrame(**record["places"])
        examples = sorted(places["example"].unique())[:8]
        found["figure5"] = tsne_scatter(places, pd.DataFrame(**record["silhouettes"]), examples)
        found["figure5"].suptitle(f"Sentence representations: {record['dataset']} (protocol {label[5]})", fontsize=11)
    if (record := records[6]) and record["cases"]:
        cases = read_cases(record)
        language = Counter(case.language for case in cases).most_common(1)[0][0]  # the first with both kinds, if any
        mine = [case for case in cases if case.language == language]
        found["figure6"] = case_picture(mine, f"protocol {label[6]}; {record['note']}")
    return found


def _result_figures(results: Sequence[dict], label: str) -> dict[str, Figure]:
    """Figures 3, 7 and 8 and the languages' bars of the results of one setting, by file name."""
    frame = metrics_frame(results)
    dataset = frame["dataset"].iloc[0]
    figures = {}
    if len(compared_systems(frame)):
        drawn = frame[frame["system"].isin(DRAWN) | frame["system"].str.startswith(LLM)]
        drawn = drawn if len(drawn) else frame
        figures = {"figure3": source_target_bars(drawn, dataset), "languages": language_bars(drawn, dataset)}
    logs = token_alignment_logs(results)
    if len(logs) == 2:
        figures["figure4"] = attention_curves(logs, f"{label}, seed {first_seed(results)}, one run each")
    for name, switch, curve in (("figure7", "gamma", gamma_curve), ("figure8", "sharing_layer", layer_curve)):
        values = sweep_frame(results, switch)
        if len(values) > 1:
            figures[name] = curve(values, sweep_columns(values, dataset), label, seed_frame(results))
    return figures


def write_figures(protocol: str, folder: Path | None = None, figures: Path | None = None) -> list[Path]:
    """Write the figures and tables of a protocol's results; returns the paths.

    Figures 7 and 8 come once their grids were measured, Figures 4 to 6 once models were inspected; without the models
    Figure 4 is drawn from the logs of training with and without token alignment. Every setting
    (backbone, optimisation) other than the protocol's own has figures and tables of its own.

    Args:
        protocol: a name or a folder.
        folder: of the results, by default ``results/``; the tables go beside the results.
        figures: where the pictures go, by default ``figures/``.

    Raises:
        FileNotFoundError: the protocol has no results yet.
    """
    folder, figures = folder or results_folder(), figures or home() / "figures"
    groups: dict[str, list[dict]] = {}
    for result in load_all_results(protocol, folder):
        if result["metrics"]:  # a folder without test files has none
            groups.setdefault(file_label(result), []).append(result)
    if not groups:
        place = folder / place_of(protocol)
        raise FileNotFoundError(f"{place}: no results yet; run 'xsta train --protocol {protocol}' first")
    written = []
    for name, results in groups.items():
        label = protocol_label(results[0])
        drawn = _result_figures(results, label)
        config = results[0]["config"]
        if setting_of(config) == backbone_tag(config["backbone"]):  # other settings are not inspected
            drawn |= _inspection_figures(protocol, folder, config["backbone"])
        written += [save(figure, figures / f"{picture}-{name}.png") for picture, figure in drawn.items()]
        written += write_tables(results, folder)
    return written
