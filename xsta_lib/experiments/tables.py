"""Results as tables: by system and language, paired differences, the paper's Tables 1 to 4 beside what was measured.

A table is a list of blocks, ``(heading, frame of texts)``: measured numbers and the paper's never share a column, since
their protocols differ; every heading names the protocol.
"""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from ..data.files import home, write_text_atomically
from ..model.configuration import XStaConfig
from .experiment import WAYS, changed_settings, place_of, setting_of
from .results import load_articles, load_scores, results_folder
from .significance import average_interval, paired_bootstrap, seed_interval, seeds_and_articles

ALONE = " (target only)"  # after the name of a method that can read pairs, where it read the target alone
# Systems that could only be built after the abstracts of their papers are called so wherever they stand.
AFTER_ABSTRACT = {
    "calibrenet": "calibrenet (after the abstract of Liang et al., 2021)",
    "aa-cl": "aa-cl (after the abstract of Chen et al., 2022)",
}
SYSTEMS = (
    *("zero-shot", AFTER_ABSTRACT["calibrenet"], "trans-train", "trans-train equal_tokens=True", "lakm", "lakm_mixmrc"),
    *(AFTER_ABSTRACT["aa-cl"], "pairs", "x-mixup", "x-mixup (target only)"),
    *("x-mixup_content", "x-mixup_content (target only)", "x-sta (target only)", "x-sta"),
)
LLM = "llm "  # before the name of a large language model that was asked every question of a protocol
# The paper's tables: number, task, and the data set here that its numbers stand beside.
TABLES = {1: ("MLQA", "mlqa"), 2: ("TyDiQA", "tydiqa"), 3: ("XQuAD", "xquad")}
ABLATION_ROWS = {
    (): "Ours",
    ("gdks",): "w/o. GDKS",
    ("atgc",): "w/o. ATGC",
    ("atgc_inference",): "w/o. ATGC inference",
    ("rep_norm",): "w/o. Rep-Norm",
    ("alignment_sentence",): "w/o. alignment_s",
    ("alignment_token",): "w/o. alignment_t",
}
GDKS_NOTE = "w/o GDKS loses 1.1 F1 in MLQA's English and 1.3 in XQuAD's"  # the notes to Table 4
FRAME = ["system", "dataset", "language", "f1", "em", "n", "seed", "source", "source_language", "protocol", "scores"]
Block = tuple[str, pd.DataFrame]


def changes(result: dict) -> dict[str, object]:
    """What a result's run was given beside its setting: switches of the model, and ways to train."""
    ways = {name: value for name, value in changed_settings(result["config"]).items() if name in WAYS}
    return dict(map(tuple, result["config"].get("switches", []))) | ways


def protocol_label(result: dict) -> str:
    """The protocol's name for headings, with the setting where it is not the protocol's own."""
    return ", ".join(filter(None, (result["protocol"], setting_of(result["config"]))))


def file_label(result: dict) -> str:
    """:func:`protocol_label` for file names."""
    return protocol_label(result).replace(", ", "-").replace("=", "-").replace("/", "-")


def system_name(result: dict) -> str:
    """How a result is called in tables: method, ablations, changes, and whether it read the target alone."""
    if result["method"] == "llm":
        part = [f"{name}={result['config'][name]}" for name in ("questions", "languages") if result["config"][name]]
        return f"part of {LLM}{result['model']}, {', '.join(part)}" if part else LLM + result["model"]
    method = AFTER_ABSTRACT.get(result["method"], result["method"])
    name = method + "".join(f" w/o {part}" for part in result["without"])
    name += "".join(f" {key}={value}" for key, value in changes(result).items())
    return name + ALONE if result["method"].startswith(("x-sta", "x-mixup")) and result["source"] == "none" else name


def metrics_frame(results: Sequence[dict]) -> pd.DataFrame:
    """Results as tidy rows, columns as in ``FRAME``.

    A data set without sources is read alone whatever was asked for; its numbers count once, without "(target only)".

    Raises:
        ValueError: the results are of several protocols, backbones or settings, which do not compare.
    """
    labels = {protocol_label(result) for result in results}
    if len(labels) > 1:
        raise ValueError(f"results of {' and '.join(sorted(labels))}: take one, as load_results does")
    beside = {(system_name(result), result["seed"]): result["metrics"] for result in results}
    rows = []
    for result in results:
        name = system_name(result)
        with_source = beside.get((name.removesuffix(ALONE), result["seed"]), {}) if name.endswith(ALONE) else {}
        for dataset, by_language in result["metrics"].items():
            if with_source.get(dataset) == by_language:  # read alone either way
                continue
            own = {"system": name, "dataset": dataset, "protocol": protocol_label(result)}
            own |= {key: result[key] for key in ("seed", "source", "source_language", "scores")}
            rows += [{**own, "language": language, **values} for language, values in by_language.items()]
    return pd.DataFrame(rows, columns=FRAME)


def systems(frame: pd.DataFrame) -> list[str]:
    """The systems of a frame in the paper's order, others last."""
    found = list(frame["system"].unique())
    return [name for name in SYSTEMS if name in found] + sorted(set(found) - set(SYSTEMS))


def compared_systems(frame: pd.DataFrame) -> pd.DataFrame:
    """The rows of the compared systems, without ablations and switches."""
    return frame[frame["system"].isin(SYSTEMS) | frame["system"].str.startswith(LLM)]


def average_with_interval(rows: pd.DataFrame, dataset: str) -> tuple[float, float, float]:
    """A system's mean F1 over languages, its 95 % interval: over seeds if there are several, else over questions."""
    seeds = rows.groupby("seed")["f1"].mean()
    if len(seeds) > 1:
        mean, half = seed_interval(seeds)
        return mean, mean - half, mean + half
    return average_interval(load_scores(rows["scores"].iloc[0], dataset))


def _cells(frame: pd.DataFrame) -> list[str]:
    return [f"{f1:.1f} / {em:.1f}" for f1, em in zip(frame["f1"], frame["em"], strict=True)]


def results_block(frame: pd.DataFrame, dataset: str) -> Block:
    """F1 / EM by system and language; means over seeds where there are several, and the average's 95 % interval."""
    part, lines = frame[frame["dataset"] == dataset], {}
    for system in systems(part):
        rows = part[part["system"] == system]
        means = rows.groupby("language")[["f1", "em"]].mean().loc[part["language"].unique()]
        means.loc["avg"] = means.mean()
        lines[system] = dict(zip(means.index, _cells(means), strict=True))
        _, low, high = average_with_interval(rows, dataset)
        over = f" ({seeds} seeds)" if (seeds := rows["seed"].nunique()) > 1 else ""
        lines[system]["95 % interval of avg F1"] = f"{low:.1f} to {high:.1f}{over}"
    table = pd.DataFrame(lines).T.rename_axis(f"{dataset} (F1 / EM)")
    return f"Measured, protocol {part['protocol'].iloc[0]}", table


def results_table(frame: pd.DataFrame, dataset: str) -> str:
    """:func:`results_block` as Markdown, without its heading."""
    return markdown(results_block(frame, dataset)[1])


def difference_block(frame: pd.DataFrame, dataset: str, against: str = "x-sta") -> Block:
    """Paired comparison of one system with the others that have its first seed: F1 points, 95 % interval, p.

    The targets are compared: the source language is left out. Where both have several seeds, a column gives the mean
    difference over them with Student's interval: what another training run moves, which resampling questions cannot
    tell. Where articles are known, another column has the mean difference with the interval of resampled seeds and
    articles (:func:`~.significance.seeds_and_articles`), of one seed that of articles alone.

    Args:
        frame, dataset: see :func:`metrics_frame`, and which of its data sets.
        against: the system that the others are subtracted from.
    """
    part = compared_systems(frame[frame["dataset"] == dataset])
    source = part["source_language"].iloc[0]
    means = part[part["language"] != source].pivot_table(index="seed", columns="system", values="f1")
    files = part.drop_duplicates(["seed", "system"]).set_index(["seed", "system"])["scores"].unstack()
    first = files.loc[part.loc[part["system"] == against, "seed"].min()].dropna()
    own, lines = load_scores(first[against], dataset), {}
    articles = load_articles(Path(first[against]).parent, dataset)
    for name in [name for name in systems(part) if name in first and name != against]:
        cells = _difference_cells(own, load_scores(first[name], dataset), [source])
        if articles:
            cells |= _article_cells(files[[against, name]].dropna(), dataset, articles, [source])
        by_seed = (means[against] - means[name]).dropna()
        if len(by_seed) > 1:
            mean, half = seed_interval(by_seed)
            over = f"{mean - half:+.1f} to {mean + half:+.1f}; {len(by_seed)} seeds"
            cells["mean over seeds"] = f"{mean:+.1f} ({over})"
        lines[f"{against} against {name}"] = cells
    heading = f"Measured, protocol {part['protocol'].iloc[0]}: {dataset}, without {source}"
    return heading, pd.DataFrame(lines).T.fillna("")


def difference_blocks(frame: pd.DataFrame) -> list[Block]:
    """X-STA minus the others on every data set that both have, as it is tested and with the target alone."""
    blocks = []
    for dataset in dict.fromkeys(frame["dataset"]):
        found = set(frame.loc[frame["dataset"] == dataset, "system"])
        for against in ("x-sta", "x-sta" + ALONE):
            if against in found and len(found) > 1:
                blocks.append(difference_block(frame, dataset, against))
    return blocks


def _difference_cells(first: pd.DataFrame, second: pd.DataFrame, without: Sequence[str] = ()) -> dict[str, str]:
    found = paired_bootstrap(first, second, without=without)
    return {
        "difference of F1": f"{found.value:+.1f}",
        "95 % interval": f"{found.low:+.1f} to {found.high:+.1f}",
        "p": f"{found.p:.4f}" if found.p >= 1e-3 else "below 0.001",
    }


def _article_cells(
    files: pd.DataFrame, dataset: str, articles: Mapping[str, str], without: Sequence[str] = ()
) -> dict[str, str]:
    """First minus second column of score files, a row a seed: a cell with the mean and what its interval is over."""
    sides = [[load_scores(file, dataset) for file in files.iloc[:, place]] for place in (0, 1)]
    found = seeds_and_articles(*sides, articles, without)
    over = f"{len(set(articles.values()))} articles"
    over = f"{len(files)} seeds x {over}" if len(files) > 1 else over
    return {"over seeds and articles": f"{found.value:+.1f} ({found.low:+.1f} to {found.high:+.1f}; {over})"}


def cost_block(results: Sequence[dict]) -> Block:
    """What each compared system took: steps, what it read, seconds, and its mean F1 by data set; first seed.

    "Of these beside" are the steps of other tasks and stages than the span batches that all have. A run that read the
    target alone too stands here once.
    """
    seed, lines = min(result["seed"] for result in results), {}
    for result in results:
        name, counts = system_name(result), result.get("steps")
        if result["seed"] != seed or name.endswith(ALONE) or not (name in SYSTEMS or name.startswith(LLM)):
            continue
        beside = sum(part["steps"] for part in result.get("extra", {}).values())
        numbers = {"steps": counts, "of these beside": beside}
        numbers |= {name: result.get(name) for name in ("sequences", "tokens", "seconds")}
        cells = {name: "" if value is None else f"{value:,.0f}" for name, value in numbers.items()}
        for dataset, by_language in result["metrics"].items():
            cells[f"{dataset} F1"] = f"{np.mean([values['f1'] for values in by_language.values()]):.1f}"
        lines[name] = cells
    table = pd.DataFrame(lines, dtype=object).T.fillna("")
    table = table.loc[[name for name in SYSTEMS if name in lines] + sorted(set(lines) - set(SYSTEMS))]
    return f"Measured, protocol {protocol_label(results[0])}, seed {seed}", table


def _paper_blocks(number: int) -> list[Block]:
    """One of the paper's tables, a block a backbone; they lie in the repository, elsewhere there is none."""
    path = home() / "data" / "paper" / f"table{number}.csv"
    blocks, column = [], "task" if number == 4 else "language"
    for backbone, part in pd.read_csv(path).groupby("backbone", sort=False) if path.is_file() else ():
        twice = part.groupby("method")["source"].transform("nunique") > 1  # reported, and implemented again
        names = part["method"].where(~twice, part["method"] + " (" + part["source"] + ")")
        table = part.assign(name=names, cell=_cells(part)).pivot(index="name", columns=column, values="cell")
        table = table.loc[names.unique(), part[column].unique()].rename_axis(None, axis="columns")
        blocks.append((f"Paper, {backbone} base, its own protocol", table.fillna("").rename_axis("F1 / EM")))
    return blocks


def table_blocks(number: int, frame: pd.DataFrame) -> list[Block]:
    """Table 1, 2 or 3: what was measured on its data set (if anything was), then the paper's numbers."""
    dataset, measured = TABLES[number][1], compared_systems(frame)
    found = [results_block(measured, dataset)] if dataset in set(measured["dataset"]) else []
    return found + _paper_blocks(number)


def _first_seed(results: Sequence[dict]) -> tuple[str, dict[tuple[str, ...], dict]]:
    """A heading, and X-STA's results of the first seed by what is left out: no switches, the source if there is one."""
    own = [r for r in results if r["method"] == "x-sta" and not changes(r)]
    own = [r for r in own if r["source"] != "none"] or own
    if not own:
        return "Measured: nothing", {}
    seed = min(r["seed"] for r in own)
    heading = f"Measured, protocol {protocol_label(own[0])}, seed {seed}"
    return heading, {tuple(r["without"]): r for r in own if r["seed"] == seed}


def token_alignment_logs(results: Sequence[dict]) -> dict[str, list[dict]]:
    """Training logs of the first seed's X-STA with and without token alignment, as far as they say where it looked."""
    measured = _first_seed(results)[1]
    named = {"with token alignment": (), "without token alignment": ("alignment_token",)}
    found = {name: measured[key]["log"] for name, key in named.items() if key in measured and "log" in measured[key]}
    return {name: log for name, log in found.items() if any("content_mass" in line for line in log)}


def ablation_block(results: Sequence[dict]) -> Block:
    """Measured ablations: mean F1 / EM over the languages of each data set, and F1's change against the full method.

    The source language's F1 stands beside: what sharing does to it is why the paper has GDKS (notes to its Table 4).
    "w/o ATGC inference" is the full model read without calibration; it needs no training of its own. First seed.
    """
    heading, measured = _first_seed(results)
    rows = {key: result["metrics"] for key, result in measured.items()}
    source = next((result["source_language"] for result in measured.values()), "")
    if () in rows and ("atgc_inference",) not in rows:
        rows[("atgc_inference",)] = measured[()]["readings"].get("target", {})
    lines = {}
    for key, name in ABLATION_ROWS.items():
        for dataset, by_language in rows.get(key, {}).items():
            f1, em = (np.mean([values[metric] for values in by_language.values()]) for metric in ("f1", "em"))
            base = rows.get((), {}).get(dataset, by_language)
            change = f1 - np.mean([values["f1"] for values in base.values()])
            cell = f"{f1:.1f} / {em:.1f}" + (f" ({change:+.1f})" if key else "")
            lines.setdefault(name, {})[dataset] = cell
            if source in by_language:
                lines[name][f"{dataset}, F1 of {source}"] = f"{by_language[source]['f1']:.1f}"
    table = pd.DataFrame(lines).T.fillna("").rename_axis("avg F1 / EM (change)")
    return heading, table


def ablation_difference_blocks(results: Sequence[dict]) -> list[Block]:
    """Each ablation that was trained minus the full method, by data set: F1 points over all languages, interval, p.

    The two answered the same questions, which are resampled in pairs; see :func:`difference_block`. First seed.
    """
    (heading, measured), blocks = _first_seed(results), []
    for dataset in measured[()]["metrics"] if () in measured else ():
        own = load_scores(measured[()]["scores"], dataset)
        found = {name: measured[key]["scores"] for key, name in ABLATION_ROWS.items() if key and key in measured}
        lines = {name: _difference_cells(load_scores(scores, dataset), own) for name, scores in found.items()}
        if articles := load_articles(Path(measured[()]["scores"]).parent, dataset):
            for name, scores in found.items():
                pair = pd.DataFrame([[scores, measured[()]["scores"]]])
                lines[name] |= _article_cells(pair, dataset, articles)
        if lines:
            blocks.append((f"{heading}: {dataset}, minus the full method", pd.DataFrame(lines).T))
    return blocks


def table4_blocks(results: Sequence[dict]) -> list[Block]:
    """Table 4: the measured ablations, then the paper's (mBERT, averages)."""
    paper = [(f"{heading}; {GDKS_NOTE}", table.rename_axis("avg F1 / EM")) for heading, table in _paper_blocks(4)]
    return [ablation_block(results), *paper]


def markdown(table: pd.DataFrame) -> str:
    """A frame of texts as a Markdown table."""
    lines = [[table.index.name or "", *table.columns], *([name, *cells] for name, *cells in table.itertuples())]
    rows = [f"| {' | '.join(map(str, line))} |" for line in lines]
    return "\n".join([rows[0], "|" + "---|" * len(lines[0]), *rows[1:]])


def latex(block: Block, label: str) -> str:
    """A block as a LaTeX table (booktabs); its heading is the caption."""
    heading, table = block
    shown = table.rename_axis(None).style.format(escape="latex")
    shown = shown.format_index(escape="latex").format_index(escape="latex", axis="columns")
    form = {"hrules": True, "column_format": "l" + "r" * len(table.columns), "position": "ht"}
    return shown.to_latex(**form, caption=heading.replace("%", r"\%").replace("_", r"\_"), label=label)


def write_tables(results: Sequence[dict], protocol: str, folder: Path | None = None) -> list[Path]:
    """Write a protocol's tables, measured beside the paper's: ``tables.md`` and ``tables.tex`` in its folder.

    The results are of one setting; files of one that is not the protocol's own have its name, ``tables-mbert.md``.
    """
    frame, label = metrics_frame(results), protocol_label(results[0])
    if not _paper_blocks(4):
        print("xsta: the paper's numbers are left out; they lie in the repository, data/paper", file=sys.stderr)
    measured, known = compared_systems(frame), [dataset for _, dataset in TABLES.values()]
    own = {d: results_block(measured, d) for d in dict.fromkeys(measured["dataset"]) if d not in known}
    blocks = {f"Table {n}: {task}": table_blocks(n, frame) for n, (task, _) in TABLES.items()}
    blocks["Table 4: ablations"] = [*table4_blocks(results), *ablation_difference_blocks(results)]
    blocks["Differences"] = difference_blocks(measured)
    blocks["What each system took"] = [cost_block(results)]
    text = [f"# Protocol {label}: tables", *(f"## {d}\n\n{markdown(table)}" for d, (_, table) in own.items())]
    tex = ["% needs \\usepackage{booktabs}", *(latex(block, f"tab:{protocol}-{d}") for d, block in own.items())]
    for number, (title, found) in enumerate(blocks.items(), 1):
        text += [f"## {title}", *(f"{heading}:\n\n{markdown(table)}" for heading, table in found)]
        tex += [latex(block, f"tab:{protocol}-{number}-{place}") for place, block in enumerate(found)]
    name = f"tables{file_label(results[0]).removeprefix(results[0]['protocol'])}"
    paths = [(folder or results_folder()) / place_of(protocol) / f"{name}.{kind}" for kind in ("md", "tex")]
    write_text_atomically(paths[0], "\n\n".join(text) + "\n")
    write_text_atomically(paths[1], "\n".join(tex) + "\n")
    return paths


# The full method's values, whose result has no switch.
FULL = {name: getattr(XStaConfig, name) for name in ("gamma", "sharing_layer", "lambda_0")}
HELD_OUT = "held-out validation"


def _gather(results: Sequence[dict], key: str) -> pd.DataFrame:
    """Mean F1 over languages of X-STA with no change but ``key``, and its validation score: a row a value of it."""
    rows: dict[float, dict[str, float]] = {}
    for result in results:
        switched = changes(result)
        if result["method"] != "x-sta" or result["without"] or set(switched) - {key}:
            continue
        row = rows.setdefault(switched.get(key, FULL[key]) if key in FULL else result[key], {})
        for dataset, by_language in result["metrics"].items():
            name = dataset + ALONE if result["source"] == "none" else dataset
            row[name] = float(np.mean([values["f1"] for values in by_language.values()]))
        if result.get("validation_f1") is not None:
            row[HELD_OUT] = result["validation_f1"]
    return pd.DataFrame(rows).T.sort_index()


def sweep_frame(results: Sequence[dict], switch: str) -> pd.DataFrame:
    """F1 of X-STA over the values of one switch: rows by value, a column a data set; first seed.

    Columns are the data sets' means over languages (with the source, and ``<data set> (target only)`` without), and
    ``held-out validation``, the score that chose the weights, where the run was validated. ``switch`` is one of
    ``FULL``; ``results`` are of one protocol and setting.
    """
    first = min((result["seed"] for result in results), default=0)
    return _gather([r for r in results if r["seed"] == first], switch)


def seed_frame(results: Sequence[dict]) -> pd.DataFrame:
    """F1 of the full method by seed, columns as for :func:`sweep_frame`: what another training run alone moves."""
    return _gather(results, "seed")


def sweep_columns(frame: pd.DataFrame, dataset: str) -> list[str]:
    """The columns that Figures 7 and 8 show: held-out validation, or else target only, and the data set.

    Of a data set without sources, which is read alone, there may be one only.
    """
    first, main = (name if name in frame else dataset + ALONE for name in (HELD_OUT, dataset))
    return [name for name in dict.fromkeys((first, main)) if name in frame]
