"""Row filters: conditions on columns, as ``--where "Quantity > 0"`` writes them."""

import re
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Bool

from fedrecall.client.events.tables import Column
from fedrecall.client.events.times import parse_numbers
from fedrecall.protocol.errors import UsageError

_CONDITION = re.compile(r"\s*(.+?)\s*(<=|>=|==|!=|<>|=|<|>)\s*(.*?)\s*", re.DOTALL)
_COMPARE = {"<": pc.less, "<=": pc.less_equal, ">": pc.greater, ">=": pc.greater_equal, "=": pc.equal}
_SPELLED = {"==": "=", "<>": "!="}


@dataclass(frozen=True, kw_only=True)
class Condition:
    """What a row must fulfil: its ``column`` (name or 1-based number) compared with ``value``.

    ``operator`` is one of ``= != < <= > >=``. Both sides are compared as numbers where ``value`` is one, else as text,
    so that ISO dates compare as they should. A field without a value is unlike every value and fulfils nothing else.
    """

    column: Column
    operator: str
    value: str

    def __str__(self) -> str:
        """Return the condition as it is written."""
        return f"{self.column} {self.operator} {self.value}"


def parse_condition(text: str) -> Condition:
    """Read one condition; a column or a value with signs in it stands in quotes. Raises UsageError."""
    match = _CONDITION.fullmatch(text) if not text.lstrip().startswith(('"', "'")) else _quoted(text)
    if match is None:
        raise UsageError(
            f"--where is {text!r}: write a column, one of = != < <= > >=, and a value, such as 'Quantity > 0'"
        )
    column, operator, value = match.groups()
    return Condition(column=_bare(column), operator=_SPELLED.get(operator, operator), value=_bare(value))


def fulfilled(column: pa.Array, condition: Condition) -> Bool[np.ndarray, " rows"]:
    """Return the rows of a column of text that fulfil a condition on it."""
    wanted = parse_numbers(pa.array([condition.value], pa.string()))[0]
    unlike = condition.operator == "!="
    compare = _COMPARE["=" if unlike else condition.operator]
    alike = np.array(pc.fill_null(compare(column, condition.value), False))
    if not np.isnan(wanted):
        numbers = parse_numbers(column)
        as_numbers = np.array(compare(pa.array(numbers), wanted)) & ~np.isnan(numbers)
        alike = as_numbers | alike if compare is pc.equal else as_numbers
    return np.asarray(~alike if unlike else alike)


def _quoted(text: str) -> re.Match[str] | None:
    quote = re.escape(text.lstrip()[0])
    return re.fullmatch(rf"\s*({quote}[^{quote}]+{quote})\s*(<=|>=|==|!=|<>|=|<|>)\s*(.*?)\s*", text, re.DOTALL)


def _bare(text: str) -> str:
    return text[1:-1] if len(text) > 1 and text[0] == text[-1] and text[0] in "\"'" else text
