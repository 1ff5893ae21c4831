"""What the pages name exists: every test that a rule leans on, every file, every command."""

import ast
import re
import tomllib
from functools import cache
from pathlib import Path

import pytest

from fedrecall.privacy.accounting.budget import Budget, after_windows
from fedrecall.privacy.accounting.gaussian import gaussian_epsilon, gaussian_mu
from fedrecall.simulations.config import RunConfig, load_config, to_toml

from . import settings_page
from .house import FLOORS, ROOT

PAGES = sorted([*(ROOT / "docs").glob("*.md"), ROOT / "README.md", ROOT / "CONTRIBUTING.md"])
NAMED = re.compile(r"`(tests/[\w/]+\.py)(?:::(\w+))?`")
FILE = re.compile(rf"`((?:{'|'.join(FLOORS)})/[\w/]+(?:\.\w+|/))`")
LINKED = re.compile(r"\]\((?!https?:|#)([^)#]+)(?:#[^)]*)?\)")


@cache
def functions(path: Path) -> set[str]:
    return {n.name for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.FunctionDef)}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_test_that_a_page_names_exists(page: Path) -> None:
    for file, function in NAMED.findall(page.read_text()):
        assert (ROOT / file).exists(), file
        assert not function or function in functions(ROOT / file), f"{file}::{function}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_leads_somewhere(page: Path) -> None:
    for target in LINKED.findall(page.read_text()):
        assert (page.parent / target).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_file_of_the_code_that_a_page_names_exists(page: Path) -> None:
    for name in FILE.findall(page.read_text()):
        assert (ROOT / name).exists(), name


def test_each_of_the_nineteen_rules_is_told_and_has_a_row_with_a_test() -> None:
    page = (ROOT / "docs" / "privacy.md").read_text()
    told = re.findall(r"^(\d+)\. \*\*", page, re.MULTILINE)
    rows = re.findall(r"^\| (\d+) [^|]+\|[^|]+\|([^|]+)\|$", page, re.MULTILINE)
    assert [int(number) for number in told] == [int(number) for number, _ in rows] == list(range(1, 20))
    assert all(NAMED.search(tests) for _, tests in rows)


def test_the_page_says_what_a_renewing_budget_adds_up_to() -> None:
    year = after_windows(Budget(epsilon=1.0, delta=1e-6, renews="month"), 12)
    page = (ROOT / "docs" / "privacy.md").read_text()
    assert f"epsilon 1 a month at delta 1e-6 is {year + 5e-4:.3f} after a year" in page


def test_the_page_says_what_two_devices_of_one_person_amount_to() -> None:
    both = gaussian_epsilon(2 * gaussian_mu(8.0, 1e-5), 1e-5)
    page = (ROOT / "docs" / "privacy.md").read_text()
    assert both > 16 and f"{both:.1f} for two of them at epsilon 8 and delta 1e-5" in page


def test_the_page_of_settings_is_the_configuration_as_it_is() -> None:
    assert settings_page.PAGE.read_text() == settings_page.page(), "write it again: python -m tests.settings_page"


def leaves(data: dict, prefix: str = "") -> set[str]:
    """Return the dotted keys of nested data; an empty table and one of names are values."""
    found: set[str] = set()
    for key, value in data.items():
        inner = isinstance(value, dict) and bool(value) and f"{prefix}{key}" != "privacy.shares"
        found |= leaves(value, f"{prefix}{key}.") if inner else {f"{prefix}{key}"}
    return found


def test_the_page_of_settings_names_every_key_with_its_words_and_a_default_that_is_one(tmp_path: Path) -> None:
    keys, _, _ = settings_page.PAGE.read_text().partition("## What the presets set")
    rows = re.findall(r"^\| `([\w.]+)` \| [^|]+ \| `([^`]*)` \| (.*) \|$", keys, re.MULTILINE)
    written = leaves(tomllib.loads(to_toml(RunConfig())))
    unwritten = {"data.path", "flower.address"}  # this machine's business
    adaptive = {f"privacy.adaptive_clip.{name}" for name in ("quantile", "learning_rate", "share")}
    assert {key for key, _, _ in rows} == written | unwritten | adaptive
    assert [key for key, _, words in rows if not words] == []
    (tmp_path / "empty.toml").write_text("")
    again = [f"{key}={default}" for key, default, _ in rows if key not in adaptive]
    assert load_config(tmp_path / "empty.toml", None, again) == RunConfig()
