"""Grids: lists of experiments behind a table or a figure, measured where they are missing."""

import time
from dataclasses import replace

from .configuration import ABLATIONS
from .experiment_config import METHODS, Experiment, experiment
from .experiments import known_results, load_or_run
from .reporting import duration

GAMMAS = (0.0, 0.01, 0.05, 0.1, 0.5)  # Figure 7
SEEDS = (42, 43, 44)
# Figure 8 has all twelve layers; `compact` takes every second one, for time.
LAYERS = {"compact": (2, 4, 6, 8, 10, 12)}
ALL_LAYERS = tuple(range(1, 13))
NAMES = ("methods", "ablations", "gamma", "layers", "seeds", "variants")


def grid(name: str, protocol: str, **changes) -> list[Experiment]:
    """The experiments of a grid; the paper's own setting among them is the plain method, measured once for all.

    Args:
        name: ``methods`` (the four systems), ``ablations`` (Table 4; "w/o ATGC inference" is a reading of the full
            method and needs no run), ``gamma`` (Figure 7), ``layers`` (Figure 8), ``seeds`` (methods by seeds) or
            ``variants`` (two that the paper does not have: English read once for all languages of a question; sentence
            vectors of normalised states).
        protocol: see :func:`~xsta_lib.experiment_config.experiment`.
        changes: fields that all of them share, such as ``backbone="mbert"``.

    Raises:
        ValueError: unknown name.
    """
    full = experiment(protocol, "x-sta", **changes)
    config = full.model_config()
    if name == "methods":
        return [experiment(protocol, method, **changes) for method in METHODS]
    if name == "ablations":
        parts = [part for part in ABLATIONS if part != "atgc_inference"]
        return [full, *(replace(full, without=(part,)) for part in parts)]
    if name == "gamma":
        return [_switched(full, "gamma", value, config.gamma) for value in GAMMAS]
    if name == "layers":
        layers = LAYERS.get(protocol, ALL_LAYERS)
        return [_switched(full, "sharing_layer", value, config.sharing_layer) for value in layers]
    if name == "seeds":
        return [experiment(protocol, method, **changes | {"seed": seed}) for seed in SEEDS for method in METHODS]
    if name == "variants":
        return [full, replace(full, share_source=True), replace(full, switches=(("sentence_states", "normalised"),))]
    raise ValueError(f"unknown grid {name!r}; the grids are {', '.join(NAMES)}")


def _switched(full: Experiment, switch: str, value: float, default: float) -> Experiment:
    return full if value == default else replace(full, switches=((switch, value),))


def missing(experiments: list[Experiment]) -> list[Experiment]:
    """Those without a committed result."""
    known = {result["fingerprint"] for result in known_results(experiments)}
    return [exp for exp in experiments if exp.fingerprint not in known]


def run_grid(name: str, protocol: str, progress: bool = True, **changes) -> list[dict]:
    """Measure what is missing of a grid, one experiment after the other, and return all its results.

    Stopped at any moment, the same call goes on where it was: results, checkpoints and answers are kept as they come.
    ``changes`` as for :func:`grid`.
    """
    experiments = grid(name, protocol, **changes)
    todo, began = missing(experiments), time.perf_counter()
    for number, exp in enumerate(todo):
        if progress:
            spent = time.perf_counter() - began
            left = f", about {duration(spent / number * (len(todo) - number))} left" if number else ""
            print(f"grid {name} ({protocol}): {number + 1} of {len(todo)} to measure: {exp.name}{left}")
        load_or_run(exp, progress)
    return [result for exp in experiments for result in load_or_run(exp, progress)]
