"""What a file of events or items looks like, and the columns of text that are read from it."""

import difflib
import io
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Int64

from fedrecall.client.events.spelling import MISSING, one_spelling, without_missing
from fedrecall.protocol.errors import DataError

Progress = Callable[[str, int, int], None]
Column = str | int
Format = Literal["delimited", "lists", "jsonl", "json", "parquet", "arrow"]

BLOCK_CHARACTERS = 1 << 22
SHOWN_LINES = 20
SHOWN_NAMES = 12
LIST_SEPARATOR = "\x1f"
"""Between the parts of a list that stays one field, such as an item's categories."""
BAD_BYTES = "has bytes that the encoding does not allow"
WATCHED = "quantity"
"""The role of a column that nobody asked for and that would say that an event was taken back."""
IDS = ("user", "item", "item-id")
PROSE = ("title", "categories")
"""Roles whose text is for people: a film may be called Null."""

_EMPTY = pa.array([], pa.string())
_QUANTITY = re.compile(r"(?:^|[^a-z])(?:quantity|qty|quantite|menge|cantidad)(?:$|[^a-z])", re.IGNORECASE)
_COLUMN_WORDS = frozenset(
    re.findall(
        "[a-z]+",
        "user users userid uid item items itemid iid id ids time timestamp ts date datetime event events type rating "
        "rate score weight value session visitor customer client member product products productid movie movieid film "
        "song track artist book game video article name title genre genres category categories tags price quantity qty "
        "amount count order invoice created action behavior behaviour url country age gender",
    )
)


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How a file is written down.

    Attributes:
        format: ``delimited``, ``lists`` (delimited, one user a line: the user, then item after item), ``jsonl`` (one
            JSON object a line), ``json`` (one array of objects, or objects over several lines), ``parquet`` or
            ``arrow`` (IPC file or stream, Feather); ``None`` looks at the file.
        separator: any string for delimited files; ``None`` looks at the first lines. Fields may be quoted
            with ``"`` where the separator is a comma or a semicolon.
        encoding: a Python codec name; ``None`` is what a byte-order mark says, else UTF-8. A mark is skipped.
        header: the first line of a delimited file holds column names.
        item_separator: what separates several items in one field; ``None`` where a field holds one.
        missing: texts that mean no value; an empty field always does.
        rows: every line is one event, however much the file looks like one list a line.
    """

    format: Format | None = None
    separator: str | None = None
    encoding: str | None = None
    header: bool = True
    item_separator: str | None = None
    missing: tuple[str, ...] = MISSING
    rows: bool = False


@dataclass(frozen=True, kw_only=True, eq=False)
class Table:
    """The wanted columns of one file, as text.

    Attributes:
        columns: by role; trimmed; null where a field is empty, absent or one of ``Layout.missing``. All have
            ``len(lines)`` rows.
        lines: line of each row in the file, counted from 1 (row number for Parquet and Arrow, number of the object
            for a JSON array).
        malformed: number of lines that could not be read; not among the rows.
        examples: line number and reason of the first malformed lines.
        names: column names found, empty without a header.
        layout: the layout as resolved.
        typed: the type of each wanted column that holds moments by its type; its text is seconds since 1970.
        about: how the file was read, as plain JSON data: what was found out, and what was changed.
    """

    columns: dict[str, pa.Array]
    lines: Int64[np.ndarray, " rows"]
    malformed: int
    examples: tuple[tuple[int, str], ...]
    names: tuple[str, ...]
    layout: Layout
    typed: dict[str, str] = field(default_factory=dict)
    about: dict[str, Any] = field(default_factory=dict)


@dataclass(kw_only=True)
class Rows:
    """Accumulates parsed blocks and malformed lines.

    Attributes:
        roles: what is wanted.
        typed: as ``Table.typed``.
        watched: the column that ``WATCHED`` is.
        lists: lines that held several events, and how many these were.
    """

    roles: list[str]
    chunks: list[list[pa.Array]] = field(default_factory=list)
    lines: list[np.ndarray] = field(default_factory=list)
    malformed: int = 0
    examples: list[tuple[int, str]] = field(default_factory=list)
    typed: dict[str, str] = field(default_factory=dict)
    watched: str | None = None
    lists: tuple[int, int] = (0, 0)

    def add(self, columns: list[pa.Array], lines: np.ndarray) -> None:
        """Append one block: a column a role, and the line of each row."""
        self.chunks.append(columns)
        self.lines.append(lines)

    def refuse(self, line: int, reason: str) -> None:
        """Count a malformed line, and remember it if it is among the first."""
        self.malformed += 1
        if len(self.examples) < SHOWN_LINES:
            self.examples.append((line, reason))

    def watch(self, column: str) -> None:
        """Read ``column`` too, as ``WATCHED``; before the first block."""
        self.roles.append(WATCHED)
        self.watched = column

    def exploded(self, lines: int, events: int) -> None:
        """Count lines that held several events."""
        self.lists = self.lists[0] + lines, self.lists[1] + events

    def table(self, names: tuple[str, ...], layout: Layout, about: dict[str, Any]) -> Table:
        """Return everything read, tidied: trimmed, one spelling an identifier, null where there is no value."""
        columns: dict[str, pa.Array] = {}
        missing, respelled, rounded = 0, dict[str, int](), dict[str, int]()
        for i, role in enumerate(self.roles):
            column = _trimmed(pa.concat_arrays([c[i] for c in self.chunks]) if self.chunks else _EMPTY)
            column = _unquoted(column) if layout.format == "delimited" else column
            if role not in PROSE:
                column, count = without_missing(column, layout.missing)
                missing += count
            if role in IDS:
                column, changed, cut = one_spelling(column)
                respelled |= {role: changed} if changed else {}
                rounded |= {role: cut} if cut else {}
            columns[role] = column
        said: dict[str, Any] = {"missing_texts": missing} if missing else {}
        said |= {"respelled_ids": respelled} if respelled else {}
        said |= {"rounded_ids": rounded} if rounded else {}
        said |= {"lists": {"lines": self.lists[0], "events": self.lists[1]}} if self.lists[0] else {}
        said |= {"watched": self.watched} if self.watched else {}
        return Table(
            columns=columns,
            lines=np.concatenate(self.lines) if self.lines else np.zeros(0, dtype=np.int64),
            malformed=self.malformed,
            examples=tuple(self.examples),
            names=names,
            layout=layout,
            typed=self.typed,
            about=about | said,
        )


def read_block(file: io.TextIOWrapper) -> str:
    """Read about one block of whole lines."""
    text = file.read(BLOCK_CHARACTERS)
    return text + file.readline() if text and not text.endswith("\n") else text


def resolve_columns(
    names: Sequence[str], width: int, wanted: Mapping[str, Column], where: str, header: bool
) -> list[int]:
    """Return the 0-based position of each wanted column, by name first, then by 1-based number.

    Raises:
        DataError: there is no such column, or several of that name; or the first line looks like data. What the first
            line holds is shown only where something tells that it is names: it may be somebody's record.
    """
    positions = []
    for role, column in wanted.items():
        text = str(column)
        if isinstance(column, str) and column in names:
            if names.count(column) > 1:
                places = [str(place) for place, name in enumerate(names, 1) if name == column]
                raise DataError(
                    f"{where} has {len(places)} columns named {text!r} (numbers {', '.join(places)}): say which one is"
                    f" --{role} by its number"
                )
            positions.append(names.index(column))
        elif text.isdecimal() and 1 <= int(text) <= width:
            if header and _is_number(names[int(text) - 1]):
                raise DataError(
                    f"{where}: column {text} ({role}) is headed by a number, as if it were data:"
                    " pass --no-header if the first line is a row"
                )
            positions.append(int(text) - 1)
        else:
            found = _what_there_is(names, width, text, wanted)
            raise DataError(f"{where} has no column {text!r} for --{role.partition(' ')[0]}; {found}")
    return positions


def refuse_shared(wanted: Mapping[str, Column], positions: Sequence[Column]) -> None:
    """Raise DataError where one column is to be two of user, item and time, or one of them and something else.

    ``positions`` says which column each of ``wanted`` is, in the same order. An event's type may be its strength.
    """
    taken: dict[Column, str] = {}
    for role, position in zip(wanted, positions, strict=True):
        if role not in ("user", "item", "time", "event", "weight"):
            continue
        other = taken.setdefault(position, role)
        if other != role and {other, role} != {"event", "weight"}:
            raise DataError(
                f"--{other} and --{role} name the same column, {str(wanted[role])!r}: no column is both, give each its"
                " own"
            )


def watched_column(names: Sequence[str], wanted: Mapping[str, Column]) -> str | None:
    """Return a column that holds quantities by its name, unless it is among the ``wanted`` ones or one of several."""
    if "user" not in wanted and "item" not in wanted:
        return None
    named = {str(column) for column in wanted.values()}
    named |= {names[int(n) - 1] for n in named if n.isdecimal() and 1 <= int(n) <= len(names) and n not in names}
    found = [name for name in names if _QUANTITY.search(re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name))]
    return found[0] if len(found) == 1 and found[0] not in named else None


def one_line(text: str | None) -> str:
    """Return a text for people without line ends and runs of blanks; empty for none."""
    return " ".join((text or "").replace(LIST_SEPARATOR, " ").split())


def split_categories(text: str | None, separator: str) -> tuple[str, ...]:
    """Split a field of categories at ``separator``, and where it was a list, each category once."""
    parts = (text or "").replace(LIST_SEPARATOR, separator).split(separator)
    return tuple(dict.fromkeys(c.strip() for c in parts if c.strip()))


def shown_names(names: Sequence[str]) -> str:
    """Return the first column names for a message, without anything that a terminal would obey."""
    short = [re.sub(r"[^\x20-\x7e\xa0-\ud7ff]", "?", name)[:40] for name in names[:SHOWN_NAMES]]
    return ", ".join(short) + (f" and {len(names) - SHOWN_NAMES} more" if len(names) > SHOWN_NAMES else "")


def _what_there_is(names: Sequence[str], width: int, text: str, wanted: Mapping[str, Column]) -> str:
    """Say which columns there are, by name where they certainly are names, and what to do."""
    if not names:
        return f"it has {width} without names: number them from 1, or choose another --sep"
    if not _are_names(names, [str(column) for column in wanted.values()]):
        if not width:
            return (
                f"its objects hold {len(names)} different fields, none of them a known name: give one object a record,"
                " with the same fields in each"
            )
        return (
            f"its first line holds {len(names)} field{'s' * (len(names) > 1)}, none of them a known name: pass"
            " --no-header and number the columns if it is a row, or choose another --sep"
        )
    near = difflib.get_close_matches(text, names, 1, 0.5)
    hint = f"did you mean {near[0]!r}?" if near else "name one, or its number, or choose another --sep"
    return f"its columns are: {shown_names(names)}; {hint}"


def _are_names(names: Sequence[str], wanted: Sequence[str]) -> bool:
    """Whether something tells that fields are names and not somebody's record."""
    if any(re.search("[0-9]{4}", name) or _is_number(name) for name in names):
        return False
    asked = [text for text in wanted if not text.isdecimal()]
    if any(text in names or difflib.get_close_matches(text, names, 1, 0.8) for text in asked):
        return True
    return 2 * sum(bool(_words(name) & _COLUMN_WORDS) for name in names) >= len(names)


def _words(name: str) -> set[str]:
    return set(re.findall(r"[a-z]+", re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower())) if len(name) <= 40 else set()


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _unquoted(column: pa.Array) -> pa.Array:
    """Take the quotes off, where all fields that have a value have some: not every separator was read with them."""
    known = column.drop_null()
    if not len(known) or not pc.all(pc.match_substring_regex(known, '^".*"$')).as_py():
        return column
    bare = pc.utf8_slice_codeunits(column, 1, -1)
    return _trimmed(pc.replace_substring(bare, '""', '"'))


def _trimmed(column: pa.Array) -> pa.Array:
    """Trim, and make empty fields null."""
    trimmed = pc.utf8_trim_whitespace(column)
    return pc.if_else(pc.equal(trimmed, ""), pa.scalar(None, pa.string()), trimmed)
