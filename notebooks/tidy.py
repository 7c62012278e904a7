"""Take out of executed notebooks what changes at every run and tells a reader nothing: progress bars, timings, paths.

python notebooks/tidy.py notebooks/*.ipynb
"""

import sys

import nbformat

BAR = "application/vnd.jupyter.widget-view+json"


def tidy(path: str) -> None:
    """Rewrite one notebook without widgets, execution times and papermill's notes."""
    notebook = nbformat.read(path, as_version=4)
    for name in ("widgets", "papermill", "xsta"):
        notebook.metadata.pop(name, None)
    for cell in notebook.cells:
        for name in ("papermill", "execution"):
            cell.metadata.pop(name, None)
        if cell.cell_type == "code":
            cell.outputs = [
                out for out in cell.outputs if BAR not in out.get("data", {}) and out.get("name") != "stderr"
            ]
    nbformat.write(notebook, path)


if __name__ == "__main__":
    for argument in sys.argv[1:]:
        tidy(argument)
