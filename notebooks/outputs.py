"""What executed notebooks print and draw, in a form that can be compared; ``tests/test_notebooks.py`` does it."""

import base64
import io

import nbformat
import torch
from PIL import Image
from tidy import BAR

from xsta_lib.training.machine import has_bf16

PLAIN_HTML = "<IPython.core.display.HTML object>"


def outputs(notebook: nbformat.NotebookNode) -> list[list[dict]]:
    """By code cell: texts as they are, images by their size in pixels; progress bars and warnings left out."""
    return [_together(cell.outputs) for cell in notebook.cells if cell.cell_type == "code"]


def machine() -> list[str]:
    """What rounding depends on: the processor's vector and matrix units, and torch."""
    units = [torch.backends.cpu.get_cpu_capability()]
    units += [name for name, there in (("bf16", has_bf16()), ("AMX", torch.cpu._is_amx_tile_supported())) if there]
    return [" ".join(units), torch.__version__.split("+")[0]]


def _together(cell: list[nbformat.NotebookNode]) -> list[dict]:
    """A cell's outputs; what is printed comes in one piece or in several, as the kernel pleases: here in one."""
    found: list[dict] = []
    printed = False
    for out in cell:
        if (kept := _output(out)) is None:
            continue
        if printed and out.output_type == "stream":
            found[-1]["text"] += kept["text"]
        else:
            found.append(kept)
        printed = out.output_type == "stream"
    return found


def _output(out: nbformat.NotebookNode) -> dict | None:
    if out.output_type == "stream":
        return {"text": out.text} if out.name == "stdout" else None
    if out.output_type == "error":
        return {"text": f"{out.ename}: {out.evalue}"}
    if BAR in out.data:
        return None
    if "image/png" in out.data:
        return {"image": list(Image.open(io.BytesIO(base64.b64decode(out.data["image/png"]))).size)}
    plain = out.data.get("text/plain", "")
    return {"text": out.data.get("text/markdown") or (out.data["text/html"] if plain == PLAIN_HTML else plain)}
