"""The house as the syntax trees show it: files, what each imports, rooms of folders and the arrows between them."""

import ast
from collections.abc import Iterator, Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

FLOORS = {"fedrecall": 5, "simulations": 4, "client": 3, "server": 3, "models": 2, "privacy": 2, "protocol": 1}
"""Folders at the root, and the floor of each."""

ROOMS: dict[str, tuple[tuple[str, ...], ...]] = {
    "fedrecall/cli": (
        ("chart", "console", "options", "reading"),
        ("data", "deployment", "doctor", "privacy", "results", "run", "tune"),
        ("audit", "index"),
        ("app",),
        ("__main__",),
    ),
    "simulations": (
        ("presets", "toml", "tracking"),
        ("config", "data"),
        ("evaluation", "training"),
        ("baselines", "report"),
        ("runs",),
        ("audit", "flower_app", "results", "studies"),
    ),
    "simulations/audit": (
        ("page", "time_left", "watching"),
        ("attacks", "checks"),
        ("deployments", "planting", "run_audit"),
        ("__main__",),
    ),
    "client": (("config", "events", "gate"), ("training",), ("device",), ("recall",)),
    "server": (("config", "recall"), ("training",), ("deployment",), ("operation",)),
    "privacy": (("mechanisms", "secure_aggregation"), ("accounting",), ("audit", "ledger")),
}
"""The rooms of a folder by inner floor, lowest first: a room imports rooms of lower inner floors and no others."""

Import = tuple[int, str, str]
"""Line, module, and the name that is taken from it ("" for the module itself)."""

Graph = Mapping[str, frozenset[str]]
"""What each file imports, both as paths from the root."""


def imports(source: str, package: str = "") -> Iterator[Import]:
    """Yield every import of a file, also inside functions, with relative ones resolved against ``package``."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name, ""
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            module = ".".join([*parents, *([node.module] if node.module else [])])
            for alias in node.names:
                yield node.lineno, module, alias.name
        elif isinstance(node, ast.Call) and _name(node.func) in ("import_module", "__import__"):
            first = node.args[0] if node.args else None
            yield node.lineno, first.value if isinstance(first, ast.Constant) else "a computed name", ""


def _name(node: ast.expr) -> str:
    return node.id if isinstance(node, ast.Name) else getattr(node, "attr", "")


def files(root: Path = ROOT) -> list[Path]:
    """Return the code of all floors."""
    return sorted(path for folder in FLOORS for path in (root / folder).rglob("*.py"))


def dotted(path: Path, root: Path = ROOT) -> str:
    """Return the import name of a file."""
    parts = path.relative_to(root).with_suffix("").parts
    inside = parts if parts[0] == "fedrecall" else ("fedrecall", *parts)
    return ".".join(inside[:-1] if inside[-1] == "__init__" else inside)


def package_of(path: Path, root: Path = ROOT) -> str:
    """Return the import name of the folder that holds a file."""
    name = dotted(path, root)
    return name if path.stem == "__init__" else name.rpartition(".")[0]


def graph(root: Path = ROOT) -> Graph:
    """Return the import graph of the tree: every import, function-level ones too, resolved to a file."""
    known = {dotted(path, root): path.relative_to(root).as_posix() for path in files(root)}
    found = {}
    for path in files(root):
        own = path.relative_to(root).as_posix()
        reached = set()
        for _, module, name in imports(path.read_text(encoding="utf-8"), package_of(path, root)):
            to = known.get(f"{module}.{name}") or known.get(module)
            if to not in (None, own):
                reached.add(to)
        found[own] = frozenset(reached)
    return found


def circles(graph: Graph) -> list[list[str]]:
    """Return the circles of files: each set of files that all reach each other (Tarjan 1972)."""
    order: dict[str, int] = {}
    lowest: dict[str, int] = {}
    stack: list[str] = []
    found = []

    def visit(file: str) -> None:
        order[file] = lowest[file] = len(order)
        stack.append(file)
        for to in graph.get(file, ()):
            if to not in order:
                visit(to)
            if to in stack:
                lowest[file] = min(lowest[file], lowest[to])
        if lowest[file] == order[file]:
            at = stack.index(file)
            circle = sorted(stack[at:])
            del stack[at:]
            if len(circle) > 1:
                found.append(circle)

    for file in graph:
        if file not in order:
            visit(file)
    return found


def room(folder: str, file: str) -> str | None:
    """Return the room of ``folder`` that a file is in: a folder, or itself; ``None`` outside and for the face."""
    if not file.startswith(f"{folder}/"):
        return None
    first = file.removeprefix(f"{folder}/").split("/")[0]
    return None if first == "__init__.py" else first.removesuffix(".py")


def rooms(folder: str, graph: Graph) -> dict[str, int]:
    """Return the rooms of ``folder`` and how many files each has."""
    found: dict[str, int] = {}
    for file in graph:
        own = room(folder, file)
        if own is not None and not file.endswith("/__init__.py"):
            found[own] = found.get(own, 0) + 1
    return found


def arrows(folder: str, graph: Graph) -> dict[tuple[str, str], list[tuple[str, str]]]:
    """Return who imports whom among the rooms of ``folder``, with the pairs of files behind each arrow."""
    found: dict[tuple[str, str], list[tuple[str, str]]] = {}
    for file, reached in graph.items():
        for to in reached:
            pair = room(folder, file), room(folder, to)
            if None not in pair and pair[0] != pair[1]:
                found.setdefault(pair, []).append((file, to))
    return found
