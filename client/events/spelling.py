"""One spelling for what is written in several ways: fields without a value, and identifiers that are whole numbers."""

import re
from collections.abc import Sequence

import pyarrow as pa
import pyarrow.compute as pc

MISSING = (
    *("NaN", "nan", "NAN", "NaT", "NA", "N/A", "n/a", "#N/A", "<NA>", "None", "null", "Null", "NULL", "(null)"),
    "\\N",
)
"""What pandas, R, spreadsheets and databases write where there is no value."""

_POINT = r"^-?(?:0|[1-9][0-9]*)\.0+$"
_EXPONENT = r"^-?[0-9](?:\.[0-9]+)?[eE]\+[0-9]{1,3}$"
_MOST_DIGITS = 40


def shape(text: str) -> str:
    """Return what a text looks like without what it says: digits as 9, marks of dates as they are, the rest as a."""
    return re.sub(r"[^0-9 .,:;/+_-]+", "a", re.sub("[0-9]+", "9", text[:40]))


def without_missing(column: pa.Array, missing: Sequence[str]) -> tuple[pa.Array, int]:
    """Return a column of text with null in the place of each of ``missing``, and how many there were."""
    absent = pc.fill_null(pc.is_in(column, value_set=pa.array(list(missing), pa.string())), False)
    count = int(pc.sum(absent).as_py() or 0)
    return (pc.if_else(absent, pa.scalar(None, pa.string()), column) if count else column), count


def one_spelling(column: pa.Array) -> tuple[pa.Array, int, int]:
    """Return a column of identifiers with whole numbers written as such, how many texts that changed, and rounded ones.

    ``101.0`` is ``101`` and ``1e+15`` is ``1000000000000000``, as programs write them that took an identifier for a
    number. What starts with a zero, has a fraction, or an exponent without a sign stays as it is: it is a name. One
    whose exponent hides digits (``1.23457E+15``, as spreadsheets show it) may have been rounded: it may be several.
    """
    pointed = pc.fill_null(pc.match_substring_regex(column, _POINT), False)
    count = int(pc.sum(pointed).as_py() or 0)
    if count:
        column = pc.if_else(pointed, pc.replace_substring_regex(column, r"\.0+$", ""), column)
    rounded = 0
    raised = pc.fill_null(pc.match_substring_regex(column, _EXPONENT), False)
    if pc.any(raised).as_py():
        distinct = pc.unique(column.filter(raised)).to_pylist()
        plain = {text: whole for text in distinct if (whole := _without_exponent(text)) != text}
        texts = [plain.get(text, text) for text in column.to_pylist()]
        hiding = {text for text, whole in plain.items() if whole.endswith("0")}
        old = column.to_pylist()
        count += sum(text in plain for text in old)
        rounded = sum(text in hiding for text in old)
        column = pa.array(texts, pa.string())
    return column, count, rounded


def _without_exponent(text: str) -> str:
    """Write a number with an exponent out, if it is whole."""
    mantissa, exponent = re.split("[eE]", text)
    whole, _, fraction = mantissa.lstrip("-").partition(".")
    fraction = fraction.rstrip("0")
    zeros = int(exponent) - len(fraction)
    if zeros < 0 or int(exponent) > _MOST_DIGITS or whole == "0":
        return text
    return "-" * text.startswith("-") + whole + fraction + "0" * zeros
