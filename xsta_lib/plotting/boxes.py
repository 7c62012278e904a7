"""The box above a notebook's numbers: which model is seen, how it was trained, and what its numbers are worth."""

import html
from collections.abc import Mapping
from typing import Any

from ..data.files import BOX
from ..experiments.packing import boxed_experiment
from .style import BLUE, VERMILION

TEXTS = {
    "demo": "the small corpus in data/demo, 180 questions in seven languages",
    "parallel": "TyDiQA's English and half of XQuAD's articles in eleven languages, professional translations",
}
TOY = "trained in minutes on a toy: it shows the machinery, and its scores say nothing of the method"
ONE_RUN = "one training run: another seed may move a score by as much as two systems differ"


def model_box(result: Mapping | None = None, wanted: str = "", command: str = "") -> Any:
    """A box for a notebook that says which model it shows, how it was trained, and what its numbers are worth.

    Args:
        result: a result as :func:`~xsta_lib.experiments.results.load_results` gives it; ``None`` is the reader in the
            box.
        wanted: the protocol that the notebook would rather show. Where the result is of another one, the box says so
            in red, with the command that would give what is wanted.
        command: that command; by default the one that trains the result's method under ``wanted``.
    """
    from IPython.display import HTML  # notebooks have it; drawing pictures does not need it

    config = boxed_experiment().to_dict() if result is None else result["config"]
    protocol = config["protocol"]
    name = f"{BOX.name}, the reader in the box" if result is None else f"{config['method']} of protocol {protocol}"
    length = "one epoch" if result is None else f"{max(line['step'] for line in result['log'])} steps"
    frozen = ", word embeddings frozen" if config.get("freeze_embeddings") else ""  # not in older results
    trained = f"{config['method']} on {TEXTS.get(protocol, protocol)}; {length}, seed {config['seed']}{frozen}"
    lines = {"Model": name, "Trained": trained, "Worth": TOY if protocol == "demo" else ONE_RUN}
    fallback = bool(wanted) and wanted != protocol
    if fallback:
        command = command or f"xsta train --protocol {wanted} --method {config['method']}"
        lines = {"FALLBACK": f"shown here is {protocol}, not {wanted}; for that: '{command}'"} | lines
    text = "<br>".join(f"<b>{title}</b> {html.escape(line)}" for title, line in lines.items())
    colour = VERMILION if fallback else BLUE
    return HTML(f'<div style="border-left:6px solid {colour};padding:0.4em 0.8em;margin:0.6em 0">{text}</div>')
