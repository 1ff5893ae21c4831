"""What a file of events or items looks like, and the columns of text that are read from it."""

import difflib
import io
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Int64

from fedrecall.protocol.errors import DataError

Progress = Callable[[str, int, int], None]
Column = str | int
Format = Literal["delimited", "jsonl", "parquet"]

BLOCK_CHARACTERS = 1 << 22
SHOWN_LINES = 20
_EMPTY = pa.array([], pa.string())


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How a file is written down.

    Attributes:
        format: ``delimited``, ``jsonl`` (one JSON object a line) or ``parquet``; ``None`` looks at the file.
        separator: any string for delimited files; ``None`` looks at the first lines. Fields may be quoted
            with ``"`` where the separator is a comma or a semicolon.
        encoding: a Python codec name; a byte-order mark is skipped.
        header: the first line of a delimited file holds column names.

    """

    format: Format | None = None
    separator: str | None = None
    encoding: str = "utf-8"
    header: bool = True


@dataclass(frozen=True, kw_only=True, eq=False)
class Table:
    """The wanted columns of one file, as text.

    Attributes:
        columns: by role; trimmed; null where a field is empty or absent. All have ``len(lines)`` rows.
        lines: line of each row in the file, counted from 1 (row number for Parquet).
        malformed: number of lines that could not be read; not among the rows.
        examples: line number and reason of the first malformed lines.
        names: column names found, empty without a header.
        layout: the layout as resolved.

    """

    columns: dict[str, pa.Array]
    lines: Int64[np.ndarray, " rows"]
    malformed: int
    examples: tuple[tuple[int, str], ...]
    names: tuple[str, ...]
    layout: Layout


@dataclass
class Rows:
    """Accumulates parsed blocks and malformed lines."""

    chunks: list[list[pa.Array]]
    lines: list[np.ndarray]
    malformed: int
    examples: list[tuple[int, str]]

    def add(self, columns: list[pa.Array], lines: np.ndarray) -> None:
        """Append one block: a column a role, and the line of each row."""
        self.chunks.append(columns)
        self.lines.append(lines)

    def refuse(self, line: int, reason: str) -> None:
        """Count a malformed line, and remember it if it is among the first."""
        self.malformed += 1
        if len(self.examples) < SHOWN_LINES:
            self.examples.append((line, reason))

    def table(self, roles: Sequence[str], names: tuple[str, ...], layout: Layout) -> Table:
        """Return everything read, tidied."""
        columns = {
            role: _tidy(pa.concat_arrays([c[i] for c in self.chunks]) if self.chunks else _EMPTY)
            for i, role in enumerate(roles)
        }
        lines = np.concatenate(self.lines) if self.lines else np.zeros(0, dtype=np.int64)
        return Table(
            columns=columns,
            lines=lines,
            malformed=self.malformed,
            examples=tuple(self.examples),
            names=names,
            layout=layout,
        )


def open_text(path: Path, layout: Layout) -> io.TextIOWrapper:
    """Open a text file; undecodable bytes become lone surrogates, which the careful path refuses by line."""
    utf8 = layout.encoding.lower().replace("_", "-") in ("utf-8", "utf8")
    return open(path, encoding="utf-8-sig" if utf8 else layout.encoding, errors="surrogateescape")


def file_position(file: io.TextIOWrapper, size: int) -> int:
    """Return how many of the ``size`` bytes have been read."""
    return min(os.lseek(file.fileno(), 0, os.SEEK_CUR), size)


def read_block(file: io.TextIOWrapper) -> str:
    """Read about one block of whole lines."""
    text = file.read(BLOCK_CHARACTERS)
    return text + file.readline() if text and not text.endswith("\n") else text


def resolve_columns(
    names: Sequence[str], width: int, wanted: Mapping[str, Column], where: str, header: bool
) -> list[int]:
    """Return the 0-based position of each wanted column, by name first, then by 1-based number."""
    positions = []
    for role, column in wanted.items():
        text = str(column)
        if isinstance(column, str) and column in names:
            positions.append(names.index(column))
        elif text.isdecimal() and 1 <= int(text) <= width:
            if header and _is_number(names[int(text) - 1]):
                raise DataError(
                    f"{where}: column {text} ({role}) is headed {names[int(text) - 1]!r}, as if it were data:"
                    " pass --no-header if the first line is a row"
                )
            positions.append(int(text) - 1)
        else:
            found = ", ".join(names) if names else f"{width} without names (count from 1)"
            near = difflib.get_close_matches(text, names, 1, 0.5)
            hint = f"did you mean {near[0]!r}?" if near else "name one, or its number, or choose another --sep"
            raise DataError(f"{where} has no column {text!r} for --{role}; its columns are: {found}; {hint}")
    return positions


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _tidy(column: pa.Array) -> pa.Array:
    """Trim, and make empty fields null."""
    trimmed = pc.utf8_trim_whitespace(column)
    return pc.if_else(pc.equal(trimmed, ""), pa.scalar(None, pa.string()), trimmed)
