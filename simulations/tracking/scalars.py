"""Nested figures as plain pairs of name and number, as trackers want them."""

from collections.abc import Mapping
from typing import Any


def scalars(values: Mapping[str, Any], *, all: bool = False) -> dict[str, Any]:
    """Return the numbers of nested ``values`` by names joined with a slash; ``all`` values, whatever they are.

    What has no number (an epsilon that nothing bounds) is left out.
    """
    found: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            found |= {f"{name}/{inner}": v for inner, v in scalars(value, all=all).items()}
        elif all or (isinstance(value, int | float) and not isinstance(value, bool)):
            found[name] = value
    return found
