"""The house of the design, held by the syntax trees: who may import whom, and what only one file may import."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FLOORS = {"fedrecall": 5, "simulations": 4, "client": 3, "server": 3, "models": 2, "privacy": 2, "protocol": 1}
FILES = sorted(path for folder in FLOORS for path in (ROOT / folder).rglob("*.py"))
PROTOCOL_MAY = {"numpy", "safetensors", "jaxtyping", *sys.stdlib_module_names}
ONE_FLOOR_ONLY = {
    "torch": {"models", "privacy", "client", "simulations", "fedrecall"},
    "pydantic": {"client", "server", "simulations", "fedrecall"},
    "faiss": {"server"},
    "typer": {"fedrecall"},
    "rich": {"fedrecall"},
    "dp_accounting": {"privacy"},
    "opacus": {"privacy"},
}
"""Libraries that stay in the folders that need them."""

Import = tuple[int, str, str]
"""Line, module, and the name that is taken from it ("" for the module itself)."""


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


def folder_of(path: Path) -> str:
    return path.relative_to(ROOT).parts[0]


def package_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    inside = parts if parts[0] == "fedrecall" else ("fedrecall", *parts)
    return ".".join(inside[:-1])


def target(module: str, name: str) -> str | None:
    """Return the root folder that an import reaches, ``None`` for one of another project."""
    parts = module.split(".")
    if parts[0] != "fedrecall":
        return None
    inner = parts[1] if len(parts) > 1 else name
    return inner if inner in FLOORS else "fedrecall"


def faults(folder: str, source: str, package: str = "fedrecall.x") -> list[str]:
    """Return what is wrong with the imports of a file in ``folder``."""
    found = []
    for line, module, name in imports(source, package):
        top = module.split(".")[0]
        if top in FLOORS and top != "fedrecall":
            found.append(f"{line}: {module} by its bare name")
        to = target(module, name)
        # The package that holds the folders also knows its version; every import passes through it.
        package_itself = module == "fedrecall" and name in ("", "__version__")
        if to is not None and to != folder and FLOORS[to] >= FLOORS[folder] and not package_itself:
            found.append(f"{line}: {folder} imports {to}")
        last = module.split(".")[-1]
        if to not in (None, folder) and not package_itself and (last.startswith("_") or name.startswith("_")):
            found.append(f"{line}: {module}.{name} is private to {to}")
        if top in ONE_FLOOR_ONLY and folder not in ONE_FLOOR_ONLY[top]:
            found.append(f"{line}: {top} in {folder}")
        if folder == "protocol" and to is None and top not in PROTOCOL_MAY:
            found.append(f"{line}: protocol imports {top}")
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_only_go_down(path: Path) -> None:
    assert not faults(folder_of(path), path.read_text(encoding="utf-8"), package_of(path))


def private_reads(source: str, folder: str) -> list[str]:
    """Return the lines on which a module of another folder is asked for a ``_name``."""
    modules = {}
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            base = getattr(node, "module", None)
            for alias in node.names:
                to = target(base or alias.name, alias.name)
                if to not in (None, folder):
                    modules[alias.asname or alias.name.split(".")[0]] = to
    return [
        f"{node.lineno}: {node.value.id}.{node.attr}"
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and node.value.id in modules
        and node.attr.startswith("_")
        and not node.attr.startswith("__")
    ]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_nobody_reads_another_folders_private_names(path: Path) -> None:
    assert not private_reads(path.read_text(encoding="utf-8"), folder_of(path))


def importers(library: str) -> set[str]:
    return {
        str(path.relative_to(ROOT))
        for path in FILES
        if any(module.split(".")[0] == library for _, module, _ in imports(path.read_text(encoding="utf-8")))
    }


def test_opacus_is_imported_in_one_file() -> None:
    assert importers("opacus") == {"privacy/opacus_step.py"}


def test_faiss_is_imported_in_one_file_of_the_server() -> None:
    assert importers("faiss") == {"server/index.py"}


def test_flower_is_imported_in_the_app_files_the_collector_and_the_simulation_engine() -> None:
    device = {"client/app.py", "client/own_app.py"}
    assert importers("flwr") == device | {"server/app.py", "server/grid.py", "simulations/flower.py"}
    assert not importers("ray")


def test_each_of_simulations_client_and_server_owns_its_configuration() -> None:
    owners = {str(path.parent.relative_to(ROOT)) for path in FILES if path.name == "config.py"}
    assert {"simulations", "client", "server"} <= owners
    assert {folder.split("/")[0] for folder in owners} <= {"simulations", "client", "server", "fedrecall"}


def test_every_root_folder_with_code_is_on_a_floor() -> None:
    code = {p.parent.name for p in ROOT.glob("*/*.py")} - {"tests", "benchmarks"}
    assert code == set(FLOORS)
    assert len(FILES) > 60


def test_no_generator_is_seeded_globally() -> None:
    """Generators are arguments: nothing calls ``np.random.seed``, ``random.seed`` or the global draws of numpy."""
    allowed = {"default_rng", "Generator", "Philox", "SeedSequence", "BitGenerator"}
    found = []
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and ast.unparse(node.value) in ("np.random", "numpy.random"):
                if node.attr not in allowed:
                    found.append(f"{path.name}:{node.lineno} {node.attr}")
            elif isinstance(node, ast.Import) and any(alias.name == "random" for alias in node.names):
                found.append(f"{path.name}:{node.lineno} random")
    assert not found


@pytest.mark.parametrize(
    ("folder", "source"),
    [
        ("client", "from fedrecall.server.rounds import run_rounds"),
        ("server", "import fedrecall.client.store"),
        ("server", "def f():\n    from fedrecall import client"),
        ("models", "from fedrecall.privacy import noise"),
        ("privacy", "from fedrecall.models.recall import RecallModel"),
        ("protocol", "from fedrecall.privacy.ledger import Ledger"),
        ("client", "from fedrecall.simulations.run import run"),
        ("simulations", "import fedrecall.cli"),
        ("server", "from ..client import store"),
        ("fedrecall", "import server"),
        ("fedrecall", "from protocol.plan import Plan"),
        ("simulations", "import importlib; importlib.import_module('server')"),
        ("client", "from fedrecall.privacy.ledger import _line"),
        ("protocol", "import torch"),
        ("protocol", "from pydantic import BaseModel"),
        ("client", "import faiss"),
        ("simulations", "from opacus import PrivacyEngine"),
        ("server", "import torch"),
    ],
)
def test_each_rule_catches_what_breaks_it(folder: str, source: str) -> None:
    assert faults(folder, source, f"fedrecall.{folder}")


@pytest.mark.parametrize(
    ("folder", "source"),
    [
        ("client", "from fedrecall.client.store import EventStore"),
        ("server", "from fedrecall.server import optimiser"),
        ("server", "from fedrecall.privacy.ledger import Ledger"),
        ("protocol", "import json\nimport numpy as np\nfrom safetensors import deserialize"),
        ("fedrecall", "from fedrecall.simulations.run import run"),
        ("client", "from .store import _helper"),
        ("simulations", "from fedrecall import __version__"),
    ],
)
def test_sound_imports_pass(folder: str, source: str) -> None:
    assert not faults(folder, source, f"fedrecall.{folder}")


def test_a_private_attribute_of_another_folder_is_seen() -> None:
    source = "from fedrecall.privacy import noise\nnoise._BLOCK"
    assert private_reads(source, "client")
    assert not private_reads(source, "privacy")
