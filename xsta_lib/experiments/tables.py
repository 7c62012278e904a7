"""Results as tables: by system and language, paired differences, the paper's Tables 1 to 4 beside what was measured.

A table is a list of blocks, ``(heading, frame of texts)``: measured numbers and the paper's never share a column, since
their protocols differ; every heading names the protocol.
"""

import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from ..data.files import home, write_text_atomically
from .frames import (
    ALONE,
    LLM,
    SYSTEMS,
    changes,
    compared_systems,
    file_label,
    first_seed,
    full_and_ablated,
    metrics_frame,
    protocol_label,
    system_name,
    systems,
    trained_on,
)
from .results import load_articles, load_scores, results_folder
from .significance import average_interval, difference_table, seeds_and_articles

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
# LaTeX's special characters, as captions have them; those of cells are escaped by pandas.
SPECIAL = {character: f"\\{character}" for character in "&%$#_{}"}
SPECIAL |= {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
Block = tuple[str, pd.DataFrame]


def average_with_interval(rows: pd.DataFrame, dataset: str) -> tuple[float, float, float, str]:
    """A system's mean F1 over languages, its 95 % interval, and what that is over, such as ``3 seeds, 24 articles``.

    Questions take the place of articles that are not known.
    """
    files = rows["scores"].unique()
    found, articles = [load_scores(file, dataset) for file in files], _articles(files[0], dataset)
    return *average_interval(found, articles, resamples=10_000), _over(len(files), articles)


def _articles(file: str, dataset: str) -> dict[str, str]:
    """The articles of a data set, kept beside a file of scores."""
    return load_articles(Path(file).parent, dataset)


def _over(seeds: int, articles: Mapping[str, str]) -> str:
    """What an interval is over, for cells."""
    units = f"{len(set(articles.values()))} articles" if articles else "questions"
    return f"{seeds} seeds, {units}" if seeds > 1 else units


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
        _, low, high, over = average_with_interval(rows, dataset)
        lines[system]["95 % interval of avg F1"] = f"{low:.1f} to {high:.1f} ({over})"
    table = pd.DataFrame(lines).T.rename_axis(f"{dataset} (F1 / EM)")
    return f"Measured, protocol {part['protocol'].iloc[0]}", table


def difference_block(frame: pd.DataFrame, dataset: str, against: str = "x-sta", in_source: bool = False) -> Block:
    """One system minus each of the others, over the seeds that both have: F1 points, 95 % interval, p.

    The targets are compared: the source language is left out; ``in_source`` compares it alone. Intervals resample
    seeds and articles (:func:`~.significance.seeds_and_articles`), or questions where articles are not known; the block
    says which. Where several seeds are compared, each one's difference stands beside.

    Args:
        frame, dataset: see :func:`~.frames.metrics_frame`, and which of its data sets.
        against: the system that the others are subtracted from.
    """
    part = compared_systems(frame[frame["dataset"] == dataset])
    source, named = part["source_language"].iloc[0], part.drop_duplicates(["seed", "system"])
    files, devices = (named.pivot(index="seed", columns="system", values=name) for name in ("scores", "device"))
    without = [name for name in part["language"].unique() if (name == source) != in_source]
    articles, lines = _articles(named["scores"].iloc[0], dataset), {}
    some = len(without) < part["language"].nunique()  # a test set of the source alone has no targets
    others = [name for name in systems(part) if not (in_source and name.endswith(ALONE))]  # the source is read once
    for name in others if some else ():
        shared = files[[against, name]].dropna() if name != against else ()
        if len(shared):
            machines = devices.loc[shared.index, [against, name]].to_numpy()
            lines[f"{against} minus {name}"] = _difference_cells(shared, machines, dataset, articles, without)
    compared = source if in_source else f"without {source}"
    heading = f"Measured, protocol {part['protocol'].iloc[0]}: {dataset}, {compared}; {against} minus"
    return heading, pd.DataFrame(lines).T.fillna("")


# The systems that the others are subtracted from in the tables of differences.
AGAINST = ("x-sta", "x-sta" + ALONE, "pairs", "lakm", "x-mixup", "trans-train")


def difference_blocks(frame: pd.DataFrame) -> list[Block]:
    """Each of ``AGAINST`` minus the others on every data set that both have; X-STA and pairs in the source too.

    A pair stands once: what was subtracted from one of ``AGAINST`` has no row the other way round.
    """
    blocks = []
    for dataset, part in frame.groupby("dataset", sort=False):
        for against in (name for name in AGAINST if name in set(part["system"])):
            blocks.append(difference_block(part, dataset, against))
            if against in ("x-sta", "pairs") and (part["language"] == part["source_language"]).any():
                blocks.append(difference_block(part, dataset, against, in_source=True))
            part = part[part["system"] != against]
    return [(heading, table) for heading, table in blocks if len(table)]


def _difference_cells(
    files: pd.DataFrame, machines: np.ndarray, dataset: str, articles: Mapping[str, str], without: Sequence[str]
) -> dict[str, str]:
    """First minus second column of score files, a row a seed: the mean, its interval, and what that is over.

    ``machines`` are what the files' models were trained on, in the same form; they are told where they differ.
    """
    sides = [[load_scores(file, dataset) for file in files.iloc[:, place]] for place in (0, 1)]
    found = seeds_and_articles(*sides, articles, without)
    cells = {
        "difference of F1": f"{found.value:+.1f}",
        "95 % interval": f"{found.low:+.1f} to {found.high:+.1f}",
        "p": f"{found.p:.4f}" if found.p >= 1e-3 else "below 0.001",
        "over": _over(len(files), articles),
    }
    if len(files) > 1:
        each = [difference_table(*pair, without).mean().mean() for pair in zip(*sides, strict=True)]
        cells["each seed"] = ", ".join(f"{value:+.1f}" for value in each)
    if (machines != "").all() and (machines[:, 0] != machines[:, 1]).any():
        cells["machines"] = " and ".join(dict.fromkeys(machines.ravel()))
    return cells


def cost_block(results: Sequence[dict]) -> Block:
    """What each compared system took: steps, what it read, seconds, and its mean F1 by data set; first seed.

    "In other stages" are the steps of other tasks and stages than the span batches that all have. Seconds compare on
    one machine only. A run that read the target alone too stands here once.
    """
    seed, lines = first_seed(results), {}
    first = {system_name(result): result for result in results if result["seed"] == seed}
    for name, result in first.items():
        twice = name.endswith(ALONE) and name.removesuffix(ALONE) in first
        if twice or not (name in SYSTEMS or name.startswith(LLM)):
            continue
        counts = result.get("steps")
        beside = sum(part["steps"] for part in result.get("extra", {}).values())
        numbers = {"steps": counts, "in other stages": beside}
        numbers |= {name: result.get(name) for name in ("sequences", "tokens", "seconds")}
        cells = {name: "" if value is None else f"{value:,.0f}" for name, value in numbers.items()}
        cells["machine"] = trained_on(result)
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


def ablation_block(results: Sequence[dict]) -> Block:
    """Measured ablations: mean F1 / EM over the languages of each data set, and F1's change against the full method.

    The source language's F1 stands beside: what sharing does to it is why the paper has GDKS (notes to its Table 4).
    "w/o ATGC inference" is the full model read without calibration; it needs no training of its own. First seed.
    """
    measured = full_and_ablated(results)
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
    return _first_seed_heading(results), table


def _first_seed_heading(results: Sequence[dict]) -> str:
    own = [result for result in results if result["method"] == "x-sta"]
    return f"Measured, protocol {protocol_label(own[0])}, seed {first_seed(results)}" if own else "Measured: nothing"


def ablation_difference_blocks(results: Sequence[dict]) -> list[Block]:
    """Every other X-STA of the first seed minus the full method: Table 4's ablations, then other values of switches.

    A block for each data set and reading, beside the source and alone; cells as in :func:`difference_block`, over the
    target languages.
    """
    heading, blocks, seed = _first_seed_heading(results), [], first_seed(results)
    own = [result for result in results if result["method"] == "x-sta" and result["seed"] == seed]
    beside: dict = {}
    for alone in (False, True):
        found = {system_name(r).removesuffix(ALONE): r for r in own if (r["source"] == "none") == alone}
        full = found.pop("x-sta", None)
        for dataset in full["metrics"] if full else ():
            if alone and beside.get(dataset) == full["metrics"][dataset]:  # read alone either way
                continue
            lines = _minus_full(found.values(), full, dataset)
            if lines:
                reading = f"{dataset}{ALONE if alone else ''}, without {full['source_language']}"
                blocks.append((f"{heading}: {reading}, minus the full method", pd.DataFrame(lines).T.fillna("")))
        beside = full["metrics"] if full else {}
    return blocks


def _minus_full(others: Iterable[dict], full: dict, dataset: str) -> dict[str, dict[str, str]]:
    """Cells of :func:`ablation_difference_blocks` by row, ablations first, in the paper's order."""
    articles, rows, lines = _articles(full["scores"], dataset), list(ABLATION_ROWS.values()), {}
    for result in others:
        if set(result["metrics"].get(dataset, ())) - {full["source_language"]}:
            kept = () if changes(result) else tuple(result["without"])
            name = ABLATION_ROWS.get(kept) if kept else None
            files = pd.DataFrame([[result["scores"], full["scores"]]])
            devices = np.array([[trained_on(result), trained_on(full)]])
            cells = _difference_cells(files, devices, dataset, articles, [full["source_language"]])
            lines[name or system_name(result).removesuffix(ALONE).removeprefix("x-sta ")] = cells
    return dict(sorted(lines.items(), key=lambda line: rows.index(line[0]) if line[0] in rows else len(rows)))


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
    caption = heading.translate(str.maketrans(SPECIAL))
    return shown.to_latex(**form, caption=caption, label=re.sub(r"[^\w.:-]+", "-", label))


def write_tables(results: Sequence[dict], folder: Path | None = None) -> list[Path]:
    """Write a protocol's tables, measured beside the paper's: ``tables.md`` and ``tables.tex`` in its folder.

    The results are of one setting; files of one that is not the protocol's own have its name, ``tables-mbert.md``.
    """
    frame, label, place = metrics_frame(results), protocol_label(results[0]), results[0]["protocol"]
    if not _paper_blocks(4):
        print("xsta: the paper's numbers are left out; they lie in the repository, data/paper", file=sys.stderr)
    measured, known = compared_systems(frame), [dataset for _, dataset in TABLES.values()]
    own = {d: results_block(measured, d) for d in dict.fromkeys(measured["dataset"]) if d not in known}
    blocks = {f"Table {n}: {task}": table_blocks(n, frame) for n, (task, _) in TABLES.items()}
    blocks["Table 4: ablations"] = [*table4_blocks(results), *ablation_difference_blocks(results)]
    blocks["Differences"] = difference_blocks(measured)
    blocks["What each system took"] = [cost_block(results)]
    text = [f"# Protocol {label}: tables", *(f"## {d}\n\n{markdown(table)}" for d, (_, table) in own.items())]
    tex = ["% needs \\usepackage{booktabs}", *(latex(block, f"tab:{place}-{d}") for d, block in own.items())]
    for number, (title, found) in enumerate(blocks.items(), 1):
        text += [f"## {title}", *(f"{heading}:\n\n{markdown(table)}" for heading, table in found)]
        tex += [latex(block, f"tab:{place}-{number}-{count}") for count, block in enumerate(found)]
    name = f"tables{file_label(results[0]).removeprefix(place)}"
    paths = [(folder or results_folder()) / place / f"{name}.{kind}" for kind in ("md", "tex")]
    write_text_atomically(paths[0], "\n\n".join(text) + "\n")
    write_text_atomically(paths[1], "\n".join(tex) + "\n")
    return paths
