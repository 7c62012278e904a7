"""What executed notebooks print and draw, in a form that can be compared; keeps it of the smallest runs for the tests.

``python notebooks/outputs.py NOTEBOOK ...`` writes ``tests/fixtures/notebooks/<name>.json`` for each.
"""

import base64
import io
import json
import sys
from pathlib import Path

import nbformat
from PIL import Image

FIXTURES = Path(__file__).resolve().parent.parent / "tests" / "fixtures" / "notebooks"
BAR = "application/vnd.jupyter.widget-view+json"
PLAIN_HTML = "<IPython.core.display.HTML object>"


def outputs(notebook: nbformat.NotebookNode) -> list[list[dict]]:
    """By code cell: texts as they are, images by their size in pixels; progress bars and warnings left out."""
    return [
        [kept for out in cell.outputs if (kept := _output(out)) is not None]
        for cell in notebook.cells
        if cell.cell_type == "code"
    ]


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


def main(paths: list[str]) -> None:
    """Write the outputs of executed notebooks as fixtures."""
    for path in paths:
        FIXTURES.mkdir(parents=True, exist_ok=True)
        kept = outputs(nbformat.read(path, as_version=4))
        text = json.dumps(kept, ensure_ascii=False, indent=1) + "\n"
        (FIXTURES / f"{Path(path).stem}.json").write_text(text, "utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
