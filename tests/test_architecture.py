"""The house of the design, held by the syntax trees: who may import whom, and what only one file may import."""

import ast
import sys
import tomllib
from collections import Counter
from pathlib import Path

import pytest

from .house import FLOORS, ROOMS, ROOT, Graph, arrows, circles, files, graph, imports, package_of, rooms
from .house_picture import PICTURE, draw

FILES = files()
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


def folder_of(path: Path) -> str:
    return path.relative_to(ROOT).parts[0]


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
    assert importers("opacus") == {"privacy/mechanisms/opacus_step.py"}


def test_faiss_is_imported_in_one_file_of_the_server() -> None:
    assert importers("faiss") == {"server/recall/index.py"}


def test_flower_is_imported_in_the_app_files_the_collector_and_the_simulation_engine() -> None:
    device = {"client/device/app.py", "client/device/own_app.py"}
    assert importers("flwr") == device | {
        "server/deployment/app.py",
        "server/deployment/grid.py",
        "simulations/flower_app.py",
        "simulations/training/flower.py",
    }
    assert not importers("ray")


@pytest.fixture(scope="module")
def tree() -> Graph:
    return graph()


def climbing(folder: str, tree: Graph) -> list[str]:
    """Return the imports between rooms of ``folder`` that do not go down, as its inner floors are drawn."""
    floor = {name: number for number, names in enumerate(ROOMS[folder]) for name in names}
    return [
        f"{file} imports {to}"
        for (own, other), pairs in arrows(folder, tree).items()
        if floor[other] >= floor[own]
        for file, to in pairs
    ]


@pytest.mark.parametrize("folder", ROOMS)
def test_rooms_import_rooms_below_them_alone(folder: str, tree: Graph) -> None:
    drawn = {name for names in ROOMS[folder] for name in names}
    assert drawn == set(rooms(folder, tree)), "each room is on one inner floor (tests/house.py)"
    assert not climbing(folder, tree)
    held = sum(rooms(folder, tree).values())
    print(f"{folder}: {held} files in {len(drawn)} rooms, {len(arrows(folder, tree))} arrows")


def test_no_files_import_each_other_in_a_circle(tree: Graph) -> None:
    assert not circles(tree)


def test_a_folder_has_at_most_14_files_and_a_file_at_most_400_lines() -> None:
    """The face of a folder, its ``__init__``, is not counted among its files."""
    crowded = Counter(str(path.parent.relative_to(ROOT)) for path in FILES if path.name != "__init__.py")
    assert {folder: count for folder, count in crowded.items() if count > 14} == {}
    long = {str(path.relative_to(ROOT)): len(path.read_text(encoding="utf-8").splitlines()) for path in FILES}
    assert {path: lines for path, lines in long.items() if lines > 400} == {}


def test_the_picture_of_the_rooms_is_the_tree_as_it_is(tree: Graph) -> None:
    assert PICTURE.read_text(encoding="utf-8") == draw(tree), "draw it again: python -m tests.house_picture"


def test_what_is_installed_are_all_folders_with_code() -> None:
    """The build names its packages one by one: a new room that is not among them would be missing once installed."""
    built = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]["packages"]
    assert sorted(built) == sorted({package_of(path) for path in FILES})


def test_a_climbing_import_and_a_circle_are_seen(tmp_path: Path) -> None:
    def write(path: str, text: str) -> None:
        file = tmp_path / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")

    write("client/gate.py", "def send():\n    from fedrecall.client.training import trainer\n")
    write("client/training/trainer.py", "from fedrecall.client.device.folder import DeviceFolder\n")
    write("client/device/folder.py", "from fedrecall.client import gate\n")
    write("client/device/app.py", "from .folder import DeviceFolder\n")
    planted = graph(tmp_path)
    assert sorted(climbing("client", planted)) == [
        "client/gate.py imports client/training/trainer.py",
        "client/training/trainer.py imports client/device/folder.py",
    ]
    assert circles(planted) == [["client/device/folder.py", "client/gate.py", "client/training/trainer.py"]]


def test_each_of_simulations_client_and_server_owns_its_configuration() -> None:
    owners = {str(path.parent.relative_to(ROOT)) for path in FILES if path.name == "config.py"}
    assert {"simulations", "client", "server"} <= owners
    assert {folder.split("/")[0] for folder in owners} <= {"simulations", "client", "server", "fedrecall"}


def test_every_root_folder_with_code_is_on_a_floor() -> None:
    code = {p.parent.name for p in ROOT.glob("*/*.py")} - {"tests", "benchmarks", "examples"}
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
        ("client", "from fedrecall.server.training.rounds import run_rounds"),
        ("server", "import fedrecall.client.events.store"),
        ("server", "def f():\n    from fedrecall import client"),
        ("models", "from fedrecall.privacy import noise"),
        ("privacy", "from fedrecall.models.recall import RecallModel"),
        ("protocol", "from fedrecall.privacy.ledger.ledger import Ledger"),
        ("client", "from fedrecall.simulations.runs.run import run"),
        ("simulations", "import fedrecall.cli"),
        ("server", "from ..client import store"),
        ("fedrecall", "import server"),
        ("fedrecall", "from protocol.plan import Plan"),
        ("simulations", "import importlib; importlib.import_module('server')"),
        ("client", "from fedrecall.privacy.ledger.ledger import _line"),
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
        ("client", "from fedrecall.client.events.store import EventStore"),
        ("server", "from fedrecall.server import optimiser"),
        ("server", "from fedrecall.privacy.ledger.ledger import Ledger"),
        ("protocol", "import json\nimport numpy as np\nfrom safetensors import deserialize"),
        ("fedrecall", "from fedrecall.simulations.runs.run import run"),
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
