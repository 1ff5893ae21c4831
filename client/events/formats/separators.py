"""Finding the separator of delimited text, and splitting one line at it."""

import csv
import re
from collections.abc import Mapping, Sequence

from fedrecall.client.events.dates import is_readable
from fedrecall.client.events.tables import Column

SEPARATORS = ("\t", "::", "|", ";", ",", " ")
"""In order of trust: the later ones stand inside texts, numbers and dates too."""
QUOTING_SEPARATORS = (",", ";")
_EVEN = 0.9
_BLANKS = re.compile(r"^ +| +(?= )| +$", re.MULTILINE)
_DECIMAL_COMMA = re.compile(r"(?=.*[;\t])(?:[^,]|(?<=[0-9]),(?=[0-9]))*")


def sniff_separator(lines: Sequence[str], wanted: Mapping[str, Column]) -> str:
    """Choose the separator of ``lines``: it yields the wanted columns, times among them, and cuts the lines evenly.

    A blank is one only where no other does both: it stands inside dates and names. Of the others the one that cuts
    into most fields wins, the more trusted of equals; a comma that stands between digits alone is a decimal one where
    semicolons or tabs cut as well.
    """
    decimal = all(_DECIMAL_COMMA.fullmatch(line) for line in lines)

    def quality(separator: str) -> tuple[bool, bool, bool, bool, int, float]:
        widths = []
        for line in lines:
            try:
                widths.append(len(split(line, separator)))
            except csv.Error:
                widths.append(0)
        width = max(set(widths), key=widths.count)
        try:
            header = [x.strip() for x in split(lines[0], separator)]
        except csv.Error:
            header = []
        numbers = {str(c) for c in wanted.values() if str(c).isdecimal() and int(str(c)) <= width}
        fits = all(str(c) in numbers or str(c) in header for c in wanted.values())
        evenness = widths.count(width) / len(widths) if width > 1 else 0.0
        even = evenness >= _EVEN
        timed = _reads_times(lines, separator, header, wanted.get("time"))
        trusted = even and separator != " " and not (separator == "," and decimal)
        return fits, timed, even, trusted, width, evenness

    return max(SEPARATORS, key=quality)


def _reads_times(lines: Sequence[str], separator: str, header: Sequence[str], column: Column | None) -> bool:
    """Whether most lines have a time in the column of times; so where there is none."""
    if column is None:
        return True
    place = header.index(str(column)) if column in header else int(column) - 1 if str(column).isdecimal() else -1
    fields = [row[place].strip() for line in lines if len(row := try_split(line, separator)) > place >= 0]
    return 2 * sum(map(is_readable, fields)) > len(lines)


def split(line: str, separator: str) -> list[str]:
    """Split one line; raises csv.Error on unbalanced quotes. Blanks separate as one, however many there are."""
    if separator == " ":
        return one_blank(line).split(" ")
    if separator in QUOTING_SEPARATORS and '"' in line:
        return next(csv.reader((line,), delimiter=separator, strict=True))
    return line.split(separator)


def one_blank(text: str) -> str:
    """Return lines that blanks separate with one between fields and none around them."""
    return _BLANKS.sub("", text)


def try_split(line: str, separator: str) -> list[str]:
    """Split one line, at the bare separator where its quotes are unbalanced."""
    try:
        return split(line, separator)
    except csv.Error:
        return line.split(separator)
