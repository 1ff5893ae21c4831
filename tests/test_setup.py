"""The set-up: what is pinned, what is packed, and what `make` would do."""

import os
import re
import shutil
import subprocess
import sys
import time
import tomllib
import zipfile
from importlib.metadata import distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from .house import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
MAPPING: dict[str, str] = PROJECT["tool"]["setuptools"]["package-dir"]
EXTRAS: dict[str, list[str]] = PROJECT["project"]["optional-dependencies"]
NOT_TRIED = {"track"}
"""Extras that no environment of ours installs: what talks to them is tested where they happen to be."""
TARGETS = {"help", "setup", "run", "test", "test-all", "lint", "types", "bench", "audit", "frontier", "clean"}


def pins() -> dict[str, Version]:
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    found = [Requirement(line) for line in lines]
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+", line) for line in lines), "one exact version a line, no local version"
    assert len({canonicalize_name(r.name) for r in found}) == len(found)
    return {canonicalize_name(r.name): Version(str(r.specifier).removeprefix("==")) for r in found}


def needed_by(requirements: list[str]) -> dict[str, Version]:
    """Return the installed version of everything that ``requirements`` need, directly or not."""
    found: dict[str, Version] = {}
    waiting = [(Requirement(text), "") for text in requirements]
    while waiting:
        wanted, extra = waiting.pop()
        if wanted.marker is not None and not wanted.marker.evaluate({"extra": extra}):
            continue
        name = canonicalize_name(wanted.name)
        installed = distribution(wanted.name)
        if name not in found or wanted.extras:
            found[name] = Version(installed.version)
            children = [Requirement(text) for text in installed.requires or []]
            waiting += [(child, extra) for child in children for extra in ("", *wanted.extras)]
    return found


def folder_of(package: str) -> Path:
    """Return where a package of the wheel comes from: the longest mapped prefix, then the rest."""
    parts = package.split(".")
    for cut in range(len(parts), 0, -1):
        if (prefix := ".".join(parts[:cut])) in MAPPING:
            return ROOT.joinpath(MAPPING[prefix], *parts[cut:])
    raise AssertionError(f"{package} is not mapped")


def shipped_files() -> dict[str, Path]:
    """Return every file below the root folders that an installation needs, by its name once installed."""
    files = {}
    for package, folder in MAPPING.items():
        for path in sorted((ROOT / folder).rglob("*")):
            if path.is_file() and "__pycache__" not in path.parts:
                files["/".join([*package.split("."), *path.relative_to(ROOT / folder).parts])] = path
    return files


class TestPins:
    @pytest.mark.parametrize(
        "requirement",
        [
            *PROJECT["build-system"]["requires"],
            *PROJECT["project"]["dependencies"],
            *(r for name, extra in EXTRAS.items() if name not in NOT_TRIED for r in extra),
        ],
    )
    def test_every_requirement_has_a_pin_within_its_range(self, requirement: str) -> None:
        wanted = Requirement(requirement)
        assert wanted.specifier.contains(pins()[canonicalize_name(wanted.name)])

    def test_what_runs_here_is_what_is_pinned(self) -> None:
        """The tests speak for the pinned versions, and nothing that they need is left to chance."""
        needed = needed_by([*PROJECT["project"]["dependencies"], *EXTRAS["test"], *EXTRAS["dev"]])
        assert {"torch", "numpy", "sympy", "pluggy"} <= set(needed)
        assert {name: Version(v.public) for name, v in needed.items()} == {name: pins()[name] for name in needed}


class TestPackages:
    def test_every_folder_of_code_is_packed(self) -> None:
        folders = {path.parent for path in shipped_files().values() if path.suffix == ".py"}
        assert folders == {folder_of(package) for package in PROJECT["tool"]["setuptools"]["packages"]}

    def test_every_other_file_is_package_data(self) -> None:
        data = PROJECT["tool"]["setuptools"]["package-data"]
        packed = {path for package, globs in data.items() for glob in globs for path in folder_of(package).glob(glob)}
        others = {path for path in shipped_files().values() if path.suffix not in (".py", ".pyc")}
        assert others == packed

    def test_the_wheel_owns_one_name_and_holds_every_file(self, tmp_path: Path) -> None:
        tree, out = tmp_path / "tree", tmp_path / "out"
        for folder in {*MAPPING.values()}:
            shutil.copytree(ROOT / folder, tree / folder, ignore=shutil.ignore_patterns("__pycache__"))
        for name in ("pyproject.toml", "README.md", "LICENSE"):
            shutil.copy(ROOT / name, tree / name)
        command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
        subprocess.run([*command, "--wheel-dir", str(out), str(tree)], check=True, timeout=120)
        (wheel,) = out.glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            names = {name for name in archive.namelist() if ".dist-info/" not in name}
            assert {name.partition("/")[0] for name in names} == {"fedrecall"}
            assert names == {name for name in shipped_files() if not name.endswith(".pyc")}
            (entries,) = (name for name in archive.namelist() if name.endswith("entry_points.txt"))
            assert "fedrecall = fedrecall.cli:main" in archive.read(entries).decode()


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """Return a folder with what `make` reads, and no environment."""
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path / name)
    return tmp_path


def make(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    # Not as a child of the `make` that runs the tests.
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("MAKE", "MFLAGS", "ARGS"))}
    return subprocess.run(["make", *arguments], cwd=folder, env=environment, capture_output=True, text=True, timeout=60)


def prepare(folder: Path) -> None:
    """Put an environment there that looks ready."""
    for name in ("bin/pip", ".ready", ".checks-ready"):
        (folder / ".venv" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / ".venv" / name).touch()
        os.utime(folder / ".venv" / name)


@pytest.mark.skipif(shutil.which("make") is None, reason="make is absent")
class TestMake:
    def test_alone_it_names_every_target(self, checkout: Path) -> None:
        result = make(checkout)
        assert result.returncode == 0
        assert set(re.findall(r"make ([\w-]+)", result.stdout)) == TARGETS - {"help"}

    @pytest.mark.parametrize("target", sorted(TARGETS))
    def test_every_target_can_be_made_from_nothing(self, checkout: Path, target: str) -> None:
        assert make(checkout, "--dry-run", target).returncode == 0

    @pytest.mark.parametrize("target", ["run", "test"])
    def test_from_nothing_it_makes_the_whole_environment(self, checkout: Path, target: str) -> None:
        lines = make(checkout, "--dry-run", target).stdout.splitlines()
        order = [
            next(i for i, line in enumerate(lines) if mark in line) for mark in ("-m venv", " torch", "--editable")
        ]
        assert order == sorted(order), "environment, torch alone, then the rest"
        installs = [line for line in lines if "pip install" in line]
        assert len(installs) == (2 if target == "run" else 3)
        assert all("--constraint constraints.txt" in line for line in installs)
        assert "touch .venv/.ready" in lines
        assert ("touch .venv/.checks-ready" in lines) == (target == "test")

    def test_a_second_time_it_installs_nothing(self, checkout: Path) -> None:
        prepare(checkout)
        later = time.time() + 10
        os.utime(checkout / ".venv" / "bin" / "pip", (later, later))  # pip that updated itself
        for target in ("setup", "run", "test", "lint"):
            assert "pip install" not in make(checkout, "--dry-run", target).stdout

    @pytest.mark.parametrize("changed", ["pyproject.toml", "constraints.txt"])
    def test_it_installs_again_after_a_change(self, checkout: Path, changed: str) -> None:
        prepare(checkout)
        later = time.time() + 10
        os.utime(checkout / changed, (later, later))
        lines = make(checkout, "--dry-run", "test").stdout.splitlines()
        assert sum("pip install" in line for line in lines) == 3
        assert not any("-m venv" in line for line in lines)

    def test_torch_can_come_from_another_index(self, checkout: Path) -> None:
        lines = make(checkout, "--dry-run", "setup", "TORCH_INDEX=an-address").stdout.splitlines()
        assert [line.split()[-1] for line in lines if "--extra-index-url 'an-address'" in line] == ["torch"]

    def test_an_old_python_is_refused_with_the_remedy(self, checkout: Path) -> None:
        old = checkout / "old-python"
        old.write_text('#!/bin/sh\n[ "$1" = -m ] && touch used\nexit 1\n')
        old.chmod(0o755)
        result = make(checkout, "setup", "PYTHON=./old-python")
        assert result.returncode == 2
        assert "Python 3.11 or later: make PYTHON=" in result.stderr
        assert not (checkout / "used").exists()


class TestContinuousIntegration:
    def test_the_script_stops_at_the_first_failure_and_runs_every_check(self) -> None:
        script = ROOT / ".ci" / "run"
        assert os.access(script, os.X_OK)
        subprocess.run(["bash", "-n", str(script)], check=True, timeout=10)
        lines = script.read_text().splitlines()
        assert "set -euo pipefail" in lines
        assert {"make test", "make lint", "make types"} <= set(lines)


class TestDocuments:
    PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])

    @pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
    def test_every_link_to_a_file_leads_somewhere(self, page: Path) -> None:
        text = page.read_text(encoding="utf-8")
        links = [link.partition("#")[0] for link in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in link]
        assert not [link for link in links if link and not (page.parent / link).exists()]

    @pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
    def test_every_target_that_is_mentioned_exists(self, page: Path) -> None:
        commands = re.findall(r"(?:^|`)make ([a-z][\w-]*)", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
        assert set(commands) <= TARGETS
