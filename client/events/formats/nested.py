"""Records with fields inside fields: what a dotted name reaches, and one row an event where a field is a list."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Int64

from fedrecall.client.events.tables import LIST_SEPARATOR, PROSE, WATCHED, Rows
from fedrecall.protocol.errors import DataError

_QUOTES = " \t\"'[](){}"
_MOSTLY = 0.9
_ENOUGH = 5
_IN_LISTS = ("|", ";", ",", " ")
_SINGLE = ("user", "item", "time", "event", "weight")
_USERS = "has a list of users: one object is one event, or one user's list of items"


class NoRowError(ValueError):
    """Why a record gives no row, in words that hold nothing of it."""


def gather(
    found: Sequence[Mapping[str, str]], line: int, rows: Rows, columns: Mapping[str, list[str]], numbers: list[int]
) -> None:
    """Append the rows that the record of a line gave to ``columns``, and their line to ``numbers``."""
    if len(found) > 1:
        rows.exploded(1, len(found))
    for row in found:
        for role, text in row.items():
            columns[role].append(text)
    numbers += [line] * len(found)


def reach(record: Mapping[str, Any], name: str) -> Any:
    """Return the field ``name`` of a record, ``None`` where there is none.

    A key of that very name goes before a path: ``user.id`` is ``id`` of the object ``user``, and of each object of a
    list, which then is a list.
    """
    if name in record or "." not in name:
        return record.get(name)
    value: Any = record
    for step in name.split("."):
        value = [_step(one, step) for one in value] if isinstance(value, list) else _step(value, step)
    return value


def paths(record: Mapping[str, Any], depth: int = 3) -> list[str]:
    """Return the names that reach the fields of a record, dotted where they lie in an object."""
    found = []
    for key, value in record.items():
        inner = value[0] if isinstance(value, list) and value and isinstance(value[0], dict) else value
        if isinstance(inner, dict) and depth > 1:
            found += [f"{key}.{name}" for name in paths(inner, depth - 1)]
        else:
            found.append(key)
    return found


def spread(values: Mapping[str, Any]) -> list[dict[str, str]]:
    """Return the rows of one record, by role: one for each item where the items are a list, else one.

    Roles beside the items that are lists too go along with them, one by one. Texts are as they would stand in a field:
    empty where there is no value.

    Raises:
        NoRowError: a role holds an object, lists differ in length, or the user is a list.
    """
    item = values.get("item")
    if isinstance(values.get(WATCHED), list | dict):
        values = {**values, WATCHED: None}
    if not isinstance(item, list):
        return [{role: _text(value, role) for role, value in values.items()}]
    if not item:
        raise NoRowError("has an empty list of items")
    along = {r for r, v in values.items() if isinstance(v, list) and (r not in PROSE or len(v) == len(item))}
    if "user" in along:
        raise NoRowError(_USERS)
    if any(len(values[role]) != len(item) for role in along):
        raise NoRowError("has lists of different lengths")
    rest = {role: _text(value, role) for role, value in values.items() if role not in along}
    return [{r: rest[r] if r in rest else _text(values[r][n], r) for r in values} for n in range(len(item))]


def split_items(
    columns: dict[str, pa.Array], lines: Int64[np.ndarray, " rows"], separator: str
) -> tuple[dict[str, pa.Array], Int64[np.ndarray, " events"], tuple[int, int]]:
    """Return columns and lines with one row for each item of a field, and how many lines held how many items.

    Brackets around a list and quotes around an item are no part of it. An item without text is null.
    """
    bare = pc.utf8_trim(columns["item"], _QUOTES)
    parts = pc.split_pattern(pc.fill_null(bare, ""), separator)
    sizes = pc.list_value_length(parts).to_numpy(zero_copy_only=False)
    rows = pa.array(np.repeat(np.arange(len(lines)), sizes))
    items = pc.utf8_trim(pc.list_flatten(parts), _QUOTES)
    items = pc.if_else(pc.equal(items, ""), pa.scalar(None, pa.string()), items)
    out = {role: items if role == "item" else column.take(rows) for role, column in columns.items()}
    several = sizes > 1
    return out, lines[rows.to_numpy()], (int(several.sum()), int(sizes[several].sum()))


def refuse_written_lists(items: pa.Array, users: pa.Array | None, where: str) -> None:
    """Raise DataError where most fields of items are lists that somebody wrote into one field.

    They stand in brackets; or nearly nobody has a second line, and most fields hold what separates lists.
    """
    known = items.drop_null()
    if not len(known):
        return
    if users is not None and len(users) >= _ENOUGH and pc.count_distinct(users).as_py() >= _MOSTLY * len(users):
        for separator in _IN_LISTS:
            several = pc.sum(pc.match_substring(known, separator)).as_py()
            if 2 * several > len(known):
                raise DataError(
                    f"{where}: {several} of {len(known)} fields of --item hold {separator!r}, and nearly every user has"
                    f" one line: if a field is a list of items, give --item-sep {separator!r}; if it is one item,"
                    " --layout rows"
                )
    listed = pc.and_(pc.starts_with(known, "["), pc.ends_with(known, "]"))
    if pc.sum(listed).as_py() > _MOSTLY * len(known):
        raise DataError(
            f"{where}: {pc.sum(listed).as_py()} of {len(known)} fields of --item are lists in brackets: say what"
            " separates their items, such as --item-sep ','"
        )


def _step(value: Any, name: str) -> Any:
    return value.get(name) if isinstance(value, dict) else None


def _text(value: Any, role: str) -> str:
    """Return a value as the text of one field."""
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str | int | float):
        return str(value)
    if isinstance(value, list):
        if role in _SINGLE or role.startswith("where"):
            option = role.partition(" ")[0]
            raise NoRowError(_USERS if role == "user" else f"has a list where --{option} is one value")
        return LIST_SEPARATOR.join(filter(None, (_text(x, role) for x in _flat(value))))
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    if isinstance(value, dict | tuple):
        option = role.partition(" ")[0]
        raise NoRowError(f"has an object where --{option} is one value: name a field of it, with a dot")
    return str(value)


def _flat(values: Sequence[Any]) -> list[Any]:
    return [x for value in values for x in (_flat(value) if isinstance(value, list) else [value])]
