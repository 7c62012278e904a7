"""The import rule between the rooms of ``xsta_lib``, read from the syntax trees; ``pytest -s`` prints the graph."""

import ast
from functools import cache
from pathlib import Path

from project import ROOT

LIBRARY = ROOT / "xsta_lib"
# What a room may import, beside itself.
ALLOWED = {
    "encoders": set(),
    "data": set(),
    "model": {"encoders"},
    "training": {"encoders", "data", "model"},
    "prediction": {"encoders", "data", "model", "training"},
    "baselines": {"encoders", "data", "model", "training", "prediction"},
    "translation": {"encoders", "data", "model", "training", "prediction"},
    "experiments": {"encoders", "data", "model", "training", "prediction", "baselines", "translation"},
    "plotting": {"encoders", "data", "model", "training", "prediction", "baselines", "translation", "experiments"},
}
TOP = {"__init__", "cli", "options", "reader"}


def imports(path: Path) -> set[tuple[str, ...]]:
    """Full dotted names of all modules and names that a file imports, also inside functions."""
    package = ("xsta_lib", *path.relative_to(LIBRARY).parts[:-1])
    found = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            found |= {tuple(alias.name.split(".")) for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            module = (*base, *(node.module.split(".") if node.module else ()))
            found |= {(*module, alias.name) for alias in node.names}
    return found


def modules() -> list[Path]:
    return sorted(path for path in LIBRARY.rglob("*.py"))


def room(path: Path) -> str:
    parts = path.relative_to(LIBRARY).parts
    return parts[0] if len(parts) > 1 else path.stem


def graph() -> dict[str, set[str]]:
    """By room, or module at the top, the others that it imports."""
    arrows: dict[str, set[str]] = {}
    for path in modules():
        ours = {name[1] for name in imports(path) if name[0] == "xsta_lib" and len(name) > 1}
        known = {part for part in ours if part in ALLOWED or part in TOP}
        arrows.setdefault(room(path), set()).update(known - {room(path)})
    return arrows


def test_rooms_know_only_what_lies_below():
    arrows = graph()
    assert set(arrows) == set(ALLOWED) | TOP
    for name, others in arrows.items():
        if name in ALLOWED:
            assert others <= ALLOWED[name], name

    @cache
    def level(name: str) -> int:
        return 1 + max((level(other) for other in arrows[name] - {"__init__"}), default=0)

    levels = {name: level(name) for name in arrows if name != "__init__"}  # a circle would not come to an end
    for name in sorted(levels, key=levels.get):
        print(f"{levels[name]} {name}: {', '.join(sorted(arrows[name])) or '-'}")
    assert max(levels.values()) <= 8


def test_modules_make_no_circle():
    paths = {path.relative_to(LIBRARY).with_suffix("").parts: path for path in modules()}
    arrows = {}
    for name, path in paths.items():
        ours = {part[1:] for part in imports(path) if part[0] == "xsta_lib"}
        arrows[name] = {known for part in ours for known in (part, part[:-1]) if known in paths and known != name}
    done: set[tuple[str, ...]] = set()
    while ready := {name for name, others in arrows.items() if name not in done and others <= done}:
        done |= ready
    assert done == set(paths), sorted(set(paths) - done)


def test_only_pictures_bring_matplotlib():
    drawing = {"matplotlib", "seaborn"}
    users = {room(path) for path in modules() if {name[0] for name in imports(path)} & drawing}
    assert users == {"plotting"}


def test_names_come_from_where_they_are_defined():
    """No module hands on another's names, but the package itself, to its users."""
    for path in modules():
        for name in imports(path):
            place = LIBRARY.joinpath(*name[1:-1]).with_suffix(".py")
            if name[0] != "xsta_lib" or len(name) < 3 or not place.is_file():
                continue
            tree = ast.parse(place.read_text("utf-8"))
            handed = {
                alias.asname or alias.name
                for node in tree.body
                if isinstance(node, ast.ImportFrom)
                for alias in node.names
            }
            assert name[-1] not in handed, f"{path.relative_to(LIBRARY)}: {'.'.join(name)}"
