"""Wrapping functions of the wiring in this process, for a while: how audits watch runs, and how bugs are planted.

No product code knows of it, and there is no setting to switch it on: a deployment cannot reach it.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any


def wired(place: ModuleType, name: str) -> Any:
    """Return what a training calls by ``name`` where ``place`` looks it up, wrapped or not."""
    return getattr(place, name)


@contextmanager
def wrapped(place: ModuleType | type, name: str, wrap: Callable[[Any], Any]) -> Iterator[None]:
    """Replace ``place.name`` by ``wrap(place.name)``, and put the original back at the end.

    Raises AttributeError where there is no such name, so that a renamed function breaks the audit and not its sight.
    """
    original = getattr(place, name)
    setattr(place, name, wrap(original))
    try:
        yield
    finally:
        setattr(place, name, original)
