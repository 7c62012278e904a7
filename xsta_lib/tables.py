"""Results as tables: by system and language, paired differences, the paper's Tables 1 to 4 beside what was measured.

A table is a list of blocks, ``(heading, frame of texts)``: measured numbers and the paper's never share a column, since
their protocols differ; every heading names the protocol.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from .corpus import write_text_atomically
from .experiment_config import WAYS, changed_settings, place_of, setting_of
from .results import RESULTS, ROOT, load_scores
from .significance import Difference, average_interval, paired_bootstrap, seed_interval

PAPER = ROOT / "data" / "paper"
ALONE = " (target only)"  # after the name of a method that can read pairs, where it read the target alone
SYSTEMS = ("zero-shot", "trans-train", "x-mixup", "x-mixup (target only)", "x-sta (target only)", "x-sta")
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
FRAME = ["system", "dataset", "language", "f1", "em", "n", "seed", "source", "protocol", "scores"]
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
    name = result["method"] + "".join(f" w/o {part}" for part in result["without"])
    name += "".join(f" {key}={value}" for key, value in changes(result).items())
    return name + ALONE if result["method"] in ("x-sta", "x-mixup") and result["source"] == "none" else name


def metrics_frame(results: Sequence[dict]) -> pd.DataFrame:
    """Results as tidy rows: ``system, dataset, language, f1, em, n, seed, source, protocol, scores``.

    A data set without sources is read alone whatever was asked for; its numbers count once, without "(target only)".

    Raises:
        ValueError: the results are of several protocols, backbones or settings, which do not compare.
    """
    labels = {protocol_label(result) for result in results}
    if len(labels) > 1:
        raise ValueError(f"results of {' and '.join(sorted(labels))}: take one, as load_results does")
    beside = {(system_name(result), result["seed"]): result["metrics"] for result in results}

    def repeated(result: dict, dataset: str) -> bool:
        name = system_name(result)
        other = beside.get((name.removesuffix(ALONE), result["seed"]), {})
        return name.endswith(ALONE) and other.get(dataset) == result["metrics"][dataset]

    rows = [
        {
            "system": system_name(result),
            "dataset": dataset,
            "language": language,
            **values,
            "seed": result["seed"],
            "source": result["source"],
            "protocol": protocol_label(result),
            "scores": result["scores"],
        }
        for result in results
        for dataset, by_language in result["metrics"].items()
        if not repeated(result, dataset)
        for language, values in by_language.items()
    ]
    return pd.DataFrame(rows, columns=FRAME)


def systems(frame: pd.DataFrame) -> list[str]:
    """The systems of a frame in the paper's order, others last."""
    found = list(frame["system"].unique())
    return [name for name in SYSTEMS if name in found] + sorted(set(found) - set(SYSTEMS))


def four_systems(frame: pd.DataFrame) -> pd.DataFrame:
    """The rows of the compared systems, without ablations and switches."""
    return frame[frame["system"].isin(SYSTEMS)]


def average_with_interval(rows: pd.DataFrame, dataset: str, metric: str = "f1") -> tuple[float, float, float]:
    """A system's mean over languages with its 95 % interval: over seeds if there are several, else over questions."""
    seeds = rows.groupby("seed")[metric].mean()
    if len(seeds) > 1:
        mean, half = seed_interval(seeds)
        return mean, mean - half, mean + half
    return average_interval(load_scores(rows["scores"].iloc[0], dataset), metric)


def results_block(frame: pd.DataFrame, dataset: str) -> Block:
    """F1 / EM by system and language; means over seeds where there are several, and the average's 95 % interval."""
    part = frame[frame["dataset"] == dataset]
    languages = list(dict.fromkeys(part["language"]))
    lines = {}
    for system in systems(part):
        rows = part[part["system"] == system]
        means, seeds = rows.groupby("language")[["f1", "em"]].mean().loc[languages], rows["seed"].nunique()
        _, low, high = average_with_interval(rows, dataset)
        cells = {row.Index: f"{row.f1:.1f} / {row.em:.1f}" for row in means.itertuples()}
        cells["avg"] = f"{means['f1'].mean():.1f} / {means['em'].mean():.1f}"
        cells["95 % interval of avg F1"] = f"{low:.1f} to {high:.1f}" + (f" ({seeds} seeds)" if seeds > 1 else "")
        lines[system] = cells
    table = pd.DataFrame(lines).T.rename_axis(f"{dataset} (F1 / EM)")
    return f"Measured, protocol {part['protocol'].iloc[0]}", table


def results_table(frame: pd.DataFrame, dataset: str) -> str:
    """:func:`results_block` as Markdown, without its heading."""
    return markdown(results_block(frame, dataset)[1])


def difference_block(frame: pd.DataFrame, dataset: str, against: str = "x-sta", source: str | None = "en") -> Block:
    """Paired comparison of one system with the others that have its first seed: F1 points, 95 % interval, p.

    Where both have several seeds, a column gives the mean difference over them with Student's interval: what another
    training run moves, which resampled questions cannot tell.

    Args:
        frame: see :func:`metrics_frame`.
        dataset: which.
        against: the system that the others are subtracted from.
        source: the language left out; ``None`` compares all.
    """
    part = four_systems(frame[frame["dataset"] == dataset])
    means = part[part["language"] != source].pivot_table(index="seed", columns="system", values="f1")
    seed = part.loc[part["system"] == against, "seed"].min()
    first = part[part["seed"] == seed].drop_duplicates("system").set_index("system")["scores"]
    own, lines = load_scores(first[against], dataset), {}
    for name in [name for name in systems(part) if name in first and name != against]:
        found = paired_bootstrap(own, load_scores(first[name], dataset), without=[source] if source else [])
        lines[f"{against} against {name}"] = _difference_cells(found)
        by_seed = (means[against] - means[name]).dropna()
        if len(by_seed) > 1:
            mean, half = seed_interval(by_seed)
            over = f"{mean:+.1f} ({mean - half:+.1f} to {mean + half:+.1f}; {len(by_seed)} seeds)"
            lines[f"{against} against {name}"]["mean over seeds"] = over
    left_out = f", without {source}" if source else ""
    return f"Measured, protocol {part['protocol'].iloc[0]}: {dataset}{left_out}", pd.DataFrame(lines).T.fillna("")


def _difference_cells(found: Difference) -> dict[str, str]:
    return {
        "difference of F1": f"{found.value:+.1f}",
        "95 % interval": f"{found.low:+.1f} to {found.high:+.1f}",
        "p": f"{found.p:.4f}" if found.p >= 1e-3 else "below 0.001",
    }


def paper_table(number: int) -> pd.DataFrame:
    """One of the paper's tables: ``table, task, backbone, method, language, f1, em, source``."""
    return pd.read_csv(PAPER / f"table{number}.csv")


def _paper_blocks(number: int) -> list[Block]:
    blocks = []
    for backbone, part in paper_table(number).groupby("backbone", sort=False):
        twice = part.groupby("method")["source"].transform("nunique") > 1  # reported, and implemented again
        names = part["method"].where(~twice, part["method"] + " (" + part["source"] + ")")
        cells = [f"{a:.1f} / {b:.1f}" for a, b in zip(part["f1"], part["em"], strict=True)]
        languages = list(dict.fromkeys(part["language"]))
        table = part.assign(name=names, cell=cells).pivot(index="name", columns="language", values="cell")[languages]
        table = table.loc[list(dict.fromkeys(names))].rename_axis(None, axis="columns")
        blocks.append((f"Paper, {backbone} base, its own protocol", table.fillna("").rename_axis("F1 / EM")))
    return blocks


def table_blocks(number: int, frame: pd.DataFrame) -> list[Block]:
    """Table 1, 2 or 3: what was measured on its data set (if anything was), then the paper's numbers."""
    dataset = TABLES[number][1]
    measured = four_systems(frame)
    found = [results_block(measured, dataset)] if dataset in set(measured["dataset"]) else []
    return found + _paper_blocks(number)


def _first_seed(results: Sequence[dict]) -> dict[tuple[str, ...], dict]:
    """X-STA's results of the first seed by what is left out, without switches; with the source where there is one."""
    own = [r for r in results if r["method"] == "x-sta" and not changes(r)]
    own = [r for r in own if r["source"] != "none"] or own
    return {tuple(r["without"]): r for r in own if r["seed"] == min(x["seed"] for x in own)}


def _seed_heading(measured: Mapping[tuple[str, ...], dict]) -> str:
    one = next(iter(measured.values()), None)
    return f"Measured, protocol {protocol_label(one)}, seed {one['seed']}" if one else "Measured: nothing"


def ablation_block(results: Sequence[dict]) -> Block:
    """Measured ablations: mean F1 / EM over the languages of each data set, and F1's change against the full method.

    English's F1 stands beside: what sharing does to the source is why the paper has GDKS (notes to its Table 4).
    "w/o ATGC inference" is the full model read without calibration; it needs no training of its own. First seed.
    """
    measured = _first_seed(results)
    rows = {key: result["metrics"] for key, result in measured.items()}
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
            if "en" in by_language:
                lines[name][f"{dataset}, F1 of en"] = f"{by_language['en']['f1']:.1f}"
    table = pd.DataFrame(lines).T.fillna("").rename_axis("avg F1 / EM (change)")
    return _seed_heading(measured), table


def ablation_difference_blocks(results: Sequence[dict]) -> list[Block]:
    """Each ablation that was trained minus the full method, by data set: F1 points over all languages, interval, p.

    The two answered the same questions, which are resampled in pairs; see :func:`difference_block`. First seed.
    """
    measured, blocks = _first_seed(results), []
    for dataset in measured[()]["metrics"] if () in measured else ():
        own = load_scores(measured[()]["scores"], dataset)
        lines = {
            name: _difference_cells(paired_bootstrap(load_scores(measured[key]["scores"], dataset), own))
            for key, name in ABLATION_ROWS.items()
            if key and key in measured
        }
        if lines:
            heading = f"{_seed_heading(measured)}: {dataset}, minus the full method"
            blocks.append((heading, pd.DataFrame(lines).T))
    return blocks


def table4_blocks(results: Sequence[dict]) -> list[Block]:
    """Table 4: the measured ablations, then the paper's (mBERT, averages)."""
    part = paper_table(4)
    cells = part.assign(cell=[f"{a:.1f} / {b:.1f}" for a, b in zip(part["f1"], part["em"], strict=True)])
    table = cells.pivot(index="method", columns="task", values="cell").loc[list(ABLATION_ROWS.values())]
    table = table.rename_axis(None, axis="columns").rename_axis("avg F1 / EM")
    return [ablation_block(results), (f"Paper, mBERT base, its own protocol; {GDKS_NOTE}", table)]


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
    caption = heading.replace("%", r"\%").replace("_", r"\_")
    layout = "l" + "r" * len(table.columns)
    return shown.to_latex(hrules=True, column_format=layout, caption=caption, label=label, position="ht")


def write_tables(results: Sequence[dict], protocol: str, folder: Path = RESULTS) -> list[Path]:
    """Write a protocol's tables, measured beside the paper's: ``tables.md`` and ``tables.tex`` in its folder.

    The results are of one setting; files of one that is not the protocol's own have its name, ``tables-mbert.md``.
    """
    frame, label = metrics_frame(results), protocol_label(results[0])
    name = f"tables{file_label(results[0]).removeprefix(results[0]['protocol'])}"
    titles = {n: f"Table {n}: {task}" for n, (task, _) in TABLES.items()} | {4: "Table 4: ablations"}
    blocks = {n: table_blocks(n, frame) for n in TABLES}
    blocks[4] = [*table4_blocks(results), *ablation_difference_blocks(results)]
    own = [d for d in dict.fromkeys(four_systems(frame)["dataset"]) if d not in {name for _, name in TABLES.values()}]
    text = [f"# Protocol {label}: tables", *(f"## {d}\n\n{results_table(four_systems(frame), d)}" for d in own)]
    tex = ["% needs \\usepackage{booktabs}"]
    tex += [latex(results_block(four_systems(frame), dataset), f"tab:{protocol}-{dataset}") for dataset in own]
    for number, found in blocks.items():
        text.append(f"## {titles[number]}")
        text += [f"{heading}:\n\n{markdown(table)}" for heading, table in found]
        tex += [latex(block, f"tab:{protocol}-{number}-{place}") for place, block in enumerate(found)]
    paths = [folder / place_of(protocol) / f"{name}.{kind}" for kind in ("md", "tex")]
    write_text_atomically(paths[0], "\n\n".join(text) + "\n")
    write_text_atomically(paths[1], "\n".join(tex) + "\n")
    return paths
