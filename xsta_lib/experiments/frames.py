"""Results as frames of numbers: what a system is called, its scores, seeds, sweeps, readings and attention."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from ..model.configuration import XStaConfig
from .experiment import WAYS, changed_settings, setting_of
from .significance import by_question

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
FRAME = [
    *("system", "dataset", "language", "f1", "em", "n"),
    *("seed", "source", "source_language", "protocol", "device", "scores"),
]


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


def trained_on(result: dict) -> str:
    """The machine that a result's model was trained on; empty where it does not say, as of a model behind a server."""
    return "" if result["method"] == "llm" else result.get("provenance", {}).get("device", "")


def metrics_frame(results: Sequence[dict]) -> pd.DataFrame:
    """Results as tidy rows, columns as in ``FRAME``.

    A data set without sources is read alone whatever was asked for; its numbers count once, without "(target only)".
    ``device`` is what the model was trained on (:func:`trained_on`).

    Raises:
        ValueError: the results are of several protocols, backbones or settings, which do not compare; or one system has
            two results of one seed.
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
            own["device"] = trained_on(result)
            rows += [{**own, "language": language, **values} for language, values in by_language.items()]
    frame = pd.DataFrame(rows, columns=FRAME)
    if (twice := frame.duplicated(["system", "seed", "dataset", "language"], keep=False)).any():
        files = sorted(set(frame[twice]["scores"].str.replace(".scores.parquet", ".json")))
        raise ValueError(f"one system and seed measured twice: {', '.join(files)}; move all but one away")
    return frame


def systems(frame: pd.DataFrame) -> list[str]:
    """The systems of a frame in the paper's order, others last."""
    found = list(frame["system"].unique())
    return [name for name in SYSTEMS if name in found] + sorted(set(found) - set(SYSTEMS))


def compared_systems(frame: pd.DataFrame) -> pd.DataFrame:
    """The rows of the compared systems, without ablations and switches."""
    return frame[frame["system"].isin(SYSTEMS) | frame["system"].str.startswith(LLM)]


# The full method's values, whose result has no switch.
FULL = {name: getattr(XStaConfig, name) for name in ("gamma", "sharing_layer")}
HELD_OUT = "held-out validation"
MACHINE = "trained on"


def _gather(results: Sequence[dict], key: str) -> pd.DataFrame:
    """Mean F1 over languages of X-STA with no change but ``key``, and its validation score: a row a value of it."""
    rows: dict[float, dict[str, float | str]] = {}
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
        row[MACHINE] = trained_on(result)
    return pd.DataFrame.from_dict(rows, orient="index").sort_index()


def sweep_frame(results: Sequence[dict], switch: str) -> pd.DataFrame:
    """F1 of X-STA over the values of one switch: rows by value, a column a data set; first seed.

    Columns are the data sets' means over languages (with the source, and ``<data set> (target only)`` without), and
    ``held-out validation``, the score that chose the weights, where the run was validated; ``trained on`` is the run's
    machine. ``switch`` is one of ``FULL``; ``results`` are of one protocol and setting.
    """
    seed = first_seed(results)
    return _gather([result for result in results if result["seed"] == seed], switch)


def seed_frame(results: Sequence[dict]) -> pd.DataFrame:
    """F1 of the full method by seed, columns as for :func:`sweep_frame`: what another training run alone moves."""
    return _gather(results, "seed")


def sweep_columns(frame: pd.DataFrame, dataset: str) -> list[str]:
    """The columns that Figures 7 and 8 show: held-out validation, or else target only, and the data set.

    Of a data set without sources, which is read alone, there may be one only.
    """
    first, main = (name if name in frame else dataset + ALONE for name in (HELD_OUT, dataset))
    return [name for name in dict.fromkeys((first, main)) if name in frame]


def reading_frame(results: Mapping[str, Mapping], dataset: str) -> pd.DataFrame:
    """Mean F1 over the targets of every reading of one pass, and the source's own F1: a row a result, by its name.

    A result that keeps no readings, or was not measured on ``dataset``, has no row.
    """
    rows = {}
    for name, result in results.items():
        source, row = result["source_language"], {}
        for reading, metrics in result["readings"].items():
            f1 = pd.Series({language: values["f1"] for language, values in metrics.get(dataset, {}).items()})
            if len(f1):
                row[reading] = f1.drop(source, errors="ignore").mean()
                row |= {f"source ({source})": f1[source]} if source in f1 else {}
        rows |= {name: row} if row else {}
    frame = pd.DataFrame(rows).T
    order = [name for name in ("target", "teacher", "calibrated") if name in frame]
    return frame[[*order, *(name for name in frame if name not in order)]]


def split_by_source(answers: pd.DataFrame, source: str, groups_of: pd.DataFrame | None = None) -> dict[str, float]:
    """Mean F1 over the targets, of all questions and of those that a reader gets exactly right in the source or not.

    Args:
        answers: rows ``language, id, f1, em`` of one system, in percent.
        source: the source language, which ``groups_of`` must have.
        groups_of: the reader whose source answers make the two groups; by default the system itself.
    """
    asked = (answers if groups_of is None else groups_of).set_index(["language", "id"])["em"][source]
    table = by_question(answers)
    right, targets = asked.reindex(table.index) == 100, table.drop(columns=source, errors="ignore").mean(axis=1)
    numbers = 100 * right.mean(), targets.mean(), targets[right].mean(), targets[~right].mean()
    return dict(zip((f"{source} right, %", "targets", "where right", "where not"), numbers, strict=True))


def attention_frame(results: Sequence[dict]) -> pd.DataFrame:
    """What share of the attention on the source is on content, by run: the mean of a training's last five looks.

    Columns ``system, setting, seed, penalty, on content``; ``penalty`` says whether the run had token alignment. Runs
    whose logs do not say where attention went have no row, nor have second readings of one run.
    """
    rows = []
    for result in results:
        shares = [line["content_mass"] for line in result.get("log", ()) if "content_mass" in line]
        if shares and result["source"] != "none":
            eta = changes(result).get("eta", XStaConfig.eta)
            penalty = result["method"] == "x-sta" and "alignment_token" not in result["without"] and eta != 0
            told = {"system": system_name(result), "setting": setting_of(result["config"]), "seed": result["seed"]}
            rows.append(told | {"penalty": penalty, "on content": float(np.mean(shares[-5:]))})
    return pd.DataFrame(rows, columns=["system", "setting", "seed", "penalty", "on content"])


def first_seed(results: Sequence[dict]) -> int:
    """The smallest seed of the full method, or of all results where it is not among them."""
    own = [result["seed"] for result in results if system_name(result).removesuffix(ALONE) == "x-sta"]
    return min(own or [result["seed"] for result in results], default=0)


def full_and_ablated(results: Sequence[dict]) -> dict[tuple[str, ...], dict]:
    """X-STA's results of the first seed by what is left out: no switches, those beside the source if there are any."""
    seed = first_seed(results)
    own = [r for r in results if r["method"] == "x-sta" and not changes(r) and r["seed"] == seed]
    own = [r for r in own if r["source"] != "none"] or own
    return {tuple(r["without"]): r for r in own}


def token_alignment_logs(results: Sequence[dict]) -> dict[str, list[dict]]:
    """Training logs of the first seed's X-STA with and without token alignment, as far as they say where it looked."""
    measured = full_and_ablated(results)
    named = {"with token alignment": (), "without token alignment": ("alignment_token",)}
    found = {name: measured[key]["log"] for name, key in named.items() if key in measured and "log" in measured[key]}
    return {name: log for name, log in found.items() if any("content_mass" in line for line in log)}
