"""Reading item files: identifiers, titles, categories."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fedrecall.client.events.parsing import read_table
from fedrecall.client.events.tables import Column, Layout, Progress, Table, one_line, split_categories
from fedrecall.protocol.errors import DataError


@dataclass(frozen=True, kw_only=True)
class ItemColumns:
    """Where an item file holds what, by column name or 1-based number; ``None`` where it does not."""

    item: Column
    title: Column | None = None
    categories: Column | None = None
    category_separator: str = "|"


@dataclass(frozen=True, kw_only=True, eq=False)
class ItemFile:
    """The items of an item file, in file order, each once; ``report`` counts what was dropped."""

    ids: tuple[str, ...]
    titles: tuple[str, ...]
    categories: tuple[tuple[str, ...], ...]
    report: dict[str, Any] = field(default_factory=dict)


def read_items(
    path: Path, columns: ItemColumns, layout: Layout | None = None, progress: Progress | None = None
) -> ItemFile:
    """Read an item file; raises DataError as ``fedrecall.client.events.parsing.read_table`` does.

    Of items with one identifier the first is kept; lines without an identifier are dropped.
    """
    wanted = {"item-id": columns.item, "title": columns.title, "categories": columns.categories}
    table = read_table(path, {r: c for r, c in wanted.items() if c is not None}, layout, progress)
    return items_of(path.name, table, columns.category_separator)


def items_of(name: str, table: Table, category_separator: str) -> ItemFile:
    """Return the items of ``table`` (roles ``item-id``, ``title``, ``categories``) as ``read_items`` does."""
    count = len(table.lines)
    titles = table.columns["title"].to_pylist() if "title" in table.columns else [None] * count
    texts = table.columns["categories"].to_pylist() if "categories" in table.columns else [None] * count
    categories = [split_categories(text, category_separator) for text in texts]
    return collect_items(name, table, titles, categories)


def collect_items(name: str, table: Table, titles: list[str | None], categories: list[tuple[str, ...]]) -> ItemFile:
    """Return the items of ``table`` (role ``item-id``), the first of each identifier."""
    rows: dict[str, int] = {}
    missing = 0
    for row, item in enumerate(table.columns["item-id"].to_pylist()):
        if item is None:
            missing += 1
        else:
            rows.setdefault(item, row)
    if not rows:
        raise DataError(f"{name} holds no item: check --item-id and --sep")
    count = len(table.lines)
    return ItemFile(
        ids=tuple(rows),
        titles=tuple(one_line(titles[row]) for row in rows.values()),
        categories=tuple(categories[row] for row in rows.values()),
        report={
            "rows_read": count + table.malformed,
            "kept": len(rows),
            "dropped": {
                "malformed line": table.malformed,
                "missing field": missing,
                "duplicate": count - missing - len(rows),
            },
            "malformed_lines": [{"file": name, "line": line, "reason": reason} for line, reason in table.examples],
        },
    )
